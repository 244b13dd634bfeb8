"""Graphs of functional models of Keras 2, as Keras 3 stores them."""

from typing import Any

from tfsam.models.files import stored_operations
from tfsam.models.files.stored_operations import Unsupported

Config = dict[str, Any]


def connected(config: Config) -> Config:
    """Rewrites the connections of a functional model for Keras 3.

    Args:
        config: The configuration of the model. Its layers are mended, except
            for operations of TensorFlow.

    Returns:
        The configuration, with all names without slashes.

    Raises:
        Unsupported: If Keras 3 has no equivalent of an operation or a call.
    """
    layers = config["layers"]
    old = any(
        isinstance(node, list)
        for layer in layers
        for node in layer.get("inbound_nodes", [])
    )
    if not old and len(layers) > 1:
        return config
    first = _first_nodes(layers)
    found = []
    for layer in layers:
        name = layer["name"].replace("/", "_")
        if layer["class_name"] in stored_operations.LAYERS:
            layer = stored_operations.translated(
                layer, first, lambda place: _tensor(place, first)
            )
        nodes = [_node(node, first) for node in layer.get("inbound_nodes", [])]
        found.append(layer | {"name": name, "inbound_nodes": nodes})
    ends = {
        key: _ends(
            config[key], first, {layer["name"]: layer for layer in found}
        )
        for key in ("input_layers", "output_layers")
    }
    return {
        "name": config["name"],
        "trainable": config.get("trainable", True),
        "layers": found,
        **ends,
    }


def _first_nodes(layers: list[Config]) -> dict[str, int]:
    """Returns the number of each layer's first connection in the model.

    A model with an input of its own has a connection before all others. Keras
    2 counts it.
    """
    return {layer["name"]: int(_has_own_node(layer)) for layer in layers}


def _has_own_node(layer: Config) -> bool:
    if layer["class_name"] == "Sequential":
        inner = layer["config"].get("layers")
        return bool(inner) and inner[0]["class_name"] == "InputLayer"
    return "input_layers" in layer["config"]


def _node(node: Any, first: dict[str, int]) -> Config:
    """Rewrites a call of a layer.

    Args:
        node: A list of tensors, each [layer, call, output, options].
        first: The number of each layer's first connection.
    """
    if isinstance(node, dict):
        return node
    # A single tensor, not in a list, is the argument of an operation.
    tensors = [node] if node and isinstance(node[0], str) else node
    args = [_tensor(tensor, first) for tensor in tensors]
    options = tensors[0][3] if tensors and len(tensors[0]) > 3 else {}
    if options.get("training"):
        # Keras 3 lets the caller of the model decide.
        raise Unsupported("a layer is always called in training mode")
    kwargs = {key: _argument(value, first) for key, value in options.items()}
    return {"args": args if len(args) == 1 else [args], "kwargs": kwargs}


def _argument(value: Any, first: dict[str, int]) -> Any:
    """Rewrites an argument by keyword, which may be a tensor."""
    if isinstance(value, list) and len(value) == 3 and value[0] in first:
        return _tensor(value, first)
    if isinstance(value, list):
        return [_argument(entry, first) for entry in value]
    return value


def _tensor(place: list[Any], first: dict[str, int]) -> Config:
    """Returns the reference to a tensor; its shape is not used."""
    name, node, index = place[:3]
    history = [name.replace("/", "_"), node - first.get(name, 0), index]
    config = {"shape": [None], "dtype": "float32", "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config}


def _ends(places: Any, first: dict[str, int], layers: dict[str, Config]) -> Any:
    """Rewrites the references to inputs or outputs."""
    if isinstance(places, dict):
        return {k: _ends(v, first, layers) for k, v in places.items()}
    if places and isinstance(places[0], str):
        name, node, index = places
        plain = name.replace("/", "_")
        # Keras 3 counts the own connection of a functional model alone.
        own = "input_layers" in layers[plain]["config"]
        return [plain, node - first.get(name, 0) + own, index]
    found = [_ends(place, first, layers) for place in places]
    return found[0] if len(found) == 1 else found
