"""``bkgmatch.skymatch`` does what ``stcal.skymatch`` does.

The first half are the cases of stcal's own tests, in other words. They run on stcal too, which shows that they ask for
no more than stcal gives. The second half compares the two on noise.
"""

import copy
import inspect

import numpy as np
import pytest
import shapely
import stcal.skymatch
from astropy.modeling.models import Scale, Shift
from builders import tile_wcs
from common import slow
from gwcs import WCS

import bkgmatch.skymatch

SHAPE = (10, 10)
NOISE = 0.1
BINNING = 16
SIDE = 2048 // BINNING
STATISTICS = ("mean", "median", "midpt", "mode")
# Error of a statistic of n normal pixels: its theoretical factor over sigma / sqrt(n); stcal's mode and midpoint also
# err by a part of a bin.
FACTOR = {"mean": 1.0, "median": 1.26, "midpt": 1.26, "mode": 1.7}
BIN_FAULT = {"mean": 0.0, "median": 0.0, "midpt": 0.05, "mode": 0.25}


@pytest.fixture(params=["bkgmatch", "stcal"])
def lib(request):
    """Our module, and stcal's."""
    return {"bkgmatch": bkgmatch.skymatch, "stcal": stcal.skymatch}[request.param]


def flat_wcs(shift=(0.0, 0.0), origin=(1.0, 1.0)):
    """Ten pixels to an arcminute of right ascension and declination."""
    pixel = Scale(1 / 600)
    to_sky = (Shift(shift[0]) & Shift(shift[1])) | (pixel & pixel) | (Shift(origin[0]) & Shift(origin[1]))
    return WCS([("detector", to_sky), ("world", None)])


def flat_image(lib, value=0.0, wcs=None, skystat="mean", **others):
    wcs = wcs or flat_wcs()
    image, mask = np.full(SHAPE, value, dtype="f4"), np.ones(SHAPE, dtype=bool)
    return lib.SkyImage(image, mask, wcs.forward_transform, wcs.backward_transform, lib.SkyStats(skystat), **others)


def single(lib, kind, value=0.0, **others):
    image = flat_image(lib, value, **others)
    return image if kind == "image" else lib.SkyGroup([image])


# -------------------------------------------------------------------------------------------------- stcal's own cases


@pytest.mark.parametrize("kind", ["image", "group"])
def test_sky_starts_at_zero_and_can_be_set(lib, kind):
    one = single(lib, kind)
    assert one.sky == 0
    for value in (3, -2.5, 0):
        one.sky = value
        assert one.sky == value
        if kind == "group":
            assert one[0].sky == value


def test_the_sky_of_a_group_moves_its_members_together(lib):
    group = lib.SkyGroup([flat_image(lib), flat_image(lib)])
    group[1].sky = 5.0
    group.sky = 2.0
    assert [image.sky for image in group] == [2.0, 7.0]


def test_an_image_keeps_what_it_is_given(lib):
    image, mask, meta = np.zeros(SHAPE, "f4"), np.ones(SHAPE, bool), {"index": 3}
    wcs = flat_wcs()
    one = lib.SkyImage(
        image, mask, wcs.forward_transform, wcs.backward_transform, lib.SkyStats(), sky_id="x", meta=meta
    )
    assert one.image is image
    assert one.mask is mask
    assert one.meta is meta
    assert one.sky_id == "x"
    assert not one.is_sky_valid


def test_a_mask_of_another_shape_is_refused(lib):
    wcs = flat_wcs()
    with pytest.raises(ValueError, match="mask"):
        lib.SkyImage(
            np.zeros(SHAPE), np.ones((9, 10), bool), wcs.forward_transform, wcs.backward_transform, lib.SkyStats()
        )


