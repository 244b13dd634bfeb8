"""Checks of a network's outputs: logits, not probabilities.

A loss that takes logits for probabilities trains nothing, and the gradients of
probabilities vanish, so that a network looks robust.
"""

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import endings
from tfsam.support.assertions import required
from tfsam.support.labels import sum_slack

RETURN_LOGITS = (
    "return logits, not probabilities, whose gradients vanish, so that the "
    "model looks robust: take the softmax or sigmoid off its end, so that it "
    "returns logits, and give its loss from_logits=True."
)


def check_logits(outputs, network=None):
    """Refuses outputs that are probabilities, by their values or by the layers.

    Args:
        outputs: array (n, classes) of what a model returned.
        network: the `keras.Model`; where its layers say that these are logits,
            the values are not looked at.

    Raises:
        ValueError: if all rows are distributions over the classes, or all
            numbers lie in [0, 1], some above 0.5. A few numbers of one column
            may do so by chance: they pass.
    """
    check_ending(network)
    if network is not None and endings.in_probabilities(network) == [False]:
        return
    if outputs.shape[1] == 1 and len(outputs) < 16:
        return
    softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    sigmoid = 0.5 < outputs.max() <= 1
    if outputs.min() >= 0 and (softmax or sigmoid):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: outputs that lie in [0, 1]"
        )


def check_ending(network):
    """Refuses a network that returns probabilities by its layers.

    Args:
        network: a `keras.Model`; anything else passes.

    Raises:
        ValueError: if one of its outputs ends in a softmax or a sigmoid.
    """
    model = isinstance(network, keras.Model)
    if model and True in endings.in_probabilities(network):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: network={network.name}"
        )


def assert_probabilities(y_pred):
    """Asserts that predictions are probabilities, as their loss expects.

    Args:
        y_pred: float tensor.

    Returns:
        What `required` returns.
    """
    return required(
        tf.reduce_all((y_pred >= -1e-3) & (y_pred <= 1 + 1e-3)),
        "the loss takes probabilities and the network returns other numbers: "
        "give the loss from_logits=True. Received: outputs",
        y_pred,
    )


def assert_logits(y_pred):
    """Asserts that predictions are no distributions, as of a softmax.

    Args:
        y_pred: float tensor (..., classes).

    Returns:
        What `required` returns.
    """
    values = y_pred if y_pred.dtype.size > 2 else tf.cast(y_pred, tf.float32)
    sums = tf.reduce_sum(values, axis=-1)
    # A row of logits may have the sum 1 by chance, in halves or not.
    exact = y_pred.dtype.size > 2
    slack = 1e-4 if exact else sum_slack(2)
    softmax = (tf.size(sums) > (0 if exact else 3)) & tf.reduce_all(values >= 0)
    softmax &= tf.reduce_all(tf.abs(sums - 1) <= slack)
    return required(
        ~softmax,
        f"the network must {RETURN_LOGITS} Received: outputs of sum 1 in each "
        "row,",
        values,
    )


def check_class_outputs(part, y_pred, y):
    """Refuses what has no classes, for a part of tfsam that works on them.

    Args:
        part: its name, for the message.
        y_pred: predictions, or their spec, a tensor or a structure.
        y: labels, or their spec.

    Raises:
        ValueError: if there is not one output (batch, classes) of two classes
            or more, or y is of neither of the shapes (batch,) and
            (batch, classes).
    """
    shapes = [
        [tuple(t.shape) for t in keras.tree.flatten(side) if t is not None]
        for side in (y_pred, y)
    ]
    if all(len(side) == 1 for side in shapes):
        (outputs,), (labels,) = shapes
        if (
            (len(outputs), len(labels)) in ((2, 1), (2, 2))
            and outputs[-1] is not None
            and outputs[-1] > 1
            and (len(labels) == 1 or labels[-1] in (1, outputs[-1]))
        ):
            return
    received = ", ".join(
        f"{name}.shape=" + " and ".join(map(str, side))
        for name, side in zip(("y_pred", "y"), shapes, strict=True)
    )
    raise ValueError(
        f"{part} works on classes, so the network must return one tensor of "
        "logits (batch, classes), of two classes or more, and y must be class "
        f"numbers or one-hot labels. Received: {received}"
    )


def class_logits(y_pred, y):
    """Returns logits in float32, checked to be those of the labels' classes.

    Args:
        y_pred: tensor of predictions.
        y: tensor of labels.

    Raises:
        ValueError: as `check_class_outputs` says.
    """
    check_class_outputs("the method", y_pred, y)
    return tf.cast(y_pred, tf.float32)
