"""Statistics of a stack of images without some of them, for each of them, from one sort."""

from collections.abc import Iterator
from typing import get_args

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from bkgmatch.execution import run
from bkgmatch.options import MergeMethod

__all__ = ["merge_all", "merge_others", "variance_of_middle"]

_VARIANCE_OF_MEDIAN = (1.0, 1.0, 1.346, 1.193, 1.434, 1.288, 1.473, 1.346)

_PIXELS = 1 << 19  # of a strip of rows, in all images: they stay in the cache


def merge_others(
    stack: np.ndarray,
    donors: np.ndarray,
    *,
    method: MergeMethod = "mean",
    noise: np.ndarray | None = None,
    sigma: float = 3.0,
    out: np.ndarray | None = None,
    out_count: np.ndarray | None = None,
    cores: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Merge, for each image of a stack, the others that may serve it.

    Parameters
    ----------
    stack : ndarray of float32, shape (n, ny, nx)
        Images, NaN where they are not good. It is not changed, unless it is also ``out``.
    donors : ndarray of bool, shape (n, n)
        ``donors[t, d]``: image d may serve image t. No image serves itself.
    method : {"mean", "median"}
        Statistic of each pixel.
    noise : ndarray, shape (ny, nx), optional
        Standard deviation of a pixel of one image. With it, the mean leaves out pixels farther than ``sigma`` times it
        from the median of all images that serve each other, directly or through others; of an even number, the lower
        of the two in the middle: cosmic rays are bright.
    sigma : float
        Limit of these.
    out : ndarray of float32, shape (n, ny, nx), optional
        Where to write the result: other memory than the stack, or the stack itself.
    out_count : ndarray of uint16, shape (n, ny, nx), optional
        Where to write the numbers of donors.
    cores : int
        Number of threads.

    Returns
    -------
    value : ndarray of float32, shape (n, ny, nx)
        For each image the statistic of its donors, NaN where there is none.
    count : ndarray of uint16, shape (n, ny, nx)
        Number of donors used.

    Raises
    ------
    ValueError
        If shapes do not agree, the method is unknown, or an image is to serve itself.

    Notes
    -----
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
    _check(stack, donors, method, noise, out)
    value = np.empty(stack.shape, dtype=np.float32) if out is None else out
    count = np.empty(stack.shape, dtype=np.uint16) if out_count is None else out_count
    donors = donors.astype(bool)
    n, ny, nx = stack.shape
    pools = list(_pools(donors))

    def merge_strip(rows: slice) -> None:
        part = np.asarray(stack[:, rows], dtype=np.float32)
        block = part.reshape(n, part[0].size)
        limit = None if noise is None else sigma * np.asarray(noise[rows], dtype=np.float32).ravel()
        merged = np.full(block.shape, np.nan, dtype=np.float32)
        number = np.zeros(block.shape, dtype=np.uint16)
        for members, serves in pools:
            some = block[members]
            if method == "median":
                merged[members], number[members] = _medians(some, serves)
            else:
                kept = some if limit is None else _without_outliers(some, limit)
                merged[members], number[members] = _means(kept, serves)
        value[:, rows] = merged.reshape(part.shape)
        count[:, rows] = number.reshape(part.shape)

    height = max(1, _PIXELS // max(n * nx, 1))
    run(merge_strip, [slice(row, row + height) for row in range(0, ny, height)], cores=cores)
    return value, count


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
    kept = _without_outliers(block, np.full(block.shape[1], sigma * noise, dtype=np.float32))
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
    stack: np.ndarray, donors: np.ndarray, method: str, noise: np.ndarray | None, out: np.ndarray | None
) -> None:
    if method not in get_args(MergeMethod):
        raise ValueError(f"method={method!r}: choose 'mean' or 'median'")
    if stack.ndim != 3:
        raise ValueError(f"the stack must have the shape (n, ny, nx), got {stack.shape}")
    if donors.shape != (len(stack), len(stack)):
        raise ValueError(f"donors must have the shape {(len(stack), len(stack))}, got {donors.shape}")
    if np.diagonal(donors).any():
        raise ValueError("an image cannot serve itself: the diagonal of donors must be False")
    if noise is not None and noise.shape != stack.shape[1:]:
        raise ValueError(f"the noise has shape {noise.shape}, the images {stack.shape[1:]}")
    if out is not None and (out.shape != stack.shape or out.dtype.newbyteorder("=") != np.float32):
        raise ValueError(f"out must be float32 of shape {stack.shape}, got {out.dtype} of shape {out.shape}")


def _pools(donors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield sets of images that serve each other, and which of them serves which."""
    _, pool = connected_components(sparse.csr_array(donors), directed=False)
    for number in range(pool.max(initial=-1) + 1):
        members = np.flatnonzero(pool == number)
        if len(members) > 1:
            yield members, donors[np.ix_(members, members)]


def _without_outliers(block: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Set pixels to NaN that are too far from the median of all."""
    order, count = np.sort(block, axis=0), np.isfinite(block).sum(axis=0)
    middle = np.take_along_axis(order, np.maximum(count - 1, 0)[None] // 2, axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(block - middle) > limit, np.float32(np.nan), block)


def _means(block: np.ndarray, donors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and number of the donors of each image."""
    known = np.isfinite(block)
    total = donors.astype(np.float64) @ np.where(known, block, 0)
    number = donors.astype(np.float32) @ known.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / number).astype(np.float32), number.astype(np.uint16)


def _medians(block: np.ndarray, donors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and number of the donors of each image."""
    order, known = np.sort(block.T, axis=1), np.isfinite(block)
    total = known.sum(axis=0, dtype=np.int32)
    value, number = np.empty(block.shape, dtype=np.float32), np.empty(block.shape, dtype=np.uint16)
    sets, set_of = np.unique(donors, axis=0, return_inverse=True)
    for k, left_out in enumerate(~sets):
        targets = set_of.ravel() == k
        number[targets] = total - known[left_out].sum(axis=0, dtype=np.int32)
        value[targets] = _middle(order, total, np.sort(block[left_out], axis=0))
    return value, number


def _middle(order: np.ndarray, total: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """
    Median of sorted values, some left out.

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
    ndarray of float32, shape (n_pixels,)
        Median of the rest, NaN where nothing is left.
    """
    rest = total - np.isfinite(left_out).sum(axis=0, dtype=np.int32)
    start = np.arange(0, order.size, order.shape[1], dtype=np.int32)
    flat = order.ravel()

    def at_rank(rank: np.ndarray) -> np.ndarray:
        place = start + np.maximum(rank, 0)
        for value in left_out:
            place += value <= flat.take(place, mode="clip")
        return flat.take(place, mode="clip")

    low, high = at_rank((rest - 1) // 2), at_rank(rest // 2)
    mean = (low + high + np.float32(0)) / np.float32(2)  # as NumPy has it: -0 becomes 0
    return np.where(rest > 0, mean, np.float32(np.nan))
