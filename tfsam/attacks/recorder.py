"""A recorder of the paths that attacks take, as counters per example.

An attack that takes its gradients by `tfsam.attacks.logits.input_gradient` is
recorded there, and need not be changed. No path is kept: each gradient updates
a few numbers for each example, from which `tfsam.evaluation.diagnosis` derives
the indicators of attack failure (Pintor et al., 2022, "Indicators of Attack
Failure: Debugging and Improving Optimization of Adversarial Examples").
"""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.support.graphs import of_any_batch
from tfsam.support.graphs import traced
from tfsam.support.validators import Bounds

# The last gradients of a path, in which its loss should no longer rise: 10, as
# in the paper, but no more than a quarter of the path, and at least 2. The 10
# steps of PGD-10 would be the whole path, whose loss always rises.
WINDOW = 10
LEAST_WINDOW = 2
OF_PATH = 4

# Differences of margins that are rounding errors, relative to the margins.
_ROUNDING = 1e-5


class Path(NamedTuple):
    """The counters of the examples of a batch, after an attack.

    Attributes:
        gradients: Float array (batch,), the number of gradients.
        zeros: Float array (batch,), the number of gradients that were zero.
        nearest: Float array (batch,), the smallest perturbation of a point at
            which the gradient was taken and which was misclassified, infinity
            if there was none.
        rise: Float array (batch,), in [0, 1], the part of the rise of the
            margin that fell into the last gradients of the path.
    """

    gradients: np.ndarray
    zeros: np.ndarray
    nearest: np.ndarray
    rise: np.ndarray


