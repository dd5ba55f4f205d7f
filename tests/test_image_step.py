"""ImageForImageStep on real files: inputs, pixels, masks, records, groups, rate exposures, undo."""

import gc
import json
import os
import re
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import get_args

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import as_rate, association, described, digest, has, image_files, write, write_mosaic
from common import few, slow, tan
from forks import quick_strun, slow_strun
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags
from stpipe import entry_points

from bkgmatch import ImageForImageStep, SkyMatchStep
from bkgmatch.cli import main
from bkgmatch.detectors import pixels_on_plane
from bkgmatch.options import ImageForImageOptions
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.cards import drop_cards
from bkgmatch.steps.models import undo
from bkgmatch.steps.simulated import as_model

pytestmark = pytest.mark.usefixtures("offline")

ESTIMATED, UNUSABLE, NON_SCIENCE, JUMP = (
    dq_flags[name] for name in ("FLUX_ESTIMATED", "DO_NOT_USE", "NON_SCIENCE", "JUMP_DET")
)
PLANES = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat")
RECORD = {"S_I4IMG", "I4I_SUB", "I4IBKG", "I4I_HASH", "I4I_RNOI"}
QUICK = {"maxiters": 1}


def run(inputs, **options):
    return ImageForImageStep.call(inputs, **options)


def each(library, look=lambda model: model):
    """What a function finds in each model."""
    with library:
        return list(library.map_function(lambda model, _: look(model), modify=False))


def arrays(library, name="data"):
    return each(library, lambda model: np.array(getattr(model, name)))


def status(library):
    return each(library, lambda model: model.meta.cal_step.image_for_image)


def opened(files):
    return [datamodels.open(file) for file in files]


def results(files, folder, suffix="i4i"):
    return [Path(folder) / re.sub("_(cal|rate)[.]fits$", f"_{suffix}.fits", Path(file).name) for file in files]


def cards(path):
    """Our cards in a saved file; none of them twice."""
    with fits.open(path) as hdus:
        header = hdus[0].header
        found = {key: header[key] for key in header if key[:3] == "I4I" or key == "S_I4IMG"}
        assert [header.count(key) for key in found] == [1] * len(found)
        return found


def rows(path="images.ecsv"):
    return {str(row["name"]): row for row in Table.read(path)}


def members(path="images.ecsv"):
    """Numbers of the members of each exposure, by its number, from the exposure numbers in the names."""
    number = re.compile(r"_(\d{5})_mir")
    return {
        int(number.search(name)[1]): [int(n) for n in number.findall(str(row["members"]))]
        for name, row in rows(path).items()
    }


def models_of(scene, change=lambda model, i: None, **kwargs):
    """Models of the exposures of a scene, in memory."""
    models = [as_model(e, number=i, **kwargs) for i, e in enumerate(scene.exposures)]
    for i, model in enumerate(models):
        change(model, i)
    return models


# -------------------------------------------------------------------------------------------------- simulated files


