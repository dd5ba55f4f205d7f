"""Nested dissection and the blocks of inverses, against dense algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bkgmatch import dissection
from bkgmatch.dissection import dissect
from bkgmatch.pairs import PairEquations
from bkgmatch.selected_inverse import inverse_blocks
from bkgmatch.solve import NormalSystem


def tree(rng, n=60):
    return np.array([(k, rng.integers(k)) for k in range(1, n)]).T


def chain(rng, n=60):
    return np.stack([np.arange(n - 1), np.arange(1, n)])


def grid(rng, side=10, reach=1):
    y, x = np.divmod(np.arange(side**2), side)
    near = np.maximum(np.abs(y[:, None] - y), np.abs(x[:, None] - x)) <= reach
    return np.stack(np.nonzero(np.triu(near, 1)))


def clique(rng, n=40):
    return np.stack(np.triu_indices(n, 1))


def star(rng, n=80):
    """One that all others are coupled with, and a chain of these."""
    return np.concatenate([chain(rng, n), np.stack([np.full(n - 1, n), np.arange(n - 1)])], axis=1)


def apart(rng):
    """Two grids, pairs, a tree; and some that are coupled with none, among them."""
    parts, start = [], 0
    for part in (grid(rng, 5), np.array([[0], [1]]), np.array([[0], [2]]), tree(rng, 20), grid(rng, 4, 2)):
        parts.append(part + start)
        start += int(part.max()) + 2
    return np.concatenate(parts, axis=1)


GRAPHS = [tree, chain, grid, clique, star, apart]


def shuffled(rng, graph):
    ends = graph(rng)
    return rng.permutation(int(ends.max()) + 1)[ends]


def random_matrix(rng, ends, p, *, noise=1.0):
    """Positive definite matrix with blocks for the edges of a graph, and one more vertex."""
    n = int(ends.max()) + 2
    matrix = np.kron(np.eye(n), np.eye(p)) * 0.3
    for i, j in ends.T:
        root = rng.normal(size=(p, 2 * p)) * noise
        both = np.concatenate([i * p + np.arange(p), j * p + np.arange(p)])
        matrix[np.ix_(both, both)] += root.T @ root
    return matrix, np.repeat(np.arange(n), p)


@pytest.fixture(params=[4, 25, 160])
def leaf(request, monkeypatch):
    monkeypatch.setattr(dissection, "LEAF", request.param)
    return request.param


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("graph", GRAPHS)
def test_fronts_hold_all_that_elimination_couples(graph, p, leaf):
    matrix, label = random_matrix(np.random.default_rng(1), shuffled(np.random.default_rng(2), graph), p)
    couplings = np.stack(np.nonzero(matrix))
    order, fronts = dissect(couplings, label)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(label)))
    assert [front.start for front in fronts] == [0, *(front.stop for front in fronts[:-1])]
    assert fronts[-1].stop == len(label)
    position = np.argsort(order)
    for number, front in enumerate(fronts):
        own = order[front.start : front.stop]
        assert not set(label[own]) & set(label[np.delete(np.arange(len(label)), own)])
        later = position[couplings[1][np.isin(couplings[0], own)]]
        assert set(later[later >= front.stop]) <= set(front.boundary)
        assert (np.diff(front.boundary) > 0).all()
        if len(front.boundary):
            above = fronts[front.parent]
            assert front.parent > number
            assert set(front.boundary) <= {*range(above.start, above.stop), *above.boundary}
            everywhere = np.append(np.arange(front.start, front.stop), front.boundary)
            np.testing.assert_array_equal(front.place(everywhere), np.arange(len(everywhere)))


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("graph", GRAPHS)
def test_blocks_of_inverses_against_dense_algebra(graph, p, leaf):
    rng = np.random.default_rng(3)
    ends = shuffled(rng, graph)
    matrix, label = random_matrix(rng, ends, p)
    same = label[:, None] == label
    inverse = np.linalg.inv(matrix)
    found = inverse_blocks(sparse.csr_array(matrix), label)
    np.testing.assert_allclose(found.toarray(), inverse * same, rtol=1e-8, atol=1e-9 * np.abs(inverse).max())
    scatter = matrix @ matrix * (rng.random(matrix.shape) < 0.1)  # couples also some that have a neighbour in common
    scatter = scatter + scatter.T + random_matrix(rng, ends, p)[0]
    expected = inverse @ scatter @ inverse * same
    for cluster in (None, rng.integers(0, 7, label.max() + 1)[label], label // 3):
        found = inverse_blocks(sparse.csr_array(matrix), label, sparse.csr_array(scatter), cluster)
        np.testing.assert_allclose(found.toarray(), expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("graph", GRAPHS)
def test_block_triangular_systems_against_dense_algebra(graph, leaf):
    """Of two stages, of which the second takes something from what the first gives."""
    rng = np.random.default_rng(4)
    ends = shuffled(rng, graph)
    one, label = random_matrix(rng, ends, 2)
    two, mixed = random_matrix(rng, ends, 2)[0], random_matrix(rng, ends, 2)[0]
    matrix = np.block([[one, np.zeros_like(one)], [mixed, two]])
    scatter = np.block([[two, mixed * 0.1], [mixed * 0.1, one]])
    labels = np.append(label, label.max() + 1 + label)
    inverse = np.linalg.inv(matrix)
    expected = inverse @ scatter @ inverse.T * (labels[:, None] == labels)
    found = inverse_blocks(sparse.csr_array(matrix), labels, sparse.csr_array(scatter))
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_nothing_to_invert():
    none = sparse.csr_array((0, 0))
    assert inverse_blocks(none, np.empty(0, dtype=int), none).shape == (0, 0)


def test_a_block_that_is_larger_than_a_leaf(leaf):
    matrix, _ = random_matrix(np.random.default_rng(5), clique(None, 30), 1)
    found = inverse_blocks(sparse.csr_array(matrix), np.zeros(len(matrix), dtype=int))
    np.testing.assert_allclose(found.toarray(), np.linalg.inv(matrix), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", [None, 6])
def test_a_long_chain(seed):
    """Of resistors, one end of which is held: the variance grows by each."""
    n = 3000
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    weight = np.random.default_rng(7).uniform(0.5, 2, n)
    diagonal = weight + np.append(weight[1:], 0)
    matrix = sparse.diags_array([diagonal, -weight[1:], -weight[1:]], offsets=[0, 1, -1]).tocsr()
    _, fronts = dissect(np.stack(matrix.tocoo().coords), np.arange(n))
    assert max(len(front.boundary) for front in fronts) <= 2
    found = inverse_blocks(matrix[order][:, order], np.arange(n)).diagonal()
    np.testing.assert_allclose(found, np.cumsum(1 / weight)[order], rtol=1e-9)


def cost(couplings, label):
    """Operations of dense algebra, but for a factor, and the largest front."""
    _, fronts = dissect(couplings, label)
    sizes = [front.stop - front.start + len(front.boundary) for front in fronts]
    return sum(size**3 for size in sizes), max(sizes)


def test_the_cost_is_hardly_more_than_linear():
    """Of a grid of 1600, 6400 and 25600 unknowns: n^1.5 at most, and fronts of a few rows."""
    label = {side: np.arange(side**2) for side in (40, 80, 160)}
    found = {}
    for side, one in label.items():
        number = one.reshape(side, side)
        right, up = np.stack([number[:, :-1], number[:, 1:]]), np.stack([number[:-1], number[1:]])
        found[side] = cost(np.concatenate([right.reshape(2, -1), up.reshape(2, -1)], axis=1), one)
    for side in (80, 160):
        assert found[side][0] < 4**1.5 * found[side // 2][0]
    assert found[160][1] < 5 * 160


def test_one_that_is_coupled_with_all_costs_little():
    """As the mean of a component: the others are cut as if it were not there."""
    n = 4000
    ends = np.concatenate([chain(None, n), np.stack([np.full(n, n), np.arange(n)])], axis=1)
    assert cost(ends, np.arange(n + 1))[1] <= dissection.LEAF + 3


# Covariance of systems


def random_system(rng, p, parts, held, prior):
    """Pairs in some parts of 14 unknowns, in sets of at least 2."""
    n = 14
    place = rng.permutation(n)[: rng.integers(parts * 2, n + 1)]
    first, second = [], []
    for part in np.array_split(place, parts):
        for k in range(1, len(part)):
            others = part[rng.integers(0, k, 1 + rng.integers(2))]
            first += [part[k]] * len(others)
            second += others.tolist()
    basis = rng.normal(size=(len(first), p + 2, p))
    local = np.concatenate([basis, -basis], axis=2)
    normal = np.einsum("kma,kmb->kab", local, local)
    equations = PairEquations(np.array(first), np.array(second), normal, rng.normal(size=(len(first), 2 * p)))
    loose = rng.uniform(0.01, 1, p) * (np.arange(p) > 0) if prior else None
    system = NormalSystem(n, equations, held=rng.random(n) < 0.2 if held else None, prior=loose)
    signs = np.zeros((n * p, len(first) * p))
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        columns = slice(k * p, (k + 1) * p)
        signs[i * p : (i + 1) * p, columns] += np.eye(p)
        signs[j * p : (j + 1) * p, columns] -= np.eye(p)
    root = rng.normal(size=(signs.shape[1], signs.shape[1])) * (rng.random((signs.shape[1],) * 2) < 0.2)
    scatter = signs @ root @ root.T @ signs.T + (np.diag(np.tile(loose, n)) if prior else 0)
    return system, scatter


def one_side_each(system, scatter):
    """Covariance from the response to as many right-hand sides as there are unknowns."""
    response = system.respond(np.eye(system.n * system.p))
    covariance = (response.T @ scatter @ response).reshape(system.n, system.p, system.n, system.p)
    return np.einsum("iaib->iab", covariance)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans()
)
def test_covariance_against_a_right_hand_side_for_each_unknown(seed, p, parts, held, prior, own):
    system, scatter = random_system(np.random.default_rng(seed), p, parts, held, prior)
    expected = one_side_each(system, system.normal.toarray() if own else scatter)
    expected[system.component < 0] = np.nan
    before = dissection.LEAF
    try:
        dissection.LEAF = 5
        found = system.covariance(None if own else sparse.csr_array(scatter))
    finally:
        dissection.LEAF = before
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.nanmax(np.abs(expected), initial=1))


def test_covariance_of_a_large_system_with_priors():
    """Tilts that a loose prior holds for the component as a whole do not spoil those that pairs determine."""
    rng = np.random.default_rng(8)
    first, second = grid(rng, 12)
    basis = np.concatenate([np.ones((len(first), 8, 1)), rng.normal(size=(len(first), 8, 2))], axis=2)
    local = np.concatenate([basis, -basis], axis=2)
    equations = PairEquations(first, second, 1e4 * np.einsum("kma,kmb->kab", local, local), np.zeros((len(first), 6)))
    found = NormalSystem(144, equations, prior=np.array([0, 1e-6, 1e-6])).covariance()
    exact = NormalSystem(144, equations).covariance()
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-12)
