"""What a step is given: checked, then opened as a library, with errors that name the file."""

import gc
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.parse import urlparse

from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from stcal.multiprocessing import compute_num_cores
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel, read_metadata

from bkgmatch.images import check_listed_once, naming
from bkgmatch.paths import is_there, located
from bkgmatch.reasons import reason
from bkgmatch.record import check_tables
from bkgmatch.steps.streamed import StreamedLibrary
from bkgmatch.written import check_folder

__all__ = [
    "check_inputs",
    "check_opened",
    "check_outputs",
    "exposure_files",
    "input_files",
    "is_association",
    "number_of_cores",
    "open_inputs",
    "open_library",
    "plain_names",
    "read_file",
    "unreadable",
    "use_file",
    "with_head",
]

log = logging.getLogger("stpipe.bkgmatch.inputs")

_EXPTYPES = (
    "science", "background", "psf", "target_acquisition", "imprint", "selfcal", "direct_image", "sourcecat", "segmap",
    "autoflat", "autowave", "dark", "flat", "engineering", "wcs",  # all are jwst's but wcs, of image_for_image
)  # fmt: skip
_ASSOCIATIONS = (".json", ".yaml", ".yml", ".asn")


def check_inputs(init: Any) -> list[Path]:
    """
    Check input files before anything is opened.

    Parameters
    ----------
    init : object
        What the step was given.

    Returns
    -------
    list of Path
        The exposures, if they are all given as files; else nothing.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is listed twice.
    """
    files = input_files(init)
    check_listed_once(files)
    missing = [str(f) for f in files if not is_there(f)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} inputs do not exist: {', '.join(missing[:5])}; {_where(init, missing)}"
        )
    return [] if _has_models(init) else files


def _where(init: Any, missing: Sequence[str]) -> str:
    """Say where inputs that are not there are looked for."""
    if is_association(init):
        return (
            "names in an association are relative to its folder: put them there, or make it again with 'bkgmatch asn'"
        )
    if any("*" in file for file in missing):
        return "patterns such as *_cal.fits are for the shell, or for glob.glob in Python"
    return "check the names"


def check_outputs(step: Step, files: list[Path], given: Any = None) -> None:
    """
    Check where a step will write.

    Parameters
    ----------
    step : Step
        The step, with its parameters.
    files : list of Path
        Its input files.
    given : object, optional
        What it was given, perhaps an association.

    Raises
    ------
    FileNotFoundError
        If the folder of its table does not exist.
    NotADirectoryError, PermissionError
        If results or the table cannot be written where they are to be.
    ValueError
        If its table would replace something that is no table, or a result or its association an input, or results would
        replace each other.
    """
    if step.save_table:
        check_tables(step.save_table)
    if step.save_results:
        check_folder(Path(step.make_output_path(basepath="any.fits")).parent)
    _check_results(step, [file.name for file in files], files)
    if step.save_results and is_association(given) and not isinstance(given, dict):
        path, folder = located(given), located(step.make_output_path(basepath="any.fits")).parent
        if path.parent == folder and path.name.endswith(f"_{step.suffix}_asn.json"):
            raise ValueError(
                f"the association of the results might overwrite {given}; set output_dir or another suffix"
            )


def check_opened(step: Step, models: ModelLibrary | ModelContainer) -> None:
    """
    Check the exposures of a set, which may have been given as one.

    Parameters
    ----------
    step : Step
        The step, with its parameters.
    models : ModelLibrary or ModelContainer
        The exposures.

    Raises
    ------
    ValueError
        If one is there twice, or results would replace each other or the files of the set.
    """
    files = _files_of(models)
    check_listed_once(files)
    if isinstance(models, ModelLibrary):
        names = [Path(member["expname"]).name for member in models.asn["products"][0]["members"]]
    else:
        names = [model.meta.filename for model in models if model.meta.filename]
    _check_results(step, names, files)


def _check_results(step: Step, names: Sequence[str], files: Sequence[Path]) -> None:
    """Raise ValueError if results of exposures with these names would replace each other, or a file that is used."""
    kept, by_name = {*files, *step.kept_files()}, {file.name: file for file in files}
    results: dict[Path, str] = {}
    for name in names if step.save_results else []:
        given = Path(step.make_output_path(basepath=name))
        path = located(given.parent) / given.name  # a link of that name is replaced, not what it leads to
        if path in results:
            raise ValueError(
                f"the results of {results[path]} and of {name} would replace each other ({path.name}): rename them"
            )
        if path in kept or located(path) == by_name.get(name):
            raise ValueError(f"the result would overwrite the input {path}; set output_dir or another suffix")
        results[path] = name


