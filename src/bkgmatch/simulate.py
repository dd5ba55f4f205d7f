"""Synthetic skies and exposures with known truth, as arrays and WCS: for demo, tests and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS, position_angle
from astropy.modeling import Model, models
from gwcs import WCS
from gwcs import coordinate_frames as frames
from gwcs.geometry import CartesianToSpherical, SphericalToCartesian
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import map_coordinates, spline_filter
from scipy.spatial import cKDTree

__all__ = [
    "Detector",
    "Pointing",
    "Scene",
    "SimulatedExposure",
    "detector_wcs",
    "from_plane",
    "lyot_region",
    "make_scene",
    "pointings",
    "preview",
    "simulate_mosaic",
    "static_dq",
    "to_plane",
]

DO_NOT_USE, JUMP_DET, NON_SCIENCE = np.uint32(1), np.uint32(4), np.uint32(512)
NIRCAM_FRAME, NIRCAM_BORDER = 2048, 4
MIRI_FIELD_START, LYOT_ROWS, LYOT_COLUMNS = 351, 745, 284
COSMIC_RAY_PEAK, COSMIC_RAYS_FLAGGED = 1.0, 0.3
CLOUD_SLOPE = 3.6
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))
ARCSEC = np.degrees(1) * 3600

Sky = Callable[[NDArray, NDArray], NDArray]
Floats = tuple[float, ...]


@cache
def _table() -> dict:
    return json.loads(files("bkgmatch").joinpath("data/siaf.json").read_text())["detectors"]


@dataclass(frozen=True)
class Detector:
    """Geometry of one detector: a SIAF aperture, or a part of it.

    Attributes
    ----------
    name : str
        JWST's detector keyword.
    size, corner : tuple of int
        Columns and rows in native pixels, and the native pixel of the lower left corner.
    reference, v2v3 : tuple of float
        The reference point in pixels (first pixel 1, as the SIAF counts), and in V2, V3 (arcsec).
    angle, parity : float, int
        Angle of the ideal y axis from V3 (deg), and the handedness of the ideal frame.
    to_ideal, to_pixel : tuple of tuple of float
        Distortion polynomials for x and y, and their inverses, in the SIAF's order of terms.
    """

    name: str
    size: tuple[int, int]
    reference: tuple[float, float]
    v2v3: tuple[float, float]
    angle: float
    parity: int
    to_ideal: tuple[Floats, Floats]
    to_pixel: tuple[Floats, Floats]
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def named(cls, name: str) -> Detector:
        """Return the detector with this keyword (``NRCALONG``, ``MIRIMAGE``, ...) or SIAF aperture."""
        keys = {entry["aperture"]: key for key, entry in _table().items()}
        key = keys.get(name, name)
        if key not in _table():
            raise ValueError(f"no detector {name!r} in the table; it has {', '.join(_table())}")
        entry = _table()[key]
        return cls(
            name=key,
            size=(entry["XSciSize"], entry["YSciSize"]),
            reference=(entry["XSciRef"], entry["YSciRef"]),
            v2v3=(entry["V2Ref"], entry["V3Ref"]),
            angle=entry["V3IdlYAngle"],
            parity=entry["VIdlParity"],
            to_ideal=(tuple(entry["Sci2IdlX"]), tuple(entry["Sci2IdlY"])),
            to_pixel=(tuple(entry["Idl2SciX"]), tuple(entry["Idl2SciY"])),
        )

    @property
    def scale(self) -> float:
        """Arcseconds per native pixel."""
        return float(np.hypot(self.to_ideal[1][1], self.to_ideal[1][2]))

    @property
    def field(self) -> tuple[int, int, int, int]:
        """First column, first row, end column and end row of the field that tiles a mosaic."""
        start = max(0, MIRI_FIELD_START - self.corner[0]) if self.name == "MIRIMAGE" else 0
        return (start, 0, *self.size)

    def subarray(self, shape: tuple[int, int], *, binning: int = 1) -> Detector:
        """Return the middle of the field, ``shape`` binned pixels (rows, columns) in size."""
        x0, y0, x1, y1 = self.field
        nx, ny = shape[1] * binning, shape[0] * binning
        if nx > x1 - x0 or ny > y1 - y0:
            raise ValueError(f"shape {shape} x {binning} exceeds the field of {self.name}, {(y1 - y0, x1 - x0)}")
        x, y = (x0 + x1 - nx) // 2, (y0 + y1 - ny) // 2
        return replace(
            self,
            size=(nx, ny),
            reference=(self.reference[0] - x, self.reference[1] - y),
            corner=(self.corner[0] + x, self.corner[1] + y),
        )


def _polynomial(coefficients: Floats) -> Model:
    degree = int(np.sqrt(2 * len(coefficients))) - 1
    terms = (f"c{a - b}_{b}" for a in range(degree + 1) for b in range(a + 1))
    return models.Polynomial2D(degree, **dict(zip(terms, coefficients, strict=True)))


def _both(make: Callable[[float], Model], x: float, y: float | None = None) -> Model:
    return make(x) & make(x if y is None else y)


def _to_v2v3(detector: Detector, binning: int) -> Model:
    """Pixels (first pixel 0) to V2, V3 in arcsec."""
    binned = _both(models.Scale, binning) | _both(models.Shift, (binning + 1) / 2)
    centred = binned | _both(models.Shift, -detector.reference[0], -detector.reference[1])
    forward, inverse = (
        models.Mapping((0, 1, 0, 1)) | _polynomial(x) & _polynomial(y)
        for x, y in (detector.to_ideal, detector.to_pixel)
    )
    forward.inverse = inverse
    cos, sin = np.cos(np.radians(detector.angle)), np.sin(np.radians(detector.angle))
    rotated = models.AffineTransformation2D(
        matrix=[[detector.parity * cos, sin], [-detector.parity * sin, cos]], translation=detector.v2v3
    )
    return centred | forward | rotated


def _to_sky(v2v3: tuple[float, float], pointing: Pointing) -> Model:
    """V2, V3 in arcsec to right ascension and declination in deg, when ``v2v3`` is at ``pointing``."""
    ra, dec, roll = pointing
    angles = [v2v3[0] / 3600, -v2v3[1] / 3600, roll, dec, -ra]
    return (
        _both(models.Scale, 1 / 3600)
        | SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D(angles, axes_order="zyxyz")
        | CartesianToSpherical(wrap_lon_at=360)
    )


def detector_wcs(detector: Detector, ra: float, dec: float, roll: float, *, binning: int = 1) -> WCS:
    """Return the imaging WCS of a detector, with the frames that jwst gives it.

    Parameters
    ----------
    detector : Detector
        The geometry.
    ra, dec, roll : float
        Sky position of the detector's reference point and the position angle of V3 there, in deg: jwst's
        ``meta.wcsinfo.ra_ref``, ``dec_ref`` and ``roll_ref``.
    binning : int
        Native pixels per pixel and axis. The sky position of the array's corners does not depend on it.

    Returns
    -------
    gwcs.WCS
        From ``detector`` (pixels, the centre of the first is 0) over ``v2v3`` and ``v2v3vacorr`` (no velocity
        aberration here) to ``world`` (ICRS, deg).
    """
    v2v3, vacorr = (frames.Frame2D(name=n, unit=(u.arcsec, u.arcsec)) for n in ("v2v3", "v2v3vacorr"))
    wcs = WCS(
        [
            (frames.Frame2D(name="detector", unit=(u.pix, u.pix)), _to_v2v3(detector, binning)),
            (v2v3, models.Identity(2)),
            (vacorr, _to_sky(detector.v2v3, Pointing(ra, dec, roll))),
            (frames.CelestialFrame(name="world", reference_frame=ICRS(), unit=(u.deg, u.deg)), None),
        ]
    )
    ny, nx = _shape(detector, binning)
    wcs.bounding_box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    return wcs


def _shape(detector: Detector, binning: int) -> tuple[int, int]:
    return detector.size[1] // binning, detector.size[0] // binning


def _native_edges(detector: Detector, binning: int) -> tuple[NDArray, NDArray]:
    """Return the native row and column at which each binned row and column starts."""
    ny, nx = _shape(detector, binning)
    return detector.corner[1] + binning * np.arange(ny)[:, None], detector.corner[0] + binning * np.arange(nx)


def lyot_region(detector: Detector, *, binning: int = 1) -> NDArray[np.bool_]:
    """Return where the pixels of MIRI's Lyot coronagraph are (nowhere on other detectors)."""
    y, x = _native_edges(detector, binning)
    return (y >= LYOT_ROWS) & (x + binning <= LYOT_COLUMNS) & (detector.name == "MIRIMAGE")


