"""Names of files that others give: found, checked and told without a trap."""

import os
import stat
from pathlib import Path

from bkgmatch.reasons import reason

__all__ = ["begins_with", "check_name", "is_there", "located"]


def located(path: str | Path) -> Path:
    """Absolute path with links followed; what cannot be followed (a loop, a null character) stays, and is not there."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError):
        return Path(path).absolute()


def is_there(path: str | Path) -> bool:
    """Whether a file or a folder exists; ValueError if it is a pipe or a device, at which reading may never end."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise
    except (OSError, ValueError):  # also loops of links, and names that cannot be
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a pipe or a device; copy what it holds into a file, and give that")
    return True


def check_name(path: Path, option: str) -> None:
    """Raise ValueError, which names the option, if no file can have such a name: too long, or with a null character."""
    try:
        os.lstat(path)
    except (FileNotFoundError, PermissionError):
        return
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}={str(path)!r} cannot be a file ({reason(error)}); choose another name") from error


def begins_with(path: Path, mark: bytes) -> bool:
    """Whether the first bytes of a file are these."""
    with open(path, "rb") as file:
        return file.read(len(mark)) == mark
