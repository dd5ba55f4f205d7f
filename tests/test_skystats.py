"""Clipped statistics against numpy, scipy, stsci.imagestats, and the scatter of simulated noise."""

import numpy as np
import pytest
from common import EMPTY, IMAGES, few
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import gamma, gaussian_kde
from stsci.imagestats import ImageStats

from bkgmatch import histograms
from bkgmatch.histograms import bin_pixels
from bkgmatch.noise import sample_pairs
from bkgmatch.runs import Runs
from bkgmatch.skystats import SkyStatistic

STATISTICS = ("mean", "median", "midpt", "mode")
SMOOTH = {
    "normal": lambda rng, n: rng.normal(5, 2, n),
    "gamma": lambda rng, n: rng.gamma(2, 1, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "uniform": lambda rng, n: rng.uniform(-1, 3, n),
    "noise and stars": lambda rng, n: rng.normal(0, 1, n) + np.where(rng.random(n) < 0.05, 10 * rng.pareto(1, n), 0),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "log-normal": lambda rng, n: np.exp(rng.normal(0, 2, n)),
}
STEPPED = {
    "integers": lambda rng, n: rng.poisson(30, n).astype(float),
    "two values": lambda rng, n: rng.choice([2.0, 7.0], n),
    "mostly one value": lambda rng, n: np.where(rng.random(n) < 0.9, 4.0, rng.integers(0, 9, n)),
    "far apart": lambda rng, n: rng.choice([-1e6, 0.5, 1e6], n),
    "constant": lambda rng, n: np.full(n, -3.3),
}
ALL = SMOOTH | STEPPED


def draw(name, n, seed=0):
    return ALL[name](np.random.default_rng(seed), n)


def clipped(values, *, nclip=5, lsigma=4.0, usigma=4.0, lower=-np.inf, upper=np.inf):
    """Values that are left after clipping, sorted; as stsci.imagestats does it."""
    values = np.sort(np.asarray(values, dtype=float))
    kept = values[(values >= lower) & (values <= upper)]
    for _ in range(nclip if kept.size > 1 else 0):
        mean, std = kept.mean(), kept.std(ddof=1)
        low, high = max(lower, mean - lsigma * std), min(upper, mean + usigma * std)
        kept = values[(values >= low) & (values <= high)]
    return kept


def histogram_median(kept, binwidth):
    """Where half of the pixels is reached in a histogram whose first bin starts at the least pixel."""
    width = binwidth * kept.std(ddof=1)
    edges = kept[0] + width * np.arange(int(np.ptp(kept) / width) + 2)
    below = np.searchsorted(kept, edges)
    k = np.searchsorted(below, kept.size / 2) - 1
    return edges[k] + width * (kept.size / 2 - below[k]) / (below[k + 1] - below[k])


def kernel_peak(kept, binwidth):
    """Highest point of scipy's kernel density estimate."""
    density = gaussian_kde(kept, bw_method=5 * binwidth)
    grid = np.linspace(kept[0], kept[-1], 400)
    start = grid[density(grid).argmax()]
    step = grid[1] - grid[0]
    return minimize_scalar(lambda x: -density(x)[0], bounds=(start - step, start + step), method="bounded").x


def standard_error(kept):
    return kept.std(ddof=1) / np.sqrt(kept.size)


# Without clipping


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 101, 5000, 100_001])
def test_mean_without_clipping(name, n):
    values = draw(name, n)
    found = SkyStatistic("mean", nclip=0).of(values)
    assert found.npix[0] == n
    scale = np.abs(values - np.median(values)).max()
    assert abs(found.value[0] - values.mean()) <= 3e-7 * scale + 1e-15 * abs(values[0])


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 101, 5000])
def test_median_of_ties_is_exact(name, n):
    values = draw(name, n, seed=n)
    found = SkyStatistic("median", nclip=0).of(values)
    assert found.value[0] == pytest.approx(np.median(values), abs=1e-6 * np.abs(values).max())


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("n", [3, 4, 10, 101, 5000, 100_001])
def test_median_without_clipping(name, n):
    for seed in range(10):
        values = draw(name, n, seed)
        found = SkyStatistic("median", nclip=0).of(values)
        assert abs(found.value[0] - np.median(values)) < 0.15 * standard_error(values)


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 100], [1, 2, 3, 4], [5], [5, 6], [2, 2, 9], [0, 0, 0, 1, 1, 1]])
def test_median_of_few(values):
    assert SkyStatistic("median", nclip=0).of(values).value[0] == pytest.approx(np.median(values), rel=1e-6)


