"""reproject's reproject_and_coadd(match_background=True): levels only.

    python reproject_coadd.py ASSOCIATION OUT.json [--fit level]

It returns a mosaic and not the corrections, so its solver is wrapped to keep them.
"""

from pathlib import Path

import numpy as np
from _files import fits_wcs, good_data, run
from astropy.io import fits


def coadd(files: list[Path], folder: Path, fit: str):
    """Match and co-add, and write the mosaic."""
    if fit != "level":
        raise SystemExit("reproject matches levels only")
    from reproject import reproject_interp
    from reproject.mosaicking import _coadd, find_optimal_celestial_wcs

    solve, kept = _coadd.solve_corrections_sgd, []

    def solve_and_keep(*args, **kwargs):
        kept.append(solve(*args, **kwargs))
        return kept[-1]

    _coadd.solve_corrections_sgd = solve_and_keep
    np.random.seed(1)  # noqa: NPY002 - it uses the global generator
    images = [(good_data(file), fits_wcs(file)) for file in files]
    wcs, shape = find_optimal_celestial_wcs([(data.shape, w) for data, w in images], auto_rotate=True)
    mosaic, _ = _coadd.reproject_and_coadd(
        images, wcs, shape_out=shape, reproject_function=reproject_interp, match_background=True
    )
    fits.writeto(folder / "mosaic.fits", mosaic, wcs.to_header())
    return lambda: {file.name: np.full((5, 5), level) for file, level in zip(files, kept[0], strict=True)}


if __name__ == "__main__":
    run(coadd)
