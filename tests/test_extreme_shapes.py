"""Exposures of one pixel, one row, one column and 2 x 2 pixels, alone and among others; and of 16384 x 16384 pixels."""

import resource
import sys
from functools import partial

import ifu
import numpy as np
import pytest
from astropy.modeling.models import Identity, Shift
from astropy.table import Table
from builders import exposure_name, has, image_model, part_of, tile_wcs, write
from common import tan, to_sky
from damage import CLEAR_ERROR, NAMED_STATUS, PLANES, RIGHT_ANSWER, error_of
from gwcs import WCS
from ledger import measured, note
from mrs import each, match, status, twin

from bkgmatch import ImageForImageStep, LevelMatchStep, SkyMatchStep
from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.polynomial_arrays import match_polynomials
from bkgmatch.spectra import match_spectra

SHAPES = {"1 x 1": (1, 1), "1 x N": (1, 50), "N x 1": (50, 1), "2 x 2": (2, 2)}
COMPANY = ("ordinary", "alike", "alone")
SIDE, NOISE = 64, 0.01
LEVELS = (1.0, 3.0, 7.0, 4.0)
ODD = 3
"""Number of the exposure of extreme shape, where the others are ordinary."""
MOST = 6 * NOISE
"""Most that the level of a single pixel may be off by noise, and more than any other level."""

every_shape = pytest.mark.parametrize("shape", SHAPES)
every_company = pytest.mark.parametrize("company", COMPANY)
SLOW = pytest.mark.slow


def noted(shape, ended):
    note("faults", f"shape: {shape}", ended)


def members(company):
    """Numbers of the exposures that there are, and of those of extreme shape."""
    there = {"ordinary": range(4), "alike": range(4), "alone": [ODD]}[company]
    return list(there), [ODD] if company != "alike" else list(there)


def known(level, status, there, *, of=LEVELS):
    """Assert that levels of exposures are right but for a constant where they are matched; return how it ended."""
    done = [word == "matched" for word in status]
    right = np.asarray(level)[done] - np.take(of, there)[done]
    assert np.isfinite(right).all()
    assert np.ptp(right) < MOST if any(done) else True, (level, status)
    assert set(status) <= {"matched", "no overlap"}
    return RIGHT_ANSWER if all(done) else NAMED_STATUS


# ---------------------------------------------------------------------------------------------------------- arrays


def exposures(shape, company, *, variance=None, step=(0.2, 0.1)):
    """Ordinary ones, and one of a shape in the middle of them; or all of that shape, fractions of a pixel apart."""
    rng = np.random.default_rng(8)
    there, odd = members(company)
    made = []
    for i in there:
        size = SHAPES[shape] if i in odd else (48, 48)
        where = (5.3, 2.2) if company != "alike" else tuple(i * s for s in step)
        shift = where if i in odd else ((0, 0), (12, -9), (-10, 11))[i]
        given = None if variance is None else np.full(size, variance)
        data = rng.normal(LEVELS[i], NOISE, size).astype(np.float32)
        made.append(Exposure.from_arrays(f"e{i}", data, to_sky(tan(shape=size, shift=shift)), variance=given))
    return made


@every_shape
@every_company
@pytest.mark.parametrize("skystat", ["mean", "median", "midpt", "mode", "difference"])
@pytest.mark.parametrize("overlap", ["good", pytest.param("footprint", marks=SLOW), "exact"])
def test_sky_levels_of_arrays(shape, company, skystat, overlap):
    there, _ = members(company)
    found = match_skies(exposures(shape, company), SkyMatchOptions(skystat=skystat, overlap=overlap))
    ended = known(found.level, found.status, there)
    is_thin = min(SHAPES[shape]) == 1 and skystat == "difference"  # without a cell between four pixels
    assert (ended == NAMED_STATUS) == (company == "alone" or is_thin)
    noted(shape, ended)


