"""Reference files of a simulated MIRI MRS: slices, channels and wavelengths are much like the real ones.

Only numpy, astropy, jwst and stdatamodels are needed, so that older versions of jwst can use it, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.modeling.fitting import LinearLSQFitter
from astropy.modeling.models import AffineTransformation2D, Const1D, Polynomial2D
from astropy.table import Table
from numpy.typing import NDArray
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.wcs_ref_models import (
    DistortionMRSModel,
    RegionsModel,
    SpecwcsModel,
    WavelengthrangeModel,
)

from bkgmatch.written import whole_file, write_fits

__all__ = [
    "ANGLE",
    "BANDS",
    "CHANNELS",
    "CHANNELS_OF",
    "COLUMNS",
    "MARGIN",
    "ROWS",
    "V2_V3",
    "describe_instrument",
    "mrs_references",
    "write_cubepar",
]

ROWS, COLUMNS = 1024, 1032
V2_V3, ANGLE = (-503.654, -318.742), 8.3  # of channel 1: arcsec, deg
MARGIN = 0.05  # micron beyond a band that still belong to it
CHANNELS_OF = {"MIRIFUSHORT": "12", "MIRIFULONG": "34"}
BANDS = ("SHORT", "MEDIUM", "LONG")
_BOW = 2.0  # pixels by which the ends of a slice lie right of its middle


@dataclass(frozen=True)
class Channel:
    """Where the slices of a channel lie on the detector (pixels) and on the sky (arcsec)."""

    slices: int
    first: float
    pitch: float
    width: int
    pixel: float
    slice_width: float
    offset: tuple[float, float]
    wavelengths: tuple[tuple[float, float], ...]
    cube: tuple[float, float]  # arcsec and micron per element of a spectral cube

    def centre(self, number: int) -> float:
        """Return the column of the middle of a slice."""
        return self.first + self.pitch * number

    def beta(self, number: int) -> float:
        """Return the coordinate across the slices of the middle of a slice."""
        return (number - (self.slices - 1) / 2) * self.slice_width

    def band(self, name: str) -> tuple[float, float]:
        """Return the shortest and the longest wavelength (micron)."""
        return self.wavelengths[BANDS.index(name)]


CHANNELS = {
    "1": Channel(
        21, 22, 23.75, 18, 0.196, 0.177, (0.0, 0.0), ((4.90, 5.74), (5.66, 6.63), (6.53, 7.65)), (0.13, 0.0008)
    ),
    "2": Channel(
        17, 534, 29.7, 22, 0.196, 0.280, (0.1, -0.05), ((7.51, 8.77), (8.67, 10.13), (10.02, 11.70)), (0.17, 0.0013)
    ),
    "3": Channel(
        16, 536, 30.5, 22, 0.245, 0.390, (0.0, 0.1), ((11.55, 13.47), (13.34, 15.57), (15.41, 17.98)), (0.20, 0.0025)
    ),
    "4": Channel(
        12, 30, 41.0, 26, 0.273, 0.656, (-0.1, 0.1), ((17.70, 20.95), (20.69, 24.48), (24.40, 27.90)), (0.35, 0.006)
    ),
}


@dataclass(frozen=True)
class _Slice:
    """A slice of a channel on a detector of so many rows."""

    channel: str
    number: int
    band: str
    rows: int

    @property
    def label(self) -> int:
        """Its number in reference files."""
        return 100 * int(self.channel) + self.number + 1

    @property
    def geometry(self) -> Channel:
        """The slices of its channel."""
        return CHANNELS[self.channel]

    @property
    def centre(self) -> float:
        """Column of its middle."""
        return self.geometry.centre(self.number)

    def holds(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        """Whether pixels belong to it."""
        bow = _BOW * (2 * y / (self.rows - 1) - 1) ** 2
        return np.abs(x - self.centre - bow) < self.geometry.width / 2

    def along(self) -> Polynomial2D:
        """Return the transform from (y, x) to the coordinate along it."""
        scale, last = self.geometry.pixel, self.rows - 1
        start = -scale * (self.centre + _BOW)
        return Polynomial2D(2, c0_0=start, c1_0=4 * scale * _BOW / last, c2_0=-4 * scale * _BOW / last**2, c0_1=scale)

    def wavelength(self) -> Polynomial2D:
        """Return the transform from (y, x) to the wavelength, curved and tilted, and different in each slice."""
        low, high = self.geometry.band(self.band)
        step = (high - low) / self.rows
        tilt = 0.002 * step * (self.number - self.geometry.slices / 2)
        start = low + 0.3 * step * (self.number % 3) - tilt * self.centre
        return Polynomial2D(2, c0_0=start, c1_0=0.95 * step, c2_0=0.05 * step / self.rows, c0_1=tilt)

    def columns_and_rows(self) -> tuple[Polynomial2D, Polynomial2D]:
        """Return the transforms from wavelength and coordinate along it to x and y, fitted."""
        half = self.geometry.width / 2
        y, x = np.meshgrid(np.linspace(0, self.rows - 1, 40), self.centre + np.linspace(-half, half))
        sky = self.wavelength()(y, x), self.along()(y, x)
        return LinearLSQFitter()(Polynomial2D(4), *sky, x), LinearLSQFitter()(Polynomial2D(4), *sky, y)


def mrs_references(
    folder: str | Path, detector: str = "MIRIFUSHORT", band: str = "SHORT", rows: int = ROWS
) -> dict[str, str]:
    """
    Write the reference files from which assign_wcs makes the WCS of a detector.

    Parameters
    ----------
    folder : str or Path
        Where to write; it is made if it does not exist.
    detector : {"MIRIFUSHORT", "MIRIFULONG"}
        The detector.
    band : {"SHORT", "MEDIUM", "LONG"}
        The band.
    rows : int
        Number of its rows: fewer hold the same wavelengths, each more of them.

    Returns
    -------
    dict of str to str
        File name for each type: distortion, specwcs, regions and wavelengthrange.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    channels = {name: CHANNELS[name] for name in CHANNELS_OF[detector]}
    slices = [_Slice(name, k, band, rows) for name, channel in channels.items() for k in range(channel.slices)]
    models = {
        "distortion": _distortion(slices),
        "specwcs": SpecwcsModel(model=[s.wavelength() for s in slices], input_units=u.pix, output_units=u.micron),
        "regions": RegionsModel(regions=np.broadcast_to(_slice_map(slices), (9, rows, COLUMNS)).copy()),
        "wavelengthrange": WavelengthrangeModel(
            wrange_selector=[name + band for name in channels],
            wrange=[[low - MARGIN, high + MARGIN] for low, high in (c.band(band) for c in channels.values())],
            wunits=u.micron,
        ),
    }
    paths = {kind: str(folder / f"{kind}.asdf") for kind in models}
    for kind, model in models.items():
        describe_instrument(model, detector, band, rows)
        model.meta.description = model.meta.author = "simulated"
        model.meta.pedigree, model.meta.useafter = "DUMMY", "2020-01-01T00:00:00"
        with whole_file(paths[kind]) as part:
            model.save(part)
        model.close()
    return paths


