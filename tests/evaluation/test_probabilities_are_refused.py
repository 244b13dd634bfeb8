"""Every entry point rejects probabilities, by layers and by values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((12, 6)).astype("float32")
Y = RNG.integers(0, 3, 12)
PGD = tfsam.PGD(0.01, steps=1)
PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()


class Softmaxed(keras.Model):
    """A subclass: its layers do not show how it ends."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return tf.nn.softmax(self.dense(x))


def functional(*endings):
    inputs = keras.Input((6,))
    x = keras.layers.Dense(3)(inputs)
    for ending in endings:
        x = ending(x)
    return keras.Model(inputs, x)


def flat():
    """A sigmoid of small numbers, which values alone do not reveal."""
    bias = keras.initializers.Constant(-3.0)
    return functional(keras.layers.Dense(3, "sigmoid", bias_initializer=bias))


MODELS = [
    Softmaxed,
    flat,
    lambda: functional(keras.ops.softmax),
    lambda: functional(keras.layers.Softmax(), keras.layers.Identity()),
    lambda: functional(keras.layers.Lambda(tf.nn.softmax)),
]


def evaluated(network):
    tfsam.evaluate(network, (X, Y), ["fgsm"], epsilons=[0.01])


def transferred(network):
    """A transfer attack from it to a network of logits."""
    tfsam.evaluate(
        functional(), (X, Y), ["fgsm"], epsilons=[0.01], surrogate=network
    )


def validated(network):
    """Robust validation while Keras trains."""
    network.compile("sgd", PROBABILITIES)
    callback = tfsam.RobustValidation((X, Y), PGD)
    network.fit(X, Y, callbacks=[callback], verbose=0)


def stopped(network):
    """The early stop at a collapse, while tfsam trains."""
    model = tfsam.RobustModel(network)
    model.compile("sgd", PROBABILITIES)
    callback = tfsam.training.collapse.StopAtCollapse((X, Y), PGD)
    model.fit(X, Y, callbacks=[callback], verbose=0)


def drawn(network):
    """The landscape of its loss."""
    tfsam.Landscape(network, (X, Y))


@pytest.mark.parametrize(
    "door", [evaluated, transferred, validated, stopped, drawn]
)
@pytest.mark.parametrize("made", MODELS)
def test_probabilities_are_refused(door, made):
    network = made()
    network(X)
    with pytest.raises(ValueError, match="return logits, not prob") as caught:
        door(network)
    assert "take the softmax or sigmoid off" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logits_of_a_subclass_are_fine():
    class Plain(Softmaxed):
        def call(self, x):
            return self.dense(x)

    for network in (Plain(), functional(keras.layers.Identity())):
        evaluated(network)
        drawn(network)


def test_the_landscape_of_a_sigmoid_is_refused():
    for activation in ("sigmoid", lambda z: 1 / (1 + tf.exp(-z))):
        network = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(1, activation, kernel_initializer="ones"),
            ]
        )
        with pytest.raises(ValueError, match="return logits, not prob"):
            tfsam.Landscape(network, (np.tile(X, (2, 1)), np.tile(Y // 2, 2)))


def test_a_surrogate_of_probabilities_is_named_as_the_surrogate():
    logits = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="theirs")]
    )
    softmax = keras.Sequential([logits, keras.layers.Softmax()])
    data = np.random.default_rng(0).random((6, 4), "float32"), np.arange(6) % 3
    with pytest.raises(
        ValueError, match=r"^surrogate: model must return logits"
    ):
        tfsam.evaluate(logits, data, ["fgsm"], surrogate=softmax)
