"""Nothing is swallowed: a failure anywhere reaches the user with its own text."""

import ast
import sys
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from builders import SIDE, association, exposure_name, image_model, left_behind, tile_wcs, write
from common import tan, to_sky
from ledger import note
from scipy import sparse

from bkgmatch import (
    Image3Pipeline,
    Spec3Pipeline,
    cluster,
    display,
    plots,
    report_figures,
    reprojected,
    solve,
)
from bkgmatch.associate import associate
from bkgmatch.cli import main
from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure
from bkgmatch.images import CORNER_CARDS, read_plane
from bkgmatch.journal import Journal
from bkgmatch.level_story import story
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import LevelMatchOptions
from bkgmatch.planes import Plane
from bkgmatch.reasons import reason
from bkgmatch.skymatch import SkyImage, SkyStats
from bkgmatch.steps.cards import drop_cards, put_card
from bkgmatch.steps.inputs import input_files
from bkgmatch.steps.models import undo
from bkgmatch.steps.plane_record import PlaneRecord, read_record
from bkgmatch.workspace import WorkFolder, remove_folder

SOURCE = Path(__file__).parents[1] / "src" / "bkgmatch"

# -------------------------------------------------------------------------------------------------- handlers

# Handlers that do not raise again, and why nothing is hidden by them.
ENDED = {
    ("cli", "main"): "prints the text, and returns 1",
    ("cluster", "_within.run"): "another thread hands it on to the one that waits",
    ("cluster", "_ClusterExecutor._missing"): "becomes the reason of the failure that follows if it lasts",
    ("images", "is_jwst"): "only chooses the reader, which meets the same error and tells it",
    ("journal", "Journal.key"): "no fingerprint: the result is not kept, which is allowed",
    ("journal", "Journal.get"): "a line of the log, and it is measured again",
    ("paths", "located"): "the path stays as it is, and is not there",
    ("paths", "check_name"): "what is not there may be made; where nothing may be written is told before",
    ("paths", "is_there"): "what cannot be looked at is not there; the caller says so",
    ("steps.inputs", "_json_fault"): "its text is the reason if jwst's reader, which comes next, cannot read it either",
    ("skymatch", "SkyImage.calc_sky"): "a line of the log; None is what stcal returns without pixels",
    ("steps.base", "BackgroundStep._report"): "a warning: the results are worth more than their page and its pictures",
    ("steps.crds", "_answer"): "a warning: the defaults are used",
    ("workspace", "WorkFolder.__init__"): "another folder is made",
    ("workspace", "locked"): "None: another run holds the lock, which the caller tells",
    ("workspace", "remove_folder"): "a warning",
    ("workspace", "_is_removed"): "it is not empty: its lock tells whether it may go",
    ("workspace", "_is_unlocked_and_removed"): "a folder of another process or user, which is not ours to remove",
}  # fmt: skip

# Handlers that raise an error that does not quote the first: what it says is there already.
UNQUOTED = {
    ("cluster", "_within"): "the time-out is our own, and has no text",
    ("steps.mrs_imatch", "_degree"): "'invalid literal': the message has the word itself",
    ("steps.skymatch", "_read_skylist"): "the same, with the line",
}

# Where what fails in removing files is passed over at first.
IGNORED = {("workspace", "remove_folder"), ("workspace", "_is_unlocked_and_removed"), ("written", "_remove")}


def module_name(file):
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts)


@cache
def handlers():
    """Every handler of the package: its module, its function, and the tree of it."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [(module_name(file), ".".join(names), node) for names, node in within(tree, ast.ExceptHandler)]
    return found


def within(tree, kind, names=()):
    """Nodes of a kind with the names of the classes and functions that they are in."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, kind):
            yield names, child
        is_named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        yield from within(child, kind, (*names, child.name) if is_named else names)


