"""Solve the sums of pairs in passes: dithers within a tile, parts of a tile, tiles; or all at once.

Nothing is stacked. Exposures that earlier passes have joined move as one: their parameters are tied. The cells' weights
make this the same as matching the weighted means of the joined exposures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from bkgmatch.differences import PairSums
from bkgmatch.pairs import PairEquations, pair_equations
from bkgmatch.priors import HELD, LOOSE, plausible_tilt, tilt_variances
from bkgmatch.solve import NormalSystem, assemble, connected, relative_pulls, renumbered, typical_pulls
from bkgmatch.stages import covariance_of_sums

__all__ = ["Pass", "PassesSolution", "solve_passes"]

_TRUSTED, _TRUST_ITERATIONS = 4.0, 10
_DOUBTED, _MANY_PAIRS = 0.5, 10


class Pass(NamedTuple):
    """
    One pass.

    Parameters
    ----------
    name : str
        Its name.
    slope : bool
        Whether planes are fitted, or constants.
    container : ndarray of int, shape (n,)
        The set within which each exposure is matched.
    held : ndarray of bool, shape (n,)
        Exposures that this pass does not change, unless it joins several of them.
    """

    name: str
    slope: bool
    container: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class PassesSolution:
    """
    Solution of all passes together.

    Parameters
    ----------
    coefficients : ndarray, shape (n, p)
        Function of each exposure.
    covariance : ndarray, shape (n, p, p)
        Their covariance, relative to the mean of the component.
    component : ndarray of int, shape (n,)
        Connected set of exposures, in order of the first; -1 for exposures without pairs.
    trust : ndarray, shape (n_pairs,)
        Factor on the weight of each pair: less than 1 where it does not agree with the others.
    loose : ndarray of bool, shape (n,)
        Exposures with a tilt that the overlaps do not determine: the prior holds it.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    component: np.ndarray
    trust: np.ndarray
    loose: np.ndarray


@dataclass(frozen=True)
class _Solved:
    """One pass, solved: what the errors need of it."""

    system: NormalSystem
    units: sparse.csr_array  # (n p, units p_k): from the functions of units to those of exposures
    spread: sparse.csr_array  # covariance of the units' right-hand side
    normal: sparse.csr_array  # (n p, n p)
    trust: np.ndarray
    loose: np.ndarray


def solve_passes(
    units: np.ndarray,
    sums: PairSums,
    passes: Sequence[Pass],
    fixed: np.ndarray,
    sigma: float,
    weights: np.ndarray,
    counted: np.ndarray | None = None,
) -> PassesSolution:
    """
    Solve the passes one after the other.

    Parameters
    ----------
    units : ndarray of int, shape (n,)
        Exposures that move as one from the beginning.
    sums : PairSums
        Sums of the pairs; ``sums.level`` is the pass of each.
    passes : sequence of Pass
        Passes.
    fixed : ndarray of bool, shape (n,)
        Exposures whose function is 0.
    sigma : float
        Typical standard deviation of a cell: of tilts, the least that is plausible over half of an exposure.
    weights : ndarray, shape (n_pairs,)
        Factors on the weights; 1 for maximum likelihood.
    counted : ndarray of bool, shape (n,), optional
        Exposures whose mean errors are relative to; by default all.

    Returns
    -------
    PassesSolution
        The sums of the functions of all passes. The last pass has mean zero over the units of each component.

    Notes
    -----
    With maximum likelihood the right-hand sides of different passes are not correlated, and the covariance of each is
    its normal matrix: errors follow backwards through the passes, with the prior's for what it holds.
    """
    n, p = len(units), sums.rhs.shape[1]
    coefficients = np.zeros((n, p))
    unit = units
    trust = np.ones(len(sums.first))
    solved = []
    for level, one in enumerate(passes):
        mine = np.flatnonzero(sums.level == level)
        pairs = sums.take(mine)
        held = fixed | (one.held & ~_several_held(unit, pairs, one.held | fixed))
        result, change = _solve_pass(pairs.less(coefficients), unit, one.slope, held, sigma, weights[mine])
        coefficients = coefficients + change
        trust[mine] = result.trust
        solved.append(result)
        unit = _joined(unit, pairs)
    component = _connected(units, sums)
    return PassesSolution(
        coefficients=np.where((component >= 0)[:, None], coefficients, np.nan),
        covariance=_misfit(sums.less(coefficients), trust, component)[:, None, None]
        * _covariance(n, p, solved, component, fixed, counted),
        component=component,
        trust=trust,
        loose=np.any([result.loose for result in solved], axis=0),
    )


