"""Exposures on the common grid: positions, values and the bookkeeping of variances."""

import numpy as np
import pytest
from common import EMPTY, IMAGES, PLACES, SHAPE, noise, tan, to_pixels, to_sky
from scipy.spatial import cKDTree

from bkgmatch.cells import BLOCK, place
from bkgmatch.detectors import Detector, Pointing, detector_wcs
from bkgmatch.exposures import Pixels
from bkgmatch.footprints import footprint, sky_vectors
from bkgmatch.grids import common_grid
from bkgmatch.pixel_maps import pixel_map

RATIOS = (0.5, 1.0, 1.5, 2.0, 3.0, 3.5)
ANGLES = (0.0, 17.0, 90.0, 211.0)


def pixels_of(data, *, good=None, variance=None):
    data = np.asarray(data)
    return Pixels(data, np.isfinite(data) if good is None else good, variance)


def placed(data, wcs, *, ratio=1.0, good=None, variance=None, on=None):
    """Cut-out of an image, and the grid: its own, or that of another WCS."""
    data = np.asarray(data)
    here = footprint(np.ones(data.shape, bool), to_sky(wcs))
    grid = common_grid([footprint(np.ones(data.shape, bool), to_sky(on or wcs))], ratio)
    return place(pixels_of(data, good=good, variance=variance), here, to_sky(wcs), grid), grid


def surface(cutout):
    """Surface brightness in the cells."""
    return cutout.value + cutout.base


def cells_in(cutout):
    """Grid coordinates (x, y) of all cells, each of shape (ny, nx)."""
    y, x = np.indices(cutout.value.shape)
    return x + cutout.x, y + cutout.y


def sky_of_cells(grid, x, y):
    """Right ascension and declination, in degrees."""
    a, b, c = grid.vectors(np.column_stack([np.ravel(x), np.ravel(y)]).astype(float)).T
    return np.rad2deg(np.arctan2(b, a)) % 360, np.rad2deg(np.arctan2(c, np.hypot(a, b)))


def pixels_on_grid(wcs, shape, grid):
    """Grid coordinates (x, y), each of shape (ny, nx), of the centres of pixels."""
    y, x = np.indices(shape)
    points = grid.of(
        sky_vectors(wcs if callable(wcs) else to_sky(wcs), np.column_stack([x.ravel(), y.ravel()]).astype(float))
    )
    return points[:, 0].reshape(shape), points[:, 1].reshape(shape)


def on_sky_from_pixels(wcs, x, y):
    """Unit vectors of pixels, shape (n, 3)."""
    return sky_vectors(wcs, np.column_stack([np.ravel(x), np.ravel(y)]).astype(float))


# Positions


DETECTORS = ("NRCALONG", "NRCA1", "MIRIMAGE")


def jwst_pair(name, binning, roll):
    """WCS of an image, its shape and outline, and the outline of a neighbour."""
    detector = Detector.named(name)
    shape = detector.size[1] // binning, detector.size[0] // binning
    here, there = (
        detector_wcs(detector, *where, binning=binning)
        for where in (Pointing(150.0, 70.0, 30.0 + roll), Pointing(150.004, 70.004, 30.0))
    )
    outline, neighbour = (footprint(np.ones(shape, bool), wcs) for wcs in (here, there))
    return here, shape, outline, neighbour


def bounds(outline, grid):
    """Lowest and highest cell (x, y) about an outline."""
    corners = grid.of(outline.vectors)
    return np.floor(corners.min(axis=0) - 1).astype(int), np.ceil(corners.max(axis=0) + 2).astype(int)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("binning", [1, 4, 16])
@pytest.mark.parametrize("ratio", [1.0, 2.5])
@pytest.mark.parametrize("roll", [0.0, 90.0, 182.0])
def test_cells_lie_where_the_full_wcs_of_jwst_says(name, binning, ratio, roll):
    assert error_of_map(name, binning, ratio, roll) < 1e-3


