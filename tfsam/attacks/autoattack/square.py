"""The Square attack, a gradient-free random search.

Andriushchenko, Croce, Flammarion and Hein, 2020, "Square Attack: a
query-efficient black-box adversarial attack via random search". Each query
changes the perturbation inside a square window; the change is kept if it raises
the loss, the margin of the wrong classes. The attack in l1 is from Croce and
Hein, 2021, "Mind the box: l1-APGD for Sparse Adversarial Attacks on Image
Classifiers", section 5.

The candidates are made in `square_moves.py`, by the windows of
`square_windows.py`.
"""

import copy
import functools
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.attempts import any_copy
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import first_flag
from tfsam.attacks.autoattack.square_moves import prepared
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.blocks import batch_size
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import setting
from tfsam.attacks.per_example import where
from tfsam.support.validators import check_count
from tfsam.support.validators import check_fraction
from tfsam.support.validators import check_interval

# Largest number of pixels in a batch for which several candidates are evaluated
# at once.
_SMALL = 2**14


@keras.saving.register_keras_serializable(package="tfsam")
class Square(Attack):
    """The Square attack (Andriushchenko et al., 2020), untargeted.

    Algorithm 1 of the paper with the moves of algorithm 2 (l-inf) or 3 (l2), on
    the margin, as in standard AutoAttack. The moves in l1 are those of l2 with
    steeper bumps, and are projected onto the ball and the bounds. The search
    for an example ends at its first misclassified candidate. Windows can reach
    the last row and column; in AutoAttack's code they do so only if they fill
    the image. For small images, several candidates are evaluated at once, with
    the same result.

    The shape of an example must be known when the attack is traced. Inputs that
    are not of shape (height, width, channels) are treated as an image with a
    single column and a single channel, and windows are clipped to the column.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        queries: Number of candidates for each example, including the first,
            >= 1.
        p_init: Share of the pixels that the first windows cover, in (0, 1].
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = Square(epsilon=0.2, queries=100)(lambda x: x, x, y, seed=0)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True
    """

    in_graph = True
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    gradient_free = True
    selective = True
    tensor_epsilon = True
    example_epsilons = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        queries: int = 5000,
        p_init: float = 0.8,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.queries = check_count("queries", queries, 1)
        self.p_init = check_fraction("p_init", p_init)

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the first misclassified candidate, else the best.

        The best candidate is that of the highest loss. On a surrogate, it is
        returned in any case.
        """
        active = examples(logits_fn, x)
        image, attack = x, self
        if x.shape.rank != 4:
            image = tf.reshape(x, [-1, math.prod(x.shape[1:]), 1, 1])
            attack = self._on_column(x.shape[1:])
        start, moves, propose = prepared(attack, image, seeds)
        search = self._search(logits_fn, x, y, propose)
        best = compiled(logits_fn, search)(image, start, moves, active)
        return where(active, tf.reshape(best, tf.shape(x)), x)

    def _on_column(self, shape: tf.TensorShape) -> "Square":
        """Returns the attack for inputs as columns, with bounds of each row."""
        other = copy.copy(self)
        if any(map(np.ndim, self.bounds or ())):
            columns = [
                np.broadcast_to(bound, tuple(shape)).reshape(-1, 1, 1)
                for bound in self.bounds or ()
            ]
            other.bounds = check_interval("bounds", columns)
        return other

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        propose: Callable[..., tf.Tensor],
    ) -> Callable[..., tf.Tensor]:
        """Returns the search as a function of tensors that draws no numbers."""
        ahead = _queries_ahead(x, logits_fn)
        last = self.queries - 1
        query = functools.partial(_query, logits_fn, x.shape[1:])

        def search(
            image: tf.Tensor,
            start: tf.Tensor,
            moves: list[tf.Tensor],
            active: tf.Tensor,
        ) -> tf.Tensor:
            if not last:
                return start
            batch = batch_size(image)
            images, truth = copies(image, ahead), copies(y, ahead)
            rows = copies(tf.range(batch), ahead)
            tables = [_table(move) for move in moves]

            def step(
                index: tf.Tensor,
                best: tf.Tensor,
                margin: tf.Tensor,
                survivors: tf.Tensor,
            ) -> tuple[tf.Tensor, ...]:
                # Makes each example's next candidates as if none of them were
                # accepted. The first that is accepted counts; those after it
                # are discarded.
                turns = tf.concat([index + n for n in range(ahead)], 0)
                asked = copies(survivors, ahead) & (turns < last)
                turns = tf.minimum(turns, last - 1)
                places = turns * batch + rows
                now = [table(turns, places) for table in tables]
                candidates = propose(images, copies(best, ahead), now)
                found, broken = query(candidates, asked, truth)
                better = asked & (broken | (found > copies(margin, ahead)))
                taken = any_copy(better, ahead)
                first = tf.where(taken, first_flag(better, ahead), ahead - 1)
                row = first * batch + tf.range(batch)
                hit = taken & tf.gather(broken, row)
                return (
                    index + first + 1,
                    where(taken, tf.gather(candidates, row), best),
                    tf.where(taken, tf.gather(found, row), margin),
                    survivors & ~hit & (index + first + 1 < last),
                )

            margin, broken = query(start, active, y)
            index = tf.zeros([batch], tf.int32)
            return tf.while_loop(
                lambda index, best, margin, survivors: tf.reduce_any(survivors),
                step,
                (index, start, margin, active & ~broken),
                parallel_iterations=1,
            )[1]

        return search


def _query(
    logits_fn: LogitsFn,
    shape: tf.TensorShape,
    candidates: tf.Tensor,
    survivors: tf.Tensor,
    y: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the margins of candidates, and which of them end the search.

    Args:
        logits_fn: Function from pixels to logits.
        shape: Shape of an example, as the network takes it.
        candidates: Float tensor (rows, height, width, channels).
        survivors: Bool tensor (rows,), the candidates to evaluate.
        y: Labels of the rows.
    """
    candidates = tf.reshape(candidates, [-1, *shape])
    logits = predict(logits_fn, candidates, survivors)
    return losses.margin(logits, y), may_stop(logits_fn, logits, y)


def _queries_ahead(x: tf.Tensor, logits_fn: LogitsFn) -> int:
    """Returns the number of candidates of an example to evaluate at once.

    Four queries of a few small images take as long as one, if the network may
    process that many examples.
    """
    if not x.shape.is_fully_defined() or x.shape.num_elements() > _SMALL:
        return 1
    most = setting(logits_fn, "most") or 0
    blocks = setting(logits_fn, "rows")
    return 4 if blocks or 4 * x.shape[0] <= most else 1


def _table(move: tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function that selects the current choice of each row.

    Args:
        move: Tensor (moves, batch, ...), or (moves,) if it is the same for all
            examples.

    Returns:
        Function (turns, places) -> choices. `turns` holds the iteration of each
        row, and `places` the number of its choice among those of all examples.
    """
    if move.shape.rank == 1:
        return lambda turns, places: _column(tf.gather(move, turns))
    flat = tf.reshape(move, [-1, *move.shape[2:]])
    return lambda turns, places: tf.gather(flat, places)


def _column(values: tf.Tensor) -> tf.Tensor:
    """Reshapes (batch,) to (batch, 1, 1, 1)."""
    return values[:, None, None, None]
