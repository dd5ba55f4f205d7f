"""Associations: what the steps save beside their results, and what ``bkgmatch asn`` writes."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import (
    SIDE,
    as_rate,
    association,
    digest,
    exposure_name,
    has,
    image_files,
    image_model,
    left_behind,
    miri_halves,
    rewrite,
    spoil,
    tile_wcs,
    write,
)
from crds_cache import crds_cache
from jwst.associations import load_asn
from jwst.associations.asn_from_list import asn_from_list
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.pipeline import Image3Pipeline
from mrs import each
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.cli import main
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated import write_exposures

pytestmark = pytest.mark.usefixtures("offline")

PATHS = pytest.mark.filterwarnings("ignore:Input association file contains path information")
HEAD = {
    "asn_rule": "Asn_Lv3Image",
    "asn_id": "o042",
    "asn_pool": "jw09001_pool.csv",
    "program": "09001",
    "target": "t007",
}
OPTIONS = {
    SkyMatchStep: {"subtract": True},
    LevelMatchStep: {},
    ImageForImageStep: {"maxiters": 1},
    MRSIMatchStep: {"subtract": True, "channel": ["1"], "bkg_degree": 0},
}
SUFFIX = {SkyMatchStep: "skymatch", LevelMatchStep: "levelmatch", ImageForImageStep: "i4i", MRSIMatchStep: "mrsimatch"}
IMAGES = tuple(SUFFIX)[:3]
SLOW = pytest.mark.slow
FAST_IMAGES = [SkyMatchStep, *(pytest.param(step, marks=SLOW) for step in IMAGES[1:])]


@pytest.fixture(scope="module")
def cubes(dither_files, tmp_path_factory):
    """Files of two exposures of MIRI MRS, alone in their folder."""
    folder = tmp_path_factory.mktemp("cubes")
    return [Path(shutil.copy(file, folder)) for file in dither_files[:2]]


@pytest.fixture
def inputs(request, noisy, cubes):
    """Files for a step: six images, two detectors of each of three exposures; or two of MIRI MRS."""
    return lambda step: cubes if step is MRSIMatchStep else noisy


def associate(files, folder, **of_members):
    """Write an association with a history into a folder; entries of the members by key."""
    folder.mkdir(exist_ok=True)
    members = [
        {"expname": os.path.relpath(file, folder), "exptype": "science"}
        | {key: values[n] for key, values in of_members.items() if values[n]}
        for n, file in enumerate(files)
    ]
    given = HEAD | {"asn_type": "image3", "products": [{"name": "my_product", "members": members}]}
    path = folder / "given_asn.json"
    path.write_text(json.dumps(given))
    return path


def run(step, given, folder, **options):
    """Run a step that saves; return the one association that it leaves in the folder."""
    step.call(given, save_results=True, output_dir=str(folder), **OPTIONS[step] | options)
    (path,) = folder.glob("*.json")
    return path


def read(path):
    return json.loads(Path(path).read_text())


def members(path, key="expname"):
    (one,) = read(path)["products"]
    return [member.get(key) for member in one["members"]]


def saved_names(files, step):
    return [file.name.replace("_cal.", f"_{SUFFIX[step]}.") for file in files]


def head(path):
    return {key: value for key, value in read(path).items() if key not in ("products", "asn_type")}


# ------------------------------------------------------------------------------------------- what steps save


@PATHS
@pytest.mark.parametrize(
    ("step", "in_memory"),
    [
        pytest.param(step, in_memory, marks=() if in_memory and step in (SkyMatchStep, MRSIMatchStep) else SLOW)
        for step, in_memory in product(SUFFIX, (True, False))
    ],
)
def test_saved_results_have_the_head_and_the_members_of_the_given_association(step, in_memory, inputs, tmp_path):
    """The given one is in a folder of its own, as are the exposures and the results."""
    files = inputs(step)
    kinds = ["science"] * (len(files) - 1) + ["background"]
    groups = [f"mine{n // 2}" for n in range(len(files))]
    given = associate(files, tmp_path / "given", exptype=kinds, group_id=groups)
    before = given.read_bytes(), digest(files)
    path = run(step, str(given), tmp_path / "not" / "there", in_memory=in_memory)
    assert path.name == f"my_product_{SUFFIX[step]}_asn.json"
    assert head(path) == HEAD
    assert read(path)["asn_type"] == ("spec3" if step is MRSIMatchStep else "image3")
    assert members(path) == saved_names(files, step)
    assert members(path, "exptype") == kinds
    assert members(path, "group_id") == groups
    assert read(path)["products"][0]["name"] == "my_product"
    assert all((path.parent / name).exists() for name in members(path))
    assert (given.read_bytes(), digest(files)) == before
    assert left_behind(given.parent) == [str(given)]


@pytest.mark.parametrize("step", FAST_IMAGES)
def test_jwst_reads_the_association(step, noisy, tmp_path):
    """All detectors of an exposure are one group to it, as they are in the given association."""
    given = association(noisy)
    path = run(step, str(given), tmp_path / "out")
    ours, theirs = ModelLibrary(path), ModelLibrary(given)
    assert ours.group_indices == theirs.group_indices
    assert sorted(map(len, ours.group_indices.values())) == [2, 2, 2]
    assert ours.asn["products"][0]["name"] == "mosaic"
    with path.open() as file:
        assert load_asn(file)["asn_id"] == "a3001"
    container = ModelContainer(str(path))
    assert [len(group) for group in container.models_grouped] == [2, 2, 2]
    assert [model.meta.filename for model in container] == saved_names(noisy, step)


@SLOW
def test_jwst_reads_the_association_of_mrs(cubes, tmp_path):
    path = run(MRSIMatchStep, str(association(cubes)), tmp_path / "out")
    assert [m.meta.cal_step.mrs_imatch for m in ModelContainer(str(path))] == ["COMPLETE"] * 2
    assert ModelLibrary(path).group_names == ModelLibrary(association(cubes)).group_names


GIVEN = {
    "files": lambda files: [str(file) for file in files],
    "models": lambda files: [datamodels.open(file) for file in files],
    "list in a library": lambda files: ModelLibrary([datamodels.open(file) for file in files]),
    "library": lambda files: ModelLibrary(association(files)),
    "library on disk": lambda files: ModelLibrary(association(files), on_disk=True),
    "dict": lambda files: {
        **read(association(files)),
        "products": [{"name": "mosaic", "members": [{"expname": str(f), "exptype": "science"} for f in files]}],
    },
}

FAST_INPUTS = {(SkyMatchStep, kind) for kind in ("files", "models", "library", "dict")}


@PATHS
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        pytest.param(step, kind, marks=() if (step, kind) in FAST_INPUTS else SLOW)
        for step, kind in product(SUFFIX, GIVEN)
    ],
)
def test_other_inputs(step, kind, inputs, tmp_path):
    """Without an association the product is named "exposures", in a container after the first exposure."""
    files = inputs(step)[:2]
    path = run(step, GIVEN[kind](files), tmp_path / "out")
    container = files[0].name.removesuffix("_cal.fits")
    name = "mosaic" if kind in ("library", "library on disk", "dict") else "exposures"
    if step is MRSIMatchStep and kind in ("files", "models"):
        name = container
    assert path.name == f"{name}_{SUFFIX[step]}_asn.json"
    assert members(path) == saved_names(files, step)
    assert members(path, "exptype") == ["science"] * 2
    assert len(ModelLibrary(path)) == 2


@SLOW
def test_a_container_of_mrs_keeps_its_association(cubes, tmp_path):
    path = run(MRSIMatchStep, ModelContainer(str(association(cubes))), tmp_path / "out")
    assert path.name == "mosaic_mrsimatch_asn.json"
    assert read(path)["program"] == "09001"
    assert members(path) == saved_names(cubes, MRSIMatchStep)


@SLOW
@pytest.mark.parametrize("step", IMAGES)
def test_a_container_of_images(step, noisy, tmp_path):
    path = run(step, ModelContainer(str(association(noisy))), tmp_path / "out")
    assert members(path) == saved_names(noisy, step)
    assert ModelLibrary(path).group_indices == ModelLibrary(association(noisy)).group_indices


@pytest.mark.parametrize("step", [*FAST_IMAGES, pytest.param(MRSIMatchStep, marks=SLOW)])
def test_nothing_is_written_without_save_results(step, inputs, offline):
    step.call(str(association(inputs(step))), **OPTIONS[step])
    assert left_behind(offline) == []


@SLOW
def test_one_exposure_of_mrs_needs_none(cubes, tmp_path):
    MRSIMatchStep.call(str(cubes[0]), save_results=True, output_dir=str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == saved_names(cubes[:1], MRSIMatchStep)


def test_results_without_output_dir_and_their_association_are_together(noisy, offline):
    SkyMatchStep.call(str(association(noisy)), subtract=True, save_results=True)
    assert sorted(p.name for p in offline.iterdir()) == sorted(
        [*saved_names(noisy, SkyMatchStep), "mosaic_skymatch_asn.json"]
    )


@SLOW
def test_chained_steps_do_through_files_what_they_do_in_memory(noisy, tmp_path):
    first = run(SkyMatchStep, str(association(noisy)), tmp_path / "first")
    second = run(LevelMatchStep, str(first), tmp_path / "second")
    third = run(ImageForImageStep, str(second), tmp_path / "third")
    assert [path.name for path in (first, second, third)] == [f"mosaic_{SUFFIX[step]}_asn.json" for step in IMAGES]
    assert members(third) == saved_names(noisy, ImageForImageStep)
    assert head(third) == head(second) == head(first)
    models = str(association(noisy))
    for step in IMAGES:
        models = step.call(models, **OPTIONS[step])
    for name, model in zip(members(third), each(models), strict=True):
        np.testing.assert_array_equal(fits.getdata(third.with_name(name), "SCI"), model.data)


@pytest.mark.parametrize("steps", [IMAGES[:2], pytest.param(IMAGES[1:], marks=SLOW)], ids=["match", "image for image"])
def test_chained_steps_in_one_folder_do_not_replace_associations(steps, noisy, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(noisy[0].parent, folder)
    given = association([folder / file.name for file in noisy], name="mosaic_asn.json")
    kept = [given]
    for step in steps:
        before = digest(kept)
        step.call(str(kept[-1]), save_results=True, output_dir=str(folder), **OPTIONS[step])
        assert digest(kept) == before
        kept.append(folder / f"mosaic_{SUFFIX[step]}_asn.json")
    assert len(ModelLibrary(kept[-1])) == len(noisy)


def test_the_given_association_is_never_replaced(noisy, tmp_path):
    """Its user may have named it as the step would: it is refused, or the new one has another name."""
    folder = tmp_path / "all"
    shutil.copytree(noisy[0].parent, folder)
    given = association([folder / file.name for file in noisy], name="mosaic_skymatch_asn.json")
    before = given.read_bytes()
    with suppress(ValueError):
        SkyMatchStep.call(str(given), subtract=True, save_results=True, output_dir=str(folder))
    assert given.read_bytes() == before


@pytest.mark.parametrize("in_memory", [True, pytest.param(False, marks=SLOW)])
def test_halves_of_miri_come_back_as_one_member(in_memory, tmp_path):
    exposures = simulate_mosaic(
        rng=np.random.default_rng(3), detectors=("MIRIMAGE",), tiles=(2, 1), dithers=1, binning=32
    )
    files = write([half for e in exposures for half in miri_halves(e, offset=3.0)], tmp_path / "split")
    given = associate(files, files[0].parent)
    path = run(LevelMatchStep, str(given), tmp_path / "out", recombine_lyot=True, in_memory=in_memory)
    assert path.name == "my_product_levelmatch_asn.json"
    assert head(path) == HEAD
    assert members(path) == [f"{e.name}_levelmatch.fits" for e in exposures]
    assert members(path, "exptype") == ["science"] * 2
    assert ModelLibrary(path).group_names == ModelLibrary(given).group_names
    assert len(ModelLibrary(path).group_names) == 2


def test_rate_exposures_have_associations_for_calwebb_image2_alone(tmp_path):
    scene = simulate_dithers(rng=np.random.default_rng(9), dithers=3, dither_step=40.0, binning=16, n_sources=6)
    rates = write(list(map(as_rate, map(datamodels.open, image_files(scene, tmp_path / "in")))), tmp_path / "in")
    out = tmp_path / "out"
    ImageForImageStep.call(str(association(rates)), save_results=True, output_dir=str(out), maxiters=1)
    found = sorted(out.glob("*.json"))
    assert [path.name for path in found] == [file.name.replace("_rate.fits", "_i4i_asn.json") for file in rates]
    assert {read(path)["asn_type"] for path in found} == {"image2"}


def strun(*words):
    """Run strun in a process of its own, without CRDS."""
    words = [Path(sys.executable).with_name("strun"), *map(str, words)]
    ran = subprocess.run(words, capture_output=True, text=True, env=os.environ, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@SLOW
@PATHS
def test_strun(noisy, tmp_path):
    given = associate(noisy, tmp_path / "given")
    said = strun("bkg_skymatch", given, "--subtract=true", "--save_results=true", f"--output_dir={tmp_path}/one")
    path = tmp_path / "one" / "my_product_skymatch_asn.json"
    assert str(path) in said
    strun("level_match", path, "--save_results=true", f"--output_dir={tmp_path}/two")
    found = tmp_path / "two" / "my_product_levelmatch_asn.json"
    assert head(found) == HEAD
    assert members(found) == saved_names(noisy, LevelMatchStep)
    again = run(LevelMatchStep, str(run(SkyMatchStep, str(given), tmp_path / "three")), tmp_path / "four")
    for name in members(found):
        np.testing.assert_array_equal(*(fits.getdata(path.with_name(name), "SCI") for path in (found, again)))


@SLOW
def test_calwebb_image3_takes_it_and_names_its_image_after_the_product(noisy_exposures, tmp_path, monkeypatch):
    write_exposures(noisy_exposures, tmp_path / "in")
    files = sorted((tmp_path / "in").glob("*_cal.fits"))
    path = run(LevelMatchStep, str(associate(files, files[0].parent)), tmp_path / "matched")
    monkeypatch.setenv("CRDS_PATH", str(crds_cache(tmp_path / "crds")))
    monkeypatch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
    skip = {name: {"skip": True} for name in ("assign_mtwcs", "tweakreg", "skymatch", "source_catalog")}
    out = tmp_path / "out"
    Image3Pipeline.call(str(path), steps=skip, save_results=True, output_dir=str(out))
    crf = [name.replace("_levelmatch", "_levelmatch_o042_crf") for name in members(path)]
    assert sorted(p.name for p in out.iterdir()) == sorted([*crf, "my_product_i2d.fits"])
    with datamodels.open(out / "my_product_i2d.fits") as image:
        assert image.meta.asn.table_name == path.name
        assert image.meta.resample.pointings == 3


# ------------------------------------------------------------------------------------------- bkgmatch asn


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """Three exposures; the last is a dedicated background."""
    wcs = tile_wcs((1, 3))
    models = [image_model(exposure_name(n), np.ones((SIDE, SIDE)), w) for n, w in enumerate(wcs, 1)]
    models[-1].meta.observation.bkgdtarg = True
    return write(models, tmp_path_factory.mktemp("exposed"))


@pytest.fixture
def unspoilt(exposed):
    return exposed


def asn(capsys, *words, name="mosaic"):
    """Run ``bkgmatch asn``; return the association that it says it has written."""
    capsys.readouterr()
    assert main(["asn", *map(str, words), "--product", name]) == 0
    return Path(capsys.readouterr().out.strip())


def refusal(capsys, *words, name="mosaic"):
    """Run ``bkgmatch asn``, which must refuse and say so in one line."""
    capsys.readouterr()
    assert main(["asn", *map(str, words), "--product", name]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def same_library(one, other):
    one, other = ModelLibrary(one), ModelLibrary(other)
    assert [m["expname"] for m in one.asn["products"][0]["members"]] == [
        m["expname"] for m in other.asn["products"][0]["members"]
    ]
    assert one.group_indices == other.group_indices
    assert one.exptypes == other.exptypes
    assert one.asn["products"][0]["name"] == other.asn["products"][0]["name"]
    with one, other:
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
            one.shelve(a)
            other.shelve(b)


def test_an_association_is_that_of_asn_from_list(noisy, tmp_path, capsys):
    """Which leaves the types to the user, and knows no header."""
    files = [Path(shutil.copy(file, tmp_path)) for file in noisy]
    ours = asn(capsys, *files)
    assert ours == tmp_path / "mosaic_asn.json"
    theirs = tmp_path / "theirs.json"
    theirs.write_text(asn_from_list([file.name for file in files], product_name="mosaic").dump()[1])
    same_library(ours, theirs)
    assert len(ModelLibrary(ours).group_names) == 3


def test_backgrounds_are_found_by_their_headers(exposed, capsys):
    path = asn(capsys, *exposed, name="with background")
    assert path == exposed[0].with_name("with background_asn.json")
    assert members(path, "exptype") == ["science", "science", "background"]
    assert read(path)["program"] == "09001"
    assert read(path)["asn_type"] == "image3"
    with path.open() as file:
        assert load_asn(file)["products"][0]["name"] == "with background"
    path.unlink()


@PATHS
def test_names_are_relative_to_the_association(files, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    moved = Path(shutil.move(files[0], other))
    monkeypatch.chdir(other)
    path = asn(capsys, moved.name, *(os.path.relpath(file) for file in files[1:]), "--out", "../here/sum.json")
    assert members(path) == [f"../other/{moved.name}", *(f"../inputs/{file.name}" for file in files[1:])]
    with ModelLibrary(path) as library:
        assert [name for name in library.map_function(lambda m, _: m.meta.filename)] == [moved.name] + [
            file.name for file in files[1:]
        ]


def test_links_stay_links(files, tmp_path, capsys):
    """A folder may be filled with links to an archive that has names of its own."""
    archive, folder = tmp_path / "archive", tmp_path / "links"
    archive.mkdir()
    folder.mkdir()
    for n, file in enumerate(files):
        (folder / file.name).symlink_to(shutil.move(file, archive / f"blob{n}"))
    path = asn(capsys, *(folder / file.name for file in files))
    assert members(path) == [file.name for file in files]


def test_results_are_found_through_a_linked_folder(files, tmp_path, capsys):
    (tmp_path / "link").symlink_to(files[0].parent)
    path = asn(capsys, *(tmp_path / "link" / file.name for file in files), "--out", tmp_path / "link" / "sum.json")
    assert members(path) == [file.name for file in files]


OBSERVATION = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")


@pytest.mark.parametrize("lost", [OBSERVATION, pytest.param(OBSERVATION[-1:], marks=SLOW)], ids=["all", "one"])
@pytest.mark.parametrize("activity", ["02101", "0210a"])
def test_groups_come_from_names_where_headers_do_not_tell(lost, activity, tmp_path, capsys):
    """Two detectors of two exposures; jwst alone takes them for four exposures. Activities count with letters, too."""
    names = [exposure_name(n, detector=d).replace("02101", activity) for n in (1, 2) for d in ("nrcalong", "nrcblong")]
    files = write([image_model(name, np.ones((8, 8)), None) for name in names], tmp_path)
    for file in files:
        spoil(file, lambda model: [delattr(model.meta.observation, key) for key in list(model.meta.observation.instance)
                                   if len(lost) > 1 or key == "exposure_number"])  # fmt: skip
    assert not set(lost) & set(fits.getheader(files[0]))
    assert len(ModelLibrary(association(files)).group_names) == 4
    path = asn(capsys, *files)
    assert list(ModelLibrary(path).group_indices.values()) == [[0, 1], [2, 3]]


def test_a_file_whose_header_tells_its_group_joins_one_whose_name_does(tmp_path, capsys):
    names = [exposure_name(1, detector=detector) for detector in ("nrcalong", "nrcblong")]
    files = write([image_model(name, np.ones((8, 8)), None) for name in names], tmp_path)
    spoil(files[1], lambda model: delattr(model.meta, "observation"))
    assert list(ModelLibrary(asn(capsys, *files)).group_indices.values()) == [[0, 1]]


def test_names_that_say_nothing_leave_jwst_its_ways(files, capsys):
    renamed = [file.rename(file.with_name(f"my file {n}.fits")) for n, file in enumerate(files)]
    path = asn(capsys, *renamed)
    assert members(path) == [file.name for file in renamed]
    assert members(path, "group_id") == [None] * 3
    found = run(SkyMatchStep, str(path), path.parent / "out")
    assert members(found) == [f"my file {n}_skymatch.fits" for n in range(3)]


def test_exposures_of_mrs_make_an_association_for_calwebb_spec3(cubes, capsys, tmp_path):
    path = asn(capsys, *(shutil.copy(file, tmp_path) for file in cubes), name="cube")
    assert read(path)["asn_type"] == "spec3"
    with path.open() as file:
        assert load_asn(file)["products"][0]["name"] == "cube"


@SLOW
def test_the_step_takes_it(cubes, capsys, tmp_path):
    path = asn(capsys, *(shutil.copy(file, tmp_path) for file in cubes), name="cube")
    assert run(MRSIMatchStep, str(path), tmp_path / "out").name == "cube_mrsimatch_asn.json"


def test_programs_that_differ_are_no_program(files, capsys):
    spoil(files[0], lambda model: setattr(model.meta.observation, "program_number", "01234"))
    assert read(asn(capsys, *files))["program"] == "noprogram"


def test_one_file_is_an_association_too(files, capsys):
    assert members(asn(capsys, files[0])) == [files[0].name]


def not_fits(files):
    files[1].write_text("no FITS")


def empty(files):
    files[1].write_bytes(b"")


def missing(files):
    files[1].unlink()


def a_folder(files):
    files[1].unlink()
    files[1].mkdir()


def other_filter(files):
    rewrite(files[1], lambda hdus: hdus[0].header.set("FILTER", "F356W"))


def image_of_mosaic(files):
    """As calwebb_image3 saves it."""
    spoil(files[1], lambda model: setattr(model.meta.cal_step, "resample", "COMPLETE"))
    files[1] = files[1].rename(files[1].with_name("mosaic_i2d.fits"))


def background_of_cubes(files):
    """calwebb_spec3 ends in an error where a background is not a spectrum."""
    for file in files:
        rewrite(file, lambda hdus: hdus[0].header.set("EXP_TYPE", "MIR_MRS"))
    rewrite(files[1], lambda hdus: hdus[0].header.set("BKGDTARG", True))


def image_among_cubes(files):
    """MIRI takes images while the MRS is exposed."""
    rewrite(files[1], lambda hdus: hdus[0].header.set("EXP_TYPE", "MIR_IMAGE"))
    for file in (files[0], files[2]):
        rewrite(file, lambda hdus: hdus[0].header.set("EXP_TYPE", "MIR_MRS"))


def result_and_input(files):
    """The same exposure twice."""
    shutil.copy(files[0], files[0].with_name(files[0].name.replace("_cal", "_skymatch")))
    files[1] = files[0].with_name(files[0].name.replace("_cal", "_skymatch"))


@pytest.mark.parametrize(
    ("spoiling", "parts"),
    [
        (not_fits, ["00002", "FITS"]),
        (empty, ["00002", "FITS"]),
        (missing, ["00002", "does not exist"]),
        (a_folder, ["00002"]),
        (other_filter, ["F356W", "F444W", "00002"]),
        (image_of_mosaic, ["mosaic_i2d.fits"]),
        (image_among_cubes, ["00002", "MIR_IMAGE"]),
        (background_of_cubes, ["00002", "x1d"]),
        (result_and_input, ["_skymatch.fits"]),
    ],
)
def test_what_cannot_be_associated(spoiling, parts, files, capsys):
    spoiling(files)
    before = left_behind(files[0].parent)
    has(refusal(capsys, *files), *parts)
    assert left_behind(files[0].parent) == before


def test_listed_twice(files, capsys):
    """However the file is named."""
    line = refusal(capsys, files[0], files[1], files[0].parent / ".." / "inputs" / files[0].name)
    has(line, files[0].name, "more than once")
    assert not files[0].with_name("mosaic_asn.json").exists()


def test_a_wildcard_that_catches_what_image_for_image_made(noisy, tmp_path, capsys):
    run(ImageForImageStep, str(association(noisy[::2])), tmp_path / "out", save_mask=True)
    results = sorted((tmp_path / "out").glob("*_i4i.fits"))
    for kind in ("i4ibkg", "i4imask", "sources1"):
        (file, *_) = sorted((tmp_path / "out").glob(f"*_{kind}.fits"))
        line = refusal(capsys, *results, file)
        has(line, file.name)
    assert len(members(asn(capsys, *results))) == 3


@pytest.mark.parametrize("out", ["nowhere/sum.json", "."])
def test_where_it_cannot_be_written(files, out, capsys):
    refusal(capsys, *files, "--out", files[0].parent / out)
    assert sorted(files[0].parent.iterdir()) == sorted(files)


@pytest.mark.parametrize("victim", ["member", "other exposure", "text"])
def test_nothing_but_an_association_is_replaced(victim, files, capsys):
    """``--out *_cal.fits`` names the first exposure as the file to write."""
    (files[0].parent / "notes.json").write_text("my notes")
    out = {"member": files[0], "other exposure": files[-1], "text": files[0].with_name("notes.json")}[victim]
    before = digest([*files, out])
    refusal(capsys, *files[:2], "--out", out)
    assert digest([*files, out]) == before


def test_another_association_is_not_replaced(files, capsys):
    path = asn(capsys, *files)
    before = path.read_bytes()
    assert "exists" in refusal(capsys, *files[:2])
    assert path.read_bytes() == before
