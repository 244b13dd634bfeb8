"""Logits of Keras models, whatever they end in."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfsam.models import probabilities
from tfsam.models.endings import classifier

SHAPE = (4, 4, 3)


def pixels(count=5, shape=SHAPE):
    random = np.random.default_rng(0)
    return random.random((count, *shape)).astype("float32")


def slopes(function, x):
    """The gradient of the last logits, computed in a graph."""

    @tf.function(autograph=False)
    def compute(x):
        return tf.gradients(probabilities.called(function, x)[:, -1], x)[0]

    return compute(tf.constant(x)).numpy()


def ended(*ending, shape=SHAPE):
    """A functional network with random biases, and an ending."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, bias_initializer="normal")(inputs)
    for layer in ending:
        x = layer(x)
    return keras.Model(inputs, x, name="theirs")


def flat(*ending, classes=3, activation="linear"):
    dense = layers.Dense(classes, activation, bias_initializer="normal")
    return ended(layers.Flatten(), dense, *ending)


def assert_right(found, model, how, ends_in, classes=3):
    """The logits are of the right shape, and give the model's own output."""
    x = pixels(shape=found.input_shape)
    assert (found.logits, found.ends_in) == (how, ends_in)
    assert probabilities.called(found.function, x).shape == (5, classes)
    np.testing.assert_array_equal(found.outputs(x), model(x))
    assert probabilities.check(found, x) <= 1e-6
    assert (slopes(found.function, x) != 0).any()


ENDINGS = {
    "activation": lambda name: flat(activation=name),
    "layer": lambda name: flat(layers.Activation(name)),
    "after pooling": lambda name: ended(
        layers.Conv2D(3, 1), layers.GlobalAveragePooling2D(),
        layers.Activation(name, name="predictions"),
    ),
    "operation": lambda name: flat(getattr(keras.ops, name)),
    "convolution": lambda name: ended(
        layers.Conv2D(3, 2, activation=name), layers.Flatten()
    ),
    "kept": lambda name: flat(
        layers.Activation(name), layers.Dropout(0.5), layers.Reshape((3, 1)),
        layers.Identity(), layers.Activation("linear"), layers.Flatten(),
        lambda x: keras.ops.cast(x, "float32"),
    ),
    "not squeezed": lambda name: ended(
        layers.Conv2D(3, 2, activation=name)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ENDINGS)
def test_an_ending_is_removed(kind, name, tmp_path):
    model = ENDINGS[kind](name)
    before = [layer.name for layer in model.layers], model.get_config()
    found = classifier(model)
    assert_right(found, model, "removed_ending", name)
    assert (
        [layer.name for layer in model.layers],
        model.get_config(),
    ) == before
    found.function.save(tmp_path / "logits.keras")
    again = keras.saving.load_model(tmp_path / "logits.keras")
    np.testing.assert_array_equal(again(pixels()), found.function(pixels()))
