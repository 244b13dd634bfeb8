"""Tests of the native attacks, the contract of attacks, and the registry."""

import importlib.metadata

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import examples
from helpers import slow
from helpers import tolerance
from hypothesis import strategies as st

import tfsam
from tfsam import attacks
from tfsam.attacks import losses
from tfsam.attacks.logits import input_gradient

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.3, 0.7, size=(6, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 6)


def linear(x):
    """Returns logits that are linear in the pixels."""
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


def binary(x):
    """Returns logits m and -m; their worst case is known in both norms."""
    margin = tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W[:, :1], x.dtype))
    return tf.concat([margin, -margin], axis=1)


def norms(delta, norm):
    order = np.inf if norm == "linf" else 2
    return np.linalg.norm(np.reshape(delta, (len(delta), -1)), order, axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda norm: tfsam.FGSM(0.1, norm, bounds=None),
        lambda norm: tfsam.PGD(0.1, norm, 1, step_size=0.1, random_start=False),
        lambda norm: tfsam.PGD(0.1, norm, 40),
    ],
    ids=["fgsm", "one step", "forty steps"],
)
def test_the_exact_worst_case_of_a_linear_model(make, norm):
    """delta = -epsilon * y * sign(w), or w / ||w||, for a binary model."""
    x, y = X, (Y > 0).astype("int64")
    x_adv = make(norm)(binary, x, y, seed=0).numpy()
    w = W[:, 0].reshape(4, 4, 1)
    steepest = np.sign(w) if norm == "linf" else w / np.linalg.norm(w)
    sign = np.where(y == 0, -1, 1).reshape(-1, 1, 1, 1)
    # From a random start, l2 only approaches the point.
    np.testing.assert_allclose(x_adv, x + 0.1 * sign * steepest, atol=2e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("random_start", "step_size"),
    [(False, 0.1), (True, 0.125), ("normal", 0.125)],
)
def test_fgsm_is_one_full_step_of_pgd(norm, random_start, step_size):
    fgsm = tfsam.FGSM(0.1, norm, random_start=random_start)
    pgd = tfsam.PGD(0.1, norm, 1, step_size, random_start)
    np.testing.assert_array_equal(
        fgsm(linear, X, Y, seed=0), pgd(linear, X, Y, seed=0)
    )


def test_fgsm_takes_neither_steps_nor_a_start():
    options = {"epsilon", "norm", "step_size", "random_start", "bounds"}
    assert attacks.option_names(tfsam.FGSM) == options
    assert set(tfsam.FGSM(0.1).get_config()) == options
    with pytest.raises(TypeError, match="start"):
        tfsam.FGSM(0.1)(linear, X, Y, start=X)


def test_default_step_sizes_are_the_paper_s():
    for norm, divisor in (("linf", 4), ("l2", 8)):
        default = tfsam.PGD(0.1, norm, steps=1, random_start=False)
        given = tfsam.PGD(
            0.1, norm, steps=1, random_start=False, step_size=0.1 / divisor
        )
        np.testing.assert_array_equal(
            default(linear, X, Y, 0), given(linear, X, Y, 0)
        )


@hypothesis.settings(max_examples=max(examples(2), 25))
@hypothesis.given(
    epsilon=st.floats(0, 2),
    norm=st.sampled_from(["linf", "l2"]),
    steps=st.integers(0, 4),
    step_size=st.one_of(st.none(), st.floats(0, 3)),
    seed=st.integers(0, 9),
    bounds=st.sampled_from([(0.0, 1.0), None]),
)
def test_budget_and_bounds_hold(epsilon, norm, steps, step_size, seed, bounds):
    attack = tfsam.PGD(epsilon, norm, steps, step_size, bounds=bounds)
    if bounds and norm == "linf" and epsilon > 1 + 1e-6:
        with pytest.raises(ValueError, match="units of the pixels"):
            attack(linear, X, Y, seed)
        return
    x_adv = attack(linear, X, Y, seed).numpy()
    assert x_adv.dtype == X.dtype and x_adv.shape == X.shape
    assert (norms(x_adv - X, norm) <= epsilon * (1 + 1e-6) + 1e-6).all()
    if bounds:
        assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_epsilon_zero_changes_nothing(norm):
    np.testing.assert_array_equal(tfsam.PGD(0.0, norm)(linear, X, Y, 3), X)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_comes_back(dtype):
    x = tf.cast(X, dtype)
    x_adv = tfsam.PGD(0.1)(linear, x, Y, 0)
    assert x_adv.dtype == x.dtype
    assert np.abs(np.asarray(x_adv - x, "float64")).max() > 0.05


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"Received: x.dtype=uint8"):
        tfsam.PGD(0.1)(linear, (X * 255).astype("uint8"), Y, 0)


