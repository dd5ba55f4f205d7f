"""Associations of files, by what their headers say."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from astropy.io import fits

from bkgmatch.associations import Member, association, relative_to
from bkgmatch.images import check_distinct

__all__ = ["associate"]

_OF_GROUP = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")
_GROUP_NAME = re.compile(r"jw\d{11}_\d{5}_\d{5}(?=_)")
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
        If a file cannot be read, is listed twice, or is no exposure, or images of several filters are given.
    """
    check_distinct(files)
    headers = {file: _header(file) for file in files}
    kinds = {str(header.get("EXP_TYPE", "")) for header in headers.values()}
    is_cube = bool(kinds & set(_IFU))
    if not is_cube:
        _check_filters(headers)
    members = [_member(relative_to(folder, file), header) for file, header in headers.items()]
    programs = {str(header.get("PROGRAM", "noprogram")) for header in headers.values()}
    kind = "spec3" if is_cube else "image3"
    return association(product, members, kind=kind, program=programs.pop() if len(programs) == 1 else "noprogram")


def _header(file: Path) -> fits.Header:
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        header = fits.getheader(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read as FITS: {error}") from error
    if "I4I_PROD" in header:
        raise ValueError(f"{file} is a {header['I4I_PROD']} that image_for_image made, no exposure; leave it out")
    return header


def _check_filters(headers: Mapping[Path, fits.Header]) -> None:
    filters: dict[str, list[str]] = {}
    for file, header in headers.items():
        words = (str(header.get(keyword, "")) for keyword in ("INSTRUME", "FILTER", "PUPIL"))
        filters.setdefault(" ".join(word for word in words if word), []).append(file.name)
    if len(filters) > 1:
        found = "; ".join(f"{name or 'unknown'}: {len(of)} ({of[0]}, ...)" for name, of in sorted(filters.items()))
        raise ValueError(f"the files are of several filters: give those of one. {found}")


def _member(name: str, header: fits.Header) -> Member:
    member = {"expname": name, "exptype": "background" if header.get("BKGDTARG") else "science"}
    group = _GROUP_NAME.match(Path(name).name)
    is_known = all(keyword in header for keyword in _OF_GROUP)
    return member if is_known or not group else member | {"group_id": group[0]}
