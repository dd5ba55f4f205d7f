"""ImageForImageStep: a background image for each exposure from the other exposures."""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jwst.datamodels import ModelLibrary
from stdatamodels.jwst.datamodels import ImageModel, JwstDataModel

from bkgmatch.execution import Work
from bkgmatch.exposures import Exposure
from bkgmatch.image_backgrounds import MADE, ImageBackgrounds, SourceGuide, make_backgrounds
from bkgmatch.image_story import story
from bkgmatch.journal import file_digest, fingerprint
from bkgmatch.masks import read_regions
from bkgmatch.mosaics import read_mosaic, read_source_mask
from bkgmatch.options import ImageForImageOptions
from bkgmatch.paths import located
from bkgmatch.pictures import example_of, pictures_of_backgrounds
from bkgmatch.progress import stage
from bkgmatch.record import image_table, save_tables
from bkgmatch.steps.background_files import (
    Kind,
    background_model,
    check_state,
    kind_of,
    level2_association,
    masked_model,
    subtract_background,
)
from bkgmatch.steps.base import BackgroundStep
from bkgmatch.steps.cards import put_status
from bkgmatch.steps.inputs import exposure_files, open_inputs
from bkgmatch.steps.library import LibraryExposures, stem
from bkgmatch.steps.siblings import Siblings
from bkgmatch.steps.working import work_of
from bkgmatch.stories import tell

__all__ = ["ImageForImageStep"]

log = logging.getLogger("stpipe.bkgmatch.image_for_image")

_EXPOSURES = ["science", "background"]
_OTHERS = ("i4ibkg", "i4imask")
_NOTED = (
    "mosaic",
    "source_mask",
    "include_regions",
    "exclude_regions",
    "dqbits",
    "holes",
    "subtract",
    "split_variance",
)


