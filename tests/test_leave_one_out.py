"""For every exposure the median or mean of others: against numpy on the others, one target after another."""

import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bkgmatch import leave_one_out
from bkgmatch.execution import Work
from bkgmatch.leave_one_out import merge_others

METHODS = ("median", "mean")
SHAPE = (6, 11)


# The oracle


def nanmedian(stack):
    """np.nanmedian over the exposures, without its warning of pixels that have none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(stack, axis=0)


def brute_median(stack, donors):
    used = np.isfinite(stack)
    return np.array([nanmedian(stack[row]) for row in donors]), np.array([used[row].sum(axis=0) for row in donors])


def lower_median(stack):
    """The middle of an odd number of values, the lower of the two in the middle of an even number."""
    last = np.maximum(np.isfinite(stack).sum(axis=0) - 1, 0)
    return np.take_along_axis(np.sort(stack, axis=0), last[None] // 2, axis=0)[0]


def company_of(donors, i):
    """It, and the exposures that serve i or that i serves."""
    return donors[i] | donors[:, i] | (np.arange(len(donors)) == i)


def kept(stack, donors, noise=None, sigma=3.0):
    """Pixels that are there and not rejected, shape (N, ny, nx)."""
    if noise is None:
        return np.isfinite(stack)
    middle = np.array([lower_median(stack[company_of(donors, i)]) for i in range(len(stack))])
    far = np.abs(stack.astype(np.float64) - middle) > sigma * np.asarray(noise, np.float64)
    return np.isfinite(stack) & ~far


def brute_mean(stack, donors, noise=None, sigma=3.0):
    used = kept(stack, donors, noise, sigma)
    counts = np.array([used[row].sum(axis=0) for row in donors])
    sums = np.array([np.where(used, stack, np.float64(0))[row].sum(axis=0) for row in donors])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


def assert_same_bits(found, expected):
    """The same float32 everywhere, signs of zeros included; NaN where NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.float32
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(~np.isnan(found), there)
    bits = (np.ascontiguousarray(a).view(np.uint32)[there] for a in (found, expected))
    np.testing.assert_array_equal(*bits, err_msg="not the same bits")


def assert_close(found, expected, spread=1.0):
    """Within 1e-6 of the spread and the rounding of a float32."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    allowed = 1e-6 * spread + np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    worst = np.nanmax(np.abs(found - expected) - allowed, initial=-1.0)
    assert worst <= 0, f"{worst:.2g} more than float32 rounding"


def assert_counts(found, expected):
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def assert_median(stack, donors):
    value, count = merge_others(stack, donors, method="median")
    expected, counts = brute_median(stack, donors)
    assert_same_bits(value, expected)
    assert_counts(count, counts)


def assert_mean(stack, donors, noise=None, sigma=3.0, spread=1.0):
    value, count = merge_others(stack, donors, method="mean", noise=noise, sigma=sigma)
    expected, counts = brute_mean(stack, donors, noise, sigma)
    assert_counts(count, counts)
    assert_close(value, expected, spread)


# Who may be used for whom


def others(n):
    """All but the target."""
    return ~np.eye(n, dtype=bool)


def groups_out(n, size):
    """All but the group of the target."""
    group = np.arange(n) // size
    return group[:, None] != group


def interleaved_groups_out(n, size):
    """The same, with groups that are not consecutive."""
    group = np.arange(n) % -(-n // size)
    return group[:, None] != group


def chain(n, reach):
    """Those not farther than ``reach`` in time."""
    t = np.arange(n)
    return (np.abs(t[:, None] - t) <= reach) & others(n)


def two_epochs(n):
    """Those of the other epoch."""
    late = np.arange(n) >= n // 2
    return late[:, None] != late


def own_epoch(n):
    """The others of the same epoch."""
    return ~two_epochs(n) & others(n)


def random_donors(n, fraction=0.5):
    return (np.random.default_rng(n).random((n, n)) < fraction) & others(n)


def some_without(n):
    """Leave one out, but the first has no donors, and the last is nobody's."""
    donors = others(n)
    donors[0] = donors[:, -1] = False
    return donors


