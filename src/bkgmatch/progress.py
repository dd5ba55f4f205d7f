"""How far work is, for those who wait: bars where somebody watches, lines in log files, and the time of each stage."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from tqdm import tqdm

__all__ = ["Progress", "Times", "stage"]

log = logging.getLogger("stpipe.bkgmatch.execution")

_BAR_SECONDS = 2.0
_REPORT_SECONDS = 15.0
_TOLD_SECONDS = 3.0  # stages that take less are not worth a line


class Times:
    """
    Time of each stage of a run.

    Parameters
    ----------
    first : str
        Stage of all that is in no other.

    Examples
    --------
    >>> from bkgmatch.progress import Times, stage
    >>> with Times("checks").running() as times:
    ...     with stage("solution"):
    ...         pass
    >>> print(times)
    checks 0.0 s, solution 0.0 s
    """

    def __init__(self, first: str) -> None:
        self._first = self._stage = first
        self._seconds = {first: 0.0}
        self._since = time.monotonic()

    @contextmanager
    def running(self) -> Iterator["Times"]:
        """Take the time of what `stage` names, in this thread."""
        token = _RUNNING.set(self)
        try:
            yield self
        finally:
            self.enter(self._stage)
            _RUNNING.reset(token)

    def enter(self, name: str) -> str:
        """Begin or go on with a stage; return the one that ends."""
        now, ended = time.monotonic(), self._stage
        self._seconds[ended] = self._seconds.pop(ended, 0.0) + now - self._since  # the last to end is the last
        self._stage, self._since = name, now
        return ended

    def __str__(self) -> str:
        names = sorted(self._seconds, key=lambda name: name != self._first)
        return ", ".join(f"{name} {self._seconds[name]:.1f} s" for name in names)


_RUNNING: ContextVar[Times | None] = ContextVar("_RUNNING", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """
    Count the time of a block as that of a stage, and of no stage around it.

    Parameters
    ----------
    name : str
        What is done. Without a `Times` that is running it is without effect.
    """
    times = _RUNNING.get()
    if times is None:
        yield
        return
    outer = times.enter(name)
    try:
        yield
    finally:
        times.enter(outer)


class Progress:
    """
    Tell how far a stage is: by a bar in a terminal or notebook, from two seconds on; in log files every 15 seconds.

    Parameters
    ----------
    what : str
        What is done; nothing is told if it is empty.
    n : int
        Number of items.
    """

    def __init__(self, what: str, n: int) -> None:
        self._what, self._n = what, n
        self._done = self._taken = 0
        self._started = self._reported = time.monotonic()
        self._bar = _bar(what, n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._started
        if self._what and seconds > _TOLD_SECONDS:
            log.info("%s: %d of %d in %.0f s", self._what, self._done, self._n, seconds)

    def take(self) -> None:
        """Count an item that an earlier run has done."""
        self._taken += 1
        self._done += 1
        if self._bar is not None:
            self._bar.take()

    def advance(self) -> None:
        """Count an item that is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        now = time.monotonic()
        if self._what and now - self._reported > _REPORT_SECONDS:
            self._reported = now
            left = (now - self._started) * (self._n - self._done) / (self._done - self._taken)
            told = {"is_progress": True}
            log.info("%s: %d of %d, about %.0f s left", self._what, self._done, self._n, left, extra=told)


class _Bar(tqdm):
    """A bar that makes way for lines of the log, and takes the place of those that tell how far the stage is."""

    monitor_interval = 0  # no thread of its own
    _lock = threading.RLock()

    def __init__(self, what: str, n: int) -> None:
        self._handlers: list[logging.Handler] = []
        super().__init__(
            total=n, desc=what, file=sys.stderr, leave=False, delay=_BAR_SECONDS, miniters=1, dynamic_ncols=True
        )
        if not self.disable:
            self._handlers = _watched_handlers()
        for handler in self._handlers:
            handler.addFilter(self.make_way)

    def take(self) -> None:
        """Count an item without effect on the rate."""
        self.initial += 1
        self.n += 1

    def make_way(self, record: logging.LogRecord) -> bool:
        """Clear the line of the terminal for a record, if it is to be shown beside a bar."""
        if getattr(record, "is_progress", False):
            return False
        if self.last_print_n:
            self.clear()
            self.last_print_t = time.time()  # a moment for the line, before the bar is drawn below it
        return True

    def close(self) -> None:
        """Remove the bar."""
        for handler in self._handlers:
            handler.removeFilter(self.make_way)
        super().close()


def _bar(what: str, n: int) -> _Bar | None:
    """Make a bar, if somebody watches and wants it: the environment may have TQDM_DISABLE."""
    if not (what and _is_watched(sys.stderr) and log.isEnabledFor(logging.INFO)):
        return None
    bar = _Bar(what, n)
    return None if bar.disable else bar


def _is_watched(stream: Any) -> bool:
    """Whether a stream is a terminal, or the output of a notebook."""
    if getattr(stream, "closed", False):
        return False
    return type(stream).__module__.startswith("ipykernel") or (hasattr(stream, "isatty") and stream.isatty())


def _watched_handlers() -> list[logging.Handler]:
    """Handlers that write where a bar would be."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = (handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers)
    return [handler for handler in dict.fromkeys(handlers) if _is_watched(getattr(handler, "stream", None))]
