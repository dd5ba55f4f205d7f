"""Sky levels from pixel-by-pixel differences: for matching skies where nebulae disturb statistics of overlaps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

import numpy as np
from scipy import sparse

from bkgmatch.differences import PairSums, join_sums
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import Exposure, Pixels, handy_factor
from bkgmatch.neighbourhoods import measure_neighbourhood, neighbourhoods, outline_of
from bkgmatch.options import LevelMatchOptions, SkyMatchOptions
from bkgmatch.pairs import Offsets
from bkgmatch.passes import Pass, solve_passes
from bkgmatch.solve import Solution, renumbered

__all__ = ["solve_differences"]


def solve_differences(
    exposures: Sequence[Exposure], groups: np.ndarray, options: SkyMatchOptions, *, work: Work = HERE
) -> tuple[Solution, Offsets]:
    """
    Find the levels of groups of exposures from differences in common cells.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    groups : ndarray of int, shape (n,)
        Group of each exposure: its members share a level.
    options : SkyMatchOptions
        Limits of pixel values, and weights.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    Solution
        Levels of the groups, mean zero over each component.
    Offsets
        Measured differences.
    """
    n, n_groups = len(exposures), int(groups.max()) + 1
    by_name = np.argsort([e.name for e in exposures])
    factor = handy_factor(exposures)
    limited = [replace(_within_limits(exposures[i], options), is_background=False) for i in by_name]
    limited = limited if factor == 1 else [exposure.times(factor) for exposure in limited]
    outlines = work.run(outline_of, limited, what="Outlining exposures", name=attrgetter("name"))
    units, together = groups[by_name], [np.zeros(n, dtype=int)]
    sums = []
    for members in neighbourhoods(limited, outlines):
        found = measure_neighbourhood(
            [limited[i] for i in members],
            [outlines[i] for i in members],
            units[members],
            [together[0][members]],
            1,
            LevelMatchOptions(min_area_percent=0.0),
            work,
        ).sums
        sums.append(found._replace(first=members[found.first], second=members[found.second]))
    pairs = join_sums(sums, 1)
    likely = pairs.normal[:, 0, 0]
    weights = pairs.npix / likely if options.weights == "npix" else np.ones(len(likely))
    full_weight = pairs.npix if options.weights == "npix" else likely * factor**2
    nothing = np.zeros(n, dtype=bool)
    member = np.zeros(n_groups, dtype=int)
    member[units] = np.arange(n)
    one_of_each = np.isin(np.arange(n), member)
    every = [Pass("match", False, together[0], nothing)]
    solution = solve_passes(units, pairs, every, nothing, 1.0, weights, one_of_each)
    result = Solution(
        solution.coefficients[member] / factor, solution.covariance[member] / factor**2, solution.component[member]
    )
    return _in_order(result), _offsets(pairs, solution.trust, full_weight, by_name, factor)


def _within_limits(exposure: Exposure, options: SkyMatchOptions) -> Exposure:
    """Leave out pixels beyond the limits of usable values."""
    lower = -np.inf if options.lower is None else options.lower
    upper = np.inf if options.upper is None else options.upper

    if np.isinf([lower, upper]).all():
        return exposure
    return exposure.changed(partial(_between, lower=lower, upper=upper), f"within {lower!r}, {upper!r}")


def _between(pixels: Pixels, lower: float, upper: float) -> Pixels:
    with np.errstate(invalid="ignore"):
        return replace(pixels, good=pixels.good & (pixels.data >= lower) & (pixels.data <= upper))


def _in_order(solution: Solution) -> Solution:
    """Renumber the components in order of their first group, with mean zero over their groups."""
    component = renumbered(solution.component)
    coefficients = solution.coefficients.copy()
    inside = component >= 0
    member = component[inside]
    mean = np.bincount(member, coefficients[inside, 0]) / np.bincount(member)
    coefficients[inside, 0] -= mean[member]
    return Solution(coefficients, solution.covariance, component)


def _offsets(
    pairs: PairSums,
    trust: np.ndarray,
    full_weight: np.ndarray,
    place_of: np.ndarray,
    factor: float,
) -> Offsets:
    error = pairs.noise() / factor
    one, two = place_of[pairs.first], place_of[pairs.second]
    count = len(one)
    return Offsets(
        first=np.minimum(one, two),
        second=np.maximum(one, two),
        offset=np.where(one < two, 1, -1) * pairs.offset() / factor,
        sigma=error,
        npix=np.rint(pairs.npix).astype(int),
        full_weight=full_weight,
        weight=trust * full_weight,
        loading=sparse.eye_array(count).tocsr(),
        scatter=sparse.diags_array(error**2, shape=(count, count)).tocsr(),
    )
