"""The methods of the package reproject give the same levels as ours."""

from functools import partial

import numpy as np
import pytest
from common import PLACES, exposure, noise, tan

from bkgmatch.exposures import Exposure
from bkgmatch.levels import match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.simulate import simulate_mosaic

FIT = {"fit_type_dithers": "level+slope", "passes": "joint", "reference": "mean"}


@pytest.mark.parametrize("method", ["exact", "adaptive"])
def test_planes_agree_with_bilinear_interpolation(method):
    simulated = simulate_mosaic(
        rng=np.random.default_rng(3), tiles=(1, 2), dithers=2, binning=32, overlap=0.3, tilt=0.1, bad_pixels=0.001
    )
    exposures = [
        Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2)
        for e in simulated
    ]
    ours = match_levels(exposures, LevelMatchOptions(**FIT))
    other = match_levels(exposures, LevelMatchOptions(**FIT, reproject_func=method))
    assert (np.abs(other.level - ours.level) < 2 * ours.sigma).all()
    assert (np.abs(other.slope - ours.slope) < 2 * ours.slope_sigma).all()
    np.testing.assert_allclose(other.sigma, ours.sigma, rtol=0.3)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["exact", "adaptive"])
def test_everywhere_on_the_sky(place, method):
    pair = [
        exposure(name, noise(seed=seed, level=level), tan(*PLACES[place], shift=shift, angle=angle))
        for name, seed, level, shift, angle in [("a", 1, 5.0, (0, 0), 0.0), ("b", 2, 7.0, (20.3, 9.6), 12.0)]
    ]
    found = match_levels(pair, LevelMatchOptions(reference="mean", reproject_func=method))
    assert found.level[1] - found.level[0] == pytest.approx(2.0, abs=5 * found.sigma[0] * 2)
    assert found.pairs.npix[0] > 800
