"""calwebb_image3 without CRDS on a mosaic of known sky: how well its exposures match, and what that does to others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jwst import pipeline
from numpy.typing import NDArray
from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture, aperture_photometry
from scipy import ndimage
from scipy.spatial import cKDTree
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import ImageModel
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch import Image3Pipeline, LevelMatchStep
from bkgmatch.detectors import Detector, from_plane, to_plane
from bkgmatch.scenes import FWHM_TO_SIGMA, Scene, make_scene
from bkgmatch.simulate import SimulatedExposure, simulate_mosaic
from bkgmatch.steps.simulated import write_exposures

CENTER = (150.0, 2.2)
STARS = 30  # per tile: half of those that are bright enough are isolated
PEAKS = (2.0, 100.0)  # MJy/sr; the noise of an exposure is 0.02
BRIGHT = 5.0
TILT = 0.1  # MJy/sr from the middle of an exposure to its edge

OFF = {name: {"skip": True} for name in ("assign_mtwcs", "tweakreg", "source_catalog")}
PLANES = {"fit_type_dithers": "level+slope", "fit_type_mosaic_tiles": "level+slope"}
UNMATCHED, JWST, HOOK, OURS, CONTROL = "unmatched", "jwst", "hook", "bkg_image3", "control"
RUNS = (UNMATCHED, JWST, HOOK, OURS, CONTROL)

APART = 4  # pixels between which a jump is measured
BOX = 3  # pixels: side of the boxes whose medians are compared
APERTURE, ANNULUS, ALONE = 2.0, (2.5, 4.0), 5.0  # radii, and the least distance of the next star, in FWHM


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Exposures of a scene with backgrounds."""

    scene: Scene
    exposures: Sequence[SimulatedExposure]

    @cached_property
    def matched(self) -> list[SimulatedExposure]:
        """The same, noise and hits too, without backgrounds."""
        return [without_background(e) for e in self.exposures]

    def write(self, folder: Path) -> dict[str, Path]:
        """Write both; return the association for each run."""
        with_, without = (write_exposures(e, folder / n) for e, n in ((self.exposures, "cal"), (self.matched, "free")))
        return dict.fromkeys(RUNS, with_) | {CONTROL: without}


def without_background(exposure: SimulatedExposure) -> SimulatedExposure:
    y, x = np.indices(exposure.data.shape)
    background = exposure.background(*exposure.wcs(x, y, with_bounding_box=False))
    return replace(exposure, data=(exposure.data - background).astype(np.float32))


def mosaic(seed: int, *, binning: int, tiles: tuple[int, int] = (3, 3), dithers: int = 4, **options) -> Mosaic:
    """Simulate exposures with planes of background; the fewer pixels they have, the larger are pixels and stars."""
    rng = np.random.default_rng(seed)
    detector = Detector.named("NRCALONG")
    width = detector.scale * detector.size[0]
    radius = 0.55 * width * np.hypot(tiles[0] + 0.3, tiles[1] + 0.3)
    n_stars = round(STARS * np.pi * (radius / width) ** 2)
    fwhm = 2.3 * binning * detector.scale
    scene = make_scene(*CENTER, radius, rng, n_stars=n_stars, fwhm=fwhm, star_peaks=PEAKS)
    options = {"scene": scene, "center": CENTER, "tilt": TILT, **options}
    return Mosaic(scene, simulate_mosaic(rng=rng, tiles=tiles, dithers=dithers, binning=binning, **options))


def build_mosaic(run: str, association: Path, folder: Path) -> ImageModel:
    """Run a pipeline, all with jwst's defaults but the steps that match; CRDS_PATH must point to an empty cache."""
    kind, steps = pipeline_and_steps(run)
    folder.mkdir(parents=True, exist_ok=True)
    kind.call(str(association), steps=OFF | steps, output_dir=str(folder), save_results=True)
    return datamodels.open(folder / "mosaic_i2d.fits")


def pipeline_and_steps(run: str) -> tuple[type[pipeline.Image3Pipeline], dict]:
    """Return the class and the parameters of its steps that match."""
    if run == OURS:
        return Image3Pipeline, {"level_match": PLANES}
    hooks = {"post_hooks": [LevelMatchStep(**PLANES, do_local_subtraction=False)]} if run == HOOK else {}
    return pipeline.Image3Pipeline, {"skymatch": {"skip": run != JWST, **hooks}}


def coverage(image: ImageModel) -> NDArray[np.int64]:
    """Return the set of exposures whose field covers each pixel: bit n is exposure n, rejected pixels or not."""
    layers = [(plane >> bit) & 1 for plane in image.con for bit in range(32)]
    inside = [ndimage.uniform_filter(layer.astype(np.float32), 5) > 0.5 for layer in layers if layer.any()]
    return sum(layer.astype(np.int64) << n for n, layer in enumerate(inside))


