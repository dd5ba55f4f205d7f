"""Work in the calling thread, in threads, in processes: the same results, in order; errors; what is sent."""

import os
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from clusters import Carrier

from bkgmatch import execution, progress
from bkgmatch.detectors import Detector, detector_wcs
from bkgmatch.execution import HERE, Work, threads
from bkgmatch.exposures import Exposure, Pixels, SpectralExposure, SpectralPixels
from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.journal import Journal
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, SkyMatchOptions
from bkgmatch.spectra import match_spectra
from bkgmatch.steps.packed import PackedWcs


class Trouble(Exception):
    """An error of a kind that is not known elsewhere."""

    def __init__(self, where, why):
        super().__init__(where, why)


def square(x):
    return x * x


def late_first(x):
    time.sleep(0.1 if x == 0 else 0)
    return x


def fails(x, at):
    if x == at:
        raise Trouble("here", x)
    return x


def dies(x, at):
    if x == at:
        os._exit(1)
    return x


@contextmanager
def here(folder):
    yield HERE


@contextmanager
def in_threads(folder):
    with ThreadPoolExecutor(3) as executor:
        yield Work(executor, folder)


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(params=["here", "threads", "processes"])
def work(request, tmp_path):
    if request.param == "processes":
        yield Work(request.getfixturevalue("pool"), tmp_path)
    else:
        with {"here": here, "threads": in_threads}[request.param](tmp_path) as work:
            yield work


def test_results_are_in_the_order_of_the_items(work, monkeypatch):
    monkeypatch.setattr(execution, "_WINDOW", 3)
    assert work.run(square, range(50), what="Squares") == [x * x for x in range(50)]
    assert work.run(late_first, iter(range(5)), what="Late") == list(range(5))
    assert work.run(square, [], what="Nothing") == []
    assert work.run_here(lambda x: -x, range(10)) == [-x for x in range(10)]


def test_errors_come_through_as_they_are(work):
    with pytest.raises(Trouble) as caught:
        work.run(partial(fails, at=3), range(6), what="Tasks", name=str)
    assert caught.value.args == ("here", 3)
    assert work.run(square, [2], what="Again") == [4]


def test_stacks(work):
    stack = work.stack("name", 2, (3, 4), np.float32)
    assert isinstance(stack, np.ndarray) == (work.folder is None)
    stack[1] = np.ones((3, 4))
    assert np.sum(list(stack)) == 12


def test_processes_need_a_folder(pool, tmp_path):
    with pytest.raises(ValueError, match="need a folder that they and it can see"):
        Work(pool)
    with ThreadPoolExecutor(1) as executor:
        assert Work(executor).shares_memory
    assert HERE.shares_memory
    assert not Work(pool, tmp_path).shares_memory


def test_a_process_that_dies_is_an_error_with_the_name_of_the_item(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        with pytest.raises(RuntimeError, match="item 0: ") as caught:
            Work(executor, tmp_path).run(partial(dies, at=0), [0], what="Tasks", name=lambda x: f"item {x}")
        assert isinstance(caught.value.__cause__, BrokenExecutor)


def test_the_others_are_cancelled_after_an_error():
    started, lock = [], threading.Lock()

    def task(x):
        with lock:
            started.append(x)
        if x == 0:
            raise Trouble("here", x)
        time.sleep(0.02)

    with threads(2) as work, pytest.raises(Trouble):
        work.run(task, range(1000), what="Tasks")
    assert len(started) < 50


class Recorded(Executor):
    """Runs what it is given at once, and counts what is under way."""

    def __init__(self):
        self.most = self.waiting = 0
        self.cancelled = []

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        threading.Timer(0.01, self._finish, [future, function]).start()
        return future

    def _finish(self, future, function):
        if future.set_running_or_notify_cancel():
            future.set_result(function())
        self.waiting -= 1


def test_no_more_than_a_window_of_tasks_is_under_way(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "_WINDOW", 7)
    executor = Recorded()
    assert Work(executor, tmp_path).run(square, range(40), what="Squares") == [x * x for x in range(40)]
    assert 1 < executor.most <= 8


def test_progress_is_told(monkeypatch, caplog):
    caplog.set_level("INFO", "stpipe")
    HERE.run(square, range(3), what="Quick")
    assert caplog.text == ""
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.0)
    HERE.run(square, range(3), what="Squares")
    HERE.run_here(square, range(3))
    told = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert told == [f"Squares: {n} of 3" for n in (1, 2, 3)]


