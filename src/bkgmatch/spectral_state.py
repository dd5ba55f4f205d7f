"""What is measured of voxels between two fits: noise, roughness and gradient of the sky, and which to trust."""

from dataclasses import dataclass, replace

import numpy as np
from astropy.stats import sigma_clip

from bkgmatch.options import MRSIMatchOptions
from bkgmatch.spectral_samples import Samples
from bkgmatch.voxels import middles

__all__ = ["State", "clipped_planes", "deviations", "measured", "residuals", "steeper"]

_MEDIAN_OF_SQUARES = 0.4549  # of chi squared with one degree of freedom
_ERROR_OF_MEDIAN = 2.34  # of n such values, relative, times sqrt(n)
_LEAST_FREEDOM, _LEAST_TRUST = 1e-6, 0.1
_LEAST_SHARE = 0.01  # of the largest factor: two exposures that agree exactly are twins, not without noise
_LEAST_FACTOR = 1e-6
_FEW = 3
_SMOOTHING = 4  # voxels of wavelength to either side
_SURE = 4.0
_OF_MEDIAN = np.pi / 2  # its variance over that of the mean


@dataclass(frozen=True)
class State:
    """
    What is known of the exposures and of the sky, at one stage of the iteration.

    Parameters
    ----------
    coefficients : ndarray, shape (n, p)
        Polynomials.
    gradient : ndarray, shape (3, n_voxels)
        Gradient of the sky, per side of a voxel.
    trust : ndarray, shape (n_samples,)
        Factor on the weight of each sample.
    noise : ndarray, shape (n_samples,)
        Variance of each sample.
    factor : ndarray, shape (n,)
        Factor on the variances of each exposure.
    """

    coefficients: np.ndarray
    gradient: np.ndarray
    trust: np.ndarray
    noise: np.ndarray
    factor: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Weight of each sample."""
        return self.trust / self.noise

    def left(self, samples: Samples) -> np.ndarray:
        """Subtract the polynomials and the gradient of the sky from the values of samples."""
        gradient = np.einsum("ae,ae->e", self.gradient[:, samples.voxel], samples.offset)
        return samples.value - gradient - samples.polynomial(self.coefficients, samples.scaled)

    def values(self, samples: Samples) -> np.ndarray:
        """Carry the values of samples from where the pixels are to the middle of the voxels."""
        return self.left(samples) + samples.polynomial(self.coefficients, samples.middle[:, samples.voxel])


def measured(samples: Samples, state: State) -> tuple[State, np.ndarray]:
    """
    Measure the noise.

    Parameters
    ----------
    samples : Samples
        Voxels of all exposures.
    state : State
        What is known.

    Returns
    -------
    State
        With the noise as measured.
    ndarray, shape (n_samples,)
        What is left of each sample, in standard deviations.
    """
    residual, squares, known = _squares(samples, state)
    rough = _roughness(samples, squares / state.factor[samples.exposure], known)
    noise = state.factor[samples.exposure] * (samples.variance + rough)
    change = _factors(samples, squares / noise, known, state.factor)
    noise = np.maximum(noise * change[samples.exposure], samples.least_noise)
    lasting = _lasting(samples, residual, known & (state.trust > _LEAST_TRUST), noise)
    return replace(state, noise=noise + lasting, factor=state.factor * change), np.sqrt(squares / noise)


def deviations(samples: Samples, state: State) -> np.ndarray:
    """Return what is left of each sample, shape (n_samples,), in units of what is typical."""
    _, squares, known = _squares(samples, state)
    squares = squares / samples.variance
    typical = np.median(squares[known]) / _MEDIAN_OF_SQUARES if known.any() else 1.0
    return np.sqrt(squares / np.maximum(typical, samples.least_noise / samples.variance))


def residuals(samples: Samples, state: State, least_freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Find what is left of each sample as if the sky were known.

    Parameters
    ----------
    samples : Samples
        Voxels of all exposures.
    state : State
        What is known.
    least_freedom : float
        Part of its noise that a sample leaves at least: the mean of its voxel follows it.

    Returns
    -------
    residual, freedom : ndarray, shape (n_samples,)
        What is left, and that part. NaN in voxels without any trusted sample.
    """
    left = state.left(samples)
    sky, variance = samples.sky(left, state.precision)
    freedom = 1 - state.precision * variance[samples.voxel]
    return (left - sky[samples.voxel]) / np.sqrt(np.maximum(freedom, least_freedom)), freedom


