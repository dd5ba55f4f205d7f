"""The command line, and what a user does with the results of a mosaic in which one exposure overlaps nothing."""

import bz2
import gzip
import lzma
import resource
import shutil
from pathlib import Path
from subprocess import CalledProcessError

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from builders import association, constant_files, digest, tile_wcs
from jwst.datamodels import ModelContainer
from stdatamodels.jwst import datamodels
from stpipe.utilities import import_class

from bkgmatch import SkyMatchStep, __version__
from bkgmatch.cli import _parser, main
from bkgmatch.demo import run_demo
from bkgmatch.stored import temporary_file
from bkgmatch.written import NotWritten, whole_file, write_fits

LEVELS = (10.0, 14.0, 11.5)


@pytest.fixture
def matched(tmp_path, offline):
    """Association, table and results; the fourth exposure overlaps nothing."""
    pieces = [(tile_wcs((1, 3)), LEVELS), (tile_wcs((1, 1), center=(200.0, -40.0)), (7.0,))]
    asn = association(constant_files(tmp_path / "given", pieces))
    table = tmp_path / "levels.ecsv"
    SkyMatchStep.call(
        str(asn), subtract=True, save_results=True, output_dir=str(tmp_path / "matched"), save_table=str(table)
    )
    return asn, table, sorted((tmp_path / "matched").glob("*_skymatch.fits"))


def medians(files):
    return [float(np.nanmedian(fits.getdata(file, "SCI"))) for file in files]


def test_undo_gives_back_what_was_matched_and_copies_the_rest(matched, tmp_path, capsys):
    *_, files = matched
    assert main(["undo", *map(str, files), "--out", str(tmp_path / "undone")]) == 0
    assert capsys.readouterr().out.count("copied as it is") == 1
    assert sorted(medians(sorted((tmp_path / "undone").glob("*.fits")))) == pytest.approx(sorted((*LEVELS, 7.0)))


@pytest.mark.parametrize(
    "wrong",
    ["levels.ecsv", "nowhere.fits", *(pytest.param(w, marks=pytest.mark.slow) for w in ("given/asn.json", "given"))],
)
def test_undo_of_what_is_no_image_is_one_line(matched, tmp_path, capsys, wrong):
    assert main(["undo", str(tmp_path / wrong), "--out", str(tmp_path / "undone")]) == 1
    message = capsys.readouterr().err
    assert wrong in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "undone").exists()


def test_a_skylist_has_all_exposures_and_can_be_used(matched, tmp_path, capsys):
    asn, table, files = matched
    skylist = tmp_path / "sky.txt"
    assert main(["skylist", str(table), "--out", str(skylist)]) == 0
    assert "was not matched" in capsys.readouterr().err
    assert [float(line.split()[1]) for line in skylist.read_text().splitlines()] == pytest.approx([0, 4, 1.5, 0])
    SkyMatchStep.call(
        str(asn),
        skymethod="user",
        skylist=str(skylist),
        subtract=True,
        save_results=True,
        output_dir=str(tmp_path / "user"),
    )
    assert medians(sorted((tmp_path / "user").glob("*.fits"))) == pytest.approx(medians(files))


def test_a_saved_table_can_be_applied_to_the_same_association(matched, tmp_path):
    asn, table, files = matched
    SkyMatchStep.call(
        str(asn), apply_table=str(table), subtract=True, save_results=True, output_dir=str(tmp_path / "applied")
    )
    for file in files:
        with fits.open(file) as ours, fits.open(tmp_path / "applied" / file.name) as theirs:
            np.testing.assert_array_equal(ours["SCI"].data, theirs["SCI"].data)
            assert ours[0].header["S_SKYMAT"] == theirs[0].header["S_SKYMAT"]


def test_a_table_brings_its_method(matched, tmp_path):
    asn, *_ = matched
    table = tmp_path / "local.ecsv"
    SkyMatchStep.call(str(asn), skymethod="local", save_table=str(table))
    step = SkyMatchStep(apply_table=str(table))
    library = step.run(str(asn))
    with library:
        assert set(library.map_function(lambda model, _: model.meta.background.method, modify=False)) == {"local"}
    assert step.skymethod == "match"


def test_the_table_of_pairs_is_no_skylist(matched, tmp_path, capsys):
    assert main(["skylist", str(tmp_path / "levels_pairs.ecsv")]) == 1
    assert "table of pairs" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"suffix": "cal"}, {"suffix": "skymatch"}])
