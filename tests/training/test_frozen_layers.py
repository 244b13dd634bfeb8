"""Frozen layers in training: they do not change, and change nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import cpu_only
from keras import layers

import tfsam
from tfsam.models.networks import freezing

CLASSES = 3


def network():
    """A base with BatchNorm in a model of its own, and a head with some."""
    keras.utils.set_random_seed(0)
    base = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="base_conv"),
            layers.BatchNormalization(name="base_norm", momentum=0.5),
        ]
    )
    inputs = keras.Input((6, 6, 1))
    x = layers.Flatten()(layers.ReLU()(base(inputs)))
    x = layers.BatchNormalization(name="head_norm", momentum=0.5)(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x))


def examples(count=24):
    rng = np.random.default_rng(0)
    x = rng.random((count, 6, 6, 1), dtype="float32")
    return x, rng.integers(0, CLASSES, count)


def frozen(model):
    return {v.path: np.asarray(v) for v in model.variables if "base_" in v.path}


def free(model):
    return [np.asarray(v) for v in model.weights if "base_" not in v.path]


def fit(model, data, callbacks=(), epochs=2):
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        *data,
        batch_size=12,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return model


METHODS = {
    "sam": {"perturb_weights": tfsam.SAM(0.2)},
    "at": {"perturb_inputs": tfsam.PGD(0.1, steps=2)},
    "at in training mode": {
        "perturb_inputs": tfsam.PGD(0.1, steps=2),
        "attack_mode": "training",
    },
    "both": {
        "perturb_inputs": tfsam.PGD(0.1, steps=2),
        "perturb_weights": tfsam.ASAM(0.2),
    },
    "parts": {"perturb_weights": tfsam.SAM(0.2), "sub_batches": 2},
    "state": {"perturb_weights": tfsam.LookSAM(0.2, every=2, alpha=0.3)},
    "awp": {"perturb_weights": tfsam.AWP(0.01)},
}


def assert_only_the_head_moves(inner, before, after):
    for path, value in frozen(inner).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    for old, new in zip(after, free(inner), strict=True):
        assert not np.array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_nothing_frozen_moves(method):
    inner = network()
    freezing.freeze(inner, "^base")
    before, start = frozen(inner), free(inner)
    fit(tfsam.RobustModel(inner, **METHODS[method], seed=0), examples())
    assert_only_the_head_moves(inner, before, start)


@pytest.mark.slow
@pytest.mark.parametrize("average", [tfsam.EMA, tfsam.SWA])
def test_averages_measure_other_statistics_alone(average):
    inner = network()
    freezing.freeze(inner, "^base")
    before, start = frozen(inner), free(inner)
    x, y = examples()
    options = {"momentum": 0.5} if average is tfsam.EMA else {"start_epoch": 0}
    callback = average(data=(x, y), attack=tfsam.PGD(0.1, steps=1), **options)
    model = tfsam.RobustModel(inner, perturb_weights=tfsam.SAM(0.2), seed=0)
    fit(model, (x, y), [callback])
    assert_only_the_head_moves(inner, before, start)


@pytest.mark.slow
@cpu_only
def test_nothing_frozen_moves_on_two_devices():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        inner = network()
        freezing.freeze(inner, "^base")
        before, start = frozen(inner), free(inner)
        model = tfsam.RobustModel(inner, **METHODS["both"], seed=0)
        fit(model, examples())
    assert_only_the_head_moves(inner, before, start)


@pytest.mark.parametrize(
    "method",
    [
        "sam",
        pytest.param("awp", marks=pytest.mark.slow),
        pytest.param("parts", marks=pytest.mark.slow),
    ],
)
def test_a_head_is_trained_as_on_the_features_of_its_base(method):
    """The radius of SAM counts trained weights only."""
    x, y = examples()
    whole, other = network(), network()
    freezing.freeze(whole, "^base")
    found = fit(tfsam.RobustModel(whole, **METHODS[method], seed=0), (x, y))
    base = other.layers[1]
    head = keras.Sequential(
        [keras.Input(base.output_shape[1:]), *other.layers[2:]]
    )
    features = np.asarray(base(x, training=False))
    fit(tfsam.RobustModel(head, **METHODS[method], seed=0), (features, y))
    assert found.network is whole
    for one, two in zip(free(whole), head.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
