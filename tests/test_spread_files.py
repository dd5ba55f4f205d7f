"""Exposures of steps that workers read which do not share the memory of this process: from files, or from copies."""

import numpy as np
import pytest
from clusters import Carrier
from jwst.datamodels import ModelContainer, ModelLibrary
from mrs import twins
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import ImageModel

from bkgmatch.execution import HERE, Work
from bkgmatch.steps.ifu_models import IFUModels
from bkgmatch.steps.inputs import check_inputs
from bkgmatch.steps.library import LibraryExposures

GOOD = "~DO_NOT_USE+NON_SCIENCE"


def same_pixels(one, two):
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)  # a WCS in a file has other roundings


def spectrum(exposure):
    pixels = exposure.read().finite()
    return pixels.ra, pixels.dec, pixels.wavelength, pixels.value, pixels.variance


@pytest.mark.parametrize("from_files", [True, False])
def test_channels_are_the_same_on_workers(dithers, dither_files, tmp_path, from_files):
    files, carrier = dither_files[:2] if from_files else (), Carrier()
    here, there = (
        IFUModels(ModelContainer(twins(dithers[:2])), dqbits=GOOD, **how)
        for how in ({}, {"work": Work(carrier, tmp_path), "files": files})
    )
    assert (there.names, there.unit, there.science) == (here.names, here.unit, here.science)
    assert there.groups() == here.groups() == {("1", "SHORT"): [0, 1], ("2", "SHORT"): [0, 1]}
    ours, theirs = (models.exposure(1, "1") for models in (here, there))
    same_pixels(ours.centre, theirs.centre)
    same_pixels(spectrum(ours), spectrum(theirs))
    assert bool(carrier.sent) == from_files  # what is only in memory is not sent, but kept in the folder
    assert bool(list(tmp_path.rglob("*"))) != from_files


def test_channels_of_a_model_without_dq(dithers):
    """All finite pixels are good then."""
    (given,) = twins(dithers[:1])
    bare = ImageModel(given.data.copy())
    bare.update(given)
    bare.meta.wcs = given.meta.wcs
    assert bare.dq is None
    found = IFUModels(ModelContainer([bare]), dqbits=GOOD).exposure(0, "1").read()
    assert found.variance is None
    half = given.data[:, 4:516]
    assert np.isfinite(half).sum() == len(found.value)
    assert sorted(found.value) == sorted(half[np.isfinite(half)])


def images(library, work, files=()):
    with library:
        exposures = LibraryExposures(library, dqbits=GOOD, subtract=True, work=work, files=files).exposures()
        pixels = [exposure.read() for exposure in exposures]
    return [array for p in pixels for array in (p.data, p.good, p.variance)]


@pytest.mark.parametrize("from_files", [True, False])
def test_images_are_the_same_on_workers(pair, tmp_path, from_files):
    files = check_inputs([str(file) for file in pair]) if from_files else ()
    carrier = Carrier()
    library = ModelLibrary([datamodels.open(file) for file in pair])
    same_pixels(images(library, HERE), images(library, Work(carrier, tmp_path), files))
    assert bool(carrier.sent) == from_files
    assert bool(list(tmp_path.rglob("*"))) != from_files
