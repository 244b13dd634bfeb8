"""Folders of images are decoded once."""

import json
import os
import shutil
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfsam import data
from tfsam.data import cache as decoded_cache
from tfsam.data import stacks
from tfsam.data.files import folders
from tfsam.data.files import layouts
from tfsam.data.options import Options
from tfsam.support import files


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.fixture
def images(tmp_path):
    """A folder of 2 classes, of them the cats in color."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name, channels in (("ant", 1), ("cat", 3)):
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, channels), np.uint8)
                write(tmp_path / f"images/{split}/{name}/{number}.png", pixels)
    return tmp_path / "images"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """How many images each call decoded."""
    counts, decode = [], stacks._each

    def counted(encoded, put):
        counts.append(len(encoded.contents))
        return decode(encoded, put)

    monkeypatch.setattr(stacks, "_each", counted)
    return counts


def kept(cache):
    """The files of decoded images, without the records of their folders."""
    return list(cache.glob("*.npy"))


def load(images, cache, **options):
    return data.load(f"folder:{images}", cache_dir=cache, **options)


def assert_same(found, expected):
    assert found.class_names == expected.class_names
    for name in ("x_train", "y_train", "x_test", "y_test"):
        values = getattr(found, name), getattr(expected, name)
        assert values[0].dtype == values[1].dtype
        np.testing.assert_array_equal(*values)


def test_images_are_decoded_once(images, cache, decoded):
    without = load(images, None)
    assert_same(load(images, cache), without)
    assert decoded == [12, 12]
    assert_same(load(images, str(cache)), without)
    assert len(decoded) == 2


def test_a_part_is_taken_from_the_whole(images, cache, decoded):
    part = {"limit_train": 3, "limit_test": 2, "seed": 5}
    without = load(images, cache, **part)
    assert not cache.exists()  # A part is not kept.
    load(images, cache)
    assert_same(load(images, cache, **part), without)
    assert decoded == [5, 12]


def test_gray_files_of_a_colored_folder(images, cache):
    load(images, cache)

    def gray(labels, split):
        return np.flatnonzero(labels == 0)

    listing, options = layouts.read(images), Options()
    found = folders.load(listing, gray, options, cache)
    assert found.x_train.shape == (4, 8, 8, 1)
    assert_same(found, folders.load(listing, gray, options, None))


def change_content(images):
    write(images / "train/ant/0.png", np.full((8, 8, 1), 7, np.uint8))


def touch(images):
    os.utime(images / "train/ant/0.png", ns=(1, 1))


def add(images):
    write(images / "train/ant/4.png", np.full((8, 8, 1), 7, np.uint8))


def remove(images):
    (images / "test/cat/0.png").unlink()


def rename(images):
    (images / "test/cat/0.png").rename(images / "test/cat/2.png")


@pytest.mark.parametrize("change", [change_content, touch, add, remove, rename])
def test_what_changed_is_decoded_again(images, cache, decoded, change):
    load(images, cache)
    change(images)
    found = load(images, cache)
    assert len(decoded) == 2
    assert_same(found, load(images, None))
    assert len(kept(cache)) == 1  # The old images are gone.


def test_folders_share_a_cache(images, cache, tmp_path, decoded):
    load(images, cache)
    other = tmp_path / "other"
    images.rename(other)
    load(other, cache)
    assert decoded == [12, 12]
    assert len(kept(cache)) == 2


def test_images_of_a_folder_that_is_gone_are_removed_in_time(
    images, cache, tmp_path, decoded
):
    """After 30 days without use; a folder that is there keeps its images."""
    there, old = tmp_path / "there", tmp_path / "old"
    for folder in (there, old):
        shutil.copytree(images, folder)
        load(folder, cache)
    before = kept(cache)
    (cache / "of-others.npy").write_text("not tfsam's")
    (gone,) = [
        path
        for path in before
        if json.loads((cache / f"{path.name[:16]}.json").read_text())
        == {"folder": str(old)}
    ]
    shutil.rmtree(old)

    def days_later(days, name):
        for path in before:
            if path.exists():
                past = time.time() - days * 24 * 3600
                os.utime(path, (past, past))
        shutil.copytree(there, tmp_path / name)
        load(tmp_path / name, cache)

    days_later(29, "new")
    assert gone.exists()
    days_later(31, "newer")
    assert not gone.exists()
    assert not (cache / f"{gone.name[:16]}.json").exists()
    assert (cache / "of-others.npy").exists()
    decoded.clear()
    load(there, cache)
    assert decoded == []


def test_use_keeps_images_that_an_older_tfsam_did_not_record(
    images, cache, decoded
):
    load(images, cache)
    (path,) = kept(cache)
    record = cache / f"{path.name[:16]}.json"
    record.unlink()
    past = time.time() - 31 * 24 * 3600
    os.utime(path, (past, past))
    load(images, cache)
    assert decoded == [12]
    assert time.time() - path.stat().st_mtime < 3600
    assert record.exists()


def test_writing_into_the_images_does_not_reach_the_file(images, cache):
    without = load(images, None)
    load(images, cache)
    load(images, cache).x_train[:] = 0
    assert_same(load(images, cache), without)


@pytest.mark.parametrize("size", [0, 3, 200, 2000])
def test_a_cut_off_file_is_not_believed(images, cache, size):
    without = load(images, None)
    load(images, cache)
    (path,) = kept(cache)
    os.truncate(path, size)
    with pytest.warns(UserWarning, match="cannot be read .* decoding again"):
        assert_same(load(images, cache), without)
    assert_same(load(images, cache), without)


def test_no_broken_header_is_believed(images, cache):
    without = load(images, None)
    load(images, cache)
    (path,) = kept(cache)
    content = path.read_bytes()
    header = content.index(b"\n")
    for place in range(0, header, 7):
        for change in (1, 64):
            broken = bytearray(content)
            broken[place] ^= change
            path.write_bytes(broken)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_same(load(images, cache), without)


def test_however_a_folder_is_named_it_is_decoded_once(
    images, cache, decoded, monkeypatch
):
    monkeypatch.chdir(images.parent)
    first = load("images", cache)
    assert_same(load(images, cache), first)
    assert_same(load("./images/", cache), first)
    assert decoded == [12]


def test_no_place_to_keep_them_is_no_error(images, cache):
    cache.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="are not kept"):
        assert_same(load(images, cache), load(images, None))


def test_what_a_killed_process_left_is_removed(images, cache):
    cache.mkdir()
    half = cache / f".99999999_{files._host()}-half.npy"
    half.write_text("half")
    load(images, cache)
    assert len(kept(cache)) == 1
    assert not half.exists()


def test_the_default_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert decoded_cache.default_folder() == tmp_path / "tfsam"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert decoded_cache.default_folder() == tmp_path / ".cache/tfsam"
