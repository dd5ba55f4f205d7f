"""Simulated exposures of the MIRI MRS, with known truth and without CRDS.

The coordinates are those of jwst's assign_wcs, from reference files made here: slices, channels and wavelengths are
much like the real ones. Only numpy, scipy, astropy and jwst are needed, so that older versions of jwst can use it, too.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.modeling import Model
from astropy.modeling.fitting import LinearLSQFitter
from astropy.modeling.models import AffineTransformation2D, Const1D, Identity, Polynomial2D
from astropy.table import Table
from astropy.time import Time
from gwcs import WCS
from jwst.assign_wcs.assign_wcs import load_wcs
from jwst.assign_wcs.pointing import v23tosky
from jwst.assign_wcs.util import update_s_region_mrs
from numpy.polynomial.polynomial import polyval3d
from numpy.typing import NDArray
from scipy.special import erf
from stdatamodels.jwst.datamodels import IFUImageModel, JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel as flags
from stdatamodels.jwst.datamodels.wcs_ref_models import (
    DistortionMRSModel,
    RegionsModel,
    SpecwcsModel,
    WavelengthrangeModel,
)

__all__ = ["MRSScene", "MRSTruth", "mrs_models", "mrs_references", "read_truth", "write_mrs_exposures"]

_SHAPE = 1024, 1032
_V2_V3, _ANGLE = (-503.654, -318.742), 8.3  # of channel 1: arcsec, deg
_START = 59870.0  # MJD
_REFERENCE_TIME = 100.0  # s
_BOW = 2.0  # pixels by which the ends of a slice lie right of its middle
_MARGIN = 0.05  # micron beyond a band that still belong to it
_RESOLVING_POWER = 3500
_CONTINUUM = 30.0, 2.0  # MJy/sr at 5 micron, per micron
_HALF_FIELD = 2.0  # arcsec
_COSMIC_RAY = 30.0  # mean light of a hit pixel, in standard deviations of the noise
_DITHERS = ((1.0, 0.6), (-1.0, -0.6), (0.7, -0.9), (-0.7, 0.9))  # arcsec
_TIMES = 100.0, 125.0, 150.0  # s
_CHANNELS_OF = {"MIRIFUSHORT": "12", "MIRIFULONG": "34"}
_BANDS = ("SHORT", "MEDIUM", "LONG")


@dataclass(frozen=True)
class _Channel:
    """Where the slices of a channel lie on the detector (pixels) and on the sky (arcsec)."""

    slices: int
    first: float
    pitch: float
    width: int
    pixel: float
    slice_width: float
    offset: tuple[float, float]
    wavelengths: tuple[tuple[float, float], ...]
    cube: tuple[float, float]  # arcsec and micron per element of a spectral cube

    def centre(self, number: int) -> float:
        """Return the column of the middle of a slice."""
        return self.first + self.pitch * number

    def beta(self, number: int) -> float:
        """Return the coordinate across the slices of the middle of a slice."""
        return (number - (self.slices - 1) / 2) * self.slice_width

    def band(self, name: str) -> tuple[float, float]:
        """Return the shortest and the longest wavelength (micron)."""
        return self.wavelengths[_BANDS.index(name)]


_CHANNELS = {
    "1": _Channel(
        21, 22, 23.75, 18, 0.196, 0.177, (0.0, 0.0), ((4.90, 5.74), (5.66, 6.63), (6.53, 7.65)), (0.13, 0.0008)
    ),
    "2": _Channel(
        17, 534, 29.7, 22, 0.196, 0.280, (0.1, -0.05), ((7.51, 8.77), (8.67, 10.13), (10.02, 11.70)), (0.17, 0.0013)
    ),
    "3": _Channel(
        16, 536, 30.5, 22, 0.245, 0.390, (0.0, 0.1), ((11.55, 13.47), (13.34, 15.57), (15.41, 17.98)), (0.20, 0.0025)
    ),
    "4": _Channel(
        12, 30, 41.0, 26, 0.273, 0.656, (-0.1, 0.1), ((17.70, 20.95), (20.69, 24.48), (24.40, 27.90)), (0.35, 0.006)
    ),
}


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
    seed: int = 1

    @property
    def channels(self) -> str:
        """The channels of the detector, for instance "12"."""
        return _CHANNELS_OF[self.detector]

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
        Files of `mrs_references` for the same detector and band, to save the time of writing them.

    Returns
    -------
    models : list of IFUImageModel
        SCI, ERR, DQ, VAR_RNOISE, VAR_POISSON, WCS and the metadata that spectroscopic steps need.
    truth : MRSTruth
        Their backgrounds.
    """
    truth = _draw_truth(scene)
    with tempfile.TemporaryDirectory() as folder:
        files = references or mrs_references(folder, scene.detector, scene.band)
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
    references = mrs_references(folder / "references", scene.detector, scene.band)
    for model in _expose_all(scene, truth, references):
        model.save(str(folder / model.meta.filename))
        model.close()
    arrays = {channel: values.tolist() for channel, values in truth.coefficients.items()}
    (folder / "truth.json").write_text(json.dumps(asdict(truth) | {"coefficients": arrays}))
    _write_cubepar(folder / "cubepar.fits")
    _write_association(folder / f"{product}_asn.json", product, truth.names)
    return [folder / name for name in truth.names], truth