def mismatch(image: NDArray, control: NDArray, seen_by: NDArray[np.int64]) -> NDArray:
    """
    Return what backgrounds leave in a mosaic, less the plane that no matching can know; NaN outside.

    ``control`` is the mosaic of the same exposures without backgrounds: the difference has neither sources nor noise,
    but where outlier_detection dropped a pixel from the one and not from the other: medians of small boxes. NaN, too,
    where it dropped all.
    """
    error = np.asarray(image, float) - control
    known = np.isfinite(error) & (seen_by > 0)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    error = np.where(known, ndimage.median_filter(error[tuple(nearest)], BOX), np.nan)
    basis = np.stack([np.ones(error.shape), *np.indices(error.shape)], axis=-1)
    return error - basis @ np.linalg.lstsq(basis[known], error[known])[0]


def seam_rms(error: NDArray, seen_by: NDArray[np.int64]) -> float:
    """Return the rms jump between pixels a few apart that different exposures cover, in the unit of the mosaic."""
    pairs = (np.s_[APART:, :], np.s_[:-APART, :]), (np.s_[:, APART:], np.s_[:, :-APART])
    jumps = [(error[a] - error[b])[(seen_by[a] != seen_by[b]) & (seen_by[a] > 0) & (seen_by[b] > 0)] for a, b in pairs]
    return float(np.sqrt(np.nanmean(np.concatenate(jumps) ** 2)))


def good_pixels_flagged(folder: Path, exposures: Sequence[SimulatedExposure]) -> tuple[int, int]:
    """Return how many of the pixels that no cosmic ray hit outlier_detection flagged, and how many there are."""
    flagged = total = 0
    for exposure in exposures:
        (file,) = folder.glob(f"{exposure.name}_*crf.fits")
        fine = exposure.good & ~exposure.hits
        with datamodels.open(file) as model:
            flagged += np.count_nonzero(fine & (model.dq & dq_flags["OUTLIER"] > 0))
        total += np.count_nonzero(fine)
    return int(flagged), int(total)


def flux_errors(image: ImageModel, scene: Scene) -> NDArray:
    """Return measured flux / true flux - 1 of isolated stars, NaN outside; the nebula under them is taken as known."""
    stars = scene.stars[isolated(scene)]
    ra, dec = from_plane(*stars[:, :2].T, scene.ra, scene.dec)
    positions = np.column_stack(image.meta.wcs.invert(ra, dec))
    area = pixel_area(image, scene)
    fwhm = scene.fwhm / np.sqrt(area)
    true = 2 * np.pi * (scene.fwhm * FWHM_TO_SIGMA) ** 2 * stars[:, 2]
    inside = np.isfinite(positions).all(axis=1)
    ratio = np.full(len(stars), np.nan)
    light = image.data - nebula(image, scene)
    ratio[inside] = [aperture_sum(light, position, fwhm) for position in positions[inside]]
    return ratio * area / true - 1


def nebula(image: ImageModel, scene: Scene) -> NDArray:
    """Return the scene without its stars on the pixels of a mosaic."""
    y, x = np.indices(image.data.shape, dtype=float)
    return replace(scene, stars=scene.stars[:0])(*image.meta.wcs(x, y, with_bounding_box=False))


def isolated(scene: Scene) -> NDArray[np.bool_]:
    """Return which stars are bright and have no other near."""
    tree = cKDTree(scene.stars[:, :2])
    neighbour = tree.query(scene.stars[:, :2], k=2)[0][:, 1]
    return (scene.stars[:, 2] > BRIGHT) & (neighbour > ALONE * scene.fwhm)


def pixel_area(image: ImageModel, scene: Scene) -> float:
    """Return the area of a pixel of the mosaic in square arcsec."""
    x, y = np.array(image.data.shape[::-1]) / 2
    east, north = to_plane(*image.meta.wcs(np.array([x, x + 1, x]), np.array([y, y, y + 1])), scene.ra, scene.dec)
    return float(abs(np.linalg.det([np.diff(east, prepend=0)[1:], north[1:] - north[:-1]])))


def aperture_sum(data: NDArray, position: NDArray, fwhm: float) -> float:
    """Return the sum in an aperture less the median of the annulus about it; NaN where pixels are missing."""
    aperture = CircularAperture(position, APERTURE * fwhm)
    sky = ApertureStats(data, CircularAnnulus(position, *(r * fwhm for r in ANNULUS))).median
    return float(aperture_photometry(data, aperture)["aperture_sum"][0] - sky * aperture.area)


def typical(errors: NDArray) -> tuple[float, float]:
    """Return the median of what is known, and its standard error."""
    errors = errors[np.isfinite(errors)]
    middle = np.median(errors)
    return float(middle), float(1.253 * 1.4826 * np.median(abs(errors - middle)) / np.sqrt(len(errors)))
