"""Match FITS images in files, of any telescope: open, match, write corrected copies and tables."""

from collections.abc import Sequence
from pathlib import Path

from bkgmatch.execution import HERE, Work
from bkgmatch.images import FitsImage, check_copies, common_unit
from bkgmatch.levels import FIXED, MATCHED, LevelMatch, match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.paths import located
from bkgmatch.plots import PairPlots, check_plots
from bkgmatch.record import check_tables, level_pair_table, level_table, save_tables
from bkgmatch.written import whole_files

__all__ = ["match_files"]


def match_files(
    files: Sequence[Path],
    folder: Path,
    options: LevelMatchOptions,
    *,
    fixed: Sequence[Path] = (),
    table: Path | None = None,
    plots: Path | None = None,
    work: Work = HERE,
) -> tuple[LevelMatch, str]:
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
    match : LevelMatch
        The backgrounds.
    unit : str
        Their unit.

    Raises
    ------
    FileNotFoundError
        If a file, or the folder of the table, does not exist.
    ValueError
        If a file is no image, two have the same name, units differ, a copy would replace an image, or the table
        something that is none. Nothing is written then.
    NotWritten
        If the copies, or the table after them, cannot be written.
    """
    if table:
        check_tables(table)
    if plots:
        check_plots(plots)
    held = {located(path) for path in fixed}
    images = [FitsImage.open(path) for path in files]
    others = [FitsImage.open(path) for path in fixed if located(path) not in {located(file) for file in files}]
    unit = common_unit([(str(image.path), image.unit) for image in (*images, *others)])
    check_copies([image.path for image in images], folder, used=[other.path for other in others])
    exposures = [image.exposure(is_fixed=located(image.path) in held) for image in images]
    exposures += [other.exposure(is_fixed=True) for other in others]
    watch = PairPlots(plots, unit).draw if plots else None
    match = match_levels(exposures, options, work=work, watch=watch)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as parts:
        for i, image in enumerate(images):
            if match.status[i] in (MATCHED, FIXED):
                image.write(parts, match.plane(i), float(match.sigma[i]))
            else:
                image.copy(parts)
    if table:
        made_with = {"fixed": list(map(str, fixed)) or None, "relative": any(image.is_matched for image in images)}
        levels = level_table(match, options, unit=unit, **made_with)
        save_tables(table, levels, level_pair_table(match, unit=unit))
    return match, unit
