"""Time and memory of LevelMatchStep against the number of exposures.

    python benchmarks/level_scaling.py

Mosaics of 2 x 2, 4 x 4 and 8 x 8 MIRI tiles with 4 dithers of 256^2 pixels, so that each exposure overlaps about as
many others. ``match`` is the time of the core on arrays, ``seconds`` and ``memory_MB`` are those of the whole process
of ``strun``. ``growth`` is the factor by which the match, the process and its memory have grown since the row before,
over the factor of the number of exposures: 1 is linear.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import report, timed  # first: it sets the number of BLAS threads
from level_accuracy import measure
from level_pulls import exposures_of

from bkgmatch.levels import match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.simulated import write_exposures

FIT = "level+slope"


def one_size(side: int, folder: Path) -> dict:
    """Time the core and the step on a mosaic of ``side`` x ``side`` tiles."""
    simulated = simulate_mosaic(
        rng=np.random.default_rng(side), detectors=("MIRIMAGE",), tiles=(side, side), binning=4, noise=0.1, tilt=0.1
    )
    options = LevelMatchOptions(fit_type_dithers=FIT, fit_type_mosaic_tiles=FIT)
    exposures = exposures_of(simulated)
    match = min(timed(lambda: match_levels(exposures, options))[0] for _ in range(2))
    association = write_exposures(simulated, folder / "in")
    strun = Path(sys.executable).with_name("strun")
    command = [strun, "bkgmatch.LevelMatchStep", association, "--save_results=true", f"--output_dir={folder / 'out'}"]
    command += [f"--fit_type_dithers={FIT}", f"--fit_type_mosaic_tiles={FIT}", "--log-level=WARNING"]
    (folder / "out").mkdir()
    cost = measure(command, folder / "log")
    return {"exposures": len(simulated), "match": match, "seconds": cost["seconds"], "memory_MB": cost["memory_MB"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    rows: list[dict] = []
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            row = one_size(side, Path(folder))
        row["growth"] = ""
        if rows:
            before = rows[-1]
            factor = row["exposures"] / before["exposures"]
            grown = [row[key] / before[key] / factor for key in ("match", "seconds", "memory_MB")]
            row["growth"] = " ".join(f"{value:.2f}" for value in grown)
        rows.append(row)
    report(rows)


if __name__ == "__main__":
    main()
