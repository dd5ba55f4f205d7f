"""Exposures of MIRI MRS for the core: opened, checked, and read channel by channel."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel, read_metadata

from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import SpectralExposure, SpectralPixels
from bkgmatch.images import common_unit, naming, writing
from bkgmatch.journal import file_digest, fingerprint
from bkgmatch.steps.inputs import (
    check_inputs,
    check_opened,
    check_outputs,
    exposure_files,
    is_association,
    open_library,
    read_file,
    unreadable,
    use_file,
)
from bkgmatch.steps.library import bad_dq_bits, unique_names

__all__ = ["IFUModels", "Models", "channel_pixels", "open_models", "world"]

log = logging.getLogger("stpipe.bkgmatch.ifu_models")

Models: TypeAlias = ModelContainer | ModelLibrary

_HALVES = {"1": 4, "4": 4, "2": 516, "3": 516}  # first column of each channel
_HALF_WIDTH = 512
_DETECTORS = {"12": "MIRIFUSHORT", "34": "MIRIFULONG"}
_SLICES = {"1": 0.177, "2": 0.280, "3": 0.390, "4": 0.656}  # arcsec, Wells et al. 2015, PASP 127, 646
_COARSE = 8


def open_models(step: Step, inputs: Sequence[Any]) -> tuple[Models, list[Path], bool]:
    """
    Check and open what a step is given.

    Parameters
    ----------
    step : Step
        The step, with its parameters.
    inputs : sequence
        Its arguments: one association, file, model, container, library or list; or several files.

    Returns
    -------
    models : ModelContainer or ModelLibrary
        The library that was given, or with ``in_memory=False`` that of an association or of files; else a container,
        because that is what the steps of calwebb_spec3 take.
    files : list of Path
        The files of the exposures, as they are in the set, if they are all given as files.
    is_single : bool
        Whether one model or one file was given, and not a set.

    Raises
    ------
    FileNotFoundError, ValueError
        If an input cannot be used.
    """
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    files = check_inputs(given)
    check_outputs(step, files, given)
    is_set = is_association(given)
    is_single = isinstance(given, str | Path | JwstDataModel) and not is_set
    if isinstance(given, ModelLibrary) or (files and not is_single and not step.in_memory):
        library = open_library(given, in_memory=step.in_memory, temp_dir=step.temp_dir)
        check_opened(step, library)
        return library, exposure_files(library, files), False
    if is_set:
        return _open_association(given), files, False
    given = step.prepare_output(given, open_models=False)
    is_container = isinstance(given, ModelContainer)
    members = [given] if is_single and not is_container else list(given or [])
    if not members:
        raise ValueError(
            "there are no exposures to match; give an association or files, such as *_mirifushort_cal.fits"
        )
    opened = [m if isinstance(m, JwstDataModel) else read_file(m, datamodels.open) for m in members]
    models = given if is_container else ModelContainer(opened)
    check_opened(step, models)
    return models, files, is_single


def _open_association(given: Any) -> ModelContainer:
    try:
        return ModelContainer(given)
    except Exception as error:  # astropy, asdf and the models raise many kinds
        for file in check_inputs(given):
            read_file(file, read_metadata)
            read_file(file, datamodels.open).close()
        raise ValueError(unreadable(given, error)) from error


def channel_pixels(channel: str, shape: tuple[int, ...] = (1024, 1032)) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the half of the detector that holds a channel, each of shape (1024, 512) for a full image."""
    first = _HALVES[channel]
    y, x = np.mgrid[: shape[0], first : min(first + _HALF_WIDTH, shape[1])]
    return x, y


