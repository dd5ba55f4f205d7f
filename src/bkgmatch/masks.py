"""Good pixels: user masks and sky regions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from regions import PixCoord, Regions, SkyRegion

from bkgmatch.footprints import position, sky_vectors
from bkgmatch.paths import is_there
from bkgmatch.pixel_maps import positions_in_plane
from bkgmatch.reasons import reason

__all__ = ["find_masks", "inside_regions", "read_mask", "read_regions", "region_mask"]


def find_masks(masks: Sequence[str], files: Sequence[Path]) -> list[Path | None]:
    """
    Find the user mask of each exposure.

    Parameters
    ----------
    masks : sequence of str
        One file for each exposure, in order; or a single suffix, for masks that stand beside the exposures:
        ``mask`` stands for ``jw..._nrcalong_mask.fits`` beside ``jw..._nrcalong_cal.fits``.
    files : sequence of Path
        Path of each exposure.

    Returns
    -------
    list of Path or None
        The mask files; None for an exposure beside which no mask stands.

    Raises
    ------
    ValueError
        If the number of files differs from the number of exposures, or no exposure has a mask.
    FileNotFoundError
        If a mask file that is named does not exist.
    """
    if len(masks) == 1 and not masks[0].endswith((".fits", ".fits.gz")):
        found = [_beside(file, masks[0].strip("_")) for file in files]
        if not any(found):
            raise ValueError(f"no exposure has a mask *_{masks[0].strip('_')}.fits beside it; check masks={masks[0]!r}")
        return found
    if len(masks) != len(files):
        raise ValueError(f"masks lists {len(masks)} files for {len(files)} exposures; list one for each, in order")
    for mask in masks:
        if not is_there(mask):
            raise FileNotFoundError(f"the mask file {mask} does not exist")
    return [Path(mask) for mask in masks]


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """
    Read a user mask.

    Parameters
    ----------
    path : Path
        FITS file; its first image is the mask, not zero where pixels are good.
    shape : tuple of int
        Shape of the exposure.

    Returns
    -------
    ndarray of bool
        Good pixels.

    Raises
    ------
    ValueError
        If there is no image, or it has another shape.
    """
    try:
        with fits.open(path) as hdus:
            images = [np.asarray(hdu.data) for hdu in hdus if hdu.is_image and hdu.data is not None]
    except Exception as error:  # astropy raises many kinds
        raise ValueError(f"the mask file {path} cannot be read as FITS: {error}") from error
    if not images:
        raise ValueError(f"the mask file {path} holds no image")
    mask = np.nan_to_num(images[0]) != 0
    if mask.shape != tuple(shape):
        raise ValueError(f"the mask {path} has shape {mask.shape}, its exposure has {tuple(shape)}")
    return mask


def read_regions(path: str) -> list[SkyRegion]:
    """
    Read a DS9 file of regions in sky coordinates.

    Parameters
    ----------
    path : str
        Region file.

    Returns
    -------
    list of SkyRegion
        Those with a leading ``-`` have ``meta["include"]`` False.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it cannot be read, holds no region, or regions in pixels.
    """
    if not is_there(path):
        raise FileNotFoundError(f"the region file {path} does not exist")
    try:
        found = list(Regions.read(path, format="ds9"))
    except Exception as error:  # the parser raises many kinds
        raise ValueError(f"cannot read {path} as a DS9 region file: {reason(error)}") from error
    if not found:
        raise ValueError(
            f"the region file {path} holds no region that can be read; has it a line with its system (icrs, fk5, ...)?"
        )
    if not all(isinstance(region, SkyRegion) for region in found):
        raise ValueError(f"the region file {path} has regions in pixels; save it in sky coordinates (icrs, fk5, ...)")
    if not all(map(_is_somewhere, found)):
        raise ValueError(f"the region file {path} has a region at coordinates that are not numbers; remove it")
    return found


def _is_somewhere(region: SkyRegion) -> bool:
    places = [getattr(region, name) for name in ("center", "vertices", "start", "end") if hasattr(region, name)]
    return all(np.isfinite(angle).all() for place in places for angle in (place.spherical.lon, place.spherical.lat))


def region_mask(regions: Sequence[SkyRegion], wcs: Callable, shape: tuple[int, int]) -> np.ndarray:
    """
    Find the pixels that regions leave.

    Parameters
    ----------
    regions : sequence of SkyRegion
        Where there are plain regions, only the pixels inside one of them are good. Pixels inside an excluding
        region (``-`` in DS9) never are.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    shape : tuple of int
        Shape of the image.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        Good pixels.
    """
    including = [r for r in regions if not _excludes(r)]
    excluding = [r for r in regions if _excludes(r)]
    tangent, position = _tangent_position(wcs, shape)
    good = np.full(shape, not including)
    for group, value in ((including, True), (excluding, False)):
        for region in group:
            good[region.to_pixel(tangent).contains(position)] = value
    return good


def inside_regions(regions: Sequence[SkyRegion], wcs: Callable, shape: tuple[int, int]) -> np.ndarray:
    """Find the pixels inside plain regions, as `region_mask`; none where there are only excluding ones."""
    if all(_excludes(region) for region in regions):
        return np.zeros(shape, dtype=bool)
    return region_mask(regions, wcs, shape)


def _excludes(region: SkyRegion) -> bool:
    return region.meta.get("include", True) in (False, "-")


def _beside(file: Path, suffix: str) -> Path | None:
    root = file.stem.rpartition("_")[0] or file.stem
    mask = file.parent / f"{root}_{suffix}.fits"
    return mask if is_there(mask) else None


def _tangent_position(wcs: Callable, shape: tuple[int, int]) -> tuple[WCS, PixCoord]:
    """Tangential WCS of about the exposure's scale, and the position of each pixel in it."""
    ny, nx = shape
    corners = sky_vectors(wcs, np.array([[0, 0], [nx - 1, 0], [nx - 1, ny - 1], [0, ny - 1]]))
    tangent = WCS(naxis=2)
    tangent.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    tangent.wcs.crval = position(corners.mean(axis=0))
    tangent.wcs.cdelt = np.full(2, np.rad2deg(np.ptp(corners, axis=0).max()) / max(shape) or 1e-5)

    def to_plane(pixels: np.ndarray) -> np.ndarray:
        return np.column_stack(tangent.world_to_pixel_values(*wcs(*pixels.T)))

    return tangent, PixCoord(*positions_in_plane(to_plane, shape))
