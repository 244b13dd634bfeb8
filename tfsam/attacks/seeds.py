"""Seeds of examples and attempts, from which attacks draw random numbers."""

import numbers
from typing import Any

import tensorflow as tf


def example_seeds(seed: Any, batch: Any) -> tf.Tensor:
    """Derives a seed for each example of a batch.

    An int gives the rows (seed, position). A pair is the key of a random
    generator: the example at position i takes the i-th draw, whatever the size
    of the batch.

    Args:
        seed: An int, an int32 tensor (2,) or an int32 tensor (batch, 2), which
            is returned unchanged.
        batch: Number of examples, an int or a scalar tensor.

    Returns:
        int32 tensor (batch, 2).

    Raises:
        ValueError: If `seed` has another shape.

    Example:
        >>> example_seeds(7, 2).numpy().tolist()
        [[7, 0], [7, 1]]
    """
    if isinstance(seed, numbers.Integral):
        # Accepts any Python int, by wrapping it into the range of int32.
        seed = (int(seed) + 2**31) % 2**32 - 2**31
        positions = tf.range(batch, dtype=tf.int32)
        return tf.stack([tf.fill([batch], seed), positions], axis=1)
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 2:
        return seed
    if seed.shape.as_list() != [2]:
        raise ValueError(
            "seed must be an int, or of shape (2,) or (batch, 2). "
            f"Received: seed of shape {seed.shape}"
        )
    return tf.random.stateless_uniform(
        [batch, 2],
        seed,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )


def next_seeds(seeds: tf.Tensor, run: Any) -> tf.Tensor:
    """Derives the seeds of an attempt from those of the first attempt.

    Args:
        seeds: int32 tensor (batch, 2).
        run: Number of the attempt, an int or a scalar int32 tensor; 0 returns
            `seeds`.

    Returns:
        int32 tensor (batch, 2).

    Example:
        >>> import tensorflow as tf
        >>> next_seeds(tf.constant([[3, 0]]), 0).numpy().tolist()
        [[3, 0]]
    """
    return seeds + run * tf.constant([0x61C88647, 0], tf.int32)
