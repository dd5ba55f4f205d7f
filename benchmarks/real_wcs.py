"""Match exposures that have the WCS of real ones over a real nebula, through strun.

    python benchmarks/real_wcs.py --wcs FOLDER --scene IMAGE.fits --out FOLDER

``--wcs`` holds ASDF files with a ``wcs`` each (for example from a data release with tweakreg solutions); ``--scene`` is
any FITS image, stretched under the whole mosaic. Each exposure gets a random level, noise, cosmic rays and bad pixels.
The connected sets are counted independently, with spherical polygons of the detector corners.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import asdf
import numpy as np
from _common import report  # first: it sets the number of BLAS threads
from astropy.io import fits
from astropy.table import Table
from scipy.ndimage import map_coordinates
from scipy.sparse.csgraph import connected_components
from spherical_geometry.polygon import SphericalPolygon
from stdatamodels.jwst.datamodels import ImageModel

SHAPE = (2048, 2048)
NOISE = 0.02


def read_wcs(folder: Path) -> dict:
    """WCS of each file, by the name of its exposure."""
    found = {}
    for path in sorted(folder.glob("*.asdf")):
        with asdf.open(path, lazy_load=False, memmap=False) as tree:
            found[path.stem.removesuffix("_tweakreg")] = tree["wcs"]
    return found


def outlines(wcs: dict) -> list[SphericalPolygon]:
    """Spherical polygons of the detector corners."""
    x, y = np.array([0, SHAPE[1], SHAPE[1], 0, 0]) - 0.5, np.array([0, 0, SHAPE[0], SHAPE[0], 0]) - 0.5
    return [SphericalPolygon.from_radec(*w(x, y, with_bounding_box=False)) for w in wcs.values()]


def count_components(polygons: list[SphericalPolygon]) -> tuple[int, np.ndarray]:
    """Number of connected sets of overlapping outlines, and the set of each."""
    touch = [[one.intersects_poly(two) for two in polygons] for one in polygons]
    return connected_components(np.array(touch))


def sky_position(wcs, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sky position of all pixels, a band of rows at a time."""
    x = np.arange(shape[1])
    bands = [wcs(*np.meshgrid(x, np.arange(y, y + 128))) for y in range(0, shape[0], 128)]
    return tuple(np.concatenate(part) for part in zip(*bands, strict=True))


def make_exposures(wcs: dict, scene: np.ndarray, folder: Path, rng: np.random.Generator) -> dict[str, float]:
    """Write exposures and an association; return the true levels."""
    positions = {name: sky_position(w, SHAPE) for name, w in wcs.items()}
    low, high = (np.array([f([f(p[k]) for p in positions.values()]) for k in (0, 1)]) for f in (np.nanmin, np.nanmax))
    true, members = {}, []
    for name, (ra, dec) in positions.items():
        row = (dec - low[1]) / (high[1] - low[1]) * (scene.shape[0] - 1)
        column = (ra - low[0]) / (high[0] - low[0]) * (scene.shape[1] - 1)
        level = rng.uniform(0.2, 1.0)
        data = map_coordinates(scene, [row, column], order=1, mode="nearest") + level + rng.normal(0, NOISE, SHAPE)
        hit = rng.random(SHAPE) < 0.003
        data[hit] += rng.exponential(1.0, hit.sum())
        model = ImageModel(data.astype(np.float32))
        model.dq = (rng.random(SHAPE) < 0.005).astype(np.uint32)
        model.data[model.dq > 0] = np.nan
        model.meta.wcs = wcs[name]
        describe(model, name)
        model.save(folder / f"{name}_cal.fits")
        true[f"{name}_cal.fits"] = level
        members.append({"expname": f"{name}_cal.fits", "exptype": "science"})
    products = [{"name": "real", "members": members}]
    (folder / "asn.json").write_text(json.dumps({"asn_type": "image3", "asn_id": "c1000", "products": products}))
    return true


def describe(model: ImageModel, name: str) -> None:
    """Observation metadata from the file name; each detector is matched on its own."""
    root, part, number, _ = name.split("_")
    model.meta.observation = {
        "program_number": root[2:7],
        "observation_number": root[7:10],
        "visit_number": root[10:13],
        "visit_group": part[:2],
        "sequence_id": part[2],
        "activity_id": part[3:],
        "exposure_number": number,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wcs", type=Path, required=True)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("real_wcs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wcs = read_wcs(options.wcs)
    expected, members = count_components(outlines(wcs))
    scene = fits.getdata(options.scene).astype(float)
    scene = np.nan_to_num(scene - np.nanmedian(scene)) / 30
    true = make_exposures(wcs, scene, options.out, np.random.default_rng(8))
    rows = []
    for skystat in ("mode", "median"):
        table = options.out / f"{skystat}.ecsv"
        subprocess.run(
            [
                Path(sys.executable).with_name("strun"),
                "bkgmatch.SkyMatchStep",
                options.out / "asn.json",
                "--level_per=detector",
                f"--skystat={skystat}",
                f"--save_table={table}",
            ],
            check=True,
        )
        levels = Table.read(table, format="ascii.ecsv")
        pulls, errors = np.zeros(len(levels)), np.zeros(len(levels))
        for component in np.unique(levels["component"]):
            inside = np.flatnonzero(levels["component"] == component)
            error = np.array(levels["level"][inside]) - [true[name] for name in levels["name"][inside]]
            errors[inside] = error - error.mean()
            pulls[inside] = errors[inside] / levels["sigma"][inside]
        found = [sorted(levels["name"][levels["component"] == c]) for c in np.unique(levels["component"])]
        names = np.array([f"{name}_cal.fits" for name in wcs])
        right = sorted(found) == sorted(sorted(names[members == c]) for c in range(expected))
        rows.append(
            {
                "name": f"{len(wcs)} real WCS, {skystat}",
                "ours": float(np.std(errors)),
                "worst_sigma": float(np.abs(pulls).max()),
                "components": len(found),
                "expected": int(expected),
                "agreement": bool(right),
            }
        )
    report(rows)


if __name__ == "__main__":
    main()
