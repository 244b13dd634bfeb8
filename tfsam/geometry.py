"""Norms and balls, shared by perturbations of inputs and of weights.

Both kinds of perturbation maximise a linearised loss over a ball. For the
inputs there is one ball per example: `steepest` returns the point of the unit
ball that maximises the linearised loss, `project` maps a perturbation to the
nearest point of the ball, and `random_point` draws a starting point. For the
weights there is a single ball around all of them, measured by `global_norm`.

`FACTS` holds, for each norm, the numbers that depend on it. In l1 an image's
bounds matter: `project_within` projects onto the ball and the bounds together.

All functions are pure functions of tensors. They run eagerly, in a graph and in
XLA, in float32 and in float64.
"""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.support.validators import check_choice


class Norm(NamedTuple):
    """Facts about a norm.

    Attributes:
        order: The p of l_p, as `numpy.linalg.norm` takes it.
        dual: Name of the dual norm, which measures gradients.
        steps_across: Number of PGD steps of the default length that make
            epsilon: 4 in l-inf, as in Madry et al., 2018, and 8 in the others.
    """

    order: float
    dual: str
    steps_across: int


FACTS = {
    "linf": Norm(order=math.inf, dual="l1", steps_across=4),
    "l2": Norm(order=2, dual="l2", steps_across=8),
    "l1": Norm(order=1, dual="linf", steps_across=8),
}

NORMS = tuple(FACTS)

# Tolerance for lengths, relative to the radius: three units in the last place
# of float32. Rounding the radius itself adds half a unit.
_FEW_UNITS = 3 * 2.0**-23

# Largest number of steps to find the threshold of a projection onto an l1 ball.
# A third of them halves the interval that is left, so that these many reach the
# precision of float64.
_THRESHOLD_STEPS = 160
# Tolerance for the l1 norm of the projection, relative to the radius.
_SUM_TOLERANCE = 1e-12

# Added to denominators in the attacks' losses and in every weight perturbation.
# A single constant keeps identities between methods, such as GSAM with alpha=0
# and SAM, exact.
TINY = 1e-12


def check_norm(norm: str) -> str:
    """Checks the name of a norm.

    Args:
        norm: "linf", "l2" or "l1".

    Returns:
        `norm`.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> check_norm("l2")
        'l2'
    """
    return check_choice("norm", norm, NORMS)


def global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Computes the l2 norm of a list of tensors, taken as a single vector.

    The sum of squares is at least float32: in float16 it would overflow at 256
    weights of size 16.

    Args:
        tensors: List of float tensors of any shapes.

    Returns:
        Scalar tensor, float64 if the tensors are float64, else float32.

    Example:
        >>> import tensorflow as tf
        >>> float(global_norm([tf.constant([3.0]), tf.constant([[4.0]])]))
        5.0
    """
    return tf.sqrt(
        tf.add_n([tf.reduce_sum(tf.square(_precise(t))) for t in tensors])
    )


def example_sums(values: tf.Tensor, keepdims: bool = True) -> tf.Tensor:
    """Sums the values of each example of a batch.

    Args:
        values: Float tensor (batch, ...).
        keepdims: If True, the result has shape (batch, 1, ..., 1), which
            broadcasts against `values`; else it has shape (batch,).

    Returns:
        Tensor of the dtype of `values`.

    Example:
        >>> import tensorflow as tf
        >>> example_sums(tf.ones([2, 3]), keepdims=False).numpy().tolist()
        [3.0, 3.0]
    """
    axes = list(range(1, values.shape.rank))
    return tf.reduce_sum(values, axis=axes, keepdims=keepdims)


def example_norms(
    perturbations: tf.Tensor, norm: str, keepdims: bool = True
) -> tf.Tensor:
    """Computes the norm of each example of a batch.

    Args:
        perturbations: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1".
        keepdims: If True, the result has shape (batch, 1, ..., 1), which
            broadcasts against `perturbations`; else it has shape (batch,).

    Returns:
        Tensor of the dtype of `perturbations`, >= 0.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> batch = tf.constant([[3.0, -4.0], [0.0, 1.0]])
        >>> example_norms(batch, "linf", keepdims=False).numpy().tolist()
        [4.0, 1.0]
        >>> example_norms(batch, "l2", keepdims=False).numpy().tolist()
        [5.0, 1.0]
        >>> example_norms(batch, "l1", keepdims=False).numpy().tolist()
        [7.0, 1.0]
    """
    if check_norm(norm) == "linf":
        axes = list(range(1, perturbations.shape.rank))
        return tf.reduce_max(
            tf.abs(perturbations), axis=axes, keepdims=keepdims
        )
    if norm == "l1":
        return example_sums(tf.abs(perturbations), keepdims)
    return tf.sqrt(example_sums(tf.square(perturbations), keepdims))


def over_largest(gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Divides each example by the size of its largest entry.

    The gradients of a confident network can be as small as 1e-30; without this
    scaling their squares would vanish in float32.

    Args:
        gradients: Float tensor (batch, ...).

    Returns:
        Tuple of the scaled gradients, of the shape of `gradients`, and the
        sizes, of shape (batch, 1, ..., 1). Both are zero for examples that are
        zero.

    Example:
        >>> import tensorflow as tf
        >>> scaled, largest = over_largest(tf.constant([[2.0, -4.0]]))
        >>> scaled.numpy().tolist(), largest.numpy().tolist()
        ([[0.5, -1.0]], [[4.0]])
    """
    largest = example_norms(gradients, "linf")
    return tf.math.divide_no_nan(gradients, largest), largest


