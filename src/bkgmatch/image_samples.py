"""Levels and noise of exposures of one detector, from a sample of their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bkgmatch.detection import deviation
from bkgmatch.leave_one_out import merge_others, variance_of_middle
from bkgmatch.options import Scale

__all__ = ["Standard", "measure_standards", "sample_rows"]

_PIXELS = 1 << 17
_ROUNDS = 4
_OUTLIER = 4.0  # standard deviations
_BRIGHT = 0.3  # of the median of a pattern: ratios to fainter pixels tell little


@dataclass(frozen=True)
class Standard:
    """
    How the exposures of a detector differ: each is ``offset + factor * pattern``, and noise.

    Parameters
    ----------
    level : ndarray, shape (n,)
        Median of the source-free pixels of each exposure.
    offset, factor : ndarray, shape (n,)
        What is removed from each exposure before merging, and put back after.
    noise : ndarray, shape (n,)
        What the given standard deviations of the pixels have to be multiplied by.
    """

    level: np.ndarray
    offset: np.ndarray
    factor: np.ndarray
    noise: np.ndarray


def sample_rows(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a regular sample of the pixels of an image."""
    step = max(1, round(np.sqrt(np.prod(shape) / _PIXELS)))
    return slice(step // 2, None, step), slice(step // 2, None, step)


def measure_standards(
    values: np.ndarray, sigma: np.ndarray, serves: np.ndarray, scale: Scale, names: Sequence[str]
) -> Standard:
    """
    Measure the level and the noise of exposures.

    Parameters
    ----------
    values : ndarray of float32, shape (n, m)
        The same pixels of each exposure, NaN where they are not good or on a source.
    sigma : ndarray, shape (m,)
        Standard deviation of these pixels.
    serves : ndarray of bool, shape (n, n)
        ``serves[t, d]``: exposure d is part of the background of exposure t.
    scale : {"additive", "none", "multiplicative"}
        What differs from exposure to exposure.
    names : sequence of str
        Names of the exposures, for messages.

    Returns
    -------
    Standard
        Levels are relative to the pattern that the exposures have in common, so that masks that differ do not matter.
        NaN for an exposure without any good pixel.

    Raises
    ------
    ValueError
        If a level is not positive, and scales are to be multiplied.
    """
    offset, factor = np.zeros(len(values)), np.ones(len(values))
    if scale == "multiplicative":
        level, factor = _factors(values, names)
    else:
        level = _levels(values)
        offset = level if scale == "additive" else offset
    alike = ((values - offset[:, None]) / factor[:, None]).astype(np.float32)
    return Standard(level, offset, factor, _noise(alike, sigma, serves))


def _levels(values: np.ndarray) -> np.ndarray:
    """Levels relative to a common pattern: by medians first, then by least squares without outliers."""
    level = _medians(values)
    for _ in range(_ROUNDS):
        left = values - level[:, None]
        residual = left - _medians(left.T)
        level = level + _medians(residual)
    known = np.abs(residual) <= _OUTLIER * np.array([deviation(row) for row in residual])[:, None]
    for _ in range(_ROUNDS):
        left = np.where(known, values - level[:, None], 0)
        residual = np.where(known, left - left.sum(axis=0) / np.maximum(known.sum(axis=0), 1), 0)
        level = level + residual.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return level


def _factors(values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Levels and factors relative to a common pattern."""
    start = _medians(values)
    for name, level in zip(names, start, strict=True):
        if level <= 0:
            raise ValueError(f"{name}: its level {level:.4g} is not positive; use scale='additive'")
    factor = start / np.nanmedian(start)
    for _ in range(_ROUNDS):
        pattern = _medians((values / factor[:, None]).T)
        typical = np.nanmedian(pattern)
        pattern[~(pattern > _BRIGHT * typical)] = np.nan
        factor = factor * _medians(values / (factor[:, None] * pattern))
    return factor * typical, factor


def _noise(alike: np.ndarray, sigma: np.ndarray, serves: np.ndarray) -> np.ndarray:
    others, count = (a[:, 0] for a in merge_others(alike[:, None], serves, method="median"))
    expected = sigma * np.sqrt(1 + variance_of_middle(count, "median"))
    noise = np.array([deviation(some) for some in (alike - others) / expected])
    known = noise > 0
    return np.where(known, noise, np.median(noise[known]) if known.any() else 1.0)


def _medians(rows: np.ndarray) -> np.ndarray:
    """Median of each row, NaN if nothing in it is finite."""
    order = np.sort(rows, axis=1)
    count = np.isfinite(order).sum(axis=1)
    middle = [
        np.take_along_axis(order, np.maximum(k, 0)[:, None], axis=1)[:, 0] for k in ((count - 1) // 2, count // 2)
    ]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, np.nan)
