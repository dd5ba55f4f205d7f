"""Pixels of many overlapping sets, binned by value in one pass over an image.

The pixels of each atom are sorted into narrow bins of value, for which their number, sum and sum of squares are
kept. A set of pixels that is a union of atoms has the sums of its atoms' bins, at a cost that does not depend on the
number of pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["BinnedSets", "Moments", "bin_pixels"]

# Bins are uniform in the logarithm of y = 1 + |value - centre|/scale, 512 an octave: the leading bits of a
# single-precision y. Bins below the centre have negative numbers, -1 - n for the mirror image of bin n.
_SHIFT = 14
_FIRST_BIN = np.int32(127 << (23 - _SHIFT))
_EDGE_BITS = np.int32(-1 << _SHIFT)
_FEWEST_BINS = 20
_LARGEST = np.float32(2.0**100)
_BLOCK, _CHUNK = 1 << 21, 1 << 18  # pixels: small enough for memory to be used again, and for the cache


class Moments(NamedTuple):
    """Number of pixels, sum and sum of squares of their values, for each of several sets."""

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True)
class BinnedSets:
    """
    Sets of pixels, binned by value.

    All values are in units of ``scale`` from ``centre``. The pixels of a bin are taken to be spread evenly with the
    mean and the variance that they have; one value, or equal values, are therefore exact.

    Parameters
    ----------
    centre, scale : float
        Origin and unit, in units of the data.
    starts : ndarray, shape (n_bins,)
        Lower edges of the bins, increasing.
    counts : ndarray, shape (n_sets, n_bins)
        Number of pixels.
    low, high : ndarray, shape (n_sets, n_bins)
        Range over which the pixels of a bin are spread.
    cumulative : Moments of ndarray, shape (n_sets, n_bins + 1)
        Moments of the pixels between ``centre`` and each edge, negative below it.
    shared : ndarray, shape (n_sets, n_sets)
        Number of pixels that two sets have in common.
    """

    centre: float
    scale: float
    starts: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cumulative: Moments
    shared: np.ndarray

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.counts)

    def below(self, limit: np.ndarray, *, inclusive: bool) -> Moments:
        """
        Moments of the pixels from ``centre`` up to a limit, one for each set (negative for a limit below it).

        Parameters
        ----------
        limit : ndarray, shape (n_sets,)
            Limits.
        inclusive : bool
            Whether pixels that are equal to the limit are below it.

        Returns
        -------
        Moments
            Arrays of shape (n_sets,).
        """
        sets = np.arange(len(self))
        if self.starts.size == 0:
            return Moments(*np.zeros((3, len(self))))
        bins = np.clip(np.searchsorted(self.starts, limit, side="right") - 1, 0, None)
        low, high, count = (array[sets, bins] for array in (self.low, self.high, self.counts))
        width = high - low
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.clip((limit - low) / width, 0, 1)
        part = np.where(width > 0, part, (limit >= low) if inclusive else (limit > low))
        # Count from the side of the centre, so that a far outlier in the bin does not drown the rest.
        end = low + part * width
        outside = self.starts[bins] < 0
        near, far = np.where(outside, end, low), np.where(outside, high, end)
        n = np.where(outside, part - 1, part) * count
        partial = (n, n * (near + far) / 2, n * (near**2 + near * far + far**2) / 3)
        return Moments(*(c[sets, bins + outside] + m for c, m in zip(self.cumulative, partial, strict=True)))

    def crowded(self) -> list[tuple[int, float, float]]:
        """
        Find sets whose pixels crowd into few bins, far from the centre of the bins.

        Returns
        -------
        list of tuple
            Number of the set, and the centre and scale of bins that suit it, in units of the data.
        """
        if self.starts.size == 0:
            return []
        inside = self.cumulative.n[:, -1] - self.cumulative.n[:, 0]
        low, middle, high = (
            self.quantile(self.cumulative.n[:, 0] + part * inside, side="left") for part in (0.25, 0.5, 0.75)
        )
        spread = high - low
        found = np.flatnonzero((spread > 0) & (spread < _FEWEST_BINS * 2.0 ** (_SHIFT - 23) * (1 + np.abs(middle))))
        return [(int(k), self.centre + self.scale * middle[k], 1.5 * self.scale * spread[k]) for k in found]

    def quantile(self, rank: np.ndarray, *, side: str) -> np.ndarray:
        """
        Value below which there are ``rank`` pixels, counted from ``centre``.

        Parameters
        ----------
        rank : ndarray, shape (n_sets,)
            Ranks, not necessarily whole.
        side : {"left", "right"}
            Which end of a gap between pixels to take when the rank falls on it.

        Returns
        -------
        ndarray, shape (n_sets,)
            Values.
        """
        sets = np.arange(len(self))
        reached = (
            self.cumulative.n[:, 1:] >= rank[:, None] if side == "left" else self.cumulative.n[:, 1:] > rank[:, None]
        )
        reached &= self.counts > 0
        bins = reached.argmax(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            part = (rank - self.cumulative.n[sets, bins]) / self.counts[sets, bins]
        low, high = self.low[sets, bins], self.high[sets, bins]
        return low + np.clip(part, 0, 1) * (high - low)


def bin_pixels(
    values: np.ndarray,
    good: np.ndarray,
    labels: np.ndarray,
    members: np.ndarray,
    *,
    around: tuple[float, float] | None = None,
) -> BinnedSets:
    """
    Bin the pixels of sets that are unions of atoms.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Pixel values.
    good : ndarray of bool, shape (n,)
        Pixels to use; their values are finite.
    labels : ndarray of int, shape (n,)
        Atom of each pixel.
    members : ndarray of bool, shape (n_atoms, n_sets)
        Which sets each atom belongs to.
    around : tuple of float, optional
        Centre and scale of the bins; by default those of all good pixels.

    Returns
    -------
    BinnedSets
        The sets.
    """
    centre, scale = around or _centre_and_scale(values, good)
    to_sets = members.astype(float)
    first, sums, number = _sums(values, good, labels, to_sets, centre, scale)
    used = np.flatnonzero(sums[0].any(axis=1))
    n, total, squares = (table[used].T for table in sums)
    low, high, starts, cumulative = _spread(used + first, n, total, squares)
    shared = to_sets.T @ (number[:, None] * to_sets)
    return BinnedSets(centre, scale, starts, n, low, high, cumulative, shared)


def _sums(
    values: np.ndarray, good: np.ndarray, labels: np.ndarray, to_sets: np.ndarray, centre: float, scale: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """First bin; number, sum and sum of squares of the offsets, shape (3, n_bins, n_sets); pixels of each atom."""
    n_atoms, n_sets = to_sets.shape
    width = n_atoms + 1
    least, sums, number = 0, np.zeros((3, 0)), np.zeros(n_atoms)
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        with np.errstate(over="ignore"):  # values out of reach are put at the largest number
            cell, offset = _cells(values[block], good[block], labels[block], n_atoms, centre, scale)
        first = int(cell.min()) // width
        cell -= first * width
        bins = int(cell.max()) // width + 1
        least, sums = _with_room(least, sums, first * n_sets, (first + bins) * n_sets, n_sets)
        window = sums.reshape(3, -1, n_sets)[:, first - least :][:, :bins]
        used: np.ndarray | slice = slice(None)
        for k, weight in enumerate((None, offset, np.square(offset))):
            table = np.bincount(cell, weight, minlength=bins * width).reshape(bins, width)[:, :n_atoms]
            if k == 0:
                number += table.sum(axis=0)
                used = np.flatnonzero(table.any(axis=1))
            window[k, used] += table[used] @ to_sets
    return least, sums.reshape(3, -1, n_sets), number


def _with_room(least: int, tables: np.ndarray, start: int, stop: int, width: int) -> tuple[int, np.ndarray]:
    """Make room for elements from start to stop; return the first bin, and the tables."""
    begin, end = least * width, least * width + tables.shape[1]
    if begin <= start and stop <= end:
        return least, tables
    if begin == end:
        begin, end = start, start
    low, high = min(begin, start), max(end, stop)
    wider = np.zeros((3, high - low))
    wider[:, begin - low : end - low] = tables
    return low // width, wider


def _spread(
    bins: np.ndarray, n: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Moments]:
    """Spread the pixels of each bin evenly over the range that gives their mean and variance."""
    inner, outer = _bin_edges(bins)
    starts = np.minimum(inner, outer)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n  # distance from the inner edge
        variance = squares / n - mean**2
    half_width = np.sqrt(3 * np.maximum(np.where(n > 0, variance, 0), 0))
    half_width[half_width < 4e-7 * (1 + np.abs(starts))] = 0  # rounding of single precision
    middle = np.where(n > 0, inner + np.where(bins < 0, -mean, mean), starts)
    low, high = middle - half_width, middle + half_width
    n_below = int(np.searchsorted(bins, 0))
    cumulative = Moments(
        _from_centre(n, n_below),
        _from_centre(n * middle, n_below),
        _from_centre(n * (low**2 + low * high + high**2) / 3, n_below),
    )
    return low, high, starts, cumulative


def _from_centre(table: np.ndarray, n_below: int) -> np.ndarray:
    """Cumulative sums outwards from the centre: a far outlier on one side does not spoil the other."""
    sums = np.zeros((table.shape[0], table.shape[1] + 1))
    sums[:, n_below + 1 :] = np.cumsum(table[:, n_below:], axis=1)
    sums[:, :n_below] = -np.cumsum(table[:, :n_below][:, ::-1], axis=1)[:, ::-1]
    return sums


def _centre_and_scale(values: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """Median of a sample of the good pixels, and about two standard deviations from its quartiles."""
    step = (values.size >> 13) | 1  # odd, so that a sample does not keep to a few columns
    sample = values[::step][good[::step]]
    if sample.size < 1000:
        sample = values[good]
    if sample.size == 0:
        return 0.0, 1.0
    sample = np.sort(sample.astype(float))
    centre = float(sample[sample.size // 2])
    for tail in (0.25, 0.05, 0.005, 0.0):
        low, high = sample[[int(tail * (sample.size - 1)), int((1 - tail) * (sample.size - 1))]]
        if high > low:
            return centre, float(1.5 * (high - low))
    return centre, abs(centre) or 1.0


def _cells(
    values: np.ndarray, good: np.ndarray, labels: np.ndarray, n_atoms: int, centre: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Table cell, bin * (n_atoms + 1) + atom, of each pixel and its distance from the bin's inner edge in scales.

    Bad pixels go to bin 0 of one atom more.
    """
    cell = np.empty(values.size, dtype=np.int64)
    offset = np.empty(values.size)
    for start in range(0, values.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        x = np.where(good[piece], values[piece], values.dtype.type(centre)) - centre
        x = (x / scale).astype(np.float32, copy=False)
        mirror = x.view(np.int32) >> 31
        y = np.abs(x, out=x)
        np.minimum(y, _LARGEST, out=y)
        y += np.float32(1)
        bits = y.view(np.int32)
        np.subtract(y, (bits & _EDGE_BITS).view(np.float32), out=offset[piece])
        bits >>= _SHIFT
        bits -= _FIRST_BIN
        bits ^= mirror
        np.multiply(bits, n_atoms + 1, out=cell[piece], dtype=np.int64)
        cell[piece] += np.where(good[piece], labels[piece], np.int32(n_atoms))
    return cell, offset


def _bin_edges(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of bins nearer to the centre and farther from it, in units of scale."""
    number = np.where(bins < 0, -1 - bins, bins)
    sign = np.where(bins < 0, -1.0, 1.0)
    return sign * (_lower_y(number) - 1), sign * (_lower_y(number + 1) - 1)


def _lower_y(number: np.ndarray) -> np.ndarray:
    return ((number + _FIRST_BIN) << _SHIFT).astype(np.int32).view(np.float32).astype(float)
