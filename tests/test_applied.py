"""``bkgmatch apply``: copies like those of the step, undone as those, and what cannot be applied."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import SIDE, association, constant_files, digest, has, left_behind, spoil, tile_wcs
from stdatamodels.jwst import datamodels
from test_image_files import level as match_images
from test_image_files import write as write_images

from bkgmatch import LevelMatchStep, SkyMatchStep, levels, match, record, saved
from bkgmatch.cli import main
from bkgmatch.steps.cards import card
from bkgmatch.steps.models import undo
from bkgmatch.steps.plane_record import read_record

LEVELS = (10.0, 14.0, 11.5)
FAR = (200.0, -40.0)
OWN = ("DATE", "FILENAME", "CAL_VER", "CAL_VCS", "ASNPOOL", "ASNTABLE", "")


STEPS = {
    "sky": (SkyMatchStep, {"subtract": True}),
    "recorded": (SkyMatchStep, {"skymethod": "local"}),
    "planes": (LevelMatchStep, {"fit_type_dithers": "level+slope"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three exposures that overlap, one that overlaps nothing, and what the steps make of them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CRDS_PATH", "CRDS_SERVER_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        files = constant_files(folder / "given", [(tile_wcs((1, 3)), LEVELS), (tile_wcs((1, 1), center=FAR), (7.0,))])
        spoil(files[0], lambda model: setattr(model, "data", model.data + np.linspace(0, 1, SIDE, dtype=np.float32)))
        asn = association(files)
        for name, (step, options) in STEPS.items():
            given = {"save_table": str(folder / f"{name}.ecsv"), "output_dir": str(folder / name)}
            step.call(str(asn), save_results=True, **given, **options)
    return folder


@pytest.fixture
def files(made, tmp_path, monkeypatch):
    """Copies of the exposures, which a test may change; the tables are beside their folder."""
    monkeypatch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return sorted((tmp_path / "given").glob("*.fits"))


def results(tmp_path, name):
    return sorted((tmp_path / name).glob("*.fits"))


def apply(table, files, out):
    return main(["apply", str(table), *map(str, files), "--out", str(out)])


def same_files(one, two):
    """Files have the same pixels and the same headers, but for what stpipe writes of a run."""
    with fits.open(one) as ours, fits.open(two) as theirs:
        assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
        cards = [{key: value for key, value in hdus[0].header.items() if key not in OWN} for hdus in (ours, theirs)]
        assert cards[0] == cards[1]
        for a, b in zip(ours, theirs, strict=True):
            if a.is_image and a.data is not None:
                np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("name", ["sky", "planes"])
def test_copies_are_like_those_of_the_step(files, tmp_path, capsys, name):
    files = files[:3]
    before = digest(files)
    assert apply(tmp_path / f"{name}.ecsv", files, tmp_path / "applied") == 0
    copies = [tmp_path / "applied" / file.name for file in files]
    assert capsys.readouterr().out.split() == [str(copy) for copy in copies]
    assert sorted(left_behind(tmp_path / "applied")) == [str(copy) for copy in copies]
    assert digest(files) == before
    for copy, result in zip(copies, results(tmp_path, name), strict=False):
        same_files(copy, result)
        with datamodels.open(copy) as model:
            assert model.meta.filename == copy.name
    assert main(["undo", *map(str, copies), "--out", str(tmp_path / "undone")]) == 0
    for file in files:
        np.testing.assert_allclose(fits.getdata(tmp_path / "undone" / file.name), fits.getdata(file), rtol=3e-7)


def test_recorded_levels_are_subtracted(files, tmp_path):
    """What a step with subtract=False has left."""
    recorded = results(tmp_path, "recorded")[:3]
    assert apply(tmp_path / "recorded.ecsv", recorded, tmp_path / "applied") == 0
    for file, result in zip(files, recorded, strict=False):
        with datamodels.open(tmp_path / "applied" / result.name) as model, datamodels.open(file) as given:
            background = model.meta.background
            assert (background.subtracted, background.method) == (True, "local")
            assert background.level > 9
            np.testing.assert_allclose(model.data, given.data - background.level, atol=2e-6)


def test_a_lyot_field_has_its_own_row(files, tmp_path):
    rows = Table.read(tmp_path / "planes.ecsv")
    rows.add_row(rows[0])
    rows["name"] = [*rows["name"][:-1], f"{files[0].name}[lyot]"]
    rows["level"][-1] = 3.25
    rows.write(tmp_path / "lyot.ecsv")
    assert apply(tmp_path / "lyot.ecsv", files[:1], tmp_path / "applied") == 0
    with datamodels.open(tmp_path / "applied" / files[0].name) as model, datamodels.open(files[0]) as given:
        record = read_record(model)
        assert (record.lyot.level, record.science.level) == (3.25, rows["level"][0])
        assert any(record.lyot.slope)
        rest = given.data - model.data
        np.testing.assert_allclose(rest, record.image(given), atol=2e-6)


def test_plain_images(tmp_path):
    given = write_images(tmp_path / "in")
    match_images(*given, "--out", tmp_path / "matched", "--save_table", tmp_path / "levels.ecsv")
    assert apply(tmp_path / "levels.ecsv", given, tmp_path / "applied") == 0
    for file in given:
        same_files(tmp_path / "applied" / file.name, tmp_path / "matched" / file.name)
    assert apply(tmp_path / "levels.ecsv", (tmp_path / "matched").iterdir(), tmp_path / "twice") == 1
    assert not (tmp_path / "twice").exists()


# -------------------------------------------------------------------------------------------------- what is refused


def refused(capsys, tmp_path, table, files):
    """Message of one line; nothing is written, nothing changes."""
    capsys.readouterr()
    before, here = digest(p for p in files if p.is_file()), left_files(tmp_path)
    assert apply(table, files, tmp_path / "applied") == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert message.startswith("bkgmatch apply: ")
    assert left_files(tmp_path) == here
    assert digest(p for p in files if p.is_file()) == before
    return message


def left_files(folder):
    return [path for path in left_behind(folder) if Path(path).is_file()]


def renamed(file, name):
    return Path(shutil.copy(file, file.with_name(name)))


def test_exposures_that_cannot_be_used(files, tmp_path, capsys):
    table, matched = tmp_path / "sky.ecsv", results(tmp_path, "sky")
    other = renamed(files[0], "jw09001009001_02101_00001_nrcalong_cal.fits")
    has(refused(capsys, tmp_path, table, [*files[:3], other]), other.name, "not in the table", "leave it out")
    has(refused(capsys, tmp_path, table, files), files[3].name, "no overlap", "leave it out")
    has(refused(capsys, tmp_path, table, [files[1], matched[0]]), matched[0].name, "has been subtracted", "undo")
    has(refused(capsys, tmp_path, table, [files[0].with_name("none.fits")]), "none.fits", "does not exist")
    has(refused(capsys, tmp_path, table, [files[0], matched[0].parent / ".." / "given" / files[0].name]), "rename")
    spoil(files[1], lambda model: setattr(model.meta, "bunit_data", "DN/s"))
    rows = Table.read(table)
    rows["level"].unit = "MJy/sr"
    rows.write(table, overwrite=True)
    has(refused(capsys, tmp_path, table, files[:2]), files[1].name, "DN/s", "MJy / sr", "convert")
    spoil(files[0], lambda model: setattr(model.meta.cal_step, "resample", "COMPLETE"))
    has(refused(capsys, tmp_path, table, files[:1]), files[0].name, "mosaic")
    plain = write_images(tmp_path / "plain", "a")
    has(refused(capsys, tmp_path, table, plain), "a.fits", "no JWST exposure")
    assert main(["apply", str(table), str(files[2]), "--out", str(files[2].parent)]) == 1
    assert "would be overwritten" in capsys.readouterr().err


def test_a_subtracted_plane_is_found(files, tmp_path, capsys):
    table, matched = tmp_path / "planes.ecsv", results(tmp_path, "planes")
    has(refused(capsys, tmp_path, table, matched[:3]), matched[0].name, "has been subtracted", "undo")
    has(refused(capsys, tmp_path, table, [tmp_path / "given"]), "given")


def test_levels_of_other_results(files, tmp_path, capsys):
    """Levels that were measured after image_for_image are not those of the exposures before."""
    table = tmp_path / "sky.ecsv"
    rows = Table.read(table)
    rows["name"] = [str(name).replace("_cal", "_i4i") for name in rows["name"]]
    rows.write(table, overwrite=True)
    has(refused(capsys, tmp_path, table, files[:1]), files[0].name, "_i4i.fits", "give that file")
    after = renamed(files[0], files[0].name.replace("_cal", "_i4i"))
    assert apply(table, [after], tmp_path / "applied") == 0


def with_unit(column, unit):
    return lambda table: setattr(table[column], "unit", unit)


def with_value(column, value):
    def change(table):
        table[column] = table[column].astype(object)
        table[column][0] = value
        table[column] = list(table[column])

    return change


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("planes", with_unit("slope_north", "1 / arcmin"), ["slope_north", "1 / arcmin", "not 1 / arcsec", "convert"]),
        ("planes", with_unit("ra", "hourangle"), ["column ra", "not deg", "convert"]),
        ("planes", with_unit("dec", "rad"), ["column dec", "not deg", "convert"]),
        ("sky", lambda table: [with_unit(c, u)(table) for c, u in (("level", "MJy/sr"), ("sigma", "Jy/sr"))],
         ["column sigma", "Jy / sr", "not MJy / sr"]),
        ("planes", with_value("ra", 53.3), ["00001_nrcalong_cal.fits", "far from", "53.3", "correct"]),
        ("sky", with_value("status", "perfect"), ["00001_nrcalong_cal.fits", "'perfect'", "give one of matched"]),
        ("sky", with_value("status", "no overlap"), ["00001_nrcalong_cal.fits", "no overlap", "correct"]),
        ("planes", with_value("sigma", -0.1), ["the sigma of", "00001_nrcalong_cal.fits", "-0.1", "correct"]),
        ("planes", with_value("sigma", np.nan), ["the sigma of", "00001_nrcalong_cal.fits", "nan", "correct"]),
    ],
)  # fmt: skip
def test_tables_that_were_changed_by_hand(files, tmp_path, capsys, name, change, parts):
    table = tmp_path / f"{name}.ecsv"
    rows = Table.read(table)
    change(rows)
    rows.write(table, overwrite=True)
    has(refused(capsys, tmp_path, table, files[:1]), table.name, *parts)


def test_plain_images_elsewhere_than_their_planes(tmp_path, capsys):
    given = write_images(tmp_path / "in")
    table = tmp_path / "levels.ecsv"
    match_images(*given, "--out", tmp_path / "matched", "--save_table", table, "--fit_type", "level+slope")
    rows = Table.read(table)
    rows["dec"] += 0.1
    rows.write(table, overwrite=True)
    has(refused(capsys, tmp_path, table, given), given[0].name, "far from", table.name)


def test_tables_of_exposures_and_of_pairs_do_not_replace_each_other(tmp_path):
    """Of exposures in a file that is named as those of the pairs are, and of pairs."""
    given = write_images(tmp_path / "in")
    for name in ("a_pairs.ecsv", "b.ecsv"):
        assert match_images(*given, "--out", tmp_path / "out", "--save_table", tmp_path / name) == 0
    before = digest(tmp_path.glob("*.ecsv"))
    for name, wrong, kind in (("a", "a_pairs", "exposures"), ("b_pairs", "b_pairs", "pairs")):
        with pytest.raises(ValueError, match=rf"{wrong}.ecsv exists and is a table of {kind}; choose another name"):
            record.check_tables(tmp_path / f"{name}.ecsv")
    for name in ("a_pairs.ecsv", "b.ecsv", "c.ecsv"):
        record.check_tables(tmp_path / name)
    assert digest(tmp_path.glob("*.ecsv")) == before


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_table_of_a_name_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"save_table=.* cannot be a file \(.*\); choose another name"):
        record.check_tables(tmp_path / name)


def test_statuses_of_tables_are_those_of_the_matches():
    known = {match.MATCHED, match.MEASURED, levels.FIXED}, {levels.BACKGROUND, match.NO_OVERLAP, match.NO_PIXELS}
    assert (set(saved._HAVE_LEVELS), set(saved._HAVE_NONE)) == known


def test_tables_of_units_that_are_not_known(tmp_path):
    """HST writes ELECTRONS/S."""
    given = write_images(tmp_path / "in", unit="ELECTRONS/S")
    match_images(*given, "--out", tmp_path / "matched", "--save_table", tmp_path / "levels.ecsv")
    assert str(Table.read(tmp_path / "levels.ecsv")["slope_east"].unit) == "ELECTRONS/S / arcsec"
    assert apply(tmp_path / "levels.ecsv", given, tmp_path / "applied") == 0


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ("first", ["table of pairs", "_pairs"]),
        ("n_members", ["ImageForImageStep", "_i4ibkg.fits"]),
        ("coefficients", ["MRSIMatchStep", "run it"]),
    ],
)
def test_tables_that_cannot_be_applied(files, tmp_path, capsys, column, parts):
    table = tmp_path / "other.ecsv"
    Table({"name": ["a"], "level": [1.0], column: [1]}).write(table)
    has(refused(capsys, tmp_path, table, files[:1]), "other.ecsv", *parts)
    assert main(["skylist", str(table)]) == 1


def test_tables_that_are_none(files, tmp_path, capsys):
    has(refused(capsys, tmp_path, tmp_path / "none.ecsv", files[:1]), "none.ecsv", "does not exist")
    has(refused(capsys, tmp_path, files[1], files[:1]), files[1].name, "not a table of levels")


def test_planes_are_no_skylist(files, tmp_path, capsys):
    assert main(["skylist", str(tmp_path / "planes.ecsv")]) == 1
    has(capsys.readouterr().err, "LevelMatchStep", "bkgmatch apply")


def fill_the_disk(patch):
    """There is room for one model, and for no other."""
    save, saved = datamodels.ImageModel.save, []

    def fails(model, path, **kwargs):
        if saved:
            raise OSError("no space left on device")
        saved.append(path)
        return save(model, path, **kwargs)

    patch.setattr(datamodels.ImageModel, "save", fails)


def test_an_error_while_copies_are_written_leaves_none(files, tmp_path, capsys, monkeypatch):
    fill_the_disk(monkeypatch)
    has(refused(capsys, tmp_path, tmp_path / "sky.ecsv", files[:3]), "no space left")


def test_tables_of_levels_relative_to_others(files, tmp_path, capsys):
    """A table says whether its exposures had a background of another step: it fits those, and not the originals."""
    SkyMatchStep.call(
        [str(file) for file in files[:3]], subtract=True, save_results=True, output_dir=str(tmp_path / "first")
    )
    skies = sorted((tmp_path / "first").glob("*_skymatch.fits"))
    table = tmp_path / "relative.ecsv"
    LevelMatchStep.call(
        [str(file) for file in skies], save_table=str(table), save_results=True, output_dir=str(tmp_path / "second")
    )
    has(
        refused(capsys, tmp_path, table, files[:3]),
        files[0].name,
        "relative to earlier ones",
        "files that were matched",
    )
    assert apply(table, skies, tmp_path / "applied") == 0
    for result in sorted((tmp_path / "second").glob("*_levelmatch.fits")):
        applied = tmp_path / "applied" / result.name.replace("levelmatch", "skymatch")
        np.testing.assert_array_equal(fits.getdata(applied), fits.getdata(result))
    assert main(["report", str(table), *map(str, skies), "--out", str(tmp_path / "page.html")]) == 1
    assert "relative to earlier ones" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_step_refuses_what_the_command_refuses(files, tmp_path, capsys):
    """With apply_table: levels of a table of another unit, relative levels, and any after another step's."""
    tables = {name: tmp_path / f"{name}.ecsv" for name in ("relative", "unit")}
    rows = Table.read(tmp_path / "sky.ecsv")
    rows["level"].unit = "MJy/sr"
    rows.write(tables["unit"])
    rows.meta["options"]["relative"] = True
    rows.write(tables["relative"])
    spoil(files[0], lambda model: setattr(model.meta, "bunit_data", "DN/s"))
    matched = results(tmp_path, "planes")
    for table, given, parts in (
        (tables["unit"], files[0], ("DN/s", "MJy / sr", "convert")),
        (tables["relative"], files[1], ("relative to earlier ones", "files that were matched")),
        (tmp_path / "sky.ecsv", matched[1], ("has been subtracted", "undo")),
    ):
        has(refused(capsys, tmp_path, table, [given]), given.name, *parts)
        with pytest.raises(ValueError, match=given.name) as caught:
            SkyMatchStep.call([str(given)], apply_table=str(table), subtract=True)
        has(str(caught.value), *parts)


