"""FAB-T: the targeted fast adaptive boundary attack.

Croce and Hein (2020), "Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack", Algorithm 1, with targets as standard AutoAttack uses
it. It walks along the decision boundary, which it takes for a hyperplane at
every step, and is drawn towards the image as it goes: so it looks for the
nearest adversarial example, whatever the budget.
"""

import math

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import any_copy
from tfsam.attacks.base import copies
from tfsam.attacks.base import first_copy
from tfsam.attacks.base import per_example
from tfsam.attacks.base import side_by_side
from tfsam.attacks.base import turn
from tfsam.attacks.base import where
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import crossed
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import in_turn
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import predict
from tfsam.attacks.minimum_norm import reached
from tfsam.geometry import example_norms
from tfsam.geometry import example_sums
from tfsam.geometry import over_largest
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# Newton steps of a projection: images took 3 to 18. A point that is still short
# of its hyperplane would do no harm, the attack steps again.
_NEWTON_STEPS = 30


@keras.saving.register_keras_serializable(package="tfsam")
class FABT(Attack):
    """Targeted FAB (Croce and Hein, 2020, Algorithm 1).

    x_{k+1} = clip((1 - alpha) (x_k + eta delta_k) + alpha (x + eta delta)),
    where delta_k and delta lead x_k and the image x to the hyperplane on which
    the target's logit, linearised at x_k, equals that of the label, and
    alpha = min(||delta_k|| / (||delta_k|| + ||delta||), alpha_max). From a
    point that is misclassified it goes back towards the image,
    x_{k+1} = (1 - beta) x + beta x_{k+1}. Each target starts at x itself.

    An example is left at its first misclassified point within epsilon; where
    there is none, x is returned.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients for each target, >= 1.
        targets: so many of the likeliest wrong classes in turn, at most as many
            as there are; >= 1.
        alpha_max: the strongest pull towards the image, in [0, 1].
        eta: how far beyond the hyperplane, >= 1.
        beta: how far from the image after a success, in [0, 1].
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    tensor_epsilon = True
    selective = True
    # It does look for the nearest point, but a run for each epsilon, which
    # leaves out those already broken and stops early, is the cheaper one.
    minimum_norm = False

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=100,
        targets=9,
        alpha_max=0.1,
        eta=1.05,
        beta=0.9,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.targets = check_count("targets", targets, 1)
        self.alpha_max = check_number("alpha_max", alpha_max, 0, 1)
        self.eta = check_number("eta", eta, 1)
        self.beta = check_number("beta", beta, 0, 1)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns a misclassified point within epsilon, or x.

        Of a surrogate it is the point at epsilon in the direction of the
        nearest misclassified one.
        """
        enough = 0.0 if is_surrogate(logits_fn) else self.epsilon
        nearest, distance = self._search(logits_fn, x, y, enough)
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
        return self._search(logits_fn, x, y, 0.0)[0]

    def _search(self, logits_fn, x, y, enough):
        """The nearest point, and its distance; stops at one near `enough`."""
        active = examples(logits_fn, x)
        logits = predict(logits_fn, x, active)
        standing = active & ~crossed(logits_fn, logits, y)
        targets = losses.targets(logits, y, self.targets)
        beside = side_by_side(targets.shape[1], x, logits_fn)
        asked = in_turn(logits_fn, beside, x)
        gradient = input_gradient(asked, losses.difference)
        enough = tf.cast(enough, x.dtype)
        classes = losses.classes(copies(y, beside))

        # One loop for all targets: `steps` iterations for some beside each
        # other, then for the next ones.
        def loop(x, targets, far):
            x = copies(x, beside)

            def running(distance):
                return ~copies(any_copy(distance <= enough, beside), beside)

            def step(index, point, nearest, distance):
                left = running(distance)
                point = tf.where(index % self.steps == 0, x, point)
                first = index // self.steps * beside
                turns = [turn(targets, first + n) for n in range(beside)]
                labels = classes, tf.concat(turns, 0)
                slope, logits = gradient(point, labels, left)
                value = tf.cast(losses.difference(logits, labels), x.dtype)
                point = self._advance(x, point, slope, value)
                logits = predict(asked, point, left)
                # Within rounding of the boundary it turns back, too: its steps
                # would only become smaller there.
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
                    (index < self.steps * targets.shape[1] // beside)
                    & tf.reduce_any(running(distance))
                ),
                step,
                (0, x, x, copies(far, beside)),
                parallel_iterations=1,
            )
            best = tf.reduce_min(tf.reshape(distance, [beside, -1]), axis=0)
            chosen = distance <= copies(best, beside)
            return first_copy(chosen, nearest, beside), best

        far = tf.where(standing, tf.constant(math.inf, x.dtype), 0)
        return compiled(logits_fn, loop)(x, targets, far)

    def _advance(self, x, point, slope, value):
        """The next iterate; `value` is that of z_t - z_y at the present one."""
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


def project_onto_hyperplane(x, w, value, norm, bounds):
    """The nearest point of a hyperplane inside the box, for each example.

    argmin_z ||z - x|| over {z in the box: <w, z - x> + value = 0}. Every
    coordinate goes towards the hyperplane at its own speed, 1 in l-inf and
    |w_i| in l2, until its bound stops it; all go on for the same time. What is
    gained by a time is concave and piecewise linear in it, so Newton's method
    from zero ascends to the solution without sorting, and is exact once it is
    on the right piece.

    Args:
        x: float tensor (batch, ...), inside `bounds`.
        w: float tensor of x's shape, the normals.
        value: float tensor (batch,), of the affine function at x.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None.

    Returns:
        A tensor of x's shape. Where the box and the hyperplane do not meet, the
        corner of the box that is nearest to it; x where w is zero.
    """
    w, largest = over_largest(w)
    value = tf.math.divide_no_nan(per_example(value, x), largest)
    low, high = bounds or (-math.inf, math.inf)
    weight = tf.abs(w)
    direction = -tf.sign(w) * tf.sign(value)
    room = tf.where(direction > 0, high - x, x - low)
    room = tf.where(direction == 0, tf.zeros_like(x), room)
    speed = tf.sign(weight) if norm == "linf" else weight
    stops = tf.math.divide_no_nan(room, speed)
    time = _time_to_gain(tf.abs(value), weight * speed, weight * room, stops)
    moved = tf.where(stops > time, time * speed, room)
    return tf.clip_by_value(x + direction * moved, low, high)


def _time_to_gain(needed, rates, most, stops):
    """The time at which all coordinates together have gained what is needed.

    Args:
        needed: float tensor (batch, 1, ...).
        rates: float tensor (batch, ...), what each gains in a unit of time.
        most: float tensor (batch, ...), what each has gained when it stops.
        stops: float tensor (batch, ...), when each stops.

    Returns:
        A tensor of the shape of `needed`; infinite if they never have.
    """

    def newton(count, time, _before):
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
