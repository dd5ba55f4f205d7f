"""Errors of sky levels against known truth, beside stcal's, and pulls of the quoted errors.

    python benchmarks/skymatch_accuracy.py --against stcal

``ours`` and ``rival`` are rms errors of the levels (MJy/sr; zero point removed), averaged over the seeds. ``agreement``
is the rms difference of the two programs' levels. The pull rows give the standard deviation of
(fitted - true)/sigma over all exposures of many noise skies; it should be 1.
"""

import argparse
import logging

import numpy as np
from _common import (
    centred_error,
    our_exposures,
    report,
    rival_levels,
)  # first: it sets the number of BLAS threads

from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions
from bkgmatch.scenes import make_scene
from bkgmatch.simulate import simulate_mosaic

STATISTICS = ("mean", "median", "midpt", "mode")
GEOMETRIES = {"2x2x4": (2, 2), "3x3x4": (3, 3)}
CENTER = (150.0, 2.2)


def noise(rng: np.random.Generator) -> dict:
    """Noise alone."""
    return dict(scene=None, cosmic_rays=0.0, bad_pixels=0.0)


def stars(rng: np.random.Generator) -> dict:
    """A dense field of stars with cosmic rays and bad pixels."""
    scene = make_scene(*CENTER, 300.0, rng, nebula=0.0, n_stars=4000, fwhm=1.2)
    return dict(scene=scene, cosmic_rays=0.01, bad_pixels=0.005)


def miri(rng: np.random.Generator) -> dict:
    """MIRI tiles with the Lyot field over a bright nebula."""
    scene = make_scene(*CENTER, 300.0, rng, nebula=10.0, n_stars=300, fwhm=1.0)
    return dict(detectors=("MIRIMAGE",), scene=scene, binning=4, noise=0.2, level_range=(20.0, 40.0))


CASES = {
    "(a) noise, defaults": (noise, "mode"),
    "(b) stars and cosmic rays, defaults": (stars, "mode"),
    "(c) MIRI with Lyot over a nebula, median": (miri, "median"),
}


def compare(name: str, seeds: int, against: str | None) -> dict:
    """Rms error of one case over the seeds."""
    recipe, skystat = CASES[name]
    ours, rival, apart = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        simulated = simulate_mosaic(**{"tiles": (2, 2), "dithers": 4, "rng": rng, "center": CENTER} | recipe(rng))
        true = np.array([e.level for e in simulated])
        levels = match_skies(our_exposures(simulated), SkyMatchOptions(skystat=skystat)).level
        ours.append(centred_error(levels, true))
        if against:
            other = rival_levels(simulated, skystat=skystat)
            rival.append(centred_error(other, true))
            apart.append(centred_error(levels, other))
    row = {"name": name, "ours": float(np.mean(ours))}
    if against:
        row |= {
            "rival": float(np.mean(rival)),
            "ratio": float(np.mean(ours) / np.mean(rival)),
            "agreement": float(np.mean(apart)),
        }
    return row


def pulls(geometry: str, skystat: str, skies: int) -> dict:
    """Width of the pulls over noise skies of one geometry."""
    rng = np.random.default_rng(2026)
    simulated = simulate_mosaic(rng=rng, tiles=GEOMETRIES[geometry], dithers=4, binning=16, **noise(rng))
    true = np.array([e.level for e in simulated])
    found = []
    for _ in range(skies):
        for exposure in simulated:
            exposure.data[:] = exposure.level + rng.normal(0, 0.02, exposure.data.shape)
        match = match_skies(our_exposures(simulated), SkyMatchOptions(skystat=skystat, zero_point="mean"))
        found.append((match.level - (true - true.mean())) / match.sigma)
    return {
        "name": f"pulls {geometry} {skystat}",
        "ours": float(np.std(found)),
        "bias": float(np.mean(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["stcal"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--skies", type=int, default=200)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [compare(name, options.seeds, options.against) for name in CASES]
    if options.skies:
        rows += [pulls(g, s, options.skies) for g in GEOMETRIES for s in STATISTICS]
    report(rows)


if __name__ == "__main__":
    main()
