"""Geometry of JWST's detectors: distortion, WCS, and the fields that see the sky."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS, position_angle
from astropy.modeling import Model, models
from gwcs import WCS
from gwcs import coordinate_frames as frames
from gwcs.geometry import CartesianToSpherical, SphericalToCartesian
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RectBivariateSpline

__all__ = [
    "DO_NOT_USE",
    "JUMP_DET",
    "NON_SCIENCE",
    "Detector",
    "Pointing",
    "detector_wcs",
    "field_of_view",
    "from_plane",
    "lyot_region",
    "pixels_on_plane",
    "reference_pointing",
    "static_dq",
    "to_plane",
]

DO_NOT_USE, JUMP_DET, NON_SCIENCE = np.uint32(1), np.uint32(4), np.uint32(512)
NIRCAM_FRAME, NIRCAM_BORDER = 2048, 4
MIRI_FIELD_START, LYOT_ROWS, LYOT_COLUMNS = 351, 745, 284
ARCSEC = np.degrees(1) * 3600

Floats = tuple[float, ...]


class Pointing(NamedTuple):
    """Sky position (deg) and the position angle of V3 there (deg)."""

    ra: float
    dec: float
    roll: float


@cache
def _table() -> dict:
    return json.loads(files("bkgmatch").joinpath("data/siaf.json").read_text())["detectors"]


@dataclass(frozen=True)
class Detector:
    """Geometry of one detector: a SIAF aperture, or a part of it.

    Attributes
    ----------
    name : str
        JWST's detector keyword.
    size, corner : tuple of int
        Columns and rows in native pixels, and the native pixel of the lower left corner.
    reference, v2v3 : tuple of float
        The reference point in pixels (first pixel 1, as the SIAF counts), and in V2, V3 (arcsec).
    angle, parity : float, int
        Angle of the ideal y axis from V3 (deg), and the handedness of the ideal frame.
    to_ideal, to_pixel : tuple of tuple of float
        Distortion polynomials for x and y, and their inverses, in the SIAF's order of terms.
    """

    name: str
    size: tuple[int, int]
    reference: tuple[float, float]
    v2v3: tuple[float, float]
    angle: float
    parity: int
    to_ideal: tuple[Floats, Floats]
    to_pixel: tuple[Floats, Floats]
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def named(cls, name: str) -> Detector:
        """Return the detector with this keyword (``NRCALONG``, ``MIRIMAGE``, ...) or SIAF aperture."""
        keys = {entry["aperture"]: key for key, entry in _table().items()}
        key = keys.get(name, name)
        if key not in _table():
            raise ValueError(f"no detector {name!r} in the table; it has {', '.join(_table())}")
        entry = _table()[key]
        return cls(
            name=key,
            size=(entry["XSciSize"], entry["YSciSize"]),
            reference=(entry["XSciRef"], entry["YSciRef"]),
            v2v3=(entry["V2Ref"], entry["V3Ref"]),
            angle=entry["V3IdlYAngle"],
            parity=entry["VIdlParity"],
            to_ideal=(tuple(entry["Sci2IdlX"]), tuple(entry["Sci2IdlY"])),
            to_pixel=(tuple(entry["Idl2SciX"]), tuple(entry["Idl2SciY"])),
        )

    @property
    def scale(self) -> float:
        """Arcseconds per native pixel."""
        return float(np.hypot(self.to_ideal[1][1], self.to_ideal[1][2]))

    @property
    def field(self) -> tuple[int, int, int, int]:
        """First column, first row, end column and end row of the field that tiles a mosaic."""
        start = max(0, MIRI_FIELD_START - self.corner[0]) if self.name == "MIRIMAGE" else 0
        return (start, 0, *self.size)

    def subarray(self, shape: tuple[int, int], *, binning: int = 1) -> Detector:
        """Return the middle of the field, ``shape`` binned pixels (rows, columns) in size."""
        x0, y0, x1, y1 = self.field
        nx, ny = shape[1] * binning, shape[0] * binning
        if nx > x1 - x0 or ny > y1 - y0:
            raise ValueError(f"shape {shape} x {binning} exceeds the field of {self.name}, {(y1 - y0, x1 - x0)}")
        x, y = (x0 + x1 - nx) // 2, (y0 + y1 - ny) // 2
        return replace(
            self,
            size=(nx, ny),
            reference=(self.reference[0] - x, self.reference[1] - y),
            corner=(self.corner[0] + x, self.corner[1] + y),
        )


def _polynomial(coefficients: Floats) -> Model:
    degree = int(np.sqrt(2 * len(coefficients))) - 1
    terms = (f"c{a - b}_{b}" for a in range(degree + 1) for b in range(a + 1))
    return models.Polynomial2D(degree, **dict(zip(terms, coefficients, strict=True)))


def _both(make: Callable[[float], Model], x: float, y: float | None = None) -> Model:
    return make(x) & make(x if y is None else y)


def _to_v2v3(detector: Detector, binning: int) -> Model:
    """Pixels (first pixel 0) to V2, V3 in arcsec."""
    binned = _both(models.Scale, binning) | _both(models.Shift, (binning + 1) / 2)
    centred = binned | _both(models.Shift, -detector.reference[0], -detector.reference[1])
    forward, inverse = (
        models.Mapping((0, 1, 0, 1)) | _polynomial(x) & _polynomial(y)
        for x, y in (detector.to_ideal, detector.to_pixel)
    )
    forward.inverse = inverse
    cos, sin = np.cos(np.radians(detector.angle)), np.sin(np.radians(detector.angle))
    rotated = models.AffineTransformation2D(
        matrix=[[detector.parity * cos, sin], [-detector.parity * sin, cos]], translation=detector.v2v3
    )
    return centred | forward | rotated


def _to_sky(v2v3: tuple[float, float], pointing: Pointing) -> Model:
    """V2, V3 in arcsec to right ascension and declination in deg, when ``v2v3`` is at ``pointing``."""
    ra, dec, roll = pointing
    angles = [v2v3[0] / 3600, -v2v3[1] / 3600, roll, dec, -ra]
    to_sky = (
        _both(models.Scale, 1 / 3600)
        | SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D(angles, axes_order="zyxyz")
        | CartesianToSpherical(wrap_lon_at=360)
    )
    to_sky.name = "v23tosky"  # jwst.tweakreg finds it by this name
    return to_sky


def detector_wcs(detector: Detector, ra: float, dec: float, roll: float, *, binning: int = 1) -> WCS:
    """Return the imaging WCS of a detector, with the frames that jwst gives it.

    Parameters
    ----------
    detector : Detector
        The geometry.
    ra, dec, roll : float
        Sky position of the detector's reference point and the position angle of V3 there, in deg: jwst's
        ``meta.wcsinfo.ra_ref``, ``dec_ref`` and ``roll_ref``.
    binning : int
        Native pixels per pixel and axis. The sky position of the array's corners does not depend on it.

    Returns
    -------
    gwcs.WCS
        From ``detector`` (pixels, the centre of the first is 0) over ``v2v3`` and ``v2v3vacorr`` (no velocity
        aberration here) to ``world`` (ICRS, deg).
    """
    v2v3, vacorr = (frames.Frame2D(name=n, unit=(u.arcsec, u.arcsec)) for n in ("v2v3", "v2v3vacorr"))
    wcs = WCS(
        [
            (frames.Frame2D(name="detector", unit=(u.pix, u.pix)), _to_v2v3(detector, binning)),
            (v2v3, models.Identity(2)),
            (vacorr, _to_sky(detector.v2v3, Pointing(ra, dec, roll))),
            (frames.CelestialFrame(name="world", reference_frame=ICRS(), unit=(u.deg, u.deg)), None),
        ]
    )
    ny, nx = image_shape(detector, binning)
    wcs.bounding_box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    return wcs


def image_shape(detector: Detector, binning: int) -> tuple[int, int]:
    return detector.size[1] // binning, detector.size[0] // binning


def native_edges(detector: Detector, binning: int) -> tuple[NDArray, NDArray]:
    """Return the native row and column at which each binned row and column starts."""
    ny, nx = image_shape(detector, binning)
    return detector.corner[1] + binning * np.arange(ny)[:, None], detector.corner[0] + binning * np.arange(nx)


def lyot_region(detector: Detector, *, binning: int = 1) -> NDArray[np.bool_]:
    """Return where the pixels of MIRI's Lyot coronagraph are (nowhere on other detectors)."""
    y, x = native_edges(detector, binning)
    return (y >= LYOT_ROWS) & (x + binning <= LYOT_COLUMNS) & (detector.name == "MIRIMAGE")