def dual_norms(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """Computes how fast each example's linearised function changes.

    A function with the gradient g changes by at most ||g||_dual over a unit of
    distance; `FACTS` names the dual norms. By the quotient of a gap and this
    rate, a linearised decision boundary is that far away.

    Args:
        gradients: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1", the norm of distances.

    Returns:
        Tensor (batch,) of the dtype of `gradients`, >= 0, which is accurate for
        gradients as small as 1e-30.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> dual_norms(tf.constant([[3.0, -4.0]]), "linf").numpy().tolist()
        [7.0]
    """
    dual = FACTS[check_norm(norm)].dual
    scaled, largest = over_largest(gradients)
    sizes = example_norms(scaled, dual, keepdims=False)
    return sizes * tf.reshape(largest, [-1])


def steepest(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """Maximises each example's linearised loss over the unit ball.

    The result is argmax_d <g, d> over ||d|| <= 1: sign(g) in l-inf, g / ||g||_2
    in l2, and in l1 the sign of the largest entry alone, divided equally among
    equal ones. A gradient of zero gives zero.

    Args:
        gradients: Float tensor (batch, ...).
        norm: "linf", "l2" or "l1".

    Returns:
        Tensor of the shape of `gradients`.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> steepest(tf.constant([[2.0, -0.5]]), "linf").numpy().tolist()
        [[1.0, -1.0]]
        >>> steepest(tf.constant([[2.0, -0.5]]), "l1").numpy().tolist()
        [[1.0, 0.0]]
    """
    if check_norm(norm) == "linf":
        return tf.sign(gradients)
    if norm == "l1":
        return steepest_sparse(gradients, 1)
    scaled, _ = over_largest(gradients)
    return tf.math.divide_no_nan(scaled, example_norms(scaled, "l2"))


def steepest_sparse(gradients: tf.Tensor, counts: Any) -> tf.Tensor:
    """Returns the signs of each example's largest gradients, of l1 norm 1.

    The result maximises the linearised loss over perturbations of l1 norm 1
    that change at least `counts` entries by the same size (Tramer and Boneh,
    2019, "Adversarial Training and Robustness for Multiple Perturbations",
    section 2; Croce and Hein, 2021, "Mind the box", section 3).

    Args:
        gradients: Float tensor (batch, ...).
        counts: Number of entries to change, >= 1: an int, or an int32 tensor
            () or (batch,). Entries as large as the last of them are changed,
            too; entries of size zero are not.

    Returns:
        Tensor of the shape of `gradients`; zero for a gradient of zero.

    Example:
        >>> import tensorflow as tf
        >>> gradients = tf.constant([[3.0, -2.0, 1.0, 0.0]])
        >>> steepest_sparse(gradients, 2).numpy().tolist()
        [[0.5, -0.5, 0.0, 0.0]]
    """
    sizes = tf.abs(gradients)
    flat = tf.reshape(sizes, [tf.shape(sizes)[0], -1])
    if isinstance(counts, int) or counts.shape.rank == 0:
        smallest = tf.math.top_k(flat, counts).values[:, -1]
    else:
        ordered = tf.sort(flat, axis=1, direction="DESCENDING")
        last = tf.clip_by_value(counts, 1, tf.shape(flat)[1]) - 1
        smallest = tf.gather(ordered, last, axis=1, batch_dims=1)
    ones = [1] * (gradients.shape.rank - 1)
    large = sizes >= tf.reshape(smallest, [-1, *ones])
    signs = tf.where(large, tf.sign(gradients), 0)
    return tf.math.divide_no_nan(signs, example_norms(signs, "l1"))


def default_step(epsilon: Any, norm: str) -> Any:
    """Returns the default length of a PGD step, from `FACTS`.

    Args:
        epsilon: Radius of the ball, a number or a scalar tensor.
        norm: "linf", "l2" or "l1".

    Returns:
        A number or tensor, like `epsilon`: epsilon/4 in l-inf, else epsilon/8.

    Example:
        >>> default_step(0.5, "linf"), default_step(2.0, "l1")
        (0.125, 0.25)
    """
    return epsilon / FACTS[check_norm(norm)].steps_across


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
    if check_norm(norm) == "linf":
        return tf.clip_by_value(perturbations, -radius, radius)
    if norm == "l1":
        origin = tf.zeros_like(perturbations)
        return _project_l1(origin, perturbations, radius, None)
    norms = example_norms(perturbations, norm)
    scale = tf.minimum(tf.ones_like(norms), radius / (norms + TINY))
    return perturbations * scale


def project_within(
    x: tf.Tensor,
    moved: tf.Tensor,
    radius: Any,
    norm: str,
    bounds: Sequence[float] | None,
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
        bounds: (lowest, highest) value of x, or None.

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
    if check_norm(norm) == "l1":
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
        radius: Radius of the balls, a number or a scalar tensor, >= 0.
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


def random_point(
    seeds: tf.Tensor,
    shape: Any,
    radius: Any,
    norm: str,
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """Draws a point for each example, uniform in the ball around zero.

    The point of an example is a function of its own row of `seeds` alone. It
    does not depend on the batch, on the device or on compilation by XLA.

    Args:
        seeds: int32 tensor (batch, 2).
        shape: Shape of the batch, (batch, ...), a tuple or a tensor.
        radius: Radius of the ball, a number or a scalar tensor, >= 0.
        norm: "linf", "l2" or "l1".
        dtype: Dtype of the result.

    Returns:
        Tensor of shape `shape`.

    Raises:
        ValueError: If `norm` is not one of `NORMS`.

    Example:
        >>> import tensorflow as tf
        >>> seeds = tf.constant([[0, 0], [0, 1]])
        >>> points = random_point(seeds, (2, 3), 0.1, "linf")
        >>> bool(tf.reduce_all(tf.abs(points) <= 0.1))
        True
    """
    check_norm(norm)
    points = _points(seeds, tf.convert_to_tensor(shape)[1:], norm, dtype)
    return tf.reshape(points, shape) * tf.cast(radius, dtype)


@tf.function(autograph=False)
def random_normal(
    seeds: tf.Tensor, shape: Any, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Draws standard normal noise for each example from its row of `seeds`.

    Args:
        seeds: int32 tensor (batch, 2).
        shape: Shape of the batch, (batch, ...), a tuple or a tensor.
        dtype: Dtype of the result.

    Returns:
        Tensor of shape `shape`.

    Example:
        >>> import tensorflow as tf
        >>> random_normal(tf.constant([[0, 0], [0, 1]]), (2, 3)).shape.as_list()
        [2, 3]
    """
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_normal(
            shape[1:], seed, dtype=dtype, alg="philox"
        ),
        seeds,
        fn_output_signature=dtype,
    )
    return tf.reshape(noise, shape)


# Compiled into a graph: eagerly, a loop over examples takes a second per batch.
@tf.function(autograph=False)
def _points(
    seeds: tf.Tensor, shape: tf.Tensor, norm: str, dtype: tf.DType
) -> tf.Tensor:
    """Draws points uniform in the unit ball; `shape` is that of an example."""

    def cube(seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform(
            shape, seed, -1.0, 1.0, dtype, alg="philox"
        )

    def sphere_and_radius(seed: tf.Tensor) -> tf.Tensor:
        if norm == "l1":
            # Laplace noise: its density depends on the l1 norm alone.
            uniform = cube(seed)
            rest = tf.minimum(tf.abs(uniform), 1 - 2.0**-24)
            direction = -tf.sign(uniform) * tf.math.log1p(-rest)
        else:
            direction = tf.random.stateless_normal(
                shape, seed, dtype=dtype, alg="philox"
            )
        other = tf.random.experimental.stateless_fold_in(seed, 1, alg="philox")
        share = tf.random.stateless_uniform(
            [], other, dtype=dtype, alg="philox"
        )
        # The volume of a ball of radius r grows as r^d.
        size = tf.cast(tf.size(direction), dtype)
        direction /= tf.norm(tf.reshape(direction, [-1]), FACTS[norm].order)
        return direction * share ** (1.0 / size)

    draw = cube if norm == "linf" else sphere_and_radius
    return tf.map_fn(draw, seeds, fn_output_signature=dtype)


def _project_l1(
    x: tf.Tensor,
    moved: tf.Tensor,
    radius: Any,
    bounds: Sequence[float] | None,
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


def _precise(tensor: tf.Tensor) -> tf.Tensor:
    """Casts a tensor to float32, unless it is float64."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
