"""Reprojection by the package reproject, for those who want its other methods."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from astropy.coordinates import ICRS, SkyCoord
from astropy.wcs import WCS
from astropy.wcs.wcsapi import BaseLowLevelWCS, HighLevelWCSMixin

from bkgmatch.footprints import Footprint, unit_vectors
from bkgmatch.pixel_maps import pixels_per_plane

__all__ = ["SkyWcs", "reprojected"]

_COMPLETE = 0.999
_SAMPLE = 128  # pixels
_NEWTON_STEPS = 4


class SkyWcs(BaseLowLevelWCS, HighLevelWCSMixin):
    """
    A WCS that is a callable, in the form that reproject takes.

    Parameters
    ----------
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    outline : Footprint
        Outline of the exposure.
    """

    pixel_n_dim = world_n_dim = 2
    world_axis_physical_types = ("pos.eq.ra", "pos.eq.dec")
    world_axis_units = ("deg", "deg")
    world_axis_object_components = (("sky", 0, "spherical.lon.degree"), ("sky", 1, "spherical.lat.degree"))
    world_axis_object_classes = {"sky": (SkyCoord, (), {"frame": ICRS(), "unit": "deg"})}  # noqa: RUF012

    def __init__(self, wcs: Callable, outline: Footprint) -> None:
        self._wcs, self._outline = wcs, outline

    @property
    def array_shape(self) -> tuple[int, int]:
        """Shape of the image."""
        return self._outline.shape

    def pixel_to_world_values(self, *pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Right ascension and declination of pixels x, y."""
        return self._wcs(*pixels)

    def world_to_pixel_values(self, *world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels x, y at right ascensions and declinations."""
        ra, dec = np.broadcast_arrays(*world)
        target = self._outline.project(unit_vectors(ra.ravel(), dec.ravel()))
        slope = pixels_per_plane(self._outline)
        limit = np.array(self._outline.shape[::-1])
        pixels = np.clip(self._outline.to_pixels(target), -limit, 2 * limit)
        for _ in range(_NEWTON_STEPS):
            there = self._outline.project(unit_vectors(*self._wcs(*pixels.T)))
            pixels = pixels + (target - there) @ slope.T
        return pixels[:, 0].reshape(ra.shape), pixels[:, 1].reshape(ra.shape)


def reprojected(
    image: np.ndarray,
    wcs: Callable,
    outline: Footprint,
    grid: WCS,
    shape: tuple[int, int],
    method: Literal["exact", "adaptive"],
) -> tuple[np.ndarray, float]:
    """
    Reproject an image with ``reproject_exact`` or ``reproject_adaptive``.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Image, NaN where it is not good.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    outline : Footprint
        Its outline.
    grid : WCS
        WCS of the cells.
    shape : tuple of int
        Number of rows and columns of cells.
    method : {"exact", "adaptive"}
        Method.

    Returns
    -------
    value : ndarray of float32
        Values of the cells, NaN where pixels are missing.
    smoothing : float
        What is left of the variance of a pixel, measured with noise; 1 without cells.

    Raises
    ------
    ValueError
        If reproject is not installed.
    """
    try:
        import reproject
    except ImportError as error:
        raise ValueError(
            f"reproject_func={method!r} needs the package reproject: pip install 'bkgmatch[reproject]' ({error})"
        ) from error
    function = getattr(reproject, f"reproject_{method}")
    source = SkyWcs(wcs, outline)

    def run(data: np.ndarray) -> np.ndarray:
        value, part = function((data, source), grid, shape_out=shape)
        return np.where(part > _COMPLETE, value, np.nan).astype(np.float32)

    middle = tuple(slice(max(0, n // 2 - _SAMPLE), n // 2 + _SAMPLE) for n in image.shape)
    noise = np.full(image.shape, np.nan)
    noise[middle] = np.random.default_rng(0).standard_normal(noise[middle].shape)
    left = run(noise)
    return run(image), float(np.nanmean(left**2)) if np.isfinite(left).any() else 1.0
