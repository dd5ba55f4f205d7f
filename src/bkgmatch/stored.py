"""Arrays in files, of which only what is asked for is read; and folders for them that do not stay behind."""

import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import numpy as np

from bkgmatch.reasons import remedy

__all__ = ["Shelf", "Stack", "StoredArray", "new_stack", "temporary_file"]

Record = TypeVar("Record")


@dataclass(frozen=True)
class StoredArray:
    """
    An array in a file. Slices are read when they are asked for, and nothing is kept in memory.

    Parameters
    ----------
    path : Path
        File: the elements in C order, nothing else.
    dtype : str
        Type of the elements.
    shape : tuple of int
        Shape.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).hasobject:  # their bytes are addresses
            raise ValueError(f"{self.path} is not to hold {self.dtype}: objects cannot be stored")

    def checksum(self) -> int:
        """
        Sum up the file.

        Returns
        -------
        int
            CRC-32.

        Raises
        ------
        OSError, ValueError
            If the file is not there, has another size, or is not to hold numbers.
        """
        kind = np.dtype(self.dtype)
        if kind.kind not in "fiub" or min(self.shape) < 1:
            raise ValueError(f"{self.path} is not to hold {kind} of shape {self.shape}")
        if self.path.stat().st_size != kind.itemsize * math.prod(self.shape):
            raise ValueError(f"{self.path} has the wrong size")
        return zlib.crc32(np.memmap(self.path, np.uint8, "r").data)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])


@dataclass(frozen=True)
class Shelf:
    """
    Where arrays are kept.

    Parameters
    ----------
    folder : Path or None
        Folder for their files; None: in memory.
    """

    folder: Path | None

    digest = "shelf"
    """Results do not depend on the place."""

    def keep(self, array: np.ndarray | StoredArray, digest: str) -> np.ndarray | StoredArray:
        """Move an array to a file, named after its digest if that is known; or leave it in memory."""
        if self.folder is None or isinstance(array, StoredArray):
            return array
        return _store(array, self.folder / (digest or uuid4().hex))

    def reader(self, kind: Callable[..., Record], arrays: Sequence[np.ndarray | None]) -> Callable[[], Record]:
        """
        Move the arrays of a record to files.

        Parameters
        ----------
        kind : callable
            Makes the record of its arrays.
        arrays : sequence of ndarray or None
            These.

        Returns
        -------
        callable
            Function that reads the record back, in any process.
        """
        return partial(_read, kind, [None if array is None else self.keep(array, "") for array in arrays])


def _read(kind: Callable[..., Record], arrays: Sequence[np.ndarray | StoredArray | None]) -> Record:
    return kind(*(None if array is None else array[...] for array in arrays))


class Stack(Protocol):
    """Images of one shape: an array of shape (n, ny, nx), or one that is stored in files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images, and their shape."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def __getitem__(self, key: Any) -> np.ndarray: ...

    def __setitem__(self, key: Any, value: np.ndarray) -> None: ...


@dataclass(frozen=True)
class _StoredStack:
    """
    Images in files, one each: several processes may write, as long as no two write the same rows of an image.

    Keys are the number of an image, or a slice of images with rows and perhaps columns; to be set, all images.
    """

    paths: tuple[Path, ...]
    kind: str
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), *self.size)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.kind)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._image(path)[...] for path in self.paths)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            images, *window = key
            return np.stack([self._image(path)[tuple(window)] for path in np.array(self.paths, dtype=object)[images]])
        return self._image(self.paths[key])[...]

    def __setitem__(self, key: Any, value: np.ndarray) -> None:
        if isinstance(key, tuple):
            for i, image in enumerate(value):
                self._write(i, key[1].start, image)
        else:
            self._write(key, 0, value)

    def _image(self, path: Path) -> StoredArray:
        return StoredArray(path, self.kind, self.size)

    def _write(self, i: int, row: int, rows: np.ndarray) -> None:
        if rows.shape[1:] != self.size[1:] or row + len(rows) > self.size[0]:
            raise ValueError(f"rows of shape {rows.shape} do not go into an image of shape {self.size} at row {row}")
        elements = np.ascontiguousarray(rows, dtype=self.dtype)
        with temporary_file(self.paths[i]), open(self.paths[i], "r+b") as file:
            file.seek(row * self.size[1] * self.dtype.itemsize)
            file.write(elements.data)


@contextmanager
def temporary_file(path: Path) -> Iterator[None]:
    """Tell of an OSError in writing which folder is meant, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"a temporary file cannot be written in {path.parent} ({error}); {remedy(error)} "
            "(temp_dir, or that of save_table)"
        ) from error


def new_stack(folder: Path | None, name: str, n: int, shape: tuple[int, ...], dtype: type) -> Stack:
    """
    Make room for images, all zero.

    Parameters
    ----------
    folder : Path or None
        Folder for their files; None: in memory.
    name : str
        Name for the files.
    n : int
        Number of images.
    shape : tuple of int
        Shape of an image.
    dtype : type
        Type of the elements.

    Returns
    -------
    Stack
        An array, or files that are used like one.
    """
    if folder is None:
        return np.zeros((n, *shape), dtype=dtype)
    paths = tuple(folder / f"{name}-{uuid4().hex}" for _ in range(n))
    for path in paths:
        with temporary_file(path), open(path, "wb") as file:
            _reserve(file.fileno(), math.prod(shape) * np.dtype(dtype).itemsize)
    return _StoredStack(paths, np.dtype(dtype).str, shape)


def _reserve(file: int, size: int) -> None:
    """Fill a file with zeros that take room: where they only seem to, mapping it into memory may kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _store(array: np.ndarray, path: Path) -> StoredArray:
    """Write an array to a file, which takes its name when it is complete."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with temporary_file(path):
            part.write_bytes(np.ascontiguousarray(array).data)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # of a full disk
    return StoredArray(path, array.dtype.str, array.shape)
