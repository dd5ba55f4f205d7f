"""Write the tables of ``docs/reliability.md`` from what the suites of reliability counted.

Run ``pytest --ledger FOLDER ...`` for each command that the page names, all with the same folder, then
``python tools/reliability.py FOLDER``. The table of a suite stands between the comments ``<!-- begin SUITE -->`` and
``<!-- end SUITE -->``.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def main(folder: Path) -> None:
    counts, measures = read(folder)
    if not counts and not measures:
        sys.exit(f"{folder} has no ledger: run pytest --ledger {folder} ...")
    tables = {suite: counted(rows) for suite, rows in counts.items()}
    put(tables | {suite: figures(rows) for suite, rows in measures.items()})


def put(tables: dict[str, str]) -> None:
    """Write tables into the page."""
    text = PAGE.read_text()
    for suite, table in tables.items():
        text, found = re.subn(
            rf"(<!-- begin {suite} -->\n).*?(<!-- end {suite} -->)", rf"\1\n{table}\n\2", text, flags=re.S
        )
        if not found:
            sys.exit(f"{PAGE.name} has no place for {suite!r}")
    PAGE.write_text(text)


def read(folder: Path) -> tuple[dict[str, dict[str, Counter]], dict[str, list[dict]]]:
    """Sums over all processes: outcomes of each kind by suite, and measures by suite."""
    counts: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    measures = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        told = json.loads(file.read_text())
        for suite, kind, outcome, number in told["counts"]:
            counts[suite][kind][outcome] += number
        for row in told["measures"]:
            measures[row.pop("suite")].append(row)
    return counts, measures


def counted(rows: dict[str, Counter]) -> str:
    """A line for each kind, a column for each outcome, and their sums."""
    outcomes = sorted({outcome for row in rows.values() for outcome in row})
    lines = [[kind, *(f"{row[outcome]:,}" for outcome in outcomes)] for kind, row in sorted(rows.items())]
    sums = sum(rows.values(), Counter())
    return as_table(["", *outcomes], [*lines, ["**all**", *(f"{sums[outcome]:,}" for outcome in outcomes)]])


def figures(rows: list[dict]) -> str:
    """A line for each measure."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "kind"))
    lines = [
        [row["kind"], *(digits(row.get(name, "")) for name in names)]
        for row in sorted(rows, key=lambda row: by_number(row["kind"]))
    ]
    return as_table(["", *names], lines)


def by_number(kind: str) -> list[str | int]:
    """Key that sorts 5% before 10%."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", kind)]


def digits(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_table(head: list[str], lines: list[list[str]], *, left: int = 1) -> str:
    """Table whose first columns are texts, the others numbers."""
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the tables of docs/reliability.md.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what pytest --ledger FOLDER has written")
    main(parser.parse_args().folder)
