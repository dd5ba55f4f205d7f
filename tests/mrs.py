"""Small exposures of the MIRI MRS: cheap copies of models, and their polynomials evaluated without our code."""

from copy import deepcopy

import numpy as np
from astropy.modeling.models import Identity, Shift
from gwcs import WCS
from jwst.datamodels import ModelContainer, ModelLibrary
from numpy.polynomial.polynomial import polyval3d
from stdatamodels.jwst.datamodels import IFUImageModel

from bkgmatch import MRSIMatchStep

ROWS = 64
COLUMNS = {"1": (4, 516), "4": (4, 516), "2": (516, 1028), "3": (516, 1028)}  # as jwst's step had them
FAR = (0.0, 1.0)  # deg
POWERS = np.indices((2, 2, 2)).reshape(3, -1)


def twin(model, *, move=None, **arrays):
    """Copy of a model that shares its WCS, or is moved on the sky by so many degrees in RA and Dec; some arrays new."""
    wcs = model.meta.wcs
    other = IFUImageModel(deepcopy(model.instance, {id(wcs): wcs}))
    if move is not None:
        *steps, (last_frame, to_sky), world = ((step.frame, step.transform) for step in wcs.pipeline)
        other.meta.wcs = WCS([*steps, (last_frame, to_sky | Shift(move[0]) & Shift(move[1]) & Identity(1)), world])
    for name, array in arrays.items():
        setattr(other, name, array)
    return other


def twins(models):
    return [twin(model) for model in models]


def match(models, **options):
    """Run the step on cheap copies of models; the channel is 1 unless another is named."""
    copies = twins(models)
    MRSIMatchStep.call(ModelLibrary(copies), **{"channel": ["1"], **options})
    return copies


def each(result):
    """List the models of what a step returns."""
    if isinstance(result, ModelLibrary):
        with result:
            return list(result.map_function(lambda model, _: model, modify=False))
    return list(result) if isinstance(result, ModelContainer) else [result]


def records(model):
    """Polynomials of a model by channel, as plain numbers and texts."""
    infos = model.meta.background.instance.get("polynomial_info", [])
    found = {info["channel"]: dict(info) for info in infos}
    assert len(found) == len(infos), "a channel is recorded twice"
    return found


def coefficients(models, channel="1"):
    return np.array([records(model)[channel]["coefficients"] for model in models])


def status(models):
    return [model.meta.cal_step.instance.get("mrs_imatch") for model in models]


def evaluate(info, ra, dec, wavelength):
    """Value of a recorded polynomial."""
    ra0, dec0, wavelength0 = info["refpoint"]
    shape = [degree + 1 for degree in info["degree"]]
    east = np.mod(ra - ra0 + 180, 360) - 180
    return polyval3d(east, dec - dec0, wavelength - wavelength0, np.reshape(info["coefficients"], shape))


def image(model, channel, info):
    """A recorded polynomial at the pixels of a channel; zero elsewhere."""
    first, end = COLUMNS[channel]
    y, x = np.mgrid[: model.shape[0], first:end]
    value = np.zeros(model.shape)
    value[:, first:end] = np.nan_to_num(evaluate(info, *model.meta.wcs(x.astype(float), y.astype(float))))
    return value


def relative_truth(truth, channel, info):
    """Coefficients of the true backgrounds of degree 1 less their mean, about the reference point of a record."""
    steps = 1e-4, 1e-4, 0.1
    points = [o + step * powers for o, step, powers in zip(info["refpoint"], steps, POWERS, strict=True)]
    values = np.array([truth.background(n, channel, *points) for n in range(len(truth.names))])
    terms = np.prod(POWERS.T[:, :, None] ** POWERS[None], axis=1)
    found = np.linalg.solve(terms, (values - values.mean(axis=0)).T).T
    return found / np.prod(np.power(np.reshape(steps, (3, 1)), POWERS), axis=0)


def header_cards(model):
    """Cards that are in no schema."""
    return {entry[0]: entry[1] for entry in model.instance.get("extra_fits", {}).get("PRIMARY", {}).get("header", [])}
