"""Tests of the adapter for ART: attacks by name, within the budget."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks.check import check
from tfsam.attacks.logits import Logits

pytest.importorskip("art")

from tfsam.attacks.adapters.art import ART

pytestmark = pytest.mark.needs("art")

RNG = np.random.default_rng(0)
W = RNG.normal(size=(48, 2)).astype("float32")
X = RNG.uniform(0.3, 0.7, size=(50, 4, 4, 3)).astype("float32")
EPSILON = {"linf": 0.02, "l2": 0.12}

# Name, options, norms, whether the attack is exact on a linear model.
EVERY = [
    ("ProjectedGradientDescent", {"max_iter": 20}, ("linf", "l2"), True),
    ("FastGradientMethod", {}, ("linf", "l2"), True),
    ("BasicIterativeMethod", {"max_iter": 20}, ("linf",), True),
    (
        "AutoProjectedGradientDescent",
        {"max_iter": 20, "nb_random_init": 1},
        ("linf", "l2"),
        True,
    ),
    ("SquareAttack", {"max_iter": 200, "p_init": 0.3}, ("linf",), False),
    ("DeepFool", {"max_iter": 20}, ("l2",), True),
    (
        "CarliniL2Method",
        {"max_iter": 10, "binary_search_steps": 2, "initial_const": 1.0},
        ("l2",),
        False,
    ),
    (
        "HopSkipJump",
        {"max_iter": 2, "max_eval": 100, "init_eval": 10},
        ("l2",),
        False,
    ),
]
# By default; the adapters of foolbox and cleverhans have attacks of all kinds.
KINDS = ("ProjectedGradientDescent",)
CASES = [(n, o, norm) for n, o, norms, _ in EVERY for norm in norms]
GRADIENT_ATTACKS = [
    (n, o, norm)
    for n, o, norms, finds_all in EVERY
    if finds_all
    for norm in norms
]


def linear(x):
    return tf.matmul(tf.reshape(x - 0.5, [-1, 48]), tf.cast(W, x.dtype))


Y = np.argmax(linear(X), axis=1)


def exact(epsilon, norm):
    """Returns the robust accuracy: all distances are known, all bounds far."""
    slope = np.linalg.norm(W[:, 0] - W[:, 1], 1 if norm == "linf" else 2)
    gap = np.abs(linear(X)[:, 0] - linear(X)[:, 1])
    return np.mean(gap > epsilon * slope)


def norms(delta, norm):
    order = np.inf if norm == "linf" else 2
    flat = np.reshape(delta, (len(delta), -1)).astype("float64")
    return np.linalg.norm(flat, order, axis=1)


def broken(x_adv):
    return np.argmax(linear(x_adv), axis=1) != Y


@pytest.mark.parametrize(
    ("name", "options", "norm"),
    [slow(*case) if case[0] == "HopSkipJump" else case for case in CASES],
)
def test_stays_inside_and_has_an_effect(name, options, norm):
    attack = ART(EPSILON[norm], norm, name, **options)
    x_adv = attack(linear, X, Y, 1)
    assert x_adv.dtype == X.dtype and x_adv.shape == X.shape
    sizes = norms(x_adv - X, norm)
    assert (sizes <= EPSILON[norm] * (1 + 1e-6) + 1e-6).all()
    assert 0 <= x_adv.numpy().min() and x_adv.numpy().max() <= 1
    assert broken(x_adv).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (n, o) if n in KINDS else slow(n, o)
        for n, o, _, _ in EVERY
        if n not in ("SquareAttack", "HopSkipJump")
    ],
)
def test_keeps_the_contract(name, options):
    few = options | ({"max_iter": 3} if "max_iter" in options else {})

    def factory(epsilon, norm, bounds, **more):
        return ART(epsilon, norm, name, bounds, **few, **more)

    check(factory)


# The gradient attacks of tfsam itself have the same test by default.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "norm"), GRADIENT_ATTACKS)
def test_robust_accuracy_of_a_linear_model(name, options, norm):
    epsilons = [EPSILON[norm] / 2, EPSILON[norm]]
    rows = tfsam.evaluate(
        linear,
        (X, Y),
        [(ART, {"attack": name, **options})],
        norm,
        epsilons,
        batch_size=50,
        strict=True,
    )["robust"]
    found = [row["accuracy"] for row in rows]
    truth = [exact(epsilon, norm) for epsilon in epsilons]
    assert 0 < truth[1] < truth[0] < 1
    assert np.greater_equal(found, truth).all()
    np.testing.assert_allclose(found, truth, atol=0.0601)


@pytest.mark.slow
def test_dtypes_labels_and_logits():
    attack = ART(0.08, max_iter=10)
    expected = attack(linear, X, Y, 1).numpy()
    one_hot = np.eye(2, dtype="float32")[Y]
    for labels in (
        one_hot,
        0.9 * one_hot + 0.1 / 2,
        Y[:, None],
        Y.astype("i4"),
    ):
        np.testing.assert_array_equal(attack(linear, X, labels, 1), expected)
    for dtype, slack in (("float16", 5e-4), ("float64", 1e-12)):
        x = tf.cast(X, dtype)
        x_adv = attack(linear, x, Y, 1)
        assert x_adv.dtype == dtype
        moved = tf.cast(x_adv, tf.float64) - tf.cast(x, tf.float64)
        assert norms(moved, "linf").max() <= 0.08 + slack
        # The rounding of a pixel can change a sign.
        assert np.mean(np.abs(x_adv - expected) > 2e-3) < 0.01
        np.testing.assert_array_equal(ART(0.0)(linear, x, Y, 1), x)
    logits = Logits(linear)
    np.testing.assert_allclose(attack(logits, X, Y, 1), expected, atol=1e-6)


def test_attacks_run_away_from_the_true_label():
    """Tests attacks that are targeted by default in ART."""
    boundary = ART(2.0, "l2", "BoundaryAttack", max_iter=5)
    assert broken(boundary(linear, X[:5], Y[:5], 1).numpy()[[0] * 50]).any()


def test_step_sizes_follow_epsilon():
    """With ART's default, 0.1, iterates would jump between corners."""
    steps = {}
    for name in ("ProjectedGradientDescent", "AutoProjectedGradientDescent"):
        for norm in EPSILON:
            attack = ART(0.4, norm, name)
            steps[name[:4], norm] = attack._defaults(X)["eps_step"]
    assert steps == {
        ("Proj", "linf"): 0.1,
        ("Proj", "l2"): 0.05,
        ("Auto", "linf"): 0.8,
        ("Auto", "l2"): 0.8,
    }
    one = ART(0.4, max_iter=1, eps_step=0.02)(linear, X, Y, 1)
    assert norms(one - X, "linf").max() == pytest.approx(0.02, rel=1e-3)


