"""calwebb_image3 on mosaics of known sky: seams, good pixels that are flagged, fluxes; and the measures of these."""

import numpy as np
import pytest
from crds_cache import crds_cache
from image3 import (
    APART,
    CONTROL,
    HOOK,
    JWST,
    OURS,
    RUNS,
    UNMATCHED,
    build_mosaic,
    coverage,
    flux_errors,
    good_pixels_flagged,
    mismatch,
    mosaic,
    seam_rms,
    typical,
)

MATCHED = pytest.mark.parametrize("run", [HOOK, OURS])
SIDE = 30  # pixels of a field of the chequerboard


def run_all(sky, runs, folder):
    """Mosaics of a simulated sky."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRDS_PATH", str(crds_cache(folder / "crds")))
        patch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
        patch.chdir(folder)
        associations = sky.write(folder)
        return {run: build_mosaic(run, associations[run], folder / run) for run in runs}


def seams_of(images):
    """Rms seam of each mosaic."""
    control = images[CONTROL]
    seen_by = coverage(control)
    return {run: seam_rms(mismatch(i.data, control.data, seen_by), seen_by) for run, i in images.items()}


@pytest.fixture(scope="module")
def sky():
    return mosaic(1, binning=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("image3")


@pytest.fixture(scope="module")
def images(sky, folder):
    """Mosaics of 3 x 3 tiles x 4 dithers of 128 x 128 pixels, by all ways of matching."""
    return run_all(sky, RUNS, folder)


@pytest.fixture(scope="module")
def seams(images):
    return seams_of(images)


@pytest.fixture(scope="module")
def flagged(images, sky, folder):
    """Good pixels that are flagged in each."""
    return {run: good_pixels_flagged(folder / run, sky.exposures)[0] for run in images}


@pytest.mark.slow
@MATCHED
def test_seams_fall(seams, run):
    assert seams[run] < seams[UNMATCHED] / 20
    assert seams[run] < seams[JWST] / 5


@pytest.mark.slow
@MATCHED
def test_no_more_good_pixels_are_flagged_than_without_backgrounds(flagged, run):
    assert flagged[CONTROL] > 20
    assert flagged[run] == pytest.approx(flagged[CONTROL], rel=0.1)
    assert flagged[UNMATCHED] > 100 * flagged[CONTROL]


@pytest.mark.slow
@MATCHED
def test_fluxes_are_unbiased(images, sky, run):
    """To 0.5 %, which is four standard errors or more."""
    errors, control = (flux_errors(images[name], sky.scene) for name in (run, CONTROL))
    for bias, error in (typical(errors), typical((1 + errors) / (1 + control) - 1)):
        assert error < 0.005 / 4
        assert abs(bias) < 0.005


@pytest.mark.slow
def test_a_hook_does_what_the_pipeline_does(images):
    np.testing.assert_array_equal(images[HOOK].data, images[OURS].data)


@pytest.mark.slow
def test_seams_of_a_small_mosaic_fall(tmp_path):
    images = run_all(mosaic(2, binning=32, tiles=(2, 2), dithers=2), (UNMATCHED, HOOK, CONTROL), tmp_path)
    seams = seams_of(images)
    assert seams[CONTROL] == 0
    assert seams[HOOK] < seams[UNMATCHED] / 5


@pytest.fixture
def chequerboard():
    """Which of 5 x 5 neighbours covers each pixel, in a margin that none covers; and the sign of each."""
    seen_by = np.pad(2 ** np.arange(25).reshape(5, 5), 1).repeat(SIDE, 0).repeat(SIDE, 1)
    return seen_by, np.where(np.indices((7, 7)).sum(axis=0) % 2, 1, -1).repeat(SIDE, 0).repeat(SIDE, 1)


@pytest.mark.parametrize("jump", [0.0, 1e-3, 2.0])
def test_the_rms_is_that_of_the_jumps(chequerboard, jump):
    """Whatever the sky, a common plane, and single pixels that were dropped from one mosaic."""
    seen_by, sign = chequerboard
    rng = np.random.default_rng(1)
    y, x = np.indices(sign.shape)
    control = np.where(seen_by, rng.exponential(10, sign.shape), np.nan)
    image = control + jump / 2 * sign + 3 + 2e-4 * x - 3e-4 * y
    dropped = rng.random(sign.shape) < 0.01
    image[dropped] += rng.normal(0, 1, dropped.sum())
    image[rng.random(sign.shape) < 0.01] = np.nan
    assert seam_rms(mismatch(image, control, seen_by), seen_by) == pytest.approx(jump, rel=0.01, abs=1e-4)


def test_slopes_are_no_jumps_but_count_by_what_they_do_to_edges(chequerboard):
    seen_by, sign = chequerboard
    tent = 0.01 * abs(np.indices(sign.shape)[1] % SIDE - SIDE / 2)  # continuous
    assert seam_rms(mismatch(tent, 0 * tent, seen_by), seen_by) < 0.01 * APART
    saw = 0.01 * (np.indices(sign.shape)[1] % SIDE)  # jumps by 0.3 at every other edge, those along x
    expected = 0.01 * (SIDE - APART) / np.sqrt(2)
    assert seam_rms(mismatch(saw, 0 * saw, seen_by), seen_by) == pytest.approx(expected, rel=0.1)
