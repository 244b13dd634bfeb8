"""Assertions that also hold in a graph, and errors of one line out of them.

TensorFlow reports a failed assertion of a graph with the places where each
operation was made, forty lines of them. `one_line` finds the message in it.
"""

import contextlib
import re

import tensorflow as tf

# Around the message of an assertion, in the long text that TensorFlow makes; a
# graph shows each part of it in brackets, an eager step a part a line.
_BEGIN, _END = "[tfsam] ", "[/tfsam]"
_PARTS = re.compile(
    re.escape(_BEGIN)
    + r"""(.*?)[]'"]\s+\[?([^]\s]+)]?\s+\[?([^]\s]+)]?\s+(?:\[|b['"])"""
    + re.escape(_END),
    re.DOTALL,
)


def required(condition, text, values):
    """Asserts a condition, in a graph, too; see `one_line`.

    Args:
        condition: scalar bool tensor.
        text: of the error, up to the name of what was received.
        values: tensor whose range the error shows.

    Returns:
        A tensor to stand `behind`.
    """

    def failed():
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


def behind(found, tensors):
    """Returns tensors that are computed only if all assertions hold.

    Args:
        found: a list of what `required` returned.
        tensors: a structure of tensors, or of None.
    """
    if not found:
        return tensors
    with tf.control_dependencies(found):
        return tf.nest.map_structure(
            lambda t: t if t is None else tf.identity(t), tensors
        )


@contextlib.contextmanager
def one_line():
    """Turns a failed `required` into a ValueError of one line, `Refused`."""
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
    """Data that a graph refused; still the error that TensorFlow raised."""

    def __init__(self, message):
        tf.errors.InvalidArgumentError.__init__(self, None, None, message)
