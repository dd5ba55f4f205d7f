"""jwst's own tests pass on our classes: of skymatch, from the installed wheel; of mrs_imatch, from an old one."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from zipfile import ZipFile

import pytest

HERE = Path(__file__).parent
JWST_TESTS = 147
MRS_TESTS = 9
MRS_WHEEL = "jwst==1.19.2"  # the last with the step

WRONG = """
from bkgmatch import SkyMatchStep


def add(model, _):
    if model.meta.background.level is not None:
        model.meta.background.level += 0.5


class Wrong(SkyMatchStep):
    def process(self, inputs):
        library = super().process(inputs)
        with library:
            list(library.map_function(add))
        return library
"""

WRONG_MRS = """
from bkgmatch import MRSIMatchStep as Right, apply_background_2d as right
from bkgmatch.steps.ifu_models import channel_pixels as pixels
from bkgmatch.steps.polynomial_record import find_channel as find


class MRSIMatchStep(Right):
    spec = "skip = boolean(default=False)"

    def process(self, inputs):
        return inputs


def apply_background_2d(model, channel=None, subtract=True):
    right(model, channel, not subtract)


def channel_pixels(channel):
    x, y = pixels(channel)
    return x + 1, y


def find_channel(model, channel):
    return find(model, channel) + 1


def reset(model):
    pass
"""


def run_jwst_tests(folder: Path, plugin: str, what: list[str], **names: str) -> tuple[dict[str, int], str]:
    """Run them in a process of its own, where neither our pytest settings nor CRDS apply; count the outcomes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CRDS", "PYTEST", "STPIPE"))}
    env |= names | {"PYTHONPATH": os.pathsep.join([str(HERE), str(folder)])}
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", plugin, "-p", "no:cacheprovider"]
    command += ["-n", "0", "-W", "default", "--tb=line", "--junitxml=report.xml", *what]
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    output = ran.stdout + ran.stderr
    assert (folder / "report.xml").exists(), output
    suite = ElementTree.parse(folder / "report.xml").getroot().find("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}, output


def run_skymatch_tests(folder: Path, cls: str, *options: str) -> tuple[dict[str, int], str]:
    return run_jwst_tests(folder, "jwst_plugin", [*options, "--pyargs", "jwst.skymatch"], BKGMATCH_CLASS=cls)


@pytest.mark.slow
def test_all_of_jwst_tests_pass_on_our_class(tmp_path):
    counts, output = run_skymatch_tests(tmp_path, "bkgmatch:SkyMatchStep")
    assert "class under test: bkgmatch.steps.skymatch.SkyMatchStep" in output
    assert counts == {"tests": JWST_TESTS, "failures": 0, "errors": 0, "skipped": 0}, output


@pytest.mark.slow
def test_they_fail_on_a_wrong_class(tmp_path):
    """Two of the six tests of overlaps; the other four ask only for a level above 1000."""
    (tmp_path / "wrong.py").write_text(WRONG)
    counts, output = run_skymatch_tests(tmp_path, "wrong:Wrong", "-k", "test_skymatch_overlap")
    assert "class under test: wrong.Wrong" in output
    assert counts == {"tests": 6, "failures": 2, "errors": 0, "skipped": 0}, output


@pytest.fixture(scope="module")
def mrs_tests(tmp_path_factory):
    """The old step's tests, from a wheel that is only unpacked: it needs not fit this Python or this platform."""
    folder = tmp_path_factory.mktemp("old")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "--only-binary=:all:"]
    command += ["--python-version=3.11", "--platform=manylinux_2_17_x86_64", MRS_WHEEL]
    ran = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("jwst-*.whl"))
    if not wheels:
        pytest.skip(f"pip cannot download {MRS_WHEEL}: {ran.stderr.strip().splitlines()[-1:]}")
    with ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("jwst/mrs_imatch/tests/test_")]
        return [wheel.extract(name, folder) for name in names]


@pytest.mark.slow
def test_all_tests_of_the_old_mrs_step_pass_on_ours(mrs_tests, tmp_path):
    counts, output = run_jwst_tests(tmp_path, "jwst_mrs_plugin", mrs_tests)
    assert "module under test: bkgmatch" in output
    assert counts == {"tests": MRS_TESTS, "failures": 0, "errors": 0, "skipped": 0}, output


@pytest.mark.slow
def test_they_all_fail_on_a_wrong_module(mrs_tests, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG_MRS)
    counts, output = run_jwst_tests(tmp_path, "jwst_mrs_plugin", mrs_tests, BKGMATCH_MODULE="wrong")
    assert "module under test: wrong" in output
    assert counts == {"tests": MRS_TESTS, "failures": MRS_TESTS, "errors": 0, "skipped": 0}, output
