"""Tests of attacks on Keras models: their attributes must not matter."""

import keras
import numpy as np
import pytest

from tfsam import attacks

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(16, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 16)
ONE_HOT = np.eye(3, dtype="float32")[Y]


class Tagged(keras.Model):
    """A model with attributes that a `Logits` has, too."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(3, kernel_initializer="he_normal")
        self.active = False
        self.surrogate = "another"
        self.rows = 7
        self.most = "all"
        self.jit_loops = "never"
        self.rounding = "up"

    def call(self, x):
        return self.dense(self.flatten(x))


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    model = Tagged()
    model(X)
    return model


@pytest.mark.parametrize("name", ["pgd", "fgsm"])
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        # Its arguments are (y_true, y_pred): taken as a loss of (logits,
        # labels) it gives other images without an error.
        (keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), Y),
        ("mse", ONE_HOT),
    ],
)
def test_a_compiled_loss_is_no_loss_of_an_attack(name, loss, y, network):
    attack = attacks.get(name, epsilon=0.1)
    expected = attack(lambda x: network(x), X, y)
    network.compile("sgd", loss)
    np.testing.assert_array_equal(attack(network, X, y), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {}),
        ("apgd_ce", {"steps": 3}),
        ("fmn", {"steps": 3}),
        ("square", {"queries": 5}),
    ],
)
def test_attributes_of_a_model_do_not_steer_an_attack(name, options, network):
    attack = attacks.get(name, epsilon=0.1, **options)
    expected = attack(lambda x: network(x), X, Y)
    np.testing.assert_array_equal(attack(network, X, Y), expected)


@pytest.mark.parametrize(
    "name",
    [
        "pgd",
        "square",
        "cleverhans_pgd",
        pytest.param("art", marks=pytest.mark.needs("art")),
    ],
)
def test_a_model_that_ends_in_a_softmax_is_refused(name):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
            keras.layers.Identity(),
        ]
    )
    with pytest.raises(ValueError, match="must return logits"):
        attacks.get(name, epsilon=0.1)(model, X, Y)
