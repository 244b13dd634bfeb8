"""The training step: closed forms, and the state of each pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow
from step_models import LOSS
from step_models import RNG
from step_models import X
from step_models import Y
from step_models import assert_equal
from step_models import compiled
from step_models import fitted
from step_models import small

import tfsam


def linear(weights):
    """A linear model without bias on flat inputs, with mean squared error."""
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
    )
    network.set_weights([np.array(weights, "float32")[:, None]])
    return network


def step_by_hand(w, x, y, rho, size=None):
    """One SAM step on mean squared error, learning rate 0.1, in float64."""

    def gradient(w):
        return 2 * x.T @ (x @ w - y) / len(x)

    g = gradient(w)
    size = np.ones_like(w) if size is None else size
    perturbation = rho * size**2 * g / np.linalg.norm(size * g)
    return w - 0.1 * gradient(w + perturbation)


@pytest.mark.parametrize(
    ("perturb_weights", "size"),
    [
        (tfsam.ASAM(0.5, eta=0, adaptive="all"), np.array([1.0, 2.0])),
    ],
)
def test_one_step_by_hand(perturb_weights, size):
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.2]])
    y = np.array([1.0, -1.0, 2.0])
    w = np.array([1.0, -2.0])
    model = tfsam.RobustModel(linear(w), perturb_weights=perturb_weights)
    model.compile(tfsam.SGD(0.1), "mse", run_eagerly=True)
    model.train_on_batch(x.astype("float32"), y.astype("float32")[:, None])
    expected = step_by_hand(w, x, y, 0.5, size)
    found = model.network.get_weights()[0][:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(expected - step_by_hand(w, x, y, 0.0)).max() > 0.01


def test_adversarial_training_by_hand():
    """Logistic regression: the l-inf worst case is known."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    w = np.array([[1.0, -1.0], [-0.5, 0.5]], "float32")
    network.set_weights([w, np.zeros(2, "float32")])
    x = np.array([[0.3, 0.6], [0.5, 0.4]], "float32")
    y = np.array([0, 1])
    model = tfsam.RobustModel(network, tfsam.FGSM(0.1))
    model.compile(tfsam.SGD(0.1), LOSS)
    loss = model.train_on_batch(x, y)
    signs = np.where(y == 0, -1, 1)[:, None] * np.sign(w[:, 0] - w[:, 1])
    x_adv = x + 0.1 * signs
    logits = x_adv @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(p[[0, 1], y]).mean(), rtol=1e-6)
    p[[0, 1], y] -= 1
    np.testing.assert_allclose(
        network.get_weights()[0], w - 0.1 * x_adv.T @ p / 2, rtol=1e-5
    )


@keras.saving.register_keras_serializable(package="test")
class Penalised(keras.layers.Layer):
    """Adds 0.5 ||w||^2 as a loss of the layer."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(2,), initializer="ones")

    def call(self, inputs):
        self.add_loss(0.5 * keras.ops.sum(self.w**2))
        return inputs


def test_layer_losses_are_perturbed_too():
    """Of the loss 0.5 ||w||^2 alone, SAM's gradient is w + rho w / ||w||."""
    network = keras.Sequential(
        [keras.Input((2,)), Penalised(), keras.layers.Dense(1)]
    )
    network.layers[-1].trainable = False
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(0.5))
    model.compile(
        tfsam.SGD(0.1), lambda y, y_pred: 0.0 * y_pred, run_eagerly=True
    )
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 1)))
    expected = 1 - 0.1 * (1 + 0.5 / np.sqrt(2))
    np.testing.assert_allclose(network.layers[0].w, expected, rtol=1e-6)


def test_regularisers_are_perturbed_too():
    network = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(
                1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5)
            ),
        ]
    )
    network.set_weights([np.ones((2, 1))])
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(0.5))
    model.compile(
        tfsam.SGD(0.1), lambda y, y_pred: 0.0 * y_pred, run_eagerly=True
    )
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 1)))
    expected = 1 - 0.1 * (1 + 0.5 / np.sqrt(2))
    np.testing.assert_allclose(network.get_weights()[0], expected, rtol=1e-6)


