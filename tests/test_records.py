"""Records in models that are unusual: without DQ or errors, of other programs, or of something matched before."""

import numpy as np
import pytest
from mrs import header_cards
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import ImageModel

from bkgmatch.planes import Plane
from bkgmatch.spectra import Polynomial
from bkgmatch.steps.models import LevelRecord, skip, undo, undo_files
from bkgmatch.steps.plane_record import PlaneRecord, joined_record, read_record, skip_planes, write_record
from bkgmatch.steps.polynomial_record import record_polynomials

SHAPE = (8, 8)
TILTED = Plane(1.5, (0.25, -0.5), (53.16, -27.79))


def bare(value=3.0, name="a_cal.fits"):
    """A model with nothing but data."""
    model = ImageModel(np.full(SHAPE, value, dtype=np.float32))
    model.meta.filename = name
    assert model.dq is None
    assert model.err is None
    return model


def test_levels_of_models_without_errors_are_subtracted_and_undone():
    model = bare()
    LevelRecord(1.0, "match", True, sigma=0.5).apply(model)
    assert (model.data == 2).all()
    assert (model.err, model.var_rnoise) == (None, None)
    assert undo(model)
    assert (model.data == 3).all()


@pytest.mark.parametrize("missing", ["err", "var_rnoise"])
def test_errors_that_a_model_has_are_added_to(missing):
    model = bare()
    model.err = np.full(SHAPE, 3.0, dtype=np.float32)
    model.var_rnoise = np.full(SHAPE, 9.0, dtype=np.float32)
    setattr(model, missing, None)
    LevelRecord(1.0, "match", True, sigma=4.0).apply(model)
    if missing == "err":
        np.testing.assert_allclose(model.var_rnoise, 25)
    else:
        np.testing.assert_allclose(model.err, 5)
    assert getattr(model, missing) is None
    undo(model)
    found = model.err if missing == "var_rnoise" else np.sqrt(model.var_rnoise)
    np.testing.assert_allclose(found, 3, rtol=1e-6)


def test_planes_of_models_without_dq_are_subtracted_and_undone():
    """Zeros too: without flags they are data."""
    model = bare()
    model.data[2, 3] = 0
    before = model.data.copy()
    PlaneRecord(Plane(1.0)).apply(model)
    np.testing.assert_array_equal(model.data, before - 1)
    assert undo(model)
    np.testing.assert_array_equal(model.data, before)


def test_planes_of_other_programs_have_no_values_of_corners():
    model = bare()
    write_record(model, PlaneRecord(TILTED, sigma=0.1))
    assert not [keyword for keyword in header_cards(model) if keyword.startswith("LVLM_P")]
    assert read_record(model) == PlaneRecord(TILTED, sigma=0.1)


def test_records_of_two_fields_are_joined():
    """A field without a record is unchanged."""
    one, two = PlaneRecord(TILTED, sigma=0.1), PlaneRecord(Plane(2.0), subtracted=False)
    assert joined_record(None, None) is None
    assert joined_record(one, None) == PlaneRecord(TILTED, Plane(0.0), 0.1)
    assert joined_record(None, two) == PlaneRecord(Plane(0.0), Plane(2.0), 0.0, subtracted=False)
    assert joined_record(one, two) == PlaneRecord(TILTED, Plane(2.0), 0.1)


def test_what_was_matched_before_is_not_marked_as_skipped():
    never, matched = bare(), bare()
    PlaneRecord(Plane(1.0)).apply(matched)
    LevelRecord(1.0, "match", False).apply(matched)
    for model in (never, matched):
        skip_planes(model)
        skip(model)
    for model, expected in ((never, "SKIPPED"), (matched, "COMPLETE")):
        assert header_cards(model)["S_LVLMAT"] == expected
        assert model.meta.cal_step.skymatch == expected


def test_polynomials_that_are_recorded_in_files_are_undone(tmp_path):
    model, polynomial = bare(), Polynomial((0, 0, 0), (45.0, -10.0, 5.0), np.array([2.0]))
    record_polynomials(model, {"1": polynomial}, "COMPLETE", subtract=False)
    file, out = tmp_path / "a_mrsimatch.fits", tmp_path / "out"
    model.save(file)
    with datamodels.open(file) as recorded:
        assert recorded.meta.background.polynomial_info[0].coefficients[0] == 2
    out.mkdir()
    assert undo_files([file], out) == {out / file.name: True}
    with datamodels.open(out / file.name) as undone:
        assert (undone.data == 3).all()
        assert len(undone.meta.background.polynomial_info) == 0
        assert undone.meta.background.subtracted is None
