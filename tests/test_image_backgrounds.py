"""Backgrounds of exposures made of the others: against known truth, and against changes of the input."""

from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from common import PLACES, centres_on, tan, to_sky
from regions import CircleSkyRegion

from bkgmatch import detection, image_samples, image_stack, mosaics
from bkgmatch.execution import Work, threads
from bkgmatch.exposures import Exposure
from bkgmatch.footprints import angles
from bkgmatch.image_backgrounds import MADE, SourceGuide, make_backgrounds
from bkgmatch.leave_one_out import variance_of_middle
from bkgmatch.mosaics import Mosaic
from bkgmatch.options import ImageForImageOptions
from bkgmatch.simulate_dithers import simulate_dithers

SHAPE = (90, 110)
NOISE = 0.1
MIDDLE = (150.0, 20.0)
STARS = ((20, 25, 500), (45, 60, 60), (70, 90, 20), (60, 15, 100))  # row, column in the middle exposure; peak


@dataclass(frozen=True)
class Scene:
    """Exposures and their truth."""

    exposures: list[Exposure]
    data: np.ndarray
    wcss: list[WCS]
    truth: np.ndarray
    light: np.ndarray

    def changed(self, i, data, **kwargs):
        """The exposures, the data of one exchanged."""
        old = self.exposures[i]
        new = Exposure.from_arrays(old.name, data, old.wcs, variance=old.read().variance, time=old.time, **kwargs)
        return [*self.exposures[:i], new, *self.exposures[i + 1 :]]


