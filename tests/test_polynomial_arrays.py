"""Matching of arrays: against wiimatch, dense least squares, and what must hold for any images."""

import inspect
from itertools import combinations

import numpy as np
import pytest
from numpy.polynomial.legendre import legval
from wiimatch.containers import WMInMemoryData, WMMappedData, WMMemMappedData
from wiimatch.match import match_lsq

import bkgmatch.polynomial_arrays
import bkgmatch.polynomial_sums
from bkgmatch.execution import threads
from bkgmatch.polynomial_arrays import match_polynomials

WELL_CONDITIONED = 1e9
"""Condition number of wiimatch's reduced matrix up to which its own rounding is below AGREEMENT."""

AGREEMENT = 1e-6  # of the rms of the polynomials


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    """wiimatch leaves temporary files in the current directory."""
    monkeypatch.chdir(tmp_path)


# Scenes


def sky(shape):
    return 3 * np.sin(sum((k + 2) * x for k, x in enumerate(np.indices(shape))) / 5)


def monomials(coordinates, degree):
    """Powers in C order, shape (p, n_pixels)."""
    flat = [c.ravel() for c in coordinates]
    degree = np.broadcast_to(degree, len(flat))
    return np.array(
        [np.prod([x**k for x, k in zip(flat, powers, strict=True)], axis=0) for powers in np.ndindex(*degree + 1)]
    )


def scene(seed, n=3, shape=(9, 8, 7), degree=1, *, noise=1.0):
    """Images of one sky with noise and polynomials of the pixels, a quarter of their pixels masked; and sigmas."""
    rng = np.random.default_rng(seed)
    scaled = [2 * x / s - 1 for x, s in zip(np.indices(shape)[::-1], shape[::-1], strict=True)]
    terms = monomials(scaled, degree)
    sigmas = [rng.uniform(0.5, 2, shape) for _ in range(n)]
    images = [
        sky(shape) + (rng.normal(size=len(terms)) @ terms).reshape(shape) + noise * s * rng.normal(size=shape)
        for s in sigmas
    ]
    return images, [rng.random(shape) > 0.25 for _ in range(n)], sigmas


def wiimatch(*given, **options):
    return match_lsq(*given, **options, default_container=WMInMemoryData)


def values(coefficients, coordinates, degree):
    """Polynomials on the pixels, shape (n, n_pixels)."""
    return coefficients @ monomials(coordinates, degree)


def condition(matrix, n):
    p = len(matrix) // n
    return np.linalg.cond(matrix[p:, p:])


def assert_agrees(given, degree=0, atol=AGREEMENT, **options):
    """The fit is that of wiimatch, whose system is well enough conditioned."""
    rival, matrix, *_ = wiimatch(*given, degree=degree, **options, ext_return=True)
    found, _, _, coordinates, *_ = match_polynomials(*given, degree=degree, **options, ext_return=True)
    assert condition(matrix, len(rival)) < WELL_CONDITIONED
    expected = values(rival, coordinates, degree)
    np.testing.assert_allclose(
        values(found, coordinates, degree), expected, rtol=0, atol=atol * np.sqrt(np.mean(expected**2))
    )
    return found


def objective(coefficients, coordinates, degree, images, masks, sigmas):
    """Sum that both packages minimise, over pairs in one order, in extended precision."""
    long = [np.asarray(c, dtype=np.longdouble) for c in coordinates]
    fits = values(np.asarray(coefficients, dtype=np.longdouble), long, degree).reshape(np.shape(images))
    total = np.longdouble(0)
    for i, j in combinations(range(len(images)), 2):
        residual = images[i] - images[j] - (fits[i] - fits[j])
        total += ((residual**2) / (sigmas[i] ** 2 + sigmas[j] ** 2))[masks[i] & masks[j]].sum()
    return float(total)


