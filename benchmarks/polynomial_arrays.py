"""CPU time of match_polynomials beside wiimatch.match_lsq, which solves the same equations.

    python benchmarks/polynomial_arrays.py

Images of 100^3 voxels on one grid: a common sky, a polynomial and noise in each, a fifth of the voxels masked. Both get
the arrays in memory. ``disagreement`` is the rms difference of the two fits over the voxels, in units of the rms of the
polynomials, checked before anything is printed; ``error`` and ``wiimatch_error`` are those of a fit to the truth, in
the same units. ``condition`` is the condition number of wiimatch's matrix of powers, ``ratio`` its CPU seconds over
ours.
"""

import time
from collections.abc import Callable

import numpy as np
from _common import report  # first: it sets the number of BLAS threads
from numpy.polynomial.polynomial import polyval3d
from wiimatch.containers import WMInMemoryData
from wiimatch.match import match_lsq

from bkgmatch.polynomial_arrays import match_polynomials

SHAPE = (100, 100, 100)
CASES = {"N=12, degree 1": (12, 1), "N=4, degree 2": (4, 2)}
AGREEMENT = 1e-6


def values(coefficients: np.ndarray, degree: int, coordinates: np.ndarray) -> np.ndarray:
    """Polynomials at points, shape (n, n_points)."""
    return np.array([polyval3d(*coordinates, c.reshape((degree + 1,) * 3)) for c in coefficients])


def scene(rng: np.random.Generator, n: int, degree: int) -> tuple[list, list, list, np.ndarray]:
    """Images, masks, sigmas, and the coefficients of the polynomials about the middle, of mean zero."""
    x, y, z = (i - k // 2 for i, k in zip(np.indices(SHAPE, dtype=float)[::-1], SHAPE, strict=True))
    powers = np.indices((degree + 1,) * 3).reshape(3, -1).sum(axis=0)
    true = rng.normal(size=(n, len(powers))) / 50.0**powers
    true -= true.mean(axis=0)
    sky = 5 + 3 * np.sin(x / 9) * np.cos(y / 7) * np.exp(-((z / 30) ** 2))
    sigmas = [rng.uniform(0.5, 2, SHAPE) for _ in range(n)]
    images = [
        sky + polyval3d(x, y, z, c.reshape((degree + 1,) * 3)) + s * rng.normal(size=SHAPE)
        for c, s in zip(true, sigmas, strict=True)
    ]
    return images, [rng.random(SHAPE) < 0.8 for _ in range(n)], sigmas, true


def cpu(function: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> None:
    rng, rows = np.random.default_rng(1), []
    sample = np.indices(SHAPE, dtype=float)[::-1, ::5, ::5, ::5].reshape(3, -1) - 50
    for name, (n, degree) in CASES.items():
        images, masks, sigmas, true = scene(rng, n, degree)
        seconds, found = cpu(lambda a=(images, masks, sigmas, degree): match_polynomials(*a))
        rival_seconds, (rival, matrix, *_) = cpu(
            lambda a=(images, masks, sigmas, degree): match_lsq(*a, ext_return=True, default_container=WMInMemoryData)
        )
        ours, theirs, truth = (values(c, degree, sample) for c in (found, rival, true))
        rms = np.sqrt(np.mean(truth**2))
        disagreement, error, rival_error = (
            float(np.sqrt(np.mean(d**2)) / rms) for d in (ours - theirs, ours - truth, theirs - truth)
        )
        assert disagreement < AGREEMENT, f"{name}: the two fits differ by {disagreement:.1e} of the polynomials"
        p = found.shape[1]
        rows.append(
            {
                "name": name,
                "disagreement": disagreement,
                "error": error,
                "wiimatch_error": rival_error,
                "cpu_seconds": seconds,
                "wiimatch_cpu_seconds": rival_seconds,
                "ratio": rival_seconds / seconds,
                "condition": float(np.linalg.cond(matrix[p:, p:])),
            }
        )
    report(rows)


if __name__ == "__main__":
    main()