def test_seeds_and_the_generators_of_others():
    attack = ART(0.02, attack="SquareAttack", max_iter=3, p_init=0.3)
    first = attack(linear, X, Y, 1).numpy()
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    np.testing.assert_array_equal(attack(linear, X, Y, 1), first)
    assert not np.array_equal(attack(linear, X, Y, 2), first)
    assert random.getstate() == state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_runs_eagerly():
    attack = ART(0.1)
    assert not attack.in_graph
    graph = tf.function(lambda x, y: attack(linear, x, y, 0), autograph=False)
    with pytest.raises(ValueError, match="runs eagerly"):
        graph(X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attack": "SquareAtack"},
            r"SquareAttack.*Received: attack=SquareAtack",
        ),
        ({"colour": 3}, "max_iter.*Received: colour=3"),
        ({"targeted": True}, "max_iter.*Received: targeted=True"),
        (
            {"attack": "DeepFool"},
            "DeepFool is an attack in l2. Received: attack=DeepFool, norm=linf",
        ),
        (
            {"attack": "BasicIterativeMethod", "norm": "l2"},
            "in linf. Received: attack=BasicIterativeMethod, norm=l2",
        ),
        ({"attack": "PixelAttack"}, "in l0. Received: attack=PixelAttack"),
        ({"bounds": None}, "Received: bounds=None"),
        ({"norm": "l1"}, "Received: norm=l1"),
        ({"attack": "ProjectedGradientDescentPyTorch"}, "Received: attack="),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ART(**{"epsilon": 0.1, **arguments})


def test_what_art_refuses_is_a_row_with_error():
    row = tfsam.evaluate(
        linear, (X, Y), [(ART, {"attack": "DecisionTreeAttack"})], "l2", [0.1]
    )["robust"][0]
    assert row["accuracy"] is None and "EstimatorError" in row["error"]


def test_saves_and_loads():
    attack = ART(0.1, "l2", "DeepFool", (-1, 1), max_iter=7)
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(config)
    assert repr(again) == repr(attack) and again.options == {"max_iter": 7}
