"""Levels and noise of exposures of one detector, from a sample of their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import solve_triangular
from scipy.optimize import nnls
from scipy.sparse.csgraph import connected_components

from bkgmatch.detection import deviation
from bkgmatch.options import Scale

__all__ = ["Standard", "measure_standards", "sample_rows"]

_PIXELS = 1 << 16
_AT_ONCE, _LEAST_WIDTH = 1 << 18, 256  # values; pixels, however many exposures there are
_ROUNDS = 5
_LEAST_SHARE = 0.05  # of the variance of a difference that is an exposure's own, at least
_WEAK = 1e-3  # weight of the prior of a variance
_ROUNDING = 5e-7  # of values: differences that are not larger, of copies or of whole numbers, tell of no noise
_WILD = 100.0  # times the scatter of most: the levels of others are not measured from such exposures
_MOST_PARTNERS = 100
_SAME = 0.15  # relative difference of the noise of exposures that count alike
_OUTLIER = 4.0  # standard deviations
_REFINEMENTS = 2
_BRIGHT = 0.3  # of the median of a pattern: ratios to fainter pixels tell little


@dataclass(frozen=True)
class Standard:
    """
    How the exposures of a detector differ: each is ``offset + factor * pattern``, and noise.

    Parameters
    ----------
    level : ndarray, shape (n,)
        Median of the source-free pixels of each exposure, less what its mask makes of the common pattern.
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
    step = round(np.sqrt(np.prod(shape) / _PIXELS)) | 1  # odd: patterns of even period are seen in all phases
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
        level, factor = _factors(values, serves, names)
    else:
        level = _levels(values, serves)
        offset = level if scale == "additive" else offset
    alike = np.array([((v - a) / f).astype(np.float32) for v, a, f in zip(values, offset, factor, strict=True)])
    noise = _noise(alike, sigma, serves, np.argsort(np.argsort(names)))
    if scale == "none":
        noise[:] = np.median(noise)  # all count alike
    return Standard(level, offset, factor, noise)


def _levels(values: np.ndarray, serves: np.ndarray) -> np.ndarray:
    """
    Levels relative to a common pattern: least squares of the differences of exposures that serve each other.

    Differences in a pixel have weights of one over the number of exposures there, which is maximum likelihood if all
    serve all. Outliers from the mean of an exposure and its company are left out.
    """
    alone = _medians(values)
    left = np.where(np.isfinite(values), values, 0) - np.nan_to_num(alone)[:, None]
    known = every = np.isfinite(values) & ~_is_wild(values)[:, None]
    company = serves | serves.T
    level = np.zeros(len(values))
    for _ in range(_ROUNDS):
        residual, several = _residuals(left, level, known, company)
        rows = zip(residual, several, known, every, strict=True)
        known = np.array([good & ~(some & _is_outlier(r, some & use)) for r, some, use, good in rows])
        level = _least_squares(left, known, company)
    return alone + level


def _is_wild(values: np.ndarray) -> np.ndarray:
    """Whether exposures scatter much more than most."""
    scatter = np.array([deviation(row) for row in values])
    known = scatter > 0
    return scatter > _WILD * np.median(scatter[known]) if known.any() else known


