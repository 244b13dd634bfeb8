"""Tests of parts of another package, and of `tfsam.attacks.check`."""

import ctypes

import numpy as np
import pytest
import tensorflow as tf
from helpers import settings_of
from helpers import slow

import tfsam
from tfsam.attacks.check import check
from tfsam.attacks.check import contract

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.2, 0.8, size=(40, 4, 4, 1)).astype("float32")


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), W)


def test_it_is_found_by_name(other_package):
    assert "shift" in tfsam.attacks.names()
    attack = tfsam.attacks.get("shift", epsilon=0.1)
    y = tf.argmax(linear(X), axis=1)
    moved = attack(linear, tf.constant(X), y, 0) - X
    np.testing.assert_allclose(np.abs(moved), 0.1, atol=1e-6)
    assert type(attack).__module__ == "tfsam_shift"
    assert not isinstance(attack, tfsam.attacks.Attack)


def test_without_it_the_name_is_unknown():
    assert "coin" not in tfsam.weights.names()
    assert "shift" not in tfsam.attacks.names()
    with pytest.raises(ValueError, match="Received: attack=shift"):
        tfsam.attacks.get("shift", epsilon=0.1)


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_it_is_evaluated(other_package, norm):
    y = np.argmax(linear(X), axis=1)
    row = tfsam.evaluate(linear, (X, y), ["shift"], norm, [0.2], strict=True)[
        "robust"
    ][0]
    size = 0.2 if norm == "linf" else 0.2 / 4
    broken = [
        np.argmax(linear(X + sign * size), axis=1) != y for sign in (-1, 1)
    ]
    assert row["accuracy"] == 1 - np.mean(broken[0] | broken[1])
    assert row["accuracy"] < 1


def test_it_is_checked(other_package):
    tfsam.attacks.check("shift")


def test_it_is_on_the_command_line(other_package):
    assert settings_of("--attacks=shift,pgd").attacks == ("shift", "pgd")


# By default the example of `check` tests PGD, and the next test an adapter.
@pytest.mark.slow
@pytest.mark.parametrize("attack", ["fgsm", "cleverhans_pgd"])
def test_tfsam_s_own_attacks_pass(attack):
    check(attack)


def test_options_are_passed_and_one_norm_is_enough():
    check("cleverhans_cw", steps=2, search_steps=1)
    with pytest.raises(ValueError, match=r"l2 or l1 .*Received: attack=pgd"):
        check("pgd", steps=-1)


def cheat(change, in_graph=False):
    """Returns a factory of attacks that call `change`."""

    class Cheat:
        def __init__(self, epsilon, norm, bounds):
            self.epsilon, self.norm = epsilon, norm
            self.budget = epsilon if norm == "linf" else epsilon / 6

        def __call__(self, logits_fn, x, y, seed):
            return change(self, logits_fn, x, y, seed)

    Cheat.in_graph = in_graph
    return Cheat


def clipped(x):
    return tf.clip_by_value(x, 0.0, 1.0)


def ints_only(self, logits_fn, x, y, seed):
    tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits_fn(x))
    return x


def one_seed_only(self, logits_fn, x, y, seed):
    return x if isinstance(seed, int) else x[: seed[0, 0] * 0 + len(x)]


def global_generator(self, logits_fn, x, y, seed):
    return clipped(x + tf.random.uniform(x.shape, -1, 1) * self.budget)


def depends_on_eagerness(self, logits_fn, x, y, seed):
    return x if tf.executing_eagerly() else clipped(x + self.budget)


def eager_only(self, logits_fn, x, y, seed):
    return tf.constant(x.numpy())


def one_size_only(self, logits_fn, x, y, seed):
    return clipped(x + self.budget * np.ones(x.shape, "float32"))


