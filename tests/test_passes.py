"""Sums over common cells and passes: against loops over cells, dense least squares, stacks and noise skies."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import sparse

from bkgmatch import dissection, passes
from bkgmatch.cells import BLOCK, CutOut
from bkgmatch.differences import PATCH, PairSums, Start, join_sums, patches, sum_patch
from bkgmatch.good_cells import good_cells
from bkgmatch.pair_fits import PairFits, fit_pair, fit_pairs
from bkgmatch.pairs import pair_equations
from bkgmatch.passes import Pass, solve_passes
from bkgmatch.priors import plausible_tilt
from bkgmatch.solve import NormalSystem
from bkgmatch.starts import better_start, start_solution

UNIT = 20.0
SIGMA = 5.0  # of a cell: larger than any tilt here, so that it is the standard deviation of the prior on tilts


# Cut-outs


def cut(box, value, variance=1.0, *, seed=None):
    """Cut-out with values in a box (x0, x1, y0, y1): an array, or a function of x and y."""
    x0, x1, y0, y1 = box
    low = [n // BLOCK * BLOCK for n in (x0, y0)]
    high = [-(-n // BLOCK) * BLOCK for n in (x1, y1)]
    full = np.full((high[1] - low[1], high[0] - low[0]), np.nan, dtype=np.float32)
    y, x = np.mgrid[y0:y1, x0:x1]
    full[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]] = value(x, y) if callable(value) else value
    blocks = np.full([n // BLOCK for n in full.shape], float(variance))
    if seed is not None:  # another variance in each block
        blocks *= np.random.default_rng(seed).uniform(0.5, 2, blocks.shape)
    centre = np.array([x0 + x1 - 1, y0 + y1 - 1]) / 2
    return CutOut(*low, full, blocks, 1.0, centre, max(x1 - x0, y1 - y0) / 2, np.array([x1 - x0, y1 - y0]))


def sky(x, y):
    return 3 * np.sin(x / 9) * np.cos(y / 7)


def plane(coefficients, x, y):
    terms = [1.0, np.asarray(x) / UNIT, np.asarray(y) / UNIT]
    return sum(c * t for c, t in zip(coefficients, terms, strict=False))


BOXES = [(100, 140, 100, 130), (118, 150, 104, 140), (104, 128, 118, 146), (122, 156, 122, 150), (110, 135, 96, 136)]
TILES = np.array([0, 0, 0, 1, 1])
PARTS = np.array([0, 0, 1, 2, 2])


def small_mosaic(rng, functions, *, noise=0.02, boxes=BOXES, holes=0.1, variance=1.0):
    """Exposures about the corner of four patches; noise is small for the variances: nothing is an outlier."""
    found = []
    for k, (box, f) in enumerate(zip(boxes, functions, strict=True)):
        c = cut(box, lambda x, y, f=f: 0.02 * sky(x, y) + plane(f, x, y), variance * (1 + 0.3 * k), seed=k)
        c.value[...] += rng.normal(0, noise, c.value.shape)
        c.value[rng.random(c.value.shape) < holes] = np.nan
        found.append(c)
    return found


def start_of(n, p, coefficients=None):
    return Start(np.zeros((n, p)) if coefficients is None else coefficients, np.ones(n), UNIT)


def measured(cutouts, p, containers, start=None, units=None):
    start = start or start_of(len(cutouts), p)
    units = np.arange(len(cutouts)) if units is None else units
    parts = [sum_patch(*patch, cutouts, start, units, containers) for patch in patches(cutouts)]
    return join_sums(parts, p)


def everything(cutouts):
    """Of each exposure: {cell: (value, weight)}, in double precision."""
    found = []
    for c in cutouts:
        rows, columns = np.nonzero(np.isfinite(c.value))
        found.append(
            {
                (int(c.x + x), int(c.y + y)): (float(c.value[y, x]), 1 / c.variance[y // BLOCK, x // BLOCK])
                for y, x in zip(rows, columns, strict=True)
            }
        )
    return found


# Sums of pairs


def brute_force(cutouts, p, containers):
    """Equations of pairs, by a loop over cells and pairs: {(level, i, j): [normal, rhs, squares, npix, spread]}."""
    cells, sums = everything(cutouts), {}
    earlier = np.arange(len(cutouts))
    for level, container in enumerate(containers):
        for place in set().union(*cells):
            seen = [i for i in range(len(cutouts)) if place in cells[i]]
            phi = np.array([1.0, place[0] / UNIT, place[1] / UNIT])[:p]
            for i, j in combinations(seen, 2):
                if container[i] != container[j] or earlier[i] == earlier[j]:
                    continue
                total = sum(cells[m][place][1] for m in seen if container[m] == container[i])
                one, two = cells[i][place][1], cells[j][place][1]
                w = one * two / total
                d = cells[i][place][0] - cells[j][place][0]
                new = [w * np.outer(phi, phi), w * d * phi, w * d**2, 1, w**2 * (1 / one + 1 / two)]
                old = sums.get((level, i, j), [0] * len(new))
                sums[level, i, j] = [a + b for a, b in zip(old, new, strict=True)]
        earlier = container
    return sums


ALL = np.zeros(5, dtype=int)
CONTAINERS = {"joint": [ALL], "tiles": [TILES, ALL], "parts": [PARTS, TILES, ALL], "nothing new": [PARTS, PARTS, ALL]}


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("containers", CONTAINERS)
@pytest.mark.parametrize("start", ["zero", "near"])
def test_sums_of_pairs_against_a_loop_over_cells(p, containers, start):
    """Weights w_i w_j / sum w over the exposures of the set; sums do not depend on the start."""
    rng = np.random.default_rng(1)
    cutouts = small_mosaic(rng, 0.05 * rng.normal(size=(5, 3)))
    near = start_of(5, p, 0.1 * rng.normal(size=(5, p))) if start == "near" else None
    found = measured(cutouts, p, CONTAINERS[containers], near)
    expected = brute_force(cutouts, p, CONTAINERS[containers])
    keys = list(zip(found.level.tolist(), found.first.tolist(), found.second.tolist(), strict=True))
    assert keys == sorted(expected)
    assert len(keys) >= 8
    normal, rhs, squares, npix, spread = (np.array(part) for part in zip(*(expected[k] for k in keys), strict=True))
    np.testing.assert_array_equal(found.npix, npix)
    size = np.abs(normal).max()
    np.testing.assert_allclose(found.normal, normal, rtol=1e-5, atol=1e-6 * size)
    np.testing.assert_allclose(found.rhs, rhs, rtol=1e-4, atol=1e-5 * np.abs(rhs).max())
    np.testing.assert_allclose(found.spread, spread, rtol=1e-5)
    np.testing.assert_allclose(found.noise(), np.sqrt(spread) / normal[:, 0, 0], rtol=1e-5)
    if start == "zero":
        np.testing.assert_allclose(found.squares, squares, rtol=1e-3)


def test_a_common_cell_determines_no_tilt():
    """Nor does what rounding leaves, which equal weights for all pairs would make something of."""
    boxes = [(10, 40, 12, 40), (39, 80, 39, 70), (20, 60, 20, 60)]
    found = measured(small_mosaic(np.random.default_rng(4), np.zeros((3, 3)), boxes=boxes, holes=0), 3, [ALL[:3]])
    (pair,) = np.flatnonzero(found.npix == 1)
    *none, some = np.linalg.eigvalsh(found.normal[pair])
    np.testing.assert_allclose(none, 0, atol=1e-12 * some)


def test_patches_hold_all_that_overlaps():
    cutouts = small_mosaic(np.random.default_rng(1), np.zeros((5, 3)))
    found = dict(patches(cutouts))
    cells = everything(cutouts)
    for place in set().union(*cells):
        seen = {i for i, here in enumerate(cells) if place in here}
        if len(seen) > 1:
            assert seen <= set(found[place[1] // PATCH, place[0] // PATCH])
    assert not patches(cutouts[:1])


def test_cells_at_negative_coordinates():
    boxes = [(x0 - 128, x1 - 128, y0 - 128, y1 - 128) for x0, x1, y0, y1 in BOXES]
    cutouts = small_mosaic(np.random.default_rng(2), np.zeros((5, 3)), boxes=boxes)
    expected = brute_force(cutouts, 3, [ALL])
    found = measured(cutouts, 3, [ALL])
    np.testing.assert_array_equal(found.npix, [expected[k][3] for k in sorted(expected)])
    np.testing.assert_allclose(found.normal, [expected[k][0] for k in sorted(expected)], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bright", [100.0, 1000.0])
def test_precision_of_sums(bright):
    """In single precision, with a sky so many standard deviations above zero: far better than the noise, bounded."""
    rng = np.random.default_rng(3)
    size, sigma = 384, 0.02
    noise = sigma * np.sqrt(3) * rng.uniform(-1, 1, (2, size, size))
    values = [bright * sigma + 0.3 * k + noise[k] for k in range(2)]
    cutouts = [cut((0, size, 0, size), v, sigma**2) for v in values]
    start = start_of(2, 1, np.array([[-0.15], [0.15]]))
    found = measured(cutouts, 1, [np.zeros(2, int)], start)
    exact = np.mean(cutouts[0].value.astype(float) - cutouts[1].value)
    assert found.npix[0] == size**2
    assert found.offset()[0] == pytest.approx(exact, abs=0.1 * sigma * np.sqrt(2) / size)
    if bright < 200:
        assert np.sqrt(found.squares[0] / found.normal[0, 0, 0]) == pytest.approx(sigma * np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("bright", [3e3, 1e4])
def test_precision_of_the_rms_on_a_bright_sky(bright):
    rng = np.random.default_rng(3)
    values = [bright + rng.normal(size=(256, 256)) for _ in range(2)]
    found = measured([cut((0, 256, 0, 256), v) for v in values], 1, [np.zeros(2, int)])
    assert np.sqrt(found.squares[0] / found.normal[0, 0, 0]) == pytest.approx(np.sqrt(2), rel=0.05)


# Dense least squares


def dense(cells, p):
    """Functions of mean zero by least squares, the sky of each cell unknown and tilts with a prior; covariance."""
    n = len(cells)
    places = sorted(set().union(*cells))
    column = {place: n * p + k for k, place in enumerate(places)}
    entries, data = [], []
    for i, here in enumerate(cells):
        for place, (value, weight) in here.items():
            row, root = len(data), np.sqrt(weight)
            phi = (1.0, place[0] / UNIT, place[1] / UNIT)[:p]
            entries += [(row, i * p + k, root * term) for k, term in enumerate(phi)]
            entries.append((row, column[place], root))
            data.append(root * value)
    rows, columns, values = np.array(entries).T
    design = sparse.csr_array((values, (rows.astype(int), columns.astype(int))), shape=(len(data), n * p + len(places)))
    normal = (design.T @ design).toarray()
    own, mixed, skies = normal[: n * p, : n * p], normal[: n * p, n * p :], np.diag(normal)[n * p :]
    own = own + np.diag(np.tile([0, *[SIGMA**-2] * (p - 1)], n))
    rhs = design.T @ np.array(data)
    inverse = np.linalg.pinv(own - mixed / skies @ mixed.T, rcond=1e-12)
    found = (inverse @ (rhs[: n * p] - mixed / skies @ rhs[n * p :])).reshape(n, p)
    centre = np.eye(n * p) - np.kron(np.ones((n, n)) / n, np.eye(p))
    covariance = centre @ inverse @ centre
    return found - found.mean(axis=0), np.array(
        [covariance[i * p : (i + 1) * p, i * p : (i + 1) * p] for i in range(n)]
    )


def solved(cutouts, p, containers, slopes, *, start=None, units=None, **kwargs):
    sums = measured(cutouts, p, containers, start, units)
    return solved_sums(len(cutouts), sums, containers, slopes, units=units, **kwargs)


def solved_sums(n, sums, containers, slopes, *, sigma=SIGMA, fixed=None, held=None, units=None):
    nothing = np.zeros(n, bool)
    held = held or [nothing] * len(containers)
    passes = [Pass(f"pass {k}", slopes[k], c, held[k]) for k, c in enumerate(containers)]
    fixed = nothing if fixed is None else fixed
    units = np.arange(n) if units is None else units
    return solve_passes(units, sums, passes, fixed, sigma, np.ones(len(sums.first)))


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_joint_solution_against_dense_least_squares(p, seed):
    rng = np.random.default_rng(seed)
    truth = 0.3 * rng.normal(size=(5, 3)) * ([1, 0, 0] if p == 1 else 1)
    cutouts = small_mosaic(rng, truth)
    found = solved(cutouts, p, [ALL], [p > 1], start=start_of(5, p, truth[:, :p]))
    expected, covariance = dense(everything(cutouts), p)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-3, atol=1e-4 * np.abs(covariance).max())
    np.testing.assert_array_equal(found.component, 0)
    np.testing.assert_array_equal(found.trust, 1)
    assert not found.loose.any()


def stack(cells, functions, p):
    """Inverse-variance weighted mean of exposures less their functions."""
    total = {}
    for here, f in zip(cells, functions, strict=True):
        for place, (value, weight) in here.items():
            value -= plane(f[:p], *place)
            mean, sum_of_weights = total.get(place, (0.0, 0.0))
            new = sum_of_weights + weight
            total[place] = ((mean * sum_of_weights + value * weight) / new, new)
    return total


def stacked_solution(cutouts, containers, slopes):
    """Each pass as the field does it: dense least squares of stacks, which are then stacked."""
    cells, n = everything(cutouts), len(cutouts)
    total, units = np.zeros((n, 3)), [[i] for i in range(n)]
    for container, slope in zip(containers, slopes, strict=True):
        p = 3 if slope else 1
        merged = []
        for number in dict.fromkeys(container.tolist()):
            inside = [k for k, unit in enumerate(units) if container[unit[0]] == number]
            functions = dense([cells[k] for k in inside], p)[0] if len(inside) > 1 else np.zeros((1, p))
            for k, f in zip(inside, functions, strict=True):
                total[units[k], :p] += f
            merged.append(([i for k in inside for i in units[k]], stack([cells[k] for k in inside], functions, p)))
        units, cells = [list(part) for part in zip(*merged, strict=True)]
    return total


@pytest.mark.parametrize("slopes", [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize("containers", ["tiles", "parts"])
def test_tied_passes_against_explicit_stacks(slopes, containers):
    """Nothing is stacked, yet the solution is that of stacks, far within its error."""
    rng = np.random.default_rng(11)
    sets = CONTAINERS[containers]
    slopes = [slopes[0]] * (len(sets) - 1) + [slopes[1]]
    p = 3 if any(slopes) else 1
    truth = 0.3 * rng.normal(size=(5, 3)) * [1, p > 1, p > 1]
    cutouts = small_mosaic(rng, truth, noise=0.1)
    found = solved(cutouts, p, sets, slopes, start=start_of(5, p, truth[:, :p]))
    expected = stacked_solution(cutouts, sets, slopes)[:, :p]
    difference = found.coefficients - expected
    difference -= difference.mean(axis=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(difference, 0, atol=1e-4 * max(1, scale))  # errors are 0.1 and more
    # and it is not the joint solution
    joint = dense(everything(cutouts), p)[0]
    assert np.abs(joint - (expected - expected.mean(axis=0))).max() > 1e-3


def test_exposures_that_move_as_one_from_the_beginning():
    """They are as their stack."""
    rng = np.random.default_rng(18)
    cutouts = small_mosaic(rng, np.zeros((5, 3)), noise=0.1)
    cells = everything(cutouts)
    for p in (1, 3):
        found = solved(cutouts, p, [ALL], [p > 1], units=TILES)
        stacks = [stack([cells[i] for i in range(5) if TILES[i] == t], np.zeros((3 - t, p)), p) for t in range(2)]
        expected, _ = dense(stacks, p)
        np.testing.assert_array_equal(found.coefficients, found.coefficients[[0, 0, 0, 3, 3]])
        apart = found.coefficients[0] - found.coefficients[3]
        np.testing.assert_allclose(apart, expected[0] - expected[1], atol=2e-5 * max(1, np.abs(expected).max()))


def test_no_pairs():
    found = solved_sums(2, join_sums([], 3), [np.zeros(2, int)], [True])
    assert np.isnan(found.coefficients).all()
    np.testing.assert_array_equal(found.component, -1)


# Outliers


@pytest.mark.parametrize("p", [1, 3])
def test_outliers_do_not_move_the_solution(p):
    """Cosmic rays on 1 % of the cells of each, and a ghost on a tenth of one."""
    rng = np.random.default_rng(4)
    n, size, sigma = 4, 128, 0.05
    truth = rng.normal(size=(n, 3)) * ([1, 0.2, 0.2] if p == 3 else [1, 0, 0])
    boxes = [(0, size, 0, size), (40, 40 + size, 0, size), (0, size, 40, 40 + size), (40, 40 + size, 40, 40 + size)]
    clean, spoilt = [], []
    for box, f in zip(boxes, truth, strict=True):
        c = cut(box, lambda x, y, f=f: plane(f, x, y), sigma**2)
        c.value[...] += rng.normal(0, sigma, c.value.shape)
        clean.append(c)
        value = c.value.copy()
        hit = rng.random(value.shape) < 0.01
        value[hit] += rng.exponential(20 * sigma, hit.sum())
        spoilt.append(CutOut(c.x, c.y, value, c.variance, 1.0, c.centre, c.half, c.extent))
    spoilt[2].value[60:90, 60:110] += 30 * sigma

    def whole(cutouts):
        fits = fit_pairs(cutouts, list(combinations(range(n), 2)), p, UNIT)
        return solved(cutouts, p, [np.zeros(n, int)], [p > 1], start=start_solution(n, fits, UNIT), sigma=sigma)

    one, two = whole(clean), whole(spoilt)
    error = np.sqrt(np.einsum("naa->na", one.covariance))
    assert (np.abs(two.coefficients - one.coefficients) < error).all()
    np.testing.assert_allclose(two.coefficients - (truth - truth.mean(axis=0))[:, :p], 0, atol=5 * error.max())
    np.testing.assert_array_equal(two.trust, 1)


@pytest.mark.parametrize(
    ("part", "bright"),
    [
        (0.05, 10),
        (0.1, 30),
        (0.33, 30),
        (0.33, 1000),
        (0.2, 10),
    ],
)
def test_a_ghost_on_one_of_two(part, bright):
    """On a part of the overlap, so many standard deviations of a cell: the level moves by less than its error."""
    sigma, shifts = 0.1, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        one, two = (cut(box, 2.0, sigma**2) for box in ((0, 96, 0, 96), (40, 136, 0, 96)))
        for c in (one, two):
            c.value[...] += rng.normal(0, sigma, c.value.shape)
        levels = []
        for ghost in (0.0, bright * sigma):
            two.value[: int(96 * part)] += ghost
            start = start_solution(2, fit_pairs([one, two], [(0, 1)], 1, UNIT), UNIT)
            found = solved([one, two], 1, [np.zeros(2, int)], [False], start=start, sigma=sigma)
            levels.append(found.coefficients[0, 0])
        shifts.append((levels[1] - levels[0]) / np.sqrt(found.covariance[0, 0, 0]))
        assert np.sqrt(found.covariance[0, 0, 0]) < 3 * sigma * np.sqrt(2 / (56 * 96 * (1 - part))) / 2
    assert abs(np.mean(shifts)) < 1.1


def test_a_noisy_exposure_with_a_steep_tilt_is_not_held():
    """The start leaves less of its tilt than its noise: else its cells would pass for outliers."""
    rng, n, size, noise = np.random.default_rng(4), 5, 96, 0.01
    tilt = np.array([0.0, 200.0, -100.0])
    cutouts = [cut((0, size, 0, size), rng.normal(0, noise, (size, size)), noise**2) for _ in range(n - 1)]
    noisy = cut(
        (0, size, 0, size), lambda x, y: plane(tilt, x, y) + rng.normal(0, 100 * noise, x.shape), 1e4 * noise**2
    )
    start = start_solution(n, fit_pairs([*cutouts, noisy], list(combinations(range(n), 2)), 3, UNIT), UNIT)
    left = start.coefficients[-1] - start.coefficients[0] - tilt
    assert (np.abs(left) * [1, size / UNIT, size / UNIT] < 0.5 * 100 * noise).all()


@pytest.mark.parametrize("p", [1, 3])
def test_a_robust_fit_of_a_pair(p):
    """With a fifth of the cells spoilt, all in the same direction."""
    rng = np.random.default_rng(6)
    f = np.array([1.0, 0.3, -0.2])[:p]
    one = cut((0, 96, 0, 96), lambda x, y: plane(f, x, y), 0.01)
    two = cut((0, 96, 0, 96), 0.0, 0.01)
    for c in (one, two):
        c.value[...] += rng.normal(0, 0.1, c.value.shape)
    clean = fit_pair(one, two, p, UNIT)
    np.testing.assert_allclose(clean[3], 0.01)
    assert clean[4] == pytest.approx(1, abs=0.15)  # the variances are right
    one.value[rng.random(one.value.shape) < 0.2] += 5.0
    estimate, _, npix, _, _, extent, rms = fit_pair(one, two, p, UNIT)
    sample = np.sqrt(npix) / np.sqrt(4)
    np.testing.assert_allclose(estimate, f, atol=12 * 0.14 / sample)
    assert npix == pytest.approx(96 * 96, rel=0.01)
    np.testing.assert_allclose(extent, 96, atol=2)
    assert rms == pytest.approx(0.1414, rel=0.4)


@pytest.mark.parametrize("size", [60, 400])
def test_weights_of_a_pair_are_those_of_all_of_its_cells(size):
    """However few of them are looked at: so large and small overlaps count as they should."""
    rng = np.random.default_rng(23)
    one, two = (cut((0, size, 0, size), rng.normal(0, 0.1, (size, size)), 0.01) for _ in range(2))
    _, normal, npix, *_ = fit_pair(one, two, 3, UNIT)
    x = np.arange(size) / UNIT
    moments = size / 0.02 * np.array([size, x.sum(), np.sum(x**2)])
    assert npix == pytest.approx(size**2, rel=0.05)
    np.testing.assert_allclose(normal[[0, 0, 1], [0, 1, 1]], moments, rtol=0.1)
    np.testing.assert_allclose(normal[[0, 2], [2, 2]], moments[1:], rtol=0.1)


def test_pairs_without_common_cells():
    """Far away; beside each other; in the same block but with other cells."""
    far = [cut((0, 20, 0, 20), 1.0), cut((200, 220, 0, 20), 1.0), cut((20, 31, 0, 20), 1.0)]
    for i, j in combinations(range(3), 2):
        assert fit_pair(far[i], far[j], 3, UNIT) is None
    fits = fit_pairs(far, [(0, 1), (0, 2)], 3, UNIT)
    assert len(fits.first) == 0
    assert fits.estimate.shape == (0, 3)
    np.testing.assert_array_equal(start_solution(3, fits, UNIT).coefficients, 0)
    assert len(measured(far, 3, [np.zeros(3, int)]).first) == 0


def test_noise_is_measured():
    """Variances that are wrong by a factor: from the scatter of the differences."""
    rng = np.random.default_rng(7)
    cutouts = [cut((10 * k, 200 + 10 * k, 0, 200), 1.0, 0.04 / 9) for k in range(4)]
    for c in cutouts:
        c.value[...] += rng.normal(0, 0.2, c.value.shape)
    fits = fit_pairs(cutouts, list(combinations(range(4), 2)), 1, UNIT)
    np.testing.assert_allclose(start_solution(4, fits, UNIT).noise, 9, rtol=0.12)


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize(
    "tail",
    [
        1,
        10,
    ],
)
def test_start_of_a_loop_with_a_tail(p, tail):
    """Pairs in no loop fit exactly; that says nothing of the others."""
    rng = np.random.default_rng(19)
    n = 3 + tail
    pairs = np.array([(0, 1), (1, 2), (0, 2)] + [(k, k + 1) for k in range(2, n - 1)])
    truth = rng.normal(size=(n, p))
    m = len(pairs)
    error = 0.01 * rng.normal(size=(m, p))
    fits = PairFits(
        *pairs.T,
        estimate=truth[pairs[:, 0]] - truth[pairs[:, 1]] + error,
        normal=np.tile(1e4 * np.eye(p), (m, 1, 1)),
        npix=np.full(m, 1000.0),
        expected=np.ones((m, 2)),
        excess=np.ones(m),
        extent=np.full((m, 2), 50.0),
        rms=np.ones(m),
    )
    found = start_solution(n, fits, UNIT).coefficients
    apart = found[pairs[:, 0]] - found[pairs[:, 1]]
    np.testing.assert_allclose(apart, fits.estimate, atol=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_start_with_overlaps_of_one_cell(seed):
    """They fit exactly: what is left of them is rounding, and its square must not be less than zero."""
    rng = np.random.default_rng(seed)
    terms = np.column_stack([np.ones(30), rng.uniform(-3, 3, (30, 2))])
    pairs, ones = np.array([(k, k + 1) for k in range(30)]), np.ones(30)
    normal = 1e4 * terms[:, :, None] * terms[:, None]
    estimate = rng.normal(0, 10, (30, 3))
    fits = PairFits(*pairs.T, estimate, normal, ones, np.ones((30, 2)), np.nan * ones, np.ones((30, 2)), ones)
    found = start_solution(31, fits, UNIT).coefficients
    at_cells = np.einsum("na,na->n", terms, found[:-1] - found[1:] - estimate)
    np.testing.assert_allclose(at_cells, 0, atol=1e-3)


def test_start_that_bad_pairs_do_not_move():
    """Of ten exposures that all overlap, one in six pairs is far off."""
    rng = np.random.default_rng(20)
    pairs = np.array(list(combinations(range(10), 2)))
    truth, m = rng.normal(size=(10, 1)), len(pairs)
    estimate = truth[pairs[:, 0]] - truth[pairs[:, 1]] + 0.01 * rng.normal(size=(m, 1))
    estimate[::6] += 5.0
    normal = np.full((m, 1, 1), 1e4)
    ones = np.ones(m)
    fits = PairFits(*pairs.T, estimate, normal, 1000 * ones, np.ones((m, 2)), ones, np.full((m, 2), 50.0), ones)
    found = start_solution(10, fits, UNIT).coefficients
    np.testing.assert_allclose(found - found.mean(), truth - truth.mean(), atol=0.02)


# Errors


def noise_mosaic(rng, *, n_dithers=3, size=48, step=40, sigma=0.1, tilts=0.0):
    """2 x 2 tiles of dithers, with their functions."""
    cutouts, truth, tiles = [], [], []
    for tile in range(4):
        for dither in range(n_dithers):
            x0, y0 = step * (tile % 2) + 5 * dither, step * (tile // 2) + (3 * dither) % 7
            f = rng.normal(size=3) * [1.0, tilts, tilts]
            c = cut((x0, x0 + size, y0, y0 + size), lambda x, y, f=f: plane(f, x, y), sigma**2)
            c.value[...] += rng.normal(0, sigma, c.value.shape)
            cutouts.append(c)
            truth.append(f)
            tiles.append(tile)
    return cutouts, np.array(truth), np.array(tiles)


def pulls(repeats, p, kind, seed):
    """(fitted - true) / sigma of each coefficient, of shape (repeats, n, p), relative to the mean."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        cutouts, truth, tiles = noise_mosaic(rng, tilts=0.1 if p == 3 else 0.0)
        containers = [tiles, 0 * tiles] if kind == "sequence" else [0 * tiles]
        fits = fit_pairs(cutouts, list(combinations(range(12), 2)), p, UNIT)
        start = start_solution(12, fits, UNIT)
        result = solved(cutouts, p, containers, [p > 1] * len(containers), start=start, sigma=0.1)
        # about the middle of each exposure
        shift = np.repeat(np.eye(3)[None], 12, axis=0)
        shift[:, 0, 1:] = [c.centre / UNIT for c in cutouts]
        shift = shift[:, :p, :p]
        error = result.coefficients - result.coefficients.mean(axis=0) - (truth - truth.mean(axis=0))[:, :p]
        error = np.einsum("nab,nb->na", shift, error)
        variance = np.einsum("nab,nbc,nac->na", shift, result.covariance, shift)
        found.append(error / np.sqrt(variance))
    return np.array(found)


