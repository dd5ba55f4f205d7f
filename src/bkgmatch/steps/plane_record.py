"""Matched constants and planes in JWST models: subtract, record, read, undo."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import numpy as np
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch.apply import blank_value, shift
from bkgmatch.images import CORNER_CARDS, read_corners
from bkgmatch.planes import Plane
from bkgmatch.steps.cards import card, drop_cards, drop_status, put_card, put_status

__all__ = [
    "PlaneRecord",
    "earlier_record",
    "joined_record",
    "lyot_box",
    "read_record",
    "skip_planes",
    "undo_plane",
    "write_record",
]

_NO_SKY = dq_flags["DO_NOT_USE"] | dq_flags["NON_SCIENCE"]
_KEYWORDS = {
    "science": ("LVLMATCH", "LVLM_A", "LVLM_B", "LVLM_C"),
    "lyot": ("LVLYOT", "LVLY_A", "LVLY_B", "LVLY_C"),
}
_SIZE, _CORNERS = CORNER_CARDS[:2], {"science": CORNER_CARDS[2:], "lyot": ("LVLY_P1", "LVLY_P2", "LVLY_P3")}
_LYOT_FIELD = (735 / 1024, 290 / 1032)  # the first row, and the first column that is not part of it


@dataclass(frozen=True)
class PlaneRecord:
    """
    What level matching has subtracted from an exposure.

    Parameters
    ----------
    science : Plane
        Constant or plane.
    lyot : Plane, optional
        Constant or plane of the field of MIRI's Lyot coronagraph, if it has its own.
    sigma : float
        Standard error of the level.
    subtracted : bool
        Whether it is subtracted, or only recorded.
    """

    science: Plane
    lyot: Plane | None = None
    sigma: float = 0.0
    subtracted: bool = True

    def __add__(self, other: "PlaneRecord") -> "PlaneRecord":
        """Join the records of a first and a second matching: errors are those of the second."""
        lyot = None
        if self.lyot or other.lyot:
            lyot = (self.lyot or self.science) + (other.lyot or other.science)
        return replace(other, science=self.science + other.science, lyot=lyot)

    def check(self, model: JwstDataModel) -> None:
        """Raise ValueError if a model has no WCS, without which a plane has no values on its pixels."""
        is_tilted = any(self.science.slope) or (self.lyot is not None and any(self.lyot.slope))
        if is_tilted and model.meta.wcs is None:
            raise ValueError(f"{model.meta.filename} has no WCS; run the assign_wcs step first")

    def anchored(self, model: JwstDataModel) -> "PlaneRecord":
        """Keep what the planes are worth on a model: its WCS may change."""
        self.check(model)
        wcs, shape = _wcs(model), model.data.shape
        lyot = self.lyot and self.lyot.anchored(wcs, shape)
        return replace(self, science=self.science.anchored(wcs, shape), lyot=lyot)

    def image(self, model: JwstDataModel) -> np.ndarray | float:
        """Background on the pixels of a model."""
        self.check(model)
        wcs, shape = _wcs(model), model.data.shape
        science = self.science.on_pixels(wcs, shape)
        if self.lyot is None:
            return science
        values = np.array(np.broadcast_to(science, shape))
        box = lyot_box(shape)
        values[box] = np.broadcast_to(self.lyot.on_pixels(wcs, shape), shape)[box]
        return values

    def apply(self, model: JwstDataModel) -> None:
        """Subtract from a model, if that is asked for, and record; what was subtracted before stays on record."""
        earlier = earlier_record(model, subtract=self.subtracted)
        new = self.anchored(model)
        total = earlier.anchored(model) + new if earlier and earlier.subtracted else new
        if self.subtracted:
            _add(model, -self.image(model))
        write_record(model, total)
        verb = "subtracted" if self.subtracted else "recorded"
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} {verb} the level {self.science.level:.8g}")


def _wcs(model: JwstDataModel) -> Callable:
    wcs = model.meta.wcs
    return wcs and partial(wcs, with_bounding_box=False)


def joined_record(science: PlaneRecord | None, lyot: PlaneRecord | None) -> PlaneRecord | None:
    """Record of an exposure whose fields were in two files; a field without a record is unchanged."""
    known = science or lyot
    if known is None:
        return None
    unchanged = PlaneRecord(Plane(0.0), subtracted=known.subtracted)
    return replace(science or unchanged, lyot=(lyot or unchanged).science)


def lyot_box(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of MIRI's Lyot field in an image of the whole detector."""
    row, column = (round(part * n) for part, n in zip(_LYOT_FIELD, shape, strict=True))
    return slice(row, None), slice(0, column)


def skip_planes(model: JwstDataModel) -> None:
    """Mark a model that could not be matched, unless it was before."""
    if read_record(model) is None:
        put_status(model, "level_match", "SKIPPED")