def test_one_hot_labels_are_labels():
    hard = tfsam.PGD(0.1)(linear, X, Y, 0)
    one_hot = keras.utils.to_categorical(Y, 3)
    soft = tfsam.PGD(0.1)(linear, X, one_hot, 0)
    np.testing.assert_allclose(hard, soft, atol=1e-6)
    column = tfsam.PGD(0.1)(linear, X, Y[:, None], 0)
    np.testing.assert_array_equal(hard, column)


def test_cross_entropy_by_hand():
    logits = tf.constant([[1.0, 2.0], [0.0, 0.0]])
    expected = [np.log1p(np.exp(-1.0)), np.log(2.0)]
    hard = losses.cross_entropy(logits, tf.constant([1, 0]))
    np.testing.assert_allclose(hard, expected, rtol=1e-6)
    soft = losses.cross_entropy(logits, tf.constant([[0.25, 0.75], [0.5, 0.5]]))
    mixed = 0.25 * (np.log1p(np.exp(-1.0)) + 1) + 0.75 * expected[0]
    np.testing.assert_allclose(soft, [mixed, np.log(2.0)], rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_example_s_attack_does_not_depend_on_its_batch(norm):
    attack = tfsam.PGD(0.2, norm, steps=2)
    rows = np.array([[5, i] for i in range(6)], "int32")
    whole = attack(linear, X, Y, rows).numpy()
    order = [4, 1]
    part = attack(linear, X[order], Y[order], rows[order]).numpy()
    np.testing.assert_allclose(part, whole[order], atol=1e-6)
    np.testing.assert_array_equal(attack(linear, X, Y, 5).numpy(), whole)


def test_seeds():
    attack = tfsam.PGD(0.2, steps=0)
    pair = tf.constant([1, 2])
    first = attack(linear, X, Y, pair).numpy()
    np.testing.assert_array_equal(first, attack(linear, X, Y, pair))
    np.testing.assert_array_equal(first[:3], attack(linear, X[:3], Y[:3], pair))
    assert (first != attack(linear, X, Y, tf.constant([1, 3])).numpy()).any()
    assert (first != attack(linear, X, Y, 2**40).numpy()).any()
    assert len({row.tobytes() for row in first - X}) == len(X)
    with pytest.raises(ValueError, match="Received: seed of shape"):
        attack(linear, X, Y, tf.constant([1, 2, 3]))


def test_graph_and_xla_gradient_agree_with_eager():
    attack = tfsam.PGD(0.2, "l2", steps=3)
    eager = attack(linear, X, Y, 0).numpy()
    for jit_compile in (False, True):
        logits = attacks.Logits(linear, jit_compile)
        traced = tf.function(
            lambda x, y, logits=logits: attack(logits, x, y, 0),
            autograph=False,
        )
        np.testing.assert_allclose(traced(X, Y), eager, atol=1e-6)


def test_the_network_is_traced_once_for_a_sweep():
    traces = []

    def function(x):
        traces.append(1)
        return linear(x)

    logits = attacks.Logits(function)
    for epsilon in (0.1, 0.2):
        attack = tfsam.PGD(epsilon, steps=2)
        tf.function(lambda x, a=attack: a(logits, x, Y, 0))(tf.constant(X))
    assert len(traces) == 1


def test_early_stop_leaves_no_more_accuracy():
    y = np.argmax(linear(X), axis=1)
    last = tfsam.PGD(0.12, steps=6)(linear, X, y, 0)
    stopped = tfsam.PGD(0.12, steps=6, early_stop=True)(linear, X, y, 0)
    wrong_last = np.argmax(linear(last), axis=1) != y
    wrong_stopped = np.argmax(linear(stopped), axis=1) != y
    assert wrong_stopped.any()
    assert (wrong_stopped | ~wrong_last).all()
    moved = norms((stopped - last).numpy(), "linf")
    assert (moved[~wrong_stopped] == 0).all()
    assert (moved[wrong_stopped] > 0).any()


def test_a_saturated_network_is_attacked_in_l2():
    """A gradient of 1e-30 still has a direction after normalisation."""
    x_adv = tfsam.PGD(0.5, "l2", random_start=False)(
        lambda x: 30.0 * binary(x), X, np.argmax(binary(X), axis=1), 0
    )
    moved = norms(x_adv - X, "l2")
    assert ((moved > 0.4) | (moved == 0)).all() and (moved > 0.4).any()


def test_logits_without_a_gradient_are_refused():
    def steps(x):
        return tf.cast(linear(x) > 0, tf.float32)

    with pytest.raises(ValueError, match="no gradient flows"):
        tfsam.PGD(0.1)(steps, X, Y, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfsam.PGD(-0.1), "Received: epsilon=-0.1"),
        (lambda: tfsam.PGD("8/255"), "Received: epsilon=8/255"),
        (lambda: tfsam.PGD(0.1, "l0"), "Received: norm=l0"),
        (lambda: tfsam.PGD(0.1, steps=-1), "Received: steps=-1"),
        (lambda: tfsam.PGD(0.1, steps=1.5), "Received: steps=1.5"),
        (lambda: tfsam.PGD(0.1, steps=True), "Received: steps=True"),
        (lambda: tfsam.PGD(0.1, steps=False), "Received: steps=False"),
        (lambda: tfsam.PGD(0.1, step_size=-1), "Received: step_size=-1"),
        (lambda: tfsam.PGD(0.1, bounds=(1, 0)), r"Received: bounds=\(1, 0\)"),
        (lambda: tfsam.FGSM(float("nan")), "Received: epsilon=nan"),
        (lambda: tfsam.FGSM(0.1, random_start="uniform"), "start=uniform"),
        (lambda: attacks.get("pdg", epsilon=0.1), "Received: attack=pdg"),
        (
            lambda: attacks.get("pgd", epsilon=0.1, stepsize=0.1),
            "step_size.*Received: stepsize=0.1",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_config_round_trip(name):
    attack = attacks.get(name, epsilon=0.1, norm="l2", bounds=(-1, 1))
    config = keras.saving.serialize_keras_object(attack)
    copy = keras.saving.deserialize_keras_object(config)
    assert repr(copy) == repr(attack)


class Plugin:
    """An attack of another package, which uses nothing of tfsam."""

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0), shift=1.0):
        self.shift = epsilon * shift

    def __call__(self, logits_fn, x, y, seed):
        return tf.clip_by_value(x + self.shift, 0.0, 1.0)


