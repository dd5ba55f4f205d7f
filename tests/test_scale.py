"""All four steps: the same answers here, in threads and on clusters, in memory and in files, in any order."""

import pytest
from builders import digest
from clusters import command_line_cluster
from scale import agree, outcome, same

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

SLOW = pytest.mark.slow
EACH = ("sky", "level", "cals", "spectra")
MORE = ("difference", "exact", "planes", "fixed", "Lyot", "rates", "channels")
THREADS, DISK, DASK = {"maximum_cores": "2"}, {"in_memory": False}, {"dask_scheduler": "local"}
COMMAND_LINE = {"dask_scheduler": "command line"}
MODES = {
    "threads": ("files", THREADS),
    "disk": ("association", DISK),
    "dask": ("shuffled", DASK),
}
MORE_MODES = {
    "shuffled": ("shuffled", {}),
    "models": ("models", {}),
    "library": ("library", {}),
    "association": ("association", {}),
    "threads, disk, shuffled": ("shuffled", THREADS | DISK),
    "threads, models, disk": ("models", THREADS | DISK),
    "dask, files": ("files", DASK),
    "dask, disk": ("association", DASK | DISK),
    "dask, models": ("models", DASK),
    "dask, library, disk": ("library", DASK | DISK),
    "command line": ("association", COMMAND_LINE),
    "command line, files, disk": ("files", COMMAND_LINE | DISK),
    "command line, models": ("models", COMMAND_LINE),
    "command line, shuffled": ("shuffled", COMMAND_LINE),
}


@pytest.fixture(scope="module")
def command_line(tmp_path_factory):
    with command_line_cluster(tmp_path_factory.mktemp("dask") / "elsewhere") as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def serial(scale_data, tmp_path_factory):
    """A function that gives the case of a name, and what comes out of it in the calling thread, in memory."""
    known = {}

    def of(name):
        if name not in known:
            case = scale_data.case(name)
            known[name] = case, outcome(case, case.given("files", None), tmp_path_factory.mktemp("serial"))
        return known[name]

    return of


# rates in memory have no files beside which their WCS might be
QUICK = [("level", "dask"), ("sky", "threads"), ("level", "disk")]
EVERY = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=[] if (name, mode) in QUICK else SLOW)
    for name in (*EACH, *MORE)
    for mode in (*MODES, *MORE_MODES)
    if not (name == "rates" and ("models" in mode or "library" in mode))
]


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_the_answers_are_the_same(name, mode, serial, offline, tmp_path, request):
    """And inputs stay as they are, and nothing is left behind."""
    case, expected = serial(name)
    how, options = (MODES | MORE_MODES)[mode]
    kind = options.get("dask_scheduler")
    if kind:
        address = request.getfixturevalue("local_cluster" if kind == "local" else "command_line")
        options = options | {"dask_scheduler": address}
    given, before = case.given(how, tmp_path), digest(case.files)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    found = outcome(case, given, offline, temp_dir=str(temporary), **options)
    agree(found, expected)
    if how != "shuffled":
        same(found, expected)
    del given
    assert digest(case.files) == before
    assert list(offline.iterdir()) == []
    assert list(temporary.iterdir()) == []
