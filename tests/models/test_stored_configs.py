"""Mended configurations: the same function, or a refusal."""

import json
import pathlib
import tempfile

import hypothesis
import keras
import keras_2_files
import numpy as np
import pytest
from helpers import examples
from hypothesis import strategies
from keras import layers

from tfsam.models.files import reading
from tfsam.models.files import stored_configs
from tfsam.models.files import trusted_code
from tfsam.models.files.stored_operations import Unsupported


def stored(kind, **config):
    return {"class_name": kind, "config": {"name": kind.lower()} | config}


def functional(*entries):
    """A functional model of Keras 2: pairs of a layer and its connections."""
    source = stored("InputLayer", batch_input_shape=[None, 4, 4, 3])
    found = [source | {"name": "inputlayer", "inbound_nodes": []}]
    for entry, nodes in entries:
        name = entry["config"]["name"]
        found.append(entry | {"name": name, "inbound_nodes": nodes})
    last = found[-1]["name"]
    config = {
        "name": "model",
        "layers": found,
        "input_layers": [["inputlayer", 0, 0]],
        "output_layers": [[last, 0, 0]],
    }
    return {"class_name": "Functional", "config": config}


def operation(name, function):
    return stored("TFOpLambda", name=name, function=function)


def graph_operation(name, kind, constants):
    """An operation as TensorFlow 2.0 to 2.3 stored it."""
    definition = {"name": name, "op": kind, "input": ["x", "y"], "attr": {}}
    return stored(
        "TensorFlowOpLayer",
        name=name,
        node_def=json.dumps(definition),
        constants=constants,
    )


def built(config, version="2.4.0"):
    found = stored_configs.mended(config, version, {})
    trusted_code.check(found, {}, ())
    return keras.saving.deserialize_keras_object(found)


X = np.random.default_rng(0).uniform(1, 200, (2, 4, 4, 3)).astype("float32")
BIAS = [-103.939, -116.779, -123.68]
REVERSED = [
    {"class_name": "__ellipsis__"},
    {"start": None, "stop": None, "step": -1},
]

