"""Polynomials in several coordinates: Legendre products inside, powers about a reference point outside."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.polynomial import legendre, polynomial

__all__ = ["Basis", "degrees", "evaluate", "legendre_terms"]

_MOST_DEGREE = 100


@dataclass(frozen=True)
class Basis:
    """
    Products of Legendre polynomials on a box.

    Scaled to the box they are nearly orthogonal: powers of degrees and micrometres have condition numbers of 1e16.

    Parameters
    ----------
    degree : tuple of int
        Highest degree in each coordinate.
    centre : tuple of float
        Middle of the box.
    half_width : tuple of float
        Half of its sides, positive.
    """

    degree: tuple[int, ...]
    centre: tuple[float, ...]
    half_width: tuple[float, ...]

    @classmethod
    def around(cls, coordinates: np.ndarray, degree: tuple[int, ...]) -> "Basis":
        """Make the basis on the smallest box that holds points, shape (d, n)."""
        low, high = coordinates.min(axis=1), coordinates.max(axis=1)
        width = np.where(high > low, high - low, 1.0) / 2
        return cls(degree, tuple(((low + high) / 2).tolist()), tuple(width.tolist()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of functions in each coordinate."""
        return tuple(d + 1 for d in self.degree)

    @property
    def size(self) -> int:
        """Number of functions."""
        return int(np.prod(self.shape))

    def scaled(self, coordinates: np.ndarray) -> np.ndarray:
        """Coordinates, shape (d, ...), in units of the box: -1 to 1."""
        shape = (-1,) + (1,) * (np.ndim(coordinates) - 1)
        return (coordinates - np.reshape(self.centre, shape)) / np.reshape(self.half_width, shape)

    def terms(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the functions at points, shape (d, n), as an array of shape (size, n)."""
        return legendre_terms(self.scaled(coordinates), self.degree)

    def evaluate(self, coefficients: np.ndarray, scaled: np.ndarray) -> np.ndarray:
        """Sum of the functions, with coefficients of shape (size,), at scaled points, shape (d, n)."""
        return _nested(legendre.legval, coefficients.reshape(self.shape), list(scaled))

    def names(self, coordinates: Sequence[str]) -> list[str]:
        """Return a name for each function, such as ``RA x wavelength``."""
        named = []
        for powers in np.ndindex(self.shape):
            factors = [f"{c}^{k}" if k > 1 else c for c, k in zip(coordinates, powers, strict=True) if k]
            named.append(" x ".join(factors) or "constant")
        return named

    def to_powers(self, refpoint: Sequence[float]) -> np.ndarray:
        """
        Return the matrix that makes coefficients of powers of coefficients of this basis.

        Parameters
        ----------
        refpoint : sequence of float, shape (d,)
            Reference point.

        Returns
        -------
        ndarray, shape (size, size)
            The product with coefficients c gives those of ``prod_a (x_a - refpoint_a)^k_a``, in C order.
        """
        axes = zip(self.degree, self.centre, self.half_width, refpoint, strict=True)
        return reduce(np.kron, [_axis_to_powers(d, (x0 - x) / h, h) for d, x, h, x0 in axes])

    def products(self, moments: np.ndarray) -> np.ndarray:
        """
        Make sums of products of functions of sums of Legendre products of twice the degree.

        Parameters
        ----------
        moments : ndarray, shape (m, prod (2 degree + 1))
            Sums of Legendre products, in C order.

        Returns
        -------
        ndarray, shape (m, size, size)
            The sums of ``phi_a phi_b``.
        """
        result = moments.reshape(len(moments), *(2 * d + 1 for d in self.degree))
        for d in self.degree:  # takes the first moment axis, puts its two function axes last
            result = np.tensordot(result, _product_table(d), axes=(1, 2))
        n = len(self.degree)
        order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2)]
        return result.transpose(order).reshape(len(moments), self.size, self.size)


def degrees(degree: int | Sequence[int], dimensions: int, name: str = "degree") -> tuple[int, ...]:
    """
    Check the degree of a polynomial.

    Parameters
    ----------
    degree : int or sequence of int
        One degree for all coordinates, or one for each.
    dimensions : int
        Number of coordinates.
    name : str
        Name of the parameter, for messages.

    Returns
    -------
    tuple of int
        Degree in each coordinate.

    Raises
    ------
    ValueError
        If the number of degrees is wrong, or one is no whole number from 0 to 100.
    """
    given = np.atleast_1d(np.asarray(degree))
    if given.ndim != 1 or (np.ndim(degree) and len(given) != dimensions):
        raise ValueError(f"{name} must be one integer or {dimensions}, got {degree!r}")
    is_whole = np.issubdtype(given.dtype, np.number) and np.isfinite(given).all() and (given == np.floor(given)).all()
    if not is_whole or (given < 0).any() or (given > _MOST_DEGREE).any():
        raise ValueError(f"{name} must be whole numbers from 0 to {_MOST_DEGREE}, got {degree!r}")
    return tuple(np.broadcast_to(given, dimensions).astype(int).tolist())


def legendre_terms(scaled: np.ndarray, degree: Sequence[int]) -> np.ndarray:
    """Return products of Legendre polynomials, C order, shape (prod (degree + 1), n), at points of shape (d, n)."""
    axes = [legendre.legvander(x, d).T for x, d in zip(scaled, degree, strict=True)]
    return reduce(lambda one, two: (one[:, None] * two).reshape(-1, one.shape[1]), axes)


def evaluate(coefficients: np.ndarray, offsets: Iterable[np.ndarray]) -> np.ndarray:
    """
    Evaluate a polynomial.

    Parameters
    ----------
    coefficients : ndarray, shape (degree_1 + 1, degree_2 + 1, ...)
        Coefficients of powers.
    offsets : iterable of ndarray, each of shape (n,)
        Coordinates less the reference point.

    Returns
    -------
    ndarray, shape (n,)
        Values.
    """
    return _nested(polynomial.polyval, coefficients, list(offsets))


def _nested(value: Callable, coefficients: np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
    """Evaluate one coordinate after the other, from the last."""
    result = value(points[-1], np.moveaxis(coefficients, -1, 0))
    for x in reversed(points[:-1]):
        result = value(x, np.moveaxis(result, -2, 0), tensor=False)
    return result


def _axis_to_powers(degree: int, shift: float, half_width: float) -> np.ndarray:
    """Matrix from Legendre polynomials of (x / half_width + shift) to powers of x, shape (degree + 1, degree + 1)."""
    matrix = np.zeros((degree + 1, degree + 1))
    for k, unit in enumerate(np.eye(degree + 1)):
        powers = legendre.leg2poly(unit)
        result = np.zeros(1)
        for coefficient in powers[::-1]:  # Horner
            result = polynomial.polyadd(polynomial.polymul(result, [shift, 1 / half_width]), [coefficient])
        matrix[: min(len(result), k + 1), k] = result[: k + 1]
    return matrix


def _product_table(degree: int) -> np.ndarray:
    """Coefficients, shape (degree + 1, degree + 1, 2 degree + 1), of products of two Legendre polynomials."""
    units = np.eye(degree + 1)
    table = np.zeros((degree + 1, degree + 1, 2 * degree + 1))
    for a, one in enumerate(units):
        for b, two in enumerate(units):
            product = legendre.legmul(one[: a + 1], two[: b + 1])
            table[a, b, : len(product)] = product
    return table