def mrs_references(folder: str | Path, detector: str = "MIRIFUSHORT", band: str = "SHORT") -> dict[str, str]:
    """
    Write the reference files from which assign_wcs makes the WCS of a detector.

    Parameters
    ----------
    folder : str or Path
        Where to write; it is made if it does not exist.
    detector : {"MIRIFUSHORT", "MIRIFULONG"}
        The detector.
    band : {"SHORT", "MEDIUM", "LONG"}
        The band.

    Returns
    -------
    dict of str to str
        File name for each type: distortion, specwcs, regions and wavelengthrange.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    channels = {name: _CHANNELS[name] for name in _CHANNELS_OF[detector]}
    keys = [name + band for name in channels]
    slices = [(name, number) for name, channel in channels.items() for number in range(channel.slices)]
    models = {
        "distortion": _distortion(channels, slices, band, keys),
        "specwcs": SpecwcsModel(
            model=[_wavelength(*s, band) for s in slices], input_units=u.pix, output_units=u.micron
        ),
        "regions": RegionsModel(regions=np.broadcast_to(_slice_map(slices), (9, *_SHAPE)).copy()),
        "wavelengthrange": WavelengthrangeModel(
            wrange_selector=keys,
            wrange=[[low - _MARGIN, high + _MARGIN] for low, high in (c.band(band) for c in channels.values())],
            wunits=u.micron,
        ),
    }
    paths = {kind: str(folder / f"{kind}.asdf") for kind in models}
    for kind, model in models.items():
        _describe_instrument(model, detector, band)
        model.meta.description = model.meta.author = "simulated"
        model.meta.pedigree, model.meta.useafter = "DUMMY", "2020-01-01T00:00:00"
        model.save(paths[kind])
        model.close()
    return paths


def _bow(y: NDArray) -> NDArray:
    """Return the columns by which a slice lies right of its middle."""
    return _BOW * (2 * y / (_SHAPE[0] - 1) - 1) ** 2


def _label(channel: str, number: int) -> int:
    return 100 * int(channel) + number + 1


def _slice_map(slices: Sequence[tuple[str, int]]) -> NDArray[np.int32]:
    y, x = np.indices(_SHAPE)
    labels = np.zeros(_SHAPE, dtype=np.int32)
    for name, number in slices:
        channel = _CHANNELS[name]
        labels[np.abs(x - channel.centre(number) - _bow(y)) < channel.width / 2] = _label(name, number)
    return labels


def _along(channel: str, number: int) -> Polynomial2D:
    """Return the transform from (y, x) to the coordinate along a slice."""
    scale, last = _CHANNELS[channel].pixel, _SHAPE[0] - 1
    start = -scale * (_CHANNELS[channel].centre(number) + _BOW)
    return Polynomial2D(2, c0_0=start, c1_0=4 * scale * _BOW / last, c2_0=-4 * scale * _BOW / last**2, c0_1=scale)


def _wavelength(channel: str, number: int, band: str) -> Polynomial2D:
    """Return the transform from (y, x) to the wavelength, curved and tilted, and different in each slice."""
    low, high = _CHANNELS[channel].band(band)
    step = (high - low) / _SHAPE[0]
    tilt = 0.002 * step * (number - _CHANNELS[channel].slices / 2)
    start = low + 0.3 * step * (number % 3) - tilt * _CHANNELS[channel].centre(number)
    return Polynomial2D(2, c0_0=start, c1_0=0.95 * step, c2_0=0.05 * step / _SHAPE[0], c0_1=tilt)


def _columns_and_rows(channel: str, number: int, band: str) -> tuple[Polynomial2D, Polynomial2D]:
    """Return the transforms from wavelength and coordinate along a slice to x and y, fitted."""
    half = _CHANNELS[channel].width / 2
    y, x = np.meshgrid(np.linspace(0, _SHAPE[0] - 1, 40), _CHANNELS[channel].centre(number) + np.linspace(-half, half))
    sky = _wavelength(channel, number, band)(y, x), _along(channel, number)(y, x)
    return LinearLSQFitter()(Polynomial2D(4), *sky, x), LinearLSQFitter()(Polynomial2D(4), *sky, y)


def _to_v2v3(offset: tuple[float, float]) -> AffineTransformation2D:
    angle = np.radians(_ANGLE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    origin = np.add(_V2_V3, offset)
    transform = AffineTransformation2D(turn, translation=origin)
    transform.inverse = AffineTransformation2D(turn.T, translation=-turn.T @ origin)
    return transform


def _distortion(
    channels: Mapping[str, _Channel], slices: Sequence[tuple[str, int]], band: str, keys: list[str]
) -> DistortionMRSModel:
    x_models, y_models = zip(*(_columns_and_rows(*s, band) for s in slices), strict=True)
    model = DistortionMRSModel(
        x_model=list(x_models),
        y_model=list(y_models),
        alpha_model=[_along(*s) for s in slices],
        beta_model=[Const1D(_CHANNELS[name].beta(number)) for name, number in slices],
        bzero={"channel_band": keys, "beta_zero": [c.beta(0) for c in channels.values()]},
        bdel={"channel_band": keys, "delta_beta": [c.slice_width for c in channels.values()]},
        input_units=u.pix,
        output_units=u.arcsec,
    )
    model.slices = [_label(*s) for s in slices]
    model.abv2v3_model = {"channel_band": keys, "model": [_to_v2v3(c.offset) for c in channels.values()]}
    return model


def _draw_truth(scene: MRSScene) -> MRSTruth:
    rng = np.random.default_rng([scene.seed, 0])
    points, coefficients = {}, {}
    for name in scene.channels:
        low, high = _CHANNELS[name].band(scene.band)
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
    visit_part = f"021{2 * _BANDS.index(scene.band) + 1:02d}"
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
        y, x = np.indices(_SHAPE, dtype=float)
        coordinates = np.array(model.meta.wcs.get_transform("detector", "alpha_beta")(x, y))
        inside = np.isfinite(coordinates).all(axis=0)
        along, across, wavelength = coordinates[:, inside]
        names = list(model.meta.instrument.channel)
        bands = [_CHANNELS[name].band(model.meta.instrument.band) for name in names]
        longer = (wavelength > bands[1][0] - _MARGIN).astype(int)
        steps = [(high - low) / _SHAPE[0] for low, high in bands]
        sizes = [(_CHANNELS[n].pixel, _CHANNELS[n].slice_width, step) for n, step in zip(names, steps, strict=True)]
        return cls(inside, np.array(names)[longer], along, across, wavelength, *np.array(sizes)[longer].T)


def _expose_all(scene: MRSScene, truth: MRSTruth, references: Mapping[str, str]) -> Iterator[IFUImageModel]:
    bad = np.random.default_rng([scene.seed, 2]).random(_SHAPE) < scene.bad_pixels
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
    light = np.zeros(_SHAPE)
    light[pixels.inside] = _sky(scene, pixels, ra, dec, _axes(scene, to_sky, wavelength[0]))
    for name in model.meta.instrument.channel:
        chosen = pixels.channel == name
        inside = pixels.inside.copy()
        inside[pixels.inside] = chosen
        light[inside] += truth.background(n, name, ra[chosen], dec[chosen], wavelength[chosen])
    rays, known = _cosmic_rays(scene, rng)
    sigma = truth.noise[n]
    light += sigma * (rng.standard_normal(_SHAPE) + _COSMIC_RAY * rays)
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
    dq = np.zeros(_SHAPE, dtype=np.uint32)
    dq[~inside] |= flags["DO_NOT_USE"] | flags["NON_SCIENCE"]
    dq[inside & bad] |= flags["DO_NOT_USE"]
    dq[inside & hit] |= flags["DO_NOT_USE"] | flags["JUMP_DET"]
    return dq


def _cosmic_rays(scene: MRSScene, rng: np.random.Generator) -> tuple[NDArray, NDArray[np.bool_]]:
    """Return the light of tracks of 1 to 4 pixels (mean 1), and which pixels are known to be hit."""
    n, step = rng.poisson(scene.cosmic_rays * np.prod(_SHAPE) / 2.5), np.arange(4)
    angle = rng.uniform(0, 2 * np.pi, (n, 1))
    y, x = (
        np.rint(rng.uniform(0, size, (n, 1)) + step * direction).astype(int)
        for size, direction in zip(_SHAPE, (np.sin(angle), np.cos(angle)), strict=True)
    )
    there = (step < rng.integers(1, 5, (n, 1))) & (x >= 0) & (x < _SHAPE[1]) & (y >= 0) & (y < _SHAPE[0])
    light, found = np.zeros(_SHAPE), np.zeros(_SHAPE, dtype=bool)
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
    model = IFUImageModel(_SHAPE)
    model.meta.filename = truth.names[n]
    model.meta.telescope = "JWST"
    model.meta.bunit_data = model.meta.bunit_err = "MJy/sr"
    _describe_instrument(model, scene.detector, scene.band)
    _describe_time(model, n, truth.exposure_times[n])
    ra, dec = _from_plane(scene, *scene.dithers()[n])
    turn = np.mod(ra - scene.ra + 180, 360) - 180
    model.meta.wcsinfo = {
        "ra_ref": ra,
        "dec_ref": dec,
        "roll_ref": float(scene.roll + turn * np.sin(np.radians(scene.dec))),
        "v2_ref": _V2_V3[0],
        "v3_ref": _V2_V3[1],
        "v3yangle": _ANGLE,
        "vparity": -1,
    }
    model.meta.target = {"type": "FIXED", "catalog_name": "SIMULATED", "ra": scene.ra, "dec": scene.dec}
    area = _CHANNELS[scene.channels[0]].pixel * _CHANNELS[scene.channels[0]].slice_width
    model.meta.photometry.pixelarea_arcsecsq = area
    model.meta.photometry.pixelarea_steradians = area / (np.degrees(1) * 3600) ** 2
    return model


def _describe_instrument(model: JwstDataModel, detector: str, band: str) -> None:
    model.meta.instrument.name = "MIRI"
    model.meta.instrument.detector = detector
    model.meta.instrument.channel = _CHANNELS_OF[detector]
    model.meta.instrument.band = band
    model.meta.exposure.type = "MIR_MRS"
    model.meta.subarray = {
        "name": "FULL",
        "xstart": 1,
        "ystart": 1,
        "xsize": _SHAPE[1],
        "ysize": _SHAPE[0],
        "fastaxis": 1,
        "slowaxis": 2,
    }


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


def _write_cubepar(path: Path) -> None:
    """Write the reference file of cube_build, for its three ways of weighting."""
    rows = [(name, band, *c.cube, *c.band(band)) for name, c in _CHANNELS.items() for band in _BANDS]
    bands = Table(rows=rows, names=["CHANNEL", "BAND", "SPAXELSIZE", "SPECTRALSTEP", "WAVEMIN", "WAVEMAX"])
    all_wavelengths = Table({"WAVELENGTH": np.arange(4.9, 28.5, 0.002)})
    radii = {"ROISPATIAL": 0.3, "ROISPECTRAL": 0.003}
    weights = {"MSM": radii | {"POWER": 2.0, "SOFTRAD": 0.01}, "EMSM": radii | {"SCALERAD": 0.1}}
    tables = {"CUBEPAR": bands, "MULTICHANNEL_DRIZ": all_wavelengths}
    for name, values in weights.items():
        tables[f"CUBEPAR_{name}"] = bands["CHANNEL", "BAND"]
        tables[f"MULTICHANNEL_{name}"] = all_wavelengths.copy()
        for column, value in values.items():
            tables[f"CUBEPAR_{name}"][column] = tables[f"MULTICHANNEL_{name}"][column] = value
    primary = fits.PrimaryHDU()
    primary.header.update(
        REFTYPE="CUBEPAR",
        INSTRUME="MIRI",
        TELESCOP="JWST",
        DETECTOR="N/A",
        EXP_TYPE="MIR_MRS",
        MODELNAM="FM",
        DATAMODL="MiriIFUCubeParsModel",
        PEDIGREE="DUMMY",
        AUTHOR="simulated",
        DESCRIP="simulated",
        USEAFTER="2020-01-01T00:00:00",
    )
    hdus = [fits.BinTableHDU(table, name=name) for name, table in tables.items()]
    fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)


def _write_association(path: Path, product: str, names: Sequence[str]) -> None:
    members = [{"expname": name, "exptype": "science"} for name in names]
    association = {
        "asn_type": "spec3",
        "asn_rule": "Asn_Lv3MIRMRS",
        "asn_id": "a3001",
        "asn_pool": "none",
        "program": "09002",
        "target": "t001",
        "products": [{"name": product, "members": members}],
    }
    path.write_text(json.dumps(association, indent=2))