def raises(handler):
    """Whether each way through a handler ends with an error."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise):
        return True
    # ``future.result()`` of a future that has failed raises what it failed of.
    return isinstance(last, ast.Return) and ast.unparse(last.value or last) == "future.result()"


def quotes(handler):
    """Whether a handler raises the same error, or one that has it as cause and in its text."""
    for node in (n for n in ast.walk(handler) if isinstance(n, ast.Raise) and n.exc is not None):
        is_cause = isinstance(node.cause, ast.Name) and node.cause.id == handler.name
        if not is_cause or handler.name not in {n.id for n in ast.walk(node.exc) if isinstance(n, ast.Name)}:
            return False
    return True


def test_the_handlers_are_found():
    assert len(handlers()) > 45


def test_a_handler_raises_again_or_is_explained():
    ended = {(module, function) for module, function, node in handlers() if not raises(node)}
    assert ended == set(ENDED), "raise the error again, or explain why it is told otherwise"


def test_an_error_that_is_raised_again_has_the_first_as_cause_and_quotes_it():
    unquoted = {(module, function) for module, function, node in handlers() if raises(node) and not quotes(node)}
    assert unquoted == set(UNQUOTED), "raise ... from error, with its text"


def test_handlers_that_end_an_error_tell_its_text():
    """Those that only choose between two ways are explained above."""
    told = {"cli", "cluster", "journal", "skymatch", "steps.base", "steps.crds", "workspace"}
    ways = {("journal", "Journal.key")} | {
        ("workspace", function)
        for function in ("WorkFolder.__init__", "locked", "_is_removed", "_is_unlocked_and_removed")
    }
    for module, function, node in handlers():
        is_end = ast.unparse(node.type) in ("BrokenPipeError", "KeyboardInterrupt")  # wanted by the user
        if module in told and not raises(node) and (module, function) not in ways and not is_end:
            used = {n.id for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)}
            assert node.name in used, (module, function)


def test_no_handler_is_bare():
    assert [(module, function) for module, function, node in handlers() if node.type is None] == []


def test_nothing_is_suppressed():
    """Neither errors nor warnings: what numbers are not finite are so on purpose, where `errstate` says so."""
    found, ignored = [], set()
    for file in sorted(SOURCE.rglob("*.py")):
        for names, call in within(ast.parse(file.read_text(encoding="utf-8")), ast.Call):
            name = ast.unparse(call.func).rpartition(".")[2]
            where = (module_name(file), ".".join(names))
            if name in ("suppress", "simplefilter", "filterwarnings", "catch_warnings", "seterr", "excepthook"):
                found.append((*where, name))
            if any(keyword.arg == "ignore_errors" for keyword in call.keywords):
                ignored.add(where)
    assert found == []
    assert ignored == IGNORED


@pytest.mark.parametrize(
    ("text", "is_raised", "is_quoted"),
    [
        ("raise", True, True),
        ("raise ValueError(f'{error}') from error", True, True),
        ("raise ValueError('no') from error", True, False),
        ("raise ValueError(f'{error}')", True, False),
        ("raise ValueError(f'{error}') from None", True, False),
        ("log(error)", False, True),
        ("if error:\n  raise\nreturn 0", False, True),
        ("pass", False, True),
    ],
)
def test_the_check_tells_handlers_apart(text, is_raised, is_quoted):
    body = text.replace("\n", "\n        ")
    tree = ast.parse(f"def f():\n    try:\n        g()\n    except OSError as error:\n        {body}")
    ((names, node),) = within(tree, ast.ExceptHandler)
    assert (names, raises(node), quotes(node)) == (("f",), is_raised, is_quoted)


# -------------------------------------------------------------------------------------------------- failures injected

TEXT = "the ether wind blows"
READING, WCS, STATISTICS, SOLVING, SUBTRACTING, TABLES, PLOTS, SAVING, KEEPING, TELLING = (
    "reading", "WCS", "statistics", "solving", "subtracting", "saving tables", "plots", "saving", "journal", "progress",
)  # fmt: skip
ANYWHERE = {
    READING: "jwst.datamodels.ModelLibrary.borrow",
    WCS: "gwcs.WCS.__call__",
    SAVING: "stdatamodels.jwst.datamodels.JwstDataModel.save",
    KEEPING: "bkgmatch.journal.Journal.put",
    TELLING: "bkgmatch.progress.Progress.advance",
}
STAGES = {
    "sky": {
        STATISTICS: "bkgmatch.match.measure",
        SOLVING: "bkgmatch.solve.splu",
        SUBTRACTING: "bkgmatch.steps.models.shift",
        TABLES: "bkgmatch.steps.skymatch.save_tables",
    },
    "level": {
        STATISTICS: "bkgmatch.neighbourhoods.place",
        SOLVING: "bkgmatch.solve.splu",
        SUBTRACTING: "bkgmatch.steps.plane_record.shift",
        TABLES: "bkgmatch.steps.level_match.save_tables",
        PLOTS: "matplotlib.figure.Figure.savefig",
    },
    "cals": {
        STATISTICS: "bkgmatch.image_stack.merge_others",
        SOLVING: "bkgmatch.image_samples._levels",
        SUBTRACTING: "bkgmatch.steps.background_files._add",
        TABLES: "astropy.table.Table.write",
    },
    "spectra": {
        READING: "bkgmatch.steps.ifu_models.channel_pixels",
        STATISTICS: "bkgmatch.spectra.fill",
        SOLVING: "bkgmatch.solve.splu",
        SUBTRACTING: "bkgmatch.steps.polynomial_record.shift",
        TABLES: "bkgmatch.steps.mrs_imatch.save_tables",
    },
}
LONG = {("spectra", stage) for stage in (SUBTRACTING, TABLES, KEEPING, TELLING, SOLVING, SAVING, WCS)}
LONG |= {(case, stage) for case in ("level", "cals") for stage in (WCS, KEEPING, TELLING)}
INJECTED = [
    pytest.param(case, stage, marks=[pytest.mark.slow] * ((case, stage) in LONG))
    for case, stages in STAGES.items()
    for stage in ANYWHERE | stages
]
SPREAD = [(case, stage) for case in STAGES for stage in (READING, STATISTICS) if (case, stage) != ("spectra", READING)]


def fail(*args, **kwargs):
    raise RuntimeError(TEXT)


def inject(monkeypatch, case, stage):
    """Let a stage of a step fail."""
    monkeypatch.setattr((ANYWHERE | STAGES[case])[stage], fail)


def told(error):
    """The text that the user reads, if the first error is among the causes."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    assert (type(first), first.args) == (RuntimeError, (TEXT,))
    return str(error)


