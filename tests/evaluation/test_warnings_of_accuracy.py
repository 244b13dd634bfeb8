"""Warnings of low natural accuracy, and of pixels scaled twice."""

import keras
import numpy as np
import pytest
from helpers import network as trained

import tfsam
from tfsam.evaluation import model_probes
from tfsam.evaluation import red_flags
from tfsam.models.loading import load_logits


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1260], digits[1][1200:1260]


@pytest.fixture(scope="module")
def cnn():
    return trained("standard")


def warned(model, data, **options):
    result = tfsam.evaluate(model, data, [], **options)
    return {w["warning"]: w["message"] for w in result["warnings"]}


def scaled(model, *scales):
    inputs = x = keras.Input((8, 8, 1))
    for scale in scales:
        x = keras.layers.Rescaling(scale)(x)
    return keras.Model(inputs, model(x))


def test_an_accuracy_near_guessing_is_warned_of(cnn, data):
    x, y = data
    assert not warned(cnn, data)
    assert (
        "close to guessing among 10 classes"
        in warned(cnn, (x, (y + 1) % 10))["low_accuracy"]
    )
    message = warned(lambda x: 0 * cnn(x), data)
    assert "low_accuracy" in message


@pytest.mark.parametrize(
    ("right", "n", "classes", "warns"),
    [
        (10, 100, 10, True),
        (20, 100, 10, True),
        (25, 100, 10, False),
        (50, 100, 2, True),
        (60, 100, 2, False),
        (1, 100, 100, True),
        (5, 100, 100, False),
        (0, 100, 1000, True),
        (0, 1, 10, False),
        (0, 3, 10, False),
        (0, 8, 10, True),
        (1, 1, 2, False),
        (2, 4, 2, False),
    ],
)
def test_guessing_depends_on_the_classes_and_the_number(
    right, n, classes, warns
):
    correct = np.arange(n) < right
    assert bool(red_flags.of_accuracy(correct, classes)) == warns


def seen(model, x):
    return model_probes.seen_range(load_logits(model).function, x)


def test_a_network_that_scales_pixels_of_0_to_1_is_warned_of(cnn, data):
    """A network for pixels of 0 to 255, as in Keras's tutorials."""
    x, y = data
    theirs = scaled(cnn, 1 / 255)
    message = warned(theirs, data)["rescaled_pixels"]
    assert "Rescaling" in message and "bounds=(0, 255)" in message
    assert not warned(theirs, (255 * x, y), bounds=(0, 255))


def test_the_range_that_a_network_sees(cnn, data):
    x = data[0]
    theirs = scaled(cnn, 1 / 255)
    nested = keras.Sequential([keras.Input((8, 8, 1)), theirs])
    assert seen(theirs, x) == seen(nested, x) == pytest.approx(1 / 255)
    assert seen(scaled(cnn, 1 / 127.5), x) == pytest.approx(1 / 127.5)
    # As a network for 0..255 is put behind one for 0..1.
    assert seen(scaled(cnn, 255.0, 1 / 255), x) == pytest.approx(1)
    flipped = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.RandomFlip(),
            keras.layers.Rescaling(1 / 255),
            cnn,
        ]
    )
    assert seen(flipped, x) == pytest.approx(1 / 255)


def test_other_networks_raise_no_alarm(cnn, data):
    later = [keras.Input((8, 8, 1)), cnn, keras.layers.Rescaling(1e-3)]
    normalized = [
        keras.Input((8, 8, 1)),
        keras.layers.Normalization(mean=0.0, variance=255**-2),
        keras.layers.Rescaling(1 / 255),
        cnn,
    ]
    for model in (
        *(cnn, keras.Sequential(later), keras.Sequential(normalized)),
        *(scaled(cnn, 1.0), scaled(cnn, 2.0), lambda x: cnn(x)),
    ):
        assert seen(model, data[0]) >= 1
