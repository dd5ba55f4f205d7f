"""Levels as tables: what is saved, shown, and read back."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from astropy.table import Table

from bkgmatch.match import SkyMatch
from bkgmatch.options import SkyMatchOptions

__all__ = ["exposure_table", "pair_table", "pairs_path", "read_levels", "save_tables"]


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
    names = np.array(match.names)
    one, two = names[pairs.first], names[pairs.second]
    swap = one > two
    sign = np.where(swap, -1.0, 1.0)
    table = Table(
        {
            "first": np.where(swap, two, one),
            "second": np.where(swap, one, two),
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


def _with_unit(table: Table, unit: str, *columns: str) -> Table:
    for column in columns:
        table[column].unit = unit or None
    return table


def pairs_path(path: str | Path) -> Path:
    """Name of the file of pairs that belongs to a file of levels."""
    path = Path(path)
    return path.with_name(f"{path.stem}_pairs{path.suffix}")


def save_tables(path: str | Path, exposures: Table, pairs: Table) -> None:
    """
    Save both tables as ECSV, the pairs beside the exposures as ``*_pairs.ecsv``.

    Parameters
    ----------
    path : str or Path
        File of the exposures.
    exposures, pairs : Table
        Tables.
    """
    exposures.write(path, format="ascii.ecsv", overwrite=True)
    pairs.write(pairs_path(path), format="ascii.ecsv", overwrite=True)


def read_levels(path: str | Path) -> tuple[dict[str, tuple[float, float]], str]:
    """
    Read levels from a saved table.

    Parameters
    ----------
    path : str or Path
        ECSV file of exposures.

    Returns
    -------
    levels : dict
        Level and its error, by the name of the exposure; both are NaN for exposures without a level.
    skymethod : str
        Method that they were made with.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not such a table.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"the table {path} does not exist")
    try:
        table = Table.read(path, format="ascii.ecsv")
        if "first" in table.colnames:
            raise ValueError("it is a table of pairs; give that of the exposures, without _pairs")
        skymethod = str(table.meta["options"]["skymethod"])
        rows = [(str(row["name"]), float(row["level"]), float(row["sigma"])) for row in table]
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"{path} is not a table of levels saved by bkgmatch: {error}") from error
    return {name: (level, sigma) for name, level, sigma in rows}, skymethod
