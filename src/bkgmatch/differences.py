"""Differences of exposures in common cells: robust fits of single pairs, then sums over patches of sky.

Where several exposures see a cell, its sky is one unknown. Eliminating it gives each pair (i, j) the weight
``w_i w_j / sum_m w_m`` there: the sums of such pairs are the normal equations of maximum likelihood.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import ndimage

from bkgmatch.cells import BLOCK, CutOut, plane_in_cells, raised
from bkgmatch.execution import HERE, Work
from bkgmatch.pairs import added_up, pair_equations
from bkgmatch.solve import NormalSystem, relative_pulls, robust_trust

__all__ = [
    "PATCH",
    "PairFits",
    "PairSums",
    "Start",
    "better_start",
    "fit_pair",
    "fit_pairs",
    "patches",
    "start_solution",
    "sum_patch",
    "sum_patches",
]

PATCH = 8 * BLOCK
"""Side of a patch of sky, in cells."""

_SAMPLE = 4096
_CAUCHY_ITERATIONS, _CORE_ITERATIONS, _CORE_LIMIT = 5, 4, 3.5
_GRAPH_ITERATIONS = 40
_LEAST_ABSOLUTE_ITERATIONS = 15
_ROBUST_LIMIT = 3.0
_TINY = 1e-100  # its square is not 0
_FEW = 30
_NOISE_ITERATIONS, _NOISE_SCATTER, _LEAST_PART = 20, 0.25, 0.1
_LEAST_SHARE = 0.1  # of the variance of the other: of less, a difference tells nothing
_LEAST_NOISE = 1e-4  # of the given variance: images without noise differ by rounding
_RIDGE = 1e-9
_NORMAL_MAD = 1.4826
_PHASES = 0.94  # (1.4826 MAD)^2 / variance, where the variance of interpolated cells differs from cell to cell
_CLIP = 3.0
_LEAST_FREEDOM = 1e-4
_INTERPOLATION = 0.1  # rms error of bilinear interpolation, as a fraction of the second difference
_SIGNIFICANT = 9.0
_PAIRS, _PATCHES = 32, 4  # of a task
_AROUND, _LEAST_PART_AROUND = 5, 0.1  # cells along a side of a square; of which so many are known
_PRODUCTS, _LEAST_PRODUCTS = 1 << 15, 1024  # numbers that stay in the cache, and cells

Item = TypeVar("Item")


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
    npix : ndarray of int, shape (n_pairs,)
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


@dataclass(frozen=True)
class Start:
    """
    Approximate solution, good enough to tell good cells from bad ones.

    Parameters
    ----------
    coefficients : ndarray, shape (n, p)
        Function of each exposure.
    noise : ndarray, shape (n,)
        Factor on the given variance of each exposure.
    unit : float
        Unit of length of the planes, in cells.
    """

    coefficients: np.ndarray
    noise: np.ndarray
    unit: float


class PairSums(NamedTuple):
    """
    Sums over the common cells of pairs.

    Parameters
    ----------
    level : ndarray of int, shape (n_pairs,)
        The pass that the pair belongs to.
    first, second : ndarray of int, shape (n_pairs,)
        Exposures, first < second.
    normal : ndarray, shape (n_pairs, p, p)
        Sum of w phi phi^T, with the weight w of the pair in each cell.
    rhs : ndarray, shape (n_pairs, p)
        Sum of w d phi, with the difference d of the exposures.
    squares : ndarray, shape (n_pairs,)
        Sum of w d^2, with the difference less that of the start.
    npix : ndarray, shape (n_pairs,)
        Number of common good cells.
    """

    level: np.ndarray
    first: np.ndarray
    second: np.ndarray
    normal: np.ndarray
    rhs: np.ndarray
    squares: np.ndarray
    npix: np.ndarray

    def take(self, chosen: np.ndarray) -> "PairSums":
        """Keep some of the pairs."""
        return PairSums(*(values[chosen] for values in self))

    def less(self, coefficients: np.ndarray) -> "PairSums":
        """Subtract functions, shape (n, p), from the exposures."""
        apart = coefficients[self.first] - coefficients[self.second]
        return self._replace(rhs=self.rhs - _times(self.normal, apart))

    def noise(self, sigma: np.ndarray) -> np.ndarray:
        """Return the standard error of each mean difference, from the exposures' standard deviations of a cell."""
        return np.sqrt((sigma[self.first] ** 2 + sigma[self.second] ** 2) / self.npix)

    def offset(self) -> np.ndarray:
        """Mean difference of each pair."""
        return self.rhs[:, 0] / self.normal[:, 0, 0]


