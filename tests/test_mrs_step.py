"""MRSIMatchStep on real files: inputs, polynomials, records, groups of channels and bands, tables."""

import gc
import json
import re
import shutil
import warnings
from dataclasses import fields
from pathlib import Path
from typing import get_args

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import association, described, digest, write
from common import few, slow
from forks import quick_strun, slow_strun
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from mrs import (
    COLUMNS,
    FAR,
    ROWS,
    coefficients,
    each,
    header_cards,
    image,
    match,
    records,
    relative_truth,
    status,
    twin,
    twins,
)
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import IFUImageModel
from stpipe import entry_points

from bkgmatch import MRSIMatchStep, apply_background_2d
from bkgmatch.cli import main
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.steps.ifu_models import channel_pixels
from bkgmatch.steps.models import undo
from bkgmatch.steps.simulated_mrs_references import write_cubepar

pytestmark = pytest.mark.usefixtures("offline")

BOTH = {"channel": None}


@pytest.fixture(autouse=True)
def _assign_freely(assign_freely):
    """In all tests but those that save."""


def opened(files):
    return [datamodels.open(file) for file in files]


def results(files, folder):
    return [folder / file.name.replace("_cal", "_mrsimatch") for file in files]


def table(path="mrs.ecsv"):
    return Table.read(path)


def rows(channel="1", path="mrs.ecsv"):
    return {str(row["name"]): row for row in table(path) if row["channel"] == channel}


def same(ours, theirs, tolerance=1e-10):
    """Whether coefficients, shape (n, p), are the same but for rounding, relative to the largest of each term."""
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs) <= tolerance * np.abs(theirs).max(axis=0)).all()


# -------------------------------------------------------------------------------------------------- polynomials


def test_the_truth_is_found(simulate_mrs):
    """Each coefficient within its error, and errors that are as large as they say."""
    models, truth = simulate_mrs(n_exposures=3)
    done = match(models, save_table="mrs.ecsv", **BOTH)
    assert status(done) == ["COMPLETE"] * 3
    for channel in "12":
        true = relative_truth(truth, channel, records(done[0])[channel])
        errors = np.array([rows(channel)[name]["errors"] for name in truth.names])
        pulls = (coefficients(done, channel) - true) / errors
        assert np.abs(pulls).max() < 4.5
        assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.6
        assert max(row["sigma"] for row in rows(channel).values()) < 0.02, "errors that are far too large hide all"


@pytest.mark.parametrize(
    "degree", ["1,0,2", *(pytest.param(degree, marks=pytest.mark.slow) for degree in (1, (2, 1, 0), 0))]
)
def test_records(dithers, degree):
    given = degree.split(",") if isinstance(degree, str) else degree
    done = match(dithers[:2], bkg_degree=given, subtract=True)
    expected = [int(d) for d in np.resize(given, 3)]
    for model, old in zip(done, dithers, strict=False):
        (info,) = model.meta.background.polynomial_info
        info = info.instance
        assert list(info) == ["degree", "refpoint", "coefficients", "channel"]
        assert info["degree"] == expected
        assert info["channel"] == "1"
        assert len(info["coefficients"]) == np.prod(np.add(expected, 1))
        assert [type(v) for v in info["coefficients"] + info["refpoint"]] == [float] * (len(info["coefficients"]) + 3)
        assert [type(v) for v in info["degree"]] == [int] * 3
        gone = old.data.astype(float) - model.data
        np.testing.assert_allclose(gone, np.where(np.isfinite(gone), image(old, "1", info), np.nan), atol=4e-5)
        assert np.nanmax(np.abs(gone)) > 0.1
        assert model.meta.background.subtracted is True


def test_all_exposures_of_a_channel_share_a_reference_point_and_the_sum_is_zero(dithers):
    done = match(dithers, **BOTH)
    for channel in "12":
        assert len({tuple(records(model)[channel]["refpoint"]) for model in done}) == 1
        found = coefficients(done, channel)
        assert np.abs(found.sum(axis=0) / np.abs(found).max(axis=0)).max() < 1e-9
    ra, dec, wavelength = records(done[0])["1"]["refpoint"]
    assert (ra, dec) == pytest.approx((45, -10), abs=3e-4)
    assert 4.9 < wavelength < 5.74
    assert records(done[0])["2"]["refpoint"][2] > 7.5


def test_without_subtraction_nothing_but_records(dithers, caplog):
    done, matched = match(dithers), match(dithers, subtract=True)
    for model, other, old in zip(done, matched, dithers, strict=True):
        for name in ("data", "err", "dq", "var_rnoise", "var_poisson"):
            np.testing.assert_array_equal(getattr(model, name), getattr(old, name))
            if name != "data":
                np.testing.assert_array_equal(getattr(other, name), getattr(old, name))
        assert model.meta.background.subtracted is False
        assert records(model) == records(other)
        assert model.data.dtype == other.data.dtype == np.float32
    assert sum("Nothing is subtracted" in line for line in caplog.messages) == 1


def test_subtraction_of_both_channels(dithers):
    for model, old in zip(match(dithers, subtract=True, **BOTH), dithers, strict=True):
        expected = old.data - sum(image(old, channel, info) for channel, info in records(model).items())
        np.testing.assert_allclose(model.data, expected, atol=4e-5)
        assert (model.data != old.data)[:, 500].any()
        assert (model.data != old.data)[:, 530].any()


