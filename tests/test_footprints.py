"""Outlines of good pixels: shape, area, neighbours, and the way back to pixels."""

import numpy as np
import pytest
import shapely
from common import EMPTY, IMAGES, PLACES, SHAPE, TWINS, tan, to_pixels, to_sky
from hypothesis import given, settings
from hypothesis import strategies as st

from bkgmatch.footprints import angles, candidate_neighbours, footprint, good_region, outlines_in_plane, solid_angle


def ones(ny=SHAPE[0], nx=SHAPE[1]):
    return np.ones((ny, nx), dtype=bool)


def with_hole(rows, columns, shape=SHAPE):
    good = ones(*shape)
    good[rows, columns] = False
    return good


def unit(ra, dec):
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def triangle_area(a, b, c):
    """Eriksson's formula for the solid angle of a spherical triangle."""
    return 2 * np.arctan2(abs(np.dot(a, np.cross(b, c))), 1 + a @ b + b @ c + c @ a)


def square_area(wcs, ny, nx):
    """Solid angle of a whole image between the great circles through its corners."""
    x, y = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]), np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
    a, b, c, d = unit(*wcs.wcs_pix2world(x, y, 0))
    return triangle_area(a, b, c) + triangle_area(a, c, d)


def inside(region, shape):
    """Pixels whose centres are in a region, by shapely."""
    y, x = np.indices(shape)
    return shapely.contains_xy(region, x.ravel(), y.ravel()).reshape(shape)


# good_region


def test_all_good_is_the_detector():
    assert good_region(ones()).equals(shapely.box(-0.5, -0.5, 59.5, 47.5))


def test_all_bad_is_empty():
    assert good_region(~ones()).is_empty


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2), (7, 7), (8, 8), (9, 17)])
def test_small_images_are_boxes(shape):
    region = good_region(ones(*shape))
    assert region.equals(shapely.box(-0.5, -0.5, shape[1] - 0.5, shape[0] - 0.5))


def test_only_one_good_pixel():
    good = ~ones()
    good[20, 31] = True
    assert good_region(good).equals(shapely.box(30.5, 19.5, 31.5, 20.5))


def test_hole():
    good = with_hole(slice(16, 32), slice(16, 40))
    region = good_region(good)
    assert region.equals(shapely.box(-0.5, -0.5, 59.5, 47.5) - shapely.box(15.5, 15.5, 39.5, 31.5))
    np.testing.assert_array_equal(inside(region, SHAPE), good)


def test_hole_in_cropped_image():
    good = ~ones()
    good[3:45, 5:57] = True
    good[14:34, 20:42] = False
    np.testing.assert_array_equal(inside(good_region(good), SHAPE), good)


def test_several_parts():
    good = with_hole(slice(None), slice(20, 36))
    region = good_region(good)
    assert len(shapely.get_parts(region)) == 2
    np.testing.assert_array_equal(inside(region, SHAPE), good)


def test_concave():
    good = with_hole(slice(24, None), slice(24, None))
    region = good_region(good)
    assert region.area == good.sum()
    np.testing.assert_array_equal(inside(region, SHAPE), good)


def test_hole_that_holds_an_island():
    good = with_hole(slice(8, 40), slice(8, 52))
    good[18:30, 22:38] = True
    region = good_region(good)
    assert region.area == good.sum()
    np.testing.assert_array_equal(inside(region, SHAPE), good)


def test_small_islands_are_dropped():
    good = with_hole(slice(8, 40), slice(8, 52))
    expected = good.copy()
    good[20:24, 30:34] = True
    np.testing.assert_array_equal(inside(good_region(good), SHAPE), expected)


@pytest.mark.parametrize("width", [1, 2, 7])
def test_thin_bad_columns_are_filled(width):
    assert good_region(with_hole(slice(None), slice(25, 25 + width))).equals(good_region(ones()))


