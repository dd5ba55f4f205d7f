"""Which pixels of an exposure lie on its neighbours.

The outlines of all neighbours cut an exposure into *atoms*: sets of pixels that lie on the same neighbours. Every
overlap is a union of atoms, so each pixel is looked at once however many overlaps it belongs to, and the number of
pixels that two overlaps share is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from bkgmatch.footprints import Footprint, outlines_in_plane, sky_vectors
from bkgmatch.runs import Runs

__all__ = ["OverlapMap", "overlap_map"]


@dataclass(frozen=True)
class OverlapMap:
    """
    Atoms of one exposure.

    Parameters
    ----------
    runs : Runs
        Atom of each pixel.
    members : ndarray of bool, shape (n_atoms, n_neighbours)
        Which neighbours each atom lies on.
    """

    runs: Runs
    members: np.ndarray

    def mask(self, neighbour: int, shape: tuple[int, int]) -> np.ndarray:
        """Pixels that lie on one neighbour, shape (ny, nx)."""
        return self.members[self.runs.image(), neighbour].reshape(shape)


def overlap_map(here: Footprint, neighbours: Sequence[Footprint]) -> OverlapMap:
    """
    Cut an exposure into atoms by the outlines of its neighbours.

    Parameters
    ----------
    here : Footprint
        The exposure.
    neighbours : sequence of Footprint
        Its neighbours.

    Returns
    -------
    OverlapMap
        Runs that cover the whole image; a pixel belongs to a neighbour if its centre lies inside the outline.
    """
    size = here.shape[0] * here.shape[1]
    if not neighbours:
        starts, stops, who = (np.empty(0, dtype=int) for _ in range(3))
    elif here.exposure is not None:
        starts, stops, who = _lookup_intervals(here, neighbours)
    else:
        starts, stops, who = _outline_intervals(here, neighbours)
    return _atoms(starts, stops, who, len(neighbours), size)


def _outline_intervals(here: Footprint, neighbours: Sequence[Footprint]) -> tuple[np.ndarray, ...]:
    common = shapely.intersection(outlines_in_plane(neighbours, here), here.frame)
    polygons, who = shapely.get_parts(common, return_index=True)
    is_area = shapely.get_dimensions(polygons) == 2
    rings, owner = shapely.get_rings(polygons[is_area], return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    return _fill(here.to_pixels(points), ring, who[is_area][owner], here.shape)


def _fill(points: np.ndarray, ring: np.ndarray, owner: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Scan-line fill, even-odd rule, of all rings at once: flat intervals and the owner of each."""
    ny, nx = shape
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    (x0, y0), (x1, y1) = points[edge].T, points[edge + 1].T
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, ny).astype(int)
    last = np.clip(np.ceil(np.maximum(y0, y1)), 0, ny).astype(int)
    counts = last - first
    which = np.repeat(np.arange(len(edge)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[which]
    x = x0[which] + (row - y0[which]) * ((x1 - x0)[which] / (y1 - y0)[which])
    # One sortable number per crossing: owner, row, then column (kept within 0..nx, a pixel in from its cell).
    cell = nx + 3
    key = (owner[ring[edge[which]]] * ny + row) * cell + np.clip(x, 0, nx) + 1
    key.sort()
    line, enter = np.divmod(key[0::2], cell)
    leave = key[1::2] - line * cell
    who, row = np.divmod(line.astype(int), ny)
    start, stop = (row * nx + np.ceil(edge_x - 1).astype(int) for edge_x in (enter, leave))
    some = stop > start
    return start[some], stop[some], who[some]


def _lookup_intervals(here: Footprint, neighbours: Sequence[Footprint]) -> tuple[np.ndarray, ...]:
    """Compare pixel by pixel: a pixel lies on a neighbour if the nearest pixel there is good."""
    assert here.exposure is not None
    y, x = np.indices(here.shape).reshape(2, -1)
    vectors = sky_vectors(here.exposure.wcs, np.column_stack([x, y]))
    intervals = [_runs(_is_good(neighbour, vectors)) for neighbour in neighbours]
    who = np.repeat(np.arange(len(intervals)), [len(start) for start, _ in intervals])
    starts, stops = (np.concatenate(part) for part in zip(*intervals, strict=True))
    return starts, stops, who


def _is_good(neighbour: Footprint, vectors: np.ndarray) -> np.ndarray:
    assert neighbour.exposure is not None
    good = neighbour.exposure.read().good
    ny, nx = neighbour.shape
    x, y = np.rint(neighbour.to_pixels(neighbour.project(vectors))).T.clip(-1, max(ny, nx)).astype(int)
    on_detector = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    found = np.zeros(len(vectors), dtype=bool)
    found[on_detector] = good[y[on_detector], x[on_detector]]
    return found


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    changes = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return changes[0::2], changes[1::2]


def _atoms(starts: np.ndarray, stops: np.ndarray, who: np.ndarray, n_neighbours: int, size: int) -> OverlapMap:
    """Cut 0..size at all interval ends and label the runs by the set of intervals they lie in."""
    words = max(1, -(-n_neighbours // 64))
    positions = np.concatenate([[0], starts, stops])
    bits = np.zeros((len(positions), words), dtype=np.uint64)
    events = np.arange(1, len(positions))
    owner = np.concatenate([who, who])
    bits[events, owner // 64] = np.uint64(1) << (owner % 64).astype(np.uint64)
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    inside = np.bitwise_xor.accumulate(bits[order], axis=0)
    last = np.append(np.flatnonzero(positions[1:] != positions[:-1]), len(positions) - 1)
    last = last[positions[last] < size]
    run_stops = np.append(positions[last[1:]], size)
    signatures, labels = _unique_rows(inside[last])
    shifts = np.arange(n_neighbours)
    members = (signatures[:, shifts // 64] >> (shifts % 64).astype(np.uint64)) & np.uint64(1)
    return OverlapMap(Runs(run_stops, labels), members.astype(bool))


def _unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if rows.shape[1] == 1:
        values, inverse = np.unique(rows[:, 0], return_inverse=True)
        return values[:, None], inverse
    values, inverse = np.unique(rows, axis=0, return_inverse=True)
    return values, inverse.reshape(-1)