def install(monkeypatch, *points):
    installed = importlib.metadata.entry_points(group=attacks.GROUP)
    plugins = [
        importlib.metadata.EntryPoint(name, value, attacks.GROUP)
        for name, value in points
    ]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [*installed, *plugins],
    )


def test_plugins(monkeypatch):
    install(
        monkeypatch,
        ("shift", f"{__name__}:Plugin"),
        ("broken", "no_such_package:Attack"),
        ("pgd", f"{__name__}:Plugin"),
        ("twice", f"{__name__}:Plugin"),
        ("twice", "another_package:Plugin"),
    )
    assert {"shift", "broken", "pgd"} <= set(attacks.names())
    attack = attacks.get("shift", epsilon=0.1, shift=0.5)
    np.testing.assert_allclose(attack(linear, X, Y, 0), X + 0.05, atol=1e-6)
    with pytest.raises(ImportError, match="no_such_package"):
        attacks.get("broken", epsilon=0.1)
    for name in ("pgd", "twice"):
        with pytest.raises(ValueError, match=f"Received: name={name}"):
            attacks.get(name, epsilon=0.1)


def test_the_names_that_are_promised():
    assert {
        "fgsm",
        "pgd",
        *(f"cleverhans_{name}" for name in ("fgm", "pgd", "bim", "mim", "cw")),
    } <= set(attacks.names())


