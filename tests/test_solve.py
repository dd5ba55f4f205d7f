"""The solver against dense pseudo-inverses and the scatter of simulated errors."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bkgmatch import solve as module
from bkgmatch.exposures import Pixels
from bkgmatch.overlaps import OverlapMap
from bkgmatch.pairs import Measurement, PairEquations, measure, offset_equations, pair_offsets
from bkgmatch.runs import Runs
from bkgmatch.skystats import SkyLevels, SkyStatistic
from bkgmatch.solve import NormalSystem, residuals, solve, solve_offsets

PARTS = [np.arange(0, 7), np.array([8, 10, 12, 14]), np.array([9, 15])]
N = 18  # unknowns 7, 11, 13, 16 and 17 are in no pair


def random_graph(rng, parts=PARTS, extra=1.0):
    """Pairs that connect each part: a random tree and some more."""
    edges = []
    for part in parts:
        order = rng.permutation(part)
        edges += [(order[k], order[rng.integers(k)]) for k in range(1, len(order))]
        edges += [tuple(rng.choice(part, 2, replace=False)) for _ in range(int(extra * len(part)))]
    return np.array(edges).T


def observations(rng, n, first, second, p, m=6):
    """Dense design matrix and data of m noisy comparisons for each pair, and the pair equations."""
    design = np.zeros((len(first), m, n * p))
    basis, data = rng.normal(size=(len(first), m, p)), rng.normal(size=(len(first), m))
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        design[k, :, i * p : (i + 1) * p] += basis[k]
        design[k, :, j * p : (j + 1) * p] -= basis[k]
    local = np.concatenate([basis, -basis], axis=2)
    equations = PairEquations(
        first, second, np.einsum("kma,kmb->kab", local, local), np.einsum("kma,km->ka", local, data)
    )
    return design.reshape(-1, n * p), data.ravel(), equations


def blocks(matrix, p):
    return np.array([matrix[k : k + p, k : k + p] for k in range(0, len(matrix), p)])


def linked(first, second, n=N):
    return np.isin(np.arange(n), np.concatenate([first, second]))


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_coefficients_against_dense_least_squares(p, seed):
    rng = np.random.default_rng(seed)
    first, second = random_graph(rng)
    design, data, equations = observations(rng, N, first, second, p)
    expected = np.linalg.lstsq(design, data, rcond=None)[0].reshape(N, p)
    found = solve(N, equations)
    inside = linked(first, second)
    np.testing.assert_allclose(found.coefficients[inside], expected[inside], atol=1e-10)
    assert np.isnan(found.coefficients[~inside]).all()
    assert np.isnan(found.covariance[~inside]).all()


@pytest.mark.parametrize("p", [1, 3])
def test_covariance_against_dense_pseudo_inverse(p):
    rng = np.random.default_rng(20)
    first, second = random_graph(rng)
    design, _, equations = observations(rng, N, first, second, p)
    expected = blocks(np.linalg.pinv(design.T @ design, rcond=1e-10), p)
    inside = linked(first, second)
    np.testing.assert_allclose(solve(N, equations).covariance[inside], expected[inside], atol=1e-10)


@pytest.mark.parametrize("p", [1, 3])
def test_sandwich_against_dense_formula(p):
    rng = np.random.default_rng(21)
    first, second = random_graph(rng)
    design, data, equations = observations(rng, N, first, second, p)
    root = rng.normal(size=(len(data), len(data)))
    scatter = design.T @ root @ root.T @ design
    inverse = np.linalg.pinv(design.T @ design, rcond=1e-10)
    expected = blocks(inverse @ scatter @ inverse, p)
    found = solve(N, equations, scatter=sparse.csr_array(scatter))
    inside = linked(first, second)
    np.testing.assert_allclose(found.covariance[inside], expected[inside], rtol=1e-8, atol=1e-10)


def test_covariance_against_simulated_errors():
    """Correlated errors and weights that are not their inverse variances."""
    rng = np.random.default_rng(22)
    first, second = random_graph(rng, [np.arange(10)])
    weight, root = rng.uniform(0.2, 5, len(first)), rng.normal(size=(len(first), len(first)))
    signs = np.zeros((10, len(first)))
    signs[first, np.arange(len(first))] += weight
    signs[second, np.arange(len(first))] -= weight
    scatter = sparse.csr_array(signs @ root @ root.T @ signs.T)
    draws = rng.normal(size=(2000, len(first))) @ root.T
    found = [solve(10, offset_equations(first, second, d, weight)).coefficients[:, 0] for d in draws]
    quoted = solve(10, offset_equations(first, second, draws[0], weight), scatter=scatter).covariance[:, 0, 0]
    np.testing.assert_allclose(np.var(found, axis=0), quoted, rtol=0.15)


def test_more_unknowns_than_a_block_of_the_covariance():
    rng = np.random.default_rng(23)
    first, second = random_graph(rng, [np.arange(0, 300, 2), np.arange(1, 300, 2)])
    design, _, equations = observations(rng, 300, first, second, 1)
    expected = np.diag(np.linalg.pinv(design.T @ design, rcond=1e-10))
    np.testing.assert_allclose(solve(300, equations).covariance[:, 0, 0], expected, rtol=1e-8)


def test_components_are_numbered_by_their_first_unknown():
    first, second = np.array([9, 3, 5, 0]), np.array([1, 5, 8, 6])
    found = solve(11, offset_equations(first, second, np.ones(4), np.ones(4))).component
    np.testing.assert_array_equal(found, [0, 1, -1, 2, -1, 2, 0, -1, 2, 1, -1])


def other_weights(equations, rng, smallest):
    weights = smallest ** rng.random(len(equations.first))
    return replace(equations, normal=equations.normal * weights[:, None, None], rhs=equations.rhs * weights[:, None])


HELD = np.isin(np.arange(N), [3, 12])
PRIORS = {"no prior": None, "prior on shapes": [0.0, 0.5, 2.0], "prior on all": [0.3, 0.5, 2.0]}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("held", [None, HELD], ids=["afloat", "held"])
@pytest.mark.parametrize("p", [1, 3])
def test_other_weights_by_the_same_factors(p, held, prior, monkeypatch):
    rng = np.random.default_rng(40)
    _, _, equations = observations(rng, N, *random_graph(rng), p)
    prior = prior if prior is None else np.array(prior[:p])
    changed = other_weights(equations, rng, 1e-2)
    expected = NormalSystem(N, changed, held=held, prior=prior).solution()
    system = NormalSystem(N, equations, held=held, prior=prior)
    monkeypatch.setattr(module, "splu", None)  # no other factors
    np.testing.assert_allclose(system.solution_of(changed), expected, atol=1e-8 * np.abs(expected).max())


def test_each_component_is_solved_to_its_own_precision():
    """A component of weights that are 1e-12 of the others' is not taken for rounding."""
    rng = np.random.default_rng(43)
    first, second = random_graph(rng)
    _, _, equations = observations(rng, N, first, second, 3)
    faint = np.where(np.isin(first, PARTS[1]), 1e-12, 1.0)
    equations = replace(equations, normal=equations.normal * faint[:, None, None], rhs=equations.rhs * faint[:, None])
    changed = other_weights(equations, rng, 0.1)
    expected = NormalSystem(N, changed).solution()
    found = NormalSystem(N, equations).solution_of(changed)
    np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())


