"""What the steps are run on where work is spread or interrupted: small exposures, one set for each way of matching."""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.table import Table
from builders import as_rate, association, image_files, miri_halves, write, write_mosaic
from jwst.datamodels import ModelLibrary
from mrs import each, header_cards
from stdatamodels.jwst import datamodels

from bkgmatch import ImageForImageStep, LevelMatchStep, MRSIMatchStep, SkyMatchStep
from bkgmatch.simulate import simulate_mosaic
from bkgmatch.simulate_dithers import simulate_dithers
from bkgmatch.steps.simulated import as_model, write_exposures

PLANES = ("data", "err", "dq", "var_rnoise")


@dataclass(frozen=True)
class Case:
    """A step with its inputs and options."""

    step: type
    files: list[Path]
    options: dict = field(default_factory=dict)
    in_association: dict = field(default_factory=dict)

    def given(self, how, folder):
        """The inputs, in one of the ways that a step takes."""
        files = list(self.files)
        if how == "shuffled":
            random.Random(3).shuffle(files)
            assert files != self.files
        if how in ("association", "shuffled"):
            copy = folder / how
            copy.mkdir(exist_ok=True)
            links = [copy / file.name for file in files]
            for link, file in zip(links, files, strict=True):
                link.symlink_to(file)
            return str(association(links))
        if how == "files":
            return [str(file) for file in files]
        models = [datamodels.open(file) for file in files]
        return ModelLibrary(models) if how == "library" else models

    def run(self, given, **options):
        return self.step.call(given, **self.options, **options)


def outcome(case, given, folder, **options):
    """All that a run tells and changes: tables, and by name the pixels and records of the models."""
    table = folder / "table.ecsv"
    result = case.run(given, save_table=str(table), **options)
    tables = {path.name: Table.read(path) for path in sorted(folder.glob("*.ecsv"))}
    assert sorted(path.name for path in folder.glob("table*")) == sorted(tables)
    for path in folder.glob("table*"):
        path.unlink()
    models = {model.meta.filename: numbers(model) for model in each(result)}
    return {"tables": {name: columns(one) for name, one in tables.items()}, "models": models}


def numbers(model):
    arrays = {name: np.array(getattr(model, name)) for name in PLANES if getattr(model, name, None) is not None}
    background = model.meta.background.instance
    polynomials = {info["channel"]: dict(info) for info in background.get("polynomial_info", [])}
    record = {key: background.get(key) for key in ("level", "subtracted")}
    cards = {key: value for key, value in header_cards(model).items() if not isinstance(value, str)}
    return {**arrays, "record": record, "polynomials": polynomials, "cards": cards}


def columns(table):
    found = {name: np.array(table[name]) for name in table.colnames}
    if "members" in found:
        found["members"] = np.array([" ".join(sorted(names.split())) for names in found["members"]])
    return found


def agree(one, two, where="", rtol=1e-10):
    """Two outcomes are the same; pixels, which are in single precision, up to one rounding."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert list(one) == list(two) or sorted(one) == sorted(two), where
        for key in one:
            agree(one[key], two[key], f"{where} {key}", rtol)
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for a, b in zip(one, two, strict=True):
            agree(a, b, where, rtol)
    elif np.asarray(one).dtype.kind == "f":
        scale = np.nanmax(np.abs(one), initial=0) if np.ndim(one) else 0
        single = np.asarray(one).dtype.itemsize == 4
        np.testing.assert_allclose(
            two, one, rtol=2e-7 if single else rtol, atol=scale * (1e-7 if single else rtol), err_msg=where
        )
    else:
        np.testing.assert_array_equal(one, two, err_msg=where)


def same(one, two):
    """Two outcomes are the same bit by bit."""
    assert sorted(one) == sorted(two)
    for key in one:
        if isinstance(one[key], dict):
            same(one[key], two[key])
        else:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)


class Data:
    """Files of the cases, each written once."""

    def __init__(self, factory, dither_files):
        self._factory, self.mrs, self._made = factory, dither_files, {}

    def _once(self, name, make):
        if name not in self._made:
            self._made[name] = make(self._factory.mktemp(name))
        return self._made[name]

    def mosaic(self):
        """Two tiles of two dithers."""

        def make(folder):
            scene = simulate_mosaic(
                rng=np.random.default_rng(1), tiles=(2, 1), dithers=2, binning=32, overlap=0.3, tilt=0.05
            )
            write_exposures(scene, folder)
            return sorted(folder.glob("*_cal.fits"))

        return self._once("mosaic", make)

    def miri(self):
        """Two dithers, whose Lyot field has another level; the second is split into two files."""

        def make(folder):
            scene = simulate_mosaic(
                rng=np.random.default_rng(5), detectors=("MIRIMAGE",), tiles=(2, 1), dithers=2, binning=16, overlap=0.4,
                lyot_offset=5.0,
            )  # fmt: skip
            models = [as_model(e) for e in scene[:3]] + list(miri_halves(scene[3], offset=1.0))
            return write(models, folder)

        return self._once("miri", make)

    def fixed(self):
        """An image that stays as it is."""

        def make(folder):
            scene = simulate_dithers(rng=np.random.default_rng(4), dithers=3, binning=16)
            return write_mosaic(scene, folder / "fixed.fits"), image_files(scene, folder / "cals")

        return self._once("fixed", make)

    def dithers(self):
        def make(folder):
            scene = simulate_dithers(
                rng=np.random.default_rng(23),
                dithers=4,
                dither_step=40.0,
                binning=16,
                n_sources=14,
                fluxes=(20.0, 300.0),
            )
            return image_files(scene, folder)

        return self._once("dithers", make)

    def rates(self):
        """Rates, whose WCS are in cal files beside them."""

        def make(folder):
            for cal in self.dithers():
                shutil.copy(cal, folder)
            return write([as_rate(datamodels.open(file)) for file in self.dithers()], folder)

        return self._once("rates", make)

    def case(self, name):
        return {
            "sky": lambda: Case(SkyMatchStep, self.mosaic(), {"subtract": True}),
            "difference": lambda: Case(SkyMatchStep, self.mosaic(), {"skystat": "difference", "upper": 3.0}),
            "exact": lambda: Case(SkyMatchStep, self.mosaic(), {"overlap": "exact", "skystat": "median"}),
            "level": lambda: Case(LevelMatchStep, self.mosaic()),
            "planes": lambda: Case(
                LevelMatchStep,
                self.mosaic(),
                {"fit_type_dithers": "level+slope", "fit_type_mosaic_tiles": "level+slope", "do_sigma_clip": True},
            ),
            "fixed": lambda: Case(LevelMatchStep, self.fixed()[1], {"fixed": [str(self.fixed()[0])]}),
            "Lyot": lambda: Case(LevelMatchStep, self.miri(), {"recombine_lyot": True}),
            "cals": lambda: Case(ImageForImageStep, self.dithers()),
            "rates": lambda: Case(ImageForImageStep, self.rates(), {"method": "median"}),
            "spectra": lambda: Case(MRSIMatchStep, self.mrs(), {"skip": False, "subtract": True, "channel": ["1"]}),
            "channels": lambda: Case(MRSIMatchStep, self.mrs(), {"skip": False, "bkg_degree": [1, 0, 2]}),
        }[name]()