def test_pixels_that_are_bad_lose_the_background_too(dithers):
    given = twins(dithers[:2])
    for model in given:
        model.data[20] = 7.0
        model.dq[20] |= 1
    for model in match(given, subtract=True):
        inside = np.isfinite(model.meta.wcs(*np.meshgrid(np.arange(4.0, 516), [20.0]))).all(axis=0)[0]
        np.testing.assert_allclose(
            model.data[20, 4:516][inside], 7 - image(model, "1", records(model)["1"])[20, 4:516][inside], atol=1e-5
        )


def test_flags(dithers):
    """All pixels of one exposure in some rows are 300 too high, and flagged as what is bad only if one says so."""
    given, known = twins(dithers[:2]), twins(dithers[:2])
    given[0].data[10:40] += 300
    given[0].dq[10:40] |= 4
    known[0].dq[10:40] |= 1

    def level(models, dqbits):
        match(models, dqbits=dqbits, save_table="mrs.ecsv", maxiters=0)
        return rows()[models[0].meta.filename]["level"]

    expected = level(known, "~DO_NOT_USE+NON_SCIENCE")
    assert level(given, "~DO_NOT_USE+NON_SCIENCE+JUMP_DET") == pytest.approx(expected, rel=1e-10)
    assert level(given, "0") == pytest.approx(expected, rel=1e-10)
    assert level(given, "~DO_NOT_USE+NON_SCIENCE") > expected + 1


# -------------------------------------------------------------------------------------------------- inputs


def asn_dict(files):
    members = [{"expname": str(file), "exptype": "science"} for file in files]
    return {
        "asn_type": "spec3", "asn_rule": "Asn_Lv3MIRMRS", "asn_id": "a3001", "asn_pool": "none", "program": "09002",
        "target": "t001", "products": [{"name": "cube", "members": members}],
    }  # fmt: skip


KINDS = {
    "association": association,
    "list of paths": list,
    "container": lambda files: ModelContainer(opened(files)),
    "library in memory": lambda files: ModelLibrary(association(files)),
}
SLOW = {
    "association as dict": asn_dict,
    "list of models": opened,
    "another order": lambda files: files[::-1],
    "association as text": lambda files: str(association(files)),
    "library of models": lambda files: ModelLibrary(opened(files)),
    "two threads": opened,
    "library on disk": lambda files: ModelLibrary(association(files), on_disk=True),
    "in_memory=False": association,
}
KIND_OPTIONS = {"in_memory=False": {"in_memory": False}, "two threads": {"maximum_cores": "2"}}


