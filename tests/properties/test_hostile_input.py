"""Whatever bytes and words come in: a clear error, or the right answer; inputs stay as they are, nothing hangs."""

import json
import math
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from builders import association, described, digest, write
from hostile import VALUES, WORDS, command, limited, small_models, writes_only
from hypothesis import assume, given
from hypothesis import strategies as st
from ledger import note
from stpipe.config_parser import ValidationError

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.masks import read_mask, read_regions
from bkgmatch.mosaics import read_mosaic, read_source_mask
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.steps.inputs import check_inputs

# What readers of other packages warn of before they fail; the user sees both.
pytestmark = [
    pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning"),
    pytest.mark.filterwarnings("ignore:.*YAML:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Input association file contains path information"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*masked element"),
]
NAMES = [model.meta.filename for model in small_models()]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """An empty current directory, and no CRDS."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CRDS_PATH", "CRDS_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    """Two exposures of 8 x 8 pixels, their association, and a table of their levels."""
    folder = tmp_path_factory.mktemp("unspoilt")
    files = write(small_models(), folder)
    association(files)
    SkyMatchStep.call([str(file) for file in files], save_table=str(folder / "levels.ecsv"))
    return folder


@contextmanager
def spoilt(unspoilt):
    """A folder of copies that may be spoilt."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "a" / "b" / "inputs"
        shutil.copytree(unspoilt, place)
        yield place


def edits(content):
    """Bytes with parts that are replaced, taken out, doubled or put in."""
    places = st.integers(0, len(content))
    marks = st.sampled_from(
        [b"\0", b"\xff", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"!", b"&a", b"*a", b"#", b"\n", b" "]
    )
    edit = st.tuples(places, st.integers(0, 40), st.one_of(marks, st.binary(max_size=8), st.just(b"-1e999")))

    def edited(changes):
        text = content
        for place, cut, new in changes:
            text = text[:place] + new + text[place + cut :]
        return text

    return st.lists(edit, min_size=1, max_size=4).map(edited)


# -------------------------------------------------------------------------------------------------- skylists

NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.sampled_from(["nan", "-inf", "1e999", "", "0x1", "1,5"])
)
LINES = st.one_of(
    st.tuples(st.sampled_from(NAMES), NUMBERS).map(" ".join),
    st.tuples(st.sampled_from(NAMES), st.floats(-1e6, 1e6).map(repr)).map(" ".join),
    st.sampled_from(["", "# a comment", *WORDS]),
    st.text(max_size=20),
)
GOOD = st.permutations([f"{name} {level}" for name, level in zip(NAMES, (1.5, -2.5), strict=True)])


def levels_of(text):
    """Levels of a list, as its page describes it; None if it is to be refused."""
    found = {}
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            name, level = words
            level = float(level)
        except ValueError:
            return None
        if name in found or not math.isfinite(level):
            return None
        found[name] = level
    return [found[name] for name in NAMES] if found.keys() == set(NAMES) else None


@given(st.one_of(st.lists(LINES, max_size=4), GOOD, st.tuples(LINES, GOOD).map(lambda parts: [parts[0], *parts[1]])))
def test_a_skylist_is_read_rightly_or_named(lines):
    text = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder, limited():
        path = Path(folder) / "sky.txt"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            library = SkyMatchStep.call(small_models(), skymethod="user", skylist=str(path))
        except (ValueError, FileNotFoundError) as error:
            assert levels_of(text) is None
            assert "sky.txt" in str(error)
            note("fuzz", "skylist", "clear error")
            return
    with library:
        found = list(library.map_function(lambda model, _: model.meta.background.level, modify=False))
    assert found == levels_of(text)
    note("fuzz", "skylist", "right answer")


# -------------------------------------------------------------------------------------------------- associations


