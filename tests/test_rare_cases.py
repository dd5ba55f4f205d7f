"""What is seldom met: samples that miss all, limits that are reached, systems without a call; with known answers."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.stats import sigma_clip
from common import SHAPE, noise, tan, to_sky
from common import exposure as image
from ifu import exposure as spectrum
from ifu import positions
from regions import CircleSkyRegion

from bkgmatch.cells import BLOCK, CutOut, _smoothing
from bkgmatch.execution import Work
from bkgmatch.footprints import footprint, outlines_in_plane
from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.journal import Journal
from bkgmatch.masks import inside_regions
from bkgmatch.options import LevelMatchOptions
from bkgmatch.pair_fits import fit_pair
from bkgmatch.pictures import example_of, picture_of_spectrum, pictures_of_backgrounds
from bkgmatch.skystats import _peak
from bkgmatch.sources import _Bins
from bkgmatch.spectra import Polynomial
from bkgmatch.stored import new_stack
from bkgmatch.workspace import WorkFolder, _remove
from bkgmatch.written import whole_file

# -------------------------------------------------------------------------------------------------- measuring


def test_a_pair_whose_few_common_cells_the_sample_misses():
    """Of large exposures every third cell is compared, where these are enough."""
    side = 6 * BLOCK
    one = np.full((side, side), np.nan, np.float32)
    one[1 : 1 + 3 * 20 : 3, 1] = 5.0
    variance = np.full((6, 6), 0.01)
    cutouts = [CutOut(0, 0, v, variance, 1.0, np.full(2, side / 2), side / 2, np.full(2, side)) for v in (one, one - 2)]
    estimate, _, npix, *_ = fit_pair(*cutouts, 1, 1.0)
    assert npix == 20
    assert estimate == pytest.approx([2.0])


@pytest.mark.parametrize(("n", "expected"), [(60, 0.25), (6000, 1.0)])
def test_the_smoothing_of_cells_on_a_diagonal(n, expected):
    """In the middle of four pixels, each has a quarter: 4 / 16. Of very many cells the sample of crossings has none."""

    def shifted(x, y):
        return np.stack(np.meshgrid(x + 0.5, y + 0.5))

    assert _smoothing(shifted, np.arange(n), np.arange(n), np.eye(n, dtype=bool), 1) == pytest.approx(expected)


def test_two_values_have_no_peak():
    """Two Gaussians two sigmas apart are flat in the middle: the position of the peak has no error."""
    peak, error, rivalry = _peak(np.array([-1.0, 1.0]), np.ones(2), 1.0)
    assert abs(peak) < 0.5
    assert error == np.inf
    assert rivalry == 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_clipping_ends_with_the_rounds_that_are_given(rounds):
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(5, 0.1, 20_000), rng.uniform(5.3, 9, 4000)])
    bins = _Bins.around(values)
    bins.add([values])
    kept = sigma_clip(values, sigma=2.0, maxiters=rounds, masked=False)
    found = bins.clipped_median(LevelMatchOptions(sigma=2.0, max_iters=rounds))
    assert found == pytest.approx(np.median(kept), abs=1e-3)


def test_regions_that_only_exclude_hold_nothing():
    wcs = tan()
    centre = SkyCoord(150.0, 20.0, unit="deg")
    circle = CircleSkyRegion(centre, 1 * u.arcsec)
    hole = CircleSkyRegion(centre, 0.5 * u.arcsec, meta={"include": False})
    assert not inside_regions([hole], to_sky(wcs), SHAPE).any()
    both, whole = (inside_regions(regions, to_sky(wcs), SHAPE).sum() for regions in ([circle, hole], [circle]))
    assert whole == pytest.approx(np.pi * 100, abs=30)
    assert whole - both == pytest.approx(np.pi * 25, abs=15)


def test_an_outline_that_crosses_itself_is_mended():
    """A square whose corners come in the wrong order: two triangles, together half of it."""
    square = footprint(np.ones(SHAPE, dtype=bool), to_sky(tan()))
    left, bottom, right, top = square.frame.bounds
    corners = np.array([(left, bottom), (right, top), (right, bottom), (left, top), (left, bottom)])
    vectors = np.column_stack([corners, np.ones(5)]) @ square.axes
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = (np.array([0, 5]), np.array([0, 1]), np.array([0, 1]))
    (found,) = outlines_in_plane([replace(square, vectors=vectors, offsets=offsets)], square)
    assert shapely.is_valid(found)
    assert found.area == pytest.approx((right - left) * (top - bottom) / 2)


# -------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_exposures_without_backgrounds_show_them_as_they_are():
    exposures = [image(f"e{k}.fits", noise(seed=k), tan()) for k in range(2)]
    unknown = np.full(2, np.nan)
    found = ImageBackgrounds(("e0.fits", "e1.fits"), ("too few members",) * 2, ((),) * 2, *[unknown] * 6, (), ())
    shown = pictures_of_backgrounds(exposures, found)
    assert [one.name for one in shown] == ["e0.fits", "e1.fits"]
    for one in shown:
        assert np.isfinite(one.after).all()
        np.testing.assert_array_equal(one.after, one.look.image)
    assert example_of(exposures, found) is None


def test_pictures_of_spectra_are_means_over_wavelengths():
    at = positions(shape=(8, 9, 12))
    polynomial = Polynomial((0, 0, 1), (83.6, -41.0, 5.5), np.array([2.0, 3.0]))
    value = 7 + polynomial(at.ra, at.dec, at.wavelength)
    shown, came = (picture_of_spectrum(spectrum("a", at, value), p, "channel 1") for p in (polynomial, None))
    known = np.isfinite(shown.after)
    assert known.sum() > 20
    np.testing.assert_allclose(shown.after[known], 7, atol=1e-5)
    np.testing.assert_array_equal(came.after, came.look.image)
    assert np.nanmean(came.after) == pytest.approx(value.mean(), abs=0.1)
    assert (shown.name, shown.group) == ("a", "channel 1")
    blank = spectrum("blank", at, np.full(value.shape, np.nan))
    assert picture_of_spectrum(blank, polynomial, "channel 1") is None


# -------------------------------------------------------------------------------------------------- system


def test_results_that_are_made_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return np.arange(3.0)

    for _ in range(2):
        work = Work(journal=Journal(tmp_path / "t.resume"))
        np.testing.assert_array_equal(work.once(make, "the same", 3), np.arange(3))
    assert len(calls) == 1
    work.once(make, "another", 3)
    assert len(calls) == 2


def test_stacks_where_the_system_cannot_reserve_room(tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "posix_fallocate")
    stack = new_stack(tmp_path, "images", 2, (3, 5), np.float32)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [60, 60]
    assert stack.shape == (2, 3, 5)


def test_a_pipe_is_written_to_directly(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(path) as part:
        assert part == path
        part.write_text("hello")
    assert os.read(reader, 10) == b"hello"
    os.close(reader)
    assert path.is_fifo()


def test_a_forked_child_leaves_the_folder_of_its_parent(tmp_path):
    with WorkFolder(str(tmp_path)) as folder:
        _remove(Path(folder), [], os.getpid() + 1)
        assert Path(folder).is_dir()
    assert not Path(folder).exists()
