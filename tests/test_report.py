"""Reports: the page, what is on it, its pictures, and how the command and the steps make it."""

import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import association, constant_files, digest, image_files, tile_wcs
from common import tan, to_sky
from mrs import twins
from pages import check

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep, report_figures
from bkgmatch.cli import main
from bkgmatch.exposures import Exposure
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.page import MARK, Page, table
from bkgmatch.pictures import pictures_of_levels
from bkgmatch.planes import Plane
from bkgmatch.quicklook import Picture, block_means, common_part, fields_of, look_at, mosaics
from bkgmatch.record import (
    exposure_table,
    level_pair_table,
    level_table,
    pair_table,
    read_tables,
    save_tables,
    spectral_pair_table,
    spectral_table,
)
from bkgmatch.report import check_page, corrected, page_beside, write_report
from bkgmatch.report_figures import short_names, stretches
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.spectra import SpectralMatch
from bkgmatch.spectral_fit import PairResiduals

EVIL = '<script>alert("x")</script>&<img src=http://x.org onerror=a>'
SHAPE = (48, 60)


def exposures_of(levels, *, names=None, side=3, shape=SHAPE, noise=0.01, seed=1):
    """Exposures in rows of ``side``, each of which overlaps its neighbours; nothing but levels and noise."""
    rng = np.random.default_rng(seed)
    names = names or [f"jw{k:05d}_cal.fits" for k in range(len(levels))]
    where = [tan(shape=shape, shift=(40 * (k % side), 30 * (k // side))) for k in range(len(levels))]
    images = [rng.normal(level, noise, shape) for level in levels]
    return [Exposure.from_arrays(*each) for each in zip(names, images, where, strict=True)]


def matched(exposures, **options):
    """Tables of SkyMatch of exposures."""
    options = SkyMatchOptions(skystat="mean", **options)
    match = match_skies(exposures, options)
    return exposure_table(match, options, unit="MJy/sr"), pair_table(match, unit="MJy/sr")


def planes(exposures, reference="mean"):
    options = LevelMatchOptions(
        passes="joint", fit_type_dithers="level+slope", reference=reference, do_local_subtraction=False
    )
    match = match_levels(exposures, options)
    return level_table(match, options, unit="MJy/sr"), level_pair_table(match, unit="MJy/sr")


def polynomials(n, *, lost=(), slope=0.02, residual=1.0, at=5.2):
    """A match of spectra whose corrections rise with the wavelength; some exposures are lost."""
    known = np.array([i not in lost for i in range(n)])
    terms = np.column_stack([np.arange(n, dtype=float), np.full(n, slope)])
    terms[~known] = np.nan
    level, sigma = terms[:, 0], np.where(known, 0.1, np.nan)
    pairs = np.flatnonzero(known[:-1] & known[1:])
    ones = np.ones(len(pairs))
    return SpectralMatch(
        tuple(f"jw{k:05d}_cal.fits" for k in range(n)), (0, 0, 1), np.where(known, 0, -1),
        np.tile([83.6, -41.0, at], (n, 1)), terms, np.full_like(terms, 0.1), level, sigma, np.where(known, 50, 0),
        tuple("matched" if k else "no overlap" for k in known), ((),) * n, np.zeros(n, dtype=bool),
        PairResiduals(pairs, pairs + 1, 50 * ones.astype(int), ones, ones, residual * ones),
    )  # fmt: skip


def tables_of(matches):
    options = MRSIMatchOptions(bkg_degree=(0, 0, 1))
    return spectral_table(matches, options, unit="MJy/sr"), spectral_pair_table(matches, unit="MJy/sr")


# ------------------------------------------------------------------------------------------------------------ the page


def test_cells_keep_text_and_numbers_are_told_from_text(tmp_path):
    page = Page(EVIL, EVIL, {EVIL: EVIL})
    columns = {"name": [EVIL, "b"], "level": np.array([0.1234567891, np.nan]), "n": [3, 12], EVIL: ["<b>", "&amp;"]}
    page.add(EVIL, table(columns, {"level": "<i>"}))
    page.write(tmp_path / "page.html")
    found = check(tmp_path / "page.html")
    assert found.tables == [
        [["name", "level (<i>)", "n", EVIL], [EVIL, "0.123457", "3", "<b>"], ["b", "–", "12", "&amp;"]]
    ]
    assert found.headings == [EVIL]
    assert [head["class"] for head in found.all("th")] == ["t", "n", "n", "t"]
    assert found.all("img") == []


def test_sections_without_content_are_left_out(tmp_path):
    page = Page("a", "b", {})
    page.add("empty", "", "")
    page.write(tmp_path / "page.html")
    assert check(tmp_path / "page.html").headings == []


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    Page("old", "", {}).write(path)
    before = path.read_bytes()

    def fail(self, *args, **kwargs):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        Page("new", "", {}).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------------------------------- the pictures


def test_block_means_are_of_finite_pixels():
    image = np.arange(20.0).reshape(4, 5)
    image[0, 0] = np.nan
    image[2:, 2:4] = np.nan
    expected = [[(1 + 5 + 6) / 3, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2], [(10 + 11 + 15 + 16) / 4, np.nan, (14 + 19) / 2]]
    np.testing.assert_allclose(block_means(image, 2), expected)


@pytest.mark.parametrize("where", [(150.0, 2.0), (0.0, 20.0), (123.0, 89.999)])
def test_a_mosaic_has_north_up_and_east_to_the_left(where):
    """The value of an exposure turned by any angle is the offset to the east, or to the north, in arcseconds."""
    wcs = tan(*where, angle=34.0)
    plane = Plane(0.0, (1.0, 0.0), where), Plane(0.0, (0.0, 1.0), where)
    east, north = (one.on_pixels(to_sky(wcs), SHAPE) for one in plane)
    looks = [look_at(Exposure.from_arrays("a", image, to_sky(wcs)), 512) for image in (east, north)]
    found = mosaics(looks[:1], [looks[0].image], [looks[1].image])
    for picture, sign, axis in zip(found, (-1, 1), (1, 0), strict=True):
        left, right, bottom, top = picture.extent
        ny, nx = picture.image.shape
        cells = np.linspace(left, right, nx + 1), np.linspace(bottom, top, ny + 1)
        centre = (cells[1 - axis][1:] + cells[1 - axis][:-1]) / 2
        expected = np.broadcast_to(sign * (centre if axis else centre[:, None]), (ny, nx))
        known = np.isfinite(picture.image)
        assert known.sum() > 500
        cell = (right - left) / nx
        assert np.abs(picture.image - expected)[known].max() < cell
        assert abs((picture.image - expected)[known].mean()) < 0.2 * cell


def test_levels_vanish_from_a_mosaic():
    exposures = exposures_of([5, 7, 6, 5.5, 6.5, 8], noise=0)
    found, _ = matched(exposures)
    shown = pictures_of_levels(exposures, found)
    before, after = mosaics([s.look for s in shown], [s.look.image for s in shown], [s.after for s in shown])
    assert np.nanmax(before.image) == 8
    assert np.nanmin(before.image) == 5
    assert np.nanstd(after.image) < 1e-6
    assert (np.isfinite(before.image) == np.isfinite(after.image)).all()


def test_previous_levels_are_put_back():
    exposures = exposures_of([5, 7], noise=0)
    found, _ = matched(exposures)
    lowered = exposures_of([4, 4], noise=0)
    shown = pictures_of_levels(lowered, found, previous=np.array([1.0, 3.0]))
    assert [float(np.mean(s.look.image)) for s in shown] == [5, 7]
    assert [float(np.mean(s.after)) for s in shown] == pytest.approx([5, 5])


def test_a_plane_is_subtracted_where_it_is():
    wcs = to_sky(tan(150.0, 20.0, angle=20.0))
    plane = Plane(3.0, (0.2, -0.1), (150.0005, 20.0003))
    look = look_at(Exposure.from_arrays("a", plane.on_pixels(wcs, SHAPE), wcs), 30)
    row = {"level": 3.0, "slope_east": 0.2, "slope_north": -0.1, "ra": 150.0005, "dec": 20.0003}
    assert look.image.shape == (24, 30)
    np.testing.assert_allclose(corrected(look, row), 0, atol=1e-5)
    np.testing.assert_array_equal(corrected(look, {**row, "level": np.nan}), look.image)


def test_fields_are_exposures_near_each_other():
    here = exposures_of([1, 1, 1])
    blank = Exposure.from_arrays("blank", np.full(SHAPE, np.nan), tan())
    there = Exposure.from_arrays("far", np.ones(SHAPE), tan(dec=-30.0))
    looks = [look_at(e, 20) for e in (there, *here, blank)]
    assert [list(members) for members in fields_of(looks)] == [[1, 2, 3], [0]]
    assert fields_of([]) == []


def test_common_part_is_the_box_of_what_both_have():
    looks = [look_at(e, 512) for e in exposures_of([5, 7], noise=0)]
    blank = np.full(SHAPE, np.nan, np.float32)
    one, two = mosaics(looks, [looks[0].image, blank], [blank, looks[1].image])
    part = common_part(one, two)
    assert np.nanmin(part.image) == np.nanmax(part.image) == -2
    left, right, bottom, top = part.extent
    assert right - left == pytest.approx(0.1 * 20, abs=0.5)  # 60 columns, 40 apart
    assert top - bottom == pytest.approx(0.1 * 48, abs=0.5)
    assert common_part(one, one._replace(image=np.full_like(one.image, np.nan))).image.size == 0


def test_stretches_are_equally_wide_about_the_middle_of_each():
    wide, narrow = np.linspace(0, 100, 1001), np.linspace(50, 51, 1001)
    (low, high), (below, above) = stretches([wide, narrow])
    assert high - low == pytest.approx(above - below) == pytest.approx(97)
    assert (below + above) / 2 == pytest.approx(50.5, abs=0.1)
    assert stretches([np.full(3, np.nan), np.full(3, 2.0)]) == [(-0.5, 0.5), (1.5, 2.5)]


def test_short_names_tell_apart():
    names = [f"jw01_{k}_nrca1_cal.fits" for k in (1, 2)]
    assert short_names(names) == ["1", "2"]
    assert short_names(["a_b.fits", "c.fits"]) == ["a b", "c"]
    assert short_names(["a.fits"]) == ["a.fits"]
    long = [f"jw01345{obs:03d}001_02101_00002_nrc{m}long_cal.fits" for obs in (1, 2) for m in "ab"]
    assert short_names(long) == ["001 nrcalong", "001 nrcblong", "002 nrcalong", "002 nrcblong"]


@pytest.mark.parametrize("names", [["a_b.fits", "a.b.fits"], ["a.fits", "a_b.fits"], ["x_a b_c", "x_a_b_c"]])
def test_short_names_do_not_become_equal(names):
    short = short_names(names)
    assert len(set(short)) == 2
    assert all(short)


def test_labels_stay_different():
    ends = [f"{'a' * 30}{k}{'b' * 30}" for k in range(3)]
    assert report_figures._labels(ends) == ends
    names = [f"jw0134{k}00{k}001_0{k}101_0000{k}_nrc{m}long_cal.fits" for k in range(3) for m in "ab"]
    labels = report_figures._labels(names)
    assert len(set(labels)) == 6
    assert max(map(len, labels)) <= 24


def test_titles_of_differences_are_not_cut(monkeypatch):
    """Titles lie within the picture, above the axes and the colour bar, also of a narrow picture."""
    seen = []
    monkeypatch.setattr(report_figures, "_png", lambda figure: seen.append(figure) or b"")
    for length, shape in ((43, (40, 40)), (43, (80, 10)), (300, (40, 40))):
        picture = Picture(np.ones(shape), (0, shape[1], 0, shape[0]))
        names = tuple(f"jw_{k}$".ljust(length, "x") for k in range(2))
        report_figures.difference(picture, names, "MJy/sr")
        seen[-1].canvas.draw()
        box, (width, height) = seen[-1]._suptitle.get_window_extent(), seen[-1].bbox.size
        assert 0 < box.x0 < box.x1 < width, (length, shape)
        assert max(ax.get_tightbbox().y1 for ax in seen[-1].axes) <= box.y0 < box.y1 < height
        assert len(seen[-1]._suptitle.get_text().splitlines()) == 2


# ------------------------------------------------------------------------------------------------------- what is on it


def text_of(path, exposures, pairs, **more):
    write_report(path, exposures, pairs, **more)
    return check(path).text


@pytest.fixture(scope="module")
def many_pairs():
    return matched(exposures_of([1, 2, 3, 4, 5, 6, 7, 8, 9]))


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("pulls", "told"), [((7, -20, 5), "; 2 beyond 6, off the axis"), ((5.9,), "")])
def test_pairs_beyond_the_axis_are_told(many_pairs, tmp_path, pulls, told):
    found, pairs = many_pairs[0], many_pairs[1].copy()
    pairs["residual"][:] = 0.1 * pairs["sigma"]
    pairs["residual"][: len(pulls)] = np.array(pulls) * pairs["sigma"][: len(pulls)]
    text = text_of(tmp_path / "a.html", found, pairs)
    assert f"{len(pulls)} of {len(pairs)} beyond 3 sigma{told}" in text
    assert ("off the axis" in text) == bool(told)


@pytest.mark.usefixtures("drawn")
def test_a_bad_match_is_told(many_pairs, tmp_path):
    found, pairs = many_pairs[0].copy(), many_pairs[1].copy()
    signs = np.resize([1, -1], len(pairs))
    pairs["residual"] = 2.9 * signs * pairs["sigma"]
    assert "This match is bad" not in text_of(tmp_path / "a.html", found, pairs)
    pairs["residual"] = 3.1 * signs * pairs["sigma"]
    text = text_of(tmp_path / "a.html", found, pairs)
    assert "This match is bad: what is left of the pairs is 3.1 times their errors" in text
    assert "more than a constant; try skystat='difference'" in text
    found.meta["options"] = {**found.meta["options"], "skystat": "difference"}
    text = text_of(tmp_path / "a.html", found, pairs)
    assert "more than a constant; try LevelMatchStep" in text
    pairs["residual"][1:] = 0.0
    pairs["residual"][0] = 1000 * pairs["sigma"][0]
    pairs["status"][0] = "down-weighted"
    assert "This match is bad" not in text_of(tmp_path / "a.html", found, pairs)


@pytest.mark.usefixtures("drawn")
def test_a_bad_match_of_planes_is_told(tmp_path):
    found, pairs = planes(exposures_of([1, 2, 3, 4]))
    pairs["residual"], pairs["status"] = 5 * pairs["sigma"], "used"
    found["slope_east"] = 0.0
    found["slope_north"] = 0.0
    assert "more than a constant; try planes" in text_of(tmp_path / "a.html", found, pairs)
    found["slope_east"][0] = 0.1
    assert "more than a plane; look at the worst pairs" in text_of(tmp_path / "a.html", found, pairs)


@pytest.mark.usefixtures("drawn")
def test_a_bad_match_of_polynomials_is_told(tmp_path):
    text = text_of(tmp_path / "a.html", *tables_of({("1", "SHORT"): polynomials(3, residual=5.0)}))
    assert "the exposures differ by more than these polynomials; try a higher bkg_degree" in text


def test_channels_and_bands_have_curves_of_their_own(tmp_path, drawn):
    """Over the wavelengths of the band, or near the reference where these are not known; none of what is lost."""
    matches = {
        ("1", "SHORT"): polynomials(13, lost=(4,)),
        ("2", "SHORT-LONG"): polynomials(14, slope=-3.0, at=8.0),
        ("4", "LONG"): polynomials(2, lost=(0, 1), at=26.0),
    }
    write_report(tmp_path / "a.html", *tables_of(matches))
    (one, first, _), (two, second, _) = drawn["curves"]
    assert (first, second) == ("channel 1 SHORT", "channel 2 SHORT-LONG")
    assert [curve.name for curve in one] == [f"jw{k:05d}_cal.fits" for k in range(13) if k != 4]
    assert len(two) == 14
    for curves, ends, at, slope in ((one, (4.90, 5.74), 5.2, 0.02), (two, (7.6, 8.4), 8.0, -3.0)):
        for curve in curves:
            assert curve.wavelength[[0, -1]] == pytest.approx(ends)
            level = int(curve.name[2:7])
            np.testing.assert_allclose(curve.value, level + slope * (curve.wavelength - at), atol=1e-12)
    page = check(tmp_path / "a.html")
    assert "channels and bands" in page.text
    told = [image["alt"] for image in page.all("img") if "against wavelength" in image["alt"]]
    assert [words.partition(" exposures")[0] for words in told] == ["Corrections of 12", "Corrections of 14"]
    assert [row[:2] for row in page.tables[0][1:]] == [
        ["jw00004_cal.fits", "channel 1 SHORT"],
        ["jw00000_cal.fits", "channel 4 LONG"],
        ["jw00001_cal.fits", "channel 4 LONG"],
    ]


def test_only_few_curves_are_named(monkeypatch):
    seen = []
    monkeypatch.setattr(report_figures, "_png", lambda figure: seen.append(figure) or b"")
    wavelength = np.linspace(5, 6, 5)
    for n in (12, 13):
        curves = [report_figures.Curve(f"e{k}", wavelength, wavelength + k, 5.5, 0.1) for k in range(n)]
        report_figures.curves(curves, "channel 1", "correction")
    few, many = seen
    assert [[text.get_text() for text in of.get_texts()] for of in few.legends] == [[f"e{k}" for k in range(12)]]
    assert many.legends == []
    drawn = [line.get_ydata() for line in many.axes[0].lines if len(line.get_ydata()) == 5]
    np.testing.assert_allclose(drawn, [wavelength + k for k in range(13)])


def test_pictures_of_detectors_have_no_axes_of_the_sky(monkeypatch):
    seen = []
    monkeypatch.setattr(report_figures, "_png", lambda figure: seen.append(figure) or b"")
    picture = Picture(np.ones((4, 5)), (-0.5, 4.5, -0.5, 3.5))
    for sky in (True, False):
        report_figures.mosaic(picture, (0.0, 2.0), "title", "MJy/sr", sky=sky)
    labels = [figure.axes[0].get_xlabel() for figure in seen]
    assert labels == ["west of the centre (arcsec)", ""]


def test_no_difference_is_drawn_of_a_pair_without_common_sky(tmp_path, drawn):
    exposures = exposures_of([1, 2, 3])
    found, pairs = matched(exposures)
    pairs["second"][0] = exposures[2].name  # it overlaps the second, not the first
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found))
    assert len(pairs) == 2
    assert [names for _, names, _ in drawn["difference"]] == [("jw00001", "jw00002")]
    assert sum("Difference" in image["alt"] for image in check(tmp_path / "a.html").all("img")) == 1


def test_a_report_without_pairs(tmp_path, drawn):
    exposures = exposures_of([1, 2, 3])
    write_report(tmp_path / "a.html", matched(exposures)[0], shown=pictures_of_levels(exposures, matched(exposures)[0]))
    assert drawn["sky_map"][0][0].edges == []
    assert not {"residuals", "difference"} & set(drawn)
    assert "Residuals of pairs" not in check(tmp_path / "a.html").headings


@pytest.mark.usefixtures("drawn")
def test_positions_of_centres_are_told(tmp_path):
    wcs = tan(0.0, -20.0, shape=SHAPE)
    exposures = [Exposure.from_arrays(n, np.random.default_rng(1).normal(size=SHAPE), wcs) for n in ("a", "b")]
    found, pairs = matched(exposures)
    text = text_of(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found))
    centres = np.array(re.findall(r"Centre: RA (\d+\.\d{5}), Dec (-\d+\.\d{5}) degrees", text), dtype=float)
    assert len(centres) == 4  # two mosaics, map, difference
    ra, dec = to_sky(wcs)((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2)
    away = (centres - [ra, dec] + 180) % 360 - 180
    assert np.abs(away).max() < 1 / 3600
    assert "hide each other" in text


@pytest.mark.usefixtures("drawn")
def test_positions_and_errors_have_digits_of_their_own(tmp_path):
    found, pairs = planes(exposures_of([1, 2, 3, 4]))
    found["ra"][0], found["dec"][0], found["level"][0] = 150.00512345, 2.5, 1.23456789
    for name in ("sigma", "sigma_east"):
        found[name][0] = 0.0123456
    pairs["sigma"][0], pairs["offset"][0] = 0.0123456, 0.0123456
    write_report(tmp_path / "a.html", found, pairs)
    *_, of_exposures, of_pairs = check(tmp_path / "a.html").tables
    cells = dict(zip([head.partition(" (")[0] for head in of_exposures[0]], of_exposures[1], strict=True))
    assert [cells[c] for c in ("ra", "dec", "level")] == ["150.005123", "2.500000", "1.23457"]
    assert [cells[c] for c in ("sigma", "sigma_east")] == ["0.0123"] * 2
    cells = dict(zip([head.partition(" (")[0] for head in of_pairs[0]], of_pairs[1], strict=True))
    assert (cells["sigma"], cells["offset"]) == ("0.0123", "0.0123456")


@pytest.mark.usefixtures("drawn")
def test_the_date_is_told(many_pairs, tmp_path):
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    found = re.search(r"on (\d{4}-\d\d-\d\d at \d\d:\d\d) UTC", text_of(tmp_path / "a.html", *many_pairs))
    assert before <= datetime.strptime(found[1] + "+0000", "%Y-%m-%d at %H:%M%z") <= datetime.now(UTC)


@pytest.fixture
def drawn(monkeypatch):
    """What figures are asked for, by name; only some are drawn, which takes time."""
    seen = {}

    def watch(name):
        draw = getattr(report_figures, name)

        def watched(*args, **kwargs):
            seen.setdefault(name, []).append(args)
            return draw(*args, **kwargs) if name in ("curves", "mask", "sky_map") else b"not drawn"

        return watched

    names = ("mosaic", "corrections", "residuals", "difference", "curves", "mask", "sky_map")
    for name in names:
        monkeypatch.setattr(report_figures, name, watch(name))
    monkeypatch.setattr("bkgmatch.report.sky_map", report_figures.sky_map)
    return seen


def test_hostile_names_and_parameters_are_text(tmp_path):
    names = [f"{EVIL}{k}" for k in range(4)]
    exposures = exposures_of([1, 2, 3, 4], names=names)
    found, pairs = matched(exposures)
    found.meta["options"]["regions"] = EVIL
    found["status"] = [EVIL, "matched", "matched", "matched"]
    found["level"].unit = pairs["residual"].unit = None
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found), facts={EVIL: EVIL})
    page = check(tmp_path / "a.html")
    assert [row[0] for row in page.tables[-2][1:]] == names
    assert page.tables[0] == [["exposure", "reason"], [names[0], EVIL]]
    assert page.text.count(EVIL) > 20
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))