def places_of(tree, path=()):
    """Paths of all values of a tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places_of(value, (*path, key))


def put(tree, path, value):
    """Copy of a tree, with a value in a place."""
    if not path:
        return value
    tree = tree.copy()
    tree[path[0]] = put(tree[path[0]], path[1:], value)
    return tree


@given(st.data())
def test_an_association_of_any_values_is_read_rightly_or_named(unspoilt, data):
    path = unspoilt / "fuzzed.json"
    content = json.loads((unspoilt / "asn.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places_of(content))))
        content = put(content, place, data.draw(st.sampled_from(VALUES)))
    path.write_text(json.dumps(content))
    try:
        with writes_only(unspoilt):
            found = check_inputs(str(path))
    except (ValueError, FileNotFoundError) as error:
        assert any(word in str(error) for word in (path.name, "inputs do not exist", "more than once", "null"))
        note("fuzz", "association, any value", "clear error")
    else:
        assert found == [(unspoilt / member["expname"]).resolve() for member in content["products"][0]["members"]]
        note("fuzz", "association, any value", "right answer")


@given(st.data())
def test_an_association_of_any_bytes_is_read_rightly_or_named(unspoilt, data):
    path = unspoilt / "fuzzed.json"
    path.write_bytes(data.draw(edits((unspoilt / "asn.json").read_bytes())))
    try:
        with writes_only(unspoilt):
            found = check_inputs(str(path))
    except (ValueError, FileNotFoundError) as error:
        assert any(word in str(error) for word in (path.name, "inputs do not exist", "more than once"))
        note("fuzz", "association, any bytes", "clear error")
    else:
        assert {file.parent for file in found} <= {unspoilt}
        note("fuzz", "association, any bytes", "right answer")


# -------------------------------------------------------------------------------------------------- tables


@given(st.data())
def test_a_table_of_any_bytes_is_read_rightly_or_named(unspoilt, data):
    text = data.draw(edits((unspoilt / "levels.ecsv").read_bytes()))
    with spoilt(unspoilt) as folder:
        table = folder / "levels.ecsv"
        table.write_bytes(text)
        with writes_only(folder.parents[1], folder.parent / "out"):
            code, out, told = command("skylist", table)
            command("apply", table, folder / NAMES[0], "--out", folder.parent / "out")
    if code == 1:
        assert out == ""
        assert "levels.ecsv" in told or "cannot stand in a skylist" in told
        note("fuzz", "table, any bytes", "clear error")
        return
    rows = [line.replace('"', "") for line in text.decode().splitlines() if not line.startswith("#")]
    for line in out.splitlines():
        name, level = line.split()
        assert math.isfinite(float(level))
        assert any(name.replace('"', "") in row for row in rows)
    note("fuzz", "table, any bytes", "right answer")


# -------------------------------------------------------------------------------------------------- masks, regions

SHAPES = (
    "circle",
    "-circle",
    "polygon",
    "box",
    "ellipse",
    "annulus",
    "point",
    "line",
    "panda",
    "icrs",
    "image",
    "global",
)
PARTS = st.sampled_from(
    ["53.1", "-27.8", "nan", "1e400", "-1", "0", '10"', "a", "1d", "5:00:00", "", "__import__('os')"]
)
REGIONS = st.tuples(st.sampled_from(SHAPES), st.lists(PARTS, max_size=6)).map(lambda s: f"{s[0]}({','.join(s[1])})")


@given(st.lists(st.one_of(REGIONS, st.sampled_from(["icrs", "galactic", *WORDS])), max_size=5))
def test_regions_are_finite_or_named(lines):
    with tempfile.TemporaryDirectory() as folder, writes_only(folder, Path(folder) / "sky.reg"):
        path = Path(folder) / "sky.reg"
        path.write_bytes("\n".join(["icrs", *lines]).encode("utf-8", "surrogatepass"))
        try:
            regions = read_regions(str(path))
        except ValueError as error:
            assert "sky.reg" in str(error)
            note("fuzz", "regions", "clear error")
            return
    centers = [region.center.spherical for region in regions if hasattr(region, "center")]
    assert all(np.isfinite([center.lon.deg, center.lat.deg]).all() for center in centers)
    note("fuzz", "regions", "right answer")


IMAGES = {
    "mask": lambda path: read_mask(path, (8, 8)).shape,
    "mosaic": lambda path: read_mosaic(path).image.shape,
    "source mask": lambda path: read_source_mask(path).image.shape,
}


@pytest.mark.parametrize("kind", IMAGES)
@given(data=st.data())
def test_an_image_of_any_bytes_has_the_shape_or_is_named(unspoilt, kind, data):
    content = (unspoilt / NAMES[0]).read_bytes()
    with spoilt(unspoilt) as folder:
        path = folder / "mask.fits"
        cut = data.draw(st.sampled_from([2880, 5760, 8640, 23040, len(content)]))
        path.write_bytes(data.draw(edits(content[:cut])))
        try:
            with writes_only(folder):
                assert IMAGES[kind](path) == (8, 8)
        except ValueError as error:
            assert "mask.fits" in str(error)
            note("fuzz", f"{kind}, any bytes", "clear error")
        else:
            note("fuzz", f"{kind}, any bytes", "right answer")


# -------------------------------------------------------------------------------------------------- parameter files


@given(st.data())
def test_a_parameter_file_of_any_bytes_is_read_or_refused(unspoilt, data):
    """The reader is stpipe's; what it lets through must still be parameters that the step has."""
    path = unspoilt / "pars.asdf"
    SkyMatchStep().export_config(path)
    path.write_bytes(data.draw(edits(path.read_bytes())))
    with writes_only(unspoilt, path):
        try:
            step = SkyMatchStep.from_config_file(str(path))
        except Exception:  # of stpipe, asdf, yaml and configobj
            note("fuzz", "parameter file, any bytes", "refused by stpipe")
            return
    assert isinstance(step.skymethod, str)
    assert isinstance(step.nclip, int)
    assert step.nclip >= 0
    note("fuzz", "parameter file, any bytes", "read")


