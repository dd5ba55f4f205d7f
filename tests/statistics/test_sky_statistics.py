"""The errors of SkyMatch over many skies: of levels, of pairs, of the statistics themselves, and together."""

import numpy as np
import pytest
from pull_scores import check_distances, check_pulls, mahalanobis
from scipy import sparse
from simulated_skies import NOISE, Mosaic, centred, cosmic_rays, dark, gradient, nebula, stars

from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions
from bkgmatch.record import exposure_table, pair_table
from bkgmatch.skystats import SkyStatistic

pytestmark = pytest.mark.timeout(3600)  # for all the skies of a test on a busy machine

SKIES, FEWER = 500, 150
STATISTICS = ("mean", "median", "midpt", "mode")
UNEQUAL = NOISE * np.array([1, 3, 0.5, 2, 1])
CAUTIOUS = (0.5, 1.1)  # where the sky has structure, the edges of overlaps count for as much as they may do


def simulate(skies, geometry="cross", sky=dark, *, noise=NOISE, rays=0.0, jitter=False, **options):
    """Match so many skies; yield the truth, the match, and its tables."""
    mosaic = Mosaic.of(geometry)
    options = SkyMatchOptions(**{"zero_point": "mean", **options})
    for seed in range(skies):
        rng = np.random.default_rng(seed)
        mosaic = Mosaic.of(geometry, angle=0, jitter=rng) if jitter else mosaic
        data = mosaic.observe(rng, sky, noise=noise)
        match = match_skies(mosaic.exposures(cosmic_rays(rng, data, rays) if rays else data, None), options)
        yield mosaic.levels, match, exposure_table(match, options)


def level_pulls(*args, **kwargs):
    """Pulls of the levels, relative to their mean."""
    return np.array([(t["level"] - centred(true)) / t["sigma"] for true, _, t in simulate(*args, **kwargs)])


@pytest.mark.slow
@pytest.mark.parametrize("skystat", [*STATISTICS, "difference"])
def test_levels_of_noise(skystat):
    check_pulls(f"SkyMatch: levels, {skystat}", level_pulls(SKIES, skystat=skystat))


@pytest.mark.slow
@pytest.mark.parametrize("skystat", ["median", "mode", "difference"])
@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("unequal noise", {"noise": UNEQUAL}),
        ("a chain", {"geometry": "chain"}),
        ("stars", {"sky": stars}),
        ("stars and cosmic rays", {"sky": stars, "rays": 0.01}),
    ],
)
def test_levels_of_ordinary_skies(case, given, skystat):
    check_pulls(f"SkyMatch: levels, {skystat}, {case}", level_pulls(FEWER, skystat=skystat, **given))


@pytest.mark.slow
@pytest.mark.parametrize("sky", [gradient, nebula])
def test_levels_over_structure_by_differences(sky):
    pulls = level_pulls(FEWER, sky=sky, skystat="difference")
    check_pulls(f"SkyMatch: levels, difference, {sky.__name__}", pulls)


@pytest.mark.slow
@pytest.mark.parametrize("skystat", ["median", "mode"])
@pytest.mark.parametrize("sky", [gradient, nebula])
def test_levels_over_structure_are_better_than_quoted(sky, skystat):
    """The edges of overlaps of turned images average out; the quoted errors do not count on that."""
    pulls = level_pulls(FEWER, sky=sky, skystat=skystat)
    check_pulls(f"SkyMatch: levels, {skystat}, {sky.__name__}", pulls, width=CAUTIOUS)


@pytest.mark.slow
def test_levels_over_a_gradient_of_aligned_images():
    """Edges between pixels, that are as far off as the quoted errors allow for."""
    pulls = level_pulls(FEWER, sky=gradient, skystat="median", jitter=True)
    check_pulls("SkyMatch: levels, median, gradient, aligned", pulls, width=(0.7, 1.1))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["npix", "robust"])
def test_levels_with_other_weights(weights):
    check_pulls(
        f"SkyMatch: levels, mean, weights={weights}", level_pulls(FEWER, skystat="mean", weights=weights, noise=UNEQUAL)
    )


@pytest.mark.slow
def test_levels_of_groups():
    """Two exposures that share a level have an error in common."""
    mosaic, pulls = Mosaic.of("cross"), []
    groups = ["a", "b", "b", "c", "d"]
    true = np.array([3.0, 1.0, 1.0, 4.0, 1.5])
    planes = np.pad(true[:, None], ((0, 0), (0, 2)))
    for seed in range(FEWER):
        data = mosaic.observe(np.random.default_rng(seed), planes=planes)
        options = SkyMatchOptions(skystat="mean", zero_point="mean")
        found = match_skies(mosaic.exposures(data, None, group=groups), options)
        pulls.append((found.level - (true - true[[0, 1, 3, 4]].mean())) / found.sigma)
    check_pulls("SkyMatch: levels, mean, groups", np.array(pulls))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["lowest", "highest", "e2"])
