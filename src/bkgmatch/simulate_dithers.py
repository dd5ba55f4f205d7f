"""Simulated dithers of one field in front of a fixed detector pattern, as MIRI's imager sees it, with known truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from gwcs import WCS
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from bkgmatch.detectors import NON_SCIENCE, Detector, from_plane, lyot_region, pixels_on_plane, to_plane
from bkgmatch.scenes import FWHM_TO_SIGMA
from bkgmatch.simulate import SimulatedExposure, simulate_mosaic

__all__ = ["DitheredExposures", "SourceField", "simulate_dithers"]

FWHM = 0.27  # arcsec, of MIRI at 7.7 micrometres
CORE, WING_RADIUS, REACH = 0.75, 1.8, 18.0  # part of the light in the core; radii in units of the FWHM
PIXELS_PER_SOURCE = 3000
LYOT_OFFSET = 1.5  # DN/s
EXPOSURE_DAYS, EPOCH_DAYS = 0.01, 30.0

# One realisation of a part of the pattern.
Part = Callable[[tuple[int, int], np.random.Generator], NDArray]


@dataclass(frozen=True, eq=False)
class SourceField:
    """Point sources with wings, and perhaps a wide Gaussian one in the middle.

    Attributes
    ----------
    ra, dec : float
        The middle (deg).
    sources : ndarray of shape (n, 3)
        Right ascension, declination (deg) and flux (DN/s) of the point sources.
    fwhm : float
        Full width at half maximum of their cores (arcsec).
    pixel : float
        Side of the pixels that collect the light (arcsec).
    extended : tuple of float, optional
        Peak (DN/s per pixel) and standard deviation (arcsec) of the source in the middle.
    """

    ra: float
    dec: float
    sources: NDArray
    fwhm: float
    pixel: float
    extended: tuple[float, float] | None = None

    def profile(self, radius: NDArray) -> NDArray:
        """Return the part of a point source's flux in a pixel at this distance (arcsec).

        Notes
        -----
        A Gaussian core holds three quarters of the light; the rest is in wings that fall as
        :math:`(1 + r^2 / a^2)^{-3/2}` up to a radius that holds all of it.
        """
        sigma, a, reach = self.fwhm * FWHM_TO_SIGMA, self.fwhm * WING_RADIUS, self.fwhm * REACH
        core = np.exp(-0.5 * (radius / sigma) ** 2) / sigma**2
        spread = 1 + (radius / a) ** 2
        wings = (radius < reach) / (spread * np.sqrt(spread)) / (a**2 * (1 - 1 / np.hypot(1, reach / a)))
        return self.pixel**2 / (2 * np.pi) * (CORE * core + (1 - CORE) * wings)

    def on_pixels(self, wcs: WCS, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return the light in each pixel of an image (DN/s)."""
        east, north = pixels_on_plane(wcs, shape, self.ra, self.dec)
        light = np.zeros(shape, dtype=np.float32)
        if self.extended is not None:
            peak, sigma = self.extended
            light += peak * np.exp(-0.5 * (east**2 + north**2) / sigma**2)
        half = int(np.ceil(self.fwhm * REACH / self.pixel)) + 1
        ra, dec, flux = self.sources.T
        x, y = (np.round(p).astype(int) for p in wcs.invert(ra, dec, with_bounding_box=False))
        for column, row, e, n, f in zip(x, y, *to_plane(ra, dec, self.ra, self.dec), flux, strict=True):
            stamp = tuple(slice(max(0, p - half), max(0, p + half + 1)) for p in (row, column))
            light[stamp] += f * self.profile(np.hypot(east[stamp] - e, north[stamp] - n))
        return light


@dataclass(frozen=True, eq=False)
class DitheredExposures:
    """Exposures of one field with one detector, and the truth.

    Attributes
    ----------
    exposures : tuple of SimulatedExposure
        The images in DN/s; ``level`` is the level alone, without the pattern.
    times : ndarray of shape (n,)
        Time of each exposure (days).
    epochs : ndarray of shape (n,)
        Number of the epoch of each exposure, from 0.
    patterns : ndarray of float32 and of shape (epochs, ny, nx)
        What the detector adds to all exposures of an epoch (DN/s).
    field : SourceField
        What is on the sky.
    """

    exposures: tuple[SimulatedExposure, ...]
    times: NDArray
    epochs: NDArray
    patterns: NDArray[np.float32]
    field: SourceField

    @property
    def sources(self) -> NDArray:
        """Right ascension, declination (deg) and flux (DN/s) of the point sources, of shape (n, 3)."""
        return self.field.sources

    def background(self, i: int) -> NDArray[np.float32]:
        """Return level plus pattern of an exposure: what is left of it without light, cosmic rays and noise (DN/s)."""
        seen = (self.exposures[i].dq & NON_SCIENCE) == 0
        return np.where(seen, self.patterns[self.epochs[i]] + np.float32(self.exposures[i].level), np.float32(0))

    def light(self, i: int) -> NDArray[np.float32]:
        """Return the light of the sources in each pixel of an exposure, without noise (DN/s)."""
        exposure = self.exposures[i]
        seen = (exposure.dq & NON_SCIENCE) == 0
        return np.where(seen, self.field.on_pixels(exposure.wcs, exposure.data.shape), np.float32(0))


