"""What a report shows of a result: from its tables, and from pictures of the exposures where there are any."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from bkgmatch import report_figures as draw
from bkgmatch.footprints import gnomonic, position, unit_vectors
from bkgmatch.page import MARK, Page, definitions, figure, figures, paragraph, table
from bkgmatch.paths import begins_with, is_there
from bkgmatch.planes import ARCSEC, Plane, tangent_axes
from bkgmatch.quicklook import Look, Picture, common_part, fields_of, mosaics
from bkgmatch.report_figures import LARGEST_PULL, Curve, SkyMap, check_matplotlib, short_names, sky_map
from bkgmatch.saved import made_by
from bkgmatch.stories import POOR
from bkgmatch.written import check_folder

__all__ = ["Example", "Shown", "check_page", "corrected", "group_name", "page_beside", "write_report"]

_DONE = ("matched", "measured", "fixed", "made")
_WORST = 6
_FIELDS = 12  # drawn for one report
_ROWS = 1000  # of pairs; more would make the page slow
_MARGIN = 0.05  # of a wavelength, where the range of a band is not known
_BANDS = {  # wavelengths in micrometres, Argyriou et al. 2023, A&A 675, A111
    "1": ((4.90, 5.74), (5.66, 6.63), (6.53, 7.65)),
    "2": ((7.51, 8.77), (8.67, 10.13), (10.01, 11.70)),
    "3": ((11.55, 13.47), (13.34, 15.57), (15.41, 17.98)),
    "4": ((17.70, 20.95), (20.69, 24.48), (24.40, 27.90)),
}
_BAND_NAMES = ("SHORT", "MEDIUM", "LONG")
_ERRORS = {"SkyMatchStep": "these errors and those of the levels"}  # the other steps scale those of what they subtract
_FORMATS = {"ra": ".6f", "dec": ".6f", "errors": ".3g"}
_CURES = {
    "SkyMatchStep": "try skystat='difference', or LevelMatchStep with planes (fit_type_dithers='level+slope').",
    "LevelMatchStep": "try planes (fit_type_dithers and fit_type_mosaic_tiles='level+slope').",
    "MRSIMatchStep": "try a higher bkg_degree.",
}
_LAST_CURES = {
    "SkyMatchStep": "try LevelMatchStep with planes (fit_type_dithers='level+slope').",
    "LevelMatchStep": "look at the worst pairs below.",
}


class Shown(NamedTuple):
    """
    Pictures of an exposure.

    Parameters
    ----------
    name : str
        Name, as in the table.
    look : Look
        Before correction.
    after : ndarray
        Its image after correction.
    group : str
        Channel and band, where exposures have several.
    """

    name: str
    look: Look
    after: np.ndarray
    group: str = ""


@dataclass(frozen=True)
class Example:
    """
    One exposure in full, with a background image.

    Parameters
    ----------
    name : str
        Name.
    before, background, after : ndarray, shape (ny, nx)
        Its image, what is subtracted, and what is left.
    sources : ndarray of bool, shape (ny, nx)
        Its mask.
    """

    name: str
    before: np.ndarray
    background: np.ndarray
    after: np.ndarray
    sources: np.ndarray


def page_beside(tables: str | Path) -> Path:
    """Name of the page that belongs to a file of levels."""
    path = Path(tables)
    named = path.with_suffix(".html")
    return named if named != path else path.with_name(f"{path.stem}_report.html")


def check_page(path: Path) -> None:
    """Raise an error if a page cannot be written: no matplotlib, no folder, or a file that is no page of bkgmatch."""
    check_matplotlib()
    if path.is_dir():
        raise ValueError(f"the report {path} is a folder; choose another name")
    if is_there(path) and not begins_with(path, MARK.encode()):
        raise ValueError(f"{path} exists and is no report of bkgmatch; remove it, or choose another name")
    check_folder(path.parent)


def group_name(channel: str, band: str) -> str:
    """Name of a channel and band."""
    return f"channel {channel} {band}".rstrip()


def corrected(look: Look, row: Mapping[str, Any]) -> np.ndarray:
    """
    Subtract what a row of a table of levels or planes says.

    Parameters
    ----------
    look : Look
        The exposure.
    row : mapping
        Its row; without a finite level nothing is subtracted.

    Returns
    -------
    ndarray
        The image of the look after that.
    """
    level = float(row["level"])
    if not np.isfinite(level):
        return look.image
    if "slope_east" not in row:
        return look.image - level
    plane = Plane(level, (float(row["slope_east"]), float(row["slope_north"])), (float(row["ra"]), float(row["dec"])))
    return look.image - plane.on_pixels(look.wcs, look.image.shape)


def write_report(
    path: Path,
    exposures: Table,
    pairs: Table | None = None,
    *,
    shown: Sequence[Shown] = (),
    example: Example | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """
    Write the page of a result.

    Parameters
    ----------
    path : Path
        HTML file to write.
    exposures : Table
        Table of the exposures, as `bkgmatch.record` makes it.
    pairs : Table, optional
        That of the pairs.
    shown : sequence of Shown, optional
        Pictures of exposures.
    example : Example, optional
        An exposure in full.
    facts : mapping, optional
        What else is told of the run, by name.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the table is not one of exposures, or the file exists and is no such page.
    """
    check_page(path)
    _Report(exposures, pairs, list(shown), example, facts or {}).page().write(path)


@dataclass(frozen=True)
class _Field:
    """Exposures that are drawn together: rows of the table, and pictures of them, if there are any."""

    name: str
    rows: np.ndarray
    shown: list[Shown]


class _Report:
    """Sections of the page, one method for each."""

    def __init__(
        self, exposures: Table, pairs: Table | None, shown: list[Shown], example: Example | None, facts: Mapping
    ) -> None:
        self.step = made_by(exposures)
        self.exposures, self.pairs, self.shown, self.example, self.facts = exposures, pairs, shown, example, facts
        self.names = [str(name) for name in exposures["name"]]
        self.groups = _groups(exposures)
        self.level = _floats(exposures, "level")
        self.sigma = _floats(exposures, "sigma")
        has_sets = "component" in exposures.colnames
        self.component = np.asarray(exposures["component"]) if has_sets else np.zeros(len(exposures), dtype=int)
        self.unit = str(exposures["level"].unit or "")
        self.label = f"{'level' if self.step == 'ImageForImageStep' else 'correction'} ({self.unit or 'no unit'})"
        self.pulls = _pulls(pairs)
        self.row = {key: i for i, key in enumerate(zip(self.names, self.groups, strict=True))}
        self.ends = self._ends()
        found = self._fields()
        self.fields, self.hidden = found[:_FIELDS], len(found[_FIELDS:])

    def page(self) -> Page:
        n = len(set(self.names))
        page = Page(
            f"{self.step}: {n} exposure{'s' if n != 1 else ''}",
            f"Backgrounds matched by bkgmatch {self.exposures.meta.get('bkgmatch', '')}",
            self._summary(),
        )
        page.add("Unmatched exposures", *self._unmatched())
        page.add("Mosaic before and after", *self._mosaics())
        page.add("Exposures on the sky", *self._maps())
        page.add("Corrections", *self._corrections())
        page.add("Corrections against wavelength", *self._curves())
        page.add("Background of one exposure", *self._example())
        page.add("Residuals of pairs", *self._residuals())
        page.add("Worst pairs", *self._worst())
        page.add("What was run", *self._run())
        page.add("Table of exposures", _shown_table(self.exposures))
        page.add("Table of pairs", *self._pair_table())
        return page

    def _summary(self) -> dict[str, Any]:
        done = sum(str(status) in _DONE for status in self.exposures["status"])
        told: dict[str, Any] = {"corrected": done, "not corrected": len(self.exposures) - done}
        if self.pairs is not None:
            sets = {(group, int(c)) for group, c in zip(self.groups, self.component, strict=True) if c >= 0}
            told |= {"connected sets": len(sets), "pairs": len(self.pairs)}
            odd = sum(status != "used" for status in self._pair_status())
            told |= {"not in full use": odd} if odd else {}
        known = self.pulls[np.isfinite(self.pulls)]
        if known.size:
            told["residual / sigma (rms)"] = f"{np.sqrt(np.mean(known**2)):.2f}"
        if len(set(self.groups)) > 1:
            told = {"channels and bands": len(set(self.groups))} | told
        return told

    def _unmatched(self) -> Iterator[str]:
        rows = [i for i, status in enumerate(self.exposures["status"]) if str(status) not in _DONE]
        if rows:
            reasons = [str(self.exposures["status"][i]) for i in rows]
            groups = {"channel and band": [self.groups[i] for i in rows]} if any(self.groups) else {}
            yield table({"exposure": [self.names[i] for i in rows], **groups, "reason": reasons})

    def _mosaics(self) -> Iterator[str]:
        drawn = [field for field in self.fields if field.shown]
        for field in drawn:
            looks = [shown.look for shown in field.shown]
            before, after = mosaics(looks, [look.image for look in looks], [shown.after for shown in field.shown])
            limits = draw.stretches([before.image, after.image])
            what = f"Mosaic of {len(looks)} exposures{_of(field.name)}"
            yield figures(
                figure(
                    draw.mosaic(picture, at, title, self.unit),
                    f"{what} {title} correction, {at[0]:.4g} to {at[1]:.4g} {self.unit}",
                    _caption(field.name, picture.centre),
                )
                for picture, title, at in zip((before, after), ("before", "after"), limits, strict=True)
            )
        if drawn:
            yield paragraph(
                "Means of good pixels before and after correction, north up, east to the left. Both pictures have the "
                f"same stretch, about the middle of each.{self._more_fields()}"
            )

    def _maps(self) -> Iterator[str]:
        drawn = [field for field in self.fields if field.shown or "ra" in self.exposures.colnames]
        maps = [(field, *self._map(field)) for field in drawn]
        if not maps:
            return
        yield figures(
            figure(
                sky_map(of, field.name, self.label),
                f"Map of {len(field.rows)} exposures{_of(field.name)}, coloured by {self.label}, with {len(of.edges)} "
                f"lines between those that are compared, in {len(set(of.component.tolist()))} connected sets",
                _caption(field.name, centre),
            )
            for field, of, centre in maps
        )
        yield paragraph(
            "Colours are corrections; white with an orange edge: none. Lines join exposures that are compared; broken "
            "lines are down-weighted or rejected pairs. Exposures that lie on top of each other, such as dithers, hide "
            f"each other: see Corrections for all of them.{self._more_fields()}"
        )

    def _map(self, field: _Field) -> tuple[SkyMap, tuple[float, float]]:
        place = {int(row): k for k, row in enumerate(field.rows)}
        edges = [(place[i], place[j], s) for i, j, s in self._edges() if i in place and j in place]
        vectors, rings = self._where(field)
        centre = position(vectors.sum(axis=0))
        east, north, middle = tangent_axes(*centre)
        axes = np.array([-east, north, middle])
        arrows = None
        if "slope_east" in self.exposures.colnames:
            slopes = np.column_stack([_floats(self.exposures, f"slope_{to}")[field.rows] for to in ("east", "north")])
            arrows = slopes if np.nan_to_num(slopes).any() else None
        outlines = [[gnomonic(ring, axes) / ARCSEC for ring in of] for of in rings]
        centres = gnomonic(vectors, axes) / ARCSEC
        level, component = self.level[field.rows], self.component[field.rows]
        return SkyMap(centres, outlines, level, component, edges, arrows, self.unit), centre

    def _where(self, field: _Field) -> tuple[np.ndarray, list[list[np.ndarray]]]:
        """Middle and outlines of exposures, as unit vectors; without pictures no outlines."""
        if field.shown:
            outlines = [shown.look.outline for shown in field.shown]
            rings = [np.split(outline.vectors, outline.offsets[0][1:-1]) for outline in outlines]
            return np.array([outline.axes[2] for outline in outlines]), rings
        ra, dec = (_floats(self.exposures, name)[field.rows] for name in ("ra", "dec"))
        return unit_vectors(ra, dec), [[] for _ in field.rows]

    def _corrections(self) -> Iterator[str]:
        for group in dict.fromkeys(self.groups):
            rows = np.array([i for i, of in enumerate(self.groups) if of == group], dtype=int)
            names, value = [self.names[i] for i in rows], self.level[rows]
            png = draw.corrections(names, value, self.sigma[rows], self.component[rows], self.label)
            known = value[np.isfinite(value)]
            told = f"from {known.min():.4g} to {known.max():.4g} {self.unit}" if known.size else "none is known"
            bars = "" if self.step == "ImageForImageStep" else " with errors"
            yield figure(png, f"Corrections of {len(rows)} exposures{_of(group)}{bars}, {told}", group, size="wide")
        if self.step == "ImageForImageStep":
            yield paragraph("Levels of the exposures before their background images are subtracted.")
        else:
            yield paragraph("Bars are standard errors; where none is seen, it is smaller than the point.")

    def _curves(self) -> Iterator[str]:
        if self.step != "MRSIMatchStep":
            return
        drawn = []
        for group in dict.fromkeys(self.groups):
            rows = [i for i, of in enumerate(self.groups) if of == group and np.isfinite(self.level[i])]
            if rows:
                png = draw.curves([self._curve(i) for i in rows], group, self.label)
                alt = f"Corrections of {len(rows)} exposures against wavelength{_of(group)}"
                drawn.append(figure(png, alt))
        yield figures(drawn)
        yield paragraph("At the reference position on the sky of each polynomial. The points show the errors there.")

    def _curve(self, i: int) -> Curve:
        row = self.exposures[i]
        degree = np.atleast_1d(self.exposures.meta["options"]["bkg_degree"])
        count = int(degree[-1]) + 1
        low, high = _wavelengths(_string(row["channel"]), _string(row["band"]), float(row["wavelength"]))
        wavelength = np.linspace(low, high, 60)
        first = np.asarray(row["coefficients"], dtype=float)[:count]  # those without RA and Dec
        value = np.polynomial.polynomial.polyval(wavelength - float(row["wavelength"]), first)
        error = float(np.asarray(row["errors"], dtype=float)[0])
        return Curve(self.names[i], wavelength, value, float(row["wavelength"]), error)

    def _example(self) -> Iterator[str]:
        if self.example is None:
            return
        seen = self.example
        images = {"before": seen.before, "background": seen.background, "after": seen.after}
        limits = draw.stretches(list(images.values()))
        drawn = [
            figure(draw.mosaic(_whole(image), at, title, self.unit, sky=False), f"{seen.name}, {title}")
            for (title, image), at in zip(images.items(), limits, strict=True)
        ]
        part = float(np.mean(seen.sources))
        png = draw.mask(_whole(seen.sources), f"mask of sources, {part:.1%} of the pixels")
        drawn.append(figure(png, f"Mask of the sources of {seen.name}: {part:.1%} of the pixels are dark"))
        yield figures(drawn)
        yield paragraph(f"{seen.name}, on its detector.")

    def _residuals(self) -> Iterator[str]:
        known = self.pulls[np.isfinite(self.pulls)]
        if known.size:
            width = float(np.sqrt(np.mean(known**2)))
            outside = int(np.sum(np.abs(known) > 3))
            told = f"rms {width:.2f}; {outside} of {known.size} beyond 3 sigma"
            piled = int(np.sum(np.abs(known) > LARGEST_PULL))
            if piled:
                told += f"; {piled} beyond {LARGEST_PULL:g}, off the axis: counted in the bins at its ends"
            yield figures([figure(draw.residuals(known), f"Histogram of residuals of pairs in sigmas: {told}", told)])
            yield from self._poor()

    def _poor(self) -> Iterator[str]:
        """Say so if the match is bad, by the pairs in full use."""
        used = np.array([status == "used" for status in self._pair_status()])
        pulls = self.pulls[used & np.isfinite(self.pulls)]
        width = float(np.sqrt(np.mean(pulls**2))) if pulls.size else 0.0
        if width > POOR:
            yield paragraph(
                f"This match is bad: what is left of the pairs is {width:.3g} times their errors (rms), so that "
                f"{_ERRORS.get(self.step, 'these errors')} are too small, and the exposures differ by more than "
                f"{self._fitted()}; {self._cure()}"
            )

    def _fitted(self) -> str:
        if self.step == "MRSIMatchStep":
            return "these polynomials"
        return "a plane" if self._has_planes() else "a constant"

    def _has_planes(self) -> bool:
        return bool(np.nan_to_num(_floats(self.exposures, "slope_east")).any())

    def _cure(self) -> str:
        by_difference = self.exposures.meta.get("options", {}).get("skystat") == "difference"
        cures = _CURES | _LAST_CURES if self._has_planes() or by_difference else _CURES
        return cures.get(self.step, "look at the worst pairs below.")

    def _worst(self) -> Iterator[str]:
        if self.pairs is None or not len(self.pulls):
            return
        order = np.argsort(-np.nan_to_num(np.abs(self.pulls)), kind="stable")[:_WORST]
        pairs = self.pairs[order]
        columns = {name: _values(pairs, name) for name in ("first", "second", "offset", "sigma", "residual")}
        columns |= {"residual / sigma": self.pulls[order], "status": [self._pair_status()[k] for k in order]}
        yield table(columns, _units(pairs), _formats(columns))
        by_row = {self.row[shown.name, shown.group]: shown for shown in self.shown}
        yield figures(
            self._difference(int(k), by_row[i], by_row[j])
            for k, (i, j) in ((k, self.ends[k]) for k in order)
            if i in by_row and j in by_row
        )

    def _difference(self, k: int, one: Shown, two: Shown) -> str:
        blank = [np.full_like(shown.look.image, np.nan) for shown in (one, two)]
        left = common_part(*mosaics([one.look, two.look], [one.after, blank[1]], [blank[0], two.after]))
        if not left.image.size:
            return ""
        short = dict(zip(self.names, short_names(self.names), strict=True))
        first, second = short[one.name], short[two.name]
        told = f"{one.name} − {two.name}{_of(one.group)}, after correction: residual {self.pulls[k]:.2f} sigma"
        png = draw.difference(left, (first, second), self.unit)
        return figure(png, f"Difference {told}", _caption(told, left.centre), size="small")

    def _run(self) -> Iterator[str]:
        meta = self.exposures.meta
        yield definitions({"step": self.step, "bkgmatch": meta.get("bkgmatch", "unknown"), **self.facts})
        now = datetime.now(UTC)
        yield paragraph(f"Page made by bkgmatch {version('bkgmatch')} on {now:%Y-%m-%d at %H:%M} UTC. Parameters:")
        yield definitions(dict(meta.get("options", {})))
        if "reference" in meta:
            yield paragraph(f"Zero point: {', '.join(map(str, meta['reference']))}")

    def _pair_table(self) -> Iterator[str]:
        if self.pairs is None or not len(self.pairs):
            return
        pairs = self.pairs.copy(copy_data=False)
        pairs["residual / sigma"] = self.pulls
        if len(pairs) > _ROWS:
            worst = np.argsort(-np.nan_to_num(np.abs(self.pulls)), kind="stable")[:_ROWS]
            yield paragraph(
                f"The {_ROWS} pairs with the largest residuals, of {len(pairs)}; all are in the saved table."
            )
            pairs = pairs[np.sort(worst)]
        yield _shown_table(pairs)

    def _ends(self) -> list[tuple[int, int]]:
        """Rows of the two exposures of each pair; -1 for one that is not in the table."""
        if self.pairs is None:
            return []
        groups = _groups(self.pairs)
        return [
            (self.row.get((str(first), group), -1), self.row.get((str(second), group), -1))
            for first, second, group in zip(self.pairs["first"], self.pairs["second"], groups, strict=True)
        ]

    def _edges(self) -> list[tuple[int, int, str]]:
        """Pairs, or exposures and those that serve them."""
        if "members" in self.exposures.colnames:
            served = ((i, self.row.get((name, ""), -1)) for i, of in enumerate(self.exposures["members"])
                      for name in str(of).split())  # fmt: skip
            return [(i, j, "used") for i, j in sorted({(min(pair), max(pair)) for pair in served})]
        return [(i, j, status) for (i, j), status in zip(self.ends, self._pair_status(), strict=True)]

    def _pair_status(self) -> list[str]:
        if self.pairs is None:
            return []
        given = self.pairs["status"] if "status" in self.pairs.colnames else ["used"] * len(self.pairs)
        return [str(status) for status in given]

    def _fields(self) -> list[_Field]:
        """Exposures to draw together: near each other, or without pictures connected; those of most exposures first."""
        found = []
        for group in dict.fromkeys(self.groups):
            shown = [s for s in self.shown if s.group == group]
            for members in fields_of([s.look for s in shown]):
                rows = np.array([self.row[shown[k].name, group] for k in members])
                found.append(_Field(group, rows, [shown[k] for k in members]))
        if not self.shown and self.step == "LevelMatchStep":
            rows_of = (np.flatnonzero(self.component == k) for k in np.unique(self.component[self.component >= 0]))
            found = [_Field("", rows, []) for rows in rows_of]
        return sorted(found, key=lambda field: -len(field.rows)) if len(set(self.groups)) == 1 else found

    def _more_fields(self) -> str:
        return f" {self.hidden} more sets of exposures are not drawn." if self.hidden else ""


def _groups(of: Table) -> list[str]:
    """Channel and band of each row; empty where there are none."""
    if "channel" not in of.colnames:
        return [""] * len(of)
    return [group_name(*map(_string, names)) for names in zip(of["channel"], of["band"], strict=True)]


def _string(value: Any) -> str:
    """Text of a cell; empty ones come back masked from a file."""
    return "" if value is np.ma.masked else str(value)


def _floats(of: Table, name: str) -> np.ndarray:
    if name not in of.colnames:
        return np.full(len(of), np.nan)
    return np.ma.filled(np.ma.asarray(of[name], dtype=float), np.nan)


def _pulls(pairs: Table | None) -> np.ndarray:
    if pairs is None:
        return np.empty(0)
    residual, sigma = (_floats(pairs, name) for name in ("residual", "sigma"))
    return np.divide(residual, sigma, out=np.full(len(pairs), np.nan), where=sigma > 0)


def _wavelengths(channel: str, band: str, reference: float) -> tuple[float, float]:
    if channel in _BANDS and band in _BAND_NAMES:
        return _BANDS[channel][_BAND_NAMES.index(band)]
    return reference * (1 - _MARGIN), reference * (1 + _MARGIN)


def _units(of: Table) -> dict[str, str]:
    return {name: str(of[name].unit) for name in of.colnames if of[name].unit}


def _shown_table(of: Table) -> str:
    return table({name: _values(of, name) for name in of.colnames}, _units(of), _formats(of.colnames))


def _formats(names: Iterable[str]) -> dict[str, str]:
    """Positions to a few milliarcseconds, errors with three digits."""
    return _FORMATS | {name: ".3g" for name in names if name == "sigma" or name.startswith("sigma_")}


def _values(of: Table, name: str) -> Any:
    column = of[name]
    if column.dtype.kind in "iufb" and column.ndim == 1:
        return np.ma.filled(column, np.nan) if np.ma.is_masked(column) else np.asarray(column)
    return [value if np.ndim(value) else _string(value) for value in column]


def _whole(image: np.ndarray) -> Picture:
    ny, nx = image.shape
    return Picture(image, (-0.5, nx - 0.5, -0.5, ny - 0.5))


def _caption(text: str, centre: tuple[float, float]) -> str:
    """Text and the centre of a picture of the sky."""
    ra, dec = round(centre[0], 5) % 360, centre[1]
    return f"{text}{'. ' if text else ''}Centre: RA {ra:.5f}, Dec {dec:.5f} degrees"


def _of(name: str) -> str:
    return f" of {name}" if name else ""
