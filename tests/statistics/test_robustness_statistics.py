"""How errors grow with the part of the pixels, or of the overlaps, that is spoilt; and those of the rivals."""

from functools import partial

import ifu
import numpy as np
import pytest
from astropy.stats import sigma_clip
from common import lies_on, tan, to_pixels, to_sky
from ledger import measured, note
from numpy.polynomial.polynomial import polyval3d
from reproject import reproject_interp
from reproject.mosaicking import _coadd
from simulated_skies import NOISE, PLACE, SHAPE, Mosaic, cosmic_rays, dark
from stcal.skymatch import SkyImage, SkyStats, skymatch
from wiimatch.containers import WMInMemoryData
from wiimatch.match import match_lsq

from bkgmatch.image_backgrounds import make_backgrounds
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.spectra import match_voxels
from bkgmatch.voxels import middles

pytestmark = pytest.mark.timeout(3600)  # for all the skies of a test on a busy machine

SEEDS = 6
PIXELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
PAIRS = (0.0, 0.1, 0.2, 0.3, 0.4)
GHOST = 20 * NOISE
ALL = np.ones(SHAPE, dtype=bool)


def crowd(rng, x, y, fraction):
    """Stars, until they cover a part of the sky brighter than the noise."""
    sky = np.zeros(x.shape)
    while np.mean(sky > NOISE) < fraction:
        for column, row in zip(rng.uniform(x.min(), x.max(), 8), rng.uniform(y.min(), y.max(), 8), strict=True):
            peak = NOISE / (1 - rng.random() * (1 - 1 / 300))
            sky += peak * np.exp(-4 * np.log(2) * ((x - column) ** 2 + (y - row) ** 2) / 2.2**2)
    return sky


def with_rays(mosaic, rng, fraction):
    return cosmic_rays(rng, mosaic.observe(rng), fraction)


def with_stars(mosaic, rng, fraction):
    return mosaic.observe(rng, partial(crowd, fraction=fraction))


def with_ghosts(mosaic, rng, fraction):
    """Light in what only two neighbours see, in one of the two: a bad pair that spoils no other."""
    data = mosaic.observe(rng, dark)
    across = [(k, k + 1) for k in range(9) if k % 3 < 2] + [(k, k + 3) for k in range(6)]
    for number in rng.permutation(len(across))[: round(fraction * len(across))]:
        one, other = rng.permutation(across[number])
        seen = [k for k in range(9) if k != one and lies_on(mosaic.wcss[one], mosaic.wcss[k], SHAPE, ALL).any()]
        by = {k: lies_on(mosaic.wcss[one], mosaic.wcss[k], SHAPE, ALL) for k in seen}
        alone = by[other] & ~np.any([by[k] for k in seen if k != other], axis=0)
        data[one][alone] += GHOST * rng.choice([-1, 1])
    return data


def pixels_on_sky(wcs):
    row, column = np.indices(SHAPE)
    return to_sky(wcs)(column.ravel(), row.ravel())


# Ours and the rivals: from a mosaic and its images to levels


def by_sky_match(mosaic, data, **options):
    return match_skies(mosaic.exposures(data, None), SkyMatchOptions(**options)).level


def by_level_match(mosaic, data):
    options = LevelMatchOptions(reference="mean", do_local_subtraction=False)
    return match_levels(mosaic.exposures(data), options).level


def by_stcal(mosaic, data, skystat="mode"):
    statistic, good = SkyStats(skystat=skystat), np.ones(SHAPE, dtype=bool)
    images = [
        SkyImage(image, good, boundless(to_sky(wcs)), boundless(partial(to_pixels, wcs)), statistic, sky_id=k)
        for k, (image, wcs) in enumerate(zip(data, mosaic.wcss, strict=True))
    ]
    skymatch(images, "match")
    return np.array([image.sky for image in images])


def boundless(transform):
    """As stcal calls the WCS."""
    return lambda one, two, with_bounding_box=False: transform(one, two)


