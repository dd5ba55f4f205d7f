"""How large tilts and other shapes may plausibly be: for those that the overlaps do not determine."""

import numpy as np
from scipy import sparse

from bkgmatch.solve import NormalSystem

__all__ = ["HELD", "LOOSE", "plausible_tilt", "tilt_variances"]

LOOSE = 100.0
"""Largest plausible coefficient, in standard deviations of a cell."""

HELD = 0.5
"""A coefficient is held by the prior if its error is more than this part of the prior's."""

_TILTS = 3.0


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
    variances = tilt_variances(system, system.normal).max(axis=1)
    known = free & np.isfinite(variances)
    best = known & (variances <= np.median(variances[known])) if known.any() else known
    tilts = found[best, 1:]
    return float(np.clip(_TILTS * np.sqrt(np.mean(tilts**2)), sigma, LOOSE * sigma)) if tilts.size else sigma


def tilt_variances(system: NormalSystem, spread: sparse.csr_array) -> np.ndarray:
    """Return the variances, shape (n, p - 1), of all coefficients but the first; NaN for unknowns without pairs."""
    if system.p == 1:
        return np.zeros((system.n, 0))
    return np.einsum("naa->na", system.covariance(spread))[:, 1:]
