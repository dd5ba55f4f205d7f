"""Time sky matching without I/O, beside stcal's.

    python benchmarks/skymatch_speed.py --against stcal

Each case prints the medians of the wall-clock time of both programs, run in turn on the same arrays and WCS, and the
ratio. ``agreement`` is the largest difference of the recovered levels in units of their quoted error.
"""

import argparse
import logging
from functools import partial

import numpy as np
from _common import our_exposures, report, rival_levels, timed  # first: it sets the number of BLAS threads

from bkgmatch.execution import threads
from bkgmatch.match import match_skies
from bkgmatch.simulate import simulate_mosaic

CASES = {
    "9 tiles x 4 dithers of 2048x2048, 1 thread": dict(tiles=(3, 3), dithers=4, binning=1, cores=1),
    "9 tiles x 4 dithers of 2048x2048, 2 threads": dict(tiles=(3, 3), dithers=4, binning=1, cores=2),
    "14 x 14 tiles of 256x256, 1 thread": dict(tiles=(14, 14), dithers=1, binning=8, cores=1),
}
SCALING = {"100 exposures": (10, 10), "1000 exposures": (25, 40)}


def compare(name: str, *, cores: int, runs: int, against: str | None, **mosaic: object) -> dict:
    """Time one case."""
    simulated = simulate_mosaic(noise=0.02, scene=None, rng=np.random.default_rng(1), **mosaic)
    exposures = our_exposures(simulated)
    ours, rival = [], []
    for _ in range(runs):
        with threads(cores) as work:
            seconds, match = timed(partial(match_skies, exposures, work=work))
        ours.append(seconds)
        if against:
            seconds, levels = timed(lambda: rival_levels(simulated))
            rival.append(seconds)
    row = {"name": name, "ours": float(np.median(ours))}
    if against:
        difference = (match.level - match.level.mean()) - (levels - levels.mean())
        row |= {
            "rival": float(np.median(rival)),
            "ratio": float(np.median(np.divide(rival, ours))),
            "agreement": float(np.abs(difference / match.sigma).max()),
        }
    return row


def scaling(runs: int) -> list[dict]:
    """Time per overlapping pair for mosaics of different size."""
    rows = []
    for name, tiles in SCALING.items():
        simulated = simulate_mosaic(
            tiles=tiles, dithers=1, binning=16, noise=0.02, scene=None, rng=np.random.default_rng(1)
        )
        exposures = our_exposures(simulated)
        times = [timed(partial(match_skies, exposures)) for _ in range(runs)]
        seconds, match = min(times, key=lambda pair: pair[0])
        rows.append({"name": f"ms per pair, {name}", "ours": 1e3 * seconds / len(match.pairs.first)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["stcal"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [
        compare(name, runs=options.runs, against=options.against, **case)
        for name, case in CASES.items()
        if options.only in name
    ]
    report(rows + (scaling(options.runs) if options.only in "scaling" else []))


if __name__ == "__main__":
    main()
