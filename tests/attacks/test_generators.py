"""Tests that other libraries' attacks need no seed with deterministic ops."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

from tfsam import attacks

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.2, 0.8, (4, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 4)


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), W)


@pytest.fixture
def deterministic():
    """Enables deterministic ops without a seed, and disables them after."""
    tf.random.set_seed(None)
    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            "foolbox:LinfPGD",
            {"steps": 2},
            marks=pytest.mark.needs("foolbox"),
        ),
        pytest.param(
            "art",
            {"max_iter": 2},
            marks=[pytest.mark.needs("art"), pytest.mark.slow],
        ),
    ],
)
def test_deterministic_ops_need_no_seed(name, options, deterministic):
    attack = attacks.get(name, epsilon=0.1, **options)
    found = attack(linear, X, Y, 3)
    np.testing.assert_array_equal(attack(linear, X, Y, 3), found)
    with pytest.raises(RuntimeError, match="seed"):
        tf.random.uniform([])  # It is left without one.
    later = set()
    for _ in range(2):  # With a seed it goes on from a draw of that.
        tf.random.set_seed(7)
        attack(linear, X, Y, 3)
        later.add(float(tf.random.uniform([])))
    assert len(later) == 1
