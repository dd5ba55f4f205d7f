"""Associations of files, by what their headers say."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from astropy.io import fits

from bkgmatch.associations import Member, association, check_product, relative_to
from bkgmatch.images import check_distinct, check_listed_once, naming
from bkgmatch.paths import is_there, located
from bkgmatch.reasons import reason

__all__ = ["associate"]

_OF_GROUP = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")
_USED = ("EXP_TYPE", "INSTRUME", "FILTER", "PUPIL", "BKGDTARG", "S_EXTR1D")
_NAME = re.compile(r"(?P<exposure>(?P<group>jw\d{11}_\d{3}[0-9a-z]{2}_\d{5})_[0-9a-z]+)_")
_IFU = ("MIR_MRS", "NRS_IFU")


def associate(files: Sequence[Path], product: str, folder: Path) -> dict:
    """
    Associate exposures, by what their headers say of them.

    Dedicated background exposures (``BKGDTARG``) get the exptype ``background``. Exposures of the detectors of one
    telescope exposure are one group to jwst, which it finds in their headers; where these do not tell, ``group_id`` is
    taken from the file name.

    Parameters
    ----------
    files : sequence of Path
        Exposures of one mosaic or cube.
    product : str
        Name of the product.
    folder : Path
        Where the association will be.

    Returns
    -------
    dict
        The level-3 association.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file cannot be read, is listed twice, or is no exposure, several filters or types of exposure are given, or
        the product's name cannot be part of a file name.
    """
    check_product(product)
    _check_names(files)
    headers = {file: _header(file) for file in files}
    _check_alike(headers)
    members = [_member(relative_to(folder, file), header) for file, header in headers.items()]
    programs = {str(header.get("PROGRAM", "noprogram")) for header in headers.values()}
    kind = "spec3" if _is_cube(headers[files[0]]) else "image3"
    return association(product, members, kind=kind, program=programs.pop() if len(programs) == 1 else "noprogram")


def _check_names(files: Sequence[Path]) -> None:
    check_listed_once([located(file) for file in files])
    check_distinct(files)
    exposures: dict[str, Path] = {}
    for file in files:
        name = _NAME.match(file.name)
        other = exposures.setdefault(name["exposure"] if name else file.name, file)
        if other is not file:
            raise ValueError(f"{other.name} and {file.name} are one exposure; list only one of them")


def _header(file: Path) -> fits.Header:
    if not is_there(file):
        raise FileNotFoundError(f"{file} does not exist")
    try:
        header = fits.getheader(file)
    except Exception as error:  # astropy raises many kinds
        raise ValueError(f"{file} is no FITS file; give exposures ({reason(error)})") from error
    with naming(file):
        _check_header(file, header)
    return header


def _check_header(file: Path, header: fits.Header) -> None:
    """Raise ValueError if this is no exposure, or cards that are needed cannot be read."""
    for keyword in (*_OF_GROUP, *_USED):
        header.get(keyword)
    if "I4I_PROD" in header:
        raise ValueError(f"{file} is a {header['I4I_PROD']} that image_for_image made, no exposure; leave it out")
    if "COMPLETE" in (header.get("S_RESAMP"), header.get("S_IFUCUB")):
        raise ValueError(f"{file} is a mosaic or a cube, no exposure; leave it out")


def _is_cube(header: fits.Header) -> bool:
    return header.get("EXP_TYPE") in _IFU


def _check_alike(headers: Mapping[Path, fits.Header]) -> None:
    kinds: dict[str, list[str]] = {}
    for file, header in headers.items():
        keywords = ("EXP_TYPE",) if _is_cube(header) else ("EXP_TYPE", "INSTRUME", "FILTER", "PUPIL")
        words = (str(header.get(keyword, "")) for keyword in keywords)
        kinds.setdefault(" ".join(word for word in words if word), []).append(file.name)
    if len(kinds) > 1:
        found = "; ".join(f"{name or 'unknown'}: {len(of)} ({of[0]}, ...)" for name, of in sorted(kinds.items()))
        raise ValueError(f"the files are of several filters or exposure types: give those of one. {found}")


def _member(name: str, header: fits.Header) -> Member:
    is_background = bool(header.get("BKGDTARG"))
    if is_background and _is_cube(header) and header.get("S_EXTR1D") != "COMPLETE":
        raise ValueError(
            f"{name} is a dedicated background: calwebb_spec3 takes its *_x1d.fits; give that, or leave it out"
        )
    member = {"expname": name, "exptype": "background" if is_background else "science"}
    known = _NAME.match(Path(name).name)
    is_told = all(keyword in header for keyword in _OF_GROUP)
    return member if is_told or not known else member | {"group_id": known["group"]}
