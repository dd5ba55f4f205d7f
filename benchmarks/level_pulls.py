"""Pulls, (fitted - true) / sigma, of the levels and planes of LevelMatchStep's core over many simulated skies.

    python benchmarks/level_pulls.py --skies 100

The mosaics are those of level_accuracy.py at 256^2: MIRI with the Lyot field, a nebula, stars, cosmic rays and bad
pixels. ``width`` is the standard deviation of the pulls, which should be 1; ``rms`` the rms error, ``sigma`` the rms
quoted error (MJy/sr; slopes: MJy/sr per arcsec). Errors and quoted errors are relative to the mean of the mosaic.
"""

import argparse
from functools import partial

import numpy as np
from _common import report  # first: it sets the number of BLAS threads
from level_accuracy import CASES

from bkgmatch.detectors import to_plane
from bkgmatch.exposures import Exposure
from bkgmatch.levels import LevelMatch, match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.simulate import SimulatedExposure

FITS = ("level", "level+slope")


def exposures_of(simulated: list[SimulatedExposure]) -> list[Exposure]:
    """Exposures of one tile for each visit."""
    return [
        Exposure.from_arrays(
            e.name,
            e.data,
            partial(e.wcs, with_bounding_box=False),
            good=e.good,
            variance=e.err**2,
            tile=e.name.rsplit("_", 2)[0],
        )
        for e in simulated
    ]


def errors(simulated: list[SimulatedExposure], match: LevelMatch) -> np.ndarray:
    """Error of level and slopes of each exposure about its centre, less the mean plane of the mosaic."""
    truth = []
    for e, (ra, dec) in zip(simulated, match.centre, strict=True):
        middle, east, north = e.background(*_around(ra, dec))
        truth.append([middle, east - middle, north - middle])
    error = np.column_stack([match.level, match.slope]) - np.array(truth)
    east, north = to_plane(*match.centre.T, *match.centre.mean(axis=0))
    common = error[:, 0] - error[:, 1] * east - error[:, 2] * north
    error[:, 0] -= common.mean() + error[:, 1].mean() * east + error[:, 2].mean() * north
    error[:, 1:] -= error[:, 1:].mean(axis=0)
    return error


def _around(ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    """Position, and those an arcsecond to the east and to the north."""
    step = 1 / 3600
    return np.array([ra, ra + step / np.cos(np.radians(dec)), ra]), np.array([dec, dec, dec + step])


def pulls(fit: str, passes: str, skies: int, first_seed: int) -> list[dict]:
    """One row for each coefficient."""
    options = LevelMatchOptions(fit_type_dithers=fit, fit_type_mosaic_tiles=fit, passes=passes)
    found, quoted = [], []
    for seed in range(first_seed, first_seed + skies):
        simulated = CASES["256"].simulate(fit, seed)
        match = match_levels(exposures_of(simulated), options)
        found.append(errors(simulated, match))
        quoted.append(np.column_stack([match.sigma, match.slope_sigma]))
    found, quoted = np.concatenate(found), np.concatenate(quoted)
    names = ("level", "slope to the east", "slope to the north") if fit != "level" else ("level",)
    return [
        {
            "name": f"{fit}, {passes}: {name}",
            "skies": skies,
            "width": float(np.std(found[:, k] / quoted[:, k])),
            "bias": float(np.mean(found[:, k] / quoted[:, k])),
            "rms": float(np.sqrt(np.mean(found[:, k] ** 2))),
            "sigma": float(np.sqrt(np.mean(quoted[:, k] ** 2))),
        }
        for k, name in enumerate(names)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skies", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    rows = [
        row
        for fit in FITS
        for passes in ("sequence", "joint")
        for row in pulls(fit, passes, options.skies, options.seed)
    ]
    report(rows)


if __name__ == "__main__":
    main()
