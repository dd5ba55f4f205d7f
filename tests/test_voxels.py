"""Pixels in voxels: against a loop over pixels."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ifu import PLACE, positions, wrap

from bkgmatch.exposures import SpectralExposure, SpectralPixels
from bkgmatch.footprints import unit_vectors
from bkgmatch.voxels import columns, fill, middles, neighbours, numbers, patch_numbers, voxel_grid

CELL, STEP = 0.25, 0.0613  # arcsec, micrometres
SHAPE = (12, 14, 96)
PLACES = {
    "middle": PLACE,
    "across RA 0": (0.0, 20.0),
    "just before RA 360": (359.9999, -60.0),
    "north pole": (123.0, 90.0),
    "near the pole": (40.0, 89.9995),
    "south pole": (200.0, -90.0),
}


def grid_at(place=PLACE):
    return voxel_grid([unit_vectors(*np.atleast_2d(place).T)[0]], CELL, 4.98, STEP)


def pixels_at(at, value, variance=None):
    return SpectralPixels(at.ra, at.dec, at.wavelength, value, variance)


def flat(rng, n, size=1.0):
    """Noise without tails: nothing is an outlier."""
    return rng.uniform(-size, size, n)


def without_outliers(pixels, value):
    """Pixels within 5 standard deviations, from the quartiles, of the median of their voxel, if it has 8."""
    ranked = sorted(value[k] for k in pixels)
    low, median, high = (ranked[q * (len(pixels) - 1) // 4] for q in (1, 2, 3))
    return [k for k in pixels if len(pixels) < 8 or abs(value[k] - median) <= 5 * (high - low) / 1.349]


def brute_force(at, value, variance):
    """{cell: (number of pixels, mean, variance, offset)}."""
    members = defaultdict(list)
    coordinates = np.stack([at.x / CELL, at.y / CELL, (at.wavelength - 4.98) / STEP])
    for k, cell in enumerate(np.floor(coordinates).astype(int).T.tolist()):
        members[tuple(cell)].append(k)
    result = {}
    for cell, pixels in members.items():
        kept = without_outliers(pixels, value)
        offset = np.mean([coordinates[:, k] - cell - 0.5 for k in kept], axis=0)
        result[cell] = len(kept), np.mean(value[kept]), np.sum(variance[kept]) / len(kept) ** 2, offset
    typical = np.median([n for n, *_ in result.values()])
    return {cell: found for cell, found in result.items() if found[0] >= max(typical / 4, 1)}


def assert_same(found, expected):
    cells = (middles(found.number) - 0.5).astype(int).T.tolist()
    assert [tuple(cell) for cell in cells] == sorted(expected)
    npix, value, variance, offset = (np.array(part) for part in zip(*(expected[tuple(c)] for c in cells), strict=True))
    np.testing.assert_array_equal(found.npix, npix)
    np.testing.assert_allclose(found.value, value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(found.offset, offset.T, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_fill_against_a_loop_over_pixels(place):
    """With cosmic rays: left out where the voxel has 8 pixels or more."""
    rng = np.random.default_rng(1)
    at = positions((0.31, 0.17), place=PLACES[place], shape=SHAPE)
    value, variance = 5 + flat(rng, at.x.size), rng.uniform(0.5, 2, at.x.size)
    spoilt = rng.random(at.x.size) < 0.02
    value[spoilt] += rng.choice([-1e4, 1e4], spoilt.sum())
    expected = brute_force(at, value, variance)
    assert 200 < len(expected) < at.x.size / 8
    assert_same(fill(pixels_at(at, value, variance), grid_at(PLACES[place])), expected)


def test_outliers_do_not_enter_the_mean():
    rng = np.random.default_rng(2)
    at = positions(shape=SHAPE)
    value = 5 + flat(rng, at.x.size, 0.1)
    value[::40] = 1e6
    found = fill(pixels_at(at, value), grid_at())
    np.testing.assert_allclose(found.value[found.npix >= 8], 5, atol=0.1)


def test_gaussian_noise_has_few_outliers():
    at = positions(shape=SHAPE)
    value = np.random.default_rng(3).normal(5, 1, at.x.size)
    found = fill(pixels_at(at, value), grid_at())
    assert found.npix.sum() > 0.985 * at.x.size


def test_a_voxel_of_equal_pixels_keeps_them_all():
    at = positions(shape=SHAPE)
    found = fill(pixels_at(at, np.full(at.x.size, 3.0)), grid_at())
    np.testing.assert_allclose(found.value, 3, rtol=1e-14)
    assert found.npix.sum() > 0.98 * at.x.size


def test_variance_that_is_not_known_is_measured():
    at = positions(shape=(14, 16, 480))
    value = np.random.default_rng(4).normal(5, 0.3, at.x.size)
    found = fill(pixels_at(at, value), grid_at())
    np.testing.assert_allclose(found.variance * found.npix, 0.3**2, rtol=0.15)


def test_voxels_with_few_pixels_are_left_out():
    """Of one voxel all pixels but three, of another a third."""
    at = positions(shape=(12, 14, 192))
    cell = np.stack([np.floor(at.x / CELL), np.floor(at.y / CELL), np.floor((at.wavelength - 4.98) / STEP)])
    one, half = (np.flatnonzero((middle == cell.T).all(axis=1)) for middle in ((0, 0, 5), (1, 0, 5)))
    assert min(len(one), len(half)) >= 8
    kept = np.ones(at.x.size, dtype=bool)
    kept[one[3:]] = kept[half[::3]] = False
    found = fill(
        SpectralPixels(*(a[kept] for a in (at.ra, at.dec, at.wavelength, flat(np.random.default_rng(5), at.x.size)))),
        grid_at(),
    )
    cells = (middles(found.number) - 0.5).T.tolist()
    assert [0, 0, 5] not in cells
    assert [1, 0, 5] in cells


def test_order_of_pixels_does_not_matter():
    rng = np.random.default_rng(6)
    at = positions(shape=SHAPE)
    pixels = pixels_at(at, rng.normal(size=at.x.size), rng.uniform(1, 2, at.x.size))
    order = rng.permutation(at.x.size)
    one, two = fill(pixels, grid_at()), fill(SpectralPixels(*(a[order] for a in pixels)), grid_at())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_numbers_ascend():
    found = fill(pixels_at(at := positions(shape=SHAPE), np.ones(at.x.size)), grid_at())
    assert (np.diff(found.number) > 0).all()


def test_no_pixels():
    found = fill(SpectralPixels(*np.zeros((4, 0))), grid_at())
    assert found.number.shape == found.npix.shape == found.value.shape == found.variance.shape == (0,)
    assert found.offset.shape == (3, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["ra", "dec", "wavelength", "value", "variance"])
def test_pixels_that_are_not_finite_never_enter(what, bad):
    rng = np.random.default_rng(7)
    at = positions(shape=SHAPE)
    pixels = pixels_at(at, flat(rng, at.x.size), np.ones(at.x.size))
    spoilt = np.arange(at.x.size) % 7 == 3
    array = getattr(pixels, what).copy()
    array[spoilt] = bad
    exposure = SpectralExposure.from_arrays(
        "a",
        slice_width=0.2,
        **{{"value": "data"}.get(k, k): v for k, v in pixels._replace(**{what: array})._asdict().items()},
    )
    expected = fill(SpectralPixels(*(a[~spoilt] for a in pixels)), grid_at())
    for a, b in zip(fill(exposure.read(), grid_at()), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_negative_variances_never_enter():
    at = positions(shape=SHAPE)
    variance = np.ones(at.x.size)
    variance[5] = -1
    assert len(pixels_at(at, variance, variance).finite().ra) == at.x.size - 1


def test_fill_leaves_out_what_is_not_finite():
    at = positions(shape=SHAPE)
    value = np.ones(at.x.size)
    value[5] = np.nan
    assert np.isfinite(fill(pixels_at(at, value), grid_at()).value).all()


def test_one_pixel_in_each_voxel_without_variance():
    at = positions(shape=(4, 4, 8))
    grid = voxel_grid([unit_vectors(*np.atleast_2d(PLACE).T)[0]], 0.01, 5.0, 0.001)
    found = fill(pixels_at(at, np.random.default_rng(8).normal(size=at.x.size)), grid)
    assert len(found.number) == at.x.size
    assert np.isfinite(found.variance).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_numbers_and_middles_are_inverse(seed):
    cell = np.random.default_rng(seed).integers(-(2**18), 2**18, (3, 40))
    number = numbers(cell)
    np.testing.assert_array_equal(middles(number), cell + 0.5)
    np.testing.assert_array_equal(np.argsort(number, kind="stable"), np.lexsort(cell[::-1]))


def test_columns_are_places_on_the_sky():
    cell = np.stack([axis.ravel() for axis in np.mgrid[-2:3, -2:3, -2:3]])
    places = columns(numbers(cell)).reshape(5, 5, 5)
    assert (places == places[..., :1]).all()
    assert len(np.unique(places)) == 25


def test_patches_are_eight_cells_wide():
    cell = np.stack([axis.ravel() for axis in np.mgrid[-8:16, -16:8, 0:3]])
    patch = patch_numbers(numbers(cell))
    expected = np.floor(cell[:2] / 8).astype(int)
    _, label = np.unique(expected, axis=1, return_inverse=True)
    _, found = np.unique(patch, return_inverse=True)
    np.testing.assert_array_equal(found, label)


def test_neighbours_against_a_loop():
    rng = np.random.default_rng(9)
    cells = sorted({tuple(c) for c in rng.integers(-3, 3, (120, 3)).tolist()})
    found = neighbours(numbers(np.array(cells).T))
    for k, cell in enumerate(cells):
        for axis in range(3):
            for side, sign in enumerate((-1, 1)):
                beside = tuple(c + sign * (a == axis) for a, c in enumerate(cell))
                assert found[axis, side, k] == (cells.index(beside) if beside in cells else -1)


@pytest.mark.parametrize("place", PLACES)
def test_world_is_the_inverse_of_the_grid(place):
    at = positions(place=PLACES[place], shape=(4, 5, 6))
    grid = grid_at(PLACES[place])
    points = grid.of(pixels_at(at, at.x))
    np.testing.assert_allclose(points, [at.x / CELL, at.y / CELL, (at.wavelength - 4.98) / STEP], atol=1e-6)
    ra, dec, wavelength = grid.world(points)
    np.testing.assert_allclose(wrap(ra - at.ra) * np.cos(np.deg2rad(dec)), 0, atol=1e-11)
    np.testing.assert_allclose(dec, at.dec, atol=1e-11)
    np.testing.assert_allclose(wavelength, at.wavelength, rtol=1e-14)


def test_the_grid_is_tangential_in_the_middle():
    grid = voxel_grid(list(unit_vectors(np.array([359.9, 0.1]), np.array([10.0, 10.0]))), CELL, 5.0, STEP)
    ra, dec, _ = grid.world(np.zeros((3, 1)))
    assert wrap(ra[0]) == pytest.approx(0, abs=1e-10)
    assert dec[0] == pytest.approx(10, abs=1e-4)
