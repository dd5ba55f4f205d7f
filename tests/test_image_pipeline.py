"""What ImageForImageStep saves, given to jwst: the step bkg_subtract alone, and in calwebb_image2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import as_rate, association, digest, image_files, write
from jwst.background import BackgroundStep
from jwst.pipeline import Image2Pipeline
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch import ImageForImageStep
from bkgmatch.simulate_dithers import simulate_dithers

pytestmark = pytest.mark.usefixtures("empty_crds")

OFF = ("assign_wcs", "flat_field", "photom", "resample")
PATHS = pytest.mark.filterwarnings("ignore:Input association file contains path information")
GRISM = {"override_bkg": "N/A", "override_wavelengthrange": "N/A"}  # references of bkg_subtract for grisms alone
STEPS = {"bkg_subtract": GRISM} | {name: {"skip": True} for name in OFF}
ONLY_THERE = np.s_[30:33, 40:44]


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """Rate exposures of MIRI with their cal files beside; the first alone has good pixels in one place."""
    scene = simulate_dithers(rng=np.random.default_rng(9), dithers=3, dither_step=40.0, binning=16, n_sources=6)
    folder = tmp_path_factory.mktemp("rates")
    models = [as_rate(model) for model in map(datamodels.open, image_files(scene, folder))]
    for n, model in enumerate(models):
        model.dq[ONLY_THERE] = 0 if n == 0 else 1
        model.dq[50, 20 + n] = 4  # JUMP_DET
    return write(models, folder)


def products(rates, folder, **options):
    """Results and backgrounds that the step saves of rate exposures."""
    ImageForImageStep.call(str(association(rates)), save_results=True, output_dir=str(folder), maxiters=1, **options)
    names = [file.name.removesuffix("_rate.fits") for file in rates]
    return [(folder / f"{name}_i4i.fits", folder / f"{name}_i4ibkg.fits") for name in names]


@pytest.fixture(scope="module")
def saved(rates, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return products(rates, folder)


@pytest.fixture(scope="module")
def flagged(rates, tmp_path_factory):
    """The same, holes flagged DO_NOT_USE."""
    return products(rates, tmp_path_factory.mktemp("flagged"), holes="flag")


@pytest.mark.parametrize(
    ("kind", "holes"),
    [("file", "saved"), ("model", "flagged"), pytest.param("model", "saved", marks=pytest.mark.slow)],
)
def test_bkg_subtract_does_the_same(rates, request, kind, holes):
    """Not one bit differs in SCI and DQ; the step of jwst leaves ERR alone."""
    for rate, (result, background) in zip(rates, request.getfixturevalue(holes), strict=True):
        given = str(background) if kind == "file" else datamodels.open(background)
        theirs = BackgroundStep().run(str(rate), [given])
        with datamodels.open(result) as ours, datamodels.open(rate) as old:
            assert theirs.meta.cal_step.bkg_subtract == "COMPLETE"
            np.testing.assert_array_equal(theirs.data, ours.data)
            np.testing.assert_array_equal(theirs.dq, ours.dq)
            np.testing.assert_array_equal(theirs.err, old.err)
            assert (ours.data != old.data)[np.isfinite(old.data)].all()


def test_the_scene_has_holes(rates, saved, flagged):
    """Else the test above says little of DQ."""
    for files, flag in ((saved, dq_flags["FLUX_ESTIMATED"]), (flagged, dq_flags["DO_NOT_USE"])):
        with datamodels.open(files[0][0]) as ours, datamodels.open(rates[0]) as old:
            assert set(np.unique((ours.dq & ~old.dq)[ONLY_THERE])) == {flag}
            assert np.isfinite(ours.data[ours.dq & 1 == 0]).all()


@pytest.fixture(scope="module")
def level2(saved):
    """The associations for calwebb_image2."""
    paths = [result.with_name(f"{result.stem}_asn.json") for result, _ in saved]
    assert all(path.exists() for path in paths)
    return paths


def check_result(path, result, rate):
    with datamodels.open(path) as theirs, datamodels.open(result) as ours, datamodels.open(rate) as old:
        steps = theirs.meta.cal_step
        assert (steps.bkg_subtract, steps.assign_wcs, steps.photom) == ("COMPLETE", "SKIPPED", "SKIPPED")
        np.testing.assert_array_equal(theirs.data, ours.data)
        np.testing.assert_array_equal(theirs.dq, ours.dq)
        np.testing.assert_array_equal(theirs.err, old.err)
        assert theirs.meta.exposure.type == "MIR_IMAGE"


@PATHS
def test_calwebb_image2_takes_the_association(rates, saved, level2, tmp_path, monkeypatch):
    """In the folder of the association: calwebb_image2 looks for members from where it runs."""
    monkeypatch.chdir(level2[0].parent)
    before = digest([*rates, *(background for _, background in saved)])
    Image2Pipeline.call(level2[0].name, steps=STEPS, save_results=True, output_dir=str(tmp_path / "out"))
    name = rates[0].name.replace("_rate", "_cal")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    check_result(tmp_path / "out" / name, saved[0][0], rates[0])
    assert digest([*rates, *(background for _, background in saved)]) == before


@pytest.mark.slow
def test_calwebb_image2_on_the_command_line(rates, tmp_path):
    """All files in one folder, moved elsewhere together."""
    first = tmp_path / "first"
    first.mkdir()
    here = [Path(shutil.copy(file, first)) for file in rates]
    for file in rates:
        shutil.copy(file.with_name(file.name.replace("_rate", "_cal")), first)
    done = products(here, first)
    moved = tmp_path / "moved"
    first.rename(moved)
    path = moved / done[1][0].name.replace("_i4i.fits", "_i4i_asn.json")
    assert {Path(m["expname"]).parent for m in json.loads(path.read_text())["products"][0]["members"]} == {Path()}
    skip = [f"--steps.{name}.{key}={value}" for name, given in STEPS.items() for key, value in given.items()]
    command = [Path(sys.executable).with_name("strun"), "calwebb_image2", path.name, "--output_dir=out", *skip]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=moved, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = Path(moved, "out", rates[1].name.replace("_rate", "_cal"))
    check_result(result, moved / done[1][0].name, moved / rates[1].name)


@PATHS
def test_its_result_is_not_subtracted_again(rates, level2, monkeypatch):
    """What calwebb_image2 has subtracted is refused by the step."""
    monkeypatch.chdir(level2[0].parent)
    (result,) = Image2Pipeline.call(level2[0].name, steps=STEPS)
    result.meta.wcs = datamodels.open(rates[0].with_name(rates[0].name.replace("_rate", "_cal"))).meta.wcs
    with pytest.raises(ValueError, match="bkg_subtract of calwebb_image2 has subtracted a background"):
        ImageForImageStep.call([result, *(datamodels.open(rate) for rate in rates[1:])])
