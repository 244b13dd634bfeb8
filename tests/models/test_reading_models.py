"""Files of any Keras, under any name, read as the same function."""

import hashlib
import zipfile

import keras
import keras_2_files
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfsam.models.files import formats
from tfsam.models.files import reading


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
    # Of the same shape: they differ in their names only.
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
    """The model that was read returns the outputs of the other."""
    x = pixels()
    np.testing.assert_allclose(
        stored.model(x, training=False), model(x, training=False), atol=1e-6
    )


@pytest.mark.parametrize("make", [sequential, nested])
def test_files_of_keras_2_under_any_name(make, tmp_path):
    model = make()
    path = tmp_path / "model"
    keras_2_files.write(path, model)
    found = reading.read(path)
    assert_same(found, model)
    assert (found.format, found.reader) == ("hdf5", "keras")
    assert found.written_by == "Keras 2.4.0"
    assert found.notes == ("Keras 2.4.0 wrote it, and Keras 3 reads it mended",)
    for name in ("m.h5", "m.hdf5", "m.keras", "m.model", "m.zip", "saved"):
        path = path.rename(tmp_path / name)
        assert formats.recognize(path) == ("hdf5", path)
    # Trained further, saved and attacked like any other.
    assert isinstance(found.model, keras.Model)
    found.model.save(tmp_path / "again.keras")
    assert_same(reading.read(tmp_path / "again.keras"), model)


@pytest.mark.parametrize(
    "make", [sequential, pytest.param(nested, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_files_of_keras_3_under_any_name(make, suffix, tmp_path):
    model = make()
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    found = reading.read(path.rename(tmp_path / "model"))
    assert_same(found, model)
    assert found.written_by == f"Keras {keras.__version__}"
    assert found.notes == ()


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


@keras.saving.register_keras_serializable("tests")
def theirs(wanted, found):
    """A loss of the user's own, which is not needed."""
    return keras.ops.mean(wanted - found)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_losses_and_metrics_are_not_needed(suffix, tmp_path, monkeypatch):
    model = sequential()
    model.compile("adam", theirs, metrics=[theirs])
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    monkeypatch.delitem(keras.saving.get_custom_objects(), "tests>theirs")
    assert_same(reading.read(path), model)


def test_operations_in_hdf5_files_of_keras_3(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = layers.Conv2D(4, 3)(x)
    x = keras.ops.mean(keras.ops.relu(x)[..., 1:], axis=(1, 2))
    x = layers.Add()([x, x])
    model = keras.Model(inputs, keras.ops.softmax(layers.Dense(5)(x)))
    model.save(tmp_path / "model.h5")
    assert_same(reading.read(tmp_path / "model.h5"), model)


def test_an_unpacked_keras_file(tmp_path):
    model = sequential()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extractall(tmp_path / "model")
    assert_same(reading.read(tmp_path / "model"), model)


def test_a_sequential_whose_input_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    config = keras_2_files.stored(model)
    del config["config"]["layers"][0]["config"]["batch_input_shape"]
    keras_2_files.write(tmp_path / "m.h5", model, config=config)
    with pytest.raises(ValueError, match="shape of its input is not stored"):
        reading.read(tmp_path / "m.h5")


def test_the_checksum_is_that_of_the_file(tmp_path):
    sequential().save(tmp_path / "model.keras")
    content = (tmp_path / "model.keras").read_bytes()
    found = reading.read(tmp_path / "model.keras").sha256
    assert found == hashlib.sha256(content).hexdigest()
