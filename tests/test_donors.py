"""Who may serve whom: against a double loop over pairs."""

import re

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from bkgmatch import donors as donors_module
from bkgmatch.footprints import unit_vectors
from bkgmatch.options import ImageForImageOptions


def options(**kwargs):
    return ImageForImageOptions(**{"max_dt": None, "min_offset": 0, "min_members": 1} | kwargs)


def find_donors(centres, times, opts, usable=None):
    """All exposures have good pixels unless they are said to have none."""
    return donors_module.find_donors(centres, times, np.ones(len(centres), bool) if usable is None else usable, opts)


def at(*positions):
    return unit_vectors(*np.array(positions, dtype=float).T)


def brute(positions, times, opts):
    """Separations by astropy, one pair after the other."""
    sky = [SkyCoord(*p, unit="deg") for p in positions]
    n = len(sky)
    serves = np.zeros((n, n), dtype=bool)
    for t in range(n):
        for d in range(n):
            known = times[t] is not None and times[d] is not None
            late = opts.max_dt is not None and known and abs(times[t] - times[d]) > opts.max_dt
            close = sky[t].separation(sky[d]) < opts.min_offset * u.arcsec
            serves[t, d] = t != d and not late and not close
        if serves[t].sum() < opts.min_members:
            serves[t] = False
    return serves


@pytest.mark.parametrize("centre", [(150, 2), (0, -30), (77, 89.9999), (200, -90)])
@pytest.mark.parametrize("seed", range(4))
def test_as_a_double_loop(centre, seed):
    rng = np.random.default_rng(seed)
    n = 9
    middle = SkyCoord(*centre, unit="deg")
    sky = middle.directional_offset_by(rng.uniform(0, 360, n) * u.deg, rng.uniform(0, 4, n) * u.arcsec)
    positions = np.column_stack([sky.ra.deg, sky.dec.deg])
    times = [None if rng.random() < 0.2 else float(t) for t in rng.uniform(0, 12, n)]
    opts = options(max_dt=5.0, min_offset=1.5, min_members=3)
    donors = find_donors(at(*positions), times, opts)
    np.testing.assert_array_equal(donors.serves, brute(positions, times, opts))
    np.testing.assert_array_equal([bool(reason) for reason in donors.lacking], ~donors.serves.any(axis=1))


def test_the_double_loop_sees_both_answers():
    positions, times = [(10, 0), (10, 1), (10, 2)], [0.0, 1.0, 20.0]
    np.testing.assert_array_equal(brute(positions, times, options(max_dt=2)).sum(axis=1), [1, 1, 0])


def test_order_does_not_matter():
    rng = np.random.default_rng(1)
    centres = at(*zip(150 + rng.uniform(0, 1e-3, 12), rng.uniform(0, 1e-3, 12), strict=True))
    times = [None, *rng.uniform(0, 20, 11)]
    opts = options(max_dt=7.0, min_offset=1.0, min_members=3)
    one = find_donors(centres, times, opts)
    order = rng.permutation(12)
    other = find_donors(centres[order], [times[k] for k in order], opts)
    np.testing.assert_array_equal(other.serves, one.serves[np.ix_(order, order)])
    assert other.lacking == tuple(one.lacking[k] for k in order)


@pytest.mark.parametrize(("max_dt", "expected"), [(None, 3), (0.0, 1), (1.0, 2), (1e6, 3)])
def test_longest_time(max_dt, expected):
    centres = at((0, 0), (0, 1), (0, 2), (0, 3))
    donors = find_donors(centres, [0.0, 0.0, 1.0, 1000.0], options(max_dt=max_dt))
    assert donors.serves[0].sum() == expected


def test_the_limits_themselves_are_allowed():
    donors = find_donors(at((0, 0), (0, 1 / 3600)), [0.0, 7.0], options(max_dt=7.0, min_offset=1 - 1e-9))
    assert donors.serves.sum() == 2


def test_exposures_without_a_time_serve_all():
    donors = find_donors(at((0, 0), (0, 1), (0, 2)), [None, 0.0, 100.0], options(max_dt=1.0))
    np.testing.assert_array_equal(donors.serves, [[False, True, True], [True, False, False], [True, False, False]])


def test_repeats_at_one_place_are_left_out_unless_they_are_allowed():
    centres = at((0, 0), (0, 0), (0, 1))
    assert find_donors(centres, [0.0] * 3, options(min_offset=0)).serves.sum() == 6
    np.testing.assert_array_equal(
        find_donors(centres, [0.0] * 3, options(min_offset=1e-3)).serves.sum(axis=1), [1, 1, 2]
    )


