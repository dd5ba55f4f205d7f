"""What the log says of a match: about ten lines, however many exposures there are."""

import doctest
import re

import numpy as np
import pytest
from builders import SIDE, constant_files, exposure_name, image_model, tile_wcs

from bkgmatch import (
    LevelMatchStep,
    SkyMatchStep,
    execution,
    image_story,
    level_story,
    progress,
    spectral_story,
    stories,
)
from bkgmatch.image_backgrounds import ImageBackgrounds
from bkgmatch.levels import LevelMatch
from bkgmatch.match import SkyMatch
from bkgmatch.neighbourhoods import LevelPairs
from bkgmatch.pairs import Offsets
from bkgmatch.sky_story import story
from bkgmatch.spectra import SpectralMatch
from bkgmatch.spectral_fit import PairResiduals
from bkgmatch.stories import each_or_all

UNIT = "MJy/sr"
TIME = re.compile(r"Time: checks \d+\.\d s, .*(levels|differences) \d+\.\d s, solution \d+\.\d s, .*saving \d+\.\d s")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return constant_files(tmp_path_factory.mktemp("given"), [(tile_wcs((1, 7)), 10.0 + np.arange(7))])


@pytest.mark.parametrize("step", [SkyMatchStep, LevelMatchStep])
def test_mixed_filters_are_told_and_mixed_detectors_are_not(offline, caplog, assign_freely, step):
    models = [image_model(exposure_name(n), np.ones((SIDE, SIDE)), wcs) for n, wcs in enumerate(tile_wcs((1, 3)), 1)]
    models[0].meta.instrument.detector, models[0].meta.instrument.module = "NRCBLONG", "B"
    models[1].meta.instrument = {"name": "MIRI", "filter": "F1130W", "detector": "MIRIFULONG"}
    step.call(models)
    (line,) = [record.getMessage() for record in caplog.records if "filters" in record.getMessage()]
    assert line.partition(": ")[2] == (
        f"MIRI F1130W ({models[1].meta.filename}); "
        f"NIRCAM F444W CLEAR ({models[0].meta.filename}, {models[2].meta.filename}); match them apart"
    )
    caplog.clear()
    step.call(models[::2])
    assert "filters" not in caplog.text


@pytest.mark.parametrize(
    ("step", "n"),
    [
        (SkyMatchStep, 7),
        (LevelMatchStep, 4),
        pytest.param(SkyMatchStep, 4, marks=pytest.mark.slow),
        pytest.param(LevelMatchStep, 7, marks=pytest.mark.slow),
    ],
)
def test_the_log_of_a_small_run(files, tmp_path, offline, caplog, assign_freely, step, n):
    step.call([str(file) for file in files[:n]], subtract=True, save_results=True, output_dir=str(tmp_path))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("stpipe.bkgmatch")]
    assert len(lines) <= 10
    assert TIME.match(lines[-1])
    named = [line for line in lines if "_cal.fits: " in line]
    assert len(named) == (n if n == 4 else 0)
    summary = [line for line in lines if f"evels of {n} exposures: from " in line]
    assert len(summary) == (0 if n == 4 else 1)
    assert sum("subtracted" in line.lower() for line in lines) == (n if (step, n) == (LevelMatchStep, 4) else 1)


@pytest.mark.parametrize(("n", "few", "expected"), [(6, 6, 6), (7, 6, 1), (3, 2, 1), (0, 6, 0)])
def test_few_have_a_line_each(n, few, expected):
    names, level = [f"e{i}" for i in range(n)], np.arange(n) ** 2 - 4.0 * np.arange(n)
    lines = list(each_or_all(names, names, level, level + 5, UNIT, few=few, title="Mean levels"))
    assert len(lines) == expected
    if expected == 1:
        low = {7: "-4 (e2) to 12 (e6)", 3: "-4 (e2) to 0 (e0)"}[n]
        assert lines[0].startswith(f"Mean levels of {n} exposures: from {low} {UNIT}, errors 1 to ")