@pytest.mark.parametrize("kind", ["image", "group"])
@pytest.mark.parametrize(("sky", "delta", "expected"), [(0, False, 42), (21, False, 42), (21, True, 21)])
def test_sky_of_a_whole_image(lib, kind, sky, delta, expected):
    one = single(lib, kind, 42)
    one.sky = sky
    value, npix, area = one.calc_sky(delta=delta)
    assert (value, npix) == (expected, 100)
    assert area == pytest.approx(one._polygon.area(), rel=1e-6)
    assert area == pytest.approx(np.radians(1 / 60) ** 2, rel=1e-3)


@pytest.mark.parametrize("kind", ["image", "group"])
@pytest.mark.parametrize("other", ["image", "group"])
@pytest.mark.parametrize("columns", [1, 4])
def test_sky_of_an_overlap(lib, kind, other, columns):
    check_sky_of_an_overlap(lib, kind, other, columns, origin=(0.0, 0.0))


@pytest.mark.parametrize("origin", [(1.0, 1.0), (200.0, 45.0), (359.99, -80.0)])
def test_sky_of_an_overlap_anywhere(origin):
    """At some of these places stcal counts the column that the outline touches."""
    check_sky_of_an_overlap(bkgmatch.skymatch, "image", "image", 3, origin)


def check_sky_of_an_overlap(lib, kind, other, columns, origin):
    """The other image starts some columns further on: only the columns that both have count."""
    one = single(lib, kind, wcs=flat_wcs(origin=origin))
    pixels = (one if kind == "image" else one[0]).image
    pixels[:, columns:] = 42
    value, npix, area = one.calc_sky(overlap=single(lib, other, 42, wcs=flat_wcs((columns, 0), origin)))
    assert (value, npix) == (42, 10 * (10 - columns))
    whole = np.radians(1 / 60) ** 2 * np.cos(np.radians(origin[1] + 1 / 120))
    assert area == pytest.approx((1 - columns / 10) * whole, rel=1e-3)


@pytest.mark.parametrize("kind", ["image", "group"])
def test_sky_where_there_is_none(lib, kind):
    one = single(lib, kind, 1)
    assert one.calc_sky(overlap=flat_image(lib, 1, flat_wcs((50, 0)))) == (None, 0, 0.0)
    (one if kind == "image" else one[0]).mask[:] = False
    assert one.calc_sky() == (None, 0, 0.0)


def test_groups_are_sequences(lib):
    images = [flat_image(lib), flat_image(lib, 1), flat_image(lib, 2)]
    group = lib.SkyGroup(images)
    assert len(group) == 3
    assert all(a is b for a, b in zip(group, images, strict=True))
    assert [group[n] for n in range(3)] == images
    with pytest.raises(ValueError, match="SkyGroup requires a list of images"):
        lib.SkyGroup([])


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("match_down", [False, True])
@pytest.mark.parametrize(
    ("method", "down", "up"),
    [
        ("local", (21, 42), (21, 42)),
        ("match", (0, 21), (-21, 0)),
        ("global", (21, 21), (21, 21)),
        ("global+match", (21, 42), (21, 42)),
        ("GLOBAL+Match", (21, 42), (21, 42)),
    ],
)
def test_methods(lib, method, down, up, match_down, subtract):
    pair = [flat_image(lib, 21), lib.SkyGroup([flat_image(lib, 42)])]
    assert lib.skymatch(pair, method, match_down, subtract) is None
    expected = down if match_down else up
    np.testing.assert_allclose([one.sky for one in pair], expected, atol=1e-5)
    for image, before, sky in zip((pair[0], pair[1][0]), (21, 42), expected, strict=True):
        np.testing.assert_allclose(image.image, before - sky * subtract, atol=1e-5)
        assert image.is_sky_valid


@pytest.mark.parametrize(
    ("images", "method", "error", "says"),
    [
        ([], "best", ValueError, "Unsupported 'skymethod'"),
        ([], "global", ValueError, "Argument 'images' must contain at least one image"),
        ([1, 2], "match", TypeError, "Each element of the 'images' must be"),
    ],
)
def test_misuse(lib, images, method, error, says):
    with pytest.raises(error, match=says):
        lib.skymatch(images, method)