def nontrainable(model):
    return [v.numpy() for v in model.network.non_trainable_variables]


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_statistics_and_seeds_come_from_the_first_pass(jit_compile):
    states = []
    for rho in (None, 0.5):
        weights = None if rho is None else tfsam.SAM(rho)
        model = tfsam.RobustModel(small(), perturb_weights=weights)
        compiled(model, jit_compile=jit_compile).train_on_batch(X, Y)
        states.append(nontrainable(model))
    before = nontrainable(tfsam.RobustModel(small()))
    assert any((b != s).any() for b, s in zip(before, states[0], strict=True))
    for one, other in zip(*states, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_an_attack_moves_no_variable():
    def attack(logits_fn, x, y, seed):
        for _ in range(3):
            logits_fn(x + 0.2)
        return x + 0.1

    found, expected = (
        compiled(tfsam.RobustModel(small(), part), run_eagerly=True)
        for part in (attack, None)
    )
    found.train_on_batch(X, Y)
    expected.train_on_batch(X + 0.1, Y)
    for one, other in zip(
        found.network.variables, expected.network.variables, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_attack_sees_inference_mode():
    seen = []

    def attack(logits_fn, x, y, seed):
        seen.append(logits_fn(x).numpy())
        return x

    model = compiled(tfsam.RobustModel(small(), attack), run_eagerly=True)
    expected = model.network(X, training=False).numpy()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)


@pytest.mark.slow
def test_soft_labels_reach_the_attack():
    one_hot = keras.utils.to_categorical(Y, 3)
    soft = keras.losses.CategoricalCrossentropy(from_logits=True)
    attack = tfsam.PGD(0.1, norm="l2", steps=2)

    def run(**options):
        model = tfsam.RobustModel(small(), attack, seed=0)
        return fitted(model, epochs=1, fit={}, run_eagerly=True, **options)

    hard = run()
    assert_equal(run(y=one_hot, loss=soft), hard, 1e-5)
    smooth = run(y=0.7 * one_hot + 0.1, loss=soft)
    assert np.abs(smooth[1][0] - hard[1][0]).max() > 1e-4


def test_exclude_keeps_weights_out_of_the_perturbation():
    """An excluded layer is trained at its own weights: e is 0 there."""

    def run(**kwargs):
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(5, name="first"),
                keras.layers.Dense(3, name="second"),
            ]
        )
        seen = {}

        class Spy(tfsam.WeightPerturbation):
            def perturb(self, weights, gradients, state, step):
                seen["kinds"] = list(step.kinds)
                seen["shapes"] = [tuple(w.shape) for w in weights]
                return weights, state

        model = tfsam.RobustModel(network, perturb_weights=Spy(), **kwargs)
        compiled(model, run_eagerly=True).train_on_batch(X, Y)
        return seen

    assert run()["kinds"] == ["kernel", "bias", "kernel", "bias"]
    assert run(exclude="second")["shapes"] == [(16, 5), (5,)]
    assert run(exclude=["bias", "first/kernel"])["shapes"] == [(5, 3)]
    with pytest.raises(ValueError, match="Received: exclude=third"):
        run(exclude="third")


def test_frozen_layers_stay():
    network = small()
    network.layers[1].trainable = False
    model = tfsam.RobustModel(
        network, tfsam.PGD(0.1, steps=1), perturb_weights=tfsam.SAM(0.1)
    )
    before = network.layers[1].get_weights()
    compiled(model, run_eagerly=True).train_on_batch(X, Y)
    for one, other in zip(before, network.layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_masks_reach_weighted_metrics(jit_compile):
    def network():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(7, 4, mask_zero=True),
                keras.layers.SimpleRNN(4, return_sequences=True),
                keras.layers.Dense(3),
            ]
        )

    tokens = RNG.integers(0, 3, (12, 5))
    labels = RNG.integers(0, 3, (12, 5))

    def run(model):
        model.compile(
            tfsam.SGD(0.1),
            LOSS,
            weighted_metrics=["accuracy"],
            jit_compile=jit_compile and hasattr(model, "network"),
            run_eagerly=not jit_compile,
        )
        return model.fit(tokens, labels, epochs=2, shuffle=False, verbose=0)

    expected = run(network()).history
    found = run(tfsam.RobustModel(network(), perturb_weights=tfsam.SAM(0.0)))
    for key, values in expected.items():
        np.testing.assert_allclose(found.history[key], values, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [("mixed_float16", True), ("mixed_bfloat16", False)],
)
def test_mixed_precision(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    try:
        network = tfsam.networks.preact_resnet8(3, input_shape=(4, 4, 1))
        model = tfsam.RobustModel(
            network, tfsam.PGD(0.1, steps=2), tfsam.SAM(0.1)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    before = network.get_weights()
    compiled(model, jit_compile=jit_compile)
    scaled = type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert scaled == (policy == "mixed_float16")
    losses = [model.train_on_batch(X, Y)[0] for _ in range(5)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert np.abs(network.get_weights()[0] - before[0]).max() > 0


def test_loss_scaling_does_not_change_the_perturbation():
    """Unscaled for methods that are not scale free."""

    class Spy(tfsam.WeightPerturbation):
        def perturb(self, weights, gradients, state, step):
            tf.debugging.assert_all_finite(gradients[0], "finite")
            self.__dict__["seen"] = gradients[0].numpy()
            return weights, state

    seen = []
    for factor in (None, 1024.0):
        spy = Spy()
        model = tfsam.RobustModel(small(), perturb_weights=spy)
        optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=factor)
        compiled(model, optimizer=optimizer, run_eagerly=True)
        model.train_on_batch(X, Y)
        seen.append((spy.seen, model.network.get_weights()[0]))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(seen[0][1], seen[1][1], rtol=1e-4, atol=1e-7)


def test_traced_once_for_a_shape():
    traces = []

    def attack(logits_fn, x, y, seed):
        traces.append(1)
        return x

    model = compiled(tfsam.RobustModel(small(), attack, tfsam.SAM(0.1)))
    model.fit(X, Y, batch_size=6, epochs=3, verbose=0)
    assert len(traces) <= 2


def test_noise_is_new_each_step_and_seeded():
    def losses(seed, run_eagerly=True):
        model = tfsam.RobustModel(
            small(), tfsam.PGD(0.3, steps=0), tfsam.SAM(0.0), seed=seed
        )
        compiled(model, optimizer=tfsam.SGD(0.0), run_eagerly=run_eagerly)
        return [float(model.train_on_batch(X, Y)[0]) for _ in range(3)]

    found = losses(0)
    assert len(set(found)) == 3
    assert losses(0, run_eagerly=False) == pytest.approx(found, rel=1e-5)
    assert losses(1) != pytest.approx(found, rel=1e-5)
