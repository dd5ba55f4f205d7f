"""Small pictures of what each step is for, drawn of simulated exposures when the documentation is built."""

import matplotlib.pyplot as plt
import numpy as np

from bkgmatch.scenes import make_scene
from bkgmatch.simulate import preview, simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated_mrs import MRSScene, mrs_models

TILES = {"tiles": (2, 2), "dithers": 1, "binning": 32, "overlap": 0.2, "center": (150.0, 2.2)}


def tiles():
    """Draw tiles of stars, with levels of their own."""
    rng = np.random.default_rng(7)
    scene = make_scene(*TILES["center"], 200.0, rng, nebula=0.02, n_stars=500, fwhm=4.5)
    _mosaic(simulate_mosaic(rng=rng, scene=scene, **TILES), 0.6)


def nebula():
    """Draw tiles of a nebula, with tilted backgrounds."""
    _mosaic(simulate_mosaic(rng=np.random.default_rng(3), tilt=0.3, **TILES), 1.0)


def spectra():
    """Draw an exposure of MIRI MRS on its detector."""
    (model,), _ = mrs_models(MRSScene(rows=128, n_exposures=1))
    _draw(model.data, (0, 80), aspect="auto")


def detector():
    """Draw an exposure of MIRI's imager, with the structure of its detector."""
    dithers = simulate_dithers(rng=np.random.default_rng(1), dithers=2, binning=8)
    exposure = dithers.exposures[0]
    image = np.where(exposure.good, exposure.data, np.nan)
    _draw(image - np.nanmedian(image), (-1, 1.5))


def _mosaic(exposures, half):
    image, extent = preview(exposures, pixels=100)
    _draw(image - np.nanmedian(image), (-half, half), extent=extent)


def _draw(image, limits, **how):
    _, ax = plt.subplots(figsize=(1.9, 1.9), layout="constrained")
    ax.imshow(image, origin="lower", vmin=limits[0], vmax=limits[1], **how)
    ax.set_axis_off()