def run(data, case, folder, **options):
    table = {"save_table": str(folder / "table.ecsv"), "output_dir": str(folder), "save_results": True}
    return data.case(case).run([str(file) for file in data.case(case).files], **table, **options)


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize(("case", "stage"), INJECTED)
def test_a_failure_of_a_stage_reaches_the_user(monkeypatch, scale_data, tmp_path, case, stage):
    scale_data.case(case)
    inject(monkeypatch, case, stage)
    options = {"save_plots": str(tmp_path / "plots")} if stage == PLOTS else {}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(scale_data, case, tmp_path, **options)
    assert TEXT in told(caught.value)
    if stage not in (SAVING, SUBTRACTING):
        assert list(tmp_path.glob("*.fits")) == []
    note("nothing swallowed", f"{stage} fails", "error with its text")


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize(("case", "stage"), SPREAD)
def test_a_failure_in_a_thread_reaches_the_user(monkeypatch, scale_data, tmp_path, case, stage):
    scale_data.case(case)
    inject(monkeypatch, case, stage)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(scale_data, case, tmp_path, maximum_cores="2")
    assert TEXT in told(caught.value)
    note("nothing swallowed", f"{stage} fails in a thread", "error with its text")


OF_PIPELINES = {
    "image_for_image": (Image3Pipeline, "cals"),
    "level_match": (Image3Pipeline, "level"),
    "skymatch": (Image3Pipeline, "sky"),
    "mrs_imatch": (Spec3Pipeline, "spectra"),
}


