"""The examples of the docstrings run."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "name", ["match", "skystats", "skymatch", "spectra", "polynomial_arrays", "leave_one_out", "image_backgrounds"]
)
def test_examples(name):
    result = doctest.testmod(import_module(f"bkgmatch.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
