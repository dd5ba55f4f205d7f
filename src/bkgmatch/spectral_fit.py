"""Polynomials that make exposures agree in common voxels: robust, with the noise and the roughness of the sky measured.

The model of a voxel is ``value = sky + gradient . offset + polynomial``: the gradient of the sky serves where the
pixels of two exposures are not centred on the same point of a voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from astropy.stats import sigma_clip

from bkgmatch.execution import run
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.pairs import pair_equations
from bkgmatch.polynomial_sums import PolynomialSums, Weights, join, sum_pairs
from bkgmatch.polynomials import Basis, legendre_terms
from bkgmatch.priors import HELD, LOOSE, plausible_tilt
from bkgmatch.solve import NormalSystem, diagonal_blocks, unit_columns
from bkgmatch.voxels import Voxels, columns, middles, neighbours, patch_numbers

__all__ = ["SpectralFit", "fit_spectra", "wrapped"]

_SOFT_ITERATIONS = 6
_SOFT_LIMIT = 3.0
_MEDIAN_OF_SQUARES = 0.4549  # of chi squared with one degree of freedom
_ERROR_OF_MEDIAN = 2.34  # of n such values, relative, times sqrt(n)
_LEAST_FREEDOM, _LEAST_TRUST = 1e-6, 0.1
_LEAST_NOISE = 1e-12  # of the mean square of the values: exposures without noise differ by rounding
_LEAST_FACTOR = 1e-6
_FEW = 3
_SMOOTHING = 4  # voxels of wavelength to either side
_SURE = 4.0
_OF_MEDIAN = np.pi / 2  # its variance over that of the mean
_LEAST_PRIOR = 1e-9  # relative to the precision of a pair
_WEAK = 3.0
_BOUND, _BOUND_ITERATIONS = 10.0, 20


class VoxelWorld(Protocol):
    """A grid that knows where its voxels are."""

    def world(self, points: np.ndarray) -> np.ndarray:
        """Right ascension, declination and wavelength, shape (3, n), of grid coordinates, shape (3, n)."""


class PairResiduals(NamedTuple):
    """
    What the pairs differ by.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Exposures, first < second.
    npix : ndarray of int, shape (n_pairs,)
        Number of common voxels, without those that were clipped.
    offset : ndarray, shape (n_pairs,)
        Mean difference, first less second.
    sigma : ndarray, shape (n_pairs,)
        Its standard error.
    residual : ndarray, shape (n_pairs,)
        Mean difference less that of the polynomials.
    """

    first: np.ndarray
    second: np.ndarray
    npix: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray
    residual: np.ndarray


@dataclass(frozen=True)
class SpectralFit:
    """
    Polynomials of exposures.

    Parameters
    ----------
    basis : Basis
        Functions of right ascension (less ``ra``), declination and wavelength.
    ra : float
        Right ascension that the basis is relative to, in degrees.
    coefficients : ndarray, shape (n, p)
        Coefficients, with mean zero over each component; NaN for exposures without common voxels.
    covariance : ndarray, shape (n, p, p)
        Their covariance, relative to the mean of the component.
    component : ndarray of int, shape (n,)
        Connected set; -1 for exposures without common voxels.
    loose : ndarray of bool, shape (n, p)
        Coefficients that the overlaps do not determine: the prior holds them.
    bounded : ndarray of bool, shape (n,)
        Exposures whose polynomial had to be flattened, to keep it within bounds where nothing constrains it.
    mean_terms : ndarray, shape (n, p)
        Mean of the functions over the voxels that constrain each exposure.
    npix : ndarray of int, shape (n,)
        Number of these voxels.
    pairs : PairResiduals
        What the pairs differ by.
    """

    basis: Basis
    ra: float
    coefficients: np.ndarray
    covariance: np.ndarray
    component: np.ndarray
    loose: np.ndarray
    bounded: np.ndarray
    mean_terms: np.ndarray
    npix: np.ndarray
    pairs: PairResiduals


def wrapped(world: np.ndarray, ra: float) -> np.ndarray:
    """Coordinates, shape (3, n), with right ascensions relative to one, within 180 degrees."""
    return np.concatenate([(world[:1] - ra + 180) % 360 - 180, world[1:]])


def fit_spectra(
    voxels: Sequence[Voxels], grid: VoxelWorld, options: MRSIMatchOptions, *, cores: int = 1
) -> SpectralFit:
    """
    Fit polynomials whose differences are those of exposures in common voxels.

    Parameters
    ----------
    voxels : sequence of Voxels
        Exposures on one grid; at least one voxel.
    grid : VoxelWorld
        The grid.
    options : MRSIMatchOptions
        Options.
    cores : int
        Number of threads.

    Returns
    -------
    SpectralFit
        The polynomials.

    Notes
    -----
    Minimises ``sum_pairs sum_voxels w_ij (I_i - I_j - P_i + P_j)^2``, at first with Cauchy weights, then with voxels
    clipped. The variance of a voxel is that of its pixels' noise, times a factor for each exposure, plus what the sky
    adds at that place: measured over all wavelengths, for differences that change from one wavelength to the next and
    for those that do not, as where slices sample the core of a star differently.
    """
    samples = _Samples.of(voxels, grid, options.degree)
    state = _converged(samples, options, cores)
    values = samples.values(state)
    sums = samples.sum(values, state.precision, samples.basis.degree, options.weights, cores)
    if not len(sums.first):
        return _unmatched(samples)
    prior = _prior(samples, sums, _scale(samples, state))
    coefficients, prior, bounded = _bounded(samples, sums, prior, state.trust)
    likely = (
        sums if options.weights == "ml" else samples.sum(values, state.precision, samples.basis.degree, "ml", cores)
    )
    system = _system(samples, likely, prior)
    covariance = _misfit(samples, replace(state, coefficients=coefficients)) * _covariance(system)
    alone = system.component < 0
    coefficients[alone] = np.nan
    final = replace(state, coefficients=np.nan_to_num(coefficients))
    mean_terms, npix = _constraints(samples, state.trust)
    variances = np.einsum("naa->na", covariance)
    return SpectralFit(
        samples.basis,
        samples.ra,
        coefficients,
        covariance,
        system.component,
        np.nan_to_num(variances * prior) > HELD**2,
        bounded,
        mean_terms,
        npix,
        _residuals(samples, values, samples.left(final), state.precision, cores),
    )


class _Patch(NamedTuple):
    """Voxels of a piece of sky that several exposures see."""

    members: np.ndarray  # exposures
    entry: np.ndarray  # which samples these are
    row: np.ndarray  # index into members
    column: np.ndarray  # index of the voxel in the patch
    scaled: np.ndarray  # (3, voxels)

    def dense(self, values: np.ndarray) -> np.ndarray:
        """Values of samples as an array of shape (members, voxels), 0 where there is none."""
        result = np.zeros((len(self.members), self.scaled.shape[1]))
        result[self.row, self.column] = values[self.entry]
        return result


@dataclass(frozen=True)
class _Samples:
    """The voxels of all exposures, one exposure after the other."""

    ra: float
    basis: Basis
    starts: np.ndarray  # (n + 1,): where the samples of each exposure start
    voxel: np.ndarray  # index of the voxel
    value: np.ndarray
    variance: np.ndarray
    npix: np.ndarray  # number of pixels
    offset: np.ndarray  # (3, samples)
    scaled: np.ndarray  # (3, samples): where the pixels are on average
    middle: np.ndarray  # (3, voxels), scaled
    number: np.ndarray  # (voxels,)

    @classmethod
    def of(cls, voxels: Sequence[Voxels], grid: VoxelWorld, degree: tuple[int, ...]) -> "_Samples":
        number, voxel = np.unique(np.concatenate([v.number for v in voxels]), return_inverse=True)
        value, variance, npix = (
            np.concatenate([getattr(v, name) for v in voxels]) for name in ("value", "variance", "npix")
        )
        offset = np.concatenate([v.offset for v in voxels], axis=1)
        points = middles(number)
        world = grid.world(points)
        ra = float(world[0, 0])
        world = wrapped(world, ra)
        basis = Basis.around(world, degree)
        return cls(
            ra,
            basis,
            np.cumsum([0, *(len(v.number) for v in voxels)]),
            voxel,
            value,
            np.maximum(variance, _least_noise(value)),
            npix,
            offset,
            basis.scaled(wrapped(grid.world(points[:, voxel] + offset), ra)),
            basis.scaled(world),
            number,
        )

    @property
    def n(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def exposure(self) -> np.ndarray:
        return np.repeat(np.arange(self.n), np.diff(self.starts))

    @cached_property
    def place(self) -> np.ndarray:
        """Index of the place on the sky of each sample."""
        return np.unique(columns(self.number), return_inverse=True)[1][self.voxel]

    @cached_property
    def shared(self) -> np.ndarray:
        """Whether several exposures see the voxel of each sample."""
        return (np.bincount(self.voxel) > 1)[self.voxel]

    @cached_property
    def around(self) -> np.ndarray:
        return neighbours(self.number)

    @cached_property
    def patches(self) -> list[_Patch]:
        entries = np.flatnonzero(self.shared)
        patch = patch_numbers(self.number)[self.voxel[entries]]
        entries = entries[np.argsort(patch, kind="stable")]
        patch = np.sort(patch)
        return [self._patch(some) for some in np.split(entries, np.flatnonzero(np.diff(patch)) + 1) if len(some)]

    def _patch(self, entries: np.ndarray) -> _Patch:
        members, row = np.unique(self.exposure[entries], return_inverse=True)
        voxels, column = np.unique(self.voxel[entries], return_inverse=True)
        return _Patch(members, entries, row, column, self.middle[:, voxels])

    def polynomial(self, coefficients: np.ndarray, scaled: np.ndarray) -> np.ndarray:
        """Polynomial of the exposure of each sample, at points of shape (3, samples)."""
        parts = np.split(scaled, self.starts[1:-1], axis=1)
        return np.concatenate([self.basis.evaluate(c, at) for c, at in zip(coefficients, parts, strict=True)])

    def left(self, state: "_State") -> np.ndarray:
        """Subtract the polynomials and the gradient of the sky from the values."""
        gradient = np.einsum("ae,ae->e", state.gradient[:, self.voxel], self.offset)
        return self.value - gradient - self.polynomial(state.coefficients, self.scaled)

    def values(self, state: "_State") -> np.ndarray:
        """Carry the values from where the pixels are to the middle of the voxels."""
        return self.left(state) + self.polynomial(state.coefficients, self.middle[:, self.voxel])

    def sum(
        self, values: np.ndarray, precision: np.ndarray, degree: tuple[int, ...], weights: Weights, cores: int
    ) -> PolynomialSums:
        """Sum over the common voxels of all pairs."""

        def of_patch(patch: _Patch) -> PolynomialSums:
            sums = sum_pairs(patch.dense(values), patch.dense(precision), patch.scaled, degree, weights)
            return sums._replace(first=patch.members[sums.first], second=patch.members[sums.second])

        none = sum_pairs(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((len(degree), 0)), degree, weights)
        return join([none, *run(of_patch, self.patches, cores=cores)])

    def sky(self, left: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted mean in each voxel, and its variance; NaN where there is none."""
        total = np.bincount(self.voxel, weight, len(self.number))
        mean = np.bincount(self.voxel, weight * left, len(self.number))
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean / total, np.where(total > 0, 1 / total, np.nan)


