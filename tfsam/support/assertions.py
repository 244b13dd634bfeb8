"""Assertions that also hold in a graph, and their errors in a single line.

TensorFlow reports a failed assertion of a graph together with the places where
each operation was created, about forty lines. `one_line` extracts the message.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# Marks around the message of an assertion, in TensorFlow's long text. A graph
# shows each part of the message in brackets, an eager step on its own line.
_BEGIN, _END = "[tfsam] ", "[/tfsam]"
_PARTS = re.compile(
    re.escape(_BEGIN)
    + r"""(.*?)[]'"]\s+\[?([^]\s]+)]?\s+\[?([^]\s]+)]?\s+(?:\[|b['"])"""
    + re.escape(_END),
    re.DOTALL,
)


def required(condition: tf.Tensor, text: str, values: tf.Tensor) -> tf.Tensor:
    """Asserts a condition, also in a graph; see `one_line`.

    Args:
        condition: Scalar bool tensor.
        text: Error message, up to the name of the received value.
        values: Tensor whose range the error shows.

    Returns:
        A tensor for `behind`.
    """

    def failed() -> tf.Tensor:
        shown = values
        if values.dtype.size < 4:
            shown = tf.cast(values, tf.float32)
        limits = [tf.reduce_min(shown), tf.reduce_max(shown)]
        check = tf.debugging.Assert(
            tf.constant(False), [_BEGIN + text, *limits, _END]
        )
        with tf.control_dependencies([] if check is None else [check]):
            return tf.constant(False)

    return tf.cond(condition, lambda: tf.constant(True), failed)


def behind(found: list[tf.Tensor], tensors: Any) -> Any:
    """Returns tensors that are computed only if all assertions hold.

    Args:
        found: Results of `required`.
        tensors: A structure of tensors or None.
    """
    if not found:
        return tensors
    with tf.control_dependencies(found):
        return tf.nest.map_structure(
            lambda t: t if t is None else tf.identity(t), tensors
        )


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Converts a failed `required` to a `Refused`, with a single line."""
    try:
        yield
    except tf.errors.OpError as error:
        found = _PARTS.search(str(error))
        if found is None:
            raise
        text, *limits = found.groups()
        text = text.replace("\\'", "'")
        # An eager error shows 255 as 255.0, the one of a graph as 255.
        low, high = (limit.removesuffix(".0") for limit in limits)
    else:
        return
    raise Refused(f"{text} in [{low}, {high}]") from None


class Refused(ValueError, tf.errors.InvalidArgumentError):
    """Data that an assertion in a graph rejected.

    The class is also an error of TensorFlow, which raised it first.

    Args:
        message: The error message.
    """

    def __init__(self, message: str) -> None:
        tf.errors.InvalidArgumentError.__init__(self, None, None, message)
