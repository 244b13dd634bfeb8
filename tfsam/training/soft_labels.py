"""Soft labels: distributions over the classes, as CutMix and MixUp make them.

A loss that takes class numbers, such as `SparseCategoricalCrossentropy`, has a
categorical form, which `cross_entropy` returns. `RobustModel` uses it for
batches with soft labels. Where no label is mixed, both forms are equal to the
bit; XLA may round them differently. Metrics see the class of the largest share.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.support.validators import check_number
from tfsam.training import compiled_losses

_CROSS_ENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)


class SoftCrossEntropy(keras.losses.Loss):
    """The categorical form of a sparse categorical cross-entropy.

    Args:
        loss: a loss of class numbers; see `compiled_losses.is_sparse`.

    Raises:
        ValueError: if the loss ignores a class, which a soft label cannot name.

    Example:
        >>> import keras, tensorflow as tf
        >>> sparse = keras.losses.SparseCategoricalCrossentropy
        >>> loss = SoftCrossEntropy(sparse(from_logits=True))
        >>> y, logits = tf.constant([[0.5, 0.5]]), tf.constant([[2.0, 2.0]])
        >>> print(loss(y, logits).numpy())
        0.6931472
    """

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(loss.name, loss.reduction, loss.dtype)
        _, options = compiled_losses.called(loss)
        ignored = options.get("ignore_class")
        if ignored is not None:
            raise ValueError(
                "a loss that ignores a class takes class numbers, not one-hot "
                f"or soft labels. Received: ignore_class={ignored}"
            )
        self._from_logits = options.get("from_logits", False)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Computes the cross-entropy of each example.

        Args:
            y_true: soft labels (batch, classes).
            y_pred: logits or probabilities (batch, classes), as the sparse loss
                takes them.

        Returns:
            A float tensor (batch,).
        """
        if not self._from_logits:
            tiny = keras.config.epsilon()
            y_pred = tf.math.log(tf.clip_by_value(y_pred, tiny, 1 - tiny))
        # A single operation, as that of the sparse loss: so TensorFlow adds up
        # the gradients of a step in the same order.
        soft, _ = tf.raw_ops.SoftmaxCrossEntropyWithLogits(
            features=y_pred, labels=y_true
        )
        # Of a one-hot label, the two operations have the same gradient, but
        # round the value differently.
        hard = losses.cross_entropy(y_pred, losses.classes(y_true))
        whole = tf.reduce_max(y_true, axis=-1) == 1
        rounding = tf.where(whole, hard - soft, tf.zeros_like(soft))
        return soft + tf.stop_gradient(rounding)


def check_smoothing(label_smoothing: Any) -> float:
    """Checks the amount of a label smoothing.

    Args:
        label_smoothing: the amount, in [0, 1].

    Returns:
        The amount.

    Raises:
        ValueError: if it is not in [0, 1].
    """
    return check_number("label_smoothing", label_smoothing, 0, 1)


def check_takes_rows(model: Any) -> None:
    """Checks that a compiled loss can take distributions over the classes.

    Args:
        model: a `RobustModel` whose losses are built.

    Raises:
        ValueError: if it is none of Keras's cross-entropies.
    """
    (output,) = model._outputs
    if output.function not in _CROSS_ENTROPIES:
        raise ValueError(
            "label_smoothing needs a compiled loss that is a cross-entropy, "
            "such as keras.losses.SparseCategoricalCrossentropy("
            f"from_logits=True). Received: loss={output.loss}"
        )


def smoothed(y: tf.Tensor, logits: tf.Tensor, amount: float) -> tf.Tensor:
    """Returns labels that give each class an equal part of an amount.

    As in Keras, the label is (1 - amount) * y + amount / classes.

    Args:
        y: class numbers (batch,) or (batch, 1), or distributions over the
            classes (batch, classes).
        logits: float tensor (batch, classes), for its shape and dtype.
        amount: the amount, in [0, 1].

    Returns:
        A tensor of the shape and dtype of `logits`.

    Example:
        >>> import tensorflow as tf
        >>> y = smoothed(tf.constant([1]), tf.zeros([1, 4]), 0.2)
        >>> print(y.numpy().round(2))
        [[0.05 0.85 0.05 0.05]]
    """
    if losses.is_sparse(y):
        y = losses.one_hot(logits, y)
    share = amount / logits.shape[-1]
    found = (1 - amount) * tf.cast(y, logits.dtype) + share
    return tf.ensure_shape(found, [None, logits.shape[-1]])