# -------------------------------------------------------------------------------------------------- undo


@pytest.mark.parametrize("order", [(LevelMatchStep, SkyMatchStep), (SkyMatchStep, LevelMatchStep)], ids=str)
def test_undo_of_two_steps_in_any_order(files, order):
    """Blank pixels, which level matching leaves as they are, come back too; HISTORY tells; no status is left."""
    models = [datamodels.open(file) for file in files]
    for model in models:
        model.data[:4], model.dq[:4] = 0, 513
    given = [model.data.copy() for model in models]
    first, second = (step.call(models, subtract=True) if k == 0 else step for k, step in enumerate(order))
    library = second.call(first, subtract=True)
    with library:
        for k, old in enumerate(given):
            model = library.borrow(k)
            assert undo(model) == (k < 3)
            np.testing.assert_allclose(model.data, old, rtol=3e-7, atol=3e-6)
            assert str(model.instance.get("history")).count(" back") == (2 if k < 3 else 0)
            assert not any(value for key, value in model.meta.cal_step.items() if key in ("skymatch", "level_match"))
            assert card(model, "S_LVLMAT") is None
            library.shelve(model, k, modify=False)


def test_undo_writes_all_or_nothing(files, tmp_path, capsys, monkeypatch):
    """Of planes in a file without a WCS, and where writing fails."""
    matched = results(tmp_path, "planes")[:3]
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        assert main(["undo", *map(str, matched), "--out", str(tmp_path / "undone")]) == 1
    has(capsys.readouterr().err, "no space left")
    assert left_files(tmp_path / "undone") == []
    with datamodels.open(matched[2]) as model:
        lost = model.copy()
        lost.meta.wcs = None
        lost.save(matched[2])
    assert main(["undo", *map(str, matched), "--out", str(tmp_path / "undone")]) == 1
    has(capsys.readouterr().err, matched[2].name, "no WCS")
    assert left_files(tmp_path / "undone") == []
