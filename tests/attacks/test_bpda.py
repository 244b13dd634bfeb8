"""Tests of BPDA: values of one function with the gradients of another."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.support import identity

RNG = np.random.default_rng(0)


def both(function, x):
    """The values of a function, and the gradient of their sum times 1, 2..."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = function(x)
        size = tf.cast(tf.reshape(1 + tf.range(tf.size(z)), z.shape), z.dtype)
        total = tf.reduce_sum(size * z)
    return z.numpy(), tape.gradient(total, x).numpy()


def by_numpy(x):
    """Rounds by code outside of TensorFlow."""
    return tf.numpy_function(lambda a: np.floor(4 * a) / 4, [x], x.dtype)


@keras.saving.register_keras_serializable(package="tests")
def remainder(x):
    """Quantises to eighths: the gradient is 1 - 1 = 0, everywhere."""
    return x - x % 0.125


@keras.saving.register_keras_serializable(package="tests")
def steep(x):
    return tf.sigmoid(4 * x)


def test_the_gradient_is_the_identity_s():
    z, slope = both(tfsam.bpda(tf.round), np.float32([0.2, 0.9, 1.6]))
    np.testing.assert_array_equal(z, [0, 1, 2])
    np.testing.assert_array_equal(slope, [1, 2, 3])


def test_the_gradient_is_that_of_the_given_function():
    x = np.float32([[-1.0, 0.25], [0.5, 3.0]])
    hard = tfsam.bpda(lambda x: tf.cast(x > 0, x.dtype), steep)
    z, slope = both(hard, x)
    np.testing.assert_array_equal(z, x > 0)
    s = 1 / (1 + np.exp(-4 * x))
    expected = np.float32([[1, 2], [3, 4]]) * 4 * s * (1 - s)
    np.testing.assert_allclose(slope, expected, atol=1e-5)


def test_values_are_forward_s_to_the_bit():
    """Also where adding and subtracting the approximation would round."""
    x = RNG.normal(size=(50,)).astype("float32")
    tiny = tfsam.bpda(lambda x: 1e-12 * x, lambda x: 1e6 * x)
    np.testing.assert_array_equal(tiny(x), tf.constant(1e-12) * x)


def test_the_shape_may_change_with_backward():
    def pooled(x):
        return tf.reduce_mean(x, axis=1)

    z, slope = both(tfsam.bpda(lambda x: x[:, 0], pooled), np.ones((2, 4), "f"))
    np.testing.assert_array_equal(z, [1, 1])
    np.testing.assert_array_equal(slope, [[0.25] * 4, [0.5] * 4])


def test_what_numpy_computes():
    x = np.float32([[0.3], [0.8]])
    quantised = tfsam.bpda(by_numpy)
    traced = tf.function(
        quantised,
        input_signature=[tf.TensorSpec([None, 1])],
        autograph=False,
    )
    eager = tfsam.bpda(lambda x: np.floor(4 * x.numpy()) / 4)
    for function in (quantised, traced, eager):
        z, slope = both(function, x)
        np.testing.assert_array_equal(z, [[0.25], [0.75]])
        np.testing.assert_array_equal(slope, [[1], [2]])
    assert traced(tf.constant(x)).shape == (2, 1)


