"""Auto-PGD as the attack of training: from x, and to its last step."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import settings_of
from helpers import slow

import tfsam
from tfsam.attacks import Logits
from tfsam.attacks.autoattack.apgd import APGD

RNG = np.random.default_rng(0)
X = RNG.random((20, 6), dtype="float32")
Y = RNG.integers(0, 3, 20)
KERNEL = RNG.normal(size=(6, 3)).astype("float32")
IN_TRAINING = {"random_start": False, "early_stop": False}


def curved(x):
    z = tf.matmul(x, tf.cast(KERNEL, x.dtype))
    return z + 2 * tf.sin(3 * z)


@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
def test_it_makes_all_steps_as_on_a_surrogate(norm):
    y = np.argmax(curved(X), axis=1)
    options = {"epsilon": 0.5, "norm": norm, "steps": 4}
    whole = APGD(**options, early_stop=False)(curved, X, y, 1).numpy()
    found = APGD(**options)(Logits(curved).as_surrogate(), X, y, 1).numpy()
    np.testing.assert_array_equal(whole, found)
    stopped = APGD(**options)(curved, X, y, 1).numpy()

    def losses(x):
        logits = curved(x)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits).numpy()

    assert (losses(whole) >= losses(stopped) - 1e-6).all()
    assert losses(whole).sum() > losses(stopped).sum() + 1


def test_two_steps_from_x_in_a_graph_of_any_batch_size():
    attack = tfsam.attacks.get(
        "apgd_ce:steps=2:random_start=false:early_stop=false", epsilon=0.1
    )
    assert (attack.gradients, attack.predictions) == (2, 1)
    graph = tf.function(
        lambda x, y: attack(curved, x, y, 0),
        [tf.TensorSpec((None, 6)), tf.TensorSpec((None,), tf.int64)],
        autograph=False,
    )
    found = graph(X[:7], Y[:7]).numpy()
    np.testing.assert_allclose(found, attack(curved, X[:7], Y[:7], 5), 1e-5)
    assert np.abs(found - X[:7]).max() <= 0.1 + 1e-6


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def trained(attack, mode="graph", strategy=None):
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = tfsam.RobustModel(network(), attack, seed=0)
        model.compile(
            tfsam.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=mode == "xla",
            run_eagerly=mode == "eager",
        )
    size = 8 if strategy is None else 10
    model.fit(X, Y, batch_size=size, epochs=1, shuffle=False, verbose=0)
    return model.network.get_weights()


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
def test_on_a_convex_loss_one_step_trains_as_fgsm_does(mode):
    """Also on the last batch, which is smaller, and through BatchNorm."""
    found = trained(APGD(0.1, steps=1, **IN_TRAINING), mode)
    for one, other in zip(found, trained(tfsam.FGSM(0.1), mode), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_replicas_train_as_with_fgsm():
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    found, expected = (
        trained(attack, strategy=strategy)
        for attack in (APGD(0.1, steps=1, **IN_TRAINING), tfsam.FGSM(0.1))
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_command_takes_it():
    settings = settings_of(
        *("--method=at", "--epsilon=4/255"),
        "--perturb_inputs=apgd_ce:steps=2:random_start=false:early_stop=false",
    )
    attack = settings.recipe.build("perturb_inputs")
    assert (attack.epsilon, attack.steps, attack.stops) == (4 / 255, 2, False)
    assert settings.recipe.passes() == pytest.approx(1 + 2 * 2 / 3 + 1 / 3)
