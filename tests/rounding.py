"""Whether this processor rounds a row alike wherever it stands in a batch."""

import functools

import numpy as np
import tensorflow as tf

import tfsam

# Of pixels and logits, where it does not.
_DIFFERENCE = 1e-5


@functools.cache
def tolerance():
    """0 where it does, so that results must agree to the bit.

    With AVX2 alone strided convolutions and dense layers do not.
    """
    network = tfsam.networks.preact_resnet8(10, input_shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    x = rng.random((8, 8, 8, 1), dtype="float32")

    @tf.function(autograph=False)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = network(x, training=False)
        return z, tape.gradient(z, x)

    whole = both(tf.constant(x))
    for order in (rng.permutation(8) for _ in range(4)):
        for found, expected in zip(
            both(tf.constant(x[order])), whole, strict=True
        ):
            if not np.array_equal(found, expected.numpy()[order]):
                return _DIFFERENCE
    return 0.0
