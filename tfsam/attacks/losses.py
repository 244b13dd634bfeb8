"""What an attack climbs: losses of logits, one number an example.

Attacks sum these over the batch, never average them: a mean divides every
input gradient by the batch size, which starves l2 steps and underflows.
"""

import tensorflow as tf


def is_sparse(labels):
    """Whether labels are class numbers (batch,) or (batch, 1)."""
    return labels.shape.rank == 1 or labels.shape[-1] == 1


def classes(labels):
    """The class number of each example, int64 (batch,).

    Args:
        labels: class numbers (batch,) or (batch, 1), or one-hot or smoothed
            labels (batch, classes), of which the largest counts.
    """
    if is_sparse(labels):
        return tf.cast(tf.reshape(labels, [-1]), tf.int64)
    return tf.argmax(labels, axis=-1)


def cross_entropy(logits, labels):
    """Cross-entropy of each example (batch,), for hard or soft labels."""
    if is_sparse(labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=classes(labels), logits=logits
        )
    return tf.nn.softmax_cross_entropy_with_logits(
        labels=tf.cast(labels, logits.dtype), logits=logits
    )
