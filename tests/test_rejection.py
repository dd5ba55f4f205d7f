"""Limits of pairs, by hand, in the sense of PJPipe; and that nothing falls apart."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from bkgmatch.options import LevelMatchOptions
from bkgmatch.pair_fits import PairFits
from bkgmatch.rejection import rejected_pairs

NO_LIMITS = {"min_area_percent": 0.0, "min_linear_frac": 0.0, "rms_sig_limit": 0.0}
ALL_SIX = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
SIDES = np.full((4, 2), 100.0)


def fits(pairs=ALL_SIX, *, npix=1000, extent=50, rms=1.0):
    first, second = np.asarray(pairs).T
    n = len(first)
    return PairFits(
        first,
        second,
        estimate=np.zeros((n, 1)),
        normal=np.ones((n, 1, 1)),
        npix=np.broadcast_to(np.asarray(npix, dtype=float), n).copy(),
        expected=np.ones((n, 2)),
        excess=np.ones(n),
        extent=np.broadcast_to(np.asarray(extent, dtype=float), (n, 2)).copy(),
        rms=np.broadcast_to(np.asarray(rms, dtype=float), n).copy(),
    )


def rejected(some, *, sides=SIDES, **limits):
    return np.flatnonzero(rejected_pairs(some, sides, LevelMatchOptions(**NO_LIMITS | limits))).tolist()


def pieces(n, some, used):
    links = sparse.coo_array((np.ones(used.sum()), (some.first[used], some.second[used])), shape=(n, n))
    return connected_components(links, directed=False)[1]


def test_no_pairs():
    assert rejected(fits(np.zeros((0, 2), dtype=int))) == []


def test_no_limits():
    wild = fits(npix=[1, 1e6, 3, 1e3, 7, 8], rms=[0, 1e6, 1, 2, 3, 4], extent=1)
    assert rejected(wild) == []


@pytest.mark.parametrize(("limit", "expected"), [(0.59, []), (0.61, [2]), (1.01, [0, 2, 3])])
def test_area(limit, expected):
    """Of the mean, 1000: the pixels of pair 2 are 0.6 of it, of pairs 0 and 3 exactly it."""
    some = fits(npix=[1000, 1100, 600, 1000, 1100, 1200])
    assert rejected(some, min_area_percent=limit) == expected


def test_area_equal_to_the_limit_is_kept():
    assert rejected(fits(npix=1000), min_area_percent=1.0) == []


@pytest.mark.parametrize(
    ("extent", "sides", "is_rejected"),
    [
        ((20, 20), (100, 100), True),  # not more than 0.2: rejected
        ((21, 5), (100, 100), False),  # long in one axis is enough
        ((5, 21), (100, 100), False),
        ((15, 15), (100, 70), False),  # long for the small one
        ((15, 15), (100, 90), True),
        ((5, 15), (100, 70), False),
        ((5, 13), (100, 70), True),
    ],
)
def test_extent(extent, sides, is_rejected):
    """Of pair (0, 1), against both axes of both."""
    some = fits(extent=[extent] + [(90, 90)] * 5)
    own = np.array([[sides[0]] * 2, [sides[1]] * 2, [100, 100], [100, 100]], dtype=float)
    assert rejected(some, sides=own, min_linear_frac=0.2) == [0] * is_rejected


def test_extents_are_compared_axis_by_axis():
    own = np.array([[100, 10], [100, 10], [100, 100], [100, 100]], dtype=float)
    assert rejected(fits(extent=[(19, 1)] + [(90, 90)] * 5), sides=own, min_linear_frac=0.2) == [0]
    assert rejected(fits(extent=[(1, 3)] + [(90, 90)] * 5), sides=own, min_linear_frac=0.2) == []


RMS = np.array([1.0, 1.1, 0.9, 1.0, 1.2, 2.0])


def test_rms():
    """Mean 1.2, population standard deviation 0.3697, so that the last is 2.164 of them above."""
    assert RMS.mean() == pytest.approx(1.2)
    assert rejected(fits(rms=RMS), rms_sig_limit=2.15) == [5]
    assert rejected(fits(rms=RMS), rms_sig_limit=2.18) == []
    assert rejected(fits(rms=RMS), rms_sig_limit=0.0) == []  # no limit


def test_rms_is_compared_with_the_pairs_that_the_other_limits_leave():
    """An absurd rms of a tiny overlap must not hide that of another."""
    some = fits(npix=[1, 1000, 1000, 1000, 1000, 1000], rms=[1000, *RMS[1:]])
    left = RMS[1:]
    limit = (2.0 - left.mean()) / left.std()
    assert rejected(some, min_area_percent=0.1, rms_sig_limit=0.99 * limit) == [0, 5]
    assert rejected(some, min_area_percent=0.1, rms_sig_limit=1.01 * limit) == [0]
    assert rejected(some, rms_sig_limit=1.0) == [0]


def test_equal_rms_are_kept():
    assert rejected(fits(rms=0.1), rms_sig_limit=2.0) == []


def test_defaults():
    """Area 0.002 of the mean, and no other limit."""
    some = fits(npix=[1, 1000, 1000, 1000, 1000, 1000], rms=[1, 1, 1, 1, 1, 1e3], extent=[(1, 1)] * 6)
    assert np.flatnonzero(rejected_pairs(some, SIDES, LevelMatchOptions())).tolist() == [0]


def test_bridges_are_kept(caplog):
    """A chain of two groups: the only pair between them is tiny."""
    some = fits([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4], [4, 5], [3, 5]], npix=[1000, 1000, 1000, 1, 1000, 1000, 1000])
    with caplog.at_level(logging.WARNING):
        assert rejected(some, sides=np.full((6, 2), 100.0), min_area_percent=0.5) == []
    assert "hold exposures together" in caplog.text


def test_the_largest_bridge_is_kept():
    some = fits([[0, 1], [2, 3], [0, 2], [1, 3], [1, 2]], npix=[10000, 10000, 10, 30, 20])
    assert rejected(some, min_area_percent=0.5) == [2, 4]


def test_all_pairs_beyond_the_limits():
    """What is left is a tree."""
    some = fits(extent=1, npix=[5, 4, 3, 2, 1, 6])
    found = rejected_pairs(some, SIDES, LevelMatchOptions(**NO_LIMITS | {"min_linear_frac": 0.5}))
    assert np.flatnonzero(~found).tolist() == [0, 1, 5]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(0, 2), st.floats(0, 1), st.floats(0, 2), st.floats(0.2, 1)
)
def test_nothing_falls_apart(n, seed, area, linear, rms, density):
    """Connected before is connected after, whatever the limits; and no more bridges are kept than needed."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < density]).reshape(-1, 2)
    some = fits(
        pairs.astype(int),
        npix=rng.integers(1, 5000, len(pairs)),
        extent=rng.integers(1, 100, (len(pairs), 2)),
        rms=rng.exponential(1.0, len(pairs)),
    )
    options = LevelMatchOptions(min_area_percent=area, min_linear_frac=linear, rms_sig_limit=rms)
    found = rejected_pairs(some, np.full((n, 2), 100.0), options)
    before, after = (pieces(n, some, used) for used in (np.ones(len(pairs), bool), ~found))
    assert before.max() == after.max()
    expected = by_the_book(some, area, linear, rms)
    assert not (found & ~expected).any()  # nothing is rejected that is within the limits
    kept = expected & ~found
    assert kept.sum() == pieces(n, some, ~expected).max() - before.max()


def by_the_book(some, area, linear, rms):
    """PJPipe's three limits, pair by pair, all sides 100."""
    use = np.ones(len(some.first), bool)
    for k in range(len(use)):
        use[k] &= not some.npix[k] < area * np.mean(some.npix)
        use[k] &= any(extent > linear * 100 for extent in some.extent[k])
    if rms and use.any():
        m, s = np.mean(some.rms[use]), np.std(some.rms[use])
        use &= ~(some.rms > m + rms * s)
    return ~use
