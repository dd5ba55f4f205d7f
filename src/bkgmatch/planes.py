"""Planes on the sky: a background that changes linearly over an exposure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import chebvander, chebvander2d

from bkgmatch.footprints import gnomonic, sky_vectors

__all__ = ["ARCSEC", "Plane", "tangent_axes"]

_NODES, _DEGREE = 16, 7
ARCSEC = np.pi / 648000
"""In radians."""
_SAME = 1e-6  # degrees


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
    """

    level: float
    slope: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float] = (0.0, 0.0)

    def __add__(self, other: "Plane") -> "Plane":
        """Sum of planes about the same position."""
        apart = (np.subtract(self.centre, other.centre) + 180) % 360 - 180
        if any(self.slope) and any(other.slope) and not np.allclose(apart, 0, rtol=0, atol=_SAME):
            raise ValueError(f"planes about {self.centre} and {other.centre} cannot be added")
        slope = (self.slope[0] + other.slope[0], self.slope[1] + other.slope[1])
        return Plane(self.level + other.level, slope, self.centre if any(self.slope) else other.centre)

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
            The plane, interpolated between a few hundred pixels; a constant as a number.
        """
        if not any(self.slope):
            return self.level
        x, y = (np.linspace(-0.5, n - 0.5, _NODES) for n in shape[::-1])
        nodes = np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)])
        plane = gnomonic(sky_vectors(wcs, nodes), tangent_axes(*self.centre)) / ARCSEC
        across, along = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, _NODES)] * 2, indexing="ij"))
        terms = chebvander2d(across, along, [_DEGREE] * 2)
        series = np.linalg.lstsq(terms, plane @ np.array(self.slope), rcond=None)[0].reshape(_DEGREE + 1, -1)
        rows, columns = (chebvander((2 * np.arange(n) + 1) / n - 1, _DEGREE) for n in shape)
        return self.level + rows @ series @ columns.T