def _residuals(
    left: np.ndarray, level: np.ndarray, known: np.ndarray, company: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is left of each pixel less the mean of its exposure's company, and whether there is any company."""
    with_itself = (company | np.eye(len(company), dtype=bool)).astype(float)
    residual, several = np.empty(left.shape, dtype=np.float32), np.empty(left.shape, dtype=bool)
    for some in _columns(left.shape):
        number, less = with_itself @ known[:, some], left[:, some] - level[:, None]
        residual[:, some] = less - with_itself @ np.where(known[:, some], less, 0) / np.maximum(number, 1)
        several[:, some] = number > 1
    return residual, several


def _is_outlier(residual: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Whether pixels are farther from zero than the scatter of those that are used explains."""
    return np.abs(residual) > _OUTLIER * (deviation(residual[used]) if used.any() else np.inf)


def _least_squares(left: np.ndarray, known: np.ndarray, company: np.ndarray) -> np.ndarray:
    """Solve the normal equations of the levels; those of each connected set have the median zero."""
    weight, difference = np.zeros((2, *company.shape))
    for some in _columns(left.shape):
        number = known[:, some].astype(float)
        share = number / np.maximum(number.sum(axis=0), 1)
        values = np.where(known[:, some], left[:, some], 0)
        weight += company * (number @ share.T)
        difference += company * (values @ share.T - share @ values.T)
    level = np.linalg.lstsq(np.diag(weight.sum(axis=1)) - weight, difference.sum(axis=1), rcond=1e-10)[0]
    _, group = connected_components(sparse.csr_array(weight), directed=False)
    middle = np.array([np.median(level[group == k]) for k in range(group.max() + 1)])
    return level - middle[group]


def _columns(shape: tuple[int, ...]) -> list[slice]:
    """Pixels that are worked on at once, in double precision."""
    width = max(_LEAST_WIDTH, _AT_ONCE // shape[0])
    return [slice(start, start + width) for start in range(0, shape[1], width)]


def _factors(values: np.ndarray, serves: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """
    Levels and factors relative to a common pattern.

    From the logarithms of its bright pixels; then from the differences that are left in all pixels.
    """
    start = _medians(values)
    _check_positive(start, names)
    with np.errstate(invalid="ignore"):
        logarithms = np.log(np.where(values > _BRIGHT * start[:, None], values, np.nan))
    level = np.exp(_levels(logarithms, serves))
    for _ in range(_REFINEMENTS):  # of noisy values, the mean logarithm is too low
        level = level * _levels(values / level[:, None], serves)
        _check_positive(level, names)
    return level, level / np.nanmedian(level) if np.isfinite(level).any() else level


def _check_positive(levels: np.ndarray, names: Sequence[str]) -> None:
    for name, level in zip(names, levels, strict=True):
        if level <= 0:
            raise ValueError(f"{name}: its level {level:.4g} is not positive; use scale='additive'")


def _noise(alike: np.ndarray, sigma: np.ndarray, serves: np.ndarray, place: np.ndarray) -> np.ndarray:
    """
    Scatter of each exposure in units of ``sigma``, from the differences of those that serve each other.

    The variance of each difference is the sum of two; the sums are fitted with relative errors. Exposures that differ
    by less than what sources and chance may do are taken for the same. With very many exposures, only those near by
    their ``place`` are compared.
    """
    first, second = np.nonzero(np.triu(serves | serves.T))
    near = np.abs(place[second] - place[first]) < _MOST_PARTNERS
    first, second = first[near], second[near]
    sums = np.array([deviation((alike[i] - alike[j]) / sigma) ** 2 for i, j in zip(first, second, strict=True)])
    size = np.array([_typical(np.abs(a / sigma)) for a in alike])
    use = sums > (_ROUNDING * (size[first] + size[second])) ** 2
    if not use.any():
        return np.ones(len(alike))
    first, second, sums = first[use], second[use], sums[use]
    least = np.full(len(alike), np.inf)
    for members in (first, second):
        np.minimum.at(least, members, sums)
    least[np.isinf(least)] = np.median(sums)
    noise = np.sqrt(np.maximum(_shares(first, second, sums, least), _LEAST_SHARE * least))
    usual = np.abs(noise / np.sort(noise)[(len(noise) - 1) // 2] - 1) < _SAME
    noise[usual] = np.sqrt(np.mean(noise[usual] ** 2))
    return noise


def _shares(first: np.ndarray, second: np.ndarray, sums: np.ndarray, least: np.ndarray) -> np.ndarray:
    """
    Variances, none negative, whose sums are the given ones.

    Where these do not decide, a weak prior does: half of the least sum that each is part of.
    """
    rows, columns = np.tile(np.arange(len(sums)), 2), np.concatenate([first, second])
    design = sparse.coo_array((least[columns] / sums[rows], (rows, columns)), shape=(len(sums), len(least))).tocsr()
    normal = (design.T @ design).toarray() + _WEAK**2 * np.eye(len(least))
    rhs = design.sum(axis=0) + _WEAK**2 / 2
    found = np.linalg.solve(normal, rhs)
    if (found < 0).any():
        factor = np.linalg.cholesky(normal)
        found = nnls(factor.T, solve_triangular(factor, rhs, lower=True))[0]
    return least * found


def _typical(values: np.ndarray) -> float:
    """Return the median of the values that are finite; 0 without any."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else 0.0


def _medians(rows: np.ndarray) -> np.ndarray:
    """Median of each row, NaN if nothing in it is finite."""
    order = np.sort(rows, axis=1)
    count = np.isfinite(order).sum(axis=1)
    middle = [
        np.take_along_axis(order, np.maximum(k, 0)[:, None], axis=1)[:, 0] for k in ((count - 1) // 2, count // 2)
    ]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, np.nan)
