"""pytest plug-in: run the tests of the step that jwst had until 1.19.2, offline, on ours.

    pytest -p jwst_mrs_plugin FOLDER/jwst/mrs_imatch/tests

``jwst.mrs_imatch.mrs_imatch_step`` is made of our class and functions, or with BKGMATCH_MODULE=name of those of another
module. The reference files, for which the tests ask CRDS, are those of our simulated exposures. What the tests do and
what they assert is untouched.
"""

import importlib
import os
import sys
import tempfile
from types import ModuleType

import pytest

ENV = "BKGMATCH_MODULE"
OURS = {  # which module holds each name
    "MRSIMatchStep": "bkgmatch.steps.mrs_imatch",
    "apply_background_2d": "bkgmatch.steps.mrs_imatch",
    "channel_pixels": "bkgmatch.steps.ifu_models",
    "find_channel": "bkgmatch.steps.polynomial_record",
    "reset": "bkgmatch.steps.polynomial_record",
}


def under_test(name):
    """Return what the tests are run on; the environment may name a module in place of ours."""
    return getattr(importlib.import_module(os.environ.get(ENV, OURS[name])), name)


def old_module():
    """Return the module that the tests import, with the private names that they use."""

    class MRSIMatchStep(under_test("MRSIMatchStep")):
        def _reset_background(self, models):
            for model in models:
                under_test("reset")(model)

    module = ModuleType("jwst.mrs_imatch.mrs_imatch_step")
    module.MRSIMatchStep = MRSIMatchStep
    module.apply_background_2d = under_test("apply_background_2d")
    module._get_2d_pixgrid = under_test("channel_pixels")
    module._find_channel_bkg_index = under_test("find_channel")
    return module


class OfflineAssignWcs:
    """Stands in for ``jwst.assign_wcs.AssignWcsStep``, which asks CRDS for its reference files."""

    @classmethod
    def call(cls, model, **_options):
        from jwst.assign_wcs.assign_wcs import load_wcs

        from bkgmatch.steps.simulated_mrs import mrs_references

        instrument = model.meta.instrument
        with tempfile.TemporaryDirectory() as folder:
            return load_wcs(model.copy(), mrs_references(folder, instrument.detector, instrument.band))


def pytest_configure(config):
    import jwst.assign_wcs

    jwst.assign_wcs.AssignWcsStep = OfflineAssignWcs
    package = ModuleType("jwst.mrs_imatch")
    package.__path__ = []
    package.mrs_imatch_step = old_module()
    sys.modules |= {"jwst.mrs_imatch": package, "jwst.mrs_imatch.mrs_imatch_step": package.mrs_imatch_step}


def pytest_report_header(config):
    return f"module under test: {os.environ.get(ENV, 'bkgmatch')}"


@pytest.fixture
def tmp_cwd(tmp_path, monkeypatch):
    """jwst's fixture of this name."""
    monkeypatch.chdir(tmp_path)
