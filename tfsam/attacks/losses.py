"""Losses that attacks maximise: functions of logits, one value per example.

Attacks sum these values over the batch. A mean would divide every input
gradient by the batch size, which makes l2 steps too short and underflows.
"""

import tensorflow as tf

from tfsam.geometry import TINY


def is_sparse(labels: tf.Tensor) -> bool:
    """Returns whether labels are class numbers rather than distributions.

    Args:
        labels: Tensor (batch,), (batch, 1) or (batch, classes).

    Returns:
        True for the shapes (batch,) and (batch, 1).

    Example:
        >>> import tensorflow as tf
        >>> is_sparse(tf.constant([3, 1])), is_sparse(tf.eye(2))
        (True, False)
    """
    return len(labels.shape) == 1 or bool(labels.shape[-1] == 1)


def classes(labels: tf.Tensor) -> tf.Tensor:
    """Returns the class number of each example.

    Args:
        labels: Class numbers (batch,) or (batch, 1), or one-hot or smoothed
            labels (batch, classes), of which the largest entry counts.

    Returns:
        int64 tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> classes(tf.constant([[0.1, 0.9], [0.8, 0.2]])).numpy().tolist()
        [1, 0]
    """
    if is_sparse(labels):
        return tf.cast(tf.reshape(labels, [-1]), tf.int64)
    return tf.argmax(labels, axis=-1)


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Computes the cross-entropy of each example.

    Args:
        logits: Float tensor (batch, classes).
        labels: Class numbers (batch,) or (batch, 1), or one-hot or smoothed
            labels (batch, classes).

    Returns:
        Float tensor (batch,), >= 0.

    Example:
        >>> import tensorflow as tf
        >>> print(cross_entropy(tf.zeros([1, 2]), tf.constant([0])).numpy())
        [0.6931472]
    """
    if is_sparse(labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=classes(labels), logits=logits
        )
    return tf.nn.softmax_cross_entropy_with_logits(
        labels=tf.cast(labels, logits.dtype), logits=logits
    )


def misclassified(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns whether the largest logit is that of a wrong class.

    Args:
        logits: Float tensor (batch, classes).
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> misclassified(tf.eye(2), tf.constant([0, 0])).numpy().tolist()
        [False, True]
    """
    return tf.argmax(logits, axis=-1) != classes(labels)


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Computes max_{i != y} z_i - z_y (Carlini and Wagner, 2017).

    Args:
        logits: Float tensor (batch, classes).
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Float tensor (batch,), > 0 for misclassified examples.

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[3.0, 1.0, 2.0]])
        >>> margin(logits, tf.constant([0])).numpy().tolist()
        [-1.0]
    """
    right = one_hot(logits, labels)
    others = tf.where(
        right, tf.constant(logits.dtype.min, logits.dtype), logits
    )
    return tf.reduce_max(others, axis=-1) - _pick(logits, right)


def dlr(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Computes the difference of logits ratio (Croce and Hein, 2020, eq. 6).

    The loss is (max_{i != y} z_i - z_y) / (z_pi1 - z_pi3), where pi sorts the
    logits in decreasing order. It is invariant to shifts and to the scale of
    the logits. With two classes, there is no third logit and the loss is the
    margin.

    Args:
        logits: Float tensor (batch, classes).
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Float tensor (batch,), > 0 for misclassified examples.

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[3.0, 1.0, 2.0]])
        >>> dlr(logits, tf.constant([0])).numpy().tolist()
        [-0.5]
    """
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    ordered = tf.math.top_k(logits, 3).values
    scale = ordered[:, 0] - ordered[:, 2]
    return margin(logits, labels) / (scale + TINY)


