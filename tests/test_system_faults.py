"""Full disks, forbidden folders, signals, little memory: no file is half-written, and the next run goes on."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import digest
from clusters import until
from forks import Child, as_nobody, command, ended, little_memory, no_room, nobody_can_read, small_files, strun
from ledger import note
from stdatamodels.jwst import datamodels

import bkgmatch

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

SLOW = pytest.mark.slow
MB = 2**20
CLEAR, RIGHT, STOPPED = "clear error", "right answer", "stopped, nothing half-written"
HIDDEN = ".bkgmatch-"
RESUME = "t.ecsv.resume"
STEPS = {"sky": "bkg_skymatch", "level": "level_match", "cals": "image_for_image", "spectra": "bkg_mrs_imatch"}
MORE = {"cals": ["--save_mask=true"], "spectra": ["--channel=1", "--skip=false"], "sky": ["--subtract=true"]}
CHANGES = {"DATE", "DATE-HDU", "CHECKSUM", "DATASUM"}  # cards of the time of writing
SAYS = re.compile(r"cannot be written|No space left|File too large|is none; choose|may not be written to|not empty")
OF_MEMORY = re.compile(r"[Mm]emory|[Uu]nable to allocate|can't start new thread|failed to map|mmap")


@dataclass(frozen=True)
class Task:
    """A command; it writes into the folder ``out`` of the current folder."""

    run: object
    words: tuple
    inputs: tuple
    replaces: bool = True  # what is there already

    def child(self, here, *before):
        """Run it in a folder."""
        (here / "temporary").mkdir(parents=True, exist_ok=True)
        if self.run is strun:
            (here / "out").mkdir(exist_ok=True)  # of the table
        return Child(partial(self.run, *self.words), partial(os.chdir, here), *before)

    def report(self):
        return Task(self.run, (*self.words, "--report=true"), self.inputs)


class Tasks:
    """All commands on small exposures, and what they write when nothing disturbs them."""

    def __init__(self, data, folder):
        self._data, self._folder, self._made, self._done = data, folder, {}, {}

    def __getitem__(self, name):
        if name not in self._made:
            self._made[name] = self._step(name) if name in STEPS else getattr(self, f"_{name}")()
        return self._made[name]

    def undisturbed(self, name, report=False):
        """Folder of what a command writes."""
        if (name, report) not in self._done:
            task, here = self[name], self._folder / f"{name}{report}"
            code, said = (task.report() if report else task).child(here).wait()
            assert code == 0, said
            assert list((here / "temporary").iterdir()) == []
            self._done[name, report] = here / "out"
        return self._done[name, report]

    def _step(self, name):
        case = self._data.case(name)
        folder = self._folder / f"{name}_inputs"
        folder.mkdir()
        given = case.given("association", folder)
        words = (STEPS[name], given, "--output_dir=out", "--save_results=true", "--save_table=out/t.ecsv")
        return Task(strun, (*words, "--temp_dir=temporary", *MORE.get(name, ())), (*case.files, Path(given)))

    def _results(self, of, pattern):
        return sorted(self.undisturbed(of).glob(pattern))

    def _match(self):
        files = self._data.mosaic()
        return Task(command, ("level", *files, "--out", "out", "--save_table", "t.ecsv"), tuple(files))

    def _plots(self):
        files = self._data.mosaic()[:2]
        return Task(
            command, ("level", *files, "--out", "out", "--save_plots", "out/plots"), tuple(files), replaces=False
        )

    def _apply(self):
        files, table = self._data.mosaic(), self.undisturbed("level") / "t.ecsv"
        return Task(command, ("apply", table, *files, "--out", "out"), (*files, table))

    def _undo(self):
        files = self._results("level", "*.fits")
        return Task(command, ("undo", *files, "--out", "out"), tuple(files))

    def _page(self):
        files, table = self._data.mosaic(), self.undisturbed("level") / "t.ecsv"
        return Task(partial(_in_out, "report"), (table, *files, "--out", "out/page.html"), (*files, table))

    def _asn(self):
        files = self._data.mosaic()
        words = (*files, "--product", "mosaic", "--out", "out/asn.json")
        return Task(partial(_in_out, "asn"), words, tuple(files), replaces=False)

    def _pars(self):
        words = ("nircam_nebulosity", "--out", "out/pars.asdf")
        return Task(partial(_in_out, "pars"), words, (), replaces=False)

    def _skylist(self):
        table = self.undisturbed("sky") / "t.ecsv"
        return Task(partial(_in_out, "skylist"), (table, "--out", "out/sky.txt"), (table,))


def _in_out(name, *words):
    """Run a command that makes no folder."""
    Path("out").mkdir(exist_ok=True)
    return command(name, *words)


@pytest.fixture(scope="module")
def tasks(scale_data, tmp_path_factory):
    return Tasks(scale_data, tmp_path_factory.mktemp("tasks"))


COMMANDS = ("match", "plots", "apply", "undo", "page", "asn", "pars", "skylist")
EVERY = (*STEPS, *COMMANDS)


# --------------------------------------------------------------------------------------------- what a run has written


def shown(out):
    """Names of files that are not hidden, with their folders; but for what a run keeps for the next."""
    files = (path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file())
    return [path for path in files if not any(part.startswith(".") or part == RESUME for part in path.parts)]


def hidden(folder):
    return sorted(path.name for path in folder.rglob(f"{HIDDEN}*"))


def check_whole(out, expected):
    """Every file is the one that an undisturbed run has written."""
    for name in shown(out):
        assert (expected / name).is_file(), f"{name} is not among the files of an undisturbed run"
        COMPARE.get(name.suffix, same_bytes)(out / name, expected / name)


def same_bytes(one, two):
    assert one.read_bytes() == two.read_bytes(), one


def same_page(one, two):
    pages = [path.read_text(encoding="utf-8") for path in (one, two)]
    assert all(page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n") for page in pages)
    words = [re.findall(r"<h2.*?</h2>|<td.*?</td>", page) for page in pages]
    assert words[0] == words[1]
    assert pages[0].count("data:image/png") == pages[1].count("data:image/png")


def same_association(one, two):
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert [member["exptype"] for member in first["products"][0]["members"]] == [
        member["exptype"] for member in second["products"][0]["members"]
    ]
    same_names = [Path(m["expname"]).name for m in first["products"][0]["members"]]
    assert same_names == [Path(m["expname"]).name for m in second["products"][0]["members"]]


def same_fits(one, two):
    with fits.open(one) as first, fits.open(two) as second:
        assert [hdu.name for hdu in first] == [hdu.name for hdu in second], one
        for a, b in zip(first, second, strict=True):
            if a.name != "ASDF":
                cards = [{k: v for k, v in hdu.header.items() if k not in CHANGES} for hdu in (a, b)]
                assert cards[0] == cards[1], one
                np.testing.assert_array_equal(a.data, b.data, err_msg=str(one))
        is_model = "ASDF" in first
    if is_model:
        with datamodels.open(one) as first, datamodels.open(two) as second:
            assert first.meta.filename == one.name
            assert (first.meta.wcs is None) == (second.meta.wcs is None)


COMPARE = {".fits": same_fits, ".html": same_page, ".json": same_association}


@dataclass
class Trial:
    """A command that is run in a folder, and disturbed."""

    task: Task
    here: Path
    expected: Path
    before: list

    @classmethod
    def of(cls, task, here, expected, *, is_over_results=False):
        if is_over_results and task.replaces:
            shutil.copytree(expected, here / "out", ignore=shutil.ignore_patterns(RESUME))
        return cls(task, here, expected, digest(task.inputs))

    def check(self, code, said, *, may_leave=False):
        """Nothing is half-written, no input is changed, no temporary file is left."""
        out = self.here / "out"
        check_whole(out, self.expected)
        assert digest(self.task.inputs) == self.before
        if not may_leave:
            assert hidden(self.here) == [], said
            assert list((self.here / "temporary").iterdir()) == [], said
        if code == 0:
            missing = set(shown(self.expected)) - set(shown(out))
            assert {name.suffix for name in missing} <= ({".html"} if "could not be written" in said else set()), said

    def check_again(self):
        """The same command again comes to the end, with the answers of an undisturbed run."""
        if not self.task.replaces:
            shutil.rmtree(self.here / "out", ignore_errors=True)
        code, said = self.task.child(self.here).wait()
        assert code == 0, said
        assert shown(self.here / "out") == shown(self.expected)
        check_whole(self.here / "out", self.expected)
        assert list((self.here / "temporary").iterdir()) == []
        assert not (self.here / "out" / RESUME).exists()


def trial(tasks, name, here, *, seed=0):
    """A trial of a command: every second one writes over results, every second step works in files, some report."""
    report = name in STEPS and seed % 3 == 2
    task, expected = tasks[name], tasks.undisturbed(name, report)
    task = task.report() if report else task
    if name in STEPS and seed % 2:
        task = Task(task.run, (*task.words, "--in_memory=false"), task.inputs)
    here.mkdir(parents=True)
    return Trial.of(task, here, expected, is_over_results=seed % 2 == 1)


def check_full(one, code, said, kind):
    """What a full disk leads to."""
    one.check(code, said)
    if code:
        assert SAYS.search(said.rstrip().splitlines()[-1]), said
        assert re.search("out|temporary", said.rstrip().splitlines()[-1]), said
    note("faults", kind, CLEAR if code else RIGHT)


def slowly(names, fast):
    return [name if name in fast else pytest.param(name, marks=SLOW) for name in names]


# ------------------------------------------------------------------------------------------------------ full disks


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=SLOW) for k in range(1, 6))])
@pytest.mark.parametrize("name", slowly(EVERY, ("level", "skylist")))
def test_where_no_further_file_has_room_the_error_says_so(name, seed, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run", seed=seed)
    number = random.Random(f"{name} {seed}").randrange(1, 24 if name in STEPS else 8)
    code, said = one.task.child(one.here, no_room(one.here / "out", number)).wait()
    check_full(one, code, said, "disk full: no room for a file")
    if seed % 3 == 0:
        one.check_again()


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=SLOW) for k in range(1, 6))])
@pytest.mark.parametrize("name", slowly(EVERY, ("sky", "asn")))
def test_where_a_file_finds_room_only_for_a_part_nothing_is_left_of_it(name, seed, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run", seed=seed)
    sizes = [(one.expected / path).stat().st_size for path in shown(one.expected)]
    size = int(random.Random(f"{name} {seed}").uniform(0.02, 1) * max(sizes)) if seed else max(sizes) - 1
    code, said = one.task.child(one.here, partial(small_files, size)).wait()
    check_full(one, code, said, "disk full: room for a part of a file")
    if seed % 3 == 0:
        one.check_again()


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many bytes."""
    mounted = []

    def mount(size, where):
        where.mkdir(parents=True, exist_ok=True)
        options = ["-o", f"size={size // 1024 + 4}k"]
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", where], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(where)
        return where

    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root mounts disks")
    yield mount
    for where in mounted:
        subprocess.run(["umount", where], check=True)


