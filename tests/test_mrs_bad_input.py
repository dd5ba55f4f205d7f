"""Bad input of MRSIMatchStep: one clear message each, with the file and the remedy, and nothing half-written."""

import json
from functools import partial
from pathlib import Path

import builders
import numpy as np
import pytest
from builders import association, has, rewrite, spoil, tile_wcs
from common import few
from jwst.datamodels import ModelContainer, ModelLibrary
from mrs import FAR, coefficients, header_cards, records, status, twin, twins
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import CubeModel, IFUImageModel, ImageModel

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.steps.simulated_mrs_references import write_cubepar

pytestmark = pytest.mark.usefixtures("offline")

FIRST, SECOND = (f"jw09002001001_02101_{n:05d}_mirifushort_cal.fits" for n in (1, 2))


@pytest.fixture(scope="session")
def unspoilt(dither_files):
    return dither_files[:2]


@pytest.fixture
def models(dithers):
    """Two exposures in memory."""
    return twins(dithers[:2])


refused = partial(builders.refused, MRSIMatchStep)


def refused_models(models, offline, error=ValueError, **options):
    """The same of models, which must stay as they are even in a library, which has no copy of them."""
    before = [contents(model) for model in models]
    message = refused(ModelLibrary(models), offline, error, **options)
    for model, (arrays, meta) in zip(models, before, strict=True):
        now, then = contents(model)
        assert now.keys() == arrays.keys()
        for name in arrays:
            np.testing.assert_array_equal(now[name], arrays[name])
        assert then == meta
    return message


def contents(model):
    names = [name for name in ("data", "err", "dq") if getattr(model, name, None) is not None]
    meta = model.to_flat_dict(include_arrays=False)
    ignored = ("meta.group_id", "meta.asn", "cal_logs")
    known = {key: value for key, value in meta.items() if not key.startswith(ignored)}
    return {name: getattr(model, name).copy() for name in names}, known


def accepted(models, **options):
    """Run the step on models, which are changed; the channel is 1."""
    MRSIMatchStep.call(ModelLibrary(models), channel="1", **options)
    return models


# -------------------------------------------------------------------------------------------------- what a file holds


@pytest.mark.parametrize("cls", few(1, [ImageModel, CubeModel]))
def test_other_models(models, offline, cls):
    other = cls(np.zeros((2,) * (cls is CubeModel) + models[1].shape, np.float32))
    other.update(models[1])
    other.meta.wcs = models[1].meta.wcs
    other.meta.filename = SECOND
    other.meta.exposure.type = "NRC_IMAGE" if cls is ImageModel else "MIR_MRS"
    has(refused_models([models[0], other], offline), SECOND, "MIR_MRS" if cls is ImageModel else "2-D")


def test_wrong_exposure_type(models, offline):
    models[1].meta.exposure.type = "NRS_IFU"
    has(refused_models(models, offline), SECOND, "NRS_IFU", "MIR_MRS")


def test_no_wcs(models, offline):
    del models[1].meta.wcs
    has(refused_models(models, offline), SECOND, "no WCS", "assign_wcs")


def test_no_wcs_on_disk(files, offline):
    spoil(files[1], lambda model: setattr(model.meta, "wcs", None))
    has(refused(association(files), offline), SECOND, "no WCS", "assign_wcs")


def test_wcs_without_wavelength(models, offline):
    models[1].meta.wcs = tile_wcs((1, 1))[0]
    has(refused_models(models, offline), SECOND, "2 coordinates", "wavelength", "assign_wcs")


@pytest.mark.parametrize("channel", [None, "5", "15", ""])
def test_channels_that_do_not_exist(models, offline, channel):
    models[1].meta.instrument.instance["channel"] = channel
    has(refused_models(models, offline), SECOND, "channel", repr(channel))


@pytest.mark.parametrize("channel", ["34", "3", "13", "1234"])
def test_a_detector_does_not_hold_the_channel(models, offline, channel):
    models[1].meta.instrument.instance["channel"] = channel
    has(refused_models(models, offline), SECOND, channel, "MIRIFUSHORT")


