"""Levels as tables: what is saved, shown, and read back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import numpy as np
from astropy.table import Table, vstack

from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.levels import LevelMatch
from bkgmatch.match import SkyMatch
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.paths import begins_with, check_name, is_there, located
from bkgmatch.saved import made_by, opened_table, per_arcsec
from bkgmatch.spectra import SpectralMatch
from bkgmatch.written import check_folder, whole_files

__all__ = [
    "check_tables",
    "exposure_table",
    "image_table",
    "level_pair_table",
    "level_table",
    "pair_table",
    "pairs_path",
    "read_tables",
    "save_tables",
    "spectral_pair_table",
    "spectral_table",
]

_FIRST_COLUMNS = {"exposures": "name", "pairs": "first"}
_OTHER_FORMATS = (".asdf", ".csv", ".fit", ".fits", ".html", ".json")


def exposure_table(match: SkyMatch, options: SkyMatchOptions, *, unit: str = "", **parameters: object) -> Table:
    """
    Tabulate the exposures.

    Parameters
    ----------
    match : SkyMatch
        Result of a match.
    options : SkyMatchOptions
        Options that it was made with; they go into the metadata.
    unit : str
        Unit of the levels.
    **parameters
        Other parameters to keep in the metadata.

    Returns
    -------
    Table
        Columns name, group, component, level, sigma, sky, npix, status; sorted by name.
    """
    table = Table(
        {
            "name": list(match.names),
            "group": match.groups,
            "component": match.component,
            "level": match.level,
            "sigma": match.sigma,
            "sky": match.sky,
            "npix": match.npix,
            "status": list(match.status),
        },
        meta={"bkgmatch": version("bkgmatch"), "options": asdict(options) | parameters},
    )
    table.sort("name")
    return _with_unit(table, unit, "level", "sigma", "sky")


def pair_table(match: SkyMatch, *, unit: str = "") -> Table:
    """
    Tabulate the pairs.

    Parameters
    ----------
    match : SkyMatch
        Result of a match.
    unit : str
        Unit of the levels.

    Returns
    -------
    Table
        Columns first, second, offset, sigma, npix, weight, residual, status; sorted by the names.
        ``down-weighted`` pairs have less than half of the weight that their errors give them.
    """
    pairs = match.pairs
    first, second, sign = _by_name(match.names, pairs.first, pairs.second)
    table = Table(
        {
            "first": first,
            "second": second,
            "offset": sign * pairs.offset,
            "sigma": pairs.sigma,
            "npix": pairs.npix,
            "weight": pairs.weight,
            "residual": sign * match.residual,
            "status": np.where(pairs.weight < 0.5 * pairs.full_weight, "down-weighted", "used"),
        }
    )
    table.sort(["first", "second"])
    return _with_unit(table, unit, "offset", "sigma", "residual")


def level_table(match: LevelMatch, options: LevelMatchOptions, *, unit: str = "", **parameters: object) -> Table:
    """
    Tabulate the exposures of a level match.

    Parameters
    ----------
    match : LevelMatch
        Result of a match.
    options : LevelMatchOptions
        Options that it was made with; they go into the metadata.
    unit : str
        Unit of the levels.
    **parameters
        Other parameters to keep in the metadata.

    Returns
    -------
    Table
        Columns name, component, ra, dec, level, sigma, slope_east, slope_north, sigma_east, sigma_north, loose,
        status; sorted by name. Slopes are per arcsecond.
    """
    table = Table(
        {
            "name": list(match.names),
            "component": match.component,
            "ra": match.centre[:, 0],
            "dec": match.centre[:, 1],
            "level": match.level,
            "sigma": match.sigma,
            "slope_east": match.slope[:, 0],
            "slope_north": match.slope[:, 1],
            "sigma_east": match.slope_sigma[:, 0],
            "sigma_north": match.slope_sigma[:, 1],
            "loose": match.loose,
            "status": list(match.status),
        },
        meta={
            "bkgmatch": version("bkgmatch"),
            "reference": list(match.reference),
            "options": asdict(options) | parameters,
        },
    )
    table.sort("name")
    table["ra"].unit = table["dec"].unit = "deg"
    slopes = ("slope_east", "slope_north", "sigma_east", "sigma_north")
    return _with_unit(_with_unit(table, unit, "level", "sigma"), per_arcsec(unit), *slopes)


def level_pair_table(match: LevelMatch, *, unit: str = "") -> Table:
    """
    Tabulate the pairs of a level match.

    Parameters
    ----------
    match : LevelMatch
        Result of a match.
    unit : str
        Unit of the levels.

    Returns
    -------
    Table
        Columns first, second, pass, npix, offset, sigma, rms, residual, trust, status; sorted by the names. A pair is
        ``down-weighted`` if it does not agree with the others, ``rejected`` if it is beyond a limit.
    """
    pairs = match.pairs
    first, second, sign = _by_name(match.names, pairs.first, pairs.second)
    status = np.where(pairs.trust == 0, "rejected", np.where(pairs.trust < 0.5, "down-weighted", "used"))
    table = Table(
        {
            "first": first,
            "second": second,
            "pass": pairs.step,
            "npix": pairs.npix,
            "offset": sign * pairs.offset,
            "sigma": pairs.sigma,
            "rms": pairs.rms,
            "residual": sign * pairs.residual,
            "trust": pairs.trust,
            "status": status,
        }
    )
    table.sort(["first", "second"])
    return _with_unit(table, unit, "offset", "sigma", "rms", "residual")


def spectral_table(
    matches: Mapping[tuple[str, str], SpectralMatch], options: MRSIMatchOptions, *, unit: str = "", **parameters: object
) -> Table:
    """
    Tabulate the exposures of spectral matches.

    Parameters
    ----------
    matches : mapping
        Result for each channel and band.
    options : MRSIMatchOptions
        Options that they were made with; they go into the metadata.
    unit : str
        Unit of the data.
    **parameters
        Other parameters to keep in the metadata.

    Returns
    -------
    Table
        Columns name, channel, band, component, npix (voxels that constrain the polynomial), level (its mean over
        these), sigma, ra, dec and wavelength (reference point), coefficients (C order, powers of degrees and
        micrometres), errors, loose (terms that a prior holds), bounded, status; sorted by channel, band and name.
    """
    rows = [
        (
            *(name, *group, match.component[i], match.npix[i], match.level[i], match.sigma[i], *match.refpoint[i]),
            *(match.coefficients[i], match.errors[i], ", ".join(match.loose[i]), match.bounded[i], match.status[i]),
        )
        for group, match in matches.items()
        for i, name in enumerate(match.names)
    ]
    columns = "name channel band component npix level sigma ra dec wavelength coefficients errors loose bounded status"
    made_with = asdict(options) | {"bkg_degree": list(options.degree)} | parameters
    table = Table(rows=rows, names=columns.split(), meta={"bkgmatch": version("bkgmatch"), "options": made_with})
    table.sort(["channel", "band", "name"])
    table["ra"].unit = table["dec"].unit = "deg"
    table["wavelength"].unit = "um"
    return _with_unit(table, unit, "level", "sigma")


def spectral_pair_table(matches: Mapping[tuple[str, str], SpectralMatch], *, unit: str = "") -> Table:
    """
    Tabulate the pairs of spectral matches.

    Parameters
    ----------
    matches : mapping
        Result for each channel and band.
    unit : str
        Unit of the data.

    Returns
    -------
    Table
        Columns first, second, channel, band, npix, offset, sigma, residual; sorted by channel, band and names.
    """
    tables = []
    for (channel, band), match in matches.items():
        pairs = match.pairs
        first, second, sign = _by_name(match.names, pairs.first, pairs.second)
        values = {"offset": sign * pairs.offset, "sigma": pairs.sigma, "residual": sign * pairs.residual}
        group = {"channel": [channel] * len(first), "band": [band] * len(first), "npix": pairs.npix}
        tables.append(Table({"first": first.astype(str), "second": second.astype(str), **group, **values}))
    table = vstack([t for t in tables if len(t)] or tables[:1])
    table.sort(["channel", "band", "first", "second"])
    return _with_unit(table, unit, "offset", "sigma", "residual")


def image_table(
    backgrounds: ImageBackgrounds, options: ImageForImageOptions, *, unit: str = "", **parameters: object
) -> Table:
    """
    Tabulate the backgrounds of exposures.

    Parameters
    ----------
    backgrounds : ImageBackgrounds
        The backgrounds.
    options : ImageForImageOptions
        Options that they were made with; they go into the metadata.
    unit : str
        Unit of the data.
    **parameters
        Other parameters to keep in the metadata.

    Returns
    -------
    Table
        Columns name, level, rms (of source-free pixels, after subtraction), n_members, donors (median of the good
        pixels), masked, holes, covered (parts of the good pixels), status, members; sorted by name.
    """
    table = Table(
        {
            "name": list(backgrounds.names),
            "level": backgrounds.level,
            "rms": backgrounds.rms,
            "n_members": [len(members) for members in backgrounds.members],
            "donors": backgrounds.donors,
            "masked": backgrounds.masked,
            "holes": backgrounds.holes,
            "covered": backgrounds.covered,
            "status": list(backgrounds.status),
            "members": [" ".join(members) for members in backgrounds.members],
        },
        meta={"bkgmatch": version("bkgmatch"), "options": asdict(options) | parameters},
    )
    table.sort("name")
    return _with_unit(table, unit, "level", "rms")


def _by_name(names: Sequence[str], first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names of pairs, the lesser first, and the sign of their differences then."""
    one, two = np.array(names)[first], np.array(names)[second]
    swap = one > two
    return np.where(swap, two, one), np.where(swap, one, two), np.where(swap, -1.0, 1.0)


