"""A step of a pipeline that runs on what other steps have made of its models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def keep_names(*steps: Step) -> None:
    """Let what steps of a pipeline save not change the names of what follows, as jwst does with its own."""
    for step in steps:
        step.save_model = invariant_filename(step.save_model)
