"""Synthetic skies: a smooth nebula and stars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates, spline_filter
from scipy.spatial import cKDTree

from bkgmatch.detectors import to_plane

__all__ = ["Scene", "make_scene"]

CLOUD_SLOPE = 3.6
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class Scene:
    """A sky of known surface brightness: a smooth nebula and Gaussian stars.

    Attributes
    ----------
    ra, dec : float
        The centre, where the tangent plane touches (deg).
    side : float
        Side of the square of nebula, which repeats (arcsec).
    nebula : ndarray
        Cubic spline coefficients of the nebula in MJy/sr over that square; rows run north, columns east.
    stars : ndarray of shape (n, 3)
        East, north (arcsec) and peak surface brightness (MJy/sr) of each star.
    fwhm : float
        Full width at half maximum of the stars (arcsec).
    """

    ra: float
    dec: float
    side: float
    nebula: NDArray
    stars: NDArray
    fwhm: float

    def __call__(self, ra: ArrayLike, dec: ArrayLike) -> NDArray:
        """Return the surface brightness in MJy/sr at sky positions in deg."""
        return self.on_plane(*to_plane(ra, dec, self.ra, self.dec))

    def on_plane(self, east: NDArray, north: NDArray) -> NDArray:
        """Return the surface brightness in MJy/sr at tangent plane positions in arcsec."""
        scale = len(self.nebula) / self.side
        texture = [north * scale, east * scale]
        smooth = map_coordinates(self.nebula, texture, order=3, mode="grid-wrap", prefilter=False)
        return smooth + self._starlight(np.ravel(east), np.ravel(north)).reshape(np.shape(east))

    def _starlight(self, east: NDArray, north: NDArray) -> NDArray:
        sigma = self.fwhm * FWHM_TO_SIGMA
        low, high = (f([east, north], axis=1) for f in (np.min, np.max))
        near = ((self.stars[:, :2] > low - 6 * sigma) & (self.stars[:, :2] < high + 6 * sigma)).all(axis=1)
        stars = self.stars[near]
        if not len(stars):
            return np.zeros(len(east))
        pixels = cKDTree(np.column_stack([east, north]), balanced_tree=False, compact_nodes=False)
        hits = pixels.sparse_distance_matrix(cKDTree(stars[:, :2]), 6 * sigma, output_type="ndarray")
        light = stars[hits["j"], 2] * np.exp(-0.5 * (hits["v"] / sigma) ** 2)
        return np.bincount(hits["i"], light, minlength=len(east))


def make_scene(
    ra: float,
    dec: float,
    radius_arcsec: float,
    rng: np.random.Generator,
    *,
    nebula: float = 0.3,
    n_stars: int = 300,
    fwhm: float = 0.16,
    star_peaks: tuple[float, float] = (0.1, 100.0),
) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    ra, dec : float
        Its centre (deg).
    radius_arcsec : float
        Radius of the circle that has stars; the nebula covers it and repeats outside.
    rng : numpy.random.Generator
        Source of all randomness.
    nebula : float
        Standard deviation of the nebula (MJy/sr); its lowest point is 0.
    n_stars : int
        Number of stars, uniform over the circle.
    fwhm : float
        Width of the stars (arcsec).
    star_peaks : tuple of float
        Lowest and highest peak of a star (MJy/sr). Between them N(> peak) falls as 1 / peak.

    Returns
    -------
    Scene
        The scene, to be called with right ascension and declination.
    """
    field = _gaussian_field(rng)
    distance, angle = radius_arcsec * np.sqrt(rng.random(n_stars)), rng.uniform(0, 2 * np.pi, n_stars)
    low, high = star_peaks
    peaks = low / (1 - rng.random(n_stars) * (1 - low / high))
    stars = np.column_stack([distance * np.cos(angle), distance * np.sin(angle), peaks])
    coefficients = spline_filter(nebula * field, order=3, mode="grid-wrap")
    return Scene(ra, dec, 2.2 * radius_arcsec, coefficients, stars, fwhm)


def _gaussian_field(rng: np.random.Generator, n: int = 256) -> NDArray:
    """Return a periodic random field, smooth as interstellar clouds are, of minimum 0 and deviation 1."""
    frequency = n * np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    frequency[0, 0] = np.inf
    # The Gaussian cut keeps the finest structure above a few texels, so that no pixel grid aliases it.
    filtered = frequency ** (-CLOUD_SLOPE / 2) * np.exp(-((frequency / (n / 4)) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * filtered, s=(n, n))
    return (field - field.min()) / field.std()