def test_cells_of_turned_detectors_lie_where_the_full_wcs_of_jwst_says():
    errors = {(d, b, r): error_of_map(d, b, 1.0, r) for d in DETECTORS for b in (1, 8) for r in (20.0, 45.0, 290.0)}
    assert max(errors.values()) < 1e-3, errors


def error_of_map(name, binning, ratio, roll):
    """Points of the detector, put on the grid by the WCS, must come back: largest error in pixels."""
    wcs, shape, outline, neighbour = jwst_pair(name, binning, roll)
    grid = common_grid([neighbour, outline], ratio)
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(-0.5, n - 0.5, 300) for n in shape[::-1])
    x[:4], y[:4] = [-0.5, -0.5, shape[1] - 0.5, shape[1] - 0.5], [-0.5, shape[0] - 0.5, -0.5, shape[0] - 0.5]
    at = grid.of(on_sky_from_pixels(wcs, x, y))
    found = pixel_map(outline, wcs, grid.of)(at[:, 0], at[:, 1])
    return max(np.abs(np.diagonal(found[0]) - x).max(), np.abs(np.diagonal(found[1]) - y).max())


def test_no_cells_off_the_detector():
    """Every cell with a value has a pixel's centre within a pixel."""
    stray = {}
    for name in DETECTORS:
        for roll in (0.0, 20.0, 45.0, 70.0):
            wcs, shape, outline, neighbour = jwst_pair(name, 16, roll)
            grid = common_grid([neighbour, outline])
            found = place(pixels_of(np.ones(shape)), outline, wcs, grid)
            centres = np.column_stack([c.ravel() for c in pixels_on_grid(wcs, shape, grid)])
            cells = np.column_stack([c[np.isfinite(found.value)] for c in cells_in(found)])
            stray[name, roll] = (cKDTree(centres).query(cells)[0] > 1).sum()
    assert not any(stray.values()), stray


@pytest.mark.parametrize("place_name", PLACES)
@pytest.mark.parametrize("angle", ANGLES)
def test_cells_lie_where_astropy_says(place_name, angle):
    wcs = tan(*PLACES[place_name], angle=angle)
    outline = footprint(np.ones(SHAPE, bool), to_sky(wcs))
    grid = common_grid([footprint(np.ones(SHAPE, bool), to_sky(tan(*PLACES[place_name], shift=(20, -15)))), outline])
    low, high = bounds(outline, grid)
    columns, rows = (np.arange(low[k], high[k]) for k in range(2))
    found = pixel_map(outline, to_sky(wcs), grid.of)(columns, rows)
    expected = to_pixels(wcs, *sky_of_cells(grid, *np.meshgrid(columns, rows)))
    expected = np.reshape(expected, found.shape)
    on_image = np.all([np.abs(expected[k] + 0.5 - n / 2) <= n / 2 for k, n in enumerate(SHAPE[::-1])], axis=0)
    np.testing.assert_allclose(found[:, on_image], expected[:, on_image], rtol=0, atol=1e-3)
    assert on_image.sum() == pytest.approx(np.prod(SHAPE), rel=0.05)


@pytest.mark.parametrize("ratio", RATIOS)
def test_grid_has_the_cells_that_are_asked_for(ratio):
    """Cells are square, of so many pixels, and along the pixels of the first."""
    first, second = tan(40.0, 60.0, angle=33.0), tan(40.0, 60.0, angle=80.0, shift=(300, 100))
    grid = common_grid([footprint(np.ones(SHAPE, bool), to_sky(wcs)) for wcs in (first, second)], ratio)
    np.testing.assert_allclose(grid.axes @ grid.axes.T, np.eye(3), atol=1e-14)
    x, y = pixels_on_grid(first, SHAPE, grid)
    np.testing.assert_allclose(ratio * np.hypot(*np.array([np.diff(x, axis=1), np.diff(y, axis=1)])), 1, atol=1e-4)
    np.testing.assert_allclose(np.diff(x, axis=1) * ratio, 1, atol=1e-4)
    middle = np.mean([np.mean(pixels_on_grid(wcs, SHAPE, grid), axis=(1, 2)) for wcs in (first, second)], axis=0)
    np.testing.assert_allclose(middle, 0, atol=0.1)