@pytest.fixture
def _tidy():
    """A library on disk says that its folder is removed, whenever the collector of garbage finds it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def pair(dither_files):
    return dither_files[:2]


@pytest.fixture(scope="module")
def of_pair(pair):
    """Coefficients and data that the step makes of the pair."""
    done = match(opened(pair), subtract=True)
    return coefficients(done), [model.data for model in done]


@pytest.mark.parametrize("kind", [*few(1, KINDS), *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
@pytest.mark.usefixtures("_tidy")
def test_each_kind_of_input_gives_the_same(pair, of_pair, kind):
    before = digest(pair)
    given = (KINDS | SLOW)[kind](pair)
    own = list(given) if kind in ("list of models", "container", "two threads") else []
    contents = [(m.data.copy(), m.err.copy(), m.dq.copy(), m.to_flat_dict(include_arrays=False)) for m in own]
    result = MRSIMatchStep.call(given, channel="1", subtract=True, **KIND_OPTIONS.get(kind, {}))
    is_library = kind.startswith("library") or kind == "in_memory=False"
    assert isinstance(result, ModelLibrary if is_library else ModelContainer)
    assert (result is given) == kind.startswith("library")
    if is_library:
        assert result.on_disk == (kind in ("library on disk", "in_memory=False"))
    if kind.startswith("association"):
        assert result.asn_table["asn_id"] == "a3001"
    models = each(result)
    assert all(isinstance(model, IFUImageModel) for model in models)
    order = [file.name for file in pair].index(models[0].meta.filename)
    models = models[:: 1 - 2 * order]
    assert [model.meta.filename for model in models] == [file.name for file in pair]
    same(coefficients(models), of_pair[0])
    for model, theirs in zip(models, of_pair[1], strict=True):
        np.testing.assert_allclose(model.data, theirs, rtol=0, atol=1e-5)
    assert digest(pair) == before
    for model, (data, err, dq, meta) in zip(own, contents, strict=True):
        for now, then in ((model.data, data), (model.err, err), (model.dq, dq)):
            np.testing.assert_array_equal(now, then)
        assert model.to_flat_dict(include_arrays=False) == meta
        assert not header_cards(model)


@pytest.mark.slow
def test_a_container_keeps_its_association(pair):
    given = ModelContainer(str(association(pair)))
    result = MRSIMatchStep.call(given, channel="1")
    assert result.asn_table == given.asn_table
    assert result.asn_table_name == given.asn_table_name


@pytest.mark.parametrize("kind", few(1, ["file", "model"]))
def test_one_exposure(pair, kind):
    model = datamodels.open(pair[0])
    before = model.data.copy()
    given = {"file": str(pair[0]), "model": model}[kind]
    result = MRSIMatchStep.call(given, subtract=True, save_table="mrs.ecsv")
    assert isinstance(result, IFUImageModel)
    assert result is not model
    assert status([result]) == ["SKIPPED"]
    assert set(records(result)) == {"1", "2"}
    assert not coefficients([result]).any()
    assert result.meta.background.subtracted is None
    for data in (result.data, model.data):
        np.testing.assert_array_equal(data, before)
    assert list(table()["status"]) == ["no overlap"] * 2


def test_several_files_without_a_list(pair, of_pair):
    result = MRSIMatchStep(channel=["1"]).run(*map(str, pair))
    assert isinstance(result, ModelContainer)
    same(coefficients(result), of_pair[0])


def test_saved_files(pair, offline, tmp_path, monkeypatch):
    monkeypatch.delenv("VALIDATE_ON_ASSIGNMENT")
    before = digest(pair), sorted(pair[0].parent.iterdir())
    options = {"save_results": True, "channel": "1"}
    result = MRSIMatchStep.call([str(file) for file in pair], output_dir=str(tmp_path / "one"), **options)
    assert sorted((tmp_path / "one").glob("*.fits")) == results(pair, tmp_path / "one")
    assert (digest(pair), sorted(pair[0].parent.iterdir())) == before
    assert list(offline.iterdir()) == []
    for model, file in zip(result, results(pair, tmp_path / "one"), strict=True):
        np.testing.assert_array_equal(fits.getdata(file, "SCI"), model.data)
        with datamodels.open(file) as again:
            assert records(again) == records(model)
    names = [str(file) for file in results(pair, tmp_path / "one")]
    MRSIMatchStep.call(names, output_dir=str(tmp_path / "two"), **options)
    assert sorted((tmp_path / "two").glob("*.fits")) == results(pair, tmp_path / "two"), "a suffix is doubled"


# -------------------------------------------------------------------------------------------------- cards, metadata


def saved_cards(path):
    with fits.open(path) as hdus:
        header = hdus[0].header
        wanted = [key for key in header if key.startswith(("S_MRS", "BKG", "MASTERBG"))]
        assert [header.count(key) for key in wanted] == [1] * len(wanted)
        return {key: header[key] for key in wanted}


@pytest.mark.slow
def test_cards_survive_saving_opening_and_saving_again(dithers, tmp_path):
    given = [*dithers[:2], twin(dithers[2], move=FAR)]
    done = match(given, subtract=True)
    assert status(done) == ["COMPLETE", "COMPLETE", "SKIPPED"]
    for model in done[1:]:
        path = tmp_path / model.meta.filename
        model.save(path)
        first = saved_cards(path)
        expected = {"S_MRSMAT": model.meta.cal_step.mrs_imatch}
        assert first == expected | ({"BKGSUB": True} if expected["S_MRSMAT"] == "COMPLETE" else {})
        with datamodels.open(path) as again:
            assert again.meta.cal_step.mrs_imatch == expected["S_MRSMAT"]
            assert records(again) == records(model)
            again.copy().save(tmp_path / "again.fits")
        assert saved_cards(tmp_path / "again.fits") == first
        with datamodels.open(tmp_path / "again.fits") as again:
            assert records(again) == records(model)
    with fits.open(tmp_path / done[1].meta.filename) as hdus:
        assert any("bkgmatch" in line and "subtracted" in line for line in hdus[0].header["HISTORY"])


def test_other_metadata_of_the_background_stay(dithers):
    given = twins(dithers[:2])
    for model in given:
        model.meta.background = {"master_background_file": "master.fits", "scaling_factor": 0.7, "method": "median"}
    for model in match(given, subtract=True):
        background = model.meta.background
        assert background.master_background_file == "master.fits"
        assert (background.scaling_factor, background.method, background.subtracted) == (0.7, "median", True)
        undo(model)
        assert (background.master_background_file, background.scaling_factor) == ("master.fits", 0.7)
        assert (background.method, background.subtracted) == ("median", None)


def test_other_metadata_stay(dithers):
    ours = {
        "meta.background",
        "meta.cal_step.mrs_imatch",
        "meta.calibration_software",
        "history",
        "extra_fits",
        "cal_logs",
        "meta.asn",
    }
    for model, old in zip(match(dithers[:2]), dithers[:2], strict=True):
        now, then = (m.to_flat_dict(include_arrays=False) for m in (model, old))
        changed = {key for key in now.keys() | then.keys() if now.get(key) != then.get(key)}
        left = {key for key in changed if not key.startswith(tuple(ours))}
        assert left <= {"meta.group_id", "meta.date"}, left


def test_a_level_that_is_recorded_stays(dithers):
    """With subtract=False, as jwst's step had it."""
    given = twins(dithers[:2])
    for model in given:
        model.meta.background = {"level": 3.5, "subtracted": False}
    for model in match(given):
        assert (model.meta.background.level, model.meta.background.subtracted) == (3.5, False)
        assert set(records(model)) == {"1"}


def test_what_an_earlier_run_recorded_is_replaced(dithers):
    first = match(dithers[:2], **BOTH)
    assert set(records(first[0])) == {"1", "2"}
    alone = match([first[0], twin(first[1], move=FAR)])
    for model in alone:
        assert set(records(model)) == {"1"}
        assert not coefficients([model]).any()
        assert model.meta.background.subtracted is None
        assert header_cards(model) == {"S_MRSMAT": "SKIPPED"}
        assert status([model]) == ["SKIPPED"]
    again = match(alone, channel=["2"])
    assert [set(records(model)) for model in again] == [{"2"}] * 2
    together = match([alone[0], first[1]])
    assert status(together) == ["COMPLETE"] * 2
    same(coefficients(together), coefficients(first))