@dataclass(frozen=True)
class _Equations:
    """Equations of one pass, for the functions of units."""

    first: np.ndarray
    second: np.ndarray
    normal: np.ndarray
    rhs: np.ndarray
    sigma: np.ndarray  # of the mean difference of each pair, by noise
    weights: np.ndarray
    held: np.ndarray  # of units

    @classmethod
    def of(cls, pairs: PairSums, unit: np.ndarray, q: int, held: np.ndarray, weights: np.ndarray) -> "_Equations":
        held_units = np.zeros(int(unit.max()) + 1, dtype=bool)
        held_units[unit[held]] = True
        return cls(
            unit[pairs.first],
            unit[pairs.second],
            pairs.normal[:, :q, :q],
            pairs.rhs[:, :q],
            pairs.noise(),
            weights,
            held_units,
        )

    def weighted(self, factors: np.ndarray) -> PairEquations:
        return pair_equations(self.first, self.second, self.normal, self.rhs, factors)

    def system(self, factors: np.ndarray, prior: np.ndarray) -> NormalSystem:
        return NormalSystem(len(self.held), self.weighted(factors), held=self.held, prior=prior)

    def pulls(self, found: np.ndarray) -> np.ndarray:
        """Return what functions leave of the mean difference of each pair, in standard errors."""
        apart = np.einsum("nb,nb->n", self.normal[:, 0], found[self.first] - found[self.second])
        return np.abs(self.rhs[:, 0] - apart) / self.normal[:, 0, 0] / self.sigma

    def trust(self, prior: np.ndarray) -> np.ndarray:
        """
        Factors on the weights, less than 1 for pairs that do not agree with the others.

        They are judged by the solution of maximum likelihood, whatever the weights: what noisy pairs do to another
        solution would speak against precise ones.
        """
        trust = np.ones(len(self.first))
        system = self.system(trust, prior)
        pulls = self.pulls(system.solution())
        if (pulls <= _TRUSTED).all():
            return trust
        for _ in range(_TRUST_ITERATIONS):  # at first least absolute deviations, which bad pairs hardly move
            pulls = self.pulls(system.solution_of(self.weighted(1 / np.maximum(pulls, 1))))
        for _ in range(_TRUST_ITERATIONS):
            before, trust = trust, _closing(relative_pulls(pulls, system.component[self.first]))
            if np.abs(trust - before).max() < 1e-3:
                break
            pulls = self.pulls(system.solution_of(self.weighted(trust)))
        return trust


def _solve_pass(
    pairs: PairSums, unit: np.ndarray, slope: bool, held: np.ndarray, sigma: float, weights: np.ndarray
) -> tuple[_Solved, np.ndarray]:
    """Solve one pass for the functions of units; return also those of the exposures."""
    n, p = len(unit), pairs.rhs.shape[1]
    q = p if slope else 1
    equations = _Equations.of(pairs, unit, q, held, weights)
    prior = _prior(equations, q, sigma)
    trust = equations.trust(prior)
    factors = trust * weights
    system = equations.system(factors, prior)
    found = system.solution()
    n_units = len(equations.held)
    spread = assemble(n_units, equations.weighted(factors**2))[0] + sparse.diags_array(np.tile(prior, n_units))
    spread = spread.tocsr()
    normal = assemble(n, pair_equations(pairs.first, pairs.second, pairs.normal, pairs.rhs, factors))[0]
    loose = (tilt_variances(system) * prior[1:] > HELD**2).any(axis=1)
    result = _Solved(system, _tied(unit, p, q), spread, normal, trust, loose[unit])
    return result, (result.units @ found.ravel()).reshape(n, p)


def _prior(equations: _Equations, q: int, sigma: float) -> np.ndarray:
    """Inverse variances of the coefficients: none for the level, for tilts from those that are determined best."""
    loose = np.array([0.0, *[(LOOSE * sigma) ** -2] * (q - 1)])
    if q == 1:
        return loose
    system = equations.system(equations.weights, loose)
    return loose * (LOOSE * sigma / plausible_tilt(system, system.solution(), ~equations.held, sigma)) ** 2


def _closing(pulls: np.ndarray) -> np.ndarray:
    """Trust in pairs: less for those that disagree with the rest of the graph."""
    return (_TRUSTED / np.maximum(pulls, _TRUSTED)) ** 2