def pattern(shape=SHAPE, seed=5, size=1.0):
    """What a detector adds: a glow, columns, and structure from pixel to pixel."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    glow = np.exp(-((rows - 30) ** 2 + (columns - 80) ** 2) / 2 / 25**2)
    return size * (glow + 0.2 * rng.standard_normal(shape[1]) + 0.2 * rng.standard_normal(shape))


def pointings(n, place, shape, step=15):
    offsets = step * np.sqrt(np.arange(n)) * np.exp(2.4j * np.arange(n))
    return [tan(*place, shape=shape, shift=(z.real, z.imag), angle=0.3 * k) for k, z in enumerate(offsets)]


def starlight(stars, wcs, place, shape, frame=SHAPE):
    """Stars of the sky on an image, by astropy; ``frame`` is the shape of the middle exposure."""
    x, y = centres_on(wcs, tan(*place, shape=frame), shape)
    return np.sum([peak * np.exp(-0.5 * ((x - c) ** 2 + (y - r) ** 2) / 1.3**2) for r, c, peak in stars], axis=0)


def scene(n=8, *, shape=SHAPE, seed=1, noise=NOISE, place=MIDDLE, stars=STARS, prefix="e", **options):
    rng = np.random.default_rng(seed)
    wcss = pointings(n, place, shape)
    levels = options.pop("levels", rng.uniform(10, 12, n))
    patterns = options.pop("patterns", np.array([pattern(shape)] * n))
    times = options.pop("times", 0.01 * np.arange(n))
    truth = patterns + np.asarray(levels)[:, None, None]
    light = np.array([starlight(stars, wcs, place, shape, shape) for wcs in wcss]) if stars else np.zeros(truth.shape)
    data = (truth + light + rng.normal(0, 1, truth.shape) * noise).astype(np.float32)
    variance = np.broadcast_to(np.square(noise), shape)
    exposures = [
        Exposure.from_arrays(f"{prefix}{i}", data[i], to_sky(wcss[i]), variance=variance, time=times[i], **options)
        for i in range(n)
    ]
    return Scene(exposures, data, wcss, truth, light)


@cache
def made(n):
    """The plain scene of so many exposures, and their backgrounds with the options of the step."""
    known = scene(n)
    return known, make_backgrounds(known.exposures)


def given(wcs, image, count=None):
    """A mosaic in memory, its pixels where astropy says."""

    def to_pixels(vectors):
        return np.column_stack(wcs.wcs_world2pix(*angles(vectors), 0))

    image = np.asarray(image, dtype=np.float32)
    return Mosaic("the given one", image, np.ones(image.shape) if count is None else count, to_pixels, wcs)


def wide(value=0.0, margin=60, place=MIDDLE, shape=SHAPE):
    """A given mosaic that holds all exposures of a scene."""
    large = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    return given(tan(*place, shape=large), np.full(large, value))


NO_SOURCES = SourceGuide(mask=wide())


def errors(result, truth, i, expected_noise=None):
    """Error of a background, in its own or the expected standard deviations, off holes and sources."""
    background = result.background(i)
    used = (background.donors > 0) & ~result.sources(i)
    sigma = np.sqrt(background.variance) if expected_noise is None else expected_noise
    return ((background.value - truth) / sigma)[used]


def results(result):
    """Values, variances and donors by name."""
    there = [i for i, status in enumerate(result.status) if status == MADE]
    return {result.names[i]: result.background(i) for i in there}


def assert_same(one, two, atol=0.0):
    assert one.keys() == two.keys()
    for name, background in one.items():
        for field in ("value", "variance", "donors"):
            np.testing.assert_allclose(getattr(background, field), getattr(two[name], field), rtol=0, atol=atol)


# Truth


@pytest.mark.parametrize("factor", [1e-2, 1e-4, 1e-30])
def test_err_of_one_exposure_that_is_far_too_small(factor):
    """In a block of it: to the backgrounds of the others, its pixels have no error that is known."""
    given, box = scene(8, stars=()), np.s_[20:50, 20:70]
    variance = np.full(SHAPE, NOISE**2)
    variance[box] *= factor**2
    old = given.exposures[3]
    spoilt = Exposure.from_arrays(old.name, given.data[3], old.wcs, variance=variance, time=old.time)
    exposures = [*given.exposures[:3], spoilt, *given.exposures[4:]]
    background = make_backgrounds(exposures, guide=NO_SOURCES).background(0)
    expected = make_backgrounds(given.exposures, guide=NO_SOURCES).background(0)
    np.testing.assert_allclose(background.value[box], expected.value[box], atol=0.02)
    np.testing.assert_allclose(background.variance[box], expected.variance[box], rtol=0.3)
    assert background.donors[box].mean() > 6.9


@pytest.mark.parametrize(("method", "n"), [("mean", 8), ("median", 8), ("mean", 3), ("median", 5)])
def test_errors_are_those_of_noise(method, n):
    known = scene(n)
    result = make_backgrounds(known.exposures, ImageForImageOptions(method=method))
    assert result.status == (MADE,) * n
    pulls = np.concatenate([errors(result, known.truth[i], i) for i in range(n)])
    assert 0.9 < pulls.std() < 1.1
    assert abs(pulls.mean()) < 0.1
    expected = NOISE * np.sqrt(variance_of_middle(np.array([n - 1]), method)[0])
    assert np.median(np.sqrt(result.background(0).variance)) == pytest.approx(expected, rel=0.1)
    for i in range(n):
        assert errors(result, known.truth[i], i, expected).std() < 1.25
        assert np.median(result.background(i).donors) == result.donors[i] == n - 1
        assert result.rms[i] == pytest.approx(np.hypot(NOISE, expected), rel=0.1)


@pytest.mark.parametrize("method", ["mean", "median"])
def test_dithers_of_miri(method):
    """With cosmic rays, bad pixels, a field that sees nothing, and a distorted WCS."""
    dithers = simulate_dithers(rng=np.random.default_rng(2), dithers=8, binning=8, n_sources=12, fluxes=(20, 100))
    exposures = [
        Exposure.from_arrays(
            e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2, time=float(time)
        )
        for e, time in zip(dithers.exposures, dithers.times, strict=True)
    ]
    result = make_backgrounds(exposures, ImageForImageOptions(method=method))
    assert result.status == (MADE,) * 8
    bright = []
    for i, exposure in enumerate(dithers.exposures):
        background, truth = result.background(i), dithers.background(i)
        used = exposure.good & (background.donors > 0) & ~result.sources(i)
        pulls = ((background.value - truth) / np.sqrt(background.variance))[used]
        assert 0.9 < pulls.std() < 1.1
        assert abs(np.median(pulls)) < 0.2
        assert np.isfinite(background.value).all()
        bright.extend(result.sources(i)[exposure.good & (dithers.light(i) > 20 * 0.115)])
        assert result.masked[i] < 0.3
    assert len(bright) > 20
    assert np.mean(bright) > 0.8


def test_stars_leave_no_ghosts():
    """Where another exposure has a star, the background is as good as elsewhere."""
    known, result = made(8)
    ghosts = []
    for i in range(8):
        others = np.delete(known.light, i, axis=0).max(axis=0)
        beside = (others > 0.5 * NOISE) & (result.background(i).donors > 0)
        ghosts.append((result.background(i).value - known.truth[i])[beside])
    ghosts = np.concatenate(ghosts)
    assert ghosts.size > 1000
    assert abs(ghosts.mean()) < 0.3 * NOISE / np.sqrt(7)
    assert ghosts.std() < 1.2 * NOISE / np.sqrt(6)


def test_pixels_on_sources_serve_no_other():
    """As many donors as there are others that have no source there; clipping takes very few."""
    _, result = made(8)
    free = np.array([~result.sources(i) for i in range(8)])
    for i in range(8):
        expected = np.delete(free, i, axis=0).sum(axis=0)
        donors = result.background(i).donors
        assert (donors <= expected).all()
        assert (donors == expected).mean() > 0.99
        assert (expected < 7).mean() > 0.2


def test_masks_grow_over_the_wings_of_stars():
    """Less of their light is left, and so less in the backgrounds of the others."""
    known = scene(8)
    wings = np.zeros(known.data.shape)
    for i, wcs in enumerate(known.wcss):
        x, y = centres_on(wcs, tan(*MIDDLE, shape=SHAPE), SHAPE)
        wings[i] = 8 / (1 + np.hypot(x - 60, y - 45) / 3) ** 3
    exposures = [
        Exposure.from_arrays(e.name, known.data[i] + wings[i], e.wcs, variance=np.full(SHAPE, NOISE**2))
        for i, e in enumerate(known.exposures)
    ]
    left = {}
    for grow in (0.0, 0.02):
        result = make_backgrounds(exposures, ImageForImageOptions(grow=grow))
        left[grow] = max(wings[i][~result.sources(i)].max() for i in range(8))
    assert left[0.02] < 0.6 * left[0.0]


def test_what_is_left_is_the_light_of_the_sources():
    known, result = made(8)
    for i in (0, 3):
        left = known.data[i] - result.background(i).value
        star = known.light[i] > 1
        assert left[star].sum() == pytest.approx(known.light[i][star].sum(), rel=0.01)


def test_pulls_of_exposures_of_unequal_noise():
    noise = np.array([0.1, 0.1, 0.1, 0.15, 0.1, 0.1, 0.07, 0.1])
    base = scene(8, noise=1e-6)
    rng = np.random.default_rng(1)
    data = [base.truth[i] + base.light[i] + rng.normal(0, noise[i], SHAPE) for i in range(8)]
    exposures = [
        Exposure.from_arrays(e.name, data[i], e.wcs, variance=np.full(SHAPE, 0.01))
        for i, e in enumerate(base.exposures)
    ]
    result = make_backgrounds(exposures)
    for i in range(8):
        assert 0.88 < errors(result, base.truth[i], i).std() < 1.12


def test_copies_that_differ_by_rounding_tell_of_no_noise():
    known = scene(4)
    copy = (known.data[3] + np.float32(0.1)).astype(np.float32)
    assert 0 < np.ptp(copy - known.data[3]) < 1e-5
    moved = Exposure.from_arrays("copy", copy, known.exposures[2].wcs, time=0.05)
    result = make_backgrounds([*known.exposures, moved])
    assert 0.9 < errors(result, known.truth[0], 0).std() < 1.2
    values = np.array([*np.random.default_rng(1).normal(size=(4, 4000)), np.zeros(4000)], dtype=np.float32)
    values[4] = values[3] + np.float32(0.1)
    serves = ~np.eye(5, dtype=bool)
    noise = image_samples.measure_standards(values, np.ones(4000), serves, "additive", list("abcde")).noise
    np.testing.assert_allclose(noise, 1, rtol=0.1)


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("factor", [1e-30, 1e12, 1e30])
def test_an_exposure_of_another_scale_disturbs_none(place, factor):
    """In a wrong unit, wherever it is in the list: backgrounds of the others are right."""
    known = scene(6)
    exposures = list(known.exposures)
    exposures[place] = exposures[place].times(factor)
    result = make_backgrounds(exposures)
    assert 0.9 < errors(result, known.truth[1], 1).std() < 1.1
    assert result.level[1] == pytest.approx(make_backgrounds(known.exposures).level[1], abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_variances_that_are_wrong_by_a_factor(factor):
    """Noise is measured."""
    known = scene(8)
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, variance=np.full(SHAPE, (factor * NOISE) ** 2))
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures)
    assert 0.9 < errors(result, known.truth[2], 2).std() < 1.1


def test_without_variances():
    known = scene(8)
    exposures = [Exposure.from_arrays(e.name, known.data[i], e.wcs, time=e.time) for i, e in enumerate(known.exposures)]
    result = make_backgrounds(exposures)
    assert 0.9 < errors(result, known.truth[2], 2).std() < 1.1
    assert np.isfinite(result.background(2).variance).all()


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, np.inf])
def test_variances_that_say_nothing(bad):
    known = scene(6)
    variance = np.full(SHAPE, NOISE**2)
    variance[:30] = bad
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, variance=variance) for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures)
    for i in range(6):
        background = result.background(i)
        assert np.isfinite(background.variance).all()
        assert (background.variance > 0).all()
        assert 0.9 < errors(result, known.truth[i], i).std() < 1.1


def test_pixels_that_vary_more_have_larger_errors():
    rng = np.random.default_rng(1)
    sigma = np.where(np.indices(SHAPE)[1] < 55, 0.1, 0.3)
    base = scene(8, noise=1e-6)
    exposures = [
        Exposure.from_arrays(e.name, base.data[i] + rng.normal(0, sigma), e.wcs, variance=sigma**2)
        for i, e in enumerate(base.exposures)
    ]
    result = make_backgrounds(exposures)
    variance = result.background(0).variance
    assert np.median(variance[:, 60:]) == pytest.approx(9 * np.median(variance[:, :50]), rel=0.05)
    assert 0.9 < errors(result, base.truth[0], 0).std() < 1.1


def test_pulls_of_pixels_that_few_exposures_have():
    known = scene(10)
    good = np.ones((10, *SHAPE), dtype=bool)
    good[:7, :45] = False
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, good=good[i], variance=np.full(SHAPE, NOISE**2))
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures)
    background = result.background(0)
    pulls = (background.value - known.truth[0]) / np.sqrt(background.variance)
    for half in (slice(0, 45), slice(45, None)):
        used = (background.donors[half] > 1) & ~result.sources(0)[half]
        assert 0.85 < pulls[half][used].std() < 1.15


@pytest.mark.parametrize("place", [PLACES["across RA 0"], PLACES["north pole"]], ids=["across RA 0", "north pole"])
def test_anywhere_on_the_sky(place):
    known = scene(6, place=place)
    result = make_backgrounds(known.exposures)
    assert result.status == (MADE,) * 6
    for i in range(6):
        assert 0.88 < errors(result, known.truth[i], i).std() < 1.12
        assert result.sources(i)[known.light[i] > 2].mean() > 0.7


# Levels


@pytest.mark.parametrize("k", [5.0, -30.0, 1e3])
def test_a_level_of_one_exposure_moves_its_background_alone(k):
    known, plain = made(6)
    plain = results(plain)
    moved = results(make_backgrounds(known.changed(2, known.data[2] + np.float32(k))))
    for name, background in moved.items():
        shift = k if name == "e2" else 0
        np.testing.assert_allclose(background.value, plain[name].value + shift, rtol=0, atol=1e-5 + 3e-7 * abs(k))
        np.testing.assert_array_equal(background.donors, plain[name].donors)


@pytest.mark.parametrize("scale", ["additive", "multiplicative", "none"])
@pytest.mark.parametrize("factor", [1024.0, 2.0**-40])
def test_units_do_not_matter(scale, factor):
    known = scene(5, levels=[11.0] * 5)
    options = ImageForImageOptions(scale=scale)
    plain = results(make_backgrounds(known.exposures, options))
    scaled = results(make_backgrounds([e.times(factor) for e in known.exposures], options))
    for name, background in scaled.items():
        np.testing.assert_allclose(background.value / np.float32(factor), plain[name].value, rtol=1e-5)
        np.testing.assert_allclose(background.variance / np.float32(factor) ** 2, plain[name].variance, rtol=1e-3)
        np.testing.assert_array_equal(background.donors, plain[name].donors)


@pytest.mark.parametrize("scale", ["additive", "multiplicative", "none"])
@pytest.mark.parametrize("factor", [2.0**66, 2.0**-66])
def test_units_whose_squares_are_beyond_single_precision(scale, factor):
    known = scene(5, levels=[11.0] * 5)
    options = ImageForImageOptions(scale=scale)
    plain, other = (make_backgrounds(e, options) for e in (known.exposures, [e.times(factor) for e in known.exposures]))
    np.testing.assert_allclose(other.level / factor, plain.level, rtol=1e-6)
    np.testing.assert_allclose(other.rms / factor, plain.rms, rtol=1e-4)
    scaled = results(other)
    for name, background in results(plain).items():
        np.testing.assert_allclose(scaled[name].value / np.float32(factor), background.value, rtol=1e-5)
        np.testing.assert_allclose(scaled[name].variance / factor**2, background.variance, rtol=1e-3)


def test_multiplicative_exposures():
    factors = np.array([0.5, 0.8, 1.0, 1.1, 1.4, 1.7, 2.0, 0.7])
    base = scene(8, noise=1e-6)
    truth = factors[:, None, None] * (5 + np.abs(pattern(size=3)))
    data = truth + base.light + np.random.default_rng(1).normal(0, 0.03, truth.shape)
    exposures = [Exposure.from_arrays(e.name, data[i], e.wcs) for i, e in enumerate(base.exposures)]
    result = make_backgrounds(exposures, ImageForImageOptions(scale="multiplicative"))
    ratio = result.level / factors
    assert np.ptp(ratio) / ratio.mean() < 0.05
    for i in range(8):
        used = ~result.sources(i) & (result.background(i).donors > 0)
        assert np.median((result.background(i).value / truth[i])[used]) == pytest.approx(1, abs=2e-3)
        # Noise is divided by the factors: one sigma describes all of them only within a factor of a few.
        assert 0.3 < errors(result, truth[i], i).std() < 2
    additive = make_backgrounds(exposures, ImageForImageOptions(scale="additive"))
    assert errors(additive, truth[6], 6, 1).std() > 5 * errors(result, truth[6], 6, 1).std()


def test_pulls_of_multiplicative_exposures():
    factors = np.linspace(0.9, 1.1, 8)
    base = scene(8, noise=1e-6)
    truth = factors[:, None, None] * (5 + np.abs(pattern(size=3)))
    data = truth + base.light + np.random.default_rng(1).normal(0, NOISE, truth.shape)
    exposures = [Exposure.from_arrays(e.name, data[i], e.wcs) for i, e in enumerate(base.exposures)]
    result = make_backgrounds(exposures, ImageForImageOptions(scale="multiplicative"))
    for i in range(8):
        assert 0.88 < errors(result, truth[i], i).std() < 1.12


def test_factors_of_exposures_of_unequal_noise():
    """Mean logarithms of the noisier ones would be 3 % too low."""
    factors, noise = np.array([0.9, 1.0, 1.1, 0.95, 1.05, 1.0]), np.array([2.5, 2.5, 2.5, 0.5, 0.5, 0.5])
    base = scene(6, noise=1e-6, stars=())
    truth = factors[:, None, None] * (10 + 0.2 * pattern())
    data = truth + np.random.default_rng(2).normal(size=truth.shape) * noise[:, None, None]
    exposures = [Exposure.from_arrays(e.name, data[i], e.wcs) for i, e in enumerate(base.exposures)]
    result = make_backgrounds(exposures, ImageForImageOptions(scale="multiplicative"), guide=NO_SOURCES)
    found = [np.mean(result.background(i).value / truth[i]) for i in range(6)]
    np.testing.assert_allclose(found, 1, atol=5e-3)


def test_scale_none_is_the_plain_mean_of_the_others():
    known = scene(6, levels=[1, 2, 3, 4, 5, 6.0])
    options = ImageForImageOptions(scale="none", sigma=1e6)
    result = make_backgrounds(known.exposures, options, guide=NO_SOURCES)
    for i in range(6):
        expected = np.delete(known.data, i, axis=0).astype(float).mean(axis=0)
        np.testing.assert_allclose(result.background(i).value, expected, rtol=1e-5)


def test_medians_without_sources():
    known = scene(6, levels=[4.0] * 6)
    options = ImageForImageOptions(scale="none", method="median")
    result = make_backgrounds(known.exposures, options, guide=NO_SOURCES)
    for i in range(6):
        np.testing.assert_array_equal(result.background(i).value, np.median(np.delete(known.data, i, axis=0), axis=0))


def test_levels_must_be_positive_to_be_multiplied():
    known = scene(4, levels=[10, 10, -10, 10.0])
    with pytest.raises(ValueError, match="additive"):
        make_backgrounds(known.exposures, ImageForImageOptions(scale="multiplicative"))


def test_levels_are_those_of_the_exposures():
    levels = np.array([10, 15, -3, 0, 100.0])
    result = make_backgrounds(scene(5, levels=levels).exposures)
    np.testing.assert_allclose(result.level - levels, np.mean(result.level - levels), atol=0.03)


# Who serves whom


def test_kinds_never_mix():
    """Two detectors of different shapes, their exposures in turns: as if each were alone."""
    one, two = scene(5, prefix="a"), scene(5, shape=(70, 80), seed=2, prefix="b", stars=STARS[:2])
    both = [e for pair in zip(one.exposures, two.exposures, strict=True) for e in pair]
    together = make_backgrounds(both, kinds=["one", ("two", 2)] * 5)
    assert_same(results(together), results(make_backgrounds(one.exposures)) | results(make_backgrounds(two.exposures)))
    for name, members in zip(together.names, together.members, strict=True):
        assert set(members) == {e.name for e in both if e.name[0] == name[0]} - {name}
    assert {kind for kind, _ in together.masks} == {"one", ("two", 2)}


def test_a_kind_of_one_has_no_background():
    known = scene(4)
    result = make_backgrounds(known.exposures, kinds=["a", "a", "a", "b"])
    assert result.status[:3] == (MADE,) * 3
    assert "no other exposure" in result.status[3]
    assert result.members[3] == ()


def two_epochs(n=6, **kwargs):
    patterns = np.array([pattern(seed=5)] * n + [pattern(seed=6)] * n)
    return scene(2 * n, patterns=patterns, times=[0.0] * n + [100.0] * n, **kwargs)


def test_members_are_of_one_epoch():
    known = two_epochs(4)
    names = [e.name for e in known.exposures]
    result = make_backgrounds(known.exposures, ImageForImageOptions(max_dt=7.0))
    for i, members in enumerate(result.members):
        assert set(members) == set(names[:4] if i < 4 else names[4:]) - {names[i]}
    all_serve = make_backgrounds(known.exposures, ImageForImageOptions(max_dt=None))
    assert {len(members) for members in all_serve.members} == {7}


def test_epochs_never_mix():
    """The pattern has changed by more than the noise."""
    known = two_epochs()
    result = make_backgrounds(known.exposures, ImageForImageOptions(max_dt=7.0))
    for i in range(12):
        assert 0.9 < errors(result, known.truth[i], i).std() < 1.1
        assert np.median(result.background(i).donors) == 5
        assert result.holes[i] < 0.02


def test_an_exposure_does_not_serve_itself():
    """Whatever is in one exposure alone goes into the others' backgrounds, if at all, and not into its own."""
    known = scene(6)
    data = known.data[2].copy()
    data[30:40, 30:40] += 2
    options = ImageForImageOptions(sigma=1e6)
    plain, other = (
        results(make_backgrounds(e, options, guide=NO_SOURCES)) for e in (known.exposures, known.changed(2, data))
    )
    np.testing.assert_allclose(other["e2"].value, plain["e2"].value, rtol=5e-3, atol=0.02)  # weights are measured
    patch = (other["e0"].value - plain["e0"].value)[30:40, 30:40]
    np.testing.assert_allclose(patch, 2 / 5, atol=0.02)


