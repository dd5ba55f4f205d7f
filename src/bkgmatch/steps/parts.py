"""Exposures in parts: MIRI's imager and Lyot field, in one file or in two; the chips of a NIRCam module."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jwst.datamodels import ModelLibrary
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.exposures import LYOT, Exposure, Pixels
from bkgmatch.levels import FIXED, MATCHED, LevelMatch
from bkgmatch.planes import Plane
from bkgmatch.steps.inputs import with_head
from bkgmatch.steps.library import LibraryExposures
from bkgmatch.steps.plane_record import PlaneRecord, joined_record, lyot_box, read_record, write_record
from bkgmatch.steps.streamed import StreamedLibrary
from bkgmatch.steps.tiles import Tile

__all__ = ["Part", "find_parts", "largest_pull", "plane_records", "recombined", "split_halves"]

log = logging.getLogger("stpipe.bkgmatch.parts")

_SCIENCE = "science"
_OTHER_HALF = {"mirimages": "mirimagel", "mirimagel": "mirimages"}
_ARRAYS = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat", "area")


@dataclass(frozen=True)
class Part:
    """
    What is matched: an exposure, or a field of it.

    Parameters
    ----------
    index : int
        Number of the model in the library.
    exposure : Exposure
        Its pixels.
    is_lyot_field : bool
        Whether this is the Lyot field of an image that has the imager's field, too.
    """

    index: int
    exposure: Exposure
    is_lyot_field: bool = False


def find_parts(known: LibraryExposures, halves: dict[int, int], *, lyot: bool, chips: bool) -> list[Part]:
    """
    Find the parts that are matched, and their tiles.

    Parameters
    ----------
    known : LibraryExposures
        Exposures.
    halves : dict
        Number of the Lyot half by that of the science half, for exposures in two files.
    lyot : bool
        Whether the Lyot field of MIRI is matched to the imager's.
    chips : bool
        Whether the short-wavelength chips of a NIRCam module are matched before tiles.

    Returns
    -------
    list of Part
        In the order of the library; a MIRI image in one file has two, if the Lyot field is matched.
    """
    tiles, exposures = known.tiles, known.exposures()
    _check_bands(tiles, lyot=lyot, chips=chips)
    lyot_halves, science_halves = set(halves.values()), set(halves)
    parts: list[Part] = []
    for index, (exposure, tile) in enumerate(zip(exposures, tiles, strict=True)):
        if index in science_halves or index in lyot_halves:
            part = _SCIENCE if index in science_halves else LYOT
            parts.append(Part(index, replace(exposure, tile=f"{tile.visit}_mirimage", part=part)))
        elif lyot and tile.is_miri_image:
            parts.extend(_fields(index, exposure, tile))
        elif chips and tile.is_short and tile.visit:
            parts.append(Part(index, replace(exposure, tile=tile.module, part=tile.detector)))
        else:
            parts.append(Part(index, replace(exposure, tile=tile.name)))
    return parts


def split_halves(known: LibraryExposures) -> dict[int, int]:
    """
    Find MIRI exposures that are split into two files, ``mirimages`` and ``mirimagel``.

    Parameters
    ----------
    known : LibraryExposures
        Exposures.

    Returns
    -------
    dict
        Number of the Lyot half by that of the science half. A half without the other is named in the log.
    """
    number = {name: index for index, name in enumerate(known.names)}
    halves = {index: tile.detector for index, tile in enumerate(known.tiles) if tile.detector in _OTHER_HALF}
    found = {}
    for index, half in halves.items():
        name = known.names[index]
        other = name.replace(half, _OTHER_HALF[half])
        if other not in number:
            log.warning("%s has no other half (%s): it is matched as it is", name, other)
        elif half == "mirimages":
            found[index] = number[other]
    return found


def plane_records(parts: Sequence[Part], match: LevelMatch, *, subtract: bool) -> dict[int, PlaneRecord]:
    """
    Make the record of each model.

    Parameters
    ----------
    parts : sequence of Part
        Parts, in the order of the match.
    match : LevelMatch
        Their backgrounds.
    subtract : bool
        Whether they are subtracted.

    Returns
    -------
    dict
        Record by number of the model; none for models that could not be matched.
    """
    records: dict[int, PlaneRecord] = {}
    for i, part in enumerate(parts):
        if match.status[i] not in (MATCHED, FIXED):
            continue
        if part.is_lyot_field:
            imager = records.get(part.index, PlaneRecord(Plane(0.0), subtracted=subtract))
            records[part.index] = replace(imager, lyot=match.plane(i))
        else:
            records[part.index] = PlaneRecord(match.plane(i), None, float(match.sigma[i]), subtract)
    return records


def largest_pull(parts: Sequence[Part], match: LevelMatch) -> float:
    """Largest level or slope of the parts in units of its error; 0 without any."""
    n = len(parts)
    values = np.column_stack([match.level, match.slope])[:n]
    errors = np.column_stack([match.sigma, match.slope_sigma])[:n]
    known = np.isfinite(values) & (errors > 0)
    return float(np.max(np.abs(values[known]) / errors[known], initial=0.0))


def recombined(library: ModelLibrary, halves: dict[int, int]) -> ModelLibrary:
    """
    Put the Lyot fields of split exposures back into one exposure each.

    Parameters
    ----------
    library : ModelLibrary
        Library, open; its halves are matched.
    halves : dict
        Number of the Lyot half by that of the science half.

    Returns
    -------
    ModelLibrary
        A library without the Lyot halves; in memory, unless the given one is streamed.
    """
    for science, lyot in halves.items():
        model, other = library.borrow(science), library.borrow(lyot)
        _paste(other, model)
        library.shelve(other, lyot, modify=False)
        library.shelve(model, science, modify=True)
    kept = [index for index in range(len(library)) if index not in halves.values()]
    if isinstance(library, StreamedLibrary):
        return library.only(kept)
    return with_head(ModelLibrary([_borrowed(library, index) for index in kept]), library._asn)


def _borrowed(library: ModelLibrary, index: int) -> JwstDataModel:
    model = library.borrow(index)
    library.shelve(model, index, modify=False)
    return model


def _check_bands(tiles: Sequence[Tile], *, lyot: bool, chips: bool) -> None:
    """Tell about passes for which there are no exposures."""
    if not lyot and any(tile.is_miri_image for tile in tiles):
        log.warning(
            "These are full MIRI images. If the Lyot coronagraph's field has another level than the imager's, all "
            "comes out wrong: set recombine_lyot=True, or flag that field"
        )
    if lyot and not any(tile.is_miri_image or tile.detector in _OTHER_HALF for tile in tiles):
        log.info("recombine_lyot is for full MIRI images: there are none, and it is ignored")
    if chips and not any(tile.is_short for tile in tiles):
        log.info("combine_nircam_short is for NIRCam's short-wavelength chips: there are none, and it is ignored")


def _fields(index: int, exposure: Exposure, tile: Tile) -> list[Part]:
    """Imager and Lyot field of one image, as if each had a detector of its own."""
    name, tile_name = f"{exposure.name}[{LYOT}]", tile.name or exposure.name
    science = exposure.changed(partial(_within, is_lyot=False), "imager")
    lyot = exposure.changed(partial(_within, is_lyot=True), "Lyot field")
    return [
        Part(index, replace(science, tile=tile_name, part=_SCIENCE)),
        Part(index, replace(lyot, name=name, tile=tile_name, part=LYOT), is_lyot_field=True),
    ]


def _within(pixels: Pixels, is_lyot: bool) -> Pixels:
    field = np.zeros(pixels.data.shape, dtype=bool)
    field[lyot_box(field.shape)] = True
    return replace(pixels, good=pixels.good & (field == is_lyot))


def _paste(lyot: JwstDataModel, model: JwstDataModel) -> None:
    """Copy the Lyot field of all arrays, and its record, into the model of the science half."""
    shape = model.data.shape
    box = lyot_box(shape)
    for name in _ARRAYS:
        ours, theirs = getattr(model, name, None), getattr(lyot, name, None)
        if ours is not None and theirs is not None and ours.shape == theirs.shape == shape:
            joined = np.array(ours)
            joined[box] = theirs[box]
            setattr(model, name, joined)
    record = joined_record(read_record(model), read_record(lyot))
    if record:
        write_record(model, record)
    model.meta.filename = model.meta.filename.replace("mirimages", "mirimage")
