"""Steps between MRS exposures in the cube that jwst's calwebb_spec3 builds, without MRSIMatchStep and with it.

    python benchmarks/mrs_cubes.py --out mrs_cubes

Four exposures of channel 1 with known backgrounds go through jwst's own pipeline, with MRSIMatchStep as a hook before
outlier_detection. ``rms_step`` (MJy/sr) is what different sets of exposures differ by in the cube (tests/spec3.py),
``ratio`` how often it goes into that of the cube without matching. ``OUT/mrs_cubes.png`` shows some of the planes.
"""

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from _common import report, timed  # first: it sets the number of BLAS threads

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import matplotlib.pyplot as plt
import numpy as np
from crds_cache import crds_cache
from spec3 import build_cube, coverage, rms_step
from stdatamodels.jwst.datamodels import IFUCubeModel

from bkgmatch import MRSIMatchStep
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures

HOOKS = {
    "no matching": [],
    "constants": [MRSIMatchStep(subtract=True, bkg_degree=0)],
    "degree 1": [MRSIMatchStep(subtract=True)],
}
FREE = "no backgrounds"
PLANES = 40  # averaged for the picture


def exposed(scene: MRSScene, folder: Path) -> Path:
    """Write exposures, unless they are there; return their association."""
    if not (folder / "cube_asn.json").exists():
        write_mrs_exposures(scene, folder, product="cube")
    return folder / "cube_asn.json"


def picture(cubes: dict[str, IFUCubeModel], path: Path) -> None:
    """Draw the mean of some planes of each cube, near its two ends."""
    wavelength = cubes[FREE].wavetable["wavelength"].ravel()
    middles = len(wavelength) // 6, 5 * len(wavelength) // 6
    figure, axes = plt.subplots(len(middles), len(cubes), figsize=(2.7 * len(cubes), 5.4), layout="constrained")
    for row, middle in zip(axes, middles, strict=True):
        for axis, (name, cube) in zip(row, cubes.items(), strict=True):
            planes = np.ma.masked_invalid(cube.data[middle - PLANES // 2 : middle + PLANES // 2]).mean(axis=0)
            image = axis.imshow(planes - np.ma.median(planes), origin="lower", vmin=-12, vmax=12, cmap="RdBu_r")
            axis.set(xticks=[], yticks=[], title=f"{name}, {wavelength[middle]:.2f} µm")
    figure.colorbar(image, ax=axes, label="MJy/sr, less the median", shrink=0.8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mrs_cubes"), help="keeps exposures, cubes and the picture")
    parser.add_argument("--rows", type=int, default=1024, help="of the detector; fewer take less time")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    out = options.out.absolute()
    os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
    if not (out / "crds").exists():
        crds_cache(out / "crds")
    os.environ["CRDS_PATH"] = str(out / "crds")
    scene = MRSScene(rows=options.rows, seed=options.seed)
    association = exposed(scene, out / "exposures")
    free = exposed(replace(scene, amplitudes=(0, 0, 0)), out / "free")
    runs = {name: timed(lambda h=hooks, n=name: build_cube(association, out / n, h)) for name, hooks in HOOKS.items()}
    cubes = {name: cube for name, (_, cube) in runs.items()} | {FREE: build_cube(free, out / FREE)}
    seen_by = coverage(association, cubes[FREE])
    steps = {name: rms_step(cubes[name], cubes[FREE], seen_by) for name in HOOKS}
    rows = [{"matching": name, "rms_step": steps[name], "ratio": steps["no matching"] / steps[name]} for name in HOOKS]
    report([row | {"seconds": seconds} for row, (seconds, _) in zip(rows, runs.values(), strict=True)])
    picture(cubes, out / "mrs_cubes.png")


if __name__ == "__main__":
    main()
