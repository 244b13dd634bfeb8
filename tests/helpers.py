"""Networks and reference values that several tests share."""

import pathlib

import keras
import numpy as np

TESTS = pathlib.Path(__file__).parent
REFERENCE = np.load(TESTS / "digits_reference.npz")


def network(weights):
    """The reference's CNN, with the weights stored under a key."""
    layers = [
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.set_weights(
        [
            REFERENCE[f"{weights}/{layer}/{part}"]
            for layer in ("conv1", "conv2", "dense")
            for part in ("kernel", "bias")
        ]
    )
    return model


def tiny(classes, input_shape, statistics=None):
    """A network that is traced in no time, with state of every kind."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(classes),
        ]
    )
