"""The names and signatures of ``stcal.skymatch`` on the core of bkgmatch.

Code written for ``stcal.skymatch`` runs when it imports from here instead.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import shapely

from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.footprints import Footprint, footprint, outlines_in_plane, solid_angle
from bkgmatch.match import match_skies
from bkgmatch.options import SkyMatchOptions
from bkgmatch.overlaps import overlap_map
from bkgmatch.skystats import SkyStatistic

__all__ = ["Outline", "SkyGroup", "SkyImage", "SkyStats", "skymatch"]

log = logging.getLogger("stpipe.bkgmatch.skymatch")


class SkyStats:
    """
    Statistics with fixed settings.

    Parameters
    ----------
    skystat : {"mean", "median", "midpt", "mode"}
        Statistic.
    lower, upper : float, optional
        Limits of usable values.
    nclip : int
        Number of clipping iterations.
    lsig, usig : float
        Clipping limits, in standard deviations.
    binwidth : float
        Bin width, in standard deviations.

    Examples
    --------
    >>> import numpy as np
    >>> from bkgmatch.skymatch import SkyStats
    >>> sky, npix = SkyStats("median", upper=10).calc_sky(np.array([1.0, 2.0, 3.0, 50.0]))
    >>> print(f"{sky:.3f} from {npix} pixels")
    2.000 from 3 pixels
    """

    def __init__(
        self,
        skystat: str = "mean",
        lower: float | None = None,
        upper: float | None = None,
        nclip: int = 5,
        lsig: float = 4.0,
        usig: float = 4.0,
        binwidth: float = 0.1,
    ) -> None:
        self.statistic = SkyStatistic(skystat, lower, upper, nclip, lsig, usig, binwidth)

    def calc_sky(self, data: np.ndarray) -> tuple[float, int]:
        """
        Compute the statistic.

        Parameters
        ----------
        data : array_like
            Pixel values.

        Returns
        -------
        value : float
            The statistic.
        npix : int
            Number of pixels that it used.

        Raises
        ------
        ValueError
            If no pixel can be used.
        """
        found = self.statistic.of(data)
        if found.npix[0] == 0:
            raise ValueError("Not enough data points to compute statistics.")
        return float(found.value[0]), int(found.npix[0])

    __call__ = calc_sky


class Outline:
    """
    A shape on the sky.

    Parameters
    ----------
    shape : shapely geometry
        Shape in a tangent plane.
    axes : ndarray, shape (3, 3)
        Axes of the plane, see `bkgmatch.footprints.Footprint`.
    """

    def __init__(self, shape: shapely.Geometry, axes: np.ndarray) -> None:
        self.shape = shape
        self._axes = axes

    def area(self) -> float:
        """Solid angle in steradians."""
        return solid_angle(self.shape)

    def to_radec(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield right ascension and declination in degrees of the vertices of each part."""
        for part in shapely.get_parts(self.shape):
            if shapely.get_dimensions(part) == 2:
                plane = shapely.get_coordinates(shapely.get_exterior_ring(part))
                x, y, z = (np.column_stack([plane, np.ones(len(plane))]) @ self._axes).T
                yield np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


