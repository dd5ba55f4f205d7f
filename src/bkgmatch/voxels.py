"""Pixels of integral field units, averaged in the voxels of a common grid of sky and wavelength."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bkgmatch.exposures import SpectralPixels
from bkgmatch.footprints import angles, position, unit_vectors
from bkgmatch.grids import Grid
from bkgmatch.planes import tangent_axes

__all__ = ["VoxelGrid", "Voxels", "columns", "fill", "middles", "neighbours", "numbers", "patch_numbers", "voxel_grid"]

_BITS = 20  # of a voxel's number for each coordinate
_HALF = 1 << (_BITS - 1)
_PATCH_BITS = 3
_AT_ONCE = 1 << 15  # pixels
_OUTLIER = 5.0
_NORMAL_QUARTILES = 1.349
_FEW = 8
_MOST = 1e6  # times as far from the median as the quartiles, or as the median is from 0
_LEAST_PART = 0.25


@dataclass(frozen=True)
class VoxelGrid:
    """
    A grid of voxels: square cells in a tangent plane, and intervals of wavelength.

    Parameters
    ----------
    sky : Grid
        Cells on the sky.
    wavelength : float
        Where the first interval starts, in micrometres.
    step : float
        Length of an interval, in micrometres.
    """

    sky: Grid
    wavelength: float
    step: float

    def of(self, pixels: SpectralPixels) -> np.ndarray:
        """Grid coordinates, shape (3, n), of pixels; whole numbers at the corners of voxels."""
        where = np.empty((3, len(pixels.ra)))
        for start in range(0, len(pixels.ra), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            where[:2, some] = self.sky.of(unit_vectors(pixels.ra[some], pixels.dec[some])).T
        where[2] = (pixels.wavelength - self.wavelength) / self.step
        return where

    def world(self, points: np.ndarray) -> np.ndarray:
        """Right ascension, declination and wavelength, shape (3, n), of grid coordinates, shape (3, n)."""
        ra, dec = angles(self.sky.vectors(points[:2].T))
        return np.stack([ra, dec, self.wavelength + self.step * points[2]])


class Voxels(NamedTuple):
    """
    Averages of one exposure in voxels.

    Parameters
    ----------
    number : ndarray of int, shape (n,)
        Numbers of the voxels, in ascending order; see `neighbours`.
    npix : ndarray of int, shape (n,)
        Number of pixels.
    value : ndarray, shape (n,)
        Mean of the pixels, without outliers.
    variance : ndarray, shape (n,)
        Its variance by noise.
    offset : ndarray, shape (3, n)
        Where the pixels are on average: from the middle of the voxel, in units of its sides.
    """

    number: np.ndarray
    npix: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    offset: np.ndarray


def numbers(cell: np.ndarray) -> np.ndarray:
    """Return voxels' numbers, shape (n,), of whole grid coordinates, shape (3, n): wavelength runs fastest."""
    x, y, wavelength = cell + _HALF
    return (x << 2 * _BITS) + (y << _BITS) + wavelength


def columns(number: np.ndarray) -> np.ndarray:
    """Return the same number for all voxels at one place of the sky."""
    return number >> _BITS


def patch_numbers(number: np.ndarray) -> np.ndarray:
    """Return the same number for all voxels of one patch of the sky, of 8 x 8 cells."""
    x, y, _ = (middles(number) + _HALF).astype(np.int64) >> _PATCH_BITS
    return (x << _BITS) + y


def voxel_grid(centres: Sequence[np.ndarray], cell: float, wavelength: float, step: float) -> VoxelGrid:
    """
    Make a grid that is tangential in the middle of exposures.

    Parameters
    ----------
    centres : sequence of ndarray, shape (3,)
        Middle of each exposure, as unit vectors.
    cell : float
        Side of a cell, in arcseconds.
    wavelength, step : float
        Where the wavelengths start, and the length of an interval, in micrometres.

    Returns
    -------
    VoxelGrid
        The grid.
    """
    axes = tangent_axes(*position(np.sum(centres, axis=0)))
    return VoxelGrid(Grid(axes, np.deg2rad(cell / 3600)), wavelength, step)


