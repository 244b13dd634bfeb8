"""The layer at which a network loses its gradients is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.models import gradient_flow

X = np.random.default_rng(0).uniform(0.1, 0.9, (8, 4, 4, 1)).astype("float32")


class Rounds(keras.layers.Layer):
    def call(self, x):
        return keras.ops.round(4 * x) / 4


class Signs(keras.layers.Layer):
    def call(self, x):
        return keras.ops.sign(x - 0.5)


class Bytes(keras.layers.Layer):
    def call(self, x):
        return keras.ops.cast(255 * x, "uint8")


class NormOfZero(keras.layers.Layer):
    def call(self, x):
        return x + tf.norm(0 * x, axis=1, keepdims=True)


def network(*layers):
    """A network of these layers between others."""
    front = [keras.Input((4, 4, 1)), keras.layers.Rescaling(1.0)]
    end = [
        keras.layers.Flatten(),
        keras.layers.LayerNormalization(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([*front, *layers, *end])


def nested():
    """A network with the layer in a model of its own."""
    inner = keras.Sequential([keras.Input((4, 4, 1)), Rounds(name="inside")])
    return network(inner)


LOST = {
    "no": gradient_flow.no_gradient,
    "zero": gradient_flow.zero_gradient,
    "nan": gradient_flow.nan_gradient,
}
CASES = [
    ("no", lambda: network(Rounds(name="r")), "r (Rounds)"),
    ("no", lambda: network(Bytes(name="b")), "b (Bytes)"),
    ("no", nested, "inside (Rounds)"),
    ("zero", lambda: network(Signs(name="s")), "s (Signs)"),
    ("nan", lambda: network(NormOfZero(name="n")), "n (NormOfZero)"),
]


@pytest.mark.parametrize(("kind", "make", "layer"), CASES)
def test_the_layer_is_named(kind, make, layer):
    assert gradient_flow.losing_layer(make(), X, LOST[kind]) == layer


@pytest.mark.parametrize("kind", LOST)
def test_a_plain_network_has_no_such_layer(kind):
    assert gradient_flow.losing_layer(network(), X, LOST[kind]) is None
    assert gradient_flow.losing_layer(lambda x: x, X, LOST[kind]) is None


def test_an_evaluation_says_why_a_network_cannot_be_attacked():
    model = network(Rounds(name="r"))
    y = np.argmax(model(X), axis=1)
    result = tfsam.evaluate(model, (X, y), ["fgsm"], epsilons=[0.1])
    (row,) = result["robust"]
    assert "no gradient flows" in row["error"]
    assert row["error"].endswith(f"Received: logits_fn={model.name}")
    (item,) = row["diagnosis"]
    assert item["indicator"] == "unavailable_gradients"
    (warning,) = [
        warning["message"]
        for warning in result["warnings"]
        if warning["warning"] == "no_gradients"
    ]
    assert "in the layer r (Rounds), an operation that is not" in warning
    assert "uint8" in warning


def test_gradients_that_are_nan_everywhere_are_named_with_their_layer():
    model = network(NormOfZero(name="n"))
    y = np.argmax(model(X), axis=1)
    result = tfsam.evaluate(model, (X, y), ["fgsm"], epsilons=[0.1])
    messages = [warning["message"] for warning in result["warnings"]]
    assert any("in the layer n (NormOfZero)" in text for text in messages)
    item = result["robust"][0]["diagnosis"][0]
    assert item["indicator"] == "unavailable_gradients"
    assert "NaN and replaced by zero" in item["message"]
