"""Checks that code from outside Keras reads and writes variables through it.

A pass replaces Keras variables by tensors. A layer that holds the
`tf.Variable` behind one, or keeps its state in a `tf.Variable` of its own,
escapes this silently. These functions find such layers and name the variable.
"""

import re
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam.training.batch import Batch
from tfsam.training.scope import AssigningScope

_UNSEEN = (
    "network must read its weights as Keras variables, where TensorFlow "
    "records gradients. A layer holds the tf.Variable behind one, or reads it "
    "in a graph that was loaded or traced before, or in keras.remat (use "
    "keras.RematScope): it cannot be perturbed. Change that layer, or freeze "
    "it. Received: variable="
)


def check_reads(model: Any, tape: tf.GradientTape) -> None:
    """Checks that a pass read no trainable `tf.Variable` directly.

    Args:
        model: a `PureModel`.
        tape: the tape that recorded the pass.

    Raises:
        ValueError: naming the variable that was read.
    """
    past = {v.ref() for v in tape.watched_variables()}
    if not past:
        return
    for variable in model.trainable_variables:
        local = model.distribute_strategy.experimental_local_results
        if any(part.ref() in past for part in local(variable._value)):
            raise ValueError(_UNSEEN + variable.path)


def check_lost(model: Any, positions: Sequence[int], batch: Batch) -> None:
    """Checks that weights without a gradient have none in Keras either.

    Args:
        model: a `PureModel`.
        positions: of trainable variables that were read, and got no gradient.
        batch: the batch of the pass.

    Raises:
        ValueError: naming a variable for which plain Keras has a gradient.
    """
    lost = [model.trainable_variables[i] for i in positions]
    seen = {v.path for v in lost}
    if seen <= model._without_gradient:
        return

    def plain(batch: Batch) -> list[Any]:
        with tf.GradientTape() as tape:
            with AssigningScope(tape) as scope:
                loss, *_ = model._objective(batch)
        versions = [[v.value, *scope.assigned(v)] for v in lost]
        return list(map(total, tape.gradient(loss, versions)))

    if tf.executing_eagerly():
        found = plain(batch)
    else:
        found = _traced(plain, batch).structured_outputs
    for variable, gradient in zip(lost, found, strict=True):
        if gradient is not None:
            raise ValueError(_UNSEEN + variable.path)
    model._without_gradient.update(seen)


def inspect(model: Any, data: Any) -> None:
    """Traces a pass to find variables that it uses behind Keras's back.

    A pass may assign variables that the model does not list, such as the state
    of Keras's global seed; these are added to `model._unlisted`. Networks made
    only of Keras's own layers are not traced, nor is a step that runs eagerly,
    which finds such variables as it goes.

    Args:
        model: a `PureModel`.
        data: a batch, or its specs.

    Raises:
        ValueError: naming a `tf.Variable` that is assigned, or one that is
            read where no gradient is recorded.
    """
    parts = [*model.network._flatten_layers()]
    parts += [] if model.objective is None else [model.objective]
    known = all(map(_is_known, parts))
    if known or model._inspected or tf.executing_eagerly():
        return
    scopes = []

    def forward(data: Any) -> None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = [tf.convert_to_tensor(v) for v in model.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in model._state_variables()]
        with model._scope(weights, state) as scope:
            scopes.append(scope)
            scope.inspecting = True
            model._objective(Batch(x, x, y, sample_weight))

    graph = _traced(forward, data).graph
    for name in _assigned(graph):
        raise ValueError(
            "network must keep its state in Keras variables, such as "
            "add_weight(trainable=False) makes: a tf.Variable would change "
            f"in every pass of a step. Received: variable={name}"
        )
    for place in scopes[-1].unrecorded:
        raise ValueError(_UNSEEN + model.trainable_variables[place].path)
    model._unlisted.extend(scopes[-1].unknown)
    object.__setattr__(model, "_inspected", True)


def total(gradients: Sequence[Any]) -> Any:
    """Returns the sum of some gradients, None if all of them are None.

    Args:
        gradients: tensors, `tf.IndexedSlices`, or None.
    """
    found = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    return tf.add_n(found) if len(found) > 1 else next(iter(found), None)


def _traced(function: Callable[..., Any], structure: Any) -> Any:
    """Returns a concrete function of such tensors, which is never run."""

    def spec(value: Any) -> Any:
        if value is None or isinstance(value, tf.TypeSpec):
            return value
        return tf.type_spec_from_value(value)

    specs = tf.nest.map_structure(spec, structure)
    made = tf.function(function, autograph=False)
    return made.get_concrete_function(specs)


def _is_known(part: Any) -> bool:
    """Returns whether a layer or objective consists of Keras's own code."""
    package, *_ = type(part).__module__.partition(".")
    return package in ("keras", "tfsam") and not isinstance(
        part, keras.layers.Lambda
    )


def _assigned(graph: tf.Graph) -> list[str]:
    """Returns the names of the `tf.Variable`s that a graph assigns."""
    names = {
        id(inner): v.name
        for outer, inner in graph.captures
        for v in graph.variables
        if v.handle is outer
    }
    return [
        names.get(id(op.inputs[0]), op.inputs[0].name)
        for op in graph.get_operations()
        if re.fullmatch("Assign.*VariableOp|ResourceScatter.*", op.type)
    ]
