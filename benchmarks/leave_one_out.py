"""Time and memory of merge_others, leave one out, beside numpy on the others of one target after another.

    python benchmarks/leave_one_out.py [--sizes 12 40 100] [--full]

Exposures of 1024 x 1032 pixels: a sky, noise, a cosmic ray in 0.1 % of the pixels, and 15 % of the pixels masked.
``seconds`` is our time for all targets. ``brute_seconds`` is that of np.nanmedian of the others, or, for the mean, of
one np.nanmedian of all exposures for the rejection and then np.nanmean of the others; it is the shortest of
``brute_targets`` targets, scaled to all (``--full``: the sum of all). Our result is checked against these targets
before anything is printed: the same bits for the median, the rounding of np.nanmean in float32 for the mean.
``ratio`` is brute_seconds over seconds, ``ratio_to_nanmedian`` that of np.nanmedian of the others for either method.

``peak`` is the memory of a fresh process with ``out=stack``, at its highest, above that just before the stack was
allocated, in units of the stack (``stack_MB``); the stack itself is 1, the counts that are returned 0.5.
"""

import argparse
import multiprocessing
import resource
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from _common import report, timed  # first: it sets the number of BLAS threads

from bkgmatch.leave_one_out import merge_others

SHAPE = (1024, 1032)
MASKED = 0.15
HIT = 0.001
METHODS = ("median", "mean")
BRUTE_TARGETS = 3
NOISE = np.ones(SHAPE, np.float32)
STATUS = Path("/proc/self/status")


def fill(stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write a scene into a stack, one exposure at a time so that this needs little memory."""
    y, x = np.indices(SHAPE, dtype=np.float32)
    sky = 100 + 3 * np.sin(x / 90) * np.cos(y / 70)
    for exposure in stack:
        rng.standard_normal(dtype=np.float32, out=exposure)
        exposure += sky
        chance = rng.random(SHAPE, dtype=np.float32)
        exposure[chance < MASKED] = np.nan
        exposure[chance > 1 - HIT] += 1000
    return stack


def others(n: int) -> np.ndarray:
    """All but the target."""
    return ~np.eye(n, dtype=bool)


def options(method: str) -> dict:
    """Keywords of a call: the mean rejects."""
    return {"method": method, "noise": NOISE} if method == "mean" else {"method": method}


def memory(name: str) -> float:
    """Resident bytes of this process: now (VmRSS), or the most so far (VmHWM)."""
    if STATUS.exists():  # ru_maxrss would begin at the peak of the process that started this one
        (line,) = (text for text in STATUS.read_text().splitlines() if text.startswith(name))
        return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def peak(n: int, method: str) -> float:
    """Highest memory above that before the stack, in units of the stack."""
    before = memory("VmRSS")
    stack = fill(np.empty((n, *SHAPE), np.float32), np.random.default_rng(1))
    _, count = merge_others(stack, others(n), out=stack, **options(method))
    assert count.shape == stack.shape
    return (memory("VmHWM") - before) / stack.nbytes


def peaks(sizes: list[int]) -> dict[tuple[int, str], float]:
    """Run ``peak`` for each size and method, each in a process of its own."""
    cases = [(n, method) for n in sizes for method in METHODS]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(cases, pool.map(peak, *zip(*cases, strict=True)), strict=True))


def brute(stack: np.ndarray, method: str, targets: list[int]) -> tuple[float, list[np.ndarray]]:
    """Seconds for all targets, from those of the given ones, and the results of these."""
    n, once = len(stack), 0.0
    if method == "mean":
        once, stack = timed(lambda: without_outliers(stack))
    merge = np.nanmedian if method == "median" else np.nanmean
    results = [timed(lambda t=t: merge(stack[others(n)[t]], axis=0)) for t in targets]
    seconds = [spent for spent, _ in results]
    total = sum(seconds) if len(targets) == n else n * min(seconds)  # not what else the machine did meanwhile
    return once + total, [value for _, value in results]


def without_outliers(stack: np.ndarray) -> np.ndarray:
    """NaN where a pixel is more than three sigma from the median of all exposures, the lower one of an even number."""
    middle = np.nanquantile(stack, 0.5, axis=0, method="lower")
    return np.where(np.abs(stack - middle) > 3 * NOISE, np.float32(np.nan), stack)


def check(method: str, n: int, found: np.ndarray, expected: np.ndarray) -> None:
    """Our result is that of numpy."""
    if method == "median":
        same = np.isnan(expected) | (found.view(np.uint32) == expected.view(np.uint32))
        assert same.all(), f"N={n}: {np.sum(~same)} medians differ"
        assert np.array_equal(np.isnan(found), np.isnan(expected))
    else:  # np.nanmean adds up float32: its rounding grows with their number
        rounding = 1e-6 + n * np.spacing(np.float32(np.nanmax(np.abs(expected))))
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)


def one_size(n: int, highest: dict[tuple[int, str], float], *, full: bool) -> list[dict]:
    """Time both methods, and numpy, on one stack."""
    stack = fill(np.empty((n, *SHAPE), np.float32), np.random.default_rng(1))
    targets = list(range(n)) if full else np.linspace(0, n - 1, min(n, BRUTE_TARGETS)).astype(int).tolist()
    rows = []
    for method in METHODS:
        seconds, (value, _) = timed(lambda m=method: merge_others(stack, others(n), **options(m)))
        brute_seconds, expected = brute(stack, method, targets)
        for target, merged in zip(targets, expected, strict=True):
            check(method, n, value[target], merged)
        rows.append(
            {
                "exposures": n,
                "method": method,
                "seconds": seconds,
                "brute_seconds": brute_seconds,
                "brute_targets": f"{len(targets)} of {n}" + ("" if len(targets) == n else ", scaled"),
                "ratio": brute_seconds / seconds,
                "stack_MB": stack.nbytes / 2**20,
                "peak": highest[n, method],
            }
        )
    for row in rows:
        row["ratio_to_nanmedian"] = rows[0]["brute_seconds"] / row["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 40], help="numbers of exposures")
    parser.add_argument("--full", action="store_true", help="measure numpy on all targets")
    arguments = parser.parse_args()
    highest = peaks(arguments.sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of pixels without any value
        report([row for n in arguments.sizes for row in one_size(n, highest, full=arguments.full)])


if __name__ == "__main__":
    main()
