"""calwebb_spec3 without CRDS, and how far exposures differ in the cube that it builds."""

from pathlib import Path

import numpy as np
import shapely
from jwst.datamodels import ModelContainer
from jwst.pipeline import Spec3Pipeline
from jwst.stpipe import Step
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import IFUCubeModel, IFUImageModel

from bkgmatch import Spec3Pipeline as BkgSpec3Pipeline
from bkgmatch.steps.ifu_models import channel_pixels

OFF = (
    "assign_mtwcs",
    "master_background",
    "adaptive_trace_model",
    "pixel_replace",
    "resample_spec",
    "extract_1d",
    "photom",
    "combine_1d",
    "spectral_leak",
)
CUBE = "cube_ch1-short_s3d.fits"
APART = 4  # spaxels: about the resolution
PARTS = 8  # of the wavelengths


def parameters(cubepar: Path, hooks=(), **cube_build) -> dict:
    """Parameters of the steps: all are off but outlier_detection, which has pre-hooks, and cube_build of channel 1."""
    return {name: {"skip": True} for name in OFF} | {
        "outlier_detection": {"kernel_size": "3 3", "pre_hooks": list(hooks)},
        "cube_build": {"override_cubepar": str(cubepar), "channel": "1", **cube_build},
    }


def build_cube(association: Path, folder: Path, hooks=(), **cube_build) -> IFUCubeModel:
    """Run jwst's pipeline; CRDS_PATH must point to an empty cache."""
    steps = parameters(association.with_name("cubepar.fits"), hooks, **cube_build)
    Spec3Pipeline.call(str(association), steps=steps, output_dir=str(folder), save_results=True)
    return datamodels.open(folder / CUBE)


class Catch(Step):
    """A hook that keeps what it gets."""

    spec = ""
    caught = None

    def process(self, models):
        Catch.caught = models
        return models


def to_outlier_detection(models, cls=BkgSpec3Pipeline, hooks=(), **mrs_imatch):
    """What comes to outlier_detection; it and what follows are off."""
    steps = parameters("none", [*hooks, Catch])
    steps["outlier_detection"]["skip"] = steps["cube_build"]["skip"] = True
    Catch.caught = None
    cls.call(models, steps=steps | ({"mrs_imatch": mrs_imatch} if mrs_imatch else {}))
    return Catch.caught


def spaxels_of(exposure: IFUImageModel, cube: IFUCubeModel, channel: str = "1") -> np.ndarray:
    """Return which spaxels, shape (ny, nx), an exposure sees: those in the hull of its pixels."""
    x, y = (axis[::8].ravel() for axis in channel_pixels(channel, exposure.data.shape))
    world = np.array(exposure.meta.wcs(x, y))
    x, y, _ = cube.meta.wcs.invert(*world[:, np.isfinite(world).all(axis=0)])
    outline = shapely.convex_hull(shapely.multipoints(np.column_stack([x, y])))
    y, x = np.indices(cube.data.shape[1:])
    return shapely.contains_xy(outline, x, y)


def coverage(association: Path, cube: IFUCubeModel) -> np.ndarray:
    """Return the set of exposures that see each spaxel, shape (ny, nx): bit n is exposure n."""
    exposures = ModelContainer(str(association))
    return sum(spaxels_of(e, cube).astype(int) << bit for bit, e in enumerate(exposures))


def rms_step(cube: IFUCubeModel, truth: IFUCubeModel, seen_by: np.ndarray, degree: int = 1) -> float:
    """
    Return the rms step between spaxels that different exposures see, in the unit of the cube.

    ``truth`` is the cube of the same exposures without backgrounds: the difference has neither sources nor noise. What
    is common to all exposures, one polynomial in position and wavelength, is no step and is removed. Medians over parts
    of the wavelengths are compared: outlier_detection may drop other pixels from the one than from the other.
    """
    error = np.ma.masked_invalid(cube.data - truth.data)
    error[:, seen_by == 0] = np.ma.masked
    error = np.array([np.ma.median(part, axis=0).filled(np.nan) for part in np.array_split(error, PARTS)])
    error -= fitted(error, degree)
    jumps = [
        (error[:, APART:] - error[:, :-APART])[:, seen_by[APART:] != seen_by[:-APART]],
        (error[:, :, APART:] - error[:, :, :-APART])[:, seen_by[:, APART:] != seen_by[:, :-APART]],
    ]
    return float(np.sqrt(np.nanmean(np.concatenate(jumps, axis=None) ** 2)))


def fitted(values: np.ndarray, degree: int) -> np.ndarray:
    """Return the tensor polynomial that fits finite values best."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape), indexing="ij")
    basis = np.polynomial.polynomial.polyvander3d(*axes, [degree] * 3)
    known = np.isfinite(values)
    return basis @ np.linalg.lstsq(basis[known], values[known])[0]
