"""Source masks are photutils'; backgrounds are what is left without sources."""

import numpy as np
import pytest
from astropy.stats import SigmaClip
from photutils.segmentation import detect_sources, detect_threshold

from bkgmatch import sources
from bkgmatch.options import LevelMatchOptions
from bkgmatch.sources import background_level, segments, source_mask


def crowded(seed=1, shape=(120, 140), level=5.0):
    """Noise of 1, stars of up to 50, and 2 % of bad pixels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(level, 1.0, shape)
    y, x = np.indices(shape)
    for peak in rng.uniform(3, 50, 25):
        image += peak * np.exp(-((y - rng.uniform(0, shape[0])) ** 2 + (x - rng.uniform(0, shape[1])) ** 2) / 4)
    image[rng.random(shape) < 0.02] = np.nan
    return image


@pytest.mark.parametrize(("sigma", "npixels", "dilate_size"), [(3, 3, 7), (2, 5, 11), (3, 1, 4), (4, 2, 1)])
def test_masks_are_those_of_photutils(sigma, npixels, dilate_size):
    image = crowded()
    bad = ~np.isfinite(image)
    filled = np.where(bad, 0, image)
    clip = SigmaClip(sigma=sigma, maxiters=20)
    threshold = detect_threshold(filled, sigma, mask=bad, sigma_clip=clip)
    expected = detect_sources(filled, threshold, npixels, mask=bad).make_source_mask(size=dilate_size)
    options = LevelMatchOptions(sigma=sigma, npixels=npixels, dilate_size=dilate_size)
    np.testing.assert_array_equal(source_mask(image, options), expected)
    assert 0.01 < expected.mean() < 0.9


@pytest.mark.parametrize("image", [np.full((9, 9), np.nan), np.ones((9, 9)), np.zeros((1, 1))])
def test_without_sources_nothing_is_masked(image):
    assert not source_mask(image, LevelMatchOptions()).any()


def test_background_of_a_crowded_field():
    """Without its sources it is 5 to a few hundredths of the noise; the mean of all pixels is not."""
    images = [crowded(seed) for seed in range(4)]
    assert background_level(images, LevelMatchOptions()) == pytest.approx(5.0, abs=0.04)
    assert np.nanmean(images) > 5.2


def test_no_pixels_have_no_background():
    assert np.isnan(background_level([np.full((5, 5), np.nan)], LevelMatchOptions()))


@pytest.mark.parametrize("outliers", [0.0, 1e6])
@pytest.mark.parametrize("level", [0.0, 5.0, -3e4])
def test_background_of_many_pixels_is_that_of_all_together(monkeypatch, level, outliers):
    """In bins, it is the same to a tenth of its standard error; images are asked for one by one."""
    images = [crowded(seed, level=level).astype(np.float32) for seed in range(4)]
    for image in images:
        image[::37, ::31] += outliers
    options = LevelMatchOptions()
    expected = background_level(images, options)
    monkeypatch.setattr(sources, "_FEW", 1000)
    monkeypatch.setattr(sources, "_BLOCK", 700)
    error = 1.2533 / np.sqrt(np.isfinite(images).sum())
    assert background_level(iter(images), options) == pytest.approx(expected, abs=0.1 * error + 1e-7 * abs(level))
    assert np.isfinite(background_level([np.full((5, 5), np.nan), *images], options))


@pytest.mark.parametrize("values", [[3.3], [2.0, 4.0, 4.0], [1, 2, 3, 4, 5, 6, 7]])
def test_background_of_few_different_values(monkeypatch, values):
    image = np.tile(np.array(values, dtype=np.float32), (90, 10))
    monkeypatch.setattr(sources, "_FEW", 1)
    assert background_level([image, image], LevelMatchOptions()) == pytest.approx(np.median(values), rel=1e-5)


def test_segments_are_those_of_photutils():
    bright = np.random.default_rng(1).random((90, 110)) < 0.2
    expected = detect_sources(bright.astype(float), 0.5, 5).data
    np.testing.assert_array_equal(segments(bright, 5), expected)
    assert not segments(np.zeros((3, 3), dtype=bool), 5).any()
