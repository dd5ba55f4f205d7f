"""Cards of the primary header that are not in jwst's schema: they survive copying, saving and opening."""

from stdatamodels.jwst.datamodels import JwstDataModel

__all__ = ["PRODUCT_CARD", "card", "drop_cards", "drop_status", "put_card", "put_status", "show_status"]

PRODUCT_CARD = "I4I_PROD"
"""What a file is that image_for_image made beside its results: a background or a masked exposure."""

_STATUS = {
    "image_for_image": ("S_I4IMG", "Image-for-image background"),
    "level_match": ("S_LVLMAT", "Level matching"),
    "mrs_imatch": ("S_MRSMAT", "MRS background matching"),
}


def card(model: JwstDataModel, keyword: str) -> float | str | bool | None:
    """Value of a card, None if there is none."""
    return next((entry[1] for entry in _cards(model) if entry[0] == keyword), None)


def put_card(model: JwstDataModel, keyword: str, value: float | str | bool, comment: str) -> None:
    """Set a card, in place of one with the same keyword."""
    drop_cards(model, keyword)
    _cards(model).append([keyword, value, comment])


def drop_cards(model: JwstDataModel, *keywords: str) -> None:
    """Remove cards."""
    cards = _cards(model)
    cards[:] = [entry for entry in cards if entry[0] not in keywords]


def put_status(model: JwstDataModel, step: str, status: str) -> None:
    """Write the status of a step, COMPLETE or SKIPPED, into metadata and header: jwst has no keyword for it."""
    setattr(model.meta.cal_step, step, status)
    put_card(model, _STATUS[step][0], status, _STATUS[step][1])


def drop_status(model: JwstDataModel, step: str) -> None:
    """Remove the status of a step."""
    setattr(model.meta.cal_step, step, None)
    drop_cards(model, _STATUS[step][0])


def show_status(model: JwstDataModel) -> None:
    """Write into the header what ``meta.cal_step`` says of our steps."""
    for step in _STATUS:
        status = getattr(model.meta.cal_step, step, None)
        if status:
            put_status(model, step, status)


def _cards(model: JwstDataModel) -> list:
    extra = model.instance.setdefault("extra_fits", {}).setdefault("PRIMARY", {})
    return extra.setdefault("header", [])
