"""What must hold for backgrounds made of other exposures, whatever the images and the options are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger import note
from strategies import PLACES, SEEDS, Scene, laid_out, rounded, scenes, untouched

from bkgmatch.image_backgrounds import MADE, Background, ImageBackgrounds, make_backgrounds
from bkgmatch.options import ImageForImageOptions

SINGLE = 1e-6  # of the largest value: single precision, some ten operations
KIND = "background images"

detector_scenes = {"one_shape": True, "size": (12, 48)}
additive = st.builds(
    ImageForImageOptions,
    method=st.sampled_from(["mean", "median"]),
    scale=st.sampled_from(["additive", "none"]),
    min_members=st.integers(1, 3),
    min_offset=st.sampled_from([0.0, 1.003]),  # arcsec; that of aligned pixels may be 1 but for rounding
    grow=st.sampled_from([0.0, 0.1]),
)


def made(scene: Scene, options: ImageForImageOptions, kinds: Sequence | None = None) -> ImageBackgrounds:
    """Backgrounds, which must be finite; nothing may be changed."""
    with untouched(*scene.arrays()):
        result = make_backgrounds(scene.exposures(), options, kinds=kinds)
        found = backgrounds(result)
    there = np.isin(result.status, MADE)
    assert np.isfinite(result.level[there]).all()
    assert (np.isfinite(result.rms) | (result.masked + result.holes > 0))[there].all()
    for background in found.values():
        assert np.isfinite(background.value).all()
        assert np.isfinite(background.variance).all()
        assert (background.variance >= 0).all()
        assert (background.holes <= (background.donors == 0)).all()
    return result


def backgrounds(result: ImageBackgrounds) -> dict[str, Background]:
    """Those that there are, by name."""
    rows = zip(result.names, result.status, strict=True)
    return {name: result.background(i) for i, (name, status) in enumerate(rows) if status == MADE}


def assert_same(one: ImageBackgrounds, two: ImageBackgrounds, atol: float, *, rtol: float = 1e-3) -> None:
    """The same statuses and backgrounds."""
    assert dict(zip(one.names, one.status, strict=True)) == dict(zip(two.names, two.status, strict=True))
    others = backgrounds(two)
    for name, background in backgrounds(one).items():
        np.testing.assert_array_equal(others[name].donors, background.donors)
        np.testing.assert_allclose(others[name].value, background.value, rtol=0, atol=atol)
        np.testing.assert_allclose(others[name].variance, background.variance, rtol=rtol, atol=atol**2)


def divided(background: Background, factor: float) -> Background:
    variance = background.variance.astype(float) / factor**2
    return replace(background, value=background.value.astype(float) / factor, variance=variance)


def assert_within_errors(one: Background, two: Background) -> None:
    """Six errors of the difference, but for one pixel or one in a thousand: the noise has no bounds."""
    used = (one.donors > 0) & (two.donors > 0)
    apart = np.abs(one.value - two.value)[used]
    error = np.sqrt(one.variance + two.variance)[used]
    assert np.sum(apart > 6 * error) <= 1 + 1e-3 * used.sum(), (apart / error).max()


def scale(scene: Scene) -> float:
    """Largest good value."""
    return max(float(np.abs(d[g]).max(initial=scene.noise)) for d, g in zip(scene.data, scene.good, strict=True))


@given(scenes(1, 6, **detector_scenes), additive)
def test_adding_a_constant_to_an_exposure_moves_its_background_alone(scene, options):
    options = replace(options, scale="additive")
    added = rounded(np.random.default_rng(len(scene)).normal(0, 10, len(scene)))
    moved = scene.with_data(lambda i, d: d + added[i])
    one, two = made(scene, options), made(moved, options)
    assert two.status == one.status
    others = backgrounds(two)
    for name, background in backgrounds(one).items():
        step = added[scene.names.index(name)]
        np.testing.assert_allclose(others[name].value, background.value + step, rtol=0, atol=SINGLE * scale(moved))
        np.testing.assert_array_equal(others[name].donors, background.donors)
    note("properties", f"adding a constant: {KIND}")


@given(scenes(2, 6, **detector_scenes, levels=0.0, nebula=0.0, rays=0.0), additive)
def test_multiplying_exposures_multiplies_their_backgrounds(scene, options):
    """With multiplicative scales each by its own factor, within the errors: the weights change."""
    options = replace(options, scale="multiplicative", snr_threshold=1e9)
    factor = 2.0 ** np.random.default_rng(len(scene)).integers(-1, 2, len(scene))
    bright = scene.with_data(lambda _, d: d + np.float32(64 * scene.noise))
    moved = bright.with_data(lambda i, d: d * np.float32(factor[i]))
    one, two = made(bright, options), made(moved, options)
    assert two.status == one.status
    others = backgrounds(two)
    for name, background in backgrounds(one).items():
        assert_within_errors(background, divided(others[name], factor[scene.names.index(name)]))
    note("properties", f"multiplying: {KIND}")


@pytest.mark.slow
@given(scenes(2, 6, **detector_scenes), additive, st.data())
def test_the_order_of_the_input_does_not_matter(scene, options, data):
    """The mosaic is along the pixels of the first exposure: where these are turned, none is searched for sources."""
    order = data.draw(st.permutations(range(len(scene))))
    one, two = (made(s, options) for s in (straight(scene), straight(scene).take(order)))
    assert_same(one, two, SINGLE * scale(scene))
    note("properties", f"order of input: {KIND}")


def straight(scene: Scene) -> Scene:
    return scene.with_pointings(lambda p: replace(p, angle=0.0))


@pytest.mark.slow
@given(scenes(1, 4, **detector_scenes), additive, st.data())
def test_kinds_in_one_call_give_what_each_gives_alone(scene, options, data):
    other = data.draw(scenes(1, 4, **detector_scenes)).renamed("f")
    both = made(scene + other, options, ["one"] * len(scene) + ["other"] * len(other))
    for part in (scene, other):
        chosen = [i for i, name in enumerate(both.names) if name in part.names]
        alone = made(part, options)
        assert [both.status[i] for i in chosen] == list(alone.status)
        found = {name: b for name, b in backgrounds(both).items() if name in part.names}
        for name, background in backgrounds(alone).items():
            np.testing.assert_array_equal(found[name].value, background.value)
            np.testing.assert_array_equal(found[name].variance, background.variance)
    note("properties", f"mosaics apart: {KIND}")


@given(scenes(2, 6, **detector_scenes), additive, st.sampled_from([2.0**-66, 2.0**-20, 2.0**20, 2.0**66]))
def test_units_scale_backgrounds(scene, options, factor):
    """By powers of 2, which round nothing: else a pixel at the threshold may become a source, or none."""
    one, two = made(scene, options), made(scene.times(factor), options)
    assert two.status == one.status
    others = backgrounds(two)
    for name, background in backgrounds(one).items():
        np.testing.assert_allclose(
            others[name].value / factor, background.value, rtol=0, atol=10 * SINGLE * scale(scene)
        )
        np.testing.assert_allclose(
            np.sqrt(others[name].variance) / abs(factor), np.sqrt(background.variance), rtol=1e-3
        )
    note("properties", f"units: {KIND}")


@given(scenes(2, 6, **detector_scenes), additive, st.sampled_from(list(PLACES)))
def test_the_place_on_the_sky_does_not_matter(scene, options, place):
    """Where no sources are found: those near the threshold depend on where the pixels of the mosaic begin."""
    options = replace(options, snr_threshold=1e9)
    assert_same(made(scene, options), made(scene.moved(PLACES[place]), options), SINGLE * scale(scene))
    note("properties", f"place on the sky: {KIND}")


@given(scenes(2, 5, **detector_scenes, dead=False), additive, st.data())
def test_a_twin_has_the_same_background(scene, options, data):
    """
    Neither serves the other, if a least offset is asked for; and those of the others are of at least as many.

    No sources are searched for: noise that two exposures have in common passes for them. Exposures whose levels differ
    and are not made equal are outliers to each other, and twins outvote others.
    """
    options, k = replace(options, min_offset=0.5, snr_threshold=1e9), data.draw(st.integers(0, len(scene) - 1))
    one, two = made(scene, options), made(scene + scene.take([k]).renamed("twin of "), options)
    assert two.status[-1] == two.status[k]
    if options.scale == "additive":
        assert all(after == MADE for before, after in zip(one.status, two.status, strict=False) if before == MADE)
    if two.status[k] == MADE:
        twin, own = two.background(len(scene)), two.background(k)
        np.testing.assert_allclose(twin.value, own.value, rtol=0, atol=SINGLE * scale(scene))
        np.testing.assert_array_equal(twin.donors, own.donors)
    note("properties", f"twins: {KIND}")


@given(scenes(3, 6, **detector_scenes, dead=False, rays=0.0, nebula=0.0), additive, SEEDS, st.sampled_from([0.05, 0.3]))
def test_masking_more_pixels_changes_nothing_beyond_errors(scene, options, seed, part):
    rng = np.random.default_rng(seed)
    options = replace(options, scale="additive", snr_threshold=1e9)
    one, two = made(scene, options), made(scene.masked([rng.random(d.shape) < part for d in scene.data]), options)
    full = backgrounds(one)
    for name, background in backgrounds(two).items():
        assert_within_errors(full[name], background)
    note("properties", f"fewer pixels: {KIND}")


@given(
    scenes(2, 5, **detector_scenes, bad=0.0, dead=False),
    additive,
    st.sampled_from(["f8", ">f4", ">f8", "i4", ">i2", "u2", "f2"]),
    st.sampled_from(["C", "Fortran", "strided", "reversed", "read-only"]),
)
def test_the_kind_of_numbers_and_their_layout_do_not_matter(scene, options, kind, layout):
    scene = scene.with_data(lambda _, d: np.clip(np.rint(d * 8 + 500), 0, 2000).astype(np.float32))
    other = scene.with_data(lambda _, d: laid_out(d.astype(kind), layout))
    assert_same(made(scene, options), made(other, options), 0.0, rtol=0)
    note("properties", f"kind of numbers: {KIND}")