def world(model: JwstDataModel, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right ascension, declination and wavelength of pixels."""
    name = model.meta.filename or "model"
    if model.meta.wcs is None:
        raise ValueError(f"{name}: there is no WCS; run the assign_wcs step first")
    coordinates = model.meta.wcs(x.astype(float), y.astype(float))
    if len(coordinates) != 3:
        raise ValueError(
            f"{name}: the WCS gives {len(coordinates)} coordinates, not RA, Dec and wavelength: run assign_wcs again"
        )
    return coordinates


@dataclass(frozen=True)
class _Known:
    """What is kept of a model; of backgrounds that are no images only the name."""

    name: str
    channels: str
    band: str
    detector: str
    unit: str
    is_science: bool
    extents: dict[str, tuple[tuple[float, float], tuple[float, float]]]


class IFUModels:
    """
    The exposures of a container or library.

    Parameters
    ----------
    models : ModelContainer or ModelLibrary
        Exposures; a library must be open while it is used.
    dqbits : str or None
        DQ flags of good pixels.
    check : callable, optional
        ``check(model)`` is called for each science exposure, and raises an error if it must not be matched.
    work : Work
        How work is done: workers that do not share the memory of this process read the files themselves.
    files : sequence of Path
        The files of the exposures, if they are in files.

    Raises
    ------
    ValueError
        If a model cannot be matched, with its name.
    """

    def __init__(
        self,
        models: Models,
        *,
        dqbits: str | None,
        check: Callable[[JwstDataModel], None] | None = None,
        work: Work = HERE,
        files: Sequence[Path] = (),
    ) -> None:
        self._models, self._work, self._files = models, work, files
        self._lock = threading.Lock()
        self._bad_bits = bad_dq_bits(dqbits)
        background = self._backgrounds()
        know = [partial(_know, is_science=i not in background, check=check) for i in range(len(models))]
        known = self._look_at_all(know)
        names = unique_names([k.name for k in known])
        self._known = [replace(k, name=name) for k, name in zip(known, names, strict=True)]
        is_kept = work.journal and files
        self._digests = (
            work.run(file_digest, files, what="Reading checksums", name=str, keep=False) if is_kept else None
        )

    @property
    def names(self) -> list[str]:
        """Names of the exposures, made unique."""
        return [known.name for known in self._known]

    @property
    def unit(self) -> str:
        """Unit of the data, if all science exposures have the same."""
        units = {self._known[i].unit for i in self.science}
        return units.pop() if len(units) == 1 else ""

    def check_units(self) -> None:
        """Raise ValueError if science exposures have different units."""
        common_unit([(self._known[i].name, self._known[i].unit) for i in self.science])

    @property
    def science(self) -> list[int]:
        """The exposures that are not dedicated backgrounds."""
        return [i for i, known in enumerate(self._known) if known.is_science]

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """
        Group the science exposures.

        Returns
        -------
        dict
            Exposures of each channel and band.

        Raises
        ------
        ValueError
            If a channel occurs in several combinations of channels, or on several detectors.
        """
        groups: dict[tuple[str, str], list[int]] = {}
        if not self.science:
            raise ValueError("there are no science exposures to match: all members are of another exptype")
        for index in self.science:
            for channel in self._known[index].channels:
                groups.setdefault((channel, self._known[index].band), []).append(index)
        for channel in sorted({channel for channel, _ in groups}):
            of_channel = [self._known[i] for (c, _), members in groups.items() if c == channel for i in members]
            for what in ("channels", "detector"):
                self._check_one(channel, of_channel, what)
        return dict(sorted(groups.items()))

    def _check_one(self, channel: str, known: list[_Known], what: str) -> None:
        values = {getattr(k, what): k.name for k in known}
        if len(values) > 1:
            found = ", ".join(f"{value!r} in {name}" for value, name in sorted(values.items()))
            said = "combinations of channels" if what == "channels" else "detectors"
            raise ValueError(f"Channel '{channel}' appears in multiple {said}: {found}. Match these apart")

    def exposure(self, index: int, channel: str) -> SpectralExposure:
        """One channel of an exposure, for the core."""
        known = self._known[index]
        centre, wavelengths = known.extents[channel]
        digest = fingerprint(self._digests[index], channel, self._bad_bits) if self._digests else ""
        read = self._reader(index, channel)
        return SpectralExposure(known.name, read, centre, wavelengths, _SLICES[channel], digest)

    def use(self, index: int, function: Callable[[JwstDataModel], Any], *, modify: bool = False) -> Any:
        """Look at one model, or change it."""
        if isinstance(self._models, ModelContainer):
            model = self._models[index]
            with naming(model.meta.filename or "model"):
                return function(model)
        member = self._models.asn["products"][0]["members"][index]["expname"]
        try:
            model = self._models.borrow(index)
        except Exception as error:  # astropy, asdf and the models raise many kinds
            raise ValueError(unreadable(member, error)) from error
        try:
            with naming(member):
                return function(model)
        finally:
            with writing(member):
                self._models.shelve(model, index, modify=modify)

    def _backgrounds(self) -> set[int]:
        """Members of the association that are not science."""
        if isinstance(self._models, ModelLibrary):
            return set(range(len(self._models))) - set(self._models.indices_for_exptype("science"))
        types = [model.meta.asn.exptype for model in self._models]
        return {i for i, kind in enumerate(types) if kind is not None and kind.lower() != "science"}

    def _look_at_all(self, know: Sequence[Callable[[JwstDataModel], _Known]]) -> list[_Known]:
        if self._work.shares_memory or not self._files:
            return [self.use(i, look) for i, look in enumerate(know)]
        items = list(zip(self._files, know, strict=True))
        return self._work.run(_use_file, items, what="Checking exposures", name=lambda item: str(item[0]), keep=False)

    def _reader(self, index: int, channel: str) -> Callable[[], SpectralPixels]:
        """Make the function that reads a channel: here, on a worker from its file, or from a copy for workers."""
        pixels = partial(_pixels, channel=channel, bad_bits=self._bad_bits)
        if self._work.shares_memory:
            return partial(self._read, index, pixels)
        if self._files:
            return partial(_use_file, (self._files[index], pixels))
        return self._work.shelf.reader(SpectralPixels, self._read(index, pixels))

    def _read(self, index: int, pixels: Callable[[JwstDataModel], SpectralPixels]) -> SpectralPixels:
        with self._lock:
            return self.use(index, pixels)


def _use_file(item: tuple[Path, Callable[[JwstDataModel], Any]]) -> Any:
    """Open a file, and look at it."""
    path, use = item
    return use_file(path, use)


def _know(model: JwstDataModel, *, is_science: bool, check: Callable[[JwstDataModel], None] | None) -> _Known:
    name, instrument = model.meta.filename or "model", model.meta.instrument
    data = getattr(model, "data", None)
    if not is_science and (data is None or data.ndim != 2):
        return _Known(name, "", "", "", "", False, {})
    kind = model.meta.exposure.type
    if kind not in (None, "MIR_MRS"):
        raise ValueError(f"{name}: the exposure type is {kind}; only exposures of MIRI MRS (MIR_MRS) can be matched")
    if data is None or data.ndim != 2:
        raise ValueError(
            f"{name}: the model is {type(model).__name__}, not a 2-D image of the slices; give *_cal.fits files"
        )
    channels = instrument.channel
    if not channels or not set(channels) <= set(_HALVES):
        raise ValueError(f"{name}: the channel is {channels!r}; this is no exposure of MIRI MRS, or CHANNEL is missing")
    detector = next((d for pair, d in _DETECTORS.items() if set(channels) <= set(pair)), None)
    if detector is None or instrument.detector not in (None, detector):
        raise ValueError(
            f"{name}: channel {channels!r} cannot be on the detector {instrument.detector}; check the header"
        )
    for array in ("dq", "err"):
        values = getattr(model, array, None)
        if values is not None and values.shape != data.shape:
            raise ValueError(f"{name}: {array.upper()} has shape {values.shape}, SCI has {data.shape}")
    if is_science and check:
        check(model)
    return _Known(
        name=name,
        channels=channels,
        band=instrument.band or "",
        detector=instrument.detector or detector,
        unit=model.meta.bunit_data or "",
        is_science=is_science,
        extents={channel: _extent(model, channel) for channel in channels} if is_science else {},
    )


def _extent(model: JwstDataModel, channel: str) -> tuple[tuple[float, float], tuple[float, float]]:
    x, y = (axis[::_COARSE, ::2].ravel() for axis in channel_pixels(channel, model.data.shape))
    ra, dec, wavelength = world(model, x, y)
    return SpectralPixels(ra, dec, wavelength, np.zeros(ra.shape)).finite().extent()


def _pixels(model: JwstDataModel, *, channel: str, bad_bits: int) -> SpectralPixels:
    x, y = channel_pixels(channel, model.data.shape)
    good = np.isfinite(model.data[y, x])
    if model.dq is not None:
        good &= (model.dq[y, x] & np.uint32(bad_bits)) == 0
    x, y = x[good], y[good]
    variance = None if model.err is None else np.square(model.err[y, x], dtype=np.float64)
    if variance is not None and not np.isfinite(variance).any():
        variance = None
    return SpectralPixels(*world(model, x, y), model.data[y, x], variance)
