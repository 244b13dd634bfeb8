"""Tests that nearest points cross the boundary by more than rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam import attacks
from tfsam.attacks import losses
from tfsam.attacks.logits import crossed
from tfsam.models.functions import for_evaluation
from tfsam.models.loading import load_logits

RNG = np.random.default_rng(11)
W = RNG.normal(size=(16, 4)).astype("float32")
X = RNG.uniform(0.2, 0.8, (500, 4, 4, 1)).astype("float32")
ROUNDING = 2e-6 * np.array([1, -1, -1, 1], "float32")
ATTACKS = {
    "fmn": {"steps": 200},
    "fab_t": {"steps": 40, "targets": 1},
}


def rounded(sign):
    """Rounds logits as a batch of another size may do."""

    def logits(x):
        z = tf.matmul(tf.reshape(x, [-1, 16]) - 0.5, W)
        return z + sign * ROUNDING * tf.reduce_max(tf.abs(z), 1, True)

    return logits


Y = np.argmax(rounded(0)(X), axis=1)


def nearest(name, norm, rounding):
    """Returns the nearest points, and which of them were found."""
    attack = attacks.get(name, epsilon=1.0, norm=norm, **ATTACKS[name])
    logits = attacks.Logits(rounded(1))
    logits.rounding = rounding
    run = tf.function(attack.closest, autograph=False)
    seeds = tf.zeros([len(X), 2], tf.int32)
    found = run(logits, tf.constant(X), tf.constant(Y), seeds).numpy()
    return found, np.abs(found - X).reshape(len(X), -1).max(axis=1) > 0


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    "norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)]
)
def test_another_rounding_does_not_change_the_verdict(name, norm):
    order = np.inf if norm == "linf" else 2

    def distances(points):
        return np.linalg.norm((points - X).reshape(len(X), -1), order, axis=1)

    bare, found = nearest(name, norm, 0.0)
    kept, also = nearest(name, norm, attacks.Logits(rounded(0)).rounding)
    np.testing.assert_array_equal(also, found)
    assert found.mean() > 0.95
    for sign in (-1, 0, 1):
        wrong = losses.misclassified(rounded(sign)(kept), Y).numpy()
        assert wrong[found].all()
    ratio = distances(kept)[found] / distances(bare)[found]
    assert 0.999 < np.median(ratio) < 1.0005 and np.mean(ratio) < 1.0005


def test_without_a_margin_verdicts_do_change():
    """Proves that the test above can fail."""
    bare, found = nearest("fmn", "linf", 0.0)
    wrong = losses.misclassified(rounded(-1)(bare), Y).numpy()
    assert not wrong[found].all()


def test_a_margin_is_relative_to_the_logits():
    for size in (1e-3, 1.0, 1e4):
        logits = size * tf.constant([[1.0, 1 + 2e-6], [1.0, 1 + 1e-4]])
        found = crossed(rounded(0), logits, tf.constant([0, 0]))
        np.testing.assert_array_equal(found, [False, True])


@pytest.mark.parametrize(
    ("policy", "expected"), [("float32", 1e-5), ("mixed_float16", 2.0**-10)]
)
def test_networks_of_halves_get_a_wider_margin(policy, expected):
    dense = keras.layers.Dense(3, dtype=policy)
    network = keras.Sequential([keras.Input((4,)), dense])
    logits = load_logits(network)
    assert for_evaluation(logits, 3, (4,)).rounding == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_batches_of_other_sizes_give_the_same_verdicts(name):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(5),
        ]
    )
    x = tf.constant(RNG.random((150, 8, 8, 1), dtype="float32"))
    y = tf.argmax(network(x), axis=1)
    attack = attacks.get(name, epsilon=1.0, **ATTACKS[name])
    logits = attacks.Logits(lambda x: network(x, training=False))
    seeds = tf.zeros([150, 2], tf.int32)
    run = tf.function(attack.closest, autograph=False)
    points = run(logits, x, y, seeds)
    found = tf.reduce_any(points != x, axis=[1, 2, 3]).numpy()
    assert found.mean() > 0.5
    for size in (1, 3, 16, 64, 149):
        wrong = [
            losses.misclassified(network(points[i : i + size]), y[i : i + size])
            for i in range(0, 150, size)
        ]
        assert np.concatenate(wrong)[found].all()
