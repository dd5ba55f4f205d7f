"""What a level match has found, in a few lines for the log."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from bkgmatch.levels import FIXED, MATCHED, LevelMatch
from bkgmatch.stories import POOR, each_or_all, some, spaced

__all__ = ["story"]


_MISSING = "planes (level+slope for dithers and tiles) or a part with a level of its own (recombine_lyot)"


def story(match: LevelMatch, unit: str, done: str, *, missing: str = _MISSING) -> Iterator[tuple[bool, str]]:
    """
    Tell of a level match: in general, then each exposure.

    Parameters
    ----------
    match : LevelMatch
        Result.
    unit : str
        Unit of the levels.
    done : str
        What has been done with the levels; if nothing, the exposures are not listed.
    missing : str
        What may be missing in the fit if it is poor, with the options that its user has.

    Yields
    ------
    is_warning : bool
        Whether the line is a warning.
    line : str
        Line.
    """
    yield False, _of_pairs(match, unit)
    if match.misfit > POOR:
        yield (
            True,
            (
                f"What is left of the pairs is {match.misfit:.0f} times their errors, by which quoted errors are "
                f"scaled where there are ten pairs: {missing} may be missing"
            ),
        )
    yield from _of_components(match)
    yield from _of_doubts(match)
    for name, status in zip(match.names, match.status, strict=True):
        if status not in (MATCHED, FIXED):
            yield True, f"{name} could not be matched: {status}"
    if done:
        yield from ((False, line) for line in _of_levels(match, unit, done))


def _of_pairs(match: LevelMatch, unit: str) -> str:
    trust = match.pairs.trust
    passes = ", ".join(f"{count} of {name}" for name, count in Counter(match.pairs.step.tolist()).items())
    rms = float(np.sqrt(np.mean(match.pairs.residual[trust > 0] ** 2))) if (trust > 0).any() else np.nan
    if not len(trust):
        return f"{len(match.names)} exposures, no pairs"
    return (
        f"{len(match.names)} exposures, {len(trust)} pairs ({passes}): {np.sum(trust >= 0.5)} used, "
        f"{np.sum((trust > 0) & (trust < 0.5))} down-weighted, {np.sum(trust == 0)} rejected. "
        f"They agree to {rms:.3g}{spaced(unit)} rms, {match.misfit:.2f} of their errors"
    )


def _of_components(match: LevelMatch) -> Iterator[tuple[bool, str]]:
    several = len(match.reference) > 1
    for number, reference in enumerate(match.reference):
        members = [name for name, c in zip(match.names, match.component, strict=True) if c == number]
        yield False, f"Zero point of {len(members)} exposures: {reference}"
        if several:
            yield (
                True,
                (
                    f"Connected set {number + 1} of {len(match.reference)}, its level relative to others unknown: "
                    f"{some(members)}"
                ),
            )


def _of_doubts(match: LevelMatch) -> Iterator[tuple[bool, str]]:
    for name in np.array(match.names)[match.loose]:
        yield True, f"{name}: the overlaps do not determine its tilt, which a weak prior holds near the mean tilt"
    pairs = match.pairs
    for k in np.flatnonzero((pairs.trust > 0) & (pairs.trust < 0.5)):
        one, two = match.names[pairs.first[k]], match.names[pairs.second[k]]
        pull = abs(pairs.residual[k]) / pairs.sigma[k]
        yield True, f"{one} - {two} differs from what other pairs say by {pull:.0f} of its errors: down-weighted"


def _of_levels(match: LevelMatch, unit: str, done: str) -> Iterator[str]:
    fixed = [name for name, status in zip(match.names, match.status, strict=True) if status == FIXED]
    if fixed:
        yield f"Fixed: {some(fixed)}"
    known = [i for i, status in enumerate(match.status) if status == MATCHED]
    names, level, sigma = [match.names[i] for i in known], match.level[known], match.sigma[known]
    lines = [f"{match.names[i]}: {_level(match, i, unit)}, {done}" for i in known]
    yield from each_or_all(lines, names, level, sigma, unit, title=f"{done.capitalize()} levels")


def _level(match: LevelMatch, i: int, unit: str) -> str:
    level = f"level {match.level[i]:.6g} +- {match.sigma[i]:.2g}{spaced(unit)}"
    if not np.nan_to_num(match.slope).any():
        return level
    slopes = zip(match.slope[i], match.slope_sigma[i], strict=True)
    return f"{level}, slope " + ", ".join(f"{slope:.3g} +- {sigma:.1g}" for slope, sigma in slopes) + " per arcsec"
