"""Background images as JWST models: made, subtracted, recorded, undone; and the associations that use them."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import ImageModel, JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch.associations import association, relative_to, write_association
from bkgmatch.image_stack import Background
from bkgmatch.images import same_unit
from bkgmatch.steps.cards import PRODUCT_CARD, card, drop_cards, drop_status, put_card, put_status
from bkgmatch.steps.inputs import read_file
from bkgmatch.steps.library import stem

__all__ = [
    "Kind",
    "background_model",
    "check_state",
    "find_background",
    "is_background_subtracted",
    "kind_of",
    "level2_association",
    "masked_model",
    "subtract_background",
    "undo_background",
]

_SUBTRACTED, _FILE, _DIGEST = "I4I_SUB", "I4IBKG", "I4I_HASH"
_HASHED = {"data": "<f4", "err": "<f4", "dq": "<u4"}
"""What is taken from a background, with the types of its file."""
_SHARES = {"var_poisson": "I4I_POIS", "var_rnoise": "I4I_RNOI", "var_flat": "I4I_FLAT"}


class Kind(NamedTuple):
    """
    What exposures have in common that may serve each other.

    Parameters
    ----------
    instrument, detector, filter, pupil, subarray, readpatt : str
        Words of the metadata; empty if they are missing.
    integrations : tuple of int
        Numbers of groups and integrations, if these count.
    """

    instrument: str
    detector: str
    filter: str
    pupil: str
    subarray: str
    readpatt: str
    integrations: tuple[int, ...] = ()


def kind_of(model: JwstDataModel, *, integrations: bool) -> Kind:
    """Return the kind of an exposure; whether numbers of groups and integrations count is ``integrations``."""
    instrument, exposure = model.meta.instrument, model.meta.exposure
    return Kind(
        instrument.name or "",
        instrument.detector or "",
        instrument.filter or "",
        instrument.pupil or "",
        model.meta.subarray.name or "",
        exposure.readpatt or "",
        (exposure.ngroups or 0, exposure.nints or 0) if integrations else (),
    )


def check_state(model: JwstDataModel) -> None:
    """Raise ValueError if a background has been subtracted, a level is recorded, or planes are missing or differ."""
    name = model.meta.filename
    if card(model, _SUBTRACTED):
        raise ValueError(f"{name}: image_for_image has subtracted a background; use its input, or 'bkgmatch undo'")
    if model.meta.cal_step.bkg_subtract == "COMPLETE":
        raise ValueError(
            f"{name}: bkg_subtract of calwebb_image2 has subtracted a background; run calwebb_image2 without it"
        )
    if model.meta.background.subtracted is False and model.meta.background.level:
        raise ValueError(
            f"{name}: a sky level is recorded and not subtracted (BKGLEVEL, BKGSUB=F); run image_for_image before "
            "skymatch, or 'bkgmatch undo' first"
        )
    for plane in ("err", "dq"):
        if getattr(model, plane, None) is None:
            raise ValueError(f"{name} has no {plane.upper()}; use a rate or cal file of the pipeline")
    for plane in ("err", "dq", *_SHARES):
        values = getattr(model, plane, None)
        if values is not None and values.shape != model.data.shape:
            raise ValueError(
                f"{name}: {plane.upper()} has shape {values.shape}, SCI has {model.data.shape}; make the file again"
            )


def background_model(
    model: JwstDataModel, background: Background, members: Sequence[str], *, flag_holes: bool
) -> ImageModel:
    """
    Make a background exposure.

    Parameters
    ----------
    model : JwstDataModel
        The exposure that it is for.
    background : Background
        Its background.
    members : sequence of str
        Exposures that it was made of.
    flag_holes : bool
        Whether good pixels without donors are flagged DO_NOT_USE, or else FLUX_ESTIMATED.

    Returns
    -------
    ImageModel
        With SCI, ERR and DQ, as the step bkg_subtract of calwebb_image2 reads them.
    """
    made = ImageModel(background.value)
    made.update(model)
    made.err = np.sqrt(background.variance)
    flag = dq_flags["DO_NOT_USE" if flag_holes else "FLUX_ESTIMATED"]
    new = background.holes & ((model.dq & np.uint32(flag)) == 0)  # so that undo takes away no flag that was there
    made.dq = np.where(new, flag, 0).astype(np.uint32)
    if model.meta.wcs is not None:
        made.meta.wcs = model.meta.wcs
    put_card(made, PRODUCT_CARD, "background", "what image_for_image made")
    made.add_history_entry(f"bkgmatch {version('bkgmatch')} made this background of {len(members)} exposures")
    for member in members:
        made.add_history_entry(f"member of the background: {member}")
    return made


def subtract_background(model: JwstDataModel, background: ImageModel, file: str, *, split_variance: bool) -> None:
    """
    Subtract a background from an exposure, as jwst's bkg_subtract does, add its variance, and record it.

    Parameters
    ----------
    model : JwstDataModel
        Exposure; it is changed.
    background : ImageModel
        Its background.
    file : str
        Where the background is saved; empty if it is not.
    split_variance : bool
        Whether the variance is shared out to VAR_POISSON, VAR_RNOISE and VAR_FLAT as the exposure's own is, or else
        goes into VAR_RNOISE.
    """
    shares = _shares(model) if split_variance else {"var_rnoise": 1.0}
    _add(model, background, shares, 1)
    model.dq = model.dq | background.dq
    put_status(model, "image_for_image", "COMPLETE")
    put_card(model, _SUBTRACTED, True, "is the background image subtracted?")
    put_card(model, _FILE, file, "background that has been subtracted")
    if file:
        put_card(model, _DIGEST, _digest(background), "of its SCI, ERR and DQ")
    for plane, share in shares.items():
        put_card(model, _SHARES[plane], share, f"part of its variance that is in {plane.upper()}")
    model.add_history_entry(f"bkgmatch {version('bkgmatch')} subtracted the background {file}")


def is_background_subtracted(model: JwstDataModel) -> bool:
    """Whether a background image has been subtracted from an exposure."""
    return bool(card(model, _SUBTRACTED))


def find_background(model: JwstDataModel, folder: Path) -> Path | None:
    """
    Find the background that has been subtracted from an exposure.

    Parameters
    ----------
    model : JwstDataModel
        Exposure.
    folder : Path
        Folder of the background.

    Returns
    -------
    Path or None
        Its file; None if no background has been subtracted.

    Raises
    ------
    ValueError
        If the file is not there, has another unit or shape than the exposure, or is not what was subtracted.
    """
    if not is_background_subtracted(model):
        return None
    file = str(card(model, _FILE) or "")
    if not (file and (folder / file).is_file()):
        where = f"{file} is not in {folder}; put it there" if file else "was not saved; use the input of the step"
        raise ValueError(f"{model.meta.filename}: its background {where}")
    with read_file(folder / file, datamodels.open) as background:
        _check_alike(model, background, folder / file)
    return folder / file


def _check_alike(model: JwstDataModel, background: JwstDataModel, file: Path) -> None:
    """Raise ValueError if an exposure has changed since its background was subtracted."""
    units = [one.meta.bunit_data or "" for one in (model, background)]
    if not same_unit(*units):
        raise ValueError(
            f"{model.meta.filename} has the unit {units[0]}, its background {file} {units[1]}; give the exposure as it "
            "was when that was subtracted"
        )
    if model.data.shape != background.data.shape:
        raise ValueError(
            f"{model.meta.filename} has shape {model.data.shape}, its background {file} {background.data.shape}; give "
            "the exposure as it was when that was subtracted"
        )
    digest = card(model, _DIGEST)  # earlier versions recorded none
    if digest is not None and digest != _digest(background):
        raise ValueError(
            f"{model.meta.filename}: {file} is not the background that was subtracted from it, but that of another "
            "run; put the right one there, or use the input of the step"
        )


def _digest(background: JwstDataModel) -> str:
    """Hash of what is subtracted, however it is stored."""
    digest = hashlib.blake2b(digest_size=16)
    for plane, dtype in _HASHED.items():
        given = getattr(background, plane, None)
        with np.errstate(over="ignore"):  # to infinity, as in the file
            values = np.array([] if given is None else given, dtype=dtype)
        if values.dtype.kind == "f":
            values[np.isnan(values)] = np.nan  # which has many bit patterns
        digest.update(f"{plane} {values.shape}\n".encode() + values.tobytes())
    return digest.hexdigest()


def undo_background(model: JwstDataModel, folder: Path) -> bool:
    """
    Add back the background that `subtract_background` has subtracted.

    Parameters
    ----------
    model : JwstDataModel
        Exposure; it is changed.
    folder : Path
        Folder of the background.

    Returns
    -------
    bool
        False if none has been subtracted.

    Raises
    ------
    ValueError
        If the background is not there, has another unit or shape than the exposure, or is not what was subtracted.
    """
    file = find_background(model, folder)
    if file is not None:
        shares = {plane: float(share) for plane, key in _SHARES.items() if (share := card(model, key)) is not None}
        with read_file(file, datamodels.open) as background:
            _add(model, background, shares, -1)
            model.dq = model.dq & ~background.dq
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} added the background {file.name} back")
    drop_cards(model, _SUBTRACTED, _FILE, _DIGEST, *_SHARES.values())
    drop_status(model, "image_for_image")
    return file is not None


def masked_model(model: JwstDataModel, sources: np.ndarray) -> JwstDataModel:
    """Return a copy of an exposure, NaN and flagged DO_NOT_USE on sources."""
    masked = model.copy()
    masked.data = np.where(sources, np.float32(np.nan), model.data)
    put_card(masked, PRODUCT_CARD, "masked exposure", "what image_for_image made")
    masked.dq = model.dq | np.where(sources, dq_flags["DO_NOT_USE"], 0).astype(np.uint32)
    return masked


def level2_association(science: Path, background: Path, path: Path) -> None:
    """
    Write an association for calwebb_image2, which subtracts a background from a rate exposure.

    Parameters
    ----------
    science, background : Path
        Files of the exposure and its background.
    path : Path
        File to write.
    """
    members = [
        {"expname": relative_to(path.parent, file), "exptype": exptype}
        for file, exptype in ((science, "science"), (background, "background"))
    ]
    write_association(association(stem(science.name), members, kind="image2", asn_rule="Asn_Lv2Image"), path)


def _add(model: JwstDataModel, background: ImageModel, shares: dict[str, float], sign: int) -> None:
    """Subtract (1) or add back (-1) a background, and add or take away its variance."""
    variance = sign * np.square(background.err, dtype=np.float64)
    model.data = model.data - sign * background.data
    model.err = np.sqrt(np.maximum(np.square(model.err, dtype=np.float64) + variance, 0)).astype(np.float32)
    for plane, share in shares.items():
        own = getattr(model, plane, None)
        if own is not None:
            setattr(model, plane, np.maximum(own + share * variance, 0).astype(np.float32))


def _shares(model: JwstDataModel) -> dict[str, float]:
    """Part that each variance plane has in the variance of a typical good pixel."""
    planes = {name: plane for name in _SHARES if (plane := getattr(model, name, None)) is not None}
    good = np.logical_and.reduce([np.isfinite(model.data), *(np.isfinite(plane) for plane in planes.values())])
    typical = {name: float(np.median(plane[good])) if good.any() else 0.0 for name, plane in planes.items()}
    total = sum(typical.values())
    return {name: value / total for name, value in typical.items()} if total > 0 else {"var_rnoise": 1.0}
