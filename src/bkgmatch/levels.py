"""Match levels or planes of exposures pixel by pixel: the stages in order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import numpy as np
from threadpoolctl import threadpool_limits

from bkgmatch.cells import CutOut
from bkgmatch.display import Displayed, Rows
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import LYOT, Exposure, check_names, handy_factor
from bkgmatch.footprints import Footprint, position
from bkgmatch.grids import Grid
from bkgmatch.neighbourhoods import (
    LevelPairs,
    Neighbourhood,
    Watch,
    match_neighbourhood,
    neighbourhoods,
    outline_of,
)
from bkgmatch.options import LevelMatchOptions
from bkgmatch.passes import Pass
from bkgmatch.planes import ARCSEC, Plane, tangent_axes
from bkgmatch.reference import check_reference, tile_names
from bkgmatch.solve import NORMAL_MEDIAN, renumbered

__all__ = ["LevelMatch", "match_levels"]

MATCHED, FIXED = "matched", "fixed"
NO_OVERLAP, NO_PIXELS, BACKGROUND = "no overlap", "no good pixels", "background"
_NONE = np.zeros(0, dtype=int)
_NO_PAIRS = LevelPairs(_NONE, _NONE, _NONE.astype(str), _NONE, *np.zeros((5, 0)))


@dataclass(frozen=True, repr=False)
class LevelMatch(Displayed):
    """
    Backgrounds of exposures: constants or planes on the sky.

    Parameters
    ----------
    names : tuple of str
        Names of the exposures, in the order of the input.
    component : ndarray of int, shape (n,)
        Connected set of exposures that each belongs to; -1 if it overlaps no other.
    centre : ndarray, shape (n, 2)
        Right ascension and declination of the middle of each exposure, in degrees.
    level : ndarray, shape (n,)
        Background there; NaN where there is none.
    slope : ndarray, shape (n, 2)
        Its change per arcsecond to the east and to the north.
    covariance : ndarray, shape (n, 3, 3)
        Covariance of level and slopes, relative to the mean of the component: the zero point is free of error by
        definition.
    status : tuple of str
        ``matched``, ``fixed``, ``no overlap``, ``no good pixels``, or ``background`` for dedicated backgrounds.
    loose : ndarray of bool, shape (n,)
        Exposures with a tilt that the overlaps do not determine: the prior holds it.
    reference : tuple of str
        Tile whose background is the zero point, for each component; or ``mean`` or ``fixed``.
    pairs : LevelPairs
        Measured pairs.
    """

    names: tuple[str, ...]
    component: np.ndarray
    centre: np.ndarray
    level: np.ndarray
    slope: np.ndarray
    covariance: np.ndarray
    status: tuple[str, ...]
    loose: np.ndarray
    reference: tuple[str, ...]
    pairs: LevelPairs

    @property
    def sigma(self) -> np.ndarray:
        """Standard errors of the levels."""
        return _roots(self.covariance)[:, 0]

    @property
    def slope_sigma(self) -> np.ndarray:
        """Standard errors of the slopes, shape (n, 2)."""
        return _roots(self.covariance)[:, 1:]

    @property
    def misfit(self) -> float:
        """Typical size of what is left of the pairs, in their standard errors; NaN without pairs."""
        used = self.pairs.trust > 0
        pulls = np.abs(self.pairs.residual[used]) / self.pairs.sigma[used]
        return float(np.median(pulls)) / NORMAL_MEDIAN if len(pulls) else float("nan")

    def plane(self, i: int) -> Plane:
        """Background of one exposure."""
        east, north = self.slope[i].tolist()
        ra, dec = self.centre[i].tolist()
        return Plane(float(self.level[i]), (east, north), (ra, dec))

    def _rows(self) -> Rows:
        return Rows(self.names, self.level, self.sigma, self.status)

    def __str__(self) -> str:
        rows = zip(self.names, self.component, self.level, self.sigma, self.status, strict=True)
        return "\n".join(f"{name}  {c:3d}  {level:12.6g} +- {sigma:9.3g}  {s}" for name, c, level, sigma, s in rows)


def _roots(covariance: np.ndarray) -> np.ndarray:
    """Roots of the diagonal, which rounding may leave below zero where it is zero."""
    return np.sqrt(np.maximum(np.einsum("naa->na", covariance), 0))


def match_levels(
    exposures: Sequence[Exposure],
    options: LevelMatchOptions | None = None,
    *,
    work: Work = HERE,
    watch: Watch | None = None,
) -> LevelMatch:
    """
    Match the backgrounds of exposures.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures with unique names.
    options : LevelMatchOptions, optional
        Options; the defaults are those of the step.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.
    watch : callable, optional
        ``watch(names, neighbourhood, cutouts)`` is called with the cells and the result of each set of exposures that
        has a common grid, for pictures.

    Returns
    -------
    LevelMatch
        The backgrounds. Nothing is subtracted.

    Raises
    ------
    ValueError
        If there are no exposures, names repeat, or an exposure or the reference cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.exposures import Exposure
    >>> from bkgmatch.levels import match_levels
    >>> noise = np.random.default_rng(1).normal(0, 0.01, (2, 64, 64))
    >>> exposures = [
    ...     Exposure.from_arrays(name, data + level, lambda x, y, s=shift: ((x + s) / 3600, y / 3600))
    ...     for name, data, level, shift in [("a", noise[0], 5.0, 0), ("b", noise[1], 7.0, 30)]
    ... ]
    >>> print(match_levels(exposures).level.round(1))
    [5. 7.]
    """
    with threadpool_limits(1, "blas"):  # small matrices in many threads are slower, not faster
        return _match_levels(exposures, options or LevelMatchOptions(), work, watch)


def _match_levels(
    exposures: Sequence[Exposure],
    options: LevelMatchOptions,
    work: Work,
    watch: Watch | None,
) -> LevelMatch:
    if not exposures:
        raise ValueError("there are no exposures to match")
    check_names(exposures)
    check_reference(exposures, options.reference)
    order = np.argsort([e.name for e in exposures])
    factor = handy_factor(exposures)
    by_name = [exposures[i] if factor == 1 else exposures[i].times(factor) for i in order]
    outlines = work.run(outline_of, by_name, what="Outlining exposures", name=attrgetter("name"))
    passes = _passes(by_name, options)
    if watch and factor != 1:
        watch = partial(_watch_divided, watch, factor)
    found = [
        match_neighbourhood(by_name, outlines, members, passes, options, work, watch)
        for members in neighbourhoods(by_name, outlines)
    ]
    match = _collected(by_name, outlines, found, order)
    return match if factor == 1 else _divided(match, factor)


def _divided(match: LevelMatch, factor: float) -> LevelMatch:
    """Match in the unit of the data."""
    return replace(
        match,
        level=match.level / factor,
        slope=match.slope / factor,
        covariance=match.covariance / factor**2,
        pairs=_divided_pairs(match.pairs, factor),
    )


def _divided_pairs(pairs: LevelPairs, factor: float) -> LevelPairs:
    return pairs._replace(**{name: getattr(pairs, name) / factor for name in ("offset", "sigma", "rms", "residual")})


def _watch_divided(
    watch: Watch, factor: float, names: Sequence[str], one: Neighbourhood, cutouts: Sequence[CutOut]
) -> None:
    """Show a neighbourhood in the unit of the data."""
    divided = replace(
        one,
        coefficients=one.coefficients / factor,
        covariance=one.covariance / factor**2,
        pairs=_divided_pairs(one.pairs, factor),
    )
    scaled = [
        replace(c, value=c.value[...] / factor, base=c.base / factor, variance=c.variance / factor**2) for c in cutouts
    ]
    watch(names, divided, scaled)


def _passes(exposures: Sequence[Exposure], options: LevelMatchOptions) -> list[Pass]:
    """Dithers within a part of a tile; parts within a tile; tiles. Only those that there are exposures for."""
    n = len(exposures)
    nothing = np.zeros(n, dtype=bool)
    if options.passes == "joint":
        return [Pass("joint", options.fit_type_dithers != "level", np.zeros(n, dtype=int), nothing)]
    tiles = tile_names(exposures)
    with_lyot = {tile for tile, e in zip(tiles, exposures, strict=True) if e.part == LYOT}
    parts = [(tile, e.part) for tile, e in zip(tiles, exposures, strict=True)]
    halves = [(tile, "" if tile in with_lyot else part) for tile, part in parts]
    science = np.array([tile in with_lyot and part != LYOT for tile, part in parts])
    plan: list[tuple[str, str, Sequence, np.ndarray]] = [
        ("dithers", options.fit_type_dithers, parts, nothing),
        ("recombine_lyot", options.fit_type_recombine_lyot, halves, science),
        ("combine_nircam_short", options.fit_type_combine_nircam_short, tiles, nothing),
        ("mosaic_tiles", options.fit_type_mosaic_tiles, [0] * n, nothing),
    ]
    passes: list[Pass] = []
    sets_before = n
    for name, fit, keys, held in plan:
        container = _numbers(keys)
        if container.max() + 1 < sets_before:
            passes.append(Pass(name, fit != "level", container, held))
            sets_before = int(container.max()) + 1
    return passes


def _numbers(keys: Sequence) -> np.ndarray:
    number: dict = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=int)


def _collected(
    exposures: Sequence[Exposure], outlines: Sequence[Footprint], found: Sequence[Neighbourhood], place_of: np.ndarray
) -> LevelMatch:
    """
    Put the neighbourhoods together, in sky coordinates.

    ``place_of`` is the number in the input of each exposure, which are sorted by name here.
    """
    n = len(exposures)
    order = np.argsort(place_of)
    component = np.full(n, -1)
    level, slope, covariance = np.full(n, np.nan), np.full((n, 2), np.nan), np.full((n, 3, 3), np.nan)
    centre, loose = np.full((n, 2), np.nan), np.zeros(n, dtype=bool)
    reference: list[str] = []
    for one in found:
        inside = np.flatnonzero(one.component >= 0)
        where = one.members[inside]
        component[where] = one.component[inside] + len(reference)
        reference.extend(one.reference)
        loose[where] = one.loose[inside]
        for i, k in zip(inside, where, strict=True):
            centre[k], to_sky = _about_centre(one.grid, one.centres[i], one.unit)
            to_sky = to_sky[:, : one.coefficients.shape[1]]
            level[k], *slope[k] = to_sky @ one.coefficients[i]
            covariance[k] = to_sky @ one.covariance[i] @ to_sky.T
    status = [_status(e, outline, c) for e, outline, c in zip(exposures, outlines, component, strict=True)]
    pairs = [one.pairs for one in found] or [_NO_PAIRS]
    first, second, *values = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return LevelMatch(
        names=tuple(exposures[k].name for k in order),
        component=renumbered(component[order]),
        centre=centre[order],
        level=level[order],
        slope=slope[order],
        covariance=covariance[order],
        status=tuple(status[k] for k in order),
        loose=loose[order],
        reference=tuple(reference[k] for k in dict.fromkeys(component[order].tolist()) if k >= 0),
        pairs=LevelPairs(place_of[first], place_of[second], *values),
    )


def _about_centre(grid: Grid, centre: np.ndarray, unit: float) -> tuple[tuple[float, float], np.ndarray]:
    """Right ascension and declination of a point of the grid; matrix from functions of the grid to level and slopes."""
    vector = grid.vectors(centre[None])[0]
    ra, dec = position(vector)
    step = np.concatenate([ARCSEC * tangent_axes(ra, dec)[:2], -ARCSEC * tangent_axes(ra, dec)[:2]])
    east, north, west, south = grid.of(vector + step) / unit
    matrix = np.eye(3)
    matrix[0, 1:] = centre / unit
    matrix[1:, 0] = 0
    matrix[1:, 1:] = (east - west) / 2, (north - south) / 2
    return (ra, dec), matrix


def _status(exposure: Exposure, outline: Footprint, component: int) -> str:
    if component >= 0:
        return FIXED if exposure.is_fixed else MATCHED
    if exposure.is_background:
        return BACKGROUND
    return NO_PIXELS if outline.is_empty else NO_OVERLAP
