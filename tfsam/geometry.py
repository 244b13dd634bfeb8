"""Norms and balls: the geometry that perturbations of inputs and weights share.

Both sides of the paper's duality maximise a loss, linearised, over a ball. Two
verbs do that for the inputs, one ball an example: `steepest` is the point of
the unit ball that a gradient points to, `project` brings a point back into the
ball. `random_point` draws where to start. For the weights there is a single
ball around all of them, measured by `global_norm`.

Everything here is a pure function of tensors and runs eagerly, in a graph, in
XLA, and in float32 or float64.
"""

import tensorflow as tf

from tfsam.support.validators import check_choice

NORMS = ("linf", "l2")

# Units in the last place of float32 by which a length may miss the radius. The
# rounding of the radius itself adds half a unit.
_FEW_UNITS = 3 * 2.0**-23

# The one constant in denominators: of the attacks' losses, and of every weight
# perturbation, so that the methods' identities (GSAM(0) = SAM, ...) are exact.
TINY = 1e-12


def check_norm(norm):
    """Returns `norm`; raises a ValueError if it is not one of `NORMS`."""
    return check_choice("norm", norm, NORMS)


def global_norm(tensors):
    """The l2 norm of a list of tensors, taken as one vector.

    Computed in float32 at least: a float16 sum of squares overflows at 256
    weights of size 16.

    Args:
        tensors: a list of float tensors of any shapes.

    Returns:
        A scalar, float32 (float64 if the tensors are).
    """
    return tf.sqrt(
        tf.add_n([tf.reduce_sum(tf.square(_precise(t))) for t in tensors])
    )


def example_sums(values, keepdims=True):
    """The sum over each example of a batch.

    Args:
        values: float tensor (batch, ...).
        keepdims: whether the result is (batch, 1, ..., 1), which broadcasts
            against `values`, or (batch,).
    """
    axes = list(range(1, values.shape.rank))
    return tf.reduce_sum(values, axis=axes, keepdims=keepdims)


def example_norms(perturbations, norm, keepdims=True):
    """The norm of each example of a batch.

    Args:
        perturbations: float tensor (batch, ...).
        norm: "linf" or "l2".
        keepdims: whether the result is (batch, 1, ..., 1), which broadcasts
            against `perturbations`, or (batch,).
    """
    if check_norm(norm) == "linf":
        axes = list(range(1, perturbations.shape.rank))
        return tf.reduce_max(
            tf.abs(perturbations), axis=axes, keepdims=keepdims
        )
    return tf.sqrt(example_sums(tf.square(perturbations), keepdims))


def over_largest(gradients):
    """Each example over its largest entry, and that entry's size.

    A confident network's gradients are as small as 1e-30; their squares would
    vanish in float32.

    Args:
        gradients: float tensor (batch, ...).

    Returns:
        Two tensors, of the shape of `gradients` and (batch, 1, ..., 1); zeros
        where an example is zero.
    """
    largest = example_norms(gradients, "linf")
    return tf.math.divide_no_nan(gradients, largest), largest


def steepest(gradients, norm):
    """The point of the unit ball where each example's linear loss is largest.

    argmax_d <g, d> over ||d|| <= 1: sign(g) in l-inf, g / ||g||_2 in l2. A
    gradient of zero gives zero.

    Args:
        gradients: float tensor (batch, ...).
        norm: "linf" or "l2".

    Returns:
        A tensor of the shape of `gradients`.
    """
    if check_norm(norm) == "linf":
        return tf.sign(gradients)
    scaled, _ = over_largest(gradients)
    return tf.math.divide_no_nan(scaled, example_norms(scaled, "l2"))


def project(perturbations, radius, norm):
    """The nearest point of the ball, for each example.

    Args:
        perturbations: float tensor (batch, ...).
        radius: radius of the ball, a number or a scalar tensor.
        norm: "linf" or "l2".

    Returns:
        A tensor of the shape of `perturbations`; points inside stay.
    """
    if check_norm(norm) == "linf":
        return tf.clip_by_value(perturbations, -radius, radius)
    norms = example_norms(perturbations, norm)
    scale = tf.minimum(tf.ones_like(norms), radius / (norms + TINY))
    return perturbations * scale