def by_reproject(mosaic, data):
    """The corrections that its matching of backgrounds finds; it keeps only the mosaic."""
    kept, solve = [], _coadd.solve_corrections_sgd
    frame = tan(*PLACE, shape=(180, 200), shift=(40.0, 35.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_coadd, "solve_corrections_sgd", lambda *args: kept.append(solve(*args)) or kept[-1])
        np.random.seed(1)  # noqa: NPY002 - it uses the global generator
        given = [(image, wcs) for image, wcs in zip(data, mosaic.wcss, strict=True)]
        _coadd.reproject_and_coadd(
            given, frame, shape_out=(180, 200), reproject_function=reproject_interp, match_background=True
        )
    return kept[0]


PROGRAMS = {
    "SkyMatch, mode": (by_sky_match, by_stcal),
    "SkyMatch, median": (partial(by_sky_match, skystat="median"), partial(by_stcal, skystat="median")),
    "SkyMatch, difference": (partial(by_sky_match, skystat="difference"), by_stcal),
    "SkyMatch, robust": (
        partial(by_sky_match, skystat="median", weights="robust"),
        partial(by_stcal, skystat="median"),
    ),
    "LevelMatch": (by_level_match, by_reproject),
}

# Most error that is allowed up to a part of the pixels, in standard deviations of a pixel. A cell is made of up to four
# pixels of each exposure: with one pixel in twelve hit, half of the differences are bad, and no fit is bound to hold.
BOUNDS = {
    ("SkyMatch, mode", "cosmic rays"): {0.3: 0.2},
    ("SkyMatch, mode", "stars"): {0.3: 0.2},
    ("SkyMatch, difference", "cosmic rays"): {0.05: 0.1},
    ("LevelMatch", "cosmic rays"): {0.05: 0.1},
}
# Up to which part of the pixels ours must not be worse than the rival, where that is not all of them.
COMPARED = {
    ("SkyMatch, difference", "cosmic rays"): 0.1,
    ("LevelMatch", "cosmic rays"): 0.1,
}


def compare(what, geometry, spoil, fractions, programs, bounds=None, up_to=1.0):
    """Rms errors of both at each fraction; ours within bounds, given in standard deviations of a pixel."""
    mosaic = Mosaic.of(geometry, angle=0.3)  # hardly turned: an exposure's overlaps are of like size
    for fraction in fractions:
        errors = np.empty((SEEDS, 2))
        for seed in range(SEEDS):
            data = spoil(mosaic, np.random.default_rng(seed), fraction)
            errors[seed] = [np.std(program(mosaic, data) - mosaic.levels) for program in programs]
        judge(what, fraction, errors / NOISE, bounds or {}, up_to)


def judge(what, fraction, errors, bounds, up_to=1.0):
    """Rms errors of ours and the rival, one row for each seed, in standard deviations of a pixel."""
    ours, rival = np.sqrt(np.mean(errors**2, axis=0))
    told = f"{what} at {fraction:.0%}: {ours:.4f}, rival {rival:.4f} of the noise of a pixel"
    print(told)
    difference = errors[:, 0] - errors[:, 1]
    chance = 3 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert fraction > up_to or difference.mean() <= chance + 0.1 * rival, told
    limit = min((bound for most, bound in bounds.items() if fraction <= most), default=np.inf)
    assert ours < limit, told
    measured("robustness", f"{what} at {fraction:.0%}", ours=ours, rival=rival)
    note("statistics", f"{what.split(',')[0].split(':')[0]}: skies", "spoilt", count=len(errors))


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [with_rays, with_stars])
@pytest.mark.parametrize("program", ["SkyMatch, mode", "SkyMatch, median", "SkyMatch, difference", "LevelMatch"])
def test_spoilt_pixels(program, spoil):
    what = {with_rays: "cosmic rays", with_stars: "stars"}[spoil]
    limits = BOUNDS.get((program, what)), COMPARED.get((program, what), 1.0)
    compare(f"{program}: {what}", "cross", spoil, PIXELS, PROGRAMS[program], *limits)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["SkyMatch, median", "SkyMatch, robust", "SkyMatch, difference", "LevelMatch"])
def test_spoilt_overlaps(program):
    compare(f"{program}: bad overlaps", "square", with_ghosts, PAIRS, PROGRAMS[program])


# Cubes


BOXES = [((0, 14), (0, 12), (0, 8)), ((6, 20), (2, 14), (0, 8)), ((2, 16), (5, 17), (0, 8)), ((5, 19), (6, 18), (0, 8))]
FRAME = (20, 18, 8)