@pytest.fixture(scope="module", autouse=True)
def _assign_freely():
    """Checking each assignment to a model takes two thirds of the time of the step; `saved` and strun do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        yield


@pytest.fixture(scope="module")
def scene():
    """Four dithers, 23 pixels apart, with sources, cosmic rays and bad pixels."""
    return simulate_dithers(
        rng=np.random.default_rng(23), dithers=4, dither_step=40.0, binning=16, n_sources=14, fluxes=(20.0, 300.0)
    )


@pytest.fixture(scope="module")
def image_cals(scene, tmp_path_factory):
    """Files of them; the variances of each kind are parts of ERR squared."""
    return image_files(scene, tmp_path_factory.mktemp("cals"))


@pytest.fixture(scope="module")
def three(image_cals):
    return image_cals[:3]


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """An option: a mask without sources, so that none are searched for."""
    path = tmp_path_factory.mktemp("blind") / "none.fits"
    fits.PrimaryHDU(np.zeros((9, 9), np.uint8), tan(150.0, 2.2, shape=(9, 9), pixel=60.0).to_header()).writeto(path)
    return {"source_mask": str(path)}


@pytest.fixture(scope="module")
def saved(image_cals, tmp_path_factory, _assign_freely):
    """Folder of everything that the step saves of them, with tables and masks."""
    folder = tmp_path_factory.mktemp("saved")
    before = digest(image_cals), sorted(image_cals[0].parent.iterdir())
    options = {"save_results": True, "save_mask": True, "save_table": str(folder / "images.ecsv")}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VALIDATE_ON_ASSIGNMENT")
        run(str(association(image_cals)), output_dir=str(folder), **options)
    gc.freeze()  # the schemas that have been read by now; as in conftest
    image_cals[0].with_name("asn.json").unlink()
    assert (digest(image_cals), sorted(image_cals[0].parent.iterdir())) == before
    return folder


@pytest.fixture(scope="module")
def of_three(three):
    """Arrays that the step makes of three of them, to compare others with."""
    library = run([str(file) for file in three], **QUICK)
    return each(library, lambda m: {name: np.array(getattr(m, name)) for name in PLANES})


@pytest.fixture(scope="module")
def pairs(image_cals, saved):
    """What was given, what came out and the background of each exposure: models."""
    return list(
        zip(opened(image_cals), opened(results(image_cals, saved)), opened(results(image_cals, saved, "i4ibkg")),
            strict=True)
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- pixels


def test_the_result_is_the_input_less_the_saved_background(pairs):
    for old, new, background in pairs:
        assert new.data.dtype.newbyteorder("=") == background.data.dtype.newbyteorder("=") == np.float32
        assert np.isfinite(background.data).all()
        np.testing.assert_array_equal(new.data, old.data - background.data)


def test_the_truth_is_found(scene, pairs):
    """Pattern and level of the detector: where there are no sources within their errors, and on sources."""
    for i, (exposure, (_, _, background)) in enumerate(zip(scene.exposures, pairs, strict=True)):
        dark = exposure.good & (scene.light(i) < 0.02)
        left = background.data - scene.background(i)
        pulls = (left / background.err)[dark]
        assert 0.85 < 1.4826 * np.median(np.abs(pulls)) < 1.15
        assert abs(np.median(left[dark])) < 0.03, "of light that is left on the others"
        on_source = exposure.good & (scene.light(i) > 1)
        assert on_source.sum() > 20
        assert abs(np.mean(left[on_source])) < 0.06, "sources are subtracted"
        assert np.median(background.err[exposure.good]) == pytest.approx(0.115 / np.sqrt(3), rel=0.2)


def test_the_variance_of_the_background_is_added(pairs):
    for old, new, background in pairs:
        added = background.err.astype(float) ** 2
        np.testing.assert_allclose(new.err.astype(float) ** 2, old.err.astype(float) ** 2 + added, rtol=1e-6)
        np.testing.assert_allclose(new.var_rnoise, old.var_rnoise.astype(float) + added, rtol=1e-6)
        for plane in ("var_poisson", "var_flat"):
            np.testing.assert_array_equal(getattr(new, plane), getattr(old, plane))
        assert (added > 0).all()


def test_variance_that_is_split(scene, saved):
    """Each plane gets the share that it has, and together they get it all."""

    def planes(model, i):
        variance = np.square(model.err)
        model.var_poisson, model.var_rnoise, model.var_flat = variance / 2, 3 * variance / 8, variance / 8

    given = models_of(scene, planes)
    library = run(given, split_variance=True, save_results=True, output_dir=".")
    for old, new, file in zip(given, each(library), results([m.meta.filename for m in given], "."), strict=True):
        added = np.square(fits.getdata(results([old.meta.filename], ".", "i4ibkg")[0], "ERR").astype(float))
        for name, share in (("var_poisson", 1 / 2), ("var_rnoise", 3 / 8), ("var_flat", 1 / 8)):
            gained = getattr(new, name).astype(float) - getattr(old, name)
            np.testing.assert_allclose(gained, share * added, atol=1e-8, rtol=1e-4)
        assert cards(file)["I4I_POIS"] == pytest.approx(1 / 2, rel=1e-5)
        with datamodels.open(file) as again:
            undo(again, Path())
            for name in PLANES[1:]:
                np.testing.assert_allclose(getattr(again, name), getattr(old, name), rtol=3e-6, err_msg=name)


def test_errors_of_exposures_without_variances(scene, blind):
    """There is ERR alone."""
    given = models_of(scene, lambda model, i: setattr(model, "var_rnoise", None))
    for old, new in zip(given, each(run(given, split_variance=True, **QUICK, **blind)), strict=True):
        assert new.var_rnoise is None
        assert (new.err > 1.1 * old.err)[new.dq == 0].all()


HOLE = np.s_[30:33, 40:44]


@pytest.fixture
def with_holes(scene):
    """Only the first exposure has good pixels in the hole; two of them are bad or blank there. Others have flags."""

    def change(model, i):
        model.dq[HOLE] = 0 if i == 0 else UNUSABLE
        model.data[HOLE] = 10.0
        model.dq[50, 20 + i] = JUMP
        model.dq[51, 20 + i] = 2**30  # OTHER_BAD_PIXEL
        if i == 0:
            model.dq[30, 40], model.data[30, 41] = UNUSABLE | JUMP, np.nan
            model.dq[30, 42] = ESTIMATED

    return models_of(scene, change)


@pytest.mark.parametrize("holes", ["interpolate", "flag"])
def test_flags(with_holes, holes, blind):
    flag = ESTIMATED if holes == "interpolate" else UNUSABLE
    library = run(with_holes, holes=holes, save_table="images.ecsv", **blind, save_results=True, output_dir=".")
    for i, (old, new) in enumerate(zip(with_holes, each(library), strict=True)):
        was_good = (old.dq & (UNUSABLE | NON_SCIENCE)) == 0
        gained = new.dq & ~old.dq
        assert set(np.unique(gained)) <= {0, flag}
        assert (new.dq & old.dq == old.dq).all()
        assert was_good[gained > 0].all()
        finite = np.isfinite(old.data)
        np.testing.assert_array_equal(np.isfinite(new.data), finite)
        assert np.isfinite(new.err[np.isfinite(old.err)]).all()
        if i == 0:
            expected = np.full((3, 4), flag)
            expected[0, 0] = 0
            if holes == "interpolate":
                expected[0, 2] = 0
            expected[0, 1] = gained[HOLE][0, 1]  # NaN with good flags before
            np.testing.assert_array_equal(gained[HOLE], expected)
    first = rows()[with_holes[0].meta.filename]
    assert first["holes"] > 0
    background = opened(results([with_holes[0].meta.filename], ".", "i4ibkg"))[0]
    around = np.median(background.data[28:35, 38:46])
    np.testing.assert_allclose(background.data[HOLE], around, atol=1)
    assert (background.err[HOLE] > np.median(background.err)).all()


def test_flags_of_donors_stay_with_them(with_holes, blind):
    for old, new in zip(with_holes, each(run(with_holes, **blind)), strict=True):
        np.testing.assert_array_equal((new.dq & ~old.dq & ~np.uint32(ESTIMATED)), 0)
        for row, flag in ((50, JUMP), (51, 2**30)):
            np.testing.assert_array_equal(new.dq[row] & flag, old.dq[row] & flag)


def test_dqbits(scene, blind):
    """A pixel of one donor is 50 too high, and has a flag: it is used, clipped or not, or not used."""

    def change(model, i):
        model.dq[40] &= ~np.uint32(JUMP)
        if i == 1:
            model.data[40, :] += 50
            model.dq[40, :] |= JUMP

    given = models_of(scene, change)
    usual = arrays(run(given, sigma=1e6, **blind))[0]
    without = arrays(run(given, sigma=1e6, dqbits="~DO_NOT_USE+NON_SCIENCE+JUMP_DET", **blind))[0]
    clipped = arrays(run(given, **blind))[0]
    good = (given[0].dq[40] == 0) & (given[1].dq[40] == JUMP)
    assert np.median((without - usual)[40][good]) == pytest.approx(50 / 3, abs=1.0)
    assert abs(np.median((without - clipped)[40][good])) < 0.1


@pytest.mark.parametrize("suffix", ["i4ibkg", "i4imask"])
@pytest.mark.parametrize("step", [ImageForImageStep, SkyMatchStep])
def test_other_files_are_no_exposures(step, suffix, image_cals, saved):
    files = results(image_cals, saved, suffix)
    with pytest.raises(ValueError, match=f"{re.escape(files[0].name)}.*leave it out"):
        step.call([str(file) for file in files])


def test_without_subtraction_nothing_but_backgrounds(image_cals, three, of_three, tmp_path):
    library = run(list(map(str, three)), subtract=False, save_results=True, output_dir=str(tmp_path), **QUICK)
    for old, new in zip(opened(three), each(library), strict=True):
        for name in PLANES:
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
    assert status(library) == ["COMPLETE"] * 3
    for old, file, theirs in zip(opened(three), results(three, tmp_path), of_three, strict=True):
        assert set(cards(file)) == {"S_I4IMG"}
        background = fits.getdata(results([file.name.replace("i4i", "cal")], tmp_path, "i4ibkg")[0], "SCI")
        np.testing.assert_array_equal(old.data - background, theirs["data"])


def test_median_and_scale(scene, blind):
    """With three donors: medians and means differ, and so do errors; levels that are not removed stay in."""
    given = models_of(scene)
    dark = [e.good & (scene.light(i) < 0.02) for i, e in enumerate(scene.exposures)]

    def left(**options):
        library = run(ModelLibrary([m.copy() for m in given]), **blind, **options)
        return [
            (float(np.median(model.data[where])), float(np.median(np.square(model.err[where]))))
            for where, model in zip(dark, each(library), strict=True)
        ]

    mean, median = left(), left(method="median")
    added = np.array([[row[1] for row in rows_] for rows_ in (mean, median)]) - 0.115**2
    np.testing.assert_allclose(added[1] / added[0], 1.35, rtol=0.1)
    assert np.abs([row[0] for row in mean + median]).max() < 0.06
    levels = np.array([e.level for e in scene.exposures])
    none = [row[0] for row in left(scale="none")]
    np.testing.assert_allclose(none, (levels - levels.mean()) * 4 / 3, atol=0.03)
    assert np.ptp(none) > 0.1


@pytest.mark.slow
def test_multiplicative_scale(scene, blind):
    factors = (1.0, 1.5, 0.8, 1.2)

    def change(model, i):
        model.data = model.data * np.float32(factors[i])

    given = models_of(scene, change)
    dark = [e.good & (scene.light(i) < 0.02) for i, e in enumerate(scene.exposures)]
    rms = {
        scale: [np.std(new[where]) for where, new in zip(dark, arrays(run(given, scale=scale, **blind)), strict=True)]
        for scale in ("additive", "multiplicative")
    }
    for i, factor in enumerate(factors):
        assert rms["multiplicative"][i] < 0.115 * factor * 1.3
    assert max(np.divide(rms["additive"], rms["multiplicative"])) > 1.3


# -------------------------------------------------------------------------------------------------- inputs


def asn_dict(files):
    return json.loads(association(files, name="dict.json").read_text()) | {
        "products": [{"name": "x", "members": [{"expname": str(f), "exptype": "science"} for f in files]}]
    }


KINDS = {
    "association": association,
    "list of models": opened,
    "in_memory=False": association,
}
SLOW = {
    "library on disk": lambda files: ModelLibrary(association(files), on_disk=True),
    "association as text": lambda files: str(association(files)),
    "association as dict": asn_dict,
    "list of paths": list,
    "container": lambda files: ModelContainer(opened(files)),
    "library in memory": lambda files: ModelLibrary(association(files)),
    "library of models": lambda files: ModelLibrary(opened(files)),
    "another order": lambda files: [files[i] for i in (2, 0, 1)],
    "two threads": lambda files: association(files),
}
KIND_OPTIONS = {"in_memory=False": {"in_memory": False}, "two threads": {"maximum_cores": "2"}}


@pytest.mark.parametrize("kind", [*few(1, KINDS), *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_each_kind_of_input_gives_the_same(three, of_three, kind, offline, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = digest(three)
    given = (KINDS | SLOW)[kind](three)
    own = list(given) if kind in ("list of models", "container") else []
    contents = [({n: getattr(m, n).copy() for n in PLANES}, m.to_flat_dict(include_arrays=False)) for m in own]
    library = run(given, **QUICK, **KIND_OPTIONS.get(kind, {}))
    assert isinstance(library, ModelLibrary)
    assert library.on_disk == (kind in ("library on disk", "in_memory=False"))
    assert (library is given) == isinstance(given, ModelLibrary)
    order = [name.replace("_i4i", "_cal") for name in each(library, lambda m: m.meta.filename)]
    place = {file.name: i for i, file in enumerate(three)}
    for name in PLANES:
        for ours, theirs in zip(arrays(library, name), [of_three[place[n]] for n in order], strict=True):
            np.testing.assert_array_equal(ours, theirs[name], err_msg=name)
    assert digest(three) == before
    for model, (planes, meta) in zip(own, contents, strict=True):
        for name, then in planes.items():
            np.testing.assert_array_equal(getattr(model, name), then)
        assert model.to_flat_dict(include_arrays=False) == meta
    if not library.on_disk:
        assert list(offline.iterdir()) == []
    assert len(list(scratch.iterdir())) == (kind == "in_memory=False"), "pixels are left on disk"


@pytest.mark.slow
def test_several_files_without_a_list(three, of_three):
    library = ImageForImageStep(**QUICK).run(*map(str, three))
    for ours, theirs in zip(arrays(library), of_three, strict=True):
        np.testing.assert_array_equal(ours, theirs["data"])


# -------------------------------------------------------------------------------------------------- saved files


def test_saved_names(image_cals, saved):
    expected = {file.name for suffix in ("i4i", "i4ibkg", "i4imask") for file in results(image_cals, saved, suffix)} | {
        "images.ecsv",
        "mosaic_mirimage_f1130w_sources1.fits",
        "mosaic_i4i_asn.json",
    }
    assert {path.name for path in saved.iterdir()} == expected


def test_saved_backgrounds(image_cals, saved, pairs):
    for n, (file, (old, _, background)) in enumerate(zip(results(image_cals, saved, "i4ibkg"), pairs, strict=True)):
        assert isinstance(background, datamodels.ImageModel)
        assert background.meta.bunit_data == background.meta.bunit_err == old.meta.bunit_data == "MJy/sr"
        assert background.dq.dtype == np.uint32
        assert background.err.shape == background.dq.shape == old.data.shape
        assert background.meta.filename == file.name
        for part in ("instrument.detector", "instrument.filter", "exposure.type", "exposure.start_time"):
            assert background[f"meta.{part}"] == old[f"meta.{part}"]
        with fits.open(file) as hdus:
            history = " ".join(map(str, hdus[0].header["HISTORY"])).replace(" ", "")
            assert hdus["SCI"].header["BUNIT"] == "MJy/sr"
        for k, other in enumerate(image_cals):
            assert (other.name in history) == (k != n)
        assert cards(file) == {"I4I_PROD": "background"}
        assert background.meta.wcs is not None


def test_cards_survive_saving_opening_and_saving_again(image_cals, saved, pairs, tmp_path):
    for file, (_, new, _) in zip(results(image_cals, saved), pairs, strict=True):
        found = cards(file)
        assert re.fullmatch("[0-9a-f]{32}", found["I4I_HASH"])
        assert {key: found[key] for key in found if key != "I4I_HASH"} == {
            "S_I4IMG": "COMPLETE", "I4I_SUB": True, "I4IBKG": file.name.replace("_i4i", "_i4ibkg"), "I4I_RNOI": 1.0,
        }  # fmt: skip
        assert new.meta.cal_step.image_for_image == "COMPLETE"
        copy = new.copy()
        copy.save(tmp_path / "again.fits")
        assert cards(tmp_path / "again.fits") == found
        with datamodels.open(tmp_path / "again.fits") as again:
            assert again.meta.cal_step.image_for_image == "COMPLETE"
        with fits.open(file) as hdus:
            history = "".join(map(str, hdus[0].header["HISTORY"]))
            assert "bkgmatch" in history
            assert found["I4IBKG"] in history


def test_saved_table(scene, image_cals, saved):
    table = Table.read(saved / "images.ecsv")
    assert table.colnames == [
        "name", "level", "rms", "n_members", "donors", "masked", "holes", "covered", "status", "members",
    ]  # fmt: skip
    assert list(table["name"]) == [file.name for file in image_cals]
    assert table["level"].unit == table["rms"].unit == "MJy / sr"
    assert list(table["n_members"]) == [3] * 4
    assert list(table["status"]) == ["made"] * 4
    assert members(saved / "images.ecsv") == {1: [2, 3, 4], 2: [1, 3, 4], 3: [1, 2, 4], 4: [1, 2, 3]}
    np.testing.assert_allclose(table["level"] - table["level"].mean(), levels(scene), atol=0.03)
    np.testing.assert_allclose(table["rms"], 0.115 * np.sqrt(4 / 3), rtol=0.15)
    assert ((table["masked"] > 0.005) & (table["masked"] < 0.3)).all()
    assert (table["donors"] == 3).all()
    options = table.meta["options"]
    assert (options["method"], options["max_dt"], options["subtract"], options["mosaic"]) == ("mean", 7.0, True, None)


def levels(scene):
    return np.array([e.level for e in scene.exposures]) - np.mean([e.level for e in scene.exposures])


def test_masked_exposures(scene, image_cals, saved, pairs):
    """They are NaN on sources, and flagged there; elsewhere they are the input."""
    for i, (file, (old, _, _)) in enumerate(zip(results(image_cals, saved, "i4imask"), pairs, strict=True)):
        with datamodels.open(file) as masked:
            on_source = ~np.isfinite(masked.data) & np.isfinite(old.data)
            assert (masked.dq[on_source] & UNUSABLE).all()
            kept = np.isfinite(masked.data)
            np.testing.assert_array_equal(masked.data[kept], old.data[kept])
            np.testing.assert_array_equal(masked.dq[kept], old.dq[kept])
            good = scene.exposures[i].good
            bright, dark = good & (scene.light(i) > 1), good & (scene.light(i) < 0.005)
            assert on_source[bright].mean() > 0.85, "sources that are cut by the edge may be too small"
            assert on_source[dark].mean() < 0.1
            assert cards(file) == {"I4I_PROD": "masked exposure"}


def test_the_saved_mask_of_sources_may_be_given_back(image_cals, saved, pairs, tmp_path):
    (mask,) = saved.glob("*_sources1.fits")
    library = run(list(map(str, image_cals)), source_mask=str(mask), save_table=str(tmp_path / "images.ecsv"))
    for ours, (_, new, _) in zip(each(library), pairs, strict=True):
        for name in PLANES:
            np.testing.assert_array_equal(getattr(ours, name), getattr(new, name), err_msg=name)
    assert Table.read(tmp_path / "images.ecsv").meta["options"]["source_mask"] == str(mask)


def test_the_given_mask_is_not_replaced_by_the_saved_one(image_cals, saved, tmp_path):
    (mask,) = saved.glob("*_sources1.fits")
    for option in ("source_mask", "mosaic"):
        given = Path(shutil.copy(mask, tmp_path / mask.name))
        before = given.read_bytes()
        with pytest.raises(ValueError, match=r"save_mask might overwrite .*_sources1\.fits; set output_dir"):
            run(
                str(association(image_cals)), save_results=True, save_mask=True, output_dir=str(tmp_path),
                **{option: str(given)},
            )  # fmt: skip
        assert given.read_bytes() == before
        assert not list(tmp_path.glob("*_i4i*"))


def test_a_file_that_is_no_association_is_told_before_the_work(image_cals, tmp_path):
    notes = tmp_path / "exposures_i4i_asn.json"
    notes.write_text("notes of mine\n")
    with pytest.raises(ValueError, match=r"exposures_i4i_asn\.json exists and is no association"):
        run(list(map(str, image_cals)), save_results=True, output_dir=str(tmp_path))
    assert [file.name for file in tmp_path.glob("*i4i*")] == [notes.name]


def test_two_masks_of_one_filter(scene, blind, tmp_path):
    """Kinds that differ in something else than detector and filter do not replace each other's mask."""
    given = models_of(scene)[:2] + models_of(scene)[:2]
    for n, model in enumerate(given):
        model.meta.instrument.pupil = "CLEAR" if n < 2 else "F405N"
        model.meta.filename = f"jw09001001001_0210{1 + n // 2}_{1 + n % 2:05d}_mirimage_cal.fits"
    run(ModelLibrary(given), save_mask=True, output_dir=str(tmp_path), min_members=1, **blind)
    assert len(list(tmp_path.glob("*_sources*.fits"))) == 2