def test_worst_pairs_come_first_and_have_their_differences(tmp_path, drawn):
    exposures = exposures_of([1, 2, 3, 4, 5, 6], noise=0.1)
    found, pairs = matched(exposures)
    pairs["residual"][3] = 100 * pairs["sigma"][3]
    pairs["residual"][1] = -50 * pairs["sigma"][1]
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found))
    page = check(tmp_path / "a.html")
    worst = page.tables[0]
    assert [row[:2] for row in worst[1:3]] == [[pairs[c][k] for c in ("first", "second")] for k in (3, 1)]
    column = worst[0].index("residual / sigma")
    assert [float(row[column]) for row in worst[1:3]] == [100, -50]
    assert len(worst) == 7
    assert len(drawn["difference"]) == 6
    pulls = drawn["residuals"][0][0]
    assert pulls.max() == pytest.approx(100)
    for (picture, *_), row in zip(drawn["difference"], worst[1:], strict=True):
        assert abs(np.nanmean(picture.image)) < 0.1, row  # levels differ by 1 to 5


def test_the_map_has_pairs_components_and_what_is_not_matched(tmp_path, drawn):
    exposures = exposures_of([1, 2, 3, 4])
    alone = Exposure.from_arrays("zz_cal.fits", np.full(SHAPE, 9.0), tan(dec=20.1))
    near = Exposure.from_arrays("yy_cal.fits", np.full(SHAPE, 9.0), tan(shift=(0, -60)))
    found, pairs = matched([*exposures, alone, near])
    pairs["status"][0] = "down-weighted"
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels([*exposures, alone, near], found))
    page = check(tmp_path / "a.html")
    assert [row[0] for row in page.tables[0][1:]] == ["yy_cal.fits", "zz_cal.fits"]
    assert {row[1] for row in page.tables[0][1:]} == {"no overlap"}
    first, second = (args[0] for args in drawn["sky_map"])
    names = [str(name) for name in found["name"]]
    assert len(first.centres) == 5
    assert len(second.centres) == 1
    assert {status for *_, status in first.edges} == {"used", "down-weighted"}
    assert len(first.edges) == len(pairs)
    assert sorted(first.component) == sorted(found["component"][names.index(n)] for n in names if n[:2] != "zz")
    assert np.isnan(first.value).sum() == 1
    assert all(len(rings) == 1 for rings in first.rings)
    assert len(drawn["mosaic"]) == 4


