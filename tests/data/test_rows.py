"""Rows: indexed like arrays, read from files, collected from batches."""

import gc
import os

import hypothesis
import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_one_line_error

from tfsam.data import collecting
from tfsam.data import row_files
from tfsam.data import rows
from tfsam.support import files

ARRAY = np.random.default_rng(0).integers(0, 256, (7, 3, 2, 3), np.uint8)


def in_file(path, array, gap=0):
    """Writes an array, with a gap after each row, and returns its rows."""
    with open(path, "wb") as file:
        file.write(b"head")
        for row in array:
            file.write(row.tobytes() + b"-" * gap)
    with open(path, "rb") as file:
        held = row_files.Held(file)
    pitch = array[0].nbytes + gap
    return row_files.stored(
        held, array.shape, array.dtype, offset=4, pitch=pitch
    )


FIRST = st.one_of(
    st.integers(-7, 6),
    st.slices(7),
    st.just(...),
    st.lists(st.integers(-7, 6), max_size=9).map(lambda n: np.array(n, int)),
    arrays_of.arrays(np.int64, (2, 3), elements=st.integers(-7, 6)),
    arrays_of.arrays(bool, 7),
)
OTHERS = st.lists(st.one_of(st.integers(-2, 1), st.slices(2)), max_size=2)


@hypothesis.given(FIRST, OTHERS)
def test_rows_are_indexed_like_arrays(tmp_path_factory, first, others):
    path = tmp_path_factory.getbasetemp() / "rows"
    found = in_file(path, ARRAY, gap=1)
    key = (first, *others)
    np.testing.assert_array_equal(found[key], ARRAY[key], strict=True)
    np.testing.assert_array_equal(found[first], ARRAY[first], strict=True)


@pytest.mark.parametrize("key", [7, np.array([0, 7]), np.zeros(6, bool)])
def test_rows_out_of_range_are_errors(tmp_path, key):
    with pytest.raises(IndexError):
        in_file(tmp_path / "rows", ARRAY)[key]


def test_other_indices_are_refused_in_one_line(tmp_path):
    with pytest.raises(TypeError) as caught:
        in_file(tmp_path / "rows", ARRAY)[0, np.array([0, 1])]
    assert_one_line_error(caught)


@hypothesis.given(st.lists(FIRST.filter(np.ndim), min_size=1, max_size=3))
def test_parts_of_parts_are_read_when_they_are_indexed(picks):
    read = []

    def counted(positions):
        read.extend(positions)
        return ARRAY[positions]

    found, expected = rows.Rows(counted, ARRAY.shape, np.uint8), ARRAY
    for pick in picks:
        pick = np.asarray(pick).ravel()
        if pick.dtype == bool:
            pick = np.resize(pick, len(expected))
        elif len(expected):
            pick = pick % len(expected)
        else:
            pick = pick[:0]
        found, expected = rows.part(found, pick), rows.part(expected, pick)
    assert found.shape == expected.shape and not read
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert len(read) == len(expected)


def test_rows_change_when_they_are_read(tmp_path):
    found = in_file(tmp_path / "rows", ARRAY)
    halves = rows.changed(found, lambda x: x / 2, np.float64)
    gray = found.mapped(lambda x: x[..., :1], (3, 2, 1))
    np.testing.assert_array_equal(halves[2:4], ARRAY[2:4] / 2)
    np.testing.assert_array_equal(gray[:], ARRAY[..., :1])
    np.testing.assert_array_equal(list(gray), list(ARRAY[..., :1]))
    assert halves.dtype == np.float64 and halves.nbytes == 8 * ARRAY.size
    assert np.asarray(found, np.float32).dtype == np.float32
    assert rows.extremes(halves).tolist() == [ARRAY.min() / 2, ARRAY.max() / 2]
    assert np.isnan(rows.extremes(np.array([[1.0], [np.nan], [0.0]]))).all()


def test_a_file_is_read_while_its_rows_are_used(tmp_path):
    found = in_file(tmp_path / "rows", ARRAY)
    in_file(tmp_path / "new", ARRAY + 1)
    os.replace(tmp_path / "new", tmp_path / "rows")
    np.testing.assert_array_equal(found[:], ARRAY)
    opened = len(os.listdir("/proc/self/fd"))
    del found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == opened - 1


def test_a_file_that_is_cut_off_is_an_error(tmp_path):
    found = in_file(tmp_path / "rows", ARRAY)
    os.truncate(tmp_path / "rows", ARRAY.nbytes)
    found[:6]
    with pytest.raises(files.Unusable) as caught:
        found[6]
    assert_one_line_error(caught)
    assert "rows" in str(caught.value)


@hypothesis.given(st.lists(st.integers(1, 4), min_size=1), st.booleans())
def test_collected_batches(sizes, large):
    batches = [np.full((n, 2, 3), n, np.float32) for n in sizes]
    found = collecting.Collected("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MOST_IN_MEMORY", 100 if large else 10**6)
        for batch in batches:
            found.add(batch)
    expected = np.concatenate(batches)
    whole = found.whole()
    assert isinstance(whole, rows.Rows) == (large and expected.nbytes > 100)
    np.testing.assert_array_equal(np.asarray(whole), expected, strict=True)


@pytest.mark.parametrize(
    "second", [np.zeros((1, 3), "f4"), np.zeros((1, 2), "f8")]
)
def test_collected_batches_are_alike(second, monkeypatch):
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 0)
    found = collecting.Collected("x")
    found.add(np.zeros((1, 2), "f4"))
    with pytest.raises(ValueError) as caught:
        found.add(second)
    assert_one_line_error(caught)
