"""Averages in training: the weights that callbacks and devices see."""

import contextlib
import functools

import keras
import pytest
import tensorflow as tf
from averaged_models import Epochs
from averaged_models import Steps
from averaged_models import X
from averaged_models import Y
from averaged_models import assert_close
from averaged_models import assert_equal
from averaged_models import compiled
from averaged_models import differ
from averaged_models import ema
from averaged_models import fit
from averaged_models import network
from averaged_models import statistics
from averaged_models import values
from helpers import slow

import tfsam
from tfsam.training.averages import EMA
from tfsam.training.averages import SWA
from tfsam.training.recalibration import recalibrate


@pytest.mark.parametrize(
    "average", [EMA(0.8, data=X), slow(SWA(1, data=X))], ids=["ema", "swa"]
)
def test_training_does_not_feel_the_average(average):
    """To the bit: the statistics, the noise and the momentum too."""

    def trained(*callbacks):
        model = tfsam.RobustModel(
            network(dropout=0.2), perturb_weights=tfsam.SAM(0.1), seed=0
        )
        epochs = Epochs()
        fit(compiled(model), *callbacks, epochs)
        return epochs.seen, values(model.optimizer.variables)

    expected, expected_state = trained()
    seen, state = trained(average)
    for one, other in zip(seen, expected, strict=True):
        assert_equal(one, other)
    assert_equal(state, expected_state)


def test_validation_and_callbacks_before_it_see_the_averaged_network():
    before, steps, after = Epochs(), Steps(), Epochs()
    average = EMA(0.8, warmup=False, data=X)
    model = compiled(network())
    history = fit(model, before, steps, average, after, epochs=2).history
    for epoch in range(2):
        done = 3 * (epoch + 1)
        assert_close(
            before.trainable()[epoch], ema(steps.seen[: done + 1], 0.8)
        )
        assert_equal(after.trainable()[epoch], steps.seen[done])
        # Its statistics are its own, and its loss is the one validated.
        clone = compiled(network())
        for variable, value in zip(
            clone.variables, before.seen[epoch], strict=True
        ):
            variable.assign(value)
        loss = clone.evaluate(X, Y, verbose=0)
        assert history["val_loss"][epoch] == pytest.approx(loss, rel=1e-5)
        found = statistics(clone)
        recalibrate(clone, X)
        assert_close(statistics(clone), found)
        assert differ(after.seen[epoch], before.seen[epoch])


def test_without_validation_callbacks_before_it_see_the_training():
    before, after = Epochs(), Epochs()
    model = compiled(network())
    average = SWA(0, data=X)
    fit(model, before, average, after, validation=False)
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    assert_close(values(model.trainable_variables), average.average)


@pytest.mark.parametrize("validation", [slow(False), True])
def test_in_the_end_the_network_is_the_average(validation):
    average, attack = EMA(0.8, data=(X, Y)), tfsam.PGD(0.2, steps=2)
    average.attack = attack
    model = compiled(network())
    fit(model, average, validation=validation)
    assert_equal(
        values(model.trainable_variables), [a.numpy() for a in average.average]
    )
    before = values(model.variables)
    model.evaluate(X, Y, verbose=0, callbacks=[average])
    assert_equal(values(model.variables), before)
    clean = network()
    clean.set_weights(model.get_weights())
    recalibrate(clean, X)
    assert differ(statistics(model), statistics(clean))


def test_each_shape_of_batch_is_traced_once():
    model = compiled(network(), run_eagerly=False)
    counted = model.layers[1]

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(counted.calls)

    found = []
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    fit(model, EMA(data=data), Count())
    assert found[0] > 0 and found[0] == found[1] == found[2]
    counted.calls = 0
    recalibrate(model, data)
    assert counted.calls == 2
    recalibrate(
        model, data, lambda logits_fn, x, y, seed: x + logits_fn(x)[0, 0]
    )
    assert counted.calls == 2 + 4


def replicas_of(model):
    """Each replica's own copy of every variable."""
    strategy = model.distribute_strategy
    return [
        part.numpy()
        for variable in model.variables
        for part in strategy.experimental_local_results(variable.value)
    ]


class Replicas(Epochs):
    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(replicas_of(self.network))


def on_two_devices(*callbacks, inside=False):
    """Trains, and returns the network."""
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        model = compiled(
            tfsam.RobustModel(network(), seed=0), run_eagerly=False
        )
    with strategy.scope() if inside else contextlib.nullcontext():
        fit(model, *callbacks, epochs=2)
    return model.network


@functools.cache
def without_an_average():
    """Trains on two devices; returns the variables after each epoch."""
    expected = Replicas()
    on_two_devices(expected)
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_two_devices(inside):
    """The statistics of replicas differ; each gets its own back."""
    expected = without_an_average()
    assert differ(expected.seen[-1][0::2], expected.seen[-1][1::2])
    before, steps, after = Epochs(), Steps(), Replicas()
    attack = tfsam.PGD(0.1, steps=1)
    average = EMA(0.8, warmup=False, data=(X, Y), attack=attack)
    trained = on_two_devices(before, steps, average, after, inside=inside)
    for one, other in zip(after.seen, expected.seen, strict=True):
        assert_equal(one, other)
    weights = ema(steps.seen, 0.8)
    assert_close(before.trainable()[-1], weights)
    assert_close(values(trained.trainable_variables), weights)
    copies = replicas_of(trained)
    assert_equal(copies[0::2], copies[1::2])
