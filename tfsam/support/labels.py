"""Checks of labels: class numbers, or distributions over the classes.

Labels that name several classes at once are rejected among these: they have no
accuracy that an attack on classes could measure. See `several_labels`.
"""

import numpy as np
import tensorflow as tf

from tfsam.support.assertions import required

NO_DISTRIBUTION = (
    "each row of y must be a distribution over the classes, one-hot or soft: "
    "not negative, with sum 1. Several tags at once need multi_label=True, in "
    "tfsam.evaluate; targets of a regression have no accuracy that an attack "
    "on classes could measure."
)


def class_labels(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts labels to class numbers.

    Args:
        y: Integers (n,) or (n, 1), the class numbers, which are floats if all
            are 0 or 1, as for a single logit; or an array (n, classes), in each
            row a distribution over the classes: one-hot, soft or smoothed.

    Returns:
        (y, numbers): the labels in the form that attacks take, int64 (n,) or as
        given, and the class numbers, int64 (n,). The class number of a
        distribution is its largest entry.

    Raises:
        ValueError: If y has another shape or dtype, or a row is no distribution
            over the classes.

    Example:
        >>> one_hot = np.eye(3)[[2, 0]]
        >>> class_labels(one_hot)[1].tolist()
        [2, 0]
    """
    if y.ndim == 2 and y.shape[1] > 1:
        check_distributions(y)
        return y, y.argmax(axis=1).astype(np.int64)
    whole = np.issubdtype(y.dtype, np.integer) or np.isin(y, (0, 1)).all()
    if y.ndim not in (1, 2) or not whole:
        raise ValueError(
            "y must be integers (n,) or one-hot (n, classes). "
            f"Received: y of shape {y.shape} and dtype {y.dtype}"
        )
    numbers = y.reshape(-1).astype(np.int64)
    return numbers, numbers


def several_labels(y: np.ndarray) -> np.ndarray:
    """Checks labels of which an example may have several, or none.

    Args:
        y: Array (n, labels), 1 for the labels that an example has, else 0.

    Returns:
        y as int64.

    Raises:
        ValueError: If y has another shape or other values.

    Example:
        >>> several_labels(np.array([[True, True], [False, False]])).tolist()
        [[1, 1], [0, 0]]
    """
    if y.ndim != 2 or y.shape[1] < 2 or not np.isin(y, (0, 1)).all():
        raise ValueError(
            "with multi_label, y must be 0 or 1 for each of two or more "
            "labels, (n, labels). "
            f"Received: y of shape {y.shape} and dtype {y.dtype}"
        )
    return y.astype(np.int64)


def check_distributions(y: np.ndarray) -> None:
    """Checks that the rows of labels are distributions over the classes.

    Args:
        y: Array (n, classes).

    Raises:
        ValueError: If a row has a negative entry or does not sum to 1.
    """
    rows = np.asarray(y, np.float64)
    slack = sum_slack(y.dtype.itemsize)
    sums = rows.sum(axis=1)
    bad = ~((np.abs(sums - 1) <= slack) & (rows.min(axis=1) >= -slack))
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{NO_DISTRIBUTION} Received: {int(bad.sum())} of {len(y)} rows, "
            f"such as row {first}, {_row(y[first])}, of sum {sums[first]:g}"
        )


def check_classes(y: np.ndarray, numbers: np.ndarray, classes: int) -> None:
    """Checks that labels name classes of the network.

    Args:
        y: Labels that `class_labels` returned.
        numbers: Their class numbers, int64 (n,).
        classes: The network's number of logits.

    Raises:
        ValueError: If the labels have another number of columns, or a class
            number is not in [0, classes).
    """
    if y.ndim == 2 and y.shape[1] != classes:
        raise ValueError(
            f"one-hot y must have the model's number of outputs, {classes}, "
            f"or y be class numbers below {classes}. "
            f"Received: y of shape {y.shape}"
        )
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"y must be class numbers below {classes}, that is, below the "
            "model's number of outputs; leave out examples without a class. "
            "Received: y in the range from "
            f"{numbers.min()} to {numbers.max()}"
        )


def assert_distributions(y: tf.Tensor) -> tf.Tensor:
    """Asserts that labels are distributions over the classes, also in a graph.

    Args:
        y: Tensor (batch, classes).

    Returns:
        The assertion; see `assertions.required`.
    """
    rows = tf.cast(y, tf.float64)
    slack = sum_slack(y.dtype.size if y.dtype.is_floating else 4)
    sums = tf.reduce_sum(rows, axis=-1)
    held = tf.reduce_all(tf.abs(sums - 1) <= slack)
    held &= tf.reduce_all(rows >= -slack)
    return required(held, f"{NO_DISTRIBUTION} Received: sums of rows", sums)


def assert_one_hot(y: tf.Tensor, part: str) -> tf.Tensor:
    """Asserts that each label is that of a single class, also in a graph.

    Args:
        y: Tensor (batch, classes), distributions over the classes.
        part: Name of the part that needs it, for the message.

    Returns:
        The assertion; see `assertions.required`.
    """
    shares = tf.reduce_max(tf.cast(y, tf.float64), axis=-1)
    slack = sum_slack(y.dtype.size if y.dtype.is_floating else 4)
    return required(
        tf.reduce_all(shares >= 1 - slack),
        f"{part} needs the true class of each example, so labels must not be "
        "mixed or smoothed. Received: largest entries of y",
        shares,
    )


def assert_class_numbers(
    y: tf.Tensor, classes: int, ignored: int | None = None
) -> tf.Tensor:
    """Asserts that labels name classes of the network, also in a graph.

    Args:
        y: Tensor of class numbers.
        classes: The network's number of logits.
        ignored: A label that names no class and that the loss ignores, or None.

    Returns:
        The assertion; see `assertions.required`.
    """
    y = tf.cast(y, tf.float64)
    held = (y >= 0) & (y < classes) & (y == tf.round(y))
    if ignored is not None:
        held |= y == ignored
    text = f"y must be class numbers below {classes}, the number of outputs"
    if ignored is not None:
        text += f", or ignore_class={ignored}"
    return required(tf.reduce_all(held), f"{text}. Received: y", y)


def sum_slack(size: int) -> float:
    """Returns by how much the sum of a distribution may differ from 1.

    Args:
        size: Number of bytes of its dtype; half precision rounds coarsely.
    """
    return 0.02 if size < 4 else 1e-3


def _row(row: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in row[:5].astype(float))
    return f"[{shown}{', ...' if len(row) > 5 else ''}]"