def test_backgrounds_are_not_saved_if_they_are_not_wanted(three, tmp_path, blind):
    run(list(map(str, three)), save_results=True, save_background=False, output_dir=str(tmp_path), **QUICK, **blind)
    assert sorted(tmp_path.glob("*.fits")) == results(three, tmp_path)
    assert cards(results(three, tmp_path)[0])["I4IBKG"] == ""
    assert main(["undo", str(results(three, tmp_path)[0])]) == 1
    with datamodels.open(results(three, tmp_path)[0]) as model, pytest.raises(ValueError, match="was not saved"):
        undo(model, tmp_path)


@pytest.mark.slow
def test_results_given_again_keep_their_suffix(three, tmp_path, blind):
    """With subtract=False nothing keeps the step from running again."""
    options = {"subtract": False, "save_results": True, "save_background": False, **QUICK, **blind}
    run(list(map(str, three)), output_dir=str(tmp_path / "one"), **options)
    run(list(map(str, results(three, tmp_path / "one"))), output_dir=str(tmp_path / "two"), **options)
    assert sorted((tmp_path / "two").glob("*.fits")) == results(three, tmp_path / "two")


def test_a_full_disk_is_not_blamed_on_the_exposure(three, tmp_path, monkeypatch, blind):
    """The error names the background that there is no room for."""

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datamodels.ImageModel, "save", fails)
    made = re.escape(str(results(three, tmp_path, "i4ibkg")[0]))
    with pytest.raises(OSError, match=rf"^{made} cannot be written .*No space left.*make room there"):
        run(list(map(str, three)), save_results=True, output_dir=str(tmp_path), **QUICK, **blind)