def _with_unit(table: Table, unit: str, *columns: str) -> Table:
    for column in columns:
        table[column].unit = unit or None
    return table


def pairs_path(path: str | Path) -> Path:
    """Name of the file of pairs that belongs to a file of levels."""
    path = Path(path)
    return path.with_name(f"{path.stem}_pairs{path.suffix}")


def check_tables(path: str | Path) -> None:
    """
    Check where tables would be saved.

    Parameters
    ----------
    path : str or Path
        File of the exposures.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    NotADirectoryError, PermissionError
        If nothing may be written there.
    ValueError
        If it, or that of the pairs, cannot be a name, or would replace a folder, something that is no table, or a table
        of the other kind.
    """
    if not located(path).parent.is_dir():
        raise FileNotFoundError(f"the folder of save_table={path} does not exist; make it first")
    check_folder(Path(path).absolute().parent)
    for table, other in ((Path(path), "pairs"), (pairs_path(path), "exposures")):
        check_name(table, "save_table")
        if table.is_dir():
            raise ValueError(f"save_table={table} is a folder; name a file in it")
        if is_there(table) and not begins_with(table, b"# %ECSV"):
            raise ValueError(f"save_table={table} exists and is no table of bkgmatch; choose another name")
        if is_there(table) and _has_column(table, _FIRST_COLUMNS[other]):
            raise ValueError(f"save_table={table} exists and is a table of {other}; choose another name")
        if table.suffix.lower() in _OTHER_FORMATS:
            raise ValueError(
                f"save_table={table}: tables are written as ECSV, which is text; let the name end in .ecsv"
            )