def test_isolated_bad_pixels_are_filled():
    good = ones(200, 200)
    good.flat[np.random.default_rng(3).choice(good.size, 400, replace=False)] = False
    good[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    assert good_region(good).equals(good_region(ones(200, 200)))


def test_isolated_bad_pixels_do_not_hide_a_hole():
    good = with_hole(slice(16, 48), slice(24, 64), (96, 96))
    speckled = good.copy()
    speckled[::7, ::7] = False
    speckled[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    assert good_region(speckled).area == pytest.approx(good.sum(), rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 63))
def test_less_than_64_bad_pixels_never_make_a_hole(y, x, n):
    good = ones(64, 64)
    y, x = 4 + y % 49, 4 + x % 49
    block = np.ones(64, dtype=bool)
    block[:n] = False
    good[y : y + 8, x : x + 8] = block.reshape(8, 8)
    assert good_region(good).equals(good_region(ones(64, 64)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(15, 25), st.integers(15, 25))
def test_bad_block_of_15_pixels_always_makes_a_hole(y, x, height, width):
    good = with_hole(slice(y, y + height), slice(x, x + width), (64, 64))
    np.testing.assert_array_equal(inside(good_region(good), good.shape), good)


def test_round_region_to_within_a_pixel():
    y, x = np.indices((100, 110))
    distance = np.hypot(x - 50.3, y - 48.2)
    region = good_region(distance < 40)
    circle = shapely.Point(50.3, 48.2).buffer(40, quad_segs=200)
    assert len(shapely.get_parts(region)) == 1
    assert shapely.hausdorff_distance(region.boundary, circle.boundary) < 1.5
    assert region.area == pytest.approx((distance < 40).sum(), rel=0.01)


def test_random_shapes_to_within_a_pixel():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        good = ones(80, 90)
        for y, x in rng.integers(0, 60, (3, 2)):
            good[y : y + 20, x : x + 20] = False
        rows, columns = np.flatnonzero(good.any(1)), np.flatnonzero(good.any(0))
        good = good[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found = inside(good_region(good), good.shape)
        wrong = found != good
        assert wrong.sum() < 64, seed  # no aligned block fits, or too small a part


# Footprint: area, outline, projection


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("angle", [0.0, 33.0])
def test_area_of_an_image(place, angle):
    wcs = tan(*PLACES[place], angle=angle)
    assert footprint(ones(), to_sky(wcs)).area() == pytest.approx(square_area(wcs, *SHAPE), rel=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_area_without_a_hole(place):
    wcs = tan(*PLACES[place], angle=20)
    good = with_hole(slice(16, 32), slice(16, 40))
    expected = square_area(wcs, *SHAPE) * good.mean()
    assert footprint(good, to_sky(wcs)).area() == pytest.approx(expected, rel=1e-6)
    assert footprint(good, to_sky(wcs), overlap="footprint").area() == pytest.approx(square_area(wcs, *SHAPE), rel=1e-6)


def test_area_of_a_wide_square():
    wcs = tan(10.0, 50.0, shape=(100, 100), pixel=600.0)
    assert footprint(ones(100, 100), to_sky(wcs)).area() == pytest.approx(square_area(wcs, 100, 100), rel=1e-4)


def test_area_of_a_cap():
    wcs = tan(70.0, -89.0, shape=(801, 801), pixel=60.0)
    y, x = np.indices((801, 801))
    centre, here = unit(70.0, -89.0), unit(*wcs.wcs_pix2world(x.ravel(), y.ravel(), 0))
    radius = np.deg2rad(6.0)
    good = (here @ centre > np.cos(radius)).reshape(801, 801)
    assert footprint(good, to_sky(wcs)).area() == pytest.approx(2 * np.pi * (1 - np.cos(radius)), rel=2e-3)


@pytest.mark.parametrize("middle", [0.0, 180.0])
@pytest.mark.parametrize("dec", [-30.0, 0.0, 70.0])
def test_area_of_a_lune_between_parallels(middle, dec):
    def linear(x, y):
        return (middle + (x - 49.5) * 0.1) % 360, dec + (y - 24.5) * 0.1

    expected = np.deg2rad(10) * (np.sin(np.deg2rad(dec + 2.5)) - np.sin(np.deg2rad(dec - 2.5)))
    assert footprint(ones(50, 100), linear, stepsize=1).area() == pytest.approx(expected, rel=1e-5)


def test_solid_angle_of_an_octant_of_a_cap():
    """The great circles at right angles through the tangent point cut a quarter from a cap."""
    angle = np.linspace(0, np.pi / 2, 2000)
    rim = np.tan(np.deg2rad(20)) * np.column_stack([np.cos(angle), np.sin(angle)])
    wedge = shapely.Polygon([(0, 0), *rim])
    assert solid_angle(wedge) == pytest.approx(np.pi / 2 * (1 - np.cos(np.deg2rad(20))), rel=1e-5)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_image(kind):
    good = np.isfinite(IMAGES[kind]())
    wcs = tan(0.0, 20.0, shape=good.shape)
    found = footprint(good, to_sky(wcs))
    assert found.is_empty == (kind in EMPTY)
    region = good_region(good)
    pixel = np.deg2rad(0.1 / 3600) ** 2
    assert found.area() == pytest.approx(region.area * pixel, rel=1e-4, abs=0)


def test_all_bad_is_empty_in_each_mode():
    for overlap in ("good", "footprint", "exact"):
        found = footprint(~ones(), to_sky(tan()), overlap=overlap)
        assert found.is_empty
        assert found.area() == 0


@pytest.mark.parametrize("place", PLACES)
def test_to_pixels_is_the_inverse_of_the_wcs(place):
    wcs = tan(*PLACES[place], angle=-71.0)
    found = footprint(ones(), to_sky(wcs))
    x, y = np.random.default_rng(4).uniform([[-0.5], [-0.5]], [[59.5], [47.5]], (2, 500))
    back = found.to_pixels(found.project(unit(*wcs.wcs_pix2world(x, y, 0))))
    np.testing.assert_allclose(back, np.column_stack([x, y]), atol=1e-4)


def test_to_pixels_of_a_distorted_image():
    wcs = tan(0.01, 60.0, shape=(1000, 1000), angle=10)

    def distorted(x, y):
        u, v = (x - 500) / 500, (y - 500) / 500
        return to_sky(wcs)(x + 5 * u * v - 3 * u**3, y + 4 * u**2 + 2 * v**3 * u)

    found = footprint(ones(1000, 1000), distorted)
    x, y = np.random.default_rng(4).uniform(-0.5, 999.5, (2, 1000))
    back = found.to_pixels(found.project(unit(*distorted(x, y))))
    np.testing.assert_allclose(back, np.column_stack([x, y]), atol=0.02)


@pytest.mark.parametrize("place", PLACES)
def test_outline_lies_on_the_edge_of_the_image(place):
    wcs = tan(*PLACES[place], angle=5)
    found = footprint(ones(), to_sky(wcs))
    ra = np.rad2deg(np.arctan2(found.vectors[:, 1], found.vectors[:, 0]))
    dec = np.rad2deg(np.arctan2(found.vectors[:, 2], np.hypot(found.vectors[:, 0], found.vectors[:, 1])))
    x, y = to_pixels(wcs, ra, dec)
    to_edge = np.minimum(np.minimum(abs(x + 0.5), abs(x - 59.5)), np.minimum(abs(y + 0.5), abs(y - 47.5)))
    np.testing.assert_allclose(to_edge, 0, atol=1e-4)


def test_stepsize_is_the_largest_separation_of_vertices():
    for stepsize in (2, 10):
        found = footprint(ones(), to_sky(tan()), stepsize=stepsize)
        pixels = found.to_pixels(found.project(found.vectors))
        gaps = np.hypot(*np.diff(pixels, axis=0).T)
        assert 0.7 * stepsize < gaps.max() < 1.01 * stepsize


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("place", PLACES)
def test_outlines_of_twins_intersect_in_their_area(twin, place):
    ra, dec = PLACES[place]
    one, two = (footprint(ones(), to_sky(tan(ra + shift, dec, angle=7))) for shift in (0, TWINS[twin]))
    common = shapely.intersection(*outlines_in_plane([one, two], one))
    assert solid_angle(common) == pytest.approx(one.area(), rel=2e-4)


def test_outline_in_the_plane_of_another():
    """Half an image away, half of the area is common."""
    one, two = (footprint(ones(), to_sky(tan(0.0, 30.0, shift=(shift, 0)))) for shift in (0, 30))
    common = shapely.intersection(*outlines_in_plane([one, two], one))
    assert solid_angle(common) == pytest.approx(one.area() / 2, rel=1e-5)


# Errors


def test_error_for_a_wcs_that_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        footprint(ones(), lambda x, y: (np.where(x > 40, np.nan, x * 1e-5), y * 1e-5))


def test_error_for_a_wcs_that_folds():
    with pytest.raises(ValueError, match="not one-to-one"):
        footprint(ones(), lambda x, y: (np.abs(x - 30) * 1e-4, y * 1e-4))


@pytest.mark.parametrize(("ra", "dec"), [(10.0, 5.0), (0.0, 0.0), (0.0, 90.0)])
def test_error_for_a_wcs_that_is_constant(ra, dec):
    with pytest.raises(ValueError, match="not smooth or not one-to-one"):
        footprint(ones(), lambda x, y: (ra + 0 * x, dec + 0 * y))


def test_error_for_a_wcs_that_jumps_back():
    with pytest.raises(ValueError, match="not one-to-one"):
        footprint(ones(), lambda x, y: (x * 1e-4 - np.where(x > 25, 0.001, 0), y * 1e-4))


@pytest.mark.parametrize("pixel", [3600.0, 2.0 * 3600])
def test_error_for_an_image_that_is_too_large(pixel):
    with pytest.raises(ValueError, match="at most 20"):
        footprint(ones(), to_sky(tan(pixel=pixel)))


def test_error_for_an_all_sky_image():
    with pytest.raises(ValueError, match="at most 20"):
        footprint(ones(180, 360), lambda x, y: (x + 0.5, y - 89.5))


# candidate_neighbours


def circles_that_touch(footprints):
    """All pairs, by brute force."""
    centres = np.array([f.axes[2] for f in footprints])
    radii = np.array([f.radius for f in footprints])
    chord = np.linalg.norm(centres[:, None] - centres, axis=2)
    touch = 2 * np.arcsin(np.minimum(chord / 2, 1)) <= radii[:, None] + radii
    np.fill_diagonal(touch, False)
    return [np.flatnonzero(row) for row in touch]


def random_fields(rng, n, ra, dec, sizes):
    images = zip(ra, dec, rng.choice(sizes, n), rng.uniform(0, 360, n), strict=True)
    return [
        footprint(ones(8, 10), to_sky(tan(r, d, shape=(8, 10), angle=a, pixel=size * 360))) for r, d, size, a in images
    ]


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_over_the_whole_sky(seed):
    rng = np.random.default_rng(seed)
    dec = np.rad2deg(np.arcsin(rng.uniform(-1, 1, 250)))
    fields = random_fields(rng, 250, rng.uniform(0, 360, 250), dec, [0.01, 1.0, 10.0, 25.0])
    expected = circles_that_touch(fields)
    assert sum(len(near) for near in expected) > 100
    for found, near in zip(candidate_neighbours(fields), expected, strict=True):
        np.testing.assert_array_equal(found, near)


@pytest.mark.parametrize("place", PLACES)
def test_neighbours_in_one_place(place):
    rng = np.random.default_rng(5)
    ra0, dec0 = PLACES[place]
    dec = np.clip(dec0 + rng.normal(0, 3, 80), -90, 90)
    ra = ra0 + rng.normal(0, 3, 80) / np.maximum(np.cos(np.deg2rad(dec)), 0.02)
    fields = random_fields(rng, 80, ra % 360, dec, [0.05, 0.5, 4.0])
    expected = circles_that_touch(fields)
    assert sum(len(near) for near in expected) > 50
    for found, near in zip(candidate_neighbours(fields), expected, strict=True):
        np.testing.assert_array_equal(found, near)


@pytest.mark.parametrize("place", PLACES)
def test_no_neighbour_that_shares_a_point_is_missed(place):
    """Points inside each image, back to the pixels of all others by astropy."""
    rng = np.random.default_rng(6)
    offsets, angles = rng.uniform(-80, 80, (30, 2)), rng.uniform(0, 360, 30)
    frames = [tan(*PLACES[place], shift=tuple(o), angle=a) for o, a in zip(offsets, angles, strict=True)]
    near = candidate_neighbours([footprint(ones(), to_sky(wcs)) for wcs in frames])
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(0, 48, 4), np.arange(0, 60, 4), indexing="ij"))
    shared = 0
    for i, here in enumerate(frames):
        ra, dec = here.wcs_pix2world(x, y, 0)
        for j, there in enumerate(frames):
            u, v = to_pixels(there, ra, dec)
            if i != j and ((abs(u - 29.5) < 30) & (abs(v - 23.5) < 24)).any():
                shared += 1
                assert j in near[i]
    assert shared > 50


@pytest.mark.parametrize("twin", TWINS)
def test_twins_are_neighbours(twin):
    pair = [footprint(ones(), to_sky(tan(shift, 89.0))) for shift in (0, TWINS[twin])]
    assert [list(near) for near in candidate_neighbours(pair)] == [[1], [0]]


def test_empty_footprints_have_no_neighbours():
    wcs = to_sky(tan())
    trio = [footprint(good, wcs) for good in (ones(), ~ones(), ones())]
    assert [list(near) for near in candidate_neighbours(trio)] == [[2], [], [0]]
    assert [list(near) for near in candidate_neighbours([trio[1], trio[1]])] == [[], []]
    assert [list(near) for near in candidate_neighbours([trio[0]])] == [[]]
    assert candidate_neighbours([]) == []


def test_right_ascension_is_below_360():
    ra, dec = angles(np.array([[1.0, -1e-17, 0.0], [1.0, 0.0, 0.0], [0.0, -1.0, 1.0]]))
    np.testing.assert_array_equal(ra, [0, 0, 270])
    np.testing.assert_allclose(dec, [0, 0, 45])