def test_grid_takes_the_median_pixel():
    wcs = [tan(pixel=size) for size in (0.03, 0.1, 0.3)]
    grid = common_grid([footprint(np.ones(SHAPE, bool), to_sky(w)) for w in wcs])
    assert np.rad2deg(grid.cell) * 3600 == pytest.approx(0.1, rel=1e-4)


def test_a_wcs_that_jumps_is_refused():
    def jumps(x, y):
        return 10 + np.where(np.asarray(x) > 30.3, 2e-3, 0) + np.asarray(x) * 3e-5, np.asarray(y) * 3e-5

    outline = footprint(np.ones(SHAPE, bool), to_sky(tan(10.001, 0.0)))
    with pytest.raises(ValueError, match="not smooth"):
        place(pixels_of(noise()), outline, jumps, common_grid([outline]))


# Values


@pytest.mark.parametrize("place_name", PLACES)
@pytest.mark.parametrize("angle", ANGLES[:2])
@pytest.mark.parametrize("ratio", RATIOS)
def test_linear_sky_is_reproduced(place_name, angle, ratio):
    """Bilinear interpolation and means of pixels are exact for it, wherever the cells lie."""
    shape = (70, 90)
    wcs, neighbour = (
        tan(*PLACES[place_name], shape=shape, angle=a, shift=s) for a, s in ((angle, (3.3, 1.7)), (5.0, (0, 0)))
    )
    grid = common_grid([footprint(np.ones(shape, bool), to_sky(neighbour))], ratio)
    x, y = pixels_on_grid(wcs, shape, grid)
    data = 2 + 0.03 * x * ratio - 0.02 * y * ratio
    outline = footprint(np.ones(shape, bool), to_sky(wcs))
    found = place(pixels_of(data), outline, to_sky(wcs), grid)
    x, y = cells_in(found)
    good = np.isfinite(found.value)
    error = np.abs(surface(found) - (2 + 0.03 * x * ratio - 0.02 * y * ratio))[good]
    # Large cells that the image does not fill have the mean of their part of it
    assert np.mean(error > 2e-5) <= (0.0 if ratio < 2 else 0.05 * ratio)
    assert error.max() < (2e-5 if ratio < 2 else 0.25 * 0.05 * ratio)
    # Cells cover the image but for half a bin at its edge
    lost = 2 * max(1, int(ratio)) + 1
    assert good.sum() * ratio**2 > 0.97 * (shape[0] - lost) * (shape[1] - lost)
    assert good.sum() * ratio**2 <= 1.02 * shape[0] * shape[1]


def test_bilinear_values_by_hand():
    """One bright pixel on a grid that is shifted by a known part of a pixel."""
    data = np.zeros((40, 40))
    data[20, 17] = 16.0
    wcs = tan(shape=(40, 40))
    found, grid = placed(data, wcs)
    x, y = to_pixels(wcs, *sky_of_cells(grid, *cells_in(found)))
    hat = [np.maximum(0, 1 - np.abs(at - centre)).reshape(found.value.shape) for at, centre in ((x, 17), (y, 20))]
    good = np.isfinite(found.value)
    np.testing.assert_allclose(surface(found)[good], 16 * (hat[0] * hat[1])[good], atol=2e-3)
    assert surface(found)[good].sum() == pytest.approx(16, abs=0.01)


