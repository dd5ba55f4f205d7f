"""Real JWST files for the tests of the steps: image models with a gwcs, associations, an empty CRDS cache."""

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from astropy import coordinates
from astropy import units as u
from astropy.io import fits
from astropy.modeling.models import Pix2Sky_TAN, RotateNative2Celestial, Scale, Shift
from astropy.wcs import WCS as FitsWCS
from gwcs import WCS
from gwcs import coordinate_frames as cf
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import ImageModel

from bkgmatch import associations
from bkgmatch.detectors import Detector, detector_wcs
from bkgmatch.simulate import SimulatedExposure, pointings
from bkgmatch.simulate_dithers import DitheredExposures
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.simulated import as_model

CENTER = (53.16, -27.79)
ROLL = 40.0
BINNING = 32  # NIRCam's 2048 pixels become 64
SIDE = 2048 // BINNING
NAME = re.compile(
    r"jw(?P<program_number>\d{5})(?P<observation_number>\d{3})(?P<visit_number>\d{3})"
    r"_(?P<visit_group>\d{2})(?P<sequence_id>\d)(?P<activity_id>\w{2})_(?P<exposure_number>\d{5})_(?P<detector>\w+)"
)
MODULES = {"NRCALONG": "A", "NRCBLONG": "B"}


def tile_wcs(
    tiles: tuple[int, int], *, center: tuple[float, float] = CENTER, overlap: float = 0.2, binning: int = BINNING
) -> list[WCS]:
    """WCS of neighbouring NIRCam tiles, row by row."""
    detector = Detector.named("NRCALONG")
    width = detector.scale * detector.size[0]
    plan = pointings(*center, tiles, 1, size=(width, width), overlap=overlap, roll=ROLL, grid_angle=detector.angle)
    return [detector_wcs(detector, *where, binning=binning) for _, _, *where in plan]


