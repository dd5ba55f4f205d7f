"""FITS images of any telescope as exposures, and their corrected copies."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asdf
import numpy as np
from astropy.io import fits
from astropy.units import Unit
from astropy.wcs import WCS

from bkgmatch.apply import shift
from bkgmatch.exposures import Exposure, Pixels, icrs_of
from bkgmatch.paths import is_there, located
from bkgmatch.planes import Corners, Plane
from bkgmatch.reasons import reason
from bkgmatch.written import NotWritten, check_folder, whole_files, write_fits

__all__ = [
    "CORNER_CARDS",
    "FitsImage",
    "check_copies",
    "check_distinct",
    "check_listed_once",
    "common_unit",
    "is_jwst",
    "naming",
    "read_corners",
    "read_plane",
    "same_unit",
    "write_copies",
    "writing",
]

_JWST_BAD = 1 | 512  # DO_NOT_USE, NON_SCIENCE
_CARDS = ("LVLMATCH", "LVLM_A", "LVLM_B", "LVLM_C", "LVLM_RA", "LVLM_DEC")
CORNER_CARDS = ("LVLM_NX", "LVLM_NY", "LVLM_P1", "LVLM_P2", "LVLM_P3")
"""Size of the image, and what was subtracted in three corners of it."""
_BLOCK = 2880  # bytes; missing ones at the end may be blanks
_LYOT_CARDS = ("LVLYOT", "LVLY_A")


@dataclass(frozen=True)
class FitsImage:
    """
    The first image of a FITS file.

    Parameters
    ----------
    path : Path
        The file. It is never changed.
    extension : int
        Number of the image's extension.
    shape : tuple of int
        Shape of the image, (ny, nx).
    unit : str
        Its unit, from BUNIT.
    wcs : callable
        ``wcs(x, y) -> (ra, dec)`` in degrees: the gwcs of JWST files, or that of the FITS header.
    recorded : float
        Sky level that jwst's skymatch, or ours, has recorded and not subtracted: the pixels are read less that.
    is_matched : bool
        Whether an earlier step has found a background.
    """

    path: Path
    extension: int
    shape: tuple[int, int]
    unit: str
    wcs: Callable
    recorded: float = 0.0
    is_matched: bool = False

    @classmethod
    def open(cls, path: str | Path) -> "FitsImage":
        """
        Find the image of a file: the extension SCI, or else the first with two dimensions.

        Parameters
        ----------
        path : str or Path
            FITS file.

        Returns
        -------
        FitsImage
            The image; its pixels are not kept.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not FITS, or has no image, or no celestial WCS.
        """
        path = Path(path).absolute()  # workers have other working folders
        if not is_there(path):
            raise FileNotFoundError(f"{path} does not exist")
        try:
            with fits.open(path) as hdus:
                _check_whole(hdus, path)
                if any(keyword in hdus[0].header for keyword in _LYOT_CARDS):
                    raise ValueError("its Lyot field has a level of its own: match it with LevelMatchStep")
                extension = _image_extension(hdus)
                header = hdus[extension].header
                shape = (header["NAXIS2"], header["NAXIS1"])
                unit, primary = str(header.get("BUNIT", "")), hdus[0].header
                state = _recorded(primary), _is_matched(primary)
                return cls(path, extension, shape, unit, _wcs(hdus, extension, path), *state)
        except Exception as error:  # astropy and asdf raise many kinds
            if isinstance(error, ValueError) and str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path} cannot be read as a FITS image with a celestial WCS: {reason(error)}") from error

    def exposure(self, **kwargs: Any) -> Exposure:
        """Exposure of this image, with further fields of `Exposure`; it is named after the file."""
        return Exposure(self.path.name, self._read, self.wcs, **kwargs)

    def write(self, folder: Path, plane: Plane, sigma: float) -> Path:
        """
        Write a copy from which a plane is subtracted, with a record of it in the header.

        Parameters
        ----------
        folder : Path
            Where to write; the copy keeps the name.
        plane : Plane
            What to subtract; what was subtracted before is added to the record.
        sigma : float
            Standard error of its level.

        Returns
        -------
        Path
            The copy.
        """
        return self._copy(folder, partial(_subtract, plane=plane, sigma=sigma))

    def copy(self, folder: Path) -> Path:
        """Write a copy as it is, but for a status in its header."""
        return self._copy(folder, _skip)

    def undo(self, folder: Path) -> tuple[Path, bool]:
        """
        Write a copy without what `write` subtracted.

        Parameters
        ----------
        folder : Path
            Where to write; the copy keeps the name.

        Returns
        -------
        path : Path
            The copy.
        undone : bool
            False if nothing was subtracted.
        """
        with naming(self.path), fits.open(self.path) as hdus:
            recorded = read_plane(hdus[0].header, self.path)
        return self._copy(folder, partial(_undo, plane=recorded)), recorded is not None

    def _read(self) -> Pixels:
        with naming(self.path), fits.open(self.path) as hdus:
            given = hdus[self.extension].data
            data = given.astype(np.result_type(given.dtype, np.float32)) - np.float32(self.recorded)
            good = np.isfinite(data)
            if "DQ" in hdus and hdus[0].header.get("TELESCOP") == "JWST":
                good &= (hdus["DQ"].data & _JWST_BAD) == 0
            with np.errstate(over="ignore"):  # an infinite variance is not used
                variance = np.square(hdus["ERR"].data, dtype=np.float32) if "ERR" in hdus else None
        if variance is not None and variance.shape != data.shape:
            raise ValueError(f"{self.path}: ERR has shape {variance.shape}, the image {data.shape}")
        return Pixels(data, good, variance)

    def _copy(self, folder: Path, change: Callable) -> Path:
        path = folder / self.path.name
        with naming(self.path), fits.open(self.path) as hdus:
            change(hdus, self)
            write_fits(hdus, path, checksum=any("CHECKSUM" in hdu.header for hdu in hdus))
        return path


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Give errors that name no file the name of the one that is looked at: headers and arrays are read late."""
    try:
        yield
    except Exception as error:  # astropy, asdf, numpy and the models raise many kinds
        is_of_system = isinstance(error, MemoryError | NotWritten) or (isinstance(error, OSError) and error.errno)
        if is_of_system or Path(file).name in str(error):
            raise
        raise ValueError(
            f"{file} cannot be read ({reason(error)}); it is damaged: replace it or leave it out"
        ) from error


