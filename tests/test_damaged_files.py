"""Damaged files, thousands of them: a clear error that names the file, the right answer, or a named status."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs.utils import fit_wcs_from_points
from builders import rewrite, spoil
from common import few, slow
from damage import (
    CLEAR_ERROR,
    KINDS,
    LEVELS,
    LITTLE,
    NAMED_STATUS,
    OTHERS_RIGHT,
    PLANES,
    RIGHT_ANSWER,
    SIDE,
    Unchanged,
    are_whole,
    damage,
    damaged_set,
    error_of,
    limited,
    number_of,
    plain,
)
from ledger import note
from mrs import each, records, status
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.cli import main

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

DAMAGED = 1
"""Number of the exposure that is damaged."""


class Suite(NamedTuple):
    """A step, and how its statuses are called."""

    step: type
    status: str
    options: dict

    def run(self, inputs, **options):
        return self.step.call(inputs, **{**self.options, "subtract": True, **options})


SUITES = {
    "SkyMatchStep": Suite(SkyMatchStep, "skymatch", {}),
    "LevelMatchStep": Suite(LevelMatchStep, "level_match", {}),
    "LevelMatchStep, planes": Suite(LevelMatchStep, "level_match", PLANES),
    "ImageForImageStep": Suite(ImageForImageStep, "image_for_image", {"maxiters": 1}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return damaged_set(tmp_path_factory.mktemp("whole"))


def copies(files, folder):
    folder.mkdir(parents=True)
    return [Path(shutil.copy(file, folder)) for file in files]


def arrays_of(library):
    """What is left of each exposure: number, status of all steps, data and flags."""
    with library:
        return list(
            library.map_function(
                lambda m, _: (number_of(m.meta.filename), m.meta.cal_step.instance, np.array(m.data), np.array(m.dq)),
                modify=False,
            )
        )


def part_changed(file, other):
    """Part of the image that damage has changed."""
    now, then = plain(file), plain(other)
    if now is None or now.shape != then.shape:
        return 1.0
    return float(np.mean(now.view("u4") != then.view("u4"))) if now.dtype == then.dtype else 1.0


def check(found, status, files, whole):
    """Assert that levels are right, or statuses named; return which."""
    matched = {}
    for number, steps, data, dq in found:
        before = plain(files[number])
        usable = np.isfinite(before) & (np.abs(before) < 1e30)
        assert np.isfinite(data[usable]).all()
        assert steps.get(status) in ("COMPLETE", "SKIPPED")
        if steps[status] == "SKIPPED":
            np.testing.assert_array_equal(data, before)
        else:
            matched[number] = float(np.median(data[np.isfinite(data) & (dq % 2 == 0)]))
    is_spoilt = part_changed(files[DAMAGED], whole[DAMAGED]) > LITTLE
    left = [level for number, level in matched.items() if not (is_spoilt and number == DAMAGED)]
    assert np.ptp(left) < 0.02 if left else True, matched
    if len(matched) < len(files):
        return NAMED_STATUS
    return OTHERS_RIGHT if is_spoilt else RIGHT_ANSWER


def trial(suite, files, whole, out, **options):
    """Run a step on files of which one is damaged; return how it ended."""
    unchanged = Unchanged(files)
    found = []
    message = error_of(lambda: found.append(suite.run([str(f) for f in files], **options)), files[DAMAGED].name)
    ended = CLEAR_ERROR if message else check(arrays_of(found[0]), suite.status, files, whole)
    are_whole(out)
    unchanged.check()
    return ended


def noted(kind, ended):
    note("faults", kind, ended)


# --------------------------------------------------------------------------------------------------- damaged bytes


@pytest.mark.parametrize(("name", "kind", "seed"), few(12, product(SUITES, KINDS, range(1, 12))))
def test_damaged_bytes(whole, tmp_path, name, kind, seed):
    files = copies(whole, tmp_path / "in")
    damage(files[DAMAGED], kind, seed)
    noted(kind, trial(SUITES[name], files, whole, tmp_path / "out"))


# ------------------------------------------------------------------------------------------ extensions and metadata


def replaced(name, change):
    """Replace the data of an extension by a function of it."""

    def do(path):
        rewrite(path, lambda hdus: setattr(hdus[name], "data", change(hdus[name].data)))

    return do


def removed(name):
    return lambda path: rewrite(path, lambda hdus: hdus.pop(hdus.index_of(name)))


def as_table(name):
    def change(hdus):
        place = hdus.index_of(name)
        hdus[place] = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.ones(3))], name=name)

    return lambda path: rewrite(path, change)


def without_cards(*keywords):
    """Without cards, and what the tree of the file has of them."""

    def change(hdus):
        for hdu in hdus:
            for keyword in keywords:
                hdu.header.remove(keyword, ignore_missing=True, remove_all=True)

    return lambda path: rewrite(path, change)


def with_meta(name, value):
    def change(model):
        *names, last = name.split(".")
        node = model.meta.instance
        for word in names:
            node = node.setdefault(word, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value

    return lambda path: spoil(path, change)


def with_card(extension, keyword, value):
    return lambda path: rewrite(path, lambda hdus: hdus[extension].header.set(keyword, value))


STRUCTURE = {
    **{f"no {name}": removed(name) for name in ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "ASDF")},
    **{f"empty {name}": replaced(name, lambda data: None) for name in ("SCI", "ERR", "DQ", "VAR_RNOISE")},
    **{f"{name} is a table": as_table(name) for name in ("SCI", "ERR", "DQ")},
    "no bytes in ASDF": replaced("ASDF", lambda data: data[:0]),
    "SCI with one dimension": replaced("SCI", lambda data: data.ravel()),
    "SCI with three dimensions": replaced("SCI", lambda data: np.stack([data, data])),
    "SCI of another shape": replaced("SCI", lambda data: data[:-3]),
    "SCI of NaN": replaced("SCI", lambda data: data * np.nan),
    "SCI of whole numbers": replaced("SCI", lambda data: np.rint(data).astype("i4")),
    "DQ of float": replaced("DQ", lambda data: data.astype("f4")),
    "DQ of NaN": replaced("DQ", lambda data: data * np.float32(np.nan)),
    "DQ of negative numbers": replaced("DQ", lambda data: data.astype("i4") - 1),
    "DQ of bytes": replaced("DQ", lambda data: data.astype("u1")),
    "DQ of large numbers": replaced("DQ", lambda data: data.astype("i8") + 2**40),
    "DQ of huge numbers": replaced("DQ", lambda data: data.astype("f8") + 1e300),
    "DQ of another shape": replaced("DQ", lambda data: data[:, :-1]),
    "DQ with one dimension": replaced("DQ", lambda data: data[0]),
    "ERR of another shape": replaced("ERR", lambda data: data[:, :-1]),
    "ERR of one number": replaced("ERR", lambda data: data[:1, :1]),
    "VAR_RNOISE of another shape": replaced("VAR_RNOISE", lambda data: data[:, :-1]),
    **{
        f"{name} of {what}": replaced(name, lambda data, value=value: np.full_like(data, value))
        for name in ("ERR", "VAR_RNOISE")
        for what, value in (("zeros", 0), ("NaN", np.nan), ("1e30", 1e30), ("1e-30", 1e-30), ("negative", -1.0))
    },
    "no BUNIT": without_cards("BUNIT"),
    "another BUNIT": with_card("SCI", "BUNIT", "DN/s"),
    "BUNIT without meaning": with_card("SCI", "BUNIT", "bananas"),
    "BUNIT that is a number": with_card("SCI", "BUNIT", 7),
    "no cards": without_cards(
        "FILENAME", "TELESCOP", "INSTRUME", "DETECTOR", "FILTER", "CHANNEL", "MODULE", "EXP_TYPE"
    ),
    **{
        f"no {name}": with_meta(name, None)
        for name in ("filename", "telescope", "wcs", "wcsinfo", "exposure", "instrument", "observation", "bunit_data")
    },
    **{f"no {name}": with_meta(f"instrument.{name}", None) for name in ("detector", "filter", "channel", "module")},
    "time that is no number": with_card("PRIMARY", "EXPMID", "noon"),
    "another DATAMODL": with_card("PRIMARY", "DATAMODL", "CubeModel"),
    "unknown DATAMODL": with_card("PRIMARY", "DATAMODL", "PotatoModel"),
    "level of NaN": with_card("SCI", "BKGLEVEL", "nan"),
    "level that is text": with_card("SCI", "BKGLEVEL", "high"),
}
CHEAP = ("no SCI", "no ERR", "no DQ", "no ASDF", "empty SCI", "DQ of float", "DQ of another shape", "ERR of zeros")


def spread(names, kinds, cheap):
    """Pairs of all; those of the cheap kinds are tried in turns by one of the names in every run, others are slow."""
    fast = {(list(names)[k % len(names)], kind) for k, kind in enumerate(cheap)}
    every = [(name, kind) for name in names for kind in kinds]
    return [pair if pair in fast else pytest.param(*pair, marks=pytest.mark.slow) for pair in every]


@pytest.mark.parametrize(("name", "kind"), spread(SUITES, STRUCTURE, CHEAP))
def test_missing_and_strange_extensions(whole, tmp_path, name, kind):
    files = copies(whole, tmp_path / "in")
    STRUCTURE[kind](files[DAMAGED])
    ended = trial(SUITES[name], files, whole, tmp_path / "out")
    noted("extensions and metadata", ended)


# ------------------------------------------------------------------------------------------------------------ values


def some(part, value):
    def change(data):
        data = np.array(data)
        data[np.random.default_rng(3).random(data.shape) < part] = value
        return data

    return change


VALUES = {
    **{
        f"{100 * part:g} % of {value:g}": some(part, value)
        for part in (0.01, 0.05)
        for value in (1e30, -1e30, 3e38, -3e38, 1e-40, np.inf, -np.inf, np.nan)
    },
    "half of NaN": some(0.5, np.nan),
    "all identical": lambda data: np.full_like(data, 3.0),
    "all zero": lambda data: np.zeros_like(data),
    "all denormal": lambda data: np.full_like(data, 1e-40),
    "all 1e30": lambda data: np.full_like(data, 1e30),
    "all 3e38": lambda data: np.full_like(data, 3e38),
    "all infinite": lambda data: np.full_like(data, np.inf),
}


FEW_VALUES = ("5 % of 1e+30", "1 % of inf", "5 % of 1e-40", "1 % of 3e+38", "all zero")


@pytest.mark.parametrize(("name", "kind"), spread(SUITES, VALUES, FEW_VALUES))
def test_strange_values(whole, tmp_path, name, kind):
    if name == "SkyMatchStep" and kind in ("all 1e30", "all 3e38"):
        pytest.skip("its level takes all digits from the others; their errors say so (tests of match_skies)")
    files = copies(whole, tmp_path / "in")
    replaced("SCI", VALUES[kind])(files[DAMAGED])
    noted("values", trial(SUITES[name], files, whole, tmp_path / "out"))


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def made(whole, tmp_path_factory):
    """Results and tables of two steps, images without gwcs, and the level of each exposure in the tables."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CRDS_PATH", "CRDS_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        for name in ("SkyMatchStep", "LevelMatchStep, planes"):
            out = folder / name.partition("Step")[0]
            given = {"save_results": True, "output_dir": str(out), "save_table": str(folder / f"{out.name}.ecsv")}
            SUITES[name].run([str(file) for file in whole], **given)
    (folder / "images").mkdir()
    for file in whole:
        without_gwcs(file, folder / "images" / file.name)
    return folder


