"""Mosaics against the sky that they show, and where their pixels lie on exposures against the WCS of each pixel."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from common import PLACES, tan, to_sky
from scipy import ndimage

from bkgmatch import mosaics
from bkgmatch.cells import resampled
from bkgmatch.detectors import Detector, detector_wcs
from bkgmatch.execution import threads
from bkgmatch.footprints import angles, footprint, unit_vectors
from bkgmatch.grids import common_grid
from bkgmatch.mosaics import Canvas, Mosaic, read_mosaic
from bkgmatch.pixel_maps import pixel_map, positions_in_plane

SHAPE = (80, 100)
PIXEL = 0.1


def sky_about(ra, dec):
    """A smooth function on the sphere: as smooth at the pole, and at right ascension 0, as elsewhere."""
    middle = unit_vectors(np.array([ra]), np.array([dec]))[0]
    helper = np.eye(3)[np.abs(middle).argmin()]
    one = np.cross(helper, middle) / np.linalg.norm(np.cross(helper, middle))
    two = np.cross(middle, one)

    def sky(ra, dec):
        shape = np.shape(ra)
        offset = unit_vectors(np.ravel(ra), np.ravel(dec)) @ np.array([one, two]).T * 206265
        x, y = offset.T / 6.0  # radians per 6 arcsec
        return (20 + 3 * x + np.sin(2 * x) * np.cos(y) + y).reshape(shape)

    return sky


def pixel_sky(wcs, shape):
    """Right ascension and declination of each pixel."""
    y, x = np.indices(shape)
    ra, dec = wcs(x.ravel().astype(float), y.ravel().astype(float))
    return np.reshape(ra, shape), np.reshape(dec, shape)


def dithers(place, n=5, shape=SHAPE):
    """WCS of dithered and turned exposures."""
    rng = np.random.default_rng(3)
    return [
        to_sky(tan(*place, shape=shape, angle=a, shift=tuple(s), pixel=PIXEL))
        for a, s in zip(rng.uniform(-5, 5, n), rng.uniform(-15, 15, (n, 2)), strict=True)
    ]


def save(path, image, wcs, **more):
    header = wcs.to_header()
    hdus = [fits.PrimaryHDU(image, header)] + [fits.ImageHDU(data, name=name) for name, data in more.items()]
    fits.HDUList(hdus).writeto(path)
    return path


def nearest(mosaic, wcs, exposure, shape):
    """Index of the mosaic's nearest pixel under each pixel, by astropy, and how far from a pixel border that is."""
    x, y = wcs.wcs_world2pix(*pixel_sky(exposure, shape), 0)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    ny, nx = mosaic.image.shape
    inside = (column >= 0) & (row >= 0) & (column < nx) & (row < ny)
    margin = 0.5 - np.maximum(np.abs(x - column), np.abs(y - row))
    return np.where(inside, row * nx + column, 0), inside, margin


def assert_on_exposure(mosaic, wcs, exposure, shape, tolerance=0.02):
    """As the WCS of every pixel says, but for pixels whose centres fall on a border of two pixels of the mosaic."""
    seen = np.isfinite(mosaic.image)
    index = np.where(seen, np.arange(mosaic.image.size, dtype=float).reshape(seen.shape), np.nan)
    place = replace(mosaic, image=index).on_exposure(exposure, shape)
    inside = np.isfinite(place)
    expected, within, margin = nearest(mosaic, wcs, exposure, shape)
    covered = within & seen.ravel()[expected]
    clear = margin > tolerance
    assert clear.mean() > 0.4
    np.testing.assert_array_equal(inside[clear], covered[clear])
    np.testing.assert_array_equal(place[clear & covered], expected[clear & covered])
    return inside


# Where pixels lie


@pytest.mark.parametrize("shape", [(256, 258), (3, 200), (1, 1), (40, 1)])
def test_positions_as_those_of_each_pixel(shape):
    wcs = partial(detector_wcs(Detector.named("MIRIMAGE"), 150.0, 2.2, 30.0, binning=4), with_bounding_box=False)
    tangent = tan(150.0, 2.2, shape=shape, pixel=0.44)

    def to_plane(pixels):
        return np.column_stack(tangent.wcs_world2pix(*wcs(*pixels.T), 0))

    found = positions_in_plane(to_plane, shape)
    y, x = np.indices(shape)
    expected = to_plane(np.column_stack([x.ravel(), y.ravel()]).astype(float)).T.reshape(2, *shape)
    assert found.shape == (2, *shape)
    assert np.abs(found - expected).max() < 0.01


