"""Hostile files: refused with the name and the remedy, or read rightly; nothing is executed, nor written elsewhere."""

import ast
import base64
import json
import os
import pickle
import string
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from builders import association, digest, has, write
from common import few
from hostile import WORDS, command, limited, small_models, writes_only
from jwst.associations.lib.dms_base import EXPTYPE_MAP, SPECIAL_EXPOSURE_MODIFIERS
from ledger import note
from pages import check

from bkgmatch import LevelMatchStep, SkyMatchStep
from bkgmatch.associations import check_product
from bkgmatch.journal import Journal
from bkgmatch.masks import find_masks, read_mask, read_regions
from bkgmatch.mosaics import read_mosaic, read_source_mask
from bkgmatch.page import Page, definitions, paragraph, table
from bkgmatch.record import check_tables
from bkgmatch.report import check_page
from bkgmatch.steps.inputs import _check_member, check_inputs
from bkgmatch.stored import StoredArray

# What readers of other packages warn of before they fail; the user sees both.
pytestmark = [
    pytest.mark.usefixtures("offline", "assign_freely"),
    pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning"),
    pytest.mark.filterwarnings("ignore:.*YAML:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Input association file contains path information"),
]
SOURCE = Path(__file__).parents[1] / "src" / "bkgmatch"


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    """Two neighbours of 8 x 8 pixels at levels 1 and 2."""
    return write(small_models(), tmp_path_factory.mktemp("unspoilt"))


@pytest.fixture(scope="module")
def saved_text(unspoilt, tmp_path_factory):
    """A saved table of them."""
    path = tmp_path_factory.mktemp("saved") / "levels.ecsv"
    SkyMatchStep.call([str(file) for file in unspoilt], save_table=str(path))
    return path.read_text()


@pytest.fixture
def saved(saved_text, tmp_path):
    """A copy of it."""
    path = tmp_path / "levels.ecsv"
    path.write_text(saved_text)
    return path


def matched(inputs, **options):
    """Levels that the step finds."""
    library = SkyMatchStep.call(inputs, **options)
    with library:
        return list(library.map_function(lambda model, _: model.meta.background.level, modify=False))


def changed(files, change):
    """An association of files, with a change."""
    path = association(files)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))
    return path


# -------------------------------------------------------------------------------------------------- associations


def set_member(key, value):
    return lambda content: content["products"][0]["members"][1].update({key: value})


def set_product(key, value):
    return lambda content: content["products"][0].update({key: value})


NAMES = [word for word in WORDS if word not in ("{0} %s $HOME ~",)]
BROKEN = {
    **{f"expname {value!r:.20}": set_member("expname", value) for value in (*NAMES, 5, None, [], {"a": 1}, "a:b.fits")},
    **{f"exptype {value!r}": set_member("exptype", value) for value in ("", 5, None, ["science"])},
    **{f"group_id {value!r}": set_member("group_id", value) for value in (None, ["a"], {"a": 1}, 1.5)},
    **{f"members {value!r}": set_product("members", value) for value in (5, None, "abc", {"a": 1}, [None], [5], [[]])},
    **{f"products {v!r}": lambda c, v=v: c.update(products=v) for v in (5, None, "abc", {}, [], [None], ["a"], [[]])},
    **{f"all is {value!r}": lambda c, value=value: value for value in (5, True, "abc", [1], [[]], {"a": 1})},
}


@pytest.mark.parametrize("case", few(9, BROKEN))
def test_an_association_that_cannot_be_used_is_named(files, tmp_path, case):
    with writes_only(tmp_path, files[0].with_name("asn.json")):
        path = changed(files, BROKEN[case])
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            matched(str(path))
    assert any(
        name in str(caught.value) for name in (path.name, "inputs do not exist", "is a folder", "more than once")
    )
    note("fuzz", "association, wrong field", "clear error")


