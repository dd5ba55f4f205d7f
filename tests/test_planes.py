"""Planes on the sky against direct evaluation at each pixel."""

import numpy as np
import pytest
from common import PLACES, SHAPE, tan, to_sky

from bkgmatch.detectors import Detector, Pointing, detector_wcs
from bkgmatch.planes import Plane, tangent_axes

SLOPE = (0.3, -0.2)  # per arcsec


def offsets(ra, dec, centre):
    """Arcseconds to the east and to the north in the gnomonic projection, by the formulas of the textbook."""
    a, d, a0, d0 = np.deg2rad(ra), np.deg2rad(dec), *np.deg2rad(centre)
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a - a0)
    east = np.cos(d) * np.sin(a - a0) / cosine
    north = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a - a0)) / cosine
    return np.rad2deg(east) * 3600, np.rad2deg(north) * 3600


def directly(plane, wcs, shape):
    y, x = np.indices(shape)
    ra, dec = wcs(x.ravel().astype(float), y.ravel().astype(float))
    east, north = offsets(np.asarray(ra), np.asarray(dec), plane.centre)
    return (plane.level + plane.slope[0] * east + plane.slope[1] * north).reshape(shape)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (1, 30), (30, 1), (2, 3)])
def test_on_pixels_of_any_place(place, shape):
    wcs = to_sky(tan(*PLACES[place], angle=23.0, shape=shape))
    ra, dec = wcs(np.array([5.0]), np.array([9.0]))
    plane = Plane(2.0, SLOPE, (float(ra[0]), float(dec[0])))
    found = plane.on_pixels(wcs, shape)
    assert found.shape == shape
    np.testing.assert_allclose(found, directly(plane, wcs, shape), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["NRCALONG", "NRCA1", "MIRIMAGE"])
@pytest.mark.parametrize("binning", [1, 8])
def test_on_pixels_of_jwst(name, binning):
    """Distortion bends a plane on the sky by more than a pixel; the series follows it."""
    detector = Detector.named(name)
    wcs = detector_wcs(detector, *Pointing(83.0, -69.0, 120.0), binning=binning)
    shape = detector.size[1] // binning, detector.size[0] // binning
    ra, dec = (float(a) for a in wcs(shape[1] / 2, shape[0] / 2))
    plane = Plane(-1.0, SLOPE, (ra, dec))
    step = 64 // binning
    found, expected = plane.on_pixels(wcs, shape)[::step, ::step], directly_sampled(plane, wcs, shape, step)
    change = np.ptp(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * change)
    y, x = np.indices(found.shape).reshape(2, -1)
    terms = np.stack([np.ones(len(x)), x, y], axis=1)
    bent = expected.ravel() - terms @ np.linalg.lstsq(terms, expected.ravel(), rcond=None)[0]
    assert np.abs(bent).max() > 1e-4 * change  # a plane in pixels would fail


