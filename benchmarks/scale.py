"""Time and memory of everything but the pixels against the number of exposures, up to a survey of 10,000.

    python benchmarks/scale.py

A mosaic like that of COSMOS-Web: visits of 8 short-wavelength detectors of NIRCam with 4 dithers, in staggered rows.
Overlaps are known from the outlines, and measured levels are drawn from true levels, with errors that overlaps of one
exposure have in common where they share pixels. Each number of exposures has a process of its own.

``footprints`` makes outlines (of small masks), ``candidates`` finds pairs that may overlap, of which ``pairs`` really
do. ``offsets``, ``match`` and ``levels`` are the stages of sky matching after the pixels, with errors; ``robust`` is
``match`` with robust weights. ``joint`` and ``passes`` match the levels of the same pairs all at once, or dithers,
detectors and visits one after the other; ``planes`` likewise with planes. All in seconds. ``peak_MB`` is the largest
memory of the process. ``pull`` is the rms, over exposures and 20 realisations, of the errors of sky matching in their
standard errors; ``pull_*`` that of the functions at the centres of the exposures (of one realisation, and few large
modes dominate the errors; where a prior holds tilts, it is wider than they are). The last table has the exponents of
time against the number of exposures.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from _common import report, timed  # it sets the number of BLAS threads

from bkgmatch.differences import PairSums
from bkgmatch.exposures import Exposure
from bkgmatch.footprints import Footprint, candidate_neighbours, footprint, outlines_in_plane
from bkgmatch.options import SkyMatchOptions
from bkgmatch.pairs import Measurement, Offsets, offset_equations, pair_offsets
from bkgmatch.passes import Pass, PassesSolution, solve_passes
from bkgmatch.skystats import SkyLevels
from bkgmatch.solve import NormalSystem, solve_offsets
from bkgmatch.zero_point import levels

ARCSEC = np.deg2rad(1 / 3600)
CENTRE = np.deg2rad([150.1, 2.2])
CHIP, GAP, MODULES = 63.5, 5.0, 177.0  # arcsec: side, gap between detectors, distance of the modules
DITHERS = np.array([[-24.6, 12.4], [-24.4, -12.5], [24.6, -12.3], [24.4, 12.6]])
VISITS = np.array([280.0, 66.0])  # arcsec between visits of a row, and between rows
MASK = np.ones((256, 256), dtype=bool)
SIDE = 2048  # pixels of the detector
CELL = 0.5  # arcsec, of the common grid
TILT = 0.3  # in 100 arcsec; the noise of a cell is 1
REALISATIONS = 20


@dataclass(frozen=True)
class Mosaic:
    """Exposures: visit, detector, and centre in arcsec in the tangent plane of the survey."""

    visit: np.ndarray
    detector: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, n: int, rng: np.random.Generator) -> "Mosaic":
        per_visit = 8 * len(DITHERS)
        visits = -(-n // per_visit)
        columns = max(1, round(np.sqrt(visits * VISITS[1] / VISITS[0])))
        row, column = np.divmod(np.arange(visits), columns)
        pointing = np.column_stack([column + 0.5 * (row % 2), row]) * VISITS + rng.normal(0, 0.5, (visits, 2))
        half = (CHIP + GAP) / 2
        x, y = np.meshgrid(
            [-MODULES / 2 - half, -MODULES / 2 + half, MODULES / 2 - half, MODULES / 2 + half], [-half, half]
        )
        chips = np.column_stack([x.ravel(), y.ravel()])
        centre = pointing[:, None, None] + DITHERS[:, None] + chips
        detector = np.tile(np.arange(8), visits * len(DITHERS))
        return cls(np.repeat(np.arange(visits), per_visit)[:n], detector[:n], centre.reshape(-1, 2)[:n])


def wcs_of(centre: np.ndarray) -> Callable:
    """WCS of a detector that is aligned with the tangent plane of the survey."""

    def wcs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        xi, eta = (
            (c + CHIP * ((np.asarray(z) + 0.5) / len(MASK) - 0.5)) * ARCSEC for c, z in zip(centre, (x, y), strict=True)
        )
        across = np.cos(CENTRE[1]) - eta * np.sin(CENTRE[1])
        ra = CENTRE[0] + np.arctan2(xi, across)
        dec = np.arctan2(np.sin(CENTRE[1]) + eta * np.cos(CENTRE[1]), np.hypot(xi, across))
        return np.rad2deg(ra), np.rad2deg(dec)

    return wcs


@dataclass(frozen=True)
class Overlaps:
    """Pairs of exposures that overlap, and the corners (x0, y0, x1, y1) of exposures and overlaps in arcsec."""

    first: np.ndarray
    second: np.ndarray
    exposures: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, outlines: list[Footprint], neighbours: list[np.ndarray]) -> "Overlaps":
        plane = footprint(MASK, wcs_of(np.zeros(2)))
        shapes = shapely.simplify(outlines_in_plane(outlines, plane), 1e-3 * ARCSEC)
        first = np.repeat(np.arange(len(outlines)), [len(near) for near in neighbours])
        second = np.concatenate(neighbours)
        first, second = first[first < second], second[first < second]
        common = shapely.intersection(shapes[first], shapes[second])
        real = shapely.area(common) > ARCSEC**2
        bounds = [shapely.bounds(some) / ARCSEC for some in (shapes, common[real])]
        return cls(first[real], second[real], *bounds)

    def pixels(self) -> np.ndarray:
        return area(self.pairs) * (SIDE / CHIP) ** 2


def area(corners: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(corners[..., 2:] - corners[..., :2], 0), axis=-1)


def common_area(corners: np.ndarray) -> np.ndarray:
    """Areas, shape (k, k), that any two of k rectangles have in common."""
    low = np.maximum(corners[:, None, :2], corners[:, :2])
    high = np.minimum(corners[:, None, 2:], corners[:, 2:])
    return area(np.concatenate([low, high], axis=-1))


def measurements(overlaps: Overlaps, truth: np.ndarray, rng: np.random.Generator) -> list[Measurement]:
    """Levels of each exposure in its overlaps, with unit noise of a pixel, which overlaps share."""
    here = np.concatenate([overlaps.first, overlaps.second])
    there = np.concatenate([overlaps.second, overlaps.first])
    pair = np.tile(np.arange(len(overlaps.first)), 2)
    order = np.lexsort((there, here))
    starts = np.searchsorted(here[order], np.arange(1, len(truth)))
    made = []
    for i, mine in enumerate(np.split(order, starts)):
        shared = common_area(overlaps.pairs[pair[mine]]) * (SIDE / CHIP) ** 2
        npix = np.diag(shared)
        covariance = shared / np.outer(npix, npix)
        value = truth[i] + noise(covariance, rng)
        found = SkyLevels(value, 1 / np.sqrt(npix), np.rint(npix).astype(int))
        whole = SkyLevels(truth[i : i + 1], np.array([1 / SIDE]), np.array([SIDE**2]))
        made.append(Measurement(there[mine], found, covariance, whole))
    return made


def noise(covariance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One realisation of errors, or several, for covariances of shape (..., k, k)."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 0)) * rng.normal(size=values.shape)
    return np.einsum("...ab,...b->...a", vectors, roots)


def pull(error: np.ndarray, component: np.ndarray, covariance: np.ndarray, at: np.ndarray) -> float:
    """
    Rms error of functions, shape (n, p), in standard errors.

    Relative to the mean of their component, at one place of each exposure: ``at`` are the terms there, shape (n, p).
    """
    number = component[component >= 0]
    members = np.zeros((number.max() + 1, error.shape[1]))
    np.add.at(members, number, error[component >= 0])
    relative = error[component >= 0] - (members / np.bincount(number)[:, None])[number]
    at = at[component >= 0]
    variance = np.einsum("na,nab,nb->n", at, covariance[component >= 0], at)
    return float(np.sqrt(np.mean(np.einsum("na,na->n", at, relative) ** 2 / variance)))


def realised_pull(
    offsets: Offsets, measured: list[Measurement], covariance: np.ndarray, rng: np.random.Generator
) -> float:
    """Pull of many realisations of the errors about true levels of zero."""
    pulls, at = [], np.ones((len(measured), 1))
    for _ in range(REALISATIONS):
        drawn = np.concatenate([noise(one.covariance, rng) for one in measured])
        equations = offset_equations(offsets.first, offsets.second, offsets.loading @ drawn, offsets.weight)
        system = NormalSystem(len(measured), equations)
        pulls.append(pull(system.solution(), system.component, covariance, at))
    return float(np.sqrt(np.mean(np.square(pulls))))


def sky_matching(mosaic: Mosaic, overlaps: Overlaps, rng: np.random.Generator) -> dict:
    """Time the stages of sky matching after the pixels, and check the errors."""
    n = len(mosaic.visit)
    truth = rng.normal(size=n)
    measured = measurements(overlaps, truth, rng)
    seconds, offsets = timed(lambda: pair_offsets(measured))
    row = {"offsets": seconds}
    groups = np.arange(n)
    row["match"], (solution, offsets) = timed(lambda: solve_offsets(offsets, groups))
    row["robust"] = timed(lambda: solve_offsets(offsets, groups, robust=True))[0]
    exposures = [Exposure(f"{i:05d}", lambda: None, wcs_of(c)) for i, c in enumerate(mosaic.centre)]
    every = [
        SkyMatchOptions(zero_point=policy, zero_point_scope=scope)
        for policy in ("lowest", "mean")
        for scope in ("global", "component")
    ]
    whole = np.ones(n)
    row["levels"] = timed(lambda: [levels(exposures, o, groups, solution, truth, whole) for o in every])[0]
    row["pull"] = realised_pull(offsets, measured, solution.covariance, rng)
    return row


def pair_sums(overlaps: Overlaps, truth: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> PairSums:
    """Sums over the cells of overlaps, each cell with unit noise: differences of functions in 100 arcsec."""
    p = truth.shape[1]
    low, high = overlaps.pairs[:, :2] / 100, overlaps.pairs[:, 2:] / 100
    npix = area(overlaps.pairs) / CELL**2
    mean = np.concatenate([np.ones((len(low), 1)), (low + high) / 2], axis=1)[:, :p]
    normal = np.einsum("na,nb->nab", mean, mean)
    for axis in range(1, p):
        normal[:, axis, axis] += (high - low)[:, axis - 1] ** 2 / 12
    normal *= npix[:, None, None] / 2
    apart = truth[overlaps.first] - truth[overlaps.second]
    rhs = np.einsum("nab,nb->na", normal, apart) + noise(normal, rng)
    return PairSums(level, overlaps.first, overlaps.second, normal, rhs, npix.copy(), npix, normal[:, 0, 0])


def levels_in_passes(mosaic: Mosaic, overlaps: Overlaps, rng: np.random.Generator) -> dict:
    """Time the solution for constants and planes, in one pass and in three, and check the errors."""
    n, row = len(mosaic.visit), {}
    containers = [8 * mosaic.visit + mosaic.detector, mosaic.visit, np.zeros(n, dtype=int)]
    for p, kind in ((1, ""), (3, "_planes")):
        for name, kept in (("joint", containers[2:]), ("passes", containers)):
            truth = rng.normal(size=(n, p)) * [1.0, TILT, TILT][:p]
            seconds, found = solved(overlaps, truth, kept, rng)
            row[f"{name}{kind}"] = seconds
            at = np.concatenate([np.ones((n, 1)), mosaic.centre / 100], axis=1)[:, :p]
            row[f"pull_{name}{kind}"] = pull(found.coefficients - truth, found.component, found.covariance, at)
    return row


def solved(
    overlaps: Overlaps, truth: np.ndarray, containers: list[np.ndarray], rng: np.random.Generator
) -> tuple[float, PassesSolution]:
    """Seconds and solution of passes within some sets of exposures."""
    n, p = truth.shape
    level = np.sum([c[overlaps.first] != c[overlaps.second] for c in containers], axis=0)
    order = np.lexsort((overlaps.second, overlaps.first, level))
    sums = pair_sums(overlaps, truth, level, rng).take(order)
    nothing, weights = np.zeros(n, dtype=bool), np.ones(len(order))
    every = [Pass(str(k), p > 1, container, nothing) for k, container in enumerate(containers)]
    return timed(lambda: solve_passes(np.arange(n), sums, every, nothing, 1.0, weights))


def one_size(n: int) -> dict:
    """Time all stages."""
    rng = np.random.default_rng(n)
    mosaic = Mosaic.of(n, rng)
    row: dict = {"exposures": n}
    row["footprints"], outlines = timed(lambda: [footprint(MASK, wcs_of(centre)) for centre in mosaic.centre])
    row["candidates"], neighbours = timed(lambda: candidate_neighbours(outlines))
    overlaps = Overlaps.of(outlines, neighbours)
    row["pairs"] = len(overlaps.first)
    row |= sky_matching(mosaic, overlaps, rng)
    row |= levels_in_passes(mosaic, overlaps, rng)
    return row | {"peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def exponents(rows: list[dict]) -> list[dict]:
    """Exponents of the stages between sizes."""
    stages = [name for name, value in rows[0].items() if isinstance(value, float) and not name.startswith("pull")]
    found = []
    for one, two in pairwise(rows):
        factor = np.log(two["exposures"] / one["exposures"])
        between = {"exposures": f"{one['exposures']}-{two['exposures']}"}
        found.append(between | {name: float(np.log(two[name] / one[name]) / factor) for name in stages})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    options = parser.parse_args()
    if len(options.sizes) == 1:
        report([one_size(options.sizes[0])])
        return
    rows = []
    for n in options.sizes:
        run = subprocess.run([sys.executable, __file__, "--sizes", str(n)], capture_output=True, text=True, check=True)
        rows.append(json.loads(run.stdout.splitlines()[0]))
    report(rows)
    report(exponents(rows))


if __name__ == "__main__":
    main()
