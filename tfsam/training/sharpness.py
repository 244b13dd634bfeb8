"""The second pass of sharpness-aware minimization: gradients at w + e.

`sharpened` runs a batch at the weights w, lets a weight perturbation choose e
by the gradient there, and returns the gradients at w + e with everything else
from the pass at w.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfsam.training.batch import Batch
from tfsam.training.returned_values import tensors_and_state
from tfsam.training.stateless import Pass
from tfsam.training.stateless import dense
from tfsam.training.trainer import replicas
from tfsam.weights.base import Step


def sharpened(
    model: Any,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    batch: Batch,
    step: Step,
) -> Pass:
    """Returns the pass at w with the gradients of the pass at w + e.

    Args:
        model: a `RobustModel`.
        weights: w, values of the trainable variables.
        state: values of the other variables.
        batch: the batch.
        step: the facts of the training step for the weight perturbation.
    """
    around = Surroundings(model, weights, state, batch)
    first, method = around.first, model.perturb_weights
    if method is None or not weights:
        return first
    memory = [tf.convert_to_tensor(v) for v in model.perturbation_state]
    step = step._replace(
        gradient=around.gradient, squared_gradients=around.squared_gradients
    )
    clean = around.seen(first.gradients)
    unmoved = dense(first.gradients, around.weights)

    def second_pass() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        given = around.chosen_weights
        returned = method.perturb(given, clean, memory, step)
        some, kept = tensors_and_state(
            method, "perturb", returned, given, memory
        )
        return around.gradients_at(some, memory, step), kept

    due = True if method.due is None else method.due(memory, step)
    second, kept = _choose(due, second_pass, lambda: (unmoved, memory))
    if method.combine is not None:
        other = around.seen(second)  # A tf.cond cannot hold collectives.

        def combined(other: list[tf.Tensor] | None) -> tuple[Any, Any]:
            returned = method.combine(clean, other, kept, step)
            return tensors_and_state(method, "combine", returned, clean, memory)

        final, kept = _choose(
            due, lambda: combined(other), lambda: combined(None)
        )
        second = around.put_back(final, second)
    _assign_finite(model.perturbation_state, kept, memory)
    gradients = [
        # A gradient that replaces the value, such as a float8 scale's, is the
        # one of the pass at w.
        g if g is None or overwrites else s
        for g, s, overwrites in zip(
            first.gradients, second, model._overwriting(), strict=True
        )
    ]
    return first._replace(gradients=gradients)


class Surroundings:
    """A batch's gradients at w and around it.

    Weight perturbations see lists of the perturbed weights alone, with
    gradients that carry no loss scale; here they are turned into lists of all
    trainable weights and back.

    Args:
        model: a `RobustModel`.
        weights: w, values of the trainable variables.
        state: values of the other variables.
        batch: the batch.

    Attributes:
        first: the `Pass` at w.
        weights: w, with the values that layers have assigned in that pass. The
            perturbation is added to these, and later passes repeat the
            assignments.
    """

    def __init__(
        self,
        model: Any,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
    ) -> None:
        self._model, self._state, self._batch = model, state, batch
        # Under loss scaling the scale is a variable's value, or 1.
        self._scale = model.optimizer.scale_loss(tf.ones(()))
        self._run = model._compiled(model._pass)
        self.first: Pass = self._run(weights, state, batch, self._scale)
        self.weights = self.first.ended(weights)
        self._versions = self.first.versions or None
        self._chosen = model._perturbed_positions()
        # The optimizer takes gradients that carry the loss scale, and sums
        # them over the replicas; the method sees them without this factor.
        self._unit = self._scale / replicas()

    @property
    def chosen_weights(self) -> list[tf.Tensor]:
        """The weights to perturb."""
        return [self.weights[i] for i in self._chosen]

    def seen(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the chosen weights' gradients, dense and without loss scale.

        Args:
            gradients: of all weights, None where there is none. With
                `sharpness="global"` their mean over the replicas is returned.
        """
        given = dense(gradients, self.weights)
        unscaled = [
            given[i] / tf.cast(self._unit, given[i].dtype) for i in self._chosen
        ]
        if self._model.sharpness == "per_replica" or replicas() == 1:
            return unscaled
        replica = tf.distribute.get_replica_context()
        reduced: list[tf.Tensor] = replica.all_reduce(
            tf.distribute.ReduceOp.MEAN, unscaled
        )
        return reduced

    def put_back(
        self, final: Sequence[tf.Tensor], gradients: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns gradients of all weights, with the chosen ones replaced.

        Args:
            final: gradients of the chosen weights, without loss scale.
            gradients: of all weights, as the optimizer takes them.
        """
        found = list(gradients)
        for i, value in zip(self._chosen, final, strict=True):
            found[i] = value * tf.cast(self._unit, value.dtype)
        return found

    def gradient(self, some: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the chosen weights' gradients at other values of them.

        Args:
            some: values of the chosen weights.
        """
        return self.seen(self._at(self._moved(some), self._batch).gradients)

    def gradients_at(
        self,
        some: Sequence[tf.Tensor],
        memory: Sequence[tf.Tensor],
        step: Step,
    ) -> list[tf.Tensor]:
        """Returns the second pass's gradients of all weights.

        They are of the whole batch, or of the examples that the weight
        perturbation selects.

        Args:
            some: values of the chosen weights, w + e.
            memory: the weight perturbation's state.
            step: the facts of the training step.
        """
        moved = self._moved(some)
        part = self._selected(moved, memory, step)
        return dense(self._at(moved, part).gradients, self.weights)

    def squared_gradients(self) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the chosen weights' squared gradients, and their number.

        See `Step.squared_gradients`. State of a weight perturbation becomes
        the mean over replicas; multiplied by their number it is the sum.
        """
        squares = self._model._squared_gradients(
            self.weights, self._state, self._batch, self._scale
        )
        many = replicas()
        count = many * tf.shape(self._batch.y)[0]
        return [many * squares[i] for i in self._chosen], count

    def _at(self, weights: Sequence[tf.Tensor], batch: Batch) -> Pass:
        found: Pass = self._run(
            weights, self._state, batch, self._scale, self._versions
        )
        return found

    def _moved(self, some: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns all weights, with other values of the chosen ones."""
        moved = list(self.weights)
        for i, weight in zip(self._chosen, some, strict=True):
            moved[i] = weight
        return moved

    def _selected(
        self,
        moved: Sequence[tf.Tensor],
        memory: Sequence[tf.Tensor],
        step: Step,
    ) -> Batch:
        """Returns the part of the batch that the second pass is for."""
        method = self._model.perturb_weights
        if method.select is None:
            return self._batch
        if self.first.losses is None:
            raise ValueError(
                f"{method} selects examples by their losses, so the network "
                "must return one tensor of logits, and an objective of your "
                "own each example's loss as its third result. "
                f"Received: objective={self._model.objective}"
            )
        losses = self._model._compiled(self._model._example_losses)(
            moved, self._state, self._batch, self._versions
        )
        positions = method.select(self.first.losses, losses, memory, step)
        return self._batch.rows(lambda t: tf.gather(t, positions))


def _assign_finite(
    variables: Sequence[Any],
    values: Sequence[tf.Tensor],
    memory: Sequence[tf.Tensor],
) -> None:
    """Assigns a weight perturbation's new state if all of it is finite.

    A loss scale that overflows costs one step, and must not spoil the state.

    Args:
        variables: of the state.
        values: the new state.
        memory: the old state.
    """
    found = [
        tf.reduce_all(tf.math.is_finite(value))
        for value in values
        if value.dtype.is_floating
    ]
    finite = tf.reduce_all(found) if found else True
    for variable, value, old in zip(variables, values, memory, strict=True):
        variable.assign(tf.where(finite, value, old))


def _choose(
    condition: Any, yes: Callable[[], Any], no: Callable[[], Any]
) -> Any:
    """Returns `tf.cond`, or calls one of two functions for a Python bool."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
