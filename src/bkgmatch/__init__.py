"""Match the backgrounds of overlapping JWST exposures."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__all__ = ["LevelMatchStep", "SkyMatchStep", "__version__"]

__version__ = version("bkgmatch")

_STEPS = {
    "LevelMatchStep": "bkgmatch.steps.level_match",
    "SkyMatchStep": "bkgmatch.steps.skymatch",
}


def __getattr__(name: str) -> Any:
    """Import a step when it is asked for: the core works without the JWST pipeline."""
    if name in _STEPS:
        return getattr(import_module(_STEPS[name]), name)
    raise AttributeError(f"module 'bkgmatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
