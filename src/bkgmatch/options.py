"""Options of the steps: one frozen dataclass each, checked once."""

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["METHOD_SYNONYMS", "SkyMatchOptions"]

SkyMethod = Literal["local", "global", "match", "global+match"]
SkyStat = Literal["mean", "median", "midpt", "mode"]
Overlap = Literal["good", "footprint", "exact"]
LevelPer = Literal["exposure", "detector"]
Scope = Literal["global", "component"]
Weights = Literal["variance", "npix", "robust"]

METHOD_SYNONYMS = {
    "localmin": "local",
    "globalmin": "global",
    "globalmin+match": "global+match",
}
"""Names of the classic ``astrodrizzle`` methods and their present equivalents."""

ZERO_POINT_POLICIES = ("auto", "lowest", "highest", "mean", "background")


@dataclass(frozen=True)
class SkyMatchOptions:
    """
    How sky levels are measured and matched.

    Parameters
    ----------
    skymethod : {"local", "global", "match", "global+match"}
        ``local``: the sky of each group of exposures on its own. ``global``: the lowest of these, for all.
        ``match``: the levels that make overlapping exposures agree. ``global+match``: ``match``, then the
        lowest sky that remains is added to all.
    match_down : bool
        With ``zero_point="auto"``: the lowest exposure keeps its sky (True) or the highest does (False).
    skystat : {"mean", "median", "midpt", "mode"}
        Statistic of the clipped pixels.
    lower, upper : float or None
        Limits of usable pixel values, in units of the data.
    nclip : int
        Number of clipping iterations.
    lsigma, usigma : float
        Clipping limits below and above the mean, in standard deviations.
    binwidth : float
        Bin width of ``midpt``, and a fifth of the kernel width of ``mode``, in standard deviations.
    stepsize : int or None
        Largest separation of the vertices of an outline, in pixels; None: a sixteenth of the longer side.
    overlap : {"good", "footprint", "exact"}
        ``good``: outlines follow the good pixels, with holes, so that both exposures of a pair are measured
        over the same sky. ``footprint``: outlines of the whole detectors. ``exact``: pixel by pixel (slow).
    level_per : {"exposure", "detector"}
        ``exposure``: the members of a group share one level. ``detector``: each has its own.
    zero_point : str
        ``auto``, ``lowest``, ``highest``, ``mean``, ``background``, or the name of an exposure. Only for
        ``skymethod="match"``.
    zero_point_scope : {"global", "component"}
        One zero point for all, or one for each set of connected exposures.
    weights : {"variance", "npix", "robust"}
        Weights of the pairs: inverse variance of the difference; number of pixels; inverse variance, less
        for pairs that do not agree with the others.
    """

    skymethod: SkyMethod = "match"
    match_down: bool = True
    skystat: SkyStat = "mode"
    lower: float | None = None
    upper: float | None = None
    nclip: int = 5
    lsigma: float = 4.0
    usigma: float = 4.0
    binwidth: float = 0.1
    stepsize: int | None = None
    overlap: Overlap = "good"
    level_per: LevelPer = "exposure"
    zero_point: str = "auto"
    zero_point_scope: Scope = "global"
    weights: Weights = "variance"

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_statistic(self)
        if self.stepsize is not None and self.stepsize < 1:
            raise ValueError(f"stepsize must be at least 1 pixel, got {self.stepsize}")
        if self.zero_point != "auto" and self.skymethod != "match":
            raise ValueError(
                f"zero_point={self.zero_point!r} has no meaning with skymethod={self.skymethod!r}; "
                "leave it at 'auto' or use skymethod='match'"
            )

    @property
    def matches(self) -> bool:
        """Whether overlaps are compared."""
        return "match" in self.skymethod

    @property
    def is_global(self) -> bool:
        """Whether one lowest sky is taken over all exposures."""
        return "global" in self.skymethod


def _check_choices(options: SkyMatchOptions) -> None:
    choices = {
        "skymethod": SkyMethod,
        "skystat": SkyStat,
        "overlap": Overlap,
        "level_per": LevelPer,
        "zero_point_scope": Scope,
        "weights": Weights,
    }
    for name, literal in choices.items():
        allowed = get_args(literal)
        if getattr(options, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(options, name)!r}")


def _check_statistic(options: SkyMatchOptions) -> None:
    if options.nclip < 0:
        raise ValueError(f"nclip must not be negative, got {options.nclip}")
    for name in ("lsigma", "usigma", "binwidth"):
        if not getattr(options, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(options, name)}")
    if options.lower is not None and options.upper is not None and options.lower > options.upper:
        raise ValueError(f"lower ({options.lower}) is above upper ({options.upper})")
