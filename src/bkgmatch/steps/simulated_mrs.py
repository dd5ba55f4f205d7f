"""Simulated exposures of the MIRI MRS, with known truth and without CRDS.

The coordinates are those of jwst's assign_wcs, from the reference files of `mrs_references`. Only numpy, scipy, astropy
and jwst are needed, so that older versions of jwst can use it, too.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from astropy.modeling import Model
from astropy.modeling.models import Identity
from astropy.time import Time
from gwcs import WCS
from jwst.assign_wcs.assign_wcs import load_wcs
from jwst.assign_wcs.pointing import v23tosky
from jwst.assign_wcs.util import update_s_region_mrs
from numpy.polynomial.polynomial import polyval3d
from numpy.typing import NDArray
from scipy.special import erf
from stdatamodels.jwst.datamodels import IFUImageModel
from stdatamodels.jwst.datamodels.dqflags import pixel as flags

from bkgmatch.associations import association, write_association
from bkgmatch.steps.simulated_mrs_references import (
    ANGLE,
    BANDS,
    CHANNELS,
    CHANNELS_OF,
    COLUMNS,
    MARGIN,
    ROWS,
    V2_V3,
    describe_instrument,
    mrs_references,
    write_cubepar,
)
from bkgmatch.written import whole_file

__all__ = ["MRSScene", "MRSTruth", "mrs_models", "mrs_references", "read_truth", "write_mrs_exposures"]

_START = 59870.0  # MJD
_REFERENCE_TIME = 100.0  # s
_RESOLVING_POWER = 3500
_CONTINUUM = 30.0, 2.0  # MJy/sr at 5 micron, per micron
_HALF_FIELD = 2.0  # arcsec
_COSMIC_RAY = 30.0  # mean light of a hit pixel, in standard deviations of the noise
_DITHERS = ((1.0, 0.6), (-1.0, -0.6), (0.7, -0.9), (-0.7, 0.9))  # arcsec
_TIMES = 100.0, 125.0, 150.0  # s


@dataclass(frozen=True)
class MRSScene:
    """What the exposures show.

    Surface brightness is in MJy/sr, offsets on the sky are in arcsec to the east and to the north of the centre.

    Attributes
    ----------
    n_exposures : int
        Number of exposures.
    degree : int or tuple of 3 int
        Of the true background polynomials, in right ascension, declination and wavelength.
    ra, dec, roll : float
        Centre, and position angle of V3 (deg).
    noise : float
        Standard deviation of a pixel in 100 s; it goes with the time to the power -1/2.
    exposure_times : tuple of float, optional
        In s, one per exposure; by default 100, 125, 150 and again.
    offsets : tuple of (float, float), optional
        Of the exposures; by default four dithers, then random ones within 1.2 arcsec.
    amplitudes : tuple of 3 float
        The largest coefficients of the backgrounds of order 0, 1, and above (divided by the order), 2 arcsec from the
        centre and half a band from its middle. They are uniform.
    point_sources : tuple of (float, float, float)
        Offsets and peak before the light is spread over pixels.
    extended : (float, float), optional
        Peak and standard deviation (arcsec) of a Gaussian 0.4 arcsec east of the centre.
    gradient : float
        Of the sky itself, to the north-east (MJy/sr per arcsec).
    lines : tuple of (float, float)
        Wavelength (micron) and peak of emission lines; their light waves across the sky with a period of 2.5 arcsec.
    cosmic_rays, flagged : float
        The part of the pixels that is hit, and the part of the hits that is known.
    bad_pixels : float
        The part of the pixels that is bad in all exposures.
    detector : {"MIRIFUSHORT", "MIRIFULONG"}
        With channels 1 and 2, or 3 and 4.
    band : {"SHORT", "MEDIUM", "LONG"}
        Part of the wavelengths of a channel.
    rows : int
        Of the detector; fewer hold the same wavelengths, and all takes less time.
    seed : int
        Of all random numbers.
    """

    n_exposures: int = 4
    degree: int | tuple[int, int, int] = 1
    ra: float = 45.0
    dec: float = -10.0
    roll: float = 30.0
    noise: float = 0.5
    exposure_times: tuple[float, ...] | None = None
    offsets: tuple[tuple[float, float], ...] | None = None
    amplitudes: tuple[float, float, float] = (8.0, 2.0, 0.5)
    point_sources: tuple[tuple[float, float, float], ...] = ((0.3, -0.2, 200.0), (-1.1, 0.9, 40.0))
    extended: tuple[float, float] | None = None
    gradient: float = 0.0
    lines: tuple[tuple[float, float], ...] = ()
    cosmic_rays: float = 1e-3
    flagged: float = 0.9
    bad_pixels: float = 1e-3
    detector: str = "MIRIFUSHORT"
    band: str = "SHORT"
    rows: int = ROWS
    seed: int = 1

    @property
    def channels(self) -> str:
        """The channels of the detector, for instance "12"."""
        return CHANNELS_OF[self.detector]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the images."""
        return self.rows, COLUMNS

    @property
    def degrees(self) -> tuple[int, int, int]:
        """The degrees of the backgrounds in right ascension, declination and wavelength."""
        return (self.degree,) * 3 if isinstance(self.degree, int) else self.degree

    def times(self) -> NDArray:
        """Return the exposure times (s)."""
        return np.array(self.exposure_times or np.resize(_TIMES, self.n_exposures))

    def dithers(self) -> NDArray:
        """Return the offsets of the exposures (arcsec), of shape (n, 2)."""
        if self.offsets is not None:
            return np.array(self.offsets)
        rng = np.random.default_rng([self.seed, 1])
        return np.concatenate([_DITHERS, rng.uniform(-1.2, 1.2, (self.n_exposures, 2))])[: self.n_exposures]


