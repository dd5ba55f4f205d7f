"""Matching levels and planes from arrays: known truth, properties, references, bad input."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from common import EMPTY, IMAGES, PIXEL, PLACES, SHAPE, TWINS, exposure, few, noise, tan

from bkgmatch import neighbourhoods
from bkgmatch.detectors import to_plane
from bkgmatch.execution import threads
from bkgmatch.exposures import LYOT, Exposure
from bkgmatch.levels import match_levels
from bkgmatch.options import LevelMatchOptions

FIVE = ([0, 40, 80, 0, 40], [0, 0, 0, 35, 35])
TRUE = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
PLAIN = {"reference": "mean", "do_local_subtraction": False}
SLOPES = {
    f"fit_type_{name}": "level+slope" for name in ("dithers", "recombine_lyot", "combine_nircam_short", "mosaic_tiles")
}


def options(**kwargs):
    return LevelMatchOptions(**PLAIN | kwargs)


def positions(wcs, shape=SHAPE):
    y, x = np.indices(shape)
    ra, dec = wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
    return ra.reshape(shape), dec.reshape(shape)


def nebula(x, y):
    """Sky on the common tangent plane of a mosaic, in pixels."""
    return 0.5 * np.sin(x / 15) * np.cos(y / 11)


def mosaic(levels=TRUE, *, seed=1, sigma=0.02, place=(0.0, 60.0), scale=1.0, angles=True, scene=False, **kwargs):
    """Five overlapping images of noise on known levels."""
    found = []
    for k, (level, x, y) in enumerate(zip(levels, *FIVE, strict=True)):
        wcs = tan(*place, shift=(x, y), angle=2 * k * angles)
        data = noise(seed=100 * seed + k, level=0, sigma=sigma).astype(np.float64) + level
        if scene:
            ny, nx = SHAPE
            data += nebula(*np.meshgrid(np.arange(nx) + x - nx / 2, np.arange(ny) + y - ny / 2))
        more = {name: values[k] for name, values in kwargs.items()}
        found.append(exposure(f"e{k:02d}", scale * data, wcs, **more))
    return found


# Levels


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_recovers_levels(place, fit):
    found = match_levels(mosaic(place=PLACES[place]), options(fit_type_mosaic_tiles=fit))
    assert (found.sigma < (0.0015 if fit == "level" else 0.006)).all()
    assert (np.abs(found.level - (TRUE - TRUE.mean())) < 4.5 * found.sigma).all()
    assert found.status == ("matched",) * 5
    assert found.reference == ("mean",)
    np.testing.assert_array_equal(found.component, 0)
    assert not found.loose.any()
    if fit == "level":
        np.testing.assert_array_equal(found.slope, 0)
    else:
        assert (np.abs(found.slope) < 4.5 * found.slope_sigma).all()
        assert (found.slope_sigma < 0.003).all()


@pytest.mark.parametrize("place", PLACES)
def test_centres(place):
    exposures = mosaic(place=PLACES[place])
    found = match_levels(exposures, options())
    middle = [np.array(e.wcs(*(np.array([n]) / 2 - 0.5 for n in SHAPE[::-1])))[:, 0] for e in exposures]
    for (ra, dec), (ra0, dec0) in zip(found.centre, middle, strict=True):
        assert dec == pytest.approx(dec0, abs=1e-8)
        assert np.remainder(ra - ra0 + 180, 360) - 180 == pytest.approx(
            0, abs=1e-7 / max(1e-6, np.cos(np.deg2rad(dec0)))
        )
        assert 0 <= ra < 360


def test_nebula_does_not_matter():
    """The same sky in all: bilinear interpolation is its only trace."""
    found = match_levels(mosaic(scene=True, angles=False), options())
    np.testing.assert_allclose(found.level, TRUE - TRUE.mean(), atol=5e-3)


@pytest.mark.parametrize("bad", ["cosmic rays", "dead"])
def test_bad_pixels_of_one_exposure_that_are_not_flagged(bad):
    """One in a hundred: interpolation leaves less than is seen as an outlier in the cells around."""
    pulls, sigma, size = [], 0.1, (200, 200)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        data = rng.normal(0, sigma, (2, *size))
        hit = rng.random(size) < 0.01
        data[0][hit] += sigma * (5 / rng.random(hit.sum()) if bad == "cosmic rays" else -20)
        wcss = [tan(shape=size, shift=shift) for shift in ((0, 0), (100.4, 0.3))]
        exposures = [exposure(f"e{k}", data[k], wcs, variance=np.full(size, sigma**2)) for k, wcs in enumerate(wcss)]
        found = match_levels(exposures, options())
        pulls.append(found.level[0] / found.sigma[0])
    assert np.sqrt(np.mean(np.square(pulls))) < 2


def test_an_exposure_that_only_touches_others_has_no_effect_on_them():
    """Of whatever level: where it begins, it would pass for structure of the sky."""
    size, found = (40, 40), []
    for level in (0.0, 1000.0):
        places = ((0, 0), (36, 0), (20, 39))
        wcss = [tan(shape=size, shift=shift) for shift in places]
        data = [noise(size, seed=k, level=level if k == 2 else 3.0 * k) for k in range(3)]
        found.append(match_levels([exposure(f"e{k}", data[k], wcs) for k, wcs in enumerate(wcss)], options()))
    assert [one.status for one in found] == [("matched", "matched", "no overlap")] * 2
    np.testing.assert_allclose(found[1].level[:2], found[0].level[:2], atol=1e-9)
    np.testing.assert_allclose(found[1].sigma[:2], found[0].sigma[:2], rtol=1e-9)


def test_one_exposure_in_a_usual_unit():
    """The others, in one whose squares single precision does not hold, are matched as if it were not there."""
    exposures = [e if k == 0 else e.times(1e-17) for k, e in enumerate(mosaic(levels=(9.0, 1.0, 4.0, 1.5, 3.0)))]
    for order in (exposures, exposures[::-1]):
        found, alone = (match_levels(some, options()) for some in (order, [e for e in order if e.name != "e00"]))
        levels = {name: level for name, level in zip(found.names, found.level, strict=True) if name in alone.names}
        relative = np.array([levels[name] for name in alone.names])
        np.testing.assert_allclose(relative - relative.mean(), alone.level, atol=0.5 * alone.sigma.max())


@pytest.mark.parametrize("method", ["ml", "equal", "npix", "rms"])
@pytest.mark.parametrize("passes", ["sequence", "joint"])
def test_weight_methods(method, passes):
    found = match_levels(mosaic(), options(weight_method=method, passes=passes))
    assert (np.abs(found.level - (TRUE - TRUE.mean())) < 5 * found.sigma).all()
    assert (found.sigma < 0.002).all()
    best = match_levels(mosaic(), options(passes=passes))
    assert (found.sigma >= 0.999 * best.sigma).all()
    if method != "ml":
        assert np.abs(found.level - best.level).max() > 1e-6


def test_weights_of_an_inconsistent_triangle():
    """Noiseless images of which one has a step: the three pairs differ, and cannot agree. By hand."""
    size = 60
    shifts = [(0, 0), (30, 0), (0, 24)]
    data = [np.zeros(SHAPE) for _ in range(3)]
    rng = np.random.default_rng(1)
    for k, d in enumerate(data):
        d += rng.normal(0, 0.02, SHAPE) + k
    data[1][:, : size // 2] += 0.03  # where it overlaps with both others: within the noise
    exposures = [exposure(f"e{k}", d, tan(shift=s)) for k, (d, s) in enumerate(zip(data, shifts, strict=True))]
    equal, npix, ml = (match_levels(exposures, options(weight_method=m)) for m in ("equal", "npix", "ml"))
    for found, weights in ((equal, np.ones(3)), (npix, equal.pairs.npix), (ml, None)):
        pairs = found.pairs
        design = np.zeros((3, 3))
        design[np.arange(3), pairs.first] = 1
        design[np.arange(3), pairs.second] = -1
        if weights is not None:
            root = np.sqrt(np.asarray(weights, dtype=float))
            expected = np.linalg.lstsq(root[:, None] * design, root * pairs.offset, rcond=None)[0]
            np.testing.assert_allclose(found.level, expected - expected.mean(), atol=1e-5)
        np.testing.assert_allclose(pairs.residual, pairs.offset - design @ found.level, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 1.5, 2.0, 3.0])
def test_other_cells(ratio):
    found = match_levels(mosaic(), options(pixel_scale_ratio=ratio))
    best = match_levels(mosaic(), options())
    assert (np.abs(found.level - (TRUE - TRUE.mean())) < 4.5 * found.sigma).all()
    np.testing.assert_allclose(found.sigma, best.sigma, rtol=0.35)


@pytest.mark.parametrize(
    "ratio",
    [
        1.0,
        0.5,
        2.0,
    ],
)
def test_errors_of_aligned_images(ratio):
    """Whole pixels apart, along the grid: errors are those of the pixels, whatever the cells."""
    exposures = [exposure(f"e{k}", noise(seed=k), tan(shift=(30 * k, 10 * k))) for k in (0, 1)]
    found = match_levels(exposures, options(pixel_scale_ratio=ratio))
    np.testing.assert_allclose(found.sigma, 0.1 * np.sqrt(2 / (30 * 38)) / 2, rtol=0.2)


@pytest.mark.parametrize("kind", few(8, IMAGES))
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_every_kind_of_image(kind, fit):
    """With two good neighbours."""
    data = IMAGES[kind]()
    level = np.median(data[np.isfinite(data)].astype(float)) if kind not in EMPTY else 0.0
    sigma = 10.0 if level > 100 else 0.1
    wcs = tan(shape=data.shape, shift=(6, 4), angle=4)
    exposures = [
        exposure("a", noise(seed=5, level=0, sigma=sigma), tan()),
        exposure("b", data, wcs),
        exposure("c", noise(seed=6, level=3 * sigma, sigma=sigma), tan(shift=(-20, 10))),
    ]
    found = match_levels(exposures, options(reference="a", fit_type_mosaic_tiles=fit))
    lonely = kind in EMPTY or min(data.shape) < 2
    expected = {True: "no good pixels" if kind in EMPTY else "no overlap", False: "matched"}[lonely]
    assert found.status == ("matched", expected, "matched")
    assert found.level[2] == pytest.approx(3 * sigma, abs=0.05 * sigma if fit == "level" else 0.5 * sigma)
    if lonely:
        assert np.isnan(found.level[1])
        assert found.component[1] == -1
    else:
        assert found.level[1] == pytest.approx(level, abs=max(0.05 * sigma, 4 * found.sigma[1]) + 5 * found.sigma[0])
    assert np.isfinite(found.sigma[found.component >= 0]).all()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("place", few(3, PLACES))
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_twins(twin, place, fit):
    ra, dec = PLACES[place]
    pair = [
        exposure("a", noise(seed=1, level=5), tan(ra, dec, angle=8)),
        exposure("b", noise(seed=2, level=7), tan(ra + TWINS[twin], dec, angle=8)),
    ]
    found = match_levels(pair, LevelMatchOptions(reference="a", do_local_subtraction=False, fit_type_mosaic_tiles=fit))
    np.testing.assert_allclose(found.level, [0, 2], atol=0.02)
    assert found.pairs.npix[0] == pytest.approx(47 * 59, rel=0.05)


# Properties


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("passes", ["sequence", "joint"])
def test_adding_to_exposures_moves_their_levels(seed, passes):
    """By exactly that, to the precision of single-precision values."""
    shift = np.random.default_rng(seed).normal(0, 1, 5)
    one, two = (
        match_levels(mosaic(levels, tile=["s", "s", "t", "t", "t"]), options(passes=passes))
        for levels in (TRUE, TRUE + shift)
    )
    np.testing.assert_allclose(two.level - one.level, shift - shift.mean(), atol=2e-6)
    np.testing.assert_allclose(two.sigma, one.sigma, rtol=1e-4)


@pytest.mark.parametrize("common", [100.0, -100.0, 2000.0])
def test_a_bright_sky_does_not_matter(common):
    """It is in all exposures, 1e5 standard deviations at most."""
    one, two = (match_levels(mosaic(TRUE + c), options()) for c in (0.0, common))
    assert (np.abs(two.level - one.level) < 1e-3 * one.sigma).all()
    np.testing.assert_allclose(two.sigma, one.sigma, rtol=0.01)


UNITS = [
    1e6,
    1e-6,
    1e-12,
    1e-17,
]


@pytest.mark.parametrize(
    ("high", "dtype", "sigma"),
    [
        (1e6, np.float64, 1e-3),
        (1e4, np.float32, 0.01),
        (np.array([0, 1e7, -3e5, 1e3, 5]), np.float64, 0.01),
    ],
)
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_small_differences_of_high_levels(high, dtype, sigma, fit):
    """Single precision, in which the cells are kept, has seven digits."""
    true = TRUE / 100 + high
    exposures = [replace(e, read=partial(as_kind, e.read, dtype)) for e in mosaic(true, sigma=sigma, angles=False)]
    found = match_levels(exposures, options(fit_type_mosaic_tiles=fit))
    assert (found.sigma < (0.1 if fit == "level" else 0.4) * sigma).all()
    assert (np.abs(found.level - (true - true.mean())) < 4.5 * found.sigma).all()
    assert (found.pairs.rms < 2 * sigma).all()
    offset = true[found.pairs.first] - true[found.pairs.second]
    assert (np.abs(found.pairs.offset - offset) < 4.5 * found.pairs.sigma).all()
    kept = match_levels(exposures, options(reference="e01", do_local_subtraction=True))
    assert (np.abs(kept.level - true) < 0.3 * sigma).all()


def as_kind(read, dtype):
    pixels = read()
    return replace(pixels, data=pixels.data.astype(dtype))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_units_of_the_data(unit, fit):
    """Jy per pixel, counts, erg/s/cm2/Hz: the same levels in other units."""
    one, two = (
        match_levels(mosaic(scale=s), options(fit_type_mosaic_tiles=fit, do_local_subtraction=True, reference="e01"))
        for s in (1.0, unit)
    )
    np.testing.assert_allclose(two.level / unit, one.level, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two.slope / unit, one.slope, atol=1e-5)
    np.testing.assert_allclose(two.sigma / unit, one.sigma, rtol=1e-3)
    np.testing.assert_array_equal(one.loose, two.loose)
    np.testing.assert_allclose(one.pairs.trust, two.pairs.trust, rtol=1e-3)


@pytest.mark.parametrize(
    "choice",
    few(
        3,
        [
            {},
            {"fit_type_mosaic_tiles": "level+slope", "fit_type_dithers": "level+slope"},
            {"passes": "joint"},
            {"do_local_subtraction": True, "reference": "auto"},
            {"do_sigma_clip": True, "reference": "flattest"},
        ],
    ),
)
def test_order_of_exposures_does_not_matter(choice):
    """Nor do threads: not in the last bit."""
    exposures = mosaic(tile=["s", "s", "t", "", ""]) + two_far_ones() + [alone()]
    one = match_levels(exposures, options(**choice))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(exposures))
        with threads(1 + seed) as work:
            two = match_levels([exposures[k] for k in order], options(**choice), work=work)
        assert two.names == tuple(one.names[k] for k in order)
        assert two.status == tuple(one.status[k] for k in order)
        for name in ("level", "slope", "sigma", "covariance", "centre", "loose"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name)[order], err_msg=name)
        same = one.component[order]
        assert (two.component[:, None] == two.component).tolist() == (same[:, None] == same).tolist()
        assert sorted(two.reference) == sorted(one.reference)
        assert pair_table(two) == pair_table(one)


def pair_table(found):
    """Rows by name."""
    p = found.pairs
    rows = zip(p.first, p.second, p.step, p.npix, p.offset, p.sigma, p.rms, p.residual, p.trust, strict=True)
    return sorted((found.names[int(i)], found.names[int(j)], *(str(v) for v in rest)) for i, j, *rest in rows)


def two_far_ones():
    return [
        exposure("f0", noise(seed=31, level=2), tan(200.0, -30.0)),
        exposure("f1", noise(seed=32, level=5), tan(200.0, -30.0, shift=(25, 10))),
    ]


def alone():
    return exposure("g", noise(seed=33, level=2), tan(100.0, -30.0))


def test_components_are_numbered_in_order_of_the_input():
    exposures = [*two_far_ones(), alone(), *mosaic()]
    found = match_levels(exposures, LevelMatchOptions(do_local_subtraction=False))
    np.testing.assert_array_equal(found.component, [0, 0, -1, 1, 1, 1, 1, 1])
    assert found.reference[0] in ("f0", "f1")
    assert found.reference[1] == "e04"
    np.testing.assert_allclose(found.level[1] - found.level[0], 3, atol=0.02)
    found = match_levels(exposures[::-1], LevelMatchOptions(do_local_subtraction=False))
    np.testing.assert_array_equal(found.component, [0, 0, 0, 0, 0, -1, 1, 1])
    assert found.reference[0] == "e04"


def test_splitting_a_mosaic_gives_two_components():
    """Each has its own zero point; near enough for one common grid or not."""
    for gap in (70, 400, 40000):
        shifts = [(0, 0), (40, 0), (gap + 40, 0), (gap + 80, 0)]
        split = [exposure(f"e{k}", noise(seed=k) + k, tan(shift=s)) for k, s in enumerate(shifts)]
        found = match_levels(split, LevelMatchOptions(reference="flattest", do_local_subtraction=False))
        np.testing.assert_array_equal(found.component, [0, 0, 1, 1])
        np.testing.assert_allclose(np.diff(found.level)[[0, 2]], 1, atol=0.02)
        assert len(found.reference) == 2
        assert found.level[[0, 1]].min() >= -1.02
        for names in (("e0", "e1"), ("e2", "e3")):
            inside = [k for k in range(4) if f"e{k}" in names]
            zero = next(k for k in inside if found.names[k] in found.reference)
            assert found.level[zero] == 0


def test_statuses():
    nothing = exposure("n", np.full(SHAPE, np.nan), tan(0.0, 60.0))
    background = exposure("b", noise(seed=9, level=50), tan(0.0, 60.0, shift=(10, 10)), is_background=True)
    found = match_levels([*mosaic(), alone(), nothing, background], options())
    assert found.status == ("matched",) * 5 + ("no overlap", "no good pixels", "background")
    plain = match_levels(mosaic(), options())
    np.testing.assert_array_equal(found.level[:5], plain.level)
    for values in (found.level[5:], found.sigma[5:], found.slope[5:]):
        assert np.isnan(values).all()
    np.testing.assert_array_equal(found.component[5:], -1)
    assert set(found.pairs.first) | set(found.pairs.second) == set(range(5))


@pytest.mark.parametrize("n", [1, 2])
def test_nothing_overlaps(n):
    exposures = [alone(), exposure("e", noise(), tan(10.0, 10.0))][:n]
    found = match_levels(exposures)
    assert found.status == ("no overlap",) * n
    assert np.isnan(found.level).all()
    assert found.reference == ()
    assert len(found.pairs.first) == 0
    assert "no overlap" in str(found)


def test_all_without_good_pixels():
    found = match_levels([exposure(f"e{k}", np.full(SHAPE, np.nan), tan()) for k in range(3)])
    assert found.status == ("no good pixels",) * 3


def test_bad_pixels_that_are_finite_do_not_count():
    exposures = mosaic()
    spoilt = []
    for k, e in enumerate(exposures):
        data, bad = e.read().data.copy(), np.random.default_rng(k).random(SHAPE) < 0.05
        data[bad] = 1e4
        spoilt.append(Exposure.from_arrays(e.name, data, e.wcs, good=~bad))
    found = match_levels(spoilt, options())
    assert (np.abs(found.level - (TRUE - TRUE.mean())) < 4.5 * found.sigma).all()
    assert (found.sigma < 0.0015).all()


# Overlaps


def test_a_row_with_one_loop():
    """Most pairs are in no loop: they fit exactly."""
    shifts = [(50 * k, 0) for k in range(8)] + [(25, 30)]
    row = [exposure(f"e{k}", noise(seed=k, level=k, sigma=0.02), tan(shift=s)) for k, s in enumerate(shifts)]
    found = match_levels(row, options())
    assert found.status == ("matched",) * 9
    assert (np.abs(found.level - np.arange(9) + 4) < 4.5 * found.sigma).all()


def test_a_triangle():
    """Least absolute deviations fit two of three pairs exactly; of many skies, none must fail or warn."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        three = [exposure(f"e{k}", rng.normal(k, 0.1, SHAPE), tan(shift=(20 * k, 10 * k))) for k in range(3)]
        found = match_levels(three, options())
        assert (np.abs(found.level - [-1, 0, 1]) < 4.5 * found.sigma).all()
        assert (found.pairs.trust == 1).all()


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_row(n):
    """A chain: nothing is checked by a loop. Errors grow along it."""
    row = [exposure(f"e{k}", noise(seed=k, level=k, sigma=0.02), tan(shift=(50 * k, 0))) for k in range(n)]
    found = match_levels(row, options())
    assert (np.abs(found.level - np.arange(n) + (n - 1) / 2) < 4.5 * found.sigma).all()
    step = 0.02 * np.sqrt(2 / (9 * 47))
    assert found.sigma[0] == pytest.approx(step * np.sqrt(sum((k / n) ** 2 for k in range(n))), rel=0.12)


