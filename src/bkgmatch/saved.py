"""Saved tables of levels and planes, read back to be applied to exposures."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from astropy.table import Row, Table

from bkgmatch.planes import Plane

__all__ = ["SavedLevel", "SavedLevels", "read_saved"]

_NOT_LEVELS = {
    "first": "it is a table of pairs; give that of the exposures, without _pairs",
    "n_members": "it is a table of ImageForImageStep, which has no images; subtract its *_i4ibkg.fits, or run the step",
    "coefficients": "it is a table of MRSIMatchStep, whose polynomials only the step subtracts; run it",
}


class SavedLevel(NamedTuple):
    """Background of an exposure, its standard error and status; the level is NaN where there is none."""

    plane: Plane
    sigma: float
    status: str


@dataclass(frozen=True)
class SavedLevels:
    """
    Levels or planes of exposures.

    Parameters
    ----------
    path : Path
        File that they are from.
    rows : dict
        `SavedLevel` by name of the exposure.
    unit : str
        Unit of the levels.
    skymethod : str
        Method of SkyMatchStep; empty for a table of LevelMatchStep or ``bkgmatch level``.
    is_relative : bool
        Whether levels are relative to backgrounds that another step had found.
    """

    path: Path
    rows: dict[str, SavedLevel]
    unit: str
    skymethod: str
    is_relative: bool

    def name_of(self, name: str, stem: Callable[[str], str]) -> str:
        """
        Find an exposure in the table.

        Parameters
        ----------
        name : str
            Name of its file.
        stem : callable
            ``stem(name)`` is what names with other suffixes have in common.

        Returns
        -------
        str
            Its name in the table: the same, or the only one with the same stem.

        Raises
        ------
        ValueError
            If there is none.
        """
        if name in self.rows:
            return name
        alike = [row for row in self.rows if stem(row) == stem(name)]
        if len(alike) != 1:
            raise ValueError(
                f"{name} is not in the table {self.path}, which has {', '.join(sorted(self.rows)[:3])}, ...; leave it "
                "out, or match it with the others"
            )
        return alike[0]


def read_saved(path: str | Path) -> SavedLevels:
    """
    Read a table that ``save_table`` has written.

    Parameters
    ----------
    path : str or Path
        ECSV file of exposures.

    Returns
    -------
    SavedLevels
        Its levels or planes.

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
        for column, reason in _NOT_LEVELS.items():
            if column in table.colnames:
                raise ValueError(reason)
        has_planes = "slope_east" in table.colnames
        rows = {str(row["name"]): _level(row, has_planes) for row in table}
        if len(rows) < len(table):
            raise ValueError("exposures are in it more than once")
        return SavedLevels(
            Path(path),
            rows,
            str(table["level"].unit or ""),
            "" if has_planes else str(table.meta["options"]["skymethod"]),
            bool(table.meta["options"].get("relative")),
        )
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"{path} is not a table of levels saved by bkgmatch: {error}") from error


def _level(row: Row, has_planes: bool) -> SavedLevel:
    plane = Plane(float(row["level"]))
    if has_planes and isfinite(plane.level):
        east, north, ra, dec = (float(row[name]) for name in ("slope_east", "slope_north", "ra", "dec"))
        if not all(map(isfinite, (east, north, ra, dec))):
            raise ValueError(f"the plane of {row['name']} is not complete")
        plane = Plane(plane.level, (east, north), (ra, dec))
    return SavedLevel(plane, float(row["sigma"]), str(row["status"]))