def test_fixed_exposures_share_a_line():
    n = 8
    covariance = np.zeros((n, 3, 3))
    match = LevelMatch(
        tuple("abcdefgh"), np.zeros(n, int), np.zeros((n, 2)), np.arange(8.0), np.zeros((n, 2)), covariance,
        ("fixed",) * 7 + ("matched",), np.zeros(n, bool), ("fixed",), LevelPairs(*np.zeros((9, 0))),
    )  # fmt: skip
    said = [
        "8 exposures, no pairs",
        "Zero point of 8 exposures: fixed",
        "Fixed: a, b, c, d, e, f and 1 more",
        "h: level 7 +- 0 MJy/sr, subtracted",
    ]
    assert list(level_story.story(match, UNIT, "subtracted")) == [(False, line) for line in said]
    assert list(level_story.story(match, "", "subtracted"))[3] == (False, "h: level 7 +- 0, subtracted")
    assert list(level_story.story(match, UNIT, "")) == [(False, line) for line in said[:2]]


def test_constants_are_told_without_slopes_beside_an_exposure_without_any():
    match = LevelMatch(
        ("a", "b"), np.array([0, -1]), np.zeros((2, 2)), np.array([1.0, np.nan]), np.array([[0.0, 0], [np.nan] * 2]),
        np.zeros((2, 3, 3)), ("matched", "no good pixels"), np.zeros(2, bool), ("mean",),
        LevelPairs(*np.zeros((9, 0))),
    )  # fmt: skip
    assert (False, "a: level 1 +- 0 MJy/sr, subtracted") in list(level_story.story(match, UNIT, "subtracted"))


def test_pairs_that_differ_from_what_others_say_are_named():
    residual, trust, ones = np.array([0.05, -0.7, 0.9]), np.array([1.0, 0.2, 0.0]), np.ones(3)
    pairs = LevelPairs(
        np.array([0, 0, 1]), np.array([1, 2, 2]), np.array(["dithers"] * 3), 50 * ones, ones, 0.1 * ones, ones,
        residual, trust,
    )  # fmt: skip
    match = LevelMatch(
        tuple("abc"), np.zeros(3, int), np.zeros((3, 2)), np.arange(3.0), np.zeros((3, 2)), np.zeros((3, 3, 3)),
        ("matched",) * 3, np.zeros(3, bool), ("mean",), pairs,
    )  # fmt: skip
    warnings = [line for is_warning, line in level_story.story(match, UNIT, "") if is_warning]
    assert [line for line in warnings if "differs" in line] == [
        "a - c differs from what other pairs say by 7 of its errors: down-weighted"
    ]


def test_backgrounds_of_exposures_full_of_sources():
    most = np.array([49.0, 51.0])
    found = ImageBackgrounds(
        ("a", "b"), ("made",) * 2, (("b",), ("a",)), np.ones(2), np.ones(2), most / 100, np.zeros(2), np.ones(2),
        np.ones(2), (), (),
    )  # fmt: skip
    warnings = [line for is_warning, line in image_story.story(found, UNIT, "subtracted") if is_warning]
    assert warnings == ["b: 51 % of its pixels are on sources; the background is made of what is left"]


@pytest.mark.parametrize("status", ["made", "no good pixels"])
def test_what_is_told_of_many_backgrounds(status):
    ones = np.ones(7)
    found = ImageBackgrounds(
        tuple("abcdefg"), (status,) * 7, (("a",),) * 7, ones, 0.2 * ones, 0 * ones, 0 * ones, ones, ones, (), ()
    )
    lines = [line for _, line in image_story.story(found, UNIT, "subtracted")]
    if status == "made":
        assert lines[0].endswith(": subtracted")
        assert "MJy/sr, rms 0.2 to 0.2; all" in lines[1]
    else:
        assert lines[0].startswith("0 of 7 exposures have a background")
        assert "subtracted" not in lines[0]