@pytest.mark.parametrize("skystat", STATISTICS)
def test_no_pixels(skystat):
    for values in ([], [np.nan], [np.nan, np.inf, -np.inf]):
        found = SkyStatistic(skystat).of(np.array(values))
        assert np.isnan([found.value[0], found.sigma[0]]).all()
        assert found.npix[0] == 0
    found = SkyStatistic(skystat, lower=5.0).of(np.arange(4.0))
    assert found.npix[0] == 0
    assert np.isnan(found.value[0])


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("level", [0.0, -7.25, 1e-30, 3e25, 16777217.0])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_constant(skystat, level, n):
    found = SkyStatistic(skystat).of(np.full(n, level))
    assert found.value[0] == pytest.approx(level, rel=1e-12)
    assert found.sigma[0] == 0
    assert found.npix[0] == n


@pytest.mark.parametrize("skystat", STATISTICS)
def test_values_that_are_not_finite_are_left_out(skystat):
    values = draw("normal", 1000)
    spoilt = np.concatenate([[np.nan, np.inf], values, [-np.inf, np.nan]])
    for one, two in zip(SkyStatistic(skystat).of(spoilt), SkyStatistic(skystat).of(values), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("outlier", [1e5, 1e30, -1e30])
def test_huge_outliers_do_not_spoil_the_rest(skystat, outlier):
    values = draw("normal", 2000)
    with_outliers = np.append(values, [outlier] * 5)
    for nclip in (5, 10):
        one = SkyStatistic(skystat, nclip=nclip).of(with_outliers)
        two = SkyStatistic(skystat, nclip=nclip).of(values)
        assert one.npix[0] == two.npix[0]
        assert abs(one.value[0] - two.value[0]) < 0.1 * two.sigma[0]


def test_mean_and_median_without_clipping_of_a_huge_outlier():
    values = np.append(draw("normal", 1001), 1e30)
    assert SkyStatistic("mean", nclip=0).of(values).value[0] == pytest.approx(1e30 / 1002, rel=1e-6)
    found = SkyStatistic("median", nclip=0).of(values).value[0]
    assert found == pytest.approx(np.median(values), abs=0.005)


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outliers_beyond_single_precision(skystat, dtype):
    """Fluxes in W/m2, say, and a saturated pixel: their ratio does not fit into single precision."""
    values = draw("normal", 2000)
    found = SkyStatistic(skystat).of(np.append(1e-20 * values, 1e30).astype(dtype))
    expected = SkyStatistic(skystat).of(values)
    assert found.npix[0] == expected.npix[0]
    assert abs(1e20 * found.value[0] - expected.value[0]) < 0.1 * expected.sigma[0]


# Clipping


@pytest.mark.parametrize("name", [*SMOOTH, "integers"])
@pytest.mark.parametrize("n", [501, 20_000])
@pytest.mark.parametrize("limits", [(4.0, 4.0), (3.0, 3.0), (2.0, 3.5)])
@pytest.mark.parametrize("nclip", [1, 5])
def test_clipped_mean_and_median(name, n, limits, nclip):
    lsigma, usigma = limits
    values = draw(name, n, seed=nclip)
    kept = clipped(values, nclip=nclip, lsigma=lsigma, usigma=usigma)
    settings_ = {"nclip": nclip, "lsigma": lsigma, "usigma": usigma}
    mean, median = (SkyStatistic(s, **settings_).of(values) for s in ("mean", "median"))
    assert mean.npix[0] == median.npix[0]
    assert abs(mean.npix[0] - kept.size) <= 2 + 5e-4 * n
    assert abs(mean.value[0] - kept.mean()) < 0.2 * standard_error(kept)
    assert abs(median.value[0] - np.median(kept)) < 0.2 * standard_error(kept)


@pytest.mark.parametrize("name", ["normal", "gamma", "noise and stars", "integers"])
def test_against_imagestats(name):
    values = draw(name, 3000)
    rival = ImageStats(values, fields="npix,mean", nclip=5, lsig=4.0, usig=4.0)
    found = SkyStatistic("mean").of(values)
    assert abs(found.npix[0] - rival.npix) <= 2
    assert abs(found.value[0] - rival.mean) < 0.1 * found.sigma[0]


@pytest.mark.parametrize("skystat", STATISTICS)
def test_lower_and_upper(skystat):
    values = draw("normal", 5000)
    inside = values[(values >= 3.1) & (values <= 6.7)]
    found = SkyStatistic(skystat, nclip=0, lower=3.1, upper=6.7).of(values)
    expected = SkyStatistic(skystat, nclip=0).of(inside)
    assert abs(found.npix[0] - inside.size) <= 3
    assert abs(found.value[0] - expected.value[0]) < 0.1 * expected.sigma[0]
    assert found.sigma[0] == pytest.approx(expected.sigma[0], rel=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_pixels_equal_to_a_limit_are_kept(dtype):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 50, 200).astype(dtype)
        lower, upper = (float(limit) for limit in np.sort(rng.integers(5, 45, 2)))
        inside = values[(values >= lower) & (values <= upper)]
        found = SkyStatistic("mean", lower=lower, upper=upper, nclip=0).of(values)
        assert found.npix[0] == inside.size, (lower, upper)


def test_limits_hold_while_clipping():
    values = np.concatenate([draw("normal", 5000), np.full(500, 100.0)])
    found = SkyStatistic("mean", upper=50.0, lower=2.0).of(values)
    kept = clipped(values, lower=2.0, upper=50.0)
    assert abs(found.npix[0] - kept.size) <= 3
    assert abs(found.value[0] - kept.mean()) < 0.1 * standard_error(kept)


def test_clipping_removes_what_it_should():
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(0, 1, 10_000), rng.uniform(20, 30, 200), [-50.0]])
    found = SkyStatistic("mean").of(values)
    assert found.npix[0] == pytest.approx(10_000, abs=5)
    assert abs(found.value[0]) < 0.04
    assert SkyStatistic("mean", nclip=0).of(values).value[0] > 0.4


