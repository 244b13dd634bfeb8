"""Networks, losses and arguments that RobustModel refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from step_models import Subclassed
from step_models import X
from step_models import Y
from step_models import assert_equal
from step_models import compiled
from step_models import fitted
from step_models import functional
from step_models import small

import tfsam


def test_pixels_out_of_the_attack_s_bounds_are_refused():
    model = compiled(tfsam.RobustModel(small(), tfsam.PGD(0.1, steps=1)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="bounds"):
        model.fit(X * 255, Y, verbose=0)
    free = tfsam.PGD(0.0, steps=1, bounds=None)
    options = {"x": X * 255, "epochs": 1, "run_eagerly": True}
    found = fitted(tfsam.RobustModel(small(), free), **options)
    assert_equal(found, fitted(small(), **options), 1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_pixels_that_are_no_floats_are_refused_under_attack(bounds):
    model = compiled(
        tfsam.RobustModel(functional(), tfsam.FGSM(0.1, bounds=bounds))
    )
    message = r"floating-point dtype, .* Received: x.dtype=uint8"
    with pytest.raises(ValueError, match=message):
        model.fit((255 * X).astype("uint8"), Y, verbose=0)


def test_a_stateful_layer_is_refused():
    network = keras.Sequential(
        [keras.Input((3, 2), batch_size=4), keras.layers.GRU(2, stateful=True)]
    )
    with pytest.raises(ValueError, match="Received: layer=gru"):
        tfsam.RobustModel(network)


def test_a_state_goes_with_the_weights_it_was_made_for():
    class Counting(tfsam.WeightPerturbation):
        def init(self, weights, seed):
            return [np.zeros(w.shape, "float32") for w in weights]

        def perturb(self, weights, gradients, state, step):
            return weights, state

    model = tfsam.RobustModel(small(), perturb_weights=Counting())
    model.network.layers[1].trainable = False
    with pytest.raises(ValueError, match="make a new one"):
        compiled(model).train_on_batch(X, Y)


def test_nothing_to_train_or_perturb():
    network = small()
    with pytest.raises(ValueError, match="leave weights to perturb"):
        tfsam.RobustModel(network, perturb_weights=tfsam.SAM(), exclude=".*")
    network.trainable = False
    before = network.get_weights()
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM())
    with pytest.warns(UserWarning, match="no trainable weights"):
        compiled(model).train_on_batch(X, Y)
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def softmaxed():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("kind", "loss", "attack", "message"),
    [
        (functional, PROBABILITIES, None, "from_logits=True"),
        (functional, "sparse_categorical_crossentropy", None, "from_logits"),
        (Subclassed, PROBABILITIES, tfsam.FGSM(0.1), "from_logits=True"),
        (softmaxed, PROBABILITIES, tfsam.FGSM(0.1), "returns logits"),
    ],
)
def test_a_loss_of_probabilities_is_refused_on_logits(
    kind, loss, attack, message
):
    model = tfsam.RobustModel(kind(), attack, tfsam.SAM(0.1))
    with pytest.raises(ValueError, match=message):
        compiled(model, loss=loss).train_on_batch(X, Y)


def test_a_subclassed_network_of_logits_is_found_out_by_its_values():
    model = tfsam.RobustModel(Subclassed(), perturb_weights=tfsam.SAM(0.1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="from_logits"):
        compiled(model, loss=PROBABILITIES).fit(X, Y, verbose=0)


@pytest.mark.parametrize("ending", [keras.ops.softmax, keras.layers.Softmax()])
def test_other_endings_in_probabilities_are_fine(ending):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    x = keras.layers.Reshape((3,))(ending(x))
    model = tfsam.RobustModel(
        keras.Model(inputs, x), perturb_weights=tfsam.SAM(0.1)
    )
    compiled(model, loss=PROBABILITIES, run_eagerly=True)
    loss = model.train_on_batch(X, Y)
    assert np.isfinite(loss).all()


def test_probabilities_with_their_loss_are_fine_without_an_attack():
    model = tfsam.RobustModel(softmaxed(), perturb_weights=tfsam.SAM(0.1))
    compiled(model, loss=PROBABILITIES, run_eagerly=True)
    loss = model.train_on_batch(X, Y)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": lambda x: x}, "network must be a keras.Model"),
        ({"perturb_inputs": 0.1}, "Received: perturb_inputs=0.1"),
        ({"perturb_weights": 0.1}, "Received: perturb_weights=0.1"),
        ({"sharpness": "local"}, "Received: sharpness=local"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfsam.RobustModel(**{"network": small(), **arguments})


def test_an_attack_that_cannot_run_in_a_graph_is_refused():
    class Outside(tfsam.attacks.Attack):
        in_graph = False

    with pytest.raises(ValueError, match="can run in a graph"):
        tfsam.RobustModel(small(), Outside(0.1))
