"""Parameter references where CRDS answers, defaults where it does not."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["OptionalCrds"]

log = logging.getLogger("stpipe.bkgmatch.crds")

_TIMEOUT = "CRDS_CLIENT_TIMEOUT_SECONDS"  # an hour by default


class OptionalCrds:
    """A step that asks CRDS for its parameters only where CRDS is set up, and never fails over them."""

    @classmethod
    def get_config_from_reference(cls, dataset: Any, disable: bool | None = None, crds_observatory: Any = None) -> Any:
        """
        Ask CRDS for the parameters of a step that runs by itself.

        Parameters
        ----------
        dataset : object
            Input of the step.
        disable : bool, optional
            Do not ask.
        crds_observatory : str, optional
            Observatory.

        Returns
        -------
        ConfigObj
            The parameters; none where CRDS is not set up or does not answer.
        """
        ask = super().get_config_from_reference  # type: ignore[misc]
        return cls._answer(lambda: ask(dataset, disable=disable, crds_observatory=crds_observatory))

    @classmethod
    def _get_config_from_parameters(cls, crds_parameters: dict, crds_observatory: str) -> Any:
        ask = super()._get_config_from_parameters  # type: ignore[misc]
        return cls._answer(lambda: ask(crds_parameters, crds_observatory))

    @classmethod
    def _answer(cls, ask: Callable[[], Any]) -> Any:
        if not _is_configured():
            log.info("CRDS is not set up (CRDS_PATH, CRDS_SERVER_URL): %s runs on its defaults", cls.__name__)
            return cls._empty_config()  # type: ignore[attr-defined]
        try:
            with _patience("60"):
                return ask()
        except (Exception, SystemExit) as error:  # crds ends the interpreter when its server is out of reach
            log.warning("CRDS gives no parameters for %s, which runs on its defaults: %s", cls.__name__, error)
            return cls._empty_config()  # type: ignore[attr-defined]


def _is_configured() -> bool:
    named = any(os.environ.get(name) for name in ("CRDS_PATH", "CRDS_SERVER_URL"))
    return named or Path("/grp/crds/cache").exists()


@contextmanager
def _patience(seconds: str) -> Iterator[None]:
    """Wait at most so long for a server that is silent, unless the user has set a limit."""
    if _TIMEOUT in os.environ:
        yield
        return
    os.environ[_TIMEOUT] = seconds
    try:
        yield
    finally:
        del os.environ[_TIMEOUT]
