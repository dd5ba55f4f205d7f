"""Match polynomial backgrounds of spectral exposures voxel by voxel: the stages in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from bkgmatch.display import Displayed, Rows, new_axes
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import SpectralExposure, check_names
from bkgmatch.footprints import unit_vectors
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.polynomials import evaluate
from bkgmatch.solve import connected, renumbered
from bkgmatch.spectral_fit import PairResiduals, SpectralFit, fit_spectra
from bkgmatch.spectral_samples import VoxelWorld, wrapped
from bkgmatch.voxels import VoxelGrid, Voxels, fill, voxel_grid

__all__ = ["COORDINATES", "MATCHED", "Polynomial", "SpectralMatch", "match_spectra", "match_voxels"]

MATCHED = "matched"
NO_OVERLAP, NO_PIXELS, CLIPPED = "no overlap", "no good pixels", "all voxels clipped"
COORDINATES = ("RA", "Dec", "wavelength")
_NEAR = np.deg2rad(0.5)


@dataclass(frozen=True)
class Polynomial:
    """
    A polynomial of right ascension, declination and wavelength.

    Parameters
    ----------
    degree : tuple of int
        Degree in each coordinate.
    refpoint : tuple of float
        Right ascension and declination in degrees, wavelength in micrometres.
    coefficients : ndarray, shape (p,)
        Coefficients of ``(ra - ra_0)^i (dec - dec_0)^j (wavelength - wavelength_0)^k`` in C order: k is fastest.
    """

    degree: tuple[int, ...]
    refpoint: tuple[float, ...]
    coefficients: np.ndarray

    def __call__(self, ra: np.ndarray, dec: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """Values at positions in degrees and wavelengths in micrometres; differences of RA are within 180 degrees."""
        world = np.array(np.broadcast_arrays(ra, dec, wavelength), dtype=float)
        offsets = wrapped(world.reshape(3, -1), self.refpoint[0]) - np.array([[0.0], *np.vstack(self.refpoint[1:])])
        values = evaluate(np.reshape(self.coefficients, [d + 1 for d in self.degree]), offsets)
        return values.reshape(world.shape[1:])


@dataclass(frozen=True, repr=False)
class SpectralMatch(Displayed):
    """
    Polynomial backgrounds of spectral exposures.

    Parameters
    ----------
    names : tuple of str
        Names of the exposures, in the order of the input.
    degree : tuple of int
        Degree in right ascension, declination and wavelength.
    component : ndarray of int, shape (n,)
        Connected set of exposures that each belongs to; an exposure that overlaps no other is its own. -1 without good
        pixels.
    refpoint : ndarray, shape (n, 3)
        Reference point: the same for all exposures of a component.
    coefficients : ndarray, shape (n, p)
        See `Polynomial`. Their sum over each component is zero; NaN without good pixels.
    errors : ndarray, shape (n, p)
        Their standard errors, relative to the mean of the component.
    level, sigma : ndarray, shape (n,)
        Mean of each polynomial over the voxels that constrain it, and its standard error.
    npix : ndarray of int, shape (n,)
        Number of these voxels.
    status : tuple of str
        ``matched``, ``no overlap``, ``no good pixels`` or ``all voxels clipped``.
    loose : tuple of tuple of str
        Terms of each exposure that the overlaps do not determine: a weak prior holds them.
    bounded : ndarray of bool, shape (n,)
        Exposures whose polynomial was flattened: none goes farther from its mean than 10 times the farthest that one of
        its component goes within the voxels that constrain it.
    pairs : PairResiduals
        Measured pairs.
    """

    names: tuple[str, ...]
    degree: tuple[int, ...]
    component: np.ndarray
    refpoint: np.ndarray
    coefficients: np.ndarray
    errors: np.ndarray
    level: np.ndarray
    sigma: np.ndarray
    npix: np.ndarray
    status: tuple[str, ...]
    loose: tuple[tuple[str, ...], ...]
    bounded: np.ndarray
    pairs: PairResiduals

    def plot(self, ax: Any = None, *, wavelength: np.ndarray | None = None) -> Any:
        """
        Draw the levels against the exposures, or the polynomials at their reference points against wavelength.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.
        wavelength : ndarray, optional
            Wavelengths in micrometres.

        Returns
        -------
        matplotlib.axes.Axes
            Where it was drawn.
        """
        if wavelength is None:
            return super().plot(ax)
        ax = new_axes() if ax is None else ax
        for i in np.flatnonzero(self.component >= 0).tolist():
            ra, dec, _ = self.refpoint[i]
            ax.plot(wavelength, self.polynomial(i)(ra, dec, wavelength), label=self.names[i])
        ax.set(xlabel="wavelength (micrometres)", ylabel="background")
        ax.legend(fontsize="x-small")
        return ax

    def polynomial(self, i: int) -> Polynomial:
        """Background of one exposure."""
        return Polynomial(self.degree, tuple(self.refpoint[i].tolist()), self.coefficients[i])

    def _rows(self) -> Rows:
        return Rows(self.names, self.level, self.sigma, self.status)

    def __str__(self) -> str:
        rows = zip(self.names, self.component, self.level, self.sigma, self.status, strict=True)
        return "\n".join(f"{name}  {c:3d}  {level:12.6g} +- {sigma:9.3g}  {s}" for name, c, level, sigma, s in rows)


def match_spectra(
    exposures: Sequence[SpectralExposure], options: MRSIMatchOptions | None = None, *, work: Work = HERE
) -> SpectralMatch:
    """
    Match the backgrounds of spectral exposures of one range of wavelengths.

    Parameters
    ----------
    exposures : sequence of SpectralExposure
        Exposures with unique names.
    options : MRSIMatchOptions, optional
        Options; the defaults are those of the step.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    SpectralMatch
        The backgrounds. Nothing is subtracted.

    Raises
    ------
    ValueError
        If there are no exposures, or names repeat.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.exposures import SpectralExposure
    >>> from bkgmatch.spectra import match_spectra
    >>> rng = np.random.default_rng(1)
    >>> x, y, wavelength = (axis.ravel() for axis in np.mgrid[0:20, 0:20, 0:64])
    >>> exposures = [
    ...     SpectralExposure.from_arrays(
    ...         name,
    ...         rng.normal(level, 0.01, x.size),
    ...         (x + shift) * 1e-4,
    ...         y * 1e-4,
    ...         5 + wavelength / 64,
    ...         slice_width=0.36,
    ...     )
    ...     for name, level, shift in [("a", 5.0, 0), ("b", 7.0, 5)]
    ... ]
    >>> print(match_spectra(exposures).level.round(1))
    [-1.  1.]
    """
    options = options or MRSIMatchOptions()
    if not exposures:
        raise ValueError("there are no exposures to match")
    check_names(exposures)
    order = np.argsort([e.name for e in exposures])
    found = []
    for members in _neighbourhoods([exposures[i] for i in order]):
        some = [exposures[order[i]] for i in members]
        grid = _common_grid(some, options)
        voxels = work.run(partial(_filled, grid=grid), some, what="Filling voxels", name=attrgetter("name"))
        found.append((order[members], match_voxels([e.name for e in some], voxels, grid, options, work=work)))
    return _joined([e.name for e in exposures], found)


def _filled(exposure: SpectralExposure, grid: VoxelGrid) -> Voxels:
    return fill(exposure.read(), grid)


def match_voxels(
    names: Sequence[str],
    voxels: Sequence[Voxels],
    grid: VoxelWorld,
    options: MRSIMatchOptions,
    *,
    work: Work = HERE,
) -> SpectralMatch:
    """
    Match the backgrounds of exposures whose voxels are known.

    Parameters
    ----------
    names : sequence of str
        Names.
    voxels : sequence of Voxels
        Exposures on one grid.
    grid : VoxelWorld
        The grid: a `VoxelGrid`, or another object that has its ``world``.
    options : MRSIMatchOptions
        Options.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    SpectralMatch
        The backgrounds.
    """
    has_pixels = np.array([len(v.number) > 0 for v in voxels])
    status = np.where(has_pixels, NO_OVERLAP, NO_PIXELS).astype(object)
    if not has_pixels.any():
        return _nothing(names, options, status)
    with threadpool_limits(1, "blas"):  # small matrices in many threads are slower, not faster
        fit = fit_spectra(voxels, grid, options, work=work)
    status[fit.overlaps] = CLIPPED
    status[fit.component >= 0] = MATCHED
    return _documented(names, status, fit)


def _documented(names: Sequence[str], status: np.ndarray, fit: SpectralFit) -> SpectralMatch:
    """Express a fit in powers about a reference point; lone exposures have the polynomial zero."""
    to_powers = fit.basis.to_powers(fit.basis.centre)
    matched = status == MATCHED
    alone = ~matched & (status != NO_PIXELS)
    coefficients = np.where(alone[:, None], 0.0, fit.coefficients @ to_powers.T)
    errors = np.where(alone[:, None], 0.0, np.sqrt(np.einsum("pa,nab,pb->np", to_powers, fit.covariance, to_powers)))
    component = fit.component.copy()
    component[alone] = component.max() + 1 + np.arange(alone.sum())
    refpoint = np.array([(fit.ra + fit.basis.centre[0]) % 360, *fit.basis.centre[1:]])
    terms = np.array(fit.basis.names(COORDINATES))
    level = np.einsum("np,np->n", fit.mean_terms, fit.coefficients)
    variance = np.einsum("na,nab,nb->n", fit.mean_terms, fit.covariance, fit.mean_terms)
    return SpectralMatch(
        names=tuple(names),
        degree=fit.basis.degree,
        component=renumbered(component),
        refpoint=np.tile(refpoint, (len(names), 1)),
        coefficients=coefficients,
        errors=errors,
        level=np.where(matched, level, np.where(alone, 0.0, np.nan)),
        sigma=np.where(matched, np.sqrt(variance), np.where(alone, 0.0, np.nan)),
        npix=fit.npix,
        status=tuple(status.tolist()),
        loose=tuple(tuple(terms[held].tolist()) for held in fit.loose),
        bounded=fit.bounded,
        pairs=fit.pairs,
    )


def _nothing(names: Sequence[str], options: MRSIMatchOptions, status: np.ndarray) -> SpectralMatch:
    """Match of exposures without pixels."""
    n, degree = len(names), options.degree
    unknown = np.full((n, int(np.prod([d + 1 for d in degree]))), np.nan)
    none = np.full(n, np.nan)
    return SpectralMatch(
        names=tuple(names),
        degree=degree,
        component=np.full(n, -1),
        refpoint=np.full((n, 3), np.nan),
        coefficients=unknown,
        errors=unknown,
        level=none,
        sigma=none,
        npix=np.zeros(n, dtype=int),
        status=tuple(status.tolist()),
        loose=((),) * n,
        bounded=np.zeros(n, dtype=bool),
        pairs=PairResiduals.none(),
    )


def _neighbourhoods(exposures: Sequence[SpectralExposure]) -> list[np.ndarray]:
    """Return sets of exposures that are near each other; those without a known position are one more set."""
    centres = np.array([e.centre for e in exposures], dtype=float)
    known = np.flatnonzero(np.isfinite([(*e.centre, *e.wavelengths) for e in exposures]).all(axis=1))
    sets = []
    if len(known):
        tree = cKDTree(unit_vectors(*centres[known].T))
        first, second = tree.query_pairs(_NEAR, output_type="ndarray").T
        label = connected(len(known), first, second)
        sets = [known[label == k] for k in range(label.max() + 1)]
    lost = np.setdiff1d(np.arange(len(exposures)), known)
    return [*sets, lost] if len(lost) else sets


def _common_grid(exposures: Sequence[SpectralExposure], options: MRSIMatchOptions) -> VoxelGrid:
    centres = np.array([e.centre for e in exposures], dtype=float)
    low, high = np.array([e.wavelengths for e in exposures], dtype=float).T
    if not (np.isfinite(centres).all() and np.isfinite(low).all() and np.isfinite(high).all()):
        return voxel_grid([np.array([1.0, 0, 0])], 1.0, 0.0, 1.0)
    step = (high.max() - low.min()) / options.wavelength_cells or 1.0
    width = float(np.median([e.slice_width for e in exposures]))
    return voxel_grid(list(unit_vectors(*centres.T)), options.cell_size * width, low.min(), step)


def _joined(names: Sequence[str], found: Sequence[tuple[np.ndarray, SpectralMatch]]) -> SpectralMatch:
    """Put the sets of exposures together, in the order of the input."""
    place = np.argsort(np.concatenate([members for members, _ in found]))
    matches = [match for _, match in found]
    component, shift = [], 0
    for match in matches:
        component.append(np.where(match.component < 0, -1, match.component + shift))
        shift += int(match.component.max()) + 1
    pairs = [_pairs(match.pairs, members) for members, match in found]
    loose = [some for match in matches for some in match.loose]
    arrays = {
        name: np.concatenate([getattr(match, name) for match in matches])[place]
        for name in ("refpoint", "coefficients", "errors", "level", "sigma", "npix", "bounded")
    }
    return SpectralMatch(
        names=tuple(names),
        degree=matches[0].degree,
        component=renumbered(np.concatenate(component)[place]),
        status=tuple(np.concatenate([match.status for match in matches])[place].tolist()),
        loose=tuple(loose[i] for i in place),
        pairs=PairResiduals(*(np.concatenate(part) for part in zip(*pairs, strict=True))),
        **arrays,
    )


def _pairs(pairs: PairResiduals, members: np.ndarray) -> PairResiduals:
    """Pairs by the numbers of their exposures in the input, the lesser first."""
    first, second = members[pairs.first], members[pairs.second]
    sign = np.where(first < second, 1.0, -1.0)
    return pairs._replace(
        first=np.minimum(first, second),
        second=np.maximum(first, second),
        offset=sign * pairs.offset,
        residual=sign * pairs.residual,
    )
