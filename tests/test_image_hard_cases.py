"""Image-for-image backgrounds of exposures that differ: in noise, in what they see, in time."""

import numpy as np
import pytest
from common import tan

from bkgmatch.exposures import Exposure
from bkgmatch.image_backgrounds import MADE, SourceGuide, make_backgrounds
from bkgmatch.leave_one_out import merge_others
from bkgmatch.mosaics import Mosaic
from bkgmatch.options import ImageForImageOptions

SHAPE, PIXEL, NOISE = (120, 130), 0.11, 0.1
Y, X = np.indices(SHAPE) / 120
PATTERN = 10 + np.sin(7 * X) + 0.5 * np.cos(9 * Y) + 2 * X


def nothing_on(place):
    """A mask of the sky without sources."""
    wcs = tan(*place, shape=(400, 400), pixel=PIXEL)
    return SourceGuide(
        mask=Mosaic("nothing", np.zeros((400, 400)), np.ones((400, 400)), lambda v: np.full((len(v), 2), 200.0), wcs)
    )


NO_SOURCES = nothing_on((150.0, 2.0))


def exposures(images, rng, *, noise=NOISE, good=None, times=None, err=None, steps=None):
    """Exposures of images on one pattern, 5 arcsec apart; noise and ERR of each."""
    noise = np.broadcast_to(noise, len(images))
    err = noise if err is None else np.broadcast_to(err, len(images))
    steps = np.arange(len(images)) * 5 if steps is None else steps
    made = []
    for i, image in enumerate(images):
        wcs = tan(150.0 + steps[i] / 3600, 2.0, shape=SHAPE, pixel=PIXEL)
        data = (image + noise[i] * rng.standard_normal(SHAPE)).astype(np.float32)
        mask = None if good is None else good[i]
        variance = np.full(SHAPE, err[i] ** 2)
        time = None if times is None else times[i]
        made.append(Exposure.from_arrays(f"e{i}", data, wcs, good=mask, variance=variance, time=time))
    return made


def pulls(result, i, truth):
    background = result.background(i)
    used = background.donors > 0
    return ((background.value - truth) / np.sqrt(background.variance))[used]


@pytest.mark.parametrize(
    ("method", "last"), [("mean", 0.02), ("mean", 0.3), ("mean", 5), ("median", 0.3), ("median", 5)]
)
def test_one_exposure_of_other_noise_does_not_change_the_errors_of_all(method, last):
    noise = [NOISE] * 5 + [last]
    given = exposures([PATTERN] * 6, np.random.default_rng(1), noise=noise)
    result = make_backgrounds(given, ImageForImageOptions(method=method), guide=NO_SOURCES)
    for i in range(6):
        assert pulls(result, i, PATTERN).std() == pytest.approx(1, abs=0.1 if method == "mean" else 0.25)
    usual = NOISE / np.sqrt(5)
    assert np.median(np.sqrt(result.background(0).variance)) < (1.25 if method == "mean" else 1.6) * usual


def test_a_mean_has_weights_where_noise_differs():
    noise = np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.5])
    result = make_backgrounds(exposures([PATTERN] * 6, np.random.default_rng(2), noise=noise), guide=NO_SOURCES)
    best = 1 / np.sqrt(np.sum(1 / noise[1:] ** 2))
    assert (result.background(0).value - PATTERN).std() == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("wrong", [0.1, 0.01])
def test_a_wrong_err_of_one_exposure_moves_no_errors_where_it_is_bad(wrong):
    rng = np.random.default_rng(3)
    good = rng.random((6, *SHAPE)) > 0.05
    given = exposures([PATTERN] * 6, rng, good=good, err=[wrong * NOISE] + [NOISE] * 5)
    result = make_backgrounds(given, guide=NO_SOURCES)
    background = result.background(5)
    for where in (good[0], ~good[0]):
        some = where & (background.donors > 0)
        pull = ((background.value - PATTERN) / np.sqrt(background.variance))[some]
        assert pull.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("length", [5, 15])
