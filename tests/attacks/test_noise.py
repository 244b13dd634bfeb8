"""Tests of the noise baselines: sizes, distributions and draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam import attacks
from tfsam.attacks import noise
from tfsam.attacks.check import check

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.3, 0.7, size=(40, 4, 4, 1)).astype("float32")
BOTH = [noise.NoiseLinf, noise.NoiseL2]
EPSILON = {"linf": 0.15, "l2": 0.4}


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), tf.cast(W, x.dtype))


Y = np.argmax(linear(X), axis=1)


def norms(delta, norm):
    order = np.inf if norm == "linf" else 2
    flat = np.reshape(delta, (len(delta), -1)).astype("float64")
    return np.linalg.norm(flat, order, axis=1)


def wrong(x_adv):
    return np.argmax(linear(x_adv), axis=1) != Y


@pytest.mark.parametrize(
    ("attack", "samples"),
    [(noise.NoiseL2, 2), slow(noise.NoiseLinf, 3)],
)
def test_keeps_the_contract(attack, samples):
    check(attack, samples=samples)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", BOTH)
def test_the_size_is_the_budget(attack, norm):
    moved = attack(EPSILON[norm], norm, bounds=None)(linear, X, Y, 1) - X
    sizes = norms(moved, norm)
    if attack is noise.NoiseLinf and norm == "linf":
        # The largest of 16 uniform numbers.
        assert (sizes <= EPSILON[norm] + 1e-6).all()
        assert sizes.mean() == pytest.approx(EPSILON[norm] * 16 / 17, rel=0.03)
    else:
        np.testing.assert_allclose(sizes, EPSILON[norm], rtol=1e-5)


def test_the_laws():
    """Each pixel is uniform in the cube, or Gaussian over the noise's size."""
    x = np.full((2000, 4, 4, 1), 0.5, "float32")
    y = np.argmax(linear(x), axis=1)

    def pixels(attack, norm):
        attack = attack(1.0, norm, samples=1, bounds=None)
        return (attack(linear, x, y, 1) - x).numpy().ravel()

    uniform = pixels(noise.NoiseLinf, "linf")
    assert np.abs(uniform.mean()) < 0.01
    assert uniform.var() == pytest.approx(1 / 3, rel=0.02)
    kurtosis = {}
    for attack in BOTH:
        scaled = pixels(attack, "l2")
        assert scaled.var() == pytest.approx(1 / 16, rel=0.02)
        kurtosis[attack] = (scaled**4).mean() / scaled.var() ** 2
    # 3 d / (d + 2) on the sphere; a cube's direction is flatter.
    assert kurtosis[noise.NoiseL2] == pytest.approx(3 * 16 / 18, rel=0.03)
    assert kurtosis[noise.NoiseLinf] < 2.2
    np.testing.assert_allclose(
        np.abs(pixels(noise.NoiseL2, "linf").reshape(2000, 16)).max(1),
        1,
        rtol=1e-6,
    )


@pytest.mark.parametrize("attack", BOTH)
def test_each_draw_is_tried_on_those_that_stood_before(attack):
    make = {n: attack(0.2, "linf", samples=n) for n in (1, 3, 10)}
    broken = {n: wrong(make[n](linear, X, Y, 1)) for n in make}
    assert (broken[3] | ~broken[1]).all() and (broken[10] | ~broken[3]).all()
    assert 0 < broken[1].sum() < broken[10].sum() < 40
    first = make[1](linear, X, Y, 1).numpy()
    kept = make[10](linear, X, Y, 1).numpy()
    # Draw 0 equals the attack with a single sample.
    np.testing.assert_array_equal(kept[broken[1]], first[broken[1]])
    assert (norms(kept - first, "linf")[~broken[1]] > 0).all()
    logits = attacks.Logits(linear, rows=8)
    logits.count_passes()
    make[10](logits, X, Y, 1)
    stood = 40 - broken[1].sum()
    assert 40 + stood < logits.passes[0] < 400 and logits.passes[1] == 0


@pytest.mark.parametrize("attack", BOTH)
def test_an_example_s_noise_is_its_own(attack):
    rows = np.array([[5, i] for i in range(40)], "int32")
    whole = attack(0.2)(linear, X, Y, rows).numpy()
    order = [7, 3]
    part = attack(0.2)(linear, X[order], Y[order], rows[order]).numpy()
    np.testing.assert_array_equal(part, whole[order])
    other = attack(0.2)(linear, X, Y, rows + 1).numpy()
    assert (norms(other - whole, "linf") > 0).all()


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (noise.NoiseLinf, "linf"),
        (noise.NoiseL2, "l2"),
        slow(noise.NoiseLinf, "l2"),
        slow(noise.NoiseL2, "linf"),
    ],
)
def test_evaluates_below_a_gradient_attack(attack, norm):
    noisy, pgd = tfsam.evaluate(
        linear, (X, Y), [attack, "pgd"], norm, [EPSILON[norm]], strict=True
    )["robust"]
    assert 1 > noisy["accuracy"] > pgd["accuracy"]
    assert noisy["max_perturbation"] <= EPSILON[norm] * (1 + 1e-5)


def test_masked_gradients_show():
    """A step function has no gradient; noise crosses its steps."""

    def stairs(x):
        flat = tf.round(linear(x) * 4) / 4
        return flat + 0 * linear(x)

    y = np.argmax(stairs(X), axis=1)
    for norm, epsilon in EPSILON.items():
        noisy, fgsm = tfsam.evaluate(
            stairs, (X, y), [noise.NoiseL2, "fgsm"], norm, [epsilon]
        )["robust"]
        assert noisy["accuracy"] < fgsm["accuracy"] == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("attack", BOTH)
def test_dtypes_and_epsilons_that_are_tensors(attack, dtype):
    x = tf.cast(X, dtype)
    x_adv = attack(0.1, "l2")(linear, x, Y, 1)
    assert x_adv.dtype == dtype
    assert norms(x_adv - x, "l2").max() > 0.09
    epsilon = tf.constant(0.1, dtype)
    again = attack(0.3, "l2").with_epsilon(epsilon)(linear, x, Y, 1)
    np.testing.assert_allclose(again, x_adv, atol=1e-3)
    np.testing.assert_array_equal(attack(0.0)(linear, x, Y, 1), x)


@pytest.mark.parametrize("attack", BOTH)
def test_config_round_trip(attack):
    attack = attack(0.1, norm="l2", samples=4, bounds=(-1, 1))
    config = keras.saving.serialize_keras_object(attack)
    assert repr(keras.saving.deserialize_keras_object(config)) == repr(attack)
    with pytest.raises(ValueError, match="Received: samples=0"):
        type(attack)(0.1, samples=0)
    with pytest.raises(ValueError, match="Received: norm=l0"):
        type(attack)(0.1, norm="l0")
