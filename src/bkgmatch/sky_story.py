"""What a sky match has found, in a few lines for the log."""

from collections.abc import Iterator

import numpy as np

from bkgmatch.match import SkyMatch
from bkgmatch.stories import POOR, each_or_all, spaced

__all__ = ["story"]


def story(match: SkyMatch, unit: str, done: str) -> Iterator[tuple[bool, str]]:
    """
    Tell of a sky match: in general, then each exposure.

    Parameters
    ----------
    match : SkyMatch
        Result.
    unit : str
        Unit of the levels.
    done : str
        What has been done with the levels.

    Yields
    ------
    is_warning : bool
        Whether the line is a warning.
    line : str
        Line.
    """
    known = np.flatnonzero(np.isfinite(match.level)).tolist()
    yield False, f"Sky levels of {len(known)} of {len(match.names)} exposures {done}{_of_pairs(match, unit)}"
    misfit = _misfit(match)
    if misfit > POOR:
        yield (
            True,
            (
                f"What is left of the pairs is {misfit:.0f} times their errors, and the errors of the levels are too "
                "small then: the exposures differ by more than a constant. skystat='difference' may help, or "
                "LevelMatchStep with planes (level+slope for dithers and tiles)"
            ),
        )
    names, level, sigma = [match.names[i] for i in known], match.level[known], match.sigma[known]
    lines = [
        f"{name}: sky level {value:.6g} +- {error:.2g}{spaced(unit)}"
        for name, value, error in zip(names, level, sigma, strict=True)
    ]
    yield from ((False, line) for line in each_or_all(lines, names, level, sigma, unit))
    for name, value, status in zip(match.names, match.level, match.status, strict=True):
        if not np.isfinite(value):
            yield True, f"{name} could not be matched: {status}"
    sets = match.component.max(initial=-1) + 1
    for number in range(sets if sets > 1 else 0):
        members = [name for name, c in zip(match.names, match.component, strict=True) if c == number]
        yield True, f"Connected set {number + 1} of {sets}, which overlaps no other: {', '.join(members)}"


def _misfit(match: SkyMatch) -> float:
    """Return the rms of what is left of the pairs that are not down-weighted, in their errors."""
    pairs = match.pairs
    used = (pairs.sigma > 0) & (pairs.weight >= 0.5 * pairs.full_weight)
    return float(np.sqrt(np.mean((match.residual[used] / pairs.sigma[used]) ** 2))) if used.any() else 0.0


def _of_pairs(match: SkyMatch, unit: str) -> str:
    if len(match.residual) < 2:  # one pair always agrees
        return ""
    rms = np.sqrt(np.mean(match.residual**2))
    return f"; residuals of {len(match.residual)} pairs: {rms:.2g}{spaced(unit)} rms"