def test_exposures_far_in_time_reject_nothing_of_those_near(length):
    drift = np.where(X < 0.5, 1, -1) * 2 * NOISE
    given = exposures(
        [PATTERN + i * drift for i in range(length)], np.random.default_rng(4), times=5.0 * np.arange(length)
    )
    result = make_backgrounds(given, ImageForImageOptions(max_dt=7.0), guide=NO_SOURCES)
    assert result.members[1] == ("e0", "e2")
    assert np.mean(result.background(1).donors) > 1.95
    assert np.nanmax(result.holes) < 0.06


def test_outliers_are_those_among_images_that_serve_each_other():
    stack = np.array([0, 0, 0, 5, 5, 5, 5], dtype=np.float32).reshape(7, 1, 1)
    donors = np.zeros((7, 7), dtype=bool)
    donors[:3, :3] = donors[3:, 3:] = True
    donors &= ~np.eye(7, dtype=bool)
    donors[0, 6] = True
    value, count = merge_others(stack, donors, noise=np.ones((1, 1)), sigma=4)
    assert count[1:].ravel().tolist() == [2, 2, 3, 3, 3, 3]
    np.testing.assert_array_equal(value[1:].ravel(), [0, 0, 5, 5, 5, 5])


@pytest.mark.parametrize("scale", ["additive", "multiplicative"])
@pytest.mark.parametrize("common", [0.1, 0.3])
def test_levels_of_exposures_that_have_little_in_common(scale, common):
    """Half of them are good on the left, half on the right, and the pattern rises from left to right."""
    rng = np.random.default_rng(5)
    across = X / X.max()
    left, right = across < (1 + common) / 2, across > (1 - common) / 2
    good = [left, right] * 3
    levels = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02])
    rising = PATTERN + 4 * across  # the medians of the two sides differ by several units
    truth = [rising * f if scale == "multiplicative" else rising + 10 * f for f in levels]
    given = exposures(truth, rng, good=good)
    result = make_backgrounds(given, ImageForImageOptions(scale=scale), guide=NO_SOURCES)
    for i in range(6):
        background = result.background(i)
        used = (background.donors > 0) & ~good[i]  # served by the others only
        assert abs(np.median((background.value - truth[i])[used])) < 0.03


def test_levels_of_one_epoch_do_not_depend_on_the_other():
    rng = np.random.default_rng(6)
    good = [X < 0.7, X > 0.4] * 4
    images = [PATTERN] * 4 + [PATTERN + 3 * X] * 4
    given = exposures(images, rng, good=good, times=[0.0] * 4 + [40.0] * 4)
    both, alone = make_backgrounds(given, guide=NO_SOURCES), make_backgrounds(given[:4], guide=NO_SOURCES)
    assert both.members[:4] == alone.members
    np.testing.assert_allclose(both.level[:4] - both.level[0], alone.level - alone.level[0], atol=2e-3)


@pytest.mark.parametrize("part", [0.15, 0.3])
def test_a_bright_nebula_between_two_pointings_is_masked(part):
    """Where an exposure shows it, half of the others do not."""
    rng, width = np.random.default_rng(7), 10.0
    half = SHAPE[1] * PIXEL / 2
    steps = np.array([1, -1, 1, -1, 1, -1]) * (width + half * (1 - 2 * part)) + rng.uniform(-2, 2, 6)
    light = [20 / (1 + np.exp((np.abs(s - (X * 120 - SHAPE[1] / 2) * PIXEL) - width) / 0.3)) for s in steps]
    given = exposures([PATTERN + some for some in light], rng, steps=steps)
    result = make_backgrounds(given)
    for i in range(6):
        assert result.status[i] == MADE
        assert result.sources(i)[light[i] > 5].mean() > 0.9
        used = (light[i] < 1e-3) & (result.background(i).donors > 1)
        assert (result.background(i).value - PATTERN)[used].std() < 2 * NOISE
