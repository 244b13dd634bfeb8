"""Single logits: networks of two classes that return one number an example."""

import tensorflow as tf


def of_two_classes(logits: tf.Tensor) -> tf.Tensor:
    """Turns single logits into logits of two classes.

    A single logit z is that of class 1 against class 0: the sigmoid of z is
    the softmax of [0, z], and their cross-entropies are equal.

    Args:
        logits: Float tensor (batch, classes), classes >= 1.

    Returns:
        Tensor (batch, 2) for a single logit, else the tensor itself.

    Example:
        >>> import tensorflow as tf
        >>> of_two_classes(tf.constant([[3.0], [-1.0]])).numpy().tolist()
        [[0.0, 3.0], [0.0, -1.0]]
    """
    if logits.shape.rank != 2 or logits.shape[-1] != 1:
        return logits
    return tf.concat([tf.zeros_like(logits), logits], axis=-1)
