"""Files in the layout of Keras 1, of 2015 to 2017."""

import json

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from tfsam.models.files import reading


def configuration(ordering):
    """A Sequential, which Keras 1 stored as the list of its layers."""
    first = ordering == "th"
    shape = [None, 3, 8, 8] if first else [None, 8, 8, 3]
    convolution = {
        "name": "convolution2d_1",
        "trainable": True,
        "batch_input_shape": shape,
        "input_dtype": "float32",
        "nb_filter": 4,
        "nb_row": 3,
        "nb_col": 2,
        "init": "glorot_uniform",
        "activation": "relu",
        "border_mode": "valid",
        "subsample": [1, 1],
        "dim_ordering": ordering,
        "W_regularizer": {"name": "WeightRegularizer", "l1": 0.0, "l2": 0.1},
        "b_regularizer": None,
        "activity_regularizer": None,
        "W_constraint": {"name": "MaxNorm", "m": 3, "axis": 0},
        "b_constraint": None,
        "bias": True,
    }
    pooling = {
        "name": "maxpooling2d_1",
        "trainable": True,
        "pool_size": [2, 2],
        "strides": [2, 2],
        "border_mode": "valid",
        "dim_ordering": ordering,
    }
    normalization = {
        "name": "batchnormalization_1",
        "trainable": True,
        "epsilon": 0.001,
        "mode": 0,
        "axis": 1 if first else -1,
        "momentum": 0.99,
        "gamma_regularizer": None,
        "beta_regularizer": None,
    }
    dense = {
        "name": "dense_1",
        "trainable": True,
        "output_dim": 5,
        "init": "glorot_uniform",
        "activation": "softmax",
        "W_regularizer": None,
        "b_regularizer": None,
        "activity_regularizer": None,
        "W_constraint": None,
        "b_constraint": None,
        "bias": True,
        "input_dim": 36,
    }
    found = [
        ("Convolution2D", convolution),
        ("BatchNormalization", normalization),
        ("MaxPooling2D", pooling),
        ("Dropout", {"name": "dropout_1", "trainable": True, "p": 0.25}),
        ("Flatten", {"name": "flatten_1", "trainable": True}),
        ("Dense", dense),
    ]
    entries = [{"class_name": name, "config": c} for name, c in found]
    return {"class_name": "Sequential", "config": entries}


def network(ordering):
    """The same network in Keras 3, with weights that are all different."""
    form = "channels_first" if ordering == "th" else "channels_last"
    shape = (3, 8, 8) if ordering == "th" else (8, 8, 3)
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, (3, 2), activation="relu", data_format=form),
            layers.BatchNormalization(axis=1 if ordering == "th" else -1),
            layers.MaxPooling2D(data_format=form),
            layers.Flatten(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.1, 0.5, weight.shape))
    return model


def write(path, ordering, backend, version="1.2.2"):
    """Writes the network's weights as Keras 1 did."""
    kernel, *rest = (w.numpy() for w in network(ordering).weights)
    kernel = kernel[::-1, ::-1] if backend == "theano" else kernel
    kernel = kernel.transpose(3, 2, 0, 1) if ordering == "th" else kernel
    stored = {
        "convolution2d_1": dict(zip("Wb", [kernel, rest[0]], strict=True)),
        "batchnormalization_1": dict(
            zip(
                ("gamma", "beta", "running_mean", "running_std"),
                rest[1:5],
                strict=True,
            )
        ),
        "dense_1": dict(zip("Wb", rest[5:], strict=True)),
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(configuration(ordering))
        if version:
            file.attrs["keras_version"] = version
        weights = file.create_group("model_weights")
        if backend:
            weights.attrs["backend"] = backend
        weights.attrs["layer_names"] = [name.encode() for name in stored]
        for name, values in stored.items():
            group = weights.create_group(name)
            names = [f"{name}_{kind}" for kind in values]
            group.attrs["weight_names"] = [n.encode() for n in names]
            for key, value in zip(names, values.values(), strict=True):
                group[key] = value


@pytest.mark.parametrize("ordering", ["tf", "th"])
@pytest.mark.parametrize("backend", ["tensorflow", "theano"])
def test_the_same_function(ordering, backend, tmp_path):
    write(tmp_path / "m.h5", ordering, backend)
    found = reading.read(tmp_path / "m.h5")
    wanted = network(ordering)
    assert found.model.input_shape == wanted.input_shape
    for stored, weight in zip(found.model.weights, wanted.weights, strict=True):
        np.testing.assert_array_equal(stored, weight)
    if ordering == "tf":
        x = np.random.default_rng(1).random((2, 8, 8, 3), "float32")
        np.testing.assert_array_equal(found.model(x), wanted(x))


def test_a_file_without_version_and_backend(tmp_path):
    write(tmp_path / "m.h5", "tf", backend=None, version=None)
    found = reading.read(tmp_path / "m.h5")
    assert found.written_by is None
    x = np.random.default_rng(1).random((2, 8, 8, 3), "float32")
    np.testing.assert_array_equal(found.model(x), network("tf")(x))
    # Theano's kernels are flipped, TensorFlow's are not.
    write(tmp_path / "m.h5", "th", backend=None, version=None)
    with pytest.raises(ValueError, match="on backend None"):
        reading.read(tmp_path / "m.h5")
