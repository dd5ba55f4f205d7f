"""Runs that are interrupted, and run again: the same table; what is left behind, and what is not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import digest
from clusters import command_line_cluster, until
from scale import agree, outcome

from bkgmatch import LevelMatchStep, SkyMatchStep
from bkgmatch.execution import _Run

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

SLOW = pytest.mark.slow
STRUN = str(Path(sys.executable).with_name("strun"))
EACH = ("sky", "difference", "level", "planes", "cals", "spectra")
AGAIN = "results of an interrupted run were used again"


@pytest.fixture(scope="module")
def mosaic(scale_data):
    return scale_data.mosaic()


@pytest.fixture
def copies(mosaic, tmp_path):
    """Copies of four exposures, which a test may change."""
    (tmp_path / "inputs").mkdir()
    return [Path(shutil.copy(file, tmp_path / "inputs")) for file in mosaic]


class Interrupted(Exception):
    pass


def stop_after(monkeypatch, n, *, kept=True):
    """Let a run fail when it has so many results, that are kept or not."""
    keep, count = _Run._keep, [0]

    def counting(self, i, result):
        keep(self, i, result)
        count[0] += self._keys[i] is not None or not kept
        if count[0] == n:
            raise Interrupted

    monkeypatch.setattr(_Run, "_keep", counting)


def used_again(caplog):
    """How many results a run took from the one before."""
    (line,) = [record.getMessage() for record in caplog.records if AGAIN in record.getMessage()] or ["0"]
    return int(line.split()[0])


def tables(folder=Path()):
    return {path.name: path.read_bytes() for path in folder.glob("t*.ecsv")}


def interrupt(step, files, monkeypatch, caplog, *, after, **options):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, after)
        step.call(list(map(str, files)), save_table="t.ecsv", **options)
    assert "the same run again goes on from there" in caplog.text
    assert f"What was measured is in {Path('t.ecsv.resume').absolute()}" in caplog.text
    assert sorted(path.name for path in Path().iterdir()) == ["t.ecsv.resume"]
    caplog.clear()


def again(step, files, caplog, **options):
    """Tables of the run after; and how many results of the one before it used."""
    caplog.clear()
    caplog.set_level("INFO", "stpipe")
    step.call(list(map(str, files)), save_table="t.ecsv", **options)
    assert not Path("t.ecsv.resume").exists()
    found, count = tables(), used_again(caplog)
    for name in found:
        Path(name).unlink()
    return found, count


# -------------------------------------------------------------------------------------------------- in this process


@pytest.mark.parametrize(
    ("step", "in_memory"),
    [
        (LevelMatchStep, True),
        pytest.param(LevelMatchStep, False, marks=SLOW),
        pytest.param(SkyMatchStep, True, marks=SLOW),
        pytest.param(SkyMatchStep, False, marks=SLOW),
    ],
)
def test_an_interrupted_run_goes_on(step, in_memory, mosaic, monkeypatch, caplog):
    fresh, count = again(step, mosaic, caplog, in_memory=in_memory)
    assert count == 0
    counts = []
    for after in (3, 5, 7):
        interrupt(step, mosaic, monkeypatch, caplog, after=after, in_memory=in_memory)
        found, count = again(step, mosaic, caplog, in_memory=in_memory)
        assert found == fresh
        counts.append(count)
    assert counts == sorted(set(counts)), "the later it is interrupted, the more is used"


@SLOW
def test_it_may_be_interrupted_again_and_again(mosaic, monkeypatch, caplog):
    fresh, _ = again(LevelMatchStep, mosaic, caplog)
    for after in (2, 2, 2):
        interrupt(LevelMatchStep, mosaic, monkeypatch, caplog, after=after)
    found, count = again(LevelMatchStep, mosaic, caplog)
    assert found == fresh
    assert count == 6


@SLOW
def test_another_cwd_and_another_way_of_working(mosaic, monkeypatch, caplog, tmp_path):
    fresh, _ = again(LevelMatchStep, mosaic, caplog)
    interrupt(LevelMatchStep, mosaic, monkeypatch, caplog, after=7)
    (tmp_path / "other").mkdir()
    shutil.move("t.ecsv.resume", tmp_path / "other" / "t.ecsv.resume")
    monkeypatch.chdir(tmp_path / "other")
    found, count = again(LevelMatchStep, mosaic[::-1], caplog, maximum_cores="2", in_memory=False)
    assert count > 3
    assert found == fresh


def touch(files):
    os.utime(files[0], (1e9, 1e9))


def brighten(files):
    """Change the content, but neither the size nor the time of the file."""
    stat = files[0].stat()
    with fits.open(files[0], mode="update") as hdus:
        hdus["SCI"].data[5:25, 5:25] += 3.0
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (files[0].stat().st_size, files[0].stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def flag(files):
    with fits.open(files[-1], mode="update") as hdus:
        hdus["DQ"].data[:20] |= 1


@pytest.mark.parametrize(
    ("step", "change"),
    [
        (SkyMatchStep, brighten),
        *(pytest.param(SkyMatchStep, change, marks=SLOW) for change in (touch, flag)),
        *(pytest.param(LevelMatchStep, change, marks=SLOW) for change in (touch, brighten, flag)),
    ],
)
def test_what_depends_on_a_file_is_measured_again(change, step, copies, monkeypatch, caplog):
    interrupt(step, copies, monkeypatch, caplog, after=7)
    shutil.copytree("t.ecsv.resume", "saved")
    _, everything = again(step, copies, caplog)
    Path("saved").rename("t.ecsv.resume")
    before = digest(copies)
    change(copies)
    found, count = again(step, copies, caplog)
    fresh, none = again(step, copies, caplog)
    assert found == fresh
    assert none == 0
    if digest(copies) == before:
        assert count == everything
    else:
        assert 0 < count < everything


def box(path, x0, value):
    """A mask that leaves out a part of the pixels."""
    mask = np.ones((64, 64), np.uint8)
    mask[:, x0 : x0 + 20] = 0
    fits.PrimaryHDU(mask * value).writeto(path, overwrite=True)


@SLOW
def test_what_depends_on_a_mask_is_measured_again(copies, monkeypatch, caplog):
    masks = [path.with_name(path.name.replace("_cal", "_mask")) for path in copies]
    for mask in masks:
        box(mask, 5, 1)
    interrupt(SkyMatchStep, copies, monkeypatch, caplog, after=7, masks=["mask"])
    stat = masks[1].stat()
    box(masks[1], 25, 1)
    os.utime(masks[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found, count = again(SkyMatchStep, copies, caplog, masks=["mask"])
    assert count == 3, "outlines of the others"
    assert found == again(SkyMatchStep, copies, caplog, masks=["mask"])[0]
    masks[1].unlink()
    interrupt(SkyMatchStep, copies, monkeypatch, caplog, after=7, masks=["mask"])
    box(masks[1], 25, 1)
    found, count = again(SkyMatchStep, copies, caplog, masks=["mask"])
    assert found == again(SkyMatchStep, copies, caplog, masks=["mask"])[0]


@SLOW
def test_what_depends_on_regions_is_measured_again(mosaic, monkeypatch, caplog):
    regions = Path("here.reg")

    def write(size):
        regions.write_text(f'icrs\n-box(150.0,2.2,{size}",{size}",0)\n')

    write(30)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 7)
        SkyMatchStep.call(list(map(str, mosaic)), save_table="t.ecsv", regions=str(regions))
    write(60)
    found, count = again(SkyMatchStep, mosaic, caplog, regions=str(regions))
    assert count == 0
    assert found == again(SkyMatchStep, mosaic, caplog, regions=str(regions))[0]


OPTIONS = {
    SkyMatchStep: [
        {"skystat": "median"}, {"lower": 0.1}, {"upper": 2.0}, {"nclip": 1}, {"lsigma": 3.0}, {"overlap": "footprint"},
        {"stepsize": 5}, {"dqbits": "~DO_NOT_USE"}, {"dqbits": None}, {"level_per": "detector"}, {"skymethod": "local"},
        {"skystat": "difference"}, {"skystat": "difference", "upper": 2.0}, {"overlap": "exact"},
    ],
    LevelMatchStep: [
        {"fit_type_dithers": "level+slope"}, {"passes": "joint"}, {"do_sigma_clip": True}, {"pixel_scale_ratio": 1.5},
        {"dqbits": "~DO_NOT_USE"}, {"weight_method": "npix"}, {"rms_sig_limit": 1.0}, {"fixed": ["{0}"]},
        {"do_local_subtraction": False}, {"reference": "mean"},
    ],
}  # fmt: skip
OTHER = [(step, options) for step, each in OPTIONS.items() for options in each]


@SLOW
@pytest.mark.parametrize(("step", "options"), OTHER, ids=[f"{s.class_alias}-{o}" for s, o in OTHER])
def test_what_depends_on_an_option_is_measured_again(step, options, mosaic, monkeypatch, caplog):
    options = {key: [mosaic[0].name] if key == "fixed" else value for key, value in options.items()}
    fresh, _ = again(step, mosaic, caplog, **options)
    interrupt(step, mosaic, monkeypatch, caplog, after=8 if step is LevelMatchStep else 6)
    found, _ = again(step, mosaic, caplog, **options)
    assert found == fresh
    interrupt(step, mosaic, monkeypatch, caplog, after=6, **options) if "skymethod" not in options else None
    found, _ = again(step, mosaic, caplog)
    assert found == again(step, mosaic, caplog)[0]


@SLOW
def test_lyot_parts_are_told_apart(scale_data, monkeypatch, caplog):
    files = scale_data.miri()[:3]
    fresh, _ = again(LevelMatchStep, files, caplog, recombine_lyot=True)
    interrupt(LevelMatchStep, files, monkeypatch, caplog, after=5)
    found, _ = again(LevelMatchStep, files, caplog, recombine_lyot=True)
    assert found == fresh
    interrupt(LevelMatchStep, files, monkeypatch, caplog, after=8, recombine_lyot=True)
    found, count = again(LevelMatchStep, files, caplog, recombine_lyot=True)
    assert found == fresh
    assert count > 3


@SLOW
def test_data_in_other_units_are_told_apart(copies, monkeypatch, caplog):
    """A factor that brings them into the range of single precision is another for other data."""
    for step in (LevelMatchStep, SkyMatchStep):
        options = {"skystat": "difference"} if step is SkyMatchStep else {}
        for file in copies:
            with fits.open(file, mode="update") as hdus:
                hdus["SCI"].data *= 2.0**-60
                hdus["ERR"].data *= 2.0**-60
        fresh, _ = again(step, copies, caplog, **options)
        interrupt(step, copies, monkeypatch, caplog, after=6, **options)
        found, _ = again(step, copies, caplog, **options)
        assert found == fresh
        for file in copies:
            with fits.open(file, mode="update") as hdus:
                hdus["SCI"].data *= 2.0**60
                hdus["ERR"].data *= 2.0**60


def test_models_in_memory_leave_nothing(mosaic, monkeypatch, scale_data, tmp_path):
    case = scale_data.case("level")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 5, kept=False)
        case.run(case.given("models", tmp_path), save_table="t.ecsv")
    assert list(Path().iterdir()) == []


def test_an_error_of_the_inputs_leaves_no_results(mosaic):
    with pytest.raises(ValueError, match="zero_point"):
        SkyMatchStep.call(list(map(str, mosaic)), save_table="t.ecsv", zero_point="nobody")
    assert not [path for path in Path().rglob("*.npz")]


@SLOW
@pytest.mark.parametrize("name", EACH)
def test_interrupted_at_any_place_the_table_is_the_same(name, scale_data, monkeypatch, caplog, tmp_path):
    case = scale_data.case(name)
    given = case.given("files", tmp_path)
    fresh = outcome(case, given, Path())
    rng = random.Random(name)
    for _ in range(3):
        with monkeypatch.context() as patch:
            stop_after(patch, rng.randrange(1, 10))
            with suppress(Interrupted):
                case.run(given, save_table="table.ecsv")
        agree(outcome(case, given, Path()), fresh, rtol=0)
        assert list(Path().iterdir()) == []


# -------------------------------------------------------------------------------------------------- killed from outside


def strun(case, given, *words):
    options = [f"--{key}={value}" for key, value in case.options.items() if not isinstance(value, list)]
    alias = case.step.class_alias
    prefix = "bkg_" if alias in ("skymatch", "mrs_imatch") else ""  # those that jwst has had
    words = [STRUN, prefix + alias, given, *options, *words]
    words.append(f"--output_dir={Path(given).parents[1]}/out")
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("name", ["sky", "level", "cals", "spectra"])
def test_strun_is_ended_at_a_random_moment(name, number, scale_data, offline, tmp_path):
    """Three times each, and goes on: the same table; nothing is left, or the next run removes it."""
    case = scale_data.case(name)
    given, before = case.given("association", tmp_path), digest(case.files)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ["--in_memory=false", f"--temp_dir={temporary}", "--save_table=t.ecsv"]
    process = strun(case, given, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    fresh = tables()
    assert left(temporary) == []
    rng = random.Random(f"{name} {number}")
    for _ in range(3):
        for path in tables():
            Path(path).unlink()
        process = strun(case, given, *words)
        until(lambda: left(temporary) or process.poll() is not None)  # noqa: B023
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            continue
        kept = left(temporary)
        if number != signal.SIGKILL:
            assert kept == []
        assert set(left(Path())) <= {"t.ecsv.resume"}, said
        process = strun(case, given, *words)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert tables() == fresh
        assert left(temporary) == []
        assert left(Path()) == sorted(fresh)
        for folder in kept:
            assert f"Removed {temporary / folder}, which a run that was killed had left" in said
    assert digest(case.files) == before


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_strun_with_a_cluster_is_ended(number, scale_data, tmp_path):
    case = scale_data.case("level")
    given = case.given("association", tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with command_line_cluster(tmp_path / "dask") as cluster:
        words = [
            f"--temp_dir={temporary}",
            "--save_table=t.ecsv",
            f"--dask_scheduler={cluster.address}",
            "--in_memory=false",
        ]
        for wait in (0.0, 1.0, 3.0):
            process = strun(case, given, *words)
            until(lambda: left(temporary) or process.poll() is not None)  # noqa: B023
            time.sleep(wait)
            process.send_signal(number)
            process.communicate(timeout=60)
            if process.returncode:
                assert left(temporary) == []
                assert set(left(Path())) <= {"t.ecsv.resume"}
        process = strun(case, given, *words)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert left(temporary) == []
    assert not Path("t.ecsv.resume").exists()


@SLOW
def test_temp_dir_must_be_there(scale_data, tmp_path):
    for name in ("sky", "level", "cals", "spectra"):
        case = scale_data.case(name)
        with pytest.raises(FileNotFoundError, match=f"temp_dir={tmp_path}/missing does not exist; make it first"):
            case.run(case.given("files", tmp_path), in_memory=False, temp_dir=f"{tmp_path}/missing")
