"""Sources of a mosaic, and masks that hold their light."""

import warnings

import numpy as np
from photutils.background import Background2D
from photutils.segmentation import detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from bkgmatch.options import ImageForImageOptions

__all__ = ["deviation", "find_sources", "flat_mosaic", "local_noise"]

_FWHM = 2.3548
_RINGS = 48
_FEWEST_PIXELS = 0.3  # of the pixels of a box of the background that must be good


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of normal deviates, from the median of absolute values; NaN without finite ones."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else float("nan")


def local_noise(image: np.ndarray, fwhm: float) -> float:
    """
    Measure the noise of an image, whatever emission fills it.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Image, NaN where there is no data.
    fwhm : float
        Full width at half maximum of the Gaussian that it has been smoothed by, in pixels.

    Returns
    -------
    float
        Standard deviation, from differences of pixels that smoothing leaves independent.
    """
    apart = 3 + round(2 * fwhm)
    return deviation(image[:, apart:] - image[:, :-apart]) / np.sqrt(2)


def flat_mosaic(image: np.ndarray, boxsize: int) -> np.ndarray:
    """
    Subtract the background of a mosaic.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Mosaic, NaN where there is no data.
    boxsize : int
        Side of the boxes in which the background is measured, in pixels; 0: one level for all.

    Returns
    -------
    ndarray, shape (ny, nx)
        Mosaic whose background is zero.

    Raises
    ------
    ValueError
        If no box has enough pixels.
    """
    missing = ~np.isfinite(image)
    if missing.all():
        return image
    if not boxsize:
        return image - np.nanmedian(image)
    percentile = 100 * (1 - _FEWEST_PIXELS)
    try:
        found = Background2D(image, boxsize, coverage_mask=missing, exclude_percentile=percentile)
    except ValueError as error:
        raise ValueError(
            f"the background of the mosaic cannot be measured in boxes of bkg_boxsize={boxsize} pixels ({error}); "
            "set bkg_boxsize=0; a mask is to be given as source_mask"
        ) from error
    return image - found.background


def find_sources(
    image: np.ndarray,
    count: np.ndarray,
    options: ImageForImageOptions,
    light: float = np.inf,
    *,
    is_rough: bool = False,
) -> np.ndarray:
    """
    Find the pixels of sources in a mosaic.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Mosaic, its background zero; NaN where there is no data.
    count : ndarray, shape (ny, nx)
        Number of exposures in each pixel: the noise goes as one over its root.
    options : ImageForImageOptions
        Threshold, number of pixels, smoothing, least growth.
    light : float, optional
        Masks grow until the mean of what is left around them is less than this.
    is_rough : bool
        Whether the mosaic has structure that is no source, and counts as noise.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True on sources.
    """
    root = np.sqrt(count)
    signal = _smoothed(np.where(np.isfinite(image), image, 0) * root, options.kernel_fwhm)
    signal[~np.isfinite(image)] = np.nan
    noise = deviation(signal) if is_rough else local_noise(signal, options.kernel_fwhm)
    if not noise > 0:
        return np.zeros(image.shape, dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)
        missing = ~np.isfinite(signal)
        segments = detect_sources(signal / noise, options.snr_threshold, n_pixels=options.npixels, mask=missing)
    if segments is None:
        return np.zeros(image.shape, dtype=bool)
    return _grown(segments.data, image, light, options.dilate_size // 2)


def _smoothed(image: np.ndarray, fwhm: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, fwhm / _FWHM) if fwhm else image.copy()


def _grown(labels: np.ndarray, image: np.ndarray, light: float, least: int) -> np.ndarray:
    """
    Grow masks, ring by ring of one pixel, until the mean of the light in the next two is less than the limit.

    The first ring alone would be too dark: its pixels are not of the source because their noise is low. Each ring has
    the pixels that are nearest to its source: the profile of the source itself says how far it reaches.
    """
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = labels[tuple(nearest)]
    ring = np.ceil(distance).astype(np.int32)
    near = (ring > 0) & (ring <= _RINGS) & np.isfinite(image)
    place, size = owner[near] * (_RINGS + 1) + ring[near], (int(labels.max()) + 1) * (_RINGS + 1)
    rings = [np.bincount(place, values, size).reshape(-1, _RINGS + 1)[:, 1:] for values in (image[near], None)]
    total, number = (ring[:, :-1] + ring[:, 1:] for ring in rings)
    dark = np.divide(total, number, out=np.zeros(total.shape), where=number > 0) < light
    reach = np.argmax(np.column_stack([dark, np.ones(len(dark), dtype=bool)]), axis=1)
    return _filled(ring <= np.maximum(reach, least)[owner], owner)


def _filled(mask: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Fill the holes of masks that are smaller than the source around them."""
    holes, number = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    if not number:
        return mask
    source = np.zeros(number + 1, dtype=owner.dtype)
    source[holes] = owner
    area = np.bincount(owner[mask], minlength=int(owner.max()) + 1)
    small = np.bincount(holes.ravel()) < area[source]
    small[0] = False
    return mask | small[holes]
