"""Make a background image for each exposure of the other exposures: the stages in order."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bkgmatch.detection import deviation
from bkgmatch.display import Displayed, Rows
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import Exposure, check_names, handy_factor
from bkgmatch.image_stack import Background, ImageStack
from bkgmatch.mosaics import Mosaic
from bkgmatch.options import ImageForImageOptions
from bkgmatch.source_masks import SourceGuide, mask_sources

__all__ = ["MADE", "Background", "ImageBackgrounds", "SourceGuide", "make_backgrounds"]

MADE = "made"
NO_PIXELS, ALL_SOURCE = "no good pixels", "nearly all its good pixels are on sources"
_MOST_MASKED = 0.98  # of the good pixels: what is left does not tell the level
NO_DONORS = "no other exposure has good pixels where it has them"


@dataclass(frozen=True, repr=False)
class ImageBackgrounds(Displayed):
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
        Level of each exposure: the median of its source-free pixels, less what its mask makes of the pattern that all
        exposures have in common.
    rms : ndarray, shape (n,)
        Rms of the source-free pixels that have donors after the background is subtracted, from their median absolute
        deviation; NaN if there are none.
    masked, holes, covered : ndarray, shape (n,)
        Part of the good pixels that are on sources; that have no donor; and that the given mosaic or mask covers, NaN
        if none was given.
    donors : ndarray, shape (n,)
        Median number of donors of a good pixel.
    masks : tuple of tuple
        Masks of mosaics, 1 on sources, and what kind of exposures they are for: that of the given mosaic or mask, and
        those of the mosaics of the exposures.
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
    masks: tuple[tuple[Any, Mosaic], ...]
    _stacks: tuple[tuple[ImageStack, int], ...]
    _factor: float = 1.0  # from the unit of the data to that of the stacks

    def background(self, i: int) -> Background:
        """Background of one exposure; ValueError if it has none."""
        if self.status[i] != MADE:
            raise ValueError(f"{self.names[i]} has no background: {self.status[i]}")
        stack, k = self._stacks[i]
        background = stack.background(k)
        return background if self._factor == 1 else _divided(background, self._factor)

    def sources(self, i: int) -> np.ndarray:
        """Pixels of one exposure that are on sources, shape (ny, nx)."""
        stack, k = self._stacks[i]
        return stack.sources[k]

    def _rows(self) -> Rows:
        return Rows(self.names, self.level, self.rms, self.status, error="rms")

    def __str__(self) -> str:
        rows = zip(self.names, self.level, self.rms, self.donors, self.status, strict=True)
        return "\n".join(f"{name}  {level:12.6g}  {rms:9.3g}  {n:5.0f}  {s}" for name, level, rms, n, s in rows)


def make_backgrounds(
    exposures: Sequence[Exposure],
    options: ImageForImageOptions | None = None,
    *,
    kinds: Sequence[Hashable] | None = None,
    guide: SourceGuide | None = None,
    work: Work = HERE,
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
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

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
    factor = handy_factor(exposures)
    exposures = exposures if factor == 1 else [exposure.times(factor) for exposure in exposures]
    parts = []
    for kind in dict.fromkeys(given):
        members = [i for i, other in enumerate(given) if other == kind]
        stack = ImageStack([exposures[i] for i in members], options, work=work)
        masks, covered = mask_sources(stack, options, guide, work=work)
        stack.merge(options.method)
        parts.append(_Part(kind, members, stack, masks, covered))
    return _gathered(exposures, parts, factor)


def _divided(background: Background, factor: float) -> Background:
    """Background in the unit of the data; the squares of such values are beyond single precision."""
    value = background.value.astype(np.float64) / factor
    variance = background.variance.astype(np.float64) / factor**2
    return replace(background, value=value.astype(np.float32), variance=variance)


class _Part(NamedTuple):
    """Exposures of one kind: their numbers, their pixels, and their masks."""

    kind: Hashable
    members: list[int]
    stack: ImageStack
    masks: list[Mosaic]
    covered: list[float]


def _gathered(exposures: Sequence[Exposure], parts: Sequence[_Part], factor: float) -> ImageBackgrounds:
    found = {i: (part, k) for part in parts for k, i in enumerate(part.members)}
    rows = [_summary(part, k) for part, k in (found[i] for i in range(len(exposures)))]
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in _Summary._fields[2:]}
    columns |= {name: columns[name] / factor for name in ("level", "rms")}
    return ImageBackgrounds(
        names=tuple(e.name for e in exposures),
        status=tuple(row.status for row in rows),
        members=tuple(row.members for row in rows),
        masks=tuple((part.kind, mask) for part in parts for mask in part.masks),
        _stacks=tuple((part.stack, k) for part, k in (found[i] for i in range(len(exposures)))),
        _factor=factor,
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
    why = _trouble(stack, k)
    if why:
        return _Summary(why, (), level, part.covered[k])
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


def _trouble(stack: ImageStack, k: int) -> str:
    """Why an exposure has no background; empty if it has one."""
    good = np.isfinite(stack.images[k])
    if not good.any():
        return NO_PIXELS
    if stack.donors.lacking[k]:
        return stack.donors.lacking[k]
    if stack.sources[k][good].mean() > _MOST_MASKED:
        return ALL_SOURCE
    return "" if stack.has_background(k) else NO_DONORS
