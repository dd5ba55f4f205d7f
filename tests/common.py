"""One example of every kind of image and of pointing, shared by the tests."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest
from astropy.wcs import WCS

from bkgmatch.exposures import Exposure

SHAPE = (48, 60)
PIXEL = 0.1  # arcsec
POLE = (123.0, 90.0)
PLACES = {
    "equator": (150.0, 0.0),
    "middle": (83.6, -41.0),
    "across RA 0": (0.0, 20.0),
    "north pole": POLE,
    "near the pole": (40.0, 89.999),
    "south pole": (200.0, -90.0),
}


def few(number: int, cases: Iterable) -> list:
    """Cases of a test, of which a few, spread over all, run by default; the others are slow."""
    cases = list(cases)
    fast = {round(place) for place in np.linspace(0, len(cases) - 1, number)}
    return [case if k in fast else slow(case) for k, case in enumerate(cases)]


def slow(case):
    """A case of a test that does not run by default."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)


def tan(
    ra: float = 150.0,
    dec: float = 20.0,
    *,
    shape: tuple[int, int] = SHAPE,
    angle: float = 0.0,
    pixel: float = PIXEL,
    shift: tuple[float, float] = (0.0, 0.0),
) -> WCS:
    """TAN projection; ``shift`` (x, y) moves the image over the sky by so many pixels, ``angle`` in degrees."""
    ny, nx = shape
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(nx + 1) / 2 - shift[0], (ny + 1) / 2 - shift[1]]
    wcs.wcs.cd = pixel / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.set()
    return wcs


def to_sky(wcs: WCS) -> Callable:
    """``wcs(x, y) -> (ra, dec)``, the form that bkgmatch takes."""
    return partial(_to_sky, wcs)


def _to_sky(wcs: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    return ra, dec


def to_pixels(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates by astropy."""
    x, y = wcs.wcs_world2pix(ra, dec, 0)
    return x, y


def centres_on(here: WCS, there: WCS, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y) on ``there`` of the centres of the pixels of ``here``, each of shape (ny, nx)."""
    y, x = np.indices(shape)
    found = to_pixels(there, *here.wcs_pix2world(x.ravel(), y.ravel(), 0))
    return found[0].reshape(shape), found[1].reshape(shape)


def lies_on(here: WCS, there: WCS, shape: tuple[int, int], good: np.ndarray) -> np.ndarray:
    """Whether the pixel of ``there`` that is nearest to each pixel centre of ``here`` is good, by brute force."""
    x, y = centres_on(here, there, shape)
    column, row = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    on_detector = (column >= 0) & (column < good.shape[1]) & (row >= 0) & (row < good.shape[0])
    found = np.zeros(shape, dtype=bool)
    found[on_detector] = good[row[on_detector], column[on_detector]]
    return found


def near_an_edge(x: np.ndarray, y: np.ndarray, good: np.ndarray, distance: float) -> np.ndarray:
    """Whether the good mask changes within a distance (per axis) of points; outside the image nothing is good."""
    padded = np.pad(good, 2)
    columns = [np.clip(np.floor(x + d + 2.5).astype(int), 0, padded.shape[1] - 1) for d in (-distance, 0, distance)]
    rows = [np.clip(np.floor(y + d + 2.5).astype(int), 0, padded.shape[0] - 1) for d in (-distance, 0, distance)]
    seen = np.stack([padded[row, column] for row in rows for column in columns])
    return seen.any(axis=0) & ~seen.all(axis=0)


def noise(shape: tuple[int, int] = SHAPE, *, seed: int = 1, level: float = 10.0, sigma: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def _all_nan() -> np.ndarray:
    return np.full(SHAPE, np.nan, dtype=np.float32)


def _edge_masked() -> np.ndarray:
    data = noise()
    data[:4], data[-4:], data[:, :4], data[:, -4:] = (np.nan,) * 4
    return data


def _large_hole() -> np.ndarray:
    data = noise()
    data[16:32, 16:40] = np.nan
    return data


def _two_parts() -> np.ndarray:
    data = noise()
    data[:, 24:34] = np.nan
    return data


def _isolated() -> np.ndarray:
    data = noise()
    data.flat[np.random.default_rng(2).choice(data.size, 200, replace=False)] = np.nan
    return data


def _infinite() -> np.ndarray:
    data = noise()
    data[3, 5], data[7, 9], data[11, 13] = np.inf, -np.inf, np.nan
    return data


IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "plain": noise,
    "all NaN": _all_nan,
    "one pixel": lambda: noise((1, 1)),
    "one row": lambda: noise((1, 40)),
    "one column": lambda: noise((40, 1)),
    "big-endian": lambda: noise().astype(">f4"),
    "big-endian double": lambda: noise().astype(">f8"),
    "integer": lambda: np.rint(100 * noise()).astype(np.int32),
    "big-endian integer": lambda: np.rint(100 * noise()).astype(">i2"),
    "unsigned": lambda: np.rint(100 * noise()).astype(np.uint16),
    "half precision": lambda: noise().astype(np.float16),
    "float64": lambda: noise().astype(np.float64),
    "constant": lambda: np.full(SHAPE, 7.0, dtype=np.float32),
    "masked at the edge": _edge_masked,
    "large hole": _large_hole,
    "two parts": _two_parts,
    "isolated bad pixels": _isolated,
    "infinite values": _infinite,
    "Fortran order": lambda: np.asfortranarray(noise()),
    "strided": lambda: noise((96, 120))[::2, ::2],
}
"""Every kind of image."""

EMPTY = {"all NaN"}
"""Kinds without good pixels."""

TWINS = {"identical": 0.0, "shifted by 1e-9 deg": 1e-9, "shifted by 1e-12 deg": 1e-12}
"""Shift in right ascension, in degrees, between two exposures of the same sky."""


def exposure(name: str, data: np.ndarray, wcs: WCS, **kwargs: object) -> Exposure:
    return Exposure.from_arrays(name, data, to_sky(wcs), **kwargs)
