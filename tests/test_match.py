"""Matching from arrays to levels, against known truth, analytic tables and brute-force counts."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from common import EMPTY, IMAGES, PLACES, SHAPE, TWINS, exposure, few, noise, tan

from bkgmatch.execution import threads
from bkgmatch.exposures import Exposure
from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions

METHODS = ("local", "global", "match", "global+match")
STATISTICS = ("mean", "median", "midpt", "mode")
FIVE = ([0, 40, 80, 0, 40], [0, 0, 0, 35, 35])
TRUE = np.array([3.0, 1.0, 4.0, 1.5, 9.0])


def options(**kwargs):
    return SkyMatchOptions(**kwargs)


def constants(skies, positions, *, start=0, place=(0.0, 60.0)):
    """Images that hold only a constant, at positions in units of an image less an overlap."""
    return [
        exposure(f"e{start + k:02d}", np.full(SHAPE, sky), tan(*place, shift=(50 * x, 40 * y)))
        for k, (sky, (x, y)) in enumerate(zip(skies, positions, strict=True))
    ]


def mosaic(levels=TRUE, *, seed=1, sigma=0.02, place=(0.0, 60.0), dtype=np.float64, **kwargs):
    """Five overlapping images of noise on known levels."""
    return [
        exposure(
            f"e{k:02d}",
            noise(seed=100 * seed + k, level=0, sigma=sigma).astype(dtype) + dtype(level),
            tan(*place, shift=(x, y), angle=2 * k),
            **{name: values[k] for name, values in kwargs.items()},
        )
        for k, (level, x, y) in enumerate(zip(levels, *FIVE, strict=True))
    ]


def two_pieces():
    """Levels 3 1 4 in one place, 7 2 in another."""
    first = constants([3, 1, 4], [(0, 0), (1, 0), (2, 0)])
    return first + constants([7, 2], [(0, 0), (1, 0)], start=3, place=(180.0, 20.0))


# The tables of stcal's documentation

GRID = [(x, y) for y in range(2) for x in range(3)]
SQUARE = [(0, 0), (1, 0), (0, 1), (1, 1)]
STRIP = [(0, 0), (1, 0), (2, 0)]
ONE = [100, 120, 105, 110, 105, 115]
TWO = [100, 120, 105, 110, 95, 90, 100]
TABLES = {
    "one": {"local": ONE, "global": [100] * 6, "match": [0, 20, 5, 10, 5, 15], "global+match": ONE},
    "two": {
        "local": TWO,
        "global": [90] * 7,
        "match": [0, 20, 5, 10, 8.75, 3.75, 13.75],
        "global+match": [86.25, 106.25, 91.25, 96.25, 95, 90, 100],
    },
    "two, component": {
        "local": TWO,
        "global": [90] * 7,
        "match": [0, 20, 5, 10, 5, 0, 10],
        "global+match": [100, 120, 105, 110, 95, 90, 100],
    },
}


def table_exposures(name):
    if name == "one":
        return constants(ONE, GRID)
    return constants(TWO[:4], SQUARE) + constants(TWO[4:], STRIP, start=4, place=(120.0, -30.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("skystat", STATISTICS)
def test_tables_of_stcal(method, table, skystat):
    scope = "component" if "component" in table else "global"
    found = match_skies(table_exposures(table), options(skymethod=method, zero_point_scope=scope, skystat=skystat))
    np.testing.assert_allclose(found.level, TABLES[table][method], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["match", "global+match"])
def test_match_up(method):
    found = match_skies(constants(ONE, GRID), options(skymethod=method, match_down=False)).level
    expected = np.array(ONE) - 120 if method == "match" else ONE
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_component_numbers():
    found = match_skies(table_exposures("two"))
    np.testing.assert_array_equal(found.component, [0, 0, 0, 0, 1, 1, 1])
    assert set(match_skies(table_exposures("one")).component) == {0}


# Levels of noise


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("overlap", ["good", "footprint", "exact"])
def test_recovers_levels(place, overlap):
    found = match_skies(mosaic(place=PLACES[place]), options(overlap=overlap))
    np.testing.assert_allclose(found.level, TRUE - 1, atol=0.01)
    assert found.status == ("matched",) * 5
    assert (found.sigma < 0.005).all()
    np.testing.assert_allclose(found.sky, TRUE, atol=0.01)


def test_errors_of_global_match_hold_that_of_the_zero_point():
    """What is added to all is one measured sky: that of the lowest exposure after matching. Its error is a sample's."""
    relative, alone, both = (match_skies(mosaic(), options(skymethod=m)) for m in ("match", "local", "global+match"))
    lowest = np.argmin(alone.level - relative.level)
    assert (np.hypot(relative.sigma, alone.sigma[lowest]) > 1.1 * relative.sigma).all()
    np.testing.assert_allclose(both.sigma, np.hypot(relative.sigma, alone.sigma[lowest]), rtol=0.03)


