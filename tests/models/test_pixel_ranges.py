"""Ranges of pixels: by name, and by the layers of a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from tfsam.models import pixel_ranges


def applied(name, x):
    x = tf.constant(x, tf.float32)
    for step in pixel_ranges.parse(name).steps():
        x = step(x)
    return np.array(x)


def images(channels=3):
    return np.random.default_rng(0).random((2, 4, 4, channels))


@pytest.mark.parametrize(
    ("name", "mode"), [("-1..1", "tf"), ("caffe", "caffe"), ("torch", "torch")]
)
def test_a_range_is_the_preprocessing_of_keras(name, mode):
    preprocess = keras.applications.imagenet_utils.preprocess_input
    name = pixel_ranges.IMAGENET if name == "torch" else name
    expected = preprocess(255 * images(), "channels_last", mode)
    np.testing.assert_allclose(applied(name, images()), expected, atol=2e-4)


def test_plain_ranges():
    assert pixel_ranges.parse("0..1").steps() == []
    np.testing.assert_allclose(applied("0..255", images()), 255 * images())


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.lists(st.floats(0.05, 1), min_size=1, max_size=3),
)
def test_mean_and_deviation_in_either_unit(means, deviations):
    def text(unit):
        return "/".join(
            ",".join(repr(unit * number) for number in numbers)
            for numbers in (means, deviations)
        )

    lengths = {len(means), len(deviations)}
    if len(lengths) == 2 and 1 not in lengths:
        with pytest.raises(ValueError, match="MEAN/STD"):
            pixel_ranges.parse(text(1))
        return
    x = images(max(lengths))
    expected = (x - means) / deviations
    np.testing.assert_allclose(applied(text(1), x), expected, atol=1e-4)
    np.testing.assert_allclose(applied(text(255), x), expected, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    ["", "0..2", "0.5", "a/b", "0.5/0", "1,2/1,2,3", "nan/1", "0/-1", "1/1/1"],
)
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(
        ValueError, match=r"^pixels .*Received: pixels="
    ) as error:
        pixel_ranges.parse(text)
    assert "\n" not in str(error.value)


def test_a_function_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "of_pixels_19.py").write_text(
        "def half(x):\n    return x / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    np.testing.assert_allclose(applied("of_pixels_19:half", [3.0]), [1.5])
    with pytest.raises(ValueError, match="with a function of the module"):
        pixel_ranges.parse("of_pixels_19:third")
    with pytest.raises(ValueError, match="No module named"):
        pixel_ranges.parse("of_pixels_20:half")


def adapted(scale):
    layer = layers.Normalization()
    layer.adapt(scale * images())
    return layer


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([layers.Rescaling(1 / 255)], "0..255"),
        ([layers.Rescaling(1 / 127.5, offset=-1)], "0..255"),
        ([layers.Rescaling(2, offset=-1)], "0..1"),
        ([layers.Rescaling(255)], "0..1"),
        ([layers.Rescaling(0.5, offset=0.5)], "-1..1"),
        ([layers.RandomFlip(), layers.Rescaling(1 / 255)], "0..255"),
        ([adapted(1), layers.Rescaling(1 / 255)], "0..1"),
        ([adapted(255)], "0..255"),
        ([layers.Rescaling([4, 4, 5], offset=[-2, -2, -2])], "0..1"),
        ([], None),
        ([layers.Conv2D(2, 1), layers.Rescaling(1 / 255)], None),
        ([layers.Rescaling(1.0)], None),
    ],
)
def test_leading_layers_tell(first, expected):
    inner = keras.Sequential([keras.Input((4, 4, 3)), *first, layers.Flatten()])
    network = keras.Sequential([keras.Input((4, 4, 3)), inner, layers.Dense(2)])
    assert pixel_ranges.told(network) == expected


def test_candidates_suit_the_channels():
    assert "caffe" not in pixel_ranges.candidates(1)
    assert {"caffe", pixel_ranges.IMAGENET} < {*pixel_ranges.candidates(3)}