# -------------------------------------------------------------------------------------------------- commands

COMMANDS = ("asn", "pars", "level", "apply", "report", "undo", "skylist")
OPTIONS = (
    "--out", "--product", "--save_table", "--save_plots", "--fixed", "--maximum_cores", "--fit_type", "--sigma",
    "--npixels", "--help", "--version", "--nonsense", "--reference", "--pixel_scale_ratio", "--do_sigma_clip",
    "--no-do_sigma_clip",
)  # fmt: skip
PLACES = (
    "inputs/levels.ecsv",
    "inputs/asn.json",
    f"inputs/{NAMES[0]}",
    f"inputs/{NAMES[1]}",
    "inputs",
    "out",
    "no/where",
)
ARGUMENTS = st.one_of(
    st.sampled_from(PLACES),
    st.sampled_from(PLACES),
    st.sampled_from(OPTIONS),
    st.sampled_from([w for w in WORDS if w[:1] != "/"]),
)


@given(st.sampled_from(COMMANDS), st.lists(ARGUMENTS, max_size=6))
def test_a_command_of_any_words_ends_with_its_code_and_changes_no_input(unspoilt, name, words):
    with spoilt(unspoilt) as folder, pytest.MonkeyPatch.context() as patch, limited(120):
        patch.chdir(folder.parent)
        given_files = sorted(folder.iterdir())
        before = digest(given_files)
        code, _, told = command(name, *words)
        assert digest(given_files) == before
    note("fuzz", f"bkgmatch {name}", {0: "right answer", 1: "clear error", 2: "usage"}[code])
    assert told or code == 0


# -------------------------------------------------------------------------------------------------- options

STEPS = {
    SkyMatchStep: SkyMatchOptions, LevelMatchStep: LevelMatchOptions, MRSIMatchStep: MRSIMatchOptions,
    ImageForImageStep: ImageForImageOptions,
}  # fmt: skip
NUMBERS_OF_OPTIONS = (float("nan"), float("inf"), -float("inf"), -1, -1e300, 0, 1e-300, 1e300, None)


@given(
    st.sampled_from([(kind, name) for kind in STEPS.values() for name in kind.__dataclass_fields__]),
    st.sampled_from(NUMBERS_OF_OPTIONS),
)
def test_numbers_that_are_no_options_are_named(which, value):
    kind, name = which
    try:
        kind(**{name: value})
    except ValueError as error:
        assert name in str(error)
        note("fuzz", "options, any number", "clear error")
    else:
        note("fuzz", "options, any number", "accepted")


ENDLESS = [
    (LevelMatchOptions, "pixel_scale_ratio"), (MRSIMatchOptions, "cell_size"), (ImageForImageOptions, "kernel_fwhm"),
    (SkyMatchOptions, "binwidth"), (MRSIMatchOptions, "bkg_degree"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), ENDLESS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, -1e-9, None])
def test_numbers_with_which_arrays_would_have_no_end_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} must (be|not be)"):
        kind(**{name: value})
    note("fuzz", "options, any number", "clear error")


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_limits_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a number or None"):
        SkyMatchOptions(**{name: float("nan")})
    note("fuzz", "options, any number", "clear error")


def test_no_limit_of_clipping_on_images_without_scatter():
    library = SkyMatchStep.call(small_models(), lsigma=float("inf"), usigma=float("inf"))
    with library:
        assert list(library.map_function(lambda model, _: model.meta.background.level, modify=False)) == [0.0, 1.0]
    note("fuzz", "option of a step", "right answer")


OF_SKY = sorted(
    described(SkyMatchStep).keys() - {"suffix", "output_use_model", "report", "dask_scheduler", "in_memory"}
)


@given(st.sampled_from(OF_SKY), st.sampled_from([*WORDS, *NUMBERS_OF_OPTIONS, True, [], ["a"]]))
def test_any_value_of_an_option_is_named_or_gives_finite_levels(name, value):
    assume(name != "save_table" or "evil" not in str(value))  # it would be written there
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            with limited(120):
                library = SkyMatchStep.call(small_models(), **{name: value})
        except (ValueError, OSError, ValidationError) as error:
            assert name in str(error) or (isinstance(value, str) and value in str(error)), str(error)
            note("fuzz", "option of a step", "clear error")
            return
    with library:
        for model, index in zip(library, range(2), strict=True):
            level = model.meta.background.level
            assert level is None or np.isfinite(level)
            assert np.isfinite(model.data).all()
            library.shelve(model, index, modify=False)
    note("fuzz", "option of a step", "right answer")