def test_repeats_at_one_pointing_do_not_serve_each_other():
    known = scene(5)
    again = replace(known.exposures[0], name="again")
    result = make_backgrounds([*known.exposures, again])
    assert "again" not in result.members[0]
    assert "e0" not in result.members[5]
    assert set(result.members[1]) == {"e0", "e2", "e3", "e4", "again"}


def test_too_few_members():
    """The reason is told; the others have theirs."""
    known = scene(6, times=[0.0, 0.1, 0.2, 0.3, 50.0, 50.1])
    result = make_backgrounds(known.exposures, ImageForImageOptions(min_members=3))
    assert result.status[:4] == (MADE,) * 4
    for status in result.status[4:]:
        assert "min_members=3" in status
        assert "1 of 5" in status
    assert result.members[4:] == ((), ())
    assert np.isnan(result.rms[4:]).all()
    for i in range(4):
        assert 0.88 < errors(result, known.truth[i], i).std() < 1.12
    assert str(result).count("\n") == 5


def test_many_without_donors_do_not_keep_the_others_from_sources():
    times = [0.0] * 4 + [30.0 * k for k in range(1, 6)]
    known = scene(9, times=times)
    result = make_backgrounds(known.exposures)
    assert result.status[:4] == (MADE,) * 4
    for i in range(4):
        assert result.sources(i)[known.light[i] > 2].mean() > 0.9


