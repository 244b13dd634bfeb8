"""Tests of expectation over transformation, on random networks by hand."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import attacks
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.averaging import call_seeds
from tfsam.attacks.averaging import draw_logits
from tfsam.attacks.base import next_seeds
from tfsam.models.loading import load_logits

X = np.random.default_rng(0).random((6, 4), "float32")
Y = np.arange(6) % 3
SEEDS = tf.constant([[0, index] for index in range(6)])


def drawing(weights, calls=None):
    """Returns a network of one pixel; its slope is the next weight."""
    turns = itertools.cycle(weights)

    def network(x):
        if calls is not None:
            calls.append(1)
        slope = next(turns) * (x - 0.5)
        return tf.concat([tf.zeros_like(slope), slope], axis=1)

    return network


class Noise(keras.layers.Layer):
    """Adds normal noise to each pixel, also in inference mode."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        noise = keras.random.normal(tf.shape(x), seed=self.generator)
        return x + self.size * noise


@pytest.fixture(scope="module")
def noisy():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), Noise(0.5), keras.layers.Dense(3)]
    logits = load_logits(keras.Sequential(layers))
    logits.rows = 8
    return logits


@pytest.mark.parametrize("name", ["pgd:steps=1", "apgd_ce:steps=1"])
def test_one_draw_is_wrong_where_the_mean_is_right(name):
    """The slopes are -1 and 3, with mean 1: the pixel has to grow.

    A start at 0.45 is a start on the other side for APGD, which starts on the
    surface of the ball.
    """
    x, y = tf.constant([[0.45]]), tf.constant([0])
    options = {"random_start": False} if name.startswith("pgd") else {}
    one, mean = (
        attacks.get(name, epsilon=0.1, eot=eot, **options)(
            drawing([-1, 3]), x, y, 0
        )
        for eot in (1, 2)
    )
    step = 0.025 if options else 0.1
    np.testing.assert_allclose(one, [[0.45 - step]], rtol=1e-6)
    np.testing.assert_allclose(mean, [[0.45 + step]], rtol=1e-6)


def test_gradient_logits_and_loss_are_means_by_hand():
    network = Averaged(drawing([-1.0, 3.0]), 2, SEEDS[:1])
    x, y = tf.constant([[0.75]]), tf.constant([0])

    def squared(logits, labels):
        return logits[:, 1] ** 2

    slopes, logits, losses = network.gradient(squared)(x, y, None, 0)
    # d(w (x - 0.5))^2 / dx = 2 w^2 (x - 0.5): (0.5 + 4.5) / 2.
    np.testing.assert_allclose(slopes, [[2.5]])
    np.testing.assert_allclose(logits, [[0, 0.25]])  # (-0.25 + 0.75) / 2
    np.testing.assert_allclose(losses, [0.3125])  # (0.0625 + 0.5625) / 2
    logits, losses = network.values(squared, x, y, None)
    np.testing.assert_allclose(logits, [[0, 0.25]])
    np.testing.assert_allclose(losses, [0.3125])


def test_a_single_unlucky_draw_does_not_end_the_search():
    """The draws put the pixel on both sides, their mean on the right one."""
    x, y = tf.constant([[0.3]]), tf.constant([0])
    counts = []
    for eot in (1, 2):
        calls = []
        network = drawing([-1, 3], calls)
        attacks.get("apgd_ce", epsilon=0.01, steps=5, eot=eot)(network, x, y)
        counts.append(len(calls))
    # One or five steps, and the last point.
    assert counts == [1 + 1, 2 * (5 + 1)]