def open_inputs(
    step: Step, inputs: Sequence[Any], exptypes: list[str] | None = None
) -> tuple[ModelLibrary, list[Path]]:
    """
    Check and open what a step is given.

    Parameters
    ----------
    step : Step
        The step, with its parameters.
    inputs : sequence
        Its arguments: one association, file, container, library or list; or several files.
    exptypes : list of str, optional
        Types of the members of an association that are exposures; by default all are.

    Returns
    -------
    library : ModelLibrary
        The library, not yet entered.
    files : list of Path
        The exposures, and other members of the association, if they are all given as files; else nothing.

    Raises
    ------
    FileNotFoundError, ValueError
        As `check_inputs`, `check_outputs`, `check_opened` and `open_library`.
    """
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    files = check_inputs(given)
    check_outputs(step, files, given)
    prepared = step.prepare_output(given, open_models=False)
    library = open_library(prepared, in_memory=step.in_memory, temp_dir=step.temp_dir, exptypes=exptypes)
    check_opened(step, given if isinstance(given, ModelContainer) else library)
    return library, files


def exposure_files(library: ModelLibrary, files: Sequence[Path]) -> list[Path]:
    """
    Find the files of the exposures of a library.

    Parameters
    ----------
    library : ModelLibrary
        Library.
    files : sequence of Path
        What `open_inputs` found.

    Returns
    -------
    list of Path
        One for each exposure; nothing if they did not come from files.
    """
    if not files:
        return []
    is_of_models = library.asn_dir == "None"
    return list(files) if is_of_models else _files_of(library)


def plain_names(names: Sequence[Any] | None) -> list[str] | None:
    """Names as plain text: the type that strun gives to arguments cannot be saved with the parameters."""
    return [str(name) for name in names or [] if name not in ("", "None")] or None


def number_of_cores(maximum_cores: str, most: int) -> int:
    """
    Find how many threads to use.

    Parameters
    ----------
    maximum_cores : str
        ``none``, ``quarter``, ``half``, ``all``, or a number.
    most : int
        Number of exposures: more threads have no use.

    Returns
    -------
    int
        Number of threads.

    Raises
    ------
    ValueError
        If it is something else.
    """
    maximum_cores = str(maximum_cores)  # None, too
    known = maximum_cores.lower() in ("none", "one", "quarter", "half", "all")
    if not (known or (maximum_cores.isdecimal() and int(maximum_cores) > 0)):
        raise ValueError(f"maximum_cores={maximum_cores!r}: use none, quarter, half, all, or a number")
    return int(compute_num_cores(maximum_cores, most, os.cpu_count() or 1))


def open_library(
    init: Any, *, in_memory: bool, temp_dir: str | None = None, exptypes: list[str] | None = None
) -> ModelLibrary:
    """
    Open exposures as a library.

    Parameters
    ----------
    init : object
        Association, file, files, model, models, container or library.
    in_memory : bool
        If False, models that are changed are kept in temporary files; models that are given stay in memory.
    temp_dir : str, optional
        Folder for these files; by default that of the system.
    exptypes : list of str, optional
        Types of the members of an association to open; by default all.

    Returns
    -------
    ModelLibrary
        The library.

    Raises
    ------
    ValueError
        If a file cannot be read, or there is nothing to open.
    """
    if isinstance(init, ModelLibrary):
        return init
    if is_association(init):
        return _open_association(init, in_memory, temp_dir, exptypes)
    files = input_files(init)
    if files and not in_memory and not _has_models(init):
        product = {"members": [{"expname": str(file), "exptype": "science"} for file in files]}
        return _open_association({"products": [product]}, in_memory, temp_dir, exptypes)
    members = [init] if isinstance(init, str | Path | JwstDataModel) else list(init or [])
    if not members:
        raise ValueError(
            "there are no exposures to match; give an association, for example from "
            "'bkgmatch asn *_cal.fits --product mosaic'"
        )
    library = ModelLibrary([m if isinstance(m, JwstDataModel) else read_file(m, datamodels.open) for m in members])
    is_from_association = isinstance(init, ModelContainer) and init.asn_file_path
    return with_head(library, init.asn_table) if is_from_association else library


def with_head(library: ModelLibrary, association: Mapping[str, Any]) -> ModelLibrary:
    """Give a library of models the ids and the product's name of an association, for names of results."""
    levels = ((library._asn, association), (library._asn["products"][0], association["products"][0]))
    for level, of in levels:
        level.update({key: value for key, value in of.items() if key not in level})
    return library


def _files_of(models: ModelLibrary | ModelContainer) -> list[Path]:
    """Files of a set of models, as far as they are known."""
    if isinstance(models, ModelLibrary):
        folder, association = Path(str(models.asn_dir)), models.asn  # None for a library of models
    elif models.asn_file_path:
        folder, association = Path(models.asn_file_path).absolute().parent, models.asn_table
    else:
        return []
    members = association["products"][0]["members"]
    return [located(folder / member["expname"]) for member in members] if folder.is_dir() else []


def _open_association(
    init: str | Path | dict, in_memory: bool, temp_dir: str | None, exptypes: list[str] | None
) -> ModelLibrary:
    try:
        if in_memory:
            return ModelLibrary(init, asn_exptypes=exptypes)
        return StreamedLibrary(init, temp_dir=temp_dir, asn_exptypes=exptypes)
    except Exception:
        for file in input_files(init):
            read_file(file, read_metadata)
        raise


