"""Errors, time and memory of MRSIMatchStep beside the step that jwst had until 1.19.2.

    python benchmarks/mrs.py --against mrs_imatch --rivals-root ENVIRONMENTS

rivals/README.md tells how to make ENVIRONMENTS/mrs_imatch. MRS exposures of known backgrounds are written there, as
older versions of jwst cannot open newer files; both steps read them and fit channel 1.

``rms`` is the rms error over all seeds (MJy/sr) of the backgrounds minus their mean over the exposures that see a
place, at the places that all exposures see (mrs_floor.py); ``floor`` is the smallest possible with a free sky and no
sources. ``seconds``, ``cpu_seconds``, ``step_cpu_seconds`` (without start and reading) and ``memory_MB`` (peak
resident) are medians over the seeds. Inputs and the rival's results stay in ``--work``.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from _common import report  # first: it sets the number of BLAS threads
from level_accuracy import measure, names
from mrs_floor import CELL, PLACE, Cells, cells, common, floor, pixels, relative_rms

from bkgmatch.steps.simulated_mrs import MRSScene, MRSTruth, read_truth

CHANNEL = "1"
SCRIPTS = {"mrs_imatch": Path(__file__).resolve().parent / "rivals" / "mrs_imatch.py"}
HARD = {"gradient": 3.0, "extended": (300.0, 0.8), "lines": ((5.05, 150.0), (5.34, 300.0), (5.51, 80.0))}
CASES = {f"N={n}": MRSScene(n_exposures=n) for n in (2, 4, 8, 12)}
CASES |= {"degree 2": MRSScene(degree=2), "hard": MRSScene(**HARD)}
COSTS = ("seconds", "cpu_seconds", "step_cpu_seconds", "memory_MB")

MAKE = """
import json, sys
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures
write_mrs_exposures(MRSScene(**json.loads(sys.argv[1])), sys.argv[2])
"""

OURS = """
import json, sys, time
from pathlib import Path
from bkgmatch import MRSIMatchStep
association, out, degree, channel = sys.argv[1:]
start = time.process_time()
models = MRSIMatchStep.call(association, bkg_degree=int(degree), channel=[channel])
result = {"step_cpu_seconds": time.process_time() - start, "status": {}, "polynomials": {}}
keys = "degree", "refpoint", "coefficients"
for model in models:
    found = model.meta.background.polynomial_info
    name = model.meta.filename
    result["status"][name] = model.meta.cal_step.instance.get("mrs_imatch")
    result["polynomials"][name] = {p.channel: {key: list(getattr(p, key)) for key in keys} for p in found}
Path(out).write_text(json.dumps(result))
"""


@dataclass(frozen=True)
class Run:
    """Files of one scene, its truth, and where errors are evaluated."""

    folder: Path
    degree: int
    truth: MRSTruth
    places: Cells
    floor: float

    @classmethod
    def prepare(cls, folder: Path, scene: MRSScene, python: Path) -> "Run":
        """Simulate, or take what is in the working folder."""
        kept = folder / "places.npz"
        if not kept.exists():
            simulate_into(folder, scene, python)
        with np.load(kept) as file:
            places = Cells(*(file[name] for name in Cells.__annotations__))
            return cls(folder, scene.degree, read_truth(folder / "in" / "truth.json"), places, float(file["floor"]))

    def rms(self, polynomials: dict) -> float:
        """Rms error of polynomials by file name and channel."""
        sky = self.places.ra, self.places.dec, self.places.wavelength
        error = [
            evaluate(polynomials[name][CHANNEL], *sky) - self.truth.background(n, CHANNEL, *sky)
            for n, name in enumerate(self.truth.names)
        ]
        return relative_rms(np.array(error), self.places)


def simulate_into(folder: Path, scene: MRSScene, python: Path) -> None:
    """Write exposures, the places common to them, and the floor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([python, "-c", MAKE, json.dumps(asdict(scene)), folder / "in"], check=True)
    exposures = [pixels(path, CHANNEL) for path in sorted((folder / "in").glob("*_cal.fits"))]
    places = common(cells(exposures, PLACE))
    best = floor(cells(exposures, CELL), places, scene.degree)
    np.savez(folder / "places.npz", **vars(places), floor=best)


def evaluate(polynomial: dict, ra: np.ndarray, dec: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """Values of a polynomial in the form of meta.background.polynomial_info."""
    ra0, dec0, wavelength0 = polynomial["refpoint"]
    coefficients = np.reshape(polynomial["coefficients"], np.add(polynomial["degree"], 1))
    east = np.mod(ra - ra0 + 180, 360) - 180
    return np.polynomial.polynomial.polyval3d(east, dec - dec0, wavelength - wavelength0, coefficients)


def run_ours(run: Run) -> dict:
    """Run MRSIMatchStep in a process of its own."""
    out = run.folder / "ours.json"
    command = [sys.executable, "-c", OURS, run.folder / "in" / "mrs_asn.json", out, str(run.degree), CHANNEL]
    return measure(command, run.folder / "ours.log") | json.loads(out.read_text())


def run_rival(run: Run, name: str, python: Path) -> dict:
    """Run a rival unless its result is there."""
    kept, found = run.folder / f"{name}.json", run.folder / f"{name}.found.json"
    if not kept.exists():
        command = [python, SCRIPTS[name], run.folder / "in", found]
        command += [f"--degree={run.degree}", f"--channels={CHANNEL}"]
        kept.write_text(json.dumps(measure(command, run.folder / f"{name}.log") | json.loads(found.read_text())))
    return json.loads(kept.read_text())


def row(case: str, program: str, options: argparse.Namespace) -> dict:
    """Run one program on the seeds of a case."""
    runs = [
        Run.prepare(options.work / case.replace(" ", "_") / str(seed), replace(CASES[case], seed=seed), options.python)
        for seed in options.seeds
    ]
    results = [run_ours(run) if program == "ours" else run_rival(run, program, options.python) for run in runs]
    rms = [run.rms(result["polynomials"]) for run, result in zip(runs, results, strict=True)]
    pooled = [float(np.sqrt(np.mean(np.square(values)))) for values in (rms, [run.floor for run in runs])]
    return {"case": case, "program": program, "rms": pooled[0], "floor": pooled[1]} | {
        key: float(np.median([result[key] for result in results])) for key in COSTS
    }


def table(options: argparse.Namespace) -> list[dict]:
    """All rows, printed one by one as they come; the first program of a case is what others are compared with."""
    rows = []
    for case in options.cases:
        first = None
        for program in options.programs or ["ours", *options.against]:
            found = row(case, program, options)
            first = first or found
            ratios = {f"{key}_ratio": found[key] / first[key] for key in ("rms", "cpu_seconds", "memory_MB")}
            rows.append(found | ratios)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=names(tuple(SCRIPTS)), default=[], help="rivals to run after ours")
    parser.add_argument("--programs", type=names(("ours", *SCRIPTS)), help="exactly these, instead of --against")
    parser.add_argument("--rivals-root", type=Path, help="folder of environments named like the rivals")
    parser.add_argument("--work", type=Path, default=Path("mrs"), help="keeps inputs and the rival's results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cases", type=names(tuple(CASES)), default=list(CASES))
    options = parser.parse_args()
    options.work = options.work.absolute()
    root = options.rivals_root
    options.python = root.absolute() / "mrs_imatch" / "bin" / "python" if root else Path(sys.executable)
    report(table(options))


if __name__ == "__main__":
    main()