def directly_sampled(plane, wcs, shape, step):
    return directly(plane, lambda x, y: wcs(x * step, y * step), tuple(-(-n // step) for n in shape))


def test_a_constant_is_a_number():
    assert Plane(3.5).on_pixels(to_sky(tan()), SHAPE) == 3.5


def test_slopes_are_to_the_east_and_to_the_north():
    """Right ascension grows to the left of an image whose north is up."""
    wcs = to_sky(tan(10.0, 40.0, shape=(41, 41)))
    east = Plane(0.0, (1.0, 0.0), (10.0, 40.0)).on_pixels(wcs, (41, 41))
    north = Plane(0.0, (0.0, 1.0), (10.0, 40.0)).on_pixels(wcs, (41, 41))
    np.testing.assert_allclose(east[20], 0.1 * (20 - np.arange(41)), atol=1e-6)
    np.testing.assert_allclose(north[:, 20], 0.1 * (np.arange(41) - 20), atol=1e-6)
    assert east[20, 20] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("place", PLACES)
def test_axes(place):
    axes = tangent_axes(*PLACES[place])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[0, 2] == 0  # east is along the parallel
    assert axes[1, 2] >= 0  # north is up


def test_sum():
    centre = (5.0, 6.0)
    total = Plane(1.0, (0.1, 0.2), centre) + Plane(2.0, (0.3, -0.1), centre)
    assert (total.level, total.centre) == (3.0, centre)
    np.testing.assert_allclose(total.slope, (0.4, 0.1))
    for one, two in [(Plane(1.0, (0.1, 0.2), centre), Plane(2.0)), (Plane(2.0), Plane(1.0, (0.1, 0.2), centre))]:
        assert one + two == Plane(3.0, (0.1, 0.2), centre)
    with pytest.raises(ValueError, match="cannot be added"):
        Plane(1.0, (0.1, 0.2), centre) + Plane(1.0, (0.1, 0.2), (5.0, 6.1))


def test_plus_then_minus_is_nothing():
    wcs = to_sky(tan(0.0, 80.0, angle=70.0))
    plane = Plane(1.0, SLOPE, (0.0, 80.0))
    less = Plane(-1.0, (-SLOPE[0], -SLOPE[1]), (0.0, 80.0))
    np.testing.assert_allclose(plane.on_pixels(wcs, SHAPE) + less.on_pixels(wcs, SHAPE), 0, atol=1e-12)
    assert (plane + less).on_pixels(wcs, SHAPE) == 0


def test_planes_about_one_position_across_right_ascension_0_add_up():
    one, two = Plane(1.0, (0.1, 0.0), (0.0, 20.0)), Plane(2.0, (0.2, 0.5), (360 - 1e-13, 20.0))
    assert (one + two).level == 3.0
    assert (one + two).slope == pytest.approx((0.3, 0.5))
    with pytest.raises(ValueError, match="cannot be added"):
        one + Plane(2.0, (0.2, 0.5), (359.9, 20.0))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 30), (2, 3)])
def test_an_anchored_plane_stays_in_its_image(place, shape):
    """Wherever that moves, however it turns, and whatever is added meanwhile."""
    ra, dec = PLACES[place]
    before, after = (to_sky(tan(ra, dec, angle=a, shape=shape, shift=s)) for a, s in ((23, (0, 0)), (60, (9, -5))))
    centres = [tuple(float(angle) for angle in wcs(shape[1] / 2, shape[0] / 2)) for wcs in (before, after)]
    first, second = Plane(2.0, SLOPE, centres[0]), Plane(-1.0, (0.1, 0.1), centres[1])
    kept = first.anchored(before, shape)
    assert kept == first
    assert (kept.on_pixels(before, shape) == first.on_pixels(before, shape)).all()
    then = first.on_pixels(before, shape)
    np.testing.assert_allclose(kept.on_pixels(after, shape), then, rtol=0, atol=1e-8)
    total = kept.anchored(after, shape) + Plane(0.5) + second.anchored(after, shape)
    expected = then + 0.5 + second.on_pixels(after, shape)
    np.testing.assert_allclose(total.on_pixels(before, shape), expected, rtol=0, atol=1e-8)


def test_an_anchored_plane_stays_in_a_distorted_image():
    """As after tweakreg: it is bent in pixels as it was, to a millionth."""
    detector = Detector.named("NRCALONG")
    before, after = (
        detector_wcs(detector, *Pointing(83.0 + shift, -69.0, 120.0 + turn), binning=16)
        for shift, turn in ((0, 0), (1 / 3600, 0.05))
    )
    shape = tuple(n // 16 for n in detector.size[::-1])
    plane = Plane(-1.0, SLOPE, tuple(float(a) for a in before(shape[1] / 2, shape[0] / 2)))
    then = plane.on_pixels(before, shape)
    found = plane.anchored(before, shape).on_pixels(after, shape)
    np.testing.assert_allclose(found, then, rtol=0, atol=1e-5 * np.ptp(then))


def test_anchors_are_of_one_shape():
    wcs, centre = to_sky(tan()), (150.0, 20.0)
    whole = Plane(1.0, SLOPE, centre).anchored(wcs, SHAPE)
    part = (SHAPE[0] // 2, SHAPE[1])
    assert (whole.on_pixels(wcs, part) == Plane(1.0, SLOPE, centre).on_pixels(wcs, part)).all()
    assert (whole + Plane(1.0, SLOPE, centre).anchored(wcs, part)).corners is None
    assert whole.anchored(wcs, part).corners.shape == part
