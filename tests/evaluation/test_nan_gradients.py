"""Gradients that are NaN are not taken for robustness."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import OwnTape
from helpers import OwnTapeInGraph

import tfsam
from tfsam.evaluation import model_probes

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 3)).astype("float32")
X = RNG.uniform(0.1, 0.9, size=(16, 4, 4, 1)).astype("float32")


def plain(x):
    return tf.matmul(tf.reshape(x, [-1, 16]), W)


def rooted(x):
    """The same logits for pixels >= 0; the gradient at pixel 0 is NaN."""
    return plain(tf.sqrt(tf.square(x)))


def branching(x):
    """The same logits, by a branch that cannot be traced."""
    return rooted(x) if float(tf.reduce_max(x)) <= 1 else plain(x)


def with_black(x):
    """Every second image has a black pixel."""
    x = x.copy()
    x[::2, 0, 0] = 0
    return x


def evaluate(model, x, attacks=(), epsilons=(0.05,), **options):
    y = np.argmax(plain(x), axis=1)
    return tfsam.evaluate(model, (x, y), attacks, "linf", epsilons, **options)


def nan_messages(result):
    return [
        warning["message"]
        for warning in result["warnings"]
        if warning["warning"] == "nan_gradients"
    ]


class InGraphZeroed(OwnTapeInGraph):
    """Replaces NaN by zero."""

    def slope(self, gradient):
        return tf.where(tf.math.is_nan(gradient), 0.0, gradient)


class Passing(OwnTapeInGraph):
    """Returns NaN."""

    def __call__(self, logits_fn, x, y, seed):
        return x * np.nan


ATTACKS = {
    "pgd": ("pgd", {"steps": 2}),
    "an own tape": OwnTape,
    "an own tape in a graph": InGraphZeroed,
}
SLOW_ATTACKS = {
    "fab_t": ("fab_t", {"steps": 2}),
    "fmn": ("fmn", {"steps": 2}),
    "apgd_t": ("apgd_t", {"steps": 2}),
    "cleverhans": ("cleverhans_pgd", {"steps": 2}),
    "foolbox": ("foolbox:LinfPGD", {"steps": 2}),
    "art": ("art:ProjectedGradientDescent", {"max_iter": 2}),
}


@pytest.mark.parametrize(
    "attack",
    [
        *ATTACKS.values(),
        *(
            pytest.param(a, marks=pytest.mark.slow)
            for a in SLOW_ATTACKS.values()
        ),
    ],
    ids=[*ATTACKS, *SLOW_ATTACKS],
)
@pytest.mark.parametrize(
    "model", [rooted, pytest.param(branching, marks=pytest.mark.slow)]
)
def test_a_row_says_that_it_means_nothing(model, attack):
    result = evaluate(model, with_black(X), [attack])
    (row,) = result["robust"]
    assert "error" not in row
    assert row["nan_gradients"] > 0
    probe, of_row = nan_messages(result)
    assert probe.startswith("8 of 16 images have an input gradient that is NaN")
    assert "linf 0.05" in of_row and "means nothing" in of_row
    assert "Likely cause: a square root" in of_row
    assert "(NaN gradients) |" in tfsam.reports.table(result)


@pytest.mark.slow
def test_finite_gradients_raise_no_alarm():
    attacks = [*ATTACKS.values(), *SLOW_ATTACKS.values()]
    result = evaluate(plain, with_black(X), attacks)
    assert [row["nan_gradients"] for row in result["robust"]] == [0] * 9
    assert not nan_messages(result)
    assert "NaN" not in tfsam.reports.table(result)


def test_nan_pixels_are_not_blamed_on_the_attack_alone():
    result = evaluate(rooted, with_black(X), [OwnTapeInGraph, Passing])
    for row in result["robust"]:
        assert "the network's input gradients are NaN" in row["error"]
        assert "must return finite pixels" in row["error"]
    assert nan_messages(result)
    (row,) = evaluate(plain, X, [Passing])["robust"]
    assert row["error"].startswith("ValueError: the attack must return finite")


@pytest.mark.slow
def test_every_epsilon_of_a_minimum_norm_attack_is_of_one_run():
    result = evaluate(rooted, with_black(X), [("fmn", {"steps": 2})], [0.05, 1])
    one, other = (row["nan_gradients"] for row in result["robust"])
    assert one == other > 0
    assert "fmn, linf 0.05, 1: up to" in nan_messages(result)[1]


def test_pixels_that_an_attack_pushes_to_the_bounds_are_looked_at():
    (message,) = nan_messages(evaluate(rooted, X, epsilons=[0.2]))
    assert "once pixels are pushed to their bounds" in message
    assert not nan_messages(evaluate(rooted, X, epsilons=[0.01]))
    assert not nan_messages(evaluate(rooted, X, epsilons=[0.2], bounds=None))
    pushed = model_probes.pushed_to_bounds(X, (0, 1), 0.2)
    np.testing.assert_array_equal(pushed[X <= 0.2], 0)
    np.testing.assert_array_equal(pushed[X >= 0.8], 1)
    between = (X > 0.2) & (X < 0.8)
    np.testing.assert_array_equal(pushed[between], X[between])


def test_the_gradients_of_a_transfer_attack_are_the_surrogate_s():
    x = with_black(X)
    assert not nan_messages(evaluate(rooted, x, surrogate=plain))
    assert nan_messages(evaluate(plain, x, surrogate=rooted))


def test_nan_is_not_taken_for_a_gradient_of_zero():
    black = np.zeros_like(X)
    black[:, 1:] = X[:, 1:]

    def flat_at_zero(x):
        return plain(x) * tf.sqrt(tf.reduce_sum(x[:, :1], (1, 2)))

    y = np.zeros(16, int)
    result = tfsam.evaluate(flat_at_zero, (black, y), [], epsilons=[0.05])
    assert [w["warning"] for w in result["warnings"]] == ["nan_gradients"]


@pytest.mark.slow
def test_a_resumed_evaluation_remembers(tmp_path):
    arguments = (rooted, with_black(X), [ATTACKS["pgd"]])
    first = evaluate(*arguments, workdir=tmp_path)
    again = evaluate(*arguments, workdir=tmp_path)
    assert nan_messages(again) == nan_messages(first)
    assert again["robust"] == first["robust"]


@pytest.mark.parametrize(
    "attack", [tfsam.PGD(0.05, steps=2), OwnTape(0.05, "linf", (0, 1))]
)
def test_validation_warns_of_them_too(attack):
    inputs = keras.Input((4, 4, 1))
    pixels = keras.ops.sqrt(keras.ops.square(inputs))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
    network = keras.Model(inputs, logits)
    for x, warns in ((with_black(X), True), (X, False)):
        y = np.argmax(network(x), axis=1)
        validation = tfsam.training.robust_validation.RobustValidation(
            (x, y), attack
        )
        validation.set_model(network)
        validation.on_train_begin()
        if warns:
            with pytest.warns(UserWarning, match="NaN or infinite. Likely"):
                validation.on_epoch_end(0, {})
        else:
            validation.on_epoch_end(0, {})