@pytest.mark.usefixtures("empty_crds", "assign_freely")
@pytest.mark.parametrize("stage", [STATISTICS, pytest.param(SUBTRACTING, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OF_PIPELINES)
def test_a_failure_of_a_step_in_a_pipeline_reaches_the_user(monkeypatch, scale_data, tmp_path, name, stage):
    pipeline, case = OF_PIPELINES[name]
    files = [str(file) for file in scale_data.case(case).files]
    inject(monkeypatch, case, stage)
    alone = {other: {"skip": other != name} for other in pipeline.step_defs}
    if stage == SUBTRACTING:
        alone[name]["subtract"] = True
    with pytest.raises((RuntimeError, ValueError)) as caught:
        pipeline.call(str(association(links(files, tmp_path))), steps=alone, output_dir=str(tmp_path / "out"))
    assert TEXT in told(caught.value)
    note("nothing swallowed", f"{stage} fails in a pipeline", "error with its text")


def links(files, folder):
    """Links to files, so that the association may stand beside them."""
    found = [folder / Path(file).name for file in files]
    for link, file in zip(found, files, strict=True):
        link.symlink_to(file)
    return found


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize(
    "case", ["sky", "level", *(pytest.param(c, marks=pytest.mark.slow) for c in ("cals", "spectra"))]
)
@pytest.mark.parametrize(("error", "said"), [(RuntimeError(TEXT), TEXT), (MemoryError(), "MemoryError")])
def test_a_page_that_cannot_be_written_is_a_warning_with_the_text(
    monkeypatch, scale_data, tmp_path, caplog, case, error, said
):
    def fail_so(*args, **kwargs):
        raise error

    files = scale_data.case(case).files
    monkeypatch.setattr("bkgmatch.steps.base.write_report", fail_so)
    run(scale_data, case, tmp_path, report=True)
    lines = [r.getMessage() for r in caplog.records if "could not be written" in r.getMessage()]
    assert [(line.startswith("The report "), line.endswith(f": {said}")) for line in lines] == [(True, True)]
    assert len(list(tmp_path.glob("*_[a-z]*.fits"))) >= len(files)
    note("nothing swallowed", "report fails", "warning with its text")


@pytest.mark.usefixtures("offline", "assign_freely")
def test_a_kept_result_that_cannot_be_read_is_a_warning_with_the_text(monkeypatch, scale_data, tmp_path, caplog):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("bkgmatch.match.pair_offsets", fail)
        run(scale_data, "sky", tmp_path)
    monkeypatch.setattr("bkgmatch.journal._Reader.decoded", fail)
    run(scale_data, "sky", tmp_path)
    assert f"({TEXT}): it is measured again" in caplog.text
    note("nothing swallowed", "journal cannot be read", "warning with its text")


# -------------------------------------------------------------------------------------------------- clusters


def no_pixels():
    raise RuntimeError(TEXT)


@pytest.mark.parametrize("match", [match_skies, match_levels])
def test_a_failure_of_a_worker_reaches_the_user(local_cluster, tmp_path, match):
    exposures = [Exposure(f"e{i}", no_pixels, to_sky(tan(shift=(12 * i, 0)))) for i in range(3)]
    with cluster.cluster(local_cluster, [tmp_path]) as executor, pytest.raises(RuntimeError) as caught:
        match(exposures, work=Work(executor, tmp_path))
    assert TEXT in told(caught.value)
    note("nothing swallowed", "a worker fails", "error with its text")


def test_workers_that_died_are_told_with_what_the_scheduler_said():
    class KilledWorker(Exception):
        pass

    first = KilledWorker(TEXT)
    error = cluster._ClusterExecutor._explained(None, first)
    assert (type(error), error.__cause__) == (BrokenExecutor, first)
    assert TEXT in str(error)
    assert "give them more" in str(error)


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (lambda: {"worker": 1}, ""),
        (dict, " (it has none)"),
        (fail, f" ({TEXT})"),
    ],
)
def test_why_there_are_no_workers(answer, missing):
    executor = SimpleNamespace(_client=SimpleNamespace(nthreads=answer))
    assert cluster._ClusterExecutor._missing(executor) == missing


def test_a_scheduler_that_does_not_tell_its_workers_is_quoted(tmp_path):
    def late():
        raise TimeoutError(TEXT)

    with pytest.raises(ConnectionError, match=TEXT) as caught:
        cluster._check_workers(SimpleNamespace(nthreads=late), "tcp://there", [tmp_path])
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_worker_that_cannot_look_is_quoted(tmp_path):
    first = PermissionError(TEXT)
    client = SimpleNamespace(
        nthreads=lambda: {"w": 1}, wait_for_workers=lambda *a, **k: None, run=lambda *a, **k: {"w": first}
    )
    with pytest.raises(ValueError, match=TEXT) as caught:
        cluster._check_workers(client, "tcp://there", [tmp_path])
    assert caught.value.__cause__ is first


# -------------------------------------------------------------------------------------------------- what is quoted


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("odd"), "odd"),
        (OSError(28, "No space left on device", "a.fits"), "[Errno 28] No space left on device: 'a.fits'"),
        (KeyError("level"), "KeyError: 'level'"),
        (KeyError(), "KeyError"),
        (MemoryError(), "MemoryError"),
        (TimeoutError(), "TimeoutError"),
        (SystemExit(-1), "-1"),
    ],
)
def test_an_error_is_quoted_with_its_kind_if_its_text_says_too_little(error, text):
    assert reason(error) == text


