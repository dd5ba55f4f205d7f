"""What must hold for `match_polynomials`, whatever the arrays are: it is linear, and knows no sky."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ledger import note
from numpy.polynomial.polynomial import polyval2d, polyval3d
from strategies import SEEDS, laid_out, untouched

from bkgmatch.polynomial_arrays import match_polynomials

ROUNDING = 1e-8  # of the largest value: the equations are not perfectly conditioned
KIND = "polynomials of arrays"


@dataclass(frozen=True)
class Arrays:
    """Images of one shape with masks and errors, and the options of the match."""

    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    sigmas: tuple[np.ndarray, ...]
    degree: tuple[int, ...]
    options: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"<{len(self.images)} arrays of {self.images[0].shape}, degree {self.degree}, {self.options}>"

    def _repr_pretty_(self, printer, cycle) -> None:
        printer.text(repr(self))

    def match(self) -> np.ndarray:
        """Coefficients, which must be finite; nothing may be changed."""
        with untouched(*self.images, *self.masks, *self.sigmas):
            found = match_polynomials(self.images, self.masks, self.sigmas, self.degree, **dict(self.options))
        assert np.isfinite(found).all()
        return found

    def take(self, order) -> "Arrays":
        lists = {name: tuple(getattr(self, name)[k] for k in order) for name in ("images", "masks", "sigmas")}
        return replace(self, **lists)

    def values(self, coefficients: np.ndarray) -> np.ndarray:
        """Polynomials of the indices less the middle, those of the last axis first."""
        shape = self.images[0].shape
        at = [axis - n // 2 for axis, n in zip(np.indices(shape)[::-1], shape, strict=True)]
        evaluate = polyval2d if len(shape) == 2 else polyval3d
        return np.array([evaluate(*at, c.reshape([d + 1 for d in self.degree])) for c in coefficients])

    def scale(self) -> float:
        return max(float(np.abs(image).max()) for image in self.images)


def make_arrays(seed, n, cube, degree, weights, masked=0.2):
    """Images of noise on levels; all pixels of some rows are good in all, so that the overlaps determine everything."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(6, 9, 3)) if cube else tuple(rng.integers(8, 25, 2))
    keep = tuple(slice(None, None, 2) for _ in shape)
    masks = [rng.random(shape) >= masked for _ in range(n)]
    for mask in masks:
        mask[keep] = True
    images = [rng.normal(rng.normal(0, 10), 1, shape) for _ in range(n)]
    sigmas = [rng.uniform(0.5, 2, shape) for _ in range(n)]
    return Arrays(tuple(images), tuple(masks), tuple(sigmas), tuple(degree[: len(shape)]), (("weights", weights),))


arrays = st.builds(
    make_arrays,
    SEEDS,
    n=st.integers(1, 6),
    cube=st.booleans(),
    degree=st.tuples(*[st.integers(0, 2)] * 3),
    weights=st.sampled_from(["pairs", "ml"]),
)


@given(arrays, SEEDS)
def test_adding_a_polynomial_moves_the_coefficients_by_exactly_its_own(given_arrays, seed):
    before = given_arrays.match()
    added = np.random.default_rng(seed).normal(size=before.shape)
    images = np.array(given_arrays.images) + given_arrays.values(added)
    moved = replace(given_arrays, images=tuple(images))
    expected = added - added.mean(axis=0) if len(added) > 1 else 0 * added
    np.testing.assert_allclose(moved.match() - before, expected, rtol=0, atol=ROUNDING * moved.scale())
    note("properties", f"adding a polynomial: {KIND}")


@given(arrays, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(given_arrays, random):
    order = random.sample(range(len(given_arrays.images)), len(given_arrays.images))
    expected = given_arrays.match()[order]
    found = given_arrays.take(order).match()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * given_arrays.scale())
    note("properties", f"order of input: {KIND}")


