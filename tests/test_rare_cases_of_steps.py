"""What steps and commands seldom meet: halves without records, results of other kinds, tables of other exposures."""

import os
import sys
from subprocess import CalledProcessError

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from builders import association, exposure_name, image_model, miri_halves, tile_wcs, write
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from mrs import ROWS, header_cards
from stdatamodels.jwst.datamodels import CubeModel, ImageModel

from bkgmatch import Image3Pipeline, ImageForImageStep, MRSIMatchStep, demo
from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.mosaics import Mosaic
from bkgmatch.planes import Plane
from bkgmatch.saved import SavedLevels
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.applied import _check_model
from bkgmatch.steps.background_files import Kind
from bkgmatch.steps.crds import _answer
from bkgmatch.steps.parts import recombined
from bkgmatch.steps.plane_record import PlaneRecord, read_record
from bkgmatch.steps.simulated_mrs import MRSScene, _axes, _Pixels, _sky
from bkgmatch.steps.streamed import StreamedLibrary
from bkgmatch.steps.sub_steps import told_in_headers

pytestmark = pytest.mark.usefixtures("offline")


# -------------------------------------------------------------------------------------------------- halves of MIRI


@pytest.fixture(scope="module")
def miri():
    (exposure,) = simulate_mosaic(
        rng=np.random.default_rng(3), detectors=("MIRIMAGE",), tiles=(1, 1), dithers=1, binning=32
    )
    return exposure


@pytest.mark.parametrize(("in_memory", "level"), [(True, None), (False, 2.0)])
def test_halves_are_joined_with_their_records(miri, tmp_path, in_memory, level):
    halves = miri_halves(miri, offset=3.0)
    if level:
        PlaneRecord(Plane(level)).apply(halves[1])
    expected = halves[0].data.copy(), halves[1].data.copy()
    if in_memory:
        library = ModelLibrary(list(halves))
    else:
        library = StreamedLibrary(association(write(halves, tmp_path)), temp_dir=None)
    with library:
        joined = recombined(library, {0: 1})
        assert isinstance(joined, StreamedLibrary) != in_memory
        assert len(joined) == 1
        with joined:
            model = joined.borrow(0)
            found, record, name = model.data.copy(), read_record(model), model.meta.filename
            joined.shelve(model, 0, modify=False)
    assert name == f"{miri.name}_cal.fits"
    assert record == (PlaneRecord(Plane(0.0), Plane(level)) if level else None)
    ny, nx = found.shape
    lyot = np.zeros((ny, nx), dtype=bool)
    lyot[round(735 / 1024 * ny) :, : round(290 / 1032 * nx)] = True
    np.testing.assert_array_equal(found, np.where(lyot, expected[1], expected[0]))


# -------------------------------------------------------------------------------------------------- pipelines


def test_a_pipeline_streams_associations_and_no_models(tmp_path):
    (wcs,) = tile_wcs((1, 1))
    models = [image_model(exposure_name(1), np.ones((64, 64)), wcs)]
    given = association(write(models, tmp_path))
    pipeline = Image3Pipeline()
    for in_memory in (True, False):
        pipeline.in_memory = in_memory
        library = pipeline._load_input_as_library(str(given))
        assert isinstance(library, StreamedLibrary) != in_memory
        assert library.asn["products"][0]["members"][0]["expname"].endswith(models[0].meta.filename)
        assert not isinstance(pipeline._load_input_as_library(ModelLibrary(models)), StreamedLibrary)


class Gives(Step):
    """A step that returns what it is given."""

    spec = ""

    def process(self, given):
        return given


@pytest.mark.parametrize("kind", ["model", "container", "name"])
def test_results_that_are_models_tell_of_steps(kind):
    model = ImageModel(np.ones((2, 2), np.float32))
    model.meta.cal_step.level_match = "COMPLETE"
    given = {"model": model, "container": ModelContainer([model]), "name": "mosaic_i2d.fits"}[kind]
    step = Gives()
    with told_in_headers(step):
        assert step.process(given) is given
    assert ("S_LVLMAT" in header_cards(model)) == (kind != "name")
    assert "process" not in vars(step)


@pytest.mark.parametrize("limit", [None, "5"])
def test_the_limit_of_patience_with_crds_is_that_of_the_user(monkeypatch, limit):
    name = "CRDS_CLIENT_TIMEOUT_SECONDS"
    monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv(name, limit)
    assert _answer(lambda: os.environ[name], "", "SkyMatchStep") == (limit or "60")
    assert os.environ.get(name) == limit


# -------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(("degree", "terms"), [(4, None), (5, 216), ([1, 8, 8], 162)])
def test_polynomials_of_very_many_terms_are_told(caplog, degree, terms):
    options = MRSIMatchStep(bkg_degree=degree)._options()
    told = [line for line in caplog.messages if "may take hours" in line]
    assert told == [f"bkg_degree={options.bkg_degree} fits {terms} terms to each exposure: this may take hours"] * bool(
        terms
    )


@pytest.mark.parametrize("suffix", ["i4ibkg", "i4imask"])
def test_results_are_not_named_as_other_files_of_the_step(suffix):
    step = ImageForImageStep(suffix=suffix)
    with pytest.raises(ValueError, match=f"suffix={suffix} is that of other files of this step; choose another"):
        step.process("asn.json")