def test_images_that_cannot_be_matched_are_left_alone(lib):
    images = [flat_image(lib, 1), flat_image(lib, 4), flat_image(lib, 9, flat_wcs((500, 0)))]
    lib.skymatch(images, "match", True, True)
    assert [image.sky for image in images] == pytest.approx([0, 3, 0])
    assert [image.is_sky_valid for image in images] == [True, True, False]
    assert [float(image.image.mean()) for image in images] == pytest.approx([1, 1, 9])


@pytest.mark.parametrize("skystat", STATISTICS)
def test_statistics_of_a_constant(lib, skystat):
    if (lib, skystat) == (stcal.skymatch, "midpt"):
        return  # imagestats gives 0 here
    value, npix = lib.SkyStats(skystat).calc_sky(np.full((10, 10), 1.0))
    assert (value, npix) == (pytest.approx(1, abs=1e-6), 100)


def test_midpoint_of_four_values(lib):
    value, npix = lib.SkyStats("midpt")(np.arange(4.0))
    assert (value, npix) == (pytest.approx(1.032796, rel=1e-6), 4)


def test_limits(lib):
    data = np.full((10, 10), 10.0)
    data[:5] = 0
    assert lib.SkyStats("mean", lower=5, upper=15).calc_sky(data) == (pytest.approx(10), 50)


@pytest.mark.parametrize("name", ["SkyImage", "SkyGroup", "SkyStats", "skymatch"])
def test_signatures(name):
    def parameters(module):
        signature = inspect.signature(getattr(module, name))
        return [(p.name, p.default, p.kind) for p in signature.parameters.values()]

    assert parameters(bkgmatch.skymatch) == parameters(stcal.skymatch)


# -------------------------------------------------------------------------------------------------- twins


@pytest.mark.parametrize("shift", [0.0, 1e-13, 1e-10, 1e-7])
def test_near_identical_twins(shift):
    """Here spherical polygons fail, and stcal takes the whole image, as it should be."""
    (wcs,) = tile_wcs((1, 1), binning=BINNING)
    moved = copy.deepcopy(wcs)
    moved.insert_transform("world", Shift(shift) & Shift(-shift), after=False)
    data = np.random.default_rng(5).normal(0, NOISE, (2, SIDE, SIDE)).astype("f4")
    one, two = (
        image_of(bkgmatch.skymatch, d, w, "mean") for d, w in zip((data[0] + 1, data[1] + 4), (wcs, moved), strict=True)
    )
    value, npix, area = one.calc_sky(overlap=two)
    whole, all_pixels, whole_area = one.calc_sky()
    assert all_pixels - npix <= SIDE  # clipping leaves out fewer; at most an edge row is lost
    assert value == pytest.approx(whole, abs=1e-3)
    assert area == pytest.approx(whole_area, rel=1e-4)
    bkgmatch.skymatch.skymatch([one, two], "match")
    error = NOISE * np.sqrt(2) / SIDE
    assert one.sky == 0
    assert two.sky == pytest.approx(3, abs=5 * error)


def test_twins_with_the_failure_that_stcal_catches(monkeypatch):
    """Where its intersection fails, stcal uses the whole first image; we get the same without failing."""
    from spherical_geometry.polygon import MalformedPolygonError, SphericalPolygon

    (wcs,) = tile_wcs((1, 1), binning=BINNING)
    data = np.random.default_rng(6).normal(3, NOISE, (SIDE, SIDE)).astype("f4")

    def fail(*_):
        raise MalformedPolygonError("made to fail")

    monkeypatch.setattr(SphericalPolygon, "intersection", fail)
    found = []
    for lib in (stcal.skymatch, bkgmatch.skymatch):
        one, two = image_of(lib, data, wcs, "mean"), image_of(lib, data, wcs, "mean")
        found.append(one.calc_sky(overlap=two))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], abs=SIDE)


