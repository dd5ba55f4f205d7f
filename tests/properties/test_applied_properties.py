"""``bkgmatch apply`` and ``bkgmatch undo`` of any levels and planes, on JWST exposures with any pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from builders import digest, exposure_name, has, image_model, part_of, rewrite, tile_wcs, write
from gwcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import note
from stdatamodels.jwst.datamodels import ImageModel
from strategies import SEEDS
from test_apply_properties import allowed

from bkgmatch.planes import Plane
from bkgmatch.saved import SavedLevel, SavedLevels
from bkgmatch.steps.applied import apply_files
from bkgmatch.steps.models import LevelRecord, undo, undo_files
from bkgmatch.steps.plane_record import PlaneRecord

pytestmark = pytest.mark.usefixtures("offline", "assign_freely")

KINDS = ("level", "plane", "planes of two fields")
NO_SKY, JUMP = 513, 4
STRANGE = (np.nan, 0.0, 1e-40, -1e-38, 3e38, -3e38)
ANY_TIME = {"DATE", "FILENAME", "CAL_VER", "CAL_VCS", "HISTORY", ""}  # of the run, and of what has been done
FORMS = {"SCI": ("f4", "f8", "i2"), "DQ": ("u4", "u1", "i4")}
FORM_CARDS = {"BITPIX", "BZERO", "BSCALE"}


@cache
def wcs() -> WCS:
    return tile_wcs((1, 1))[0]


@dataclass(frozen=True)
class Case:
    """An exposure, the level or planes that are subtracted from it, and the forms of its arrays in a file."""

    model: ImageModel
    kind: str
    science: Plane
    lyot: Plane | None
    forms: dict[str, str]

    def record(self) -> LevelRecord | PlaneRecord:
        if self.kind == "level":
            return LevelRecord(self.science.level, "match", subtract=True)
        return PlaneRecord(self.science, self.lyot, 0.1)

    def background(self) -> Any:
        """On the pixels."""
        planes = PlaneRecord(self.science, self.lyot)
        return planes.image(self.model)

    def table(self, name: str) -> SavedLevels:
        rows = {name: SavedLevel(self.science, 0.1, "matched")}
        if self.lyot:
            rows[f"{name}[lyot]"] = SavedLevel(self.lyot, 0.1, "matched")
        unit = self.model.meta.bunit_data or ""
        return SavedLevels(Path("levels.ecsv"), rows, unit, "match" if self.kind == "level" else "", False)


def make_case(
    seed: int, shape: tuple[int, int], scale: float, unit: str | None, kind: str, steep: bool, forms: dict
) -> Case:
    """Values of some scale, some of them strange; blank pixels, and others that are flagged."""
    rng = np.random.default_rng(seed)
    data = (scale * rng.normal(rng.normal(0, 100), 1, shape)).astype(np.float32)
    strange = rng.random(shape) < 0.1
    data[strange] = rng.choice(STRANGE, strange.sum())
    dq = rng.choice([0, NO_SKY, JUMP], shape, p=[0.8, 0.1, 0.1]).astype(np.uint32)
    data[(dq == NO_SKY) & (rng.random(shape) < 0.7)] = 0
    if forms["SCI"] == "i2":
        data = np.nan_to_num(np.rint(np.clip(data, -2e4 * scale, 2e4 * scale) / scale))
    where = part_of(wcs(), shape)
    middle = tuple(float(c) for c in where(*((side - 1) / 2 for side in reversed(shape))))
    model = image_model(exposure_name(1), data, where, dq=dq, err=rng.lognormal(0, 3, shape))
    model.var_poisson = np.square(model.err) / 2
    model.meta.bunit_data = unit

    def plane() -> Plane:
        slope = (float(s) for s in scale * rng.normal(0, 0.1, 2)) if steep and kind != "level" else (0.0, 0.0)
        return Plane(float(scale * rng.normal(0, 100)), tuple(slope), middle)

    return Case(model, kind, plane(), plane() if kind == KINDS[2] else None, forms)


CASES = st.builds(
    make_case,
    SEEDS,
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
    st.sampled_from(["MJy/sr", "DN/s", "W / (m2 sr)", None]),
    st.sampled_from(KINDS),
    st.booleans(),
    st.fixed_dictionaries({name: st.sampled_from(kinds) for name, kinds in FORMS.items()}),
)


def is_back(before: np.ndarray, after: np.ndarray, between: np.ndarray) -> None:
    """Values are the same to rounding in single precision, at their places."""
    before, after, between = (np.asarray(a, dtype=float) for a in (before, after, between))
    np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
    np.testing.assert_array_equal(np.isnan(between), np.isnan(before))
    there = np.isfinite(before)
    assert np.isfinite(after[there]).all()
    off = np.abs(after - before)[there] > allowed(before, before - between)[there]
    assert not off.any(), (before[there][off], between[there][off], after[there][off])


def arrays(model: ImageModel) -> dict[str, np.ndarray]:
    return {name: np.array(getattr(model, name)) for name in ("data", "err", "dq", "var_poisson", "var_rnoise")}


@given(CASES)
def test_undo_of_a_model_gives_it_back(case):
    model, before = case.model, arrays(case.model)
    background = np.broadcast_to(case.background(), model.data.shape)
    meta = without_history(model)
    case.record().apply(model)
    between = arrays(model)
    seen = np.isfinite(before["data"]) & ((before["data"] != 0) | (before["dq"] % 2 == 0))
    gone = np.abs(between["data"].astype(float) - (before["data"].astype(float) - background))[seen]
    assert (gone <= allowed(before["data"].astype(float), background)[seen]).all()
    assert undo(model)
    after = arrays(model)
    is_back(before["data"], after["data"], between["data"])
    for name in set(before) - {"data"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        np.testing.assert_array_equal(between[name], before[name], err_msg=name)
    assert without_history(model) == meta
    assert not undo(model)
    np.testing.assert_array_equal(model.data, after["data"])
    note("properties", f"apply and undo: JWST model, {case.kind}")


def without_history(model: ImageModel) -> dict[str, Any]:
    """All that a model says but for what has been done to it."""
    said = {key: value for key, value in model.to_flat_dict(include_arrays=False).items() if value is not None}
    return {key: value for key, value in said.items() if "history" not in key and not key.startswith("meta.wcs")}


def written(case: Case, folder: Path) -> Path:
    """File of an exposure, whose arrays may have other forms than those of the model."""
    (file,) = write([case.model], folder)

    def change(hdus: fits.HDUList) -> None:
        for name, form in case.forms.items():
            hdus[name].data = hdus[name].data.astype(form)

    with np.errstate(over="ignore"):
        rewrite(file, change)
    return file


def cards(file: Path) -> list[dict]:
    with fits.open(file) as hdus:
        return [{k: v for k, v in hdu.header.items() if k not in ANY_TIME | FORM_CARDS} for hdu in hdus if hdu.is_image]


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        run()
    return str(caught.value)


@settings(max_examples=max(3, settings.default.max_examples // 3))  # they take long
@given(CASES)
def test_undo_of_a_file_gives_it_back(case):
    """Applying twice is refused, and undoing twice tells that there is nothing to undo; no input is changed."""
    with TemporaryDirectory() as path:
        folder = Path(path)
        file = written(case, folder / "in")
        table, bits = case.table(file.name), digest([file])
        (copy,) = apply_files(table, [file], folder / "applied")
        after_apply = digest([copy])
        has(refusal(lambda: apply_files(table, [copy], folder / "twice")), file.name, "has been subtracted")
        assert not (folder / "twice").exists()
        ((back, undone),) = undo_files([copy], folder / "undone").items()
        assert undone
        with fits.open(file) as one, fits.open(copy) as two, fits.open(back) as three:
            is_back(one["SCI"].data, three["SCI"].data, two["SCI"].data)
            for name in ("ERR", "DQ", "VAR_POISSON", "VAR_RNOISE"):
                np.testing.assert_array_equal(three[name].data, one[name].data, err_msg=name)
        assert cards(back) == cards(file)
        ((again, undone),) = undo_files([back], folder / "undone again").items()
        assert not undone
        np.testing.assert_array_equal(fits.getdata(again), fits.getdata(back))
        assert digest([file]) == bits
        assert digest([copy]) == after_apply
    note("properties", f"apply and undo: JWST file, {case.kind}")