def _tied(unit: np.ndarray, p: int, q: int) -> sparse.csr_array:
    """Incidence of exposures' coefficients in those of the units."""
    rows = (np.arange(len(unit))[:, None] * p + np.arange(q)).ravel()
    columns = (unit[:, None] * q + np.arange(q)).ravel()
    shape = (len(unit) * p, (int(unit.max()) + 1) * q)
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def _joined(unit: np.ndarray, pairs: PairSums) -> np.ndarray:
    """Units after a pass: those that it has connected become one."""
    return connected(int(unit.max()) + 1, unit[pairs.first], unit[pairs.second])[unit]


def _several_held(unit: np.ndarray, pairs: PairSums, held: np.ndarray) -> np.ndarray:
    """Exposures of sets that a pass joins to more than one held unit: those are to agree with each other."""
    joined = _joined(unit, pairs)
    sets_of_units = np.unique([joined[held], unit[held]], axis=1)[0]
    return np.bincount(sets_of_units, minlength=int(joined.max()) + 1)[joined] > 1


def _misfit(left: PairSums, trust: np.ndarray, component: np.ndarray) -> np.ndarray:
    """
    Factors on variances, shape (n,), where functions do not fit.

    They are the squared typical pull of what is left of the trusted pairs of the component. Components of fewer than
    ten of them have that of all of these together, or 1 if those are too few, too.
    """
    trusted = left.take(trust > _DOUBTED)
    if not len(trusted.first):
        return np.ones(len(component))
    few = int(component.max()) + 1
    is_small = np.bincount(component[trusted.first], minlength=few) < _MANY_PAIRS
    group = np.where(is_small[component], few, component)
    of_pair = group[trusted.first]
    pulls = typical_pulls(np.abs(trusted.offset()) / trusted.noise(), of_pair, few + 1)
    known = np.bincount(of_pair, minlength=few + 1) >= _MANY_PAIRS
    return np.where(known, np.maximum(pulls, 1), 1)[group] ** 2


def _connected(units: np.ndarray, sums: PairSums) -> np.ndarray:
    """Return the number of the connected set of each exposure; -1 for units without pairs."""
    labels = _joined(units, sums)
    alone = ~np.isin(units, units[np.concatenate([sums.first, sums.second])])
    return renumbered(np.where(alone, -1, labels))


def _covariance(
    n: int,
    p: int,
    solved: Sequence[_Solved],
    component: np.ndarray,
    fixed: np.ndarray,
    counted: np.ndarray | None,
) -> np.ndarray:
    """Errors of the summed functions relative to the mean of the component."""
    means, members = _mean_of_component(component, fixed, counted)
    weights = np.kron(means.sum(axis=0)[:, None], np.eye(p))  # all components in one: they have nothing in common
    response = _response(weights, solved).reshape(n, p, p)
    own = members.T @ (means @ response.reshape(n, -1))
    sums = covariance_of_sums([one.system.stage(one.spread).tied(one.units, one.normal) for one in solved], p)
    covariance = sums - response - response.transpose(0, 2, 1) + own.reshape(n, p, p)
    covariance[component < 0] = np.nan
    return covariance


def _mean_of_component(
    component: np.ndarray, fixed: np.ndarray, counted: np.ndarray | None
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Weights of exposures in the mean of their component, (n_components, n), and 1 for those relative to it."""
    afloat = np.flatnonzero((component >= 0) & ~np.isin(component, component[fixed]))
    counted = np.ones(len(component), dtype=bool) if counted is None else counted
    counted = counted | ~np.isin(component, component[counted])
    shape = (component.max(initial=-1) + 1, len(component))
    size = np.bincount(component[afloat], counted[afloat], minlength=shape[0])
    place = component[afloat], afloat
    members = sparse.coo_array((np.ones(len(afloat)), place), shape=shape).tocsr()
    return sparse.coo_array((counted[afloat] / size[component[afloat]], place), shape=shape).tocsr(), members


def _response(columns: np.ndarray, solved: Sequence[_Solved]) -> np.ndarray:
    """Covariance of the exposures' functions with sums of them: backwards through the passes, and forwards."""
    scattered = []
    for one in reversed(solved):
        back = one.system.respond(one.units.T @ columns)
        scattered.append(one.spread @ back)
        columns = columns - one.normal @ (one.units @ back)
    response = np.zeros_like(columns)
    for one, rhs in zip(solved, reversed(scattered), strict=True):
        response = response + one.units @ one.system.respond(rhs - one.units.T @ (one.normal @ response))
    return response
