"""Pictures of a level match: each pair, and the mosaic before and after."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bkgmatch.cells import CutOut, plane_in_cells
from bkgmatch.neighbourhoods import Neighbourhood
from bkgmatch.written import check_folder, whole_file

__all__ = ["PairPlots", "check_plots"]

log = logging.getLogger("stpipe.bkgmatch.plots")

_MOSAIC_SIDE = 800  # cells drawn along the longer side


def check_plots(folder: str | Path) -> None:
    """Raise an error if pictures cannot be drawn, or not be written into a folder, before there is anything to draw."""
    check_folder(folder)
    _figure(1, (1, 1))


@dataclass(frozen=True)
class PairPlots:
    """
    Pictures in a folder; those of an earlier run are replaced.

    Parameters
    ----------
    folder : Path
        Where to draw; it is made if it does not exist.
    unit : str
        Unit of the data.
    """

    folder: Path
    unit: str
    _numbers: Iterator[int] = field(default_factory=partial(count, 1), repr=False)

    def draw(self, names: Sequence[str], one: Neighbourhood, cutouts: Sequence[CutOut]) -> None:
        """
        Draw all pairs of a set of exposures, and their mosaic.

        Parameters
        ----------
        names : sequence of str
            Names of all exposures.
        one : Neighbourhood
            The matched exposures.
        cutouts : sequence of CutOut
            Their cells.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        place = {int(member): k for k, member in enumerate(one.members)}
        for row in range(len(one.pairs.first)):
            i, j = int(one.pairs.first[row]), int(one.pairs.second[row])
            pair = (place[i], place[j])
            self._draw_pair(names[i], names[j], one, [cutouts[k] for k in pair], pair, float(one.pairs.trust[row]))
        self._draw_mosaic(one, cutouts)
        log.info("Pictures of %d pairs and the mosaic are in %s", len(one.pairs.first), self.folder)

    def _draw_pair(
        self,
        name: str,
        other: str,
        one: Neighbourhood,
        cutouts: Sequence[CutOut],
        pair: tuple[int, int],
        trust: float,
    ) -> None:
        difference, (x, y) = _difference(cutouts)
        p = one.coefficients.shape[1]
        apart = np.nan_to_num(one.coefficients[pair[0]] - one.coefficients[pair[1]])
        fit = np.broadcast_to(plane_in_cells(apart, one.unit, x, y, difference.shape), difference.shape)
        figure, axes = _figure(3, (12, 4.2))
        low, high = np.nanpercentile(difference, [2, 98])
        for ax, image, title in zip(axes, (difference, difference - fit), ("difference", "less the fit"), strict=False):
            middle = 0 if ax is axes[1] else (low + high) / 2
            shown = ax.imshow(
                image, origin="lower", cmap="RdBu_r", vmin=middle - (high - low) / 2, vmax=middle + (high - low) / 2
            )
            ax.set(title=title, xlabel="cells")
            figure.colorbar(shown, ax=ax, label=self.unit, shrink=0.8)
        values = difference[np.isfinite(difference)]
        axes[2].hist(np.clip(values, *_range(values)), bins=80, color="0.6", label="difference")
        left = (difference - fit)[np.isfinite(difference)] + np.mean(fit)
        axes[2].hist(
            np.clip(left, *_range(values)), bins=80, histtype="step", color="C0", label="less the slope of the fit"
        )
        axes[2].axvline(float(np.mean(fit)), color="C1", label="plane, mean" if p > 1 else "level")
        axes[2].set(title=f"{values.size} cells, trust {trust:.2f}", xlabel=self.unit)
        axes[2].legend(fontsize=7)
        figure.suptitle(f"{name} − {other}", fontsize=9)
        with whole_file(self.folder / f"{_stem(name)}-{_stem(other)}.png") as part:
            figure.savefig(part, dpi=80)

    def _draw_mosaic(self, one: Neighbourhood, cutouts: Sequence[CutOut]) -> None:
        zero = np.zeros(one.coefficients.shape[1])
        before = _mosaic(cutouts, [zero] * len(cutouts), one.unit)
        after = _mosaic(cutouts, np.nan_to_num(one.coefficients), one.unit)
        figure, axes = _figure(2, (12, 6))
        for ax, image, title in zip(axes, (before, after), ("as they came", "matched"), strict=True):
            low = np.nanpercentile(image, 2)
            depth = np.subtract(*np.nanpercentile(after, [98, 2]))
            shown = ax.imshow(image, origin="lower", vmin=low, vmax=low + depth, cmap="viridis")
            ax.set(title=title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=ax, label=self.unit, shrink=0.8)
        number = next(self._numbers)
        with whole_file(self.folder / f"mosaic{f'_{number}' if number > 1 else ''}.png") as part:
            figure.savefig(part, dpi=100)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"save_plots needs matplotlib: pip install 'bkgmatch[plot]' ({error})") from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns)


def _stem(name: str) -> str:
    return Path(name).name.replace(".fits", "").replace("[", "_").replace("]", "")


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [1, 99])
    return float(low - 0.2 * (high - low)), float(high + 0.2 * (high - low))


def _difference(cutouts: Sequence[CutOut]) -> tuple[np.ndarray, tuple[int, int]]:
    """Difference of two exposures in the box of their common cells, and its first cell (x, y)."""
    one, two = cutouts
    x, y = max(one.x, two.x), max(one.y, two.y)
    right, top = (min(start + size for start, size in ends) for ends in _ends(cutouts))
    parts = [c.value[y - c.y : top - c.y, x - c.x : right - c.x] for c in cutouts]
    difference = parts[0] - parts[1] + (one.base - two.base)
    rows, columns = (np.flatnonzero(np.isfinite(difference).any(axis=k)) for k in (1, 0))
    trimmed = difference[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return trimmed, (x + int(columns[0]), y + int(rows[0]))


def _ends(cutouts: Sequence[CutOut]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return [(c.x, c.value.shape[1]) for c in cutouts], [(c.y, c.value.shape[0]) for c in cutouts]


def _mosaic(cutouts: Sequence[CutOut], functions: Sequence[np.ndarray], unit: float) -> np.ndarray:
    """Mean of the exposures less their functions, in every few cells."""
    left, bottom = min(c.x for c in cutouts), min(c.y for c in cutouts)
    right, top = (max(start + size for start, size in ends) for ends in _ends(cutouts))
    step = max(1, -(-max(right - left, top - bottom) // _MOSAIC_SIDE))
    total = np.zeros((-(-(top - bottom) // step), -(-(right - left) // step)))
    count = np.zeros(total.shape)
    for c, function in zip(cutouts, functions, strict=True):
        y, x = -(c.y - bottom) % step, -(c.x - left) % step
        values = c.less(function, unit)[y::step, x::step]
        rows = slice((c.y - bottom + y) // step, (c.y - bottom + y) // step + values.shape[0])
        columns = slice((c.x - left + x) // step, (c.x - left + x) // step + values.shape[1])
        known = np.isfinite(values)
        total[rows, columns] += np.where(known, values, 0)
        count[rows, columns] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
