"""Projections onto balls, also within the bounds of an image.

In l1 the bounds matter: `project_within` projects onto the ball and the bounds
together.
"""

import math
from typing import Any

import tensorflow as tf

from tfsam.geometry.norms import TINY
from tfsam.geometry.norms import example_norms
from tfsam.geometry.norms import example_sums
from tfsam.geometry.norms import for_norm
from tfsam.support.validators import Bounds

# Tolerance for lengths, relative to the radius: three units in the last place
# of float32. Rounding the radius itself adds half a unit.
_FEW_UNITS = 3 * 2.0**-23

# Largest number of steps to find the threshold of a projection onto an l1 ball.
# A third of them halves the interval that is left, so that these many reach the
# precision of float64.
_THRESHOLD_STEPS = 160
# Tolerance for the l1 norm of the projection, relative to the radius.
_SUM_TOLERANCE = 1e-12


def project(perturbations: tf.Tensor, radius: Any, norm: str) -> tf.Tensor:
    """Projects each example onto the ball around zero.

    Args:
        perturbations: Float tensor (batch, ...).
        radius: Radius of the ball, >= 0: a number, a scalar tensor, or a tensor
            (batch, 1, ..., 1).
        norm: "linf", "l2" or "l1".

    Returns:
        Tensor of the shape of `perturbations`: the nearest point of the ball
        to each example. Points inside the ball are unchanged.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> project(tf.constant([[3.0, -4.0]]), 1.0, "linf").numpy().tolist()
        [[1.0, -1.0]]
        >>> project(tf.constant([[3.0, -4.0]]), 3.0, "l1").numpy().tolist()
        [[1.0, -2.0]]
    """
    onto = for_norm(norm, linf=_onto_cube, l2=_onto_sphere, l1=_onto_l1_ball)
    return onto(perturbations, radius)


def _onto_cube(perturbations: tf.Tensor, radius: Any) -> tf.Tensor:
    return tf.clip_by_value(perturbations, -radius, radius)


def _onto_sphere(perturbations: tf.Tensor, radius: Any) -> tf.Tensor:
    norms = example_norms(perturbations, "l2")
    scale = tf.minimum(tf.ones_like(norms), radius / (norms + TINY))
    return perturbations * scale


def _onto_l1_ball(perturbations: tf.Tensor, radius: Any) -> tf.Tensor:
    origin = tf.zeros_like(perturbations)
    return _project_l1(origin, perturbations, radius, None)


def project_within(
    x: tf.Tensor,
    moved: tf.Tensor,
    radius: Any,
    norm: str,
    bounds: Bounds,
) -> tf.Tensor:
    """Projects points onto the balls around x and into the bounds.

    In l-inf and in l1 the result is the nearest point of the intersection. In
    l2 it is the nearest point of the ball, clipped to the bounds, as in PGD by
    Madry et al., 2018. In l1 clipping would waste budget: after a projection
    onto the ball alone, pixels beyond their bounds hold a part of it (Croce and
    Hein, 2021, "Mind the box: l1-APGD for Sparse Adversarial Attacks on Image
    Classifiers", section 2).

    Args:
        x: Float tensor (batch, ...), the centres of the balls, inside `bounds`.
        moved: Float tensor of the shape and dtype of x.
        radius: Radius of the balls, >= 0: a number, a scalar tensor, or a
            tensor (batch, 1, ..., 1).
        norm: "linf", "l2" or "l1".
        bounds: (lowest, highest) value of x, or None. Each of the two is a
            number, or numbers that broadcast against an example.

    Returns:
        Tensor of the shape of x, inside the bounds and, to rounding, within
        `radius` of x.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        The second pixel can only move by 0.25; the first takes the rest.

        >>> import tensorflow as tf
        >>> x, moved = tf.constant([[0.5, 0.75]]), tf.constant([[1.0, 1.75]])
        >>> bounds = (0.0, 1.0)
        >>> project_within(x, moved, 0.5, "l1", bounds).numpy().tolist()
        [[0.75, 1.0]]
    """
    if norm == "l1":
        return _project_l1(x, moved, radius, bounds)
    points = x + project(moved - x, radius, norm)
    return points if bounds is None else tf.clip_by_value(points, *bounds)


def shrink(
    x: tf.Tensor, moved: tf.Tensor, radius: Any, norm: str = "l2"
) -> tf.Tensor:
    """Moves points that rounding took out of a ball back into it.

    In a large image the rounding errors of x + perturbation add up: where all
    pixels are equal, to sqrt(pixels) / 2 units in their last place in l2. This
    function measures lengths in float64 and rounds each pixel of a shortened
    perturbation towards x.

    Args:
        x: Float tensor (batch, ...), the centres of the balls.
        moved: Float tensor of the shape and dtype of x.
        radius: Radius of the balls, >= 0: a number, a scalar tensor, or a
            tensor (batch, 1, ..., 1).
        norm: "l2" or "l1".

    Returns:
        Tensor of the shape of x. An example of `moved` within `radius` of x,
        to a few units in the last place of float32, is returned unchanged to
        the bit; the others are returned at most `radius` away from x.

    Example:
        >>> import tensorflow as tf
        >>> x = tf.zeros([1, 2])
        >>> shrink(x, tf.constant([[3.0, 4.0]]), 5.0).numpy().tolist()
        [[3.0, 4.0]]
        >>> shrink(x, tf.constant([[3.0, 4.0]]), 2.5).numpy().tolist()
        [[1.5, 2.0]]
    """
    radius = _rounded(radius, x.dtype)
    centres = tf.cast(x, tf.float64)
    norms = example_norms(tf.cast(moved, tf.float64) - centres, norm)
    outside = norms > radius * (1 + _FEW_UNITS)

    def shortened() -> tf.Tensor:
        offsets = (tf.cast(moved, tf.float64) - centres) * (radius / norms)
        points = tf.cast(centres + offsets, x.dtype)
        beyond = tf.abs(tf.cast(points, tf.float64) - centres)
        points = tf.where(beyond > tf.abs(offsets), _towards(points, x), points)
        return tf.where(outside, points, moved)

    return tf.cond(tf.reduce_any(outside), shortened, lambda: moved)


