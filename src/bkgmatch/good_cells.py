"""Cells that several exposures see, without what does not fit the others there."""

import numpy as np
from scipy import ndimage

__all__ = ["good_cells"]

_CLIP = 3.0
_LEAST_FREEDOM = 1e-4
_INTERPOLATION = 0.1  # rms error of bilinear interpolation, as a fraction of the second difference
_SIGNIFICANT = 9.0
_AROUND, _LEAST_PART_AROUND = 5, 0.1  # cells along a side of a square; of which so many are known


def good_cells(
    value: np.ndarray, weight: np.ndarray, smoothing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Find the cells that several exposures see, and what does not fit the others there.

    Parameters
    ----------
    value : ndarray of float32, shape (k, ny, nx)
        Values of the exposures, of the same level; 0 where there is none.
    weight : ndarray of float32, shape (k, ny, nx)
        Inverse variances of pixels that are not smoothed, 0 where there is no value. Those of exposures that share no
        cell with another are set to 0.
    smoothing : ndarray, shape (k,)
        Variance of a cell over that of a pixel.

    Returns
    -------
    x, y : ndarray of int, shape (m,)
        Positions of the cells that several see.
    value, weight : ndarray of float32, shape (k, m)
        Values and weights there. Weights are 0 for outliers and what is beside them, and less where interpolation of a
        curved sky errs.
    """
    several = np.flatnonzero(np.count_nonzero(weight, axis=0) > 1)
    y, x = np.divmod(several, value.shape[2])
    common = weight.reshape(len(weight), -1).take(several, axis=1)
    # Others, perhaps of another level, would pass for structure of the sky where they begin.
    weight[~common.any(axis=1)] = 0
    total = weight.sum(axis=0)
    sky = np.einsum("kyx,kyx->yx", value, weight) / np.where(total > 0, total, np.nan)
    value, weight = value.reshape(len(value), -1).take(several, axis=1), common
    strange = np.flatnonzero(_is_strange(value - sky[y, x], weight, total[y, x], smoothing))
    at = y[strange], x[strange]
    sky[at] = np.nan
    sky[at] = _sky_of_strange_cells(value[:, strange], weight[:, strange] > 0, _around(sky)[at])
    rough = _interpolation_variance(sky, total)[y, x]
    exposure, cell = np.nonzero(_outliers(value[:, strange], weight[:, strange], smoothing, rough[strange]))
    near, which = _neighbours(y, x, strange[cell], total.shape)
    weight[exposure[which], near] = 0  # also less of a bad pixel than is seen
    weight /= 1 + rough * weight
    return x, y, value, weight


def _is_strange(residual: np.ndarray, weight: np.ndarray, total: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
    """
    Whether any value of a cell is far from their mean, which it is part of: its variance is less by w / sum w.

    Residuals are overwritten.
    """
    residual *= residual
    residual *= weight
    allowed = weight / -total
    allowed += 1
    np.maximum(allowed, _LEAST_FREEDOM, out=allowed)  # rounding leaves something
    allowed *= (_CLIP**2 * smoothing)[:, None]
    return (residual > allowed).any(axis=0)


def _neighbours(
    y: np.ndarray, x: np.ndarray, chosen: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of cells that touch the chosen ones, or are these, and for each the place of the chosen."""
    number = np.full(np.add(shape, 2), -1)
    number[y + 1, x + 1] = np.arange(len(y))
    rows, columns = np.indices((3, 3)).reshape(2, -1)
    near = number[y[chosen, None] + rows, x[chosen, None] + columns]
    which, neighbour = np.nonzero(near >= 0)
    return near[which, neighbour], which


def _around(sky: np.ndarray) -> np.ndarray:
    """Mean of the cells around each that are not NaN."""
    known = np.isfinite(sky).astype(np.float32)
    part = ndimage.uniform_filter(known, _AROUND)
    total = ndimage.uniform_filter(np.where(known > 0, sky, np.float32(0)), _AROUND)
    return np.divide(total, part, out=np.full_like(total, np.nan), where=part > _LEAST_PART_AROUND)


def _sky_of_strange_cells(value: np.ndarray, known: np.ndarray, around: np.ndarray) -> np.ndarray:
    """
    Median of the values; of the two in the middle the one that is nearer to the sky around, the lower without any.

    What a single exposure sees, such as a cosmic ray, would pass for structure of the sky.
    """
    ordered, count = np.sort(np.where(known, value, np.inf), axis=0), known.sum(axis=0)[None]
    low, high = (np.take_along_axis(ordered, middle, axis=0)[0] for middle in ((count - 1) // 2, count // 2))
    return np.where(np.abs(high - around) < np.abs(low - around), high, low)


def _interpolation_variance(mean: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Variance by interpolation of a curved sky: from second differences, where they are more than noise."""
    variance = np.divide(1, total, out=np.zeros_like(total), where=total > 0)
    curved, noise = np.zeros((2, *mean.shape), dtype=np.float32)
    for axis in (0, 1):
        inner = [slice(None)] * 2
        inner[axis] = slice(1, -1)
        second = np.diff(mean, 2, axis=axis)
        known = np.isfinite(second)
        ends = np.diff(variance, 2, axis=axis) + 6 * variance[tuple(inner)]
        curved[tuple(inner)] += np.where(known, second, 0) ** 2
        noise[tuple(inner)] += np.where(known, ends, 0)
    curved[curved < _SIGNIFICANT * noise] = 0
    return _INTERPOLATION**2 * ndimage.maximum_filter(curved, 3)


def _outliers(value: np.ndarray, weight: np.ndarray, smoothing: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """
    Find values that do not fit the others of their cell: the farthest, and what then does not fit without it.

    All at once, what is left of a cell beside a bad value would be judged by a median that is not in its middle. Of the
    last two that differ, both are outliers.
    """
    known = weight > 0
    variance = np.divide(smoothing[:, None], weight, out=np.full(weight.shape, np.inf, np.float32), where=known) + rough
    left, cells = known.copy(), np.arange(value.shape[1])
    while len(cells):
        some = left[:, cells]
        pull = _squared_pulls(np.where(some, value[:, cells], np.nan), variance[:, cells])
        farthest = (pull == np.nanmax(pull, axis=0)) | (some.sum(axis=0) == 2)
        outlier = (pull > _CLIP**2) & farthest
        left[:, cells] = some & ~outlier
        cells = cells[outlier.any(axis=0) & (left[:, cells].sum(axis=0) > 1)]
    return known & ~left


def _squared_pulls(value: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Squared distances of values from the median of their cell, over the variance of these; NaN without a value."""
    known = np.isfinite(value)
    count = known.sum(axis=0)
    pair = 0.25 * np.where(known, variance, 0).sum(axis=0)
    expected = np.where(count == 2, pair, variance * (1 + np.pi / 2 / count))
    return (value - np.nanmedian(value, axis=0)) ** 2 / expected
