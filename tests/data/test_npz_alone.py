"""npz files with one part, with one-hot labels, of any image size."""

import numpy as np
import pytest
from helpers import assert_one_line_error

from tfsam.data import sources

RNG = np.random.default_rng(0)


def saved(folder, **arrays):
    path = folder / "a.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def images_of(count, shape=(8, 8, 3)):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x", "y")])
def test_a_test_part_alone(tmp_path, names):
    x, y = images_of(6, (28, 28)), np.array([[0], [1], [2], [0], [1], [2]])
    source = saved(tmp_path, **dict(zip(names, (x, y), strict=True)))
    images = sources.load(source, part="test")
    np.testing.assert_array_equal(images.x_test, x[..., np.newaxis])
    assert images.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.x_train.shape == (0, 28, 28, 1) and len(images.y_train) == 0
    assert images.class_names == ("0", "1", "2")
    assert bool(images.notes) == (names[0] == "x")
    limited = sources.load(source, part="test", limit_test=3)
    assert sorted(limited.y_test) == [0, 1, 2]


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("x", "y")])
def test_a_training_part_alone(tmp_path, names):
    """Classes of a single image need no test image, either."""
    x, y = images_of(4), np.array([0, 0, 1, 2])
    source = saved(tmp_path, **dict(zip(names, (x, y), strict=True)))
    images = sources.load(source, part="train")
    np.testing.assert_array_equal(images.x_train, x)
    assert images.y_train.tolist() == [0, 0, 1, 2]
    assert images.x_test.shape == (0, 8, 8, 3) and len(images.y_test) == 0
    assert images.class_names == ("0", "1", "2")
    assert bool(images.notes) == (names[0] == "x")


def test_the_training_part_of_data_that_is_split(tmp_path):
    split = {"x_train": images_of(6), "y_train": np.arange(6) % 2}
    test = {"x_test": images_of(2), "y_test": np.array([0, 4])}
    source = saved(tmp_path, x=images_of(9), **split, **test)
    images = sources.load(source, part="train", limit_train=3)
    assert len(images.x_train) == 3 and not len(images.x_test)
    assert len(images.class_names) == 5
    digits = sources.load("digits", part="train")
    assert len(digits.x_train) == 1437 and not len(digits.x_test)


def test_a_test_part_does_not_split_by_itself_in_training(tmp_path):
    source = saved(tmp_path, x_test=images_of(4), y_test=np.arange(4) % 2)
    with pytest.raises(ValueError) as error:
        sources.load(source)
    assert_one_line_error(error, "without x_train, y_train", "or x, y")
    with pytest.raises(ValueError) as error:
        sources.load(saved(tmp_path, x=images_of(4)), part="test")
    assert_one_line_error(error, "without x_test, y_test")


def test_x_and_y_are_split_with_copies_on_one_side(tmp_path):
    x, y = images_of(40), np.repeat([0, 1], 20)
    x[10:15] = x[10]
    source = saved(tmp_path, x=x, y=y, class_names=np.array(["ant", "bee"]))
    images = sources.load(source, test_fraction=0.3)
    assert images.class_names == ("ant", "bee")
    assert 5 <= len(images.x_test) <= 13
    train = {image.tobytes() for image in images.x_train}
    assert not train & {image.tobytes() for image in images.x_test}
    held = sources.load(source, test_fraction=0.3, part="test")
    np.testing.assert_array_equal(held.x_test, images.x_test)
    assert "seed 0" in images.notes[0]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool"])
def test_one_hot_labels(tmp_path, dtype):
    y = np.eye(4, dtype=dtype)[[0, 1, 2, 1]]
    source = saved(tmp_path, x_test=images_of(4), y_test=y)
    images = sources.load(source, part="test")
    assert images.y_test.tolist() == [0, 1, 2, 1]
    assert images.y_test.dtype == np.int64
    assert len(images.class_names) == 4  # Of which the last has no image.


def test_the_training_labels_tell_the_classes_of_a_test_part(tmp_path):
    source = saved(
        tmp_path,
        x_train=np.zeros(3, np.complex64),  # Not looked at.
        y_train=np.arange(7),
        x_test=images_of(4),
        y_test=np.arange(4) % 2,
    )
    assert len(sources.load(source, part="test").class_names) == 7


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_and_digits_get_a_size(tmp_path, dtype):
    x = images_of(4, (12, 9, 1))
    x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    source = saved(tmp_path, x_test=x, y_test=np.arange(4) % 2)
    plain = sources.load(source, part="test")
    assert plain.x_test.shape == (4, 12, 9, 1)  # Not square.
    images = sources.load(source, part="test", image_size="6x5", resize="pad")
    assert images.x_test.shape == (4, 6, 5, 1)
    assert images.x_train.shape == (0, 6, 5, 1)
    assert images.x_test.dtype == dtype
    digits = sources.load("digits", image_size=4, limit_train=10, part="test")
    assert digits.x_test.shape == (360, 4, 4, 1) and len(digits.x_train) == 0
    assert 0 <= digits.x_test.min() and digits.x_test.max() <= 1


def test_a_file_of_names_names_the_classes_of_arrays(tmp_path):
    (tmp_path / "names").write_text("zero\none\ntwo\n")
    source = saved(tmp_path, x_test=images_of(4), y_test=np.arange(4) % 2)
    order = {"class_order": str(tmp_path / "names"), "part": "test"}
    assert sources.load(source, **order).class_names == ("zero", "one", "two")
    (tmp_path / "names").write_text("zero\n")
    with pytest.raises(ValueError) as error:
        sources.load(source, **order)
    assert_one_line_error(error, "must name 2 classes")


@pytest.mark.parametrize("source", [".", "a.npz", "t.csv", "~"])
def test_a_bare_path_is_told_its_kind(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, x=np.zeros(3))
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ValueError) as error:
        sources.load(source)
    kind = {"a.npz": "npz", "t.csv": "csv"}.get(source, "folder")
    assert_one_line_error(error, f"{kind}:{source}", f"'{source}'")