DONORS = {
    "leave one out": others,
    "pairs left out": lambda n: groups_out(n, 2),
    "triples left out": lambda n: groups_out(n, 3),
    "interleaved pairs left out": lambda n: interleaved_groups_out(n, 2),
    "neighbours in time": lambda n: chain(n, 1),
    "three each way in time": lambda n: chain(n, 3),
    "the other epoch": two_epochs,
    "own epoch": own_epoch,
    "random": random_donors,
    "few at random": lambda n: random_donors(n, 0.15),
    "some without": some_without,
    "none": lambda n: np.zeros((n, n), bool),
}


# Stacks


def masked(stack, fraction, rng):
    stack[rng.random(stack.shape) < fraction] = np.nan
    return stack


def stack_of(kind, n, fraction=0.15, seed=0, shape=SHAPE):
    """One example of a kind of stack, a fraction of its pixels masked."""
    rng = np.random.default_rng([seed, n, int(100 * fraction)])
    size = (n, *shape)
    if kind == "noise":
        stack = rng.normal(size=size)
    elif kind == "pedestal":
        stack = 1e4 + rng.normal(size=size)
    elif kind == "ties":
        stack = rng.integers(-2, 3, size)
    elif kind == "duplicates":
        stack = rng.normal(size=size)[rng.integers(0, (n + 1) // 2, n)]
    elif kind == "signed zeros":
        stack = rng.choice([-0.0, 0.0, -0.0, 1.0], size)
    elif kind == "negative zeros":
        stack = np.full(size, -0.0)
    elif kind == "constant":
        stack = np.full(size, 0.1)
    elif kind == "tiny":  # subnormal: half of the smallest is zero
        stack = rng.integers(-5, 6, size) * 2.0**-149
    elif kind == "all sizes":
        stack = rng.choice([-1.0, 1.0], size) * 10 ** rng.uniform(-44, 37, size)
    elif kind == "sorted":
        stack = np.broadcast_to(np.arange(n, dtype=float)[::-1, None, None], size)
    return masked(stack.astype(np.float32), fraction, rng)


KINDS = (
    *("noise", "pedestal", "ties", "duplicates", "signed zeros"),
    *("negative zeros", "constant", "tiny", "all sizes", "sorted"),
)


# The median


@pytest.mark.parametrize("donors", DONORS.values(), ids=DONORS)
@pytest.mark.parametrize("n", range(1, 14))
def test_median_of_any_number_of_donors(n, donors):
    assert_median(stack_of("noise", n, 0.3), donors(n))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 5, 8])
def test_median_of_any_kind(kind, n):
    for fraction in (0, 0.4):
        stack = stack_of(kind, n, fraction)
        for donors in (others(n), groups_out(n, 2), random_donors(n), some_without(n)):
            assert_median(stack, donors)


@pytest.mark.parametrize("donors", DONORS.values(), ids=DONORS)
@pytest.mark.parametrize("kind", ["noise", "ties"])
def test_median_of_forty(kind, donors):
    assert_median(stack_of(kind, 40, shape=(3, 7)), donors(40))


def test_median_known_answers():
    stack = np.array([1, 2, 4, 8], np.float32)[:, None, None]
    value, count = merge_others(stack, others(4), method="median")
    assert value.ravel().tolist() == [4, 4, 2, 2]
    assert count.ravel().tolist() == [3, 3, 3, 3]
    stack[1] = np.nan
    value, count = merge_others(stack, others(4), method="median")
    assert value.ravel().tolist() == [6, 4, 4.5, 2.5]
    assert count.ravel().tolist() == [2, 3, 2, 2]


# The mean


@pytest.mark.parametrize("donors", DONORS.values(), ids=DONORS)
@pytest.mark.parametrize("n", range(1, 14))
def test_mean_of_any_number_of_donors(n, donors):
    rng = np.random.default_rng(n)
    stack = stack_of("noise", n, 0.3)
    stack[rng.random(stack.shape) < 0.03] += 50
    assert_mean(stack, donors(n))
    assert_mean(stack, donors(n), noise=rng.uniform(0.2, 1.5, SHAPE), sigma=2.5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "all sizes"])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_mean_of_any_kind(kind, n):
    for fraction in (0, 0.4):
        stack = stack_of(kind, n, fraction)
        for donors in (others(n), groups_out(n, 2), random_donors(n), some_without(n)):
            assert_mean(stack, donors)
            assert_mean(stack, donors, noise=np.full(SHAPE, 0.41), sigma=1.5)