# midpt and mode


@pytest.mark.parametrize("name", ["normal", "gamma", "exponential", "uniform", "integers", "noise and stars"])
@pytest.mark.parametrize("binwidth", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("nclip", [0, 5])
def test_midpt_against_a_histogram(name, binwidth, nclip):
    for seed in range(5):
        values = draw(name, 3001, seed)
        kept = clipped(values, nclip=nclip)
        found = SkyStatistic("midpt", nclip=nclip, binwidth=binwidth).of(values)
        assert abs(found.value[0] - histogram_median(kept, binwidth)) < 0.2 * standard_error(kept)


def test_midpt_interpolates_in_the_bin():
    """Bins of exactly one standard deviation from 0; half of the 8 pixels is reached within the second."""
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0])
    width = values.std(ddof=1)  # 2.9: bins hold 3, 3, 1, 1
    found = SkyStatistic("midpt", nclip=0, binwidth=1.0).of(values)
    assert found.value[0] == pytest.approx(width * (1 + 1 / 3), rel=1e-6)


@pytest.mark.parametrize("name", ["normal", "gamma", "exponential", "integers", "noise and stars"])
@pytest.mark.parametrize("binwidth", [0.05, 0.1, 0.2])
def test_mode_against_a_kernel_density(name, binwidth):
    for seed in range(3):
        kept = clipped(draw(name, 1500, seed))
        found = SkyStatistic("mode", nclip=0, binwidth=binwidth).of(kept)
        assert abs(found.value[0] - kernel_peak(kept, binwidth)) < 0.004 * kept.std()


@pytest.mark.parametrize("shape", [1.0, 2.0, 4.0, 9.0])
def test_mode_of_a_gamma_distribution(shape):
    """Against the analytic density, smoothed numerically."""
    kernel = 0.5 * np.sqrt(shape)
    grid = np.linspace(-4 * kernel, shape + 12 * np.sqrt(shape), 8001)
    step = grid[1] - grid[0]
    reach = np.arange(-int(6 * kernel / step), int(6 * kernel / step) + 1) * step
    smooth = np.convolve(gamma.pdf(grid, shape), np.exp(-0.5 * (reach / kernel) ** 2), mode="same")
    values = np.random.default_rng(6).gamma(shape, 1, 400_000)
    found = SkyStatistic("mode", nclip=0).of(values)
    assert abs(found.value[0] - grid[smooth.argmax()]) < 4 * found.sigma[0]
    assert found.sigma[0] < 0.01 * np.sqrt(shape)


def test_mode_keeps_to_the_sky_among_sources():
    rng = np.random.default_rng(7)
    values = rng.normal(10, 0.1, 20_000)
    values[:4000] += rng.exponential(0.3, 4000)
    mode, mean = (SkyStatistic(s).of(values).value[0] for s in ("mode", "mean"))
    assert abs(mode - 10) < 0.01 < abs(mean - 10)


