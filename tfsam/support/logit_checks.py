"""Checks of a network's outputs: logits, not probabilities.

The gradients of probabilities vanish, so that a network without logits looks
robust. A loss that takes logits for probabilities, or vice versa, trains badly.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import final_activations
from tfsam.support.assertions import required
from tfsam.support.labels import sum_slack
from tfsam.support.single_logits import of_two_classes

RETURN_LOGITS = (
    "return logits, not probabilities, whose gradients vanish, so that the "
    "model looks robust: take the softmax or sigmoid off its end, as "
    "tfsam.models.load(model) does, and give its loss from_logits=True."
)


def check_logits(outputs: np.ndarray, network: Any = None) -> None:
    """Checks by values and layers that outputs are not probabilities.

    Args:
        outputs: Float array (n, classes), outputs of a model.
        network: The `keras.Model`, or None. If its layers show that the outputs
            are logits, the values are not checked.

    Raises:
        ValueError: If each row is a distribution over the classes, or all
            numbers lie in [0, 1] and some above 0.5. Fewer than 16 numbers in a
            single column may do so by chance, and pass.
    """
    check_ending(network)
    if network is not None and final_activations.in_probabilities(network) == [
        False
    ]:
        return
    if outputs.shape[1] == 1 and len(outputs) < 16:
        return
    softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    sigmoid = 0.5 < outputs.max() <= 1
    if outputs.min() >= 0 and (softmax or sigmoid):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: outputs that lie in [0, 1]"
        )


def check_ending(network: Any) -> None:
    """Checks by its layers that a network does not return probabilities.

    Args:
        network: A `keras.Model`; any other object passes.

    Raises:
        ValueError: If one of its outputs ends in a softmax or a sigmoid.
    """
    model = isinstance(network, keras.Model)
    if model and True in final_activations.in_probabilities(network):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: network={network.name}"
        )


def assert_probabilities(y_pred: tf.Tensor) -> tf.Tensor:
    """Asserts that predictions are probabilities, also in a graph.

    Args:
        y_pred: Float tensor.

    Returns:
        The assertion; see `assertions.required`.
    """
    return required(
        tf.reduce_all((y_pred >= -1e-3) & (y_pred <= 1 + 1e-3)),
        "the loss takes probabilities and the network returns other numbers: "
        "give the loss from_logits=True. Received: outputs",
        y_pred,
    )


def assert_logits(y_pred: tf.Tensor) -> tf.Tensor:
    """Asserts that predictions are not those of a softmax, also in a graph.

    Args:
        y_pred: Float tensor (..., classes).

    Returns:
        The assertion; see `assertions.required`.
    """
    values = y_pred if y_pred.dtype.size > 2 else tf.cast(y_pred, tf.float32)
    sums = tf.reduce_sum(values, axis=-1)
    # A row of logits may sum to 1 by chance, especially in half precision.
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


def check_class_outputs(part: str, y_pred: Any, y: Any) -> None:
    """Checks that outputs and labels suit a part that works on classes.

    Args:
        part: Name of the part, for the message.
        y_pred: Predictions or their specs, a tensor or a structure.
        y: Labels or their specs.

    Raises:
        ValueError: Unless there is a single output (batch, classes), and y has
            shape (batch,) or (batch, classes). A single logit is that of class
            1 of two classes, with labels (batch,) or (batch, 1).
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
            and (len(labels) == 1 or labels[-1] in (1, outputs[-1]))
        ):
            return
    received = ", ".join(
        f"{name}.shape=" + " and ".join(map(str, side))
        for name, side in zip(("y_pred", "y"), shapes, strict=True)
    )
    raise ValueError(
        f"{part} works on classes, so the network must return one tensor of "
        "logits (batch, classes), and y must be class numbers or one-hot "
        f"labels. Received: {received}"
    )


def class_logits(y_pred: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns logits in float32, checked to match the labels' classes.

    A single logit becomes the logits of two classes.

    Args:
        y_pred: Tensor of predictions.
        y: Tensor of labels.

    Raises:
        ValueError: If they do not match; see `check_class_outputs`.
    """
    check_class_outputs("the method", y_pred, y)
    return of_two_classes(tf.cast(y_pred, tf.float32))
