"""Tests of MALT: APGD-T on the classes of the nearest boundaries."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import network
from helpers import slow

import tfsam
from tfsam import attacks

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, size=(8, 6)).astype("float32")


def identity(x):
    """Logits with differences that have gradients of the same norm."""
    return x


def run(attack, logits_fn, x, y):
    traced = tf.function(
        lambda x, y: attack(logits_fn, x, y, 3), autograph=False
    )
    return traced(tf.constant(x), tf.constant(y)).numpy()


def far(x):
    """Classes 1 and 2 are likely and far, class 3 is unlikely and near."""
    flat = 0.1 * x[:, :1]
    near = 10 * tf.reduce_mean(x[:, 1:], axis=1, keepdims=True) - 2
    return tf.concat([0 * flat, flat - 0.5, flat - 0.6, near], axis=1)


def test_it_is_registered():
    attack = attacks.get("malt", epsilon=0.1)
    assert type(attack) is attacks.MALT
    assert (attack.loss, attack.steps, attack.targets) == ("dlr", 100, 9)
    assert (attack.candidates, attack.target_order) == (100, "distance")
    assert attack.follows_gradient and attack.selective


def test_it_is_apgd_t_to_the_bit_where_the_orders_agree():
    y = np.argmax(X, axis=1)
    options = {"epsilon": 0.05, "steps": 10, "targets": 2}
    expected = run(attacks.get("apgd_t", **options), identity, X, y)
    found = run(attacks.get("malt", **options), identity, X, y)
    np.testing.assert_array_equal(found, expected)
    assert (found != X).any()


@pytest.mark.slow
def test_it_satisfies_the_contract_of_attacks():
    """In one norm: the steps in all norms are those of APGD-T."""

    def in_l2(epsilon, norm, bounds, **options):
        if norm != "l2":
            raise ValueError("Received another norm")
        return attacks.MALT(epsilon, norm, bounds=bounds, **options)

    attacks.check(in_l2, steps=2, targets=2)


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_it_breaks_what_two_likely_targets_do_not(norm):
    """The distance is 0.2 in l-inf and 0.2 sqrt(16) in l2."""
    x, y = np.zeros([3, 17], "float32"), np.zeros(3, "int64")
    epsilon = 0.22 if norm == "linf" else 0.88
    options = {"epsilon": epsilon, "norm": norm, "bounds": None}
    attack = attacks.get("apgd_t", targets=2, steps=10, **options)
    x_adv = run(attack, far, x, y)
    assert (np.argmax(far(x_adv), axis=1) == y).all()
    attack = attacks.get("malt", targets=1, steps=10, **options)
    x_adv = run(attack, far, x, y)
    assert (np.argmax(far(x_adv), axis=1) == 3).all()


def test_the_targets_cost_a_gradient_for_each_candidate():
    y = np.argmax(X, axis=1)
    logits_fn = attacks.Logits(identity, rows=3)
    logits_fn.count_passes()
    attack = attacks.MALT(0.0, steps=7, targets=2, candidates=4)
    np.testing.assert_array_equal(run(attack, logits_fn, X, y), X)
    assert logits_fn.counted().passes[1] == 8 * (4 + 2 * 7)


def test_a_configuration_comes_back():
    attack = attacks.MALT(0.1, "l2", 7, 3, 5, 2, (-1, 1), 4)
    config = keras.saving.serialize_keras_object(attack)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is attacks.MALT and repr(copy) == repr(attack)
    assert attack.with_epsilon(0.2).candidates == 5
    assert attack.with_epsilon(tf.constant(0.2)).candidates == 5


@pytest.mark.parametrize("argument", ["targets", "candidates"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"Received: {argument}=0$"):
        attacks.MALT(0.1, **{argument: 0})


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.2), ("l2", 0.75)])
def test_ten_classes_are_reordered(norm, epsilon, digits):
    """All nine targets of APGD-T: as strong but for chance."""
    data = digits[0][1200:1300], digits[1][1200:1300]
    rows = tfsam.evaluate(
        network("adversarial"), data, ["malt", "apgd_t"], norm, [epsilon]
    )["robust"]
    malt, expected = (row["accuracy"] for row in rows)
    assert 0.1 < expected < 0.9
    assert abs(malt - expected) <= 0.01
    first, second = (row["gradient_passes"] for row in rows)
    assert first > 9 and abs(first - second) < 0.3 * second