@pytest.mark.parametrize(
    ("change", "in_graph", "message"),
    [
        (
            lambda self, f, x, y, seed: clipped(x + 1.01 * self.epsilon),
            False,
            "left its ball of radius 0.1 in linf. Received: a perturbation",
        ),
        (
            lambda self, f, x, y, seed: x + self.budget,
            False,
            "left the image range .* Received: pixels in",
        ),
        (
            lambda self, f, x, y, seed: x * np.nan,
            False,
            "finite pixels. Received: NaN",
        ),
        (
            lambda self, f, x, y, seed: tf.cast(x, tf.float64),
            False,
            "must return float32 of shape .* Received: float64",
        ),
        (
            lambda self, f, x, y, seed: x[:1],
            False,
            r"must return float32 of shape .* Received: .*\(1, 6, 6, 1\)",
        ),
        (
            lambda self, f, x, y, seed: None,
            False,
            "must return a tensor. Received: None",
        ),
        (
            lambda self, f, x, y, seed: clipped(x + 0.05),
            False,
            "with epsilon = 0, .*left its ball",
        ),
        (ints_only, False, "with one-hot labels, .* Received: "),
        (one_seed_only, False, r"with a seed of shape \(2,\), .* Received: "),
        (global_generator, False, "same seed again, .* Received: pixels that"),
        (depends_on_eagerness, True, "in a tf.function.*Received: pixels that"),
        (eager_only, True, "in a tf.function.*must not raise. Received: "),
        (one_size_only, True, "for any batch size, .*must.* Received: "),
    ],
)
def test_cheats_are_caught_and_named(change, in_graph, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(cheat(change, in_graph))
    assert "Cheat" in str(caught.value) and "in linf: " in str(caught.value)


def test_an_attack_that_modifies_its_batch():
    """Writes to the memory of a tensor, which TensorFlow protects."""

    def modify(self, logits_fn, x, y, seed):
        result = tf.identity(x) + 0
        memory = np.asarray(x)
        ctypes.memset(memory.ctypes.data, 0, memory.nbytes)
        return result

    with pytest.raises(ValueError, match="must not modify x and y"):
        check(cheat(modify))


def test_options_that_nobody_knows_must_be_refused():
    def factory(epsilon, norm, bounds, **options):
        return lambda logits_fn, x, y, seed: x

    with pytest.raises(ValueError, match="Received: no_such_option=1"):
        check(factory)


def test_a_norm_that_is_refused_is_left_out():
    norms = []

    def factory(epsilon, norm, bounds):
        if norm != "linf":
            raise ValueError(f"linf only. Received: norm={norm}")
        norms.append(norm)
        return lambda logits_fn, x, y, seed: x

    check(factory)
    assert set(norms) == {"linf"}


def test_l1_is_tested_where_an_attack_takes_it():
    """Attacks older than l1 in tfsam may treat any other norm as l2."""
    attacked = []

    class Idle:
        def __init__(self, epsilon, norm, bounds):
            self.norm = norm

        def __call__(self, logits_fn, x, y, seed):
            attacked.append(self.norm)
            return x

    check(Idle)
    assert set(attacked) == {"linf", "l2"}
    Idle.norms = ("linf", "l1")
    attacked.clear()
    check(Idle)
    assert set(attacked) == {"linf", "l1"}


def test_the_contract_measures():
    x = X[:2]
    found = x + np.array([0.01, 0.02], "float32").reshape(2, 1, 1, 1)
    assert contract(x, found, 0.02, "linf", (0, 1)) == pytest.approx(0.02, 1e-4)
    assert contract(x, found, 0.08, "l2", None) == pytest.approx(0.08, 1e-4)
    assert contract(x, x, 0.0, "l2", (0, 1)) == 0.0
    size = x[0].size
    found = x + np.array([0.01, 0.02], "float32").reshape(2, 1, 1, 1)
    assert contract(x, found, 0.02 * size, "l1", None) == pytest.approx(
        0.02 * size, 1e-4
    )
    with pytest.raises(ValueError, match=r"ball of radius .* in l1"):
        contract(x, found, 0.0199 * size, "l1", None)