def test_cells_are_those_between_good_pixels():
    """A cell has a value exactly if the four pixels around its centre are on the detector and good."""
    rng = np.random.default_rng(3)
    good = rng.random(SHAPE) > 0.1
    wcs, neighbour = tan(angle=12.0, shift=(0.3, 0.2)), tan()
    found, grid = placed(noise(), wcs, good=good, on=neighbour)
    x, y = to_pixels(wcs, *sky_of_cells(grid, *cells_in(found)))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    padded = np.pad(good, 1)
    expected = np.ones(len(x), bool)
    for dx in (0, 1):
        for dy in (0, 1):
            expected &= padded[np.clip(row + dy, -1, SHAPE[0]) + 1, np.clip(column + dx, -1, SHAPE[1]) + 1]
    clear = (np.abs(x - np.round(x)) > 2e-3) & (np.abs(y - np.round(y)) > 2e-3)
    np.testing.assert_array_equal(np.isfinite(found.value).ravel()[clear], expected[clear])
    assert expected[clear].sum() > 1000


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("bad", [1e30, -1e30, np.nan, np.inf, -np.inf])
def test_bad_pixels_never_leak(ratio, bad):
    """Flagged but finite, or not finite and not flagged."""
    rng = np.random.default_rng(4)
    spoilt = rng.random((64, 64)) < 0.03
    data = np.where(spoilt, bad, 5.0)
    wcs = tan(shape=(64, 64), angle=20.0)
    good = ~spoilt if np.isfinite(bad) else np.ones_like(spoilt)
    found, _ = placed(data, wcs, good=good, ratio=ratio, on=tan(shape=(64, 64)))
    values = surface(found)[np.isfinite(found.value)]
    assert values.size > 0.2 * data.size / max(1, ratio) ** 2
    np.testing.assert_allclose(values, 5.0, rtol=1e-6)
    assert not np.isinf(found.value).any()


NOISE_UNSEEN = EMPTY | {"one pixel", "one row", "one column", "constant"}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_every_kind_of_image(kind, ratio):
    data = IMAGES[kind]()
    wcs = tan(shape=data.shape, angle=7.0)
    found, _ = (
        placed(data, wcs, ratio=ratio, on=tan(shape=data.shape, shift=(0.4, 0.3)))
        if kind not in EMPTY
        else (on_a_grid_of_its_frame(data, wcs, ratio))
    )
    good = np.isfinite(found.value)
    assert found.value.dtype == np.float32
    assert found.value.dtype.isnative
    assert not np.array(found.value.shape) % BLOCK @ [1, 1]
    assert (found.x % BLOCK, found.y % BLOCK) == (0, 0)
    if kind in NOISE_UNSEEN:
        assert np.isnan(found.variance).all()
    else:
        assert (found.variance > 0).all()
        assert np.isfinite(found.variance).all()
    if kind in EMPTY or min(data.shape) < 2 * ratio:
        assert not good.any()
        np.testing.assert_array_equal(found.extent, 0)
        return
    finite = np.asarray(data, dtype=float)
    finite = finite[np.isfinite(finite)]
    assert good.sum() > 0.4 * finite.size / ratio**2
    assert surface(found)[good].min() >= finite.min() - 1e-3
    assert surface(found)[good].max() <= finite.max() + 1e-3
    assert np.median(surface(found)[good]) == pytest.approx(np.median(finite), abs=0.02 * max(1, np.std(finite) / 0.1))
    rows, columns = np.flatnonzero(good.any(axis=1)), np.flatnonzero(good.any(axis=0))
    np.testing.assert_array_equal(found.extent, [np.ptp(columns) + 1, np.ptp(rows) + 1])


def on_a_grid_of_its_frame(data, wcs, ratio):
    outline = footprint(np.ones(data.shape, bool), to_sky(wcs))
    grid = common_grid([outline], ratio)
    return place(pixels_of(data), outline, to_sky(wcs), grid), grid


@pytest.mark.parametrize("kind", ["big-endian", "big-endian double", "integer", "unsigned", "Fortran order", "strided"])
def test_storage_does_not_matter(kind):
    data = IMAGES[kind]()
    wcs = tan(angle=7.0)
    one, two = (placed(d, wcs, on=tan())[0] for d in (data, np.array(data, dtype=np.float64, order="C")))
    np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(one.variance, two.variance)


