"""Folders for temporary files: made where they are to be, and removed however a run ends."""

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from bkgmatch import workspace
from bkgmatch.workspace import WorkFolder, ended_by_signals, locked

HOLD = """
import sys, time
from bkgmatch.workspace import WorkFolder, ended_by_signals
with ended_by_signals(), WorkFolder(sys.argv[1]) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(where):
    """A process that has a folder; and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(where)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return process, Path(process.stdout.readline().strip())


def ended(process, number):
    process.send_signal(number)
    process.stdout.close()
    return process.wait(20)


def test_a_folder_is_where_it_is_to_be_and_goes(tmp_path):
    with WorkFolder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0, "others cannot read it"
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_system_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with WorkFolder() as folder:
        assert folder.parent == tmp_path


def test_a_folder_goes_after_an_error(tmp_path):
    with pytest.raises(KeyError), WorkFolder(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_with_what_refers_to_it(tmp_path):
    folder = WorkFolder(str(tmp_path))
    assert folder.path.exists()
    folder.close()
    folder.close()
    folder = WorkFolder(str(tmp_path))
    del folder
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["missing", "a file"])
def test_a_missing_folder_is_named(how, tmp_path):
    where = tmp_path / "here"
    if how == "a file":
        where.write_text("x")
    with pytest.raises(FileNotFoundError, match=f"temp_dir={where} does not exist; make it first"):
        WorkFolder(where)


def test_two_runs_do_not_disturb_each_other(tmp_path):
    with WorkFolder(tmp_path) as one:
        with WorkFolder(tmp_path) as two:
            assert one != two
        assert list(tmp_path.iterdir()) == [one]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process_and_leave_nothing(number, tmp_path):
    process, folder = holder(tmp_path)
    assert folder.exists()
    assert ended(process, number) != 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next_and_living_ones_stay(tmp_path, caplog):
    (killed, left), (living, kept) = holder(tmp_path), holder(tmp_path)
    ended(killed, signal.SIGKILL)
    other = tmp_path / "bkgmatch-elsewhere.example.org-12345678"
    near = tmp_path / f"bkgmatch-{socket.gethostname()}-gpu-12345678"
    theirs = [other, near, tmp_path / "tmp12345678", tmp_path / "bkgmatch.txt"]
    for folder in theirs:
        folder.mkdir()
        (folder / "in-use").touch()
    caplog.set_level("INFO")
    with WorkFolder(tmp_path) as own:
        assert not left.exists()
        assert f"Removed {left}, which a run that was killed had left" in caplog.text
        assert sorted(tmp_path.iterdir()) == sorted([kept, own, *theirs])
        assert f"{other} belongs to a run on another machine; remove it if that has ended" in caplog.text
        assert str(kept) not in caplog.text
        assert str(near) in caplog.text
    ended(living, signal.SIGTERM)
    assert sorted(tmp_path.iterdir()) == sorted(theirs)


def test_a_folder_that_was_never_locked_goes_if_it_is_empty(tmp_path):
    empty, full = (tmp_path / f"bkgmatch-{socket.gethostname()}-{k}2345678" for k in (1, 2))
    for folder in (empty, full):
        folder.mkdir()
    (full / "theirs").touch()
    WorkFolder(tmp_path).close()
    assert list(tmp_path.iterdir()) == [full]


def test_a_folder_that_another_run_takes_for_abandoned_before_it_is_locked_is_replaced(tmp_path, monkeypatch):
    paths = []

    def late(path):
        paths.append(path)
        if len(paths) == 1:
            WorkFolder(tmp_path).close()
        return locked(path)

    monkeypatch.setattr(workspace, "locked", late)
    with WorkFolder(tmp_path) as folder:
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path, caplog):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "in-use").touch()
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp" / f"bkgmatch-{socket.gethostname()}-12345678").symlink_to(tmp_path / "theirs")
    WorkFolder(tmp_path / "temp").close()
    assert (tmp_path / "theirs" / "in-use").exists()
    assert "Removed" not in caplog.text


def test_a_folder_that_is_taken_for_abandoned_while_it_is_made_is_replaced(tmp_path, monkeypatch):
    """Another run looks between the making of the folder and that of its lock."""
    flock, calls = fcntl.flock, []

    def busy(file, how):
        calls.append(file)
        if len(calls) == 1:
            raise BlockingIOError
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", busy)
    with WorkFolder(tmp_path) as folder:
        assert folder.exists()
        assert len(calls) == 2


def test_many_at_once(tmp_path):
    """None takes the folder of another."""
    trouble = []

    def use():
        for _ in range(20):
            with WorkFolder(tmp_path) as folder:
                (folder / "file").write_text("x")
                time.sleep(0.001)
                if not (folder / "file").exists():
                    trouble.append(folder)

    users = [threading.Thread(target=use) for _ in range(6)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert trouble == []


def test_the_handler_of_others_stays():
    def theirs(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handler_is_ours_only_for_the_time():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(SystemExit) as caught, ended_by_signals(), ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_thread_has_no_handlers():
    found = []

    def use():
        with ended_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
