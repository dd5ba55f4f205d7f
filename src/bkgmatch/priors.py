"""How large tilts and other shapes may plausibly be: for those that the overlaps do not determine."""

import numpy as np

from bkgmatch.solve import NormalSystem

__all__ = ["HELD", "LOOSE", "plausible_tilt", "tilt_variances"]

LOOSE = 100.0
"""Width of a prior with which it is found out what the overlaps determine, in standard deviations of a cell."""

HELD = 0.5
"""A coefficient is held by the prior if its error is more than this part of the prior's."""

_TILTS = 3.0
_TIES = 1 + 1e-6  # equal but for rounding


def plausible_tilt(system: NormalSystem, found: np.ndarray, free: np.ndarray, sigma: float) -> float:
    """
    Find three times the rms of the tilts that are determined best.

    Parameters
    ----------
    system : NormalSystem
        Equations.
    found : ndarray, shape (n, p)
        Their solution.
    free : ndarray of bool, shape (n,)
        Unknowns that are not held.
    sigma : float
        Noise of a cell: the least that is plausible.

    Returns
    -------
    float
        Standard deviation of a prior.
    """
    variances = tilt_variances(system).max(axis=1)
    known = free & np.isfinite(variances)
    best = known & (variances <= _TIES * np.median(variances[known])) if known.any() else known
    tilts = found[best, 1:]
    return float(max(_TILTS * np.sqrt(np.mean(tilts**2)), sigma)) if tilts.size else sigma


def tilt_variances(system: NormalSystem) -> np.ndarray:
    """Variances, shape (n, p - 1), of all coefficients but the first."""
    return system.variances()[:, 1:] if system.p > 1 else np.zeros((system.n, 0))
