"""Bars in a real terminal, none elsewhere; lines of the log beside them; the time of each stage."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest
from builders import association, constant_files, tile_wcs

from bkgmatch import progress
from bkgmatch.execution import HERE, Work
from bkgmatch.journal import Journal
from bkgmatch.progress import Times, stage

LINES = 4
SCRIPT = f"""
import logging, sys, time
from bkgmatch import progress
from bkgmatch.execution import threads

progress._BAR_SECONDS, progress._REPORT_SECONDS, progress._TOLD_SECONDS = 0.5, 0.2, 0.9
log = logging.getLogger("stpipe.bkgmatch.test")
logging.basicConfig(level=sys.argv[1], format="LOG %(message)s", stream=sys.stderr)
if len(sys.argv) > 2:
    logging.root.addHandler(logging.FileHandler(sys.argv[2]))

def task(i):
    time.sleep(0.03)
    if i % 8 == 7:
        log.info("item %d of the list is in the log, whole", i)

with threads(1) as work:
    work.run(task, range({8 * LINES}), what="Waiting")
log.info("after the stage")
"""
BAR = re.compile(r"Waiting: +\d+%\|.*?\| \d+/32 ")


def in_terminal(command, **kwargs):
    """What a command writes to a terminal, and how it ends."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(command, stderr=theirs, stdout=theirs, **kwargs)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def on_screen(written):
    """Lines as they are seen in the end: after a carriage return, what follows replaces what was there."""
    seen = []
    for line in written.split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part + cells[len(part) :]
        seen.append(cells.rstrip())
    return [line for line in seen if line]


def script(*arguments):
    return [sys.executable, "-c", SCRIPT, *map(str, arguments)]


def test_a_bar_in_a_terminal_and_whole_lines_of_the_log(tmp_path):
    file = tmp_path / "log.txt"
    written = in_terminal(script("INFO", file))
    bars = [int(found.split("/")[0].split()[-1]) for found in BAR.findall(written)]
    assert min(bars) > 2  # not at once
    assert max(bars) > 25
    items = [f"LOG item {i} of the list is in the log, whole" for i in range(7, 8 * LINES, 8)]
    *seen, told, last = on_screen(written)
    assert seen == items
    assert re.fullmatch(r"LOG Waiting: 32 of 32 in \d+ s", told)
    assert last == "LOG after the stage"
    kept = file.read_text()
    assert kept.count(" s left") > 2
    assert "|" not in kept


def test_no_bar_if_the_environment_says_so():
    written = in_terminal(script("INFO"), env={**os.environ, "TQDM_DISABLE": "1"})
    assert "%|" not in written
    assert written.count(" s left") > 2


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_no_bar_where_nobody_reads_it(level):
    if level == "ERROR":
        assert in_terminal(script(level)) == ""
    else:
        written = subprocess.run(script(level), capture_output=True, text=True, check=True).stderr
        assert "\r" not in written
        assert written.count(" s left") > 2


STRUN = """
import sys, time
from bkgmatch import match
from stpipe._cli.strun import main

quick = match._outline

def slow(exposure, options):
    time.sleep(0.8)
    return quick(exposure, options)

match._outline = slow
sys.exit(main())
"""


def test_a_bar_of_strun(offline, assign_freely):
    asn = association(constant_files(offline / "given", [(tile_wcs((2, 2)), (1, 2, 3, 4))]))
    command = [sys.executable, "-c", STRUN, "bkgmatch.SkyMatchStep", str(asn), "--subtract=true"]
    written = in_terminal([*command, "--save_results=true"])
    shown = re.findall(r"Outlining exposures: +(\d+)%", written)
    assert shown[-1] == "100"
    assert "25" not in shown  # not at once
    seen = on_screen(written)
    assert not [line for line in seen if "%|" in line]
    told = re.compile(r"[\d-]+ [\d:,]+ - stpipe\.bkgmatch\.execution - INFO - Outlining exposures: 4 of 4 in \d+ s")
    assert sum(bool(told.fullmatch(line)) for line in seen) == 1
    assert re.search(
        r"stpipe\.bkgmatch\.base - INFO - Time: checks \d+\.\d s, outlining exposures \d+\.\d s, ", written
    )