def test_an_exposure_elsewhere_without_donors_is_no_error():
    known = scene(4)
    far = scene(1, place=(150.02, 20.0), prefix="far", times=[50.0])
    result = make_backgrounds([*known.exposures, *far.exposures])
    assert result.status[:4] == (MADE,) * 4
    assert "min_members" in result.status[4]


def test_sources_of_an_exposure_that_only_serves_are_masked():
    """The first has too few donors in time, and is elsewhere; it is a donor of the second all the same."""
    known = scene(3, times=[5.0, 10.0, 10.1])
    far = scene(1, place=(150.02, 20.0), prefix="far", times=[0.0])
    result = make_backgrounds([*far.exposures, *known.exposures], ImageForImageOptions(max_dt=7.0, min_members=2))
    assert [status == MADE for status in result.status] == [False, True, True, True]
    assert "far0" in result.members[1]
    assert result.sources(0)[far.light[0] > 5].mean() > 0.9


def test_two_fields_serve_each_other():
    """A source of one field is dark sky in the other."""
    one, two = scene(3), scene(3, place=(150.03, 20.0), prefix="f", seed=3)
    result = make_backgrounds([*one.exposures, *two.exposures])
    assert result.status == (MADE,) * 6
    for i, truth in enumerate([*one.truth, *two.truth]):
        assert 0.88 < errors(result, truth, i).std() < 1.12


