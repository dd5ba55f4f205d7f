"""The simulator against pysiaf, astropy.wcs, real flight WCS, and its own stated truth."""

import contextlib
import io
from functools import cache
from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS as FitsWCS
from common import few
from scipy.optimize import least_squares

from bkgmatch import detectors, scenes, simulate
from bkgmatch.detectors import DO_NOT_USE, JUMP_DET, NON_SCIENCE, Detector, detector_wcs
from bkgmatch.simulate import simulate_mosaic

with contextlib.redirect_stdout(io.StringIO()):  # it prints that it cannot reach the online PRD
    import pysiaf
from pysiaf.utils import rotations

APERTURES = {
    "NRCALONG": "NRCA5_FULL",
    "NRCBLONG": "NRCB5_FULL",
    **{f"NRC{chip}": f"NRC{chip}_FULL" for chip in ("A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4")},
    "MIRIMAGE": "MIRIM_FULL",
}
POINTINGS = [(150.1, 2.2, 110.0), (359.999, -69.5, 0.0), (10.0, 89.99, 271.0)]


@cache
def siaf_aperture(name):
    return pysiaf.Siaf("MIRI" if name.startswith("MIR") else "NIRCam")[APERTURES[name]]


def grid(detector, n=9):
    """Pixel positions (from 0) over a whole detector, as flat arrays."""
    x, y = np.meshgrid(*(np.linspace(0, size - 1, n) for size in detector.size))
    return x.ravel(), y.ravel()


def separation(ra, dec, ra2, dec2):
    """Angular distance in mas."""
    return SkyCoord(ra, dec, unit="deg").separation(SkyCoord(ra2, dec2, unit="deg")).mas


def rng(seed=1):
    return np.random.default_rng(seed)


# -------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("name", few(4, APERTURES))
def test_wcs_agrees_with_pysiaf(name):
    detector, aperture = Detector.named(name), siaf_aperture(name)
    x, y = grid(detector)
    v2, v3 = aperture.sci_to_tel(x + 1, y + 1)
    for ra, dec, roll in POINTINGS:
        attitude = rotations.attitude(aperture.V2Ref, aperture.V3Ref, ra, dec, roll)
        wcs = detector_wcs(detector, ra, dec, roll)
        assert separation(*wcs(x, y), *rotations.pointing(attitude, v2, v3)).max() < 0.01
        assert np.abs(wcs.get_transform("detector", "v2v3")(x, y) - np.array([v2, v3])).max() < 1e-6


@pytest.mark.parametrize("binning", [1, 8])
@pytest.mark.parametrize("name", APERTURES)
def test_wcs_inverts(name, binning):
    detector = Detector.named(name)
    wcs = detector_wcs(detector, *POINTINGS[0], binning=binning)
    x, y = ((p + 0.5) / binning - 0.5 for p in grid(detector))
    assert np.abs(np.array(wcs.invert(*wcs(x, y))) - [x, y]).max() < 0.001


def test_wcs_is_shaped_like_jwst():
    wcs = detector_wcs(Detector.named("NRCALONG"), *POINTINGS[0], binning=4)
    assert wcs.available_frames == ["detector", "v2v3", "v2v3vacorr", "world"]
    assert wcs.bounding_box.bounding_box(order="F") == ((-0.5, 511.5), (-0.5, 511.5))
    assert all(type(value) in (float, np.float64) for value in wcs(3.0, 4.0))
    assert np.isnan(wcs(-1, 4)).all()


@pytest.mark.parametrize("binning", [2, 4, 8])
@pytest.mark.parametrize("name", ["NRCBLONG", "MIRIMAGE"])
def test_binned_detector_has_the_same_footprint(name, binning):
    detector = Detector.named(name)
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]).T * np.array(detector.size)[:, None]
    native, binned = (detector_wcs(detector, *POINTINGS[0], binning=k)(*(corners / k - 0.5)) for k in (1, binning))
    assert separation(*native, *binned).max() < 1e-3


def test_subarray_is_a_piece_of_the_detector():
    whole = Detector.named("MIRIMAGE")
    part = whole.subarray((100, 120), binning=2)
    assert part.size == (240, 200)
    x, y = part.corner
    whole_wcs, part_wcs = (detector_wcs(d, *POINTINGS[0]) for d in (whole, part))
    assert separation(*whole_wcs(x + 5, y + 7), *part_wcs(5, 7)) < 1e-3
    assert not detectors.static_dq(part).any()
    with pytest.raises(ValueError, match="exceeds the field"):
        whole.subarray((1024, 1032))