# -------------------------------------------------------------------------------------------------- undo


def assert_undone(model, old):
    """Roundings of float32 at the size of the data or of what was taken away."""
    finite = np.isfinite(old.data)
    np.testing.assert_array_equal(np.isnan(model.data), np.isnan(old.data))
    np.testing.assert_allclose(model.data[finite], old.data[finite], rtol=3e-7, atol=2e-6)
    np.testing.assert_array_equal(model.dq, old.dq)
    for name in ("err", "var_rnoise", "var_poisson", "var_flat"):
        np.testing.assert_allclose(getattr(model, name), getattr(old, name), rtol=3e-6, err_msg=name)


def test_undo_on_the_command_line(image_cals, saved, pairs, tmp_path, capsys):
    done = results(image_cals, saved)
    before = digest(done)
    assert main(["undo", *map(str, done), "--out", str(tmp_path / "undone")]) == 0
    assert "copied" not in capsys.readouterr().out
    assert digest(done) == before
    for result, (old, _, _) in zip(done, pairs, strict=True):
        path = tmp_path / "undone" / result.name
        with datamodels.open(path) as model:
            assert_undone(model, old)
            assert not model.meta.cal_step.hasattr("image_for_image")
            assert not undo(model, saved)
        assert cards(path) == {}


@pytest.mark.parametrize("holes", ["interpolate", pytest.param("flag", marks=pytest.mark.slow)])
def test_undo_of_flags(with_holes, holes, tmp_path, blind):
    run(with_holes, holes=holes, save_results=True, output_dir=str(tmp_path), **blind)
    for old, file in zip(with_holes, results([m.meta.filename for m in with_holes], tmp_path), strict=True):
        with datamodels.open(file) as model:
            undo(model, tmp_path)
            np.testing.assert_array_equal(model.dq, old.dq)