def test_a_channel_in_several_combinations(models, offline):
    models[1].meta.instrument.channel = "1"
    message = refused_models(models, offline)
    has(message, "Channel '1' appears in multiple combinations of channels", FIRST, SECOND, "apart")


@pytest.mark.parametrize("name", few(1, ["dq", "err"]))
def test_arrays_of_another_shape(files, offline, name):
    rewrite(files[1], lambda hdus: setattr(hdus[name.upper()], "data", hdus[name.upper()].data[:-1]))
    has(refused(association(files), offline), SECOND, name.upper(), "(63, 1032)", "(64, 1032)")


GIVEN = [list, association]


@pytest.mark.parametrize("given", few(1, GIVEN))
def test_a_damaged_file(files, offline, given):
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 3])
    has(refused(given(files), offline), SECOND, "cannot be read")


@pytest.mark.parametrize("given", few(1, GIVEN[::-1]))
def test_a_member_that_is_no_fits_file(files, offline, given):
    files[1].write_text("not FITS\n")
    has(refused(given(files), offline), SECOND, "cannot be read")


# -------------------------------------------------------------------------------------------------- backgrounds


def test_exposures_in_different_units(models, offline):
    for model, unit in zip(models, ("MJy/sr", "DN/s"), strict=True):
        model.meta.bunit_data = unit
    has(refused_models(models, offline), SECOND, "DN/s", "MJy/sr")


def test_a_level_without_a_sign_of_subtraction(models, offline):
    models[1].meta.background.level = 2.5
    has(refused_models(models, offline), SECOND, "Background level was set but the 'subtracted' property is undefined")


def test_a_background_that_is_subtracted(models, offline):
    models[1].meta.background.subtracted = True
    has(refused_models(models, offline), SECOND, "previously subtracted", "undo")


def test_a_level_that_is_not_subtracted(models, offline):
    models[1].meta.background = {"level": 2.5, "subtracted": False}
    has(refused_models(models, offline, subtract=True), SECOND, "BKGLEVEL=2.5", "subtract=False")


# -------------------------------------------------------------------------------------------------- pixels


def test_nothing_but_nan_in_one(models):
    models[1].data[:] = np.nan
    done = accepted(models, subtract=True, save_table="mrs.ecsv")
    assert status(done) == ["SKIPPED"] * 2
    assert records(done[1]) == {}
    assert not coefficients(done[:1]).any()
    assert np.isnan(done[1].data).all()


def test_nothing_but_nan(models, caplog):
    before = models[0].err.copy()
    for model in models:
        model.data[:] = np.nan
    done = accepted(models, subtract=True, save_table="mrs.ecsv")
    assert status(done) == ["SKIPPED"] * 2
    assert [records(model) for model in done] == [{}, {}]
    np.testing.assert_array_equal(done[0].err, before)
    for model in done:
        assert any(model.meta.filename in line and "no good pixels" in line for line in caplog.messages)
        assert header_cards(model) == {"S_MRSMAT": "SKIPPED"}


def test_a_wcs_that_is_nowhere_finite(models):
    models[1] = twin(models[1], move=(np.nan, 0.0))
    before = models[1].data.copy()
    done = accepted(models, subtract=True)
    assert status(done) == ["SKIPPED"] * 2
    np.testing.assert_array_equal(done[1].data, before)


@pytest.mark.parametrize("spoilt", few(2, [0.0, -1.0, np.nan, np.inf, None]))
def test_errors_that_tell_nothing(models, dithers, spoilt):
    expected = coefficients(accepted(twins(dithers[:2])))
    for model in models:
        model.err = None if spoilt is None else np.full(model.shape, spoilt, np.float32)
    found = accepted(models)
    assert status(found) == ["COMPLETE"] * 2
    assert coefficients(found)[:, 0] == pytest.approx(expected[:, 0], abs=0.05)


def test_all_voxels_are_clipped(models, caplog):
    """It is said that nothing is determined, and what is subtracted is small."""
    before = models[0].data.copy()
    done = accepted(models, sigma=1e-9, subtract=True)
    assert any("do not determine" in line or "left as it is" in line for line in caplog.messages)
    assert np.nanmax(np.abs(done[0].data - before)) < 30
    assert all(np.isfinite(coefficients([model])).all() for model in done if records(model))
    assert np.isfinite(done[0].data[np.isfinite(before)]).all()


