"""Dask schedulers and workers on loopback, outside of the process of the tests."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle

DASK = str(Path(sys.executable).with_name("dask"))
QUIET = {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "warning"}


class Carrier(Executor):
    """Runs what it is given at once, pickled as for a cluster, and notes the sizes."""

    def __init__(self):
        self.sent, self.returned = {}, {}

    def submit(self, function, /, *args, **kwargs):
        task = cloudpickle.dumps((function, args, kwargs))
        name = getattr(function.func, "func", function.func).__qualname__
        function, args, kwargs = cloudpickle.loads(task)
        result = cloudpickle.dumps(function(*args, **kwargs))
        self.sent[name] = max(self.sent.get(name, 0), len(task))
        self.returned[name] = max(self.returned.get(name, 0), len(result))
        future = Future()
        future.set_result(cloudpickle.loads(result))
        return future


@dataclass
class CommandLineCluster:
    """A scheduler and its workers."""

    folder: Path
    address: str = ""
    scheduler: subprocess.Popen | None = None
    workers: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *words, stays_in=None):
        with open(self.folder / "dask.log", "a") as log:
            return subprocess.Popen(
                [DASK, *words], stdout=log, stderr=log, cwd=stays_in or self.folder, env=os.environ | QUIET
            )

    def start_scheduler(self):
        file = self.folder / "scheduler.json"
        words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        self.scheduler = self.start("scheduler", *words)
        self.address = until(lambda: file.exists() and json.loads(file.read_text() or "{}").get("address"))

    def start_worker(self, *words):
        """Start a worker without a nanny, so that nothing starts it again when it is killed."""
        given = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(self.folder)]
        self.workers.append(self.start("worker", self.address, *given, *words))

    def end(self):
        for process in [*self.workers, self.scheduler]:
            process.send_signal(signal.SIGTERM)
        for process in [*self.workers, self.scheduler]:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def command_line_cluster(folder, workers=2, words=()):
    """Run ``dask scheduler`` and ``dask worker`` in a folder where no inputs are."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = CommandLineCluster(folder)
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.start_worker(*words)
        yield cluster
    finally:
        cluster.end()


@contextmanager
def local_cluster_of_its_own(folder):
    """Run a LocalCluster in another process, so that tests neither disturb it nor hang with it."""
    words = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | QUIET) as process:
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()
            process.wait(60)


def _serve(folder):
    """Run a LocalCluster until the standard input ends."""
    from distributed import LocalCluster

    settings = {"dashboard_address": "127.0.0.1:0", "silence_logs": "ERROR", "local_directory": folder}
    with LocalCluster(n_workers=2, threads_per_worker=1, **settings) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


def until(is_so, seconds=60.0):
    """Wait until something is so; return what it is then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := is_so():
                return found
        except ValueError:
            pass
        time.sleep(0.05)
    raise TimeoutError


if __name__ == "__main__":
    _serve(sys.argv[1])
