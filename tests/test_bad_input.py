"""Bad input: one clear message each, with the file and the remedy, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import (
    SIDE,
    association,
    constant_files,
    digest,
    exposure_name,
    has,
    image_model,
    left_behind,
    rewrite,
    spoil,
    tile_wcs,
)
from common import few
from conftest import FAR
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels

from bkgmatch import LevelMatchStep, SkyMatchStep

pytestmark = pytest.mark.usefixtures("offline")

FIRST, SECOND, THIRD = (f"{exposure_name(n)}_cal.fits" for n in (1, 2, 3))


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    """Three neighbours at levels 1, 3 and 7."""
    return constant_files(tmp_path_factory.mktemp("unspoilt"), [(tile_wcs((1, 3)), (1, 3, 7))])


def refused(inputs, offline, error=ValueError, **options):
    """Message of the error that the step raises; it must not have written anything, or changed a file."""
    out = offline.parent / "out"
    given = sorted((offline.parent / "inputs").glob("*"))
    before = digest(given)
    here = left_behind(offline)
    options.setdefault("save_table", str(out / "levels.ecsv"))
    with pytest.raises(error) as caught:
        SkyMatchStep.call(
            inputs, save_results=True, output_dir=str(out), subtract=options.pop("subtract", True), **options
        )
    assert left_behind(out) == []
    assert left_behind(offline) == here
    assert sorted((offline.parent / "inputs").glob("*")) == given
    assert digest(given) == before
    return str(caught.value)


def accepted(inputs, **options):
    """Level and status of each exposure, in order."""
    library = SkyMatchStep.call(inputs, **options)
    with library:
        return list(
            library.map_function(lambda m, _: (m.meta.background.level, m.meta.cal_step.skymatch), modify=False)
        )


# -------------------------------------------------------------------------------------------------- what a file holds


def without_wcs(model):
    model.meta.wcs = None


def test_no_wcs(files, offline):
    spoil(files[1], without_wcs)
    has(refused(association(files), offline), SECOND, "no WCS", "assign_wcs")


def test_no_wcs_in_memory(offline):
    models = [image_model(exposure_name(n), np.ones((SIDE, SIDE)), None) for n in (1, 2)]
    has(refused(models, offline), FIRST, "no WCS", "assign_wcs")


def test_three_dimensions(files, offline):
    cube = datamodels.CubeModel(np.ones((2, SIDE, SIDE), np.float32))
    with datamodels.open(files[1]) as model:
        cube.update(model)
        cube.meta.wcs = model.meta.wcs
    cube.meta.filename = SECOND
    cube.save(files[1])
    has(refused(association(files), offline), SECOND, "2-D", "CubeModel")


def test_a_member_that_is_no_image(files, offline):
    table = datamodels.SpecModel()
    table.meta.filename = SECOND
    table.save(files[1])
    has(refused(association(files), offline), SECOND, "2-D", "SpecModel")


def test_a_member_that_is_no_jwst_file(files, offline):
    files[1].write_text("not FITS\n")
    has(refused(association(files), offline, Exception), SECOND)


def test_a_catalogue_among_the_members(files, offline):
    catalogue = files[0].with_name("cat.ecsv")
    Table({"x": [1.0]}).write(catalogue)
    has(refused(association([*files, catalogue]), offline, Exception), "cat.ecsv")


# astropy warns before it fails; the user sees both.
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_truncated_file(files, offline, part):
    content = files[1].read_bytes()
    files[1].write_bytes(content[: int(part * len(content))])
    has(refused(association(files), offline, Exception), SECOND)


def test_empty_file(files, offline):
    files[1].write_bytes(b"")
    has(refused(association(files), offline, Exception), SECOND)


@pytest.mark.parametrize("spoilt", ["flags", "NaN"])
def test_all_pixels_bad(files, caplog, spoilt):
    """A status: the others are matched."""

    def change(model):
        if spoilt == "flags":
            model.dq[:] = 1
        else:
            model.data[:] = np.nan

    spoil(files[2], change)
    found = accepted(association(files))
    assert found == [(0, "COMPLETE"), (pytest.approx(2, abs=1e-6), "COMPLETE"), (None, "SKIPPED")]
    (line,) = [line for line in caplog.messages if "could not be matched" in line]
    has(line, THIRD, "no good pixels")


@pytest.mark.parametrize("method", few(2, ["match", "local", "global", "global+match"]))
def test_all_pixels_of_all_bad(files, method):
    for file in files:
        spoil(file, lambda model: model.dq.fill(1))
    assert accepted(association(files), skymethod=method) == [(None, "SKIPPED")] * 3


def test_one_exposure(files, caplog):
    assert accepted(str(files[0])) == [(None, "SKIPPED")]
    assert any(FIRST in line and "no overlap" in line for line in caplog.messages)
    assert accepted(str(files[0]), skymethod="global+match") == [(1, "COMPLETE")]


def test_no_overlaps_at_all(tmp_path, caplog):
    wcs = [*tile_wcs((1, 1)), *tile_wcs((1, 1), center=FAR), *tile_wcs((1, 1), center=(10.0, 80.0))]
    files = constant_files(tmp_path, [(wcs, (1, 2, 3))])
    assert accepted(association(files)) == [(None, "SKIPPED")] * 3
    assert sum("no overlap" in line for line in caplog.messages) == 3
    assert accepted(association(files), skymethod="local") == [(n, "COMPLETE") for n in (1, 2, 3)]


@pytest.mark.parametrize("bad", few(1, [np.nan, np.inf, -np.inf]))
def test_values_that_are_not_finite(files, bad):
    def change(model):
        model.data[np.random.default_rng(2).random(model.shape) < 0.3] = bad

    for file in files:
        spoil(file, change)
    levels, status = zip(*accepted(association(files), skystat="mean", nclip=0), strict=True)
    assert status == ("COMPLETE",) * 3
    np.testing.assert_allclose(levels, (0, 2, 6), atol=1e-6)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8"])
def test_integers_on_disk(files, kind):
    def change(hdus):
        hdus["SCI"].data = (10 * hdus["SCI"].data).astype(kind)

    for file in files:
        rewrite(file, change)
    library = SkyMatchStep.call(association(files), subtract=True, zero_point="mean")
    with library:
        found = list(library.map_function(lambda m, _: (m.meta.background.level, m.data.copy()), modify=False))
    np.testing.assert_allclose([level for level, _ in found], np.array((-8, -2, 10)) * 10 / 3, atol=1e-5)
    for _, data in found:
        np.testing.assert_allclose(data, 110 / 3, atol=1e-5)


@pytest.mark.parametrize("kind", few(2, [">f4", ">f8", ">i2", "f8", "f2"]))
def test_kinds_of_numbers_in_memory(kind):
    models = []
    for n, (wcs, level) in enumerate(zip(tile_wcs((1, 2)), (10, 30), strict=True), 1):
        model = image_model(exposure_name(n), np.ones((SIDE, SIDE)), wcs)
        model.data = np.full((SIDE, SIDE), level, dtype=kind)
        models.append(model)
    np.testing.assert_allclose([level for level, _ in accepted(models)], (0, 20), atol=1e-6)


def test_wcs_that_is_not_finite(files, offline):
    def change(model):
        model.meta.wcs = tile_wcs((1, 1), center=(np.nan, 0.0))[0]

    models = [datamodels.open(file) for file in files]
    change(models[1])
    has(refused(models, offline), SECOND, "not finite", "assign_wcs")


def test_flags_of_another_shape(files, offline):
    def change(hdus):
        hdus["DQ"].data = hdus["DQ"].data[:-1]

    rewrite(files[1], change)
    has(refused(association(files), offline), SECOND, f"({SIDE - 1}, {SIDE})", f"({SIDE}, {SIDE})")


# -------------------------------------------------------------------------------------------------- background metadata


@pytest.mark.parametrize(
    ("level", "subtracted", "says"),
    [
        (1.5, None, ("'subtracted' property is undefined", "BKGSUB")),
        (None, True, ("'level' property is undefined", "BKGLEVEL")),
        (None, False, ("'level' property is undefined", "BKGLEVEL")),
        (1.5, False, ("inconsistent with background info", "subtract=False")),
    ],
)
@pytest.mark.parametrize("method", few(1, ["match", "user", "table"]))
def test_inconsistent_background(files, offline, tmp_path, level, subtracted, says, method):
    def change(model):
        model.meta.background.level = level
        model.meta.background.subtracted = subtracted

    given = tmp_path / "levels.txt"
    options = {}
    if method == "user":
        given.write_text("".join(f"{file.name} 1.0\n" for file in files))
        options = {"skymethod": "user", "skylist": str(given)}
    elif method == "table":
        SkyMatchStep.call(association(files), save_table=str(given))
        options = {"apply_table": str(given)}
    spoil(files[1], change)
    has(refused(association(files), offline, **options), SECOND, *says)


def test_levels_that_are_subtracted_already(files, offline, tmp_path):
    SkyMatchStep.call(association(files), subtract=True, save_results=True, output_dir=str(tmp_path))
    done = [tmp_path / file.name.replace("_cal", "_skymatch") for file in files]
    message = refused(done, offline, subtract=False)
    has(message, done[0].name, "subtract=False", "BKGSUB=True", "undo")


# -------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("in_memory", [True, False])
def test_missing_member(files, offline, in_memory):
    asn = association(files)
    files[1].unlink()
    message = refused(asn, offline, FileNotFoundError, in_memory=in_memory)
    has(message, SECOND, "1 of 3", "not exist", "relative to its folder")


def test_missing_file_of_a_list(files, offline):
    files[1].unlink()
    has(refused([str(file) for file in files], offline, FileNotFoundError), SECOND, "1 of 3", "not exist")


def test_a_pattern(offline):
    has(refused(["x*_cal.fits"], offline, FileNotFoundError), "x*_cal.fits", "for the shell")


@pytest.mark.parametrize("given", [5, {1, 2}, object()])
def test_what_is_no_exposure(offline, given):
    has(refused(given, offline, TypeError), type(given).__name__, "give an association, files, models or a library")


@pytest.mark.parametrize("member", [5, None, {}, ["x_cal.fits"]])
def test_a_list_of_what_is_no_exposure(files, offline, member):
    message = refused([str(files[0]), member], offline, TypeError)
    has(message, f"there are no exposures in {type(member).__name__}", "give an association")


@pytest.mark.parametrize("name", ["levels.fits", "levels.FITS", "levels.csv"])
def test_a_table_of_another_format(files, offline, name):
    has(refused(association(files), offline, save_table=str(offline / name)), name, "ECSV", "end in .ecsv")


@pytest.mark.parametrize("name", ["nothing.fits", "nothing.json"])
def test_missing_input(offline, name):
    has(refused(name, offline, FileNotFoundError), name, "not exist")


def test_association_that_is_no_json(offline):
    Path("broken.json").write_text("{ no")
    has(refused("broken.json", offline, Exception), "broken.json")


@pytest.mark.parametrize("products", [[], [{"name": "mosaic", "members": []}]])
def test_association_without_members(offline, products, files):
    asn = json.loads(association(files).read_text())
    asn["products"] = products
    Path("empty.json").write_text(json.dumps(asn))
    has(refused("empty.json", offline, Exception), "empty.json")


@pytest.mark.parametrize("inputs", [[], (), None, 3.5])
def test_no_input(offline, inputs):
    assert refused(inputs, offline, Exception)


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


@pytest.mark.parametrize("container", [list, ModelContainer, ModelLibrary])
def test_models_in_memory_may_share_a_name(files, caplog, container):
    models = [datamodels.open(file) for file in files]
    for model in models:
        model.meta.filename = "same_cal.fits"
    found = accepted(container(models), save_table="levels.ecsv")
    np.testing.assert_allclose([level for level, _ in found], (0, 2, 6), atol=1e-6)
    assert list(Table.read("levels.ecsv")["name"]) == [f"same_cal.fits[{n}]" for n in (1, 2, 3)]
    assert "Several models have the same name: same_cal.fits; they are taken for different exposures" in caplog.text


def test_exposures_in_different_units(files, offline):
    spoil(files[0], lambda model: setattr(model.meta, "bunit_data", "MJy/sr"))
    spoil(files[1], lambda model: setattr(model.meta, "bunit_data", "DN/s"))
    has(refused(association(files), offline), SECOND, "DN/s", "MJy/sr")


def test_files_of_one_name_would_replace_each_other(files, offline):
    elsewhere = offline.parent / "elsewhere"
    elsewhere.mkdir()
    other = shutil.copy(files[1], elsewhere / files[0].name)
    has(refused([str(files[0]), str(other), str(files[2])], offline), files[0].name, "replace each other", "rename")


# -------------------------------------------------------------------------------------------------- lists of levels

LISTS = {
    "missing entry": ((1, 2), ("no level is given", THIRD)),
    "duplicate": ((1, 2, 3, 2), ("multiple times", exposure_name(2), "line 4")),
    "too many": ((1, 2, 3, 4), ("(4)", "(3)")),
    "another name": ((1, 2, 4), ("no level is given", THIRD)),
    "single entry": ((1,), ("no level is given", SECOND, THIRD)),
    "empty": ((), ("is empty",)),
}


@pytest.mark.parametrize("case", few(3, LISTS))
def test_skylist(files, offline, tmp_path, case):
    numbers, says = LISTS[case]
    skylist = tmp_path / "sky.txt"
    skylist.write_text("".join(f"{exposure_name(n)}_cal.fits {n}.5\n" for n in numbers))
    has(refused(association(files), offline, skymethod="user", skylist=str(skylist)), "sky.txt", *says)


@pytest.mark.parametrize("value", ["bright", "", "nan", "inf", "1.0 2.0", "1,5"])
def test_skylist_with_a_line_that_is_no_level(files, offline, tmp_path, value):
    skylist = tmp_path / "sky.txt"
    lines = [f"{FIRST} 1.5", "# comment", f"{SECOND} {value}", f"{THIRD} 2.5"]
    skylist.write_text("\n".join(lines))
    message = refused(association(files), offline, skymethod="user", skylist=str(skylist))
    has(message, "sky.txt, line 3", SECOND, "number")


def test_skylist_of_one_for_one(files, tmp_path):
    """numpy reads a single line as a scalar, over which jwst's step stumbles."""
    skylist = tmp_path / "sky.txt"
    skylist.write_text(f"{FIRST} 1.5\n")
    assert accepted(str(files[0]), skymethod="user", skylist=str(skylist)) == [(1.5, "COMPLETE")]