@pytest.mark.parametrize("donors", DONORS.values(), ids=DONORS)
def test_mean_of_forty(donors):
    stack = stack_of("pedestal", 40, shape=(3, 7))
    assert_mean(stack, donors(40))
    assert_mean(stack, donors(40), noise=np.ones((3, 7)), sigma=1.5)


def test_mean_known_answers():
    stack = np.array([1, 2, 4, 8], np.float32)[:, None, None]
    value, count = merge_others(stack, others(4), method="mean")
    np.testing.assert_allclose(value.ravel(), [14 / 3, 13 / 3, 11 / 3, 7 / 3], rtol=1e-6)
    assert count.ravel().tolist() == [3, 3, 3, 3]


def test_mean_is_the_default():
    stack = stack_of("noise", 5)
    assert_same_bits(merge_others(stack, others(5))[0], merge_others(stack, others(5), method="mean")[0])


def test_three_sigma_is_the_default():
    stack, noise = stack_of("noise", 9), np.full(SHAPE, 0.5)
    default, given_ = merge_others(stack, others(9), noise=noise), merge_others(stack, others(9), noise=noise, sigma=3)
    assert_same_bits(default[0], given_[0])
    assert_counts(default[1], given_[1])
    assert default[1].sum() < np.isfinite(stack).sum() * 8, "some are rejected"


