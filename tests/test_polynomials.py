"""Legendre products, powers about a point, and sums over cells: against numpy's polynomials and plain loops."""

from itertools import combinations, product

import numpy as np
import pytest
from numpy.polynomial import legendre, polynomial

import bkgmatch.polynomial_sums
from bkgmatch.polynomial_sums import PolynomialSums, join, low_degree, sum_pairs
from bkgmatch.polynomials import Basis, degrees, evaluate, legendre_terms

SKY = Basis((2, 1, 3), (80.5, -69.5, 5.3), (2e-3, 1e-3, 0.4))  # degrees and micrometres


def points(rng, basis, n=40):
    """Points in the box of a basis, shape (d, n)."""
    return np.reshape(basis.centre, (-1, 1)) + np.reshape(basis.half_width, (-1, 1)) * rng.uniform(
        -1, 1, (len(basis.degree), n)
    )


def sum_of_powers(coefficients, offsets):
    """Polynomial term by term."""
    return sum(
        c * np.prod([x**k for x, k in zip(offsets, powers, strict=True)], axis=0)
        for powers, c in np.ndenumerate(coefficients)
    )


# Basis


def test_terms_are_legendre_polynomials_in_c_order():
    at = points(np.random.default_rng(1), SKY)
    x, y, z = ((a - c) / h for a, c, h in zip(at, SKY.centre, SKY.half_width, strict=True))
    units = np.eye(4)
    expected = [
        legendre.legval(x, units[i]) * legendre.legval(y, units[j]) * legendre.legval(z, units[k])
        for i, j, k in product(range(3), range(2), range(4))
    ]
    found = SKY.terms(at)
    assert found.shape == (SKY.size, 40) == (24, 40)
    np.testing.assert_allclose(found, expected, atol=1e-10)  # of the coordinates' own rounding


@pytest.mark.parametrize("degree", [(0,), (3,), (2, 1), (1, 0, 2), (1, 1, 1, 2)])
def test_evaluating_a_basis_sums_its_terms(degree):
    rng = np.random.default_rng(2)
    scaled, c = rng.uniform(-1, 1, (len(degree), 30)), rng.normal(size=np.prod(np.add(degree, 1)))
    basis = Basis(degree, (0.0,) * len(degree), (1.0,) * len(degree))
    np.testing.assert_allclose(basis.evaluate(c, scaled), c @ legendre_terms(scaled, degree), rtol=1e-12, atol=1e-12)


def test_a_basis_around_points():
    found = Basis.around(np.array([[1.0, 5.0, 2.0], [7.0, 7.0, 7.0]]), (1, 0))
    assert found == Basis((1, 0), (3.0, 7.0), (2.0, 0.5))
    np.testing.assert_array_equal(found.scaled(np.array([[1.0, 5.0], [7.0, 7.5]])), [[-1, 1], [0, 1]])


def test_scaled_coordinates_keep_their_shape():
    at = points(np.random.default_rng(3), SKY, 24).reshape(3, 2, 3, 4)
    np.testing.assert_array_equal(SKY.scaled(at).reshape(3, -1), SKY.scaled(at.reshape(3, -1)))


@pytest.mark.parametrize("shift", [0.0, 1.0, -7.0, 40.0])
@pytest.mark.parametrize("degree", [(4,), (2, 1), (2, 1, 3), (3, 3, 3)])
def test_powers_about_any_point_have_the_same_values(degree, shift):
    """The point lies so many half-widths beside the box, where powers cancel."""
    d = len(degree)
    rng = np.random.default_rng(4)
    basis = Basis(degree, SKY.centre[:d], SKY.half_width[:d])
    refpoint = np.array(basis.centre) + shift * np.array(basis.half_width) * rng.uniform(-1, 1, d)
    c, scaled = rng.normal(size=basis.size), rng.uniform(-1, 1, (d, 50))
    offsets = [s * h + (x - r) for s, h, x, r in zip(scaled, basis.half_width, basis.centre, refpoint, strict=True)]
    powers = (basis.to_powers(refpoint) @ c).reshape(basis.shape)
    expected = basis.evaluate(c, scaled)
    lost = 1e-13 * sum_of_powers(np.abs(powers), np.abs(offsets)) + 1e-10  # to cancelling, and to the coordinates
    assert (np.abs(evaluate(powers, offsets) - expected) <= lost).all()
    assert (np.abs(sum_of_powers(powers, offsets) - expected) <= lost).all()
    assert shift not in (0, 1) or lost.max() < 1e-8