def test_missing_skylist(files, offline):
    message = refused(association(files), offline, FileNotFoundError, skymethod="user", skylist="no.txt")
    has(message, "no.txt")


def test_table_without_one_of_the_exposures(files, offline, tmp_path):
    table = tmp_path / "levels.ecsv"
    SkyMatchStep.call(association(files[:2], name="two.json"), save_table=str(table))
    has(refused(association(files), offline, apply_table=str(table)), THIRD, "levels.ecsv", "no level")


@pytest.mark.parametrize("kind", ["missing", "no table", "other columns"])
def test_table_that_cannot_be_read(files, offline, tmp_path, kind):
    table = tmp_path / "levels.ecsv"
    if kind == "no table":
        table.write_text("hello\n")
    elif kind == "other columns":
        Table({"x": [1.0]}).write(table)
    error = FileNotFoundError if kind == "missing" else ValueError
    has(refused(association(files), offline, error, apply_table=str(table)), "levels.ecsv")


# -------------------------------------------------------------------------------------------------- masks, regions


def mask_files(folder, shapes):
    paths = [folder / f"mask{n}.fits" for n in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        fits.writeto(path, np.ones(shape, np.uint8))
    return [str(path) for path in paths]


def test_mask_of_another_shape(files, offline, tmp_path):
    masks = mask_files(tmp_path, [(SIDE, SIDE), (SIDE, SIDE + 1), (SIDE, SIDE)])
    message = refused(association(files), offline, masks=masks)
    has(message, "mask1.fits", f"({SIDE}, {SIDE + 1})", f"({SIDE}, {SIDE})")


def test_too_few_masks(files, offline, tmp_path):
    masks = mask_files(tmp_path, [(SIDE, SIDE)] * 2)
    has(refused(association(files), offline, masks=masks), "2 files for 3 exposures")


def test_missing_mask(files, offline, tmp_path):
    masks = [*mask_files(tmp_path, [(SIDE, SIDE)] * 2), "none.fits"]
    has(refused(association(files), offline, FileNotFoundError, masks=masks), "none.fits", "not exist")


def test_no_mask_of_that_suffix(files, offline):
    has(refused(association(files), offline, masks=["typo"]), "*_typo.fits", "masks='typo'")


def test_mask_without_an_image(files, offline, tmp_path):
    masks = mask_files(tmp_path, [(SIDE, SIDE)] * 3)
    fits.PrimaryHDU().writeto(masks[2], overwrite=True)
    has(refused(association(files), offline, masks=masks), "mask2.fits", "no image")


def test_mask_that_is_no_fits_file(files, offline, tmp_path):
    masks = mask_files(tmp_path, [(SIDE, SIDE)] * 3)
    Path(masks[2]).write_text("hello\n")
    has(refused(association(files), offline, Exception, masks=masks), "mask2.fits")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, FileNotFoundError, ("not exist",)),
        ("", ValueError, ("no region",)),
        ("icrs\n# nothing\n", ValueError, ("no region",)),
        ("image\ncircle(10,10,5)\n", ValueError, ("pixels", "sky coordinates")),
    ],
)
def test_regions(files, offline, tmp_path, text, error, says):
    path = tmp_path / "sky.reg"
    if text is not None:
        path.write_text(text)
    has(refused(association(files), offline, error, regions=str(path)), "sky.reg", *says)


