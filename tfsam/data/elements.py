"""The elements of data: inputs, labels and weights, of examples or batches."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import files

# (x, y, sample_weight), None for a missing part.
Parts = tuple[Any, Any, Any]

KINDS = (
    "data must be arrays (x, y), or a tf.data.Dataset, a keras.utils.PyDataset "
    "or a generator of them, with a sample_weight or without, or dicts with "
    "the keys image and label."
)


def unpacked(element: Any, network: Any = None) -> Parts:
    """Returns an element, or arrays, as (x, y, sample_weight).

    Args:
        element: x, a tuple that begins with x, or a dict.
        network: the network; a dict may hold several inputs of it.

    Returns:
        The three parts, None for a missing one.
    """
    if isinstance(element, dict) and not takes_several(network):
        if {"image", "label"} <= set(element):
            return element["image"], element["label"], None
    if not isinstance(element, (tuple, list)):
        return element, None, None
    if not 1 <= len(element) <= 3:
        raise ValueError(
            f"{KINDS} Received: a {type(element).__name__} of {len(element)}"
        )
    return (*element, *[None] * (3 - len(element)))


def inputs_of(network: Any) -> Sequence[Any]:
    """Returns the symbolic inputs of a network, none if they are unknown."""
    network = getattr(network, "network", network)
    known = isinstance(network, keras.Model)
    return (getattr(network, "inputs", None) or ()) if known else ()


def takes_several(network: Any) -> bool:
    """Returns whether a network is known to have several inputs."""
    return len(inputs_of(network)) > 1


def with_arrays(parts: Parts, network: Any) -> Parts:
    """Turns lists into arrays, unless they hold several inputs."""
    if takes_several(network):
        return parts
    x, y, weight = (
        as_numbers("x and y", part) if isinstance(part, list) else part
        for part in parts
    )
    return x, y, weight


def is_one(x: Any, y: Any, network: Any) -> bool:
    """Returns whether an element is a single example, not a batch.

    Args:
        x: its inputs.
        y: its labels, or None.
        network: the `keras.Model` that receives it, or None.
    """
    shapes, inputs = shapes_of(x), inputs_of(network)
    if len(shapes) == len(inputs):
        missing = sum(len(i.shape) for i in inputs) - sum(map(len, shapes))
        if missing in (0, len(inputs)):
            return bool(missing)
    labels = shapes_of(y)[:1]
    if not shapes or not labels:
        return False
    (first, *_), (label,) = shapes, labels
    if len(label) != 1:
        return not label
    # Class numbers of a batch, or the one-hot label of one example.
    return (
        bool(first) and None not in (first[0], *label) and first[0] != label[0]
    )


def is_several(part: Any, other: Any) -> bool:
    """Returns whether a part is a structure of arrays with a row an example.

    Args:
        part: x or y.
        other: y or x.

    Example:
        >>> y = np.zeros(3)
        >>> is_several([np.zeros([3, 4]), np.zeros([3, 1])], y)
        True
    """
    if isinstance(part, dict):
        return True
    if not isinstance(part, (tuple, list)):
        return False
    count = rows_in(other)
    return len(part) != count and all(
        shapes_of(each) != [()] and rows_in(each) == count for each in part
    )


def rows_in(part: Any) -> int:
    """Returns the length of the first array: 0 without any, 1 for a number."""
    shapes = shapes_of(part)
    return (*shapes[0], 1)[0] if shapes else 0


def shapes_of(part: Any) -> list[Any]:
    """Returns the shapes of a part's arrays, None for an unknown rank."""

    def shape(leaf: Any) -> tuple[int | None, ...] | None:
        if isinstance(leaf, list):
            return (len(leaf),)
        found = getattr(leaf, "shape", None)
        if getattr(found, "rank", 0) is None:
            return None
        return tuple(np.shape(leaf) if found is None else found)

    return [shape(leaf) for leaf in _leaves(part)]


def _leaves(part: Any) -> list[Any]:
    """Returns the arrays of a part, which may be a structure of several."""
    of_arrays = isinstance(part, list) and all(
        hasattr(each, "shape") for each in part
    )
    if of_arrays or isinstance(part, (tuple, dict)):
        return tf.nest.flatten(part)
    return [] if part is None else [part]


def as_numbers(name: str, value: Any) -> np.ndarray:
    """Converts a value to an array of numbers."""
    try:
        array = np.asarray(value)
    except Exception as error:
        # Each library's tensors have exceptions of their own.
        raise ValueError(
            f"{name} must have one shape for all examples "
            f"({files.reason(error)}). Received: {type(value).__name__}"
        ) from error
    # NumPy has no kind of its own for bfloat16.
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{name} must be numbers, of one shape for all examples. "
            f"Received: {type(value).__name__} of dtype {array.dtype}"
        )
    return array


def described(part: Any) -> str:
    """Returns the kind of a part, for errors."""
    if isinstance(part, dict):
        return f"a dict with the keys {', '.join(map(str, part))}"
    if isinstance(part, (tuple, list)):
        return f"a {type(part).__name__} of {len(part)}"
    return f"an array of shape {shapes_of(part)[0]}"


def without_labels(x: Any) -> ValueError:
    """Returns the error of data without labels.

    Args:
        x: the inputs of an element.
    """
    return ValueError(f"{KINDS} Received: {described(x)} without labels")