@every_shape
@every_company
@pytest.mark.parametrize("variance", [None, NOISE**2])
@pytest.mark.parametrize("passes", ["sequence", "joint"])
@pytest.mark.parametrize("fit", ["level", "level+slope"])
def test_levels_and_planes_of_arrays(shape, company, variance, passes, fit):
    """One row or column has no cells between four pixels, and overlaps nothing; others are matched."""
    there, odd = members(company)
    options = LevelMatchOptions(fit_type_dithers=fit, fit_type_mosaic_tiles=fit, passes=passes)
    found = match_levels(exposures(shape, company, variance=variance), options)
    ended = known(found.level, found.status, there)
    assert (ended == NAMED_STATUS) == (company == "alone" or min(SHAPES[shape]) == 1)
    if ended == RIGHT_ANSWER:
        assert (found.sigma[[there.index(i) for i in odd]] > 0.2 * NOISE).all()  # in one or two pixels
    else:
        assert [found.status[there.index(i)] for i in odd] == ["no overlap"] * len(odd)
    noted(shape, ended)


@every_shape
@pytest.mark.parametrize("function", ["exact", "adaptive"])
def test_levels_in_cells_of_reproject(shape, function):
    """Cells that are whole; there may be none in such an exposure, and nothing that tells how noise is smoothed."""
    pytest.importorskip("reproject")
    found = match_levels(exposures(shape, "ordinary"), LevelMatchOptions(reproject_func=function))
    assert found.status[:ODD] == ("matched",) * ODD
    noted(shape, known(found.level, found.status, range(4)))


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_an_exposure_too_small_to_show_its_noise_has_that_of_the_others(unit):
    """Its error is what it is where its variance is given, in any unit."""
    given, seen = (
        match_levels([e.times(unit) for e in exposures("2 x 2", "ordinary", variance=variance)])
        for variance in (NOISE**2, None)
    )
    np.testing.assert_allclose(seen.sigma[ODD], given.sigma[ODD], rtol=0.1)
    assert given.sigma[ODD] > 0.3 * NOISE * unit


@every_shape
@pytest.mark.parametrize("method", ["mean", "median"])
@pytest.mark.parametrize("scale", ["additive", "multiplicative"])
def test_backgrounds_of_arrays(shape, method, scale):
    """Each is left at zero by the pattern that the others have in common with it."""
    rng, size = np.random.default_rng(5), SHAPES[shape]
    pattern = rng.normal(0, 0.1, size)
    patterns = [level + pattern if scale == "additive" else level * (1 + pattern) for level in LEVELS]
    data = [p + rng.normal(0, NOISE, size) for p in patterns]
    given = [
        Exposure.from_arrays(f"e{i}", d, to_sky(tan(shape=size, shift=(30.0 * i, 20.0 * i))))
        for i, d in enumerate(data)
    ]
    found = make_backgrounds(given, ImageForImageOptions(method=method, scale=scale))
    for i, image in enumerate(data):
        if found.status[i] != "made":
            assert "on sources" in found.status[i] or "no other" in found.status[i]
            continue
        background = found.background(i)
        assert np.abs(image - background.value).max() < 8 * NOISE * (1 if scale == "additive" else LEVELS[i])
        assert np.isfinite(background.variance).all()
    noted(shape, RIGHT_ANSWER if set(found.status) == {"made"} else NAMED_STATUS)


@every_shape
def test_polynomials_of_arrays(shape):
    """Constants are known; planes, where the pixels do not determine them, are an error or the least ones."""
    rng, size = np.random.default_rng(5), SHAPES[shape]
    images = np.stack([rng.normal(level, NOISE, size) for level in LEVELS])
    np.testing.assert_allclose(match_polynomials(images)[:, 0], np.subtract(LEVELS, np.mean(LEVELS)), atol=MOST)
    noted(shape, RIGHT_ANSWER)
    if min(size) == 1:
        with pytest.raises(ValueError, match="do not determine all coefficients; use a function with fewer"):
            match_polynomials(images, degree=1)
        noted(shape, CLEAR_ERROR)
    centre = [(n - 1) / 2 for n in reversed(size)]
    planes = match_polynomials(images, degree=1, center=centre, solver="PINV")
    np.testing.assert_allclose(planes[:, 0], np.subtract(LEVELS, np.mean(LEVELS)), atol=MOST)
    noted(shape, RIGHT_ANSWER)


SPECTRAL = {"1 x 1": (1, 1, 1), "1 x N": (1, 12, 6), "N x 1": (12, 1, 6), "2 x 2": (2, 2, 2)}