@pytest.mark.parametrize("pixel", [0.04, 0.07, 0.25])
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_pixels_of_other_sizes(pixel, fit):
    """An older mosaic, fixed, on other pixels, that covers three new exposures."""
    shape = tuple(int(14 / pixel) for _ in range(2))
    sigma = 0.02 * 0.1 / pixel  # the same depth
    old = exposure("old", noise(shape, seed=50, level=0.5, sigma=sigma), tan(shape=shape, pixel=pixel), is_fixed=True)
    new = [
        exposure(f"e{k}", noise(seed=k, level=k, sigma=0.02), tan(shift=s, angle=20 * k))
        for k, s in enumerate([(0, 0), (25, 5), (-20, 25)])
    ]
    found = match_levels([old, *new], options(fit_type_mosaic_tiles=fit))
    assert found.reference == ("fixed",)
    assert found.level[0] == 0
    assert (np.abs(found.level - [0, -0.5, 0.5, 1.5]) <= 4.5 * found.sigma).all()
    floor = 0.02 * np.sqrt(2 / (48 * 60))
    assert (found.sigma[1:] < (1.3 if fit == "level" else 1.4) * floor).all()
    assert (found.sigma[1:] > 0.6 * floor).all()


@pytest.mark.parametrize("fit", ["level", "level+slope"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_thin_overlaps(fit, columns):
    """A few columns of pixels: between two of them lies a column of cells. Tilts across are held, and named."""
    width = SHAPE[1]
    images = [noise(seed=k, level=2.0 * k, sigma=0.02) for k in range(3)]
    exposures = [exposure(f"e{k}", d, tan(shift=(k * (width - columns) + 0.02 * k, 0))) for k, d in enumerate(images)]
    found = match_levels(exposures, options(fit_type_mosaic_tiles=fit, min_linear_frac=0.2))
    if columns == 1:
        assert {*found.status} <= {"matched", "no overlap"}
    else:
        assert found.status == ("matched",) * 3
    inside = found.component >= 0
    assert np.isfinite(found.level[inside]).all()
    assert np.isfinite(found.covariance[inside]).all()
    assert np.isnan(found.level[~inside]).all()
    if inside.all():
        tolerance = 0.02 if fit == "level" else 4.5 * found.sigma.max()
        np.testing.assert_allclose(found.level, [-2, 0, 2], atol=tolerance)
        if fit == "level+slope":
            assert found.loose.all()
            assert np.abs(found.slope).max() * 3 < 1.0  # over half an image: less than the levels differ
        else:
            assert not found.loose.any()


@pytest.mark.parametrize("factor", [1e4, 1e8, 1e16])
@pytest.mark.parametrize("passes", ["sequence", "joint"])
def test_an_exposure_with_errors_far_too_large_does_not_disturb_the_planes_of_others(factor, passes):
    """Its own plane is held by the others'."""
    images = {"a": (1.0, 0, 0.01), "b": (3.0, 12, 0.01), "c": (7.0, -9, 0.01 * np.sqrt(factor))}
    exposures = [
        exposure(name, noise(level=level, sigma=0.01), tan(shift=(x, x)), variance=np.full(SHAPE, error**2))
        for name, (level, x, error) in images.items()
    ]
    found = match_levels(exposures, options(passes=passes, **SLOPES))
    assert found.status == ("matched",) * 3
    np.testing.assert_allclose(found.level - found.level[0], [0, 2, 6], atol=0.01)
    assert np.isfinite(found.sigma).all()


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("factor", [1e-30, 1e6, 1e12, 1e30])
def test_an_exposure_of_another_scale_disturbs_none(place, factor):
    """In a wrong unit, wherever it is in the list: differences of the others are right."""
    exposures = mosaic()
    exposures[place] = exposures[place].times(factor)
    found = match_levels(exposures, options())
    others = [k for k in range(5) if k != place]
    apart = found.level[others] - found.level[others[0]]
    np.testing.assert_allclose(apart, TRUE[others] - TRUE[others[0]], atol=0.01)


def test_sources_are_masked_when_asked():
    """A comet: in one exposure only, as wide as the overlap."""
    y, x = np.indices(SHAPE)
    comet = 3 * np.exp(-((x - 50) ** 2 + (y - 24) ** 2) / 2 / 5**2)
    images = [noise(seed=1, level=0, sigma=0.05) + comet, noise(seed=2, level=1, sigma=0.05)]
    exposures = [exposure(f"e{k}", d, tan(shift=(40 * k, 0))) for k, d in enumerate(images)]
    found = match_levels(exposures, options(do_sigma_clip=True))
    plain = match_levels(exposures, options())
    assert abs(found.level[1] - found.level[0] - 1) < 0.02
    assert abs(plain.level[1] - plain.level[0] - 1) > 2 * abs(found.level[1] - found.level[0] - 1)
    assert found.pairs.npix[0] < 0.8 * plain.pairs.npix[0]


def test_a_wrong_start_is_forgotten(monkeypatch):
    """What is clipped about a start that is wrong by 0.1 of the noise would draw the levels by an error or two."""
    size = (200, 200)
    images = [noise(size, seed=k, level=k) for k in range(3)]
    exposures = [exposure(f"e{k}", image, tan(shape=size, shift=(3 * k, 5 * k))) for k, image in enumerate(images)]
    plain = match_levels(exposures, options())
    start_solution = neighbourhoods.start_solution

    def wrong(*args):
        start = start_solution(*args)
        return replace(start, coefficients=start.coefficients + 0.01 * np.array([[1], [0], [-1]]))

    monkeypatch.setattr(neighbourhoods, "start_solution", wrong)
    found = match_levels(exposures, options())
    assert (np.abs(found.level - plain.level) < 0.4 * plain.sigma).all()


def test_small_overlaps_are_rejected_when_asked():
    """Those of the diagonal neighbours: a quarter of the others."""
    found = match_levels(mosaic(angles=False), options(min_area_percent=0.6))
    plain = match_levels(mosaic(angles=False), options())
    small = plain.pairs.npix < 0.6 * plain.pairs.npix.mean()
    assert 2 <= small.sum() <= 4
    np.testing.assert_array_equal(found.pairs.trust == 0, small)
    np.testing.assert_allclose(found.pairs.npix, plain.pairs.npix, rtol=0.02)  # other cells are outliers
    assert np.abs(found.level - plain.level).max() > 1e-6
    assert (np.abs(found.level - (TRUE - TRUE.mean())) < 4.5 * found.sigma).all()


def test_a_rejected_pair_has_no_trust():
    exposures = mosaic()
    data = exposures[4].read().data.copy()
    data += np.random.default_rng(5).normal(0, 0.2, SHAPE)
    exposures[4] = Exposure.from_arrays("e04", data, exposures[4].wcs)
    found = match_levels(exposures, options(rms_sig_limit=0.5))
    noisy = (found.pairs.first == 4) | (found.pairs.second == 4)
    assert (found.pairs.trust[~noisy] == 1).all()
    assert (found.pairs.trust[noisy] == 0).sum() == noisy.sum() - 1  # a bridge stays
    assert found.status == ("matched",) * 5


# Zero points


@pytest.mark.parametrize("name", ["e00", "e03"])
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_a_named_exposure_is_the_reference(name, fit):
    found = match_levels(mosaic(), options(reference=name, fit_type_mosaic_tiles=fit))
    k = int(name[1:])
    np.testing.assert_allclose([found.level[k], *found.slope[k]], 0, atol=1e-9)
    np.testing.assert_allclose(found.level - found.level.mean(), TRUE - TRUE.mean(), atol=0.01)
    assert found.reference == (name,)


def test_a_named_exposure_stands_for_its_tile():
    tiles = ["s", "s", "t", "t", "t"]
    found = match_levels(mosaic(tile=tiles), options(reference="e03"))
    assert found.reference == ("t",)
    assert found.level[2:].mean() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found.level - found.level[0], TRUE - TRUE[0], atol=0.01)


def test_the_mean_is_over_exposures():
    found = match_levels(mosaic(tile=["s", "s", "t", "t", "t"]), options(fit_type_mosaic_tiles="level+slope"))
    assert found.level.mean() == pytest.approx(0, abs=1e-3)
    assert found.reference == ("mean",)


def test_a_named_exposure_is_the_reference_of_its_own_component_only():
    exposures = [*two_far_ones(), *mosaic()]
    found = match_levels(exposures, options(reference="f1"))
    assert found.level[1] == pytest.approx(0, abs=1e-9)
    assert found.reference == ("f1", "e04")


def test_most_overlaps():
    """The middle of a cross overlaps four."""
    shifts = {"a": (0, 0), "b": (-50, 0), "c": (50, 0), "d": (0, 40), "e": (0, -40)}
    cross = [exposure(n, noise(seed=k, level=k), tan(shift=s)) for k, (n, s) in enumerate(shifts.items())]
    for reference in ("most_overlaps", "auto"):
        found = match_levels(cross, options(reference=reference))
        assert found.reference == ("a",)
        assert found.level[0] == pytest.approx(0, abs=1e-9)


def test_flattest():
    """Four have a nebula, one has none; ties of overlaps go to it, too."""
    y, x = np.indices((96, 96))
    shifts = [(0, 0), (10, 0), (0, 10), (10, 10), (5, 5)]
    names, flat = "edcba", 2
    exposures = []
    for k, shift in enumerate(shifts):
        data = noise((96, 96), seed=k, level=k, sigma=0.05)
        if k != flat:
            data = data + 2 * np.sin(x / 12) * np.sin(y / 17)
        exposures.append(exposure(names[k], data, tan(shape=(96, 96), shift=shift)))
    for reference in ("flattest", "most_overlaps", "auto"):
        found = match_levels(exposures, options(reference=reference))
        assert found.reference == (names[flat],)
        assert found.level[flat] == 0


def background(time, name="bkg"):
    return exposure(name, noise(seed=77), tan(60.0, 60.0), is_background=True, time=time)


@pytest.mark.parametrize(("when", "expected"), [(0.1, "e00"), (2.2, "e02"), (99.0, "e04")])
@pytest.mark.parametrize("reference", ["auto", "background"])
def test_the_tile_nearest_to_a_background_in_time(when, expected, reference):
    exposures = [*mosaic(time=[0.0, 1.0, 2.0, 3.0, 4.0]), background(when)]
    found = match_levels(exposures, options(reference=reference))
    assert found.reference == (expected,)
    assert found.level[int(expected[1:])] == 0


def test_an_exposure_at_time_zero_may_be_the_reference():
    """Times are days from anywhere."""
    shifted = [*mosaic(time=[-1.0, 0.0, 1.0, 2.0, 3.0]), background(0.1)]
    assert match_levels(shifted, options(reference="background")).reference == ("e01",)


@pytest.mark.parametrize("reference", ["e99", "AUTO", "", "lowest"])
def test_unknown_references(reference):
    with pytest.raises(ValueError, match=r"neither one of .* nor the name of an exposure \(e00"):
        match_levels(mosaic(), options(reference=reference))


@pytest.mark.parametrize("more", [[], [background(None)]])
def test_no_backgrounds(more):
    with pytest.raises(ValueError, match="needs dedicated background"):
        match_levels([*mosaic(), *more], options(reference="background"))
    assert match_levels([*mosaic(), *more], options(reference="auto")).reference == ("e04",)


def test_the_nearest_in_time_needs_times_of_the_exposures():
    with pytest.raises(ValueError, match="e00 and the others have none"):
        match_levels([*mosaic(), background(3.0)], options(reference="background"))


@pytest.mark.parametrize("reference", ["e00", "e03", "auto"])
@pytest.mark.parametrize("tiled", [False, True])
def test_local_subtraction_makes_the_reference_zero(reference, tiled):
    """The median of its pixels less its level is zero, whatever stars it has; the others keep their distance."""
    rng = np.random.default_rng(3)
    stars = np.zeros(SHAPE)
    for _ in range(8):
        y, x = rng.integers(3, 45), rng.integers(3, 57)
        stars[y - 1 : y + 2, x - 1 : x + 2] += 30
    exposures = []
    for e in mosaic(tile=["s", "s", "t", "t", "t"] if tiled else [""] * 5):
        data = e.read().data + (stars if e.name == "e00" else 0)
        exposures.append(Exposure.from_arrays(e.name, data, e.wcs, tile=e.tile))
    found = match_levels(exposures, LevelMatchOptions(reference=reference))
    np.testing.assert_allclose(found.level - found.level[1], TRUE - TRUE[1], atol=0.01)
    np.testing.assert_allclose(found.level, TRUE, atol=0.01)  # the sky of all is zero


def test_local_subtraction_of_each_component():
    found = match_levels([*two_far_ones(), *mosaic()], LevelMatchOptions())
    np.testing.assert_allclose(found.level, [2, 5, *TRUE], atol=0.02)


# Fixed exposures


@pytest.mark.parametrize("passes", ["sequence", "joint"])
@pytest.mark.parametrize("fit", ["level", "level+slope"])
@pytest.mark.parametrize("tiled", [False, True])
def test_new_exposures_join_fixed_ones(passes, fit, tiled):
    fixed = [False, True, False, False, True]
    levels = np.where(fixed, 2.0, TRUE)
    tile = ["s", "s", "s", "t", "t"] if tiled else [""] * 5
    every = {f"fit_type_{name}": fit for name in ("dithers", "mosaic_tiles")}
    found = match_levels(mosaic(levels, is_fixed=fixed, tile=tile), LevelMatchOptions(passes=passes, **every))
    assert found.reference == ("fixed",)
    np.testing.assert_array_equal(found.level[fixed], 0)
    np.testing.assert_array_equal(found.slope[fixed], 0)
    np.testing.assert_array_equal(found.sigma[fixed], 0)
    assert (np.abs(found.level + 2 - levels) <= 4.5 * found.sigma).all()
    assert (found.sigma < 0.01).all()


# Tiles, parts, passes


def chips(rng, *, offsets, tilt=0.0, sigma=0.05):
    """Two tiles x two dithers x four chips that overlap a little: names, tile and part; their levels."""
    exposures, levels = [], []
    for t in range(2):
        for d in range(2):
            for c in range(4):
                x, y = 52 * (c % 2) + 90 * t + 3 * d, 40 * (c // 2) + 2 * d
                level = offsets[c] + 3.0 * t + 0.5 * d
                wcs = tan(0.0, 20.0, shift=(x, y))
                data = rng.normal(level, sigma, SHAPE)
                name = f"t{t}c{c}d{d}"
                exposures.append(exposure(name, data, wcs, tile=f"t{t}", part=f"c{c}"))
                levels.append(level)
    return exposures, np.array(levels)


def test_chips():
    exposures, levels = chips(np.random.default_rng(1), offsets=[0.0, 1.0, -0.5, 2.0])
    found = match_levels(exposures, options())
    assert (np.abs(found.level - (levels - levels.mean())) < 4.5 * found.sigma).all()
    assert set(found.pairs.step) == {"dithers", "combine_nircam_short", "mosaic_tiles"}
    for i, j, step in zip(found.pairs.first, found.pairs.second, found.pairs.step, strict=True):
        a, b = exposures[int(i)], exposures[int(j)]
        expected = "mosaic_tiles" if a.tile != b.tile else "combine_nircam_short" if a.part != b.part else "dithers"
        assert step == expected


def test_passes_that_are_not_needed_are_left_out():
    assert set(match_levels(mosaic(), options()).pairs.step) == {"mosaic_tiles"}
    assert set(match_levels(mosaic(tile=["s"] * 5), options()).pairs.step) == {"dithers"}
    assert set(match_levels(mosaic(), options(passes="joint")).pairs.step) == {"joint"}
    found = match_levels(mosaic(tile=["s"] * 5, part=list("aabbb")), options())
    assert set(found.pairs.step) == {"dithers", "combine_nircam_short"}


def lyot_mosaic(rng, *, offset=1.5, tilt=0.0, most=np.inf):
    """Two tiles x three dithers of images whose upper left corner is a part of its own; noise up to the most."""
    corner = np.zeros(SHAPE, bool)
    corner[24:, :24] = True
    exposures, levels = [], []
    for t in range(2):
        for d in range(3):
            wcs = tan(30.0, -20.0, shape=SHAPE, shift=(40 * t + 6 * d, 4 * d))
            x = np.arange(SHAPE[1])
            base = 2.0 * t + 0.2 * d
            data = base + rng.normal(0, 0.02, SHAPE).clip(-most, most) + corner * (offset + tilt * x)
            for part, good in ((LYOT, corner), ("science", ~corner)):
                exposures.append(exposure(f"t{t}d{d}{part}", data, wcs, good=good, tile=f"t{t}", part=part))
                levels.append(base + (offset if part == LYOT else 0.0))
    return exposures, np.array(levels)


def test_lyot_is_matched_to_science():
    exposures, levels = lyot_mosaic(np.random.default_rng(2))
    found = match_levels(exposures, options())
    science = np.array([e.part != "lyot" for e in exposures])
    np.testing.assert_allclose(found.level, levels - levels[science].mean(), atol=0.01)
    assert set(found.pairs.step) == {"dithers", "recombine_lyot", "mosaic_tiles"}
    assert found.status == ("matched",) * 12


def test_science_does_not_follow_lyot():
    """Within a tile, the Lyot field changes nothing of science: with one tile, science is as if there were none."""
    one_tile, science = one_lyot_tile()
    both = match_levels(one_tile, options(reference="t0d0science"))
    only = match_levels([one_tile[k] for k in science], options(reference="t0d0science"))
    np.testing.assert_allclose(both.level[science], only.level, atol=0.1 * only.sigma.max())
    assert both.level[science].mean() == pytest.approx(0, abs=1e-9)  # the reference is science


def one_lyot_tile():
    """A tile whose Lyot field is tilted by 0.1 per arcsec to the west; which of it is science."""
    exposures, _ = lyot_mosaic(np.random.default_rng(3), tilt=0.01, most=0.03)  # no outliers, which both would tell
    one_tile = [e for e in exposures if e.tile == "t0"]
    return one_tile, [k for k, e in enumerate(one_tile) if e.part != LYOT]


def test_science_does_not_tilt_for_lyot():
    """Two tiles; only the second has a tilt, in its Lyot field."""
    exposures = [
        e
        for t, tilt in enumerate((0.0, 0.01))
        for e in lyot_mosaic(np.random.default_rng(3), tilt=tilt)[0]
        if e.tile == f"t{t}"
    ]
    found = match_levels(exposures, options(reference="t0d0science", fit_type_recombine_lyot="level+slope"))
    science = np.array([e.part != LYOT for e in exposures])
    np.testing.assert_allclose(found.slope[science], 0, atol=1e-9)
    assert (found.slope[~science][3:, 0] < -0.05).all()


def test_tilt_of_lyot():
    one_tile, science = one_lyot_tile()
    found = match_levels(one_tile, options(reference="t0d0science", fit_type_recombine_lyot="level+slope"))
    lyot = [k for k in range(6) if k not in science]
    assert (np.abs(found.slope[lyot] - [-0.1, 0]) < 5 * found.slope_sigma[lyot]).all()


def test_lyot_only_or_science_only():
    exposures, levels = lyot_mosaic(np.random.default_rng(4))
    for part in (LYOT, "science"):
        some = [k for k, e in enumerate(exposures) if e.part == part]
        found = match_levels([exposures[k] for k in some], options())
        np.testing.assert_allclose(
            found.level[[1, 2, 4, 5]] - found.level[[0, 0, 3, 3]],
            levels[some][[1, 2, 4, 5]] - levels[some][[0, 0, 3, 3]],
            atol=0.01,
        )
        assert found.status == ("matched",) * 6


# Planes


def tilted(rng, *, sigma=0.05, n=3, place=(10.0, 35.0), angle=0.0):
    """2 x 2 tiles of n dithers with levels and slopes (to the east and to the north, per arcsec) about the middle."""
    exposures, truth = [], []
    for t in range(4):
        for d in range(n):
            wcs = tan(*place, shift=(42 * (t % 2) + 5 * d, 34 * (t // 2) + 3 * d), angle=angle)
            ra, dec = positions(wcs)
            level, *slope = rng.normal(size=3) * [1, 0.1, 0.1]
            east = (ra - place[0]) * np.cos(np.deg2rad(dec)) * 3600
            north = (dec - place[1]) * 3600
            data = level + slope[0] * east + slope[1] * north + rng.normal(0, sigma, SHAPE)
            tile = f"t{t}"
            exposures.append(exposure(f"{tile}d{d}", data, wcs, tile=tile, variance=np.full(SHAPE, sigma**2)))
            truth.append([level, *slope])
    return exposures, np.array(truth)


def expected_at_centres(found, truth, place=(10.0, 35.0)):
    """Level at each centre and slopes, relative to the mean function."""
    apart = truth - truth.mean(axis=0)
    east = (found.centre[:, 0] - place[0]) * np.cos(np.deg2rad(found.centre[:, 1])) * 3600
    north = (found.centre[:, 1] - place[1]) * 3600
    return np.column_stack([apart[:, 0] + apart[:, 1] * east + apart[:, 2] * north, apart[:, 1:]])


@pytest.mark.parametrize("passes", ["sequence", "joint"])
@pytest.mark.parametrize("angle", [0.0, 130.0])
def test_planes(passes, angle):
    exposures, truth = tilted(np.random.default_rng(5), angle=angle)
    found = match_levels(exposures, options(passes=passes, **SLOPES))
    expected = expected_at_centres(found, truth)
    errors = np.column_stack([found.level, found.slope]) - expected
    sigmas = np.column_stack([found.sigma, found.slope_sigma])
    assert (np.abs(errors) < 5 * sigmas).all()
    assert (sigmas < [0.02, 0.01, 0.01]).all()
    # the planes, subtracted, leave the same sky everywhere
    left = [e.read().data - found.plane(i).on_pixels(e.wcs, SHAPE) for i, e in enumerate(exposures)]
    mean = truth.mean(axis=0)
    for e, image in zip(exposures, left, strict=True):
        y, x = np.indices(SHAPE)
        ra, dec = e.wcs(x.ravel(), y.ravel())
        common = mean[0] + mean[1] * (ra - 10) * np.cos(np.deg2rad(dec)) * 3600 + mean[2] * (dec - 35) * 3600
        image = image - common.reshape(SHAPE)
        for part in (image[:, :15], image[:, -15:], image[:12], image[-12:]):
            assert abs(part.mean()) < 0.05


@pytest.mark.parametrize("spelling", ["level+slope", "level+match"])
def test_spellings_of_planes(spelling):
    exposures, _ = tilted(np.random.default_rng(6))
    one, two = (
        match_levels(exposures, options(fit_type_dithers=s, fit_type_mosaic_tiles="level"))
        for s in (spelling, "level+slope")
    )
    np.testing.assert_array_equal(one.level, two.level)
    np.testing.assert_array_equal(one.slope, two.slope)
    assert (one.slope != 0).all()


def test_planes_of_tiles_are_common_to_their_dithers():
    exposures, _ = tilted(np.random.default_rng(7))
    found = match_levels(exposures, options(fit_type_mosaic_tiles="level+slope"))
    slopes = found.slope.reshape(4, 3, 2)
    np.testing.assert_allclose(slopes, np.repeat(slopes[:, :1], 3, axis=1), atol=1e-6)
    found = match_levels(exposures, options(fit_type_dithers="level+slope"))
    np.testing.assert_allclose(found.slope.reshape(4, 3, 2).mean(axis=1), 0, atol=0.01)


def pull_table(repeats, seed, passes, slope):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        exposures, truth = tilted(rng, n=2)
        if not slope:
            exposures = [level_only(e, t, rng) for e, t in zip(exposures, truth, strict=True)]
            truth = truth * [1, 0, 0]
        result = match_levels(exposures, options(passes=passes, **(SLOPES if slope else {})))
        p = 3 if slope else 1
        sigmas = np.column_stack([result.sigma, result.slope_sigma])[:, :p]
        values = np.column_stack([result.level, result.slope])[:, :p]
        found.append((values - expected_at_centres(result, truth)[:, :p]) / sigmas)
    return np.array(found)


def level_only(e, truth, rng):
    return exposure(e.name, rng.normal(truth[0], 0.05, SHAPE), unwrap(e), tile=e.tile, variance=e.read().variance)


def unwrap(e):
    return e.wcs.args[0]


@pytest.mark.slow
@pytest.mark.parametrize("passes", ["sequence", "joint"])
@pytest.mark.parametrize("slope", [False, True])
def test_errors_are_real(passes, slope):
    """Width of (fitted - true) / sigma over noise skies, whole pixels apart, for level and each slope."""
    pulls = pull_table(150, 8, passes, slope)
    width = np.sqrt(np.mean(pulls**2, axis=(0, 1)))
    assert (width > 0.9).all(), width
    assert (width < 1.15).all(), width


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fit_type_dithers", "slope"),
        ("fit_type_recombine_lyot", "plane"),
        ("fit_type_combine_nircam_short", ""),
        ("fit_type_mosaic_tiles", None),
        ("passes", "both"),
        ("weight_method", "variance"),
        ("reproject_func", "drizzle"),
        ("sigma", 0),
        ("sigma", -1.0),
        ("sigma", float("nan")),
        ("pixel_scale_ratio", 0.0),
        ("pixel_scale_ratio", -2),
        ("npixels", -1),
        ("dilate_size", -1),
        ("max_iters", -3),
        ("min_area_percent", -0.1),
        ("min_linear_frac", -0.1),
        ("rms_sig_limit", -2.0),
        ("rms_sig_limit", float("nan")),
    ],
)
def test_bad_options(name, value):
    with pytest.raises(ValueError, match=name):
        LevelMatchOptions(**{name: value})


def test_no_exposures():
    with pytest.raises(ValueError, match="no exposures"):
        match_levels([])


def test_names_repeat():
    with pytest.raises(ValueError, match=r"more than once: e00"):
        match_levels([*mosaic(), mosaic()[0]])


def test_a_cube():
    with pytest.raises(ValueError, match=r"cube: .*2 dimensions"):
        match_levels([exposure("cube", np.zeros((2, 3, 4)), tan())])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5)])