@pytest.mark.parametrize("kind", ["joint", "sequence"])
@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("repeats", [20, pytest.param(120, marks=pytest.mark.slow)])
def test_errors_are_real(kind, p, repeats):
    """Width of (fitted - true) / sigma over noise skies, for each coefficient."""
    found = pulls(repeats, p, kind, seed=100 + p)
    width = np.sqrt(np.mean(found**2, axis=(0, 1)))
    margin = 0.08 if repeats < 100 else 0.0
    assert (width > 0.9 - margin).all(), width
    assert (width < 1.15 + margin).all(), width
    np.testing.assert_allclose(np.mean(found, axis=0), 0, atol=4.5 / np.sqrt(repeats))


@pytest.mark.parametrize(
    ("p", "repeats", "margin"),
    [(3, 50, 0.38), *(pytest.param(p, 200, 0.2, marks=pytest.mark.slow) for p in (1, 3))],
)
def test_errors_of_each_exposure_through_three_passes(p, repeats, margin):
    """Of exposures that overlap unequally: what one pass leaves enters the next."""
    rng = np.random.default_rng(21)
    empty = small_mosaic(rng, np.zeros((5, 3)), noise=0.0, holes=0.0)
    sets, found = CONTAINERS["parts"], []
    for _ in range(repeats):
        noisy = [
            replace(
                c, value=c.value + rng.normal(0, np.sqrt(np.kron(c.variance, np.ones((BLOCK, BLOCK)))), c.value.shape)
            )
            for c in empty
        ]
        noisy = [replace(c, value=c.value.astype(np.float32)) for c in noisy]
        found.append(solved(noisy, p, sets, [p > 1] * 3))
    coefficients = np.array([f.coefficients - f.coefficients.mean(axis=0) for f in found])
    variance = np.mean([np.einsum("naa->na", f.covariance) for f in found], axis=0)
    np.testing.assert_allclose(np.sqrt(np.mean(coefficients**2, axis=0) / variance), 1, atol=margin)


