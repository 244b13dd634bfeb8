"""Replacement of a network's head for another number of classes."""

from collections.abc import Iterator
from typing import Any

import keras

from tfsam.support import files

# The number of outputs in the configurations of layers.
_WIDTHS = ("units", "filters")


def replaced(network: keras.Model, num_classes: int) -> keras.Model:
    """Returns a network with as many logits as there are classes.

    The head is the last layer with weights: a Dense layer, or a convolution
    before pooling or reshaping. It gets new weights; all others are kept.

    Args:
        network: a functional or sequential `keras.Model` from images to logits,
            which may hold other models. It is not changed.
        num_classes: number of logits, different from its own.

    Raises:
        ValueError: if the network has no such head.

    Example:
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(10)]
        ... )
        >>> replaced(network, 3).output_shape
        (None, 3)
    """
    if not getattr(network, "outputs", None):
        raise _refused(network, num_classes, "a subclassed model has no graph")
    before = network.outputs[0].shape[-1]
    config = network.get_config()
    for operation, entry in _from_the_end(network, config):
        found = entry["config"]
        if getattr(operation, "weights", ()):
            widths = [name for name in _WIDTHS if found.get(name) == before]
            found |= dict.fromkeys(widths, num_classes)
            break
        entry.pop("build_config", None)  # Its shapes are those of before.
        if shape := found.get("target_shape"):
            found["target_shape"] = [
                num_classes if size == before else size for size in shape
            ]
    try:
        made = type(network).from_config(config)
    except Exception as error:  # A layer may be custom code.
        raise _refused(network, num_classes, files.reason(error)) from error
    if made.outputs[0].shape[-1] != num_classes:
        name = type(operation).__name__
        raise _refused(network, num_classes, f"its last layer is a {name}")
    for new, old in zip(made.weights, network.weights, strict=True):
        if new.shape == old.shape:
            new.assign(old)
    return made


def _from_the_end(
    network: keras.Model, config: dict[str, Any]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields operations from the output on backwards, each with its entry.

    It ends where an operation has several inputs.

    Args:
        network: a model with a graph.
        config: its configuration.
    """
    entries = {entry["config"]["name"]: entry for entry in config["layers"]}
    tensor = network.outputs[0]
    while True:
        operation, node, _ = tensor._keras_history
        entry = entries[operation.name]
        if isinstance(operation, keras.Model):
            yield from _from_the_end(operation, entry["config"])
        else:
            yield operation, entry
        inputs = operation._inbound_nodes[node].input_tensors
        if len(inputs) != 1:
            return
        (tensor,) = inputs


def _refused(network: keras.Model, classes: int, why: str) -> ValueError:
    return ValueError(
        f"the head of {network.name} cannot be replaced ({why}): make a "
        f"network of {classes} outputs in Python, and give it by "
        f"--network=MODULE:FUNCTION. Received: {classes} classes"
    )
