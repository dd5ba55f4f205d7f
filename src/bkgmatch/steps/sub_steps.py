"""Sub-steps of a pipeline: what happens before and after them, and what they save."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jwst.datamodels import ModelContainer
from jwst.stpipe import Step
from jwst.stpipe.utilities import invariant_filename
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.images import check_listed_once
from bkgmatch.steps.cards import show_status
from bkgmatch.steps.inputs import check_outputs, input_files

__all__ = ["preceded", "prepare_saving", "told_in_headers", "with_values"]


@contextmanager
def preceded(step: Step, function: Callable[[Any], Any]) -> Iterator[None]:
    """Within the context, ``step.run(models)`` runs on ``function(models)``."""
    run = step.run
    step.run = lambda models: run(function(models))
    try:
        yield
    finally:
        del step.run  # that of the class again


@contextmanager
def with_values(step: Step, **values: Any) -> Iterator[None]:
    """Within the context, parameters of a step have other values."""
    given = {name: getattr(step, name) for name in values}
    for name, value in values.items():
        setattr(step, name, value)
    try:
        yield
    finally:
        for name, value in given.items():
            setattr(step, name, value)


@contextmanager
def told_in_headers(step: Step) -> Iterator[None]:
    """Within the context, headers of the mosaic or the cubes that the step makes tell which of our steps have run."""
    process = step.process

    def process_and_tell(*args: Any) -> Any:
        result = process(*args)
        for model in result if isinstance(result, ModelContainer) else [result]:
            if isinstance(model, JwstDataModel):
                show_status(model)
        return result

    step.process = process_and_tell
    try:
        yield
    finally:
        del step.process  # that of the class again


def prepare_saving(step: Step, given: Any) -> None:
    """
    See to it that what a step of a pipeline saves changes no names of what follows, and replaces nothing that is given.

    Parameters
    ----------
    step : Step
        The step.
    given : object
        What the pipeline is given.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is listed twice, or the step cannot save, or would replace a file that is given, as `check_outputs`.
    """
    step.save_model = invariant_filename(partial(type(step).save_model, step))
    if not step.skip:
        files = input_files(given)
        check_listed_once(files)
        check_outputs(step, files, given)
