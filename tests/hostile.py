"""Hostile files and words: what all tests of them need."""

import io
import os
import signal
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from builders import exposure_name, image_model, tile_wcs

from bkgmatch.cli import main

SIDE = 8
WORDS = (
    "", " ", ".", "..", "../../evil", "/evil", "a/b", "a b", "new\nline", "tab\t", "ünï €", "'q\"", "{0} %s $HOME ~",
    "-", "--out", "#", "nul\0", "\x1b[31m", "\u202e", "x" * 300, "<script>alert(1)</script>", "nan", "1e999", "None",
)  # fmt: skip
VALUES = (*WORDS, None, True, -1, 0, 10**40, 1e308, float("nan"), float("inf"), [], {}, [[]], {"a": [1]}, [None])


class Hung(BaseException):
    """Something takes too long: no error that any code would catch."""


@contextmanager
def limited(seconds=60):
    """Raise Hung in what takes longer."""

    def ring(number, frame):
        raise Hung

    earlier = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def listing(root):
    """State of all that is below a folder: kind, size, time of change and target of each."""
    found = {}
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *files)):
            state = path.lstat()
            time = 0 if path.is_dir() else state.st_mtime_ns
            found[str(path)] = (state.st_mode, state.st_size if time else 0, time)
    return found


@contextmanager
def writes_only(root, *places):
    """Within a folder nothing but these files and folders, and what is in them, may change."""
    before = listing(root)
    with limited():
        yield
    after = listing(root)
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    allowed = [str(place) for place in places]
    assert [path for path in changed if not any(path == a or path.startswith(f"{a}/") for a in allowed)] == []


def command(*words):
    """Exit code, output and errors of ``bkgmatch``: 0, or 1 with one line that says why, or 2 with the usage."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    told = error.getvalue()
    assert code in (0, 1, 2), words
    assert "Traceback" not in told
    if code == 1:
        last = told.splitlines()[-1]
        assert last.startswith(f"bkgmatch {words[0]}: "), told
        assert len(last) > len(f"bkgmatch {words[0]}: ") + 10, told
    return code, out.getvalue(), told


def small_models(levels=(1.0, 2.0), side=SIDE):
    """Neighbours that hold nothing but a constant."""
    wcs = tile_wcs((1, len(levels)), binning=2048 // side)
    return [
        image_model(exposure_name(i), np.full((side, side), level), each)
        for i, (level, each) in enumerate(zip(levels, wcs, strict=True), 1)
    ]