def legendre_on(box, degree):
    """Legendre products on the pixels of an array, shape (p, n_pixels), with coordinates in the reversed order."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in box]
    flat = [x.ravel() for x in np.meshgrid(*axes, indexing="ij")][::-1]
    units = np.eye(9)
    degree = np.broadcast_to(degree, len(box))
    return np.array(
        [
            np.prod([legval(x, units[k]) for x, k in zip(flat, ks, strict=True)], axis=0)
            for ks in np.ndindex(*degree + 1)
        ]
    )


def least_squares(images, masks, sigmas, degree):
    """Values of the fits by dense least squares over pairs of pixels, and the least objective."""
    phi, n = legendre_on(images[0].shape, degree), len(images)
    rows, sides = [], []
    for i, j in combinations(range(n), 2):
        both = (masks[i] & masks[j]).ravel()
        weight = 1 / np.hypot(sigmas[i], sigmas[j]).ravel()[both]
        block = np.zeros((both.sum(), n, len(phi)))
        block[:, i], block[:, j] = (weight * phi[:, both]).T, -(weight * phi[:, both]).T
        rows.append(block.reshape(-1, n * len(phi)))
        sides.append(weight * (images[i] - images[j]).ravel()[both])
    design, side = np.concatenate(rows), np.concatenate(sides)
    found = np.linalg.lstsq(design, side, rcond=1e-13)[0]
    return found.reshape(n, -1) @ phi, float(np.sum((side - design @ found) ** 2))


# Against wiimatch

CASES = {
    "2-D, constants": ((12, 9), 0, 5),
    "2-D, degree 1": ((12, 9), 1, 5),
    "2-D, degree 2": ((12, 9), 2, 3),
    "2-D, degree 3": ((12, 9), 3, 3),
    "2-D, degrees 3 and 0": ((12, 9), (3, 0), 3),
    "3-D, constants": ((6, 9, 8), 0, 4),
    "3-D, degree 1": ((6, 9, 8), 1, 4),
    "3-D, degree 2": ((6, 9, 8), 2, 2),
    "3-D, degree 3": ((6, 7, 8), 3, 2),
    "3-D, degrees 3, 0 and 2": ((6, 9, 8), (3, 0, 2), 3),
    "4-D, constants": ((5, 4, 6, 5), 0, 3),
    "4-D, degree 1": ((5, 4, 6, 5), 1, 2),
    "4-D, degrees 2, 0, 1 and 3": ((5, 4, 6, 5), (2, 0, 1, 3), 2),
    "1-D, degree 3": ((40,), 3, 4),
    "long in one axis": ((2, 3, 60), (1, 1, 0), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_against_wiimatch(case):
    """In coordinates from -1 to 1, where powers are well enough conditioned for wiimatch."""
    shape, degree, n = CASES[case]

    def scaled(*pixels):
        return [2 * x / max(s - 1, 1) - 1 for x, s in zip(pixels, shape[::-1], strict=True)]

    given = scene(1, n, shape, degree)
    center = [(s - 1) / 2 for s in shape[::-1]]
    found = assert_agrees(given, degree, center=center, image2world=scaled)
    assert found.shape == (n, np.prod(np.broadcast_to(degree, len(shape)) + 1))


@pytest.mark.parametrize("case", CASES)
def test_against_dense_least_squares(case):
    shape, degree, n = CASES[case]
    given = scene(2, n, shape, degree)
    found, _, _, coordinates, *_ = match_polynomials(*given, degree=degree, ext_return=True)
    expected, least = least_squares(*given, degree)
    np.testing.assert_allclose(values(found, coordinates, degree), expected, rtol=0, atol=1e-8 * np.std(expected))
    assert objective(found, coordinates, degree, *given) == pytest.approx(least, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shape", "degree"), [((12, 9), 1), ((12, 9), 2), ((6, 9, 8), 1), ((6, 9, 8), (0, 2, 1))])
def test_against_wiimatch_in_pixels(shape, degree, seed):
    """About the default centre."""
    assert_agrees(scene(10 + seed, 3, shape, degree), degree)


def test_a_better_minimum_where_powers_are_badly_conditioned():
    """Degrees and micrometres about the origin, as the step of the jwst package had them."""

    def world(x, y, z):
        return 80.0 + 1e-3 * x, -69.0 + 1e-3 * y, 5.0 + 1e-2 * z

    given = scene(3, 3, (6, 9, 8), 1)
    options = {"degree": 1, "image2world": world, "center": (0, 0, 0), "center_cs": "world", "ext_return": True}
    rival, matrix, *_ = wiimatch(*given, **options)
    found, _, _, coordinates, *_ = match_polynomials(*given, **options)
    assert condition(matrix, 3) > 1e4 * WELL_CONDITIONED
    expected, least = least_squares(*given, 1)
    ours, theirs = (objective(c, coordinates, 1, *given) for c in (found, rival))
    assert ours == pytest.approx(least, rel=1e-9)
    assert theirs > ours
    assert theirs > (1 + 1e-6) * least
    np.testing.assert_allclose(values(found, coordinates, 1), expected, rtol=0, atol=1e-4 * np.std(expected))


def test_a_large_image_about_its_corner():
    """Of degree 3 in pixels, 300 from the origin."""
    given = scene(4, 2, (40, 300), 3)
    options = {"degree": 3, "center": (0, 0), "ext_return": True}
    rival, matrix, *_ = wiimatch(*given, **options)
    found, _, _, coordinates, *_ = match_polynomials(*given, **options)
    assert condition(matrix, 2) > WELL_CONDITIONED
    _, least = least_squares(*given, 3)
    ours, theirs = (objective(c, coordinates, 3, *given) for c in (found, rival))
    assert ours == pytest.approx(least, rel=1e-10)
    assert ours <= theirs * (1 + 1e-12)


# Good pixels in a part of the frame


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("frame", [60, 100, 300])
def test_an_overlap_in_a_corner_is_matched_like_an_image_of_its_own(frame, degree):
    """The rest of the frame must not cost digits, nor make the overlap look undetermined."""
    images, masks, sigmas = scene(5, 3, (20, 20), degree)
    corner = (slice(frame - 20, None), slice(0, 20))

    def framed(array, fill):
        full = np.full((frame, frame), fill, dtype=array.dtype)
        full[corner] = array
        return full

    def middle(x, y):
        return x - 9.5, y - (frame - 20) - 9.5

    expected, _ = least_squares(images, masks, sigmas, degree)
    large = [framed(a, 0.0) for a in images], [framed(m, False) for m in masks], [framed(s, 1.0) for s in sigmas]
    options = {"degree": degree, "image2world": middle, "center": (0, 0), "center_cs": "world", "ext_return": True}
    found, _, _, coordinates, *_ = match_polynomials(*large, **options)
    inside = [c[corner] for c in coordinates]
    np.testing.assert_allclose(values(found, inside, degree), expected, rtol=0, atol=1e-8 * np.std(expected))


@pytest.mark.parametrize("kind", ["masked", "NaN"])
def test_entries_of_masks_that_are_unknown_are_bad(kind):
    images, masks, sigmas = scene(6, 3, (12, 9))
    expected = match_polynomials(images, masks, sigmas, degree=1)
    unknown = {"masked": lambda m: np.ma.array(np.ones(m.shape), mask=~m), "NaN": lambda m: np.where(m, 1.0, np.nan)}
    spoilt = [np.where(m, image, 1e6) for m, image in zip(masks, images, strict=True)]
    found = match_polynomials(spoilt, list(map(unknown[kind], masks)), sigmas, degree=1)
    np.testing.assert_array_equal(found, expected)


def test_coordinates_that_are_not_finite_where_no_pixel_is_good():
    """As those of a WCS outside its bounding box; wiimatch takes them."""

    def world(x, y):
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        return np.where(x < 2, np.nan, x / 5), np.where(x < 2, np.inf, y / 5)

    images, masks, sigmas = scene(6, 3, (12, 9))
    for mask in masks:
        mask[:, :2] = False
    rival = wiimatch(images, masks, sigmas, degree=1, image2world=world, center=(4, 5))
    found = match_polynomials(images, masks, sigmas, degree=1, image2world=world, center=(4, 5))
    np.testing.assert_allclose(found, rival, rtol=1e-6)


def test_pixels_without_finite_coordinates_are_left_out():
    def world(x, y):
        return np.where(np.less(x, 2), np.nan, x), np.asarray(y, dtype=float)

    images, masks, sigmas = scene(7, 3, (12, 9))
    found = match_polynomials(images, masks, sigmas, degree=1, image2world=world, center=(4, 5))
    for mask in masks:
        mask[:, :2] = False
    np.testing.assert_allclose(found, match_polynomials(images, masks, sigmas, 1, (4, 5)), rtol=1e-8)


# What wiimatch's own tests check: two images, of zeros and of a plane


def planes():
    """Two images, the second a plane of x along the last axis, and its coefficients in C order."""
    z, y, x = np.indices((5, 4, 6), dtype=float)
    plane = 2.5 - 0.25 * x + 0.4 * y + 0.7 * z
    return [np.zeros(plane.shape), plane], [2.5, 0.7, 0.4, 0, -0.25, 0, 0, 0]


@pytest.mark.parametrize("degree", [1, (1, 1, 1), [1, 1, 1], np.array([1, 1, 1])])
@pytest.mark.parametrize("solver", ["RLU", "PINV", "rlu", "Pinv"])
def test_half_of_a_plane_goes_to_each_image(solver, degree):
    images, plane = planes()
    good, ones = np.ones(images[0].shape, dtype=np.int8), np.ones(images[0].shape)
    found = match_polynomials(images, [good, good], [ones, ones], degree, (0, 0, 0), solver=solver)
    np.testing.assert_allclose(2 * found, [np.negative(plane), plane], atol=1e-12)


def test_extended_answer_for_a_plane():
    images, plane = planes()
    found, a, b, coordinates, center, system = match_polynomials(images, degree=1, center=(0, 0, 0), ext_return=True)
    np.testing.assert_allclose(2 * found, [np.negative(plane), plane], atol=1e-12)
    np.testing.assert_allclose(a @ found.ravel(), b, atol=1e-9)
    assert (a.shape, b.shape, len(coordinates), center, system) == ((16, 16), (16,), 3, (0, 0, 0), "image")


def test_coordinates_are_indices_in_reversed_order():
    for center in ((0, 0, 0), (1, 2, 3)):
        *_, coordinates, found, _ = match_polynomials(planes()[0], center=center, ext_return=True)
        assert found == center
        for c, index, origin in zip(coordinates, np.indices((5, 4, 6))[::-1], center, strict=True):
            np.testing.assert_array_equal(c, index - origin)


def test_the_default_centre_is_not_reversed():
    """wiimatch's convention: half of the first axis is taken from the index along the last."""
    *_, coordinates, center, system = match_polynomials(planes()[0], ext_return=True)
    assert (center, system) == ((2, 2, 3), "image")
    for c, index, origin in zip(coordinates, np.indices((5, 4, 6))[::-1], (2, 2, 3), strict=True):
        np.testing.assert_array_equal(c, index - origin)


