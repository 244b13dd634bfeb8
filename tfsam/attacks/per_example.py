"""Operations on whole examples of a batch: one value for each image."""

import tensorflow as tf


def per_example(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshapes one value per example so that it broadcasts against x.

    Args:
        values: Tensor (batch,).
        x: Tensor (batch, ...).

    Returns:
        Tensor (batch, 1, ..., 1) of the rank of x.

    Example:
        >>> import tensorflow as tf
        >>> per_example(tf.zeros([3]), tf.zeros([3, 8, 8, 1])).shape.as_list()
        [3, 1, 1, 1]
    """
    ones = [1] * (x.shape.rank - 1)
    return tf.reshape(values, [-1, *ones])


def where(condition: tf.Tensor, x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Selects whole examples, like `tf.where` with a condition per example.

    Args:
        condition: Bool tensor (batch,).
        x: Tensor (batch, ...), selected where the condition holds.
        other: Tensor of x's shape, selected elsewhere.

    Returns:
        Tensor of x's shape.

    Example:
        >>> import tensorflow as tf
        >>> condition = tf.constant([True, False])
        >>> where(condition, tf.ones([2, 2]), tf.zeros([2, 2])).numpy().tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    return tf.where(per_example(condition, x), x, other)
