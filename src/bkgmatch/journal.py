"""Results of an interrupted run, found again by the content of what they were made of.

A result is kept under the fingerprint of its task: the function, its settings, and its item, in which exposures stand
for the content of their files. Files hold numbers and names only: nothing in them is executed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, TextIO
from uuid import uuid4

import numpy as np
import shapely

from bkgmatch.reasons import reason
from bkgmatch.stored import StoredArray, temporary_file
from bkgmatch.workspace import locked, remove_folder

__all__ = ["Journal", "file_digest", "fingerprint"]

log = logging.getLogger("stpipe.bkgmatch.journal")

_OURS = "bkgmatch."
_PLAIN = (bool, int, float, str, type(None))


class Journal:
    """
    A folder of results.

    Parameters
    ----------
    folder : Path
        The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken = 0
        self._lock: TextIO | None = None

    def open(self) -> None:
        """Make the folder; ValueError if another run uses it, or it is something else."""
        is_old, lock = not _is_free(self.folder), self.folder / "in-use"
        if is_old and (self.folder.is_symlink() or lock.is_symlink() or not lock.is_file()):
            raise ValueError(f"{self.folder} exists, and is not of bkgmatch; rename it, or choose another save_table")
        self.folder.mkdir(exist_ok=True)
        self._lock = locked(lock)
        if self._lock is None:
            raise ValueError(f"another run uses {self.folder}; wait for it, or choose another save_table")
        said = "Going on from an interrupted run" if is_old else "What is measured is kept"
        log.info("%s: %s", said, self.folder)

    def key(self, *of: Any) -> str | None:
        """Fingerprint of a task; None if something in it has no known content, so that it must be done again."""
        try:
            return fingerprint(*of)
        except _Unknown:
            return None

    def get(self, key: str) -> Any:
        """Return the result that is kept under a key, or None."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                result = _Reader(arrays, self.folder / "arrays").decoded(json.loads(str(arrays["tree"])))
        except Exception as error:  # damage shows in many ways
            log.warning("%s cannot be read (%s): it is measured again", path, reason(error))
            return None
        self.taken += result is not None
        return result

    def put(self, key: str, result: Any) -> None:
        """Keep a result; its file takes its name when it is complete."""
        arrays: list[np.ndarray] = []
        tree = json.dumps(_encoded(result, arrays))
        named = {"tree": np.array(tree), **{f"a{k}": array for k, array in enumerate(arrays)}}
        path = self._path(key)
        part = path.with_name(f"{path.name}.{uuid4().hex}.part")
        try:
            with temporary_file(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(part, "wb") as file:
                    np.savez(file, allow_pickle=False, **named)
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # of a full disk

    @property
    def arrays(self) -> Path:
        """Folder for arrays that results refer to."""
        folder = self.folder / "arrays"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def leave(self) -> None:
        """Leave the results, if there are any, for another run: this one did not come to its end."""
        if any(self.folder.glob("*/*.npz")):
            log.warning("What was measured is in %s: the same run again goes on from there", self.folder)
            self._release()
        else:
            self._remove()

    def close(self) -> None:
        """Forget all results: the run is complete."""
        if self.taken:
            log.info("%d results of an interrupted run were used again", self.taken)
        self._remove()

    def _remove(self) -> None:
        remove_folder(self.folder)
        self._release()

    def _release(self) -> None:
        if self._lock:
            self._lock.close()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"


def _is_free(folder: Path) -> bool:
    """Whether nothing has this name, or an empty folder that a killed run has left."""
    return not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()))


class _Unknown(Exception):
    """Something has no known content."""


def fingerprint(*values: Any) -> str:
    """
    Hash values by their content.

    Parameters
    ----------
    *values : object
        Numbers, texts, arrays, functions of modules, partial functions, containers and classes of bkgmatch. An object
        with a ``digest`` counts by it alone.

    Returns
    -------
    str
        Hexadecimal digest; the version of bkgmatch enters, too.
    """
    digest = hashlib.blake2b(version("bkgmatch").encode(), digest_size=20)
    for chunk in _content(values):
        digest.update(chunk)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """
    Hash the content of a file.

    Parameters
    ----------
    path : Path
        File.

    Returns
    -------
    str
        Hexadecimal digest.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(value: Any) -> Iterator[bytes]:
    """Yield what tells a value from others, piece by piece."""
    known = getattr(value, "digest", None)
    if isinstance(known, str):
        if not known:
            raise _Unknown
        yield f"digest {known}\n".encode()
    elif isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}\n".encode()
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            raise _Unknown
        yield f"array {value.dtype.str} {value.shape}\n".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, shapely.geometry.base.BaseGeometry):
        yield shapely.to_wkb(value)
    elif isinstance(value, partial):
        yield from _content((value.func, value.args, value.keywords))
    elif isinstance(value, dict):
        yield from _content(tuple(value.items()))
    elif isinstance(value, tuple | list):
        yield f"{type(value).__qualname__} {len(value)}\n".encode()
        for part in value:
            yield from _content(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield f"{type(value).__qualname__}\n".encode()
        yield from _content(tuple(getattr(value, field.name) for field in fields(value)))
    elif isinstance(value, FunctionType) and "<" not in value.__qualname__:
        yield f"{value.__module__}.{value.__qualname__}\n".encode()
    else:
        raise _Unknown


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    """Value as JSON has it; arrays are put into the list."""

    def placed(array: np.ndarray) -> int:
        arrays.append(array)
        return len(arrays) - 1

    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return {"array": placed(np.asarray(value))}
    if isinstance(value, shapely.geometry.base.BaseGeometry):
        return {"wkb": placed(np.frombuffer(shapely.to_wkb(value), dtype=np.uint8))}
    if isinstance(value, StoredArray):
        head = {"dtype": value.dtype, "shape": list(value.shape), "checksum": value.checksum()}
        return {"stored": value.path.name, **head}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_encoded(part, arrays) for part in value]}
    kind = type(value)
    names = value._fields if hasattr(value, "_fields") else [field.name for field in fields(value)]
    parts = {name: _encoded(getattr(value, name), arrays) for name in names}
    return {"class": [kind.__module__, kind.__qualname__], "fields": parts}


class _Reader(NamedTuple):
    """What a result is read from: its arrays, and the folder of those that it refers to."""

    arrays: Any
    folder: Path

    def decoded(self, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "array" in tree:
            return self.arrays[f"a{tree['array']}"][()]
        if "wkb" in tree:
            return shapely.from_wkb(self.arrays[f"a{tree['wkb']}"].tobytes())
        if "stored" in tree:
            found = StoredArray(self.folder / Path(tree["stored"]).name, tree["dtype"], tuple(tree["shape"]))
            if found.checksum() != tree["checksum"]:
                raise ValueError(f"{found.path} is damaged")
            return found
        if "class" in tree:
            parts = {name: self.decoded(part) for name, part in tree["fields"].items()}
            return _class(*tree["class"])(**parts)
        (kind, parts), *_ = tree.items()
        return {"tuple": tuple, "list": list}[kind](self.decoded(part) for part in parts)


def _class(module: str, name: str) -> type:
    """Find a class of records of bkgmatch."""
    kind = getattr(import_module(module), name) if module.startswith(_OURS) else None
    is_own = kind is StoredArray  # it has a form of its own, with a checksum
    if is_own or not (isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))):
        raise ValueError(f"{module}.{name} is no record of bkgmatch")
    return kind