def static_dq(detector: Detector, *, binning: int = 1) -> NDArray[np.uint32]:
    """Return the flags of every exposure: NIRCam's reference pixels, MIRI outside imager and Lyot."""
    y, x = native_edges(detector, binning)
    if detector.name == "MIRIMAGE":
        blind = (x < MIRI_FIELD_START) & ~lyot_region(detector, binning=binning)
    else:
        end = NIRCAM_FRAME - NIRCAM_BORDER - binning
        blind = (x < NIRCAM_BORDER) | (x > end) | (y < NIRCAM_BORDER) | (y > end)
    return np.where(blind, DO_NOT_USE | NON_SCIENCE, np.uint32(0))


def to_plane(ra: ArrayLike, dec: ArrayLike, ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Project the sky (deg) to the tangent plane at ``ra0, dec0``: arcsec to the east and to the north."""
    a, d, d0 = np.radians(np.subtract(ra, ra0)), np.radians(dec), np.radians(dec0)
    depth = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
    north = np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(a)
    return ARCSEC * np.cos(d) * np.sin(a) / depth, ARCSEC * north / depth


def from_plane(east: ArrayLike, north: ArrayLike, ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Return the sky position (deg) of points of the tangent plane at ``ra0, dec0``, in arcsec."""
    e, n, d0 = np.divide(east, ARCSEC), np.divide(north, ARCSEC), np.radians(dec0)
    inward = np.cos(d0) - n * np.sin(d0)
    dec = np.arctan2(np.sin(d0) + n * np.cos(d0), np.hypot(e, inward))
    return np.mod(ra0 + np.degrees(np.arctan2(e, inward)), 360), np.degrees(dec)


def pixels_on_plane(wcs: WCS, shape: tuple[int, int], ra0: float, dec0: float) -> tuple[NDArray, NDArray]:
    """Return the tangent plane coordinates of all pixels, interpolated from a lattice of about every 32nd."""
    y, x = (np.linspace(-0.5, n - 0.5, max(12, n // 32 + 2)) for n in shape)
    ra, dec = wcs(*np.meshgrid(x, y))
    rows, columns = map(np.arange, shape)
    east, north = (RectBivariateSpline(y, x, p)(rows, columns) for p in to_plane(ra, dec, ra0, dec0))
    return east, north


def field_of_view(detectors: Sequence[Detector]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the V2, V3 of the middle of the detectors' fields, and their width and height, in arcsec."""
    corners = []
    for detector in detectors:
        x0, y0, x1, y1 = detector.field
        v2, v3 = _to_v2v3(detector, 1)(*np.array([[x0, x1, x0, x1], [y0, y0, y1, y1]]) - 0.5)
        corners.extend(v2 + 1j * v3)
    turn = np.exp(1j * np.radians(detectors[0].angle))
    turned = np.array(corners) * turn
    low, high = (f(turned.real) + 1j * f(turned.imag) for f in (np.min, np.max))
    middle = (low + high) / 2 / turn
    return (middle.real, middle.imag), ((high - low).real, (high - low).imag)


def reference_pointing(detector: Detector, v2v3: tuple[float, float], pointing: Pointing) -> Pointing:
    """Return the pointing of a detector's reference point when ``v2v3`` is at ``pointing``."""
    to_sky = _to_sky(v2v3, pointing)
    here, v3_pole = np.radians(to_sky(*detector.v2v3)), np.radians(to_sky(0.0, 90 * 3600.0))
    roll = position_angle(*here, *v3_pole).deg
    ra, dec = np.degrees(here)
    return Pointing(float(ra), float(dec), float(roll))