@pytest.mark.parametrize(("repeats", "width"), [(50, 0.15), pytest.param(500, 0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("skystat", few(2, STATISTICS))
def test_errors_are_real(skystat, repeats, width):
    """The width of (fitted - true) / sigma over noise skies, relative to the mean level."""
    pulls = []
    for seed in range(repeats):
        found = match_skies(mosaic(seed=1001 + seed), options(skystat=skystat, zero_point="mean"))
        pulls.append((found.level - (TRUE - TRUE.mean())) / found.sigma)
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=width)
    np.testing.assert_allclose(np.mean(pulls, axis=0), 0, atol=4 / np.sqrt(repeats))


@pytest.mark.parametrize("seed", range(3))
def test_adding_to_exposures_moves_their_levels(seed):
    shift = np.random.default_rng(seed).normal(0, 100, 5)
    one, two = (match_skies(mosaic(levels), options(zero_point="mean")).level for levels in (TRUE, TRUE + shift))
    np.testing.assert_allclose(two - one, shift - shift.mean(), atol=1e-6)


def test_multiplying_exposures_multiplies_their_levels():
    one, two = (
        match_skies([exposure(e.name, unit * e.read().data, tan(*p)) for e, p in zip(mosaic(), places, strict=True)])
        for unit in (1, 1e-20)
        for places in [[(0.0, 10.0)] * 5]
    )
    np.testing.assert_allclose(1e20 * two.level, one.level, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(1e20 * two.sigma, one.sigma, rtol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_exposures_does_not_matter(method):
    for groups in (["", "", "", "", ""], ["g", "g", "h", "", "h"]):
        exposures = mosaic(group=groups)
        order = np.random.default_rng(2).permutation(5)
        one = match_skies(exposures, options(skymethod=method))
        two = match_skies([exposures[k] for k in order], options(skymethod=method))
        np.testing.assert_allclose(two.level, one.level[order], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(two.sigma, one.sigma[order], rtol=1e-10)
        assert two.names == tuple(one.names[k] for k in order)
        assert two.status == tuple(one.status[k] for k in order)


@pytest.mark.parametrize("weights", ["variance", "npix", "robust"])
def test_threads_change_nothing(weights):
    one = match_skies(mosaic(), options(weights=weights))
    with threads(3) as work:
        two = match_skies(mosaic(), options(weights=weights), work=work)
    np.testing.assert_allclose(two.level, one.level, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(two.sigma, one.sigma, rtol=1e-10)


def test_splitting_a_mosaic_gives_two_components():
    shifts = [(0, 0), (40, 0), (400, 0), (440, 0)]
    split = [exposure(f"e{k}", noise(seed=k) + k, tan(shift=s)) for k, s in enumerate(shifts)]
    found = match_skies(split, options(zero_point_scope="component"))
    np.testing.assert_array_equal(found.component, [0, 0, 1, 1])
    np.testing.assert_allclose(found.level, [0, 1, 0, 1], atol=0.05)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("place", PLACES)
def test_twins(twin, place):
    ra, dec = PLACES[place]
    pair = [
        exposure("a", noise(seed=1, level=5), tan(ra, dec, angle=8)),
        exposure("b", noise(seed=2, level=7), tan(ra + TWINS[twin], dec, angle=8)),
    ]
    found = match_skies(pair, options(skystat="mean"))
    np.testing.assert_allclose(found.level, [0, 2], atol=0.02)
    assert found.pairs.npix[0] == pytest.approx(48 * 60, abs=5)


def test_pairs_and_residuals():
    found = match_skies(mosaic())
    pairs = found.pairs
    expected = {(0, 1), (1, 2), (3, 4), (0, 3), (1, 4), (0, 4), (1, 3), (2, 4)}
    assert {*zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)} == expected
    np.testing.assert_allclose(pairs.offset, TRUE[pairs.first] - TRUE[pairs.second], atol=0.03)
    expected = pairs.offset - (found.level[pairs.first] - found.level[pairs.second])
    np.testing.assert_allclose(found.residual, expected, atol=1e-12)


def test_robust_weights_ignore_a_pair_spoilt_by_a_ghost():
    """In a 3 x 3 mosaic, a ghost on the middle image where it overlaps with only the one below."""
    levels, exposures = np.arange(9.0), []
    for k, level in enumerate(levels):
        data = noise(seed=k, level=level, sigma=0.02)
        if k == 4:
            data[:8, 12:48] += 0.5
        exposures.append(exposure(f"e{k}", data, tan(shift=(50 * (k % 3), 40 * (k // 3)))))
    plain, robust = (match_skies(exposures, options(weights=w, zero_point="mean")) for w in ("variance", "robust"))
    error = [np.abs(found.level - (levels - 4)).max() for found in (plain, robust)]
    assert error[0] > 0.1
    assert error[1] < 0.02
    is_wrong = (robust.pairs.first == 1) & (robust.pairs.second == 4)
    share = robust.pairs.weight / robust.pairs.full_weight
    assert share[is_wrong][0] < 0.1 < np.median(share[~is_wrong])


# Zero points


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("auto", [2.5, 0.5, 3.5, 2.5, -2.5]),
        ("lowest", [2.5, 0.5, 3.5, 2.5, -2.5]),
        ("highest", [0, -2, 1, 0, -5]),
        ("mean", [1 / 3, -5 / 3, 4 / 3, 2.5, -2.5]),
        ("e01", [2, 0, 3, 2.5, -2.5]),
        ("e03", [1 / 3, -5 / 3, 4 / 3, 0, -5]),
    ],
)
@pytest.mark.parametrize("scope", ["global", "component"])
def test_zero_points(policy, expected, scope):
    """Both pieces have mean zero: 1/3 -5/3 4/3 and 2.5 -2.5; then the zero point is subtracted."""
    centred = np.array([1 / 3, -5 / 3, 4 / 3, 2.5, -2.5])
    pieces = [[0, 1, 2], [3, 4]] if scope == "component" else [[0, 1, 2, 3, 4]]
    zero = {"auto": np.min, "lowest": np.min, "highest": np.max, "mean": lambda level: 0}
    for piece in pieces:
        if policy in zero:
            centred[piece] -= zero[policy](centred[piece])
        elif int(policy[1:]) in piece:
            centred[piece] -= centred[int(policy[1:])]
        elif policy != "mean":
            centred[piece] -= centred[piece].min()
    found = match_skies(two_pieces(), options(zero_point=policy, zero_point_scope=scope))
    np.testing.assert_allclose(found.level, centred, atol=1e-5)


def test_auto_follows_match_down():
    for match_down, policy in ((True, "lowest"), (False, "highest")):
        one, two = (
            match_skies(two_pieces(), o).level for o in (options(match_down=match_down), options(zero_point=policy))
        )
        np.testing.assert_array_equal(one, two)


def test_zero_point_of_a_background():
    """The exposure next in time to a dedicated background has its level."""
    exposures = mosaic(time=[0.0, 1.0, 2.0, 3.0, 4.0])
    dark = exposure("bkg", noise(seed=50, level=0.5, sigma=0.02), tan(200.0), time=2.2, is_background=True)
    far = exposure("far", noise(seed=51, level=90, sigma=0.02), tan(100.0), time=44.0, is_background=True)
    found = match_skies([*exposures, dark, far], options(zero_point="background"))
    np.testing.assert_allclose(found.level[:5], TRUE - TRUE[2] + 0.5, atol=0.01)


@pytest.mark.parametrize("name", ["auto", "lowest", "mean"])
def test_a_policy_is_not_the_name_of_an_exposure(name):
    exposures = [replace(e, name=name) if e.name == "e02" else e for e in mosaic()]
    settings = options(zero_point=name, match_down=True)
    np.testing.assert_allclose(match_skies(exposures, settings).level, match_skies(mosaic(), settings).level)


def test_times_that_are_no_numbers():
    dark = exposure("bkg", noise(seed=50, level=0.5, sigma=0.02), tan(200.0), time=2.2, is_background=True)
    with pytest.raises(ValueError, match=r"needs the time of each exposure; e01 has none"):
        match_skies([*mosaic(time=[0.0, np.nan, 2.0, 3.0, 4.0]), dark], options(zero_point="background"))


def test_zero_point_of_backgrounds_of_one_time():
    """That of several detectors: the middle of what they say, in whatever order they are given."""
    exposures = mosaic(time=[3.0] * 5)
    dark = [
        exposure(f"bkg{k}", noise(seed=60 + k, level=level, sigma=0.02), tan(200.0 + k), time=4.0, is_background=True)
        for k, level in enumerate((0.3, 0.5, 2.0))
    ]
    every = [*exposures, *dark]
    found = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(every))
        match = match_skies([every[i] for i in order], options(zero_point="background"))
        found.append(match.level[np.argsort(order)])
    np.testing.assert_allclose(found, found[:1] * 6, rtol=1e-10)
    assert np.median(found[0][:5]) == pytest.approx(0.5, abs=0.02)


def test_zero_point_of_an_exposure_in_a_group():
    """The named exposure has level zero whatever its group's number is."""
    exposures = mosaic([3.0, 1.0, 1.0, 1.5, 9.0], group=["", "g", "g", "", ""])
    for name, level in (("e02", 1.0), ("e04", 9.0)):
        found = match_skies(exposures, options(zero_point=name))
        np.testing.assert_allclose(found.level, np.array([3, 1, 1, 1.5, 9]) - level, atol=0.01)
        assert found.level[int(name[1:])] == 0


# Groups


def test_a_group_shares_a_level():
    """Members measure 1 and 1.4 against their neighbours; together they have one level."""
    exposures = mosaic(group=["g", "g", "", "", ""])
    found = match_skies(exposures, options(level_per="exposure"))
    assert found.groups[0] == found.groups[1] != found.groups[2]
    assert found.level[0] == found.level[1]
    apart = match_skies(exposures, options(level_per="detector"))
    np.testing.assert_allclose(apart.level, TRUE - 1, atol=0.01)
    assert len(set(apart.groups)) == 5


def test_a_member_that_overlaps_nothing_is_adjusted_with_its_group():
    exposures = [
        exposure("a1", noise(level=5), tan(), group="a"),
        exposure("a2", noise(level=5), tan(50.0), group="a"),
        exposure("b1", noise(level=8), tan(shift=(20, 0)), group="b"),
    ]
    found = match_skies(exposures)
    np.testing.assert_allclose(found.level, [0, 0, 3], atol=0.05)
    assert found.status == ("matched",) * 3
    assert list(match_skies(exposures, options(level_per="detector")).component) == [0, -1, 0]


def test_local_sky_of_a_group_is_its_least():
    exposures = mosaic(group=["g", "g", "g", "", ""])
    found = match_skies(exposures, options(skymethod="local"))
    np.testing.assert_allclose(found.level, [1, 1, 1, 1.5, 9], atol=0.01)
    assert found.status == ("measured",) * 5


def on_grid(corner, size, sky_shape=(200, 200)):
    """Pixels of the sky that an image covers, on the common pixel grid."""
    covered = np.zeros(sky_shape, dtype=bool)
    covered[corner[1] : corner[1] + size[0], corner[0] : corner[0] + size[1]] = True
    return covered


@pytest.mark.parametrize("seed", range(4))
def test_a_pixel_in_two_overlaps_of_a_group_counts_once(seed):
    rng = np.random.default_rng(seed)
    names = ["a1", "a2", "a3", "b1", "b2", "c1"]
    corners = rng.integers(60, 100, (6, 2))
    exposures = [exposure(n, noise(seed=k), tan(shift=tuple(corners[k] - 80)), group=n[0]) for k, n in enumerate(names)]
    order = rng.permutation(6)
    found = match_skies([exposures[k] for k in order], options(nclip=0, skystat="mean"))
    counted = {}
    for i, j, npix in zip(found.pairs.first, found.pairs.second, found.pairs.npix, strict=True):
        counted[tuple(sorted((found.names[i], found.names[j])))] = npix
    assert counted == first_members_count(names, [on_grid(c, SHAPE) for c in corners])


def first_members_count(names, covered):
    """Pixels of sky that two groups have in common, by the first member of each that covers them."""
    owner = {}
    for group in "abc":
        first = np.full(covered[0].shape, -1)
        for k in reversed([k for k, name in enumerate(names) if name[0] == group]):
            first[covered[k]] = k
        owner[group] = first
    counts = {}
    for one, two in ("ab", "ac", "bc"):
        both = (owner[one] >= 0) & (owner[two] >= 0)
        for i, j in zip(owner[one][both], owner[two][both], strict=True):
            counts[names[i], names[j]] = counts.get((names[i], names[j]), 0) + 1
    return counts


def test_groups_are_not_compared_with_themselves():
    found = match_skies(mosaic(group=["g", "g", "g", "h", "h"]))
    groups = found.groups
    assert (groups[found.pairs.first] != groups[found.pairs.second]).all()
    alone = match_skies(mosaic(group=["g"] * 5))
    assert len(alone.pairs.offset) == 0
    assert alone.status == ("no overlap",) * 5


# Holes: jwst issue 10259


def nebula_exposures(shifts, levels):
    """A steep, curved sky seen through a detector of which a corner is dead, at whole-pixel shifts."""
    y, x = np.indices((96, 96))
    good = np.ones((96, 96), dtype=bool)
    good[:48, :40] = False
    good[64:80, 72:88] = False
    made = []
    for k, ((dx, dy), level) in enumerate(zip(shifts, levels, strict=True)):
        sky = 0.05 * (x + dx) + 0.001 * (y + dy) ** 2
        made.append(exposure(f"m{k}", sky + level, tan(shape=(96, 96), shift=(dx, dy)), good=good))
    return made


@pytest.mark.parametrize("skystat", ["mean", "median"])
def test_good_overlaps_see_the_same_sky(skystat):
    levels = np.array([2.0, 5.0, 3.0])
    exposures = nebula_exposures([(0, 0), (30, 20), (-17, 33)], levels)
    error = {}
    for overlap in ("good", "exact", "footprint"):
        found = match_skies(exposures, options(overlap=overlap, skystat=skystat, nclip=0)).level
        error[overlap] = np.abs(found - (levels - 2)).max()
    assert error["good"] < 0.01
    assert error["exact"] < 0.01
    assert error["footprint"] > 0.3


def test_masked_pixels_are_not_measured():
    """Bad pixels hold nonsense: half of the image, in a pattern that no outline follows."""
    exposures = []
    for k, level in enumerate([1.0, 6.0]):
        data, good = noise(seed=k, level=level), np.random.default_rng(k).random(SHAPE) < 0.5
        data[~good] = 1e3 * (k + 1)
        exposures.append(exposure(f"e{k}", data, tan(shift=(7 * k, 0)), good=good))
    for method, expected in (("match", [0, 5]), ("local", [1, 6])):
        found = match_skies(exposures, options(skymethod=method, skystat="mean", nclip=0))
        np.testing.assert_allclose(found.level, expected, atol=0.02)


def test_without_a_mask_the_finite_pixels_are_good():
    """So outlines follow what is NaN, and the other exposure is not measured there either."""
    data = IMAGES["large hole"]()
    assert not exposure("hole", data, tan()).read().good[20, 20]
    other = noise(seed=2, level=4)
    other[16:32, 16:40] = 1e3
    found = match_skies(
        [exposure("hole", data, tan()), exposure("other", other, tan())], options(skystat="mean", nclip=0)
    )
    np.testing.assert_allclose(found.level, [6, 0], atol=0.02)


# Ordinary misfortune


def test_an_exposure_that_overlaps_nothing():
    found = match_skies([*mosaic(), exposure("far", noise(), tan(200.0))])
    np.testing.assert_allclose(found.level[:5], TRUE - 1, atol=0.01)
    assert np.isnan(found.level[5])
    assert found.status == (*["matched"] * 5, "no overlap")
    assert found.component[5] == -1
    assert found.sky[5] == pytest.approx(10, abs=0.02)


@pytest.mark.parametrize("kind", ["flagged", "NaN"])
def test_an_exposure_without_good_pixels(kind):
    bad = noise() if kind == "flagged" else np.full(SHAPE, np.nan)
    blank = exposure("bad", bad, tan(0.0, 60.0), good=np.zeros(SHAPE, dtype=bool))
    for method, expected in (("match", TRUE - 1), ("local", TRUE)):
        found = match_skies([blank, *mosaic()], options(skymethod=method))
        np.testing.assert_allclose(found.level[1:], expected, atol=0.01)
        assert np.isnan(found.level[0])
        assert found.npix[0] == 0
        assert found.status[0] == "no good pixels"


def test_nan_pixels_that_are_called_good():
    """The mask says good, the pixels are NaN: status, not a crash."""
    liar = exposure("liar", np.full(SHAPE, np.nan), tan(0.0, 60.0), good=np.ones(SHAPE, dtype=bool))
    found = match_skies([liar, *mosaic()])
    np.testing.assert_allclose(found.level[1:], TRUE - 1, atol=0.01)
    assert found.status[0] == "no good pixels"


def test_one_exposure_and_no_overlaps_at_all():
    for exposures in (
        [exposure("a", noise(), tan())],
        [exposure(n, noise(), tan(ra)) for n, ra in (("a", 1), ("b", 9))],
    ):
        found = match_skies(exposures)
        assert set(found.status) == {"no overlap"}
        assert np.isnan(found.level).all()
        local = match_skies(exposures, options(skymethod="local"))
        np.testing.assert_allclose(local.level, 10, atol=0.02)


def test_all_exposures_without_good_pixels():
    for method in METHODS:
        found = match_skies([exposure(n, np.full(SHAPE, np.nan), tan()) for n in "ab"], options(skymethod=method))
        assert found.status == ("no good pixels",) * 2
        assert np.isnan(found.level).all()


def test_global_match_of_an_exposure_that_overlaps_nothing():
    """It counts as matched at zero: the lowest sky that remains is that of all."""
    lonely = constants([40], [(0, 0)], start=9, place=(200.0, 0.0))
    found = match_skies(constants([50, 60], [(0, 0), (1, 0)]) + lonely, options(skymethod="global+match"))
    np.testing.assert_allclose(found.level, [40, 50, 40], atol=1e-5)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_image(kind):
    """Each kind against a plain image that covers it, whose level is 2 lower."""
    data = IMAGES[kind]()
    scale = 100.0 if np.median(data) > 500 else 1.0
    level = 7.0 if kind == "constant" else 10.0
    big = exposure("big", noise((81, 91), level=scale * (level - 2), sigma=0.1 * scale), tan(0.0, 5.0, shape=(81, 91)))
    odd = exposure("odd", data, tan(0.0, 5.0, shape=data.shape, angle=4))
    found = match_skies([big, odd], options(skystat="mean"))
    if kind in EMPTY:
        assert found.status == ("no overlap", "no good pixels")
    else:
        tolerance = 0.5 if data.size == 1 else 0.07
        np.testing.assert_allclose(found.level, [0, 2 * scale], atol=tolerance * scale)


# Misuse


def test_no_exposures():
    with pytest.raises(ValueError, match="no exposures"):
        match_skies([])


def test_a_table_prints():
    apart = constants([7], [(0, 0)], start=5, place=(180.0, 20.0))
    lines = str(match_skies([*mosaic(), *apart], options(skymethod="match"))).splitlines()
    assert len(lines) == 6
    assert lines[4].split()[0] == "e04"
    assert float(lines[4].split()[2]) == pytest.approx(9 - TRUE.min(), abs=0.01)
    assert lines[5].endswith("no overlap")


def test_duplicate_names():
    exposures = mosaic()
    with pytest.raises(ValueError, match="e02"):
        match_skies([*exposures, exposures[2]])


@pytest.mark.parametrize(
    "bad",
    [
        {"skymethod": "mean"},
        {"skystat": "average"},
        {"overlap": "all"},
        {"level_per": "pixel"},
        {"zero_point_scope": "here"},
        {"weights": "none"},
        {"nclip": -1},
        {"lsigma": 0},
        {"usigma": -2.0},
        {"binwidth": 0.0},
        {"binwidth": float("nan")},
        {"stepsize": 0},
        {"lower": 3.0, "upper": 2.0},
        {"skymethod": "local", "zero_point": "lowest"},
    ],
)
def test_bad_options(bad):
    """The message names the option."""
    with pytest.raises(ValueError, match=list(bad)[-1]):
        options(**bad)


def test_unknown_zero_point():
    with pytest.raises(ValueError, match=r"zero_point='e77'.*e00"):
        match_skies(mosaic(), options(zero_point="e77"))


def test_background_zero_point_needs_backgrounds_with_times():
    with pytest.raises(ValueError, match="background"):
        match_skies(mosaic(time=[0.0] * 5), options(zero_point="background"))
    with pytest.raises(ValueError, match="e01"):
        match_skies(
            mosaic(time=[0.0, None, 0.0, 0.0, 0.0], is_background=[True] + 4 * [False]),
            options(zero_point="background"),
        )


def test_data_of_wrong_dimension():
    with pytest.raises(ValueError, match=r"cube.*2 dimensions"):
        exposure("cube", np.zeros((2, 3, 4)), tan())
    with pytest.raises(ValueError, match=r"odd.*\(4, 3\).*\(3, 4\)"):
        exposure("odd", np.zeros((3, 4)), tan(), good=np.ones((4, 3), dtype=bool))


def test_wcs_error_names_the_exposure():
    lost = Exposure.from_arrays("lost", noise(), lambda x, y: (x * np.nan, y))
    with pytest.raises(ValueError, match=r"lost.*not finite"):
        match_skies([*mosaic(), lost])


def test_inputs_are_left_alone():
    exposures = mosaic()
    before = [e.read().data.copy() for e in exposures]
    match_skies(exposures)
    for e, data in zip(exposures, before, strict=True):
        np.testing.assert_array_equal(e.read().data, data)


def test_a_long_strip_keeps_its_levels():
    """Errors do not pile up other than at random: the levels of a chain of 40 images."""
    levels = np.random.default_rng(3).normal(0, 5, 40)
    chain = [
        exposure(f"c{k:02d}", noise(seed=k, level=v, sigma=0.01), tan(0.0, 88.0, shift=(40 * k - 800, 0)))
        for k, v in enumerate(levels)
    ]
    found = match_skies(chain, options(zero_point="mean"))
    pairs = {*zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True)}
    assert pairs == set(pairwise(range(40)))
    assert np.abs((found.level - (levels - levels.mean())) / found.sigma).max() < 4.5


def test_robust_weights_survive_a_ghost_in_several_overlaps():
    """The ghost covers an edge of the middle image: three of its overlaps are wrong, the others outvote them."""
    rng = np.random.default_rng(0)
    sky = rng.normal(0, 0.02, (9, 60, 60))
    sky[4, :8] += 0.5
    exposures = [
        Exposure.from_arrays(f"e{k}", data, lambda x, y, k=k: ((x + 45 * (k % 3)) / 36000, (y + 45 * (k // 3)) / 36000))
        for k, data in enumerate(sky)
    ]
    options = {"skystat": "median", "nclip": 0, "zero_point": "mean"}
    plain = match_skies(exposures, SkyMatchOptions(**options))
    robust = match_skies(exposures, SkyMatchOptions(**options, weights="robust"))
    assert np.abs(plain.level).max() > 0.02
    assert np.abs(robust.level).max() < 0.005


@pytest.mark.parametrize("method", ["match", "global+match"])
def test_errors_hold_the_rounding_that_an_absurd_exposure_leaves(method):
    """One of 1e30 takes the digits of the others: their errors say so."""
    exposures = mosaic()
    exposures[2] = exposure("e02", np.full(SHAPE, 1e30), tan(0.0, 60.0, shift=(80, 0)))
    found = match_skies(exposures, options(skymethod=method, zero_point="auto"))
    apart = found.level - TRUE
    others = [0, 1, 3, 4]
    assert (np.abs(apart[others] - apart[0]) < 10 * found.sigma[others]).all()
    assert (match_skies(mosaic(), options()).sigma < 0.01).all()
