"""What the core knows of an exposure. No stage opens a file: it calls `Exposure.read`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from astropy.coordinates import ICRS
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame

__all__ = ["LARGEST", "LYOT", "Exposure", "Pixels", "SpectralExposure", "SpectralPixels"]

LYOT = "lyot"
"""Part of a MIRI tile that is matched to the rest of it."""

LARGEST = 1e15
"""Of pixels whose typical value is near 1: squares beyond have no place in single precision."""

_SMALL = 1e-8
_ASKED = 9  # exposures
_SAMPLE = 64  # pixels along a side

Given = TypeVar("Given")


@dataclass(frozen=True)
class Pixels:
    """
    Pixels of one exposure.

    Parameters
    ----------
    data : ndarray, shape (ny, nx)
        Surface brightness.
    good : ndarray of bool, shape (ny, nx)
        Pixels that may be used. Pixels that are not finite are never used, whatever this says.
    variance : ndarray, shape (ny, nx), optional
        Variance of each pixel, where it is known.
    """

    data: np.ndarray
    good: np.ndarray
    variance: np.ndarray | None = None

    def image(self, less: float = 0.0) -> np.ndarray:
        """Return the data less a number in single precision, NaN where they are not good."""
        with np.errstate(over="ignore"):
            image = np.subtract(self.data, less, dtype=np.result_type(self.data.dtype, np.float32)).astype(np.float32)
        image[~(self.good & np.isfinite(image))] = np.nan
        return image

    def typical(self) -> float:
        """Return about the median of the good pixels, a number of single precision; 0 if none is found."""
        step = 1 + int(np.sqrt(self.data.size) / _SAMPLE)
        data, good = self.data[::step, ::step], self.good[::step, ::step]
        sample = data[good & np.isfinite(data)]
        return float(np.float32(np.median(sample))) if sample.size else 0.0


@dataclass(frozen=True)
class Exposure:
    """
    One image of the sky taken by one detector.

    Parameters
    ----------
    name : str
        Unique name.
    read : callable
        ``read() -> Pixels``, the same each time. Called several times: to outline the good pixels, and to measure them.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)``: pixel coordinates, 0 at the centre of the first pixel, to ICRS degrees.
    group : str, optional
        Exposures of one group share a level. By default each exposure is its own group.
    time : float, optional
        Time of the exposure, in days.
    is_background : bool, optional
        Whether this is a dedicated background exposure.
    tile : str, optional
        For level matching: the exposures of one tile are dithers of it. By default each exposure is its own tile.
    part : str, optional
        For level matching: which part of the tile this is, where parts are matched before tiles: a chip, or
        ``science`` or ``lyot`` for the fields of MIRI.
    is_fixed : bool, optional
        Whether level matching leaves it as it is.
    digest : str, optional
        Hash of all that `read` and the WCS depend on, for results that are used again; empty if it is not known.
    """

    name: str
    read: Callable[[], Pixels]
    wcs: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    group: str = ""
    time: float | None = None
    is_background: bool = False
    tile: str = ""
    part: str = ""
    is_fixed: bool = False
    digest: str = ""

    @classmethod
    def from_arrays(
        cls,
        name: str,
        data: np.ndarray,
        wcs: Any,
        *,
        good: np.ndarray | None = None,
        variance: np.ndarray | None = None,
        **kwargs: object,
    ) -> "Exposure":
        """
        Make an exposure of arrays that are in memory.

        Parameters
        ----------
        name : str
            Unique name.
        data : array_like, shape (ny, nx)
            Surface brightness; pixels that a masked array masks are not good.
        wcs : callable
            ``wcs(x, y) -> (ra, dec)`` in degrees, or an `astropy.wcs.WCS`.
        good : array_like of bool, shape (ny, nx), optional
            Good pixels; by default all that are finite.
        variance : array_like, shape (ny, nx), optional
            Variance of each pixel.
        **kwargs
            Further fields of `Exposure`.

        Returns
        -------
        Exposure
            The exposure.

        Raises
        ------
        ValueError
            If the data are not two-dimensional or have no pixels, or the mask or the variance has another shape.
        """
        data = np.asanyarray(data)
        if data.ndim != 2 or not data.size:
            raise ValueError(f"{name}: data must have 2 dimensions and some pixels, got shape {data.shape}")
        mask = np.isfinite(data) if good is None else np.array(good, dtype=bool)
        if isinstance(data, np.ma.MaskedArray):
            data, mask = data.data, mask & ~np.ma.getmaskarray(data)
        if mask.shape != data.shape:
            raise ValueError(f"{name}: the mask has shape {mask.shape}, the data {data.shape}")
        variance = None if variance is None else np.asarray(variance)
        if variance is not None and variance.shape != data.shape:
            raise ValueError(f"{name}: the variance has shape {variance.shape}, the data {data.shape}")
        to_sky = wcs if callable(wcs) else icrs_of(wcs)
        return cls(name, partial(_given, Pixels(data, mask, variance)), to_sky, **kwargs)  # type: ignore[arg-type]

    def times(self, factor: float) -> "Exposure":
        """Exposure in another unit."""
        return self.changed(partial(_scaled, factor=factor), f"times {factor!r}")

    def changed(self, change: Callable[[Pixels], Pixels], how: str) -> "Exposure":
        """
        Exposure whose pixels are changed when they are read.

        Parameters
        ----------
        change : callable
            Function of the pixels.
        how : str
            What it does, which tells it from other changes.

        Returns
        -------
        Exposure
            The same but for `read` and ``digest``.
        """
        return replace(self, read=partial(_changed, self.read, change), digest=self.digest and f"{self.digest}, {how}")


class SpectralPixels(NamedTuple):
    """
    Good pixels of one exposure of an integral field unit.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        ICRS position of each pixel, in degrees.
    wavelength : ndarray, shape (n,)
        Its wavelength, in micrometres.
    value : ndarray, shape (n,)
        Surface brightness.
    variance : ndarray, shape (n,), optional
        Variance of each pixel; if it is not known, it is measured.
    """

    ra: np.ndarray
    dec: np.ndarray
    wavelength: np.ndarray
    value: np.ndarray
    variance: np.ndarray | None = None

    def finite(self) -> "SpectralPixels":
        """Pixels whose position, wavelength, value and variance are finite, the variance not negative."""
        arrays = [a for a in self if a is not None]
        good = np.logical_and.reduce([np.isfinite(a) for a in arrays])
        if self.variance is not None:
            good &= self.variance >= 0
        return SpectralPixels(*(a[good] for a in arrays))

    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Middle of the positions, and range of the wavelengths; NaN without pixels."""
        if not len(self.ra):
            return (np.nan, np.nan), (np.nan, np.nan)
        a, d = np.deg2rad(self.ra), np.deg2rad(self.dec)
        x, y, z = (np.mean(v) for v in (np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)))
        middle = float(np.rad2deg(np.arctan2(y, x)) % 360), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))
        return middle, (float(self.wavelength.min()), float(self.wavelength.max()))


