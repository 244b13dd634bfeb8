"""Gradients of losses with respect to the pixels alone."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def finite_part(slopes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces NaN and infinity by zeros; also returns which entries are kept.

    Zero is a subgradient for the usual causes, a norm or a square root at 0,
    and the other pixels of the example can still be attacked.

    Args:
        slopes: Float tensor, gradients.

    Returns:
        (finite, kept), a float and a bool tensor of the shape of `slopes`.

    Example:
        >>> import tensorflow as tf
        >>> finite_part(tf.constant([1.0, float("nan")]))[0].numpy().tolist()
        [1.0, 0.0]
    """
    kept = tf.math.is_finite(slopes)
    return tf.where(kept, slopes, tf.zeros([], slopes.dtype)), kept


def plain_gradient(
    logits_fn: Callable[[tf.Tensor], Any],
    loss: Callable[[tf.Tensor, Any], tf.Tensor],
    independent: bool = True,
) -> Callable[..., Any]:
    """Returns a gradient with respect to the pixels, as it is.

    Args:
        logits_fn: Function from pixels to logits.
        loss: Function from (logits, labels) to a float tensor (batch,).
        independent: Whether the logits of an example depend only on its own
            pixels.

    Returns:
        Function (x, labels) -> (gradient, logits), not traced. The gradient may
        have NaN and infinity.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks.losses import margin
        >>> gradient = plain_gradient(lambda x: x, margin)
        >>> slopes, _ = gradient(tf.constant([[1.0, 0.0]]), tf.constant([0]))
        >>> slopes.numpy().tolist()
        [[-1.0, 1.0]]
    """

    def gradient(x: tf.Tensor, labels: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = tf.convert_to_tensor(logits_fn(x))
        with tf.GradientTape(watch_accessed_variables=False) as loss_tape:
            loss_tape.watch(logits)
            total = tf.reduce_sum(loss(logits, labels))
        slopes = loss_tape.gradient(total, logits)
        result = None
        if slopes is not None:
            # In a float16 network the gradients of a confident example would
            # vanish; each example has its own loss scale.
            axis = list(range(1, logits.shape.rank)) if independent else None
            largest = tf.reduce_max(tf.abs(slopes), axis, keepdims=True)
            scale = _power_of_two(largest)
            result = tape.gradient(logits, x, slopes / scale)
        if result is None:
            raise ValueError(
                "A gradient attack needs logits that depend on the pixels by "
                "differentiable operations: no gradient flows through this "
                "function. Replace the gradient by tfsam.bpda, or use a "
                "gradient-free attack, such as square. "
                f"Received: logits_fn={_name(logits_fn)}"
            )
        each = [-1] + [1] * (x.shape.rank - 1)
        result *= tf.cast(tf.reshape(scale, each), result.dtype)
        return tf.ensure_shape(result, x.shape), logits

    return gradient


def _name(function: Any) -> str:
    """Returns the name of a function or a model, without its address."""
    if isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__self__", function)  # Of a method.
    for part in ("logits", "function", "model", "func"):
        function = getattr(function, part, function)
    for part in ("name", "__qualname__"):
        if isinstance(getattr(function, part, None), str):
            return str(getattr(function, part))
    return type(function).__qualname__


def _power_of_two(values: tf.Tensor) -> tf.Tensor:
    """Returns the largest power of two up to each value; 1 for 0 and infinity.

    Multiplying and dividing by a power of two is exact.
    """
    exponents = tf.bitcast(tf.cast(values, tf.float32), tf.int32) & 0x7F800000
    powers = tf.bitcast(exponents, tf.float32)
    usual = (powers > 0) & tf.math.is_finite(powers)
    return tf.cast(tf.where(usual, powers, 1.0), values.dtype)
