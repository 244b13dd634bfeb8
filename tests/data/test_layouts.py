"""Folders of images in all common layouts."""

import os

import numpy as np
import pytest
from helpers import assert_one_line_error
from PIL import Image

import tfsam
from tfsam.data import sources
from tfsam.data.files import layouts

RNG = np.random.default_rng(0)


def write(root, *names, side=8):
    """Writes random images, one for each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def classes_in(root, names=("ant", "cat"), count=2):
    write(root, *[f"{name}/{n}.png" for name in names for n in range(count)])


def found(root, **options):
    listing = layouts.read(root, **options)
    return {
        (entry.path.removeprefix(f"{root}/"), entry.label, entry.split)
        for entry in listing.entries
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("data/set/train", "data/set/test"),
        ("train/images", "test/images"),
    ],
)
def test_train_and_test_by_any_name(tmp_path, train, test):
    classes_in(tmp_path / train)
    classes_in(tmp_path / test, count=1)
    assert found(tmp_path) == {
        *[(f"{train}/ant/{n}.png", 0, "train") for n in (0, 1)],
        *[(f"{train}/cat/{n}.png", 1, "train") for n in (0, 1)],
        *[
            (f"{test}/{name}/0.png", n, "test")
            for n, name in [(0, "ant"), (1, "cat")]
        ],
    }


def test_classes_alone_may_all_be_training_images(tmp_path):
    classes_in(tmp_path, count=1)
    images = sources.load(f"folder:{tmp_path}", part="train")
    assert images.y_train.tolist() == [0, 1] and not len(images.x_test)


@pytest.mark.parametrize("around", [".", "data", "data/images/all"])
def test_classes_alone(tmp_path, around):
    classes_in(tmp_path / around)
    (tmp_path / "README.md").write_text("about the images")
    listing = layouts.read(tmp_path)
    assert not listing.decided and len(listing.entries) == 4
    assert listing.class_names == ("ant", "cat")


def test_a_class_may_be_called_train(tmp_path):
    classes_in(tmp_path, ("bus", "car", "train"))
    assert layouts.read(tmp_path).class_names == ("bus", "car", "train")


def test_test_comes_before_val_and_the_rest_is_named(tmp_path):
    for split in ("train", "val", "test"):
        classes_in(tmp_path / split)
    classes_in(tmp_path / "broken")
    listing = layouts.read(tmp_path)
    assert {entry.split for entry in listing.entries} == {"train", "test"}
    assert not any("/val/" in entry.path for entry in listing.entries)
    assert listing.notes == (f"not used in {tmp_path}: broken, val",)


def test_val_replaces_a_test_folder_without_classes(tmp_path):
    """As in many competitions: test images have no labels."""
    for split in ("train", "val"):
        classes_in(tmp_path / split)
    write(tmp_path, "test/0.png")
    listing = layouts.read(tmp_path)
    assert sum("/val/" in entry.path for entry in listing.entries) == 4
    assert f"{tmp_path / 'val'} is the test part" in listing.notes


def test_deeper_folders_belong_to_their_top_folder(tmp_path):
    write(tmp_path, "a/x/y/0.png", "a/1.png", "b/x/0.png", "b/z/0.png")
    os.symlink(tmp_path / "a", tmp_path / "a/x/loop")
    expected = {("a/x/y/0.png", 0), ("a/1.png", 0), ("b/x/0.png", 1)}
    assert {(path, label) for path, label, _ in found(tmp_path)} == {
        *expected,
        ("b/z/0.png", 1),
    }


def test_what_systems_leave_is_passed_over(tmp_path):
    classes_in(tmp_path)
    expected = found(tmp_path)
    left = ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".gitkeep")
    for folder in (tmp_path, tmp_path / "cat"):
        for name in left:
            (folder / name).write_text("a system's")
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
            (folder / name).mkdir()
            (folder / name / "0.png").write_text("a system's")
    assert found(tmp_path) == expected


def test_an_unknown_class_of_the_test_part_is_refused(tmp_path):
    classes_in(tmp_path / "train")
    classes_in(tmp_path / "val", ("ant", "dog"))
    with pytest.raises(ValueError) as error:
        layouts.read(tmp_path)
    assert_one_line_error(error, "classes of train", "Received: dog")


def test_images_without_classes_are_refused(tmp_path):
    write(tmp_path, "0.png", "1.png")
    with pytest.raises(ValueError) as error:
        layouts.read(tmp_path)
    assert_one_line_error(error, "folder for each", "csv:PATH")


# Orders of classes.

NAMES = ("0", "1", "10", "2")


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("0\n1\n2\n10\n", "txt"),
        ("0 0\n1 1\n2 2\n3 10\n", "txt"),
        ("\ufeff0,0\r\n1,1\r\n2,2\r\n3,10\r\n\r\n", "csv"),
        ('["0", "1", "2", "10"]', "json"),
        ('{"0": 0, "1": 1, "10": 3, "2": 2}', "json"),
        ('{"0": "0", "1": "1", "3": "10", "2": "2"}', "json"),
    ],
)
def test_orders_of_classes(tmp_path, text, suffix):
    classes_in(tmp_path / "images", NAMES)
    by_name = layouts.read(tmp_path / "images")
    assert by_name.class_names == NAMES
    by_number = layouts.read(tmp_path / "images", "number")
    assert by_number.class_names == ("0", "1", "2", "10")
    assert {e.label for e in by_number.entries if "/10/" in e.path} == {3}
    path = tmp_path / f"order.{suffix}"
    path.write_text(text, encoding="utf-8")
    listing = layouts.read(tmp_path / "images", str(path))
    assert listing.class_names == by_number.class_names
    assert listing.entries == by_number.entries


def test_a_file_may_name_more_classes_than_there_are(tmp_path):
    classes_in(tmp_path / "images", ("b", "c"))
    path = tmp_path / "order"
    path.write_text("d\nc\nb\na\n")
    images = sources.load(
        f"folder:{tmp_path / 'images'}", class_order=str(path), part="test"
    )
    assert images.class_names == ("d", "c", "b", "a")
    assert images.y_test.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ant\n", "without cat"),
        ("ant\nant\ncat\n", "each once"),
        ("", "each once"),
        ('{"ant": 1, "cat": 2}', "without ant, cat"),
        (None, "No such file"),
    ],
)
def test_orders_of_other_classes(tmp_path, text, part):
    classes_in(tmp_path / "images")
    path = tmp_path / "order"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        sources.load(f"folder:{tmp_path / 'images'}", class_order=str(path))
    assert_one_line_error(error, part, "class_order=")


def test_numbers_within_names_are_compared_as_numbers():
    names = {"class_10", "class_9", "class_x", "11", "2"}
    ordered = tfsam.data.class_orders.ordered(names, "number")
    assert ordered == ("2", "11", "class_9", "class_10", "class_x")
