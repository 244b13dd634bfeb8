"""Classes of arrays in the order of a file of names."""

import numpy as np
import pytest

import tfsam


@pytest.fixture
def load(tmp_path):
    """A function that loads an npz by the names in a file."""
    x = np.zeros((12, 8, 8, 1), np.uint8)
    y = np.arange(12) % 3
    path = tmp_path / "images.npz"

    def load(lines, **names):
        np.savez(path, x_test=x, y_test=y, **names)
        (tmp_path / "order.txt").write_text("\n".join(lines))
        order = str(tmp_path / "order.txt")
        return tfsam.data.load(f"npz:{path}", class_order=order, part="test")

    return load


@pytest.mark.parametrize("named", [False, True])
def test_known_names_are_put_in_order(load, named):
    known = ["cat", "dog", "owl"] if named else ["0", "1", "2"]
    order = [known[2], known[0], known[1]]
    found = load(order, **({"class_names": known} if named else {}))
    assert found.class_names == tuple(order)
    np.testing.assert_array_equal(found.y_test[:3], [1, 2, 0])


def test_more_names_than_classes(load):
    found = load(["3", "2", "1", "0"])
    np.testing.assert_array_equal(found.y_test[:3], [3, 2, 1])


def test_other_names_name_the_classes(load):
    found = load(["cat", "dog", "owl"])
    assert found.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(found.y_test[:3], [0, 1, 2])
    with pytest.raises(ValueError, match=r"must name 3 classes.*Received: 2"):
        load(["cat", "dog"])
