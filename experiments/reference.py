"""The digits and the two networks that tests/digits_reference.npz stores.

A network was trained in PyTorch, without adversarial training ("standard") and
with it ("adversarial"); the file holds the weights under these names.
"""

import pathlib

import keras
import numpy as np

PATH = pathlib.Path(__file__).parents[1] / "tests/digits_reference.npz"

# The first digit that is attacked.
_FIRST = 1200


def digits(count=None):
    """Returns the digits on which the networks are attacked.

    Args:
        count: the number of digits, None for all.

    Returns:
        x, a float32 array (count, 8, 8, 1) in [0, 1], and y, an int array.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images / 16).astype("float32")[..., None][_FIRST:]
    return x[:count], found.target[_FIRST:][:count]


def digits_cnn(arrays, name):
    """Returns the network of the digits with stored weights.

    Args:
        arrays: the arrays of the file.
        name: the name of the network.
    """
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
            arrays[f"{name}/{layer}/{part}"]
            for layer in ("conv1", "conv2", "dense")
            for part in ("kernel", "bias")
        ]
    )
    return model


def arrays():
    """Returns the arrays of the file by name."""
    with np.load(PATH) as found:
        return dict(found)
