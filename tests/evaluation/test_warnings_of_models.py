"""Warnings of an evaluation, each on a model that deserves it."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import network

import tfsam
from tfsam.evaluation import red_flags

PGD = ("pgd", {"steps": 4})


@pytest.fixture(scope="module")
def cnn():
    return network("standard")


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1300], digits[1][1200:1300]


def evaluate(model, data, attacks, epsilons, **kwargs):
    kwargs = {"batch_size": 32, "strict": True, **kwargs}
    return tfsam.evaluate(model, data, attacks, "linf", epsilons, **kwargs)


def warnings_of(model, data, attacks=(), epsilons=(0.1,)):
    result = evaluate(model, data, attacks, epsilons, strict=False)
    return {w["warning"]: w["message"] for w in result["warnings"]}


def test_random_outputs_are_found(cnn, data):
    def noisy(x):
        return cnn(x) + tf.random.normal([10])

    # Each image is drawn 20 times, in a call of its own.
    few = data[0][:20], data[1][:20]
    assert "noise, dropout" in warnings_of(noisy, few)["random_outputs"]
    assert not warnings_of(cnn, few)


def test_zero_gradients_are_found(cnn, data):
    def saturated(x):
        return 100 * cnn(x)

    assert "saturates" in warnings_of(saturated, data)["zero_gradients"]

    def flat(x):
        return tf.stop_gradient(cnn(x)) + 0 * cnn(x)

    assert "zero_gradients" in warnings_of(flat, data)

    def outside(x):
        return tf.numpy_function(lambda x: cnn(x).numpy(), [x], tf.float32)

    assert "no_gradients" in warnings_of(outside, data)


@tf.custom_gradient
def _shattered(x):
    """The identity with a gradient that points the wrong way."""
    return tf.identity(x), lambda upstream: -upstream


def test_masked_gradients_are_found(cnn, data):
    def masked(x):
        return cnn(_shattered(x))

    attacks = [PGD, "noise_linf", ("square", {"queries": 100})]
    found = warnings_of(masked, data, attacks, [0.3])
    assert "square, which uses no gradient" in found["gradients_masked"]
    assert not warnings_of(cnn, data, attacks, [0.3])


@pytest.mark.slow
def test_attacks_given_as_classes_are_known_for_what_they_use(cnn, data):
    """Attacks of other packages are recognised by `gradient_free`."""

    def masked(x):
        return cnn(_shattered(x))

    class Noise:
        gradient_free = True

        def __init__(self, epsilon, norm, bounds):
            self.inner = tfsam.attacks.NoiseLinf(epsilon)

        def __call__(self, *arguments):
            return self.inner(*arguments)

    attacks = [(tfsam.PGD, {"steps": 4}), tfsam.attacks.NoiseLinf, Noise]
    for free in attacks[1:]:
        found = warnings_of(masked, data, [attacks[0], free], [0.3])
        expected = f"{free.__name__}, which uses no gradient"
        assert expected in found["gradients_masked"]
    assert not warnings_of(cnn, data, attacks, [0.3])


def test_square_inside_an_ensemble_is_watched(monkeypatch):
    verdict = np.array([1, 4, -1, 0] * 25, np.int8)
    stages = tfsam.attacks.AutoAttack(0.1).stages
    stages = {
        "aa": [(name, red_flags.facts_of(stage)) for name, stage in stages]
    }
    (found,) = red_flags.of_verdicts({"aa": verdict}, stages, "linf 0.1")
    assert "square, which uses no gradient, broke 25" in found["message"]
    verdict = np.where(verdict == 4, 3, verdict)
    assert not red_flags.of_verdicts({"aa": verdict}, stages, "linf 0.1")


@pytest.mark.parametrize(
    "classes", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))]
)
def test_few_classes_are_said(cnn, data, classes):
    x, y = data
    few = (x[y < classes][:10], y[y < classes][:10])
    result = evaluate(
        lambda x: cnn(x)[:, :classes],
        few,
        ["autoattack"],
        [0.3],
        strict=True,
    )
    (warning,) = [
        w for w in result["warnings"] if w["warning"] == "few_classes"
    ]
    assert f"{classes} classes" in warning["message"]
    assert ("not standard" in warning["message"]) == (classes < 4)
    assert result["robust"][0]["standard"] == (classes >= 4)
    text = tfsam.reports.table(result)
    assert ("autoattack (not standard)" in text) == (classes < 4)
