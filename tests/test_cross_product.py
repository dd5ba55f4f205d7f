"""Every step, given its exposures in every way, subtracting or not: the same numbers, metadata and headers."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import digest
from jwst.datamodels import ModelContainer, ModelLibrary
from ledger import note
from mrs import each
from scale import agree, same
from stdatamodels.jwst import datamodels

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

SLOW = pytest.mark.slow
ARRAYS = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat", "area")
LATER = {"DATE", "CHECKSUM", "DATASUM"}  # cards of the time of writing
OF_ASSOCIATION = {"ASNPOOL", "ASNTABLE"}  # cards of how exposures were given
# what jwst's libraries add to models (group_id, asn) goes with the container, not with the step
LATER_META = re.compile(r"meta\.(date|asn\.|group_id|wcs\b)|cal_logs|asdf_library|_fits_hash|history|extra_fits")
STEPS = {"sky": "sky", "level": "level", "planes": "planes", "spectra": "spectra", "cals": "cals"}


def opened(files):
    return [datamodels.open(file) for file in files]


WAYS = {
    "association": lambda case, folder: case.given("association", folder),
    "files": lambda case, folder: case.given("files", folder),
    "models": lambda case, folder: opened(case.files),
    "container": lambda case, folder: ModelContainer(opened(case.files)),
    "library of models": lambda case, folder: ModelLibrary(opened(case.files)),
    "library of an association": lambda case, folder: ModelLibrary(case.given("association", folder)),
    "library on disk": lambda case, folder: ModelLibrary(case.given("association", folder), on_disk=True),
    "association, in_memory=False": lambda case, folder: case.given("association", folder),
    "files, in_memory=False": lambda case, folder: case.given("files", folder),
    "models, in_memory=False": lambda case, folder: opened(case.files),
}
IN_PLACE = ("library of models", "library of an association", "library on disk")


@dataclass
class Outcome:
    """What a run has told, changed and saved."""

    tables: dict
    models: dict
    files: dict
    order: list


def run(case, way, folder):
    """Outcome of a run; inputs in files stay as they are, models too, and libraries are changed."""
    folder.mkdir()
    (folder / "given").mkdir()
    before = digest(case.files)
    given = WAYS[way](case, folder / "given")
    is_of_models = (isinstance(given, list) and not isinstance(given[0], str)) or isinstance(given, ModelContainer)
    models = [told(model) for model in given] if is_of_models else []
    options = {"in_memory": False, "temp_dir": str(folder)} if "in_memory" in way else {}
    out = folder / "out"
    table = folder / "table.ecsv"
    result = case.run(given, save_table=str(table), save_results=True, output_dir=str(out), **options)
    if is_of_models:
        for old, new in zip(models, [told(model) for model in given], strict=True):
            same(old, new)
    assert (result is given) == (way in IN_PLACE)
    found = Outcome(
        {path.name: contents(path) for path in sorted(folder.glob("*.ecsv"))},
        {model.meta.filename: told(model) for model in each(result)},
        {path.name: saved(path) for path in sorted(out.glob("*.fits"))},
        [model.meta.filename for model in each(result)],
    )
    assert digest(case.files) == before
    assert len(found.files) >= len(case.files)
    return found


def contents(path):
    """Columns and metadata of a table."""
    table = Table.read(path)
    columns = {name: np.array(table[name]) for name in table.colnames}
    units = {name: str(table[name].unit) for name in table.colnames}
    return {"columns": columns, "units": units, "meta": dict(table.meta)}


def told(model):
    """Arrays, metadata, cards and history of a model."""
    arrays = {name: np.array(getattr(model, name)) for name in ARRAYS if getattr(model, name, None) is not None}
    meta = {key: value for key, value in model.to_flat_dict(include_arrays=False).items() if not LATER_META.match(key)}
    extra = model.instance.get("extra_fits", {}).get("PRIMARY", {}).get("header", [])
    entries = model.instance.get("history", {})
    entries = entries.get("entries", []) if hasattr(entries, "get") else entries
    history = "".join("".join(entry["description"].split()) for entry in entries)  # headers break long lines
    return {"arrays": arrays, "meta": meta, "cards": [list(entry) for entry in extra], "history": history}


def saved(path):
    """Cards and arrays of a file."""
    with fits.open(path) as hdus:
        found = {}
        for hdu in hdus:
            if hdu.name != "ASDF":
                skipped = LATER | OF_ASSOCIATION
                cards = [
                    (c.keyword, c.value, c.comment) for c in hdu.header.cards if c.keyword and c.keyword not in skipped
                ]
                name = f"{hdu.name} {hdu.ver}"
                found[name] = {"cards": cards, **({} if hdu.data is None else {"data": np.array(hdu.data)})}
    with datamodels.open(path) as model:
        return {"hdus": found, "history": told(model)["history"], "wcs": model.meta.wcs is None}


@pytest.fixture(scope="module")
def expected(scale_data, tmp_path_factory):
    """A function that gives a case, and what comes out of it for an association, in memory."""
    known = {}

    def of(name, subtract):
        if (name, subtract) not in known:
            case = scale_data.case(name)
            case = replace(case, options=case.options | {"subtract": subtract})
            known[name, subtract] = case, run(case, "association", tmp_path_factory.mktemp("expected") / "run")
        return known[name, subtract]

    return of


FAST = [
    ("sky", True, "library on disk"),
    ("sky", True, "models"),
    ("planes", True, "container"),
]
EVERY = [
    pytest.param(
        name,
        subtract,
        way,
        id=f"{name}-{way}-{'' if subtract else 'not '}subtracted",
        marks=[] if (name, subtract, way) in FAST else SLOW,
    )
    for name in STEPS
    for subtract in (True, False)
    for way in WAYS
]


@pytest.mark.parametrize(("name", "subtract", "way"), EVERY)
def test_a_step_gives_the_same_however_it_is_given_the_exposures(name, subtract, way, expected, tmp_path):
    case, first = expected(name, subtract)
    found = run(case, way, tmp_path / "run")
    assert found.order == first.order
    for name, model in first.models.items():
        assert set(model["meta"]) ^ set(found.models[name]["meta"]) == set()
    for kind in ("tables", "models", "files"):
        agree(getattr(first, kind), getattr(found, kind), kind, rtol=0)
    note("cross-product", case.step.__name__, "equal answers, metadata and headers; inputs unchanged")


COEFFICIENTS = ("level", "slope_east", "slope_north", "sigma", "status", "coefficients")


@pytest.mark.parametrize("name", ["level", *(pytest.param(name, marks=SLOW) for name in STEPS if name != "level")])
def test_coefficients_do_not_depend_on_whether_they_are_subtracted(name, expected):
    (case, yes), (_, no) = expected(name, True), expected(name, False)
    for file, table in yes.tables.items():
        agree(table["columns"], no.tables[file]["columns"], rtol=0)
    before = {Path(file).name: datamodels.open(file) for file in case.files}
    for model, (old, new) in zip(
        before.values(), zip(no.models.values(), yes.models.values(), strict=True), strict=True
    ):
        for array in old["arrays"]:
            np.testing.assert_array_equal(old["arrays"][array], getattr(model, array))
        assert not np.array_equal(new["arrays"]["data"], model.data)
        model.close()
    note("cross-product", case.step.__name__, "subtract=False leaves the pixels, and finds the same coefficients")
