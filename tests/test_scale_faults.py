"""Steps on files that go missing or break, on clusters that end, and where temporary files are."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from builders import digest
from clusters import command_line_cluster, until

from bkgmatch import workspace
from bkgmatch.steps.ifu_models import IFUModels
from bkgmatch.steps.library import LibraryExposures
from bkgmatch.steps.streamed import StreamedLibrary

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

SLOW = pytest.mark.slow
EACH = ["sky", "level", "cals", "spectra"]


@pytest.fixture
def temporary(tmp_path):
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def copied(case, folder):
    """The same case with files that a test may spoil."""
    (folder / "inputs").mkdir()
    files = [folder / "inputs" / file.name for file in case.files]
    for new, old in zip(files, case.files, strict=True):
        new.write_bytes(old.read_bytes())
    return type(case)(case.step, files, case.options)


def truncate(file):
    os.truncate(file, file.stat().st_size // 3)


def blank(file):
    file.write_bytes(b"\0" * file.stat().st_size)


SPOIL = {"deleted": Path.unlink, "truncated": truncate, "overwritten": blank}


def spoil_after_opening(monkeypatch, file, how):
    """Spoil a file when the step has looked at all exposures."""
    done = []
    for kind in (LibraryExposures, IFUModels):
        init = kind.__init__

        def changed(self, *args, init=init, **kwargs):
            init(self, *args, **kwargs)
            if not done:
                done.append(True)
                how(file)

        monkeypatch.setattr(kind, "__init__", changed)
    return done


@pytest.mark.filterwarnings("ignore:File may have been truncated")
@pytest.mark.parametrize("how", SPOIL.values(), ids=SPOIL)
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sky", "dask"),
        *(pytest.param(n, w, marks=SLOW) for n in EACH for w in ("dask", "disk") if (n, w) != ("sky", "dask")),
    ],
)
def test_a_file_that_is_lost_on_the_way_is_named(name, where, how, scale_data, temporary, monkeypatch, request):
    case = copied(scale_data.case(name), temporary.parent)
    lost, others = case.files[1], [file for file in case.files if file != case.files[1]]
    before, here = digest(others), sorted(Path().iterdir())
    options = {"in_memory": False}
    if where == "dask":
        options["dask_scheduler"] = request.getfixturevalue("local_cluster")
    done = spoil_after_opening(monkeypatch, lost, how)
    out = temporary.parent / "out"
    with pytest.raises((ValueError, OSError), match=lost.name):
        case.run(case.given("files", None), temp_dir=str(temporary), save_results=True, output_dir=str(out), **options)
    assert done
    gc.collect()  # what refers to the library of a run that failed
    assert digest(others) == before
    assert list(temporary.iterdir()) == []
    assert sorted(Path().iterdir()) == here
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("name", [EACH[0], *(pytest.param(name, marks=SLOW) for name in EACH[1:])])
def test_temporary_files_are_where_they_are_to_be(name, scale_data, temporary, monkeypatch, tmp_path):
    """Also those of the library; and what is returned keeps its own until it is not needed any more."""
    made = []
    init = workspace.WorkFolder.__init__

    def noted(self, where=None):
        init(self, where)
        made.append(self.path)

    monkeypatch.setattr(workspace.WorkFolder, "__init__", noted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    case = scale_data.case(name)
    result = case.run(case.given("association", tmp_path), in_memory=False, temp_dir=str(temporary))
    assert isinstance(result, StreamedLibrary)
    assert {path.parent for path in made} == {temporary}
    assert len(made) == 2
    assert len(list(temporary.iterdir())) == 1
    with result:
        model = result.borrow(0)
        assert np.isfinite(model.data).any()
        result.shelve(model, 0, modify=False)
    del result, model
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", [EACH[1], *(pytest.param(n, marks=SLOW) for n in (EACH[0], *EACH[2:]))])
def test_nothing_is_left_after_an_error_at_the_end(name, scale_data, temporary, monkeypatch, tmp_path):
    case = scale_data.case(name)

    def fails(*args, **kwargs):
        raise RuntimeError("at the end")

    for place in (
        "skymatch.save_tables",
        "level_match.save_tables",
        "mrs_imatch.save_tables",
        "image_for_image.image_table",
    ):
        monkeypatch.setattr(f"bkgmatch.steps.{place}", fails)
    table = tmp_path / "t.ecsv"
    with pytest.raises(RuntimeError, match="at the end"):
        case.run(
            case.given("association", tmp_path), in_memory=False, temp_dir=str(temporary), save_table=str(table),
            save_results=True, output_dir=str(tmp_path / "out"),
        )  # fmt: skip
    assert list(temporary.iterdir()) == []
    assert not table.exists()
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@SLOW
@pytest.mark.parametrize("name", EACH)
def test_the_scheduler_is_killed_in_a_step(name, scale_data, temporary, tmp_path, monkeypatch):
    """An error that says so, and nothing under the names of results."""
    case, before = scale_data.case(name), digest(scale_data.case(name).files)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with command_line_cluster(tmp_path / "dask") as started:
        address = started.address
        killer = threading.Timer(0.0, lambda: until(lambda: any(temporary.iterdir())) and started.scheduler.kill())
        killer.start()
        with pytest.raises((RuntimeError, ConnectionError, OSError)) as caught:
            case.run(
                case.given("files", None), dask_scheduler=address, temp_dir=str(temporary), save_table="t.ecsv",
                save_results=True, output_dir=str(tmp_path / "out"),
            )  # fmt: skip
        killer.join()
    assert address in str(caught.value)
    assert digest(case.files) == before
    assert list(temporary.iterdir()) == []
    assert {path.name for path in Path().iterdir()} <= {"t.ecsv.resume"}
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