def broken_import(monkeypatch, module):
    """Let a package fail as one does that was built for another numpy."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)

    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == module:
                raise ImportError(TEXT)

    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])


@pytest.mark.parametrize(
    ("module", "call", "cure"),
    [
        ("matplotlib", display.new_axes, "bkgmatch[plot]"),
        ("matplotlib", partial(plots._figure, 1, (1, 1)), "bkgmatch[plot]"),
        ("matplotlib", report_figures.check_matplotlib, "bkgmatch[report]"),
        ("distributed", partial(cluster._connected, "tcp://127.0.0.1:1"), "bkgmatch[dask]"),
        ("reproject", partial(reprojected.reprojected, *[None] * 5, "exact"), "bkgmatch[reproject]"),
    ],
)
def test_a_package_that_cannot_be_imported_is_told_with_the_reason(monkeypatch, module, call, cure):
    """Not only one that is missing: what is installed may not work."""
    broken_import(monkeypatch, module)
    with pytest.raises((ImportError, ValueError)) as caught:
        call()
    assert cure in str(caught.value)
    assert TEXT in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_file_that_may_not_be_read_is_not_only_told_to_be_no_fits(monkeypatch, tmp_path):
    (tmp_path / "a_cal.fits").touch()
    first = PermissionError(TEXT)

    def refuse(*args, **kwargs):
        raise first

    monkeypatch.setattr("astropy.io.fits.getheader", refuse)
    with pytest.raises(ValueError, match=f"a_cal.fits is no FITS file.*{TEXT}") as caught:
        associate([tmp_path / "a_cal.fits"], "mosaic", tmp_path)
    assert caught.value.__cause__ is first


@pytest.mark.parametrize("given", [{}, {"products": []}, {"products": [{"members": [{"exptype": "science"}]}]}])
def test_an_association_without_members_says_what_is_missing(given):
    with pytest.raises(ValueError, match=r"no product with members that have an expname \(.+\)") as caught:
        input_files(given)
    assert isinstance(caught.value.__cause__, LookupError)


def test_factors_that_do_not_exist_are_told_with_what_the_solver_said():
    with pytest.raises(ValueError, match=r"do not determine all coefficients.*\(.*singular.*\)") as caught:
        solve._factorise(sparse.csc_array(np.zeros((2, 2))), np.zeros(2))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_sky_without_pixels_is_told(caplog):
    """None, as in stcal, but with a line of the log."""
    caplog.set_level("INFO")
    image = SkyImage(np.ones((8, 8)), np.ones((8, 8), bool), _flat, None, SkyStats("mean", lower=5.0), sky_id="e1")
    assert image.calc_sky() == (None, 0, 0.0)
    assert [r.getMessage() for r in caplog.records] == [
        "No sky of image e1: Not enough data points to compute statistics."
    ]


def _flat(x, y, with_bounding_box=False):
    return x / 3600, y / 3600


# -------------------------------------------------------------------------------------------------- folders


def test_a_folder_that_cannot_be_removed_is_told(monkeypatch, tmp_path, caplog):
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(TEXT)

    monkeypatch.setattr("shutil.rmtree", refuse)
    remove_folder(tmp_path)
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path} cannot be removed ({TEXT}); remove it"]


def test_a_folder_that_is_removed_is_not_told(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert caplog.records == []


def test_temporary_folders_and_kept_results_are_removed_so(monkeypatch, tmp_path, caplog):
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(TEXT)

    monkeypatch.setattr("shutil.rmtree", refuse)
    WorkFolder(tmp_path).close()
    kept = Journal(tmp_path / "table.ecsv.resume")
    kept.open()
    kept.close()
    assert caplog.text.count(f"cannot be removed ({TEXT})") == 2


# -------------------------------------------------------------------------------------------------- records

PLANE = PlaneRecord(Plane(1.5, (0.01, -0.02), (53.16, -27.79)), sigma=0.1)
LYOT = replace(PLANE, lyot=Plane(2.5, (0.03, 0.01), (53.16, -27.79)))
CARDS = ("LVLM_A", "LVLM_B", "LVLM_C", "LVLM_RA", "LVLM_DEC")


def model_with(record):
    model = image_model(exposure_name(1), np.ones((SIDE, SIDE)), tile_wcs((1, 1))[0])
    record.apply(model)
    return model


@pytest.mark.parametrize(
    ("record", "lost"),
    [
        (PlaneRecord(Plane(1.5)), "LVLMATCH"),
        *((PLANE, keyword) for keyword in CARDS),
        *((PLANE, keyword) for keyword in CORNER_CARDS[1:3]),
        *((LYOT, keyword) for keyword in ("LVLM_A", "LVLM_RA", "LVLY_A", "LVLY_B", "LVLY_C", "LVLY_P3")),
    ],
)
def test_a_lost_part_of_a_record_is_an_error(record, lost, tmp_path, capsys):
    """Else what was subtracted would be forgotten: undone as nothing, or subtracted twice."""
    model = model_with(record)
    assert read_record(model) == record
    drop_cards(model, lost)
    for use in (undo, read_record, record.apply):
        with pytest.raises(
            ValueError, match=f"{model.meta.filename}: what level matching recorded in it is not complete"
        ):
            use(model)
    (file,) = write([model], tmp_path / "in")
    assert main(["undo", str(file), "--out", str(tmp_path / "out")]) == 1
    assert "is not complete" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cards_of_other_programs_are_no_record():
    """PJPipe writes some of the same cards, and no LVLM_SUB."""
    model = image_model(exposure_name(1), np.ones((SIDE, SIDE)), tile_wcs((1, 1))[0])
    for keyword in CARDS[:3]:
        put_card(model, keyword, 1.0, "of another program")
    assert read_record(model) is None


@pytest.mark.parametrize("lost", [*CARDS, *CORNER_CARDS[1:3]])
def test_a_lost_card_of_an_image_is_an_error(lost, tmp_path, capsys):
    header = fits.Header([("LVLM_SUB", True), *((keyword, 1.0) for keyword in (*CARDS, *CORNER_CARDS))])
    assert read_plane(header, tmp_path) == Plane(1.0, (1.0, 1.0), (1.0, 1.0))
    header.remove(lost)
    header.update(tan(shape=(8, 8)).to_header())
    fits.PrimaryHDU(np.ones((8, 8)), header).writeto(tmp_path / "a.fits")
    assert main(["undo", str(tmp_path / "a.fits"), "--out", str(tmp_path / "out")]) == 1
    assert "a.fits: what level matching recorded in it is not complete" in capsys.readouterr().err
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize(("level", "subtracted", "cure"), [(3.0, None, "Set BKGSUB"), (None, True, "Set BKGLEVEL")])
def test_a_sky_level_of_which_half_is_lost_is_not_undone_in_silence(level, subtracted, cure, tmp_path, capsys):
    model = image_model(exposure_name(1), np.ones((SIDE, SIDE)), tile_wcs((1, 1))[0])
    model.meta.background.level, model.meta.background.subtracted = level, subtracted
    with pytest.raises(ValueError, match=f"{model.meta.filename}: .*{cure}"):
        undo(model)
    (file,) = write([model], tmp_path / "in")
    assert main(["undo", str(file), "--out", str(tmp_path / "out")]) == 1
    assert cure in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_reference_tile_without_sky_is_named():
    """All of it is sources for a mask that takes every pixel: there is nothing to make zero."""
    rng = np.random.default_rng(1)
    exposures = [
        Exposure.from_arrays(f"e{i}", rng.normal(i, 0.02, (48, 60)), to_sky(tan(shift=(20 * i, 0)))) for i in range(3)
    ]
    found = match_levels(exposures, LevelMatchOptions(reference="e1"))
    assert found.reference == ("e1",)
    np.testing.assert_allclose(found.level, [0, 1, 2], atol=0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bkgmatch.neighbourhoods.background_level", lambda *args, **kwargs: float("nan"))
        unknown = match_levels(exposures, LevelMatchOptions(reference="e1"))
    assert unknown.reference == ("e1, its own background unknown: all of it is sources",)
    np.testing.assert_allclose(unknown.level, [-1, 0, 1], atol=0.02)
    assert any("all of it is sources" in line for _, line in story(unknown, "MJy/sr", "subtracted"))
