"""Recalibrated BatchNorm: statistics by hand, and errors."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from averaged_models import RNG
from averaged_models import X
from averaged_models import Y
from averaged_models import assert_close
from averaged_models import assert_equal
from averaged_models import differ
from averaged_models import network
from averaged_models import statistics
from averaged_models import values

import tfsam
from tfsam.attacks.base import example_seeds
from tfsam.training.averages import EMA
from tfsam.training.recalibration import recalibrate


def by_hand(model, batches):
    """The statistics as the weighted mean of the batches' own."""
    dense, block, _, inner, _ = model.layers
    found, sizes = [], [len(x) for x in batches]
    for x in batches:
        hidden = dense(x).numpy().astype("float64")
        mean, variance = hidden.mean(0), hidden.var(0)
        normal = (hidden - mean) / np.sqrt(variance + block.norm.epsilon)
        gamma, beta = values([block.norm.gamma, block.norm.beta])
        other = np.tanh(normal * gamma + beta)
        found.append([mean, variance, other.mean(0), other.var(0)])
    assert inner.layers[0].momentum == 0.99
    return [
        np.average(part, axis=0, weights=sizes)
        for part in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("batch", [8, 12, 10])
def test_statistics_are_the_mean_over_examples_of_the_batches_own(batch):
    """For any momentum, and with a smaller last batch."""
    model = network()
    batches = [X[i : i + batch] for i in range(0, 24, batch)]
    recalibrate(model, tf.data.Dataset.from_tensor_slices(X).batch(batch))
    assert_close(statistics(model), by_hand(model, batches))


def test_data_of_any_kind():
    many = RNG.random((150, 4)).astype("float32")
    labels = np.zeros(150, int)
    expected = by_hand(network(), [many[:128], many[128:]])
    datasets = [
        tf.data.Dataset.from_tensor_slices(parts).batch(128)
        for parts in ((many, labels), (many, labels, np.ones(150)))
    ]
    for data in (many, (many, labels), *datasets):
        model = network()
        recalibrate(model, data)
        assert_close(statistics(model), expected)


def test_nothing_else_moves():
    model = network(dropout=0.5)
    norms = [model.layers[2].norm, model.layers[4].layers[0]]
    before = [v.numpy() for v in model.variables if "moving" not in v.path]
    recalibrate(model, X)
    after = [v.numpy() for v in model.variables if "moving" not in v.path]
    assert_equal(after, before)
    assert any("seed" in v.path for v in model.variables)
    assert [norm.momentum for norm in norms] == [0.9, 0.99]


def test_dropout_draws_anew_for_each_batch():
    once, twice = network(dropout=0.5), network(dropout=0.5)
    recalibrate(once, X)
    data = tf.data.Dataset.from_tensors(X)
    recalibrate(twice, data.concatenate(data))
    assert differ(statistics(once), statistics(twice))
    plain, repeated = network(), network()
    recalibrate(plain, X)
    recalibrate(repeated, data.concatenate(data))
    assert_close(statistics(plain), statistics(repeated))


def test_frozen_layers_and_those_of_momentum_1_keep_their_statistics():
    frozen, still, moving = (
        keras.layers.BatchNormalization(trainable=False),
        keras.layers.BatchNormalization(momentum=1.0),
        keras.layers.BatchNormalization(momentum=0.0),
    )
    model = keras.Sequential([keras.Input((4,)), frozen, still, moving])
    frozen.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    recalibrate(model, X)
    np.testing.assert_array_equal(frozen.moving_mean.numpy(), [1, 2, 3, 4])
    np.testing.assert_array_equal(still.moving_variance.numpy(), np.ones(4))
    # Behind a layer that normalises by the batch, as it does in training.
    np.testing.assert_allclose(moving.moving_mean.numpy(), 0, atol=1e-5)
    assert (moving.moving_variance.numpy() < 1).all()


def test_under_attack_the_statistics_are_those_of_perturbed_inputs():
    attack = tfsam.PGD(0.2, steps=2)
    model, clean, expected = network(), network(), network()
    for one in (model, clean, expected):
        one.layers[1].norm.moving_mean.assign([0.3, -0.2, 0.1, 0.5, -0.4])
    x_adv = attack(
        lambda x: expected(x, training=False), X, Y, example_seeds(7, 24)
    )
    data = tf.data.Dataset.from_tensor_slices
    recalibrate(model, data((X, Y)).batch(8), attack, seed=7)
    recalibrate(expected, data(x_adv).batch(8))
    recalibrate(clean, data(X).batch(8))
    assert_close(statistics(model), statistics(expected))
    assert differ(statistics(model), statistics(clean))


def test_an_attack_that_cannot_run_in_a_graph():
    class Shift:
        in_graph = False

        def __call__(self, logits_fn, x, y, seed):
            assert logits_fn(x).numpy().shape == (24, 3)
            return x + 0.5 * y.numpy()[:, None].astype("float32")

    model, expected = network(), network()
    recalibrate(model, (X, Y), Shift())
    recalibrate(expected, X + 0.5 * Y[:, None].astype("float32"))
    assert_close(statistics(model), statistics(expected))


def test_without_batch_norm_the_data_is_not_read():
    def read():
        raise AssertionError
        yield

    data = tf.data.Dataset.from_generator(
        read, output_signature=tf.TensorSpec((None, 4))
    )
    model = network(batch_norm=False)
    before = values(model.variables)
    recalibrate(model, data)
    assert_equal(values(model.variables), before)


def test_data_that_cannot_be_used():
    data = tf.data.Dataset.from_tensors(X)
    for bad in (X[:0], data.take(0), data.repeat()):
        with pytest.raises(ValueError, match="Received: data="):
            recalibrate(network(), bad)
    with pytest.raises(ValueError, match="labels"):
        recalibrate(network(), X, tfsam.PGD(0.1))
    with pytest.raises(ValueError, match="needs data"):
        EMA(attack=tfsam.PGD(0.1))


@pytest.mark.skipif(
    "renorm"
    not in inspect.signature(keras.layers.BatchNormalization).parameters,
    reason="this Keras has no batch renormalisation",
)
def test_batch_renormalisation_is_refused():
    layer = keras.layers.BatchNormalization(renorm=True)
    with pytest.raises(ValueError, match="renormalisation"):
        recalibrate(keras.Sequential([keras.Input((4,)), layer]), X)
