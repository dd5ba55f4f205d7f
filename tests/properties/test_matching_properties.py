"""What must hold for any images, however they are matched: sky matching and level matching with random options."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ledger import note
from strategies import (
    PLACES,
    SEEDS,
    STATISTICS,
    WAYS,
    Fit,
    LevelWay,
    Pointing,
    Scene,
    SkyWay,
    costly,
    laid_out,
    less_mean,
    level_ways,
    make_scene,
    rounded,
    same_sets,
    scenes,
    sky_ways,
)

from bkgmatch.options import LevelMatchOptions, SkyMatchOptions

EXACT = 1e-9  # of the largest value: sums in double precision
SINGLE = 4e-7  # of the largest value: values in single precision, rounded a few times

every_way = pytest.mark.parametrize("way", WAYS)


def scale(scene: Scene) -> float:
    """Largest good value, at least the noise."""
    pairs = zip(scene.data, scene.good, strict=True)
    return max([scene.noise, *(float(np.abs(d[g]).max()) for d, g in pairs if g.any())])


def assert_same(one: Fit, two: Fit, atol: float, *, sigmas: float = 0.0, rtol: float = 1e-4) -> None:
    """The same sets, statuses, values (to an absolute and a relative tolerance, in errors) and errors."""
    assert two.status == one.status
    assert same_sets(one.component, two.component)
    there = one.matched
    apart = np.abs(two.values - one.values)[there]
    assert (apart <= atol + sigmas * one.sigma[there]).all(), (one.values, two.values, one.sigma)
    np.testing.assert_allclose(two.sigma[there], one.sigma[there], rtol=rtol, atol=atol)


@every_way
@costly
@given(data=st.data())
def test_adding_a_constant_moves_a_level_by_exactly_that(way, data):
    """Less the mean over the component, which is the zero point; neither errors nor sets change."""
    match, scene = data.draw(WAYS[way]), data.draw(scenes())
    added = rounded(
        data.draw(st.sampled_from([1.0, 100.0])) * np.random.default_rng(len(scene)).normal(size=len(scene))
    )
    moved = scene.with_data(lambda i, d: d + added[i])
    one, two = match(scene), match(moved)
    expected = one.values.copy()
    expected[:, 0] += less_mean(added.astype(float), one.component)
    assert_same(one._replace(values=expected), two, SINGLE * scale(moved), sigmas=match.slack, rtol=match.slack)
    note("properties", f"adding a constant: {way}")


@every_way
@costly
@given(data=st.data())
def test_the_order_of_the_input_does_not_matter(way, data):
    match, scene = data.draw(WAYS[way]), data.draw(scenes(2))
    order = data.draw(st.permutations(range(len(scene))))
    one, two = match(scene), match(scene.take(order))
    expected = Fit(*(np.asarray(a)[order] for a in one[:4]), None)._replace(status=tuple(one.status[k] for k in order))
    assert_same(expected, two, 1e-10 * scale(scene), rtol=1e-10)
    note("properties", f"order of input: {way}")


@every_way
@costly
@given(data=st.data())
def test_two_mosaics_far_apart_are_matched_each_as_alone(way, data):
    """
    Exactly so with one kind of function.

    Where some pass fits planes, those are what the noise is measured about, and outliers, also in mosaics without it.
    """
    match = data.draw(WAYS[way])
    parts = [
        data.draw(scenes(1, 4)),
        data.draw(scenes(1, 4)).renamed("f").moved(data.draw(st.sampled_from(list(PLACES.values())))),
    ]
    both = match(parts[0] + parts[1])
    start = 0
    for part in parts:
        alone, here = match(part), slice(start, start + len(part))
        inside = Fit(both.status[here], *(a[here] for a in both[1:4]), None)
        if match.one_function:
            assert_same(alone, inside, 1e-10 * scale(part), rtol=1e-8)
        else:
            assert_same(alone, inside, SINGLE * scale(part), sigmas=1.0, rtol=0.5)
        start += len(part)
    note("properties", f"mosaics far apart: {way}")


@every_way
@costly
@given(data=st.data())
def test_without_the_exposure_that_links_them_two_mosaics_are_two_components(way, data):
    match, seed = data.draw(WAYS[way]), data.draw(SEEDS)
    left, right = (make_scene(seed + k, 2, size=(24, 40), spread=0.1) for k in range(2))
    gap = 90.0
    right = right.renamed("f").with_pointings(lambda p: Pointing(p.shape, (p.shift[0] + gap, p.shift[1]), p.angle))
    bridge = Pointing((18, 100), (gap / 2, 0.0))
    link = make_scene(seed + 2, 1, pointings=[bridge]).renamed("link")
    linked, split = match(left + right + link), match(left + right)
    assert len(set(linked.component)) == 1
    assert linked.component[0] >= 0
    assert same_sets(split.component, np.array([0, 0, 1, 1]))
    for pair, some in ((left, slice(0, 2)), (right, slice(2, 4))):
        alone = match(pair)
        apart = np.abs(split.values[some] - alone.values)
        assert (apart <= SINGLE * scale(pair) + 3 * alone.sigma).all(), (split.values[some], alone.values, alone.sigma)
    note("properties", f"linking exposure removed: {way}")


@every_way
@costly
@given(data=st.data())
def test_units_scale_levels_and_errors(way, data):
    match, scene = data.draw(WAYS[way]), data.draw(scenes(levels=data.draw(st.sampled_from([0.0, 10.0]))))
    factor = data.draw(st.sampled_from([1e-20, 1e-6, 0.37, 1e6, 1e20]))
    one, two = match(scene), match(scene.times(factor))
    two = two._replace(values=two.values / factor, sigma=two.sigma / factor)
    assert_same(one, two, SINGLE * scale(scene), sigmas=match.slack, rtol=match.slack)
    note("properties", f"units: {way}")


@pytest.mark.parametrize(
    ("way", "ways", "sigmas", "rtol"),
    [("sky match", sky_ways(), 2.0, 0.2), ("level match", level_ways(do_sigma_clip=False), 1.0, 0.1)],
)
@costly
@given(data=st.data())
def test_the_negative_of_the_data_has_the_negative_levels(way, ways, sigmas, rtol, data):
    """
    Statistics that are not symmetric, as histograms that start at the least pixel, within the errors.

    Sources, which are bright, are not masked.
    """
    match, scene = data.draw(ways), data.draw(scenes(rays=0.0))
    one, two = match(scene), match(scene.with_data(lambda _, d: -d))
    assert_same(one, two._replace(values=-two.values), SINGLE * scale(scene), sigmas=sigmas, rtol=rtol)
    note("properties", f"negative data: {way}")


@every_way
@costly
@given(data=st.data())
def test_the_place_on_the_sky_does_not_matter(way, data):
    """
    The same pixels on the same plane, tangential to the sky elsewhere.

    Coordinates in degrees are rounded by 1e-9 pixels. Where the pixels of all exposures coincide this decides whether
    cells at edges and beside bad pixels have values; such scenes are left out.
    """
    match, scene = data.draw(WAYS[way]), data.draw(scenes(2, aligned=False))
    two = match(scene.moved(PLACES[data.draw(st.sampled_from(list(PLACES)))]))
    assert_same(match(scene), two, SINGLE * scale(scene), sigmas=match.slack, rtol=match.slack)
    note("properties", f"place on the sky: {way}")


@every_way
@costly
@given(data=st.data())
def test_a_twin_gets_the_same_correction_and_disturbs_none(way, data):
    """
    The others move within their errors and that of their mean, for the twin's overlaps count twice; planes that no pass
    fits stay 0.

    Exposures with a common cell or two may have none on the grid that has its middle elsewhere.
    """
    match, scene = data.draw(WAYS[way]), data.draw(scenes(2, 7, dead=False))
    n, k = len(scene), data.draw(st.integers(0, len(scene) - 1))
    one, two = match(scene), match(scene + scene.take([k]).renamed("twin of "))
    assert two.component[n] == two.component[k]
    tolerance = SINGLE * scale(scene)
    np.testing.assert_allclose(two.values[n], two.values[k], rtol=0, atol=tolerance)
    np.testing.assert_allclose(two.sigma[n], two.sigma[k], rtol=match.slack, atol=tolerance)
    if same_sets(one.component, two.component[:n]):
        sigma = np.maximum(one.sigma, two.sigma[:n])
        for c in range(sigma.shape[1]):
            fitted = one.matched & (sigma[:, c] > 0)
            component = np.where(fitted, one.component, -1)
            old, new = (less_mean(fit.values[:n, c], component)[fitted] for fit in (one, two))
            of_mean = (sigma[:, c] - less_mean(sigma[:, c], component))[fitted]
            limit = tolerance + 6 * np.maximum(sigma[fitted, c], of_mean)
            assert (np.abs(new - old) <= limit).all(), (old, new, one.sigma)
        note("properties", f"twins: {way}")


@pytest.mark.parametrize("seed", range(5))
def test_twins_do_not_have_all_weight(seed):
    """Weights are inverse squares of what pairs leave, which is nothing for twins."""
    scene = make_scene(seed, 3, spread=0.02, bad=0.0, dead=False, nebula=0.0, aligned=False, known=False, rays=0.0)
    fit = LevelWay(LevelMatchOptions(weight_method="rms"))(scene + scene.take([1]).renamed("twin of "))
    np.testing.assert_allclose(fit.values[3], fit.values[1], rtol=0, atol=SINGLE * scale(scene))
    np.testing.assert_allclose(fit.sigma[3], fit.sigma[1], rtol=1e-4, atol=0)


CONSTANTS = {"fit_type_dithers": "level", "fit_type_mosaic_tiles": "level", "passes": "joint"}
TRUSTING = {"sky match": sky_ways(weights="variance"), "level match": level_ways(weight_method="ml", **CONSTANTS)}


@pytest.mark.parametrize("way", TRUSTING)
@costly
@given(data=st.data())
def test_an_exposure_of_another_scale_disturbs_none(way, data):
    """
    Whose unit is wrong by a large factor. It has its own level, which takes digits from those of all, or none.

    Not where it alone, or a few cells, link the others, or those of a tile: it is too noisy for that.
    """
    match, scene = data.draw(TRUSTING[way]), data.draw(scenes(3, 6, dead=False, nebula=0.0, rays=0.0))
    k = data.draw(st.integers(0, len(scene) - 1))
    factor = data.draw(st.sampled_from([1e-30, 1e-12, 1e6, 1e12, 1e30]))
    alone = match(without(scene, k))
    assume(set(alone.component) == {0} and alone.result.pairs.npix.min() > 10)
    assert_others_stay(match, scene, in_unit(scene, k, factor), k)
    note("properties", f"another scale: {way}")


def without(scene: Scene, k: int) -> Scene:
    return scene.take([i for i in range(len(scene)) if i != k])


def in_unit(scene: Scene, k: int, factor: float) -> Scene:
    """The same with one exposure in another unit."""
    parts = (scene.take([i]) for i in range(len(scene)))
    return reduce(Scene.__add__, (part.times(factor) if i == k else part for i, part in enumerate(parts)))


def assert_others_stay(match, scene: Scene, changed: Scene, k: int) -> None:
    """Levels relative to each other are those without the one that has been changed, but for lost digits."""
    one, two = match(without(scene, k)), match(changed)
    others = np.arange(len(scene)) != k
    assert two.matched[others].all()
    old, new = (less_mean(values, one.component) for values in (one.values, two.values[others]))
    near = np.abs(new - old) <= SINGLE * scale(scene) + 6 * one.sigma + 1e-15 * np.nan_to_num(np.abs(two.values)).max()
    assert near.all(), (one.values, two.values)


LEVELS = LevelWay(LevelMatchOptions(reference="mean", do_local_subtraction=False))
LARGE = {"spread": 0.2, "size": (40, 64), "one_shape": True}


@pytest.mark.parametrize(
    ("match", "scene", "k", "factor"),
    [
        (LEVELS, make_scene(1, 5, **LARGE), 4, 1e12),
        (LEVELS, make_scene(0, 4, spread=0.2), 0, 1e6),
        (LEVELS, make_scene(0, 4, spread=0.2, bad=0.03), 0, 1e6),
        (LEVELS, make_scene(48, 3, spread=0.02, known=True), 0, 1e30),
        (SkyWay(SkyMatchOptions(skystat="mean", zero_point="mean")), make_scene(0, 3, spread=0.02), 0, 1e12),
    ],
)
def test_scenes_in_which_an_exposure_of_another_scale_did_disturb_others(match, scene, k, factor):
    assert_others_stay(match, scene, in_unit(scene, k, factor), k)


def test_errors_that_are_much_too_small_are_seen_in_three_exposures():
    """The scatter of pairs tells; two of three are with the exposure whose ERR is wrong."""
    scene = make_scene(0, 3, spread=0.02, known=True)
    changed = scene.with_data(lambda i, d: d.astype(float) * (1e6 if i == 0 else 1))
    assert_others_stay(LEVELS, scene, changed, 0)


@every_way
@costly
@given(data=st.data())
def test_masking_more_pixels_changes_nothing_beyond_errors(way, data):
    """But for planes: what no longer has common cells with its tile has none, 0 with errors of 0."""
    match, scene = data.draw(WAYS[way]), data.draw(scenes(2, dead=False, rays=0.0))
    rng = np.random.default_rng(data.draw(SEEDS))
    part = data.draw(st.sampled_from([0.05, 0.2, 0.5]))
    fewer = scene.masked([rng.random(d.shape) < part for d in scene.data])
    one, two = match(scene), match(fewer)
    if same_sets(one.component, two.component):
        near = np.abs(two.values - one.values) <= SINGLE * scale(scene) + 6 * two.sigma
        near |= (np.abs(two.values) < 1e-12) & (two.sigma == 0)
        assert near[one.matched].all(), (one, two)
        note("properties", f"fewer pixels: {way}")


KINDS = ["f4", "f8", ">f4", ">f8", "i4", ">i2", "u2", "f2"]


@every_way
@costly
@given(data=st.data())
def test_the_kind_of_numbers_and_their_layout_do_not_matter(way, data):
    match, scene = data.draw(WAYS[way]), data.draw(scenes(2, bad=0.0, dead=False))
    scene = scene.with_data(lambda _, d: np.clip(np.rint(d * 8 + 500), 0, 2000).astype(np.float32))
    kind = data.draw(st.sampled_from(KINDS))
    layout = data.draw(st.sampled_from(["C", "Fortran", "strided", "reversed", "read-only"]))
    one, two = match(scene), match(scene.with_data(lambda _, d: laid_out(d.astype(kind), layout)))
    assert_same(one, two, SINGLE * scale(scene), sigmas=match.slack, rtol=match.slack)
    note("properties", f"kind of numbers: {way}")


# The zero point of each policy


@pytest.mark.parametrize("method", ["local", "global", "match", "global+match"])
@costly
@given(data=st.data())
def test_each_zero_point_of_sky_matching_follows_what_is_added(method, data):
    """Relative levels move by what is added less its mean; each policy makes of them what its description says."""
    scene = data.draw(scenes(2, 6, dead=False, rays=0.0))
    n = len(scene)
    scene = scene.with_fields(group=data.draw(st.lists(st.sampled_from(["", "", "g", "h"]), min_size=n, max_size=n)))
    options = SkyMatchOptions(
        match_down=data.draw(st.booleans()),
        zero_point_scope=data.draw(st.sampled_from(["global", "component"])),
        skystat=data.draw(st.sampled_from(STATISTICS)),
        zero_point="mean",
    )
    mean = SkyWay(options)
    relative = mean(scene)
    groups = relative.result.groups
    added = rounded(np.random.default_rng(n).normal(0, 5, n))[groups]
    moved = scene.with_data(lambda i, d: d + added[i])
    first = np.unique(groups, return_index=True)[1]  # one exposure of each group
    steps = less_mean(added[first].astype(float), relative.component[first])[groups]
    tolerance = SINGLE * scale(moved) + mean.slack * np.nan_to_num(relative.sigma[:, 0])
    again = mean(moved)
    assert (np.abs(again.values[:, 0] - relative.values[:, 0] - steps) <= tolerance)[relative.matched].all()
    policies = ["auto", "lowest", "highest", "mean", "e0"] if method == "match" else ["auto"]
    for policy in policies:
        match = SkyWay(replace(options, skymethod=method, zero_point=policy))
        if policy == "e0" and not relative.matched[0]:
            with pytest.raises(ValueError, match="overlaps no other"):
                match(moved)
            continue
        found, sky = match(moved), relative.result.sky + added
        np.testing.assert_allclose(found.result.sky, sky, rtol=0, atol=SINGLE * scale(moved))
        level = relative.values[:, 0] + steps
        expected = by_policy(match.options, scene.names, groups, relative.component, level, sky)
        np.testing.assert_allclose(found.values[:, 0], expected, rtol=0, atol=3 * tolerance.max())
        note("properties", f"zero point: {method}, {'of an exposure' if policy == 'e0' else policy}")


def by_policy(options, names, groups, component, relative, sky):
    """Levels as the documentation describes them, of relative levels with mean zero over each component."""
    lowest = np.array([sky[groups == g].min() for g in groups])
    if options.skymethod == "local":
        return lowest
    if options.skymethod == "global":
        return np.full(len(sky), lowest.min())
    level, named = relative.copy(), names.index(options.zero_point) if options.zero_point in names else None
    down = options.zero_point == "lowest" or (options.zero_point != "highest" and options.match_down)
    one_set = options.zero_point_scope == "global"
    for some in [component >= 0] if one_set else [component == c for c in range(component.max(initial=-1) + 1)]:
        if options.zero_point == "mean" or not some.any():
            continue
        zero = relative[named] if named is not None and some[named] else (min if down else max)(relative[some])
        level[some] -= zero
    if options.skymethod == "match":
        return level
    level = np.where(component < 0, 0, level)
    left = lowest - level
    alone = component < 0
    base = [
        left.min()
        if one_set
        else left[groups == groups[i]].min()
        if alone[i]
        else left[component == component[i]].min()
        for i in range(len(sky))
    ]
    return level + base


@costly
@given(data=st.data())
def test_each_reference_of_level_matching_follows_what_is_added(data):
    """
    With local subtraction the reference becomes zero, and each is moved by what was added to it; without it the
    reference stays, and the others are moved by what was added to them less what was added to it.
    """
    local, reference = data.draw(st.booleans()), data.draw(st.sampled_from(["auto", "e1", "most_overlaps", "flattest"]))
    match = data.draw(level_ways(reference=reference, do_local_subtraction=local))
    scene = data.draw(scenes(2, 6, dead=False))
    added = rounded(np.random.default_rng(len(scene)).normal(0, 5, len(scene)))
    moved = scene.with_data(lambda i, d: d + added[i])
    one, two = match(scene), match(moved)
    assert two.result.reference == one.result.reference
    steps = added.astype(float)
    if not local:
        tiles = np.array([match.tile(name) or name for name in scene.names])
        for c, name in enumerate(one.result.reference):
            steps[one.component == c] -= added[(one.component == c) & (tiles == name)].mean()
    expected = one.values.copy()
    expected[:, 0] += steps
    assert_same(one._replace(values=expected), two, SINGLE * scale(moved), sigmas=match.slack, rtol=match.slack)
    note("properties", f"reference: {reference}, {'its background' if local else 'zero'}")


@costly
@given(data=st.data())
def test_adding_a_plane_moves_a_plane_by_that(data):
    """
    Less the mean plane of the component, within the errors for tilts that the overlaps determine.

    The weak prior draws tilts towards the mean by (error / width of the prior)^2 of their size. Its width is three
    times the rms of the tilts; those whose error is more than half of it are loose. What is a part of the noise between
    pixels, as tilts are, changes which cells are outliers: of a few hundred cells, one more is a third of an error.
    """
    match = data.draw(level_ways(passes="joint", fit_type_dithers="level+slope"))
    scene = data.draw(scenes(2, 6, dead=False, spread=data.draw(st.sampled_from([0.02, 0.2])), size=(24, 64)))
    rng = np.random.default_rng(data.draw(SEEDS))
    planes = scene.noise * rng.normal(size=(len(scene), 3)) * [100, 0.1, 0.1]
    pixels = [p.pixels() for p in scene.pointings]
    moved = scene.with_data(
        lambda i, d: (d + planes[i, 0] + planes[i, 1] * pixels[i][0] + planes[i, 2] * pixels[i][1]).astype(np.float32)
    )
    one, two = match(scene), match(moved)
    assert same_sets(one.component, two.component)
    apart = less_mean(planes, one.component)
    at = np.array([p.shift for p in scene.pointings])
    steps = np.column_stack([apart[:, 0] + np.sum(apart[:, 1:] * at, axis=1), apart[:, 1:] / 0.1])  # per arcsec
    loose = one.result.loose | two.result.loose
    firm = one.matched & ~np.isin(one.component, one.component[loose])
    excess = np.abs(two.values - one.values - steps)[firm] - SINGLE * scale(moved) * np.array([1, 10, 10])
    assert (excess <= 1.5 * one.sigma[firm]).all(), excess / one.sigma[firm]
    note("properties", "adding a plane: level match")


# Dedicated backgrounds


def with_backgrounds(scene: Scene, seed: int, n: int) -> Scene:
    """The same with times, and dedicated backgrounds elsewhere, each at another time."""
    backgrounds = make_scene(seed, n, size=(16, 40), spread=0.1).renamed("b").moved(PLACES["elsewhere, turned"])
    both = scene + backgrounds
    times = np.random.default_rng(seed).uniform(0, 100, len(both))  # no two gaps are the same
    is_background = np.arange(len(both)) >= len(scene)
    return both.with_fields(time=times.tolist(), is_background=is_background.tolist())


def anchors(scene: Scene, component: np.ndarray, scope: str) -> tuple[np.ndarray, np.ndarray]:
    """For each exposure: of its set the science exposure nearest in time to a background, and that background."""
    is_background = np.array([f["is_background"] for f in scene.fields])
    time = np.array([f["time"] for f in scene.fields])
    sets = component if scope == "component" else np.minimum(component, 0)
    target, background = np.full((2, len(scene)), -1)
    for one in np.unique(sets[sets >= 0]):
        inside = np.flatnonzero((sets == one) & ~is_background)
        pairs = [(abs(time[i] - time[b]), i, b) for i in inside for b in np.flatnonzero(is_background)]
        if pairs:
            _, target[sets == one], background[sets == one] = min(pairs)
    return target, background


def first(fit: Fit, some: slice) -> Fit:
    """What was found of some exposures."""
    return Fit(fit.status[some], *(a[some] for a in fit[1:4]), None)


def background_ways(scope: str) -> st.SearchStrategy[SkyWay]:
    return sky_ways(zero_point="background", zero_point_scope=scope)


every_scope = pytest.mark.parametrize("scope", ["global", "component"])


@every_scope
@costly
@given(scene=scenes(2, 5, dead=False), seed=SEEDS, n=st.integers(1, 3), data=st.data())
def test_levels_follow_the_dedicated_background(scope, scene, seed, n, data):
    """
    The science exposure nearest in time to a background gets the sky of that: what is added to the background is added
    to all levels, what is added to all science exposures to none, and what is added to one to that, but for its anchor.
    Components that have no anchor of their own keep their mean.
    """
    match, scene = data.draw(background_ways(scope)), with_backgrounds(scene, seed, n)
    one = match(scene)
    target, background = anchors(scene, one.component, scope)
    science = slice(len(scene) - n)
    matched = np.flatnonzero(one.matched[science])
    sky = one.result.sky[background[matched]]
    np.testing.assert_allclose(one.values[target[matched], 0], sky, rtol=0, atol=SINGLE * scale(scene))
    drawn = rounded(np.random.default_rng(seed).normal(0, 5, len(scene)))
    alike = np.where(np.arange(len(scene)) < len(scene) - n, drawn[0], drawn)
    for added in (alike, drawn):
        two = match(scene.with_data(lambda i, d, added=added: d + added[i]))
        expected = one.values.copy()
        steps = less_mean(added.astype(float), one.component)
        expected[matched, 0] += (steps - steps[target] + added[background])[matched]
        atol = SINGLE * (scale(scene) + 100)
        assert_same(
            first(one._replace(values=expected), science), first(two, science), atol, sigmas=3 * match.slack, rtol=0.1
        )
    note("properties", f"dedicated background: levels follow it, {scope}")


@every_scope
@costly
@given(scene=scenes(2, 5, dead=False), seed=SEEDS, n=st.integers(1, 3), data=st.data())
def test_dedicated_backgrounds_in_any_order_and_unit(scope, scene, seed, n, data):
    match, scene = data.draw(background_ways(scope)), with_backgrounds(scene, seed, n)
    order = data.draw(st.permutations(range(len(scene))))
    one, two = match(scene), match(scene.take(order))
    expected = Fit(*(np.asarray(a)[order] for a in one[:4]), None)._replace(status=tuple(one.status[k] for k in order))
    assert_same(expected, two, 1e-10 * scale(scene), rtol=1e-10)
    note("properties", f"dedicated background: order of input, {scope}")
    factor = data.draw(st.sampled_from([1e-20, 1e-6, 0.37, 1e6, 1e20]))
    two = match(scene.times(factor))
    two = two._replace(values=two.values / factor, sigma=two.sigma / factor)
    assert_same(one, two, SINGLE * scale(scene), sigmas=3 * match.slack, rtol=match.slack)
    note("properties", f"dedicated background: units, {scope}")


@costly
@given(scene=scenes(2, 5, dead=False), seed=SEEDS, n=st.integers(1, 3), local=st.booleans(), data=st.data())
def test_level_matching_with_dedicated_backgrounds(scene, seed, n, local, data):
    """
    They only tell which tile is the reference: the one nearest to them in time. What is added to all science exposures
    is added to all of their levels with local subtraction, and to none without; what is added to backgrounds, never.
    """
    match = data.draw(level_ways(reference="background", do_local_subtraction=local))
    scene = with_backgrounds(scene, seed, n)
    one = match(scene)
    assert set(one.status[-n:]) == {"background"}
    target, _ = anchors(scene, one.component, "component")
    tile = {c: match.tile(scene.names[t]) or scene.names[t] for c, t in zip(one.component, target, strict=True)}
    assert one.result.reference == tuple(tile[c] for c in range(len(one.result.reference)))
    common, own = 3.5, rounded(np.random.default_rng(seed).normal(0, 5, n))
    moved = scene.with_data(lambda i, d: d + (common if i < len(scene) - n else own[i - len(scene) + n]))
    expected = one.values.copy()
    expected[:, 0] += common if local else 0.0
    assert_same(
        one._replace(values=expected), match(moved), SINGLE * scale(moved), sigmas=match.slack, rtol=match.slack
    )
    order = data.draw(st.permutations(range(len(scene))))
    expected = Fit(*(np.asarray(a)[order] for a in one[:4]), None)._replace(status=tuple(one.status[k] for k in order))
    assert_same(expected, match(scene.take(order)), 1e-10 * scale(scene), rtol=1e-10)
    note("properties", "dedicated background: level match")