# ---------------------------------------------------------------------------------------------- single pairs


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
    batches = _batches(pairs, _PAIRS)
    items = [[(cutouts[i], cutouts[j]) for i, j in batch] for batch in batches]
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


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


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
    step = int(np.sqrt((x1 - x0) * (y1 - y0) / _SAMPLE)) | 1  # odd: not always the same phase of the pixels
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


def start_solution(n: int, fits: PairFits, unit: float) -> Start:
    """
    Find an approximate solution that a few bad pairs do not move.

    Parameters
    ----------
    n : int
        Number of exposures.
    fits : PairFits
        Fits of the pairs.
    unit : float
        Unit of length of the planes, in cells.

    Returns
    -------
    Start
        Coefficients with mean zero over each component, 0 for exposures without pairs.
    """
    noise = _noise_factors(n, fits)
    normal = fits.normal / _times_expected(noise, fits)[:, None, None]
    return Start(_agreed(n, fits.first, fits.second, normal, fits.estimate), noise, unit)


def better_start(start: Start, sums: PairSums) -> Start:
    """
    Find a solution that a few bad pairs do not move, with the precision of all cells.

    Parameters
    ----------
    start : Start
        Approximate solution that was used for the sums.
    sums : PairSums
        Sums of the pairs.

    Returns
    -------
    Start
        The same noise, better coefficients.

    Notes
    -----
    A clipped mean keeps a part of what the value in the middle of the clipping is wrong by: of normal errors, clipped
    at c standard deviations, ``2 c phi(c) / (2 Phi(c) - 1)``, 3 % for c = 3; some times more where cells around a
    clipped one are left out too. The mean of very many cells is more precise than that part of a start from some of
    them, but not than that part of its own error.
    """
    left = sums.less(start.coefficients)
    p = left.rhs.shape[1]
    held = left.normal + _RIDGE * left.normal[:, :1, :1] * np.eye(p)
    estimate = np.linalg.solve(held, left.rhs[:, :, None])[:, :, 0]
    change = _agreed(len(start.noise), left.first, left.second, left.normal, estimate)
    return replace(start, coefficients=start.coefficients + change)


