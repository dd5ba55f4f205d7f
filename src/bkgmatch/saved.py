"""Saved tables, read back: whose they are, and levels and planes to be applied to exposures."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite, isinf
from pathlib import Path
from typing import NamedTuple

from astropy.table import Row, Table
from astropy.units import Unit, UnrecognizedUnit, arcsec

from bkgmatch.images import same_unit
from bkgmatch.paths import is_there
from bkgmatch.planes import Plane
from bkgmatch.reasons import reason

__all__ = [
    "SavedLevel",
    "SavedLevels",
    "made_by",
    "opened_table",
    "per_arcsec",
    "read_saved",
    "read_sky_levels",
    "same_exposure",
    "subtracted_before",
    "without_suffix",
]

_STEPS = {
    "slope_east": "LevelMatchStep",
    "n_members": "ImageForImageStep",
    "coefficients": "MRSIMatchStep",
}  # by a column that only their tables have
_HAVE_LEVELS, _HAVE_NONE = ("matched", "measured", "fixed"), ("background", "no overlap", "no good pixels")
_OUR_SUFFIX = re.compile("_(levelmatch|mrsimatch|i4i)$")
_NOT_LEVELS = {
    "ImageForImageStep": (
        "it is a table of ImageForImageStep, whose backgrounds are the images *_i4ibkg.fits; subtract them or run it"
    ),
    "MRSIMatchStep": "it is a table of MRSIMatchStep, whose polynomials only the step subtracts; run it",
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

    @property
    def levels(self) -> dict[str, tuple[float, float]]:
        """Level and its standard error by name of the exposure; both are NaN for exposures without a level."""
        return {name: (row.plane.level, row.sigma) for name, row in self.rows.items()}

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
        found = same_exposure(name, self.rows, stem)
        if found is None:
            raise ValueError(
                f"{name} is not in the table {self.path}, which has {', '.join(sorted(self.rows)[:3])}, ...; leave it "
                "out, or match it with the others"
            )
        return found

    def check(self, name: str, row: str, *, unit: str, is_matched: bool) -> None:
        """
        Check that a level is that of an exposure as it is.

        Parameters
        ----------
        name : str
            Name of the exposure, perhaps with its folder.
        row : str
            Its name in the table.
        unit : str
            Unit of its data.
        is_matched : bool
            Whether it has a background that another step has found.

        Raises
        ------
        ValueError
            If it is not.
        """
        is_same = row == Path(name).name
        if not is_same and without_suffix(Path(row).stem) != Path(row).stem:
            raise ValueError(f"{name}: the levels are those of {row}, another step's result; give that file")
        if is_matched and not self.is_relative:
            raise ValueError(subtracted_before(name))
        if self.is_relative and not (is_matched and is_same):
            raise ValueError(
                f"{name}: the levels of {self.path} are relative to earlier ones; give the files that were matched"
            )
        if not same_unit(unit, self.unit):
            raise ValueError(
                f"{name} has the unit {unit}, the table {self.path} {self.unit}; convert it, or match it again"
            )


def subtracted_before(name: str | Path) -> str:
    """Message for an exposure to which levels were not to be applied."""
    return f"a background has been subtracted from {name}; give the exposure as it was ('bkgmatch undo {name}')"


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
    with opened_table(path, "levels") as table:
        step = made_by(table)
        if step in _NOT_LEVELS:
            raise ValueError(_NOT_LEVELS[step])
        has_planes = step == "LevelMatchStep"
        _check_units(table)
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


def read_sky_levels(path: str | Path) -> SavedLevels:
    """Read a table of SkyMatchStep; errors as of `read_saved`, and ValueError if it is of another step."""
    saved = read_saved(path)
    if not saved.skymethod:
        raise ValueError(f"{path} is a table of LevelMatchStep: it is for 'bkgmatch apply'; give one of SkyMatchStep")
    return saved


@contextmanager
def opened_table(path: str | Path, what: str) -> Iterator[Table]:
    """Open a saved table of exposures; FileNotFoundError or ValueError if it is none, or what is done with it fails."""
    if not is_there(path):
        raise FileNotFoundError(f"the table {path} does not exist")
    try:
        yield Table.read(path, format="ascii.ecsv")
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"{path} is not a table of {what} saved by bkgmatch: {reason(error)}") from error


def made_by(table: Table) -> str:
    """Name of the step that a table of exposures is of; ValueError if it is one of pairs."""
    if "first" in table.colnames:
        raise ValueError("it is a table of pairs; give that of the exposures, without _pairs")
    return next((step for column, step in _STEPS.items() if column in table.colnames), "SkyMatchStep")


def per_arcsec(unit: str) -> str:
    """Write the unit of the slopes of what has a unit."""
    known = Unit(unit, parse_strict="silent")
    return f"{unit} / arcsec" if isinstance(known, UnrecognizedUnit) else str(known / arcsec)


def without_suffix(name: str) -> str:
    """Name without the suffix of a step of bkgmatch that jwst does not know."""
    return _OUR_SUFFIX.sub("", name)


def same_exposure(name: str, names: Iterable[str], stem: Callable[[str], str]) -> str | None:
    """Name of the same exposure among others: the same, or the only one with the same stem; None without one."""
    among = list(names)
    if name in among:
        return name
    alike = [other for other in among if stem(other) == stem(name)]
    return alike[0] if len(alike) == 1 else None


def _check_units(table: Table) -> None:
    """Raise ValueError if numbers are in other units than ours; without a unit they are taken for ours."""
    of_level = str(table["level"].unit or "")
    slopes = dict.fromkeys(("slope_east", "slope_north", "sigma_east", "sigma_north"), per_arcsec(of_level))
    for column, expected in {"sigma": of_level, "ra": "deg", "dec": "deg", **slopes}.items():
        unit = str(table[column].unit or "") if column in table.colnames else ""
        if not same_unit(unit, expected):
            raise ValueError(f"its column {column} has the unit {unit}, not {expected}; convert it")


def _level(row: Row, has_planes: bool) -> SavedLevel:
    plane, sigma, status = Plane(float(row["level"])), float(row["sigma"]), str(row["status"])
    if isinf(plane.level):
        raise ValueError(f"the level of {row['name']} is infinite")
    if status not in _HAVE_LEVELS + _HAVE_NONE:
        raise ValueError(f"the status of {row['name']} is {status!r}; give one of {', '.join(_HAVE_LEVELS)}")
    if isfinite(plane.level) and status in _HAVE_NONE:
        raise ValueError(f"{row['name']} has a level, and the status {status!r} of one without; correct one of them")
    if isfinite(plane.level) and not 0 <= sigma < inf:
        raise ValueError(f"the sigma of {row['name']} is {sigma}, no error of a level; correct it")
    if has_planes and isfinite(plane.level):
        east, north, ra, dec = (float(row[name]) for name in ("slope_east", "slope_north", "ra", "dec"))
        if not all(map(isfinite, (east, north, ra, dec))):
            raise ValueError(f"the plane of {row['name']} is not complete")
        plane = Plane(plane.level, (east, north), (ra, dec))
    return SavedLevel(plane, sigma, status)
