"""Match the backgrounds of exposures: the stages in order. Read this first."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bkgmatch.display import Displayed, Rows
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import Exposure, check_names, group_numbers, named
from bkgmatch.footprints import Footprint, candidate_neighbours, footprint
from bkgmatch.options import SkyMatchOptions
from bkgmatch.overlaps import OverlapMap, overlap_map
from bkgmatch.pairs import Measurement, Offsets, measure, pair_offsets
from bkgmatch.sky_differences import solve_differences
from bkgmatch.skystats import SkyStatistic
from bkgmatch.solve import residuals, solve_offsets
from bkgmatch.zero_point import check_zero_point, levels

__all__ = ["SkyMatch", "match_skies"]

log = logging.getLogger("stpipe.bkgmatch")

MATCHED, MEASURED, NO_OVERLAP, NO_PIXELS = "matched", "measured", "no overlap", "no good pixels"


@dataclass(frozen=True, repr=False)
class SkyMatch(Displayed):
    """
    Sky levels of exposures.

    Parameters
    ----------
    names : tuple of str
        Names of the exposures, in the order of the input.
    groups : ndarray of int, shape (n,)
        Group of each exposure.
    component : ndarray of int, shape (n,)
        Connected set of exposures that each belongs to; -1 if it overlaps no other group.
    level, sigma : ndarray, shape (n,)
        Level to subtract and its standard error; NaN where there is none. With ``skymethod='match'`` the error is
        relative to the mean of the component: the zero point is free of error by definition.
    sky : ndarray, shape (n,)
        Statistic of the whole exposure.
    npix : ndarray of int, shape (n,)
        Pixels that the statistic of the whole exposure used.
    status : tuple of str
        ``matched``, ``measured``, ``no overlap`` or ``no good pixels``.
    pairs : Offsets
        Measured differences.
    residual : ndarray, shape (n_pairs,)
        Measured minus fitted difference of each pair.
    """

    names: tuple[str, ...]
    groups: np.ndarray
    component: np.ndarray
    level: np.ndarray
    sigma: np.ndarray
    sky: np.ndarray
    npix: np.ndarray
    status: tuple[str, ...]
    pairs: Offsets
    residual: np.ndarray

    def _rows(self) -> Rows:
        return Rows(self.names, self.level, self.sigma, self.status)

    def __str__(self) -> str:
        rows = zip(self.names, self.component, self.level, self.sigma, self.status, strict=True)
        lines = [f"{name}  {c:3d}  {level:12.6g} +- {sigma:9.3g}  {s}" for name, c, level, sigma, s in rows]
        return "\n".join(lines)


def match_skies(
    exposures: Sequence[Exposure], options: SkyMatchOptions | None = None, *, work: Work = HERE
) -> SkyMatch:
    """
    Measure and match the sky levels of exposures.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures with unique names.
    options : SkyMatchOptions, optional
        Options; the defaults are those of the step.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    SkyMatch
        The levels. Nothing is subtracted.

    Raises
    ------
    ValueError
        If there are no exposures, names repeat, an exposure cannot be used, or the zero point is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.exposures import Exposure
    >>> from bkgmatch.match import match_skies
    >>> sky = np.random.default_rng(1).normal(0, 0.01, (2, 64, 64))
    >>> exposures = [
    ...     Exposure.from_arrays(name, data + level, lambda x, y, s=shift: ((x + s) / 3600, y / 3600))
    ...     for name, data, level, shift in [("a", sky[0], 5.0, 0), ("b", sky[1], 7.0, 30)]
    ... ]
    >>> print(match_skies(exposures).level.round(1))
    [0. 2.]
    """
    with threadpool_limits(1, "blas"):  # small matrices in many threads are slower, not faster
        return _match_skies(exposures, options or SkyMatchOptions(), work)


def _match_skies(exposures: Sequence[Exposure], options: SkyMatchOptions, work: Work) -> SkyMatch:
    if not exposures:
        raise ValueError("there are no exposures to match")
    check_names(exposures)
    check_zero_point(exposures, options)
    groups = group_numbers(exposures, per_detector=options.level_per == "detector")
    measurements = _measure_all(exposures, groups, options, work)
    if options.by_differences:
        solution, offsets = solve_differences(exposures, groups, options, work=work)
    else:
        offsets = pair_offsets(measurements, weights=options.weights)
        solution, offsets = solve_offsets(offsets, groups, robust=options.weights == "robust")
    sky, sigma, npix = (np.array([getattr(m.sky, f)[0] for m in measurements]) for f in ("value", "sigma", "npix"))
    level, error = levels(exposures, options, groups, solution, sky, sigma)
    return SkyMatch(
        names=tuple(e.name for e in exposures),
        groups=groups,
        component=solution.component[groups],
        level=level,
        sigma=error,
        sky=sky,
        npix=npix,
        status=tuple(_status(m, level[i], solution.component[groups[i]]) for i, m in enumerate(measurements)),
        pairs=offsets,
        residual=residuals(offsets, groups, solution),
    )


def _measure_all(
    exposures: Sequence[Exposure], groups: np.ndarray, options: SkyMatchOptions, work: Work
) -> list[Measurement]:
    statistic = SkyStatistic(
        "median" if options.skystat == "difference" else options.skystat,
        options.lower,
        options.upper,
        options.nclip,
        options.lsigma,
        options.usigma,
        options.binwidth,
    )
    outlines = work.run(
        partial(_outline, options=options), exposures, what="Outlining exposures", name=attrgetter("name")
    )
    if options.overlap == "exact":
        outlines = [replace(outline, exposure=e) for outline, e in zip(outlines, exposures, strict=True)]
    compares = options.matches and not options.by_differences
    neighbours = candidate_neighbours(outlines) if compares else [np.empty(0, dtype=int)] * len(exposures)
    rank = np.argsort(np.argsort([e.name for e in exposures]))
    items = [
        _Near(
            exposures[i], outlines[i], [outlines[j] for j in near], near, groups[near], rank[near], groups[i], rank[i]
        )
        for i, near in enumerate(neighbours)
    ]
    return work.run(
        partial(_measure, statistic=statistic), items, what="Measuring levels", name=lambda near: near.exposure.name
    )


class _Near(NamedTuple):
    """An exposure and those near it: all that its measurement needs."""

    exposure: Exposure
    outline: Footprint
    outlines: list[Footprint]
    others: np.ndarray
    groups: np.ndarray
    ranks: np.ndarray
    group: int
    rank: int


def _measure(near: _Near, statistic: SkyStatistic) -> Measurement:
    with named(near.exposure.name):
        overlaps, others = _between_groups(overlap_map(near.outline, near.outlines), near)
    return measure(near.exposure.read(), overlaps, others, statistic)


def _outline(exposure: Exposure, options: SkyMatchOptions) -> Footprint:
    good = exposure.read().good
    if good.ndim != 2:
        raise ValueError(f"{exposure.name}: images must have 2 dimensions, this one has {good.ndim}")
    with named(exposure.name):
        return footprint(good, exposure.wcs, overlap=options.overlap, stepsize=options.stepsize)


def _between_groups(overlaps: OverlapMap, near: _Near) -> tuple[OverlapMap, np.ndarray]:
    """
    Leave the overlaps with other groups, each piece of sky once for each pair of groups.

    Where members of one group overlap each other, the first of them by name stands for the group.
    """
    order = np.argsort(near.ranks)
    members, others = overlaps.members[:, order], near.others[order]
    groups, ranks = near.groups[order], near.ranks[order]
    usable = members.copy()
    for group in np.unique(groups):
        columns = np.flatnonzero(groups == group)
        if group == near.group:
            usable[members[:, columns[ranks[columns] < near.rank]].any(axis=1)] = False
            usable[:, columns] = False
        elif columns.size > 1:
            usable[:, columns] &= np.cumsum(members[:, columns], axis=1) == 1
    kept = usable.any(axis=0)
    return OverlapMap(overlaps.runs, usable[:, kept]), others[kept]


def _status(measurement: Measurement, level: float, component: int) -> str:
    if measurement.sky.npix[0] == 0 and not np.isfinite(level):
        return NO_PIXELS
    if component >= 0:
        return MATCHED
    return MEASURED if np.isfinite(level) else NO_OVERLAP
