"""SkyMatchStep: sky levels of overlapping exposures."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jwst.datamodels import ModelLibrary

from bkgmatch.match import NO_PIXELS, match_skies
from bkgmatch.options import METHOD_SYNONYMS, ZERO_POINT_POLICIES, SkyMatchOptions
from bkgmatch.paths import is_there
from bkgmatch.pictures import pictures_of_levels
from bkgmatch.progress import stage
from bkgmatch.record import exposure_table, pair_table, save_tables
from bkgmatch.saved import read_sky_levels, same_exposure
from bkgmatch.sky_story import story
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.inputs import exposure_files, open_inputs, plain_names
from bkgmatch.steps.library import LibraryExposures, full_name, stem
from bkgmatch.steps.models import LevelRecord, skip
from bkgmatch.steps.working import work_of
from bkgmatch.stories import tell

__all__ = ["SkyMatchStep"]

log = logging.getLogger("stpipe.bkgmatch.skymatch")


class SkyMatchStep(BackgroundStep):
    """Subtract or equalize the sky background of overlapping exposures."""

    class_alias = "skymatch"

    spec = """
        # General sky matching parameters:
        skymethod = option('local', 'global', 'match', 'global+match', 'user', 'localmin', 'globalmin', 'globalmin+match', default='match') # sky computation method
        match_down = boolean(default=True) # adjust sky to lowest measured value?
        subtract = boolean(default=False) # subtract computed sky from image data?
        skylist = string(default=None) # Filename pointing to list of (imagename skyval) pairs
        apply_table = string(default=None) # apply the levels of this saved table instead of measuring

        # What is compared, and how levels are tied:
        overlap = option('good', 'footprint', 'exact', default='good') # overlap of good pixels, of detector outlines, or pixel by pixel
        level_per = option('exposure', 'detector', default='exposure') # one level for an exposure or for each of its detectors
        zero_point = string(default='auto') # auto, lowest, highest, mean, background or the name of an exposure
        zero_point_scope = option('global', 'component', default='global') # one zero point for all, or for each connected set
        weights = option('variance', 'npix', 'robust', default='variance') # weights of the pairs

        # Image's bounding polygon parameters:
        stepsize = integer(default=None) # Max vertex separation

        # Sky statistics parameters:
        skystat = option('median', 'midpt', 'mean', 'mode', 'difference', default='mode') # sky statistics, or pixel by pixel
        dqbits = string(default='~DO_NOT_USE+NON_SCIENCE') # "good" DQ bits
        masks = force_list(default=None) # user masks (non-zero = good): one file per exposure, or a suffix
        regions = string(default=None) # DS9 file of sky regions to include, or exclude (-)
        lower = float(default=None) # Lower limit of "good" pixel values
        upper = float(default=None) # Upper limit of "good" pixel values
        nclip = integer(min=0, default=5) # number of sky clipping iterations
        lsigma = float(min=0.0, default=4.0) # Lower clipping limit, in sigma
        usigma = float(min=0.0, default=4.0) # Upper clipping limit, in sigma
        binwidth = float(min=0.0, default=0.1) # Bin width for 'mode' and 'midpt' `skystat`, in sigma

        # Results:
        propagate_errors = boolean(default=False) # add the variance of the subtracted level to ERR and VAR_RNOISE?
        save_table = string(default=None) # File name for the ECSV table of levels; that of the pairs is *_pairs.ecsv
        suffix = string(default='skymatch') # suffix of saved files
        output_use_model = boolean(default=True) # name saved files after the exposures
    """  # noqa: E501

    skymethod: str
    masks: list[str] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masks = plain_names(self.masks)

    def process(self, *inputs: Any) -> ModelLibrary:
        """
        Run the step.

        Parameters
        ----------
        *inputs : str, Path, dict, list, ModelContainer, ModelLibrary or datamodel
            Association, files or models; or several files.

        Returns
        -------
        ModelLibrary
            The models with their levels recorded, and subtracted if ``subtract`` is set.

        Raises
        ------
        ValueError, FileNotFoundError
            If an input or an option cannot be used; the message says which and what to do.
        """
        self._use_present_name()
        self._check_options()
        library, files = open_inputs(self, inputs)
        self.plan_report(library)
        with library:
            if self.skymethod == "user" or self.apply_table:
                self._record_given(library)
            else:
                self._measure(library, files)
        return library

    def _check_options(self) -> None:
        if self.skymethod == "user" and self.skylist is None:
            raise ValueError('skymethod set to "user", but no sky value file provided: set skylist')
        if self.skylist is not None and self.skymethod != "user":
            raise ValueError(f"skylist is used only with skymethod='user', not with {self.skymethod!r}")
        if self.apply_table and self.skymethod == "user":
            raise ValueError("skymethod='user' reads levels from skylist: use either skylist or apply_table")
        if self.propagate_errors and (not self.subtract or self.skymethod == "user"):
            raise ValueError("propagate_errors needs subtract=True and levels with errors (not skymethod='user')")
        if self.skymethod != "user" and not self.apply_table:
            self._options([])  # which refuses the others

    def _use_present_name(self) -> None:
        method = METHOD_SYNONYMS.get(self.skymethod, self.skymethod)
        if method != self.skymethod:
            log.info("skymethod %r is the classic name of %r", self.skymethod, method)
            self.skymethod = method

    def _measure(self, library: ModelLibrary, files: list[Path]) -> None:
        with work_of(self, len(library), from_files=bool(files)) as work:
            inputs = LibraryExposures(
                library,
                dqbits=self.dqbits,
                subtract=self.subtract,
                work=work,
                files=exposure_files(library, files),
                masks=self.masks or (),
                regions=self.regions,
            )
            inputs.check_units()
            inputs.check_bands()
            options = self._options(inputs.names)
            with stage("solution"):
                found = match_skies(inputs.exposures(), options, work=work)
            if self.regions and set(found.status) == {NO_PIXELS}:
                raise ValueError(f"regions={self.regions} leave no good pixel in any exposure; check where they are")
            match = replace(found, level=found.level + inputs.previous)
            made_with = {name: getattr(self, name) for name in ("subtract", "dqbits", "masks", "regions")}
            table = exposure_table(match, options, unit=inputs.unit, relative=inputs.are_relative, **made_with)
            pairs = pair_table(match, unit=inputs.unit)
            if self.report:
                see = partial(pictures_of_levels, inputs.exposures(), table, previous=inputs.previous, work=work)
                self.keep_report(table, pairs, lambda: {"shown": see()})
        with stage("subtraction"):
            for index, (level, sigma) in enumerate(zip(match.level.tolist(), match.sigma.tolist(), strict=True)):
                self._record(inputs, index, self.skymethod, level, sigma)
        tell(log, story(match, inputs.unit, "subtracted" if self.subtract else "recorded"))
        before = inputs.previous != 0
        if before.any():
            new = np.nanmax(np.abs(found.level[before]), initial=0)
            done = f"{before.sum()} of {len(before)} exposures had levels subtracted before"
            log.info("%s, which the levels include; at most %.3g %s is new", done, new, inputs.unit)
        if self.save_table:
            save_tables(self.save_table, table, pairs)

    def _options(self, names: list[str]) -> SkyMatchOptions:
        values = {name: getattr(self, name) for name in SkyMatchOptions.__dataclass_fields__}
        return SkyMatchOptions(**values | {"zero_point": full_name(self.zero_point, ZERO_POINT_POLICIES, names)})

    def _record(self, inputs: LibraryExposures, index: int, method: str, level: float, sigma: float) -> None:
        recorded = LevelRecord(
            level,
            method=method,
            subtract=self.subtract,
            previous=float(inputs.previous[index]),
            sigma=sigma if self.propagate_errors else None,
        )
        inputs.update(index, recorded.apply if np.isfinite(level) else skip)

    def _record_given(self, library: ModelLibrary) -> None:
        source = self.skylist or self.apply_table
        saved = read_sky_levels(self.apply_table) if self.apply_table else None
        levels = saved.levels if saved else _read_skylist(self.skylist)
        inputs = LibraryExposures(library, dqbits=None, subtract=self.subtract)
        idle = [name for name in ("masks", "regions", "save_table", "report") if getattr(self, name)]
        if idle:
            log.warning("%s: without effect where levels are given, not measured", ", ".join(idle))
        rows = [same_exposure(name, levels, stem) or "" for name in inputs.names]
        missing = [name for name, row in zip(inputs.names, rows, strict=True) if not row]
        if missing:
            raise ValueError(f"no level is given for {', '.join(missing)} in {source}")
        if saved:
            inputs.check_levels(saved, rows)
        elif len(levels) != len(rows):
            raise ValueError(
                f"Number of entries in skylist {source} ({len(levels)}) does not match number of input images "
                f"({len(rows)}); list each image once"
            )
        for index, row in enumerate(rows):
            self._record(inputs, index, saved.skymethod if saved else "user", *levels[row])
        log.info("The levels of %d exposures are taken from %s", len(rows), source)


def _read_skylist(path: str) -> dict[str, tuple[float, float]]:
    """Read lines of name and level; ValueError names the line that cannot be used."""
    levels: dict[str, tuple[float, float]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines() if is_there(path) else None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the skylist {path}: {error}") from error
    if lines is None:
        raise FileNotFoundError(f"the skylist {path} does not exist")
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"skylist {path}, line {number}"
        try:
            name, level = words[0], float(words[1])
        except (IndexError, ValueError) as error:
            raise ValueError(f"{where}: expected a file name and a number, got {line.strip()!r}") from error
        if len(words) > 2 or not np.isfinite(level):
            raise ValueError(f"{where}: expected a file name and a finite number, got {line.strip()!r}")
        if stem(name) in levels:
            raise ValueError(f"Image with stem '{stem(name)}' found multiple times in the skylist ({where}).")
        levels[stem(name)] = (level, 0.0)
    if not levels:
        raise ValueError(f"the skylist {path} is empty")
    return levels
