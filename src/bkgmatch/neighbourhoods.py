"""Exposures that have one common grid: cells, pairs, passes and zero point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from bkgmatch.cells import CutOut, place, raised
from bkgmatch.differences import PairSums, Start, sum_patches
from bkgmatch.execution import Work
from bkgmatch.exposures import LARGEST, LYOT, Exposure, Pixels, named
from bkgmatch.footprints import Footprint, candidate_neighbours, footprint
from bkgmatch.grids import Grid, common_grid
from bkgmatch.journal import fingerprint
from bkgmatch.lyot import TIED, tied_lyot_fields
from bkgmatch.options import LevelMatchOptions
from bkgmatch.pair_fits import PairFits, fit_pairs
from bkgmatch.passes import Pass, PassesSolution, solve_passes
from bkgmatch.reference import reference_tile, tile_names
from bkgmatch.rejection import rejected_pairs
from bkgmatch.solve import connected
from bkgmatch.sources import background_level, source_mask
from bkgmatch.starts import better_start, start_solution
from bkgmatch.stored import Shelf

__all__ = [
    "LevelPairs",
    "Measured",
    "Neighbourhood",
    "Watch",
    "match_neighbourhood",
    "measure_neighbourhood",
    "neighbourhoods",
    "outline_of",
]

_LEAST_RMS = 1e-3  # of a pair, as a part of that of most


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
        Scatter of the differences about approximate functions, with which good cells are told from bad ones.
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


class Measured(NamedTuple):
    """
    Measured differences of exposures on a common grid.

    Parameters
    ----------
    grid : Grid
        The grid.
    cutouts : list of CutOut
        Exposures on it.
    unit : float
        Unit of length of planes, in cells.
    sums : PairSums
        Sums of all pairs.
    used : ndarray of bool, shape (n_pairs,)
        Pairs that are not rejected.
    sigma : float
        Typical standard deviation of a cell.
    """

    grid: Grid
    cutouts: list[CutOut]
    unit: float
    sums: PairSums
    used: np.ndarray
    sigma: float


Watch: TypeAlias = Callable[[Sequence[str], Neighbourhood, Sequence[CutOut]], None]


def outline_of(exposure: Exposure) -> Footprint:
    """
    Outline the good pixels of an exposure.

    Parameters
    ----------
    exposure : Exposure
        Exposure.

    Returns
    -------
    Footprint
        Its outline.

    Raises
    ------
    ValueError
        If the exposure cannot be used, with its name.
    """
    pixels = exposure.read()
    if pixels.good.ndim != 2:
        raise ValueError(f"{exposure.name}: images must have 2 dimensions, this one has {pixels.good.ndim}")
    with named(exposure.name):
        return footprint(_usable(pixels), exposure.wcs)


def _usable(pixels: Pixels) -> np.ndarray:
    """Good pixels whose squares single precision can hold."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN that signal, of damaged pixels; half precision
        return pixels.good & (np.abs(pixels.data) < LARGEST)


def neighbourhoods(exposures: Sequence[Exposure], outlines: Sequence[Footprint]) -> list[np.ndarray]:
    """
    Find sets of exposures whose enclosing circles touch.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures; dedicated backgrounds are not matched.
    outlines : sequence of Footprint
        Their outlines.

    Returns
    -------
    list of ndarray of int
        Numbers of the members of each set of several.
    """
    n = len(exposures)
    ours = np.array([not e.is_background for e in exposures])
    near = candidate_neighbours(outlines)
    first = np.repeat(np.arange(n), [len(others) for others in near])
    second = np.concatenate([np.empty(0, dtype=int), *near])
    used = ours[first] & ours[second]
    labels = connected(n, first[used], second[used])
    sets = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [members for members in sets if len(members) > 1]


