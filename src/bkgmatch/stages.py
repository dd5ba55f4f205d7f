"""Covariance of functions that are found in stages, each with mean zero over its components."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from bkgmatch.selected_inverse import inverse_blocks

__all__ = ["Stage", "covariance_of_sums"]


class Stage(NamedTuple):
    """
    Equations of one stage, and what they give.

    In a component in which nothing is held, the unknowns are the functions relative to that of one member, their mean,
    which is subtracted, and where a prior determines it the function of that member itself.

    Parameters
    ----------
    label : ndarray of int, shape (m,)
        The same for unknowns that belong to one function, or to one component.
    matrix, scatter : sparse array, shape (m, m)
        Matrix of the equations, and covariance of their right-hand side.
    functions : sparse array, shape (n p, m)
        From the unknowns to the coefficients of the functions.
    sides : sparse array, shape (m, n p)
        From a right-hand side of pairs to that of these equations; or, if it is `tied`, from coefficients of earlier
        stages to what they add to it.
    """

    label: np.ndarray
    matrix: sparse.coo_array
    scatter: sparse.coo_array
    functions: sparse.coo_array
    sides: sparse.coo_array

    @classmethod
    def of(
        cls,
        normal: sparse.coo_array,
        scatter: sparse.coo_array,
        prior: np.ndarray,
        free: np.ndarray,
        afloat: sparse.coo_array,
    ) -> "Stage":
        """
        Make the equations of one stage.

        Parameters
        ----------
        normal, scatter : sparse array, shape (n p, n p)
            Normal matrix, with the prior, and covariance of its right-hand side.
        prior : ndarray, shape (n, p)
            Inverse variance of each coefficient about the mean of its component.
        free : ndarray of bool, shape (n,)
            Members of components that are neither held nor the one to which others are relative.
        afloat : sparse array, shape (n_afloat, n)
            The members (1, others 0) of each component in which nothing is held.

        Returns
        -------
        Stage
            The equations.
        """
        at = _Numbering.of(prior, free, afloat)
        kinds = [at.own, at.one] if len(at.pulled) else [at.own]
        spread = [(one[scatter.coords[0]], two[scatter.coords[1]], scatter.data) for one in kinds for two in kinds]
        own, ones = (at.own[at.places], at.places), np.ones(len(at.places))
        shift = (at.members, at.mean[at.sets], -np.ones(len(at.members)))
        p = prior.shape[1]
        return cls(
            label=np.concatenate([at.places, prior.size + at.pulled, prior.size + np.arange(len(at.mean))]) // p,
            matrix=_array(at.equations(normal, prior.ravel()), (at.size, at.size)),
            scatter=_array(spread, (at.size, at.size)),
            functions=_array([(*own[::-1], ones), shift], (prior.size, at.size)),
            sides=_array([(*own, ones)], (at.size, prior.size)),
        )

    def tied(self, units: sparse.csr_array, normal: sparse.csr_array) -> "Stage":
        """
        Tie what moves as one.

        Parameters
        ----------
        units : sparse array, shape (n_members p', n p)
            From the coefficients of functions to those of all that move with them.
        normal : sparse array, shape (n_members p', n_members p')
            Normal matrix of these.

        Returns
        -------
        Stage
            Equations whose functions are those of the members.
        """
        return self._replace(
            functions=(units @ self.functions).tocoo(), sides=(-(self.sides @ units.T @ normal)).tocoo()
        )


class _Numbering(NamedTuple):
    """Numbers of the unknowns of a stage."""

    places: np.ndarray  # coefficients of functions relative to one of the component
    own: np.ndarray  # (n p,), the unknown of each coefficient, -1 for none
    one: np.ndarray  # (n p,), the coefficient of that function itself, -1 for none
    mean: np.ndarray  # (n_afloat p,), that of the mean of each component
    pulled: np.ndarray  # those of n_afloat p that the prior determines
    members: np.ndarray  # coefficients in components in which nothing is held,
    sets: np.ndarray  # and which mean they enter
    size: int

    @classmethod
    def of(cls, prior: np.ndarray, free: np.ndarray, afloat: sparse.coo_array) -> "_Numbering":
        p, n_means = prior.shape[1], afloat.shape[0] * prior.shape[1]
        sets, members = (np.repeat(index * p, p) + np.tile(np.arange(p), afloat.nnz) for index in afloat.coords)
        places = np.flatnonzero(np.repeat(free, p))
        pulled = np.flatnonzero(np.tile(prior.any(axis=0), afloat.shape[0]))
        own, one = np.full((2, prior.size), -1)
        own[places] = np.arange(len(places))
        of_set = np.full(n_means, -1)
        of_set[pulled] = len(places) + np.arange(len(pulled))
        one[members] = of_set[sets]
        mean = len(places) + len(pulled) + np.arange(n_means)
        return cls(places, own, one, mean, pulled, members, sets, len(places) + len(pulled) + n_means)

    def equations(self, normal: sparse.coo_array, prior: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Entries of their matrix. Pairs do not resist when a component moves as a whole, only the prior does."""
        moved = self.members[self.one[self.members] >= 0]
        both = moved[self.own[moved] >= 0]
        averaged = self.own[self.members] >= 0
        sets = self.sets[averaged]
        counts = np.bincount(self.sets, minlength=len(self.mean))
        return [
            (self.own[normal.coords[0]], self.own[normal.coords[1]], normal.data),
            (self.own[both], self.one[both], prior[both]),
            (self.one[both], self.own[both], prior[both]),
            (self.one[moved], self.one[moved], prior[moved]),
            (self.mean[sets], self.own[self.members[averaged]], -1 / counts[sets]),
            (self.mean, self.mean, np.ones(len(self.mean))),
        ]


def covariance_of_sums(stages: Sequence[Stage], p: int) -> np.ndarray:
    """
    Find the covariance of the sums of functions of all stages.

    Parameters
    ----------
    stages : sequence of Stage
        Stages, each of which starts from the sums of those before it.
    p : int
        Number of coefficients of a sum.

    Returns
    -------
    ndarray, shape (n, p, p)
        Covariance of each sum.

    Notes
    -----
    The stages are one block triangular system, and the sums are its last unknowns.
    """
    starts = np.cumsum([0, *(len(stage.label) for stage in stages)])
    size, end = stages[0].functions.shape[0], int(starts[-1])
    matrix, scatter, labels, used = [], [], [], 0
    for k, (stage, start) in enumerate(zip(stages, starts, strict=False)):
        matrix += [_entries(stage.matrix, start, start), _entries(-stage.functions, end, start)]
        matrix += [
            _entries((-(stage.sides @ before.functions)).tocoo(), start, other)
            for before, other in zip(stages[:k], starts, strict=False)
        ]
        scatter.append(_entries(stage.scatter, start, start))
        labels.append(stage.label + used)
        used += int(stage.label.max(initial=-1)) + 1
    sums = end + np.arange(size)
    matrix.append((sums, sums, np.ones(size)))
    labels.append(used + np.arange(size) // p)
    shape = (end + size, end + size)
    found = inverse_blocks(_array(matrix, shape), np.concatenate(labels), _array(scatter, shape), _clusters(stages, p))
    last = found.coords[0] >= end
    one, two = (index[last] - end for index in found.coords)
    covariance = np.zeros((size // p, p, p))
    covariance[one // p, one % p, two % p] = found.data[last]
    return (covariance + covariance.transpose(0, 2, 1)) / 2


def _clusters(stages: Sequence[Stage], p: int) -> np.ndarray:
    """Which functions move together in the last stage, for the unknowns of all stages and for the sums."""
    rows, columns = stages[-1].functions.coords
    own = np.full(stages[-1].functions.shape[0] // p, stages[-1].functions.shape[1])
    np.minimum.at(own, rows // p, columns)
    return np.concatenate([*(own[_members(stage, p)] for stage in stages), np.repeat(own, p)])


def _members(stage: Stage, p: int) -> np.ndarray:
    """One of the functions that each unknown of a stage moves, or that what it is coupled with moves."""
    rows, columns = stage.functions.coords
    member = np.full(stage.functions.shape[1], -1)
    np.maximum.at(member, columns, rows // p)
    one, two = stage.matrix.coords
    near = member.copy()
    np.maximum.at(near, one, member[two])
    return np.where(member < 0, near, member)


def _entries(array: sparse.coo_array, row: int, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of an array that is put into a larger one."""
    return array.coords[0] + row, array.coords[1] + column, array.data


def _array(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]) -> sparse.coo_array:
    """Sum of entries (rows, columns, values); those with a negative row or column are left out."""
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = (rows >= 0) & (columns >= 0)
    return sparse.coo_array((values[kept], (rows[kept], columns[kept])), shape=shape)