OPERATIONS = {
    "mobile_net": (
        functional(
            (
                operation("tf.math.truediv", "math.truediv"),
                [["inputlayer", 0, 0, {"y": 127.5, "name": None}]],
            ),
            (
                operation("tf.math.subtract", "math.subtract"),
                [["tf.math.truediv", 0, 0, {"y": 1.0, "name": None}]],
            ),
        ),
        X / np.float32(127.5) - 1,
    ),
    "caffe": (
        functional(
            (
                stored("SlicingOpLambda", function="__operators__.getitem"),
                [["inputlayer", 0, 0, {"slice_spec": REVERSED}]],
            ),
            (
                operation("tf.nn.bias_add", "nn.bias_add"),
                [
                    [
                        "slicingoplambda",
                        0,
                        0,
                        {"bias": BIAS, "data_format": "NHWC", "name": None},
                    ]
                ],
            ),
        ),
        X[..., ::-1] + np.array(BIAS, "float32"),
    ),
    "constant_first": (
        functional(
            (
                operation("tf.math.subtract", "math.subtract"),
                [["_CONSTANT_VALUE", -1, 1.0, {"y": ["inputlayer", 0, 0]}]],
            )
        ),
        1 - X,
    ),
    "two_tensors": (
        functional(
            (stored("ReLU"), [[["inputlayer", 0, 0, {}]]]),
            (
                operation("tf.concat", "concat"),
                [
                    [
                        ["relu", 0, 0, {"axis": -1}],
                        ["inputlayer", 0, 0, {"axis": -1}],
                    ]
                ],
            ),
            (
                operation("tf.math.reduce_mean", "math.reduce_mean"),
                [["tf.concat", 0, 0, {"axis": [1, 2], "keepdims": False}]],
            ),
        ),
        np.concatenate([X, X], -1).mean((1, 2)),
    ),
    "graph": (
        functional(
            (
                graph_operation("mul", "Mul", {"1": 0.5}),
                [[["inputlayer", 0, 0, {}]]],
            ),
            (
                graph_operation("sub", "Sub", {"0": 3.0}),
                [[["mul", 0, 0, {}]]],
            ),
        ),
        3 - X * np.float32(0.5),
    ),
    "slash": (
        functional(
            (stored("ReLU", name="a/b"), [[["inputlayer", 0, 0, {}]]]),
            (stored("ReLU", name="c/d"), [[["a/b", 0, 0, {}]]]),
        ),
        X,
    ),
    "keyword": (
        functional(
            (stored("ReLU", threshold=50.0), [[["inputlayer", 0, 0, {}]]]),
            (
                operation("tf.__operators__.add", "__operators__.add"),
                [["relu", 0, 0, {"y": ["inputlayer", 0, 0], "name": None}]],
            ),
        ),
        np.where(X > 50, X, 0) + X,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_tensorflow(name, tmp_path):
    config, wanted = OPERATIONS[name]
    model = built(config)
    np.testing.assert_allclose(model(X), wanted, rtol=1e-6, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(X), model(X))


UNSUPPORTED = [
    stored("LocallyConnected2D", filters=2, kernel_size=[2, 2]),
    stored("Activation", activation="hard_sigmoid"),
    stored("LSTM", units=2, recurrent_activation="hard_sigmoid"),
    stored("DepthwiseConv2D", kernel_size=[2, 2], groups=2),
    stored("BatchNormalization", virtual_batch_size=2),
    stored("LSTM", units=2, time_major=True),
    functional((stored("Dropout"), [[["inputlayer", 0, 0, {"training": 1}]]])),
    functional((operation("tf.svd", "linalg.svd"), [["inputlayer", 0, 0, {}]])),
    functional(
        (
            operation("tf.reshape", "reshape"),
            [["inputlayer", 0, 0, {"shape": [["inputlayer", 0, 0], 3]}]],
        )
    ),
    functional(
        (
            operation("tf.image.resize", "image.resize"),
            [["inputlayer", 0, 0, {"size": [2, 2], "antialias": True}]],
        )
    ),
]


@pytest.mark.parametrize("config", UNSUPPORTED)
def test_parts_without_an_equivalent_are_left_to_tf_keras(config):
    with pytest.raises(Unsupported):
        stored_configs.mended(config, "2.4.0", {})


@pytest.mark.parametrize("kept", ["softmax_v2", "log_softmax_v2"])
def test_activations_of_tensorflow_are_those_of_keras(kept):
    function = {"class_name": "function", "config": kept, "module": "builtins"}
    wanted = kept.removesuffix("_v2")
    for activation in (kept, function):
        config = stored("Dense", units=2, activation=activation)
        mended = stored_configs.mended(config, "2.15.0", {})
        assert mended["config"]["activation"] == wanted


def test_without_tf_keras_the_error_names_it(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    config = keras_2_files.stored(model)
    config["config"]["layers"].append(UNSUPPORTED[1])
    keras_2_files.write(tmp_path / "m.h5", model, config=config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = (
        r"pip install tf_keras \(tfsam's extra legacy\) \(Keras 3: the "
        r"activation hard_sigmoid of Keras 2\)\. Received"
    )
    with pytest.raises(ValueError, match=message):
        reading.read(tmp_path / "m.h5")


def test_keras_3_reads_what_it_wrote_unchanged():
    config = stored("Activation", activation="hard_sigmoid")
    found = stored_configs.mended(config, "3.1.1", {})
    assert found["config"]["activation"] == "hard_sigmoid"


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A layer of the user's own."""

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], name="factor")

    def call(self, x):
        return x * self.factor


@pytest.mark.parametrize("name", ["tests>Scale", "Scale"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_layers_of_the_users_own(name, as_bytes, tmp_path):
    model = keras.Sequential([keras.Input((4,)), Scale(), layers.Dense(2)])
    config = keras_2_files.stored(model)
    config["config"]["layers"][0]["class_name"] = name
    path = tmp_path / "model.h5"
    keras_2_files.write(path, model, None, config, as_bytes)
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(reading.read(path).model(x), model(x))
    config["config"]["layers"][0]["class_name"] = "Unregistered"
    keras_2_files.write(path, model, None, config, as_bytes)
    with pytest.raises(ValueError, match="class Unregistered, which is not"):
        reading.read(path)


LAYERS = [
    lambda: layers.Conv2D(3, 2, padding="same", activation="relu"),
    lambda: layers.DepthwiseConv2D(2, padding="same"),
    lambda: layers.SeparableConv2D(3, 2, padding="same"),
    layers.BatchNormalization,
    lambda: layers.LeakyReLU(negative_slope=0.2),
    lambda: layers.Dropout(0.5),
    lambda: layers.SpatialDropout2D(0.5),
    lambda: layers.Dense(3, activation="tanh", kernel_regularizer="l2"),
    lambda: layers.Rescaling(0.5, offset=1.0),
    lambda: layers.ZeroPadding2D(1),
    lambda: keras.Sequential([layers.Dense(3), layers.BatchNormalization()]),
]


@hypothesis.settings(max_examples=examples(2))
@hypothesis.given(
    strategies.lists(strategies.sampled_from(LAYERS), min_size=1, max_size=4),
    strategies.sampled_from(["2.0.5", "2.2.4", "2.15.0", None]),
    strategies.sampled_from(["model.h5", "model.keras", "model.9", "model"]),
)
def test_any_stack_of_layers_is_the_same_function(makers, version, name):
    model = keras.Sequential([keras.Input((4, 4, 3)), *(m() for m in makers)])
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.1, 0.9, weight.shape))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        keras_2_files.write(path, model, version)
        found = reading.read(path).model
    x = generator.random((2, 4, 4, 3), "float32")
    np.testing.assert_allclose(found(x), model(x), rtol=1e-5, atol=1e-6)
