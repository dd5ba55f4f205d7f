"""Make a background image for each exposure of the other exposures: the stages in order."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from regions import SkyRegion

from bkgmatch.detection import deviation, find_sources, flat_mosaic
from bkgmatch.exposures import Exposure, check_names
from bkgmatch.image_stack import Background, ImageStack
from bkgmatch.masks import region_mask
from bkgmatch.mosaics import Canvas, Mosaic
from bkgmatch.options import ImageForImageOptions

__all__ = ["MADE", "Background", "ImageBackgrounds", "SourceGuide", "make_backgrounds"]

MADE, NO_PIXELS, NO_DONORS = "made", "no good pixels", "no other exposure has good pixels where it has them"


@dataclass(frozen=True)
class SourceGuide:
    """
    What is known of the sources beforehand.

    Parameters
    ----------
    mosaic : Mosaic, optional
        Image in which sources are found first.
    mask : Mosaic, optional
        Mask or segmentation image, not zero on sources: then none are searched for.
    include, exclude : sequence of SkyRegion
        Regions that belong to sources, and regions that do not.
    """

    mosaic: Mosaic | None = None
    mask: Mosaic | None = None
    include: Sequence[SkyRegion] = ()
    exclude: Sequence[SkyRegion] = ()


@dataclass(frozen=True)
class ImageBackgrounds:
    """
    Backgrounds of exposures.

    Parameters
    ----------
    names : tuple of str
        Names of the exposures, in the order of the input.
    status : tuple of str
        ``made``; or why there is no background.
    members : tuple of tuple of str
        Exposures that the background of each was made of.
    level : ndarray, shape (n,)
        Level of each exposure: the median of its source-free pixels.
    rms : ndarray, shape (n,)
        Rms of the source-free pixels after the background is subtracted, from their median absolute deviation.
    masked, holes, covered : ndarray, shape (n,)
        Part of the good pixels that are on sources; that have no donor; and that the given mosaic or mask covers.
    donors : ndarray, shape (n,)
        Median number of donors of a good pixel.
    masks : dict
        Masks of mosaics, 1 on sources, by kind of exposures and number: that of the given mosaic or mask, and that of
        the mosaic of the exposures.
    """

    names: tuple[str, ...]
    status: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    level: np.ndarray
    rms: np.ndarray
    masked: np.ndarray
    holes: np.ndarray
    covered: np.ndarray
    donors: np.ndarray
    masks: dict[tuple[Any, int], Mosaic]
    _stacks: tuple[tuple[ImageStack, int], ...]

    def background(self, i: int) -> Background:
        """Background of one exposure, if its status is ``made``."""
        stack, k = self._stacks[i]
        return stack.background(k)

    def sources(self, i: int) -> np.ndarray:
        """Pixels of one exposure that are on sources, shape (ny, nx)."""
        stack, k = self._stacks[i]
        return stack.sources[k]

    def __str__(self) -> str:
        rows = zip(self.names, self.level, self.rms, self.donors, self.status, strict=True)
        return "\n".join(f"{name}  {level:12.6g}  {rms:9.3g}  {n:5.0f}  {s}" for name, level, rms, n, s in rows)


def make_backgrounds(
    exposures: Sequence[Exposure],
    options: ImageForImageOptions | None = None,
    *,
    kinds: Sequence[Hashable] | None = None,
    guide: SourceGuide | None = None,
    cores: int = 1,
    scratch: Path | None = None,
) -> ImageBackgrounds:
    """
    Make the backgrounds of exposures.

    Parameters
    ----------
    exposures : sequence of Exposure
        Exposures with unique names.
    options : ImageForImageOptions, optional
        Options; the defaults are those of the step.
    kinds : sequence, optional
        What an exposure must have in common with those that serve it: detector, filter, and so on. By default all are
        of one kind.
    guide : SourceGuide, optional
        What is known of the sources. Without it they are found in a mosaic of the exposures.
    cores : int
        Number of threads.
    scratch : Path, optional
        Folder to keep the pixels in, rather than in memory: 11 bytes for each. The files stay there.

    Returns
    -------
    ImageBackgrounds
        The backgrounds. Nothing is subtracted.

    Raises
    ------
    ValueError
        If there are no exposures, names repeat, shapes of one kind differ, or an exposure cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from functools import partial
    >>> from bkgmatch.simulate_dithers import simulate_dithers
    >>> dithers = simulate_dithers(rng=np.random.default_rng(1), dithers=4, binning=8)
    >>> exposures = [
    ...     Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good)
    ...     for e in dithers.exposures
    ... ]
    >>> result = make_backgrounds(exposures)
    >>> result.background(0).value.shape
    (128, 129)
    """
    options, guide = options or ImageForImageOptions(), guide or SourceGuide()
    check_names(exposures)
    if not exposures:
        raise ValueError("there are no exposures to make backgrounds for")
    given = [()] * len(exposures) if kinds is None else list(kinds)
    if len(given) != len(exposures):
        raise ValueError(f"there are {len(given)} kinds for {len(exposures)} exposures; give one for each")
    parts = []
    for number, kind in enumerate(dict.fromkeys(given)):
        members = [i for i, other in enumerate(given) if other == kind]
        stack = ImageStack([exposures[i] for i in members], options, cores=cores, scratch=_subfolder(scratch, number))
        parts.append(_Part(kind, members, stack, *_merge(stack, options, guide, cores)))
    return _gathered(exposures, parts)


def _subfolder(scratch: Path | None, number: int) -> Path | None:
    if scratch is None:
        return None
    folder = scratch / f"stack{number}"
    folder.mkdir()
    return folder


def _merge(
    stack: ImageStack, options: ImageForImageOptions, guide: SourceGuide, cores: int
) -> tuple[list[Mosaic], list[float]]:
    """Find sources and merge, in turns; return the masks that were used, and what part of each exposure is covered."""
    numbers = stack.donors.serves.sum(axis=1)
    members = float(np.median(numbers[numbers > 0])) if numbers.any() else 0.0
    first = guide.mask
    if guide.mosaic is not None:
        first = _detected(guide.mosaic, options, members)
    masks = [first] if first else []
    covered = _covered(stack, first)
    _paint(stack, masks, guide)
    if guide.mask is None and members:
        canvas = Canvas.of([e.wcs for e in stack.exposures], stack.shape)
        for _ in range(options.maxiters - len(masks)):
            stack.merge("median")
            noise = stack.subtract()
            mosaic = canvas.mosaic(lambda i: stack.values[i], noise, cores=cores)
            masks = [m for m in [first] if m] + [_detected(mosaic, replace(options, bkg_boxsize=0), members)]
            _paint(stack, masks, guide)
    stack.merge(options.method)
    return masks, covered


def _detected(mosaic: Mosaic, options: ImageForImageOptions, members: float) -> Mosaic:
    """Mask of the sources of a mosaic."""
    flat = flat_mosaic(mosaic.image, options.bkg_boxsize)
    light = options.grow * max(members, 1) * deviation(flat) if options.grow else np.inf
    mask = find_sources(flat, mosaic.count, options, light)
    return replace(mosaic, image=np.where(np.isfinite(mosaic.image), mask, np.nan).astype(np.float32))


def _covered(stack: ImageStack, given: Mosaic | None) -> list[float]:
    """Return what part of each exposure a given mosaic covers."""
    if given is None:
        return [1.0] * len(stack.exposures)
    covered = [float(given.on_exposure(e.wcs, stack.shape)[1].mean()) for e in stack.exposures]
    for exposure, part in zip(stack.exposures, covered, strict=True):
        if not part:
            raise ValueError(f"{given.name} does not cover {exposure.name}; give a mosaic of these exposures")
    return covered


def _paint(stack: ImageStack, masks: Sequence[Mosaic], guide: SourceGuide) -> None:
    """Mask the sources on each exposure."""
    for i, exposure in enumerate(stack.exposures):
        on_source = np.zeros(stack.shape, dtype=bool)
        for mask in masks:
            place, inside = mask.on_exposure(exposure.wcs, stack.shape)
            on_source |= inside & (mask.image.ravel()[place] > 0)
        if guide.include:
            on_source |= region_mask(guide.include, exposure.wcs, stack.shape)
        if guide.exclude:
            on_source &= ~region_mask(guide.exclude, exposure.wcs, stack.shape)
        stack.sources[i] = on_source


class _Part(NamedTuple):
    """Exposures of one kind: their numbers, their pixels, and their masks."""

    kind: Hashable
    members: list[int]
    stack: ImageStack
    masks: list[Mosaic]
    covered: list[float]


def _gathered(exposures: Sequence[Exposure], parts: Sequence[_Part]) -> ImageBackgrounds:
    found = {i: (part, k) for part in parts for k, i in enumerate(part.members)}
    rows = [_summary(part, k) for part, k in (found[i] for i in range(len(exposures)))]
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in _Summary._fields[2:]}
    return ImageBackgrounds(
        names=tuple(e.name for e in exposures),
        status=tuple(row.status for row in rows),
        members=tuple(row.members for row in rows),
        masks={(part.kind, number): mask for part in parts for number, mask in enumerate(part.masks, 1)},
        _stacks=tuple((part.stack, k) for part, k in (found[i] for i in range(len(exposures)))),
        **columns,
    )


class _Summary(NamedTuple):
    """What is told of an exposure: fields of `ImageBackgrounds`."""

    status: str
    members: tuple[str, ...]
    level: float
    covered: float
    rms: float = float("nan")
    masked: float = float("nan")
    holes: float = float("nan")
    donors: float = 0.0


def _summary(part: _Part, k: int) -> _Summary:
    stack = part.stack
    level = float(stack.standard.level[k])
    if stack.donors.lacking[k] or not stack.has_background(k):
        status = stack.donors.lacking[k] or (NO_PIXELS if np.isnan(level) else NO_DONORS)
        return _Summary(status, (), level, part.covered[k])
    members = tuple(stack.exposures[d].name for d in np.flatnonzero(stack.donors.serves[k]))
    good, count, source = np.isfinite(stack.images[k]), stack.counts[k], stack.sources[k]
    left = stack.images[k] - stack.value(k)
    return _Summary(
        MADE,
        members,
        level,
        part.covered[k],
        rms=deviation(left[good & ~source & (count > 0)]),
        masked=float(source[good].mean()),
        holes=float((count[good] == 0).mean()),
        donors=float(np.median(count[good])),
    )
