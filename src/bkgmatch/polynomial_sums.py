"""Sums over common cells of pairs, from which the normal equations of polynomials follow.

The products of two functions of a basis are sums of functions of twice the degree, so that few sums serve all of them:
27 instead of 64 for degree 1 in three coordinates, 125 instead of 729 for degree 2.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from bkgmatch.pairs import added_up
from bkgmatch.polynomials import legendre_terms

__all__ = ["PolynomialSums", "Weights", "join", "low_degree", "sum_pairs"]

Weights: TypeAlias = Literal["ml", "pairs"]

_AT_ONCE = 1 << 18  # values that are worked on at once: as many as stay in the cache of a core
_TINY = 1e-300


class PolynomialSums(NamedTuple):
    """
    Sums over the common cells of pairs.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Exposures, first < second.
    moments : ndarray, shape (n_pairs, prod (2 degree + 1))
        Sums of w T, with the weight w of the pair and the Legendre products T of twice the degree.
    rhs : ndarray, shape (n_pairs, p)
        Sums of w d phi, with the difference d of first and second and the functions phi.
    npix : ndarray, shape (n_pairs,)
        Number of common cells.
    """

    first: np.ndarray
    second: np.ndarray
    moments: np.ndarray
    rhs: np.ndarray
    npix: np.ndarray


def sum_pairs(
    values: np.ndarray, precision: np.ndarray, scaled: np.ndarray, degree: tuple[int, ...], weights: Weights
) -> PolynomialSums:
    """
    Sum over the cells of all pairs of exposures.

    Parameters
    ----------
    values : ndarray, shape (m, n_cells)
        Value of each exposure in each cell; finite.
    precision : ndarray, shape (m, n_cells)
        Inverse variance; 0 where there is no value.
    scaled : ndarray, shape (d, n_cells)
        Coordinates of the cells in units of the basis.
    degree : tuple of int, length d
        Degree in each coordinate.
    weights : {"ml", "pairs"}
        Weight of a pair in a cell: ``w_i w_j / sum_m w_m`` with w the precision, which is maximum likelihood; or
        ``1 / (sigma_i^2 + sigma_j^2)``.

    Returns
    -------
    PolynomialSums
        Sums of the pairs that have common cells.
    """
    first, second = np.triu_indices(len(values), 1)
    low = low_degree(degree)
    moments = np.zeros((len(first), np.prod([2 * d + 1 for d in degree])))
    rhs, npix = np.zeros((len(first), int(low.sum()))), np.zeros(len(first))
    step = max(_AT_ONCE // max(len(first), 1), 64)
    for start in range(0, values.shape[1], step):
        cells = slice(start, start + step)
        value, w = values[:, cells], precision[:, cells]
        terms = legendre_terms(scaled[:, cells], [2 * d for d in degree])
        weight = w[first]
        total = weight + w[second] if weights == "pairs" else w.sum(axis=0)
        weight *= w[second]
        npix += np.count_nonzero(weight, axis=1)
        weight /= total + _TINY
        moments += weight @ terms.T
        weight *= value[first] - value[second]
        rhs += weight @ terms[low].T
    used = npix > 0
    return PolynomialSums(first[used], second[used], moments[used], rhs[used], npix[used])


def join(sums: Iterable[PolynomialSums]) -> PolynomialSums:
    """Add the sums of each pair."""
    return PolynomialSums(*added_up(sums, 2))


def low_degree(degree: tuple[int, ...]) -> np.ndarray:
    """Mask of the functions of the basis among the Legendre products of twice the degree."""
    powers = np.indices([2 * d + 1 for d in degree]).reshape(len(degree), -1)
    return np.all(powers <= np.reshape(degree, (-1, 1)), axis=0)
