"""Tests that NaN and infinity in gradients become zero, and are counted."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import attacks
from tfsam.attacks import losses
from tfsam.attacks.logits import input_gradient

RNG = np.random.default_rng(3)
W = RNG.normal(size=(16, 4)).astype("float32")
X = RNG.uniform(0.2, 0.8, (9, 4, 4, 1)).astype("float32")
X[::3, :2] = 0.0  # Where the square root below has no derivative.
Y = np.argmax(X.reshape(9, 16) @ W, axis=1)
AT_A_CORNER = np.arange(9) % 3 == 0

NETWORKS = {
    "eager": {},
    "blocks": {"rows": 4},
    "XLA": {"jit_compile": True},
    "blocks of XLA": {"jit_compile": True, "rows": 4},
    "loops of XLA": {"jit_compile": True, "jit_loops": True},
}


def plain(x):
    """Returns logits that are linear in the pixels."""
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


def rooted(x):
    """Returns the same logits; their gradient at a pixel of 0 is NaN."""
    return plain(tf.sqrt(tf.square(x)))


@pytest.mark.parametrize("traced", [slow(False), True])
@pytest.mark.parametrize("how", NETWORKS.values(), ids=list(NETWORKS))
def test_nonfinite_entries_are_zeros_and_counted_by_example(how, traced):
    logits = attacks.Logits(rooted, **how)
    logits.count_passes()
    gradient = input_gradient(logits)
    if traced:
        gradient = tf.function(gradient, autograph=False)
    # The first and the last example are at a corner.
    active = np.arange(9) != 6
    inputs = tf.constant(X), tf.constant(Y)
    found = gradient(*inputs, tf.constant(active))[0].numpy()[active]
    expected = input_gradient(plain)(*inputs)[0].numpy()
    expected = np.where(X == 0, 0, expected)[active]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert logits.nonfinite.numpy() == (AT_A_CORNER & active).sum() == 2
    gradient(*inputs, None)
    assert logits.nonfinite.numpy() == 2 + AT_A_CORNER.sum()
    np.testing.assert_array_equal(logits.passes, [0, 8 + 9])


def test_finite_gradients_keep_every_bit():
    x = X + 0.1
    x.flat[:5] *= 1e-30
    inputs = tf.constant(x), tf.constant(Y)
    logits = attacks.Logits(plain)
    logits.count_passes()
    with tf.GradientTape() as tape:
        tape.watch(inputs[0])
        margin = tf.reduce_sum(losses.margin(plain(inputs[0]), inputs[1]))
    expected = tape.gradient(margin, inputs[0])
    for logits_fn in (logits, plain):
        found = input_gradient(logits_fn, losses.margin)(*inputs)[0]
        np.testing.assert_array_equal(found, expected)
    assert logits.nonfinite.numpy() == 0


def test_an_infinite_gradient_is_a_zero_too():
    def steep(x):
        return plain(x) + tf.sqrt(x[:, :1, 0, 0]) * tf.constant([1.0, 0, 0, 0])

    found = input_gradient(steep)(tf.constant(X), tf.constant(Y))[0].numpy()
    assert np.isfinite(found).all()
    assert (found[AT_A_CORNER, 0, 0] == 0).all()
    assert (found[~AT_A_CORNER] != 0).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {}),
        ("pgd", {}),
        ("apgd_ce", {"steps": 10}),
        ("fab_t", {"steps": 5}),
        ("fmn", {"steps": 10}),
        ("square", {"queries": 50}),
        ("noise_linf", {}),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_go_on_where_some_pixels_have_no_derivative(
    name, options, norm
):
    """Results are finite, and break all examples that can be broken."""
    epsilon = {"linf": 0.3, "l2": 1.5}[norm]
    attack = attacks.get(name, epsilon=epsilon, norm=norm, **options)
    logits = attacks.Logits(rooted, rows=4)
    logits.count_passes()
    x_adv = attack(logits, X, Y, 0)
    assert np.isfinite(x_adv).all()
    broken = losses.misclassified(plain(x_adv), Y).numpy()
    assert broken[AT_A_CORNER].any()
    if attack.gradient_free:
        assert logits.nonfinite.numpy() == 0
        return
    assert logits.nonfinite.numpy() > 0
    assert broken[~AT_A_CORNER].mean() > 0.8


@pytest.mark.parametrize(
    "name",
    [
        "cleverhans_mim",
        pytest.param(
            "foolbox:LinfBasicIterativeAttack",
            marks=pytest.mark.needs("foolbox"),
        ),
        pytest.param("art", marks=[pytest.mark.needs("art"), pytest.mark.slow]),
    ],
)
def test_attacks_of_other_libraries_are_counted_too(name):
    """Tapes of other libraries get finite gradients through a `Logits`."""
    logits = attacks.Logits(rooted)
    logits.count_passes()
    attack = attacks.get(name, epsilon=0.3)
    x_adv = attack(logits, X, Y, 0)
    assert np.isfinite(x_adv).all()
    assert logits.nonfinite.numpy() > 0
    broken = losses.misclassified(plain(x_adv), Y).numpy()
    assert broken[~AT_A_CORNER].mean() > 0.8


def test_a_tape_of_somebody_elses_is_counted():
    logits = attacks.Logits(rooted)
    logits.count_passes()
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(logits(x)[:, 0])
    assert np.isfinite(tape.gradient(total, x)).all()
    assert logits.nonfinite.numpy() == AT_A_CORNER.sum()