@dataclass(frozen=True, eq=False)
class MRSTruth:
    """What a fit should find.

    Attributes
    ----------
    degree : tuple of 3 int
        Degrees in right ascension, declination and wavelength.
    refpoint : dict of str to (float, float, float)
        For each channel the right ascension, declination (deg) and wavelength (micron) where the polynomials start.
    coefficients : dict of str to ndarray
        For each channel an array of shape (exposures, degrees + 1), in MJy/sr per deg and micron.
    names : tuple of str
        Names of the files.
    exposure_times, noise : tuple of float
        Of each exposure (s, MJy/sr).
    """

    degree: tuple[int, int, int]
    refpoint: dict[str, tuple[float, float, float]]
    coefficients: dict[str, NDArray[np.float64]]
    names: tuple[str, ...]
    exposure_times: tuple[float, ...]
    noise: tuple[float, ...]

    def background(self, exposure: int, channel: str, ra: NDArray, dec: NDArray, wavelength: NDArray) -> NDArray:
        """Return the background of an exposure (MJy/sr) at positions in deg and micron."""
        ra0, dec0, wavelength0 = self.refpoint[channel]
        east = np.mod(ra - ra0 + 180, 360) - 180
        return polyval3d(east, dec - dec0, wavelength - wavelength0, self.coefficients[channel][exposure])


def read_truth(path: str | Path) -> MRSTruth:
    """Read the truth that `write_mrs_exposures` wrote."""
    truth = json.loads(Path(path).read_text())
    arrays = {channel: np.array(values) for channel, values in truth.pop("coefficients").items()}
    points = {channel: tuple(point) for channel, point in truth.pop("refpoint").items()}
    return MRSTruth(refpoint=points, coefficients=arrays, **{key: tuple(value) for key, value in truth.items()})


def mrs_models(scene: MRSScene, references: Mapping[str, str] | None = None) -> tuple[list[IFUImageModel], MRSTruth]:
    """
    Simulate calibrated exposures in memory.

    Parameters
    ----------
    scene : MRSScene
        What they show.
    references : mapping of str to str, optional
        Files of `mrs_references` for the same detector, band and rows, to save the time of writing them.

    Returns
    -------
    models : list of IFUImageModel
        SCI, ERR, DQ, VAR_RNOISE, VAR_POISSON, WCS and the metadata that spectroscopic steps need.
    truth : MRSTruth
        Their backgrounds.
    """
    truth = _draw_truth(scene)
    with tempfile.TemporaryDirectory() as folder:
        files = references or mrs_references(folder, scene.detector, scene.band, scene.rows)
        return list(_expose_all(scene, truth, files)), truth


