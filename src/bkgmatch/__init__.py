"""Match the backgrounds of overlapping JWST exposures."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__all__ = [
    "Image3Pipeline",
    "ImageForImageStep",
    "LevelMatchStep",
    "MRSIMatchStep",
    "SkyMatchStep",
    "Spec3Pipeline",
    "__version__",
    "apply_background_2d",
]

__version__ = version("bkgmatch")

_LAZY = {
    "Image3Pipeline": "bkgmatch.steps.image3",
    "ImageForImageStep": "bkgmatch.steps.image_for_image",
    "LevelMatchStep": "bkgmatch.steps.level_match",
    "MRSIMatchStep": "bkgmatch.steps.mrs_imatch",
    "SkyMatchStep": "bkgmatch.steps.skymatch",
    "Spec3Pipeline": "bkgmatch.steps.spec3",
    "apply_background_2d": "bkgmatch.steps.polynomial_record",
}


def __getattr__(name: str) -> Any:
    """Import what needs the JWST pipeline when it is asked for: the core works without it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bkgmatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
