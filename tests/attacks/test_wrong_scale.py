"""Tests that attacks reject pixels and budgets of the wrong scale."""

import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import attacks

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(size=(5, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 5)
NATIVE = [
    "apgd_ce",
    "apgd_t",
    "autoattack",
    "fab_t",
    "fgsm",
    "fgsm_rs",
    "fmn",
    "noise_l2",
    "noise_linf",
    "pgd",
    "pgd_kl",
    "square",
]
OTHERS = [
    "cleverhans_fgm",
    "cleverhans_pgd",
    "cleverhans_mim",
    pytest.param("foolbox:LinfPGD", marks=pytest.mark.needs("foolbox")),
    pytest.param("art", marks=pytest.mark.needs("art")),
]


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


@pytest.mark.parametrize("name", NATIVE + OTHERS)
def test_pixels_outside_the_bounds_are_refused(name):
    """The attack would clip pixels in [0, 255], by up to 254."""
    attack = attacks.get(name, epsilon=8 / 255)
    nan = np.where(X == X.min(), np.nan, X).astype("float32")
    for x in (255 * X, X - 0.5, nan):
        with pytest.raises(ValueError, match=r"bounds=\(0.0, 1.0\).*Received"):
            attack(linear, x, Y)


@pytest.mark.parametrize("name", ["pgd", "square", "cleverhans_pgd"])
def test_pixels_outside_the_bounds_are_refused_in_a_graph(name):
    attack = attacks.get(name, epsilon=8 / 255)
    graph = tf.function(lambda x: attack(linear, x, Y), autograph=False)
    assert graph(tf.constant(X)).shape == X.shape
    with pytest.raises(tf.errors.InvalidArgumentError, match="bounds"):
        graph(tf.constant(255 * X))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rounding_beyond_the_bounds_is_clipped(dtype):
    x = X.astype(tf.as_dtype(dtype).as_numpy_dtype)
    unit = np.spacing(np.ones([], x.dtype))
    x[0, 0] = np.asarray(1, x.dtype) + 2 * unit
    attack = tfsam.PGD(0.1, steps=2)
    for call in (attack, tf.function(attack, autograph=False)):
        x_adv = np.asarray(call(linear, tf.constant(x), Y))
        assert x_adv.dtype == x.dtype
        assert x_adv.max() <= 1 and x_adv.min() >= 0


def test_other_bounds_and_none_take_what_they_say():
    assert tfsam.PGD(8.0, bounds=(0, 255))(linear, 255 * X, Y).shape == X.shape
    assert tfsam.PGD(8.0, bounds=None)(linear, 255 * X, Y).shape == X.shape


@pytest.mark.parametrize("name", NATIVE + OTHERS)
def test_an_epsilon_wider_than_the_bounds_is_refused(name):
    for epsilon, bounds in [(8, (0.0, 1.0)), (256, (0, 255))]:
        attack = attacks.get(name, epsilon=epsilon, bounds=bounds)
        with pytest.raises(ValueError, match="epsilon is in units of the pix"):
            attack(linear, X, Y)