# The extended answer


def skewed(x, y, z):
    """World coordinates that mix the pixels'."""
    return 40 + 0.1 * x + 0.02 * y, -3 + 0.2 * y - 0.01 * x * y, 5 + 0.05 * z


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center": 2},
        {"center": (1, 2, 3)},
        {"center": [0.5, -2.25, 4.0]},
        {"center_cs": "world"},  # ignored without a centre
        {"image2world": skewed},
        {"image2world": skewed, "center_cs": "world"},
        {"image2world": skewed, "center": (1, 2, 3)},
        {"image2world": skewed, "center": (40.3, -2.5, 5.1), "center_cs": "world"},
        {"image2world": skewed, "center": 10.0, "center_cs": "world"},
    ],
)
@pytest.mark.parametrize("degree", [0, 1, (2, 0, 1)])
def test_extended_answer_against_wiimatch(degree, options):
    given = scene(8, 3, (5, 6, 7), degree)
    expected = wiimatch(*given, degree=degree, **options, ext_return=True)
    found = match_polynomials(*given, degree=degree, **options, ext_return=True)
    assert len(found) == len(expected) == 6
    scale = np.sqrt(np.diag(expected[1]))
    assert (np.abs(found[1] - expected[1]) <= 1e-10 * np.outer(scale, scale)).all()
    np.testing.assert_allclose(found[2] / scale, expected[2] / scale, rtol=1e-9, atol=1e-8)
    assert isinstance(found[3], tuple)
    for c, e in zip(found[3], expected[3], strict=True):
        np.testing.assert_array_equal(c, e)
    assert found[4] == expected[4]
    assert isinstance(found[4], tuple)
    assert found[5] == expected[5]
    np.testing.assert_array_equal(found[0], match_polynomials(*given, degree=degree, **options))


