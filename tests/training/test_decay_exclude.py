"""Weights that do not decay: by rule, in every optimizer, and after loading."""

import keras
import numpy as np
import pytest
from helpers import slow

import tfsam
from tfsam import registries

# Each decays by its argument weight_decay; entropy_sgd without a walk is SGD.
# Without a gradient, FTRL moves weights to zero, and Muon's rule has its own.
NAMES = sorted({*registries.OPTIMIZERS.names()} - {"ftrl", "muon"})


def made(name, **options):
    if name == "entropy_sgd":
        options["inner_steps"] = 0
    factory = registries.OPTIMIZERS.factory(name)
    return factory(0.1, weight_decay=0.5, **options)


def network():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, kernel_initializer="ones", name="first"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(2, kernel_initializer="ones", name="last"),
        ]
    )


def decayed(optimizer, model):
    """Returns the paths of the weights that a step without gradient moves."""
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    zeros = [np.zeros(v.shape, "float32") for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    return {
        v.path for v in model.trainable_variables if (np.asarray(v) != 1).any()
    }


def short(paths):
    return {"/".join(path.split("/")[-2:]) for path in paths}


KERNELS = {"first/kernel", "last/kernel"}


@pytest.mark.parametrize("name", NAMES)
def test_one_dimensional_weights_do_not_decay(name):
    model = network()
    every = short(v.path for v in model.trainable_variables)
    assert short(decayed(made(name), model)) == every
    optimizer = made(name, decay_exclude="one_dimensional")
    assert short(decayed(optimizer, model)) == KERNELS


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_rule_by_path(name):
    optimizer = made(name, decay_exclude="^(?!.*first)")
    assert short(decayed(optimizer, network())) == {
        "first/kernel",
        "first/bias",
    }


@pytest.mark.parametrize("name", ["sgd", slow("entropy_sgd"), "adamw"])
def test_the_rule_is_saved_with_the_model(name, tmp_path):
    """Keras forgets `exclude_from_weight_decay`, without a word."""
    model = tfsam.RobustModel(network(), perturb_weights=tfsam.SAM(0.05))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(made(name, decay_exclude="one_dimensional"), loss)
    model.fit(np.ones((4, 3)), np.arange(4) % 2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    # The momentum of the step before would move weights, too.
    for variable in loaded.optimizer.variables[2:]:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    found = decayed(loaded.optimizer, loaded.network)
    assert short(found) == KERNELS


def test_clipping_of_the_whole_gradient():
    w = [keras.Variable([0.0, 0.0]), keras.Variable([0.0])]
    optimizer = tfsam.SGD(1.0, global_clipnorm=1.0)
    optimizer.apply([np.array([2.0, 0.0]), np.array([0.0])], w)
    np.testing.assert_allclose(w[0], [-1.0, 0.0], rtol=1e-6)
    optimizer.apply([np.array([0.3, 0.0]), np.array([0.4])], w)
    np.testing.assert_allclose(w[0], [-1.3, 0.0], rtol=1e-6)


def test_a_rule_that_matches_nothing():
    with pytest.raises(ValueError, match="Received: decay_exclude=nothing"):
        decayed(made("adamw", decay_exclude="nothing"), network())
    with pytest.raises(ValueError, match="regular expression"):
        made("sgd", decay_exclude="(")