def test_an_image_without_pixels(shape):
    with pytest.raises(ValueError, match=r"nothing: .*some pixels"):
        exposure("nothing", np.zeros(shape), tan())


def test_errors_of_zero_are_not_roots_of_rounding():
    found = match_levels(mosaic())
    rounded = replace(found, covariance=found.covariance - 1e-40 * np.eye(3))
    np.testing.assert_array_equal(rounded.slope_sigma, 0)
    np.testing.assert_allclose(rounded.sigma, found.sigma)


def test_the_input_is_not_changed():
    exposures = mosaic()
    before = [e.read().data.copy() for e in exposures]
    match_levels(exposures, LevelMatchOptions(do_sigma_clip=True))
    for e, data in zip(exposures, before, strict=True):
        np.testing.assert_array_equal(e.read().data, data)


def test_a_tile_may_be_called_mean():
    exposures = [replace(e, name="mean") if e.name == "e01" else e for e in mosaic()]
    found = match_levels(exposures, LevelMatchOptions(reference="mean"))  # the policy
    assert found.level.mean() == pytest.approx(0, abs=1e-9)
    most = LevelMatchOptions(reference="most_overlaps", do_local_subtraction=False)
    exposures = [replace(e, name="mean") for e in mosaic()[1:2]] + [mosaic()[0], mosaic()[2]]
    found = match_levels(exposures, most)
    assert found.reference == ("mean",)
    assert found.level[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("policy", ["auto", "most_overlaps"])
def test_a_policy_is_not_the_name_of_an_exposure(policy):
    exposures = [replace(e, name=policy) if e.name == "e00" else e for e in mosaic()]
    settings = LevelMatchOptions(reference=policy, do_local_subtraction=False)
    found, expected = (match_levels(some, settings).level for some in (exposures, mosaic()))
    np.testing.assert_allclose(found, expected, atol=0.005)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_exposures_in_different_units_does_not_matter(seed):
    """Two thirds in a tiny unit: whichever come first and last."""
    exposures = [e if k % 3 else e.times(1e-17) for k, e in enumerate(mosaic() + few_more())]
    order = np.random.default_rng(seed).permutation(len(exposures))
    first, second = (match_levels(some, options()) for some in (exposures, [exposures[k] for k in order]))
    np.testing.assert_array_equal(second.level, first.level[order])
    np.testing.assert_array_equal(second.sigma, first.sigma[order])


def few_more():
    return [replace(e, name=f"m{k}") for k, e in enumerate(mosaic(seed=2)[:4])]


@pytest.mark.parametrize("error", [1e-19, 1e-22, 1e-80])
@pytest.mark.parametrize("which", [range(5), (0, 2, 3, 4), (1,)], ids=["all", "all but one", "one"])
def test_errors_far_too_small(error, which):
    """ERR whose inverse square no number of single precision can hold is as if there were none."""
    exposures = mosaic(variance=[np.full(SHAPE, error**2 if k in which else 0.02**2) for k in range(5)])
    found = match_levels(exposures, options())
    np.testing.assert_allclose(found.level, TRUE - TRUE.mean(), atol=0.005)
    np.testing.assert_allclose(found.sigma, match_levels(mosaic(), options()).sigma, rtol=0.2)


def test_steep_tilts_beside_one_that_overlaps_hardly_determine():
    """Of a thousand times the noise; the last exposure hangs on two rows of pixels."""
    pulls, loose = [], []
    shape = (64, 64)
    y, x = (np.indices(shape) - 31.5) / 32
    for seed in range(6):
        rng = np.random.default_rng(seed)
        tilt = rng.normal(0, 1, (5, 2))
        tilt -= tilt.mean(axis=0)
        exposures = [
            exposure(f"e{k}", a * x + b * y + rng.normal(0, 1e-3, shape), tan(shape=shape, shift=shift))
            for k, ((a, b), shift) in enumerate(zip(tilt, [(0, 0), (32, 3), (0, 32), (32, 35), (32, 97)], strict=True))
        ]
        found = match_levels(exposures, options(passes="joint", fit_type_dithers="level+slope"))
        slope = np.column_stack([-found.slope[:, 0], found.slope[:, 1]]) * PIXEL * 32
        pulls.append((slope - slope.mean(axis=0) - tilt) / (found.slope_sigma * PIXEL * 32))
        loose.append(found.loose.tolist())
    assert np.array(loose)[:, 4].all()
    assert np.sqrt(np.mean(np.square(pulls))) < 1.5


def test_nan_pixels_that_are_called_good():
    empty = exposure("e05", np.full(SHAPE, np.nan), tan(0.0, 60.0, shift=(20, 20)), good=np.ones(SHAPE, bool))
    assert match_levels([*mosaic(), empty], options()).status == ("matched",) * 5 + ("no good pixels",)


def test_pairs_of_a_match_without_any_have_their_types():
    pairs = match_levels([alone()], options()).pairs
    assert [values.dtype.kind for values in pairs] == list("iiUi") + ["f"] * 5


def test_a_table_prints():
    found = match_levels([*mosaic(), alone()], options())
    lines = str(found).splitlines()
    assert len(lines) == 6
    assert lines[4].split()[0] == "e04"
    assert float(lines[4].split()[2]) == pytest.approx(9 - TRUE.mean(), abs=0.01)
    assert lines[5].endswith("no overlap")


# What a referee has tried


@pytest.mark.parametrize("bright", [8.0, 10.0, 30.0])
def test_a_ghost_on_40_percent_of_one_of_three(bright):
    """The two others agree, and say what the sky is."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        data = rng.normal(5, 0.02, (3, *SHAPE))
        spoilt = data.copy()
        spoilt[0, : int(0.4 * SHAPE[0])] += bright * 0.02
        found = [
            match_levels(
                [
                    exposure(name, image, tan(shift=(2.3 * k, -1.7 * k)))
                    for k, (name, image) in enumerate(zip("abc", images, strict=True))
                ],
                options(),
            )
            for images in (data, spoilt)
        ]
        mean_ghost = 0.4 * bright * 0.02
        assert np.abs(found[1].level - found[0].level).max() < 0.05 * mean_ghost


def test_unflagged_cosmic_rays_on_many_exposures():
    """Errors are what they are said to be: the light that leaks into neighbouring cells is not taken for structure."""
    pulls = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = rng.normal(5, 0.02, (3, *SHAPE))
        hit = rng.random(data.shape) < 0.03
        data[hit] += rng.exponential(1.0, hit.sum())
        exposures = [
            exposure(name, image, tan(shift=(2.3 * k, -1.7 * k)))
            for k, (name, image) in enumerate(zip("abc", data, strict=True))
        ]
        found = match_levels(exposures, options())
        pulls.append((found.level - found.level.mean()) / found.sigma)
    assert np.std(pulls) < 1.6


def test_errors_are_scaled_where_the_model_does_not_fit():
    """Constants for tilted exposures: what they leave is much more than noise."""
    rng = np.random.default_rng(3)
    x = np.indices(SHAPE)[1]
    exposures = [
        exposure(f"e{k}", rng.normal(5, 0.02, SHAPE) + rng.normal(0, 0.01) * x, tan(shift=(11.0 * k, 5.0 * k)))
        for k in range(6)
    ]
    flat, tilted = (match_levels(exposures, options(fit_type_mosaic_tiles=fit)) for fit in ("level", "level+slope"))
    assert flat.misfit > 3
    assert tilted.misfit < 1.5
    assert (flat.sigma > 3 * 0.02 / np.sqrt(np.prod(SHAPE))).all()


def test_a_lyot_field_that_overlaps_no_imager_has_the_offset_of_the_others():
    """Two tiles: in one the Lyot field is matched to the imager's, in the other it overlaps only itself."""
    rng = np.random.default_rng(8)
    exposures = []
    for tile, apart in (("t0", 0.0), ("t1", 88.0)):
        for k in range(2):
            at = tan(shift=(40.0 * (tile == "t1") + 3 * k, 2 * k))
            exposures.append(exposure(f"{tile}{k}s", rng.normal(5, 0.02, SHAPE), at, tile=tile, part="science"))
            field = tan(shift=(20.0 + 3 * k + apart, 2 * k))
            exposures.append(exposure(f"{tile}{k}l", rng.normal(5.7, 0.02, SHAPE), field, tile=tile, part="lyot"))
    found = match_levels(exposures, options())
    level = {e.name: found.level[i] for i, e in enumerate(exposures)}
    assert len(found.reference) == 2
    assert "Lyot offset" in found.reference[1]
    for tile in ("t0", "t1"):
        for k in range(2):
            assert level[f"{tile}{k}l"] - level[f"{tile}{k}s"] == pytest.approx(0.7, abs=0.01)


def test_fixed_lyot_fields_stay():
    """They overlap only each other, and no imager."""
    rng = np.random.default_rng(8)
    exposures = []
    for k in range(2):
        for part, level, right in (("science", 5, 0), (LYOT, 5.7, 70)):
            data, at = rng.normal(level + k, 0.02, SHAPE), tan(shift=(3.0 * k + right, 2.0 * k))
            exposures.append(exposure(f"e{k}{part}", data, at, tile="t", part=part, is_fixed=k == 0 and part == LYOT))
    found = match_levels(exposures, options())
    assert found.reference == ("mean", "fixed")
    np.testing.assert_allclose(found.level, [-0.5, 0, 0.5, 1], atol=0.01)
    assert found.level[1] == 0


@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_a_lyot_field_that_overlaps_nothing_follows_the_imager_of_its_exposure(fit):
    """A dither with another level than the rest of its tile, and a tilt where those are fitted."""
    rng = np.random.default_rng(9)
    x = 0.01 * np.arange(SHAPE[1]) * (fit != "level")
    exposures = []
    for k, (level, away) in enumerate([(5, 20), (7, 20), (6, 80)]):
        for part, offset, right in (("science", 0.0, 0), (LYOT, 0.7, away)):
            data = rng.normal(level + offset, 0.02, SHAPE) + (k == 2) * (x + right * 0.01 * (fit != "level"))
            at = tan(shift=(6.0 * k + right, 3.0 * k))
            exposures.append(exposure(f"e{k}{part}", data, at, tile="t", part=part, group=f"g{k}"))
    exposures += [alone()]
    found = match_levels(exposures, LevelMatchOptions(reference="mean", passes="joint", fit_type_dithers=fit))
    assert found.status == ("matched",) * 6 + ("no overlap",)
    assert found.component.tolist() == [0] * 6 + [-1]
    assert found.level[2] - found.level[0] == pytest.approx(2, abs=0.05)  # less the mean tilt
    apart = to_plane(*found.centre[5], *found.centre[4])
    assert found.level[5] == pytest.approx(found.level[4] + found.slope[4] @ np.array(apart) + 0.7, abs=0.02)
    if fit == "level":
        assert found.level[5] - found.level[0] == pytest.approx(1.7, abs=0.02)
        assert found.sigma[5] == pytest.approx(found.sigma[4])
    np.testing.assert_allclose(found.slope[5], found.slope[4], atol=1e-6)
    assert (found.sigma[:6] > 0).all()


@pytest.mark.parametrize("weights", ["equal", "npix", "rms"])
def test_a_noisy_exposure_does_not_speak_against_precise_pairs(weights):
    """Weights that ignore noise give it a say in the solution, but precise pairs stay trusted."""
    for seed in range(5):
        exposures = mosaic(seed=seed)
        noisy = noise(seed=900 + seed, level=0, sigma=1.0) + TRUE[2]
        exposures[2] = exposure("e02", noisy, tan(0.0, 60.0, shift=(80, 0), angle=4))
        assert (match_levels(exposures, options(weight_method=weights)).pairs.trust > 0.9).all()


def test_pictures_are_in_the_unit_of_the_data():
    """Those of very small values too, which are scaled inside."""
    seen = []

    def watch(names, one, cutouts):
        seen.append((one.coefficients[:, 0], one.pairs.offset, [np.nanmedian(c.value[...]) for c in cutouts]))

    for scale in (1.0, 1e-20):
        match_levels(mosaic(scale=scale), options(), watch=watch)
    for usual, small in zip(*seen, strict=True):
        np.testing.assert_allclose(np.array(small) * 1e20, usual, rtol=1e-5, atol=1e-6)
