"""PJPipe's LevelMatchStep, defaults except the types of fit; its plots are switched off.

    python pjpipe_level_match.py ASSOCIATION OUT.json [--fit level|level+slope]

pjpipe imports spacepylot, which no package index has and which this step does not use: a stub takes its place.
"""

import sys
from pathlib import Path
from unittest.mock import MagicMock

from _files import run, subtracted


def import_step():
    """Import the step with the stub, and without its plots (1.3.0 has no option for that)."""
    for name in ("spacepylot", "spacepylot.alignment", "spacepylot.alignment_utilities"):
        sys.modules[name] = MagicMock()
    from pjpipe.level_match import level_match_step

    class Pyplot:
        """Draws nothing."""

        def __getattr__(self, name):
            return MagicMock()

    level_match_step.plt = Pyplot()
    level_match_step.LevelMatchStep.get_plot_name = lambda self, *args, **kwargs: None
    return level_match_step.LevelMatchStep


def pjpipe(files: list[Path], folder: Path, fit: str):
    """Run the step from one folder into another."""
    step = import_step()(
        in_dir=str(folder / "in"),
        out_dir=str(folder / "out"),
        step_ext="cal",
        procs=1,
        band="F1130W",
        fit_type_dithers=fit,
        fit_type_mosaic_tiles=fit,
        max_points=None,
    )
    if not step.do_step():
        raise SystemExit("PJPipe reports failure")
    return lambda: {file.name: subtracted(file, folder / "out" / file.name) for file in files}


if __name__ == "__main__":
    run(pjpipe)
