"""The bugs of tools/mutants.py still fit the code: each changes one place of it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
try:
    from mutant_list import MUTANTS, Mutant
    from mutants import BROKEN, KILLED, SOURCE, SURVIVED, mutated, outcome_of, table_of
finally:
    sys.path.remove(str(ROOT / "tools"))

ONE = Mutant("a.py", "x + 1", "x - 1", "a sign", ("tests/test_a.py",))


def test_there_are_many_and_each_is_another():
    assert len(MUTANTS) >= 45
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert len({m.file for m in MUTANTS}) >= 25


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.what}")
def test_each_changes_the_meaning_of_one_place(mutant):
    before = (SOURCE / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutated(mutant))) != ast.dump(ast.parse(before))
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["y = x + 2", "y = x + 1; z = x + 1"])
def test_a_bug_that_does_not_fit_once_is_an_error(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError, match="times, not once"):
        mutated(ONE, tmp_path)


@pytest.mark.parametrize(
    ("code", "said", "how", "by"),
    [
        (0, "5 passed", SURVIVED, ""),
        (1, "FAILED tests/test_a.py::test_sum[1-2] - assert 1 == 2", KILLED, "test_a.py::test_sum"),
        (1, "FAILED tests/test_a.py::test_sum", KILLED, "test_a.py::test_sum"),
        (2, "ERROR tests/test_a.py - SyntaxError", BROKEN, ""),
        (4, "ERROR: file or directory not found", BROKEN, ""),
    ],
)
def test_how_a_run_is_judged(code, said, how, by):
    outcome = outcome_of(ONE, code, said)
    assert (outcome.how, outcome.by) == (how, by)
    assert f"| `a.py` | a sign | {how} |" in table_of([outcome])
