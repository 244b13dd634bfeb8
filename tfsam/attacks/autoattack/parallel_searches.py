"""Searches of Auto-PGD that run in parallel, on copies of the batch."""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.attacks.attempts import any_copy
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import first_copy
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import in_turn
from tfsam.attacks.logits import may_stop
from tfsam.attacks.per_example import where


class Found(NamedTuple):
    """The results of a step at the current points, with a row for each copy.

    Attributes:
        slope: Float tensor (copies * batch, ...), the gradient of the loss.
        loss: Float tensor (copies * batch,).
        broken: Bool tensor (copies * batch,), the points at which a search
            that has not ended may end.
    """

    slope: tf.Tensor
    loss: tf.Tensor
    broken: tf.Tensor


class Searches:
    """Searches of an `APGD`, each on its own copy of the batch.

    The search for an example ends when one of its copies is broken.

    A state of the searches is a named tuple with the fields `x`, `broken`,
    `best` and `best_loss`, which have a row for each copy: the current points,
    whether the search ended there, and the points of the highest loss before
    the current ones, with their losses.

    Args:
        attack: The `APGD`, of which `eot` counts.
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...).
        y: Labels.
        loss: The loss to ascend.
        labels: Labels of the loss, for the copies.
        beside: Number of searches.
        seeds: int32 tensor (batch, 2), for the draws of a random network.

    Attributes:
        logits_fn: Function from pixels to logits.
        beside: Number of searches.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks import apgd_ce, losses
        >>> x, y = tf.eye(2), tf.constant([0, 0])
        >>> searches = Searches(
        ...     apgd_ce(0.1), lambda x: x, x, y, loss=losses.margin,
        ...     labels=tf.concat([y, y], 0), beside=2, seeds=tf.zeros([2, 2]),
        ... )
        >>> broken = tf.constant([False, True, False, False])
        >>> searches.survivors(tf.constant([True, True]), broken).numpy()
        array([ True, False,  True, False])
    """

    def __init__(
        self,
        attack: Any,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        *,
        loss: LossFn,
        labels: Any,
        beside: int,
        seeds: tf.Tensor,
    ) -> None:
        self.logits_fn, self.beside = logits_fn, beside
        self._network = Averaged(
            in_turn(logits_fn, beside, x), attack.eot, seeds
        )
        self._gradient = self._network.gradient(loss)
        self._truth = copies(y, beside)
        self._loss, self._labels = loss, labels

    def survivors(self, active: tf.Tensor, broken: tf.Tensor) -> tf.Tensor:
        """Returns the copies of the examples that are still attacked.

        Args:
            active: Bool tensor (batch,), the examples to attack.
            broken: Bool tensor (beside * batch,), the copies at which a search
                ended.

        Returns:
            Bool tensor (beside * batch,).
        """
        ended = any_copy(broken, self.beside)
        return copies(active & ~ended, self.beside)

    def look(self, state: Any, active: tf.Tensor, turn: tf.Tensor) -> Found:
        """Computes gradients and losses at the current points.

        Args:
            state: The state of the searches.
            active: Bool tensor (batch,), the examples to attack.
            turn: Number of the step, a scalar int32 tensor.

        Returns:
            `Found`, in which only survivors may be broken.
        """
        left = self.survivors(active, state.broken)
        slope, logits, loss = self._gradient(state.x, self._labels, left, turn)
        broken = left & may_stop(self.logits_fn, logits, self._truth)
        return Found(slope, loss, broken)

    def finish(
        self, state: Any, active: tf.Tensor, turn: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the results of the searches after their last step.

        The points of the last step are evaluated here.

        Args:
            state: The state of the searches.
            active: Bool tensor (batch,), the examples to attack.
            turn: Number of steps.

        Returns:
            x_adv (batch, ...) and whether it is broken (batch,).
        """
        left = self.survivors(active, state.broken)
        logits, loss = self._network.values(
            self._loss, state.x, self._labels, left, turn
        )
        stops = may_stop(self.logits_fn, logits, self._truth)
        broken = state.broken | (left & stops)
        loss = tf.cast(loss, state.best_loss.dtype)
        better = left & (loss > state.best_loss)
        x_adv = where(broken | better, state.x, state.best)
        return (
            first_copy(broken, x_adv, self.beside),
            active & any_copy(broken, self.beside),
        )