@pytest.mark.parametrize("size", [1e6, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("donors", [others(6), random_donors(6), groups_out(6, 2)], ids=["one", "random", "pairs"])
def test_the_target_leaves_no_trace_in_its_mean(size, donors):
    """However bright it is: nothing is rejected without a noise."""
    stack = stack_of("noise", 6, 0)
    stack[2, 3, 4] = size
    stack[5, 1, 1] = -size
    assert_mean(stack, donors)


# Rejection


def column(*values):
    """One pixel of some exposures."""
    return np.array(values, np.float32)[:, None, None]


def mean_of_pixel(values, donors, noise, **options):
    noise = None if noise is None else np.full((1, 1), noise)
    value, count = merge_others(column(*values), donors, method="mean", noise=noise, **options)
    return value.ravel().tolist(), count.ravel().tolist()


def test_cosmic_ray_in_one_of_five():
    value, count = mean_of_pixel([10, 11, 9, 10, 1000], others(5), 1.0)
    assert value == pytest.approx([10, 29 / 3, 31 / 3, 10, 10], rel=1e-6)
    assert count == [3, 3, 3, 3, 4]


def test_cosmic_ray_without_noise():
    value, count = mean_of_pixel([10, 11, 9, 10, 1000], others(5), None)
    assert value == pytest.approx([257.5, 257.25, 257.75, 257.5, 10], rel=1e-6)
    assert count == [4, 4, 4, 4, 4]


def test_own_cosmic_ray_is_as_a_masked_pixel():
    stack = stack_of("ties", 7, 0)
    hit, without = stack.copy(), stack.copy()
    hit[3, 2, 5], without[3, 2, 5] = 1e5, np.nan
    noise = np.full(SHAPE, 10.0)
    ours, expected = (merge_others(s, others(7), noise=noise) for s in (hit, without))
    assert_same_bits(ours[0], expected[0])
    assert_counts(ours[1], expected[1])


@pytest.mark.parametrize(
    ("noise", "expected"), [(3.0, ([np.nan, 0.0], [0, 1])), (4.0, ([10.0, 0.0], [1, 1]))], ids=["one", "both"]
)
def test_of_two_exposures_the_brighter_is_rejected(noise, expected):
    """As a cosmic ray would be."""
    value, count = mean_of_pixel([0, 10], others(2), noise)
    np.testing.assert_array_equal(value, expected[0])
    assert count == expected[1]


def test_one_of_two_is_never_rejected():
    value, count = mean_of_pixel([np.nan, 1e6], others(2), 1.0)
    np.testing.assert_array_equal(value, [1e6, np.nan])
    assert count == [1, 0]


def test_exactly_at_the_limit_is_kept():
    assert mean_of_pixel([0, 0, 3], others(3), 1.0) == ([1.5, 1.5, 0], [2, 2, 2])
    assert mean_of_pixel([0, 0, 4], others(3), 1.0) == ([0, 0, 0], [1, 1, 2])
    assert mean_of_pixel([0, 0, 4], others(3), 1.0, sigma=4.0) == ([2, 2, 0], [2, 2, 2])


def test_rejected_by_the_median_of_all_not_of_the_donors():
    donors = others(5)
    donors[4] = [False, False, False, True, False]
    value, count = mean_of_pixel([0, 0, 0, 10, 10], donors, 1.0)
    np.testing.assert_array_equal(value, [0, 0, 0, 0, np.nan])
    assert count == [2, 2, 2, 3, 0]


def test_noise_of_each_pixel():
    noise = np.array([[1.0, 100.0, np.nan, 0.0]])
    stack = np.repeat(column(1, 1, 1, 41), 4, axis=2)
    value, count = merge_others(stack, others(4), noise=noise)
    assert count[0].ravel().tolist() == [2, 3, 3, 2]
    np.testing.assert_allclose(value[0].ravel(), [1, 43 / 3, 43 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", ">f8"])
def test_noise_of_any_precision(dtype):
    stack = stack_of("ties", 9)
    noise = np.full(SHAPE, 0.75).astype(dtype)
    noise[2] = np.nan
    assert_mean(stack, others(9), noise=noise, sigma=1.0)


def test_noise_and_donors_are_not_changed():
    stack, noise, donors = stack_of("noise", 5), np.full(SHAPE, 0.5), others(5)
    noise[1] = np.nan
    before = noise.copy(), donors.copy()
    merge_others(stack, donors, noise=noise)
    np.testing.assert_array_equal(noise, before[0])
    np.testing.assert_array_equal(donors, before[1])


# What holds for any stack

LEVELS = st.sampled_from([np.nan, np.nan, -0.0, 0.0, 1.0, 1.0, 2.0, -3.0, 7.0])
FLOATS = st.floats(-(2.0**120), 2.0**120, width=32)


@st.composite
def stacks(draw, elements, largest=7):
    """A stack of few pixels, and who may be used for whom."""
    n = draw(st.integers(1, largest))
    shape = (n, draw(st.integers(1, 2)), draw(st.integers(1, 5)))
    stack = draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing()))
    return stack, draw(hnp.arrays(bool, (n, n))) & others(n)


@settings(max_examples=60, deadline=None)
@given(stacks(LEVELS | FLOATS))
def test_any_median(given_):
    assert_median(*given_)


@settings(max_examples=60, deadline=None)
@given(stacks(LEVELS), st.none() | st.sampled_from([0.0, 0.3, 0.8, 1.3, np.nan]))
def test_any_mean(given_, noise):
    """The limits of rejection lie between the possible differences from a median."""
    stack, donors = given_
    assert_mean(stack, donors, None if noise is None else np.full(stack.shape[1:], noise), sigma=1.0)


@settings(max_examples=30, deadline=None)
@given(stacks(LEVELS | FLOATS), st.data())
def test_order_does_not_matter_to_the_median(given_, data):
    stack, donors = given_
    order = data.draw(st.permutations(range(len(stack))))
    value, count = merge_others(stack, donors, method="median")
    permuted, permuted_count = merge_others(stack[order], donors[np.ix_(order, order)], method="median")
    assert_same_bits(permuted, value[order])
    assert_counts(permuted_count, count[order])


@settings(max_examples=30, deadline=None)
@given(stacks(LEVELS), st.data())
def test_order_does_not_matter_to_the_mean(given_, data):
    stack, donors = given_
    order = data.draw(st.permutations(range(len(stack))))
    noise = np.full(stack.shape[1:], 0.8)
    value, count = merge_others(stack, donors, noise=noise)
    permuted, permuted_count = merge_others(stack[order], donors[np.ix_(order, order)], noise=noise)
    assert_close(permuted, value[order].astype(np.float64))
    assert_counts(permuted_count, count[order])


@settings(max_examples=30, deadline=None)
@given(stacks(LEVELS), st.integers(-1000, 1000))
def test_a_constant_moves_all_by_it(given_, constant):
    stack, donors = given_
    noise = np.full(stack.shape[1:], 0.8)
    moved = stack + np.float32(constant)
    median, moved_median = (merge_others(s, donors, method="median")[0] for s in (stack, moved))
    assert_same_bits(moved_median, median + np.float32(constant))
    (mean, count), (moved_mean, moved_count) = (merge_others(s, donors, noise=noise) for s in (stack, moved))
    assert_close(moved_mean, mean.astype(np.float64) + constant)
    assert_counts(moved_count, count)


@settings(max_examples=30, deadline=None)
@given(stacks(LEVELS), st.integers(0, 6))
@pytest.mark.parametrize("method", METHODS)
def test_a_masked_exposure_is_as_if_not_there(method, given_, which):
    stack, donors = given_
    which %= len(stack)
    options = {"method": method}
    if method == "mean":
        options["noise"] = np.full(stack.shape[1:], 0.8)
    stack[which] = np.nan
    unused = donors.copy()
    unused[:, which] = False
    value, count = merge_others(stack, donors, **options)
    for again, counted in (
        merge_others(stack, unused, **options),
        *([without(stack, donors, which, value, count, options)] if len(stack) > 1 else []),
    ):
        assert_same_bits(again, value)
        assert_counts(counted, count)


def without(stack, donors, which, value, count, options):
    """The result without an exposure, whose own place is filled from the one with it."""
    rest = np.arange(len(stack)) != which
    value, count = value.copy(), count.copy()
    value[rest], count[rest] = merge_others(stack[rest], donors[np.ix_(rest, rest)], **options)
    return value, count


@pytest.mark.parametrize("method", METHODS)
def test_a_donor_left_out_is_as_a_masked_one(method):
    stack, donors = stack_of("noise", 6), others(6)
    donors[:, 2] = False
    masked_ = stack.copy()
    masked_[2] = np.nan
    assert_same_bits(merge_others(stack, donors, method=method)[0], merge_others(masked_, others(6), method=method)[0])


@pytest.mark.parametrize("method", METHODS)
def test_pixels_do_not_know_of_each_other(method):
    """Each row, and each column, as if it were alone."""
    stack, donors, noise = stack_of("noise", 7), random_donors(7), np.full(SHAPE, 0.5)
    options = {"method": method, "noise": noise} if method == "mean" else {"method": method}
    value, count = merge_others(stack, donors, **options)
    for at in (np.s_[4:5, :], np.s_[:, 3:4]):
        alone = merge_others(stack[:, *at], donors, **options | ({"noise": noise[at]} if "noise" in options else {}))
        assert_same_bits(alone[0], value[:, *at])
        assert_counts(alone[1], count[:, *at])


# Shapes and memory


@pytest.mark.parametrize("method", METHODS)
def test_one_exposure_has_no_others(method):
    value, count = merge_others(stack_of("noise", 1, 0), np.zeros((1, 1), bool), method=method)
    assert value.shape == count.shape == (1, *SHAPE)
    assert value.dtype == np.float32
    assert np.isnan(value).all()
    assert_counts(count, np.zeros_like(count))


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 1), (129, 70)])
def test_any_shape(shape):
    for n, donors in ((5, others(5)), (4, groups_out(4, 2))):
        stack = stack_of("noise", n, shape=shape)
        assert_median(stack, donors)
        assert_mean(stack, donors, noise=np.full(shape, 0.6), sigma=2.0)


