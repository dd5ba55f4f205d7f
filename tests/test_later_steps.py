"""After matching, outlier_detection and resample read what is right: mosaics of known levels, with all sequences.

Both take the levels of skymatch from ``meta.background``: where BKGSUB is False, resample subtracts BKGLEVEL from each
exposure before it drizzles, and outlier_detection adds it to the median image that it compares the exposure with, in
place of its parameter ``backg``. Where BKGSUB is True or BKGLEVEL is not set, they take the data as they are. Neither
knows the keywords of level_match and image_for_image (LVLM_SUB, I4I_SUB): what these only record stays in the data.
"""

from dataclasses import replace

import numpy as np
import pytest
from image3 import without_background
from jwst import pipeline as jwst_pipeline
from jwst.datamodels import ModelLibrary
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch import Image3Pipeline, ImageForImageStep, LevelMatchStep, SkyMatchStep
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated import write_exposures

pytestmark = pytest.mark.usefixtures("empty_crds_of_module")

CENTER = (150.0, 2.2)
NOISE = 0.02
LEVELS = (1.0, 3.0)
LEVEL_OF_DITHERS = (5.0, 8.0)
CLOSE = 0.02  # MJy/sr: what may be left of levels that differ by a hundred times more
OFF = {name: {"skip": True} for name in ("tweakreg", "source_catalog")}
LEAN = {"resample": {"report_var": False, "enable_err": False, "blendheaders": False}}
SLOPE = {"fit_type_dithers": "level+slope", "fit_type_mosaic_tiles": "level+slope"}

SKY_RECORDED, SKY_SUBTRACTED = (SkyMatchStep(subtract=subtract) for subtract in (False, True))
LEVEL_RECORDED, LEVEL_SUBTRACTED = (LevelMatchStep(subtract=subtract) for subtract in (False, True))
PLANES_RECORDED, PLANES_SUBTRACTED = (LevelMatchStep(subtract=subtract, **SLOPE) for subtract in (False, True))


def waves(ra, dec):
    """A smooth sky."""
    return 0.1 * (1 + np.sin(2 * np.pi * (ra - CENTER[0]) / 0.05) * np.cos(2 * np.pi * (dec - CENTER[1]) / 0.05))


class Mosaic:
    """Exposures with and without backgrounds, and what jwst makes of those without."""

    def __init__(self, exposures, folder, without=None):
        self.exposures, self.folder = exposures, folder
        self.asn = str(write_exposures(exposures, folder / "with"))
        control = str(write_exposures(without or [without_background(e) for e in exposures], folder / "without"))
        self.truth, self.flagged = self.make(ModelLibrary(control), "truth")
        self.labels = regions(folder / "truth")

    def make(self, library, name, cls=jwst_pipeline.Image3Pipeline, **steps):
        """Run a pipeline, by default jwst's without skymatch; return the mosaic and the number of outliers."""
        folder = self.folder / name
        steps = steps or {"skymatch": {"skip": True}}
        cls.call(library, steps=OFF | LEAN | steps, output_dir=str(folder), save_results=True)
        flags = []
        for exposure in self.exposures:
            (file,) = folder.glob(f"{exposure.name}_*crf.fits")
            with datamodels.open(file) as model:
                flags.append(np.count_nonzero((model.dq & dq_flags["OUTLIER"] > 0) & exposure.good))
        with datamodels.open(folder / "mosaic_i2d.fits") as image:
            return image.data.copy(), sum(flags)

    def after(self, *steps):
        """Mosaic after steps one after the other."""
        library = ModelLibrary(self.asn)
        for step in steps:
            library = step.run(library)
        return self.make(library, "after")

    def left(self, image, *, plane=False):
        """Background that is left in each region, less its mean, or the plane that no matching can know."""
        error = image - self.truth
        if plane:
            y, x = np.indices(error.shape)
            known = np.isfinite(error)
            basis = np.stack([np.ones(error.shape), y, x], axis=-1)
            error = error - basis @ np.linalg.lstsq(basis[known], error[known])[0]
        labels = [label for label in np.unique(self.labels) if label and (self.labels == label).sum() > 100]
        assert len(labels) >= 3
        parts = np.array([np.nanmedian(error[self.labels == label]) for label in labels])
        return parts - parts.mean()


