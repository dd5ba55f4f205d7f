"""The voxels of all exposures, one exposure after the other, and their sums over pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from bkgmatch.execution import Work
from bkgmatch.polynomial_sums import PolynomialSums, Weights, join, sum_pairs
from bkgmatch.polynomials import Basis
from bkgmatch.solve import connected
from bkgmatch.voxels import Voxels, columns, middles, neighbours, patch_numbers

__all__ = ["Samples", "VoxelWorld", "wrapped"]

_LEAST_NOISE = 1e-12  # of the mean square of the values: exposures without noise differ by rounding
_MOST_NOISE = 1e9  # times the median: what is noisier tells nothing


class VoxelWorld(Protocol):
    """A grid that knows where its voxels are."""

    def world(self, points: np.ndarray) -> np.ndarray:
        """Right ascension, declination and wavelength, shape (3, n), of grid coordinates, shape (3, n)."""


def wrapped(world: np.ndarray, ra: float) -> np.ndarray:
    """Coordinates, shape (3, n), with right ascensions relative to one, within 180 degrees."""
    return np.concatenate([(world[:1] - ra + 180) % 360 - 180, world[1:]])


class Patch(NamedTuple):
    """
    Voxels of a piece of sky that several exposures see.

    Parameters
    ----------
    members : ndarray of int, shape (m,)
        Exposures.
    entry : ndarray of int, shape (k,)
        Which samples these are.
    row, column : ndarray of int, shape (k,)
        Indices of their exposures in ``members``, and of their voxels in the patch.
    scaled : ndarray, shape (3, v)
        Middle of the voxels, in units of the basis.
    """

    members: np.ndarray
    entry: np.ndarray
    row: np.ndarray
    column: np.ndarray
    scaled: np.ndarray

    def dense(self, values: np.ndarray) -> np.ndarray:
        """Values of samples as an array of shape (members, voxels), 0 where there is none."""
        result = np.zeros((len(self.members), self.scaled.shape[1]))
        result[self.row, self.column] = values[self.entry]
        return result


@dataclass(frozen=True)
class Samples:
    """
    The voxels of all exposures.

    Parameters
    ----------
    ra : float
        Right ascension that the basis is relative to, in degrees.
    basis : Basis
        Functions.
    starts : ndarray of int, shape (n + 1,)
        Where the samples of each exposure start.
    voxel : ndarray of int, shape (n_samples,)
        Index of the voxel of each sample.
    value, variance : ndarray, shape (n_samples,)
        Mean of the pixels, and its variance by their noise.
    npix : ndarray of int, shape (n_samples,)
        Number of pixels.
    offset : ndarray, shape (3, n_samples)
        Where the pixels are on average: from the middle of the voxel, in units of its sides.
    scaled : ndarray, shape (3, n_samples)
        The same in units of the basis.
    middle : ndarray, shape (3, n_voxels)
        Middle of the voxels, in units of the basis.
    number : ndarray of int, shape (n_voxels,)
        Numbers of the voxels.
    """

    ra: float
    basis: Basis
    starts: np.ndarray
    voxel: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    npix: np.ndarray
    offset: np.ndarray
    scaled: np.ndarray
    middle: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, voxels: Sequence[Voxels], grid: VoxelWorld, degree: tuple[int, ...]) -> "Samples":
        """Put the voxels of exposures together, and make the basis on the box that holds them."""
        number, voxel = np.unique(np.concatenate([v.number for v in voxels]), return_inverse=True)
        value, variance, npix = (
            np.concatenate([getattr(v, name) for v in voxels]) for name in ("value", "variance", "npix")
        )
        least = _least_noise(value)
        offset = np.concatenate([v.offset for v in voxels], axis=1)
        points = middles(number)
        world = grid.world(points)
        ra = float(world[0, 0])
        world = wrapped(world, ra)
        basis = Basis.around(world, degree)
        return cls(
            ra,
            basis,
            np.cumsum([0, *(len(v.number) for v in voxels)]),
            voxel,
            value,
            np.clip(variance, least, _MOST_NOISE * max(np.median(variance), least)),
            npix,
            offset,
            basis.scaled(wrapped(grid.world(points[:, voxel] + offset), ra)),
            basis.scaled(world),
            number,
        )

    @property
    def n(self) -> int:
        """Number of exposures."""
        return len(self.starts) - 1

    @property
    def parts(self) -> list[slice]:
        """Samples of each exposure."""
        return [slice(start, stop) for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True)]

    @cached_property
    def least_noise(self) -> float:
        """Variance of rounding, about: exposures without noise differ by it."""
        return _least_noise(self.value)

    @cached_property
    def spread(self) -> float:
        """Typical deviation of the samples of a voxel from their mean, 0 if no voxel has several."""
        sky, _ = self.sky(self.value, 1 / self.variance)
        apart = np.abs(self.value - sky[self.voxel])[self.shared]
        return float(np.median(apart)) if len(apart) else 0.0

    @cached_property
    def exposure(self) -> np.ndarray:
        """Exposure of each sample."""
        return np.repeat(np.arange(self.n), np.diff(self.starts))

    @cached_property
    def place(self) -> np.ndarray:
        """Index of the place on the sky of each sample."""
        return np.unique(columns(self.number), return_inverse=True)[1][self.voxel]

    @cached_property
    def column(self) -> np.ndarray:
        """Place and exposure of each sample, as one number: ``place * n + exposure``."""
        return self.place * self.n + self.exposure

    @cached_property
    def shared(self) -> np.ndarray:
        """Whether several exposures see the voxel of each sample."""
        return (np.bincount(self.voxel) > 1)[self.voxel]

    @cached_property
    def sets(self) -> np.ndarray:
        """Connected set of exposures that sees each voxel; what levels those of another have is not known."""
        entries = np.flatnonzero(self.shared)
        entries = entries[np.argsort(self.voxel[entries], kind="stable")]
        exposure, same = self.exposure[entries], np.diff(self.voxel[entries]) == 0
        result = np.zeros(len(self.number), dtype=int)
        result[self.voxel] = connected(self.n, exposure[:-1][same], exposure[1:][same])[self.exposure]
        return result

    @cached_property
    def around(self) -> np.ndarray:
        """Indices of the neighbours of each voxel in its set."""
        found = neighbours(self.number)
        return np.where(self.sets[found] == self.sets, found, -1)

    @cached_property
    def patches(self) -> list[Patch]:
        """Pieces of sky that several exposures see."""
        entries = np.flatnonzero(self.shared)
        patch = patch_numbers(self.number)[self.voxel[entries]]
        entries = entries[np.argsort(patch, kind="stable")]
        patch = np.sort(patch)
        return [self._patch(some) for some in np.split(entries, np.flatnonzero(np.diff(patch)) + 1) if len(some)]

    def _patch(self, entries: np.ndarray) -> Patch:
        members, row = np.unique(self.exposure[entries], return_inverse=True)
        voxels, column = np.unique(self.voxel[entries], return_inverse=True)
        return Patch(members, entries, row, column, self.middle[:, voxels])

    def polynomial(self, coefficients: np.ndarray, scaled: np.ndarray) -> np.ndarray:
        """Polynomial of the exposure of each sample, at points of shape (3, samples)."""
        pairs = zip(coefficients, self.parts, strict=True)
        return np.concatenate([self.basis.evaluate(c, scaled[:, part]) for c, part in pairs])

    def sum(
        self, values: np.ndarray, precision: np.ndarray, degree: tuple[int, ...], weights: Weights, work: Work
    ) -> PolynomialSums:
        """Sum over the common voxels of all pairs."""

        def of_patch(patch: Patch) -> PolynomialSums:
            sums = sum_pairs(patch.dense(values), patch.dense(precision), patch.scaled, degree, weights)
            return sums._replace(first=patch.members[sums.first], second=patch.members[sums.second])

        none = sum_pairs(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((len(degree), 0)), degree, weights)
        return join([none, *work.run_here(of_patch, self.patches)])

    def sky(self, left: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted mean in each voxel, and its variance; NaN where there is none."""
        total = np.bincount(self.voxel, weight, len(self.number))
        mean = np.bincount(self.voxel, weight * left, len(self.number))
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean / total, np.where(total > 0, 1 / total, np.nan)


def _least_noise(value: np.ndarray) -> float:
    return float(_LEAST_NOISE * np.mean(value**2)) or _LEAST_NOISE