class SkyImage:
    """
    One image, its mask, WCS and sky.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Pixels.
    mask : ndarray, shape (ny, nx)
        True or 1 where pixels are good.
    wcs_fwd, wcs_inv : callable
        Pixels to sky and sky to pixels; ``wcs_fwd`` takes ``with_bounding_box``. ``wcs_inv`` is not needed here.
    skystat : callable
        ``skystat(data) -> (value, npix)``. `skymatch` wants a `SkyStats`.
    sky_id : object, optional
        Any identifier.
    stepsize : int, optional
        Largest separation of the vertices of the outline, in pixels.
    meta : dict, optional
        Anything.

    Raises
    ------
    ValueError
        If the mask has another shape than the image.
    """

    def __init__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        wcs_fwd: Callable,
        wcs_inv: Callable | None,
        skystat: Callable,
        sky_id: Any = None,
        stepsize: int | None = None,
        meta: dict | None = None,
    ) -> None:
        if image.shape != mask.shape:
            raise ValueError("'mask' must have the same shape as 'image'.")
        self.image = image
        self.mask = mask
        self.meta = meta
        self.sky_id = sky_id
        self.skystat = skystat
        self.sky = 0.0
        self.is_sky_valid = False
        self.wcs = partial(wcs_fwd, with_bounding_box=False)
        self.stepsize = stepsize
        self.footprint: Footprint = footprint(
            np.ones(image.shape, dtype=bool), self.wcs, overlap="footprint", stepsize=stepsize
        )
        self._polygon = Outline(self.footprint.outline(), self.footprint.axes)

    def intersection(self, skyimage: "SkyImage | SkyGroup") -> Outline:
        """
        Intersect the outlines of this image and another image or group.

        Parameters
        ----------
        skyimage : SkyImage or SkyGroup
            The other.

        Returns
        -------
        Outline
            Their common part.
        """
        others = outlines_in_plane([im.footprint for im in _members(skyimage)], self.footprint)
        return Outline(shapely.intersection(shapely.union_all(others), self.footprint.frame), self.footprint.axes)

    def calc_sky(
        self, overlap: "SkyImage | SkyGroup | None" = None, delta: bool = True
    ) -> tuple[float | None, int, float]:
        """
        Compute the sky of the image, or of its overlap with another.

        Parameters
        ----------
        overlap : SkyImage or SkyGroup, optional
            Where to compute it.
        delta : bool
            Subtract the present ``sky``.

        Returns
        -------
        skyval : float or None
            The sky; None if there are no pixels.
        npix : int
            Number of pixels used.
        polyarea : float
            Solid angle of the outline, in steradians.
        """
        pixels = np.asarray(self.mask, dtype=bool) & np.isfinite(self.image)
        outline = self._polygon
        if overlap is not None:
            others = [image.footprint for image in _members(overlap)]
            atoms = overlap_map(self.footprint, others)
            on_any = np.asarray(atoms.members.any(axis=1))
            pixels &= on_any[atoms.runs.image()].reshape(pixels.shape)
            outline = self.intersection(overlap)
        if not pixels.any():
            return None, 0, 0.0
        try:
            value, npix = self.skystat(self.image[pixels])
        except ValueError as error:  # too few pixels, as in stcal
            log.info("No sky of image %s: %s", self.sky_id, error)
            return None, 0, 0.0
        return (value - self.sky if delta else value), npix, outline.area()


class SkyGroup:
    """
    Images whose sky is adjusted together.

    Parameters
    ----------
    images : list of SkyImage
        The members.
    sky_id : object, optional
        Any identifier.

    Raises
    ------
    ValueError
        If there are no images.
    """

    def __init__(self, images: list[SkyImage], sky_id: Any = None) -> None:
        if not images:
            raise ValueError("SkyGroup requires a list of images")
        self._images = images
        self.sky_id = sky_id
        self._sky = 0.0
        plane = images[0].footprint
        self._polygon = Outline(
            shapely.union_all(outlines_in_plane([im.footprint for im in images], plane)), plane.axes
        )

    @property
    def sky(self) -> float:
        """Sky of the group; setting it shifts the sky of each member."""
        return self._sky

    @sky.setter
    def sky(self, sky: float) -> None:
        change = sky - self._sky
        self._sky = sky
        for image in self._images:
            image.sky += change

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> SkyImage:
        return self._images[index]

    def __iter__(self) -> Iterator[SkyImage]:
        return iter(self._images)

    def calc_sky(
        self, overlap: "SkyImage | SkyGroup | None" = None, delta: bool = True
    ) -> tuple[float | None, int, float]:
        """
        Compute the least sky of the members, or the mean sky in their overlaps weighted by pixels.

        Parameters
        ----------
        overlap : SkyImage or SkyGroup, optional
            Where to compute it.
        delta : bool
            Subtract the present ``sky``.

        Returns
        -------
        tuple
            As `SkyImage.calc_sky`.
        """
        found = [image.calc_sky(overlap=overlap, delta=delta) for image in self._images]
        usable = [(sky, npix, area) for sky, npix, area in found if sky is not None and npix > 0]
        if not usable:
            return None, 0, 0.0
        if overlap is None:
            return min(usable, key=lambda one: one[0])
        npix = sum(n for _, n, _ in usable)
        return sum(sky * n for sky, n, _ in usable) / npix, npix, sum(area for _, _, area in usable)