BYTES = {
    "nothing": b"", "zeros": bytes(100), "bad UTF-8": b'{"a": "\xff\xfe"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * 100_000, "deep maps": b'{"a":' * 100_000, "huge number": b'{"a": ' + b"9" * 10_000 + b"}",
    "not closed": b'{"products": [', "a FITS file": b"SIMPLE  =                    T".ljust(2880),
    "tag": b"!!python/object/apply:os.mkdir ['executed']\n", "recursion": b"a: &a [*a]\nproducts: *a\n",
}  # fmt: skip


@pytest.mark.parametrize("case", few(4, BYTES))
def test_an_association_of_other_bytes_is_named(files, tmp_path, case):
    path = files[0].with_name("asn.json")
    path.write_bytes(BYTES[case])
    with writes_only(tmp_path), pytest.raises(ValueError, match=r"asn.json.*") as caught:
        matched(str(path))
    has(str(caught.value), "bkgmatch asn" if "cannot be read" in str(caught.value) else "product with members")
    note("fuzz", "association, other bytes", "clear error")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"products": [\n  {"name": "a" 5\n}', ["line 2 column 16"]),
        ('{"name": "a"}', ["no product with members"]),
        ('{"products": [{"name": "a"}]}', ["no product with members"]),
        ('{"products": 5}', ["no product with members"]),
        ("[1]", ["no product with members"]),
    ],
)
def test_what_is_wrong_with_an_association_is_told(tmp_path, text, parts):
    path = tmp_path / "asn.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"asn\.json") as caught:
        check_inputs(str(path))
    has(str(caught.value), "bkgmatch asn", *parts)


def test_a_misspelt_exptype_is_refused_and_those_of_jwst_are_not():
    for kind in (*EXPTYPE_MAP.values(), *SPECIAL_EXPOSURE_MODIFIERS, "SCIENCE", "selfcal", "sourcecat", "segmap"):
        _check_member({"expname": "a.fits", "exptype": kind}, "asn.json")
    with pytest.raises(ValueError, match=r"asn.json: exptype 'scince' of a.fits .* science, background"):
        _check_member({"expname": "a.fits", "exptype": "scince"}, "asn.json")


PRODUCTS = ["../../evil", "/evil", "a/b", "nul\0", "x" * 300, "x/"]


@pytest.mark.parametrize("name", few(2, PRODUCTS), ids=range(len(PRODUCTS)))
def test_a_product_that_names_no_file_is_refused_before_anything_is_written(files, tmp_path, name):
    asn, out = changed(files, set_product("name", name)), tmp_path / "out"
    out.mkdir()
    with writes_only(tmp_path), pytest.raises(ValueError, match="product name"):
        SkyMatchStep.call(str(asn), save_results=True, output_dir=str(out))
    with writes_only(tmp_path):
        code, _, told = command("asn", *files, "--product", name)
    assert code == 1
    has(told, "product name")
    note("fuzz", "product name", "clear error", 2)


def test_names_of_products_that_are_names_of_files():
    for name in ("a", "a b", "ünï €", "'q\"", "{0} %s", "..", "~", "x" * 200):
        check_product(name)
    for name in ("", None, 5, ["a"], "x" * 201, "€" * 70):
        with pytest.raises(ValueError, match="product name"):
            check_product(name)


def test_strange_names_are_names(files, tmp_path):
    """Blanks, quotes, braces, links, folders above, absolute paths, and a byte order mark."""
    odd = files[0].rename(files[0].with_name("a b'{0}%s\"_cal.fits"))
    (tmp_path / "link_cal.fits").symlink_to(files[1])
    members = [str(Path("..") / "inputs" / odd.name), str(tmp_path / "link_cal.fits")]
    path = tmp_path / "inputs" / "asn'{0} %s.json"
    content = json.loads(association([odd, files[1]]).read_text())
    for member, name in zip(content["products"][0]["members"], members, strict=True):
        member["expname"] = name
    content["products"][0]["name"] = "ünï {0} %s 'q\""
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    out = tmp_path / "out"
    out.mkdir()
    before = digest([odd, files[1]])
    with writes_only(tmp_path, out):
        assert matched(str(path), save_results=True, output_dir=str(out)) == [0.0, 1.0]
    assert digest([odd, files[1]]) == before
    assert sorted(file.name for file in out.iterdir()) == [
        "a b'{0}%s\"_skymatch.fits", "link_skymatch.fits", "ünï {0} %s 'q\"_skymatch_asn.json",
    ]  # fmt: skip
    note("fuzz", "strange names", "right answer")


def test_ten_thousand_members(files):
    many = [{"expname": f"jw{n:05d}_cal.fits", "exptype": "science"} for n in range(10_000)]
    with limited(30), pytest.raises(FileNotFoundError, match="10000 of 10000 inputs do not exist") as caught:
        check_inputs(str(changed(files, set_product("members", many))))
    assert len(str(caught.value)) < 1000
    again = [{"expname": file.name, "exptype": "science"} for file in files] * 5000
    with limited(30), pytest.raises(ValueError, match="more than once"):
        check_inputs(str(changed(files, set_product("members", again))))
    note("fuzz", "association, 10,000 members", "clear error", 2)


@pytest.mark.parametrize("kind", ["loop", "dangling"])
def test_links_to_nothing(files, saved, tmp_path, kind):
    names = [tmp_path / f"{kind}.{ending}" for ending in ("fits", "json", "ecsv")]
    for name in names:
        name.symlink_to(name if kind == "loop" else "nothing")
    image, asn, ecsv = names
    with writes_only(tmp_path):
        for given in (str(image), str(asn), [str(image), str(files[0])]):
            with pytest.raises(FileNotFoundError, match=f"{kind}.*not exist|not exist.*{kind}"):
                matched(given)
        for words in (("undo", image), ("asn", image, "--product", "a"), ("level", image, files[0]), ("skylist", ecsv)):
            assert command(*words)[0] == 1
        assert command("apply", saved, image)[0] == 1
        assert command("report", saved, "--out", tmp_path / "loop.ecsv" / "a.html")[0] == 1
    note("fuzz", f"links: {kind}", "clear error", 9)


# -------------------------------------------------------------------------------------------------- pipes and devices

READERS = {
    "mask": lambda path, more: read_mask(find_masks([str(path)], [path])[0], (8, 8)),
    "regions": lambda path, more: read_regions(str(path)),
    "mosaic": lambda path, more: read_mosaic(path),
    "source mask": lambda path, more: read_source_mask(path),
    "exposure": lambda path, more: check_inputs(str(path)),
    "association": lambda path, more: check_inputs(str(path.with_name("a.json"))),
    "member": lambda path, more: check_inputs(
        {"products": [{"members": [{"expname": str(path), "exptype": "science"}]}]}
    ),
    "save_table": lambda path, more: check_tables(path),
    "report": lambda path, more: check_page(path),
    "skylist": lambda path, more: matched(small_models(), skymethod="user", skylist=str(path)),
    "apply_table": lambda path, more: matched(small_models(), apply_table=str(path)),
    "fixed": lambda path, more: LevelMatchStep.call(small_models(), fixed=[str(path)]),
}


@pytest.mark.parametrize("kind", few(5, READERS))
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_nobody_waits_for_pipes_and_devices(tmp_path, kind, what):
    path = tmp_path / "a.fits"
    for name in (path, path.with_name("a.json")):
        if what == "pipe":
            os.mkfifo(name)
        else:
            name.symlink_to("/dev/zero")
    with writes_only(tmp_path), pytest.raises(ValueError, match=r"a\.(fits|json)|/dev/zero") as caught:
        READERS[kind](path, None)
    has(str(caught.value), "is a pipe or a device", "copy")
    note("fuzz", f"{what} as a file", "clear error")


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_no_command_waits_for_pipes_and_devices(files, saved, tmp_path, what):
    names = [tmp_path / f"bad.{ending}" for ending in ("fits", "ecsv", "html")]
    for name in names:
        if what == "pipe":
            os.mkfifo(name)
        else:
            name.symlink_to("/dev/zero")
    image, ecsv, page = names
    every = [
        ("skylist", ecsv), ("apply", ecsv, *files), ("report", ecsv), ("undo", image), ("level", image, files[0]),
        ("asn", image, "--product", "a"), ("report", saved, "--out", page), ("level", *files, "--save_table", ecsv),
        ("level", *files, "--fixed", image),
    ]  # fmt: skip
    with writes_only(tmp_path):
        for words in every:
            code, _, told = command(*words)
            assert code == 1
            has(told, "is a pipe or a device")
    note("fuzz", f"{what} as a file", "clear error", len(every))


# -------------------------------------------------------------------------------------------------- what is replaced


def test_the_table_of_pairs_replaces_no_other_file(files, tmp_path):
    (tmp_path / "t_pairs.ecsv").symlink_to(files[1])
    with writes_only(tmp_path), pytest.raises(ValueError, match=r"t_pairs.ecsv exists and is no table"):
        matched([str(file) for file in files], save_table=str(tmp_path / "t.ecsv"))
    note("fuzz", "outputs over other files", "clear error")


def test_the_command_level_replaces_no_input_by_its_table(files, tmp_path):
    for name in (files[0], tmp_path / "inputs" / ".." / "inputs" / files[0].name):
        with writes_only(tmp_path):
            assert command("level", *files, "--out", tmp_path / "out", "--save_table", name)[0] == 1
    note("fuzz", "outputs over other files", "clear error", 2)


def test_a_skylist_replaces_nothing_but_a_skylist(files, saved, tmp_path):
    skylist = tmp_path / "sky.txt"
    with writes_only(tmp_path, skylist):
        for out in (saved, files[0]):
            code, _, told = command("skylist", saved, "--out", out)
            assert code == 1
            has(told, out.name, "is no skylist")
        assert [command("skylist", saved, "--out", skylist)[0] for _ in range(2)] == [0, 0]
    assert len(skylist.read_text().splitlines()) == 2
    note("fuzz", "outputs over other files", "clear error", 2)


def test_links_in_the_output_folder_lead_to_no_input(files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for file, other in zip(files, reversed(files), strict=True):
        for suffix in ("_cal", "_skymatch"):
            (out / file.name.replace("_cal", suffix)).symlink_to(other)
    with writes_only(tmp_path, out):
        matched([str(file) for file in files], subtract=True, save_results=True, output_dir=str(out))
        command("undo", *files, "--out", out)
    note("fuzz", "outputs over other files", "right answer", 2)


@pytest.mark.parametrize("link", ["in-use", ""])
def test_a_journal_that_is_a_link_is_not_opened(tmp_path, link):
    precious, journal = tmp_path / "precious", tmp_path / "t.ecsv.resume"
    precious.mkdir()
    (precious / "in-use").write_text("precious")
    if link:
        journal.mkdir()
        (journal / link).symlink_to(precious / "in-use")
    else:
        journal.symlink_to(precious)
    with writes_only(tmp_path), pytest.raises(ValueError, match="is not of bkgmatch"):
        Journal(journal).open()
    note("fuzz", "outputs over other files", "clear error")


@pytest.mark.parametrize("name", few(1, ["../../evil.fits", "ABSOLUTE/evil.fits", ".."]))
def test_names_in_metadata_lead_nowhere_else(tmp_path, name):
    out = tmp_path / "a" / "b" / "out"
    out.mkdir(parents=True)
    models = small_models()
    models[0].meta.filename = name.replace("ABSOLUTE", str(tmp_path))
    with writes_only(tmp_path, out):
        SkyMatchStep.call(models, save_results=True, output_dir=str(out))
    assert len(list(out.glob("*_skymatch.fits"))) == 2
    note("fuzz", "names in metadata", "right answer")


@pytest.mark.slow
def test_names_in_metadata_lead_no_picture_elsewhere(tmp_path):
    plots = tmp_path / "a" / "b" / "plots"
    plots.mkdir(parents=True)
    models = small_models(side=32)
    for model, name in zip(models, ("../../evil.fits", str(tmp_path / "worse.fits")), strict=True):
        model.data += np.random.default_rng(1).normal(0, 0.1, model.data.shape).astype(np.float32)
        model.meta.filename = name
    with writes_only(tmp_path, plots):
        LevelMatchStep.call(models, save_plots=str(plots))
    assert sorted(path.name for path in plots.iterdir()) == ["evil-worse.png", "mosaic.png"]
    note("fuzz", "names in metadata", "right answer")


def test_a_model_without_a_name_is_saved(tmp_path):
    models = small_models()
    models[0].meta.filename = ""
    with writes_only(tmp_path, tmp_path / "here"):
        SkyMatchStep.call(models, save_results=True)
    assert len(list((tmp_path / "here").glob("*.fits"))) == 2
    note("fuzz", "names in metadata", "right answer")


# -------------------------------------------------------------------------------------------------- tables


def edited(saved, old, new):
    text = saved.read_text()
    assert old in text
    saved.write_text(text.replace(old, new, 1))
    return saved


LINE = "jw09001001001_02101_00001_nrcalong_cal.fits"


@pytest.mark.parametrize("name", ['"a b.fits"', '"a.fits 5\nb.fits"', '"#a.fits"', '"a\tb"'])
def test_no_skylist_has_names_that_it_cannot_hold(saved, tmp_path, name):
    edited(saved, LINE, name)
    with writes_only(tmp_path):
        code, out, told = command("skylist", saved)
    assert (code, out) == (1, "")
    has(told, "skylist", "rename")
    assert len(told.splitlines()) == 1
    note("fuzz", "table, hostile name", "clear error")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" 1 0 1.0 ", " 1 0 inf "), (" 1 0 1.0 ", " 1 0 one "), ("# datatype:", "# datatype: ["),
        ("options:", "option:"), ("{name: level, datatype: float64}", "{name: level, datatype: complex128}"),
        ("%ECSV 1.0", "%ECSV x"),
        ("{name: name,", "{name: nome,"), ("00002_nrcalong", "00001_nrcalong"), ("{name: level,", "{name: name,"),
    ],
)  # fmt: skip
def test_a_table_that_was_changed_is_named_in_one_line(saved, files, tmp_path, old, new):
    edited(saved, old, new)
    for words in (("skylist", saved), ("apply", saved, *files, "--out", tmp_path / "out")):
        with writes_only(tmp_path):
            code, out, told = command(*words)
        assert (code, out) == (1, "")
        assert "levels.ecsv" in told
        assert len(told.splitlines()) == 1
        note("fuzz", "table, changed", "clear error")