def regions(folder):
    """Number of the set of exposures that each pixel of the mosaic is made of; 0 outside."""
    with datamodels.open(folder / "mosaic_i2d.fits") as image:
        return image.con[0].copy()


def simulate(folder, **background):
    """Simulate wide dithers: many regions of the mosaic are covered by different sets of them."""
    exposures = simulate_mosaic(
        rng=np.random.default_rng(4), tiles=(1, 1), dithers=4, dither_step=35.0, center=CENTER, binning=32,
        scene=waves, noise=NOISE, cosmic_rays=0.004, level_range=LEVELS, **background,
    )  # fmt: skip
    return Mosaic(exposures, folder)


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    """Exposures whose levels differ."""
    return simulate(tmp_path_factory.mktemp("levels"))


@pytest.fixture(scope="module")
def tilted(tmp_path_factory):
    """Exposures whose levels and slopes differ."""
    return simulate(tmp_path_factory.mktemp("slopes"), tilt=0.3)


@pytest.fixture(scope="module")
def unmatched(mosaic):
    return mosaic.after()


def test_unmatched(mosaic, unmatched):
    """Without matching, both fail: levels are left, and outlier_detection flags pixels that are good."""
    image, flagged = unmatched
    assert np.ptp(mosaic.left(image)) > 20 * CLOSE
    assert flagged > 3 * mosaic.flagged
    assert mosaic.flagged > 20, "hits"


def check(mosaic, made, *, plane=False):
    """Backgrounds are subtracted once, and the same outliers are found as in exposures without backgrounds."""
    image, flagged = made
    left = mosaic.left(image, plane=plane)
    assert np.max(np.abs(left)) < CLOSE, left
    assert abs(flagged - mosaic.flagged) < 0.1 * mosaic.flagged, (flagged, mosaic.flagged)


def cases(fast, slow):
    """Parameters of a test, those of the second dictionary for slow runs."""
    marked = [(fast, ()), (slow, pytest.mark.slow)]
    return [pytest.param(value, id=name, marks=mark) for group, mark in marked for name, value in group.items()]


ONCE = {
    "skymatch recorded": [SKY_RECORDED],
    "skymatch recorded, level_match": [SKY_RECORDED, LEVEL_SUBTRACTED],
}
ONCE_TOO = {
    "skymatch": [SKY_SUBTRACTED],
    "level_match": [LEVEL_SUBTRACTED],
    "level_match, skymatch recorded": [LEVEL_SUBTRACTED, SKY_RECORDED],
    "skymatch, level_match": [SKY_SUBTRACTED, LEVEL_SUBTRACTED],
    "level_match, skymatch": [LEVEL_SUBTRACTED, SKY_SUBTRACTED],
    "level_match recorded, skymatch recorded": [LEVEL_RECORDED, SKY_RECORDED],
    "level_match recorded, skymatch": [LEVEL_RECORDED, SKY_SUBTRACTED],
    "skymatch recorded, level_match recorded": [SKY_RECORDED, LEVEL_RECORDED],
    "skymatch, level_match recorded": [SKY_SUBTRACTED, LEVEL_RECORDED],
    "level_match twice": [LEVEL_SUBTRACTED, LEVEL_SUBTRACTED],
    "skymatch twice": [SKY_SUBTRACTED, SKY_SUBTRACTED],
}


@pytest.mark.parametrize("steps", cases(ONCE, ONCE_TOO))
def test_levels_are_subtracted_once(mosaic, steps):
    check(mosaic, mosaic.after(*steps))


@pytest.mark.parametrize("step", [LEVEL_RECORDED, pytest.param(PLANES_RECORDED, marks=pytest.mark.slow)])
def test_what_level_match_only_records_stays(mosaic, unmatched, step):
    """The mosaic is as without it: no later step reads its record."""
    image, flagged = mosaic.after(step)
    np.testing.assert_array_equal(image, unmatched[0])
    assert flagged == unmatched[1]


PLANE_STEPS = {"skymatch recorded, level_match": [SKY_RECORDED, PLANES_SUBTRACTED]}
PLANE_STEPS_TOO = {
    "level_match": [PLANES_SUBTRACTED],
    "skymatch, level_match": [SKY_SUBTRACTED, PLANES_SUBTRACTED],
    "level_match, skymatch recorded": [PLANES_SUBTRACTED, SKY_RECORDED],
    "level_match, skymatch": [PLANES_SUBTRACTED, SKY_SUBTRACTED],
    "levels, then planes": [LEVEL_SUBTRACTED, PLANES_SUBTRACTED],
}


