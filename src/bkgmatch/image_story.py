"""What has been found about the backgrounds of exposures, in a few lines for the log."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from bkgmatch.image_backgrounds import MADE, ImageBackgrounds
from bkgmatch.stories import each_or_all

__all__ = ["story"]

_MANY_HOLES, _MOST_MASKED = 2.0, 50.0  # percent


def story(backgrounds: ImageBackgrounds, unit: str, done: str) -> Iterator[tuple[bool, str]]:
    """
    Tell of backgrounds: in general, then of each exposure.

    Parameters
    ----------
    backgrounds : ImageBackgrounds
        The backgrounds.
    unit : str
        Unit of the data.
    done : str
        What has been done with them.

    Yields
    ------
    is_warning : bool
        Whether the line is a warning.
    line : str
        Line.
    """
    made = np.array([status == MADE for status in backgrounds.status])
    kinds = Counter(frozenset((name, *m)) for name, m in zip(backgrounds.names, backgrounds.members, strict=True) if m)
    sets = f"{len(kinds)} set{'s' * (len(kinds) != 1)}"
    what = f": {done}" if made.any() else ""
    yield not made.all(), f"{made.sum()} of {len(made)} exposures have a background, from {sets} of exposures{what}"
    known = np.flatnonzero(made).tolist()
    names, lines = [backgrounds.names[i] for i in known], [_numbers(backgrounds, i, unit) for i in known]
    level, rms = backgrounds.level[known], backgrounds.rms[known]
    yield from ((False, line) for line in each_or_all(lines, names, level, rms, unit, spread="rms"))
    for i, (name, status) in enumerate(zip(backgrounds.names, backgrounds.status, strict=True)):
        if status != MADE:
            yield True, f"{name} has no background: {status}"
        else:
            yield from ((True, f"{name}: {doubt}") for doubt in _doubts(backgrounds, i))


def _numbers(found: ImageBackgrounds, i: int, unit: str) -> str:
    return (
        f"{found.names[i]}: level {found.level[i]:.5g} {unit}, {len(found.members[i])} members, "
        f"{found.donors[i]:.0f} in a typical pixel, {100 * found.masked[i]:.1f} % on sources, "
        f"rms {found.rms[i]:.3g} {unit}"
    )


def _doubts(found: ImageBackgrounds, i: int) -> Iterator[str]:
    covered, masked, holes = (100 * part[i] for part in (found.covered, found.masked, found.holes))
    if covered < 100:
        yield f"the given mosaic or mask covers {covered:.0f} % of it; it masks no sources outside"
    if masked > _MOST_MASKED:
        yield f"{masked:.0f} % of its pixels are on sources; the background is made of what is left"
    if holes > _MANY_HOLES:
        yield (
            f"in {holes:.1f} % of its pixels no member is good and free of sources; the background is interpolated "
            "there. A source larger than the dithers may be left in it elsewhere: see 'Extended sources' in the docs"
        )