# ------------------------------------------------------------------------------------------ lists, regions, masks


@pytest.mark.parametrize("content", few(1, [b"a\xff 1\n", "a 1\n".encode("utf-16"), os.urandom(500) + b"\xff\n"]))
def test_a_skylist_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "sky.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"skylist .*sky.txt"):
        matched(small_models(), skymethod="user", skylist=str(tmp_path / "sky.txt"))
    note("fuzz", "skylist", "clear error")


def test_a_skylist_with_a_byte_order_mark(tmp_path):
    lines = f"\ufeff{LINE} 1.5\r\n{LINE.replace('_00001_', '_00002_')} 2.5\r\n"
    (tmp_path / "sky.txt").write_bytes(lines.encode())
    assert matched(small_models(), skymethod="user", skylist=str(tmp_path / "sky.txt")) == [1.5, 2.5]
    note("fuzz", "skylist", "right answer")


REGIONS = [
    "circle(nan,-27,10\")", "-circle(nan,-27,10\")", "circle(53,nan,10\")", "polygon(1,2,nan,4,5,6)",
    "circle(53,-27,-1)", "circle()", "circle(a,b,c)", "circle(__import__('os').mkdir('executed'),1,2)",
    "image\ncircle(1,2,3)", "\0\0\0", "line(nan,1,2,3)", "circle(53,-127,1)", "ellipse(1,2,0,0,0)",
]  # fmt: skip


