"""N-FGSM, Free-AT, IKL and SCORE against NumPy in float64; their identities.

Two layers, four batches, momentum and weight decay. The random numbers are
tfsam's own; everything else is written out from the papers.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import example_seeds
from tfsam.training import ikl
from tfsam.training.batch import Batch

RNG = np.random.default_rng(0)
X = RNG.random((32, 6))
Y = RNG.integers(0, 3, 32)
START = [RNG.normal(size=shape) for shape in ((6, 5), (5,), (5, 3), (3,))]
RATE, MOMENTUM, DECAY = 0.3, 0.9, 0.01
EPSILON, SIZE, SEED = 0.1, 8, 5


def set_precision(name):
    # The dtype policy is set from floatx with the first layer, and remains.
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


@pytest.fixture(autouse=True)
def float64():
    set_precision("float64")
    yield
    set_precision("float32")


def made(attack, objective=None, run_eagerly=True):
    layers = [keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(3)]
    network = keras.Sequential([keras.Input((6,)), *layers])
    network.set_weights(START)
    model = tfsam.RobustModel(network, attack, objective=objective, seed=SEED)
    model.compile(
        tfsam.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
    )
    return model


def trained(attack, objective=None, x=X, y=Y, run_eagerly=True):
    model = made(attack, objective, run_eagerly)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(SIZE)
    model.fit(data, shuffle=False, verbose=0)
    return model.network.get_weights()


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class ByHand:
    """The two layers and SGD, in NumPy."""

    def __init__(self):
        self.weights = [w.copy() for w in START]
        self.buffers = [0 * w for w in START]

    def logits(self, x):
        kernel, bias, last, end = self.weights
        return np.tanh(x @ kernel + bias) @ last + end

    def gradients(self, x, slope):
        """Those of the weights and of x, by the gradients of the logits."""
        kernel, bias, last, _ = self.weights
        hidden = np.tanh(x @ kernel + bias)
        inner = slope @ last.T * (1 - hidden**2)
        of_weights = [x.T @ inner, inner.sum(0), hidden.T @ slope, slope.sum(0)]
        return of_weights, inner @ kernel.T

    def descend(self, gradients):
        for i, gradient in enumerate(gradients):
            decayed = gradient + DECAY * self.weights[i]
            self.buffers[i] = MOMENTUM * self.buffers[i] + decayed
            self.weights[i] = self.weights[i] - RATE * self.buffers[i]

    def cross_entropy_slope(self, x, y):
        return softmax(self.logits(x)) - np.eye(3)[y]


def batches():
    for start in range(0, len(X), SIZE):
        yield X[start : start + SIZE], Y[start : start + SIZE]


def assert_same(found, expected, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def distance(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


def nfgsm_by_hand():
    hand = ByHand()
    for count, (x, y) in enumerate(batches()):
        seeds = example_seeds(tf.constant([SEED, count]), SIZE)
        noise = geometry.random_point(
            seeds, x.shape, 1.0, "linf", tf.float64
        ).numpy()
        start = np.clip(x + 2 * EPSILON * noise, 0, 1)
        _, slope = hand.gradients(start, hand.cross_entropy_slope(start, y))
        x_adv = np.clip(start + EPSILON * np.sign(slope), 0, 1)
        slope = hand.cross_entropy_slope(x_adv, y) / SIZE
        hand.descend(hand.gradients(x_adv, slope)[0])
    return hand.weights


@pytest.fixture(scope="module")
def fgsm():
    """The weights after training by FGSM from a random start."""
    set_precision("float64")
    return trained(tfsam.FGSM(EPSILON, random_start=True), run_eagerly=False)


def test_nfgsm(fgsm):
    found = trained(tfsam.NFGSM(EPSILON), run_eagerly=False)
    assert_same(found, nfgsm_by_hand())
    assert distance(found, fgsm) > 1e-3


def free_by_hand(replays, sizes=(SIZE,) * 4):
    """Algorithm 1, with the images clipped to [0, 1]."""
    hand = ByHand()
    offset = np.zeros((SIZE, 6))
    start = 0
    for size in sizes:
        x, y = X[start : start + size], Y[start : start + size]
        start += size
        for _ in range(replays):
            x_adv = np.clip(x + offset[:size], 0, 1)
            slope = hand.cross_entropy_slope(x_adv, y) / size
            of_weights, of_pixels = hand.gradients(x_adv, slope)
            offset[:size] += EPSILON * np.sign(of_pixels)
            offset = np.clip(offset, -EPSILON, EPSILON)
            hand.descend(of_weights)
    return hand.weights, offset


@pytest.mark.parametrize("run_eagerly", [slow(True), False])
def test_free_training(run_eagerly, fgsm):
    attack = tfsam.FreeAT(EPSILON, batch_size=SIZE, replays=3)
    model = made(attack, run_eagerly=run_eagerly)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE)
    model.fit(data, shuffle=False, verbose=0)
    weights, offsets = free_by_hand(3)
    assert_same(model.network.get_weights(), weights)
    assert_same([model.offsets.numpy()], [offsets])
    assert int(model.optimizer.iterations) == int(model.step_count) == 12
    assert distance(model.network.get_weights(), fgsm) > 1e-3


def test_free_training_on_a_partial_batch():
    """It uses and moves the first offsets; the others are kept."""
    attack = tfsam.FreeAT(EPSILON, batch_size=SIZE, replays=2)
    found = trained(attack, x=X[:21], y=Y[:21])
    assert_same(found, free_by_hand(2, (8, 8, 5))[0])


def test_without_epsilon_free_training_repeats_batches():
    attack = tfsam.FreeAT(0.0, batch_size=SIZE, replays=3)
    order = np.arange(32).reshape(4, 1, SIZE).repeat(3, axis=1).ravel()
    expected = trained(None, x=X[order], y=Y[order])
    assert_same(trained(attack), expected, atol=0)


def divergence_by_hand(p, q, o_m, o_n, weights, alpha, beta, symmetric):
    """The slopes in both logits, from all pairs of classes."""
    m = np.zeros_like(o_m)
    for i in range(3):
        for j in range(3):
            apart = (o_m[:, i] - o_m[:, j]) - (o_n[:, i] - o_n[:, j])
            pair = alpha / 2 * weights[:, i] * weights[:, j] * apart
            m[:, i] += pair
            m[:, j] -= pair
    n = -m if symmetric else 0 * m
    return m, n + beta * (q - p)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 2.0, "beta": 3.0, "temperature": 2.0, "refresh_every": 2},
        slow({"alpha": 2, "beta": 3, "class_means": False, "symmetric": False}),
        slow({"alpha": 2, "beta": 3, "class_means": False}),
    ],
)
def test_ikl(options):
    def attack(logits_fn, x, y, seed):
        return x + 0.3 * tf.cos(30 * x)

    found = trained(attack, tfsam.IKL(**options))
    hand = ByHand()
    means, sums = np.full((3, 3), 1 / 3), np.zeros((3, 3))
    for count, (x, y) in enumerate(batches()):
        x_adv = x + 0.3 * np.cos(30 * x)
        o_m, o_n = hand.logits(x), hand.logits(x_adv)
        p, q = softmax(o_m), softmax(o_n)
        weights = means[y] if "temperature" in options else p
        m, n = divergence_by_hand(
            *(p, q, o_m, o_n, weights, 2, 3), options.get("symmetric", True)
        )
        clean = hand.gradients(x, (p - np.eye(3)[y] + m) / SIZE)[0]
        perturbed = hand.gradients(x_adv, n / SIZE)[0]
        hand.descend([a + b for a, b in zip(clean, perturbed, strict=True)])
        for i, label in enumerate(y):
            sums[label] += softmax(o_m[i : i + 1] / 2)[0]
        if count % 2:
            means, sums = sums / sums.sum(1, keepdims=True), np.zeros((3, 3))
    assert_same(found, hand.weights)
    assert distance(found, trained(attack, tfsam.TRADES(3))) > 1e-3


def squared_error_by_hand(logits, target):
    """|softmax(logits) - target|^2, and its slope in the logits."""
    p = softmax(logits)
    apart = p - target
    inner = np.sum(p * apart, axis=1, keepdims=True)
    return np.sum(apart**2, axis=1), 2 * p * (apart - inner)


def test_score():
    """With a margin, which some examples are within."""

    def attack(logits_fn, x, y, seed):
        return x + 0.3 * tf.cos(30 * x)

    found = trained(attack, tfsam.SCORE(2.0, margin=0.02, label_smoothing=0.1))
    hand, within = ByHand(), []
    for x, y in batches():
        x_adv = x + 0.3 * np.cos(30 * x)
        o_m, o_n = hand.logits(x), hand.logits(x_adv)
        p, q = softmax(o_m), softmax(o_n)
        _, m = squared_error_by_hand(o_m, 0.9 * np.eye(3)[y] + 0.1 / 3)
        # The distance is symmetric in the two predictions.
        apart, n = squared_error_by_hand(o_n, p)
        _, back = squared_error_by_hand(o_m, q)
        far = 2 * (apart > 0.02)[:, None]
        within += list(apart <= 0.02)
        clean = hand.gradients(x, (m + far * back) / SIZE)[0]
        perturbed = hand.gradients(x_adv, far * n / SIZE)[0]
        hand.descend([a + b for a, b in zip(clean, perturbed, strict=True)])
    assert 0 < np.mean(within) < 1
    assert_same(found, hand.weights)
    assert distance(found, trained(attack, tfsam.TRADES(2))) > 1e-3


def test_the_attack_of_score_climbs_the_squared_error():
    model = made(None)
    attack = tfsam.attacks.get(
        "pgd_squared:steps=1:step_size=0.05", epsilon=0.1
    )
    seeds = example_seeds(3, 32)
    start = np.clip(
        X + geometry.random_point(seeds, X.shape, 0.1, "linf", tf.float64), 0, 1
    )
    hand = ByHand()
    p = softmax(hand.logits(X))
    _, slope = squared_error_by_hand(hand.logits(start), p)
    moved = start + 0.05 * np.sign(hand.gradients(start, slope)[1])
    expected = np.clip(np.clip(moved, X - 0.1, X + 0.1), 0, 1)
    found = attack(model.network, tf.constant(X), Y, seed=3)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def slopes(objective, o_m, o_n, y):
    """The gradients of an objective in the two logits."""
    inputs = keras.Input((3,))
    model = tfsam.RobustModel(
        keras.Model(inputs, inputs), lambda *_: None, objective=objective
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    o_m, o_n = tf.constant(o_m), tf.constant(o_n)
    with tf.GradientTape() as tape:
        tape.watch([o_m, o_n])
        loss = objective(model, Batch(o_m, o_n, tf.constant(y), None))[0]
    return [g.numpy() for g in tape.gradient(loss, [o_m, o_n])]


LOGITS = RNG.normal(size=(2, SIZE, 3), scale=2)
DKL = {"alpha": 1.0, "beta": 1.0, "class_means": False, "symmetric": False}


def test_dkl_has_the_gradients_of_the_divergence():
    """By both logit vectors; the values differ."""
    y = Y[:SIZE]
    dkl, trades = tfsam.IKL(**DKL), tfsam.TRADES(1)
    assert_same(slopes(dkl, *LOGITS, y), slopes(trades, *LOGITS, y), atol=1e-12)
    assert np.abs(slopes(trades, *LOGITS, y)[1]).max() > 0.01


def test_ikl_differs_from_it_in_two_places():
    y = Y[:SIZE]
    m, n = slopes(tfsam.IKL(**DKL), *LOGITS, y)
    p = softmax(LOGITS[0])
    squared_m, _ = divergence_by_hand(p, p, *LOGITS, p, 1, 0, False)
    # Gradients of the squared differences flow into both.
    both = tfsam.IKL(**DKL | {"symmetric": True})
    assert_same(slopes(both, *LOGITS, y), [m, n - squared_m / SIZE], atol=1e-12)
    # Weights are those of the class: at first the same for all classes.
    means = tfsam.IKL(**DKL | {"class_means": True})
    even = np.full_like(p, 1 / 3)
    squared, _ = divergence_by_hand(p, p, *LOGITS, even, 1, 0, False)
    assert_same(
        slopes(means, *LOGITS, y),
        [m + (squared - squared_m) / SIZE, n],
        atol=1e-12,
    )


def test_the_squared_differences_are_those_of_all_pairs():
    o_m, o_n = LOGITS
    weights = softmax(RNG.normal(size=(SIZE, 3)))
    expected = np.zeros(SIZE)
    for i in range(3):
        for j in range(3):
            apart = (o_m[:, i] - o_m[:, j]) - (o_n[:, i] - o_n[:, j])
            expected += weights[:, i] * weights[:, j] * apart**2 / 4
    found = ikl.squared_differences(*map(tf.constant, (o_m, o_n, weights)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_divergence_and_dkl_differ_in_value():
    apart = losses.kl(tf.constant(LOGITS[1]), tf.nn.softmax(LOGITS[0]))
    p = tf.nn.softmax(LOGITS[0])
    other = ikl.squared_differences(*map(tf.constant, LOGITS), p)
    other += losses.cross_entropy(tf.constant(LOGITS[1]), p)
    assert np.abs(apart - other).max() > 0.1