def without_gwcs(file, path):
    """Write the image of an exposure with a FITS WCS."""
    with datamodels.open(file) as model:
        corners = np.array([[0, 0], [SIDE - 1, 0], [SIDE - 1, SIDE - 1], [0, SIDE - 1], [31, 31], [20, 40], [50, 10]])
        sky = SkyCoord(*model.meta.wcs(*corners.T), unit="deg")
        header = fit_wcs_from_points(corners.T, sky).to_header()
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(model.data, header, name="SCI"), fits.ImageHDU(model.err, name="ERR")]
        hdus[1].header["BUNIT"] = "MJy/sr"
        fits.HDUList(hdus).writeto(path)


def medians(files):
    return [float(np.nanmedian(plain(file))) for file in files]


def check_flat(out, files):
    """All that are matched are left at one level."""
    made = [out / file.name for file in files]
    assert np.ptp(medians([file for file in made if not is_skipped(file)])) < 0.02


def is_skipped(file):
    with limited():
        return fits.getval(file, "S_LVLMAT") == "SKIPPED" if "S_LVLMAT" in fits.getheader(file) else False


def check_page(out, files):
    assert out.with_suffix(".html").read_text().endswith("</html>\n")


def check_association(out, files):
    (product,) = json.loads(out.with_suffix(".json").read_text())["products"]
    members, names = [Path(member["expname"]).name for member in product["members"]], [file.name for file in files]
    assert [member for member in members if member in names] == names
    assert len(members) == len(LEVELS)