def test_a_matched_exposure_as_a_background_keeps_its_record(dithers):
    done = match(twins(dithers), **BOTH, subtract=True)[0]
    done.meta.asn.exptype = "background"
    given = twins(dithers[1:3])
    for model in given:
        model.meta.asn.exptype = "science"
    before = done.data.copy()
    again = match([*given, done], subtract=True)[-1]
    assert again.meta.background.subtracted is True
    assert set(records(again)) == {"1", "2"}
    np.testing.assert_array_equal(again.data, before)
    assert undo(again)
    np.testing.assert_allclose(again.data, dithers[0].data, atol=1e-4)


def test_data_whose_background_is_subtracted_are_refused(dithers):
    done = match(dithers[:2], subtract=True)
    for given in (done, [dithers[0], done[1]]):
        before = [model.data.copy() for model in given]
        with pytest.raises(ValueError, match=r"mirifushort_cal.fits: .*previously subtracted.*bkgmatch undo"):
            MRSIMatchStep.call(ModelLibrary(given))
        for model, data in zip(given, before, strict=True):
            np.testing.assert_array_equal(model.data, data)
        assert header_cards(done[1]) == {"S_MRSMAT": "COMPLETE"}


# -------------------------------------------------------------------------------------------------- apply and undo

INFOS = [
    {"degree": [1, 0, 2], "refpoint": [45.0, -10.0, 5.3], "coefficients": [1.0, 2, 3, 4e3, 5e3, 6e3], "channel": "1"},
    {"degree": [0, 0, 1], "refpoint": [45.0, -10.0, 8.1], "coefficients": [-2.0, 0.5], "channel": "2"},
]


@pytest.fixture
def recorded(dithers):
    """An exposure with polynomials that are not subtracted."""
    model = twin(dithers[0])
    model.meta.background.polynomial_info = INFOS
    model.meta.background.subtracted = False
    return model


CHANNELS = {
    "all": (None, "12"), "text": ("1", "1"), "number": (2, "2"), "numpy": (np.int64(2), "2"), "one": (["1"], "1"),
    "list": (["2", 1], "12"), "tuple": ((2,), "2"), "set": ({1, "2"}, "12"), "array": (np.array([1, 2]), "12"),
    "generator": ((c for c in "21"), "12"), "none": ([], ""),
}  # fmt: skip


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", few(1, CHANNELS))
def test_apply_background_2d(dithers, recorded, kind, subtract):
    old, (channel, expected) = dithers[0], CHANNELS[kind]
    if kind == "generator":
        channel = iter("21")
    before = recorded.to_flat_dict(include_arrays=False)
    assert apply_background_2d(recorded, channel, subtract=subtract) is None
    assert recorded.to_flat_dict(include_arrays=False) == before
    total = sum(
        (image(old, c, info) for c, info in zip("12", INFOS, strict=True) if c in expected), np.zeros(old.shape)
    )
    np.testing.assert_allclose(recorded.data, old.data + (-total if subtract else total), atol=1e-5)
    for other in {"1", "2"} - set(expected):
        part = np.s_[:, slice(*COLUMNS[other])]
        np.testing.assert_array_equal(recorded.data[part], old.data[part])
    for name in ("err", "dq", "var_rnoise", "var_poisson"):
        np.testing.assert_array_equal(getattr(recorded, name), getattr(old, name))


@pytest.mark.parametrize("channel", COLUMNS)
def test_pixels_of_a_channel(channel):
    """Half of the detector without its reference pixels, as jwst's step had it."""
    x, y = channel_pixels(channel)
    assert x.shape == y.shape == (1024, 512)
    assert (x.min(), x.max() + 1) == COLUMNS[channel]
    assert (y.min(), y.max()) == (0, 1023)


def test_a_channel_is_subtracted_once(recorded):
    """However it is listed."""
    once, twice = twin(recorded), twin(recorded)
    apply_background_2d(once, [1])
    apply_background_2d(twice, [1, "1"])
    np.testing.assert_array_equal(twice.data, once.data)


def test_apply_background_2d_needs_a_record(dithers, recorded):
    for channel in ("3", 3, ["1", "3"], (3, 1), "12", 12, ""):
        with pytest.raises(ValueError, match=r"Background data for channel.*not present.*00001_mirifushort_cal.fits"):
            apply_background_2d(recorded, channel)
    with pytest.raises(ValueError, match="not present"):
        apply_background_2d(twin(dithers[0]), 1)
    for channel in (1.5, object(), True):
        with pytest.raises(TypeError, match="Unsupported 'channel' type"):
            apply_background_2d(recorded, channel)
    np.testing.assert_array_equal(recorded.data, dithers[0].data)


def test_apply_background_2d_takes_the_last_record_of_a_channel(dithers, recorded):
    """As jwst's step did."""
    recorded.meta.background.polynomial_info = [{**INFOS[1], "channel": "1"}, INFOS[0]]
    apply_background_2d(recorded, 1)
    np.testing.assert_allclose(recorded.data, dithers[0].data - image(dithers[0], "1", INFOS[0]), atol=1e-5)


def assert_undone(model, old, changed):
    """Two roundings, each half of the last digit of float32 at the size of the data or of what is left."""
    allowed = np.spacing((np.abs(old.data) + np.abs(changed)).astype(np.float32))
    finite = np.isfinite(old.data)
    assert (np.abs(model.data.astype(float) - old.data)[finite] <= allowed[finite]).all()
    np.testing.assert_array_equal(np.isnan(model.data), np.isnan(old.data))


def assert_no_record(model):
    assert records(model) == {}
    assert model.meta.background.subtracted is None
    assert header_cards(model) == {}
    assert status([model]) == [None]


