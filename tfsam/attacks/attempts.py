"""Several attempts of an attack on a batch, in turn or side by side.

An attack with restarts or targets makes several attempts. `repeat` makes each
on the survivors of the previous ones. A small network spends most of its time
on the overhead of calls, so that attempts on several copies of the batch, side
by side, take little longer than one; `side_by_side` says how many.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.attacks.blocks import batch_size
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.per_example import where
from tfsam.attacks.seeds import next_seeds

# Largest number of pixels in the copies of a batch that are attacked in
# parallel: 16 MB per float32 tensor.
_MOST_PIXELS = 2**22


def repeat(
    attempt: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    runs: int,
    x: tf.Tensor,
    active: tf.Tensor,
    score: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Makes several attempts, each on the survivors of the previous ones.

    Args:
        attempt: Function (run, active) -> (x_adv, broken). `run` is a scalar
            int32 tensor, `active` and `broken` are bool tensors (batch,).
        runs: Number of attempts, >= 1.
        x: Float tensor (batch, ...), returned for examples that are not active.
        active: Bool tensor (batch,), the examples to attack.
        score: None, or a function from points to numbers (batch,). With a
            function, all attempts are made on all examples, and the point of
            the highest score is returned.

    Returns:
        Tensor of x's shape: for each example the point of the first successful
        attempt, or that of the last attempt if none succeeded.

    Example:
        >>> import tensorflow as tf
        >>> def attempt(run, active):
        ...     point = tf.fill([2, 1], tf.cast(run, tf.float32))
        ...     return point, tf.constant([True, False])
        >>> repeat(attempt, 3, tf.zeros([2, 1]), tf.ones([2], tf.bool)).numpy()
        array([[0.],
               [2.]], dtype=float32)
    """
    if runs == 1:
        return where(active, attempt(tf.constant(0), active)[0], x)
    if score is not None:
        best = strongest(lambda run: attempt(run, active)[0], runs, x, score)
        return where(active, best, x)

    def body(
        run: tf.Tensor, x_adv: tf.Tensor, active: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        found, broken = attempt(run, active)
        return run + 1, where(active, found, x_adv), active & ~broken

    return tf.while_loop(
        lambda run, _, active: (run < runs) & tf.reduce_any(active),
        body,
        (0, x, active),
        parallel_iterations=1,
    )[1]


def strongest(
    attempt: Callable[[tf.Tensor], tf.Tensor],
    runs: int,
    x: tf.Tensor,
    score: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Makes several attempts and returns the point of the highest score.

    Args:
        attempt: Function from the number of the attempt, a scalar int32 tensor,
            to x_adv.
        runs: Number of attempts, >= 1.
        x: Float tensor (batch, ...).
        score: Function from points to numbers (batch,).

    Returns:
        Tensor of x's shape.

    Example:
        >>> import tensorflow as tf
        >>> points = tf.constant([[[0.1]], [[0.3]], [[0.2]]])
        >>> best = strongest(
        ...     lambda run: points[run], 3, points[0], lambda x: x[:, 0]
        ... )
        >>> print(best.numpy())
        [[0.3]]
    """

    def body(
        run: tf.Tensor, x_adv: tf.Tensor, best: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        found = attempt(run)
        reached = tf.cast(score(found), x.dtype)
        better = reached > best
        return (
            run + 1,
            where(better, found, x_adv),
            tf.where(better, reached, best),
        )

    return tf.while_loop(
        lambda run, _, best: run < runs,
        body,
        (0, x, tf.fill(tf.shape(x)[:1], x.dtype.min)),
        parallel_iterations=1,
    )[1]


def side_by_side(attempts: int, x: tf.Tensor, logits_fn: LogitsFn) -> int:
    """Returns the number of independent attempts to make in parallel.

    A small network spends most of its time on the overhead of calls, so
    attempts on several copies of the batch take little longer than one.

    Args:
        attempts: Total number of attempts, >= 1.
        x: Float tensor (batch, ...).
        logits_fn: Function from pixels to logits. Attempts on a surrogate are
            made one after the other, because they are compared with each other.

    Returns:
        An int, a divisor of `attempts`.

    Example:
        >>> import tensorflow as tf
        >>> side_by_side(9, tf.zeros([8, 8, 8, 1]), lambda x: x)
        9
    """
    if is_surrogate(logits_fn) or not x.shape.is_fully_defined():
        return 1
    most = max(_MOST_PIXELS // max(x.shape.num_elements(), 1), 1)
    return max(
        n for n in range(1, attempts + 1) if not attempts % n and n <= most
    )


def copies(values: tf.Tensor, count: int) -> tf.Tensor:
    """Concatenates copies of a batch.

    Args:
        values: Tensor (batch, ...).
        count: Number of copies, >= 1.

    Returns:
        Tensor (count * batch, ...).

    Example:
        >>> import tensorflow as tf
        >>> copies(tf.constant([1, 2]), 2).numpy().tolist()
        [1, 2, 1, 2]
    """
    return tf.concat([values] * count, 0) if count > 1 else values


def any_copy(flags: tf.Tensor, count: int) -> tf.Tensor:
    """Returns for each example whether a flag is set for any of its copies.

    Args:
        flags: Bool tensor (count * batch,).
        count: Number of copies.

    Returns:
        Bool tensor (batch,).

    Example:
        >>> import tensorflow as tf
        >>> flags = tf.constant([True, False, False, False])
        >>> any_copy(flags, 2).numpy().tolist()
        [True, False]
    """
    if count == 1:
        return flags
    return tf.reduce_any(tf.reshape(flags, [count, -1]), axis=0)


def first_flag(flags: tf.Tensor, count: int) -> tf.Tensor:
    """Returns for each example the number of the first copy with a flag.

    Args:
        flags: Bool tensor (count * batch,).
        count: Number of copies.

    Returns:
        int32 tensor (batch,); 0 if no flag is set.

    Example:
        >>> import tensorflow as tf
        >>> flags = tf.constant([False, False, True, False])
        >>> first_flag(flags, 2).numpy().tolist()
        [1, 0]
    """
    flags = tf.cast(tf.reshape(flags, [count, -1]), tf.int32)
    return tf.argmax(flags, axis=0, output_type=tf.int32)


def first_copy(flags: tf.Tensor, values: tf.Tensor, count: int) -> tf.Tensor:
    """Selects for each example the first of its copies whose flag is set.

    Args:
        flags: Bool tensor (count * batch,).
        values: Tensor (count * batch, ...).
        count: Number of copies.

    Returns:
        Tensor (batch, ...); the first copy if no flag is set.

    Example:
        >>> import tensorflow as tf
        >>> flags = tf.constant([False, False, True, False])
        >>> first_copy(flags, tf.constant([1, 2, 3, 4]), 2).numpy().tolist()
        [3, 2]
    """
    if count == 1:
        return values
    first = first_flag(flags, count)
    batch = batch_size(first)
    chosen = tf.gather(values, first * batch + tf.range(batch))
    known = values.shape[0]
    return tf.ensure_shape(
        chosen, [known and known // count, *values.shape[1:]]
    )


def turn(choices: tf.Tensor, run: Any) -> tf.Tensor:
    """Selects the current choice of each example, cyclically.

    Args:
        choices: Tensor (batch, count).
        run: Number of the attempt, an int or a scalar int32 tensor.

    Returns:
        Tensor (batch,), column `run % count`.

    Example:
        >>> import tensorflow as tf
        >>> turn(tf.constant([[4, 7], [5, 8]]), 3).numpy().tolist()
        [7, 8]
    """
    return tf.gather(choices, run % choices.shape[1], axis=1)


def turns(choices: tf.Tensor, first: Any, count: int) -> tf.Tensor:
    """Selects several choices of each example in a row, cyclically.

    Args:
        choices: Tensor (batch, choices).
        first: Number of the first attempt, an int or a scalar int32 tensor.
        count: Number of attempts.

    Returns:
        Tensor (count * batch,), the results of `turn` for each attempt.

    Example:
        >>> import tensorflow as tf
        >>> turns(tf.constant([[4, 7, 9], [5, 8, 6]]), 2, 2).numpy().tolist()
        [9, 6, 4, 5]
    """
    columns = (first + tf.range(count)) % choices.shape[1]
    found = tf.transpose(tf.gather(choices, columns, axis=1))
    return tf.ensure_shape(
        tf.reshape(found, [-1]),
        [choices.shape[0] and choices.shape[0] * count],
    )


def seeds_of_copies(seeds: tf.Tensor, first: Any, count: int) -> tf.Tensor:
    """Derives the seeds of several attempts in a row.

    Args:
        seeds: int32 tensor (batch, 2).
        first: Number of the first attempt, an int or a scalar int32 tensor.
        count: Number of attempts.

    Returns:
        int32 tensor (count * batch, 2), the results of `next_seeds` for each
        attempt.

    Example:
        >>> import tensorflow as tf
        >>> seeds_of_copies(tf.constant([[3, 0], [3, 1]]), 0, 1).numpy()
        array([[3, 0],
               [3, 1]], dtype=int32)
    """
    numbers = tf.reshape(first + tf.range(count), [count, 1, 1])
    found = next_seeds(seeds, numbers)
    known = seeds.shape[0]
    return tf.ensure_shape(
        tf.reshape(found, [-1, 2]), [known and known * count, 2]
    )
