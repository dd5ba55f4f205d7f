"""The cells of the tutorial run, one after the other, and do what the text says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
CHECKS = """
assert library is not None
assert set(levels["status"]) == set(planes["status"]) == {"matched"}
assert len(levels) == len(planes) == len(undone) == len(exposures) == 8
assert rms["sky"][0] > 2 * rms["sky"][1] > 100 * rms["planes"][1]
places, left = [], []
for before, after in zip(exposures, mosaics["LevelMatchStep, planes"], strict=True):
    y, x = np.argwhere(before.good)[before.good.sum() // 2]
    places.append([1, *before.wcs(x, y)])
    left.append(before.background(*places[-1][1:]) - before.data[y, x] + after.data[y, x])
places = np.array(places) - [0, *np.mean(places, axis=0)[1:]]
common = places @ np.linalg.lstsq(places, left, rcond=None)[0]
assert np.std(left - common) < 0.02 * np.std([e.level for e in exposures])
assert all(undone.values())
assert change < 1e-5
print("checked")
"""


def test_the_notebook_is_committed_without_results():
    assert len(CODE) > 5
    assert [cell["id"] for cell in CODE if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow  # it also runs whenever the documentation is built
def test_it_runs(tmp_path):
    program = "\n".join(["".join(cell["source"]) for cell in CODE] + [CHECKS])
    environment = os.environ | {"MPLBACKEND": "Agg"}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert ran.stdout.splitlines()[-1] == "checked"
    assert {path.name for path in tmp_path.iterdir()} == {"exposures", "sky", "planes", "undone"}
