"""What an error says, for messages that quote it."""

import errno

__all__ = ["reason", "remedy"]

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


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


def remedy(error: OSError) -> str:
    """
    Say what to do where a file cannot be written.

    Parameters
    ----------
    error : OSError
        The error.

    Returns
    -------
    str
        Advice.

    Examples
    --------
    >>> from bkgmatch.reasons import remedy
    >>> remedy(OSError(28, "No space left on device")), remedy(PermissionError(13, "Permission denied"))
    ('make room there, or choose another folder', 'choose a folder where you may write')
    """
    if error.errno in _NOT_ALLOWED:
        return "choose a folder where you may write"
    return "make room there, or choose another folder"