@pytest.mark.parametrize("eot", [slow(2), 40])
def test_draws_are_keyed_by_the_example_alone(noisy, eot):
    """40 draws take two calls of 20 copies."""
    whole = Averaged(noisy, eot, SEEDS)
    some = Averaged(noisy, eot, SEEDS[2:4])
    x, y = tf.constant(X), tf.constant(Y)
    active = tf.constant([False, False, True, True, False, False])

    @tf.function(autograph=False)
    def gradient(x, y, turn):
        return whole.gradient(attacks.losses.dlr)(x, y, active, turn)

    both = (
        gradient(x, y, tf.constant(3)),
        some.gradient(attacks.losses.dlr)(x[2:4], y[2:4], None, 3),
    )
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one[2:4], other)
    assert not np.asarray(both[0].slopes[4:]).any()
    np.testing.assert_array_equal(whole.predict(x)[2:4], some.predict(x[2:4]))
    again = gradient(x, y, tf.constant(4))
    assert (again.logits.numpy() != both[0].logits.numpy())[2:4].all()


def test_the_draws_of_an_example_are_independent_and_have_the_mean(noisy):
    """logits = W (x + 0.5 noise) + b, of standard deviation 0.5 ||W||."""
    kernel, bias = noisy.function.model.get_weights()
    draws = draw_logits(noisy, tf.constant(X), SEEDS, 800).numpy()
    assert draws.shape == (6, 800, 3)
    size = 0.5 * np.linalg.norm(kernel, axis=0)
    error = (draws.mean(axis=1) - (X @ kernel + bias)) / size * 800**0.5
    assert np.abs(error).max() < 4.5
    np.testing.assert_allclose(
        draws.std(axis=1) / size, np.ones((6, 3)), atol=0.12
    )
    rows = draws.reshape(-1, 3)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        ("pgd:eot=3:steps=2:restarts=2", 12),
        slow("apgd_t:eot=2:steps=3:targets=2", 12),
        slow("pgd_kl:eot=2:steps=2", 4),
    ],
)
def test_images_depend_neither_on_the_batch_nor_on_tracing(
    noisy, name, gradients
):
    attack = attacks.get(name, epsilon=0.1)
    assert attack.gradients == gradients
    graph = tf.function(
        lambda x, y, seeds: attack(noisy, x, y, seeds), autograph=False
    )
    whole = graph(tf.constant(X), tf.constant(Y), SEEDS)
    some = attack(noisy.untraced(), X[2:5], Y[2:5], SEEDS[2:5])
    np.testing.assert_array_equal(whole[2:5], some)
    assert np.abs(whole - X).max() > 0


def test_networks_whose_rows_depend_on_each_other_draw_whole_batches(noisy):
    """The mean over the draws is that of calls with other noise."""
    function = noisy.function
    logits = load_logits(lambda x: x)
    logits.function = Batch(function)
    logits.together = 0
    x = tf.constant(X)
    draws = Averaged(logits, 2, SEEDS).predict(x)
    one, two = (
        Batch(function).draw(x, call_seeds(next_seeds(SEEDS[:1], -1), n)[0])
        for n in (0, 1)
    )
    assert np.abs(one - two).min() > 1e-3
    np.testing.assert_allclose(draws, (one + two) / 2, rtol=1e-5)


class Batch:
    """A network that subtracts the mean of the batch from its logits."""

    def __init__(self, function):
        self.function = function

    def draw(self, x, key):
        logits = self.function.draw(x, key)
        return logits - tf.reduce_mean(logits)


def test_passes_count_every_draw(noisy):
    noisy.count_passes()
    attack = attacks.get("apgd_ce", epsilon=0.0, steps=2, eot=4)
    attack(noisy, X[:1], Y[:1], 0)
    passes = noisy.counted().passes
    noisy.passes = noisy.nonfinite = noisy.taken = None
    # It may stop after the first step.
    assert passes.tolist() in ([4, 8], [0, 4], [0, 8])


def test_a_network_without_randomness_has_its_own_logits():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    logits = load_logits(network)
    found = [
        attacks.get("apgd_dlr", epsilon=0.1, steps=3, eot=eot)(
            logits, X, Y, SEEDS
        )
        for eot in (1, 4)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "apgd_ce"])
def test_there_is_at_least_one_draw(name):
    with pytest.raises(ValueError, match="Received: eot=0"):
        attacks.get(name, epsilon=0.1, eot=0)