@pytest.mark.parametrize("text", REGIONS)
def test_regions_that_are_nowhere_are_refused(tmp_path, text):
    path = tmp_path / "sky.reg"
    path.write_text(f"icrs\n{text}\n")
    with writes_only(tmp_path), pytest.raises(ValueError, match=r"sky\.reg"):
        read_regions(str(path))
    note("fuzz", "regions", "clear error")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # astropy leaves the file open
@pytest.mark.parametrize("keyword", ["NAXIS1", "NAXIS", "BITPIX", "SIMPLE"])
def test_a_mask_without_a_keyword_is_named(tmp_path, keyword):
    path = tmp_path / "mask.fits"
    fits.writeto(path, np.ones((8, 8), np.uint8))
    path.write_bytes(path.read_bytes().replace(keyword.encode().ljust(8), b"X".ljust(8), 1))
    with pytest.raises(ValueError, match=r"mask\.fits"):
        read_mask(path, (8, 8))
    note("fuzz", "masks", "clear error")


# -------------------------------------------------------------------------------------------------- nothing is executed


class Bomb:
    """Whoever unpickles this makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def executed(tmp_path):
    """Folder that hostile files would make; the bombs are real."""
    place = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(place)))
    place.rmdir()
    yaml.unsafe_load(tag(place))
    place.rmdir()
    yield place
    assert not place.exists()


def tag(place):
    return f"!!python/object/apply:os.mkdir ['{place}']"


def test_tables_execute_nothing(executed, saved, tmp_path, files):
    good = saved.read_text()
    mixin = "# - __serialized_columns__: {level: {__class__: os.mkdir, value: 'x'}}"
    packed = base64.b64encode(pickle.dumps(Bomb(executed))).decode()
    bad = [
        good.replace("binwidth: 0.1", f"binwidth: {tag(executed)}"),
        good.replace("# datatype:", f"# evil: {tag(executed)}\n# datatype:"),
        good.replace("# meta: !!omap", f"# meta: {tag(executed)}"),
        good.replace("nclip: 5", f"nclip: !numpy.ndarray {{buffer: !!binary {packed}, dtype: object, shape: [1]}}"),
        good.replace("meta: !!omap", f"meta: !!omap\n{mixin}"),
        good.replace("{name: status, datatype: string}", "{name: status, datatype: object}"),
        good.replace("nclip: 5", "nclip: !astropy.table.Table {__class__: posix.system}"),
    ]  # fmt: skip
    for text in bad:
        assert text != good
        saved.write_text(text)
        with writes_only(tmp_path, tmp_path / "out", tmp_path / "levels.html"):
            command("skylist", saved)
            command("apply", saved, *files, "--out", tmp_path / "out")
            command("report", saved)
        note("fuzz", "bomb in a table", "not executed")


@pytest.mark.parametrize("ending", few(1, ["yaml", "json", "asn"]))
@pytest.mark.filterwarnings("ignore:File extension:DeprecationWarning")
def test_associations_execute_nothing(executed, tmp_path, ending):
    path = tmp_path / f"asn.{ending}"
    path.write_text(f"products:\n- name: {tag(executed)}\n  members: []\n")
    with writes_only(tmp_path), pytest.raises(ValueError, match="asn"):
        matched(str(path))
    note("fuzz", "bomb in an association", "not executed")


def test_parameter_files_execute_nothing(executed, tmp_path):
    path = tmp_path / "pars.asdf"
    SkyMatchStep().export_config(path)
    good = path.read_text()
    for text in (
        good.replace("nclip: 5", f"nclip: {tag(executed)}"),
        good.replace("nclip: 5", f"nclip: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{executed}']"),
        f"#ASDF 1.0.0\n--- {tag(executed)}\n...\n",
    ):
        assert text != good
        path.write_text(text)
        with writes_only(tmp_path), pytest.raises(Exception, match=r"(?s)."):
            SkyMatchStep.from_config_file(str(path))
        note("fuzz", "bomb in a parameter file", "not executed")


def test_exposures_execute_nothing(executed, files, tmp_path):
    with fits.open(files[0], mode="update") as hdus:
        tree = hdus["ASDF"].data.tobytes()
        head, mark, rest = tree.partition(b"\n--- ")
        assert mark
        bad = head + mark + rest.replace(b"history:", f"evil: {tag(executed)}\nhistory:".encode(), 1)
        assert bad != tree
        hdus["ASDF"] = fits.BinTableHDU(np.rec.array([(bad,)], dtype=[("ASDF_METADATA", f"S{len(bad)}")]), name="ASDF")
    with writes_only(tmp_path):
        with pytest.raises(ValueError, match=files[0].name):
            matched(str(files[0]))
        command("level", *files, "--out", tmp_path / "nowhere" / "out")
        command("undo", files[0], "--out", tmp_path / "nowhere" / "out")
    note("fuzz", "bomb in an exposure", "not executed", 3)


def journal_file(journal, key, tree, **arrays):
    path = journal._path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, tree=np.array(json.dumps(tree)), **arrays)


def test_journals_execute_nothing(executed, tmp_path, caplog):
    journal = Journal(tmp_path / "t.ecsv.resume")
    packed = np.bytes_(zlib.compress(pickle.dumps(Bomb(executed))))
    trees = {
        "aa": ({"array": 0}, np.array([Bomb(executed)], dtype=object)),
        "bb": ({"class": ["bkgmatch.steps.packed", "PackedWcs"], "fields": {"packed": {"array": 0}}}, np.array(packed)),
        "cc": ({"class": ["os", "mkdir"], "fields": {"path": str(executed)}}, np.zeros(1)),
        "dd": ({"class": ["bkgmatch.workspace", "shutil"], "fields": {}}, np.zeros(1)),
        "ee": ({"class": ["bkgmatch.journal", "import_module"], "fields": {"name": "this"}}, np.zeros(1)),
        "hh": (
            {
                "class": ["bkgmatch.stored", "StoredArray"],
                "fields": {"path": "/dev/null", "dtype": "<f4", "shape": [1]},
            },
            np.zeros(1),
        ),
        "ff": ({"stored": "../../x", "dtype": "O", "shape": [1], "checksum": 0}, np.zeros(1)),
        "gg": ({"wkb": 0}, np.frombuffer(pickle.dumps(Bomb(executed)), np.uint8)),
    }
    for key, (tree, array) in trees.items():
        journal_file(journal, key, tree, a0=array)
        with writes_only(tmp_path):
            assert journal.get(key) is None
        note("fuzz", "bomb in a journal", "not executed")
    assert len(caplog.messages) == len(trees)


def test_stored_arrays_execute_nothing(executed, tmp_path):
    path = tmp_path / "array"
    path.write_bytes(pickle.dumps([Bomb(executed)] * 8).ljust(64))
    with pytest.raises(ValueError, match="objects cannot be stored"):
        StoredArray(path, "O", (8,))
    with pytest.raises(ValueError, match="objects cannot be stored"):
        StoredArray(path, "f8,O", (4,))
    note("fuzz", "bomb in a stored array", "not executed", 2)


# Names that execute what they are given; why some are there.
DANGEROUS = {
    "eval", "exec", "compile", "__import__", "pickle", "cPickle", "marshal", "dill", "cloudpickle", "joblib", "yaml",
    "unsafe_load", "full_load", "subprocess", "import_module", "allow_pickle", "shell", "runpy", "ctypes",
    "read_pickle", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.posix_spawn",
}  # fmt: skip
EXPLAINED = {
    ("__init__", "import_module"): "public names that are resolved when they are used, from a list in the module",
    ("journal", "import_module"): "modules of bkgmatch whose records are read back; only dataclasses and named tuples",
    ("journal", "allow_pickle"): "False",
    ("cli", "subprocess"): "the error of the demonstration",
    ("demo", "subprocess"): "runs strun with a list of words",
    ("steps.packed", "pickle"): "the WCS of an exposure, in memory or between the processes of a Dask cluster",
}


def names_of(tree):
    """Names, attributes and keywords of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            of_module = isinstance(node.value, ast.Name) and node.value.id in ("re", "os")
            yield ast.unparse(node) if of_module else node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name.partition(".")[0] for alias in node.names)
            yield from (getattr(node, "module", "") or "").split(".")[:1]


