"""Random scenes of exposures, and ways to match them: what the property tests have in common.

Strategies draw a seed and a few numbers; arrays are made of these by numpy's generators. Values of images are multiples
of 2^-10 and smaller than 2^12, so that adding such a constant to single-precision data rounds nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from bkgmatch.exposures import Exposure
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import LevelMatchOptions, SkyMatchOptions

PIXEL = np.deg2rad(0.1 / 3600)
STEP = 2.0**-10
GOOD = ("matched", "measured", "fixed", "made")
SEEDS = st.integers(0, 2**32 - 1)
STATISTICS = ("mean", "median", "midpt", "mode", "difference")
# A decorator: half of the examples of the profile "fast", all of the others.
costly = settings(max_examples=max(5, settings.default.max_examples - 5 * (settings.default.max_examples <= 10)))


def sky_axes(ra: float, dec: float) -> np.ndarray:
    """Unit vectors to the east and to the north."""
    west, north, middle = axes(ra, dec)
    return np.array([-west, north, middle])


def axes(ra: float, dec: float, angle: float = 0.0) -> np.ndarray:
    """Unit vectors of the axes x and y of a tangent plane, and of its tangent point; angles in degrees."""
    a, d, t = np.deg2rad([ra, dec, angle])
    west = np.array([np.sin(a), -np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    middle = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    return np.array([np.cos(t) * west + np.sin(t) * north, np.cos(t) * north - np.sin(t) * west, middle])


HERE = axes(150.0, 20.0)
PLACES = {
    "across RA 0": axes(0.0, 20.0),
    "at the north pole": axes(123.0, 90.0, 20.0),
    "near the north pole": axes(40.0, 89.9995),
    "at the south pole": axes(200.0, -90.0, -75.0),
    "on the equator": axes(275.0, 0.0, 45.0),
    "elsewhere, turned": axes(301.2, -63.4, 141.0),
}


@dataclass(frozen=True)
class Pointing:
    """
    A tangential WCS: an image turned by ``angle`` (radians) and shifted by ``shift`` (pixels) in a tangent plane.

    The same pointings on the axes of another place are the same geometry there, but for rounding.
    """

    shape: tuple[int, int]
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    place: tuple[tuple[float, ...], ...] = tuple(map(tuple, HERE))

    def on_plane(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in the tangent plane, in pixels."""
        dx, dy = np.asarray(x) - (self.shape[1] - 1) / 2, np.asarray(y) - (self.shape[0] - 1) / 2
        c, s = np.cos(self.angle), np.sin(self.angle)
        return c * dx - s * dy + self.shift[0], s * dx + c * dy + self.shift[1]

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Plane coordinates of the pixels, each of the shape of the image."""
        y, x = np.indices(self.shape)
        return self.on_plane(x, y)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = (PIXEL * c for c in self.on_plane(x, y))
        px, py, pz = np.moveaxis(np.stack([u, v, np.ones_like(u)], axis=-1) @ np.array(self.place), -1, 0)
        return np.rad2deg(np.arctan2(py, px)) % 360, np.rad2deg(np.arctan2(pz, np.hypot(px, py)))

    def at(self, place: np.ndarray) -> "Pointing":
        return replace(self, place=tuple(map(tuple, place.tolist())))


@dataclass(frozen=True, repr=False)
class Scene:
    """Exposures of a sky, and what is known of them."""

    how: str
    names: tuple[str, ...]
    pointings: tuple[Pointing, ...]
    data: tuple[np.ndarray, ...]
    good: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray | None, ...]
    level: np.ndarray
    noise: float
    fields: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        return f"<Scene {self.how}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __len__(self) -> int:
        return len(self.names)

    def exposures(self) -> list[Exposure]:
        rows = zip(self.names, self.data, self.pointings, self.good, self.variance, self.fields, strict=True)
        return [Exposure.from_arrays(n, d, w, good=g, variance=v, **f) for n, d, w, g, v, f in rows]

    def arrays(self) -> list[np.ndarray]:
        return [a for kind in (self.data, self.good, self.variance) for a in kind if a is not None]

    def take(self, order: Sequence[int]) -> "Scene":
        """Some of the exposures, in another order."""
        lists = ("names", "pointings", "data", "good", "variance", "fields")
        chosen = {name: tuple(getattr(self, name)[k] for k in order) for name in lists}
        return replace(self, level=self.level[list(order)], how=f"{self.how}, of which {list(order)}", **chosen)

    def with_data(self, change: Callable[[int, np.ndarray], np.ndarray]) -> "Scene":
        """The same with ``change(i, data)`` for the data."""
        return replace(self, data=tuple(change(i, d) for i, d in enumerate(self.data)))

    def with_fields(self, **values: Sequence[Any]) -> "Scene":
        """The same with further fields of the exposures, one value for each."""
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return replace(self, fields=tuple({**old, **new} for old, new in zip(self.fields, rows, strict=True)))

    def with_pointings(self, change: Callable[[Pointing], Pointing]) -> "Scene":
        """The same pixels elsewhere, or of another size."""
        return replace(self, pointings=tuple(change(p) for p in self.pointings))

    def times(self, factor: float) -> "Scene":
        """The same in another unit, in double precision."""
        variance = tuple(None if v is None else v * factor**2 for v in self.variance)
        return replace(self, data=tuple(d * np.float64(factor) for d in self.data), variance=variance)

    def masked(self, masks: Sequence[np.ndarray]) -> "Scene":
        """The same with fewer good pixels."""
        return replace(self, good=tuple(g & ~m for g, m in zip(self.good, masks, strict=True)))

    def moved(self, place: np.ndarray) -> "Scene":
        """The same somewhere else on the sky."""
        return replace(self, pointings=tuple(p.at(place) for p in self.pointings), how=f"{self.how}, moved")

    def renamed(self, prefix: str) -> "Scene":
        return replace(self, names=tuple(f"{prefix}{name}" for name in self.names))

    def __add__(self, other: "Scene") -> "Scene":
        lists = ("names", "pointings", "data", "good", "variance", "fields")
        joined = {name: getattr(self, name) + getattr(other, name) for name in lists}
        level = np.concatenate([self.level, other.level])
        return replace(self, level=level, how=f"{self.how} + {other.how}", **joined)


def rounded(values: np.ndarray) -> np.ndarray:
    """Values as multiples of a power of two, in single precision."""
    return (np.rint(np.asarray(values) / STEP) * STEP).astype(np.float32)


def make_scene(
    seed: int,
    n: int,
    *,
    size: tuple[int, int] = (8, 64),
    spread: float = 0.5,
    bad: float = 0.0,
    dead: bool = False,
    nebula: float = 0.0,
    aligned: bool = False,
    known: bool = False,
    rays: float = 0.0,
    one_shape: bool = False,
    levels: float = 10.0,
    pointings: Sequence[Pointing] | None = None,
) -> Scene:
    """
    Make a scene.

    Parameters
    ----------
    seed : int
        Of the random generator.
    n : int
        Number of exposures.
    size : tuple of int
        Shortest and longest side, in pixels.
    spread : float
        How far the exposures are from the middle, in units of the longest side.
    bad : float
        Part of the pixels that are bad: NaN, or wild and masked; also a stripe of rows.
    dead : bool
        Whether one exposure may have no good pixel.
    nebula : float
        Contrast of the sky, in units of the noise.
    aligned : bool
        Whether the pixels of all exposures coincide.
    known : bool
        Whether variances are given.
    rays : float
        Part of the pixels that are hit by cosmic rays and not flagged.
    one_shape : bool
        Whether all have the same shape.
    levels : float
        Standard deviation of the levels.
    pointings : sequence of Pointing, optional
        Those of the exposures, instead of random ones.

    Returns
    -------
    Scene
        The scene.
    """
    rng = np.random.default_rng(seed)
    noise = float(2.0 ** rng.uniform(-5, 1))
    shapes = rng.integers(size[0], size[1] + 1, (1 if one_shape else n, 2)).tolist()
    shapes = shapes * n if one_shape else shapes
    shifts, turns = spread * size[1] * rng.uniform(-1, 1, (n, 2)), rng.uniform(-0.5, 0.5, n)
    if aligned:
        shifts, turns = np.rint(shifts) + [[(s[1] - 1) / 2, (s[0] - 1) / 2] for s in shapes], 0 * turns
    drawn = zip(shapes, shifts.tolist(), turns.tolist(), strict=True)
    pointings = [Pointing(tuple(s), tuple(d), t) for s, d, t in drawn] if pointings is None else pointings
    level = rounded(rng.normal(0, levels, n)).astype(float)
    waves = rng.uniform(-0.25, 0.25, (3, 2)), rng.uniform(0, 2 * np.pi, 3)
    data, good, variance = [], [], []
    for k, p in enumerate(pointings):
        u, v = p.pixels()
        sky = sum(np.sin(a * u + b * v + phase) for (a, b), phase in zip(*waves, strict=True))
        value = level[k] + noise * (rng.standard_normal(p.shape) + nebula * sky)
        value += 30 * noise * (rng.random(p.shape) < rays)
        usable = rng.random(p.shape) >= bad
        if bad and rng.random() < 0.3:
            start = rng.integers(p.shape[0])
            usable[start : start + p.shape[0] // 4] = False
        usable &= not (dead and rng.random() < 0.15)
        value = rounded(value)
        wild = ~usable & (rng.random(p.shape) < 0.5)
        value[wild] = 1e9
        value[~usable & ~wild] = np.nan
        data.append(value)
        good.append(usable)
        variance.append(np.full(p.shape, noise**2) if known else None)
    how = f"seed={seed} n={n} {spread=} {bad=} {dead=} {nebula=} {aligned=} {known=} {rays=} {noise=:.3g}"
    names = tuple(f"e{k}" for k in range(n))
    return Scene(
        how, names, tuple(pointings), tuple(data), tuple(good), tuple(variance), level, noise, ({},) * n
    )  # fmt: skip


def scenes(least: int = 1, most: int = 8, **fixed: Any) -> st.SearchStrategy[Scene]:
    """Scenes of random exposures that overlap entirely, in part, or not at all."""
    drawn: dict[str, Any] = {
        "spread": st.sampled_from([0.02, 0.2, 0.4, 0.7, 3.0]),
        "bad": st.sampled_from([0.0, 0.0, 0.03, 0.3]),
        "dead": st.booleans(),
        "nebula": st.sampled_from([0.0, 0.0, 3.0]),
        "aligned": st.sampled_from([False, False, True]),
        "known": st.booleans(),
        "rays": st.sampled_from([0.0, 0.01]),
    }
    drawn.update({name: st.just(value) for name, value in fixed.items()})
    return st.builds(make_scene, SEEDS, st.integers(least, most), **drawn)


def laid_out(image: np.ndarray, layout: str) -> np.ndarray:
    """The same values, elsewhere in memory."""
    if layout == "Fortran":
        return np.asfortranarray(image)
    if layout == "strided":
        wide = np.full([2 * n for n in image.shape], 77, dtype=image.dtype)
        every_other = (slice(None, None, 2),) * image.ndim
        wide[every_other] = image
        return wide[every_other]
    if layout == "reversed":
        return np.flip(np.flip(image).copy())
    if layout == "read-only":
        image.flags.writeable = False
    return image


@contextmanager
def untouched(*arrays: np.ndarray) -> Iterator[None]:
    """Check that no bit of arrays changes inside."""
    before = [a.tobytes() for a in arrays]
    yield
    assert [a.tobytes() for a in arrays] == before, "an input was changed"


class Fit(NamedTuple):
    """
    What matching found, in one form for all ways.

    Values are levels (p = 1), or levels and slopes along the axes x and y of the scene (p = 3).
    """

    status: tuple[str, ...]
    component: np.ndarray
    values: np.ndarray  # (n, p)
    sigma: np.ndarray  # (n, p)
    result: Any

    @property
    def matched(self) -> np.ndarray:
        return self.component >= 0

    def less_mean(self, kept: np.ndarray | None = None) -> np.ndarray:
        """Values less the mean of the component, taken over some of the exposures."""
        return less_mean(self.values, self.component, kept)


def less_mean(values: np.ndarray, component: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """Values, shape (n, ...), less their mean over each component; NaN for those that are in none."""
    kept = np.ones(len(values), dtype=bool) if kept is None else kept
    result = np.full(values.shape, np.nan)
    for c in range(component.max(initial=-1) + 1):
        inside = component == c
        if (inside & kept).any():
            result[inside] = values[inside] - values[inside & kept].mean(axis=0)
    return result


def same_sets(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two numberings divide exposures into the same sets; -1 is none."""
    return bool(np.array_equal(one < 0, two < 0) and np.array_equal(one[:, None] == one, two[:, None] == two))


