"""FAB-T, the targeted fast adaptive boundary attack.

Croce and Hein, 2020, "Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack", algorithm 1, with targets as in standard AutoAttack.
The attack moves along the decision boundary, linearised at every step, and is
biased towards the image. It thereby searches for the nearest adversarial
example, independent of the budget.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.attempts import any_copy
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import first_copy
from tfsam.attacks.attempts import side_by_side
from tfsam.attacks.attempts import turns
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import crossed
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import in_turn
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import predict
from tfsam.attacks.minimum_norm import NearestPoint
from tfsam.attacks.per_example import per_example
from tfsam.attacks.per_example import where
from tfsam.attacks.targeting import check_order
from tfsam.attacks.targeting import targets_of
from tfsam.geometry import example_norms
from tfsam.geometry import example_sums
from tfsam.geometry import for_norm
from tfsam.geometry import over_largest
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# Largest number of Newton steps in a projection. Images took 3 to 18. A point
# that does not reach its hyperplane does no harm: the attack steps again.
_NEWTON_STEPS = 30


@keras.saving.register_keras_serializable(package="tfsam")
class FABT(NearestPoint):
    """Targeted FAB (Croce and Hein, 2020, algorithm 1).

    An iteration is x_{k+1} = clip((1 - alpha) (x_k + eta delta_k) + alpha (x +
    eta delta)), where delta_k and delta project x_k and the image x onto the
    hyperplane on which the target's logit, linearised at x_k, equals that of
    the label, and alpha = min(||delta_k|| / (||delta_k|| + ||delta||),
    alpha_max). A misclassified iterate is moved back towards the image:
    x_{k+1} = (1 - beta) x + beta x_{k+1}. Each target starts at x.

    The search for an example ends at its first misclassified point within
    epsilon. Where there is none, x is returned.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps for each target, >= 1.
        targets: Number of wrong classes to attack in turn, >= 1; if there are
            fewer, all.
        alpha_max: Largest weight of the image's projection, in [0, 1].
        eta: Overshoot beyond the hyperplane, >= 1; 1 ends on it.
        beta: Distance from the image after a success, relative to the distance
            before, in [0, 1].
        bounds: (lowest, highest) value of x, or None.
        target_order: "logits" tries the most likely wrong class first,
            "distance" the one of the nearest boundary; see
            `tfsam.attacks.targeting`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = FABT(epsilon=0.2, steps=10)(lambda x: 10 * x, x, y)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True
    """

    in_graph = True
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    tensor_epsilon = True
    example_epsilons = True
    selective = True
    # Although it searches for the nearest point: separate runs for each epsilon
    # are cheaper, because they skip broken examples and stop early.
    minimum_norm = False

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 100,
        targets: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        bounds: Bounds = (0.0, 1.0),
        target_order: str = "logits",
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.targets = check_count("targets", targets, 1)
        self.alpha_max = check_number("alpha_max", alpha_max, 0, 1)
        self.eta = check_number("eta", eta, 1)
        self.beta = check_number("beta", beta, 0, 1)
        self.target_order = check_order(target_order)

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        enough: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the nearest points and their distances (batch,) from x.

        The search for an example ends at a point within the distance `enough`.
        """
        active = examples(logits_fn, x)
        logits = predict(logits_fn, x, active)
        survivors = active & ~crossed(logits_fn, logits, y)
        targets = targets_of(self, logits_fn, x, y, logits, survivors)
        beside = side_by_side(targets.shape[1], x, logits_fn)
        network = in_turn(logits_fn, beside, x)
        gradient = input_gradient(network, losses.difference)
        enough = tf.cast(enough, x.dtype)
        if enough.shape.rank:
            enough = copies(enough, beside)
        classes = losses.classes(copies(y, beside))

        # A single loop over all targets: `steps` iterations for the first
        # `beside` targets, in parallel, then for the next ones.
        def loop(
            x: tf.Tensor, targets: tf.Tensor, far: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            x = copies(x, beside)

            def running(distance: tf.Tensor) -> tf.Tensor:
                return ~copies(any_copy(distance <= enough, beside), beside)

            def boundary(
                run: tf.Tensor, point: tf.Tensor, left: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor]:
                labels = classes, turns(targets, run * beside, beside)
                slope, logits = gradient(point, labels, left)
                value = losses.difference(logits, labels)
                return slope, tf.cast(value, x.dtype)

            nearest, distance = self._runs(
                network,
                x,
                classes,
                copies(far, beside),
                targets.shape[1] // beside,
                running=running,
                start=lambda run, distance: x,
                boundary=boundary,
            )
            best = tf.reduce_min(tf.reshape(distance, [beside, -1]), axis=0)
            chosen = distance <= copies(best, beside)
            return first_copy(chosen, nearest, beside), best

        far = tf.where(survivors, tf.constant(math.inf, x.dtype), 0)
        return compiled(logits_fn, loop)(x, targets, far)

    def _runs(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        classes: tf.Tensor,
        far: tf.Tensor,
        count: int,
        *,
        running: Callable[[tf.Tensor], tf.Tensor],
        start: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        boundary: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes runs of `steps` iterations each, one after the other.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float tensor (batch, ...), the images.
            classes: int64 tensor (batch,), their class numbers.
            far: Float tensor (batch,), distances from x that a point must
                undercut.
            count: Number of runs.
            running: Function from the distances so far to a bool tensor
                (batch,), the examples whose search goes on.
            start: Function (run, distances so far) -> the first points of a
                run.
            boundary: Function (run, points, examples) -> (slope, value), the
                gradient and the value of the linearised decision boundary.

        Returns:
            The nearest misclassified points, x where there are none, and their
            distances, `far` where there are none.
        """

        def step(
            index: tf.Tensor,
            point: tf.Tensor,
            nearest: tf.Tensor,
            distance: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            left, run = running(distance), index // self.steps
            first = start(run, distance)
            point = tf.where(index % self.steps == 0, first, point)
            point = self._advance(x, point, *boundary(run, point, left))
            logits = predict(logits_fn, point, left)
            # Iterates within rounding errors of the boundary are moved back,
            # too: steps would only become smaller there.
            broken = left & losses.misclassified(logits, classes)
            length = example_norms(point - x, self.norm, keepdims=False)
            found = broken & crossed(logits_fn, logits, classes)
            nearer = found & (length < distance)
            return (
                index + 1,
                where(broken, x + self.beta * (point - x), point),
                where(nearer, point, nearest),
                tf.where(nearer, length, distance),
            )

        _, _, nearest, distance = tf.while_loop(
            lambda index, _point, _nearest, distance: (
                (index < self.steps * count) & tf.reduce_any(running(distance))
            ),
            step,
            (0, x, x, far),
            parallel_iterations=1,
        )
        return nearest, distance

    def _advance(
        self,
        x: tf.Tensor,
        point: tf.Tensor,
        slope: tf.Tensor,
        value: tf.Tensor,
    ) -> tf.Tensor:
        """Returns the next iterate.

        Args:
            x: Float tensor (batch, ...).
            point: Float tensor (batch, ...), the current iterate.
            slope: Float tensor (batch, ...), the gradient of z_t - z_y there.
            value: Float tensor (batch,), z_t - z_y there.
        """
        value_at_x = value + example_sums(slope * (x - point), keepdims=False)
        both = tf.concat([point, x], 0)
        landed = project_onto_hyperplane(
            both,
            tf.concat([slope, slope], 0),
            tf.concat([value, value_at_x], 0),
            self.norm,
            self.bounds,
        )
        step, step_of_x = tf.split(landed - both, 2)
        length = example_norms(step, self.norm)
        both_lengths = length + example_norms(step_of_x, self.norm)
        alpha = tf.minimum(
            tf.math.divide_no_nan(length, both_lengths), self.alpha_max
        )
        return self.clip(
            (1 - alpha) * (point + self.eta * step)
            + alpha * (x + self.eta * step_of_x)
        )


def project_onto_hyperplane(
    x: tf.Tensor, w: tf.Tensor, value: tf.Tensor, norm: str, bounds: Bounds
) -> tf.Tensor:
    """Projects each example onto a hyperplane, within the box of the bounds.

    Computes argmin_z ||z - x|| over {z in the box: <w, z - x> + value = 0}.
    Every coordinate moves towards the hyperplane at its own speed, 1 in l-inf
    and |w_i| in l2, until it reaches its bound; all move for the same time. The
    change of the affine function is concave and piecewise linear in this time.
    Newton's method, started at zero, therefore ascends to the solution without
    sorting, and is exact once it reaches the right piece.

    In l1 the coordinates move one after the other, the largest |w_i| first, as
    far as their bounds, until the hyperplane is reached; equal ones move
    together, by the same part of their room.

    Args:
        x: Float tensor (batch, ...), inside `bounds`.
        w: Float tensor of x's shape, the normals.
        value: Float tensor (batch,), the affine function at x.
        norm: "linf", "l2" or "l1".
        bounds: (lowest, highest) value of x, or None.

    Returns:
        Tensor of x's shape. If the box and the hyperplane do not intersect, the
        corner of the box nearest to the hyperplane; x where w is zero.

    Example:
        >>> import tensorflow as tf
        >>> x, w = tf.constant([[0.5, 0.5]]), tf.constant([[1.0, 1.0]])
        >>> value = tf.constant([0.5])
        >>> project_onto_hyperplane(x, w, value, "l2", (0.0, 1.0)).numpy()
        array([[0.25, 0.25]], dtype=float32)
    """
    w, largest = over_largest(w)
    value = tf.math.divide_no_nan(per_example(value, x), largest)
    low, high = bounds or (-math.inf, math.inf)
    weight = tf.abs(w)
    direction = -tf.sign(w) * tf.sign(value)
    room = tf.where(direction > 0, high - x, x - low)
    room = tf.where(direction == 0, tf.zeros_like(x), room)
    if norm == "l1":
        moved = _largest_first(tf.abs(value), weight, room)
    else:
        speed = for_norm(norm, linf=tf.sign, l2=lambda weight: weight)(weight)
        stops = tf.math.divide_no_nan(room, speed)
        most = weight * room
        time = _time_to_gain(tf.abs(value), weight * speed, most, stops)
        moved = tf.where(stops > time, time * speed, room)
    return tf.clip_by_value(x + direction * moved, low, high)


def _largest_first(
    needed: tf.Tensor, weight: tf.Tensor, room: tf.Tensor
) -> tf.Tensor:
    """Returns how far each coordinate moves in l1.

    Args:
        needed: Float tensor (batch, 1, ...), the total change.
        weight: Float tensor (batch, ...), the change of each coordinate for
            each unit of its movement, >= 0.
        room: Float tensor of the shape of `weight`, how far each can move;
            infinite where it has no bound.

    Returns:
        Tensor of the shape of `weight`; `room` if the value is not reached.
    """
    # Without bounds, a coordinate alone reaches the hyperplane.
    enough = tf.math.divide_no_nan(needed, weight)
    room = tf.where(weight > 0, tf.minimum(room, enough), 0)
    gains = tf.reshape(weight * room, [tf.shape(weight)[0], -1])
    flat = tf.reshape(weight, tf.shape(gains))
    order = tf.argsort(flat, axis=1, direction="DESCENDING", stable=True)
    total = tf.cumsum(tf.gather(gains, order, axis=1, batch_dims=1), axis=1)
    # The first coordinate at which the sum suffices; else the last one.
    rows = tf.reshape(needed, [-1, 1])
    before = tf.reduce_sum(tf.cast(total < rows, tf.int32), 1)
    before = tf.minimum(before, tf.shape(flat)[1] - 1)
    last = tf.gather(order, before, axis=1, batch_dims=1)
    last = tf.gather(flat, last, axis=1, batch_dims=1)
    last = per_example(last, weight)
    full = example_sums(tf.where(weight > last, weight * room, 0))
    partial = example_sums(tf.where(weight == last, weight * room, 0))
    share = tf.math.divide_no_nan(needed - full, partial)
    share = tf.clip_by_value(share, 0, 1)
    moved = tf.where(weight == last, share * room, 0)
    return tf.where(weight > last, room, moved)


def _time_to_gain(
    needed: tf.Tensor, rates: tf.Tensor, most: tf.Tensor, stops: tf.Tensor
) -> tf.Tensor:
    """Returns the time at which the total change reaches the needed value.

    Args:
        needed: Float tensor (batch, 1, ...).
        rates: Float tensor (batch, ...), the change of each coordinate in a
            unit of time.
        most: Float tensor (batch, ...), the change of each coordinate until it
            stops.
        stops: Float tensor (batch, ...), the time at which each stops.

    Returns:
        Tensor of the shape of `needed`, infinite if the value is not reached.
    """

    def newton(
        count: tf.Tensor, time: tf.Tensor, _before: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        moving = stops > time
        rate = example_sums(tf.where(moving, rates, 0))
        rest = needed - example_sums(
            tf.where(moving, tf.zeros_like(most), most)
        )
        later = tf.where(rate > 0, rest / rate, math.inf)
        return count + 1, tf.maximum(time, later), time

    never = needed >= example_sums(most)
    start = tf.where(never, tf.constant(math.inf, needed.dtype), 0)
    return tf.while_loop(
        lambda count, time, before: (
            (count < _NEWTON_STEPS) & tf.reduce_any(time > before)
        ),
        newton,
        (0, start, tf.fill(tf.shape(start), tf.constant(-1, start.dtype))),
        parallel_iterations=1,
    )[1]
