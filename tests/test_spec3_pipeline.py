"""bkgmatch's calwebb_spec3: jwst's pipeline with MRSIMatchStep in front of outlier_detection."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy.io import fits
from builders import association as associate
from jwst.datamodels import ModelContainer
from jwst.pipeline import Spec3Pipeline as JwstSpec3Pipeline
from mrs import twins
from spec3 import CUBE, OFF, Catch, coverage, parameters, rms_step, to_outlier_detection
from stdatamodels.jwst import datamodels
from test_mrs_pipeline import FINE, SMALL, exposed

from bkgmatch import MRSIMatchStep, Spec3Pipeline
from bkgmatch.steps.simulated_mrs import write_cubepar

pytestmark = pytest.mark.usefixtures("empty_crds")

COARSE = {"scalexy": 0.3, "scalew": 0.05}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def association(dither_files, tmp_path_factory):
    """Association of two exposures, with what cube_build needs."""
    folder = tmp_path_factory.mktemp("two")
    files = [Path(shutil.copy(file, folder)) for file in dither_files[:2]]
    with datamodels.open(files[0]) as model:
        write_cubepar(folder / "cubepar.fits", model.data.shape[0])
    return associate(files)


@pytest.fixture
def pair(dithers, association):
    """The same in memory, cheap copies: a container with its association."""
    models = ModelContainer(twins(dithers[:2]))
    models.asn_table = ModelContainer.read_asn(str(association))
    models.asn_table_name = association.name
    return models


def run(cls, given, folder, hooks=(), mrs_imatch=None, **cube_build):
    """Run a pipeline that saves; return its files by name."""
    steps = parameters(Path(given).with_name("cubepar.fits"), hooks, **COARSE | cube_build)
    steps |= {"mrs_imatch": mrs_imatch} if mrs_imatch else {}
    cls.call(str(given), steps=steps, output_dir=str(folder), save_results=True)
    return files(folder)


def files(folder):
    return {path.name: path for path in Path(folder).iterdir()}


def arrays_of(path):
    with fits.open(path, memmap=False) as hdus:
        return {(hdu.name, hdu.ver): hdu.data for hdu in hdus if hdu.is_image and hdu.size}


def assert_same_arrays(one, other):
    one, other = arrays_of(one), arrays_of(other)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))


def status(models):
    return [model.meta.cal_step.instance.get("mrs_imatch") for model in models]


@pytest.fixture(scope="module")
def results(association, tmp_path_factory):
    """A function: files of a run of two exposures; each kind runs once."""
    known = {}

    def give(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp("results") / kind.replace(" ", "_")
            known[kind] = {
                "ours": lambda: run(Spec3Pipeline, association, folder),
                "skipped": lambda: run(Spec3Pipeline, association, folder, mrs_imatch={"skip": True}),
                "saved": lambda: run(Spec3Pipeline, association, folder, mrs_imatch={"save_results": True}),
                "jwst": lambda: run(JwstSpec3Pipeline, association, folder),
                "hook": lambda: run(JwstSpec3Pipeline, association, folder, [MRSIMatchStep(subtract=True)]),
            }[kind]()
        return known[kind]

    return give


CUBES = CUBE.replace("cube_", "mosaic_")  # after the product
CRF = "_a3001_crf.fits"


def crf_names(association):
    return [model.meta.filename.replace("_cal.fits", CRF) for model in ModelContainer(str(association))]


@SLOW
@pytest.mark.parametrize(("ours", "theirs"), [("ours", "hook"), ("skipped", "jwst"), ("saved", "hook")])
def test_results_are_bit_by_bit_those_of_jwsts_pipeline(ours, theirs, association, results):
    """With the hook; or without it if the step is skipped. The names are jwst's, whatever the step saves."""
    ours, theirs = results(ours), results(theirs)
    assert sorted(theirs) == sorted([CUBES, *crf_names(association)])
    assert set(theirs) <= set(ours)
    for name, path in theirs.items():
        assert_same_arrays(ours[name], path)


@SLOW
def test_the_results_can_differ(results):
    """Else the test above says nothing."""
    for name in results("jwst"):
        one, other = (arrays_of(results(kind)[name])["SCI", 1] for kind in ("ours", "skipped"))
        assert np.nanmax(abs(one - other)) > 1


@SLOW
def test_what_the_step_leaves_in_results(association, results):
    for name, path in results("ours").items():
        with datamodels.open(path) as model:
            steps = model.meta.cal_step
            assert (steps.mrs_imatch, steps.outlier_detection) == ("COMPLETE", "COMPLETE"), name
            assert model.meta.background.subtracted is True
            assert model.meta.asn.table_name == association.name
            assert any("mrs_imatch" in line and "COMPLETE" not in line for line in model.cal_logs.calwebb_spec3)
            assert not hasattr(model.cal_logs, "mrs_imatch")


