"""The variance images of image-for-image backgrounds over many sets of dithers."""

import numpy as np
import pytest
from common import tan
from pull_scores import check_pulls
from simulated_skies import NOISE, PLACE, SHAPE, Mosaic, cosmic_rays, dark, stars

from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.options import ImageForImageOptions

pytestmark = pytest.mark.timeout(3600)  # for all the skies of a test on a busy machine

SETS = 60
UNEQUAL = NOISE * np.array([1, 3, 0.5, 2, 1, 1])


def bright_stars(rng, x, y):
    """The same in all sets, so that masks are nearly the same."""
    return 5 * stars(np.random.default_rng(3), x, y, number=6)


def dithers(n):
    """Pointings on a spiral."""
    shifts = 9 * np.sqrt(np.arange(n)) * np.exp(2.4j * np.arange(n))
    return Mosaic.around([tan(*PLACE, shape=SHAPE, shift=(z.real, z.imag)) for z in shifts])


def pulls(n=6, *, sky=dark, noise=NOISE, rays=0.0, scale="additive", **options):
    """Pulls of the pixels of all backgrounds, shape (sets, n, pixels); NaN on sources and holes."""
    mosaic, found = dithers(n), []
    options = ImageForImageOptions(scale=scale, min_offset=0.1, **options)
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        pattern = 5 + rng.normal(0, 3 * NOISE, SHAPE)
        background = truths(mosaic.levels, pattern, scale)
        data = mosaic.observe(rng, sky, noise=noise, planes=np.zeros((n, 3))) + background
        data = cosmic_rays(rng, data, rays) if rays else data
        made = make_backgrounds(mosaic.exposures(data, noise), options)
        assert made.status == ("made",) * n
        for k in range(n):
            one = made.background(k)
            used = (one.donors > 0) & ~made.sources(k)
            found.append(np.where(used, (one.value - background[k]) / np.sqrt(one.variance), np.nan))
    return np.reshape(found, (SETS, n, -1))


def truths(levels, pattern, scale):
    """Backgrounds: the same pattern, with levels or factors of their own."""
    if scale == "additive":
        return pattern + levels[:, None, None]
    factors = 1 + 0.02 * levels if scale == "multiplicative" else np.ones(len(levels))
    return factors[:, None, None] * pattern


CASES = {
    "six": {},
    "four": {"n": 4},
    "three": {"n": 3},
    "unequal noise": {"noise": UNEQUAL},
    "stars": {"sky": bright_stars},
    "cosmic rays": {"rays": 0.01},
    "one level": {"scale": "none"},
    "factors": {"scale": "multiplicative"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean", "median"])
@pytest.mark.parametrize("case", CASES)
def test_variance_images(case, method):
    """A pixel of all backgrounds of a set; and the mean of each exposure's pulls, which shows a bias of its level."""
    found = pulls(method=method, **CASES[case])
    of_pixel = np.nan_to_num(found[:, 0][:, np.isfinite(found[:, 0]).all(axis=0)])
    assert of_pixel.shape[1] > 0.3 * found.shape[2]
    width = (0.9, 1.15) if (method, case) == ("median", "unequal noise") else (0.9, 1.1)
    check_pulls(f"ImageForImage: ERR, {method}, {case}", of_pixel, width=width)
    means = np.nanmean(found, axis=2)
    assert np.abs(means.mean(axis=0)).max() < 0.1
    assert np.isfinite(means).all()
