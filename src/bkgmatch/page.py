"""One HTML page that needs nothing else: no network, no files beside it. All text is escaped."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bkgmatch.written import whole_file

__all__ = ["MARK", "Page", "definitions", "figure", "figures", "paragraph", "table"]

MARK = "<!DOCTYPE html>\n<!-- report of bkgmatch -->"
"""What our pages begin with."""

_NO_VALUE = "–"
_DIGITS = ".6g"

_STYLE = """
:root { --ink: #1d232b; --soft: #5b6673; --line: #d5dae0; --shade: #f3f5f7; --link: #00558c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 1.2rem 1.5rem 3rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0 .8rem; max-width: 75ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0; font-size: .95rem; }
a { color: var(--link); }
dl.summary { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
dl.summary div { background: var(--shade); border-radius: 6px; padding: .5rem .9rem; }
dl.summary dt { color: var(--soft); font-size: .85rem; }
dl.summary dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
dl.list { columns: 24rem; column-gap: 2.5rem; margin: 0; font-size: .9rem; }
dl.list div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid;
  border-bottom: 1px solid var(--line); padding: .1rem 0; }
dl.list dt { color: var(--soft); }
dl.list dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; flex: 1 1 460px; min-width: 0; max-width: 660px; }
figure.small { flex-basis: 340px; max-width: 430px; }
figure.wide { flex-basis: 100%; max-width: 100%; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; overflow-wrap: anywhere; }
.table { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; min-width: 100%; }
th { position: sticky; top: 0; background: var(--shade); padding: 0; text-align: left; }
th button { all: unset; box-sizing: border-box; width: 100%; padding: .35rem .6rem; cursor: pointer; font-weight: 600;
  white-space: normal; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
th button::after { content: " ↕"; color: #9aa4af; }
th[aria-sort=ascending] button::after { content: " ↑"; color: inherit; }
th[aria-sort=descending] button::after { content: " ↓"; color: inherit; }
td { padding: .2rem .6rem; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td.n, th.n { text-align: right; }
td.l { max-width: 26rem; overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 600px) { body { padding: 1rem .8rem 2rem; font-size: 15px; }
  figure, figure.small { flex-basis: 100%; }
  figure.wide { overflow-x: auto; } figure.wide img { width: 820px; max-width: none; } }
@media print { nav, th button::after { display: none; } body { max-width: none; padding: 0; font-size: 10pt; }
  .table { overflow: visible; max-height: none; border: 0; } table { font-size: 6pt; white-space: normal; }
  td, th button { padding: .1rem .25rem; } td.t, td.l { overflow-wrap: anywhere; } td.n { white-space: nowrap; }
  th { position: static; } tr, figure, dl div { break-inside: avoid; } h2 { break-after: avoid; }
  figure { flex-basis: 45%; } figure.small { flex-basis: 30%; } figure.wide img { width: 100%; } }
"""

_SCRIPT = """
const number = text => text === "–" ? NaN : Number(text);
function sort(head) {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending", isNumber = head.classList.contains("n");
  const keyed = Array.from(body.rows, row => {
    const text = row.cells[column].textContent;
    return [isNumber ? number(text) : text, row];
  });
  const order = new Intl.Collator(undefined, {numeric: true}).compare;
  const compare = isNumber ? (a, b) => a - b : order;
  keyed.sort(([a], [b]) => {
    if (isNumber && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
    return down ? compare(b, a) : compare(a, b);
  });
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.replaceChildren(...keyed.map(([, row]) => row));
}
for (const button of document.querySelectorAll("th button")) button.onclick = () => sort(button.parentNode);
"""


@dataclass
class Page:
    """
    A page in the making.

    Parameters
    ----------
    title : str
        Title.
    subtitle : str
        Line below it.
    summary : mapping
        What is told first: few words and numbers, by name.
    """

    title: str
    subtitle: str
    summary: Mapping[str, Any]
    _sections: list[tuple[str, str]] = field(default_factory=list)

    def add(self, heading: str, *parts: str) -> None:
        """Add a section of parts that `paragraph`, `figures`, `table` and `definitions` made; none without parts."""
        html = "".join(parts)
        if html:
            self._sections.append((heading, html))

    def html(self) -> str:
        """Return the whole page."""
        numbered = list(enumerate(self._sections, 1))
        links = "".join(f'<a href="#s{n}">{escape(heading)}</a>' for n, (heading, _) in numbered)
        sections = "".join(
            f'<section><h2 id="s{n}">{escape(head)}</h2>{html}</section>' for n, (head, html) in numbered
        )
        return (
            f'{MARK}\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>\n<body><header>"
            f"<h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>{_pairs(self.summary, 'summary')}</header>"
            f"<nav>{links}</nav>\n<main>{sections}</main>\n<script>{_SCRIPT}</script></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page; its name is there when it is complete."""
        with whole_file(path) as part:
            part.write_text(self.html(), encoding="utf-8", errors="backslashreplace")


def _policy() -> str:
    """Return what a browser may do with the page: run this script only, and fetch nothing."""
    digest = base64.b64encode(sha256(_SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def definitions(values: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    return _pairs(values, "list")


def _pairs(values: Mapping[str, Any], kind: str) -> str:
    rows = (f"<div><dt>{escape(str(k))}</dt><dd>{escape(_text(v))}</dd></div>" for k, v in values.items())
    return f'<dl class="{kind}">{"".join(rows)}</dl>'


def figure(png: bytes, alt: str, caption: str = "", *, size: Literal["", "small", "wide"] = "") -> str:
    """
    Return a figure that is part of the page.

    Parameters
    ----------
    png : bytes
        Image.
    alt : str
        What it shows, for those who do not see it.
    caption : str
        Text below it.
    size : {"", "small", "wide"}
        How many go beside each other where there is room: two, three or one.
    """
    source = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{size}"><img src="data:image/png;base64,{source}" alt="{escape(alt)}">{below}</figure>'


def figures(parts: Iterable[str]) -> str:
    """Return figures beside each other, as far as there is room."""
    html = "".join(parts)
    return f'<div class="figures">{html}</div>' if html else ""


def table(
    columns: Mapping[str, Sequence[Any]],
    units: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> str:
    """
    Return a table that a click on a heading sorts.

    Parameters
    ----------
    columns : mapping
        Values, by the name of the column.
    units : mapping, optional
        Units of columns.
    formats : mapping, optional
        How numbers of columns are written, such as ``.3g``; by default with 6 digits.
    """
    units, formats = units or {}, formats or {}
    kinds = {name: _kind(values) for name, values in columns.items()}
    heads = "".join(
        f'<th class="{kinds[name]}" scope="col"><button>{escape(_head(name, units.get(name, "")))}</button></th>'
        for name in columns
    )
    cells = [
        [_cell(_text(value, formats.get(name, _DIGITS)), kinds[name]) for value in values]
        for name, values in columns.items()
    ]
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*cells, strict=True))
    return f'<div class="table" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _kind(values: Sequence[Any]) -> str:
    """Whether a column holds numbers (n), texts (t), or long ones (l)."""
    if np.asarray(values).dtype.kind in "iuf" and np.ndim(values) == 1:
        return "n"
    return "l" if max((len(_text(value)) for value in values), default=0) > 60 else "t"


def _cell(text: str, kind: str) -> str:
    told = f' title="{escape(text)}"' if kind == "l" else ""
    return f'<td class="{kind}"{told}>{escape(text)}</td>'


def _head(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _text(value: Any, digits: str = _DIGITS) -> str:
    if isinstance(value, float | np.floating):
        return format(float(value), digits) if np.isfinite(value) else _NO_VALUE
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(_text(one, digits) for one in value) or _NO_VALUE
    return _NO_VALUE if value is None else str(value)
