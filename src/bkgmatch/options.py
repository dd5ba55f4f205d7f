"""Options of the steps: one frozen dataclass each, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal, get_args

from bkgmatch.polynomials import degrees

__all__ = ["METHOD_SYNONYMS", "ImageForImageOptions", "LevelMatchOptions", "MRSIMatchOptions", "SkyMatchOptions"]

SkyMethod = Literal["local", "global", "match", "global+match"]
SkyStat = Literal["mean", "median", "midpt", "mode", "difference"]
Overlap = Literal["good", "footprint", "exact"]
LevelPer = Literal["exposure", "detector"]
Scope = Literal["global", "component"]
Weights = Literal["variance", "npix", "robust"]

FitType = Literal["level", "level+slope", "level+match"]
ReprojectFunc = Literal["interp", "exact", "adaptive"]
WeightMethod = Literal["ml", "equal", "npix", "rms"]
Passes = Literal["sequence", "joint"]

PolynomialWeights = Literal["ml", "pairs"]
Clip = Literal["pairs", "image"]

MergeMethod = Literal["mean", "median"]
Scale = Literal["additive", "none", "multiplicative"]

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
    skystat : {"mean", "median", "midpt", "mode", "difference"}
        Statistic of the clipped pixels. ``difference``: overlaps are compared pixel by pixel, which nebulae do not
        disturb; the sky of a whole exposure is its median.
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
        _check_choices(
            self,
            skymethod=SkyMethod,
            skystat=SkyStat,
            overlap=Overlap,
            level_per=LevelPer,
            zero_point_scope=Scope,
            weights=Weights,
        )
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
    def by_differences(self) -> bool:
        """Whether overlaps are compared pixel by pixel."""
        return self.matches and self.skystat == "difference"

    @property
    def is_global(self) -> bool:
        """Whether one lowest sky is taken over all exposures."""
        return "global" in self.skymethod


@dataclass(frozen=True)
class LevelMatchOptions:
    """
    How levels and planes are measured and matched.

    Parameters
    ----------
    fit_type_dithers, fit_type_recombine_lyot, fit_type_combine_nircam_short, fit_type_mosaic_tiles : str
        ``level``: a constant; ``level+slope`` (or ``level+match``): a plane. For the dithers of a tile, for the field
        of the Lyot coronagraph against the imager's, for the chips of a NIRCam module, and for tiles.
    passes : {"sequence", "joint"}
        One pass after the other, or all exposures at once: then ``fit_type_dithers`` is for all.
    reference : str
        Whose background stays: ``auto``, ``background``, ``flattest``, ``most_overlaps``, ``mean``, or the name of an
        exposure, which stands for its tile.
    do_local_subtraction : bool
        Whether the background of the reference tile, the median without its sources, becomes zero.
    weight_method : {"ml", "equal", "npix", "rms"}
        Weights of the pairs: maximum likelihood; all equal; by number of pixels; by inverse square of the rms.
    do_sigma_clip : bool
        Whether sources are masked before pairs are compared.
    sigma : float
        Threshold of sources, and of clipping, in standard deviations.
    npixels : int
        Least number of connected pixels of a source.
    dilate_size : int
        Side of the square that source masks are grown by, in pixels.
    max_iters : int
        Most iterations of clipping.
    min_area_percent : float
        Least number of common pixels, as a fraction of the mean over the pairs.
    min_linear_frac : float
        Least extent of the common pixels along one axis, as a fraction of that of either exposure.
    rms_sig_limit : float
        Most rms of a pair, in standard deviations above the mean rms of pairs; 0: no limit.
    reproject_func : {"interp", "exact", "adaptive"}
        Bilinear interpolation; or ``reproject_exact`` or ``reproject_adaptive`` of the package reproject.
    pixel_scale_ratio : float
        Side of a common cell, in pixels.
    """

    fit_type_dithers: FitType = "level"
    fit_type_recombine_lyot: FitType = "level"
    fit_type_combine_nircam_short: FitType = "level"
    fit_type_mosaic_tiles: FitType = "level"
    passes: Passes = "sequence"
    reference: str = "auto"
    do_local_subtraction: bool = True
    weight_method: WeightMethod = "ml"
    do_sigma_clip: bool = False
    sigma: float = 3.0
    npixels: int = 3
    dilate_size: int = 7
    max_iters: int = 20
    min_area_percent: float = 0.002
    min_linear_frac: float = 0.0
    rms_sig_limit: float = 0.0
    reproject_func: ReprojectFunc = "interp"
    pixel_scale_ratio: float = 1.0

    def __post_init__(self) -> None:
        fits = ("dithers", "recombine_lyot", "combine_nircam_short", "mosaic_tiles")
        _check_choices(
            self,
            **{f"fit_type_{name}": FitType for name in fits},
            passes=Passes,
            weight_method=WeightMethod,
            reproject_func=ReprojectFunc,
        )
        _check_positive(self, "sigma", "pixel_scale_ratio")
        _check_between(self, 0.01, 50, "pixel_scale_ratio")
        _check_not_negative(
            self, "npixels", "dilate_size", "max_iters", "min_area_percent", "min_linear_frac", "rms_sig_limit"
        )


@dataclass(frozen=True)
class MRSIMatchOptions:
    """
    How polynomial backgrounds of spectral exposures are measured and matched.

    Parameters
    ----------
    bkg_degree : int or sequence of int
        Degree of the polynomial: one for all coordinates, or those of RA, Dec and wavelength.
    weights : {"ml", "pairs"}
        Weights of the pairs of exposures in a voxel: maximum likelihood; or ``1 / (sigma_n^2 + sigma_m^2)`` of each
        pair, as jwst's step had.
    clip : {"pairs", "image"}
        What is clipped: voxels of exposures that do not agree with the others; or the values in each plane of
        wavelength of each exposure, as jwst's step did.
    sigma : float
        Limit of clipping, in standard deviations.
    maxiters : int
        Most iterations of clipping; 0: nothing is clipped.
    cell_size : float
        Side of a voxel on the sky, in widths of a slice.
    wavelength_cells : int
        Number of voxels over the range of wavelengths.
    """

    bkg_degree: int | Sequence[int] = 1
    weights: PolynomialWeights = "ml"
    clip: Clip = "pairs"
    sigma: float = 3.0
    maxiters: int = 10
    cell_size: float = 1.25
    wavelength_cells: int = 32

    def __post_init__(self) -> None:
        degrees(self.bkg_degree, 3, "bkg_degree")
        _check_choices(self, weights=PolynomialWeights, clip=Clip)
        _check_positive(self, "sigma", "cell_size")
        _check_between(self, 0.01, 1000, "cell_size")
        _check_not_negative(self, "maxiters")
        _check_positive(self, "wavelength_cells")

    @property
    def degree(self) -> tuple[int, ...]:
        """Degree in RA, Dec and wavelength."""
        return degrees(self.bkg_degree, 3)


@dataclass(frozen=True)
class ImageForImageOptions:
    """
    How the background image of each exposure is made of the others.

    Parameters
    ----------
    method : {"mean", "median"}
        Statistic of each pixel: mean of what is not clipped, or median.
    scale : {"additive", "none", "multiplicative"}
        What is removed from each exposure before merging, and put back after: its level; nothing; or a factor.
    sigma : float
        Limit of clipping about the median, in standard deviations of a pixel.
    max_dt : float or None
        Longest time between an exposure and those that serve it, in days; None: any.
    min_offset : float
        Least distance on the sky between an exposure and those that serve it, in arcseconds.
    min_members : int
        Fewest exposures that make a background.
    snr_threshold : float
        Threshold of sources, in standard deviations of the mosaic.
    npixels : int
        Least number of connected pixels of a source.
    kernel_fwhm : float
        Full width at half maximum of the Gaussian that the mosaic is smoothed by before sources are found, in pixels;
        0: not smoothed.
    bkg_boxsize : int
        Side of the boxes in which the background of a given mosaic is measured, in its pixels; 0: one level.
    grow : float
        Masks of sources grow until the light left outside changes a background by less than this, in standard
        deviations of the background; 0: they do not grow.
    dilate_size : int
        Masks of sources grow by at least half of this, all around, in pixels.
    maxiters : int
        Most times that sources are found, each time in the mosaic of the exposures less the backgrounds known by then.
    """

    method: MergeMethod = "mean"
    scale: Scale = "additive"
    sigma: float = 4.0
    max_dt: float | None = 7.0
    min_offset: float = 1.0
    min_members: int = 2
    snr_threshold: float = 3.0
    npixels: int = 5
    kernel_fwhm: float = 2.0
    bkg_boxsize: int = 64
    grow: float = 0.1
    dilate_size: int = 0
    maxiters: int = 3

    def __post_init__(self) -> None:
        _check_choices(self, method=MergeMethod, scale=Scale)
        _check_positive(self, "sigma", "snr_threshold")
        _check_not_negative(self, "min_offset", "kernel_fwhm", "bkg_boxsize", "grow", "dilate_size")
        _check_between(self, 0, 1000, "kernel_fwhm")
        for name in ("min_members", "npixels", "maxiters"):
            if not _number(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_dt is not None:
            _check_not_negative(self, "max_dt")


def _check_choices(options: object, **choices: object) -> None:
    for name, literal in choices.items():
        allowed = get_args(literal)
        if getattr(options, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(options, name)!r}")


def _number(options: object, name: str) -> float:
    """Value of an option; NaN, which no check lets through, for None."""
    value = getattr(options, name)
    return nan if value is None else value


def _check_between(options: object, least: float, most: float, *names: str) -> None:
    """Raise ValueError for numbers with which arrays would have no end, or no elements."""
    for name in names:
        if not least <= _number(options, name) <= most:
            raise ValueError(f"{name} must be between {least:g} and {most:g}, got {getattr(options, name)}")


def _check_positive(options: object, *names: str) -> None:
    for name in names:
        if not _number(options, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(options, name)}")


def _check_not_negative(options: object, *names: str) -> None:
    for name in names:
        if not _number(options, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(options, name)}")


def _check_statistic(options: SkyMatchOptions) -> None:
    _check_not_negative(options, "nclip")
    _check_positive(options, "lsigma", "usigma", "binwidth")
    _check_between(options, 1e-6, 1e6, "binwidth")
    for name in ("lower", "upper"):
        if isnan(getattr(options, name) or 0):
            raise ValueError(f"{name} must be a number or None, got nan")
    if options.lower is not None and options.upper is not None and options.lower > options.upper:
        raise ValueError(f"lower ({options.lower}) is above upper ({options.upper})")
