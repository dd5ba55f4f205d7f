"""Differences of exposures in common cells: sums over patches of sky.

Where several exposures see a cell, its sky is one unknown. Eliminating it gives each pair (i, j) the weight
``w_i w_j / sum_m w_m`` there: the sums of such pairs are the normal equations of maximum likelihood.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from bkgmatch.cells import BLOCK, CutOut, plane_in_cells, raised
from bkgmatch.execution import HERE, Work, batches
from bkgmatch.good_cells import good_cells
from bkgmatch.pairs import added_up

__all__ = ["PATCH", "PairSums", "Start", "join_sums", "patches", "sum_patch", "sum_patches"]

PATCH = 8 * BLOCK
"""Side of a patch of sky, in cells."""

_PATCHES = 4  # of a task
_PRODUCTS, _LEAST_PRODUCTS = 1 << 15, 1024  # numbers that stay in the cache, and cells


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
    spread : ndarray, shape (n_pairs,)
        Variance of the sum of w d by noise, where the given variances are right: the sum of w^2 (1 / w_i + 1 / w_j).
    """

    level: np.ndarray
    first: np.ndarray
    second: np.ndarray
    normal: np.ndarray
    rhs: np.ndarray
    squares: np.ndarray
    npix: np.ndarray
    spread: np.ndarray

    def take(self, chosen: np.ndarray) -> "PairSums":
        """Keep some of the pairs."""
        return PairSums(*(values[chosen] for values in self))

    def less(self, coefficients: np.ndarray) -> "PairSums":
        """Subtract functions, shape (n, p), from the exposures."""
        apart = coefficients[self.first] - coefficients[self.second]
        return self._replace(rhs=self.rhs - np.einsum("nab,nb->na", self.normal, apart))

    def noise(self) -> np.ndarray:
        """Return the standard error of each mean difference by noise."""
        return np.sqrt(self.spread) / self.normal[:, 0, 0]

    def offset(self) -> np.ndarray:
        """Mean difference of each pair."""
        return self.rhs[:, 0] / self.normal[:, 0, 0]


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
    items = [_patch_batch(batch, cutouts, start, units, containers) for batch in batches(patches(cutouts), _PATCHES)]
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
    x, y, value, weight = good_cells(value, weight, np.array([cutouts[i].smoothing for i in numbers]))
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
        return PairSums(none, none, none, np.zeros((0, p, p)), np.zeros((0, p)), *np.zeros((3, 0)))
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


def _sets(container: np.ndarray, earlier: np.ndarray) -> Iterator[np.ndarray]:
    """Members of each container that holds several sets of the earlier pass."""
    for number in np.unique(container):
        members = np.flatnonzero(container == number)
        if len(np.unique(earlier[members])) > 1:
            yield members


def _pair_sums(value: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray, p: int) -> tuple[np.ndarray, ...]:
    """Return sums for all pairs (i, j) of k exposures: (k, k, p, p), (k, k, p), and three times (k, k)."""
    k = len(value)
    step = max(_PRODUCTS // k, _LEAST_PRODUCTS)
    pieces = [slice(start, start + step) for start in range(0, max(len(x), 1), step)]
    parts = (_products(value[:, some], weight[:, some], x[some], y[some], p) for some in pieces)
    normal, mixed, own, both, npix, heavy = reduce(_added, parts)
    normal = normal.reshape(p, k, p, k).transpose(1, 3, 0, 2)
    mixed = mixed.reshape(k, p, k).transpose(0, 2, 1)
    return normal, mixed - mixed.transpose(1, 0, 2), own + own.T - 2 * both, npix, heavy + heavy.T


def _added(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(map(np.add, one, two))


def _products(value: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray, p: int) -> tuple[np.ndarray, ...]:
    """
    Sum the products of exposures over some cells: (p k, p k), (k, p k), and four times (k, k).

    In double precision: single cells, of which rounding makes something that determines tilts, may have much weight.
    """
    total = weight.sum(axis=0)
    total[total == 0] = 1
    value = value - np.einsum("kc,kc->c", weight, value) / total  # what is common would only cost digits
    root = np.sqrt(total, dtype=float)
    share = weight / root
    product = share * value
    functions = np.concatenate([share, share * x, share * y][:p])
    used = (weight > 0).astype(np.float32)
    return (
        functions @ functions.T,
        product @ functions.T,
        (product * value) @ share.T,
        product @ product.T,
        used @ used.T,
        (share * share) @ (share / root).T,
    )


def _listed(sums: tuple, numbers: np.ndarray, earlier: np.ndarray, level: int, middle: np.ndarray) -> PairSums:
    """Pairs of different earlier sets that have common cells, as a list, about the origin of the grid."""
    normal, rhs, squares, npix, spread = sums
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
        spread=spread[one, two],
    )
