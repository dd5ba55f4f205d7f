"""Two threads against one: the matching of 36 exposures of 2048 x 2048 pixels in memory.

    python benchmarks/threads.py [--runs 3] [--threads 2] [--binning 1]

Runs take turns; ``ratio`` is the median of the ratios of the wall-clock times of neighbouring runs. Both give the same
numbers to the last bit, which is checked. ``machine`` is what as many processes gain that share nothing and each do all
of it: where cores share memory, or are shared with others, it is less than their number.
"""

import argparse
import logging
import os
from collections.abc import Callable
from functools import partial

import numpy as np
from _common import our_exposures, report, timed  # first: it sets the number of BLAS threads

from bkgmatch.execution import threads
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import LevelMatchOptions, SkyMatchOptions
from bkgmatch.simulate import simulate_mosaic

PLANES = LevelMatchOptions(fit_type_dithers="level+slope", fit_type_mosaic_tiles="level+slope")
CASES: dict[str, Callable] = {
    "sky levels": match_skies,
    "sky levels, differences": partial(match_skies, options=SkyMatchOptions(skystat="difference")),
    "levels": match_levels,
    "planes": partial(match_levels, options=PLANES),
}


def compare(name: str, match: Callable, exposures: list, *, runs: int, number: int) -> dict:
    """Time one case."""
    one, several, apart = [], [], []
    for _ in range(runs):
        seconds, alone = timed(partial(match, exposures))
        one.append(seconds)
        with threads(number) as work:
            seconds, together = timed(partial(match, exposures, work=work))
        several.append(seconds)
        np.testing.assert_array_equal(alone.level, together.level)
        apart.append(timed(partial(in_processes, partial(match, exposures), number))[0] / number)
    return {
        "name": name,
        "one_s": float(np.median(one)),
        "threads_s": float(np.median(several)),
        "ratio": float(np.median(np.divide(one, several))),
        "machine": float(np.median(np.divide(one, apart))),
    }


def in_processes(work: Callable, number: int) -> None:
    """Do the same in several processes at a time."""
    children = []
    for _ in range(number):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binning", type=int, default=1, help="of the detector, for a quick look")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    mosaic = simulate_mosaic(
        noise=0.02, scene=None, rng=np.random.default_rng(1), tiles=(3, 3), dithers=4, binning=options.binning
    )
    exposures = our_exposures(mosaic)
    report(
        [compare(name, match, exposures, runs=options.runs, number=options.threads) for name, match in CASES.items()]
    )


if __name__ == "__main__":
    main()