# Guides


def region(row, column, radius, place=MIDDLE):
    """A circle about a pixel of the middle exposure; radius in its pixels."""
    ra, dec = tan(*place, shape=SHAPE).wcs_pix2world(column, row, 0)
    return CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), radius * 0.1 * u.arcsec)


def near(wcs, row, column, radius):
    """Pixels of an exposure near a pixel of the middle one, by astropy."""
    x, y = centres_on(wcs, tan(*MIDDLE, shape=SHAPE), SHAPE)
    return np.hypot(y - row, x - column) < radius


def test_included_regions_are_masked():
    known, plain = made(6)
    result = make_backgrounds(known.exposures, guide=SourceGuide(include=[region(50, 80, 8)]))
    for i, wcs in enumerate(known.wcss):
        assert result.sources(i)[near(wcs, 50, 80, 7.9)].all()
        assert not (result.sources(i) & near(wcs, 50, 80, 12) & ~near(wcs, 50, 80, 8.1) & ~plain.sources(i)).any()
        assert not plain.sources(i)[near(wcs, 50, 80, 7)].all()


def test_excluded_regions_are_not():
    known, plain = made(6)
    result = make_backgrounds(known.exposures, guide=SourceGuide(exclude=[region(*STARS[0][:2], 10)]))
    for i, wcs in enumerate(known.wcss):
        assert not result.sources(i)[near(wcs, *STARS[0][:2], 9.9)].any()
    for found, star in ((plain, STARS[0]), (result, STARS[3])):
        assert found.sources(0)[near(known.wcss[0], *star[:2], 5)].mean() > 0.5


def test_what_is_excluded_wins():
    known = scene(4)
    guide = SourceGuide(mask=wide(), include=[region(50, 60, 10)], exclude=[region(50, 60, 5)])
    result = make_backgrounds(known.exposures, guide=guide)
    assert not result.sources(0)[near(known.wcss[0], 50, 60, 4.9)].any()
    assert result.sources(0)[near(known.wcss[0], 50, 60, 9.9) & ~near(known.wcss[0], 50, 60, 5.1)].all()


def test_a_given_mask_is_used_as_it_is():
    known = scene(6)
    mask = wide()
    image = mask.image.copy()
    image[100:110, 90:120] = 17  # a number of a segment
    result = make_backgrounds(known.exposures, guide=SourceGuide(mask=replace(mask, image=image)))
    for i, wcs in enumerate(known.wcss):
        x, y = centres_on(wcs, mask.header, SHAPE)
        clear = np.minimum(np.abs(x % 1 - 0.5), np.abs(y % 1 - 0.5)) > 0.02
        expected = (x > 89.5) & (x < 119.5) & (y > 99.5) & (y < 109.5)
        np.testing.assert_array_equal(result.sources(i)[clear], expected[clear])
    np.testing.assert_array_equal(result.covered, 1)


def test_a_mask_without_sources_leaves_stars_in():
    known = scene(6)
    result = make_backgrounds(known.exposures, ImageForImageOptions(sigma=1e6), guide=NO_SOURCES)
    assert not any(result.sources(i).any() for i in range(6))
    np.testing.assert_array_equal(result.masked, 0)
    ghost = known.light[1] > 10
    assert (result.background(0).value - known.truth[0])[ghost].mean() > 1


