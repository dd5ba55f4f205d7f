"""The page of each step lists every parameter of its spec with the default, and none that does not exist."""

import re
from pathlib import Path

import pytest
from builders import described
from jwst.stpipe import Step

from bkgmatch import Image3Pipeline, ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep, Spec3Pipeline

DOCS = Path(__file__).parents[1] / "docs"
STEPS = {
    "skymatch": SkyMatchStep,
    "level_match": LevelMatchStep,
    "mrs_imatch": MRSIMatchStep,
    "image_for_image": ImageForImageStep,
}
PAGES = sorted(page.name for page in DOCS.glob("*.rst"))
TABLE = re.compile(r"\n   \* - Parameter\n     - Default\n     - Meaning\n(.*?)\n\n\S", re.DOTALL)
ROW = re.compile(r"^   \* - (.+)\n     - (.+)\n     - ", re.MULTILINE)
NAME = re.compile(r"``(\w+)``")
SET_IN_SHELL = re.compile(r"--((?:steps\.\w+\.)?\w+)=")
SET_IN_TEXT = re.compile(r"``([a-z]\w*)=[^`]*``")
DEFAULT = re.compile(r"default=(?:list\((.*?)\)|'(.*?)'|([^')]+))\)$")
OTHERS = {"log-level", "fit_type"}  # options of strun itself, and of `bkgmatch level`
OF_FUNCTIONS = {"solver"}  # arguments of functions


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def listed(text):
    """Name and default of each row of the table of parameters; rows may hold several names."""
    (table,) = TABLE.findall(text + "\n\n.")
    return [(name, default) for names, default in ROW.findall(table) for name in NAME.findall(names)]


def shown(check):
    """How a page writes the default of a parameter: nothing at all is a plain ``none``."""
    found = next(value for value in DEFAULT.search(check).groups() if value is not None)
    return "none" if found == "None" else f"``{found}``"


def parameters(cls):
    return set(cls.load_spec_file()) | set(Step.load_spec_file())


@pytest.mark.parametrize("name", STEPS)
def test_every_parameter_with_its_default(name):
    spec = {parameter: shown(check) for parameter, check in described(STEPS[name]).items()}
    table = listed(text_of(f"{name}.rst"))
    assert len(dict(table)) == len(table), "a parameter is listed twice"
    assert dict(table) == spec


@pytest.mark.parametrize("page", PAGES)
def test_parameters_that_the_text_sets_exist(page):
    words = set(SET_IN_TEXT.findall(text_of(page)))
    assert words or page.removesuffix(".rst") not in STEPS, "the text sets no parameter: the pattern is wrong"
    known = set().union(*map(parameters, STEPS.values()))  # a page may speak of another step
    assert words - known - OF_FUNCTIONS == set()


@pytest.mark.parametrize("page", PAGES)
def test_parameters_of_command_lines_exist(page):
    pipelines = (Image3Pipeline, Spec3Pipeline)
    plain = set().union(*map(parameters, [*STEPS.values(), *pipelines]))
    nested = {
        f"steps.{name}.{parameter}"
        for pipeline in pipelines
        for name, cls in pipeline.step_defs.items()
        for parameter in parameters(cls)
    }
    assert set(SET_IN_SHELL.findall(text_of(page))) - plain - nested - OTHERS == set()


def test_the_patterns_find_what_is_wrong():
    page = (
        ".. list-table::\n\n   * - Parameter\n     - Default\n     - Meaning\n"
        "   * - ``sigma``, ``limit``\n     - ``3.0``\n     - Limit.\n   * - ``file``\n     - none\n     - File.\n"
    )
    assert listed(page) == [("sigma", "``3.0``"), ("limit", "``3.0``"), ("file", "none")]
    assert shown("float(min=0.0, default=3.0)") == "``3.0``"
    assert shown("option('a', 'b', default='a')") == "``a``"
    assert shown("force_list(default=list(1))") == "``1``"
    assert shown("string(default=None)") == "none"
    assert SET_IN_SHELL.findall("strun x --steps.skymatch.skip=true --subtract=true") == [
        "steps.skymatch.skip",
        "subtract",
    ]
