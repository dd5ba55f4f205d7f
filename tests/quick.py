"""What makes the tests quick: what is always the same is done once."""

import gc
from functools import cache, lru_cache, partial
from types import SimpleNamespace

import pytest
from asdf import schema as asdf_schema
from stdatamodels import schema as model_schema


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process tests that follow each other and share files; when done, it takes some of another."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def _schemas_once():
    """Parse and merge each schema of asdf and of the models once: nothing changes them, but asdf takes copies."""
    with pytest.MonkeyPatch.context() as patch:
        parse = cache(asdf_schema._make_schema_loader())
        patch.setattr(asdf_schema, "_make_schema_loader", lambda: parse)
        load = cache(asdf_schema._load_schema_cached.__wrapped__)
        patch.setattr(asdf_schema, "_load_schema_cached", load)
        patch.setattr(asdf_schema, "load_schema", lambda url, resolve_references=False: load(url, resolve_references))
        patch.setattr(model_schema, "merge_property_trees", _of_each(model_schema.merge_property_trees))
        yield


@pytest.fixture(scope="session", autouse=True)
def _young_garbage():
    """Spare runs of steps, which collect garbage first, that of long ago: finding it may take half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stpipe.step.gc", SimpleNamespace(collect=partial(gc.collect, 1)))
        yield


def _of_each(function):
    """Keep what a function of an object returns for each of the last ones; the objects live as long as that."""

    @lru_cache(maxsize=64)
    def known(one):
        return function(one.it)

    return lambda it: known(_Same(it))


class _Same:
    def __init__(self, it):
        self.it = it

    def __hash__(self):
        return id(self.it)

    def __eq__(self, other):
        return self.it is other.it