def test_regions_that_lie_elsewhere(files, offline, tmp_path):
    path = tmp_path / "sky.reg"
    path.write_text('icrs\ncircle(10.0,10.0,5")\n')
    has(refused(association(files), offline, regions=str(path)), "sky.reg", "leave no good pixel in any exposure")


# -------------------------------------------------------------------------------------------------- options

CONFLICTS = {
    "unknown flag": ({"dqbits": "~DO_NOT_USE+GOOOD"}, ("GOOOD", "dqbits")),
    "flags of two kinds": ({"dqbits": "1+DO_NOT_USE"}, ("dqbits", "1+DO_NOT_USE")),
    "user without a list": ({"skymethod": "user"}, ("skylist",)),
    "list without user": ({"skylist": "sky.txt"}, ("skylist", "user")),
    "two sources": ({"skymethod": "user", "skylist": "a", "apply_table": "b"}, ("skylist", "apply_table")),
    "errors of nothing": ({"subtract": False, "propagate_errors": True}, ("propagate_errors", "subtract=True")),
    "errors of the user": (
        {"skymethod": "user", "skylist": "a", "propagate_errors": True},
        ("propagate_errors", "user"),
    ),
    "limits": ({"lower": 2.0, "upper": 1.0}, ("lower (2.0)", "upper (1.0)")),
    "zero point of local": ({"skymethod": "local", "zero_point": "mean"}, ("zero_point", "'local'", "'auto'")),
    "zero point of global+match": ({"skymethod": "global+match", "zero_point": "mean"}, ("zero_point", "'match'")),
    "zero point of nothing": ({"zero_point": "jw09"}, ("'jw09'", "zero_point", FIRST)),
    "no background": ({"zero_point": "background"}, ("zero_point='background'", "exptype")),
    "no bins": ({"binwidth": 0.0}, ("binwidth", "positive")),
    "no clipping limit": ({"lsigma": 0.0}, ("lsigma", "positive")),
    "no steps": ({"stepsize": 0}, ("stepsize", "at least 1")),
    "unknown method": ({"skymethod": "best"}, ("skymethod", "best")),
    "unknown statistic": ({"skystat": "max"}, ("skystat", "max")),
    "negative clips": ({"nclip": -1}, ("nclip",)),
}


