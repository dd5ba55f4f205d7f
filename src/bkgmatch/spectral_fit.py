"""Polynomials that make exposures agree in common voxels.

The model of a voxel is ``value = sky + gradient . offset + polynomial``: the gradient of the sky serves where the
pixels of two exposures are not centred on the same point of a voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bkgmatch.execution import HERE, Work
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.pairs import pair_equations
from bkgmatch.polynomial_sums import PolynomialSums
from bkgmatch.polynomials import Basis, legendre_terms
from bkgmatch.priors import HELD, LOOSE, plausible_tilt
from bkgmatch.solve import NormalSystem, robust_trust
from bkgmatch.spectral_samples import Samples, VoxelWorld
from bkgmatch.spectral_state import State, clipped_planes, deviations, measured, residuals, steeper
from bkgmatch.voxels import Voxels

__all__ = ["PairResiduals", "SpectralFit", "fit_spectra"]

_ROUGH_ITERATIONS, _ITERATIONS, _LEAST_ITERATIONS = 40, 7, 4
_SETTLED = 0.01
_LEAST_FREEDOM = 0.1
_LEAST_PRIOR = 1e-9  # relative to the precision of a pair
_WEAK = 3.0
_BOUND, _BOUND_ITERATIONS = 10.0, 20


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

    @classmethod
    def none(cls) -> "PairResiduals":
        """No pairs."""
        return cls(*np.zeros((3, 0), dtype=int), *np.zeros((3, 0)))


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
    overlaps : ndarray of bool, shape (n,)
        Exposures that have voxels in common with others, clipped or not.
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
    overlaps: np.ndarray
    pairs: PairResiduals


def fit_spectra(
    voxels: Sequence[Voxels], grid: VoxelWorld, options: MRSIMatchOptions, *, work: Work = HERE
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
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    SpectralFit
        The polynomials.

    Notes
    -----
    Minimises ``sum_pairs sum_voxels w_ij (I_i - I_j - P_i + P_j)^2``, at first the absolute values of the differences,
    then the squares with voxels clipped. The variance of a voxel is that of its pixels' noise, times a factor for each
    exposure, plus what the sky adds at that place: measured over all wavelengths, for differences that change from one
    wavelength to the next and for those that do not, as where slices sample the core of a star differently.
    """
    samples = Samples.of(voxels, grid, options.degree)
    state = _converged(samples, options, work)
    values = state.values(samples)
    sums = samples.sum(values, state.precision, samples.basis.degree, options.weights, work)
    if not len(sums.first):
        return _unmatched(samples)
    prior = _prior(samples, sums, _scale(samples, state))
    coefficients, prior, bounded = _bounded(samples, sums, prior, state.trust)
    likely = sums if options.weights == "ml" else samples.sum(values, state.precision, samples.basis.degree, "ml", work)
    system = _system(samples, likely, prior)
    covariance = _misfit(samples, replace(state, coefficients=coefficients)) * system.covariance(system.normal)
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
        _overlaps(samples),
        _residuals(samples, values, final.left(samples), state.precision, work),
    )


def _converged(samples: Samples, options: MRSIMatchOptions, work: Work) -> State:
    state = State(
        np.zeros((samples.n, samples.basis.size)),
        np.zeros((3, len(samples.number))),
        clipped_planes(samples, options) if options.clip == "image" else np.ones(len(samples.value)),
        samples.variance,
        np.ones(samples.n),
    )
    clips = options.clip == "pairs" and options.maxiters > 0
    state = _solved(samples, state, options, work)
    for _ in range(_ROUGH_ITERATIONS if clips else 0):  # least absolute deviations, which bad voxels hardly move
        before, trust = state.trust, robust_trust(deviations(samples, state), last=False)
        state = _solved(samples, replace(state, trust=trust), options, work)
        if np.mean(np.abs(trust - before)) < _SETTLED:
            break
    for iteration in range(options.maxiters if clips else _ITERATIONS):
        state, pulls = measured(samples, state)
        trust = (pulls < options.sigma).astype(float) if clips else state.trust
        settled = clips and np.array_equal(trust, state.trust)
        state = _solved(samples, steeper(samples, replace(state, trust=trust)), options, work)
        if settled and iteration >= _LEAST_ITERATIONS:
            break
    return state


def _solved(samples: Samples, state: State, options: MRSIMatchOptions, work: Work) -> State:
    sums = samples.sum(state.values(samples), state.precision, samples.basis.degree, options.weights, work)
    if not len(sums.first):
        return state
    prior = _shape_prior(samples, sums, LOOSE * _scale(samples, state))
    return replace(state, coefficients=_system(samples, sums, prior).solution())