def test_positions_of_a_wcs_that_no_series_follows():
    def to_plane(pixels):
        return pixels + 3 * np.sign(pixels[:, :1] - 20.3)  # a step

    y, x = np.indices((30, 50))
    found = positions_in_plane(to_plane, (30, 50))
    np.testing.assert_allclose(found, [x + 3 * np.sign(x - 20.3), y + 3 * np.sign(x - 20.3)])


def test_resampling_as_scipy_does():
    """Cells turned by 17 degrees, and bad pixels: spline of order 1 at the places that astropy gives."""
    wcs = tan(150, 20, shape=SHAPE, angle=17, shift=(3.3, -4.4))
    image = np.random.default_rng(1).normal(10, 1, SHAPE).astype(np.float32)
    image[30:33, 40] = np.nan
    outlines = [footprint(np.ones(SHAPE, bool), to_sky(w), overlap="footprint") for w in (tan(150, 20), wcs)]
    grid = common_grid(outlines)
    where = pixel_map(outlines[1], to_sky(wcs), grid.of)
    columns, rows = np.arange(-80, 81), np.arange(-70, 71)
    value = resampled(image, where, columns, rows)

    cells = grid.header(np.array([columns[0], rows[0]]))
    x, y = wcs.wcs_world2pix(*pixel_sky(to_sky(cells), value.shape), 0)
    expected = ndimage.map_coordinates(image, [y, x], order=1, cval=np.nan, mode="constant")
    both = np.isfinite(value) & np.isfinite(expected)
    np.testing.assert_allclose(value[both], expected[both], atol=5e-3)
    ny, nx = SHAPE
    clear = np.abs(np.stack([x, x - nx + 1, y, y - ny + 1])).min(axis=0) > 0.01  # not on an edge
    clear &= ~((np.abs(x - 40) < 1.01) & (np.abs(y - 31) < 2.01))
    np.testing.assert_array_equal(np.isfinite(value)[clear], np.isfinite(expected)[clear])
    assert both.sum() > 0.8 * image.size
    assert np.isnan(value[np.hypot(x - 40, y - 31) < 0.5]).all()


# Mosaics of exposures


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_mosaic_shows_the_sky(place):
    """The sky at the centres of the cells, which the FITS header alone places."""
    wcss, sky = dithers(place), sky_about(*place)
    images = np.array([sky(*pixel_sky(wcs, SHAPE)) for wcs in wcss], dtype=np.float32)
    canvas = Canvas.of(wcss, SHAPE)[0]
    mosaic = canvas.mosaic(images, 0.5)
    truth = sky(*mosaic.header.wcs_pix2world(*np.indices(mosaic.image.shape)[::-1].reshape(2, -1), 0))
    seen = np.isfinite(mosaic.image)
    assert np.abs(mosaic.image - truth.reshape(mosaic.image.shape))[seen].max() < 5e-3
    assert seen.sum() > images[0].size
    assert mosaic.image.shape == mosaic.count.shape
    np.testing.assert_array_equal(mosaic.count > 0, seen)
    assert mosaic.count.max() == len(wcss)
    assert mosaic.count.sum() == pytest.approx(len(wcss) * np.prod([n - 1 for n in SHAPE]), rel=0.02)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_pixels_of_a_mosaic_of_exposures(place):
    wcss = dithers(place)
    mosaic = Canvas.of(wcss, SHAPE)[0].mosaic(np.ones((len(wcss), *SHAPE), dtype=np.float32), 0.5)
    for wcs in wcss:
        inside = assert_on_exposure(mosaic, mosaic.header, wcs, SHAPE)
        assert inside.mean() > 0.95
    ra, dec = mosaic.header.wcs_pix2world([3.0, 60.5], [5.0, 20.25], 0)
    np.testing.assert_allclose(mosaic.to_pixels(unit_vectors(ra, dec)), [[3, 5], [60.5, 20.25]], atol=1e-5)


