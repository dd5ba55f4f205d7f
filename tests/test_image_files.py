"""``bkgmatch level``: FITS images of any telescope, in files."""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from builders import SIDE, digest, exposure_name, has, image_model, spoil, tile_wcs
from builders import write as write_models
from common import few, tan
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep, LevelMatchStep
from bkgmatch.cli import main
from bkgmatch.images import FitsImage
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.simulated import write_exposures

pytestmark = pytest.mark.usefixtures("offline")

SHAPE = (60, 72)
LEVELS = {"a": 3.0, "b": 5.0, "c": 10.0}
SHIFTS = {"a": (0.0, 0.0), "b": (50.3, 4.2), "c": (98.7, -3.6)}
NOISE = 0.05
NEAR = 0.03  # many errors


def sky_of(wcs):
    """A smooth nebula, so that shifts in position show."""
    y, x = np.indices(SHAPE)
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    return 3 * np.sin((ra - 150) * 3600 / 2) * np.cos((dec - 20) * 3600 / 3)


def image(name, *, kind="float32", unit="MJy/sr", error=True, layout="SCI", level=None, slope=0.0):
    """HDUs of one of three neighbours."""
    wcs = tan(shift=SHIFTS[name], shape=SHAPE)
    data = sky_of(wcs) + (LEVELS[name] if level is None else level)
    data = data + slope * (np.arange(SHAPE[1]) - SHAPE[1] / 2)
    data = data + np.random.default_rng(ord(name)).normal(0, NOISE, SHAPE)
    if kind.startswith(("i", "u")):
        data = np.rint(100 * data + 1000)
    header = wcs.to_header()
    if unit:
        header["BUNIT"] = unit
    data = data.astype(kind)
    errors = [fits.ImageHDU(np.full(SHAPE, NOISE, np.float32), name="ERR")] if error else []
    if layout == "primary":
        return fits.HDUList([fits.PrimaryHDU(data, header), *errors])
    if layout == "unnamed":
        return fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, header), *errors])
    if layout == "last":
        other = fits.ImageHDU(np.zeros((5, 5), np.float32), name="THUMB")
        columns = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])], name="CATALOGUE")
        return fits.HDUList([fits.PrimaryHDU(), *errors, columns, other, fits.ImageHDU(data, header, name="SCI")])
    return fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, header, name="SCI"), *errors])


def write(folder, names="abc", **options):
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.fits" for name in names]
    for name, file in zip(names, files, strict=True):
        image(name, **options).writeto(file)
    return files


def level(*words):
    return main(["level", *map(str, words)])


def pixels(file):
    with fits.open(file) as hdus:
        return next(np.array(hdu.data) for hdu in hdus if np.shape(hdu.data) == SHAPE and hdu.name != "ERR")


def removed(files, folder):
    """Middle of what was subtracted from each image."""
    return np.array([np.median(pixels(f).astype(float) - pixels(folder / f.name)) for f in files])


def apart(values):
    """Differences from the first."""
    return np.asarray(values) - values[0]


# -------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("layout", "error"), [("primary", True), ("SCI", True), ("unnamed", False), ("last", True), ("last", False)]
)
def test_levels_of_plain_images(tmp_path, layout, error, capsys):
    files = write(tmp_path / "in", layout=layout, error=error)
    before = digest(files)
    assert level(*files, "--out", tmp_path / "out", "--save_table", tmp_path / "levels.ecsv") == 0
    assert digest(files) == before
    assert sorted((tmp_path / "out").iterdir()) == [tmp_path / "out" / f.name for f in files]
    found = removed(files, tmp_path / "out")
    np.testing.assert_allclose(apart(found), (0, 2, 7), atol=NEAR)
    table = Table.read(tmp_path / "levels.ecsv")
    assert list(table["name"]) == [f.name for f in files]
    np.testing.assert_allclose(table["level"], found, atol=1e-6)
    np.testing.assert_allclose(table["sigma"], NOISE / 30, rtol=0.9)
    assert table["level"].unit == "MJy / sr"
    assert set(Table.read(tmp_path / "levels_pairs.ecsv")["pass"]) == {"joint"}
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert [line.partition(":")[0] for line in lines if ": level" in line] == [f.name for f in files]
    assert all(" MJy/sr, subtracted" in line for line in lines if ": level" in line)
    assert lines[0].startswith("3 exposures, 2 pairs (2 of joint): 2 used")
    assert lines[-1] == f"Copies are in {tmp_path / 'out'}"
    for file, value in zip(files, found, strict=True):
        copy = tmp_path / "out" / file.name
        np.testing.assert_allclose(pixels(copy), pixels(file) - value, atol=1e-6)
        with fits.open(copy) as ours, fits.open(file) as theirs:
            assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
            assert ours[0].header["S_LVLMAT"] == "COMPLETE"
            assert ours[0].header["LVLMATCH"] == pytest.approx(value, abs=1e-6)
            for mine, his in zip(ours, theirs, strict=True):
                assert set(his.header) <= set(mine.header)
                if mine.name in ("ERR", "THUMB"):
                    np.testing.assert_array_equal(mine.data, his.data)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint16", "float64"])
