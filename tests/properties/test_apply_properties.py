"""Subtracting a background and undoing it is the identity, to rounding: of arrays, and of files by the command line."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import digest
from common import tan
from hypothesis import given
from hypothesis import strategies as st
from ledger import note
from strategies import SEEDS, Scene, scenes, untouched

from bkgmatch.apply import add_variance, remove_variance, shift
from bkgmatch.cli import main
from bkgmatch.planes import Plane

HALF_STEP = 2.0**-23  # relative: single precision, rounded twice

pytestmark = pytest.mark.usefixtures("offline")


def allowed(before: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """Rounding of a value and of what was left of it in between."""
    return HALF_STEP * (np.abs(before) + np.abs(before - level)) + 1e-38


@given(scenes(1, 1), SEEDS, st.sampled_from(["f4", ">f4", "f8"]), st.sampled_from([1e-20, 1.0, 1e20]))
def test_subtracting_a_plane_from_an_array_and_adding_it_is_the_identity(scene, seed, kind, unit):
    rng = np.random.default_rng(seed)
    pointing, data = scene.pointings[0], (scene.data[0].astype(float) * unit).astype(kind)
    slope = tuple(unit * scene.noise * rng.normal(size=2)) if rng.random() < 0.7 else (0.0, 0.0)
    plane = Plane(unit * rng.normal(0, 100), slope, pointing(0.0, 0.0)).on_pixels(pointing, pointing.shape)
    with untouched(data):
        subtracted = shift(data, -plane)
        back = shift(subtracted, plane)
    assert back.dtype == subtracted.dtype == data.dtype
    there = np.isfinite(data)
    np.testing.assert_array_equal(np.isfinite(back), there)
    assert (np.abs(back.astype(float) - data) <= allowed(data.astype(float), plane))[there].all()
    note("properties", "apply and undo: array")


@given(SEEDS, st.sampled_from(["f4", "f8"]))
def test_an_error_that_is_added_in_quadrature_can_be_taken_out_again(seed, kind):
    """To rounding of the larger of both squares."""
    rng = np.random.default_rng(seed)
    error, sigma = rng.lognormal(0, 1, (5, 6)).astype(kind), rng.lognormal(-2, 2)
    with untouched(error):
        back = remove_variance(add_variance(error, sigma), sigma)
    assert back.dtype == error.dtype
    assert (np.abs(back.astype(float) ** 2 - error**2) <= 8 * HALF_STEP * (error**2 + sigma**2)).all()
    note("properties", "apply and undo: errors")


def write(scene: Scene, folder: Path, place: tuple[float, float], kind: str) -> list[Path]:
    """FITS images, NaN where they are not good."""
    files = []
    for name, data, good, pointing in zip(scene.names, scene.data, scene.good, scene.pointings, strict=True):
        wcs = tan(*place, shape=data.shape, shift=pointing.shift, angle=float(np.rad2deg(pointing.angle)))
        pixels = np.where(good, data, np.nan).astype(kind)
        errors = fits.ImageHDU(np.full(data.shape, scene.noise, np.float32), name="ERR")
        files.append(folder / f"{name}.fits")
        image = fits.ImageHDU(pixels, wcs.to_header(), name="SCI")
        fits.HDUList([fits.PrimaryHDU(), image, errors]).writeto(files[-1])
    return files


@pytest.mark.slow
@given(
    scenes(2, 3, spread=0.2, dead=False, size=(16, 40)),
    st.sampled_from(["level", "level+slope"]),
    st.sampled_from([(150.0, 20.0), (0.0, -45.0), (10.0, 89.999)]),
    st.sampled_from(["f4", "f8"]),
)
def test_files_that_are_matched_or_applied_to_and_undone_are_the_same_again(scene, fit, place, kind):
    """And what is applied from the saved table is what was subtracted; no input is changed."""
    with TemporaryDirectory() as path:
        folder = Path(path)
        files = write(scene, folder, place, kind)
        given_bytes, table = digest(files), folder / "levels.ecsv"
        words = [str(file) for file in files]
        assert (
            main(["level", *words, "--out", str(folder / "level"), "--save_table", str(table), "--fit_type", fit]) == 0
        )
        if not np.isfinite(Table.read(table)["level"]).all():
            return  # an image that overlaps no other has no level to apply
        assert main(["apply", str(table), *words, "--out", str(folder / "apply")]) == 0
        for step in ("level", "apply"):
            copies = [folder / step / file.name for file in files]
            assert main(["undo", *map(str, copies), "--out", str(folder / f"undone {step}")]) == 0
            for file, copy in zip(files, copies, strict=True):
                before, after = (
                    fits.getdata(f, "SCI").astype(float) for f in (file, folder / f"undone {step}" / file.name)
                )
                between = fits.getdata(copy, "SCI").astype(float)
                np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
                off = np.abs(after - before) > allowed(before, before - between)
                assert not off.any()
        for file in files:
            one, two = (fits.getdata(folder / step / file.name, "SCI") for step in ("level", "apply"))
            np.testing.assert_allclose(one, two, rtol=2e-7, atol=1e-30)
        assert digest(files) == given_bytes
    note("properties", f"apply and undo: files, {fit}")
