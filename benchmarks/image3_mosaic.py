"""What unmatched backgrounds do to a mosaic that calwebb_image3 makes, and what is left of it by each way of matching.

    python benchmarks/image3_mosaic.py --out image3_mosaic --seeds 1 2 3

3 x 3 tiles x 4 dithers of a nebula with stars, each exposure with a plane of background, go through jwst's own
pipeline without matching, with jwst's skymatch, and with LevelMatchStep as a hook of skymatch, and through
bkgmatch.Image3Pipeline; ``control`` are the same exposures, noise and cosmic rays too, without backgrounds, unmatched.

``seam_rms`` (MJy/sr): the jumps where the set of exposures changes, in the difference to the control; ``fall`` how
often it goes into that without matching. ``error_rms`` is the rms of the whole difference, less a plane: where tiles
share a narrow strip, noise bends the mosaic, without a jump. ``holes``: part of the pixels without any value, because
outlier_detection dropped all exposures. ``flagged``: pixels that no cosmic ray hit but outlier_detection flagged, also
as a ``part`` of those not hit and as a ratio ``to_control``. ``flux_bias`` (%): median of the flux of isolated stars
against the truth, and ``err``, its standard error. tests/image3.py has the measures. With several seeds, rms are over
all, and stars and pixels of all are taken together. ``OUT/image3_mosaic.png`` shows the first.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _common import report, timed  # first: it sets the number of BLAS threads

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import matplotlib.pyplot as plt
import numpy as np
from crds_cache import crds_cache
from image3 import (
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
from numpy.typing import NDArray

SHOWN = UNMATCHED, JWST, OURS, CONTROL


@dataclass(frozen=True)
class Measured:
    """One run of one seed."""

    image: NDArray
    seconds: float
    seams: float
    error: float
    holes: float
    flagged: int
    not_hit: int
    flux_errors: NDArray


def measure(seed: int, binning: int, runs: Sequence[str], out: Path) -> dict[str, Measured]:
    """Simulate, run all, and measure."""
    sky = mosaic(seed, binning=binning)
    associations = sky.write(out)
    made = {run: timed(lambda r=run: build_mosaic(r, associations[r], out / r)) for run in runs}
    control = made[CONTROL][1]
    seen_by = coverage(control)
    errors = {run: mismatch(image.data, control.data, seen_by) for run, (_, image) in made.items()}
    return {
        run: Measured(
            image.data,
            seconds,
            seam_rms(errors[run], seen_by),
            float(np.nanstd(errors[run])),
            float(np.mean(np.isnan(image.data)[seen_by > 0])),
            *good_pixels_flagged(out / run, sky.exposures),
            flux_errors(image, sky.scene),
        )
        for run, (seconds, image) in made.items()
    }


def row(run: str, seeds: Sequence[dict[str, Measured]]) -> dict:
    """Summarize a run over seeds."""
    seams, unmatched = (np.sqrt(np.mean([s[name].seams ** 2 for s in seeds])) for name in (run, UNMATCHED))
    error_rms = np.sqrt(np.mean([s[run].error ** 2 for s in seeds]))
    flagged, control = (sum(s[name].flagged for s in seeds) for name in (run, CONTROL))
    bias, error = typical(100 * np.concatenate([s[run].flux_errors for s in seeds]))
    return {
        "run": run,
        "seam_rms": float(seams),
        "fall": float(unmatched / seams) if seams else np.inf,
        "error_rms": float(error_rms),
        "holes": float(np.mean([s[run].holes for s in seeds])),
        "flagged": flagged,
        "part": flagged / sum(s[run].not_hit for s in seeds),
        "to_control": flagged / control,
        "flux_bias": bias,
        "err": error,
        "seconds": float(np.mean([s[run].seconds for s in seeds])),
    }


def picture(images: dict[str, NDArray], path: Path) -> None:
    """Draw mosaics side by side, less the median of each, holes red; one stretch for all."""
    gray = plt.get_cmap("gray").with_extremes(bad="tab:red")
    figure, axes = plt.subplots(1, len(images), figsize=(3.4 * len(images), 3.6), layout="constrained", squeeze=False)
    low, high = np.nanpercentile(images[CONTROL] - np.nanmedian(images[CONTROL]), (0.5, 97))
    for axis, (name, image) in zip(axes[0], images.items(), strict=True):
        shown = axis.imshow(image - np.nanmedian(image), origin="lower", vmin=low, vmax=high, cmap=gray)
        axis.set(xticks=[], yticks=[], title=name)
    figure.colorbar(shown, ax=axes, label="MJy/sr, less the median", shrink=0.8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("image3_mosaic"), help="keeps exposures, mosaics, the picture")
    parser.add_argument("--binning", type=int, default=4, help="exposures have 2048 / binning pixels a side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help=f"{UNMATCHED}, {CONTROL} must be there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    out = options.out.absolute()
    os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
    if not (out / "crds").exists():
        crds_cache(out / "crds")
    os.environ["CRDS_PATH"] = str(out / "crds")
    seeds = [measure(seed, options.binning, options.runs, out / f"{options.binning}_{seed}") for seed in options.seeds]
    report([row(run, seeds) for run in options.runs])
    shown = [run for run in SHOWN if run in options.runs] if OURS in options.runs else [UNMATCHED, JWST, HOOK, CONTROL]
    picture({run: seeds[0][run].image for run in shown}, out / "image3_mosaic.png")


if __name__ == "__main__":
    main()
