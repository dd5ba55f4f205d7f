"""From relative levels to levels: the zero point, and the methods that use the sky of whole exposures."""

from collections.abc import Sequence

import numpy as np

from bkgmatch.exposures import Exposure
from bkgmatch.options import ZERO_POINT_POLICIES, SkyMatchOptions
from bkgmatch.solve import Solution

__all__ = ["check_zero_point", "levels"]


def check_zero_point(exposures: Sequence[Exposure], options: SkyMatchOptions) -> None:
    """
    Check that the zero point can be found.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    options : SkyMatchOptions
        Options.

    Raises
    ------
    ValueError
        If an exposure that is named, a dedicated background or a time is not there.
    """
    names = [e.name for e in exposures]
    if options.zero_point not in (*ZERO_POINT_POLICIES, *names):
        raise ValueError(
            f"zero_point={options.zero_point!r} is neither one of {', '.join(ZERO_POINT_POLICIES)} nor the name of "
            f"an exposure ({names[0]}, ...)"
        )
    if options.zero_point == "background":
        if not any(e.is_background for e in exposures):
            raise ValueError("zero_point='background' needs members of exptype 'background' in the association")
        timeless = [e.name for e in exposures if e.time is None or not np.isfinite(e.time)]
        if timeless:
            raise ValueError(f"zero_point='background' needs the time of each exposure; {timeless[0]} has none")


def levels(
    exposures: Sequence[Exposure],
    options: SkyMatchOptions,
    groups: np.ndarray,
    solution: Solution,
    sky: np.ndarray,
    sigma: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the level of each exposure by the sky method.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    options : SkyMatchOptions
        Options.
    groups : ndarray of int, shape (n,)
        Group of each exposure.
    solution : Solution
        Relative levels of the groups, with mean zero over each component.
    sky, sigma : ndarray, shape (n,)
        Statistic of each whole exposure and its error.

    Returns
    -------
    level, error : ndarray, shape (n,)
        NaN where there is none.
    """
    lowest, lowest_error = _lowest_of_group(groups, sky, sigma)
    if not options.matches:
        dead = ~np.isfinite(lowest)
        level, error = lowest, lowest_error
        if options.is_global:
            level, error = _lowest_of_all(np.zeros(len(level), dtype=int), level, error)
        return np.where(dead, np.nan, level)[groups], np.where(dead, np.nan, error)[groups]
    for i, exposure in enumerate(exposures):
        is_named = exposure.name == options.zero_point and exposure.name not in ZERO_POINT_POLICIES
        if is_named and solution.component[groups[i]] < 0:
            raise ValueError(f"zero_point={exposure.name}: this exposure overlaps no other; choose one that does")
    matched = solution.coefficients[:, 0].copy()
    error = np.hypot(np.sqrt(solution.covariance[:, 0, 0]), _rounding(matched, solution.component))
    scope = solution.component if options.zero_point_scope == "component" else np.minimum(solution.component, 0)
    backgrounds = np.array([i for i, e in enumerate(exposures) if e.is_background and np.isfinite(sky[i])], dtype=int)
    for inside, members in zip(_members(scope), _members(scope[groups]), strict=True):
        matched[inside] += _zero_point(exposures, options, groups, matched, inside, members, sky, backgrounds)
    if options.is_global:
        return _add_global(groups, options, scope, matched, error, lowest, lowest_error)
    return matched[groups], error[groups]


def _add_global(
    groups: np.ndarray,
    options: SkyMatchOptions,
    scope: np.ndarray,
    matched: np.ndarray,
    error: np.ndarray,
    lowest: np.ndarray,
    lowest_error: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Add the lowest sky that remains after matching; groups that overlap nothing count as matched at zero."""
    alone = scope < 0
    dead = alone & ~np.isfinite(lowest)
    relative, relative_error = np.where(alone, 0, matched), np.where(alone, 0, error)
    single = scope.max(initial=-1) + 1 + np.cumsum(alone)
    sets = np.where(alone, single, scope) if options.zero_point_scope == "component" else np.zeros_like(scope)
    base, base_error = _lowest_of_all(sets, lowest - relative, lowest_error)
    total_error = np.hypot(relative_error, base_error)
    return np.where(dead, np.nan, relative + base)[groups], np.where(dead, np.nan, total_error)[groups]


def _rounding(level: np.ndarray, component: np.ndarray) -> np.ndarray:
    """Return the rounding of levels: each is a difference of numbers as large as the largest of its component."""
    largest = np.zeros(component.max(initial=-1) + 1)
    inside = component >= 0
    np.maximum.at(largest, component[inside], np.abs(level[inside]))
    return np.finfo(float).eps * np.append(largest, np.nan)[component]


def _lowest_of_group(groups: np.ndarray, sky: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least sky of the members of each group, NaN if none has any."""
    lowest, error = (np.full(groups.max() + 1, np.nan) for _ in range(2))
    for i in np.argsort(-sky):
        if np.isfinite(sky[i]):
            lowest[groups[i]], error[groups[i]] = sky[i], sigma[i]
    return lowest, error


def _lowest_of_all(sets: np.ndarray, level: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least level of each set, for all of its members."""
    least, least_error = _lowest_of_group(sets, level, error)
    return least[sets], least_error[sets]


def _members(number: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each number from 0 on."""
    order = np.argsort(number, kind="stable")
    return np.split(order, np.searchsorted(number[order], np.arange(number.max(initial=-1) + 2)))[1:-1]


def _zero_point(
    exposures: Sequence[Exposure],
    options: SkyMatchOptions,
    groups: np.ndarray,
    matched: np.ndarray,
    inside: np.ndarray,
    members: np.ndarray,
    sky: np.ndarray,
    backgrounds: np.ndarray,
) -> float:
    """Return what to add to the levels of some groups, which have mean zero over each component."""
    policy = options.zero_point
    named = [i for i in members if exposures[i].name == policy and policy not in ZERO_POINT_POLICIES]
    if named:
        return -matched[groups[named[0]]]
    if policy == "background":
        if not len(backgrounds):
            raise ValueError("zero_point='background': no dedicated background has good pixels; choose another")
        targets = [i for i in members if not exposures[i].is_background] or members.tolist()
        gaps = np.abs(np.subtract.outer(*(np.array([exposures[i].time for i in s]) for s in (targets, backgrounds))))
        nearest = gaps == gaps.min()  # several: the detectors of one background have one time
        known = sky[backgrounds[nearest.any(axis=0)]]
        return float(np.median(known) - np.median(matched[groups[np.array(targets)[nearest.any(axis=1)]]]))
    if policy == "mean":
        return 0.0
    is_low = policy == "lowest" or (policy != "highest" and options.match_down)
    return -(matched[inside].min() if is_low else matched[inside].max())