def kl(logits: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Computes KL(p || softmax(logits)) of each example.

    This is the loss of TRADES' attack (Zhang et al., 2019), with p the
    predictions for the clean images. Where the two distributions agree, its
    gradient is zero.

    Args:
        logits: Float tensor (batch, classes).
        probabilities: Float tensor (batch, classes), p.

    Returns:
        Float tensor (batch,), >= 0.

    Example:
        >>> import tensorflow as tf
        >>> kl(tf.zeros([1, 2]), tf.constant([[0.5, 0.5]])).numpy().tolist()
        [0.0]
    """
    logs = tf.nn.log_softmax(logits)
    return tf.reduce_sum(
        tf.math.xlogy(probabilities, probabilities) - probabilities * logs,
        axis=-1,
    )


def squared_error(logits: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Computes |softmax(logits) - p|^2 of each example.

    This is the loss of SCORE's attack (Pang et al., 2022), with p the
    predictions for the clean images.

    Args:
        logits: Float tensor (batch, classes).
        probabilities: Float tensor (batch, classes), p.

    Returns:
        Float tensor (batch,), in [0, 2].

    Example:
        >>> import tensorflow as tf
        >>> p = tf.constant([[1.0, 0.0]])
        >>> squared_error(tf.zeros([1, 2]), p).numpy().tolist()
        [0.5]
    """
    apart = tf.nn.softmax(logits) - probabilities
    return tf.reduce_sum(tf.square(apart), axis=-1)


def difference(
    logits: tf.Tensor, labels: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """Computes z_t - z_y, the margin of a single target class.

    Args:
        logits: Float tensor (batch, classes).
        labels: Tuple of the labels y and the target classes t.

    Returns:
        Float tensor (batch,), > 0 where the target's logit is larger.

    Example:
        >>> import tensorflow as tf
        >>> y, t = tf.constant([0]), tf.constant([1])
        >>> difference(tf.constant([[3.0, 1.0]]), (y, t)).numpy().tolist()
        [-2.0]
    """
    y, target = labels
    return _pick(logits, one_hot(logits, target)) - _pick(
        logits, one_hot(logits, y)
    )


def targeted_dlr(
    logits: tf.Tensor, labels: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """Computes the targeted DLR loss (Croce and Hein, 2020, eq. 7).

    The loss is (z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2). With fewer than
    four classes it is z_t - z_y.

    Args:
        logits: Float tensor (batch, classes).
        labels: Tuple of the labels y and the target classes t.

    Returns:
        Float tensor (batch,), > 0 where the target's logit is larger.

    Example:
        >>> import tensorflow as tf
        >>> logits = tf.constant([[4.0, 3.0, 2.0, 0.0]])
        >>> y, t = tf.constant([0]), tf.constant([3])
        >>> print(targeted_dlr(logits, (y, t)).numpy().round(3))
        [-1.333]
    """
    if logits.shape[-1] < 4:
        return difference(logits, labels)
    ordered = tf.math.top_k(logits, 4).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return difference(logits, labels) / (scale + TINY)


def targeted_cross_entropy(
    logits: tf.Tensor, labels: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """Computes minus the cross-entropy of the target class.

    Args:
        logits: Float tensor (batch, classes).
        labels: Tuple of the labels y, which are not used, and the target
            classes t.

    Returns:
        Float tensor (batch,), <= 0.

    Example:
        >>> import tensorflow as tf
        >>> y, t = tf.constant([0]), tf.constant([1])
        >>> print(targeted_cross_entropy(tf.zeros([1, 2]), (y, t)).numpy())
        [-0.6931472]
    """
    return -cross_entropy(logits, labels[1])


def one_hot(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Marks the class of each example among the logits.

    Args:
        logits: Float tensor (batch, classes).
        labels: Class numbers, or one-hot or smoothed labels.

    Returns:
        Bool tensor (batch, classes), True at the class of the label.

    Example:
        >>> import tensorflow as tf
        >>> one_hot(tf.zeros([1, 2]), tf.constant([1])).numpy().tolist()
        [[False, True]]
    """
    count = logits.shape[-1]
    if count is None:
        count = tf.shape(logits)[-1]
    return tf.one_hot(classes(labels), count, on_value=True, off_value=False)


def _pick(logits: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Returns the chosen logit of each example."""
    return tf.reduce_sum(tf.where(chosen, logits, 0), axis=-1)


# Untargeted and targeted loss by name.
LOSSES = {
    "cross_entropy": (cross_entropy, targeted_cross_entropy),
    "margin": (margin, difference),
    "dlr": (dlr, targeted_dlr),
}

# Distances from the predictions at x, by name. Their gradient at x is zero.
DISTANCES = {"kl": kl, "squared_error": squared_error}
