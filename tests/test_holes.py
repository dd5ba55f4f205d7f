"""Holes of images are filled from what is around them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bkgmatch.holes import fill_holes

SHAPES = [(1, 1), (1, 2), (1, 37), (41, 1), (2, 2), (3, 5), (17, 64), (33, 31), (100, 129)]


def disc(shape, y, x, radius):
    rows, columns = np.indices(shape)
    return np.hypot(rows - y, columns - x) <= radius


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(10, 1, shape).astype(np.float32)


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 15])
@pytest.mark.parametrize("slope", [(1.0, 0.0), (0.0, -1.0), (0.7, 0.3)])
def test_gradients_go_on_through_holes(radius, slope):
    rows, columns = np.indices((90, 110))
    truth = 5 + slope[0] * rows + slope[1] * columns
    hole = disc(truth.shape, 41, 57, radius)
    filled = fill_holes(np.where(hole, np.nan, truth), ~hole)
    # A flat fill is wrong by the radius.
    assert np.abs(filled - truth)[hole].max() < 0.1 * radius + 0.05


def test_harmonic_functions_go_on_through_holes():
    y, x = np.indices((80, 80)) - 40.0
    truth = (x**2 - y**2) / 100 + x * y / 100
    hole = disc(truth.shape, 42, 37, 9)
    filled = fill_holes(truth, ~hole)
    assert np.abs(filled - truth)[hole].max() < 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.98])
def test_known_pixels_keep_their_bits(shape, part):
    data = image(shape)
    known = np.random.default_rng(2).random(shape) >= part
    filled = fill_holes(np.where(known, data, np.nan), known)
    assert filled.dtype == np.float32
    assert filled.shape == shape
    np.testing.assert_array_equal(filled[known].view(np.uint32), data[known].view(np.uint32))
    assert np.isfinite(filled).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_holes_stay_within_the_range_of_what_is_known(shape):
    data = image(shape)
    known = np.random.default_rng(3).random(shape) < 0.3
    known.flat[0] = True
    filled = fill_holes(data, known)
    slack = 1e-5
    assert filled.min() >= data[known].min() - slack
    assert filled.max() <= data[known].max() + slack


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 5.0])
def test_nothing_known_gives_zeros(shape, value):
    filled = fill_holes(np.full(shape, value), np.zeros(shape, dtype=bool))
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, np.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_known_gives_a_copy(shape):
    data = image(shape)
    filled = fill_holes(data, np.ones(shape, dtype=bool))
    np.testing.assert_array_equal(filled, data)
    assert not np.shares_memory(filled, data)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_known_pixel_fills_all(shape):
    known = np.zeros(shape, dtype=bool)
    known.flat[known.size // 2] = True
    np.testing.assert_allclose(fill_holes(np.where(known, 7.0, np.nan), known), 7, rtol=1e-6)


def test_values_in_holes_do_not_matter():
    data = image((50, 61))
    known = ~(disc(data.shape, 20, 30, 6) | disc(data.shape, 48, 2, 5))
    results = [fill_holes(np.where(known, data, value), known) for value in (np.nan, np.inf, -1e30, 0)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_inputs_do_not_change():
    data, known = image((40, 40)), ~disc((40, 40), 20, 20, 5)
    copies = data.copy(), known.copy()
    fill_holes(data, known)
    np.testing.assert_array_equal(data, copies[0])
    np.testing.assert_array_equal(known, copies[1])


def test_edges_and_corners():
    """Beside an edge there is one side only: no gradient can be known, but values must come from there."""
    rows, columns = np.indices((64, 64))
    truth = 1.0 * columns
    for hole in (columns > 56, (columns > 56) & (rows > 56), rows < 8):
        filled = fill_holes(np.where(hole, np.nan, truth), ~hole)
        assert np.abs(filled - truth)[hole].max() < 10
        np.testing.assert_allclose(filled[~hole], truth[~hole])


def test_half_a_mask_far_away():
    """A band without data, as beside the field of MIRI's imager: a smooth bridge from one side to the other."""
    columns = np.broadcast_to(np.arange(200), (150, 200))
    hole = (columns >= 60) & (columns < 140)
    filled = fill_holes(np.where(columns < 100, 0.0, 10.0), ~hole)
    assert np.diff(filled[75]).min() > -0.2
    assert np.abs(np.diff(filled, axis=0)).max() < 0.2
    assert filled[75, 62] < 2
    assert filled[75, 137] > 8


def test_scaling_and_shifting():
    data = image((60, 60)).astype(float)
    known = ~disc((60, 60), 25, 30, 7)
    plain = fill_holes(data, known)
    np.testing.assert_allclose(fill_holes(4 * data - 8, known), 4 * plain - 8, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("flip", [np.flipud, np.fliplr, np.transpose])
def test_mirror_images(flip):
    rows, columns = np.indices((64, 64))
    smooth = 3 + 0.1 * rows - 0.2 * columns
    known = ~disc((64, 64), 20, 40, 6)
    one, other = fill_holes(smooth, known), fill_holes(flip(smooth), flip(known))
    assert np.abs(flip(one) - other).max() < 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_always_finite_and_in_range(ny, nx, seed, part):
    rng = np.random.default_rng(seed)
    data, known = rng.normal(0, 1e3, (ny, nx)).astype(np.float32), rng.random((ny, nx)) < part
    filled = fill_holes(np.where(known, data, np.nan), known)
    assert filled.shape == (ny, nx)
    np.testing.assert_array_equal(filled[known], data[known])
    if known.any():
        assert data[known].min() - 1e-2 <= filled.min()
        assert filled.max() <= data[known].max() + 1e-2


def test_only_what_is_wanted_need_be_smooth():
    rows, columns = np.indices((90, 110))
    truth = 0.7 * rows + 0.3 * columns
    holes = [disc(truth.shape, 30, 30, 6), disc(truth.shape, 60, 80, 6)]
    known = ~(holes[0] | holes[1])
    filled = fill_holes(np.where(known, truth, np.nan), known, holes[0])
    np.testing.assert_array_equal(filled[holes[0]], fill_holes(truth, known)[holes[0]])
    assert np.abs(filled - truth)[holes[0]].max() < 0.7
    assert np.abs(filled - truth)[holes[1]].max() < 6
    np.testing.assert_array_equal(filled[known], truth[known].astype(np.float32))
