"""Least squares over a graph of overlaps: one small block for each pair of exposures, solved directly."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, splu

from bkgmatch.pairs import Offsets, PairEquations, offset_equations

__all__ = [
    "NormalSystem",
    "Solution",
    "assemble",
    "connected",
    "diagonal_blocks",
    "renumbered",
    "residuals",
    "robust_trust",
    "solve",
    "solve_offsets",
    "unit_columns",
]

_BLOCK = 128
_LEAST_PIVOT = 1e-11  # relative to the diagonal
_ROUNDING = 1e-14  # relative to the largest of the unknown's own: functions that are zero in all cells
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
    system = NormalSystem(n, equations)
    component = system.component
    coefficients = system.solution()
    covariance = system.covariance(system.normal if scatter is None else scatter.tocsr())
    coefficients[component < 0] = np.nan
    return Solution(coefficients, covariance, component)


class NormalSystem:
    """
    Factorised normal equations of a graph of pairs.

    Parameters
    ----------
    n : int
        Number of unknowns.
    equations : PairEquations
        Equations of the pairs.
    held : ndarray of bool, shape (n,), optional
        Unknowns whose coefficients are 0. A component without any has mean zero over its unknowns instead.
    prior : ndarray, shape (p,) or (n, p), optional
        Inverse variance of each coefficient about the mean of its component, for what the pairs do not determine.

    Attributes
    ----------
    component : ndarray of int, shape (n,)
        Number of the connected component, in order of its first unknown; -1 for unknowns in no equation.
    normal : sparse array, shape (n p, n p)
        The normal matrix, with the prior.

    Raises
    ------
    ValueError
        If pairs and prior do not determine the coefficients.
    """

    def __init__(
        self,
        n: int,
        equations: PairEquations,
        *,
        held: np.ndarray | None = None,
        prior: np.ndarray | None = None,
    ) -> None:
        p = equations.p
        self.n, self.p = n, p
        self.component = _components(n, equations)
        self.normal, self._rhs = assemble(n, equations)
        held = np.zeros(n, dtype=bool) if held is None else held
        prior = np.broadcast_to(np.zeros(p) if prior is None else prior, (n, p))
        if prior.any():
            self.normal = (self.normal + sparse.diags_array(prior.ravel())).tocsr()
        is_free = np.tile((self.component >= 0) & ~held, (p, 1)).T
        is_free[np.ix_(self._first_of_afloat(held), ~prior.any(axis=0))] = False
        self._free = np.flatnonzero(is_free)
        diagonal = self.normal.diagonal().reshape(n, p)
        least = np.maximum(_LEAST_PIVOT * diagonal, _ROUNDING * diagonal.max(axis=1, keepdims=True)).ravel()
        free = self.normal[self._free][:, self._free].tocsc()
        self._factors = _factorise(free, least[self._free]) if self._free.size else None

    def _first_of_afloat(self, held: np.ndarray) -> np.ndarray:
        """First unknown of each component in which none is held; remembers the members of these."""
        anchored = np.unique(self.component[held & (self.component >= 0)])
        self._afloat = np.where(np.isin(self.component, anchored), -1, self.component)
        numbers, first = np.unique(self._afloat, return_index=True)
        return first[numbers >= 0]

    def solution(self) -> np.ndarray:
        """Coefficients that solve the equations, shape (n, p)."""
        return self.respond(self._rhs).reshape(self.n, self.p)

    def respond(self, rhs: np.ndarray) -> np.ndarray:
        """Solutions, shape (n p, ...), to right-hand sides of that shape, with mean zero where nothing is held."""
        solution = np.zeros(rhs.shape)
        if self._factors is not None:
            solution[self._free] = self._factors.solve(self._centred(rhs)[self._free])
        return self._centred(solution)

    def covariance(self, spread: sparse.csr_array) -> np.ndarray:
        """Covariance of each unknown, (n, p, p), if that of the right-hand side is ``spread``; NaN without pairs."""
        covariance = np.full((self.n, self.p, self.p), np.nan)
        for some in self.blocks():
            covariance[some] = diagonal_blocks(self.respond(unit_columns(some, self.n, self.p)), spread, self.p)
        return covariance

    def blocks(self) -> Iterator[np.ndarray]:
        """Unknowns that occur in equations, a few at a time."""
        inside = np.flatnonzero(self.component >= 0)
        return (inside[start : start + _BLOCK] for start in range(0, len(inside), _BLOCK))

    def _centred(self, columns: np.ndarray) -> np.ndarray:
        inside = self._afloat >= 0
        if not inside.any():
            return columns
        blocks = columns.reshape(self.n, self.p, -1).copy()
        number = self._afloat[inside]
        members = sparse.coo_array((np.ones(len(number)), (number, np.arange(len(number))))).tocsr()
        flat = blocks[inside].reshape(len(number), -1)
        means = (members @ flat) / np.maximum(members.sum(axis=1), 1)[:, None]
        blocks[inside] = (flat - means[number]).reshape(len(number), *blocks.shape[1:])
        return blocks.reshape(columns.shape)


def unit_columns(some: np.ndarray, n: int, p: int) -> np.ndarray:
    """Columns of the unit matrix, shape (n p, len(some) p), for all coefficients of some unknowns."""
    columns = np.zeros((n * p, len(some) * p))
    columns[(some[:, None] * p + np.arange(p)).ravel(), np.arange(len(some) * p)] = 1
    return columns


def diagonal_blocks(response: np.ndarray, spread: sparse.csr_array, p: int) -> np.ndarray:
    """Blocks, shape (m, p, p), of ``response.T @ spread @ response``, for a response of shape (n p, m p)."""
    scattered = (spread @ response).reshape(len(response), -1, p)
    return np.einsum("fma,fmb->mab", response.reshape(scattered.shape), scattered)


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
        weight = offsets.full_weight * robust_trust(pulls / scale, last=iteration >= _LEAST_ABSOLUTE_ITERATIONS)
        result = solution(weight)
    return result, replace(offsets, weight=weight)


def robust_trust(pulls: np.ndarray, *, last: bool) -> np.ndarray:
    """Factors on the weights: at first those of least absolute deviations, which bad pairs hardly move."""
    return 1 / (1 + (pulls / _ROBUST_LIMIT) ** 2) if last else 1 / np.maximum(pulls, 0.1)


def residuals(offsets: Offsets, groups: np.ndarray, solution: Solution) -> np.ndarray:
    """Measured offset minus the difference of the fitted levels, for each pair."""
    level = solution.coefficients[:, 0]
    return offsets.offset - (level[groups[offsets.first]] - level[groups[offsets.second]])


def connected(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the same label, shape (n,), for all of n unknowns that links between first and second connect."""
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(links, directed=False)[1]