def test_the_centre_changes_coefficients_but_not_values():
    given, fits = scene(9, 3, (8, 9), 2), []
    for center in (None, 0, (3, 4), (-20, 40)):
        found, _, _, coordinates, *_ = match_polynomials(*given, degree=2, center=center, ext_return=True)
        fits.append(values(found, coordinates, 2))
    for fit in fits[1:]:
        np.testing.assert_allclose(fit, fits[0], atol=1e-8)


def test_parameters_have_the_names_and_the_order_of_those_of_wiimatch():
    theirs, ours = (list(inspect.signature(f).parameters) for f in (match_lsq, match_polynomials))
    assert ours[: len(theirs) - 1] == theirs[:-1]


def test_the_container_for_arrays_may_be_named():
    images, masks, sigmas = scene(10)
    found = match_polynomials(images, masks, sigmas, default_container=WMInMemoryData)
    np.testing.assert_array_equal(found, match_polynomials(images, masks, sigmas))


# Masks and sigmas


@pytest.mark.parametrize(
    "of",
    [
        lambda sigmas: None,
        lambda sigmas: [None] * 3,
        lambda sigmas: [0.5, 1.0, 2.0],
        lambda sigmas: np.array([0.5, 1.0, 2.0]),
        lambda sigmas: np.array([1, 2, 3]),
        lambda sigmas: [2, sigmas[1], np.float32(0.5)],
        lambda sigmas: [np.array(2.0), sigmas[1], sigmas[2]],
        lambda sigmas: tuple(sigmas),
        lambda sigmas: np.array(sigmas),
        lambda sigmas: [np.where(s < 0.7, k, s) for s, k in zip(sigmas, (0.0, -1.0, np.nan), strict=True)],
        lambda sigmas: [np.where(s < 0.7, np.inf, s) for s in sigmas],
        lambda sigmas: [np.ceil(s).astype(int) for s in sigmas],
    ],
)
def test_sigmas_against_wiimatch(of):
    images, _, sigmas = scene(11)
    assert_agrees((images, None, of(sigmas)), 1)