def test_mode_finds_the_higher_of_two_peaks():
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.normal(0, 1, 4000), rng.normal(8, 1, 6000)])
    assert SkyStatistic("mode", binwidth=0.04).of(values).value[0] == pytest.approx(8, abs=0.2)


def test_wider_bins_smooth_the_mode_more():
    values = draw("exponential", 50_000)
    modes = [SkyStatistic("mode", binwidth=b).of(values).value[0] for b in (0.02, 0.1, 0.3)]
    assert modes[0] < modes[1] < modes[2]


# Sets that are unions of atoms


def atoms(seed, n=6000, n_atoms=7, n_sets=9):
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 1, n)
    values[rng.random(n) < 0.02] += 50
    labels = rng.integers(0, n_atoms, n)
    return values, rng.random(n) < 0.9, labels.astype(np.int32), rng.random((n_atoms, n_sets)) < 0.4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unions_of_atoms_are_their_pixels(dtype):
    values, good, labels, members = atoms(9)
    values = values.astype(dtype)
    values[~good] = 1e20
    sets = bin_pixels(values, good, Runs.of(labels), members)
    mean, median = (SkyStatistic(s, nclip=0).of_sets(sets) for s in ("mean", "median"))
    for k in range(members.shape[1]):
        pixels = values[good & members[labels, k]].astype(float)
        assert mean.npix[k] == pixels.size
        if pixels.size:
            assert mean.value[k] == pytest.approx(pixels.mean(), abs=1e-5)
            assert mean.sigma[k] == pytest.approx(standard_error(pixels), rel=1e-4)
            assert median.value[k] == pytest.approx(np.median(pixels), abs=0.005)


@pytest.mark.parametrize("skystat", STATISTICS)
def test_sets_equal_single_sets(skystat):
    values, good, labels, members = atoms(10)
    together = SkyStatistic(skystat).of_sets(bin_pixels(values, good, Runs.of(labels), members))
    for k in range(members.shape[1]):
        alone = SkyStatistic(skystat).of(values[good & members[labels, k]])
        assert abs(together.npix[k] - alone.npix[0]) <= 1
        if alone.npix[0]:
            assert abs(together.value[k] - alone.value[0]) < 0.15 * alone.sigma[0]
            assert together.sigma[k] == pytest.approx(alone.sigma[0], rel=0.05)


def test_shared_pixels_are_counted():
    values, good, labels, members = atoms(11)
    shared = bin_pixels(values, good, Runs.of(labels), members).shared
    inside = members[labels] & good[:, None]
    np.testing.assert_array_equal(shared, inside.T.astype(int) @ inside.astype(int))


def test_atoms_without_pixels():
    values, good, labels, _ = atoms(12)
    members = np.zeros((9, 3), dtype=bool)
    members[:3, 0], members[7:, 1] = True, True
    found = SkyStatistic("median").of_sets(bin_pixels(values, good, Runs.of(labels), members))
    assert found.npix[0] > 0
    assert list(found.npix[1:]) == [0, 0]
    assert np.isnan(found.value[1:]).all()


# Standard errors


def scatter_over_quoted(statistic, make, n=3000, repeats=1000):
    rng = np.random.default_rng(13)
    found = [statistic.of(make(rng, n)) for _ in range(repeats)]
    return np.std([f.value[0] for f in found]) / np.sqrt(np.mean([f.sigma[0] ** 2 for f in found]))


@pytest.mark.parametrize("skystat", few(2, STATISTICS))
def test_standard_errors_of_noise(skystat):
    ratio = scatter_over_quoted(SkyStatistic(skystat), lambda rng, n: rng.normal(5, 0.2, n).astype(np.float32))
    assert 0.92 < ratio < 1.08


@pytest.mark.parametrize("skystat", STATISTICS)
def test_standard_errors_of_a_skewed_distribution(skystat):
    statistic = SkyStatistic(skystat, nclip=0)
    assert 0.9 < scatter_over_quoted(statistic, lambda rng, n: rng.gamma(3, 1, n), repeats=600) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("skystat", STATISTICS)
def test_standard_errors_of_strongly_clipped_noise(skystat):
    statistic = SkyStatistic(skystat, lsigma=2.0, usigma=2.0)
    assert 0.85 < scatter_over_quoted(statistic, lambda rng, n: rng.normal(5, 0.2, n)) < 1.15


