"""calwebb_image3 with the steps of bkgmatch in place."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from jwst import pipeline
from jwst.datamodels import ModelLibrary

from bkgmatch.steps import image_for_image, level_match, skymatch
from bkgmatch.steps.crds import OptionalCrds
from bkgmatch.steps.inputs import is_association
from bkgmatch.steps.streamed import StreamedLibrary
from bkgmatch.steps.sub_steps import preceded, prepare_saving, told_in_headers, with_values
from bkgmatch.workspace import ended_by_signals

__all__ = ["Image3Pipeline"]

log = logging.getLogger("stpipe.bkgmatch.image3")

_STEPS = pipeline.Image3Pipeline.step_defs


class ImageForImageStep(image_for_image.ImageForImageStep):
    """ImageForImageStep that must be turned on."""

    spec = """
        skip = boolean(default=True) # it must be turned on
    """


class LevelMatchStep(level_match.LevelMatchStep):
    """LevelMatchStep that leaves the background of the reference tile as it is, as jwst leaves the lowest sky."""

    spec = """
        do_local_subtraction = boolean(default=False) # make the background of the reference tile zero?
    """


class SkyMatchStep(skymatch.SkyMatchStep):
    """SkyMatchStep that by default runs where level_match does not."""

    spec = """
        skip = boolean(default=None) # by default it is skipped where level_match subtracts levels
    """


class Image3Pipeline(OptionalCrds, pipeline.Image3Pipeline):
    """
    jwst's Image3Pipeline with background matching before outlier_detection.

    Included steps are: assign_mtwcs, tweakreg, image_for_image (skipped by default), level_match, skymatch (skipped by
    default where level_match subtracts levels), outlier_detection, resample, and source_catalog.
    """

    class_alias = "calwebb_image3"

    step_defs: ClassVar[dict] = {
        **{name: _STEPS[name] for name in ("assign_mtwcs", "tweakreg")},
        "image_for_image": ImageForImageStep,
        "level_match": LevelMatchStep,
        **_STEPS,
        "skymatch": SkyMatchStep,
    }

    @classmethod
    def _get_config_from_parameters(cls, crds_parameters: dict, crds_observatory: str) -> Any:
        config = super()._get_config_from_parameters(crds_parameters, crds_observatory)
        config["steps"].get("skymatch", {}).pop("skip", None)  # CRDS does not know of another step that matches
        return config

    def process(self, input_data: Any) -> None:
        """
        Run the pipeline.

        Parameters
        ----------
        input_data : str, Path, dict, list, ModelLibrary, ModelContainer or datamodel
            Association, or what jwst's Image3Pipeline takes.
        """
        with ExitStack() as stack:
            stack.enter_context(ended_by_signals())
            for step in (self.image_for_image, self.level_match, self.skymatch):
                prepare_saving(step, input_data)
                stack.enter_context(with_values(step, in_memory=step.in_memory and self.in_memory))
            stack.enter_context(with_values(self.skymatch, skip=self._is_skymatch_skipped()))
            stack.enter_context(preceded(self.skymatch, self._match))
            stack.enter_context(told_in_headers(self.resample))
            super().process(str(input_data) if isinstance(input_data, Path) else input_data)

    def _load_input_as_library(self, given: Any) -> ModelLibrary:
        if self.in_memory or not is_association(given):
            return super()._load_input_as_library(given)
        return StreamedLibrary(given, temp_dir=self.level_match.temp_dir, asn_exptypes=["science"])

    def _match(self, models: ModelLibrary) -> ModelLibrary:
        return self.level_match.run(self.image_for_image.run(models))

    def _is_skymatch_skipped(self) -> bool:
        given, is_matched = self.skymatch.skip, self.level_match.subtract and not self.level_match.skip
        if given is None and is_matched:
            log.info(
                "skymatch is skipped, because level_match matches; steps.level_match.skip=true lets it run instead"
            )
        if given is False and is_matched:
            log.warning("skymatch runs after level_match: where nebulae fill the exposures, it may undo the match")
        return is_matched if given is None else given