# Fixed and held exposures


@pytest.mark.parametrize("containers", ["joint", "tiles"])
@pytest.mark.parametrize("p", [1, 3])
def test_fixed_exposures_stay_and_others_join_them(containers, p):
    """Two fixed exposures, wherever they are: exactly 0, and without error."""
    rng = np.random.default_rng(8)
    truth = 0.3 * rng.normal(size=(5, 3)) * ([1, 0, 0] if p == 1 else 1)
    fixed = np.array([False, True, False, True, False])
    truth[fixed] = 0
    cutouts = small_mosaic(rng, truth, noise=1e-4, holes=0)
    sets = CONTAINERS[containers]
    found = solved(cutouts, p, sets, [p > 1] * len(sets), fixed=fixed, start=start_of(5, p, truth[:, :p]))
    np.testing.assert_array_equal(found.coefficients[fixed], 0)
    np.testing.assert_array_equal(found.covariance[fixed], 0)
    middle = np.array([plane(f, *c.centre) for f, c in zip(found.coefficients, cutouts, strict=True)])
    expected = np.array([plane(f[:p], *c.centre) for f, c in zip(truth, cutouts, strict=True)])
    np.testing.assert_allclose(middle, expected, atol=5e-3)  # of 5: the prior pulls at the tilts
    assert (found.covariance[~fixed][:, 0, 0] > 0).all()


