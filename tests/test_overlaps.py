"""Which pixels lie on which neighbours, against brute force over pixel centres."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
from common import (
    EMPTY,
    IMAGES,
    PLACES,
    SHAPE,
    TWINS,
    centres_on,
    lies_on,
    near_an_edge,
    tan,
    to_sky,
)

from bkgmatch.exposures import Exposure
from bkgmatch.footprints import footprint, good_region
from bkgmatch.overlaps import overlap_map

TOLERANCE = 0.05  # pixels


def outlines(frames, masks, overlap="good"):
    found = [footprint(good, to_sky(wcs), overlap=overlap) for wcs, good in zip(frames, masks, strict=True)]
    if overlap != "exact":
        return found
    exposures = [
        Exposure.from_arrays("any", np.zeros(good.shape), to_sky(wcs), good=good)
        for wcs, good in zip(frames, masks, strict=True)
    ]
    return [replace(outline, exposure=exposure) for outline, exposure in zip(found, exposures, strict=True)]


def random_frames(rng, n, place, *, reach=40.0):
    shifts, angles = rng.uniform(-reach, reach, (n, 2)), rng.uniform(0, 360, n)
    return [tan(*place, shift=tuple(s), angle=a) for s, a in zip(shifts, angles, strict=True)]


def assert_same_but_at_edges(found, here, there, good):
    """Compare an overlap with brute force, save for pixels whose centres are within TOLERANCE of an edge."""
    expected = lies_on(here, there, found.shape, good)
    sure = ~near_an_edge(*centres_on(here, there, found.shape), good, TOLERANCE)
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(found[sure], expected[sure])


def blocks(name):
    good = np.ones(SHAPE, dtype=bool)
    if name == "hole":
        good[16:32, 16:40] = False
    if name == "two parts":
        good[:, 20:36] = False
    if name == "corner":
        good[24:, 32:] = False
    if name == "two holes, off centre":
        good[8:24, 8:24], good[32:48, 24:48] = False, False
    return good


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", ["whole", "hole", "two parts", "corner", "two holes, off centre"])
def test_against_brute_force(place, shape):
    good = blocks(shape)
    frames = random_frames(np.random.default_rng(7), 12, PLACES[place])
    prints = outlines(frames, [good] * 12)
    overlaps = overlap_map(prints[0], prints[1:])
    for k, there in enumerate(frames[1:]):
        assert_same_but_at_edges(overlaps.mask(k, SHAPE), frames[0], there, good)
    assert 0.02 < overlaps.members[overlaps.runs.image()].mean() < 0.98


@pytest.mark.parametrize("place", PLACES)
def test_images_of_different_size_and_scale(place):
    """Rows and columns are not confused, whichever of the two images is the larger."""
    small = tan(*PLACES[place], shape=(20, 70), angle=30, pixel=0.03)
    large = tan(*PLACES[place], shape=(48, 33), angle=-50, pixel=0.11, shift=(5, -8))
    masks = [np.ones((20, 70), dtype=bool), np.ones((48, 33), dtype=bool)]
    one, two = outlines([small, large], masks)
    assert_same_but_at_edges(overlap_map(one, [two]).mask(0, (20, 70)), small, large, masks[1])
    assert_same_but_at_edges(overlap_map(two, [one]).mask(0, (48, 33)), large, small, masks[0])


@pytest.mark.parametrize("n", [63, 64, 65, 130, 200])
def test_many_neighbours(n):
    """More than 64 neighbours need more than one word for each signature."""
    frames = random_frames(np.random.default_rng(n), n + 1, (0.0, -60.0))
    good = np.ones(SHAPE, dtype=bool)
    prints = outlines(frames, [good] * (n + 1))
    overlaps = overlap_map(prints[0], prints[1:])
    assert overlaps.members.shape[1] == n
    for k in [*range(0, n, 7), n - 2, n - 1]:
        assert_same_but_at_edges(overlaps.mask(k, SHAPE), frames[0], frames[k + 1], good)


def test_tangent_outline_of_a_distorted_neighbour():
    """Against shapely on pixel centres, with the outline of a neighbour of any shape in the plane of the other."""
    wcs = tan(0.0, 5.0, shape=(200, 200))

    def bent(x, y):
        u = (x - 100) / 100
        return to_sky(wcs)(x + 60 + 3 * u**2, y - 40 + 4 * u**3)

    y, x = np.indices((200, 200))
    good = np.hypot(x - 80, y - 120) < 70
    here, there = footprint(np.ones((200, 200), dtype=bool), to_sky(wcs)), footprint(good, bent)
    region = shapely.transform(
        shapely.segmentize(good_region(good), 1.0),
        lambda p: np.column_stack(wcs.wcs_world2pix(*bent(p[:, 0], p[:, 1]), 0)),
    )
    found = overlap_map(here, [there]).mask(0, (200, 200))
    expected = shapely.contains_xy(region, x.ravel(), y.ravel()).reshape(200, 200)
    edge = shapely.distance(region.boundary, shapely.points(x.ravel(), y.ravel())).reshape(200, 200) < 0.1
    assert expected.sum() > 3000
    np.testing.assert_array_equal(found[~edge], expected[~edge])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("overlap", ["good", "exact", "footprint"])
@pytest.mark.parametrize("twin", TWINS)
def test_twins_share_all_pixels(place, overlap, twin):
    ra, dec = PLACES[place]
    frames = [tan(ra, dec, angle=12), tan(ra + TWINS[twin], dec, angle=12)]
    one, two = outlines(frames, [np.ones(SHAPE, dtype=bool)] * 2, overlap)
    assert overlap_map(one, [two]).mask(0, SHAPE).all()
    assert overlap_map(two, [one]).mask(0, SHAPE).all()


@pytest.mark.parametrize("overlap", ["good", "exact"])
@pytest.mark.parametrize("shape", ["hole", "two parts", "corner", "two holes, off centre"])
def test_twins_with_holes_share_the_good_pixels(overlap, shape):
    good = blocks(shape)
    one, two = outlines([tan(0.0, 89.9, angle=70)] * 2, [good] * 2, overlap)
    np.testing.assert_array_equal(overlap_map(one, [two]).mask(0, SHAPE), good)


def test_footprint_mode_ignores_holes():
    one, two = outlines([tan()] * 2, [blocks("hole")] * 2, "footprint")
    assert overlap_map(one, [two]).mask(0, SHAPE).all()


@pytest.mark.parametrize("overlap", ["good", "exact", "footprint"])
def test_disjoint_images_share_nothing(overlap):
    frames = [tan(), tan(shift=(100, 0)), tan(shift=(0, -60)), tan(ra=330.0, dec=-20.0)]
    here, *others = outlines(frames, [np.ones(SHAPE, dtype=bool)] * 4, overlap)
    overlaps = overlap_map(here, others[:2])
    assert not overlaps.members.any()
    assert not overlap_map(here, []).members.any()


@pytest.mark.parametrize("shift", [(20, 0), (-20, 0), (0, 15), (0, -15), (59, 47)])
def test_whole_pixel_shift(shift):
    """The image that is moved by (dx, dy) covers the pixels from dx and dy on."""
    here, there = outlines([tan(), tan(shift=shift)], [np.ones(SHAPE, dtype=bool)] * 2)
    dx, dy = shift
    expected = np.zeros(SHAPE, dtype=bool)
    expected[max(dy, 0) : SHAPE[0] + min(dy, 0), max(dx, 0) : SHAPE[1] + min(dx, 0)] = True
    expected &= lies_on(tan(), tan(shift=shift), SHAPE, np.ones(SHAPE, dtype=bool))
    assert expected.any()
    np.testing.assert_array_equal(overlap_map(here, [there]).mask(0, SHAPE), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("place", ["across RA 0", "north pole"])
def test_good_differs_from_exact_at_most_next_to_edges(seed, place):
    rng = np.random.default_rng(seed)
    masks = [blocks(name) for name in rng.choice(["whole", "hole", "two parts", "corner"], 4)]
    frames = random_frames(rng, 4, PLACES[place])
    good, exact = (
        overlap_map(prints[0], prints[1:]) for prints in (outlines(frames, masks), outlines(frames, masks, "exact"))
    )
    for k, (there, mask) in enumerate(zip(frames[1:], masks[1:], strict=True)):
        differ = good.mask(k, SHAPE) != exact.mask(k, SHAPE)
        assert not differ[~near_an_edge(*centres_on(frames[0], there, SHAPE), mask, 1.0)].any()
        assert differ.sum() < 20


def test_exact_leaves_out_isolated_bad_pixels():
    good = np.isfinite(IMAGES["isolated bad pixels"]())
    frames = [tan(0.0, 89.9), tan(0.0, 89.9, angle=30, shift=(7, 3))]
    here, there = outlines(frames, [np.ones(SHAPE, dtype=bool), good], "exact")
    found = overlap_map(here, [there]).mask(0, SHAPE)
    assert_same_as_nearest(found, *frames, good)


def assert_same_as_nearest(found, here, there, good):
    expected = lies_on(here, there, SHAPE, good)
    x, y = centres_on(here, there, SHAPE)
    sure = ~near_an_edge(x, y, good, 0.01)
    np.testing.assert_array_equal(found[sure], expected[sure])


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_on_itself(kind):
    good = np.isfinite(IMAGES[kind]())
    frame = tan(0.0, 89.99, shape=good.shape, angle=3)
    one, two = outlines([frame, frame], [good] * 2, "exact")
    np.testing.assert_array_equal(overlap_map(one, [two]).mask(0, good.shape), good)
    one, two = outlines([frame, frame], [good] * 2)
    found = overlap_map(one, [two]).mask(0, good.shape)
    assert found.any() != (kind in EMPTY)
    y, x = np.indices(good.shape)
    expected = shapely.contains_xy(good_region(good), x.ravel(), y.ravel()).reshape(good.shape)
    np.testing.assert_array_equal(found, expected)


def test_runs_cover_the_image_once():
    frames = random_frames(np.random.default_rng(9), 20, (10.0, 80.0))
    prints = outlines(frames, [blocks("hole")] * 20)
    overlaps = overlap_map(prints[0], prints[1:])
    assert overlaps.runs.stops[0] > 0
    assert overlaps.runs.stops[-1] == SHAPE[0] * SHAPE[1]
    assert (np.diff(overlaps.runs.stops) > 0).all()
    assert overlaps.runs.image().size == SHAPE[0] * SHAPE[1]


def test_atoms_are_the_distinct_combinations():
    frames = random_frames(np.random.default_rng(10), 80, (10.0, 80.0))
    prints = outlines(frames, [np.ones(SHAPE, dtype=bool)] * 80)
    overlaps = overlap_map(prints[0], prints[1:])
    masks = np.stack([overlap_map(prints[0], [other]).mask(0, SHAPE).ravel() for other in prints[1:]], axis=1)
    np.testing.assert_array_equal(overlaps.members[overlaps.runs.image()], masks)
    assert len(overlaps.members) == len(np.unique(masks, axis=0))
    assert set(overlaps.runs.labels) == set(range(len(overlaps.members)))


def test_order_of_neighbours_only_permutes_columns():
    frames = random_frames(np.random.default_rng(11), 30, (0.0, 0.0))
    prints = outlines(frames, [blocks("corner")] * 30)
    order = np.random.default_rng(12).permutation(29)
    one = overlap_map(prints[0], prints[1:])
    two = overlap_map(prints[0], [prints[1:][k] for k in order])
    for column, k in enumerate(order):
        np.testing.assert_array_equal(one.mask(k, SHAPE), two.mask(column, SHAPE))


def test_deterministic():
    frames = random_frames(np.random.default_rng(13), 70, (0.0, 0.0))
    one, two = (
        overlap_map(prints[0], prints[1:]) for prints in (outlines(frames, [blocks("hole")] * 70) for _ in range(2))
    )
    for found, again in [
        (one.members, two.members),
        (one.runs.stops, two.runs.stops),
        (one.runs.labels, two.runs.labels),
    ]:
        np.testing.assert_array_equal(found, again)
