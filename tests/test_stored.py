"""Arrays in files: used like those in memory, and not kept there."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkgmatch.stored import Shelf, StoredArray, new_stack

SHAPE = (5, 7)
DTYPES = ["<f4", "<f8", "?", "<u2"]


def images(n=4, dtype="<f4", shape=SHAPE):
    return np.random.default_rng(2).normal(size=(n, *shape)).cumsum().reshape(n, *shape).astype(dtype)


def maps(folder):
    """Memory maps of files below a folder."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def opened(folder):
    links = Path("/proc/self/fd")
    return [target for target in (os.path.realpath(link) for link in links.iterdir()) if target.startswith(str(folder))]


@pytest.fixture(params=["memory", "files"])
def folder(request, tmp_path):
    return tmp_path if request.param == "files" else None


# -------------------------------------------------------------------------------------------------- arrays


INDEX = st.one_of(
    st.just(...), st.integers(-5, 4), st.slices(5), st.lists(st.integers(-5, 4), max_size=4).map(np.array),
    st.tuples(st.slices(5), st.slices(7)), st.tuples(st.integers(0, 4), st.slices(7)),
    st.tuples(st.slices(5), st.integers(0, 6)), st.just(np.zeros(SHAPE, bool)),
    st.just(np.indices(SHAPE).sum(0) % 2 == 0),
    st.tuples(*[st.lists(st.integers(0, 4), min_size=3, max_size=3).map(partial(np.array, dtype=int))] * 2),
)  # fmt: skip


@given(INDEX, st.sampled_from(DTYPES))
def test_parts_are_those_of_the_array(tmp_path_factory, index, dtype):
    folder = tmp_path_factory.getbasetemp()
    index = index.astype(int) if isinstance(index, np.ndarray) and index.size == 0 else index
    array = images(1, dtype)[0]
    stored = Shelf(folder).keep(array, "stored")
    found = stored[index]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array[index])


def test_what_is_read_is_memory_of_its_own(tmp_path):
    array = images(1)[0]
    stored = Shelf(tmp_path).keep(array, "")
    part = stored[1:3]
    assert type(part) is np.ndarray
    assert part.flags.writeable
    part[:] = 0
    np.testing.assert_array_equal(stored[...], array)
    assert (stored.shape, np.dtype(stored.dtype)) == (array.shape, array.dtype)
    other = pickle.loads(pickle.dumps(stored))
    np.testing.assert_array_equal(other[...], array)
    assert len(pickle.dumps(stored)) < 500


def test_a_shelf_keeps_what_it_is_given(tmp_path):
    array = images(1)[0]
    assert Shelf(None).keep(array, "name") is array
    stored = Shelf(tmp_path).keep(array.T, "name")
    np.testing.assert_array_equal(stored[...], array.T)
    assert stored.path == tmp_path / "name"
    assert Shelf(tmp_path).keep(stored, "other") is stored
    again = Shelf(tmp_path).keep(array, "name")
    np.testing.assert_array_equal(again[...], array)
    assert Shelf(tmp_path).keep(array, "").path != Shelf(tmp_path).keep(array, "").path
    assert [path.suffix for path in tmp_path.iterdir()] == [""] * 3