def spoilt_cubes(rng, fraction):
    """Polynomials of four exposures, and their voxels with cosmic rays."""
    functions = rng.normal(size=(4, 2, 2, 2))
    made = [ifu.voxels(rng, box, f, noise=NOISE, variance=NOISE**2) for box, f in zip(BOXES, functions, strict=True)]
    hits = [np.where(rng.random(len(v.value)) < fraction, rng.exponential(20 * NOISE, len(v.value)), 0) for v in made]
    return functions, [v._replace(value=v.value + hit) for v, hit in zip(made, hits, strict=True)]


def by_spectral_match(voxels, points):
    found = match_voxels("abcd", voxels, ifu.Box(), MRSIMatchOptions())
    return [found.polynomial(k)(*ifu.Box().world(points)) for k in range(4)]


def by_wiimatch(voxels, points):
    """As jwst's mrs_imatch called it: values clipped in each plane of wavelength of each cube."""
    images, masks = np.zeros((2, 4, *FRAME))
    for image, mask, one in zip(images, masks, voxels, strict=True):
        cell = tuple(np.floor(middles(one.number)).astype(int))
        image[cell], mask[cell] = one.value, 1
        clipped = sigma_clip(np.ma.array(image, mask=mask == 0), sigma=3, axis=(0, 1))
        mask[np.ma.getmaskarray(clipped)] = 0
    sigmas = [np.full(FRAME, NOISE)] * 4
    found = match_lsq(list(images), list(masks.astype(bool)), sigmas, 1, default_container=WMInMemoryData)
    last_axis_first = (points - 0.5)[::-1] - np.reshape([n // 2 for n in FRAME], (3, 1))
    return [polyval3d(*last_axis_first, c.reshape(2, 2, 2)) for c in found]


@pytest.mark.slow
def test_spoilt_voxels():
    points = np.random.default_rng(0).uniform(0, 1, (3, 500)) * np.reshape([20, 18, 8], (3, 1))
    for fraction in PIXELS:
        errors = np.empty((SEEDS, 2))
        for seed in range(SEEDS):
            functions, voxels = spoilt_cubes(np.random.default_rng(seed), fraction)
            true = np.array([polyval3d(*ifu.scaled(points), f) for f in functions])
            for k, program in enumerate((by_spectral_match, by_wiimatch)):
                error = np.array(program(voxels, points)) - true
                errors[seed, k] = np.sqrt(np.mean((error - error.mean(axis=0)) ** 2))
        judge("MRSIMatch: cosmic rays", fraction, errors / NOISE, {0.2: 0.7})


# Images


def by_image_for_image(mosaic, data, method):
    options = ImageForImageOptions(method=method, min_offset=0.1)
    made = make_backgrounds(mosaic.exposures(data), options)
    return [made.background(k).value for k in range(len(data))]


def by_plain_statistic(data, method):
    """Of the others, less their levels: a mean clipped as jwst's BackgroundStep does, or a median."""
    levelled = data - np.median(data, axis=(1, 2), keepdims=True)
    others = [np.delete(levelled, k, axis=0) for k in range(len(data))]
    if method == "median":
        return [np.median(other, axis=0) for other in others]
    return [np.ma.filled(sigma_clip(other, sigma=3, axis=0).mean(axis=0), 0.0) for other in others]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean", "median"])
def test_spoilt_pixels_of_dithers(method):
    """Errors of the pixels of backgrounds of one of eight exposures, less their median."""
    shifts = 9 * np.sqrt(np.arange(8)) * np.exp(2.4j * np.arange(8))
    mosaic = Mosaic.around([tan(*PLACE, shape=SHAPE, shift=(z.real, z.imag)) for z in shifts])
    for fraction in PIXELS:
        errors = np.empty((SEEDS, 2))
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            pattern = rng.normal(0, 3 * NOISE, SHAPE)
            data = with_rays(mosaic, rng, fraction) + pattern
            for k, backgrounds in enumerate(
                (by_image_for_image(mosaic, data, method), by_plain_statistic(data, method))
            ):
                errors[seed, k] = rms(np.array(backgrounds) - pattern)
        judge(f"ImageForImage, {method}: cosmic rays", fraction, errors / NOISE, {0.1: 1.0})


def rms(errors):
    """Of the pixels, less the median of each image."""
    return np.sqrt(np.mean((errors - np.median(errors, axis=(1, 2), keepdims=True)) ** 2))