@pytest.mark.parametrize("shape", [(3, 1), (2, 2), (1, 1)])
def test_another_shape_is_rejected(shape):
    """Broadcasting would hide it."""
    wrong = tfsam.bpda(lambda x: tf.zeros(shape))
    with pytest.raises(ValueError, match="the same shape"):
        wrong(tf.zeros([2, 1]))

    unknown = tfsam.bpda(
        lambda x: tf.numpy_function(
            lambda a: np.zeros(shape, "float32"), [x], x.dtype
        )
    )
    traced = tf.function(
        unknown, input_signature=[tf.TensorSpec([None, 1])], autograph=False
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        traced(tf.zeros([2, 1]))


def test_bad_arguments():
    with pytest.raises(TypeError, match="Received: forward=3"):
        tfsam.bpda(3)
    with pytest.raises(TypeError, match="Received: backward=3"):
        tfsam.BPDA(tf.round, 3)
    with pytest.raises(ValueError, match="Received: a result of dtype int32"):
        tfsam.bpda(lambda x: tf.cast(x, tf.int32))(tf.zeros([2]))


X = RNG.uniform(0.26, 0.36, size=(20, 4)).astype("float32")
Y = np.zeros(20, "int64")


def linear(x):
    """Predicts class 0 up to a sum of 2.2."""
    total = tf.reduce_sum(x, axis=1, keepdims=True) - 2.2
    return 10 * tf.concat([-total, total], axis=1)


def test_an_evaluation_sees_through_a_quantisation():
    """0.25 more in each pixel crosses the boundary, 0.125 of it by rounding."""
    plain, through = (
        tfsam.evaluate(
            lambda x, defence=defence: linear(defence(x)),
            (X, Y),
            [("pgd", {"random_start": False}), "fmn"],
            epsilons=[0.4],
            batch_size=8,
            strict=True,
        )
        for defence in (remainder, tfsam.bpda(remainder))
    )
    assert [row["accuracy"] for row in plain["robust"]] == [1, 1]
    assert [row["accuracy"] for row in through["robust"]] == [0, 0]
    (warning,) = plain["warnings"]
    assert warning["warning"] == "zero_gradients"
    assert "tfsam.bpda" in warning["message"]
    assert through["warnings"] == []


def test_an_evaluation_sees_through_a_program():
    model = tfsam.bpda(by_numpy)
    plain, through = (
        tfsam.evaluate(function, (X, Y), ["pgd"], epsilons=[0.5])
        for function in (
            lambda x: linear(by_numpy(x)),
            lambda x: linear(model(x)),
        )
    )
    assert "tfsam.bpda" in plain["robust"][0]["error"]
    assert [w["warning"] for w in plain["warnings"]] == ["no_gradients"]
    assert "tfsam.bpda" in plain["warnings"][0]["message"]
    assert through["robust"][0]["accuracy"] == 0


def test_the_cache_key_covers_both_functions():
    def described(forward, backward=None):
        function = tfsam.bpda(forward, backward)
        return identity.digest(identity.describe(lambda x: linear(function(x))))

    first = described(lambda x: tf.round(x))
    assert described(lambda x: tf.round(x)) == first
    others = {
        described(lambda x: tf.floor(x)),
        described(lambda x: tf.round(x), lambda x: 2 * x),
        described(lambda x: tf.round(x), lambda x: 3 * x),
    }
    assert len(others - {first}) == 3


def layered():
    """A network behind a function and behind a layer with weights."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            tfsam.BPDA(remainder, name="quantised"),
            tfsam.BPDA(keras.layers.Dense(4), steep, name="hidden"),
            keras.layers.Dense(2),
        ]
    )


def test_a_layer_is_saved_and_loaded(tmp_path):
    network = layered()
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for found, expected in zip(both(loaded, X), both(network, X), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert both(loaded, X)[1].any()
    assert loaded.get_layer("hidden").backward is steep
    # Nothing is differentiated through forward.
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loaded(X))
    slopes = tape.gradient(total, loaded.trainable_variables)
    assert [slope is None for slope in slopes] == [True] * 2 + [False] * 2


def test_pixels_keep_their_precision_under_a_mixed_policy():
    seen = []

    def forward(x):
        seen.append(x.dtype)
        return tf.round(255 * x) / 255

    layer = tfsam.BPDA(forward, dtype="mixed_float16")
    z, slope = both(layer, np.float32([[0.7001]]))
    assert set(seen) == {tf.float32}
    np.testing.assert_array_equal(z, tf.round(255 * 0.7001) / 255)
    np.testing.assert_array_equal(slope, [[1]])


@pytest.mark.slow
def test_an_exported_layer_keeps_its_gradient(tmp_path):
    network = layered()
    network.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    for found, expected in zip(
        both(loaded.serve, X), both(network, X), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_xla_agrees():
    network = layered()
    compiled = tf.function(
        lambda x: both_tensors(network, x), jit_compile=True, autograph=False
    )
    for found, expected in zip(
        compiled(tf.constant(X)), both_tensors(network, X), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def both_tensors(function, x):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = function(x)
    return z, tape.gradient(z, x)