def test_powers_by_hand():
    """P_2((x - 3) / 2) = 3 (x - 3)^2 / 8 - 1 / 2, about x = 1."""
    basis = Basis((2,), (3.0,), (2.0,))
    np.testing.assert_allclose(basis.to_powers((1.0,)) @ [0, 0, 1], [1, -1.5, 0.375], atol=1e-15)
    np.testing.assert_array_equal(np.tril(basis.to_powers((1.0,)), -1), 0)


@pytest.mark.parametrize("degree", [(0,), (3,), (2, 1), (1, 1, 1), (1, 0, 2)])
def test_products_against_explicit_sums(degree):
    rng = np.random.default_rng(5)
    scaled, weight = rng.uniform(-1, 1, (len(degree), 60)), rng.uniform(0, 1, (3, 60))
    basis = Basis(degree, (0.0,) * len(degree), (1.0,) * len(degree))
    moments = weight @ legendre_terms(scaled, [2 * d for d in degree]).T
    phi = basis.terms(scaled)
    expected = np.einsum("mk,ak,bk->mab", weight, phi, phi)
    np.testing.assert_allclose(basis.products(moments), expected, rtol=1e-12, atol=1e-12)
    assert basis.products(moments[:0]).shape == (0, basis.size, basis.size)


def test_names_of_functions():
    basis = Basis((1, 2), (0.0, 0.0), (1.0, 1.0))
    expected = ["constant", "w", "w^2", "RA", "RA x w", "RA x w^2"]
    assert basis.names(["RA", "w"]) == expected
    assert len(SKY.names("xyz")) == len(set(SKY.names("xyz"))) == SKY.size


# Degrees


@pytest.mark.parametrize("given", [2, 2.0, np.int64(2), np.array(2), (2, 2, 2), [2.0, 2, 2], np.array([2, 2, 2])])
def test_one_degree_or_one_for_each_coordinate(given):
    found = degrees(given, 3)
    assert found == (2, 2, 2)
    assert all(type(d) is int for d in found)


@pytest.mark.parametrize("given", [(1, 2), (1, 2, 3, 4), (), ((1, 2, 3),)])
def test_a_wrong_number_of_degrees(given):
    with pytest.raises(ValueError, match="bkg_degree must be one integer or 3, got"):
        degrees(given, 3, "bkg_degree")


@pytest.mark.parametrize("given", [-1, (1, 1, -1), 1.5, (1, 0.5, 1), np.nan, "1", None, (1, None, 1)])
def test_a_degree_that_is_none(given):
    with pytest.raises(ValueError, match=r"degree must be whole numbers from 0 to 100, got"):
        degrees(given, 3)


def test_an_infinite_degree():
    with pytest.raises(ValueError, match="degree must"):
        degrees(np.inf, 3)


# Values


