"""Image-for-image backgrounds by the recipe of Crab.Toolkit.JWST, written from its description, on arrays in memory.

Sources are found on a mosaic by two passes of photutils' Background2D and 3 sigma; the mask is put on each exposure by
a FITS WCS without distortion, as a rate file's header has it; and the background of an exposure is the median of the
positive pixels of the others of the last and the next seven days.

The mosaic stands for that of stage 3: exposures matched in level, resampled with their full WCS, outliers dropped.
Pixels that jwst sets to NaN (DO_NOT_USE) are NaN here, too: the recipe itself does not look at DQ.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS
from photutils.background import Background2D
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

SIGMA, SMOOTHING, CUT, DAYS = 3.0, 1.0, 1e-3, 7.0
BOXES = (10, 30)  # of the mosaic's shorter side
LATTICE = 16  # pixels
NEIGHBOURS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


@dataclass(frozen=True)
class Image:
    """An exposure: NaN where it is bad, the full gwcs, the WCS of its header, and the time in days."""

    data: np.ndarray
    err: np.ndarray
    wcs: Any
    header: WCS
    time: float


def header_wcs(wcs: Any, ra: float, dec: float) -> WCS:
    """The TAN projection that agrees with a gwcs at one position of the sky (deg), the reference point."""
    x, y = wcs.invert(ra, dec, with_bounding_box=False)
    tangent = WCS(naxis=2)
    tangent.wcs.ctype, tangent.wcs.crval, tangent.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [ra, dec], [1, 1]
    steps = np.array([[-1, 1, 0, 0], [0, 0, -1, 1]]) / 2
    east, north = tangent.wcs_world2pix(*wcs(x + steps[0], y + steps[1], with_bounding_box=False), 0)
    header = WCS(naxis=2)
    header.wcs.ctype, header.wcs.crval, header.wcs.crpix = ["RA---TAN", "DEC--TAN"], [ra, dec], [x + 1, y + 1]
    header.wcs.cd = [[p[1] - p[0], p[3] - p[2]] for p in (east, north)]
    return header


def mosaic_frame(images: Sequence[Image]) -> tuple[WCS, tuple[int, int]]:
    """The header of the first image, extended until it holds all."""
    frame = images[0].header.deepcopy()
    corners = []
    for image in images:
        ny, nx = image.data.shape
        corners.append(frame.wcs_world2pix(*image.header.wcs_pix2world([0, nx, 0, nx], [0, 0, ny, ny], 0), 0))
    low, high = (np.round(f(corners, axis=(0, 2))).astype(int) for f in (np.min, np.max))
    frame.wcs.crpix = frame.wcs.crpix - low
    nx, ny = (high - low).tolist()
    return frame, (ny, nx)


def resampled(image: Image, frame: WCS, shape: tuple[int, int]) -> np.ndarray:
    """The image on the mosaic's pixels, bilinear."""
    y, x = (np.linspace(0, n - 1, n // LATTICE + 2) for n in shape)
    sky = frame.wcs_pix2world(*np.meshgrid(x, y), 0)
    columns, rows = (
        RectBivariateSpline(y, x, p)(*map(np.arange, shape)) for p in image.wcs.invert(*sky, with_bounding_box=False)
    )
    return map_coordinates(image.data, [rows, columns], np.float32, order=1, cval=np.nan)


def mosaic(images: Sequence[Image], frame: WCS, shape: tuple[int, int]) -> np.ndarray:
    """Mean of the level-matched images without outliers; NaN where there is none."""
    stack = np.array([resampled(image, frame, shape) for image in images])
    stack -= np.nanmedian(stack, axis=(1, 2), keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN
        middle = np.nanmedian(stack, axis=0)
        # Resampling differs by more than the noise where there are sources.
        limit = 5 * np.nanmedian(images[0].err) + 0.5 * np.abs(middle)
        stack[np.abs(stack - middle) > limit] = np.nan
        return np.nanmean(stack, axis=0)


def find_sources(image: np.ndarray) -> np.ndarray:
    """Mask of the sources of a mosaic, grown."""
    empty = ~np.isfinite(image)
    image, found = np.where(empty, 0, image), np.zeros(image.shape, dtype=bool)
    for part in BOXES:
        sky = Background2D(image, min(image.shape) // part, mask=found, coverage_mask=empty, exclude_percentile=90)
        found = (image > sky.background + SIGMA * sky.background_rms) & ~empty
    found &= binary_dilation(found, NEIGHBOURS)
    return gaussian_filter(found.astype(np.float32), SMOOTHING) > CUT


def project(mask: np.ndarray, frame: WCS, image: Image) -> np.ndarray:
    """The mask on the pixels of an image, by its header."""
    y, x = np.indices(image.data.shape)
    columns, rows = frame.wcs_world2pix(*image.header.wcs_pix2world(x.ravel(), y.ravel(), 0), 0)
    found = map_coordinates(mask.astype(np.uint8), [rows, columns], order=0, cval=0)
    return found.reshape(image.data.shape).astype(bool)


def median_of_others(stack: np.ndarray, i: int, times: np.ndarray, days: float = DAYS) -> tuple[np.ndarray, np.ndarray]:
    """Median of the images but the i-th that are near in time, and the number of values in each pixel."""
    near = np.abs(times - times[i]) <= days
    near[i] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN
        return np.nanmedian(stack[near], axis=0), np.isfinite(stack[near]).sum(axis=0)


def backgrounds(images: Sequence[Image]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each image the background, its error, and the number of values in each pixel."""
    frame, shape = mosaic_frame(images)
    mask = find_sources(mosaic(images, frame, shape))
    kept = [~project(mask, frame, image) & (image.data > 0) for image in images]
    data, err = (
        np.array([np.where(k, getattr(image, name), np.nan) for k, image in zip(kept, images, strict=True)])
        for name in ("data", "err")
    )
    times = np.array([image.time for image in images])
    found = []
    for i in range(len(images)):
        value, number = median_of_others(data, i, times)
        found.append((value, median_of_others(err, i, times)[0], number))
    return found