@dataclass(frozen=True)
class _State:
    """What is known of the exposures and of the sky, at one stage of the iteration."""

    coefficients: np.ndarray  # (n, p)
    gradient: np.ndarray  # (3, voxels), per side of a voxel
    trust: np.ndarray  # (samples,): factor on the weight
    noise: np.ndarray  # (samples,): variance
    factor: np.ndarray  # (n,): on the variances of each exposure

    @property
    def precision(self) -> np.ndarray:
        return self.trust / self.noise


def _converged(samples: _Samples, options: MRSIMatchOptions, cores: int) -> _State:
    state = _State(
        np.zeros((samples.n, samples.basis.size)),
        np.zeros((3, len(samples.number))),
        _clipped_planes(samples, options) if options.clip == "image" else np.ones(len(samples.value)),
        samples.variance,
        np.ones(samples.n),
    )
    clips = options.clip == "pairs" and options.maxiters > 0
    state = _solved(samples, state, options, cores)
    for _ in range(_SOFT_ITERATIONS):
        state, pulls = _measured(samples, state)
        trust = 1 / (1 + (pulls / _SOFT_LIMIT) ** 2) if clips else state.trust
        state = _solved(samples, _steeper(samples, replace(state, trust=trust)), options, cores)
    for _ in range(options.maxiters if clips else 1):
        state, pulls = _measured(samples, state)
        trust = (pulls < options.sigma).astype(float) if clips else state.trust
        settled = np.array_equal(trust, state.trust)
        state = _solved(samples, _steeper(samples, replace(state, trust=trust)), options, cores)
        if settled:
            break
    return state


