"""The ``bkgmatch`` command."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import resources
from importlib.metadata import version
from math import isnan
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, get_args

from bkgmatch.options import FitType, LevelMatchOptions
from bkgmatch.workspace import ended_by_signals
from bkgmatch.written import check_folder, whole_file

__all__ = ["main"]

_EXIT_CODES = "exit codes: 0 success, 1 error (the message is on stderr), 2 wrong usage"
_MOST_PULL = 5.0
_OF_TILES = (
    "passes",
    "fit_type_dithers",
    "fit_type_recombine_lyot",
    "fit_type_combine_nircam_short",
    "fit_type_mosaic_tiles",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 for success, 1 for an error, 2 for wrong usage.
    """
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        parser.exit(2)
    options = parser.parse_args(arguments)
    try:
        with ended_by_signals():
            code = int(options.run(options))
            print(end="", flush=True)
            return code
    except BrokenPipeError:  # what reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except MemoryError as error:
        print(f"bkgmatch {options.command}: there is not enough memory: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, CalledProcessError) as error:
        print(f"bkgmatch {options.command}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bkgmatch",
        description="Match the backgrounds of overlapping JWST exposures. strun runs the steps; here is the rest.",
        epilog=f"{_EXIT_CODES}\nbkgmatch COMMAND --help has an example of each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bkgmatch {version('bkgmatch')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_asn, _add_pars, _add_level, _add_apply, _add_report, _add_undo, _add_skylist):
        add(commands)
    return parser


def _command(
    commands: Any, run: Callable[[argparse.Namespace], int], what: str, example: str
) -> argparse.ArgumentParser:
    """Add the command that a function runs; it is named after the function."""
    command: argparse.ArgumentParser = commands.add_parser(
        run.__name__.strip("_"),
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n  bkgmatch {example}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_demo(commands: Any) -> None:
    demo = _command(
        commands, _demo, "simulate a small mosaic, match it, and compare with the truth", "demo --out my_demo"
    )
    demo.add_argument("--out", type=Path, default=Path("bkgmatch_demo"), help="folder to write [%(default)s]")


def _add_asn(commands: Any) -> None:
    example = "asn *_cal.fits --product mosaic --out asn.json"
    asn = _command(commands, _asn, "write a level-3 association of exposures", example)
    asn.add_argument("files", nargs="+", type=Path, help="exposures of one mosaic or cube")
    asn.add_argument("--product", required=True, help="name of the product")
    asn.add_argument("--out", type=Path, help="file to write [PRODUCT_asn.json, beside the exposures]")


def _add_pars(commands: Any) -> None:
    example = "pars image_for_image_crab --out crab.asdf"
    pars = _command(commands, _pars, "print a parameter file for strun that comes with bkgmatch", example)
    pars.add_argument("name", nargs="?", help="name of the file; without it they are listed")
    pars.add_argument("--out", type=Path, help="file to write instead, *.asdf")


def _add_level(commands: Any) -> None:
    example = "level tiles/*.fits --fit_type level+slope --out matched --save_table levels.ecsv"
    level = _command(commands, _level, "match levels or planes of FITS images with a celestial WCS", example)
    level.add_argument("files", nargs="+", type=Path, help="images of any telescope that overlap")
    level.add_argument("--out", type=Path, default=Path("matched"), help="folder to write [%(default)s]")
    level.add_argument("--save_table", type=Path, help="ECSV table of levels; that of the pairs is *_pairs.ecsv")
    level.add_argument("--save_plots", type=Path, help="folder for pictures of the pairs and of the mosaic")
    level.add_argument(
        "--fixed", action="append", type=Path, default=[], help="image whose levels stay as they are; repeatable"
    )
    level.add_argument("--maximum_cores", type=_count, default=1, help="number of threads [%(default)s]")
    _add_options(level, LevelMatchOptions())


def _count(text: str) -> int:
    """Read a number of threads."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _add_apply(commands: Any) -> None:
    example = "apply levels.ecsv *_cal.fits --out matched"
    apply = _command(commands, _apply, "subtract the levels or planes of a saved table", example)
    apply.add_argument("table", type=Path, help="ECSV table of SkyMatchStep, LevelMatchStep or 'bkgmatch level'")
    apply.add_argument("files", nargs="+", type=Path, help="exposures; they are not changed")
    apply.add_argument("--out", type=Path, default=Path("applied"), help="folder to write [%(default)s]")


def _add_report(commands: Any) -> None:
    report = _command(commands, _report, "write an HTML page of a saved table", "report levels.ecsv *_cal.fits")
    report.add_argument("table", type=Path, help="ECSV table from --save_table; that of the pairs is found beside it")
    report.add_argument("files", nargs="*", type=Path, help="the exposures, for maps and pictures")
    report.add_argument("--out", type=Path, help="file to write [TABLE.html]")


def _add_undo(commands: Any) -> None:
    undo = _command(commands, _undo, "add subtracted backgrounds back", "undo matched/*_levelmatch.fits --out undone")
    matched = "exposures (*_skymatch.fits, *_levelmatch.fits, *_mrsimatch.fits, *_i4i.fits); they are not changed"
    undo.add_argument("files", nargs="+", type=Path, help=matched)
    undo.add_argument("--out", type=Path, default=Path("undone"), help="folder to write [%(default)s]")


def _add_skylist(commands: Any) -> None:
    what = "print a saved table of levels as jwst's skymethod='user' reads it"
    skylist = _command(commands, _skylist, what, "skylist levels.ecsv --out sky.txt")
    skylist.add_argument("table", help="ECSV table of SkyMatchStep")
    skylist.add_argument("--out", type=Path, help="file to write instead")


def _add_options(parser: argparse.ArgumentParser, defaults: LevelMatchOptions) -> None:
    """Add one argument for each option of level matching; without tiles there is one pass."""
    for field in fields(defaults):
        name, value = field.name, getattr(defaults, field.name)
        if name in _OF_TILES:
            continue
        kind = type(value)
        if kind is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=value)
        else:
            choices = get_args(field.type) or None
            parser.add_argument(f"--{name}", type=kind, default=value, choices=choices, help="[%(default)s]")
    parser.add_argument("--fit_type", choices=get_args(FitType), default="level", help="[%(default)s]")


def _level(options: argparse.Namespace) -> int:
    from bkgmatch.execution import threads
    from bkgmatch.image_files import match_files
    from bkgmatch.level_story import story

    given = {name: getattr(options, name) for name in LevelMatchOptions.__dataclass_fields__ if name not in _OF_TILES}
    logging.getLogger("stpipe.bkgmatch").setLevel(logging.INFO)  # for progress bars
    settings = LevelMatchOptions(**given, passes="joint", fit_type_dithers=options.fit_type)
    with threads(options.maximum_cores) as work:
        match, unit = match_files(
            options.files,
            options.out,
            settings,
            fixed=options.fixed,
            table=options.save_table,
            plots=options.save_plots,
            work=work,
        )
    for is_warning, line in story(match, unit, "subtracted", missing="planes (--fit_type=level+slope)"):
        print(f"bkgmatch level: {line}" if is_warning else line, file=sys.stderr if is_warning else sys.stdout)
    print(f"Copies are in {options.out}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from bkgmatch.demo import run_demo

    worst = run_demo(options.out)
    if worst >= _MOST_PULL:
        raise ValueError(f"a recovered level is {worst:.1f} of its errors from the truth")
    return 0


def _skylist(options: argparse.Namespace) -> int:
    from bkgmatch.saved import read_sky_levels

    levels = {name: level for name, (level, _) in read_sky_levels(options.table).levels.items()}
    unfit = next((name for name in levels if "#" in name or len(name.split()) != 1), None)
    if unfit is not None:
        raise ValueError(f"{unfit!r} cannot stand in a skylist: rename the exposure, without blanks and #")
    for name in (name for name, level in levels.items() if isnan(level)):
        print(f"bkgmatch skylist: {name} was not matched; its level is given as 0", file=sys.stderr)
    text = "".join(f"{name} {0.0 if isnan(level) else level!r}\n" for name, level in levels.items())
    if options.out:
        _check_skylist(options.out)
        _write_text(options.out, text)
    else:
        print(text, end="")
    return 0


def _check_skylist(path: Path) -> None:
    """Raise an error if no list can be written, or it would replace what has not two words in each line."""
    check_folder(path.parent)
    if path.is_file() and any(len(line.split()) != 2 for line in path.read_text(errors="replace").splitlines()):
        raise ValueError(f"{path} exists and is no skylist; remove it, or give another name with --out")


def _pars(options: argparse.Namespace) -> int:
    folder = resources.files("bkgmatch").joinpath("pars")
    texts = {file.name.removeprefix("pars-").removesuffix(".asdf"): file.read_text() for file in folder.iterdir()}
    if options.name is None:
        for name, text in sorted(texts.items()):
            print(f"{name:21} {text.partition('# ')[2].partition(chr(10))[0]}")
        return 0
    name = options.name.removeprefix("pars-").removesuffix(".asdf")
    if name not in texts:
        raise ValueError(f"there is no parameter file {options.name}; there are {', '.join(sorted(texts))}")
    if options.out:
        _check_new(options.out, ".asdf")
        _write_text(options.out, texts[name])
    else:
        print(texts[name], end="")
    return 0


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text)


def _check_new(path: Path, extension: str) -> None:
    if path.suffix != extension or not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: give a name *{extension} in a folder that exists")
    if path.exists():
        raise ValueError(f"{path} exists; remove it, or give another name with --out")
    check_folder(path.parent)


def _asn(options: argparse.Namespace) -> int:
    from bkgmatch.associate import associate
    from bkgmatch.associations import check_product, write_association

    check_product(options.product)
    path = options.out or options.files[0].parent / f"{options.product}_asn.json"
    _check_new(path, ".json")
    write_association(associate(options.files, options.product, path.parent), path)
    print(path)
    return 0


def _apply(options: argparse.Namespace) -> int:
    from bkgmatch.saved import read_saved
    from bkgmatch.steps.applied import apply_files

    for path in apply_files(read_saved(options.table), options.files, options.out):
        print(path)
    return 0


def _report(options: argparse.Namespace) -> int:
    from bkgmatch.report_files import report_files
    from bkgmatch.steps.library import stem

    print(report_files(options.table, options.files, options.out, stem=stem))
    return 0


def _undo(options: argparse.Namespace) -> int:
    from bkgmatch.steps.models import undo_files

    for path, undone in undo_files(options.files, options.out).items():
        print(path if undone else f"{path} (no background was recorded: copied as it is)")
    return 0
