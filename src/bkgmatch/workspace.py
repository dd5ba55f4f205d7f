"""Folders for temporary files that are removed at the end, however it comes."""

import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO
from uuid import uuid4

__all__ = ["WorkFolder", "ended_by_signals", "locked", "remove_folder"]

log = logging.getLogger("stpipe.bkgmatch.workspace")

_PREFIX = "bkgmatch-"
_LOCK = "in-use"


class WorkFolder:
    """
    A temporary folder. It is removed when it is closed, or nothing refers to it, or the interpreter ends.

    Folders that killed processes of this machine left in the same place are removed when one is made.

    Parameters
    ----------
    where : str or Path, optional
        Folder to make it in; by default the system's folder for temporary files.

    Raises
    ------
    FileNotFoundError
        If that folder does not exist.
    """

    def __init__(self, where: str | Path | None = None) -> None:
        place = Path(where or tempfile.gettempdir()).resolve()
        if not place.is_dir():
            raise FileNotFoundError(f"the folder temp_dir={where} does not exist; make it first")
        _remove_abandoned(place)
        lock = None
        while lock is None:
            self.path = place / f"{_PREFIX}{socket.gethostname()}-{uuid4().hex[:16]}"
            held: list[TextIO] = []
            self._finalizer = weakref.finalize(self, _remove, self.path, held, os.getpid())
            self.path.mkdir(mode=0o700)  # not before: a signal may come at any time
            try:
                lock = locked(self.path / _LOCK)
            except FileNotFoundError:  # another run has taken the empty folder for an abandoned one
                continue
        held.append(lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        self._finalizer()


def locked(path: Path) -> TextIO | None:
    """Open file that holds a lock; None if another run holds it, or has just removed the file."""
    lock = open(path, "w")  # noqa: SIM115 - held as long as the folder is in use
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


def _remove(path: Path, held: list[TextIO], owner: int) -> None:
    if os.getpid() != owner:  # a forked child ends
        return
    remove_folder(path)
    for lock in held:
        lock.close()


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it; say so if that cannot be done."""
    for _ in range(3):  # a task that still runs may write into it
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.warning("%s cannot be removed (%s); remove it", path, error)


def _remove_abandoned(place: Path) -> None:
    """Remove folders whose process is dead; of other machines this cannot be known, and they are named."""
    for folder in sorted(place.glob(f"{_PREFIX}*-*")):
        host = folder.name.removeprefix(_PREFIX).rpartition("-")[0]
        if folder.is_symlink() or not folder.is_dir():
            continue
        if host != socket.gethostname():
            log.info("%s belongs to a run on another machine; remove it if that has ended", folder)
        elif _is_removed(folder):
            log.warning("Removed %s, which a run that was killed had left", folder)


def _is_removed(folder: Path) -> bool:
    """Remove a folder, unless a process holds its lock; return whether it is gone."""
    try:
        folder.rmdir()
    except OSError:  # it is not empty
        return _is_unlocked_and_removed(folder)
    return True


def _is_unlocked_and_removed(folder: Path) -> bool:
    try:
        with open(folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)  # while the lock is held: its owner may be about to take it
    except OSError:  # the lock is held, or the folder is just being made, or is another user's
        return False
    return not folder.exists()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the process as an exception does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
