"""Clipped statistics of the sky: mean, median, midpoint and mode, with standard errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from bkgmatch.histograms import BinnedSets, bin_pixels
from bkgmatch.noise import PixelPairs
from bkgmatch.runs import Runs

__all__ = ["SkyLevels", "SkyStatistic"]

_KERNEL_PER_BINWIDTH = 5.0
_GRID_PER_KERNEL = 12
_FEWEST_PAIRS = 50
_MOST_SIGMA = 1e12  # instead of infinity, which times a spread of zero is no number
_EDGES = 0.25
_MOST = 1e7  # no sky, and no star, is so many times its typical value


class SkyLevels(NamedTuple):
    """
    A statistic of several sets of pixels.

    Parameters
    ----------
    value : ndarray
        The statistic; NaN where no pixel is left.
    sigma : ndarray
        Its standard error.
    npix : ndarray of int
        Number of pixels left after clipping.
    """

    value: np.ndarray
    sigma: np.ndarray
    npix: np.ndarray


class _Estimate(NamedTuple):
    """Statistic of each set, its error by the scatter of the pixels, and any other error."""

    value: np.ndarray
    error: np.ndarray
    ambiguity: np.ndarray | float = 0.0


class _Window(NamedTuple):
    """Clipping limits of each set, and the pixels between them."""

    lower: np.ndarray
    upper: np.ndarray
    n: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class SkyStatistic:
    """
    A clipped statistic of pixel values.

    Parameters
    ----------
    skystat : {"mean", "median", "midpt", "mode"}
        Which statistic.
    lower, upper : float, optional
        Limits of usable values.
    nclip : int
        Number of clipping iterations about the mean.
    lsigma, usigma : float
        Clipping limits in standard deviations.
    binwidth : float
        Bin width in standard deviations, for ``midpt`` and ``mode``.

    Notes
    -----
    The definitions are those of ``stsci.imagestats``, with two differences. The histogram of ``midpt`` has exactly
    the bin width that is asked for. ``mode`` is the peak of the distribution smoothed by a Gaussian of 5
    ``binwidth`` (0.5 standard deviations by default), which finds the most frequent value some ten times more
    precisely than three bins do. Clipping starts from what is within 1e7 times the typical value and scatter: damaged
    pixels may have anything up to 1e38, from where five iterations do not come down.

    Standard errors are those of large samples (van der Vaart 1998, *Asymptotic Statistics*, chapter 5):
    ``std/sqrt(n)`` for the mean, enlarged where the clipping limits, which move with the mean, cut into the
    distribution; ``1/(2 f sqrt(n))`` for the median and the midpoint, with ``f`` the density there; for the mode the
    scatter of the slope of the smoothed density over its curvature, and the chance that noise lifts another peak above
    the highest. Pixels are taken to have independent noise.

    Where pairs of nearby pixels are given, the error is multiplied by ``sqrt(s + (f + 1/4) (1 - s))``, with ``s = sum
    (psi_1 - psi_2)^2 / sum (psi_1^2 + psi_2^2)``, ``psi`` the influence function of the statistic and ``f`` the part of
    the pixels that is missing: structure of the sky that nearby pixels, and both exposures of a pair, have in common is
    not an error of their difference. The quarter is for the edges of the overlap, which fall anywhere between pixels:
    with W x W pixels on a sky of constant gradient g, and so of variance g^2 W^2 / 12, an edge that is off by up to
    half a pixel adds the variance g^2 / 48.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.skystats import SkyStatistic
    >>> SkyStatistic("median").of(np.array([1.0, 2.0, 3.0, 4.0, 100.0])).value
    array([3.])
    """

    skystat: str = "mode"
    lower: float | None = None
    upper: float | None = None
    nclip: int = 5
    lsigma: float = 4.0
    usigma: float = 4.0
    binwidth: float = 0.1

    def of(self, values: np.ndarray) -> SkyLevels:
        """
        Compute the statistic of one set of pixels.

        Parameters
        ----------
        values : array_like
            Pixel values; those that are not finite are left out.

        Returns
        -------
        SkyLevels
            With arrays of length 1.
        """
        values = np.ravel(np.asarray(values))
        whole = Runs(np.array([values.size]), np.array([0]))
        return self.of_sets(bin_pixels(values, self.usable(values), whole, np.ones((1, 1), dtype=bool)))

    def usable(self, values: np.ndarray) -> np.ndarray:
        """
        Find the values that are finite and within the limits.

        Parameters
        ----------
        values : ndarray
            Pixel values.

        Returns
        -------
        ndarray of bool
            Of the same shape.
        """
        use = np.isfinite(values)
        with np.errstate(over="ignore"):  # limits that single precision does not reach are none
            if self.lower is not None:
                use &= values >= self.lower
            if self.upper is not None:
                use &= values <= self.upper
        return use

    def of_sets(self, sets: BinnedSets, pairs: PixelPairs | None = None) -> SkyLevels:
        """
        Compute the statistic of each of several sets.

        Parameters
        ----------
        sets : BinnedSets
            Binned pixels, all usable.
        pairs : PixelPairs, optional
            Pairs of nearby pixels. With them, the errors are those of the noise alone; else the scatter of the sky
            itself counts too.

        Returns
        -------
        SkyLevels
            With arrays of length n_sets, in units of the data.
        """
        value, sigma, npix = (np.full(len(sets), fill) for fill in (np.nan, np.nan, 0))
        window = self._clip(sets)
        some = np.flatnonzero(window.n > 0.5)
        if some.size:
            found = _STATISTICS[self.skystat](self, sets, window)
            share = 1.0 if pairs is None else self._noise_share(sets, pairs, window, found.value)
            error = np.hypot(found.error * np.sqrt(share), found.ambiguity)
            value[some] = sets.centre + sets.scale * found.value[some]
            sigma[some] = sets.scale * error[some]
            npix[some] = np.rint(window.n[some])
        return SkyLevels(value, sigma, npix)

    def _clip(self, sets: BinnedSets) -> _Window:
        most = _MOST * (1 + abs(sets.centre) / sets.scale) if self.nclip else np.inf
        window = _window(sets, np.full(len(sets), -most), np.full(len(sets), most))
        for _ in range(self.nclip):
            before = window.n
            slack = 1e-9 * (1 + np.abs(window.mean))  # rounding must not cut off a spread of zero
            window = _window(
                sets,
                window.mean - min(self.lsigma, _MOST_SIGMA) * window.std - slack,
                window.mean + min(self.usigma, _MOST_SIGMA) * window.std + slack,
            )
            if np.array_equal(window.n, before):
                break
        return window

    def _noise_share(self, sets: BinnedSets, pairs: PixelPairs, window: _Window, value: np.ndarray) -> np.ndarray:
        """Share of the variance of the statistic that both exposures of a pair do not have in common."""
        pair, member = np.nonzero(pairs.members)
        one, two = (
            self._influence((v[pair] - sets.centre) / sets.scale, window, value, member) for v in (pairs.one, pairs.two)
        )
        count, apart, each = (
            np.bincount(member, weights, minlength=len(sets)) for weights in (None, (one - two) ** 2, one**2 + two**2)
        )
        known = (count >= _FEWEST_PAIRS) & (each > 0)
        noise = np.divide(apart, each, out=np.ones(len(sets)), where=known)
        noise = np.maximum(noise, 1 / np.maximum(count, 1))  # a sample that shows none proves no more than this
        different = np.minimum(pairs.missing + _EDGES, 1)
        return np.where(known, noise + different * np.maximum(1 - noise, 0), 1.0)

    def _influence(self, values: np.ndarray, window: _Window, value: np.ndarray, member: np.ndarray) -> np.ndarray:
        """Effect of each value on the statistic of the set that it is a member of, but for a factor."""
        inside = (values >= window.lower[member]) & (values <= window.upper[member])
        distance = np.where(inside, values - value[member], 0)
        if self.skystat == "mean":
            return distance
        if self.skystat in ("median", "midpt"):
            return np.sign(distance)
        kernel = _KERNEL_PER_BINWIDTH * self.binwidth * window.std[member]
        u = np.divide(distance, kernel, out=np.zeros_like(distance), where=kernel > 0)
        return u * np.exp(-0.5 * u**2)


def _window(sets: BinnedSets, lower: np.ndarray, upper: np.ndarray) -> _Window:
    below, above = sets.below(lower, inclusive=False), sets.below(upper, inclusive=True)
    n, total, squares = (high - low for low, high in zip(below, above, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = (squares - n * mean**2) / np.maximum(n - 1, 1)
    return _Window(lower, upper, n, mean, np.sqrt(np.maximum(variance, 0)))


def _mean(statistic: SkyStatistic, sets: BinnedSets, window: _Window) -> _Estimate:
    return _Estimate(window.mean, _mean_error(statistic, sets, window))


def _mean_error(statistic: SkyStatistic, sets: BinnedSets, window: _Window) -> np.ndarray:
    """Error of the clipped mean: it grows by 1/(1 - shift of the mean for a unit shift of the limits)."""
    error = window.std / np.sqrt(window.n)
    if statistic.nclip == 0:
        return error
    low, high = _edge_densities(sets, window)
    shift = window.std * (statistic.lsigma * low + statistic.usigma * high) / window.n
    return error / (1 - np.minimum(np.nan_to_num(shift), 0.8))


def _edge_densities(sets: BinnedSets, window: _Window) -> list[np.ndarray]:
    """Pixels per unit of value at both clipping limits."""
    reach = 0.1 * window.std
    counts = [
        sets.below(limit + reach, inclusive=True).n - sets.below(limit - reach, inclusive=True).n
        for limit in (window.lower, window.upper)
    ]
    return [np.divide(count, 2 * reach, out=np.zeros_like(reach), where=reach > 0) for count in counts]


def _median(statistic: SkyStatistic, sets: BinnedSets, window: _Window) -> _Estimate:
    rank = sets.below(window.lower, inclusive=False).n + window.n / 2
    median = (sets.quantile(rank, side="left") + sets.quantile(rank, side="right")) / 2
    return _Estimate(median, _median_error(statistic, sets, window, median))


def _midpt(statistic: SkyStatistic, sets: BinnedSets, window: _Window) -> _Estimate:
    """Median interpolated in a histogram that starts at the least pixel."""
    start = sets.below(window.lower, inclusive=False).n
    rank = start + window.n / 2
    least = np.maximum(sets.quantile(start, side="right"), window.lower)
    median = sets.quantile(rank, side="left")
    width = statistic.binwidth * window.std
    with np.errstate(invalid="ignore", divide="ignore"):
        edge = least + width * np.floor((median - least) / width)
        before = sets.below(edge, inclusive=False).n
        within = sets.below(edge + width, inclusive=False).n - before
        midpoint = edge + width * np.clip((rank - before) / within, 0, 1)
    midpoint = np.where(np.isfinite(midpoint), midpoint, median)
    return _Estimate(midpoint, _median_error(statistic, sets, window, midpoint))


def _median_error(statistic: SkyStatistic, sets: BinnedSets, window: _Window, median: np.ndarray) -> np.ndarray:
    """Error of the clipped median: its own, and what it follows when the limits move with the mean."""
    density = np.zeros(len(sets))
    for k in np.flatnonzero(window.std > 0).tolist():
        kernel = window.std[k] * min(0.5, window.n[k] ** -0.2)  # narrower with more pixels: less bias
        values, weights = _inside(sets, window, k)
        bell = np.exp(-0.5 * ((values - median[k]) / kernel) ** 2)
        density[k] = (weights * bell).sum() / (np.sqrt(2 * np.pi) * kernel)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(density > 0, np.sqrt(window.n) / (2 * density), window.std)
        if statistic.nclip > 0:
            follow = sum(_edge_densities(sets, window)) / (2 * density)
            error = error + np.nan_to_num(follow) * _mean_error(statistic, sets, window)
    return np.minimum(error, window.std)


def _mode(statistic: SkyStatistic, sets: BinnedSets, window: _Window) -> _Estimate:
    mode, error, ambiguity = window.mean.copy(), np.zeros(len(sets)), np.zeros(len(sets))
    for k in np.flatnonzero(window.std > 0).tolist():
        kernel = _KERNEL_PER_BINWIDTH * statistic.binwidth * window.std[k]
        mode[k], error[k], ambiguity[k] = _peak(*_inside(sets, window, k), kernel)
    # A few pixels have no curvature to speak of.
    return _Estimate(mode, np.minimum(error, window.std), np.minimum(ambiguity, window.std))


def _peak(values: np.ndarray, weights: np.ndarray, kernel: float) -> tuple[float, float, float]:
    """Peak of a distribution smoothed by a Gaussian, its standard error, and the error from rival peaks."""
    grid, density = _smooth(values, weights, kernel)
    peak = grid[density.argmax()]
    for _ in range(2):
        u = (values - peak) / kernel
        bell = weights * np.exp(-0.5 * u**2)
        curvature = ((1 - u**2) * bell).sum()
        if curvature <= 0:
            return peak, np.inf, 0.0
        peak += np.clip(kernel * (u * bell).sum() / curvature, -0.1 * kernel, 0.1 * kernel)
    error = kernel * np.sqrt((u**2 * bell * np.exp(-0.5 * u**2)).sum()) / curvature
    return peak, error, _rivalry(grid, density, peak)


def _smooth(values: np.ndarray, weights: np.ndarray, kernel: float) -> tuple[np.ndarray, np.ndarray]:
    """Grid, and the sum of a Gaussian of height 1 around each pixel."""
    step = kernel / _GRID_PER_KERNEL
    start = values.min()
    position = (values - start) / step
    cell = position.astype(int)
    share = position - cell
    counts = np.bincount(cell, weights * (1 - share), minlength=cell.max() + 2)
    counts[1:] += np.bincount(cell, weights * share, minlength=cell.max() + 2)[:-1]
    reach = 4 * _GRID_PER_KERNEL
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _GRID_PER_KERNEL) ** 2)
    return start + step * np.arange(len(counts)), np.convolve(counts, bell)[reach:-reach]


def _rivalry(grid: np.ndarray, density: np.ndarray, peak: float) -> float:
    """Rms shift from other peaks that noise may lift above the highest: the variance of a height is height/sqrt(2)."""
    rival = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])) + 1
    rival = rival[rival != density.argmax()]
    deficit = density.max() - density[rival]
    chance = ndtr(-deficit / np.sqrt((density.max() + density[rival]) / np.sqrt(2)))
    return float(np.sqrt((chance * (grid[rival] - peak) ** 2).sum()))


def _inside(sets: BinnedSets, window: _Window, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each bin of one set between the clipping limits, and the number of pixels in it."""
    low, high, count = sets.low[k], sets.high[k], sets.counts[k]
    middle = (low + high) / 2
    use = (count > 0) & (middle >= window.lower[k]) & (middle <= window.upper[k])
    return middle[use], count[use]


_STATISTICS: dict[str, Callable[[SkyStatistic, BinnedSets, _Window], _Estimate]] = {
    "mean": _mean,
    "median": _median,
    "midpt": _midpt,
    "mode": _mode,
}
