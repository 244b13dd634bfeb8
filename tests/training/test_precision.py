"""Mixed precision: halves inside the network, float32 around it."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import settings_of
from helpers import slow

import tfsam
from tfsam import run
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.losses import cross_entropy
from tfsam.runs import methods
from tfsam.runs import trained_model

TINY = (
    *("--epochs=1", "--limit_train=60", "--limit_test=20", "--batch_size=20"),
    *("--attacks=pgd", "--attack_steps=1", "--linf_epsilons=0.1"),
    "--l2_epsilons=",
)
MIXED = ("mixed_float16", "mixed_bfloat16")


def made(precision, *arguments):
    """(model, 32 digits)."""
    settings = settings_of(
        "--batch_size=32", f"--precision={precision}", *arguments
    )
    images = tfsam.data.load("digits", limit_train=32, seed=0)
    return trained_model.make_model(settings, images, None), images


def trained(precision, *arguments):
    """(network before, model) after a step on 32 digits."""
    model, images = made(precision, *arguments)
    before = [np.array(w) for w in model.network.get_weights()]
    model.train_on_batch(images.x_train, images.y_train)
    return before, model


@functools.cache
def trained_exactly(*arguments):
    return trained("float32", *arguments)


# The one that scales its loss by default, the other in the slow tests.
SCALED_AND_NOT = [MIXED[0], slow(MIXED[1])]


@pytest.mark.parametrize("precision", SCALED_AND_NOT)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--method=sam", "--rho=0.2"),
        slow(("--method=at", "--steps=2")),
    ],
)
def test_a_step_is_that_of_float32_to_the_precision_of_halves(
    precision, arguments
):
    before, exact = trained_exactly(*arguments)
    _, model = trained(precision, *arguments)
    scaled = type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert scaled == (precision == "mixed_float16")
    moved, wanted = (
        np.concatenate(
            [
                np.ravel(new - old)
                for new, old in zip(
                    m.network.get_weights(), before, strict=True
                )
            ]
        )
        for m in (model, exact)
    )
    assert np.isfinite(moved).all()
    cosine = moved @ wanted / np.linalg.norm(moved) / np.linalg.norm(wanted)
    # An attack's signs jump where the gradient is near zero.
    assert cosine > 0.9
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("precision", SCALED_AND_NOT)
def test_pixels_logits_weights_and_attacks_stay_in_float32(precision):
    model, _ = made(precision, "--method=at", "--steps=1")
    network = model.network
    assert {w.dtype for w in network.trainable_variables} == {"float32"}
    assert network.get_layer("stem").compute_dtype == precision[6:]
    seen = []

    def logits_fn(x):
        seen.append((x.dtype, network(x).dtype))
        return network(x)

    x = tf.fill((2, 8, 8, 1), 0.5)
    x_adv = tfsam.PGD(1e-4, steps=2)(logits_fn, x, [0, 1], 0)
    assert set(seen) == {(tf.float32, tf.float32)}
    # 1e-4 is less than a step of float16 near 0.5.
    assert 0 < np.abs(x_adv - x).max() <= 1.001e-4


def confident(policy):
    """A network with logits so large that slopes vanish in float16."""
    hidden = keras.layers.Dense(6, activation="tanh", dtype=policy)
    head = keras.layers.Dense(3, dtype="float32")
    network = keras.Sequential([keras.Input((4,)), hidden, head])
    random = np.random.default_rng(0)
    network.set_weights([random.normal(size=w.shape) for w in network.weights])
    head.kernel.assign(head.kernel * 8)
    return network


def test_confident_examples_keep_their_gradients_in_halves():
    """Each goes through the network at a scale of its own."""
    x = np.random.default_rng(1).random((200, 4), dtype=np.float32)
    whole, half = confident("float32"), confident("mixed_float16")
    y = np.argmax(whole(x), axis=1)
    expected, logits = input_gradient(whole)(tf.constant(x), tf.constant(y))
    found, _ = input_gradient(half)(tf.constant(x), tf.constant(y))
    with tf.GradientTape() as tape:
        plain = half(pixels := tf.Variable(x))
        loss = cross_entropy(plain, tf.constant(y))
    vanished = ~np.any(tape.gradient(loss, pixels), axis=1)
    assert vanished.mean() > 0.1  # This happened without the scale.
    there = np.any(expected != 0, axis=1)
    assert there.all()
    one, other = (np.array(g, np.float64) for g in (expected, found))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert np.all((one * other).sum(axis=1) > 0.98 * norms)
    assert tf.reduce_max(logits) > 0


def test_the_scale_of_a_gradient_changes_no_bit_of_it():
    network = confident("float32")
    x = np.random.default_rng(1).random((50, 4), dtype=np.float32)
    y = tf.constant(np.arange(50) % 3)
    with tf.GradientTape() as tape:
        pixels = tf.Variable(x)
        loss = cross_entropy(network(pixels), y)
    expected = tape.gradient(loss, pixels)
    for logits_fn in (network, Logits(network, independent=False)):
        found, _ = input_gradient(logits_fn)(tf.constant(x), y)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_halves_are_refused(dtype):
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, dtype=dtype)]
    )
    with pytest.raises(ValueError, match=f"Received: .*kernel of {dtype}"):
        tfsam.RobustModel(network)


@pytest.mark.parametrize("mask", ["fisher", slow("dynamic")])
def test_an_overflow_leaves_the_state_alone(mask):
    """A loss scale that is too large costs steps until it is small enough."""
    method = tfsam.SSAM(0.05, mask=mask, refresh_every=50)
    model = tfsam.RobustModel(
        confident("mixed_float16"), perturb_weights=method
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        tfsam.SGD(0.001), initial_scale=2.0**40
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    random = np.random.default_rng(1)
    x = random.random((32, 4), dtype=np.float32)
    y = random.integers(0, 3, 32)
    before = [np.array(w) for w in model.network.get_weights()]
    model.train_on_batch(x, y)
    for one, other in zip(model.network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)  # The step was left out.
    for _ in range(40):
        model.train_on_batch(x, y)
    assert all(np.isfinite(value).all() for value in model.get_weights())
    after = model.network.get_weights()
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


def finished(workdir, *arguments):
    assert run.main([*TINY, f"--workdir={workdir}", *arguments]) == 0
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_a_run_keeps_its_precision(tmp_path):
    """With a scaled loss, and a method that keeps gradients."""
    results = finished(
        tmp_path, "--precision=mixed_float16", "--method=looksam"
    )
    assert results["config"]["precision"] == "mixed_float16"
    network = keras.saving.load_model(tmp_path / "model.keras")
    assert network.get_layer("stem").compute_dtype == "float16"
    assert all(np.isfinite(w).all() for w in network.get_weights())
    checkpoint = tmp_path / "checkpoints" / "epoch-0001.keras"
    model = keras.saving.load_model(checkpoint)
    assert model.dtype_policy.name == "mixed_float16"


@pytest.mark.slow
def test_a_run_of_before_there_was_a_choice_goes_on(
    tmp_path, capsys, tiny_network
):
    finished(tmp_path, "--method=st")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["precision"]
    path.write_text(json.dumps(config))
    finished(tmp_path, "--method=st")
    assert "holds this run, finished" in capsys.readouterr().out
    other = [*TINY, f"--workdir={tmp_path}", "--method=st"]
    assert run.main([*other, "--precision=mixed_float16"]) == 2
    assert "precision is mixed_float16, was float32" in capsys.readouterr().err


OF_THEIR_OWN = [
    name
    for name, row in methods.methods().items()
    if row.perturb_weights or row.objective
]


@pytest.mark.slow
@pytest.mark.parametrize("method", OF_THEIR_OWN)
def test_gradients_of_their_own_train_with_a_scaled_loss(method, tiny_network):
    """A step that is not traced; above, steps are traced."""
    model, images = made("mixed_float16", f"--method={method}")
    model.run_eagerly = True
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    before = [w.numpy() for w in model.network.trainable_variables]
    model.train_on_batch(images.x_train, images.y_train)
    assert all(np.isfinite(w).all() for w in model.network.get_weights())
    after = [w.numpy() for w in model.network.trainable_variables]
    # Gradients that are not finite cost the step.
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
