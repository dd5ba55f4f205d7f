"""Errors of LevelMatchStep as a ratio to the Fisher floor, with whole-process time and memory, beside rivals'.

    python benchmarks/level_accuracy.py --against pjpipe,montage,reproject,skymatch --rivals-root ENVIRONMENTS

MIRI mosaics with a nebula, stars, cosmic rays, bad pixels and the Lyot field are written as files; every program reads
them and writes its results, and the correction is evaluated on 5 x 5 pixels of each exposure (rivals/README.md).

``rms`` is the rms error over all seeds (MJy/sr) after removal of the best common constant or plane; ``floor`` is the
smallest possible (level_floor.py); ``worst`` is the largest ratio of a run's error to the 99.9 % quantile that the
floor's covariance predicts for it. ``seconds``, ``cpu_seconds``, ``memory_MB`` (the peak resident memory of the
largest process) and ``tree_MB`` (the peak of the memory of all processes, shared pages counted once; sampled, only on
Linux) are medians over the runs. Inputs and the rivals' results stay in ``--work``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import report  # first: it sets the number of BLAS threads
from level_floor import FITS, Floor, Truth, floor
from rivals._files import add_fits_wcs, members, subtracted

from bkgmatch.detectors import Detector, field_of_view
from bkgmatch.scenes import make_scene
from bkgmatch.simulate import SimulatedExposure, simulate_mosaic
from bkgmatch.steps.simulated import write_exposures

CENTER = (150.0, 2.2)
HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "pjpipe": "pjpipe_level_match.py",
    "montage": "montage.py",
    "reproject": "reproject_coadd.py",
    "skymatch": "skymatch.py",
}
OURS = ("ours", "files")
LEVELS_ONLY = ("reproject", "skymatch")

# A small process of its own measures: a child's peak memory counts that of its parent until it has started.
MEASURE = """
import json, os, pathlib, resource, subprocess, sys, threading, time

def tree(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(grandchild for child in children for grandchild in tree(child))]

def proportional(pid):
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10

def watch():
    while True:
        try:
            peaks.append(sum(map(proportional, tree(process.pid))))
        except (OSError, StopIteration):
            pass  # a process has just ended, or this is no Linux
        time.sleep(0.1)

peaks = []
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
threading.Thread(target=watch, daemon=True).start()
status = process.wait()
result = {"seconds": time.perf_counter() - start}
used = resource.getrusage(resource.RUSAGE_CHILDREN)
result["cpu_seconds"] = used.ru_utime + used.ru_stime
result["memory_MB"] = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
result["tree_MB"] = max(peaks, default=float("nan"))
pathlib.Path(sys.argv[1]).write_text(json.dumps(result))
sys.exit(status)
"""
COSTS = ("seconds", "cpu_seconds", "memory_MB", "tree_MB")


@dataclass(frozen=True)
class Case:
    """A mosaic, and on how many seeds our program and the rivals run."""

    tiles: tuple[int, int]
    binning: int
    our_seeds: int
    rival_seeds: int

    def simulate(self, fit: str, seed: int) -> list[SimulatedExposure]:
        rng = np.random.default_rng(seed)
        chip = Detector.named("MIRIMAGE")
        _, (width, height) = field_of_view([chip])
        radius = 0.55 * np.hypot(width * (self.tiles[1] + 0.3), height * (self.tiles[0] + 0.3))
        n_stars = int(100 * np.pi * radius**2 / (width * height))
        fwhm = 2.3 * self.binning * chip.scale
        scene = make_scene(*CENTER, radius, rng, nebula=10.0, n_stars=n_stars, fwhm=fwhm)
        return simulate_mosaic(
            rng=rng,
            detectors=(chip,),
            tiles=self.tiles,
            dithers=4,
            center=CENTER,
            binning=self.binning,
            scene=scene,
            noise=0.06,
            shot=2e-4,
            level_range=(20.0, 40.0),
            tilt=0.0 if fit == "level" else 0.3,
            cosmic_rays=0.002,
            bad_pixels=0.002,
        )


CASES = {
    "256": Case((2, 2), 4, 20, 5),
    "512": Case((3, 3), 2, 5, 2),
    "1024": Case((2, 2), 1, 5, 2),
}


@dataclass(frozen=True)
class Run:
    """Files of one simulated mosaic, its true corrections and its floor."""

    folder: Path
    fit: str
    truth: Truth
    floor: Floor

    @property
    def association(self) -> Path:
        return self.folder / "in" / "mosaic_asn.json"

    @classmethod
    def prepare(cls, work: Path, case: str, fit: str, seed: int) -> "Run":
        """Simulate, or take what is in the working folder."""
        folder = work / case / fit / str(seed)
        kept = folder / "truth.npz"
        if not kept.exists():
            simulate_into(folder, CASES[case].simulate(fit, seed), fit)
        with np.load(kept) as file:
            truth = Truth(tuple(file["names"].tolist()), file["values"], file["east"], file["north"])
            return cls(folder, fit, truth, Floor(file["covariance"], file["eigenvalues"]))


def simulate_into(folder: Path, exposures: list[SimulatedExposure], fit: str) -> None:
    """Write files with the FITS WCS that real ones have, the truth and the floor."""
    shutil.rmtree(folder, ignore_errors=True)
    association = write_exposures(exposures, folder / "plain")
    (folder / "in").mkdir()
    for file in members(association):
        add_fits_wcs(file, folder / "in" / file.name)
    shutil.move(association, folder / "in")
    shutil.rmtree(folder / "plain")
    best, truth = floor(exposures, fit), Truth.of(exposures)
    np.savez(folder / "truth.npz", **vars(truth), covariance=best.covariance, eigenvalues=best.eigenvalues)


def measure(command: list, log: Path) -> dict:
    """Run a program; seconds and memory."""
    result = log.with_suffix(".measured.json")
    settings = {"OMP_NUM_THREADS": "1", "STPIPE_DISABLE_CRDS_STEPPARS": "true"}
    command = [sys.executable, "-c", MEASURE, result, *command]
    with log.open("w") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=os.environ | settings).returncode
    if status:
        raise SystemExit(f"{command[4:]} failed; see {log}:\n{log.read_text()[-2000:]}")
    return json.loads(result.read_text())


def run_ours(run: Run, program: str) -> dict:
    """Run LevelMatchStep (``ours``) or ``bkgmatch level`` (``files``) and evaluate the output files."""
    out = run.folder / program
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    files = members(run.association)
    if program == "ours":
        command = [Path(sys.executable).with_name("strun"), "bkgmatch.LevelMatchStep", run.association]
        command += [f"--fit_type_dithers={run.fit}", f"--fit_type_mosaic_tiles={run.fit}", "--save_results=true"]
        command += [f"--output_dir={out}", f"--save_table={out / 'table.ecsv'}"]
    else:
        command = [Path(sys.executable).with_name("bkgmatch"), "level", *files, f"--fit_type={run.fit}"]
        command += [f"--out={out}", f"--save_table={out / 'table.ecsv'}"]
    result = measure(command, run.folder / f"{program}.log")
    suffix = "_levelmatch" if program == "ours" else "_cal"
    corrections = {f.name: subtracted(f, out / f.name.replace("_cal", suffix)) for f in files}
    shutil.rmtree(out)
    return result | {"corrections": corrections}


def run_rival(run: Run, name: str, root: Path | None) -> dict:
    """Run a rival unless its result is there. Time for headers and evaluation is not the rival's."""
    kept = run.folder / f"{name}.json"
    if not kept.exists():
        python = root / name / "bin" / "python" if root and (root / name).exists() else sys.executable
        script, found = HERE / "rivals" / SCRIPTS[name], run.folder / f"{name}.found.json"
        command = [python, script, run.association, found, f"--fit={run.fit}"]
        result = measure(command, run.folder / f"{name}.log") | json.loads(found.read_text())
        for key in ("seconds", "cpu_seconds"):
            result[key] -= result["apart_seconds"]
        kept.write_text(json.dumps(result))
    return json.loads(kept.read_text())