def test_very_different_weights_are_factorised(monkeypatch):
    rng = np.random.default_rng(41)
    _, _, equations = observations(rng, N, *random_graph(rng), 3)
    changed = other_weights(equations, rng, 1e-6)
    monkeypatch.setattr(module, "_GRADIENTS", 2)
    found = NormalSystem(N, equations).solution_of(changed)
    np.testing.assert_array_equal(found, NormalSystem(N, changed).solution())


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("held", [None, HELD], ids=["afloat", "held"])
@pytest.mark.parametrize("p", [1, 3])
def test_variances_are_the_diagonal_of_the_covariance(p, held, prior):
    rng = np.random.default_rng(42)
    _, _, equations = observations(rng, N, *random_graph(rng), p)
    system = NormalSystem(N, equations, held=held, prior=prior if prior is None else np.array(prior[:p]))
    expected = np.einsum("naa->na", system.covariance())
    np.testing.assert_allclose(system.variances(), expected, rtol=1e-9, atol=1e-12)


def test_chain_by_hand():
    first, second = np.array([0, 1]), np.array([1, 2])
    found = solve(3, offset_equations(first, second, np.array([-3.0, 6.0]), np.array([4.0, 1.0])))
    np.testing.assert_allclose(found.coefficients[:, 0], [0, 3, -3], atol=1e-12)
    # c0 - mean = (2 a + b) / 3 with var a = 1/4, var b = 1; likewise (b - a) / 3 and (a + 2 b) / 3
    np.testing.assert_allclose(found.covariance[:, 0, 0], [2 / 9, 1.25 / 9, 4.25 / 9], rtol=1e-12)


