"""jwst's MRSIMatchStep (removed after 1.19.2, needs wiimatch) with its default parameters but the degree.

    python mrs_imatch.py FOLDER OUT.json [--degree 1] [--channels 1]

FOLDER is what `bkgmatch.steps.simulated_mrs.write_mrs_exposures` wrote, with this version of jwst or an older one.
OUT.json holds the status and the polynomials of each file, and the CPU seconds of the step.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jwst.cube_build import CubeBuildStep
from jwst.mrs_imatch import MRSIMatchStep
from stdatamodels.jwst import datamodels


def open_exposures(folder: Path, channels: str) -> list:
    """Open the exposures; the step knows no option for channels, but looks them up in the metadata."""
    models = [datamodels.open(path) for path in sorted(folder.glob("*_cal.fits"))]
    for model in models:
        model.meta.instrument.channel = channels
    return models


def match(models: list, degree: int, cubepar: Path) -> float:
    """Run the step; without the end of ``Step.run``, which asks CRDS for its context. Returns CPU seconds."""
    CubeBuildStep.get_reference_file = lambda *_: str(cubepar)
    start = time.process_time()
    MRSIMatchStep(bkg_degree=degree).process(models)
    return time.process_time() - start


def polynomials(model) -> dict[str, dict]:
    """Degree, reference point and coefficients of each channel."""
    keys = "degree", "refpoint", "coefficients"
    return {p.channel: {key: list(getattr(p, key)) for key in keys} for p in model.meta.background.polynomial_info}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--degree", type=int, default=1)
    parser.add_argument("--channels", default="1")
    options = parser.parse_args()
    models = open_exposures(options.folder, options.channels)
    seconds = match(models, options.degree, options.folder / "cubepar.fits")
    result = {
        "step_cpu_seconds": seconds,
        "status": {m.meta.filename: m.meta.cal_step.mrs_imatch for m in models},
        "polynomials": {m.meta.filename: polynomials(m) for m in models},
    }
    options.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