def test_unknown_detector():
    assert Detector.named("MIRIM_FULL") == Detector.named("MIRIMAGE")
    with pytest.raises(ValueError, match="no detector 'NRS1'"):
        Detector.named("NRS1")


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "data").glob("*_tweakreg.asdf")), ids=str)
def test_distortion_agrees_with_flight_wcs(path):
    """Real WCS, aligned by tweakreg: after fitting the pointing only the distortion reference differs."""
    detector = Detector.named(path.name.split("_")[3].upper())
    x, y = grid(detector)
    with asdf.open(path) as file:
        ra, dec = file["wcs"](x, y)
        info = file["wcsinfo"]
    start = np.array([info["ra_ref"], info["dec_ref"], info["roll_ref"]])

    def residual(shift):
        scale = np.array([1 / np.cos(np.radians(start[1])), 1, 60]) / 3600
        ours = detector_wcs(detector, *(start + shift * scale))(x, y)
        return np.concatenate(detectors.to_plane(*ours, *start[:2])) - target

    target = np.concatenate(detectors.to_plane(ra, dec, *start[:2]))
    fit = least_squares(residual, np.zeros(3))
    east, north = residual(fit.x).reshape(2, -1)
    assert np.hypot(east, north).max() < 0.05
    assert np.abs(fit.x[:2]).max() < 2.0
    assert np.abs(fit.x[2] / 60) < 0.1


@pytest.mark.parametrize("name", ["NRCALONG", "MIRIMAGE"])
@pytest.mark.parametrize("binning", [1, 8])
def test_interpolated_pixel_positions(name, binning):
    detector = Detector.named(name)
    wcs = detector_wcs(detector, *POINTINGS[0], binning=binning)
    shape = detectors.static_dq(detector, binning=binning).shape
    y, x = (rng().integers(0, n, 2000) for n in shape)
    exact = np.array(detectors.to_plane(*wcs(x, y), 150.0, 2.2))
    quick = np.array([plane[y, x] for plane in detectors.pixels_on_plane(wcs, shape, 150.0, 2.2)])
    assert np.abs(quick - exact).max() < 1e-3 * detector.scale * binning


@pytest.mark.parametrize("center", [(0.01, 2.0), (150.0, -80.0), (30.0, 90.0)])
def test_tangent_plane_agrees_with_astropy(center):
    fits = FitsWCS(naxis=2)
    fits.wcs.ctype, fits.wcs.crval = ["RA---TAN", "DEC--TAN"], center
    fits.wcs.cdelt, fits.wcs.lonpole = [1 / 3600] * 2, 180
    east, north = rng().uniform(-500, 500, (2, 50))
    ra, dec = fits.all_pix2world(east, north, 1)
    assert separation(ra, dec, *detectors.from_plane(east, north, *center)).max() < 0.01
    assert np.abs(np.array(detectors.to_plane(ra, dec, *center)) - [east, north]).max() < 1e-5


# -------------------------------------------------------------------------------------------------- pointings


@pytest.mark.parametrize(("tiles", "angle", "size"), [((2, 1), 0, 30.0), ((1, 2), 270, 20.0)])
def test_tiles_are_one_field_apart_along_the_grid(tiles, angle, size):
    rows = simulate.pointings(359.999, 60.0, tiles, 1, size=(20.0, 30.0), overlap=0.1, roll=25.0, grid_angle=5.0)
    (_, _, *first), (_, _, *second) = rows
    first, second = (SkyCoord(*where[:2], unit="deg") for where in (first, second))
    assert first.separation(second).arcsec == pytest.approx(0.9 * size, rel=1e-6)
    assert (first.position_angle(second).deg - angle - 30.0 + 180) % 360 - 180 == pytest.approx(0, abs=0.01)


def test_roll_follows_the_meridians():
    """Fields of a mosaic near the pole stay parallel: V3 points along one direction of the tangent plane."""
    for _, _, ra, dec, roll in simulate.pointings(
        10.0, 89.9, (3, 3), 2, size=(100.0, 100.0), roll=40.0, jitter=1.0, rng=rng()
    ):
        here = SkyCoord(ra, dec, unit="deg")
        ahead = here.directional_offset_by(roll * u.deg, 10 * u.arcsec)
        (e0, n0), (e1, n1) = (detectors.to_plane(p.ra.deg, p.dec.deg, 10.0, 89.9) for p in (here, ahead))
        assert np.degrees(np.arctan2(e1 - e0, n1 - n0)) == pytest.approx(40.0, abs=0.01)


