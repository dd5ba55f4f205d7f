"""The errors of MRSIMatch over many skies: of levels, coefficients, polynomials at points, and pairs."""

import ifu
import numpy as np
import pytest
from numpy.polynomial.polynomial import polyvander3d
from pull_scores import check_distances, check_pulls, mahalanobis

from bkgmatch.options import MRSIMatchOptions
from bkgmatch.polynomial_arrays import match_polynomials
from bkgmatch.polynomials import legendre_terms
from bkgmatch.record import spectral_pair_table, spectral_table
from bkgmatch.spectra import match_spectra, match_voxels
from bkgmatch.spectral_fit import fit_spectra

pytestmark = pytest.mark.timeout(3600)  # for all the skies of a test on a busy machine

SKIES, FEWER, CUBES = 500, 60, 30
NOISE = 0.1
BOXES = [
    ((0, 10), (0, 9), (0, 32)),  # as many wavelengths as by default: the noise of a place is measured over them
    ((4, 14), (2, 11), (0, 32)),
    ((2, 12), (4, 13), (0, 32)),
    ((3, 13), (4, 13), (0, 32)),
]
LEVELS = np.array([3.0, -1.0, 4.0, 1.5])
UNEQUAL = NOISE * np.array([1, 3, 0.5, 2])
ROOM = (0.9, 1.25)  # the documentation says that errors are 1.0 to 1.2 times as large as quoted,
MORE_ROOM = (0.9, 1.45)  # and with two or three exposures up to 1.4 times


def samples(rng, noise, n=4, rays=0.0):
    """Voxels of exposures that have a level each, over a sky that is the same for all."""
    noise = np.broadcast_to(noise, n)
    constants = LEVELS[:n, None, None, None]
    given = zip(BOXES, constants, noise, strict=False)
    made = [ifu.voxels(rng, box, level, noise=s, variance=s**2, sky=waves) for box, level, s in given]
    hits = [np.where(rng.random(len(v.value)) < rays, rng.exponential(20 * NOISE, len(v.value)), 0) for v in made]
    return [v._replace(value=v.value + hit) for v, hit in zip(made, hits, strict=True)]


def waves(at):
    return 5 + np.sin(at[0] / 3) * np.cos(at[1] / 4) + 0.3 * at[2]


def simulate(skies, *, noise=NOISE, n=4, rays=0.0, **options):
    """Match so many skies; yield the match and its tables."""
    options = MRSIMatchOptions(**options)
    for seed in range(skies):
        made = samples(np.random.default_rng(seed), noise, n, rays)
        match = {("1", "A"): match_voxels([f"e{k}" for k in range(n)], made, ifu.Box(), options)}
        yield spectral_table(match, options), spectral_pair_table(match)


def pulls_of(table, true):
    """Pulls of the levels, and of all coefficients; backgrounds are constants, whatever degree is fitted."""
    expected = np.zeros(table["coefficients"].shape)
    expected[:, 0] = true - true.mean()
    return (table["level"] - expected[:, 0]) / table["sigma"], (table["coefficients"] - expected) / table["errors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "skies", "given"),
    [
        ("degree 1", SKIES, {}),
        ("degree 0", FEWER, {"bkg_degree": 0}),
        ("degree 2", FEWER, {"bkg_degree": 2}),
        ("unequal noise", FEWER, {"noise": UNEQUAL}),
        ("cosmic rays", FEWER, {"rays": 0.02}),
        ("two exposures", FEWER, {"n": 2}),
    ],
)
def test_levels_coefficients_and_pairs_of_voxels(case, skies, given):
    levels, coefficients, pairs = [], [], []
    true = LEVELS[: given.get("n", 4)]
    for table, found in simulate(skies, **given):
        level, coefficient = pulls_of(table, true)
        levels.append(level)
        coefficients.append(coefficient)
        first, second = (true[[int(name[1:]) for name in found[column]]] for column in ("first", "second"))
        pairs.append((found["offset"] - (first - second)) / found["sigma"])
    width = MORE_ROOM if len(true) < 4 else ROOM
    check_pulls(f"MRSIMatch: levels, {case}", np.array(levels), width=width)
    check_pulls(f"MRSIMatch: coefficients, {case}", np.array(coefficients), width=width)
    check_pulls(f"MRSIMatch: pairs, {case}", np.array(pairs), width=width)