def test_the_input_is_not_changed():
    data, variance, good = noise(), np.full(SHAPE, 0.01), np.ones(SHAPE, bool)
    data[5, 5] = np.inf
    before = [a.copy() for a in (data, variance, good)]
    placed(data, tan(), variance=variance, good=good)
    for now, then in zip((data, variance, good), before, strict=True):
        np.testing.assert_array_equal(now, then)


# Variances


def noise_cells(rng, shape, ratio, angle, shift, *, variance=True, sigma=0.3):
    wcs = tan(shape=shape, angle=angle, shift=shift)
    data = rng.normal(0, sigma, shape)
    return placed(data, wcs, ratio=ratio, variance=np.full(shape, sigma**2) if variance else None, on=tan(shape=shape))[
        0
    ]


RATIO_19 = 1.9


@pytest.mark.parametrize(
    "ratio", [0.5, 1.0, RATIO_19, 3.0, *(pytest.param(r, marks=pytest.mark.slow) for r in (1.3, 2.0, 3.5))]
)
def test_variance_of_sums_over_many_cells(ratio):
    """The mean over a region has the error sqrt(variance / number of cells): neighbours share pixels, it says how."""
    rng = np.random.default_rng(5)
    pulls = []
    for repeat in range(60):
        angle, shift = 7.0 * repeat, rng.uniform(-0.5, 0.5, 2)
        cells = noise_cells(rng, (160, 160), ratio, angle, tuple(shift))
        x, y = cells_in(cells)
        side = 25 / ratio
        for u in (-1.01, 1.01):
            for v in (-1.01, 1.01):
                inside = (np.abs(x - u * side) < side) & (np.abs(y - v * side) < side)
                number = inside.sum()
                assert np.isfinite(cells.value[inside]).all()
                pulls.append(surface(cells)[inside].mean() / np.sqrt(np.median(cells.variance) / number))
    assert np.std(pulls) == pytest.approx(1, abs=0.15)  # 240 regions: +- 0.046


@pytest.mark.parametrize(
    ("ratio", "angle"),
    [(ratio, 31.0) for ratio in RATIOS] + [(ratio, 0.0) for ratio in RATIOS],
)
def test_variance_of_single_cells(ratio, angle):
    """Cells at a pixel's centre have its variance; those in a corner of four have a quarter."""
    rng = np.random.default_rng(6)
    ratios = []
    for shift in [(0.0, 0.0), (0.5, 0.5), (0.2, 0.4)]:
        for _ in range(4):
            cells = noise_cells(rng, (160, 160), ratio, angle, shift)
            values = surface(cells)[np.isfinite(cells.value)]
            ratios.append(np.var(values) / (cells.smoothing * np.median(cells.variance)))
    np.testing.assert_allclose(
        np.mean(np.reshape(ratios, (3, 4)), axis=1), 1, atol=0.3 if ratio > 3 else 0.06 if ratio < 2 else 0.12
    )


def test_smoothing_by_hand():
    """Of bilinear interpolation: 1 on pixels, 1/4 in their corners, 4/9 on average."""
    side, shape = tan(shape=(96, 96)), (96, 96)
    grid = common_grid([footprint(np.ones(shape, bool), to_sky(side))])
    for shift, expected in [((0.5, 0.5), 1.0), ((0.0, 0.0), 0.25), ((0.5, 0.0), 0.5)]:
        wcs = tan(shape=shape, shift=shift)  # 96 is even: the middle of the image, cell (0, 0), is a corner
        outline = footprint(np.ones(shape, bool), to_sky(wcs))
        found = place(pixels_of(noise(shape)), outline, to_sky(wcs), grid)
        assert found.smoothing == pytest.approx(expected, abs=0.01)
    turned, _ = placed(noise(shape), tan(shape=shape, angle=40.0), on=side)
    assert turned.smoothing == pytest.approx(4 / 9, abs=0.02)


