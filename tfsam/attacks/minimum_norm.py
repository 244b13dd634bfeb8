"""Minimum-norm attacks, which search for the nearest adversarial example: FMN.

Pintor et al., 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive
Norm Constraints", algorithm 1.

A single run of a minimum-norm attack measures robustness at every epsilon: an
example is broken at all epsilons above its distance to the point that `closest`
returns.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import first_copy
from tfsam.attacks.attempts import side_by_side
from tfsam.attacks.attempts import turn
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import crossed
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import in_turn
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import predict
from tfsam.attacks.per_example import per_example
from tfsam.attacks.per_example import where
from tfsam.attacks.targeting import check_order
from tfsam.attacks.targeting import targets_of
from tfsam.geometry import dual_norms
from tfsam.geometry import example_norms
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# Final step size and gamma, relative to the first ones: the paper's 1/100, and
# 0.001 from 0.05.
_STEP_SIZE_LEFT = 0.01
_GAMMA_LEFT = 0.02


class NearestPoint(Attack):
    """Base class of attacks that search for the nearest misclassified point."""

    climbs = False

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns a misclassified point within epsilon, or x.

        On a surrogate, returns the point at epsilon in the direction of the
        nearest misclassified point.
        """
        enough = 0.0 if is_surrogate(logits_fn) else self.radii(x)
        nearest, distance = self._search(logits_fn, x, y, seeds, enough)
        return reached(self, logits_fn, x, nearest, distance)

    def closest(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Finds the nearest misclassified point, regardless of epsilon.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float tensor (batch, ...).
            y: Class numbers, or one-hot or smoothed labels.
            seeds: int32 tensor (batch, 2), the keys of random starts.

        Returns:
            Tensor of x's shape; x itself where it is misclassified or where no
            misclassified point was found.
        """
        return self._search(logits_fn, x, y, seeds, 0.0)[0]

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        enough: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the nearest points and their distances (batch,) from x.

        The search for an example may end at a point within the distance
        `enough`.
        """
        raise TypeError(
            "An attack that searches for nearest points must implement "
            f"_search(). Received: {type(self).__name__}"
        )


@keras.saving.register_keras_serializable(package="tfsam")
class FMN(NearestPoint):
    """The fast minimum-norm attack (Pintor et al., 2021, algorithm 1).

    The attack ascends the margin within a ball around the image, and adapts the
    radius of the ball: it shrinks by the factor 1 - gamma if the iterate is
    misclassified, and grows by 1 + gamma if not. Until the first success the
    radius is the distance to the linearised boundary, ||delta|| + |margin| /
    ||gradient||_dual. The step size and gamma decrease by a cosine, to 1/100
    and 1/50 of their first values.

    With `targets`, the attack ascends the difference between the logits of a
    target and of the label, for one target after the other, each from the
    image. The nearest of all misclassified points is kept, whatever its class.

    There are three differences from the paper. Steps are measured in radii, so
    that no step size needs to be tuned to the data set. Their direction is
    steepest in the norm of the attack, except in l1, where it would change a
    single pixel: there it is that of l2, as in the paper, and the projection
    makes the perturbation sparse. The radius also grows before the first
    success, because iterates may approach the linearised boundary without
    crossing it.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps, for each target, >= 1.
        step_size: Length of the first step, in radii of the ball, >= 0.
        gamma: First relative change of the radius, in [0, 1).
        bounds: (lowest, highest) value of x, or None.
        targets: Number of wrong classes to attack in turn, >= 0; if there are
            fewer, all. 0 means untargeted.
        target_order: "logits" tries the most likely wrong class first,
            "distance" the one of the nearest boundary; see
            `tfsam.attacks.targeting`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = FMN(epsilon=0.2)(lambda x: 10 * x, x, y)
        >>> print(x_adv.numpy().round(1))
        [[0.5 0.5]]
    """

    in_graph = True
    norms = geometry.NORMS
    tensor_epsilon = True
    example_epsilons = True
    selective = True
    # A run costs the same for every epsilon, so that a single call of `closest`
    # serves all epsilons.
    minimum_norm = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 100,
        step_size: float = 2.0,
        gamma: float = 0.05,
        bounds: Bounds = (0.0, 1.0),
        targets: int = 0,
        target_order: str = "logits",
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.step_size = check_number("step_size", step_size)
        self.gamma = check_number("gamma", gamma)
        if gamma >= 1:
            raise ValueError(f"gamma must be < 1. Received: gamma={gamma}")
        self.targets = check_count("targets", targets)
        self.target_order = check_order(target_order)

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        enough: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the nearest points, after all steps; see `NearestPoint`."""
        active = examples(logits_fn, x)
        if not self.targets:
            return self._ascend(logits_fn, losses.margin, y, x, y, active)
        logits = predict(logits_fn, x, active)
        active &= ~crossed(logits_fn, logits, y)
        targets = targets_of(self, logits_fn, x, y, logits, active)
        beside = side_by_side(targets.shape[1], x, logits_fn)
        asked = in_turn(logits_fn, beside, x)
        right = losses.classes(copies(y, beside))

        def body(
            first: tf.Tensor, nearest: tf.Tensor, distance: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            turns = [turn(targets, first + n) for n in range(beside)]
            points, lengths = self._ascend(
                asked,
                losses.difference,
                (right, tf.concat(turns, 0)),
                copies(x, beside),
                right,
                copies(active, beside),
            )
            best = tf.reduce_min(tf.reshape(lengths, [beside, -1]), axis=0)
            chosen = lengths <= copies(best, beside)
            point = first_copy(chosen, points, beside)
            return (
                first + beside,
                where(best < distance, point, nearest),
                tf.minimum(best, distance),
            )

        distance = tf.where(active, tf.constant(math.inf, x.dtype), 0)
        return tf.while_loop(
            lambda first, _nearest, _distance: first < targets.shape[1],
            body,
            (0, x, distance),
            parallel_iterations=1,
        )[1:]

    def _ascend(
        self,
        logits_fn: LogitsFn,
        loss: LossFn,
        labels: Any,
        x: tf.Tensor,
        y: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the nearest points on the way up a loss, and their distances.

        Args:
            logits_fn: Function from pixels to logits.
            loss: Function from (logits, labels) to a float tensor (batch,), the
                distance from a decision boundary in logits.
            labels: Second argument of the loss.
            x: Float tensor (batch, ...).
            y: Class numbers, or one-hot or smoothed labels.
            active: Bool tensor (batch,), the examples to attack.
        """
        gradient = input_gradient(logits_fn, loss)
        direction = geometry.FACTS[self.norm].dense

        def loop(x: tf.Tensor, active: tf.Tensor) -> Any:
            farthest = self._farthest(x)

            def step(
                index: tf.Tensor,
                point: tf.Tensor,
                radius: tf.Tensor,
                nearest: tf.Tensor,
                distance: tf.Tensor,
            ) -> tuple[tf.Tensor, ...]:
                # Images that are misclassified themselves end at distance 0.
                running = distance > 0
                slope, logits = gradient(point, labels, running)
                broken = running & crossed(logits_fn, logits, y)
                length = example_norms(point - x, self.norm, keepdims=False)
                nearer = broken & (length < distance)
                nearest = where(nearer, point, nearest)
                distance = tf.where(nearer, length, distance)
                gap = tf.cast(tf.abs(loss(logits, labels)), x.dtype)
                steepness = dual_norms(slope, self.norm)
                boundary = length + tf.math.divide_no_nan(gap, steepness)
                cosine = self._cosine(index, x.dtype)
                gamma = self.gamma * (_GAMMA_LEFT + (1 - _GAMMA_LEFT) * cosine)
                radius = tf.where(
                    broken,
                    tf.minimum(radius * (1 - gamma), distance),
                    tf.minimum(
                        _wider(radius * (1 + gamma), boundary, distance),
                        farthest,
                    ),
                )
                rate = _STEP_SIZE_LEFT + (1 - _STEP_SIZE_LEFT) * cosine
                reach = per_example(radius, x)
                ahead = geometry.steepest(slope, direction)
                point += self.step_size * rate * reach * ahead
                point = geometry.project_within(
                    x, point, reach, self.norm, self.bounds
                )
                return index + 1, point, radius, nearest, distance

            distance = tf.where(active, tf.constant(math.inf, x.dtype), 0)
            return tf.while_loop(
                lambda index, _point, _radius, _nearest, distance: (
                    (index < self.steps) & tf.reduce_any(distance > 0)
                ),
                step,
                (0, x, tf.zeros_like(distance), x, distance),
                parallel_iterations=1,
            )[3:]

        return compiled(logits_fn, loop)(x, active)

    def _cosine(self, index: tf.Tensor, dtype: Any) -> tf.Tensor:
        """Computes the schedule, from 1 at the first step to 0 at the end."""
        share = tf.cast(index, dtype) / self.steps
        return (1 + tf.cos(math.pi * share)) / 2

    def _farthest(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the distance to the farthest point within the bounds."""
        low, high = self.bounds or (-math.inf, math.inf)
        room = tf.maximum(high - x, x - low)
        return example_norms(room, self.norm, keepdims=False)


def _wider(
    radius: tf.Tensor, boundary: tf.Tensor, distance: tf.Tensor
) -> tf.Tensor:
    """Returns the radius; before the first success at least to the boundary."""
    searching = tf.math.is_inf(distance)
    return tf.where(searching, tf.maximum(radius, boundary), radius)


def reached(
    attack: Attack,
    logits_fn: LogitsFn,
    x: tf.Tensor,
    nearest: tf.Tensor,
    distance: tf.Tensor,
) -> tf.Tensor:
    """Returns the adversarial example for the attack's epsilon.

    Args:
        attack: The minimum-norm attack.
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).
        nearest: Float tensor (batch, ...), the nearest misclassified points.
        distance: Float tensor (batch,), their distances from x; infinite where
            no misclassified point was found.

    Returns:
        Tensor of x's shape: the nearest misclassified point where it is within
        epsilon, else x. On a surrogate, the point at epsilon in the direction
        of the nearest point, because a point on a surrogate's decision boundary
        seldom fools another network.

    Example:
        >>> import tensorflow as tf
        >>> x, nearest = tf.zeros([2, 1]), tf.constant([[0.1], [0.3]])
        >>> attack = FMN(epsilon=0.2)
        >>> found = reached(attack, lambda x: x, x, nearest, nearest[:, 0])
        >>> print(found.numpy())
        [[0.1]
         [0. ]]
    """
    if not is_surrogate(logits_fn):
        epsilon = tf.cast(attack.radii(x), x.dtype)
        return where(distance <= epsilon, nearest, x)
    lengths = example_norms(nearest - x, attack.norm)
    directions = tf.math.divide_no_nan(nearest - x, lengths)
    return attack.clip(x + tf.cast(attack.radius(x), x.dtype) * directions)
