"""The exposures of one detector, and the merging of the others for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from bkgmatch.detection import deviation
from bkgmatch.donors import Donors, find_donors
from bkgmatch.execution import Work
from bkgmatch.exposures import LARGEST, Exposure, named
from bkgmatch.footprints import sky_vectors
from bkgmatch.holes import fill_holes
from bkgmatch.image_samples import Standard, measure_standards, sample_rows
from bkgmatch.leave_one_out import merge_others, variance_of_middle
from bkgmatch.options import ImageForImageOptions, MergeMethod
from bkgmatch.stored import Stack

__all__ = ["Background", "ImageStack"]

_LEAST_KNOWN = 0.1  # part of the pixels whose variance must be given for it to be used
_LEAST_VARIANCE = 0.01  # of the median: what is given as less says nothing
_AT_ONCE = 1 << 18  # pixels
_SMOOTHING = 3.0  # pixels: structure that is finer than this does not go on through a hole


@dataclass(frozen=True)
class Background:
    """
    Background image of an exposure.

    Parameters
    ----------
    value : ndarray of float32, shape (ny, nx)
        Background; finite everywhere. Pixels without donors are interpolated.
    variance : ndarray of float32, shape (ny, nx)
        Its variance; in double precision for data in units so large or small that its values need it.
    donors : ndarray of uint16, shape (ny, nx)
        Number of exposures that it was made of.
    holes : ndarray of bool, shape (ny, nx)
        Good pixels of the exposure without any: the background is interpolated.
    """

    value: np.ndarray
    variance: np.ndarray
    donors: np.ndarray
    holes: np.ndarray


class ImageStack:
    """
    Exposures of one kind: their pixels, the masks of their sources, and what the others say of each.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures of the same detector, filter, and so on.
    options : ImageForImageOptions
        Options.
    work : Work
        How the work is done.

    Raises
    ------
    ValueError
        If shapes differ.
    """

    def __init__(self, exposures: Sequence[Exposure], options: ImageForImageOptions, *, work: Work) -> None:
        self._options, self._work = options, work
        self.exposures = tuple(exposures)
        shape = exposures[0].read().data.shape
        kinds = {"images": np.float32, "sources": np.bool_, "values": np.float32, "counts": np.uint16}
        self.images, self.sources, self.values, self.counts, self._effective = (
            work.stack(name, len(exposures), shape, dtype)
            for name, dtype in (*kinds.items(), ("effective", np.float32))
        )
        self._variance = self._read()
        self.donors = self._find_donors()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an exposure."""
        _, ny, nx = self.images.shape
        return ny, nx

    def merge(self, method: MergeMethod) -> None:
        """Merge, for each exposure, the pixels of its donors that are not on sources."""
        self._merge(method, self.donors.serves)

    def merge_for_sources(self) -> None:
        """Merge medians; for exposures that have too few donors, those of all others."""
        serves = self.donors.serves.copy()
        lonely = ~serves.any(axis=1)
        serves[lonely] = self.donors.usable & ~np.eye(len(serves), dtype=bool)[lonely]
        self._merge("median", serves)

    def _merge(self, method: MergeMethod, serves: np.ndarray) -> None:
        sigma = np.sqrt(self._variance)
        self.standard = self._measure(sigma, serves)
        for i in range(len(self.exposures)):
            alike = np.where(self.sources[i], np.float32(np.nan), self.images[i])
            for rows in _strips(self.shape):
                alike[rows] = (alike[rows] - self.standard.offset[i]) / self.standard.factor[i]
            self.values[i] = alike
        merge_others(
            self.values,
            serves,
            method=method,
            noise=sigma,
            scatter=self.standard.noise,
            sigma=self._options.sigma,
            out=self.values,
            out_count=self.counts,
            out_effective=self._effective,
            work=self._work,
        )
        self._method = method

    def _measure(self, sigma: np.ndarray, serves: np.ndarray) -> Standard:
        rows, columns = sample_rows(self.shape)
        sample = np.where(self.sources[:, rows, columns], np.nan, self.images[:, rows, columns])
        flat = sample.reshape(len(sample), -1)
        names = [exposure.name for exposure in self.exposures]
        return measure_standards(flat, sigma[rows, columns].ravel(), serves, self._options.scale, names)

    def subtract(self) -> float:
        """Replace what has been merged by the exposures less their backgrounds; return the rms of a pixel."""
        rms = []
        for i in range(len(self.exposures)):
            left = np.full(self.shape, np.nan, dtype=np.float32)
            if self.has_background(i):
                np.subtract(self.images[i], self.value(i), out=left)
            chosen = sample_rows(self.shape)
            sample = np.where(self.sources[i][chosen], np.nan, left[chosen])
            left -= np.nanmedian(sample) if np.isfinite(sample).any() else 0
            self.values[i] = left
            rms.append(deviation(sample))
        known = [value for value in rms if value > 0]
        return float(np.median(known)) if known else float("nan")

    def has_background(self, i: int) -> bool:
        """Whether any pixel of an exposure has a background."""
        has_scale = np.isfinite(self.standard.offset[i] + self.standard.factor[i])
        return bool(has_scale and (np.isfinite(self.images[i]) & (self.counts[i] > 0)).any())

    def value(self, i: int) -> np.ndarray:
        """Background of each pixel of an exposure, after merging."""
        filled = fill_holes(self.values[i], self.counts[i] > 0, np.isfinite(self.images[i]))
        for rows in _strips(self.shape):
            filled[rows] = self.standard.offset[i] + self.standard.factor[i] * filled[rows]
        return filled

    def background(self, i: int) -> Background:
        """Background of an exposure, after merging."""
        value, donors = self.value(i), self.counts[i]
        blank, effective, factor = donors == 0, self._effective[i], float(self.standard.factor[i])
        one = float(np.median(self.standard.noise[self.donors.serves[i]])) ** 2
        rough = 0.0
        if blank.any():
            fine = value - ndimage.gaussian_filter(value, _SMOOTHING)
            rough = (deviation(fine[~blank]) / factor) ** 2
        variance = np.empty(self.shape, dtype=np.float32)
        for rows in _strips(self.shape):
            share = donors[rows] / np.where(blank[rows], 1, effective[rows].astype(np.float64))
            middle = share * variance_of_middle(donors[rows], self._method)
            relative = self._variance[rows] * np.where(blank[rows], one, middle)
            variance[rows] = factor**2 * (relative + rough * blank[rows])
        return Background(value, variance, donors, blank & np.isfinite(self.images[i]))

    def _read(self) -> np.ndarray:
        """Read the pixels of the exposures; return the variance of a pixel relative to others."""
        read = partial(_read_one, images=self.images, inverse=self.values, first=self.exposures[0].name)
        self._work.run(
            read, enumerate(self.exposures), what="Reading pixels", name=lambda item: item[1].name, keep=False
        )
        inverse, number = np.zeros(self.shape), np.zeros(self.shape, dtype=np.uint16)
        for one_over in self.values:
            inverse += one_over
            number += one_over > 0
        return _common_variance(inverse, number)

    def _find_donors(self) -> Donors:
        ny, nx = self.shape
        middle = np.array([[(nx - 1) / 2, (ny - 1) / 2]])
        centres = np.concatenate([_sky_of(e, middle) for e in self.exposures])
        usable = np.array([np.isfinite(image).any() for image in self.images])
        return find_donors(centres, [e.time for e in self.exposures], usable, self._options)


