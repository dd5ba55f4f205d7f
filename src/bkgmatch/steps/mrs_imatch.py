"""MRSIMatchStep: polynomial backgrounds in RA, Dec and wavelength for MIRI MRS."""

import logging
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any

import numpy as np
from jwst.datamodels import ModelLibrary
from jwst.stpipe import Pipeline

from bkgmatch.execution import Work
from bkgmatch.options import MRSIMatchOptions
from bkgmatch.pictures import picture_of_spectrum
from bkgmatch.progress import stage
from bkgmatch.record import save_tables, spectral_pair_table, spectral_table
from bkgmatch.report import Shown, group_name
from bkgmatch.spectra import MATCHED, Polynomial, SpectralMatch, match_spectra, match_voxels
from bkgmatch.spectral_story import story
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.cubes import cube_voxels
from bkgmatch.steps.ifu_models import IFUModels, open_models
from bkgmatch.steps.inputs import plain_names
from bkgmatch.steps.polynomial_record import apply_background_2d, check_background, record_polynomials
from bkgmatch.steps.working import work_of
from bkgmatch.stories import LISTED, tell

__all__ = ["MRSIMatchStep", "apply_background_2d"]

log = logging.getLogger("stpipe.bkgmatch.mrs_imatch")

_MANY_TERMS = 125  # a degree of 4

Group = tuple[str, str]


