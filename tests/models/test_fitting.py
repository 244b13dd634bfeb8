"""Images of one shape in front of models of another."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfsam.models import fitting
from tfsam.models import pixel_ranges

PLAIN = pixel_ranges.parse("0..1")


def images(shape, count=2):
    return np.random.default_rng(0).random((count, *shape), dtype="float32")


def fitted(shape, wanted, pixels=PLAIN):
    """Returns the input that a model receives for images of a shape."""
    found = fitting.fit(shape, wanted, pixels)
    x = tf.constant(images(shape))
    for step in found.steps:
        x = step(x)
    return np.array(x), found.notes


LAYOUTS = {
    "last": lambda h, w, c: (h, w, c),
    "first": lambda h, w, c: (c, h, w),
    "flat": lambda h, w, c: (h * w * c,),
    "column": lambda h, w, c: (h * w * c, 1),
    "rows": lambda h, w, c: (h, w * c),
    "free": lambda h, w, c: (None, None, c),
    "more": lambda h, w, c: (1, h, w, c),
}


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(4, 9),
    st.integers(4, 9),
    st.sampled_from([1, 3]),
)
def test_every_layout_holds_the_same_pixels(kind, height, width, channels):
    shape = (height, width, channels)
    wanted = LAYOUTS[kind](*shape)
    found, notes = fitted(shape, wanted)
    x = images(shape)
    if kind == "first":
        x = np.moveaxis(x, 3, 1)
    target = shape if kind == "free" else wanted
    assert found.shape[1:] == target
    np.testing.assert_array_equal(found, x.reshape(found.shape))
    assert all("channels first" in note for note in notes)


@given(
    st.sampled_from(["last", "first", "flat"]),
    st.tuples(*[st.sampled_from([4, 7, 8])] * 2),
    st.integers(4, 9),
    *[st.sampled_from([1, 3])] * 2,
)
def test_every_shape_is_fitted_or_refused_in_one_line(
    kind, size, side, channels, wanted_channels
):
    shape = (*size, channels)
    wanted = LAYOUTS[kind](side, side, wanted_channels)
    try:
        found, notes = fitted(shape, wanted)
    except ValueError as error:
        assert "\n" not in str(error) and "Received: " in str(error)
        return
    assert found.shape[1:] == wanted
    assert 0 <= found.min() and found.max() <= 1 + 1e-6
    resized = any("resized" in note for note in notes)
    assert resized == (size != (side, side))


def test_gray_is_repeated_and_rgb_is_weighted():
    gray, notes = fitted((6, 5, 1), (6, 5, 3))
    np.testing.assert_array_equal(gray, images((6, 5, 1)).repeat(3, axis=3))
    assert notes == ("gray images are repeated as red, green and blue",)
    luma, notes = fitted((6, 5, 3), (6, 5))
    expected = images((6, 5, 3)) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luma, expected, atol=1e-3)
    assert notes == ("RGB images become gray, by their luma",)


def test_resizing_is_antialiased_and_said():
    checkered = np.indices((1, 16, 16, 1)).sum(axis=0) % 2
    found = fitting.fit((16, 16, 1), (4, 4, 1), PLAIN)
    (step,) = found.steps
    small = np.array(step(tf.constant(checkered, tf.float32)))
    np.testing.assert_allclose(small, 0.5, atol=0.05)
    assert "resized to 4x4" in found.notes[0]
    assert "epsilon refers to 16x16" in found.notes[0]


def test_vectors_become_the_images_of_the_model():
    found, _ = fitted((64,), (8, 8, 1))
    np.testing.assert_array_equal(found, images((64,)).reshape(2, 8, 8, 1))
    found, _ = fitted((8, 8), (8, 8, 1))
    assert found.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [
        ((8, 8, 1), (3, 8, 3), "first axis or the last"),
        ((8, 8, 1), (8, 8, 4), "neither gray nor RGB"),
        ((8, 8, 1), (50,), "no square image"),
        ((50,), (8, 8, 1), "another shape"),
        ((4, 8, 8, 1), (8, 8, 1), "another shape"),
    ],
)
def test_what_does_not_fit_is_refused(shape, wanted, expected):
    with pytest.raises(ValueError, match=expected):
        fitting.fit(shape, wanted, PLAIN)


@pytest.mark.parametrize("wanted", [(8, 8, 3), (8, 8), (192,), (5, 4, 3)])
@pytest.mark.parametrize("pixels", ["0..255", "-1..1", "0.5/0.2"])
def test_a_fitted_model_can_be_saved(wanted, pixels, tmp_path):
    network = keras.Sequential(
        [keras.Input(wanted), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    found = fitting.fit((8, 8, 3), wanted, pixel_ranges.parse(pixels))
    model = fitting.in_front(network, found.steps, (8, 8, 3))
    model.save(tmp_path / "fitted.keras")
    loaded = keras.saving.load_model(tmp_path / "fitted.keras")
    x = images((8, 8, 3))
    np.testing.assert_allclose(model(x), loaded(x), rtol=1e-6)
    with tf.GradientTape() as tape:
        pixels = tf.constant(x)
        tape.watch(pixels)
        total = tf.reduce_sum(model(pixels))
    assert np.any(tape.gradient(total, pixels))


def test_nothing_is_put_in_front_where_nothing_is_to_do():
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    found = fitting.fit((8, 8, 1), (8, 8, 1), PLAIN)
    assert fitting.in_front(network, found.steps, (8, 8, 1)) is network


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((28, 28), (28, 28, 1)),
        ((3, 20, 30), (20, 30, 3)),
        ((3072,), (32, 32, 3)),
        ((None, None, 3), (None, None, 3)),
        ((50,), None),
        ((8, 8, 4), None),
    ],
)
def test_image_shape(wanted, expected):
    assert fitting.image_shape(wanted) == expected


def test_a_function_of_the_user_comes_first():
    def halved(x):
        return tf.image.resize(x, (4, 4)) / 2

    pixels = pixel_ranges.PixelRange("theirs:halved", function=halved)
    found, notes = fitted((8, 8, 1), (16,), pixels)
    expected = halved(images((8, 8, 1)))
    np.testing.assert_allclose(found, np.reshape(expected, (2, 16)), rtol=1e-6)
    assert not notes


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.asarray(x) / 2, "must be differentiable"),
        (tf.round, "must be differentiable"),
        (lambda x: x[:, :, :, 5], "must take images"),
        (lambda: 3, "must take images"),
    ],
)
def test_functions_that_do_not_do_are_refused(function, message):
    pixels = pixel_ranges.PixelRange("theirs:bad", function=function)
    with pytest.raises(ValueError, match=message) as error:
        fitting.fit((8, 8, 1), (8, 8, 1), pixels)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("Received: pixels=theirs:bad")
