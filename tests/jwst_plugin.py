"""pytest plug-in: run jwst's own skymatch tests, offline, on another class.

    BKGMATCH_CLASS=bkgmatch:SkyMatchStep pytest -p jwst_plugin --pyargs jwst.skymatch

The WCS of their model, for which they ask CRDS, is replaced by one of square pixels with the same frames. What the
tests do with the model and what they assert is untouched; three shortcuts only save time.
"""

import gc
import importlib
import os
from functools import cache

import pytest

ENV = "BKGMATCH_CLASS"
FIXTURE = "nircam_rate"
MIDDLE = 1023.5  # pixel of the reference point
PIXEL = 0.063  # arcsec


def affine_wcs(model):
    """Return a WCS with jwst's frames and pointing, but square pixels without distortion."""
    from astropy import units as u
    from astropy.coordinates import ICRS
    from astropy.modeling.models import AffineTransformation2D, Identity, Shift
    from gwcs import WCS, coordinate_frames
    from jwst.assign_wcs.pointing import v23tosky

    info = model.meta.wcsinfo
    scale = [[info.vparity * PIXEL, 0], [0, PIXEL]]
    to_v2v3 = (Shift(-MIDDLE) & Shift(-MIDDLE)) | AffineTransformation2D(scale, [info.v2_ref, info.v3_ref])
    units = {"detector": u.pix, "v2v3": u.arcsec, "v2v3vacorr": u.arcsec}
    flat = [coordinate_frames.Frame2D(name=name, unit=(unit, unit)) for name, unit in units.items()]
    world = coordinate_frames.CelestialFrame(name="world", reference_frame=ICRS(), unit=(u.deg, u.deg))
    wcs = WCS(list(zip([*flat, world], [to_v2v3, Identity(2), v23tosky(model), None], strict=True)))
    wcs.bounding_box = tuple((-0.5, n - 0.5) for n in model.shape[::-1])
    return wcs


class OfflineAssignWcs:
    """Stands in for ``jwst.assign_wcs.AssignWcsStep``, which asks CRDS for the distortion."""

    @classmethod
    def call(cls, model, **_options):
        result = model.copy()
        result.meta.wcs = affine_wcs(model)
        result.meta.cal_step.assign_wcs = "COMPLETE"
        return result


def class_under_test():
    """Return the class that the environment names, jwst's own by default."""
    module, _, name = os.environ.get(ENV, "jwst.skymatch:SkyMatchStep").partition(":")
    return getattr(importlib.import_module(module), name)


def read_schemas_once():
    """asdf parses the YAML of a schema for every reference to it, thousands of times in these tests."""
    import asdf.schema

    make_loader = asdf.schema._make_schema_loader
    load = cache(make_loader())
    asdf.schema._make_schema_loader = lambda: load


def pytest_configure(config):
    import jwst.assign_wcs
    import jwst.skymatch

    jwst.skymatch.SkyMatchStep = class_under_test()
    jwst.assign_wcs.AssignWcsStep = OfflineAssignWcs
    read_schemas_once()


def pytest_report_header(config):
    cls = class_under_test()
    return f"class under test: {cls.__module__}.{cls.__qualname__}"


def pytest_collection_finish(session):
    """Spare the modules from the collections of garbage that each step makes."""
    gc.freeze()


_built = {}


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Build the model once; each test gets a copy of its own."""
    if fixturedef.argname != FIXTURE:
        return None
    if FIXTURE not in _built:
        _built[FIXTURE] = fixturedef.func(**{n: request.getfixturevalue(n) for n in fixturedef.argnames})
    model = _built[FIXTURE].copy()
    fixturedef.cached_result = (model, fixturedef.cache_key(request), None)
    return model
