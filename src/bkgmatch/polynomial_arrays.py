"""Match arrays of any number of dimensions with polynomials: the arguments and the answer of ``wiimatch.match_lsq``."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bkgmatch.execution import HERE, Work
from bkgmatch.pairs import pair_equations
from bkgmatch.polynomial_sums import PolynomialSums, Weights, join, sum_pairs
from bkgmatch.polynomials import Basis, degrees
from bkgmatch.solve import NormalSystem, assemble

__all__ = ["match_polynomials"]

_AT_ONCE = 1 << 16  # pixels of all images that are worked on at once


def match_polynomials(
    images: Sequence[Any],
    masks: Sequence[Any] | None = None,
    sigmas: Sequence[Any] | None = None,
    degree: int | Sequence[int] = 0,
    center: float | Sequence[float] | None = None,
    image2world: Callable | None = None,
    center_cs: Literal["image", "world"] = "image",
    ext_return: bool = False,
    solver: Literal["RLU", "PINV"] = "RLU",
    default_container: Any = None,
    *,
    weights: Weights = "pairs",
    work: Work = HERE,
) -> Any:
    r"""
    Find polynomials that, subtracted from images, make them agree in the sense of least squares.

    Parameters
    ----------
    images : sequence of array_like
        Images of one shape and any number of dimensions, on one grid. Pixels that are not finite, or that a masked
        array masks, are left out.
    masks : sequence of array_like or None, optional
        Good pixels of each image: those that are not zero. None: all.
    sigmas : sequence of array_like or float, optional
        Standard deviations of the pixels; pixels with others than positive ones are left out. None: all equal.
    degree : int or sequence of int
        Degree of the polynomial, in each coordinate.
    center : float or sequence of float, optional
        Origin of the coordinates; by default ``shape[i] // 2``, in image coordinates.
    image2world : callable, optional
        ``f(x, y, ...)`` returns the coordinates of pixels; x is the index along the last axis.
    center_cs : {"image", "world"}
        Coordinates in which the centre is given.
    ext_return : bool
        Whether to return more than the coefficients.
    solver : {"RLU", "PINV"}
        What happens if the overlaps do not determine all coefficients: an error, or the solution of least norm (in a
        scaled basis).
    default_container : object
        Without effect: nothing is put into temporary files.
    weights : {"pairs", "ml"}
        Weight of a pair of images in a pixel: ``1 / (sigma_n^2 + sigma_m^2)``; or that of maximum likelihood.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    coefficients : ndarray, shape (n_images, p)
        Coefficients in C order: for three dimensions that of ``x^i y^j z^k`` is number ``(i (d_y + 1) + j) (d_z + 1) +
        k``. Their sum over connected images is zero; images without common pixels have zeros.
    a, b : ndarray, shape (n_images p, n_images p) and (n_images p,)
        The linear system, in powers. Only with ``ext_return``, as all that follow.
    coord_arrays : tuple of ndarray
        Coordinates of the pixels, less the centre.
    eff_center : tuple of float
        The centre.
    coord_system : {"image", "world"}
        Coordinates that the centre is given in.

    Raises
    ------
    ValueError
        If shapes, lengths or options do not fit, or the overlaps do not determine the coefficients.

    Notes
    -----
    Minimises ``sum_{n, m} sum_k [I_n(k) - I_m(k) - P_n(k) + P_m(k)]^2 / (sigma_n^2(k) + sigma_m^2(k))``, the objective
    of the package wiimatch. The sums are made in Legendre polynomials of coordinates from -1 to 1: powers would lose
    the answer to rounding for high degrees and distant centres.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.polynomial_arrays import match_polynomials
    >>> z, y, x = np.indices((4, 5, 5))
    >>> print(match_polynomials([np.zeros(x.shape), 1.0 + 0.5 * x], degree=(1, 0, 0), center=(0, 0, 0)).round(6))
    [[-0.5  -0.25]
     [ 0.5   0.25]]
    """
    if solver.upper() not in ("RLU", "PINV"):
        raise ValueError(f"solver must be one of RLU, PINV; got {solver!r}")
    if weights not in ("pairs", "ml"):
        raise ValueError(f"weights must be one of pairs, ml; got {weights!r}")
    arrays = [_array(image) for image in images]
    shape = _shape(arrays)
    coordinates, eff_center, coord_system = _coordinates(shape, center, image2world, center_cs)
    flat = np.reshape([c.ravel() for c in coordinates], (len(shape), -1))
    pixels = _Pixels.of(
        arrays, _lists(masks, len(arrays), shape, "masks"), _lists(sigmas, len(arrays), shape, "sigmas")
    )
    used = np.flatnonzero(pixels.common() & np.isfinite(flat).all(axis=0))
    basis = Basis.around(flat[:, used] if len(used) else np.zeros((len(shape), 1)), degrees(degree, len(shape)))

    def of_chunk(some: np.ndarray) -> PolynomialSums:
        return sum_pairs(*pixels.values(some), basis.scaled(flat[:, some]), basis.degree, weights)

    n_chunks = 1 + len(used) * len(arrays) // _AT_ONCE
    sums = join(work.run_here(of_chunk, np.array_split(used, n_chunks)))
    coefficients = _solution(len(arrays), sums, basis, solver.upper()) @ basis.to_powers([0.0] * len(shape)).T
    if not ext_return:
        return coefficients
    a, b = (array / pixels.scale**2 for array in _in_powers(len(arrays), sums, basis))
    return coefficients, a, b, coordinates, eff_center, coord_system


class _Pixels(NamedTuple):
    """The images, flat."""

    images: list[np.ndarray]
    masks: list[np.ndarray | None]
    sigmas: list[np.ndarray | None]
    scale: float  # of the errors, whose squares shall not overflow

    @classmethod
    def of(
        cls, images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], sigmas: Sequence[np.ndarray | None]
    ) -> "_Pixels":
        size = images[0].size
        flat_masks, flat_sigmas = (
            [None if a is None else np.broadcast_to(a.ravel(), size) for a in arrays] for arrays in (masks, sigmas)
        )
        largest = max((np.max(s, initial=0, where=np.isfinite(s)) for s in flat_sigmas if s is not None), default=1.0)
        scale = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 1.0  # a power of 2 rounds nothing
        return cls([image.ravel() for image in images], flat_masks, flat_sigmas, float(scale))

    def good(self, k: int, some: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Pixels of an image that may be used."""
        mask, sigma = self.masks[k], self.sigmas[k]
        good = np.isfinite(self.images[k][some])
        if mask is not None:
            good &= (mask[some] != 0) & np.isfinite(mask[some])
        if sigma is not None:
            good &= (sigma[some] > 0) & np.isfinite(sigma[some])
        return good

    def common(self) -> np.ndarray:
        """Pixels that several images have."""
        return np.sum([self.good(k) for k in range(len(self.images))], axis=0) > 1

    def values(self, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and precisions of some pixels, shape (n, pixels), both 0 where a pixel is not good."""
        values, precision = np.zeros((2, len(self.images), len(some)))
        for k, (image, sigma) in enumerate(zip(self.images, self.sigmas, strict=True)):
            good = self.good(k, some)
            values[k][good] = image[some][good]
            precision[k][good] = 1.0 if sigma is None else (sigma[some][good].astype(float) / self.scale) ** -2.0
        return values, precision


def _array(image: Any) -> np.ndarray:
    """Return the array itself, or that inside a container of wiimatch."""
    if isinstance(image, np.ma.MaskedArray):
        return np.ma.filled(image.astype(float), np.nan)
    return np.asarray(image if isinstance(image, np.ndarray) or not hasattr(image, "data") else image.data)


def _shape(arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
    if not arrays:
        raise ValueError("there are no images to match")
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise ValueError(f"all images must have the same shape, got {', '.join(map(str, sorted(shapes)))}")
    if not arrays[0].ndim or not arrays[0].size:
        raise ValueError(f"the images are empty: their shape is {arrays[0].shape}")
    return shapes.pop()


def _lists(given: Sequence[Any] | None, n: int, shape: tuple[int, ...], name: str) -> list[np.ndarray | None]:
    """Masks or errors of the images, None where there are none."""
    if given is None:
        return [None] * n
    if len(given) != n:
        raise ValueError(f"there are {len(given)} {name} for {n} images")
    arrays = [None if one is None else _array(one) for one in given]
    for k, array in enumerate(arrays):
        if array is not None and array.shape not in ((), shape):
            raise ValueError(f"{name}[{k}] has the shape {array.shape}, the images {shape}")
    if name == "sigmas" and 0 < sum(a is None for a in arrays) < n:
        raise ValueError("give sigmas for all images or for none: some are None")
    return arrays


def _coordinates(
    shape: tuple[int, ...], center: float | Sequence[float] | None, image2world: Callable | None, center_cs: str
) -> tuple[tuple[np.ndarray, ...], tuple[float, ...], str]:
    """Coordinates of the pixels less the centre, the centre, and which coordinates they are."""
    if center_cs not in ("image", "world"):
        raise ValueError(f"center_cs must be one of image, world; got {center_cs!r}")
    if center is None:
        center, center_cs = [n // 2 for n in shape], "image"
    origin = (
        np.broadcast_to(np.asarray(center, dtype=float), (len(shape),)) if np.ndim(center) == 0 else np.array(center)
    )
    if not np.isfinite(origin).all():
        raise ValueError(f"center must be finite, got {center!r}")
    if len(origin) != len(shape):
        raise ValueError(f"center has {len(origin)} coordinates, the images {len(shape)} dimensions")
    pixels = np.indices(shape, dtype=float)[::-1]
    if image2world is None:
        if center_cs == "world":
            raise ValueError("center_cs='world' needs image2world")
        return _less(pixels, origin), tuple(float(c) for c in origin), "image"
    if center_cs == "image":
        origin = np.array([float(c) for c in image2world(*origin.tolist())])
    world = [np.reshape(c, shape) for c in image2world(*(p.ravel() for p in pixels))]
    return _less(world, origin), tuple(float(c) for c in origin), "world"


def _less(coordinates: Iterable[np.ndarray], origin: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(c - o for c, o in zip(coordinates, origin, strict=True))


def _solution(n: int, sums: PolynomialSums, basis: Basis, solver: str) -> np.ndarray:
    equations = pair_equations(sums.first, sums.second, basis.products(sums.moments), sums.rhs)
    if solver == "RLU":
        try:
            return NormalSystem(n, equations).solution()
        except ValueError as error:
            raise ValueError(f"{error}, or solver='PINV' for the solution of least norm") from error
    normal, rhs = assemble(n, equations)
    inverse = np.linalg.pinv(normal.toarray(), rcond=np.finfo(float).eps ** (2 / 3), hermitian=True)
    seen = np.isin(np.arange(n), [sums.first, sums.second])
    return np.where(seen[:, None], (inverse @ rhs).reshape(n, -1), 0.0)


def _in_powers(n: int, sums: PolynomialSums, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal matrix and the right-hand side for coefficients of powers."""
    normal, rhs = assemble(n, pair_equations(sums.first, sums.second, basis.products(sums.moments), sums.rhs))
    to_basis = np.linalg.inv(basis.to_powers([0.0] * len(basis.degree)))
    blocks = normal.toarray().reshape(n, basis.size, n, basis.size)
    a = np.einsum("pa,ipjq,qb->iajb", to_basis, blocks, to_basis, optimize=True)
    return a.reshape(n * basis.size, -1), (rhs.reshape(n, -1) @ to_basis).ravel()
