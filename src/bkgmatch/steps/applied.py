"""Levels and planes of a saved table, subtracted from copies of exposures as the steps do it."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path

from astropy.io import fits
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.images import FitsImage, check_copies, is_jwst, naming, read_plane, write_copies, writing
from bkgmatch.planes import Plane
from bkgmatch.saved import SavedLevel, SavedLevels, subtracted_before
from bkgmatch.steps.inputs import read_file
from bkgmatch.steps.library import is_earlier_matched, stem
from bkgmatch.steps.models import LevelRecord
from bkgmatch.steps.plane_record import PlaneRecord, read_record

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
    check_copies(files, folder)
    copies = [_copy_of_model(file, saved) if is_jwst(file) else _copy_of_image(file, saved) for file in files]
    return list(write_copies(files, folder, copies))


def _copy_of_model(file: Path, saved: SavedLevels) -> Callable[[Path], object]:
    """Check an exposure, and return what writes its copy into a folder."""
    name = saved.name_of(file.name, stem)
    record = _record(saved, name, file)
    with read_file(file, datamodels.open) as model, naming(file):
        _check_model(model, file, name, saved)
        if isinstance(record, PlaneRecord):
            record.check(model)
            for plane in filter(None, (record.science, record.lyot)):
                _check_place(plane, file, model.meta.wcs, model.data.shape, saved)

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
    saved.check(str(file), file.name, unit=image.unit, is_matched=False)
    with naming(file), fits.open(file) as hdus:
        if read_plane(hdus[0].header, file):
            raise ValueError(subtracted_before(file))
        _check_place(plane, file, image.wcs, image.shape, saved)
    return partial(image.write, plane=plane, sigma=sigma)


def _check_place(plane: Plane, file: Path, wcs: Callable, shape: tuple[int, int], saved: SavedLevels) -> None:
    if any(plane.slope) and plane.is_far(wcs, shape):
        where = ", ".join(f"{degrees:.6g}" for degrees in plane.centre)
        raise ValueError(f"{file} lies far from ra, dec of its row in {saved.path} ({where}); correct them")


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
        raise ValueError(subtracted_before(file))
    is_matched = is_earlier_matched(model, is_sky=bool(saved.skymethod))
    saved.check(str(file), name, unit=model.meta.bunit_data or "", is_matched=is_matched)
