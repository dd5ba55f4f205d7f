"""Image3Pipeline: what runs by default, what it leaves in files, how its options and parameter files are obeyed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import association, digest, image_files, miri_halves, write
from common import few
from crds_cache import crds_cache, parameter_references
from jwst import pipeline as jwst_pipeline
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.step import SkyMatchStep as JwstSkyMatchStep
from jwst.stpipe import Step
from stdatamodels.jwst import datamodels
from stpipe import entry_points, utilities

from bkgmatch import Image3Pipeline, ImageForImageStep, LevelMatchStep, SkyMatchStep, Spec3Pipeline
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.models import undo_files
from bkgmatch.steps.simulated import write_exposures

pytestmark = pytest.mark.usefixtures("empty_crds_of_module")

OFFLINE = {name: {"skip": True} for name in ("tweakreg", "source_catalog")}
MATCHING = OFFLINE | {name: {"skip": True} for name in ("outlier_detection", "resample")}
STEPS = ("image_for_image", "level_match", "skymatch")
BY_DEFAULT = ("SKIPPED", "COMPLETE", "SKIPPED")
PLANES = {"fit_type_dithers": "level+slope", "fit_type_mosaic_tiles": "level+slope"}
MOSAIC = "mosaic_i2d.fits"
JWST_CLASS = "jwst.pipeline.calwebb_image3.Image3Pipeline"
OUR_CLASS = "bkgmatch.Image3Pipeline"


KEPT_SKY = {"do_local_subtraction": False}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty current directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def asn(tmp_path_factory):
    """Association of two neighbours of different levels."""
    exposures = simulate_mosaic(rng=np.random.default_rng(11), tiles=(1, 2), dithers=1, overlap=0.3, binning=32)
    return str(write_exposures(exposures, tmp_path_factory.mktemp("tiles") / "inputs"))


def inputs(asn):
    return sorted(Path(asn).parent.glob("*_cal.fits"))


def run(cls, given, folder, **steps):
    """Run a pipeline; return its files."""
    given_steps = {name: OFFLINE.get(name, {}) | steps.get(name, {}) for name in OFFLINE | steps}
    cls.call(given, steps=given_steps, output_dir=str(folder), save_results=True)
    return files(folder)


def files(folder):
    return {path.name: path for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def default(asn, tmp_path_factory):
    """Files of a run with all defaults."""
    return run(Image3Pipeline, asn, tmp_path_factory.mktemp("default"))


def matched(given, pipeline=None, **steps):
    """Library of models after matching; the steps after it are off."""
    library = given if isinstance(given, ModelLibrary) else ModelLibrary(given)
    given_steps = {name: MATCHING.get(name, {}) | steps.get(name, {}) for name in MATCHING | steps}
    (pipeline or Image3Pipeline).call(library, steps=given_steps)
    return library


def of_models(library, function):
    with library:
        return list(library.map_function(lambda model, _: function(model), modify=False))


def statuses(model):
    return tuple(getattr(model.meta.cal_step, name, None) for name in STEPS)


def file_statuses(path):
    with datamodels.open(path) as model:
        return statuses(model)


def assert_same(ours, theirs):
    """SCI and DQ of the exposures and of the mosaic are the same, bit by bit."""
    assert set(ours) == set(theirs)
    assert MOSAIC in ours
    for name in (n for n in ours if n.endswith(".fits")):
        for extension in ("SCI",) if name == MOSAIC else ("SCI", "DQ"):
            np.testing.assert_array_equal(
                fits.getdata(ours[name], extension), fits.getdata(theirs[name], extension), err_msg=name
            )


# -------------------------------------------------------------------------------------------------- defaults, names


def test_what_runs_by_default(default):
    assert {name: file_statuses(path) for name, path in default.items()} == dict.fromkeys(default, BY_DEFAULT)
    for name, path in default.items():
        with datamodels.open(path) as model:
            assert model.meta.cal_step.outlier_detection == "COMPLETE"
            assert "calwebb_image3" in model.cal_logs.instance
            assert any("matched" in line or "level" in line for line in model.cal_logs.calwebb_image3)
        head = fits.getheader(path)
        assert head["S_SKYMAT"] == "SKIPPED"
        if name != MOSAIC:
            assert (head["S_LVLMAT"], head["LVLM_SUB"]) == ("COMPLETE", True)


@pytest.mark.slow
def test_defaults_of_an_instance(asn, default, tmp_path):
    """The same, also in a second run of the object."""
    pipeline = Image3Pipeline()
    for name in OFFLINE:
        getattr(pipeline, name).skip = True
    pipeline.save_results = True
    for folder in (tmp_path / "first", tmp_path / "second"):
        pipeline.output_dir = str(folder)
        pipeline.run(asn)
        assert_same(files(folder), default)
        assert {file_statuses(path) for path in files(folder).values()} == {BY_DEFAULT}
        assert pipeline.skymatch.skip is None


@pytest.mark.slow
def test_names_are_those_of_jwst(asn, default, tmp_path):
    before = digest([*inputs(asn), asn])
    theirs = run(jwst_pipeline.Image3Pipeline, asn, tmp_path / "theirs")
    assert set(default) == set(theirs)
    names = {file.name.replace("_cal.fits", "_a3001_crf.fits") for file in inputs(asn)}
    assert set(theirs) == names | {MOSAIC}
    saved = {"save_results": True}
    steps = {"level_match": saved, "skymatch": saved | {"skip": False}, "image_for_image": saved}
    ours = run(Image3Pipeline, asn, tmp_path / "ours", **steps)
    extra = {file.name.replace("_cal", f"_{name}") for file in inputs(asn) for name in ("levelmatch", "skymatch")}
    associations = {"mosaic_levelmatch_asn.json", "mosaic_skymatch_asn.json"}
    assert set(ours) == set(theirs) | extra | associations
    for name, path in theirs.items():
        for key in ("FILENAME", "ASNTABLE", "ASNPOOL"):
            assert fits.getval(path, key) == fits.getval(ours[name], key), key
    assert digest([*inputs(asn), asn]) == before
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_saved_levels_are_those_of_the_step(asn, default, tmp_path):
    """Saving them does not change what follows, and what is saved is what LevelMatchStep makes."""
    ours = run(Image3Pipeline, asn, tmp_path / "ours", level_match={"save_results": True})
    assert_same({name: ours[name] for name in default}, default)
    expected = LevelMatchStep.call(asn, **KEPT_SKY)
    for name, data in zip([f.name for f in inputs(asn)], of_models(expected, lambda m: m.data.copy()), strict=True):
        np.testing.assert_array_equal(fits.getdata(ours[name.replace("_cal", "_levelmatch")], "SCI"), data)
    listed = json.loads(ours["mosaic_levelmatch_asn.json"].read_text())["products"][0]["members"]
    assert {member["expname"] for member in listed} == {name for name in ours if name.endswith("_levelmatch.fits")}


# -------------------------------------------------------------------------------------------------- who runs

CASES = [
    (skip, *level, level != (False, True) if skip is None else not skip)
    for skip, level in product((None, True, False), ((True, True), (False, False), (False, True)))
]


@pytest.mark.parametrize(("skip", "level_skip", "subtract", "runs"), few(2, CASES))
def test_who_runs(asn, skip, level_skip, subtract, runs):
    """By default skymatch runs where level_match does not subtract; what is asked for is obeyed."""
    steps = {"level_match": {"skip": level_skip, "subtract": subtract}}
    if skip is not None:
        steps["skymatch"] = {"skip": skip}
    library = matched(asn, **steps)
    done = {True: "COMPLETE", False: "SKIPPED"}
    assert of_models(library, statuses) == [("SKIPPED", done[not level_skip], done[runs])] * 2
    assert all(is_set == runs for is_set in of_models(library, lambda m: m.meta.background.level is not None))
    before = of_models(ModelLibrary(asn), lambda m: m.data.copy())
    pairs = zip(of_models(library, lambda m: m.data), before, strict=True)
    changed = any(not np.array_equal(now, then, equal_nan=True) for now, then in pairs)
    assert changed == (subtract and not level_skip)


@pytest.mark.slow
def test_what_is_said_of_it(asn, caplog):
    for skip, level, text in ((None, "INFO", "skymatch is skipped"), (False, "WARNING", "runs after level_match")):
        caplog.clear()
        matched(asn, skymatch={"skip": skip})
        said = [r for r in caplog.records if r.name == "stpipe.bkgmatch.image3"]
        assert [(r.levelname, text in r.message) for r in said] == [(level, True)]
    caplog.clear()
    matched(asn, level_match={"skip": True})
    assert [r for r in caplog.records if r.name == "stpipe.bkgmatch.image3"] == []


@pytest.mark.slow
def test_skymatch_sees_what_level_match_leaves(asn):
    """Otherwise its levels would differ as those of the exposures do."""
    levels = of_models(matched(asn, skymatch={"skip": False}), lambda m: m.meta.background.level)
    alone = of_models(matched(asn, level_match={"skip": True}), lambda m: m.meta.background.level)
    assert np.ptp(alone) > 0.1
    assert np.ptp(levels) < np.ptp(alone) / 10


# -------------------------------------------------------------------------------------------------- options


def flat(section, *above):
    """Options of a spec or of parameters by their path."""
    options = {}
    for name, value in section.items():
        options |= flat(value, *above, name) if isinstance(value, dict) else {(*above, name): value}
    return options


def plain(text):
    return "".join(str(text).partition("#")[0].split())


def default_of(text):
    return plain(text).rpartition("default=")[2]


CHANGED = {"skip": ("False", "None"), "suffix": ("None", "'skymatch'"), "output_use_model": ("False", "True")}


def test_all_options_of_jwst():
    """With the same type and default, but for three of skymatch; options may have more choices."""
    theirs, ours = (flat(cls.load_spec_file()) for cls in (jwst_pipeline.Image3Pipeline, Image3Pipeline))
    assert len(theirs) > 150
    differ = {}
    for path, text in theirs.items():
        assert plain(ours[path]).partition("(")[0] == plain(text).partition("(")[0], path
        choices = set(re.findall(r"'([^']*)'", plain(text))) if plain(text).startswith("option") else set()
        assert choices <= set(re.findall(r"'([^']*)'", plain(ours[path]))), path
        if default_of(text) != default_of(ours[path]):
            differ[path] = default_of(text)[:-1], default_of(ours[path])[:-1]
    assert differ == {("steps", "skymatch", name): pair for name, pair in CHANGED.items()}


def test_parameters_of_an_instance():
    theirs, ours = (flat(cls().get_pars()) for cls in (jwst_pipeline.Image3Pipeline, Image3Pipeline))
    assert set(theirs) < set(ours)
    assert {path[-1] for path, value in theirs.items() if ours[path] != value} == set(CHANGED)
    assert {path[1] for path in set(ours) - set(theirs)} == set(STEPS)


@pytest.mark.parametrize("name", ["image_for_image", "level_match", "skymatch"])
def test_all_options_of_our_steps(name):
    """With the defaults that they have alone, but for skip and for what the pipeline's parameters say."""
    cls = {"image_for_image": ImageForImageStep, "level_match": LevelMatchStep, "skymatch": SkyMatchStep}[name]
    alone, inside = cls().get_pars(), Image3Pipeline().get_pars()["steps"][name]
    assert {key: value for key, value in inside.items() if value != alone[key]} == {
        "image_for_image": {"skip": True}, "level_match": KEPT_SKY, "skymatch": {"skip": None},
    }[name]  # fmt: skip
    assert set(inside) == set(alone)


