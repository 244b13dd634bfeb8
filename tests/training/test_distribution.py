"""Two logical CPU devices: what is common to replicas, and what is not."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.support import devices

RNG = np.random.default_rng(0)
X = RNG.random((16, 6, 6, 1)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(batch_norm):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, kernel_regularizer="l2")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization())
    layers += [
        keras.layers.Activation("tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def trained(devices, *, batch_norm=False, jit_compile=False, steps=3, **kwargs):
    """The weights and losses after some steps on the whole batch."""
    strategy = (
        tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            # Collectives remember shapes by a key that the next strategy of
            # the process counts from the start again.
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
        if devices > 1
        else tf.distribute.get_strategy()
    )
    with strategy.scope():
        model = tfsam.RobustModel(network(batch_norm), seed=0, **kwargs)
        model.compile(
            tfsam.SGD(0.2, momentum=0.9, weight_decay=5e-4),
            LOSS,
            metrics=["accuracy"],
            jit_compile=jit_compile,
            # A few steps are quicker than tracing one; replicas need graphs.
            run_eagerly=devices == 1 and not jit_compile,
        )
    data = tf.data.Dataset.from_tensors((X, Y)).unbatch().batch(16)
    # An epoch is a step: of more, Keras 3.8 shows another loss on two devices.
    history = model.fit(data, epochs=steps, verbose=0)
    weights = [v.numpy() for v in model.network.trainable_variables]
    return weights, history.history["loss"]


@functools.cache
def on_one_device(**kwargs):
    """Trains on one device; several tests compare with the result."""
    return trained(1, **kwargs)


def assert_same(found, expected, atol=1e-5):
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def furthest(found, expected):
    pairs = zip(found[0], expected[0], strict=True)
    return max(np.abs(one - other).max() for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_standard_training_on_two_devices_is_one_device_s(jit_compile):
    found = trained(2, perturb_weights=tfsam.SAM(0.0), jit_compile=jit_compile)
    assert_same(found, on_one_device())


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(tfsam.SAM(0.3), id="sam"),
        slow(tfsam.ASAM(1.0), id="asam"),
    ],
)
@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_global_sharpness_on_two_devices_is_one_device_s(method, jit_compile):
    expected = on_one_device(perturb_weights=method, sharpness="global")
    found = trained(
        2, perturb_weights=method, sharpness="global", jit_compile=jit_compile
    )
    assert_same(found, expected)
    assert furthest(expected, on_one_device()) > 1e-4


def test_sharpness_per_replica_is_the_mean_over_shards():
    """w - lr (1/2) sum_j grad L_j(w + rho g_j / ||g_j||), decay at w."""
    model = network(batch_norm=False)
    weights = [v.numpy() for v in model.trainable_variables]

    def gradients(shard, at):
        for variable, value in zip(model.trainable_variables, at, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            loss = LOSS(Y[shard], model(X[shard], training=True))
            loss += tf.add_n(model.losses)
        found = tape.gradient(
            loss, [v.value for v in model.trainable_variables]
        )
        return [g.numpy().astype("float64") for g in found]

    means = [0.0] * len(weights)
    for shard in (slice(0, 8), slice(8, 16)):
        g = gradients(shard, weights)
        size = np.sqrt(sum((part**2).sum() for part in g))
        moved = [w + 0.3 * p / size for w, p in zip(weights, g, strict=True)]
        second = gradients(shard, moved)
        means = [m + p / 2 for m, p in zip(means, second, strict=True)]
    expected = [
        w - 0.2 * (m + 5e-4 * w) for w, m in zip(weights, means, strict=True)
    ]
    found = trained(2, perturb_weights=tfsam.SAM(0.3), steps=1)
    for one, other in zip(found[0], expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    other = on_one_device(perturb_weights=tfsam.SAM(0.3), steps=1)
    assert furthest(found, other) > 1e-5


def test_noise_is_keyed_by_the_position_in_the_global_batch():
    """Two devices draw the noise of one device, not the same noise twice."""
    attack = tfsam.PGD(0.5, norm="l2", steps=1)
    found = trained(2, perturb_inputs=attack, steps=2)
    assert_same(found, trained(1, perturb_inputs=attack, steps=2))
    assert furthest(found, on_one_device(steps=2)) > 1e-4


@pytest.mark.slow
def test_noise_differs_between_replicas():
    seen = []

    def record(x_adv, x):
        seen.append(x_adv - x)
        return x_adv

    def attack(logits_fn, x, y, seed):
        x_adv = tfsam.PGD(0.5, steps=0, bounds=None)(logits_fn, x, y, seed)
        recorded = tf.numpy_function(record, [x_adv, x], tf.float32)
        return tf.ensure_shape(recorded, x.shape)

    trained(2, perturb_inputs=attack, steps=2)
    # Two steps on two replicas: four batches of noise, no two examples alike.
    assert [noise.shape for noise in seen] == [(8, 6, 6, 1)] * 4
    assert len(np.unique(np.concatenate(seen).round(5), axis=0)) == 32


@functools.cache
def with_batch_norm():
    """Standard training on two devices; eight steps move the statistics."""
    return trained(2, batch_norm=True, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_at_sam_with_batch_norm_trains_on_two_devices(jit_compile):
    found = trained(
        2,
        batch_norm=True,
        jit_compile=jit_compile,
        perturb_inputs=tfsam.PGD(0.05, steps=2),
        perturb_weights=tfsam.SAM(0.1),
        steps=8,
    )
    plain = with_batch_norm()
    assert np.isfinite(found[1]).all() and furthest(found, plain) > 1e-4


def test_predictions_with_xla_on_two_devices_are_one_device_s():
    """XLA cannot compile Keras's functions: variables belong to a replica.

    A run that validates on several GPUs, where XLA is on, would fail.
    """
    found = []
    for count in (1, 2):
        strategy = devices.make_strategy(f"cpu:{count}")
        with (strategy or tf.distribute.get_strategy()).scope():
            model = tfsam.RobustModel(network(batch_norm=True))
            model.compile(loss=LOSS, jit_compile=True)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        loss = model.evaluate(data, verbose=0)
        found.append((model.predict(data, verbose=0), loss))
        assert model.jit_compile
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


@pytest.mark.slow
def test_mixed_precision_on_two_devices():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        weights, losses = trained(
            2,
            perturb_inputs=tfsam.PGD(0.05, steps=2),
            perturb_weights=tfsam.SAM(0.1),
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all()
    assert all(np.isfinite(w).all() for w in weights)