def test_masks_of_mosaics_without_a_fits_wcs_are_not_saved(caplog, offline):
    mosaic = Mosaic("a_i2d.fits", np.ones((3, 3)), np.ones((3, 3)), lambda vectors: vectors[:, :2], None)
    none = np.full(0, np.nan)
    kind = Kind("NIRCAM", "NRCALONG", "F444W", "CLEAR", "FULL", "")
    found = ImageBackgrounds((), (), (), *[none] * 6, ((kind, mosaic),), ())
    ImageForImageStep()._save_masks(found, "product")
    assert "a_i2d.fits has no FITS WCS: its mask is not saved" in caplog.text
    assert list(offline.iterdir()) == []


@pytest.mark.parametrize("data", [np.ones((2, 4, 4), np.float32), None])
def test_levels_are_applied_to_images_only(data, tmp_path):
    saved = SavedLevels(tmp_path / "levels.ecsv", {}, "MJy/sr", "match", False)
    with CubeModel(data) as model, pytest.raises(ValueError, match=r"a\.fits: 2-D images are needed, this is a CubeM"):
        _check_model(model, tmp_path / "a.fits", "a.fits", saved)


# -------------------------------------------------------------------------------------------------- simulation


def light(model, **scene):
    """Wavelength and light of the pixels in slices, and their offsets from the centre in arcsec, by astropy."""
    scene = MRSScene(rows=ROWS, point_sources=(), **scene)
    pixels, to_sky = _Pixels.of(model), model.meta.wcs.get_transform("alpha_beta", "world")
    ra, dec, wavelength = to_sky(pixels.along, pixels.across, pixels.wavelength)
    offsets = SkyCoord(scene.ra, scene.dec, unit="deg").spherical_offsets_to(SkyCoord(ra, dec, unit="deg"))
    east, north = (offset.arcsec for offset in offsets)
    return wavelength, _sky(scene, pixels, ra, dec, _axes(scene, to_sky, wavelength[0])), east, north


def test_extended_sources_and_lines_are_where_they_are_said_to_be(dithers):
    wavelength, plain, east, north = light(dithers[0])
    extended = light(dithers[0], extended=(10.0, 1.0))[1] - plain
    np.testing.assert_allclose(extended, 10 * np.exp(-((east - 0.4) ** 2 + north**2) / 2), atol=0.1)
    assert extended.max() > 9
    line = light(dithers[0], lines=((5.3, 50.0),))[1] - plain
    seen = (1 + np.sin(2 * np.pi * east / 2.5) * np.cos(2 * np.pi * north / 2.5)) / 2
    assert np.abs(line[np.abs(wavelength - 5.3) > 0.02]).max() < 1e-6
    assert line.min() > -1e-9
    assert (line <= 50 * seen + 1e-3).all()
    assert line.max() > 1


def test_dithers_that_are_given_are_those_of_the_scene():
    offsets = ((0.5, -0.25), (1.0, 2.0))
    np.testing.assert_array_equal(MRSScene(n_exposures=2, offsets=offsets).dithers(), offsets)
    assert MRSScene(n_exposures=7).dithers().shape == (7, 2)


# -------------------------------------------------------------------------------------------------- demonstration


def test_the_demonstration_fails_with_the_step():
    demo._run([sys.executable, "-c", "pass"])
    with pytest.raises(CalledProcessError) as caught:
        demo._run([sys.executable, "-c", "raise SystemExit(3)"])
    assert caught.value.returncode == 3


def test_the_demonstration_tells_errors_relative_to_the_mean(noisy_exposures, capsys):
    off = np.resize([0.02, -0.02], len(noisy_exposures))
    levels = Table({"name": [f"{e.name}_cal.fits" for e in noisy_exposures], "sigma": np.full(len(off), 0.01)})
    levels["level"] = [e.level + 7.0 for e in noisy_exposures] + off
    assert demo._compare(noisy_exposures, levels) == pytest.approx(2.0)
    told = capsys.readouterr().out
    assert [line.split()[-1] for line in told.splitlines() if "_cal.fits" in line] == ["2.00", "-2.00"] * 3
    assert "Worst error 2.0 sigma, rms error 0.02 MJy/sr." in told


def test_the_picture_of_the_demonstration(noisy_exposures, tmp_path, monkeypatch):
    """Before, mosaics differ by the levels; after, they do not."""
    from matplotlib.axes import Axes

    drawn, show = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda ax, image, **style: drawn.append(image) or show(ax, image, **style))
    demo.draw_before_after(
        noisy_exposures, {f"{e.name}_cal.fits": e.level for e in noisy_exposures}, tmp_path / "picture.png"
    )
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    before, after = (image[np.isfinite(image)] for image in drawn)
    apart = [np.subtract(*np.percentile(image, [75, 25])) for image in (before, after)]
    assert apart[1] < 0.5 * apart[0]
    assert np.median(before) - np.median(after) == pytest.approx(np.mean([e.level for e in noisy_exposures]), abs=0.5)
