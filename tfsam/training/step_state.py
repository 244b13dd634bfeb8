"""The state that weight perturbations and objectives keep from step to step.

The model keeps it in non-trainable Keras variables, so that it is saved,
restored and resumed with the network.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam import registries


def of_perturbation(model: Any) -> list[Any]:
    """Makes the variables of a weight perturbation's state.

    Args:
        model: a `RobustModel` whose network is built.

    Raises:
        ValueError: if there is a state, and the model trains on parts of a
            batch.
    """
    init = getattr(model.perturb_weights, "init", None)
    if not init:
        return []
    specs = [
        tf.TensorSpec(v.shape, v.dtype) for v in model._perturbed_variables()
    ]
    # A network without an Input is built while Keras traces it. A tensor of
    # that graph could not be used outside of it.
    with tf.init_scope():
        values = list(map(tf.convert_to_tensor, init(specs, model.seed)))
    if values and model.sub_batches > 1:
        raise ValueError(
            f"{model.perturb_weights} keeps a state from batch to batch: "
            "sub_batches must be 1. "
            f"Received: sub_batches={model.sub_batches}"
        )
    return _variables(model, values, "perturbation_state")


def of_objective(model: Any, input_shape: Any) -> list[Any]:
    """Makes the variables of an objective's state.

    Args:
        model: a `RobustModel` whose network is built.
        input_shape: of the network; see `RobustModel.build`.

    Raises:
        ValueError: if there is a state, and the network does not return logits
            of classes.
    """
    init = registries.OBJECTIVES.fact(model.objective, "init")
    if init is None:
        return []
    outputs = getattr(model.network, "outputs", None)
    if not outputs:
        outputs = model.network.compute_output_spec(symbolic(input_shape))
    shapes = [tuple(o.shape) for o in keras.tree.flatten(outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] is None:
        raise ValueError(
            f"{model.objective} keeps a state for each class, so the network "
            "must return one tensor of logits (batch, classes). "
            f"Received: outputs of shape {shapes}"
        )
    classes = max(shapes[0][1], 2)  # A single logit is of two classes.
    with tf.init_scope():  # See `of_perturbation`.
        values = list(map(tf.convert_to_tensor, init(classes)))
    return _variables(model, values, "objective_state")


def check(model: Any) -> None:
    """Checks that exactly the weights with a state are still trained.

    Args:
        model: a built `RobustModel`.

    Raises:
        ValueError: if weights were frozen or unfrozen after the state was made.
    """
    found = [v.path for v in model._perturbed_variables()]
    if model.perturbation_state and found != model._state_of:
        raise ValueError(
            f"{model.perturb_weights} keeps a state for the weights that were "
            "trainable when the RobustModel was made: make a new one after "
            f"freezing or unfreezing. Received: weights={found}"
        )


def _variables(model: Any, values: Sequence[tf.Tensor], name: str) -> list[Any]:
    """Makes variables of a model with given values, numbered after a name."""
    return [
        model.add_weight(
            shape=value.shape,
            initializer=lambda shape, dtype, value=value: tf.constant(
                value, dtype
            ),
            dtype=value.dtype.name,
            trainable=False,
            aggregation="mean",
            name=f"{name}_{index}",
        )
        for index, value in enumerate(values)
    ]


def symbolic(shapes: Any) -> Any:
    """Returns symbolic inputs of one shape, or of a dict or list of shapes.

    Args:
        shapes: a shape (None, ...), or a structure of shapes.
    """
    if isinstance(shapes, dict):
        return {key: symbolic(shape) for key, shape in shapes.items()}
    if any(isinstance(part, (list, tuple)) for part in shapes):
        return [symbolic(shape) for shape in shapes]
    return keras.Input(batch_shape=shapes)