def _project_l1(
    x: tf.Tensor,
    moved: tf.Tensor,
    radius: Any,
    bounds: Bounds,
) -> tf.Tensor:
    """Projects points onto the l1 balls around x, within the bounds.

    The nearest point z to `moved` with ||z - x||_1 <= radius in the box is
    |z_i - x_i| = min(max(|moved_i - x_i| - t, 0), room_i), in the direction of
    moved_i, where room_i is the distance to the bound and t >= 0 the smallest
    threshold for which the sum is at most the radius. In float64, because the
    sizes may be much larger than the radius.
    """
    centres = tf.cast(x, tf.float64)
    offsets = tf.cast(moved, tf.float64) - centres
    radius = _rounded(radius, x.dtype)
    sizes = tf.abs(offsets)
    low, high = bounds or (-math.inf, math.inf)
    room = tf.where(offsets > 0, high - centres, centres - low)
    # Rounding may have taken x a little beyond its bounds.
    room = tf.maximum(room, 0)
    threshold = _threshold(sizes, room, radius)
    lengths = tf.nn.relu(sizes - threshold)  # Clipped to the room below.
    points = tf.cast(centres + tf.sign(offsets) * lengths, x.dtype)
    points = tf.where(threshold == 0, moved, points)
    return points if bounds is None else tf.clip_by_value(points, *bounds)


def _threshold(
    sizes: tf.Tensor, room: tf.Tensor, radius: tf.Tensor
) -> tf.Tensor:
    """Returns t, so that sum_i min(max(sizes_i - t, 0), room_i) is the radius.

    The sum is piecewise linear and falls with t. Newton's method is exact once
    it reaches the right piece. As the sum is neither convex nor concave, the
    solution is bracketed, and every third step halves the bracket.

    Args:
        sizes: float64 tensor (batch, ...), >= 0.
        room: float64 tensor of the shape of `sizes`, >= 0.
        radius: float64 tensor, a scalar or (batch, 1, ..., 1).

    Returns:
        Tensor (batch, 1, ..., 1), >= 0; zero where the sum at zero is at most
        the radius.
    """

    def step(
        count: tf.Tensor,
        point: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
        done: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        rest = sizes - point
        excess = example_sums(tf.clip_by_value(rest, 0, room)) - radius
        moving = tf.cast((rest > 0) & (rest <= room), sizes.dtype)
        low = tf.where(excess > 0, point, low)
        high = tf.where(excess > 0, high, point)
        # At zero the sum may be smaller than the radius.
        done |= (excess <= 0) & (point <= 0)
        done |= tf.abs(excess) <= _SUM_TOLERANCE * radius
        newton = point + excess / example_sums(moving)
        # Not so without a slope, where it is infinite or NaN.
        within = (newton > low) & (newton <= high) & (count % 3 < 2)
        following = tf.where(within, newton, (low + high) / 2)
        return count + 1, tf.where(done, point, following), low, high, done

    highest = example_norms(sizes, "linf")
    nothing = tf.zeros_like(highest)
    start = tf.where(radius > 0, nothing, highest)
    return tf.while_loop(
        lambda count, _point, _low, _high, done: (
            (count < _THRESHOLD_STEPS) & ~tf.reduce_all(done)
        ),
        step,
        (0, start, nothing, highest, tf.zeros_like(nothing, tf.bool)),
        parallel_iterations=1,
    )[1]


def _rounded(radius: Any, dtype: tf.DType) -> tf.Tensor:
    """Returns a radius in float64, rounded to the precision of a computation.

    A number is rounded in the same way as the scalar tensor that an evaluation
    passes instead. That tensor is never float16: its rounding would change the
    ball.
    """
    dtype = dtype if dtype.size > 4 else tf.float32
    if not tf.is_tensor(radius):  # tf.cast would round it to float32 first.
        radius = tf.constant(radius, dtype)
    return tf.cast(tf.cast(radius, dtype), tf.float64)


def _towards(points: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the next number of the dtype from each point towards x.

    Read as integers, the bits of positive floating-point numbers have the order
    of the numbers, and the bits of negative ones the opposite order.
    """
    integer = {2: tf.int16, 4: tf.int32, 8: tf.int64}[points.dtype.size]
    # TensorFlow has GPU kernels for int64, and runs those for int32 on the CPU.
    bits = tf.cast(tf.bitcast(points, integer), tf.int64)
    one = tf.ones([], tf.int64)
    bits += tf.where((x > points) == (points > 0), one, -one)
    # From either zero, to the smallest positive or negative number.
    smallest = tf.where(x > 0, one, integer.min + one)
    bits = tf.where(points == 0, smallest, bits)
    moved = tf.bitcast(tf.cast(bits, integer), points.dtype)
    return tf.where(points == x, points, moved)