def test_masks_without_sigmas():
    """Wiimatch raises an error for them, and is given ones."""
    images, masks, _ = scene(12)
    expected = wiimatch(images, masks, [1.0] * 3, degree=1)
    for sigmas in (None, [None] * 3):
        np.testing.assert_allclose(match_polynomials(images, masks, sigmas, 1), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_without_a_mask_all_pixels_of_an_image_are_good(which):
    """Wiimatch fails on these, or forgets the other masks; it is given ones."""
    images, masks, sigmas = scene(13)
    some = [None if k in which else m for k, m in enumerate(masks)]
    full = [np.ones(m.shape, dtype=bool) if k in which else m for k, m in enumerate(masks)]
    expected = wiimatch(images, full, sigmas, degree=1)
    np.testing.assert_allclose(match_polynomials(images, some, sigmas, 1), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.float32])
def test_what_is_not_zero_in_a_mask_is_good(kind):
    images, masks, sigmas = scene(14)
    expected = match_polynomials(images, masks, sigmas, 1)
    for good in (1, 2, -1 if np.dtype(kind).kind != "u" else 8):
        found = match_polynomials(images, [(good * m).astype(kind) for m in masks], sigmas, 1)
        np.testing.assert_array_equal(found, expected)


def test_an_image_all_of_whose_sigmas_are_not_positive_is_left_out():
    images, masks, sigmas = scene(15, 4)
    found = match_polynomials(images, masks, [*sigmas[:3], 0.0], 1)
    np.testing.assert_array_equal(found[3], 0)
    np.testing.assert_allclose(found[:3], match_polynomials(images[:3], masks[:3], sigmas[:3], 1), rtol=1e-8)


# Kinds of input


@pytest.mark.parametrize("container", [WMInMemoryData, WMMappedData, WMMemMappedData])
def test_containers_of_wiimatch(container):
    images, masks, sigmas = scene(16)
    expected = match_polynomials(images, masks, sigmas, 1)
    wrapped = [[container(a) for a in arrays] for arrays in (images, masks, sigmas)]
    np.testing.assert_array_equal(match_polynomials(*wrapped, 1), expected)
    mixed = [wrapped[0][0], *images[1:]], [masks[0], None, wrapped[1][2]], [WMInMemoryData(2.0), wrapped[2][1], 1.0]
    some = images, [masks[0], None, masks[2]], [2.0, sigmas[1], 1.0]
    np.testing.assert_array_equal(match_polynomials(*mixed, 1), match_polynomials(*some, 1))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, ">i4", "<f4", ">f4", ">f8", np.float16])
def test_images_of_any_kind(kind):
    """Their values count, also where unsigned integers would wrap around."""
    images, masks, sigmas = scene(17)
    images = [(20 * image + 128).astype(kind) for image in images]
    expected = match_polynomials([image.astype(float) for image in images], masks, sigmas, 1)
    np.testing.assert_array_equal(match_polynomials(images, masks, sigmas, 1), expected)
    if np.dtype(kind).kind == "i":
        assert_agrees((images, masks, sigmas), 1)
    if np.dtype(kind) == np.float32:
        assert_agrees((images, masks, sigmas), 1, atol=1e-5)  # wiimatch takes differences in single precision