def write_mrs_exposures(scene: MRSScene, folder: str | Path, *, product: str = "mrs") -> tuple[list[Path], MRSTruth]:
    """
    Write exposures as ``*_cal.fits``, with all that is needed to match and combine them.

    There are the association ``<product>_asn.json``, the truth ``truth.json``, and for cube_build ``cubepar.fits``.

    Parameters
    ----------
    scene : MRSScene
        What they show.
    folder : str or Path
        Where to write; it is made if it does not exist.
    product : str
        Name of the product.

    Returns
    -------
    paths : list of Path
        The exposures.
    truth : MRSTruth
        Their backgrounds.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth = _draw_truth(scene)
    references = mrs_references(folder / "references", scene.detector, scene.band, scene.rows)
    for model in _expose_all(scene, truth, references):
        with whole_file(folder / model.meta.filename) as part:
            model.save(part)
        model.close()
    arrays = {channel: values.tolist() for channel, values in truth.coefficients.items()}
    with whole_file(folder / "truth.json") as part:
        part.write_text(json.dumps(asdict(truth) | {"coefficients": arrays}))
    write_cubepar(folder / "cubepar.fits", scene.rows)
    members = [{"expname": name, "exptype": "science"} for name in truth.names]
    head = {"asn_rule": "Asn_Lv3MIRMRS", "program": "09002", "target": "t001"}
    write_association(association(product, members, kind="spec3", **head), folder / f"{product}_asn.json")
    return [folder / name for name in truth.names], truth


def _draw_truth(scene: MRSScene) -> MRSTruth:
    rng = np.random.default_rng([scene.seed, 0])
    points, coefficients = {}, {}
    for name in scene.channels:
        low, high = CHANNELS[name].band(scene.band)
        north = _HALF_FIELD / 3600
        scales = north / np.cos(np.radians(scene.dec)), north, (high - low) / 2
        powers = np.indices(tuple(d + 1 for d in scene.degrees))
        order = powers.sum(axis=0)
        largest = np.choose(np.minimum(order, 2), scene.amplitudes) / np.maximum(order, 1)
        unit = np.prod([s**p for s, p in zip(scales, powers, strict=True)], axis=0)
        coefficients[name] = rng.uniform(-1, 1, (scene.n_exposures, *order.shape)) * largest / unit
        points[name] = scene.ra, scene.dec, (low + high) / 2
    noise = scene.noise * np.sqrt(_REFERENCE_TIME / scene.times())
    names = tuple(_file_name(scene, n) for n in range(scene.n_exposures))
    return MRSTruth(scene.degrees, points, coefficients, names, tuple(scene.times().tolist()), tuple(noise.tolist()))


def _file_name(scene: MRSScene, n: int) -> str:
    visit_part = f"021{2 * BANDS.index(scene.band) + 1:02d}"
    return f"jw09002001001_{visit_part}_{n + 1:05d}_{scene.detector.lower()}_cal.fits"


@dataclass(frozen=True, eq=False)
class _Pixels:
    """The pixels in slices: the same for all exposures. Lengths are in arcsec and micron."""

    inside: NDArray[np.bool_]
    channel: NDArray[np.str_]
    along: NDArray
    across: NDArray
    wavelength: NDArray
    length: NDArray
    width: NDArray
    step: NDArray

    @classmethod
    def of(cls, model: IFUImageModel) -> "_Pixels":
        """Find them."""
        y, x = np.indices(model.data.shape, dtype=float)
        coordinates = np.array(model.meta.wcs.get_transform("detector", "alpha_beta")(x, y))
        inside = np.isfinite(coordinates).all(axis=0)
        along, across, wavelength = coordinates[:, inside]
        names = list(model.meta.instrument.channel)
        bands = [CHANNELS[name].band(model.meta.instrument.band) for name in names]
        longer = (wavelength > bands[1][0] - MARGIN).astype(int)
        steps = [(high - low) / len(x) for low, high in bands]
        sizes = [(CHANNELS[n].pixel, CHANNELS[n].slice_width, step) for n, step in zip(names, steps, strict=True)]
        return cls(inside, np.array(names)[longer], along, across, wavelength, *np.array(sizes)[longer].T)


def _expose_all(scene: MRSScene, truth: MRSTruth, references: Mapping[str, str]) -> Iterator[IFUImageModel]:
    bad = np.random.default_rng([scene.seed, 2]).random(scene.shape) < scene.bad_pixels
    first = load_wcs(_pointed_model(scene, truth, 0), dict(references))
    pixels = _Pixels.of(first)
    for n in range(scene.n_exposures):
        model = _pointed_model(scene, truth, n)
        _point_wcs(model, first)
        _fill(model, scene, truth, n, pixels, bad)
        yield model


def _point_wcs(model: IFUImageModel, assigned: IFUImageModel) -> None:
    """Do what assign_wcs would do, with the transforms of another exposure: reading them again takes seconds."""
    *steps, (last_frame, _), world = ((step.frame, step.transform) for step in assigned.meta.wcs.pipeline)
    model.meta.wcs = WCS([*steps, (last_frame, v23tosky(model) & Identity(1)), world])
    model.meta.wcsinfo.specsys = assigned.meta.wcsinfo.specsys
    model.meta.wcsinfo.dispersion_direction = assigned.meta.wcsinfo.dispersion_direction
    model.meta.cal_step.assign_wcs = "COMPLETE"
    update_s_region_mrs(model)


def _fill(
    model: IFUImageModel, scene: MRSScene, truth: MRSTruth, n: int, pixels: _Pixels, bad: NDArray[np.bool_]
) -> None:
    rng = np.random.default_rng([scene.seed, 3, n])
    to_sky = model.meta.wcs.get_transform("alpha_beta", "world")
    ra, dec, wavelength = to_sky(pixels.along, pixels.across, pixels.wavelength)
    light = np.zeros(scene.shape)
    light[pixels.inside] = _sky(scene, pixels, ra, dec, _axes(scene, to_sky, wavelength[0]))
    for name in model.meta.instrument.channel:
        chosen = pixels.channel == name
        inside = pixels.inside.copy()
        inside[pixels.inside] = chosen
        light[inside] += truth.background(n, name, ra[chosen], dec[chosen], wavelength[chosen])
    rays, known = _cosmic_rays(scene, rng)
    sigma = truth.noise[n]
    light += sigma * (rng.standard_normal(scene.shape) + _COSMIC_RAY * rays)
    model.dq = _quality(pixels.inside, bad, known)
    unusable = model.dq != 0
    for image, value in (
        ("data", light),
        ("err", sigma),
        ("var_rnoise", 0.7 * sigma**2),
        ("var_poisson", 0.3 * sigma**2),
    ):
        setattr(model, image, np.where(unusable, np.nan, value).astype(np.float32))


def _quality(inside: NDArray[np.bool_], bad: NDArray[np.bool_], hit: NDArray[np.bool_]) -> NDArray[np.uint32]:
    dq = np.zeros(inside.shape, dtype=np.uint32)
    dq[~inside] |= flags["DO_NOT_USE"] | flags["NON_SCIENCE"]
    dq[inside & bad] |= flags["DO_NOT_USE"]
    dq[inside & hit] |= flags["DO_NOT_USE"] | flags["JUMP_DET"]
    return dq


def _cosmic_rays(scene: MRSScene, rng: np.random.Generator) -> tuple[NDArray, NDArray[np.bool_]]:
    """Return the light of tracks of 1 to 4 pixels (mean 1), and which pixels are known to be hit."""
    ny, nx = scene.shape
    n, step = rng.poisson(scene.cosmic_rays * ny * nx / 2.5), np.arange(4)
    angle = rng.uniform(0, 2 * np.pi, (n, 1))
    y, x = (
        np.rint(rng.uniform(0, size, (n, 1)) + step * direction).astype(int)
        for size, direction in zip(scene.shape, (np.sin(angle), np.cos(angle)), strict=True)
    )
    there = (step < rng.integers(1, 5, (n, 1))) & (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    light, found = np.zeros(scene.shape), np.zeros(scene.shape, dtype=bool)
    amplitude = np.broadcast_to(rng.exponential(1, (n, 1)), there.shape)
    known = there & (rng.random((n, 1)) < scene.flagged)
    np.add.at(light, (y[there], x[there]), amplitude[there])
    found[y[known], x[known]] = True
    return light, found


def _to_plane(scene: MRSScene, ra: NDArray, dec: NDArray) -> NDArray:
    """Return offsets from the centre to the east and to the north (arcsec, gnomonic), of shape (2, ...)."""
    turn, height, height0 = np.radians(ra - scene.ra), np.radians(dec), np.radians(scene.dec)
    cosine = np.sin(height0) * np.sin(height) + np.cos(height0) * np.cos(height) * np.cos(turn)
    north = np.cos(height0) * np.sin(height) - np.sin(height0) * np.cos(height) * np.cos(turn)
    return np.degrees(np.array([np.cos(height) * np.sin(turn), north]) / cosine) * 3600


def _from_plane(scene: MRSScene, east: float, north: float) -> tuple[float, float]:
    east, north, height = np.radians(east / 3600), np.radians(north / 3600), np.radians(scene.dec)
    depth = np.cos(height) - north * np.sin(height)
    turn = np.arctan2(east, depth)
    dec = np.arctan2(np.sin(height) + north * np.cos(height), np.hypot(east, depth))
    return float(np.mod(scene.ra + np.degrees(turn), 360)), float(np.degrees(dec))


def _axes(scene: MRSScene, to_sky: Model, wavelength: float) -> NDArray:
    """Return the directions along and across the slices, as rows of (east, north)."""
    ra, dec, _ = to_sky(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]), np.full(3, wavelength))
    origin, along, across = _to_plane(scene, ra, dec).T
    return np.array([along - origin, across - origin])


def _gaussian_in_pixels(offset: NDArray, sigma: NDArray, size: NDArray) -> NDArray:
    """Return the mean of a Gaussian of peak 1 over pixels."""
    low, high = ((offset + sign * size / 2) / (np.sqrt(2) * sigma) for sign in (-1, 1))
    return np.sqrt(np.pi / 2) * sigma / size * (erf(high) - erf(low))


def _source(pixels: _Pixels, position: NDArray, place: NDArray, sigma: NDArray) -> NDArray:
    along, across = position - place[:, None]
    return _gaussian_in_pixels(along, sigma, pixels.length) * _gaussian_in_pixels(across, sigma, pixels.width)


def _sky(scene: MRSScene, pixels: _Pixels, ra: NDArray, dec: NDArray, axes: NDArray) -> NDArray:
    """Return the sky of all exposures, seen by the pixels of one: its mean over each of them."""
    plane = _to_plane(scene, ra, dec)
    position, wavelength = axes @ plane, pixels.wavelength
    light = _CONTINUUM[0] + _CONTINUUM[1] * (wavelength - 5) + scene.gradient * (plane[0] + plane[1]) / np.sqrt(2)
    sigma = (0.033 * wavelength + 0.106) / 2.355
    for east, north, peak in scene.point_sources:
        light += peak * _source(pixels, position, axes @ [east, north], sigma)
    if scene.extended:
        peak, width = scene.extended
        light += peak * _source(pixels, position, axes @ [0.4, 0.0], np.full_like(sigma, width))
    for middle, peak in scene.lines:
        profile = _gaussian_in_pixels(wavelength - middle, np.array(middle / _RESOLVING_POWER / 2.355), pixels.step)
        light += peak * profile * (1 + np.sin(2 * np.pi * plane[0] / 2.5) * np.cos(2 * np.pi * plane[1] / 2.5)) / 2
    return light


def _pointed_model(scene: MRSScene, truth: MRSTruth, n: int) -> IFUImageModel:
    model = IFUImageModel(scene.shape)
    model.meta.filename = truth.names[n]
    model.meta.telescope = "JWST"
    model.meta.bunit_data = model.meta.bunit_err = "MJy/sr"
    describe_instrument(model, scene.detector, scene.band, scene.rows)
    _describe_time(model, n, truth.exposure_times[n])
    ra, dec = _from_plane(scene, *scene.dithers()[n])
    turn = np.mod(ra - scene.ra + 180, 360) - 180
    model.meta.wcsinfo = {
        "ra_ref": ra,
        "dec_ref": dec,
        "roll_ref": float(scene.roll + turn * np.sin(np.radians(scene.dec))),
        "v2_ref": V2_V3[0],
        "v3_ref": V2_V3[1],
        "v3yangle": ANGLE,
        "vparity": -1,
    }
    model.meta.target = {"type": "FIXED", "catalog_name": "SIMULATED", "ra": scene.ra, "dec": scene.dec}
    area = CHANNELS[scene.channels[0]].pixel * CHANNELS[scene.channels[0]].slice_width
    model.meta.photometry.pixelarea_arcsecsq = area
    model.meta.photometry.pixelarea_steradians = area / (np.degrees(1) * 3600) ** 2
    return model


def _describe_time(model: IFUImageModel, n: int, seconds: float) -> None:
    root, visit_part, exposure_number, *_ = model.meta.filename.split("_")
    start = _START + n / 40
    model.meta.observation = {
        "program_number": root[2:7],
        "observation_number": root[7:10],
        "visit_number": root[10:13],
        "visit_id": root[2:],
        "visit_group": visit_part[:2],
        "sequence_id": visit_part[2],
        "activity_id": visit_part[3:],
        "exposure_number": exposure_number,
        "date": Time(start, format="mjd").iso[:10],
        "time": Time(start, format="mjd").iso[11:],
    }
    exposure = model.meta.exposure
    exposure.start_time, exposure.mid_time, exposure.end_time = start + np.array([0, 0.5, 1]) * seconds / 86400
    exposure.exposure_time = exposure.effective_exposure_time = exposure.duration = seconds
