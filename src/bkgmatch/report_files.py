"""The report of saved tables, with pictures of the exposures in files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Row, Table

from bkgmatch.images import FitsImage, check_distinct, naming, read_plane
from bkgmatch.paths import is_there, located
from bkgmatch.quicklook import Look, look_at, side_for
from bkgmatch.record import read_tables
from bkgmatch.report import Shown, check_page, corrected, page_beside, write_report
from bkgmatch.saved import made_by, same_exposure

__all__ = ["report_files"]


def report_files(
    table: Path, files: Sequence[Path] = (), page: Path | None = None, *, stem: Callable[[str], str] = str
) -> Path:
    """
    Write the report of a saved table.

    Parameters
    ----------
    table : Path
        ECSV file of exposures; that of the pairs is beside it.
    files : sequence of Path, optional
        The exposures, as they came or corrected, for pictures: some or all.
    page : Path, optional
        HTML file to write; by default beside the table.
    stem : callable, optional
        ``stem(name)`` is what names of an exposure with other suffixes have in common; by default the whole name.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file is no table or no image, is not in the table, or the page would replace something else.
    ImportError
        If matplotlib is not installed.
    """
    exposures, pairs = read_tables(table)
    page = page or page_beside(table)
    check_page(page)
    if is_there(page) and not files:
        raise ValueError(f"{page} exists, and may have pictures; give the exposures, or another name with --out")
    if not located(page).parent.is_dir():
        raise FileNotFoundError(f"the folder of {page} does not exist; make it first")
    shown = _shown(exposures, files, stem) if files else []
    write_report(page, exposures, pairs, shown=shown, facts={"table": str(table), "files": len(files)})
    return page


def _shown(exposures: Table, files: Sequence[Path], stem: Callable[[str], str]) -> list[Shown]:
    step = made_by(exposures)
    if step not in ("SkyMatchStep", "LevelMatchStep"):
        raise ValueError(f"for a table of {step} give no files: its pictures are made by the step, with report=true")
    check_distinct(files)
    if exposures.meta["options"].get("relative"):
        raise ValueError(
            "the levels of this table are relative to earlier ones; give no files: the step makes the pictures, with "
            "report=true"
        )
    rows = [_row_of(exposures, path, stem) for path in files]
    headers = [_header(path, is_sky=step == "SkyMatchStep") for path in files]
    most = side_for(len(files))
    return [_shown_file(*of, most) for of in zip(files, headers, rows, strict=True)]


def _header(path: Path, *, is_sky: bool) -> fits.Header:
    with naming(path):
        header = fits.getheader(path)
        _check_state(path, header, is_sky=is_sky)
        return header


def _check_state(path: Path, header: fits.Header, *, is_sky: bool) -> None:
    """Raise ValueError if a file has a background that another step has found."""
    if header.get("I4I_SUB") or (header.get("LVLM_SUB") if is_sky else "BKGSUB" in header):
        raise ValueError(f"{path} has a background of another step; give the exposures that were matched")


def _shown_file(path: Path, header: fits.Header, row: Row, most: int) -> Shown:
    with naming(path):
        image = FitsImage.open(path)
        look = look_at(image.exposure(), most)
        look = replace(look, image=_as_it_came(look, image, header, is_plane="slope_east" in row.colnames))
    return Shown(str(row["name"]), look, corrected(look, dict(zip(row.colnames, row, strict=True))))


def _row_of(exposures: Table, path: Path, stem: Callable[[str], str]) -> Row:
    names = [str(name) for name in exposures["name"]]
    found = same_exposure(path.name, names, stem)
    if found is None:
        raise ValueError(f"{path} is not in the table")
    return exposures[names.index(found)]


def _as_it_came(look: Look, image: FitsImage, header: fits.Header, *, is_plane: bool) -> np.ndarray:
    """Image of a look, with what the step has subtracted or recorded added again."""
    if not is_plane:
        return look.image + np.float32(header["BKGLEVEL"] if header.get("BKGSUB") else image.recorded)
    plane = read_plane(header, image.path)
    return look.image + plane.on_pixels(look.wcs, look.image.shape) if plane else look.image
