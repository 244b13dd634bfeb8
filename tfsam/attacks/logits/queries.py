"""Queries of a function from pixels to logits: its logits and gradients."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.logits.network import Logits
from tfsam.attacks.logits.network import LogitsFn
from tfsam.attacks.logits.network import LossFn
from tfsam.attacks.logits.settings import setting
from tfsam.attacks.pixel_gradients import finite_part
from tfsam.attacks.pixel_gradients import plain_gradient


def predict(
    logits_fn: LogitsFn, x: tf.Tensor, active: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes logits, if possible only those of the active examples.

    Args:
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).
        active: Bool tensor (batch,). None means all.

    Returns:
        Tensor (batch, classes). The logits of examples that are not active are
        undefined.

    Example:
        >>> import tensorflow as tf
        >>> predict(lambda x: 2 * x, tf.constant([[1.0, 2.0]])).numpy().tolist()
        [[2.0, 4.0]]
    """
    if isinstance(logits_fn, Logits):
        return logits_fn.predict(x, active)
    return tf.convert_to_tensor(logits_fn(x))


def input_gradient(
    logits_fn: LogitsFn,
    loss: LossFn = losses.cross_entropy,
    recorded: bool = True,
) -> Callable[..., Any]:
    """Returns the gradient of a loss with respect to the pixels alone.

    Args:
        logits_fn: Function from pixels to logits.
        loss: Function from (logits, labels) to a float tensor (batch,).
        recorded: Whether the gradients are shown to the recorder of a `Logits`,
            if it has one. Each call of `input_gradient` then begins an attempt.

    Returns:
        Function (x, labels, active=None) -> (gradient, logits), where the
        gradient has the shape of x. Each example's gradient is that of its own
        loss, independent of the rest of the batch. The values for examples
        that are not active are undefined; if possible they are not computed.
        Entries of the gradient that are NaN or infinite are replaced by zeros;
        a `Logits` counts them in `nonfinite`.

        The function raises a ValueError if the logits do not depend on the
        pixels by differentiable operations.

    Example:
        >>> import tensorflow as tf
        >>> gradient = input_gradient(lambda x: x, losses.margin)
        >>> slopes, _ = gradient(tf.constant([[1.0, 0.0]]), tf.constant([0]))
        >>> slopes.numpy().tolist()
        [[-1.0, 1.0]]
    """
    recorder = setting(logits_fn, "recorder")
    if isinstance(logits_fn, Logits):
        gradient = logits_fn.gradient(loss)
    else:
        gradient = _finite_gradient(logits_fn, loss)
    if recorder is None or not recorded:
        return gradient
    recorder.begin()

    def seen(
        x: tf.Tensor, labels: Any, active: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        slopes, logits = gradient(x, labels, active)
        recorder.record(x, slopes, logits, active)
        return slopes, logits

    return seen


def _finite_gradient(logits_fn: LogitsFn, loss: LossFn) -> Callable[..., Any]:
    """Returns the `input_gradient` of a function that is no `Logits`."""
    plain = plain_gradient(logits_fn, loss)

    def gradient(
        x: tf.Tensor, labels: Any, active: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        slopes, logits = plain(x, labels)
        return finite_part(slopes)[0], logits

    return gradient
