"""Least squares over a graph of overlaps: one small block for each pair of exposures, solved directly."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage, sparse
from scipy.linalg.blas import dtrsv
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, splu

from bkgmatch.display import Displayed, Rows
from bkgmatch.pairs import Offsets, PairEquations, offset_equations
from bkgmatch.selected_inverse import inverse_blocks
from bkgmatch.stages import Stage, covariance_of_sums

__all__ = [
    "NORMAL_MEDIAN",
    "NormalSystem",
    "Solution",
    "assemble",
    "connected",
    "relative_pulls",
    "renumbered",
    "residuals",
    "robust_trust",
    "solve",
    "solve_offsets",
    "typical_pulls",
]

NORMAL_MEDIAN = 0.6745
"""Median of the absolute values of normal numbers, in standard deviations."""

_LEAST_PIVOT = 1e-11  # relative to the diagonal
_ROUNDING = 1e-14  # relative to the largest of the unknown's own: functions that are zero in all cells
_TOLERANCE, _GRADIENTS = 1e-12, 60
_ROBUST_LIMIT = 3.0
_EXACT, _TINY = 1e-9, 1e-100  # relative to the offsets: rounding; what is not 0
_LEAST_ABSOLUTE_ITERATIONS, _ROBUST_ITERATIONS = 15, 30

# OpenBLAS tries for ever to get memory for its buffers, of which scipy and numpy have one each. They get them now, so
# that a shortage later on is an error.
dtrsv(np.eye(1), np.ones(1))
np.ones((64, 64)) @ np.ones((64, 64))


@dataclass(frozen=True, repr=False)
class Solution(Displayed):
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

    def _rows(self) -> Rows:
        names = [str(i) for i in range(len(self.component))]
        status = ["in no equation" if c < 0 else f"in component {c}" for c in self.component]
        return Rows(names, self.coefficients[:, 0], np.sqrt(self.covariance[:, 0, 0]), status, noun="unknown")


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
        Covariance of the summed right-hand side of pairs, whose errors are not independent or whose weights are not
        inverse variances. By default the normal matrix itself, which is right for independent pairs.

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
    coefficients = system.solution()
    coefficients[system.component < 0] = np.nan
    return Solution(coefficients, system.covariance(scatter), system.component)


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
        self._held = held
        self._prior = np.broadcast_to(np.zeros(p) if prior is None else prior, (n, p))
        if self._prior.any():
            self.normal = (self.normal + sparse.diags_array(self._prior.ravel())).tocsr()
        is_free = np.tile((self.component >= 0) & ~held, (p, 1)).T
        self._afloat, best = self._components_without(held)
        is_free[np.ix_(best, ~self._prior.any(axis=0))] = False
        self._fixed = np.append(np.flatnonzero(held), best)
        self._free = np.flatnonzero(is_free)
        diagonal = self.normal.diagonal().reshape(n, p)
        least = np.maximum(_LEAST_PIVOT * diagonal, _ROUNDING * diagonal.max(axis=1, keepdims=True)).ravel()
        free = self.normal[self._free][:, self._free].tocsc()
        self._factors = _factorise(free, least[self._free]) if self._free.size else None

    def _components_without(self, held: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
        """Members of the components in which no unknown is held, and the one of each that is known best."""
        anchored = np.unique(self.component[held & (self.component >= 0)])
        inside = np.flatnonzero((self.component >= 0) & ~np.isin(self.component, anchored))
        inside = inside[np.argsort(-self.normal.diagonal()[:: self.p][inside], kind="stable")]
        _, best, number = np.unique(self.component[inside], return_index=True, return_inverse=True)
        members = sparse.coo_array((np.ones(len(inside)), (number, inside)), shape=(len(best), self.n)).tocsr()
        return members, inside[best]

    def solution(self) -> np.ndarray:
        """Coefficients that solve the equations, shape (n, p)."""
        return self.respond(self._rhs).reshape(self.n, self.p)

    def solution_of(self, equations: PairEquations) -> np.ndarray:
        """
        Find the coefficients that solve equations of the same pairs with other weights.

        Parameters
        ----------
        equations : PairEquations
            The equations.

        Returns
        -------
        ndarray, shape (n, p)
            The coefficients. In each component the residual is less than 1e-12 of the right-hand side.

        Notes
        -----
        Conjugate gradients, preconditioned by the factors of these equations (Hestenes & Stiefel 1952, *J. Res. Natl.
        Bur. Stand.* 49, 409). Where weights differ so much that this takes long, the matrix is factorised.
        """
        if self._factors is None:
            return np.zeros((self.n, self.p))
        product = _Product.of(self.n, equations, self._prior)

        def times(free: np.ndarray) -> np.ndarray:
            return product.times(self._whole(free).reshape(self.n, self.p)).ravel()[self._free]

        part = self.component[self._free // self.p]
        found = _conjugate_gradients(times, self._centred(product.rhs)[self._free], self._factors.solve, part)
        if found is None:
            return NormalSystem(self.n, equations, held=self._held, prior=self._prior).solution()
        return self._centred(self._whole(found)).reshape(self.n, self.p)

    def variances(self) -> np.ndarray:
        """
        Find the variance of each coefficient, as in `covariance` without a scatter, but sooner.

        Returns
        -------
        ndarray, shape (n, p)
            Relative to the mean of the component where nothing is held; NaN for unknowns in no equation.

        Notes
        -----
        With the inverse G of the free part of the normal matrix, and the weights m of the mean:
        ``diag(G) - 2 G m + m^T G m``.
        """
        diagonal = np.zeros(self.n * self.p)
        if self._factors is not None:
            free = self.normal[self._free][:, self._free]
            diagonal[self._free] = inverse_blocks(free, self._free // self.p).diagonal()
        means = self._afloat / self._afloat.sum(axis=1)[:, None]
        weights = np.kron(means.sum(axis=0)[:, None], np.eye(self.p))  # components have nothing in common
        with_mean = np.einsum("naa->na", self._solve(weights).reshape(self.n, self.p, self.p))
        variances = diagonal.reshape(self.n, self.p) - 2 * with_mean + self._afloat.T @ (means @ with_mean)
        variances[self.component < 0] = np.nan
        return variances

    def respond(self, rhs: np.ndarray) -> np.ndarray:
        """Solutions, shape (n p, ...), to right-hand sides of that shape, with mean zero where nothing is held."""
        return self._centred(self._solve(self._centred(rhs)))

    def _solve(self, rhs: np.ndarray) -> np.ndarray:
        return self._whole(self._factors.solve(rhs[self._free])) if self._factors is not None else np.zeros(rhs.shape)

    def _whole(self, free: np.ndarray) -> np.ndarray:
        """All coefficients, of which some are free and the others 0."""
        whole = np.zeros((self.n * self.p, *free.shape[1:]))
        whole[self._free] = free
        return whole

    def covariance(self, scatter: sparse.sparray | None = None) -> np.ndarray:
        """
        Find the covariance of each unknown, relative to the mean of its component where nothing is held.

        Parameters
        ----------
        scatter : sparse array, shape (n p, n p), optional
            Covariance of the right-hand side; that of pairs does not change when the same coefficients are added to
            both unknowns. By default the normal matrix itself.

        Returns
        -------
        ndarray, shape (n, p, p)
            NaN for unknowns in no equation.
        """
        covariance = covariance_of_sums([self.stage(scatter)], self.p)
        covariance[self.component < 0] = np.nan
        return covariance

    def stage(self, scatter: sparse.sparray | None = None) -> Stage:
        """Equations for the covariance of functions, if that of the right-hand side is the scatter."""
        is_free = self.component >= 0
        is_free[self._fixed] = False
        scatter = self.normal if scatter is None else scatter
        normal, spread, afloat = (sparse.coo_array(array) for array in (self.normal, scatter, self._afloat))
        return Stage.of(normal, spread, self._prior, is_free, afloat)

    def _centred(self, columns: np.ndarray) -> np.ndarray:
        blocks = columns.reshape(self.n, -1)
        means = (self._afloat @ blocks) / self._afloat.sum(axis=1)[:, None]
        return (blocks - self._afloat.T @ means).reshape(columns.shape)


@dataclass(frozen=True)
class _Product:
    """The normal matrix as what it does: difference, times the matrix of a pair, and back to both."""

    first: np.ndarray
    second: np.ndarray
    blocks: np.ndarray
    incidence: sparse.csr_array
    prior: np.ndarray
    rhs: np.ndarray

    @classmethod
    def of(cls, n: int, equations: PairEquations, prior: np.ndarray) -> "_Product":
        p, pairs = equations.p, np.arange(len(equations.first))
        place = np.concatenate([equations.first, equations.second]), np.tile(pairs, 2)
        incidence = sparse.coo_array((np.repeat([1.0, -1.0], len(pairs)), place), shape=(n, len(pairs))).tocsr()
        rhs = (incidence @ equations.rhs[:, :p]).ravel()
        return cls(equations.first, equations.second, equations.normal[:, :p, :p], incidence, prior, rhs)

    def times(self, functions: np.ndarray) -> np.ndarray:
        apart = functions[self.first] - functions[self.second]
        return self.incidence @ np.einsum("nab,nb->na", self.blocks, apart) + self.prior * functions


def _conjugate_gradients(
    times: Callable, rhs: np.ndarray, precondition: Callable, part: np.ndarray
) -> np.ndarray | None:
    """Solve a system of several parts that have nothing in common, each to its own precision; None if it takes long."""

    def dot(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.bincount(part, one * two)

    def ratio(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.divide(one, two, out=np.zeros_like(one), where=two > 0)[part]

    found, left = np.zeros_like(rhs), rhs.copy()
    least = _TOLERANCE**2 * dot(rhs, rhs)
    ahead = near = precondition(left)
    size = dot(left, near)
    for _ in range(_GRADIENTS):
        pushed = times(ahead)
        step = ratio(size, dot(ahead, pushed))
        found += step * ahead
        left -= step * pushed
        if (dot(left, left) <= least).all():
            return found
        near = precondition(left)
        before, size = size, dot(left, near)
        ahead = near + ratio(size, before) * ahead
    return None


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
    weight = offsets.full_weight
    if robust and len(weight):
        weight = _robust_weight(n, one, two, offsets)
    weighted = replace(offsets, weight=weight)
    equations = offset_equations(one, two, offsets.offset, weight)
    return solve(n, equations, scatter=_level_scatter(weighted, one, two, n)), weighted


def _robust_weight(n: int, one: np.ndarray, two: np.ndarray, offsets: Offsets) -> np.ndarray:
    weight = offsets.full_weight
    system = NormalSystem(n, offset_equations(one, two, offsets.offset, weight))
    # Pairs that are in no loop fit exactly, and say nothing of the others: these may be off by their errors.
    least = 1.0 if (offsets.sigma > 0).any() else _EXACT * float(np.abs(offsets.offset * np.sqrt(weight)).max())
    component = system.component[one]
    for iteration in range(_ROBUST_ITERATIONS):
        levels = system.solution_of(offset_equations(one, two, offsets.offset, weight))[:, 0]
        pulls = np.abs(offsets.offset - (levels[one] - levels[two])) * np.sqrt(offsets.full_weight)
        pulls = relative_pulls(pulls, component, least=max(least, _TINY))
        weight = offsets.full_weight * robust_trust(pulls, last=iteration >= _LEAST_ABSOLUTE_ITERATIONS)
    return weight


def _level_scatter(offsets: Offsets, one: np.ndarray, two: np.ndarray, n: int) -> sparse.csr_array:
    """Covariance of the right-hand side, shape (n, n), that follows from shared pixels."""
    pairs = np.tile(np.arange(len(one)), 2)
    signed = np.concatenate([offsets.weight, -offsets.weight])
    design = sparse.coo_array((signed, (np.concatenate([one, two]), pairs)), shape=(n, len(one))).tocsr()
    transfer = design @ offsets.loading
    scatter = offsets.scatter.copy()
    scatter.eliminate_zeros()  # of overlaps that share no pixels: they would make it much denser
    return (transfer @ scatter @ transfer.T).tocsr()


def relative_pulls(pulls: np.ndarray, component: np.ndarray, *, least: float = 1.0) -> np.ndarray:
    """Divide the pulls of pairs by their robust scatter in the component, where that is more than the least."""
    return pulls / np.maximum(typical_pulls(pulls, component, int(component.max()) + 1), least)[component]


def typical_pulls(pulls: np.ndarray, component: np.ndarray, n: int) -> np.ndarray:
    """Robust scatter of the pulls of pairs in each of n components; meaningless for those without any."""
    return ndimage.median(pulls, component, np.arange(n)) / NORMAL_MEDIAN


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
    try:
        factors = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError as error:
        raise ValueError(_undetermined(error)) from error
    pivots = np.abs(factors.U.diagonal())[factors.perm_c]
    if not (pivots > least).all():
        raise ValueError(_undetermined("a pivot is lost in rounding"))
    return factors


def _undetermined(why: object) -> str:
    return f"the overlaps do not determine all coefficients; use a function with fewer ({why})"
