"""Facts about models that `tfsam.models.inspect` finds out."""

import json

import keras
import pytest
from helpers import network
from keras import layers

import tfsam


@pytest.fixture(scope="module")
def digits_images():
    return tfsam.data.load("digits", limit_test=100)


def small(activation):
    keras.utils.set_random_seed(0)
    parts = [layers.Flatten(), layers.Dense(10, activation)]
    return keras.Sequential([keras.Input((8, 8, 1)), *parts])


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_file_without_data(tmp_path, activation):
    small(activation).save(tmp_path / "my model.keras")
    found = tfsam.models.inspect(tmp_path / "my model.keras")
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "keras"
    assert found["written_by"] == f"Keras {keras.__version__}"
    assert len(found["sha256"]) == 64
    assert found["input_shape"] == [8, 8, 1]
    assert found["input_dtype"] == "float32"
    assert found["outputs"] == 10
    ends = ("softmax", "removed_ending") if activation else ("logits", "exact")
    assert (found["ends_in"], found["logits"]) == ends
    assert found["pixels"] == "0..1"
    assert found["natural_accuracy"] == found["class_orders"] == {}
    assert any("nothing tells" in note for note in found["notes"])


def test_natural_accuracy_on_data(digits_images):
    trained = network("standard")
    kernel, *rest = trained.get_weights()
    trained.set_weights([kernel / 255, *rest])
    model = keras.Sequential([trained, layers.Softmax()])
    pairs = (digits_images.x_test, digits_images.y_test)
    for data in (digits_images, pairs):
        found = tfsam.models.inspect(model, data)
        assert set(found["natural_accuracy"]) == {"0..1", "0..255", "-1..1"}
        assert found["pixels"] == "0..255"
        assert found["natural_accuracy"]["0..255"] > 0.9
        assert found["natural_accuracy"]["0..1"] < 0.5


def test_a_model_of_any_size_of_images():
    inputs = keras.Input((None, None, 3))
    pooled = layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(pooled))
    found = tfsam.models.inspect(model)
    assert found["outputs"] == 2
    assert found["input_shape"] == [None, None, 3]
    assert found["format"] == "memory"
