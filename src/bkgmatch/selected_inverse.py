"""Blocks of the inverse of a sparse matrix, or of the covariance of its solutions, without the rest of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from bkgmatch.dissection import Front, dissect

__all__ = ["inverse_blocks"]


@dataclass(frozen=True)
class _Eliminated:
    """A front after elimination: what the way back needs of it. The last two are empty without a scatter."""

    inverse: np.ndarray  # of its own block A
    right: np.ndarray  # A^-1 B, with its columns B on the boundary
    left: np.ndarray  # C A^-1, with its rows C on the boundary
    own: np.ndarray  # A^-1 P A^-T, with the scatter P of its own right-hand side
    mixed: np.ndarray  # A^-1 Q, with the covariance Q of its right-hand side and that of the boundary


def inverse_blocks(
    matrix: sparse.sparray,
    label: np.ndarray,
    scatter: sparse.sparray | None = None,
    cluster: np.ndarray | None = None,
) -> sparse.coo_array:
    """
    Find blocks of the inverse of a matrix, or of the covariance of solutions.

    Parameters
    ----------
    matrix : sparse array, shape (m, m)
        Matrix L. All its submatrices with the same rows as columns must be regular: so it is with a positive definite
        matrix, and with a block triangular one that has such blocks on its diagonal.
    label : ndarray of int, shape (m,)
        Unknowns of the same label are of one block.
    scatter : sparse array, shape (m, m), optional
        Covariance S of the right-hand side. By default L itself, for symmetric L.
    cluster : ndarray of int, shape (m,), optional
        Clusters of unknowns, which help to find a good order (`dissect`).

    Returns
    -------
    sparse array, shape (m, m)
        The entries of ``L^-1 S L^-T`` (of ``L^-1`` by default) for pairs of unknowns of the same label.

    Notes
    -----
    The unknowns are eliminated front by front (`dissect`), and then the entries of the inverse that belong to fronts
    follow backwards, each from those of the front above it (Takahashi, Fagan & Chen 1973, *Proc. 8th PICA Conf.*, 63;
    Erisman & Tinney 1975, *Commun. ACM* 18, 177). The scatter goes the same way: ``L^-1 S L^-T`` is a block of the
    inverse of ``[[-S, L], [L^T, 0]]``. With own block A of a front, its columns B and rows C on the boundary R, and
    their scatters P and Q, elimination leaves on R

    - ``L' = L - C A^-1 B`` and ``S' = S - X Q' - Q^T X^T`` with ``X = C A^-1`` and ``Q' = Q - P X^T``;

    and on the way back, with ``Y = A^-1 B``, inverse Z and covariance D of the solution,

    - ``Z_JR = -Y Z_RR``, ``Z_RJ = -Z_RR X`` and ``Z_JJ = A^-1 + Y Z_RR X``;
    - ``D_JR = E - Y D_RR`` and ``D_JJ = A^-1 P A^-T - D_JR Y^T - Y E^T`` with ``E = A^-1 Q' Z_RR^T``.

    For graphs that lie in a plane the cost is that of the factors: n^1.5 at worst.
    """
    if not len(label):
        return sparse.coo_array(matrix.shape)
    parts = [sparse.coo_array(part) for part in ([matrix] if scatter is None else [matrix, scatter])]
    order, fronts = dissect(np.concatenate([np.stack(part.coords) for part in parts], axis=1), label, cluster)
    entries = [_by_front(part, order, fronts) for part in parts]
    eliminated = _eliminate(fronts, entries)
    rows, columns, values = [], [], []
    for front, block in zip(reversed(fronts), _own_blocks(fronts, eliminated, scatter is not None), strict=True):
        own = order[front.start : front.stop]
        row, column = np.nonzero(label[own][:, None] == label[own])
        rows.append(own[row])
        columns.append(own[column])
        values.append(block[row, column])
    place = np.concatenate(rows), np.concatenate(columns)
    return sparse.coo_array((np.concatenate(values), place), shape=matrix.shape)


def _by_front(matrix: sparse.coo_array, order: np.ndarray, fronts: list[Front]) -> list[tuple[np.ndarray, ...]]:
    """Rows, columns and values, in the dense matrix of each front, of the entries that come up there first."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows, columns = (position[index] for index in matrix.coords)
    number = np.searchsorted([front.stop for front in fronts], np.minimum(rows, columns), side="right")
    by_front = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[by_front], np.arange(1, len(fronts)))
    parts = zip(*(np.split(part[by_front], ends) for part in (rows, columns, matrix.data)), strict=True)
    return [
        (front.place(row), front.place(column), value)
        for front, (row, column, value) in zip(fronts, parts, strict=True)
    ]


