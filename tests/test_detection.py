"""Sources of mosaics of known content, and what light their masks leave outside."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import norm

from bkgmatch import detection
from bkgmatch.detection import deviation, find_sources, flat_mosaic
from bkgmatch.options import ImageForImageOptions

SHAPE = (200, 220)


def options_of(**kwargs):
    """Options with which masks grow for their light alone."""
    return ImageForImageOptions(**{"dilate_size": 0} | kwargs)


OPTIONS = options_of(snr_threshold=3.0, npixels=5, kernel_fwhm=2.0)
HIGH = options_of(snr_threshold=100.0, npixels=5, kernel_fwhm=2.0)


def noise(shape=SHAPE, seed=1, sigma=1.0):
    return np.random.default_rng(seed).normal(0, sigma, shape)


def radius(y, x, shape=SHAPE):
    rows, columns = np.indices(shape)
    return np.hypot(rows - y, columns - x)


def star(y, x, peak, shape=SHAPE, core=1.2, wings=0.0):
    """A Gaussian core, and wings that fall as the cube of the radius."""
    r = radius(y, x, shape)
    return peak * (np.exp(-0.5 * (r / core) ** 2) + wings / (1 + (r / 3) ** 2) ** 1.5)


def found(image, count=None, options=OPTIONS, light=np.inf):
    """Sources; by default their masks do not grow."""
    return find_sources(image, np.ones(image.shape) if count is None else count, options, light)


# Standard deviations


def test_deviation_is_that_of_normal_deviates():
    values = noise((100_000,), sigma=3.0) + 50
    assert deviation(values) == pytest.approx(3, rel=0.02)
    values[:5000] = 1e6
    values[5000:9000] = np.nan
    assert deviation(values) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf, np.nan]])
def test_deviation_of_nothing(values):
    assert np.isnan(deviation(np.array(values)))


def test_deviation_of_equal_values():
    assert deviation(np.full((5, 5), 3.0)) == 0


# Backgrounds


@pytest.mark.parametrize("boxsize", [0, 20, 50])
def test_level_is_removed(boxsize):
    flat = flat_mosaic(noise() + 1000, boxsize)
    assert abs(flat.mean()) < 0.05
    assert flat.std() == pytest.approx(1, rel=0.03)


def test_boxes_remove_gradients_and_one_level_does_not():
    gradient = np.linspace(-20, 20, SHAPE[1]) + np.zeros(SHAPE)
    inner = flat_mosaic(noise() + gradient, 20)[:, 30:-30]  # the outermost boxes have no neighbour to follow
    assert inner.std() == pytest.approx(1, rel=0.1)
    np.testing.assert_allclose(np.diff(flat_mosaic(gradient, 0)), np.diff(gradient))


@pytest.mark.parametrize("boxsize", [0, 25])
def test_missing_pixels_stay_missing(boxsize):
    image = noise() + 7
    image[:40], image[100:130, 60:90] = np.nan, np.nan
    flat = flat_mosaic(image, boxsize)
    np.testing.assert_array_equal(np.isnan(flat), np.isnan(image))
    assert abs(np.nanmean(flat)) < 0.1


def test_stars_hardly_change_boxes():
    image = noise() + 7
    for y, x in ((40, 50), (150, 160)):
        image += star(y, x, 1000)
    flat = flat_mosaic(image, 50)
    assert abs(np.median(flat[20:60, 30:70])) < 0.2


@pytest.mark.parametrize("boxsize", [0, 10])
def test_flattening_changes_no_input(boxsize):
    image = noise()
    copy = image.copy()
    flat_mosaic(image, boxsize)
    np.testing.assert_array_equal(image, copy)


# What is found


PLACES = ((30, 40), (90, 160), (150, 60), (180, 200))


@pytest.mark.parametrize("kernel_fwhm", [0.0, 2.0])
def test_stars_are_found_where_they_are(kernel_fwhm):
    image = noise() + sum(star(*place, 50) for place in PLACES)
    options = options_of(snr_threshold=4, kernel_fwhm=kernel_fwhm)
    labels, number = ndimage.label(found(image, options=options), np.ones((3, 3)))
    assert number == len(PLACES)
    centres = ndimage.center_of_mass(labels > 0, labels, range(1, number + 1))
    for place in PLACES:
        assert min(np.hypot(*np.subtract(place, centre)) for centre in centres) < 1
        assert labels[place]


def test_what_is_negative_is_no_source():
    mask = found(noise() - star(100, 100, 500) + star(30, 30, 500))
    assert mask[30, 30]
    assert not mask[95:106, 95:106].any()


def test_faint_stars_need_smoothing():
    image = noise() + sum(star(*place, 4, core=2.0) for place in PLACES) + star(100, 100, 500)
    hits = {
        fwhm: sum(
            found(image, options=options_of(snr_threshold=5, npixels=5, kernel_fwhm=fwhm))[place] for place in PLACES
        )
        for fwhm in (0.0, 4.0)
    }
    assert hits[4.0] == len(PLACES)
    assert hits[0.0] < hits[4.0]


@pytest.mark.parametrize("npixels", [1, 10, 40])
def test_sources_have_enough_pixels(npixels):
    image = noise() + star(100, 100, 50, core=3)
    image[30, 30] += 100
    options = options_of(snr_threshold=4, npixels=npixels, kernel_fwhm=0)
    mask = found(image, options=options)
    assert mask[100, 100]
    assert mask[30, 30] == (npixels == 1)
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    assert ndimage.sum_labels(mask, labels, range(1, number + 1)).min() >= npixels


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_as_many_pixels_as_chance_has(seed):
    """Smoothed noise is normal, of the deviation that it is measured to have."""
    options = options_of(snr_threshold=2, npixels=1, kernel_fwhm=2.0)
    mask = found(noise((400, 400), seed), options=options)
    assert mask.mean() == pytest.approx(norm.sf(2), rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_few_sources(seed):
    _, number = ndimage.label(found(noise((400, 400), seed)))
    assert number < 30  # of 160000 pixels


@pytest.mark.parametrize("counts", [(1, 4, 16), (2, 3, 100)])
def test_few_exposures_do_not_look_like_sources(counts):
    shape = (300, 300)
    count = np.repeat(counts, 100) + np.zeros(shape)
    options = options_of(snr_threshold=2.5, npixels=1, kernel_fwhm=2.0)
    mask = found(noise(shape) / np.sqrt(count), count, options)
    parts = [mask[:, start : start + 100].mean() for start in (0, 100, 200)]
    np.testing.assert_allclose(parts, norm.sf(2.5), rtol=0.4)


def test_where_more_exposures_are_fainter_stars_are_found():
    count = np.repeat([1, 25], 110) + np.zeros(SHAPE)
    places = [(50, 50), (50, 170), (150, 50), (150, 170)]
    image = noise() / np.sqrt(count) + sum(star(*place, 2.5) for place in places)
    mask = found(image, count, options_of(snr_threshold=5))
    assert [bool(mask[place]) for place in places] == [False, True, False, True]


@pytest.mark.parametrize("factor", [1e-8, 0.5, 1e6])
def test_units_do_not_matter(factor):
    image = noise() + star(100, 100, 30, wings=0.3)
    np.testing.assert_array_equal(found(image, light=0.2), found(image * factor, light=0.2 * factor))
    np.testing.assert_array_equal(found(image), found(image, np.full(SHAPE, 7.0)))


# No data


@pytest.mark.parametrize("light", [np.inf, 0.2])
def test_missing_borders_are_no_sources(light):
    image = noise() + star(100, 100, 50)
    image[:20], image[-30:], image[:, :10], image[120:140, 50:80] = (np.nan,) * 4
    mask = find_sources(image, np.where(np.isfinite(image), 3, 0), OPTIONS, light)
    assert mask[100, 100]
    edge = ndimage.binary_dilation(np.isnan(image), iterations=3) & np.isfinite(image)
    assert mask[edge].mean() < 0.02


def test_the_noise_is_that_of_what_is_there():
    """Most of the mosaic is missing."""
    image = noise((400, 400))
    image[:300] = np.nan
    mask = found(image, options=options_of(snr_threshold=2, npixels=1))
    assert mask[305:].mean() == pytest.approx(norm.sf(2), rel=0.2)
    assert not mask[:300].any()


def test_a_star_at_a_missing_border_is_found():
    image = noise() + star(30, 100, 200)
    image[:29] = np.nan
    assert found(image)[30, 100]


@pytest.mark.parametrize("light", [np.inf, 0.1])
@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_without_contrast_there_are_no_sources(value, light):
    mask = find_sources(np.full(SHAPE, value), np.ones(SHAPE), OPTIONS, light)
    assert mask.shape == SHAPE
    assert mask.dtype == bool
    assert not mask.any()


def test_without_any_source_there_is_no_mask():
    """It is no cause for a warning."""
    mask = found(noise(), options=options_of(snr_threshold=50))
    assert mask.dtype == bool
    assert not mask.any()


@pytest.mark.parametrize("boxsize", [0, 20])
def test_an_empty_mosaic_stays_empty(boxsize):
    assert np.isnan(flat_mosaic(np.full((50, 60), np.nan), boxsize)).all()


def test_boxes_without_enough_pixels_are_told():
    image = np.full((60, 60), np.nan)
    image[::3, ::3] = 1
    with pytest.raises(ValueError, match=r"in boxes of bkg_boxsize=20 pixels .* set bkg_boxsize=0"):
        flat_mosaic(image, 20)
    assert np.nanmax(np.abs(flat_mosaic(image, 0))) == 0


def test_finding_changes_no_input():
    image, count = noise() + star(100, 100, 50), np.ones(SHAPE)
    copies = image.copy(), count.copy()
    find_sources(image, count, OPTIONS, 0.1)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(count, copies[1])


# Growth


def rings(image, mask):
    """Mean of the light in rings of one pixel about a mask, the first next to it."""
    distance = ndimage.distance_transform_edt(~mask)
    return [image[(distance > k) & (distance <= k + 1)].mean() for k in range(20)]


@pytest.mark.parametrize("peak", [100, 3000])
@pytest.mark.parametrize("light", [0.1, 0.5])
def test_the_light_left_around_a_source_is_below_the_limit(peak, light):
    clean = star(100, 110, peak, wings=0.1)
    bare = found(clean + noise(sigma=0.3))
    grown = found(clean + noise(sigma=0.3), light=light)
    tolerance = 3 * 0.3 / np.sqrt(2 * np.pi * np.sqrt(grown.sum() / np.pi))
    assert rings(clean, grown)[0] < light + tolerance
    if rings(clean, bare)[0] > light + tolerance:
        assert grown.sum() > bare.sum()
    assert not (bare & ~grown).any()


def test_masks_grow_no_farther_than_that():
    """The ring before the last still has more light than the limit."""
    clean, light = star(100, 110, 2000, wings=0.1), 0.3
    grown = found(clean + noise(sigma=0.1), options=HIGH, light=light)
    labels, _ = ndimage.label(grown)
    inner = ndimage.distance_transform_edt(labels == labels[100, 110]) <= 2
    last = inner & (labels == labels[100, 110])
    assert clean[last].mean() > light


@pytest.mark.parametrize("light", [np.inf, 0.05])
def test_brighter_sources_have_larger_masks(light):
    sizes = []
    for peak in (20, 100, 500, 2500):
        labels, _ = ndimage.label(found(noise(sigma=0.3) + star(100, 110, peak, wings=0.1), light=light))
        sizes.append((labels == labels[100, 110]).sum())
    assert (np.diff(sizes) > 0).all()


def test_masks_are_larger_for_lower_limits():
    image = noise(sigma=0.1) + star(100, 110, 1000, wings=0.1)
    sizes = [found(image, options=HIGH, light=light).sum() for light in (np.inf, 3.0, 1.0, 0.3)]
    assert (np.diff(sizes) >= 0).all()
    assert sizes[-1] > 2 * sizes[0]


def test_a_faint_neighbour_does_not_grow_with_a_bright_star():
    image = noise(sigma=0.3) + star(100, 60, 3000, wings=0.1) + star(100, 190, 20)
    labels, _ = ndimage.label(found(image, light=0.1))
    sizes = [(labels == labels[100, x]).sum() for x in (60, 190)]
    assert sizes[1] < 150 < sizes[0]


def test_sources_that_touch_a_missing_border_grow():
    clean = star(60, 110, 1000, wings=0.1)
    image = clean + noise(sigma=0.1)
    image[:55] = np.nan
    grown = found(image, light=0.2)
    ring = (ndimage.distance_transform_edt(~grown) == 1) & np.isfinite(image)
    assert clean[ring].mean() < 0.3


@pytest.mark.parametrize("size", [0, 3, 5, 9])
def test_least_growth(size):
    """Masks grow by half of the side, also where there is no light; not into a square, for light is round."""
    image = noise() + star(100, 110, 1000, core=3)
    bare = found(image, options=HIGH)
    distance = ndimage.distance_transform_edt(~bare)
    grown = found(image, options=options_of(snr_threshold=100.0, dilate_size=size))
    assert grown[distance <= size // 2].all()
    assert not grown[distance > size * np.sqrt(0.5)].any()
    assert not (
        found(image, options=HIGH, light=0.5)
        & ~found(image, options=options_of(snr_threshold=100.0, dilate_size=size), light=0.5)
    ).any()


def test_wide_light_grows_masks_as_far_as_they_can():
    """
    A star in the middle of a wide glow too faint to be found: the light is above the limit farther than masks grow.

    To stop at once because no ring is dark enough would leave the most light of all.
    """
    shape = (400, 400)
    glow = 0.6 * (radius(200, 200, shape) < 100)
    image = noise(shape) + glow + star(200, 200, 1000, shape, core=4)
    assert found(image, options=HIGH).sum() < 500
    labels, _ = ndimage.label(found(image, options=HIGH, light=0.05))
    reach = np.sqrt((labels == labels[200, 200]).sum() / np.pi)
    assert reach > 30


@pytest.mark.parametrize("dilate_size", [0, 5, 121])
def test_strips_of_rows_change_nothing(monkeypatch, dilate_size):
    """Sources that touch, one with a hole, an empty middle, and masks that grow farther than the rings."""
    image = noise((700, 90)) + sum(star(y, x, 300, (700, 90), wings=0.1) for y, x in [(20, 20), (40, 33), (640, 70)])
    image[np.abs(radius(560, 40, (700, 90)) - 22) < 3] += 100
    options = options_of(snr_threshold=3.0, npixels=5, kernel_fwhm=2.0, dilate_size=dilate_size)
    whole = found(image, options=options, light=0.1)
    monkeypatch.setattr(detection, "_AT_ONCE", 1)
    np.testing.assert_array_equal(found(image, options=options, light=0.1), whole)
    assert 0.02 < whole.mean() < 0.9
