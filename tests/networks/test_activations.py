"""Tests of residual networks with other activations and no normalisation."""

import keras
import numpy as np
import pytest

from tfsam import networks


def kinds(network):
    return {type(layer).__name__ for layer in network.layers}


def test_the_default_is_as_before():
    """Old files of weights and identities of models name these layers."""
    network = networks.preact_resnet8(4, width=2, input_shape=(8, 8, 1))
    assert network.get_layer("stage1_1_a_relu")
    assert "Activation" not in kinds(network)


def test_activation_by_hand():
    network = networks.preact_resnet8(
        4, width=2, input_shape=(8, 8, 1), activation="silu"
    )
    assert "ReLU" not in kinds(network)
    layer = network.get_layer("final_silu")
    model = keras.Model(network.inputs, [layer.input, layer.output])
    x = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    before, after = model(x)
    np.testing.assert_allclose(
        after, before / (1 + np.exp(-np.float64(before))), rtol=1e-5
    )


def test_no_normalisation():
    network = networks.wide_resnet(
        4,
        depth=10,
        widen_factor=1,
        input_shape=(8, 8, 1),
        normalization="none",
        statistics="none",
    )
    assert not {"BatchNormalization", "Normalization"} & kinds(network)
    convolutions = [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert all(layer.use_bias for layer in convolutions)
    x = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    # Without batch statistics, training mode is inference mode.
    np.testing.assert_array_equal(
        network(x, training=True), network(x, training=False)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sillu"}, "Received: activation=sillu"),
        ({"normalization": "layer"}, "Received: normalization=layer"),
        ({"statistics": "zero"}, "Received: statistics=zero"),
    ],
)
def test_unknown_words(options, message):
    with pytest.raises(ValueError, match=message):
        networks.preact_resnet8(4, input_shape=(8, 8, 1), **options)
