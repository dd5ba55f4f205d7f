"""Statistics of a stack of images without some of them, for each of them, from one sort."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from bkgmatch.execution import HERE, Work
from bkgmatch.options import MergeMethod
from bkgmatch.stored import Stack

__all__ = ["merge_all", "merge_others", "variance_of_middle"]

_VARIANCE_OF_MEDIAN = (1.0, 1.0, 1.346, 1.193, 1.434, 1.288, 1.473, 1.346)

_PIXELS = 1 << 14  # of a strip of rows: those of all images stay in the cache
_BAND = 1 << 23  # pixels of all images that are read together
_PAGE = 2048  # elements of two bytes


def merge_others(
    stack: Stack,
    donors: np.ndarray,
    *,
    method: MergeMethod = "mean",
    noise: np.ndarray | None = None,
    scatter: np.ndarray | None = None,
    sigma: float = 3.0,
    out: Stack | None = None,
    out_count: Stack | None = None,
    out_effective: Stack | None = None,
    work: Work = HERE,
) -> tuple[Stack, Stack]:
    r"""
    Merge, for each image of a stack, the others that may serve it.

    Parameters
    ----------
    stack : Stack of float32, shape (n, ny, nx)
        Images, NaN where they are not good. It is not changed, unless it is also ``out``.
    donors : ndarray of bool, shape (n, n)
        ``donors[t, d]``: image d may serve image t. No image serves itself.
    method : {"mean", "median"}
        Statistic of each pixel.
    noise : ndarray, shape (ny, nx), optional
        Standard deviation of a pixel of one image. With it, the mean leaves out pixels of an image that are farther
        than ``sigma`` times it from the median of that image and all that serve it or that it serves; of an even
        number, the lower of the two in the middle: cosmic rays are bright.
    scatter : ndarray, shape (n,), optional
        Standard deviation of each image in units of ``noise``, by default 1. The mean has weights of the inverse
        squares.
    sigma : float
        Limit of these.
    out : Stack of float32, shape (n, ny, nx), optional
        Where to write the result: other memory than the stack, or the stack itself.
    out_count : Stack of uint16, shape (n, ny, nx), optional
        Where to write the numbers of donors.
    out_effective : Stack, shape (n, ny, nx), optional
        Where to write the effective numbers of donors: how many of scatter 1 would give the same variance.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    value : Stack of float32, shape (n, ny, nx)
        For each image the statistic of its donors, NaN where there is none.
    count : Stack of uint16, shape (n, ny, nx)
        Number of donors used.

    Raises
    ------
    ValueError
        If shapes do not agree, the method is unknown, or an image is to serve itself.

    Notes
    -----
    The effective number of donors is :math:`\sum 1/s_d^2` for the mean with weights and scatters *s*, and
    :math:`(\sum 1/s_d)^2 / n` for the median, as its variance goes with the inverse square of the density of values in
    the middle.

    Each pixel is sorted once. What is at a given rank when some values are left out is found by counting these up to
    that rank, which gives the same bits as the median of the others alone.

    Examples
    --------
    >>> import numpy as np
    >>> stack = np.array([1, 2, 3, 10], dtype=np.float32).reshape(4, 1, 1)
    >>> value, count = merge_others(stack, ~np.eye(4, dtype=bool), method="median")
    >>> value.ravel()
    array([3., 3., 2., 2.], dtype=float32)
    """
    _check(stack, donors, method, noise, scatter, out)
    value = np.empty(stack.shape, dtype=np.float32) if out is None else out
    count = np.empty(stack.shape, dtype=np.uint16) if out_count is None else out_count
    spread = np.ones(len(stack)) if scatter is None else np.asarray(scatter, dtype=float)
    limit = None
    if noise is not None:
        limit = work.stack("limit", 1, stack.shape[1:], np.float32)
        limit[0] = sigma * np.asarray(noise, dtype=np.float32)
    merge = _Merge(stack, value, count, out_effective, list(_pools(donors.astype(bool))), spread, method, limit)
    work.run(merge.band, _bands(stack, work), what="Merging exposures (in bands of rows)", keep=False)
    return value, count


@dataclass(frozen=True)
class _Merge:
    """What is merged, and where the result goes."""

    stack: Stack
    value: Stack
    count: Stack
    effective: Stack | None
    pools: list[tuple[np.ndarray, np.ndarray]]
    spread: np.ndarray
    method: MergeMethod
    limit: Stack | None

    def band(self, rows: slice) -> None:
        """Merge some rows."""
        limit = None if self.limit is None else self.limit[:, rows][0]
        part = np.asarray(self.stack[:, rows], dtype=np.float32)
        merged = np.full(part.shape, np.nan, dtype=np.float32)
        number = np.zeros(part.shape, dtype=np.uint16)
        effective = np.zeros(part.shape, dtype=np.float32)
        height = max(1, _PIXELS // max(part.shape[2], 1))
        for row in range(0, part.shape[1], height):
            strip = slice(row, row + height)
            for members, serves in self.pools:
                block = part[members, strip]
                found = self._merged(block, None if limit is None else limit[strip], serves, self.spread[members])
                value, count, share = (array.reshape(block.shape) for array in found)
                merged[members, strip], number[members, strip], effective[members, strip] = value, count, share
        self.value[:, rows] = merged
        self.count[:, rows] = number
        if self.effective is not None:
            self.effective[:, rows] = effective

    def _merged(
        self, block: np.ndarray, limit: np.ndarray | None, serves: np.ndarray, factor: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flat = block.reshape(len(block), -1)
        if self.method == "median":
            return _medians(flat, serves, factor)
        kept = flat if limit is None else _without_outliers(flat, limit.ravel(), serves, factor)
        return _means(kept, serves, factor)


def _bands(stack: Stack, work: Work) -> list[slice]:
    """
    Rows that are merged together: of arrays, those that stay in the cache; of files, those that fit into memory.

    Where several machines write to files, bands begin at multiples of a page: no two write to the same page.
    """
    n, ny, nx = stack.shape
    if isinstance(stack, np.ndarray):
        height = max(1, _PIXELS // max(nx, 1))
    else:
        unit = 1 if work.shares_memory else _PAGE // math.gcd(_PAGE, max(nx, 1))
        height = max(1, _BAND // max(n * nx * unit, 1)) * unit
    return [slice(row, min(row + height, ny)) for row in range(0, ny, height)]


def merge_all(stack: np.ndarray, noise: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Take the mean of all images of a stack, without outliers.

    Parameters
    ----------
    stack : ndarray of float32, shape (n, ny, nx)
        Images, NaN where they are not good.
    noise : float
        Standard deviation of a pixel.
    sigma : float
        Pixels farther than this from the median, in standard deviations, are left out, as `merge_others` does.

    Returns
    -------
    mean : ndarray of float32, shape (ny, nx)
        NaN where there is no pixel.
    count : ndarray of int, shape (ny, nx)
        Number of pixels used.
    """
    block = stack.reshape(len(stack), -1)
    everyone, limit = np.ones((len(stack), len(stack)), dtype=bool), np.full(block.shape[1], sigma * noise)
    kept = _without_outliers(block, limit.astype(np.float32), everyone, np.ones(len(stack)))
    count = np.isfinite(kept).sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(kept, axis=0, dtype=np.float64) / count
    return mean.astype(np.float32).reshape(stack.shape[1:]), count.reshape(stack.shape[1:])