def test_results_never_replace_inputs(matched, tmp_path, monkeypatch, options):
    asn, _, files = matched
    folder = Path(asn).parent if options["suffix"] == "cal" else files[0].parent
    inputs = sorted(folder.glob("*.fits"))
    before = digest(inputs)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"overwrite the input .*set output_dir or another suffix"):
        SkyMatchStep.call([str(file) for file in inputs], subtract=True, save_results=True, **options)
    assert digest(inputs) == before


def test_parameters_with_masks_can_be_saved(tmp_path):
    from stpipe._cmdline import FromCommandLine

    step = SkyMatchStep(masks=[FromCommandLine("mask")])
    step.export_config(tmp_path / "pars.asdf")
    with asdf.open(tmp_path / "pars.asdf") as saved:
        assert saved["parameters"]["masks"] == ["mask"]


@pytest.mark.parametrize("inputs", [(), ([],)])
def test_no_input_says_how_to_make_an_association(offline, inputs):
    with pytest.raises(ValueError, match="bkgmatch asn"):
        SkyMatchStep().run(*inputs)


def test_several_files_are_matched_together(matched, offline):
    asn, *_ = matched
    files = sorted(Path(asn).parent.glob("*_cal.fits"))[:3]
    library = SkyMatchStep().run(*map(str, files))
    with library:
        levels = library.map_function(lambda model, _: model.meta.background.level, modify=False)
        assert list(levels) == pytest.approx([0, 4, 1.5])


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.slow
def test_demo_without_matplotlib_still_compares(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("bkgmatch.demo.find_spec", lambda name: None)
    assert run_demo(tmp_path / "demo") < 5
    assert "No picture" in capfd.readouterr().out
    assert not list((tmp_path / "demo").glob("*.png"))
    shutil.rmtree(tmp_path / "demo")


def parameter_files(capsys):
    """Text of each parameter file, by its name."""
    assert main(["pars"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    for name in names:
        assert main(["pars", name]) == 0
        yield name, capsys.readouterr().out


def test_parameter_files_fit_their_classes(capsys, tmp_path):
    """Every parameter of a step, or of a sub-step of a pipeline, is one that it has, and reaches it."""
    for name, text in parameter_files(capsys):
        path = tmp_path / f"{name}.asdf"
        path.write_text(text)
        with asdf.open(path) as file:
            main_class, given, steps = import_class(file["class"]), file["parameters"], file.tree.get("steps", [])
            found = main_class.from_config_file(str(path))
            for step, parameters in [(found, given)] + [(getattr(found, s["name"]), s["parameters"]) for s in steps]:
                assert {key: getattr(step, key) for key in parameters} == dict(parameters), name
            for sub_step in steps:
                assert isinstance(getattr(found, sub_step["name"]), import_class(sub_step["class"]))


def test_no_file_is_replaced_by_a_parameter_file(tmp_path, capsys):
    mine = tmp_path / "mine.asdf"
    mine.write_text("edited by hand")
    for name in ("mine.asdf", "mine.yaml", "nowhere/mine.asdf"):
        assert main(["pars", "mrs", "--out", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.asdf"]
    assert mine.read_text() == "edited by hand"


def test_results_of_a_container_never_replace_its_files(matched, tmp_path):
    *_, files = matched
    asn = next((tmp_path / "matched").glob("*_asn.json"))
    before = digest(files)
    with pytest.raises(ValueError, match=r"overwrite the input .*set output_dir or another suffix"):
        SkyMatchStep.call(ModelContainer(str(asn)), subtract=True, save_results=True, output_dir=str(asn.parent))
    assert digest(files) == before


def test_models_of_one_name_are_not_saved(matched, tmp_path):
    models = [datamodels.open(file) for file in sorted((tmp_path / "given").glob("*.fits"))[:2]]
    for model in models:
        model.meta.filename = "same_cal.fits"
    with pytest.raises(ValueError, match=r"same_cal.fits .*replace each other.*rename"):
        SkyMatchStep.call(models, save_results=True, output_dir=str(tmp_path / "out"))
    assert list((tmp_path / "out").glob("*")) == []


def test_an_unknown_parameter_file_is_named(capsys):
    assert main(["pars", "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err


def test_a_parameter_file_is_written(tmp_path, capsys):
    assert main(["pars", "image_for_image_crab", "--out", str(tmp_path / "crab.asdf")]) == 0
    assert main(["pars", "image_for_image_crab"]) == 0
    assert (tmp_path / "crab.asdf").read_text() == capsys.readouterr().out


COMMANDS = ["demo", "asn", "pars", "level", "apply", "report", "undo", "skylist"]


def help_of(*words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_each_command_has_an_example_that_it_understands(capsys):
    overview = help_of(capsys=capsys)
    assert all(f"\n    {command} " in overview for command in COMMANDS)
    assert "exit codes: 0 success, 1 error" in overview
    for command in COMMANDS:
        text = help_of(command, capsys=capsys)
        assert "exit codes: 0 success, 1 error" in text
        example = text.partition("example:\n  bkgmatch ")[2].partition("\n")[0].split()
        assert example[0] == command
        assert _parser().parse_args(example).command == command


@pytest.mark.parametrize(
    "words", [[], ["nothing"], ["apply", "levels.ecsv"], ["asn", "a_cal.fits"], ["undo", "--fast"]]
)
def test_wrong_usage_is_code_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: bkgmatch" in capsys.readouterr().err


@pytest.mark.parametrize("worst", [4.9, 5.1, CalledProcessError(1, "strun")])
def test_a_demo_that_fails_is_code_1(worst, monkeypatch, capsys):
    def run(folder):
        if isinstance(worst, Exception):
            raise worst
        return worst

    monkeypatch.setattr("bkgmatch.demo.run_demo", run)
    assert main(["demo"]) == (0 if worst == 4.9 else 1)
    assert bool(capsys.readouterr().err) == (worst != 4.9)


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out", "{0}/ro/demo"],
        ["asn", "{0}/levels.ecsv", "--product", "a", "--out", "{0}/ro/asn.json"],
        ["pars", "mrs", "--out", "{0}/ro/a.asdf"],
        ["report", "{0}/levels.ecsv", "--out", "{0}/ro/a.html"],
        ["skylist", "{0}/levels.ecsv", "--out", "{0}/ro/sky.txt"],
    ],
    ids=lambda words: words[0],
)
def test_folders_where_nothing_may_be_written_are_told_before_the_work(tmp_path, capsys, monkeypatch, words):
    meta = {"options": {"skymethod": "match"}}
    rows = {"name": ["a"], "level": [1.0], "sigma": [0.1], "status": ["matched"]}
    Table(rows, meta=meta).write(tmp_path / "levels.ecsv")
    (tmp_path / "ro").mkdir()
    for work in ("bkgmatch.demo.simulate_mosaic", "bkgmatch.associate.associate", "bkgmatch.report_files.write_report"):
        monkeypatch.setattr(work, lambda *args, **kwargs: pytest.fail("this is work"))
    monkeypatch.setattr("bkgmatch.written.os.access", lambda path, mode: Path(path).name != "ro")  # root may everywhere
    assert main([word.format(tmp_path) for word in words]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'ro'} may not be written to; choose another folder" in told
    assert len(told.splitlines()) == 1
    assert list((tmp_path / "ro").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(13, "Permission denied"), "choose a folder where you may write"),
        (OSError(30, "Read-only file system"), "choose a folder where you may write"),
        (OSError(28, "No space left on device"), "make room there"),
    ],
)
def test_advice_for_what_cannot_be_written_fits(tmp_path, error, advice):
    for writing in (whole_file, temporary_file):
        with pytest.raises(OSError, match="cannot be written") as caught, writing(tmp_path / "a"):
            raise error
        assert advice in str(caught.value)
        assert ("make room" in str(caught.value)) == (error.errno == 28)


@pytest.mark.parametrize(("suffix", "opened"), [("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)])
def test_compressed_files_stay_so(tmp_path, suffix, opened):
    hdus, path = fits.HDUList([fits.PrimaryHDU(np.arange(400.0).reshape(20, 20))]), tmp_path / "a.fits"
    write_fits(hdus, path)
    write_fits(hdus, tmp_path / f"a.fits.{suffix}")
    with opened(tmp_path / f"a.fits.{suffix}") as file:
        assert file.read() == path.read_bytes()


@pytest.mark.parametrize("missing", [1, 2000, 5000])
@pytest.mark.parametrize("is_changed", [True, False])
def test_a_fits_file_without_its_last_bytes_is_none(tmp_path, missing, is_changed):
    """Numpy does not look whether the last bytes of an array that it writes to a file have found room."""
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.arange(25920, dtype=">f4").reshape(160, 162)).writeto(path)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with fits.open(path) as hdus:
        hdus[0].data[0, 0] += is_changed
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - missing, most[1]))
        try:
            with pytest.raises(NotWritten, match=r"b\.fits cannot be written"):
                write_fits(hdus, tmp_path / "b.fits")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert list(tmp_path.iterdir()) == [path]
