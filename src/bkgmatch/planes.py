"""Planes on the sky: a background that changes linearly over an exposure."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebvander, chebvander2d

from bkgmatch.footprints import gnomonic, sky_vectors

__all__ = ["ARCSEC", "Corners", "Plane", "tangent_axes"]

_NODES, _DEGREE = 16, 7
ARCSEC = np.pi / 648000
"""In radians."""
_SAME = 1e-6  # degrees
_UNMOVED = 1e-9  # of the values in the corners: roundings of a WCS that is the same


def tangent_axes(ra: float, dec: float) -> np.ndarray:
    """Return unit vectors, shape (3, 3), to the east, to the north and to a position in degrees."""
    a, d = np.deg2rad(ra), np.deg2rad(dec)
    return np.array(
        [
            [-np.sin(a), np.cos(a), 0.0],
            [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)],
            [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)],
        ]
    )


class Corners(NamedTuple):
    """
    What a plane is worth in three corners of an image, whatever becomes of the WCS of that.

    Parameters
    ----------
    shape : tuple of int
        Shape of the image, (ny, nx).
    values : tuple of float
        At the outer corner of the first pixel, of the last of the first row, and of the last of the first column.
    """

    shape: tuple[int, int]
    values: tuple[float, float, float]


@dataclass(frozen=True)
class Plane:
    """
    A constant or a plane about a position.

    Parameters
    ----------
    level : float
        Value at the position.
    slope : tuple of float
        Change per arcsecond to the east and to the north, in the tangential projection about the position.
    centre : tuple of float
        Right ascension and declination of the position, in degrees.
    corners : Corners, optional
        What it was worth in an image when it was subtracted; on images of that shape it has these values again.
    """

    level: float
    slope: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float] = (0.0, 0.0)
    corners: Corners | None = field(default=None, compare=False)

    def __add__(self, other: "Plane") -> "Plane":
        """Sum of planes about one position, or of any on one image of which both have `corners`."""
        corners, level = _added(self, other), self.level + other.level
        slope = (self.slope[0] + other.slope[0], self.slope[1] + other.slope[1])
        centre = self.centre if any(self.slope) else other.centre
        apart = (np.subtract(self.centre, other.centre) + 180) % 360 - 180
        if any(self.slope) and any(other.slope) and not np.allclose(apart, 0, rtol=0, atol=_SAME):
            if corners is None:
                raise ValueError(f"planes about {self.centre} and {other.centre} cannot be added")
            level, centre = level + float(self._tilt(_is_sky, np.array([other.centre]))[0]), other.centre
        return Plane(level, slope, centre, corners)

    def anchored(self, wcs: Callable, shape: tuple[int, int]) -> "Plane":
        """Keep what the plane is worth on an image, see `on_pixels`; what it keeps of that already stays."""
        if not any(self.slope) or (self.corners and self.corners.shape == shape):
            return self
        first, right, top = (float(value) for value in self.level + self._tilt(wcs, _corner_nodes(shape)))
        return replace(self, corners=Corners(shape, (first, right, top)))

    def is_far(self, wcs: Callable, shape: tuple[int, int]) -> bool:
        """Whether the position is farther from the middle of an image than the image is large."""
        corners = sky_vectors(wcs, np.array([(x, y) for x in (0.0, shape[1] - 1) for y in (0.0, shape[0] - 1)]))
        middle = corners.mean(axis=0)
        size = 2 * np.linalg.norm(corners - middle, axis=1).max()
        return bool(np.linalg.norm(tangent_axes(*self.centre)[2] - middle) > size)

    def on_pixels(self, wcs: Callable, shape: tuple[int, int]) -> np.ndarray | float:
        """
        Evaluate on the pixels of an exposure.

        Parameters
        ----------
        wcs : callable
            ``wcs(x, y) -> (ra, dec)`` in degrees.
        shape : tuple of int
            Shape of the image.

        Returns
        -------
        ndarray, shape (ny, nx), or float
            The plane, interpolated between a few hundred pixels; a constant as a number. If the WCS has been shifted,
            turned or scaled since its `corners` were kept, it is what it was before.
        """
        if not any(self.slope):
            return self.level
        plane = self._moved(wcs, shape)
        x, y = (np.linspace(-0.5, n - 0.5, _NODES) for n in shape[::-1])
        nodes = np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)])
        across, along = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, _NODES)] * 2, indexing="ij"))
        terms = chebvander2d(across, along, [_DEGREE] * 2)
        series = np.linalg.lstsq(terms, plane._tilt(wcs, nodes), rcond=None)[0].reshape(_DEGREE + 1, -1)
        rows, columns = (chebvander((2 * np.arange(n) + 1) / n - 1, _DEGREE) for n in shape)
        return plane.level + rows @ series @ columns.T

    def _tilt(self, wcs: Callable, nodes: np.ndarray) -> np.ndarray:
        """Values at pixel coordinates, shape (n, 2), less the level."""
        return self._offsets(wcs, nodes) @ np.array(self.slope)

    def _offsets(self, wcs: Callable, nodes: np.ndarray) -> np.ndarray:
        """Arcseconds to the east and to the north of the position, shape (n, 2)."""
        return gnomonic(sky_vectors(wcs, nodes), tangent_axes(*self.centre)) / ARCSEC

    def _moved(self, wcs: Callable, shape: tuple[int, int]) -> "Plane":
        """Find the plane about the same position that has the values that were kept of the corners of an image."""
        if self.corners is None or self.corners.shape != shape:
            return self
        kept, nodes = np.array(self.corners.values), _corner_nodes(shape)
        lost = kept - self.level - self._tilt(wcs, nodes)
        if np.abs(lost).max() <= _UNMOVED * np.abs(kept).max():
            return self
        terms = np.column_stack([np.ones(len(nodes)), self._offsets(wcs, nodes)])
        level, east, north = np.linalg.solve(terms, kept).tolist()
        return Plane(level, (east, north), self.centre)


def _is_sky(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ra, dec


def _corner_nodes(shape: tuple[int, int]) -> np.ndarray:
    """Pixel coordinates of the corners of an image that `Corners` tells of."""
    ny, nx = shape
    return np.array([[0, 0], [nx, 0], [0, ny]]) - 0.5


def _added(one: Plane, other: Plane) -> Corners | None:
    """Corners of a sum; None if those of a plane are not known, or of another image."""
    shapes = {plane.corners.shape for plane in (one, other) if plane.corners}
    if len(shapes) != 1 or any(any(plane.slope) and not plane.corners for plane in (one, other)):
        return None
    first, right, top = (
        float(sum(values))
        for values in zip(*[p.corners.values if p.corners else (p.level,) * 3 for p in (one, other)], strict=True)
    )
    return Corners(shapes.pop(), (first, right, top))