def error(run: Run, result: dict) -> float:
    """Rms error of a result."""
    corrections = {name.removesuffix("_cal.fits"): grid for name, grid in result["corrections"].items()}
    return run.truth.rms(corrections, run.fit)


def row(case: str, fit: str, program: str, seeds: int, options: argparse.Namespace) -> dict:
    """Run one program on the seeds of a case."""
    runs = [Run.prepare(options.work, case, fit, seed) for seed in range(seeds)]
    ours = program in OURS
    results = [run_ours(run, program) if ours else run_rival(run, program, options.rivals_root) for run in runs]
    rms = np.array([error(run, result) for run, result in zip(runs, results, strict=True)])
    best = np.array([run.floor.rms for run in runs])
    limits = [run.floor.quantile(0.999, np.random.default_rng(0)) for run in runs]
    pooled = [float(np.sqrt(np.mean(np.square(values)))) for values in (rms, best)]
    return {
        "case": case,
        "fit": fit,
        "program": program,
        "seeds": seeds,
        "rms": pooled[0],
        "floor": pooled[1],
        "ratio": pooled[0] / pooled[1],
        "worst": float(np.max(rms / limits)),
    } | {key: float(np.median([r.get(key, np.nan) for r in results])) for key in COSTS}


def table(options: argparse.Namespace) -> list[dict]:
    """All rows, printed one by one as they come."""
    rows = []
    for case in options.cases:
        for fit in options.fits:
            for program in options.programs or ["ours", *options.against]:
                if fit != "level" and program in LEVELS_ONLY:
                    continue
                seeds = CASES[case].our_seeds if program == "ours" else CASES[case].rival_seeds
                rows.append(row(case, fit, program, options.seeds or seeds, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def names(allowed: tuple[str, ...]):
    """Parser of a comma-separated list."""

    def parse(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        unknown = sorted(set(found) - set(allowed))
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(allowed)}")
        return found

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=names(tuple(SCRIPTS)), default=[], help="rivals to run after ours")
    parser.add_argument("--programs", type=names((*OURS, *SCRIPTS)), help="exactly these, instead of --against")
    parser.add_argument("--rivals-root", type=Path, help="folder of environments named like the rivals")
    parser.add_argument("--work", type=Path, default=Path("level_accuracy"), help="keeps inputs and rivals' results")
    parser.add_argument("--seeds", type=int, help="instead of each case's own number")
    parser.add_argument("--cases", type=names(tuple(CASES)), default=list(CASES))
    parser.add_argument("--fits", type=names(FITS), default=list(FITS))
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.rivals_root = options.rivals_root and options.rivals_root.absolute()
    report(table(options))


if __name__ == "__main__":
    main()
