"""Polynomial backgrounds in models of MIRI MRS: record, apply, undo."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.apply import shift
from bkgmatch.spectra import Polynomial
from bkgmatch.steps.cards import drop_status, put_status
from bkgmatch.steps.ifu_models import channel_pixels, world

__all__ = ["apply_background_2d", "check_background", "find_channel", "record_polynomials", "reset", "undo_polynomials"]


def apply_background_2d(
    model: JwstDataModel, channel: str | int | Iterable[str | int] | None = None, subtract: bool = True
) -> None:
    """
    Subtract recorded background polynomials from a model, or add them back.

    The data of the model are changed, its metadata are not: set ``meta.background.subtracted`` when all channels are
    done. Whether a background has been subtracted before is not checked.

    Parameters
    ----------
    model : IFUImageModel
        Model with ``meta.background.polynomial_info`` and ``meta.wcs``.
    channel : str, int, iterable of these, or None
        Channel or channels; a text is one channel. None: all that are recorded, if any.
    subtract : bool
        Whether to subtract, or to add back.

    Raises
    ------
    TypeError
        If ``channel`` is something else.
    ValueError
        If no background of a channel is recorded.
    """
    known = [info.channel for info in model.meta.background.polynomial_info]
    for one in _channels(channel, known):
        index = find_channel(model, one)
        if index is None:
            raise ValueError(
                f"Background data for channel '{one}' not present in 2D model '{model.meta.filename}'; "
                f"there are: {', '.join(known) or 'none'}"
            )
        _apply(model, one, _polynomial(model.meta.background.polynomial_info[index]), -1 if subtract else 1)


def _channels(channel: str | int | Iterable[str | int] | None, known: list[str]) -> list[str]:
    if channel is None:
        return known
    if isinstance(channel, str | int | np.integer) and not isinstance(channel, bool):
        return [str(channel)]
    if not isinstance(channel, Iterable):
        raise TypeError(f"Unsupported 'channel' type: {type(channel).__name__}; give 1, '1', or a list of these")
    wanted = [str(one) for one in channel]
    missing = sorted(set(wanted) - set(known))
    return list(dict.fromkeys(missing + wanted))


def find_channel(model: JwstDataModel, channel: str | int) -> int | None:
    """Index of the record of a channel in ``meta.background.polynomial_info``, the last if there are several."""
    infos = model.meta.background.polynomial_info
    return next((k for k in reversed(range(len(infos))) if infos[k].channel == str(channel)), None)


def _polynomial(info: Any) -> Polynomial:
    degree = tuple(int(d) for d in info.degree)
    return Polynomial(degree, tuple(info.refpoint), np.array(list(info.coefficients)))


def _apply(model: JwstDataModel, channel: str, polynomial: Polynomial, sign: int) -> None:
    x, y = (axis.ravel() for axis in channel_pixels(channel, model.data.shape))
    coordinates = np.array(world(model, x, y))
    inside = np.isfinite(coordinates).all(axis=0)
    x, y = x[inside], y[inside]
    data = model.data.copy()
    data[y, x] = shift(data[y, x], sign * polynomial(*coordinates[:, inside]))
    model.data = data


def check_background(model: JwstDataModel, *, subtract: bool) -> None:
    """
    Check that no background has been subtracted, and that what is recorded is clear.

    Parameters
    ----------
    model : IFUImageModel
        Model.
    subtract : bool
        Whether a background will be subtracted.

    Raises
    ------
    ValueError
        If the background cannot be matched.
    """
    background, name = model.meta.background, model.meta.filename or "model"
    if background.subtracted:
        raise ValueError(
            f"{name}: 'mrs_imatch' step cannot be run on data whose background has been previously subtracted "
            "(BKGSUB=True): by this step, for one channel or more, or by another. Match all channels in one run; "
            "'bkgmatch undo' takes this step's polynomials back"
        )
    if background.level is None:
        return
    if background.subtracted is None:
        raise ValueError(
            f"{name}: Background level was set but the 'subtracted' property is undefined (None). "
            "Set BKGSUB, or remove BKGLEVEL"
        )
    if subtract:
        raise ValueError(
            f"{name}: a background level is recorded but not subtracted (BKGLEVEL={background.level}, BKGSUB=False). "
            "Subtract it, or remove BKGLEVEL; or use subtract=False"
        )


def reset(model: JwstDataModel) -> None:
    """Remove what an earlier matching has recorded; other metadata of the background stay."""
    model.meta.background.polynomial_info = []
    if model.meta.background.level is None:
        model.meta.background.subtracted = None
    drop_status(model, "mrs_imatch")


def record_polynomials(
    model: JwstDataModel, polynomials: Mapping[str, Polynomial], status: str, *, subtract: bool
) -> None:
    """
    Write polynomials to a model in place of earlier ones, and subtract them if asked.

    Parameters
    ----------
    model : IFUImageModel
        Model.
    polynomials : mapping
        Polynomial of each channel.
    status : {"COMPLETE", "SKIPPED", "FAILED"}
        What became of the model.
    subtract : bool
        Whether to subtract.
    """
    reset(model)
    model.meta.background.polynomial_info = [_info(channel, p) for channel, p in polynomials.items()]
    put_status(model, "mrs_imatch", status)
    if status != "COMPLETE":
        return
    if subtract:
        apply_background_2d(model)
    model.meta.background.subtracted = subtract
    verb = "subtracted" if subtract else "recorded"
    channels = ", ".join(polynomials)
    model.add_history_entry(f"bkgmatch {version('bkgmatch')} {verb} polynomial backgrounds of channel {channels}")


def _info(channel: str, polynomial: Polynomial) -> dict:
    """Plain numbers and text: arrays would be lost."""
    return {
        "degree": [int(d) for d in polynomial.degree],
        "refpoint": [float(c) for c in polynomial.refpoint],
        "coefficients": [float(c) for c in polynomial.coefficients],
        "channel": channel,
    }


def undo_polynomials(model: JwstDataModel) -> bool:
    """
    Add back the polynomials that are subtracted, and remove their record.

    Parameters
    ----------
    model : JwstDataModel
        Model; it is changed.

    Returns
    -------
    bool
        False if there is no record.
    """
    has_record = bool(len(model.meta.background.polynomial_info))
    if has_record and model.meta.background.subtracted:
        apply_background_2d(model, subtract=False)
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} added polynomial backgrounds back")
    if has_record:
        reset(model)
    drop_status(model, "mrs_imatch")
    return has_record
