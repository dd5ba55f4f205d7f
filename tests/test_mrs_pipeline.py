"""MRSIMatchStep in jwst's own calwebb_spec3: hooks that run it, what it does to the cube, what is left in files."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import association as two_of
from jwst.datamodels import ModelContainer
from jwst.pipeline import Spec3Pipeline
from spec3 import CUBE, OFF, build_cube, coverage, rms_step, to_outlier_detection
from stdatamodels.jwst import datamodels

from bkgmatch import MRSIMatchStep
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures

pytestmark = pytest.mark.usefixtures("empty_crds")

SMALL = MRSScene(rows=128)
FINE = {"scalew": 0.0064}  # micron: one plane of the cube for each row of the detector
HOOK = "bkgmatch.MRSIMatchStep(subtract=True)"
HOOK_OF_TWO = "bkgmatch.MRSIMatchStep(subtract=True, bkg_degree=2)"  # the comma calls for quotes on a command line
PARAMETER_FILE = f"""#ASDF 1.0.0
#ASDF_STANDARD 1.6.0
%YAML 1.1
%TAG ! tag:stsci.edu:asdf/
--- !core/asdf-1.1.0
class: jwst.pipeline.Spec3Pipeline
name: Spec3Pipeline
parameters: {{}}
steps:
- class: jwst.outlier_detection.OutlierDetectionStep
  name: outlier_detection
  parameters:
    pre_hooks: ['{HOOK_OF_TWO}']
...
"""


def exposed(scene, folder):
    """Write exposures; return their association."""
    write_mrs_exposures(scene, folder, product="cube")
    return folder / "cube_asn.json"


@pytest.fixture(scope="module")
def association(tmp_path_factory):
    """Association of four exposures."""
    return exposed(SMALL, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def pair(dither_files):
    """Two smaller exposures; the pipeline copies them."""
    return ModelContainer(str(two_of(dither_files[:2], name="pair.json")))


@pytest.fixture(scope="module")
def matched(pair):
    return MRSIMatchStep.call(pair, subtract=True, bkg_degree=2)


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(HOOK_OF_TWO, id="text", marks=pytest.mark.slow),
        pytest.param(MRSIMatchStep(subtract=True, bkg_degree=2), id="instance", marks=pytest.mark.slow),
    ],
)
def test_a_hook_with_parameters_does_what_the_step_does(pair, matched, hook):
    result = to_outlier_detection(pair, Spec3Pipeline, [hook])
    assert result.asn_table == pair.asn_table
    for model, expected, before in zip(result, matched, pair, strict=True):
        np.testing.assert_array_equal(model.data, expected.data)
        assert np.nanmax(abs(model.data - before.data)) > 1
        assert model.meta.background.instance == expected.meta.background.instance
        assert (model.meta.background.subtracted, model.meta.cal_step.mrs_imatch) == (True, "COMPLETE")


@pytest.mark.slow
def test_a_hook_without_subtract_only_records(pair):
    """A bare class does not even record: it keeps skip=True."""
    for hook, status, n in (("bkgmatch.MRSIMatchStep(skip=False)", "COMPLETE", 2), (MRSIMatchStep, "SKIPPED", 0)):
        for model, before in zip(to_outlier_detection(pair, Spec3Pipeline, [hook]), pair, strict=True):
            np.testing.assert_array_equal(model.data, before.data)
            assert model.meta.cal_step.mrs_imatch == status
            assert len(model.meta.background.polynomial_info) == n


@pytest.mark.slow
def test_steps_between_exposures_leave_the_cube(association, tmp_path):
    """Constants alone would leave a quarter of them."""
    free = exposed(replace(SMALL, amplitudes=(0, 0, 0)), tmp_path / "free")
    truth = build_cube(free, tmp_path / "truth", **FINE)
    before = build_cube(association, tmp_path / "before", **FINE)
    after = build_cube(association, tmp_path / "after", [MRSIMatchStep(subtract=True)], **FINE)
    seen_by = coverage(association, truth)
    assert len(np.unique(seen_by)) > 10
    largest = rms_step(before, truth, seen_by)
    assert largest > 1, "MJy/sr"
    assert rms_step(after, truth, seen_by) < largest / 100


@pytest.mark.slow
def test_saved_files_make_the_cube_of_the_hook(association, tmp_path):
    folder = tmp_path / "matched"
    MRSIMatchStep.call(str(association), subtract=True, save_results=True, output_dir=str(folder))
    saved = folder / association.name
    saved.write_text(association.read_text().replace("_cal.fits", "_mrsimatch.fits"))
    shutil.copy(association.with_name("cubepar.fits"), folder)
    files = sorted(folder.glob("*_mrsimatch.fits"))
    build_cube(saved, tmp_path / "saved", **FINE)
    files += sorted((tmp_path / "saved").glob("*_mrsimatch_a3001_crf.fits"))
    assert [fits.getval(file, "S_MRSMAT") for file in files] == ["COMPLETE"] * 8
    cubes = [folder / CUBE for folder in (tmp_path / "saved", tmp_path / "hook")]
    build_cube(association, tmp_path / "hook", [HOOK], **FINE)
    np.testing.assert_array_equal(*(fits.getdata(cube, "SCI") for cube in cubes))


def strun(pipeline, association, *words):
    """Run calwebb_spec3 in a process of its own; its results are in ``out``."""
    off = [f"--steps.{name}.skip=true" for name in OFF]
    cube = {"override_cubepar": association.with_name("cubepar.fits"), "channel": 1, **FINE}
    given = [f"--steps.cube_build.{name}={value}" for name, value in cube.items()]
    command = [Path(sys.executable).with_name("strun"), pipeline, association, "--output_dir=out", *off, *given, *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def check_files(association, folder, degree):
    """Look at what is left in the files after outlier_detection, and in the cube."""
    expected = MRSIMatchStep.call(str(association), subtract=True, bkg_degree=degree)
    for model in expected:
        file = Path(folder, model.meta.filename.replace("_cal.fits", "_a3001_crf.fits"))
        head = fits.getheader(file)
        assert (head["S_MRSMAT"], head["BKGSUB"], head["S_OUTLIR"]) == ("COMPLETE", True, "COMPLETE")
        assert any("subtracted polynomial backgrounds of channel 1, 2" in line for line in head["HISTORY"])
        with datamodels.open(file) as found:
            assert found.meta.cal_step.mrs_imatch == "COMPLETE"
            assert found.meta.background.instance == model.meta.background.instance
            assert found.meta.background.polynomial_info[1].degree == [degree] * 3
            kept = np.isfinite(found.data)
            np.testing.assert_array_equal(found.data[kept], model.data[kept])
            assert kept.sum() > 0.99 * np.isfinite(model.data).sum()
    with datamodels.open(Path(folder, CUBE)) as cube:
        assert cube.meta.cal_step.mrs_imatch == cube.meta.cal_step.cube_build == "COMPLETE"
        assert cube.meta.background.subtracted


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "degree"), [(f"{HOOK},", 1), (f'"{HOOK_OF_TWO}",', 2)], ids=["one", "two"])
def test_hook_on_the_command_line(association, hook, degree):
    strun("calwebb_spec3", association, f"--steps.outlier_detection.pre_hooks={hook}")
    check_files(association, "out", degree)


@pytest.mark.slow
def test_hook_in_a_parameter_file(association):
    Path("spec3.asdf").write_text(PARAMETER_FILE)
    strun("spec3.asdf", association)
    check_files(association, "out", 2)
