"""Commands in children of this process, which start in no time, and may be ended, or starved of disk or memory."""

import errno
import gc
import logging
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from bkgmatch import workspace
from bkgmatch.cli import main as bkgmatch


class Child:
    """
    A function that runs in a child.

    Parameters
    ----------
    function : callable
        What to run; it returns an exit code, or raises.
    before : sequence of callables
        What is done before, in the child.
    """

    def __init__(self, function, *before):
        ours, theirs = os.pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(function, before, theirs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: the child uses none of them
            self._process.start()
        os.close(theirs)
        self._said = []
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours):
        with open(ours, errors="replace") as lines:
            self._said.extend(lines)

    def end(self, number):
        """Send a signal, unless it has ended."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self, seconds=240):
        """Exit code (of a signal, negative), and all that it said. One that hangs is killed, and the test fails."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"it hangs: {''.join(self._said)}")
        self._reader.join(20)
        return self._process.exitcode, "".join(self._said)


def _run(function, before, out):
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().handlers.clear()  # those of pytest
    code = 1
    try:
        for prepare in before:
            prepare()
        code = function()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(bool(left.code))
    except BaseException:
        traceback.print_exc()
    gc.collect()
    _remove_folders()
    sys.stdout.flush()
    os._exit(code or 0)


def _remove_folders():
    """Remove temporary folders as the interpreter would at its end, but none of the parent's finalizers."""
    for finalizer in list(weakref.finalize._registry):
        _, function, *_ = finalizer.peek() or (None, None)
        if function is workspace._remove:
            finalizer()


def strun(*words):
    """Run ``strun``; the exit code."""
    sys.argv = ["strun", *map(str, words)]
    (script,) = entry_points(group="console_scripts", name="strun")
    return script.load()()


def quick_strun(*words, env=None):
    """Run ``strun`` in a child with a clean environment, or with this one; what it says."""
    env = without_crds() if env is None else env
    code, said = Child(partial(strun, *words), partial(_only, env)).wait()
    assert code == 0, said
    return said


def slow_strun(*words, env=None):
    """Run ``strun`` as users do; what it says."""
    script = Path(sys.executable).with_name("strun")
    env = without_crds() if env is None else env
    ran = subprocess.run([script, *map(str, words)], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def without_crds():
    """The environment without what it says of CRDS and stpipe."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CRDS", "STPIPE"))}


def _only(env):
    os.environ.clear()
    os.environ.update(env)


def command(*words):
    """Run ``bkgmatch``; the exit code."""
    return bkgmatch([str(word) for word in words])


# ----------------------------------------------------------------------------------------------- what befalls a child


def small_files(size):
    """No file can be larger: writing fails as on a full disk, with another number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def little_memory(more):
    """No more memory than there is, but so many bytes."""
    with open("/proc/self/statm") as sizes:
        used = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def events(*kinds, folder):
    """Have a function called with the path of each thing of some kinds that happens below a folder."""
    inside = str(folder)

    def watch(then):
        def hook(event, given):
            if event not in kinds or not isinstance(given[0], str | bytes | os.PathLike):
                return
            is_written = event != "open" or (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = os.path.abspath(os.fsdecode(given[0]))
            if is_written and path.startswith(inside):
                then(path)

        sys.addaudithook(hook)

    return watch


def no_room(folder, number):
    """From a file or folder on that is made below a folder, counted from 1, its disk is full."""
    count = [0]

    def full(path):
        count[0] += 1
        if count[0] >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return partial(events("open", "os.mkdir", folder=folder), full)


def ended(folder, number, delay, kind):
    """Some time after something happens below a folder for the so-manieth time, a signal comes."""
    count = [0]

    def soon(path):
        count[0] += 1
        if count[0] == number:
            threading.Timer(delay, os.kill, (os.getpid(), kind)).start()

    return partial(events("open", "os.mkdir", "os.rename", "os.rmdir", folder=folder), soon)


def nobody_can_read(file):
    """Whether a user without rights can read what lies beside a file."""
    return os.geteuid() != 0 or all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(file).resolve().parents)


def as_nobody():
    """Root may write anywhere; nobody may not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