@pytest.mark.slow
def test_options_reach_the_steps(asn):
    planes = of_models(matched(asn, level_match=PLANES), lambda m: m.extra_fits.PRIMARY.header)
    assert any({"LVLM_A", "LVLM_B"} <= {card[0] for card in header} for header in planes), "but the reference's"
    skymatch = {"subtract": True, "skymethod": "local", "skystat": "median"}
    library = matched(asn, level_match={"skip": True}, skymatch=skymatch)
    assert (
        of_models(library, lambda m: (m.meta.background.subtracted, m.meta.background.method)) == [(True, "local")] * 2
    )
    expected = SkyMatchStep.call(asn, **skymatch)
    for ours, theirs in zip(*(of_models(lib, lambda m: m.data.copy()) for lib in (library, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_hooks_see_what_level_match_leaves(asn):
    """pre_hooks of skymatch run after level_match, and before skymatch."""
    seen = []

    class Look(Step):
        spec = ""

        def process(self, library):
            seen.extend(of_models(library, statuses))

    matched(asn, skymatch={"pre_hooks": [Look()]})
    assert seen == [("SKIPPED", "COMPLETE", None)] * 2


# -------------------------------------------------------------------------------------------------- inputs


KINDS = {
    "files": lambda asn: [str(file) for file in inputs(asn)],
    "models": lambda asn: [datamodels.open(file) for file in inputs(asn)],
    "container": ModelContainer,
    "library": ModelLibrary,
    "library on disk": partial(ModelLibrary, on_disk=True),
}


@pytest.mark.parametrize("kind", few(1, KINDS))
def test_kinds_of_input(asn, kind):
    """Whatever jwst's pipeline takes is matched, and files are not changed."""
    before = digest(inputs(asn))
    caught = []

    class Catch(Step):
        spec = ""

        def process(self, library):
            caught.extend(of_models(library, lambda m: (statuses(m), m.data.copy())))

    Image3Pipeline.call(KINDS[kind](asn), steps=MATCHING | {"skymatch": {"post_hooks": [Catch()]}})
    assert [status for status, _ in caught] == [BY_DEFAULT] * 2
    for (_, data), expected in zip(
        caught, of_models(LevelMatchStep.call(asn, **KEPT_SKY), lambda m: m.data.copy()), strict=True
    ):
        np.testing.assert_array_equal(data, expected)
    assert digest(inputs(asn)) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_names_for_kinds_of_input(asn, tmp_path, kind):
    """Those that jwst's pipeline gives."""
    ours = run(Image3Pipeline, KINDS[kind](asn), tmp_path / "ours")
    theirs = run(jwst_pipeline.Image3Pipeline, KINDS[kind](asn), tmp_path / "theirs")
    assert set(ours) == set(theirs)
    assert len(ours) == 3


@pytest.mark.slow
def test_association_as_dictionary(asn, default, tmp_path, monkeypatch):
    """Its members are looked for in the current directory."""
    monkeypatch.chdir(Path(asn).parent)
    before = sorted(Path().iterdir())
    assert_same(run(Image3Pipeline, json.loads(Path(asn).read_text()), tmp_path / "out"), default)
    assert sorted(Path().iterdir()) == before


@pytest.mark.slow
def test_models_on_disk(asn, default, tmp_path):
    """With in_memory=False of the pipeline and of its steps."""
    steps = {"level_match": {"in_memory": False}, "outlier_detection": {"in_memory": False}}
    given = {name: OFFLINE.get(name, {}) | steps.get(name, {}) for name in OFFLINE | steps}
    Image3Pipeline.call(asn, in_memory=False, steps=given, output_dir=str(tmp_path / "out"), save_results=True)
    ours = files(tmp_path / "out")
    assert set(ours) == set(default)
    np.testing.assert_allclose(fits.getdata(ours[MOSAIC], "SCI"), fits.getdata(default[MOSAIC], "SCI"), atol=1e-5)


@pytest.mark.slow
def test_one_exposure(asn, tmp_path):
    """There is nothing to match, and nothing that fails."""
    (file, _) = inputs(asn)
    ours, theirs = (
        run(cls, str(file), tmp_path / cls.__module__) for cls in (Image3Pipeline, jwst_pipeline.Image3Pipeline)
    )
    assert set(ours) == set(theirs)
    (name,) = (name for name in ours if name.endswith("i2d.fits"))
    assert np.isfinite(fits.getdata(ours[name], "SCI")).any()


# -------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("cls", [Image3Pipeline, Spec3Pipeline])
def test_sigterm_outside_our_steps_ends_a_pipeline_as_an_error_does(asn, monkeypatch, cls):
    """So that temporary folders are removed; and parameters of sub-steps are those that were given again."""

    def ended(*args):
        assert not getattr(pipe, "level_match", pipe).in_memory
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cls.__mro__[2], "process", ended)
    pipe = cls()
    pipe.in_memory = False
    with pytest.raises(SystemExit):
        pipe.process(asn)
    ours = STEPS if cls is Image3Pipeline else ("mrs_imatch",)
    assert [getattr(pipe, name).in_memory for name in ours] == [True] * len(ours)


@pytest.mark.parametrize("step", ["level_match", "skymatch"])
def test_an_exposure_that_is_listed_twice_is_refused(asn, tmp_path, step):
    """Before anything runs."""
    path = shutil.copytree(Path(asn).parent, tmp_path / "in") / Path(asn).name
    given = json.loads(path.read_text())
    given["products"][0]["members"] *= 2
    path.write_text(json.dumps(given))
    steps = MATCHING | {name: {"skip": name != step} for name in STEPS}
    with pytest.raises(ValueError, match=r"listed more than once: .*_cal.fits"):
        Image3Pipeline.call(str(path), steps=steps)


@pytest.mark.slow
def test_a_failure_leaves_the_object_as_it_was(asn):
    pipeline = Image3Pipeline(steps=MATCHING)
    pipeline.level_match.reference = "nobody"
    for skip in (None, False):
        pipeline.skymatch.skip = skip
        with pytest.raises(ValueError, match="nobody"):
            pipeline.run(ModelLibrary(asn))
        assert pipeline.skymatch.skip is skip
        assert pipeline.skymatch.run.__func__ is BackgroundStep.run
    pipeline.skymatch.skip = None
    pipeline.level_match.reference = "auto"
    library = ModelLibrary(asn)
    pipeline.run(library)
    assert of_models(library, statuses) == [BY_DEFAULT] * 2


# -------------------------------------------------------------------------------------------------- MIRI


@pytest.fixture(scope="module")
def dithers(tmp_path_factory):
    """Association of exposures of MIRI in front of a fixed pattern."""
    scene = simulate_dithers(rng=np.random.default_rng(9), dithers=3, dither_step=40.0, binning=16, n_sources=6)
    return str(association(image_files(scene, tmp_path_factory.mktemp("dithers"))))


def test_image_for_image_comes_first(dithers):
    """The pipeline does what the steps do one after the other."""
    made = {"skip": False, "maxiters": 1}
    library = matched(dithers, image_for_image=made, level_match={"recombine_lyot": True})
    assert of_models(library, statuses) == [("COMPLETE", "COMPLETE", "SKIPPED")] * 3
    expected = LevelMatchStep.call(ImageForImageStep.call(dithers, maxiters=1), recombine_lyot=True, **KEPT_SKY)
    without = LevelMatchStep.call(dithers, recombine_lyot=True, **KEPT_SKY)
    for ours, theirs, other in zip(
        *(of_models(lib, lambda m: m.data.copy()) for lib in (library, expected, without)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert np.nanstd(ours - other) > 0.1, "the pattern"


@pytest.mark.slow
def test_what_image_for_image_saves(dithers, tmp_path):
    """Backgrounds too; the names of what follows stay."""
    before = digest(inputs(dithers))
    made = {"skip": False, "maxiters": 1, "save_results": True, "save_mask": True}
    ours = run(Image3Pipeline, dithers, tmp_path / "out", image_for_image=made)
    stems = [file.name.removesuffix("_cal.fits") for file in inputs(dithers)]
    kinds = ("i4i", "i4ibkg", "i4imask", "a3001_crf")
    expected = {f"{stem}_{kind}.fits" for stem in stems for kind in kinds} | {MOSAIC, "mosaic_i4i_asn.json"}
    assert set(ours) - {name for name in ours if "_sources" in name} == expected
    assert {file_statuses(ours[f"{stem}_a3001_crf.fits"]) for stem in stems} == {("COMPLETE", "COMPLETE", "SKIPPED")}
    assert {fits.getval(ours[f"{stem}_a3001_crf.fits"], "S_I4IMG") for stem in stems} == {"COMPLETE"}
    assert digest(inputs(dithers)) == before


@pytest.mark.slow
def test_halves_of_miri_become_one(tmp_path):
    """Names of the exposures carry the association's identifier, that of the mosaic is the product's."""
    exposures = simulate_mosaic(
        rng=np.random.default_rng(5), detectors=("MIRIMAGE",), tiles=(1, 2), dithers=1, overlap=0.4, binning=16,
        level_range=(1.0, 3.0),
    )  # fmt: skip
    halves = write([half for e in exposures for half in miri_halves(e, offset=2.0)], tmp_path / "in")
    before = digest(halves)
    ours = run(Image3Pipeline, str(association(halves)), tmp_path / "out", level_match={"recombine_lyot": True})
    names = {f"{e.name}_a3001_crf.fits" for e in exposures}
    assert set(ours) == names | {MOSAIC}
    assert {file_statuses(path) for path in ours.values()} == {BY_DEFAULT}
    assert {fits.getval(path, "ASNTABLE") for path in ours.values()} == {"asn.json"}
    assert digest(halves) == before


# -------------------------------------------------------------------------------------------------- parameter files


def write_parameters(path, cls, steps, *, our_class=False):
    """Write the parameters of an instance of a class, and those that are given."""
    made = cls()
    for name, values in steps.items():
        for key, value in values.items():
            setattr(getattr(made, name), key, value)
    made.export_config(path)
    if our_class:
        path.write_text(re.sub(r"(?m)^class: .*", f"class: {OUR_CLASS}", path.read_text()))
    return path


def test_a_parameter_file_of_jwst(asn, tmp_path, caplog):
    """It names jwst's class, and of skymatch that it runs: so it does, after level_match, and a warning says so."""
    steps = MATCHING | {"resample": {"skip": True, "pixfrac": 0.7}}
    path = write_parameters(tmp_path / "theirs.asdf", jwst_pipeline.Image3Pipeline, steps)
    assert f"class: {JWST_CLASS}" in path.read_text()
    with pytest.raises(TypeError, match="does not match the expected step class"):
        Image3Pipeline.from_config_file(str(path))
    library = ModelLibrary(asn)
    Image3Pipeline.call(library, config_file=str(path))
    assert "skymatch runs after level_match" in caplog.text
    assert "pixfrac: 0.7" in caplog.text
    assert of_models(library, statuses) == [("SKIPPED", "COMPLETE", "COMPLETE")] * 2


def test_a_parameter_file_of_jwst_with_our_class(asn, tmp_path):
    path = write_parameters(
        tmp_path / "ours.asdf", jwst_pipeline.Image3Pipeline, {"outlier_detection": {"snr": "9.0 8.0"}}, our_class=True
    )
    pipeline = Image3Pipeline.from_config_file(str(path))
    assert type(pipeline) is Image3Pipeline
    assert pipeline.outlier_detection.snr == "9.0 8.0"
    assert (pipeline.skymatch.skip, pipeline.level_match.skip, pipeline.image_for_image.skip) == (False, False, True)


def test_saved_parameters_are_read_again(tmp_path):
    path = write_parameters(tmp_path / "saved.asdf", Image3Pipeline, {"level_match": PLANES})
    again = Image3Pipeline.from_config_file(str(path))
    assert again.skymatch.skip is None
    expected = Image3Pipeline().get_pars()
    expected["steps"]["level_match"] |= PLANES
    assert again.get_pars() == expected


# -------------------------------------------------------------------------------------------------- strun


def strun(*words, folder="out", **env):
    """Run strun in a process of its own; return its output, without the parameters that it lists, and its files."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CRDS", "STPIPE", "VALIDATE"))}
    kept = {name: value for name, value in os.environ.items() if name.startswith(("CRDS", "STPIPE"))}
    command = [Path(sys.executable).with_name("strun"), *words, f"--output_dir={folder}", "--save_results=true"]
    env = clean | (env or kept)
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr, files(folder)


SKIP = [f"--steps.{name}.skip=true" for name in OFFLINE]


@pytest.mark.slow
def test_strun(asn, default):
    """Nothing of CRDS is needed where the steps that read reference files are off."""
    output, ours = strun("bkg_image3", asn, *SKIP, PATH=os.environ["PATH"])
    assert "CRDS is not set up" in output
    assert_same(ours, default)
    assert {file_statuses(path) for path in ours.values()} == {BY_DEFAULT}
    with datamodels.open(ours[MOSAIC]) as model:
        assert "calwebb_image3" in model.cal_logs.instance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "card", "value"),
    [
        (["--steps.level_match.fit_type_mosaic_tiles=level+slope"], "LVLM_A", None),
        (["--steps.level_match.skip=true", "--steps.skymatch.subtract=true"], "BKGSUB", True),
        (["--steps.skymatch.skip=false"], "BKGSUB", False),
        (["--steps.skymatch.skip=true", "--steps.level_match.subtract=false"], "LVLM_SUB", False),
    ],
)
def test_options_on_the_command_line(asn, words, card, value):
    _, ours = strun("bkg_image3", asn, *SKIP, *words)
    headers = [fits.getheader(path) for name, path in ours.items() if name.endswith("_crf.fits")]
    assert len(headers) == 2
    if value is None:  # the reference has no slope
        assert [card in head for head in headers].count(True) == 1
    else:
        assert [head[card] for head in headers] == [value] * 2


HOOKS = {"skymatch": {"skip": True, "post_hooks": ["bkgmatch.LevelMatchStep(fit_type_dithers='level')"]}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "steps"),
    [(Image3Pipeline, {"level_match": PLANES}), (jwst_pipeline.Image3Pipeline, HOOKS)],
    ids=["bkg_image3", "a hook in calwebb_image3"],
)
def test_saved_parameters_make_the_same_mosaic(asn, tmp_path, cls, steps):
    first = write_parameters(tmp_path / "first.asdf", cls, OFFLINE | steps)
    _, before = strun(first, asn, "--save-parameters=saved.asdf", folder="before")
    output, after = strun("saved.asdf", asn, folder="after")
    assert_same(before, after)
    for path in (path for name, path in after.items() if name != MOSAIC):
        head = fits.getheader(path)
        assert (head["S_LVLMAT"], head["LVLM_SUB"]) == ("COMPLETE", True)
    assert ("stpipe.bkgmatch.image3" in output) == (cls is Image3Pipeline)


# -------------------------------------------------------------------------------------------------- jwst's own


def test_aliases_of_jwst_mean_its_own():
    """All of them: none is ambiguous, none is ours."""
    aliases = {s.class_alias: s.class_name for s in entry_points.get_steps() if s.package_name == "jwst"}
    assert {"skymatch", "calwebb_image3", "calwebb_spec3"} < set(aliases)
    for alias, name in aliases.items():
        if alias is not None:
            assert utilities.resolve_step_class_alias(alias) == name
    ours = {s.class_alias for s in entry_points.get_steps() if s.package_name == "bkgmatch"}
    assert ours.isdisjoint(aliases)
    assert "bkg_image3" in ours


CFG = 'name = "skymatch"\nclass = "skymatch"\n'
ASDF = """#ASDF 1.0.0
#ASDF_STANDARD 1.6.0
%YAML 1.1
%TAG ! tag:stsci.edu:asdf/
--- !core/asdf-1.1.0
class: jwst.skymatch.skymatch_step.SkyMatchStep
name: skymatch
parameters: {skymethod: match}
...
"""


@pytest.mark.parametrize("text", [CFG, ASDF], ids=["cfg", "asdf"])
def test_parameter_files_of_jwst_make_its_own_step(tmp_path, text):
    path = tmp_path / f"skymatch.{'cfg' if text == CFG else 'asdf'}"
    path.write_text(text)
    step = Step.from_config_file(str(path))
    assert type(step) is JwstSkyMatchStep


@pytest.mark.slow
@pytest.mark.parametrize("given", ["skymatch", "skymatch.cfg", "skymatch.asdf", "calwebb_image3"])
def test_jwst_runs_its_own(asn, given, tmp_path):
    Path("skymatch.cfg").write_text(CFG)
    Path("skymatch.asdf").write_text(ASDF)
    words = SKIP if given == "calwebb_image3" else []
    output, theirs = strun(given, asn, *words)
    assert "stcal.skymatch.skymatch" in output
    assert "stpipe.bkgmatch" not in output
    exposures = [path for name, path in theirs.items() if name != MOSAIC]
    assert len(exposures) == 2
    for path in exposures:
        assert file_statuses(path) == (None, None, "COMPLETE")
        assert fits.getval(path, "BKGSUB") is False


@pytest.mark.filterwarnings("ignore:'get_cache_lock' is deprecated")
def test_crds_does_not_make_skymatch_run_too(asn, tmp_path, monkeypatch):
    """Its parameters count, but for those that say whether jwst's skymatch runs."""
    of_step = parameter_references([SkyMatchStep], tmp_path, skip=False, subtract=True)
    of_pipeline = parameter_references([Image3Pipeline], tmp_path, in_memory=False)
    monkeypatch.setenv("CRDS_PATH", str(crds_cache(tmp_path / "cache", {"nircam": of_step | of_pipeline})))
    monkeypatch.delenv("STPIPE_DISABLE_CRDS_STEPPARS")
    config = Image3Pipeline.get_config_from_reference(str(asn))
    assert config["steps"]["skymatch"]["subtract"] is True
    assert "skip" not in config["steps"]["skymatch"]
    assert config["in_memory"] is False


def test_the_header_of_the_mosaic_tells_what_has_been_done(default, tmp_path):
    header = fits.getheader(default["mosaic_i2d.fits"])
    assert (header["S_LVLMAT"], header["S_I4IMG"], header["S_SKYMAT"]) == ("COMPLETE", "SKIPPED", "SKIPPED")
    with pytest.raises(ValueError, match=r"mosaic_i2d\.fits is a mosaic"):
        undo_files([default["mosaic_i2d.fits"]], tmp_path / "undone")
    assert not (tmp_path / "undone").exists()


@pytest.mark.filterwarnings("ignore:'get_cache_lock' is deprecated")
@pytest.mark.parametrize("pipeline", [Image3Pipeline, Spec3Pipeline])
def test_a_missing_association_is_named(pipeline, monkeypatch):
    """Also where CRDS is set up, whose own message would speak of a keyword."""
    monkeypatch.delenv("STPIPE_DISABLE_CRDS_STEPPARS")
    with pytest.raises(FileNotFoundError, match=r"nothere_asn\.json"):
        pipeline.call("nothere_asn.json")


@pytest.mark.slow
def test_the_sky_of_the_reference_tile_is_kept(asn):
    """As jwst keeps the lowest: extended emission is not subtracted."""
    before, after = (of_models(library, lambda m: m.data.copy()) for library in (ModelLibrary(asn), matched(asn)))
    moved = [np.nanmax(abs(new - old)) for new, old in zip(after, before, strict=True)]
    assert min(moved) == 0
    assert max(moved) > 0.1
    zero = of_models(matched(asn, level_match={"do_local_subtraction": True}), lambda m: np.nanmedian(m.data))
    assert max(abs(np.array(zero))) < 0.1 < min(np.nanmedian(data) for data in after)


@pytest.mark.parametrize("given", few(1, ["files", "association"]))
def test_what_a_sub_step_saves_never_replaces_what_is_given(asn, given, tmp_path):
    """Neither files that were listed nor members of the association; nothing runs then."""
    here = Path(shutil.copytree(Path(asn).parent, tmp_path / "given"))
    files = [str(file) for file in sorted(here.glob("*_cal.fits"))]
    before = digest(sorted(here.iterdir()))
    saving = {"level_match": {"save_results": True, "suffix": "cal"}}
    with pytest.raises(ValueError, match="would overwrite the input"):
        run(Image3Pipeline, files if given == "files" else str(here / Path(asn).name), here, **saving)
    assert digest(sorted(here.iterdir())) == before
