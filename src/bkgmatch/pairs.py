"""Differences of sky levels of overlapping exposures, and how their errors hang together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from bkgmatch.exposures import Pixels
from bkgmatch.histograms import bin_pixels
from bkgmatch.noise import sample_pairs
from bkgmatch.overlaps import OverlapMap
from bkgmatch.skystats import SkyLevels, SkyStatistic

__all__ = [
    "Measurement",
    "Offsets",
    "PairEquations",
    "added_up",
    "measure",
    "offset_equations",
    "pair_equations",
    "pair_offsets",
]

_STEADYING_PIXELS, _LARGE_SET = 20, 100


@dataclass(frozen=True)
class Measurement:
    """
    Sky levels measured in one exposure.

    Parameters
    ----------
    others : ndarray of int, shape (k,)
        Exposures that it overlaps.
    levels : SkyLevels
        Level in each overlap, shape (k,).
    covariance : ndarray, shape (k, k)
        Covariance of these levels: overlaps share pixels.
    sky : SkyLevels
        Level of the whole exposure, shape (1,).
    """

    others: np.ndarray
    levels: SkyLevels
    covariance: np.ndarray
    sky: SkyLevels


@dataclass(frozen=True)
class Offsets:
    """
    Measured differences between exposures.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Exposures, first < second.
    offset : ndarray, shape (n_pairs,)
        Level of the first minus level of the second over their common sky.
    sigma : ndarray, shape (n_pairs,)
        Standard error of the offset.
    npix : ndarray of int, shape (n_pairs,)
        Number of pixels, the lesser of the two.
    full_weight : ndarray, shape (n_pairs,)
        Weight that the pair's error or number of pixels gives it.
    weight : ndarray, shape (n_pairs,)
        Weight in the solution.
    loading : sparse array, shape (n_pairs, n_measurements)
        How the single measurements, all exposures in order, enter the offsets (+1 or -1).
    scatter : sparse array, shape (n_measurements, n_measurements)
        Covariance of the single measurements.
    """

    first: np.ndarray
    second: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray
    npix: np.ndarray
    full_weight: np.ndarray
    weight: np.ndarray
    loading: sparse.csr_array
    scatter: sparse.csr_array


@dataclass(frozen=True)
class PairEquations:
    """
    Normal equations of pairs.

    The coefficients c_i and c_j (p each) of the two exposures of a pair minimise
    ``c^T normal c - 2 rhs^T c`` with ``c = (c_i, c_j)``, summed over the pairs.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Indices i and j of the two unknowns.
    normal : ndarray, shape (n_pairs, 2 p, 2 p)
        Symmetric matrices. They do not change when the same function is added to both unknowns.
    rhs : ndarray, shape (n_pairs, 2 p)
        Right-hand sides.
    """

    first: np.ndarray
    second: np.ndarray
    normal: np.ndarray
    rhs: np.ndarray

    @property
    def p(self) -> int:
        """Number of coefficients of an unknown."""
        return self.rhs.shape[1] // 2


def measure(pixels: Pixels, overlaps: OverlapMap, others: np.ndarray, statistic: SkyStatistic) -> Measurement:
    """
    Measure the sky of one exposure in each of its overlaps and as a whole.

    Parameters
    ----------
    pixels : Pixels
        Pixels of the exposure.
    overlaps : OverlapMap
        Its atoms; one column of ``members`` for each overlap.
    others : ndarray of int, shape (k,)
        The exposure that each overlap is with.
    statistic : SkyStatistic
        Statistic to compute.

    Returns
    -------
    Measurement
        Overlaps without usable pixels are left out.
    """
    data = _native(pixels.data)
    good = pixels.good & statistic.usable(data)
    members = np.column_stack([overlaps.members, np.ones(len(overlaps.members), dtype=bool)])
    sets = bin_pixels(data.ravel(), good.ravel(), overlaps.runs, members)
    pairs = sample_pairs(data, good, overlaps.runs, members)
    levels = statistic.of_sets(sets, pairs)
    for k, centre, scale in sets.crowded():
        one = slice(k, k + 1)
        alone = bin_pixels(data.ravel(), good.ravel(), overlaps.runs, members[:, one], around=(centre, scale))
        better = statistic.of_sets(alone, pairs._replace(members=pairs.members[:, one], missing=pairs.missing[one]))
        for array, value in zip(levels, better, strict=True):
            array[one] = value
    whole = SkyLevels(*(array[-1:] for array in levels))
    kept = np.flatnonzero(levels.npix[:-1] > 0)
    levels = SkyLevels(*(array[kept] for array in levels))
    shared = sets.shared[np.ix_(kept, kept)]
    sizes = np.diag(shared)
    levels = levels._replace(sigma=_steadied(levels, whole))
    spread = levels.sigma * np.sqrt(sizes)  # of a single pixel
    covariance = shared * np.outer(spread / sizes, spread / sizes)
    return Measurement(others[kept], levels, covariance, whole)


def _steadied(levels: SkyLevels, whole: SkyLevels) -> np.ndarray:
    """Errors for which the variance of few pixels, which may agree by chance, is drawn to that of the large sets."""
    variance = levels.npix * levels.sigma**2
    large = np.sort(np.append(variance[levels.npix >= _LARGE_SET], whole.npix * whole.sigma**2))
    general = large[(len(large) - 1) // 2]
    steadied = (levels.npix * variance + _STEADYING_PIXELS * general) / (levels.npix + _STEADYING_PIXELS)
    few = levels.npix < _STEADYING_PIXELS
    return np.sqrt(np.where(few, np.maximum(steadied, general), steadied) / levels.npix)


def pair_offsets(measurements: Sequence[Measurement], *, weights: str = "variance") -> Offsets:
    """
    Combine the levels that two exposures measure in their overlap.

    Parameters
    ----------
    measurements : sequence of Measurement
        One for each exposure.
    weights : {"variance", "npix", "robust"}
        ``npix`` weights by the number of pixels, the others by the inverse variance.

    Returns
    -------
    Offsets
        Pairs for which both exposures have pixels.
    """
    n = len(measurements)
    counts = [len(m.others) for m in measurements]
    here = np.repeat(np.arange(n), counts)
    there = np.concatenate([m.others for m in measurements]).astype(int)
    value, sigma, npix = (np.concatenate(part) for part in zip(*(m.levels for m in measurements), strict=True))
    key = np.minimum(here, there) * n + np.maximum(here, there)
    order = np.lexsort((here, key))
    twin = np.flatnonzero(key[order][1:] == key[order][:-1])
    one, two = order[twin], order[twin + 1]
    pairs = np.arange(len(one))
    loading = sparse.coo_array(
        (np.repeat([1.0, -1.0], len(one)), (np.tile(pairs, 2), np.concatenate([one, two]))),
        shape=(len(one), len(here)),
    ).tocsr()
    pixels = np.minimum(npix[one], npix[two])
    error = np.hypot(sigma[one], sigma[two])
    weight = pixels.astype(float) if weights == "npix" else _inverse_variance(error, pixels)
    return Offsets(
        first=here[one],
        second=here[two],
        offset=value[one] - value[two],
        sigma=error,
        npix=pixels,
        full_weight=weight,
        weight=weight,
        loading=loading,
        scatter=_block_diagonal([m.covariance for m in measurements]),
    )


def offset_equations(first: np.ndarray, second: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> PairEquations:
    """
    Make the equations of constants: ``c_first - c_second = offset``.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Unknowns.
    offset, weight : ndarray, shape (n_pairs,)
        Measured differences and their weights.

    Returns
    -------
    PairEquations
        With p = 1.
    """
    signs = np.array([1.0, -1.0])
    return PairEquations(
        first, second, weight[:, None, None] * np.outer(signs, signs), (weight * offset)[:, None] * signs
    )


def _inverse_variance(sigma: np.ndarray, npix: np.ndarray) -> np.ndarray:
    """Inverse variances; without any scatter, numbers of pixels. One noisy exposure does not make all others alike."""
    scattered = sigma[sigma > 0]
    if scattered.size == 0:
        return npix.astype(float)
    floor = 1e-3 * np.quantile(scattered, 0.25, method="lower")
    return 1 / np.maximum(sigma, floor) ** 2


def _native(data: np.ndarray) -> np.ndarray:
    """Floating point in the machine's byte order."""
    kind = np.float32 if data.dtype.kind == "f" and data.dtype.itemsize <= 4 else np.float64
    return np.asarray(data, dtype=kind)