def fill(pixels: SpectralPixels, grid: VoxelGrid) -> Voxels:
    """
    Average pixels in voxels.

    Parameters
    ----------
    pixels : SpectralPixels
        Pixels; those that are not finite, or more than a million times as far from the median as is usual, are left
        out.
    grid : VoxelGrid
        Grid.

    Returns
    -------
    Voxels
        The voxels that hold at least a quarter as many pixels as is typical.

    Notes
    -----
    Pixels farther from the median of their voxel than 5 standard deviations, from the quartiles, are left out: cosmic
    rays, and lines in the spectrum that are narrower than a voxel.
    """
    pixels = _plausible(pixels.finite())
    if not len(pixels.value):
        return Voxels(
            np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros((3, 0))
        )
    where, value, variance = grid.of(pixels), pixels.value, pixels.variance
    del pixels
    number, offset = _placed(where)
    order = np.lexsort((value, number))
    number, value = number[order], value[order].astype(float)
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    kept = _without_outliers(value, starts)
    count = np.add.reduceat(kept, starts, dtype=np.int64)
    weight = kept / np.maximum(np.repeat(count, np.diff(np.append(starts, len(number)))), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(weight * values, starts, axis=-1)

    level = mean(value)
    if variance is not None:
        noise = mean(variance[order])
    else:
        noise = np.full(len(starts), _typical_variance(mean(value**2) - level**2, count))
    dense = count >= max(_LEAST_PART * np.median(count), 1)
    return Voxels(
        number[starts][dense],
        count[dense],
        level[dense],
        (noise / np.maximum(count, 1))[dense],
        np.stack([mean(axis[order])[dense] for axis in offset]),
    )


def _plausible(pixels: SpectralPixels) -> SpectralPixels:
    """Leave out damaged pixels, of which one in a voxel of few pixels would be the noise of all."""
    if not len(pixels.value):
        return pixels
    low, middle, high = np.percentile(pixels.value, (25, 50, 75))
    limit = _MOST * (abs(middle) + high - low)
    kept = np.abs(pixels.value - middle) <= limit
    if not limit > 0 or kept.all():
        return pixels
    return SpectralPixels(*(axis[kept] for axis in pixels if axis is not None))


def neighbours(number: np.ndarray) -> np.ndarray:
    """
    Find the voxels beside each voxel.

    Parameters
    ----------
    number : ndarray of int, shape (n,)
        Numbers of voxels, in ascending order.

    Returns
    -------
    ndarray of int, shape (3, 2, n)
        Indices of the voxels before and after each along x, y and wavelength; -1 where there is none.
    """
    result = np.full((3, 2, len(number)), -1)
    for axis in range(3):
        for side, sign in enumerate((-1, 1)):
            wanted = number + (sign << _BITS * (2 - axis))
            place = np.minimum(np.searchsorted(number, wanted), len(number) - 1)
            result[axis, side] = np.where(number[place] == wanted, place, -1)
    return result


def middles(number: np.ndarray) -> np.ndarray:
    """Grid coordinates, shape (3, n), of the middle of voxels."""
    mask = (1 << _BITS) - 1
    return np.stack([((number >> _BITS * (2 - axis)) & mask) - _HALF + 0.5 for axis in range(3)])


def _placed(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the voxels that points lie in, and offsets from their middle, which take the place of the points."""
    cell = np.floor(where)
    number = numbers(cell.astype(np.int64))
    where -= cell
    where -= 0.5
    return number, where


def _without_outliers(value: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Pixels to keep, of pixels sorted by voxel and value."""
    size = np.diff(np.append(starts, len(value)))
    low, median, high = (value[starts + (k * (size - 1)) // 4] for k in (1, 2, 3))
    limit = np.where(size >= _FEW, _OUTLIER * (high - low) / _NORMAL_QUARTILES, np.inf)
    return np.abs(value - np.repeat(median, size)) <= np.repeat(limit, size)


def _typical_variance(mean_square: np.ndarray, count: np.ndarray) -> float:
    """Variance of a pixel: the median over voxels, as that of chi squared; 1 if no voxel has two pixels."""
    several = count > 1
    if not several.any():
        return 1.0
    freedom = count[several] - 1
    return float(np.median(mean_square[several] * count[several] / freedom / (1 - 2 / (9 * freedom)) ** 3))
