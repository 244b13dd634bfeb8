"""Tests of AutoAttack for random models, of AutoAttack+, and of its FAB."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import attacks
from tfsam.attacks.logits import Logits

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 4)).astype("float32")
X = RNG.uniform(0.4, 0.6, size=(5, 6)).astype("float32")


def linear(x):
    return tf.matmul(x - 0.5, tf.cast(W, x.dtype))


Y = np.argmax(linear(X), axis=1)


def options(attack):
    names = ("steps", "restarts", "loss", "targets", "eot", "queries")
    return {
        name: value
        for name, value in attack.get_config().items()
        if name in names
    }


def test_the_version_for_random_models_is_the_authors():
    attack = attacks.get("autoattack_rand", epsilon=0.1, norm="l2")
    names, stages = zip(*attack.stages, strict=True)
    assert names == ("apgd_ce", "apgd_dlr")
    common = {"steps": 100, "restarts": 1, "targets": 0, "eot": 20}
    assert options(stages[0]) == common | {"loss": "cross_entropy"}
    assert options(stages[1]) == common | {"loss": "dlr"}
    assert {(s.epsilon, s.norm) for s in stages} == {(0.1, "l2")}
    assert (attack.version, attack.eot) == ("rand", 20)


def test_the_larger_version_is_the_authors():
    attack = attacks.get("autoattack_plus", epsilon=0.1, norm="l2")
    made = {name: options(stage) for name, stage in attack.stages}
    untargeted = {"steps": 100, "restarts": 5, "targets": 0, "eot": 1}
    expected = {
        "apgd_ce": untargeted | {"loss": "cross_entropy"},
        "apgd_dlr": untargeted | {"loss": "dlr"},
        "fab": {"steps": 100, "restarts": 5},
        "square": {"queries": 5000},
        "apgd_t": {
            **{"steps": 100, "restarts": 1, "targets": 9, "eot": 1},
            "loss": "dlr",
        },
        "fab_t": {"steps": 100, "targets": 9},
    }
    assert list(made) == list(expected)
    assert made == expected
    assert {(s.epsilon, s.norm) for _, s in attack.stages} == {(0.1, "l2")}
    assert attack.version == "plus"


@pytest.mark.parametrize("name", ["autoattack_rand", "autoattack_plus"])
def test_they_have_no_options(name):
    with pytest.raises(ValueError, match="Received: steps=10"):
        attacks.get(name, epsilon=0.1, steps=10)


def distances(norm):
    """Computes the distance of the nearest boundary within the unit box."""
    found = []
    for x, y in zip(X, Y, strict=True):
        each = []
        for other in set(range(4)) - {y}:
            w = W[:, other] - W[:, y]
            value = w @ (x - 0.5)
            if norm == "linf":
                each.append(-value / np.abs(w).sum())
            else:
                each.append(-value / np.linalg.norm(w))
        found.append(min(each))
    return np.array(found)


@pytest.mark.parametrize("norm", [slow("linf"), "l2"])
def test_fab_finds_the_nearest_boundary_of_a_linear_network(norm):
    """With the exact projection, the first step already crosses it."""
    attack = attacks.get(
        "fab", epsilon=1.0, norm=norm, steps=20, restarts=2, eta=1.01
    )
    seeds = tf.constant([[0, index] for index in range(5)])
    graph = tf.function(
        lambda x, y: attack.closest(linear, x, y, seeds), autograph=False
    )
    moved = graph(tf.constant(X), tf.constant(Y)).numpy() - X
    order = np.inf if norm == "linf" else 2
    lengths = np.linalg.norm(moved, order, axis=1)
    exact = distances(norm)
    assert (lengths >= exact).all()
    np.testing.assert_allclose(lengths, exact, rtol=0.02)
    assert (np.argmax(linear(X + moved), axis=1) != Y).all()


def test_a_class_without_gradient_is_no_nearest_class():
    """The third logit is constant, so that no step leads to it."""

    def network(x):
        return tf.concat([4 * x, tf.fill([len(x), 1], 1.9)], axis=1)

    x = tf.constant([[0.6, 0.4]])
    attack = attacks.get("fab", epsilon=0.3, steps=3)
    x_adv = attack(network, x, tf.constant([0]), 0).numpy()
    assert 0.1 <= np.abs(x_adv - x).max() <= 0.12


def test_restarts_begin_at_half_of_epsilon_and_attack_survivors():
    """A step needs two gradients with three classes, and two predictions."""
    attack = attacks.get("fab", epsilon=0.5, norm="l2", steps=1, restarts=4)
    x, seeds = tf.constant(X), tf.constant([[7, i] for i in range(5)])
    units = attack._directions(x, seeds)
    near = tf.constant([np.inf, np.inf, np.inf, 0.2, 0.2], tf.float32)
    starts = [attack._start(x, near, unit) - x for unit in tf.unstack(units)]
    lengths = [np.linalg.norm(start, axis=1) for start in starts]
    np.testing.assert_array_equal(lengths[0], np.zeros(5))
    for length in lengths[1:]:
        np.testing.assert_allclose(length, [0.25] * 3 + [0.1] * 2, rtol=1e-5)
    assert len(np.unique(np.round(np.concatenate(starts[1:]), 6), axis=0)) == 15


def test_a_step_of_fab_costs_a_gradient_for_every_other_class():
    logits = Logits(linear)
    logits.count_passes()
    attack = attacks.get("fab", epsilon=0.0, steps=3, restarts=2)
    attack(logits, X, Y, 0)
    forward, gradient = logits.counted().passes
    # A prediction at x, then one in each step.
    assert (forward, gradient) == (5 * (1 + 6), 5 * 6 * 3)
