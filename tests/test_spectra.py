"""Matching of spectral exposures: against known polynomials, dense least squares and the scatter of errors."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from ifu import (
    DITHERS,
    PLACE,
    SMALL,
    Box,
    backgrounds,
    dithers,
    exposure,
    exposures,
    polynomial,
    positions,
    scaled,
    smooth_sky,
    star,
    voxels,
    wrap,
)
from numpy.polynomial.polynomial import polyval3d, polyvander3d

from bkgmatch import spectral_fit
from bkgmatch.execution import threads
from bkgmatch.exposures import SpectralExposure, SpectralPixels
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.spectra import Polynomial, match_spectra, match_voxels
from bkgmatch.spectral_samples import Samples
from bkgmatch.spectral_state import State
from bkgmatch.voxels import middles

DEGREES = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (1, 0, 2)]
SHAPE = (12, 14, 96)
OPTIONS = MRSIMatchOptions(wavelength_cells=12)
NOISE = 0.3
FAR = 40.0  # arcsec
BOXES = [
    ((0, 20), (0, 20), (0, 12)),
    ((5, 25), (3, 23), (0, 12)),
    ((-4, 16), (4, 24), (0, 12)),
    ((2, 22), (-6, 14), (0, 12)),
]


def noisy(places, functions, *, seed=1, noise=NOISE, sky=smooth_sky, peak=0.0):
    rng = np.random.default_rng(seed)
    return [
        sky(at) + polynomial(f, at) + star(at, peak=peak) + rng.normal(0, noise, at.x.size)
        for at, f in zip(places, functions, strict=True)
    ]


def values_of(found, at):
    """Polynomials of all exposures at some positions."""
    return np.array([found.polynomial(i)(at.ra, at.dec, at.wavelength) for i in range(len(found.names))])


def truth_of(functions, at, place=PLACE):
    values = np.array([polynomial(f, at, place) for f in functions])
    return values - values.mean(axis=0)


def same(one, two, atol=1e-10):
    """Equal coefficients, to a part of their errors."""
    np.testing.assert_allclose((one.coefficients - two.coefficients) / one.errors, 0, atol=atol)
    np.testing.assert_allclose(two.errors, one.errors, rtol=max(atol, 1e-10))


def moved(one, two, places, members=slice(None)):
    """Change of the mean of each polynomial over fixed positions, in standard errors."""
    change = values_of(two, places[0])[members] - values_of(one, places[0])
    return change.mean(axis=1) / one.sigma


@pytest.fixture(scope="module")
def scene():
    """Four dithers, their backgrounds, values and match."""
    places = dithers(4, shape=SHAPE)
    functions = backgrounds(np.random.default_rng(0), 4, (1, 1, 1))
    values = noisy(places, functions)
    return places, functions, values, match_spectra(exposures(places, values), OPTIONS)


# Known polynomials


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("degree", DEGREES)
def test_polynomials_without_noise_are_recovered(degree, offset):
    found, functions = box_match(np.random.default_rng(1), degree, offset=offset)
    limit = 0.02 if offset else 1e-5  # away from the middle the sky counts as linear over a voxel
    np.testing.assert_allclose(box_values(found), box_truth(functions), atol=limit)


@pytest.mark.parametrize("degree", [(0, 0, 0), (1, 1, 1), (2, 2, 2), (1, 0, 2)])
def test_polynomials_with_little_noise_are_recovered(degree):
    found, functions = box_match(np.random.default_rng(1), degree, noise=1e-6, variance=1e-12)
    np.testing.assert_allclose(box_values(found), box_truth(functions), atol=2e-5)


def test_little_noise_and_pixels_away_from_the_middle_of_voxels():
    found, functions = box_match(np.random.default_rng(1), (1, 1, 1), offset=0.3, noise=1e-6, variance=1e-12)
    np.testing.assert_allclose(box_values(found), box_truth(functions), atol=0.01)
    assert found.loose == ((),) * 4


@pytest.mark.parametrize("big", [1e8, 1e10, 1e30, -1e100])
@pytest.mark.parametrize("cells", [12, 96])
def test_a_damaged_pixel_changes_nothing(big, cells):
    """Also where voxels hold so few pixels that none is an outlier."""
    places = dithers(4, shape=SHAPE)
    functions = backgrounds(np.random.default_rng(0), 4, (1, 1, 1))
    values = noisy(places, functions)
    settings = MRSIMatchOptions(wavelength_cells=cells)
    before = match_spectra(exposures(places, values), settings)
    values[1][values[1].size // 3] = big
    found = match_spectra(exposures(places, values), settings)
    assert found.status == before.status
    np.testing.assert_allclose(found.level, before.level, atol=before.sigma.max())
    np.testing.assert_allclose(found.sigma, before.sigma, rtol=0.2)


def test_pixels_away_from_the_middle_of_voxels():
    found, functions = box_match(np.random.default_rng(1), (1, 1, 1), offset=0.3, noise=0.01, variance=1e-4)
    np.testing.assert_allclose(box_values(found), box_truth(functions), atol=0.01)


def box_match(rng, degree, *, n=4, options=None, functions=None, **kwargs):
    if functions is None:
        functions = rng.normal(size=(n, *(d + 1 for d in degree)))
    given = [voxels(rng, box, f, **kwargs) for box, f in zip(BOXES, functions, strict=False)]
    options = options or MRSIMatchOptions(bkg_degree=degree)
    return match_voxels("abcd"[: len(given)], given, Box(), options), functions


POINTS = np.random.default_rng(0).uniform([[0], [0], [0]], [[20], [20], [12]], (3, 200))


def box_values(found):
    return np.array([found.polynomial(i)(*Box().world(POINTS)) for i in range(len(found.names))])


def box_truth(functions):
    values = np.array([polyval3d(*scaled(POINTS), f) for f in functions])
    return values - values.mean(axis=0)


def test_backgrounds_are_recovered_within_the_noise(scene):
    places, functions, _, found = scene
    for at in places:
        errors = values_of(found, at) - truth_of(functions, at)
        assert np.sqrt(np.mean(errors**2)) < 0.2 * NOISE
    assert found.status == ("matched",) * 4
    assert found.loose == ((),) * 4
    assert not found.bounded.any()


def test_levels_are_means_over_the_common_voxels(scene):
    places, functions, _, found = scene
    expected = [truth_of(functions, at)[i].mean() for i, at in enumerate(places)]
    np.testing.assert_allclose(found.level, expected, atol=0.3)  # of most of the field
    assert (np.abs(found.level) > 10 * found.sigma).any()


def test_coefficients_sum_to_zero_about_one_point(scene):
    found = scene[3]
    sizes = np.abs(found.coefficients).max(axis=0)
    np.testing.assert_allclose(found.coefficients.sum(axis=0) / sizes, 0, atol=1e-12)
    assert (found.refpoint == found.refpoint[0]).all()
    ra, dec, wavelength = found.refpoint[0]
    assert abs(wrap(ra - PLACE[0])) * 3600 < 3
    assert abs(dec - PLACE[1]) * 3600 < 3
    assert wavelength == pytest.approx(5.5, abs=0.1)


@pytest.mark.parametrize("ra", [0.0, 359.99995, 180.0])
def test_right_ascension_zero_is_like_elsewhere(ra):
    found = []
    for place in (ra, 20.0), (83.6, 20.0):
        places = dithers(3, place=place, shape=SHAPE)
        functions = backgrounds(np.random.default_rng(2), 3, (1, 1, 1))
        rng = np.random.default_rng(3)
        values = [
            polynomial(f, at, place) + rng.normal(0, NOISE, at.x.size) for f, at in zip(functions, places, strict=True)
        ]
        found.append(match_spectra(exposures(places, values), OPTIONS))
    same(*found, atol=0.01)
    assert wrap(found[0].refpoint[0, 0] - ra) == pytest.approx(wrap(found[1].refpoint[0, 0] - 83.6), abs=1e-8)
    assert 0 <= found[0].refpoint[0, 0] < 360


def test_order_of_input_does_not_matter(scene):
    places, _, values, found = scene
    order = [2, 0, 3, 1]
    given = exposures(places, values)
    other = match_spectra([given[i] for i in order], OPTIONS)
    assert other.names == tuple(found.names[i] for i in order)
    np.testing.assert_allclose(other.coefficients, found.coefficients[order], rtol=1e-10)
    np.testing.assert_allclose(other.errors, found.errors[order], rtol=1e-10)
    np.testing.assert_array_equal(other.npix, found.npix[order])


def test_names_do_not_matter(scene):
    places, _, values, found = scene
    given = [replace(e, name=name) for e, name in zip(exposures(places, values), "dbca", strict=True)]
    same(found, match_spectra(given, OPTIONS), atol=1e-8)


def test_pairs_differ_by_the_levels(scene):
    places, _, values, found = scene
    order = [2, 0, 3, 1]
    given = exposures(places, values)
    for match, numbers in (found, range(4)), (match_spectra([given[i] for i in order], OPTIONS), order):
        numbers = np.array(numbers)
        pairs = match.pairs
        assert {frozenset(p) for p in zip(pairs.first, pairs.second, strict=True)} == set(
            map(frozenset, combinations(range(4), 2))
        )
        offset = [
            np.mean(values[numbers[i]]) - np.mean(values[numbers[j]])
            for i, j in zip(pairs.first, pairs.second, strict=True)
        ]
        assert np.corrcoef(pairs.offset, offset)[0, 1] > 0.8
        assert (np.abs(pairs.residual) < 5 * pairs.sigma).all()


def test_first_of_a_pair_is_before_second(scene):
    places, _, values, _ = scene
    pairs = match_spectra(exposures(places, values)[::-1], OPTIONS).pairs
    assert (pairs.first < pairs.second).all()


def test_two_cores_give_the_same_numbers(scene):
    places, _, values, found = scene
    with threads(2) as work:
        other = match_spectra(exposures(places, values), OPTIONS, work=work)
    np.testing.assert_array_equal(other.coefficients, found.coefficients)
    np.testing.assert_array_equal(other.errors, found.errors)


def test_variances_that_are_far_too_large():
    found, functions = box_match(np.random.default_rng(1), (1, 1, 1), noise=1e-6, variance=1.0)
    np.testing.assert_allclose(box_values(found), box_truth(functions), atol=1e-5)


# What changes, and what does not


def test_adding_a_polynomial_to_one_exposure_moves_its_own(scene):
    """About the reference point, its coefficients by what was added, less the mean over the exposures."""
    places, _, values, found = scene
    extra = 3600.0 ** np.array([0, 0, 1, 1, 1, 1, 2, 2]) * [3, -2, 0.5, 1, -0.7, 0.3, 0.2, 0.4]
    function = Polynomial((1, 1, 1), tuple(found.refpoint[0]), extra)
    at = places[1]
    moved = [values[0], values[1] + function(at.ra, at.dec, at.wavelength), *values[2:]]
    other = match_spectra(exposures(places, moved), OPTIONS)
    expected = np.outer(np.arange(4) == 1, extra) - extra / 4
    np.testing.assert_allclose((other.coefficients - found.coefficients - expected) / found.errors, 0, atol=1.5)


def test_adding_a_constant_to_one_exposure_moves_its_level(scene):
    places, _, values, found = scene
    other = match_spectra(exposures(places, [values[0], values[1] + 100.0, *values[2:]]), OPTIONS)
    np.testing.assert_allclose((other.level - found.level - [-25, 75, -25, -25]) / found.sigma, 0, atol=1e-3)
    same(
        found, replace(other, coefficients=other.coefficients - np.outer([-25, 75, -25, -25], np.eye(8)[0])), atol=1e-3
    )


@pytest.mark.parametrize("sky", [lambda at: 7.0 + 3 * at.x - 2 * at.y + at.wavelength, lambda at: 4 * smooth_sky(at)])
def test_what_all_exposures_see_moves_nothing(scene, sky):
    places, _, values, found = scene
    other = match_spectra(exposures(places, [v + sky(at) for v, at in zip(values, places, strict=True)]), OPTIONS)
    assert np.sqrt(np.mean(((other.coefficients - found.coefficients) / found.errors) ** 2)) < 1
    np.testing.assert_allclose((other.level - found.level) / found.sigma, 0, atol=2)


@pytest.mark.parametrize("unit", [1e-15, 1e15, 1e-3])
def test_units_do_not_matter(scene, unit):
    places, _, values, found = scene
    other = match_spectra(exposures(places, [v * unit for v in values]), OPTIONS)
    same(found, replace(other, coefficients=other.coefficients / unit, errors=other.errors / unit), atol=1e-6)


def test_a_constant_with_extreme_units():
    for unit in (1e-15, 1e15):
        functions = unit * np.array([1.0, 3, -2, 6])[:, None, None, None]
        found, _ = box_match(np.random.default_rng(4), (0, 0, 0), functions=functions, noise=0.1 * unit)
        np.testing.assert_allclose(found.level / unit, [-1, 1, -4, 4], atol=0.02)


def test_variances_are_measured_where_they_are_not_known(scene):
    places, _, values, found = scene
    known = match_spectra(exposures(places, values, variance=NOISE**2), OPTIONS)
    np.testing.assert_allclose(known.sigma, found.sigma, rtol=0.1)
    np.testing.assert_allclose((known.level - found.level) / found.sigma, 0, atol=2)


def test_given_variances_need_only_be_relative(scene):
    places, _, values, _ = scene
    one, two = (match_spectra(exposures(places, values, variance=v), OPTIONS) for v in (NOISE**2, 9 * NOISE**2))
    np.testing.assert_allclose(two.sigma, one.sigma, rtol=0.15)
    np.testing.assert_allclose((two.level - one.level) / one.sigma, 0, atol=1)


# Sets, and misfortune


def far(at, shift=FAR):
    """The same positions to the north."""
    return at._replace(y=at.y + shift, dec=at.dec + shift / 3600)


def test_two_sets_are_matched_each_as_alone(scene):
    places, functions, values, _ = scene
    for shift in (FAR, 3600 * 2.0):  # on one grid; on two
        others = [far(at, shift) for at in places[:3]]
        one, two = exposures(places, values), exposures(others, values[:3], prefix="z")
        found = match_spectra([*one, *two], OPTIONS)
        assert found.component.tolist() == [0, 0, 0, 0, 1, 1, 1]
        for part, members in (slice(0, 4), places), (slice(4, 7), others):
            values_here = [
                found.polynomial(i)(at.ra, at.dec, at.wavelength) for i, at in enumerate(members, part.start)
            ]
            sums = found.coefficients[part].sum(axis=0) / np.abs(found.coefficients[part]).max(axis=0)
            np.testing.assert_allclose(sums, 0, atol=1e-9)
            truth = [truth_of(functions[: len(members)], at)[i] for i, at in enumerate(places[: len(members)])]
            np.testing.assert_allclose(np.mean(values_here, axis=1), np.mean(truth, axis=1), atol=0.05)


def test_a_set_far_away_changes_nothing(scene):
    places, _, values, found = scene
    others = exposures([far(at, 7200.0) for at in places[:2]], values[:2], prefix="z")
    both = match_spectra([*exposures(places, values), *others], OPTIONS)
    np.testing.assert_allclose(both.coefficients[:4], found.coefficients, rtol=1e-10)
    np.testing.assert_allclose(both.refpoint[:4], found.refpoint)


@pytest.mark.parametrize("gap", [1.75, 1.9])
def test_the_level_of_a_lone_exposure_beside_others_moves_nothing(gap):
    """Their voxels touch: a gradient of the sky from one to the other would be that of the unknown level."""
    places = [*dithers(2, shape=SMALL), positions((0.4, gap), shape=SMALL)]
    values = noisy(places, backgrounds(np.random.default_rng(3), 3, (0, 0, 0)))
    options = MRSIMatchOptions(bkg_degree=0, wavelength_cells=12)
    one, two = (match_spectra(exposures(places, [*values[:2], values[2] + k]), options) for k in (0.0, 100.0))
    assert one.status == two.status == ("matched", "matched", "no overlap")
    np.testing.assert_allclose(two.level, one.level, rtol=0, atol=1e-10)


def test_twins_do_not_drown_the_others(scene):
    """Two exposures with the same values agree exactly: that is not for want of noise."""
    places, functions, values, plain = scene
    found = match_spectra(exposures([*places, places[1]], [*values, values[1]]), OPTIONS)
    np.testing.assert_allclose(
        found.coefficients[4] / found.errors[4], found.coefficients[1] / found.errors[1], atol=1e-6
    )
    errors = []
    for one in (plain, found):
        fitted = values_of(one, places[0])[:4]
        errors.append(np.std(fitted - fitted.mean(axis=0) - truth_of(functions, places[0])))
    assert errors[1] < 2 * errors[0]
    assert (found.sigma > 0.5 * plain.sigma.min()).all()


@pytest.mark.parametrize("shift", [FAR, 7200.0])
def test_a_lone_exposure_is_left_as_it_is(scene, shift):
    places, _, values, found = scene
    lone = exposure("alone", far(places[0], shift), values[0])
    both = match_spectra([lone, *exposures(places, values)], OPTIONS)
    assert both.component.tolist() == [0, 1, 1, 1, 1]
    assert both.status == ("no overlap", *("matched",) * 4)
    assert (both.coefficients[0] == 0).all()
    assert both.level[0] == both.sigma[0] == both.npix[0] == 0
    np.testing.assert_allclose(moved(found, both, places, slice(1, None)), 0, atol=2)


def test_a_single_exposure(scene):
    places, _, values, _ = scene
    found = match_spectra([exposure("a", places[0], values[0])], OPTIONS)
    assert found.status == ("no overlap",)
    assert found.component.tolist() == [0]
    assert (found.coefficients == 0).all()
    assert len(found.pairs.first) == 0
    assert "no overlap" in str(found)


def without_pixels(kind, at):
    if kind == "from arrays":
        return exposure("bad", at, np.full(at.x.size, np.nan))
    nothing = SpectralPixels(*np.zeros((4, 0)))
    return SpectralExposure("bad", lambda: nothing, PLACE, (5.0, 6.0), 0.2)


@pytest.mark.parametrize("kind", ["from arrays", "read later"])
def test_an_exposure_without_good_pixels(scene, kind):
    places, _, values, found = scene
    both = match_spectra([without_pixels(kind, places[0]), *exposures(places, values)], OPTIONS)
    assert both.status == ("no good pixels", *("matched",) * 4)
    assert both.component.tolist() == [-1, 0, 0, 0, 0]
    assert np.isnan(both.coefficients[0]).all()
    assert np.isnan([both.level[0], both.sigma[0]]).all()
    np.testing.assert_allclose(moved(found, both, places, slice(1, None)), 0, atol=2)
    assert np.isfinite(both.coefficients[1:]).all()


@pytest.mark.parametrize("kind", ["from arrays", "read later"])
def test_nothing_but_exposures_without_good_pixels(scene, kind):
    found = match_spectra([without_pixels(kind, scene[0][0])], OPTIONS)
    assert found.status == ("no good pixels",)
    assert found.component.tolist() == [-1]
    assert np.isnan(found.coefficients).all()
    assert found.coefficients.shape == (1, 8)


def test_bad_input(scene):
    places, _, values, _ = scene
    given = exposures(places, values)
    with pytest.raises(ValueError, match="no exposures to match"):
        match_spectra([])
    with pytest.raises(ValueError, match="more than once: e0"):
        match_spectra([given[0], given[1], given[0]])


@pytest.mark.parametrize("what", ["ra", "dec", "wavelength", "good", "variance"])
def test_shapes_must_agree(what):
    given = {key: np.zeros((2, 3)) for key in ("data", "ra", "dec", "wavelength")}
    given[what] = np.zeros((3, 2))
    with pytest.raises(ValueError, match=rf"x: {what} has shape \(3, 2\), the data \(2, 3\)"):
        SpectralExposure.from_arrays("x", **given, slice_width=0.2)


def test_arrays_may_have_any_shape_and_a_mask():
    data = np.arange(24.0).reshape(2, 3, 4)
    good = data % 2 == 0
    made = SpectralExposure.from_arrays("x", data, data, data, data + 5, slice_width=0.2, good=good)
    np.testing.assert_array_equal(made.read().value, data[good])
    assert made.wavelengths == (5.0, 27.0)
    assert made.read().variance is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"bkg_degree": -1}, "bkg_degree must be whole numbers from 0 to 100"),
        ({"bkg_degree": (1, 2)}, "bkg_degree must be one integer or 3"),
        ({"bkg_degree": 1.5}, "whole numbers"),
        ({"weights": "equal"}, "weights must be one of ml, pairs; got 'equal'"),
        ({"clip": "no"}, "clip must be one of pairs, image"),
        ({"sigma": 0}, "sigma must be positive, got 0"),
        ({"sigma": np.nan}, "sigma must be positive"),
        ({"cell_size": -1.0}, "cell_size must be positive"),
        ({"maxiters": -1}, "maxiters must not be negative"),
        ({"wavelength_cells": 0}, "wavelength_cells must be positive"),
    ],
)
def test_bad_options(bad, message):
    with pytest.raises(ValueError, match=message):
        MRSIMatchOptions(**bad)


@pytest.mark.parametrize("shape", [(30,), (5, 6)])
def test_polynomial_against_numpy(shape):
    rng = np.random.default_rng(5)
    coefficients = rng.normal(size=(2, 3, 4))
    made = Polynomial((1, 2, 3), (359.9, -30.0, 7.0), coefficients.ravel())
    dra, ddec, dw = rng.uniform(-0.5, 0.5, (3, *shape))
    found = made((359.9 + dra) % 360, -30 + ddec, 7 + dw)
    np.testing.assert_allclose(found, polyval3d(dra, ddec, dw, coefficients), atol=1e-10)
    assert found.shape == shape


# Outliers


def test_cosmic_rays_and_a_ghost_do_not_move_the_answer(scene):
    """Means by no more than one and a half of their errors, tilts by seven: they cost a few voxels."""
    places, _, values, found = scene
    rng = np.random.default_rng(6)
    spoilt = [v.copy() for v in values]
    for v in spoilt:
        hit = rng.random(v.size) < 0.005
        v[hit] += rng.exponential(300, hit.sum())
    ghost = np.hypot(places[1].x - DITHERS[1][0] - 0.5, places[1].y - DITHERS[1][1]) < 0.3
    spoilt[1][ghost] += 50
    other = match_spectra(exposures(places, spoilt), OPTIONS)
    np.testing.assert_allclose(moved(found, other, places), 0, atol=1.5)
    np.testing.assert_allclose((other.coefficients - found.coefficients) / found.errors, 0, atol=7)


def test_a_star_that_is_sampled_differently_does_not_move_the_answer():
    """By no more than four of its errors, which it makes larger."""
    places = dithers(4, shape=(20, 22, 96))
    functions = backgrounds(np.random.default_rng(0), 4, (1, 1, 1))
    one, two = (match_spectra(exposures(places, noisy(places, functions, peak=peak)), OPTIONS) for peak in (0, 300))
    np.testing.assert_allclose(moved(two, one, places), 0, atol=4)
    np.testing.assert_allclose((two.coefficients - one.coefficients) / two.errors, 0, atol=5)
    assert (two.sigma > 0.9 * one.sigma).all()


@pytest.mark.parametrize("change", [{"clip": "image", "sigma": 6.0}, {"weights": "pairs"}, {"maxiters": 0}])
def test_ways_agree_where_there_is_nothing_to_clip(scene, change):
    places, _, values, found = scene
    other = match_spectra(exposures(places, values), replace(OPTIONS, **change))
    np.testing.assert_allclose(moved(found, other, places), 0, atol=1)
    np.testing.assert_allclose((other.coefficients - found.coefficients) / found.errors, 0, atol=2.5)


def test_clip_image_leaves_out_bright_values(scene):
    places, _, values, found = scene
    spoilt = [v.copy() for v in values]
    spoilt[2][np.hypot(places[2].x, places[2].y) < 0.3] += 1e4
    other = match_spectra(exposures(places, spoilt), replace(OPTIONS, clip="image"))
    np.testing.assert_allclose(moved(found, other, places), 0, atol=3)


# Dense least squares


@pytest.fixture
def given_weights(monkeypatch):
    """The noise is taken as it is given, and the prior is next to nothing."""
    weak = np.full(27, 1e-7)
    weak[0] = 0
    monkeypatch.setattr(spectral_fit, "_prior", lambda samples, sums, scale: weak[: samples.basis.size])
    monkeypatch.setattr(spectral_fit, "_misfit", lambda samples, state: 1.0, raising=False)
    monkeypatch.setattr(spectral_fit, "measured", lambda samples, state: (state, np.zeros(len(samples.value))))


def dense(given, degree):
    """Per sample: exposure, voxel, design matrix of scaled grid coordinates, value and weight."""
    where = np.concatenate([np.full(len(v.number), i) for i, v in enumerate(given)])
    number = np.concatenate([v.number for v in given])
    value, variance = (np.concatenate([getattr(v, name) for v in given]) for name in ("value", "variance"))
    axes = [((number >> 20 * (2 - k)) & (2**20 - 1)) - 2**19 + 0.5 for k in range(3)]
    return where, number, polyvander3d(*scaled(np.array(axes)), degree), value, 1 / variance


def random_voxels(rng, degree, variances):
    functions = rng.normal(size=(4, *(d + 1 for d in degree)))
    boxes = [tuple((a // 2, b // 2) for a, b in box) for box in BOXES]
    made = zip(boxes, functions, variances, strict=True)
    return [voxels(rng, b, f, noise=np.sqrt(v), variance=v, sky=lambda at: np.sin(at.sum(axis=0))) for b, f, v in made]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("variances", [(1, 1, 1, 1), (1, 3, 0.5, 2)])
def test_maximum_likelihood_against_a_free_sky_in_each_voxel(given_weights, degree, variances):
    """The sky values are eliminated one voxel after the other."""
    given = random_voxels(np.random.default_rng(7), degree, variances)
    where, number, phi, value, weight = dense(given, degree)
    n, p = 4, phi.shape[1]
    normal, rhs = np.zeros((n * p, n * p)), np.zeros(n * p)
    for voxel in np.unique(number):
        here = np.flatnonzero(number == voxel)
        design = np.zeros((len(here), n * p))
        for row, k in enumerate(here):
            design[row, where[k] * p : (where[k] + 1) * p] = phi[k]
        w = weight[here]
        inside = np.diag(w) - np.outer(w, w) / w.sum()
        normal += design.T @ inside @ design
        rhs += design.T @ inside @ value[here]
    check_dense(given, degree, normal, rhs, "ml", normal)


@pytest.mark.parametrize("degree", DEGREES)
def test_pairs_against_the_normal_equations_of_wiimatch(given_weights, degree):
    given = random_voxels(np.random.default_rng(8), degree, (1, 3, 0.5, 2))
    where, number, phi, value, weight = dense(given, degree)
    n, p = 4, phi.shape[1]
    normal, rhs = np.zeros((n * p, n * p)), np.zeros(n * p)
    for i, j in combinations(range(n), 2):
        mine, theirs = np.flatnonzero(where == i), np.flatnonzero(where == j)
        _, a, b = np.intersect1d(number[mine], number[theirs], return_indices=True)
        a, b = mine[a], theirs[b]
        design = np.zeros((len(a), n * p))
        design[:, i * p : (i + 1) * p], design[:, j * p : (j + 1) * p] = phi[a], -phi[a]
        w = 1 / (1 / weight[a] + 1 / weight[b])
        normal += design.T * w @ design
        rhs += design.T @ (w * (value[a] - value[b]))
    check_dense(given, degree, normal, rhs, "pairs")


def check_dense(given, degree, normal, rhs, weights, information=None):
    n, p = len(given), len(rhs) // len(given)
    free = np.linalg.pinv(normal, rcond=1e-11)
    at = polyvander3d(*scaled(POINTS), degree)
    options = MRSIMatchOptions(bkg_degree=degree, weights=weights, maxiters=0)
    found = match_voxels("abcd", given, Box(), options)
    expected = (free @ rhs).reshape(n, p) @ at.T
    errors = np.sqrt(np.einsum("qa,nanb,qb->nq", at, free.reshape(n, p, n, p), at))
    np.testing.assert_allclose((box_values(found) - expected) / errors, 0, atol=1e-3)
    if information is not None:
        np.testing.assert_allclose(found.errors, coefficient_errors(found, free, degree), rtol=1e-4)


def test_the_prior_changes_little(monkeypatch):
    """Less than 1 % of an error, where the overlaps determine the coefficients."""
    found, _ = box_match(np.random.default_rng(13), (1, 1, 1), noise=0.1, variance=0.01)
    weak = np.append(0.0, np.full(7, 1e-4))
    monkeypatch.setattr(spectral_fit, "_prior", lambda samples, sums, scale: weak)
    other, _ = box_match(np.random.default_rng(13), (1, 1, 1), noise=0.1, variance=0.01)
    assert (found.coefficients != other.coefficients).all()
    same(found, other, atol=0.01)


def coefficient_errors(found, covariance, degree):
    """Errors of the powers about the reference point, of the covariance of powers of scaled grid coordinates."""
    offsets = np.random.default_rng(9).uniform(-1, 1, (3, 400))
    world = Box().world(POINTS)
    sizes = np.array([20 / 3600, 20 / 3600, 0.4])
    refpoint = found.refpoint[0]
    ra, dec, wavelength = refpoint[:, None] + offsets * sizes[:, None]
    assert world.shape == (3, POINTS.shape[1])
    points = np.array([(ra - Box.ra) * 3600, (dec + 41) * 3600, (wavelength - 5) * 32])
    transfer = np.linalg.lstsq(polyvander3d(*offsets, degree), polyvander3d(*scaled(points), degree), rcond=None)[0]
    powers = np.indices([d + 1 for d in degree]).reshape(3, -1)
    transfer /= np.prod(sizes[:, None] ** powers, axis=0)[:, None]
    n, p = found.coefficients.shape
    blocks = covariance.reshape(n, p, n, p)
    return np.sqrt([np.diag(transfer @ blocks[i, :, i] @ transfer.T) for i in range(n)])


# Errors


def pulls(realisations, variances=(1, 1, 1, 1), *, n=4, given=None, sky=None, degree=(1, 1, 1)):
    """(fitted - true) / error of the polynomials at the middle of the boxes and of the coefficients."""
    functions = np.random.default_rng(10).normal(size=(n, *(d + 1 for d in degree)))
    boxes = [(*((a // 3, b // 3) for a, b in box[:2]), (0, 6)) for box in BOXES[:n]]
    truth, coefficients, levels = None, [], []
    for seed in range(realisations):
        rng = np.random.default_rng(seed)
        made = zip(boxes, functions, variances, given or variances, strict=True)
        samples = [voxels(rng, b, f, noise=np.sqrt(v), variance=g, sky=sky) for b, f, v, g in made]
        found = match_voxels("abcd"[:n], samples, Box(), MRSIMatchOptions(bkg_degree=degree))
        if truth is None:
            truth = true_coefficients(found, functions, degree)
        coefficients.append((found.coefficients - truth) / found.errors)
        levels.append(coefficients[-1][:, 0])
    return np.array(coefficients), np.array(levels)


def true_coefficients(found, functions, degree):
    world = Box().world(POINTS)
    offsets = np.array([wrap(world[0] - found.refpoint[0, 0]), *(world[1:] - found.refpoint[0, 1:, None])])
    sizes = np.abs(offsets).max(axis=1)
    design = polyvander3d(*(offsets / sizes[:, None]), degree)
    powers = np.indices([d + 1 for d in degree]).reshape(3, -1)
    return np.linalg.lstsq(design, box_truth(functions).T, rcond=None)[0].T / np.prod(sizes[:, None] ** powers, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("variances", [(1, 1, 1, 1), (1, 4, 1, 4)])
def test_errors_have_the_size_that_they_are_quoted_with(variances):
    """Wide bounds: see the report."""
    found, levels = pulls(100, variances, n=len(variances))
    assert np.abs(found.mean(axis=0)).max() < 0.5
    assert 0.85 < levels.std(axis=0).mean() < 1.35
    assert 0.85 < np.sqrt(np.mean(found**2)) < 1.35


@pytest.mark.parametrize(("lasting", "expected"), [(True, 12), (False, 1)])
def test_variances_grow_with_what_all_wavelengths_of_a_place_share(lasting, expected):
    """Two exposures that differ by their noise: the same at all 12 wavelengths, or up and down in turn."""
    rng = np.random.default_rng(13)
    box = ((0, 20), (0, 20), (0, 12))
    one, two = (voxels(rng, box, np.zeros((1, 1, 1)), holes=0) for _ in range(2))
    x, y, wavelength = np.floor(middles(one.number)).astype(int)
    sign = rng.choice([-1, 1], (20, 20))[x, y] * (1 if lasting else (-1) ** wavelength)
    given = [v._replace(value=s * sign / np.sqrt(2)) for v, s in ((one, 1), (two, -1))]
    samples = Samples.of(given, Box(), (0, 0, 0))
    ones = np.ones(len(samples.value))
    state = State(np.zeros((2, 1)), np.zeros((3, len(samples.number))), ones, ones, np.ones(2))
    assert spectral_fit._misfit(samples, state) == pytest.approx(expected)


# What overlaps do not determine


def test_a_tilt_that_a_column_does_not_determine_is_loose():
    """Two exposures have one column of cells in common."""
    boxes = [((0, 10), (0, 10), (0, 12)), ((9, 19), (0, 10), (0, 12))]
    rng = np.random.default_rng(11)
    functions = rng.normal(size=(2, 2, 2, 2))
    given = [voxels(rng, box, f, noise=0.1, variance=0.01, holes=0) for box, f in zip(boxes, functions, strict=True)]
    found = match_voxels("ab", given, Box(), MRSIMatchOptions())
    for terms in found.loose:
        assert "RA" in terms
        assert not {"constant", "Dec", "wavelength"} <= set(terms)
    assert np.isfinite(found.coefficients).all()
    assert np.isfinite(found.errors).all()
    everywhere = Box().world(np.array([axis.ravel() for axis in np.mgrid[0:19, 0:10, 0:12]]) + 0.5)
    assert np.abs(found.polynomial(0)(*everywhere)).max() < 10
    common = Box().world(np.array([np.full(120, 9.5), *(a.ravel() + 0.5 for a in np.mgrid[0:10, 0:12])]))
    expected = np.array([polyval3d(*scaled(box_points(common)), f) for f in functions])
    np.testing.assert_allclose(found.polynomial(0)(*common), (expected[0] - expected[1]) / 2, atol=0.1)


def box_points(world):
    return np.array([(world[0] - Box.ra) * 3600, (world[1] + 41) * 3600, (world[2] - 5) * 32])


def corner_match(n_others, tilt=1.0):
    """An exposure that has one small corner in common with others that agree with each other."""
    rng = np.random.default_rng(12)
    functions = np.zeros((n_others + 1, 2, 2, 2))
    functions[-1, 1, 0, 0] = functions[-1, 0, 1, 0] = tilt
    functions[:, 0, 0, 0] = np.arange(n_others + 1)
    boxes = [((0, 16), (0, 16), (0, 12))] * n_others + [((14, 40), (14, 40), (0, 12))]
    given = [voxels(rng, box, f, noise=0.02, variance=4e-4, holes=0) for box, f in zip(boxes, functions, strict=True)]
    return match_voxels([f"e{i}" for i in range(n_others + 1)], given, Box(), MRSIMatchOptions())


@pytest.mark.parametrize(("n_others", "bounded"), [(1, True), (2, False), (4, False)])
def test_a_polynomial_stays_within_bounds_where_nothing_constrains_it(n_others, bounded):
    found = corner_match(n_others)
    common, alone = (
        Box().world(np.array([a.ravel() for a in np.mgrid[14:high, 14:high, 0:12]]) + 0.5) for high in (16, 40)
    )
    shared = Box().world(np.array([a.ravel() for a in np.mgrid[0:16, 0:16, 0:12]]) + 0.5)
    inside = [(found.polynomial(i), shared if n_others > 1 else common) for i in range(n_others)]
    inside.append((found.polynomial(n_others), common))
    near = max(np.abs(p(*at) - p(*at).mean()).max() for p, at in inside)
    last = found.polynomial(n_others)
    assert found.bounded[-1] == bounded
    assert np.abs(last(*alone) - last(*common).mean()).max() <= max(10.1 * near, 1e-4)


# A wrong minimum


@pytest.mark.parametrize("maxiters", [9, 10, 11])
@pytest.mark.parametrize("n", [2, 4])
def test_what_is_clipped_does_not_come_back(n, maxiters):
    """Where two exposures differ by much, both are clipped: in the next iteration too."""
    rng = np.random.default_rng(3)
    functions = np.zeros((n, 1, 1, 1))
    functions[:, 0, 0, 0] = np.arange(n)
    given = [voxels(rng, box, f, noise=1.0) for box, f in zip(BOXES, functions, strict=False)]
    spoilt = [v._replace(value=v.value + 1e4 * (rng.random(len(v.value)) < 0.01)) for v in given]
    found = match_voxels("abcd"[:n], spoilt, Box(), MRSIMatchOptions(bkg_degree=0, maxiters=maxiters))
    np.testing.assert_allclose(found.level, np.arange(n) - (n - 1) / 2, atol=5 * found.sigma.max())
    assert found.sigma.max() < 0.05


@pytest.mark.parametrize("peak", [-200.0, 200.0, 1000.0])
def test_a_strong_source_in_one_exposure_moves_little(scene, peak):
    places, _, values, found = scene
    spoilt = list(values)
    spoilt[1] = values[1] + peak * np.exp(-(places[1].x ** 2 + places[1].y ** 2) / (2 * 0.1**2))
    other = match_spectra(exposures(places, spoilt), OPTIONS)
    np.testing.assert_allclose(moved(found, other, places), 0, atol=10)


def test_masked_arrays(scene):
    (at, *_), _, values, _ = scene
    mask = np.random.default_rng(4).random(at.x.size) < 0.2
    masked = np.ma.array(np.where(mask, 1e4, values[0]), mask=mask)
    given = [
        SpectralExposure.from_arrays("0", masked, at.ra, at.dec, at.wavelength, slice_width=1.0),
        SpectralExposure.from_arrays("1", masked.filled(0), at.ra, at.dec, at.wavelength, good=~mask, slice_width=1.0),
    ]
    one, two = (exposure.read() for exposure in given)
    np.testing.assert_array_equal(one.value, two.value)
