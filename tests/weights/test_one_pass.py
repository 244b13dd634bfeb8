"""MSAM: its only pass is at the perturbed weights, and nothing else is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((8, 6), dtype="float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RHO = 0.5


def made(optimizer=None, layers=(), method=None, **kwargs):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((6,)),
            *layers,
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3),
        ]
    )
    method = tfsam.MSAM(RHO) if method is None else method
    model = tfsam.RobustModel(network, perturb_weights=method, seed=0, **kwargs)
    model.compile(
        optimizer or tfsam.SGD(0.1, momentum=0.9),
        LOSS,
        metrics=["accuracy"],
        run_eagerly=True,
    )
    return model


def perturbed(model):
    """Returns a copy of the network at w - rho v / ||v||."""
    copy = keras.models.clone_model(model.network)
    copy.set_weights(model.network.get_weights())
    momentum = [m.numpy() for m in model.optimizer.momentums]
    size = np.sqrt(sum((m**2).sum() for m in momentum))
    for variable, m in zip(copy.trainable_variables, momentum, strict=True):
        variable.assign(variable - RHO * m / size)
    return copy


def test_loss_metrics_and_statistics_are_of_the_perturbed_weights():
    model = made()
    model.train_on_batch(X, Y)
    moved = perturbed(model)
    expected = float(LOSS(Y, moved(X, training=True)))
    # The mean of the statistics before and those of the batch.
    statistics = [v.numpy() for v in moved.non_trainable_variables[:2]]
    model.reset_metrics()
    before = [w.numpy() for w in model.trainable_variables]
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(expected, rel=1e-5)
    found = model.network.layers[1]
    np.testing.assert_allclose(found.moving_mean, statistics[0], atol=1e-6)
    np.testing.assert_allclose(found.moving_variance, statistics[1], atol=1e-6)
    # The step is made from w, by the buffer that the optimizer keeps.
    for w, old, v in zip(
        model.trainable_variables,
        before,
        model.optimizer.momentums,
        strict=True,
    ):
        np.testing.assert_allclose(w, old - 0.1 * v.numpy(), atol=1e-6)


def test_an_attack_is_made_at_the_perturbed_weights():
    seen = []

    def attack(logits_fn, x, y, seed):
        seen.append(logits_fn(x).numpy())
        return x

    model = made(perturb_inputs=attack)
    model.train_on_batch(X, Y)
    expected = perturbed(model)(X, training=False).numpy()
    plain = model.network(X, training=False).numpy()
    seen.clear()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(seen[-1], expected, atol=1e-5)
    assert np.abs(seen[-1] - plain).max() > 1e-2


def test_the_first_step_perturbs_nothing():
    one, other = made(), made(method=tfsam.SAM(0))
    for model in (one, other):
        model.train_on_batch(X, Y)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def dense(sub_batches=1, **options):
    """Returns a model without BatchNorm, in which parts of a batch add up."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model = tfsam.RobustModel(
        network, perturb_weights=tfsam.MSAM(RHO), sub_batches=sub_batches
    )
    optimizer = tfsam.SGD(0.1, momentum=0.9, **options)
    model.compile(optimizer, LOSS, run_eagerly=True)
    return model


def test_parts_of_a_batch_have_one_momentum():
    """Also where the parts are steps whose gradients are accumulated."""
    whole, parts = dense(), dense(sub_batches=2)
    steps = dense(gradient_accumulation_steps=2)
    for _ in range(3):
        whole.train_on_batch(X, Y)
        parts.train_on_batch(X, Y)
        for some in (slice(0, 4), slice(4, 8)):
            steps.train_on_batch(X[some], Y[some])
    for model in (parts, steps):
        for one, other in zip(
            model.network.get_weights(),
            whole.network.get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "received"),
    [
        (lambda: keras.optimizers.Adam(), "optimizer=Adam, momentum=None"),
        (lambda: keras.optimizers.SGD(), "optimizer=SGD, momentum=0"),
        (lambda: tfsam.SGD(0.1), "optimizer=SGD, momentum=0"),
        (lambda: tfsam.EntropySGD(), "optimizer=EntropySGD, momentum=0.9"),
    ],
)
def test_an_optimizer_without_momentum_is_refused(optimizer, received):
    rule = r"^MSAM\(rho=0.5.* compile with tfsam.SGD or keras.optimizers.SGD"
    with pytest.raises(ValueError, match=rule) as error:
        made(optimizer()).train_on_batch(X, Y)
    assert "\n" not in str(error.value)
    assert error.match(f"Received: {received}")


