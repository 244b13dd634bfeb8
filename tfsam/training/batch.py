"""A batch of training data, as objectives and passes receive it."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """One batch of training data.

    Attributes:
        x: inputs, a tensor (batch, ...), or a structure of tensors where the
            network has several inputs.
        x_adv: the perturbed inputs, of the same shapes; `x` itself where there
            is no attack.
        y: labels, a tensor or a structure; None where layers add all losses.
        sample_weight: weights of the examples, a tensor (batch,) or a
            structure of tensors, or None.
    """

    x: Any
    x_adv: Any
    y: Any
    sample_weight: Any

    def size(self) -> tf.Tensor:
        """Returns the number of examples, a scalar int32 tensor."""
        return tf.shape(tf.nest.flatten(self.x)[0])[0]

    def rows(self, take: Callable[[tf.Tensor], tf.Tensor]) -> "Batch":
        """Returns the batch of some of the examples.

        Args:
            take: selects rows of a tensor (batch, ...). None stays None.
        """
        rows: Batch = tf.nest.map_structure(
            lambda t: None if t is None else take(t), self
        )
        return rows