def test_standard_error_of_the_mean_is_analytic():
    values = draw("gamma", 10_000)
    found = SkyStatistic("mean", nclip=0).of(values)
    assert found.sigma[0] == pytest.approx(standard_error(values), rel=1e-5)


def test_mode_is_less_precise_than_the_mean_of_noise():
    values = draw("normal", 10_000)
    sigmas = [SkyStatistic(s).of(values).sigma[0] for s in ("mean", "median", "mode")]
    assert sigmas[0] < sigmas[1] < 2 * sigmas[0]
    assert sigmas[0] < sigmas[2] < 4 * sigmas[0]


# Units and types


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("unit", [1e-20, 1e-3, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["normal", "noise and stars", "integers"])
def test_units(skystat, unit, dtype, name):
    values = draw(name, 3000)
    one = SkyStatistic(skystat).of(values)
    two = SkyStatistic(skystat).of((values * unit).astype(dtype))
    assert abs(two.npix[0] - one.npix[0]) <= 1
    assert abs(two.value[0] / unit - one.value[0]) < 0.05 * one.sigma[0]
    assert two.sigma[0] == pytest.approx(unit * one.sigma[0], rel=0.01)


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize(("factor", "shift"), [(4.0, 0.0), (3.7, 100.0), (-1.0, 0.0), (-0.3, 1e4)])
@pytest.mark.parametrize("name", ["normal", "gamma"])
def test_scale_and_shift(skystat, factor, shift, name):
    values = draw(name, 3000)
    one = SkyStatistic(skystat).of(values)
    two = SkyStatistic(skystat).of(factor * values + shift)
    tolerance = 0.1
    if skystat == "midpt" and factor < 0:
        tolerance = 1.0  # its bins start at the other end
    assert abs(two.value[0] - (factor * one.value[0] + shift)) < tolerance * two.sigma[0]
    assert two.sigma[0] == pytest.approx(abs(factor) * one.sigma[0], rel=0.01)


@pytest.mark.parametrize("skystat", STATISTICS)
@pytest.mark.parametrize("kind", [kind for kind in IMAGES if kind not in EMPTY])
def test_every_kind_of_image(skystat, kind):
    data = IMAGES[kind]()
    values = data[np.isfinite(data)].astype(float)
    found = SkyStatistic(skystat).of(data)
    assert 0 <= values.size - found.npix[0] <= 3
    assert found.value[0] == pytest.approx(np.median(values), abs=0.1 * np.ptp(values) + 1e-6 * abs(values[0]))
    assert found.sigma[0] >= 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.sampled_from(STATISTICS),
    st.integers(0, 5),
)
def test_the_statistic_lies_between_the_extremes(values, skystat, nclip):
    found = SkyStatistic(skystat, nclip=nclip).of(np.array(values))
    room = 1e-6 * max(np.abs(values))
    if skystat == "midpt":
        room += 0.1 * np.std(values, ddof=1) if len(values) > 1 else 0
    assert min(values) - room <= found.value[0] <= max(values) + room
    assert 1 <= found.npix[0] <= len(values)
    assert found.sigma[0] >= 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=60))
def test_mean_and_median_of_integers(values):
    values = np.array(values)
    assert SkyStatistic("mean", nclip=0).of(values).value[0] == pytest.approx(values.mean(), abs=1e-3)
    if np.unique(values).size > 1:
        assume(np.diff(np.unique(values)).min() * 200 > np.ptp(values))
    assert SkyStatistic("median", nclip=0).of(values).value[0] == pytest.approx(np.median(values), abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(STATISTICS))