def test_a_layer_that_assigns_its_weights_is_refused():
    layers = [keras.layers.SpectralNormalization(keras.layers.Dense(6))]
    with pytest.raises(ValueError, match=r"no layer may assign.* Received: va"):
        made(layers=layers).train_on_batch(X, Y)
    model = made(layers=layers, exclude="spectral")
    model.train_on_batch(X, Y)


def test_a_network_without_normalization_is_refused():
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    method = tfsam.MSAM(RHO, layers="normalization")
    with pytest.raises(ValueError, match="needs a network with scales or"):
        tfsam.RobustModel(network, perturb_weights=method)
    tfsam.RobustModel(network, perturb_weights=tfsam.MSAM(RHO))


@pytest.mark.parametrize(
    ("optimizer", "received"),
    [
        (
            lambda: tfsam.SGD(0.1, use_ema=True),
            "optimizer=SGD, use_ema=True",
        ),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
            "optimizer=Adam, gradient_accumulation_steps=2",
        ),
        (lambda: tfsam.EntropySGD(), "optimizer=EntropySGD"),
    ],
)
def test_wsam_refuses_optimizers_that_do_not_see_its_step(optimizer, received):
    model = made(optimizer(), method=tfsam.WSAM(RHO))
    with pytest.raises(ValueError, match=rf"^WSAM\(.* Received: {received}"):
        model.train_on_batch(X, Y)
    coupled = made(optimizer(), method=tfsam.WSAM(RHO, decoupled=False))
    coupled.train_on_batch(X, Y)


def test_wsam_refuses_parts_of_a_batch_if_decoupled():
    with pytest.raises(ValueError, match=r"must be 1\. Received: sub_b"):
        made(method=tfsam.WSAM(RHO), sub_batches=2)
    made(method=tfsam.WSAM(RHO, decoupled=False), sub_batches=2)


def test_an_overflow_costs_wsam_its_steps_and_nothing_else():
    """The second pass overflows alone, until the loss scale is low enough."""
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])

    class Overflowing(tfsam.WSAM):
        def perturb(self, weights, gradients, state, step):
            far = tf.cast(tf.where(step.count < 2, np.inf, 0), "float32")
            moved, state = super().perturb(weights, gradients, state, step)
            return [w + far for w in moved], state

    model = tfsam.RobustModel(network, perturb_weights=Overflowing(RHO))
    optimizer = keras.optimizers.LossScaleOptimizer(
        tfsam.SGD(0.1), initial_scale=8.0
    )
    model.compile(optimizer, LOSS, run_eagerly=True)
    before = network.get_weights()
    for _ in range(2):
        model.train_on_batch(X, Y)
    for one, other in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(optimizer.dynamic_scale) == 2.0
    model.train_on_batch(X, Y)
    assert np.isfinite(network.get_weights()[0]).all()
    assert (network.get_weights()[0] != before[0]).any()


def test_wsam_s_own_step_keeps_to_the_constraints():
    layer = keras.layers.Dense(3, kernel_constraint="unit_norm")
    network = keras.Sequential([keras.Input((6,)), layer])
    model = tfsam.RobustModel(network, perturb_weights=tfsam.WSAM(RHO))
    model.compile(tfsam.SGD(0.5), LOSS, run_eagerly=True)
    model.train_on_batch(X, Y)
    sizes = np.linalg.norm(layer.kernel.numpy(), axis=0)
    np.testing.assert_allclose(sizes, 1, atol=1e-5)