def _agreed(n: int, first: np.ndarray, second: np.ndarray, normal: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Functions of exposures that agree best with those of pairs, but for a few; 0 for exposures without pairs."""
    p = estimate.shape[1]
    coefficients = np.zeros((n, p))
    if not len(first):
        return coefficients
    prior = _start_prior(n, first, second, normal[:, 0, 0])[:, None] * (np.arange(p) > 0)
    trust = np.ones(len(first))
    rhs = _times(normal, estimate)
    system = NormalSystem(n, pair_equations(first, second, normal, rhs), prior=prior)
    for iteration in range(_GRAPH_ITERATIONS):
        coefficients = system.solution_of(pair_equations(first, second, normal, rhs, trust))
        apart = estimate - coefficients[first] + coefficients[second]
        squares = np.einsum("na,nab,nb->n", apart, normal, apart)
        pulls = np.sqrt(np.maximum(squares, 0) / p)  # rounding may leave less than 0 of pairs that agree
        pulls = relative_pulls(pulls, system.component[first])
        before, trust = trust, robust_trust(pulls, last=iteration >= _LEAST_ABSOLUTE_ITERATIONS)
        if iteration > _LEAST_ABSOLUTE_ITERATIONS and np.abs(trust - before).max() < 1e-3:
            break
    return coefficients


def _times_expected(noise: np.ndarray, fits: PairFits) -> np.ndarray:
    """By how much the variance of each pair is larger than expected."""
    one, two = fits.expected.T
    return (noise[fits.first] * one + noise[fits.second] * two) / (one + two)


def _start_prior(n: int, first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights that hold tilts: small beside those of an exposure's pairs, and not lost in rounding of the largest."""
    largest = np.zeros(n)
    for members in (first, second):
        np.maximum.at(largest, members, weights)
    return np.maximum(1e-6 * largest, 1e-9 * weights.max())


def _noise_factors(n: int, fits: PairFits) -> np.ndarray:
    """
    Find the factor on each exposure's variance that explains the scatter of its pairs.

    What a pair tells of one exposure is what the present factor of the other leaves. The median over the pairs counts,
    weighted by the number of cells that were looked at; not of those with a much noisier one.
    """
    used = fits.take(np.isfinite(fits.excess) & (fits.excess > 0))
    if not len(used.first):
        return np.ones(n)
    here, there = (np.concatenate(ends) for ends in ((used.first, used.second), (used.second, used.first)))
    factors = np.full(n, np.inf)
    np.minimum.at(factors, here, np.tile(used.excess, 2))
    factors[np.isinf(factors)] = np.median(used.excess)
    ours, theirs = np.concatenate([used.expected, used.expected[:, ::-1]]).T
    total = np.tile(used.excess, 2) * (ours + theirs)
    weight = np.tile(np.minimum(used.npix, _SAMPLE), 2)
    for _ in range(_NOISE_ITERATIONS):
        told = np.maximum((total - factors[there] * theirs) / ours, _LEAST_PART * factors[here])
        share = factors[here] * ours / np.maximum(factors[here] * ours, factors[there] * theirs)
        tells = share > _LEAST_SHARE
        numbers, middle = _weighted_medians(here[tells], told[tells], weight[tells])
        factors[numbers] = np.sqrt(factors[numbers] * middle)
    # Small deviations are the error of this measurement: all exposures then have the same factor.
    general = np.log(np.median(factors[numbers]))
    factors[~np.isin(np.arange(n), numbers)] = np.exp(general)
    deviation = np.log(factors) - general
    shrunk = deviation * np.maximum(0, 1 - (_NOISE_SCATTER / np.maximum(np.abs(deviation), _NOISE_SCATTER)) ** 2)
    return np.maximum(np.exp(general + shrunk), _LEAST_NOISE)


def _weighted_medians(group: np.ndarray, value: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of groups, and for each the mean of the middle half, by weight, of its values."""
    order = np.lexsort((value, group))
    group, value, weight = group[order], value[order], weight[order]
    numbers, start, inverse = np.unique(group, return_index=True, return_inverse=True)
    summed = np.cumsum(weight)
    before = (summed - weight)[start]
    size = np.bincount(inverse, weight)
    low, high = (summed - weight - before[inverse]) / size[inverse], (summed - before[inverse]) / size[inverse]
    inside = np.clip(np.minimum(high, 0.75) - np.maximum(low, 0.25), 0, None)
    return numbers, np.bincount(inverse, inside * value) / np.bincount(inverse, inside)


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nab,nb->na", matrices, vectors)


# ---------------------------------------------------------------------------------------------- patches of sky


def patches(cutouts: Sequence[CutOut]) -> list[tuple[tuple[int, int], list[int]]]:
    """Row and column of each patch of sky, and its exposures: only patches that several may see."""
    members: dict[tuple[int, int], list[int]] = {}
    for number, c in enumerate(cutouts):
        ny, nx = c.value.shape
        for row in range(c.y // PATCH, -(-(c.y + ny) // PATCH)):
            for column in range(c.x // PATCH, -(-(c.x + nx) // PATCH)):
                members.setdefault((row, column), []).append(number)
    return [(where, numbers) for where, numbers in sorted(members.items()) if len(numbers) > 1]


def sum_patches(
    cutouts: Sequence[CutOut],
    start: Start,
    units: np.ndarray,
    containers: Sequence[np.ndarray],
    *,
    work: Work = HERE,
) -> PairSums:
    """
    Sum the equations of all pairs over all patches of sky.

    Parameters
    ----------
    cutouts : sequence of CutOut
        All exposures.
    start : Start
        Approximate solution; cells that do not fit it are left out.
    units : ndarray of int, shape (n,)
        Exposures that move as one from the beginning.
    containers : sequence of ndarray of int, shape (n,)
        For each pass, the set within which exposures are matched; each pass has larger sets than the one before.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    PairSums
        See `sum_patch`.
    """
    items = [_patch_batch(batch, cutouts, start, units, containers) for batch in _batches(patches(cutouts), _PATCHES)]
    p = start.coefficients.shape[1]
    return join_sums(work.run(_sum_batch, items, what="Adding up differences (in batches)"), p)


class _PatchBatch(NamedTuple):
    """Patches, and those exposures that they need: numbers are places in ``members``."""

    members: np.ndarray
    patches: list[tuple[tuple[int, int], list[int]]]
    cutouts: list[CutOut]
    start: Start
    units: np.ndarray
    containers: list[np.ndarray]


def _patch_batch(
    batch: Sequence[tuple[tuple[int, int], list[int]]],
    cutouts: Sequence[CutOut],
    start: Start,
    units: np.ndarray,
    containers: Sequence[np.ndarray],
) -> _PatchBatch:
    members = np.unique(np.concatenate([numbers for _, numbers in batch]))
    return _PatchBatch(
        members,
        [(where, np.searchsorted(members, numbers).tolist()) for where, numbers in batch],
        [cutouts[i] for i in members],
        Start(start.coefficients[members], start.noise[members], start.unit),
        units[members],
        [container[members] for container in containers],
    )


def _sum_batch(batch: _PatchBatch) -> PairSums:
    some = [sum_patch(*patch, batch.cutouts, batch.start, batch.units, batch.containers) for patch in batch.patches]
    sums = join_sums(some, batch.start.coefficients.shape[1])
    return sums._replace(first=batch.members[sums.first], second=batch.members[sums.second])


def sum_patch(
    where: tuple[int, int],
    members: Sequence[int],
    cutouts: Sequence[CutOut],
    start: Start,
    units: np.ndarray,
    containers: Sequence[np.ndarray],
) -> PairSums:
    """
    Sum the equations of all pairs over a patch of sky.

    Parameters
    ----------
    where : tuple of int
        Row and column of the patch.
    members : sequence of int
        Its exposures.
    cutouts, start, units, containers
        See `sum_patches`.

    Returns
    -------
    PairSums
        The pair of two exposures belongs to the first pass that has both in one set; pairs of one unit to none.
    """
    numbers = np.asarray(members)
    p = start.coefficients.shape[1]
    y0, x0 = where[0] * PATCH, where[1] * PATCH
    value, weight = _stack(numbers, cutouts, y0, x0, start)
    x, y, value, weight = _good_cells(value, weight, np.array([cutouts[i].smoothing for i in numbers]))
    x, y = ((axis - (PATCH - 1) / 2) / start.unit for axis in (x, y))
    middle = (np.array([x0, y0]) + (PATCH - 1) / 2) / start.unit
    sums = []
    earlier = units
    for level, container in enumerate(containers):
        for members_of_one in _sets(container[numbers], earlier[numbers]):
            chosen = numbers[members_of_one]
            some = _pair_sums(value[members_of_one], weight[members_of_one], x, y, p)
            sums.append(_listed(some, chosen, earlier[chosen], level, middle[: p - 1]))
        earlier = container
    return join_sums(sums, p).less(-start.coefficients)


def join_sums(sums: Sequence[PairSums], p: int) -> PairSums:
    """Put lists of pairs together, one entry for each pair."""
    if not sums:
        none = np.zeros(0, dtype=int)
        return PairSums(none, none, none, np.zeros((0, p, p)), np.zeros((0, p)), np.zeros(0), np.zeros(0))
    return PairSums(*added_up(sums, 3))


def _stack(
    numbers: np.ndarray, cutouts: Sequence[CutOut], y0: int, x0: int, start: Start
) -> tuple[np.ndarray, np.ndarray]:
    """Values less the start and a number, and weights, of a patch's exposures; both are 0 where there is no value."""
    high = np.median([cutouts[i].base - start.coefficients[i, 0] for i in numbers])
    value = np.full((len(numbers), PATCH, PATCH), np.nan, dtype=np.float32)
    weight = np.zeros_like(value)
    blocks = np.zeros((len(numbers), PATCH // BLOCK, PATCH // BLOCK), dtype=np.float32)
    for k, number in enumerate(numbers):
        c = cutouts[number]
        here, there = _windows(c, y0, x0)
        value[k][here] = c.value[there]
        rest = raised(start.coefficients[number], high - c.base)
        value[k] -= plane_in_cells(rest, start.unit, x0, y0, (PATCH, PATCH))
        blocks[k][_in_blocks(here)] = 1 / (c.variance[_in_blocks(there)] * start.noise[number])
    weight.reshape(len(numbers), PATCH // BLOCK, BLOCK, -1, BLOCK)[...] = blocks[:, :, None, :, None]
    missing = np.isnan(value)
    value[missing] = weight[missing] = 0
    return value, weight


def _windows(c: CutOut, y0: int, x0: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where patch and cut-out have their common cells."""
    spans = []
    for start, corner, size in zip((y0, x0), (c.y, c.x), c.value.shape, strict=True):
        low, high = max(start, corner), min(start + PATCH, corner + size)
        spans.append((slice(low - start, high - start), slice(low - corner, high - corner)))
    return (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])


def _in_blocks(window: tuple[slice, slice]) -> tuple[slice, ...]:
    return tuple(slice(s.start // BLOCK, s.stop // BLOCK) for s in window)


def _good_cells(
    value: np.ndarray, weight: np.ndarray, smoothing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cells that several exposures see: positions, values, and weights, 0 where a value does not fit the others."""
    several = np.flatnonzero(np.count_nonzero(weight, axis=0) > 1)
    y, x = np.divmod(several, PATCH)
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
    exposure, cell = np.nonzero(_is_outlier(value[:, strange], weight[:, strange], smoothing, rough[strange]))
    near, which = _neighbours(y, x, strange[cell])
    weight[exposure[which], near] = 0  # also less of a bad pixel than is seen
    weight /= 1 + rough * weight
    return x, y, value, weight


def _is_strange(residual: np.ndarray, weight: np.ndarray, total: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
    """Whether any value of a cell is far from their mean, which it is part of: its variance is less by w / sum w."""
    residual *= residual
    residual *= weight
    allowed = weight / -total
    allowed += 1
    np.maximum(allowed, _LEAST_FREEDOM, out=allowed)  # rounding leaves something
    allowed *= (_CLIP**2 * smoothing)[:, None]
    return (residual > allowed).any(axis=0)


def _neighbours(y: np.ndarray, x: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of cells that touch the chosen ones, or are these, and for each the place of the chosen."""
    number = np.full((PATCH + 2, PATCH + 2), -1)
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


def _is_outlier(value: np.ndarray, weight: np.ndarray, smoothing: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """Whether values are far from the median of their cell; of two that differ, both are."""
    known = weight > 0
    ordered = np.where(known, value, np.nan)
    median = np.nanmedian(ordered, axis=0)
    count = known.sum(axis=0)
    single = np.divide(smoothing[:, None], weight, out=np.full(weight.shape, np.inf, np.float32), where=known) + rough
    pair = 0.25 * np.where(known, single, 0).sum(axis=0)
    expected = np.where(count == 2, pair, single * (1 + np.pi / 2 / count))
    return known & ((value - median) ** 2 > _CLIP**2 * expected)


def _sets(container: np.ndarray, earlier: np.ndarray) -> Iterator[np.ndarray]:
    """Members of each container that holds several sets of the earlier pass."""
    for number in np.unique(container):
        members = np.flatnonzero(container == number)
        if len(np.unique(earlier[members])) > 1:
            yield members


def _pair_sums(
    value: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray, p: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return sums for all pairs (i, j) of k exposures: (k, k, p, p), (k, k, p), (k, k), (k, k)."""
    k = len(value)
    step = max(_PRODUCTS // k, _LEAST_PRODUCTS)
    pieces = [slice(start, start + step) for start in range(0, max(len(x), 1), step)]
    parts = (_products(value[:, some], weight[:, some], x[some], y[some], p) for some in pieces)
    normal, mixed, own, both, npix = reduce(_added, parts)
    normal = normal.reshape(p, k, p, k).transpose(1, 3, 0, 2)
    mixed = mixed.reshape(k, p, k).transpose(0, 2, 1)
    return normal, mixed - mixed.transpose(1, 0, 2), own + own.T - 2 * both, npix


def _added(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(map(np.add, one, two))


def _products(value: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray, p: int) -> tuple[np.ndarray, ...]:
    """
    Sum the products of exposures over some cells: (p k, p k), (k, p k), and three times (k, k).

    In double precision: single cells, of which rounding makes something that determines tilts, may have much weight.
    """
    total = weight.sum(axis=0)
    total[total == 0] = 1
    value = value - np.einsum("kc,kc->c", weight, value) / total  # what is common would only cost digits
    share = weight / np.sqrt(total, dtype=float)
    product = share * value
    functions = np.concatenate([share, share * x, share * y][:p])
    used = (weight > 0).astype(np.float32)
    return (
        functions @ functions.T,
        product @ functions.T,
        (product * value) @ share.T,
        product @ product.T,
        used @ used.T,
    )


def _listed(sums: tuple, numbers: np.ndarray, earlier: np.ndarray, level: int, middle: np.ndarray) -> PairSums:
    """Pairs of different earlier sets that have common cells, as a list, about the origin of the grid."""
    normal, rhs, squares, npix = sums
    one, two = np.nonzero(np.triu(npix, 1) * (earlier[:, None] != earlier))
    p = rhs.shape[-1]
    shift = np.eye(p)
    shift[1:, 0] = middle
    return PairSums(
        level=np.full(len(one), level),
        first=numbers[one],
        second=numbers[two],
        normal=shift @ normal[one, two] @ shift.T,
        rhs=rhs[one, two] @ shift.T,
        squares=squares[one, two].astype(float),
        npix=npix[one, two].astype(float),
    )
