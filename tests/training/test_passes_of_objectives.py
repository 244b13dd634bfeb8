"""Statistics and metrics of one pass, and the mode of the attack."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow
from objective_models import OBJECTIVES
from objective_models import X_ADV
from objective_models import X
from objective_models import Y
from objective_models import compiled
from objective_models import made
from objective_models import network
from objective_models import shifted

import tfsam

# State and metrics come from the pass that returns the predictions.


@pytest.mark.parametrize(
    ("name", "mode"),
    [("TRADES", "graph"), ("MART", "eager"), slow("MART", "xla")],
)
def test_statistics_come_from_one_pass(name, mode):
    objective, _ = OBJECTIVES[name]
    net = network()
    seen = X if name == "TRADES" else X_ADV
    features = net.layers[0](seen).numpy()
    made(objective, shifted, mode, net=net).train_on_batch(X, Y)
    layer = net.layers[1]
    for found, start, batch in (
        (layer.moving_mean.numpy(), 0, features.mean(axis=0)),
        (layer.moving_variance.numpy(), 1, features.var(axis=0)),
    ):
        np.testing.assert_allclose(
            found, 0.99 * start + 0.01 * batch, atol=1e-6
        )


def test_dropout_s_seeds_move_once():
    def state(*objective):
        net = network(dropout=0.5)
        if objective:
            made(*objective, shifted, "eager", net=net).train_on_batch(X, Y)
        return net.layers[3].seed_generator.state.numpy()

    once = state(None)
    assert (once != state()).any()
    for objective, _ in OBJECTIVES.values():
        np.testing.assert_array_equal(state(objective), once)


@pytest.mark.parametrize(("name", "accuracy"), [("TRADES", 1), ("MART", 0)])
def test_metrics_are_those_of_one_pass(name, accuracy):
    inputs = keras.Input((3,))
    net = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(inputs))
    net.set_weights([np.eye(3, dtype="float32")])
    model = tfsam.RobustModel(
        net,
        lambda logits_fn, x, y, seed: 1 - x,
        objective=OBJECTIVES[name][0],
    )
    compiled(model, "eager", metrics=["accuracy"])
    logs = model.train_on_batch(np.eye(3), np.arange(3), return_dict=True)
    assert logs["accuracy"] == accuracy


# The mode of the network under attack.


def recording(seen):
    """An attack that changes nothing and keeps the logits that it saw."""

    def record(logits):
        seen.append(logits)
        return np.float32(0)

    def attack(logits_fn, x, y, seed):
        for _ in range(2):
            nothing = tf.numpy_function(record, [logits_fn(x)], tf.float32)
            x = tf.ensure_shape(x + nothing, x.shape)
        return x

    return attack


@pytest.mark.parametrize(
    ("training", "mode"),
    [
        (False, "eager"),
        (True, "graph"),
        slow(False, "graph"),
        slow(True, "eager"),
    ],
)
def test_the_attack_sees_the_mode_that_was_asked_for(training, mode):
    """BatchNorm uses the batch, and dropout the same mask in each pass."""
    seen = []
    net = network(dropout=0.5)
    made(
        None,
        recording(seen),
        mode,
        net=net,
        attack_mode="training" if training else "inference",
    ).train_on_batch(X, Y)
    fresh = network(dropout=0.5)
    expected = fresh(X, training=training)
    assert len(seen) == 2
    for logits in seen:
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    other = fresh(X, training=not training)
    assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize("mode", ["eager", slow("xla")])
def test_an_attack_in_training_mode_moves_no_variable(mode):
    def attack(logits_fn, x, y, seed):
        return shifted(None, x + 0 * tf.reduce_sum(logits_fn(2 * x)), y, seed)

    attacked, other = (
        made(None, a, mode, net=network(dropout=0.5), attack_mode="training")
        for a in (attack, shifted)
    )
    for model in (attacked, other):
        model.train_on_batch(X, Y)
    for one, two in zip(attacked.variables, other.variables, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