def _system(samples: Samples, sums: PolynomialSums, prior: np.ndarray) -> NormalSystem:
    equations = pair_equations(sums.first, sums.second, samples.basis.products(sums.moments), sums.rhs)
    return NormalSystem(samples.n, equations, prior=prior)


def _scale(samples: Samples, state: State) -> float:
    """Least that a coefficient may plausibly be: the noise of a pixel, and a tenth of what exposures differ by."""
    return float(np.sqrt(np.median(state.noise * samples.npix))) + samples.spread / 10


def _shape_prior(samples: Samples, sums: PolynomialSums, width: float) -> np.ndarray:
    """Inverse variances of the coefficients, none for the constant; enough to factorise the equations."""
    weight = max(width**-2, _LEAST_PRIOR * float(np.median(sums.moments[:, 0])))
    return np.append(0.0, np.full(samples.basis.size - 1, weight))


def _prior(samples: Samples, sums: PolynomialSums, scale: float) -> np.ndarray:
    """Inverse variances of the coefficients: ten times as wide as those that are determined best."""
    loose = _shape_prior(samples, sums, LOOSE * scale)
    if len(loose) == 1:
        return loose
    system = _system(samples, sums, loose)
    plausible = plausible_tilt(system, system.solution(), np.ones(samples.n, dtype=bool), scale)
    return _shape_prior(samples, sums, _WEAK * plausible)


def _bounded(
    samples: Samples, sums: PolynomialSums, prior: np.ndarray, trust: np.ndarray
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


def _growth(samples: Samples, coefficients: np.ndarray, trust: np.ndarray, component: np.ndarray) -> np.ndarray:
    """
    Return how far each polynomial goes from its mean anywhere.

    In units of the farthest that one of its component goes within the voxels that constrain it.
    """
    used = samples.shared & (trust > 0)
    polynomial = samples.polynomial(coefficients, samples.scaled)
    inside, anywhere = np.zeros((2, samples.n))
    for i, part in enumerate(samples.parts):
        own, constrained = polynomial[part], polynomial[part][used[part]]
        if len(constrained):
            inside[i], anywhere[i] = (np.abs(some - constrained.mean()).max() for some in (constrained, own))
    of_component = np.array([inside[component == c].max(initial=0) for c in component])
    return np.divide(anywhere, of_component, out=np.zeros(samples.n), where=of_component > 0)


def _misfit(samples: Samples, state: State) -> float:
    """
    Return a factor on variances, at least 1, where errors hang together.

    The scatter of sums over all wavelengths of a place, over what is expected of independent samples.
    """
    known = np.flatnonzero(samples.shared & (state.precision > 0))
    weight, residual = state.precision[known], residuals(samples, state, _LEAST_FREEDOM)[0][known]
    _, member = np.unique(samples.column[known], return_inverse=True)
    return max(1.0, float(np.sum(np.bincount(member, weight * residual) ** 2) / np.sum(weight)))


def _constraints(samples: Samples, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the functions over the voxels that constrain each exposure, and the number of these."""
    used = samples.shared & (trust > 0)
    mean, npix = np.full((samples.n, samples.basis.size), np.nan), np.zeros(samples.n, dtype=int)
    for i, part in enumerate(samples.parts):
        inside = samples.scaled[:, part][:, used[part]]
        npix[i] = inside.shape[1]
        if npix[i]:
            mean[i] = legendre_terms(inside, samples.basis.degree).mean(axis=1)
    return mean, npix


def _overlaps(samples: Samples) -> np.ndarray:
    return np.bincount(samples.exposure, samples.shared, samples.n) > 0


def _residuals(
    samples: Samples, values: np.ndarray, left: np.ndarray, precision: np.ndarray, work: Work
) -> PairResiduals:
    constant = (0,) * len(samples.basis.degree)
    before, after = (samples.sum(v, precision, constant, "pairs", work) for v in (values, left))
    total = before.moments[:, 0]
    return PairResiduals(
        before.first,
        before.second,
        before.npix.astype(int),
        before.rhs[:, 0] / total,
        1 / np.sqrt(total),
        after.rhs[:, 0] / total,
    )


def _unmatched(samples: Samples) -> SpectralFit:
    n, p = samples.n, samples.basis.size
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
        _overlaps(samples),
        PairResiduals.none(),
    )
