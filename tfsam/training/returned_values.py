"""Checks of the values that weight perturbations and objectives return.

They run while a step is traced, so a wrong value is reported by the name of the
part, and not by an error from inside TensorFlow.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def tensors_and_state(
    method: Any,
    verb: str,
    returned: Any,
    tensors: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
) -> tuple[list[Any], list[Any]]:
    """Returns the result of a weight perturbation's method, checked.

    Args:
        method: the weight perturbation.
        verb: the method, "perturb" or "combine".
        returned: its result.
        tensors: tensors of the shapes that it should return.
        state: tensors of the shapes that the state should have.

    Raises:
        ValueError: if the result is not a pair of two such lists.
    """
    noun = "weights" if verb == "perturb" else "gradients"
    rule = (
        f"{type(method).__name__}.{verb} must return ({noun}, state), with as "
        f"many {noun} as it received and a state like init's. Received: "
    )
    if not _is_listed(returned):
        raise ValueError(rule + _described(returned))
    pair = list(returned)
    if len(pair) != 2 or not all(map(_is_listed, pair)):
        kinds = ", ".join(map(_described, pair[:3]))
        more = ", ..." if len(pair) > 3 else ""
        raise ValueError(f"{rule}({kinds}{more})")
    found, kept = list(pair[0]), list(pair[1])
    _check_shapes(rule, noun, found, tensors)
    _check_shapes(rule, "tensors of state", kept, state)
    return found, kept


def moved_weights(
    method: Any, verb: str, returned: Any, weights: Sequence[tf.Tensor]
) -> list[Any]:
    """Returns the weights that a weight perturbation's method moves, checked.

    Args:
        method: the weight perturbation.
        verb: the method, "before" or "after".
        returned: its result.
        weights: tensors of the shapes that it should return.

    Raises:
        ValueError: if the result is not such a list.
    """
    rule = (
        f"{type(method).__name__}.{verb} must return as many weights as it "
        "received. Received: "
    )
    if not _is_listed(returned):
        raise ValueError(rule + _described(returned))
    found = list(returned)
    _check_shapes(rule, "weights", found, weights)
    return found


def _check_shapes(
    rule: str, name: str, values: list[Any], expected: Sequence[tf.Tensor]
) -> None:
    """Raises a ValueError if values are not as many, or of other shapes."""
    if len(values) != len(expected):
        raise ValueError(f"{rule}{len(values)} {name}, for {len(expected)}")
    for value, other in zip(values, expected, strict=True):
        shape = getattr(value, "shape", ())
        if not other.shape.is_compatible_with(shape):
            raise ValueError(
                f"{rule}{name} of shape {tuple(shape)}, for shape "
                f"{tuple(other.shape)}"
            )


def objective_values(objective: Any, returned: Any) -> tuple[Any, Any, Any]:
    """Returns an objective's loss, predictions and example losses, checked.

    Args:
        objective: the objective.
        returned: its result.

    Returns:
        (loss, predictions, losses); the last is None if it is not returned.

    Raises:
        ValueError: if the result is no such tuple, the loss is no scalar, or
            the losses are not a number for each example.
    """
    name = getattr(objective, "__name__", type(objective).__name__)
    rule = (
        f"{name} must return (loss, predictions) or (loss, predictions, "
        "losses): a scalar, the outputs of the network, and the loss of each "
        "example. Received: "
    )
    if not isinstance(returned, (tuple, list)):
        raise ValueError(rule + _described(returned))
    if len(returned) not in (2, 3):
        raise ValueError(f"{rule}{len(returned)} values")
    loss, y_pred, losses = (*returned, None)[:3]
    for part, value, rank in (("loss", loss, 0), ("losses", losses, 1)):
        shape = getattr(value, "shape", None)
        if shape is not None and tf.TensorShape(shape).rank not in (rank, None):
            raise ValueError(f"{rule}{part} of shape {tuple(shape)}")
    return loss, y_pred, losses


def _is_listed(value: Any) -> bool:
    """Returns whether a value is a list or tuple, or another iterable."""
    array = tf.is_tensor(value) or isinstance(value, (np.ndarray, str))
    return isinstance(value, Iterable) and not array


def _described(value: Any) -> str:
    """Describes a value in a few words."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a tensor of shape {tuple(shape)}"
    return f"{value}" if value is None else f"a {type(value).__name__}"