def test_order_of_pixels_does_not_matter(seed, skystat):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, 200)
    one, two = (SkyStatistic(skystat).of(v) for v in (values, rng.permutation(values)))
    assert one.value[0] == pytest.approx(two.value[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", ">f8"])
def test_sums_of_bins_are_exact(dtype, monkeypatch):
    """Against a plain sum over the pixels of each bin, also across blocks and pieces."""
    rng = np.random.default_rng(30)
    values = np.concatenate(
        [rng.normal(3, 1, 9000), 10.0 ** rng.uniform(-3, 30, 500), -(10.0 ** rng.uniform(-3, 30, 500))]
    )
    values = rng.permutation(values).astype(dtype)
    good = rng.random(values.size) < 0.9
    values[~good] = np.nan
    labels = np.sort(rng.integers(0, 30, values.size))
    members = rng.random((30, 5)) < 0.4
    centre, scale = 3.0, 2.0
    whole = histograms.bin_pixels(values, good, Runs.of(labels), members, around=(centre, scale))
    monkeypatch.setattr(histograms, "_BLOCK", 700)
    monkeypatch.setattr(histograms, "_CHUNK", 90)
    parts = histograms.bin_pixels(values, good, Runs.of(labels), members, around=(centre, scale))
    for field in ("starts", "counts", "low", "high", "shared"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))
    x = ((values.astype(np.asarray(values).dtype.newbyteorder("=")) - centre) / scale).astype(np.float32)
    for k in range(5):
        mine = x[good & members[labels, k]].astype(float)
        bins = np.searchsorted(whole.starts, mine, side="right") - 1
        np.testing.assert_array_equal(np.bincount(bins, minlength=whole.starts.size), whole.counts[k])
        total = np.bincount(bins, mine, minlength=whole.starts.size)
        middle = (whole.low[k] + whole.high[k]) / 2
        filled = whole.counts[k] > 0
        np.testing.assert_allclose((whole.counts[k] * middle)[filled], total[filled], rtol=2e-7, atol=1e-5)
    assert not whole.counts[:, ~np.isfinite(whole.starts)].any()


def test_runs_are_the_image():
    rng = np.random.default_rng(31)
    image = np.repeat(rng.integers(0, 5, 200), rng.integers(1, 9, 200)).astype(np.int32)
    runs = Runs.of(image)
    assert len(runs.stops) < image.size / 2
    np.testing.assert_array_equal(runs.image(), image)
    some = rng.integers(0, image.size, 300)
    np.testing.assert_array_equal(runs.at(some), image[some])
    for start, stop in [(0, 1), (0, image.size), (17, 18), (17, 400), (image.size - 1, image.size)]:
        np.testing.assert_array_equal(runs.part(start, stop).image(), image[start:stop])
    assert Runs.of(image[:0]).image().size == 0


def test_the_error_of_a_mean_that_is_clipped_hard_is_its_scatter():
    """The limits follow the mean, and the mean the limits: it scatters more than that of the pixels that are left."""
    statistic = SkyStatistic("mean", nclip=30, lsigma=2.0, usigma=2.0)
    rng = np.random.default_rng(11)
    found = [statistic.of(rng.normal(5, 2, 800)) for _ in range(300)]
    scatter = np.std([one.value[0] for one in found])
    assert np.mean([one.sigma[0] for one in found]) == pytest.approx(scatter, rel=0.15)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_structure_that_nearby_pixels_share_counts_as_documented(missing):
    """Two halves, 2 above and below the middle, and noise of 1: a fifth of the variance is noise."""
    rng = np.random.default_rng(12)
    data = rng.normal(0, 1, (200, 200)) + np.where(np.arange(200) < 100, 2.0, -2.0)
    good = rng.random(data.shape) >= missing
    whole, everything = Runs(np.array([data.size]), np.array([0])), np.ones((1, 1), dtype=bool)
    sets = bin_pixels(data.ravel(), good.ravel(), whole, everything)
    found = SkyStatistic("mean", nclip=0).of_sets(sets, sample_pairs(data, good, whole, everything))
    share = 1 / 5 + (missing + 1 / 4) * (1 - 1 / 5)
    assert found.sigma[0] == pytest.approx(np.sqrt(5 / good.sum() * share), rel=0.08)


def test_pairs_of_nearby_pixels_are_good_and_of_one_atom():
    """Pixels that hold their own number tell which they are."""
    rng, shape = np.random.default_rng(13), (90, 120)
    number = np.arange(90 * 120).reshape(shape)
    good = rng.random(shape) > 0.3
    atom = (np.add.outer(np.arange(90), np.arange(120)) // 5) % 3
    members = np.array([[True, False], [True, True], [False, True]])
    pairs = sample_pairs(number.astype(float), good, Runs.of(atom), members)
    one, two = (values.astype(int) for values in (pairs.one, pairs.two))
    assert len(one) > 50
    np.testing.assert_array_equal(two - one, 2 * 120 + 2)
    assert (one % 120 < 118).all()
    assert good.ravel()[one].all()
    assert good.ravel()[two].all()
    np.testing.assert_array_equal(atom.ravel()[one], atom.ravel()[two])
    np.testing.assert_array_equal(pairs.members, members[atom.ravel()[one]])
    np.testing.assert_allclose(pairs.missing, 0.3, atol=0.08)
