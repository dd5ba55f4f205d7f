"""The ``bkgmatch`` command."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import get_args

from bkgmatch.options import FitType, LevelMatchOptions

__all__ = ["main"]

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
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ImportError, OSError, ValueError) as error:
        print(f"bkgmatch {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bkgmatch", description="Match the backgrounds of overlapping JWST exposures."
    )
    parser.add_argument("--version", action="version", version=f"bkgmatch {version('bkgmatch')}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="simulate a small mosaic, match it, and compare with the truth")
    demo.add_argument("--out", type=Path, default=Path("bkgmatch_demo"), help="folder to write [%(default)s]")
    demo.set_defaults(run=_demo)

    skylist = commands.add_parser("skylist", help="print a saved table of levels as jwst's skymethod='user' reads it")
    skylist.add_argument("table", help="ECSV table from --save_table")
    skylist.add_argument("--out", type=Path, help="file to write instead")
    skylist.set_defaults(run=_skylist)

    level = commands.add_parser("level", help="match levels or planes of FITS images with a celestial WCS")
    level.add_argument("files", nargs="+", type=Path, help="images of any telescope that overlap")
    level.add_argument("--out", type=Path, default=Path("matched"), help="folder to write [%(default)s]")
    level.add_argument("--save_table", type=Path, help="ECSV table of levels; that of the pairs is *_pairs.ecsv")
    level.add_argument("--save_plots", type=Path, help="folder for pictures of the pairs and of the mosaic")
    level.add_argument("--fixed", action="append", type=Path, default=[], help="image that stays as it is; repeatable")
    level.add_argument("--maximum_cores", type=int, default=1, help="number of threads [%(default)s]")
    _add_options(level, LevelMatchOptions())
    level.set_defaults(run=_level)

    pars = commands.add_parser("pars", help="print a parameter file for strun that comes with bkgmatch")
    pars.add_argument("name", nargs="?", help="name of the file; without it they are listed")
    pars.add_argument("--out", type=Path, help="file to write instead, *.asdf")
    pars.set_defaults(run=_pars)

    asn = commands.add_parser("asn", help="write a level-3 association of exposures")
    asn.add_argument("files", nargs="+", type=Path, help="exposures of one mosaic or cube")
    asn.add_argument("--product", required=True, help="name of the product")
    asn.add_argument("--out", type=Path, help="file to write [PRODUCT_asn.json, beside the exposures]")
    asn.set_defaults(run=_asn)

    report = commands.add_parser("report", help="write an HTML page of a saved table")
    report.add_argument("table", type=Path, help="ECSV table from --save_table; that of the pairs is found beside it")
    report.add_argument("files", nargs="*", type=Path, help="the exposures, for maps and pictures")
    report.add_argument("--out", type=Path, help="file to write [TABLE.html]")
    report.set_defaults(run=_report)

    undo = commands.add_parser("undo", help="add subtracted backgrounds back")
    undo.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="exposures (*_skymatch.fits, *_levelmatch.fits, *_mrsimatch.fits, *_i4i.fits)",
    )
    undo.add_argument("--out", type=Path, default=Path("undone"), help="folder to write [%(default)s]")
    undo.set_defaults(run=_undo)
    return parser


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
    settings = LevelMatchOptions(**given, passes="joint", fit_type_dithers=options.fit_type)
    with threads(options.maximum_cores) as work:
        match = match_files(
            options.files,
            options.out,
            settings,
            fixed=options.fixed,
            table=options.save_table,
            plots=options.save_plots,
            work=work,
        )
    for is_warning, line in story(match, "", "subtracted"):
        print(f"bkgmatch level: {line}" if is_warning else line, file=sys.stderr if is_warning else sys.stdout)
    print(f"Copies are in {options.out}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from bkgmatch.demo import run_demo

    return 0 if run_demo(options.out) < 5 else 1


def _skylist(options: argparse.Namespace) -> int:
    from bkgmatch.record import read_levels

    levels = {name: level for name, (level, _) in read_levels(options.table)[0].items()}
    for name in (name for name, level in levels.items() if isnan(level)):
        print(f"bkgmatch skylist: {name} was not matched; its level is given as 0", file=sys.stderr)
    text = "".join(f"{name} {0.0 if isnan(level) else level!r}\n" for name, level in levels.items())
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")
    return 0


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
        options.out.write_text(texts[name])
    else:
        print(texts[name], end="")
    return 0


def _check_new(path: Path, extension: str) -> None:
    if path.suffix != extension or not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: give a name *{extension} in a folder that exists")
    if path.exists():
        raise ValueError(f"{path} exists; remove it, or give another name with --out")


def _asn(options: argparse.Namespace) -> int:
    from bkgmatch.associate import associate
    from bkgmatch.associations import write_association

    path = options.out or options.files[0].parent / f"{options.product}_asn.json"
    _check_new(path, ".json")
    write_association(associate(options.files, options.product, path.parent), path)
    print(path)
    return 0


def _report(options: argparse.Namespace) -> int:
    from bkgmatch.report_files import report_files

    print(report_files(options.table, options.files, options.out))
    return 0


def _undo(options: argparse.Namespace) -> int:
    from bkgmatch.images import check_distinct, is_jwst

    check_distinct(options.files)
    jwst = [path for path in options.files if is_jwst(path)]
    others = [path for path in options.files if path not in jwst]
    written: dict[Path, bool] = {}
    if jwst:
        from bkgmatch.steps.models import undo_files

        written |= undo_files(jwst, options.out)
    if others:
        from bkgmatch.image_files import undo_files

        written |= undo_files(others, options.out)
    for path, undone in written.items():
        print(path if undone else f"{path} (no background was recorded: copied as it is)")
    return 0