def _unit(image: NDArray) -> NDArray:
    """Return an image with mean 0 and standard deviation 1."""
    return (image - image.mean()) / image.std()


def _glow(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return a gradient and a broad glow in one half of the field."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    angle, (y0, x0) = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6, 2)
    gradient = np.sin(angle) * y[:, None] + np.cos(angle) * x
    return _unit(gradient + 2 * np.exp(-((y[:, None] - y0) ** 2) / 0.3 - (x - x0) ** 2 / 0.6))


def _stripes(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return rows and columns with levels of their own, and a bright cross."""
    rows, columns = (rng.standard_normal(n) for n in shape)
    for lines in (rows, columns):
        start = rng.integers(len(lines))
        lines[start : start + max(1, len(lines) // 50)] += 2
    return _unit(rows[:, None] + columns)


def _rings(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return rings about a point beside the field, 100 pixels wide near it and 10 to 20 far from it."""
    y, x = (np.arange(n) for n in shape)
    radius = np.hypot(y[:, None] + rng.uniform(0.1, 0.4) * shape[0], x + rng.uniform(0.1, 0.4) * shape[1])
    return _unit(np.sin(2 * np.pi * radius * (0.01 + 0.02 * radius / max(shape))))


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return random structure with scales from 10 to 100 pixels."""
    scales = (4, 12, 40)
    fields = [_unit(gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")) for sigma in scales]
    return _unit(np.sum(fields, axis=0))


def _pixels(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return structure from pixel to pixel."""
    return rng.standard_normal(shape)


def _bad_columns(shape: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """Return a few columns that stand out."""
    image = np.zeros(shape)
    image[:, rng.choice(shape[1], 4, replace=False)] = rng.choice([-1, 1], 4) * rng.uniform(0.5, 1.5, 4)
    return image


# Standard deviation of each part (DN/s).
PARTS: dict[Part, float] = {_glow: 0.4, _stripes: 0.1, _rings: 0.1, _texture: 0.15, _pixels: 0.1, _bad_columns: 1.0}


def _pattern(shape: tuple[int, int], lyot: NDArray[np.bool_], rng: np.random.Generator) -> NDArray:
    return np.sum([size * part(shape, rng) for part, size in PARTS.items()], axis=0) + LYOT_OFFSET * lyot


def _draw_sources(
    exposures: list[SimulatedExposure],
    center: tuple[float, float],
    pixel: float,
    number: int | None,
    fluxes: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray:
    """Draw sources over the box that holds all exposures; N(> flux) falls as 1 / flux."""
    ny, nx = exposures[0].data.shape
    x, y = np.array([(0, 0), (nx, 0), (0, ny), (nx, ny)]).T - 0.5
    sky = [e.wcs(x, y) for e in exposures]
    planes = [to_plane(ra, dec, *center) for ra, dec in sky]
    low, high = np.min(planes, axis=(0, 2)), np.max(planes, axis=(0, 2))
    if number is None:
        number = round(np.prod(high - low) / (PIXELS_PER_SOURCE * pixel**2))
    east, north = rng.uniform(low, high, (number, 2)).T
    ra, dec = from_plane(east, north, *center)
    faint, bright = fluxes
    return np.column_stack([ra, dec, faint / (1 - rng.random(number) * (1 - faint / bright))])


def simulate_dithers(
    *,
    rng: np.random.Generator,
    dithers: int = 12,
    dither_step: float = 6.0,
    jitter: float = 0.1,
    epochs: int = 1,
    center: tuple[float, float] = (150.0, 2.2),
    binning: int = 1,
    shape: tuple[int, int] | None = None,
    level_range: tuple[float, float] = (10.0, 10.3),
    pattern: float = 1.0,
    change: float = 0.2,
    noise: float = 0.115,
    n_sources: int | None = None,
    fluxes: tuple[float, float] = (3.0, 300.0),
    extended: tuple[float, float] | None = None,
    cosmic_rays: float = 0.002,
    bad_pixels: float = 0.002,
) -> DitheredExposures:
    """Simulate dithers of one field with MIRI's imager, whose background is an image.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    dithers : int
        Number of exposures, on a spiral.
    dither_step, jitter : float
        Distance of neighbouring dithers, and standard deviation of random offsets (arcsec).
    epochs : int
        The exposures come in so many blocks, 30 days apart.
    center : tuple of float
        Right ascension and declination of the middle of the dithers (deg).
    binning : int
        Native pixels per pixel and axis; sources are as many times wider.
    shape : tuple of int, optional
        Rows and columns of pixels; by default the whole detector, else the middle of its field.
    level_range : tuple of float
        Levels are uniform in this range (DN/s); each epoch after the first has an offset of that size.
    pattern : float
        Size of the detector's pattern: 1 is about 0.47 DN/s rms, of which 0.1 from pixel to pixel.
    change : float
        Size of what the pattern of a later epoch has of its own, as a fraction of the pattern.
    noise : float
        Standard deviation of the noise in each pixel (DN/s).
    n_sources : int, optional
        Number of point sources in a box about all exposures; by default one per 3000 pixels.
    fluxes : tuple of float
        Smallest and largest flux of a point source (DN/s). Between them N(> flux) falls as 1 / flux.
    extended : tuple of float, optional
        Peak (DN/s per pixel) and standard deviation (arcsec) of a Gaussian source in the middle.
    cosmic_rays, bad_pixels : float
        As in `bkgmatch.simulate.simulate_mosaic`.

    Returns
    -------
    DitheredExposures
        The exposures in DN/s, and the truth.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.simulate_dithers import simulate_dithers
    >>> dithers = simulate_dithers(rng=np.random.default_rng(1), dithers=4, shape=(100, 120))
    >>> rest = dithers.exposures[0].data - dithers.background(0) - dithers.light(0)
    >>> print(f"{np.nanmedian(abs(rest)) / 0.6745:.2f} DN/s")
    0.12 DN/s
    """
    plain = simulate_mosaic(
        rng=rng,
        detectors=("MIRIMAGE",),
        tiles=(1, 1),
        dithers=dithers,
        center=center,
        dither_step=dither_step,
        jitter=jitter,
        binning=binning,
        shape=shape,
        scene=None,
        level_range=level_range,
        noise=noise,
        cosmic_rays=cosmic_rays,
        bad_pixels=bad_pixels,
    )
    detector = plain[0].detector
    pixel = Detector.named("MIRIMAGE").scale * binning
    sources = _draw_sources(plain, center, pixel, n_sources, fluxes, rng)
    field = SourceField(*center, sources, FWHM * binning, pixel, extended)
    epoch = np.arange(dithers) * epochs // dithers
    patterns = _patterns(epochs, plain[0].data.shape, lyot_region(detector, binning=binning), change, rng)
    dark = DitheredExposures(
        exposures=tuple(plain),
        times=EXPOSURE_DAYS * np.arange(dithers) + EPOCH_DAYS * epoch,
        epochs=epoch,
        patterns=(pattern * patterns).astype(np.float32),
        field=field,
    )
    return _illuminated(dark, np.ptp(level_range) * rng.choice([-1, 1], epochs) * (np.arange(epochs) > 0))


def _patterns(
    epochs: int, shape: tuple[int, int], lyot: NDArray[np.bool_], change: float, rng: np.random.Generator
) -> NDArray:
    """Draw the pattern of the first epoch, and those of the others, which differ from it in part."""
    first, *others = (_pattern(shape, lyot, rng) for _ in range(epochs))
    return np.array([first, *(first + change * other for other in others)])


def _illuminated(dark: DitheredExposures, offsets: NDArray) -> DitheredExposures:
    """Add light, pattern and the offsets of the epochs to exposures that have only a level."""
    exposures = []
    for i, exposure in enumerate(dark.exposures):
        offset = np.float32(offsets[dark.epochs[i]])
        seen = (exposure.dq & NON_SCIENCE) == 0
        added = dark.light(i) + np.where(seen, dark.patterns[dark.epochs[i]] + offset, np.float32(0))
        exposures.append(replace(exposure, data=exposure.data + added, level=exposure.level + float(offset)))
    return replace(dark, exposures=tuple(exposures))
