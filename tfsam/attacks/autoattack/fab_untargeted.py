"""Untargeted FAB, the fast adaptive boundary attack on all classes at once.

Croce and Hein, 2020, "Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack", algorithm 1. Each step moves to the nearest of the
decision boundaries between the label and the other classes, each linearised at
the current point, for which it needs the gradients of all of them.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import crossed
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import predict
from tfsam.attacks.per_example import where
from tfsam.attacks.seeds import next_seeds
from tfsam.geometry import dual_norms
from tfsam.support.validators import check_count


@keras.saving.register_keras_serializable(package="tfsam")
class FAB(FABT):
    """Untargeted FAB (Croce and Hein, 2020, algorithm 1), with restarts.

    A step is that of `FABT` towards the class whose linearised boundary is the
    nearest, equation (7) of the paper. It costs a gradient for each of the
    other classes.

    The first run starts at x. Another one starts on the surface of a ball
    around x, whose radius is half the smaller of epsilon and the distance of
    the nearest point so far, as in the authors' code. The search for an example
    ends at its first misclassified point within epsilon. Where there is none, x
    is returned.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: A norm that `FABT` takes, such as "linf".
        steps: Number of steps in each run, >= 1.
        restarts: Number of runs, >= 1.
        alpha_max: Largest weight of the image's projection, in [0, 1].
        eta: Overshoot beyond the hyperplane, >= 1; 1 ends on it.
        beta: Distance from the image after a success, relative to the distance
            before, in [0, 1].
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = FAB(epsilon=0.2, steps=10)(lambda x: 10 * x, x, y)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(
            epsilon,
            norm,
            steps,
            alpha_max=alpha_max,
            eta=eta,
            beta=beta,
            bounds=bounds,
        )
        self.targets = 0
        self.restarts = check_count("restarts", restarts, 1)

    @property
    def gradients(self) -> int:
        """Number of gradients for a batch and each of the other classes."""
        return self.steps * self.restarts

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        enough: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the nearest points and their distances (batch,) from x."""
        active = examples(logits_fn, x)
        logits = predict(logits_fn, x, active)
        survivors = active & ~crossed(logits_fn, logits, y)
        classes = losses.classes(y)
        nearest_boundary = _nearest_boundary(
            logits_fn, classes, logits.shape[-1], self.norm
        )
        enough = tf.cast(enough, x.dtype)
        units = self._directions(x, seeds)

        def loop(
            x: tf.Tensor, far: tf.Tensor, units: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            return self._runs(
                logits_fn,
                x,
                classes,
                far,
                self.restarts,
                running=lambda distance: distance > enough,
                start=lambda run, distance: self._start(
                    x, distance, units[run]
                ),
                boundary=lambda run, point, left: nearest_boundary(point, left),
            )

        far = tf.where(survivors, tf.constant(math.inf, x.dtype), 0)
        return compiled(logits_fn, loop)(x, far, units)

    def _directions(self, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns a direction for each run, (restarts, batch, ...); 0 first."""

        def unit(run: int) -> tf.Tensor:
            points = geometry.random_point(
                next_seeds(seeds, run), tf.shape(x), 1.0, self.norm, x.dtype
            )
            return points / geometry.example_norms(points, self.norm)

        units = [unit(run) for run in range(1, self.restarts)]
        return tf.stack([tf.zeros_like(x), *units])

    def _start(
        self, x: tf.Tensor, distance: tf.Tensor, unit: tf.Tensor
    ) -> tf.Tensor:
        """Returns the starting point of a run."""
        radius = tf.minimum(distance, tf.cast(self.radii(x), x.dtype)) / 2
        each = [-1] + [1] * (x.shape.rank - 1)
        return self.clip(x + tf.reshape(radius, each) * unit)


def _nearest_boundary(
    logits_fn: LogitsFn, labels: tf.Tensor, classes: int, norm: str
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function that linearises the nearest decision boundary.

    Args:
        logits_fn: Function from pixels to logits.
        labels: int64 tensor (batch,), the class numbers.
        classes: Number of classes.
        norm: The norm of the distances.

    Returns:
        Function (x, active) -> (slope, value), the gradient and the value of
        z_c - z_y at x, for the class c whose boundary is the nearest.
    """
    gradient = input_gradient(logits_fn, losses.difference)

    def nearest(x: tf.Tensor, active: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def compare(
            turn: tf.Tensor, slope: tf.Tensor, value: tf.Tensor, best: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            other = (labels + tf.cast(turn, labels.dtype)) % classes
            found, logits = gradient(x, (labels, other), active)
            gap = losses.difference(logits, (labels, other))
            gap = tf.cast(gap, x.dtype)
            distance = _distance(gap, found, norm)
            nearer = distance < best
            return (
                turn + 1,
                where(nearer, found, slope),
                tf.where(nearer, gap, value),
                tf.where(nearer, distance, best),
            )

        far = tf.fill(tf.shape(labels), tf.constant(math.inf, x.dtype))
        _, slope, value, _ = tf.while_loop(
            lambda turn, _slope, _value, _best: turn < classes,
            compare,
            (1, tf.zeros_like(x), tf.zeros_like(far), far),
            parallel_iterations=1,
        )
        return slope, value

    return nearest


def _distance(gap: tf.Tensor, slope: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns the distance of a linearised boundary, the paper's equation (7).

    Args:
        gap: Float tensor (batch,), the value of the linear function.
        slope: Float tensor (batch, ...), its gradient.
        norm: The norm of the distance; the gradient has the dual norm.

    Returns:
        Float tensor (batch,), infinite where the gradient is zero.
    """
    dual = dual_norms(slope, norm)
    far = tf.constant(math.inf, dual.dtype)
    return tf.where(dual > 0, tf.math.divide_no_nan(tf.abs(gap), dual), far)