@pytest.mark.parametrize("bad", few(1, [np.nan, np.inf, -np.inf]))
def test_values_that_are_not_finite(models, dithers, bad):
    expected = coefficients(accepted(twins(dithers[:2])))
    where = np.random.default_rng(1).random(models[0].shape) < 0.05
    for model in models:
        model.data[where] = bad
    found = accepted(models, subtract=True)
    assert coefficients(found)[:, 0] == pytest.approx(expected[:, 0], abs=0.05)
    np.testing.assert_array_equal(found[0].data[where], np.full(where.sum(), bad, np.float32))


def test_no_overlaps_at_all(models):
    other = twin(models[1], move=FAR)
    before = [model.data.copy() for model in (models[0], other)]
    done = accepted([models[0], other], subtract=True)
    assert status(done) == ["SKIPPED"] * 2
    for model, data in zip(done, before, strict=True):
        np.testing.assert_array_equal(model.data, data)


# -------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("in_memory", [True, False])
def test_missing_member(files, offline, in_memory):
    asn = association(files)
    files[1].unlink()
    has(refused(asn, offline, FileNotFoundError, in_memory=in_memory), SECOND, "1 of 2", "not exist")


@pytest.mark.parametrize("name", ["nothing.fits", "nothing.json"])
def test_missing_input(offline, name):
    has(refused(name, offline, FileNotFoundError), name, "not exist")


@pytest.mark.parametrize("products", [[], [{"name": "cube", "members": []}]])
def test_association_without_members(offline, files, products):
    asn = json.loads(association(files).read_text())
    asn["products"] = products
    Path("empty.json").write_text(json.dumps(asn))
    has(refused("empty.json", offline), "empty.json")


def test_an_association_that_is_no_json(offline):
    Path("asn.json").write_text("{\n")
    has(refused("asn.json", offline), "asn.json")


@pytest.mark.parametrize("inputs", [[], (), None])
def test_no_input(offline, inputs):
    has(refused(inputs, offline), "no exposures")


@pytest.mark.parametrize("save_table", ["mrs.ecsv", None])
def test_an_empty_container(offline, save_table):
    has(refused(ModelContainer(), offline, save_table=save_table), "no exposures")


def test_nothing_but_dedicated_backgrounds(files, offline):
    path = association(files, exptypes=["background"] * 2)
    has(refused(path, offline, save_table="mrs.ecsv"), "no science exposures")


@pytest.mark.parametrize("kind", few(2, ["association", "list", "another path", "link"]))
def test_the_same_file_twice(files, offline, kind):
    if kind == "association":
        inputs = association([*files, files[1]])
    elif kind == "another path":
        inputs = [*files, files[1].parent / ".." / "inputs" / SECOND]
    elif kind == "link":
        (files[0].parent / "link.fits").symlink_to(files[1])
        inputs = [*files, files[0].parent / "link.fits"]
    else:
        inputs = [*map(str, files), str(files[1])]
    has(refused(inputs, offline), SECOND, "more than once", "each exposure once")


@pytest.mark.parametrize("how", ["suffix", "suffix and folder"])
def test_a_result_never_replaces_its_input(files, offline, monkeypatch, how):
    if how == "suffix":
        monkeypatch.chdir(files[0].parent)
    options = {"suffix": "cal", "output_dir": None if how == "suffix" else str(files[0].parent)}
    has(refused([str(file) for file in files], offline, **options), FIRST, "overwrite", "output_dir")


def test_a_folder(files, offline):
    has(refused([files[0].parent, files[0]], offline), "inputs", "folder")


@pytest.mark.parametrize("given", [7, 3.5, [1, 2]])
def test_input_of_another_type(offline, given):
    refused(given, offline, (TypeError, ValueError))


# -------------------------------------------------------------------------------------------------- options

