"""A WCS that is broken in one of several exposures: an error that names it, the right answer, or a named status."""

from functools import partial
from itertools import product

import numpy as np
import pytest
from astropy.modeling import Model
from astropy.modeling.models import Identity, Shift
from common import few, tan, to_sky
from damage import CLEAR_ERROR, NAMED_STATUS, PLANES, RIGHT_ANSWER, damaged_set, error_of, limited
from gwcs import WCS
from jwst.datamodels import ModelLibrary
from ledger import note
from mrs import coefficients, match, twins
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, SkyMatchOptions

SHAPE = (48, 48)
LEVELS = (2.0, 5.0, 3.0, 9.0)
SHIFTS = ((0, 0), (12, -9), (-10, 11), (17, 15))  # pixels
BROKEN = 1


# ------------------------------------------------------------------------------------------------- what may be wrong


def raises(error, sky, x, y):
    raise error


def not_finite(value, from_column, sky, x, y):
    ra, dec = sky(x, y)
    return np.where(np.asarray(x) >= from_column, value, ra), dec


def constant(sky, x, y):
    return np.full(np.shape(x), 150.0), np.full(np.shape(x), 20.0)


def line(sky, x, y):
    return sky(x, np.zeros_like(y))


def outputs(number, sky, x, y):
    return (*sky(x, y), np.zeros_like(x))[:number] if number != 1 else sky(x, y)[0]


def nothing(sky, x, y):
    return None


def words(sky, x, y):
    return "ra", "dec"


def too_few(sky, x, y):
    return tuple(axis[:-1] for axis in sky(x, y))


def one_number(sky, x, y):
    return 150.0, 20.0


def scaled(factor, sky, x, y):
    return sky(*(factor * (np.asarray(axis) - 24) + 24 for axis in (x, y)))


def flat(factor, sky, x, y):
    """As `scaled`, but not on a sphere."""
    return tuple(at + factor * (axis - at) for axis, at in zip(sky(x, y), (150.0, 20.0), strict=True))


def beyond_the_pole(sky, x, y):
    ra, dec = sky(x, y)
    return ra, dec + 180


def whole_numbers(sky, x, y):
    return sky(np.rint(x), np.rint(y))


def noisy(sky, x, y):
    rng = np.random.default_rng(1)
    return sky(x + rng.normal(0, 5, np.shape(x)), y + rng.normal(0, 5, np.shape(x)))


def with_a_jump(sky, x, y):
    return sky(np.where(np.asarray(x) > 20, x + 30, x), y)


def folded(sky, x, y):
    return sky(np.abs(np.asarray(x) - 20), y)


def later(calls, error, sky, x, y, *, counted=None):
    """Raises after some calls."""
    counted.append(1)
    if len(counted) > calls:
        raise error
    return sky(x, y)


def turned(factor, sky, x, y):
    """Right ascension may be off by turns, which is right."""
    ra, dec = sky(x, y)
    return ra + 360 * factor, dec


ERROR = {
    "raises RuntimeError": partial(raises, RuntimeError("no distortion")),
    "raises KeyError": partial(raises, KeyError("PC1_1")),
    "raises ZeroDivisionError": partial(raises, ZeroDivisionError("division by zero")),
    "raises ValueError": partial(raises, ValueError("no convergence")),
    "raises NotImplementedError": partial(raises, NotImplementedError()),
    "NaN everywhere": partial(not_finite, np.nan, -9),
    "NaN in a part": partial(not_finite, np.nan, 30),
    "infinite in a part": partial(not_finite, np.inf, 30),
    "constant": constant,
    "a line": line,
    "one output": partial(outputs, 1),
    "three outputs": partial(outputs, 3),
    "no output": nothing,
    "words": words,
    "too few positions": too_few,
    "one position": one_number,
    "scale 1e9": partial(flat, 1e9),
    "scale 1e-9": partial(scaled, 1e-9),
    "whole numbers": whole_numbers,
    "noise": noisy,
    "folded": folded,
    "not callable": None,
}
EITHER = {
    "jump": with_a_jump,
    "scale 1e-3": partial(scaled, 1e-3),
    "scale 30": partial(scaled, 30),
    "scale 1e9 in the plane": partial(scaled, 1e9),
    "beyond the pole": beyond_the_pole,
    **{f"raises after {n} calls": partial(later, n, RuntimeError("gone")) for n in (1, 2, 3, 5)},
}
RIGHT = {"a turn more": partial(turned, 1), "ten turns less": partial(turned, -10)}


# ------------------------------------------------------------------------------------------------------------ arrays


