"""The second pass of sharpness-aware minimization: gradients at w + e.

`sharpened` runs a batch at the weights w, lets a weight perturbation choose e
by the gradient there, and returns the gradients at w + e with everything else
from the pass at w. `before_step` and `after_step` call the two methods of a
weight perturbation that move the weights of the first pass, and the weights
that the optimizer leaves.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfsam import registries
from tfsam.training.batch import Batch
from tfsam.training.optimizers import momentum_of
from tfsam.training.returned_values import moved_weights
from tfsam.training.returned_values import tensors_and_state
from tfsam.training.stateless import Pass
from tfsam.training.stateless import dense
from tfsam.training.trainer import replicas
from tfsam.weights.base import Step
from tfsam.weights.base import all_finite


def check_optimizer(model: Any) -> None:
    """Checks that a weight perturbation and the optimizer go together.

    Args:
        model: a `RobustModel` with a built optimizer.

    Raises:
        ValueError: if the perturbation needs a momentum that the optimizer has
            not, or moves the weights after steps that the optimizer delays.
    """
    method, optimizer = model.perturb_weights, model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    name = f"Received: optimizer={type(inner).__name__}"
    if _fact(method, "needs_momentum") and momentum_of(inner, []) is None:
        raise ValueError(
            f"{method} perturbs along the optimizer's momentum: compile with "
            "tfsam.SGD or keras.optimizers.SGD, and momentum above 0. "
            f"{name}, momentum={getattr(inner, 'momentum', None)}"
        )
    if _fact(method, "after") is None:
        return
    for setting in ("use_ema", "gradient_accumulation_steps"):
        if getattr(inner, setting, None):
            raise ValueError(
                f"{method} moves the weights after each step of the optimizer, "
                f"which {setting} does not see: compile without it. "
                f"{name}, {setting}={getattr(inner, setting)}"
            )
    if hasattr(inner, "settled"):
        raise ValueError(
            f"{method} moves the weights after each step of the optimizer, so "
            "the optimizer must not walk around them: compile with tfsam.SGD "
            f"or one of keras.optimizers. {name}"
        )


def before_step(
    model: Any, weights: list[tf.Tensor], step: Step
) -> list[tf.Tensor]:
    """Returns the weights of the first pass and of its attack.

    Args:
        model: a `RobustModel`.
        weights: w, values of the trainable variables.
        step: the facts of the training step for the weight perturbation.

    Returns:
        w itself, unless the weight perturbation has a method `before`.
    """
    method = model.perturb_weights
    before = _fact(method, "before")
    if before is None or not weights:
        return weights
    variables, chosen = model.trainable_variables, model._perturbed_positions()
    momentum = momentum_of(model.optimizer, [variables[i] for i in chosen])
    given = [weights[i] for i in chosen]
    memory = [tf.convert_to_tensor(v) for v in model.perturbation_state]
    returned = before(given, momentum, memory, step)
    moved = moved_weights(method, "before", returned, given)
    found = list(weights)
    for i, value in zip(chosen, moved, strict=True):
        found[i] = value
    return found


def after_step(model: Any, found: Pass, step: Step) -> None:
    """Lets a weight perturbation move the weights after the optimizer's step.

    Args:
        model: a `RobustModel`.
        found: the pass by whose gradients the optimizer made its step.
        step: the facts of the training step for the weight perturbation.
    """
    method = model.perturb_weights
    if found.both is None:
        return
    gradients, perturbed = found.both
    if model.sharpness == "per_replica":  # Else they are means already.
        gradients, perturbed = map(_mean_over_replicas, found.both)
    variables = [model.trainable_variables[i] for i in _combined(model)]
    weights = [tf.convert_to_tensor(v.value) for v in variables]
    memory = [tf.convert_to_tensor(v) for v in model.perturbation_state]
    returned = method.after(weights, gradients, perturbed, memory, step)
    moved = moved_weights(method, "after", returned, weights)
    moved = [
        m if v.constraint is None else v.constraint(m)
        for v, m in zip(variables, moved, strict=True)
    ]
    finite = all_finite([*gradients, *perturbed])
    _assign(
        variables,
        [tf.where(finite, m, w) for m, w in zip(moved, weights, strict=True)],
    )


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
    due = True if method.due is None else method.due(memory, step)
    after = _fact(method, "after")
    if due is False and method.combine is None and after is None:
        return first
    clean = around.seen(first.gradients)
    unmoved = dense(first.gradients, around.weights)

    def second_pass() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        given = around.chosen_weights
        returned = method.perturb(given, clean, memory, step)
        some, kept = tensors_and_state(
            method, "perturb", returned, given, memory
        )
        return around.gradients_at(some, memory, step), kept

    second, kept = _choose(due, second_pass, lambda: (unmoved, memory))
    both = None
    if method.combine is not None or after is not None:
        places = _combined(model)
        if places != model._perturbed_positions():
            clean = around.seen(first.gradients, places)
        other = around.seen(second, places)  # No collectives in a tf.cond.
        both = None if after is None else (clean, other)
    if method.combine is not None:

        def combined(other: list[tf.Tensor] | None) -> tuple[Any, Any]:
            returned = method.combine(clean, other, kept, step)
            return tensors_and_state(method, "combine", returned, clean, memory)

        final, kept = _choose(
            due, lambda: combined(other), lambda: combined(None)
        )
        second = around.put_back(final, second, places)
    _assign_finite(model.perturbation_state, kept, memory)
    return first._replace(
        gradients=_trained(model, first.gradients, second), both=both
    )


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
        _check_versions(model, self.first, self._chosen)
        # The optimizer takes gradients that carry the loss scale, and sums
        # them over the replicas; the method sees them without this factor.
        self._unit = self._scale / replicas()

    @property
    def chosen_weights(self) -> list[tf.Tensor]:
        """The weights to perturb."""
        return [self.weights[i] for i in self._chosen]

    def seen(
        self, gradients: Sequence[Any], places: Sequence[int] | None = None
    ) -> list[tf.Tensor]:
        """Returns the chosen weights' gradients, dense and without loss scale.

        Args:
            gradients: of all weights, None where there is none. With
                `sharpness="global"` their mean over the replicas is returned.
            places: positions of the weights; None for those to perturb.
        """
        given = dense(gradients, self.weights)
        unscaled = [
            given[i] / tf.cast(self._unit, given[i].dtype)
            for i in (self._chosen if places is None else places)
        ]
        if self._model.sharpness == "per_replica":
            return unscaled
        return _mean_over_replicas(unscaled)

    def put_back(
        self,
        final: Sequence[tf.Tensor],
        gradients: list[tf.Tensor],
        places: Sequence[int],
    ) -> list[tf.Tensor]:
        """Returns gradients of all weights, with some of them replaced.

        Args:
            final: the new gradients, without loss scale.
            gradients: of all weights, as the optimizer takes them.
            places: positions of the weights that `final` is of.
        """
        found = list(gradients)
        for i, value in zip(places, final, strict=True):
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


def _fact(method: Any, name: str) -> Any:
    """Returns a fact about a weight perturbation, or the default."""
    return registries.WEIGHTS.fact(method, name)


def _combined(model: Any) -> list[int]:
    """Returns the positions of the weights that `combine` and `after` get."""
    if not _fact(model.perturb_weights, "combines_all"):
        chosen: list[int] = model._perturbed_positions()
        return chosen
    return [i for i, own in enumerate(model._overwriting()) if not own]


def _trained(
    model: Any, first: Sequence[Any], second: Sequence[tf.Tensor]
) -> list[Any]:
    """Returns the second pass's gradients where the first one's are replaced.

    A gradient that replaces the value, such as a float8 scale's, is the one of
    the first pass, and so is a gradient that there is none of.
    """
    return [
        g if g is None or overwrites else s
        for g, s, overwrites in zip(
            first, second, model._overwriting(), strict=True
        )
    ]


def _check_versions(model: Any, first: Pass, chosen: Sequence[int]) -> None:
    """Refuses a layer that would store a weight's perturbed value in it."""
    assigned = [int(i) for i in first.versions if int(i) in chosen]
    if assigned and _fact(model.perturb_weights, "before") is not None:
        raise ValueError(
            f"{model.perturb_weights} perturbs the weights of the first pass, "
            "in which no layer may assign them: exclude this one. "
            f"Received: variable={model.trainable_variables[assigned[0]].path}"
        )


def _mean_over_replicas(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    if replicas() == 1:
        return list(values)
    replica = tf.distribute.get_replica_context()
    reduced: list[tf.Tensor] = replica.all_reduce(
        tf.distribute.ReduceOp.MEAN, list(values)
    )
    return reduced


def _assign(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    """Assigns trainable variables, which are the same on all replicas."""
    if replicas() == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy: Any, values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable.value,
                lambda part, new: part.assign(new),
                args=(value,),
                group=False,
            )

    replica = tf.distribute.get_replica_context()
    replica.merge_call(update, args=(list(values),))


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
    if not values:
        return
    finite = all_finite(values)
    for variable, value, old in zip(variables, values, memory, strict=True):
        variable.assign(tf.where(finite, value, old))


def _choose(
    condition: Any, yes: Callable[[], Any], no: Callable[[], Any]
) -> Any:
    """Returns `tf.cond`, or calls one of two functions for a Python bool."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
