"""Small networks and data on which training steps are compared."""

import keras
import numpy as np

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((12, 4, 4, 1), dtype="float32")
Y = RNG.integers(0, 3, 12)
SAMPLE_WEIGHT = RNG.random(12).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def layers(dropout=0.3):
    """BatchNorm, dropout, a kernel and an activity regulariser."""
    return [
        keras.layers.Conv2D(4, 3, kernel_regularizer="l2"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(activity_regularizer=keras.regularizers.L1(0.01)),
        keras.layers.Dropout(dropout, seed=1),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def functional(dropout=0.3):
    inputs = outputs = keras.Input((4, 4, 1))
    for layer in layers(dropout):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def sequential():
    return keras.Sequential([keras.Input((4, 4, 1)), *layers()])


class Subclassed(keras.Model):
    """Without `training` in call, and not built before fit."""

    def __init__(self):
        super().__init__()
        self.parts = layers()

    def call(self, inputs):
        for layer in self.parts:
            inputs = layer(inputs)
        return inputs


def without_dropout():
    """XLA draws other random numbers than a graph does."""
    return functional(dropout=0.0)


class Wrapped(keras.Model):
    """Keras trains this network in training mode, but not `Subclassed`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, inputs, training=None):
        return self.network(inputs)


def small(kind=functional, seed=0):
    keras.utils.set_random_seed(seed)
    return kind()


def compiled(model, **kwargs):
    kwargs.setdefault("optimizer", tfsam.SGD(0.1, momentum=0.9))
    kwargs.setdefault("loss", LOSS)
    model.compile(metrics=["accuracy"], **kwargs)
    return model


def fitted(model, *, epochs=2, x=X, y=Y, fit=None, **kwargs):
    """Histories and the network's variables after a few steps."""
    fit = {"sample_weight": SAMPLE_WEIGHT} if fit is None else fit
    history = compiled(model, **kwargs).fit(
        x, y, batch_size=6, epochs=epochs, shuffle=False, verbose=0, **fit
    )
    network = getattr(model, "network", model)
    return history.history, [v.numpy() for v in network.variables]


def assert_equal(found, expected, atol=0.0):
    for key, values in expected[0].items():
        np.testing.assert_allclose(
            found[0][key], values, atol=atol, rtol=atol, err_msg=key
        )
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


NOTHING = {
    "no perturbation": {},
    "rho = 0": {"perturb_weights": tfsam.SAM(0.0)},
    "rho = 0, adaptive": {"perturb_weights": tfsam.ASAM(0.0)},
    "epsilon = 0": {"perturb_inputs": tfsam.PGD(0.0, steps=2)},
    "both 0, l2": {
        "perturb_inputs": tfsam.PGD(0.0, norm="l2", steps=2),
        "perturb_weights": tfsam.SAM(0.0),
    },
}