@pytest.mark.parametrize("shape", [(4,), (1,), (3, 2), (1, 4), (3, 1, 2), (2, 4, 3)])
def test_evaluate_against_numpy(shape):
    rng = np.random.default_rng(6)
    c, at = rng.normal(size=shape), rng.normal(size=(len(shape), 20))
    named = [polynomial.polyval, polynomial.polyval2d, polynomial.polyval3d][len(shape) - 1]
    np.testing.assert_allclose(evaluate(c, at), named(*at, c), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(evaluate(c, list(at)), named(*at, c), rtol=1e-12, atol=1e-12)


def test_evaluate_in_four_coordinates():
    rng = np.random.default_rng(7)
    c, at = rng.normal(size=(2, 3, 1, 4)), rng.normal(size=(4, 20))
    np.testing.assert_allclose(evaluate(c, at), sum_of_powers(c, at), rtol=1e-12, atol=1e-12)


# Sums over cells


def exposures(rng, m=4, d=3, n=50):
    """Values, precisions with a third of the cells masked, and scaled coordinates."""
    precision = rng.uniform(0.1, 4, (m, n)) * (rng.random((m, n)) > 1 / 3)
    return np.where(precision > 0, rng.normal(size=(m, n)), 0.0), precision, rng.uniform(-1, 1, (d, n))


def looped(values, precision, scaled, degree, weights):
    """Normal matrix, right-hand side and number of cells of each pair, cell by cell."""
    basis = Basis(degree, (0.0,) * len(degree), (1.0,) * len(degree))
    found = {}
    for i, j in combinations(range(len(values)), 2):
        for k in range(values.shape[1]):
            if precision[i, k] == 0 or precision[j, k] == 0:
                continue
            if weights == "pairs":
                w = 1 / (1 / precision[i, k] + 1 / precision[j, k])
            else:
                w = precision[i, k] * precision[j, k] / sum(precision[:, k])
            phi = basis.terms(scaled[:, k : k + 1])[:, 0]
            normal, rhs, npix = found.get((i, j), (0, 0, 0))
            found[i, j] = (
                normal + w * np.outer(phi, phi),
                rhs + w * (values[i, k] - values[j, k]) * phi,
                npix + 1,
            )
    return basis, found


def assert_same(sums, basis, expected):
    assert list(zip(sums.first.tolist(), sums.second.tolist(), strict=True)) == list(expected)
    normal, rhs, npix = (np.array(part) for part in zip(*expected.values(), strict=True))
    np.testing.assert_allclose(basis.products(sums.moments), normal, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums.rhs, rhs, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(sums.npix, npix)


@pytest.mark.parametrize("weights", ["ml", "pairs"])
@pytest.mark.parametrize("degree", [(0,), (2,), (1, 2), (1, 1, 1), (2, 0, 1)])
def test_sums_against_loops(degree, weights):
    values, precision, scaled = exposures(np.random.default_rng(8), d=len(degree))
    found = sum_pairs(values, precision, scaled, degree, weights)
    assert_same(found, *looped(values, precision, scaled, degree, weights))


@pytest.mark.parametrize("weights", ["ml", "pairs"])
def test_two_exposures_weigh_the_same_either_way(weights):
    values, precision, scaled = exposures(np.random.default_rng(9), m=2)
    assert_same(
        sum_pairs(values, precision, scaled, (1, 1, 1), weights), *looped(values, precision, scaled, (1, 1, 1), "pairs")
    )


@pytest.mark.parametrize("weights", ["ml", "pairs"])
def test_sums_in_many_steps(weights, monkeypatch):
    monkeypatch.setattr(bkgmatch.polynomial_sums, "_AT_ONCE", 1)  # 64 cells
    values, precision, scaled = exposures(np.random.default_rng(10), n=200)
    assert_same(
        sum_pairs(values, precision, scaled, (1, 0, 1), weights), *looped(values, precision, scaled, (1, 0, 1), weights)
    )


def test_pairs_without_common_cells_are_left_out():
    values, precision, scaled = exposures(np.random.default_rng(11), m=5)
    precision[1, ::2] = precision[3, 1::2] = precision[4] = 0
    found = sum_pairs(values, precision, scaled, (1, 1, 1), "ml")
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (2, 3),
    ]
    assert (found.npix > 0).all()


def test_sums_leave_their_input_alone():
    given = exposures(np.random.default_rng(12))
    before = [array.copy() for array in given]
    sum_pairs(*given, (1, 1, 1), "pairs")
    for array, expected in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("weights", ["ml", "pairs"])
def test_joined_sums_of_parts_are_those_of_the_whole(weights):
    """Not all parts have the same pairs."""
    values, precision, scaled = exposures(np.random.default_rng(13), n=60)
    precision[0, :20] = precision[2, 20:40] = precision[3, 40:] = 0
    precision[:, 50:] = 0
    parts = [slice(k, k + 10) for k in range(0, 60, 10)]
    sums = [sum_pairs(values[:, k], precision[:, k], scaled[:, k], (1, 1, 1), weights) for k in parts]
    assert_same(join(sums), *looped(values, precision, scaled, (1, 1, 1), weights))
    assert_same(join(sums[::-1]), *looped(values, precision, scaled, (1, 1, 1), weights))


def test_joined_sums_by_hand():
    def sums(first, second, value):
        ones = np.ones((len(first), 1))
        return PolynomialSums(np.array(first), np.array(second), value * ones, -value * ones, value * ones[:, 0])

    found = join([sums([0, 1], [2, 2], 1.0), sums([], [], 7.0), sums([0, 0], [1, 2], 10.0)])
    assert (found.first.tolist(), found.second.tolist()) == ([0, 0, 1], [1, 2, 2])
    np.testing.assert_array_equal(found.moments[:, 0], [10, 11, 1])
    np.testing.assert_array_equal(found.rhs[:, 0], [-10, -11, -1])
    np.testing.assert_array_equal(found.npix, [10, 11, 1])


@pytest.mark.parametrize("degree", [(0,), (3,), (2, 1), (1, 0, 2)])
def test_functions_of_low_degree_are_those_of_the_basis(degree):
    scaled = np.random.default_rng(14).uniform(-1, 1, (len(degree), 20))
    low = low_degree(degree)
    assert low.shape == (np.prod([2 * d + 1 for d in degree]),)
    np.testing.assert_array_equal(legendre_terms(scaled, [2 * d for d in degree])[low], legendre_terms(scaled, degree))
