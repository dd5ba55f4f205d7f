"""Mosaics: made of exposures or given, and masks of their pixels on the exposures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from bkgmatch.cells import resampled
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import named
from bkgmatch.footprints import Footprint, angles, candidate_neighbours, footprint, sky_vectors
from bkgmatch.grids import Grid, common_grid
from bkgmatch.images import FitsImage
from bkgmatch.leave_one_out import merge_all
from bkgmatch.pixel_maps import PixelMap, pixel_map, pixel_side, positions_in_plane
from bkgmatch.reprojected import SkyWcs
from bkgmatch.solve import connected
from bkgmatch.stored import Stack
from bkgmatch.written import write_fits

__all__ = ["Canvas", "Mosaic", "read_mosaic", "read_source_mask"]

_UNLIKE = 10  # ratio of the pixels of one detector that no distortion explains

_TILE = 512
_ROWS = 64  # that are worked on at once
_AT_ONCE, _LEAST_HEIGHT = 1 << 20, 16  # cells of all exposures that are merged at once; rows, however many these are
_SIGMA = 4.0
_NO_DATA = 255


@dataclass(frozen=True)
class Mosaic:
    """
    An image of the sky.

    Parameters
    ----------
    name : str
        Name for messages.
    image : ndarray of float, shape (ny, nx)
        Surface brightness, NaN where there is no data; or a mask.
    count : ndarray, shape (ny, nx)
        Number of exposures in each pixel, or anything that goes as the inverse of the variance.
    to_pixels : callable
        ``to_pixels(vectors) -> pixels``: unit vectors, shape (n, 3), to pixel coordinates (x, y), shape (n, 2).
    header : WCS or None
        FITS WCS, to save it with.
    """

    name: str
    image: np.ndarray
    count: np.ndarray
    to_pixels: Callable[[np.ndarray], np.ndarray]
    header: WCS | None

    def on_exposure(self, wcs: Callable, shape: tuple[int, int]) -> np.ndarray:
        """
        Find what the mosaic has under each pixel of an exposure.

        Parameters
        ----------
        wcs : callable
            ``wcs(x, y) -> (ra, dec)`` in degrees.
        shape : tuple of int
            Shape of the exposure, (ny, nx).

        Returns
        -------
        ndarray, shape (ny, nx)
            Its nearest pixel; NaN outside it.
        """
        positions = positions_in_plane(lambda pixels: self.to_pixels(sky_vectors(wcs, pixels)), shape)
        ny, nx = self.image.shape
        found, flat = np.empty(shape, dtype=np.result_type(self.image.dtype, np.float16)), self.image.ravel()
        for start in range(0, shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            x, y = np.rint(positions[:, rows])
            inside = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
            found[rows] = flat.take(np.where(inside, y * nx + x, 0).astype(np.intp))
            found[rows][~inside] = np.nan
        return found

    def write(self, path: Path) -> None:
        """Save the image as a mask, 1 where it is not zero, with its WCS; it can be read again."""
        if self.header is None:
            raise ValueError(f"{self.name} has no FITS WCS: its mask cannot be saved")
        header = self.header.to_header(relax=True)
        mask = np.where(np.isfinite(self.image), self.image != 0, _NO_DATA).astype(np.uint8)
        hdu = fits.PrimaryHDU(mask, header)
        hdu.header["BLANK"] = (_NO_DATA, "no data")
        write_fits(fits.HDUList([hdu]), path)


def read_mosaic(path: str | Path) -> Mosaic:
    """
    Read a mosaic, or a mask or segmentation image of one.

    Parameters
    ----------
    path : str or Path
        FITS file with a celestial WCS in its header, or a JWST file.

    Returns
    -------
    Mosaic
        Its first image with two dimensions, or SCI. Its pixels count alike, unless it has weights (WHT).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is no image, or has no celestial WCS.
    """
    found = FitsImage.open(path)
    outline = footprint(np.ones(found.shape, dtype=bool), found.wcs, overlap="footprint")
    wcs = SkyWcs(found.wcs, outline)

    def to_pixels(vectors: np.ndarray) -> np.ndarray:
        pixels = np.column_stack(wcs.world_to_pixel_values(*angles(vectors)))
        pixels[vectors @ outline.axes[2] <= 0] = np.nan  # the other side of the sky
        return pixels

    try:
        with fits.open(found.path) as hdus:
            header = WCS(hdus[found.extension].header, hdus)
            image = np.array(hdus[found.extension].data, dtype=np.float32)
            weight = np.array(hdus["WHT"].data, dtype=np.float32) if "WHT" in hdus else np.ones_like(image)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its image cannot be read: {error}") from error
    if weight.shape != image.shape:
        raise ValueError(f"{path}: WHT has shape {weight.shape}, the image {image.shape}")
    image[~(weight > 0)] = np.nan
    return Mosaic(str(path), image, np.nan_to_num(weight), to_pixels, header if header.has_celestial else None)


def read_source_mask(path: str | Path) -> Mosaic:
    """
    Read a mask or segmentation image of a mosaic.

    Parameters
    ----------
    path : str or Path
        FITS file with a celestial WCS; whole numbers, not zero on sources.

    Returns
    -------
    Mosaic
        The mask.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_mosaic`; and if it has other numbers.
    """
    mask = read_mosaic(path)
    if (np.nan_to_num(mask.image) % 1).any():
        raise ValueError(f"{path} is no mask: it has numbers that are not whole; an image is to be given as mosaic")
    return mask


def _frame(name: str, wcs: Callable, shape: tuple[int, int]) -> Footprint:
    with named(name):
        return footprint(np.ones(shape, dtype=bool), wcs, overlap="footprint")


def _map(name: str, outline: Footprint, wcs: Callable, grid: Grid) -> PixelMap:
    with named(name):
        ratio = pixel_side(outline) / grid.cell
        if not 1 / _UNLIKE < ratio < _UNLIKE:
            raise ValueError(f"its pixels are {ratio:.2g} times as large as those of the others; check the WCS")
        return pixel_map(outline, wcs, grid.of)


@dataclass(frozen=True)
class Canvas:
    """
    A grid that holds exposures, to make mosaics on.

    Parameters
    ----------
    grid : Grid
        The grid.
    low : ndarray of int, shape (2,)
        First cell (x, y).
    shape : tuple of int
        Number of rows and columns.
    members : tuple of int
        Numbers of the exposures.
    maps : tuple of PixelMap
        Where its cells lie in each of them.
    """

    grid: Grid
    low: np.ndarray
    shape: tuple[int, int]
    members: tuple[int, ...]
    maps: tuple[PixelMap, ...]

    @classmethod
    def of(cls, wcss: Sequence[Callable], shape: tuple[int, int], names: Sequence[str] = ()) -> "list[Canvas]":
        """
        Find grids for exposures, their cells as large as the pixels.

        Parameters
        ----------
        wcss : sequence of callable
            ``wcs(x, y) -> (ra, dec)`` in degrees, of each exposure.
        shape : tuple of int
            Shape of the exposures.
        names : sequence of str, optional
            Their names, for messages.

        Returns
        -------
        list of Canvas
            One for each field: exposures that may overlap, directly or through others.

        Raises
        ------
        ValueError
            If a WCS cannot be used.
        """
        names = names or [f"exposure {i}" for i in range(len(wcss))]
        outlines = [_frame(*of, shape) for of in zip(names, wcss, strict=True)]
        near = candidate_neighbours(outlines)
        first = np.repeat(np.arange(len(near)), [len(others) for others in near])
        field = connected(len(near), first, np.concatenate(near).astype(int))
        fields = [np.flatnonzero(field == k).tolist() for k in dict.fromkeys(field)]
        return [cls._of_field(members, outlines, wcss, names) for members in fields]

    @classmethod
    def _of_field(
        cls, members: list[int], outlines: Sequence[Footprint], wcss: Sequence[Callable], names: Sequence[str]
    ) -> "Canvas":
        ordered = sorted((outlines[i] for i in members), key=lambda outline: outline.axes[2].tolist())
        grid = common_grid(ordered)  # the same for exposures in any order
        maps = tuple(_map(names[i], outlines[i], wcss[i], grid) for i in members)
        low = np.floor(np.min([where.low for where in maps], axis=0)).astype(int)
        nx, ny = np.ceil(np.max([where.high for where in maps], axis=0)).astype(int) - low + 1
        return cls(grid, low, (int(ny), int(nx)), tuple(members), maps)

    def to_pixels(self, vectors: np.ndarray) -> np.ndarray:
        """Pixel coordinates (x, y), shape (n, 2), of unit vectors, shape (n, 3)."""
        return self.grid.of(vectors) - self.low

    def mosaic(self, images: Stack, noise: float, *, work: Work = HERE) -> Mosaic:
        """
        Make the mosaic: mean of the exposures, interpolated bilinearly, without outliers.

        Parameters
        ----------
        images : Stack, shape (n, ny, nx)
            All exposures, NaN where they are not good.
        noise : float
            Standard deviation of a pixel.
        work : Work, optional
            How the work is done; by default in the calling thread, in memory.

        Returns
        -------
        Mosaic
            The mosaic.
        """
        value = np.full(self.shape, np.nan, dtype=np.float32)
        count = np.zeros(self.shape, dtype=np.uint16)

        def fill(corner: tuple[int, int]) -> None:
            y, x = corner
            rows, columns = (
                np.arange(start, min(start + _TILE, n)) for start, n in zip(corner, self.shape, strict=True)
            )
            cells = columns + self.low[0], rows + self.low[1]
            pairs = zip(self.members, self.maps, strict=True)
            here = [(i, where) for i, where in pairs if _touch(where, *cells)]
            height = max(_LEAST_HEIGHT, _AT_ONCE // (max(len(here), 1) * _TILE))
            for top in range(0, len(rows) if here else 0, height):
                some = rows[top : top + height]
                strip = slice(y + top, y + top + len(some)), slice(x, x + len(columns))
                stack = np.empty((len(here), len(some), len(columns)), dtype=np.float32)
                for part, (i, where) in zip(stack, here, strict=True):
                    part[...] = _part(images, i, where, cells[0], some + self.low[1])
                value[strip], count[strip] = merge_all(stack, noise, _SIGMA)

        corners = [(y, x) for y in range(0, self.shape[0], _TILE) for x in range(0, self.shape[1], _TILE)]
        work.run_here(fill, corners)
        return self.holding(value, count)

    def holding(self, image: np.ndarray, count: np.ndarray) -> Mosaic:
        """Mosaic of an image on this grid, and the number of exposures in each of its pixels."""
        return Mosaic("the mosaic of the exposures", image, count, self.to_pixels, self.grid.header(self.low))


def _part(images: Stack, i: int, where: PixelMap, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One exposure in some cells, from those of its rows that lie there."""
    _, y = where(columns[:: max(1, len(columns) - 1)], rows[:: max(1, len(rows) - 1)])
    ny, margin = where.shape[0], 2 * where.bend + 2
    low, high = np.clip([np.floor(y.min()) - margin, np.ceil(y.max()) + margin], 0, ny).astype(int)
    window = images[i : i + 1, low:high][0] if high - low > 1 else np.full((2, where.shape[1]), np.nan, np.float32)
    return resampled(window, where.from_row(low, len(window)), columns, rows)


def _touch(where: PixelMap, columns: np.ndarray, rows: np.ndarray) -> bool:
    """Whether cells may lie on an exposure."""
    first, last = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    return bool((last >= where.low).all() and (first <= where.high).all())