def test_outlines_have_vertices_on_the_sky():
    """Of what has an area: two images may also touch in a point or along a line."""
    pole = np.eye(3)  # tangential at the north pole, x to right ascension 0
    square, line = shapely.box(0, 0, 0.1, 0.2), shapely.LineString([(1, 1), (2, 2)])
    outline = bkgmatch.skymatch.Outline(shapely.GeometryCollection([line, square]), pole)
    ((ra, dec),) = outline.to_radec()
    found = sorted({(round(float(a), 6), round(float(d), 6)) for a, d in zip(ra[:-1], dec[:-1], strict=True)})
    far = np.hypot(0.1, 0.2)
    corners = [(0, 90), (0, np.rad2deg(np.arctan(10))), (90, np.rad2deg(np.arctan(5)))]
    corners.append((np.rad2deg(np.arctan(2)), np.rad2deg(np.arctan(1 / far))))
    np.testing.assert_allclose(found, sorted(corners), atol=1e-6)
    assert list(bkgmatch.skymatch.Outline(line, pole).to_radec()) == []


@pytest.mark.parametrize("other", [bkgmatch.skymatch.SkyStats("median"), stcal.skymatch.SkyStats("mean"), np.mean])
def test_images_with_different_statistics_are_refused(other):
    images = [flat_image(bkgmatch.skymatch, value) for value in (1.0, 2.0)]
    images[1].skystat = other
    with pytest.raises(TypeError, match=r"skystat of all images must be a bkgmatch\.skymatch\.SkyStats with"):
        bkgmatch.skymatch.skymatch(images)
    assert [image.sky for image in images] == [0, 0]


# -------------------------------------------------------------------------------------------------- noise


def image_of(lib, data, wcs, skystat, mask=None, **others):
    mask = np.ones(data.shape, bool) if mask is None else mask
    return lib.SkyImage(data.copy(), mask, wcs.__call__, wcs.invert, lib.SkyStats(skystat), **others)


def noise_images(lib, skystat, levels, tiles=(2, 2), seed=8):
    rng = np.random.default_rng(seed)
    images = []
    for wcs, level in zip(tile_wcs(tiles, binning=BINNING), levels, strict=True):
        data = rng.normal(level, NOISE, (SIDE, SIDE)).astype("f4")
        mask = rng.random((SIDE, SIDE)) > 0.02
        data[~mask] = 50
        images.append(image_of(lib, data, wcs, skystat, mask))
    return images


def tolerance(skystat, npix, times=4.0):
    """Several standard errors of the difference, and what stcal's bins err by."""
    return times * FACTOR[skystat] * NOISE / np.sqrt(npix) + BIN_FAULT[skystat] * NOISE


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize(
    "options", [{}, {"nclip": 0}, {"lsig": 2.5, "usig": 3.0}, {"lower": 4.7, "upper": 5.4, "nclip": 2}]
)
def test_statistics_of_the_same_pixels(skystat, options):
    data = np.random.default_rng(9).normal(5, NOISE, 40_000).astype("f4")
    ours, theirs = (m.SkyStats(skystat, **options).calc_sky(data) for m in (bkgmatch.skymatch, stcal.skymatch))
    assert abs(ours[1] - theirs[1]) <= 2
    exact = {"mean": 1e-5, "median": 1e-4, "midpt": 0.1 * NOISE, "mode": 0.25 * NOISE}[skystat]
    assert ours[0] == pytest.approx(theirs[0], abs=exact)


def area_of_all_three(image, group):
    """Area of the intersection of an image of stcal and both members of a group."""
    return image.intersection(group[0]).intersection(group[1]._polygon).area()