def test_undo_of_a_background_of_another_unit_or_shape(image_cals, saved, tmp_path, capsys):
    """As of a rate file that calwebb_image2 has calibrated since."""
    done, made = (results(image_cals, saved, suffix)[0] for suffix in ("i4i", "i4ibkg"))
    shutil.copy(made, tmp_path)
    with datamodels.open(done) as model:
        calibrated = model.copy()
        calibrated.meta.bunit_data = "Jy"
        calibrated.save(tmp_path / done.name)
    assert main(["undo", str(tmp_path / done.name), "--out", str(tmp_path / "undone")]) == 1
    has(capsys.readouterr().err, done.name, "unit Jy", made.name, "MJy/sr")
    with datamodels.open(done) as model, datamodels.open(made) as background:
        small = background.copy()
        small.data, small.err, small.dq = (getattr(background, name)[:-1] for name in ("data", "err", "dq"))
        small.save(tmp_path / made.name)
        with pytest.raises(ValueError, match=rf"{done.name} has shape .*{made.name}"):
            undo(model, tmp_path)
    assert not (tmp_path / "undone").exists()


@pytest.mark.parametrize(
    "options", [{"method": "median"}, pytest.param({"method": "median", "subtract": False}, marks=pytest.mark.slow)]
)
def test_undo_refuses_the_background_of_a_later_run(three, tmp_path, options, blind, capsys):
    """It has taken the name of the one that was subtracted."""
    cals, saving = list(map(str, three)), {"save_results": True, "output_dir": str(tmp_path), **QUICK, **blind}
    run(cals, **saving)
    run(cals, suffix="other", **options, **saving)
    done, made = results(three, tmp_path), results(three, tmp_path, "i4ibkg")
    assert main(["undo", *map(str, done), "--out", str(tmp_path / "undone")]) == 1
    has(capsys.readouterr().err, done[0].name, str(made[0]), "of another run", "use the input of the step")
    assert not (tmp_path / "undone").exists()
    run(cals, suffix="again", **saving)
    assert main(["undo", *map(str, done), "--out", str(tmp_path / "undone")]) == 0, "the same run makes the same again"


@pytest.mark.parametrize("plane", ["data", "err", "dq"])
def test_undo_refuses_a_background_that_differs_in_one_pixel(image_cals, saved, tmp_path, plane):
    done, made = (results(image_cals, saved, suffix)[0] for suffix in ("i4i", "i4ibkg"))
    with datamodels.open(done) as model, datamodels.open(made) as background:
        changed, before = background.copy(), {name: getattr(model, name).copy() for name in PLANES}
        values = getattr(changed, plane).copy()
        values[5, 6] += 1
        setattr(changed, plane, values)
        changed.save(tmp_path / made.name)
        with pytest.raises(ValueError, match=rf"{done.name}: .*{made.name} is not the background that was subtracted"):
            undo(model, tmp_path)
        for name in PLANES:
            np.testing.assert_array_equal(getattr(model, name), before[name])


@pytest.mark.parametrize("plane", ["ERR", "DQ"])
def test_undo_refuses_a_background_without_errors_or_flags(image_cals, saved, tmp_path, plane, capsys):
    done, made = (results(image_cals, saved, suffix)[0] for suffix in ("i4i", "i4ibkg"))
    shutil.copy(done, tmp_path)
    with fits.open(made) as hdus:
        del hdus["ASDF"], hdus[plane]
        hdus.writeto(tmp_path / made.name)
    assert main(["undo", str(tmp_path / done.name), "--out", str(tmp_path / "undone")]) == 1
    has(capsys.readouterr().err, done.name, f"{made.name} is not the background that was subtracted")