def checked(status: Sequence[str], values: np.ndarray, sigma: np.ndarray) -> None:
    """Numbers are finite where the status is good, and errors not negative; others have none."""
    good = np.isin(status, GOOD)
    assert np.isfinite(values[good]).all(), (status, values)
    assert np.isfinite(sigma[good]).all(), (status, sigma)
    assert (sigma[good] >= 0).all(), sigma
    assert np.isnan(values[~good]).all(), (status, values)


class SkyWay(NamedTuple):
    """Sky matching with some options."""

    options: SkyMatchOptions
    one_function = True

    @property
    def slack(self) -> float:
        """How exact results are, in errors: fits of differences end when their weights change by less than 1e-3."""
        return 0.02 if self.options.skystat == "difference" else 1e-4

    def __call__(self, scene: Scene) -> Fit:
        with untouched(*scene.arrays()):
            found = match_skies(scene.exposures(), self.options)
        values, sigma = found.level[:, None], found.sigma[:, None]
        checked(found.status, values, sigma)
        return Fit(found.status, found.component, values, sigma, found)


class LevelWay(NamedTuple):
    """Level matching with some options; the exposures belong to so many tiles, each to its own if 0."""

    options: LevelMatchOptions
    tiles: int = 0
    slack = 0.02

    @property
    def one_function(self) -> bool:
        """Whether all passes fit constants, or all planes."""
        options = self.options
        return options.passes == "joint" or options.fit_type_dithers == options.fit_type_mosaic_tiles

    def tile(self, name: str) -> str:
        """Tile of an exposure, by the last letter of its name: twins are in one."""
        return f"t{ord(name[-1]) % self.tiles}" if self.tiles else ""

    def __call__(self, scene: Scene) -> Fit:
        scene = scene.with_fields(tile=[self.tile(name) for name in scene.names])
        with untouched(*scene.arrays()):
            found = match_levels(scene.exposures(), self.options)
        plain = np.column_stack([found.level, found.slope]), np.column_stack([found.sigma, found.slope_sigma])
        checked(found.status, *plain)
        pairs = zip(scene.pointings, found.centre, strict=True)
        turns = np.array(
            [np.array(p.place)[:2] @ sky_axes(*centre)[:2].T for p, centre in pairs]
        )  # from the sky's axes
        values = np.column_stack([found.level, np.einsum("nab,nb->na", turns, found.slope)])
        slopes = np.einsum("nab,nbc,nac->na", turns, found.covariance[:, 1:, 1:], turns)
        sigma = np.column_stack([found.sigma, np.sqrt(np.maximum(slopes, 0))])
        return Fit(found.status, found.component, values, sigma, found)


