"""Misuse of arrays, tables and files: one clear message each, which names what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from common import SHAPE, exposure, noise, tan
from ifu import positions

from bkgmatch.associate import associate
from bkgmatch.associations import association, write_association
from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure, Pixels, SpectralExposure, named
from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.images import FitsImage, is_jwst
from bkgmatch.leave_one_out import merge_others
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.mosaics import Mosaic
from bkgmatch.options import SkyMatchOptions
from bkgmatch.page import Page
from bkgmatch.record import exposure_table, save_tables
from bkgmatch.report_files import report_files
from bkgmatch.saved import read_saved
from bkgmatch.steps.inputs import check_inputs


def strip(n=3):
    """Exposures in a row, each of which overlaps the next."""
    return [exposure(f"e{k}.fits", noise(seed=k, level=k + 1.0), tan(shift=(40 * k, 0))) for k in range(n)]


# -------------------------------------------------------------------------------------------------- arrays


def test_a_variance_of_another_shape():
    with pytest.raises(ValueError, match=r"e\.fits: the variance has shape \(48, 59\), the data \(48, 60\)"):
        exposure("e.fits", noise(), tan(), variance=np.ones((48, 59)))


@pytest.mark.parametrize("width", [0.0, -0.2, np.nan, np.inf])
def test_a_width_of_slices_that_is_none(width):
    at = positions(shape=(2, 2, 3))
    with pytest.raises(ValueError, match=r"ifu\.fits: slice_width must be positive and finite, got"):
        SpectralExposure.from_arrays("ifu.fits", at.x, at.ra, at.dec, at.wavelength, slice_width=width)


@pytest.mark.parametrize("match", [match_skies, match_levels])
def test_images_that_are_cubes(match):
    cube = Pixels(np.ones((2, *SHAPE)), np.ones((2, *SHAPE), dtype=bool))
    with pytest.raises(ValueError, match=r"cube\.fits: images must have 2 dimensions, this one has 3"):
        match([*strip(2), Exposure("cube.fits", lambda: cube, strip(1)[0].wcs)])


def test_names_are_put_before_messages_once():
    for message in ("no WCS", "e0.fits: no WCS"):
        with pytest.raises(ValueError, match=r"^e0\.fits: no WCS$"), named("e0.fits"):
            raise ValueError(message)


def test_a_scatter_of_another_length():
    stack, donors = np.zeros((3, 2, 2), np.float32), ~np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match=r"the scatter has shape \(2,\); give one number for each of the 3 images"):
        merge_others(stack, donors, scatter=np.ones(2))


def test_backgrounds_without_good_pixels_are_no_zero_point():
    blank = exposure("dark.fits", np.full(SHAPE, np.nan), tan(dec=60.0), time=1.0, is_background=True)
    given = [exposure(f"e{k}.fits", noise(seed=k), tan(shift=(30 * k, 0)), time=float(k)) for k in range(2)]
    with pytest.raises(ValueError, match="zero_point='background': no dedicated background has good pixels"):
        match_skies([*given, blank], SkyMatchOptions(skystat="mean", zero_point="background"))


def test_a_folder_of_work_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing does not exist; make it first"):
        Work(folder=tmp_path / "missing")


def test_the_background_of_an_exposure_that_has_none():
    one = np.full(1, np.nan)
    found = ImageBackgrounds(("e.fits",), ("too few members",), ((),), *[one] * 6, (), ())
    with pytest.raises(ValueError, match=r"e\.fits has no background: too few members"):
        found.background(0)


def test_masks_without_a_wcs_are_not_saved(tmp_path):
    mosaic = Mosaic("the mosaic", np.ones((3, 3)), np.ones((3, 3)), lambda vectors: vectors[:, :2], None)
    with pytest.raises(ValueError, match="the mosaic has no FITS WCS: its mask cannot be saved"):
        mosaic.write(tmp_path / "mask.fits")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- files


def test_an_association_replaces_associations_only(tmp_path):
    path = tmp_path / "asn.json"
    given = association("mosaic", [{"expname": "a.fits", "exptype": "science"}])
    for _ in range(2):
        write_association(given, path)
    path.write_text("notes\n")
    with pytest.raises(ValueError, match=r"asn\.json exists and is no association; choose another name"):
        write_association(given, path)
    assert path.read_text() == "notes\n"


@pytest.mark.parametrize(
    ("cards", "says"),
    [
        ({"I4I_PROD": "background"}, "is a background that image_for_image made, no exposure; leave it out"),
        ({"S_RESAMP": "COMPLETE"}, "is a mosaic or a cube, no exposure; leave it out"),
        ({"S_IFUCUB": "COMPLETE"}, "is a mosaic or a cube, no exposure; leave it out"),
    ],
)
def test_associations_are_of_exposures(tmp_path, cards, says):
    path = tmp_path / "a_cal.fits"
    fits.PrimaryHDU(np.ones((2, 2)), fits.Header(cards)).writeto(path)
    with pytest.raises(ValueError, match=f"a_cal.fits {says}"):
        associate([path], "mosaic", tmp_path)


def test_members_with_a_colon_in_their_names(tmp_path):
    member = {"expname": "a:b.fits", "exptype": "science"}
    with pytest.raises(ValueError, match=r"a:b\.fits is taken for an address, as it has a colon; rename the file"):
        check_inputs({"products": [{"name": "mosaic", "members": [member]}]})


def test_the_level_of_a_lyot_field_is_told(tmp_path):
    path = tmp_path / "a.fits"
    hdu = fits.PrimaryHDU(noise(), tan().to_header())
    hdu.header["LVLYOT"] = 2.0
    hdu.writeto(path)
    with pytest.raises(ValueError, match=r"a\.fits cannot be read.*its Lyot field has a level of its own"):
        FitsImage.open(path)


def test_what_is_not_there_is_opened_as_a_model_which_tells_why(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"nothing")
    fits.PrimaryHDU(noise()).writeto(tmp_path / "b.fits")
    assert [is_jwst(tmp_path / f"{name}.fits") for name in ("missing", "a", "b")] == [True, True, False]


# -------------------------------------------------------------------------------------------------- tables, reports


@pytest.fixture(scope="module")
def levels():
    exposures, options = strip(), SkyMatchOptions(skystat="mean")
    return exposure_table(match_skies(exposures, options), options, unit="MJy/sr")


def saved(folder, table) -> Path:
    save_tables(folder / "levels.ecsv", table)
    return folder / "levels.ecsv"


def test_a_plane_that_is_not_complete(tmp_path, levels):
    table = levels.copy()
    for name, value in {"slope_east": 0.1, "slope_north": np.nan, "ra": 150.0, "dec": 20.0}.items():
        table[name] = value
    with pytest.raises(ValueError, match=r"levels\.ecsv.*the plane of e0\.fits is not complete"):
        read_saved(saved(tmp_path, table))


def test_a_table_without_levels(tmp_path, levels):
    table = levels.copy()
    del table["level"]
    table.write(tmp_path / "levels.ecsv")
    with pytest.raises(ValueError, match=r"levels\.ecsv is not a table of exposures .*there is no column level"):
        report_files(tmp_path / "levels.ecsv")
    assert list(tmp_path.glob("*.html")) == []


def test_a_report_with_pictures_is_not_replaced_by_one_without(tmp_path, levels):
    path = saved(tmp_path, levels)
    Page("with pictures", "", {}).write(tmp_path / "levels.html")
    before = (tmp_path / "levels.html").read_bytes()
    with pytest.raises(ValueError, match=r"levels\.html exists, and may have pictures; give the exposures"):
        report_files(path)
    assert (tmp_path / "levels.html").read_bytes() == before


def test_pictures_of_tables_whose_steps_make_them(tmp_path, levels):
    path = tmp_path / "i4i.ecsv"
    Table({"name": ["e0.fits"], "level": [1.0], "status": ["made"], "n_members": [3]}).write(path)
    with pytest.raises(ValueError, match="for a table of ImageForImageStep give no files: its pictures are made by"):
        report_files(path, [tmp_path / "e0.fits"])


@pytest.mark.parametrize(
    ("cards", "is_refused"),
    [
        ({"I4I_SUB": True}, True),
        ({"LVLM_SUB": True, "LVLMATCH": 1.0}, True),
        ({"BKGSUB": True, "BKGLEVEL": 1.0}, False),
    ],
)
def test_pictures_of_exposures_with_backgrounds_of_other_steps(tmp_path, levels, cards, is_refused):
    header = tan().to_header()
    header.update(cards)
    fits.PrimaryHDU(noise(level=1.0), header).writeto(tmp_path / "e0.fits")
    path = saved(tmp_path, levels)
    if is_refused:
        with pytest.raises(ValueError, match=r"e0\.fits has a background of another step; give the exposures that"):
            report_files(path, [tmp_path / "e0.fits"])
    else:
        assert report_files(path, [tmp_path / "e0.fits"]).exists()
    assert (tmp_path / "levels.html").exists() != is_refused