def test_tables_alone_are_enough(tmp_path, drawn):
    exposures = exposures_of([1, 2, 3, 4])
    write_report(tmp_path / "sky.html", *matched(exposures))
    page = check(tmp_path / "sky.html")
    assert "mosaic" not in drawn
    assert "sky_map" not in drawn
    assert page.headings == [
        "Corrections", "Residuals of pairs", "Worst pairs", "What was run", "Table of exposures", "Table of pairs",
    ]  # fmt: skip
    write_report(tmp_path / "level.html", *planes(exposures))
    assert check(tmp_path / "level.html").headings[0] == "Exposures on the sky"


def test_planes_are_arrows(tmp_path, drawn):
    rng = np.random.default_rng(2)
    slope = (0.3, -0.2)
    exposures = []
    for k, shift in enumerate([(0, 0), (25, 5), (5, 20), (20, 25)]):
        wcs = tan(shift=shift)
        tilt = Plane(0.0, slope, (150.0, 20.0)).on_pixels(to_sky(wcs), SHAPE) if k == 0 else 0.0
        exposures.append(Exposure.from_arrays(f"e{k}.fits", rng.normal(k + tilt, 0.01, SHAPE), wcs))
    found, pairs = planes(exposures, reference="e1.fits")
    shown = pictures_of_levels(exposures, found)
    write_report(tmp_path / "a.html", found, pairs, shown=shown)
    arrows = drawn["sky_map"][0][0].arrows
    assert drawn["sky_map"][0][0].unit == "MJy / sr"
    np.testing.assert_allclose(arrows, [slope, (0, 0), (0, 0), (0, 0)], atol=0.01)
    after = mosaics([s.look for s in shown], [s.after for s in shown])[0].image
    np.testing.assert_allclose(after[np.isfinite(after)], 1, atol=0.06)


