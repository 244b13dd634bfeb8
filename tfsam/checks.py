"""Do network, loss and pixels fit together? Checks that `model.py` makes.

A loss that takes logits for probabilities trains nothing and raises nothing;
pixels outside an attack's bounds are clipped without a word.
"""

import keras
import tensorflow as tf


def probabilities(y_pred):
    """Predictions, checked to be probabilities.

    Args:
        y_pred: float tensor.

    Returns:
        y_pred, behind an assertion that also holds in a graph.
    """
    return _asserted(
        y_pred,
        (y_pred >= -1e-3) & (y_pred <= 1 + 1e-3),
        "The loss takes probabilities: give it from_logits=True.",
    )


def floating(x, bounds):
    """Refuses pixels that are no floats: no attack can move them.

    Args:
        x: tensor of pixels.
        bounds: (lowest, highest) value, or None, for the message.

    Raises:
        ValueError: if they are of another dtype.
    """
    if not x.dtype.is_floating:
        raise ValueError(
            "x must be of a floating-point dtype, with pixels in "
            f"{bounds}. Received: x.dtype={x.dtype.name}"
        )


def inside(x, bounds):
    """The pixels, checked: an attack would clip them without a word.

    Args:
        x: float tensor of pixels.
        bounds: (lowest, highest) value, or None.

    Returns:
        x, behind an assertion that also holds in a graph.

    Raises:
        ValueError: if they are no floats.
    """
    floating(x, bounds)
    if bounds is None:
        return x
    return _asserted(
        x,
        (x >= bounds[0]) & (x <= bounds[1]),
        f"x must lie in the attack's bounds={bounds}; normalisation is a layer "
        "of the network, or give the attack other bounds.",
    )


def class_logits(y_pred, y):
    """Predictions, checked to be logits of the classes that the labels name.

    Args:
        y_pred: tensor of predictions.
        y: tensor of labels.

    Returns:
        y_pred as float32 (batch, classes).

    Raises:
        ValueError: if there are not two classes or more, or y is of neither of
            the shapes (batch,) and (batch, classes).
    """
    ranks = (len(y_pred.shape), len(y.shape))
    classes = y_pred.shape[-1]
    if (
        ranks not in ((2, 1), (2, 2))
        or classes < 2
        or (len(y.shape) == 2 and y.shape[-1] not in (1, classes))
    ):
        raise ValueError(
            "The method weighs examples by their cross-entropy, so the network "
            "must return logits (batch, classes) of two classes or more, and y "
            "must be class numbers or one-hot labels. "
            f"Received: y_pred.shape={y_pred.shape}, y.shape={y.shape}"
        )
    return tf.cast(y_pred, tf.float32)


def _asserted(x, condition, message):
    limits = (tf.reduce_min(x), "to", tf.reduce_max(x))
    check = tf.debugging.Assert(
        tf.reduce_all(condition), [message, "Received: values from", *limits]
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(x)


def flattened(layer):
    """Yields a layer and all that it holds.

    Args:
        layer: a Keras layer or model.
    """
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from flattened(part)


def expects_probabilities(losses):
    """Whether one of the compiled losses is a cross-entropy of probabilities.

    Args:
        losses: what `compile` took: a loss, its name, or a structure of them.
    """
    return any(_of_probabilities(loss) for loss in tf.nest.flatten(losses))


def _of_probabilities(loss):
    if isinstance(loss, keras.losses.Loss):
        return getattr(loss, "from_logits", None) is False
    names = [
        f"{kind}_crossentropy"
        for kind in ("binary", "categorical", "sparse_categorical")
    ]
    return loss in names or loss in [getattr(keras.losses, n) for n in names]


def is_sum(losses):
    """Whether one of the compiled losses is a sum over the batch.

    Args:
        losses: what `compile` took: a loss, its name, or a structure of them.
    """
    found = tf.nest.flatten(losses)
    return any(getattr(loss, "reduction", None) == "sum" for loss in found)


def ends_in_probabilities(network):
    """Whether the last layer is a softmax or sigmoid; None if unknown.

    Args:
        network: a `keras.Model`.
    """
    outputs = tf.nest.flatten(getattr(network, "outputs", None) or [])
    if len(outputs) != 1:
        return None
    last = outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return ends_in_probabilities(last)
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    ):
        return True
    return False if activation is keras.activations.linear else None