def test_results_are_taken_from_the_journal(work, tmp_path, monkeypatch):
    done = Journal(tmp_path / "t.resume")
    kept = Work(work.executor, work.folder, done)
    assert kept.run(square, range(4), what="Squares") == [0, 1, 4, 9]
    again = Journal(tmp_path / "t.resume")
    kept = Work(work.executor, work.folder, again)
    assert kept.run(square, range(6), what="Squares") == [0, 1, 4, 9, 16, 25]
    assert again.taken == 4
    assert kept.run(partial(fails, at=9), range(6), what="Others") == list(range(6))
    assert kept.run(square, range(6), what="Squares", keep=False) == [0, 1, 4, 9, 16, 25]
    assert again.taken == 4
    again.close()
    assert not again.folder.exists()


def test_what_was_done_before_an_error_is_kept(tmp_path):
    work = Work(journal=Journal(tmp_path / "t.resume"))
    with pytest.raises(Trouble):
        work.run(partial(fails, at=3), range(6), what="Tasks")
    assert len(list(work.journal.folder.rglob("*.npz"))) == 3


def test_functions_without_a_name_are_never_found_again(tmp_path):
    for factor in (1, 2):
        work = Work(journal=Journal(tmp_path / "t.resume"))
        assert work.run(lambda x, factor=factor: factor * x, [3], what="Tasks") == [3 * factor]
        assert work.journal.taken == 0


# -------------------------------------------------------------------------------------------------- what travels


SIDE = 2048


def image(n, side):
    """Pixels of a whole detector, with a star and holes."""
    rng = np.random.default_rng(n)
    data = rng.normal(n, 0.1, (side, side)).astype(np.float32)
    good = rng.random((side, side)) > 0.01
    good[200:400, 300:700] = False
    return Pixels(data, good, np.full((side, side), 0.01, np.float32))


def images(n=5, side=SIDE, step=40.0):
    detector = Detector.named("NRCALONG")
    where = [(150.0 + step * (i % 3) / 3600, 2.2 + step * (i // 3) / 3600, 20.0) for i in range(n)]
    worlds = [partial(detector_wcs(detector, *at, binning=2048 // side), with_bounding_box=False) for at in where]
    return [
        Exposure(f"e{i}", partial(image, i, side), PackedWcs.of(w), time=60000 + 0.01 * i, tile="ab"[i % 2])
        for i, w in enumerate(worlds)
    ]


def slices(n):
    """Pixels of a channel: slices of 0.18 arcsec, of 1024 wavelengths."""
    rng = np.random.default_rng(n)
    row, column = (axis.ravel() for axis in np.mgrid[:1024, :512])
    across, along = column // 24, column % 24
    ra, dec = (across * 0.177 + 0.3 * n) / 3600, (along * 0.13 + 0.2 * n) / 3600
    value = rng.normal(n, 0.1, row.size).astype(np.float32)
    return SpectralPixels(10 + ra, dec, 5 + row / 1024 + 1e-3 * across, value, np.full(row.size, 0.01))


def spectra(n=4):
    made = [(i, slices(i).extent()) for i in range(n)]
    return [SpectralExposure(f"e{i}", partial(slices, i), *extent, 0.177) for i, extent in made]


STAGES = {
    "sky": lambda work: match_skies(images(), work=work),
    "difference": lambda work: match_skies(images(), SkyMatchOptions(skystat="difference"), work=work),
    "exact": lambda work: match_skies(images(4, 512), SkyMatchOptions(overlap="exact"), work=work),
    "levels": lambda work: match_levels(images(), work=work),
    "planes": lambda work: match_levels(
        images(), LevelMatchOptions(fit_type_dithers="level+slope", fit_type_mosaic_tiles="level+slope"), work=work
    ),
    "backgrounds": lambda work: make_backgrounds(images(4, 1024, 10.0), ImageForImageOptions(maxiters=1), work=work),
    "spectra": lambda work: match_spectra(spectra(), work=work),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_no_image_travels(stage, tmp_path):
    carrier = Carrier()
    stage(Work(carrier, tmp_path))
    assert carrier.sent
    assert {name: size for name, size in carrier.sent.items() if size > 300_000} == {}
    assert {name: size for name, size in carrier.returned.items() if size > 2_000_000} == {}
