"""Least squares over a graph of overlaps: one small block for each pair of exposures, solved directly."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, splu

from bkgmatch.pairs import Offsets, PairEquations, offset_equations

__all__ = ["Solution", "residuals", "solve", "solve_offsets"]

_BLOCK = 128
_LEAST_PIVOT = 1e-11  # relative to the diagonal
_ROBUST_LIMIT = 3.0
_LEAST_ABSOLUTE_ITERATIONS, _ROBUST_ITERATIONS = 15, 30


@dataclass(frozen=True)
class Solution:
    """
    Solution of the pair equations, with mean zero over each component.

    Parameters
    ----------
    coefficients : ndarray, shape (n, p)
        Coefficients; NaN for unknowns in no equation.
    covariance : ndarray, shape (n, p, p)
        Their covariance, relative to the mean of the component.
    component : ndarray of int, shape (n,)
        Number of the connected component, in order of its first unknown; -1 for unknowns in no equation.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    component: np.ndarray


def solve(n: int, equations: PairEquations, *, scatter: sparse.sparray | None = None) -> Solution:
    """
    Solve the pair equations of n unknowns.

    Parameters
    ----------
    n : int
        Number of unknowns.
    equations : PairEquations
        Equations of the pairs.
    scatter : sparse array, shape (n p, n p), optional
        Covariance of the summed right-hand side, for pairs whose errors are not independent or whose weights are
        not inverse variances. By default the normal matrix itself, which is right for independent pairs.

    Returns
    -------
    Solution
        The coefficients have mean zero over the unknowns of each component: the solution of least norm for
        constants.

    Raises
    ------
    ValueError
        If the overlaps do not determine the coefficients.

    Notes
    -----
    With normal matrix N, scatter S and projection P on mean zero, the covariance is
    ``P N^+ S N^+ P`` (the sandwich of Huber 1967, *Proc. Fifth Berkeley Symp.* 1, 221).
    """
    p = equations.p
    component = _components(n, equations)
    normal, rhs = _assemble(n, equations)
    is_free = np.repeat(component >= 0, p)
    _, pinned = np.unique(component, return_index=True)
    is_free.reshape(n, p)[pinned] = False
    free = np.flatnonzero(is_free)
    coefficients = np.zeros(n * p)
    covariance = np.zeros((n, p, p))
    if free.size:
        factors = _factorise(normal[free][:, free].tocsc())
        coefficients[free] = factors.solve(rhs[free])
        spread = (normal if scatter is None else scatter)[free][:, free].tocsr()
        covariance = _covariance(factors, spread, component, free, p)
    coefficients = _centred(coefficients.reshape(n, p), component)
    coefficients[component < 0] = np.nan
    covariance[component < 0] = np.nan
    return Solution(coefficients, covariance, component)


def solve_offsets(offsets: Offsets, groups: np.ndarray, *, robust: bool = False) -> tuple[Solution, Offsets]:
    """
    Find the levels of groups of exposures that agree best with the measured offsets.

    Parameters
    ----------
    offsets : Offsets
        Measured differences.
    groups : ndarray of int, shape (n_exposures,)
        Group of each exposure.
    robust : bool
        Give less weight to pairs that do not agree with the others.

    Returns
    -------
    Solution
        Levels of the groups, with the covariance that follows from shared pixels.
    Offsets
        The offsets with their final weights.
    """
    n = int(groups.max()) + 1
    one, two = groups[offsets.first], groups[offsets.second]

    def solution(weight: np.ndarray) -> Solution:
        design = sparse.coo_array(
            (
                np.concatenate([weight, -weight]),
                (np.concatenate([one, two]), np.tile(np.arange(len(one)), 2)),
            ),
            shape=(n, len(one)),
        ).tocsr()
        transfer = design @ offsets.loading
        equations = offset_equations(one, two, offsets.offset, weight)
        return solve(n, equations, scatter=(transfer @ offsets.scatter @ transfer.T).tocsr())

    weight = offsets.full_weight
    result = solution(weight)
    for iteration in range(_ROBUST_ITERATIONS if robust and len(weight) else 0):
        pulls = np.abs(residuals(offsets, groups, result)) * np.sqrt(offsets.full_weight)
        scale = max(float(np.median(pulls)) / 0.6745, 1e-300)
        weight = offsets.full_weight * _trust(pulls / scale, last=iteration >= _LEAST_ABSOLUTE_ITERATIONS)
        result = solution(weight)
    return result, replace(offsets, weight=weight)