UNREAD = ("user without a list", "list without user", "two sources", "errors of nothing", "errors of the user")
"""Those that are refused before a file is read: they take no time."""


@pytest.mark.parametrize(
    "case", [case if case in UNREAD else some for case, some in zip(CONFLICTS, few(6, CONFLICTS), strict=True)]
)
def test_options(files, offline, case):
    options, says = CONFLICTS[case]
    has(refused(association(files), offline, Exception, **options), *says)


@pytest.mark.parametrize(("step", "options"), [(SkyMatchStep, {"stepsize": 0}), (LevelMatchStep, {"sigma": -1.0})])
def test_options_are_refused_before_anything_is_opened(files, monkeypatch, step, options):
    """Opening thousands of exposures takes long."""
    monkeypatch.setattr("bkgmatch.steps.inputs.ModelLibrary", None)
    with pytest.raises(ValueError, match=next(iter(options))):
        step.call(association(files), **options)


def test_table_cannot_be_saved(files, offline):
    message = refused(association(files), offline, Exception, save_table=str(offline / "no" / "levels.ecsv"))
    has(message, "levels.ecsv")


def test_a_failure_after_the_levels_are_known_changes_no_models(files, offline):
    """Models of a caller stay as they were, whatever goes wrong."""
    models = [datamodels.open(file) for file in files]
    before = [model.data.copy() for model in models]
    refused(models, offline, Exception, save_table=str(offline / "no" / "levels.ecsv"))
    for model, data in zip(models, before, strict=True):
        np.testing.assert_array_equal(model.data, data)
        assert model.meta.background.level is None


def test_unknown_number_of_cores(files, offline):
    has(refused(association(files), offline, maximum_cores="many"), "maximum_cores", "many", "half")
