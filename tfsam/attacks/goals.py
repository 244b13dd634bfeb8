"""Goals of attacks other than any wrong class.

An attack moves an image until its largest logit is that of a wrong class. A
goal turns the logits of a network into others, for which this is the aim, with
label 0. Attacks therefore need no code for goals. The tensors that a goal needs
have a row for each example, the `Context` of the network.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import predict


def towards(
    logits: tf.Tensor, target: tf.Tensor, loss: LossFn | None = None
) -> tf.Tensor:
    """Returns logits that are misclassified where the target class is found.

    They are [max_{i != t} z_i, z_t], with label 0. Their margin is z_t -
    max_{i != t} z_i, the loss of Carlini and Wagner, 2017, "Towards Evaluating
    the Robustness of Neural Networks", section IV, whose sign is the verdict.

    With two logits the cross-entropy would have the same direction. Its
    gradient is therefore that of [log sum_{i != t} exp z_i, z_t], whose
    cross-entropy is that of the target class; all classes then take part in it.
    The values, by which points are compared, are those of the margin.

    Args:
        logits: Float tensor (batch, classes).
        target: Integer tensor (batch,), the class t of each example.
        loss: The loss whose gradient is taken, None if it is unknown.

    Returns:
        Float tensor (batch, 2).

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[3.0, 1.0, 2.0]])
        >>> towards(logits, tf.constant([2])).numpy().tolist()
        [[3.0, 2.0]]
    """
    chosen = losses.one_hot(logits, target)
    lowest = tf.fill(tf.shape(logits), logits.dtype.min)
    others = tf.where(chosen, lowest, logits)
    largest = tf.reduce_max(others, axis=-1)
    own = tf.reduce_sum(tf.where(chosen, logits, 0), axis=-1)
    if loss in (None, losses.cross_entropy):
        smooth = tf.reduce_logsumexp(others, axis=-1)
        # Exactly zero, with a gradient.
        slope = smooth - tf.stop_gradient(smooth)
        largest = tf.stop_gradient(largest) + slope
    return tf.stack([largest, own], axis=-1)


def any_label(
    logits: tf.Tensor, y: tf.Tensor, loss: LossFn | None = None
) -> tf.Tensor:
    """Returns logits that are misclassified where any of several labels is.

    A network with several labels has a logit for each, which says whether an
    image has it. With the margins m_k = z_k (2 y_k - 1), all labels are right
    if and only if min_k m_k > 0. The logits are [0, -m_1, ..., -m_K], with
    label 0: the largest is that of the label that is nearest to being wrong,
    and a targeted attack aims at one label after the other.

    Args:
        logits: Float tensor (batch, labels).
        y: Tensor (batch, labels), 1 for the labels that an image has, else 0.
        loss: Not used.

    Returns:
        Float tensor (batch, labels + 1).

    Example:
        >>> import tensorflow as tf
        >>> logits, y = tf.constant([[3.0, -1.0]]), tf.constant([[1, 1]])
        >>> any_label(logits, y).numpy().tolist()
        [[0.0, -3.0, 1.0]]
    """
    signs = 2 * tf.cast(y, logits.dtype) - 1
    return tf.concat([tf.zeros_like(logits[:, :1]), -signs * logits], axis=-1)


def aimed(
    logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, target: Any
) -> tuple[Logits, tf.Tensor]:
    """Returns a network and labels for an attack towards a class.

    Args:
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).
        y: Labels: class numbers, or one-hot or smoothed labels.
        target: Class number, or integers (batch,), one for each example.

    Returns:
        (logits_fn, y), to be given to the attack.

    Raises:
        ValueError: Outside of a graph, if a target is no class of the network,
            or is the label of an example.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[3.0, 1.0, 2.0]]), tf.constant([0])
        >>> logits_fn, y = aimed(lambda x: x, x, y, target=1)
        >>> logits_fn(x).numpy().tolist(), y.numpy().tolist()
        ([[3.0, 1.0]], [0])
    """
    targets = tf.cast(tf.convert_to_tensor(target), tf.int64)
    batch = tf.shape(x)[:1]
    if targets.shape.rank == 0:
        targets = tf.fill(batch, targets)
    if targets.shape.rank != 1:
        raise ValueError(
            "target must be a class number, or one for each example. "
            f"Received: target of shape {targets.shape}"
        )
    if not tf.inside_function():
        classes = predict(logits_fn, x).shape[-1]
        check_targets(targets.numpy(), losses.classes(y).numpy(), classes)
    known = logits_fn if isinstance(logits_fn, Logits) else Logits(logits_fn)
    context = known.context._replace(goal=(targets,))
    return known.aimed_at(towards).given(context), tf.fill(batch, 0)


def check_targets(
    targets: np.ndarray, labels: np.ndarray, classes: int
) -> None:
    """Checks the classes that an attack aims at.

    Args:
        targets: Integer array (n,).
        labels: Integer array, the class numbers of the examples.
        classes: Number of classes of the network.

    Raises:
        ValueError: If the lengths differ, a target is no class, or it is the
            label of its example.

    Example:
        >>> check_targets(np.array([2, 0]), np.array([0, 1]), classes=3)
    """
    if targets.shape != labels.shape:
        raise ValueError(
            "target must be a class number, or one for each example. "
            f"Received: {len(targets)} targets for {len(labels)} examples"
        )
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(
            f"target must be a class number below {classes}, the number of "
            "outputs. Received: target in the range from "
            f"{targets.min()} to {targets.max()}"
        )
    same = targets == labels
    if same.any():
        raise ValueError(
            "target must be another class than the label: leave out the "
            f"examples of that class, x[y != target]. Received: {same.sum()} "
            f"examples whose label is their target, such as {same.argmax()}"
        )
