"""A small integral field unit, dithered over a sky whose backgrounds are known."""

from typing import NamedTuple

import numpy as np
from numpy.polynomial.polynomial import polyval3d

from bkgmatch.exposures import SpectralExposure
from bkgmatch.voxels import Voxels, numbers

PLACE = (83.6, -41.0)
SLICE = 0.2  # width of a slice, arcsec
PIXEL = 0.15  # arcsec along a slice
SHAPE = (16, 18, 96)  # slices, pixels along a slice, rows of wavelength
SMALL = (8, 9, 48)
DITHERS = np.array([(0.0, 0.0), (0.97, -0.38), (-0.53, 0.71), (0.46, 1.02), (-0.83, -0.64)])  # arcsec


class Positions(NamedTuple):
    """Positions of the pixels: on a plane that is tangential to the sky, in arcsec, and on the sky, in degrees."""

    x: np.ndarray
    y: np.ndarray
    wavelength: np.ndarray
    ra: np.ndarray
    dec: np.ndarray


def positions(shift=(0.0, 0.0), *, place=PLACE, shape=SHAPE, angle=8.3, wavelengths=(5.0, 6.0)):
    """Pixels of an exposure that is shifted by (x, y), in arcsec; its slices are turned against the axes."""
    s, p, w = (axis.ravel() for axis in np.mgrid[tuple(slice(0, n) for n in shape)])
    along, across = (p - (shape[1] - 1) / 2) * PIXEL, (s - (shape[0] - 1) / 2) * SLICE
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = cos * along - sin * across + shift[0], sin * along + cos * across + shift[1]
    wavelength = wavelengths[0] + (wavelengths[1] - wavelengths[0]) * (w + 0.3 * (s % 2)) / shape[2]
    return Positions(x, y, wavelength, *on_sky(x, y, place))


def on_sky(x, y, place):
    """Inverse of the gnomonic projection, as in textbooks: x to the east, y to the north, in arcsec."""
    xi, eta = np.deg2rad(x / 3600), np.deg2rad(y / 3600)
    a, d = np.deg2rad(place[0]), np.deg2rad(place[1])
    below = np.cos(d) - eta * np.sin(d)
    ra = a + np.arctan2(xi, below)
    dec = np.arctan2(np.sin(d) + eta * np.cos(d), np.hypot(xi, below))
    return np.rad2deg(ra) % 360, np.rad2deg(dec)


def wrap(angle):
    """Angles within 180 degrees."""
    return (angle + 180) % 360 - 180


def polynomial(coefficients, at, place=PLACE):
    """Sum of c_ijk x^i y^j z^k; x and y are offsets in RA and Dec in arcsec, z is the wavelength less 5.5 um."""
    return polyval3d(wrap(at.ra - place[0]) * 3600, (at.dec - place[1]) * 3600, at.wavelength - 5.5, coefficients)


def backgrounds(rng, n, degree, scale=1.0):
    """Coefficients of n backgrounds, each with terms of like size over the field."""
    powers = np.indices([d + 1 for d in degree])
    return scale * rng.normal(size=(n, *powers.shape[1:])) / (1.5 ** (powers[0] + powers[1]) * 0.5 ** powers[2])


def smooth_sky(at):
    return 5 + 2 * np.sin(at.x / 1.7 + 0.3) * np.cos(at.y / 2.1) + np.sin(7 * at.wavelength)


def star(at, fwhm=0.5, peak=300.0):
    """A point source near the middle, narrower than three slices."""
    return peak * np.exp(-4 * np.log(2) * ((at.x - 0.13) ** 2 + (at.y + 0.07) ** 2) / fwhm**2) * at.wavelength / 5


def exposure(name, at, value, **kwargs):
    return SpectralExposure.from_arrays(name, value, at.ra, at.dec, at.wavelength, **{"slice_width": SLICE, **kwargs})


def dithers(n=4, *, shifts=DITHERS, **kwargs):
    return [positions(shift, **kwargs) for shift in shifts[:n]]


def exposures(places, values, *, variance=None, prefix="e"):
    return [
        exposure(f"{prefix}{i}", at, value, variance=None if variance is None else np.full(value.shape, variance))
        for i, (at, value) in enumerate(zip(places, values, strict=True))
    ]


class Box:
    """A grid that is linear in RA, Dec and wavelength, so that the coordinates of voxels are known exactly."""

    ra = 83.6

    def world(self, points):
        return np.stack([(self.ra + points[0] / 3600) % 360, -41 + points[1] / 3600, 5 + points[2] / 32])


def scaled(points):
    return (points - np.reshape([10, 8, 6], (3, 1))) / np.reshape([12, 12, 6], (3, 1))


def voxels(rng, box, coefficients, *, noise=0.0, variance=1.0, offset=0.0, sky=None, holes=0.1):
    """Voxels in a box ((x0, x1), (y0, y1), (z0, z1)) with a polynomial of scaled grid coordinates."""
    cell = np.stack([axis.ravel() for axis in np.mgrid[tuple(slice(*side) for side in box)]])
    cell = cell[:, rng.random(cell.shape[1]) >= holes]
    cell = cell[:, np.lexsort(cell[::-1])]
    offsets = rng.uniform(-offset, offset, cell.shape)
    at = cell + 0.5 + offsets
    value = polyval3d(*scaled(at), coefficients) + noise * rng.normal(size=cell.shape[1])
    if sky is not None:
        value = value + sky(at)
    n = cell.shape[1]
    return Voxels(numbers(cell), np.full(n, 9), value, np.broadcast_to(variance, n).astype(float), offsets)
