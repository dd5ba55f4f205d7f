"""Small mosaics of skies that are drawn anew each time: noise, gradients, nebulae, stars, cosmic rays and ghosts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.wcs import WCS
from common import PIXEL, centres_on, exposure, tan

from bkgmatch.exposures import Exposure

SHAPE = (40, 48)
PLACE = (0.0, 60.0)
NOISE = 0.1
SHIFTS = {
    "cross": [(0, 0), (31.2, 0.7), (62.4, -0.3), (0.4, 27.1), (31.6, 27.6)],
    "chain": [(38.3 * k, 0.4 * k) for k in range(5)],
    "dithers": [(38.0 * tile + dx, dy) for tile in range(2) for dx, dy in ((0, 0), (4.4, 2.7), (-3.3, 4.9))],
    "square": [(30.3 * (k % 3), 25.7 * (k // 3)) for k in range(9)],
}
LEVELS = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.3, 5.8, 9.7])


def dark(rng, x, y):
    """Nothing."""
    return np.zeros(x.shape)


def gradient(rng, x, y):
    """A slope of some six standard deviations of a pixel from side to side."""
    east, north = rng.normal(0, 0.1 * NOISE, 2)
    return 5 + east * x + north * y


def nebula(rng, x, y):
    """Waves of 25 to 80 pixels, together three standard deviations of a pixel."""
    waves = 8
    turn, phase = rng.uniform(0, 2 * np.pi, (2, waves))
    length = rng.uniform(25, 80, waves)
    size = 3 * NOISE * rng.normal(0, np.sqrt(2 / waves), waves)
    terms = (
        s * np.sin(2 * np.pi * (x * np.cos(t) + y * np.sin(t)) / w + p)
        for s, t, w, p in zip(size, turn, length, phase, strict=True)
    )
    return 5 + sum(terms)


def stars(rng, x, y, number=40, fwhm=2.2):
    """Stars with peaks of 1 to 300 standard deviations of a pixel."""
    sky = np.zeros(x.shape)
    low, high = (np.array([f(x), f(y)]) for f in (np.min, np.max))
    for column, row in rng.uniform(low, high, (number, 2)):
        near = (np.abs(x - column) < 3 * fwhm) & (np.abs(y - row) < 3 * fwhm)
        peak = NOISE / (1 - rng.random() * (1 - 1 / 300))
        sky[near] += peak * np.exp(-4 * np.log(2) * ((x[near] - column) ** 2 + (y[near] - row) ** 2) / fwhm**2)
    return sky


def cosmic_rays(rng, data, fraction):
    """Add light to a part of the pixels; nothing says which."""
    hit = rng.random(data.shape) < fraction
    return data + np.where(hit, rng.exponential(20 * NOISE, data.shape), 0)


Sky = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Mosaic:
    """Pointings that overlap; x and y of their pixels on the sky, in pixels of the first."""

    wcss: tuple[WCS, ...]
    x: np.ndarray
    y: np.ndarray
    tiles: tuple[str, ...]

    @classmethod
    def of(cls, geometry: str, angle: float = 2.0, jitter: np.random.Generator | None = None) -> "Mosaic":
        shifts = np.array(SHIFTS[geometry])
        shifts = shifts if jitter is None else shifts + jitter.uniform(-0.5, 0.5, shifts.shape)
        wcss = tuple(tan(*PLACE, shape=SHAPE, shift=s, angle=angle * k) for k, s in enumerate(shifts))
        return cls.around(wcss, tuple(f"t{k // 3 if geometry == 'dithers' else k}" for k in range(len(shifts))))

    @classmethod
    def around(cls, wcss: Sequence[WCS], tiles: Sequence[str] = ()) -> "Mosaic":
        """Pointings that are given."""
        places = [centres_on(wcs, tan(*PLACE, shape=SHAPE), SHAPE) for wcs in wcss]
        x, y = (np.array(axis) for axis in zip(*places, strict=True))
        return cls(tuple(wcss), x, y, tuple(tiles))

    def __len__(self) -> int:
        return len(self.wcss)

    @property
    def levels(self) -> np.ndarray:
        """True level of each exposure."""
        return LEVELS[: len(self)]

    @cached_property
    def arcsec(self) -> tuple[np.ndarray, np.ndarray]:
        """East and north of the pixels from `PLACE`, in arcseconds."""
        return -PIXEL * (self.x - (SHAPE[1] - 1) / 2), PIXEL * (self.y - (SHAPE[0] - 1) / 2)

    def observe(self, rng, sky: Sky = dark, *, noise=NOISE, planes: np.ndarray | None = None) -> np.ndarray:
        """Images of a sky: with levels, or planes (n, 3) of level and slopes to the east and north per arcsecond."""
        planes = np.pad(self.levels[:, None], ((0, 0), (0, 2))) if planes is None else planes
        level, east, north = planes.T[:, :, None, None]
        background = level + east * self.arcsec[0] + north * self.arcsec[1]
        noise = np.broadcast_to(np.reshape(noise, (-1, 1, 1)), (len(self), 1, 1))
        return sky(rng, self.x, self.y) + background + noise * rng.standard_normal(self.x.shape)

    def exposures(self, data: np.ndarray, noise: float | Sequence[float] | None = NOISE, **kwargs) -> list[Exposure]:
        """Exposures of images; further arguments have one value for each."""
        given = {key: list(values) for key, values in kwargs.items()}
        if noise is not None:
            variances = np.broadcast_to(np.square(noise), len(self))
            given["variance"] = [np.full(SHAPE, v) for v in variances]
        return [
            exposure(f"e{k}", image, self.wcss[k], **{key: values[k] for key, values in given.items()})
            for k, image in enumerate(data)
        ]


def centred(values: np.ndarray) -> np.ndarray:
    """Less their mean, which differences do not tell."""
    return values - values.mean()
