"""Montage (MontagePy): mProject, mOverlaps, mDiffExec, mFitExec, mBgModel, mBgExec, with their defaults.

    python montage.py ASSOCIATION OUT.json [--fit level|level+slope]

It corrects the projected images; the correction of a pixel is that at its position on the sky.
"""

import warnings
from pathlib import Path

import numpy as np
from _files import fits_wcs, good_data, grid_pixels, run, smooth_at
from astropy.io import fits
from astropy.wcs import WCS


def export(file: Path, target: Path) -> None:
    """Write a single image, NaN in place of unusable pixels, with a CD matrix: Montage overlooks PC."""
    wcs = fits_wcs(file)
    header = wcs.to_header(relax=True)
    for name in ("PC1_1", "PC1_2", "PC2_1", "PC2_2", "CDELT1", "CDELT2"):
        header.remove(name, ignore_missing=True)
    for i, j in np.ndindex(2, 2):
        header[f"CD{i + 1}_{j + 1}"] = wcs.pixel_scale_matrix[i, j]
    fits.writeto(target, good_data(file).astype(np.float32), header)


def call(function, *args, **kwargs) -> dict:
    """Call a Montage tool and stop at its errors."""
    answer = function(*args, **kwargs)
    if answer["status"] not in (0, "0"):
        raise SystemExit(f"{function.__name__}: {answer}")
    return answer


def montage(files: list[Path], folder: Path, fit: str):
    """Project, match and correct all images."""
    from MontagePy import main as tools

    raw, projected, differences, corrected = (folder / n for n in ("raw", "projected", "differences", "corrected"))
    for path in (raw, projected, differences, corrected):
        path.mkdir()
    for file in files:
        export(file, raw / file.name)
    level_only = fit == "level"
    raw_table, table, header, pairs, fits_table, corrections = (
        str(folder / n) for n in ("raw.tbl", "images.tbl", "region.hdr", "diffs.tbl", "fits.tbl", "corrections.tbl")
    )
    call(tools.mImgtbl, str(raw), raw_table)
    call(tools.mMakeHdr, raw_table, header)
    call(tools.mProjExec, str(raw), raw_table, header, projdir=str(projected), exact=True)
    call(tools.mImgtbl, str(projected), table)
    call(tools.mOverlaps, table, pairs)
    call(tools.mDiffExec, str(projected), pairs, header, str(differences))
    call(tools.mFitExec, pairs, fits_table, str(differences), levelOnly=level_only)
    call(tools.mBgModel, table, fits_table, corrections, noslope=level_only)
    call(tools.mBgExec, str(projected), table, corrections, str(corrected))
    return lambda: {f.name: on_grid(f, find(projected, f), find(corrected, f)) for f in files}


def find(folder: Path, file: Path) -> Path:
    """The image made of a file, whose name may have a prefix."""
    return next(p for p in folder.iterdir() if p.name.endswith(file.name))


def on_grid(file: Path, before: Path, after: Path) -> np.ndarray:
    """The correction at the sky positions of the 5 x 5 pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sky = fits_wcs(file).pixel_to_world_values(*grid_pixels(good_data(file).shape))
        x, y = WCS(fits.getheader(before)).world_to_pixel_values(*sky)
    return smooth_at(fits.getdata(before).astype(float) - fits.getdata(after), x, y, degree=1)


if __name__ == "__main__":
    run(montage)