def test_prior_on_tilts_beside_a_fixed_exposure():
    """The tilt is well determined, so that the prior must not pull at it."""
    sigma, truth = 0.02, np.array([[0.0, 0.0, 0.0], [0.5, 0.4, -0.3]])
    rng = np.random.default_rng(22)
    boxes = [(0, 40, 0, 40), (30, 70, 0, 40)]
    cutouts = small_mosaic(rng, truth, noise=sigma, boxes=boxes, holes=0.0, variance=sigma**2 / 1.15)
    start = start_of(2, 3, truth)
    found = solved(cutouts, 3, [np.zeros(2, int)], [True], sigma=sigma, start=start, fixed=np.array([True, False]))
    assert (np.abs(found.coefficients[1] - truth[1]) < 5 * np.sqrt(np.diag(found.covariance[1]))).all()


def test_a_fixed_exposure_anchors_only_its_own_component():
    rng = np.random.default_rng(9)
    boxes = [(0, 30, 0, 30), (10, 40, 0, 30), (500, 530, 0, 30), (510, 540, 0, 30)]
    truth = np.zeros((4, 3))
    truth[:, 0] = [0.1, 0.4, 0.2, 0.6]
    cutouts = small_mosaic(rng, truth, noise=1e-4, boxes=boxes)
    found = solved(cutouts, 1, [np.zeros(4, int)], [False], fixed=np.array([True, False, False, False]))
    np.testing.assert_allclose(found.coefficients[:, 0], [0, 0.3, -0.2, 0.2], atol=1e-3)
    np.testing.assert_array_equal(found.component, [0, 0, 1, 1])


