"""Masks of sources, and the background without them."""

import warnings

import numpy as np
from astropy.stats import SigmaClip, sigma_clipped_stats
from photutils.segmentation import detect_sources, detect_threshold
from photutils.utils.exceptions import NoDetectionsWarning

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
        True on sources.
    """
    bad = ~np.isfinite(image)
    if bad.all():
        return np.zeros(image.shape, dtype=bool)
    filled = np.where(bad, 0, image)
    clip = SigmaClip(sigma=options.sigma, maxiters=options.max_iters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)
        threshold = detect_threshold(filled, options.sigma, mask=bad, sigma_clip=clip)
        found = detect_sources(filled, threshold, max(options.npixels, 1), mask=bad)
    if found is None:
        return np.zeros(image.shape, dtype=bool)
    return found.make_source_mask(size=max(options.dilate_size, 1))


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
