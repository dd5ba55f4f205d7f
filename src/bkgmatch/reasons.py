"""What an error says, for messages that quote it."""

__all__ = ["reason"]


def reason(error: BaseException) -> str:
    """
    Quote an error.

    Parameters
    ----------
    error : BaseException
        The error.

    Returns
    -------
    str
        Its text; with its kind, where the text says nothing without: errors of memory or time have none, those of
        missing keys only the key.

    Examples
    --------
    >>> from bkgmatch.reasons import reason
    >>> reason(ValueError("the table has no rows")), reason(KeyError("level")), reason(MemoryError())
    ('the table has no rows', "KeyError: 'level'", 'MemoryError')
    """
    text, kind = str(error), type(error).__name__
    if text and not isinstance(error, KeyError):
        return text
    return f"{kind}: {text}" if text else kind