def test_held_in_one_pass_only():
    """Exposures that a pass holds move as a whole in the next."""
    rng = np.random.default_rng(10)
    truth = np.zeros((5, 3))
    truth[:, 0] = [0.0, 0.0, 0.5, 0.2, 0.2]
    cutouts = small_mosaic(rng, truth, noise=1e-4, holes=0)
    held = [np.array([True, True, False, True, True]), np.zeros(5, bool)]
    found = solved(cutouts, 1, [TILES, ALL], [False, False], held=held).coefficients[:, 0]
    np.testing.assert_allclose(found - found[0], [0, 0, 0.5, 0.2, 0.2], atol=1e-3)


def test_held_exposures_that_a_pass_joins_are_to_agree():
    """Else what joins them would be torn between them, and they would stay apart for ever."""
    truth = np.zeros((5, 3))
    truth[:, 0] = [0.0, 0.1, 0.5, 0.2, 0.2]
    cutouts = small_mosaic(np.random.default_rng(10), truth, noise=1e-4, holes=0)
    held = [np.array([True, True, False, True, True]), np.zeros(5, bool)]
    found = solved(cutouts, 1, [TILES, ALL], [False, False], held=held).coefficients[:, 0]
    np.testing.assert_allclose(found - found[0], truth[:, 0], atol=1e-3)
    fixed = np.array([True, False, False, False, False])
    found = solved(cutouts, 1, [TILES, ALL], [False, False], held=held, fixed=fixed).coefficients[:, 0]
    np.testing.assert_allclose(found, truth[:, 0], atol=1e-3)
    assert found[0] == 0


# Loops


def pair_sums(first, second, offset, npix=2000.0, sigma=0.1):
    """Sums of constants, with two equal exposures in each cell."""
    n = len(first)
    npix = np.broadcast_to(float(npix), n).copy()
    weight = npix / (2 * sigma**2)
    return PairSums(
        np.zeros(n, int),
        np.asarray(first),
        np.asarray(second),
        weight[:, None, None].copy(),
        (weight * offset)[:, None],
        weight * offset**2,
        npix,
        weight,
    )


