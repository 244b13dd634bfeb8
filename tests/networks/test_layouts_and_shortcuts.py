"""Tests of the networks' layout and of their shortcuts."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import networks
from tfsam.networks import residual

OLD = pathlib.Path(__file__).parent / "preact_resnet8_of_0_1_0.keras"


@pytest.fixture
def layout():
    """Returns a function that sets Keras's global layout; restores it after."""
    before = keras.config.image_data_format()
    yield keras.config.set_image_data_format
    keras.config.set_image_data_format(before)


@pytest.fixture(scope="module")
def old():
    """Loads a network saved by tfsam 0.1.0, with a strided shortcut."""
    return keras.saving.load_model(OLD)


def settings(network):
    """Returns the settings of all layers, without the shapes of inputs."""
    return [layer.get_config() for layer in network.layers]


@pytest.mark.parametrize(
    "make",
    [
        lambda: networks.preact_resnet8(4, width=2, input_shape=(8, 6, 3)),
        slow(
            lambda: networks.preact_resnet18(4, width=2, input_shape=(8, 6, 3))
        ),
        lambda: networks.wide_resnet(
            4, depth=10, widen_factor=1, input_shape=(8, 6, 3)
        ),
    ],
)
def test_the_global_layout_changes_nothing(layout, make):
    made = []
    for name in ("channels_last", "channels_first"):
        layout(name)
        keras.utils.set_random_seed(0)
        made.append(make())
    first, second = made
    assert settings(first) == settings(second)
    assert [w.shape for w in first.weights] == [w.shape for w in second.weights]
    x = np.random.default_rng(0).random((2, 8, 6, 3), dtype="float32")
    np.testing.assert_array_equal(first(x), second(x))


def new_with_weights_of(old):
    new = networks.preact_resnet8(3, width=2, input_shape=(7, 8, 1))
    new.set_weights(old.get_weights())
    return new


def test_weights_of_0_1_0_are_those_of_today(old, tmp_path):
    """Equal by order, by path and by file: the new layer has no weights."""
    new = networks.preact_resnet8(3, width=2, input_shape=(7, 8, 1))
    assert [w.path for w in new.weights] == [w.path for w in old.weights]
    old.save_weights(tmp_path / "old.weights.h5")
    new.load_weights(tmp_path / "old.weights.h5")
    for one, other in zip(new.get_weights(), old.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_shortcut_is_the_strided_convolution_of_0_1_0(old):
    strided = [
        layer.name
        for layer in old.layers
        if isinstance(layer, keras.layers.Conv2D)
        and (layer.kernel_size, layer.strides) == ((1, 1), (2, 2))
    ]
    assert strided == ["stage2_1_shortcut", "stage3_1_shortcut"]
    new = new_with_weights_of(old)
    x = np.random.default_rng(0).random((4, 7, 8, 1), dtype="float32")

    def outputs_and_gradients(network, x):
        x = tf.constant(x)
        weights = [v.value for v in network.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = network(x, training=True)
            total = tf.reduce_sum(tf.square(logits))
        return [logits, *tape.gradient(total, [x, *weights])]

    for one, other in zip(
        outputs_and_gradients(new, x),
        outputs_and_gradients(old, x),
        strict=True,
    ):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)
    np.testing.assert_allclose(new(x), old(x), rtol=1e-6, atol=1e-6)


def test_not_a_number_stays_where_it_is():
    """A shortcut selects pixels without mixing them."""
    x = np.arange(2 * 5 * 4 * 3, dtype="float32").reshape(2, 5, 4, 3)
    x[0, 1, 1] = np.nan
    x[1, 2, 2] = np.nan
    x[1, 4, 0] = -np.inf
    inputs = keras.Input((5, 4, 3))
    network = keras.Model(inputs, residual._every(2, inputs, "pixels"))
    np.testing.assert_array_equal(network(x), x[:, ::2, ::2])
