"""Counts of a network's passes and of gradients that are not finite."""

from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.pixel_gradients import finite_part


class Counts(NamedTuple):
    """Numbers counted by a `PassCounter`; see its attributes.

    Attributes:
        passes: int64 array [forward, gradient].
        nonfinite: Number of examples whose gradient had an entry that was not
            finite.
        taken: Number of gradients taken by other libraries' tapes.

    Example:
        >>> counter = PassCounter()
        >>> counter.count_passes()
        >>> counter.counted().nonfinite
        0
    """

    passes: np.ndarray[Any, Any]
    nonfinite: int
    taken: int


class PassCounter:
    """Counters of a network's passes; a base class of `Logits`.

    The counters are variables, so that they also count in a graph. Copies of an
    object share them. None, the default, counts nothing.

    Attributes:
        passes: int64 variable [forward, gradient], the number of examples that
            went through the network. None before `count_passes` is called.
        nonfinite: int64 variable, the number of examples, summed over all
            gradients, whose gradient had an entry that was NaN or infinite.
            None before `count_passes` is called.
        taken: int64 variable, the number of examples' gradients taken by the
            tapes of other libraries' attacks, which `passes` does not count.
            None before `count_passes` is called.

    Example:
        >>> import tensorflow as tf
        >>> counter = PassCounter()
        >>> counter.count_passes()
        >>> counter.count([0, 1], tf.zeros([8, 2]), None)
        >>> counter.counted().passes.tolist()
        [0, 8]
    """

    passes: Any = None
    nonfinite: Any = None
    taken: Any = None

    def count_passes(self) -> None:
        """Starts counting passes, from zero."""
        if self.passes is None:
            self.passes = tf.Variable([0, 0], dtype=tf.int64, trainable=False)
            self.nonfinite = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.taken = tf.Variable(0, dtype=tf.int64, trainable=False)
        else:  # Functions that are already traced count in these variables.
            for counts in (self.passes, self.nonfinite, self.taken):
                counts.assign(tf.zeros_like(counts))

    def counted(self) -> Counts:
        """Returns the `Counts` since the last call of `count_passes`."""
        # Made in the scope of a strategy, the variables belong to replicas, and
        # have no numpy().
        passes, nonfinite, taken = (
            tf.convert_to_tensor(counts).numpy()
            for counts in (self.passes, self.nonfinite, self.taken)
        )
        return Counts(passes, int(nonfinite), int(taken))

    def count(
        self, kind: list[int], x: tf.Tensor, active: tf.Tensor | None
    ) -> None:
        """Adds the number of active examples to `passes`.

        Args:
            kind: Numbers of forward and gradient passes for an example.
            x: Float tensor (batch, ...).
            active: Bool tensor (batch,). None means all.
        """
        if self.passes is not None:
            count = tf.shape(x, tf.int64)[0]
            if active is not None:
                count = tf.math.count_nonzero(active)
            self.passes.assign_add(tf.constant(kind, tf.int64) * count)

    def count_nonfinite(
        self, finite: tf.Tensor, active: tf.Tensor | None
    ) -> None:
        """Adds the number of active examples without a finite gradient.

        Args:
            finite: Bool tensor (batch,), the examples whose gradient is finite.
            active: Bool tensor (batch,). None means all.
        """
        if self.nonfinite is not None:
            bad = ~finite if active is None else ~finite & active
            self.nonfinite.assign_add(tf.math.count_nonzero(bad))

    def finite(self, slopes: tf.Tensor, active: tf.Tensor | None) -> tf.Tensor:
        """Replaces NaN and infinity by zeros, and counts the examples.

        Args:
            slopes: Float tensor (batch, ...), gradients.
            active: Bool tensor (batch,). None means all.

        Returns:
            Tensor of the shape and dtype of `slopes`.
        """
        finite, kept = finite_part(slopes)
        axes = list(range(1, slopes.shape.rank))
        self.count_nonfinite(tf.reduce_all(kept, axis=axes), active)
        return finite

    def guarded(self, x: Any) -> tf.Tensor:
        """Returns x such that gradients with respect to it are finite.

        Other libraries' attacks use tapes of their own. This replaces NaN and
        infinity in their gradients by zeros, and counts them in `nonfinite`. In
        a graph, x itself is returned: TensorFlow never frees a custom gradient
        in a graph, nor the graph that holds it.

        Args:
            x: Float array or tensor (batch, ...).

        Returns:
            Tensor of x's shape and dtype.
        """
        if tf.inside_function():
            return x

        def finite(slopes: tf.Tensor) -> tf.Tensor:
            if self.taken is not None:
                self.taken.assign_add(tf.shape(slopes, tf.int64)[0])
            return self.finite(slopes, None)

        @tf.custom_gradient
        def identity(x: tf.Tensor) -> Any:
            return tf.identity(x), finite

        return identity(tf.convert_to_tensor(x))
