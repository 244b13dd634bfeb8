"""Attacks and evaluations compute no gradients of weights.

These would be a waste, and for some convolutions they are unsafe (see "A fault
in oneDNN" in BUILD_NOTES.md).
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.attacks.adapters import outside
from tfsam.models import fingerprints
from tfsam.models.loading import load_logits

ASKED = []
X = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
Y = np.arange(6) % 3


@tf.custom_gradient
def multiplied(x, weight):
    """Multiplies by a weight; the computation of its gradient is recorded."""

    def notice(slope):
        ASKED.append(slope)
        return slope

    def gradient(upstream):
        slope = tf.reduce_sum(upstream * x)
        slope = tf.numpy_function(notice, [slope], tf.float32, stateful=False)
        return upstream * weight, tf.reshape(slope, [])

    return x * weight, gradient


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.layers.Layer):
    def build(self, shape):
        self.weight = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return multiplied(x, tf.convert_to_tensor(self.weight))


@pytest.fixture
def network():
    ASKED.clear()
    keras.utils.set_random_seed(0)
    flat = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input(X.shape[1:]), Scaled(), *flat])


def by_tape(function):
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(function(x)[:, 0])
    return tape.gradient(total, x)


def test_a_sketch_computes_none(network):
    found = fingerprints.sketch(load_logits(network).function, X)
    assert np.any(found["gradients"])
    assert not ASKED


def test_a_tape_of_another_library_computes_none(network):
    slopes = by_tape(outside._to_float32(load_logits(network)))
    assert not ASKED
    np.testing.assert_allclose(slopes, by_tape(network), atol=1e-6)
    assert ASKED  # A tape computes them without the adapter.


def test_an_evaluation_computes_none(network, tmp_path):
    attacks = ["fgsm", ("pgd", {"steps": 2}), ("cleverhans_pgd", {"steps": 2})]
    result = tfsam.evaluate(
        network, (X, Y), attacks, epsilons=[0.1], workdir=tmp_path
    )
    assert [row for row in result["robust"] if "error" in row] == []
    assert not ASKED
