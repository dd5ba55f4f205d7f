"""What the suites of reliability did: how often each kind of thing was tried, and how it ended.

Tests call `note` and `measured`; ``pytest --ledger FOLDER`` writes the sums of each process to a file in that folder,
and ``tools/reliability.py`` makes the tables of ``docs/reliability.md`` of them.
"""

import json
import os
from collections import Counter
from pathlib import Path

_COUNTS: Counter[tuple[str, str, str]] = Counter()
_MEASURES: list[dict] = []


def note(suite, kind, outcome="held", count=1):
    """Count a trial of a kind, and how it ended; the names are those that the documentation shows."""
    _COUNTS[suite, kind, outcome] += count


def measured(suite, kind, **values):
    """Keep numbers that were measured."""
    _MEASURES.append({"suite": suite, "kind": kind, **{name: _plain(value) for name, value in values.items()}})


def _plain(value):
    return value.item() if hasattr(value, "item") else value


def pytest_addoption(parser):
    parser.addoption("--ledger", metavar="FOLDER", type=Path, help="write what the suites of reliability did")


def pytest_sessionfinish(session):
    folder = session.config.getoption("--ledger")
    if folder is None or not (_COUNTS or _MEASURES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    counts = [[*key, number] for key, number in sorted(_COUNTS.items())]
    name = f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}.json"
    (folder / name).write_text(json.dumps({"counts": counts, "measures": _MEASURES}, indent=1))
