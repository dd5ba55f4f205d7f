"""What has been found about the backgrounds of exposures, in a few lines for the log."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from bkgmatch.image_backgrounds import MADE, ImageBackgrounds

__all__ = ["story"]

_MANY_HOLES, _MOST_MASKED = 0.02, 0.5


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
    yield False, f"{made.sum()} of {len(made)} exposures have a background, from {len(kinds)} sets of exposures"
    for i, (name, status) in enumerate(zip(backgrounds.names, backgrounds.status, strict=True)):
        if status != MADE:
            yield True, f"{name} has no background: {status}"
            continue
        yield False, f"{name}: {_numbers(backgrounds, i, unit)}, background {done}"
        yield from ((True, f"{name}: {doubt}") for doubt in _doubts(backgrounds, i))


def _numbers(backgrounds: ImageBackgrounds, i: int, unit: str) -> str:
    return (
        f"level {backgrounds.level[i]:.5g} {unit}, {len(backgrounds.members[i])} members, {backgrounds.donors[i]:.0f} in a "
        f"typical pixel, {100 * backgrounds.masked[i]:.1f} % on sources, rms {backgrounds.rms[i]:.3g} {unit}"
    )


def _doubts(backgrounds: ImageBackgrounds, i: int) -> Iterator[str]:
    if backgrounds.covered[i] < 1:
        yield f"the given mosaic or mask covers {100 * backgrounds.covered[i]:.0f} % of it; sources outside are not masked by it"
    if backgrounds.masked[i] > _MOST_MASKED:
        yield f"{100 * backgrounds.masked[i]:.0f} % of its pixels are on sources; the background is made of what is left"
    if backgrounds.holes[i] > _MANY_HOLES:
        yield (
            f"{100 * backgrounds.holes[i]:.1f} % of its pixels have no donor: sources cover them in all members; the "
            "background is interpolated there. Larger dithers, or a larger max_dt, would help"
        )
