"""TRADES, MART and other objectives: identities, devices, files."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow
from objective_models import OBJECTIVES
from objective_models import ONE_HOT
from objective_models import SAMPLE_WEIGHT
from objective_models import TRADES_ATTACK
from objective_models import X
from objective_models import Y
from objective_models import compiled
from objective_models import difference
from objective_models import fitted
from objective_models import made
from objective_models import network
from objective_models import shifted
from objective_models import trained

import tfsam
from tfsam.attacks import losses

# In the slow tests the other one tests their common parts, too.
ONE_BY_DEFAULT = [slow("TRADES"), "MART"]


@pytest.fixture(scope="module")
def alone():
    """Each objective, without a perturbation of the weights."""
    return {name: trained(OBJECTIVES[name][0], shifted) for name in OBJECTIVES}


# TRADES is standard training where it has nothing to add.


def regularised():
    """A network with every term that Keras adds to a loss."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh", activity_regularizer="l2"),
            keras.layers.Dense(3, bias_regularizer="l1"),
        ]
    )


@pytest.fixture(scope="module")
def standard():
    return fitted(compiled(regularised()), sample_weight=SAMPLE_WEIGHT)


STANDARD = {
    "beta = 0": (tfsam.TRADES(0), TRADES_ATTACK),
    "epsilon = 0": (tfsam.TRADES(), TRADES_ATTACK.with_epsilon(0.0)),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("beta = 0", "eager"),
        ("epsilon = 0", "eager"),
        slow("beta = 0", "graph"),
        slow("epsilon = 0", "graph"),
        *(slow(name, "xla") for name in STANDARD),
    ],
)
def test_trades_with_nothing_to_add_is_standard_training(name, mode, standard):
    model = made(*STANDARD[name], mode, net=regularised())
    assert difference(fitted(model, sample_weight=SAMPLE_WEIGHT), standard) < (
        1e-6
    )


def test_trades_adds_something(standard):
    model = made(tfsam.TRADES(), TRADES_ATTACK, net=regularised())
    assert difference(fitted(model, sample_weight=SAMPLE_WEIGHT), standard) > (
        1e-4
    )


@pytest.mark.parametrize("name", ONE_BY_DEFAULT)
def test_labels_may_be_one_hot(name, alone):
    one_hot = keras.utils.to_categorical(Y, 3)
    objective, _ = OBJECTIVES[name]
    model = tfsam.RobustModel(network(), shifted, objective=objective)
    found = fitted(compiled(model, loss=ONE_HOT), y=one_hot)
    assert difference(found, alone[name]) < 1e-6


# With perturbed weights, on devices, saved, in other precisions.

NO_RADIUS = {
    "SAM": tfsam.SAM(0),
    "AWP": tfsam.AWP(0),
    "ESAM": tfsam.ESAM(0, sample_fraction=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [*itertools.product(["TRADES"], NO_RADIUS), ("MART", "SAM")],
)
def test_without_a_radius_the_objective_is_alone(name, method, alone):
    found = trained(
        OBJECTIVES[name][0], shifted, perturb_weights=NO_RADIUS[method]
    )
    assert difference(found, alone[name]) < 1e-6


RADIUS = {
    "SAM": tfsam.SAM(0.2),
    "AWP": tfsam.AWP(0.1),
    "ESAM": tfsam.ESAM(0.2),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("TRADES", "ESAM"),
        ("MART", "SAM"),
        slow("TRADES", "SAM"),
        slow("TRADES", "AWP"),
    ],
)
def test_objectives_train_with_perturbed_weights(name, method, alone):
    found = trained(
        OBJECTIVES[name][0], shifted, perturb_weights=RADIUS[method]
    )
    assert np.isfinite(difference(found, network()))
    assert difference(found, alone[name]) > 1e-4


@pytest.mark.slow
def test_parts_of_the_batch_are_one_batch():
    """m-sharpness without a radius; BatchNorm would make the parts differ."""
    one, parts = (
        fitted(
            made(
                tfsam.MART(),
                shifted,
                net=network(False, "l2"),
                perturb_weights=tfsam.SAM(0),
                sub_batches=count,
            ),
            sample_weight=SAMPLE_WEIGHT,
        )
        for count in (1, 2)
    )
    assert difference(one, parts) < 1e-6


def replicated(name, devices, mode="graph"):
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    with strategy.scope():
        model = made(
            *OBJECTIVES[name],
            mode,
            net=network(False, "l2"),
            perturb_weights=tfsam.SAM(0.2),
            sharpness="global",
        )
    data = tf.data.Dataset.from_tensors((X, Y, SAMPLE_WEIGHT))
    data = data.unbatch().batch(16)
    history = model.fit(data, epochs=3, verbose=0)
    return model, history.history["loss"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("TRADES", "graph"),
        slow("TRADES", "xla"),
        slow("MART", "graph"),
    ],
)
def test_two_devices_are_one(name, mode):
    one, loss = replicated(name, 1)
    two, found = replicated(name, 2, mode)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert difference(one, two) < 1e-5


@pytest.mark.parametrize("name", ONE_BY_DEFAULT)
def test_training_goes_on_after_loading(name, alone, tmp_path):
    """Four steps are two, a file, and two."""
    objective, _ = OBJECTIVES[name]
    fitted(made(objective, shifted), 2).save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert repr(again.objective) == repr(objective)
    assert difference(fitted(again, 2), alone[name]) == 0


def test_the_attack_of_trades_is_saved():
    saved = keras.saving.serialize_keras_object(TRADES_ATTACK)
    again = keras.saving.deserialize_keras_object(saved)
    assert repr(again) == repr(TRADES_ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_mixed_precision(name):
    objective, attack = OBJECTIVES[name]
    net = network(dtype="mixed_float16")
    model = tfsam.RobustModel(
        net,
        attack,
        objective=objective,
        dtype="mixed_float16",
    )
    compiled(model, momentum=0)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert model.network(X).dtype == tf.float16
    history = model.fit(X, Y, batch_size=8, epochs=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(difference(net, network()))
    assert difference(net, network()) > 1e-3


@keras.saving.register_keras_serializable(package="test_objectives")
class Blend(tfsam.Objective):
    """The compiled loss, from the helpers of the base class."""

    def __init__(self, share=1.0):
        self.share = share

    def __call__(self, model, batch):
        y_pred = model(batch.x_adv, training=True)
        each = losses.cross_entropy(y_pred, batch.y)
        loss = self.share * self.mean(each, batch.sample_weight)
        return loss + sum(self.penalties(model)), y_pred


def test_the_base_class_has_the_parts_of_the_compiled_loss(tmp_path):
    net = network(batch_norm=False, regularizer="l2")
    own = fitted(made(Blend(), net=net), sample_weight=SAMPLE_WEIGHT)
    net = network(batch_norm=False, regularizer="l2")
    plain = fitted(made(net=net), sample_weight=SAMPLE_WEIGHT)
    assert difference(own, plain) < 1e-6
    own.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.objective.get_config() == {"share": 1.0}
    with pytest.raises(TypeError, match="must implement __call__"):
        tfsam.Objective()(own, None)
