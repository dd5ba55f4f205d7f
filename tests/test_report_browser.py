"""The pages of the four steps, and one of a thousand exposures, in a browser."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from browser import browser, missing
from builders import association, constant_files, image_files, tile_wcs, write
from mrs import twins
from test_report import EVIL, exposures_of, matched

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.report import write_report
from bkgmatch.simulate_dithers import simulate_dithers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("offline", "assign_freely"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]
OPENS_IN = 2.0  # seconds

COLUMN = """
const [table, heading] = arguments, found = document.querySelectorAll("table")[table];
const column = Array.from(found.tHead.rows[0].cells).findIndex(head => head.textContent.startsWith(heading));
return Array.from(found.tBodies[0].rows, row => row.cells[column].textContent);
"""
CLICK = """
const [table, heading] = arguments, heads = document.querySelectorAll("table")[table].tHead.rows[0].cells;
Array.from(heads).find(head => head.textContent.startsWith(heading)).firstChild.click();
"""


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


def sky_page(folder, request):
    files = constant_files(folder, [(tile_wcs((2, 2)), (10.0, 14.0, 11.5, 12.0))])
    SkyMatchStep.call(str(association(files)), report=True, save_table="page.ecsv", skymethod="match")


def level_page(folder, request):
    files = constant_files(folder, [(tile_wcs((2, 2)), (10.0, 14.0, 11.5, 12.0))])
    LevelMatchStep.call(str(association(files)), report=True, save_table="page.ecsv", passes="joint")


def image_page(folder, request):
    scene = simulate_dithers(rng=np.random.default_rng(23), dithers=4, dither_step=40.0, binning=16)
    files = image_files(scene, folder)
    ImageForImageStep.call(association(files), report=True, save_table="page.ecsv", maxiters=1)


def spectral_page(folder, request):
    files = write(twins(request.getfixturevalue("dithers")), folder)
    MRSIMatchStep.call(association(files), report=True, save_table="page.ecsv", skip=False)


@pytest.mark.parametrize("make", [sky_page, level_page, image_page, spectral_page])
def test_the_page_of_a_step(make, window, tmp_path, request):
    make(tmp_path / "given", request)
    names = sorted(str(name) for name in Table.read("page.ecsv")["name"])
    for width in (1400, 400):
        window.open(Path("page.html"), width=width)
        assert window.requests() == [Path("page.html").resolve().as_uri()]
        assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert window.run("return Array.from(document.images).every(image => image.naturalWidth > 0)")
        table = window.run("return document.querySelectorAll('table').length") - (1 if make is image_page else 2)
        given = window.run(COLUMN, table, "level")
        by_level = sorted(given, key=float)
        window.run(CLICK, table, "level")
        assert window.run(COLUMN, table, "level") == by_level
        window.run(CLICK, table, "level")
        assert window.run(COLUMN, table, "level") == by_level[::-1]
        window.run(CLICK, table, "name")
        assert window.run(COLUMN, table, "name") == names
        assert window.complaints() == []


def test_a_thousand_exposures_open_fast_and_nothing_runs_that_is_not_ours(window, tmp_path):
    n, rng = 1000, np.random.default_rng(1)
    found, pairs = matched(exposures_of([1, 2, 3]))
    many = Table({name: np.resize(found[name], n) for name in found.colnames}, meta=found.meta)
    many["name"] = [f"{EVIL}{k}" for k in range(n)]
    many["level"] = np.where(np.arange(n) == 5, np.nan, rng.normal(size=n))
    ends = rng.integers(0, n, (2, 4000))
    links = Table({name: np.resize(pairs[name], 4000) for name in pairs.colnames})
    links["first"], links["second"] = (np.array(many["name"])[end] for end in ends)
    write_report(tmp_path / "page.html", many, links)
    window.open(tmp_path / "page.html")
    assert window.run("document.body.offsetHeight; return performance.now()") < 1000 * OPENS_IN
    window.run(CLICK, 1, "level")
    levels = window.run(COLUMN, 1, "level")
    assert levels[-1] == "–"
    assert np.all(np.diff(np.array(levels[:-1], dtype=float)) >= 0)
    assert window.run("return document.querySelectorAll('script, img[onerror]').length") == 1
    assert window.complaints() == []
    assert len(window.requests()) == 1


def test_an_error_and_a_request_would_be_seen(window, tmp_path):
    (tmp_path / "bad.html").write_text("<script>null.x</script><img src='http://127.0.0.1:9/x.png'>")
    window.open(tmp_path / "bad.html")
    assert any("TypeError" in line for line in window.complaints())
    assert "http://127.0.0.1:9/x.png" in window.requests()