@contextmanager
def writing(file: str | Path) -> Iterator[None]:
    """Name the file whose header is so damaged that it cannot be written again."""
    try:
        yield
    except (MemoryError, OSError):  # not of its own making: the disk is full
        raise
    except Exception as error:
        raise ValueError(
            f"{file} cannot be written again ({reason(error)}); its header is damaged: replace it or leave it out"
        ) from error


def check_listed_once(files: Sequence[Path]) -> None:
    """Raise ValueError if a file is listed twice."""
    twice = sorted(str(file) for file, count in Counter(files).items() if count > 1)
    if twice:
        raise ValueError(f"listed more than once: {', '.join(twice[:5])}; list each exposure once")


def check_distinct(files: Sequence[Path]) -> None:
    """Raise ValueError if files in different folders have the same name: their copies would replace each other."""
    shared = sorted(name for name, count in Counter(file.name for file in files).items() if count > 1)
    if shared:
        raise ValueError(f"several files are named {shared[0]}: their results would replace each other; rename them")


def check_copies(files: Sequence[Path], folder: Path, *, used: Sequence[Path] = ()) -> None:
    """Raise an error if copies cannot have the same names, or would replace each other, originals, or files in use."""
    for file in files:
        if not is_there(file):
            raise FileNotFoundError(f"{file} does not exist")
    check_distinct(files)
    check_folder(folder)
    originals = {located(file): file for file in (*used, *files)}
    for file in files:
        for copy in (located(folder / file.name), located(folder) / file.name):
            if copy in originals:
                raise ValueError(f"{originals[copy]} would be overwritten; choose another folder")


