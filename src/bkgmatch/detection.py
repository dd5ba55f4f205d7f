"""Sources of a mosaic, and masks that hold their light."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from bkgmatch.options import ImageForImageOptions
from bkgmatch.sources import segments

__all__ = ["deviation", "find_sources", "flat_mosaic", "local_noise"]

_FWHM = 2.3548
_RINGS = 48
_AT_ONCE = 1 << 19  # pixels that are worked on at once
_FEWEST_PIXELS = 0.3  # of the pixels of a box of the background that must be good


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of normal deviates, from the median of absolute values; NaN without finite ones."""
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan")
    values -= np.median(values, overwrite_input=True)
    return float(1.4826 * np.median(np.abs(values, out=values), overwrite_input=True))


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
    from photutils.background import Background2D  # only here: importing it looks at every package there is, for 1 s

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
    missing = ~np.isfinite(image)
    signal = _smoothed(np.where(missing, 0, image) * np.sqrt(count), options.kernel_fwhm)
    signal[missing] = np.nan
    noise = deviation(signal) if is_rough else local_noise(signal, options.kernel_fwhm)
    if not noise > 0:
        return np.zeros(image.shape, dtype=bool)
    bright = missing
    for rows in _strips(image.shape):
        bright[rows] = signal[rows] / noise > options.snr_threshold
    del signal
    labels = segments(bright, options.npixels)
    return _grown(labels, image, light, options.dilate_size // 2) if labels.any() else labels > 0


def _smoothed(image: np.ndarray, fwhm: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, fwhm / _FWHM) if fwhm else image


def _grown(labels: np.ndarray, image: np.ndarray, light: float, least: int) -> np.ndarray:
    """
    Grow masks, ring by ring of one pixel, until the mean of the light in the next two is less than the limit.

    The first ring alone would be too dark: its pixels are not of the source because their noise is low. Each ring has
    the pixels that are nearest to its source: the profile of the source itself says how far it reaches.
    """
    owner, ring = _rings(labels, max(_RINGS, least))
    total, number = _light_in_rings(image, owner, ring)
    dark = np.divide(total, number, out=np.zeros(total.shape), where=number > 0) < light
    reach = np.argmax(np.column_stack([dark, np.ones(len(dark), dtype=bool)]), axis=1)
    reach = np.maximum(reach, least).astype(ring.dtype)
    mask = np.empty(labels.shape, dtype=bool)
    for rows in _strips(labels.shape):
        mask[rows] = ring[rows] <= reach[owner[rows]]
    return _filled(mask, owner)


def _rings(labels: np.ndarray, farthest: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest source of each pixel, and the number of its ring about it; anything beyond the farthest ring."""
    owner, ring = np.zeros_like(labels), np.full(labels.shape, farthest + 1, dtype=np.uint16)
    margin = farthest + 2
    for rows in _strips(labels.shape, 2 * margin):
        first = max(rows.start - margin, 0)
        window = labels[first : rows.stop + margin]
        if not window.any():
            continue
        inner = slice(rows.start - first, rows.stop - first)
        y, x = ndimage.distance_transform_edt(window == 0, return_distances=False, return_indices=True)[:, inner]
        owner[rows] = window[y, x]
        y -= np.arange(inner.start, inner.stop, dtype=y.dtype)[:, None]
        x -= np.arange(x.shape[1], dtype=x.dtype)
        distance = np.ceil(np.sqrt(np.square(y, dtype=np.float32) + np.square(x, dtype=np.float32)))
        ring[rows] = np.minimum(distance, farthest + 1, out=distance)
    return owner, ring


def _light_in_rings(image: np.ndarray, owner: np.ndarray, ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the pixels of two rings that follow each other, shape (n_sources + 1, _RINGS - 1)."""
    total, number = np.zeros((2, (int(owner.max()) + 1) * (_RINGS + 1)))
    for rows in _strips(image.shape):
        near = (ring[rows] > 0) & (ring[rows] <= _RINGS) & np.isfinite(image[rows])
        place = owner[rows][near].astype(np.intp) * (_RINGS + 1) + ring[rows][near]
        np.add.at(total, place, image[rows][near].astype(float))
        number += np.bincount(place, minlength=number.size)
    total, number = (sums.reshape(-1, _RINGS + 1) for sums in (total, number))
    return total[:, 1:-1] + total[:, 2:], number[:, 1:-1] + number[:, 2:]


def _filled(mask: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Fill the holes of masks that are smaller than the source around them."""
    inside = ndimage.binary_fill_holes(mask) & ~mask
    holes, number = ndimage.label(inside)
    if not number:
        return mask
    hole = holes[inside]
    source = np.zeros(number + 1, dtype=owner.dtype)
    source[hole] = owner[inside]
    area = np.bincount(owner[mask], minlength=int(owner.max()) + 1)
    mask[inside] = (np.bincount(hole) < area[source])[hole]
    return mask


def _strips(shape: tuple[int, ...], least: int = 1) -> Iterator[slice]:
    """Rows that are worked on at once."""
    height = max(least, _AT_ONCE // shape[1], 1)
    return (slice(row, min(row + height, shape[0])) for row in range(0, shape[0], height))