def _solved(samples: _Samples, state: _State, options: MRSIMatchOptions, cores: int) -> _State:
    sums = samples.sum(samples.values(state), state.precision, samples.basis.degree, options.weights, cores)
    if not len(sums.first):
        return state
    return replace(
        state, coefficients=_system(samples, sums, _loose_prior(samples, sums, _scale(samples, state))).solution()
    )


def _measured(samples: _Samples, state: _State) -> tuple[_State, np.ndarray]:
    """Measure the noise; return also what is left of each sample, in standard deviations."""
    left = samples.left(state)
    sky, variance = samples.sky(left, state.precision)
    residual = np.nan_to_num(left - sky[samples.voxel])
    freedom = np.nan_to_num(1 - state.precision * variance[samples.voxel], nan=1.0)
    known = samples.shared & (freedom > _LEAST_FREEDOM)
    squares = residual**2 / np.maximum(freedom, _LEAST_FREEDOM)
    rough = _roughness(samples, squares / state.factor[samples.exposure], known)
    noise = state.factor[samples.exposure] * (samples.variance + rough)
    change = _factors(samples, squares / noise, known)
    noise = np.maximum(noise * change[samples.exposure], _least_noise(samples.value))
    trusted = known & (state.trust > _LEAST_TRUST)
    lasting = _lasting(samples, np.sign(residual) * np.sqrt(squares), trusted, noise)
    return replace(state, noise=noise + lasting, factor=state.factor * change), np.sqrt(squares / noise)


