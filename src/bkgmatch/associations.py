"""Associations: which files belong to one product."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bkgmatch.paths import begins_with, is_there, located
from bkgmatch.written import whole_file

__all__ = ["HEAD", "Member", "association", "check_association", "check_product", "relative_to", "write_association"]

Member = Mapping[str, str]

HEAD = {"asn_rule": "DMS_Level3_Base", "asn_id": "a3001", "asn_pool": "none", "program": "noprogram", "target": "none"}
"""Entries of an association of which nothing is known."""

_LONGEST = 200  # of 255 bytes that a name may have; the rest is for suffixes


def association(product: str, members: Iterable[Member], *, kind: str = "image3", **head: Any) -> dict:
    """
    Make an association of one product.

    Parameters
    ----------
    product : str
        Name of the product.
    members : iterable of mapping
        ``expname``, ``exptype`` and perhaps ``group_id`` of each file.
    kind : str
        Type of the association: ``image2``, ``image3`` or ``spec3``.
    **head : str
        Other entries, in place of those of `HEAD`.

    Returns
    -------
    dict
        The association.
    """
    return {"asn_type": kind, **HEAD, **head, "products": [{"name": product, "members": list(map(dict, members))}]}


def check_product(name: object) -> None:
    """Raise ValueError if the name of a product cannot be the beginning of the name of a file."""
    is_name = isinstance(name, str) and "\0" not in name and name == Path(name).name
    if not is_name or not 0 < len(str(name).encode(errors="replace")) <= _LONGEST:
        raise ValueError(
            f"the product name {str(name)[:_LONGEST]!r} cannot be part of a file name; give one without / and of at "
            f"most {_LONGEST} characters"
        )


def check_association(path: Path) -> None:
    """Raise ValueError if an association would replace something else."""
    if is_there(path) and not begins_with(path, b"{"):
        raise ValueError(f"{path} exists and is no association; choose another name")


def write_association(given: Mapping[str, Any], path: Path) -> None:
    """Write an association; ValueError if that would replace something else."""
    check_association(path)
    with whole_file(path) as part:
        part.write_text(json.dumps(given, indent=4) + "\n")


def relative_to(folder: Path, file: str | Path) -> str:
    """Name of a file for an association in ``folder``."""
    path = Path(file)
    return os.path.relpath(located(path.parent) / path.name, located(folder))  # a link keeps its own name