Way = SkyWay | LevelWay


def sky_ways(**fixed: Any) -> st.SearchStrategy[SkyWay]:
    """Ways of sky matching whose levels have the mean zero in each component."""
    drawn: dict[str, Any] = {
        "skystat": st.sampled_from(STATISTICS),
        "overlap": st.sampled_from(["good", "good", "footprint", "exact"]),
        "weights": st.sampled_from(["variance", "npix", "robust"]),
        "zero_point": st.just("mean"),
    }
    drawn.update({name: st.just(value) for name, value in fixed.items()})
    return st.builds(SkyWay, st.builds(SkyMatchOptions, **drawn))


def level_ways(**fixed: Any) -> st.SearchStrategy[LevelWay]:
    """Ways of level matching whose backgrounds have the mean zero in each component."""
    fits = st.sampled_from(["level", "level+slope"])
    drawn: dict[str, Any] = {
        "fit_type_dithers": fits,
        "fit_type_mosaic_tiles": fits,
        "passes": st.sampled_from(["sequence", "joint"]),
        "weight_method": st.sampled_from(["ml", "ml", "equal", "npix", "rms"]),
        "do_sigma_clip": st.sampled_from([False, False, True]),
        "reference": st.just("mean"),
        "do_local_subtraction": st.just(False),
    }
    drawn.update({name: st.just(value) for name, value in fixed.items()})
    return st.builds(LevelWay, st.builds(LevelMatchOptions, **drawn), st.sampled_from([0, 2, 3]))


WAYS = {"sky match": sky_ways(), "level match": level_ways()}
"""All ways to match images, by name."""