@pytest.mark.parametrize("blank", [0, np.nan])
def test_blank_pixels_of_a_given_mosaic_cover_nothing(blank):
    """Zeros are no data, as NaN."""
    known = scene(6)
    mosaic = wide()
    image = np.random.default_rng(1).normal(100, 0.01, mosaic.image.shape).astype(np.float32)
    image[:, image.shape[1] // 2 :] = blank
    result = make_backgrounds(known.exposures, guide=SourceGuide(mosaic=replace(mosaic, image=image)))
    assert (result.covered < 0.8).all()


def test_a_given_mosaic_shows_sources():
    """A deep image, with a source that the exposures themselves do not show."""
    known = scene(6)
    mosaic = wide()
    rng = np.random.default_rng(1)
    image = mosaic.image + starlight(STARS, mosaic.header, MIDDLE, mosaic.image.shape) + 100
    image += rng.normal(0, 0.01, image.shape)
    rows, columns = np.indices(image.shape)
    image += 0.5 * (np.hypot(rows - 105, columns - 115) < 6)
    result = make_backgrounds(
        known.exposures, guide=SourceGuide(mosaic=replace(mosaic, image=image.astype(np.float32)))
    )
    plain = make_backgrounds(known.exposures, ImageForImageOptions(maxiters=1))
    spot = near(known.wcss[0], 105 - 60, 115 - 60, 5)
    assert result.sources(0)[spot].all()
    assert result.sources(0)[known.light[0] > 1].all()
    assert plain.sources(0)[spot].mean() < 0.9
    assert 0.9 < errors(result, known.truth[0], 0).std() < 1.1


def test_a_mosaic_that_covers_a_part():
    known = scene(4)
    mask = given(tan(*MIDDLE, shape=SHAPE, shift=(55, 0)), np.ones(SHAPE))  # what lies to the right is a source
    result = make_backgrounds(known.exposures, guide=SourceGuide(mask=mask))
    assert result.covered[0] == pytest.approx(0.5, abs=0.02)
    assert result.sources(0)[:, 58:].mean() > 0.97
    assert not result.sources(0)[:, :52].any()


@pytest.mark.parametrize("kind", ["mask", "mosaic"])
def test_a_mosaic_that_does_not_cover(kind):
    known = scene(4)
    image = np.random.default_rng(1).normal(0, 1, SHAPE) + 100 * (np.indices(SHAPE)[0] == 20)
    far = given(tan(151.0, 20.0, shape=SHAPE), image)
    with pytest.raises(ValueError, match=r"the given one.* e0"):
        make_backgrounds(known.exposures, guide=SourceGuide(**{kind: far}))


def test_a_mosaic_without_data_does_not_cover():
    with pytest.raises(ValueError, match=r"the given one.* e0"):
        make_backgrounds(scene(4).exposures, guide=SourceGuide(mask=wide(np.nan)))


@pytest.mark.parametrize("n", [4, 6])
def test_bright_stars_are_masked_to_their_middle(n):
    stars = ((45, 55, 1e4), (30, 80, 3e4), (60, 30, 3e3))
    known = scene(n, stars=stars)
    result = make_backgrounds(known.exposures)
    for i in range(n):
        assert result.sources(i)[known.light[i] > 100 * NOISE].all()


# Bad pixels


def test_holes_are_filled():
    """Wide stars that the dithers do not leave: no donor has their middle."""
    known = scene(4, shape=(120, 130))
    mask = wide(shape=(120, 130))
    rows, columns = np.indices(mask.image.shape)
    image = (np.hypot(rows - 120, columns - 125) < 40).astype(np.float32)
    result = make_backgrounds(known.exposures, guide=SourceGuide(mask=replace(mask, image=image)))
    for i in range(4):
        background = result.background(i)
        others = [result.sources(k) for k in range(4) if k != i]
        hole = np.logical_and.reduce(others)
        assert hole.sum() > 500
        assert (background.donors[hole] == 0).all()
        assert np.isfinite(background.value).all()
        assert np.isfinite(background.variance).all()
        assert result.holes[i] == pytest.approx((background.donors == 0).mean())
        # The glow goes on through the hole; what changes from pixel to pixel cannot, but is in the variance.
        assert np.abs(background.value - known.truth[i])[hole].mean() < 0.6
        assert np.median(background.variance[hole]) > 2 * np.median(background.variance[~hole])


def test_a_factor_on_one_exposure_is_one_on_its_background():
    """Its square on the variance; the backgrounds of the others stay."""
    known, options = scene(5, stars=()), ImageForImageOptions(scale="multiplicative")
    tripled = known.changed(0, 3 * known.data[0])
    one, two = (make_backgrounds(some, options, guide=NO_SOURCES) for some in (known.exposures, tripled))
    for i, factor in ((0, 3.0), (1, 1.0)):
        before, after = one.background(i), two.background(i)
        np.testing.assert_allclose(after.value, factor * before.value, rtol=1e-3)
        np.testing.assert_allclose(after.variance, factor**2 * before.variance, rtol=1e-2)


def test_holes_are_those_of_good_pixels():
    """The others miss nine rows, of which the first exposure itself has five."""
    known, row = scene(4), np.indices(SHAPE)[0]
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, good=row >= (4 if i == 0 else 9))
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures, guide=NO_SOURCES)
    assert result.holes[0] == pytest.approx(5 / (SHAPE[0] - 4))
    assert result.background(0).holes.sum() == 5 * SHAPE[1]


def test_values_are_always_finite():
    known = scene(5)
    data = known.data.copy()
    data[:, 40:50, :] = np.nan  # in none
    data[:, ::7, ::5] = np.inf
    data[1, :20] = np.nan
    exposures = [Exposure.from_arrays(e.name, data[i], e.wcs) for i, e in enumerate(known.exposures)]
    result = make_backgrounds(exposures)
    for i in range(5):
        background = result.background(i)
        assert np.isfinite(background.value).all()
        assert np.isfinite(background.variance).all()
        assert not background.donors[40:50].any()
        assert background.value.dtype == background.variance.dtype == np.float32
        assert background.value.shape == SHAPE
        assert 0.88 < errors(result, known.truth[i], i).std() < 1.12


def test_bad_values_of_bad_pixels_do_not_matter():
    known = scene(5)
    good = np.random.default_rng(1).random((5, *SHAPE)) > 0.05
    found = []
    for bad in (np.nan, 1e9, -5.0):
        exposures = [
            Exposure.from_arrays(e.name, np.where(good[i], known.data[i], bad), e.wcs, good=good[i])
            for i, e in enumerate(known.exposures)
        ]
        found.append(results(make_backgrounds(exposures)))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_cosmic_rays_are_clipped():
    known = scene(8)
    data = known.data.copy()
    rng = np.random.default_rng(1)
    for image in data:
        image.flat[rng.integers(0, image.size, 100)] += 100
    exposures = [Exposure.from_arrays(e.name, data[i], e.wcs) for i, e in enumerate(known.exposures)]
    result = make_backgrounds(exposures)
    for i in range(8):
        wrong = np.abs(errors(result, known.truth[i], i)) > 6
        assert wrong.mean() < 1e-3


def test_an_exposure_without_pixels():
    known = scene(6)
    exposures = known.changed(2, np.full(SHAPE, np.nan))
    result = make_backgrounds(exposures)
    assert result.status[2] != MADE
    assert "pixels" in result.status[2]
    assert [s for i, s in enumerate(result.status) if i != 2] == [MADE] * 5
    without = results(make_backgrounds([e for i, e in enumerate(known.exposures) if i != 2]))
    for name, background in results(result).items():
        used = background.donors > 0
        assert np.abs(background.value - without[name].value)[used].mean() < 0.2 * NOISE
        assert background.donors.max() == 4