def variance_of_middle(count: np.ndarray, method: MergeMethod) -> np.ndarray:
    """
    Variance of the mean or median of normal deviates.

    Parameters
    ----------
    count : ndarray of int
        Numbers of deviates, at least 1.
    method : {"mean", "median"}
        Which.

    Returns
    -------
    ndarray of float32
        In units of the variance of a deviate: 1 / n, and for the median c_n / n, with the exact c_n up to 8 and the
        first terms of a series in 1 / n, fitted to simulations to 0.5 %, beyond.
    """
    n = np.arange(1, int(count.max(initial=1)) + 1)
    factor = np.ones(len(n))
    if method == "median":
        factor = np.pi / 2 * (1 - np.where(n % 2, 0.43, 1.22) / n)
        known = min(len(n), len(_VARIANCE_OF_MEDIAN))
        factor[:known] = _VARIANCE_OF_MEDIAN[:known]
    return (factor / n).astype(np.float32)[np.maximum(count, 1) - 1]


def _check(
    stack: Stack,
    donors: np.ndarray,
    method: str,
    noise: np.ndarray | None,
    scatter: np.ndarray | None,
    out: Stack | None,
) -> None:
    if method not in get_args(MergeMethod):
        raise ValueError(f"method={method!r}: choose 'mean' or 'median'")
    if len(stack.shape) != 3:
        raise ValueError(f"the stack must have the shape (n, ny, nx), got {stack.shape}")
    if donors.shape != (len(stack), len(stack)):
        raise ValueError(f"donors must have the shape {(len(stack), len(stack))}, got {donors.shape}")
    if np.diagonal(donors).any():
        raise ValueError("an image cannot serve itself: the diagonal of donors must be False")
    if noise is not None and noise.shape != stack.shape[1:]:
        raise ValueError(f"the noise has shape {noise.shape}, the images {stack.shape[1:]}")
    if scatter is not None and scatter.shape != (len(stack),):
        raise ValueError(f"the scatter has shape {scatter.shape}; give one number for each of the {len(stack)} images")
    if out is not None and (out.shape != stack.shape or out.dtype.newbyteorder("=") != np.float32):
        raise ValueError(f"out must be float32 of shape {stack.shape}, got {out.dtype} of shape {out.shape}")


