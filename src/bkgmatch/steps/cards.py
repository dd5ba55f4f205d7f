"""Cards of the primary header that are not in jwst's schema: they survive copying, saving and opening."""

from stdatamodels.jwst.datamodels import JwstDataModel

__all__ = ["PRODUCT_CARD", "card", "drop_cards", "put_card"]

PRODUCT_CARD = "I4I_PROD"
"""What a file is that image_for_image made beside its results: a background or a masked exposure."""


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


def _cards(model: JwstDataModel) -> list:
    extra = model.instance.setdefault("extra_fits", {}).setdefault("PRIMARY", {})
    return extra.setdefault("header", [])
