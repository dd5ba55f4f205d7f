"""Exposures made small, and mosaics of them: what a report shows of pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bkgmatch.exposures import Exposure
from bkgmatch.footprints import Footprint, candidate_neighbours, footprint, position, sky_vectors
from bkgmatch.grids import Grid
from bkgmatch.pixel_maps import pixel_side, positions_in_plane
from bkgmatch.planes import ARCSEC, tangent_axes
from bkgmatch.solve import connected

__all__ = ["Look", "Picture", "block_means", "common_part", "fields_of", "look_at", "mosaics", "side_for"]

_SIDE = 800  # cells along the longer side of a mosaic
_PIXELS = 1200**2  # of all looks together, where they are few
_FEWEST, _MOST = 96, 512  # along a side of a look
_SPACING = 1.5  # cells in blocks: turned by any angle, blocks leave no cell empty


@dataclass(frozen=True)
class Look:
    """
    An exposure made small.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Means of the good pixels of blocks, NaN where there are none.
    outline : Footprint
        Outline of the good pixels.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` of blocks, in degrees.
    block : int
        Side of a block, in pixels.
    """

    image: np.ndarray
    outline: Footprint
    wcs: Callable
    block: int

    @property
    def side(self) -> float:
        """Side of a block, in radians."""
        return self.block * pixel_side(self.outline)


@dataclass(frozen=True)
class _OfBlocks:
    """The WCS of blocks of pixels."""

    wcs: Callable
    block: int

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.wcs(*((np.asarray(at) + 0.5) * self.block - 0.5 for at in (x, y)))


class Picture(NamedTuple):
    """
    A mosaic, north up and east to the left.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Values, NaN without any.
    extent : tuple of float
        Left, right, bottom and top: arcseconds to the west and to the north of the centre.
    centre : tuple of float, optional
        Right ascension and declination of the centre, in degrees; NaN where it is not on the sky.
    """

    image: np.ndarray
    extent: tuple[float, float, float, float]
    centre: tuple[float, float] = (np.nan, np.nan)


def side_for(number: int) -> int:
    """Most blocks along a side of a look, for so many exposures: together they take some megabytes."""
    return int(np.clip((_PIXELS / max(number, 1)) ** 0.5, _FEWEST, _MOST))


def look_at(exposure: Exposure, most: int) -> Look:
    """
    Read an exposure and make it small.

    Parameters
    ----------
    exposure : Exposure
        Exposure.
    most : int
        Most blocks along a side.

    Returns
    -------
    Look
        The look.
    """
    image = exposure.read().image()
    block = -(-max(image.shape) // most)
    outline = footprint(np.isfinite(image), exposure.wcs)
    return Look(block_means(image, block), outline, _OfBlocks(exposure.wcs, block), block)


def block_means(image: np.ndarray, block: int) -> np.ndarray:
    """Means of the finite pixels of blocks; NaN where there are none."""
    ny, nx = (-(-n // block) for n in image.shape)
    padded = np.full((ny * block, nx * block), np.nan, dtype=np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    blocks = padded.reshape(ny, block, nx, block)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0).sum(axis=(1, 3), dtype=float)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def fields_of(looks: Sequence[Look]) -> list[np.ndarray]:
    """Find looks near each other on the sky, the most numerous sets first, without those that have no good pixels."""
    near = candidate_neighbours([look.outline for look in looks])
    rows = np.repeat(np.arange(len(looks)), [len(others) for others in near])
    columns = np.concatenate([*near, np.empty(0, int)])
    label = connected(len(looks), rows, columns)
    seen = np.array([not look.outline.is_empty for look in looks])
    found = [np.flatnonzero((label == k) & seen) for k in range(label.max(initial=-1) + 1)]
    return sorted((members for members in found if len(members)), key=len, reverse=True)


def grid_of(looks: Sequence[Look]) -> Grid:
    """Return a grid in the middle of looks, x to the west and y to the north."""
    middle = np.sum([look.outline.axes[2] for look in looks], axis=0)
    east, north, there = tangent_axes(*position(middle))
    axes = np.array([-east, north, there])
    vectors = np.concatenate([look.outline.vectors for look in looks])
    extent = float(np.ptp(Grid(axes, 1.0).of(vectors), axis=0).max())
    return Grid(axes, max(extent / _SIDE, _SPACING * float(np.median([look.side for look in looks]))))


def mosaics(looks: Sequence[Look], *layers: Sequence[np.ndarray]) -> list[Picture]:
    """
    Average images on a common grid: in each cell the mean of each exposure counts once.

    Parameters
    ----------
    looks : sequence of Look
        Exposures near each other.
    *layers : sequence of ndarray
        For each mosaic an image of each exposure.

    Returns
    -------
    list of Picture
        The mosaics.
    """
    grid = grid_of(looks)
    corners = grid.of(np.concatenate([look.outline.vectors for look in looks]))
    low = np.floor(corners.min(axis=0)).astype(int)
    nx, ny = np.ceil(corners.max(axis=0)).astype(int) - low + 1
    total, count = np.zeros((len(layers), ny * nx)), np.zeros((len(layers), ny * nx))
    for i, look in enumerate(looks):
        cells = _cells(look, grid, low, (nx, ny))
        for k, layer in enumerate(layers):
            known = np.isfinite(layer[i]) & (cells >= 0)
            found, place = np.unique(cells[known], return_inverse=True)
            total[k][found] += np.bincount(place, layer[i][known]) / np.bincount(place)
            count[k][found] += 1
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(len(layers), ny, nx)
    size = grid.cell / ARCSEC
    left, bottom = (low - 0.5) * size
    extent = (float(left), float(left + nx * size), float(bottom), float(bottom + ny * size))
    return [Picture(image, extent, position(grid.axes[2])) for image in means]


def _cells(look: Look, grid: Grid, low: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the cell of each block, -1 outside."""
    points = positions_in_plane(lambda blocks: grid.of(sky_vectors(look.wcs, blocks)), look.image.shape)
    x, y = (np.rint(at).astype(int) - start for at, start in zip(points, low, strict=True))
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    return np.where(inside, y * size[0] + x, -1)


def common_part(one: Picture, two: Picture) -> Picture:
    """Difference of two mosaics on one grid, cut to the box of what both have; empty if that is nothing."""
    difference = one.image - two.image
    rows, columns = (np.flatnonzero(np.isfinite(difference).any(axis=k)) for k in (1, 0))
    if not len(rows):
        return one._replace(image=difference[:0, :0])
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    left, right, bottom, top = one.extent
    x = np.linspace(left, right, difference.shape[1] + 1)[[columns[0], columns[-1] + 1]]
    y = np.linspace(bottom, top, difference.shape[0] + 1)[[rows[0], rows[-1] + 1]]
    return Picture(difference[box], (float(x[0]), float(x[1]), float(y[0]), float(y[1])), one.centre)
