"""Tests of the orders of targets, and of the attacks that take them."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam import attacks
from tfsam.attacks import losses
from tfsam.attacks import targeting
from tfsam.attacks.averaging import Averaged

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 5)).astype("float32") * [1, 8, 3, 0.2, 1]
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
X = RNG.uniform(0.3, 0.7, size=(12, 4, 4, 1)).astype("float32")


def linear(x):
    return tf.matmul(tf.reshape(x - 0.5, [-1, 16]), tf.cast(W, x.dtype))


Y = linear(X).numpy().argmax(axis=1)


def exact_distances(norm):
    """The distance to each class's boundary, infinite for the label."""
    z = linear(X).numpy()
    gaps = z[np.arange(12), Y][:, None] - z
    normals = W[:, Y].T[:, :, None] - W
    dual = np.linalg.norm(normals, DUAL[norm], axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(np.arange(5) == Y[:, None], np.inf, gaps / dual)


def ordered(norm, count, **options):
    found = targeting.by_distance(
        linear, tf.constant(X), Y, count, norm, logits=linear(X), **options
    )
    return found.numpy()


def traced(function):
    return tf.function(function, autograph=False)


def test_targets_by_logits_by_hand():
    logits = tf.constant([[4, 1, 2, 0], [1, 3, 2, 2.5]])
    found = targeting.by_logits(logits, np.array([0, 2]), 9)
    np.testing.assert_array_equal(found, [[2, 1, 3], [1, 3, 0]])


@pytest.mark.parametrize("norm", list(DUAL))
def test_the_score_of_a_linear_model_is_the_exact_distance(norm):
    choices = targeting.by_logits(linear(X), Y, 4)
    gradient = Averaged(linear, 1, None).gradient(losses.difference)
    x, active = tf.constant(X), tf.ones([12], tf.bool)
    scores = targeting._scores(gradient, x, Y, choices, norm, active, 2)
    expected = np.take_along_axis(exact_distances(norm), choices.numpy(), 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("norm", list(DUAL))
def test_the_nearest_class_comes_first(norm):
    nearest = np.argsort(exact_distances(norm), axis=1)
    for count in (1, 3, 9):
        np.testing.assert_array_equal(
            ordered(norm, count), nearest[:, : min(count, 4)]
        )
    likely = targeting.by_logits(linear(X), Y, 4).numpy()
    assert (likely != nearest[:, :4]).any()
    # The classes are the same, in another order.
    np.testing.assert_array_equal(np.sort(likely), np.sort(nearest[:, :4]))


def test_candidates_are_the_most_likely_classes():
    likely = targeting.by_logits(linear(X), Y, 4).numpy()
    np.testing.assert_array_equal(
        ordered("linf", 9, candidates=1), likely[:, :1]
    )
    two = ordered("linf", 9, candidates=2)
    np.testing.assert_array_equal(np.sort(two), np.sort(likely[:, :2]))


def test_smoothed_labels():
    smooth = 0.9 * np.eye(5, dtype="float32")[Y] + 0.02
    found = targeting.by_distance(
        linear, tf.constant(X), smooth, 4, "linf", logits=linear(X)
    )
    np.testing.assert_array_equal(found, ordered("linf", 4))


def test_a_class_without_a_gradient_comes_last():
    """Class 1 moves with the label, and class 2 has NaN for its gradient."""

    def logits_fn(x):
        root = tf.sqrt(0 * x)
        return tf.concat([x, x - 0.1, x - 0.2 + root, 0.5 - x], axis=1)

    x, y = tf.constant([[1.0]]), tf.constant([0])
    logits = tf.constant([[1.0, 0.9, 0.8, -0.5]])
    found = targeting.by_distance(logits_fn, x, y, 3, "l2", logits=logits)
    np.testing.assert_array_equal(found, [[3, 1, 2]])


def test_the_draws_of_a_random_network_are_averaged():
    """Draws with scores for either class; their mean is for class 1."""
    scales = iter([(9.0, 1.0), (1.0, 4.0)] * 9)

    def logits_fn(x):
        one, two = next(scales)
        return tf.concat([0 * x, one * x - 1, two * x - 1], axis=1)

    found = targeting.by_distance(
        logits_fn,
        tf.constant([[0.0]]),
        tf.constant([0]),
        2,
        "l2",
        logits=tf.constant([[0.0, -1.0, -0.9]]),
        eot=2,
        seeds=tf.zeros([1, 2], tf.int32),
    )
    np.testing.assert_array_equal(found, [[1, 2]])


@pytest.mark.parametrize("how", [{"rows": 5}, slow({"jit_loops": True})])
def test_only_active_examples_are_computed(how):
    active = np.arange(12) % 3 > 0
    logits_fn = attacks.Logits(linear, **how)
    logits_fn.count_passes()
    only = logits_fn.only(tf.constant(active))

    @traced
    def run(x):
        return targeting.by_distance(
            only, x, Y, 4, "l2", logits=linear(x), active=only.active
        )

    found = run(tf.constant(X)).numpy()
    np.testing.assert_array_equal(found[active], ordered("l2", 4)[active])
    np.testing.assert_array_equal(logits_fn.passes, [0, 4 * active.sum()])


def apart(x):
    """Class 1 is likely and far away along a pixel, class 2 is near."""
    first, rest = x[:, :1], tf.reduce_mean(x[:, 1:], axis=1, keepdims=True)
    return tf.concat([0 * first, 0.1 * first - 0.1, 10 * rest - 0.5], axis=1)


@pytest.mark.parametrize(
    # The tests of MALT have APGD.
    "name",
    ["fab_t", "pgd_t", *map(slow, ("apgd_t", "fmn", "pgd_t:loss=dlr"))],
)
def test_an_attack_with_one_target_needs_the_near_one(name):
    """Class 2 is 0.05 away in l-inf, class 1 is 1 away."""
    x, y = np.zeros([3, 17], "float32"), np.zeros(3, "int64")
    broken = {}
    for order in targeting.ORDERS:
        attack = attacks.get(
            name,
            epsilon=0.06,
            steps=20,
            targets=1,
            target_order=order,
            bounds=None,
        )
        x_adv = traced(lambda x, a=attack: a(apart, x, y, 0))(x)
        broken[order] = np.argmax(apart(x_adv), axis=1).tolist()
    assert broken == {"logits": [0] * 3, "distance": [2] * 3}


@pytest.mark.parametrize("name", ["apgd_t", "fab_t", "fmn", "pgd_t"])
def test_an_unknown_order_is_rejected(name):
    with pytest.raises(ValueError, match=r"Received: target_order=size$"):
        attacks.get(name, epsilon=0.1, target_order="size")


def test_the_cost_counts_the_gradients_of_the_candidates():
    plain = tfsam.PGD(0.1, steps=3, targets=2, target_order="logits")
    assert plain.gradients == 6
    options = plain.get_config() | {"target_order": "distance"}
    assert tfsam.PGD(**options).gradients == 6 + targeting.CANDIDATES
    untargeted = options | {"targets": 0}
    assert tfsam.PGD(**untargeted).gradients == 3


@pytest.mark.parametrize("norm", [slow("linf"), "l2"])
def test_fmn_finds_the_nearest_boundary_of_all_targets(norm):
    expected = exact_distances(norm).min(axis=1)
    epsilon = float(np.median(expected))
    attack = attacks.FMN(epsilon, norm, bounds=None, targets=9)
    logits_fn = attacks.Logits(linear, rows=7)
    logits_fn.count_passes()
    # Of an unknown size, a batch has no copies: one target after the other.
    run = tf.function(
        lambda x: (
            attack.closest(logits_fn, x, Y, None),
            attack(logits_fn, x, Y, 0),
        ),
        input_signature=[tf.TensorSpec([None, 4, 4, 1])],
        autograph=False,
    )
    closest, x_adv = (found.numpy() for found in run(tf.constant(X)))
    # A pass for the targets, then 100 steps for each of the four; twice.
    np.testing.assert_array_equal(logits_fn.passes, [24, 2 * 4 * 100 * 12])
    assert (linear(closest).numpy().argmax(axis=1) != Y).all()
    order = np.inf if norm == "linf" else 2
    found = np.linalg.norm((closest - X).reshape(12, -1), order, axis=1)
    np.testing.assert_allclose(found, expected, rtol=0.01)
    within = found <= epsilon
    assert 0 < within.sum() < 12
    np.testing.assert_array_equal(x_adv[within], closest[within])
    np.testing.assert_array_equal(x_adv[~within], X[~within])


@pytest.mark.slow
def test_fmn_keeps_the_nearest_in_any_order_of_targets():
    x, y = np.zeros([2, 17], "float32"), np.zeros(2, "int64")
    for order in targeting.ORDERS:
        attack = attacks.FMN(
            0.1, bounds=None, targets=2, target_order=order, steps=50
        )
        run = traced(lambda x, a=attack: a.closest(apart, x, y, None))
        closest = run(tf.constant(x))
        np.testing.assert_allclose(np.abs(closest).max(axis=1), 0.05, rtol=0.01)


def test_fmn_with_targets_does_not_attack_the_misclassified():
    wrong = (Y + 1) % 5
    logits_fn = attacks.Logits(linear, rows=4)
    logits_fn.count_passes()
    attack = attacks.FMN(0.1, steps=5, targets=2)
    np.testing.assert_array_equal(attack(logits_fn, X, wrong, 0), X)
    np.testing.assert_array_equal(logits_fn.passes, [12, 0])


def test_fmn_with_targets_measures_all_epsilons_in_one_run():
    distances = exact_distances("l2").min(axis=1)
    epsilons = np.quantile(distances, [0.3, 0.7]).tolist()
    rows = tfsam.evaluate(
        linear,
        (X, Y),
        ["fmn:targets=4:target_order=distance"],
        "l2",
        epsilons,
        bounds=None,
        strict=True,
    )["robust"]
    for row, epsilon in zip(rows, epsilons, strict=True):
        # At the quantiles themselves no example lies.
        assert row["accuracy"] == np.mean(distances > epsilon)
    assert [row["attacked"] for row in rows] == [12, 0]