def test_undo(dithers):
    for model, old in zip(match(dithers, subtract=True, **BOTH), dithers, strict=True):
        changed = np.nanmax(np.abs(model.data - old.data))
        assert changed > 1
        assert undo(model)
        assert_undone(model, old, changed)
        assert_no_record(model)
        assert not undo(model)


def test_undo_of_polynomials_that_are_not_subtracted(dithers):
    for model, old in zip(match(dithers), dithers, strict=True):
        assert undo(model)
        np.testing.assert_array_equal(model.data, old.data)
        assert_no_record(model)


@pytest.mark.slow
def test_undo_on_the_command_line(dithers, tmp_path, capsys):
    done = match(dithers[:2], subtract=True)
    for model in done:
        model.meta.filename = model.meta.filename.replace("_cal", "_mrsimatch")
    files = write(done, tmp_path / "in")
    before = digest(files)
    assert main(["undo", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    assert digest(files) == before
    for file, old in zip(files, dithers[:2], strict=True):
        with datamodels.open(tmp_path / "out" / file.name) as model:
            assert_undone(model, old, 15.0)
            assert_no_record(model)
        assert saved_cards(tmp_path / "out" / file.name) == {}
    assert capsys.readouterr().out.count("_mrsimatch.fits") >= 2


# -------------------------------------------------------------------------------------------------- groups


@pytest.fixture(scope="session")
def medium(simulate_mrs):
    return simulate_mrs(n_exposures=2, band="MEDIUM")[0]


@pytest.fixture(scope="session")
def long(simulate_mrs):
    return simulate_mrs(n_exposures=2, detector="MIRIFULONG")[0]


def test_bands_are_matched_apart(dithers, medium):
    done = match([dithers[0], medium[0], dithers[1], medium[1]], save_table="mrs.ecsv")
    assert status(done) == ["COMPLETE"] * 4
    for ours, given in ((done[::2], dithers[:2]), (done[1::2], medium)):
        same(coefficients(ours), coefficients(match(given)))
    assert [str(band) for band in table()["band"]] == ["MEDIUM"] * 2 + ["SHORT"] * 2
    pairs = Table.read("mrs_pairs.ecsv")
    assert list(pairs["band"]) == ["MEDIUM", "SHORT"]


def test_one_exposure_of_each_band(dithers, medium):
    done = match([dithers[0], medium[0]], save_table="mrs.ecsv", subtract=True)
    assert status(done) == ["SKIPPED"] * 2
    for model, old in zip(done, (dithers[0], medium[0]), strict=True):
        assert not coefficients([model]).any()
        np.testing.assert_array_equal(model.data, old.data)
    assert list(table()["status"]) == ["no overlap"] * 2
    assert len(Table.read("mrs_pairs.ecsv")) == 0


@pytest.mark.slow
def test_both_detectors_in_any_order(dithers, long):
    given = [long[1], dithers[2], dithers[0], long[0], dithers[1]]
    done = match(given, save_table="mrs.ecsv", **BOTH)
    assert status(done) == ["COMPLETE"] * 5
    expected = [{"3", "4"}, {"1", "2"}, {"1", "2"}, {"3", "4"}, {"1", "2"}]
    assert [set(records(model)) for model in done] == expected
    alone = match(long, **BOTH)
    for channel in "34":
        same(coefficients([done[3], done[0]], channel), coefficients(alone, channel))
    alone = match(dithers, **BOTH)
    for channel in "12":
        same(coefficients([done[i] for i in (2, 4, 1)], channel), coefficients(alone, channel))
    assert list(table()["channel"]) == ["1"] * 3 + ["2"] * 3 + ["3"] * 2 + ["4"] * 2


CHOICES = {
    "one": ({"channel": "2"}, {"2"}),
    "number": ({"channel": [2]}, {"2"}),
    "two": ({"channel": ["4", "1"]}, {"1", "4"}),
    "all": ({"channel": "all"}, {"1", "2", "3", "4"}),
    "band": ({"band": "short", "channel": None}, {"1", "2", "3", "4"}),
    "nothing": ({"channel": None}, {"1", "2", "3", "4"}),
}


@pytest.mark.parametrize("kind", few(2, CHOICES))
def test_channels_and_bands_may_be_chosen(dithers, long, kind):
    options, expected = CHOICES[kind]
    done = match([*dithers[:2], *long], bkg_degree=0, maxiters=0, **options)
    for model in done:
        own = set(model.meta.instrument.channel)
        assert set(records(model)) == own & expected
        assert status([model]) == ["COMPLETE" if own & expected else "SKIPPED"]


def test_exposures_elsewhere_are_sets_of_their_own(dithers, caplog):
    given = [*dithers, *(twin(model, move=FAR) for model in dithers[:2])]
    for n, model in enumerate(given[3:]):
        model.meta.filename = f"far{n}_cal.fits"
    given.append(twin(dithers[0], move=(100.0, 40.0)))
    given[-1].meta.filename = "lost_cal.fits"
    done = match(given, save_table="mrs.ecsv", subtract=True)
    assert status(done) == ["COMPLETE"] * 5 + ["SKIPPED"]
    component = {str(row["name"]): row["component"] for row in table()}
    assert len({component[model.meta.filename] for model in given[:3]}) == 1
    assert component["far0_cal.fits"] == component["far1_cal.fits"]
    assert len(set(component.values())) == 3
    same(coefficients(done[:3]), coefficients(match(dithers)))
    assert np.abs(coefficients(done[3:5]).sum(axis=0) / np.abs(coefficients(done[3:5])).max(axis=0)).max() < 1e-9
    assert not coefficients(done[5:]).any()
    np.testing.assert_array_equal(done[5].data, dithers[0].data)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("lost_cal.fits" in line and "no overlap" in line for line in warned)
    assert any("2 sets without overlap" in line for line in warned)


def test_an_exposure_without_good_pixels(dithers, caplog):
    blind = twin(dithers[2], dq=np.ones_like(dithers[2].dq))
    done = match([*dithers[:2], blind], save_table="mrs.ecsv", subtract=True)
    assert status(done) == ["COMPLETE", "COMPLETE", "SKIPPED"]
    assert records(done[2]) == {}
    np.testing.assert_array_equal(done[2].data, dithers[2].data)
    sigma = rows()[dithers[0].meta.filename]["sigma"]  # the grid is another, for the third exposure has its part in it
    assert coefficients(done[:2])[:, 0] == pytest.approx(coefficients(match(dithers[:2]))[:, 0], abs=3 * sigma)
    row = rows()[blind.meta.filename]
    assert (row["status"], row["component"], row["npix"]) == ("no good pixels", -1, 0)
    assert any(blind.meta.filename in line and "no good pixels" in line for line in caplog.messages)


def test_one_channel_without_good_pixels(dithers):
    """The other channel is matched and subtracted."""
    blind = twin(dithers[2])
    blind.dq[:, 516:] |= 1
    done = match([*dithers[:2], blind], subtract=True, **BOTH)
    assert status(done) == ["COMPLETE"] * 3
    assert set(records(done[2])) == {"1"}
    np.testing.assert_array_equal(done[2].data[:, 516:], dithers[2].data[:, 516:])


@pytest.mark.slow
def test_across_zero_hours(simulate_mrs, dithers):
    """Same sky, same noise: the polynomials are the same."""
    models = simulate_mrs(n_exposures=3, ra=0.0)[0]
    ra = [model.meta.wcs(100.0, 30.0)[0] for model in models]
    assert min(ra) < 1
    assert max(ra) > 359
    ours, theirs = match(models, **BOTH), match(dithers, **BOTH)
    for channel in "12":
        same(coefficients(ours, channel), coefficients(theirs, channel), 1e-3)
        ra0, *other = records(ours[0])[channel]["refpoint"]
        assert 0 <= ra0 < 360
        assert (ra0 + 180) % 360 - 180 == pytest.approx(records(theirs[0])[channel]["refpoint"][0] - 45, abs=1e-8)
        assert other == pytest.approx(records(theirs[0])[channel]["refpoint"][1:], abs=1e-8)
    for model, old in zip(match(models, subtract=True), models, strict=True):
        gone = old.data.astype(float) - model.data
        assert np.nanmax(np.abs(gone)) < 30


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.usefixtures("_tidy")
def test_dedicated_backgrounds_are_left_alone(dither_files, in_memory, tmp_path):
    path = association(dither_files, name="with_background.json", exptypes=["science", "background", "science"])
    result = MRSIMatchStep.call(
        str(path), in_memory=in_memory, channel="1", subtract=True, save_table="mrs.ecsv", output_dir=str(tmp_path),
        save_results=True,
    )  # fmt: skip
    done = each(result)
    assert status(done) == ["COMPLETE", "SKIPPED", "COMPLETE"]
    assert records(done[1]) == {}
    np.testing.assert_array_equal(done[1].data, datamodels.open(dither_files[1]).data)
    assert set(table()["name"]) == {dither_files[0].name, dither_files[2].name}
    kinds = [(saved_cards(file)["S_MRSMAT"]) for file in results(dither_files, tmp_path)]
    assert kinds == ["COMPLETE", "SKIPPED", "COMPLETE"]


@pytest.mark.parametrize("in_memory", few(1, [True, False]))
@pytest.mark.usefixtures("_tidy")
def test_spectra_of_dedicated_backgrounds_stay(dither_files, in_memory, tmp_path):
    """As bkg_spec3 takes them: they are no images, and come back as they are."""
    files = [Path(shutil.copy(file, tmp_path)) for file in dither_files[:2]]
    spectrum = datamodels.MRSMultiSpecModel()
    spectrum.meta.filename = files[0].name.replace("00001_mirifushort_cal", "00009_mirifushort_x1d")
    spectrum.meta.exposure.type, spectrum.meta.telescope = "MIR_MRS", "JWST"
    spectrum.save(tmp_path / spectrum.meta.filename)
    kinds = ["science", "science", "background"]
    path = association([*files, tmp_path / spectrum.meta.filename], exptypes=kinds)
    result = MRSIMatchStep.call(
        str(path), in_memory=in_memory, channel="1", subtract=True, save_results=True, output_dir=str(tmp_path / "out")
    )
    done = each(result)
    assert status(done[:2]) == ["COMPLETE", "COMPLETE"]
    assert isinstance(done[2], datamodels.MRSMultiSpecModel)
    assert header_cards(done[2]) == {}
    (saved,) = (tmp_path / "out").glob("*_asn.json")
    assert [m["exptype"] for m in json.loads(saved.read_text())["products"][0]["members"]] == kinds


def test_models_may_share_a_name(dithers):
    given = twins(dithers)
    for model in given:
        model.meta.filename = "same_cal.fits"
    done = match(given, save_table="mrs.ecsv")
    same(coefficients(done), coefficients(match(dithers)))
    assert list(table()["name"]) == [f"same_cal.fits[{n}]" for n in (1, 2, 3)]


@pytest.mark.slow
def test_a_source_that_only_some_see_well(simulate_mrs):
    """A bright star and lines that wave over the sky do not tilt the backgrounds by more than 0.1."""
    scene = {"n_exposures": 3, "extended": (300.0, 0.8), "gradient": 3.0, "lines": ((5.05, 150.0), (5.34, 300.0))}
    models, truth = simulate_mrs(**scene)
    done = match(models, save_table="mrs.ecsv")
    level = {name: row["level"] for name, row in rows().items()}
    infos = [records(model)["1"] for model in done]
    for n, (info, name) in enumerate(zip(infos, truth.names, strict=True)):
        true = relative_truth(truth, "1", info)[n]
        assert info["coefficients"][0] == pytest.approx(true[0], abs=0.1)
        assert level[name] == pytest.approx(true[0], abs=1)


# -------------------------------------------------------------------------------------------------- cube_build


@pytest.mark.parametrize("planes", [ROWS, pytest.param(8 * ROWS, marks=pytest.mark.slow)])
def test_voxels_of_cube_build(dithers, tmp_path, planes):
    """Its polynomials are those of the detector's voxels within errors, whatever the length of a plane."""
    cubepar = tmp_path / "cubepar.fits"
    write_cubepar(cubepar, planes)
    before = [model.data.copy() for model in dithers[:2]]
    given = twins(dithers[:2])
    MRSIMatchStep.call(
        ModelLibrary(given), channel="1", cells="cube_build", override_cubepar=str(cubepar), save_table="cube.ecsv"
    )
    done = match(dithers[:2], save_table="mrs.ecsv")
    ours, theirs = rows(path="cube.ecsv"), rows()
    assert table("cube.ecsv").meta["options"]["cells"] == "cube_build"
    for model, other, data in zip(given, done, before, strict=True):
        assert status([model]) == ["COMPLETE"]
        name = model.meta.filename
        error = np.hypot(ours[name]["errors"], theirs[name]["errors"])
        info = {**records(model)["1"]}
        here, there = image(model, "1", info), image(model, "1", records(other)["1"])
        assert np.abs(here - there)[:, 4:516].max() < 8 * 8 * error[0]  # voxels of cubes share pixels
        assert ours[name]["level"] == pytest.approx(theirs[name]["level"], abs=1)
        np.testing.assert_array_equal(model.data, data)


def test_cube_build_without_a_reference_file(dithers):
    given = twins(dithers[:2])
    with pytest.raises(ValueError, match=r"cells='cube_build' needs override_cubepar"):
        MRSIMatchStep.call(ModelLibrary(given), cells="cube_build")
    assert status(given) == [None] * 2


# -------------------------------------------------------------------------------------------------- tables, log

COLUMN_NAMES = "name channel band component npix level sigma ra dec wavelength coefficients errors loose bounded status"
PAIR_NAMES = "first second channel band npix offset sigma residual"


def test_tables(dithers):
    done = match(dithers[::-1], save_table="mrs.ecsv", subtract=True, dqbits="~DO_NOT_USE", **BOTH)
    exposures, pairs = table(), Table.read("mrs_pairs.ecsv")
    assert exposures.colnames == COLUMN_NAMES.split()
    names = sorted(model.meta.filename for model in dithers)
    assert list(exposures["name"]) == names * 2
    assert list(exposures["channel"]) == ["1"] * 3 + ["2"] * 3
    assert exposures["level"].unit == exposures["sigma"].unit == "MJy / sr"
    assert exposures["ra"].unit == exposures["dec"].unit == "deg"
    assert exposures["wavelength"].unit == "um"
    for row in exposures:
        info = records(next(model for model in done if model.meta.filename == row["name"]))[row["channel"]]
        np.testing.assert_array_equal(row["coefficients"], info["coefficients"])
        assert [row[name] for name in ("ra", "dec", "wavelength")] == info["refpoint"]
        assert row["status"] == "matched"
        assert row["npix"] > 100
    options = exposures.meta["options"]
    assert options["bkg_degree"] == [1, 1, 1]
    assert (options["subtract"], options["dqbits"], options["cells"]) == (True, "~DO_NOT_USE", "detector")
    assert pairs.colnames == PAIR_NAMES.split()
    expected = [(names[i], names[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [(row["first"], row["second"]) for row in pairs] == expected * 2
    assert pairs["offset"].unit == pairs["sigma"].unit == pairs["residual"].unit == "MJy / sr"
    for row in pairs:
        found = rows(row["channel"])
        left = row["offset"] - (found[row["first"]]["level"] - found[row["second"]]["level"])
        assert abs(left) < 3, "an offset has the wrong sign"
        assert abs(row["residual"]) < 5 * row["sigma"]
    for name, read in (("mrs.ecsv", exposures), ("mrs_pairs.ecsv", pairs)):
        read.write("again.ecsv", overwrite=True)
        assert Path("again.ecsv").read_text() == Path(name).read_text()


def test_log(dithers, caplog):
    match(dithers)
    lines = [record.message for record in caplog.records if record.name == "stpipe.bkgmatch.mrs_imatch"]
    assert any("channel 1 SHORT: 3 of 3 exposures matched; residuals of 3 pairs:" in line for line in lines)
    for model in dithers:
        (line,) = [line for line in lines if model.meta.filename in line]
        assert re.search(r": -?[\d.]+ \+- [\d.]+ MJy/sr from the mean of the set, on average$", line)
    warnings = [r.message for r in caplog.records if r.name.startswith("stpipe.bkgmatch") and r.levelname != "INFO"]
    assert [line[:20] for line in warnings] == ["Nothing is subtracte"]


def test_terms_that_overlaps_do_not_determine_are_named(dithers, caplog):
    """Only one row of each exposure is good."""
    given = twins(dithers[:2])
    for model in given:
        model.dq[:30] |= 1
        model.dq[31:] |= 1
    match(given, save_table="mrs.ecsv")
    for model in given:
        (line,) = [line for line in caplog.messages if model.meta.filename in line and "do not determine" in line]
        loose = str(rows()[model.meta.filename]["loose"])
        assert "wavelength" in loose
        assert ", ".join(loose.split(", ")[:4]) in line


# -------------------------------------------------------------------------------------------------- parameters


def test_spec_and_options_have_the_same_defaults():
    step = MRSIMatchStep()
    for field in fields(MRSIMatchOptions):
        assert getattr(step._options(), field.name) == field.default, field.name
        assert type(getattr(step._options(), field.name)) is type(field.default), field.name


def test_spec_and_options_have_the_same_choices():
    spec = described(MRSIMatchStep)
    for field in fields(MRSIMatchOptions):
        allowed = set(get_args(field.type))
        if allowed and field.name != "bkg_degree":
            assert set(re.findall(r"'([^']*)'", spec[field.name].partition("default")[0])) == allowed, field.name


def test_every_option_has_a_parameter_and_the_others_are_known():
    others = {
        "channel", "band", "cells", "dqbits", "override_cubepar", "subtract", "skip", "save_table", "suffix",
        "output_use_model", "in_memory", "temp_dir", "maximum_cores", "dask_scheduler", "report",
    }  # fmt: skip
    assert set(described(MRSIMatchStep)) == others | {field.name for field in fields(MRSIMatchOptions)}


def test_names_for_strun():
    names = {step.class_name: step.class_alias for step in entry_points.get_steps()}
    assert names["bkgmatch.MRSIMatchStep"] == "bkg_mrs_imatch"
    assert list(names.values()).count("bkg_mrs_imatch") == 1


@pytest.mark.parametrize("skip", [None, False])
def test_in_a_pipeline_the_step_must_be_turned_on(dithers, skip):
    given = twins(dithers[:2])
    step = MRSIMatchStep(parent=Step(), channel=["1"], **({} if skip is None else {"skip": skip}))
    result = step.run(ModelContainer(given))
    assert isinstance(result, ModelContainer)
    assert status(result) == ["SKIPPED" if skip is None else "COMPLETE"] * 2
    assert [bool(records(model)) for model in result] == [skip is False] * 2


def test_parameters_are_saved_and_read(dithers, tmp_path):
    step = MRSIMatchStep(bkg_degree=["1", "1", "2"], channel=["1"], band=["SHORT"], subtract=True, sigma=4.0)
    step.export_config(tmp_path / "pars.asdf")
    again = MRSIMatchStep.from_config_file(str(tmp_path / "pars.asdf"))
    assert again._options() == step._options()
    assert (again.channel, again.band, again.subtract, again.sigma) == (["1"], ["SHORT"], True, 4.0)
    done = twins(dithers[:2])
    again.run(ModelLibrary(done))
    assert records(done[0])["1"]["degree"] == [1, 1, 2]


@pytest.mark.parametrize("strun", [quick_strun, slow(slow_strun)])
def test_strun(dithers, pair, tmp_path, strun, monkeypatch):
    monkeypatch.delenv("VALIDATE_ON_ASSIGNMENT")
    pars = tmp_path / "pars.asdf"
    output = strun(
        "bkg_mrs_imatch", str(association(pair)), "--subtract=true", "--bkg_degree=1,1,2", "--channel=1",
        f"--output_dir={tmp_path}", f"--save_table={tmp_path / 'mrs.ecsv'}", f"--save-parameters={pars}",
    )  # fmt: skip
    assert "CRDS is not set up" in output
    assert "channel 1 SHORT: 2 of 2 exposures matched" in output
    with asdf.open(pars) as saved:
        assert saved["class"] == "bkgmatch.steps.mrs_imatch.MRSIMatchStep"
        parameters = saved["parameters"]
        assert [str(d) for d in parameters["bkg_degree"]] == ["1", "1", "2"]
        assert (parameters["channel"], parameters["subtract"]) == (["1"], True)
    expected = match(dithers[:2], bkg_degree=[1, 1, 2], subtract=True)
    assert sorted(tmp_path.glob("*.fits")) == results(pair, tmp_path)
    for file, model in zip(results(pair, tmp_path), expected, strict=True):
        np.testing.assert_allclose(fits.getdata(file, "SCI"), model.data, atol=1e-5)
        assert saved_cards(file) == {"S_MRSMAT": "COMPLETE", "BKGSUB": True}
    assert len(table(tmp_path / "mrs.ecsv")) == 2
    again = MRSIMatchStep.from_config_file(str(pars))
    assert (again._options().degree, again.channel, again.subtract) == ((1, 1, 2), ["1"], True)


@pytest.mark.slow
def test_strun_by_the_name_of_the_class(pair, offline):
    """Results are beside where one is, named after the exposures."""
    slow_strun("bkgmatch.MRSIMatchStep", *map(str, pair), "--channel=1", "--bkg_degree=0")
    assert sorted(offline.glob("*.fits")) == results(pair, offline)
    for file in offline.glob("*.fits"):
        assert saved_cards(file) == {"S_MRSMAT": "COMPLETE", "BKGSUB": False}
