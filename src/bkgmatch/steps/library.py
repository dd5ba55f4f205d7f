"""A library of JWST models as exposures of the core."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from astropy.nddata.bitmask import interpret_bit_flags
from jwst.datamodels import ModelLibrary
from jwst.lib.suffix import remove_suffix
from regions import SkyRegion
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel as dq_flags

from bkgmatch.execution import HERE, Work
from bkgmatch.exposures import Exposure, Pixels
from bkgmatch.images import common_unit, naming, writing
from bkgmatch.journal import file_digest, fingerprint
from bkgmatch.masks import find_masks, read_mask, read_regions, region_mask
from bkgmatch.saved import SavedLevels, same_exposure, without_suffix
from bkgmatch.steps.cards import PRODUCT_CARD, card
from bkgmatch.steps.inputs import unreadable, use_file
from bkgmatch.steps.packed import PackedWcs
from bkgmatch.steps.tiles import Tile, tile_of
from bkgmatch.stories import some

log = logging.getLogger("stpipe.bkgmatch.library")

__all__ = [
    "LibraryExposures",
    "bad_dq_bits",
    "full_name",
    "is_earlier_matched",
    "is_level_recorded",
    "stem",
    "unique_names",
]


def stem(name: str) -> str:
    """Name of an exposure without folder, extension and known suffix (``_cal``, ``_skymatch``, ...)."""
    file, bracket, number = name.partition("[")  # models that share a file name are numbered
    return f"{remove_suffix(without_suffix(Path(file).stem))[0]}{bracket}{number}"


def full_name(given: str, policies: Sequence[str], names: Sequence[str]) -> str:
    """Name of the exposure that is meant, with or without suffix and extension; or the policy."""
    given = str(given)  # None, too
    if given.lower() in policies:
        return given.lower()
    return same_exposure(given, names, stem) or given


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
    wcs: Callable
    has_wcs: bool
    time: float | None
    previous: float
    recorded: float
    is_earlier_matched: bool
    file: str
    unit: str
    tile: Tile
    band: str
    seen: Any


class LibraryExposures:
    """
    The exposures of a library, which stays on its shelf until pixels are asked for.

    Parameters
    ----------
    library : ModelLibrary
        Library; it must be open while exposures are read.
    dqbits : str or None
        DQ flags of good pixels.
    subtract : bool or None
        Whether sky levels will be subtracted; must agree with earlier subtraction. None: sky levels stay as they are,
        and where one is recorded but not subtracted, the data less that level are read.
    work : Work
        How work is done: workers that do not share the memory of this process read the files themselves.
    files : sequence of Path
        The files of the exposures, if they are in files, as they are in the library.
    masks : sequence of str
        User masks, see `bkgmatch.masks.find_masks`.
    regions : str or None
        File of sky regions.
    find_wcs : callable, optional
        ``find_wcs(model) -> wcs``, for a model that has none; it returns None if it finds none.
    look : callable, optional
        ``look(model)`` is called with each model once; `seen` keeps what it returns.

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
        subtract: bool | None,
        work: Work = HERE,
        files: Sequence[Path] = (),
        masks: Sequence[str] = (),
        regions: str | None = None,
        find_wcs: Callable[[JwstDataModel], Callable | None] = lambda model: None,
        look: Callable[[JwstDataModel], Any] = lambda model: None,
    ) -> None:
        self._library, self._work, self._paths = library, work, files
        self._lock = threading.Lock()
        bad_bits = bad_dq_bits(dqbits)
        know = partial(_know, subtract=subtract, find_wcs=find_wcs, look=look, pack=work.folder is not None)
        known = self._look_at_all(know)
        names = unique_names([k.name for k in known])
        self._known = [replace(k, name=name) for k, name in zip(known, names, strict=True)]
        found = find_masks(masks, files or self._files()) if masks else [None] * len(known)
        if masks:
            log.info("%d of %d exposures have a user mask", sum(mask is not None for mask in found), len(found))
        found = [mask and mask.absolute() for mask in found]  # workers have other working folders
        areas = tuple(read_regions(regions)) if regions else ()
        self._rules = [
            _Rules(k.name, bad_bits, k.recorded, mask, areas) for k, mask in zip(self._known, found, strict=True)
        ]
        self._digests = self._hashed(regions)

    @property
    def names(self) -> list[str]:
        """Names of the exposures, made unique."""
        return [known.name for known in self._known]

    @property
    def seen(self) -> list[Any]:
        """What has been looked at in each model."""
        return [known.seen for known in self._known]

    @property
    def unit(self) -> str:
        """Unit of the data, if all exposures have the same."""
        units = {known.unit for known in self._known}
        return units.pop() if len(units) == 1 else ""

    def check_units(self) -> None:
        """Raise ValueError if exposures have different units."""
        common_unit([(known.name, known.unit) for known in self._known])

    def check_bands(self) -> None:
        """Warn of science exposures of several instruments or filters, whose skies differ by more than levels."""
        kinds: dict[str, list[str]] = {}
        for i in self._library.indices_for_exptype("science"):
            kinds.setdefault(self._known[i].band, []).append(self._known[i].name)
        kinds.pop("", None)  # not known
        if len(kinds) > 1:
            few_first = sorted(kinds.items(), key=lambda kind: len(kind[1]))
            found = "; ".join(f"{band} ({some(names)})" for band, names in few_first)
            log.warning(
                "Exposures of several instruments or filters are matched with each other: %s; match them apart", found
            )

    def check_levels(self, saved: SavedLevels, rows: Sequence[str]) -> None:
        """Raise ValueError if levels of a table, by their names in it, are not those of the exposures as they are."""
        for known, row in zip(self._known, rows, strict=True):
            saved.check(known.name, row, unit=known.unit, is_matched=known.is_earlier_matched)

    @property
    def previous(self) -> np.ndarray:
        """Level that has been subtracted from each exposure before."""
        return np.array([known.previous for known in self._known])

    @property
    def are_relative(self) -> bool:
        """Whether levels are relative to backgrounds that another step has found."""
        return any(known.is_earlier_matched for known in self._known)

    def exposures(self) -> list[Exposure]:
        """Exposures for the core."""
        groups = {i: str(name) for name, members in self._library.group_indices.items() for i in members}
        backgrounds = self._library.indices_for_exptype("background")
        return [
            Exposure(k.name, self._reader(i), k.wcs, groups[i], k.time, i in backgrounds, digest=self._digests[i])
            for i, k in enumerate(self._known)
        ]

    def _look_at_all(self, know: Callable[[JwstDataModel], "_Known"]) -> "list[_Known]":
        if self._work.shares_memory or not self._paths:
            return [self._with_model(i, know) for i in range(len(self._library))]
        return self._work.run(partial(use_file, use=know), self._paths, what="Checking exposures", name=str, keep=False)

    def _hashed(self, regions: str | None) -> list[str]:
        """Hash of all that the pixels of each exposure depend on, if results are kept; else empty."""
        if not (self._work.journal and self._paths):
            return [""] * len(self._known)
        of_regions = file_digest(Path(regions)) if regions else ""
        of_files = self._work.run(file_digest, self._paths, what="Reading checksums", name=str, keep=False)
        return [
            fingerprint(digest, rules.bad_bits, rules.recorded, rules.mask and file_digest(rules.mask), of_regions)
            if known.has_wcs
            else ""
            for digest, rules, known in zip(of_files, self._rules, self._known, strict=True)
        ]

    def _reader(self, i: int) -> Callable[[], Pixels]:
        """Make the function that reads an exposure: here, on a worker from its file, or from a copy for workers."""
        rules, wcs = self._rules[i], self._known[i].wcs
        if self._work.shares_memory:
            return partial(self._read, i)
        if self._paths:
            return partial(use_file, self._paths[i], use=partial(_pixels, rules=rules, wcs=wcs))
        pixels = self._read(i)
        return self._work.shelf.reader(Pixels, (pixels.data, pixels.good, pixels.variance))

    @property
    def tiles(self) -> list[Tile]:
        """Tile of each exposure."""
        return [known.tile for known in self._known]

    def update(self, index: int, change: Callable[[JwstDataModel], None]) -> None:
        """Change one model of the library."""
        self._with_model(index, change, modify=True)

    def _files(self) -> list[Path]:
        folder = Path(self._library.asn_dir)  # the text "None" for a library of models
        return [folder / k.file if folder.is_dir() else Path(k.file) for k in self._known]

    def _with_model(self, index: int, use: Callable[[JwstDataModel], Any], *, modify: bool = False) -> Any:
        try:
            model = self._library.borrow(index)
        except Exception as error:  # astropy, asdf and the models raise many kinds
            raise ValueError(unreadable(self._member(index), error)) from error
        try:
            with naming(self._member(index)):
                return use(model)
        finally:
            with writing(self._member(index)):
                self._library.shelve(model, index, modify=modify)

    def _member(self, index: int) -> str:
        return str(self._library.asn["products"][0]["members"][index]["expname"])

    def _read(self, index: int) -> Pixels:
        with self._lock:
            arrays = self._with_model(index, _arrays)
        return _good_pixels(arrays, self._rules[index], self._known[index].wcs)