def test_distorted_exposures_meet_on_the_sky():
    chip, shape = Detector.named("MIRIMAGE"), (128, 129)
    pointings = [(150 + d / 3600, 2.2 - d / 7200, 30 + d / 10) for d in (0, 5, 9)]
    wcss = [partial(detector_wcs(chip, *p, binning=8), with_bounding_box=False) for p in pointings]
    middle = np.mean([wcs(64, 64) for wcs in wcss], axis=0)

    def sky(ra, dec):
        return 10 + 100 * (np.asarray(ra) - middle[0]) - 200 * (np.asarray(dec) - middle[1])

    images = np.array([sky(*pixel_sky(wcs, shape)) for wcs in wcss], dtype=np.float32)
    mosaic = Canvas.of(wcss, shape)[0].mosaic(images, 0.5)
    y, x = np.indices(mosaic.image.shape)
    truth = sky(*mosaic.header.wcs_pix2world(x.ravel(), y.ravel(), 0)).reshape(x.shape)
    assert np.nanmax(np.abs(mosaic.image - truth)) < 2e-3  # 0.02 to 0.05 per pixel
    for wcs in wcss:
        assert_on_exposure(mosaic, mosaic.header, wcs, shape)


def test_cosmic_rays_are_rejected():
    wcss = [to_sky(tan(150, 20, shape=SHAPE, shift=(3 * k, -2 * k))) for k in range(6)]
    rng = np.random.default_rng(1)
    clean = rng.normal(10, 0.1, (6, *SHAPE)).astype(np.float32)
    hit = clean.copy()
    hit.reshape(6, -1)[np.arange(6)[:, None], rng.integers(0, clean[0].size, (6, 40))] += 50
    canvas = Canvas.of(wcss, SHAPE)[0]
    plain, rejected = (canvas.mosaic(images, 0.1) for images in (clean, hit))
    many = plain.count >= 4
    assert np.abs(rejected.image - plain.image)[many & np.isfinite(rejected.image)].max() < 0.3
    assert (rejected.count < plain.count).any()
    assert np.isfinite(rejected.image[many]).mean() > 0.999


def test_bad_pixels_leave_no_trace():
    wcss = [to_sky(tan(150, 20, shape=SHAPE, shift=(4 * k, 0))) for k in range(3)]
    images = np.full((3, *SHAPE), 7.0, dtype=np.float32)
    images[:, ::9, ::7] = np.nan
    images[1] = np.nan
    mosaic = Canvas.of(wcss, SHAPE)[0].mosaic(images, 0.1)
    np.testing.assert_allclose(mosaic.image[np.isfinite(mosaic.image)], 7)
    assert mosaic.count.max() == 2
    empty = Canvas.of(wcss, SHAPE)[0].mosaic(np.full_like(images, np.nan), 0.1)
    assert np.isnan(empty.image).all()
    assert not empty.count.any()


def test_bright_stars_leave_no_holes():
    """
    Where the light is steep the exposures differ by more than noise, and none is near the median of an even number.

    A mosaic without its brightest pixels has no sources there.
    """
    place = (150.0, 20.0)
    shape, n = (60, 60), 4
    wcss = [tan(*place, shape=shape, shift=(7.3 * k, 4.6 * k)) for k in range(n)]

    def star(wcs):
        ra, dec = pixel_sky(to_sky(wcs), shape)
        east, north = (ra - 150.0) * np.cos(np.deg2rad(20)) * 36000, (dec - 20.0) * 36000
        return (1e4 * np.exp(-0.5 * (east**2 + north**2) / 1.1**2)).astype(np.float32)

    images = np.array([star(wcs) for wcs in wcss])
    mosaic = Canvas.of([to_sky(wcs) for wcs in wcss], shape)[0].mosaic(images, 0.1)
    x, y = np.ravel(mosaic.header.wcs_world2pix(*place, 0))
    rows, columns = np.indices(mosaic.image.shape)
    core = np.hypot(rows - y, columns - x) < 4
    assert np.isfinite(mosaic.image[core]).all()
    assert np.nanmax(mosaic.image[core]) > 3000


def test_two_threads_and_tiles_change_nothing():
    shape = (300, 620)  # more than one tile
    wcss = [to_sky(tan(150, 20, shape=shape, shift=(11 * k, -9 * k))) for k in range(3)]
    images = np.random.default_rng(1).normal(10, 1, (3, *shape)).astype(np.float32)
    canvas = Canvas.of(wcss, shape)[0]
    one = canvas.mosaic(images, 1.0)
    with threads(2) as work:
        two = canvas.mosaic(images, 1.0, work=work)
    assert max(canvas.shape) > 512
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.count, two.count)
    assert np.isfinite(one.image).mean() > 0.9


