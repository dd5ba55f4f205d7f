"""What all steps do alike: parameter references, names of results, and the association of what they save."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from os.path import expanduser, expandvars
from pathlib import Path
from platform import python_version
from typing import Any, ClassVar

from astropy.table import Table
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from stdatamodels.jwst.datamodels import JwstDataModel

from bkgmatch.associations import HEAD, association, check_association, check_product, write_association
from bkgmatch.images import writing
from bkgmatch.journal import Journal
from bkgmatch.progress import Times, stage
from bkgmatch.reasons import reason
from bkgmatch.report import check_page, page_beside, write_report
from bkgmatch.saved import without_suffix
from bkgmatch.steps.crds import OptionalCrds
from bkgmatch.steps.streamed import quick_collection
from bkgmatch.workspace import ended_by_signals
from bkgmatch.written import check_folder, whole_file

__all__ = ["BackgroundStep"]

log = logging.getLogger("stpipe.bkgmatch.base")


class BackgroundStep(OptionalCrds, Step):
    """A step of bkgmatch."""

    spec = """
        report = boolean(default=False) # write an HTML page of the result

        # Memory and speed:
        in_memory = boolean(default=True) # If False, preserve memory using temporary files
        temp_dir = string(default=None) # folder for temporary files; by default that of the system
        maximum_cores = string(default='none') # threads: none, quarter, half, all, or a number
        dask_scheduler = string(default=None) # address of a running Dask cluster that does the work, such as tcp://127.0.0.1:8786
    """

    reference_file_types: ClassVar[list[str]] = []
    association_type: ClassVar[str] = "image3"

    def run(self, *args: Any) -> Any:
        """Run the step. Temporary files are removed however it ends; what was measured is kept if it fails."""
        self.journals: list[Journal] = []
        self.pages: list[Callable[[], None]] = []
        if self.output_dir and (self.save_results or self.output_file):
            check_folder(expandvars(expanduser(self.output_dir)))  # stpipe makes it
        try:
            collection = nullcontext() if self.in_memory else quick_collection()
            with ended_by_signals(), collection, Times("checks").running() as times:
                result = super().run(*args)
                for write in self.pages:
                    with stage("report"):
                        self._report(write)
        except BaseException:
            for journal in self.journals:
                journal.leave()
            raise
        for journal in self.journals:
            journal.close()
        if not self.skip:
            log.info("Time: %s", times)
        return result

    def kept_files(self) -> list[Path]:
        """Files that results must not replace, beside those of the exposures."""
        return []

    def _report(self, make: Callable[[], None]) -> None:
        """Make the page, or pictures for it. The results are worth more than these."""
        try:
            make()
        except Exception as error:  # of many kinds: names that matplotlib cannot draw, a full disk
            log.warning("The report %s could not be written: %s", self._page, reason(error))

    def plan_report(self, models: ModelLibrary | ModelContainer) -> None:
        """Check that the page can be written, if one is wanted, and names of files can be made of the product's."""
        given = models.asn if isinstance(models, ModelLibrary) else models.asn_table
        self._product = given["products"][0].get("name") or "exposures"
        if self.report or self.save_results or self.output_file:
            check_product(self._product)
        if self.save_results:
            folder = Path(self.make_output_path(basepath="any.fits")).parent
            check_association(self._association_path(folder, self._product))
        if not self.report:
            return
        page = self.make_output_path(basepath=self._product, suffix=f"{self.suffix}_report", ext="html")
        self._page = page_beside(self.save_table) if self.save_table else Path(page)
        check_page(self._page)

    def keep_report(self, exposures: Table, pairs: Table | None, see: Callable[[], Mapping[str, Any]]) -> None:
        """Keep what the page shows, with the pictures of ``see()`` that `write_report` takes, until all is written."""
        versions = {name: version(name) for name in ("jwst", "numpy", "astropy", "scipy")}
        facts = {
            "product": self._product,
            "inputs": len(set(exposures["name"])),
            **versions,
            "python": python_version(),
        }
        page = partial(_write, self._page, exposures, pairs, facts=facts)
        self._report(lambda: self.pages.append(partial(page, **see())))

    def remove_suffix(self, name: str) -> tuple[str, str | None]:
        """Remove the suffix of an earlier step; jwst does not know ours."""
        return super().remove_suffix(without_suffix(name))

    def save_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Save models as jwst's steps do, and with a set of them an association that the next command takes."""
        is_set = isinstance(model, ModelLibrary | ModelContainer)
        named = nullcontext() if is_set else writing(getattr(model.meta, "filename", None) or "model")
        with stage("saving"), named:
            saved = super().save_model(model if is_set else _Whole(model), *args, **kwargs)
            if saved and is_set:
                self._associate(model, [Path(file) for file in saved])
        return saved

    def _associate(self, models: ModelLibrary | ModelContainer, files: list[Path]) -> None:
        given = models.asn if isinstance(models, ModelLibrary) else models.asn_table
        members = _members(models)
        if any(member.get("expname", "").endswith("_rate.fits") for member in members):
            return  # calwebb_image2 comes next, which takes exposure by exposure
        made = association(
            given["products"][0].get("name") or "exposures",
            [member | {"expname": file.name} for member, file in zip(members, files, strict=True)],
            kind=self.association_type,
            **{key: given[key] for key in HEAD if given.get(key) and isinstance(given[key], str | int)},
        )
        path = self._association_path(files[0].parent, made["products"][0]["name"])
        write_association(made, path)
        log.info("Association of the results: %s", path)

    def _association_path(self, folder: Path, product: str) -> Path:
        return folder / f"{product}_{self.suffix}_asn.json"


class _Whole:
    """A model whose file takes its name when it is complete."""

    def __init__(self, model: JwstDataModel) -> None:
        self._model, self.meta = model, model.meta

    def save(self, path: str) -> str:
        """Save the model, and return the path."""
        with whole_file(path) as part:
            self._model.save(part)
        return path


def _write(page: Path, *args: Any, **kwargs: Any) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(page, *args, **kwargs)
    log.info("Report: %s", page)


def _members(models: ModelLibrary | ModelContainer) -> list[dict[str, str]]:
    """Name, type and, as far as it is known, group of each model."""
    given = map(_member, models) if isinstance(models, ModelContainer) else models.asn["products"][0]["members"]
    known = ("expname", "exptype", "group_id")
    members = ({key: member[key] for key in known if member.get(key)} for member in given)
    return [member | {"exptype": member["exptype"].lower()} for member in members]  # jwst compares lower case


def _member(model: JwstDataModel) -> dict[str, Any]:
    meta = model.meta
    return {
        "expname": meta.filename,
        "exptype": meta.asn.exptype or "science",
        "group_id": getattr(meta, "group_id", None),  # in no schema
    }
