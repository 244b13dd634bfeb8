"""A model that attacks call eagerly, because it cannot be traced."""

from typing import Any

import tensorflow as tf

from tfsam.support.trace_state import Unreadable


class Untraced:
    """A model that cannot be traced, as a plain function for attacks.

    Attacks call a plain function eagerly. Of the settings of a `Logits`, it
    keeps only `surrogate` and `recorder`.

    Args:
        logits: The model, a `Logits`.

    Attributes:
        logits: The model.
        surrogate: See `Logits`.
        recorder: See `Logits`.

    Example:
        >>> from tfsam.attacks import Logits
        >>> model = Logits(lambda x: 2 * x).untraced()
        >>> model(tf.constant([[1.0, 2.0]])).numpy().tolist()
        [[2.0, 4.0]]
    """

    def __init__(self, logits: Any) -> None:
        self.logits = logits
        self.surrogate = logits.surrogate
        self.recorder = logits.recorder

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the logits of a batch."""
        return self.logits(x)

    def __trace_state__(self) -> Any:
        """Raises an error, so that direct calls of attacks do not trace it."""
        raise Unreadable("a model that cannot be traced")