@SLOW
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", STEPS)
def test_a_disk_for_results_that_becomes_full(name, part, tasks, small_disk, tmp_path):
    one = trial(tasks, name, tmp_path / "run")
    total = sum((one.expected / path).stat().st_size for path in shown(one.expected))
    small_disk(int(part * total), one.here / "out")
    code, said = one.task.child(one.here).wait()
    assert code == 1
    check_full(one, code, said, "disk full: a small disk for results")


@SLOW
@pytest.mark.parametrize("size", [8, 64, 256])
@pytest.mark.parametrize("name", STEPS)
def test_a_disk_for_temporary_files_that_becomes_full(name, size, tasks, small_disk, tmp_path):
    one = trial(tasks, name, tmp_path / "run")
    small_disk(size * 1024, one.here / "temporary")
    task = Task(one.task.run, (*one.task.words, "--in_memory=false"), one.task.inputs)
    code, said = task.child(one.here).wait()
    one.check(code, said)
    if code:
        assert "a temporary file cannot be written in" in said, said
        assert f"{one.here}/temporary" in said
    note("faults", "disk full: temporary files", CLEAR if code else RIGHT)


# ---------------------------------------------------------------------------------- folders that cannot be written to


@pytest.fixture
def open_folder():
    """A folder that everybody can look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["the folder", "the folder above", "a file", "below a file"])
@pytest.mark.parametrize(
    "name", slowly(("sky", "level", "cals", "spectra", "match", "apply", "undo"), ("level", "match"))
)
def test_a_folder_that_cannot_hold_results_is_refused_before_anything_is_measured(name, what, tasks, open_folder):
    if not nobody_can_read(bkgmatch.__file__):
        pytest.skip("run by root from a folder that others cannot read")
    given = open_folder / "given"
    given.mkdir()
    moved = {str(path): str(given / path.name) for path in tasks[name].inputs}
    for old, new in moved.items():
        shutil.copy(old, new)
    words = [moved.get(str(word), str(word)) for word in tasks[name].words]
    here = open_folder / "here"
    here.mkdir()
    if "file" in what:
        (here / "out").write_text("x")
        words = [re.sub(r"^(--output_dir=)?out$", r"\1out/deep", w) for w in words] if what == "below a file" else words
    elif what == "the folder":
        (here / "out").mkdir(mode=0o555)
    words = [re.sub("--save_table=.*", f"--save_table={open_folder}/here/t.ecsv", word) for word in words]
    words = [word for word in words if not word.startswith("--temp_dir")]
    here.chmod(0o555 if what == "the folder above" else 0o777)
    before, there = digest(moved.values()), sorted(here.rglob("*"))
    code, said = Child(partial(tasks[name].run, *words), partial(os.chdir, here), as_nobody).wait()
    assert code == 1, said
    last = said.rstrip().splitlines()[-1]
    assert ("is none; choose" if "file" in what else "may not be written to; choose") in last or (
        what == "the folder above" and "Permission denied: 'out'" in last  # stpipe makes the folder
    ), said
    assert "out" in last or str(here) in last
    assert "measuring" not in said
    assert sorted(here.rglob("*")) == there
    assert digest(moved.values()) == before
    note("faults", f"results into {'a file' if 'file' in what else 'a folder of others'}", CLEAR)


# ---------------------------------------------------------------------------------------------------------- signals

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


QUICK = [("level", "SIGTERM", 0), ("level", "SIGKILL", 0), ("undo", "SIGINT", 0)]


@pytest.mark.parametrize(
    ("name", "number", "seed"),
    [pytest.param(n, s, k, marks=() if (n, s, k) in QUICK else SLOW) for n in EVERY for s in SIGNALS for k in range(6)],
)
def test_a_run_that_is_ended_while_it_writes_leaves_nothing_half_written(name, number, seed, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run", seed=seed)
    rng = random.Random(f"{name} {number} {seed}")
    when = rng.randrange(1, 40 if name in STEPS else 12), rng.choice([0.0, 0.0005, 0.002, 0.01])
    code, said = one.task.child(one.here, ended(one.here, *when, SIGNALS[number])).wait()
    one.check(code, said, may_leave=number == "SIGKILL")
    note("faults", f"{number} while writing", STOPPED if code else RIGHT)
    if seed % 3 == 0:
        one.check_again()


def real_strun(task, here, most=resource.RLIM_INFINITY):
    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    (here / "out").mkdir(exist_ok=True)
    (here / "temporary").mkdir(exist_ok=True)
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("strun")), *map(str, task.words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1", "STPIPE_DISABLE_CRDS_STEPPARS": "true"},
        preexec_fn=prepare,
    )


@pytest.mark.parametrize(
    ("name", "number", "seed"),
    [
        ("sky", "SIGTERM", 0),
        *(
            pytest.param(n, s, k, marks=SLOW)
            for n in STEPS
            for s in SIGNALS
            for k in (1, 2)
            if (n, s, k) != ("sky", "SIGTERM", 0)
        ),
    ],
)
def test_strun_is_ended_at_a_random_moment(name, number, seed, tasks, tmp_path):
    """From when it has something to keep, until its page is written."""
    one = trial(tasks, name, tmp_path / "run", seed=2 * bool(seed))
    process = real_strun(one.task, one.here)
    until(lambda: process.poll() is not None or list((one.here / "out").iterdir()), 120)
    time.sleep(random.Random(f"{name} {number} {seed}").uniform(0, 4 if seed else 1))
    process.send_signal(SIGNALS[number])
    said, _ = process.communicate(timeout=120)
    one.check(process.returncode, said, may_leave=number == "SIGKILL")
    note("faults", f"{number} at a random moment", STOPPED if process.returncode else RIGHT)
    if seed:
        one.check_again()


@SLOW
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("when", [2.0, 8.0, 14.0])
def test_the_demonstration_ends_its_strun_with_it(when, number, tmp_path):
    child = Child(partial(command, "demo", "--out", tmp_path / "demo"))
    time.sleep(when)
    child.end(SIGNALS[number])
    code, _ = child.wait(120)
    assert hidden(tmp_path) == []
    running = subprocess.run(["ps", "-Ao", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running
    for file in tmp_path.rglob("*.fits"):
        with datamodels.open(file) as model:
            assert np.isfinite(model.data).any()
            assert model.meta.wcs is not None
    note("faults", f"{number} at a random moment", STOPPED if code else RIGHT)


@SLOW
def test_the_demonstration_on_a_full_disk(tmp_path):
    code, said = Child(partial(command, "demo", "--out", tmp_path / "demo"), partial(small_files, 200_000)).wait()
    assert code == 1
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("bkgmatch demo: ")
    assert "cannot be written" in last
    assert not list(tmp_path.rglob("*.fits"))
    assert hidden(tmp_path) == []
    note("faults", "disk full: room for a part of a file", CLEAR)


# ----------------------------------------------------------------------------------------------------- little memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("more", [0.1, *(pytest.param(m, marks=SLOW) for m in (0.5, 1, 2, 4, 8, 16, 32, 64))])
@pytest.mark.parametrize("name", slowly(EVERY, ("match",)))
def test_without_enough_memory_a_run_ends_and_says_so(name, more, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run")
    code, said = one.task.child(one.here, partial(little_memory, int(more * MB))).wait()
    one.check(code, said)
    if code:
        assert code > 0, f"ended by a signal: {code}, {said}"
        assert OF_MEMORY.search(said), said
    note("faults", "not enough memory", CLEAR if code else RIGHT)


@SLOW
@pytest.mark.parametrize("most", [700, 900, 1200, 1600])
@pytest.mark.parametrize("name", STEPS)
def test_strun_under_a_limit_of_memory(name, most, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run")
    process = real_strun(one.task, one.here, most=most * MB)
    said, _ = process.communicate(timeout=240)
    one.check(process.returncode, said)
    if process.returncode:
        assert OF_MEMORY.search(said), said
    note("faults", "not enough memory", CLEAR if process.returncode else RIGHT)


# ---------------------------------------------------------------------------------------- two at a time, and no reader


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=SLOW) for k in range(1, 4))])
@pytest.mark.parametrize("name", slowly((*STEPS, "match", "apply", "undo", "page", "skylist"), ("undo",)))
def test_two_runs_at_a_time_write_whole_files_or_one_says_that_another_runs(name, seed, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run", seed=3 * (seed % 2))
    runs = [one.task.child(one.here) for _ in range(2)]
    for code, said in [run.wait() for run in runs]:
        check_whole(one.here / "out", one.expected)
        if code:
            assert f"another run uses {one.here / 'out' / RESUME}; wait for it" in said, said
        note("faults", "two runs into one folder", CLEAR if code else RIGHT)
    one.check(0, said)


SHELL = {"OMP_NUM_THREADS": "1", "STPIPE_DISABLE_CRDS_STEPPARS": "true"}


def shell(line, here):
    scripts = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=here, capture_output=True, text=True, timeout=240,
        env=os.environ | SHELL | {"PATH": scripts}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "bkgmatch pars mrs | head -1",
        *(pytest.param(x, marks=SLOW) for x in ("bkgmatch pars | true", "bkgmatch pars >&-")),
    ],
)
def test_a_command_whose_output_nobody_reads_says_nothing_of_it(line, tmp_path):
    _, said = shell(line, tmp_path)
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    note("faults", "output that nobody reads", RIGHT)


@SLOW
@pytest.mark.parametrize(
    "end", ["2>&1 | head -1", "2>&1 | true", ">&- 2>&-", "2>/dev/full", "< /dev/null > /dev/full 2>&1"]
)
@pytest.mark.parametrize("name", [*STEPS, "match", "undo", "apply"])
def test_results_are_written_though_nobody_reads_the_log(name, end, tasks, tmp_path):
    one = trial(tasks, name, tmp_path / "run")
    (one.here / "temporary").mkdir()
    if name in STEPS:
        (one.here / "out").mkdir()
    program = "strun" if name in STEPS else "bkgmatch"
    shell(f"{program} {' '.join(map(str, one.task.words))} {end}", one.here)
    one.check(0, "")
    note("faults", "output that nobody reads", RIGHT)