def match_neighbourhood(
    exposures: Sequence[Exposure],
    outlines: Sequence[Footprint],
    members: np.ndarray,
    passes: Sequence[Pass],
    options: LevelMatchOptions,
    work: Work,
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
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.
    watch : callable, optional
        Called with names, result and cells.

    Returns
    -------
    Neighbourhood
        Their functions.
    """
    passes = [one._replace(container=one.container[members], held=one.held[members]) for one in passes]
    p = 3 if any(one.slope for one in passes) else 1
    measured = measure_neighbourhood(
        [exposures[i] for i in members],
        [outlines[i] for i in members],
        np.arange(len(members)),
        [one.container for one in passes],
        p,
        options,
        work,
    )
    sums, used = measured.sums, measured.used
    kept = sums.take(used)
    fixed = np.array([exposures[i].is_fixed for i in members])
    units = np.arange(len(members))
    counted = np.array([exposures[i].part != LYOT for i in members])
    weights = _weight_factors(kept, options.weight_method)
    solution = solve_passes(units, kept, passes, fixed, measured.sigma, weights, counted)
    trust = np.zeros(len(used))
    trust[used] = solution.trust
    coefficients, reference = _with_zero_points(exposures, members, measured, solution, options, work)
    centres = np.array([c.centre for c in measured.cutouts])
    solution, tied = tied_lyot_fields(
        replace(solution, coefficients=coefficients), [exposures[i] for i in members], centres / measured.unit
    )
    result = Neighbourhood(
        members=members,
        grid=measured.grid,
        unit=measured.unit,
        centres=centres,
        coefficients=solution.coefficients,
        covariance=solution.covariance,
        component=solution.component,
        loose=solution.loose,
        reference=tuple(TIED if number in tied else name for number, name in enumerate(reference)),
        pairs=LevelPairs(
            first=members[sums.first],
            second=members[sums.second],
            step=np.array([one.name for one in passes])[sums.level],
            npix=np.rint(sums.npix).astype(int),
            offset=sums.offset(),
            sigma=sums.noise(),
            rms=np.sqrt(np.maximum(sums.squares, 0) / sums.normal[:, 0, 0]),
            residual=sums.less(np.nan_to_num(solution.coefficients)).offset(),
            trust=trust,
        ),
    )
    if watch:
        watch([e.name for e in exposures], result, measured.cutouts)
    return result


def measure_neighbourhood(
    exposures: Sequence[Exposure],
    outlines: Sequence[Footprint],
    units: np.ndarray,
    containers: Sequence[np.ndarray],
    p: int,
    options: LevelMatchOptions,
    work: Work,
) -> Measured:
    """
    Measure the differences of exposures on a common grid.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    outlines : sequence of Footprint
        Their outlines.
    units : ndarray of int, shape (n,)
        Exposures that move as one from the beginning: pairs of them are not compared.
    containers : sequence of ndarray of int, shape (n,)
        For each pass, the set within which each exposure is matched.
    p : int
        1 for constants, 3 for planes.
    options : LevelMatchOptions
        Options.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    Measured
        Cells and sums.
    """
    n = len(exposures)
    grid = common_grid(outlines, options.pixel_scale_ratio)
    cutouts = work.run(
        partial(_placed, grid=grid, options=options, shelf=work.shelf),
        zip(exposures, outlines, strict=True),
        what="Putting exposures on common cells",
        name=lambda item: item[0].name,
    )
    cutouts = _with_noise(cutouts)
    unit = float(np.median([c.half for c in cutouts]))
    touching = [(i, int(j)) for i, others in enumerate(candidate_neighbours(outlines)) for j in others if i < j]
    fits = fit_pairs(cutouts, touching, p, unit, work=work)
    rejected = rejected_pairs(fits, np.array([c.extent for c in cutouts]), options)

    def added_up(start: Start) -> tuple[PairSums, np.ndarray]:
        sums = sum_patches(cutouts, start, units, containers, work=work)
        return sums, ~np.isin(_keys(sums, n), _keys(fits.take(rejected), n))

    start = start_solution(n, fits.take(~rejected), unit)
    sums, used = added_up(start)
    start = better_start(start, sums.take(used))
    sums, used = added_up(start)
    sigma = float(np.median([np.sqrt(np.median(c.variance) * f) for c, f in zip(cutouts, start.noise, strict=True)]))
    return Measured(grid, cutouts, unit, sums, used, sigma)


def _placed(item: tuple[Exposure, Footprint], grid: Grid, options: LevelMatchOptions, shelf: Shelf) -> CutOut:
    exposure, outline = item
    pixels = exposure.read()
    pixels = replace(pixels, good=_usable(pixels))
    if options.do_sigma_clip:
        image = pixels.image(less=pixels.typical())
        pixels = replace(pixels, good=pixels.good & ~source_mask(image, options))
    with named(exposure.name):
        cutout = place(pixels, outline, exposure.wcs, grid, reproject_func=options.reproject_func)
    digest = exposure.digest and fingerprint(exposure, outline, grid, options)
    return replace(cutout, value=shelf.keep(cutout.value, digest), digest=digest)


def _with_noise(cutouts: Sequence[CutOut]) -> list[CutOut]:
    """Give exposures whose noise is not known, or next to none, as of few pixels, that of the others; 1 if none is."""
    typical = np.array([np.median(c.variance) for c in cutouts])
    known = np.isfinite(typical) & (typical > LARGEST**-2)
    usual = np.median(typical[known]) if known.any() else 1.0
    rows = zip(cutouts, known, strict=True)
    return [c if seen else replace(c, variance=np.full_like(c.variance, usual)) for c, seen in rows]


def _keys(pairs: PairSums | PairFits, n: int) -> np.ndarray:
    return pairs.first * n + pairs.second


def _weight_factors(sums: PairSums, method: str) -> np.ndarray:
    """Factors that give the pairs other weights than those of maximum likelihood."""
    if method == "ml" or not len(sums.first):
        return np.ones(len(sums.first))
    likely = sums.normal[:, 0, 0]
    if method == "rms":
        wanted = 1 / _not_nothing(sums.squares / likely)
    else:
        wanted = sums.npix if method == "npix" else np.ones(len(likely))
    return wanted / likely * likely.mean() / wanted.mean()


def _not_nothing(squares: np.ndarray) -> np.ndarray:
    """Mean squares of pairs, of which those that agree exactly would have all weight."""
    positive = squares[squares > 0]
    return np.maximum(squares, _LEAST_RMS**2 * np.median(positive) if positive.size else 1.0)


def _with_zero_points(
    exposures: Sequence[Exposure],
    members: np.ndarray,
    measured: Measured,
    solution: PassesSolution,
    options: LevelMatchOptions,
    work: Work,
) -> tuple[np.ndarray, list[str]]:
    """Return functions with the zero point of each component, and what it is."""
    coefficients = solution.coefficients.copy()
    tiles = np.array(tile_names([exposures[i] for i in members]))
    touching = zip(tiles[measured.sums.first], tiles[measured.sums.second], strict=True)
    links = {(min(pair), max(pair)) for pair in touching if pair[0] != pair[1]}
    names = []
    for number in range(solution.component.max(initial=-1) + 1):
        some = np.flatnonzero(solution.component == number)
        inside = [exposures[i] for i in members[some]]
        if any(e.is_fixed for e in inside):
            names.append("fixed")
            continue
        reference = reference_tile(exposures, members[some], links, [measured.cutouts[i] for i in some], options)
        name = reference or "mean"
        tile = [i for i in some.tolist() if reference in (None, tiles[i])]
        chosen = [i for i in tile if exposures[members[i]].part != LYOT] or tile
        coefficients[some] -= coefficients[chosen].mean(axis=0)
        if options.do_local_subtraction and reference:
            background = _background(measured, chosen, coefficients, options, work)
            if np.isfinite(background):
                coefficients[some, 0] += background
            else:
                name += ", its own background unknown: all of it is sources"
        names.append(name)
    return coefficients, names


def _background(
    measured: Measured, chosen: Sequence[int], coefficients: np.ndarray, options: LevelMatchOptions, work: Work
) -> float:
    """Background of the matched exposures of a tile; NaN if all of it is sources."""
    high = float(np.median([measured.cutouts[i].base - coefficients[i, 0] for i in chosen]))
    images = (measured.cutouts[i].less(raised(coefficients[i], high), measured.unit) for i in chosen)
    return background_level(images, options, work=work) + high
