"""Grids of sky cells that exposures have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from bkgmatch.footprints import Footprint, gnomonic, position
from bkgmatch.pixel_maps import along_rows, pixel_side
from bkgmatch.planes import tangent_axes

__all__ = ["Grid", "common_grid"]


@dataclass(frozen=True)
class Grid:
    """
    A grid of sky cells in a tangent plane.

    Parameters
    ----------
    axes : ndarray, shape (3, 3)
        Unit vectors of the axes x and y of the grid, and of the tangent point, where cell (0, 0) is.
    cell : float
        Side of a cell, in radians.
    """

    axes: np.ndarray
    cell: float

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """Return the grid coordinates (x, y), shape (n, 2), of unit vectors, shape (n, 3)."""
        return gnomonic(vectors, self.axes) / self.cell

    def vectors(self, points: np.ndarray) -> np.ndarray:
        """Return the unit vectors, shape (n, 3), of grid coordinates (x, y), shape (n, 2)."""
        vectors = points * self.cell @ self.axes[:2] + self.axes[2]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def header(self, low: np.ndarray) -> WCS:
        """Return the FITS WCS of the cells from ``low``, (x, y), on."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = position(self.axes[2])
        wcs.wcs.crpix = 1 - np.asarray(low, dtype=float)
        wcs.wcs.cd = np.rad2deg(self.cell) * (tangent_axes(*wcs.wcs.crval)[:2] @ self.axes[:2].T)
        wcs.wcs.set()
        return wcs


def common_grid(footprints: Sequence[Footprint], ratio: float = 1.0) -> Grid:
    """
    Find a grid for exposures: tangential in their middle, along the pixels of the first.

    Parameters
    ----------
    footprints : sequence of Footprint
        Exposures.
    ratio : float
        Side of a cell in pixels; the median where pixels differ.

    Returns
    -------
    Grid
        The grid.
    """
    middle = np.mean([f.axes[2] for f in footprints], axis=0)
    middle /= np.linalg.norm(middle)
    side = float(np.median([pixel_side(f) for f in footprints]))
    towards = along_rows(footprints[0])
    x_axis = towards - (towards @ middle) * middle
    x_axis /= np.linalg.norm(x_axis)
    return Grid(np.array([x_axis, np.cross(middle, x_axis), middle]), side * ratio)
