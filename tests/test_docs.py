"""The examples of the docstrings run, and what the pages name exists."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.rst")}
MODULES = [
    path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
    for path in sorted((ROOT / "src" / "bkgmatch").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
COMMAND = re.compile(r"python (benchmarks/\w+\.py)((?: [\w,./<>-]+)*)")
NOT_FIGURES = {"_common.py", "image_for_image_pictures.py"}


def test_there_are_examples():
    assert {"bkgmatch.match", "bkgmatch.levels", "bkgmatch.spectra", "bkgmatch.image_backgrounds"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_commands_of_benchmarks():
    found = [command for text in PAGES.values() for command in COMMAND.findall(text)]
    assert len(found) > 10
    for script, words in found:
        source = (ROOT / script).read_text(encoding="utf-8")
        assert [w for w in words.split() if w.startswith("--") and f'"{w}"' not in source] == [], script


def test_every_benchmark_is_on_the_page():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - NOT_FIGURES
    named = {script.removeprefix("benchmarks/") for script, _ in COMMAND.findall(PAGES["accuracy.rst"])}
    assert named == scripts


def test_figures_are_those_of_the_steps():
    rows = re.findall(r"^   \* - .+\n     - (.+)\n     - (.+)\n     - \[", PAGES["accuracy.rst"], re.MULTILINE)
    figures = {figure for row in rows for cell in row for figure in re.findall(r"\d+\.\d+|\d{2,}", cell)}
    assert len(figures) > 60
    elsewhere = "\n".join(text for name, text in PAGES.items() if name != "accuracy.rst")
    assert sorted(figures - set(re.findall(r"\d+\.\d+|\d{2,}", elsewhere))) == []


def test_files_that_pages_name_exist():
    named = {name for text in PAGES.values() for name in re.findall(r"\b(?:benchmarks|tools)/[\w/]+\.\w+", text)}
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
