"""Exposures on one common grid of sky cells: the value and the variance in each cell."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bkgmatch.exposures import LARGEST, Pixels
from bkgmatch.footprints import Footprint, sky_vectors
from bkgmatch.grids import Grid
from bkgmatch.options import ReprojectFunc
from bkgmatch.pixel_maps import PixelMap, pixel_map, pixel_side
from bkgmatch.reprojected import reprojected
from bkgmatch.stored import StoredArray

__all__ = ["BLOCK", "CutOut", "place", "plane_in_cells", "raised", "resampled"]

BLOCK = 32
"""Variances are kept for squares of so many cells; cut-outs begin and end at multiples of it."""

_FEW = 8  # values from which no noise can be told
_LEAST_KNOWN = 0.1  # part of the good pixels whose variance must be given for it to be used
_ROWS = 64
_CHOSEN = 64
_MOST_PIXELS, _LEAST_PIXELS = 50, 1 / 16  # along a cell
_MANY = 2**26


@dataclass(frozen=True)
class CutOut:
    """
    One exposure on the common grid.

    Parameters
    ----------
    x, y : int
        Grid coordinates of the first cell, multiples of `BLOCK`.
    value : ndarray or StoredArray of float32, shape (ny, nx)
        Surface brightness less ``base``; NaN where the exposure has no good pixel. ny and nx are multiples of `BLOCK`.
    variance : ndarray, shape (ny / BLOCK, nx / BLOCK)
        Variance per cell, as if cells did not share pixels: that of a pixel times the ratio of their areas. With it
        sums over many cells have the right error. NaN where it is neither given nor seen: pixels are too few, or all
        the same.
    smoothing : float
        Variance of a single cell's value, as a fraction of that: less than 1, for interpolation takes means.
    centre : ndarray, shape (2,)
        Grid coordinates (x, y) of the middle of the exposure.
    half : float
        Half of the exposure's longer side, in cells.
    extent : ndarray, shape (2,)
        Extent of the cells with values along x and y.
    digest : str
        Hash of what it was made of; empty if it is not known.
    base : float
        About the level of the exposure, subtracted from the data while they have all their digits: small differences
        of high levels are not lost in single precision.
    """

    x: int
    y: int
    value: np.ndarray | StoredArray
    variance: np.ndarray
    smoothing: float
    centre: np.ndarray
    half: float
    extent: np.ndarray
    digest: str = ""
    base: float = 0.0

    def less(self, coefficients: np.ndarray, unit: float) -> np.ndarray:
        """
        Subtract a function from the exposure.

        Parameters
        ----------
        coefficients : ndarray, shape (1,) or (3,)
            Constant, or constant and slopes along x and y.
        unit : float
            Unit of length of the slopes, in cells.

        Returns
        -------
        ndarray of float32, shape (ny, nx)
            What is left in the cells.
        """
        rest = raised(coefficients, -self.base)
        return self.value[...] - plane_in_cells(rest, unit, self.x, self.y, self.value.shape)


def raised(coefficients: np.ndarray, by: float) -> np.ndarray:
    """Coefficients of a function that is higher by a number."""
    return coefficients + by * (np.arange(len(coefficients)) == 0)


def plane_in_cells(
    coefficients: np.ndarray, unit: float, x: int, y: int, shape: tuple[int, ...]
) -> np.ndarray | np.float32:
    """Values of a constant or a plane in the cells from (x, y) on, in float32."""
    if len(coefficients) == 1:
        return np.float32(coefficients[0])
    along = (np.arange(shape[1]) + x) / unit * coefficients[1]
    across = (np.arange(shape[0]) + y) / unit * coefficients[2] + coefficients[0]
    return (across[:, None] + along).astype(np.float32)


def place(
    pixels: Pixels, outline: Footprint, wcs: Callable, grid: Grid, *, reproject_func: ReprojectFunc = "interp"
) -> CutOut:
    """
    Put an exposure on the common grid.

    Parameters
    ----------
    pixels : Pixels
        Data, good pixels, and variances if they are known; else variances come from the scatter of nearby pixels.
    outline : Footprint
        Outline of the exposure.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    grid : Grid
        The grid.
    reproject_func : {"interp", "exact", "adaptive"}
        Bilinear interpolation between good pixels, with means over cells larger than two pixels; or a function of the
        package reproject.

    Returns
    -------
    CutOut
        With ``interp`` a cell of about one pixel has a value if the four pixels around its centre are good; a larger
        one, if nearly all of those are that are averaged.

    Raises
    ------
    ValueError
        If the WCS cannot be interpolated, or its scale is not like that of the grid.
    """
    where = pixel_map(outline, wcs, grid.of)
    corners = grid.of(outline.vectors)
    low = np.floor((corners.min(axis=0) - 1) / BLOCK).astype(int) * BLOCK
    high = np.ceil((corners.max(axis=0) + 2) / BLOCK).astype(int) * BLOCK
    side = grid.cell / pixel_side(outline)
    _check_cells(side, high - low)
    base = pixels.typical()
    image = pixels.image(base)
    columns, rows = (np.arange(low[k], high[k]) for k in range(2))
    if reproject_func == "interp":
        parts = max(1, int(np.ceil(side - 0.1)))
        value = resampled(image, where, columns, rows, parts)
        smoothing = _smoothing(where, columns, rows, np.isfinite(value), parts)
    else:
        value, smoothing = reprojected(image, wcs, outline, grid.header(low), tuple(high - low)[::-1], reproject_func)
    ny, nx = outline.shape
    centre = grid.of(sky_vectors(wcs, np.array([[(nx - 1) / 2, (ny - 1) / 2]])))[0]
    return CutOut(
        x=int(low[0]),
        y=int(low[1]),
        value=value,
        variance=_variance_blocks(image, pixels, where, columns, rows) / side**2,
        smoothing=smoothing * side**2,
        centre=centre,
        half=max(ny, nx) / 2 / side,
        extent=_extent(np.isfinite(value)),
        base=base,
    )


def _check_cells(side: float, cells: np.ndarray) -> None:
    """Raise ValueError if the cells, or the points in them, are too many for any memory."""
    if side > _MOST_PIXELS or (side < _LEAST_PIXELS and cells.prod(dtype=float) > _MANY):
        raise ValueError(
            f"a common cell is {side:.3g} times as large as its pixels, whose scale is not like that of the others; "
            "check the WCS and pixel_scale_ratio, or match them apart"
        )


def _extent(used: np.ndarray) -> np.ndarray:
    """Count columns and rows from the first to the last that is used."""
    return np.array([np.ptp(found) + 1 if (found := np.flatnonzero(used.any(axis=k))).size else 0 for k in (0, 1)])


def resampled(image: np.ndarray, where: PixelMap, columns: np.ndarray, rows: np.ndarray, parts: int = 1) -> np.ndarray:
    """
    Interpolate an image bilinearly at cells.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Image, NaN where it is not good.
    where : PixelMap
        Where the cells lie in it.
    columns, rows : ndarray of int
        Grid coordinates of the cells.
    parts : int
        Cells larger than a pixel are means of ``parts`` x ``parts`` points, so that all exposures see the same sky.

    Returns
    -------
    ndarray of float32, shape (n_rows, n_columns)
        NaN beside bad pixels, and outside the image.
    """
    if min(image.shape) < 2:
        image = np.pad(image, [(0, max(0, 2 - n)) for n in image.shape], constant_values=np.nan)
    value = np.empty((len(rows), len(columns)), dtype=np.float32)
    points = _points(columns, parts)
    for start in range(0, len(rows), _ROWS):
        some = slice(start, start + _ROWS)
        value[some] = _means(_bilinear(image, *where(points, _points(rows[some], parts))), parts)
        value[some][~where.covers(columns, rows[some])] = np.nan
    return value


def _smoothing(where: PixelMap, columns: np.ndarray, rows: np.ndarray, used: np.ndarray, parts: int) -> float:
    """Mean, over cells chosen at random, of the sum of the squared coefficients of pixels; 1 without cells."""
    rng = np.random.default_rng(0)  # a regular choice could always meet the same phase of the pixels
    if not used.any():
        return 1.0
    across, along = (rng.choice(np.flatnonzero(used.any(axis=k)), _CHOSEN) for k in (1, 0))
    at = where(_points(columns[along], parts), _points(rows[across], parts))
    cells = at.reshape(2, len(across), parts, len(along), parts).transpose(0, 1, 3, 2, 4).reshape(2, -1, parts**2)
    cells = cells[:, used[np.ix_(across, along)].ravel()]
    if not cells.size:
        return 1.0
    corner = np.floor(cells)
    fraction = cells - corner
    corner = (corner - corner.min(axis=2, keepdims=True)).astype(int)
    width = int(corner.max()) + 2
    count = cells.shape[1]
    coefficients = np.zeros(count * width**2)
    first = np.arange(count)[:, None] * width**2 + corner[1] * width + corner[0]
    for step_y, step_x in np.ndindex(2, 2):
        share = np.abs(1 - step_x - fraction[0]) * np.abs(1 - step_y - fraction[1]) / parts**2
        place = first + step_y * width + step_x
        coefficients += np.bincount(place.ravel(), share.ravel(), minlength=len(coefficients))
    return float((coefficients**2).sum() / count)


def _points(cells: np.ndarray, parts: int) -> np.ndarray:
    """Return equally spaced points in cells."""
    return (cells[:, None] + (np.arange(parts) + 0.5) / parts - 0.5).ravel()


def _means(fine: np.ndarray, parts: int) -> np.ndarray:
    """Return means over the points of cells of which nearly all are good: not those that an edge cuts."""
    if parts == 1:
        return fine
    squares = fine.reshape(fine.shape[0] // parts, parts, fine.shape[1] // parts, parts)
    good = np.isfinite(squares)
    count = good.sum(axis=(1, 3))
    total = np.where(good, squares, 0).sum(axis=(1, 3))
    return np.where(count >= 0.9 * parts**2, total / np.maximum(count, 1), np.nan)


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate; NaN outside."""
    ny, nx = image.shape
    inside = (x >= 0) & (y >= 0) & (x <= nx - 1) & (y <= ny - 1)
    column = np.clip(x, 0, nx - 2).astype(np.int32)
    row = np.clip(y, 0, ny - 2).astype(np.int32)
    along, across = (x - column).astype(np.float32), (y - row).astype(np.float32)
    flat = image.ravel()
    first = row * np.int32(nx) + column
    low = _mixed(flat.take(first), flat.take(first + 1), along)
    first += nx
    high = _mixed(flat.take(first), flat.take(first + 1), along)
    value = _mixed(low, high, across)
    value[~inside] = np.nan
    return value


