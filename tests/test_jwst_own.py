"""jwst's own skymatch tests, from the installed wheel, pass on our class."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).parent
JWST_TESTS = 147

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


def run_jwst_tests(folder: Path, cls: str, *options: str) -> tuple[dict[str, int], str]:
    """Run them in a process of its own, where neither our pytest settings nor CRDS apply; count the outcomes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CRDS", "PYTEST", "STPIPE"))}
    env |= {"BKGMATCH_CLASS": cls, "PYTHONPATH": os.pathsep.join([str(HERE), str(folder)])}
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", "jwst_plugin", "-p", "no:cacheprovider"]
    command += ["-n", "0", "-W", "default", "--tb=line", "--junitxml=report.xml", *options]
    ran = subprocess.run([*command, "--pyargs", "jwst.skymatch"], cwd=folder, env=env, capture_output=True, text=True)
    output = ran.stdout + ran.stderr
    assert (folder / "report.xml").exists(), output
    suite = ElementTree.parse(folder / "report.xml").getroot().find("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}, output


def test_all_of_jwst_tests_pass_on_our_class(tmp_path):
    counts, output = run_jwst_tests(tmp_path, "bkgmatch:SkyMatchStep")
    assert "class under test: bkgmatch.steps.skymatch.SkyMatchStep" in output
    assert counts == {"tests": JWST_TESTS, "failures": 0, "errors": 0, "skipped": 0}, output


def test_they_fail_on_a_wrong_class(tmp_path):
    """Two of the six tests of overlaps; the other four ask only for a level above 1000."""
    (tmp_path / "wrong.py").write_text(WRONG)
    counts, output = run_jwst_tests(tmp_path, "wrong:Wrong", "-k", "test_skymatch_overlap")
    assert "class under test: wrong.Wrong" in output
    assert counts == {"tests": 6, "failures": 2, "errors": 0, "skipped": 0}, output
