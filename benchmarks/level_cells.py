"""Time and agreement of our bilinear resampling beside reproject's functions.

    python benchmarks/level_cells.py

A NIRCam exposure of 1024^2 pixels is put onto the common grid of a mosaic. ``seconds`` are medians of five runs,
``ratio`` is to ours, ``agreement`` the rms difference of the values in units of the noise of a pixel: methods smooth
differently.
"""

from functools import partial

import numpy as np
from _common import report, timed  # first: it sets the number of BLAS threads
from reproject import reproject_interp

from bkgmatch.cells import CutOut, place
from bkgmatch.exposures import Pixels
from bkgmatch.footprints import footprint
from bkgmatch.grids import common_grid
from bkgmatch.reprojected import SkyWcs
from bkgmatch.simulate import simulate_mosaic


def main() -> None:
    simulated = simulate_mosaic(rng=np.random.default_rng(1), tiles=(1, 2), dithers=2, binning=2, bad_pixels=0.0)
    wcs = [partial(e.wcs, with_bounding_box=False) for e in simulated]
    outlines = [footprint(e.good, w) for e, w in zip(simulated, wcs, strict=True)]
    grid, e = common_grid(outlines), simulated[-1]
    pixels = Pixels(e.data, e.good, e.err**2)

    def ours(method: str) -> CutOut:
        return place(pixels, outlines[-1], wcs[-1], grid, reproject_func=method)

    cells = ours("interp")
    image = np.where(e.good, e.data, np.nan)
    header = grid.header(np.array([cells.x, cells.y]))

    def interp() -> np.ndarray:
        source = SkyWcs(wcs[-1], outlines[-1])
        return reproject_interp((image, source), header, shape_out=cells.value.shape, order="bilinear")[0]

    programs = {
        "ours": lambda: ours("interp").value,
        "reproject_interp": interp,
        "reproject_exact": lambda: ours("exact").value,
        "reproject_adaptive": lambda: ours("adaptive").value,
    }
    rows = []
    for name, program in programs.items():
        runs = [timed(program) for _ in range(5)]
        difference = np.asarray(runs[0][1]) - cells.value
        seconds = float(np.median([seconds for seconds, _ in runs]))
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "ratio": seconds / rows[0]["seconds"] if rows else 1.0,
                "agreement": float(np.nanstd(difference) / np.median(e.err)),
            }
        )
    report(rows)


if __name__ == "__main__":
    main()