@pytest.mark.parametrize("kind", ["<f4", ">f4", ">f8"])
def test_sigmas_of_any_kind(kind):
    images, masks, sigmas = scene(18)
    sigmas = [(1e-12 * s).astype(kind) for s in sigmas]
    expected = match_polynomials(images, masks, [s.astype(float) for s in sigmas], 1)
    np.testing.assert_allclose(match_polynomials(images, masks, sigmas, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("of", [np.asfortranarray, lambda a: np.flip(np.flip(a).copy()), lambda a: a.tolist()])
def test_layouts_and_lists(of):
    given = scene(19)
    expected = match_polynomials(*given, 1)
    np.testing.assert_array_equal(match_polynomials(*([of(a) for a in arrays] for arrays in given), 1), expected)


def test_stacks_and_iterators():
    images, masks, sigmas = scene(20)
    expected = match_polynomials(images, masks, sigmas, 1)
    found = match_polynomials(np.array(images), np.array(masks), np.array(sigmas), 1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(match_polynomials(iter(images), tuple(masks), tuple(sigmas), 1), expected)


def test_input_stays_as_it_was():
    given = scene(21)
    before = [[a.copy() for a in arrays] for arrays in given]
    for array in (a for arrays in given for a in arrays):
        array.setflags(write=False)
    match_polynomials(*given, 2, ext_return=True)
    np.testing.assert_array_equal(np.concatenate(given), np.concatenate(before))


def test_a_single_image_stays():
    found = match_polynomials([np.ones((4, 5))], degree=1)
    np.testing.assert_array_equal(found, np.zeros((1, 4)))
    _, a, b, *_ = match_polynomials([np.ones((4, 5))], degree=1, ext_return=True, solver="PINV")
    assert (a.shape, b.shape) == ((4, 4), (4,))
    np.testing.assert_array_equal(a, 0)


# What must hold for any images


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("seed", range(3))
def test_polynomials_that_are_added_are_found(seed, weights):
    """Those added to single images, less their mean; one that is added to all has no effect."""
    degree, rng = (2, 1, 0), np.random.default_rng(seed)
    images, masks, sigmas = scene(seed, 4, degree=degree)
    before, _, _, coordinates, *_ = match_polynomials(images, masks, sigmas, degree, ext_return=True, weights=weights)
    added = rng.normal(size=before.shape) + 5
    moved = [
        image + p.reshape(image.shape) for image, p in zip(images, values(added, coordinates, degree), strict=True)
    ]
    after = match_polynomials(moved, masks, sigmas, degree, weights=weights)
    np.testing.assert_allclose(after - before, added - added.mean(axis=0), atol=1e-8)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
def test_images_without_noise_are_matched_exactly(weights):
    given = scene(22, 5, (6, 9, 8), 2, noise=0)
    found, _, _, coordinates, *_ = match_polynomials(*given, 2, ext_return=True, weights=weights)
    left = [image.ravel() - fit for image, fit in zip(given[0], values(found, coordinates, 2), strict=True)]
    np.testing.assert_allclose(left, np.broadcast_to(np.mean(left, axis=0), np.shape(left)), atol=1e-9)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("solver", ["RLU", "PINV"])
def test_the_order_of_images_does_not_matter(solver, weights):
    given, order = scene(23, 5), [3, 0, 4, 2, 1]
    expected = match_polynomials(*given, 1, solver=solver, weights=weights)[order]
    found = match_polynomials(*([a[k] for k in order] for a in given), 1, solver=solver, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_sum_is_zero(degree):
    found = match_polynomials(*scene(24, 5, (12, 9), degree), degree)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12 * np.abs(found).max())


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("solver", ["RLU", "PINV"])
def test_sets_that_are_not_connected_are_matched_apart(solver, weights):
    """Images 0, 2 and 4 have the left of the frame, the others the right; 5 has nothing."""
    images, masks, sigmas = scene(25, 6, (9, 8, 20))
    sets = [0, 2, 4], [1, 3]
    for members, missing in zip((*sets, [5]), (slice(10, None), slice(0, 10), slice(None)), strict=True):
        for k in members:
            masks[k][..., missing] = False
    options = {"degree": 1, "center": (10, 4, 4), "solver": solver, "weights": weights}
    found = match_polynomials(images, masks, sigmas, **options)
    np.testing.assert_array_equal(found[5], 0)
    for members in sets:
        np.testing.assert_allclose(found[members].sum(axis=0), 0, atol=1e-10)
        alone = match_polynomials(*([a[k] for k in members] for a in (images, masks, sigmas)), **options)
        np.testing.assert_allclose(found[members], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("solver", ["RLU", "PINV"])
def test_an_image_without_good_pixels_gets_zeros_and_changes_nothing(solver, weights):
    images, masks, sigmas = scene(26, 4)
    masks[1] = np.zeros(masks[1].shape, dtype=bool)
    others = [0, 2, 3]
    found = match_polynomials(images, masks, sigmas, 1, solver=solver, weights=weights)
    alone = match_polynomials(
        *([a[k] for k in others] for a in (images, masks, sigmas)), 1, solver=solver, weights=weights
    )
    np.testing.assert_allclose(found[1], 0, atol=1e-12 if solver == "PINV" else 0)
    np.testing.assert_allclose(found[others], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["RLU", "PINV"])
def test_images_without_common_pixels_stay(solver):
    images, _, sigmas = scene(27, 3)
    masks = [np.indices(image.shape)[2] % 3 == k for k, image in enumerate(images)]
    np.testing.assert_array_equal(match_polynomials(images, masks, sigmas, 1, solver=solver), np.zeros((3, 8)))
    _, a, b, *_ = match_polynomials(images, masks, sigmas, 1, solver=solver, ext_return=True)
    np.testing.assert_array_equal(a, np.zeros((24, 24)))
    np.testing.assert_array_equal(b, np.zeros(24))


@pytest.mark.parametrize("weights", ["pairs", "ml"])
def test_pixels_that_are_not_good_never_enter(weights):
    images, masks, sigmas = scene(28)
    expected = match_polynomials(images, masks, sigmas, 1, weights=weights)
    spoilt = [np.where(m, i, k) for i, m, k in zip(images, masks, (1e30, np.nan, -np.inf), strict=True)]
    errors = [np.where(m, s, k) for s, m, k in zip(sigmas, masks, (np.nan, 1e-30, np.inf), strict=True)]
    np.testing.assert_array_equal(match_polynomials(spoilt, masks, errors, 1, weights=weights), expected)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_as_if_masked(bad, weights):
    images, masks, sigmas = scene(29)
    spoilt = [np.where(m, i, bad) for i, m in zip(images, masks, strict=True)]
    expected = match_polynomials(images, masks, sigmas, 1, weights=weights)
    np.testing.assert_array_equal(match_polynomials(spoilt, None, sigmas, 1, weights=weights), expected)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
@pytest.mark.parametrize("solver", ["RLU", "PINV"])
@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_units_do_not_matter(unit, solver, weights):
    images, masks, sigmas = scene(30)
    expected = unit * match_polynomials(images, masks, sigmas, 1, solver=solver, weights=weights)
    scaled = [[unit * a for a in arrays] for arrays in (images, sigmas)]
    found = match_polynomials(scaled[0], masks, scaled[1], 1, solver=solver, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=unit * 1e-10)
    one_unit = match_polynomials(scaled[0], masks, sigmas, 1, solver=solver, weights=weights)
    np.testing.assert_allclose(one_unit, expected, rtol=1e-8, atol=unit * 1e-10)


@pytest.mark.parametrize("unit", [1e-100, 1e-160, 1e160])
def test_sigmas_whose_squares_hardly_fit_or_do_not(unit):
    images, masks, sigmas = scene(31)
    found = match_polynomials(images, masks, [unit * s for s in sigmas], 1)
    np.testing.assert_allclose(found, match_polynomials(images, masks, sigmas, 1), rtol=1e-8)


def test_a_level_far_above_the_differences():
    """A common level of 1e9: only differences enter."""
    images, masks, sigmas = scene(32)
    found = match_polynomials([image + 2.0**30 for image in images], masks, sigmas, 1)
    np.testing.assert_allclose(found, match_polynomials(images, masks, sigmas, 1), atol=1e-6)


@pytest.mark.parametrize("weights", ["pairs", "ml"])
def test_threads_and_steps_change_nothing(weights, monkeypatch):
    given = scene(33, 4)
    expected = match_polynomials(*given, 2, weights=weights)
    with threads(2) as work:
        np.testing.assert_array_equal(match_polynomials(*given, 2, weights=weights, work=work), expected)
    monkeypatch.setattr(bkgmatch.polynomial_arrays, "_AT_ONCE", 400)
    monkeypatch.setattr(bkgmatch.polynomial_sums, "_AT_ONCE", 1)
    for number in (1, 2):
        with threads(number) as work:
            found = match_polynomials(*given, 2, weights=weights, work=work)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


# Maximum likelihood


def free_sky(images, masks, sigmas, degree):
    """Values of the fits of mean zero, by dense weighted least squares with an unknown sky in each pixel."""
    phi, n = legendre_on(images[0].shape, degree), len(images)
    design, side = [], []
    for k, (image, mask, sigma) in enumerate(zip(images, masks, sigmas, strict=True)):
        good = np.flatnonzero(mask)
        block = np.zeros((len(good), n, len(phi)))
        block[:, k] = phi[:, good].T
        rows = np.concatenate([block.reshape(len(good), -1), np.eye(image.size)[good]], axis=1)
        design.append(rows / sigma.ravel()[good, None])
        side.append((image / sigma).ravel()[good])
    found = np.linalg.lstsq(np.concatenate(design), np.concatenate(side), rcond=1e-12)[0]
    fits = found[: n * len(phi)].reshape(n, -1)
    return (fits - fits.mean(axis=0)) @ phi


@pytest.mark.parametrize(("shape", "degree", "n"), [((9, 8), 1, 4), ((9, 8), 2, 3), ((4, 5, 6), (1, 0, 2), 4)])
def test_maximum_likelihood_against_a_free_sky(shape, degree, n):
    given = scene(34, n, shape, degree)
    found, _, _, coordinates, *_ = match_polynomials(*given, degree, ext_return=True, weights="ml")
    expected = free_sky(*given, degree)
    np.testing.assert_allclose(values(found, coordinates, degree), expected, rtol=0, atol=1e-8 * np.std(expected))
    pairs = match_polynomials(*given, degree)
    assert np.abs(found - pairs).max() > 1e-3 * np.abs(found).max()


def test_both_weights_are_the_same_for_two_images():
    given = scene(35, 2)
    np.testing.assert_allclose(
        match_polynomials(*given, 1, weights="ml"), match_polynomials(*given, 1), rtol=1e-9, atol=1e-12
    )


# What the overlaps do not determine


def thin(column=4, width=8):
    """Images that share one column only, so that slopes across it are not determined."""
    images, _, sigmas = scene(36, 3, (9, width))
    masks = [np.zeros((9, width), dtype=bool) for _ in images]
    for mask in masks:
        mask[:, column] = True
    return images, masks, sigmas


@pytest.mark.parametrize(("column", "width"), [(4, 8), (0, 8), (7, 8), (4, 9), (0, 1)])
def test_an_overlap_that_does_not_determine_the_coefficients(column, width):
    """The middle of the frame, where the slope's function is zero, is no exception."""
    images, masks, sigmas = thin(column, width)
    with pytest.raises(ValueError, match="do not determine all coefficients; use a function with fewer"):
        match_polynomials(images, masks, sigmas, 1)
    with pytest.raises(ValueError, match="do not determine all coefficients; use a function with fewer"):
        match_polynomials(images, masks, sigmas, (1, 0), weights="ml")
    assert np.abs(match_polynomials(images, masks, sigmas, (0, 1))).max() < 10


def test_more_coefficients_than_common_pixels():
    images, _, sigmas = scene(37, 2, (9, 8))
    masks = [np.zeros((9, 8), dtype=bool) for _ in images]
    for mask in masks:
        mask[[1, 5, 7], [2, 6, 1]] = True
    with pytest.raises(ValueError, match="use a function with fewer"):
        match_polynomials(images, masks, sigmas, 1)
    assert match_polynomials(images, masks, sigmas, (1, 0)).shape == (2, 2)


@pytest.mark.parametrize("solver", ["PINV", "pinv"])
def test_the_pseudo_inverse_of_what_is_not_determined(solver):
    """It is a minimum all the same, and small."""
    given = thin()
    found, _, _, coordinates, *_ = match_polynomials(*given, 1, solver=solver, ext_return=True)
    along = match_polynomials(*given, (0, 1))
    assert objective(found, coordinates, 1, *given) == pytest.approx(
        objective(along, coordinates, (0, 1), *given), rel=1e-9
    )
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)
    assert np.abs(found).max() < 10 * np.abs(along).max()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "QR"}, "solver must be one of RLU, PINV; got 'QR'"),
        ({"weights": "equal"}, "weights must be one of pairs, ml; got 'equal'"),
        ({"center_cs": "sky"}, "center_cs must be one of image, world; got 'sky'"),
        ({"center": (1, 2)}, "center has 2 coordinates, the images 3 dimensions"),
        ({"center": (1, 2, 3, 4)}, "center has 4 coordinates, the images 3 dimensions"),
        ({"center": 1, "center_cs": "world"}, "center_cs='world' needs image2world"),
        ({"degree": -1}, "degree must be whole numbers from 0 to 100, got -1"),
        ({"degree": (1, 1)}, r"degree must be one integer or 3, got \(1, 1\)"),
        ({"degree": 1.5}, "degree must be whole numbers from 0 to 100, got 1.5"),
        ({"degree": (1, 1.5, 0)}, "degree must be whole numbers from 0 to 100"),
        ({"masks": []}, "there are 0 masks for 3 images"),
        ({"masks": [np.ones((9, 8, 7))] * 4}, "there are 4 masks for 3 images"),
        ({"sigmas": [1.0, 2.0]}, "there are 2 sigmas for 3 images"),
        ({"sigmas": [1.0, None, 2.0]}, "give sigmas for all images or for none: some are None"),
        ({"sigmas": [None]}, "there are 1 sigmas for 3 images"),
        ({"masks": [None, np.ones((9, 8)), None]}, r"masks\[1\] has the shape \(9, 8\), the images \(9, 8, 7\)"),
        ({"sigmas": [1.0, 1.0, np.ones(7)]}, r"sigmas\[2\] has the shape \(7,\), the images \(9, 8, 7\)"),
    ],
)
def test_bad_options(options, message):
    images, _, _ = scene(38)
    with pytest.raises(ValueError, match=message):
        match_polynomials(images, **options)


@pytest.mark.parametrize("center", [np.nan, np.inf, (1, np.nan, 2)])
def test_a_centre_that_is_not_finite_is_named(center):
    with pytest.raises(ValueError, match="center"):
        match_polynomials(scene(39)[0], degree=1, center=center)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images to match"),
        ([np.zeros((2, 3)), np.zeros((3, 2))], r"must have the same shape, got \(2, 3\), \(3, 2\)"),
        ([np.zeros((2, 3)), np.zeros((2, 3, 1))], r"must have the same shape, got \(2, 3\), \(2, 3, 1\)"),
        ([np.zeros((2, 3)), WMInMemoryData(np.zeros(6))], r"must have the same shape, got \(2, 3\), \(6,\)"),
        ([np.zeros((0, 3))] * 2, r"the images are empty: their shape is \(0, 3\)"),
        ([1.0, 2.0], "the images"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        match_polynomials(images)


def test_masked_arrays():
    images = [np.ma.array(np.full((8, 8), value)) for value in (1.0, 3.0)]
    images[0][2, 3] = 1e6
    images[0][2, 3] = np.ma.masked
    np.testing.assert_allclose(match_polynomials(images).ravel(), [-1, 1])