def check_undone(out, files):
    others = [file for file in files if number_of(file.name) != DAMAGED]
    added = np.subtract(medians([out / file.name for file in others]), medians(others))
    assert np.ptp(added - [LEVELS[number_of(file.name)] for file in others]) < 0.02


class Command(NamedTuple):
    """Arguments of a command, the folder of its files, and what its result must be."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    folder: str
    check: Callable


COMMANDS = {
    "level": Command(("level",), ("--out", "{out}"), "images", check_flat),
    "level, JWST": Command(("level",), ("--out", "{out}", "--fit_type", "level+slope"), "", check_flat),
    "apply": Command(("apply", "{made}/SkyMatch.ecsv"), ("--out", "{out}"), "", check_flat),
    "apply, planes": Command(("apply", "{made}/LevelMatch.ecsv"), ("--out", "{out}"), "", check_flat),
    "undo": Command(("undo",), ("--out", "{out}"), "SkyMatch", check_undone),
    "undo, planes": Command(("undo",), ("--out", "{out}"), "LevelMatch", check_undone),
    "report": Command(("report", "{made}/SkyMatch.ecsv"), ("--out", "{out}.html"), "", check_page),
    "asn": Command(("asn",), ("--product", "mosaic", "--out", "{out}.json"), "", check_association),
}
"""Each leaves the exposures alike, or gives back their levels."""


def command_files(name, made, whole, folder):
    given = sorted((made / COMMANDS[name].folder).glob("*.fits")) if COMMANDS[name].folder else whole
    return copies(given, folder), given


def command_trial(name, files, given, made, tmp_path, capsys):
    """Run a command on files of which one is damaged; return how it ended."""
    command, out = COMMANDS[name], tmp_path / "out"
    words = {"made": made, "out": out}
    before, after = ([word.format(**words) for word in part] for part in (command.before, command.after))
    unchanged = Unchanged(files)
    capsys.readouterr()
    with limited():
        code = main([*before, *map(str, files), *after])
    message = capsys.readouterr().err
    unchanged.check()
    are_whole(out)
    if code:
        assert code == 1
        assert files[DAMAGED].name in message, message
        assert not list(out.rglob("*")) if out.exists() else True
        return CLEAR_ERROR
    is_spoilt = part_changed(files[DAMAGED], given[DAMAGED]) > LITTLE
    command.check(out, [file for file in files if not (is_spoilt and file == files[DAMAGED])])
    copy = out / files[DAMAGED].name
    if copy.exists() and is_skipped(copy):
        return NAMED_STATUS
    return OTHERS_RIGHT if is_spoilt else RIGHT_ANSWER


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "kind"), spread(COMMANDS, KINDS, KINDS))
@pytest.mark.slow
def test_commands_on_damaged_bytes(whole, made, tmp_path, capsys, name, kind, seed):
    files, given = command_files(name, made, whole, tmp_path / "in")
    if kind.endswith("ASDF") and COMMANDS[name].folder == "images":
        kind = kind.replace("ASDF", "headers")
    damage(files[DAMAGED], kind, seed)
    noted(kind, command_trial(name, files, given, made, tmp_path, capsys))


OF_IMAGES = [kind for kind in STRUCTURE if "DQ" not in kind and not kind.startswith(("no ", "empty VAR", "VAR"))]


NOT_COPIED = ("level, JWST", "empty VAR_RNOISE")


@pytest.mark.parametrize(
    ("name", "kind"), [NOT_COPIED, *(slow(case) for case in product(COMMANDS, STRUCTURE) if case != NOT_COPIED)]
)
def test_commands_on_strange_extensions(whole, made, tmp_path, capsys, name, kind):
    files, given = command_files(name, made, whole, tmp_path / "in")
    if COMMANDS[name].folder == "images" and kind not in OF_IMAGES:
        return
    STRUCTURE[kind](files[DAMAGED])
    noted("extensions and metadata", command_trial(name, files, given, made, tmp_path, capsys))


# --------------------------------------------------------------------------------------------------------------- MRS


def mrs_coefficients(files, **options):
    """Polynomials and statuses of channel 1."""
    models = each(MRSIMatchStep.call([str(file) for file in files], channel=["1"], **options))
    return [records(model).get("1", {}).get("coefficients") for model in models], status(models), positions(models)


def positions(models):
    return np.array([np.nan_to_num(model.meta.wcs(*np.mgrid[100:400:50, 10:60:10])) for model in models])


@pytest.fixture(scope="module")
def mrs_answer(dither_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        return mrs_coefficients(dither_files)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_damaged_bytes_of_slices(dither_files, mrs_answer, tmp_path, kind, seed):
    files = copies(dither_files, tmp_path / "in")
    damage(files[DAMAGED], kind, seed)
    unchanged, found = Unchanged(files), []
    message = error_of(lambda: found.append(mrs_coefficients(files, in_memory=seed % 2 == 0)), files[DAMAGED].name)
    unchanged.check()
    if message:
        noted(kind, CLEAR_ERROR)
        return
    (polynomials, words, places), (expected, _, expected_places) = found[0], mrs_answer
    assert set(words) <= {"COMPLETE", "SKIPPED"}
    assert all(np.isfinite(c).all() for c in polynomials if c is not None)
    if words == ["COMPLETE"] * 3 and np.allclose(places, expected_places, rtol=0, atol=1e-7):
        assert part_changed(files[DAMAGED], dither_files[DAMAGED]) < LITTLE
        differences = [ours[0] - theirs[0] for ours, theirs in zip(polynomials, expected, strict=True)]
        assert np.ptp(differences) < 0.1
    noted(kind, RIGHT_ANSWER if words == ["COMPLETE"] * 3 else NAMED_STATUS)
