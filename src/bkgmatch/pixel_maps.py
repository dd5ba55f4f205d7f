"""Where points of the sky lie in an exposure: the WCS inverted at a few hundred nodes and interpolated."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebvander, chebvander2d

from bkgmatch.footprints import Footprint

__all__ = ["PixelMap", "along_rows", "invert", "pixel_map", "pixel_side"]

_NODES = 20
_NEWTON_STEPS = 4
_DEGREES = (3, 5, 7, 9, 12, 15)
_TOLERANCE = 2e-4  # pixels
_WORST = 1e-2  # pixels


class PixelMap(NamedTuple):
    """
    Where cells lie in an exposure: Chebyshev series of degree d in both axes.

    Parameters
    ----------
    low, high : ndarray, shape (2,)
        Grid coordinates (x, y) between which the series holds.
    coefficients : ndarray, shape (2, d + 1, d + 1)
        For the pixel coordinates x and y; first index of the series along the rows.
    """

    low: np.ndarray
    high: np.ndarray
    coefficients: np.ndarray

    def __call__(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Pixel coordinates (x, y), shape (2, n_rows, n_columns), of the cells in these columns and rows."""
        degree = self.coefficients.shape[-1] - 1
        along_x, along_y = (
            chebvander(_to_unit(at, self.low[k], self.high[k]), degree) for k, at in enumerate((columns, rows))
        )
        return along_y @ self.coefficients @ along_x.T


def pixel_map(outline: Footprint, wcs: Callable, vectors: Callable, low: np.ndarray, high: np.ndarray) -> PixelMap:
    """
    Find where cells lie in an exposure: the WCS is inverted at a few hundred nodes and interpolated.

    Parameters
    ----------
    outline : Footprint
        Outline of the exposure.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    vectors : callable
        Unit vectors, shape (n, 3), of grid coordinates (x, y), shape (n, 2).
    low, high : ndarray of int, shape (2,)
        Range of cells (x, y).

    Returns
    -------
    PixelMap
        Better than 1e-3 pixels for the distortions of JWST.

    Raises
    ------
    ValueError
        If the WCS is not smooth.
    """
    nodes = _nodes(low, high)
    pixels = invert(outline, wcs, vectors(nodes))
    ny, nx = outline.shape
    margin = 0.1 * max(outline.shape)
    near = (pixels > -margin).all(axis=1) & (pixels < np.array([nx, ny]) + margin).all(axis=1)
    if near.sum() < 10:  # a sliver of an outline in a wide range of cells
        near = np.isfinite(pixels).all(axis=1)
    unit = [_to_unit(nodes[near, k], low[k], high[k]) for k in range(2)]
    for degree in _DEGREES:
        terms = chebvander2d(unit[1], unit[0], [degree, degree])
        solution = np.linalg.lstsq(terms, pixels[near], rcond=1e-12)[0]
        error = np.abs(terms @ solution - pixels[near]).max()
        if error < _TOLERANCE:
            break
    if not error < _WORST:
        raise ValueError(
            f"the WCS is not smooth: a polynomial of degree {degree} misses it by {error:.2g} pixels; check the WCS"
        )
    return PixelMap(low, high, solution.T.reshape(2, degree + 1, degree + 1))


def _to_unit(at: np.ndarray, low: float, high: float) -> np.ndarray:
    return (2 * at - low - high) / (high - low)


def _nodes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    unit = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    x, y = (low[k] + (unit + 1) / 2 * (high[k] - low[k]) for k in range(2))
    return np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)])


def invert(outline: Footprint, wcs: Callable, vectors: np.ndarray) -> np.ndarray:
    """
    Find where directions lie in an exposure: by the outline's polynomial, refined with the WCS itself.

    Parameters
    ----------
    outline : Footprint
        Outline of the exposure.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    vectors : ndarray, shape (n, 3)
        Unit vectors.

    Returns
    -------
    ndarray, shape (n, 2)
        Pixel coordinates (x, y); not useful far outside the image.
    """
    target = outline.project(vectors)
    slope = _pixels_per_plane(outline)
    ny, nx = outline.shape
    limit = np.array([nx, ny])
    pixels = np.clip(outline.to_pixels(target), -limit, 2 * limit)
    for _ in range(_NEWTON_STEPS):
        ra, dec = (np.deg2rad(np.asarray(angle, dtype=float)) for angle in wcs(pixels[:, 0], pixels[:, 1]))
        there = np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
        pixels = pixels + (target - outline.project(there)) @ slope.T
    return pixels


def _pixels_per_plane(outline: Footprint) -> np.ndarray:
    """Return the derivatives of pixel coordinates (rows) with respect to the tangent plane of an exposure."""
    step = 1e-3 * outline.scale
    ahead, behind = (outline.to_pixels(sign * step * np.eye(2)) for sign in (1, -1))
    return (ahead - behind).T / (2 * step)


def pixel_side(outline: Footprint) -> float:
    """Side of a pixel, in radians."""
    return float(1 / np.sqrt(np.abs(np.linalg.det(_pixels_per_plane(outline)))))


def along_rows(outline: Footprint) -> np.ndarray:
    """Direction of a row of pixels, as a vector of length 1."""
    in_plane = np.linalg.inv(_pixels_per_plane(outline))[:, 0]
    along = in_plane @ outline.axes[:2]
    return along / np.linalg.norm(along)