@dataclass(frozen=True)
class SpectralExposure:
    """
    One exposure of an integral field unit, in one range of wavelengths.

    Parameters
    ----------
    name : str
        Unique name.
    read : callable
        ``read() -> SpectralPixels``. Called once.
    centre : tuple of float
        Right ascension and declination near its middle, in degrees.
    wavelengths : tuple of float
        Range of its wavelengths, in micrometres.
    slice_width : float
        Width of a slice on the sky, in arcseconds.
    digest : str, optional
        Hash of all that `read` depends on, for results that are used again; empty if it is not known.
    """

    name: str
    read: Callable[[], SpectralPixels]
    centre: tuple[float, float]
    wavelengths: tuple[float, float]
    slice_width: float
    digest: str = ""

    @classmethod
    def from_arrays(
        cls,
        name: str,
        data: np.ndarray,
        ra: np.ndarray,
        dec: np.ndarray,
        wavelength: np.ndarray,
        *,
        slice_width: float,
        good: np.ndarray | None = None,
        variance: np.ndarray | None = None,
    ) -> "SpectralExposure":
        """
        Make an exposure of arrays that are in memory.

        Parameters
        ----------
        name : str
            Unique name.
        data : array_like
            Surface brightness, of any shape; pixels that a masked array masks are not good.
        ra, dec, wavelength : array_like of the shape of the data
            ICRS position in degrees, and wavelength in micrometres, of each pixel.
        slice_width : float
            Width of a slice, or distance of the pixels on the sky, in arcseconds.
        good : array_like of bool, of the shape of the data, optional
            Good pixels; by default all that are finite.
        variance : array_like of the shape of the data, optional
            Variance of each pixel; if it is not known, it is measured.

        Returns
        -------
        SpectralExposure
            The exposure.

        Raises
        ------
        ValueError
            If shapes differ, or the width is not positive and finite.
        """
        if not 0 < slice_width < np.inf:
            raise ValueError(f"{name}: slice_width must be positive and finite, got {slice_width}")
        given = {"ra": ra, "dec": dec, "wavelength": wavelength, "good": good, "variance": variance}
        arrays = {key: np.ma.getdata(array) for key, array in given.items() if array is not None}
        values = np.ma.getdata(data)
        masks = [np.ma.getmaskarray(a) for a in (data, *given.values()) if isinstance(a, np.ma.MaskedArray)]
        for key, array in arrays.items():
            if array.shape != values.shape:
                raise ValueError(f"{name}: {key} has shape {array.shape}, the data {values.shape}")
        kept = np.asarray(arrays.pop("good", np.isfinite(values)), dtype=bool)
        kept = kept & ~np.logical_or.reduce(masks) if masks else kept
        pixels = SpectralPixels(value=values[kept], **{key: a[kept] for key, a in arrays.items()}).finite()
        return cls(name, partial(_given, pixels), *pixels.extent(), slice_width)


