"""Approximate solutions, that a few bad pairs do not move: good enough to tell good cells from bad ones."""

from dataclasses import replace

import numpy as np

from bkgmatch.differences import PairSums, Start
from bkgmatch.pair_fits import SAMPLE, PairFits
from bkgmatch.pairs import pair_equations
from bkgmatch.solve import NormalSystem, relative_pulls, robust_trust

__all__ = ["better_start", "start_solution"]

_GRAPH_ITERATIONS, _LEAST_ABSOLUTE_ITERATIONS = 40, 15
_NOISE_ITERATIONS, _NOISE_SCATTER, _LEAST_PART = 20, 0.25, 0.1
_LEAST_SHARE = 0.1  # of the variance of the other: of less, a difference tells nothing
_LEAST_NOISE = 1e-4  # of the given variance: images without noise differ by rounding
_RIDGE = 1e-9


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
    rhs = np.einsum("nab,nb->na", normal, estimate)
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

    What a pair tells of one exposure is what the present factor of the other leaves. The mean of the middle half of the
    pairs counts, weighted by the number of cells that were looked at; not of those with a much noisier one.
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
    weight = np.tile(np.minimum(used.npix, SAMPLE), 2)
    for _ in range(_NOISE_ITERATIONS):
        told = np.maximum((total - factors[there] * theirs) / ours, _LEAST_PART * factors[here])
        share = factors[here] * ours / np.maximum(factors[here] * ours, factors[there] * theirs)
        tells = share > _LEAST_SHARE
        numbers, middle = _middle_means(here[tells], told[tells], weight[tells])
        factors[numbers] = np.sqrt(factors[numbers] * middle)
    # Small deviations are the error of this measurement: all exposures then have the same factor.
    general = np.log(np.median(factors[numbers]))
    factors[~np.isin(np.arange(n), numbers)] = np.exp(general)
    deviation = np.log(factors) - general
    shrunk = deviation * np.maximum(0, 1 - (_NOISE_SCATTER / np.maximum(np.abs(deviation), _NOISE_SCATTER)) ** 2)
    return np.maximum(np.exp(general + shrunk), _LEAST_NOISE)


def _middle_means(group: np.ndarray, value: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
