"""The checks of pulls and of distances find errors that are wrong, and let pass those that are right."""

import numpy as np
import pytest
from pull_scores import check_distances, check_pulls, mahalanobis

SKIES, M = 500, 5


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch):
    monkeypatch.setattr("pull_scores.keep", lambda *_: None)


def drawn(seed=1):
    return np.random.default_rng(seed).normal(size=(SKIES, M))


def of_one(column, change):
    pulls = drawn()
    pulls[:, column] = change(pulls[:, column])
    return pulls


@pytest.mark.parametrize("factor", [0.92, 1.0, 1.08])
def test_right_errors_pass(factor):
    check_pulls("drawn", factor * drawn())


@pytest.mark.parametrize(
    "wrong",
    [
        1.25 * drawn(),
        0.75 * drawn(),
        drawn() + 0.3,
        of_one(2, lambda pulls: pulls + 0.3),
        of_one(2, lambda pulls: 1.5 * pulls),
        of_one(2, lambda pulls: 0.6 * pulls),
        of_one(0, lambda pulls: np.where(np.arange(SKIES) == 7, np.nan, pulls)),
        np.random.default_rng(1).standard_t(2.2, (SKIES, M)) / 2.2,  # too many inside, and a few far outside
        np.sign(drawn()),
    ],
    ids=["small", "large", "biased", "one biased", "one small", "one large", "not finite", "long tails", "two values"],
)
def test_wrong_errors_fail(wrong):
    with pytest.raises(AssertionError, match="drawn"):
        check_pulls("drawn", wrong)


def test_distances_count_how_errors_hang_together():
    together, against = (np.array([[1, r], [r, 1]]) for r in (0.7, -0.7))
    errors = np.random.default_rng(2).normal(size=(SKIES, 2)) @ np.linalg.cholesky(together).T
    check_distances("drawn", [mahalanobis(e, together)[0] for e in errors], 2)
    for wrong in (against, 1.5 * together, 0.6 * together):
        with pytest.raises(AssertionError, match="drawn"):
            check_distances("drawn", [mahalanobis(e, wrong)[0] for e in errors], 2)


def test_directions_without_variance_do_not_count():
    """Relative levels: their sum is zero."""
    projection = np.eye(4) - 0.25
    squared, dof = mahalanobis(projection @ np.array([1.0, 2, 3, 5]), projection)
    assert dof == 3
    assert squared == pytest.approx(np.var([1, 2, 3, 5]) * 4)