@pytest.mark.slow
def test_polynomials_at_points():
    """With the covariance of the coefficients, anywhere in the field; and chi squared of all coefficients of one."""
    rng = np.random.default_rng(0)
    pulls, distances = [], []
    for seed in range(FEWER):
        fit = fit_spectra(samples(np.random.default_rng(seed), NOISE), ifu.Box(), MRSIMatchOptions())
        terms = legendre_terms(rng.uniform(-0.9, 0.9, (3, 3)), fit.basis.degree)
        truth = LEVELS - LEVELS.mean()
        sigma = np.sqrt(np.einsum("ap,nab,bp->np", terms, fit.covariance, terms))
        pulls.append((fit.coefficients @ terms - truth[:, None]) / sigma)
        error = fit.coefficients[0] - truth[0] * np.eye(fit.basis.size)[0]
        distances.append(mahalanobis(error, fit.covariance[0]))
    check_pulls("MRSIMatch: polynomials at points", np.array(pulls), width=ROOM)
    squared, dof = np.array(distances).T
    assert set(dof) == {fit.basis.size}
    check_distances("MRSIMatch: all coefficients of an exposure together", squared, dof[0], width=ROOM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "sky", "given"),
    [
        ("noise", None, {}),
        ("smooth sky", ifu.smooth_sky, {}),
        ("no variances given", ifu.smooth_sky, {"known": False}),
        ("a star", ifu.star, {}),
    ],
)
def test_levels_and_coefficients_of_pixels(case, sky, given):
    """Through the slices and the filling of voxels: each exposure's pixels lie elsewhere in them."""
    places = ifu.dithers(4)
    options, levels, coefficients = MRSIMatchOptions(), [], []
    for seed in range(CUBES):
        rng = np.random.default_rng(seed)
        values = [
            level + (0 if sky is None else sky(at)) + rng.normal(0, NOISE, at.x.size)
            for level, at in zip(LEVELS, places, strict=True)
        ]
        exposures = ifu.exposures(places, values, variance=NOISE**2 if given.get("known", True) else None)
        table = spectral_table({("1", "A"): match_spectra(exposures, options)}, options)
        level, coefficient = pulls_of(table, LEVELS)
        levels.append(level)
        coefficients.append(coefficient)
    check_pulls(f"MRSIMatch: levels of slices, {case}", np.array(levels), width=ROOM)
    check_pulls(f"MRSIMatch: coefficients of slices, {case}", np.array(coefficients), width=(0.85, 1.25))


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_matrix_of_match_polynomials_is_the_inverse_covariance(degree):
    """Chi squared of all coefficients together, with maximum likelihood."""
    shape, rng = (12, 14), np.random.default_rng(1)
    sigmas = [np.full(shape, s) for s in UNEQUAL]
    x, y = (i - k // 2 for i, k in zip(np.indices(shape)[::-1], shape[::-1], strict=True))
    distances = []
    true = rng.normal(size=(4, (degree + 1) ** 2))
    true -= true.mean(axis=0)
    powers = polyvander3d(x, y, 0 * x, (degree, degree, 0))
    backgrounds = np.einsum("yxp,np->nyx", powers, true)
    for seed in range(SKIES):
        rng = np.random.default_rng(seed)
        images = backgrounds + rng.normal(0, 1, backgrounds.shape) * np.array(sigmas)
        masks = [rng.random(shape) < 0.9 for _ in sigmas]
        center = (shape[1] // 2, shape[0] // 2)
        found, matrix, *_ = match_polynomials(
            list(images), masks, sigmas, degree, center, ext_return=True, weights="ml"
        )
        error = (found - true).ravel()
        distances.append(error @ matrix @ error)
    check_distances(f"match_polynomials: all coefficients together, degree {degree}", distances, 3 * true.shape[1])


def test_tables_of_a_few_skies_have_plausible_errors():
    """A glance at what the slow tests measure."""
    pulls = np.array([pulls_of(table, LEVELS)[0] for table, _ in simulate(8)])
    assert pulls.shape == (8, 4)
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.5
