"""What pulls, (found - true) / quoted error, must be: mean 0, width 1, and inside intervals as often as normal."""

import numpy as np
from ledger import measured, note
from scipy.stats import binom, chi2, norm, t

CHANCE = 1e-4  # that a right error fails one of the tests of its kind
WIDTH = (0.9, 1.1)


def check_pulls(kind, pulls, *, width=WIDTH, unbiased=True):
    """
    Check the pulls of a kind of quoted error, shape (skies, m), and keep their figures.

    Each of the m quantities is tested over the skies, which are independent; the limits allow for the m tests.
    """
    pulls = np.reshape(pulls, (len(pulls), -1))
    skies, m = pulls.shape
    figures = {
        "skies": skies,
        "mean": farthest_from_zero(pulls.mean(axis=0)),
        "width": np.sqrt(np.mean(pulls**2)),
        "inside_68": np.mean(np.abs(pulls) < 1),
        "inside_95": np.mean(np.abs(pulls) < norm.isf(0.025)),
    }
    told = f"{kind}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(told)
    assert np.isfinite(pulls).all(), told
    if unbiased:
        assert np.abs(t_values(pulls)).max() < t.isf(CHANCE / 2 / m, skies - 1), told
    check_width(np.mean(pulls**2, axis=1), width, told)
    squares = np.sum(pulls**2, axis=0)
    assert (squares > width[0] ** 2 * chi2.ppf(CHANCE / 2 / m, skies)).all(), told
    assert (squares < width[1] ** 2 * chi2.isf(CHANCE / 2 / m, skies)).all(), told
    for limit in (1.0, norm.isf(0.025)):
        few, many = (2 * norm.cdf(limit / w) - 1 for w in reversed(width))
        check_counts(np.sum(np.abs(pulls) < limit, axis=0), skies, few, many, told)
    keep(kind, figures)


def check_distances(kind, squared, dof, *, width=WIDTH):
    """Check squared Mahalanobis distances, one for each sky, and keep their figures."""
    squared = np.asarray(squared)
    figures = {
        "skies": len(squared),
        "width": np.sqrt(np.mean(squared) / dof),
        "inside_68": np.mean(squared < chi2.ppf(0.6827, dof)),
        "inside_95": np.mean(squared < chi2.ppf(0.95, dof)),
    }
    told = f"{kind}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(told)
    assert np.isfinite(squared).all(), told
    check_width(squared / dof, width, told)
    for part in (0.6827, 0.95):
        few, many = (chi2.cdf(chi2.ppf(part, dof) / w**2, dof) for w in reversed(width))
        check_counts(np.sum(squared < chi2.ppf(part, dof)), len(squared), few, many, told)
    keep(kind, figures)


def check_width(squares, width, told):
    """Check that the mean square, with one value for each sky, is within the squared limits and its own error."""
    error = squares.std(ddof=1) / np.sqrt(len(squares))
    assert width[0] ** 2 - 2 * error < squares.mean() < width[1] ** 2 + 2 * error, told


def check_counts(counts, skies, few, many, told):
    """Check that each count is one of a binomial distribution with a probability between two."""
    chance = CHANCE / 2 / np.size(counts)
    assert np.all(counts >= binom.ppf(chance, skies, few)), told
    assert np.all(counts <= binom.isf(chance, skies, many)), told


def keep(kind, figures):
    measured("pulls", kind, **figures)
    note("statistics", f"{kind.split(':')[0]}: skies", "simulated", count=figures["skies"])


def mahalanobis(error, covariance):
    """Squared distance in the space that a covariance has, and its number of dimensions."""
    values, vectors = np.linalg.eigh(covariance)
    there = values > 1e-9 * values.max()
    return np.sum((vectors[:, there].T @ error) ** 2 / values[there]), int(there.sum())


def t_values(pulls):
    scatter = pulls.std(axis=0, ddof=1)
    return pulls.mean(axis=0) / np.where(scatter > 0, scatter, np.inf) * np.sqrt(len(pulls))


def farthest_from_zero(values):
    return values[np.abs(values).argmax()]