@pytest.mark.parametrize("wrong", [20.0, 50.0, 1000.0])
@pytest.mark.parametrize(
    "n",
    [
        6,
        12,
    ],
)
def test_a_pair_that_does_not_close_is_trusted_less(wrong, n):
    """Of exposures that all overlap; it is so many standard errors wrong."""
    rng = np.random.default_rng(12)
    first, second = np.array(list(combinations(range(n), 2))).T
    levels, m = rng.normal(size=n), len(first)
    error = 0.1 * np.sqrt(2 / 2000)
    offset = levels[first] - levels[second] + error * rng.normal(size=m)

    def run(values):
        return solved_sums(n, pair_sums(first, second, values), [np.zeros(n, int)], [False], sigma=0.1)

    one = run(offset)
    np.testing.assert_array_equal(one.trust, 1)
    sigma = np.sqrt(one.covariance[:, 0, 0])
    for which in range(0, m, 4):
        spoilt = offset.copy()
        spoilt[which] += wrong * error
        two = run(spoilt)
        assert two.trust[which] < (0.5 if wrong < 30 else 0.1)
        np.testing.assert_array_equal(np.delete(two.trust, which), 1)
        assert (np.abs(two.coefficients - one.coefficients)[:, 0] < (1.5 if wrong < 30 else 1) * sigma).all()
        np.testing.assert_allclose(np.sqrt(two.covariance[:, 0, 0]), sigma, rtol=0.25)


def test_pairs_that_are_all_a_little_off_are_all_trusted():
    """Real data agree less well than their noise says; that is no reason to throw them away."""
    rng = np.random.default_rng(13)
    first, second = np.array(list(combinations(range(8), 2))).T
    offset = rng.normal(0, 20 * 0.1 * np.sqrt(2 / 2000), len(first))
    found = solved_sums(8, pair_sums(first, second, offset), [np.zeros(8, int)], [False], sigma=0.1)
    assert np.mean(found.trust == 1) > 0.9
    assert found.trust.min() > 0.5


def test_one_pair_cannot_be_checked():
    found = solved_sums(2, pair_sums([0], [1], np.array([5.0])), [np.zeros(2, int)], [False], sigma=0.1)
    np.testing.assert_allclose(found.coefficients[:, 0], [2.5, -2.5])
    assert found.trust[0] == 1


# What the overlaps do not determine


@pytest.mark.parametrize("across", ["column", "row"])
@pytest.mark.parametrize("n", [2, 3])
def test_tilts_of_an_overlap_of_one_column_or_row(across, n):
    """The tilt across it is not determined: the prior holds it, and says so; along it, it is."""
    rng = np.random.default_rng(14)
    sigma = 0.05
    boxes = [(63 * k, 63 * k + 64, 0, 64) for k in range(n)]
    if across == "row":
        boxes = [(y0, y1, x0, x1) for x0, x1, y0, y1 in boxes]
    truth = np.zeros((n, 3))
    truth[:, 0] = np.arange(n)
    cutouts = small_mosaic(rng, truth, noise=sigma, boxes=boxes, holes=0, variance=sigma**2 / 1.3)
    near = np.zeros((n, 3))
    near[:, 0] = np.arange(n)
    found = solved(cutouts, 3, [np.zeros(n, int)], [True], sigma=sigma, start=start_of(n, 3, near))
    assert np.isfinite(found.coefficients).all()
    assert np.isfinite(found.covariance).all()
    assert found.loose.all()
    assert (np.abs(found.coefficients[:, 1:]) < 5 * sigma).all()
    apart = [
        plane(found.coefficients[k], *at) - plane(found.coefficients[k + 1], *at) + 1
        for k in range(n - 1)
        for at in [(63 * (k + 1), 32) if across == "column" else (32, 63 * (k + 1))]
    ]
    np.testing.assert_allclose(apart, 0, atol=5 * sigma * np.sqrt(2 / 64))
    spread = np.sqrt(np.einsum("naa->na", found.covariance))[:, 1:]
    assert (spread < 10 * sigma).all()


