"""Tests that attacks on a surrogate do not stop at its boundary."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import attacks
from tfsam.attacks import losses

RNG = np.random.default_rng(5)
W = RNG.normal(size=(36, 5)).astype("float32")
OTHER = W + RNG.normal(size=W.shape).astype("float32")
X = RNG.uniform(0.2, 0.8, (120, 6, 6, 1)).astype("float32")


def judge(x):
    return tf.matmul(tf.reshape(x, [-1, 36]) - 0.5, tf.cast(W, x.dtype))


def source(x):
    return tf.matmul(tf.reshape(x, [-1, 36]) - 0.5, tf.cast(OTHER, x.dtype))


Y = np.argmax(judge(X), axis=1)
RIGHT = Y == np.argmax(source(X), axis=1)  # By both networks.
X, Y = X[RIGHT], Y[RIGHT]
STOPPING = {
    "apgd_ce": {"steps": 10},
    "fab_t": {"steps": 10, "targets": 2},
    "fmn": {"steps": 20},
    "pgd": {"early_stop": True},
    "square": {"queries": 60},
    "noise_linf": {"samples": 10},
}


def accuracy(x_adv):
    """Returns the accuracy of the target network."""
    assert np.min(x_adv) >= 0 and np.max(x_adv) <= 1
    return 1 - losses.misclassified(judge(x_adv), Y).numpy().mean()


def stopped_and_whole(attack, **how):
    """Returns the results with and without stopping."""
    logits = attacks.Logits(source, **how)

    @tf.function(autograph=False)
    def both():
        return attack(logits, X, Y), attack(logits.as_surrogate(), X, Y)

    stopped, whole = both()
    assert np.abs(whole - X).max() <= attack.epsilon + 1e-6
    return stopped, whole


@functools.cache
def left_by_pgd():
    """Measures the accuracy after a long attack without stopping."""
    return accuracy(tfsam.PGD(0.05, steps=40)(source, X, Y))


@pytest.mark.parametrize("name", STOPPING)
def test_the_whole_budget_is_spent_on_a_surrogate(name):
    attack = attacks.get(name, epsilon=0.05, **STOPPING[name])
    stopped, whole = stopped_and_whole(attack, rows=32)
    assert accuracy(whole) < accuracy(stopped) - 0.02
    if not attack.gradient_free:
        assert accuracy(whole) < left_by_pgd() + 0.15


def test_all_attempts_at_a_surrogate_are_made():
    """Includes the examples that an earlier attempt has broken."""
    attack = tfsam.PGD(0.03, targets=3, steps=5)
    stopped, whole = stopped_and_whole(attack)
    margins = [losses.margin(source(x), Y).numpy() for x in (stopped, whole)]
    assert (margins[1] >= margins[0] - 1e-5).all()
    assert accuracy(whole) <= accuracy(stopped)


@pytest.mark.slow
def test_targets_of_apgd_are_all_tried_on_a_surrogate():
    attack = attacks.get("apgd_t", epsilon=0.05, targets=3, steps=20)
    stopped, whole = stopped_and_whole(attack)
    assert accuracy(whole) < accuracy(stopped) - 0.02


@pytest.mark.slow
def test_all_stages_of_autoattack_are_tried_on_a_surrogate(monkeypatch):
    """On whole batches; above, each stage alone is tried in blocks."""
    stages = {
        stage: functools.partial(attacks.factory(stage), **STOPPING[stage])
        for stage in ("apgd_ce", "fab_t", "square")
    }
    monkeypatch.setattr("tfsam.attacks.autoattack.STAGES", stages)
    attack = attacks.get("autoattack", epsilon=0.05)
    stopped, whole = stopped_and_whole(attack)
    assert accuracy(whole) < accuracy(stopped) - 0.02


def test_early_stop_changes_nothing_in_a_transfer_attack():
    transfer = attacks.Logits(source).as_surrogate()
    whole = tfsam.PGD(0.05)(transfer, X, Y, 0)
    early = tfsam.PGD(0.05, early_stop=True)(transfer, X, Y, 0)
    np.testing.assert_array_equal(early, whole)
    np.testing.assert_array_equal(tfsam.PGD(0.05)(source, X, Y, 0), whole)
    stopped = tfsam.PGD(0.05, early_stop=True)(source, X, Y, 0)
    assert np.abs(stopped - whole).max() > 0.01


def eagerly(x):
    """Computes the surrogate's logits; cannot be traced."""
    assert np.isfinite(x.numpy()).all()
    return source(x)


@pytest.mark.parametrize(
    "surrogate", [source, pytest.param(eagerly, marks=pytest.mark.slow)]
)
def test_evaluate_attacks_a_surrogate_without_stopping(surrogate):
    listed = [
        "pgd",
        ("pgd", {"early_stop": True}),
        ("apgd_ce", {"steps": 10}),
        ("fmn", {"steps": 20}),
    ]
    found = tfsam.evaluate(
        judge, (X, Y), listed, "linf", [0.03, 0.05], surrogate=surrogate
    )
    pgd, early, apgd, fmn = np.reshape(
        [row["accuracy"] for row in found["robust"]], [4, 2]
    )
    np.testing.assert_array_equal(early, pgd)
    assert (apgd < pgd + 0.05).all() and (fmn < pgd + 0.15).all()
    stopped = attacks.get("fmn", epsilon=0.05, steps=20)(source, X, Y)
    assert fmn[1] < accuracy(stopped) - 0.05


def test_a_surrogate_that_cannot_be_traced_is_one():
    """Attacks call it as a plain function, but they may not stop early."""
    logits = attacks.Logits(eagerly)
    assert attacks.logits.is_surrogate(logits.as_surrogate().untraced())
    assert not attacks.logits.is_surrogate(logits.untraced())


def test_of_several_attempts_the_one_of_the_largest_margin_counts():
    transfer = attacks.Logits(source).as_surrogate()
    one, two, eight = (
        losses.margin(source(attack(transfer, X, Y, 0)), Y).numpy()
        for attack in (
            attacks.get("noise_linf", epsilon=0.1, samples=samples)
            for samples in (1, 2, 8)
        )
    )
    assert (two >= one).all() and (eight >= two).all()
    assert eight.mean() > one.mean() + 0.1
