"""Imports go downward only, and the core imports neither jwst nor stpipe."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bkgmatch"

# From low to high; a module imports only from rows above its own. "steps" is every module of bkgmatch.steps,
# "__init__" is bkgmatch/__init__.py.
LAYERS = [
    {"reasons"},
    {"paths"},
    {"polynomials"},
    {"options"},
    {"display"},
    {"stored"},
    {"workspace"},
    {"written"},
    {"journal"},
    {"progress"},
    {"execution"},
    {"exposures"},
    {"footprints"},
    {"planes"},
    {"pixel_maps"},
    {"masks"},
    {"grids"},
    {"reprojected"},
    {"runs"},
    {"overlaps"},
    {"histograms"},
    {"noise"},
    {"skystats"},
    {"pairs"},
    {"dissection"},
    {"selected_inverse"},
    {"stages"},
    {"solve"},
    {"zero_point"},
    {"apply"},
    {"cells"},
    {"sources"},
    {"leave_one_out"},
    {"donors"},
    {"detection"},
    {"holes"},
    {"voxels"},
    {"polynomial_sums"},
    {"polynomial_arrays"},
    {"pair_fits"},
    {"good_cells"},
    {"differences"},
    {"starts"},
    {"rejection"},
    {"priors"},
    {"passes"},
    {"reference"},
    {"lyot"},
    {"neighbourhoods"},
    {"sky_differences"},
    {"stories"},
    {"match"},
    {"sky_story"},
    {"levels"},
    {"level_story"},
    {"spectral_samples"},
    {"spectral_state"},
    {"spectral_fit"},
    {"spectra"},
    {"spectral_story"},
    {"plots"},
    {"associations"},
    {"images"},
    {"associate"},
    {"mosaics"},
    {"image_samples"},
    {"image_stack"},
    {"source_masks"},
    {"image_backgrounds"},
    {"image_story"},
    {"saved"},
    {"record"},
    {"page"},
    {"quicklook"},
    {"report_figures"},
    {"report"},
    {"pictures"},
    {"report_files"},
    {"image_files"},
    {"skymatch"},
    {"detectors"},
    {"scenes"},
    {"simulate"},
    {"simulate_dithers"},
    {"demo"},
    {"cli"},
    {"cluster"},
    {"steps"},
    {"__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LAZY = ("cli", "demo")  # use the steps, but only inside functions
PIPELINE = {"jwst", "stpipe", "stdatamodels", "stcal"}


class Import(NamedTuple):
    """One imported name: ``module`` in full, and whether the statement waits for a call (or is for types)."""

    module: str
    line: int
    deferred: bool


def submodule(parent: str, name: str) -> bool:
    """Whether ``name`` is a module of the package ``parent`` (as against a function or class in it)."""
    folder = PACKAGE.joinpath(*parent.split(".")[1:])
    known = parent == "bkgmatch" and name in RANK
    return known or (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


def imported_from(node: ast.ImportFrom, package: str) -> list[str]:
    """Full names of what a ``from`` import takes in a module of ``package``; ``__version__`` is no import."""
    if node.level:
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
    else:
        base = node.module or ""
    if base != "bkgmatch" and not base.startswith("bkgmatch."):
        return [base]
    names = [alias.name for alias in node.names if (base, alias.name) != ("bkgmatch", "__version__")]
    return [f"{base}.{name}" if submodule(base, name) else base for name in names]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, package: str, deferred: bool = False) -> Iterator[Import]:
    """Every import below ``node``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, child.lineno, deferred) for name in imported_from(child, package))
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, package, deferred or function or is_for_types(child))


def fault(importer: str, item: Import) -> str | None:
    """Why ``importer`` (a key of RANK) may not make this import, or None."""
    top, *rest = item.module.split(".")
    if top in PIPELINE:
        allowed = importer == "steps" or (importer in LAZY and item.deferred)
        return None if allowed else f"imports {top}, which only steps may"
    if top != "bkgmatch":
        return None
    target = rest[0] if rest else "__init__"
    if target not in RANK:
        return f"imports {item.module}, which is not in LAYERS"
    if target == "steps" and importer in (*LAZY, "__init__"):
        return None if item.deferred else "imports steps outside a function"
    if RANK[target] < RANK[importer] or importer == target == "steps":
        return None
    return f"imports {item.module}, which is not below it"


def faults(source: str, importer: str, package: str = "bkgmatch") -> list[str]:
    found = ((item.line, fault(importer, item)) for item in imports(ast.parse(source), package))
    return [f"line {line}: {reason}" for line, reason in found if reason]


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_go_downward(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    importer = parts[0]
    assert importer in RANK, f"{path.name} has no place in LAYERS of {Path(__file__).name}: add it"
    assert faults(path.read_text(encoding="utf-8"), importer, ".".join(("bkgmatch", *parts[:-1]))) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("pairs", "from .skystats import sky_statistic"),
        ("pairs", "from bkgmatch import skystats"),
        ("pairs", "import bkgmatch.skystats"),
        ("record", "from bkgmatch import __version__"),
        ("record", "import numpy"),
        ("cli", "def demo():\n    from .steps.skymatch import SkyMatchStep"),
        ("cli", "def demo():\n    import jwst"),
        ("__init__", "if TYPE_CHECKING:\n    from .steps.skymatch import SkyMatchStep"),
        ("steps", "from .match import match_skies\nfrom .cli import main\nimport stpipe"),
        ("steps", "from .steps.models import x"),
    ],
)
def test_allowed(importer, source):
    assert faults(source, importer) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("pairs", "from .solve import solve"),
        ("pairs", "from . import solve"),
        ("pairs", "from bkgmatch import match_skies"),
        ("pairs", "def f():\n    import bkgmatch.solve"),
        ("pairs", "if TYPE_CHECKING:\n    from .match import Result"),
        ("options", "from .exposures import Exposure"),
        ("match", "try:\n    from stcal.alignment import util\nexcept ImportError:\n    pass"),
        ("match", "def f():\n    import stdatamodels.jwst"),
        ("match", "from .nowhere_yet import x\nfrom .pairs import y\nfrom .cli import z"),
        ("cli", "from .steps.skymatch import SkyMatchStep"),
        ("cli", "import jwst.datamodels"),
        ("__init__", "from .steps.skymatch import SkyMatchStep"),
        ("__init__", "def f():\n    import jwst"),
    ],
)
def test_refused(importer, source):
    assert faults(source, importer)


def test_relative_import_in_steps():
    item = next(imports(ast.parse("from ..match import match_skies"), "bkgmatch.steps"))
    assert item.module == "bkgmatch.match"
    item = next(imports(ast.parse("from . import models"), "bkgmatch.steps"))
    assert item.module.startswith("bkgmatch.steps")


def test_core_does_not_load_jwst():
    names = [name for name in ("skymatch", "match") if (PACKAGE / f"{name}.py").exists()]
    wanted = ", ".join(["bkgmatch", *(f"bkgmatch.{name}" for name in names)])
    code = (
        f"import sys, {wanted}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'jwst', 'stpipe', 'stdatamodels'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]", f"`import {wanted}` loads {run.stdout.strip()}"