def exposures(break_wcs):
    rng = np.random.default_rng(5)
    found = []
    for n, (level, shift) in enumerate(zip(LEVELS, SHIFTS, strict=True)):
        sky = to_sky(tan(shape=SHAPE, shift=shift))
        if n == BROKEN:
            counted = {"counted": []} if getattr(break_wcs, "func", None) is later else {}
            sky = partial(break_wcs, sky, **counted) if break_wcs else "no WCS"
        data = rng.normal(level, 0.01, SHAPE)
        name = "broken.fits" if n == BROKEN else f"e{n}.fits"
        variance = np.full(SHAPE, 1e-4)
        found.append(Exposure(name, partial(_pixels, data, variance), sky, time=n / 100))
    return found


def _pixels(data, variance):
    return Pixels(data, np.isfinite(data), variance)


def skies(**options):
    def run(broken):
        match = match_skies(exposures(broken), SkyMatchOptions(**options))
        return match.level, match.status

    return run


def levels(fit_type):
    def run(broken):
        options = LevelMatchOptions(fit_type_dithers=fit_type, fit_type_mosaic_tiles=fit_type)
        match = match_levels(exposures(broken), options)
        return match.level, match.status

    return run


def images(broken):
    """Level of each background."""
    found = make_backgrounds(exposures(broken), ImageForImageOptions(maxiters=1, min_offset=0.1))
    made = [status == "made" for status in found.status]
    medians = [float(np.median(found.background(i).value)) if made[i] else np.nan for i in range(len(made))]
    return np.array(medians), ["matched" if ok else status for ok, status in zip(made, found.status, strict=True)]


APIS = {
    "match_skies": skies(),
    "match_skies, exact": skies(overlap="exact"),
    "match_skies, differences": skies(skystat="difference"),
    "match_levels": levels("level"),
    "match_levels, planes": levels("level+slope"),
    "make_backgrounds": images,
}


def outcome(run, broken):
    try:
        with limited():
            level, status = run(broken)
    except ValueError as error:
        assert "broken.fits" in str(error), f"names no exposure: {error}"
        return CLEAR_ERROR
    matched = np.array([word == "matched" for word in status])
    assert np.isfinite(level[matched]).all()
    assert np.isnan(level[~matched]).all()
    others = matched & (np.arange(len(LEVELS)) != BROKEN)
    assert others.sum() in (0, len(LEVELS) - 1)
    if matched[BROKEN] or others.any():
        np.testing.assert_allclose(np.ptp((level - LEVELS)[matched]), 0, atol=0.02)
    return RIGHT_ANSWER if matched.all() else NAMED_STATUS


def noted(api, kind, ended):
    note("faults", f"WCS: {kind.partition(' after')[0]}", ended)


@pytest.mark.parametrize("kind", ERROR)
@pytest.mark.parametrize("api", APIS)
def test_a_broken_wcs_is_an_error_that_names_the_exposure(api, kind):
    ended = outcome(APIS[api], ERROR[kind])
    assert ended == CLEAR_ERROR
    noted(api, kind, ended)


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("api", APIS)
def test_a_strange_wcs_has_no_effect_on_the_others(api, kind):
    noted(api, kind, outcome(APIS[api], EITHER[kind]))


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("api", APIS)
def test_angles_may_be_off_by_turns(api, kind):
    ended = outcome(APIS[api], RIGHT[kind])
    assert ended == RIGHT_ANSWER
    noted(api, kind, ended)


# ------------------------------------------------------------------------------------------------------------- steps


class Broken(Model):
    """A part of a gwcs that does something to right ascension and declination, and has no inverse."""

    n_inputs = n_outputs = 2
    do = None

    def evaluate(self, ra, dec):
        return self.do(ra, dec)


def _raise(ra, dec):
    raise RuntimeError("the distortion cannot be evaluated")