@SLOW
def test_what_a_skipped_step_leaves(results):
    for path in results("skipped").values():
        with datamodels.open(path) as model:
            assert model.meta.cal_step.mrs_imatch == "SKIPPED"
            assert model.meta.background.subtracted is None


@SLOW
def test_saved_results_of_the_step_are_beside_those_of_the_pipeline(association, results):
    """With their association, which the pipeline takes in turn, the step skipped."""
    saved, step = results("saved"), "mosaic_mrsimatch_asn.json"
    own = [name.replace(CRF, "_mrsimatch.fits") for name in crf_names(association)]
    assert sorted(saved) == sorted([*results("jwst"), *own, step])
    expected = MRSIMatchStep.call(str(association), subtract=True)
    for name, model in zip(own, expected, strict=True):
        np.testing.assert_array_equal(fits.getdata(saved[name], "SCI"), model.data)
    shutil.copy(association.with_name("cubepar.fits"), saved[step].parent)
    again = run(JwstSpec3Pipeline, saved[step], Path("again"))
    assert_same_arrays(again[CUBES], saved[CUBES])


# ------------------------------------------------------------------------------------------- in front of the pipeline


def test_by_default_the_step_runs_and_subtracts(pair):
    given = [model.data.copy() for model in pair]
    theirs = MRSIMatchStep.call(pair, subtract=True)
    ours = to_outlier_detection(pair)
    assert type(ours) is ModelContainer
    assert ours.asn_table["products"][0]["name"] == "mosaic"
    assert status(ours) == ["COMPLETE"] * 2
    for model, expected, before, kept in zip(ours, theirs, given, pair, strict=True):
        np.testing.assert_array_equal(model.data, expected.data)
        np.testing.assert_array_equal(kept.data, before, err_msg="the caller's models")
        assert np.nanmax(abs(model.data - before)) > 1
        assert model.meta.background.instance == expected.meta.background.instance
        assert model.meta.filename == kept.meta.filename


@pytest.mark.slow
def test_an_instance_runs_again_and_after_an_error(pair):
    """With the same defaults; the second run gives what the first gave."""
    pipeline = Spec3Pipeline()
    assert (pipeline.mrs_imatch.skip, pipeline.mrs_imatch.subtract) == (False, True)
    assert pipeline.class_alias == "calwebb_spec3"
    for name in pipeline.step_defs:
        getattr(pipeline, name).skip = name != "mrs_imatch"
    pipeline.mrs_imatch.channel = ["1"]
    pipeline.outlier_detection._pre_hooks = [Catch("catch")]
    pair[1].meta.instrument.channel = "34"
    with pytest.raises(ValueError, match="cannot be on the detector"):
        pipeline.run(pair)
    pair[1].meta.instrument.channel = "12"
    found = []
    for _ in range(2):
        assert "run" not in vars(pipeline.outlier_detection)
        pipeline.run(pair)
        found.append([model.data for model in Catch.caught])
    assert status(Catch.caught) == ["COMPLETE"] * 2
    for expected, *twice in zip(MRSIMatchStep.call(pair, subtract=True, channel=["1"]), *found, strict=True):
        for data in twice:
            np.testing.assert_array_equal(data, expected.data)


@pytest.mark.slow
def test_options_reach_the_step(pair, offline):
    table = offline / "table.ecsv"
    ours = to_outlier_detection(pair, bkg_degree=[0, 1, 2], channel=["2"], save_table=str(table))
    for model in ours:
        (info,) = model.meta.background.polynomial_info
        assert (list(info.degree), info.channel) == ([0, 1, 2], "2")
    assert table.exists()


@SLOW
def test_a_record_alone_is_possible(pair):
    before = [model.data.copy() for model in pair]
    for model, data in zip(to_outlier_detection(pair, subtract=False), before, strict=True):
        np.testing.assert_array_equal(model.data, data)
        assert len(model.meta.background.polynomial_info) == 2
        assert model.meta.background.subtracted is False


def test_a_skipped_step_does_nothing(pair):
    before = [model.data.copy() for model in pair]
    found = to_outlier_detection(pair, skip=True)
    assert status(found) == ["SKIPPED"] * 2
    for model, data in zip(found, before, strict=True):
        np.testing.assert_array_equal(model.data, data)


