"""Simulated dithers against their own stated truth."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from bkgmatch import detectors
from bkgmatch.detectors import NON_SCIENCE, Detector, lyot_region
from bkgmatch.simulate_dithers import LYOT_OFFSET, SourceField, simulate_dithers

SMALL = {"dithers": 3, "shape": (150, 170)}


def rng(seed=1):
    return np.random.default_rng(seed)


def clean(exposure):
    return exposure.good & ~exposure.hits


def test_exposures_are_background_plus_light_plus_noise():
    dithers = simulate_dithers(rng=rng(), noise=0.1, **SMALL)
    for i, exposure in enumerate(dithers.exposures):
        rest = (exposure.data - dithers.background(i) - dithers.light(i))[clean(exposure)]
        assert rest.mean() == pytest.approx(0, abs=5 * 0.1 / np.sqrt(rest.size))
        assert rest.std() == pytest.approx(0.1, rel=0.03)
        assert exposure.err[clean(exposure)] == pytest.approx(0.1)
        assert exposure.data.dtype == np.float32


def test_without_noise_they_are_the_truth():
    dithers = simulate_dithers(rng=rng(), noise=0, cosmic_rays=0, epochs=3, extended=(2.0, 5.0), **SMALL)
    for i, exposure in enumerate(dithers.exposures):
        truth = dithers.background(i) + dithers.light(i)
        np.testing.assert_allclose(exposure.data[exposure.good], truth[exposure.good], rtol=1e-5)


def test_exposures_of_an_epoch_share_a_pattern():
    dithers = simulate_dithers(rng=rng(), dithers=5, epochs=2, shape=(150, 170), level_range=(3, 4))
    np.testing.assert_array_equal(dithers.epochs, [0, 0, 0, 1, 1])
    patterns = [dithers.background(i) - np.float32(e.level) for i, e in enumerate(dithers.exposures)]
    np.testing.assert_allclose(patterns[0], patterns[2], atol=1e-6)
    np.testing.assert_allclose(patterns[3], patterns[4], atol=1e-6)
    np.testing.assert_allclose(patterns[0], dithers.patterns[0], atol=1e-6)
    assert np.ptp(dithers.times[:3]) < 1
    assert dithers.times[3] - dithers.times[2] == pytest.approx(30, abs=1)
    levels = np.array([e.level for e in dithers.exposures])
    assert ((levels[:3] >= 3) & (levels[:3] <= 4)).all()
    assert not ((levels[3:] > 3) & (levels[3:] < 4)).any()


def test_pattern_and_its_change_have_the_given_size():
    options = {"dithers": 2, "epochs": 2, "binning": 4, "level_range": (0, 0)}
    dithers = simulate_dithers(rng=rng(), change=0.2, **options)
    lyot = lyot_region(Detector.named("MIRIMAGE"), binning=4)
    first, second = (dithers.patterns - LYOT_OFFSET * lyot)[:, ~lyot]
    assert first.std() == pytest.approx(0.47, rel=0.3)
    assert (second - first).std() == pytest.approx(0.2 * first.std(), rel=0.3)
    assert not simulate_dithers(rng=rng(), pattern=0, **options).patterns.any()


def test_pattern_has_fine_structure_and_bad_columns():
    (pattern,) = simulate_dithers(rng=rng(), dithers=1).patterns
    fine = np.diff(pattern, axis=0)
    assert 1.4826 * np.median(np.abs(fine)) / np.sqrt(2) == pytest.approx(np.hypot(0.1, 0.07), rel=0.1)
    columns = np.abs(np.diff(np.median(pattern[:700], axis=0)))
    assert 2 <= (columns > 0.45).sum() <= 8


def test_the_lyot_field_has_an_offset_and_the_rest_sees_nothing():
    dithers = simulate_dithers(rng=rng(), dithers=1, binning=4)
    (exposure,) = dithers.exposures
    blind = (exposure.dq & NON_SCIENCE) > 0
    assert blind.mean() == pytest.approx(0.27, abs=0.02)
    assert not dithers.background(0)[blind].any()
    assert not dithers.light(0)[blind].any()
    lyot = lyot_region(exposure.detector, binning=4)
    step = np.median(dithers.background(0)[lyot]) - np.median(dithers.background(0)[~blind & ~lyot])
    assert step == pytest.approx(LYOT_OFFSET, abs=1)


@pytest.mark.parametrize("binning", [1, 4])
def test_flux_of_a_source(binning):
    chip = Detector.named("MIRIMAGE")
    wcs = detectors.detector_wcs(chip.subarray((120, 120), binning=binning), 10.0, 20.0, 30.0, binning=binning)
    where, pixel = wcs(60, 60), chip.scale * binning
    field = SourceField(10.0, 20.0, np.array([[*where, 50.0]]), 2.5 * pixel, pixel)
    light = field.on_pixels(wcs, (120, 120))
    radius = np.hypot(*(np.indices(light.shape) - 60))
    assert light.argmax() == 60 * 120 + 60
    assert light.max() == pytest.approx(50 * field.profile(0.0), rel=1e-3)
    assert light.sum() == pytest.approx(50, rel=0.02)
    in_core, in_wings = 1 - 0.5 ** (2 * 3 / 2.5) ** 2, 1 - 1 / np.hypot(1, 3 / (2.5 * 1.8))
    assert light[radius < 3].sum() == pytest.approx(50 * (0.75 * in_core + 0.25 * in_wings), rel=0.05)


def test_half_of_the_peak_is_at_half_of_the_width():
    field = SourceField(0.0, 0.0, np.zeros((0, 3)), 0.27, 0.11)
    peak, half = field.profile(np.array([0, 0.135]))
    assert half / peak == pytest.approx(0.5, abs=0.02)
    assert field.profile(np.array([5.0])) == 0
    radius = np.linspace(0, 5, 100_001)
    assert np.trapezoid(2 * np.pi * radius * field.profile(radius), radius) / 0.11**2 == pytest.approx(1, rel=1e-3)


def test_sources_stay_on_the_sky():
    dithers = simulate_dithers(rng=rng(), n_sources=40, fluxes=(30, 300), **SMALL)
    brightest = dithers.sources[np.argmax(dithers.sources[:, 2])]
    for i, exposure in enumerate(dithers.exposures):
        light = dithers.light(i)
        x, y = (int(np.round(p)) for p in exposure.wcs.invert(*brightest[:2], with_bounding_box=False))
        if 3 <= x < light.shape[1] - 3 and 3 <= y < light.shape[0] - 3:
            assert light[y - 1 : y + 2, x - 1 : x + 2].sum() > 0.4 * brightest[2]


def test_fluxes_follow_the_power_law():
    flux = simulate_dithers(rng=rng(), n_sources=3000, dithers=1, shape=(40, 40)).sources[:, 2]
    assert flux.min() >= 3
    assert flux.max() <= 300
    np.testing.assert_allclose([(flux > limit).mean() for limit in (6, 30)], [0.5, 0.1], rtol=0.15)


def test_number_of_sources_follows_the_area():
    dithers = simulate_dithers(rng=rng(), dithers=1, shape=(300, 400))
    assert 40 < len(dithers.sources) < 120
    assert not simulate_dithers(rng=rng(), n_sources=0, **SMALL).light(0).any()


def test_extended_source():
    dithers = simulate_dithers(rng=rng(), n_sources=0, extended=(4.0, 2.0), dithers=2, dither_step=4, shape=(200, 200))
    for i, exposure in enumerate(dithers.exposures):
        east, north = detectors.pixels_on_plane(exposure.wcs, exposure.data.shape, 150.0, 2.2)
        expected = 4.0 * np.exp(-(east**2 + north**2) / (2 * 2.0**2))
        np.testing.assert_allclose(dithers.light(i)[exposure.good], expected[exposure.good], atol=1e-5)


def test_distances_of_dithers():
    dithers = simulate_dithers(rng=rng(), dithers=6, dither_step=4.0, jitter=0, shape=(50, 60))
    where = SkyCoord([e.pointing[:2] for e in dithers.exposures], unit=u.deg)
    distance = where[:, None].separation(where).arcsec[~np.eye(6, dtype=bool)].reshape(6, 5)
    assert distance.min() > 0.5 * 4
    assert np.median(distance.min(axis=1)) == pytest.approx(4, rel=0.25)
    assert distance.max() < 4 * 4


def test_same_seed_same_exposures():
    first, again, other = (simulate_dithers(rng=rng(seed), **SMALL) for seed in (5, 5, 6))
    for a, b, c in zip(first.exposures, again.exposures, other.exposures, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.level == b.level != c.level
    np.testing.assert_array_equal(first.sources, again.sources)
    np.testing.assert_array_equal(first.patterns, again.patterns)
