"""Picture of ImageForImageStep: an exposure, and the mosaic of all, before and after.

    python benchmarks/image_for_image_pictures.py [--out image_for_image.png] [--dithers 12] [--binning 1]

Simulated MIRI exposures are written as JWST files and go through the step; the mosaics are plain means on one grid.
"""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import _common  # noqa: F401  first: it sets the number of BLAS threads
import matplotlib
import numpy as np
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep
from bkgmatch.mosaics import Canvas
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated import write_exposures

matplotlib.use("Agg")
from matplotlib import pyplot

SEED, EXTENDED = 3, (0.6, 6.0)


def read(files: list[Path]) -> tuple[list[np.ndarray], list]:
    """Images, NaN where they are flagged, and WCS."""
    images, wcss = [], []
    for file in files:
        with datamodels.open(file) as model:
            images.append(np.where(model.dq & 1, np.nan, model.data).astype(np.float32))
            wcss.append(partial(model.meta.wcs, with_bounding_box=False))
    return images, wcss


def mosaic(images: list[np.ndarray], wcss: list) -> np.ndarray:
    """Mean of the exposures, less their medians."""
    flat = [image - np.nanmedian(image) for image in images]
    return Canvas.of(wcss, flat[0].shape)[0].mosaic(flat.__getitem__, noise=1.0).image


def draw(panels: list[tuple[str, np.ndarray, float]], path: Path) -> None:
    """Draw pictures in pairs, each pair with the same stretch."""
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 8.6), layout="constrained")
    for axis, (title, image, half) in zip(axes.flat, panels, strict=True):
        middle = np.nanmedian(image)
        axis.imshow(image, origin="lower", cmap="gray", vmin=middle - half / 2, vmax=middle + half)
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("image_for_image.png"))
    parser.add_argument("--dithers", type=int, default=12)
    parser.add_argument("--binning", type=int, default=1)
    options = parser.parse_args()
    settings = {"dithers": options.dithers, "binning": options.binning, "extended": EXTENDED}
    with TemporaryDirectory() as place:
        folder = Path(place)
        asn = write_exposures(simulate_dithers(rng=np.random.default_rng(SEED), **settings).exposures, folder)
        ImageForImageStep.call(str(asn), save_results=True, output_dir=str(folder))
        before, after = (read(sorted(folder.glob(f"*_{suffix}.fits"))) for suffix in ("cal", "i4i"))
        panels = [
            ("one exposure", before[0][0], 1.5),
            ("one exposure, background subtracted", after[0][0], 1.5),
            (f"mosaic of {options.dithers}", mosaic(*before), 0.6),
            (f"mosaic of {options.dithers}, backgrounds subtracted", mosaic(*after), 0.6),
        ]
        draw(panels, options.out)
    print(f"{options.out} written")


if __name__ == "__main__":
    main()
