"""Which exposures may serve the background of which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bkgmatch.options import ImageForImageOptions
from bkgmatch.planes import ARCSEC

__all__ = ["Donors", "find_donors"]


@dataclass(frozen=True)
class Donors:
    """
    Which exposures serve which.

    Parameters
    ----------
    serves : ndarray of bool, shape (n, n)
        ``serves[t, d]``: exposure d is part of the background of exposure t; none for those that have too few.
    usable : ndarray of bool, shape (n,)
        Exposures that have good pixels.
    lacking : tuple of str
        For each exposure why it has too few; empty if it has enough.
    """

    serves: np.ndarray
    usable: np.ndarray
    lacking: tuple[str, ...]


def find_donors(
    centres: np.ndarray, times: Sequence[float | None], usable: np.ndarray, options: ImageForImageOptions
) -> Donors:
    """
    Find which exposures of one kind may serve which.

    Parameters
    ----------
    centres : ndarray, shape (n, 3)
        Middle of each exposure, as a unit vector.
    times : sequence of float or None
        Time of each exposure, in days; one without a time may serve all.
    usable : ndarray of bool, shape (n,)
        Exposures that have good pixels.
    options : ImageForImageOptions
        Longest time and least distance between exposures, and fewest members.

    Returns
    -------
    Donors
        The same for exposures in any order.
    """
    other = ~np.eye(len(centres), dtype=bool)
    when = np.array([np.nan if time is None else time for time in times], dtype=float)
    late = other & (np.abs(when[:, None] - when) > (np.inf if options.max_dt is None else options.max_dt))
    chord = np.linalg.norm(centres[:, None] - centres, axis=2)
    close = other & (2 * np.arcsin(np.clip(chord / 2, 0, 1)) < options.min_offset * ARCSEC)
    serves = other & ~late & ~close & usable
    left = serves.sum(axis=1)
    few = left < options.min_members
    empty = (other & ~usable).sum(axis=1)
    numbers = zip(few, left, late.sum(axis=1), close.sum(axis=1), empty, strict=True)
    lacking = tuple(_reason(options, len(few) - 1, *counts) if is_few else "" for is_few, *counts in numbers)
    return Donors(serves & ~few[:, None], usable, lacking)


def _reason(options: ImageForImageOptions, others: int, left: int, late: int, close: int, empty: int) -> str:
    if not others:
        return "there is no other exposure of its detector, filter, subarray and readout"
    reasons = [
        (late, f"{late} more than max_dt={options.max_dt} days away"),
        (close, f"{close} less than min_offset={options.min_offset:g} arcsec away"),
        (empty, f"{empty} without a good pixel"),
    ]
    known = ", ".join(text for number, text in reasons if number)
    return (
        f"{left} of {others} other exposures of its kind can serve it, fewer than min_members={options.min_members}"
        + (f" ({known})" if known else "")
    )