@pytest.mark.parametrize("method", METHODS)
def test_strips_leave_no_seam(method):
    """A tall image is as its parts, whatever the height of the strips it is worked in."""
    parts = [stack_of("ties", 13, seed=seed, shape=(60, 500)) for seed in range(5)]
    whole = np.concatenate(parts, axis=1)
    noise = np.random.default_rng(3).choice([0.4, 0.9, np.nan], whole.shape[1:])
    options = {"method": method, "sigma": 1.5} | ({"noise": noise} if method == "mean" else {})
    value, count = merge_others(whole, others(13), **options)
    for k, part in enumerate(parts):
        rows = np.s_[60 * k : 60 * (k + 1)]
        alone = merge_others(part, others(13), **options | ({"noise": noise[rows]} if method == "mean" else {}))
        assert_same_bits(value[:, rows], alone[0])
        assert_counts(count[:, rows], alone[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_no_pixels(method, shape):
    value, count = merge_others(np.empty((3, *shape), np.float32), others(3), method=method)
    assert value.shape == count.shape == (3, *shape)


@pytest.mark.parametrize("nothing", [np.s_[:, 2], np.s_[:, -3:], np.s_[:, :2], np.s_[:, :, 4], np.s_[1], np.s_[:]])
def test_where_nothing_is(nothing):
    stack = stack_of("noise", 6)
    stack[nothing] = np.nan
    for donors in (others(6), groups_out(6, 3), random_donors(6)):
        assert_median(stack, donors)
        assert_mean(stack, donors)
        assert_mean(stack, donors, noise=np.ones(SHAPE), sigma=1.2)


@pytest.mark.parametrize("donors", DONORS.values(), ids=DONORS)
@pytest.mark.parametrize("method", METHODS)
def test_in_place(method, donors):
    stack = stack_of("noise", 9, shape=(40, 50))
    expected = merge_others(stack.copy(), donors(9), method=method)
    value, count = merge_others(stack, donors(9), method=method, out=stack)
    assert np.shares_memory(value, stack)
    assert_same_bits(stack, expected[0])
    assert_same_bits(value, expected[0])
    assert_counts(count, expected[1])


def test_in_place_with_rejection():
    stack = stack_of("noise", 9, shape=(40, 50))
    noise = np.full((40, 50), 0.5)
    expected = merge_others(stack.copy(), others(9), noise=noise)
    count = merge_others(stack, others(9), noise=noise, out=stack)[1]
    assert_same_bits(stack, expected[0])
    assert_counts(count, expected[1])


@pytest.mark.parametrize("method", METHODS)
def test_the_stack_is_not_changed(method):
    stack = stack_of("noise", 6)
    before = stack.copy()
    stack.flags.writeable = False
    value, _ = merge_others(stack, others(6), method=method)
    assert not np.shares_memory(value, stack)
    assert_same_bits(stack, before)
    out = np.full_like(before, 99)
    value, _ = merge_others(stack, others(6), method=method, out=out)
    assert np.shares_memory(value, out)
    assert_same_bits(stack, before)
    assert_same_bits(out, merge_others(stack, others(6), method=method)[0])


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "exposures last": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(2, 0, 1),
    "every other pixel": lambda a: np.repeat(np.repeat(a, 2, axis=1), 2, axis=2)[:, ::2, ::2],
    "upside down": lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "big-endian": lambda a: a.astype(">f4"),
    "big-endian, exposures last": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).astype(">f4"), -1, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_any_layout_of_stack_and_out(method, layout):
    stack, donors = stack_of("noise", 7), random_donors(7)
    expected, counts = merge_others(stack, donors, method=method)
    given_ = layout(stack)
    np.testing.assert_array_equal(given_, stack)
    value, count = merge_others(given_, donors, method=method)
    assert_same_bits(value, expected)
    assert_counts(count, counts)
    out = layout(np.full_like(stack, 99))
    merge_others(stack, donors, method=method, out=out)
    assert_same_bits(out.astype(np.float32), expected)
    merge_others(given_, donors, method=method, out=given_)
    assert_same_bits(given_.astype(np.float32), expected)


@pytest.mark.parametrize("method", METHODS)
def test_files_in_memory(method, tmp_path):
    stack, donors = stack_of("noise", 7), others(7)
    expected = merge_others(stack, donors, method=method)[0]
    stack.tofile(tmp_path / "stack")
    mapped = np.memmap(tmp_path / "stack", np.float32, "r", shape=stack.shape)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=stack.shape)
    assert_same_bits(merge_others(mapped, donors, method=method)[0], expected)
    merge_others(mapped, donors, method=method, out=out)
    out.flush()
    assert_same_bits(np.fromfile(tmp_path / "out", np.float32).reshape(stack.shape), expected)
    both = np.memmap(tmp_path / "stack", np.float32, "r+", shape=stack.shape)
    merge_others(both, donors, method=method, out=both)
    both.flush()
    assert_same_bits(np.fromfile(tmp_path / "stack", np.float32).reshape(stack.shape), expected)


