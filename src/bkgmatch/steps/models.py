"""Levels in JWST models: record, subtract, undo."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.apply import add_variance, blank_value, remove_variance, shift
from bkgmatch.images import FitsImage, check_copies, is_jwst, naming, write_copies, writing
from bkgmatch.steps.background_files import find_background, undo_background
from bkgmatch.steps.cards import card, drop_cards, put_card
from bkgmatch.steps.inputs import read_file
from bkgmatch.steps.library import is_level_recorded
from bkgmatch.steps.plane_record import read_record, undo_plane
from bkgmatch.steps.polynomial_record import undo_polynomials

__all__ = ["LevelRecord", "skip", "undo", "undo_files"]

_SIGMA_CARD = "BKGSIGMA"


@dataclass(frozen=True)
class LevelRecord:
    """
    A level as jwst's skymatch records it.

    Parameters
    ----------
    level : float
        Sky level of the original data (``BKGLEVEL``).
    method : str
        Sky method (``BKGMETH``).
    subtract : bool
        Whether the level is subtracted (``BKGSUB``).
    previous : float
        Part of the level that was subtracted before.
    sigma : float, optional
        Standard error of the level, to be added to ERR and, as variance, to VAR_RNOISE.
    """

    level: float
    method: str
    subtract: bool
    previous: float = 0.0
    sigma: float | None = None

    def apply(self, model: JwstDataModel) -> None:
        """Write the level to a model, and subtract it if asked."""
        background = model.meta.background
        background.method, background.level, background.subtracted = self.method, self.level, self.subtract
        if self.subtract:
            then, now = (blank_value(model.data.dtype, level) for level in (self.previous, self.level))
            data = shift(model.data, self.previous - self.level)
            model.data = np.where(model.data == then, now, data)  # without a rounding, for undo
            if self.sigma is not None:
                _add_errors(model, self.sigma)
        model.meta.cal_step.skymatch = "COMPLETE"
        verb = "subtracted" if self.subtract else "recorded"
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} {verb} the sky level {self.level:.8g}")


def skip(model: JwstDataModel) -> None:
    """Mark a model that could not be matched, unless it was before."""
    if model.meta.background.level is None:
        model.meta.cal_step.skymatch = "SKIPPED"


def undo(model: JwstDataModel, folder: Path = Path()) -> bool:
    """
    Give back a model as it was before its backgrounds were recorded or subtracted.

    Parameters
    ----------
    model : JwstDataModel
        Model; it is changed. The records of all matching are removed.
    folder : Path
        Folder of the background image, if ImageForImageStep has subtracted one.

    Returns
    -------
    bool
        False if no background was recorded.

    Raises
    ------
    ValueError
        If the background image is not there, or a part of a record is lost.
    """
    # Whatever came first: planes alone leave blank pixels as they are, which are zero again when all else is undone.
    undone = [undo_background(model, folder), undo_polynomials(model), _undo_level(model), undo_plane(model)]
    return any(undone)


def _undo_level(model: JwstDataModel) -> bool:
    background = model.meta.background
    model.meta.cal_step.skymatch = None
    if not is_level_recorded(model, model.meta.filename):
        return False
    if background.subtracted:
        was_zero = model.data == blank_value(model.data.dtype, background.level)
        model.data = np.where(was_zero, model.data.dtype.type(0), shift(model.data, background.level))
        model.add_history_entry(f"bkgmatch {version('bkgmatch')} added the sky level {background.level:.8g} back")
        sigma = card(model, _SIGMA_CARD)
        if sigma is not None:
            _remove_errors(model, float(sigma))
    background.level = background.subtracted = background.method = None
    return True


def undo_files(files: Sequence[Path], folder: Path) -> dict[Path, bool]:
    """
    Undo the levels in files.

    Parameters
    ----------
    files : sequence of Path
        Matched JWST exposures, and images that ``bkgmatch level`` has matched; they are not changed.
    folder : Path
        Folder for the results, which keep the names of the files.

    Returns
    -------
    dict
        The files written, and whether a level was undone; the others are copies.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file is no exposure, a part of a record is lost, a background image is not beside it or is another's, or a
        result would replace its input. Nothing is written then.
    """
    check_copies(files, folder)
    writers = [_undo_model(file) if is_jwst(file) else _undo_image(file) for file in files]
    return write_copies(files, folder, writers)


def _undo_model(file: Path) -> Callable[[Path], bool]:
    """Check an exposure, and return what writes its copy into a folder."""
    with _open_image(file) as model, naming(file):
        if "COMPLETE" in (model.meta.cal_step.resample, model.meta.cal_step.cube_build):
            raise ValueError(f"{file} is a mosaic or a cube; give the exposures that it was made of")
        _check_records(model, file.parent)

    def write(folder: Path) -> bool:
        with _open_image(file) as model:
            with naming(file):
                undone = undo(model, file.parent)
            with writing(file):
                model.save(folder / file.name)
        return undone

    return write


def _undo_image(file: Path) -> Callable[[Path], bool]:
    image = FitsImage.open(file)
    return lambda folder: image.undo(folder)[1]


def _check_records(model: JwstDataModel, folder: Path) -> None:
    """Raise ValueError if a part of what is to be undone is lost."""
    find_background(model, folder)
    planes = read_record(model)
    if planes and planes.subtracted:
        planes.check(model)
    if not len(model.meta.background.polynomial_info):
        is_level_recorded(model, model.meta.filename)


def _open_image(file: Path) -> JwstDataModel:
    if file.suffix != ".fits":
        raise ValueError(
            f"{file} is not a FITS file; give matched exposures (*_skymatch.fits, *_levelmatch.fits, *_mrsimatch.fits, "
            "*_i4i.fits)"
        )
    return read_file(file, datamodels.open)


def _add_errors(model: JwstDataModel, sigma: float) -> None:
    earlier = card(model, _SIGMA_CARD)
    if earlier is not None:
        _remove_errors(model, float(earlier))
    _change_errors(model, sigma, add_variance)
    put_card(model, _SIGMA_CARD, float(sigma), "error of BKGLEVEL, added to ERR and VAR_RNOISE")


def _remove_errors(model: JwstDataModel, sigma: float) -> None:
    _change_errors(model, sigma, remove_variance)
    drop_cards(model, _SIGMA_CARD)


def _change_errors(model: JwstDataModel, sigma: float, change: Callable) -> None:
    if getattr(model, "err", None) is not None:
        model.err = change(model.err, sigma)
    if getattr(model, "var_rnoise", None) is not None:
        model.var_rnoise = np.square(change(np.sqrt(model.var_rnoise), sigma))