@pytest.mark.parametrize("kind", ["NRS_IFU", pytest.param("MIR_LRS-FIXEDSLIT", marks=SLOW)])
def test_other_exposures_never_reach_the_step(pair, kind):
    """MRSIMatchStep would refuse them."""
    for model in pair:
        model.meta.exposure.type = kind
    before = [model.data.copy() for model in pair]
    found = to_outlier_detection(pair)
    assert status(found) == [None] * 2
    for model, data in zip(found, before, strict=True):
        np.testing.assert_array_equal(model.data, data)


@SLOW
def test_hooks_of_outlier_detection_come_after_the_step(pair):
    """Catch is one; and bkgmatch's own hook there finds the polynomials subtracted."""
    with pytest.raises(ValueError, match="subtracted"):
        to_outlier_detection(pair, hooks=[MRSIMatchStep(subtract=True)], channel=["1"], bkg_degree=0)


@SLOW
def test_background_members_are_left_out(pair, dithers, offline):
    """As they are of all that follows; what the step saves is what is matched."""
    (third,) = twins(dithers[2:3])
    pair.append(third)
    members = pair.asn_table["products"][0]["members"]
    members.append({"expname": third.meta.filename, "exptype": "background"})
    for model, member in zip(pair, members, strict=True):
        model.meta.asn.exptype = member["exptype"]
    two = to_outlier_detection(pair, save_results=True, channel=["1"], bkg_degree=0)
    assert len(two) == 2
    assert status(two) == ["COMPLETE"] * 2
    names = [model.meta.filename for model in two]
    assert names == [model.meta.filename for model in pair[:2]]
    saved = [name.replace("_cal", "_mrsimatch") for name in names]
    assert sorted(files(offline)) == sorted([*saved, "mosaic_mrsimatch_asn.json"])
    (product,) = json.loads(Path("mosaic_mrsimatch_asn.json").read_text())["products"]
    assert [(member["expname"], member["exptype"]) for member in product["members"]] == [(n, "science") for n in saved]


# ------------------------------------------------------------------------------------------- parameters


def test_parameters_of_jwsts_pipeline_stay_with_their_defaults():
    ours, theirs = Spec3Pipeline().get_pars(), JwstSpec3Pipeline().get_pars()
    added = ours["steps"].pop("mrs_imatch")
    assert ours == theirs
    assert set(Spec3Pipeline.step_defs) == {"mrs_imatch", *JwstSpec3Pipeline.step_defs}
    own = MRSIMatchStep().get_pars()
    assert {key for key in own if own[key] != added[key]} == {"skip", "subtract"}


def strun(*words):
    words = [Path(sys.executable).with_name("strun"), *map(str, words)]
    ran = subprocess.run(words, capture_output=True, text=True, env=os.environ, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@SLOW
def test_strun_and_the_parameters_that_it_saves(association, results):
    """Parameters on the command line, saved, and used again from the file; stpipe saves no overrides."""
    override = f"--steps.cube_build.override_cubepar={association.with_name('cubepar.fits')}"
    cube = {"channel": 1, **COARSE}
    given = [f"--steps.{name}.skip=true" for name in OFF] + ["--steps.outlier_detection.kernel_size=3 3"]
    given += [f"--steps.cube_build.{name}={value}" for name, value in cube.items()]
    strun("bkg_spec3", association, "--output_dir=one", "--save-parameters=saved.asdf", override, *given)
    with asdf.open("saved.asdf") as saved:
        (step,) = [step for step in saved["steps"] if step["name"] == "mrs_imatch"]
        assert (step["parameters"]["skip"], step["parameters"]["subtract"]) == (False, True)
    strun("saved.asdf", association, "--output_dir=two", override)
    for folder in ("one", "two"):
        assert set(files(folder)) == set(results("ours"))
        for name, path in files(folder).items():
            assert_same_arrays(path, results("ours")[name])


@SLOW
def test_steps_between_exposures_leave_the_cube(tmp_path):
    """As they do with the hook in jwst's pipeline."""
    given = exposed(SMALL, tmp_path / "in")
    free = exposed(replace(SMALL, amplitudes=(0, 0, 0)), tmp_path / "free")
    truth = run(JwstSpec3Pipeline, free, tmp_path / "truth", **FINE, scalexy=0.13)[CUBE]
    cubes = [
        run(Spec3Pipeline, given, tmp_path / name, mrs_imatch={"skip": skip}, **FINE, scalexy=0.13)[CUBE]
        for name, skip in (("before", True), ("after", False))
    ]
    truth, before, after = map(datamodels.open, (truth, *cubes))
    seen_by = coverage(given, truth)
    largest = rms_step(before, truth, seen_by)
    assert largest > 1, "MJy/sr"
    assert rms_step(after, truth, seen_by) < largest / 100