def skymatch(
    images: Sequence[SkyImage | SkyGroup],
    skymethod: str = "global+match",
    match_down: bool = True,
    subtract: bool = False,
) -> None:
    """
    Compute or match the sky of images, and set their ``sky`` and ``is_sky_valid``.

    Parameters
    ----------
    images : sequence of SkyImage or SkyGroup
        Images; all have `SkyStats` with the same settings.
    skymethod : {"local", "global", "match", "global+match"}
        Method, see `bkgmatch.options.SkyMatchOptions`.
    match_down : bool
        Match to the lowest (True) or to the highest sky.
    subtract : bool
        Subtract the sky from ``image`` in place.

    Raises
    ------
    ValueError
        If the method is unknown, there are no images, or the sky is to be subtracted from one that is read-only.
    TypeError
        If an element is no image or group, the statistics are not `SkyStats` with the same settings, or the sky is to
        be subtracted from whole numbers.
    """
    method = skymethod.lower()
    if method not in ("local", "global", "match", "global+match"):
        raise ValueError("Unsupported 'skymethod'. Valid values are: 'local', 'global', 'match', or 'global+match'")
    if not all(isinstance(one, SkyImage | SkyGroup) for one in images):
        raise TypeError("Each element of the 'images' must be either a 'SkyImage' or a 'SkyGroup'")
    members = [(index, image) for index, one in enumerate(images) for image in _members(one)]
    if not members:
        raise ValueError("Argument 'images' must contain at least one image")
    exposures = [
        Exposure(f"{number:06d}", partial(_read, image, subtract), image.wcs, f"group {index}")
        for number, (index, image) in enumerate(members)
    ]
    if subtract:
        for _, image in members:
            _check_subtraction(image)
    statistic = _common_statistic([image for _, image in members])
    options = SkyMatchOptions(
        skymethod=method,  # type: ignore[arg-type]
        match_down=match_down,
        stepsize=members[0][1].stepsize,
        **vars(statistic),
    )
    result = match_skies(exposures, options)
    starts = np.cumsum([0] + [len(_members(one)) for one in images])
    for one, start in zip(images, starts, strict=False):
        _set_sky(one, float(result.level[start]), subtract=subtract)


def _members(one: SkyImage | SkyGroup) -> list[SkyImage]:
    return [one] if isinstance(one, SkyImage) else list(one)


def _common_statistic(images: Sequence[SkyImage]) -> SkyStatistic:
    statistics = [getattr(image.skystat, "statistic", None) for image in images]
    if any(statistic is None or statistic != statistics[0] for statistic in statistics):
        raise TypeError("the skystat of all images must be a bkgmatch.skymatch.SkyStats with the same settings")
    return statistics[0]  # type: ignore[return-value]


def _read(image: SkyImage, subtract: bool) -> Pixels:
    data = image.image if subtract or image.sky == 0 else image.image - image.sky
    return Pixels(data, np.asarray(image.mask, dtype=bool))


def _check_subtraction(image: SkyImage) -> None:
    """Raise TypeError or ValueError, before anything is changed, if no sky can be subtracted from an image in place."""
    if not np.issubdtype(image.image.dtype, np.floating):
        raise TypeError(f"image ID={image.sky_id} holds {image.image.dtype}: give floating point, or subtract=False")
    if not image.image.flags.writeable:
        raise ValueError(f"image ID={image.sky_id} is read-only: give a copy, or subtract=False")


def _set_sky(one: SkyImage | SkyGroup, change: float, *, subtract: bool) -> None:
    valid = bool(np.isfinite(change))
    if not valid:
        log.warning("Unable to compute the sky of %s ID=%s", type(one).__name__, one.sky_id)
        change = 0.0
    one.sky += change
    for image in _members(one):
        image.is_sky_valid = valid
        if subtract:
            image.image -= change
        log.info("Image ID=%s: sky background %G (change %G)", image.sky_id, image.sky, change)
