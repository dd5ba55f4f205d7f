"""Skies matched by pixel-by-pixel differences: the levels, groups and zero points of match_skies."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bkgmatch.exposures import Exposure
from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions
from bkgmatch.scenes import make_scene
from bkgmatch.simulate import simulate_mosaic

DIFFERENCE = SkyMatchOptions(skystat="difference", zero_point="mean")


def exposures_of(simulated, **kwargs):
    return [
        Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2)
        for e in simulated
    ]


@pytest.fixture(scope="module")
def nebulous():
    """MIRI tiles whose nebula is a hundred times brighter than the differences that are sought."""
    rng = np.random.default_rng(4)
    scene = make_scene(150.0, 2.2, 200.0, rng, nebula=10.0, n_stars=300, fwhm=2.0)
    return simulate_mosaic(
        rng=rng, detectors=("MIRIMAGE",), binning=8, dithers=3, scene=scene, noise=0.1, level_range=(20, 40)
    )


def error(match, simulated):
    wrong = match.level - np.array([e.level for e in simulated])
    return wrong - wrong.mean()


def test_a_nebula_does_not_disturb(nebulous):
    """Errors are a tenth of those of the median, and what they are said to be."""
    found = match_skies(exposures_of(nebulous), DIFFERENCE)
    median = match_skies(exposures_of(nebulous), SkyMatchOptions(skystat="median", zero_point="mean"))
    wrong = error(found, nebulous)
    assert np.std(wrong) < 0.3 * np.std(error(median, nebulous))
    assert 0.5 < np.std(wrong / found.sigma) < 1.6
    assert set(found.status) == {"matched"}


def test_pairs_say_what_was_measured(nebulous):
    """Their offsets differ from the true ones by their errors; what the levels leave is less."""
    pairs = match_skies(exposures_of(nebulous), DIFFERENCE).pairs
    true = np.array([e.level for e in nebulous])
    pulls = (pairs.offset - (true[pairs.first] - true[pairs.second])) / pairs.sigma
    assert (pairs.first < pairs.second).all()
    assert 0.6 < np.std(pulls[pairs.npix > 500]) < 1.6


def test_offsets_are_the_first_less_the_second_in_any_order(nebulous):
    """Exposures in the order of their names, and in the reverse."""
    level = np.array([e.level for e in nebulous])
    for step in (1, -1):
        pairs, true = match_skies(exposures_of(nebulous)[::step], DIFFERENCE).pairs, level[::step]
        assert (pairs.first < pairs.second).all()
        apart = true[pairs.first] - true[pairs.second]
        assert (np.abs(pairs.offset - apart) < 6 * pairs.sigma + 0.05).all()


def test_order_of_exposures_does_not_matter(nebulous):
    exposures = exposures_of(nebulous)
    order = np.random.default_rng(1).permutation(len(exposures))
    shuffled = match_skies([exposures[i] for i in order], DIFFERENCE)
    np.testing.assert_array_equal(shuffled.level, match_skies(exposures, DIFFERENCE).level[order])


@pytest.mark.parametrize("policy", ["lowest", "highest", "mean", "name"])
def test_zero_points(nebulous, policy):
    exposures = exposures_of(nebulous)
    name = exposures[3].name
    found = match_skies(
        exposures, SkyMatchOptions(skystat="difference", zero_point=name if policy == "name" else policy)
    )
    zero = {"lowest": found.level.min(), "highest": found.level.max(), "mean": found.level.mean()}
    assert zero.get(policy, found.level[3]) == pytest.approx(0, abs=1e-9)
    reference = match_skies(exposures, DIFFERENCE)
    np.testing.assert_allclose(found.level - found.level.mean(), reference.level, atol=1e-9)


def two_detectors(level_per):
    """Exposures of two NIRCam modules; dithers overlap within a module, tiles across."""
    return simulate_mosaic(
        rng=np.random.default_rng(2),
        detectors=("NRCALONG", "NRCBLONG"),
        tiles=(2, 1),
        dithers=2,
        binning=32,
        overlap=0.3,
        level_per=level_per,
        noise=0.02,
    )


def test_members_of_a_group_share_a_level():
    simulated = two_detectors("group")
    exposures = [
        Exposure.from_arrays(
            e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2, group=e.group
        )
        for e in simulated
    ]
    found = match_skies(exposures, DIFFERENCE)
    level = {e.group: found.level[i] for i, e in enumerate(simulated)}
    assert [level[e.group] for e in simulated] == found.level.tolist()
    assert found.component.max() == 0
    assert (np.abs(error(found, simulated)) < 4.5 * found.sigma).all()
    groups = np.array([e.group for e in simulated])
    assert (groups[found.pairs.first] != groups[found.pairs.second]).all()


def test_detectors_with_levels_of_their_own():
    simulated = two_detectors("detector")
    exposures = [
        Exposure.from_arrays(
            e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2, group=e.group
        )
        for e in simulated
    ]
    found = match_skies(exposures, SkyMatchOptions(skystat="difference", level_per="detector", zero_point="mean"))
    true = np.array([e.level for e in simulated])
    for component in range(found.component.max() + 1):
        inside = found.component == component
        wrong = (found.level - true)[inside]
        assert (np.abs(wrong - wrong.mean()) < 4.5 * found.sigma[inside]).all()


def test_limits_of_values(nebulous):
    """A bright patch in one exposure, above the limit, is not compared."""
    exposures = exposures_of(nebulous)
    data = nebulous[0].data.copy()
    data[20:100, 60:120] += 1000
    spoilt = [Exposure.from_arrays(exposures[0].name, data, exposures[0].wcs, good=nebulous[0].good), *exposures[1:]]
    limited = match_skies(spoilt, SkyMatchOptions(skystat="difference", upper=500.0, zero_point="mean"))
    assert (np.abs(error(limited, nebulous)) < 5 * limited.sigma).all()


@pytest.mark.parametrize("weights", ["variance", "npix", "robust"])
def test_weights(nebulous, weights):
    found = match_skies(
        exposures_of(nebulous), SkyMatchOptions(skystat="difference", weights=weights, zero_point="mean")
    )
    assert (np.abs(error(found, nebulous)) < 5 * found.sigma).all()


def test_an_exposure_far_away(nebulous):
    exposures = exposures_of(nebulous)
    far = Exposure.from_arrays("far", np.ones((40, 40)), lambda x, y: (10 + x * 3e-5, y * 3e-5))
    found = match_skies([far, *exposures], DIFFERENCE)
    assert found.status[0] == "no overlap"
    assert np.isnan(found.level[0])
    np.testing.assert_array_equal(found.level[1:], match_skies(exposures, DIFFERENCE).level)


def test_global_and_local_methods_do_not_compare(nebulous):
    """Without matching, the sky is the clipped median of whole exposures."""
    exposures = exposures_of(nebulous)
    by_difference = match_skies(exposures, SkyMatchOptions(skymethod="local", skystat="difference"))
    by_median = match_skies(exposures, SkyMatchOptions(skymethod="local", skystat="median"))
    np.testing.assert_array_equal(by_difference.level, by_median.level)


def strip(places, rng, *, groups=None, level=0.0, noise=0.02, **kwargs):
    """Images of 32 x 32 pixels of noise, side by side."""
    return [
        Exposure.from_arrays(
            f"e{k}",
            rng.normal(level, noise, (32, 32)),
            lambda x, y, at=at: ((x + at) / 3600, y / 3600),
            group=groups[k] if groups else None,
            **{name: values[k] for name, values in kwargs.items()},
        )
        for k, at in enumerate(places)
    ]


def test_errors_are_relative_to_the_mean_of_the_groups():
    """As the levels are: a group of six counts as one."""
    rng = np.random.default_rng(8)
    groups = [*"gggggg", "h"]
    found = [match_skies(strip([0, 20, 40, 60, 80, 100, 10], rng, groups=groups), DIFFERENCE) for _ in range(60)]
    pulls = np.array([(one.level / one.sigma)[[0, -1]] for one in found])
    assert (np.abs(np.std(pulls, axis=0) - 1) < 4 / np.sqrt(2 * len(found))).all()


def test_dedicated_backgrounds_are_matched_too():
    rng = np.random.default_rng(9)
    exposures = strip([0, 15, 30], rng, is_background=[False, False, True])
    exposures[2] = replace(exposures[2].times(1.0), name="dark")
    assert match_skies(exposures, DIFFERENCE).status == ("matched",) * 3


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_weights_by_number_of_pixels_are_these_numbers(scale):
    rng = np.random.default_rng(3)
    exposures = strip([0, 12, 20], rng, level=scale, noise=0.02 * scale)
    pairs = match_skies(exposures, replace(DIFFERENCE, weights="npix")).pairs
    np.testing.assert_allclose(pairs.full_weight, pairs.npix)
