"""Whole-process time of strun on an association, beside a script that only opens and saves it.

    python benchmarks/strun_overhead.py

Sixteen exposures of 2048 x 2048 are simulated into ``--out``. ``ratio`` is the median of the ratios of runs in turn.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from _common import report, timed  # first: it sets the number of BLAS threads

from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.simulated import write_exposures

OPEN_AND_SAVE = """
import sys
from jwst.datamodels import ModelLibrary
library = ModelLibrary(sys.argv[1])
with library:
    for model in library:
        model.save(sys.argv[2] + "/" + model.meta.filename.replace("_cal", "_skymatch"))
        library.shelve(model)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("strun_overhead"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    association = options.out / "mosaic_asn.json"
    if not association.exists():
        write_exposures(simulate_mosaic(rng=np.random.default_rng(1), binning=1), options.out)
    strun = [
        Path(sys.executable).with_name("strun"),
        "bkgmatch.SkyMatchStep",
        association,
        "--subtract=true",
        "--save_results=true",
        f"--output_dir={options.out / 'matched'}",
        "--maximum_cores=all",
        "--log-level=WARNING",
    ]
    copied = options.out / "copied"
    copy = [sys.executable, "-c", OPEN_AND_SAVE, association, copied]
    ours, rival = [], []
    for _ in range(options.runs):
        for folder in (options.out / "matched", copied):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        ours.append(timed(lambda: subprocess.run(strun, check=True))[0])
        rival.append(timed(lambda: subprocess.run(copy, check=True))[0])
    report(
        [
            {
                "name": "strun, 16 exposures of 2048x2048, beside opening and saving",
                "ours": float(np.median(ours)),
                "rival": float(np.median(rival)),
                "ratio": float(np.median(np.divide(ours, rival))),
            }
        ]
    )


if __name__ == "__main__":
    main()
