"""Measuring a network changes no variable of it, whatever its layers write."""

import keras
import numpy as np
import pytest

import tfsam
from tfsam.evaluation.landscape import Landscape
from tfsam.models.loading import load_logits

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(8, 4, 4, 1)).astype("float32")
Y = np.arange(8) % 3


class Writing(keras.Model):
    """Its layers update statistics, seeds and a metric in inference."""

    def __init__(self):
        super().__init__()
        self.flat = keras.layers.Flatten()
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.2)
        self.dense = keras.layers.Dense(3)
        self.mean = keras.metrics.Mean()

    def call(self, x):
        x = self.norm(self.flat(x), training=True)
        self.mean.update_state(x)
        return self.dense(self.drop(x, training=True))


def values(network):
    extra = [*network.mean.variables, network.drop.seed_generator.state]
    return [keras.ops.convert_to_numpy(v) for v in [*network.variables, *extra]]


@pytest.fixture(scope="module")
def network():
    network = Writing()
    network(X[:2])
    return network


def evaluate(network):
    tfsam.evaluate(network, (X, Y), ["fgsm"], batch_size=4)


def evaluate_on_devices(network):
    devices = ["CPU:0", "CPU:1"]
    tfsam.evaluate(network, (X, Y), ["fgsm"], batch_size=4, devices=devices)


def evaluate_a_callable(network):
    tfsam.evaluate(lambda x: network(x), (X, Y), ["fgsm"], batch_size=4)


def evaluate_logits(network):
    logits = tfsam.attacks.Logits(network)
    tfsam.evaluate(logits, (X, Y), ["fgsm"], batch_size=4)


def transfer(network):
    tfsam.evaluate(
        network, (X, Y), ["fgsm"], surrogate=lambda x: 2 * network(x)
    )


def evaluate_eagerly(network):
    """A callable that cannot be traced is measured."""

    def eager(x):
        return keras.ops.convert_to_tensor(network(x).numpy())

    tfsam.evaluate(eager, (X, Y), ["noise_linf"], batch_size=4)


def validate(network):
    validation = tfsam.training.robust_validation.RobustValidation(
        (X, Y), tfsam.PGD(0.1)
    )
    validation.set_model(network)
    validation.on_train_begin()
    validation.on_epoch_begin(0)
    validation.on_epoch_end(0, {})


def look_around(network):
    landscape = Landscape(network, (X, Y))
    landscape.loss()
    landscape.largest_eigenvalue(tolerance=0.1)
    landscape.sharpness(tfsam.SAM(0.1))
    landscape.input_gradients()


@pytest.mark.parametrize(
    "measure",
    [
        evaluate,
        validate,
        pytest.param(evaluate_a_callable, marks=pytest.mark.slow),
        pytest.param(evaluate_on_devices, marks=pytest.mark.slow),
        pytest.param(evaluate_logits, marks=pytest.mark.slow),
        pytest.param(transfer, marks=pytest.mark.slow),
        pytest.param(evaluate_eagerly, marks=pytest.mark.slow),
        pytest.param(look_around, marks=pytest.mark.slow),
    ],
)
def test_every_variable_keeps_its_value(network, measure):
    before = values(network)
    measure(network)
    for one, other in zip(before, values(network), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_that_is_not_built_is_built_by_the_evaluation():
    network = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dropout(0.5), Writing()]
    )
    result = tfsam.evaluate(network, (X, Y), ["fgsm"], batch_size=4)
    assert result["robust"][0]["accuracy"] is not None
    assert len(network.trainable_variables) == 4
    again = tfsam.evaluate(network, (X, Y), [], batch_size=4)
    assert again["natural"] == result["natural"]


def test_within_a_scope_a_call_reads_what_the_call_before_it_wrote(network):
    logits = load_logits(network)
    one, other = logits.function.in_turn([X, X])
    assert np.abs(one - other).max() > 0  # Another draw of the dropout.
    np.testing.assert_array_equal(one, logits.function(X))
