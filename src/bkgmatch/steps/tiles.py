"""Which exposures are dithers of one tile, and which detectors or halves of a detector belong together."""

import re
from typing import NamedTuple

from stdatamodels.jwst.datamodels import JwstDataModel

__all__ = ["Tile", "tile_of"]

_NAME = re.compile(r"(?P<visit>jw\d{11}_\d{2}\d\w{2})_\d{5}_(?P<detector>[a-z0-9]+)")


class Tile(NamedTuple):
    """
    What an exposure is part of.

    Parameters
    ----------
    visit : str
        Visit and sequence, that dithers share; empty if neither metadata nor file name tell.
    detector : str
        Detector in small letters; ``mirimages`` and ``mirimagel`` for halves of MIRI's.
    is_short : bool
        Whether it is one of NIRCam's short-wavelength chips.
    is_miri_image : bool
        Whether it shows the whole of MIRI's imager, with the Lyot field.
    """

    visit: str
    detector: str
    is_short: bool
    is_miri_image: bool

    @property
    def name(self) -> str:
        """Name of the tile: of visit and detector."""
        return f"{self.visit}_{self.detector}" if self.visit else ""

    @property
    def module(self) -> str:
        """Name of the tile of a whole NIRCam module."""
        return f"{self.visit}_{self.detector[:-1]}"


def tile_of(model: JwstDataModel) -> Tile:
    """
    Find the tile of an exposure: from its metadata, or else from its file name.

    Parameters
    ----------
    model : JwstDataModel
        Exposure.

    Returns
    -------
    Tile
        Its tile.
    """
    known, instrument = model.meta.observation, model.meta.instrument
    named = _NAME.match(model.meta.filename or "")
    words = (known.visit_group, known.sequence_id, known.activity_id)
    visit = known.visit_id or "".join(
        word or "" for word in (known.program_number, known.observation_number, known.visit_number)
    )
    if visit and all(words):
        visit = f"jw{visit}_{''.join(words)}"
    elif named:
        visit = named["visit"]
    else:
        visit = ""
    detector = (instrument.detector or (named["detector"] if named else "")).lower()
    half = named["detector"] if named and named["detector"] in ("mirimages", "mirimagel") else ""
    is_full = model.meta.subarray.name in (None, "FULL")
    return Tile(
        visit=visit,
        detector=half or detector,
        is_short=re.fullmatch(r"nrc[ab][1-4]", detector) is not None,
        is_miri_image=detector == "mirimage" and not half and is_full,
    )
