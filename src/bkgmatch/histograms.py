"""Pixels of many overlapping sets, binned by value in one pass over an image.

The pixels of each atom are sorted into narrow bins of value, for which their number, sum and sum of squares are
kept. A set of pixels that is a union of atoms has the sums of its atoms' bins, at a cost that does not depend on the
number of pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bkgmatch.runs import Runs

__all__ = ["BinnedSets", "Moments", "bin_pixels"]

# Bins are uniform in the logarithm of y = 1 + |value - centre|/scale, 512 an octave: the leading bits of a
# single-precision y. Bins below the centre have negative numbers, -1 - n for the mirror image of bin n.
_SHIFT = 14
_FIRST_BIN = np.int32(127 << (23 - _SHIFT))
_EDGE_BITS = np.int32(-1 << _SHIFT)
_FEWEST_BINS = 20
_LARGEST = np.float32(2.0**100)
_BLOCK, _CHUNK = 1 << 19, 1 << 17  # pixels: so few that sums are exact, and for the cache
_ONE_PIXEL = 2.0**33


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
    runs: Runs,
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
    runs : Runs
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
    first, sums, number = _sums(values, good, runs, to_sets, centre, scale)
    used = np.flatnonzero(sums[0].any(axis=1))
    n, total, squares = (table[used].T for table in sums)
    low, high, starts, cumulative = _spread(used + first, n, total, squares)
    shared = to_sets.T @ (number[:, None] * to_sets)
    return BinnedSets(centre, scale, starts, n, low, high, cumulative, shared)


def _sums(
    values: np.ndarray, good: np.ndarray, runs: Runs, to_sets: np.ndarray, centre: float, scale: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """First bin; number, sum and sum of squares of the offsets, shape (3, n_bins, n_sets); pixels of each atom."""
    n_atoms, n_sets = to_sets.shape
    least, sums, number = 0, np.zeros((3, 0)), np.zeros(n_atoms)
    buffers = _Buffers.of(values.size, np.result_type(values.dtype, np.float32, centre))
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        near = runs.part(start, min(start + _BLOCK, values.size))
        atoms, local = np.unique(near.labels, return_inverse=True)
        near = Runs(near.stops, local.astype(np.int32) - np.int32(len(atoms)))
        with np.errstate(over="ignore"):  # values out of reach are put at the largest number
            first, bins = _fill(buffers, values[block], good[block], near, len(atoms) + 1, centre, scale)
        least, sums = _with_room(least, sums, first * n_sets, (first + bins) * n_sets, n_sets)
        window = sums.reshape(3, -1, n_sets)[:, first - least :][:, :bins]
        used, tables = _tables(buffers, near.stops[-1], first, bins, len(atoms))
        number[atoms] += tables[0].sum(axis=0)
        unit = _unit(used + first)[:, None]
        for k, table in enumerate(tables):
            window[k, used] += table @ to_sets[atoms] * unit**k
    return least, sums.reshape(3, -1, n_sets), number


def _unit(bins: np.ndarray) -> np.ndarray:
    """Difference of neighbouring single-precision numbers y in each bin."""
    return 2.0 ** ((_from_zero(bins) >> (23 - _SHIFT)) - 23)


def _tables(
    buffers: "_Buffers", n: int, first: int, bins: int, n_atoms: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Bins with pixels; number, sum and sum of squares of the parts of the pixels in each, shape (n_used, n_atoms)."""
    width = n_atoms + 1
    cell = buffers.cell[:n]
    cell += n_atoms - first * width
    packed, squares = (
        np.bincount(cell, weight[:n], minlength=bins * width).reshape(bins, width)[:, :n_atoms]
        for weight in (buffers.packed, buffers.square)
    )
    used = np.flatnonzero(packed.any(axis=1))
    number, total = np.divmod(packed[used], _ONE_PIXEL)
    return used, (number, total, squares[used])


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


class _Buffers(NamedTuple):
    """Memory that is used again and again; the last three are for a block, the others for a piece of it.

    A pixel lies at a whole number of units from its bin's inner edge, its *part* of the bin. The sum of
    ``_ONE_PIXEL + part`` over the pixels of a block is exact, and gives both their number and their sum.
    """

    value: np.ndarray
    y: np.ndarray
    mirror: np.ndarray
    part: np.ndarray
    kept: np.ndarray
    cell: np.ndarray
    packed: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, n: int, dtype: np.dtype) -> "_Buffers":
        pieces = [np.empty(min(n, _CHUNK), kind) for kind in (dtype, np.float32, np.int32, np.int32, np.int32)]
        return cls(*pieces, *[np.empty(min(n, _BLOCK), kind) for kind in (np.int64, float, float)])


def _fill(
    buffers: _Buffers, values: np.ndarray, good: np.ndarray, runs: Runs, width: int, centre: float, scale: float
) -> tuple[int, int]:
    """Find the table cell, bin * width + atom, and the part of each pixel; return the first and number of bins.

    Atoms have negative numbers; bad pixels go to bin 0 of atom 0.
    """
    first, last = 0, 0
    for start in range(0, values.size, _CHUNK):
        piece = slice(start, min(start + _CHUNK, values.size))
        value, y, mirror, part, kept = (buffer[: piece.stop - start] for buffer in buffers[:5])
        with np.errstate(invalid="ignore", over="ignore"):  # damaged pixels, which are bad, or in the last bin
            np.subtract(values[piece], centre, out=value)
            np.divide(value, scale, out=y, casting="same_kind")
        bits = y.view(np.int32)
        np.right_shift(bits, 31, out=mirror)
        np.abs(y, out=y)
        np.minimum(bits, _LARGEST.view(np.int32), out=bits)
        y += np.float32(1)
        np.bitwise_and(bits, ~_EDGE_BITS, out=part)
        bits >>= _SHIFT
        bits -= _FIRST_BIN
        bits ^= mirror
        kept[...] = good[piece]
        np.negative(kept, out=kept)  # all bits, or none
        bits &= kept
        first, last = min(first, int(bits.min())), max(last, int(bits.max()))
        atom = runs.part(piece.start, piece.stop).image()
        atom &= kept
        cell, packed = buffers.cell[piece], buffers.packed[piece]
        cell[...] = bits
        cell *= width
        cell += atom
        packed[...] = part
        np.multiply(packed, packed, out=buffers.square[piece])
        packed += _ONE_PIXEL
    return first, last - first + 1


def _bin_edges(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of bins nearer to the centre and farther from it, in units of scale."""
    number = _from_zero(bins)
    sign = np.where(bins < 0, -1.0, 1.0)
    return sign * (_lower_y(number) - 1), sign * (_lower_y(number + 1) - 1)


def _from_zero(bins: np.ndarray) -> np.ndarray:
    """Count the bins from the centre: the number of a bin, or of its mirror image."""
    return np.where(bins < 0, -1 - bins, bins)


def _lower_y(number: np.ndarray) -> np.ndarray:
    return ((number + _FIRST_BIN) << _SHIFT).astype(np.int32).view(np.float32).astype(float)
