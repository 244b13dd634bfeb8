"""Folders of images that are larger than memory: the same, read from disk."""

import os
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_one_line_error
from helpers import slow

from tfsam import data
from tfsam.data import batches
from tfsam.data import row_files
from tfsam.data import rows

SIDE = 6


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.fixture(params=[slow(1, id="gray"), pytest.param(3, id="color")])
def folder(request, tmp_path):
    """A folder of 2 classes and 42 images, of them 2 that are damaged."""
    random = np.random.default_rng(0)
    shape = (SIDE, SIDE, request.param)
    for name in ("ant", "cat"):
        for number in range(20):
            pixels = random.integers(0, 256, shape, np.uint8)
            write(tmp_path / f"images/train/{name}/{number}.png", pixels)
            pixels = random.integers(0, 256, shape, np.uint8)
            write(tmp_path / f"images/test/{name}/{number}.png", pixels)
    for split in ("train", "test"):
        (tmp_path / f"images/{split}/ant/x.png").write_bytes(b"\x89PNG")
    return tmp_path / "images"


@pytest.fixture
def is_large(monkeypatch):
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 100)


@pytest.fixture
def no_room(monkeypatch):
    monkeypatch.setattr(row_files, "has_room", lambda *_: False)


def load(folder, cache=None, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped 2 of")
        return data.load(f"folder:{folder}", cache_dir=cache, **options)


@pytest.fixture
def in_memory(folder):
    return load(folder)


def assert_same(found, expected):
    assert isinstance(found.x_train, data.Rows)
    assert isinstance(found.x_test, data.Rows)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        values = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(
            *(np.asarray(value) for value in values), strict=True
        )


def test_images_on_disk_are_those_in_memory(
    folder, in_memory, is_large, tmp_path
):
    assert_same(load(folder), in_memory)
    assert_same(load(folder, tmp_path / "cache"), in_memory)
    cached = load(folder, tmp_path / "cache")
    shutil.rmtree(folder)  # Nothing is decoded any more.
    assert_same(cached, in_memory)


@pytest.mark.parametrize("cached", [False, True])
def test_images_are_decoded_again_where_the_disk_has_no_room(
    folder, in_memory, is_large, no_room, cached, tmp_path
):
    cache = tmp_path / "cache" if cached else None
    if cached:
        with pytest.warns(UserWarning, match="not kept in .*space"):
            found = load(folder, cache)
    else:
        found = load(folder)
    assert_same(found, in_memory)
    (folder / "test/cat/9.png").write_bytes(b"gone bad")
    with pytest.raises(ValueError) as caught:
        np.asarray(found.x_test)
    assert_one_line_error(caught)
    assert "test/cat/9.png: a text" in str(caught.value)


def test_a_cache_in_memory_and_on_disk_is_the_same(
    folder, in_memory, monkeypatch, tmp_path
):
    load(folder, tmp_path / "cache")
    (kept,) = tmp_path.glob("cache/*.npy")
    before = kept.read_bytes()
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 100)
    assert_same(load(folder, tmp_path / "cache"), in_memory)
    kept.unlink()
    load(folder, tmp_path / "cache")
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 2000),
        lambda path: path.write_bytes(b"x" * 9000),
        lambda path: np.save(path, np.zeros(5)),
    ],
)
def test_a_damaged_cache_is_decoded_again(
    folder, in_memory, is_large, damage, tmp_path
):
    load(folder, tmp_path / "cache")
    (kept,) = tmp_path.glob("cache/*.npy")
    damage(kept)
    with pytest.warns(UserWarning, match="cannot be read .*decoding again"):
        found = load(folder, tmp_path / "cache")
    assert_same(found, in_memory)


def test_a_cache_that_is_cut_off_while_it_is_read(folder, is_large, tmp_path):
    found = load(folder, tmp_path / "cache")
    (kept,) = tmp_path.glob("cache/*.npy")
    os.truncate(kept, 500)
    with pytest.raises(ValueError, match="cut off") as caught:
        found.x_test[-1]
    assert_one_line_error(caught)


def test_limits_and_held_out_images_are_not_read(
    folder, is_large, monkeypatch, tmp_path
):
    cache = tmp_path / "cache"
    whole = load(folder, cache)
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 10**6)
    options = {"limit_train": 10, "limit_test": 6, "seed": 3}
    expected = load(folder, None, **options)
    kept = data.hold_out(expected, 4, seed=1)
    monkeypatch.setattr(rows, "MOST_IN_MEMORY", 100)
    read = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda *a: read.append(a[1][0].nbytes) or preadv(*a)
    )
    limited = load(folder, cache, **options)
    held_out = data.hold_out(limited, 4, seed=1)
    assert {*read} == {1}  # The channels of each file.
    assert len(limited.x_test) < len(whole.x_test)
    assert_same(limited, expected)
    for found, other in zip(held_out, kept, strict=True):
        assert_same(found, other)


def test_statistics_are_the_same(folder, in_memory, is_large, monkeypatch):
    monkeypatch.setattr(data.images, "_MOST_VALUES", 500)
    expected = data.statistics(in_memory.x_train)
    assert data.statistics(load(folder).x_train) == expected


@pytest.mark.parametrize("augment", [False, True])
def test_training_batches_are_the_same(folder, in_memory, is_large, augment):
    on_disk = load(folder)
    options = {"batch_size": 16, "epochs": 3, "seed": 4, "augment": augment}

    def made(images, **position):
        return list(
            batches.training_batches(
                images.x_train, images.y_train, **options, **position
            ).as_numpy_iterator()
        )

    expected = made(in_memory)
    found = made(on_disk)
    assert len(found) == len(expected) == 9
    # A run that resumes in the middle of an epoch.
    resumed = made(on_disk, initial_epoch=1, initial_step=2)
    for one, other in zip(
        [*found, *resumed], [*expected, *expected[5:]], strict=True
    ):
        for values in zip(one, other, strict=True):
            np.testing.assert_array_equal(*values, strict=True)


def test_validation_batches_are_in_order(folder, in_memory, is_large):
    found = batches.validation_batches(
        load(folder).x_test, in_memory.y_test, 16
    )
    x, y = zip(*found.as_numpy_iterator(), strict=True)
    assert [len(part) for part in x] == [16, 16, 8]
    expected = data.as_float(in_memory.x_test)
    np.testing.assert_array_equal(np.concatenate(x), expected, strict=True)
    np.testing.assert_array_equal(np.concatenate(y), in_memory.y_test)


def test_floats_are_made_when_they_are_read(folder, in_memory, is_large):
    x = data.as_float(load(folder).x_test)
    assert isinstance(x, data.Rows) and data.as_float(x) is x
    np.testing.assert_array_equal(x[3:9], data.as_float(in_memory.x_test[3:9]))
    with pytest.raises(ValueError, match="Received: int64"):
        data.as_float(rows.Rows(lambda at: at, (3,), np.int64))