def test_dithers_differ():
    rows = simulate.pointings(10.0, 20.0, (1, 1), 9, size=(100.0, 100.0))
    east, north = detectors.to_plane(*np.array([row[2:4] for row in rows]).T, 10.0, 20.0)
    distance = np.abs((east + 1j * north) - (east + 1j * north)[:, None])[~np.eye(9, dtype=bool)]
    assert distance.min() > 2.5
    assert distance.max() < 25


def test_jitter_needs_a_generator():
    with pytest.raises(ValueError, match="pass rng"):
        simulate.pointings(10.0, 20.0, size=(100.0, 100.0), jitter=0.1)


def test_detectors_of_a_group_share_an_attitude():
    exposures = simulate_mosaic(
        rng=rng(), detectors=["NRCALONG", "NRCBLONG", "NRCA3"], tiles=(1, 2), dithers=2, binning=32
    )
    for first, *others in zip(*[iter(exposures)] * 3, strict=True):
        attitude = rotations.attitude(*first.detector.v2v3, *first.pointing)
        for other in others:
            assert other.group == first.group
            v2, v3 = other.detector.v2v3
            assert separation(*rotations.pointing(attitude, v2, v3), *other.pointing[:2]) < 0.01
            assert rotations.posangle(attitude, v2, v3) == pytest.approx(other.pointing[2], abs=1e-6)


@pytest.mark.parametrize("name", ["NRCALONG", "MIRIMAGE"])
def test_mosaic_is_centred_and_neighbours_overlap_by_the_given_part(name):
    left, right = simulate_mosaic(
        rng=rng(), detectors=[name], tiles=(1, 2), dithers=1, center=(0.0, 40.0), scene=None,
        jitter=0, overlap=0.2,
    )  # fmt: skip
    x0, y0, x1, y1 = (edge / 8 - 0.5 for edge in left.detector.field)
    ends = [SkyCoord(*e.wcs((x0 + x1) / 2, (y0 + y1) / 2), unit="deg") for e in (left, right)]
    middle = ends[0].directional_offset_by(ends[0].position_angle(ends[1]), ends[0].separation(ends[1]) / 2)
    assert middle.separation(SkyCoord(0.0, 40.0, unit="deg")).arcsec < 1.0
    edges = [SkyCoord(*left.wcs(x, (y0 + y1) / 2), unit="deg") for x in (x0, x1)]
    apart, width = (a.separation(b).arcsec for a, b in (ends, edges))
    # The tiles follow the span of the corners, which distortion makes up to 1.4 % wider than the middle row.
    assert apart / width == pytest.approx(0.8, abs=0.015)
    along = ends[0].position_angle(ends[1]) - edges[0].position_angle(edges[1])
    assert abs(np.sin(along.rad)) < 0.02


# -------------------------------------------------------------------------------------------------- scene


