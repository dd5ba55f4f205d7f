"""How results look in a session: one line, a small table in a notebook, a plot."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Displayed", "Rows", "new_axes"]

_MOST_ROWS, _MOST_KINDS = 20, 3


class Rows(NamedTuple):
    """Name, level, error and status of each exposure, and what the error and the exposures are called."""

    names: Sequence[str]
    level: np.ndarray
    sigma: np.ndarray
    status: Sequence[str]
    error: str = "sigma"
    noun: str = "exposure"


class Displayed(ABC):
    """A result that has rows."""

    @abstractmethod
    def _rows(self) -> Rows:
        """Return what is shown."""

    def __repr__(self) -> str:
        rows = self._rows()
        said = [f"{len(rows.names)} {rows.noun}{'s' * (len(rows.names) != 1)}"]
        known = rows.level[np.isfinite(rows.level)]
        if known.size:
            said.append(f"levels {known.min():.4g} to {known.max():.4g}")
        kinds = Counter(rows.status).most_common()
        said += [f"{count} {status}" for status, count in kinds[:_MOST_KINDS]]
        return f"<{type(self).__name__}: {', '.join(said)}{', ...' * (len(kinds) > _MOST_KINDS)}>"

    def _repr_html_(self) -> str:
        rows = self._rows()
        columns = (rows.names, _numbers(rows.level, "{:.6g}"), _numbers(rows.sigma, "{:.2g}"), rows.status)
        lines = list(zip(*(column[:_MOST_ROWS] for column in columns), strict=True))
        more = len(rows.names) - len(lines)
        return (
            f"<p>{escape(repr(self))}</p><table>{_html_row('th', (rows.noun, 'level', rows.error, 'status'))}"
            f"{''.join(_html_row('td', line) for line in lines)}</table>{f'<p>... and {more} more</p>' * (more > 0)}"
        )

    def plot(self, ax: Any = None) -> Any:
        """
        Draw the levels, with their errors, against the exposures.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            Where it was drawn.

        Raises
        ------
        ImportError
            If there is no matplotlib.
        """
        rows, ax = self._rows(), new_axes() if ax is None else ax
        ax.errorbar(np.arange(len(rows.names)), rows.level, yerr=rows.sigma, fmt="o", markersize=4)
        ax.set(xlabel=rows.noun, ylabel="level")
        if len(rows.names) <= _MOST_ROWS:
            ax.set_xticks(np.arange(len(rows.names)), rows.names, rotation=90, fontsize="x-small")
        return ax


def new_axes() -> Any:
    """Axes of a new figure; ImportError says how to get matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"plot() needs matplotlib: pip install 'bkgmatch[plot]' ({error})") from error
    return pyplot.subplots(layout="constrained")[1]


def _numbers(values: np.ndarray, form: str) -> list[str]:
    return [form.format(value) for value in values[:_MOST_ROWS]]


def _html_row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"
