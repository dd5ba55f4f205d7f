"""Results in a session: one line, a small table, a plot; whatever the size, and with exposures that were lost."""

import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.levels import LevelMatch
from bkgmatch.match import SkyMatch
from bkgmatch.neighbourhoods import LevelPairs
from bkgmatch.pairs import Offsets
from bkgmatch.solve import Solution
from bkgmatch.spectra import SpectralMatch
from bkgmatch.spectral_fit import PairResiduals

ODD = "a<b>&c.fits"


def columns(n):
    """Names, levels, errors and status; the last has no level."""
    level = np.arange(n, dtype=float)
    level[n - 1 :] = np.nan
    names = tuple(ODD if i == 0 else f"e{i}.fits" for i in range(n))
    return names, level, np.full(n, 0.25), ("matched",) * (n - 1) + ("no overlap",) * bool(n)


def sky(n):
    names, level, sigma, status = columns(n)
    pairs = Offsets(*[np.zeros(0)] * 7, None, None)
    return SkyMatch(names, np.arange(n), np.zeros(n, int), level, sigma, level, level, status, pairs, np.zeros(0))


def levels(n):
    names, level, sigma, status = columns(n)
    covariance = np.zeros((n, 3, 3))
    covariance[:, 0, 0] = sigma**2
    flat, pairs = np.zeros((n, 2)), LevelPairs(*np.zeros((9, 0)))
    return LevelMatch(names, np.zeros(n, int), flat, level, flat, covariance, status, level > 9, ("mean",), pairs)


def spectral(n):
    names, level, sigma, status = columns(n)
    terms = np.zeros((n, 2))
    terms[:, 0], terms[:, 1] = level, 2.0
    component = np.where(np.isfinite(level), 0, -1)
    where = np.tile([10.0, 20.0, 5.0], (n, 1))
    return SpectralMatch(
        names, (0, 0, 1), component, where, terms, terms, level, sigma, level, status, ((),) * n, level > 9,
        PairResiduals.none(),
    )  # fmt: skip


def images(n):
    names, level, sigma, status = columns(n)
    return ImageBackgrounds(names, status, ((),) * n, level, sigma, *[level] * 4, (), ())


def solution(n):
    _, level, sigma, _ = columns(n)
    return Solution(level[:, None], sigma[:, None, None] ** 2, np.where(np.isfinite(level), 0, -1))


KINDS = [sky, levels, spectral, images, solution]


class Cells(HTMLParser):
    """Texts of the cells of a table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.tags[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("n", [0, 1, 3, 1000])
def test_one_line(make, n):
    result = make(n)
    noun = "unknown" if make is solution else "exposure"
    text = repr(result)
    assert text.startswith(f"<{type(result).__name__}: {n} {noun}{'s' * (n != 1)}")
    assert text.endswith(">")
    assert len(text) < 120
    assert ("levels 0 to 1" in text) == (n == 3)
    assert "\n" not in text
    assert "array" not in text
    if n == 3:
        assert "2 matched, 1 no overlap" in text or "2 in component 0, 1 in no equation" in text


def test_many_kinds_of_status_are_not_all_named():
    many = Solution(np.zeros((9, 1)), np.zeros((9, 1, 1)), np.arange(9))
    assert repr(many).endswith("1 in component 0, 1 in component 1, 1 in component 2, ...>")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("n", "rows"), [(0, 0), (3, 3), (20, 20), (21, 20)])
def test_a_small_table(make, n, rows):
    text = make(n)._repr_html_()
    parsed = Cells(text)
    assert parsed.tags.count("tr") == 1 + rows
    assert parsed.cells[1:4] == ["level", "rms" if make is images else "sigma", "status"]
    assert ("... and 1 more" in text) == (n == 21)
    if n == 3:
        name = "0" if make is solution else ODD
        status = "in component 0" if make is solution else "matched"
        assert parsed.cells[4:8] == [name, "0", "0.25", status]
        assert parsed.cells[13] == "nan"
        assert set(parsed.tags) == {"p", "table", "tr", "td", "th"}


@pytest.fixture
def pyplot(monkeypatch):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("make", KINDS)
def test_a_plot(make, pyplot):
    ax = make(4).plot()
    points, _, (bars,) = ax.containers[0].lines
    assert ax.figure.number in pyplot.get_fignums()
    np.testing.assert_array_equal(points.get_ydata(), [0, 1, 2, np.nan])
    np.testing.assert_allclose(bars.get_segments()[1][:, 1], [0.75, 1.25])
    assert [text.get_text() for text in ax.get_xticklabels()][1] == ("1" if make is solution else "e1.fits")
    assert make(30).plot(ax) is ax
    ax.figure.draw_without_rendering()


def test_polynomials_against_wavelength(pyplot):
    wavelength = np.linspace(4, 6, 5)
    ax = spectral(3).plot(wavelength=wavelength)
    assert [line.get_label() for line in ax.lines] == [ODD, "e1.fits"]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 1 + 2 * (wavelength - 5))
    assert spectral(3).plot(ax, wavelength=wavelength) is ax


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for result in (sky(3), levels(3)):
        with pytest.raises(ImportError, match=r"pip install 'bkgmatch\[plot\]'"):
            result.plot()
    assert repr(sky(3))
