"""Figures of a report, drawn by matplotlib: in colours that the colour-blind tell apart."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bkgmatch.quicklook import Picture
from bkgmatch.stories import spaced

__all__ = [
    "LARGEST_PULL",
    "Curve",
    "SkyMap",
    "check_matplotlib",
    "corrections",
    "curves",
    "difference",
    "mask",
    "mosaic",
    "residuals",
    "short_names",
    "sky_map",
    "stretches",
]

_INK, _SOFT = "#1d232b", "#5b6673"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # of Okabe and Ito
_MARKERS = "os^Dvp*"
_LINES = {"used": "-", "down-weighted": "--", "rejected": ":"}
_LINE_COLORS = {"used": _SOFT, "down-weighted": "#D55E00", "rejected": "#CC79A7"}
_DPI = 120
_NAMED = 40  # exposures that are named at the axis
_WORDS = re.compile(r"[_.]|(?<=^jw\d{5})(?=\d{6}_)|(?<=^jw\d{8})(?=\d{3}_)")  # programme, observation, visit
_LABEL = 24  # letters of a name at an axis
_TITLE = 64  # letters of a title over a narrow picture

LARGEST_PULL = 6.0
"""Where the axis of `residuals` ends."""


@dataclass(frozen=True)
class SkyMap:
    """
    What is drawn of exposures on the sky.

    Parameters
    ----------
    centres : ndarray, shape (n, 2)
        Arcseconds to the west and to the north of the middle.
    rings : sequence of sequence of ndarray
        Outlines of each exposure, each of shape (m, 2); nothing where they are not known.
    value : ndarray, shape (n,)
        What the colours stand for; NaN for none.
    component : ndarray of int, shape (n,)
        Connected set of each, -1 for none.
    edges : sequence of tuple
        Pairs: two exposures, and ``used``, ``down-weighted`` or ``rejected``.
    arrows : ndarray, shape (n, 2), optional
        Slopes to the east and to the north.
    unit : str
        Unit of the slopes, but for "per arcsec".
    """

    centres: np.ndarray
    rings: Sequence[Sequence[np.ndarray]]
    value: np.ndarray
    component: np.ndarray
    edges: Sequence[tuple[int, int, str]]
    arrows: np.ndarray | None = None
    unit: str = ""


@dataclass(frozen=True)
class Curve:
    """
    A correction against wavelength.

    Parameters
    ----------
    name : str
        Name of the exposure.
    wavelength, value : ndarray, shape (n,)
        Curve.
    at : float
        Wavelength of the error.
    sigma : float
        Standard error there.
    """

    name: str
    wavelength: np.ndarray
    value: np.ndarray
    at: float
    sigma: float


def check_matplotlib() -> None:
    """Raise ImportError, with what to do, if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f"a report needs matplotlib: pip install 'bkgmatch[report]' ({error})") from error


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them have; as they are where that would make two names equal."""
    words = [_WORDS.split(name) for name in names]
    if len(set(names)) < 2:
        return list(names)
    short = [" ".join(of) for of in (_telling(words) if len(set(map(len, words))) == 1 else _trimmed(words))]
    return short if all(short) and len(set(short)) == len(set(names)) else list(names)


def _telling(words: list[list[str]]) -> list[list[str]]:
    telling = [k for k in range(len(words[0])) if len({of[k] for of in words}) > 1]
    return [[of[k] for k in telling] for of in words]


def _trimmed(words: list[list[str]]) -> list[list[str]]:
    """Without the first and the last words that all have."""
    first = _common(words)
    rest = [of[first:] for of in words]
    last = _common([of[::-1] for of in rest])
    return [of[: len(of) - last] for of in rest]


def _common(words: list[list[str]]) -> int:
    return next((k for k, of in enumerate(zip(*words, strict=False)) if len(set(of)) > 1), min(map(len, words)))


def stretches(images: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Lowest and highest value drawn of each image: as far apart in all, about the middle of each."""
    known = [image[np.isfinite(image)] for image in images]
    ends = np.array([np.percentile(values, [1, 98]) if values.size else (0.0, 0.0) for values in known])
    half = float(np.ptp(ends, axis=1).max()) / 2 or 0.5
    return [(float(middle - half), float(middle + half)) for middle in ends.mean(axis=1)]


def mosaic(picture: Picture, limits: tuple[float, float], title: str, unit: str, *, sky: bool = True) -> bytes:
    """Draw a mosaic, or an image on its detector."""
    figure, ax = _figure(5.0)
    shown = ax.imshow(
        picture.image, origin="lower", extent=picture.extent, cmap="viridis", vmin=limits[0], vmax=limits[1]
    )
    ax.set_title(title)
    if sky:
        _sky_axes(ax)
    figure.colorbar(shown, ax=ax, label=unit or "value", shrink=0.85, extend="both")
    return _png(figure)


