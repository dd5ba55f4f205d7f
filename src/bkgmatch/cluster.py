"""A running Dask cluster as an executor that reports what it lost."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from bkgmatch.reasons import reason

__all__ = ["cluster"]

log = logging.getLogger("stpipe.bkgmatch.cluster")

T = TypeVar("T")

_CONNECT_SECONDS = 10.0
_WORKER_SECONDS = 30.0  # for the first worker to come, and for another when all are gone
_WATCH_SECONDS = 2.0


@contextmanager
def cluster(address: str, folders: Sequence[Path]) -> Iterator[Executor]:
    """
    Connect to a Dask cluster.

    Parameters
    ----------
    address : str
        Address of its scheduler, such as ``tcp://127.0.0.1:8786``.
    folders : sequence of Path
        Folders that this process and all workers must see.

    Yields
    ------
    Executor
        Tasks are sent again if their worker dies. A task whose workers die each time fails with BrokenExecutor; all
        fail with ConnectionError if the cluster is lost.

    Raises
    ------
    ImportError
        If ``dask.distributed`` is not installed.
    ConnectionError
        If the scheduler does not answer, or has no workers.
    ValueError
        If a worker does not see a folder, or has another version of bkgmatch.
    """
    with _connected(address) as client:
        _check_workers(client, address, folders)
        with _ClusterExecutor(client, address) as executor:
            yield executor


def _connected(address: str) -> Any:
    """Client of a scheduler."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"dask_scheduler needs dask.distributed: pip install 'bkgmatch[dask]' ({error})") from error

    class TidyClient(Client):
        """Client that closes itself when it cannot start, as the garbage collector may do it when it deadlocks."""

        def start(self, **kwargs: Any) -> None:
            try:
                super().start(**kwargs)
            except Exception:
                self.close()
                self._loop_runner.stop()
                raise

    log.info("Connecting to the Dask scheduler at %s", address)
    try:
        return _within(
            1.5 * _CONNECT_SECONDS,
            lambda: TidyClient(address, timeout=_CONNECT_SECONDS, set_as_default=False),
            discard=lambda client: client.close(timeout=0),
        )
    except Exception as error:  # of many kinds
        raise ConnectionError(
            f"the Dask scheduler at {address} does not answer ({reason(error)}); start it with 'dask scheduler', or "
            "correct dask_scheduler"
        ) from error


def _within(seconds: float, call: Callable[[], T], discard: Callable[[T], object] = lambda result: None) -> T:
    """Call what may never return; raise TimeoutError if it takes longer, and discard what comes later."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except Exception as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)
            else:
                discard(result)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.cancel():
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        return future.result()


def _check_workers(client: Any, address: str, folders: Sequence[Path]) -> None:
    try:
        if not _within(_CONNECT_SECONDS, client.nthreads):
            log.info("The Dask scheduler has no workers: waiting %.0f s for one", _WORKER_SECONDS)
        client.wait_for_workers(1, timeout=_WORKER_SECONDS)
    except TimeoutError as error:
        raise ConnectionError(
            f"the Dask scheduler at {address} has no workers; start some with 'dask worker {address}' ({reason(error)})"
        ) from error
    tokens = [folder / f".{uuid4().hex}" for folder in folders]
    try:
        for token in tokens:
            token.touch()
        found = _within(_WORKER_SECONDS, lambda: client.run(_look, tokens, on_error="return"))
    except TimeoutError as error:
        raise ConnectionError(
            f"workers of the Dask scheduler at {address} do not answer ({reason(error)}); start them again"
        ) from error
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)
    threads = sum(client.nthreads().values())
    log.info("The work is done by the Dask cluster at %s: %d workers, %d threads", address, len(found), threads)
    for worker, seen in found.items():
        if isinstance(seen, Exception):
            raise ValueError(f"worker {worker} cannot import bkgmatch ({reason(seen)}); install it there") from seen
        sees, its_version = seen
        if its_version != version("bkgmatch"):
            raise ValueError(
                f"worker {worker} has bkgmatch {its_version}, this is {version('bkgmatch')}; install the same version"
            )
        for folder, is_seen in zip(folders, sees, strict=True):
            if not is_seen:
                raise ValueError(
                    f"worker {worker} does not see {folder}; set temp_dir, and save_table, to folders that all workers "
                    "share"
                )


def _look(paths: Sequence[Path]) -> tuple[list[bool], str]:
    """Which files are seen here, and which version of bkgmatch is installed."""
    return [path.exists() for path in paths], version("bkgmatch")


class _ClusterExecutor(Executor):
    """Executor of a Dask client whose futures fail when the cluster is gone, instead of waiting for it."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._inner = client.get_executor(pure=False)
        self._pending: set[Future] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        ours: Future = Future()
        with self._lock:
            self._pending.add(ours)
        try:
            theirs = self._inner.submit(function, *args, **kwargs)
        except Exception as error:  # the client is closed: many kinds
            raise ConnectionError(f"The Dask cluster at {self._address} takes no tasks ({reason(error)})") from error

        def finish(done: Future) -> None:
            if done.cancelled():
                self._fail(ours, f"The connection to the Dask scheduler at {self._address} is lost")
            elif (error := done.exception()) is not None:
                self._set(ours, error=self._explained(error))
            else:
                self._set(ours, result=done.result())

        theirs.add_done_callback(finish)
        ours.add_done_callback(lambda future: theirs.cancel() if future.cancelled() else None)
        return ours

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed.set()
        self._inner.shutdown(wait=False)

    def _explained(self, error: BaseException) -> BaseException:
        if type(error).__name__ == "KilledWorker":
            lost = BrokenExecutor(
                "the workers that tried it died, perhaps for want of memory: give them more, or fewer threads each "
                f"({reason(error)})"
            )
            lost.__cause__ = error
            return lost
        return error

    def _fail(self, future: Future, why: str) -> None:
        self._set(future, error=ConnectionError(f"{why}; start the cluster and run again"))

    def _set(self, future: Future, *, result: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            if future not in self._pending:
                return
            self._pending.discard(future)
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _watch(self) -> None:
        """Fail all that is pending if there has been no worker for long."""
        seen = time.monotonic()
        while not self._closed.wait(_WATCH_SECONDS):
            missing = self._missing()
            if not missing:
                seen = time.monotonic()
            if time.monotonic() - seen > _WORKER_SECONDS:
                for future in list(self._pending):
                    self._fail(future, f"The Dask scheduler at {self._address} has no workers any more{missing}")

    def _missing(self) -> str:
        """Return in brackets what the scheduler answers when it has no workers; nothing if it has some."""
        try:
            return "" if _within(_CONNECT_SECONDS, self._client.nthreads) else " (it has none)"
        except Exception as error:  # the scheduler is gone: many kinds
            return f" ({reason(error)})"