def test_undo_takes_a_background_that_was_compressed_or_saved_again(image_cals, saved, pairs, tmp_path):
    done, made = (results(image_cals, saved, suffix) for suffix in ("i4i", "i4ibkg"))
    with fits.open(made[0]) as hdus:
        packed = [
            fits.CompImageHDU(hdu.data, hdu.header, compression_type="GZIP_2", quantize_level=0)
            if hdu.name in ("SCI", "ERR", "DQ")
            else hdu
            for hdu in hdus
        ]
        fits.HDUList(packed).writeto(tmp_path / made[0].name)
    with datamodels.open(made[1]) as background:
        background.save(tmp_path / made[1].name)
    for k in range(2):
        with datamodels.open(done[k]) as model:
            assert undo(model, tmp_path)
            assert_undone(model, pairs[k][0])


def test_undo_of_results_that_know_only_the_name_of_their_background(image_cals, saved, pairs, tmp_path):
    """As those of versions that recorded no digest."""
    done = results(image_cals, saved)[0]
    with datamodels.open(done) as model:
        drop_cards(model, "I4I_HASH")
        assert undo(model, saved)
        assert_undone(model, pairs[0][0])


def test_undo_without_the_background_beside(image_cals, saved, tmp_path, capsys):
    """Nothing is written, of the other files neither."""
    for file in results(image_cals, saved)[:2]:
        shutil.copy(file, tmp_path)
    here = results(image_cals[:2], tmp_path)
    shutil.copy(results(image_cals, saved, "i4ibkg")[0], tmp_path)
    assert main(["undo", *map(str, here), "--out", str(tmp_path / "undone")]) == 1
    message = capsys.readouterr().err
    assert here[1].name.replace("_i4i", "_i4ibkg") in message
    assert str(tmp_path) in message
    assert list((tmp_path / "undone").glob("*")) == []
    with datamodels.open(here[1]) as model:
        before = model.data.copy()
        with pytest.raises(ValueError, match="put it there"):
            undo(model, tmp_path)
        np.testing.assert_array_equal(model.data, before)


def test_undone_exposures_may_be_used_again(image_cals, saved, tmp_path):
    files = [Path(shutil.copy(file, tmp_path)) for s in ("i4i", "i4ibkg") for file in results(image_cals, saved, s)]
    with pytest.raises(ValueError, match=r"_i4i.fits: image_for_image has subtracted.*bkgmatch undo"):
        run(list(map(str, files[:4])))
    models = opened(files[:4])
    for model in models:
        undo(model, tmp_path)
    again = run(ModelLibrary(models))
    for ours, file in zip(each(again), results(image_cals, saved), strict=True):
        with datamodels.open(file) as first:
            np.testing.assert_allclose(ours.data, first.data, atol=1e-4)


# -------------------------------------------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def mosaic(scene, tmp_path_factory):
    """An i2d of the sources, with a little noise and a level."""
    return write_mosaic(scene, tmp_path_factory.mktemp("mosaic") / "field_i2d.fits")


def light_left(scene, library):
    """Mean of the light that the results have less than there is, on bright pixels."""
    lost = []
    for i, data in enumerate(arrays(library)):
        bright = scene.exposures[i].good & ~scene.exposures[i].hits & (scene.light(i) > 1)
        lost.append(np.mean((scene.light(i) - data)[bright]))
    return np.array(lost)


@pytest.mark.parametrize("kind", ["i2d", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("plain", "gwcs"))])
def test_a_mosaic_of_any_kind(scene, mosaic, kind, tmp_path):
    """It finds the sources at once: with maxiters=1 no other is made."""
    path = mosaic
    if kind == "plain":
        path = tmp_path / "plain.fits"
        with fits.open(mosaic) as hdus:
            fits.PrimaryHDU(hdus["SCI"].data, hdus["SCI"].header).writeto(path)
    elif kind == "gwcs":
        path = write_mosaic(scene, tmp_path / "gwcs_i2d.fits", header=False)
    library = run(models_of(scene), mosaic=str(path), maxiters=1, save_table="images.ecsv", save_mask=True)
    assert (np.abs(light_left(scene, library)) < 0.1).all()
    table = Table.read("images.ecsv")
    assert table.meta["options"]["mosaic"] == str(path)
    np.testing.assert_array_equal(table["covered"], 1)
    assert ((table["masked"] > 0.01) & (table["masked"] < 0.4)).all()
    if kind == "gwcs":
        return
    (mask,) = Path().glob("*_sources1.fits")
    again = run(models_of(scene), source_mask=str(mask))
    for ours, theirs in zip(arrays(library), arrays(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_mosaic_that_covers_a_part(scene, mosaic, tmp_path, caplog):
    """It is told, and what the mosaic of the exposures shows is masked as well."""
    with fits.open(mosaic) as hdus:
        hdus["SCI"].data[:, : hdus["SCI"].data.shape[1] // 2] = np.nan
        hdus.writeto(tmp_path / "part_i2d.fits")
    library = run(models_of(scene), mosaic=str(tmp_path / "part_i2d.fits"), save_table="images.ecsv", save_mask=True)
    covered = Table.read("images.ecsv")["covered"]
    assert ((covered > 0.1) & (covered < 0.9)).all()
    assert sum("the given mosaic or mask covers" in line for line in caplog.messages) == 4
    assert len(list(Path().glob("*_sources*.fits"))) == 2
    assert (np.abs(light_left(scene, library)) < 0.1).all()


@pytest.mark.parametrize("kind", ["segmentation", pytest.param("mask", marks=pytest.mark.slow)])
def test_a_mask_of_sources(scene, mosaic, tmp_path, kind):
    """Only what is not zero in it is masked; no sources are searched for."""
    with fits.open(mosaic) as hdus:
        on_source = np.nan_to_num(hdus["SCI"].data) > 5.2
        numbers = np.cumsum(on_source).reshape(on_source.shape) * on_source
        image = on_source.astype(np.uint8) if kind == "mask" else numbers.astype(np.int32)
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, hdus["SCI"].header)]).writeto(tmp_path / "mask.fits")
    library = run(models_of(scene), source_mask=str(tmp_path / "mask.fits"), save_table="images.ecsv")
    assert (np.abs(light_left(scene, library)) < 0.1).all()
    empty = np.zeros(on_source.shape, np.uint8)
    fits.PrimaryHDU(empty, fits.getheader(mosaic, "SCI")).writeto(tmp_path / "empty.fits")
    run(models_of(scene), source_mask=str(tmp_path / "empty.fits"), save_table="images.ecsv")
    assert (Table.read("images.ecsv")["masked"] == 0).all()


