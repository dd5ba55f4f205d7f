"""What the rivals share: reading the association, FITS headers, corrections on a grid of pixels, and the JSON file.

Only astropy, numpy and jwst are needed: the environments of the rivals have no bkgmatch.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

BAD = 1 | 512  # DO_NOT_USE, NON_SCIENCE
GRID = np.linspace(0.05, 0.95, 5)  # of the width and the height, in pixels from 0

# Matches and writes its results, given the input files, their parent folder and the fit. Returns a function that
# evaluates them afterwards: for each input file's name its 5 x 5 correction.
Rival = Callable[[list[Path], Path, str], Callable[[], dict[str, np.ndarray]]]


def members(association: Path) -> list[Path]:
    """The science files of an association."""
    product = json.loads(association.read_text())["products"][0]
    return [association.parent / m["expname"] for m in product["members"] if m["exptype"] == "science"]


def add_fits_wcs(source: Path, target: Path) -> None:
    """Copy a file and give it the SIP approximation that jwst's assign_wcs writes into real files."""
    if "CRVAL1" in fits.getheader(source, "SCI"):
        shutil.copyfile(source, target)
        return
    from jwst.assign_wcs.util import update_fits_wcsinfo
    from stdatamodels.jwst.datamodels import ImageModel

    with ImageModel(source) as model, warnings.catch_warnings():
        # The fit of the inverse stops at about 0.04 pixel; the forward one is good to 1e-6.
        warnings.simplefilter("ignore")
        update_fits_wcsinfo(model, max_pix_error=0.01, npoints=32)
        model.save(target)


def fits_wcs(path: Path) -> WCS:
    """The SIP approximation of a file."""
    header = fits.getheader(path, "SCI")
    for key in ("A_DMAX", "B_DMAX"):
        header.remove(key, ignore_missing=True)
    return WCS(header)


def good_data(path: Path) -> np.ndarray:
    """The image with NaN in place of unusable pixels."""
    with fits.open(path) as file:
        return np.where(file["DQ"].data & BAD, np.nan, file["SCI"].data.astype(float))


def grid_pixels(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the 5 x 5 pixels, rows along y."""
    return np.meshgrid(GRID * shape[1], GRID * shape[0])


def _terms(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    return np.stack([x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)], axis=-1)


def smooth_at(values: np.ndarray, x: np.ndarray, y: np.ndarray, degree: int = 3) -> np.ndarray:
    """A polynomial fitted to an image (finite pixels), evaluated at pixels x, y."""
    rows, columns = np.nonzero(np.isfinite(values))
    step = max(1, len(rows) // 40000)
    rows, columns = rows[::step], columns[::step]
    ny, nx = values.shape
    design = _terms(columns / nx - 0.5, rows / ny - 0.5, degree)
    coefficients = np.linalg.lstsq(design, values[rows, columns], rcond=None)[0]
    return _terms(x / nx - 0.5, y / ny - 0.5, degree) @ coefficients


def subtracted(before: Path, after: Path) -> np.ndarray:
    """What a program subtracted, on the 5 x 5 grid, from its input and its output file."""
    data = good_data(before)
    with fits.open(after) as file:
        difference = data - file["SCI"].data
    return smooth_at(difference, *grid_pixels(data.shape))


def run(rival: Rival) -> None:
    """Command line of every rival: ASSOCIATION OUT.json [--fit level|level+slope].

    ``apart_seconds`` is the time for what is no part of the rival: headers before it, evaluation after it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("association", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fit", choices=["level", "level+slope"], default="level")
    options = parser.parse_args()
    out = options.out.resolve()
    with tempfile.TemporaryDirectory(prefix="rival_") as name:
        folder = Path(name)
        start = time.perf_counter()
        (folder / "in").mkdir()
        files = []
        for source in members(options.association.resolve()):
            files.append(folder / "in" / source.name)
            add_fits_wcs(source, files[-1])
        os.chdir(folder)
        begin = time.perf_counter()
        evaluate = rival(files, folder, options.fit)
        end = time.perf_counter()
        corrections = {name: np.asarray(grid).tolist() for name, grid in evaluate().items()}
        apart = time.perf_counter() - end + begin - start
    out.write_text(json.dumps({"fit": options.fit, "apart_seconds": apart, "corrections": corrections}))