def test_scene_is_deterministic_and_seeded():
    ra, dec = detectors.from_plane(*rng().uniform(-60, 60, (2, 1000)), 0.0, -30.0)
    first, again, other = (scenes.make_scene(0.0, -30.0, 60.0, rng(seed))(ra, dec) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert first.min() > -0.05


def test_scene_without_structure_is_dark():
    scene = scenes.make_scene(10.0, 0.0, 60.0, rng(), nebula=0, n_stars=0)
    assert not scene(np.array([10.0, 10.01]), np.zeros(2)).any()


def test_stars_are_gaussians():
    scene = scenes.make_scene(10.0, 0.0, 20.0, rng(), nebula=0, n_stars=200, fwhm=1.0)
    assert scene.stars[:, 2].min() >= 0.1
    assert scene.stars[:, 2].max() <= 100
    east, north = np.meshgrid(np.linspace(-20, 20, 51), np.linspace(-20, 20, 41))
    offset = np.hypot(east[..., None] - scene.stars[:, 0], north[..., None] - scene.stars[:, 1])
    expected = (scene.stars[:, 2] * 0.5 ** ((2 * offset / scene.fwhm) ** 2)).sum(axis=-1)
    np.testing.assert_allclose(scene.on_plane(east, north), expected, atol=1e-5)


def test_star_counts_follow_the_power_law():
    peaks = scenes.make_scene(10.0, 0.0, 20.0, rng(), n_stars=20000).stars[:, 2]
    counts = [(peaks > limit).mean() for limit in (0.2, 1.0, 10.0)]
    np.testing.assert_allclose(counts, [0.5, 0.1, 0.01], rtol=0.15)


def test_nebula_has_the_given_amplitude_and_is_smooth():
    scene = scenes.make_scene(10.0, 0.0, 110.0, rng(), nebula=3.0, n_stars=0)
    axis = (np.arange(256) - 128) * scene.side / 256
    image = scene.on_plane(*np.meshgrid(axis, axis))
    assert image.std() == pytest.approx(3.0, rel=1e-6)
    assert image.min() == pytest.approx(0.0, abs=1e-9)
    assert np.abs(np.diff(image, axis=0)).max() < 1.0


# -------------------------------------------------------------------------------------------------- exposures


def test_exposures_hold_scene_plus_level():
    scene = scenes.make_scene(150.0, 2.2, 200.0, rng(), fwhm=1.2)
    exposures = simulate_mosaic(rng=rng(), tiles=(1, 2), dithers=2, scene=scene, noise=0.02, binning=16)
    assert len({e.level for e in exposures}) == 4
    for exposure in exposures:
        y, x = np.indices(exposure.data.shape)
        clean = exposure.good & ~exposure.hits
        rest = (exposure.data - scene(*exposure.wcs(x, y)))[clean]
        assert rest.mean() == pytest.approx(exposure.level, abs=5 * 0.02 / np.sqrt(clean.sum()))
        assert np.std(rest) == pytest.approx(0.02, rel=0.05)
        assert exposure.err[clean] == pytest.approx(0.02)


def test_scene_may_be_any_function_of_the_sky():
    (exposure,) = simulate_mosaic(
        rng=rng(), tiles=(1, 1), dithers=1, center=(0.0, 70.0), binning=16, noise=0, cosmic_rays=0,
        scene=lambda ra, dec: 100 * (dec - 70) + np.sin(np.radians(ra)), level_range=(0, 0),
    )  # fmt: skip
    y, x = np.indices(exposure.data.shape)
    ra, dec = exposure.wcs(x, y)
    expected = 100 * (dec - 70) + np.sin(np.radians(ra))
    np.testing.assert_allclose(exposure.data[exposure.good], expected[exposure.good], atol=1e-5)


def test_same_seed_same_mosaic():
    options = {"tiles": (1, 2), "dithers": 1, "binning": 32}
    first, again, other = (simulate_mosaic(rng=rng(seed), **options) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(a.dq, b.dq)
        assert (a.name, a.level, a.pointing) == (b.name, b.level, b.pointing)
    assert other[0].level != first[0].level


def test_names_types_and_levels():
    options = {"detectors": ["NRCA1", "NRCB4"], "tiles": (2, 1), "dithers": 2, "binning": 32}
    exposures = simulate_mosaic(rng=rng(), **options)
    assert [e.name for e in exposures[:3]] == [
        "jw09001001001_02101_00001_nrca1",
        "jw09001001001_02101_00001_nrcb4",
        "jw09001001001_02101_00002_nrca1",
    ]
    assert exposures[-1].group == "jw09001002001_02101_00002"
    assert (exposures[0].data.dtype, exposures[0].err.dtype, exposures[0].dq.dtype) == ("f4", "f4", "u4")
    assert len({(e.group, e.level) for e in exposures}) == 4
    assert len({e.level for e in simulate_mosaic(rng=rng(), level_per="detector", **options)}) == 8


def test_misuse_is_named():
    with pytest.raises(ValueError, match="level_per='exposure'"):
        simulate_mosaic(rng=rng(), level_per="exposure")
    with pytest.raises(ValueError, match="scene='stars'"):
        simulate_mosaic(rng=rng(), scene="stars")


def test_nan_only_where_bad():
    (exposure,) = simulate_mosaic(rng=rng(), tiles=(1, 1), dithers=1, bad_pixels=0.05)
    lost = ~np.isfinite(exposure.data)
    assert lost.any()
    assert (exposure.dq[lost] & DO_NOT_USE).all()
    assert not lost[exposure.good].any()
    assert np.isfinite(exposure.err).all()


def test_cosmic_rays_are_mostly_unflagged():
    (exposure,) = simulate_mosaic(
        rng=rng(), tiles=(1, 1), dithers=1, binning=2, scene=None, cosmic_rays=0.01, bad_pixels=0
    )
    assert exposure.hits.mean() == pytest.approx(0.01, rel=0.05)
    jump = (exposure.dq & JUMP_DET) > 0
    assert (jump & exposure.hits).sum() == jump.sum()
    assert jump.sum() / exposure.hits.sum() == pytest.approx(0.3, abs=0.03)
    assert not (jump & exposure.good).any()
    rest = exposure.data - exposure.level
    seen = exposure.good & exposure.hits
    assert rest[seen].mean() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("binning", "border"), [(1, 4), (2, 2), (8, 1)])
def test_nircam_reference_pixels(binning, border):
    dq = detectors.static_dq(Detector.named("NRCB2"), binning=binning)
    inside = dq[border:-border, border:-border]
    assert not inside.any()
    assert (dq == DO_NOT_USE | NON_SCIENCE).sum() == dq.size - inside.size


def test_miri_fields():
    miri = Detector.named("MIRIMAGE")
    dq, lyot = detectors.static_dq(miri), detectors.lyot_region(miri)
    assert lyot[745:, :284].all()
    assert lyot.sum() == 279 * 284
    assert not dq[lyot].any()
    assert not dq[:, 351:].any()
    assert (dq[:745, :351] & NON_SCIENCE).all()
    assert (dq[:, 284:351] & DO_NOT_USE).all()
    assert not detectors.lyot_region(Detector.named("NRCA1")).any()


def test_lyot_offset_and_shot_noise():
    (exposure,) = simulate_mosaic(
        rng=rng(), detectors=["MIRIMAGE"], tiles=(1, 1), dithers=1, scene=None, binning=4,
        noise=0.01, shot=0.01, lyot_offset=3.0, level_range=(1, 1), cosmic_rays=0, bad_pixels=0,
    )  # fmt: skip
    lyot = detectors.lyot_region(exposure.detector, binning=4)
    for region, level in ((lyot, 4.0), (~lyot, 1.0)):
        values = exposure.data[region & exposure.good]
        assert values.mean() == pytest.approx(level, abs=0.01)
        assert values.std() == pytest.approx(np.sqrt(1e-4 + 0.01 * level), rel=0.05)
    assert np.abs(exposure.data[exposure.dq == NON_SCIENCE | DO_NOT_USE]).max() < 0.1


# -------------------------------------------------------------------------------------------------- preview


def test_preview_subtracts_levels_and_has_east_left():
    exposures = simulate_mosaic(
        rng=rng(), tiles=(1, 2), dithers=2, center=(0.0, 0.0), noise=0, cosmic_rays=0, binning=16,
        scene=lambda ra, dec: 3600 * ((ra + 180) % 360 - 180),
    )  # fmt: skip
    image, (left, right, bottom, top) = simulate.preview(exposures, {e.name: e.level for e in exposures}, 100)
    same, _ = simulate.preview(exposures, [e.level for e in exposures], 100)
    np.testing.assert_array_equal(image, same)
    assert max(image.shape) <= 101
    cell = (left - right) / image.shape[1]
    assert (top - bottom) / image.shape[0] == pytest.approx(cell)
    slope = np.diff(image, axis=1)
    assert np.nanmedian(slope) == pytest.approx(-cell, rel=0.02)
    raw, _ = simulate.preview(exposures, pixels=100)
    levels = [e.level for e in exposures]
    assert min(levels) - 1e-4 < np.nanmin(raw - image) < np.nanmax(raw - image) < max(levels) + 1e-4


def test_jwst_can_adjust_the_wcs():
    """tweakreg's tools know the WCS as one of jwst's: right ascension moves by what is asked."""
    from jwst.tweakreg.utils import adjust_wcs

    wcs = detector_wcs(Detector.named("NRCALONG"), 10.0, 20.0, 30.0, binning=32)
    center = np.array([32.0]), np.array([32.0])
    moved = adjust_wcs(wcs, delta_ra=0.1)
    assert moved(*center)[0] - wcs(*center)[0] == pytest.approx(0.1, abs=1e-9)


def test_tilted_backgrounds_are_planes_on_the_sky():
    exposures = simulate_mosaic(
        rng=np.random.default_rng(3),
        detectors=("MIRIMAGE",),
        tiles=(1, 1),
        dithers=2,
        binning=16,
        scene=None,
        cosmic_rays=0.0,
        bad_pixels=0.0,
        noise=1e-6,
        tilt=0.3,
    )
    for exposure in exposures:
        y, x = np.nonzero(exposure.good)
        background = exposure.background(*exposure.wcs(x, y))
        np.testing.assert_allclose(exposure.data[y, x], background, atol=2e-5)
        assert np.ptp(background) > 0.1
    assert exposures[0].slope != exposures[1].slope
