"""A CRDS cache of our own on disk: jwst's steps take their references and parameters from it, without a server."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import asdf
from stpipe import Step

CONTEXT = "jwst_0000.pmap"
SERVER = {
    "observatory": "jwst",
    "operational_context": CONTEXT,
    "edit_context": CONTEXT,
    "bad_files": "",
    "bad_files_list": [],
    "crds_version": {"str": "14.0.3"},
    "server_version": "14.0.3",
    "last_synced": "never",
    "force_remote_mode": False,
    "status": "offline",
    "connected": False,
}
ANY_TIME = "(('META.INSTRUMENT.NAME',), ('META.OBSERVATION.DATE', 'META.OBSERVATION.TIME'))"


def crds_cache(folder: Path, references: Mapping[str, Mapping[str, Path]] | None = None) -> Path:
    """Write a cache, to which ``CRDS_PATH`` may point, with the reference files of each instrument by their type."""
    references = references or {}
    mappings = folder / "mappings/jwst"
    mappings.mkdir(parents=True)
    (folder / "config/jwst").mkdir(parents=True)
    (folder / "config/jwst/server_config").write_text(repr(SERVER))
    instruments = {name.upper(): f"jwst_{name}_0000.imap" for name in references}
    write_rules(mappings / CONTEXT, "PIPELINE", "('META.INSTRUMENT.NAME',)", repr(instruments))
    for instrument, files in references.items():
        given = {kind: f"jwst_{instrument}_{kind}_0000.rmap" for kind in files}
        top = {"instrument": instrument.upper()}
        write_rules(mappings / f"jwst_{instrument}_0000.imap", "INSTRUMENT", "('REFTYPE',)", repr(given), **top)
        for kind, file in files.items():
            name = f"jwst_{instrument}_{kind}_0000{file.suffix}"
            rule = f"Match({{('{instrument.upper()}',): UseAfter({{'1900-01-01 00:00:00': '{name}'}})}})"
            top_of_kind = {**top, "filekind": kind.upper()}
            write_rules(mappings / given[kind], "REFERENCE", ANY_TIME, rule, **top_of_kind)
            (folder / f"references/jwst/{instrument}").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / f"references/jwst/{instrument}/{name}")
    return folder


def write_rules(path: Path, mapping: str, parkey: str, selector: str, **header: str) -> None:
    """Write a file of CRDS rules, with its checksum."""
    known = {"mapping": mapping, "observatory": "JWST", "name": path.name, "derived_from": "none", **header}
    lines = [f"    {key!r} : {value!r},\n" for key, value in known.items()]
    text = ["header = {\n", *lines, f"    'parkey' : {parkey},\n", "    'description' : 'test',\n"]
    rest = ["}\n", "\n", f"selector = {selector}\n"]
    checksum = hashlib.sha1("".join([*text, *rest]).encode()).hexdigest()
    path.write_text("".join([*text, f"    'sha1sum' : '{checksum}',\n", *rest]))


def parameter_references(steps: Iterable[type[Step]], folder: Path, **parameters: Any) -> dict[str, Path]:
    """Write parameter references of steps; return them by their type."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {step.get_config_reftype(): folder / f"{step.get_config_reftype()}.asdf" for step in steps}
    for step, path in zip(steps, written.values(), strict=True):
        tree = {"class": f"{step.__module__}.{step.__name__}", "name": step.__name__, "parameters": parameters}
        asdf.AsdfFile(tree).write_to(path)
    return written