def test_a_zero_point_moves_all_levels_and_no_error(policy):
    """Errors stay relative to the mean, as they are said to be."""
    pairs = zip(simulate(FEWER, skystat="mean"), simulate(FEWER, skystat="mean", zero_point=policy), strict=True)
    pulls = []
    for (true, _, mean), (_, _, other) in pairs:
        np.testing.assert_allclose(np.ptp(other["level"] - mean["level"]), 0, atol=1e-12)
        np.testing.assert_array_equal(other["sigma"], mean["sigma"])
        pulls.append((centred(other["level"]) - centred(true)) / other["sigma"])
    check_pulls(f"SkyMatch: levels, zero point {policy}", np.array(pulls))


@pytest.mark.slow
@pytest.mark.parametrize("skystat", ["mean", "mode"])
@pytest.mark.parametrize("skymethod", ["local", "global"])
def test_levels_that_are_not_relative(skymethod, skystat):
    pulls = []
    for true, _, table in simulate(SKIES, skystat=skystat, skymethod=skymethod, zero_point="auto"):
        true = true if skymethod == "local" else np.full(1, true.min())
        pulls.append(((table["level"] - true) / table["sigma"])[: len(true)])
    check_pulls(f"SkyMatch: {skymethod} sky, {skystat}", np.array(pulls))


@pytest.mark.slow
def test_the_lowest_of_equal_skies_is_low_by_about_its_error():
    """As the documentation says: the error is that of one sky, not of the lowest of several."""
    pulls = []
    for true, _, table in simulate(SKIES, skystat="mean", skymethod="global+match", zero_point="auto"):
        pulls.append((table["level"] - true) / table["sigma"])
    pulls = np.array(pulls)
    assert (np.abs(pulls.mean(axis=0) + 1) < 0.5).all()
    check_pulls("SkyMatch: global+match, about its bias", pulls - pulls.mean(axis=0), width=(0.8, 1.15))


@pytest.mark.slow
@pytest.mark.parametrize("skystat", [*STATISTICS, "difference"])
def test_differences_of_pairs(skystat):
    pulls = []
    for true, match, _ in simulate(FEWER, skystat=skystat):
        table, place = pair_table(match), {name: k for k, name in enumerate(match.names)}
        first, second = ([place[name] for name in table[column]] for column in ("first", "second"))
        pulls.append((table["offset"] - (true[first] - true[second])) / table["sigma"])
    check_pulls(f"SkyMatch: pairs, {skystat}", np.array(pulls))


@pytest.mark.slow
@pytest.mark.parametrize("skystat", ["mean", "mode"])
def test_all_levels_and_all_pairs_together(skystat):
    """Chi squared of the whole covariance, which counts the pixels that pairs have in common."""
    levels, offsets = [], []
    for true, match, table in simulate(FEWER, skystat=skystat, noise=UNEQUAL):
        pairs = match.pairs
        scatter = (pairs.loading @ pairs.scatter @ pairs.loading.T).toarray()
        offsets.append(mahalanobis(pairs.offset - (true[pairs.first] - true[pairs.second]), scatter))
        covariance = sandwich(pairs, scatter, len(true))
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), table["sigma"], rtol=1e-6)
        levels.append(mahalanobis(table["level"] - centred(true), covariance))
    for what, found in (("levels", levels), ("pairs", offsets)):
        squared, dof = np.array(found).T
        assert len(set(dof)) == 1
        check_distances(f"SkyMatch: all {what} together, {skystat}", squared, dof[0])


def sandwich(pairs, scatter, n):
    """Covariance of the levels by dense linear algebra."""
    rows = np.tile(np.arange(len(pairs.first)), 2)
    entries = np.repeat([1.0, -1.0], len(pairs.first)), (rows, np.concatenate([pairs.first, pairs.second]))
    design = sparse.coo_array(entries, shape=(len(pairs.first), n)).toarray()
    weight = np.diag(pairs.weight)
    solver = np.linalg.pinv(design.T @ weight @ design) @ design.T @ weight
    return solver @ scatter @ solver.T


def normal(rng, n):
    return rng.normal(5, 0.2, n)


def skewed(rng, n):
    return rng.gamma(6, 0.1, n)


def with_sources(rng, n):
    return normal(rng, n) + np.where(rng.random(n) < 0.05, rng.exponential(2.0, n), 0)


@pytest.mark.slow
@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("of", [normal, skewed, with_sources])
def test_errors_of_the_statistics(of, skystat):
    """Relative to the mean over many draws where the truth depends on the clipping."""
    statistic = SkyStatistic(skystat)
    found = [statistic.of(of(np.random.default_rng(seed), 1500)) for seed in range(2 * SKIES)]
    value, sigma = np.array([(f.value[0], f.sigma[0]) for f in found]).T
    true = 5.0 if of is normal else value.mean()
    check_pulls(f"SkyStatistic: {skystat}, {of.__name__.replace('_', ' ')}", ((value - true) / sigma)[:, None])


def test_tables_of_a_few_skies_have_plausible_errors():
    """A glance at what the slow tests measure."""
    pulls = level_pulls(15, skystat="median")
    assert pulls.shape == (15, 5)
    assert 0.7 < np.sqrt(np.mean(pulls**2)) < 1.3
