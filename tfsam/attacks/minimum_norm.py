"""Attacks that look for the nearest adversarial example: FMN.

Pintor et al. (2021), "Fast Minimum-norm Adversarial Attacks through Adaptive
Norm Constraints", Algorithm 1.

One run of a minimum-norm attack measures robustness at every epsilon: an
example is broken at those above its distance, which `closest` finds.
"""

import math

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import per_example
from tfsam.attacks.base import where
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import crossed
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import is_surrogate
from tfsam.geometry import example_norms
from tfsam.geometry import example_sums
from tfsam.geometry import over_largest
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# What is left of step size and gamma at the end: the paper's 1/100 and, of
# gamma 0.05, 0.001.
_STEP_SIZE_LEFT = 0.01
_GAMMA_LEFT = 0.02


@keras.saving.register_keras_serializable(package="tfsam")
class FMN(Attack):
    """The fast minimum-norm attack (Pintor et al., 2021, Algorithm 1).

    Ascends the margin within a ball around the image whose radius adapts: it
    shrinks by 1 - gamma where the iterate is misclassified, and grows by
    1 + gamma where it is not. Until a first success the radius is the distance
    to the linearised boundary, ||delta|| + |margin| / ||gradient||_dual.
    Step size and gamma follow a cosine down to 1/100 and 1/50.

    Three things are not as in the paper. A step is measured in radii, so that
    no step size has to be found for each data set; its direction is steepest
    in the attack's own norm; and the radius also grows before the first
    success, for the linearised boundary may be approached without being
    crossed.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients, >= 1.
        step_size: the first step, in radii of the ball; >= 0.
        gamma: the first change of the radius, in [0, 1).
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    tensor_epsilon = True
    selective = True
    # A run costs the same whatever epsilon: `closest` once serves them all.
    minimum_norm = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=100,
        step_size=2.0,
        gamma=0.05,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.step_size = check_number("step_size", step_size)
        self.gamma = check_number("gamma", gamma)
        if gamma >= 1:
            raise ValueError(f"gamma must be < 1. Received: gamma={gamma}")

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the nearest misclassified point if within epsilon, else x.

        Of a surrogate it is the point at epsilon in its direction.
        """
        nearest, distance = self._search(logits_fn, x, y)
        return reached(self, logits_fn, x, nearest, distance)

    def closest(self, logits_fn, x, y, seeds):
        """The nearest misclassified point that was met, whatever epsilon.

        Args:
            logits_fn: function from pixels to logits.
            x: float tensor (batch, ...).
            y: labels.
            seeds: int32 (batch, 2), of which the attack needs none.

        Returns:
            A tensor of x's shape; x where it is misclassified itself, and where
            no such point was met.
        """
        return self._search(logits_fn, x, y)[0]

    def _search(self, logits_fn, x, y):
        active = examples(logits_fn, x)
        gradient = input_gradient(logits_fn, losses.margin)

        def loop(x, active):
            farthest = self._farthest(x)

            def step(index, point, radius, nearest, distance):
                # An image that is misclassified itself is done, at distance 0.
                running = distance > 0
                slope, logits = gradient(point, y, running)
                broken = running & crossed(logits_fn, logits, y)
                length = example_norms(point - x, self.norm, keepdims=False)
                nearer = broken & (length < distance)
                nearest = where(nearer, point, nearest)
                distance = tf.where(nearer, length, distance)
                gap = tf.cast(tf.abs(losses.margin(logits, y)), x.dtype)
                boundary = length + _distance(gap, slope, self.norm)
                cosine = self._cosine(index, x.dtype)
                gamma = self.gamma * (_GAMMA_LEFT + (1 - _GAMMA_LEFT) * cosine)
                wider = radius * (1 + gamma)
                searching = tf.math.is_inf(distance)
                wider = tf.where(searching, tf.maximum(wider, boundary), wider)
                radius = tf.where(
                    broken,
                    tf.minimum(radius * (1 - gamma), distance),
                    tf.minimum(wider, farthest),
                )
                rate = _STEP_SIZE_LEFT + (1 - _STEP_SIZE_LEFT) * cosine
                reach = per_example(radius, x)
                ahead = geometry.steepest(slope, self.norm)
                moved = point - x + self.step_size * rate * reach * ahead
                point = x + geometry.project(moved, reach, self.norm)
                return index + 1, self.clip(point), radius, nearest, distance

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

    def _cosine(self, index, dtype):
        """From 1 at the first step towards 0 after the last."""
        share = tf.cast(index, dtype) / self.steps
        return (1 + tf.cos(math.pi * share)) / 2

    def _farthest(self, x):
        """How far the box reaches: no radius need be larger."""
        low, high = self.bounds or (-math.inf, math.inf)
        room = tf.maximum(high - x, x - low)
        return example_norms(room, self.norm, keepdims=False)


def reached(attack, logits_fn, x, nearest, distance):
    """Returns the image for an epsilon, given the nearest misclassified one.

    Args:
        attack: the `Attack`.
        logits_fn: function from pixels to logits.
        x: float tensor (batch, ...).
        nearest: float tensor (batch, ...), the points that were found.
        distance: float tensor (batch,), theirs from x, infinite where none was.

    Returns:
        A tensor of x's shape: the nearest point where it is within epsilon,
        else x. A point on a surrogate's boundary seldom fools another network,
        so for a surrogate it is the point at epsilon in the same direction.
    """
    epsilon = tf.cast(attack.epsilon, x.dtype)
    if not is_surrogate(logits_fn):
        return where(distance <= epsilon, nearest, x)
    lengths = example_norms(nearest - x, attack.norm)
    directions = tf.math.divide_no_nan(nearest - x, lengths)
    return attack.clip(x + epsilon * directions)


def _distance(gap, slope, norm):
    """How far a function with this slope must go to change by the gap."""
    scaled, largest = over_largest(slope)
    if norm == "linf":
        dual = example_sums(tf.abs(scaled), keepdims=False)
    else:
        dual = example_norms(scaled, "l2", keepdims=False)
    dual *= tf.reshape(largest, [-1])
    return tf.math.divide_no_nan(gap, dual)
