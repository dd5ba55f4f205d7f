"""Fixtures for the tests of the steps: files on disk that no test may change."""

import gc
import shutil
from functools import cache
from pathlib import Path

import asdf
import numpy as np
import pytest
from builders import constant_files, simulated_model, tile_wcs, write
from clusters import local_cluster_of_its_own
from crds_cache import crds_cache
from hypothesis import HealthCheck, settings
from mrs import ROWS

from bkgmatch.simulate import simulate_mosaic
from bkgmatch.steps.simulated_mrs import MRSScene, mrs_models, mrs_references

pytest_plugins = ["ledger", "quick"]

# Few examples of each property in every run, the same ones; many others with --hypothesis-profile=thorough.
settings.register_profile("fast", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")

FAR = (53.16, -26.79)  # a degree from the others


def pytest_collection_finish(session):
    """Spare what is imported by now from the collection of garbage that each run of a step starts with."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _spared_garbage():
    """The same for what earlier modules have left: imports, schemas, and files of the session."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _trusted_files():
    """Validating the trees of the files, which the tests wrote themselves, takes half of the time of opening them."""
    with asdf.config_context() as config:
        config.validate_on_read = False
        yield


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty current directory, and no CRDS."""
    for name in ("CRDS_PATH", "CRDS_SERVER_URL", "STPIPE_DISABLE_CRDS_STEPPARS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def empty_crds(offline, tmp_path, monkeypatch):
    """The same, with a CRDS that knows nothing: some of jwst's steps ask for its context, all for their parameters."""
    monkeypatch.setenv("CRDS_PATH", str(crds_cache(tmp_path / "crds")))
    monkeypatch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")


@pytest.fixture(scope="module")
def empty_crds_of_module(tmp_path_factory):
    """A CRDS that knows nothing for all tests of a module; assignments to models are not checked, which takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CRDS_SERVER_URL", raising=False)
        patch.setenv("CRDS_PATH", str(crds_cache(tmp_path_factory.mktemp("cache") / "crds")))
        patch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
        patch.setenv("VALIDATE_ON_ASSIGNMENT", "false")
        yield


@pytest.fixture(scope="session")
def one_mosaic(tmp_path_factory):
    """Files of the first table: 2 x 3 neighbours."""
    pieces = [(tile_wcs((2, 3)), (100, 120, 105, 110, 105, 115))]
    return constant_files(tmp_path_factory.mktemp("one"), pieces)


@pytest.fixture(scope="session")
def two_pieces(tmp_path_factory):
    """Files of the second table: 2 x 2 neighbours, and a strip of three elsewhere."""
    pieces = [(tile_wcs((2, 2)), (100, 120, 105, 110)), (tile_wcs((1, 3), center=FAR), (95, 90, 100))]
    return constant_files(tmp_path_factory.mktemp("two"), pieces)


@pytest.fixture(scope="session")
def noisy_exposures():
    """A strip of three tiles x two detectors, with stars, noise and bad pixels; three groups."""
    return simulate_mosaic(
        rng=np.random.default_rng(7),
        detectors=("NRCALONG", "NRCBLONG"),
        tiles=(3, 1),
        dithers=1,
        binning=32,
        overlap=0.2,
        level_range=(1.0, 3.0),
    )


@pytest.fixture(scope="session")
def noisy(noisy_exposures, tmp_path_factory):
    """Files of the noisy exposures."""
    return write([simulated_model(e) for e in noisy_exposures], tmp_path_factory.mktemp("noisy"))


@pytest.fixture(scope="session")
def pair(noisy):
    """Two overlapping files of them."""
    return [noisy[0], noisy[2]]


@pytest.fixture(scope="session")
def noisy_levels(noisy_exposures):
    """True level of each."""
    return np.array([e.level for e in noisy_exposures])


@pytest.fixture(scope="session")
def simulate_mrs(tmp_path_factory):
    """A function that simulates small exposures; the reference files of each band are made once."""

    @cache
    def references(detector, band):
        return mrs_references(tmp_path_factory.mktemp("references"), detector, band, rows=ROWS)

    def simulate(**scene):
        scene = MRSScene(rows=ROWS, **scene)
        return mrs_models(scene, references(scene.detector, scene.band))

    return simulate


@pytest.fixture(scope="session")
def dithers(simulate_mrs):
    """Three exposures of channels 1 and 2."""
    models = simulate_mrs(n_exposures=3)[0]
    gc.freeze()  # as above: these are large
    return models


@pytest.fixture(scope="session")
def dither_files(dithers, tmp_path_factory):
    """Files of them."""
    return write(dithers, tmp_path_factory.mktemp("dithers"))


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory):
    """Address of a Dask cluster of two processes of this machine."""
    with local_cluster_of_its_own(tmp_path_factory.mktemp("cluster")) as address:
        yield address


@pytest.fixture
def files(unspoilt, tmp_path):
    """Copies of a module's unspoilt files, which a test may spoil."""
    (tmp_path / "inputs").mkdir()
    return [Path(shutil.copy(file, tmp_path / "inputs")) for file in unspoilt]


@pytest.fixture
def assign_freely(monkeypatch):
    """Checking each assignment to a model takes much of the time of a step."""
    monkeypatch.setenv("VALIDATE_ON_ASSIGNMENT", "false")


@pytest.fixture(scope="module")
def scale_data(tmp_path_factory, request):
    """What the steps are run on where work is spread or interrupted."""
    from scale import Data

    return Data(tmp_path_factory, lambda: request.getfixturevalue("dither_files"))