def shrink(x, moved, radius):
    """Brings points that rounding took out of an l2 ball back into it.

    In a large image the roundings of x + perturbation add up: where all pixels
    are alike, to sqrt(pixels) / 2 units in their last place. Here the length is
    measured in float64 and each pixel of the shorter perturbation is rounded
    towards x.

    Args:
        x: float tensor (batch, ...), the centres.
        moved: float tensor of x's shape and dtype.
        radius: radius of the ball, a number or a scalar tensor.

    Returns:
        A tensor of x's shape: each example of `moved` that is at most `radius`
        away from x, but for a few units in the last place of float32, keeps
        every bit; the others are at most `radius` away.
    """
    # A number is rounded like the tensor that an evaluation passes instead,
    # which is never a half: that would make it another ball.
    dtype = x.dtype if x.dtype.size > 4 else tf.float32
    if not tf.is_tensor(radius):  # tf.cast would round it to float32 first.
        radius = tf.constant(radius, dtype)
    radius = tf.cast(tf.cast(radius, dtype), tf.float64)
    centres = tf.cast(x, tf.float64)
    norms = example_norms(tf.cast(moved, tf.float64) - centres, "l2")
    outside = norms > radius * (1 + _FEW_UNITS)

    def shortened():
        offsets = (tf.cast(moved, tf.float64) - centres) * (radius / norms)
        points = tf.cast(centres + offsets, x.dtype)
        beyond = tf.abs(tf.cast(points, tf.float64) - centres)
        points = tf.where(beyond > tf.abs(offsets), _towards(points, x), points)
        return tf.where(outside, points, moved)

    return tf.cond(tf.reduce_any(outside), shortened, lambda: moved)


def random_point(seeds, shape, radius, norm, dtype=tf.float32):
    """A point for each example, uniform in the ball.

    An example's point depends on its own row of `seeds` alone: not on the
    batch that it is in, on the device or on whether XLA compiled the rest.

    Args:
        seeds: int32 tensor (batch, 2).
        shape: the batch's shape, (batch, ...).
        radius: radius of the ball, a scalar.
        norm: "linf" or "l2".
        dtype: the result's dtype.

    Returns:
        A tensor of shape `shape`.
    """
    check_norm(norm)
    points = _points(seeds, tf.convert_to_tensor(shape)[1:], norm, dtype)
    return tf.reshape(points, shape) * tf.cast(radius, dtype)


@tf.function(autograph=False)
def random_normal(seeds, shape, dtype=tf.float32):
    """Standard normal noise for each example, by its own row of `seeds`.

    Args:
        seeds: int32 tensor (batch, 2).
        shape: the batch's shape, (batch, ...).
        dtype: the result's dtype.

    Returns:
        A tensor of shape `shape`.
    """
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_normal(
            shape[1:], seed, dtype=dtype, alg="philox"
        ),
        seeds,
        fn_output_signature=dtype,
    )
    return tf.reshape(noise, shape)


# A graph of its own: eagerly, a loop over examples takes a second a batch.
@tf.function(autograph=False)
def _points(seeds, shape, norm, dtype):
    def cube(seed):
        return tf.random.stateless_uniform(
            shape, seed, -1.0, 1.0, dtype, alg="philox"
        )

    def sphere_and_radius(seed):
        direction = tf.random.stateless_normal(
            shape, seed, dtype=dtype, alg="philox"
        )
        other = tf.random.experimental.stateless_fold_in(seed, 1, alg="philox")
        share = tf.random.stateless_uniform(
            [], other, dtype=dtype, alg="philox"
        )
        # The volume inside radius r grows as r^d.
        size = tf.cast(tf.size(direction), dtype)
        direction /= tf.norm(tf.reshape(direction, [-1]))
        return direction * share ** (1.0 / size)

    draw = cube if norm == "linf" else sphere_and_radius
    return tf.map_fn(draw, seeds, fn_output_signature=dtype)


def _towards(points, x):
    """Returns the next number of the dtype from each point towards x.

    The bits of a positive number, read as an integer, are in the order of the
    numbers; those of a negative one in the opposite order.
    """
    integer = {2: tf.int16, 4: tf.int32, 8: tf.int64}[points.dtype.size]
    # GPUs compute with int64; int32 is left to the CPU.
    bits = tf.cast(tf.bitcast(points, integer), tf.int64)
    one = tf.ones([], tf.int64)
    bits += tf.where((x > points) == (points > 0), one, -one)
    # From either zero, to the smallest positive or negative number.
    smallest = tf.where(x > 0, one, integer.min + one)
    bits = tf.where(points == 0, smallest, bits)
    moved = tf.bitcast(tf.cast(bits, integer), points.dtype)
    return tf.where(points == x, points, moved)


def _precise(tensor):
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
