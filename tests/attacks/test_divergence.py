"""PGD on the divergence from the predictions at x, which TRADES trains on."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import tfsam
from tfsam.attacks import losses
from tfsam.attacks.base import example_seeds
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import input_gradient

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
KERNEL = RNG.normal(size=(6, 3)).astype("float32")
BUDGETS = {"linf": 0.05, "l2": 0.1}


def linear(x):
    return tf.matmul(x, tf.cast(KERNEL, x.dtype))


def kl_attack(norm, steps=1, **kwargs):
    return tfsam.PGD(
        BUDGETS[norm],
        norm,
        steps,
        loss="kl",
        random_start="normal",
        **kwargs,
    )


def test_a_normal_start_is_near_x():
    x = np.concatenate([X, [[0.0] * 6, [1.0] * 6]]).astype("float32")
    found = kl_attack("linf", steps=0)(linear, x, np.zeros(18), 3)
    noise = [
        tf.random.stateless_normal([6], seed, alg="philox")
        for seed in example_seeds(3, 18)
    ]
    expected = np.clip(x + 0.001 * np.array(noise), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.abs(found - x).max() > 0.001


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_normal_start_is_within_a_smaller_ball(norm):
    attack = kl_attack(norm, steps=0, bounds=None).with_epsilon(1e-4)
    delta = attack(linear, np.zeros_like(X), Y, 0).numpy()
    order = np.inf if norm == "linf" else 2
    # So near zero float32 does not round.
    np.testing.assert_allclose(
        np.linalg.norm(delta, order, axis=1), 1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_up_the_divergence_by_hand(norm):
    epsilon, size = BUDGETS[norm], 0.08
    attack = kl_attack(norm, step_size=size)
    # Farther than the noise: float32 rounds the slope there.
    start = np.clip(X + 0.02 * np.sign(RNG.normal(size=X.shape)), 0, 1)
    kernel = KERNEL.astype("float64")
    p, q = (scipy.special.softmax(v @ kernel, axis=1) for v in (X, start))
    slope = (q - p) @ kernel.T

    def length(v):
        return np.linalg.norm(v, axis=1, keepdims=True)

    if norm == "linf":
        delta = np.clip(start + size * np.sign(slope) - X, -epsilon, epsilon)
    else:
        delta = start + size * slope / length(slope) - X
        delta *= np.minimum(1, epsilon / length(delta))
    found = attack(linear, X, Y, start=start)
    np.testing.assert_allclose(found, np.clip(X + delta, 0, 1), atol=1e-5)


def test_the_divergence_has_no_slope_at_x():
    p = tf.nn.softmax(linear(X))
    slope, _ = input_gradient(linear, losses.kl)(tf.constant(X), p)
    np.testing.assert_allclose(slope, 0, atol=1e-6)

    def even(x):
        """Of these x the logits are 0, without rounding."""
        return tf.matmul(x, tf.constant([[1.0, -1.0], [-1.0, 1.0]]))

    x = np.repeat(X[:, :1], 2, axis=1)
    attack = tfsam.PGD(0.1, loss="kl", random_start=False)
    np.testing.assert_array_equal(attack(even, x, Y, 0), x)
    started = tfsam.PGD(0.1, loss="kl", random_start="normal", bounds=None)
    delta = started(even, x, Y, 0).numpy() - x
    np.testing.assert_allclose(np.abs(delta), 0.1, atol=1e-6)


def test_the_divergence_does_not_ask_for_labels():
    attack = kl_attack("linf", steps=3)
    np.testing.assert_array_equal(
        attack(linear, X, Y, 0), attack(linear, X, (Y + 1) % 3, 0)
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_example_s_attack_does_not_depend_on_its_batch(norm):
    attack = kl_attack(norm, steps=3)
    seeds = example_seeds(7, 16).numpy()
    whole = attack(linear, X, Y, seeds).numpy()
    order = [4, 1]
    part = attack(linear, X[order], Y[order], seeds[order])
    # The slopes equal those at 0.001, to float32's rounding.
    np.testing.assert_allclose(part, whole[order], atol=1e-4)
    np.testing.assert_array_equal(attack(linear, X, Y, 7), whole)
    assert len(np.unique((whole - X).round(5), axis=0)) > 8


def test_in_blocks_only_the_active_examples_are_attacked():
    attack = kl_attack("l2", steps=3)
    whole = attack(linear, X, Y, 7).numpy()
    active = np.arange(16) % 3 == 0
    logits = Logits(linear, rows=4).only(tf.constant(active))
    found = attack(logits, X, Y, 7).numpy()
    np.testing.assert_allclose(found[active], whole[active], atol=1e-4)
    np.testing.assert_array_equal(found[~active], X[~active])


@pytest.mark.slow
def test_the_contract_holds_on_the_divergence():
    tfsam.attacks.check("pgd", loss="kl", random_start="normal", steps=3)


@pytest.mark.parametrize("steps, bounds", [(0, None), (5, (0.0, 1.0))])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 5e-4, 0.3])
def test_the_budget_holds_on_the_divergence(epsilon, norm, bounds, steps):
    x = X.round()  # At the bounds.
    attack = kl_attack(norm, steps, bounds=bounds).with_epsilon(epsilon)
    delta = attack(linear, x, Y, 1).numpy() - x
    order = np.inf if norm == "linf" else 2
    sizes = np.linalg.norm(delta, order, axis=1)
    assert sizes.max() <= epsilon * (1 + 1e-6) + 1e-6
    if bounds:
        assert (x + delta).min() >= 0 and (x + delta).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "kl", "targets": 2}, "no targets. Received: targets=2"),
        ({"loss": "divergence"}, "kl.* Received: loss=divergence"),
        ({"random_start": "gauss"}, "Received: random_start=gauss"),
        ({"random_start": None}, "Received: random_start=None"),
    ],
)
def test_pgd_says_what_it_does_not_take(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfsam.PGD(0.1, **arguments)