def _eliminate(fronts: list[Front], entries: list[list[tuple[np.ndarray, ...]]]) -> list[_Eliminated]:
    """Go up the tree: what each front leaves on its boundary is added to the front above it."""
    waiting: dict[int, list] = {}
    eliminated = []
    for number, front in enumerate(fronts):
        size = front.stop - front.start + len(front.boundary)
        dense = np.zeros((len(entries), size, size))
        for matrix, part in zip(dense, entries, strict=True):
            row, column, value = part[number]
            np.add.at(matrix, (row, column), value)
        for boundary, left in waiting.pop(number, []):
            place = front.place(boundary)
            dense[:, place[:, None], place] += left
        done, left = _step(dense, front.stop - front.start)
        eliminated.append(done)
        if len(front.boundary):
            waiting.setdefault(front.parent, []).append((front.boundary, left))
    return eliminated


def _step(dense: np.ndarray, own: int) -> tuple[_Eliminated, np.ndarray]:
    """Eliminate the first ``own`` unknowns of the matrix of a front, and of its scatter if there is one."""
    matrix, *scatters = dense
    inverse = np.linalg.inv(matrix[:own, :own])
    right, left = inverse @ matrix[:own, own:], matrix[own:, :own] @ inverse
    rest = dense[:, own:, own:].copy()  # not a view, which would keep all of the front
    rest[0] -= matrix[own:, :own] @ right
    if not scatters:
        return _Eliminated(inverse, right, left, inverse[:0], right[:0]), rest
    scatter, mixed = scatters[0][:own, :own], scatters[0][:own, own:]
    cleared = mixed - scatter @ left.T
    across = left @ cleared
    rest[1] -= across + (left @ mixed).T
    return _Eliminated(inverse, right, left, inverse @ scatter @ inverse.T, inverse @ cleared), rest


def _own_blocks(fronts: list[Front], eliminated: list[_Eliminated], scattered: bool) -> Iterator[np.ndarray]:
    """Go down the tree: yield the own block of what is wanted, from the last front to the first."""
    below: list[list[int]] = [[] for _ in fronts]
    for number, front in enumerate(fronts):
        if front.parent >= 0:
            below[front.parent].append(number)
    outer: dict[int, np.ndarray] = {}
    for number in reversed(range(len(fronts))):
        front, done = fronts[number], eliminated.pop()
        known = _back(done, outer.pop(number, np.zeros((2, 0, 0))), scattered)
        own = front.stop - front.start
        for child in below[number]:
            place = front.place(fronts[child].boundary)
            outer[child] = known[:, place[:, None], place]
        yield known[-1, :own, :own]


def _back(done: _Eliminated, outer: np.ndarray, scattered: bool) -> np.ndarray:
    """Inverse, and covariance if there is a scatter, of a whole front from those of its boundary."""
    own = len(done.inverse)
    size = own + outer.shape[1]
    known = np.empty((2 if scattered else 1, size, size))
    known[:, own:, own:] = outer[: len(known)]
    inverse = known[0]
    inverse[:own, own:] = -done.right @ outer[0]
    inverse[own:, :own] = -outer[0] @ done.left
    inverse[:own, :own] = done.inverse - done.right @ inverse[own:, :own]
    if scattered:
        covariance, across = known[1], done.mixed @ outer[0].T
        covariance[:own, own:] = across - done.right @ outer[1]
        covariance[own:, :own] = covariance[:own, own:].T
        covariance[:own, :own] = done.own - covariance[:own, own:] @ done.right.T - done.right @ across.T
    return known
