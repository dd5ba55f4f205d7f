"""Results that are kept for an interrupted run: fingerprints, files, and files that somebody has spoilt."""

import json
import os
import zipfile
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import pytest
import shapely
from common import POLE, tan, to_sky
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from bkgmatch import journal as module
from bkgmatch.cells import CutOut
from bkgmatch.differences import PairSums
from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure, Pixels, SpectralExposure
from bkgmatch.footprints import footprint
from bkgmatch.grids import common_grid
from bkgmatch.journal import Journal, file_digest, fingerprint
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.stored import Shelf

OPTIONS = (SkyMatchOptions, LevelMatchOptions, ImageForImageOptions, MRSIMatchOptions)


class Point(NamedTuple):
    x: object
    y: object


@dataclass(frozen=True)
class Pair:
    x: object
    y: object


@dataclass(frozen=True)
class Digested:
    x: object
    digest: str = ""


class Bound:
    def method(self, item):
        return item


def double(x):
    return 2 * x


def key(*values):
    try:
        return fingerprint(*values)
    except module._Unknown:
        return None


# -------------------------------------------------------------------------------------------------- fingerprints


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text().map(lambda s: f"str {s!r}\n")
NUMBERS = arrays_of.arrays(st.sampled_from(["<f4", "<f8", "<i4", "<u2", "?"]), arrays_of.array_shapes(max_side=3))
VALUES = st.recursive(
    PLAIN | NUMBERS,
    lambda some: (
        st.lists(some, max_size=3)
        | st.lists(some, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), some, max_size=2)
        | st.builds(Point, some, some)
        | st.builds(Pair, some, some)
    ),
    max_leaves=5,
)