def _slice_map(slices: Sequence[_Slice]) -> NDArray[np.int32]:
    y, x = np.indices((slices[0].rows, COLUMNS))
    labels = np.zeros(y.shape, dtype=np.int32)
    for one in slices:
        labels[one.holds(y, x)] = one.label
    return labels


def _to_v2v3(offset: tuple[float, float]) -> AffineTransformation2D:
    angle = np.radians(ANGLE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    origin = np.add(V2_V3, offset)
    transform = AffineTransformation2D(turn, translation=origin)
    transform.inverse = AffineTransformation2D(turn.T, translation=-turn.T @ origin)
    return transform


def _distortion(slices: Sequence[_Slice]) -> DistortionMRSModel:
    channels = {s.channel: s.geometry for s in slices}
    keys = [name + slices[0].band for name in channels]
    x_models, y_models = zip(*(s.columns_and_rows() for s in slices), strict=True)
    model = DistortionMRSModel(
        x_model=list(x_models),
        y_model=list(y_models),
        alpha_model=[s.along() for s in slices],
        beta_model=[Const1D(s.geometry.beta(s.number)) for s in slices],
        bzero={"channel_band": keys, "beta_zero": [c.beta(0) for c in channels.values()]},
        bdel={"channel_band": keys, "delta_beta": [c.slice_width for c in channels.values()]},
        input_units=u.pix,
        output_units=u.arcsec,
    )
    model.slices = [s.label for s in slices]
    model.abv2v3_model = {"channel_band": keys, "model": [_to_v2v3(c.offset) for c in channels.values()]}
    return model


def describe_instrument(model: JwstDataModel, detector: str, band: str, rows: int) -> None:
    """Write to a model which detector it is of."""
    model.meta.instrument.name = "MIRI"
    model.meta.instrument.detector = detector
    model.meta.instrument.channel = CHANNELS_OF[detector]
    model.meta.instrument.band = band
    model.meta.exposure.type = "MIR_MRS"
    model.meta.subarray = {
        "name": "FULL",
        "xstart": 1,
        "ystart": 1,
        "xsize": COLUMNS,
        "ysize": rows,
        "fastaxis": 1,
        "slowaxis": 2,
    }


def write_cubepar(path: Path, rows: int) -> None:
    """Write the reference file of cube_build, for its three ways of weighting, with a plane for each row."""
    sizes = [
        (name, band, c.cube[0], c.cube[1] * ROWS / rows, *c.band(band))
        for name, c in CHANNELS.items()
        for band in BANDS
    ]
    bands = Table(rows=sizes, names=["CHANNEL", "BAND", "SPAXELSIZE", "SPECTRALSTEP", "WAVEMIN", "WAVEMAX"])
    all_wavelengths = Table({"WAVELENGTH": np.arange(4.9, 28.5, 0.002)})
    radii = {"ROISPATIAL": 0.3, "ROISPECTRAL": 0.003}
    weights = {"MSM": radii | {"POWER": 2.0, "SOFTRAD": 0.01}, "EMSM": radii | {"SCALERAD": 0.1}}
    tables = {"CUBEPAR": bands, "MULTICHANNEL_DRIZ": all_wavelengths}
    for name, values in weights.items():
        tables[f"CUBEPAR_{name}"] = bands["CHANNEL", "BAND"]
        tables[f"MULTICHANNEL_{name}"] = all_wavelengths.copy()
        for column, value in values.items():
            tables[f"CUBEPAR_{name}"][column] = tables[f"MULTICHANNEL_{name}"][column] = value
    primary = fits.PrimaryHDU()
    primary.header.update(
        REFTYPE="CUBEPAR",
        INSTRUME="MIRI",
        TELESCOP="JWST",
        DETECTOR="N/A",
        EXP_TYPE="MIR_MRS",
        MODELNAM="FM",
        DATAMODL="MiriIFUCubeParsModel",
        PEDIGREE="DUMMY",
        AUTHOR="simulated",
        DESCRIP="simulated",
        USEAFTER="2020-01-01T00:00:00",
    )
    hdus = [fits.BinTableHDU(table, name=name) for name, table in tables.items()]
    write_fits(fits.HDUList([primary, *hdus]), path)
