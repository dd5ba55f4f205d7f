"""Voxels from jwst's cube_build, for comparison with those filled with the pixels of the detector."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from astropy.table import Table
from jwst.cube_build import CubeBuildStep
from stdatamodels.jwst.datamodels import IFUCubeModel, JwstDataModel

from bkgmatch.exposures import SpectralPixels
from bkgmatch.footprints import position, unit_vectors
from bkgmatch.grids import Grid
from bkgmatch.planes import tangent_axes
from bkgmatch.steps.ifu_models import IFUModels, channel_pixels, world
from bkgmatch.voxels import Voxels, numbers

__all__ = ["CubeGrid", "cube_voxels"]

_MARGIN = 3  # spaxels: the corners of pixels lie beyond their centres
_STEP = 8


@dataclass(frozen=True)
class CubeGrid:
    """
    Voxels of a cube.

    Parameters
    ----------
    ra, dec : ndarray, shape (ny, nx)
        Positions of the spaxels, in degrees.
    wavelength : ndarray, shape (n_wavelength,)
        Wavelengths of the planes, in micrometres.
    """

    ra: np.ndarray
    dec: np.ndarray
    wavelength: np.ndarray

    def world(self, points: np.ndarray) -> np.ndarray:
        """Right ascension, declination and wavelength, shape (3, n), of the middles of voxels, shape (3, n)."""
        x, y, plane = np.floor(points).astype(int)
        return np.stack([self.ra[y, x], self.dec[y, x], self.wavelength[plane]])


def cube_voxels(
    known: IFUModels, members: Sequence[int], channel: str, band: str, cubepar: str | None
) -> tuple[list[Voxels], CubeGrid]:
    """
    Build a cube of each exposure, all on one grid that contains them.

    Parameters
    ----------
    known : IFUModels
        Exposures.
    members : sequence of int
        Which to take.
    channel, band : str
        Channel and band.
    cubepar : str or None
        Reference file with the parameters of cubes; there must be one.

    Returns
    -------
    list of Voxels
        The voxels of each exposure.
    CubeGrid
        Where they are.

    Raises
    ------
    ValueError
        If there is no reference file, or it has no parameters for the channel and band.
    """
    given = {"override_cubepar": cubepar} if cubepar else {}
    parameters = {
        "channel": channel,
        "band": band.lower() or "all",
        "weighting": "drizzle",
        "coord_system": "skyalign",
        "skip_dqflagging": True,
        **given,
    }
    parameters |= _one_grid(
        [known.use(i, partial(_positions, channel=channel)) for i in members], channel, band, parameters
    )
    cubes = [known.use(i, partial(_cube, parameters=parameters)) for i in members]
    return [voxels for voxels, _ in cubes], cubes[0][1]


def _one_grid(positions: Sequence[SpectralPixels], channel: str, band: str, parameters: dict) -> dict:
    """Centre and size of cubes that contain all exposures."""
    vectors = np.concatenate([unit_vectors(p.ra, p.dec) for p in positions])
    spaxel = _spaxel(parameters, channel, band)
    grid = Grid(tangent_axes(*position(vectors.sum(axis=0))), np.deg2rad(spaxel / 3600))
    where = grid.of(vectors)
    middle = (where.min(axis=0) + where.max(axis=0)) / 2
    ra, dec = position(grid.vectors(middle[None])[0])
    half = np.ceil(np.abs(where - middle).max(axis=0)).astype(int) + _MARGIN
    nx, ny = (2 * half + 1).tolist()
    return {"ra_center": ra, "dec_center": dec, "cube_pa": 0.0, "nspax_x": nx, "nspax_y": ny, "scalexy": spaxel}


def _spaxel(parameters: dict, channel: str, band: str) -> float:
    """Side of a spaxel by the reference file, in arcseconds."""
    path = parameters.get("override_cubepar")
    if path is None:
        raise ValueError("cells='cube_build' needs override_cubepar: a cubepar reference file")
    table = Table.read(path, hdu="CUBEPAR")
    row = (np.char.strip(table["CHANNEL"]) == channel) & (np.char.strip(table["BAND"]) == band.upper())
    if not row.any():
        raise ValueError(f"{path} has no parameters for cubes of channel {channel} {band}")
    return float(table["SPAXELSIZE"][row][0])


def _positions(model: JwstDataModel, *, channel: str) -> SpectralPixels:
    x, y = (axis[::_STEP].ravel() for axis in channel_pixels(channel, model.data.shape))
    coordinates = world(model, x, y)
    return SpectralPixels(*coordinates, np.zeros(len(x))).finite()


def _cube(model: JwstDataModel, *, parameters: dict) -> tuple[Voxels, CubeGrid]:
    with _quiet():
        cube = CubeBuildStep(**parameters).process(model)[0]  # not run, which asks CRDS for its context
    ny, nx = cube.data.shape[1:]
    y, x = np.mgrid[:ny, :nx]
    ra, dec, _ = cube.meta.wcs(x, y, np.zeros(x.shape))
    grid = CubeGrid(ra, dec, np.asarray(cube.wavetable["wavelength"], dtype=float).ravel())
    return _voxels(cube), grid


def _voxels(cube: IFUCubeModel) -> Voxels:
    good = (cube.weightmap > 0) & np.isfinite(cube.data) & (cube.err > 0)
    plane, y, x = np.nonzero(good)
    order = np.argsort(numbers(np.stack([x, y, plane])))
    at = plane[order], y[order], x[order]
    return Voxels(
        numbers(np.stack(at[::-1])),
        np.ones(len(order), dtype=int),
        cube.data[at].astype(float),
        np.square(cube.err[at], dtype=float),
        np.zeros((3, len(order))),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Only warnings in the log."""
    loggers = [logging.getLogger(name) for name in ("jwst", "stpipe", "stcal", "CRDS")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
