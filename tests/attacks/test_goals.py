"""Attacks towards a class: exact distances, blocks, copies and traces."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam import attacks
from tfsam.attacks import goals
from tfsam.attacks import losses
from tfsam.attacks import tracing
from tfsam.attacks.logits import Logits

# The logits are the first three pixels. The nearest point of class 2 is where
# the first pixel meets the third (rows 0 and 1), or both others do (row 2).
X = np.array(
    [[0.6, 0.4, 0.3, 0.5], [0.6, 0.2, 0.5, 0.5], [0.6, 0.59, 0.3, 0.5]],
    "float32",
)
Y = np.zeros(3, "int64")
# s + u_i = gap_i; in l2, s is the mean of the gaps where both count.
BOTH = np.linalg.norm([0.59 / 3, 0.3 - 0.59 / 3, 0.29 - 0.59 / 3])
DISTANCES = {
    "linf": [0.15, 0.05, 0.15],
    "l2": [0.3 / 2**0.5, 0.1 / 2**0.5, BOTH],
    "l1": [0.3, 0.1, 0.3],
}


def pixels(x):
    return 10 * x[:, :3]


def predicted(x):
    return np.argmax(x[:, :3], axis=1)


def made(name, epsilon, norm):
    return attacks.get(name, epsilon=epsilon, norm=norm)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("pgd:steps=15:early_stop=true", "linf"),
        ("pgd:steps=15:early_stop=true", "l2"),
        slow("pgd:steps=15:early_stop=true", "l1"),
        *[slow("apgd_ce:steps=50", norm) for norm in DISTANCES],
        *[slow("apgd_t:steps=50", norm) for norm in DISTANCES],
        *[slow("pgd_cw:early_stop=true", norm) for norm in DISTANCES],
    ],
)
def test_an_attack_breaks_as_far_as_the_exact_distance(name, norm):
    exact = np.array(DISTANCES[norm])
    for epsilon in (0.97 * exact.min(), 0.97 * exact.max(), 1.2 * exact.max()):
        found = made(name, epsilon, norm)(pixels, X, Y, seed=0, target=2)
        reached = predicted(found) == 2
        assert not reached[exact > epsilon].any()
        assert reached[1.2 * exact < epsilon].all()


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("fmn:steps=40", "linf"),
        slow("fab_t:steps=15", "l2"),
        *[slow("fmn:steps=200", norm) for norm in DISTANCES],
        *[slow("fab_t:steps=50", norm) for norm in DISTANCES],
        *[slow("fab", norm) for norm in DISTANCES],
    ],
)
def test_minimum_norm_attacks_come_near_the_exact_distance(name, norm):
    attack = made(name, 1.0 if norm == "linf" else 4.0, norm)
    logits_fn, y = goals.aimed(pixels, tf.constant(X), tf.constant(Y), 2)
    seeds = tf.zeros([3, 2], tf.int32)
    closest = tf.function(
        lambda x: attack.closest(logits_fn, x, y, seeds), autograph=False
    )
    found = closest(tf.constant(X)).numpy()
    assert predicted(found).tolist() == [2, 2, 2]
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    length = np.linalg.norm(found - X, order, axis=1)
    exact = np.array(DISTANCES[norm])
    assert (length > 0.999 * exact).all()
    # FAB follows a single boundary, and two of them meet at the last point.
    most = np.array([1.15, 1.15, 1.6 if "fab" in name else 1.15])
    assert (length < most * exact).all(), length / exact


def test_a_wrong_class_is_not_the_target():
    """At 0.12 the second class is found, and the third is out of reach."""
    attack = tfsam.PGD(0.12, steps=10)
    plain = attack(pixels, X[:1], Y[:1], seed=0)
    aimed = attack(pixels, X[:1], Y[:1], seed=0, target=2)
    assert predicted(plain) == [1] and predicted(aimed) == [0]

    def never(x):
        return tf.concat([pixels(x)[:, :2], 0 * x[:, :1] - 9], axis=1)

    found = attack(never, X, Y, seed=0, target=2)
    assert (never(found).numpy().argmax(axis=1) != 2).all()


def test_the_gradient_of_the_cross_entropy_is_that_of_the_target():
    logits = tf.constant([[3.0, 1.0, 2.0, 2.5], [0.0, 5.0, 1.0, 4.0]])
    target = tf.constant([2, 0])
    for loss, expected in (
        (losses.cross_entropy, lambda z: -losses.cross_entropy(z, target)),
        (losses.margin, lambda z: -losses.margin(z, target)),
    ):
        slopes = []
        for function in (
            lambda z, loss=loss: loss(
                goals.towards(z, target, loss), tf.zeros([2], tf.int64)
            ),
            expected,
        ):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = tf.reduce_sum(function(logits))
            slope = tape.gradient(value, logits).numpy()
            length = np.linalg.norm(slope, axis=1, keepdims=True)
            slopes.append(slope / length)
        np.testing.assert_allclose(*slopes, atol=1e-5)


def test_the_values_are_those_of_the_margin_to_the_bit():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(64, 5)), tf.float32)
    target = tf.constant(rng.integers(5, size=64))
    hard = goals.towards(logits, target, losses.margin)
    soft = goals.towards(logits, target, losses.cross_entropy)
    np.testing.assert_array_equal(hard, soft)
    reached = logits.numpy().argmax(axis=1) == target.numpy()
    wrong = losses.misclassified(hard, tf.zeros([64], tf.int64))
    np.testing.assert_array_equal(wrong, reached)


RNG = np.random.default_rng(1)
W = RNG.normal(size=(16, 4)).astype("float32")
IMAGES = RNG.uniform(0.2, 0.8, size=(5, 4, 4, 1)).astype("float32")


def linear(x):
    return tf.matmul(tf.reshape(x - 0.5, [-1, 16]), W)


LABELS = linear(IMAGES).numpy().argmax(axis=1)
TARGETS = (LABELS + np.arange(5) % 3 + 1) % 4
SEEDS = np.stack([np.full(5, 3), np.arange(5)], axis=1).astype("int32")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("apgd_ce:steps=3:restarts=3", None),
        ("square:queries=9", 2),
        *[slow("apgd_ce:steps=5:restarts=3", rows) for rows in (None, 2)],
        *[slow("fmn:steps=5:targets=3", rows) for rows in (None, 2)],
        *[slow("square:queries=20", rows) for rows in (None, 2)],
        *[slow("pgd:steps=3:restarts=2", rows) for rows in (None, 2)],
    ],
)
def test_blocks_and_copies_give_the_results_of_single_examples(name, rows):
    attack = made(name, 0.1, "linf")

    def run(some):
        source = Logits(linear, rows=rows)
        inputs = IMAGES[some], LABELS[some], SEEDS[some]
        return attack(source, *inputs, target=TARGETS[some]).numpy()

    whole = run(slice(None))
    assert np.abs(whole - IMAGES).max() > 0
    (alone,) = run(slice(4, 5))
    np.testing.assert_allclose(whole[4], alone, atol=1e-6)


def test_a_traced_attack_takes_other_targets():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((400,)), keras.layers.Dense(3)])
    x = np.full((2, 400), 0.5, "float32")
    y = network(x).numpy().argmax(axis=1)
    first, second = (y + 1) % 3, (y + 2) % 3
    attack, before = tfsam.PGD(0.3, steps=5), len(tracing._traces)
    for target in (first, second, int(first[0])):
        found = attack(network, x, y, seed=0, target=target)
        assert (network(found).numpy().argmax(axis=1) == target).all()
    assert len(tracing._traces) == before + 1


def test_a_surrogate_is_attacked_with_the_whole_budget():
    source = Logits(pixels).as_surrogate()
    attack = made("apgd_ce:steps=10", 0.3, "linf")
    found = attack(source, X, Y, seed=0, target=2).numpy()
    assert predicted(found).tolist() == [2, 2, 2]
    np.testing.assert_allclose(found[:, 2] - X[:, 2], 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (0, "target must be another class than the label"),
        (3, "target must be a class number below 3"),
        (-1, "target must be a class number below 3"),
        ([1, 2], "target must be a class number, or one for each example"),
        ([[1], [2], [1]], "target must be a class number, or one for each"),
    ],
)
def test_targets_that_are_none_are_rejected(target, message):
    with pytest.raises(ValueError, match=message) as caught:
        tfsam.PGD(0.1)(pixels, X, Y, seed=0, target=target)
    assert "Received: " in str(caught.value)


def test_a_distance_from_the_predictions_leads_to_no_target():
    with pytest.raises(ValueError, match=r"leads to no goal.*loss=kl"):
        attacks.get("pgd_kl", epsilon=0.1)(pixels, X, Y, target=2)


def test_calls_on_other_batches_are_rejected():
    source = Logits(pixels).aimed_at(goals.towards)
    targets = goals.aimed(pixels, tf.constant(X), tf.constant(Y), 2)[0]
    source = source.given(targets.context)
    assert source(tf.concat([X, X], 0)).shape == (6, 2)
    with pytest.raises(ValueError, match="2 examples of a batch of 3"):
        source(X[:2])
