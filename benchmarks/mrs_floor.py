"""The exact Fisher floor of polynomial backgrounds of MRS exposures, with the sky free in every cell.

    python benchmarks/mrs_floor.py

tests it against dense least squares with random noise. The pixels of all exposures are assigned to cells of 0.2 x 0.2
arcsec and 16 rows of the detector; the sky is free in each cell, a polynomial has its value at the cell's middle, and
bad pixels are known. What is left when the sky is eliminated is the information on the differences of the polynomials.
A program can be better only where it takes the sky of neighbouring cells to be alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stdatamodels.jwst import datamodels

CELL = 0.2, 0.2, 16  # arcsec, arcsec, rows
PLACE = 0.25, 0.25, 80  # where errors are evaluated
COLUMNS = {"1": slice(516), "4": slice(516), "2": slice(516, None), "3": slice(516, None)}


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of a grid on the sky, and which exposures see them.

    ``ra``, ``dec``, ``wavelength`` are those of the middles (deg, micron); ``scaled``, of shape (3, cells), are their
    offsets from a common point in units of the field; ``weight``, of shape (exposures, cells), is the sum of 1/sigma^2
    of the pixels of each exposure.
    """

    ra: np.ndarray
    dec: np.ndarray
    wavelength: np.ndarray
    scaled: np.ndarray
    weight: np.ndarray

    def terms(self, degree: int) -> np.ndarray:
        """Terms of a polynomial, of shape (cells, terms)."""
        return np.polynomial.polynomial.polyvander3d(*self.scaled, (degree,) * 3)

    def chosen(self, cells: np.ndarray) -> "Cells":
        """Some of the cells."""
        return Cells(*(getattr(self, name)[..., cells] for name in vars(self)))


def pixels(path: Path, channel: str) -> np.ndarray:
    """Right ascension, declination, wavelength and weight of the good pixels of a channel, of shape (4, pixels)."""
    with datamodels.open(path) as model:
        y, x = (index[:, COLUMNS[channel]] for index in np.indices(model.data.shape, dtype=float))
        good = np.isfinite(model.data[:, COLUMNS[channel]])
        return np.array([*model.meta.wcs(x[good], y[good]), model.err[:, COLUMNS[channel]][good] ** -2.0])


def cells(exposures: Sequence[np.ndarray], size: tuple[float, float, float]) -> Cells:
    """Put the pixels of exposures into cells of a size in arcsec, arcsec and rows."""
    everything = np.concatenate(exposures, axis=1)
    origin = exposures[0][:3, exposures[0].shape[1] // 2, None]
    row = np.ptp(everything[2]) / 1024
    unit = np.array([[size[0] / 3600 / np.cos(np.radians(origin[1, 0]))], [size[1] / 3600], [size[2] * row]])
    offset = everything[:3] - origin
    offset[0] = np.mod(offset[0] + 180, 360) - 180
    index, which = np.unique(np.floor(offset / unit).astype(int), axis=1, return_inverse=True)
    number = np.repeat(np.arange(len(exposures)), [e.shape[1] for e in exposures])
    shape = len(exposures), index.shape[1]
    weight = np.bincount(number * shape[1] + which.ravel(), everything[3], np.prod(shape)).reshape(shape)
    middle = (index + 0.5) * unit
    return Cells(*(middle + origin), middle / np.abs(offset).max(axis=1, keepdims=True), weight)


def common(places: Cells) -> Cells:
    """The cells that all exposures see; where these are under 5 %, those that two see."""
    seen = (places.weight > 0).sum(axis=0)
    by_all = seen == len(places.weight)
    return places.chosen(by_all if by_all.mean() >= 0.05 else seen >= 2)


def relative_rms(error: np.ndarray, places: Cells) -> float:
    """Rms of errors, of shape (exposures, cells), minus their mean over the exposures that see a cell."""
    seen = places.weight > 0
    relative = error - np.sum(error * seen, axis=0) / seen.sum(axis=0)
    return float(np.sqrt(np.mean(np.square(relative[seen]))))


def covariance(sky: Cells, degree: int) -> np.ndarray:
    """Smallest covariance of polynomials' coefficients, of shape (exposures, terms, exposures, terms).

    What is common to all exposures is unknown, and zero here.
    """
    terms, weight = sky.terms(degree), sky.weight
    n, k = len(weight), terms.shape[1]
    information = np.empty((n, k, n, k))
    for i, j in np.ndindex(n, n):
        shared = (i == j) * weight[i] - weight[i] * weight[j] / weight.sum(axis=0)
        information[i, :, j] = (terms.T * shared) @ terms
    return np.linalg.pinv(information.reshape(n * k, n * k), rcond=1e-9, hermitian=True).reshape(n, k, n, k)


def floor(sky: Cells, places: Cells, degree: int) -> float:
    """The smallest possible expected `relative_rms` at some places of polynomials fitted to cells of the sky."""
    terms, seen = places.terms(degree), (places.weight > 0).T.astype(float)
    error = np.einsum("xk,nkml,xl->xnm", terms, covariance(sky, degree), terms, optimize=True)
    variance = np.einsum("xn,xnn->x", seen, error) - np.einsum("xn,xnm,xm->x", seen, error, seen) / seen.sum(axis=1)
    return float(np.sqrt(variance.sum() / seen.sum()))


def simulated_rms(sky: Cells, places: Cells, degree: int, rng: np.random.Generator, draws: int = 1000) -> float:
    """Rms over random noise of what dense least squares finds, with the sky of each cell as an unknown."""
    n, size = sky.weight.shape
    terms, root = sky.terms(degree), np.sqrt(sky.weight)[..., None]
    blocks = np.einsum("nm,xk->nxmk", np.eye(n), terms).reshape(n, size, -1)
    design = np.concatenate([blocks * root, np.eye(size) * root], axis=2).reshape(n * size, -1)
    found = np.linalg.lstsq(design, rng.standard_normal((n * size, draws)), rcond=1e-10)[0]
    coefficients = found[: blocks.shape[2]].T.reshape(draws, n, -1)
    errors = [relative_rms(c @ places.terms(degree).T, places) for c in coefficients]
    return float(np.sqrt(np.mean(np.square(errors))))


def main() -> None:
    rng = np.random.default_rng(1)
    points, weight = rng.uniform(-1, 1, (3, 60)), rng.uniform(0.5, 2, (3, 60))
    weight[rng.integers(3, size=20), np.arange(20)] = 0
    sky = Cells(*points, points, weight)
    print(f"floor {floor(sky, sky, 1):.4f}, least squares {simulated_rms(sky, sky, 1, rng):.4f}")


if __name__ == "__main__":
    main()
