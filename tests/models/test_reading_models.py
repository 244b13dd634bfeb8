"""Files of any Keras, under any name, read as the same function."""

import keras
import keras_2_files
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfsam.models import reading


def randomized(model):
    """The model with other weights than its initial ones, all positive."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.1, 0.6, weight.shape))
    return model


def sequential():
    return randomized(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.DepthwiseConv2D(3),
                layers.BatchNormalization(),
                layers.LeakyReLU(negative_slope=0.3),
                layers.Dropout(0.5),
                layers.Flatten(),
                layers.Dense(5, activation="softmax"),
            ]
        )
    )


def nested():
    """A functional model of a Sequential and of another functional model."""
    inner = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="one")(inner)
    # Of the same shape: only the names tell them apart.
    y = layers.Conv2D(4, 3, padding="same", name="two")(inner)
    x = layers.BatchNormalization()(layers.Subtract()([y, x]))
    backbone = keras.Model(inner, x, name="backbone")
    head = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    inputs = keras.Input((8, 8, 3))
    return randomized(keras.Model(inputs, head(backbone(inputs))))


def pixels():
    return np.random.default_rng(1).random((4, 8, 8, 3), "float32")


def assert_same(stored, model):
    """The model that was read returns what the other returns."""
    x = pixels()
    np.testing.assert_allclose(
        stored.model(x, training=False), model(x, training=False), atol=1e-6
    )


@pytest.mark.parametrize("make", [sequential, nested])
@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m.model", "m", "m.zip"])
def test_files_of_keras_2_under_any_name(make, name, tmp_path):
    model = make()
    keras_2_files.write(tmp_path / name, model)
    found = reading.read(tmp_path / name)
    assert_same(found, model)
    assert (found.format, found.reader) == ("hdf5", "keras")
    assert found.written_by == "Keras 2.4.0"
    # Fine-tuned, saved and attacked like any other.
    assert isinstance(found.model, keras.Model)
    found.model.save(tmp_path / "again.keras")
    assert_same(reading.read(tmp_path / "again.keras"), model)


@pytest.mark.parametrize("make", [sequential, nested])
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_files_of_keras_3_under_any_name(make, suffix, tmp_path):
    model = make()
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    for name in (path.name, "model.bin", "model"):
        path = path.rename(tmp_path / name)
        found = reading.read(path)
        assert_same(found, model)
        assert found.written_by == f"Keras {keras.__version__}"


def test_saved_models_without_the_library_that_wrote_them(tmp_path):
    model = sequential()
    model.export(tmp_path / "export", verbose=False)
    for path in (tmp_path / "export", tmp_path / "export" / "saved_model.pb"):
        with pytest.warns(UserWarning, match="is a SavedModel, a program"):
            found = reading.read(path)
        assert found.format == "saved_model"
        assert found.written_by == f"TensorFlow {tf.__version__}"
        served = found.model.signatures["serving_default"](
            tf.constant(pixels())
        )
        (served,) = served.values()
        np.testing.assert_allclose(served, model(pixels()), atol=1e-6)
