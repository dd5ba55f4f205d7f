"""calwebb_spec3 with the steps of bkgmatch in place."""

from typing import Any, ClassVar

from jwst import pipeline
from jwst.datamodels import ModelContainer

from bkgmatch.steps import mrs_imatch
from bkgmatch.steps.crds import OptionalCrds
from bkgmatch.steps.sub_steps import preceded, prepare_saving, told_in_headers
from bkgmatch.workspace import ended_by_signals

__all__ = ["Spec3Pipeline"]

_STEPS = pipeline.Spec3Pipeline.step_defs


class MRSIMatchStep(mrs_imatch.MRSIMatchStep):
    """MRSIMatchStep that runs and subtracts by default."""

    spec = """
        skip = boolean(default=False) # skip this step?
        subtract = boolean(default=True) # subtract the polynomials?
    """


class Spec3Pipeline(OptionalCrds, pipeline.Spec3Pipeline):
    """
    jwst's Spec3Pipeline with background matching of MIRI MRS before outlier_detection.

    Included steps are: assign_mtwcs, master_background, mrs_imatch (for exposures of MIRI MRS), outlier_detection,
    adaptive_trace_model, pixel_replace, resample_spec, cube_build, extract_1d, photom, combine_1d, and spectral_leak.
    """

    class_alias = "calwebb_spec3"

    step_defs: ClassVar[dict] = {
        **{name: _STEPS[name] for name in ("assign_mtwcs", "master_background")},
        "mrs_imatch": MRSIMatchStep,
        **_STEPS,
    }

    def process(self, input_data: Any) -> None:
        """
        Run the pipeline.

        Parameters
        ----------
        input_data : str, Path, dict, list, ModelContainer or datamodel
            Association, or what jwst's Spec3Pipeline takes.
        """
        prepare_saving(self.mrs_imatch, input_data)
        matching = preceded(self.outlier_detection, self._match)
        with ended_by_signals(), matching, told_in_headers(self.cube_build):
            super().process(input_data)

    def _match(self, models: ModelContainer) -> ModelContainer:
        return self.mrs_imatch.run(models) if models[0].meta.exposure.type == "MIR_MRS" else models
