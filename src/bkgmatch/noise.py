"""Pairs of nearby pixels, which see nearly the same sky: how much of the scatter of pixels is noise."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bkgmatch.runs import Runs

__all__ = ["PixelPairs", "sample_pairs"]

_SEPARATION = 2  # pixels along both axes: beyond crosstalk of neighbours, and across the stripes of 1/f noise
_MOST_PAIRS = 1 << 13
_PIXELS_PER_PAIR = 16


class PixelPairs(NamedTuple):
    """
    Values of pairs of pixels.

    Parameters
    ----------
    one, two : ndarray, shape (n_pairs,)
        Values of the two pixels.
    members : ndarray of bool, shape (n_pairs, n_sets)
        Which sets both pixels belong to.
    missing : ndarray, shape (n_sets,)
        Part of the pixels of each set that are not good: there the two exposures of a pair see different sky.
    """

    one: np.ndarray
    two: np.ndarray
    members: np.ndarray
    missing: np.ndarray


def sample_pairs(data: np.ndarray, good: np.ndarray, runs: Runs, members: np.ndarray) -> PixelPairs:
    """
    Take a regular sample of pairs of good pixels that lie two rows and two columns apart in the same atom.

    Parameters
    ----------
    data, good : ndarray, shape (ny, nx)
        Pixel values, and good pixels.
    runs : Runs
        Atom of each pixel.
    members : ndarray of bool, shape (n_atoms, n_sets)
        Which sets each atom belongs to.

    Returns
    -------
    PixelPairs
        The pairs; there may be none.
    """
    one, two = _positions(data.shape[0], data.shape[1])
    atom, other = (runs.at(y * data.shape[1] + x) for y, x in (one, two))
    use = good[one] & good[two] & (atom == other)
    first, second = (data[place][use].astype(float) for place in (one, two))
    return PixelPairs(first, second, members[atom[use]], _missing(good[one], members[atom]))


@lru_cache(maxsize=8)
def _positions(ny: int, nx: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    rows, columns = max(ny - _SEPARATION, 0), max(nx - _SEPARATION, 0)
    step = max(_PIXELS_PER_PAIR, rows * columns // _MOST_PAIRS) | 1  # odd: not the same columns in every row
    y, x = np.divmod(np.arange(0, rows * columns, step), max(columns, 1))
    return (y, x), (y + _SEPARATION, x + _SEPARATION)


def _missing(good: np.ndarray, members: np.ndarray) -> np.ndarray:
    return (members & ~good[:, None]).sum(axis=0) / np.maximum(members.sum(axis=0), 1)
