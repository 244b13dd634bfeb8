"""Success of an attack at a point: whether it may stop, and how points rank."""

from collections.abc import Callable

import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.logits.network import ROUNDING
from tfsam.attacks.logits.network import LogitsFn
from tfsam.attacks.logits.queries import predict
from tfsam.attacks.logits.settings import is_surrogate
from tfsam.attacks.logits.settings import setting


def may_stop(
    logits_fn: LogitsFn, logits: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Returns for which examples an attack may stop at the current point.

    An attack may stop at the first misclassified point, except on a surrogate:
    a point that barely fools the surrogate seldom fools another network. There,
    the attack makes all of its steps and returns the point of the highest loss.

    Args:
        logits_fn: Function from pixels to logits.
        logits: Float tensor (batch, classes), its logits at the current points.
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> logits, labels = tf.eye(2), tf.constant([0, 0])
        >>> may_stop(lambda x: x, logits, labels).numpy().tolist()
        [False, True]
    """
    found = losses.misclassified(logits, labels)
    return tf.zeros_like(found) if is_surrogate(logits_fn) else found


def crossed(
    logits_fn: LogitsFn, logits: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Returns which points are misclassified by more than rounding errors.

    Minimum-norm attacks end next to the decision boundary. There, the logits in
    a batch of another size may be rounded to the other side.

    Args:
        logits_fn: Function from pixels to logits.
        logits: Float tensor (batch, classes), its logits at the points.
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[1.0, 1.000001], [1.0, 1.1]])
        >>> crossed(lambda x: x, logits, tf.constant([0, 0])).numpy().tolist()
        [False, True]
    """
    rounding = setting(logits_fn, "rounding")
    rounding = ROUNDING if rounding is None else rounding
    largest = tf.reduce_max(tf.abs(logits), axis=-1)
    return losses.margin(logits, labels) > rounding * largest


def score(
    logits_fn: LogitsFn, y: tf.Tensor, active: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """Returns a function that ranks several points found on a surrogate.

    Args:
        logits_fn: Function from pixels to logits.
        y: Class numbers, or one-hot or smoothed labels.
        active: Bool tensor (batch,).

    Returns:
        For a surrogate, a function from points to their margins (batch,). Else
        None: the first misclassified point is used.

    Example:
        >>> import tensorflow as tf
        >>> score(lambda x: x, tf.constant([0]), tf.constant([True])) is None
        True
    """
    if not is_surrogate(logits_fn):
        return None
    return lambda x: losses.margin(predict(logits_fn, x, active), y)