def test_regions(scene, blind, tmp_path):
    """A region is added to the sources, or taken out of them."""
    ra, dec = scene.exposures[0].wcs(30, 25)
    for name, radius in (("one.reg", 12), ("all.reg", 300)):
        Path(name).write_text(f'icrs\ncircle({ra}, {dec}, {radius}")\n')
    given = models_of(scene)
    run(given[:3], include_regions="one.reg", save_mask=True, output_dir=str(tmp_path), **blind)
    with datamodels.open(results([given[0].meta.filename], tmp_path, "i4imask")[0]) as masked:
        on_source = ~np.isfinite(masked.data) & np.isfinite(given[0].data)
    east, north = pixels_on_plane(scene.exposures[0].wcs, on_source.shape, float(ra), float(dec))
    distance = np.hypot(east, north)
    sure = (np.abs(distance - 12) > 0.3) & np.isfinite(given[0].data)
    np.testing.assert_array_equal(on_source[sure], distance[sure] < 12)
    run(ModelLibrary(given), exclude_regions="all.reg", save_table="images.ecsv", **QUICK)
    table = Table.read("images.ecsv")
    assert (table["masked"] == 0).all()
    assert table.meta["options"]["exclude_regions"] == "all.reg"


# -------------------------------------------------------------------------------------------------- who serves whom


def test_longest_time(tmp_path, blind):
    """Two epochs, 30 days apart: by default each serves itself."""
    scene = simulate_dithers(
        rng=np.random.default_rng(5), dithers=6, epochs=2, dither_step=40.0, binning=16, n_sources=0, change=0.5
    )
    given = [as_model(e, number=40 * t) for e, t in zip(scene.exposures, scene.times, strict=True)]
    library = run(given, save_table="images.ecsv", **blind)
    assert members() == {1: [2, 3], 2: [1, 3], 3: [1, 2], 4: [5, 6], 5: [4, 6], 6: [4, 5]}

    def rms(library_):
        return [np.std(data[e.good & ~e.hits]) for e, data in zip(scene.exposures, arrays(library_), strict=True)]

    apart = rms(library)
    assert max(apart) < 0.115 * np.sqrt(1.5) * 1.15
    mixed = rms(run(given, max_dt=40.0, save_table="images.ecsv", **blind))
    assert members()[1] == [2, 3, 4, 5, 6]
    assert min(mixed) > 1.1 * max(apart)


def test_least_distance(scene, blind):
    """Repeats at the same place do not serve each other."""
    first = scene.exposures[0]
    models = models_of(scene)
    twin = as_model(first, number=4)
    twin.meta.filename = models[0].meta.filename.replace("_00001_", "_00005_")
    run([*models, twin], save_table="images.ecsv", **blind)
    assert members() == {1: [2, 3, 4], 2: [1, 3, 4, 5], 3: [1, 2, 4, 5], 4: [1, 2, 3, 5], 5: [2, 3, 4]}
    run([*models, twin], save_table="images.ecsv", min_offset=0.0, **blind)
    assert members()[1] == [2, 3, 4, 5]


KINDS_OF_EXPOSURES = {
    "detector": ("instrument", "detector", "MIRIFUSHORT"),
    "filter": ("instrument", "filter", "F770W"),
    "pupil": ("instrument", "pupil", "CLEAR"),
    "subarray": ("subarray", "name", "BRIGHTSKY"),
    "readpatt": ("exposure", "readpatt", "SLOWR1"),
    "instrument": ("instrument", "name", "NIRCAM"),
}


