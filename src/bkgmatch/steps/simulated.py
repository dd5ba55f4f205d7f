"""Write simulated exposures as JWST files with an association."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.time import Time
from stdatamodels.jwst.datamodels import ImageModel

from bkgmatch.associations import association, write_association
from bkgmatch.simulate import SimulatedExposure
from bkgmatch.written import whole_file

__all__ = ["as_model", "write_exposures"]

_START = 59870.0  # MJD
_EXPOSURE_TIME = 300.0  # s
_PER_DAY = 40


def as_model(exposure: SimulatedExposure, *, number: float = 0) -> ImageModel:
    """
    Make a calibrated JWST image of a simulated exposure.

    Parameters
    ----------
    exposure : SimulatedExposure
        The exposure.
    number : float
        Its number in time: exposures start a fortieth of a day after each other.

    Returns
    -------
    ImageModel
        With SCI, ERR, DQ, VAR_RNOISE, WCS and the metadata that image steps need.
    """
    model = ImageModel(exposure.data.copy())
    model.dq = exposure.dq.copy()
    model.err = exposure.err.copy()
    model.var_rnoise = np.square(exposure.err)
    model.meta.filename = f"{exposure.name}_cal.fits"
    model.meta.telescope = "JWST"
    model.meta.bunit_data = model.meta.bunit_err = "MJy/sr"
    _describe_instrument(model, exposure)
    _describe_time(model, exposure.group, _START + number / _PER_DAY)
    _describe_pointing(model, exposure)
    return model


def write_exposures(
    exposures: Sequence[SimulatedExposure],
    folder: str | Path,
    *,
    product: str = "mosaic",
    times: Sequence[float] | None = None,
) -> Path:
    """
    Write exposures as ``*_cal.fits`` with a level-3 association.

    Parameters
    ----------
    exposures : sequence of SimulatedExposure
        Exposures.
    folder : str or Path
        Where to write; it is made if it does not exist.
    product : str
        Name of the product.
    times : sequence of float, optional
        Time of each exposure, in days; by default groups follow each other by a fortieth of a day.

    Returns
    -------
    Path
        The association, ``<product>_asn.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {group: n for n, group in enumerate(dict.fromkeys(e.group for e in exposures))}
    order = [float(numbers[e.group]) for e in exposures] if times is None else [_PER_DAY * t for t in times]
    members = []
    for exposure, number in zip(exposures, order, strict=True):
        model = as_model(exposure, number=number)
        with whole_file(folder / model.meta.filename) as part:
            model.save(part)
        members.append({"expname": model.meta.filename, "exptype": "science"})
    path = folder / f"{product}_asn.json"
    write_association(association(product, members, program="09001"), path)
    return path


def _describe_instrument(model: ImageModel, exposure: SimulatedExposure) -> None:
    is_miri = exposure.detector.name.startswith("MIR")
    ny, nx = exposure.data.shape
    model.meta.instrument.name = "MIRI" if is_miri else "NIRCAM"
    model.meta.instrument.detector = exposure.detector.name
    model.meta.instrument.filter = "F1130W" if is_miri else "F444W"
    if not is_miri:
        model.meta.instrument.module = exposure.detector.name[3]
        model.meta.instrument.channel = "LONG" if exposure.detector.name.endswith("LONG") else "SHORT"
        model.meta.instrument.pupil = "CLEAR"
    model.meta.exposure.type = "MIR_IMAGE" if is_miri else "NRC_IMAGE"
    model.meta.subarray = {
        "name": "FULL",
        "xstart": 1,
        "ystart": 1,
        "xsize": nx,
        "ysize": ny,
        "fastaxis": 1,
        "slowaxis": 2,
    }


def _describe_time(model: ImageModel, group: str, start: float) -> None:
    root, visit_part, exposure_number = group.split("_")
    end = start + _EXPOSURE_TIME / 86400
    model.meta.observation = {
        "program_number": root[2:7],
        "observation_number": root[7:10],
        "visit_number": root[10:13],
        "visit_id": root[2:],
        "visit_group": visit_part[:2],
        "sequence_id": visit_part[2],
        "activity_id": visit_part[3:],
        "exposure_number": exposure_number,
        "date": Time(start, format="mjd").iso[:10],
        "time": Time(start, format="mjd").iso[11:],
    }
    for name, value in (("start_time", start), ("mid_time", (start + end) / 2), ("end_time", end)):
        setattr(model.meta.exposure, name, value)
    model.meta.exposure.exposure_time = model.meta.exposure.effective_exposure_time = _EXPOSURE_TIME


def _describe_pointing(model: ImageModel, exposure: SimulatedExposure) -> None:
    detector, (ra, dec, roll) = exposure.detector, exposure.pointing
    ny, nx = exposure.data.shape
    sky_ra, sky_dec = exposure.wcs(np.array([0, nx - 1, nx - 1, 0]), np.array([0, 0, ny - 1, ny - 1]))
    corners = " ".join(f"{a:.9f} {d:.9f}" for a, d in zip(sky_ra, sky_dec, strict=True))
    model.meta.wcsinfo = {
        "ra_ref": ra,
        "dec_ref": dec,
        "roll_ref": roll,
        "v2_ref": detector.v2v3[0],
        "v3_ref": detector.v2v3[1],
        "v3yangle": detector.angle,
        "vparity": detector.parity,
        "s_region": f"POLYGON ICRS  {corners}",
    }
    area = (detector.scale * exposure.binning) ** 2
    model.meta.photometry.pixelarea_arcsecsq = area
    model.meta.photometry.pixelarea_steradians = area / (np.degrees(1) * 3600) ** 2
    model.meta.wcs = exposure.wcs
