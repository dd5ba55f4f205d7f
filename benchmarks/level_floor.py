"""The exact Fisher floor of level matching: what a perfect program could reach, with the sky free in every cell.

    python benchmarks/level_floor.py

tests it against dense least squares on a tiny mosaic. It shares nothing with bkgmatch's solver or its measurement:
the pixels of all exposures are assigned to the nearest cells of one tangent plane of native scale, each pixel with the
weight 1/err^2 unless it is bad or hit by a cosmic ray (the truth is known), the sky of each cell is eliminated exactly,
and what is left is the information matrix of the exposures' constants or planes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bkgmatch.detectors import pixels_on_plane, to_plane
from bkgmatch.simulate import SimulatedExposure, simulate_mosaic

GRID = np.linspace(0.05, 0.95, 5)  # of the width and the height, in pixels from 0
FITS = ("level", "level+slope")


@dataclass(frozen=True)
class Truth:
    """True corrections (MJy/sr) of all exposures on their 5 x 5 grids, and where these are (exposure, row, column).

    ``east`` and ``north`` are in the tangent plane of the mosaic's centre (arcsec).
    """

    names: tuple[str, ...]
    values: np.ndarray
    east: np.ndarray
    north: np.ndarray

    @classmethod
    def of(cls, exposures: Sequence[SimulatedExposure]) -> "Truth":
        centre = mosaic_centre(exposures)
        sky = [_grid_on_sky(e) for e in exposures]
        values = [e.background(*s) for e, s in zip(exposures, sky, strict=True)]
        east, north = zip(*(to_plane(*s, *centre) for s in sky), strict=True)
        return cls(tuple(e.name for e in exposures), *map(np.array, (values, east, north)))

    def rms(self, corrections: Mapping[str, np.ndarray], fit: str) -> float:
        """Rms error of measured 5 x 5 corrections: of the levels, or on the grid for planes.

        The best-fitting common constant (levels) or plane (planes) is removed.
        """
        error = np.array([np.asarray(corrections[name]) for name in self.names]) - self.values
        values, common = self.reduce(error, fit)
        return float(np.sqrt(np.mean(np.square(values - common @ (common.T @ values)))))

    def reduce(self, values: np.ndarray, fit: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers whose rms counts, and an orthonormal basis of what is common to all exposures."""
        if fit == "level":
            n = len(values)
            return values.mean(axis=(1, 2)), np.full((n, 1), n**-0.5)
        ones = np.ones(self.east.size)
        return values.ravel(), np.linalg.qr(np.stack([ones, self.east.ravel(), self.north.ravel()], axis=1))[0]


@dataclass(frozen=True)
class Floor:
    """The smallest errors that are possible.

    ``covariance`` is that of the coefficients (constant, or constant, east, north in units of ``scale`` arcsec about
    the centre of each exposure) in the gauge of least norm; ``eigenvalues`` are those of the mean square error's
    quadratic form: it is distributed as sum(eigenvalue * normal^2).
    """

    covariance: np.ndarray
    eigenvalues: np.ndarray

    @cached_property
    def rms(self) -> float:
        """Expected rms error: of the levels, or on the 5 x 5 grids for planes."""
        return float(np.sqrt(self.eigenvalues.sum()))

    def quantile(self, q: float, rng: np.random.Generator, draws: int = 200_000) -> float:
        """Quantile of the rms error over draws from the covariance."""
        squares = np.zeros(draws)
        for eigenvalue in self.eigenvalues:
            squares += eigenvalue * rng.standard_normal(draws) ** 2
        return float(np.sqrt(np.quantile(squares, q)))


def floor(exposures: Sequence[SimulatedExposure], fit: str) -> Floor:
    """The Fisher floor of exposures for ``fit`` = level or level+slope."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}: choose from {FITS}")
    truth = Truth.of(exposures)
    scale = float(np.hypot(np.ptp(truth.east[0]), np.ptp(truth.north[0])) / 2)
    covariance = _inverse(information(exposures, fit, scale), 1 if fit == "level" else 3)
    modes = _modes(truth, fit, scale)
    _, common = truth.reduce(truth.values, fit)
    modes = modes - common @ (common.T @ modes)
    root = _root(covariance)
    quadratic = root.T @ (modes.T @ modes) @ root / len(modes)
    return Floor(covariance, np.clip(np.linalg.eigvalsh(quadratic), 0, None))


def measured_rms(exposures: Sequence[SimulatedExposure], corrections: Mapping[str, np.ndarray], fit: str) -> float:
    """Rms error of measured 5 x 5 corrections by exposure name, of which ``Floor.rms`` is the floor."""
    return Truth.of(exposures).rms(corrections, fit)


def information(exposures: Sequence[SimulatedExposure], fit: str, scale: float) -> np.ndarray:
    """Information matrix of the coefficients with the sky of every cell eliminated."""
    maps = list(_cell_maps(exposures, fit, scale))
    total = _total(maps)
    n = maps[0].sums.shape[0]
    matrix = np.zeros((len(maps), n, len(maps), n))
    for i, here in enumerate(maps):
        matrix[i, :, i, :] = here.own
        inverse = 1 / total[here.box]
        for j, other in enumerate(maps[: i + 1]):
            shared = _product(here, other, inverse)
            matrix[i, :, j, :] -= shared
            if j < i:
                matrix[j, :, i, :] -= shared.T
    return matrix.reshape(len(maps) * n, -1)


@dataclass(frozen=True)
class _CellMap:
    """Sums of weight times basis over an exposure's pixels in each cell of its box, and weight * basis * basis."""

    corner: tuple[int, int]
    sums: np.ndarray
    own: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        return tuple(slice(c, c + n) for c, n in zip(self.corner, self.sums.shape[1:], strict=True))


