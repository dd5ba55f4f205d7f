"""Pairs that are not used: too small an overlap, too large a scatter; never so that a mosaic falls apart."""

import logging

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree

from bkgmatch.options import LevelMatchOptions
from bkgmatch.pair_fits import PairFits

__all__ = ["rejected_pairs"]

log = logging.getLogger("stpipe.bkgmatch")


def rejected_pairs(fits: PairFits, extents: np.ndarray, options: LevelMatchOptions) -> np.ndarray:
    """
    Find pairs that are not used.

    Parameters
    ----------
    fits : PairFits
        Fits of the pairs.
    extents : ndarray, shape (n, 2)
        Extent of the good cells of each exposure along x and y.
    options : LevelMatchOptions
        Limits.

    Returns
    -------
    ndarray of bool, shape (n_pairs,)
        Pairs beyond a limit, but for those without which a connected set of exposures would fall apart.

    Notes
    -----
    The three limits are those of PJPipe's ``LevelMatchStep``: a pair is rejected if its number of pixels is less than
    ``min_area_percent`` times the mean; or if its extent is at most ``min_linear_frac`` of those of both exposures
    along both axes; or if, among the pairs that are left, its rms is more than ``rms_sig_limit`` standard deviations
    above the mean.
    """
    if not len(fits.first):
        return np.zeros(0, dtype=bool)
    small = fits.npix < options.min_area_percent * fits.npix.mean()
    own = np.stack([extents[fits.first], extents[fits.second]])
    short = (fits.extent <= options.min_linear_frac * own).all(axis=(0, 2))
    rejected = small | short
    left = fits.rms[~rejected]
    if options.rms_sig_limit and left.size:
        rejected |= fits.rms > left.mean() + options.rms_sig_limit * left.std()
    bridges = _bridges(len(extents), fits, rejected)
    if bridges.any():
        log.warning("%d small or noisy overlaps are used, for they alone hold exposures together", bridges.sum())
    return rejected & ~bridges


def _bridges(n: int, fits: PairFits, rejected: np.ndarray) -> np.ndarray:
    """Rejected pairs, the largest, that connect what would otherwise fall apart."""
    # A spanning tree of least cost: pairs that are used cost nothing, the others the less the larger they are.
    cost = np.where(rejected, 1 + 1 / fits.npix, 1e-9)
    ends = (fits.first.astype(np.int32), fits.second.astype(np.int32))  # the older scipy takes no others
    graph = sparse.coo_array((cost, ends), shape=(n, n)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    chosen = {(int(i), int(j)) for i, j, c in zip(*tree.coords, tree.data, strict=True) if c >= 1}
    pairs = zip(fits.first.tolist(), fits.second.tolist(), strict=True)
    return np.array([(i, j) in chosen or (j, i) in chosen for i, j in pairs])
