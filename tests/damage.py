"""Damage to files, of seeds; and what a run may make of it: a clear error, the right answer, or a named status."""

import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from asdf.exceptions import AsdfWarning
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from builders import digest, exposure_name, image_model, tile_wcs, write
from stdatamodels.exceptions import NoTypeWarning, ValidationWarning

CLEAR_ERROR, RIGHT_ANSWER, NAMED_STATUS = "clear error", "right answer", "named status"
OTHERS_RIGHT = "the others right"  # of the damaged exposure itself nothing can be said
LEVELS = (1.0, 3.0, 7.0, 4.0)
NOISE = 0.01
SIDE = 64
HANGS = 120  # seconds
PLANES = {f"fit_type_{name}": "level+slope" for name in ("dithers", "mosaic_tiles")}
LITTLE = 0.01  # part of the pixels that may be wrong without an effect on a robust statistic


def damaged_set(folder: Path) -> list[Path]:
    """Four exposures of one detector, half an image apart, of a flat sky with a level each: any WCS has its levels."""
    rng = np.random.default_rng(11)
    models = []
    for n, (wcs, level) in enumerate(zip(tile_wcs((2, 2), overlap=0.6), LEVELS, strict=True), 1):
        shape = SIDE, SIDE
        model = image_model(exposure_name(n), rng.normal(level, NOISE, shape), wcs, err=np.full(shape, NOISE))
        model.var_poisson, model.var_flat = np.square(model.err) / 2, np.square(model.err) / 8
        model.meta.bunit_data = model.meta.bunit_err = "MJy/sr"
        models.append(model)
    return write(models, folder)


# ---------------------------------------------------------------------------------------------------------- bytes


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def with_flipped_bit(content: bytes, rng: np.random.Generator, part: slice) -> bytes:
    changed = bytearray(content)
    changed[int(rng.integers(part.start, part.stop))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def with_lost_run(content: bytes, rng: np.random.Generator, part: slice) -> bytes:
    """Some bytes in a row are zero, ones, or anything."""
    start = int(rng.integers(part.start, part.stop))
    length = min(int(2 ** rng.uniform(0, 9)), part.stop - start)
    kind = int(rng.integers(3))
    run = rng.bytes(length) if kind == 2 else bytes([255 * kind]) * length
    return content[:start] + run + content[start + length :]


def parts_of(path: Path) -> dict[str, slice]:
    """Where headers and data of a file are, by the name of the extension."""
    found = {}
    with fits.open(path) as hdus:
        for hdu in hdus:
            info, name = hdu.fileinfo(), hdu.name or "PRIMARY"
            found[f"header of {name}"] = slice(info["hdrLoc"], info["datLoc"])
            if info["datSpan"]:
                found[f"data of {name}"] = slice(info["datLoc"], info["datLoc"] + info["datSpan"])
    return found


def damage(path: Path, kind: str, seed: int) -> str:
    """Damage a file; return where."""
    rng = np.random.default_rng([seed, len(kind)])
    content, parts = path.read_bytes(), parts_of(path)
    if kind == "truncated file":
        path.write_bytes(truncated(content, rng))
        return "anywhere"
    how = with_flipped_bit if kind.startswith("flipped") else with_lost_run
    wanted = {"headers": "header", "ASDF": "data of ASDF"}.get(kind.rpartition(" ")[2], "data")
    names = [name for name in parts if name.startswith(wanted) and (wanted != "data" or "ASDF" not in name)]
    name = names[int(rng.integers(len(names)))]
    path.write_bytes(how(content, rng, parts[name]))
    return name


KINDS = (
    "truncated file",
    "flipped bit in headers",
    "flipped bit in pixels",
    "flipped bit in ASDF",
    "lost bytes in headers",
    "lost bytes in pixels",
    "lost bytes in ASDF",
)


# --------------------------------------------------------------------------------------------------------- outcomes


class Hang(BaseException):
    """Something takes too long; no handler of errors may swallow it."""


@contextmanager
def limited() -> Iterator[None]:
    """Nothing may hang. Warnings of astropy, asdf and the models about the file are welcome; others are errors."""
    assert threading.current_thread() is threading.main_thread()

    def stop(number: int, frame: object) -> None:
        raise Hang(f"it takes longer than {HANGS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        with warnings.catch_warnings():
            for category in (AstropyWarning, ValidationWarning, NoTypeWarning, ResourceWarning, AsdfWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def error_of(run: Callable[[], object], *names: str) -> str | None:
    """Message of the error of a run, which must name what is wrong; None if it succeeds."""
    try:
        with limited():
            run()
    except (ValueError, OSError, TypeError) as error:
        message = str(error)
        assert any(name in message for name in names), f"{type(error).__name__} names no file: {message}"
        return message
    return None


def are_whole(folder: Path) -> None:
    """Assert that nothing in a folder is half-written."""
    for path in folder.rglob("*") if folder.exists() else ():
        assert not path.name.startswith("."), path
        if path.suffix == ".fits":
            _is_whole(path)


def _is_whole(path: Path) -> None:
    with limited(), fits.open(path) as hdus:
        last = hdus[-1].fileinfo()
        assert path.stat().st_size == last["datLoc"] + last["datSpan"]


class Unchanged:
    """Assert that files stay as they are."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.before = digest(files)

    def check(self) -> None:
        assert digest(self.files) == self.before


def plain(path: Path, name: str = "SCI") -> np.ndarray | None:
    """An image of a file as astropy reads it; None if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path) as hdus:
                return np.array(hdus[name].data)
    except Exception:  # whatever a damaged file makes of astropy
        return None


def number_of(name: str) -> int:
    return int(re.search(r"_(\d{5})_nrc", name)[1]) - 1