def test_kinds_of_numbers(tmp_path, kind):
    files = write(tmp_path / "in", kind=kind, error=False)
    assert level(*files, "--out", tmp_path / "out") == 0
    scale = 1 if kind == "float64" else 100
    np.testing.assert_allclose(
        apart(removed(files, tmp_path / "out")), np.multiply(scale, (0, 2, 7)), atol=scale * NEAR
    )
    kinds = {pixels(tmp_path / "out" / f.name).dtype.kind for f in files}
    assert kinds == {"f"}


def test_blank_pixels_of_integer_images(tmp_path):
    files = write(tmp_path / "in", kind="int16", error=False, layout="primary")
    for file in files:
        with fits.open(file, mode="update", do_not_scale_image_data=True) as hdus:
            hdus[0].data[10:20] = -32768
            hdus[0].header["BLANK"] = -32768
    assert level(*files, "--out", tmp_path / "out") == 0
    for file in files:
        copy = pixels(tmp_path / "out" / file.name)
        assert np.isnan(copy[10:20]).all()
        assert np.isfinite(copy[:10]).all()
    np.testing.assert_allclose(apart(removed_below(files, tmp_path / "out")), (0, 200, 700), atol=100 * NEAR)


def removed_below(files, folder):
    return np.array([np.median(pixels(f)[:10].astype(float) - pixels(folder / f.name)[:10]) for f in files])


def test_nan_and_infinite_pixels_stay(tmp_path):
    files = write(tmp_path / "in")
    for file in files:
        with fits.open(file, mode="update") as hdus:
            hdus["SCI"].data[::7] = np.nan
            hdus["SCI"].data[3::7] = np.inf
    assert level(*files, "--out", tmp_path / "out") == 0
    for file in files:
        old, new = pixels(file), pixels(tmp_path / "out" / file.name)
        for test in (np.isnan, np.isposinf, np.isfinite):
            np.testing.assert_array_equal(test(old), test(new))
        assert (np.abs(old[np.isfinite(old)] - new[np.isfinite(old)]) < 20).all()


