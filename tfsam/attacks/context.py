"""Tensors beside the pixels on which the logits of an example depend.

An attack calls a network on a batch, or on copies of it, and in blocks or one
example after the other. The context of the batch has a row for each example,
and goes with the rows of each call.
"""

import functools
from typing import Any
from typing import NamedTuple

import tensorflow as tf


class Context(NamedTuple):
    """Tensors beside the pixels on which logits depend, a row an example.

    Attributes:
        goal: The tensors (batch, ...) that the goal of an attack takes.
        inputs: The inputs (batch, ...) of the network other than the pixels.

    Example:
        >>> Context().goal
        ()
    """

    goal: tuple[tf.Tensor, ...] = ()
    inputs: tuple[tf.Tensor, ...] = ()

    def of_rows(self, x: Any) -> "Context":
        """Returns the context of the rows of x, which are copies of the batch.

        Args:
            x: Float array or tensor (copies * batch, ...).

        Raises:
            ValueError: If they are not.

        Example:
            >>> context = Context(goal=(tf.constant([7, 8]),))
            >>> context.of_rows(tf.zeros([4, 3])).goal[0].numpy().tolist()
            [7, 8, 7, 8]
        """
        of_copies = functools.partial(_of_copies, x)
        context: Context = tf.nest.map_structure(of_copies, self)
        return context


NOTHING = Context()


def _of_copies(x: Any, values: tf.Tensor) -> tf.Tensor:
    """Repeats the rows of a batch for the copies of the batch in x.

    Args:
        x: Float array or tensor (copies * batch, ...).
        values: Tensor (batch, ...).
    """
    rows, batch = x.shape[0], values.shape[0]
    if rows is None or batch is None:
        many = tf.shape(x)[0] // tf.maximum(tf.shape(values)[0], 1)
        repeated = tf.tile(values, [many, *[1] * (values.shape.rank - 1)])
        return tf.ensure_shape(repeated, [rows, *values.shape[1:]])
    if not batch or rows % batch:
        raise ValueError(
            "an attack must call a network whose examples have a context, such "
            "as a target, on the whole batch, or on copies of it. Received: "
            f"{rows} examples of a batch of {batch}"
        )
    return tf.concat([values] * (rows // batch), 0) if rows > batch else values