@every_shape
@pytest.mark.parametrize("degree", [0, 1])
def test_spectra_of_arrays(shape, degree):
    """One exposure of few pixels among others, which are matched as well as without it."""
    rng = np.random.default_rng(5)
    sizes = {ODD: SPECTRAL[shape]}
    places = [ifu.positions((0.1 * i, 0.05 * i), shape=sizes.get(i, ifu.SMALL)) for i in range(4)]
    values = [rng.normal(level, NOISE, at.ra.shape) for level, at in zip(LEVELS, places, strict=True)]
    found = match_spectra(ifu.exposures(places, values), MRSIMatchOptions(bkg_degree=degree))
    ended = known(found.level, found.status, range(4))
    assert found.status[:ODD] == ("matched",) * ODD
    assert np.isfinite(found.sigma).all()
    noted(shape, ended)


# ----------------------------------------------------------------------------------------------------------- steps

CASES = {
    "SkyMatchStep": (SkyMatchStep, "skymatch", {}),
    "LevelMatchStep": (LevelMatchStep, "level_match", {}),
    "LevelMatchStep, planes": (LevelMatchStep, "level_match", PLANES),
}


def models(shape, company, *, subarray="SUB320"):
    """As the arrays; those of extreme shape are a subarray of their own."""
    rng, made = np.random.default_rng(8), []
    there, odd = members(company)
    tiles = tile_wcs((2, 2), overlap=0.6)
    for i in there:
        size = SHAPES[shape] if i in odd else (SIDE, SIDE)
        wcs = part_of(tiles[0], size, of=SIDE) if i in odd else tiles[i]
        data = rng.normal(LEVELS[i], NOISE, size)
        made.append(image_model(exposure_name(i + 1), data, wcs, err=np.full(size, NOISE, np.float32)))
        made[-1].meta.instrument.detector = "NRCALONG"
        made[-1].meta.subarray.name = subarray if i in odd else "FULL"
    return made