@given(arrays, arrays)
def test_images_without_common_pixels_are_matched_each_set_as_alone(one, two):
    """The second set lies behind the first along the first axis, the coordinates of each from its own middle."""
    two = replace(two, degree=one.degree, options=one.options)
    if two.images[0].ndim != one.images[0].ndim:
        two = one.take(range(len(one.images) - 1, -1, -1))
    shapes = [s.images[0].shape for s in (one, two)]
    rows, wide = shapes[0][0], tuple(max(pair) for pair in zip(*shapes, strict=True))
    whole = (2 * (rows + wide[0]), *wide[1:])
    joined = []
    for start, some in ((0, one), (rows, two)):
        for image, mask, sigma in zip(some.images, some.masks, some.sigmas, strict=True):
            place = tuple(slice(0, n) for n in image.shape)
            place = (slice(start, start + image.shape[0]), *place[1:])
            large = np.full(whole, np.nan), np.zeros(whole, dtype=bool), np.ones(whole)
            for array, value in zip(large, (image, mask, sigma), strict=True):
                array[place] = value
            joined.append(large)
    both = match_polynomials(*zip(*joined, strict=True), one.degree, center=0.0, **dict(one.options))
    shift = np.zeros(len(whole))
    for start, some, found in ((0, one, both[: len(one.images)]), (rows, two, both[len(one.images) :])):
        shift[-1] = -start
        alone = match_polynomials(
            some.images, some.masks, some.sigmas, one.degree, center=tuple(shift), **dict(one.options)
        )
        tolerance = 1e3 * ROUNDING * some.scale()
        np.testing.assert_allclose(found, alone, rtol=1e-6, atol=tolerance)
    note("properties", f"mosaics apart: {KIND}")


@given(arrays, st.sampled_from([1e-20, 0.3, 1e20, -1.0]))
def test_units_scale_coefficients(given_arrays, factor):
    images, sigmas = (
        tuple(a * f for a in s) for s, f in ((given_arrays.images, factor), (given_arrays.sigmas, abs(factor)))
    )
    found = replace(given_arrays, images=images, sigmas=sigmas).match() / factor
    np.testing.assert_allclose(found, given_arrays.match(), rtol=0, atol=ROUNDING * given_arrays.scale())
    note("properties", f"units: {KIND}")


@given(arrays, st.data())
def test_twins_have_the_same_polynomial(given_arrays, data):
    n = len(given_arrays.images)
    k = data.draw(st.integers(0, n - 1))
    found = given_arrays.take([*range(n), k]).match()
    np.testing.assert_allclose(found[n], found[k], rtol=0, atol=ROUNDING * given_arrays.scale())
    note("properties", f"twins: {KIND}")


@given(arrays, SEEDS)
def test_masking_pixels_is_as_if_their_values_were_not_there(given_arrays, seed):
    """Masked, NaN, infinite, or without an error: the same answer in the last bit."""
    expected = given_arrays.match()
    rng = np.random.default_rng(seed)
    spoilt = [
        np.where(m, i, rng.choice([np.nan, np.inf, 1e30]))
        for i, m in zip(given_arrays.images, given_arrays.masks, strict=True)
    ]
    sigmas = [
        np.where(m, s, rng.choice([np.nan, 0.0, -1.0, np.inf]))
        for s, m in zip(given_arrays.sigmas, given_arrays.masks, strict=True)
    ]
    found = replace(given_arrays, images=tuple(spoilt), sigmas=tuple(sigmas)).match()
    np.testing.assert_array_equal(found, expected)
    note("properties", f"masked pixels: {KIND}")


@given(
    arrays,
    st.sampled_from(["f4", ">f4", ">f8", "i4", ">i2", "u2", "f2"]),
    st.sampled_from(["C", "Fortran", "strided", "reversed", "read-only"]),
)
def test_the_kind_of_numbers_and_their_layout_do_not_matter(given_arrays, kind, layout):
    whole = replace(given_arrays, images=tuple(np.rint(8 * i + 500).clip(0, 2000) for i in given_arrays.images))
    other = replace(whole, images=tuple(laid_out(i.astype(kind), layout) for i in whole.images))
    np.testing.assert_array_equal(other.match(), whole.match())
    note("properties", f"kind of numbers: {KIND}")