def test_compressed_images_keep_their_values(tmp_path):
    """The copy is what was asked for: the image less its level, not a coarser one."""
    files = write(tmp_path / "in", error=False)
    for file in files:
        with fits.open(file) as hdus:
            packed = fits.CompImageHDU(hdus["SCI"].data, hdus["SCI"].header, name="SCI", quantize_level=16)
            fits.HDUList([fits.PrimaryHDU(), packed]).writeto(file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    assert level(*files, "--out", tmp_path / "out") == 0
    for file, value in zip(files, removed(files, tmp_path / "out"), strict=True):
        np.testing.assert_allclose(pixels(tmp_path / "out" / file.name), pixels(file) - value, atol=1e-3)


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_planes(tmp_path, fit):
    """The middle image is tilted by 0.01 per pixel (0.1"), along the rows to the west."""
    folder = tmp_path / "in"
    files = [*write(folder, "ac"), *write(folder, "b", slope=0.01)]
    table = tmp_path / "levels.ecsv"
    assert (
        level(*files, "--out", tmp_path / "out", "--fit_type", fit, "--save_table", table, "--reference", "a.fits") == 0
    )
    a, b, _ = (pixels(folder / f"{n}.fits").astype(float) - pixels(tmp_path / "out" / f"{n}.fits") for n in "abc")
    tilt = np.polyfit(np.arange(SHAPE[1]), (b - np.mean(a)).mean(axis=0), 1)[0]
    head = fits.getheader(tmp_path / "out" / "b.fits")
    if fit == "level":
        assert tilt == pytest.approx(0, abs=1e-6)
        assert "LVLMATCH" in head
        return
    own = np.polyfit(np.arange(SHAPE[1]), a.mean(axis=0), 1)[0]
    assert tilt - own == pytest.approx(0.01, abs=0.002)
    row = Table.read(table)[1]
    assert head["LVLM_A"] == pytest.approx(row["slope_east"], rel=1e-10)
    assert head["LVLM_C"] == pytest.approx(row["level"], rel=1e-10)
    assert "LVLMATCH" not in head
    assert row["slope_east"] == pytest.approx(-tilt / 0.1, rel=1e-3)


# -------------------------------------------------------------------------------------------------- JWST


@pytest.fixture(scope="module")
def jwst(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jwst")
    exposures = simulate_mosaic(
        rng=np.random.default_rng(11), binning=32, tiles=(1, 2), dithers=2, overlap=0.3, tilt=0.05, level_range=(1, 3)
    )
    write_exposures(exposures, folder)
    return [folder / f"{e.name}_cal.fits" for e in exposures]


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_jwst_files_as_by_the_step(jwst, tmp_path, fit):
    before = digest(jwst)
    assert level(*jwst, "--out", tmp_path, "--save_table", tmp_path / "ours.ecsv", "--fit_type", fit) == 0
    assert digest(jwst) == before
    # Without tiles, the reference is one exposure.
    library = LevelMatchStep.call(
        jwst, passes="joint", fit_type_dithers=fit, save_table=str(tmp_path / "theirs.ecsv"), reference="mean",
        do_local_subtraction=False,
    )  # fmt: skip
    ours, theirs = (Table.read(tmp_path / name) for name in ("ours.ecsv", "theirs.ecsv"))
    assert list(ours["name"]) == list(theirs["name"])
    for column in ("slope_east", "slope_north"):
        np.testing.assert_allclose(ours[column] - ours[column][0], theirs[column] - theirs[column][0], atol=2e-5)
    np.testing.assert_allclose(ours["sigma"], theirs["sigma"], rtol=1e-6)
    if fit == "level":
        np.testing.assert_allclose(apart(ours["level"]), apart(theirs["level"]), atol=1e-6)
    assert len(library) == len(jwst)


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_jwst_files_with_the_same_reference_are_the_same(jwst, tmp_path, fit):
    """Pixel by pixel, if each exposure is a tile."""
    name = jwst[2].name
    assert level(*jwst[:3:2], "--out", tmp_path, "--reference", name, "--fit_type", fit) == 0
    library = LevelMatchStep.call([jwst[0], jwst[2]], passes="joint", reference=name, fit_type_dithers=fit)
    with library:
        for file, data in zip(
            (jwst[0], jwst[2]), library.map_function(lambda m, _: m.data.copy(), modify=False), strict=True
        ):
            np.testing.assert_allclose(fits.getdata(tmp_path / file.name, "SCI"), data, rtol=0, atol=1e-6)


def test_jwst_flags_count(jwst, tmp_path):
    """A third of one image is 50 too high, and flagged."""
    files = [Path(shutil.copy(f, tmp_path / f.name)) for f in jwst]
    with fits.open(files[0], mode="update") as hdus:
        hdus["SCI"].data[20:40] += 50
        hdus["DQ"].data[20:40] |= 512
    results = []
    for n, given in enumerate((jwst, files)):
        assert (
            level(*given, "--out", tmp_path / str(n), "--save_table", tmp_path / f"{n}.ecsv", "--reference", "mean")
            == 0
        )
        results.append(Table.read(tmp_path / f"{n}.ecsv")["level"])
    np.testing.assert_allclose(apart(results[1]), apart(results[0]), atol=0.02)


@pytest.mark.parametrize("is_mosaic", [False, True], ids=["an exposure", "a mosaic"])
def test_a_recorded_sky_level_is_not_measured_again(jwst, tmp_path, is_mosaic):
    """Resample will subtract it from an exposure; from the mosaic that it made it has."""

    def record(model):
        background = model.meta.background
        background.level, background.subtracted, background.method = 5.0, False, "match"
        if is_mosaic:
            model.meta.cal_step.resample = "COMPLETE"
        else:
            model.data = model.data + np.float32(5)

    files = [Path(shutil.copy(f, tmp_path / f.name)) for f in jwst]
    spoil(files[0], record)
    for given, name in ((jwst, "without"), (files, "with")):
        assert level(*given, "--out", tmp_path / name, "--save_table", tmp_path / f"{name}.ecsv") == 0
    one, two = (Table.read(tmp_path / f"{name}.ecsv")["level"] for name in ("without", "with"))
    np.testing.assert_allclose(two, one, atol=1e-5)


# -------------------------------------------------------------------------------------------------- undo, again


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_undo_of_an_image(tmp_path, fit):
    files = write(tmp_path / "in")
    level(*files, "--out", tmp_path / "out", "--fit_type", fit)
    for file in files:
        path, undone = FitsImage.open(tmp_path / "out" / file.name).undo(tmp_path)
        assert (path, undone) == (tmp_path / file.name, True)
        np.testing.assert_allclose(pixels(path), pixels(file), rtol=0, atol=2e-6)
        with fits.open(path) as hdus:
            assert not [key for key in hdus[0].header if key.startswith(("LVLM", "S_LVL"))]
        again = tmp_path / "again"
        again.mkdir(exist_ok=True)
        assert FitsImage.open(path).undo(again) == (again / file.name, False)


def test_undo_of_an_image_that_has_been_aligned_since(tmp_path):
    """What was subtracted is added back to the same pixels; what is subtracted in between, too."""
    files = write(tmp_path / "in")
    given = files
    for k in range(2):
        out = tmp_path / str(k)
        assert level(*given, "--out", out, "--fit_type", "level+slope", "--no-do_local_subtraction") == 0
        given = [out / file.name for file in files]
        for file in given:
            with fits.open(file, mode="update") as hdus:
                header = next(hdu.header for hdu in hdus if "CRVAL1" in hdu.header)
                header["CRVAL1"] += 0.4 / 3600
                header["CRVAL2"] -= 0.3 / 3600
                if k == 0:  # now the planes do not cancel
                    hdus["SCI"].data += np.linspace(0, 1, SHAPE[1], dtype=np.float32) * (file.name == "b.fits")
    for file, matched in zip(files, given, strict=True):
        path, undone = FitsImage.open(matched).undo(tmp_path)
        assert undone
        slope = np.linspace(0, 1, SHAPE[1], dtype=np.float32) * (file.name == "b.fits")
        np.testing.assert_allclose(pixels(path), pixels(file) + slope, rtol=0, atol=4e-6)
        with fits.open(path) as hdus:
            assert not [key for key in hdus[0].header if key.startswith(("LVLM", "S_LVL"))]


@pytest.mark.parametrize("layout", ["SCI", "primary"])
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_undo_on_the_command_line(tmp_path, fit, layout):
    files = write(tmp_path / "in", layout=layout)
    level(*files, "--out", tmp_path / "out", "--fit_type", fit)
    matched = [tmp_path / "out" / f.name for f in files]
    before = digest(matched)
    assert main(["undo", *map(str, matched), "--out", str(tmp_path / "undone")]) == 0
    assert digest(matched) == before
    for file in files:
        np.testing.assert_allclose(pixels(tmp_path / "undone" / file.name), pixels(file), rtol=0, atol=2e-6)
        with fits.open(tmp_path / "undone" / file.name) as ours, fits.open(file) as theirs:
            assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
            assert not [key for key in ours[0].header if key.startswith(("LVLM", "S_LVL"))]


@pytest.mark.parametrize("fit", few(1, ["level", "level+slope"]))
def test_undo_of_jwst_files(jwst, tmp_path, fit):
    level(*jwst, "--out", tmp_path / "out", "--fit_type", fit)
    matched = [str(tmp_path / "out" / f.name) for f in jwst]
    assert main(["undo", *matched, "--out", str(tmp_path / "undone")]) == 0
    for file in jwst:
        back, old = (fits.getdata(folder / file.name, "SCI") for folder in (tmp_path / "undone", file.parent))
        np.testing.assert_allclose(back, old, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", ["plain", "jwst"])
def test_undo_of_images_with_one_name(jwst, tmp_path, capsys, kind):
    if kind == "plain":
        given = [*write(tmp_path / "one", "a"), *write(tmp_path / "two", "a")]
    else:
        given = [jwst[0], tmp_path / jwst[0].name]
        shutil.copy(*given)
    assert main(["undo", *map(str, given), "--out", str(tmp_path / "undone")]) == 1
    assert given[0].name in capsys.readouterr().err


def test_the_step_finds_what_the_command_line_has_subtracted(jwst, tmp_path):
    """The records add up, and undo gives back the first input."""
    level(*jwst, "--out", tmp_path / "out")
    library = LevelMatchStep.call(
        [str(tmp_path / "out" / f.name) for f in jwst], save_results=True, output_dir=str(tmp_path)
    )
    with library:
        list(library.map_function(lambda m, _: None, modify=False))
    results = sorted(tmp_path.glob("*_levelmatch.fits"))
    assert main(["undo", *map(str, results), "--out", str(tmp_path / "undone")]) == 0
    for file, back in zip(jwst, sorted((tmp_path / "undone").iterdir()), strict=True):
        np.testing.assert_allclose(fits.getdata(back, "SCI"), fits.getdata(file, "SCI"), rtol=3e-7, atol=3e-6)


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_matching_again_adds_to_the_record(tmp_path, fit):
    """Undo then gives back the first input."""
    files = write(tmp_path / "in")
    level(*files[:2], "--out", tmp_path / "one", "--fit_type", fit)
    given = [tmp_path / "one" / f.name for f in files[:2]]
    level(
        *given,
        files[2],
        "--out",
        tmp_path / "two",
        "--fit_type",
        fit,
        "--reference",
        "c.fits",
        "--no-do_local_subtraction",
    )
    for file in files:
        path, undone = FitsImage.open(tmp_path / "two" / file.name).undo(tmp_path)
        assert undone
        np.testing.assert_allclose(pixels(path), pixels(file), rtol=0, atol=4e-6)
    np.testing.assert_allclose(apart(removed(files, tmp_path / "two")), (0, 2, 7), atol=NEAR)


# -------------------------------------------------------------------------------------------------- fixed, plots


def test_fixed_images(tmp_path):
    (fixed,) = write(tmp_path / "old", "b", level=1.0)
    files = write(tmp_path / "in", "ac")
    assert level(*files, "--out", tmp_path / "out", "--fixed", fixed, "--save_table", tmp_path / "levels.ecsv") == 0
    np.testing.assert_allclose(removed(files, tmp_path / "out"), (2, 9), atol=NEAR)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.fits", "c.fits"]
    assert Table.read(tmp_path / "levels.ecsv").meta["reference"] == ["fixed"]


def test_pictures(tmp_path):
    files = write(tmp_path / "in", "ab")
    assert level(*files, "--out", tmp_path / "out", "--save_plots", tmp_path / "pictures") == 0
    found = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert found == ["a-b.png", "mosaic.png"]


def test_pictures_of_a_second_run_replace_those_of_the_first(tmp_path):
    files = write(tmp_path / "in", "ab")
    for out in ("one", "two"):
        assert level(*files, "--out", tmp_path / out, "--save_plots", tmp_path / "pictures") == 0
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["a-b.png", "mosaic.png"]


@pytest.mark.parametrize("what", ["folder", "matplotlib"])
def test_pictures_that_cannot_be_drawn_are_refused_before_the_match(tmp_path, monkeypatch, capsys, what):
    monkeypatch.setattr("bkgmatch.image_files.match_levels", None)
    (tmp_path / "file").write_text("here a folder is needed\n")
    if what == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / ("file" if what == "folder" else "pictures")
    has(
        refused(tmp_path, capsys, *write(tmp_path / "in", "ab"), "--save_plots", path),
        path.name if what == "folder" else what,
    )


def test_an_image_that_overlaps_nothing(tmp_path, capsys):
    """It is named; the others are matched."""
    files = write(tmp_path / "in")
    with fits.open(files[2], mode="update") as hdus:
        hdus["SCI"].header["CRVAL2"] += 1
    assert level(*files, "--out", tmp_path / "out") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "c.fits" in line]
    assert "no overlap" in line
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "c.fits"), pixels(files[2]))
    np.testing.assert_allclose(apart(removed(files[:2], tmp_path / "out")), (0, 2), atol=NEAR)


