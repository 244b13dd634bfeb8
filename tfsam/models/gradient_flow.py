"""The layer of a network at which its gradients are lost.

A network without usable gradients cannot be attacked along them. The layers of
a Keras model are looked at one after the other to tell which is the cause.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def no_gradient(slopes: Any) -> bool:
    """Returns whether there is no gradient at all.

    Args:
        slopes: A gradient as a tape returns it, a float array, or None.
    """
    return slopes is None


def zero_gradient(slopes: Any) -> bool:
    """Returns whether the gradient of each example is zero.

    Args:
        slopes: A gradient as a tape returns it, a float array, or None.
    """
    return slopes is not None and not np.any(slopes)


def nan_gradient(slopes: Any) -> bool:
    """Returns whether the gradient has entries that are NaN or infinite.

    Args:
        slopes: A gradient as a tape returns it, a float array, or None.
    """
    return slopes is not None and not np.all(np.isfinite(slopes))


def losing_layer(
    function: Any, x: np.ndarray, lost: Callable[[Any], bool]
) -> str | None:
    """Returns the first layer of a network whose gradient is lost.

    Args:
        function: The function of a loaded model, from pixels to logits, with
            the `keras.Model` as its attribute `model`.
        x: Float array (batch, ...), images.
        lost: Function that tells from a gradient with respect to x whether it
            is lost: `no_gradient`, `zero_gradient` or `nan_gradient`.

    Returns:
        Name and class of the layer, such as "round (Round)"; None if the model
        has no layers to look at, or no layer is the cause.

    Example:
        >>> layers = [keras.Input((2,)), keras.layers.Dense(2)]
        >>> losing_layer(keras.Sequential(layers), np.ones([1, 2]), no_gradient)
    """
    model = getattr(function, "model", function)
    inputs = getattr(model, "inputs", None) or []
    if not isinstance(model, keras.Model) or len(inputs) != 1:
        return None
    layers = [
        layer
        for layer in model.layers
        if isinstance(getattr(layer, "output", None), keras.KerasTensor)
    ]
    parts = keras.Model(inputs, [layer.output for layer in layers])
    pixels = tf.constant(x)
    with tf.GradientTape(
        persistent=True, watch_accessed_variables=False
    ) as tape:
        tape.watch(pixels)
        outputs = keras.tree.flatten(parts(pixels, training=False))
    for layer, output in zip(layers, outputs, strict=True):
        if lost(_gradient(tape, output, pixels)):
            inner = losing_layer(layer, _some_input(layer), lost)
            return inner or f"{layer.name} ({type(layer).__name__})"
    return None


def _some_input(layer: Any) -> np.ndarray:
    """Returns random numbers of the shape that a model inside another takes."""
    shapes = [part.shape for part in getattr(layer, "inputs", None) or []]
    shape = [1] if len(shapes) != 1 else [size or 1 for size in shapes[0]]
    return np.random.default_rng(0).random(shape, np.float32)


def _gradient(
    tape: tf.GradientTape, output: tf.Tensor, pixels: tf.Tensor
) -> Any:
    """Returns the gradient of a random projection of a layer's output."""
    if not output.dtype.is_floating:
        return None
    # The sum of a softmax, or of normalised features, is constant.
    random = np.random.default_rng(0).normal(size=output.shape)
    weights = tf.constant(random, output.dtype)
    slopes = tape.gradient(output, pixels, output_gradients=weights)
    return None if slopes is None else slopes.numpy()
