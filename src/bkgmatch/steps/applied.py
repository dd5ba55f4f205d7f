"""Levels and planes of a saved table, subtracted from copies of exposures as the steps do it."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path

from astropy.io import fits
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.images import FitsImage, check_copies, is_jwst, naming, read_plane, same_unit, writing
from bkgmatch.paths import is_there
from bkgmatch.saved import SavedLevel, SavedLevels
from bkgmatch.steps.inputs import read_file
from bkgmatch.steps.library import is_earlier_matched, stem, without_suffix
from bkgmatch.steps.models import LevelRecord
from bkgmatch.steps.plane_record import PlaneRecord, read_record
from bkgmatch.written import whole_files

__all__ = ["apply_files"]


def apply_files(saved: SavedLevels, files: Sequence[Path], folder: Path) -> list[Path]:
    """
    Subtract the levels or planes of a table from copies of exposures.

    Parameters
    ----------
    saved : SavedLevels
        The table.
    files : sequence of Path
        JWST exposures; with a table of planes FITS images of any telescope, too. They are not changed.
    folder : Path
        Folder for the copies, which keep the names of the files; it is made if it does not exist.

    Returns
    -------
    list of Path
        The copies. What is recorded in them, and what ``bkgmatch undo`` takes back, is the same as by the step.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If an exposure is not in the table, or has no level there or another unit, if a background has been subtracted
        from it, or a copy would replace it. Nothing is written then.
    """
    for file in files:
        if not is_there(file):
            raise FileNotFoundError(f"{file} does not exist")
    check_copies(files, folder)
    copies = [_copy_of_model(file, saved) if is_jwst(file) else _copy_of_image(file, saved) for file in files]
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as parts:
        for copy in copies:
            copy(parts)
    return [folder / file.name for file in files]


def _copy_of_model(file: Path, saved: SavedLevels) -> Callable[[Path], None]:
    """Check an exposure, and return what writes its copy into a folder."""
    name = saved.name_of(file.name, stem)
    record = _record(saved, name, file)
    with read_file(file, datamodels.open) as model, naming(file):
        _check_model(model, file, name, saved)
        _check_unit(model.meta.bunit_data or "", file, saved)
        if isinstance(record, PlaneRecord) and any(record.science.slope) and model.meta.wcs is None:
            raise ValueError(f"{file} has no WCS; run the assign_wcs step first")

    def write(folder: Path) -> None:
        with read_file(file, datamodels.open) as model:
            with naming(file):
                record.apply(model)
            with writing(file):
                model.save(folder / file.name)

    return write


def _record(saved: SavedLevels, name: str, file: Path) -> LevelRecord | PlaneRecord:
    """Record of what is subtracted; MIRI's Lyot field may have a row of its own."""
    plane, sigma, _ = _known(saved, name, file)
    if saved.skymethod:
        return LevelRecord(plane.level, saved.skymethod, subtract=True)
    lyot = saved.rows.get(f"{name}[lyot]")
    return PlaneRecord(plane, lyot.plane if lyot and isfinite(lyot.plane.level) else None, sigma)


def _copy_of_image(file: Path, saved: SavedLevels) -> Callable[[Path], object]:
    image = FitsImage.open(file)
    if saved.skymethod:
        raise ValueError(f"{file} is no JWST exposure; to those only tables of 'bkgmatch level' can be applied")
    plane, sigma, _ = _known(saved, saved.name_of(file.name, str), file)
    _check_unit(image.unit, file, saved)
    with naming(file), fits.open(file) as hdus:
        if read_plane(hdus[0].header, file):
            raise ValueError(_twice(file))
    return partial(image.write, plane=plane, sigma=sigma)


def _known(saved: SavedLevels, name: str, file: Path) -> SavedLevel:
    level = saved.rows[name]
    if not isfinite(level.plane.level):
        raise ValueError(f"{file} has no level in {saved.path} ({level.status}); leave it out")
    return level


def _check_model(model: JwstDataModel, file: Path, name: str, saved: SavedLevels) -> None:
    if getattr(model, "data", None) is None or model.data.ndim != 2:
        raise ValueError(f"{file}: 2-D images are needed, this is a {type(model).__name__}; leave it out")
    if "COMPLETE" in (model.meta.cal_step.resample, model.meta.cal_step.cube_build):
        raise ValueError(f"{file} is a mosaic or a cube; give the exposures that it was made of")
    planes = read_record(model)
    if model.meta.background.subtracted if saved.skymethod else planes and planes.subtracted:
        raise ValueError(_twice(file))
    if name != file.name and without_suffix(Path(name).stem) != Path(name).stem:
        raise ValueError(f"{file}: the levels are those of {name}, another step's result; give that file")
    is_relative = is_earlier_matched(model, is_sky=bool(saved.skymethod))
    if is_relative and not saved.is_relative:
        raise ValueError(_twice(file))
    if saved.is_relative and not (is_relative and name == file.name):
        raise ValueError(
            f"{file}: the levels of {saved.path} are relative to earlier ones; give the files that were matched"
        )


def _twice(file: Path) -> str:
    return f"a background has been subtracted from {file}; give the exposure as it was ('bkgmatch undo {file}')"


def _check_unit(unit: str, file: Path, saved: SavedLevels) -> None:
    if not same_unit(unit, saved.unit):
        raise ValueError(
            f"{file} has the unit {unit}, the table {saved.path} {saved.unit}; convert it, or match it again"
        )
