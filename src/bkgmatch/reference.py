"""The tile whose background stays: the zero point of each connected set of tiles."""

from collections.abc import Collection, Sequence

import numpy as np

from bkgmatch.cells import CutOut
from bkgmatch.exposures import Exposure
from bkgmatch.options import LevelMatchOptions

__all__ = ["REFERENCE_POLICIES", "check_reference", "reference_tile", "tile_names"]

REFERENCE_POLICIES = ("auto", "background", "flattest", "most_overlaps", "mean")


def check_reference(exposures: Sequence[Exposure], reference: str) -> None:
    """
    Check that the reference can be found.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures.
    reference : str
        Policy, or name of an exposure.

    Raises
    ------
    ValueError
        If there is no such exposure, or no dedicated background where one is asked for.
    """
    names = [e.name for e in exposures]
    if reference not in (*REFERENCE_POLICIES, *names):
        raise ValueError(
            f"reference={reference!r} is neither one of {', '.join(REFERENCE_POLICIES)} nor the name of an exposure "
            f"({names[0]}, ...)"
        )
    if reference == "background" and not _background_times(exposures).size:
        raise ValueError(
            "reference='background' needs dedicated background exposures, with times: members of exptype "
            "'background' in the association; or choose another reference"
        )
    if reference == "background" and all(e.time is None for e in exposures if not e.is_background):
        raise ValueError(
            f"reference='background' needs the times of the exposures; {names[0]} and the others have none: choose "
            "another reference"
        )


def tile_names(exposures: Sequence[Exposure]) -> list[str]:
    """Name of the tile of each exposure: its own, if it has no other."""
    return [e.tile or e.name for e in exposures]


def reference_tile(
    everything: Sequence[Exposure],
    members: np.ndarray,
    links: Collection[tuple[str, str]],
    cutouts: Sequence[CutOut],
    options: LevelMatchOptions,
) -> str | None:
    """
    Choose the reference tile of connected exposures.

    Parameters
    ----------
    everything : sequence of Exposure
        All exposures.
    members : ndarray of int, shape (m,)
        The connected ones.
    links : collection of tuple of str
        Pairs of different names of tiles that overlap.
    cutouts : sequence of CutOut, length m
        Cells of the members.
    options : LevelMatchOptions
        Options.

    Returns
    -------
    str or None
        Name of the tile; None if the mean of all is the reference.
    """
    inside = [everything[i] for i in members]
    tiles = tile_names(inside)
    if options.reference == "mean":
        return None
    is_policy = options.reference in REFERENCE_POLICIES
    named = [tile for tile, e in zip(tiles, inside, strict=True) if e.name == options.reference and not is_policy]
    if named:
        return named[0]
    if options.reference in ("auto", "background"):
        gaps = _time_gaps(inside, _background_times(everything))
        if gaps:
            return min(zip(gaps, tiles, strict=True))[1]
    flatness = {tile: _flatness([c for c, t in zip(cutouts, tiles, strict=True) if t == tile]) for tile in set(tiles)}
    if options.reference == "flattest":
        return min(flatness, key=lambda tile: (flatness[tile], tile))
    overlaps = {tile: sum(tile in link for link in links) for tile in flatness}
    return min(flatness, key=lambda tile: (-overlaps[tile], flatness[tile], tile))


def _background_times(exposures: Sequence[Exposure]) -> np.ndarray:
    return np.array([e.time for e in exposures if e.is_background and e.time is not None])


def _time_gaps(exposures: Sequence[Exposure], times: np.ndarray) -> list[float]:
    """Time from each exposure to the nearest of the given ones, infinite for those without a time; or nothing."""
    if not times.size or all(e.time is None for e in exposures):
        return []
    return [float(np.abs(times - e.time).min()) if e.time is not None else np.inf for e in exposures]


def _flatness(cutouts: Sequence[CutOut]) -> float:
    """Spread of the sky over a tile: of the medians of every eighth row's and column's cells, in squares."""
    spreads = []
    for c in cutouts:
        sample = c.value[::8, ::8]
        ny, nx = (n // 4 * 4 for n in sample.shape)
        squares = sample[:ny, :nx].reshape(ny // 4, 4, nx // 4, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
        squares = squares[np.isfinite(squares).sum(axis=1) >= 8]
        if len(squares):
            medians = np.nanmedian(squares, axis=1)
            spreads.append(float(np.median(np.abs(medians - np.median(medians)))))
    return float(np.median(spreads)) if spreads else np.inf