def renumbered(labels: np.ndarray) -> np.ndarray:
    """Renumber labels in the order of their first members; negative ones become -1."""
    number: dict[int, int] = {}
    return np.array([number.setdefault(k, len(number)) if k >= 0 else -1 for k in labels.tolist()], dtype=int)


def _components(n: int, equations: PairEquations) -> np.ndarray:
    linked = np.zeros(n, dtype=bool)
    linked[equations.first] = linked[equations.second] = True
    return renumbered(np.where(linked, connected(n, equations.first, equations.second), -1))


def assemble(n: int, equations: PairEquations) -> tuple[sparse.csr_array, np.ndarray]:
    """
    Add up pair equations.

    Parameters
    ----------
    n : int
        Number of unknowns.
    equations : PairEquations
        Equations of the pairs.

    Returns
    -------
    normal : sparse array, shape (n p, n p)
        Normal matrix.
    rhs : ndarray, shape (n p,)
        Right-hand side.
    """
    p = equations.p
    unknowns = np.concatenate(
        [equations.first[:, None] * p + np.arange(p), equations.second[:, None] * p + np.arange(p)], axis=1
    )
    rows = np.broadcast_to(unknowns[:, :, None], equations.normal.shape)
    columns = np.broadcast_to(unknowns[:, None, :], equations.normal.shape)
    normal = sparse.coo_array((equations.normal.ravel(), (rows.ravel(), columns.ravel())), shape=(n * p, n * p)).tocsr()
    return normal, np.bincount(unknowns.ravel(), equations.rhs.ravel(), minlength=n * p)


def _factorise(normal: sparse.csc_array, least: np.ndarray) -> SuperLU:
    """Factors of a symmetric matrix; ValueError if a pivot is lost in rounding: not above the least."""
    message = "the overlaps do not determine all coefficients; use a function with fewer"
    try:
        factors = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError as error:
        raise ValueError(message) from error
    pivots = np.abs(factors.U.diagonal())[factors.perm_c]
    if not (pivots > least).all():
        raise ValueError(message)
    return factors
