"""Bad input of ImageForImageStep: one clear message each, with the file and the remedy, and nothing half-written."""

import gc
import json
import os
from functools import partial
from pathlib import Path

import builders
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import as_rate, association, digest, has, image_files, rewrite, spoil, write
from common import few, tan
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep
from bkgmatch.simulate_dithers import simulate_dithers

pytestmark = pytest.mark.usefixtures("offline")

FIRST, SECOND, THIRD = (f"jw09001001001_02101_{n:05d}_mirimage_cal.fits" for n in (1, 2, 3))
SHAPE = (64, 64)
CENTER = (150.0, 2.2)
ALL_BAD = np.uint32(1)


@pytest.fixture(scope="module", autouse=True)
def _assign_freely():
    """Checking each assignment to a model takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        yield


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory, _assign_freely):
    """Three dithers without sources."""
    scene = simulate_dithers(rng=np.random.default_rng(4), dithers=3, dither_step=40.0, binning=16, n_sources=0)
    files = image_files(scene, tmp_path_factory.mktemp("unspoilt"))
    ImageForImageStep.call([str(file) for file in files])
    gc.freeze()  # the schemas that have been read by now; as in conftest
    return files


refused = partial(builders.refused, ImageForImageStep, save_mask=True)


def accepted(inputs, **options):
    """Status and data of each exposure, in order; the table is images.ecsv."""
    library = ImageForImageStep.call(inputs, save_table="images.ecsv", **options)
    with library:
        return list(
            library.map_function(lambda m, _: (m.meta.cal_step.image_for_image, np.array(m.data)), modify=False)
        )


def opened(files):
    return [datamodels.open(file) for file in files]


def warnings_of(caplog, *parts):
    """Warnings of the step that hold some words."""
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "bkgmatch" in r.name]
    return [line for line in lines if all(part in line for part in parts)]


# -------------------------------------------------------------------------------------------------- what a file holds


def test_exposures_in_different_units(files, offline):
    spoil(files[1], lambda model: setattr(model.meta, "bunit_data", "DN/s"))
    has(refused(association(files), offline), SECOND, "DN/s", "MJy/sr")


def test_a_rate_among_cals(files, offline):
    rate = write([as_rate(datamodels.open(files[2]))], files[2].parent)
    has(refused(association([*files[:2], *rate]), offline), "_rate.fits", "DN/s", "MJy/sr")


def test_different_shapes(files, offline):
    def crop(model):
        for plane in ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat"):
            setattr(model, plane, getattr(model, plane)[:-2])

    spoil(files[1], crop)
    has(refused(association(files), offline), SECOND, FIRST, "(62, 64)", "(64, 64)")


@pytest.mark.parametrize("plane", ["err", "dq"])
def test_missing_planes(files, offline, plane):
    spoil(files[1], lambda model: setattr(model, plane, None))
    has(refused(association(files), offline), SECOND, f"no {plane.upper()}", "rate or cal")


@pytest.mark.parametrize("plane", ["ERR", "DQ"])
def test_planes_of_another_shape(files, offline, plane):
    rewrite(files[1], lambda hdus: setattr(hdus[plane], "data", hdus[plane].data[:-1]))
    has(refused(association(files), offline), SECOND, plane, "(63, 64)", "(64, 64)")


@pytest.mark.parametrize(
    ("plane", "split_variance"),
    [("VAR_POISSON", True), pytest.param("VAR_RNOISE", False, marks=pytest.mark.slow)],
)
def test_variances_of_another_shape(files, offline, plane, split_variance):
    rewrite(files[1], lambda hdus: setattr(hdus[plane], "data", hdus[plane].data[:-1]))
    has(refused(association(files), offline, split_variance=split_variance), SECOND, plane, "(63, 64)")


def test_cubes(files, offline):
    cube = datamodels.CubeModel(np.ones((2, *SHAPE), np.float32))
    with datamodels.open(files[1]) as model:
        cube.update(model)
        cube.meta.wcs = model.meta.wcs
    cube.meta.filename = SECOND.replace("_cal", "_rateints")
    given = [files[0], *write([cube], files[0].parent), files[2]]
    has(refused(association(given), offline), SECOND.replace("_cal", "_rateints"), "2-D", "CubeModel")


def test_a_damaged_file(files, offline):
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 3])
    has(refused(association(files), offline), SECOND)


def test_a_member_that_is_no_jwst_file(files, offline):
    files[1].write_text("not FITS\n")
    has(refused([str(file) for file in files], offline), SECOND)


@pytest.mark.slow
def test_results_of_this_step(files, offline):
    folder = files[0].parent
    ImageForImageStep.call([str(file) for file in files], save_results=True, output_dir=str(folder), maxiters=1)
    done = sorted(folder.glob("*_i4i.fits"))
    has(refused([str(file) for file in done], offline), done[0].name, "has subtracted a background", "bkgmatch undo")
    mixed = [str(files[0]), str(done[1]), str(files[2])]
    has(refused(mixed, offline), done[1].name, "has subtracted a background", "bkgmatch undo")


def test_results_of_bkg_subtract(files, offline):
    spoil(files[1], lambda model: setattr(model.meta.cal_step, "bkg_subtract", "COMPLETE"))
    has(refused(association(files), offline), SECOND, "bkg_subtract", "without it")


def test_levels_that_are_not_subtracted(files, offline):
    spoil(files[1], lambda m: setattr(m.meta, "background", {"level": 2.5, "subtracted": False, "method": "match"}))
    has(refused(association(files), offline), SECOND, "BKGSUB=F", "before skymatch", "bkgmatch undo")


def test_no_wcs(files, offline):
    rates = write([as_rate(model) for model in opened(files)], files[0].parent / "alone")
    has(refused([str(rate) for rate in rates], offline), rates[0].name, "WCS", "_cal.fits")


def test_a_sibling_of_another_shape(files, offline):
    """Of the calibrated file beside a rate."""
    rates = write([as_rate(model) for model in opened(files)], files[0].parent)
    rewrite(files[1], lambda hdus: setattr(hdus["SCI"], "data", hdus["SCI"].data[:-1]))
    has(refused([str(rate) for rate in rates], offline), rates[1].name, SECOND, "(63, 64)", "(64, 64)")


def test_a_damaged_sibling(files, offline):
    rates = write([as_rate(model) for model in opened(files)], files[0].parent)
    files[1].write_text("not FITS\n")
    has(refused([str(rate) for rate in rates], offline), SECOND)


# -------------------------------------------------------------------------------------------------- sources


def mask_file(path, *, place=CENTER, wcs=True, damage=False):
    header = tan(*place, shape=(40, 40), pixel=8.0).to_header() if wcs else None
    fits.PrimaryHDU(np.ones((40, 40), np.float32), header).writeto(path)
    if damage:
        path.write_bytes(path.read_bytes()[:-4500])
    return path


@pytest.mark.filterwarnings("ignore:File may have been truncated")
@pytest.mark.parametrize("option", ["mosaic", "source_mask"])
@pytest.mark.parametrize("kind", ["missing", "folder", "text", "damaged", "no image", "cube", "no WCS"])
def test_mosaics_and_masks(files, offline, option, kind):
    path = files[0].with_name("field.fits")
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello\n")
    elif kind == "no image":
        fits.PrimaryHDU().writeto(path)
    elif kind == "cube":
        fits.PrimaryHDU(np.ones((2, 8, 8))).writeto(path)
    elif kind != "missing":
        mask_file(path, wcs=kind != "no WCS", damage=kind == "damaged")
    error = FileNotFoundError if kind == "missing" else ValueError
    has(refused(association(files), offline, error, **{option: str(path)}), "field.fits")


@pytest.mark.parametrize("option", ["mosaic", "source_mask"])
@pytest.mark.parametrize("place", [(151.0, 2.2), (330.0, -2.2)], ids=["a degree away", "on the other side"])
def test_a_mosaic_elsewhere(files, offline, option, place):
    path = mask_file(files[0].with_name("field.fits"), place=place)
    has(refused(association(files), offline, **{option: str(path)}), "field.fits", "does not cover", FIRST)


def test_an_image_is_no_mask(files, offline):
    path = mask_file(files[0].with_name("field_i2d.fits"))
    rewrite(path, lambda hdus: setattr(hdus[0], "data", hdus[0].data + np.float32(0.5)))
    has(refused(association(files), offline, source_mask=str(path)), "field_i2d.fits", "no mask", "mosaic")


@pytest.mark.parametrize("kind", ["input", "association", "mosaic"])
def test_a_table_replaces_no_other_file(files, offline, kind):
    asn, options = association(files), {}
    table = {"input": files[0], "association": asn, "mosaic": files[0].with_name("field.fits")}[kind]
    if kind == "mosaic":
        options["mosaic"] = str(mask_file(table))
    before = digest([table])
    has(refused(asn, offline, save_table=str(table), **options), table.name, "no table")
    assert digest([table]) == before


def test_a_mosaic_and_a_mask(files, offline):
    path = str(mask_file(files[0].with_name("field.fits")))
    has(refused(association(files), offline, mosaic=path, source_mask=path), "mosaic", "source_mask", "give one")


@pytest.mark.parametrize("option", ["include_regions", "exclude_regions"])
@pytest.mark.parametrize("kind", ["missing", "folder", "text", "pixels", "empty"])
def test_regions(files, offline, option, kind):
    path = files[0].with_name("field.reg")
    text = {"text": "hello\n", "pixels": "image\ncircle(10, 10, 5)\n", "empty": ""}
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text(text[kind])
    error = FileNotFoundError if kind == "missing" else ValueError
    has(refused(association(files), offline, error, **{option: str(path)}), "field.reg")


# -------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("in_memory", [True, False])
def test_missing_member(files, offline, in_memory):
    asn = association(files)
    files[1].unlink()
    has(refused(asn, offline, FileNotFoundError, in_memory=in_memory), SECOND, "1 of 3", "not exist")


@pytest.mark.parametrize("products", [[], [{"name": "mosaic", "members": []}]])
def test_association_without_members(offline, products, files):
    asn = json.loads(association(files).read_text())
    asn["products"] = products
    Path("empty.json").write_text(json.dumps(asn))
    has(refused("empty.json", offline), "empty.json")


@pytest.mark.parametrize("inputs", [[], None])
def test_no_input(offline, inputs):
    has(refused(inputs, offline), "no exposures")


def test_an_association_without_exposures(files, offline):
    """All its members are of other types."""
    path = association(files, exptypes=["wcs"] * 3)
    has(refused(path, offline), "no exposures")


def test_the_same_file_twice(files, offline):
    has(refused(association([*files, files[1]]), offline), SECOND, "more than once", "each exposure once")


@pytest.mark.parametrize("how", ["suffix", "suffix and folder"])
def test_a_result_never_replaces_its_input(files, offline, monkeypatch, how):
    if how == "suffix":
        monkeypatch.chdir(files[0].parent)
    options = {"suffix": "cal", "output_dir": None if how == "suffix" else str(files[0].parent)}
    has(refused([str(file) for file in files], offline, **options), FIRST, "overwrite", "output_dir")


@pytest.mark.parametrize("container", [ModelLibrary, pytest.param(ModelContainer, marks=pytest.mark.slow)])
def test_models_in_memory_may_share_a_name(files, container):
    """Each has the others as members."""
    models = opened(files)
    for model in models:
        model.meta.filename = "same_cal.fits"
    assert [status for status, _ in accepted(container(models), maxiters=1)] == ["COMPLETE"] * 3
    table = Table.read("images.ecsv")
    assert list(table["name"]) == [f"same_cal.fits[{n}]" for n in (1, 2, 3)]
    assert list(table["n_members"]) == [2] * 3


# -------------------------------------------------------------------------------------------------- options

CONFLICTS = {
    "unknown flag": ({"dqbits": "~DO_NOT_USE+GOOOD"}, ("GOOOD", "dqbits")),
    "no clipping": ({"sigma": 0.0}, ("sigma", "positive")),
    "clipping at NaN": ({"sigma": float("nan")}, ("sigma", "positive")),
    "no threshold": ({"snr_threshold": 0.0}, ("snr_threshold", "positive")),
    "negative threshold": ({"snr_threshold": -3.0}, ("snr_threshold",)),
    "no pixels": ({"npixels": 0}, ("npixels",)),
    "negative kernel": ({"kernel_fwhm": -1.0}, ("kernel_fwhm",)),
    "kernel of NaN": ({"kernel_fwhm": float("nan")}, ("kernel_fwhm",)),
    "negative boxes": ({"bkg_boxsize": -1}, ("bkg_boxsize",)),
    "negative growth": ({"grow": -0.1}, ("grow",)),
    "no iteration": ({"maxiters": 0}, ("maxiters",)),
    "no members": ({"min_members": 0}, ("min_members",)),
    "negative time": ({"max_dt": -1.0}, ("max_dt",)),
    "negative distance": ({"min_offset": -1.0}, ("min_offset",)),
    "unknown method": ({"method": "mode"}, ("method", "mode")),
    "unknown scale": ({"scale": "log"}, ("scale", "log")),
    "unknown holes": ({"holes": "leave"}, ("holes", "leave")),
    "cores": ({"maximum_cores": "many"}, ("maximum_cores", "many", "half")),
}


@pytest.mark.parametrize("case", few(8, CONFLICTS))
def test_options(files, offline, case):
    options, says = CONFLICTS[case]
    has(refused(association(files), offline, Exception, **options), *says)


def test_levels_that_are_not_positive_cannot_be_multiplied(files, offline):
    spoil(files[1], lambda model: setattr(model, "data", model.data - 30))
    has(refused(association(files), offline, scale="multiplicative"), SECOND, "not positive", "scale='additive'")


def test_the_folder_of_the_table_does_not_exist(files, offline):
    table = str(offline / "no" / "images.ecsv")
    has(refused(association(files), offline, FileNotFoundError, save_table=table), "no")


@pytest.mark.parametrize(
    "kind",
    ["folder", pytest.param("locked", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"))],
)
def test_a_table_that_cannot_be_written(files, offline, tmp_path, kind):
    """Models of a library, of which there is no copy, stay as they were."""
    (tmp_path / kind).mkdir(mode=0o700 if kind == "folder" else 0o500)
    table = tmp_path / kind if kind == "folder" else tmp_path / kind / "images.ecsv"
    models = opened(files)
    before = [model.data.copy() for model in models]
    error = ValueError if kind == "folder" else OSError
    refused(ModelLibrary(models), offline, error, save_table=str(table))
    for model, data in zip(models, before, strict=True):
        np.testing.assert_array_equal(model.data, data)
        assert not model.meta.cal_step.hasattr("image_for_image")


# -------------------------------------------------------------------------------------------------- ordinary misfortune


def skipped(inputs, caplog, reason, expected=("SKIPPED",) * 3, **options):
    """Those that are skipped stay as they are, and say why; the others get their backgrounds."""
    given = [np.array(model.data) for model in opened(inputs)]
    found = accepted([str(file) for file in inputs], maxiters=1, **options)
    assert tuple(status for status, _ in found) == tuple(expected)
    table = {str(row["name"]): row for row in Table.read("images.ecsv")}
    for file, old, (status, data) in zip(inputs, given, found, strict=True):
        row = table[file.name]
        if status == "SKIPPED":
            np.testing.assert_array_equal(data, old)
            assert reason in row["status"]
            assert len(warnings_of(caplog, file.name, "no background", reason)) == 1
            assert (row["n_members"], str(row["members"])) in ((0, ""), (0, "--"))
        else:
            assert row["status"] == "made"
            assert warnings_of(caplog, f"{file.name} has no background") == []
            assert np.nanmedian(np.abs(data)) < 1


def test_too_few_members(files, caplog):
    skipped(files, caplog, "fewer than min_members=3", min_members=3)
    assert warnings_of(caplog, "2 of 2 other exposures")


def test_one_exposure(files, caplog):
    skipped(files[:1], caplog, "no other exposure", ["SKIPPED"])


def test_all_dithers_within_the_least_distance(files, caplog):
    skipped(files, caplog, "less than min_offset=1000", min_offset=1000.0)


def test_one_exposure_of_another_time(files, caplog):
    def later(model):
        for name in ("start_time", "mid_time", "end_time"):
            setattr(model.meta.exposure, name, getattr(model.meta.exposure, name) + 50)

    spoil(files[2], later)
    skipped(files, caplog, "more than max_dt=7", ["COMPLETE", "COMPLETE", "SKIPPED"], min_members=1)


KINDS = {"detector": ("MIRIMAGE", "MIRIFULONG", "MIRIFUSHORT"), "filter": ("F770W", "F1000W", "F1500W")}


@pytest.mark.parametrize("what", ["filter", pytest.param("detector", marks=pytest.mark.slow)])
def test_each_of_another_kind(files, caplog, what):
    for file, value in zip(files, KINDS[what], strict=True):
        spoil(file, lambda model, value=value: setattr(model.meta.instrument, what, value))
    skipped(files, caplog, "no other exposure of its detector, filter")


@pytest.mark.parametrize("how", ["flags", "NaN"])
def test_an_exposure_without_good_pixels(files, caplog, how):
    change = {
        "flags": lambda model: setattr(model, "dq", model.dq | ALL_BAD),
        "NaN": lambda model: setattr(model, "data", np.full_like(model.data, np.nan)),
    }[how]
    spoil(files[1], change)
    skipped(files, caplog, "no good pixels", ["COMPLETE", "SKIPPED", "COMPLETE"], min_members=1)


def test_no_good_pixels_at_all(files, caplog):
    for file in files:
        spoil(file, lambda model: setattr(model, "dq", model.dq | ALL_BAD))
    skipped(files, caplog, "no good pixels")


def test_what_is_skipped_is_saved_as_it_is(files, tmp_path):
    accepted([str(file) for file in files], min_members=3, save_results=True, output_dir=str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").glob("*.fits")) == [f.name.replace("_cal", "_i4i") for f in files]
    for file in files:
        path = tmp_path / "out" / file.name.replace("_cal", "_i4i")
        header = fits.getheader(path)
        assert header["S_I4IMG"] == "SKIPPED"
        assert [key for key in header if key.startswith("I4I")] == []
        with datamodels.open(path) as model, datamodels.open(file) as old:
            np.testing.assert_array_equal(model.data, old.data)
            assert model.meta.cal_step.image_for_image == "SKIPPED"
    again = [str(path) for path in sorted((tmp_path / "out").glob("*.fits"))]
    assert {status for status, _ in accepted(again, maxiters=1)} == {"COMPLETE"}


BAD, WHERE = ("NaN", "infinite", "zero", "negative"), ("everywhere", "in a part", "in one exposure")
FAST = {("NaN", "everywhere"), ("NaN", "in a part"), ("zero", "in one exposure")}


@pytest.mark.parametrize(
    ("bad", "where"),
    [pytest.param(b, w, marks=() if (b, w) in FAST else pytest.mark.slow) for b in BAD for w in WHERE],
)
def test_errors_that_tell_nothing(files, bad, where):
    """Results and their errors are what they are without; errors that are not numbers stay so."""
    value = {"NaN": np.nan, "infinite": np.inf, "zero": 0.0, "negative": -1.0}[bad]
    models, before = opened(files), []
    for n, model in enumerate(models):
        part = {"everywhere": np.s_[:], "in a part": np.s_[10:20], "in one exposure": np.s_[: 64 * (n == 1)]}[where]
        model.err[part] = value
        before.append(model.err.copy())
    library = ImageForImageStep.call(ModelLibrary(models), maxiters=1)
    with library:
        for n, model in enumerate(models):
            model = library.borrow(n)
            assert model.meta.cal_step.image_for_image == "COMPLETE"
            good = (model.dq & 1) == 0
            assert np.isfinite(model.data[good]).all()
            np.testing.assert_array_equal(np.isfinite(model.err), np.isfinite(before[n]))
            known = good & np.isfinite(before[n]) & (before[n] > 0)
            gained = np.square(model.err[known].astype(float)) - np.square(before[n][known].astype(float))
            if known.any():
                assert np.median(gained) == pytest.approx(0.115**2 / 2, rel=0.4)
            library.shelve(model, n, modify=False)


@pytest.mark.parametrize("bad", [np.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (np.inf, -np.inf))])
def test_values_that_are_not_finite(files, bad):
    """With good flags: they stay what they are, and harm no others."""
    models = opened(files)
    for n, model in enumerate(models):
        model.data[np.random.default_rng(n).random(model.data.shape) < 0.1] = bad
    before = [model.data.copy() for model in models]
    for old, model, (status, new) in zip(before, models, accepted(models, maxiters=1), strict=True):
        assert status == "COMPLETE"
        np.testing.assert_array_equal(np.isfinite(new), np.isfinite(old))
        assert np.nanmedian(np.abs(new[np.isfinite(new) & (model.dq == 0)])) < 0.2