@pytest.mark.parametrize("shape", [(2, 2), (2, 90), (90, 3)])
def test_narrow_exposures(shape):
    wcss = [to_sky(tan(150, 20, shape=shape, shift=(0.25 * k, 0))) for k in range(2)]
    mosaic = Canvas.of(wcss, shape)[0].mosaic(np.full((2, *shape), 3.0, dtype=np.float32), 1.0)
    assert np.nanmax(mosaic.image) == np.nanmin(mosaic.image) == 3


# Mosaics from files


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("pixel", [0.04, 0.1, 0.27])
def test_files_lie_where_astropy_says(tmp_path, place, pixel):
    """Pixels smaller and larger than those of the exposures."""
    shape = (round(6 / pixel), round(7 / pixel))
    wcs = tan(*place, shape=shape, angle=20, pixel=pixel)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    image[:5] = np.nan
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", image, wcs))
    np.testing.assert_array_equal(mosaic.image, image)
    for exposure in dithers(place, 2):
        inside = assert_on_exposure(mosaic, wcs, exposure, SHAPE)
        assert 0.1 < inside.mean() < 1
    np.testing.assert_allclose(
        np.array(mosaic.header.wcs_pix2world([1.0], [2.0], 0)), np.array(wcs.wcs_pix2world([1.0], [2.0], 0))
    )


def test_a_mosaic_elsewhere_covers_nothing(tmp_path):
    for k, place in enumerate([(150.01, 20.0), (151, 20), (240, 20)]):
        mosaic = read_mosaic(save(tmp_path / f"{k}.fits", np.ones(SHAPE, np.float32), tan(*place, shape=SHAPE)))
        assert np.isnan(mosaic.on_exposure(to_sky(tan(150, 20, shape=SHAPE)), SHAPE)).all()


def test_the_other_side_of_the_sky_is_not_covered(tmp_path):
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", np.ones(SHAPE, np.float32), tan(330, -20, shape=SHAPE)))
    assert np.isnan(mosaic.on_exposure(to_sky(tan(150, 20, shape=SHAPE)), SHAPE)).all()


def test_part_of_an_exposure_may_be_covered(tmp_path):
    wcs = tan(150, 20, shape=SHAPE, shift=(40, 0))  # it begins 40 pixels to the right
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", np.ones(SHAPE, np.float32), wcs))
    inside = np.isfinite(mosaic.on_exposure(to_sky(tan(150, 20, shape=SHAPE)), SHAPE))
    assert inside.mean() == pytest.approx(0.6, abs=0.011)
    columns = inside.all(axis=0)
    assert columns[41:].all()
    assert not inside[:, :39].any()


def test_weights_are_read(tmp_path):
    image, weight = np.ones((2, *SHAPE), dtype=np.float32)
    weight[:, :50] = 4
    weight[:10], weight[10:20] = 0, np.nan
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", image, tan(shape=SHAPE), WHT=weight))
    np.testing.assert_array_equal(np.isnan(mosaic.image), np.indices(SHAPE)[0] < 20)
    np.testing.assert_array_equal(mosaic.count[20:], weight[20:])
    assert np.isfinite(mosaic.count).all()


def test_without_weights_pixels_count_alike(tmp_path):
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", np.zeros(SHAPE, np.float32), tan(shape=SHAPE)))
    assert np.ptp(mosaic.count) == 0
    assert mosaic.count.min() > 0


@pytest.mark.parametrize("dtype", ["u1", ">i2", ">i4", ">f8", "bool"])
def test_kinds_of_masks(tmp_path, dtype):
    mask = np.indices(SHAPE).sum(axis=0) % 3 == 0
    image = mask.astype(np.uint8 if dtype == "bool" else dtype)
    mosaic = read_mosaic(save(tmp_path / "mask.fits", image, tan(shape=SHAPE)))
    np.testing.assert_array_equal(mosaic.image > 0, mask)
    found = mosaic.on_exposure(to_sky(tan(shape=SHAPE)), SHAPE)
    np.testing.assert_array_equal(found > 0, mask)
    assert np.isfinite(found).all()


def test_the_image_called_sci_is_read(tmp_path):
    other, science = (np.full(SHAPE, value, dtype=np.float32) for value in (1, 2))
    header = tan(shape=SHAPE).to_header()
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(other, name="ERR"), fits.ImageHDU(science, header, name="SCI")]
    fits.HDUList(hdus).writeto(tmp_path / "mosaic.fits")
    assert (read_mosaic(tmp_path / "mosaic.fits").image == 2).all()