def _sky_of(exposure: Exposure, pixels: np.ndarray) -> np.ndarray:
    with named(exposure.name):
        return sky_vectors(exposure.wcs, pixels)


def _read_one(item: tuple[int, Exposure], images: Stack, inverse: Stack, first: str) -> None:
    """Put the pixels of an exposure into a stack, and one over their variance into another."""
    i, exposure = item
    pixels = exposure.read()
    if pixels.data.shape != images.shape[1:]:
        raise ValueError(
            f"{exposure.name} has the shape {pixels.data.shape}, {first} {images.shape[1:]}: "
            "exposures of one detector and subarray must have one shape"
        )
    image = pixels.image()
    image[np.abs(image) > LARGEST] = np.nan
    images[i], inverse[i] = image, _inverse_variance(pixels.variance, image)


def _inverse_variance(variance: np.ndarray | None, image: np.ndarray) -> np.ndarray:
    """One over the variance of each pixel in units of its median, 0 where it is not known, or far too small."""
    if variance is None:
        return np.zeros(image.shape, dtype=np.float32)
    known = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    typical = np.median(variance[known]) if known.any() else 1.0
    known[known] = variance[known] > _LEAST_VARIANCE * typical
    return np.divide(typical, variance, out=np.zeros(image.shape, dtype=np.float32), where=known)


def _common_variance(inverse: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Variance of a pixel relative to others: harmonic mean, which sources hardly change; 1 if too few are known."""
    known = number > 0
    if known.mean() < _LEAST_KNOWN:
        return np.ones(inverse.shape, dtype=np.float32)
    return np.divide(number, inverse, out=np.ones(inverse.shape, dtype=np.float32), where=known)


def _strips(shape: tuple[int, int]) -> list[slice]:
    """Rows that are worked on at once, in double precision."""
    height = max(1, _AT_ONCE // max(shape[1], 1))
    return [slice(row, row + height) for row in range(0, shape[0], height)]
