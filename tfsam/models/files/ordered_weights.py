"""Assignment of weights that HDF5 files hold in the order of layers."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.models.files import hdf5_files

# Names that tell what a weight is. A stored `gamma` is never a `beta`, though
# their shapes are equal.
_TELLING = {
    "kernel": "kernel",
    "W": "kernel",
    "bias": "bias",
    "b": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "running_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "running_std": "moving_variance",
    # Keras 3 names the kernel of DepthwiseConv2D plainly.
    "depthwise_kernel": "kernel",
    "pointwise_kernel": "pointwise_kernel",
    "recurrent_kernel": "recurrent_kernel",
    "embeddings": "embeddings",
}


def assign(
    model: Any,
    group: Any,
    modern: Callable[[Any, Any], Any] = lambda layer, stored: stored,
) -> None:
    """Assigns stored weights to a network, layer by layer.

    Layers are found by their names where all names agree, else by their order.

    Args:
        model: A `keras.Model` with weights.
        group: The group `model_weights` of an HDF5 file of Keras.
        modern: Function from a layer and one of its stored weights to the
            weight in the layout of Keras 3.

    Raises:
        ValueError: If the numbers of layers or of weights, or the shape or the
            kind of a weight differ. No weight is assigned then.
    """
    stored = hdf5_files.layers(group)
    wanted = [layer for layer in model.layers if layer.weights]
    if len(stored) != len(wanted):
        raise ValueError(
            f"the network has {len(wanted)} layers with weights, and the file "
            f"{len(stored)}"
        )
    by_name = {_plain(name): weights for name, weights in stored}
    if set(by_name) != {layer.name for layer in wanted}:
        by_name = {
            layer.name: weights
            for layer, (_, weights) in zip(wanted, stored, strict=True)
        }
    pairs = []
    for layer in wanted:
        weights = by_name[layer.name]
        pairs += paired(layer, [(n, modern(layer, w)) for n, w in weights])
    pairs += _top_level(model, group)
    for variable, dataset in pairs:
        variable.assign(np.asarray(dataset))
    _finalize(model)


def _top_level(model: Any, group: Any) -> list[tuple[Any, Any]]:
    """Pairs the weights that a model has beside those of its layers."""
    if "top_level_model_weights" not in group:
        return []
    stored = hdf5_files.weights(group["top_level_model_weights"])
    inside = {id(w) for layer in model.layers for w in layer.weights}
    variables = [w for w in model.weights if id(w) not in inside]
    return _checked(model.name, variables, stored) if stored else []


def paired(
    layer: Any, stored: Sequence[tuple[str, Any]]
) -> list[tuple[Any, Any]]:
    """Pairs the variables of a layer with its stored weights.

    Args:
        layer: The layer, which may be a model.
        stored: Pairs of a name and a dataset.

    Raises:
        ValueError: If they do not fit each other.
    """
    # The order of Keras 1 and 2.
    variables = [*layer.trainable_weights, *layer.non_trainable_weights]
    if len(variables) == len(stored):
        places = {_place(name): (name, dataset) for name, dataset in stored}
        paths = [_place(variable.path) for variable in variables]
        if len(places) == len(stored) and set(paths) == set(places):
            stored = [places[path] for path in paths]
    return _checked(layer.name, variables, stored)


def _checked(
    layer: str, variables: Sequence[Any], stored: Sequence[tuple[str, Any]]
) -> list[tuple[Any, Any]]:
    if len(variables) != len(stored):
        raise ValueError(
            f"layer {layer} has {len(variables)} weights, and the file "
            f"{len(stored)}"
        )
    for variable, (name, dataset) in zip(variables, stored, strict=True):
        kinds = _told(variable.path), _told(name)
        if tuple(variable.shape) != tuple(dataset.shape) or (
            None not in kinds and kinds[0] != kinds[1]
        ):
            raise ValueError(
                f"layer {layer} has weights {variable.name} of shape "
                f"{tuple(variable.shape)}, and the file {name} of shape "
                f"{tuple(dataset.shape)}"
            )
    return [
        (variable, dataset)
        for variable, (_, dataset) in zip(variables, stored, strict=True)
    ]


def _plain(name: str) -> str:
    """Returns a layer's name as Keras 3 allows it, without slashes."""
    return name.replace("/", "_")


def _place(name: str) -> str:
    """Returns the name of a weight's layer and the kind of the weight."""
    layer = name.partition(":")[0].rpartition("/")[0]
    return f"{layer.rpartition('/')[2]}/{kind(name)}"


def kind(name: str) -> str:
    """Returns the kind of a weight, such as "kernel".

    Args:
        name: Its name, with or without the names of its layers.
    """
    leaf = name.partition(":")[0].rpartition("/")[2]
    # Keras 3 keeps the kernel of a layer that may be quantized as _kernel.
    leaf = leaf.removeprefix("_")
    return _TELLING.get(leaf, leaf)


def _told(name: str) -> str | None:
    """Returns what a weight's name tells about it, or None."""
    leaf = kind(name)
    if leaf in _TELLING.values():
        return leaf
    # Keras 1 joined the names by underscores: convolution2d_1_W.
    for ending, found in _TELLING.items():
        if "/" not in name and leaf.endswith(f"_{ending}"):
            return found
    return None


def _finalize(layer: Any) -> None:
    """Derives attributes of layers such as Normalization from weights."""
    for inner in getattr(layer, "layers", ()):
        _finalize(inner)
    finalize: Callable[[], None] | None = getattr(layer, "finalize_state", None)
    if finalize is not None and layer.weights:
        finalize()
