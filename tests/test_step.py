"""SkyMatchStep on real files: levels, inputs, outputs, records."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from builders import (
    SIDE,
    association,
    constant_files,
    described,
    digest,
    exposure_name,
    image_model,
    tile_wcs,
    write,
)
from common import few, slow
from conftest import FAR
from crds_cache import crds_cache
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.skymatch import SkyMatchStep as JwstSkyMatchStep
from regions import Regions
from stdatamodels.jwst import datamodels
from stpipe import entry_points, utilities

from bkgmatch import SkyMatchStep
from bkgmatch.masks import region_mask
from bkgmatch.options import SkyMatchOptions
from bkgmatch.steps.models import undo

pytestmark = pytest.mark.usefixtures("offline")

KEYWORDS = ("BKGMETH", "BKGLEVEL", "BKGSUB", "S_SKYMAT")


def results(library):
    """Name (without suffix) and record of each model."""
    with library:
        return dict(
            library.map_function(
                lambda m, _: (
                    m.meta.filename.rpartition("_")[0],
                    (
                        m.meta.background.level,
                        m.meta.background.method,
                        m.meta.background.subtracted,
                        m.meta.cal_step.skymatch,
                    ),
                ),
                modify=False,
            )
        )


def levels(library):
    """Levels in the order of the library; NaN where there is none."""
    return np.array([np.nan if level is None else level for level, *_ in results(library).values()])


def arrays(library, name="data"):
    """Copy of one array of each model."""
    with library:
        return list(library.map_function(lambda m, _: np.array(getattr(m, name)), modify=False))


def header(path):
    with fits.open(path) as hdus:
        return hdus[0].header.copy()


def saved(files, folder):
    """Names of the results for files."""
    return [folder / file.name.replace("_cal", "_skymatch") for file in files]


def run(inputs, **options):
    return SkyMatchStep.call(inputs, **options)


# -------------------------------------------------------------------------------------------------- levels

FIRST = {
    "local": (100, 120, 105, 110, 105, 115),
    "global": (100,) * 6,
    "match": (0, 20, 5, 10, 5, 15),
    "global+match": (100, 120, 105, 110, 105, 115),
}
SECOND = {
    "local": (100, 120, 105, 110, 95, 90, 100),
    "global": (90,) * 7,
    "match": (0, 20, 5, 10, 8.75, 3.75, 13.75),
    "global+match": (86.25, 106.25, 91.25, 96.25, 95, 90, 100),
}
COMPONENTS = {"match": (0, 20, 5, 10, 5, 0, 10), "global+match": (100, 120, 105, 110, 95, 90, 100)}


@pytest.mark.parametrize("method", FIRST)
def test_table_of_one_mosaic(one_mosaic, method):
    library = run(association(one_mosaic), skymethod=method, subtract=True)
    np.testing.assert_allclose(levels(library), FIRST[method], atol=1e-5)
    left = np.subtract(FIRST["local"], FIRST[method])
    for data, value in zip(arrays(library), left, strict=True):
        np.testing.assert_allclose(data, value, atol=1e-4)


@pytest.mark.parametrize("method", SECOND)
def test_table_of_two_pieces(two_pieces, method):
    library = run(association(two_pieces), skymethod=method)
    np.testing.assert_allclose(levels(library), SECOND[method], atol=1e-5)
    for data, value in zip(arrays(library), SECOND["local"], strict=True):
        assert (data == value).all()


@pytest.mark.parametrize("method", COMPONENTS)
def test_each_piece_may_have_its_own_zero_point(two_pieces, method):
    library = run(association(two_pieces), skymethod=method, zero_point_scope="component")
    np.testing.assert_allclose(levels(library), COMPONENTS[method], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"match_down": False}, (-20, 0, -15, -10, -15, -5)),
        ({"zero_point": "lowest", "match_down": False}, FIRST["match"]),
        slow(({"zero_point": "highest"}, (-20, 0, -15, -10, -15, -5))),
        ({"zero_point": "mean"}, np.subtract(FIRST["match"], 55 / 6)),
        ({"zero_point": exposure_name(4)}, (-10, 10, -5, 0, -5, 5)),
        ({"zero_point": f"{exposure_name(4)}_cal.fits"}, (-10, 10, -5, 0, -5, 5)),
    ],
)
def test_zero_points(one_mosaic, options, expected):
    np.testing.assert_allclose(levels(run(association(one_mosaic), **options)), expected, atol=1e-5)


def test_zero_point_of_a_background_exposure(tmp_path):
    """The exposure nearest in time to the background gets its sky: here the second of two."""
    files = constant_files(tmp_path, [(tile_wcs((1, 2)), (10, 14)), (tile_wcs((1, 1), center=FAR), (3,))])
    asn = association(files, exptypes=["science", "science", "background"])
    np.testing.assert_allclose(levels(run(asn, zero_point="background"))[:2], (-1, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("classic", "method"), few(1, [("localmin", "local"), ("globalmin", "global"), ("globalmin+match", "global+match")])
)
def test_classic_names_of_methods(one_mosaic, caplog, classic, method):
    library = run(association(one_mosaic), skymethod=classic)
    np.testing.assert_allclose(levels(library), FIRST[method], atol=1e-5)
    assert {name for _, name, *_ in results(library).values()} == {method}
    assert sum("classic name" in line for line in caplog.messages) == 1


@pytest.fixture(scope="module")
def group_and_loner(tmp_path_factory):
    """Two overlapping exposures, and the other detector of the first, which overlaps nothing."""
    wcs = [*tile_wcs((1, 2)), *tile_wcs((1, 1), center=FAR)]
    names = [exposure_name(1), exposure_name(2), exposure_name(1, detector="nrcblong")]
    models = [
        image_model(name, np.full((SIDE, SIDE), level), where)
        for name, level, where in zip(names, (3, 5, 50), wcs, strict=True)
    ]
    return association(write(models, tmp_path_factory.mktemp("group")))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0, 2, 0)),
        ({"match_down": False}, (-2, 0, -2)),
        ({"skymethod": "local"}, (3, 5, 3)),
        slow(({"skymethod": "global"}, (3, 3, 3))),
        ({"skymethod": "global+match"}, (3, 5, 3)),
        slow(({"level_per": "detector"}, (0, 2, np.nan))),
        ({"level_per": "detector", "skymethod": "local"}, (3, 5, 50)),
    ],
)
def test_an_exposure_without_overlaps_goes_with_its_group(group_and_loner, options, expected):
    library = run(group_and_loner, subtract=True, **options)
    np.testing.assert_allclose(levels(library), expected, atol=1e-6)
    left = [float(np.median(data)) for data in arrays(library)]
    np.testing.assert_allclose(left, np.subtract((3, 5, 50), np.nan_to_num(expected)), atol=1e-5)
    status = [state for *_, state in results(library).values()]
    assert status == ["COMPLETE" if np.isfinite(level) else "SKIPPED" for level in expected]


def test_detectors_may_have_levels_of_their_own(tmp_path):
    wcs = tile_wcs((2, 2))
    names = [exposure_name(n, detector=d) for n in (1, 2) for d in ("nrcalong", "nrcblong")]
    models = [
        image_model(name, np.full((SIDE, SIDE), level), where)
        for name, level, where in zip(names, (1, 2, 4, 8), wcs, strict=True)
    ]
    asn = association(write(models, tmp_path))
    np.testing.assert_allclose(levels(run(asn, level_per="detector")), (0, 1, 3, 7), atol=1e-6)
    together = levels(run(asn))
    assert together[0] == together[1] == 0
    assert together[2] == together[3] > 3


def test_the_log_names_the_pieces_and_what_cannot_be_matched(tmp_path, caplog):
    wcs = [*tile_wcs((1, 2)), *tile_wcs((1, 2), center=FAR), *tile_wcs((1, 1), center=(10.0, 10.0))]
    files = constant_files(tmp_path, [(wcs, (1, 2, 3, 4, 5))])
    run(association(files))
    pieces = [line for line in caplog.messages if "Connected set" in line]
    for number, line in zip((1, 3), pieces, strict=True):
        assert exposure_name(number) in line
        assert exposure_name(number + 1) in line
    (lost,) = [line for line in caplog.messages if "could not be matched" in line]
    assert exposure_name(5) in lost
    assert "no overlap" in lost


# -------------------------------------------------------------------------------------------------- inputs


def opened(files):
    return [datamodels.open(file) for file in files]


KINDS = {
    "association": lambda files: association(files),
    "association as text": lambda files: str(association(files)),
    "list of files": lambda files: [str(file) for file in files],
    "list of paths": lambda files: list(files),
    "list of models": opened,
    "container": lambda files: ModelContainer(opened(files)),
    "library in memory": lambda files: ModelLibrary(association(files)),
    "library on disk": lambda files: ModelLibrary(association(files), on_disk=True),
    "library of models": lambda files: ModelLibrary(opened(files)),
}


@pytest.fixture(scope="module")
def noisy_results(noisy):
    """What the step makes of the association, to compare others with."""
    library = run(association(noisy), subtract=True, skystat="median")
    return results(library), arrays(library)


def test_levels_are_right(noisy_results, noisy_levels):
    found = np.array([level for level, *_ in noisy_results[0].values()])
    np.testing.assert_allclose(found - found.mean(), noisy_levels - noisy_levels.mean(), atol=0.02)
    assert found.min() == 0


@pytest.mark.parametrize("kind", few(2, KINDS))
def test_each_kind_of_input_gives_the_same(noisy, noisy_results, kind):
    before = digest(noisy)
    library = run(KINDS[kind](noisy), subtract=True, skystat="median")
    assert isinstance(library, ModelLibrary)
    expected, data = noisy_results
    found = results(library)
    assert list(found) == list(expected)
    for name, record in found.items():
        assert record[0] == pytest.approx(expected[name][0], abs=1e-10)
        assert record[1:] == expected[name][1:] == ("match", True, "COMPLETE")
    for ours, theirs in zip(arrays(library), data, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert digest(noisy) == before


SINGLES = {
    "path": lambda file: file,
    "name": str,
    "list": lambda file: [file],
    "model": datamodels.open,
    "list of model": lambda file: [datamodels.open(file)],
    "container": lambda file: ModelContainer([datamodels.open(file)]),
    "library": lambda file: ModelLibrary([datamodels.open(file)]),
    "association": lambda file: association([file], name="single.json"),
}


@pytest.mark.parametrize("kind", SINGLES)
def test_each_kind_of_single_input(noisy, kind):
    with fits.open(noisy[0]) as hdus:
        good = (hdus["DQ"].data & 513) == 0
        expected = np.mean(hdus["SCI"].data[good & np.isfinite(hdus["SCI"].data)], dtype=np.float64)
    before = digest(noisy[:1])
    library = run(SINGLES[kind](noisy[0]), skymethod="local", skystat="mean", nclip=0)
    (record,) = results(library).values()
    assert record == (pytest.approx(expected, rel=1e-6), "local", False, "COMPLETE")
    assert digest(noisy[:1]) == before


def test_models_in_memory_are_not_changed(pair):
    models = opened(pair)
    before = [(m.data.copy(), m.err.copy(), m.dq.copy(), m.to_flat_dict(include_arrays=False)) for m in models]
    for given in (models, ModelContainer(models), models[0]):
        run(given, subtract=True, skymethod="global+match", propagate_errors=True)
    for model, (data, err, dq, meta) in zip(models, before, strict=True):
        np.testing.assert_array_equal(model.data, data)
        np.testing.assert_array_equal(model.err, err)
        np.testing.assert_array_equal(model.dq, dq)
        assert model.to_flat_dict(include_arrays=False) == meta


def test_a_library_is_changed_in_place_as_by_jwst(pair):
    library = ModelLibrary(association(pair))
    assert run(library) is library


@pytest.mark.slow
def test_on_disk_is_the_same_as_in_memory(noisy, noisy_results, offline):
    library = run(association(noisy), subtract=True, skystat="median", in_memory=False)
    assert library.on_disk
    expected = [level for level, *_ in noisy_results[0].values()]
    np.testing.assert_allclose(levels(library), expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(arrays(library), noisy_results[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_threads_change_nothing(noisy, noisy_results):
    library = run(association(noisy), subtract=True, skystat="median", maximum_cores="2")
    expected = [level for level, *_ in noisy_results[0].values()]
    np.testing.assert_allclose(levels(library), expected, rtol=0, atol=1e-12)


def test_order_does_not_matter(noisy, noisy_results):
    found = results(run([noisy[i] for i in (3, 0, 5, 1, 2, 4)], subtract=True, skystat="median"))
    for name, (level, *_) in noisy_results[0].items():
        assert found[name][0] == pytest.approx(level, abs=1e-10)


# -------------------------------------------------------------------------------------------------- outputs


@pytest.fixture(scope="module")
def with_loner(tmp_path_factory):
    """Three overlapping exposures and one that overlaps nothing."""
    pieces = [(tile_wcs((1, 3)), (10, 14, 11.5)), (tile_wcs((1, 1), center=FAR), (7,))]
    return association(constant_files(tmp_path_factory.mktemp("loner"), pieces))


@pytest.mark.parametrize(
    "options",
    [
        {"skymethod": "local", "subtract": True},
        {"skymethod": "match", "subtract": True},
        slow({"skymethod": "match", "match_down": False}),
        {"skymethod": "global"},
        slow({"skymethod": "global+match", "subtract": True}),
        {"skymethod": "user", "subtract": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_headers_are_those_of_jwst(with_loner, tmp_path, options):
    names = [member["expname"] for member in json.loads(with_loner.read_text())["products"][0]["members"]]
    if options["skymethod"] == "user":
        options = options | {"skylist": str(tmp_path / "sky.txt")}
        Path(options["skylist"]).write_text("".join(f"{name} {n + 0.5}\n" for n, name in enumerate(names)))
    for cls, folder in ((SkyMatchStep, "ours"), (JwstSkyMatchStep, "theirs")):
        step = cls(save_results=True, output_dir=str(tmp_path / folder), output_use_model=True, **options)
        step.suffix = "skymatch"
        step.run(str(with_loner))
    for name in names:
        file = name.replace("_cal", "_skymatch")
        with fits.open(tmp_path / "ours" / file) as ours, fits.open(tmp_path / "theirs" / file) as theirs:
            assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
            heads = [dict(hdus[0].header) for hdus in (ours, theirs)]
            comments = [
                [hdus[0].header.comments[k] for k in KEYWORDS if k in hdus[0].header] for hdus in (ours, theirs)
            ]
            scis = [hdus["SCI"] for hdus in (ours, theirs)]
            level = [head.pop("BKGLEVEL", None) for head in heads]
            assert level[0] == (None if level[1] is None else pytest.approx(level[1], abs=1e-5))
            for head in heads:
                head.pop("DATE")
            assert ("bkgmatch" in str(heads[0].pop("HISTORY", ""))) == (level[0] is not None)
            assert heads[0] == heads[1]
            assert comments[0] == comments[1]
            assert dict(scis[0].header) == dict(scis[1].header)
            np.testing.assert_allclose(scis[0].data, scis[1].data, atol=1e-5)
            assert heads[0]["S_SKYMAT"] == ("SKIPPED" if level[0] is None else "COMPLETE")


def test_saved_names(noisy, tmp_path, offline):
    asn = association(noisy)
    before = digest(noisy), sorted(noisy[0].parent.iterdir())
    run(asn, save_results=True, output_dir=str(tmp_path / "new" / "out"))
    assert sorted((tmp_path / "new" / "out").glob("*.fits")) == sorted(saved(noisy, tmp_path / "new" / "out"))
    assert (digest(noisy), sorted(noisy[0].parent.iterdir())) == before
    assert list(offline.iterdir()) == []


@pytest.mark.parametrize("subtract", [False, True])
def test_levels_of_the_user(noisy, tmp_path, subtract):
    """Names may have another folder, suffix or order; comments and empty lines are skipped."""
    given = [0.5 * n - 1 for n in range(len(noisy))]
    roots = [file.name.rpartition("_")[0] for file in noisy]
    names = [
        f"elsewhere/{root}{end}"
        for root, end in zip(roots, ["_cal.fits", "_rate.fits", ".fits", "", "_crf.fits", "_i2d.fits"], strict=True)
    ]
    lines = [f"{name}   {level}\n" for name, level in zip(names, given, strict=True)]
    skylist = tmp_path / "sky.txt"
    skylist.write_text("# name level\n\n" + "".join(lines[::-1]))
    before = [model.data.copy() for model in opened(noisy)]
    library = run(association(noisy), skymethod="user", skylist=str(skylist), subtract=subtract)
    assert list(results(library).values()) == [(level, "user", subtract, "COMPLETE") for level in given]
    for now, then, level in zip(arrays(library), before, given, strict=True):
        np.testing.assert_allclose(now, then - np.float32(level) * subtract, rtol=0, atol=2e-6)


def test_saved_tables(noisy, noisy_levels, offline):
    library = run(noisy[::-1], skystat="median", save_table="levels.ecsv")
    table, pairs = Table.read("levels.ecsv"), Table.read("levels_pairs.ecsv")
    assert table.colnames == ["name", "group", "component", "level", "sigma", "sky", "npix", "status"]
    assert list(table["name"]) == sorted(file.name for file in noisy)
    np.testing.assert_array_equal(table["level"], levels(library)[np.argsort([file.name for file in noisy[::-1]])])
    assert (table["component"] == 0).all()
    assert len(set(table["group"])) == 3
    assert len(pairs) >= 4
    assert set(table["status"]) == {"matched"}
    assert table.meta["options"]["skystat"] == "median"
    truth = dict(zip([file.name for file in noisy], noisy_levels, strict=True))
    fitted = dict(zip(table["name"], table["level"], strict=True))
    for row in pairs:
        assert row["first"] < row["second"]
        assert row["offset"] == pytest.approx(truth[row["first"]] - truth[row["second"]], abs=0.05)
        left = row["offset"] - (fitted[row["first"]] - fitted[row["second"]])
        assert row["residual"] == pytest.approx(left, abs=1e-9)
        assert row["sigma"] > 0
        assert row["npix"] > 0


@pytest.mark.parametrize("subtract", [False, True])
def test_a_saved_table_can_be_applied(pair, subtract):
    measured = run(association(pair), save_table="levels.ecsv", subtract=subtract)
    library = run(association(pair), apply_table="levels.ecsv", subtract=subtract)
    for name, (level, *others) in results(measured).items():
        assert results(library)[name] == (pytest.approx(level, abs=1e-12), *others)
    for ours, theirs in zip(arrays(library), arrays(measured), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_table_fits_the_same_exposures_of_another_suffix(pair, tmp_path):
    run(association(pair), save_table="levels.ecsv")
    renamed = [shutil.copy(file, tmp_path / file.name.replace("_cal", "_tweakreg")) for file in pair]
    for file in renamed:
        fits.setval(file, "FILENAME", value=Path(file).name)
    expected = levels(run(association(pair)))
    np.testing.assert_array_equal(levels(run(renamed, apply_table="levels.ecsv")), expected)


@pytest.mark.parametrize("subtract", [False, True])
def test_repetition_changes_nothing(pair, tmp_path, subtract, caplog):
    options = {"subtract": subtract, "skystat": "median", "save_results": True, "output_dir": str(tmp_path)}
    first = run(association(pair), **options)
    once, before = levels(first), arrays(first)
    assert "before, which the levels include" not in caplog.text
    for given in (saved(pair, tmp_path), first):
        caplog.clear()
        again = run(given, subtract=subtract, skystat="median")
        assert ("subtracted before, which the levels include; at most" in caplog.text) == subtract
        np.testing.assert_allclose(levels(again), once, atol=1e-6)
        for now, then in zip(arrays(again), before, strict=True):
            np.testing.assert_allclose(now, then, atol=2e-6)


# -------------------------------------------------------------------------------------------------- undo, errors


def original(files, name):
    return [np.array(getattr(model, name)) for model in opened(files)]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("propagate", [False, True])
def test_undo(pair, tmp_path, reopened, propagate):
    library = run(
        association(pair), subtract=True, propagate_errors=propagate, save_table="levels.ecsv",
        save_results=True, output_dir=str(tmp_path),
    )  # fmt: skip
    table = Table.read("levels.ecsv")
    sigma = dict(zip(table["name"], table["sigma"], strict=True))
    if reopened:
        models = opened(saved(pair, tmp_path))
    else:
        with library:
            models = list(library.map_function(lambda m, _: m, modify=False))
    for model, file, old in zip(models, pair, opened(pair), strict=True):
        added = sigma[file.name] ** 2 * propagate
        assert sigma[file.name] > 1e-4
        np.testing.assert_allclose(model.err**2, old.err**2 + added, rtol=3e-6)
        np.testing.assert_allclose(model.var_rnoise, old.var_rnoise + added, rtol=3e-6)
        level = model.meta.background.level
        assert undo(model)
        # Two roundings, each half of the last digit of float32 at the size of data or of what is left.
        allowed = np.spacing(np.abs(old.data) + abs(level))
        differs = np.abs(model.data - old.data)[np.isfinite(old.data)]
        assert (differs <= allowed[np.isfinite(old.data)]).all()
        np.testing.assert_array_equal(np.isnan(model.data), np.isnan(old.data))
        np.testing.assert_allclose(model.err, old.err, rtol=1e-6)
        np.testing.assert_allclose(model.var_rnoise, old.var_rnoise, rtol=2e-6)
        assert [getattr(model.meta.background, key) for key in ("level", "method", "subtracted")] == [None] * 3
        assert model.meta.cal_step.skymatch is None
        assert not undo(model)
        model.save(tmp_path / "undone.fits")
        assert not set(KEYWORDS) & set(header(tmp_path / "undone.fits"))
        assert "BKGSIGMA" not in header(tmp_path / "undone.fits")


def test_undo_of_levels_that_were_not_subtracted(pair):
    library = run(association(pair), subtract=False)
    with library:
        assert all(library.map_function(lambda m, _: undo(m)))
        assert set(library.map_function(lambda m, _: m.meta.background.level)) == {None}
    for now, then in zip(arrays(library), original(pair, "data"), strict=True):
        np.testing.assert_array_equal(now, then)


def test_errors_are_added_once(pair, tmp_path):
    options = {"subtract": True, "propagate_errors": True, "save_results": True}
    folders = [tmp_path / name for name in ("first", "second", "third")]
    first = run(association(pair), output_dir=str(folders[0]), **options)
    for before, after in pairwise(folders):
        again = run(saved(pair, before), output_dir=str(after), **options)
        for name in ("err", "var_rnoise"):
            for now, then in zip(arrays(again, name), arrays(first, name), strict=True):
                np.testing.assert_allclose(now, then, rtol=1e-6)


def test_errors_are_not_changed_unless_asked(pair):
    library = run(association(pair), subtract=True)
    for name in ("err", "var_rnoise", "dq"):
        for now, then in zip(arrays(library, name), original(pair, name), strict=True):
            np.testing.assert_array_equal(now, then)


# -------------------------------------------------------------------------------------------------- good pixels


@pytest.fixture
def ramp(tmp_path):
    """A file in which each pixel has a value of its own, and the values."""
    data = np.random.default_rng(3).permutation(SIDE**2).reshape(SIDE, SIDE).astype(np.float32) / 16
    (file,) = write([image_model(exposure_name(1), data, tile_wcs((1, 1))[0])], tmp_path)
    return file, data


def sky(inputs, **options):
    """Plain mean of the good pixels of one exposure."""
    (level,) = levels(run(inputs, skymethod="local", skystat="mean", nclip=0, **options))
    return level


def mean(data, good):
    assert 0 < good.sum() < good.size
    return pytest.approx(np.mean(data[good], dtype=np.float64), rel=1e-8)


FLAGS = {
    "~DO_NOT_USE+NON_SCIENCE": lambda dq: dq & 513 == 0,
    "~DO_NOT_USE+SATURATED": lambda dq: dq & 3 == 0,
    "DO_NOT_USE,SATURATED": lambda dq: dq & ~3 == 0,
    "~4": lambda dq: dq & 4 == 0,
    "0": lambda dq: dq == 0,
}


@pytest.mark.parametrize("dqbits", FLAGS)
def test_flags(ramp, dqbits):
    file, data = ramp
    flags = np.array([0, 1, 2, 4, 512, 513, 2**30], np.uint32)
    with datamodels.open(file) as model:
        model.dq = np.random.default_rng(6).choice(flags, data.shape)
        dq = model.dq.astype(np.int64)
        model.save(file)
    assert sky(str(file), dqbits=dqbits) == mean(data, FLAGS[dqbits](dq))
    if dqbits == SkyMatchStep().dqbits:
        assert sky(str(file)) == mean(data, FLAGS[dqbits](dq))


@pytest.mark.parametrize("dqbits", ["", "~0"])
def test_no_flags(ramp, dqbits):
    file, data = ramp
    spoilt = datamodels.open(file)
    spoilt.dq[:] = 1
    assert sky(spoilt, dqbits=dqbits) == pytest.approx(np.mean(data, dtype=np.float64), rel=1e-8)


def write_mask(path, good):
    fits.writeto(path, good.astype(np.uint8))


@pytest.mark.parametrize("named", ["list", "suffix", "_suffix"])
def test_masks(ramp, tmp_path, named):
    file, data = ramp
    good = np.random.default_rng(4).random(data.shape) < 0.7
    path = tmp_path / f"{exposure_name(1)}_usermask.fits"
    write_mask(path, good)
    masks = {"list": str(path), "suffix": "usermask", "_suffix": "_usermask"}[named]
    assert sky(association([file]), masks=[masks]) == mean(data, good)
    assert sky(str(file), masks=[masks]) == mean(data, good)


def test_masks_of_some_exposures_only(tmp_path, ramp):
    _, data = ramp
    files = write([image_model(exposure_name(n), data, tile_wcs((1, 1))[0]) for n in (1, 2)], tmp_path / "two")
    good = data < 100
    write_mask(tmp_path / "two" / f"{exposure_name(2)}_mask.fits", good)
    found = levels(run(association(files), skymethod="local", skystat="mean", nclip=0, masks=["mask"]))
    assert list(found) == [pytest.approx(data.mean(dtype=np.float64), rel=1e-8), mean(data, good)]


def test_masks_stand_beside_the_files_of_models(tmp_path, ramp, monkeypatch):
    """Beside the members of a library in memory; models tell the names of their files, in the working folder."""
    _, data = ramp
    folder = tmp_path / "there"
    (file,) = write([image_model(exposure_name(1), data, tile_wcs((1, 1))[0])], folder)
    good = data < 100
    write_mask(folder / f"{exposure_name(1)}_mask.fits", good)
    options = {"skymethod": "local", "skystat": "mean", "nclip": 0, "masks": ["mask"]}
    assert levels(run(ModelLibrary(str(association([file])), on_disk=False), **options)) == [mean(data, good)]
    with datamodels.open(file) as model:
        with pytest.raises(ValueError, match=r"no exposure has a mask \*_mask.fits beside it"):
            run([model.copy()], **options)
        monkeypatch.chdir(folder)
        assert levels(run([model.copy()], **options)) == [mean(data, good)]


def test_masks_in_a_list_go_by_order(tmp_path):
    wcs = tile_wcs((1, 2))
    data = np.full((SIDE, SIDE), 1.0)
    half = np.zeros((SIDE, SIDE), bool)
    half[: SIDE // 2] = True
    models = [
        image_model(exposure_name(n), np.where(good, data * n, 99), w)
        for n, good, w in zip((1, 2), (half, ~half), wcs, strict=True)
    ]
    files = write(models, tmp_path)
    for name, good in (("one.fits", half), ("two.fits", ~half)):
        write_mask(name, good)
    np.testing.assert_allclose(levels(run(files, skymethod="local", masks=["one.fits", "two.fits"])), (1, 2))


def test_what_is_masked_does_not_count_in_overlaps(tmp_path):
    """The first exposure is spoilt where the second one lies, but for a part that the mask leaves."""
    wcs = tile_wcs((1, 2), overlap=0.5)
    one, two = (np.full((SIDE, SIDE), level) for level in (5.0, 7.0))
    good = np.zeros((SIDE, SIDE), bool)
    good[10:30] = True
    one[~good] = 1000
    files = write(
        [image_model(exposure_name(n), d, w) for n, d, w in zip((1, 2), (one, two), wcs, strict=True)], tmp_path
    )
    write_mask(tmp_path / f"{exposure_name(1)}_mask.fits", good)
    for overlap in ("good", "footprint", "exact"):
        found = levels(run(files, masks=["mask"], overlap=overlap, skystat="mean", nclip=0))
        np.testing.assert_allclose(found, (0, 2), atol=1e-6, err_msg=overlap)


def separation_from(file, ra, dec):
    with datamodels.open(file) as model:
        y, x = np.indices(model.shape)
        pixels = SkyCoord(*model.meta.wcs(x, y, with_bounding_box=False), unit="deg")
    return pixels.separation(SkyCoord(ra, dec, unit="deg")).arcsec


REGIONS = {
    "include": ('circle({0},{1},30")\n', lambda near: near < 30),
    "exclude": ('-circle({0},{1},30")\n', lambda near: near > 30),
    "both": ('circle({0},{1},50")\n-circle({0},{1},30")\n', lambda near: (near > 30) & (near < 50)),
}


@pytest.mark.parametrize("kind", REGIONS)
def test_regions(ramp, tmp_path, kind):
    file, data = ramp
    with datamodels.open(file) as model:
        ra, dec = model.meta.wcs(20.0, 40.0)
    text, rule = REGIONS[kind]
    path = tmp_path / "sky.reg"
    path.write_text("# Region file format: DS9\nicrs\n" + text.format(ra, dec))
    distance = separation_from(file, ra, dec)
    assert min(np.abs(distance - radius).min() for radius in (30, 50)) > 1e-3, "a pixel's centre is on the edge"
    assert sky(str(file), regions=str(path)) == mean(data, rule(distance))


def test_regions_masks_and_flags_combine(ramp, tmp_path):
    file, data = ramp
    with datamodels.open(file) as model:
        ra, dec = model.meta.wcs(20.0, 40.0)
        flagged = np.random.default_rng(5).random(data.shape) < 0.1
        model.dq = np.where(flagged, 1, 4).astype(np.uint32)
        model.data = np.where(data < 3, np.nan, data)
        model.save(file)
    mask = data < 200
    write_mask(tmp_path / f"{exposure_name(1)}_mask.fits", mask)
    (tmp_path / "sky.reg").write_text(f'icrs\n-circle({ra},{dec},30")\n')
    good = mask & ~flagged & (data >= 3) & (separation_from(file, ra, dec) > 30)
    assert sky(str(file), regions=str(tmp_path / "sky.reg"), masks=["mask"]) == mean(data, good)
    good = mask & (data >= 3) & (separation_from(file, ra, dec) > 30)
    assert sky(str(file), regions=str(tmp_path / "sky.reg"), masks=["mask"], dqbits="") == mean(data, good)


def depth_in_polygon(corners, pixels):
    """Least angle (arcsec) of points from the great circles through the sides of a convex polygon, inside positive."""
    vertices, points = (np.moveaxis(c.cartesian.xyz.value, 0, -1) for c in (corners, pixels))
    normals = np.cross(vertices, np.roll(vertices, -1, axis=0))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals *= np.sign(normals @ vertices.mean(axis=0))[:, None]
    return np.degrees(np.arcsin(points @ normals.T)).min(axis=-1) * 3600


@pytest.mark.parametrize("center", [(0.001, 30.0), (200.0, 89.99), (120.0, -90.0)])
@pytest.mark.parametrize("shape", ["circle", "polygon"])
def test_region_masks_against_geometry_on_the_sphere(center, shape):
    (wcs,) = tile_wcs((1, 1), center=center)
    y, x = np.indices((SIDE, SIDE))
    pixels, middle = (SkyCoord(*wcs(*at), unit="deg") for at in ((x, y), (25.0, 30.0)))
    if shape == "circle":
        text = f'circle({middle.ra.deg:.10f},{middle.dec.deg:.10f},35")'
        depth = 35 - pixels.separation(middle).arcsec
    else:
        corners = middle.directional_offset_by([10, 120, 250] * u.deg, 60 * u.arcsec)
        text = "polygon(" + ",".join(f"{c.ra.deg:.10f},{c.dec.deg:.10f}" for c in corners) + ")"
        depth = depth_in_polygon(corners, pixels)
    clear = np.abs(depth) > 0.02  # a hundredth of a pixel
    assert clear.sum() > depth.size - 20
    for sign, inside in (("", depth > 0), ("-", depth < 0)):
        found = region_mask(Regions.parse(f"icrs\n{sign}{text}\n", format="ds9"), wcs, (SIDE, SIDE))
        assert 50 < found.sum() < found.size - 50
        np.testing.assert_array_equal(found[clear], inside[clear])


# -------------------------------------------------------------------------------------------------- parameters


def choices(text):
    return set(re.findall(r"'([^']*)'", text.partition("default")[0]))


def test_spec_and_options_have_the_same_defaults():
    step = SkyMatchStep()
    for field in fields(SkyMatchOptions):
        assert getattr(step, field.name) == field.default, field.name
        assert type(getattr(step, field.name)) is type(field.default), field.name


def test_spec_and_options_have_the_same_choices():
    spec = described(SkyMatchStep)
    for field in fields(SkyMatchOptions):
        allowed = set(get_args(field.type))
        if allowed and str not in allowed and type(None) not in allowed:
            extra = {"user", "localmin", "globalmin", "globalmin+match"} if field.name == "skymethod" else set()
            assert choices(spec[field.name]) == allowed | extra, field.name


def test_every_option_has_a_parameter_and_the_others_are_known():
    others = {
        "skylist", "apply_table", "subtract", "dqbits", "masks", "regions", "propagate_errors", "save_table", "suffix",
        "output_use_model", "in_memory", "temp_dir", "maximum_cores", "dask_scheduler", "report",
    }  # fmt: skip
    assert set(described(SkyMatchStep)) == others | {field.name for field in fields(SkyMatchOptions)}


def test_spec_is_a_superset_of_that_of_jwst():
    ours, theirs = described(SkyMatchStep), described(JwstSkyMatchStep)
    for name, text in theirs.items():
        if text.startswith("option"):
            assert choices(ours[name]) >= choices(text), name
            assert ours[name].rpartition("default")[2] == text.rpartition("default")[2], name
        else:
            assert ours[name] == text, name
    ours, theirs = SkyMatchStep().get_pars(), JwstSkyMatchStep().get_pars()
    changed = {name for name, value in theirs.items() if ours[name] != value}
    assert changed == {"suffix", "output_use_model"}


# -------------------------------------------------------------------------------------------------- strun


def strun(*words, **env):
    """Run strun in a process without CRDS, or with what ``env`` says of it; return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CRDS", "STPIPE"))}
    command = [Path(sys.executable).with_name("strun"), *words, "--subtract=true", "--save_results=true"]
    ran = subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "crds", "says"),
    [
        pytest.param("bkgmatch.SkyMatchStep", "none", "CRDS is not set up", marks=pytest.mark.slow),
        ("bkg_skymatch", "none", "CRDS is not set up"),
        pytest.param("bkgmatch.SkyMatchStep", "empty cache", None, marks=pytest.mark.slow),
        pytest.param("bkgmatch.SkyMatchStep", "closed port", "runs on its defaults", marks=pytest.mark.slow),
    ],
)
def test_strun(two_pieces, tmp_path, name, crds, says):
    env = {
        "none": {},
        "empty cache": {"CRDS_PATH": str(crds_cache(tmp_path / "crds"))},
        "closed port": {"CRDS_SERVER_URL": f"http://127.0.0.1:{closed_port()}", "CRDS_PATH": str(tmp_path / "none")},
    }[crds]
    asn = association(two_pieces)
    before = digest(two_pieces)
    output = strun(name, str(asn), f"--output_dir={tmp_path}", **env)
    assert ("CRDS - INFO" in output) == (crds == "empty cache")
    assert says in output if says else "on its defaults" not in output
    for file, level in zip(saved(two_pieces, tmp_path), SECOND["match"], strict=True):
        head = header(file)
        assert head["BKGLEVEL"] == pytest.approx(level, abs=1e-5)
        assert [head[key] for key in ("BKGMETH", "BKGSUB", "S_SKYMAT")] == ["match", True, "COMPLETE"]
    assert digest(two_pieces) == before


def test_names_for_strun():
    """Ours is found, and the alias of jwst still means jwst's step only."""
    names = {step.class_name: step.class_alias for step in entry_points.get_steps()}
    assert names["bkgmatch.SkyMatchStep"] == "bkg_skymatch"
    assert [name for name, alias in names.items() if alias == "skymatch"] == ["jwst.step.SkyMatchStep"]
    assert utilities.import_class(names_of("skymatch")) is JwstSkyMatchStep
    assert utilities.import_class(names_of("bkg_skymatch")) is SkyMatchStep


def names_of(alias):
    (name,) = [step.class_name for step in entry_points.get_steps() if alias in (step.class_alias, step.class_name)]
    return name
