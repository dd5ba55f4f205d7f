"""Nested dissection: the order in which the unknowns of a sparse system are eliminated in small dense fronts."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, maximum_bipartite_matching

__all__ = ["LEAF", "Front", "dissect"]

LEAF = 160
"""Unknowns that are eliminated together without a further look: a small system is a single front."""

_MANY = 5.0  # neighbours of a vertex that is eliminated last, over the root of the number of vertices
_LARGEST_SEPARATOR = 1 / 3
_FEWEST_CLUSTERS = 4  # fewer are cut themselves


class Front(NamedTuple):
    """
    Unknowns that are eliminated together.

    Parameters
    ----------
    start, stop : int
        Positions of its own unknowns in the order of elimination.
    boundary : ndarray of int
        Positions of later unknowns that these, or those below them in the tree, are coupled with; ascending.
    parent : int
        Number of the front above it in the tree; -1 for a root.
    """

    start: int
    stop: int
    boundary: np.ndarray
    parent: int

    def place(self, positions: np.ndarray) -> np.ndarray:
        """Rows, in the dense matrix of the front, of unknowns that are its own or on its boundary."""
        beyond = self.stop - self.start + np.searchsorted(self.boundary, positions)
        return np.where(positions < self.stop, positions - self.start, beyond)


class _Piece(NamedTuple):
    vertices: np.ndarray
    below: list[int]  # pieces just below it in the tree


def dissect(
    couplings: np.ndarray, label: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[np.ndarray, list[Front]]:
    """
    Order the unknowns of a system by nested dissection.

    Parameters
    ----------
    couplings : ndarray of int, shape (2, n_couplings)
        Pairs of unknowns that are coupled, in any order and any number of times.
    label : ndarray of int, shape (m,)
        Unknowns of the same label stay together. At least one.
    cluster : ndarray of int, shape (m,), optional
        Unknowns of the same cluster are on the same side of a cut, as long as there are several clusters: a good cut
        where a few unknowns of each cluster are coupled with all of those near it.

    Returns
    -------
    order : ndarray of int, shape (m,)
        Unknowns in the order of elimination.
    fronts : list of Front
        Each after all that are below it.

    Notes
    -----
    A set of vertices is cut in halves of a breadth-first search from a vertex at its edge (George 1973, *SIAM J.
    Numer. Anal.* 10, 345; George & Liu 1978, *SIAM J. Numer. Anal.* 15, 1053). The smallest set of vertices that
    touches all edges between the halves separates them (Liu 1989, *ACM Trans. Math. Softw.* 15, 198); it is
    eliminated after both. Vertices that are coupled with very many others are eliminated last.
    """
    if len(label) <= LEAF:
        return np.arange(len(label)), [Front(0, len(label), np.empty(0, dtype=int), -1)]
    names, member, vertex, sizes = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    one, two = vertex.astype(np.int32)[couplings]
    links = sparse.coo_array((np.ones(len(one), dtype=bool), (one, two)), shape=(len(names), len(names))).tocsr()
    graph = (links + links.T).astype(float)
    pieces: list[_Piece] = []
    _cut(graph, sizes, names if cluster is None else cluster[member], np.arange(len(names)), pieces)
    rank = np.empty(len(names), dtype=int)
    rank[np.concatenate([piece.vertices for piece in pieces])] = np.arange(len(names))
    order = np.argsort(rank[vertex], kind="stable")
    stops = np.cumsum([int(sizes[piece.vertices].sum()) for piece in pieces])
    return order, _fronts(graph, rank, sizes, pieces, stops)


def _fronts(
    graph: sparse.csr_array, rank: np.ndarray, sizes: np.ndarray, pieces: list[_Piece], stops: np.ndarray
) -> list[Front]:
    parent = np.full(len(pieces), -1)
    ranked_sizes = np.empty_like(sizes)
    ranked_sizes[rank] = sizes
    begins = np.cumsum(ranked_sizes) - ranked_sizes
    boundaries: list[np.ndarray] = []
    fronts = []
    for number, piece in enumerate(pieces):
        parent[piece.below] = number
        near = np.unique(np.concatenate([rank[graph[piece.vertices].indices], *(boundaries[b] for b in piece.below)]))
        boundaries.append(near[near > rank[piece.vertices[-1]]])
        unknowns = np.repeat(begins[boundaries[-1]], ranked_sizes[boundaries[-1]])
        unknowns += _count_up(ranked_sizes[boundaries[-1]])
        fronts.append(Front(int(stops[number - 1]) if number else 0, int(stops[number]), unknowns, -1))
    return [front._replace(parent=int(above)) for front, above in zip(fronts, parent, strict=True)]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of some counts."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _cut(
    graph: sparse.csr_array, sizes: np.ndarray, cluster: np.ndarray, vertices: np.ndarray, pieces: list[_Piece]
) -> list[int]:
    """Append the pieces of some vertices; return the numbers of those that are above all others."""
    halves: list[np.ndarray] = []
    separator, total = vertices, sizes[vertices].sum()
    if total > LEAF:
        inside = graph[vertices][:, vertices]
        *halves, separator = (vertices[part] for part in _halves(inside, sizes[vertices], cluster[vertices]))
        if sizes[separator].sum() > _LARGEST_SEPARATOR * total:
            halves, separator = [], vertices
    roots = [root for half in halves for root in _cut(graph, sizes, cluster, half, pieces)]
    if not len(separator):
        return roots
    pieces.append(_Piece(separator, roots))
    return [len(pieces) - 1]


def _halves(
    graph: sparse.csr_array, sizes: np.ndarray, cluster: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two parts of a graph of about the same size, and the vertices that separate them."""
    many = np.diff(graph.indptr) > _MANY * np.sqrt(len(sizes))
    few = np.flatnonzero(~many)
    if len(few) < 2:
        return few[:0], few[:0], np.arange(len(sizes))
    first = _first_part(graph[few][:, few] if many.any() else graph, sizes[few], cluster[few])
    one, two = few[first], few[~first]
    cover = _vertex_cover(graph[one][:, two])
    separator = np.concatenate([one[cover[: len(one)]], two[cover[len(one) :]], np.flatnonzero(many)])
    return one[~cover[: len(one)]], two[~cover[len(one) :]], separator