def read_file(file: str | Path, reader: Callable[[str], Any]) -> Any:
    """
    Read a file.

    Parameters
    ----------
    file : str or Path
        File.
    reader : callable
        Function of the file's name.

    Returns
    -------
    object
        What the reader returns.

    Raises
    ------
    ValueError
        If the reader fails, with the name of the file.
    """
    if Path(file).is_dir():
        raise ValueError(f"{file} is a folder; give an association or files")
    try:
        return reader(str(file))
    except Exception as error:  # astropy, asdf and the models raise many kinds
        raise ValueError(unreadable(file, error)) from error


def use_file(path: Path, use: Callable[[JwstDataModel], Any]) -> Any:
    """
    Open a file, and look at its model.

    Parameters
    ----------
    path : Path
        File.
    use : callable
        Function of the model.

    Returns
    -------
    object
        What the function returns.

    Raises
    ------
    ValueError
        If the file cannot be read, with its name.
    """
    try:
        with read_file(path, datamodels.open) as model, naming(path):
            return use(model)
    finally:
        gc.collect()  # closed models refer to themselves


def unreadable(file: str | Path, error: Exception) -> str:
    """Message for a file that cannot be read."""
    return f"{file} cannot be read ({reason(error)}); it is damaged or not a JWST image: replace it or leave it out"


def input_files(init: Any) -> list[Path]:
    """Files that a step or pipeline is given: those listed, or the members of the association."""
    if isinstance(init, list | tuple):
        for member in init:
            _check_kind(member, (str, Path, JwstDataModel))
        return [located(member) for member in init if isinstance(member, str | Path)]
    if isinstance(init, dict):
        return _members(init, Path.cwd(), "the association")
    if not isinstance(init, str | Path):
        _check_kind(init, (NoneType, JwstDataModel, ModelContainer, ModelLibrary))
        return []
    if not is_association(init):
        return [located(init)]
    if not is_there(init):
        raise FileNotFoundError(f"the association {init} does not exist")
    fault = ""
    try:
        fault = _json_fault(Path(init))
        association = ModelLibrary._load_asn(init)
    except Exception as error:  # whatever the association's reader raises
        raise ValueError(
            f"the association {init} cannot be read ({fault or reason(error)}); make one with "
            "'bkgmatch asn *_cal.fits --product mosaic'"
        ) from error
    return _members(association, located(init).parent, f"the association {init}")


def _check_kind(given: Any, kinds: tuple[type, ...]) -> None:
    """Raise TypeError if a step can do nothing with what it is given."""
    if not isinstance(given, kinds):
        raise TypeError(
            f"there are no exposures in {type(given).__name__}; give an association, files, models or a library"
        )


def _json_fault(path: Path) -> str:
    """
    Find what is wrong with an association, and where: jwst's reader, which takes YAML too, does not tell.

    RecursionError if it is nested too deeply: jwst would try to read that as YAML for hours.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return "" if path.suffix.lower() in (".yaml", ".yml") else reason(error)
    try:
        _ = content["products"][0]["members"]
    except (LookupError, TypeError):
        return "it has no product with members"
    return ""


def _members(association: dict, folder: Path, name: str) -> list[Path]:
    try:
        members = list(association["products"][0]["members"])
        files = [located(folder / member["expname"]) for member in members]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{name} has no product with members that have an expname ({reason(error)})") from error
    if not members:
        raise ValueError(f"{name} has no members; list the exposures in its first product")
    for member in members:
        _check_member(member, name)
    return files


def _check_member(member: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if jwst's library cannot use a member of an association, or would look for it elsewhere."""
    wrong = [key for key in ("exptype", "group_id") if not isinstance(member.get(key, key), str | int)]
    if wrong or not member.get("exptype"):
        key = wrong[0] if wrong else "exptype"
        raise ValueError(f"{name}: {key} of {member['expname']} is {member.get(key)!r}; give a word, such as science")
    if str(member["exptype"]).lower() not in _EXPTYPES:
        raise ValueError(
            f"{name}: exptype {member['exptype']!r} of {member['expname']} is not known; give one of "
            f"{', '.join(_EXPTYPES)}"
        )
    if urlparse(str(member["expname"])).scheme:
        raise ValueError(f"{name}: {member['expname']} is taken for an address, as it has a colon; rename the file")


def is_association(init: Any) -> bool:
    """Whether a step was given an association, and not exposures."""
    return isinstance(init, dict) or (isinstance(init, str | Path) and Path(init).suffix.lower() in _ASSOCIATIONS)


def _has_models(init: Any) -> bool:
    if isinstance(init, list | tuple):
        return any(isinstance(member, JwstDataModel) for member in init)
    return isinstance(init, JwstDataModel | ModelContainer | ModelLibrary)
