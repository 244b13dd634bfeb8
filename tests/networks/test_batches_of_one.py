"""Tests of networks on batches, and on shares of replicas, of one image.

oneDNN's gradient of a strided 1x1 convolution writes past its memory there; see
`onednn.unsafe_gradients`. The networks of tfsam have none.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import networks
from tfsam.support.onednn import unsafe_gradients

MAKERS = {
    "preact_resnet8": networks.preact_resnet8,
    "wide_resnet": lambda *args, width, **kwargs: networks.wide_resnet(
        *args, depth=10, widen_factor=width, **kwargs
    ),
    "preact_resnet18": networks.preact_resnet18,
}
NETWORKS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
# Without the network that has more of the first one's blocks.
SHALLOW = pytest.mark.parametrize(
    "make", list(MAKERS.values())[:2], ids=list(MAKERS)[:2]
)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@NETWORKS
def test_no_network_has_an_unsafe_gradient(make):
    """Includes so few channels that the gradient would be unsafe."""
    assert not unsafe_gradients(make(3, width=1, input_shape=(8, 8, 1)))


def images(count):
    x = np.random.default_rng(0).random((count, 8, 8, 1), dtype="float32")
    return x, np.arange(count) % 3


def trained(network, *counts, **settings):
    """Trains on some numbers of images, in batches of two."""
    model = tfsam.RobustModel(network, seed=0, **settings)
    model.compile(tfsam.SGD(0.01), LOSS)
    for count in counts:
        data = tf.data.Dataset.from_tensor_slices(images(count)).batch(2)
        model.fit(data, epochs=1, verbose=0)
    assert all(np.isfinite(w).all() for w in network.get_weights())


@pytest.mark.slow
@NETWORKS
def test_batches_of_one_train_and_are_attacked(make):
    network = make(3, width=1, input_shape=(8, 8, 1))
    attack, method = tfsam.PGD(0.1, steps=1), tfsam.SAM(0.05)
    # The second has a last batch of one.
    trained(network, 1, 3, perturb_inputs=attack, perturb_weights=method)
    found = tfsam.evaluate(network, images(1), ["pgd"], "linf", [0.1])
    assert found["robust"][0]["accuracy"] is not None


@pytest.mark.slow
@SHALLOW
def test_parts_of_one_train(make):
    network = make(3, width=1, input_shape=(8, 8, 1))
    trained(network, 4, perturb_weights=tfsam.SAM(0.05), sub_batches=2)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="No CPU devices."
)
@SHALLOW
def test_shares_of_one_train(make):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        network = make(3, width=1, input_shape=(8, 8, 1))
        trained(network, 4, perturb_weights=tfsam.SAM(0.05))
