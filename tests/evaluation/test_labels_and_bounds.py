"""Labels must name classes, and pixels lie in bounds up to rounding."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.support.labels import class_labels
from tfsam.support.pixels import inside_bounds

RNG = np.random.default_rng(0)
X = RNG.random((12, 6)).astype("float32")
Y = RNG.integers(0, 3, 12)
WEIGHTS = RNG.normal(size=(6, 3)).astype("float32")
BFLOAT16 = tf.bfloat16.as_numpy_dtype
FLOATS = ["float16", "float32", "float64", BFLOAT16]


def linear(x):
    return tf.linalg.matmul(x, tf.cast(WEIGHTS, x.dtype))


def measured(x, y):
    return tfsam.evaluate(linear, (x, y), ["fgsm"], epsilons=[0.01])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0, 255), (-1.0, 1.0)])
def test_rounding_beyond_the_bounds_is_clipped(dtype, bounds):
    low, high = np.asarray(bounds).astype(dtype)
    unit = np.spacing(high)
    x = np.array([low - 3 * unit, low, high, high + 3 * unit], dtype)
    found = inside_bounds(x, bounds)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, np.array([low, low, high, high]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_anything_further_is_refused_with_enough_digits(dtype, sign):
    high = np.asarray(1).astype(dtype)
    beyond = high + 6 * np.spacing(high)
    x = np.array([0, sign * beyond], dtype)
    exact = beyond if dtype == "float64" else np.float32(beyond)
    message = f"Received: x in .*{re.escape(str(exact))}"
    with pytest.raises(ValueError, match=message) as caught:
        inside_bounds(x, (-1.0, 1.0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_inside(value):
    with pytest.raises(ValueError, match="Received: x in"):
        inside_bounds(np.array([0.5, value]), (0.0, 1.0))


def test_pixels_inside_and_without_bounds_stay_the_same_array():
    assert inside_bounds(X, (0.0, 1.0)) is X
    assert inside_bounds(1e9 * X, None).max() > 1e8


def test_white_images_resized_can_be_evaluated():
    images = np.full((12, 37, 41, 1), 255, "uint8")
    x = tf.image.resize(images, (2, 3), antialias=True).numpy() / 255
    x = x + np.spacing(np.float32(1))  # Whatever this processor rounds to.
    found = measured(np.reshape(x, (12, 6)), Y)
    assert found["robust"][0].get("error") is None


@pytest.mark.parametrize(
    "y",
    [
        np.eye(3, dtype="float32")[Y],
        np.eye(3, dtype=bool)[Y],
        np.eye(3, dtype="int64")[Y],
        0.9 * np.eye(3)[Y] + 0.1 / 3,
        (0.9 * np.eye(3)[Y] + 0.1 / 3).astype("float16"),
        (0.9 * np.eye(3)[Y] + 0.1 / 3).astype(BFLOAT16),
        RNG.dirichlet(np.ones(3), 12).astype("float32"),
    ],
)
def test_distributions_over_classes_are_labels(y):
    given, numbers = class_labels(y)
    assert given is y
    np.testing.assert_array_equal(numbers, y.argmax(axis=1))


@pytest.mark.parametrize(
    ("y", "shown"),
    [
        ((X[:, :3] > 0.5).astype("float32"), "sum"),  # Several tags at once.
        ((X[:, :3] > 0.5).astype("int64"), "sum"),
        (X[:, :3], "sum"),  # A regression of three numbers.
        (np.tile([1.5, -0.5, 0.0], (12, 1)), "12 of 12 rows, .*sum 1$"),
        (np.where(np.eye(3)[Y] > 0, np.nan, 0.0), "sum nan"),
        (np.concatenate([np.eye(3)[Y[:11]], np.ones((1, 3))]), "row 11"),
    ],
)
def test_rows_that_are_no_distribution_have_no_accuracy(y, shown):
    with pytest.raises(ValueError, match=f"distribution.*{shown}") as caught:
        measured(X, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="distribution"):
        tfsam.RobustValidation((X, y), tfsam.PGD(0.01))


@pytest.mark.parametrize("y", [Y - 1, Y + 1, np.full(12, 255)])
def test_labels_of_no_class_are_refused(y):
    with pytest.raises(ValueError, match=r"class numbers below 3.* from"):
        measured(X, y)


def test_five_tags_are_no_natural_accuracy():
    tags = (X[:, :5] > 0.5).astype("float32")
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="Several tags at once"):
        tfsam.evaluate(network, (X, tags), ["pgd"], epsilons=[0.05])
