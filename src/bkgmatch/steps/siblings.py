"""Rate exposures, and the calibrated exposures beside them that have their WCS."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.images import FitsImage
from bkgmatch.steps.library import stem

__all__ = ["Siblings"]

log = logging.getLogger("stpipe.bkgmatch.siblings")


class Siblings:
    """
    Where the WCS of exposures that have none may be found.

    Parameters
    ----------
    files : sequence of Path
        Files that were given: exposures, and other members of their association.
    folder : Path
        Where to look for others.
    """

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        self._files = {stem(file.name): file for file in files if file.stem.endswith("_cal")}
        self._folders = list(dict.fromkeys([*(file.parent for file in files), folder]))

    def wcs_of(self, model: JwstDataModel) -> Callable:
        """
        Find the WCS of an exposure in its calibrated sibling, ``*_cal.fits``.

        Parameters
        ----------
        model : JwstDataModel
            Exposure without a WCS.

        Returns
        -------
        callable
            ``wcs(x, y) -> (ra, dec)``.

        Raises
        ------
        ValueError
            If there is no sibling, or it has another shape.
        """
        root = stem(model.meta.filename or "")
        beside = [path for folder in self._folders if (path := folder / f"{root}_cal.fits").exists()]
        found = self._files.get(root) or next(iter(beside), None)
        if found is None:
            raise ValueError(
                f"{model.meta.filename}: there is no WCS, and no {root}_cal.fits beside it or in the association; "
                "put it there, or run the assign_wcs step first"
            )
        sibling = FitsImage.open(found)
        if sibling.shape != model.data.shape:
            raise ValueError(
                f"{model.meta.filename} has the shape {model.data.shape}, its sibling {found} {sibling.shape}"
            )
        log.info("%s has no WCS: that of %s is used", model.meta.filename, found.name)
        return sibling.wcs