def _first_part(graph: sparse.csr_array, sizes: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Mask of the vertices of the first of two parts."""
    names, group = np.unique(cluster, return_inverse=True)
    if len(names) < _FEWEST_CLUSTERS:
        names, group = cluster, np.arange(len(cluster))
    elif len(names) < len(cluster):
        place = np.arange(len(cluster)), group
        members = sparse.coo_array((np.ones(len(cluster)), place), shape=(len(cluster), len(names))).tocsr()
        graph = members.T @ graph @ members
    order, middle = _in_two(graph, np.bincount(group, sizes))
    first = np.zeros(len(names), dtype=bool)
    first[order[:middle]] = True
    return first[group]


def _in_two(graph: sparse.csr_array, sizes: np.ndarray) -> tuple[np.ndarray, int]:
    """Order of vertices, and how many of them are to be in the first part."""
    number, label = connected_components(graph, directed=False)
    if number > 1:
        order, done = np.argsort(label, kind="stable"), np.cumsum(np.bincount(label, sizes))
        ends = np.cumsum(np.bincount(label))
    else:
        order = _breadth_first(graph, 0)
        for _ in range(2):
            order = _breadth_first(graph, order[-1])
        done, ends = np.cumsum(sizes[order]), np.arange(1, len(order) + 1)
    return order, int(ends[np.argmin(np.abs(done[:-1] - done[-1] / 2))])


def _breadth_first(graph: sparse.csr_array, start: int) -> np.ndarray:
    return breadth_first_order(graph, start, return_predecessors=False)


def _vertex_cover(edges: sparse.csr_array) -> np.ndarray:
    """
    Find the smallest set of vertices that touches all edges between the rows and the columns: mask of both.

    By the theorem of Kőnig (1931): from a largest matching, and what alternating paths reach from the rows that it
    leaves out.
    """
    n_rows, n_columns = edges.shape
    match = maximum_bipartite_matching(edges, perm_type="column")
    matched, alone = np.flatnonzero(match >= 0), np.flatnonzero(match < 0)
    source = n_rows + n_columns
    rows, columns = edges.tocoo().coords
    tails = np.concatenate([rows, n_rows + match[matched], np.full(len(alone), source)])
    heads = np.concatenate([n_rows + columns, matched, alone])
    paths = sparse.coo_array((np.ones(len(tails)), (tails, heads)), shape=(source + 1, source + 1)).tocsr()
    cover = np.zeros(source + 1, dtype=bool)
    cover[:n_rows] = True
    reached = _breadth_first(paths, source)
    cover[reached] = ~cover[reached]
    return cover[:source]
