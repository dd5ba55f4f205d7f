"""Files that are written whole: they take their names when they are complete, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from astropy.io import fits

from bkgmatch.reasons import remedy

__all__ = ["NotWritten", "check_folder", "whole_file", "whole_files", "write_fits"]

_COMPRESSED = {".gz", ".bz2", ".xz"}  # which astropy writes by itself


class NotWritten(OSError):
    """A file or files cannot be written; the message names them."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    Yield where to write a file, which takes its name when it is complete; devices and pipes are written to directly.

    Parameters
    ----------
    path : str or Path
        The file. What has this name already stays until then.

    Yields
    ------
    Path
        A file of the same name in a temporary folder beside it.

    Raises
    ------
    NotWritten
        If it cannot be written. Nothing is left of it then.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
    else:
        with _moved(path.parent, str(path)) as parts:
            yield parts / path.name


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """
    Yield a temporary folder, whose files move to ``folder`` when all of them are complete.

    Parameters
    ----------
    folder : str or Path
        Where the files are to be. It must exist.

    Yields
    ------
    Path
        A temporary folder in it.

    Raises
    ------
    NotWritten
        If they cannot be written. Nothing is left of them then.
    """
    with _moved(Path(folder), f"files in {folder}") as parts:
        yield parts


def write_fits(hdus: fits.HDUList, path: str | Path, *, checksum: bool = False) -> None:
    """
    Write a FITS file, which takes its name when it is complete.

    Parameters
    ----------
    hdus : HDUList
        What to write.
    path : str or Path
        The file; it is compressed if its name says so. What has this name already stays until then.
    checksum : bool, optional
        Whether headers get CHECKSUM and DATASUM.

    Raises
    ------
    NotWritten
        If it cannot be written. Nothing is left of it then.
    """
    with whole_file(path) as part:
        if part.suffix in _COMPRESSED:
            hdus.writeto(part, checksum=checksum)
        else:
            with open(part, "wb") as file:
                hdus.writeto(_Stream(file), checksum=checksum)


class _Stream:
    """A file to which Python writes arrays: what numpy uses for true files is silent where the last bytes fail."""

    def __init__(self, file: BinaryIO) -> None:
        self.name, self.write, self.tell, self.flush = file.name, file.write, file.tell, file.flush


@contextmanager
def _moved(folder: Path, what: str) -> Iterator[Path]:
    parts = folder / f".bkgmatch-{uuid4().hex[:16]}"
    try:
        parts.mkdir(mode=0o700)
        yield parts
        written = sorted(parts.iterdir())
        for part in written:
            if (folder / part.name).is_dir():  # before any file has taken its name
                raise NotWritten(f"{folder / part.name} is a folder; remove it, or choose another place")
        for part in written:
            os.replace(part, folder / part.name)
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(f"{what} cannot be written ({error}); {remedy(error)}") from error
    finally:
        _remove(parts)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:  # a signal may come just then
        shutil.rmtree(folder, ignore_errors=True)


def check_folder(folder: str | Path) -> None:
    """
    Check where files are to be written, before the work that they are to hold is done.

    Parameters
    ----------
    folder : str or Path
        The folder. It, or folders above it, may be still to be made.

    Raises
    ------
    NotADirectoryError
        If it is a file, or in a file.
    PermissionError
        If nothing may be written there.
    """
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{folder} cannot be a folder for results: {there} is none; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot hold results: {there} may not be written to; choose another folder")