def _block_diagonal(blocks: Sequence[np.ndarray]) -> sparse.csr_array:
    """Block-diagonal array; unlike `scipy.sparse.block_diag`, of any number of blocks of any size."""
    sizes = np.array([len(block) for block in blocks])
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes**2)
    width = np.repeat(sizes, sizes**2)
    within = np.concatenate([np.arange(size**2) for size in sizes])
    row, column = starts + within // np.maximum(width, 1), starts + within % np.maximum(width, 1)
    values = np.concatenate([block.ravel() for block in blocks])
    return sparse.coo_array((values, (row, column)), shape=(sizes.sum(), sizes.sum())).tocsr()


def pair_equations(
    first: np.ndarray, second: np.ndarray, normal: np.ndarray, rhs: np.ndarray, trust: np.ndarray | None = None
) -> PairEquations:
    """
    Make the equations of pairs whose functions have the same basis.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Unknowns.
    normal : ndarray, shape (n_pairs, p, p)
        Sum of w phi phi^T.
    rhs : ndarray, shape (n_pairs, p)
        Sum of w d phi.
    trust : ndarray, shape (n_pairs,), optional
        Factors on the weights.

    Returns
    -------
    PairEquations
        With blocks of 2p x 2p.
    """
    trust = np.ones(len(first)) if trust is None else trust
    signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
    p = rhs.shape[1]
    blocks = np.einsum("n,ij,nab->niajb", trust, signs, normal).reshape(len(first), 2 * p, 2 * p)
    sides = np.einsum("n,i,na->nia", trust, signs[0], rhs).reshape(len(first), 2 * p)
    return PairEquations(first, second, blocks, sides)


def added_up(parts: Iterable[Sequence[np.ndarray]], n_keys: int) -> list[np.ndarray]:
    """
    Put tables of sums together, one row for each key.

    Parameters
    ----------
    parts : iterable of sequence of ndarray
        At least one table: its columns, of which the first are keys, and the others are added.
    n_keys : int
        Number of keys.

    Returns
    -------
    list of ndarray
        Columns, in ascending order of the keys.
    """
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort(columns[n_keys - 1 :: -1])
    keys = np.stack(columns[:n_keys])[:, order]
    starts = np.flatnonzero(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))) if len(order) else order
    added = [np.add.reduceat(v[order], starts, axis=0) if len(starts) else v for v in columns[n_keys:]]
    return [*keys[:, starts], *added]
