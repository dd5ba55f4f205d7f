"""Cases in which a level or its error was once wrong without a word."""

import numpy as np
import pytest
from common import few, tan

from bkgmatch.exposures import Exposure
from bkgmatch.masks import read_regions, region_mask
from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions
from bkgmatch.steps.library import stem

STATISTICS = ["mean", "median", "midpt", "mode"]


def image(name, data, x, y=0.0, **kwargs):
    """An exposure shifted by pixels of 0.1 arcsec."""
    return Exposure.from_arrays(name, data, lambda px, py: ((px + x) / 36000, (py + y) / 36000), **kwargs)


def errors_and_pulls(make, levels, skystat, seeds):
    """Errors of the levels relative to their mean, and in units of the quoted errors."""
    levels = np.subtract(levels, np.mean(levels))
    found = [
        match_skies(make(np.random.default_rng(seed)), SkyMatchOptions(skystat=skystat, zero_point="mean"))
        for seed in range(seeds)
    ]
    error = np.array([match.level - levels for match in found])
    return error, error / [match.sigma for match in found]


@pytest.mark.parametrize("skystat", STATISTICS)
def test_an_overlap_of_one_pixel_has_little_weight(skystat):
    def chain(rng):
        return [image(n, rng.normal(v, 0.1, (100, 100)), s, s) for n, v, s in (("a", 1, 0), ("b", 2, 50), ("c", 3, 99))]

    error, pull = errors_and_pulls(chain, [1, 2, 3], skystat, 25)
    assert np.abs(error).max() < 0.02
    assert np.std(pull) < 1.4


def test_pixels_filled_with_zeros_have_little_weight():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(v, 0.1, (100, 100)) for v in (1, 2, 3))
    a[90:, 95:] = c[:10, :5] = 0
    match = match_skies(
        [image("a", a, 0), image("b", b, 50, 50), image("c", c, 95, 90)],
        SkyMatchOptions(skystat="mean", zero_point="mean"),
    )
    np.testing.assert_allclose(match.level, [-1, 0, 1], atol=0.3)  # they may count as 50 pixels, not as all


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("contrast", few(1, [100, 1000, 1e4]))
def test_a_bright_object_on_much_of_the_detector(skystat, contrast):
    def pair(rng):
        images = []
        for name, level, x in (("a", 1.0, 0), ("b", 2.0, 140)):
            column = np.arange(256) + x
            data = rng.normal(level, 1, (256, 256)) + contrast * ((column < 110) | (column > 286))
            images.append(image(name, data.astype(np.float32), x))
        return images

    error, pull = errors_and_pulls(pair, [1, 2], skystat, 12)
    assert np.abs(error).max() < 0.05
    assert 0.3 < np.std(pull) < 1.7


@pytest.mark.parametrize("skystat", ["mean", "median"])
def test_errors_on_a_sky_with_a_gradient(skystat):
    x = np.indices((300, 300))[1]

    def triple(rng):
        shifts = {"a": (0, 0), "b": (40.5, 10.5), "c": (20.3, -30.7)}
        return [image(n, 2e-3 * (x + dx) + rng.normal(0, 0.02, x.shape), dx, dy) for n, (dx, dy) in shifts.items()]

    _, pull = errors_and_pulls(triple, [0, 0, 0], skystat, 10)
    assert 0.3 < np.std(pull) < 1.5


def test_regions_at_right_ascension_zero(tmp_path):
    wcs = tan(0, 20, shape=(100, 120))
    wcs = getattr(wcs, "pixel_to_world_values", wcs)
    file = tmp_path / "r.reg"
    file.write_text('icrs\n-circle(0,20,2")\n')
    good = region_mask(read_regions(str(file)), wcs, (100, 120))
    ra, dec = wcs(*np.indices((100, 120))[::-1])
    offset = np.hypot((np.asarray(ra) + 180) % 360 - 180, np.asarray(dec) - 20) * 3600
    clear = np.abs(offset - 2) > 0.3  # the cosine of the declination changes the distance by 6 per cent
    inside = np.hypot(((np.asarray(ra) + 180) % 360 - 180) * np.cos(np.deg2rad(20)), np.asarray(dec) - 20) * 3600 < 2
    assert inside.any()
    np.testing.assert_array_equal(good[clear], ~inside[clear])


def test_backgrounds_that_overlap_each_other_are_not_their_own_target():
    rng = np.random.default_rng(0)

    def noise(level):
        return rng.normal(level, 0.02, (100, 100))

    science = [
        image(f"s{k}", noise(level), x, y, time=float(k))
        for k, (level, x, y) in enumerate([(10, 0, 0), (11, 40, 0), (12, 20, 40)])
    ]
    far = [
        image(f"b{k}", noise(level), 90000 + 30 * k, time=time, is_background=True)
        for k, (level, time) in enumerate([(5, 2.1), (7, 3.0)])
    ]
    for scope in ("global", "component"):
        options = SkyMatchOptions(skystat="mean", zero_point="background", zero_point_scope=scope)
        match = match_skies(science + far, options)
        np.testing.assert_allclose(match.level[:3], [3, 4, 5], atol=0.01)


@pytest.mark.parametrize("skymethod", ["local", "global", "match", "global+match"])
def test_an_exposure_without_good_pixels_gets_no_level(skymethod):
    rng = np.random.default_rng(0)
    images = [image(n, rng.normal(5, 0.1, (50, 50)), x) for n, x in (("a", 0), ("b", 20))]
    match = match_skies([*images, image("dead", np.full((50, 50), np.nan), 10)], SkyMatchOptions(skymethod=skymethod))
    assert np.isnan(match.level[2])
    assert match.status[2] == "no good pixels"
    assert np.isfinite(match.level[:2]).all()


def test_a_zero_point_that_overlaps_nothing_is_refused():
    rng = np.random.default_rng(0)
    images = [image(n, rng.normal(5, 0.1, (50, 50)), x) for n, x in (("a", 0), ("b", 20), ("lone", 9000))]
    with pytest.raises(ValueError, match=r"lone.*overlaps no other"):
        match_skies(images, SkyMatchOptions(zero_point="lone"))


def test_masked_arrays_keep_their_mask():
    rng = np.random.default_rng(0)
    data = rng.normal(5, 0.1, (100, 100))
    mask = np.zeros(data.shape, dtype=bool)
    mask[:60] = True
    data[mask] = 99
    images = [image("m", np.ma.array(data, mask=mask), 0), image("n", rng.normal(5, 0.1, (100, 100)), 0)]
    np.testing.assert_allclose(match_skies(images, SkyMatchOptions(skystat="mean")).level, 0, atol=0.02)


def test_numbered_models_have_stems_of_their_own():
    assert stem("x_cal.fits[1]") != stem("x_cal.fits[2]")
    assert stem("folder/x_cal.fits") == stem("x_skymatch.fits") == "x"


@pytest.mark.parametrize("skystat", STATISTICS)
def test_lost_bytes_in_one_exposure(skystat):
    """They may be any number up to 3e38, and NaN that signal."""
    rng = np.random.default_rng(6)
    data = {
        name: rng.normal(level, 0.01, (64, 64)).astype(np.float32) for name, level in zip("abc", (1, 2, 4), strict=True)
    }
    data["b"].ravel()[2000:2128] = np.frombuffer(rng.bytes(512), "<f4")
    match = match_skies(
        [image(n, d, 10 * i) for i, (n, d) in enumerate(data.items())], SkyMatchOptions(skystat=skystat)
    )
    np.testing.assert_allclose(match.level, [0, 1, 3], atol=0.01)
    assert match.sigma.max() < 0.01