def test_levels_of_matched_images_are_relative(tmp_path, capsys):
    """A table says so, and is not applied to images as they came."""
    files = write(tmp_path / "in")
    level(*files, "--out", tmp_path / "one", "--save_table", tmp_path / "one.ecsv")
    level(*(tmp_path / "one").iterdir(), "--out", tmp_path / "two", "--save_table", tmp_path / "two.ecsv")
    flags = [Table.read(tmp_path / f"{name}.ecsv").meta["options"]["relative"] for name in ("one", "two")]
    assert flags == [False, True]
    assert main(["apply", str(tmp_path / "two.ecsv"), *map(str, files), "--out", str(tmp_path / "applied")]) == 1
    has(capsys.readouterr().err, "a.fits", "relative to earlier ones")


def test_an_image_that_was_matched_keeps_its_status(tmp_path):
    """When it overlaps nothing any more, what was subtracted stays on record."""
    files = write(tmp_path / "in")
    level(*files, "--out", tmp_path / "one")
    again = sorted((tmp_path / "one").iterdir())
    with fits.open(again[2], mode="update") as hdus:
        hdus["SCI"].header["CRVAL2"] += 1
    level(*again, "--out", tmp_path / "two")
    header = fits.getheader(tmp_path / "two" / "c.fits")
    assert (header["S_LVLMAT"], header["LVLM_SUB"]) == ("COMPLETE", True)