def earlier_record(model: JwstDataModel, *, subtract: bool) -> PlaneRecord | None:
    """Record of a model; ValueError if something is subtracted that now is only to be recorded."""
    record = read_record(model)
    if record and record.subtracted and not subtract:
        raise ValueError(
            f"{model.meta.filename}: level matching has subtracted a level from it, and subtract=False is to record "
            "levels only. Use subtract=True, or 'bkgmatch undo' first"
        )
    return record


def read_record(model: JwstDataModel) -> PlaneRecord | None:
    """Record of a model, None if it has none; ValueError if a part of it is lost."""
    science, lyot = _read_plane(model, "science"), _read_plane(model, "lyot")
    sigma, subtracted = card(model, "LVLM_SIG"), card(model, "LVLM_SUB")
    has_lyot = any(card(model, keyword) is not None for keyword in _KEYWORDS["lyot"])
    if subtracted is not None and (science is None or (lyot is None and has_lyot)):  # other programs write no LVLM_SUB
        raise ValueError(
            f"{model.meta.filename}: what level matching recorded in it is not complete; use the input of the step"
        )
    if science is None:
        return None
    return PlaneRecord(science, lyot, float(sigma or 0), bool(subtracted))


def undo_plane(model: JwstDataModel) -> bool:
    """
    Add back what level matching has subtracted, and remove its record.

    Parameters
    ----------
    model : JwstDataModel
        Model; it is changed.

    Returns
    -------
    bool
        False if there is no record.
    """
    record = read_record(model)
    drop_status(model, "level_match")
    if record is None:
        return False
    if record.subtracted:
        _add(model, record.image(model))
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} added the level {record.science.level:.8g} back")
    _remove_record(model)
    return True


def _add(model: JwstDataModel, background: np.ndarray | float) -> None:
    """Add to a model's data; pixels that never saw the sky stay as they are: zero, less a sky level."""
    data = shift(model.data, background)
    if model.dq is not None:
        flagged = (model.dq & np.uint32(_NO_SKY)) != 0
        blank = blank_value(data.dtype, _sky_level(model))
        other = np.nextafter(blank, np.inf) if blank else np.finfo(data.dtype).tiny
        data[flagged & (data == blank)] = other  # not one of the blank pixels, for undo
        data[flagged & (model.data == blank)] = blank
    model.data = data


def _sky_level(model: JwstDataModel) -> float:
    """Sky level that is subtracted."""
    background = model.meta.background
    return float(background.level or 0) if background.subtracted else 0.0


def write_record(model: JwstDataModel, record: PlaneRecord) -> None:
    """Write a record into the header of a model, in place of an earlier one."""
    _remove_record(model)
    _write_plane(model, record.science, "science", "level")
    if record.lyot is not None:
        _write_plane(model, record.lyot, "lyot", "Lyot level")
    put_card(model, "LVLM_SIG", record.sigma, "standard error of the level")
    put_card(model, "LVLM_SUB", record.subtracted, "is the level subtracted?")
    put_status(model, "level_match", "COMPLETE")


def _remove_record(model: JwstDataModel) -> None:
    drop_cards(model, *_KEYWORDS["science"], *_KEYWORDS["lyot"], "LVLM_RA", "LVLM_DEC", "LVLM_SIG", "LVLM_SUB")
    drop_cards(model, *_SIZE, *_CORNERS["science"], *_CORNERS["lyot"])


def _write_plane(model: JwstDataModel, plane: Plane, field: str, name: str) -> None:
    constant, east, north, level = _KEYWORDS[field]
    if not any(plane.slope):
        put_card(model, constant, plane.level, f"matched {name}")
        return
    put_card(model, east, plane.slope[0], f"{name}: slope to the east, per arcsec")
    put_card(model, north, plane.slope[1], f"{name}: slope to the north, per arcsec")
    put_card(model, level, plane.level, f"{name} at LVLM_RA, LVLM_DEC")
    put_card(model, "LVLM_RA", plane.centre[0], "[deg] where the level is that")
    put_card(model, "LVLM_DEC", plane.centre[1], "[deg] where the level is that")
    if plane.corners:
        (ny, nx), values = plane.corners
        put_card(model, _SIZE[0], nx, "columns of the image of the corners")
        put_card(model, _SIZE[1], ny, "rows of the image of the corners")
        for keyword, value in zip(_CORNERS[field], values, strict=True):
            put_card(model, keyword, value, f"{name} in a corner of the image")


def _read_plane(model: JwstDataModel, field: str) -> Plane | None:
    constant, *keywords = _KEYWORDS[field]
    level = card(model, constant)
    if level is not None:
        return Plane(float(level))
    values = [card(model, keyword) for keyword in (*keywords, "LVLM_RA", "LVLM_DEC")]
    corners = [card(model, keyword) for keyword in (*_SIZE, *_CORNERS[field])]
    has_corners = any(value is not None for value in corners)  # earlier versions recorded none
    if None in values or (has_corners and None in corners):
        return None
    east, north, level, ra, dec = (float(value) for value in values if value is not None)
    return Plane(level, (east, north), (ra, dec), read_corners(corners) if has_corners else None)