def test_inconsistent_triangle_by_hand():
    first, second = np.array([0, 1, 0]), np.array([1, 2, 2])
    found = solve(3, offset_equations(first, second, np.array([1.0, 1.0, 5.0]), np.ones(3)))
    np.testing.assert_allclose(found.coefficients[:, 0], [2, 0, -2], atol=1e-12)


def test_no_pairs():
    none = np.empty(0, dtype=int)
    found = solve(3, offset_equations(none, none, np.empty(0), np.empty(0)))
    assert np.isnan(found.coefficients).all()
    assert list(found.component) == [-1, -1, -1]


def test_weights_of_any_size():
    rng = np.random.default_rng(24)
    first, second = random_graph(rng)
    offset = rng.normal(size=len(first))
    one, two, three = (
        solve(N, offset_equations(first, second, offset, np.full(len(first), w))) for w in (1, 1e-40, 1e40)
    )
    np.testing.assert_allclose(two.coefficients, one.coefficients, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(three.coefficients, one.coefficients, rtol=1e-9, atol=1e-12)


def grid_pairs(ny, nx):
    number = np.arange(ny * nx).reshape(ny, nx)
    right = number[:, :-1].ravel(), number[:, 1:].ravel()
    up = number[:-1].ravel(), number[1:].ravel()
    return np.concatenate([right[0], up[0]]), np.concatenate([right[1], up[1]])


@pytest.mark.parametrize(("p", "side"), [(1, 55), (3, 20), pytest.param(3, 55, marks=pytest.mark.slow)])
def test_large_grid_in_seconds(p, side):
    rng = np.random.default_rng(25)
    first, second = grid_pairs(side, side)
    truth = rng.normal(size=(side**2, p))
    truth -= truth.mean(axis=0)
    basis = rng.normal(size=(len(first), 5, p))
    local = np.concatenate([basis, -basis], axis=2)
    data = np.einsum("kmp,kp->km", basis, truth[first] - truth[second])
    equations = PairEquations(
        first, second, np.einsum("kma,kmb->kab", local, local), np.einsum("kma,km->ka", local, data)
    )
    start = time.process_time()
    found = solve(side**2, equations)
    assert time.process_time() - start < 30
    np.testing.assert_allclose(found.coefficients, truth, atol=1e-8)


# Under-determined


def plane_equations(first, second, points):
    """Pairs that compare planes 1, x, y at given points."""
    basis = np.column_stack([np.ones(len(points)), points])
    local = np.column_stack([basis, -basis])
    n = len(first)
    return PairEquations(first, second, np.tile(local.T @ local, (n, 1, 1)), np.zeros((n, 6)))


@pytest.mark.parametrize("slope", [0.0, 1.0, 0.3])
def test_planes_compared_on_a_line_are_not_determined(slope):
    """A thin overlap says nothing about the tilt across it."""
    x = np.linspace(-1, 1, 11)
    for pairs in (([0], [1]), ([0, 1, 2], [1, 2, 3])):
        equations = plane_equations(*np.array(pairs), np.column_stack([x, slope * x + 0.1]))
        with pytest.raises(ValueError, match="do not determine"):
            solve(4, equations)


def test_planes_compared_at_one_point_are_not_determined():
    with pytest.raises(ValueError, match="do not determine"):
        solve(2, plane_equations(np.array([0]), np.array([1]), np.array([[0.3, 0.7]])))


def test_planes_are_determined_by_two_thin_overlaps():
    """0-1 along x and 0-1 along y: together they fix all coefficients."""
    x = np.linspace(-1, 1, 11)
    one = plane_equations(np.array([0]), np.array([1]), np.column_stack([x, 0 * x]))
    two = plane_equations(np.array([0]), np.array([1]), np.column_stack([0 * x, x]))
    both = PairEquations(*(np.concatenate(pair) for pair in zip(vars(one).values(), vars(two).values(), strict=True)))
    assert np.isfinite(solve(2, both).coefficients).all()


# From measurements to offsets


def measurement(others, values, sigmas, npix=None, covariance=None):
    sigmas = np.array(sigmas, dtype=float)
    npix = np.full(len(others), 100) if npix is None else np.array(npix)
    return Measurement(
        np.array(others, dtype=int),
        SkyLevels(np.array(values, dtype=float), sigmas, npix),
        np.diag(sigmas**2) if covariance is None else np.array(covariance, dtype=float),
        SkyLevels(np.zeros(1), np.ones(1), np.array([1000])),
    )


def three_measurements():
    return [
        measurement([2, 1], [5.0, 4.0], [0.3, 0.1], [50, 60]),
        measurement([0], [1.0], [0.2], [70]),
        measurement([0], [3.0], [0.4], [40]),
    ]


def test_pair_offsets_by_hand():
    found = pair_offsets(three_measurements())
    order = np.lexsort((found.second, found.first))
    assert [tuple(p) for p in np.column_stack([found.first, found.second])[order]] == [(0, 1), (0, 2)]
    np.testing.assert_allclose(found.offset[order], [3.0, 2.0])
    np.testing.assert_allclose(found.sigma[order], [np.hypot(0.1, 0.2), 0.5])
    np.testing.assert_array_equal(found.npix[order], [60, 40])
    np.testing.assert_allclose(found.weight[order], [20, 4])


def test_pair_offsets_weighted_by_pixels():
    found = pair_offsets(three_measurements(), weights="npix")
    np.testing.assert_allclose(np.sort(found.weight), [40, 60])


@pytest.mark.parametrize("few", [4, 12])
def test_a_few_pixels_that_agree_by_chance_are_no_better_than_others(few):
    """An overlap of equal pixels: each is taken to scatter as the pixels of the whole exposure do."""
    rng = np.random.default_rng(5)
    data = rng.normal(3, 1, (40, 40))
    data[0, :few] = 3.0
    members = np.array([[True], [False]])
    overlaps = OverlapMap(Runs(np.array([few, data.size]), np.array([0, 1])), members)
    statistic = SkyStatistic("mean", nclip=0)
    found = measure(Pixels(data, np.ones(data.shape, bool)), overlaps, np.array([1]), statistic)
    assert found.levels.npix[0] == few
    assert found.levels.sigma[0] == pytest.approx(found.sky.sigma[0] * np.sqrt(data.size / few), rel=1e-6)


def test_pairs_that_only_one_exposure_measured_are_left_out():
    lonely = [measurement([1, 2], [1, 2], [1, 1]), measurement([], [], []), measurement([0], [5], [1])]
    found = pair_offsets(lonely)
    assert [*found.first, *found.second] == [0, 2]
    assert found.offset[0] == -3


def test_nothing_measured():
    found = pair_offsets([measurement([], [], [])] * 3)
    assert len(found.offset) == 0
    solution, _ = solve_offsets(found, np.arange(3), robust=True)
    assert np.isnan(solution.coefficients).all()


def test_pairs_without_scatter_are_weighted_by_pixels():
    found = pair_offsets(
        [measurement([1, 2], [1, 2], [0, 0], [30, 50]), *(measurement([0], [0], [0], [90]) for _ in range(2))]
    )
    np.testing.assert_array_equal(np.sort(found.weight), [30, 50])


def test_one_pair_without_scatter_keeps_the_weights_finite():
    found = pair_offsets(
        [measurement([1, 2], [1, 2], [0, 0.1]), measurement([0], [0], [0]), measurement([0], [0], [0.1])]
    )
    assert np.isfinite(found.weight).all()
    assert np.argmax(found.weight) == np.argmin(found.sigma)


def random_measurements(rng, n, truth, sigma, spoilt=None):
    """Every exposure measures its overlap with every other; one offset is wrong if asked."""
    made = []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        values = truth[i] + rng.normal(0, sigma, n - 1)
        if spoilt is not None and i == spoilt[0]:
            values[others == spoilt[1]] += spoilt[2]
        made.append(measurement(others, values, np.full(n - 1, sigma)))
    return made


def test_solve_offsets_recovers_levels():
    rng = np.random.default_rng(26)
    truth = rng.normal(size=8)
    offsets = pair_offsets(random_measurements(rng, 8, truth, 1e-6))
    solution, same = solve_offsets(offsets, np.arange(8))
    np.testing.assert_allclose(solution.coefficients[:, 0], truth - truth.mean(), atol=1e-5)
    np.testing.assert_array_equal(same.weight, offsets.weight)
    np.testing.assert_allclose(residuals(same, np.arange(8), solution), 0, atol=1e-5)


def test_residual_is_measured_minus_fitted():
    offsets = pair_offsets(random_measurements(np.random.default_rng(27), 5, np.arange(5.0), 0.5))
    solution, _ = solve_offsets(offsets, np.arange(5))
    level = solution.coefficients[:, 0]
    for k, (i, j) in enumerate(zip(offsets.first, offsets.second, strict=True)):
        expected = offsets.offset[k] - (level[i] - level[j])
        assert residuals(offsets, np.arange(5), solution)[k] == pytest.approx(expected, abs=1e-12)


def test_groups_share_a_level():
    """Pairs (0, 2), (1, 3) and (0, 3) all compare group 0 with group 1."""
    offsets = pair_offsets(
        [
            measurement([2, 3], [1.0, 2.0], [1, 1]),
            measurement([3], [3.0], [1]),
            measurement([0], [0.0], [1]),
            measurement([0, 1], [0.0, 0.0], [1, 1]),
        ]
    )
    solution, _ = solve_offsets(offsets, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(solution.coefficients[:, 0], [1.0, -1.0])
    # mean of three differences of variance 2, halved
    np.testing.assert_allclose(solution.covariance[:, 0, 0], 2 / 3 / 4)


@pytest.mark.parametrize("error", [1.0, -50.0, 1e4])
def test_robust_weights_leave_out_a_wrong_pair(error):
    rng = np.random.default_rng(28)
    truth = rng.normal(size=8)
    offsets = pair_offsets(random_measurements(rng, 8, truth, 0.01, spoilt=(2, 5, error)))
    plain, _ = solve_offsets(offsets, np.arange(8))
    robust, weighted = solve_offsets(offsets, np.arange(8), robust=True)
    centred = truth - truth.mean()
    assert np.abs(plain.coefficients[:, 0] - centred).max() > 0.05
    np.testing.assert_allclose(robust.coefficients[:, 0], centred, atol=0.03)
    wrong = (weighted.first == 2) & (weighted.second == 5)
    assert (weighted.weight / weighted.full_weight)[wrong] < 0.1
    assert np.median((weighted.weight / weighted.full_weight)[~wrong]) > 0.5


def test_robust_weights_of_good_pairs_change_little():
    rng = np.random.default_rng(29)
    offsets = pair_offsets(random_measurements(rng, 10, rng.normal(size=10), 0.1))
    plain, _ = solve_offsets(offsets, np.arange(10))
    robust, _ = solve_offsets(offsets, np.arange(10), robust=True)
    shift = np.abs(robust.coefficients - plain.coefficients)[:, 0]
    assert (shift < np.sqrt(plain.covariance[:, 0, 0])).all()


@pytest.mark.parametrize("quoted", [1.0, 0.05])
def test_robust_weights_are_relative_to_the_scatter(quoted):
    """Whatever errors are quoted, half of normal deviates are within 0.67 of it, far from the limit of 3."""
    rng = np.random.default_rng(32)
    good = random_measurements(rng, 10, rng.normal(size=10), 0.1)
    offsets = pair_offsets([measurement(m.others, m.levels.value, quoted * m.levels.sigma) for m in good])
    _, weighted = solve_offsets(offsets, np.arange(10), robust=True)
    assert 0.93 < np.median(weighted.weight / weighted.full_weight) < 0.99


def test_robust_weights_where_most_pairs_are_in_no_loop():
    """A row fits exactly; that says nothing of the three pairs of the loop at its end, which differ by their errors."""
    rng = np.random.default_rng(31)
    pairs = [(k, k + 1) for k in range(11)] + [(9, 11)]
    near = [[j for pair in pairs for i, j in (pair, pair[::-1]) if i == k] for k in range(12)]
    offsets = pair_offsets([measurement(others, rng.normal(10, 1, len(others)), [1] * len(others)) for others in near])
    plain, _ = solve_offsets(offsets, np.arange(12))
    robust, weighted = solve_offsets(offsets, np.arange(12), robust=True)
    assert (weighted.weight / weighted.full_weight > 0.5).all()
    np.testing.assert_allclose(robust.coefficients, plain.coefficients, atol=0.3)
    np.testing.assert_allclose(robust.covariance, plain.covariance, rtol=0.3)


def test_robust_weights_of_a_mosaic_do_not_depend_on_others():
    """Forty pairs beside it, which fit exactly, do not make it look better; the errors of all are too small."""
    rng = np.random.default_rng(33)
    good = random_measurements(rng, 10, rng.normal(size=10), 0.1)
    alone = [measurement(m.others, m.levels.value, 0.05 * m.levels.sigma) for m in good]
    pairs = [measurement([i ^ 1], [i % 2], [1]) for i in range(10, 90)]
    one, _ = solve_offsets(pair_offsets(alone), np.arange(10), robust=True)
    both, _ = solve_offsets(pair_offsets(alone + pairs), np.arange(90), robust=True)
    np.testing.assert_allclose(both.coefficients[:10], one.coefficients, rtol=1e-9)
    np.testing.assert_allclose(both.covariance[:10], one.covariance, rtol=1e-9)


def test_robust_weights_of_perfect_data():
    truth = np.array([3.0, 1.0, 7.0])
    offsets = pair_offsets(random_measurements(np.random.default_rng(30), 3, truth, 0.0))
    robust, _ = solve_offsets(offsets, np.arange(3), robust=True)
    np.testing.assert_allclose(robust.coefficients[:, 0], truth - truth.mean(), atol=1e-12)


def dense_covariance(offsets, n):
    """Covariance of the levels from the loading and scatter of the offsets, by pseudo-inverse."""
    pairs = np.arange(len(offsets.first))
    design = np.zeros((len(pairs), n))
    design[pairs, offsets.first], design[pairs, offsets.second] = 1, -1
    response = np.linalg.pinv(design.T * offsets.weight @ design, rcond=1e-10) @ (design.T * offsets.weight)
    of_pairs = offsets.loading.toarray() @ offsets.scatter.toarray() @ offsets.loading.toarray().T
    return response @ of_pairs @ response.T


def test_shared_pixels_enter_the_covariance():
    """The two overlaps of exposure 0 are the same pixels, so its error does not average down."""
    full = [[0.04, 0.04], [0.04, 0.04]]
    offsets = pair_offsets(
        [
            measurement([1, 2], [1.0, 1.0], [0.2, 0.2], covariance=full),
            measurement([0], [0.0], [1e-6]),
            measurement([0], [0.0], [1e-6]),
        ]
    )
    solution, _ = solve_offsets(offsets, np.arange(3))
    # c0 - mean = 2/3 of the common error, the others -1/3
    np.testing.assert_allclose(solution.covariance[:, 0, 0], 0.04 * np.array([4, 1, 1]) / 9, rtol=1e-6)


def test_shared_pixels_against_a_dense_sandwich():
    rng = np.random.default_rng(31)
    made = []
    for i in range(6):
        others = np.delete(np.arange(6), i)
        root = rng.normal(size=(5, 5))
        cov = root @ root.T
        made.append(measurement(others, rng.normal(size=5), np.sqrt(np.diag(cov)), covariance=cov))
    for robust in (False, True):
        solution, offsets = solve_offsets(pair_offsets(made), np.arange(6), robust=robust)
        expected = np.diag(dense_covariance(offsets, 6))
        np.testing.assert_allclose(solution.covariance[:, 0, 0], expected, rtol=1e-8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_adding_to_a_level_adds_to_its_coefficient(seed):
    rng = np.random.default_rng(seed)
    first, second = random_graph(rng)
    offset, shift, weight = rng.normal(size=len(first)), rng.normal(size=N), rng.uniform(0.1, 9, len(first))
    one = solve(N, offset_equations(first, second, offset, weight))
    two = solve(N, offset_equations(first, second, offset + shift[first] - shift[second], weight))
    change = (two.coefficients - one.coefficients)[:, 0]
    for part in PARTS:
        np.testing.assert_allclose(change[part], shift[part] - shift[part].mean(), atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_order_and_direction_of_pairs_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    first, second = random_graph(rng)
    offset, weight = rng.normal(size=len(first)), rng.uniform(0.1, 9, len(first))
    one = solve(N, offset_equations(first, second, offset, weight))
    order = rng.permutation(len(first))
    two = solve(N, offset_equations(second[order], first[order], -offset[order], weight[order]))
    np.testing.assert_allclose(two.coefficients, one.coefficients, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(two.covariance, one.covariance, rtol=1e-9)
    np.testing.assert_array_equal(two.component, one.component)