def write_copies(files: Sequence[Path], folder: Path, writers: Sequence[Callable[[Path], Any]]) -> dict[Path, Any]:
    """
    Write copies of files: all of them, or none.

    Parameters
    ----------
    files : sequence of Path
        The files, see `check_copies`.
    folder : Path
        Where the copies are to be, under the names of the files; it is made if it does not exist.
    writers : sequence of callable
        ``writer(folder)`` for each file: it writes the copy into the folder that it is given.

    Returns
    -------
    dict
        What the writers return, by copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as parts:
        results = [write(parts) for write in writers]
    return {folder / file.name: result for file, result in zip(files, results, strict=True)}


def common_unit(units: Iterable[tuple[str, str]]) -> str:
    """Find the unit of images, of which names and units are given; ValueError if they differ."""
    named = [(name, unit) for name, unit in units if unit]
    for name, unit in named:
        if not same_unit(unit, named[0][1]):
            raise ValueError(
                f"{name} has the unit {unit}, {named[0][0]} {named[0][1]}: give exposures of one unit, or convert it"
            )
    return named[0][1] if named else ""


def same_unit(one: str, two: str) -> bool:
    """Whether two units are the same, however they are written; an empty one may be any."""
    return not (one and two) or Unit(one, parse_strict="silent") == Unit(two, parse_strict="silent")


def is_jwst(path: Path) -> bool:
    """Whether a file is a JWST data model; files that cannot be read are not told from them."""
    if not is_there(path):
        return True
    try:
        with fits.open(path) as hdus:
            return "ASDF" in hdus
    except Exception:  # what opens it next tells why
        return True


def read_plane(header: Mapping[str, Any], path: Path) -> Plane | None:
    """
    Read the record of what was subtracted.

    Parameters
    ----------
    header : mapping
        Primary header.
    path : Path
        Its file, for messages.

    Returns
    -------
    Plane or None
        The sum of what was subtracted.

    Raises
    ------
    ValueError
        If a part of the record is lost.
    """
    if not header.get("LVLM_SUB", False):
        return None
    if "LVLMATCH" in header:
        return Plane(float(header["LVLMATCH"]))
    corners = [header.get(keyword) for keyword in CORNER_CARDS]
    has_corners = any(value is not None for value in corners)  # earlier versions recorded none
    if not all(keyword in header for keyword in _CARDS[1:]) or (has_corners and None in corners):
        raise ValueError(f"{path}: what level matching recorded in it is not complete; use the input of the step")
    east, north, level, ra, dec = (float(header[keyword]) for keyword in _CARDS[1:])
    return Plane(level, (east, north), (ra, dec), read_corners(corners) if has_corners else None)


def read_corners(values: Sequence[Any]) -> Corners:
    """Make what a record keeps of the corners from the values of `CORNER_CARDS`."""
    nx, ny, *corners = values
    first, right, top = (float(value) for value in corners)
    return Corners((int(ny), int(nx)), (first, right, top))


def _image_extension(hdus: fits.HDUList) -> int:
    images = [k for k, hdu in enumerate(hdus) if hdu.is_image and hdu.header.get("NAXIS") == 2]
    named = [k for k in images if hdus[k].name == "SCI"]
    if not images or ("SCI" in hdus and not named):  # another extension is not meant then
        raise ValueError("it holds no image with two dimensions")
    return (named or images)[0]


def _recorded(header: fits.Header) -> float:
    """Level that later steps of the pipeline will subtract; from its mosaics they have."""
    is_exposure = header.get("TELESCOP") == "JWST" and header.get("S_RESAMP") != "COMPLETE"
    return float(header.get("BKGLEVEL", 0)) if is_exposure and header.get("BKGSUB") is False else 0.0


def _is_matched(header: fits.Header) -> bool:
    return "BKGSUB" in header or bool(header.get("LVLM_SUB") or header.get("I4I_SUB"))


def _check_whole(hdus: fits.HDUList, path: Path) -> None:
    """Raise ValueError if data are missing at the end: of a JWST file, DQ and the WCS would be lost without a word."""
    last = hdus[-1].fileinfo()
    expected, size = last["datLoc"] + last["datSpan"], last["file"].size  # not known of compressed files
    if 0 < size <= expected - _BLOCK:
        raise ValueError(
            f"{path} cannot be read (it has {size} bytes of {expected}); it is damaged: replace it or leave it out"
        )


def _wcs(hdus: fits.HDUList, extension: int, path: Path) -> Callable:
    with naming(path):
        wcs, kind = _gwcs(hdus["ASDF"]) if "ASDF" in hdus else None, hdus[0].header.get("EXP_TYPE")
    if "ASDF" in hdus and kind in ("MIR_MRS", "NRS_IFU"):
        raise ValueError(f"{path} is no image but {kind}; for MIRI MRS use MRSIMatchStep or bkg_spec3")
    if wcs is not None:
        return partial(wcs, with_bounding_box=False)
    wcs = WCS(hdus[extension].header, hdus)
    if not wcs.has_celestial and "ASDF" in hdus:
        raise ValueError(f"{path}: there is no WCS; run the assign_wcs step first")
    if not wcs.has_celestial:
        raise ValueError("the header has no celestial WCS")
    return icrs_of(wcs.celestial)


def _gwcs(hdu: fits.BinTableHDU) -> Callable | None:
    _ = asdf.get_config().extensions  # once: each context would find them again
    with asdf.config_context() as config:
        config.validate_on_read = False  # only the WCS is taken
        with asdf.open(io.BytesIO(hdu.data.tobytes())) as tree:
            return tree.tree.get("meta", {}).get("wcs")


def _skip(hdus: fits.HDUList, image: FitsImage) -> None:
    if not read_plane(hdus[0].header, image.path):  # what was subtracted before stays
        hdus[0].header["S_LVLMAT"] = ("SKIPPED", "Level matching")


def _subtract(hdus: fits.HDUList, image: FitsImage, *, plane: Plane, sigma: float) -> None:
    _add(hdus, image, -plane.on_pixels(image.wcs, image.shape))
    header = hdus[0].header
    earlier = read_plane(header, image.path)
    new = plane.anchored(image.wcs, image.shape)
    total = earlier.anchored(image.wcs, image.shape) + new if earlier else new
    _remove_cards(header)
    if any(total.slope):
        values = [*total.slope, total.level, *total.centre]
        comments = ["per arcsec to the east", "per arcsec to the north", "level", "[deg] there", "[deg] there"]
        for keyword, value, comment in zip(_CARDS[1:], values, comments, strict=True):
            header[keyword] = (value, f"matched plane: {comment}")
        if total.corners:
            (ny, nx), at_corners = total.corners
            for keyword, value in zip(CORNER_CARDS, (nx, ny, *at_corners), strict=True):
                header[keyword] = (value, "matched plane: in corners of an image so large")
    else:
        header["LVLMATCH"] = (total.level, "matched level")
    header["LVLM_SIG"] = (sigma, "standard error of the level")
    header["LVLM_SUB"] = (True, "is the level subtracted?")
    header["S_LVLMAT"] = ("COMPLETE", "Level matching")
    header.add_history(f"bkgmatch {version('bkgmatch')} subtracted the level {plane.level:.8g}")


def _undo(hdus: fits.HDUList, image: FitsImage, *, plane: Plane | None) -> None:
    if plane is not None:
        _add(hdus, image, plane.on_pixels(image.wcs, image.shape))
        hdus[0].header.add_history(f"bkgmatch {version('bkgmatch')} added the level {plane.level:.8g} back")
    _remove_cards(hdus[0].header)


def _add(hdus: fits.HDUList, image: FitsImage, values: np.ndarray | float) -> None:
    """Add to the pixels; integers become floating point, and compressed images, which would lose digits, are not."""
    hdu = hdus[image.extension]
    header, data = hdu.header, hdu.data
    if data.dtype.kind != "f" or "BLANK" in header or isinstance(hdu, fits.CompImageHDU):
        header = header.copy()
        header.remove("BLANK", ignore_missing=True)
        kind = fits.PrimaryHDU if image.extension == 0 else fits.ImageHDU
        hdu = hdus[image.extension] = kind(data if data.dtype.kind == "f" else data.astype(np.float32), header)
    hdu.data = shift(hdu.data, values)


def _remove_cards(header: fits.Header) -> None:
    for keyword in (*_CARDS, *CORNER_CARDS, "LVLM_SIG", "LVLM_SUB", "S_LVLMAT"):
        header.remove(keyword, ignore_missing=True)