@pytest.mark.parametrize("scale", ["additive", "none", "multiplicative"])
def test_an_exposure_all_on_a_source(scale):
    """It has no level of its own; whatever is said of it, no value is NaN, and the others have theirs."""
    known = scene(5)
    far = scene(1, place=(150.02, 20.0), prefix="far")
    east = np.indices((2000, 2000))[1] < 700  # the far one lies 680 pixels to the east
    guide = SourceGuide(mask=given(tan(*MIDDLE, shape=east.shape), east))
    result = make_backgrounds([*known.exposures, *far.exposures], ImageForImageOptions(scale=scale), guide=guide)
    assert result.sources(5).all()
    assert result.status[:5] == (MADE,) * 5
    for i, status in enumerate(result.status):
        if status == MADE:
            assert np.isfinite(result.background(i).value).all()
            assert np.isfinite(result.background(i).variance).all()


def test_exposures_without_pixels_are_no_members():
    known = scene(4)
    exposures = [
        Exposure.from_arrays(e.name, known.data[i] if i < 2 else np.full(SHAPE, np.nan), e.wcs)
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures, ImageForImageOptions(min_members=2))
    assert not any(status == MADE for status in result.status)


def test_no_exposure_has_pixels():
    exposures = [Exposure.from_arrays(e.name, np.full(SHAPE, np.nan), e.wcs) for e in scene(4).exposures]
    result = make_backgrounds(exposures)
    assert all("pixel" in status for status in result.status)


def test_a_sky_without_sources():
    known = scene(5, stars=(), noise=0.1)
    result = make_backgrounds(known.exposures, ImageForImageOptions(snr_threshold=20))
    np.testing.assert_array_equal(result.masked, 0)


def test_an_exposure_that_shares_no_good_pixel():
    """The others are good in one half of the detector, it in the other half."""
    known = scene(4)
    half = np.indices(SHAPE)[0] < 45
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, good=half if i < 3 else ~half)
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures)
    assert result.status[:3] == (MADE,) * 3
    assert result.background(0).donors[45:].max() == 1
    assert np.median(result.background(0).donors[:45]) == 2
    assert np.isfinite(result.background(0).value).all()


def test_an_exposure_without_any_donor_where_it_is_good():
    known = scene(4)
    half = np.indices(SHAPE)[0] < 45
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, good=half if i < 3 else ~half)
        for i, e in enumerate(known.exposures)
    ]
    assert "where it has them" in make_backgrounds(exposures).status[3]


# What must not matter


@pytest.mark.parametrize("guide", [None, NO_SOURCES], ids=["found", "given"])
def test_order_does_not_matter(guide):
    known, one = made(6)
    order = [3, 0, 5, 1, 4, 2]
    one = make_backgrounds(known.exposures, guide=guide) if guide else one
    two = make_backgrounds([known.exposures[k] for k in order], guide=guide)
    assert two.names == tuple(one.names[k] for k in order)
    for here, there in enumerate(order):
        a, b = two.background(here), one.background(there)
        differs = two.sources(here) != one.sources(there)
        if guide is None:  # borders of masks change, as the grid of the mosaic turns with the first exposure
            assert differs.mean() < 0.02
            assert np.median(abs(a.value - b.value)) < 0.05 * NOISE
        else:
            assert not differs.any()
            assert abs(a.value - b.value).max() < 1e-5
        assert sorted(two.members[here]) == sorted(one.members[there])


def test_order_of_parallel_exposures_changes_no_bit():
    dithers = simulate_dithers(rng=np.random.default_rng(1), dithers=5, shape=(90, 100), jitter=0)
    exposures = [
        Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2)
        for e in dithers.exposures
    ]
    one, two = (results(make_backgrounds(e)) for e in (exposures, exposures[::-1]))
    assert_same(one, two, atol=1e-5)


def test_scratch_files_change_nothing(tmp_path):
    known = scene(5)
    kinds = ["a", "a", "a", "b", "b"]
    options = ImageForImageOptions(min_members=1)
    one = make_backgrounds(known.exposures, options, kinds=kinds)
    two = make_backgrounds(known.exposures, options, kinds=kinds, work=Work(folder=tmp_path))
    assert_same(results(one), results(two))
    for i in range(5):
        np.testing.assert_array_equal(one.sources(i), two.sources(i))
    assert any(tmp_path.iterdir())


def test_threads_change_nothing():
    known, one = made(5)
    with threads(2) as work:
        assert_same(results(one), results(make_backgrounds(known.exposures, work=work)))


def test_asking_twice_gives_the_same():
    _, result = made(4)
    assert_same(results(result), results(result))


def test_inputs_stay_as_they_are():
    known = scene(5)
    good = np.random.default_rng(1).random((5, *SHAPE)) > 0.05
    variance = np.full((5, *SHAPE), NOISE**2)
    mosaic = wide()
    rng = np.random.default_rng(2)
    mosaic = replace(mosaic, image=rng.normal(0, 1, mosaic.image.shape).astype(np.float32))
    mosaic.image[100, 80:120] += 100
    arrays = (known.data, good, variance, mosaic.image, mosaic.count)
    copies = [a.copy() for a in arrays]
    exposures = [
        Exposure.from_arrays(e.name, known.data[i], e.wcs, good=good[i], variance=variance[i])
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures, guide=SourceGuide(mosaic=mosaic))
    result.background(0)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f8"])
def test_kinds_of_numbers(dtype):
    known, plain = made(4)
    exposures = [
        Exposure.from_arrays(e.name, known.data[i].astype(dtype), e.wcs, variance=np.full(SHAPE, NOISE**2), time=e.time)
        for i, e in enumerate(known.exposures)
    ]
    assert_same(results(plain), results(make_backgrounds(exposures)), atol=1e-6)


def test_integers():
    known = scene(6)
    exposures = [
        Exposure.from_arrays(e.name, np.rint(100 * known.data[i]).astype(np.int32), e.wcs)
        for i, e in enumerate(known.exposures)
    ]
    result = make_backgrounds(exposures)
    assert 0.9 < errors(result, 100 * known.truth[0], 0).std() < 1.1


# Bad input


def test_no_exposures():
    with pytest.raises(ValueError, match="no exposures"):
        make_backgrounds([])


