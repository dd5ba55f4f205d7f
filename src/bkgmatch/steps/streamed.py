"""Libraries in files, of which no more than what is borrowed is in memory."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jwst.datamodels import ModelLibrary
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.stored import temporary_file
from bkgmatch.workspace import WorkFolder

__all__ = ["StreamedLibrary", "quick_collection"]


class StreamedLibrary(ModelLibrary):
    """
    A library whose models are opened when they are borrowed; those that are changed wait in a temporary folder.

    Closed models refer to themselves in cycles (113 MB each for 2048 x 2048 pixels), and half a dozen of them would
    wait for the garbage collector: it runs before the next is opened.

    Parameters
    ----------
    init : str, Path or dict
        Association.
    temp_dir : str or None
        Where the folder is made; by default that of the system. It is removed with the library.
    **settings
        Others of `ModelLibrary`.
    """

    def __init__(self, init: Any, *, temp_dir: str | None, **settings: Any) -> None:
        self._folder = WorkFolder(temp_dir)
        super().__init__(init, on_disk=True, temp_directory=self._folder.path, **settings)

    def only(self, kept: Sequence[int]) -> "StreamedLibrary":
        """
        Make a library of some of the models.

        Parameters
        ----------
        kept : sequence of int
            Which.

        Returns
        -------
        StreamedLibrary
            Their copies. This library must be open, and stays as it is.
        """
        product = self._asn["products"][0]
        members = [product["members"][index] | {"expname": self._copied(index)} for index in kept]
        association = self._asn | {"products": [product | {"members": members}]}
        other = StreamedLibrary(association, temp_dir=str(self._folder.path.parent))
        other._source = self  # whose folder has the copies
        return other

    def _copied(self, index: int) -> str:
        """Copy a model as it is now; return the path."""
        model = self.borrow(index)
        folder = self._folder.path / f"copy{index}"
        folder.mkdir()
        path = model.save(folder / model.meta.filename)
        self.shelve(model, index, modify=False)
        return str(path)

    def borrow(self, index: int) -> JwstDataModel:
        """Open a model."""
        gc.collect()
        return super().borrow(index)

    def shelve(self, model: JwstDataModel, index: int | None = None, modify: bool = True) -> None:
        """Put a model back; if it is changed, it goes to a temporary file."""
        with temporary_file(self._folder.path / "any"):
            super().shelve(model, index, modify)


@contextmanager
def quick_collection() -> Iterator[None]:
    """Spare the garbage collector what was there before, so that it takes hundredths of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
