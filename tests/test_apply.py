"""Levels and their errors on pixels."""

import numpy as np
import pytest

from bkgmatch.apply import add_variance, remove_variance, shift


@pytest.mark.parametrize("is_image", [False, True])
def test_a_sum_is_rounded_once(is_image):
    """It is within half of the last digit of the exact one, however the level would be rounded."""
    rng = np.random.default_rng(1)
    data = rng.uniform(1, 2, 5000).astype(np.float32)
    for level in rng.uniform(1, 2, (20, 5000) if is_image else 20):
        found = shift(data, level)
        exact = data.astype(float) + level
        assert found.dtype == np.float32
        assert (np.abs(found - exact) <= 0.5000001 * np.spacing(found)).all()


def test_variances_are_added_and_taken_back():
    error = np.array([3.0, 0.5, 0.0], dtype=np.float32)
    added = add_variance(error, 4.0)
    np.testing.assert_allclose(added, [5, np.sqrt(16.25), 4], rtol=1e-7)
    np.testing.assert_allclose(remove_variance(added, 4.0), error, atol=2e-3)