_Arrays: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class _Rules:
    """What makes pixels of an exposure good."""

    name: str
    bad_bits: int
    recorded: float
    mask: Path | None
    regions: tuple[SkyRegion, ...]


def _arrays(model: JwstDataModel) -> _Arrays:
    return model.data, model.dq, model.err


def _pixels(model: JwstDataModel, rules: _Rules, wcs: Callable) -> Pixels:
    return _good_pixels(_arrays(model), rules, wcs)


def _good_pixels(arrays: _Arrays, rules: _Rules, wcs: Callable) -> Pixels:
    data, dq, err = arrays
    if rules.recorded:
        data = data - np.float32(rules.recorded)
    good = np.isfinite(data)
    if rules.bad_bits and dq is not None:
        if dq.shape != data.shape:
            raise ValueError(f"{rules.name}: DQ has shape {dq.shape}, SCI has {data.shape}")
        good &= (dq & np.uint32(rules.bad_bits)) == 0
    if rules.mask:
        good &= read_mask(rules.mask, data.shape)
    if rules.regions:
        good &= region_mask(rules.regions, wcs, data.shape)
    if err is not None and err.shape != data.shape:
        raise ValueError(f"{rules.name}: ERR has shape {err.shape}, SCI has {data.shape}")
    with np.errstate(over="ignore"):  # an infinite variance is not used
        return Pixels(data, good, None if err is None else np.square(err))