def quadratic(x):
    """Returns logits whose gradients depend on the pixels."""
    z = linear(x)
    return tf.concat([z, tf.square(z)], axis=1)


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_blocks_give_what_the_whole_batch_gives(jit_compile):
    x, y = tf.constant(np.tile(X, (4, 1, 1, 1))), tf.constant(np.tile(Y, 4))
    logits = attacks.Logits(quadratic, jit_compile, rows=7)
    active = np.arange(24) % 3 > 0
    logits.count_passes()

    @tf.function(autograph=False)
    def both(x, y, active):
        gradient = input_gradient(logits, losses.margin)
        return *gradient(x, y, active), logits.predict(x, active)

    plain = input_gradient(quadratic, losses.margin)(x, y)
    for found, whole in zip(
        both(x, y, active), (*plain, plain[1]), strict=True
    ):
        assert found.shape == whole.shape
        np.testing.assert_allclose(
            found,
            np.where(active.reshape(-1, *[1] * (whole.ndim - 1)), whole, 0),
            rtol=1e-5,
            atol=1e-6,
        )
    np.testing.assert_array_equal(logits.passes, [16, 16])
    # With no active example, in the same trace.
    for found in both(x, y, np.zeros(24, bool)):
        assert not np.any(found)
    np.testing.assert_array_equal(logits.passes, [16, 16])


def test_blocks_do_not_depend_on_neighbours():
    """Equal to the bit at the same place in a block, else up to rounding."""
    network = tfsam.networks.preact_resnet8(3, input_shape=(8, 8, 1))
    logits = attacks.Logits(lambda x: network(x, training=False), rows=8)
    x = RNG.random((30, 8, 8, 1), dtype="float32")
    y = RNG.integers(0, 3, 30)
    gradient = tf.function(input_gradient(logits), autograph=False)
    whole = [t.numpy() for t in gradient(x, y)]
    order = RNG.permutation(30)[:13]
    for found, expected in zip(
        gradient(x[order], y[order]), whole, strict=True
    ):
        np.testing.assert_allclose(
            found, expected[order], rtol=0, atol=tolerance()
        )
    kept = np.arange(30) % 3 == 0
    others = np.where(kept[:, None, None, None], x, x[::-1] / 2)
    for found, expected in zip(gradient(others, y), whole, strict=True):
        np.testing.assert_array_equal(found.numpy()[kept], expected[kept])
        assert not np.array_equal(found.numpy()[~kept], expected[~kept])


def test_inactive_examples_are_left_alone():
    logits = attacks.Logits(linear, rows=4)
    active = np.arange(6) % 2 == 0
    for attack in (
        tfsam.PGD(0.1),
        tfsam.PGD(0.1, restarts=3, early_stop=True),
        tfsam.FGSM(0.1, random_start=True),
    ):
        found = attack(logits.only(active), X, Y, 0).numpy()
        np.testing.assert_array_equal(found[~active], X[~active])
        assert (norms(found - X, "linf")[active] > 0).all()
        whole = attack(linear, X, Y, 0).numpy()
        np.testing.assert_allclose(found[active], whole[active], atol=1e-6)


