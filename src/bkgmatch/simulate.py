"""Simulated exposures with known truth, as arrays and WCS: for demo, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gwcs import WCS
from numpy.typing import NDArray

from bkgmatch.detectors import (
    DO_NOT_USE,
    JUMP_DET,
    NON_SCIENCE,
    Detector,
    Pointing,
    detector_wcs,
    field_of_view,
    from_plane,
    lyot_region,
    pixels_on_plane,
    reference_pointing,
    static_dq,
    to_plane,
)
from bkgmatch.scenes import Scene, make_scene

__all__ = ["SimulatedExposure", "pointings", "preview", "simulate_mosaic"]

COSMIC_RAY_PEAK, COSMIC_RAYS_FLAGGED = 1.0, 0.3

Sky = Callable[[NDArray, NDArray], NDArray]


def _dither_pattern(n: int, step: float) -> NDArray[np.complex128]:
    """Return offsets whose neighbours are about ``step`` apart and that never repeat a row or a column."""
    i = np.arange(n)
    spiral = 0.6 * step * np.sqrt(i) * np.exp(1j * np.pi * (3 - np.sqrt(5)) * i)
    return spiral - spiral.mean()


def pointings(
    ra: float,
    dec: float,
    tiles: tuple[int, int] = (2, 2),
    dithers: int = 4,
    *,
    size: tuple[float, float],
    overlap: float = 0.1,
    dither_step: float | None = None,
    roll: float = 30.0,
    grid_angle: float = 0.0,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[tuple[int, int, float, float, float]]:
    """List the pointings of a mosaic.

    Parameters
    ----------
    ra, dec : float
        Its centre (deg).
    tiles : tuple of int
        Rows and columns of tiles.
    dithers : int
        Exposures per tile, on a spiral.
    size : tuple of float
        Width and height of the field of view (arcsec).
    overlap : float
        Part of the field shared by neighbouring tiles.
    dither_step : float, optional
        Distance of neighbouring dithers (arcsec); by default 5 % of the field's smaller side.
    roll : float
        Position angle of V3 at the centre (deg); elsewhere it changes as the meridians converge.
    grid_angle : float
        Angle of the columns of tiles from V3 (deg).
    jitter : float
        Standard deviation of random offsets of each exposure, along each axis (arcsec).
    rng : numpy.random.Generator, optional
        Needed with ``jitter``.

    Returns
    -------
    list of tuple
        Tile number, dither number (both from 0), right ascension, declination and roll in deg.
    """
    if jitter and rng is None:
        raise ValueError(f"jitter={jitter} needs a random generator: pass rng")
    step = 0.05 * min(size) if dither_step is None else dither_step
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in tiles)
    # Offsets are complex: real along the rows (west where the columns point north), imaginary up the columns.
    centres = (1 - overlap) * (columns * size[0] + 1j * rows[:, None] * size[1]).ravel()
    offsets = centres[:, None] + _dither_pattern(dithers, step)
    if rng is not None:
        offsets = offsets + jitter * (rng.standard_normal((*offsets.shape, 2)) @ [1, 1j])
    turned = offsets * np.exp(1j * np.radians(roll + grid_angle))
    ras, decs = from_plane(-turned.real, turned.imag, ra, dec)
    turn = np.mod(ras - ra + 180, 360) - 180
    rolls = np.mod(roll + turn * np.sin(np.radians(dec)), 360)
    return [(*i, float(ras[i]), float(decs[i]), float(rolls[i])) for i in np.ndindex(*offsets.shape)]


@dataclass(frozen=True, eq=False)
class SimulatedExposure:
    """One detector image of known background level.

    Attributes
    ----------
    name, group : str
        File name without suffix; the exposure's name without the detector, which all its detectors share.
    detector : Detector
        The geometry.
    data, err : ndarray of float32
        Scene + level + noise + cosmic rays, and its standard deviation without cosmic rays (MJy/sr).
    dq : ndarray of uint32
        JWST's flags.
    hits : ndarray of bool
        Truth: the pixels that a cosmic ray hit. Most of them are not flagged.
    wcs : gwcs.WCS
        Pixels to sky.
    level : float
        Truth: the background level at the detector's reference point (MJy/sr).
    pointing : Pointing
        Position and roll of the detector's reference point (deg).
    slope : tuple of float
        Truth: the gradient of the background to the east and to the north (MJy/sr per arcsec).
    """

    name: str
    group: str
    detector: Detector
    data: NDArray[np.float32]
    err: NDArray[np.float32]
    dq: NDArray[np.uint32]
    hits: NDArray[np.bool_]
    wcs: WCS
    level: float
    pointing: Pointing
    slope: tuple[float, float] = (0.0, 0.0)

    def background(self, ra: NDArray, dec: NDArray) -> NDArray:
        """Return the true background in MJy/sr at sky positions in deg: a plane about the reference point."""
        east, north = to_plane(ra, dec, self.pointing.ra, self.pointing.dec)
        return self.level + self.slope[0] * east + self.slope[1] * north

    @property
    def binning(self) -> int:
        """Native pixels per pixel and axis."""
        return self.detector.size[1] // self.data.shape[0]

    @property
    def good(self) -> NDArray[np.bool_]:
        """Pixels that show the sky: finite and not flagged as unusable."""
        return ((self.dq & (DO_NOT_USE | NON_SCIENCE)) == 0) & np.isfinite(self.data)


def _cosmic_rays(
    shape: tuple[int, int], fraction: float, rng: np.random.Generator
) -> tuple[NDArray, NDArray[np.bool_]]:
    """Return the light of straight tracks of 1 to 6 pixels, and which pixels belong to a flagged one."""
    n, step = rng.poisson(fraction * np.prod(shape) / 3.5), np.arange(6)
    angle = rng.uniform(0, 2 * np.pi, (n, 1))
    y = np.floor(rng.uniform(0, shape[0], (n, 1)) + step * np.sin(angle)).astype(int)
    x = np.floor(rng.uniform(0, shape[1], (n, 1)) + step * np.cos(angle)).astype(int)
    light = rng.exponential(COSMIC_RAY_PEAK, (n, 1)) * rng.uniform(0.5, 1.5, (n, 6))
    inside = (step < rng.integers(1, 7, (n, 1))) & (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    known = inside & (rng.random((n, 1)) < COSMIC_RAYS_FLAGGED)
    image, flags = np.zeros(shape), np.zeros(shape, dtype=bool)
    np.add.at(image, (y[inside], x[inside]), light[inside])
    flags[y[known], x[known]] = True
    return image, flags


def _sky_on_pixels(scene: Scene | Sky | None, wcs: WCS, shape: tuple[int, int], pointing: Pointing) -> NDArray:
    if scene is None:
        return np.zeros(shape)
    if isinstance(scene, Scene):
        return scene.on_plane(*pixels_on_plane(wcs, shape, scene.ra, scene.dec))
    plane = pixels_on_plane(wcs, shape, pointing.ra, pointing.dec)
    return scene(*from_plane(*plane, pointing.ra, pointing.dec))


def _bad_values(n: int, rng: np.random.Generator) -> NDArray:
    return np.where(rng.random(n) < 0.3, np.nan, rng.normal(0, 10, n))


@dataclass(frozen=True)
class _Camera:
    """Everything that is the same for all exposures."""

    scene: Scene | Sky | None
    binning: int
    noise: float
    shot: float
    cosmic_rays: float
    bad_pixels: float
    lyot_offset: float
    rng: np.random.Generator

    def expose(
        self, group: str, detector: Detector, pointing: Pointing, level: float, tilt: NDArray
    ) -> SimulatedExposure:
        """Take one image."""
        wcs = detector_wcs(detector, *pointing, binning=self.binning)
        dq = static_dq(detector, binning=self.binning)
        offset = level + self.lyot_offset * lyot_region(detector, binning=self.binning)
        slope = tilt / (0.5 * max(detector.size) * detector.scale)
        if tilt.any():
            east, north = pixels_on_plane(wcs, dq.shape, pointing.ra, pointing.dec)
            offset = offset + slope[0] * east + slope[1] * north
        sky = _sky_on_pixels(self.scene, wcs, dq.shape, pointing)
        signal = np.where(dq & NON_SCIENCE, 0, sky + offset)
        err = np.sqrt(self.noise**2 + self.shot * np.maximum(signal, 0))
        rays, flagged = _cosmic_rays(dq.shape, self.cosmic_rays, self.rng)
        data = signal + rays + err * self.rng.standard_normal(dq.shape)
        bad = self.rng.random(dq.shape) < self.bad_pixels
        data[bad] = _bad_values(bad.sum(), self.rng)
        dq[flagged] |= DO_NOT_USE | JUMP_DET
        dq[bad] |= DO_NOT_USE
        name = f"{group}_{detector.name.lower()}"
        images = data.astype(np.float32), err.astype(np.float32), dq, rays > 0
        return SimulatedExposure(
            name, group, detector, *images, wcs, level, pointing, (float(slope[0]), float(slope[1]))
        )


def _default_scene(
    center: tuple[float, float],
    size: tuple[float, float],
    tiles: tuple[int, int],
    pixel: float,
    rng: np.random.Generator,
) -> Scene:
    """Draw a nebula with 100 stars per tile, wide enough for the mosaic and sampled by its pixels."""
    radius = 0.55 * np.hypot(size[0] * (tiles[1] + 0.3), size[1] * (tiles[0] + 0.3))
    n_stars = int(100 * np.pi * radius**2 / (size[0] * size[1]))
    return make_scene(center[0], center[1], radius, rng, n_stars=n_stars, fwhm=2.3 * pixel)


def simulate_mosaic(
    *,
    rng: np.random.Generator,
    detectors: Sequence[str | Detector] = ("NRCALONG",),
    tiles: tuple[int, int] = (2, 2),
    dithers: int = 4,
    center: tuple[float, float] = (150.0, 2.2),
    roll: float = 30.0,
    overlap: float = 0.1,
    dither_step: float | None = None,
    jitter: float = 0.1,
    binning: int = 8,
    shape: tuple[int, int] | None = None,
    scene: Scene | Sky | Literal["nebula"] | None = "nebula",
    level_range: tuple[float, float] = (0.2, 1.0),
    level_per: Literal["group", "detector"] = "group",
    tilt: float = 0.0,
    noise: float = 0.02,
    shot: float = 0.0,
    cosmic_rays: float = 0.002,
    bad_pixels: float = 0.002,
    lyot_offset: float = 0.0,
) -> list[SimulatedExposure]:
    """Simulate the exposures of a mosaic.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    detectors : sequence of str or Detector
        The detectors that expose together.
    tiles, dithers, center, roll, overlap, dither_step, jitter
        As in `pointings`; the tiles follow the field that all detectors span together.
    binning : int
        Native pixels per pixel and axis.
    shape : tuple of int, optional
        Rows and columns of pixels; by default the whole detector, else the middle of its field.
    scene : Scene, callable, "nebula" or None
        The sky in MJy/sr as a function of right ascension and declination (deg). ``"nebula"`` draws a scene
        whose stars are 2.3 pixels wide; None is dark.
    level_range : tuple of float
        Background levels are uniform in this range (MJy/sr).
    level_per : {"group", "detector"}
        Whether the detectors of one exposure share its level.
    tilt : float
        Standard deviation of the change of an exposure's background over half of the detector's longer side, to
        the east and to the north (MJy/sr).
    noise : float
        Standard deviation of the read noise (MJy/sr).
    shot : float
        Variance of the photon noise per unit of true signal (MJy/sr).
    cosmic_rays, bad_pixels : float
        The parts of the pixels that are hit (on average by 1 MJy/sr; 30 % are flagged) and that are bad.
    lyot_offset : float
        Added to the Lyot coronagraph's field of MIRI (MJy/sr).

    Returns
    -------
    list of SimulatedExposure
        Ordered by tile, dither and detector.
    """
    if level_per not in ("group", "detector"):
        raise ValueError(f"level_per={level_per!r}: choose 'group' or 'detector'")
    if isinstance(scene, str) and scene != "nebula":
        raise ValueError(f"scene={scene!r}: give a Scene, a function of (ra, dec), 'nebula' or None")
    chips = [Detector.named(d) if isinstance(d, str) else d for d in detectors]
    if shape is not None:
        chips = [chip.subarray(shape, binning=binning) for chip in chips]
    middle, size = field_of_view(chips)
    if isinstance(scene, str):
        scene = _default_scene(center, size, tiles, binning * chips[0].scale, rng)
    plan = pointings(
        *center,
        tiles,
        dithers,
        size=size,
        overlap=overlap,
        dither_step=dither_step,
        roll=roll,
        grid_angle=chips[0].angle,
        jitter=jitter,
        rng=rng,
    )
    levels = rng.uniform(*level_range, (len(plan), len(chips)))
    if level_per == "group":
        levels[:] = levels[:, :1]
    tilts = tilt * rng.standard_normal((*levels.shape, 2)) if tilt else np.zeros((*levels.shape, 2))
    camera = _Camera(scene, binning, noise, shot, cosmic_rays, bad_pixels, lyot_offset, rng)
    exposures = []
    for (number, dither, *where), row, slopes in zip(plan, levels.tolist(), tilts, strict=True):
        group = f"jw09001{number + 1:03d}001_02101_{dither + 1:05d}"
        for chip, level, slope in zip(chips, row, slopes, strict=True):
            pointing = reference_pointing(chip, middle, Pointing._make(where))
            exposures.append(camera.expose(group, chip, pointing, level, slope))
    return exposures


def preview(
    exposures: Sequence[SimulatedExposure],
    levels: Mapping[str, float] | Sequence[float] | None = None,
    pixels: int = 400,
) -> tuple[NDArray, tuple[float, float, float, float]]:
    """Average the good pixels of exposures minus their levels on a grid, for pictures.

    Parameters
    ----------
    exposures : sequence of SimulatedExposure
        The images.
    levels : mapping of name to float, or sequence of float, optional
        What to subtract from each (MJy/sr).
    pixels : int
        Cells along the longer side; fewer where a cell would be smaller than 1.5 pixels.

    Returns
    -------
    image : ndarray
        Mean of the pixels whose centre is in a cell, NaN without any; north is up, east left.
    extent : tuple of float
        Left, right, bottom and top in arcsec, as ``matplotlib.pyplot.imshow(origin="lower")`` takes it.
    """
    if levels is None:
        levels = [0.0] * len(exposures)
    elif isinstance(levels, Mapping):
        levels = [levels[exposure.name] for exposure in exposures]
    first = exposures[0]
    center = first.wcs(*np.divide(first.data.shape[::-1], 2))
    samples = []
    for exposure, level in zip(exposures, levels, strict=True):
        east, north = pixels_on_plane(exposure.wcs, exposure.data.shape, *center)
        samples.append([plane[exposure.good] for plane in (-east, north, exposure.data - level)])
    west, north, values = (np.concatenate(column) for column in zip(*samples, strict=True))
    low, high = np.array([west.min(), north.min()]), np.array([west.max(), north.max()])
    cell = max((high - low).max() / pixels, 1.5 * first.detector.scale * first.binning)
    nx, ny = np.ceil((high - low) / cell + 1e-9).astype(int)
    index = ((north - low[1]) // cell).astype(int) * nx + ((west - low[0]) // cell).astype(int)
    total, count = np.bincount(index, values, nx * ny), np.bincount(index, minlength=nx * ny)
    image = np.divide(total, count, out=np.full(nx * ny, np.nan), where=count > 0).reshape(ny, nx)
    left, bottom = low
    return image, (-left, -left - nx * cell, bottom, bottom + ny * cell)
