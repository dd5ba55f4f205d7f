"""Memory of the steps against the number of exposures, through strun with ``in_memory=False``.

    python benchmarks/memory.py [--numbers 10 20 40] [--side 2048] [--steps skymatch level_match ...]

NIRCam exposures with all planes of a cal file are simulated one after the other into ``--work``: ``strip``, each with
40 % of its field in common with the next, and ``dithers`` of one field; and exposures of MIRI MRS, whose size is always
1024 x 1032. A run gets the first so many of them; in ``dithers`` they cover as large a field whatever their number. Its
results are deleted before the next.

``peak_MB`` is the peak resident memory of strun as the kernel counts it, pages of memory-mapped files included, which
it can drop at any time; ``anonymous_MB`` and ``file_MB`` are the peaks of what is no file and of what is one, sampled
every 50 ms (only on Linux). ``growth`` is the factor of the first two since the smallest number of exposures. The
benchmark fails if results or tables are missing, or if anything is left in the temporary or the working folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import report  # first: it sets the number of BLAS threads

from bkgmatch.associations import association, relative_to, write_association
from bkgmatch.detectors import Detector
from bkgmatch.scenes import Scene, make_scene
from bkgmatch.simulate import SimulatedExposure, pointings, simulate_mosaic
from bkgmatch.simulate_dithers import SourceField
from bkgmatch.steps.simulated import as_model
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures

CENTER = (150.0, 2.2)
CHIP = Detector.named("NRCALONG")
OVERLAP, DITHER_STEP = 0.4, 6.0
ARCSEC2_PER_SOURCE = 60.0
PLANES = "--fit_type_dithers=level+slope", "--fit_type_mosaic_tiles=level+slope"
STEPS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "skymatch": ("SkyMatchStep", ("--subtract=true",), ["strip", "dithers"]),
    "level_match": ("LevelMatchStep", PLANES, ["strip", "dithers"]),
    "image_for_image": ("ImageForImageStep", (), ["dithers"]),
    "mrs_imatch": ("MRSIMatchStep", ("--subtract=true", "--skip=false"), ["mrs"]),
}

# A small process of its own measures: a child's peak memory counts that of its parent until it has started.
MEASURE = """
import json, os, pathlib, sys, time

def sample(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) / 2**10 for key, value in pairs if key in peaks}

peaks = {"RssAnon": 0.0, "RssFile": 0.0}
start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
done = 0
while not done:
    time.sleep(0.05)
    try:
        now = sample(child)
        peaks = {key: max(now.get(key, 0), peak) for key, peak in peaks.items()}
    except OSError:
        pass
    done, status, used = os.wait4(child, os.WNOHANG)
unit = 2**20 if sys.platform == "darwin" else 2**10
result = {"peak_MB": used.ru_maxrss / unit, "anonymous_MB": peaks["RssAnon"], "file_MB": peaks["RssFile"]}
result["seconds"] = time.perf_counter() - start
pathlib.Path(sys.argv[1]).write_text(json.dumps(result))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def plan(layout: str, number: int, side: int) -> list[tuple[int, int, float, float, float]]:
    """Tile, dither, right ascension, declination and roll of each exposure."""
    size = (side * CHIP.scale, side * CHIP.scale)
    if layout == "strip":
        return pointings(*CENTER, (1, number), 1, size=size, overlap=OVERLAP)
    spiral = pointings(*CENTER, (1, 1), number, size=size, dither_step=DITHER_STEP)
    where = np.array(spiral)[:, 2:4]
    outermost = [*where.argmin(axis=0), *where.argmax(axis=0)]  # come first: the field is as large for all numbers
    return [spiral[i] for i in dict.fromkeys([*outermost, *range(number)])]