class Stream(io.StringIO):
    """Standard error of a notebook, or a terminal."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.fixture
def told(monkeypatch):
    """Standard error with the log; the bar is shown at once."""

    def make(tty, module=__name__, level=logging.INFO):
        stream = type("Stream", (Stream,), {"__module__": module})(tty)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
        log.addHandler(handlers.setdefault(0, logging.StreamHandler(stream)))
        log.setLevel(level)
        return stream

    log, handlers = logging.getLogger("stpipe.bkgmatch"), {}
    before = log.level
    yield make
    log.removeHandler(handlers[0])
    log.setLevel(before)


@pytest.mark.parametrize(
    ("tty", "module", "level", "shown"),
    [
        (True, "io", logging.INFO, True),
        (False, "io", logging.INFO, False),
        (False, "ipykernel.iostream", logging.INFO, True),
        (True, "io", logging.ERROR, False),
        (True, "io", logging.WARNING, False),
    ],
)
def test_where_bars_are(told, tty, module, level, shown):
    stream = told(tty, module, level)
    HERE.run(time.sleep, [0.12, 0.0, 0.12], what="Sleeping")
    HERE.run_here(time.sleep, [0.12, 0.12])
    assert ("Sleeping:" in stream.getvalue()) == shown
    assert on_screen(stream.getvalue()) == []
    assert [handler.filters for handler in logging.getLogger("stpipe.bkgmatch").handlers] == [[]]


@pytest.mark.parametrize("delay", [0.01, 60.0])
def test_lines_of_the_log_are_whole_beside_a_bar(told, monkeypatch, delay):
    """Also before the bar is seen; it takes the place of the lines that tell how far the stage is."""
    stream = told(True)
    monkeypatch.setattr(progress, "_BAR_SECONDS", delay)
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.0)
    log = logging.getLogger("stpipe.bkgmatch.test")
    HERE.run(lambda i: time.sleep(0.11) or log.info("item %d is in the log", i), range(3), what="Logging")
    assert on_screen(stream.getvalue()) == [f"item {i} is in the log" for i in range(3)]
    assert ("Logging:" in stream.getvalue()) == (delay < 1)


def slept(number):
    time.sleep(0.11)
    return number


def test_a_bar_goes_on_from_what_an_earlier_run_has_done(told, tmp_path):
    Work(journal=Journal(tmp_path / "t.resume")).run(slept, range(2), what="Sleeping")
    stream = told(True)
    done = Work(journal=Journal(tmp_path / "t.resume")).run(slept, range(4), what="Sleeping")
    assert done == [0, 1, 2, 3]
    assert [int(n) for n in re.findall(r"(\d)/4 ", stream.getvalue())][-2:] == [3, 4]
    assert "1/4" not in stream.getvalue()


def test_a_bar_goes_with_an_error(told):
    stream = told(True)
    gone = logging.StreamHandler(io.StringIO())
    gone.stream.close()
    logging.root.addHandler(gone)
    with pytest.raises(ZeroDivisionError):
        HERE.run(lambda x: time.sleep(0.12) or 1 / x, [1, 1, 0], what="Dividing")
    logging.root.removeHandler(gone)
    assert "Dividing:" in stream.getvalue()
    assert on_screen(stream.getvalue()) == []


def test_quick_stages_have_no_bar(told, monkeypatch):
    stream = told(True)
    monkeypatch.setattr(progress, "_BAR_SECONDS", 2.0)
    HERE.run(time.sleep, [0.12, 0.12], what="Sleeping")
    assert stream.getvalue() == ""


def test_each_second_counts_once(monkeypatch):
    clock = iter([0, 1, 3, 6, 10, 15, 21, 28])
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Times("checks").running() as times:
        with stage("solution"), stage("levels"):
            pass
        with stage("solution"):
            pass
    assert str(times) == "checks 13.0 s, levels 3.0 s, solution 12.0 s"
    with stage("nothing that runs"):
        pass
    assert str(times) == "checks 13.0 s, levels 3.0 s, solution 12.0 s"


def test_stages_of_the_work_are_counted():
    with Times("checks").running() as times:
        HERE.run(abs, [1], what="Comparing pairs (in batches)")
        HERE.run_here(abs, [1])
    assert re.fullmatch(r"checks \d\.\d s, comparing pairs \d\.\d s", str(times))