@pytest.mark.parametrize("steps", cases(PLANE_STEPS, PLANE_STEPS_TOO))
def test_planes_are_subtracted_once(tilted, steps):
    check(tilted, tilted.after(*steps), plane=True)


def test_levels_alone_leave_planes(tilted):
    """Else the test above says little."""
    left = tilted.left(tilted.after(LEVEL_SUBTRACTED)[0], plane=True)
    assert np.max(np.abs(left)) > 2 * CLOSE


PIPELINE = {"defaults": {}}
PIPELINE_TOO = {
    "both subtract": {"skymatch": {"skip": False, "subtract": True}},
    "skymatch too": {"skymatch": {"skip": False}},
    "skymatch alone": {"level_match": {"skip": True}},
    "recorded": {"level_match": {"subtract": False}},
    "hook": {"skymatch": {"skip": True, "post_hooks": [LEVEL_SUBTRACTED]}, "level_match": {"skip": True}},
}


@pytest.mark.parametrize("steps", cases(PIPELINE, PIPELINE_TOO))
def test_in_the_pipeline(mosaic, steps):
    made = mosaic.make(mosaic.asn, "pipeline", Image3Pipeline, **({"level_match": {}} | steps))
    check(mosaic, made)


SAVED = {"skymatch": [SKY_RECORDED], "both": [SKY_RECORDED, LEVEL_SUBTRACTED]}


@pytest.mark.parametrize("steps", cases({}, SAVED))
def test_saved_results(mosaic, steps, tmp_path):
    """Files make the mosaic that models in memory make."""
    given = mosaic.asn
    for number, step in enumerate(steps):
        folder = tmp_path / str(number)
        type(step).call(given, subtract=step.subtract, save_results=True, output_dir=str(folder))
        given = str(folder / f"mosaic_{step.suffix}_asn.json")
    image, flagged = mosaic.make(given, f"saved {len(steps)}")
    expected, expected_flagged = mosaic.after(*steps)
    np.testing.assert_array_equal(image, expected)
    assert flagged == expected_flagged


# ---------------------------------------------------------------------------------------------- image_for_image


@pytest.fixture(scope="module")
def dithers(tmp_path_factory):
    """Five exposures of MIRI in front of a pattern; those without have neither pattern nor level."""
    scene = simulate_dithers(
        rng=np.random.default_rng(2), dithers=5, dither_step=30.0, binning=16, n_sources=4, level_range=LEVEL_OF_DITHERS
    )
    dark = []
    for i, exposure in enumerate(scene.exposures):
        seen = exposure.dq & 512 == 0
        dark.append(replace(exposure, data=np.where(seen, exposure.data - scene.background(i), 0).astype(np.float32)))
    return Mosaic(scene.exposures, tmp_path_factory.mktemp("dithers"), dark)


I4I, BOTH_FIELDS = ImageForImageStep(maxiters=1), LevelMatchStep(recombine_lyot=True)
MIRI = {"both": [I4I, BOTH_FIELDS, SKY_SUBTRACTED]}
MIRI_TOO = {
    "alone": [I4I],
    "level_match": [I4I, BOTH_FIELDS],
    "skymatch recorded": [I4I, SKY_RECORDED],
    "both, the other way round": [I4I, SKY_SUBTRACTED, BOTH_FIELDS],
}


@pytest.mark.parametrize("steps", cases(MIRI, MIRI_TOO))
def test_backgrounds_are_subtracted_once(dithers, steps):
    image, flagged = dithers.after(*steps)
    error = image - dithers.truth
    assert np.max(np.abs(dithers.left(image))) < CLOSE
    assert abs(np.nanmedian(error)) < CLOSE
    assert np.nanstd(error) < 0.05, "the pattern"
    assert abs(flagged - dithers.flagged) < 10


@pytest.mark.slow
def test_dithers_unmatched(dithers):
    """All that is asked for above fails."""
    image, flagged = dithers.after()
    error = image - dithers.truth
    assert np.max(np.abs(dithers.left(image))) > 20 * CLOSE
    assert np.nanmedian(error) > LEVEL_OF_DITHERS[0]
    assert np.nanstd(error) > 0.3
    assert flagged > 100 + dithers.flagged
