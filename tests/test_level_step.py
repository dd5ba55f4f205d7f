"""LevelMatchStep on real files: levels and planes, tiles and parts, inputs, outputs, records."""

import re
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import (
    SIDE,
    association,
    described,
    digest,
    exposure_name,
    image_model,
    miri_halves,
    spoil,
    tile_wcs,
    write,
)
from common import few, slow
from conftest import FAR
from forks import quick_strun, slow_strun
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.skymatch import SkyMatchStep as JwstSkyMatchStep
from jwst.tweakreg.utils import adjust_wcs
from stdatamodels.jwst import datamodels
from stpipe import entry_points

from bkgmatch import LevelMatchStep, SkyMatchStep
from bkgmatch.cli import main
from bkgmatch.detectors import pixels_on_plane
from bkgmatch.images import CORNER_CARDS
from bkgmatch.options import LevelMatchOptions
from bkgmatch.planes import Plane
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.cards import drop_cards
from bkgmatch.steps.models import LevelRecord, undo
from bkgmatch.steps.plane_record import PlaneRecord
from bkgmatch.steps.simulated import as_model, write_exposures

pytestmark = pytest.mark.usefixtures("offline")

FREE = {"reference": "mean", "do_local_subtraction": False}  # nothing but what overlaps determine
LEVEL_CARDS = {"S_LVLMAT", "LVLMATCH", "LVLM_SIG", "LVLM_SUB"}
PLANE_CARDS = {
    "S_LVLMAT", "LVLM_A", "LVLM_B", "LVLM_C", "LVLM_RA", "LVLM_DEC", "LVLM_SIG", "LVLM_SUB", *CORNER_CARDS,
}  # fmt: skip
RECORD = LEVEL_CARDS | PLANE_CARDS
STRIP = {"tiles": (1, 2), "dithers": 2, "overlap": 0.3, "level_range": (1.0, 3.0)}


def run(inputs, **options):
    return LevelMatchStep.call(inputs, **options)


def each(library, look):
    """What a function finds in each model."""
    with library:
        return list(library.map_function(lambda model, _: look(model), modify=False))


def arrays(library, name="data"):
    return each(library, lambda model: np.array(getattr(model, name)))


def names(library):
    return each(library, lambda model: model.meta.filename)


def cards(path):
    """Our cards in a saved file; none of them twice."""
    with fits.open(path) as hdus:
        header = hdus[0].header
        found = {key: header[key] for key in header if key[:4] in ("LVLM", "LVLY", "S_LV")}
        assert [header.count(key) for key in found] == [1] * len(found)
        return found


def opened(files):
    return [datamodels.open(file) for file in files]


def results(files, folder):
    return [folder / file.name.replace("_cal", "_levelmatch") for file in files]


def table(path="levels.ecsv"):
    return Table.read(path)


def rows(path="levels.ecsv"):
    return {str(row["name"]): row for row in table(path)}


def free_of_mean(values):
    return np.asarray(values) - np.mean(values)


def given_in(files, array="data"):
    return [np.array(getattr(model, array)) for model in opened(files)]


NEAR = 0.004  # what is left of the noise of these


def level_files(folder, pieces, *, observations=None):
    """Files of a constant and a little noise each; a tile each, or of given observations."""
    where = [(wcs, level) for tiles, levels in pieces for wcs, level in zip(tiles, levels, strict=True)]
    rng = np.random.default_rng(8)
    models = []
    for n, (wcs, level) in enumerate(where, 1):
        name = exposure_name(n, observation=observations[n - 1] if observations else n)
        image = rng.normal(level, 0.01, (SIDE, SIDE))
        models.append(image_model(name, image, wcs, err=np.full(image.shape, 0.01, np.float32)))
        models[-1].meta.bunit_data = "MJy/sr"
    return write(models, folder)


def middles(library):
    return np.nanmedian(arrays(library), axis=(1, 2))


# -------------------------------------------------------------------------------------------------- simulated files


@pytest.fixture(scope="module")
def strip():
    """Two tiles of two dithers, with a nebula, stars, cosmic rays and bad pixels."""
    return simulate_mosaic(rng=np.random.default_rng(11), binning=32, **STRIP)


