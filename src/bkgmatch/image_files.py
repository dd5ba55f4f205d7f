"""Match FITS images in files, of any telescope: open, match, write corrected copies and tables."""

from collections.abc import Sequence
from pathlib import Path

from bkgmatch.execution import HERE, Work
from bkgmatch.images import FitsImage, check_copies, same_unit
from bkgmatch.levels import MATCHED, LevelMatch, match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.paths import located
from bkgmatch.plots import PairPlots
from bkgmatch.record import check_tables, level_pair_table, level_table, save_tables

__all__ = ["match_files", "undo_files"]


def match_files(
    files: Sequence[Path],
    folder: Path,
    options: LevelMatchOptions,
    *,
    fixed: Sequence[Path] = (),
    table: Path | None = None,
    plots: Path | None = None,
    work: Work = HERE,
) -> LevelMatch:
    """
    Match images in files, and write copies from which their backgrounds are subtracted.

    Parameters
    ----------
    files : sequence of Path
        FITS images with a celestial WCS. They are not changed.
    folder : Path
        Where to write the copies, which keep the names; it is made if it does not exist. Images that could not be
        matched are copied as they are.
    options : LevelMatchOptions
        Options.
    fixed : sequence of Path
        Images that stay as they are, and that the others are matched to: some of the files, or others.
    table : Path, optional
        ECSV file of levels to write; that of the pairs is beside it.
    plots : Path, optional
        Folder for pictures.
    work : Work, optional
        How the work is done; by default in the calling thread, in memory.

    Returns
    -------
    LevelMatch
        The backgrounds.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file is no image, two have the same name, units differ, or a copy would replace an image, or the
        table something that is none. Nothing is written then.
    """
    if table and not located(table).parent.is_dir():
        raise FileNotFoundError(f"the folder of the table {table} does not exist; make it first")
    if table:
        check_tables(table)
    held = {located(path) for path in fixed}
    images = [FitsImage.open(path) for path in files]
    others = [FitsImage.open(path) for path in fixed if located(path) not in {located(file) for file in files}]
    unit = _common_unit([*images, *others])
    check_copies([image.path for image in images], folder)
    exposures = [image.exposure(is_fixed=located(image.path) in held) for image in images]
    exposures += [other.exposure(is_fixed=True) for other in others]
    watch = PairPlots(plots, unit).draw if plots else None
    match = match_levels(exposures, options, work=work, watch=watch)
    if table:
        save_tables(table, level_table(match, options, unit=unit), level_pair_table(match, unit=unit))
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        if match.status[i] == MATCHED:
            image.write(folder, match.plane(i), float(match.sigma[i]))
        else:
            image.copy(folder)
    return match


def undo_files(files: Sequence[Path], folder: Path) -> dict[Path, bool]:
    """
    Undo what `match_files` subtracted.

    Parameters
    ----------
    files : sequence of Path
        Matched images; they are not changed.
    folder : Path
        Where to write the results, which keep the names.

    Returns
    -------
    dict
        The files written, and whether a level was undone; the others are copies.

    Raises
    ------
    FileNotFoundError, ValueError
        As `match_files`.
    """
    images = [FitsImage.open(path) for path in files]
    check_copies([image.path for image in images], folder)
    folder.mkdir(parents=True, exist_ok=True)
    return dict(image.undo(folder) for image in images)


def _common_unit(images: Sequence[FitsImage]) -> str:
    """Return the unit of all images; ValueError if they differ."""
    named = [image for image in images if image.unit]
    for image in named:
        if not same_unit(image.unit, named[0].unit):
            raise ValueError(f"{image.path} has the unit {image.unit}, {named[0].path} {named[0].unit}; convert it")
    return named[0].unit if named else ""