def peak_in_place(stack, donors, method):
    """Bytes allocated at most, beside the stack that is also the result."""
    noise = {"noise": np.ones(stack.shape[1:], np.float32)} if method == "mean" else {}
    tracemalloc.start()
    try:
        merge_others(stack, donors, method=method, out=stack, **noise)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", METHODS)
def test_of_a_larger_image_only_the_counts_take_more(method):
    """They are half of the stack; everything else is worked in strips."""
    small, large = (stack_of("ties", 16, shape=(rows, 512)) for rows in (160, 320))
    more = peak_in_place(large, others(16), method) - peak_in_place(small, others(16), method)
    assert more < 0.6 * (large.nbytes - small.nbytes)


@pytest.mark.parametrize("width", [1031, 1032, 2048])
def test_bands_of_files_are_bounded_whatever_their_width(width):
    """Where one machine writes; where several do, they begin at pages."""
    stack = np.broadcast_to(np.float32(0), (100, 1024, width))
    stored = SimpleNamespace(shape=stack.shape)
    alone = leave_one_out._bands(stored, Work())
    assert max(rows.stop - rows.start for rows in alone) * width * 100 <= leave_one_out._BAND
    cluster = leave_one_out._bands(stored, SimpleNamespace(shares_memory=False))
    for bands in (alone, cluster):
        assert [row for rows in bands for row in range(rows.start, rows.stop)] == list(range(1024))
    assert all(rows.start * width % leave_one_out._PAGE == 0 for rows in cluster)