def test_galactic_coordinates(tmp_path):
    """The same sky in another frame."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [33.0, -20.0], [50.5, 40.5], np.array([-PIXEL, PIXEL]) / 3600
    mosaic = read_mosaic(save(tmp_path / "mosaic.fits", np.ones(SHAPE, np.float32), wcs))
    there = wcs.pixel_to_world([10.0, 77.0], [20.0, 3.0]).icrs
    np.testing.assert_allclose(
        mosaic.to_pixels(unit_vectors(there.ra.deg, there.dec.deg)), [[10, 20], [77, 3]], atol=1e-4
    )


def test_a_mask_that_is_written_can_be_read(tmp_path):
    wcss = dithers(PLACES["across RA 0"])
    mosaic = Canvas.of(wcss, SHAPE)[0].mosaic(np.ones((len(wcss), *SHAPE), dtype=np.float32), 0.5)
    image = np.where(np.isfinite(mosaic.image), np.random.default_rng(1).random(mosaic.image.shape) < 0.2, np.nan)
    Mosaic("mask", image.astype(np.float32), mosaic.count, mosaic.to_pixels, mosaic.header).write(
        tmp_path / "mask.fits"
    )
    again = read_mosaic(tmp_path / "mask.fits")
    np.testing.assert_array_equal(again.image > 0, image > 0)
    for wcs in wcss:
        one, two = (m.on_exposure(wcs, SHAPE) for m in (replace(mosaic, image=image), again))
        assert (one == two)[np.isfinite(one)].mean() > 0.99  # but for pixels on borders
    assert [file.name for file in tmp_path.iterdir()] == ["mask.fits"]


# Bad input


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fits"):
        read_mosaic(tmp_path / "nowhere.fits")


@pytest.mark.parametrize("kind", ["no WCS", "no image", "a cube", "a spectrum", "text"])
def test_files_that_are_no_mosaics_are_named(tmp_path, kind):
    path = tmp_path / "bad_mask.fits"
    spectrum = WCS(naxis=2)
    spectrum.wcs.ctype = ["WAVE", "LINEAR"]
    hdus = {
        "no WCS": lambda: fits.PrimaryHDU(np.ones(SHAPE)),
        "no image": fits.PrimaryHDU,
        "a cube": lambda: fits.PrimaryHDU(np.ones((2, *SHAPE)), tan(shape=SHAPE).to_header()),
        "a spectrum": lambda: fits.PrimaryHDU(np.ones(SHAPE), spectrum.to_header()),
    }
    if kind == "text":
        path.write_text("0 1 1 0")
    else:
        hdus[kind]().writeto(path)
    with pytest.raises(ValueError, match=r"bad_mask\.fits"):
        read_mosaic(path)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.float32])
def test_outside_a_mask_of_any_kind_is_nothing(kind):
    wcs = tan(shape=(40, 40))
    mosaic = Mosaic("mask", np.ones((40, 40), kind), np.ones((40, 40)), pixels_of(wcs), wcs)
    found = mosaic.on_exposure(to_sky(tan(shape=(40, 60))), (40, 60))
    assert np.isnan(found[:, :10]).all()
    assert (found[:, 11:49] == 1).all()


def pixels_of(wcs):
    return lambda vectors: np.column_stack(wcs.wcs_world2pix(*angles(vectors), 0))


def test_weights_that_are_no_image_are_named(tmp_path):
    path = save(tmp_path / "bad.fits", np.ones(SHAPE), tan(shape=SHAPE))
    fits.append(path, np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f4")]), fits.Header({"EXTNAME": "WHT"}))
    with pytest.raises(ValueError, match=r"bad\.fits is damaged: its image cannot be read"):
        read_mosaic(path)


def test_weights_of_another_shape_are_named(tmp_path):
    path = save(tmp_path / "bad.fits", np.ones(SHAPE), tan(shape=SHAPE), WHT=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"bad\.fits"):
        read_mosaic(path)


def test_strips_of_many_exposures_change_nothing(monkeypatch):
    wcss = dithers(PLACES["across RA 0"])
    images = np.random.default_rng(1).normal(10, 1, (len(wcss), *SHAPE)).astype(np.float32)
    canvas = Canvas.of(wcss, SHAPE)[0]
    whole = canvas.mosaic(images, 1.0)
    monkeypatch.setattr(mosaics, "_AT_ONCE", 1)
    strips = canvas.mosaic(images, 1.0)
    np.testing.assert_allclose(strips.image, whole.image, rtol=1e-6)
    np.testing.assert_array_equal(strips.count, whole.count)