@pytest.mark.parametrize(
    ("one", "two", "separation"),
    [
        ((359.9999, 0), (0.0001, 0), 0.72),
        ((0, 89.9999), (180, 89.9999), 0.72),
        ((12, -90), (250, -90), 0),
        ((10, 60), (10 + 1 / 1800, 60), 1.0),  # 2 arcsec of right ascension
    ],
)
def test_offsets_are_those_on_the_sphere(one, two, separation):
    for min_offset, served in ((separation - 1e-6, True), (separation + 1e-6, False)):
        donors = find_donors(at(one, two), [0.0, 0.0], options(min_offset=max(min_offset, 0)))
        assert donors.serves.any() == served


def test_tiny_and_huge_offsets():
    """The chord is not rounded away at milliarcseconds, and antipodes are 180 degrees apart."""
    near = at((150, 2), (150, 2 + 1e-3 / 3600))
    assert find_donors(near, [0.0] * 2, options(min_offset=0.9e-3)).serves.any()
    assert not find_donors(near, [0.0] * 2, options(min_offset=1.1e-3)).serves.any()
    assert find_donors(at((0, 0), (180, 0)), [0.0] * 2, options(min_offset=3600 * 179)).serves.any()


def test_reasons_name_the_numbers():
    centres = at((0, 0), (0, 0.1 / 3600), (0, 0.2 / 3600), (0, 1), (0, 2))
    donors = find_donors(centres, [0.0, 0.0, 0.0, 50.0, 0.0], options(max_dt=3.5, min_offset=2.0, min_members=2))
    reason = donors.lacking[0]
    numbers = re.findall(r"[\d.]+", reason)
    for expected in ("1", "4", "2", "3.5"):  # 1 of 4 serves; min_members; max_dt
        assert expected in numbers
    for word in ("min_members=2", "max_dt=3.5", "min_offset=2"):
        assert word in reason
    assert not donors.serves[0].any()
    assert donors.lacking[4] == ""


def test_one_that_lacks_donors_may_serve():
    """Time leaves the first with one donor only; it is still part of the others' backgrounds."""
    donors = find_donors(at((0, 0), (0, 1), (0, 2), (0, 3)), [0.0, 5.0, 10.0, 10.0], options(max_dt=7, min_members=2))
    np.testing.assert_array_equal(donors.serves.sum(axis=1), [0, 3, 2, 2])
    assert donors.serves[1, 0]
    assert donors.lacking[0]
    assert donors.lacking[1:] == ("", "", "")


def test_a_lonely_exposure_says_so():
    donors = find_donors(at((0, 0)), [None], options())
    assert donors.serves.shape == (1, 1)
    assert not donors.serves.any()
    assert "no other exposure" in donors.lacking[0]


def test_no_exposures():
    donors = find_donors(np.zeros((0, 3)), [], options())
    assert donors.serves.shape == (0, 0)
    assert donors.lacking == ()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("method", "mode"),
        ("scale", "both"),
        ("sigma", 0.0),
        ("sigma", np.nan),
        ("max_dt", -1.0),
        ("max_dt", np.nan),
        ("min_offset", -1.0),
        ("min_offset", np.nan),
        ("min_members", 0),
        ("snr_threshold", 0.0),
        ("npixels", 0),
        ("kernel_fwhm", -1.0),
        ("bkg_boxsize", -1),
        ("grow", -0.1),
        ("dilate_size", -1),
        ("maxiters", 0),
    ],
)
def test_bad_options_are_named(name, bad):
    with pytest.raises(ValueError, match=name):
        ImageForImageOptions(**{name: bad})


def test_exposures_without_pixels_serve_none():
    centres, usable = at((0, 0), (0, 1), (0, 2), (0, 3)), np.array([True, False, True, True])
    donors = find_donors(centres, [0.0] * 4, options(min_members=2), usable)
    np.testing.assert_array_equal(donors.serves.sum(axis=0), [3, 0, 3, 3])
    np.testing.assert_array_equal(donors.serves.sum(axis=1), [2, 3, 2, 2])
    lacking = find_donors(centres, [0.0] * 4, options(min_members=3), usable).lacking
    assert [bool(reason) for reason in lacking] == [True, False, True, True]
    assert "1 without a good pixel" in lacking[0]
