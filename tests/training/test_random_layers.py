"""Layers of random augmentation, seen by an attack and by two calls alike."""

import warnings

import keras
import numpy as np
import pytest

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((6, 8, 8, 1), dtype="float32")
Y = RNG.integers(0, 3, 6)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def augmented():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.RandomFlip(),
            keras.layers.RandomTranslation(0.3, 0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def test_an_attack_that_misses_augmentation_is_warned_of():
    with pytest.warns(UserWarning, match="random_flip.*attack_mode='training'"):
        tfsam.RobustModel(augmented(), tfsam.FGSM(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfsam.RobustModel(augmented(), tfsam.FGSM(0.1), attack_mode="training")
        tfsam.RobustModel(augmented(), perturb_weights=tfsam.SAM())


def test_an_attack_in_training_mode_sees_the_draw_of_the_pass():
    """An objective's second call draws alike: TRADES compares images."""
    seen = []

    def attack(logits_fn, x, y, seed):
        for _ in range(2):
            seen.append(logits_fn(x).numpy())
        return x

    def objective(model, batch):
        y_pred = model(batch.x_adv, training=True)
        with model.unrecorded():
            again = model(batch.x, training=True)
        seen.extend([y_pred.numpy(), again.numpy()])
        return model.compute_loss(batch.x, batch.y, y_pred), y_pred

    model = tfsam.RobustModel(
        augmented(), attack, objective=objective, attack_mode="training"
    )
    model.compile(keras.optimizers.SGD(0.0), LOSS, run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    first, second = np.array(seen[:4]), np.array(seen[4:])
    np.testing.assert_allclose(first, first[[0] * 4], atol=1e-6)
    np.testing.assert_allclose(second, second[[0] * 4], atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first[0] - model.network(X).numpy()).max() > 1e-3
