"""Parameter references where CRDS answers, defaults where it does not."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bkgmatch.reasons import reason

__all__ = ["OptionalCrds"]

log = logging.getLogger("stpipe.bkgmatch.crds")

_TIMEOUT = "CRDS_CLIENT_TIMEOUT_SECONDS"  # an hour by default


class OptionalCrds:
    """A step that asks CRDS for its parameters only where CRDS is set up, and never fails over them."""

    @classmethod
    def _get_crds_parameters(cls, dataset: Any) -> tuple[dict, str]:
        if not _is_configured():
            return {}, "jwst"
        ask = super()._get_crds_parameters  # type: ignore[misc]
        return _answer(partial(ask, dataset), ({}, "jwst"), cls.__name__, FileNotFoundError)

    @classmethod
    def _get_config_from_parameters(cls, crds_parameters: dict, crds_observatory: str) -> Any:
        empty = cls._empty_config()  # type: ignore[attr-defined]
        if not _is_configured():
            log.info("CRDS is not set up (CRDS_PATH, CRDS_SERVER_URL): %s runs on its defaults", cls.__name__)
            return empty
        ask = super()._get_config_from_parameters  # type: ignore[misc]
        return _answer(partial(ask, crds_parameters, crds_observatory), empty, cls.__name__)


def _answer(ask: Callable[[], Any], default: Any, step: str, *raised: type[Exception]) -> Any:
    try:
        with _patience("60"):
            return ask()
    except raised:
        raise
    except (Exception, SystemExit) as error:  # crds ends the interpreter when its server is out of reach
        log.warning("CRDS gives no parameters for %s, which runs on its defaults: %s", step, reason(error))
        return default


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
