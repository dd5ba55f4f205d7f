"""What the benchmarks share: exposures for both programs, timing, and printing."""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from bkgmatch.exposures import Exposure
from bkgmatch.simulate import SimulatedExposure


def our_exposures(simulated: Sequence[SimulatedExposure]) -> list[Exposure]:
    """Exposures for bkgmatch; the WCS is called as stcal calls it, without its bounding box."""
    return [
        Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good, group=e.group)
        for e in simulated
    ]


def rival_images(simulated: Sequence[SimulatedExposure], **statistic: object) -> list:
    """SkyImage objects for stcal."""
    from stcal.skymatch import SkyImage, SkyStats

    skystat = SkyStats(**statistic)
    return [SkyImage(e.data, e.good, e.wcs.__call__, e.wcs.invert, skystat, sky_id=e.name) for e in simulated]


def rival_levels(simulated: Sequence[SimulatedExposure], **statistic: object) -> np.ndarray:
    """Levels by stcal's skymatch, method ``match``."""
    from stcal.skymatch import skymatch

    images = rival_images(simulated, **statistic)
    skymatch(images, "match")
    return np.array([image.sky for image in images])


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Wall-clock seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def centred_error(levels: np.ndarray, true: np.ndarray) -> float:
    """Rms of levels minus truth, after removal of the zero point."""
    error = levels - true
    return float(np.std(error))


def report(rows: list[dict]) -> None:
    """Print one JSON line per case, then a table."""
    for row in rows:
        print(json.dumps(row))
    columns = list(rows[0])
    text = [
        [f"{row.get(c, ''):.4g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        for row in rows
    ]
    widths = [max(len(c), *(len(line[k]) for line in text)) for k, c in enumerate(columns)]
    for line in [columns, *text]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
