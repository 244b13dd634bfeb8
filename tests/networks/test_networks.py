"""Tests of the networks: sizes, padding, normalisation, initialisation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam import networks


def trainable(network):
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


@pytest.mark.parametrize(
    ("make", "classes", "count"),
    [
        (networks.preact_resnet18, 10, 11_172_170),
        (networks.preact_resnet18, 100, 11_218_340),
        (networks.preact_resnet8, 10, 77_850),
        (networks.wide_resnet, 10, 36_479_194),
    ],
)
def test_number_of_weights(make, classes, count):
    network = make(classes)
    assert trainable(network) == count
    assert network.output_shape == (None, classes)


def test_blocks_by_hand():
    """Compares a stride-2 block, with PyTorch's padding of one, with NumPy."""
    network = networks.preact_resnet8(2, width=2, input_shape=(4, 4, 1))
    convolution = network.get_layer("stage2_1_conv_a")
    padded = keras.Model(network.inputs, convolution.input)
    x = np.random.default_rng(0).random((1, 4, 4, 1), dtype="float32")
    image = padded(x).numpy()[0]
    assert image.shape == (6, 6, 2)
    assert not image[0].any() and not image[:, 0].any()
    assert not image[-1].any() and not image[:, -1].any()
    kernel = convolution.kernel.numpy()
    by_hand = np.array(
        [
            [
                np.einsum("hwi,hwio->o", image[r : r + 3, c : c + 3], kernel)
                for c in (0, 2)
            ]
            for r in (0, 2)
        ]
    )
    found = keras.Model(network.inputs, convolution.output)(x).numpy()[0]
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_normalisation_is_inside():
    mean, deviation = (0.2, 0.3, 0.4), (0.5, 0.25, 0.1)
    network = networks.preact_resnet8(
        2, input_shape=(8, 8, 3), statistics=(mean, deviation)
    )
    layer = network.get_layer("normalization")
    x = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")
    np.testing.assert_allclose(
        layer(x), (x - np.array(mean)) / np.array(deviation), atol=1e-5
    )


def test_batch_norm_and_initialisation_are_pytorch_s():
    network = networks.preact_resnet8(10)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            kernel = layer.kernel.numpy()
            bound = np.prod(kernel.shape[:-1]) ** -0.5
            assert np.abs(kernel).max() <= bound
            if kernel.size > 100:
                assert np.abs(kernel).max() > 0.95 * bound
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias


@pytest.mark.parametrize("size", [7, 8, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_square_size(size, channels):
    network = networks.preact_resnet8(4, input_shape=(size, size, channels))
    assert network(np.zeros((1, size, size, channels))).shape == (1, 4)


def test_gradients_reach_the_pixels():
    network = networks.preact_resnet8(4, input_shape=(8, 8, 1))
    x = tf.random.stateless_uniform((2, 8, 8, 1), [0, 0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(network(x)[:, 0])
    assert (np.abs(tape.gradient(total, x)) > 0).mean() > 0.9


def test_depth_of_wide_resnet():
    with pytest.raises(ValueError, match="Received: depth=27"):
        networks.wide_resnet(10, depth=27)
