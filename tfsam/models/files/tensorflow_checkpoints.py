"""TensorFlow checkpoints of Keras models, read weight by weight."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfsam.models.files import ordered_weights

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Numbers of layers: those of Keras 2, which counts layers with weights alone,
# and of Keras 3.
_LAYER = re.compile(r"(?:layer_with_weights-|_operations/|_layers/)(\d+)/")
_OTHERS = ("optimizer", "keras_api", "save_counter", "_loss_tracker")


def prefix(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the prefix of a checkpoint's files, or None.

    Args:
        path: The prefix itself, one of the files, or the folder of only one
            checkpoint or of a SavedModel.
    """
    if path.is_dir():
        variables = path / "variables"
        inside = variables if variables.is_dir() else path
        found = list(inside.glob("*.index"))
        return found[0].with_suffix("") if len(found) == 1 else None
    name = re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name)
    exists = name and path.with_name(f"{name}.index").exists()
    return path.with_name(name) if exists else None


def assign(network: keras.Model, path: pathlib.Path) -> None:
    """Assigns the weights of a checkpoint to a network, in their order.

    Args:
        network: A built network.
        path: Prefix of the checkpoint's files.

    Raises:
        ValueError: If numbers, kinds or shapes differ. No weight is assigned
            then.
    """
    reader = tf.train.load_checkpoint(str(path))
    shapes = reader.get_variable_to_shape_map()
    keys = {
        key.removesuffix(_VALUE): key
        for key in shapes
        if key.endswith(_VALUE) and not any(o in key for o in _OTHERS)
    }
    places = {
        (tuple(map(int, _LAYER.findall(short))), short): key
        for short, key in keys.items()
    }
    pairs = _pairs(network, places)
    for variable, key in pairs:
        if tuple(shapes[key]) != tuple(variable.shape):
            raise ValueError(
                f"weights {variable.path} have shape {tuple(variable.shape)}, "
                f"and {key} {tuple(shapes[key])}"
            )
    for variable, key in pairs:
        variable.assign(reader.get_tensor(key))


def _pairs(
    layer: Any, places: Mapping[tuple[tuple[int, ...], str], str]
) -> list[tuple[Any, str]]:
    """Pairs the weights of a layer or a model with the keys of a checkpoint.

    Args:
        layer: The layer.
        places: Keys by the numbers of the layers that lead to them.
    """
    inner = [part for part in getattr(layer, "layers", ()) if part.weights]
    if not inner:
        return _of_layer(layer, {short: k for (_, short), k in places.items()})
    numbers = sorted({numbers[0] for numbers, _ in places if numbers})
    if len(numbers) != len(inner):
        raise ValueError(
            f"{layer.name} has {len(inner)} layers with weights, and the "
            f"checkpoint {len(numbers)}"
        )
    pairs = []
    for number, part in zip(numbers, inner, strict=True):
        below = {
            (numbers[1:], short): key
            for (numbers, short), key in places.items()
            if numbers[:1] == (number,)
        }
        pairs += _pairs(part, below)
    return pairs


def _of_layer(layer: Any, keys: Mapping[str, str]) -> list[tuple[Any, str]]:
    """Pairs the weights of a layer by their names."""
    stored = {ordered_weights.kind(short): key for short, key in keys.items()}
    wanted = {ordered_weights.kind(w.path): w for w in layer.weights}
    if set(stored) != set(wanted) or len(keys) != len(layer.weights):
        raise ValueError(
            f"layer {layer.name} has the weights {sorted(wanted)}, and the "
            f"checkpoint {sorted(stored)}"
        )
    return [(wanted[name], stored[name]) for name in sorted(stored)]
