"""Weights without a model, loaded into a network of the same architecture."""

import h5py
import keras
import keras_2_files
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfsam.models.files import weight_files

MISFIT = r"^weights must be .*Received: weights="


def network(units=5, extra=False):
    """A functional model with a Sequential inside, all weights random."""
    inner = [keras.Input((6, 6, 4)), layers.Conv2D(4, 1)]
    inner += [layers.DepthwiseConv2D(3), layers.BatchNormalization()]
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    x = layers.Dropout(0.5)(keras.Sequential(inner, name="inner")(x))
    x = layers.Dense(units)(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(units)(x) if extra else x)
    for weight in model.weights:
        weight.assign(keras.random.normal(weight.shape))
    return model


def keras_3(model, path):
    model.save_weights(path / "a.weights.h5")
    return (path / "a.weights.h5").rename(path / "weights")


def keras_3_model(model, path):
    model.save(path / "model.keras")
    return (path / "model.keras").rename(path / "model.bin")


def keras_3_compiled(model, path):
    """Optimizers and metrics have weights of their own."""
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return keras_3_model(model, path)


def keras_2(model, path):
    with h5py.File(path / "weights.h5", "w") as file:
        keras_2_files.write_weights(file, model)
    return path / "weights.h5"


def keras_2_model(model, path):
    keras_2_files.write(path / "model.h5", model)
    return path / "model.h5"


def checkpoint(model, path):
    return tf.train.Checkpoint(model=model).write(str(path / "checkpoint"))


def checkpoint_of_keras_2(model, path):
    """The names of Keras 2, which numbers the layers that have weights."""

    def holder(layer):
        found = tf.Module()
        inner = [part for part in getattr(layer, "layers", ()) if part.weights]
        for index, part in enumerate(inner):
            setattr(found, f"layer_with_weights-{index}", holder(part))
        for weight in [] if inner else layer.weights:
            setattr(found, weight.name, tf.Variable(weight.numpy()))
        return found

    tf.train.Checkpoint(root=holder(model)).write(str(path / "w"))
    return path


@pytest.mark.parametrize(
    "write",
    [
        keras_3,
        pytest.param(keras_3_model, marks=pytest.mark.slow),
        keras_3_compiled,
        keras_2,
        pytest.param(keras_2_model, marks=pytest.mark.slow),
        pytest.param(checkpoint, marks=pytest.mark.slow),
        checkpoint_of_keras_2,
    ],
)
def test_weights_of_every_kind(write, tmp_path):
    model, other = network(), network()
    path = write(model, tmp_path)
    weight_files.load_weights_into(other, path)
    for found, wanted in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(found, wanted)
    # Another head, and a layer more in the network and in the file.
    for unlike in (network(units=4), network(extra=True)):
        with pytest.raises(ValueError, match=MISFIT):
            weight_files.load_weights_into(unlike, path)
    more = write(network(extra=True), tmp_path)
    with pytest.raises(ValueError, match=MISFIT):
        weight_files.load_weights_into(network(), more)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file: download or save it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"\x89HDF\r\n\x1a\n", "a truncated or damaged HDF5 file"),
        (None, "there is no such file"),
    ],
)
def test_a_file_without_weights_is_one_line(content, message, tmp_path):
    path = tmp_path / "model.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        weight_files.load_weights_into(network(), path)
    assert str(error.value).endswith(f"Received: weights={path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["batch", "renamed"])
def test_weights_of_equal_shapes_are_told_apart(name, tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.BatchNormalization(name="batch")]
    )
    kinds = ["beta", "gamma", "moving_mean", "moving_variance"]
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["batch"]
        group = file.create_group("batch")
        group.attrs["weight_names"] = [f"{name}/{kind}:0" for kind in kinds]
        for index, kind in enumerate(kinds):
            group[f"{name}/{kind}:0"] = np.full(4, index, "float32")
    if name == "renamed":
        # By their order, gamma and beta would be confused.
        with pytest.raises(ValueError, match=r"weights gamma .* and the file "):
            weight_files.load_weights_into(model, tmp_path / "w.h5")
        return
    weight_files.load_weights_into(model, tmp_path / "w.h5")
    (layer,) = model.layers
    assert float(layer.beta[0]) == 0
    assert float(layer.gamma[0]) == 1


def test_layers_are_found_by_their_names(tmp_path):
    model = keras.Sequential([keras.Input((4,))])
    for name in ("one", "two", "three"):
        model.add(layers.Dense(4, name=name))
    path = keras_2(model, tmp_path)
    with h5py.File(path, "r+") as file:
        names = list(file.attrs["layer_names"])
        file.attrs["layer_names"] = names[::-1]
    other = keras.models.clone_model(model)
    weight_files.load_weights_into(other, path)
    for found, wanted in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(found, wanted)
