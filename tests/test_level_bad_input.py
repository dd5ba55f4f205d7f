"""Bad input of LevelMatchStep: one clear message each, with the file and the remedy, and nothing half-written."""

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import builders
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import (
    SIDE,
    association,
    constant_files,
    exposure_name,
    has,
    image_model,
    rewrite,
    spoil,
    tile_wcs,
    write,
)
from common import few
from conftest import FAR
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels

from bkgmatch import LevelMatchStep

pytestmark = pytest.mark.usefixtures("offline")

FIRST, SECOND, THIRD = (f"{exposure_name(n)}_cal.fits" for n in (1, 2, 3))
LEVELS = (1, 3, 7)


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    """Three neighbours at levels 1, 3 and 7, with noise."""
    rng = np.random.default_rng(4)
    models = []
    for n, (wcs, level) in enumerate(zip(tile_wcs((1, 3)), LEVELS, strict=True), 1):
        image = rng.normal(level, 0.01, (SIDE, SIDE))
        models.append(image_model(exposure_name(n), image, wcs, err=np.full(image.shape, 0.01, np.float32)))
        models[-1].meta.bunit_data = "MJy/sr"
    return write(models, tmp_path_factory.mktemp("unspoilt"))


refused = partial(builders.refused, LevelMatchStep)


def accepted(inputs, **options):
    """Status and middle value of each exposure, in order."""
    library = LevelMatchStep.call(inputs, **options)
    with library:
        return list(
            library.map_function(lambda m, _: (m.meta.cal_step.level_match, float(np.nanmedian(m.data))), modify=False)
        )


# -------------------------------------------------------------------------------------------------- what a file holds


def test_no_wcs(files, offline):
    spoil(files[1], lambda model: setattr(model.meta, "wcs", None))
    has(refused(association(files), offline), SECOND, "no WCS", "assign_wcs")


def test_no_wcs_in_memory(offline):
    models = [image_model(exposure_name(n), np.ones((SIDE, SIDE)), None) for n in (1, 2)]
    has(refused(models, offline), FIRST, "no WCS", "assign_wcs")


def test_wcs_that_is_not_finite(files, offline):
    models = [datamodels.open(file) for file in files]
    models[1].meta.wcs = tile_wcs((1, 1), center=(np.nan, 0.0))[0]
    has(refused(models, offline), SECOND, "not finite")


def test_cubes(files, offline):
    cube = datamodels.CubeModel(np.ones((2, SIDE, SIDE), np.float32))
    with datamodels.open(files[1]) as model:
        cube.update(model)
        cube.meta.wcs = model.meta.wcs
    cube.meta.filename = SECOND
    cube.save(files[1])
    has(refused(association(files), offline), SECOND, "2-D", "CubeModel")


def test_a_member_that_is_no_jwst_file(files, offline):
    files[1].write_text("not FITS\n")
    has(refused(association(files), offline), SECOND)


def test_a_damaged_file(files, offline):
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 3])
    has(refused(association(files), offline), SECOND)


def test_flags_of_another_shape(files, offline):
    rewrite(files[1], lambda hdus: setattr(hdus["DQ"], "data", hdus["DQ"].data[:-1]))
    has(refused(association(files), offline), SECOND, f"({SIDE - 1}, {SIDE})", f"({SIDE}, {SIDE})")


def test_errors_of_another_shape(files, offline):
    rewrite(files[1], lambda hdus: setattr(hdus["ERR"], "data", hdus["ERR"].data[:-1]))
    has(refused(association(files), offline), SECOND, "ERR")


@pytest.mark.parametrize("spoilt", few(2, ["no errors", "zero", "negative", "NaN", "infinite"]))
def test_errors_that_tell_nothing(files, spoilt):
    values = {"zero": 0.0, "negative": -1.0, "NaN": np.nan, "infinite": np.inf}
    models = [datamodels.open(file) for file in files]
    for model in models:
        model.err = None if spoilt == "no errors" else np.full(model.shape, values[spoilt], np.float32)
    found = accepted(models)
    assert {status for status, _ in found} == {"COMPLETE"}
    np.testing.assert_allclose([left for _, left in found], found[0][1], atol=0.005)


