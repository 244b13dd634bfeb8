"""Tests of the adapter for foolbox: attacks by name, within the budget."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks.check import check
from tfsam.attacks.logits import Logits

pytest.importorskip("foolbox")

from tfsam.attacks.adapters.foolbox import Foolbox

pytestmark = pytest.mark.needs("foolbox")

RNG = np.random.default_rng(0)
W = RNG.normal(size=(48, 2)).astype("float32")
X = RNG.uniform(0.3, 0.7, size=(50, 4, 4, 3)).astype("float32")
EPSILON = {"linf": 0.02, "l2": 0.12, "l1": 0.6}

# Name, norm, options.
EVERY = [
    ("LinfPGD", "linf", {"steps": 20, "rel_stepsize": 0.25}),
    ("L2PGD", "l2", {"steps": 20, "rel_stepsize": 0.25}),
    ("LinfFastGradientAttack", "linf", {}),
    ("LinfDeepFoolAttack", "linf", {"steps": 20}),
    ("L2DeepFoolAttack", "l2", {"steps": 20}),
    (
        "L2CarliniWagnerAttack",
        "l2",
        {"steps": 60, "binary_search_steps": 4, "stepsize": 0.02},
    ),
    ("DDNAttack", "l2", {"steps": 20}),
    ("LInfFMNAttack", "linf", {"steps": 20}),
    # Attacks that use only decisions.
    ("BoundaryAttack", "l2", {"steps": 30, "tensorboard": False}),
    ("L2RepeatedAdditiveGaussianNoiseAttack", "l2", {"repeats": 5}),
    # An attack that takes a distance, in both norms.
    ("LinearSearchBlendedUniformNoiseAttack", "linf", {"steps": 20}),
    ("LinearSearchBlendedUniformNoiseAttack", "l2", {"steps": 20}),
    ("SparseL1DescentAttack", "l1", {"steps": 20}),
]
# These are exact on a binary linear model.
GRADIENT_ATTACKS = EVERY[:7]


def linear(x):
    return tf.matmul(tf.reshape(x - 0.5, [-1, 48]), tf.cast(W, x.dtype))


Y = np.argmax(linear(X), axis=1)


def exact(epsilon, norm):
    """Returns the robust accuracy: all distances are known, all bounds far."""
    slope = np.linalg.norm(W[:, 0] - W[:, 1], 1 if norm == "linf" else 2)
    gap = np.abs(linear(X)[:, 0] - linear(X)[:, 1])
    return np.mean(gap > epsilon * slope)


def norms(delta, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    flat = np.reshape(delta, (len(delta), -1)).astype("float64")
    return np.linalg.norm(flat, order, axis=1)


def make(name, norm, options, epsilon=None):
    epsilon = EPSILON[norm] if epsilon is None else epsilon
    return Foolbox(epsilon, norm, name, **options)


# An attack of each kind: by gradients with a budget, for the smallest distance,
# by decisions alone, and with a distance to be given.
OF_EACH_KIND = [EVERY[i] for i in (0, 4, 5, 8, 10)]
# Fewer steps than it takes to find the smallest perturbations.
QUICK = {
    "L2CarliniWagnerAttack": {
        "steps": 10,
        "binary_search_steps": 2,
        "stepsize": 0.1,
    }
}


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [case if case in OF_EACH_KIND else slow(*case) for case in EVERY],
)
def test_keeps_the_contract(name, norm, options):
    options = QUICK.get(name, options)
    few = options | ({"steps": 3} if "steps" in options else {})

    def factory(epsilon, norm, bounds, **more):
        return Foolbox(epsilon, norm, name, bounds, **few, **more)

    check(factory)
    x_adv = make(name, norm, options)(linear, X, Y, 1).numpy()
    assert (norms(x_adv - X, norm) <= EPSILON[norm] * (1 + 1e-6) + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (norms(x_adv - X, norm) > 0).any()


# The gradient attacks of tfsam itself have the same test by default.
@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [GRADIENT_ATTACKS[0], *(slow(*case) for case in GRADIENT_ATTACKS[1:])],
)
def test_robust_accuracy_of_a_linear_model(name, norm, options):
    epsilons = [EPSILON[norm] / 2, EPSILON[norm]]
    rows = tfsam.evaluate(
        linear,
        (X, Y),
        [(Foolbox, {"attack": name, **options})],
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


def test_dtypes_labels_and_logits():
    attack = Foolbox(0.08, steps=10)
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
        np.testing.assert_array_equal(Foolbox(0.0)(linear, x, Y, 1), x)
    logits = Logits(linear)
    np.testing.assert_allclose(attack(logits, X, Y, 1), expected, atol=1e-6)
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    assert attack(network, X, Y, 1).shape == X.shape


def test_a_callable_in_numpy():
    """Decisions suffice for some attacks."""
    row = tfsam.evaluate(
        lambda x: np.asarray(x).reshape(-1, 48) @ W - W.sum(0) / 2,
        (X, Y),
        [(Foolbox, {"attack": "L2RepeatedAdditiveGaussianNoiseAttack"})],
        "l2",
        [1.0],
        strict=True,
    )["robust"][0]
    assert row["accuracy"] < 1


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-2.1, 0.3)])
def test_pixels_of_another_range(bounds):
    low, high = bounds
    x = (low + (high - low) * X).astype("float32")
    x[0] = high

    def logits_fn(x):
        return linear((x - low) / (high - low))

    attack = Foolbox(0.08 * (high - low), bounds=bounds, steps=10)
    x_adv = attack(logits_fn, x, Y, 1)
    assert low <= x_adv.numpy().min() and x_adv.numpy().max() <= x.max()
    wrong = np.mean(np.argmax(logits_fn(x_adv), axis=1) != Y)
    expected = Foolbox(0.08, steps=10)(linear, X, Y, 1)
    assert wrong == pytest.approx(
        np.mean(np.argmax(linear(expected), axis=1) != Y), abs=0.05
    )


def test_seeds_and_the_generators_of_others():
    attack = Foolbox(0.08, steps=0)

    def draws():
        return (
            random.random(),
            np.random.random(),
            float(tf.random.uniform([])),
        )

    first = attack(linear, X, Y, 1).numpy()
    assert (norms(first - X, "linf") > 0.04).all()
    np.testing.assert_array_equal(attack(linear, X, Y, 1), first)
    assert not np.array_equal(attack(linear, X, Y, 2), first)

    def seeded(between):
        keras.utils.set_random_seed(7)
        between()
        return draws()

    undisturbed = seeded(lambda: None)
    disturbed = seeded(lambda: attack(linear, X, Y, 1))
    # Python's and NumPy's generators continue unchanged. TensorFlow's continues
    # from its own state, reproducibly, and not from the attack's seed.
    assert disturbed[:2] == undisturbed[:2]
    assert disturbed == seeded(lambda: attack(linear, X, Y, 2))
    keras.utils.set_random_seed(8)
    attack(linear, X, Y, 1)
    assert draws()[2] != disturbed[2]


def test_runs_eagerly():
    attack = Foolbox(0.1)
    assert not attack.in_graph
    graph = tf.function(lambda x, y: attack(linear, x, y, 0), autograph=False)
    with pytest.raises(ValueError, match="runs eagerly"):
        graph(X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attack": "linfpgd2"},
            r"LinfPGD.*Received: attack=linfpgd2",
        ),
        ({"attack": "qqqq"}, r"Received: attack=qqqq"),
        (
            {"attack": "L2PGD"},
            "L2PGD is an attack in l2. Received: attack=L2PGD, norm=linf",
        ),
        (
            {"attack": "EADAttack", "norm": "l2"},
            "in l1. Received: attack=EADAttack, norm=l2",
        ),
        (
            {"attack": "SpatialAttack"},
            "no norm. Received: attack=SpatialAttack, norm=linf",
        ),
        ({"colour": 3}, "steps.*Received: colour=3"),
        ({"bounds": None}, "Received: bounds=None"),
        ({"norm": "l0"}, "Received: norm=l0"),
        ({"epsilon": -1}, "Received: epsilon=-1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Foolbox(**{"epsilon": 0.1, **arguments})


def test_what_foolbox_refuses_is_a_row_with_error():
    row = tfsam.evaluate(
        linear, (X, Y), [(Foolbox, {"attack": "DatasetAttack"})], "linf", [0.1]
    )["robust"][0]
    assert row["accuracy"] is None and "feed" in row["error"]


def test_saves_and_loads():
    attack = Foolbox(0.1, "l2", "L2PGD", (-1, 1), steps=7)
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(config)
    assert repr(again) == repr(attack) and again.options == {"steps": 7}