def _has_column(path: Path, name: str) -> bool:
    """Whether the header of an ECSV table has a column of this name."""
    with open(path, errors="replace") as file:
        header = takewhile(lambda line: line.startswith("#"), file)
        return any(line.startswith(f"# - {{name: {name},") for line in header)


def save_tables(path: str | Path, exposures: Table, pairs: Table | None = None) -> None:
    """
    Save tables as ECSV, that of the pairs beside that of the exposures as ``*_pairs.ecsv``.

    Parameters
    ----------
    path : str or Path
        File of the exposures.
    exposures, pairs : Table
        Tables; that of the pairs may be missing.

    Raises
    ------
    NotWritten
        If they cannot be written. What has their names already stays then.
    """
    path = Path(path)
    with whole_files(path.parent) as parts:
        exposures.write(parts / path.name, format="ascii.ecsv")
        if pairs is not None:
            pairs.write(pairs_path(parts / path.name), format="ascii.ecsv")


def read_tables(path: str | Path) -> tuple[Table, Table | None]:
    """
    Read saved tables.

    Parameters
    ----------
    path : str or Path
        ECSV file of exposures of any step.

    Returns
    -------
    exposures : Table
        The table.
    pairs : Table or None
        That of the pairs, if it is beside it.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not such a table.
    """
    with opened_table(path, "exposures") as exposures:
        step = made_by(exposures)
        missing = [name for name in ("name", "level", "status") if name not in exposures.colnames]
        if missing:
            raise ValueError(f"there is no column {missing[0]}")
    beside = pairs_path(path)
    if step == "ImageForImageStep" or not is_there(beside):  # it has no pairs: those are of an earlier table
        return exposures, None
    with opened_table(beside, "pairs") as pairs:
        return exposures, pairs