def test_one_exposure_without_good_pixels(files, caplog):
    spoil(files[2], lambda model: model.dq.fill(1))
    found = accepted(association(files))
    assert [status for status, _ in found] == ["COMPLETE", "COMPLETE", "SKIPPED"]
    np.testing.assert_allclose([left for _, left in found], (0, 0, 7), atol=0.005)
    (line,) = [line for line in caplog.messages if "could not be matched" in line]
    has(line, THIRD, "no good pixels")


def test_no_good_pixels_at_all(files):
    for file in files:
        spoil(file, lambda model: model.dq.fill(1))
    assert [status for status, _ in accepted(association(files))] == ["SKIPPED"] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(files, bad):
    models = [datamodels.open(file) for file in files]
    for n, model in enumerate(models):
        model.data[np.random.default_rng(n).random(model.shape) < 0.1] = bad
    before = [model.data.copy() for model in models]
    library = LevelMatchStep.call(models)
    with library:
        after = list(library.map_function(lambda m, _: m.data.copy(), modify=False))
    gone = []
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[~np.isfinite(old)], new[~np.isfinite(old)])
        gone.append(np.median(old[np.isfinite(old)] - new[np.isfinite(old)]))
    np.testing.assert_allclose(np.diff(gone), (2, 4), atol=0.005)


@pytest.mark.parametrize("kind", ["int16", "int32"])
def test_integers_on_disk(files, kind):
    for file in files:
        rewrite(file, lambda hdus: setattr(hdus["SCI"], "data", (1000 * hdus["SCI"].data).astype(kind)))
        rewrite(file, lambda hdus: setattr(hdus["ERR"], "data", 1000 * hdus["ERR"].data))
    np.testing.assert_allclose([left for _, left in accepted(association(files))], 0, atol=5)


@pytest.mark.parametrize("levels", [(9, 5, 6.5), (5, 9, 6.5)])
def test_images_without_noise(tmp_path, levels):
    found = accepted(constant_files(tmp_path, [(tile_wcs((1, 3)), levels)]))
    assert [status for status, _ in found] == ["COMPLETE"] * 3
    np.testing.assert_allclose([left for _, left in found], 0, atol=1e-5)


def test_images_without_noise_beside_a_fixed_one(tmp_path):
    files = constant_files(tmp_path, [(tile_wcs((1, 3)), (10, 14, 11.5)), (tile_wcs((1, 1)), (2,))])
    found = accepted(files, fixed=[files[3].name])
    np.testing.assert_allclose([left for _, left in found], 2, atol=1e-5)


def test_no_overlaps_at_all(tmp_path, caplog):
    wcs = [*tile_wcs((1, 1)), *tile_wcs((1, 1), center=FAR), *tile_wcs((1, 1), center=(10.0, 80.0))]
    files = constant_files(tmp_path, [(wcs, (1, 2, 3))])
    assert accepted(association(files), save_table="levels.ecsv") == [("SKIPPED", n) for n in (1, 2, 3)]
    assert sum("no overlap" in line for line in caplog.messages) == 3
    assert list(Table.read("levels.ecsv")["status"]) == ["no overlap"] * 3
    assert len(Table.read("levels_pairs.ecsv")) == 0


def test_wcs_on_the_other_side_of_the_sky(files):
    """Nothing is projected through the centre of the sphere."""
    models = [datamodels.open(file) for file in files[:2]]
    ra, dec = 53.16 + 180, 27.79
    other = image_model(exposure_name(9), models[0].data, tile_wcs((1, 1), center=(ra, dec))[0])
    assert [status for status, _ in accepted([*models, other])] == ["COMPLETE", "COMPLETE", "SKIPPED"]


# -------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("in_memory", [True, False])
def test_missing_member(files, offline, in_memory):
    asn = association(files)
    files[1].unlink()
    has(refused(asn, offline, FileNotFoundError, in_memory=in_memory), SECOND, "1 of 3", "not exist")


@pytest.mark.parametrize("name", ["nothing.fits", "nothing.json"])
def test_missing_input(offline, name):
    has(refused(name, offline, FileNotFoundError), name, "not exist")