def test_nothing_half_written_has_the_name_of_an_array(tmp_path, monkeypatch):
    def half(path, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", half)
    with pytest.raises(OSError, match="full"):
        Shelf(tmp_path).keep(images(1)[0], "name")
    assert not (tmp_path / "name").exists()


def test_no_memory_stays_mapped(tmp_path):
    stored = Shelf(tmp_path).keep(images(1, shape=(256, 256))[0], "name")
    stack = new_stack(tmp_path, "stack", 3, (256, 256), np.float32)
    stack[1] = stored[...]
    kept = [
        stored[...],
        stored[3],
        stored[2:9, ::2],
        stored[0, 0],
        stack[1],
        stack[:, 2:4],
        *stack,
        stack[0:2, 1:3, 2:5],
    ]
    assert all(part.base is None or type(part.base) is np.ndarray for part in kept)
    assert maps(tmp_path) == []
    assert opened(tmp_path) == []


# -------------------------------------------------------------------------------------------------- stacks


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stack_is_used_like_an_array(folder, dtype):
    expected = images(4, dtype)
    stack = new_stack(folder, "name", 4, SHAPE, np.dtype(dtype))
    assert (stack.shape, stack.dtype, len(stack)) == (expected.shape, expected.dtype, 4)
    np.testing.assert_array_equal(list(stack), np.zeros_like(expected))
    for i, image in enumerate(expected):
        stack[i] = image
    np.testing.assert_array_equal(list(stack), expected)
    rows, columns = np.arange(0, 5, 2)[:, None], np.arange(1, 7, 3)
    for key in (
        0, 3, -1, (slice(None), slice(1, 3)), (slice(None), slice(0, 5)), (slice(None), slice(4, 9)),
        (slice(1, 3), slice(1, 3)), (slice(None), slice(None, None, 2), slice(None, None, 3)),
        (slice(None), rows, columns), (np.array([0, 2]), slice(0, 2)), (np.arange(4) != 1, slice(0, 2)),
        ([3, 1], slice(2, 4), slice(1, 6)),
    ):  # fmt: skip
        found = np.asarray(stack[key])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected[key])


def test_rows_of_all_images_are_written(folder):
    expected = images(3)
    stack = new_stack(folder, "name", 3, SHAPE, np.float32)
    for rows in (slice(3, 5), slice(0, 1), slice(1, 3)):
        stack[:, rows] = expected[:, rows].astype(float)
    np.testing.assert_array_equal(list(stack), expected)
    stack[:, slice(2, 4)] = np.zeros((3, 2, 7))
    expected[:, 2:4] = 0
    np.testing.assert_array_equal(list(stack), expected)


def test_values_are_converted(folder):
    stack = new_stack(folder, "name", 2, SHAPE, np.float32)
    stack[0] = np.arange(35.0).reshape(5, 7)
    stack[1] = np.arange(70.0).reshape(5, 14)[:, ::2]
    np.testing.assert_array_equal(stack[1], np.arange(70.0).reshape(5, 14)[:, ::2])
    assert stack[0].dtype == np.float32


def test_a_wrong_shape_is_refused(folder):
    """Else it would be written over what follows."""
    stack = new_stack(folder, "name", 2, SHAPE, np.float32)
    for key, shape in ((0, (6, 7)), (0, (7, 6)), ((slice(None), slice(3, 5)), (2, 3, 7))):
        with pytest.raises(ValueError, match="shape"):
            stack[key] = np.ones(shape)
    assert not np.any(list(stack))


def test_stacks_of_one_name_are_apart(tmp_path):
    one, two = (new_stack(tmp_path, "name", 2, SHAPE, np.float32) for _ in range(2))
    one[0] = np.ones(SHAPE)
    assert not np.any(list(two))
    assert len(list(tmp_path.iterdir())) == 4


def _fill(rows, stack):
    stack[:, rows] = np.full((len(stack), rows.stop - rows.start, stack.shape[2]), rows.start)


@pytest.mark.parametrize(
    "pool",
    [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=get_context("spawn"))],
    ids=["threads", "processes"],
)
def test_several_write_at_once(pool, tmp_path):
    stack = new_stack(tmp_path, "name", 3, (64, 33), np.float64)
    rows = [slice(start, start + 4) for start in range(0, 64, 4)]
    with pool(2) as executor:
        list(executor.map(partial(_fill, stack=stack), rows))
    np.testing.assert_array_equal(stack[1], np.repeat(np.arange(0, 64, 4.0), 4)[:, None] * np.ones(33))


def test_an_empty_stack(folder):
    stack = new_stack(folder, "name", 0, SHAPE, np.float32)
    assert list(stack) == []
    assert len(stack) == 0
    assert stack.shape == (0, *SHAPE)


def test_a_file_that_is_gone_or_short_is_an_error_with_its_name(tmp_path):
    stored = Shelf(tmp_path).keep(images(1)[0], "name")
    os.truncate(stored.path, 20)
    with pytest.raises((ValueError, OSError)):
        stored[...]
    stored.path.unlink()
    with pytest.raises(FileNotFoundError, match="name"):
        stored[...]
    assert isinstance(stored, StoredArray)
