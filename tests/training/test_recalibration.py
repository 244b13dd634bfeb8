"""Statistics of BatchNorm layers in code that Keras does not inspect."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam.training.recalibration import recalibrate

X = np.array([[0, 1], [2, 3], [4, 8]], "float32")


class Compiled(keras.layers.Layer):
    """A layer with BatchNorm inside a `tf.function`."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()

    def build(self, input_shape):
        self.norm.build(input_shape)

    @tf.function
    def normalized(self, x, training):
        return self.norm(x, training=training)

    def call(self, x, training=False):
        return self.normalized(x, training)


@pytest.mark.parametrize("called", [False, True])
def test_a_tf_function_around_batch_norm_loses_no_statistics(called):
    layer = Compiled()
    network = keras.Sequential([keras.Input((2,)), layer])
    if called:  # Its graph has been traced outside of any scope.
        network(X)
    recalibrate(network, X)
    np.testing.assert_allclose(layer.norm.moving_mean, X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.norm.moving_variance, X.var(0), rtol=1e-5)