def test_a_hundred_exposures_are_light(tmp_path):
    exposures = exposures_of(np.random.default_rng(3).normal(5, 1, 100), side=10, noise=0.3)
    found, pairs = matched(exposures)
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found))
    page = check(tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 10 * 1024**2
    assert len(page.tables[-2]) == 101


def test_a_thousand_rows_and_the_worst_thousand_pairs(tmp_path):
    rng, n = np.random.default_rng(4), 1000
    found, pairs = matched(exposures_of([1, 2, 3]))
    many = Table({name: np.resize(found[name], n) for name in found.colnames}, meta=found.meta)
    many["name"] = [f"e{k:04d}" for k in range(n)]
    many["level"] = rng.normal(size=n)
    ends = rng.integers(0, n, (2, 6000))
    links = Table({name: np.resize(pairs[name], 6000) for name in pairs.colnames})
    links["first"], links["second"] = (np.array(many["name"])[end] for end in ends)
    links["sigma"], links["residual"] = 1.0, rng.normal(size=6000)
    write_report(tmp_path / "a.html", many, links)
    page = check(tmp_path / "a.html")
    assert len(page.tables[-2]) == 1001
    column = page.tables[-1][0].index("residual / sigma")
    least = np.sort(np.abs(links["residual"]))[-1000]
    assert len(page.tables[-1]) == 1001
    assert min(abs(float(row[column])) for row in page.tables[-1][1:]) == pytest.approx(least, abs=1e-5)
    assert "6000" in page.text
    assert (tmp_path / "a.html").stat().st_size < 2 * 1024**2


def test_no_exposure_is_matched(tmp_path):
    exposures = [Exposure.from_arrays(n, np.full(SHAPE, np.nan), tan(dec=d)) for n, d in (("a", 20), ("b", 21))]
    found, pairs = matched(exposures)
    write_report(tmp_path / "a.html", found, pairs, shown=pictures_of_levels(exposures, found))
    page = check(tmp_path / "a.html")
    assert [row[1] for row in page.tables[0][1:]] == ["no good pixels"] * 2


def test_what_is_no_page_of_ours_is_not_replaced(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<!DOCTYPE html>\n<p>mine")
    with pytest.raises(ValueError, match=r"a\.html exists and is no report"):
        write_report(path, *matched(exposures_of([1, 2])))
    assert path.read_text().endswith("mine")
    with pytest.raises(ValueError, match="folder"):
        check_page(tmp_path)


def test_the_page_is_beside_the_table():
    assert page_beside("a/levels.ecsv") == Path("a/levels.html")
    assert page_beside("a/levels.html") == Path("a/levels_report.html")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'bkgmatch\[report\]'"):
        write_report(tmp_path / "a.html", *matched(exposures_of([1, 2])))


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def saved(tmp_path):
    """A table of three exposures, and their files."""
    exposures = exposures_of([1.0, 2.0, 3.0])
    found, pairs = matched(exposures)
    save_tables(tmp_path / "levels.ecsv", found, pairs)
    files = [tmp_path / e.name for e in exposures]
    for k, (exposure, file) in enumerate(zip(exposures, files, strict=True)):
        header = tan(shape=SHAPE, shift=(40 * k, 0)).to_header()
        fits.PrimaryHDU(exposure.read().data.astype(np.float32), header).writeto(file)
    return tmp_path / "levels.ecsv", files


def test_report_of_a_table(saved, tmp_path, capsys):
    path, files = saved
    before = digest([path, *files])
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "levels.html")
    assert len(check(tmp_path / "levels.html").tables[-1]) == 3  # heading, two pairs
    assert main(["report", str(path), *map(str, files), "--out", str(tmp_path / "b.html")]) == 0
    assert "Mosaic before and after" in check(tmp_path / "b.html").headings
    assert digest([path, *files]) == before


def test_files_as_they_came_and_corrected_show_the_same(saved, tmp_path, drawn):
    path, files = saved
    levels = {str(row["name"]): row["level"] for row in Table.read(path)}
    done = [Path(shutil.copy(file, tmp_path / file.name.replace("_cal", "_skymatch"))) for file in files]
    for file, given in zip(done, files, strict=True):
        with fits.open(file, mode="update") as hdus:
            hdus[0].data -= np.float32(levels[given.name])
            hdus[0].header.update(BKGLEVEL=levels[given.name], BKGSUB=True)
    for names in (files, done):
        assert main(["report", str(path), *map(str, names)]) == 0
    (one, *_), (two, *_), (three, *_), (four, *_) = drawn["mosaic"]
    np.testing.assert_allclose(one.image, three.image, rtol=1e-5)
    np.testing.assert_allclose(two.image, four.image, rtol=1e-5)
    assert np.nanstd(one.image) > 20 * np.nanstd(two.image)


def test_a_recorded_plane_is_put_back(tmp_path, drawn):
    exposures = exposures_of([1.0, 2.0, 3.0], noise=0.01)
    given, done = tmp_path / "given", tmp_path / "done"
    given.mkdir()
    for exposure, shift in zip(exposures, (0, 40, 80), strict=True):
        header = tan(shape=SHAPE, shift=(shift, 0)).to_header()
        fits.PrimaryHDU(exposure.read().data.astype(np.float32), header).writeto(given / exposure.name)
    files, path = [given / e.name for e in exposures], tmp_path / "levels.ecsv"
    options = ["--fit_type", "level+slope", "--out", str(done), "--save_table", str(path)]
    assert main(["level", *map(str, files), *options]) == 0
    for names in (files, [done / file.name for file in files]):
        assert main(["report", str(path), *map(str, names)]) == 0
    (one, *_), (two, *_), (three, *_), (four, *_) = drawn["mosaic"]
    np.testing.assert_allclose(one.image, three.image, atol=1e-5)
    np.testing.assert_allclose(two.image, four.image, atol=1e-5)


def test_a_file_is_not_taken_for_another_whose_name_differs_in_the_last_word(saved, tmp_path, capsys):
    path, files = saved
    rows = Table.read(path)
    rows["name"] = ["tile_1.fits", "other_1.fits", "other_2.fits"]
    rows.write(path, overwrite=True)
    tile = Path(shutil.copy(files[0], tmp_path / "tile_2.fits"))
    assert main(["report", str(path), str(tile)]) == 1
    assert "tile_2.fits is not in the table" in capsys.readouterr().err


def test_pairs_of_an_earlier_table_are_not_those_of_backgrounds(saved, tmp_path):
    path, _ = saved
    backgrounds = Table({"name": ["a.fits"], "level": [1.0], "status": ["made"], "n_members": [3]})
    backgrounds.write(path, overwrite=True)
    assert read_tables(path)[1] is None


def test_a_damaged_table_of_pairs_is_named(saved, tmp_path, capsys):
    path, _ = saved
    (tmp_path / "levels_pairs.ecsv").write_text("# %ECSV 1.0\nhello\n")
    assert main(["report", str(path)]) == 1
    assert "levels_pairs.ecsv is not a table of pairs" in capsys.readouterr().err


def test_wrong_use_of_the_command_is_one_line(saved, tmp_path, capsys):
    path, files = saved
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "other.fits").write_bytes(files[0].read_bytes())
    wrong = {
        "does not exist": [tmp_path / "nothing.ecsv"],
        "table of pairs": [tmp_path / "levels_pairs.ecsv"],
        "is not a table": [files[0]],
        "is not in the table": [path, tmp_path / "other.fits"],
        "no report": [path, "--out", tmp_path / "mine.html"],
        "make it first": [path, "--out", tmp_path / "no" / "a.html"],
    }
    for message, arguments in wrong.items():
        assert main(["report", *map(str, arguments)]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert len(told.splitlines()) == 1
    assert not (tmp_path / "levels.html").exists()
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_the_command_without_matplotlib(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(saved[0])]) == 1
    assert "pip install 'bkgmatch[report]'" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- the steps


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three neighbours, and one that overlaps nothing."""
    pieces = [(tile_wcs((1, 3)), (10.0, 14.0, 11.5)), (tile_wcs((1, 1), center=(200.0, -40.0)), (7.0,))]
    return constant_files(tmp_path_factory.mktemp("three"), pieces)


@pytest.mark.parametrize(
    ("step", "given"),
    [
        (SkyMatchStep, "models"),
        (LevelMatchStep, "association"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(SkyMatchStep, "association"), (LevelMatchStep, "models")]
        ),
        *(pytest.param(step, "files on disk", marks=pytest.mark.slow) for step in (SkyMatchStep, LevelMatchStep)),
    ],
)
@pytest.mark.usefixtures("assign_freely")
def test_steps_write_the_page_in_the_output_folder(step, given, three, offline, drawn):
    before = digest(three)
    options = {"report": True, "save_results": True, "output_dir": "out", "subtract": given != "models"}
    if given == "association":
        inputs = str(association(three))
        product = "mosaic"
    else:
        inputs, product = list(map(str, three)), "exposures"
        options["in_memory"] = given == "models"
    step.call(inputs, **options)
    page = check(Path("out") / f"{product}_{step.class_alias.replace('_', '')}_report.html")
    assert page.tables[0][1][1] == "no overlap"
    matched_before, matched_after = drawn["mosaic"][:2]
    assert np.nanmax(matched_before[0].image) == 14
    assert np.nanstd(matched_after[0].image) < 1e-5
    assert len(drawn["mosaic"]) == 4
    assert "~DO_NOT_USE+NON_SCIENCE" in page.text
    assert digest(three) == before


@pytest.mark.slow
@pytest.mark.usefixtures("assign_freely")
def test_the_page_of_a_second_run_shows_what_came_first(three, offline, drawn):
    asn = association(three)
    SkyMatchStep.call(str(asn), subtract=True, save_results=True, output_dir="one")
    SkyMatchStep.call(
        "one/mosaic_skymatch_asn.json", subtract=True, report=True, save_table="two.ecsv", save_results=True,
        output_dir="two",
    )  # fmt: skip
    check(Path("two.html"))
    assert np.nanmax(drawn["mosaic"][0][0].image) == 14
    assert np.nanstd(drawn["mosaic"][1][0].image) < 1e-5


@pytest.mark.usefixtures("assign_freely")
def test_nothing_is_run_or_written_if_the_page_would_replace_a_file(three, offline):
    Path("levels.html").write_text("mine")
    with pytest.raises(ValueError, match=r"levels\.html exists and is no report"):
        SkyMatchStep.call(str(association(three)), report=True, save_table="levels.ecsv")
    assert Path("levels.html").read_text() == "mine"
    assert not Path("levels.ecsv").exists()


@pytest.mark.usefixtures("assign_freely")
def test_a_step_without_matplotlib(three, offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"bkgmatch\[report\]"):
        LevelMatchStep.call(str(association(three)), report=True, save_table="levels.ecsv")
    assert list(offline.iterdir()) == []


@pytest.mark.usefixtures("assign_freely")
def test_the_page_of_a_background_image(tmp_path, offline, drawn):
    scene = simulate_dithers(
        rng=np.random.default_rng(23), dithers=4, dither_step=40.0, binning=16, n_sources=14, fluxes=(20.0, 300.0)
    )
    files = image_files(scene, tmp_path / "given")
    ImageForImageStep.call(
        association(files), report=True, save_results=True, output_dir="out", maxiters=1, save_table="i4i.ecsv"
    )
    page = check(Path("i4i.html"))
    assert "Background of one exposure" in page.headings
    (before, *_), (after, *_), (came, *_), (background, *_), (left, *_) = drawn["mosaic"]
    assert np.nanmedian(before.image) > 5
    assert abs(np.nanmedian(after.image)) < 0.1
    with fits.open(f"out/{files[0].name.replace('_cal', '_i4ibkg')}") as hdus:
        np.testing.assert_allclose(background.image, hdus["SCI"].data, rtol=1e-5)
    np.testing.assert_allclose(left.image, came.image - background.image, atol=1e-4)
    mask = drawn["mask"][0][0].image
    assert 0 < mask.mean() < 0.5
    assert len(drawn["sky_map"][0][0].edges) == 6
    assert main(["report", "i4i.ecsv", "--out", "again.html"]) == 0
    assert check(Path("again.html")).tables == page.tables


@pytest.mark.usefixtures("assign_freely")
def test_the_page_of_constants_of_spectra(dithers, offline, drawn):
    MRSIMatchStep.call(twins(dithers[:2]), report=True, channel=["1"], bkg_degree=0, save_table="mrs.ecsv")
    rows = Table.read("mrs.ecsv")
    page = check(Path("mrs.html"))
    assert page.headings[:4] == [
        "Mosaic before and after", "Exposures on the sky", "Corrections", "Corrections against wavelength",
    ]  # fmt: skip
    ((curves, group, _),) = drawn["curves"]
    assert group == "channel 1 SHORT"
    assert [curve.name for curve in curves] == list(rows["name"])
    for curve, row in zip(curves, rows, strict=True):
        np.testing.assert_allclose(curve.value, row["level"], rtol=1e-6)
    before, after = (np.nanmean(args[0].image) for args in drawn["mosaic"])
    assert before - after == pytest.approx(np.mean(rows["level"]), abs=0.1 * np.ptp(rows["level"]))


@pytest.mark.slow
@pytest.mark.usefixtures("assign_freely")
def test_the_page_of_polynomials(dithers, offline, drawn):
    models = twins(dithers)
    MRSIMatchStep.call(models, report=True, subtract=True, save_table="mrs.ecsv", skip=False)
    page = check(Path("mrs.html"))
    assert "Corrections against wavelength" in page.headings
    found = Table.read("mrs.ecsv")
    assert len(drawn["curves"]) == 2
    assert main(["report", "mrs.ecsv", "--out", "again.html"]) == 0
    assert check(Path("again.html")).tables == page.tables
    for (curves, *_), (again, *_) in zip(drawn["curves"][:2], drawn["curves"][2:], strict=True):
        np.testing.assert_array_equal([c.value for c in curves], [c.value for c in again])
    for (curves, group, *_), channel in zip(drawn["curves"][:2], ("1", "2"), strict=True):
        rows = found[found["channel"] == channel]
        assert group == f"channel {channel} SHORT"
        for curve, row in zip(curves, rows, strict=True):
            assert curve.name == row["name"]
            at = np.interp(row["wavelength"], curve.wavelength, curve.value)
            assert at == pytest.approx(row["coefficients"][0], abs=1e-3 * np.ptp(curve.value) + 1e-9)
            slope = np.ptp(curve.value) / np.ptp(curve.wavelength)
            assert slope == pytest.approx(abs(row["coefficients"][1]), rel=1e-6)
    before, after = (np.array([a[0].image for a in drawn["mosaic"]][k]) for k in (0, 1))
    assert np.nanpercentile(after, 90) - np.nanpercentile(after, 10) < 0.5 * (
        np.nanpercentile(before, 90) - np.nanpercentile(before, 10)
    )


def test_marks_are_what_pages_begin_with(tmp_path):
    Page("a", "", {}).write(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text().startswith(MARK)
    check_page(tmp_path / "a.html")


def test_a_page_that_cannot_be_written_costs_no_results(three, offline, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("bkgmatch.steps.base.write_report", full)
    library = SkyMatchStep.call(str(association(three)), report=True, subtract=True, save_results=True)
    assert len(library) == len(three)
    assert len(list(Path().glob("*_skymatch.fits"))) == len(three)
    (told,) = [record for record in caplog.records if "could not be written" in record.message]
    assert "no space left" in told.message
    assert told.levelname == "WARNING"
    assert not list(Path().glob("*.html"))


def test_pictures_that_fail_cost_no_results(three, offline, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise MemoryError("no memory for pictures")

    monkeypatch.setattr("bkgmatch.steps.skymatch.pictures_of_levels", fails)
    SkyMatchStep.call(str(association(three)), report=True, subtract=True, save_results=True)
    assert len(list(Path().glob("*_skymatch.fits"))) == len(three)
    assert any("could not be written: no memory for pictures" in line for line in caplog.messages)


def test_names_are_no_mathematics():
    names = [r"jw$\a$1_cal.fits", r"jw$\b$2_cal.fits", "c$d$_cal.fits"]
    values, component = np.arange(3.0), np.zeros(3, dtype=int)
    drawn = report_figures.corrections(names, values, values + 1, component, "correction ($)")
    assert drawn.startswith(b"\x89PNG")
