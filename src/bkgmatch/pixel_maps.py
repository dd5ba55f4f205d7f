"""Where cells of a grid lie in an exposure."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebvander, chebvander2d

from bkgmatch.footprints import Footprint, sky_vectors

__all__ = ["PixelMap", "along_rows", "pixel_map", "pixel_side", "pixels_per_plane", "positions_in_plane"]

_NODES = 20
_DEGREES = (3, 5, 7, 9, 12, 15)
_TOLERANCE = 2e-4  # pixels
_WORST = 1e-2  # pixels


class PixelMap(NamedTuple):
    """
    Where cells lie in an exposure: Chebyshev series in both axes.

    Parameters
    ----------
    low, high : ndarray, shape (2,)
        Grid coordinates (x, y) between which the exposure lies.
    coefficients : ndarray, shape (2, d + 1, d + 1)
        For the pixel coordinates x and y; first index of the series along the rows.
    affine : ndarray, shape (2, 3)
        Pixel coordinates to first order: of x, y and 1.
    bend : float
        How far that may be wrong, and a pixel more.
    shape : tuple of int
        Shape of the image.
    """

    low: np.ndarray
    high: np.ndarray
    coefficients: np.ndarray
    affine: np.ndarray
    bend: float
    shape: tuple[int, int]

    def __call__(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Pixel coordinates (x, y), shape (2, n_rows, n_columns), of columns and rows, up to the ends of the range."""
        degree = self.coefficients.shape[-1] - 1
        along_x, along_y = (
            chebvander(np.clip(_to_unit(at, self.low[k], self.high[k]), -1, 1), degree)
            for k, at in enumerate((columns, rows))
        )
        return along_y @ self.coefficients @ along_x.T

    def from_row(self, first: int, number: int) -> "PixelMap":
        """Map to some rows of the image."""
        coefficients, affine = self.coefficients.copy(), self.affine.copy()
        coefficients[1, 0, 0] -= first
        affine[1, 2] -= first
        return self._replace(coefficients=coefficients, affine=affine, shape=(number, self.shape[1]))

    def covers(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether cells may lie on the image, shape (n_rows, n_columns): far outside it the series may do anything."""
        inside = [(at >= self.low[k] - 1e-9) & (at <= self.high[k] + 1e-9) for k, at in enumerate((columns, rows))]
        covered = inside[1][:, None] & inside[0]
        for (along, across, constant), size in zip(self.affine, self.shape[::-1], strict=True):
            middle = (across * rows + constant - (size - 1) / 2)[:, None] + along * columns
            covered &= np.abs(middle) <= size / 2 + self.bend
        return covered


def pixel_map(outline: Footprint, wcs: Callable, grid_of: Callable) -> PixelMap:
    """
    Find where cells lie in an exposure: the WCS is evaluated at a few hundred pixels, and the inverse fitted.

    Parameters
    ----------
    outline : Footprint
        Outline of the exposure.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    grid_of : callable
        Grid coordinates (x, y), shape (n, 2), of unit vectors, shape (n, 3).

    Returns
    -------
    PixelMap
        Better than 1e-3 pixels for the distortions of JWST.

    Raises
    ------
    ValueError
        If the WCS is not smooth.
    """
    nodes = _nodes(outline.shape)
    pixels = np.concatenate([nodes, _between(nodes)])
    points = grid_of(sky_vectors(wcs, pixels))
    low, high = points.min(axis=0), points.max(axis=0)
    across, along = _to_unit(points, low, high).T[::-1]
    for degree in _DEGREES:
        total = np.add.outer(np.arange(degree + 1), np.arange(degree + 1)).ravel()
        chosen = np.flatnonzero(total <= degree)
        terms = chebvander2d(across, along, [degree, degree])[:, chosen]
        solution = np.linalg.lstsq(terms[: len(nodes)], nodes, rcond=1e-12)[0]
        error = float(np.abs(terms @ solution - pixels).max())
        if error < _TOLERANCE:
            break
    if not error < _WORST:
        raise ValueError(f"the WCS is not smooth: polynomials miss it by {error:.2g} pixels; check the WCS")
    coefficients = np.zeros((2, (degree + 1) ** 2))
    coefficients[:, chosen] = solution.T
    flat = np.column_stack([points, np.ones(len(points))])
    affine = np.linalg.lstsq(flat, pixels, rcond=None)[0]
    bend = float(np.abs(flat @ affine - pixels).max())
    return PixelMap(low, high, coefficients.reshape(2, degree + 1, degree + 1), affine.T, bend + 1, outline.shape)


def positions_in_plane(to_plane: Callable, shape: tuple[int, int]) -> np.ndarray:
    """
    Find where all pixels of an image lie in a plane: a Chebyshev series through a few hundred of them.

    Parameters
    ----------
    to_plane : callable
        ``to_plane(pixels) -> points``: pixel coordinates (x, y) to coordinates in the plane, both of shape (n, 2).
    shape : tuple of int
        Shape of the image.

    Returns
    -------
    ndarray, shape (2, ny, nx)
        Coordinates x and y in the plane. Where no series is better than 1e-2 pixels, that of each pixel itself.
    """
    nodes = _nodes(shape)
    pixels = np.concatenate([nodes, _between(nodes)])
    points = to_plane(pixels)
    ends = np.array([[-0.5, -0.5], [shape[1] - 0.5, shape[0] - 0.5]])
    across, along = _to_unit(pixels, *ends).T[::-1]
    allowed = _WORST * float(np.ptp(points, axis=0).max()) / max(shape)
    for degree in _DEGREES[1:-1] if np.isfinite(points).all() else ():
        terms = chebvander2d(across, along, [degree, degree])
        solution = np.linalg.lstsq(terms[: len(nodes)], points[: len(nodes)], rcond=1e-12)[0]
        if np.abs(terms @ solution - points).max() < allowed:
            series = solution.T.reshape(2, degree + 1, degree + 1)
            along_x, along_y = (chebvander(_to_unit(np.arange(n), -0.5, n - 0.5), degree) for n in shape[::-1])
            return along_y @ series @ along_x.T
    y, x = np.indices(shape)
    return to_plane(np.column_stack([x.ravel(), y.ravel()])).T.reshape(2, *shape)


def _nodes(shape: tuple[int, int]) -> np.ndarray:
    """Pixel coordinates (x, y) all over an image, to its edges and dense there."""
    unit = -np.cos(np.pi * np.arange(_NODES) / (_NODES - 1))
    x, y = ((unit + 1) / 2 * n - 0.5 for n in shape[::-1])
    return np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)])


def _between(nodes: np.ndarray) -> np.ndarray:
    """Return points between nodes, which show whether a fit holds there."""
    square = nodes.reshape(_NODES, _NODES, 2)
    return ((square[1:, 1:] + square[:-1, :-1]) / 2).reshape(-1, 2)


def _to_unit(at: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    return (2 * at - low - high) / (high - low)


def pixels_per_plane(outline: Footprint) -> np.ndarray:
    """Return the derivatives of pixel coordinates (rows) with respect to the tangent plane of an exposure."""
    step = 1e-3 * outline.scale
    ahead, behind = (outline.to_pixels(sign * step * np.eye(2)) for sign in (1, -1))
    return (ahead - behind).T / (2 * step)


def pixel_side(outline: Footprint) -> float:
    """Side of a pixel, in radians."""
    return float(1 / np.sqrt(np.abs(np.linalg.det(pixels_per_plane(outline)))))


def along_rows(outline: Footprint) -> np.ndarray:
    """Direction of a row of pixels, as a vector of length 1."""
    in_plane = np.linalg.inv(pixels_per_plane(outline))[:, 0]
    along = in_plane @ outline.axes[:2]
    return along / np.linalg.norm(along)
