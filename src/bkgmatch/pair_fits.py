"""Robust fits of the differences of single pairs of exposures, on a sample of their common cells."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from bkgmatch.cells import BLOCK, CutOut, raised
from bkgmatch.execution import HERE, Work, batches

__all__ = ["SAMPLE", "PairFits", "fit_pair", "fit_pairs"]

SAMPLE = 4096
"""About so many common cells of a pair are looked at."""

_CAUCHY_ITERATIONS, _CORE_ITERATIONS, _CORE_LIMIT = 5, 4, 3.5
_ROBUST_LIMIT = 3.0
_TINY = 1e-100  # its square is not 0
_FEW = 30
_RIDGE = 1e-9
_NORMAL_MAD = 1.4826
_PHASES = 0.94  # (1.4826 MAD)^2 / variance, where the variance of interpolated cells differs from cell to cell
_PAIRS = 32  # of a task


class PairFits(NamedTuple):
    """
    Robust fits of single pairs, p = 1 (constant) or 3 (plane).

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Exposures.
    estimate : ndarray, shape (n_pairs, p)
        Function by which the first exceeds the second.
    normal : ndarray, shape (n_pairs, p, p)
        Inverse covariance of the estimate, but for the noise scale.
    npix : ndarray, shape (n_pairs,)
        About how many common cells there are.
    expected : ndarray, shape (n_pairs, 2)
        Variance of a cell that is expected of each exposure.
    excess : ndarray, shape (n_pairs,)
        Variance of the differences over what is expected; NaN if there are too few.
    extent : ndarray, shape (n_pairs, 2)
        Extent of the common cells along x and y, in cells.
    rms : ndarray, shape (n_pairs,)
        Robust scatter of the differences about the fit.
    """

    first: np.ndarray
    second: np.ndarray
    estimate: np.ndarray
    normal: np.ndarray
    npix: np.ndarray
    expected: np.ndarray
    excess: np.ndarray
    extent: np.ndarray
    rms: np.ndarray

    def take(self, chosen: np.ndarray) -> "PairFits":
        """Keep some of the pairs."""
        return PairFits(*(values[chosen] for values in self))


def fit_pairs(
    cutouts: Sequence[CutOut], pairs: Sequence[tuple[int, int]], p: int, unit: float, *, work: Work = HERE
) -> PairFits:
    """
    Fit the difference of each pair, on a sample of its cells.

    Parameters
    ----------
    cutouts : sequence of CutOut
        Exposures.
    pairs : sequence of tuple of int
        Pairs that may overlap.
    p : int
        1 for constants, 3 for planes.
    unit : float
        Unit of length of the planes, in cells.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    PairFits
        Pairs without common cells are left out.
    """
    items = batches([(cutouts[i], cutouts[j]) for i, j in pairs], _PAIRS)
    fits = chain.from_iterable(
        work.run(partial(_fit_batch, p=p, unit=unit), items, what="Comparing pairs (in batches)")
    )
    found = [(pair, fit) for pair, fit in zip(pairs, fits, strict=True) if fit]
    first, second = np.array([pair for pair, _ in found], dtype=int).reshape(-1, 2).T
    columns = list(zip(*(fit for _, fit in found), strict=True)) or [()] * 7
    shapes = [(-1, p), (-1, p, p), (-1,), (-1, 2), (-1,), (-1, 2), (-1,)]
    arrays = [np.array(column, dtype=float).reshape(shape) for column, shape in zip(columns, shapes, strict=True)]
    return PairFits(first, second, *arrays)


def _fit_batch(pairs: Sequence[tuple[CutOut, CutOut]], p: int, unit: float) -> list[tuple | None]:
    return [fit_pair(one, two, p, unit) for one, two in pairs]


def fit_pair(one: CutOut, two: CutOut, p: int, unit: float) -> tuple | None:
    """
    Fit the difference of two exposures.

    Parameters
    ----------
    one, two : CutOut
        Exposures.
    p : int
        1 for a constant, 3 for a plane.
    unit : float
        Unit of length of the plane, in cells.

    Returns
    -------
    tuple or None
        The fields of `PairFits` from ``estimate`` on; None without common cells.
    """
    (x0, x1), (y0, y1) = (_common_range(one, two, axis) for axis in "xy")
    if x0 >= x1 or y0 >= y1:
        return None
    step = int(np.sqrt((x1 - x0) * (y1 - y0) / SAMPLE)) | 1  # odd: not always the same phase of the pixels
    x, y, d = _differences(one, two, (x0, x1), (y0, y1), step)
    if len(d) < _FEW and step > 1:
        step = 1
        x, y, d = _differences(one, two, (x0, x1), (y0, y1), step)
    if not len(d):
        return None
    variances = [c.variance[(y - c.y) // BLOCK, (x - c.x) // BLOCK] for c in (one, two)]
    expected = [c.smoothing * variance for c, variance in zip((one, two), variances, strict=True)]
    terms = np.stack([np.ones(len(d)), x / unit, y / unit][:p], axis=1)
    estimate, weights, scale = _robust_fit(terms, d)
    normal = (terms * (weights / sum(variances))[:, None]).T @ terms * step**2
    excess = _core_scale((d - terms @ estimate) / np.sqrt(sum(expected))) ** 2 / _PHASES if len(d) >= _FEW else np.nan
    return (
        raised(estimate, one.base - two.base),
        normal,
        len(d) * step**2,
        np.median(expected, axis=1),
        excess,
        (np.ptp(x) + step, np.ptp(y) + step),
        scale,
    )


def _common_range(one: CutOut, two: CutOut, axis: str) -> tuple[int, int]:
    sizes = [c.value.shape["yx".index(axis)] for c in (one, two)]
    starts = [getattr(c, axis) for c in (one, two)]
    return max(starts), min(start + size for start, size in zip(starts, sizes, strict=True))


def _differences(
    one: CutOut, two: CutOut, columns: tuple[int, int], rows: tuple[int, int], step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and differences of common good cells, every ``step`` in both axes."""
    parts = [
        c.value[rows[0] - c.y : rows[1] - c.y : step, columns[0] - c.x : columns[1] - c.x : step] for c in (one, two)
    ]
    difference = parts[0] - parts[1]
    y, x = np.nonzero(np.isfinite(difference))
    return columns[0] + step * x, rows[0] + step * y, difference[y, x].astype(float)