def _least_noise(value: np.ndarray) -> float:
    """Variance of rounding, about: exposures without noise differ by it."""
    return float(_LEAST_NOISE * np.mean(value**2) + np.finfo(float).tiny)


def _roughness(samples: _Samples, squares: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Variance that the sky adds at the place of each sample: how much residuals exceed the noise there."""
    entries = np.flatnonzero(known)
    place = samples.place[entries]
    noise = _medians(samples.variance[entries], place)
    chance = _ERROR_OF_MEDIAN / np.sqrt(np.unique(place, return_counts=True)[1])
    excess = _medians(squares[entries], place) / _MEDIAN_OF_SQUARES - (1 + chance) * noise
    result = np.zeros(int(samples.place.max()) + 1)
    result[np.unique(place)] = np.maximum(excess, 0)
    return result[samples.place]


def _factors(samples: _Samples, squares: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return what the variances of each exposure are to be multiplied by."""
    result = np.ones(samples.n)
    entries = np.flatnonzero(known)
    exposures = samples.exposure[entries]
    result[np.unique(exposures)] = _medians(squares[entries], exposures) / _MEDIAN_OF_SQUARES
    return np.maximum(result, _LEAST_FACTOR)


def _medians(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Median of the values of each group, in ascending order of the groups."""
    order = np.lexsort((values, group))
    _, starts, sizes = np.unique(group, return_index=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    return values[order][starts + sizes // 2]


def _lasting(samples: _Samples, residual: np.ndarray, known: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """
    Variance to add to each sample so that all wavelengths of a place together have the error that they share.

    It is the square of what is left of an exposure's mean over wavelength, beyond what the noise explains, times the
    number of wavelengths.
    """
    entries = np.flatnonzero(known)
    place, exposure = samples.place[entries], samples.exposure[entries]
    n_places = int(samples.place.max()) + 1
    key = place * samples.n + exposure

    def total(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(key, values, n_places * samples.n).reshape(n_places, samples.n)

    count = total()
    enough = count > _FEW
    count = np.where(enough, count, 1)
    several = np.maximum(enough.sum(axis=1), 1)
    chance = 2 * np.sqrt(2 / np.maximum(several - 1, 1))[:, None]
    excess = (total(residual[entries]) / count) ** 2 - (1 + chance) * total(noise[entries]) / count**2
    mean = np.where(enough, excess, 0).sum(axis=1) / several
    length = np.where(enough, count, 0).sum(axis=1) / several
    return (np.maximum(mean, 0) * length)[samples.place]


def _steeper(samples: _Samples, state: _State) -> _State:
    """Measure the gradient of the sky: that of nearby wavelengths together, and what one alone surely has beyond it."""
    sky, variance = samples.sky(samples.left(state), state.precision)
    common, noise = _gradient(samples, *_smooth(samples, sky, variance))
    common = _significant(common, noise, 1)
    own, noise = _gradient(samples, sky, variance)
    return replace(state, gradient=common + _significant(own - common, noise, _SURE))


def _significant(gradient: np.ndarray, noise: np.ndarray, limit: float) -> np.ndarray:
    """Shrink a gradient where its square is not far above its variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return gradient * np.nan_to_num(np.maximum(1 - limit * noise / gradient**2, 0))


def _gradient(samples: _Samples, sky: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of neighbours per side of a voxel, shape (3, voxels), and their variance; 0 where there are none."""
    before, after = (np.append(sky, np.nan)[samples.around[:, side]] for side in (0, 1))
    at_edge = np.where(np.isfinite(after), after - sky, sky - before)
    is_edge = ~np.isfinite(before + after)
    noise = np.append(variance, np.nan)[samples.around].sum(axis=1) / 4
    return np.nan_to_num(np.where(is_edge, at_edge, (after - before) / 2)), np.where(is_edge, 2 * variance, noise)


def _smooth(samples: _Samples, sky: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median over nearby wavelengths at the same place, and its variance."""
    near = np.arange(-_SMOOTHING, _SMOOTHING + 1)
    index = np.clip(np.arange(len(sky))[:, None] + near, 0, len(sky) - 1)
    values = np.where(samples.number[index] == samples.number[:, None] + near, sky[index], np.nan)
    count = np.isfinite(values).sum(axis=1)
    middle = np.maximum(count - 1, 0) // 2
    values = np.sort(values, axis=1)  # NaN come last
    rows = np.arange(len(sky))
    median = (values[rows, middle] + values[rows, np.maximum(count, 1) // 2]) / 2
    return median, variance * _OF_MEDIAN / np.maximum(count, 1)


def _clipped_planes(samples: _Samples, options: MRSIMatchOptions) -> np.ndarray:
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


def _system(samples: _Samples, sums: PolynomialSums, prior: np.ndarray) -> NormalSystem:
    equations = pair_equations(sums.first, sums.second, samples.basis.products(sums.moments), sums.rhs)
    return NormalSystem(samples.n, equations, prior=prior)


def _scale(samples: _Samples, state: _State) -> float:
    """Least that a coefficient may plausibly be: the noise of a pixel, and a tenth of what exposures differ by."""
    noise = np.sqrt(np.median(state.noise * samples.npix))
    sky, _ = samples.sky(samples.value, 1 / samples.variance)
    spread = np.abs(samples.value - sky[samples.voxel])[samples.shared]
    return float(noise + (np.median(spread) / 10 if len(spread) else 0))


def _loose_prior(samples: _Samples, sums: PolynomialSums, scale: float) -> np.ndarray:
    """Inverse variances of the coefficients, none for the constant; enough to factorise the equations."""
    weight = max((LOOSE * scale) ** -2, _LEAST_PRIOR * float(np.median(sums.moments[:, 0])))
    return np.append(0.0, np.full(samples.basis.size - 1, weight))


def _prior(samples: _Samples, sums: PolynomialSums, scale: float) -> np.ndarray:
    """Inverse variances of the coefficients: ten times as wide as those that are determined best."""
    prior = _loose_prior(samples, sums, scale)
    if len(prior) == 1:
        return prior
    system = _system(samples, sums, prior)
    plausible = _WEAK * plausible_tilt(system, system.solution(), np.ones(samples.n, dtype=bool), scale)
    least = _LEAST_PRIOR * float(np.median(sums.moments[:, 0]))
    return np.append(0.0, np.full(len(prior) - 1, max(plausible**-2, least)))


def _bounded(
    samples: _Samples, sums: PolynomialSums, prior: np.ndarray, trust: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Solve, with stronger priors for polynomials that grow too much where nothing constrains them.

    If that is not enough, for all of the component: its mean is subtracted from each.
    """
    priors = np.tile(prior, (samples.n, 1))
    bounded = np.zeros(samples.n, dtype=bool)
    for _ in range(_BOUND_ITERATIONS):
        system = _system(samples, sums, priors)
        coefficients = system.solution()
        excess = _growth(samples, coefficients, trust, system.component) > _BOUND
        if not excess.any():
            break
        stubborn = np.unique(system.component[excess & bounded])
        excess |= np.isin(system.component, stubborn)
        bounded |= excess
        priors[excess] *= 10
    return coefficients, priors, bounded


def _growth(samples: _Samples, coefficients: np.ndarray, trust: np.ndarray, component: np.ndarray) -> np.ndarray:
    """
    Return how far each polynomial goes from its mean anywhere.

    In units of the farthest that one of its component goes within the voxels that constrain it.
    """
    used = samples.shared & (trust > 0)
    polynomial = samples.polynomial(coefficients, samples.scaled)
    inside, anywhere = np.zeros((2, samples.n))
    for i, (start, stop) in enumerate(zip(samples.starts[:-1], samples.starts[1:], strict=True)):
        own, constrained = polynomial[start:stop], polynomial[start:stop][used[start:stop]]
        if len(constrained):
            inside[i], anywhere[i] = (np.abs(some - constrained.mean()).max() for some in (constrained, own))
    of_component = np.array([inside[component == c].max(initial=0) for c in component])
    return np.divide(anywhere, of_component, out=np.zeros(samples.n), where=of_component > 0)


def _covariance(system: NormalSystem) -> np.ndarray:
    covariance = np.full((system.n, system.p, system.p), np.nan)
    for some in system.blocks():
        covariance[some] = diagonal_blocks(
            system.respond(unit_columns(some, system.n, system.p)), system.normal, system.p
        )
    return covariance


def _misfit(samples: _Samples, state: _State) -> float:
    """
    Return a factor on variances, at least 1, where errors hang together.

    The scatter of sums over all wavelengths of a place, over what is expected of independent samples.
    """
    left = samples.left(state)
    sky, variance = samples.sky(left, state.precision)
    known = np.flatnonzero(samples.shared & (state.precision > 0))
    weight = state.precision[known]
    freedom = np.maximum(1 - weight * variance[samples.voxel[known]], _LEAST_FREEDOM)
    residual = (left - sky[samples.voxel])[known] / np.sqrt(freedom)
    key = samples.place[known] * samples.n + samples.exposure[known]
    return max(1.0, float(np.sum(np.bincount(key, weight * residual) ** 2) / np.sum(weight)))


def _constraints(samples: _Samples, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the functions over the voxels that constrain each exposure, and the number of these."""
    used = samples.shared & (trust > 0)
    mean, npix = np.full((samples.n, samples.basis.size), np.nan), np.zeros(samples.n, dtype=int)
    for i, (start, stop) in enumerate(zip(samples.starts[:-1], samples.starts[1:], strict=True)):
        inside = samples.scaled[:, start:stop][:, used[start:stop]]
        npix[i] = inside.shape[1]
        if npix[i]:
            mean[i] = legendre_terms(inside, samples.basis.degree).mean(axis=1)
    return mean, npix


def _residuals(
    samples: _Samples, values: np.ndarray, left: np.ndarray, precision: np.ndarray, cores: int
) -> PairResiduals:
    constant = (0,) * len(samples.basis.degree)
    before, after = (samples.sum(v, precision, constant, "pairs", cores) for v in (values, left))
    total = before.moments[:, 0]
    return PairResiduals(
        before.first,
        before.second,
        before.npix.astype(int),
        before.rhs[:, 0] / total,
        1 / np.sqrt(total),
        after.rhs[:, 0] / total,
    )


def _unmatched(samples: _Samples) -> SpectralFit:
    n, p = samples.n, samples.basis.size
    none = np.zeros(0, dtype=int)
    return SpectralFit(
        samples.basis,
        samples.ra,
        np.full((n, p), np.nan),
        np.full((n, p, p), np.nan),
        np.full(n, -1),
        np.zeros((n, p), dtype=bool),
        np.zeros(n, dtype=bool),
        np.full((n, p), np.nan),
        np.zeros(n, dtype=int),
        PairResiduals(none, none, none, *np.zeros((3, 0))),
    )