@pytest.mark.parametrize("products", [[], [{"name": "mosaic", "members": []}]])
def test_association_without_members(offline, products, files):
    asn = json.loads(association(files).read_text())
    asn["products"] = products
    Path("empty.json").write_text(json.dumps(asn))
    has(refused("empty.json", offline), "empty.json")


@pytest.mark.parametrize("inputs", [[], (), None])
def test_no_input(offline, inputs):
    has(refused(inputs, offline), "no exposures")


@pytest.mark.parametrize("kind", ["association", "list", "another path", "link"])
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


@pytest.mark.parametrize("container", few(1, [list, ModelContainer, ModelLibrary]))
def test_models_in_memory_may_share_a_name(files, container):
    models = [datamodels.open(file) for file in files]
    for model in models:
        model.meta.filename = "same_cal.fits"
    found = accepted(container(models), save_table="levels.ecsv")
    np.testing.assert_allclose([left for _, left in found], found[0][1], atol=0.005)
    assert list(Table.read("levels.ecsv")["name"]) == [f"same_cal.fits[{n}]" for n in (1, 2, 3)]


@pytest.mark.parametrize("how", ["suffix", "suffix and folder"])
def test_a_result_never_replaces_its_input(files, offline, monkeypatch, how):
    """With the suffix of the input, in its folder."""
    if how == "suffix":
        monkeypatch.chdir(files[0].parent)
    options = {"suffix": "cal", "output_dir": None if how == "suffix" else str(files[0].parent)}
    has(refused([str(file) for file in files], offline, **options), FIRST, "overwrite", "output_dir")


# -------------------------------------------------------------------------------------------------- options

CONFLICTS = {
    "unknown flag": ({"dqbits": "~DO_NOT_USE+GOOOD"}, ("GOOOD", "dqbits")),
    "unknown reference": ({"reference": "jw09"}, ("'jw09'", "reference", FIRST)),
    "no background": ({"reference": "background"}, ("reference='background'", "exptype")),
    "no size of cells": ({"pixel_scale_ratio": 0.0}, ("pixel_scale_ratio", "positive")),
    "negative cells": ({"pixel_scale_ratio": -1.0}, ("pixel_scale_ratio", "positive")),
    "too large cells": ({"pixel_scale_ratio": 60.0}, ("pixel_scale_ratio", "between 0.01 and 50")),
    "cells of NaN": ({"pixel_scale_ratio": float("nan")}, ("pixel_scale_ratio", "positive")),
    "no threshold": ({"sigma": 0.0}, ("sigma", "positive")),
    "unknown fit": ({"fit_type_dithers": "cubic"}, ("fit_type_dithers", "cubic")),
    "unknown weights": ({"weight_method": "best"}, ("weight_method", "best")),
    "unknown projection": ({"reproject_func": "drizzle"}, ("reproject_func", "drizzle")),
    "negative area": ({"min_area_percent": -0.1}, ("min_area_percent",)),
    "cores": ({"maximum_cores": "many"}, ("maximum_cores", "many", "half")),
    "half a core": ({"maximum_cores": "1.5"}, ("maximum_cores", "1.5")),
}


@pytest.mark.parametrize("case", few(5, CONFLICTS))
def test_options(files, offline, case):
    options, says = CONFLICTS[case]
    has(refused(association(files), offline, Exception, **options), *says)


def test_fixed_that_does_not_exist(files, offline):
    has(refused(association(files), offline, FileNotFoundError, fixed=["no_i2d.fits"]), "no_i2d.fits", "nor a file")


@pytest.mark.parametrize("kind", few(2, ["text", "no image", "no WCS", "a cube"]))
def test_fixed_that_is_no_image(files, offline, kind):
    path = files[0].with_name("old.fits")
    if kind == "text":
        path.write_text("hello\n")
    else:
        shape = {"no image": None, "no WCS": (8, 8), "a cube": (2, 8, 8)}[kind]
        fits.PrimaryHDU(None if shape is None else np.ones(shape)).writeto(path)
    has(refused(association(files), offline, fixed=[str(path)]), "old.fits")


