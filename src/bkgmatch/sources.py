"""Masks of sources, and the background without them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from astropy.stats import SigmaClippedStats
from scipy import ndimage

from bkgmatch.execution import HERE, Work
from bkgmatch.options import LevelMatchOptions

__all__ = ["background_level", "segments", "source_mask"]

_FEW = 1 << 22  # values that are sorted, and not binned
_PER_UNIT, _UNITS = 1024, 100  # bins, and how many units of the inverse hyperbolic sine they reach to either side
_BLOCK = 1 << 20
_IMAGES = 4  # in memory at a time
_QUARTILES = 1.349  # standard deviations between them
_LEAST_SCALE, _ROUNDING = 1e-9, 1e-12  # relative
_LEAST_SIZE = 1e-10  # squares of what is left of smaller values, less their mean, are 0 in single precision


def source_mask(image: np.ndarray, options: LevelMatchOptions) -> np.ndarray:
    """
    Find the pixels of sources.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Image, NaN where it is not good.
    options : LevelMatchOptions
        Threshold, least size, growth.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True on sources: connected pixels, also across corners, that are ``sigma`` standard deviations above the mean
        of the clipped pixels, as `photutils.segmentation.detect_sources` finds them.
    """
    good = np.isfinite(image)
    if not good.any():
        return np.zeros(image.shape, dtype=bool)
    clipped, unit = _clipped(image[good], options)
    threshold = unit * (clipped.mean() + options.sigma * clipped.std())
    del clipped
    mask = np.greater(image, threshold, where=good, out=np.zeros(image.shape, dtype=bool))
    mask = segments(mask, options.npixels) > 0
    side = max(options.dilate_size, 1)
    return ndimage.maximum_filter(mask, side, origin=side % 2 - 1)  # even squares reach up and right


def segments(bright: np.ndarray, npixels: int) -> np.ndarray:
    """
    Label connected pixels, also across corners.

    Parameters
    ----------
    bright : ndarray of bool, shape (ny, nx)
        Pixels.
    npixels : int
        How many pixels there must be together.

    Returns
    -------
    ndarray of int32, shape (ny, nx)
        Their numbers, from 1 on; 0 elsewhere.
    """
    labels, _ = ndimage.label(bright, np.ones((3, 3)))
    found = labels[bright]
    large = np.bincount(found) >= npixels
    labels[bright] = (np.cumsum(large) * large)[found]
    return labels


def background_level(images: Iterable[np.ndarray], options: LevelMatchOptions, *, work: Work = HERE) -> float:
    """
    Find the background of images of one tile.

    Parameters
    ----------
    images : iterable of ndarray
        Images, NaN where they are not good. A few at a time are in memory.
    options : LevelMatchOptions
        Threshold of sources, and of clipping.
    work : Work, optional
        How the work is done; by default in the calling thread.

    Returns
    -------
    float
        Clipped median of the pixels without sources; NaN if there are none. Of many pixels it is found in narrow bins:
        this changes it by a few per cent of its standard error.
    """
    bins: _Bins | None = None
    waiting: list[np.ndarray] = []
    for values in _sourceless(iter(images), options, work):
        waiting.append(values)
        if sum(values.size for values in waiting) > _FEW:
            bins = bins or _Bins.around(np.concatenate(waiting))
            bins.add(waiting)
            waiting = []
    if bins is not None:
        bins.add(waiting)
        return bins.clipped_median(options)
    values = np.concatenate([*waiting, np.empty(0, dtype=np.float32)])
    if not values.size:
        return float("nan")
    clipped, unit = _clipped(values, options)
    return unit * float(clipped.median())


def _clipped(values: np.ndarray, options: LevelMatchOptions) -> tuple[SigmaClippedStats, float]:
    """Clipped statistics of values in a unit in which their squares have a place in single precision; and the unit."""
    largest = float(max(values.max(), -values.min()))
    unit = 1.0 if largest > _LEAST_SIZE or not largest else largest
    return SigmaClippedStats(values / values.dtype.type(unit), sigma=options.sigma, maxiters=options.max_iters), unit


def _sourceless(images: Iterator[np.ndarray], options: LevelMatchOptions, work: Work) -> Iterator[np.ndarray]:
    """Yield the pixels of each image that are not on sources."""

    def pixels(image: np.ndarray) -> np.ndarray:
        return image[np.isfinite(image) & ~source_mask(image, options)]

    while some := list(islice(images, _IMAGES)):
        found = work.run_here(pixels, some)
        some.clear()  # before the next are made
        yield from found
        del found


@dataclass(frozen=True)
class _Bins:
    """
    Values in bins of equal width in the inverse hyperbolic sine: a thousandth of the scale near the centre.

    ``sums`` has, for each bin, the number of values, and the sums of their distances from the centre, in scales, and of
    the squares of these.
    """

    centre: float
    scale: float
    sums: np.ndarray = field(default_factory=lambda: np.zeros((3, 2 * _PER_UNIT * _UNITS + 1)))

    @classmethod
    def around(cls, values: np.ndarray) -> "_Bins":
        """Bins for values like these."""
        low, centre, high = np.percentile(values, [25, 50, 75]).tolist() if values.size else (0.0, 0.0, 0.0)
        least = _LEAST_SCALE * (abs(centre) or 1.0)
        return cls(centre, max((high - low) / _QUARTILES, least))

    def add(self, arrays: Iterable[np.ndarray]) -> None:
        """Count values."""
        for values in arrays:
            for start in range(0, values.size, _BLOCK):
                distance = (values[start : start + _BLOCK] - np.float64(self.centre)) / self.scale
                bins = np.rint(_PER_UNIT * np.arcsinh(distance)).astype(np.int64) + _PER_UNIT * _UNITS
                for total, weights in zip(self.sums, (None, distance, distance**2), strict=True):
                    total += np.bincount(bins, weights, total.size)

    def clipped_median(self, options: LevelMatchOptions) -> float:
        """
        Median of the values without those that are too far from it.

        The values of a bin are taken to be spread evenly, with the mean and the variance that they have.
        """
        kept = self.sums[:, self.sums[0] > 0]
        mean, share = kept[1] / kept[0], np.ones(kept.shape[1])
        width = np.sqrt(12 * np.maximum(kept[2] / kept[0] - mean**2, _ROUNDING * (1 + mean**2)))
        for _ in range(options.max_iters):
            number, total, squares = (kept * share).sum(axis=1)
            limit = options.sigma * np.sqrt(max(squares / number - (total / number) ** 2, 0))
            distance = np.abs(mean - _median(kept[0] * share, mean, width))
            before, share = share, np.minimum(share, np.clip((limit - distance) / width + 0.5, 0, 1))
            if np.array_equal(before, share):
                break
        return self.centre + self.scale * _median(kept[0] * share, mean, width)


def _median(number: np.ndarray, mean: np.ndarray, width: np.ndarray) -> float:
    """Median of binned values, interpolated within its bin."""
    below = np.cumsum(number)
    k = int(np.searchsorted(below, below[-1] / 2))
    part = 0.5 - (below[k] - below[-1] / 2) / number[k]
    return float(mean[k] + part * width[k])