# Misuse

STACK = stack_of("noise", 4)
WRONG = {
    "stack": [
        {"stack": STACK[0]},
        {"stack": STACK[None]},
    ],
    "donors": [
        {"donors": others(5)},
        {"donors": others(4)[:3]},
        {"donors": np.ones(4, bool)},
    ],
    "diagonal|itself|own": [
        {"donors": np.ones((4, 4), bool)},
        {"donors": np.eye(4, dtype=bool)},
    ],
    "method": [{"method": "mode"}],
    "noise": [{"noise": np.ones(SHAPE[::-1])}, {"noise": np.ones((4, *SHAPE))}],
    "out": [{"out": np.empty((3, *SHAPE), np.float32)}, {"out": np.empty(SHAPE, np.float32)}],
}


@pytest.mark.parametrize(("named", "wrong"), [(named, wrong) for named, cases in WRONG.items() for wrong in cases])
def test_misuse_is_named(named, wrong):
    arguments = {"stack": STACK, "donors": others(4)} | wrong
    with pytest.raises(ValueError, match=named):
        merge_others(arguments.pop("stack"), arguments.pop("donors"), **arguments)


@pytest.mark.parametrize("wrong", [{"donors": np.ones((4, 4), bool)}, {"noise": np.ones(4)}, {"method": "mode"}])
def test_misuse_changes_nothing(wrong):
    stack = STACK.copy()
    arguments = {"donors": others(4), "out": stack} | wrong
    with pytest.raises(ValueError):
        merge_others(stack, **arguments)
    assert_same_bits(stack, STACK)


@pytest.mark.parametrize("method", ["mean", "median"])
def test_scatters_that_differ_count_as_documented(method):
    """Donor by donor: a mean has the weights 1/s^2; how many donors of scatter 1 would give the same variance."""
    rng, scatter = np.random.default_rng(21), np.array([0.5, 1.0, 2.0, 4.0, 1.5])
    stack = rng.normal(size=(5, 3, 4)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.2] = np.nan
    donors = ~np.eye(5, dtype=bool)
    donors[0, 1] = donors[3, 2] = False
    effective = np.zeros(stack.shape, dtype=np.float32)
    value, count = merge_others(stack, donors, method=method, scatter=scatter, out_effective=effective)
    for place in np.ndindex(stack.shape):
        own = [d for d in range(5) if donors[place[0], d] and np.isfinite(stack[(d, *place[1:])])]
        values, s = stack[(own, *place[1:])].astype(float), scatter[own]
        expected = np.median(values) if method == "median" else np.average(values, weights=s**-2.0)
        number = np.sum(1 / s) ** 2 / len(own) if method == "median" else np.sum(s**-2.0)
        assert count[place] == len(own)
        assert value[place] == pytest.approx(expected, abs=1e-5)
        assert effective[place] == pytest.approx(number, rel=1e-5)
