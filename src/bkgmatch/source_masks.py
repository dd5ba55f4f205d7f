"""Find the sources of exposures of one detector in mosaics, and mask them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from regions import SkyRegion

from bkgmatch.detection import deviation, find_sources, flat_mosaic, local_noise
from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import named
from bkgmatch.image_stack import ImageStack
from bkgmatch.masks import inside_regions
from bkgmatch.mosaics import Canvas, Mosaic
from bkgmatch.options import ImageForImageOptions
from bkgmatch.progress import Progress

__all__ = ["SourceGuide", "mask_sources"]

_SETTLED = 2e-3  # part of the pixels of the mosaics


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
    digest : str
        Hash of all this, for results that are used again; empty if it is not known.
    """

    mosaic: Mosaic | None = None
    mask: Mosaic | None = None
    include: Sequence[SkyRegion] = ()
    exclude: Sequence[SkyRegion] = ()
    digest: str = ""


def mask_sources(
    stack: ImageStack, options: ImageForImageOptions, guide: SourceGuide, *, work: Work = HERE
) -> tuple[list[Mosaic], list[float]]:
    """
    Find the sources of exposures, and mask them.

    Parameters
    ----------
    stack : ImageStack
        The exposures; their masks are set. What has been merged is lost.
    options : ImageForImageOptions
        Options.
    guide : SourceGuide
        What is known of the sources.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    masks : list of Mosaic
        Masks, 1 on sources: the given one, if there is one, and those of the mosaics of the exposures.
    covered : list of float
        Part of the good pixels of each exposure that the given mosaic or mask covers; NaN without one.

    Raises
    ------
    ValueError
        If the given mosaic or mask does not cover an exposure.
    """
    numbers = stack.donors.serves.sum(axis=1)
    members = float(np.median(numbers[numbers > 0])) if numbers.any() else 0.0
    mosaic = guide.mosaic and _without_zeros(guide.mosaic)
    covered = _covered(stack, guide.mask or mosaic)
    given = guide.mask if mosaic is None else _in_given(mosaic, options, members)
    _paint(stack, guide, given, {})
    own = _searched(stack, options, guide, given, members, work) if guide.mask is None and members else []
    return [mask for mask in (given, *own) if mask is not None], covered


def _searched(
    stack: ImageStack,
    options: ImageForImageOptions,
    guide: SourceGuide,
    given: Mosaic | None,
    members: float,
    work: Work,
) -> list[Mosaic]:
    """Search for sources in mosaics, and mask them, until the masks hardly change any more."""
    exposures = stack.exposures
    fields = Canvas.of([e.wcs for e in exposures], stack.shape, [e.name for e in exposures])
    own: list[Mosaic] = []
    rounds = range(options.maxiters - (given is not None))
    with Progress("Searching for sources (in rounds)", len(rounds)) as progress:
        for number in rounds:
            find = partial(_in_mosaics, stack, fields, options, members, work)
            found = work.once(find, "masks", number, exposures, options, guide)
            before, own = own, [field.holding(*mask) for field, mask in zip(fields, found, strict=True)]
            owners = {i: mask for field, mask in zip(fields, own, strict=True) for i in field.members}
            _paint(stack, guide, given, owners)
            progress.advance()
            if _settled(before, own):
                break
    return own


def _in_mosaics(
    stack: ImageStack, fields: Sequence[Canvas], options: ImageForImageOptions, members: float, work: Work
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Find the sources of each field in its mosaic, of the exposures less the backgrounds that are known by now.

    Return masks, and numbers of exposures.
    """
    stack.merge_for_sources()
    noise = stack.subtract()
    found = (_detected(field.mosaic(stack.values, noise, work=work), options, members) for field in fields)
    return [(mask.image, mask.count) for mask in found]


def _settled(before: Sequence[Mosaic], after: Sequence[Mosaic]) -> bool:
    """Whether masks hardly change any more."""
    if not before:
        return False
    changed = sum(
        int((old.image != new.image)[np.isfinite(new.image)].sum()) for old, new in zip(before, after, strict=True)
    )
    return changed < _SETTLED * sum(int(np.isfinite(new.image).sum()) for new in after)


def _without_zeros(mosaic: Mosaic) -> Mosaic:
    """Given mosaic, whose zeros are no data."""
    return replace(mosaic, image=np.where(mosaic.image == 0, np.float32(np.nan), mosaic.image))


def _in_given(mosaic: Mosaic, options: ImageForImageOptions, members: float) -> Mosaic:
    """Mask of the sources of a given mosaic."""
    flat = flat_mosaic(mosaic.image, options.bkg_boxsize)
    return _detected(replace(mosaic, image=flat), options, members, is_rough=True)


def _detected(mosaic: Mosaic, options: ImageForImageOptions, members: float, *, is_rough: bool = False) -> Mosaic:
    """Mask of the sources of a mosaic, which has no background but a level."""
    flat = flat_mosaic(mosaic.image, 0)
    noise = deviation(flat) if is_rough else local_noise(flat, 0)
    light = options.grow * max(members, 1) * noise if options.grow else np.inf
    mask = find_sources(flat, mosaic.count, options, light, is_rough=is_rough)
    return replace(mosaic, image=np.where(np.isfinite(flat), mask, np.float16(np.nan)))


def _covered(stack: ImageStack, given: Mosaic | None) -> list[float]:
    """Return what part of the good pixels of each exposure a given mosaic covers."""
    if given is None:
        return [np.nan] * len(stack.exposures)
    covered = []
    for exposure, image in zip(stack.exposures, stack.images, strict=True):
        good = np.isfinite(image)
        with named(exposure.name):
            inside = np.isfinite(given.on_exposure(exposure.wcs, stack.shape))
        covered.append(float(inside[good].mean()) if good.any() else np.nan)
        if covered[-1] == 0:
            raise ValueError(f"{given.name} does not cover {exposure.name}; give a mosaic of these exposures")
    return covered


def _paint(stack: ImageStack, guide: SourceGuide, given: Mosaic | None, own: dict[int, Mosaic]) -> None:
    """Mask the sources on each exposure: those of the given mosaic, of its own, and of regions."""
    for i, exposure in enumerate(stack.exposures):
        masks = [mask for mask in (given, own.get(i)) if mask is not None]
        with named(exposure.name):
            stack.sources[i] = _on_source(exposure.wcs, stack.shape, guide, masks)


def _on_source(wcs: Callable, shape: tuple[int, int], guide: SourceGuide, masks: Sequence[Mosaic]) -> np.ndarray:
    on_source = np.zeros(shape, dtype=bool)
    for mask in masks:
        on_source |= np.abs(mask.on_exposure(wcs, shape)) > 0
    if guide.include:
        on_source |= inside_regions(guide.include, wcs, shape)
    if guide.exclude:
        on_source &= ~inside_regions(guide.exclude, wcs, shape)
    return on_source