TRANSFORMS = {
    "raises": _raise,
    "NaN everywhere": lambda ra, dec: (ra * np.nan, dec),
    "NaN in a part": lambda ra, dec: (np.where(dec > np.median(dec), np.nan, ra), dec),
    "constant": lambda ra, dec: (0 * ra + 53.16, 0 * dec - 27.79),
    "scale 1e9": lambda ra, dec: (53.16 + (ra - 53.16) * 1e9, -27.79 + (dec + 27.79) * 1e9),
    "scale 1e-9": lambda ra, dec: (53.16 + (ra - 53.16) * 1e-9, -27.79 + (dec + 27.79) * 1e-9),
}
QUICK = ("raises", "NaN in a part")
GWCS = {
    "SkyMatchStep": (SkyMatchStep, "skymatch", {}),
    "LevelMatchStep": (LevelMatchStep, "level_match", {}),
    "LevelMatchStep, planes": (LevelMatchStep, "level_match", PLANES),
    "ImageForImageStep": (ImageForImageStep, "image_for_image", {"maxiters": 1}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return damaged_set(tmp_path_factory.mktemp("whole"))


def with_transform(wcs, transform, *, number=2):
    """A gwcs with a part more before the sky."""
    *steps, (frame, to_sky), world = ((step.frame, step.transform) for step in wcs.pipeline)
    part = type("Broken", (Broken,), {"do": staticmethod(transform)})()
    return WCS([*steps, (frame, to_sky | (part if number == 2 else part & Identity(1))), world])


def step_outcome(name, models, name_of_broken):
    """How a step ends on four models of which the second may be broken."""
    step, status, options = GWCS[name]
    before = [np.array(model.data) for model in models]
    found = []
    message = error_of(lambda: found.append(step.call(models, subtract=True, **options)), name_of_broken)
    if message:
        assert all(np.array_equal(model.data, data) for model, data in zip(models, before, strict=True))
        return CLEAR_ERROR
    with found[0] as library:
        left = list(
            library.map_function(lambda m, _: (m.meta.cal_step.instance[status], np.median(m.data)), modify=False)
        )
    done = [float(value) for word, value in left if word == "COMPLETE"]
    assert {word for word, _ in left} <= {"COMPLETE", "SKIPPED"}
    assert np.isfinite(done).all()
    assert np.ptp(done) < 0.02 if done else True
    return RIGHT_ANSWER if len(done) == len(left) else NAMED_STATUS


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize(("name", "kind"), few(4, product(GWCS, TRANSFORMS)))
def test_a_broken_gwcs_is_an_error_that_names_the_file(whole, name, kind):
    models = [datamodels.open(file) for file in whole]
    models[BROKEN].meta.wcs = with_transform(models[BROKEN].meta.wcs, TRANSFORMS[kind])
    ended = step_outcome(name, models, whole[BROKEN].name)
    assert ended == CLEAR_ERROR or (kind, ended) == ("scale 1e-9", NAMED_STATUS)  # so small that it lies between pixels
    noted(name, kind, ended)


def without_inverse(wcs):
    return with_transform(wcs, lambda ra, dec: (ra, dec))


def with_wrong_inverse(wcs):
    *steps, (frame, to_sky), world = ((step.frame, step.transform) for step in wcs.pipeline)
    transform = to_sky.copy()
    transform.inverse = Shift(1e5) & Shift(-1e5)
    return WCS([*steps, (frame, transform), world])


def with_tight_box(wcs):
    """A bounding box outside of which a gwcs gives NaN, unless it is told not to."""
    wcs.bounding_box = ((10, 20), (10, 20))
    return wcs


HARMLESS = {
    "without inverse": without_inverse,
    "wrong inverse": with_wrong_inverse,
    "tight bounding box": with_tight_box,
}


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize(("name", "kind"), few(4, product(GWCS, HARMLESS)))
def test_neither_inverse_nor_bounding_box_are_used(whole, name, kind):
    models = [datamodels.open(file) for file in whole]
    models[BROKEN].meta.wcs = HARMLESS[kind](models[BROKEN].meta.wcs)
    ended = step_outcome(name, models, whole[BROKEN].name)
    assert ended == RIGHT_ANSWER
    noted(name, kind, ended)


OF_IFU = {
    "raises": _raise,
    "NaN everywhere": TRANSFORMS["NaN everywhere"],
    "NaN in a part": TRANSFORMS["NaN in a part"],
    "infinite": lambda ra, dec: (ra * np.inf, dec),
    "constant": lambda ra, dec: (0 * ra + 83.6, 0 * dec - 41),
    "scale 1e9": lambda ra, dec: (ra * 1e9, dec * 1e9),
    "scale 1e-9": lambda ra, dec: (np.nanmean(ra) + 1e-9 * (ra - np.nanmean(ra)), dec),
    "without inverse": lambda ra, dec: (ra, dec),
}


@pytest.mark.usefixtures("offline", "assign_freely")
@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in OF_IFU])
def test_a_broken_wcs_of_slices(dithers, kind):
    models = twins(dithers)
    models[BROKEN].meta.wcs = with_transform(models[BROKEN].meta.wcs, OF_IFU[kind], number=3)
    before = [np.array(model.data) for model in models]
    run = partial(MRSIMatchStep.call, ModelLibrary(models), channel=["1"], subtract=True)
    if error_of(run, models[BROKEN].meta.filename):
        ended = CLEAR_ERROR
        assert all(np.array_equal(m.data, data, equal_nan=True) for m, data in zip(models, before, strict=True))
    else:
        words = [model.meta.cal_step.instance["mrs_imatch"] for model in models]
        assert set(words) <= {"COMPLETE", "SKIPPED"}
        for model, data in zip(models, before, strict=True):
            assert np.isfinite(model.data[np.isfinite(data)]).all()
            assert np.nanmedian(np.abs(model.data - data)) < 100
        ended = RIGHT_ANSWER if words == ["COMPLETE"] * 3 else NAMED_STATUS
    assert (ended == CLEAR_ERROR) == (kind == "raises")
    if kind == "without inverse":
        assert ended == RIGHT_ANSWER
        expected = match(dithers, subtract=True)
        np.testing.assert_allclose(coefficients(models), coefficients(expected), rtol=1e-6, atol=1e-9)
    noted("MRSIMatchStep", kind, ended)
