"""Every status can be reached, and is documented."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.units import deg
from common import SHAPE, tan, to_sky
from ifu import Box, voxels
from ledger import note
from regions import CircleSkyRegion

from bkgmatch import image_backgrounds, levels, match, spectra
from bkgmatch.exposures import LYOT, Exposure
from bkgmatch.image_backgrounds import SourceGuide, make_backgrounds
from bkgmatch.levels import match_levels
from bkgmatch.match import match_skies
from bkgmatch.options import ImageForImageOptions, LevelMatchOptions, MRSIMatchOptions, SkyMatchOptions
from bkgmatch.record import level_pair_table, pair_table
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.spectra import match_voxels

PAGE = Path(__file__).parents[1] / "docs" / "messages.rst"
SHIFTS = [(0, 0), (40, 0), (0, 32), (40, 32), (20, 16)]


def five(*, ghost=0.0, **kwargs):
    """Exposures of noise; a ghost in a corner of the first makes one of its pairs unlike the others."""
    rng, found = np.random.default_rng(2), []
    for i, shift in enumerate(SHIFTS):
        data = rng.normal(i, 0.02, SHAPE)
        if i == 0:
            data[:12, 42:] += ghost
        more = {name: values[i] for name, values in kwargs.items()}
        found.append(Exposure.from_arrays(f"e{i}", data, to_sky(tan(shift=shift)), **more))
    return found


def lone():
    """One without good pixels, and one far away."""
    empty = Exposure.from_arrays("empty", np.ones(SHAPE), to_sky(tan()), good=np.zeros(SHAPE, dtype=bool))
    return [empty, Exposure.from_arrays("far", np.ones(SHAPE), to_sky(tan(10.0, 10.0)))]


def sky_statuses():
    return {*match_skies([*five(), *lone()]).status, *match_skies(five(), SkyMatchOptions(skymethod="local")).status}


def level_statuses():
    background = Exposure.from_arrays("b", np.ones(SHAPE), to_sky(tan()), is_background=True)
    return {*match_levels([*five(is_fixed=[True] + [False] * 4), *lone(), background]).status}


def spectral_statuses():
    """What is far apart, what is empty, and a limit of clipping that no pair of voxels can meet."""
    rng = np.random.default_rng(1)
    sides = [((0, 20), (0, 20), (0, 12)), ((5, 25), (3, 23), (0, 12)), ((90, 99), (0, 9), (0, 6))]
    given = [voxels(rng, side, np.ones((1, 1, 1)), noise=0.1, variance=0.01, holes=0.0) for side in sides]
    given.append(voxels(rng, ((0, 1), (0, 1), (0, 1)), np.ones((1, 1, 1)), holes=1.0))
    return {
        status
        for sigma in (4.0, 0.3)
        for status in match_voxels("abcd", given, Box(), MRSIMatchOptions(bkg_degree=0, sigma=sigma)).status
    }


def image_statuses():
    dithers = simulate_dithers(rng=np.random.default_rng(3), dithers=4, binning=16, dither_step=40.0)
    half = np.arange(dithers.exposures[0].data.shape[0])[:, None] < dithers.exposures[0].data.shape[0] // 2

    def statuses(good, kinds=None, guide=None, **options):
        given = [
            Exposure.from_arrays(e.name, e.data, partial(e.wcs, with_bounding_box=False), good=e.good & g)
            for e, g in zip(dithers.exposures, good, strict=True)
        ]
        options = ImageForImageOptions(maxiters=1, **options)
        return {*make_backgrounds(given, options, kinds=kinds, guide=guide).status}

    everywhere = SourceGuide(
        include=[CircleSkyRegion(SkyCoord(dithers.field.ra, dithers.field.dec, unit="deg"), 1 * deg)]
    )
    return (
        statuses([True, True, True, ~half & half])
        | statuses([half, half, half, ~half])
        | statuses([True] * 4, kinds=[1, 1, 1, 2])
        | statuses([True] * 4, min_members=4)
        | statuses([True] * 4, guide=everywhere)
    )


def pair_statuses():
    sky = match_skies(five(ghost=3.0), SkyMatchOptions(weights="robust", skystat="mean"))
    level = match_levels(five(ghost=3.0), LevelMatchOptions(min_linear_frac=0.4))
    return {*pair_table(sky)["status"], *level_pair_table(level)["status"]}


def named(module):
    names = {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}
    return names - {LYOT}


@pytest.mark.parametrize(
    ("find", "expected"),
    [
        (sky_statuses, named(match)),
        (level_statuses, named(levels)),
        (spectral_statuses, named(spectra)),
        (
            image_statuses,
            named(image_backgrounds) | {"there is no other exposure ...", "... can serve it, fewer than ..."},
        ),
        (pair_statuses, {"used", "down-weighted", "rejected"}),
    ],
)
def test_every_status_is_reached_and_documented(find, expected):
    found = find()
    assert {next((e for e in expected if alike(e, status)), status) for status in found} == expected
    listed = [line.removeprefix("   * - ``").removesuffix("``") for line in PAGE.read_text().splitlines()]
    for status in found:
        assert any(alike(line, status) for line in listed), status
        note("nothing swallowed", "status", "reached and documented")


def alike(shown, status):
    """Whether a status is what a text shows, with dots for what varies."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("..."))), status) is not None
