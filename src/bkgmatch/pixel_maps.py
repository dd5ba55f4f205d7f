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
        """
        Pixel coordinates (x, y), shape (2, n_rows, n_columns), of the cells in these columns and rows.

        Those beyond the range of the series are taken at its end.
        """
        degree = self.coefficients.shape[-1] - 1
        along_x, along_y = (
            chebvander(np.clip(_to_unit(at, self.low[k], self.high[k]), -1, 1), degree)
            for k, at in enumerate((columns, rows))
        )
        return along_y @ self.coefficients @ along_x.T

    def covers(self, axis: int, cells: np.ndarray) -> np.ndarray:
        """Whether columns (axis 0) or rows (axis 1) are in the range of the series."""
        return (cells >= self.low[axis]) & (cells <= self.high[axis])


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
    low, high : ndarray, shape (2,)
        Range of grid coordinates (x, y).

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
    margin = 0.1 * max(outline.shape)
    on_image = ((pixels > -margin) & (pixels < np.array(outline.shape[::-1]) + margin)).all(axis=1)
    # Beyond its image a WCS may do anything: then what it does there is left out.
    for use in (np.isfinite(pixels).all(axis=1), on_image):
        if not use.any():
            continue
        series, error = _fit(_to_unit(nodes[use], low, high), pixels[use])
        if error < _TOLERANCE:
            break
    if not error < _WORST:
        raise ValueError(f"the WCS is not smooth: polynomials miss it by {error:.2g} pixels; check the WCS")
    return PixelMap(low, high, series)


def _fit(points: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the Chebyshev series of least degree that is good enough; return also its largest error."""
    for degree in _DEGREES:
        terms = chebvander2d(points[:, 1], points[:, 0], [degree, degree])
        solution = np.linalg.lstsq(terms, pixels, rcond=1e-12)[0]
        error = float(np.abs(terms @ solution - pixels).max())
        if error < _TOLERANCE or 2 * terms.shape[1] > len(points):
            break
    return solution.T.reshape(2, degree + 1, degree + 1), error


def _to_unit(at: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
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