@pytest.mark.parametrize("ratio", RATIOS)
def test_given_variance_is_scaled_by_area(ratio):
    variance = np.full((96, 96), 0.04)
    found, _ = placed(noise((96, 96)), tan(shape=(96, 96)), variance=variance, ratio=ratio)
    np.testing.assert_allclose(found.variance, 0.04 / ratio**2, rtol=1e-3)


def test_variance_follows_the_image():
    """From 1 on the left to 4 on the right; sources' own noise hardly counts."""
    shape = (256, 256)
    variance = np.tile(np.linspace(1, 4, 256), (256, 1))
    rng = np.random.default_rng(7)
    with_stars = np.where(rng.random(shape) < 0.02, 1000.0, variance)
    found, _ = placed(noise(shape), tan(shape=shape), variance=with_stars)
    x, _ = cells_in(found)
    middle = x[0, ::BLOCK] + (BLOCK - 1) / 2
    inside = np.abs(middle) < 100
    expected = np.interp(middle[inside] + 127.5, np.arange(256), variance[0])
    np.testing.assert_allclose(found.variance[3, inside], expected, rtol=0.03)


@pytest.mark.parametrize("kind", ["missing", "zero", "negative", "NaN", "infinite", "mostly NaN"])
@pytest.mark.parametrize("gradient", [0.0, 0.02])
def test_variance_falls_back_to_the_scatter(kind, gradient):
    """Of nearby pixels, which neither a tilt of the sky nor stars spoil."""
    shape, sigma = (256, 256), 0.2
    rng = np.random.default_rng(8)
    data = rng.normal(0, sigma, shape) + gradient * np.arange(256)
    data[rng.random(shape) < 0.01] += 50
    variance = {
        "missing": None,
        "zero": np.zeros(shape),
        "negative": np.full(shape, -1.0),
        "NaN": np.full(shape, np.nan),
        "infinite": np.full(shape, np.inf),
        "mostly NaN": np.where(rng.random(shape) < 0.05, 123.0, np.nan),
    }[kind]
    found, _ = placed(data, tan(shape=shape), variance=variance)
    assert np.median(found.variance) == pytest.approx(sigma**2, rel=0.1)
    assert found.variance.min() > 0.5 * sigma**2
    assert found.variance.max() < 2 * sigma**2


def test_given_variance_of_bad_pixels_does_not_count():
    """Hot pixels, two thirds of all: what is given for them is not the noise of the others."""
    shape, rng = (128, 128), np.random.default_rng(10)
    bad = rng.random(shape) < 0.66
    found, _ = placed(
        np.where(bad, np.nan, rng.normal(0, 0.3, shape)), tan(shape=shape), variance=np.where(bad, 1e4, 0.09)
    )
    np.testing.assert_allclose(found.variance, 0.09, rtol=1e-6)


def test_given_variance_counts_where_most_have_it():
    shape = (128, 128)
    variance = np.where(np.random.default_rng(9).random(shape) < 0.5, 0.09, 0)
    found, _ = placed(noise(shape), tan(shape=shape), variance=variance)
    np.testing.assert_allclose(found.variance, 0.09, rtol=1e-3)


def test_centre_and_half():
    wcs = tan(shape=(40, 80), angle=25.0, shift=(7.0, -3.0))
    for ratio in (1.0, 2.0):
        found, grid = placed(noise((40, 80)), wcs, ratio=ratio, on=tan(shape=(40, 80)))
        x, y = pixels_on_grid(wcs, (40, 80), grid)
        np.testing.assert_allclose(found.centre, [x.mean(), y.mean()], atol=1e-4)
        assert found.half == pytest.approx(40 / ratio, rel=1e-4)


def test_functions_in_cells():
    found, _ = placed(noise(), tan(angle=9.0))
    x, y = cells_in(found)
    expected = 1.5 - 0.3 * x / 20 + 0.7 * y / 20
    np.testing.assert_allclose(found.less(np.array([1.5, -0.3, 0.7]), 20.0), surface(found) - expected, atol=1e-5)
    np.testing.assert_allclose(found.less(np.array([1.5]), 20.0), surface(found) - 1.5, atol=1e-6)
