"""Break the code on purpose, one bug at a time, and see whether the fast tests notice.

``python tools/mutants.py`` copies the package, makes one change, runs the tests that should fail, and prints a table of
what became of each bug: *killed* by a test, *survived*, or *broken* (the code could not be imported: no fair bug).
``--page`` also writes it into ``docs/reliability.md``, between ``<!-- begin mutants -->`` and ``<!-- end mutants -->``.
The exit code is 1 unless all are killed. ``--only TEXT`` takes those whose file or description holds the text.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mutant_list import MUTANTS, Mutant
from reliability import as_table, put

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bkgmatch"
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
_SECONDS = 900  # of one bug: a test that hangs has noticed, too
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[| - |$)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What became of a bug, and the test that noticed it."""

    mutant: Mutant
    how: str
    by: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break the code on purpose, and see whether the tests notice.")
    parser.add_argument("--only", default="", metavar="TEXT", help="bugs whose file or description holds this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time [%(default)s]")
    parser.add_argument("--page", action="store_true", help="write the table into docs/reliability.md")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in f"{mutant.file}: {mutant.what}"]
    if not chosen:
        parser.error(f"there is no bug whose file or description holds {options.only!r}")
    if not passes(sorted({test for mutant in chosen for test in mutant.tests})):
        sys.exit("the tests fail without a bug")
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as executor:
        for outcome in executor.map(judged, chosen):
            outcomes.append(outcome)
            print(f"{outcome.how:8} {outcome.mutant.file}: {outcome.mutant.what}  {outcome.by}", flush=True)
    table = table_of(outcomes)
    print(f"\n{table}")
    if options.page:
        put({"mutants": table})
    return int(any(outcome.how != KILLED for outcome in outcomes))


def mutated(mutant: Mutant, source: Path = SOURCE) -> str:
    """Text of the file with the bug; ValueError unless what it replaces is there once."""
    text = (source / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once")
    return text.replace(mutant.old, mutant.new)


def judged(mutant: Mutant) -> Outcome:
    """Run the tests with one bug."""
    with copied() as folder:
        (folder / "bkgmatch" / mutant.file).write_text(mutated(mutant), encoding="utf-8")
        return outcome_of(mutant, *run(mutant.tests, folder))


def outcome_of(mutant: Mutant, code: int, said: str) -> Outcome:
    """Judge by the exit code of pytest: 0 all passed, 1 some failed, others that they could not be run."""
    if code == 0:
        return Outcome(mutant, SURVIVED)
    failed = _FAILED.search(said)
    if code != 1 or failed is None:
        return Outcome(mutant, BROKEN)
    return Outcome(mutant, KILLED, failed[1].removeprefix("tests/"))


def passes(tests: Sequence[str]) -> bool:
    """Whether tests pass without a bug."""
    with copied() as folder:
        code, said = run(tests, folder)
    print(said.splitlines()[-1] if said else "no output", flush=True)
    return code == 0


@contextmanager
def copied() -> Iterator[Path]:
    """Yield a temporary folder with a copy of the package."""
    with TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder) / "bkgmatch", ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def run(tests: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run fast tests with the package of a folder, up to the first that fails."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    places = [str(folder), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, "FAILED (no end)"
    return done.returncode, done.stdout


def table_of(outcomes: Sequence[Outcome]) -> str:
    """A line for each bug, and how many of each outcome there are."""
    lines = [[f"`{o.mutant.file}`", o.mutant.what, o.how, o.by and f"`{o.by}`"] for o in outcomes]
    sums = ", ".join(f"{number} {how}" for how, number in sorted(Counter(o.how for o in outcomes).items()))
    return as_table(["file", "bug", "outcome", "by"], [*lines, ["**all**", "", f"**{sums}**", ""]], left=4)


if __name__ == "__main__":
    sys.exit(main())