def test_the_code_executes_nothing_from_files():
    found = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {(module, name) for name in names_of(tree) if name in DANGEROUS}
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load", "np.savez"):
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), f"{module}:{node.lineno}"
    assert found == set(EXPLAINED)
    note("fuzz", "calls that execute, in the code", "none from files", len(list(SOURCE.rglob("*.py"))))


# -------------------------------------------------------------------------------------------------- pages


def test_pages_of_hostile_words_have_the_same_tags(tmp_path):
    def tags(word):
        page = Page(word, word, {word: word})
        page.add(word, paragraph(word), definitions({word: [word, 1.0]}), table({word: [word, word * 2]}, {word: word}))
        page.write(tmp_path / "page.html")
        found = check(tmp_path / "page.html")
        return [
            (tag.name, {k: v for k, v in tag.attributes.items() if k not in ("title", "class")}) for tag in found.tags
        ]

    plain = tags("plain")
    marks = ["]]>", "<!--", "-->", "</title>", "</script>", "</style>", "&lt;", "&#0;", "javascript:alert(1)"]
    quotes = ['" onload="alert(1)', "' onload='x", string.printable]
    words = [*WORDS, *marks, *quotes, "\ud800", "\udcff", "\x00\x1b\x7f\x85\u2028"]
    for word in words:
        assert tags(word) == plain, repr(word)
    note("fuzz", "words in a page", "inert text", len(words))
