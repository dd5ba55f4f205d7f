"""Lyot fields of MIRI that overlap no imager: they follow the imager's field of their own exposure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bkgmatch.exposures import LYOT, Exposure
from bkgmatch.passes import PassesSolution
from bkgmatch.reference import tile_names

__all__ = ["TIED", "tied_lyot_fields"]

TIED = "imager of the same tile, with the Lyot offset of others"
"""Zero point of a connected set of Lyot fields."""


def tied_lyot_fields(
    solution: PassesSolution, exposures: Sequence[Exposure], centres: np.ndarray
) -> tuple[PassesSolution, list[int]]:
    """
    Give Lyot fields that overlap no imager the offset from their imager's that others have, or none.

    Parameters
    ----------
    solution : PassesSolution
        Functions with their zero points.
    exposures : sequence of Exposure, length n
        Exposures.
    centres : ndarray, shape (n, 2)
        Middle of each, in the unit of the functions.

    Returns
    -------
    solution : PassesSolution
        The same, but for sets of Lyot fields alone, which are moved as a whole, and Lyot fields that overlap nothing.
        These have the imager's function with the offset, its errors, and its component.
    tied : list of int
        Connected sets that were moved.
    """
    imagers = _imagers(exposures, solution.component)
    if not imagers:
        return solution, []
    coefficients, covariance, component = (
        np.array(values) for values in (solution.coefficients, solution.covariance, solution.component)
    )
    functions = np.column_stack([np.ones(len(centres)), centres])[:, : coefficients.shape[1]]
    own = {i: coefficients[of].mean(axis=0) for i, of in imagers.items()}
    apart = {i: float((coefficients[i] - own[i]) @ functions[i]) for i in imagers if component[i] >= 0}
    holds_imagers = set(component[[e.part != LYOT for e in exposures]].tolist())
    is_fixed = set(component[[e.is_fixed for e in exposures]].tolist())
    offset = _typical({i: value for i, value in apart.items() if component[i] in holds_imagers}, exposures)
    tied = sorted({int(component[i]) for i in apart} - holds_imagers - is_fixed)
    for number in tied:
        coefficients[component == number, 0] += offset - np.mean([apart[i] for i in apart if component[i] == number])
    for i in imagers.keys() - apart.keys():
        coefficients[i], covariance[i], component[i] = own[i], covariance[imagers[i][0]], component[imagers[i][0]]
        coefficients[i, 0] += offset
    return replace(solution, coefficients=coefficients, covariance=covariance, component=component), tied


def _imagers(exposures: Sequence[Exposure], component: np.ndarray) -> dict[int, np.ndarray]:
    """Find the matched imager's fields that belong to each Lyot field: of its exposure, or else of its tile."""
    is_lyot = np.array([e.part == LYOT for e in exposures])
    tiles, groups = np.array(tile_names(exposures)), np.array([e.group for e in exposures])
    found = {}
    for i in np.flatnonzero(is_lyot & [not e.is_fixed for e in exposures]).tolist():
        of_tile = ~is_lyot & (component >= 0) & (tiles == tiles[i])
        of_exposure = of_tile & (groups == groups[i])
        if of_tile.any():
            found[i] = np.flatnonzero(of_exposure if of_exposure.any() else of_tile)
    return found


def _typical(apart: dict[int, float], exposures: Sequence[Exposure]) -> float:
    """Median over tiles of their mean offset; 0 without any."""
    tiles = np.array(tile_names([exposures[i] for i in apart]))
    values = np.array(list(apart.values()))
    return float(np.median([values[tiles == tile].mean() for tile in np.unique(tiles)])) if apart else 0.0