def test_repeated_names_are_named():
    known = scene(3)
    with pytest.raises(ValueError, match=r"e1"):
        make_backgrounds([*known.exposures, known.exposures[1]])


def test_shapes_that_differ_are_named():
    one, two = scene(3), scene(1, shape=(50, 60), prefix="small")
    with pytest.raises(ValueError, match=r"small0.*\(50, 60\).*e0.*\(90, 110\)"):
        make_backgrounds([*one.exposures, *two.exposures])


@pytest.mark.parametrize("number", [0, 3, 5])
def test_there_must_be_as_many_kinds_as_exposures(number):
    with pytest.raises(ValueError, match="kinds"):
        make_backgrounds(scene(4).exposures, kinds=["a"] * number)


def test_one_exposure():
    result = make_backgrounds(scene(1).exposures)
    assert "no other exposure" in result.status[0]
    assert result.members == ((),)


@pytest.mark.parametrize("scale", ["additive", "multiplicative"])
def test_pieces_that_are_worked_on_at_once_change_nothing(monkeypatch, scale):
    known, options = scene(5), ImageForImageOptions(scale=scale)
    whole = make_backgrounds(known.exposures, options)
    for module in (image_stack, image_samples, detection, mosaics):
        monkeypatch.setattr(module, "_AT_ONCE", 1)
    pieces = make_backgrounds(known.exposures, options)
    for name in ("level", "rms", "masked", "holes", "donors"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-6)
    for i in range(5):
        one, two = whole.background(i), pieces.background(i)
        np.testing.assert_allclose(two.value, one.value, rtol=2e-7)
        np.testing.assert_allclose(two.variance, one.variance, rtol=1e-6)
        np.testing.assert_array_equal(pieces.sources(i), whole.sources(i))


@pytest.mark.parametrize("n", [5, 130])
def test_noise_does_not_depend_on_the_order_of_exposures(n):
    """Also where only some of the pairs are compared."""
    rng = np.random.default_rng(2)
    own = np.where(np.arange(n) % 3 == 0, 1.5, 1.0)
    values = (rng.normal(0, 1, (n, 200)) * own[:, None]).astype(np.float32)
    names, serves = [f"e{k:03d}" for k in range(n)], ~np.eye(n, dtype=bool)
    order = rng.permutation(n)
    one = image_samples.measure_standards(values, np.ones(200), serves, "additive", names)
    two = image_samples.measure_standards(values[order], np.ones(200), serves, "additive", [names[i] for i in order])
    np.testing.assert_allclose(two.noise, one.noise[order], rtol=1e-6)
    np.testing.assert_allclose(two.level, one.level[order], atol=1e-6)


def test_levels_of_exposures_that_see_different_parts_of_the_pattern():
    """Whose medians differ by that; and one has cosmic rays on a tenth of its pixels."""
    rng = np.random.default_rng(3)
    x, true = np.linspace(0, 4, 4000), np.array([5.0, 1.0, 3.0, 8.0])
    values = true[:, None] + 1.5 * x + np.sin(3 * x) + rng.normal(0, 0.1, (4, 4000))
    values[0, x > 3.7] = values[3, x < 0.3] = np.nan
    assert np.ptp(np.nanmedian(values, axis=1) - true) > 1
    values[1, ::10] += 3.0
    serves = ~np.eye(4, dtype=bool)
    found = image_samples.measure_standards(values.astype(np.float32), np.ones(4000), serves, "additive", list("abcd"))
    np.testing.assert_allclose(found.level - found.level[0], true - true[0], atol=0.01)


@pytest.mark.parametrize("seed", [2, 29])
def test_levels_whose_median_only_is_positive_are_refused(seed):
    """Noise ten times the level: the differences from others tell that it is less than zero."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1, 0.05, (4, 400))
    values[0] = rng.normal(0.1, 3, 400)
    assert np.median(values[0]) > 0
    serves = ~np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match=r"a: its level .* is not positive"):
        image_samples.measure_standards(values.astype(np.float32), np.ones(400), serves, "multiplicative", list("abcd"))


@pytest.mark.parametrize("true", [(1.0, 4.0, 9.0, 2.0, 2.0), (1e-4, 1.0, 1.0, 25.0, 1.0), (1e24, 1.0, 4.0, 2.0, 1.0)])
def test_variances_are_those_whose_sums_are_given(true):
    true = np.array(true)
    first, second = np.nonzero(np.triu(np.ones((5, 5)), 1))
    found = image_samples._shares(first, second, true[first] + true[second], true + np.sort(true)[:2].sum())
    np.testing.assert_allclose(found, true, rtol=1e-3, atol=1e-3 * np.median(true))


def test_variances_are_never_negative():
    """A difference that is larger than the others allow."""
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    sums = np.array([1.0, 1.0, 9.0])
    found = image_samples._shares(first, second, sums, np.ones(3))
    tried = np.stack(np.meshgrid(*[np.linspace(0, 9, 91)] * 3, indexing="ij")).reshape(3, -1)
    squares = np.sum(((tried[first] + tried[second]) / sums[:, None] - 1) ** 2, axis=0)
    best = tried[:, squares.argmin()]
    assert (found >= 0).all()
    np.testing.assert_allclose(found, best, atol=0.1)


@pytest.mark.parametrize("scale", ["additive", "multiplicative", "none"])
def test_exposures_without_good_pixels_say_so(scale):
    dead = [Exposure.from_arrays(str(k), np.full((32, 32), np.nan), to_sky(tan(shift=(20.0 * k, 0)))) for k in range(3)]
    found = make_backgrounds(dead, ImageForImageOptions(scale=scale))
    assert set(found.status) == {"no good pixels"}


def test_masks_of_even_period_leave_pixels_in_the_sample():
    """Good pixels in every second row and column, in different ones of each exposure."""
    rng = np.random.default_rng(4)
    exposures = []
    for k in range(4):
        good = np.zeros((600, 600), dtype=bool)
        good[k % 2 :: 2, k // 2 :: 2] = good[1::4, 1::4] = True
        at = to_sky(tan(shape=(600, 600), shift=(60.0 * k, 0)))
        exposures.append(Exposure.from_arrays(str(k), rng.normal(1 + k, 0.1, good.shape), at, good=good))
    found = make_backgrounds(exposures)
    assert set(found.status) == {MADE}
    np.testing.assert_allclose(found.level - found.level[0], np.arange(4), atol=0.02)
