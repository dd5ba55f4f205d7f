"""Exposures that have one common grid: cells, pairs, passes and zero point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from bkgmatch.cells import CutOut, Grid, common_grid, place
from bkgmatch.differences import (
    PairFits,
    PairSums,
    Start,
    fit_pairs,
    join_sums,
    patches,
    start_solution,
    sum_patch,
)
from bkgmatch.execution import run
from bkgmatch.exposures import LYOT, Exposure
from bkgmatch.footprints import Footprint, candidate_neighbours
from bkgmatch.options import LevelMatchOptions
from bkgmatch.passes import Pass, solve_passes
from bkgmatch.reference import reference_tile, tile_names
from bkgmatch.rejection import rejected_pairs
from bkgmatch.sources import background_level, source_mask

__all__ = ["LevelPairs", "Neighbourhood", "Watch", "match_neighbourhood"]


class LevelPairs(NamedTuple):
    """
    Measured pairs.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Exposures, by their number in the input.
    step : ndarray of str, shape (n_pairs,)
        Pass that the pair belongs to.
    npix : ndarray of int, shape (n_pairs,)
        Common good cells.
    offset : ndarray, shape (n_pairs,)
        Mean difference, first less second.
    sigma : ndarray, shape (n_pairs,)
        Its standard error by noise.
    rms : ndarray, shape (n_pairs,)
        Scatter of the differences.
    residual : ndarray, shape (n_pairs,)
        Mean difference less that of the fitted functions.
    trust : ndarray, shape (n_pairs,)
        Factor on the pair's weight: less than 1 if it does not agree with the others, 0 if it was rejected.
    """

    first: np.ndarray
    second: np.ndarray
    step: np.ndarray
    npix: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray
    rms: np.ndarray
    residual: np.ndarray
    trust: np.ndarray


@dataclass(frozen=True)
class Neighbourhood:
    """
    Matched exposures of one grid.

    Parameters
    ----------
    members : ndarray of int, shape (m,)
        Their numbers.
    grid : Grid
        The grid.
    unit : float
        Unit of length of the functions, in cells.
    centres : ndarray, shape (m, 2)
        Middle of each exposure, in grid coordinates (x, y).
    coefficients : ndarray, shape (m, p)
        Function of each about the origin of the grid; NaN where there is none.
    covariance : ndarray, shape (m, p, p)
        Their covariance.
    component : ndarray of int, shape (m,)
        Connected set; -1 for exposures that overlap no other.
    loose : ndarray of bool, shape (m,)
        Exposures with a tilt that the overlaps do not determine.
    reference : tuple of str
        Zero point of each component.
    pairs : LevelPairs
        Measured pairs, exposures by their numbers.
    """

    members: np.ndarray
    grid: Grid
    unit: float
    centres: np.ndarray
    coefficients: np.ndarray
    covariance: np.ndarray
    component: np.ndarray
    loose: np.ndarray
    reference: tuple[str, ...]
    pairs: LevelPairs


Watch: TypeAlias = Callable[[Sequence[str], Neighbourhood, Sequence[CutOut]], None]


def match_neighbourhood(
    exposures: Sequence[Exposure],
    outlines: Sequence[Footprint],
    members: np.ndarray,
    passes: Sequence[Pass],
    options: LevelMatchOptions,
    cores: int,
    watch: Watch | None = None,
) -> Neighbourhood:
    """
    Match exposures that have one common grid.

    Parameters
    ----------
    exposures : sequence of Exposure
        All exposures.
    outlines : sequence of Footprint
        Their outlines.
    members : ndarray of int, shape (m,)
        Those to match.
    passes : sequence of Pass
        Passes, for all exposures.
    options : LevelMatchOptions
        Options.
    cores : int
        Number of threads.
    watch : callable, optional
        Called with names, result and cells.

    Returns
    -------
    Neighbourhood
        Their functions.
    """
    inside, near = [exposures[i] for i in members], [outlines[i] for i in members]
    passes = [one._replace(container=one.container[members], held=one.held[members]) for one in passes]
    p = 3 if any(one.slope for one in passes) else 1
    grid = common_grid(near, options.pixel_scale_ratio)
    cutouts = run(lambda i: _placed(inside[i], near[i], grid, options), range(len(inside)), cores=cores)
    unit = float(np.median([c.half for c in cutouts]))
    sums, used, start = _measured(cutouts, near, passes, p, unit, options, cores)
    sigma = np.array([np.sqrt(np.median(c.variance) * f) for c, f in zip(cutouts, start.noise, strict=True)])
    fixed = np.array([e.is_fixed for e in inside])
    kept = sums.take(used)
    solution = solve_passes(len(members), kept, passes, fixed, sigma, _weight_factors(kept, options.weight_method))
    trust = np.zeros(len(used))
    trust[used] = solution.trust
    coefficients = solution.coefficients
    reference = []
    for number in range(solution.component.max(initial=-1) + 1):
        some = np.flatnonzero(solution.component == number)
        zero, name = _zero_point(exposures, members, some, cutouts, coefficients, unit, sums, options)
        coefficients[some] -= zero
        reference.append(name)
    result = Neighbourhood(
        members=members,
        grid=grid,
        unit=unit,
        centres=np.array([c.centre for c in cutouts]),
        coefficients=coefficients,
        covariance=solution.covariance,
        component=solution.component,
        loose=solution.loose,
        reference=tuple(reference),
        pairs=LevelPairs(
            first=members[sums.first],
            second=members[sums.second],
            step=np.array([one.name for one in passes])[sums.level],
            npix=np.rint(sums.npix).astype(int),
            offset=sums.offset(),
            sigma=np.sqrt((sigma[sums.first] ** 2 + sigma[sums.second] ** 2) / sums.npix),
            rms=np.sqrt(np.maximum(sums.squares, 0) / sums.normal[:, 0, 0]),
            residual=sums.less(np.nan_to_num(coefficients)).offset(),
            trust=trust,
        ),
    )
    if watch:
        watch([e.name for e in exposures], result, cutouts)
    return result


def _measured(
    cutouts: Sequence[CutOut],
    outlines: Sequence[Footprint],
    passes: Sequence[Pass],
    p: int,
    unit: float,
    options: LevelMatchOptions,
    cores: int,
) -> tuple[PairSums, np.ndarray, Start]:
    """Measure all pairs: their sums, which of them are used, and the start that good cells were told by."""
    n = len(cutouts)
    touching = [(i, int(j)) for i, others in enumerate(candidate_neighbours(outlines)) for j in others if i < j]
    fits = fit_pairs(cutouts, touching, p, unit, cores=cores)
    rejected = rejected_pairs(fits, np.array([c.extent for c in cutouts]), options)
    start = start_solution(n, fits.take(~rejected), unit)
    containers = [one.container for one in passes]
    parts = run(lambda patch: sum_patch(*patch, cutouts, start, containers), patches(cutouts).items(), cores=cores)
    sums = join_sums(parts, p)
    return sums, ~np.isin(_keys(sums, n), _keys(fits.take(rejected), n)), start


def _placed(exposure: Exposure, outline: Footprint, grid: Grid, options: LevelMatchOptions) -> CutOut:
    pixels = exposure.read()
    if options.do_sigma_clip:
        image = np.where(pixels.good, pixels.data, np.nan)
        pixels = replace(pixels, good=pixels.good & ~source_mask(image, options))
    try:
        return place(pixels, outline, exposure.wcs, grid)
    except ValueError as error:
        raise ValueError(f"{exposure.name}: {error}") from error


def _keys(pairs: PairSums | PairFits, n: int) -> np.ndarray:
    return pairs.first * n + pairs.second


def _weight_factors(sums: PairSums, method: str) -> np.ndarray:
    """Factors that give the pairs other weights than those of maximum likelihood."""
    if method == "ml" or not len(sums.first):
        return np.ones(len(sums.first))
    likely = sums.normal[:, 0, 0]
    if method == "rms":
        wanted = likely / np.maximum(sums.squares, 1e-12 * likely)
    else:
        wanted = sums.npix if method == "npix" else np.ones(len(likely))
    return wanted / likely * likely.mean() / wanted.mean()


def _zero_point(
    exposures: Sequence[Exposure],
    members: np.ndarray,
    some: np.ndarray,
    cutouts: Sequence[CutOut],
    coefficients: np.ndarray,
    unit: float,
    sums: PairSums,
    options: LevelMatchOptions,
) -> tuple[np.ndarray, str]:
    """Find the function to subtract from those of connected exposures, and the name of what it makes zero."""
    inside = [exposures[members[i]] for i in some]
    if any(e.is_fixed for e in inside):
        return np.zeros(coefficients.shape[1]), "fixed"
    tiles = np.array(tile_names([exposures[i] for i in members]))
    touching = zip(tiles[sums.first], tiles[sums.second], strict=True)
    links = {(min(pair), max(pair)) for pair in touching if pair[0] != pair[1]}
    name = reference_tile(exposures, members[some], links, [cutouts[i] for i in some], options)
    if name == "mean":
        return coefficients[some].mean(axis=0), name
    chosen = [i for i in some if tiles[i] == name and exposures[members[i]].part != LYOT]
    zero = coefficients[chosen].mean(axis=0)
    if options.do_local_subtraction:
        images = [cutouts[i].value - cutouts[i].function(coefficients[i] - zero, unit) for i in chosen]
        zero[0] -= np.nan_to_num(background_level(images, options))
    return zero, name
