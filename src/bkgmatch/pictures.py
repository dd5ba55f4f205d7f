"""Pictures of exposures before and after each kind of correction, for the report: each exposure is read once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from astropy.table import Table

from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import Exposure, SpectralExposure
from bkgmatch.footprints import angles, footprint, unit_vectors
from bkgmatch.grids import Grid
from bkgmatch.image_backgrounds import MADE, ImageBackgrounds
from bkgmatch.planes import ARCSEC, tangent_axes
from bkgmatch.quicklook import Look, block_means, look_at, side_for
from bkgmatch.report import Example, Shown, corrected
from bkgmatch.spectra import Polynomial

__all__ = ["example_of", "picture_of_spectrum", "pictures_of_backgrounds", "pictures_of_levels"]

_CELL = 1.25  # widths of a slice
_FULL = 512  # pixels along a side of an exposure in full


def pictures_of_levels(
    exposures: Sequence[Exposure], table: Table, *, previous: np.ndarray | None = None, work: Work = HERE
) -> list[Shown]:
    """
    Make pictures of exposures with levels or planes.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    table : Table
        Table of the levels.
    previous : ndarray, shape (n,), optional
        What had been subtracted from each before, and is in the levels.
    work : Work, optional
        How the work is done.

    Returns
    -------
    list of Shown
        The pictures.
    """
    rows = {str(row["name"]): dict(zip(row.colnames, row, strict=True)) for row in table}
    look = partial(look_at, most=side_for(len(exposures)))
    looks = work.run(look, exposures, what="Making pictures", name=lambda exposure: exposure.name, keep=False)
    if previous is not None:
        looks = [replace(one, image=one.image + np.float32(level)) for one, level in zip(looks, previous, strict=True)]
    return [Shown(e.name, one, corrected(one, rows[e.name])) for e, one in zip(exposures, looks, strict=True)]


def pictures_of_backgrounds(exposures: Sequence[Exposure], found: ImageBackgrounds) -> list[Shown]:
    """Make pictures of exposures with background images; nothing is subtracted where there is none."""
    return [_with_background(exposure, found, i, side_for(len(exposures))) for i, exposure in enumerate(exposures)]


def _with_background(exposure: Exposure, found: ImageBackgrounds, i: int, most: int) -> Shown:
    look = look_at(exposure, most)
    if found.status[i] != MADE:
        return Shown(exposure.name, look, look.image)
    return Shown(exposure.name, look, look.image - block_means(found.background(i).value, look.block))


def example_of(exposures: Sequence[Exposure], found: ImageBackgrounds) -> Example | None:
    """Return the first exposure that has a background, in full."""
    i = next((i for i, status in enumerate(found.status) if status == MADE), None)
    if i is None:
        return None
    image, background = exposures[i].read().image(), found.background(i).value
    block = -(-max(image.shape) // _FULL)
    small = partial(block_means, block=block)
    return Example(
        exposures[i].name, small(image), small(background), small(image - background), small(found.sources(i))
    )


def picture_of_spectrum(exposure: SpectralExposure, polynomial: Polynomial | None, group: str) -> Shown | None:
    """
    Make a picture of an exposure of an integral field unit: means over its wavelengths.

    Parameters
    ----------
    exposure : SpectralExposure
        One channel of an exposure.
    polynomial : Polynomial or None
        What is subtracted.
    group : str
        Name of the channel and band.

    Returns
    -------
    Shown or None
        The picture; None without good pixels.
    """
    pixels = exposure.read().finite()
    if not len(pixels.value):
        return None
    east, north, middle = tangent_axes(*exposure.centre)
    grid = Grid(np.array([-east, north, middle]), _CELL * exposure.slice_width * ARCSEC)
    cells = np.rint(grid.of(unit_vectors(pixels.ra, pixels.dec))).astype(int)
    low = cells.min(axis=0)
    nx, ny = cells.max(axis=0) - low + 1
    index = (cells - low) @ [1, nx]
    count = np.bincount(index, minlength=ny * nx)

    def means(values: np.ndarray) -> np.ndarray:
        total = np.bincount(index, values, ny * nx)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(ny, nx).astype(np.float32)

    before = means(pixels.value)
    after = before if polynomial is None else before - means(polynomial(pixels.ra, pixels.dec, pixels.wavelength))
    wcs = _OnGrid(grid, low)
    return Shown(exposure.name, Look(before, footprint(np.isfinite(before), wcs), wcs, 1), after, group)


@dataclass(frozen=True)
class _OnGrid:
    """The WCS of cells of a grid, from one of them on."""

    grid: Grid
    low: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=-1)
        vectors = self.grid.vectors((points + self.low).reshape(-1, 2))
        ra, dec = angles(vectors)
        return ra.reshape(np.shape(x)), dec.reshape(np.shape(y))