def mask(picture: Picture, title: str) -> bytes:
    """Draw a mask: dark where it is set."""
    figure, ax = _figure(5.0)
    ax.imshow(picture.image, origin="lower", extent=picture.extent, cmap="Greys", vmin=0, vmax=1)
    ax.set_title(title)
    return _png(figure)


def difference(picture: Picture, names: tuple[str, str], unit: str) -> bytes:
    """Draw the difference of two exposures: what is left is red or blue about zero."""
    known = np.abs(picture.image[np.isfinite(picture.image)])
    depth = 5 * float(np.median(known)) or float(known.max()) or 1.0
    figure, ax = _figure(4.2, width=5.2)
    shown = ax.imshow(picture.image, origin="lower", extent=picture.extent, cmap="RdBu_r", vmin=-depth, vmax=depth)
    first, second = (_clipped(name, _TITLE) for name in names)
    longest = max(len(first), len(second) + 2)
    figure.suptitle(f"{first}\n− {second}", fontsize=min(10, 10 * 48 / longest))
    _sky_axes(ax)
    figure.colorbar(shown, ax=ax, label=unit or "value", shrink=0.85, extend="both")
    return _png(figure)


def sky_map(drawn: SkyMap, title: str, label: str) -> bytes:
    """Draw exposures on the sky, coloured by their correction, with lines between those that are compared."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    figure, ax = _figure(5.6)
    mappable = _outlines(ax, drawn)
    legend = []
    for status, style in _LINES.items():
        lines = [drawn.centres[[i, j]] for i, j, of in drawn.edges if of == status]
        if lines:
            look = {"colors": _LINE_COLORS[status], "linestyles": style, "linewidths": 0.8 * _fineness(drawn)}
            ax.add_collection(LineCollection(lines, **look, zorder=3))
            legend.append(Line2D([], [], color=_LINE_COLORS[status], ls=style, label=f"{status} ({len(lines)})"))
    _components(ax, drawn)
    if drawn.arrows is not None:
        legend.append(_arrows(ax, drawn))
    ax.autoscale_view()
    ax.set(title=title)
    _sky_axes(ax)
    ax.margins(0.05)
    figure.colorbar(mappable, ax=ax, label=label, shrink=0.85)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def _outlines(ax: Any, drawn: SkyMap) -> Any:
    """Draw outlines, or points where they are not known; return what a colour bar is made of."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Normalize
    from matplotlib.path import Path

    known = drawn.value[np.isfinite(drawn.value)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1)
    colormap = colormaps["cividis"].with_extremes(bad="white")
    colors = colormap(norm(np.ma.masked_invalid(drawn.value)))
    outlined = [i for i, rings in enumerate(drawn.rings) if rings]
    paths = [Path.make_compound_path(*(Path(ring, closed=True) for ring in drawn.rings[i])) for i in outlined]
    faces = colors[outlined]
    faces[:, 3] = 0.75
    edges = [_INK if np.isfinite(drawn.value[i]) else "#D55E00" for i in outlined]
    ax.add_collection(PathCollection(paths, facecolors=faces, edgecolors=edges, linewidths=0.7 * _fineness(drawn)))
    size = np.clip(3000 / max(len(drawn.centres), 1), 6, 90)
    ax.scatter(
        *drawn.centres.T,
        s=size if not outlined else 6 * _fineness(drawn) ** 2,
        c=colors,
        edgecolors=_INK,
        linewidths=0.4 * _fineness(drawn),
        zorder=4,
    )
    return ScalarMappable(norm, colormap)


def _fineness(drawn: SkyMap) -> float:
    """Width of lines: thinner where there are many exposures."""
    return float(np.clip(8 / max(len(drawn.centres), 1) ** 0.5, 0.25, 1))


def _components(ax: Any, drawn: SkyMap) -> None:
    """Name the connected sets, if there are several."""
    numbers = np.unique(drawn.component)
    for number in numbers if len(numbers) > 1 else []:
        middle = drawn.centres[drawn.component == number].mean(axis=0)
        name = f"set {number + 1}" if number >= 0 else "unmatched"
        box = {"boxstyle": "round", "fc": "white", "ec": _SOFT, "alpha": 0.85}
        ax.text(*middle, name, ha="center", va="center", fontsize=9, zorder=6, bbox=box)