def _cell_maps(exposures: Sequence[SimulatedExposure], fit: str, scale: float) -> Iterator[_CellMap]:
    centre = mosaic_centre(exposures)
    turn, cell = _orientation(exposures[0], centre)
    planes = [pixels_on_plane(e.wcs, e.data.shape, *centre) for e in exposures]
    origin = _origin(planes, turn)
    for exposure, (east, north), middle in zip(exposures, planes, _centres(exposures), strict=True):
        use = exposure.good & ~exposure.hits & (exposure.err > 0)
        east, north, weight = east[use], north[use], exposure.err[use].astype(float) ** -2
        position = np.rint(((east + 1j * north) * turn - origin) / cell)
        east, north = _cell_middle(position, turn, cell, origin)
        position = position.imag.astype(int), position.real.astype(int)
        basis = [np.ones_like(east), (east - middle[0]) / scale, (north - middle[1]) / scale]
        yield _cell_map(position, np.array(basis if fit == "level+slope" else basis[:1]), weight)


def _cell_middle(position: np.ndarray, turn: complex, cell: float, origin: complex) -> tuple[np.ndarray, np.ndarray]:
    """East and north there: planes are taken at cells, not at pixels, or a common plane would not be free."""
    middle = (position * cell + origin) / turn
    return middle.real, middle.imag


def _cell_map(position: tuple[np.ndarray, np.ndarray], basis: np.ndarray, weight: np.ndarray) -> _CellMap:
    corner = tuple(int(p.min()) for p in position)
    shape = tuple(int(np.ptp(p)) + 1 for p in position)
    index = np.ravel_multi_index([p - c for p, c in zip(position, corner, strict=True)], shape)
    sums = [np.bincount(index, weight * b, shape[0] * shape[1]).reshape(shape) for b in basis]
    return _CellMap(corner, np.array(sums), (basis * weight) @ basis.T)


def _total(maps: Sequence[_CellMap]) -> np.ndarray:
    """Weight of every cell of the mosaic; 1 where nothing is."""
    total = np.zeros(np.max([[s.stop for s in m.box] for m in maps], axis=0))
    for m in maps:
        total[m.box] += m.sums[0]
    total[total == 0] = 1
    return total


def _product(here: _CellMap, other: _CellMap, inverse: np.ndarray) -> np.ndarray:
    """Sum over the cells of both maps of sums * sums / total."""
    low = np.maximum(here.corner, other.corner)
    high = np.minimum(*([s.stop for s in m.box] for m in (here, other)))
    if (low >= high).any():
        return np.zeros((len(here.sums), len(other.sums)))
    mine, theirs = (
        (slice(None), *(slice(a - c, b - c) for a, b, c in zip(low, high, m.corner, strict=True)))
        for m in (here, other)
    )
    weighted = here.sums[mine] * inverse[mine[1:]]
    return weighted.reshape(len(weighted), -1) @ other.sums[theirs].reshape(len(weighted), -1).T


def mosaic_centre(exposures: Sequence[SimulatedExposure]) -> tuple[float, float]:
    """Mean pointing (deg)."""
    ra = np.array([e.pointing.ra for e in exposures])
    turns = np.mod(ra - ra[0] + 180, 360) - 180
    return float(ra[0] + turns.mean()), float(np.mean([e.pointing.dec for e in exposures]))


def _centres(exposures: Sequence[SimulatedExposure]) -> np.ndarray:
    """Centre of each exposure in the tangent plane of the mosaic."""
    truth = Truth.of(exposures)
    return np.stack([truth.east.mean(axis=(1, 2)), truth.north.mean(axis=(1, 2))], axis=1)


def _grid_on_sky(exposure: SimulatedExposure) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = exposure.data.shape
    return exposure.wcs(*np.meshgrid(GRID * nx, GRID * ny), with_bounding_box=False)