def icrs_of(wcs: WCS) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """
    Make the function that exposures take of a FITS WCS.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial WCS with equatorial or galactic axes, in any frame.

    Returns
    -------
    callable
        ``wcs(x, y) -> (ra, dec)``: ICRS, in degrees.

    Raises
    ------
    ValueError
        If its axes are others: astropy takes ecliptic longitude and latitude for right ascension and declination.
    """
    wcs.wcs.set()
    if wcs.wcs.lngtyp.strip() not in ("RA", "GLON"):
        raise ValueError(
            f"its axes are {wcs.wcs.lngtyp} and {wcs.wcs.lattyp}, not RA and Dec or galactic; reproject it"
        )
    if isinstance(wcs_to_celestial_frame(wcs), ICRS) and wcs.wcs.lng == 0:
        return wcs.pixel_to_world_values
    return partial(_to_icrs, wcs)


# Functions of the module, not local ones: these can be sent to other processes.


def _to_icrs(wcs: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position = wcs.pixel_to_world(x, y).icrs
    return position.ra.deg, position.dec.deg


def _given(pixels: Given) -> Given:
    return pixels


def _changed(read: Callable[[], Pixels], change: Callable[[Pixels], Pixels]) -> Pixels:
    return change(read())


def _scaled(pixels: Pixels, factor: float) -> Pixels:
    variance = None if pixels.variance is None else pixels.variance * np.float64(factor) ** 2
    return Pixels(pixels.data * np.float64(factor), pixels.good, variance)


def handy_factor(exposures: Sequence[Exposure]) -> float:
    """
    Find a factor that brings data into the range of single precision.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures in one unit.

    Returns
    -------
    float
        1 for values of the usual size, else a power of 2 that brings typical values of most exposures near 1.
    """
    exposures = sorted(exposures, key=lambda e: e.name)
    ends = [next(filter(None, map(_size, order)), 1.0) for order in (exposures, reversed(exposures))]
    if all(map(_is_usual, ends)):
        return 1.0
    some = np.unique(np.linspace(0, len(exposures) - 1, _ASKED).astype(int))
    sizes = [size for i in some if (size := _size(exposures[i]))] or ends
    typical = np.exp(np.median(np.log(sizes)))
    return 1.0 if _is_usual(typical) else float(2.0 ** -round(np.log2(typical)))


def _is_usual(size: float) -> bool:
    return _SMALL < size < 1 / _SMALL


def _size(exposure: Exposure) -> float:
    """Median of the absolute values of good pixels that are not 0; 0 if there are none."""
    pixels = exposure.read()
    sample = np.abs(pixels.data[pixels.good & np.isfinite(pixels.data)][::97].astype(float))
    return float(np.median(sample[sample > 0])) if sample.any() else 0.0


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name of an exposure before the message of a ValueError that does not have it."""
    try:
        yield
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error


def check_names(exposures: Sequence[Exposure | SpectralExposure]) -> None:
    """Raise ValueError if two exposures have the same name."""
    repeated = [name for name, count in Counter(e.name for e in exposures).items() if count > 1]
    if repeated:
        raise ValueError(f"these exposures appear more than once: {', '.join(repeated)}; list each once")


def group_numbers(exposures: Sequence[Exposure], *, per_detector: bool) -> np.ndarray:
    """Return the index of the group of each exposure, groups in order of their first member's name."""
    keys = [("name", e.name) if per_detector or not e.group else ("group", e.group) for e in exposures]
    by_name = sorted(range(len(keys)), key=lambda n: exposures[n].name)
    number: dict[tuple[str, str], int] = {}
    for n in by_name:
        number.setdefault(keys[n], len(number))
    return np.array([number[key] for key in keys], dtype=int)