class ImageForImageStep(BackgroundStep):
    """Subtract from each exposure a background image made of the other exposures of its detector."""

    class_alias = "image_for_image"

    spec = """
        # Sources, which are masked:
        mosaic = string(default=None) # image in which sources are found first (i2d); by default the step makes its own
        source_mask = string(default=None) # mask or segmentation image, not zero on sources: none are searched for then
        include_regions = string(default=None) # DS9 region file: areas that belong to sources
        exclude_regions = string(default=None) # DS9 region file: areas that do not
        snr_threshold = float(min=0.0, default=3.0) # threshold of sources, in sigma of the mosaic
        npixels = integer(min=1, default=5) # least number of connected pixels of a source
        kernel_fwhm = float(min=0.0, default=2.0) # FWHM of the Gaussian that the mosaic is smoothed by, in pixels
        bkg_boxsize = integer(min=0, default=64) # boxes of the background of the given mosaic, in pixels; 0: one level
        grow = float(min=0.0, default=0.1) # masks grow until what is left changes a background by less, in its sigma; 0: not
        dilate_size = integer(min=0, default=0) # masks grow at least by half of this, in pixels
        maxiters = integer(min=1, default=3) # most times that sources are found, in ever better corrected mosaics

        # Which exposures serve which:
        match_integrations = boolean(default=False) # only those with the same numbers of groups and integrations?
        max_dt = float(min=0.0, default=7.0) # longest time between them, in days
        min_offset = float(min=0.0, default=1.0) # least distance between them, in arcsec
        min_members = integer(min=1, default=2) # fewest exposures that make a background

        # Merging:
        method = option('mean', 'median', default='mean') # statistic of each pixel: clipped mean or median
        scale = option('additive', 'none', 'multiplicative', default='additive') # what is removed from exposures before merging, and put back
        sigma = float(min=0.0, default=4.0) # limit of clipping, in sigma
        dqbits = string(default='~DO_NOT_USE+NON_SCIENCE') # "good" DQ bits
        holes = option('interpolate', 'flag', default='interpolate') # pixels that no exposure serves: FLUX_ESTIMATED, or DO_NOT_USE

        # Results:
        subtract = boolean(default=True) # subtract the backgrounds?
        split_variance = boolean(default=False) # share the variance of the background out to the VAR planes, or all to VAR_RNOISE?
        save_background = boolean(default=True) # with saved results, save the backgrounds too (*_i4ibkg.fits)?
        save_mask = boolean(default=False) # save the masks of the sources and the masked exposures?
        save_table = string(default=None) # File name for the ECSV table of backgrounds
        suffix = string(default='i4i') # suffix of saved files
        output_use_model = boolean(default=True) # name saved files after the exposures
    """  # noqa: E501

    def process(self, *inputs: Any) -> ModelLibrary:
        """
        Run the step.

        Parameters
        ----------
        *inputs : str, Path, dict, list, ModelContainer, ModelLibrary or datamodel
            Association, files or models of calibrated (cal) or rate exposures; or several files.

        Returns
        -------
        ModelLibrary
            The models, with their backgrounds subtracted if ``subtract`` is set.

        Raises
        ------
        ValueError, FileNotFoundError
            If an input or an option cannot be used; the message says which and what to do.
        """
        options = ImageForImageOptions(
            **{name: getattr(self, name) for name in ImageForImageOptions.__dataclass_fields__}
        )
        guide = self._guide()
        if self.suffix in _OTHERS:
            raise ValueError(f"suffix={self.suffix} is that of other files of this step; choose another")
        library, files = open_inputs(self, inputs, _EXPOSURES)
        self.plan_report(library)
        with library, work_of(self, len(library), from_files=bool(files)) as work:
            known = self._known(library, files, work)
            product = library.asn["products"][0].get("name") or "exposures"
            self._check_masks(product, known.seen)
            exposures = known.exposures()
            with stage("source masks"):
                found = make_backgrounds(exposures, options, kinds=known.seen, guide=guide, work=work)
            made_with = {name: getattr(self, name) for name in _NOTED}
            table = image_table(found, options, unit=known.unit, **made_with)
            if self.save_table:
                save_tables(self.save_table, table)
            if self.report:
                self.keep_report(table, None, partial(_pictures, exposures, found))
            with stage("subtraction"):
                for i in range(len(known.names)):
                    known.update(i, partial(self._apply, found=found, i=i, files=files))
            if self.save_mask:
                self._save_masks(found, product)
            done = "subtracted" if self.subtract else "made, not subtracted"
            tell(log, story(found, known.unit, done))
            return library

    def _guide(self) -> SourceGuide:
        """Read what is given of the sources."""
        if self.mosaic and self.source_mask:
            raise ValueError("mosaic and source_mask are both given: with a mask no sources are searched for; give one")
        files = (self.mosaic, self.source_mask, self.include_regions, self.exclude_regions)
        return SourceGuide(
            mosaic=read_mosaic(self.mosaic) if self.mosaic else None,
            mask=read_source_mask(self.source_mask) if self.source_mask else None,
            include=read_regions(self.include_regions) if self.include_regions else (),
            exclude=read_regions(self.exclude_regions) if self.exclude_regions else (),
            digest=fingerprint([name and file_digest(Path(name)) for name in files]),
        )

    def _known(self, library: ModelLibrary, files: list[Path], work: Work) -> LibraryExposures:
        """Look at the exposures and check them."""
        known = LibraryExposures(
            library,
            dqbits=self.dqbits,
            subtract=None,
            work=work,
            files=exposure_files(library, files),
            find_wcs=Siblings(files, Path(library.asn_dir)).wcs_of,
            look=partial(_kind, integrations=self.match_integrations),
        )
        known.check_units()
        return known

    def _apply(self, model: JwstDataModel, found: ImageBackgrounds, i: int, files: list[Path]) -> None:
        """Save the background of a model, and subtract it."""
        if found.status[i] != MADE:
            put_status(model, "image_for_image", "SKIPPED")
            return
        if self.save_mask:
            self.save_model(masked_model(model, found.sources(i)), suffix="i4imask", force=True)
        background = background_model(model, found.background(i), found.members[i], flag_holes=self.holes == "flag")
        file = self._save_background(background, files) if self.save_results and self.save_background else ""
        if self.subtract:
            subtract_background(model, background, file, split_variance=self.split_variance)
        else:
            put_status(model, "image_for_image", "COMPLETE")

    def _save_background(self, background: ImageModel, files: list[Path]) -> str:
        """Save a background, and for a rate exposure an association for calwebb_image2; return its name."""
        science = next((file for file in files if file.name == background.meta.filename), None)
        path = Path(self.save_model(background, suffix="i4ibkg", force=True))
        if science is not None and science.stem.endswith("_rate"):
            level2_association(science, path, path.with_name(f"{stem(science.name)}_i4i_asn.json"))
        return path.name

    def _save_masks(self, found: ImageBackgrounds, product: str) -> None:
        """Save the masks of the mosaics."""
        numbers: Counter[str] = Counter()
        for kind, mask in found.masks:
            name = _mask_name(product, kind)
            numbers[name] += 1
            if mask.header is None:
                log.warning("%s has no FITS WCS: its mask is not saved", mask.name)
                continue
            path = self._mask_path(name, numbers[name])
            mask.write(path)
            log.info("Source mask saved as %s", path)

    def _check_masks(self, product: str, kinds: Sequence[Kind]) -> None:
        """Raise ValueError if a mask that is saved might replace what is given of the sources."""
        names = {_mask_name(product, kind) for kind in kinds} if self.save_mask else ()
        most = len(set(kinds)) * (self.maxiters + 1)
        for given in filter(None, (self.mosaic, self.source_mask)):
            if any(located(self._mask_path(name, 1 + n)) == located(given) for name in names for n in range(most)):
                raise ValueError(f"save_mask might overwrite {given}; set output_dir, or rename it")

    def _mask_path(self, name: str, number: int) -> Path:
        return Path(self.make_output_path(basepath=name, suffix=f"sources{number}", ext="fits"))


def _mask_name(product: str, kind: Kind) -> str:
    return "_".join(word for word in (product, kind.detector, kind.filter) if word).lower()


def _pictures(exposures: list[Exposure], found: ImageBackgrounds) -> dict[str, Any]:
    return {"shown": pictures_of_backgrounds(exposures, found), "example": example_of(exposures, found)}


def _kind(model: JwstDataModel, integrations: bool) -> Kind:
    """Check a model, and tell what it must have in common with those that serve it."""
    check_state(model)
    return kind_of(model, integrations=integrations)
