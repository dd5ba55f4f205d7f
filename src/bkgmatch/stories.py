"""What the stories of all matches have in common: few exposures have a line each, many have one together."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

__all__ = ["LISTED", "POOR", "each_or_all", "some", "spaced", "tell"]

LISTED = 6
"""So many exposures have a line each."""

POOR = 3.0
"""Residuals of pairs, in their errors, beyond which a match is told to be poor."""


def each_or_all(
    lines: Sequence[str],
    names: Sequence[str],
    level: np.ndarray,
    sigma: np.ndarray,
    unit: str,
    *,
    title: str = "Levels",
    spread: str = "errors",
    few: int = LISTED,
) -> Iterator[str]:
    """
    Give the lines of a few exposures; of more, the range of their levels in one line.

    Parameters
    ----------
    lines : sequence of str
        Line of each exposure.
    names : sequence of str
        Their names.
    level, sigma : ndarray
        Their levels, and the errors or noise of these.
    unit : str
        Unit of the levels.
    title : str
        What they are.
    spread : str
        What ``sigma`` is.
    few : int
        Number of exposures that have a line each.

    Yields
    ------
    str
        Line.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.stories import each_or_all
    >>> names = "abcdefg"
    >>> print(*each_or_all(names, names, np.arange(7.0), np.full(7, 0.1), "", title="Sky"))
    Sky of 7 exposures: from 0 (a) to 6 (g), errors 0.1 to 0.1; all are in the headers, and in the table if it is saved
    """
    if len(lines) <= few:
        yield from lines
        return
    low, high = int(np.argmin(level)), int(np.argmax(level))
    yield (
        f"{title} of {len(lines)} exposures: from {level[low]:.6g} ({names[low]}) to {level[high]:.6g} ({names[high]})"
        f"{spaced(unit)}, {spread} {sigma.min():.2g} to {sigma.max():.2g}; all are in the headers, and in the table "
        "if it is saved"
    )


def some(names: Sequence[str]) -> str:
    """Write the first few names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def spaced(unit: str) -> str:
    """Write a unit as it follows a number; nothing if it is not known."""
    return unit and f" {unit}"


def tell(log: logging.Logger, lines: Iterable[tuple[bool, str]]) -> None:
    """
    Write a story into the log.

    Parameters
    ----------
    log : logging.Logger
        The log.
    lines : iterable of (bool, str)
        Lines, and whether each is a warning.
    """
    for is_warning, line in lines:
        log.log(logging.WARNING if is_warning else logging.INFO, line)
