"""Replacement of the heads of networks for another number of classes."""

import keras
import numpy as np
import pytest
from helpers import assert_one_line_error
from helpers import examples
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers

from tfsam.models.networks import heads

SHAPE = (6, 6, 2)


def dense(classes):
    return [layers.Flatten(), layers.Dense(classes, name="head")]


def pooled(classes):
    """The convolution of fully convolutional networks."""
    head = layers.Conv2D(classes, 3, name="head")
    return [head, layers.GlobalAveragePooling2D(), layers.Activation("linear")]


def reshaped(classes):
    """The end of MobileNet."""
    pool = layers.GlobalAveragePooling2D(keepdims=True)
    head = layers.Conv2D(classes, 1, name="head")
    return [pool, head, layers.Reshape((classes,))]


ENDS = (dense, pooled, reshaped)


def body():
    return [
        layers.Conv2D(3, 3, padding="same", name="features"),
        layers.BatchNormalization(name="norm"),
    ]


def sequential(end, classes):
    return keras.Sequential([keras.Input(SHAPE), *body(), *end(classes)])


def functional(end, classes):
    x = inputs = keras.Input(SHAPE)
    for layer in [*body(), *end(classes)]:
        x = layer(x)
    return keras.Model(inputs, x)


def nested(end, classes):
    """A base and a head, each a model of its own, behind a rescaling."""
    base = keras.Sequential([keras.Input(SHAPE), *body()])
    top = keras.Sequential([keras.Input(base.output_shape[1:]), *end(classes)])
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(2.0, -1.0)(inputs)
    return keras.Model(inputs, layers.Activation("linear")(top(base(x))))


KINDS = (sequential, functional, nested)


def by_name(network):
    """The weights of a network by their layer and variable."""
    return {
        tuple(v.path.split("/")[-2:]): np.asarray(v) for v in network.weights
    }


@settings(max_examples=examples(2))
@given(
    kind=st.sampled_from(KINDS),
    end=st.sampled_from(ENDS),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
)
def test_the_head_alone_is_new(kind, end, before, after):
    network = kind(end, before)
    kept = by_name(network)
    made = heads.replaced(network, after)
    assert made.output_shape == (None, after)
    assert made(np.zeros((2, *SHAPE), "float32")).shape == (2, after)
    for name, value in by_name(made).items():
        if name[0] != "head":
            np.testing.assert_array_equal(value, kept[name])
    # The network itself stays as it was.
    assert network.output_shape == (None, before)
    for name, value in by_name(network).items():
        np.testing.assert_array_equal(value, kept[name])


def test_new_heads_depend_on_the_seed_alone():
    network = sequential(dense, 3)
    found = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        found.append(by_name(heads.replaced(network, 2))["head", "kernel"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def added():
    inputs = keras.Input((4,))
    one, two = layers.Dense(3)(inputs), layers.Dense(3)(inputs)
    return keras.Model(inputs, layers.Add()([one, two]))


def normalized():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.LayerNormalization()]
    )


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "make, parts",
    [
        (added, ["a Add", "MODULE:FUNCTION"]),
        (normalized, ["LayerNormalization"]),
        (Subclassed, ["no graph"]),
    ],
)
def test_other_ends_are_one_line(make, parts):
    with pytest.raises(ValueError) as error:
        heads.replaced(make(), 5)
    assert_one_line_error(error, "5 classes", *parts)