def _squares(samples: Samples, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return what is left of each sample, its square, and which samples tell of noise.

    The square is infinite in voxels without any trusted sample: what has been clipped does not come back.
    """
    residual, freedom = residuals(samples, state, _LEAST_FREEDOM)
    has_sky = np.isfinite(residual)
    known = has_sky & samples.shared & (np.nan_to_num(freedom) > _LEAST_FREEDOM)
    return np.where(has_sky, residual, 0), np.where(has_sky, residual**2, np.inf), known


def _roughness(samples: Samples, squares: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Variance that the sky adds at the place of each sample: how much residuals exceed the noise there."""
    entries = np.flatnonzero(known)
    places, sizes, (square, noise) = _medians(samples.place[entries], squares[entries], samples.variance[entries])
    chance = _ERROR_OF_MEDIAN / np.sqrt(sizes)
    result = np.zeros(int(samples.place.max()) + 1)
    result[places] = np.maximum(square / _MEDIAN_OF_SQUARES - (1 + chance) * noise, 0)
    return result[samples.place]


def _factors(samples: Samples, squares: np.ndarray, known: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return what the variances of each exposure are to be multiplied by, besides the factors before."""
    result = np.ones(samples.n)
    entries = np.flatnonzero(known)
    exposures, _, (square,) = _medians(samples.exposure[entries], squares[entries])
    result[exposures] = square / _MEDIAN_OF_SQUARES
    largest = (result * before)[exposures].max(initial=0.0)
    return np.maximum(result, np.maximum(_LEAST_FACTOR, _LEAST_SHARE * largest / before))


def _medians(group: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return groups in ascending order, their sizes, and their medians of each kind of values."""
    groups, sizes = np.unique(group, return_counts=True)
    middle = np.cumsum(sizes) - sizes + sizes // 2
    return groups, sizes, [v[np.lexsort((v, group))[middle]] for v in values]


def _lasting(samples: Samples, residual: np.ndarray, known: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """
    Variance to add to each sample so that all wavelengths of a place together have the error that they share.

    It is the square of what is left of an exposure's mean over wavelength, beyond what the noise explains, times the
    number of wavelengths.
    """
    entries = np.flatnonzero(known)
    n_places = int(samples.place.max()) + 1
    columns, member = np.unique(samples.column[entries], return_inverse=True)
    count = np.bincount(member, minlength=len(columns))
    left, expected = (np.bincount(member, values[entries], len(columns)) for values in (residual, noise))
    enough = count > _FEW
    place, count = columns[enough] // samples.n, count[enough]
    several = np.maximum(np.bincount(place, minlength=n_places), 1)
    chance = 2 * np.sqrt(2 / np.maximum(several - 1, 1))[place]
    excess = (left[enough] / count) ** 2 - (1 + chance) * expected[enough] / count**2
    mean, length = (np.bincount(place, values, n_places) / several for values in (excess, count))
    return (np.maximum(mean, 0) * length)[samples.place]


def steeper(samples: Samples, state: State) -> State:
    """Measure the gradient of the sky: that of nearby wavelengths together, and what one alone surely has beyond it."""
    sky, variance = samples.sky(state.left(samples), state.precision)
    common, noise = _gradient(samples, *_smooth(samples, sky, variance))
    common = _significant(common, noise, 1)
    own, noise = _gradient(samples, sky, variance)
    return replace(state, gradient=common + _significant(own - common, noise, _SURE))


def _significant(gradient: np.ndarray, noise: np.ndarray, limit: float) -> np.ndarray:
    """Shrink a gradient where its square is not far above its variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return gradient * np.nan_to_num(np.maximum(1 - limit * noise / gradient**2, 0))


def _gradient(samples: Samples, sky: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of neighbours per side of a voxel, shape (3, voxels), and their variance; 0 where there are none."""
    before, after = (np.append(sky, np.nan)[samples.around[:, side]] for side in (0, 1))
    at_edge = np.where(np.isfinite(after), after - sky, sky - before)
    is_edge = ~np.isfinite(before + after)
    noise = np.append(variance, np.nan)[samples.around].sum(axis=1) / 4
    return np.nan_to_num(np.where(is_edge, at_edge, (after - before) / 2)), np.where(is_edge, 2 * variance, noise)


def _smooth(samples: Samples, sky: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median over nearby wavelengths at the same place, and its variance."""
    near = np.arange(-_SMOOTHING, _SMOOTHING + 1)
    index = np.clip(np.arange(len(sky))[:, None] + near, 0, len(sky) - 1)
    is_near = samples.number[index] == samples.number[:, None] + near
    is_near &= samples.sets[index] == samples.sets[:, None]
    values = np.where(is_near, sky[index], np.nan)
    count = np.isfinite(values).sum(axis=1)
    middle = np.maximum(count - 1, 0) // 2
    values = np.sort(values, axis=1)  # NaN come last
    rows = np.arange(len(sky))
    median = (values[rows, middle] + values[rows, np.maximum(count, 1) // 2]) / 2
    return median, variance * _OF_MEDIAN / np.maximum(count, 1)


def clipped_planes(samples: Samples, options: MRSIMatchOptions) -> np.ndarray:
    """Return 1 for samples within the limits of their plane of wavelength in their exposure, 0 for others."""
    kept = np.ones(len(samples.value))
    plane = middles(samples.number)[2][samples.voxel]
    order = np.lexsort((plane, samples.exposure))
    key = np.stack([samples.exposure, plane])[:, order]
    ends = np.flatnonzero((key[:, 1:] != key[:, :-1]).any(axis=0)) + 1
    for some in np.split(order, ends) if options.maxiters else ():
        clipped = sigma_clip(samples.value[some], sigma=options.sigma, maxiters=options.maxiters)
        kept[some[np.ma.getmaskarray(clipped)]] = 0
    return kept
