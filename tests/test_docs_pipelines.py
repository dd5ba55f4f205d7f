"""Every example of the page on pipelines runs as it is written: command lines in a shell, Python, parameter files."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from builders import image_files
from crds_cache import crds_cache, parameter_references
from jwst.pipeline import Image3Pipeline, Spec3Pipeline
from spec3 import OFF

from bkgmatch.associations import association, write_association
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated import write_exposures
from bkgmatch.steps.simulated_mrs import MRSScene, write_mrs_exposures

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.rst"
BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n(?:   :caption: (\S+)\n)?\n((?:   .*\n|\n)+)", re.MULTILINE)
BLOCKS = [(kind, name, textwrap.dedent(text).strip() + "\n") for kind, name, text in BLOCK.findall(PAGE.read_text())]
RUNS = [(kind, text) for kind, name, text in BLOCKS if not name]
FILES = {name: text for _, name, text in BLOCKS if name}

LEVELS = {"mosaic/*_crf.fits": {"S_LVLMAT": "COMPLETE", "LVLM_SUB": True, "S_SKYMAT": "SKIPPED"}}
SKY = {"mosaic/*_crf.fits": {"S_SKYMAT": "COMPLETE"}}
IMAGES = {"mosaic/*_crf.fits": {"S_I4IMG": "COMPLETE", "I4I_SUB": True, "S_LVLMAT": "COMPLETE", "LVLM_SUB": True}}
POLYNOMIALS = {"cube/*_crf.fits": {"S_MRSMAT": "COMPLETE", "BKGSUB": True}, "cube/*_ch1-short_s3d.fits": {}}
PLANES = {"mosaic/*_crf.fits": {**LEVELS["mosaic/*_crf.fits"], "tilted": True}}
TOLD = {"mosaic/*_i2d.fits": {"S_LVLMAT": "COMPLETE"}, "cube/*_s3d.fits": {"S_MRSMAT": "COMPLETE"}}
DONE = [
    LEVELS | POLYNOMIALS | TOLD,
    PLANES,
    IMAGES,
    {"mosaic/*_crf.fits": {"S_SKYMAT": "COMPLETE", "BKGSUB": True, "S_LVLMAT": None}},
    PLANES | POLYNOMIALS,
    LEVELS,
    LEVELS,
    IMAGES,
    POLYNOMIALS,
    LEVELS | {"again/*_crf.fits": LEVELS["mosaic/*_crf.fits"]},
    LEVELS,
    PLANES,
    SKY,
    IMAGES,
    POLYNOMIALS,
    POLYNOMIALS,
    PLANES,
    PLANES | POLYNOMIALS,
    LEVELS,
    POLYNOMIALS,
    IMAGES,
    LEVELS | {"mosaic/field_i2d.fits": {}},
]
FAST = (1,)


@pytest.fixture(scope="module")
def site_of_images(tmp_path_factory):
    """A folder with exposures of NIRCam; and CRDS, which skips what needs references we cannot have."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "here", np.random.default_rng(5))
    of_images = [Image3Pipeline.step_defs[name] for name in ("tweakreg", "source_catalog")]
    crds_cache(root / "crds", {"nircam": parameter_references(of_images, root / "pars", skip=True)})
    return root


def write_images(here, rng):
    mosaic = simulate_mosaic(
        rng=rng, detectors=("NRCALONG",), tiles=(2, 1), dithers=2, binning=32, overlap=0.2, level_range=(1.0, 3.0)
    )
    write_exposures(mosaic, here).rename(here / "asn.json")
    for name, text in FILES.items():
        (here / name).write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The same, with exposures of MIRI and MRS."""
    root = tmp_path_factory.mktemp("site")
    here = root / "here"
    rng = np.random.default_rng(5)
    write_images(here, rng)
    miri = simulate_dithers(rng=rng, dithers=4, dither_step=10.0, binning=16, n_sources=6)
    members = [{"expname": file.name, "exptype": "science"} for file in image_files(miri, here)]
    write_association(association("miri", members), here / "miri_asn.json")
    write_mrs_exposures(MRSScene(rows=64, n_exposures=2), here, product="cube")
    (here / "cube_asn.json").rename(here / "mrs_asn.json")
    of_images = [Image3Pipeline.step_defs[name] for name in ("tweakreg", "source_catalog")]
    of_spectra = [Spec3Pipeline.step_defs[name] for name in OFF]
    catalogs, spectra = (parameter_references(steps, root / "pars", skip=True) for steps in (of_images, of_spectra))
    cubepar = {"cubepar": here / "cubepar.fits"}
    crds_cache(root / "crds", {"nircam": catalogs, "miri": catalogs | spectra | cubepar})
    return root


def test_the_page_has_the_runs_that_are_checked():
    assert len(RUNS) == len(DONE)
    assert list(FILES) == ["hooks.asdf"]


@pytest.mark.parametrize("n", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in range(len(RUNS))])
def test_it_runs(n, request, tmp_path):
    kind, text = RUNS[n]
    site = request.getfixturevalue("site_of_images" if n in FAST else "site")
    here = Path(shutil.copytree(site / "here", tmp_path / "here"))
    before = {file.name: file.read_bytes() for file in here.iterdir() if file.is_file()}
    shell = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if key != "STPIPE_DISABLE_CRDS_STEPPARS"}
    environment |= {"PATH": path, "CRDS_PATH": str(site / "crds")}
    ran = subprocess.run([*shell, text], cwd=here, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for pattern, cards in DONE[n].items():
        check(sorted(here.glob(pattern)), cards)
    assert {name: (here / name).read_bytes() for name in before} == before


def check(files, cards):
    """Results have these cards in their primary or SCI header."""
    assert files
    for file in files:
        with fits.open(file) as hdus:
            header = dict(hdus["SCI"].header) | dict(hdus[0].header)
        found = {card: header.get(card) for card in cards}
        if "tilted" in cards:
            found["tilted"] = abs(header["LVLM_B"]) > 0 and abs(header["LVLM_C"]) > 0
        assert found == cards, file.name
