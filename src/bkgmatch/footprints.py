"""Outlines of the good pixels on the sky, and which of them may overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import shapely
from scipy import ndimage
from scipy.spatial import cKDTree

from bkgmatch.exposures import Exposure

__all__ = [
    "Footprint",
    "angles",
    "candidate_neighbours",
    "footprint",
    "gnomonic",
    "good_region",
    "outlines_in_plane",
    "position",
    "sky_vectors",
    "solid_angle",
    "unit_vectors",
]

Geometry: TypeAlias = shapely.geometry.base.BaseGeometry

BLOCK = 8
"""A region of bad pixels makes a hole in an outline only if it holds a block of this side, aligned to a
multiple of it: bad regions of fewer than 64 connected pixels never do."""

_MAX_RADIUS = np.deg2rad(20.0)
_LATTICE = 16
_DEGREES = (5, 7, 9)
_FIT_TOLERANCE = 0.02  # pixels


@dataclass(frozen=True)
class Footprint:
    """
    Outline of an exposure on the sky, and the mapping back to its pixels.

    Parameters
    ----------
    shape : tuple of int
        Shape of the image, (ny, nx).
    axes : ndarray, shape (3, 3)
        Unit vectors of the tangent plane (first two rows) and of the tangent point (last row).
    radius : float
        Largest distance of the outline from the tangent point, in radians.
    vectors : ndarray, shape (n, 3)
        Vertices of the outline as unit vectors.
    offsets : tuple of ndarray
        Ring, polygon and multipolygon offsets of the vertices (as in `shapely.to_ragged_array`).
    frame : shapely geometry
        Outline of the whole detector in its own tangent plane.
    scale : float
        Half-size of the detector in the tangent plane, the unit of ``coefficients``.
    coefficients : ndarray, shape (m, 2)
        Polynomial from the tangent plane to pixels (x, y).
    exposure : Exposure, optional
        The exposure itself, for the comparison pixel by pixel.
    """

    shape: tuple[int, int]
    axes: np.ndarray
    radius: float
    vectors: np.ndarray
    offsets: tuple[np.ndarray, ...]
    frame: Geometry
    scale: float
    coefficients: np.ndarray
    exposure: Exposure | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are no good pixels."""
        return len(self.vectors) == 0

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Gnomonic projection of unit vectors, shape (n, 3), to the tangent plane, shape (n, 2)."""
        return gnomonic(vectors, self.axes)

    def to_pixels(self, plane: np.ndarray) -> np.ndarray:
        """Pixel coordinates (x, y), shape (n, 2), of points of the tangent plane, shape (n, 2)."""
        return _monomials(plane / self.scale, _degree(len(self.coefficients))) @ self.coefficients

    def area(self) -> float:
        """Solid angle inside the outline, in steradians."""
        return solid_angle(self.outline())

    def outline(self) -> Geometry:
        """Outline of the good pixels in the tangent plane."""
        return outlines_in_plane([self], self)[0]


def footprint(
    good: np.ndarray,
    wcs: Callable,
    *,
    overlap: Literal["good", "footprint", "exact"] = "good",
    stepsize: int | None = None,
) -> Footprint:
    """
    Outline an exposure on the sky.

    Parameters
    ----------
    good : ndarray of bool, shape (ny, nx)
        Good pixels.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees.
    overlap : {"good", "footprint", "exact"}
        Outline the good pixels (``exact``, too) or the whole detector.
    stepsize : int, optional
        Largest separation of vertices, in pixels; by default a sixteenth of the longer side.

    Returns
    -------
    Footprint
        The outline; it is empty if no pixel is good.

    Raises
    ------
    ValueError
        If the WCS is not finite, is not smooth, or spans more than 20 degrees from the centre.
    """
    shape = (good.shape[0], good.shape[1])
    step = stepsize or max(1.0, max(shape) / 16)
    detector = _box(0, 0, *shape)
    region = detector if overlap == "footprint" and good.any() else good_region(good)
    region = shapely.multipolygons(shapely.get_parts(shapely.segmentize(region, step)))
    detector = shapely.segmentize(detector, step)
    _, vertices, offsets = shapely.to_ragged_array([region])
    corners = shapely.get_coordinates(detector)
    lattice = _lattice(shape)
    vectors = sky_vectors(wcs, np.concatenate([vertices, corners, lattice]))
    ours, around, grid = np.split(vectors, [len(vertices), len(vertices) + len(corners)])

    axes = _tangent_axes(grid)
    radius = float(np.arccos(np.clip((around @ axes[2]).min(), -1.0, 1.0)))
    if radius > _MAX_RADIUS:
        raise ValueError(
            f"the image reaches {np.rad2deg(radius):.0f} degrees from its centre; at most 20 can be matched"
        )
    plane = gnomonic(grid, axes)
    scale = float(np.abs(plane).max())
    if scale == 0:
        raise ValueError("the WCS is not smooth or not one-to-one: the whole image falls on one point; check the WCS")
    return Footprint(
        shape=shape,
        axes=axes,
        radius=radius,
        vectors=ours,
        offsets=offsets,
        frame=shapely.polygons(gnomonic(around, axes)),
        scale=scale,
        coefficients=_fit_pixels(plane / scale, lattice, shape),
    )


def good_region(good: np.ndarray) -> Geometry:
    """
    Outline good pixels in pixel coordinates, without the holes of isolated bad pixels.

    Parameters
    ----------
    good : ndarray of bool, shape (ny, nx)
        Good pixels.

    Returns
    -------
    shapely geometry
        Polygon or multipolygon along the edges of pixels; staircases are smoothed to within a pixel.
        Regions of bad pixels that hold no aligned block of ``BLOCK`` x ``BLOCK`` are filled, parts of fewer
        good pixels than such a block has are dropped (unless that would leave nothing).
    """
    rows, columns = np.flatnonzero(good.any(axis=1)), np.flatnonzero(good.any(axis=0))
    if rows.size == 0:
        return shapely.MultiPolygon()
    y, x = rows[0], columns[0]
    inside = good[y : rows[-1] + 1, x : columns[-1] + 1]
    bad_blocks = ~_blocks_with_any(inside)
    if not bad_blocks.any():
        return _box(y, x, *inside.shape)
    labels, _ = ndimage.label(~inside)
    corners = labels[::BLOCK, ::BLOCK][: bad_blocks.shape[0], : bad_blocks.shape[1]]
    is_hole = np.zeros(labels.max() + 1, dtype=bool)
    is_hole[corners[bad_blocks]] = True
    return _trace(~is_hole[labels], y, x)


def candidate_neighbours(footprints: Sequence[Footprint]) -> list[np.ndarray]:
    """
    Find which footprints may overlap, from their enclosing circles.

    Parameters
    ----------
    footprints : sequence of Footprint
        Outlines; those without good pixels have no neighbours.

    Returns
    -------
    list of ndarray of int
        For each footprint the sorted indices of the others whose circles touch its own.
    """
    centres = np.array([f.axes[2] for f in footprints])
    radii = np.array([-np.inf if f.is_empty else f.radius for f in footprints])
    usable = np.flatnonzero(np.isfinite(radii))
    neighbours = [np.empty(0, dtype=int) for _ in footprints]
    if usable.size < 2:
        return neighbours
    tree = cKDTree(centres[usable])
    reach = np.minimum(radii[usable] + radii[usable].max(), np.pi)
    near = tree.query_ball_point(centres[usable], 2 * np.sin(reach / 2) + 1e-12)
    for i, found in zip(usable, near, strict=True):
        others = usable[np.sort(np.asarray(found, dtype=int))]
        touch = centres[others] @ centres[i] >= np.cos(np.minimum(radii[others] + radii[i], np.pi)) - 1e-14
        neighbours[i] = others[touch & (others != i)]
    return neighbours


def outlines_in_plane(footprints: Sequence[Footprint], plane: Footprint) -> np.ndarray:
    """
    Project outlines to the tangent plane of one exposure.

    Parameters
    ----------
    footprints : sequence of Footprint
        Outlines.
    plane : Footprint
        The exposure whose tangent plane is meant.

    Returns
    -------
    ndarray of shapely geometry
        Valid multipolygons. Great circles are straight lines in this projection.
    """
    vectors = np.concatenate([f.vectors for f in footprints])
    offsets = [_join_offsets([f.offsets[level] for f in footprints]) for level in range(3)]
    shapes = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, plane.project(vectors), tuple(offsets))
    invalid = ~shapely.is_valid(shapes)
    if invalid.any():
        shapes[invalid] = shapely.make_valid(shapes[invalid])
    return shapes


def solid_angle(plane_shape: Geometry) -> float:
    """Solid angle in steradians of a shape in a gnomonic plane, by its Lambert equal-area image."""

    def equal_area(points: np.ndarray) -> np.ndarray:
        cosine = 1 / np.sqrt(1 + (points**2).sum(axis=1, keepdims=True))
        return points * cosine * np.sqrt(2 / (1 + cosine))

    return float(shapely.area(shapely.transform(plane_shape, equal_area)))


def _box(y: int, x: int, ny: int, nx: int) -> Geometry:
    return shapely.box(x - 0.5, y - 0.5, x + nx - 0.5, y + ny - 0.5)


def _blocks_with_any(mask: np.ndarray) -> np.ndarray:
    ny, nx = (n // BLOCK for n in mask.shape)
    words = np.ascontiguousarray(mask[: ny * BLOCK, : nx * BLOCK]).view(np.uint64)
    return np.bitwise_or.reduce(words.reshape(ny, BLOCK, nx), axis=1) != 0


def _trace(mask: np.ndarray, y: int, x: int) -> Geometry:
    """Outline the True pixels of a mask whose first pixel is at (y, x), as a union of boxes."""
    changes = np.append(np.flatnonzero((mask[1:] != mask[:-1]).any(axis=1)) + 1, len(mask))
    tops = np.insert(changes[:-1], 0, 0)
    padded = np.zeros((len(tops), mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask[tops]
    edges = np.diff(padded, axis=1)
    band, start = np.nonzero(edges == 1)
    _, stop = np.nonzero(edges == -1)
    boxes = shapely.box(x + start - 0.5, y + tops[band] - 0.5, x + stop - 0.5, y + changes[band] - 0.5)
    parts = shapely.get_parts(shapely.simplify(shapely.union_all(boxes), 0.75))
    large = shapely.area(parts) >= BLOCK**2
    return shapely.multipolygons(parts[large] if large.any() else parts)


def _lattice(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.meshgrid(*(np.linspace(-0.5, n - 0.5, _LATTICE) for n in shape), indexing="ij")
    return np.column_stack([x.ravel(), y.ravel()])


def sky_vectors(wcs: Callable, pixels: np.ndarray) -> np.ndarray:
    """Sky positions, as unit vectors of shape (n, 3), of pixel coordinates (x, y), shape (n, 2)."""
    try:
        ra, dec = (np.asarray(angle, dtype=float).reshape(len(pixels)) for angle in wcs(pixels[:, 0], pixels[:, 1]))
    except Exception as error:  # a WCS may raise anything
        raise ValueError(f"wcs(x, y) must return right ascension and declination in degrees ({error})") from error
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        raise ValueError("the WCS gives sky coordinates that are not finite inside the image; run assign_wcs again")
    return unit_vectors(ra, dec)


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return unit vectors, shape (n, 3), of positions in degrees, each of shape (n,)."""
    a, d = np.deg2rad(ra), np.deg2rad(dec)
    return np.column_stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def angles(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination in degrees, each of shape (...), of vectors, shape (..., 3)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    ra = np.rad2deg(np.arctan2(y, x)) % 360
    return np.where(ra < 360, ra, 0.0), np.rad2deg(np.arctan2(z, np.hypot(x, y)))  # -1e-15 % 360 is 360


def position(vector: np.ndarray) -> tuple[float, float]:
    """Right ascension and declination in degrees of a vector, shape (3,)."""
    ra, dec = angles(vector)
    return float(ra), float(dec)


def _tangent_axes(vectors: np.ndarray) -> np.ndarray:
    centre = vectors.mean(axis=0)
    centre /= np.linalg.norm(centre)
    helper = np.eye(3)[np.abs(centre).argmin()]
    east = np.cross(helper, centre)
    east /= np.linalg.norm(east)
    return np.array([east, np.cross(centre, east), centre])


def gnomonic(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Project unit vectors, shape (n, 3), to the tangent plane of axes x, y and tangent point, shape (n, 2)."""
    along = vectors @ axes.T
    return along[:, :2] / along[:, 2:]


def _fit_pixels(plane: np.ndarray, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fit the polynomial of lowest degree that maps the plane to pixels well enough."""
    for degree in _DEGREES:
        terms = _monomials(plane, degree)
        coefficients = np.linalg.lstsq(terms, pixels, rcond=None)[0]
        error = np.abs(terms @ coefficients - pixels).max()
        if error < _FIT_TOLERANCE:
            return coefficients
    if not error < 10 * _FIT_TOLERANCE:
        raise ValueError(
            f"the WCS of this {shape[1]} x {shape[0]} image is not smooth or not one-to-one: a polynomial of "
            f"degree {degree} misses it by {error:.2g} pixels; check the WCS"
        )
    return coefficients


def _degree(terms: int) -> int:
    return int((np.sqrt(8 * terms + 1) - 3) / 2 + 0.5)


def _monomials(points: np.ndarray, degree: int) -> np.ndarray:
    """Return x^i y^j for i + j <= degree, shape (n, (degree + 1)(degree + 2) / 2)."""
    powers = [np.ones_like(points)]
    for _ in range(degree):
        powers.append(powers[-1] * points)
    columns = [powers[i][:, 0] * powers[j][:, 1] for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.column_stack(columns)


def _join_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate offset arrays, each of which starts at 0."""
    ends = np.cumsum([o[-1] for o in offsets])
    shifted = [o[1:] + shift for o, shift in zip(offsets, np.insert(ends[:-1], 0, 0), strict=True)]
    return np.concatenate([[0], *shifted])