def test_images_with_galactic_axes(tmp_path):
    """A celestial WCS with galactic axes is that of the same sky."""
    files = write(tmp_path / "in", "ab")
    with fits.open(files[1], mode="update") as hdus:
        wcs = WCS(hdus["SCI"].header)
        middle = wcs.pixel_to_world(*(np.array(SHAPE[::-1]) / 2)).galactic
        hdus["SCI"].header.update({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"})
        hdus["SCI"].header.update({"CRVAL1": middle.l.deg, "CRVAL2": middle.b.deg})
        hdus["SCI"].header.update({"CRPIX1": SHAPE[1] / 2 + 1, "CRPIX2": SHAPE[0] / 2 + 1})
        hdus["SCI"].header.remove("RADESYS", ignore_missing=True)
    level(*files, "--out", tmp_path / "out", "--save_table", tmp_path / "levels.ecsv")
    assert list(Table.read(tmp_path / "levels.ecsv")["status"]) == ["matched"] * 2


# -------------------------------------------------------------------------------------------------- bad input


def refused(tmp_path, capsys, *words):
    """One line on the error stream, exit code 1, nothing written."""
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    hashes = digest(before)
    assert level(*words, "--out", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert message.startswith("bkgmatch level: ")
    assert len(message.splitlines()) == 1, message
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    assert digest(before) == hashes
    return message


def test_where_a_folder_has_the_name_of_a_copy_nothing_is_written(tmp_path, capsys):
    files = write(tmp_path / "in")
    out = tmp_path / "out"
    assert level(*files[:2], "--out", out) == 0
    before = digest([out / "a.fits"])
    (out / "b.fits").unlink()
    (out / "b.fits").mkdir()
    assert level(*files, "--out", out, "--save_table", out / "levels.ecsv") == 1
    has(capsys.readouterr().err, "b.fits is a folder")
    assert digest([out / "a.fits"]) == before
    assert sorted(file.name for file in out.iterdir()) == ["a.fits", "b.fits"]


@pytest.mark.parametrize("kind", ["input", "fixed"])
def test_an_image_that_stands_under_another_name_in_the_folder_of_the_copies(tmp_path, capsys, kind):
    """A link leads from an input, or from a fixed image, to what the copy of another one would replace."""
    files = write(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    files[0].rename(out / "b.fits")
    files[0].symlink_to(out / "b.fits")
    before = digest([out / "b.fits"])
    words = files[:2] if kind == "input" else [*files[1:], "--fixed", files[0]]
    assert level(*words, "--out", out) == 1
    has(capsys.readouterr().err, "a.fits would be overwritten", "choose another folder")
    assert digest([out / "b.fits"]) == before


def test_copies_of_files_with_checksums_have_right_ones(tmp_path):
    files = [tmp_path / f"{name}.fits" for name in "abc"]
    for name, file in zip("abc", files, strict=True):
        image(name).writeto(file, checksum=name != "c")
    assert level(*files, "--out", tmp_path / "out") == 0
    for file in files:
        with fits.open(tmp_path / "out" / file.name, checksum=True) as hdus:  # a wrong one is a warning
            assert ("CHECKSUM" in hdus["SCI"].header) == (file.stem != "c")
            assert hdus["SCI"].data.shape == SHAPE


@pytest.mark.parametrize(("kind", "pedestal"), [("float64", 1e8), ("int32", 2**28)])
def test_images_of_many_digits(tmp_path, kind, pedestal):
    """More than single precision has: their levels are as those of the same images without the pedestal."""
    files = []
    for name in "abc":
        hdus = image(name, kind=kind)
        hdus["SCI"].data += np.array(pedestal, kind)
        files.append(tmp_path / f"{name}.fits")
        hdus.writeto(files[-1])
    assert level(*files, "--out", tmp_path / "out", "--save_table", tmp_path / "levels.ecsv") == 0
    found = Table.read(tmp_path / "levels.ecsv")["level"]
    scale = 100 if kind == "int32" else 1
    np.testing.assert_allclose(np.diff(found), scale * np.diff(list(LEVELS.values())), atol=scale * NEAR)


def test_names_from_two_folders(tmp_path, capsys):
    one, two = write(tmp_path / "one", "ab"), write(tmp_path / "two", "ac")
    has(refused(tmp_path, capsys, *one, *two), "a.fits", "several files")


def test_missing_file(tmp_path, capsys):
    files = write(tmp_path / "in", "ab")
    has(refused(tmp_path, capsys, *files, tmp_path / "none.fits"), "none.fits", "does not exist")
    has(refused(tmp_path, capsys, *files, "--fixed", tmp_path / "none.fits"), "none.fits", "does not exist")


def without_wcs(hdus):
    for key in ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2"):
        del hdus["SCI"].header[key]


def linear(hdus):
    hdus["SCI"].header["CTYPE1"], hdus["SCI"].header["CTYPE2"] = "X", "Y"


def cube(hdus):
    hdus["SCI"].data = np.zeros((2, *SHAPE), np.float32)


def tables_only(hdus):
    del hdus["SCI"], hdus["ERR"]


def errors_of_another_shape(hdus):
    hdus["ERR"].data = hdus["ERR"].data[:-1]


def ecliptic(hdus):
    """Astropy takes these for right ascension and declination."""
    hdus["SCI"].header["CTYPE1"], hdus["SCI"].header["CTYPE2"] = "ELON-TAN", "ELAT-TAN"


def helioecliptic(hdus):
    hdus["SCI"].header["CTYPE1"], hdus["SCI"].header["CTYPE2"] = "HLON-TAN", "HLAT-TAN"


@pytest.mark.parametrize("change", [ecliptic, helioecliptic])
def test_axes_that_are_not_equatorial_or_galactic(tmp_path, capsys, change):
    files = write(tmp_path / "in", "ab")
    with fits.open(files[1], mode="update") as hdus:
        change(hdus)
        axes = hdus["SCI"].header["CTYPE1"][:4]
    has(refused(tmp_path, capsys, *files), "b.fits", axes, "not RA and Dec or galactic", "reproject")


@pytest.mark.parametrize("change", [without_wcs, linear, cube, tables_only])
def test_files_that_hold_no_such_image(tmp_path, capsys, change):
    files = write(tmp_path / "in", "ab")
    with fits.open(files[1], mode="update") as hdus:
        change(hdus)
        if change is cube:
            del hdus["ERR"]
    has(refused(tmp_path, capsys, *files), "b.fits", "celestial WCS")


def test_errors_of_another_shape(tmp_path, capsys):
    files = write(tmp_path / "in", "ab")
    with fits.open(files[1], mode="update") as hdus:
        errors_of_another_shape(hdus)
    has(refused(tmp_path, capsys, *files), "b.fits", "ERR", "(59, 72)", "(60, 72)")


@pytest.mark.parametrize("content", [b"", b"hello\n", "truncated", "folder"])
def test_files_that_cannot_be_read(tmp_path, capsys, content):
    files = write(tmp_path / "in", "ab")
    if content == "folder":
        files[1].unlink()
        files[1].mkdir()
    else:
        files[1].write_bytes(files[1].read_bytes()[:9000] if content == "truncated" else content)
    has(refused(tmp_path, capsys, *files), "b.fits")


def jwst_files(folder):
    return write_models([image_model(exposure_name(n), np.ones((SIDE, SIDE)), wcs)
                         for n, wcs in enumerate(tile_wcs((1, 2)), 1)], folder)  # fmt: skip


@pytest.mark.parametrize("kept", [0.6, 0.98])
def test_a_truncated_jwst_file_is_damaged(tmp_path, capsys, kept):
    """What is lost last is the WCS; the FITS WCS in the header would do without DQ and ERR."""
    files = jwst_files(tmp_path / "in")
    with fits.open(files[1], mode="update") as hdus:
        hdus["SCI"].header.update(tan(shape=(SIDE, SIDE)).to_header())
    content = files[1].read_bytes()
    files[1].write_bytes(content[: int(kept * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy's, of the same
        has(refused(tmp_path, capsys, *files), files[1].name, "cannot be read", "damaged", "replace it")


def test_jwst_files_that_are_not_for_level_are_told_what_the_steps_tell(tmp_path, capsys):
    files = jwst_files(tmp_path / "in")
    spoil(files[1], lambda model: setattr(model.meta, "wcs", None))
    told = f"{files[1]}: there is no WCS; run the assign_wcs step first"
    has(refused(tmp_path, capsys, *files), told)
    with pytest.raises(ValueError, match="there is no WCS; run the assign_wcs step first") as caught:
        ImageForImageStep.call([str(file) for file in files])
    has(str(caught.value), told)
    capsys.readouterr()
    spoil(files[0], lambda model: setattr(model.meta.exposure, "type", "MIR_MRS"))
    has(refused(tmp_path, capsys, *files), files[0].name, "is no image but MIR_MRS; for MIRI MRS use MRSIMatchStep")


def test_the_advice_for_poor_fits_has_options_of_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bkgmatch.level_story.POOR", -1.0)
    assert level(*write(tmp_path / "in", "ab"), "--out", tmp_path / "out") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "may be missing" in line]
    assert "planes (--fit_type=level+slope)" in line
    assert "recombine_lyot" not in line
    assert "dithers" not in line


def test_units_that_differ(tmp_path, capsys):
    files = [*write(tmp_path / "in", "a"), *write(tmp_path / "in", "b", unit="DN/s")]
    has(refused(tmp_path, capsys, *files), "b.fits", "DN/s", "MJy/sr")
    (fixed,) = write(tmp_path / "in", "c", unit="Jy/sr")
    has(refused(tmp_path, capsys, files[0], "--fixed", fixed), "c.fits", "Jy/sr")


def test_units_that_are_the_same_in_other_words(tmp_path):
    units = {"a": "MJy/sr", "b": "MJy sr-1", "c": ""}
    files = [file for name, unit in units.items() for file in write(tmp_path / "in", name, unit=unit)]
    assert level(*files, "--out", tmp_path / "out") == 0


def test_copies_never_replace_images(tmp_path, capsys, monkeypatch):
    files = write(tmp_path / "out", "ab")
    has(refused(tmp_path, capsys, *files), "a.fits", "overwritten", "another folder")
    monkeypatch.chdir(tmp_path / "out")
    has(refused(tmp_path, capsys, "a.fits", "b.fits"), "overwritten")


def test_copies_never_replace_fixed_images(tmp_path, capsys):
    """No copy of a fixed image is written, and it may lie in the folder of the results."""
    (fixed,) = write(tmp_path / "out", "b")
    before = digest([fixed])
    assert level(*write(tmp_path / "in", "ac"), "--out", tmp_path / "out", "--fixed", fixed) == 0
    assert digest([fixed]) == before


def test_a_fixed_image_among_the_others(tmp_path):
    files = write(tmp_path / "in")
    assert level(*files, "--out", tmp_path / "out", "--fixed", files[1], "--save_table", tmp_path / "levels.ecsv") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "b.fits"), pixels(files[1]))
    np.testing.assert_allclose(removed([files[0], files[2]], tmp_path / "out"), (-2, 5), atol=NEAR)
    assert list(Table.read(tmp_path / "levels.ecsv")["status"]) == ["matched", "fixed", "matched"]
    header = fits.getheader(tmp_path / "out" / "b.fits")
    assert (header["S_LVLMAT"], header["LVLMATCH"]) == ("COMPLETE", 0)  # as the step says of it


def test_integers_in_the_first_extension_keep_their_record(tmp_path):
    """The extension that holds the header is made anew."""
    files = write(tmp_path / "in", "ab", layout="primary", error=False)
    for file in files:
        with fits.open(file) as hdus:
            data, header = np.rint(1000 * hdus[0].data).astype(np.int32), hdus[0].header.copy()
        fits.PrimaryHDU(data, header).writeto(file, overwrite=True)
    assert level(*files, "--out", tmp_path / "out") == 0
    matched = [tmp_path / "out" / file.name for file in files]
    assert all("LVLMATCH" in fits.getheader(file) for file in matched)
    assert main(["undo", *map(str, matched), "--out", str(tmp_path / "undone")]) == 0
    for file in files:
        np.testing.assert_allclose(fits.getdata(tmp_path / "undone" / file.name), fits.getdata(file), atol=0.001)


def test_unknown_reference(tmp_path, capsys):
    has(refused(tmp_path, capsys, *write(tmp_path / "in"), "--reference", "d.fits"), "d.fits", "a.fits")


@pytest.mark.parametrize("options", [("--sigma", "0"), ("--pixel_scale_ratio", "-1"), ("--min_area_percent", "-1")])
def test_options_out_of_range(tmp_path, capsys, options):
    has(refused(tmp_path, capsys, *write(tmp_path / "in"), *options), options[0][2:])


@pytest.mark.parametrize("options", [("--fit_type", "cubic"), ("--weight_method", "best"), ("--unknown", "1")])
def test_usage(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as caught:
        level(*write(tmp_path / "in"), *options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--save_table", "--save_plots"])
def test_a_table_or_picture_that_cannot_be_written(tmp_path, capsys, option):
    (tmp_path / "file").write_text("here a folder is needed\n")
    refused(tmp_path, capsys, *write(tmp_path / "in"), option, tmp_path / "file" / "levels.ecsv")


def test_a_copy_that_fails_leaves_nothing_in_its_place(tmp_path, monkeypatch, capsys):
    files = write(tmp_path / "in")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    assert level(*files, "--out", tmp_path / "out") == 1
    assert "no space left" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_defaults_are_those_of_the_step(tmp_path):
    """And every option of matching without tiles can be given."""
    files = write(tmp_path / "in", "ab")
    level(*files, "--out", tmp_path / "out", "--save_table", tmp_path / "levels.ecsv")
    options = Table.read(tmp_path / "levels.ecsv").meta["options"]
    assert options.pop("relative") is False  # what was found, no option
    step = LevelMatchStep(passes="joint")
    assert {name: getattr(step, name) for name in options} == options


def test_models_open_the_copies(jwst, tmp_path):
    """And show the level that is subtracted in their header."""
    level(*jwst, "--out", tmp_path)
    with datamodels.open(tmp_path / jwst[0].name) as model:
        assert dict((c[0], c[1]) for c in model.extra_fits.PRIMARY.header)["S_LVLMAT"] == "COMPLETE"
        np.testing.assert_array_equal(model.data, fits.getdata(tmp_path / jwst[0].name, "SCI"))
