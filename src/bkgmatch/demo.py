"""The demonstration: a small mosaic of known levels, matched as a user would."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy.table import Table

from bkgmatch.simulate import SimulatedExposure, preview, simulate_mosaic
from bkgmatch.written import check_folder, whole_file

__all__ = ["run_demo"]


def run_demo(folder: Path, *, seed: int = 1) -> float:
    """
    Simulate a mosaic, match it with ``strun``, and compare with the truth.

    Parameters
    ----------
    folder : Path
        Where to leave the exposures, the results and a picture.
    seed : int
        Seed of the simulation.

    Returns
    -------
    float
        The largest error of a level, in units of its quoted standard error.
    """
    from bkgmatch.steps.simulated import write_exposures

    check_folder(folder)
    exposures = simulate_mosaic(rng=np.random.default_rng(seed), tiles=(2, 3), dithers=4, binning=4)
    print(f"Simulating {len(exposures)} NIRCam-like exposures in {folder}")
    association = write_exposures(exposures, folder / "exposures")
    can_draw = find_spec("matplotlib") is not None
    levels = _match(association, folder, report=can_draw)
    worst = _compare(exposures, levels)
    if not can_draw:
        print("No picture and no report: these need matplotlib (pip install 'bkgmatch[plot]')")
        return worst
    picture = folder / "before_after.png"
    draw_before_after(exposures, dict(zip(levels["name"], levels["level"], strict=True)), picture)
    print(f"Picture: {picture}")
    print(f"Report: {folder / 'levels.html'} (open it in a browser)")
    return worst


def _match(association: Path, folder: Path, *, report: bool) -> Table:
    table = folder / "levels.ecsv"
    command = [
        str(Path(sys.executable).with_name("strun")),
        "bkgmatch.SkyMatchStep",
        str(association),
        "--subtract=true",
        "--save_results=true",
        f"--output_dir={folder / 'matched'}",
        f"--save_table={table}",
        f"--report={report}".lower(),
        "--log-level=WARNING",
    ]
    print("$ strun " + " ".join(command[1:]), flush=True)
    _run(command)
    return Table.read(table, format="ascii.ecsv")


def _run(command: Sequence[str]) -> None:
    """Run a command; if this process is told to end, it ends the command and waits until that has tidied up."""
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _compare(exposures: Sequence[SimulatedExposure], levels: Table) -> float:
    """Print true and recovered levels, relative to their means; return the worst error in sigmas."""
    true = {f"{e.name}_cal.fits": e.level for e in exposures}
    truth = np.array([true[name] for name in levels["name"]])
    truth -= truth.mean()
    recovered = np.asarray(levels["level"]) - np.mean(levels["level"])
    pulls = (recovered - truth) / levels["sigma"]
    print(f"\n{'exposure':42s} {'true':>9s} {'recovered':>10s} {'sigma':>9s} {'error/sigma':>12s}")
    for row in zip(levels["name"], truth, recovered, levels["sigma"], pulls, strict=True):
        print("{:42s} {:9.5f} {:10.5f} {:9.2g} {:12.2f}".format(*row))
    worst = float(np.abs(pulls).max())
    print("\nLevels in MJy/sr, relative to their mean. ", end="")
    print(f"Worst error {worst:.1f} sigma, rms error {np.std(recovered - truth):.2g} MJy/sr.")
    return worst


def draw_before_after(exposures: Sequence[SimulatedExposure], levels: dict[str, float], path: Path) -> None:
    """
    Draw the mosaic as it came and with the levels subtracted, in the same stretch.

    Parameters
    ----------
    exposures : sequence of SimulatedExposure
        Exposures.
    levels : dict
        Level by file name.
    path : Path
        PNG file to write.
    """
    from matplotlib.figure import Figure

    before, extent = preview(exposures)
    after, _ = preview(exposures, [levels[f"{e.name}_cal.fits"] for e in exposures])
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    depth = np.subtract(*np.nanpercentile(before, [97, 1]))
    for ax, image, title in zip(axes, (before, after), ("as observed", "matched by SkyMatchStep"), strict=True):
        middle = np.nanpercentile(image, 30)
        shown = ax.imshow(
            image, origin="lower", extent=extent, cmap="viridis", vmin=middle - depth / 2, vmax=middle + depth
        )
        ax.set(title=title, xlabel="east offset (arcsec)")
        figure.colorbar(shown, ax=ax, shrink=0.8, label="MJy/sr")
    axes[0].set_ylabel("north offset (arcsec)")
    with whole_file(path) as part:
        figure.savefig(part, dpi=110)
