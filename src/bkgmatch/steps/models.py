"""JWST data models and exposures of the core: open, check, apply, record, undo."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.nddata.bitmask import interpret_bit_flags
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.lib.suffix import remove_suffix
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch.apply import add_variance, remove_variance, shift
from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.masks import find_masks, read_mask, read_regions, region_mask

__all__ = [
    "LevelRecord",
    "LibraryExposures",
    "bad_dq_bits",
    "check_inputs",
    "is_in_memory",
    "skip",
    "stem",
    "undo",
    "undo_files",
]

log = logging.getLogger("stpipe.bkgmatch.models")

_SIGMA_CARD = "BKGSIGMA"


def stem(name: str) -> str:
    """Name of an exposure without folder, extension and known suffix (``_cal``, ``_skymatch``, ...)."""
    return str(remove_suffix(Path(name).stem)[0])


def check_inputs(init: Any) -> None:
    """
    Check input files before anything is opened.

    Parameters
    ----------
    init : object
        What the step was given.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is listed twice.
    """
    files = _input_files(init)
    if len(set(files)) < len(files):
        twice = sorted({str(f) for f in files if files.count(f) > 1})
        raise ValueError(f"listed more than once: {', '.join(twice)}; list each exposure once")
    missing = [str(f) for f in files if not f.exists()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(files)} inputs do not exist: {', '.join(missing[:5])}")


def _input_files(init: Any) -> list[Path]:
    if isinstance(init, str | Path):
        if Path(init).suffix.lower() not in (".json", ".yaml", ".yml", ".asn"):
            return [Path(init).resolve()]
        if not Path(init).exists():
            raise FileNotFoundError(f"the association {init} does not exist")
        folder, asn = Path(init).resolve().parent, ModelLibrary._load_asn(init)
    elif isinstance(init, dict):
        folder, asn = Path.cwd(), init
    elif isinstance(init, list | tuple):
        return [Path(member).resolve() for member in init if isinstance(member, str | Path)]
    else:
        return []
    return [(folder / member["expname"]).resolve() for member in asn["products"][0]["members"]]


def bad_dq_bits(dqbits: str | None) -> int:
    """
    Find the DQ bits that make a pixel bad.

    Parameters
    ----------
    dqbits : str or None
        Flags of *good* pixels, as in all jwst steps: ``"~DO_NOT_USE+NON_SCIENCE"`` means all but these two. None
        or an empty string: DQ is not used.

    Returns
    -------
    int
        Mask of bits.

    Raises
    ------
    ValueError
        If a flag is unknown.
    """
    try:
        good = interpret_bit_flags(dqbits, flag_name_map=dq_flags)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"dqbits={dqbits!r} cannot be understood ({error}); use names such as DO_NOT_USE") from error
    return 0 if good is None else ~good & 0xFFFFFFFF


@dataclass(frozen=True)
class _Known:
    """What is kept of a model while it is on the shelf."""

    name: str
    group: str
    wcs: Callable
    time: float | None
    is_background: bool
    previous: float
    file: str


class LibraryExposures:
    """
    The exposures of a library, which stays on its shelf until pixels are asked for.

    Parameters
    ----------
    library : ModelLibrary
        Library; it must be open while exposures are read.
    dqbits : str or None
        DQ flags of good pixels.
    subtract : bool
        Whether levels will be subtracted; must agree with earlier subtraction.
    masks : sequence of str
        User masks, see `bkgmatch.masks.find_masks`.
    regions : str or None
        File of sky regions.

    Raises
    ------
    ValueError
        If a model cannot be matched, with its name.
    """

    def __init__(
        self,
        library: ModelLibrary,
        *,
        dqbits: str | None,
        subtract: bool,
        masks: Sequence[str] = (),
        regions: str | None = None,
    ) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._bad_bits = bad_dq_bits(dqbits)
        self._regions = read_regions(regions) if regions else []
        groups = {index: str(name) for name, members in library.group_indices.items() for index in members}
        self._known = _numbered(
            [self._with_model(i, partial(_know, group=groups[i], subtract=subtract)) for i in range(len(library))]
        )
        self._masks = find_masks(masks, [self._path(i) for i in range(len(library))]) if masks else None

    @property
    def names(self) -> list[str]:
        """Names of the exposures, made unique."""
        return [known.name for known in self._known]

    @property
    def previous(self) -> np.ndarray:
        """Level that has been subtracted from each exposure before."""
        return np.array([known.previous for known in self._known])

    def exposures(self) -> list[Exposure]:
        """Exposures for the core."""
        return [
            Exposure(k.name, partial(self._read, i), k.wcs, k.group, k.time, k.is_background)
            for i, k in enumerate(self._known)
        ]

    def update(self, index: int, change: Callable[[JwstDataModel], None]) -> None:
        """Change one model of the library."""
        self._with_model(index, change, modify=True)

    def _path(self, index: int) -> str:
        folder = getattr(self._library, "_asn_dir", None)
        return str(Path(folder or ".") / self._known[index].file)

    def _with_model(self, index: int, use: Callable[[JwstDataModel], Any], *, modify: bool = False) -> Any:
        model = self._library.borrow(index)
        try:
            return use(model)
        finally:
            self._library.shelve(model, index, modify=modify)

    def _read(self, index: int) -> Pixels:
        known = self._known[index]
        with self._lock:
            data, dq = self._with_model(index, lambda model: (model.data, model.dq))
        good = np.isfinite(data)
        if self._bad_bits and dq is not None:
            if dq.shape != data.shape:
                raise ValueError(f"{known.name}: DQ has shape {dq.shape}, SCI has {data.shape}")
            good &= (dq & np.uint32(self._bad_bits)) == 0
        mask = self._masks[index] if self._masks else None
        if mask:
            good &= read_mask(mask, data.shape)
        if self._regions:
            good &= region_mask(self._regions, known.wcs, data.shape)
        return Pixels(data, good)


def _know(model: JwstDataModel, *, group: str, subtract: bool) -> _Known:
    name = model.meta.filename or "model"
    if getattr(model, "data", None) is None or model.data.ndim != 2:
        raise ValueError(f"{name}: sky matching needs 2-D images, this is a {type(model).__name__}")
    if model.meta.wcs is None:
        raise ValueError(f"{name}: there is no WCS; run the assign_wcs step first")
    exposure = model.meta.exposure
    times = (exposure.mid_time, exposure.start_time)
    return _Known(
        name=name,
        group=group,
        wcs=partial(model.meta.wcs, with_bounding_box=False),
        time=next((float(t) for t in times if t is not None), None),
        is_background=str(model.meta.asn.exptype or model.meta.exptype or "").lower() == "background"
        if hasattr(model.meta, "asn")
        else False,
        previous=_previous_level(model, name, subtract=subtract),
        file=model.meta.filename or "",
    )


def _previous_level(model: JwstDataModel, name: str, *, subtract: bool) -> float:
    """Level subtracted before; ValueError if the metadata disagree with themselves or with ``subtract``."""
    background = model.meta.background
    if background.subtracted is None:
        if background.level is not None:
            raise ValueError(
                f"{name}: Background level was set but the 'subtracted' property is undefined (None). "
                "Set BKGSUB, or remove BKGLEVEL"
            )
        return 0.0
    if background.level is None:
        raise ValueError(
            f"{name}: Background level was subtracted but the 'level' property is undefined (None). "
            "Set BKGLEVEL, or remove BKGSUB"
        )
    if background.subtracted != subtract:
        raise ValueError(
            f"'subtract' step's specification is inconsistent with background info already present in image "
            f"'{name}' meta: subtract={subtract}, BKGSUB={background.subtracted}. "
            f"Use subtract={background.subtracted}, or 'bkgmatch undo' first"
        )
    return float(background.level) if background.subtracted else 0.0


def _numbered(known: list[_Known]) -> list[_Known]:
    """Models in memory may share a file name: number them."""
    names = [k.name for k in known]
    seen: dict[str, int] = {}
    unique = []
    for k in known:
        seen[k.name] = seen.get(k.name, 0) + 1
        name = k.name if names.count(k.name) == 1 else f"{k.name}[{seen[k.name]}]"
        unique.append(_Known(**{**vars(k), "name": name}))
    return unique


@dataclass(frozen=True)
class LevelRecord:
    """
    A level as jwst's skymatch records it.

    Parameters
    ----------
    level : float
        Sky level of the original data (``BKGLEVEL``).
    method : str
        Sky method (``BKGMETH``).
    subtract : bool
        Whether the level is subtracted (``BKGSUB``).
    previous : float
        Part of the level that was subtracted before.
    sigma : float, optional
        Standard error of the level, to be added to ERR and, as variance, to VAR_RNOISE.
    """

    level: float
    method: str
    subtract: bool
    previous: float = 0.0
    sigma: float | None = None

    def apply(self, model: JwstDataModel) -> None:
        """Write the level to a model, and subtract it if asked."""
        background = model.meta.background
        background.method, background.level, background.subtracted = self.method, self.level, self.subtract
        if self.subtract:
            model.data = shift(model.data, self.previous - self.level)
            if self.sigma is not None:
                _add_errors(model, self.sigma)
        model.meta.cal_step.skymatch = "COMPLETE"


def skip(model: JwstDataModel) -> None:
    """Mark a model that could not be matched."""
    model.meta.cal_step.skymatch = "SKIPPED"


def undo(model: JwstDataModel) -> bool:
    """
    Give back the data as they were before the level was subtracted.

    Parameters
    ----------
    model : JwstDataModel
        Model; it is changed. The record of the level is removed.

    Returns
    -------
    bool
        False if nothing had been subtracted.
    """
    background = model.meta.background
    if not background.subtracted:
        return False
    model.data = shift(model.data, background.level)
    sigma = _sigma_card(model)
    if sigma is not None:
        _remove_errors(model, sigma)
    background.level = background.subtracted = background.method = None
    model.meta.cal_step.skymatch = None
    return True


def undo_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """
    Undo the subtraction of levels in files.

    Parameters
    ----------
    files : sequence of Path
        Matched exposures; they are not changed.
    folder : Path
        Folder for the results, which keep the names of the files.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        If nothing was subtracted from a file, or a result would replace its input. Nothing is written then.
    """
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist")
        if (folder / file.name).resolve() == file.resolve():
            raise ValueError(f"{file} would be overwritten; choose another folder")
        with datamodels.open(file) as model:
            if not model.meta.background.subtracted:
                raise ValueError(f"{file}: no level has been subtracted (BKGSUB is {model.meta.background.subtracted})")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        with datamodels.open(file) as model:
            undo(model)
            written.append(Path(model.save(folder / file.name)))
    return written


def _add_errors(model: JwstDataModel, sigma: float) -> None:
    earlier = _sigma_card(model)
    if earlier is not None:
        _remove_errors(model, earlier)
    _change_errors(model, sigma, add_variance)
    _cards(model).append([_SIGMA_CARD, float(sigma), "error of BKGLEVEL, added to ERR and VAR_RNOISE"])


def _remove_errors(model: JwstDataModel, sigma: float) -> None:
    _change_errors(model, sigma, remove_variance)
    cards = _cards(model)
    cards[:] = [card for card in cards if card[0] != _SIGMA_CARD]


def _change_errors(model: JwstDataModel, sigma: float, change: Callable) -> None:
    if getattr(model, "err", None) is not None:
        model.err = change(model.err, sigma)
    if getattr(model, "var_rnoise", None) is not None:
        model.var_rnoise = np.square(change(np.sqrt(model.var_rnoise), sigma))


def _sigma_card(model: JwstDataModel) -> float | None:
    return next((float(card[1]) for card in _cards(model) if card[0] == _SIGMA_CARD), None)


def _cards(model: JwstDataModel) -> list:
    """Cards of the primary header that are not in the schema; they survive saving and opening."""
    extra = model.instance.setdefault("extra_fits", {}).setdefault("PRIMARY", {})
    return extra.setdefault("header", [])


def is_in_memory(init: Any) -> bool:
    """Whether the input holds open models, which no library can keep on disk."""
    if isinstance(init, list | tuple):
        return any(isinstance(member, JwstDataModel) for member in init)
    return isinstance(init, JwstDataModel | ModelContainer)
