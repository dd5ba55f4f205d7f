"""Time and memory of MRSIMatchStep against the number of exposures, with ``in_memory=False``.

    python benchmarks/mrs_scaling.py

Exposures of 1024 x 1032 pixels that all overlap; channel 1, degree 1, subtracted. ``match`` is the time of the core on
pixels, ``cpu_seconds`` and ``memory_MB`` (peak resident) are those of the whole process, temporary files included.
``per_pair`` is the time of the core in milliseconds for each pair of exposures.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from _common import report, timed  # first: it sets the number of BLAS threads
from jwst.datamodels import ModelContainer
from level_accuracy import measure
from stdatamodels.jwst import datamodels

from bkgmatch.exposures import SpectralExposure
from bkgmatch.spectra import match_spectra
from bkgmatch.steps.ifu_models import IFUModels
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures

CHANNEL = "1"
RUN = """
import sys
from bkgmatch import MRSIMatchStep
MRSIMatchStep.call(sys.argv[1], channel=[sys.argv[2]], subtract=True, in_memory=False)
"""


def association(path: Path, files: list[Path]) -> Path:
    """Write an association of files beside them."""
    members = [{"expname": file.name, "exptype": "science"} for file in files]
    path.write_text(
        json.dumps({"asn_type": "spec3", "asn_id": "a3001", "products": [{"name": "mrs", "members": members}]})
    )
    return path


def spectral_exposure(file: Path) -> SpectralExposure:
    """Pixels of one channel of a file, in memory."""
    with datamodels.open(file) as model:
        exposure = IFUModels(ModelContainer([model]), dqbits="~DO_NOT_USE+NON_SCIENCE").exposure(0, CHANNEL)
        pixels = exposure.read()
    return SpectralExposure(file.name, partial(lambda p: p, pixels), *pixels.finite().extent(), exposure.slice_width)


def one_size(files: list[Path]) -> dict:
    """Time the core and the step on some exposures."""
    n = len(files)
    exposures = [spectral_exposure(file) for file in files]
    match = timed(lambda: match_spectra(exposures))[0]
    command = [sys.executable, "-c", RUN, association(files[0].parent / f"first_{n}.json", files), CHANNEL]
    cost = measure(command, files[0].parent / f"log_{n}")
    return {"exposures": n, "match": match, "per_pair": 2000 * match / (n * (n - 1)), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 68])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_mrs_exposures(MRSScene(n_exposures=max(options.sizes)), folder)
        report([one_size(files[:n]) for n in options.sizes])


if __name__ == "__main__":
    main()