def _arrows(ax: Any, drawn: SkyMap) -> Any:
    """Draw slopes as arrows to where the background rises; return their entry of the legend."""
    from matplotlib.lines import Line2D

    assert drawn.arrows is not None
    slopes = np.nan_to_num(drawn.arrows) * [-1, 1]
    longest = float(np.hypot(*slopes.T).max()) or 1.0
    spread = float(np.ptp(drawn.centres, axis=0).max()) or 60.0
    length = 0.6 * max(spread / max(len(slopes) ** 0.5, 1), 1.0)
    ax.quiver(
        *drawn.centres.T, *(slopes / longest * length).T, angles="xy", scale_units="xy", scale=1, color="#D55E00",
        edgecolor="white", linewidth=0.6, width=0.007, zorder=5,
    )  # fmt: skip
    label = f"arrow: rise of the plane, longest {longest:.2g}{spaced(drawn.unit)} per arcsec"
    return Line2D([], [], color="#D55E00", marker=">", ls="-", label=label)


def corrections(names: Sequence[str], value: np.ndarray, sigma: np.ndarray, component: np.ndarray, label: str) -> bytes:
    """Draw the correction of each exposure with its error; the names of many are thinned out."""
    figure, ax = _figure(4.2 if len(names) > 12 else 3.2, width=11.0)
    place = np.arange(len(names))
    sets = [int(k) for k in np.unique(component) if k >= 0]
    for k in sets:
        one = (component == k) & np.isfinite(value)
        style = {"color": _COLORS[k % len(_COLORS)], "marker": _MARKERS[k % len(_MARKERS)]}
        named = f"set {k + 1}" if len(sets) > 1 and k < len(_COLORS) else None
        error = np.nan_to_num(sigma[one])
        ax.errorbar(place[one], value[one], error, ls="", ms=5 if len(names) < 200 else 2.5, lw=1, label=named, **style)
    missing = place[~np.isfinite(value)]
    if len(missing):
        ax.plot(missing, np.full(len(missing), 0.02), "x", color="#D55E00", transform=ax.get_xaxis_transform(),
                label="no correction")  # fmt: skip
    shown = place[:: -(-len(names) // _NAMED)]
    short = _labels(names)
    ax.set_xticks(shown, [short[i] for i in shown], rotation=90 if len(names) > 6 else 0, fontsize=8)
    ax.set(ylabel=label, xlim=(-0.7, len(names) - 0.3))
    ax.grid(axis="y", color="#d5dae0", lw=0.6)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=8, frameon=False, fontsize=9)
    return _png(figure)


def _labels(names: Sequence[str]) -> list[str]:
    """Short names, clipped where that leaves them different."""
    short = short_names(names)
    clipped = [_clipped(name, _LABEL) for name in short]
    return clipped if len(set(clipped)) == len(set(names)) else short


def _clipped(name: str, most: int) -> str:
    """Leave out the middle of a long name."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}"


def residuals(pulls: np.ndarray) -> bytes:
    """Draw how many pairs differ from the fit by how many of their errors, beside what noise alone would do."""
    figure, ax = _figure(3.8)
    edges = np.linspace(-LARGEST_PULL, LARGEST_PULL, int(np.clip(4 * len(pulls) ** 0.4, 13, 61)))
    ax.hist(np.clip(pulls, edges[0], edges[-1]), edges, color=_COLORS[4], edgecolor=_COLORS[0], lw=0.6, label="pairs")
    x = np.linspace(-LARGEST_PULL, LARGEST_PULL, 200)
    noise = len(pulls) * (edges[1] - edges[0]) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    ax.plot(x, noise, color=_COLORS[1], ls="--", label="noise alone (width 1)")
    ax.set(xlabel="(measured - fitted) / sigma", ylabel="pairs")
    ax.legend(frameon=False, fontsize=9)
    return _png(figure)


def curves(drawn: Sequence[Curve], title: str, label: str) -> bytes:
    """Draw corrections against wavelength, each with its error at one wavelength."""
    figure, ax = _figure(4.2)
    styles = ["-", "--", "-.", ":"]
    for k, (curve, name) in enumerate(zip(drawn, _labels([c.name for c in drawn]), strict=True)):
        color = _COLORS[k % len(_COLORS)]
        line = styles[k // len(_COLORS) % len(styles)]
        named = name if len(drawn) <= 12 else None
        ax.plot(curve.wavelength, curve.value, color=color, ls=line, lw=1.4, label=named)
        middle = np.interp(curve.at, curve.wavelength, curve.value)
        ax.errorbar(curve.at, middle, np.nan_to_num(curve.sigma), color=color, marker="o", ms=4, capsize=3)
    ax.axhline(0, color=_SOFT, lw=0.6)
    ax.set(title=title, xlabel="wavelength (um)", ylabel=label)
    if len(drawn) <= 12:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _png(figure)


def _sky_axes(ax: Any) -> None:
    ax.set_aspect("equal")
    ax.set(xlabel="west of the centre (arcsec)", ylabel="north (arcsec)")


def _figure(height: float, width: float = 6.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    from matplotlib import rc_context
    from matplotlib.text import Text

    drawn = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # names may have dollar signs
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
    return drawn.getvalue()