def _orientation(exposure: SimulatedExposure, centre: tuple[float, float]) -> tuple[complex, float]:
    """The factor that turns the plane's axes to the rows of an exposure, and the width of a pixel (arcsec)."""
    ny, nx = exposure.data.shape
    x, y = np.array([0.3, 0.7]) * nx, np.full(2, 0.5 * ny)
    east, north = to_plane(*exposure.wcs(x, y, with_bounding_box=False), *centre)
    step = complex(np.diff(east)[0], np.diff(north)[0])
    return step.conjugate() / abs(step), exposure.detector.scale * exposure.binning


def _origin(planes: Sequence[tuple[np.ndarray, np.ndarray]], turn: complex) -> complex:
    turned = [(east + 1j * north) * turn for east, north in planes]
    return complex(min(t.real.min() for t in turned), min(t.imag.min() for t in turned))


def _inverse(matrix: np.ndarray, free: int) -> np.ndarray:
    """Pseudo-inverse without the ``free`` modes of least information, which are common to all exposures."""
    values, vectors = np.linalg.eigh(matrix)
    if values[free] < 1e-9 * values[-1]:
        raise ValueError("the exposures are not all connected")
    return (vectors[:, free:] / values[free:]) @ vectors[:, free:].T


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(values, 0, None))


def _modes(truth: Truth, fit: str, scale: float) -> np.ndarray:
    """What each coefficient does to the numbers whose rms counts."""
    n = len(truth.names)
    if fit == "level":
        return np.eye(n)
    modes = np.zeros((n, 25, n, 3))
    for k, (east, north) in enumerate(zip(truth.east.reshape(n, -1), truth.north.reshape(n, -1), strict=True)):
        basis = [np.ones(25), (east - east.mean()) / scale, (north - north.mean()) / scale]
        modes[k, :, k, :] = np.transpose(basis)
    return modes.reshape(n * 25, n * 3)


def _dense_rms(exposures: Sequence[SimulatedExposure], fit: str) -> float:
    """The same floor by brute force: one row per pixel, one unknown per sky cell and coefficient."""
    truth = Truth.of(exposures)
    centre = mosaic_centre(exposures)
    turn, cell = _orientation(exposures[0], centre)
    planes = [pixels_on_plane(e.wcs, e.data.shape, *centre) for e in exposures]
    origin = _origin(planes, turn)
    n = 1 if fit == "level" else 3
    cells, rows = {}, []
    for k, (exposure, (east, north)) in enumerate(zip(exposures, planes, strict=True)):
        for pixel in zip(*np.nonzero(exposure.good & ~exposure.hits), strict=True):
            place = np.rint((complex(east[pixel], north[pixel]) * turn - origin) / cell)
            number = cells.setdefault(complex(place), len(cells))
            middle = _cell_middle(place, turn, cell, origin)
            rows.append((k, number, [1.0, middle[0] / 50, middle[1] / 50][:n], float(exposure.err[pixel])))
    design = np.zeros((len(rows), len(exposures) * n + len(cells)))
    for row, (k, number, basis, err) in zip(design, rows, strict=True):
        row[k * n : (k + 1) * n] = np.divide(basis, err)
        row[len(exposures) * n + number] = 1 / err
    covariance = np.linalg.pinv(design.T @ design, rcond=1e-12, hermitian=True)
    covariance = covariance[: len(exposures) * n, : len(exposures) * n]
    if fit == "level":
        modes = np.eye(len(exposures))
    else:
        points = np.stack([np.ones(truth.east.shape), truth.east / 50, truth.north / 50], axis=-1).reshape(-1, 25, 3)
        modes = np.zeros((len(exposures) * 25, len(exposures) * 3))
        for k, block in enumerate(points):
            modes[25 * k : 25 * k + 25, 3 * k : 3 * k + 3] = block
    common = truth.reduce(truth.values, fit)[1]
    modes = modes - common @ (common.T @ modes)
    return float(np.sqrt(np.trace(modes @ covariance @ modes.T) / len(modes)))


def self_test() -> None:
    """Compare with brute force, and draws of known corrections with the metric."""
    rng = np.random.default_rng(5)
    exposures = simulate_mosaic(
        rng=rng, detectors=("MIRIMAGE",), tiles=(1, 2), dithers=3, binning=64, scene=None, tilt=0.3, overlap=0.3
    )
    for fit in FITS:
        ours, dense = floor(exposures, fit), _dense_rms(exposures, fit)
        print(f"{fit}: floor {ours.rms:.6e}, brute force {dense:.6e}, 99.9 % {ours.quantile(0.999, rng):.3e}")
        np.testing.assert_allclose(ours.rms, dense, rtol=1e-5)
        shift = {
            n: v + 0.1 + (0 if fit == "level" else 1e-3 * e)
            for n, v, e in zip(*(getattr(Truth.of(exposures), k) for k in ("names", "values", "east")), strict=True)
        }
        assert measured_rms(exposures, shift, fit) < 1e-9


if __name__ == "__main__":
    self_test()