def test_plausible_tilts_are_those_that_are_determined_best():
    """Five that all overlap, and one that hangs on a few cells, whose tilt is absurd."""
    pairs = np.array([*combinations(range(5), 2), (4, 5)])
    normal = np.tile(1e4 * np.eye(3), (len(pairs), 1, 1))
    normal[-1, 1:, 1:] = 1e-3 * np.eye(2)
    system = NormalSystem(6, pair_equations(*pairs.T, normal, np.zeros((len(pairs), 3))))
    found = np.zeros((6, 3))
    found[:, 1:] = [(0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (-0.5, -0.5), (0.5, 0.5), (80.0, -90.0)]
    assert plausible_tilt(system, found, np.ones(6, bool), 0.1) == pytest.approx(3 * 0.5)


def test_wide_overlaps_are_not_loose():
    rng = np.random.default_rng(15)
    cutouts, _, tiles = noise_mosaic(rng, tilts=0.1)
    start = start_solution(12, fit_pairs(cutouts, list(combinations(range(12), 2)), 3, UNIT), UNIT)
    assert not solved(cutouts, 3, [0 * tiles], [True], start=start, sigma=0.1).loose.any()
    assert not solved(cutouts, 1, [0 * tiles], [False], sigma=0.1).loose.any()


def test_components_and_exposures_without_pairs():
    boxes = [(500, 530, 0, 30), (900, 930, 0, 30), (0, 30, 0, 30), (510, 540, 0, 30), (10, 40, 0, 30)]
    cutouts = small_mosaic(np.random.default_rng(16), np.zeros((5, 3)), boxes=boxes)
    for slopes, p in (([False, False], 1), ([True, True], 3)):
        found = solved(cutouts, p, [np.array([0, 1, 2, 0, 2]), ALL], slopes)
        np.testing.assert_array_equal(found.component, [0, -1, 1, 0, 1])
        np.testing.assert_array_equal(np.isnan(found.coefficients).all(axis=1), [False, True, False, False, False])
        np.testing.assert_array_equal(np.isnan(found.covariance).any(axis=(1, 2)), [False, True, False, False, False])


def test_an_arbitrary_origin_of_planes():
    """Moving the whole mosaic by far over the grid changes nothing but the coefficients' origin."""
    middles = []
    for shift in (0, 128 * 5):
        rng = np.random.default_rng(17)
        cutouts, _, tiles = noise_mosaic(rng)
        moved = [
            CutOut(c.x + shift, c.y, c.value, c.variance, 1.0, c.centre + np.array([shift, 0]), c.half, c.extent)
            for c in cutouts
        ]
        found = solved(moved, 3, [tiles, 0 * tiles], [True, True], sigma=0.1)
        middles.append([plane(f, *c.centre) for f, c in zip(found.coefficients, moved, strict=True)])
        middles[-1] += [plane([0, *f[1:]], 30, 30) for f in found.coefficients]
    np.testing.assert_allclose(middles[1], middles[0], atol=2e-4)


def test_errors_grow_with_what_the_functions_leave():
    """Offsets that contradict each other by many times their noise: variances grow by the squared typical pull."""
    rng = np.random.default_rng(21)
    first, second = np.array(list(combinations(range(6), 2))).T
    m = len(first)
    offset = 0.3 * rng.choice([-1.0, 1.0], m)
    normal = np.full((m, 1, 1), 5000.0)

    def solution(offset):
        level = np.zeros(m, dtype=int)
        sums = PairSums(
            level, first, second, normal, normal[:, 0] * offset[:, None], np.ones(m), np.full(m, 100.0), normal[:, 0, 0]
        )
        every = Pass("all", False, np.zeros(6, dtype=int), np.zeros(6, dtype=bool))
        return solve_passes(np.arange(6), sums, [every], np.zeros(6, dtype=bool), 0.1, np.ones(m))

    found, quiet = solution(offset), solution(np.zeros(m))
    c = found.coefficients[:, 0]
    pull = np.median(np.abs(offset - c[first] + c[second])) / (0.1 * np.sqrt(2 / 100)) / 0.6745
    assert pull > 5
    np.testing.assert_array_equal(found.trust, 1)
    np.testing.assert_allclose(found.covariance, pull**2 * quiet.covariance, rtol=1e-9)


def test_misfit_and_trust_are_those_of_each_mosaic():
    """Two mosaics on one grid: of one all pairs contradict each other, of the other one pair does."""
    rng = np.random.default_rng(21)
    pairs = np.array(list(combinations(range(6), 2)))
    first, second = np.concatenate([pairs, pairs + 6]).T
    m, mosaic = len(pairs), np.repeat([0, 1], 6)
    offset = np.concatenate([0.3 * rng.choice([-1.0, 1.0], m), rng.normal(0, 0.014, m)])
    offset[m] += 0.2
    level, normal = np.zeros(2 * m, dtype=int), np.full((2 * m, 1, 1), 5000.0)
    sums = PairSums(
        level,
        first,
        second,
        normal,
        normal[:, 0] * offset[:, None],
        normal[:, 0, 0],
        np.full(2 * m, 100.0),
        normal[:, 0, 0],
    )
    every = Pass("all", False, mosaic, np.zeros(12, dtype=bool))

    def solution(*mosaics):
        some = sums.take(np.isin(mosaic[first], mosaics))
        return solve_passes(np.arange(12), some, [every], every.held, 0.1, np.ones(len(some.first)))

    both, alone = solution(0, 1), [solution(0), solution(1)]
    np.testing.assert_allclose(both.trust, np.concatenate([one.trust for one in alone]), rtol=1e-6)
    for k, one in enumerate(alone):
        np.testing.assert_allclose(both.covariance[mosaic == k], one.covariance[mosaic == k], rtol=1e-6)
    assert both.trust[m] < 0.5
    assert both.covariance[0, 0, 0] > 20 * both.covariance[6, 0, 0]


def test_small_mosaics_have_one_misfit():
    """Four mosaics of three pairs, whose offsets contradict each other: a single one is too small to tell."""
    n, mosaic = 12, np.repeat(np.arange(4), 3)
    first, second = np.array([(i, j) for i, j in combinations(range(n), 2) if mosaic[i] == mosaic[j]]).T
    m = len(first)
    offset = np.random.default_rng(5).choice([-0.05, 0.05], (m, 1))
    level, normal = np.zeros(m, dtype=int), np.full((m, 1, 1), 5000.0)
    every = Pass("all", False, mosaic, np.zeros(n, dtype=bool))

    def variance(factor, *mosaics):
        sums = PairSums(
            level, first, second, normal, factor * normal[:, 0] * offset, np.ones(m), np.full(m, 100.0), normal[:, 0, 0]
        )
        some = sums.take(np.isin(mosaic[first], mosaics))
        found = solve_passes(np.arange(n), some, [every], every.held, 0.1, np.ones(len(some.first)))
        return found.covariance[mosaics[0] * 3, 0, 0]

    quiet = variance(0, 0)
    assert variance(1, 0) == pytest.approx(quiet)
    assert variance(1, 0, 1, 2) == pytest.approx(quiet)  # nine pairs
    assert variance(1, 0, 1, 2, 3) > 2 * quiet
    assert variance(1, 3, 0, 1, 2) == pytest.approx(variance(1, 0, 1, 2, 3))


@pytest.mark.parametrize("bad", [30.0, -30.0])
@pytest.mark.parametrize("apart", [-1.1, -0.9, 0.9, 1.1])
@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_beside_a_bad_value_others_are_judged_as_two(bad, apart, variance):
    """Both or none is used, whichever is higher and whichever has more noise."""
    value, weight = np.zeros((2, 3, PATCH, PATCH), dtype=np.float32)
    value[0], value[1] = bad, apart * 3 * np.sqrt(1 + variance)
    weight[...] = np.array([1, 1 / variance, 1])[:, None, None]
    found = good_cells(value, weight, np.ones(3))[3]
    assert not found[0].any()
    assert (found[1:] > 0).all() if abs(apart) < 1 else not found[1:].any()


def test_of_two_against_two_none_is_used():
    """As copies of two exposures are, which differ by the same."""
    value = np.zeros((4, PATCH, PATCH), dtype=np.float32)
    value[:2] = 8.0
    assert not good_cells(value, np.ones_like(value), np.ones(4))[3].any()


def test_a_cosmic_ray_is_not_structure_of_the_sky():
    """Of three exposures one is hit, and loses the cells around, too: the others keep their weights there."""
    value = np.zeros((3, PATCH, PATCH), dtype=np.float32)
    value[0, 60, 60] = 50.0
    weight = np.ones_like(value)
    x, y, _, weight = good_cells(value, weight, np.ones(3))
    expected = np.ones((3, len(x)))
    expected[0, (abs(x - 60) <= 1) & (abs(y - 60) <= 1)] = 0
    np.testing.assert_array_equal(weight, expected)


def normal_noise(rng, n, side):
    return [cut((0, side, 0, side), rng.normal(0, 1, (side, side))) for _ in range(n)]


@pytest.mark.parametrize("wrong", [[0.1], [0.1, 0.01, -0.02]])
def test_a_better_start_leaves_nothing_of_a_wrong_one(wrong):
    """Clipping about a start that is wrong by 0.1 leaves 3 % of it; about the better one, less than a tenth of that."""
    p = len(wrong)
    cutouts = normal_noise(np.random.default_rng(7), 2, 4 * PATCH)
    start = start_of(2, p, np.array([wrong, np.zeros(p)]))

    def offset(start):
        return measured(cutouts, p, [np.zeros(2, int)], start).offset()[0]

    right = offset(start_of(2, p))
    better = better_start(start, measured(cutouts, p, [np.zeros(2, int)], start))
    assert abs(offset(start) - right) > 2e-3
    assert abs(offset(better) - right) < 2e-4
    np.testing.assert_array_equal(better.noise, start.noise)
    assert better.unit == start.unit


def test_a_bad_pair_does_not_spoil_a_better_start():
    """A ghost in half of what the first two of six have in common."""
    n, level = 6, np.arange(6.0)[:, None]
    first, second = np.array(list(combinations(range(n), 2))).T
    normal = np.full((len(first), 1, 1), 1e4)
    offset = level[first] - level[second]
    offset[0] += 0.5
    none = np.zeros(len(first), dtype=int)
    sums = PairSums(
        none,
        first,
        second,
        normal,
        normal[:, 0] * offset,
        np.ones(len(first)),
        np.full(len(first), 1e4),
        normal[:, 0, 0],
    )
    found = better_start(start_of(n, 1, level + 0.1), sums).coefficients
    np.testing.assert_allclose(found - found.mean(), level - level.mean(), atol=0.005)


def test_pairs_with_more_noise_than_is_given_count_less_for_the_start():
    """A loop of three that does not close: what is wrong is the pairs of the noisy one."""
    first, second = np.array([(0, 1), (0, 2), (1, 2)]).T
    estimate, normal = np.array([[0.0], [0.0], [3.0]]), np.full((3, 1, 1), 1e4)
    many, ones = np.full(3, 1000.0), np.ones(3)
    noisy = np.array([1.0, 100.0, 100.0])
    fits = PairFits(first, second, estimate, normal, many, np.ones((3, 2)), noisy, np.ones((3, 2)), ones)
    found = start_solution(3, fits, UNIT).coefficients[:, 0]
    assert abs(found[0] - found[1]) < 0.1


def test_a_better_start_is_none_without_pairs():
    coefficients = np.array([[1.0, 2, 3], [4, 5, 6]])
    found = better_start(start_of(2, 3, coefficients), join_sums([], 3))
    np.testing.assert_array_equal(found.coefficients, coefficients)


@pytest.mark.parametrize("bad", [50.0, -50.0, 4.5, 4.0])
def test_a_bad_cell_of_one_of_two_is_not_structure_of_the_sky(bad):
    """Both lose it from 3 sqrt(2) on, but nothing else: a curved sky would make all around it uncertain."""
    value = np.zeros((2, PATCH, PATCH), dtype=np.float32)
    value[0, 60, 60] = bad
    x, y, _, weight = good_cells(value, np.ones_like(value), np.ones(2))
    near = (abs(x - 60) <= 1) & (abs(y - 60) <= 1) & (abs(bad) > 3 * np.sqrt(2))
    np.testing.assert_array_equal(weight, np.where(near, 0, np.ones((2, 1))))


def test_structure_of_the_sky_adds_the_variance_of_interpolation():
    """A tenth of the second difference, along rows and columns; a star of one cell has it in the cells around, too."""
    value = np.zeros((2, PATCH, PATCH), dtype=np.float32)
    value[:, 60, 60] = 100.0
    x, y, _, weight = good_cells(value, np.ones_like(value), np.ones(2))
    at = (x == 60) & (y == 60)
    np.testing.assert_allclose(weight[:, at], 1 / (1 + 2 * (0.1 * 200) ** 2), rtol=1e-5)
    assert (weight[:, (abs(x - 60) <= 1) & (abs(y - 60) <= 1)] < 0.01).all()
    np.testing.assert_array_equal(weight[:, (abs(x - 60) > 2) | (abs(y - 60) > 2)], 1)


# Errors, one right-hand side for each exposure


def slow_covariance(n, p, solved, component, fixed, counted):
    """Errors backwards through the passes: exact, but quadratic in the number of exposures."""
    anchored = np.isin(component, component[fixed])
    counted = np.ones(n, dtype=bool) if counted is None else counted
    counted = counted | ~np.isin(component, component[counted])
    same = (component[:, None] == component) & counted[:, None] & ~anchored
    means = same / np.maximum(same.sum(axis=0), 1)
    columns = np.eye(n * p) - np.kron(means, np.eye(p))
    total = np.zeros((n, p, n, p))
    for one in reversed(solved):
        response = one.system.respond(one.units.T @ columns)
        total += (response.T @ one.spread @ response).reshape(n, p, n, p)
        columns = columns - one.normal @ (one.units @ response)
    covariance = np.einsum("iaib->iab", total)
    return np.where((component >= 0)[:, None, None], covariance, np.nan)


def random_sums(rng, containers, p, n_pairs):
    """Pairs of exposures near each other in number, each in the first pass whose sets hold both."""
    n = len(containers[0])
    first = rng.integers(0, n - 1, n_pairs)
    second = np.minimum(first + 1 + rng.integers(0, 4, n_pairs), n - 1)
    first, second = np.unique(np.stack([first, second])[:, first < second], axis=1)
    level = np.sum([c[first] != c[second] for c in containers], axis=0)
    kept = level < len(containers)
    first, second, level = first[kept], second[kept], level[kept]
    terms = np.concatenate([np.ones((len(first), 9, 1)), rng.normal(size=(len(first), 9, 2))], axis=2)[:, :, :p]
    normal = 50 * np.einsum("kma,kmb->kab", terms, terms)
    rhs = np.einsum("kab,kb->ka", normal, rng.normal(0, 0.1, (len(first), p)))
    order = np.lexsort((second, first, level))
    sums = PairSums(level, first, second, normal, rhs, np.ones(len(first)), normal[:, 0, 0], normal[:, 0, 0])
    return sums.take(order)


@pytest.mark.parametrize("slopes", [(0,), (1,), (0, 0), (1, 1), (1, 0), (0, 1), (0, 0, 0), (1, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("kind", ["free", "fixed", "held", "counted", "units"])
def test_errors_against_a_right_hand_side_for_each_exposure(slopes, kind, monkeypatch):
    """Through passes over neighbours in pairs, in tens and all; some exposures have no pairs, some move as one."""
    rng = np.random.default_rng(21)
    n, p = 60, 3 if any(slopes) else 1
    number = np.arange(n)
    sets = [number // 4, number // 15, number // 45][-len(slopes) :]
    chosen = rng.random(n) < 0.1
    nothing = np.zeros(n, dtype=bool)
    fixed = chosen if kind == "fixed" else nothing
    held = chosen if kind == "held" else nothing
    units = number // 2 if kind == "units" else number
    every = [Pass(str(k), bool(s), c, held) for k, (s, c) in enumerate(zip(slopes, sets, strict=True))]
    sums = random_sums(rng, sets, p, 90)
    apart = units[sums.first] != units[sums.second]
    sums = sums.take(np.flatnonzero(apart))
    counted = ~chosen if kind == "counted" else None

    def solution():
        return solve_passes(units, sums, every, fixed, 0.2, np.ones(len(sums.first)), counted)

    monkeypatch.setattr(dissection, "LEAF", 20)
    found = solution().covariance
    monkeypatch.setattr(passes, "_covariance", slow_covariance)
    expected = solution().covariance
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8 * np.nanmax(expected))


def test_errors_of_a_mosaic_in_passes_need_small_fronts(monkeypatch):
    """Tiles of 12 exposures, 11 x 11 of them: all exposures of a tile are coupled with those of the tiles near it."""
    rng = np.random.default_rng(22)
    tile = np.repeat(np.arange(121), 12)
    place = np.stack(np.divmod(tile, 11)) + rng.uniform(-0.5, 0.5, (2, len(tile)))
    first, second = np.nonzero(np.triu(np.hypot(*(place[:, :, None] - place[:, None])) < 0.35, 1))
    sets = [np.arange(len(tile)) // 3, tile, np.zeros(len(tile), dtype=int)]
    level = np.sum([one[first] != one[second] for one in sets], axis=0)
    roots = rng.normal(size=(len(first), 3, 5))
    normal = np.einsum("nak,nbk->nab", roots, roots)
    sums = PairSums(
        level,
        first,
        second,
        normal,
        rng.normal(size=(len(first), 3)),
        np.ones(len(first)),
        normal[:, 0, 0],
        normal[:, 0, 0],
    )
    sums = sums.take(np.argsort(level, kind="stable"))
    sizes = []

    def watched(*arguments):
        order, fronts = dissection.dissect(*arguments)
        sizes.append(max(front.stop - front.start + len(front.boundary) for front in fronts))
        return order, fronts

    monkeypatch.setattr("bkgmatch.selected_inverse.dissect", watched)
    nothing = np.zeros(len(tile), dtype=bool)
    every = [Pass(str(k), True, one, nothing) for k, one in enumerate(sets)]
    solve_passes(np.arange(len(tile)), sums, every, nothing, 1.0, np.ones(len(first)))
    assert max(sizes) < 240
