"""A step of a pipeline that runs on what other steps have made of its models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jwst.stpipe import Step
from jwst.stpipe.utilities import invariant_filename

__all__ = ["keep_names", "preceded"]


@contextmanager
def preceded(step: Step, function: Callable[[Any], Any]) -> Iterator[None]:
    """Within the context, ``step.run(models)`` runs on ``function(models)``."""
    run = step.run
    step.run = lambda models: run(function(models))
    try:
        yield
    finally:
        del step.run  # that of the class again


def keep_names(step: Step) -> None:
    """Let what a step of a pipeline saves not change the names of what follows, as jwst does with its own."""
    step.save_model = invariant_filename(partial(type(step).save_model, step))