@pytest.mark.parametrize(
    "what", ["filter", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS_OF_EXPOSURES if k != "filter")]
)
def test_kinds_are_not_mixed(scene, what, blind):
    """Four of each; those of the second kind have another level and slope, and come in between."""
    part, name, value = KINDS_OF_EXPOSURES[what]
    first, second = models_of(scene), models_of(scene)
    for model in second:
        setattr(getattr(model.meta, part), name, value)
        model.data += np.linspace(50, 60, model.shape[0], dtype=np.float32)[:, None]
        model.meta.filename = model.meta.filename.replace("_0000", "_0001")
    given = [model for both in zip(first, second, strict=True) for model in both]
    library = run(given, save_table="images.ecsv", **blind)
    serve = {n: [k for k in range(1, 5) if k != n] for n in range(1, 5)}
    assert members() == serve | {10 + n: [10 + k for k in others] for n, others in serve.items()}
    alone = arrays(run(first, **blind))
    for ours, theirs in zip(arrays(library)[::2], alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, other, exposure in zip(arrays(library)[1::2], alone, scene.exposures, strict=True):
        assert np.mean(np.abs(ours - other)[exposure.good] < 0.01) > 0.99


def test_numbers_of_groups_and_integrations_count_if_asked(scene, blind):
    def change(model, i):
        model.meta.exposure.ngroups, model.meta.exposure.nints = 10, 1 + i // 2

    given = models_of(scene, change)
    run(given, save_table="images.ecsv", min_members=1, **blind)
    assert members()[1] == [2, 3, 4]
    run(given, save_table="images.ecsv", min_members=1, match_integrations=True, **blind)
    assert members() == {1: [2], 2: [1], 3: [4], 4: [3]}


# -------------------------------------------------------------------------------------------------- rate exposures


@pytest.fixture(scope="module")
def rates(scene, three, tmp_path_factory):
    """Rate files of three exposures without WCS, in DN/s, which are the cal files in another unit."""
    folder = tmp_path_factory.mktemp("rates")
    return write([as_rate(datamodels.open(file)) for file in three], folder)


RATES = {
    "cal beside": lambda rates, cals: association(rates),
    "files, cal beside": lambda rates, cals: list(map(str, rates)),
    "cal in the association": lambda rates, cals: association([*rates, *cals], exptypes=["science"] * 3 + ["wcs"] * 3),
    "WCS of their own": lambda rates, cals: opened(rates),
}


@pytest.mark.filterwarnings("ignore:Input association file contains path information")
@pytest.mark.parametrize("kind", few(1, RATES))
def test_rate_exposures(rates, three, of_three, kind, tmp_path, caplog):
    folder = tmp_path / "inputs"
    folder.mkdir()
    files = [Path(shutil.copy(file, folder)) for file in rates]
    if kind == "cal in the association":
        (tmp_path / "elsewhere").mkdir()
        cals = [Path(shutil.copy(file, tmp_path / "elsewhere")) for file in three]
        asn = json.loads(association([*files, *cals], exptypes=["science"] * 3 + ["wcs"] * 3).read_text())
        for member in asn["products"][0]["members"][3:]:
            member["expname"] = f"../elsewhere/{member['expname']}"
        given = folder / "asn.json"
        given.write_text(json.dumps(asn))
    else:
        if kind != "WCS of their own":
            for file in three:
                shutil.copy(file, folder)
        given = RATES[kind](files, None)
    if kind == "WCS of their own":
        for model, file in zip(given, three, strict=True):
            model.meta.wcs = datamodels.open(file).meta.wcs
    library = run(given, **QUICK)
    assert len(library) == 3
    for ours, theirs in zip(each(library), of_three, strict=True):
        np.testing.assert_array_equal(ours.data, theirs["data"])
        np.testing.assert_array_equal(ours.err, theirs["err"])
        assert ours.meta.bunit_data == "DN/s"
        assert (ours.meta.wcs is None) == (kind != "WCS of their own")
    assert any("that of" in line for line in caplog.messages) == (kind != "WCS of their own")


@pytest.mark.filterwarnings("ignore:Input association file contains path information")
def test_associations_for_calwebb_image2(rates, three, tmp_path, blind):
    folder, out = tmp_path / "inputs", tmp_path / "some" / "where"
    folder.mkdir()
    out.mkdir(parents=True)
    files = [Path(shutil.copy(file, folder)) for file in rates]
    for file in three:
        shutil.copy(file, folder)
    before = digest(files)
    run(association(files), save_results=True, output_dir=str(out), **QUICK, **blind)
    assert digest(files) == before
    written = sorted(out.glob("*_i4i_asn.json"))
    assert [path.name for path in written] == [f.name.replace("_rate.fits", "_i4i_asn.json") for f in files]
    for path, file in zip(written, files, strict=True):
        asn = json.loads(path.read_text())
        (product,) = asn["products"]
        assert product["name"] == file.name.removesuffix("_rate.fits")
        found = {member["exptype"]: out / member["expname"] for member in product["members"]}
        assert set(found) == {"science", "background"}
        assert found["science"].resolve() == file.resolve()
        assert found["background"].resolve() == (out / file.name.replace("_rate", "_i4ibkg")).resolve()
        assert not os.path.isabs(product["members"][0]["expname"])
        assert asn["asn_type"] == "image2"
    assert {p.name for p in out.iterdir()} == {
        path.name for suffix in ("i4i", "i4ibkg") for path in results(files, out, suffix)
    } | {path.name for path in written}


# -------------------------------------------------------------------------------------------------- parameters


def test_spec_and_options_have_the_same_defaults():
    step = ImageForImageStep()
    for field in fields(ImageForImageOptions):
        assert getattr(step, field.name) == field.default, field.name
        assert type(getattr(step, field.name)) is type(field.default), field.name


def test_spec_and_options_have_the_same_choices():
    spec = described(ImageForImageStep)
    for field in fields(ImageForImageOptions):
        allowed = {choice for choice in get_args(field.type) if isinstance(choice, str)}
        if allowed:
            assert set(re.findall(r"'([^']*)'", spec[field.name].partition("default")[0])) == allowed, field.name


def test_every_option_has_a_parameter_and_the_others_are_known():
    others = {
        "mosaic", "source_mask", "include_regions", "exclude_regions", "match_integrations", "dqbits", "holes",
        "subtract", "split_variance", "save_background", "save_mask", "save_table", "suffix", "output_use_model",
        "in_memory", "temp_dir", "maximum_cores", "dask_scheduler", "report",
    }  # fmt: skip
    assert set(described(ImageForImageStep)) == others | {field.name for field in fields(ImageForImageOptions)}


def test_choices_of_the_toolkit(scene, mosaic):
    """Its parameter file: a plain median of the others, levels and all, and one detection in the given mosaic."""
    assert main(["pars", "image_for_image_crab", "--out", "crab.asdf"]) == 0
    step = ImageForImageStep.from_config_file("crab.asdf")
    step.mosaic, step.save_mask = str(mosaic), True
    given = models_of(scene)
    done = arrays(step.run(given))
    masked = [datamodels.open(file).data for file in results([model.meta.filename for model in given], ".", "i4imask")]
    masked = [np.where(model.dq & (UNUSABLE | NON_SCIENCE), np.nan, m) for model, m in zip(given, masked, strict=True)]
    for n, model in enumerate(given):
        others = np.array([m for k, m in enumerate(masked) if k != n])
        seen = np.isfinite(others).any(axis=0) & (model.dq == 0)
        expected = model.data[seen] - np.nanmedian(others[:, seen], axis=0)
        np.testing.assert_allclose(done[n][seen], expected, atol=3e-6)


def test_names_for_strun():
    names = {step.class_name: step.class_alias for step in entry_points.get_steps()}
    assert names["bkgmatch.ImageForImageStep"] == "image_for_image"
    assert list(names.values()).count("image_for_image") == 1


@pytest.mark.parametrize("strun", [quick_strun, slow(slow_strun)])
def test_strun(three, tmp_path, strun):
    """In an empty environment; the parameters that it saves make the same again."""
    pars = tmp_path / "pars.asdf"
    output = strun(
        "image_for_image", str(association(three)), "--save_results=true", f"--output_dir={tmp_path}",
        f"--save-parameters={pars}", "--method=median", "--maxiters=1", "--holes=flag",
        env={"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "CRDS is not set up" in output
    assert "3 of 3 exposures have a background" in output
    with asdf.open(pars) as kept:
        assert kept["class"] == "bkgmatch.steps.image_for_image.ImageForImageStep"
        assert kept["parameters"]["method"] == "median"
    step = ImageForImageStep.from_config_file(str(pars))
    assert (step.method, step.maxiters, step.holes) == ("median", 1, "flag")
    step.save_results = False
    for file, ours in zip(results(three, tmp_path), each(step.run(list(map(str, three)))), strict=True):
        np.testing.assert_array_equal(fits.getdata(file, "SCI"), ours.data)
        np.testing.assert_array_equal(fits.getdata(file, "ERR"), ours.err)
        np.testing.assert_array_equal(fits.getdata(file, "DQ"), ours.dq)