OPTIONS = {
    "negative degree": ({"bkg_degree": -1}, ("bkg_degree", "-1")),
    "two degrees": ({"bkg_degree": [1, 2]}, ("bkg_degree", "one integer or 3")),
    "four degrees": ({"bkg_degree": [1, 2, 1, 1]}, ("bkg_degree", "one integer or 3")),
    "no degree": ({"bkg_degree": []}, ("bkg_degree",)),
    "text": ({"bkg_degree": "a"}, ("bkg_degree", "a", "integer")),
    "half a degree": ({"bkg_degree": 1.5}, ("bkg_degree", "1.5", "integer")),
    "half a degree as text": ({"bkg_degree": ["1.5"]}, ("bkg_degree", "1.5", "integer")),
    "unknown channel": ({"channel": "3"}, ("channel=3", "1, 2")),
    "no channel": ({"channel": ["1", "x"]}, ("channel=X", "1, 2")),
    "unknown band": ({"band": "MEDIUM"}, ("band=MEDIUM", "SHORT")),
    "unknown flag": ({"dqbits": "~DO_NOT_USE+GOOOD"}, ("GOOOD", "dqbits")),
    "no limit": ({"sigma": 0.0}, ("sigma", "positive")),
    "limit of NaN": ({"sigma": float("nan")}, ("sigma", "positive")),
    "no iterations": ({"maxiters": -1}, ("maxiters",)),
    "no voxels": ({"wavelength_cells": 0}, ("wavelength_cells",)),
    "no size of voxels": ({"cell_size": -1.0}, ("cell_size", "positive")),
    "unknown weights": ({"weights": "best"}, ("weights", "best")),
    "unknown clip": ({"clip": "all"}, ("clip", "all")),
    "unknown cells": ({"cells": "drizzle"}, ("cells", "drizzle")),
    "cores": ({"maximum_cores": "many"}, ("maximum_cores", "many", "half")),
    "no reference file": ({"cells": "cube_build"}, ("cube_build", "override_cubepar")),
    "reference file missing": (
        {"cells": "cube_build", "override_cubepar": "no_cubepar.fits"}, ("no_cubepar.fits",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", few(6, OPTIONS))
def test_options(models, offline, case):
    options, says = OPTIONS[case]
    has(refused_models(models, offline, Exception, **options), *says)


def test_the_folder_of_the_table_does_not_exist(files, offline):
    has(refused(association(files), offline, FileNotFoundError, save_table=str(offline / "no" / "mrs.ecsv")), "no")


def test_a_table_that_cannot_be_written(models, offline):
    Path("folder").mkdir()
    refused_models(models, offline, ValueError, save_table="folder")


@pytest.mark.parametrize("band", ["LONG", "MEDIUM"])
def test_a_reference_file_without_the_band(models, offline, band):
    write_cubepar(Path("cubepar.fits"), 64)
    for model in models:
        model.meta.instrument.band = band
    rewrite(Path("cubepar.fits"), lambda hdus: setattr(hdus["CUBEPAR"], "data", hdus["CUBEPAR"].data[:1]))
    message = refused_models(models, offline, cells="cube_build", override_cubepar="cubepar.fits", channel="1")
    has(message, "cubepar.fits", "channel 1", band)


def test_a_library_that_is_a_mix(models, offline):
    """One model that is no exposure at all."""
    other = IFUImageModel()
    other.meta.filename = "empty_cal.fits"
    has(refused_models([*models, other], offline), "empty_cal.fits")


def test_files_on_disk_of_another_kind(files, offline):
    cube = datamodels.IFUCubeModel(np.ones((2, 8, 8), np.float32))
    cube.meta.filename = SECOND
    cube.meta.instrument.channel = "12"
    cube.save(files[1])
    has(refused(association(files), offline), SECOND)


@pytest.mark.parametrize(
    "step", [LevelMatchStep, *(pytest.param(s, marks=pytest.mark.slow) for s in (SkyMatchStep, ImageForImageStep))]
)
def test_the_steps_of_images_name_the_step_of_mrs(step, models, offline):
    with pytest.raises(ValueError, match=r"mirifushort_cal\.fits is no image but MIR_MRS; .* use MRSIMatchStep"):
        step.call(twins(models))