def _robust_fit(terms: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Fit a constant to the core from the densest half on; or a plane from the median on, at first with Cauchy weights.

    Return also the weights, and the robust scatter of the core: a ghost shall not hide in its own scatter.
    """
    is_plane = terms.shape[1] > 1
    residual = d - (np.median(d) if is_plane else _densest_half(d))
    centre = terms.mean(axis=0) * (np.arange(terms.shape[1]) > 0)
    centred = terms - centre
    weights = np.zeros(len(d))
    for iteration in range(-_CAUCHY_ITERATIONS if is_plane else 0, _CORE_ITERATIONS):
        before = weights
        if iteration < 0:
            weights = 1 / (1 + (residual / max(_ROBUST_LIMIT * _scale(residual), _TINY)) ** 2)
        else:
            weights = (np.abs(residual) <= _CORE_LIMIT * _core_scale(residual)).astype(float)
        if np.array_equal(weights, before):
            break
        normal = (centred * weights[:, None]).T @ centred
        normal[np.diag_indices(len(normal))] += _RIDGE * normal[0, 0]
        estimate = np.linalg.solve(normal, centred.T @ (weights * d))
        residual = d - centred @ estimate
    estimate[0] -= estimate @ centre
    return estimate, weights, _core_scale(residual)


def _densest_half(d: np.ndarray) -> float:
    """Return the mean of the shortest interval that holds half of the values."""
    ordered = np.sort(d)
    half = len(d) // 2 + 1
    start = int(np.argmin(ordered[half - 1 :] - ordered[: len(d) - half + 1]))
    return float(ordered[start : start + half].mean())


def _scale(residual: np.ndarray) -> float:
    """Return the standard deviation of a normal distribution with the same median of absolute values."""
    return _NORMAL_MAD * float(np.median(np.abs(residual)))


def _core_scale(residual: np.ndarray) -> float:
    """Return the scale of what is left when outliers are clipped."""
    size = np.abs(residual)
    return _scale(size[size <= _CORE_LIMIT * _scale(size)])