def test_polynomials_that_are_held_are_told():
    loose = (("ra",), (), tuple(f"term {k}" for k in range(6)))
    terms = np.ones((3, 2))
    match = SpectralMatch(
        tuple("abc"), (0, 0, 1), np.zeros(3, int), np.tile([10.0, 20.0, 5.0], (3, 1)), terms, terms, np.ones(3),
        np.ones(3), np.full(3, 9), ("matched",) * 3, loose, np.array([False, True, False]), PairResiduals.none(),
    )  # fmt: skip
    warnings = [line for is_warning, line in spectral_story.story(match, "channel 1", UNIT) if is_warning]
    held = "the overlaps do not determine"
    assert warnings == [
        f"channel 1: a: {held} ra: a weak prior holds that",
        "channel 1: b: its polynomial was flattened, to keep it within bounds outside the overlaps",
        f"channel 1: c: {held} term 0, term 1, term 2, term 3 and 2 more terms (try a lower bkg_degree): a weak prior "
        "holds that",
    ]


def test_a_sky_match_with_a_lost_exposure_and_two_sets():
    pairs = Offsets(np.array([0, 2]), np.array([1, 3]), *[np.ones(2)] * 5, None, None)
    match = SkyMatch(
        tuple("abcde"), np.arange(5), np.array([0, 0, 1, 1, -1]), np.array([0, 1, 2, 3, np.nan]), np.full(5, 0.1),
        np.zeros(5), np.ones(5), ("matched",) * 4 + ("no overlap",), pairs, np.array([3e-3, -4e-3]),
    )  # fmt: skip
    lines = list(story(match, UNIT, "recorded"))
    assert lines[0] == (False, "Sky levels of 4 of 5 exposures recorded; residuals of 2 pairs: 0.0035 MJy/sr rms")
    assert lines[1] == (False, "a: sky level 0 +- 0.1 MJy/sr")
    assert lines[5] == (True, "e could not be matched: no overlap")
    assert [line for is_warning, line in lines[6:] if is_warning] == [
        "Connected set 1 of 2, which overlaps no other: a, b",
        "Connected set 2 of 2, which overlaps no other: c, d",
    ]


@pytest.mark.parametrize(
    ("residual", "weight", "expected"),
    [(4.4, 1.0, "4 times"), (2.9, 1.0, None), (-3.1, 1.0, "3 times"), (1000.0, 0.4, None)],
)
def test_a_bad_sky_match_is_a_warning(residual, weight, expected):
    ones, few = np.ones(3), np.arange(3)
    pairs = Offsets(few, (few + 1) % 3, ones, 0.1 * ones, ones, ones, np.array([weight, 1, 1]), None, None)
    left = 0.1 * np.array([residual, *([0.1] * 2 if weight < 0.5 else [residual] * 2)])
    match = SkyMatch(tuple("abc"), few, np.zeros(3, int), ones, ones, ones, ones, ("matched",) * 3, pairs, left)
    warnings = [line for is_warning, line in story(match, UNIT, "recorded") if is_warning]
    assert len(warnings) == (expected is not None)
    if expected:
        assert warnings[0].startswith(f"What is left of the pairs is {expected} their errors")
        assert "skystat='difference'" in warnings[0]


def test_a_sky_match_without_noise_is_not_bad():
    pairs = Offsets(np.array([0]), np.array([1]), *[np.zeros(1)] * 5, None, None)
    two = np.ones(2)
    match = SkyMatch(("a", "b"), two, np.zeros(2, int), two, two, two, two, ("matched",) * 2, pairs, np.ones(1))
    assert not any(is_warning for is_warning, _ in story(match, UNIT, "recorded"))


@pytest.mark.parametrize("module", [execution, progress, stories])
def test_examples(module):
    result = doctest.testmod(module)
    assert (result.attempted > 0, result.failed) == (True, 0)
