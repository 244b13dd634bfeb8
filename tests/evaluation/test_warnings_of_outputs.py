"""Warnings about logits that depend on more than the pixels of an example."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.evaluation import model_probes
from tfsam.evaluation import red_flags
from tfsam.models.loading import load_logits

RNG = np.random.default_rng(0)
W = RNG.normal(size=(64, 10)).astype("float32")


@pytest.fixture(scope="module")
def x(digits):
    # Of different brightness, none black.
    brightness = np.linspace(0.5, 1, 16, dtype="float32")
    return 0.1 + 0.9 * brightness[:, None, None, None] * digits[0][:16]


def linear(x):
    return tf.matmul(tf.reshape(x, [-1, 64]), W)


def warned(model, x):
    """Returns the names of the warnings about a model's outputs."""
    probed = model_probes.probe_outputs(load_logits(model).function, x)
    found = probed | {"zero_gradients": 0, "probed": len(x)}
    return [w["warning"] for w in red_flags.of_model([found], [found])]


def normalized(training, **options):
    """A network with BatchNormalization in a mode of its own."""

    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = keras.layers.Conv2D(4, 3)
            self.norm = keras.layers.BatchNormalization(**options)
            self.dense = keras.layers.Dense(10)

        def call(self, x):
            x = self.norm(self.convolution(x), training=training)
            return self.dense(keras.ops.reshape(x, (-1, 144)))

    return Network()


DEPENDENT = {
    "batch statistics": lambda: normalized(True),
    "maximum": lambda: lambda x: linear(x / tf.reduce_max(x)),
    "mean": lambda: lambda x: linear(x - tf.reduce_mean(x)),
    "standardized": lambda: lambda x: linear(x / tf.math.reduce_std(x)),
    "the first one": lambda: lambda x: linear(x) + 0.1 * linear(x[:1]),
    "small logits": lambda: lambda x: 1e-6 * linear(x - tf.reduce_mean(x)),
}


@pytest.mark.parametrize("size", [1, slow(2), 16])
@pytest.mark.parametrize("model", DEPENDENT.values(), ids=list(DEPENDENT))
def test_logits_that_depend_on_the_batch_are_found(model, size, x):
    if size == 1 and model is DEPENDENT["maximum"]:
        pytest.skip("no other image of this range has a larger maximum")
    assert warned(model(), x[:size]) == ["batch_dependent"]


def test_images_sorted_by_class_hide_nothing(digits):
    x, y = digits
    assert warned(normalized(True), x[y == 3][:16]) == ["batch_dependent"]


NOISY = {
    "noise": lambda: lambda x: linear(x) + tf.random.normal([10]),
    "a Keras layer's noise": lambda: keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Lambda(dropout_of_its_own()),
            keras.layers.Lambda(linear),
        ]
    ),
    "small logits": lambda: (
        lambda x: 1e-6 * (linear(x) + 0.01 * tf.random.normal([10]))
    ),
    "a large offset": lambda: (
        lambda x: 1e4 + linear(x) + tf.random.normal([10])
    ),
}


def dropout_of_its_own():
    layer = keras.layers.Dropout(0.5, seed=3)
    return lambda x: layer(x, training=True)


@pytest.mark.parametrize("model", NOISY.values(), ids=list(NOISY))
def test_logits_that_are_drawn_are_found(model, x):
    assert "random_outputs" in warned(model(), x)


def rounded_anew(scale, size):
    """Logits of a given size; their last bits differ from call to call."""

    def function(x):
        logits = scale * linear(x)
        noise = tf.random.uniform(tf.shape(logits), -1.0, 1.0)
        return logits * (1 + size * noise)

    return function


def mixed(policy):
    layers = [
        keras.layers.Conv2D(8, 3, activation="relu", dtype=policy),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu", dtype=policy),
        keras.layers.Dense(10, dtype=policy),
    ]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


ORDINARY = {
    "linear": lambda: linear,
    "statistics of the training": lambda: normalized(False),
    "large logits": lambda: rounded_anew(1e4, 3e-7),
    "small logits": lambda: rounded_anew(1e-6, 3e-7),
    "statistics of an example": lambda: (
        lambda x: linear(x / tf.reduce_max(x, axis=(1, 2, 3), keepdims=True))
    ),
    "all the same": lambda: lambda x: 0 * linear(x),
    "float16": lambda: mixed("mixed_float16"),
    "bfloat16": lambda: mixed("mixed_bfloat16"),
    "preact_resnet8": lambda: tfsam.networks.preact_resnet8(
        num_classes=10, input_shape=(8, 8, 1)
    ),
}


@pytest.mark.parametrize("size", [slow(1), 16])
@pytest.mark.parametrize("model", ORDINARY.values(), ids=list(ORDINARY))
def test_ordinary_logits_raise_no_alarm(model, size, x):
    assert warned(model(), x[:size]) == []


def test_a_model_that_takes_one_example_at_a_time_is_independent(x):
    def one(x):
        return linear(tf.ensure_shape(x, [1, 8, 8, 1]))

    assert warned(one, x[:1]) == []


def test_the_evaluation_says_that_the_order_matters(digits):
    x, y = digits[0][:40], digits[1][:40]
    order = np.argsort(y)
    for data in ((x, y), (x[order], y[order])):
        result = tfsam.evaluate(normalized(True), data, [], batch_size=8)
        names = [warning["warning"] for warning in result["warnings"]]
        assert "batch_dependent" in names
        messages = " ".join(w["message"] for w in result["warnings"])
        assert "BatchNormalization in training mode" in messages
