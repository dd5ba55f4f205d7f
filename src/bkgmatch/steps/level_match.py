"""LevelMatchStep: constants and planes from pixel-by-pixel differences, in passes."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jwst.datamodels import ModelLibrary

from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure
from bkgmatch.images import FitsImage, same_unit
from bkgmatch.journal import file_digest, fingerprint
from bkgmatch.level_story import story
from bkgmatch.levels import LevelMatch, match_levels
from bkgmatch.options import LevelMatchOptions
from bkgmatch.paths import is_there, located
from bkgmatch.pictures import pictures_of_levels
from bkgmatch.plots import PairPlots, check_plots
from bkgmatch.progress import stage
from bkgmatch.record import level_pair_table, level_table, save_tables
from bkgmatch.reference import REFERENCE_POLICIES
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.inputs import exposure_files, open_inputs, plain_names
from bkgmatch.steps.library import LibraryExposures, full_name
from bkgmatch.steps.parts import Part, find_parts, largest_pull, plane_records, recombined, split_halves
from bkgmatch.steps.plane_record import earlier_record, skip_planes
from bkgmatch.steps.working import work_of
from bkgmatch.stories import tell

__all__ = ["LevelMatchStep"]

log = logging.getLogger("stpipe.bkgmatch.level_match")

_NOTED = ("subtract", "dqbits", "fixed", "recombine_lyot", "combine_nircam_short")


class LevelMatchStep(BackgroundStep):
    """Match the backgrounds of overlapping exposures, pixel by pixel, with constants or planes."""

    class_alias = "level_match"

    spec = """
        # What is fitted, in passes:
        fit_type_dithers = option('level', 'level+slope', 'level+match', default='level') # constants or planes for the dithers of a tile
        fit_type_recombine_lyot = option('level', 'level+slope', 'level+match', default='level') # for the Lyot field of MIRI
        fit_type_combine_nircam_short = option('level', 'level+slope', 'level+match', default='level') # for the chips of a NIRCam module
        fit_type_mosaic_tiles = option('level', 'level+slope', 'level+match', default='level') # for the tiles of a mosaic
        recombine_lyot = boolean(default=False) # match the Lyot field of MIRI to the imager's?
        combine_nircam_short = boolean(default=False) # match the four short-wavelength chips of a module before tiles?
        passes = option('sequence', 'joint', default='sequence') # one pass after the other, or all exposures at once

        # The zero point:
        reference = string(default='auto') # auto, background, flattest, most_overlaps, mean or the name of an exposure
        do_local_subtraction = boolean(default=True) # make the background of the reference tile zero?
        fixed = force_list(default=None) # exposures or images that stay as they are, and that the others are matched to

        # How pairs are measured:
        dqbits = string(default='~DO_NOT_USE+NON_SCIENCE') # "good" DQ bits
        reproject_func = option('interp', 'exact', 'adaptive', default='interp') # how pixels come to common cells
        pixel_scale_ratio = float(default=1.0) # side of a common cell, in pixels
        do_sigma_clip = boolean(default=False) # mask sources before pairs are compared?
        sigma = float(default=3.0) # threshold of sources and of clipping, in sigma
        npixels = integer(min=0, default=3) # least number of connected pixels of a source
        dilate_size = integer(min=0, default=7) # growth of source masks, in pixels
        max_iters = integer(min=0, default=20) # most iterations of clipping
        weight_method = option('ml', 'equal', 'npix', 'rms', default='ml') # weights of the pairs
        min_area_percent = float(min=0.0, default=0.002) # least number of common pixels, as a fraction of the mean
        min_linear_frac = float(min=0.0, default=0.0) # least extent of the common pixels, as a fraction of the exposures'
        rms_sig_limit = float(min=0.0, default=0.0) # most rms of a pair, in sigma above the mean; 0: no limit

        # Results:
        subtract = boolean(default=True) # subtract the matched levels?
        save_table = string(default=None) # File name for the ECSV table of levels; that of the pairs is *_pairs.ecsv
        save_plots = string(default=None) # folder for pictures of the pairs and of the mosaic
        suffix = string(default='levelmatch') # suffix of saved files
        output_use_model = boolean(default=True) # name saved files after the exposures
    """  # noqa: E501

    fixed: list[str] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fixed = plain_names(self.fixed)

    def kept_files(self) -> list[Path]:
        """Files that results must not replace: those that are fixed."""
        return [located(name) for name in self.fixed or [] if Path(name).is_file()]

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
            The models, with their levels subtracted if ``subtract`` is set, and recorded.

        Raises
        ------
        ValueError, FileNotFoundError
            If an input or an option cannot be used; the message says which and what to do.
        """
        self._options([])  # before exposures are opened, which may take long, options that cannot be are refused
        if self.save_plots:
            check_plots(self.save_plots)
        library, files = open_inputs(self, inputs)
        self.plan_report(library)
        with library, work_of(self, len(library), from_files=bool(files)) as work:
            files = exposure_files(library, files)
            look = partial(earlier_record, subtract=self.subtract)
            known = LibraryExposures(library, dqbits=self.dqbits, subtract=None, work=work, files=files, look=look)
            known.check_units()
            known.check_bands()
            halves = split_halves(known) if self.recombine_lyot else {}
            parts = find_parts(known, halves, lyot=self.recombine_lyot, chips=self.combine_nircam_short)
            exposures = self._with_fixed(known, files, parts, work)
            options = self._options([e.name for e in exposures])
            watch = PairPlots(Path(self.save_plots), known.unit).draw if self.save_plots else None
            with stage("solution"):
                match = match_levels(exposures, options, work=work, watch=watch)
            made_with = {name: getattr(self, name) for name in _NOTED}
            table = level_table(match, options, unit=known.unit, relative=known.are_relative, **made_with)
            pairs = level_pair_table(match, unit=known.unit)
            if self.save_table:
                save_tables(self.save_table, table, pairs)
            if self.report:
                see = partial(pictures_of_levels, exposures, table, work=work)
                self.keep_report(table, pairs, lambda: {"shown": see()})
            with stage("subtraction"):
                done = self._apply(known, parts, match)
            tell(log, story(match, known.unit, done))
            if done == "recorded":
                log.warning(
                    "Nothing is subtracted (subtract=False): the levels are recorded, which outlier_detection and "
                    "resample do not read"
                )
            return recombined(library, halves) if halves else library

    def _options(self, names: list[str]) -> LevelMatchOptions:
        values = {name: getattr(self, name) for name in LevelMatchOptions.__dataclass_fields__}
        return LevelMatchOptions(**values | {"reference": full_name(self.reference, REFERENCE_POLICIES, names)})

    def _with_fixed(self, known: LibraryExposures, files: list[Path], parts: list[Part], work: Work) -> list[Exposure]:
        """Mark the exposures that are fixed, and add images that are not among them."""
        fixed = {name: _held(name, known.names, files) for name in self.fixed or []}
        marked = [replace(p.exposure, is_fixed=known.names[p.index] in fixed.values()) for p in parts]
        others = [name for name, full in fixed.items() if full is None]
        images = [FitsImage.open(name) for name in others]
        for image in images:
            if not same_unit(image.unit, known.unit):
                raise ValueError(
                    f"fixed={image.path} has the unit {image.unit}, the exposures {known.unit}; convert it"
                )
        digests = [fingerprint(file_digest(image.path)) if work.journal else "" for image in images]
        return marked + [
            image.exposure(is_fixed=True, digest=digest) for image, digest in zip(images, digests, strict=True)
        ]

    def _apply(self, known: LibraryExposures, parts: list[Part], match: LevelMatch) -> str:
        """Subtract and record; return what was done, nothing if it has been done before."""
        records = plane_records(parts, match, subtract=self.subtract)
        earlier = [known.seen[index] for index in records]
        moved = largest_pull(parts, match)
        if records and all(record is not None and record.subtracted for record in earlier) and moved < 1:
            log.info(
                "The exposures are matched already: further corrections are at most %.2f of their errors. "
                "Nothing is changed",
                moved,
            )
            return ""
        for index in range(len(known.names)):
            record = records.get(index)
            known.update(index, record.apply if record else skip_planes)
        return "subtracted" if self.subtract else "recorded"


def _held(given: str, names: list[str], files: list[Path]) -> str | None:
    """Name of the exposure that is fixed, None for a file of another image; ValueError if it is another file of one."""
    path, name = Path(given), full_name(given, (), names)
    if path.is_file() and located(path) in files:
        return names[files.index(located(path))]
    is_of_models = not files and path.name in names  # they may have been opened from it
    if path.is_file() and name in names and name != given and not is_of_models:
        raise ValueError(
            f"fixed={given} is another file of {name}, which is among the exposures; leave one of them out"
        )
    if name not in names and not is_there(path):
        raise FileNotFoundError(f"fixed={given} is neither one of the exposures ({names[0]}, ...) nor a file")
    return name if name in names else None