def told(value):
    """A text that tells values apart, made without our code."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return ("tuple", *(("tuple", told(k), told(v)) for k, v in value.items()))  # a dict counts as its items
    if isinstance(value, Pair):
        return ("Pair", told(value.x), told(value.y))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(told, value))
    return (type(value).__name__, repr(value))


@given(VALUES, VALUES)
def test_two_values_have_one_fingerprint_only_if_they_are_the_same(one, two):
    assert (fingerprint(one) == fingerprint(two)) == (told(one) == told(two))
    assert fingerprint(one, two) != fingerprint((one, two))
    assert fingerprint(one) == fingerprint(one)


NEIGHBOURS = [
    (1, 2), (1, 1.0), (1, True), (0, False), (0.0, -0.0), (1, "1"), (None, "None"), ("", None), ([], ()), ([1], (1,)),
    ([[1], 2], [[1, 2]]), (["ab", "c"], ["a", "bc"]), (("a", ("b",)), (("a", "b"),)), ({"a": 1}, {"a": 2}),
    (np.float32(1), np.float64(1)), (np.zeros(4), np.zeros((2, 2))), (np.zeros(2), np.zeros(2, "<f4")),
    (np.zeros(4, "<f4"), np.zeros(4, "<i4")), (np.arange(4), np.arange(4)[::-1]), (np.float64(1), np.array([1.0])),
    (np.array([[1, 2], [3, 4.0]], order="F"), np.array([[1, 3], [2, 4.0]])),
    (shapely.Point(1, 2), shapely.Point(2, 1)), (shapely.box(0, 0, 1, 1), shapely.box(0, 0, 1, 2)),
    (double, file_digest), (partial(double, 1), partial(double, 2)), (partial(double), double),
    (partial(double, x=1), partial(double, 1)), (Point(1, 2), Pair(1, 2)), (Point(1, 2), (1, 2)),
    (Digested(1, "a"), Digested(1, "b")),
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), NEIGHBOURS, ids=range(len(NEIGHBOURS)))
def test_values_that_look_alike_are_told_apart(one, two):
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint([one], two) != fingerprint([two], one)


def test_the_place_of_an_array_in_memory_does_not_matter():
    image = np.arange(12.0).reshape(3, 4)
    assert fingerprint(image) == fingerprint(np.asfortranarray(image)) == fingerprint(np.repeat(image, 2, 1)[:, ::2])
    assert fingerprint(Digested(1, "a")) == fingerprint(Digested(2, "a")), "a digest stands for the rest"
    assert fingerprint(Shelf(None)) == fingerprint(Shelf(Path("/tmp")))


UNKNOWN = [
    object(), lambda: 1, Digested(1), Path("a"), {1}, [1, {2: object()}], partial(lambda x: x, 1), Bound(),
    Bound().method, np.array([object()]), np.array([{}, 1], dtype=object), 1j,
]  # fmt: skip


@pytest.mark.parametrize("value", UNKNOWN, ids=range(len(UNKNOWN)))
def test_what_has_no_content_is_never_found_again(value, tmp_path):
    """A method, or an array of objects, would count by its name or address alone."""
    assert Journal(tmp_path).key(double, value) is None
    assert Journal(tmp_path).key(partial(double, value), 1) is None


def test_the_version_enters(monkeypatch):
    before = fingerprint(1)
    monkeypatch.setattr(module, "version", lambda name: "9.9")
    assert fingerprint(1) != before


def others(options, field):
    """Other values of an option that are allowed."""
    hint, value = get_type_hints(options)[field.name], field.default
    choices = [c for c in get_args(hint) if isinstance(c, str)]
    if choices:
        return [c for c in choices if c != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return ["lowest", "mean"]
    return [3, 5] if value is None else [value + 1]


EVERY = [(kind, field) for kind in OPTIONS for field in fields(kind)]


@pytest.mark.parametrize(("kind", "field"), EVERY, ids=[f"{k.__name__}-{f.name}" for k, f in EVERY])
def test_each_option_changes_the_fingerprint(kind, field):
    keys = {fingerprint(partial(double, options=kind()))}
    for value in others(kind, field):
        keys.add(fingerprint(partial(double, options=replace(kind(), **{field.name: value}))))
    assert len(keys) == 1 + len(others(kind, field))


def exposure(**changes):
    wcs = to_sky(tan(*POLE))
    pixels = Pixels(np.zeros((20, 24)), np.ones((20, 24), bool))
    return replace(Exposure("a", lambda: pixels, wcs, digest="d"), **changes)


CHANGES = {
    "unit": lambda e: e.times(4.0),
    "another unit": lambda e: e.times(0.25),
    "unit twice": lambda e: e.times(4.0).times(4.0),
    "imager": lambda e: e.changed(double, "imager"),
    "Lyot": lambda e: e.changed(double, "Lyot field"),
    "limit": lambda e: e.changed(double, "within -inf, 5.0"),
    "limits, unit": lambda e: e.changed(double, "within -inf, 5.0").times(4.0),
    "content": lambda e: replace(e, digest="e"),
}


def test_each_change_of_an_exposure_changes_its_fingerprint():
    given = [exposure(), *(change(exposure()) for change in CHANGES.values())]
    assert len({fingerprint(e) for e in given}) == len(given)
    assert all(key(change(exposure(digest=""))) is None for change in list(CHANGES.values())[:-1])


def test_exposures_without_a_digest_are_measured_again():
    spectrum = SpectralExposure("a", double, (0, 0), (1, 2), 0.1)
    assert key(exposure(digest="")) is key(spectrum) is None
    assert key(replace(spectrum, digest="a")) != key(replace(spectrum, digest="b"))
    e = exposure()
    outline = footprint(e.read().good, e.wcs)
    assert key(replace(outline, exposure=e)) != key(outline)
    assert key(replace(outline, exposure=exposure(digest=""))) is None


# -------------------------------------------------------------------------------------------------- files


def kept(folder, result):
    """What comes back of a result."""
    journal = Journal(folder)
    journal.put("abcd", result)
    return Journal(folder).get("abcd")


def same(one, two):
    assert type(one) is type(two)
    if isinstance(one, np.ndarray | np.generic):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    elif isinstance(one, tuple | list):
        for a, b in zip(one, two, strict=True):
            same(a, b)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            same(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, float) and np.isnan(one):
        assert np.isnan(two)
    else:
        assert one == two


def test_results_come_back_as_they_were(tmp_path):
    e = exposure()
    outline = footprint(e.read().good, e.wcs)
    array = Shelf(Journal(tmp_path).arrays).keep(np.zeros((2, 3), np.float32), "some")
    cells = CutOut(0, 8, array, np.ones((2, 2)), 0.5, np.array([1.0, 2]), 3.0, np.array([4.0, 5]), "d")
    empty = PairSums(*[np.zeros(0)] * len(PairSums._fields))
    for result in (
        1, 0.1, "é\n", True, [], (),
        [1, (2.0, "x", [None, ()])], float("nan"), float("-inf"), np.arange(6).reshape(2, 3),
        np.float32(1.5), np.bool_(True), np.zeros((0, 3), "<f4"), np.array(["a", "bc"]),
        array, outline,
        cells, empty, [outline, cells], common_grid([outline], 1.0),
        ([np.array([[1.0, np.nan]])], (3, 4)),
    ):  # fmt: skip
        same(kept(tmp_path, result), result)


def test_a_result_of_another_kind_is_an_error_at_once(tmp_path):
    for result in ({"a": 1}, {1}, object(), double):
        with pytest.raises((TypeError, AttributeError)):
            Journal(tmp_path).put("abcd", result)
    assert list(tmp_path.rglob("*.npz")) == []


def spoil_tree(tree):
    def change(path):
        with np.load(path) as found:
            arrays = {name: found[name] for name in found if name != "tree"}
        text = tree if isinstance(tree, str) else json.dumps(tree)
        np.savez(path, tree=np.array(text), **arrays)

    return change


def cut(n):
    return lambda path: path.write_bytes(path.read_bytes()[:n])


def plain(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, tree=np.array(json.dumps({"array": 0})), a0=np.array([Bomb()], dtype=object), allow_pickle=True)


def pickled_tree(path):
    np.savez(path, tree=np.array([Bomb()], dtype=object), allow_pickle=True)


def huge(path):
    """An array that says it has more elements than there is memory."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"
    header += b" " * (117 - len(header)) + b"\n"
    tree = path.with_name("tree.npz")
    np.savez(tree, tree=np.array('{"array": 0}'))
    with zipfile.ZipFile(tree) as other, zipfile.ZipFile(path, "w") as file:
        file.writestr("tree.npy", other.read("tree.npy"))
        file.writestr("a0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    tree.unlink()


def compressed(path):
    """A member that is compressed, and damaged."""
    with np.load(path) as found:
        np.savez_compressed(path, **found)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[0]
    at = info.header_offset + 30 + len(info.filename) + 30
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


SPOILT = {
    "empty": cut(0),
    "one byte": cut(1),
    "truncated": lambda path: cut(path.stat().st_size // 2)(path),
    "end missing": lambda path: cut(path.stat().st_size - 3)(path),
    "a text": lambda path: path.write_text("# %ECSV"),
    "a plain array": plain,
    "no tree": lambda path: np.savez(path, a0=np.zeros(3)),
    "pickle": pickled,
    "pickled tree": pickled_tree,
    "huge": huge,
    "compressed": compressed,
    "no JSON": spoil_tree("{"),
    "deep JSON": spoil_tree("[" * 100000),
    "deep tree": spoil_tree('{"list": [' * 5000 + "]}" * 5000),
    "system": spoil_tree({"class": ["os", "system"], "fields": {"command": "mkdir exploded"}}),
    "system of ours": spoil_tree({"class": ["bkgmatch.stored", "os.system"], "fields": {"command": "mkdir exploded"}}),
    "Popen of ours": spoil_tree({"class": ["bkgmatch.demo", "subprocess"], "fields": {"args": ["mkdir", "exploded"]}}),
    "function of ours": spoil_tree({"class": ["bkgmatch.cli", "main"], "fields": {"arguments": ["demo", "exploded"]}}),
    "other module": spoil_tree({"class": ["bkgmatch_evil.steps", "A"], "fields": {}}),
    "class of others": spoil_tree({"class": ["subprocess", "Popen"], "fields": {"args": ["mkdir", "exploded"]}}),
    "no class": spoil_tree({"class": ["bkgmatch.stored", "nothing"], "fields": {}}),
    "class is a number": spoil_tree({"class": 3, "fields": {}}),
    "wrong fields": spoil_tree({"class": ["bkgmatch.stored", "StoredArray"], "fields": {"paths": "x"}}),
    "fields are a list": spoil_tree({"class": ["bkgmatch.stored", "StoredArray"], "fields": [1]}),
    "no such array": spoil_tree({"array": 99}),
    "empty object": spoil_tree({}),
    "no outline": spoil_tree({"wkb": 0}),
    "path of a number": spoil_tree({"path": 3}),
}


def cells(x, shelf):
    """Cells, whose values are in another file."""
    values = shelf.keep(np.full((2, 2), x, np.float32), "values")
    return CutOut(0, 8, values, np.ones((2, 2)), 0.5, np.array([1.0, 2]), 3.0, shapely.box(0, 0, 1, 1), "d")


def measured(folder):
    """Results of a task, with a journal; and how many came from it."""
    work = Work(journal=Journal(folder))
    (found,) = work.run(partial(cells, shelf=work.shelf), [1.0], what="Tasks")
    np.testing.assert_array_equal(found.value[...], np.ones((2, 2), np.float32))
    return found, work.journal.taken


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_record_is_never_used_or_executed(how, offline, caplog):
    folder = offline / "t.resume"
    expected, _ = measured(folder)
    (path,) = folder.rglob("*.npz")
    SPOILT[how](path)
    found, taken = measured(folder)
    same(found, expected)
    assert taken == 0
    assert not (offline / "exploded").exists()
    assert "measured again" in caplog.text
    assert path.name in caplog.text
    found, taken = measured(folder)
    same(found, expected)
    assert taken == 1


def turned(path):
    """Change one bit; the file is as long as before."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_a_record_whose_array_is_gone_or_cut_or_changed_is_not_used(offline, caplog):
    folder = offline / "t.resume"
    expected, _ = measured(folder)
    for change in (Path.unlink, cut(3), cut(0), turned):
        change(folder / "arrays" / "values")
        found, taken = measured(folder)
        assert (found.value, taken) == (expected.value, 0)
        assert "measured again" in caplog.text
        caplog.clear()


def test_records_may_be_moved(offline, monkeypatch):
    measured(Path("t.resume"))
    (offline / "t.resume").rename(offline / "other.resume")
    monkeypatch.chdir("/")
    found, taken = measured(offline / "other.resume")
    assert (found.value.path.parent, taken) == (offline / "other.resume" / "arrays", 1)


STORED = {
    "elsewhere": {"stored": "../../secret", "dtype": "<f4", "shape": [2, 2]},
    "absolute": {"stored": "/etc/hostname", "dtype": "<f4", "shape": [2, 2]},
    "objects": {"stored": "values", "dtype": "O", "shape": [2]},
    "negative": {"stored": "values", "dtype": "<f4", "shape": [-2, -2]},
    "no number": {"stored": "values", "dtype": "<f4", "shape": ["a", 2]},
    "no name": {"stored": None, "dtype": "<f4", "shape": [2, 2]},
}


@pytest.mark.parametrize("tree", STORED.values(), ids=STORED)
def test_a_record_refers_to_no_file_but_its_arrays(tree, offline, caplog):
    folder = offline / "t.resume"
    expected, _ = measured(folder)
    (offline.parent / "secret").write_bytes(bytes(16))
    (path,) = folder.rglob("*.npz")
    with np.load(path) as file:
        text = str(file["tree"])
    parts = json.loads(text)
    parts["fields"]["value"] = tree
    spoil_tree(parts)(path)
    found, taken = measured(folder)
    assert (found.value, taken) == (expected.value, 0)
    assert "measured again" in caplog.text


def test_no_byte_of_a_record_can_change_unseen(offline, caplog):
    folder = offline / "t.resume"
    expected, _ = measured(folder)
    (path,) = folder.rglob("*.npz")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        same(measured(folder)[0], expected)


def test_two_runs_may_write_one_record(tmp_path):
    one, two = Journal(tmp_path), Journal(tmp_path)
    for journal in (one, two, one):
        journal.put("abcd", [1, 2])
    assert one.get("abcd") == [1, 2]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["abcd.npz"]


def test_a_record_that_could_not_be_written_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module.np, "savez", partial(_half, module.np.savez))
    with pytest.raises(OSError, match="full"):
        Journal(tmp_path).put("abcd", [1, 2])
    assert Journal(tmp_path).get("abcd") is None


def _half(savez, file, **arrays):
    file.write(b"PK")
    raise OSError("disk full")


def test_nothing_is_made_before_there_is_a_result(tmp_path, caplog):
    journal = Journal(tmp_path / "t.resume")
    assert journal.get("abcd") is None
    journal.close()
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_an_empty_folder_of_a_killed_run_is_taken(tmp_path):
    (tmp_path / "t.resume").mkdir()
    journal = Journal(tmp_path / "t.resume")
    journal.open()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_file_digest(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file, text in zip(files, ("x", "x", "y"), strict=True):
        file.write_text(text)
    os.utime(files[1], (1, 1))
    one, two, three = map(file_digest, files)
    assert one == two != three
    with pytest.raises(FileNotFoundError, match="nothing"):
        file_digest(tmp_path / "nothing")


def test_a_second_run_may_not_use_the_same_folder(tmp_path):
    one, two = (Journal(tmp_path / "levels.ecsv.resume") for _ in range(2))
    one.open()
    with pytest.raises(ValueError, match=r"another run uses .*levels\.ecsv\.resume.*save_table"):
        two.open()
    one.close()
    two.open()
    two.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_of_a_journal_stays(kind, tmp_path):
    place, own = tmp_path / "levels.ecsv.resume", tmp_path / "own"
    own.mkdir()
    (own / "in-use" if kind == "link" else own / "notes").write_text("mine")
    if kind == "folder":
        own.rename(place)
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(own)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="not of bkgmatch"):
        Journal(place).open()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_results_leaves_no_folder(tmp_path):
    journal = Journal(tmp_path / "levels.ecsv.resume")
    journal.open()
    journal.leave()
    assert list(tmp_path.iterdir()) == []
    journal.open()
    journal.put("0" * 40, 1.0)
    journal.leave()
    again = Journal(tmp_path / "levels.ecsv.resume")
    again.open()
    assert again.get("0" * 40) == 1.0
    again.close()