@pytest.mark.parametrize("skystat", STATISTICS)
def test_overlaps_and_whole_images(skystat):
    results = []
    for lib in (bkgmatch.skymatch, stcal.skymatch):
        images = noise_images(lib, skystat, (1, 2, 4, 8))
        group = lib.SkyGroup(images[2:])
        found = [images[i].calc_sky(overlap=images[j]) for i in range(4) for j in range(4) if i != j]
        found += [image.calc_sky() for image in images]
        found += [group.calc_sky(overlap=images[0]), group.calc_sky()]
        sky, npix, area = images[0].calc_sky(overlap=group)
        if lib is stcal.skymatch:  # which counts the common part of the members twice
            area -= area_of_all_three(images[0], group)
        found.append((sky, npix, area))
        results.append(found)
    for (ours, npix, area), (theirs, their_npix, their_area) in zip(*results, strict=True):
        assert ours == pytest.approx(theirs, abs=tolerance(skystat, npix))
        # stcal fills the pixels that an outline touches, we those whose centre is inside.
        assert 0.9 * their_npix - 2 * SIDE**0.5 < npix < 1.01 * their_npix
        # stcal's outline has straight sides between the corners, which distortion bends.
        assert area == pytest.approx(their_area, rel=0.02)


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("method", [*map(slow, ("local", "global", "match")), "global+match"])
def test_matched_levels_of_noise(skystat, method):
    levels, found = (5.0, 2.0, 4.0, 8.0), []
    for lib in (bkgmatch.skymatch, stcal.skymatch):
        images = noise_images(lib, skystat, levels)
        lib.skymatch(images, method, True, False)
        assert all(image.is_sky_valid for image in images)
        found.append([image.sky for image in images])
    expected = {"local": levels, "global": [2] * 4, "match": np.subtract(levels, 2), "global+match": levels}[method]
    np.testing.assert_allclose(found[0], expected, atol=tolerance(skystat, 600) - BIN_FAULT[skystat] * NOISE)
    np.testing.assert_allclose(found[0], found[1], atol=tolerance(skystat, 600, times=6))


@pytest.mark.parametrize("kind", ["read-only", "integers"])
def test_images_from_which_nothing_can_be_subtracted_are_refused_unchanged(kind):
    ours = bkgmatch.skymatch
    images = [flat_image(ours, 3.0), flat_image(ours, 5.0)]
    if kind == "read-only":
        images[1].image.flags.writeable = False
    else:
        images[1].image = np.full(SHAPE, 5)
    with pytest.raises((TypeError, ValueError), match="or subtract=False"):
        ours.skymatch(images, "local", subtract=True)
    assert [image.sky for image in images] == [0, 0]
    np.testing.assert_array_equal(images[0].image, 3.0)


@pytest.mark.parametrize("match_down", [True, False])
def test_groups_of_noise(match_down):
    """Two groups of two: the members differ, and keep their difference."""
    found = []
    for lib in (bkgmatch.skymatch, stcal.skymatch):
        images = noise_images(lib, "mean", (1, 4, 1, 4))
        groups = [lib.SkyGroup(images[0::2]), lib.SkyGroup(images[1::2])]
        lib.skymatch(groups, "match", match_down, True)
        found.append([group.sky for group in groups] + [image.sky for image in images])
        shifts = [float(np.median(image.image)) for image in images]
        np.testing.assert_allclose(shifts, [1 if match_down else 4] * 4, atol=0.02)
    np.testing.assert_allclose(found[0], found[1], atol=0.01)
    np.testing.assert_allclose(found[0][:2], (0, 3) if match_down else (-3, 0), atol=0.01)


def test_repetition_starts_from_the_present_sky(lib):
    """As in stcal: what is subtracted already counts as sky, a second match finds nothing more."""
    images = noise_images(lib, "mean", (1, 2, 4, 8))
    lib.skymatch(images, "match", True, True)
    first = [image.sky for image in images]
    lib.skymatch(images, "match", True, True)
    np.testing.assert_allclose([image.sky for image in images], first, atol=0.01)