def draw_sources(where: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Right ascension, declination and flux of sources in the box about all exposures."""
    margin = side * CHIP.scale / 3600
    low, high = where.min(axis=0) - margin, where.max(axis=0) + margin
    number = round(np.prod(high - low) * 3600**2 / ARCSEC2_PER_SOURCE)
    return np.column_stack([rng.uniform(low, high, (number, 2)), 1 / (1 - rng.random(number) * 0.99)])


def expose(
    pointing: tuple[int, int, float, float, float],
    side: int,
    nebula: Scene,
    sources: np.ndarray,
    rng: np.random.Generator,
) -> SimulatedExposure:
    """Take one exposure of a nebula with sources."""
    tile, dither, ra, dec, roll = pointing
    (plain,) = simulate_mosaic(
        rng=rng,
        tiles=(1, 1),
        dithers=1,
        center=(ra, dec),
        roll=roll,
        jitter=0,
        binning=1,
        shape=(side, side),
        scene=nebula,
        tilt=0.05,
    )
    near = np.abs(sources[:, :2] - (ra, dec)).max(axis=1) < side * CHIP.scale / 3600
    field = SourceField(ra, dec, sources[near], 2.3 * CHIP.scale, CHIP.scale)
    group = f"jw09001{tile + 1:03d}001_02101_{dither + 1:05d}"
    data = plain.data + field.on_pixels(plain.wcs, plain.data.shape)
    return replace(plain, name=f"{group}_nrcalong", group=group, data=data)


def write_file(exposure: SimulatedExposure, number: int, folder: Path) -> Path:
    """Write an exposure with all planes of a cal file."""
    with as_model(exposure, number=number) as model:
        model.var_poisson, model.var_flat = 0.5 * model.var_rnoise, 0.1 * model.var_rnoise
        model.area = np.ones_like(model.data)
        model.save(folder / model.meta.filename)
        return folder / model.meta.filename


def write_images(layout: str, number: int, side: int, folder: Path) -> list[Path]:
    """Simulate exposures and write them, one after the other."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    exposures = plan(layout, number, side)
    where = np.array([one[2:4] for one in exposures])
    sources = draw_sources(where, side, rng)
    nebula = make_scene(*CENTER, 0.7 * side * CHIP.scale, rng, n_stars=0)
    return [write_file(expose(one, side, nebula, sources, rng), i, folder) for i, one in enumerate(exposures)]


def write_mrs(layout: str, number: int, side: int, folder: Path) -> list[Path]:
    """Simulate exposures of MIRI MRS and write them."""
    return write_mrs_exposures(MRSScene(n_exposures=number), folder)[0]


LAYOUTS: dict[str, Callable[[str, int, int, Path], list[Path]]] = {
    "strip": write_images,
    "dithers": write_images,
    "mrs": write_mrs,
}


def strun(step: str, given: Path, out: Path) -> list[str]:
    """The command."""
    name, options, _ = STEPS[step]
    command = [str(Path(sys.executable).with_name("strun")), f"bkgmatch.{name}", str(given), *options]
    command += ["--in_memory=false", "--save_results=true", f"--output_dir={out}", f"--save_table={out / 'table.ecsv'}"]
    return [*command, "--log-level=WARNING"]


def check(out: Path, number: int, *empty: Path) -> None:
    """Raise RuntimeError if results or tables are missing, or something is left in a folder."""
    results = [path for path in out.glob("*.fits") if not path.stem.endswith("i4ibkg")]
    if len(results) != number or not (out / "table.ecsv").exists():
        raise RuntimeError(f"{len(results)} results of {number} in {out}, files {sorted(out.iterdir())}")
    left = [path for folder in empty for path in folder.iterdir()]
    if left:
        raise RuntimeError(f"these files are left behind: {left}")


def run(step: str, files: list[Path], folder: Path) -> dict[str, float]:
    """Run a step on some files, and return what it cost."""
    given = folder / "memory_asn.json"
    kind = "spec3" if step == "mrs_imatch" else "image3"
    members = [{"expname": relative_to(folder, file), "exptype": "science"} for file in files]
    write_association(association("memory", members, kind=kind), given)
    out, temporary, working = (folder / name for name in ("out", "temporary", "working"))
    for path in (out, temporary, working):
        path.mkdir()
    measured = folder / "measured.json"
    command = [sys.executable, "-c", MEASURE, measured, *strun(step, given, out)]
    subprocess.run(command, check=True, cwd=working, env={**os.environ, "TMPDIR": str(temporary)})
    check(out, len(files), temporary, working)
    for path in (out, temporary, working):
        shutil.rmtree(path)
    return json.loads(measured.read_text())


def with_growth(rows: list[dict]) -> list[dict]:
    """Add the growth of the peaks since the smallest number of exposures of the same step and layout."""
    grown = []
    for row in rows:
        first = next(r for r in rows if (r["step"], r["layout"]) == (row["step"], row["layout"]))
        growth = [row[key] / first[key] for key in ("peak_MB", "anonymous_MB")]
        grown.append({**row, "growth": " ".join(f"{value:.2f}" for value in growth)})
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--work", type=Path, help="where to put the files; by default the system's temporary folder")
    options = parser.parse_args()
    numbers = sorted(options.numbers)
    rows: list[dict] = []
    for layout in options.layouts:
        steps = [step for step in options.steps if layout in STEPS[step][2]]
        if not steps:
            continue
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            files = LAYOUTS[layout](layout, numbers[-1], options.side, Path(folder, "in"))
            for step in steps:
                for number in numbers:
                    cost = run(step, files[:number], Path(folder))
                    rows.append({"step": step, "layout": layout, "exposures": number, **cost})
                    print(json.dumps(rows[-1]), flush=True)
    report(with_growth(rows))


if __name__ == "__main__":
    main()