def _know(model: JwstDataModel, *, subtract: bool | None, find_wcs: Callable, look: Callable, pack: bool) -> _Known:
    name = model.meta.filename or "model"
    if getattr(model, "data", None) is None or model.data.ndim != 2:
        raise ValueError(f"{name}: 2-D images are needed, this is a {type(model).__name__}")
    if model.meta.exposure.type in ("MIR_MRS", "NRS_IFU"):
        raise ValueError(
            f"{name} is no image but {model.meta.exposure.type}; for MIRI MRS use MRSIMatchStep or bkg_spec3"
        )
    if card(model, PRODUCT_CARD):
        raise ValueError(
            f"{name} is a {card(model, PRODUCT_CARD)} that image_for_image made, no exposure; leave it out"
        )
    wcs = partial(model.meta.wcs, with_bounding_box=False) if model.meta.wcs is not None else find_wcs(model)
    if wcs is None:
        raise ValueError(f"{name}: there is no WCS; run the assign_wcs step first")
    exposure = model.meta.exposure
    times = (exposure.mid_time, exposure.start_time)
    return _Known(
        name=name,
        wcs=PackedWcs.of(wcs) if pack else wcs,
        has_wcs=model.meta.wcs is not None,
        time=next((float(t) for t in times if t is not None), None),
        previous=0.0 if subtract is None else _previous_level(model, name, subtract=subtract),
        recorded=_recorded_level(model) if subtract is None else 0.0,
        is_earlier_matched=is_earlier_matched(model, is_sky=subtract is not None),
        file=model.meta.filename or "",
        unit=model.meta.bunit_data or "",
        tile=tile_of(model),
        band=_band(model),
        seen=look(model),
    )


def _band(model: JwstDataModel) -> str:
    """Instrument, filter and pupil wheel, as far as they are known; detectors and channels may differ."""
    instrument = model.meta.instrument
    return " ".join(word for word in (instrument.name, instrument.filter, instrument.pupil) if word)


def _recorded_level(model: JwstDataModel) -> float:
    """Level that resample will subtract; from its mosaics it has."""
    background = model.meta.background
    is_mosaic = model.meta.cal_step.resample == "COMPLETE"
    return float(background.level or 0) if background.subtracted is False and not is_mosaic else 0.0


def is_earlier_matched(model: JwstDataModel, *, is_sky: bool) -> bool:
    """Whether an exposure has a background that another step has found, to which its levels are relative."""
    has_level = not is_sky and model.meta.background.subtracted is not None
    return has_level or bool(card(model, "LVLM_SUB")) or bool(card(model, "I4I_SUB"))


def is_level_recorded(model: JwstDataModel, name: str) -> bool:
    """Whether a sky level is on record, subtracted or not; ValueError if the metadata disagree with themselves."""
    background = model.meta.background
    if background.subtracted is None and background.level is not None:
        raise ValueError(
            f"{name}: Background level was set but the 'subtracted' property is undefined (None). "
            "Set BKGSUB, or remove BKGLEVEL"
        )
    if background.subtracted is not None and background.level is None:
        raise ValueError(
            f"{name}: Background level was subtracted but the 'level' property is undefined (None). "
            "Set BKGLEVEL, or remove BKGSUB"
        )
    return background.level is not None


def _previous_level(model: JwstDataModel, name: str, *, subtract: bool) -> float:
    """Level subtracted before; ValueError if the metadata disagree with themselves or with ``subtract``."""
    background = model.meta.background
    if not is_level_recorded(model, name):
        return 0.0
    if background.subtracted != subtract:
        raise ValueError(
            f"'subtract' step's specification is inconsistent with background info already present in image "
            f"'{name}' meta: subtract={subtract}, BKGSUB={background.subtracted}. "
            f"Use subtract={background.subtracted}, or 'bkgmatch undo' first"
        )
    return float(background.level) if background.subtracted else 0.0


def unique_names(names: Sequence[str]) -> list[str]:
    """Names, those that several models in memory share with a number, and a warning."""
    shared, seen = Counter(names), Counter[str]()
    twice = [name for name, count in shared.items() if count > 1]
    if twice:
        log.warning("Several models have the same name: %s; they are taken for different exposures", some(twice))
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if shared[name] == 1 else f"{name}[{seen[name]}]")
    return unique