@pytest.fixture(scope="module")
def strip_files(strip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strip")
    write_exposures(strip, folder)
    return [folder / f"{e.name}_cal.fits" for e in strip]


@pytest.fixture(scope="module")
def truth(strip):
    return np.array([e.level for e in strip])


@pytest.fixture(scope="module")
def tilted():
    return simulate_mosaic(rng=np.random.default_rng(12), binning=16, tilt=0.1, **STRIP)


@pytest.fixture(scope="module")
def tilted_files(tilted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tilted")
    write_exposures(tilted, folder)
    return [folder / f"{e.name}_cal.fits" for e in tilted]


PLANES = {f"fit_type_{name}": "level+slope" for name in ("dithers", "mosaic_tiles")}


@pytest.fixture(scope="module")
def of_association(strip_files, tmp_path_factory):
    """Table and arrays that the step makes of the association, to compare others with."""
    path = tmp_path_factory.mktemp("reference") / "levels.ecsv"
    library = run(association(strip_files), save_table=str(path))
    return table(path), arrays(library)


# -------------------------------------------------------------------------------------------------- levels and planes


def test_levels_are_right(strip_files, truth):
    library = run(association(strip_files), save_table="levels.ecsv", **FREE)
    found = [rows()[file.name] for file in strip_files]
    pulls = (free_of_mean([row["level"] for row in found]) - free_of_mean(truth)) / [row["sigma"] for row in found]
    assert np.abs(pulls).max() < 4.5
    assert max(row["sigma"] for row in found) < 0.002, "errors that are far too large hide everything"
    before = given_in(strip_files)
    for now, then, row in zip(arrays(library), before, found, strict=True):
        np.testing.assert_array_equal(now, (then.astype(float) - row["level"]).astype(np.float32))
    assert set(each(library, lambda m: m.meta.cal_step.level_match)) == {"COMPLETE"}


def removed_function(exposure, before, after, nodes):
    """Background that was removed, at some nodes: east, north (arcsec from a common point), value."""
    rows_, columns = nodes
    east, north = pixels_on_plane(exposure.wcs, before.shape, 150.0, 2.2)
    gone = (before.astype(float) - after)[rows_, columns]
    return np.column_stack([east[rows_, columns], north[rows_, columns], gone])


@pytest.mark.parametrize(("passes", "spelling"), [("sequence", "level+slope"), ("joint", "level+match")])
def test_planes_are_right(tilted, tilted_files, passes, spelling):
    """What is removed is the truth, but for one plane that is common to all exposures."""
    options = {name: spelling for name in PLANES}
    library = run(tilted_files, save_table="levels.ecsv", passes=passes, **options, **FREE)
    half, differences, sizes = 2.0 * SIDE, [], []
    for exposure, old, new in zip(tilted, given_in(tilted_files), arrays(library), strict=True):
        finite = np.argwhere(np.isfinite(old))[:: old.size // 50].T
        gone = removed_function(exposure, old, new, finite)
        true = exposure.background(*exposure.wcs(*finite[::-1]))
        differences.append(np.column_stack([gone[:, :2], gone[:, 2] - true]))
        row = rows()[f"{exposure.name}_cal.fits"]
        reach = half * exposure.detector.scale * 16 / 2
        sizes.append(np.hypot(row["sigma"], reach * np.hypot(row["sigma_east"], row["sigma_north"])))
    every = np.concatenate(differences)
    terms = np.column_stack([np.ones(len(every)), every[:, :2]])
    common = np.linalg.lstsq(terms, every[:, 2], rcond=None)[0]
    left = np.abs(every[:, 2] - terms @ common).reshape(len(tilted), -1).max(axis=1)
    assert (left < 4.5 * np.array(sizes)).all(), left / sizes
    assert max(sizes) < 0.02
    assert np.ptp([row["slope_east"] for row in rows().values()]) * 60 > 0.05


def test_constants_do_not_fit_tilted_backgrounds(tilted_files):
    """The check of the test above: with constants it would fail."""
    run(tilted_files, save_table="levels.ecsv", **FREE)
    assert (table()["slope_east"] == 0).all()
    assert np.abs(Table.read("levels_pairs.ecsv")["residual"]).max() > 0.02


def test_the_zero_point_is_the_background_of_the_reference(tmp_path):
    files = level_files(tmp_path / "in", [(tile_wcs((1, 3)), (10, 14, 11.5))])
    middle = exposure_name(2, observation=2)
    for name in (middle, f"{middle}_cal.fits", f"{middle}_rate.fits", "auto", "most_overlaps"):
        np.testing.assert_allclose(middles(run(files, reference=name)), 0, atol=NEAR)
    left = middles(run(files, reference=middle, do_local_subtraction=False))
    np.testing.assert_allclose(left, 14, atol=NEAR)
    left = middles(run(files, **FREE))
    np.testing.assert_allclose(left, 35.5 / 3, atol=NEAR)


# -------------------------------------------------------------------------------------------------- inputs

KINDS = {
    "association as text": lambda files: str(association(files)),
    "list of paths": list,
    "list of models": opened,
    "container": lambda files: ModelContainer(opened(files)),
    "library in memory": lambda files: ModelLibrary(association(files)),
    "library on disk": lambda files: ModelLibrary(association(files), on_disk=True),
    "library of models": lambda files: ModelLibrary(opened(files)),
    "in_memory=False": lambda files: association(files),
    "another order": lambda files: [files[i] for i in (3, 0, 2, 1)],
    "two threads": lambda files: association(files),
}
KIND_OPTIONS = {"in_memory=False": {"in_memory": False}, "two threads": {"maximum_cores": "2"}}


@pytest.mark.parametrize("kind", few(2, KINDS))
def test_each_kind_of_input_gives_the_same(strip_files, of_association, kind):
    before = digest(strip_files)
    given = KINDS[kind](strip_files)
    library = run(given, save_table="levels.ecsv", **KIND_OPTIONS.get(kind, {}))
    assert isinstance(library, ModelLibrary)
    assert library.on_disk == (kind in ("library on disk", "in_memory=False"))
    assert (library is given) == isinstance(given, ModelLibrary)
    expected, data = of_association
    assert list(table()["name"]) == list(expected["name"])
    for column in ("level", "sigma", "ra", "dec"):
        np.testing.assert_allclose(table()[column], expected[column], rtol=1e-10, atol=1e-10)
    place = {file.name: i for i, file in enumerate(strip_files)}
    for name, ours in zip(names(library), arrays(library), strict=True):
        np.testing.assert_allclose(ours, data[place[name]], rtol=0, atol=2e-7)
    assert digest(strip_files) == before


def test_several_files_without_a_list(strip_files, of_association):
    library = LevelMatchStep().run(*map(str, strip_files))
    for ours, theirs in zip(arrays(library), of_association[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_models_in_memory_are_not_changed(strip_files):
    models = opened(strip_files[:2])
    before = [(m.data.copy(), m.err.copy(), m.dq.copy(), m.to_flat_dict(include_arrays=False)) for m in models]
    for given in (models, ModelContainer(models)):
        run(given)
    for model, (data, err, dq, meta) in zip(models, before, strict=True):
        for now, then in ((model.data, data), (model.err, err), (model.dq, dq)):
            np.testing.assert_array_equal(now, then)
        assert model.to_flat_dict(include_arrays=False) == meta


# -------------------------------------------------------------------------------------------------- pixels


@pytest.fixture
def spoilt(strip):
    """Models with blank and flagged pixels: [3:9] never saw the sky, [12] good zeros, [14] flagged values, [20] NaN."""
    models = [as_model(e, number=i) for i, e in enumerate(strip)]
    for model in models:
        model.data[3:9], model.dq[3:9] = 0, 513
        model.data[5] = -0.0
        model.data[12] = 0
        model.dq[12] &= ~np.uint32(513)
        model.dq[14] |= 1
        model.data[20] = np.nan
        model.var_poisson = model.err / 7
        model.var_flat = model.err / 9
    return models


@pytest.mark.parametrize("options", [{}, PLANES], ids=["levels", "planes"])
def test_pixels(spoilt, options):
    given = [model.copy() for model in spoilt]
    library = run(ModelLibrary(spoilt), **options)
    for model, old in zip(each(library, lambda m: m), given, strict=True):
        assert (model.data[3:9] == 0).all()
        np.testing.assert_array_equal(np.isnan(model.data), np.isnan(old.data))
        gone = old.data.astype(float) - model.data
        assert (np.abs(gone[12]) > 0.01).all(), "a zero that is good is a value like another"
        np.testing.assert_allclose(gone[14][np.isfinite(gone[14])].mean(), gone[15:19].mean(where=old.dq[15:19] == 0),
                                   rtol=0.2)  # fmt: skip
        for name in ("err", "dq", "var_rnoise", "var_poisson", "var_flat"):
            np.testing.assert_array_equal(getattr(model, name), getattr(old, name), err_msg=name)
        assert model.data.dtype == np.float32


def test_flags(tmp_path):
    """Half of each exposure is 100 too high, and flagged with a bit that DQ's lowest byte does not hold."""
    models = []
    for n, (wcs, level) in enumerate(zip(tile_wcs((1, 2), overlap=0.5), (10, 14), strict=True), 1):
        dq = np.zeros((SIDE, SIDE), np.uint32)
        dq[: SIDE // 2] = 512 if n == 1 else 2**30
        image = np.where(dq > 0, 100, 0) * n + np.random.default_rng(n).normal(level, 0.01, dq.shape)
        models.append(image_model(exposure_name(n), image, wcs, dq=dq, err=np.full(dq.shape, 0.01, np.float32)))
    files = write(models, tmp_path)

    def apart(dqbits):
        run(files, dqbits=dqbits, save_table="levels.ecsv", **FREE)
        return float(np.diff(table()["level"])[0])

    assert apart("~NON_SCIENCE+OTHER_BAD_PIXEL") == pytest.approx(4, abs=NEAR)
    assert apart("0") == pytest.approx(4, abs=NEAR)
    assert abs(apart("") - 4) > 1
    assert abs(apart("~4") - 4) > 1


# -------------------------------------------------------------------------------------------------- records of levels


def test_without_subtraction_nothing_but_records(strip_files, tmp_path, of_association):
    library = run(association(strip_files), subtract=False, save_results=True, output_dir=str(tmp_path))
    for now, then in zip(arrays(library), given_in(strip_files), strict=True):
        np.testing.assert_array_equal(now, then)
    levels = dict(zip(of_association[0]["name"], of_association[0]["level"], strict=True))
    for file, result in zip(strip_files, results(strip_files, tmp_path), strict=True):
        assert set(cards(result)) == LEVEL_CARDS
        assert cards(result)["LVLM_SUB"] is False
        assert cards(result)["LVLMATCH"] == pytest.approx(levels[file.name], rel=1e-12)
    again = run(results(strip_files, tmp_path), subtract=True)
    for now, then in zip(arrays(again), of_association[1], strict=True):
        np.testing.assert_array_equal(now, then)
    assert set(each(again, lambda m: dict((c[0], c[1]) for c in m.extra_fits.PRIMARY.header)["LVLM_SUB"])) == {True}


@pytest.mark.parametrize("subtract", few(1, [False, True]))
def test_sky_levels_that_are_not_subtracted_are_measured_less(tmp_path, subtract):
    """Data are sky + 10, 14, 11.5, with recorded levels 1, 9, 5: what is matched is 9, 5, 6.5."""
    files = level_files(tmp_path / "in", [(tile_wcs((1, 3)), (10, 14, 11.5))])
    for file, level in zip(files, (1.0, 9.0, 5.0), strict=True):

        def change(model, level=level):
            model.meta.background = {"level": level, "subtracted": False, "method": "match"}

        spoil(file, change)
    library = run(files, subtract=subtract, save_table="levels.ecsv", **FREE)
    np.testing.assert_allclose(table()["level"], free_of_mean((9, 5, 6.5)), atol=NEAR)
    kept = each(library, lambda m: (m.meta.background.level, m.meta.background.subtracted, m.meta.background.method))
    assert kept == [(level, False, "match") for level in (1.0, 9.0, 5.0)]
    left = middles(library) - (1, 9, 5)
    np.testing.assert_allclose(left, np.mean((9, 5, 6.5)) if subtract else (9, 5, 6.5), atol=NEAR)


def test_sky_levels_that_are_subtracted_are_left_alone(tmp_path):
    files = level_files(tmp_path / "in", [(tile_wcs((1, 3)), (10, 14, 11.5))])
    for file in files:
        spoil(file, lambda m: setattr(m.meta, "background", {"level": 3.5, "subtracted": True, "method": "local"}))
    library = run(files, save_table="levels.ecsv", **FREE)
    np.testing.assert_allclose(table()["level"], free_of_mean((10, 14, 11.5)), atol=NEAR)
    kept = each(library, lambda m: (m.meta.background.level, m.meta.background.subtracted, m.meta.background.method))
    assert kept == [(3.5, True, "local")] * 3


@pytest.mark.parametrize(("step", "subtract"), few(1, [(JwstSkyMatchStep, False), (SkyMatchStep, True)]))
def test_skymatch_afterwards(strip_files, tmp_path, step, subtract):
    run(association(strip_files), save_results=True, output_dir=str(tmp_path))
    matched = results(strip_files, tmp_path)
    for file in matched:
        with fits.open(file) as hdus:
            assert not {"BKGMETH", "BKGLEVEL", "BKGSUB"} & set(hdus[0].header)
    library = step(**({"subtract": True} if subtract else {})).run([str(file) for file in matched])
    found = each(library, lambda m: (m.meta.background.level, m.meta.background.subtracted))
    assert np.isfinite([level for level, _ in found]).all()
    assert {done for _, done in found} == {subtract}


# -------------------------------------------------------------------------------------------------- records, undo


@pytest.mark.parametrize("options", few(1, [{}, PLANES]), ids=["levels", "planes"])
def test_cards_survive_saving_opening_and_saving_again(tilted_files, tmp_path, options):
    run(tilted_files, save_table="levels.ecsv", save_results=True, output_dir=str(tmp_path), **options)
    for file, result in zip(tilted_files, results(tilted_files, tmp_path), strict=True):
        found, row = cards(result), rows()[file.name]
        assert set(found) == (PLANE_CARDS if options else LEVEL_CARDS)
        assert found["S_LVLMAT"] == "COMPLETE"
        assert found["LVLM_SUB"] is True
        assert found["LVLM_SIG"] == pytest.approx(row["sigma"], rel=1e-12)
        if options:
            expected = [row[name] for name in ("slope_east", "slope_north", "level", "ra", "dec")]
            values = [found[f"LVLM_{name}"] for name in ("A", "B", "C", "RA", "DEC")]
            np.testing.assert_allclose(values, expected, rtol=1e-11)
        else:
            assert found["LVLMATCH"] == pytest.approx(row["level"], rel=1e-12)
        with datamodels.open(result) as model:
            assert model.meta.cal_step.level_match == "COMPLETE"
            model.copy().save(tmp_path / "again.fits")
        assert cards(tmp_path / "again.fits") == found
        with fits.open(result) as hdus, fits.open(file) as old:
            assert [hdu.name for hdu in hdus] == [hdu.name for hdu in old]


def assert_undone(model, old, level):
    """Two roundings, each half of the last digit of float32 at the size of the data or of what is left."""
    allowed = np.spacing((np.abs(old.data) + np.abs(level)).astype(np.float32))
    finite = np.isfinite(old.data)
    assert (np.abs(model.data.astype(float) - old.data)[finite] <= allowed[finite]).all()
    np.testing.assert_array_equal(np.isnan(model.data), np.isnan(old.data))
    np.testing.assert_array_equal(model.data[old.data == 0], 0)


@pytest.mark.parametrize("reopened", few(1, [False, True]))
@pytest.mark.parametrize("options", [{}, PLANES], ids=["levels", "planes"])
def test_undo(spoilt, tmp_path, options, reopened):
    given = [model.copy() for model in spoilt]
    for old in given:  # good zeros would come back as a rounding error
        old.data[12] = 0.25
    library = run(given, save_results=True, output_dir=str(tmp_path), **options)
    done = (
        [datamodels.open(tmp_path / m.meta.filename.replace("_cal", "_levelmatch")) for m in given]
        if reopened
        else each(library, lambda m: m)
    )
    for model, old in zip(done, given, strict=True):
        changed = np.nanmax(np.abs(model.data - old.data))
        assert changed > 0.05
        assert undo(model)
        assert_undone(model, old, changed)
        assert not undo(model)
        assert model.meta.cal_step.level_match is None
        model.save(tmp_path / "undone.fits")
        assert cards(tmp_path / "undone.fits") == {}


def test_undo_gives_back_a_flagged_pixel_that_had_just_the_level():
    """It is not taken for one that has never seen the sky."""
    model = image_model(exposure_name(1), np.full((64, 64), 5.0), tile_wcs((1, 1))[0])
    model.dq[:5] = 1
    model.data[:3], model.data[3:5] = 4.25, 0
    PlaneRecord(Plane(4.25)).apply(model)
    assert np.abs(model.data[:5]).max() < 1e-30
    undo(model)
    assert (model.data[:3] == 4.25).all()
    assert (model.data[3:5] == 0).all()
    assert (model.data[5:] == 5).all()


@pytest.mark.parametrize("chain", ["LSL", "SL", "SLS", "LSSSSS", "LSLSLS"])
def test_undo_gives_back_blank_pixels_whatever_was_subtracted_in_turn(chain):
    """Zero, where they have never seen the sky; a flagged pixel that comes to the value of these is none of them."""
    rng = np.random.default_rng(len(chain))
    values = np.zeros((64, 64)), rng.normal(5, 1, (64, 64))
    model = image_model(exposure_name(1), np.where(np.arange(64) < 5, *values), tile_wcs((1, 1))[0])
    model.dq[:, :10] = 1
    given, previous = model.data.copy(), 0.0
    for step in chain:
        level = rng.normal(0, 1)
        if step == "L":
            PlaneRecord(Plane(level, (0.01, 0.02), tuple(float(a) for a in model.meta.wcs(32, 32)))).apply(model)
        else:
            level += previous
            LevelRecord(level, "match", subtract=True, previous=previous).apply(model)
            previous = level
    undo(model)
    assert (model.data[:, :5] == 0).all()
    np.testing.assert_allclose(model.data, given, rtol=0, atol=5e-6)


def test_undo_gives_back_a_flagged_pixel_that_level_matching_brings_to_minus_the_sky_level():
    """It is not taken for a blank pixel, which has that value after SkyMatchStep."""
    model = image_model(exposure_name(1), np.full((64, 64), 0.5), tile_wcs((1, 1))[0])
    model.dq[:5], model.data[3:5] = 1, 0
    LevelRecord(2.0, "match", subtract=True).apply(model)
    PlaneRecord(Plane(0.5)).apply(model)
    undo(model)
    np.testing.assert_allclose(model.data[:3], 0.5, atol=1e-6)
    assert (model.data[3:5] == 0).all()
    assert (model.data[5:] == 0.5).all()


def tilted_model():
    """An exposure, and planes for both fields of it."""
    model = image_model(exposure_name(1), np.random.default_rng(7).normal(5, 1, (64, 64)), tile_wcs((1, 1))[0])
    ra, dec = (float(angle) for angle in model.meta.wcs(32, 32))
    one = Plane(1.5, (0.02, -0.03), (ra, dec))
    return model, PlaneRecord(one, Plane(-2.0, (-0.01, 0.04), (ra, dec)), sigma=0.001)


MOVES = {
    "shift": {"delta_ra": 0.5 / 3600, "delta_dec": -0.3 / 3600},
    "shift by a quarter of the image": {"delta_ra": 30 / 3600},
    "turn": {"delta_roll": 0.1, "scale_factor": 1.0002},
}


@pytest.mark.parametrize("moves", [*(slow([name]) for name in MOVES), list(MOVES)], ids=str)
@pytest.mark.parametrize("is_saved", [False, True])
def test_undo_of_planes_of_an_exposure_that_tweakreg_has_aligned_since(moves, is_saved, tmp_path):
    """What was subtracted is added back to the same pixels; what is subtracted in between, too."""
    model, record = tilted_model()
    given = model.data.copy()
    for move in moves:
        record.apply(model)
        model.meta.wcs = adjust_wcs(model.meta.wcs, **MOVES[move])
        ra, dec = (float(angle) for angle in model.meta.wcs(32, 32))
        science, lyot = (replace(plane, centre=(ra, dec)) for plane in (record.science, record.lyot))
        record = replace(record, science=science, lyot=lyot)
    if is_saved:
        (file,) = write([model], tmp_path)
        assert main(["undo", str(file), "--out", str(tmp_path / "undone")]) == 0
        data = fits.getdata(tmp_path / "undone" / file.name, "SCI")
        assert cards(tmp_path / "undone" / file.name) == {}
    else:
        assert undo(model)
        data = model.data
    np.testing.assert_allclose(data, given, rtol=0, atol=5e-6)


def test_undo_of_planes_without_corners_is_by_the_sky():
    """Earlier versions recorded none."""
    model, record = tilted_model()
    given = model.data.copy()
    record.apply(model)
    drop_cards(model, *CORNER_CARDS, "LVLY_P1", "LVLY_P2", "LVLY_P3")
    assert undo(model)
    np.testing.assert_allclose(model.data, given, rtol=0, atol=2e-6)


def test_undo_of_a_plane_of_an_image_that_was_cut_out_is_by_the_sky():
    """Its corners are others."""
    model, record = tilted_model()
    given = model.data.copy()
    replace(record, lyot=None).apply(model)
    model.data, model.dq = model.data[:, :40], model.dq[:, :40]
    assert undo(model)
    np.testing.assert_allclose(model.data, given[:, :40], rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", few(1, [{}, PLANES]), ids=["levels", "planes"])
def test_undo_on_the_command_line(tilted_files, tmp_path, options, capsys):
    run(tilted_files, save_results=True, output_dir=str(tmp_path / "out"), **options)
    matched = results(tilted_files, tmp_path / "out")
    before = digest(matched)
    assert main(["undo", *map(str, matched), "--out", str(tmp_path / "undone")]) == 0
    assert "copied" not in capsys.readouterr().out
    assert digest(matched) == before
    for file, result, old in zip(tilted_files, matched, opened(tilted_files), strict=True):
        with datamodels.open(tmp_path / "undone" / result.name) as model:
            assert_undone(model, old, np.nanmax(np.abs(old.data - fits.getdata(result, "SCI"))))
        assert cards(tmp_path / "undone" / result.name) == {}, file


def test_undo_of_levels_that_were_not_subtracted(strip_files):
    library = run(strip_files, subtract=False)
    for model, old in zip(each(library, lambda m: m), given_in(strip_files), strict=True):
        assert undo(model)
        np.testing.assert_array_equal(model.data, old)


def test_undo_of_both_matchings(strip_files, tmp_path):
    """Level matching, then sky matching."""
    library = SkyMatchStep.call(run(strip_files), subtract=True)
    for model, old in zip(each(library, lambda m: m), opened(strip_files), strict=True):
        shifted = np.nanmax(np.abs(model.data - old.data)) + abs(model.meta.background.level)
        assert undo(model)
        allowed = 2 * np.spacing(np.abs(old.data) + np.float32(shifted))
        finite = np.isfinite(old.data)
        assert (np.abs(model.data - old.data)[finite] <= allowed[finite]).all()
        assert not undo(model)


# -------------------------------------------------------------------------------------------------- again, new data


@pytest.mark.parametrize("options", few(1, [{}, PLANES]), ids=["levels", "planes"])
def test_its_own_output_is_not_changed(tilted_files, tmp_path, caplog, options):
    first = run(tilted_files, save_results=True, output_dir=str(tmp_path / "one"), **options)
    matched = results(tilted_files, tmp_path / "one")
    for given in (matched, first):
        caplog.clear()
        again = run(given, save_results=True, output_dir=str(tmp_path / "two"), output_use_model=True, **options)
        assert any("matched already" in line for line in caplog.messages)
        for now, then in zip(arrays(again), given_in(matched), strict=True):
            np.testing.assert_array_equal(now, then)
        saved = sorted((tmp_path / "two").glob("*.fits"))
        assert [cards(file) for file in saved] == [cards(file) for file in matched]


def test_its_own_output_keeps_its_name(strip_files, tmp_path):
    run(strip_files, save_results=True, output_dir=str(tmp_path / "one"))
    run(results(strip_files, tmp_path / "one"), save_results=True, output_dir=str(tmp_path / "two"))
    assert sorted((tmp_path / "two").glob("*.fits")) == results(strip_files, tmp_path / "two")


def test_its_own_output_is_not_changed_if_one_exposure_is_alone(tmp_path, caplog):
    pieces = [(tile_wcs((1, 3)), (10, 14, 11.5)), (tile_wcs((1, 1), center=FAR), (7,))]
    files = level_files(tmp_path / "in", pieces)
    first = run(files)
    before = [dict((c[0], c[1]) for c in cards_) for cards_ in each(first, lambda m: m.extra_fits.PRIMARY.header)]
    data = arrays(first)
    again = run(first)
    for now, then in zip(arrays(again), data, strict=True):
        np.testing.assert_array_equal(now, then)
    assert [dict((c[0], c[1]) for c in h) for h in each(again, lambda m: m.extra_fits.PRIMARY.header)] == before
    assert any("matched already" in line for line in caplog.messages)


def test_levels_are_not_recorded_beside_what_is_subtracted(strip_files, tmp_path):
    """New data among matched ones with subtract=False."""
    run(strip_files[:3], save_results=True, output_dir=str(tmp_path))
    some = results(strip_files[:3], tmp_path)
    with pytest.raises(ValueError, match=rf"{some[0].name}: level matching has subtracted .*subtract=True"):
        run([*some, *strip_files[3:]], subtract=False, save_results=True, output_dir=str(tmp_path / "two"))
    assert list((tmp_path / "two").glob("*")) == []


@pytest.mark.parametrize("options", few(1, [{}, PLANES]), ids=["levels", "planes"])
def test_new_data_join_matched_ones(tilted, tilted_files, tmp_path, options):
    """Without `fixed` all move a little; records are of the sum, and undo gives back the first input."""
    run(tilted_files[:3], save_results=True, output_dir=str(tmp_path), **options)
    some = results(tilted_files[:3], tmp_path)
    library = run([*some, *tilted_files[3:]], save_results=True, output_dir=str(tmp_path / "two"), **options)
    assert set(each(library, lambda m: m.meta.cal_step.level_match)) == {"COMPLETE"}
    for file in (tmp_path / "two").glob("*.fits"):
        assert set(cards(file)) == (PLANE_CARDS if options else LEVEL_CARDS)
    for model, old in zip(each(library, lambda m: m), opened(tilted_files), strict=True):
        changed = np.nanmax(np.abs(model.data - old.data))
        assert undo(model)
        allowed = 2 * np.spacing(np.abs(old.data) + np.float32(2 * changed))
        finite = np.isfinite(old.data)
        assert (np.abs(model.data - old.data)[finite] <= allowed[finite]).all()


@pytest.mark.parametrize("named", few(1, ["full name", "stem", "another suffix"]))
def test_new_data_join_fixed_ones(strip, strip_files, truth, tmp_path, named):
    run(strip_files[:3], save_results=True, output_dir=str(tmp_path))
    some = results(strip_files[:3], tmp_path)
    before = given_in(some)
    ends = {"full name": "_levelmatch.fits", "stem": "", "another suffix": "_i2d.fits"}
    fixed = [strip[i].name + ends[named] for i in range(3)]
    library = run([*some, *strip_files[3:]], fixed=fixed, save_table="levels.ecsv")
    after = arrays(library)
    for now, then in zip(after[:3], before, strict=True):
        np.testing.assert_array_equal(now, then)
    left = [np.nanmedian(old.astype(float) - new) for old, new in zip(given_in(strip_files), after, strict=True)]
    np.testing.assert_allclose(free_of_mean(left), free_of_mean(truth), atol=0.005)
    assert list(table().meta["options"]["fixed"]) == fixed


@pytest.mark.parametrize("end", few(1, ["", "_cal.fits", "_rate.fits"]))
def test_an_exposure_is_fixed_by_its_name(strip, strip_files, end):
    """Whatever suffix it has: none of the exposures has been matched before."""
    library = run(strip_files, fixed=[strip[1].name + end])
    moved = [np.nanmax(np.abs(new - old)) for new, old in zip(arrays(library), given_in(strip_files), strict=True)]
    assert moved[1] == 0
    assert min(moved[0], *moved[2:]) > 0.01


@pytest.mark.parametrize("unit", few(2, ["MJy/sr", "", "Jy/sr", "gobbledygook"]))
def test_an_image_may_be_fixed(tmp_path, unit):
    """The level of a plain FITS image is that of the data, and only of those that it overlaps."""
    files = level_files(tmp_path / "in", [(tile_wcs((1, 3)), (10, 14, 11.5)), (tile_wcs((1, 2), center=FAR), (3, 7))])
    wcs = tile_wcs((1, 1))[0]
    header = wcs.to_fits_sip(degree=1, max_pix_error=20, npoints=8)
    header["BUNIT"] = unit
    image = tmp_path / "old_i2d.fits"
    data = np.random.default_rng(1).normal(2, 0.01, (SIDE, SIDE))
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, header, "SCI")]).writeto(image)
    before = digest([image])
    if unit in ("Jy/sr", "gobbledygook"):
        with pytest.raises(ValueError, match=rf"old_i2d.fits.*{unit}.*MJy/sr"):
            run(files, fixed=[str(image)])
    else:
        library = run(files, fixed=[str(image)], save_table="levels.ecsv")
        left = middles(library)
        np.testing.assert_allclose(left[:3], 2, atol=NEAR)
        assert left[3] == pytest.approx(left[4], abs=NEAR)
        assert len(library) == 5
        assert "old_i2d.fits" in rows()
        assert table().meta["reference"][0] == "fixed"
    assert digest([image]) == before


def test_a_fixed_file_is_compared_less_the_level_that_is_recorded_in_it(tmp_path):
    """As the same file among the exposures."""
    files = level_files(tmp_path, [(tile_wcs((1, 3)), (10, 14, 11.5))])

    def record(model):
        model.meta.background = {"level": 4.0, "subtracted": False, "method": "match"}

    spoil(files[0], record)
    for given in (files[1:], files):
        left = middles(run(given, fixed=[str(files[0])]))[-2:]
        np.testing.assert_allclose(left, 6, atol=NEAR)


# -------------------------------------------------------------------------------------------------- tiles

JOINED = {"sequence_id": "2", "visit_id": "09001007001", "activity_id": "03", "visit_number": "002"}


def passes_of(models):
    """Pass of each pair of the two exposures."""
    run(models, save_table="levels.ecsv")
    return list(Table.read("levels_pairs.ecsv")["pass"])


def two_models(changes=({}, {}), filenames=None, detectors=("nrcalong", "nrcalong")):
    models = []
    for n, (wcs, change, detector) in enumerate(zip(tile_wcs((1, 2)), changes, detectors, strict=True), 1):
        model = image_model(exposure_name(n, detector=detector), np.full((SIDE, SIDE), float(n)), wcs)
        for key, value in change.items():
            setattr(model.meta.observation, key, value)
        if filenames:
            model.meta.filename = filenames[n - 1]
        models.append(model)
    return models


def without_metadata(models, detector=True):
    for model in models:
        model.meta.observation = {}
        if detector:
            model.meta.instrument.detector = None
    return models


def test_dithers_share_visit_sequence_and_detector(offline):
    assert passes_of(two_models()) == ["dithers"]
    for key, value in JOINED.items():
        assert passes_of(two_models(({}, {key: value}))) == ["mosaic_tiles"], key
    assert passes_of(two_models(detectors=("nrcalong", "nrcblong"))) == ["mosaic_tiles"]


def test_metadata_come_before_file_names(offline):
    assert passes_of(two_models(filenames=["a_cal.fits", "b_cal.fits"])) == ["dithers"]
    other = "jw09001099001_02101_00002_nrcalong_cal.fits"
    assert passes_of(two_models(filenames=[f"{exposure_name(1)}_cal.fits", other])) == ["dithers"]


def test_file_names_if_there_are_no_metadata(offline):
    assert passes_of(without_metadata(two_models())) == ["dithers"]
    assert passes_of(without_metadata(two_models(detectors=("nrcalong", "nrcblong")))) == ["mosaic_tiles"]
    other = "jw09001099001_02101_00002_nrcalong_cal.fits"
    named = two_models(filenames=[f"{exposure_name(1)}_cal.fits", other])
    assert passes_of(without_metadata(named)) == ["mosaic_tiles"]


def test_without_metadata_and_names_each_exposure_is_a_tile(offline):
    assert passes_of(without_metadata(two_models(filenames=["a.fits", "b.fits"]))) == ["mosaic_tiles"]


def test_the_joint_pass(strip_files, truth):
    run(strip_files, save_table="levels.ecsv", passes="joint", **FREE)
    found = [rows()[file.name] for file in strip_files]
    pulls = (free_of_mean([r["level"] for r in found]) - free_of_mean(truth)) / [r["sigma"] for r in found]
    assert np.abs(pulls).max() < 4.5
    assert set(Table.read("levels_pairs.ecsv")["pass"]) == {"joint"}


# -------------------------------------------------------------------------------------------------- MIRI


@pytest.fixture(scope="module")
def miri():
    """Dithers so wide that the Lyot field of one lies on the imager's of others; it is 5 brighter."""
    return simulate_mosaic(
        rng=np.random.default_rng(3), detectors=("MIRIMAGE",), tiles=(1, 1), dithers=4, binning=8, dither_step=22.0,
        lyot_offset=5.0,
    )  # fmt: skip


def lyot_box(shape):
    """The field that comes from the Lyot half, as PJPipe has it."""
    box = np.zeros(shape, dtype=bool)
    box[round(735 / 1024 * shape[0]) :, : round(290 / 1032 * shape[1])] = True
    return box


def test_lyot_field_of_unsplit_files(miri, tmp_path, caplog):
    asn = write_exposures(miri, tmp_path / "in")
    files = [tmp_path / "in" / f"{e.name}_cal.fits" for e in miri]
    library = run(asn, recombine_lyot=True, save_table="levels.ecsv", save_results=True, output_dir=str(tmp_path))
    assert set(Table.read("levels_pairs.ecsv")["pass"]) == {"dithers", "recombine_lyot"}
    levels = rows()
    gone = [old.astype(float) - new for old, new in zip(given_in(files), arrays(library), strict=True)]
    for file, removed in zip(files, gone, strict=True):
        science, lyot = levels[file.name], levels[f"{file.name}[lyot]"]
        error = np.hypot(science["sigma"], lyot["sigma"])
        assert error < 0.01
        assert lyot["level"] - science["level"] == pytest.approx(5, abs=4.5 * error)
        box = lyot_box(removed.shape)
        step = np.nanmean(removed[box]) - np.nanmean(removed[~box])
        assert step == pytest.approx(5, abs=4.5 * error), "a step is left along the boundary"
    assert len(library) == len(miri)
    sky = np.array([levels[file.name]["level"] for file in files])
    sigma = np.array([levels[file.name]["sigma"] for file in files])
    assert (np.abs(free_of_mean(sky) - free_of_mean([e.level for e in miri])) < 4.5 * sigma + 1e-9).all()
    for result, old in zip(results(files, tmp_path), opened(files), strict=True):
        assert set(cards(result)) == LEVEL_CARDS | {"LVLYOT"}
        with datamodels.open(result) as model:
            assert undo(model)
            assert_undone(model, old, 10.0)


def test_lyot_field_as_a_plane(miri, tmp_path):
    """A tilt of the Lyot field is undone too."""
    given = [as_model(e, number=i) for i, e in enumerate(miri)]
    library = run(given, recombine_lyot=True, fit_type_recombine_lyot="level+slope", save_table="levels.ecsv",
                  save_results=True, output_dir=str(tmp_path))  # fmt: skip
    for model, old in zip(each(library, lambda m: m), given, strict=True):
        result = tmp_path / model.meta.filename.replace("_cal", "_levelmatch")
        assert {"LVLMATCH", "LVLY_A", "LVLY_B", "LVLY_C"} <= set(cards(result))
        with datamodels.open(result) as again:
            assert undo(again)
            assert_undone(again, old, 10.0)


def test_unsplit_files_without_recombining(miri):
    """The image then has one level: the field of the coronagraph keeps its offset."""
    given = [as_model(e, number=i) for i, e in enumerate(miri)]
    library = run(given, save_table="levels.ecsv")
    assert len(table()) == len(miri)
    for old, new in zip(given, arrays(library), strict=True):
        assert np.nanstd(old.data.astype(float) - new) < 1e-6


@pytest.fixture(scope="module")
def split(miri, tmp_path_factory):
    """Files of science and Lyot halves; the Lyot half has 3 more."""
    return write([half for e in miri for half in miri_halves(e, offset=3.0)], tmp_path_factory.mktemp("split"))


@pytest.mark.parametrize("in_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_split_files_come_back_as_one_exposure_each(miri, split, tmp_path, in_memory):
    before = digest(split)
    library = run(
        association(split), recombine_lyot=True, in_memory=in_memory, save_table="levels.ecsv", save_results=True,
        output_dir=str(tmp_path),
    )  # fmt: skip
    assert digest(split) == before
    assert names(library) == [f"{e.name}_levelmatch.fits" for e in miri]
    assert sorted(p.name for p in tmp_path.glob("*.fits")) == [f"{e.name}_levelmatch.fits" for e in miri]
    levels = rows()
    for exposure, science, lyot, result in zip(
        miri, opened(split[::2]), opened(split[1::2]), sorted(tmp_path.glob("*.fits")), strict=True
    ):
        box = lyot_box(exposure.data.shape)
        with datamodels.open(result) as model:
            for name in ("err", "dq", "var_rnoise", "var_poisson", "var_flat"):
                expected = np.where(box, getattr(lyot, name), getattr(science, name))
                np.testing.assert_array_equal(getattr(model, name), expected, err_msg=name)
            np.testing.assert_array_equal(model.dq, exposure.dq)
            one, other = (levels[f"{exposure.name}{half}_cal.fits"] for half in "sl")
            error = np.hypot(one["sigma"], other["sigma"])
            removed = exposure.data.astype(float) - model.data
            step = np.nanmean(removed[box]) - np.nanmean(removed[~box])
            assert step == pytest.approx(5, abs=4.5 * error)  # 3 more were added to the half, and are removed
            assert other["level"] - one["level"] == pytest.approx(8, abs=4.5 * error)
            expected = np.where(box, lyot.data.astype(float) - other["level"], science.data - float(one["level"]))
            blank = (np.where(box, lyot.data, science.data) == 0) & (model.dq & 513 > 0)
            np.testing.assert_allclose(model.data, np.where(blank, 0, expected), atol=1e-6)
            assert model.meta.filename == result.name
            assert undo(model)
            joined = science.copy()
            joined.data = np.where(box, lyot.data, science.data)
            assert_undone(model, joined, 10.0)


@pytest.mark.parametrize("kind", few(1, ["models", "library"]))
def test_split_models_in_memory(miri, split, kind):
    models = opened(split)
    library = run(ModelLibrary(models) if kind == "library" else models, recombine_lyot=True)
    assert names(library) == [f"{e.name}_cal.fits" for e in miri]
    if kind == "models":
        assert [m.meta.filename for m in models] == [file.name for file in split]


def test_split_files_stay_apart_without_recombining(split):
    library = run(split)
    assert names(library) == [file.name for file in split]


@pytest.mark.parametrize("missing", few(1, ["mirimagel", "mirimages"]))
def test_a_half_without_the_other(miri, split, caplog, missing):
    first = miri[0].name
    given = [file for file in split if file.name != f"{first}{missing[-1]}_cal.fits"]
    library = run(given, recombine_lyot=True, save_table="levels.ecsv")
    kept = f"{first}{'s' if missing.endswith('l') else 'l'}_cal.fits"
    assert names(library) == [kept, *[f"{e.name}_cal.fits" for e in miri[1:]]]
    (line,) = {line for line in caplog.messages if "no other half" in line}
    assert kept in line
    assert missing in line
    assert set(table()["status"]) == {"matched"}
    others = [rows()[f"{e.name}{h}_cal.fits"]["level"] for e in miri[1:] for h in "sl"]
    np.testing.assert_allclose(np.diff(others)[::2], 8, atol=0.02)


@pytest.fixture(scope="module")
def small_dithers():
    """No Lyot field lies on an imager's."""
    return simulate_mosaic(
        rng=np.random.default_rng(4), detectors=("MIRIMAGE",), tiles=(1, 1), dithers=3, binning=16, dither_step=3.0,
        lyot_offset=5.0,
    )  # fmt: skip


@pytest.mark.parametrize("reference", few(1, ["auto", "mean", "flattest"]))
def test_lyot_fields_that_overlap_each_other_only(small_dithers, reference):
    given = [as_model(e, number=i) for i, e in enumerate(small_dithers)]
    library = run(given, recombine_lyot=True, reference=reference, save_table="levels.ecsv")
    found = [rows()[f"{e.name}_cal.fits"]["level"] for e in small_dithers]
    np.testing.assert_allclose(free_of_mean(found), free_of_mean([e.level for e in small_dithers]), atol=0.01)
    for model, old in zip(each(library, lambda m: m), given, strict=True):
        assert np.isfinite(model.data[np.isfinite(old.data)]).all()
        assert undo(model)
        assert_undone(model, old, 10.0)


@pytest.fixture(scope="module")
def lone_lyot():
    """Two tiles of an exposure each: the Lyot field of the second lies on the first, that of the first on nothing."""
    return simulate_mosaic(
        rng=np.random.default_rng(4), detectors=("MIRIMAGE",), tiles=(1, 2), dithers=1, binning=16, overlap=0.1,
        lyot_offset=5.0, jitter=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("is_split", [False, True])
def test_a_lyot_field_that_overlaps_nothing_has_the_offset_of_others(lone_lyot, is_split):
    given = [h for e in lone_lyot for h in miri_halves(e)] if is_split else [as_model(e) for e in lone_lyot]
    library = run(given, recombine_lyot=True, reference="mean", save_table="levels.ecsv")
    assert set(table()["status"]) == {"matched"}
    half = (lone_lyot[0].level - lone_lyot[1].level) / 2
    for exposure, data, level in zip(lone_lyot, arrays(library), (half, -half), strict=True):
        removed, box = exposure.data - data, lyot_box(exposure.data.shape)
        assert np.nanmedian(removed[~box]) == pytest.approx(level, abs=0.01)
        assert np.nanmedian(removed[box]) == pytest.approx(level + 5, abs=0.01)


def test_without_a_visit_each_miri_image_is_a_tile_with_its_lyot_field(small_dithers):
    given = [as_model(e) for e in small_dithers]
    for name, model in zip("abc", given, strict=True):
        model.meta.filename = f"{name}_cal.fits"
        for word in (
            "visit_id", "program_number", "observation_number", "visit_number", "visit_group", "sequence_id",
            "activity_id",
        ):  # fmt: skip
            setattr(model.meta.observation, word, None)
    run(given, recombine_lyot=True, reference="c_cal.fits", do_local_subtraction=False, save_table="levels.ecsv")
    level = {name: row["level"] for name, row in rows().items()}
    expected = [e.level - small_dithers[2].level for e in small_dithers]
    for field in ("", "[lyot]"):  # that overlaps no imager, so that its offset is not known
        np.testing.assert_allclose([level[f"{name}_cal.fits{field}"] for name in "abc"], expected, atol=0.01)


@pytest.fixture(scope="module")
def lyot_bridge():
    """Two tiles, side by side with a gap: only the Lyot field of the second lies on the imager's of the first."""
    return simulate_mosaic(
        rng=np.random.default_rng(4), detectors=("MIRIMAGE",), tiles=(1, 2), dithers=1, binning=8, overlap=-0.08,
        lyot_offset=5.0, jitter=0.0,
    )  # fmt: skip


def test_a_lyot_field_that_is_matched_says_nothing_of_the_imager(lyot_bridge, tmp_path):
    """Where only the Lyot field overlaps others, the imager's field stays as it is, and undo gives all back."""
    given = [as_model(e, number=i) for i, e in enumerate(lyot_bridge)]
    library = run(given, recombine_lyot=True, reference="mean", save_table="levels.ecsv")
    status = {name: row["status"] for name, row in rows().items()}
    lost = [f"{e.name}_cal.fits" for e in lyot_bridge if status[f"{e.name}_cal.fits"] != "matched"]
    assert len(lost) == 1, "the scene is not what it is meant to be"
    assert status[f"{lost[0]}[lyot]"] == "matched"
    for old, model in zip(given, each(library, lambda m: m), strict=True):
        if model.meta.filename in lost:
            box = lyot_box(old.data.shape)
            assert np.abs(old.data.astype(float) - model.data)[box & np.isfinite(old.data)].max() > 1
            np.testing.assert_array_equal(model.data[~box], old.data[~box])
        assert undo(model)
        assert_undone(model, old, 10.0)


@pytest.mark.parametrize("matched", few(1, ["science", "Lyot"]))
def test_undo_of_split_exposures_of_which_one_half_is_matched(small_dithers, lyot_bridge, matched):
    """It changes only the half that was."""
    if matched == "science":
        given = [h for e in small_dithers[:2] for h in miri_halves(e)]
        for lyot in given[1::2]:
            lyot.dq[:] = 1
    else:
        given = [h for e in lyot_bridge for h in miri_halves(e)]
    library = run(given, recombine_lyot=True, reference="mean", save_table="levels.ecsv")
    assert {"no overlap", "no good pixels"} & set(table()["status"])
    expected = small_dithers[:2] if matched == "science" else lyot_bridge
    for exposure, model in zip(expected, each(library, lambda m: m), strict=True):
        assert exposure.name in model.meta.filename
        undo(model)
        finite = np.isfinite(exposure.data)
        np.testing.assert_allclose(model.data[finite], exposure.data[finite], atol=1e-5)


@pytest.mark.parametrize("is_split", few(1, [False, True]))
def test_fixed_miri_exposures_are_not_changed(miri, is_split):
    given = [h for e in miri for h in miri_halves(e)] if is_split else [as_model(e) for e in miri]
    fixed = [m.meta.filename for m in given[:2]]
    library = run(given, recombine_lyot=True, fixed=fixed)
    for exposure, data in list(zip(miri, arrays(library), strict=True))[: 1 if is_split else 2]:
        np.testing.assert_array_equal(data, exposure.data)


# -------------------------------------------------------------------------------------------------- NIRCam

CHIPS = tuple(f"NRCA{n}" for n in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def chips():
    """Two tiles of a module of four chips in two dithers, each image with a level of its own."""
    return simulate_mosaic(
        rng=np.random.default_rng(5), detectors=CHIPS, tiles=(2, 1), dithers=2, binning=32, level_per="detector",
        dither_step=25.0, overlap=0.2,
    )  # fmt: skip


def test_chips_of_a_module(chips):
    models = [as_model(e, number=i // 4) for i, e in enumerate(chips)]
    run(models, combine_nircam_short=True, save_table="levels.ecsv", **FREE)
    pairs = Table.read("levels_pairs.ecsv")
    assert set(pairs["pass"]) == {"dithers", "combine_nircam_short", "mosaic_tiles"}
    for pair in pairs:
        (tile, chip), (other_tile, other_chip) = (
            (name[:19], name.split("_")[3]) for name in (pair["first"], pair["second"])
        )
        if tile == other_tile and chip == other_chip:
            expected = "dithers"
        elif tile == other_tile and chip[:4] == other_chip[:4]:
            expected = "combine_nircam_short"
        else:
            expected = "mosaic_tiles"
        assert pair["pass"] == expected, pair
    found = [rows()[f"{e.name}_cal.fits"] for e in chips]
    assert set(table()["component"]) == {0}
    errors = free_of_mean([row["level"] for row in found]) - free_of_mean([e.level for e in chips])
    assert np.abs(errors / [row["sigma"] for row in found]).max() < 4.5
    assert np.abs(errors).max() < 0.01


def test_modules_are_tiles_of_their_own(offline):
    """Chips of both modules at one place on the sky."""
    detectors = ("nrca1", "nrca2", "nrcb1", "nrcb2")
    models = []
    for detector in detectors:
        image = np.random.default_rng(len(models)).normal(len(models), 0.1, (SIDE, SIDE))
        models.append(image_model(exposure_name(1, detector=detector), image, tile_wcs((1, 1))[0]))
    run(models, combine_nircam_short=True, save_table="levels.ecsv")
    found = {(r["first"][26:31], r["second"][26:31]): r["pass"] for r in Table.read("levels_pairs.ecsv")}
    module, tiles = "combine_nircam_short", "mosaic_tiles"
    assert found == {
        ("nrca1", "nrca2"): module, ("nrcb1", "nrcb2"): module,
        ("nrca1", "nrcb1"): tiles, ("nrca1", "nrcb2"): tiles, ("nrca2", "nrcb1"): tiles, ("nrca2", "nrcb2"): tiles,
    }  # fmt: skip


@pytest.mark.slow
def test_chips_without_the_pass_are_tiles(chips):
    models = [as_model(e, number=i // 4) for i, e in enumerate(chips)]
    run(models, save_table="levels.ecsv")
    assert set(Table.read("levels_pairs.ecsv")["pass"]) == {"dithers", "mosaic_tiles"}


def test_passes_for_which_there_are_no_exposures_are_ignored(strip_files, of_association, caplog):
    library = run(association(strip_files), recombine_lyot=True, combine_nircam_short=True)
    for option in ("recombine_lyot", "combine_nircam_short"):
        (line,) = [line for line in caplog.messages if line.startswith(option)]
        assert "ignored" in line
    for ours, theirs in zip(arrays(library), of_association[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -------------------------------------------------------------------------------------------------- the unmatched


def test_an_isolated_exposure_and_two_fields(tmp_path, caplog):
    pieces = [
        (tile_wcs((1, 2)), (10, 14)),
        (tile_wcs((1, 2), center=FAR), (3, 7)),
        (tile_wcs((1, 1), center=(10.0, 10.0)), (5,)),
    ]
    files = level_files(tmp_path / "in", pieces)
    library = run(association(files), save_table="levels.ecsv", save_results=True, output_dir=str(tmp_path / "out"))
    assert list(table()["status"]) == ["matched"] * 4 + ["no overlap"]
    assert list(table()["component"]) == [0, 0, 1, 1, -1]
    lines = [line for line in caplog.messages if "Connected set" in line]
    for line, numbers in zip(lines, ((1, 2), (3, 4)), strict=True):
        assert all(exposure_name(n, observation=n) in line for n in numbers)
    (lost,) = [line for line in caplog.messages if "could not be matched" in line]
    assert exposure_name(5, observation=5) in lost
    assert "no overlap" in lost
    np.testing.assert_allclose(middles(library), (0, 0, 0, 0, 5), atol=NEAR)
    assert cards(results(files, tmp_path / "out")[4]) == {"S_LVLMAT": "SKIPPED"}


def test_dedicated_backgrounds_are_left_alone(tmp_path):
    """The tile nearest in time to them is the reference."""
    files = level_files(tmp_path / "in", [(tile_wcs((1, 3)), (10, 14, 11.5)), (tile_wcs((1, 1)), (99,))])
    asn = association(files, exptypes=["science"] * 3 + ["background"])
    library = run(asn, save_table="levels.ecsv", do_local_subtraction=False)
    np.testing.assert_allclose(middles(library), (11.5, 11.5, 11.5, 99), atol=NEAR)
    assert rows()[files[3].name]["status"] == "background"
    with library:
        assert library.indices_for_exptype("background") == [3]
    library = run(asn, reference="background", do_local_subtraction=False)
    np.testing.assert_allclose(middles(library), (11.5, 11.5, 11.5, 99), atol=NEAR)


def test_one_exposure(strip_files):
    library = run(strip_files[0], save_table="levels.ecsv")
    np.testing.assert_array_equal(arrays(library)[0], given_in(strip_files[:1])[0])
    assert list(table()["status"]) == ["no overlap"]


def test_one_tile(strip_files, truth):
    """The pass for tiles has nothing to do."""
    run(strip_files[:2], save_table="levels.ecsv", **FREE)
    np.testing.assert_allclose(table()["level"], free_of_mean(truth[:2]), atol=0.005)
    assert set(Table.read("levels_pairs.ecsv")["pass"]) == {"dithers"}


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_tiles_that_share_one_column_of_pixels(tmp_path, fit, caplog):
    """Of two columns of pixels one column of cells is interpolated."""
    (wcs,) = tile_wcs((1, 1))
    scale = 32 * 0.063  # arcsec
    images = []
    for n, level in ((1, 10.0), (2, 14.0)):
        image = np.random.default_rng(n).normal(level, 0.1, (SIDE, SIDE))
        images.append(image)
    good = [np.zeros((SIDE, SIDE), np.uint32) for _ in range(2)]
    good[0][:, 34:] = 1
    good[1][:, :32] = 1
    files = write(
        [image_model(exposure_name(n, observation=n), images[n - 1], wcs, dq=good[n - 1]) for n in (1, 2)], tmp_path
    )
    library = run(files, save_table="levels.ecsv", fit_type_mosaic_tiles=fit, **FREE)
    assert np.isfinite(arrays(library)).all()
    row = table()
    assert list(row["status"]) == ["matched"] * 2
    reach = scale * SIDE / 2
    error = np.nan_to_num(np.hypot(row["sigma"], reach * np.hypot(row["sigma_east"], row["sigma_north"]))).max()
    assert abs(np.diff(row["level"])[0] - 4) < max(5 * error, 0.2)
    assert any("tilt" in line for line in caplog.messages) == (fit != "level")


# -------------------------------------------------------------------------------------------------- tables, pictures


def test_saved_tables(strip_files, truth):
    run(strip_files[::-1], save_table="levels.ecsv", dqbits="~DO_NOT_USE", **FREE)
    levels, pairs = table(), Table.read("levels_pairs.ecsv")
    assert list(levels["name"]) == sorted(file.name for file in strip_files)
    assert levels["level"].unit == levels["sigma"].unit == "MJy / sr"
    assert levels["slope_east"].unit == levels["sigma_north"].unit == "MJy / (sr arcsec)"
    assert levels["ra"].unit == levels["dec"].unit == "deg"
    assert levels.meta["options"]["reference"] == "mean"
    assert levels.meta["options"]["dqbits"] == "~DO_NOT_USE"
    assert levels.meta["options"]["subtract"] is True
    true = dict(zip([file.name for file in strip_files], truth, strict=True))
    fitted = dict(zip(levels["name"], levels["level"], strict=True))
    assert len(pairs) >= 5
    assert pairs["offset"].unit == pairs["rms"].unit == "MJy / sr"
    for row in pairs:
        assert row["first"] < row["second"]
        assert row["offset"] == pytest.approx(true[row["first"]] - true[row["second"]], abs=6 * row["sigma"])
        left = row["offset"] - (fitted[row["first"]] - fitted[row["second"]])
        assert row["residual"] == pytest.approx(left, abs=1e-6)
        assert row["npix"] > 0


def test_pictures(strip_files, tmp_path):
    run(strip_files[1:], save_plots=str(tmp_path / "new" / "pictures"), save_table="levels.ecsv")
    pictures = sorted(p.name for p in (tmp_path / "new" / "pictures").iterdir())
    assert sum(name.startswith("mosaic") for name in pictures) == 1
    for pair in Table.read("levels_pairs.ecsv"):
        stems = [str(pair[name]).removesuffix(".fits") for name in ("first", "second")]
        assert len([name for name in pictures if all(stem in name for stem in stems)]) == 1, stems
    assert len(pictures) == 1 + len(Table.read("levels_pairs.ecsv"))
    for name in pictures:
        content = (tmp_path / "new" / "pictures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000


def test_saved_names(strip_files, tmp_path, offline):
    before = digest(strip_files), sorted(strip_files[0].parent.iterdir())
    run([str(file) for file in strip_files], save_results=True, output_dir=str(tmp_path / "out"))
    assert sorted((tmp_path / "out").glob("*.fits")) == results(strip_files, tmp_path / "out")
    assert (digest(strip_files), sorted(strip_files[0].parent.iterdir())) == before
    assert list(offline.iterdir()) == []


# -------------------------------------------------------------------------------------------------- parameters


def test_spec_and_options_have_the_same_defaults():
    step = LevelMatchStep()
    for field in fields(LevelMatchOptions):
        assert getattr(step, field.name) == field.default, field.name
        assert type(getattr(step, field.name)) is type(field.default), field.name


def test_spec_and_options_have_the_same_choices():
    spec = described(LevelMatchStep)
    for field in fields(LevelMatchOptions):
        allowed = set(get_args(field.type))
        if allowed:
            assert set(re.findall(r"'([^']*)'", spec[field.name].partition("default")[0])) == allowed, field.name


def test_every_option_has_a_parameter_and_the_others_are_known():
    others = {
        "recombine_lyot", "combine_nircam_short", "fixed", "dqbits", "subtract", "save_table", "save_plots", "suffix",
        "output_use_model", "in_memory", "temp_dir", "maximum_cores", "dask_scheduler", "report",
    }  # fmt: skip
    assert set(described(LevelMatchStep)) == others | {field.name for field in fields(LevelMatchOptions)}


def test_names_for_strun():
    names_ = {step.class_name: step.class_alias for step in entry_points.get_steps()}
    assert names_["bkgmatch.LevelMatchStep"] == "level_match"
    assert list(names_.values()).count("level_match") == 1


@pytest.mark.parametrize("strun", [quick_strun, slow(slow_strun)])
def test_strun(strip_files, of_association, tmp_path, strun):
    """Without CRDS; the parameters that it saves make the same again."""
    pars = tmp_path / "pars.asdf"
    output = strun(
        "level_match", str(association(strip_files)), "--save_results=true", f"--output_dir={tmp_path}",
        f"--save-parameters={pars}", f"--fixed={strip_files[0].name}",
    )  # fmt: skip
    assert "CRDS is not set up" in output
    with asdf.open(pars) as saved:
        assert saved["class"] == "bkgmatch.steps.level_match.LevelMatchStep"
        assert saved["parameters"]["fixed"] == [strip_files[0].name]
        assert saved["parameters"]["fit_type_dithers"] == "level"
    expected, data = of_association
    moved = dict(zip(expected["name"], expected["level"], strict=True))[strip_files[0].name]
    for file, theirs in zip(results(strip_files, tmp_path), data, strict=True):
        np.testing.assert_allclose(fits.getdata(file, "SCI"), theirs + moved, atol=3e-6)
    step = LevelMatchStep.from_config_file(str(pars))
    assert step.fixed == [strip_files[0].name]
    assert shutil.which("strun", path=str(Path(sys.executable).parent))
