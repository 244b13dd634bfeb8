"""Layers frozen by name."""

import keras
import pytest
from helpers import assert_one_line_error
from keras import layers

from tfsam.models.networks import freezing


def network():
    """A base in a model of its own, and a head."""
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3, name="block1_conv"),
            layers.BatchNormalization(name="block1_norm"),
            layers.Conv2D(2, 3, name="block2_conv"),
        ],
        name="base",
    )
    head = [layers.ReLU(name="head_relu"), layers.Dense(3, name="head")]
    return keras.Sequential(
        [keras.Input((8, 8, 1)), base, layers.Flatten(), *head]
    )


def trained(model):
    return {v.path.split("/")[-2] for v in model.trainable_variables}


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("^block1", {"block2_conv", "head"}),
        ("block", {"head"}),
        # The models that hold layers have no name of their own here.
        ("^(?!head)", {"head"}),
        ("head", {"block1_conv", "block1_norm", "block2_conv"}),
        ("none", {"block1_conv", "block1_norm", "block2_conv", "head"}),
    ],
)
def test_layers_are_found_inside_models(pattern, expected):
    model = network()
    freezing.freeze(model, pattern)
    assert trained(model) == expected


def test_a_choice_replaces_the_one_before():
    model = network()
    model.layers[0].trainable = False
    assert trained(model) == {"head"}
    freezing.freeze(model, "head")
    assert trained(model) == {"block1_conv", "block1_norm", "block2_conv"}
    freezing.freeze(model, "none")
    assert len(trained(model)) == 4


@pytest.mark.parametrize(
    "pattern, parts",
    [
        ("conv9", ["block1_conv, block1_norm", "matches 0 of 4"]),
        ("head_relu", ["matches 0 of 4"]),  # It has no weights.
        (".", ["leave others to train", "matches 4 of 4"]),
        ("(", ["regular expression", "freeze=("]),
    ],
)
def test_wrong_expressions_are_one_line(pattern, parts):
    with pytest.raises(ValueError) as error:
        freezing.freeze(network(), pattern)
    assert_one_line_error(error, *parts)


def test_the_line_about_it_counts_weights():
    model = network()
    freezing.freeze(model, "norm")
    assert freezing.described(model) == (
        "157 of 165 weights are trained; 1 of 4 layers with weights is frozen"
    )


def test_slow_statistics_are_told_unless_they_are_frozen():
    model = network()  # Its BatchNorm has a momentum of 0.99.
    line = freezing.slow_statistics(model, 100)
    assert line.startswith("after 100 steps, 37 % of the BatchNorm statistics")
    assert "--average=ema" in line
    assert freezing.slow_statistics(model, 300) is None
    freezing.freeze(model, "norm")
    assert freezing.slow_statistics(model, 100) is None
