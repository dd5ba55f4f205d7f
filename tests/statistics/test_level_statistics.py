"""The errors of LevelMatch over many skies: of levels, of planes and their whole covariance, and of pairs."""

import numpy as np
import pytest
from pull_scores import check_distances, check_pulls, mahalanobis
from simulated_skies import NOISE, PLACE, Mosaic, cosmic_rays, dark, gradient, nebula, stars

from bkgmatch.detectors import to_plane
from bkgmatch.levels import match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.record import level_pair_table, level_table

pytestmark = pytest.mark.timeout(3600)  # for all the skies of a test on a busy machine

SKIES, FEWER = 500, 100
UNEQUAL = NOISE * np.array([1, 3, 0.5, 2, 1])
CAUTIOUS = (0.7, 1.1)  # errors that are larger than need be
PLANES = {"fit_type_dithers": "level+slope", "fit_type_mosaic_tiles": "level+slope"}


def simulate(skies, geometry="cross", sky=dark, *, noise=NOISE, rays=0.0, known=True, slope=0.0, **options):
    """Match so many skies; yield errors (n, 3) of level and slopes, the match, and the tables."""
    mosaic = Mosaic.of(geometry)
    options = LevelMatchOptions(**{"reference": "mean", "do_local_subtraction": False, **options})
    for seed in range(skies):
        rng = np.random.default_rng(seed)
        planes = np.column_stack([mosaic.levels, slope * rng.standard_normal((len(mosaic), 2))])
        data = mosaic.observe(rng, sky, noise=noise, planes=planes)
        data = cosmic_rays(rng, data, rays) if rays else data
        match = match_levels(mosaic.exposures(data, noise if known else None, tile=mosaic.tiles), options)
        table = level_table(match, options)
        yield errors(table, planes), match, table, planes


def errors(table, planes):
    """Errors of level and slopes at the middle of each exposure, less their mean plane, which no difference tells."""
    east, north = to_plane(table["ra"].data, table["dec"].data, *PLACE)
    across = np.column_stack([np.ones(len(east)), east, north])
    found = np.column_stack([table["level"], table["slope_east"], table["slope_north"]])
    error = found - np.column_stack([np.sum(across * planes, axis=1), planes[:, 1:]])
    common = error[:, 0] - np.sum(across[:, 1:] * error[:, 1:], axis=1)
    mean = np.array([common.mean(), *error[:, 1:].mean(axis=0)])
    return error - np.column_stack([across @ mean, np.tile(mean[1:], (len(east), 1))])


def level_pulls(*args, **kwargs):
    return np.array([error[:, 0] / table["sigma"] for error, _, table, _ in simulate(*args, **kwargs)])


@pytest.mark.slow
def test_levels_and_pairs_of_noise():
    levels, pairs = [], []
    for error, match, table, planes in simulate(SKIES):
        levels.append(error[:, 0] / table["sigma"])
        found, place = level_pair_table(match), {name: k for k, name in enumerate(match.names)}
        first, second = (planes[[place[name] for name in found[column]], 0] for column in ("first", "second"))
        pairs.append((found["offset"] - (first - second)) / found["sigma"])
    check_pulls("LevelMatch: levels", np.array(levels))
    check_pulls("LevelMatch: pairs", np.array(pairs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("dithers, sequence", {"geometry": "dithers"}),
        ("dithers, joint", {"geometry": "dithers", "passes": "joint"}),
        ("unequal noise", {"noise": UNEQUAL}),
        ("unequal noise, no variances given", {"noise": UNEQUAL, "known": False}),
        ("a chain", {"geometry": "chain"}),
        ("stars", {"sky": stars}),
        ("stars and cosmic rays", {"sky": stars, "rays": 0.01}),
        ("stars, masked", {"sky": stars, "do_sigma_clip": True}),
        ("gradient", {"sky": gradient}),
        ("nebula", {"sky": nebula}),
    ],
)
def test_levels_of_ordinary_skies(case, given):
    check_pulls(f"LevelMatch: levels, {case}", level_pulls(FEWER, **given))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["equal", "npix", "rms"])
def test_levels_with_weights_that_take_pairs_as_independent(weights):
    """As the documentation says."""
    pulls = level_pulls(FEWER, noise=UNEQUAL, weight_method=weights)
    check_pulls(f"LevelMatch: levels, weight_method={weights}", pulls, width=(0.6, 1.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "skies", "given", "width"),
    [
        ("noise", SKIES, {}, (0.87, 1.1)),
        ("dithers, sequence", FEWER, {"geometry": "dithers"}, (0.87, 1.1)),
        ("dithers, joint", FEWER, {"geometry": "dithers", "passes": "joint"}, (0.87, 1.1)),
        ("stars and cosmic rays", FEWER, {"sky": stars, "rays": 0.01}, (0.9, 1.1)),
        ("a chain", FEWER, {"geometry": "chain"}, CAUTIOUS),
        ("nebula", FEWER, {"sky": nebula}, CAUTIOUS),
    ],
)
def test_planes(case, skies, given, width):
    """Levels, tilts, and both together with their covariance, of each exposure."""
    pulls, distances = [], []
    for error, match, table, _ in simulate(skies, slope=0.2, **PLANES, **given):
        sigmas = np.column_stack([table[name] for name in ("sigma", "sigma_east", "sigma_north")])
        pulls.append(error / sigmas)
        distances.append([mahalanobis(*one)[0] for one in zip(error, match.covariance, strict=True)])
    pulls = np.array(pulls)
    check_pulls(f"LevelMatch: planes' levels, {case}", pulls[:, :, 0], width=width)
    check_pulls(f"LevelMatch: planes' tilts, {case}", pulls[:, :, 1:], width=width)
    middle = np.array(distances)[:, 1]
    check_distances(f"LevelMatch: a plane's level and tilts together, {case}", middle, 3, width=width)


def test_tables_of_a_few_skies_have_plausible_errors():
    """A glance at what the slow tests measure."""
    pulls = level_pulls(8)
    assert pulls.shape == (8, 5)
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.4
