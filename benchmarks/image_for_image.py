"""Image-for-image backgrounds: errors beside those of the recipe of Crab.Toolkit.JWST, on exposures of known truth.

    python benchmarks/image_for_image.py [--seeds 5] [--cases dithers close extended epochs] [--programs ours toolkit]

Full MIRI images (bkgmatch.simulate_dithers): ``dithers``, 12 of 6"; ``close``, 4 of 2"; ``extended``, 12 of 6", with a
source of 3 DN/s in the middle whose sigma is 8"; ``epochs``, 12 of 6", half of them 30 days later in front of a changed
pattern. Both programs get the same arrays; the rival is rivals/image_for_image.py.

The error is the background minus the true one on good pixels, source-free where the light is under 0.01 DN/s.
``residual`` is 1.4826 times its median absolute deviation (DN/s) on source-free pixels, about the median of each
exposure, ``residual_raw`` about 0; ``pull`` is that of the error about the median of its exposure over the error that
the program states. ``extended`` is the residual within two sigma of the middle, about the median of the source-free
pixels of the exposure. ``no_donor`` is the part of the good pixels that no other exposure gives a value.

``bias`` (%) is that of aperture fluxes, radius 0.5", minus the median of the annulus from 1.0" to 1.5", as an observer
would measure them on each exposure: the sum over the sources of a bin of true fluxes (DN/s), relative to the same
photometry with the true background, so that noise and the light outside cancel. ``bias_sd`` is the largest standard
error of a bin, from the scatter of the seeds; ``bias_rms`` is the largest root mean square of the biases of the single
seeds, noise included: with few exposures the bias of a median depends on the order of the levels, and may cancel in the
mean over seeds. Apertures with a pixel that lacks a background are left out; ``lost`` is their part. The second table
has the ratios and what we aim at; ``worst bias`` is the largest of the bins.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from _common import report, timed  # first: it sets the number of BLAS threads
from rivals import image_for_image as rival

from bkgmatch.detectors import NON_SCIENCE, pixels_on_plane
from bkgmatch.exposures import Exposure
from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.options import ImageForImageOptions
from bkgmatch.simulate_dithers import DitheredExposures, simulate_dithers

CASES: dict[str, dict] = {
    "dithers": {"dithers": 12, "dither_step": 6.0},
    "close": {"dithers": 4, "dither_step": 2.0},
    "extended": {"dithers": 12, "dither_step": 6.0, "extended": (3.0, 8.0)},
    "epochs": {"dithers": 12, "dither_step": 6.0, "epochs": 2},
}
BINS = np.array([3, 5, 10, 30, 100, 300])  # DN/s
BIASES = [f"bias {low}-{high}" for low, high in pairwise(BINS)]
RADIUS, INNER, OUTER = 0.5, 1.0, 1.5  # arcsec
DARK = 0.01  # DN/s

# Of each exposure the background, its error, and the number of values in each pixel.
Backgrounds = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def ours(dithers: DitheredExposures) -> Backgrounds:
    """make_backgrounds with its defaults."""
    exposures = [
        Exposure.from_arrays(
            e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, variance=e.err**2, time=time
        )
        for e, time in zip(dithers.exposures, dithers.times.tolist(), strict=True)
    ]
    result = make_backgrounds(exposures, ImageForImageOptions())
    found = [result.background(i) for i in range(len(exposures))]
    return [(b.value, np.sqrt(b.variance), b.donors) for b in found]


def toolkit(dithers: DitheredExposures) -> Backgrounds:
    """The rival."""
    images = [
        rival.Image(
            data=np.where(e.good, e.data, np.nan),
            err=e.err,
            wcs=e.wcs,
            header=rival.header_wcs(e.wcs, e.pointing.ra, e.pointing.dec),
            time=time,
        )
        for e, time in zip(dithers.exposures, dithers.times.tolist(), strict=True)
    ]
    return rival.backgrounds(images)


PROGRAMS: dict[str, Callable[[DitheredExposures], Backgrounds]] = {"ours": ours, "toolkit": toolkit}


@dataclass(frozen=True)
class Apertures:
    """Square cut-outs about the sources: pixels, their parts in the circles, and whether they are in the annuli."""

    rows: np.ndarray
    columns: np.ndarray
    weight: np.ndarray
    annulus: np.ndarray

    @classmethod
    def at(cls, x: np.ndarray, y: np.ndarray, pixel: float) -> "Apertures":
        half = int(np.ceil(OUTER / pixel)) + 1
        offset = np.arange(-half, half + 1)
        rows, columns = np.broadcast_arrays(
            np.round(y).astype(int)[:, None, None] + offset[:, None], np.round(x).astype(int)[:, None, None] + offset
        )
        radius = np.hypot(columns - x[:, None, None], rows - y[:, None, None])
        weight = np.clip(RADIUS / pixel + 0.5 - radius, 0, 1)
        return cls(rows, columns, weight, (radius > INNER / pixel) & (radius < OUTER / pixel))

    def flux(self, image: np.ndarray) -> np.ndarray:
        """Aperture minus annulus, of the pixels that are finite."""
        pixels = image[self.rows, self.columns]
        sky = np.nanmedian(np.where(self.annulus, pixels, np.nan), axis=(1, 2), keepdims=True)
        return np.nansum(self.weight * (pixels - sky), axis=(1, 2))

    def touch(self, mask: np.ndarray) -> np.ndarray:
        """Whether a pixel of the mask is in the circle."""
        return (mask[self.rows, self.columns] & (self.weight > 0)).any(axis=(1, 2))


@dataclass(frozen=True)
class Truth:
    """What the scores of one exposure need."""

    data: np.ndarray
    background: np.ndarray
    dark: np.ndarray
    middle: np.ndarray
    apertures: Apertures
    bins: np.ndarray

    @classmethod
    def of(cls, dithers: DitheredExposures, i: int) -> "Truth":
        exposure, field = dithers.exposures[i], dithers.field
        shape = exposure.data.shape
        extent = 2 * field.extended[1] if field.extended else 0
        near = np.hypot(*pixels_on_plane(exposure.wcs, shape, field.ra, field.dec)) < extent
        ra, dec, flux = dithers.sources.T
        x, y = exposure.wcs.invert(ra, dec, with_bounding_box=False)
        edge = OUTER / field.pixel + 2
        inside = (x > edge) & (x < shape[1] - 1 - edge) & (y > edge) & (y < shape[0] - 1 - edge)
        blind = (exposure.dq & NON_SCIENCE) > 0
        seen = np.flatnonzero(inside)[~Apertures.at(x[inside], y[inside], field.pixel).touch(blind)]
        return cls(
            data=np.where(exposure.good, exposure.data, np.nan),
            background=dithers.background(i),
            dark=exposure.good & (dithers.light(i) < DARK),
            middle=exposure.good & near,
            apertures=Apertures.at(x[seen], y[seen], field.pixel),
            bins=np.digitize(flux[seen], BINS) - 1,
        )


def scatter(values: np.ndarray) -> float:
    """Robust standard deviation about 0 of the finite ones."""
    return 1.4826 * float(np.nanmedian(np.abs(values))) if values.size else np.nan


def score(truth: Truth, value: np.ndarray, err: np.ndarray, donors: np.ndarray) -> dict:
    """Scores of one background."""
    error = value - truth.background
    dark, middle = error[truth.dark], error[truth.middle]
    level = np.nanmedian(dark)
    good = np.isfinite(truth.data)
    lost = truth.apertures.touch(good & np.isnan(value))
    fluxes = np.array([truth.apertures.flux(truth.data - sky) for sky in (value, truth.background)])
    return {
        "residual": scatter(dark - level),
        "residual_raw": scatter(dark),
        "pull": scatter((dark - level) / err[truth.dark]),
        "extended": scatter(middle - level),
        "no_donor": float((donors[good] == 0).mean()),
        "lost": float(lost.mean()),
        "fluxes": [np.bincount(truth.bins[~lost], f[~lost], minlength=len(BINS) - 1) for f in fluxes],
    }


def bias(fluxes: np.ndarray) -> np.ndarray:
    """Bias of each bin, in percent, of summed found and true fluxes."""
    found, true = fluxes
    return 100 * (found / true - 1)


def summary(case: str, program: str, runs: list[list[dict]], seconds: list[float]) -> dict:
    """Means over seeds and exposures."""
    fluxes = np.array([np.sum([score["fluxes"] for score in run], axis=0) for run in runs])
    numbers = ("residual", "residual_raw", "pull", "extended", "no_donor", "lost")
    row = {"case": case, "program": program, "seeds": len(runs)}
    row |= {key: float(np.mean([score[key] for run in runs for score in run])) for key in numbers}
    row |= dict(zip(BIASES, bias(fluxes.sum(axis=0)).tolist(), strict=True))
    single = np.array([bias(f) for f in fluxes])
    row["bias_sd"] = float(single.std(axis=0).max() / np.sqrt(max(1, len(runs) - 1)))
    row["bias_rms"] = float(np.sqrt(np.mean(single**2, axis=0)).max())
    return row | {"seconds": float(np.median(seconds))}


def run(case: str, programs: list[str], seeds: int) -> list[dict]:
    """Simulate a case and score the programs."""
    runs: dict[str, list[list[dict]]] = {program: [] for program in programs}
    seconds: dict[str, list[float]] = {program: [] for program in programs}
    for seed in range(seeds):
        dithers = simulate_dithers(rng=np.random.default_rng(seed), **CASES[case])
        truths = [Truth.of(dithers, i) for i in range(len(dithers.exposures))]
        for program in programs:
            elapsed, found = timed(partial(PROGRAMS[program], dithers))
            seconds[program].append(elapsed)
            runs[program].append([score(truth, *b) for truth, b in zip(truths, found, strict=True)])
    rows = [summary(case, program, runs[program], seconds[program]) for program in programs]
    for row in rows:
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def worst_bias(row: dict) -> float:
    """Largest bias of all bins, in percent."""
    return max(abs(value) for key, value in row.items() if key in BIASES)


def goals(case: str) -> list[tuple[str, str, float]]:
    """What is compared in a case: the score, and whether it or its ratio to the rival's has which limit."""
    few = CASES[case]["dithers"] < 12
    biases = [(key, "ratio", 0.5) for key in ("worst bias", "bias_rms")] if few else [("worst bias", "ours", 1.0)]
    middle = [("extended", "ratio", 0.4)] if "extended" in CASES[case] else []
    return [("residual", "ratio", np.inf if few else 0.8), *biases, *middle, ("seconds", "ratio", np.inf)]


def compare(mine: dict, other: dict) -> list[dict]:
    """Ratios of two rows of a case, and whether the goals are met."""
    rows = []
    for key, judged, limit in goals(mine["case"]):
        found, rivals = (worst_bias(row) if key == "worst bias" else row[key] for row in (mine, other))
        row = {"case": mine["case"], "score": key, "ours": found, "toolkit": rivals, "ratio": found / rivals}
        rows.append(row | {"goal": f"{judged} <= {limit}", "met": bool(row[judged] <= limit)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options = parser.parse_args()
    rows = {case: run(case, options.programs, options.seeds) for case in options.cases}
    report([row for found in rows.values() for row in found])
    if set(options.programs) == set(PROGRAMS):
        print()
        pairs = [{row["program"]: row for row in found} for found in rows.values()]
        report([row for pair in pairs for row in compare(pair["ours"], pair["toolkit"])])


if __name__ == "__main__":
    main()
