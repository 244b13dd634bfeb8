"""Random points, drawn for each example from a seed of its own."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.geometry.norms import FACTS
from tfsam.geometry.norms import check_norm
from tfsam.geometry.norms import for_norm


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
        radius: Radius of the balls, >= 0: a number, a scalar tensor, or a
            tensor (batch, 1, ..., 1).
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
    seeds, shape = tf.convert_to_tensor(seeds), tf.convert_to_tensor(shape)
    # Traced once for batches of any size.
    draw = _points.get_concrete_function(
        tf.TensorSpec([None, 2], seeds.dtype),
        tf.TensorSpec([None], shape.dtype),
        norm,
        dtype,
    )
    points = draw(seeds, shape[1:])
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

    def normal(seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_normal(
            shape, seed, dtype=dtype, alg="philox"
        )

    def laplace(seed: tf.Tensor) -> tf.Tensor:
        uniform = cube(seed)
        rest = tf.minimum(tf.abs(uniform), 1 - 2.0**-24)
        return -tf.sign(uniform) * tf.math.log1p(-rest)

    def direction_and_radius(
        seed: tf.Tensor, noise: Callable[[tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        # The density of the noise depends on the norm alone.
        direction = noise(seed)
        other = tf.random.experimental.stateless_fold_in(seed, 1, alg="philox")
        share = tf.random.stateless_uniform(
            [], other, dtype=dtype, alg="philox"
        )
        # The volume of a ball of radius r grows as r^d.
        size = tf.cast(tf.size(direction), dtype)
        direction /= tf.norm(tf.reshape(direction, [-1]), FACTS[norm].order)
        return direction * share ** (1.0 / size)

    draw = for_norm(
        norm,
        linf=cube,
        l2=functools.partial(direction_and_radius, noise=normal),
        l1=functools.partial(direction_and_radius, noise=laplace),
    )
    return tf.map_fn(draw, seeds, fn_output_signature=dtype)
