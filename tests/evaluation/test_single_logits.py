"""Networks of two classes that return a single logit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

L = keras.losses
RNG = np.random.default_rng(0)
X = RNG.random((24, 4, 4, 1), dtype="float32")
MEDIAN = np.median(X.sum((1, 2, 3)))
Y = (X.sum((1, 2, 3)) > MEDIAN).astype("int64")


class Noise(keras.layers.Layer):
    """Noise that is active in inference."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = keras.random.normal(
            keras.ops.shape(x), 0.0, 0.02, seed=self.seed_generator
        )
        return x + noise


def single(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(1),
        ]
    )


def double(network):
    """The same network with the logits [0, z]."""
    z = network.outputs[0]
    zeros = keras.ops.zeros_like(z)
    both = keras.layers.Concatenate()([zeros, z])
    return keras.Model(network.inputs, both)


@pytest.fixture(scope="module")
def network():
    """Tells bright images from dark ones."""
    made = single()
    kernel, bias = np.full((16, 5), 0.3), np.full(5, -0.3 * MEDIAN)
    made.set_weights([kernel, bias, np.ones((5, 1)), np.zeros(1)])
    return made


@pytest.mark.parametrize(
    "attacks",
    [
        ["pgd:steps=2", "apgd_t:steps=2"],
        slow(["fgsm", "fmn", "square:queries=20"]),
    ],
)
def test_a_single_logit_is_evaluated_as_two_logits(network, attacks):
    arguments = {"epsilons": [0.02, 0.1], "attacks": attacks}
    one = tfsam.evaluate(network, (X, Y[:, None]), **arguments)
    two = tfsam.evaluate(double(network), (X, Y), **arguments)
    assert 0.8 < one["natural"]["accuracy"] == two["natural"]["accuracy"]
    found = [row["accuracy"] for row in one["robust"]]
    assert found == [row["accuracy"] for row in two["robust"]]
    assert min(found) < one["natural"]["accuracy"]


def test_a_callable_may_return_a_single_logit():
    def logit(x):
        return 10 * (tf.reduce_sum(x, [1, 2, 3])[:, None] - 8.0)

    x = np.full((2, 4, 4, 1), 0.5, "float32")
    x[0] += 0.01
    x[1] -= 0.03
    result = tfsam.evaluate(logit, (x, [1, 0]), ["fgsm"], epsilons=[0.02, 0.04])
    assert [row["accuracy"] for row in result["robust"]] == [0.5, 0.0]


def test_a_random_network_may_return_a_single_logit(network):
    noisy = keras.Sequential([keras.Input((4, 4, 1)), Noise(), *network.layers])
    result = tfsam.evaluate(noisy, (X, Y), ["pgd:steps=2"], epsilons=[0.02])
    assert result["natural"]["draws"] == 20
    assert result["natural"]["accuracy"] > 0.6


def test_labels_may_be_floats_of_0_and_1(network):
    result = tfsam.evaluate(network, (X, Y.astype("float32")), [])
    assert result["natural"]["accuracy"] > 0.8


@pytest.mark.parametrize("y", [Y + 1, Y + 0.5, np.stack([Y, Y, Y], 1)])
def test_labels_of_no_class_of_two_are_rejected(network, y):
    with pytest.raises(ValueError, match=r"^y must|^each row|^one-hot"):
        tfsam.evaluate(network, (X, y), ["fgsm"])


def test_probabilities_of_a_single_sigmoid_are_rejected():
    network = keras.Sequential(
        [*single().layers, keras.layers.Activation("sigmoid")]
    )
    network.build((None, 4, 4, 1))
    with pytest.raises(ValueError, match="logits"):
        tfsam.evaluate(network, (X, Y), ["fgsm"])


APGD = tfsam.attacks.get("apgd_ce", epsilon=0.1, steps=2)
STEP = tfsam.PGD(0.05, steps=1)
PARTS = [
    slow({"perturb_inputs": tfsam.PGD(0.05, steps=2, early_stop=True)}),
    {"perturb_inputs": tfsam.PGD(0.05, steps=2, loss="margin", restarts=2)},
    slow(
        {"perturb_inputs": tfsam.attacks.get("apgd_ce", epsilon=0.1, steps=2)}
    ),
    {
        "perturb_inputs": tfsam.PGD(0.05, steps=2, loss="kl"),
        "objective": tfsam.TRADES(),
    },
    slow(
        {"perturb_inputs": tfsam.PGD(0.05, steps=1), "objective": tfsam.MART()}
    ),
    {"perturb_weights": tfsam.ESAM()},
    slow({"perturb_weights": tfsam.SSAM()}),
]


@pytest.mark.parametrize("parts", PARTS)
def test_methods_on_classes_train_a_single_logit(parts):
    """They take the steps that they take with the logits [0, z]."""
    found = []
    one, two = single(), single()
    losses = (
        L.BinaryCrossentropy(from_logits=True),
        L.SparseCategoricalCrossentropy(from_logits=True),
    )
    for network, loss in zip((one, double(two)), losses, strict=True):
        model = tfsam.RobustModel(network, seed=0, **parts)
        model.compile(tfsam.SGD(0.1), loss, run_eagerly=True)
        model.train_on_batch(X[:8], Y[:8])
        found.append(network.get_weights())
    for weights, others in zip(*found, strict=True):
        np.testing.assert_allclose(weights, others, atol=1e-5)
    assert any(
        abs(a - b).max() > 1e-4
        for a, b in zip(found[0], single().get_weights(), strict=True)
    )


def test_robust_validation_measures_a_single_logit(network):
    robust = tfsam.RobustValidation((X, Y), tfsam.PGD(0.05, steps=2))
    model = tfsam.RobustModel(network)
    model.compile(
        tfsam.SGD(0.0),
        L.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0)],
    )
    history = model.fit(X, Y, epochs=1, verbose=0, callbacks=[robust]).history
    assert 0 <= history["val_robust_accuracy"][0] <= 1


def test_a_regression_has_no_classes():
    model = tfsam.RobustModel(single(), tfsam.PGD(0.1, early_stop=True))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"works on classes.*Received: loss="):
        model.fit(X, Y, verbose=0)
