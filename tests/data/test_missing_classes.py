"""Classes that have no images in a part: said, whatever the source."""

import numpy as np
import pytest
from helpers import assert_one_line_error
from PIL import Image

from tfsam import data

RNG = np.random.default_rng(0)


def pixels(count):
    return RNG.integers(0, 256, (count, 8, 8, 3), np.uint8)


def write(path, image=None):
    """Writes an image, of random pixels unless it is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1)[0] if image is None else image).save(path)


def files(folder, **counts):
    """Writes so many images of each class into folders."""
    for name, count in counts.items():
        for number in range(count):
            write(folder / name / f"{number}.png")


def npz(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return f"npz:{folder / 'a.npz'}"


ALONE = "; a class of one image, or of copies of one, keeps it to train"


def assert_split(images, names):
    """Checks the notes of a split in which the last class is of one image."""
    split, missing = images.notes[0], images.notes[-1]
    assert split.endswith(f"(test_fraction 0.2, seed 0){ALONE}")
    assert missing == f"1 class has no test images: {names[-1]}"
    assert set(images.y_train) == {*range(len(names))}
    assert set(images.y_test) == {*range(len(names) - 1)}


def test_a_class_of_one_image_in_a_folder_is_trained_on(tmp_path):
    files(tmp_path, ant=5, bee=5, cow=1)
    assert_split(data.load(f"folder:{tmp_path}"), ("ant", "bee", "cow"))


def test_copies_of_an_image_are_one_image(tmp_path):
    files(tmp_path, ant=5, bee=5)
    for number in range(3):
        write(tmp_path / f"cow/{number}.png", np.zeros((8, 8, 3), np.uint8))
    assert_split(data.load(f"folder:{tmp_path}"), ("ant", "bee", "cow"))


def test_a_class_of_one_image_in_a_table_or_arrays_is_trained_on(tmp_path):
    labels = [*"aaaaabbbbbc"]
    for number in range(len(labels)):
        write(tmp_path / f"{number}.png")
    rows = "\n".join(f"{n}.png,{name}" for n, name in enumerate(labels))
    (tmp_path / "table.csv").write_text(rows)
    assert_split(data.load(f"csv:{tmp_path / 'table.csv'}"), "abc")
    y = np.unique(labels, return_inverse=True)[1]
    assert_split(data.load(npz(tmp_path, x=pixels(11), y=y)), "012")


def test_a_whole_split_has_no_such_notes(tmp_path):
    y = np.arange(20) % 4
    (note,) = data.load(npz(tmp_path, x=pixels(20), y=y)).notes
    assert ALONE not in note


def test_splits_of_the_user_s_own_are_looked_at(tmp_path):
    files(tmp_path / "folder/train", ant=1, bee=1, cat=1)
    files(tmp_path / "folder/test", cat=1)
    of_folder = data.load(f"folder:{tmp_path / 'folder'}").notes
    assert of_folder == ("2 classes have no test images: ant, bee",)

    for number in range(4):
        write(tmp_path / f"{number}.png")
    rows = "0.png,a,train\n1.png,b,test\n2.png,a,test\n3.png,c,train\n"
    (tmp_path / "table.csv").write_text(rows)
    assert data.load(f"csv:{tmp_path / 'table.csv'}").notes == (
        "1 class has no training images: b",
        "1 class has no test images: c",
    )

    source = npz(
        tmp_path,
        **{"x_train": pixels(6), "y_train": np.array([0, 1, 2, 4, 5, 6])},
        **{"x_test": pixels(2), "y_test": np.array([3, 0])},
    )
    assert data.load(source).notes == (
        "1 class has no training images: 3",
        "5 classes have no test images: 1, 2, 4, ...",
    )
    # The training part is not wanted, and classes are tested all the same.
    (note,) = data.load(source, part="test").notes
    assert note == "5 classes have no test images: 1, 2, 4, ..."


def test_images_that_cannot_be_read_leave_a_class_without_any(tmp_path):
    files(tmp_path / "train", ant=20, bee=20)
    files(tmp_path / "test", ant=20, bee=1)
    (tmp_path / "test/bee/0.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"bee/0\.png"):
        images = data.load(f"folder:{tmp_path}")
    assert images.notes[-1] == "1 class has no test images: bee"


def test_a_split_without_test_images_is_refused(tmp_path):
    sources = [npz(tmp_path, x=pixels(2), y=np.arange(2))]
    files(tmp_path / "folder", ant=1, bee=1)
    sources.append(f"folder:{tmp_path / 'folder'}")
    for source in sources:
        with pytest.raises(ValueError) as error:
            data.load(source)
        assert_one_line_error(error, "two different images", "of copies of one")
        # All of them are tested where none is trained on.
        assert len(data.load(source, part="test").x_test) == 2


def test_the_only_image_of_a_class_is_not_held_out():
    y = np.array([0] * 9 + [1] * 9 + [2])
    x = pixels(len(y))
    images = data.Images("", x, y, x[:2], y[:2], tuple("abc"))
    train, held = data.hold_out(images, 4, seed=0)
    assert np.bincount(train.y_train).tolist() == [7, 7, 1]
    assert np.bincount(held.y_train).tolist() == [2, 2]
    for count, least in ((18, "less than the 18"), (1, "classes, 2")):
        with pytest.raises(ValueError) as error:
            data.hold_out(images, count, seed=0)
        assert_one_line_error(error, least, str(count))