def test_early_stop_is_any_broken_iterate():
    """Compares with the unrolled loop: PGD of 0, 1, 2, ... steps."""
    x = RNG.uniform(0.3, 0.7, size=(40, 4, 4, 1)).astype("float32")
    y = np.argmax(quadratic(x), axis=1)
    options = {"step_size": 0.02}
    any_broken = np.zeros(40, bool)
    for steps in range(7):
        x_adv = tfsam.PGD(0.06, steps=steps, **options)(quadratic, x, y, 3)
        any_broken |= np.argmax(quadratic(x_adv), axis=1) != y
    stopping = tfsam.PGD(0.06, steps=6, early_stop=True, **options)
    logits = attacks.Logits(quadratic, rows=8)
    logits.count_passes()
    x_adv = stopping(logits, x, y, 3)
    found = np.argmax(quadratic(x_adv), axis=1) != y
    np.testing.assert_array_equal(found, any_broken)
    assert 0 < found.sum() < 40
    assert 6 * (~found).sum() < logits.passes[1] < 6 * 40


def test_restarts_and_targets_leave_no_more_accuracy():
    x = RNG.uniform(0.3, 0.7, size=(60, 4, 4, 1)).astype("float32")
    y = np.argmax(quadratic(x), axis=1)

    def broken(seed=0, **options):
        attack = tfsam.PGD(0.07, steps=3, **options)
        return np.argmax(quadratic(attack(quadratic, x, y, seed)), axis=1) != y

    once, often = broken(), broken(restarts=5)
    assert (often | ~once).all() and often.sum() > once.sum()
    # Restart 0 is the attack without restarts.
    assert broken(targets=5).sum() >= broken(targets=1).sum()
    for loss in losses.LOSSES:
        assert broken(loss=loss, restarts=5).sum() >= once.sum() - 2


@pytest.mark.parametrize("loss", [slow(None), "margin"])
def test_a_loop_inside_xla_agrees(loss):
    options = {"loss": loss, "targets": 2} if loss else {}
    attack = tfsam.PGD(0.07, "l2", steps=5, early_stop=True, **options)
    plain = attack(attacks.Logits(quadratic), X, Y, 0)
    logits = attacks.Logits(quadratic, jit_compile=True, jit_loops=True)
    whole = tf.function(lambda x, y: attack(logits, x, y, 0), autograph=False)
    np.testing.assert_allclose(whole(X, Y), plain, atol=1e-6)


def test_losses_by_hand():
    logits = tf.constant([[4.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 2.5]])
    labels = np.array([0, 2])
    both = (tf.constant(labels), tf.constant([2, 3]))
    for found, expected in [
        (losses.margin(logits, labels), [-2, 1]),
        # / (first - third)
        (losses.dlr(logits, labels), [-2 / 3, 1 / 1]),
        (losses.difference(logits, both), [-2, 0.5]),
        # / (first - (third + fourth) / 2)
        (losses.targeted_dlr(logits, both), [-2 / 3.5, 0.5 / 1.5]),
        (
            losses.targeted_cross_entropy(logits, both),
            [
                2 - np.log(np.exp([4, 1, 2, 0]).sum()),
                2.5 - np.log(np.exp([1, 3, 2, 2.5]).sum()),
            ],
        ),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # With two and with three classes: the documented substitutes.
    np.testing.assert_allclose(
        losses.dlr(logits[:, :2], np.array([0, 1])), [-3, -2]
    )
    np.testing.assert_allclose(
        losses.targeted_dlr(
            logits[:, :3], (np.array([0, 1]), np.array([1, 2]))
        ),
        [-3, -1],
    )


def test_dlr_does_not_depend_on_the_scale():
    logits = tf.constant(RNG.normal(size=(5, 6)), tf.float64)
    labels = RNG.integers(0, 6, 5)
    both = (labels, (labels + 1) % 6)
    for loss, given in ((losses.dlr, labels), (losses.targeted_dlr, both)):
        np.testing.assert_allclose(
            loss(100 * logits - 3, given), loss(logits, given), rtol=1e-9
        )
