"""The warm-up of epsilon: its schedule, also after loading."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow
from objective_models import KERNEL
from objective_models import X
from objective_models import Y
from objective_models import made

import tfsam


@keras.saving.register_keras_serializable(package="test")
def largest_change(model, batch):
    """The largest change of x, as the loss, so that the history shows it."""
    y_pred = model(batch.x, training=True)
    change = tf.reduce_max(tf.abs(batch.x_adv - batch.x))
    return change + 0.0 * tf.reduce_sum(y_pred), y_pred


WARM = {
    "FGSM": (tfsam.FGSM(0.2, bounds=None), 0.2),
    # Of which the first step is a quarter of epsilon.
    "PGD": (tfsam.PGD(0.2, steps=1, random_start=False, bounds=None), 0.05),
}


def warm(attack, mode="eager", **kwargs):
    inputs = keras.Input((6,))
    net = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    net.set_weights([KERNEL, np.zeros(3, "float32")])
    return made(largest_change, attack, mode, net=net, **kwargs)


def changes(model, steps):
    history = model.fit(X, Y, batch_size=16, epochs=steps, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("FGSM", "graph"),
        ("PGD", "eager"),
        slow("FGSM", "eager"),
        slow("FGSM", "xla"),
        slow("PGD", "graph"),
    ],
)
def test_epsilon_grows_linearly(name, mode):
    attack, full = WARM[name]
    found = changes(warm(attack, mode, epsilon_warmup_steps=4), 6)
    shares = [0.25, 0.5, 0.75, 1, 1, 1]
    np.testing.assert_allclose(found, full * np.array(shares), atol=1e-6)
    assert attack.epsilon == 0.2


def test_without_a_warm_up_epsilon_is_whole():
    np.testing.assert_allclose(changes(warm(WARM["FGSM"][0]), 2), 0.2, 1e-5)


def test_the_warm_up_goes_on_after_loading(tmp_path):
    model = warm(WARM["FGSM"][0], epsilon_warmup_steps=4)
    changes(model, 2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(changes(again, 3), [0.15, 0.2, 0.2], atol=1e-6)