class Recorder:
    """Counters per example, updated at each gradient of an attack.

    The margin max_{i != y} z_i - z_y stands in for the attack's own loss. It
    decides whether the attack succeeds and is comparable between attacks, while
    the cross-entropy of a confident example grows exponentially up to its last
    step. An attack may make several attempts, each with an `input_gradient` of
    its own; `rise` is that of the attempt that reached the largest margin. If
    the attack evaluates copies of the batch side by side, the copy with the
    largest margin counts.

    Args:
        shape: Shape of a batch, (batch, ...).
        dtype: Dtype of the images.
        norm: Norm of the perturbation.
        bounds: (lowest, highest) value of a pixel, or None. Points outside do
            not count as misclassified.
        rounding: Relative difference of logits that may be a rounding error; a
            point within it does not count as misclassified.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks.logits import Logits
        >>> from tfsam.attacks.logits import input_gradient
        >>> x, y = tf.constant([[0.5, 0.4]]), tf.constant([1])
        >>> recorder = Recorder(x.shape, x.dtype, "linf", (0.0, 1.0))
        >>> recorder.start(x, y)
        >>> gradient = input_gradient(Logits(lambda x: x).recorded(recorder))
        >>> slopes, logits = gradient(x, y)
        >>> recorder.path().gradients.tolist(), recorder.path().nearest.tolist()
        ([1.0], [0.0])
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        norm: str,
        bounds: Bounds,
        rounding: float = _ROUNDING,
    ) -> None:
        self._shape = tuple(shape)
        self._norm, self._bounds, self._rounding = norm, bounds, rounding
        self._x = tf.Variable(tf.zeros(shape, dtype), trainable=False)
        self._y = tf.Variable(tf.zeros(shape[:1], tf.int64), trainable=False)

        def counter(*dims: int) -> tf.Variable:
            return tf.Variable(tf.zeros(dims), trainable=False)

        batch = self._shape[0]
        self._lost = counter()
        self._gradients, self._zeros = counter(batch), counter(batch)
        self._nearest = counter(batch)
        # Of the attempt that reached the largest margin so far.
        self._largest, self._rise = counter(batch), counter(batch)
        # Of the present attempt: the number of its gradients, the smallest and
        # the largest margin, and the largest after each of the last gradients.
        self._count = counter()
        self._low, self._high = counter(batch), counter(batch)
        self._ring = counter(WINDOW, batch)
        # An attack calls them in and before its loops, on any number of copies.
        self._begin_traced = traced(self._begin)
        self._record_traced = of_any_batch(self._record)

    def start(self, x: Any, y: Any) -> None:
        """Resets the counters for a batch.

        Args:
            x: Float array or tensor (batch, ...), the images.
            y: Labels, class numbers or distributions.
        """
        self._x.assign(x)
        self._y.assign(losses.classes(tf.convert_to_tensor(y)))
        zeros = (self._gradients, self._zeros, self._rise, self._count)
        for counter in (*zeros, self._lost):
            counter.assign(tf.zeros_like(counter))
        self._nearest.assign(tf.fill(self._nearest.shape, math.inf))
        self._largest.assign(tf.fill(self._largest.shape, -math.inf))
        self._reset()

    def begin(self) -> None:
        """Begins an attempt."""
        (self._begin_traced if tf.inside_function() else self._begin)()

    def _begin(self) -> None:
        self._finish()
        self._reset()

    def path(self) -> Path | None:
        """Returns the counters.

        Returns:
            The counters of the whole batch; None if no gradient was recorded,
            or one was taken of other images than those of the batch.
        """
        self.begin()
        found = [
            # Made in the scope of a strategy, variables have no numpy().
            tf.convert_to_tensor(counter).numpy()
            for counter in (
                *(self._gradients, self._zeros, self._nearest, self._rise),
                self._lost,
            )
        ]
        *counters, lost = found
        return None if lost or not counters[0].any() else Path(*counters)

    def _reset(self) -> None:
        """Resets the counters of the present attempt."""
        self._count.assign(0.0)
        self._low.assign(tf.fill(self._low.shape, math.inf))
        self._high.assign(tf.fill(self._high.shape, -math.inf))
        self._ring.assign(tf.fill(self._ring.shape, -math.inf))

    def _finish(self) -> None:
        """Keeps the rise of the present attempt if it came nearest."""
        count, high = tf.identity(self._count), tf.identity(self._high)
        window = tf.clip_by_value(
            tf.math.ceil(count / OF_PATH), LEAST_WINDOW, WINDOW
        )
        first = count - tf.minimum(window, count)
        place = tf.range(WINDOW, dtype=tf.float32) == first % WINDOW
        before = tf.reduce_max(
            tf.where(place[:, None], self._ring, -math.inf), axis=0
        )
        whole = high - self._low
        moved = whole > _ROUNDING * tf.maximum(tf.abs(high), tf.abs(self._low))
        rise = tf.where(
            moved & tf.math.is_finite(whole),
            tf.math.divide_no_nan(high - before, whole),
            0.0,
        )
        nearer = high > self._largest
        self._rise.assign(tf.where(nearer, rise, self._rise))
        self._largest.assign(tf.where(nearer, high, self._largest))

    def record(
        self,
        x: tf.Tensor,
        slopes: tf.Tensor,
        logits: tf.Tensor,
        active: tf.Tensor | None,
    ) -> None:
        """Updates the counters with a gradient.

        Args:
            x: Float tensor (copies * batch, ...), the points.
            slopes: Float tensor of x's shape, the gradients.
            logits: Float tensor (copies * batch, classes).
            active: Bool tensor (copies * batch,). None means all.
        """
        rows, batch = x.shape[0], self._shape[0]
        if rows is None or rows % batch or x.shape[1:] != self._shape[1:]:
            self._lost.assign(1.0)
            return
        if active is None:
            active = tf.ones([rows], tf.bool)
        inside = tf.inside_function()
        record = self._record_traced if inside else self._record
        record(x, slopes, logits, active)

    def _record(
        self,
        x: tf.Tensor,
        slopes: tf.Tensor,
        logits: tf.Tensor,
        active: tf.Tensor,
    ) -> None:
        """Updates the counters with a gradient of copies of the batch."""
        batch = self._shape[0]
        copies = tf.shape(x)[0] // batch

        def repeated(values: tf.Tensor) -> tf.Tensor:
            return tf.tile(values, [copies] + [1] * (values.shape.rank - 1))

        margin = tf.cast(losses.margin(logits, repeated(self._y)), tf.float32)
        active &= tf.math.is_finite(margin)
        margin = tf.where(active, margin, -math.inf)
        wrong = margin > self._rounding * tf.cast(
            tf.reduce_max(tf.abs(logits), axis=-1), tf.float32
        )
        length = self._length(x, repeated(self._x))
        length = tf.where(active & wrong, length, math.inf)
        axes = list(range(1, slopes.shape.rank))
        still = active & ~tf.reduce_any(slopes != 0, axis=axes)

        def folded(values: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [-1, batch])

        taken = tf.reduce_any(folded(active), axis=0)
        moving = tf.reduce_any(folded(active & ~still), axis=0)
        self._update(
            tf.cast(taken, tf.float32),
            tf.cast(taken & ~moving, tf.float32),
            tf.reduce_min(folded(length), axis=0),
            tf.reduce_max(folded(margin), axis=0),
        )

    def _length(self, x: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the norms of perturbations, infinity outside the bounds."""
        moved = tf.cast(x, images.dtype) - images
        length = geometry.example_norms(moved, self._norm, keepdims=False)
        length = tf.cast(length, tf.float32)
        if self._bounds is None:
            return length
        low, high = (np.asarray(bound, np.float64) for bound in self._bounds)
        slack = 1e-6 * (high - low)
        least = tf.constant(low - slack, x.dtype)
        most = tf.constant(high + slack, x.dtype)
        outside = (x < least) | (x > most)
        axes = list(range(1, x.shape.rank))
        return tf.where(tf.reduce_any(outside, axis=axes), math.inf, length)

    def _update(
        self,
        taken: tf.Tensor,
        zero: tf.Tensor,
        length: tf.Tensor,
        margin: tf.Tensor,
    ) -> None:
        """Updates the counters with float tensors (batch,)."""
        self._gradients.assign_add(taken)
        self._zeros.assign_add(zero)
        self._nearest.assign(tf.minimum(self._nearest, length))
        count = tf.identity(self._count)
        high = tf.maximum(self._high, margin)
        # Examples without a gradient have no margin.
        known = tf.where(taken > 0, margin, math.inf)
        self._low.assign(tf.minimum(self._low, known))
        self._high.assign(high)
        # Not a sliced assignment, which XLA does not compile in a loop.
        place = tf.range(WINDOW, dtype=tf.float32) == count % WINDOW
        self._ring.assign(tf.where(place[:, None], high[None], self._ring))
        self._count.assign(count + 1)