@pytest.mark.usefixtures("offline", "assign_freely")
@every_shape
@pytest.mark.parametrize("company", ["ordinary", pytest.param("alike", marks=SLOW), "alone"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("given", ["models", pytest.param("files", marks=SLOW)])
def test_steps(shape, company, name, given, tmp_path):
    step, key, options = CASES[name]
    inputs = models(shape, company)
    before = [np.array(model.data) for model in inputs]
    inputs = inputs if given == "models" else [str(file) for file in write(inputs, tmp_path / "in")]
    library = step.call(inputs, subtract=True, save_table="t.ecsv", **options)
    done, left = [], []
    for model, data in zip(each(library), before, strict=True):
        word = model.meta.cal_step.instance[key]
        assert word in ("COMPLETE", "SKIPPED")
        assert word == "COMPLETE" or np.array_equal(model.data, data)
        left.extend([float(np.median(model.data))] if word == "COMPLETE" else [])
        done.append(word == "COMPLETE")
    assert np.isfinite(left).all()
    assert np.ptp(left) < MOST if left else True
    assert [word == "matched" for word in Table.read("t.ecsv")["status"]] == done
    assert all(done[:ODD]) or company != "ordinary"
    thin = min(SHAPES[shape]) == 1 and step is LevelMatchStep
    assert all(done) == (company != "alone" and not thin)
    noted(shape, RIGHT_ANSWER if all(done) else NAMED_STATUS)


@pytest.mark.usefixtures("offline", "assign_freely")
@every_shape
@pytest.mark.parametrize("company", ["ordinary", "alike"])
def test_image_for_image(shape, company):
    """Those that have a subarray of their own are served by each other, or by none; the others all the same."""
    inputs = models(shape, company)
    for i, model in enumerate(inputs):
        model.meta.wcs = shifted(model.meta.wcs, 0.003 * i)
    before = [np.array(model.data) for model in inputs]
    library = ImageForImageStep.call(inputs, save_table="t.ecsv", min_members=2)
    rows = list(Table.read("t.ecsv")["status"])
    for model, data, why in zip(each(library), before, rows, strict=True):
        word = model.meta.cal_step.image_for_image
        assert (word == "COMPLETE") == (why == "made")
        if word == "COMPLETE":
            assert np.abs(np.median(model.data)) < MOST
        else:
            np.testing.assert_array_equal(model.data, data)
            assert "no other exposure" in why
    assert rows[:ODD] == ["made"] * ODD
    assert (rows[ODD] == "made") == (company == "alike")
    noted(shape, RIGHT_ANSWER if company == "alike" else NAMED_STATUS)


def shifted(wcs, degrees):
    """The same farther north."""
    *steps, (frame, to_sky_), world = ((step.frame, step.transform) for step in wcs.pipeline)
    return WCS([*steps, (frame, to_sky_ | Identity(1) & Shift(degrees)), world])


@pytest.mark.usefixtures("offline", "assign_freely")
@every_shape
def test_image_for_image_of_shapes_that_differ_within_one_subarray(shape):
    inputs = models(shape, "ordinary", subarray="FULL")
    name = inputs[ODD].meta.filename
    message = error_of(lambda: ImageForImageStep.call(inputs), name)
    has(message, name, str(SHAPES[shape]), str((SIDE, SIDE)), "must have one shape")
    noted(shape, CLEAR_ERROR)


def rows_of(model, first, number):
    """Some rows of an exposure of the MRS."""
    (frame, transform), *rest = ((step.frame, step.transform) for step in model.meta.wcs.pipeline)
    names = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat")
    arrays = {name: getattr(model, name) for name in names}
    some = {name: np.array(a[first : first + number]) for name, a in arrays.items() if a is not None}
    other = twin(model, **some)
    other.meta.wcs = WCS([(frame, Identity(1) & Shift(first) | transform), *rest])
    return other


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize("company", ["ordinary", pytest.param("alike", marks=SLOW)])
def test_exposures_of_the_mrs_of_one_row(dithers, number, company):
    """Constants agree with those of whole exposures, within the errors."""
    few = [rows_of(m, 30, number) if i == 1 or company == "alike" else m for i, m in enumerate(dithers)]
    tables = []
    for inputs in (dithers, few):
        result = match(inputs, bkg_degree=0, subtract=True, save_table="t.ecsv")
        assert status(result) == ["COMPLETE"] * 3
        tables.append(Table.read("t.ecsv"))
    whole, part = tables
    assert np.isfinite(part["sigma"]).all()
    apart = np.abs(part["level"] - whole["level"])
    assert (apart < 0.5 + 6 * part["sigma"]).all()  # the sky has structure that is not in one row
    noted("1 x N" if number == 1 else "2 x N", RIGHT_ANSWER)


# ----------------------------------------------------------------------------------------------------------- large

LARGE = 16384


def large(level, seed):
    """A large image of one level; it is made each time that it is asked for."""
    image = np.empty((LARGE, LARGE), dtype=np.float32)
    np.random.default_rng(seed).standard_normal(out=image, dtype=np.float32)
    image *= NOISE
    image += level
    return Pixels(image, np.ones(image.shape, dtype=bool))


def peak():
    """Most memory that this process has had, in GB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**30 if sys.platform == "darwin" else used / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3600)  # where others need the memory, pages are slow
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("match_skies", partial(match_skies, options=SkyMatchOptions(skystat="median", zero_point="mean"))),
        ("match_levels", partial(match_levels, options=LevelMatchOptions(reference="mean"))),
    ],
)
def test_exposures_of_16384_x_16384(kind, run):
    """Known constants, within the quoted errors, in less than 9 GB; half of each lies on the other."""
    exposures = [
        Exposure(
            f"e{i}", partial(large, level, i), to_sky(tan(shape=(LARGE, LARGE), shift=(i * LARGE / 2, 0), pixel=0.03))
        )
        for i, level in enumerate(LEVELS[:2])
    ]
    found = run(exposures)
    assert found.status == ("matched", "matched")
    true = np.subtract(LEVELS[:2], np.mean(LEVELS[:2]))
    pull = (found.level - true) / found.sigma
    assert (np.abs(pull) < 5).all(), (found.level, found.sigma)
    assert (found.sigma < NOISE / 1000).all()  # of a hundred million pixels
    assert peak() < 9
    noted("16384 x 16384", RIGHT_ANSWER)
    measured("large", f"{kind}: two exposures of 16384 x 16384", memory_GB=peak(), pull=float(np.abs(pull).max()))
