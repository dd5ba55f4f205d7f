"""A Dask cluster whose workers or scheduler die, are missing, or are not what they should be."""

import gc
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clusters import command_line_cluster, until
from common import tan, to_sky

from bkgmatch import cluster as module
from bkgmatch.cluster import cluster
from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies

SLOW = pytest.mark.slow
TESTS = str(Path(__file__).parent)


@pytest.fixture
def short_waits(monkeypatch):
    """Waiting for what does not come takes a second."""
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(module, "_WORKER_SECONDS", 1.0)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.2)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A cluster of the command line that a test may kill; workers can import the tests."""
    monkeypatch.setenv("PYTHONPATH", TESTS)
    with command_line_cluster(tmp_path / "dask") as found:
        yield found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def pixels(n, die_on, trace):
    """Pixels of an exposure; one of them kills each process that reads it."""
    if n == die_on:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(trace, "a") as file:
        file.write(f"{n} {os.getpid()}\n")
    rng = np.random.default_rng(n)
    return Pixels(rng.normal(n, 0.1, (48, 60)), np.ones((48, 60), bool), np.full((48, 60), 0.01))


def slow_pixels(n, trace):
    time.sleep(0.3)
    return pixels(n, None, trace)


def exposures(read, n=4):
    return [Exposure(f"exposure-{i}", partial(read, i), to_sky(tan(shift=(12 * i, 4 * i)))) for i in range(n)]


def pid(x):
    return os.getpid()


def slow_pid(x):
    time.sleep(x)
    return os.getpid()


def fails(x):
    if x == 2:
        raise ValueError("there", x)
    return x


# ----------------------------------------------------------------------------------------- a cluster that works


def test_tasks_are_done_by_the_workers(local_cluster, folder):
    with cluster(local_cluster, [folder]) as executor:
        work = Work(executor, folder)
        assert work.run(abs, range(-5, 5), what="Tasks") == [abs(x) for x in range(-5, 5)]
        pids = set(work.run(slow_pid, [0.05] * 8, what="Tasks"))
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert work.run_here(pid, [1]) == [os.getpid()]
        with pytest.raises(ValueError, match="there") as caught:
            work.run(fails, range(4), what="Tasks")
        assert caught.value.args == ("there", 2)
        assert work.run(abs, [-1], what="Again") == [1]
    assert list(folder.iterdir()) == []


def test_functions_that_are_not_pure_run_each_time(local_cluster, folder):
    with cluster(local_cluster, [folder]) as executor:
        work = Work(executor, folder)
        assert work.run(os.getenv, ["HOME"] * 3, what="Tasks") == [os.getenv("HOME")] * 3
        one, two = (work.run(partial(np.random.default_rng), [None], what="Tasks")[0].random() for _ in range(2))
        assert one != two


def test_the_client_is_no_default_for_others(local_cluster, folder):
    import distributed

    with cluster(local_cluster, [folder]), pytest.raises(ValueError, match="No global client"):
        distributed.get_client(timeout=1)
    assert until(lambda: not [thread for thread in threading.enumerate() if thread.name.endswith("(_watch)")], 10)


# -------------------------------------------------------------------------------------------------- no cluster


def refused(error, address, folder):
    with pytest.raises(error) as caught, cluster(address, [folder]):
        pass
    assert list(folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "tcp://nowhere.invalid:8786", "tcp://127.0.0.1:x",
                                     "nothing://127.0.0.1:1", "tcp://", "://"])  # fmt: skip
def test_no_scheduler_at_the_address(address, short_waits, folder):
    before = time.monotonic()
    message = refused(ConnectionError, address, folder)
    assert f"the Dask scheduler at {address} does not answer" in message
    assert "start it with 'dask scheduler', or correct dask_scheduler" in message
    assert time.monotonic() - before < 15


def test_a_server_that_never_answers(short_waits, folder):
    """Another service at the address, or a scheduler that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        told = []
        asking = threading.Thread(target=lambda: told.append(refused(ConnectionError, address, folder)), daemon=True)
        asking.start()
        asking.join(20)
        assert told, "it waits for ever"
        assert f"the Dask scheduler at {address} does not answer" in told[0]


def test_failures_leave_nothing_to_the_garbage_collector(short_waits, folder):
    """A client that is collected while another starts would deadlock with it."""
    from distributed import Client

    gc.collect()
    gc.disable()
    try:
        for address in ("tcp://127.0.0.1:1", "tcp://127.0.0.1:x", "nothing://127.0.0.1:1"):
            refused(ConnectionError, address, folder)
        left = [thing for thing in gc.get_objects() if isinstance(thing, Client)]
        assert [client.status for client in left] == ["closed"] * len(left)
    finally:
        gc.enable()
    assert until(lambda: not [thread for thread in threading.enumerate() if thread.name == "IO loop"], 10)