@pytest.mark.parametrize("is_input", [False, True], ids=["another file", "an input"])
def test_fixed_is_the_file_that_is_named(files, offline, is_input):
    """Another file of an exposure is refused; the exposure's own is held."""
    old = files[0].parent / "old"
    old.mkdir()
    matched = shutil.copy(files[0], old / FIRST.replace("_cal", "_levelmatch"))
    if is_input:
        done = accepted([str(file) for file in files], fixed=[str(files[1])])
        np.testing.assert_allclose([left for _, left in done], LEVELS[1], atol=0.005)
    else:
        message = refused([str(file) for file in files], offline, fixed=[str(matched)])
        has(message, Path(matched).name, FIRST, "leave one of them out")


def test_results_never_replace_fixed_files(files, offline):
    """A fixed file is not an exposure: its name may be that of a result."""
    fixed = files[0].rename(files[0].with_name(FIRST.replace("nrcalong", "nrcblong")))
    spoil(files[1], lambda model: setattr(model.meta, "filename", fixed.name))
    models = [datamodels.open(files[1]), datamodels.open(files[2])]
    models[0].meta.filename = fixed.name.replace("_cal", "_rate")
    message = refused(models, offline, fixed=[str(fixed)], suffix="cal", output_dir=str(fixed.parent))
    has(message, fixed.name, "overwrite", "output_dir")


def test_what_is_subtracted_is_not_to_be_recorded_only(files, offline):
    done = LevelMatchStep.call([str(file) for file in files])
    with done:
        models = list(done.map_function(lambda model, _: model, modify=False))
    models[1].data += 3
    has(refused(models, offline, subtract=False), FIRST, "has subtracted", "subtract=True", "undo")


def test_the_same_file_twice_in_a_library(files, offline):
    path = association([*files, files[1]])
    has(refused(ModelLibrary(str(path)), offline), SECOND, "more than once")


def test_fixed_in_another_unit(files, offline):
    path = files[0].with_name("old_i2d.fits")
    header = tile_wcs((1, 1))[0].to_fits_sip(degree=1, max_pix_error=20, npoints=8)
    header["BUNIT"] = "DN/s"
    fits.PrimaryHDU(np.ones((SIDE, SIDE)), header).writeto(path)
    has(refused(association(files), offline, fixed=[str(path)]), "old_i2d.fits", "DN/s", "MJy/sr")


def test_exposures_in_different_units(files, offline):
    spoil(files[1], lambda model: setattr(model.meta, "bunit_data", "DN/s"))
    has(refused(association(files), offline), SECOND, "DN/s", "MJy/sr")


def test_the_folder_of_the_table_does_not_exist(files, offline):
    has(refused(association(files), offline, FileNotFoundError, save_table=str(offline / "no" / "levels.ecsv")), "no")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_table_that_cannot_be_written(files, offline, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(association(files), offline, OSError, save_table=str(tmp_path / "locked" / "levels.ecsv"))


def test_pictures_that_cannot_be_drawn_are_refused_before_the_match(files, offline, monkeypatch):
    monkeypatch.setattr("bkgmatch.steps.level_match.match_levels", None)
    Path("file").write_text("here a folder is needed\n")
    has(refused(association(files), offline, NotADirectoryError, save_plots="file"), "file", "choose another")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    has(refused(association(files), offline, save_plots="pictures"), "matplotlib", "pip install")


@pytest.mark.parametrize("option", ["save_plots", "save_table"])
def test_models_of_the_caller_stay_as_they_were(files, offline, option):
    """Whatever goes wrong, and a library too: it has no copy of its models."""
    Path("file").write_text("here a folder is needed\n")
    Path("folder").mkdir()
    models = [datamodels.open(file) for file in files]
    before = [model.data.copy() for model in models]
    name, error = ("file", OSError) if option == "save_plots" else ("folder", ValueError)
    refused(ModelLibrary(models), offline, error, **{option: name})
    for model, data in zip(models, before, strict=True):
        np.testing.assert_array_equal(model.data, data)
        assert not model.meta.cal_step.hasattr("level_match")
