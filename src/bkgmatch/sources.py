"""Masks of sources, and the background without them."""

import numpy as np
from astropy.stats import sigma_clipped_stats
from scipy import ndimage

from bkgmatch.options import LevelMatchOptions

__all__ = ["background_level", "source_mask"]


def source_mask(image: np.ndarray, options: LevelMatchOptions) -> np.ndarray:
    """
    Find the pixels of sources.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Image, NaN where it is not good.
    options : LevelMatchOptions
        Threshold, least size, growth.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True on sources: connected pixels, also across corners, that are ``sigma`` standard deviations above the mean
        of the clipped pixels, as `photutils.segmentation.detect_sources` finds them.
    """
    good = np.isfinite(image)
    if not good.any():
        return np.zeros(image.shape, dtype=bool)
    mean, _, deviation = sigma_clipped_stats(image[good], sigma=options.sigma, maxiters=options.max_iters)
    bright = np.greater(image, mean + options.sigma * deviation, where=good, out=np.zeros(image.shape, dtype=bool))
    labels, count = ndimage.label(bright, np.ones((3, 3)))
    is_source = np.bincount(labels.ravel(), minlength=count + 1) >= options.npixels
    is_source[0] = False
    side = max(options.dilate_size, 1)
    return ndimage.maximum_filter(is_source[labels], side, origin=side % 2 - 1)  # even squares reach up and right


def background_level(images: list[np.ndarray], options: LevelMatchOptions) -> float:
    """
    Find the background of images of one tile.

    Parameters
    ----------
    images : list of ndarray
        Images, NaN where they are not good.
    options : LevelMatchOptions
        Threshold of sources, and of clipping.

    Returns
    -------
    float
        Clipped median of the pixels without sources; NaN if there are none.
    """
    values = np.concatenate([image[np.isfinite(image) & ~source_mask(image, options)] for image in images])
    if not values.size:
        return float("nan")
    return float(sigma_clipped_stats(values, sigma=options.sigma, maxiters=options.max_iters)[1])