def test_a_client_that_comes_too_late_is_closed():
    closed = threading.Event()
    go = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        module._within(0.05, go.wait, discard=lambda result: closed.set())
    assert not closed.is_set()
    go.set()
    assert closed.wait(10)


def test_errors_and_results_within_the_time():
    assert module._within(10, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="theirs"):
        module._within(10, partial(_raise, TimeoutError("theirs")))


def _raise(error):
    raise error


def test_distributed_is_not_installed(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'bkgmatch[dask]'" in refused(ImportError, "tcp://127.0.0.1:1", folder)


def test_a_scheduler_without_workers(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(module, "_WORKER_SECONDS", 1.0)
    with command_line_cluster(tmp_path / "dask", workers=0) as started:
        message = refused(ConnectionError, started.address, folder)
    assert f"the Dask scheduler at {started.address} has no workers; start some with 'dask worker" in message


@SLOW
def test_a_worker_that_hangs(started, folder, monkeypatch):
    with cluster(started.address, [folder]) as executor:
        until(lambda: len(executor._client.nthreads()) == 2)
    monkeypatch.setattr(module, "_WORKER_SECONDS", 3.0)
    started.workers[0].send_signal(signal.SIGSTOP)
    try:
        message = refused(ConnectionError, started.address, folder)
    finally:
        started.workers[0].send_signal(signal.SIGCONT)
    assert f"workers of the Dask scheduler at {started.address} do not answer" in message


@SLOW
def test_a_scheduler_that_hangs(started, folder, monkeypatch):
    def stop():
        started.scheduler.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(module, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(module, "_WORKER_SECONDS", 4.0)
    try:
        message, seconds = interrupted(started, folder, stop)
    finally:
        started.scheduler.send_signal(signal.SIGCONT)
    assert seconds < 30
    assert f"The Dask scheduler at {started.address} has no workers any more" in message


class Scheduler(Executor):
    """A client whose scheduler takes tasks, and of which a test says which workers there are and what is done."""

    def __init__(self):
        self.workers, self.given = {"tcp://127.0.0.1:1": 1}, []

    def get_executor(self, *, pure):
        return self

    def nthreads(self):
        return self.workers

    def submit(self, function, /, *args, **kwargs):
        self.given.append(Future())
        return self.given[-1]


def test_tasks_wait_as_long_as_there_are_workers_and_fail_without(monkeypatch, caplog):
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.005)
    monkeypatch.setattr(module, "_WORKER_SECONDS", 0.2)
    scheduler = Scheduler()
    with module._ClusterExecutor(scheduler, "tcp://127.0.0.1:8786") as executor:
        one, two = (executor.submit(abs, -n) for n in (1, 2))
        time.sleep(0.3)
        assert not one.done()
        scheduler.given[0].set_result(1)
        assert one.result(1) == 1
        scheduler.workers = {}
        with pytest.raises(ConnectionError, match=r"tcp://127\.0\.0\.1:8786 has no workers any more \(it has none\)"):
            two.result(10)
        scheduler.given[1].set_result(2)  # too late
        assert isinstance(two.exception(), ConnectionError)
        assert [record.getMessage() for record in caplog.records if record.name == "concurrent.futures"] == []
        time.sleep(0.05)  # the watch goes on, with nothing to wait for


# -------------------------------------------------------------------------------------------------- other workers


@pytest.fixture
def changed(local_cluster, folder):
    """A function that changes the modules of the workers, for the time of a test."""
    from distributed import Client

    with Client(local_cluster, set_as_default=False) as client:
        yield client.run
        client.run(_restore)


def _restore():
    import importlib

    from bkgmatch import cluster as theirs

    importlib.reload(theirs)


def _other_version():
    from bkgmatch import cluster as theirs

    theirs.version = lambda name: "9.9"


def _blind():
    from bkgmatch import cluster as theirs

    version = theirs.version("bkgmatch")
    theirs._look = lambda paths: ([False] * len(paths), version)


def test_a_worker_with_another_version(local_cluster, folder, changed):
    changed(_other_version)
    message = refused(ValueError, local_cluster, folder)
    assert "has bkgmatch 9.9, this is" in message
    assert "worker tcp://127.0.0.1:" in message
    assert "install the same version" in message


def test_a_worker_that_does_not_see_the_folder(local_cluster, folder, changed):
    changed(_blind)
    message = refused(ValueError, local_cluster, folder)
    assert f"does not see {folder}; set temp_dir" in message
    assert "all workers share" in message
    assert "worker tcp://127.0.0.1:" in message


BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bkgmatch":
            raise ModuleNotFoundError("No module named 'bkgmatch'")

sys.meta_path.insert(0, Block())
"""


@SLOW
def test_a_worker_without_bkgmatch(tmp_path, folder):
    preload = tmp_path / "block.py"
    preload.write_text(BLOCK)
    with command_line_cluster(tmp_path / "dask", workers=1, words=["--preload", str(preload)]) as started:
        message = refused(ValueError, started.address, folder)
    assert "cannot import bkgmatch" in message
    assert "worker tcp://127.0.0.1:" in message
    assert "install it there" in message


# ----------------------------------------------------------------------------------------- killed in the middle


def read_by(trace):
    """Processes that have read exposures."""
    return [line.split()[1] for line in trace.read_text().splitlines()] if trace.exists() else []


def _ready():
    """Import on a worker what takes long."""
    from bkgmatch import levels, match

    return levels.__name__, match.__name__


MATCHES = {"sky": match_skies, "level": match_levels}


@SLOW
@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES)
def test_a_worker_is_killed_and_the_numbers_are_the_same(match, started, folder, tmp_path):
    trace = tmp_path / "trace"
    expected = match(exposures(partial(slow_pixels, trace=str(tmp_path / "other")), 8))
    with cluster(started.address, [folder]) as executor:
        until(lambda: len(executor._client.nthreads()) == 2)
        executor._client.run(_ready)
        victim = started.workers[0]
        killer = threading.Thread(target=lambda: until(lambda: f"{victim.pid}" in read_by(trace)) and victim.kill())
        killer.start()
        found = match(exposures(partial(slow_pixels, trace=str(trace)), 8), work=Work(executor, folder))
        killer.join()
    assert started.workers[0].wait(10) == -signal.SIGKILL
    assert {f"{worker.pid}" for worker in started.workers} <= set(read_by(trace)), "both were at work"
    np.testing.assert_array_equal(found.level, expected.level)
    np.testing.assert_array_equal(found.sigma, expected.sigma)
    np.testing.assert_array_equal(found.pairs.offset, expected.pairs.offset)


def interrupted(started, folder, kill):
    """Message of the error of a run in which something is killed after a second, and how long it took."""
    with pytest.raises(ConnectionError) as caught, cluster(started.address, [folder]) as executor:
        until(lambda: len(executor._client.nthreads()) == 2)
        threading.Timer(1.0, kill).start()
        begin = time.monotonic()
        Work(executor, folder).run(slow_pid, [0.2] * 200, what="Tasks")
    return str(caught.value), time.monotonic() - begin


@SLOW
def test_the_scheduler_is_killed(started, folder):
    message, seconds = interrupted(started, folder, started.scheduler.kill)
    assert seconds < 60
    assert f"The connection to the Dask scheduler at {started.address} is lost" in message
    assert "start the cluster and run again" in message


@SLOW
def test_all_workers_are_killed(started, folder):
    message, seconds = interrupted(started, folder, lambda: [worker.kill() for worker in started.workers])
    assert 25 < seconds < 60
    assert f"The Dask scheduler at {started.address} has no workers any more" in message


@SLOW
def test_another_worker_may_come_in_time(started, folder, tmp_path):
    def exchange():
        for worker in started.workers:
            worker.kill()
        time.sleep(2)
        started.start_worker()

    with cluster(started.address, [folder]) as executor:
        threading.Timer(1.0, exchange).start()
        assert len(Work(executor, folder).run(slow_pid, [0.1] * 50, what="Tasks")) == 50


@SLOW
@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES)
def test_an_exposure_that_kills_its_workers_is_named(match, tmp_path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", TESTS)
    with command_line_cluster(tmp_path / "dask", workers=5) as started, cluster(started.address, [folder]) as executor:
        until(lambda: len(executor._client.nthreads()) == 5)
        given = exposures(partial(pixels, die_on=2, trace=str(tmp_path / "trace")))
        if match is match_levels:
            monkeypatch.setattr("bkgmatch.levels.handy_factor", lambda some: 1.0)
        with pytest.raises(RuntimeError, match="exposure-2: the workers that tried it died") as caught:
            match(given, work=Work(executor, folder))
        assert "give them more, or fewer threads each" in str(caught.value)
        assert [worker.poll() for worker in started.workers].count(-signal.SIGKILL) >= 3
