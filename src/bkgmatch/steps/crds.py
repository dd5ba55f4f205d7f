"""Parameter references where CRDS answers, defaults where it does not."""

import logging
import os
from pathlib import Path
from typing import Any

__all__ = ["OptionalCrds"]

log = logging.getLogger("stpipe.bkgmatch.crds")


def _is_configured() -> bool:
    named = any(os.environ.get(name) for name in ("CRDS_PATH", "CRDS_SERVER_URL"))
    return named or Path("/grp/crds/cache").exists()


class OptionalCrds:
    """A step that asks CRDS for its parameters only where CRDS is set up, and never fails over them."""

    @classmethod
    def _get_config_from_parameters(cls, crds_parameters: dict, crds_observatory: str) -> Any:
        if not _is_configured():
            log.info("CRDS is not set up (CRDS_PATH, CRDS_SERVER_URL): %s runs on its defaults", cls.__name__)
            return cls._empty_config()  # type: ignore[attr-defined]
        try:
            return super()._get_config_from_parameters(crds_parameters, crds_observatory)  # type: ignore[misc]
        except (Exception, SystemExit) as error:  # crds ends the interpreter when its server is out of reach
            log.warning("CRDS gives no parameters for %s, which runs on its defaults: %s", cls.__name__, error)
            return cls._empty_config()  # type: ignore[attr-defined]