def _trust(pulls: np.ndarray, *, last: bool) -> np.ndarray:
    """Factors on the weights: at first those of least absolute deviations, which bad pairs hardly move."""
    return 1 / (1 + (pulls / _ROBUST_LIMIT) ** 2) if last else 1 / np.maximum(pulls, 0.1)


def residuals(offsets: Offsets, groups: np.ndarray, solution: Solution) -> np.ndarray:
    """Measured offset minus the difference of the fitted levels, for each pair."""
    level = solution.coefficients[:, 0]
    return offsets.offset - (level[groups[offsets.first]] - level[groups[offsets.second]])


def _components(n: int, equations: PairEquations) -> np.ndarray:
    links = sparse.coo_array((np.ones(len(equations.first)), (equations.first, equations.second)), shape=(n, n))
    _, labels = connected_components(links, directed=False)
    linked = np.zeros(n, dtype=bool)
    linked[equations.first] = linked[equations.second] = True
    component = np.full(n, -1)
    if linked.any():
        _, first, inverse = np.unique(labels[linked], return_index=True, return_inverse=True)
        component[linked] = np.argsort(np.argsort(first))[inverse]
    return component


def _assemble(n: int, equations: PairEquations) -> tuple[sparse.csr_array, np.ndarray]:
    p = equations.p
    unknowns = np.concatenate(
        [equations.first[:, None] * p + np.arange(p), equations.second[:, None] * p + np.arange(p)], axis=1
    )
    rows = np.broadcast_to(unknowns[:, :, None], equations.normal.shape)
    columns = np.broadcast_to(unknowns[:, None, :], equations.normal.shape)
    normal = sparse.coo_array((equations.normal.ravel(), (rows.ravel(), columns.ravel())), shape=(n * p, n * p)).tocsr()
    return normal, np.bincount(unknowns.ravel(), equations.rhs.ravel(), minlength=n * p)


def _factorise(normal: sparse.csc_array) -> SuperLU:
    """Factors of a symmetric matrix; ValueError if a pivot is lost in rounding."""
    message = "the overlaps do not determine all coefficients; use a function with fewer"
    try:
        factors = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError as error:
        raise ValueError(message) from error
    pivots = np.abs(factors.U.diagonal())[factors.perm_c]
    if not (pivots > _LEAST_PIVOT * normal.diagonal()).all():
        raise ValueError(message)
    return factors


def _centred(coefficients: np.ndarray, component: np.ndarray) -> np.ndarray:
    inside = component >= 0
    sums = np.zeros((component.max(initial=-1) + 1, coefficients.shape[1]))
    np.add.at(sums, component[inside], coefficients[inside])
    means = sums / np.bincount(component[inside], minlength=len(sums))[:, None]
    centred = coefficients.copy()
    centred[inside] -= means[component[inside]]
    return centred


def _covariance(
    factors: SuperLU, spread: sparse.csr_array, component: np.ndarray, free: np.ndarray, p: int
) -> np.ndarray:
    """Diagonal blocks of the covariance of the centred solution, a few unknowns at a time."""
    n = len(component)
    covariance = np.zeros((n, p, p))
    inside = np.flatnonzero(component >= 0)
    size = np.bincount(component[inside])
    free_component, free_coefficient = component[free // p], free % p
    for start in range(0, len(inside), _BLOCK):
        some = inside[start : start + _BLOCK]
        columns = (some[:, None] * p + np.arange(p)).ravel()
        same = (free_component[:, None] == component[columns // p]) & (free_coefficient[:, None] == columns % p)
        project = (free[:, None] == columns) - same / size[component[columns // p]]
        response = factors.solve(project).reshape(len(free), len(some), p)
        scattered = (spread @ response.reshape(len(free), -1)).reshape(response.shape)
        covariance[some] = np.einsum("fma,fmb->mab", response, scattered)
    return covariance