class MRSIMatchStep(BackgroundStep):
    """Match the backgrounds of exposures of MIRI MRS with polynomials in RA, Dec and wavelength."""

    class_alias = "mrs_imatch"
    association_type = "spec3"

    spec = """
        # What is fitted:
        bkg_degree = force_list(default=list(1)) # degree of the polynomial: one, or those in RA, Dec and wavelength
        channel = force_list(default=None) # channels to match; all by default
        band = force_list(default=None) # bands to match; all by default

        # How exposures are compared:
        cells = option('detector', 'cube_build', default='detector') # voxels filled with the pixels of the detector, or with jwst's cube_build
        cell_size = float(default=1.25) # side of a voxel on the sky, in widths of a slice
        wavelength_cells = integer(min=1, default=32) # number of voxels over the wavelengths of a channel
        weights = option('ml', 'pairs', default='ml') # weights of the pairs: maximum likelihood, or as jwst's step had them
        clip = option('pairs', 'image', default='pairs') # clip what does not agree with other exposures, or planes of each exposure
        sigma = float(default=3.0) # limit of clipping, in sigma
        maxiters = integer(min=0, default=10) # most iterations of clipping; 0: none
        dqbits = string(default='~DO_NOT_USE+NON_SCIENCE') # "good" DQ bits
        override_cubepar = string(default=None) # reference file for cells='cube_build'

        # Results:
        subtract = boolean(default=False) # subtract the polynomials?
        skip = boolean(default=True) # in a pipeline, the step must be turned on
        save_table = string(default=None) # File name for the ECSV table of polynomials; that of the pairs is *_pairs.ecsv
        suffix = string(default='mrsimatch') # suffix of saved files
        output_use_model = boolean(default=True) # name saved files after the exposures
    """  # noqa: E501

    channel: list[str] | None
    band: list[str] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.channel, self.band = plain_names(self.channel), plain_names(self.band)

    def run(self, *args: Any) -> Any:
        """Run the step, and tell why if it is a hook that is skipped."""
        if self.skip and self.parent and not isinstance(self.parent, Pipeline):
            log.info("mrs_imatch is skipped, as by default in a pipeline; as a hook write MRSIMatchStep(subtract=True)")
        return super().run(*args)

    def process(self, *inputs: Any) -> Any:
        """
        Run the step.

        Parameters
        ----------
        *inputs : str, Path, dict, list, ModelContainer, ModelLibrary or datamodel
            Association, files or models; or several files.

        Returns
        -------
        ModelContainer, ModelLibrary or datamodel
            The models, with their polynomials recorded, and subtracted if ``subtract`` is set: one model for one, a
            library for a library (or with ``in_memory=False``), else a container.

        Raises
        ------
        ValueError, FileNotFoundError
            If an input or an option cannot be used; the message says which and what to do.
        """
        options = self._options()
        models, files, is_single = open_models(self, inputs)
        self.plan_report(models)
        opened = models if isinstance(models, ModelLibrary) else nullcontext()
        with opened, work_of(self, len(models), from_files=bool(files)) as work:
            check = partial(check_background, subtract=self.subtract)
            known = IFUModels(models, dqbits=self.dqbits, check=check, work=work, files=files)
            groups = self._chosen(known.groups())
            known.check_units()
            with stage("solution"):
                matches = {g: self._match(known, g, members, options, work) for g, members in groups.items()}
            self._tell(known, matches)
            self._tabulate(known, groups, matches, options)
            with stage("subtraction"):
                self._record(known, groups, matches)
        return models[0] if is_single else models

    def _options(self) -> MRSIMatchOptions:
        values = {name: getattr(self, name) for name in MRSIMatchOptions.__dataclass_fields__}
        options = MRSIMatchOptions(**values | {"bkg_degree": _degree(self.bkg_degree)})
        terms = prod(degree + 1 for degree in options.degree)
        if terms > _MANY_TERMS:
            log.warning("bkg_degree=%s fits %d terms to each exposure: this may take hours", options.bkg_degree, terms)
        return options

    def _chosen(self, groups: dict[Group, list[int]]) -> dict[Group, list[int]]:
        chosen = groups
        for place, name in enumerate(("channel", "band")):
            wanted = _separate(getattr(self, name), name)
            missing = sorted(set(wanted) - {"ALL"} - {group[place].upper() for group in groups})
            if missing:
                found = ", ".join(sorted({group[place] for group in groups})) or "none"
                raise ValueError(f"{name}={', '.join(missing)} is in none of the exposures; they have {found}")
            if wanted and "ALL" not in wanted:
                chosen = {group: members for group, members in chosen.items() if group[place].upper() in wanted}
        return chosen

    def _match(
        self, known: IFUModels, group: Group, members: list[int], options: MRSIMatchOptions, work: Work
    ) -> SpectralMatch:
        names = [known.names[i] for i in members]
        if self.cells == "cube_build":
            voxels, grid = cube_voxels(known, members, *group, self.override_cubepar)
            return match_voxels(names, voxels, grid, options, work=work)
        return match_spectra([known.exposure(i, group[0]) for i in members], options, work=work)

    def _tell(self, known: IFUModels, matches: dict[Group, SpectralMatch]) -> None:
        for group, match in matches.items():
            tell(log, story(match, f"channel {' '.join(group)}".rstrip(), known.unit, max(1, LISTED // len(matches))))

    def _tabulate(
        self,
        known: IFUModels,
        groups: dict[Group, list[int]],
        matches: dict[Group, SpectralMatch],
        options: MRSIMatchOptions,
    ) -> None:
        made_with = {name: getattr(self, name) for name in ("channel", "band", "subtract", "dqbits", "cells")}
        table = spectral_table(matches, options, unit=known.unit, **made_with)
        pairs = spectral_pair_table(matches, unit=known.unit)
        if self.save_table:
            save_tables(self.save_table, table, pairs)
        if self.report:
            self.keep_report(table, pairs, partial(_pictures, known, groups, matches))

    def _record(self, known: IFUModels, groups: dict[Group, list[int]], matches: dict[Group, SpectralMatch]) -> None:
        polynomials: dict[int, dict[str, Polynomial]] = {index: {} for index in known.science}
        matched = set()
        for group, members in groups.items():
            for place, index in enumerate(members):
                match = matches[group]
                if match.component[place] >= 0:
                    polynomials[index][group[0]] = match.polynomial(place)
                if match.status[place] == MATCHED:
                    matched.add(index)
        for index, found in polynomials.items():
            status = "COMPLETE" if index in matched else "SKIPPED"
            known.use(
                index,
                partial(record_polynomials, polynomials=found, status=status, subtract=self.subtract),
                modify=True,
            )
        if self.subtract:
            log.info("Polynomials are subtracted from %d of %d exposures", len(matched), len(polynomials))
        else:
            log.warning(
                "Nothing is subtracted (subtract=False): the polynomials are recorded, which cube_build does not read. "
                "Use subtract=True to match the data"
            )


def _pictures(
    known: IFUModels, groups: dict[Group, list[int]], matches: dict[Group, SpectralMatch]
) -> dict[str, list[Shown]]:
    shown = [_picture(known, i, k, group, matches[group]) for group, of in groups.items() for k, i in enumerate(of)]
    return {"shown": [one for one in shown if one]}


def _picture(known: IFUModels, index: int, place: int, group: Group, match: SpectralMatch) -> Shown | None:
    polynomial = match.polynomial(place) if match.component[place] >= 0 else None
    return picture_of_spectrum(known.exposure(index, group[0]), polynomial, group_name(*group))


def _separate(given: list[str] | None, name: str) -> list[str]:
    """Channels or bands, also of texts with commas; ``12`` are two channels."""
    values = [value.strip().upper() for text in given or [] for value in text.split(",")]
    return [v for value in values for v in (value if name == "channel" and value.isdigit() else [value])]


def _degree(given: Any) -> int | list[int]:
    """Degree, one or several, of numbers or texts."""
    texts = [text for value in np.atleast_1d(given) for text in str(value).split(",")]
    try:
        numbers = [int(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"bkg_degree must be one integer or 3, got {given!r}") from error
    return numbers[0] if len(numbers) == 1 else numbers