def static_dq(detector: Detector, *, binning: int = 1) -> NDArray[np.uint32]:
    """Return the flags of every exposure: NIRCam's reference pixels, MIRI outside imager and Lyot."""
    y, x = _native_edges(detector, binning)
    if detector.name == "MIRIMAGE":
        blind = (x < MIRI_FIELD_START) & ~lyot_region(detector, binning=binning)
    else:
        end = NIRCAM_FRAME - NIRCAM_BORDER - binning
        blind = (x < NIRCAM_BORDER) | (x > end) | (y < NIRCAM_BORDER) | (y > end)
    return np.where(blind, DO_NOT_USE | NON_SCIENCE, np.uint32(0))


def to_plane(ra: ArrayLike, dec: ArrayLike, ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Project the sky (deg) to the tangent plane at ``ra0, dec0``: arcsec to the east and to the north."""
    a, d, d0 = np.radians(np.subtract(ra, ra0)), np.radians(dec), np.radians(dec0)
    depth = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
    north = np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(a)
    return ARCSEC * np.cos(d) * np.sin(a) / depth, ARCSEC * north / depth


def from_plane(east: ArrayLike, north: ArrayLike, ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Return the sky position (deg) of points of the tangent plane at ``ra0, dec0``, in arcsec."""
    e, n, d0 = np.divide(east, ARCSEC), np.divide(north, ARCSEC), np.radians(dec0)
    inward = np.cos(d0) - n * np.sin(d0)
    dec = np.arctan2(np.sin(d0) + n * np.cos(d0), np.hypot(e, inward))
    return np.mod(ra0 + np.degrees(np.arctan2(e, inward)), 360), np.degrees(dec)


def _pixels_on_plane(wcs: WCS, shape: tuple[int, int], ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Return the tangent plane coordinates of all pixels, interpolated from a lattice of about every 32nd."""
    y, x = (np.linspace(-0.5, n - 0.5, max(12, n // 32 + 2)) for n in shape)
    ra, dec = wcs(*np.meshgrid(x, y))
    rows, columns = map(np.arange, shape)
    east, north = (RectBivariateSpline(y, x, p)(rows, columns) for p in to_plane(ra, dec, ra0, dec0))
    return east, north


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


class Pointing(NamedTuple):
    """Sky position (deg) and the position angle of V3 there (deg)."""

    ra: float
    dec: float
    roll: float


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


def _field_of_view(detectors: Sequence[Detector]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the V2, V3 of the middle of the detectors' fields, and their width and height, in arcsec."""
    corners = []
    for detector in detectors:
        x0, y0, x1, y1 = detector.field
        v2, v3 = _to_v2v3(detector, 1)(*np.array([[x0, x1, x0, x1], [y0, y0, y1, y1]]) - 0.5)
        corners.extend(v2 + 1j * v3)
    turn = np.exp(1j * np.radians(detectors[0].angle))
    turned = np.array(corners) * turn
    low, high = (f(turned.real) + 1j * f(turned.imag) for f in (np.min, np.max))
    middle = (low + high) / 2 / turn
    return (middle.real, middle.imag), ((high - low).real, (high - low).imag)


def _reference_pointing(detector: Detector, v2v3: tuple[float, float], pointing: Pointing) -> Pointing:
    """Return the pointing of a detector's reference point when ``v2v3`` is at ``pointing``."""
    to_sky = _to_sky(v2v3, pointing)
    here, v3_pole = np.radians(to_sky(*detector.v2v3)), np.radians(to_sky(0.0, 90 * 3600.0))
    roll = position_angle(*here, *v3_pole).deg
    ra, dec = np.degrees(here)
    return Pointing(float(ra), float(dec), float(roll))


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
        Truth: the background level (MJy/sr).
    pointing : Pointing
        Position and roll of the detector's reference point (deg).
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
        return scene.on_plane(*_pixels_on_plane(wcs, shape, scene.ra, scene.dec))
    plane = _pixels_on_plane(wcs, shape, pointing.ra, pointing.dec)
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

    def expose(self, group: str, detector: Detector, pointing: Pointing, level: float) -> SimulatedExposure:
        """Take one image."""
        wcs = detector_wcs(detector, *pointing, binning=self.binning)
        dq = static_dq(detector, binning=self.binning)
        offset = level + self.lyot_offset * lyot_region(detector, binning=self.binning)
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
        return SimulatedExposure(name, group, detector, *images, wcs, level, pointing)


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
    middle, size = _field_of_view(chips)
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
    camera = _Camera(scene, binning, noise, shot, cosmic_rays, bad_pixels, lyot_offset, rng)
    exposures = []
    for (tile, dither, *where), row in zip(plan, levels.tolist(), strict=True):
        group = f"jw09001{tile + 1:03d}001_02101_{dither + 1:05d}"
        for chip, level in zip(chips, row, strict=True):
            pointing = _reference_pointing(chip, middle, Pointing._make(where))
            exposures.append(camera.expose(group, chip, pointing, level))
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
        east, north = _pixels_on_plane(exposure.wcs, exposure.data.shape, *center)
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