def part_of(wcs: WCS, shape: tuple[int, int], *, of: int = SIDE) -> WCS:
    """WCS of a subarray of this shape in the middle of a square image."""
    (frame, transform), *rest = ((step.frame, step.transform) for step in wcs.pipeline)
    y, x = ((of - n) // 2 for n in shape)
    return WCS([(frame, Shift(x) & Shift(y) | transform), *rest])


def exposure_name(number: int, *, observation: int = 1, detector: str = "nrcalong") -> str:
    """Name of an exposure; each number is a group of its own."""
    return f"jw09001{observation:03d}001_02101_{number:05d}_{detector}"


def image_model(
    name: str,
    data: np.ndarray,
    wcs: WCS | None,
    *,
    dq: np.ndarray | None = None,
    err: np.ndarray | None = None,
    suffix: str = "cal",
) -> ImageModel:
    """Return a model as calwebb_image2 leaves it, as far as the steps look."""
    words = NAME.fullmatch(name).groupdict()
    detector = words.pop("detector").upper()
    number = int(words["exposure_number"])
    model = ImageModel(np.array(data, dtype=np.float32))
    model.dq = np.zeros(data.shape, np.uint32) if dq is None else dq
    model.err = np.full(data.shape, 0.1, np.float32) if err is None else err
    model.var_rnoise = np.square(model.err)
    model.meta.filename = f"{name}_{suffix}.fits"
    model.meta.telescope = "JWST"
    model.meta.observation = {**words, "date": "2023-05-01", "time": "00:00:00.000"}
    channel = {"channel": "LONG", "module": MODULES[detector]} if detector in MODULES else {}
    model.meta.instrument = {"name": "NIRCAM", "detector": detector, "filter": "F444W", "pupil": "CLEAR", **channel}
    start = 60065.0 + 0.01 * number
    model.meta.exposure = {
        "type": "NRC_IMAGE",
        "exposure_time": 100.0,
        "start_time": start,
        "mid_time": start + 0.0005,
        "end_time": start + 0.001,
    }
    if wcs is not None:
        ra, dec = wcs(*(np.array(data.shape[-1:-3:-1]) / 2))
        model.meta.wcsinfo = {
            "ra_ref": float(ra), "dec_ref": float(dec), "roll_ref": ROLL, "vparity": -1, "wcsaxes": 2,
            "v2_ref": 86.1, "v3_ref": -493.2, "v3yangle": -0.07,
        }  # fmt: skip
        model.meta.wcs = wcs
    return model


def simulated_model(exposure: SimulatedExposure) -> ImageModel:
    """Return the model of a simulated exposure."""
    return image_model(exposure.name, exposure.data, exposure.wcs, dq=exposure.dq, err=exposure.err)


def miri_halves(exposure: SimulatedExposure, *, offset: float = 0.0) -> tuple[ImageModel, ImageModel]:
    """Return the science and the Lyot half of a MIRI image; the latter has a level, errors and variances of its own."""
    halves = as_model(exposure), as_model(exposure)
    ny, nx = exposure.data.shape
    lyot = np.zeros((ny, nx), dtype=bool)
    lyot[round(735 / 1024 * ny) :, : round(290 / 1032 * nx)] = True
    for model, letter, other in zip(halves, "sl", (lyot, ~lyot), strict=True):
        model.meta.filename = f"{exposure.name}{letter}_cal.fits"
        model.dq = model.dq | np.where(other, 513, 0).astype(np.uint32)
        model.var_poisson = np.square(model.err) / 2
        model.var_flat = np.square(model.err) / 3
    for name, factor in (("err", 2), ("var_rnoise", 3), ("var_poisson", 5), ("var_flat", 7)):
        setattr(halves[1], name, factor * getattr(halves[1], name))
    halves[1].data = halves[1].data + np.float32(offset)
    return halves


def image_files(scene: DitheredExposures, folder: Path) -> list[Path]:
    """Write simulated dithers as cal files with all variances, which add up to ERR squared."""
    models = [as_model(e, number=i) for i, e in enumerate(scene.exposures)]
    for model in models:
        variance = np.square(model.err)
        model.var_poisson, model.var_rnoise, model.var_flat = variance / 2, 3 * variance / 8, variance / 8
    return write(models, folder)


def as_rate(model: ImageModel) -> ImageModel:
    """Turn a cal model into the rate that it might come from: in DN/s, without a WCS."""
    model.meta.wcs = None
    model.meta.bunit_data = model.meta.bunit_err = "DN/s"
    model.meta.filename = model.meta.filename.replace("_cal.fits", "_rate.fits")
    return model


def write_mosaic(scene: DitheredExposures, path: Path, *, header: bool = True, level: float = 5.0) -> Path:
    """Write an image of the sources of simulated dithers, as calwebb_image3 does; its WCS is in its header too."""
    rows = columns = 140
    pixel = scene.field.pixel / 3600
    tan = FitsWCS(naxis=2)
    tan.wcs.ctype, tan.wcs.crval = ["RA---TAN", "DEC--TAN"], [scene.field.ra, scene.field.dec]
    tan.wcs.crpix, tan.wcs.cdelt = [(columns + 1) / 2, (rows + 1) / 2], [-pixel, pixel]
    light = scene.field.on_pixels(tangent_gwcs(tan), (rows, columns))
    noise = np.random.default_rng(3).normal(level, 0.02, light.shape)
    model = ImageModel((light + noise).astype(np.float32))
    model.meta.wcs = tangent_gwcs(tan)
    model.meta.bunit_data = "MJy/sr"
    model.meta.filename = path.name
    model.save(path)
    if header:
        with fits.open(path, mode="update") as hdus:
            hdus["SCI"].header.update(tan.to_header())
    return path


def tangent_gwcs(tan: FitsWCS) -> WCS:
    """Return the gwcs of a tangential FITS WCS."""
    (x, y), (dx, dy), (ra, dec) = tan.wcs.crpix - 1, tan.wcs.cdelt, tan.wcs.crval
    to_plane = Shift(-x) & Shift(-y) | Scale(dx) & Scale(dy)
    transform = to_plane | Pix2Sky_TAN() | RotateNative2Celestial(ra, dec, 180.0)
    detector = cf.Frame2D(name="detector", unit=(u.pix, u.pix))
    sky = cf.CelestialFrame(name="world", reference_frame=coordinates.ICRS())
    return WCS([(detector, transform), (sky, None)])


def write(models: Sequence[ImageModel], folder: Path) -> list[Path]:
    """Save models under the names that they carry."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / model.meta.filename for model in models]
    for model, file in zip(models, files, strict=True):
        model.save(file)
    return files


def association(files: Sequence[Path], *, name: str = "asn.json", exptypes: Sequence[str] | None = None) -> Path:
    """Write a level 3 association of files beside the first of them."""
    kinds = exptypes or ["science"] * len(files)
    members = [{"expname": Path(file).name, "exptype": kind} for file, kind in zip(files, kinds, strict=True)]
    path = Path(files[0]).with_name(name)
    associations.write_association(associations.association("mosaic", members, kind="None", program="09001"), path)
    return path


def constant_files(folder: Path, pieces: Sequence[tuple[list[WCS], Sequence[float]]]) -> list[Path]:
    """Write exposures that hold nothing but a constant; each is its own group."""
    every = [(wcs, level) for where, levels in pieces for wcs, level in zip(where, levels, strict=True)]
    models = [
        image_model(exposure_name(i), np.full((SIDE, SIDE), level), wcs) for i, (wcs, level) in enumerate(every, 1)
    ]
    return write(models, folder)


def digest(files: Sequence[Path]) -> list[str]:
    """Hash of each file's bytes."""
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]


def spoil(file, change):
    """Change a file through its data model."""
    with datamodels.open(file) as model:
        change(model)
        model.save(file)


def rewrite(file, change):
    """Change a file below its data model."""
    with fits.open(file, mode="update") as hdus:
        change(hdus)


def refused(step, inputs, offline, error=ValueError, **options):
    """Message of the error that a step raises; it must not have written anything, or changed a file."""
    out = offline.parent / "out"
    given = sorted((offline.parent / "inputs").rglob("*"))
    files = [path for path in given if path.is_file()]
    before, here = digest(files), left_behind(offline)
    options = {"save_table": str(out.with_name("table.ecsv")), "output_dir": str(out), "save_results": True, **options}
    with pytest.raises(error) as caught:
        step.call(inputs, **options)
    assert left_behind(out) == []
    assert list(offline.parent.glob("*.ecsv")) == []
    assert left_behind(offline) == here
    assert sorted((offline.parent / "inputs").rglob("*")) == given
    assert digest(files) == before
    return str(caught.value)


def has(message, *parts):
    missing = [part for part in parts if part not in message]
    assert missing == [], message


def left_behind(*folders):
    """Files, hidden ones too, in folders; but for the measurements of an interrupted run, which are to stay."""
    found = (path for folder in folders if folder.exists() for path in folder.rglob("*"))
    return [str(path) for path in found if ".resume" not in str(path)]


def described(cls):
    """Name and description of each parameter in the spec of a step, with those that all of ours have."""
    specs = "\n".join(inspect.cleandoc(c.spec) for c in (cls, BackgroundStep) if issubclass(cls, c))
    lines = (line.partition("=") for line in specs.splitlines() if "=" in line.partition("#")[0])
    return {name.strip(): text.partition(" #")[0].strip() for name, _, text in lines}