def _mixed(one: np.ndarray, two: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    two -= one
    two *= fraction
    two += one
    return two


def _variance_blocks(
    image: np.ndarray, pixels: Pixels, where: PixelMap, columns: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Variance of a pixel in the middle of each block of cells: medians, which sources hardly change."""
    blocks = _block_medians(_pixel_variances(image, pixels))
    middle = (BLOCK - 1) / 2
    x, y = where(columns[::BLOCK] + middle, rows[::BLOCK] + middle) / BLOCK - 0.5
    ny, nx = blocks.shape
    blocks = np.pad(blocks, [(0, 1), (0, 1)], mode="edge")
    return _bilinear(blocks, np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1)).astype(float)


def _pixel_variances(image: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Variances of good pixels, NaN elsewhere: those given, if they may be, or squared differences of nearby pixels."""
    good = np.isfinite(image)
    if pixels.variance is not None:
        with np.errstate(invalid="ignore"):
            known = good & (pixels.variance > LARGEST**-2) & (pixels.variance < LARGEST**2)
        if known.sum() > _LEAST_KNOWN * good.sum():
            return np.where(known, pixels.variance, np.nan).astype(np.float32)
    scatter = np.full(image.shape, np.nan, dtype=np.float32)
    np.subtract(image[2:, 2:], image[:-2, :-2], out=scatter[2:, 2:])
    scatter *= scatter
    scatter /= 2 * 0.4549  # the median of the square of a normal deviate; a difference has twice the variance
    return scatter


def _block_medians(image: np.ndarray) -> np.ndarray:
    """Median of each block of pixels, from every other row and column; that of all where there is none, or NaN."""
    padded = [-(-n // BLOCK) * BLOCK for n in image.shape]
    wide = np.full(padded, np.nan, dtype=np.float32)
    wide[: image.shape[0], : image.shape[1]] = image
    sample = wide[::2, ::2].reshape(padded[0] // BLOCK, BLOCK // 2, padded[1] // BLOCK, BLOCK // 2)
    sample = np.sort(sample.transpose(0, 2, 1, 3).reshape(*(n // BLOCK for n in padded), -1), axis=-1)
    count = np.isfinite(sample).sum(axis=-1)
    middle = np.take_along_axis(sample, np.maximum((count[..., None] - 1) // 2, 0), axis=-1)[..., 0]
    known = (count >= _FEW) & (middle > 0)
    every = image[np.isfinite(image) & (image > 0)]
    general = np.median(middle[known]) if known.any() else np.median(every) if every.size >= _FEW else np.nan
    return np.where(known, middle, general).astype(np.float32)
