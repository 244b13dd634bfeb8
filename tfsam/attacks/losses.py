"""What an attack climbs: losses of logits, one number an example.

Attacks sum these over the batch, never average them: a mean divides every
input gradient by the batch size, which starves l2 steps and underflows.
"""

import tensorflow as tf

from tfsam.geometry import TINY


def is_sparse(labels):
    """Whether labels are class numbers (batch,) or (batch, 1)."""
    return len(labels.shape) == 1 or labels.shape[-1] == 1


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


def misclassified(logits, labels):
    """Whether the largest logit is another class's, bool (batch,)."""
    return tf.argmax(logits, axis=-1) != classes(labels)


def margin(logits, labels):
    """max_{i != y} z_i - z_y (Carlini and Wagner, 2017); > 0 where broken."""
    right = one_hot(logits, labels)
    others = tf.where(
        right, tf.fill(tf.shape(logits), logits.dtype.min), logits
    )
    return tf.reduce_max(others, axis=-1) - _pick(logits, right)


def dlr(logits, labels):
    """Difference of logits ratio (Croce and Hein, 2020, equation 6).

    (max_{i != y} z_i - z_y) / (z_pi1 - z_pi3), pi the order of the logits; it
    changes neither with their scale nor with a shift. Of two classes, which
    have no third, it is the margin.
    """
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    ordered = tf.math.top_k(logits, 3).values
    scale = ordered[:, 0] - ordered[:, 2]
    return margin(logits, labels) / (scale + TINY)


def kl(logits, probabilities):
    """KL(p || softmax(logits)) of each example (batch,), p (batch, classes).

    What TRADES' attack climbs (Zhang et al., 2019), p of the clean images; its
    gradient is zero where the two agree.
    """
    logs = tf.nn.log_softmax(logits)
    return tf.reduce_sum(
        tf.math.xlogy(probabilities, probabilities) - probabilities * logs,
        axis=-1,
    )


def difference(logits, labels):
    """z_t - z_y of labels (y, t): the margin over one other class."""
    y, target = labels
    return _pick(logits, one_hot(logits, target)) - _pick(
        logits, one_hot(logits, y)
    )


def targeted_dlr(logits, labels):
    """Targeted DLR of labels (y, t) (Croce and Hein, 2020, equation 7).

    (z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2). Of fewer than four classes it
    is z_t - z_y.
    """
    if logits.shape[-1] < 4:
        return difference(logits, labels)
    ordered = tf.math.top_k(logits, 4).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return difference(logits, labels) / (scale + TINY)


def targeted_cross_entropy(logits, labels):
    """Minus the cross-entropy of the target class, of labels (y, t)."""
    return -cross_entropy(logits, labels[1])


def targets(logits, labels, count):
    """The most likely wrong classes, int64 (batch, count), likeliest first.

    Args:
        logits: float tensor (batch, classes), of the clean images.
        labels: labels, of which the class numbers count.
        count: how many; of fewer other classes, all.
    """
    count = min(count, logits.shape[-1] - 1)
    right = one_hot(logits, labels)
    others = tf.where(
        right, tf.fill(tf.shape(logits), logits.dtype.min), logits
    )
    return tf.cast(tf.math.top_k(others, count).indices, tf.int64)


def one_hot(logits, labels):
    """Whether a class is the label's, bool (batch, classes)."""
    return tf.one_hot(
        classes(labels), tf.shape(logits)[-1], on_value=True, off_value=False
    )


def _pick(logits, chosen):
    return tf.reduce_sum(tf.where(chosen, logits, 0), axis=-1)


# By name: untargeted, and towards a class.
LOSSES = {
    "cross_entropy": (cross_entropy, targeted_cross_entropy),
    "margin": (margin, difference),
    "dlr": (dlr, targeted_dlr),
}