def _pools(donors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield sets of images that serve each other, and which of them serves which."""
    _, pool = connected_components(sparse.csr_array(donors), directed=False)
    for number in range(pool.max(initial=-1) + 1):
        members = np.flatnonzero(pool == number)
        if len(members) > 1:
            yield members, donors[np.ix_(members, members)]


def _without_outliers(block: np.ndarray, limit: np.ndarray, serves: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Set pixels of each image to NaN that are too far from the median of it and those that it has to do with."""
    order, total = _sorted(block)
    company = serves | serves.T | np.eye(len(block), dtype=bool)
    kept = np.empty_like(block)
    for some, left_out in _same_sets(company):
        low, _, _ = _middle(order, total, np.sort(block[left_out], axis=0))
        with np.errstate(invalid="ignore"):
            far = np.abs(block[some] - low) > limit * factor[some, None].astype(np.float32)
        kept[some] = np.where(far, np.float32(np.nan), block[some])
    return kept


def _means(block: np.ndarray, donors: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean, number and effective number of the donors of each image."""
    known = np.isfinite(block)
    weights = donors / factor**2
    total, effective = weights @ np.where(known, block, 0), weights @ known
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / effective).astype(np.float32), _numbers(donors, known), effective


def _medians(block: np.ndarray, donors: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, number and effective number of the donors of each image."""
    order, total = _sorted(block)
    known, value = np.isfinite(block), np.empty(block.shape, dtype=np.float32)
    for targets, left_out in _same_sets(donors):
        low, high, rest = _middle(order, total, np.sort(block[left_out], axis=0))
        mean = (low + high + np.float32(0)) / np.float32(2)  # as NumPy has it: -0 becomes 0
        value[targets] = np.where(rest > 0, mean, np.float32(np.nan))
    number = _numbers(donors, known)
    density = (donors / factor).astype(np.float32) @ known.astype(np.float32)
    return value, number, density**2 / np.maximum(number, 1)


def _numbers(donors: np.ndarray, known: np.ndarray) -> np.ndarray:
    return (donors.astype(np.float32) @ known.astype(np.float32)).astype(np.uint16)


def _sorted(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of each pixel in ascending order, shape (n_pixels, n), NaN at the end; and how many are not."""
    return np.sort(block.T, axis=1), np.isfinite(block).sum(axis=0, dtype=np.int32)


def _same_sets(sets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which images have the same set of others, and which others are not in it."""
    different, number = np.unique(sets, axis=0, return_inverse=True)
    for k, members in enumerate(different):
        yield number.ravel() == k, ~members


def _middle(order: np.ndarray, total: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Find the middle of sorted values, some left out.

    Parameters
    ----------
    order : ndarray, shape (n_pixels, n)
        Ascending values of each pixel, NaN at the end.
    total : ndarray of int, shape (n_pixels,)
        Number of values that are not NaN.
    left_out : ndarray, shape (n_left_out, n_pixels)
        Ascending values that are left out, each one of the pixel's; NaN at the end.

    Returns
    -------
    low, high : ndarray of float32, shape (n_pixels,)
        The lower and the higher of the values in the middle, the same of an odd number; anything where nothing is left.
    rest : ndarray of int, shape (n_pixels,)
        Number of the values that are left.
    """
    rest = total - np.isfinite(left_out).sum(axis=0, dtype=np.int32)
    start = np.arange(0, order.size, order.shape[1], dtype=np.int32)
    flat = order.ravel()

    def at_rank(rank: np.ndarray) -> np.ndarray:
        place = start + np.maximum(rank, 0)
        for value in left_out:
            place += value <= flat.take(place, mode="clip")
        return flat.take(place, mode="clip")

    return at_rank((rest - 1) // 2), at_rank(rest // 2), rest
