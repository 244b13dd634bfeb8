"""TensorFlow operations in functional models of Keras 2, as Keras 3's own."""

import importlib
import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import keras

Config = dict[str, Any]

# Keras 2 stored operations of TensorFlow as layers of these classes.
LAYERS = ("SlicingOpLambda", "TFOpLambda", "TensorFlowOpLayer")

_NUMPY, _NN = "keras.src.ops.numpy", "keras.src.ops.nn"
_IMAGE = {"data_format": "channels_last"}


class Unsupported(ValueError):
    """Keras 3 has no equivalent of a part of a stored model."""


class _Operation(NamedTuple):
    """An operation of Keras 3.

    Attributes:
        module: its module, as Keras stores it.
        name: its class.
        operands: names of the further operands of TensorFlow's function.
        options: names of Keras's options by those of TensorFlow.
        defaults: options where the defaults differ.
    """

    module: str
    name: str
    operands: tuple[str, ...] = ()
    options: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}


def _reduction(name: str) -> _Operation:
    options = {"axis": "axis", "keepdims": "keepdims"}
    return _Operation(_NUMPY, name, options=options)


def _binary(name: str) -> _Operation:
    return _Operation(_NUMPY, name, operands=("y",))


_OPERATIONS = {
    "__operators__.add": _binary("Add"),
    "math.add": _binary("Add"),
    "math.subtract": _binary("Subtract"),
    "math.multiply": _binary("Multiply"),
    "math.truediv": _binary("TrueDivide"),
    "math.divide": _binary("TrueDivide"),
    "math.maximum": _binary("Maximum"),
    "math.minimum": _binary("Minimum"),
    "math.pow": _binary("Power"),
    "nn.bias_add": _Operation(_NUMPY, "Add", operands=("bias",)),
    "math.negative": _Operation(_NUMPY, "Negative"),
    "math.sqrt": _Operation(_NUMPY, "Sqrt"),
    "math.square": _Operation(_NUMPY, "Square"),
    "math.exp": _Operation(_NUMPY, "Exp"),
    "math.log": _Operation(_NUMPY, "Log"),
    "math.abs": _Operation(_NUMPY, "Absolute"),
    "math.tanh": _Operation(_NUMPY, "Tanh"),
    "nn.tanh": _Operation(_NUMPY, "Tanh"),
    "nn.relu": _Operation(_NN, "Relu"),
    "nn.relu6": _Operation(_NN, "Relu6"),
    "nn.elu": _Operation(_NN, "Elu"),
    "nn.selu": _Operation(_NN, "Selu"),
    "nn.silu": _Operation(_NN, "Silu"),
    "nn.softplus": _Operation(_NN, "Softplus"),
    "nn.sigmoid": _Operation(_NN, "Sigmoid"),
    "math.sigmoid": _Operation(_NN, "Sigmoid"),
    "nn.softmax": _Operation(_NN, "Softmax", options={"axis": "axis"}),
    "nn.log_softmax": _Operation(_NN, "LogSoftmax", options={"axis": "axis"}),
    "nn.leaky_relu": _Operation(
        _NN, "LeakyRelu", options={"alpha": "negative_slope"}
    ),
    "nn.gelu": _Operation(
        _NN,
        "Gelu",
        options={"approximate": "approximate"},
        defaults={"approximate": False},
    ),
    "math.reduce_mean": _reduction("Mean"),
    "math.reduce_sum": _reduction("Sum"),
    "math.reduce_max": _reduction("Max"),
    "math.reduce_min": _reduction("Min"),
    "math.reduce_prod": _reduction("Prod"),
    "cast": _Operation(
        "keras.src.ops.core", "Cast", options={"dtype": "dtype"}
    ),
    "reshape": _Operation(_NUMPY, "Reshape", options={"shape": "newshape"}),
    "transpose": _Operation(_NUMPY, "Transpose", options={"perm": "axes"}),
    "expand_dims": _Operation(_NUMPY, "ExpandDims", options={"axis": "axis"}),
    "squeeze": _Operation(_NUMPY, "Squeeze", options={"axis": "axis"}),
    "concat": _Operation(_NUMPY, "Concatenate", options={"axis": "axis"}),
    "reverse": _Operation(_NUMPY, "Flip", options={"axis": "axis"}),
    "clip_by_value": _Operation(
        _NUMPY,
        "Clip",
        options={"clip_value_min": "x_min", "clip_value_max": "x_max"},
    ),
    "image.resize": _Operation(
        "keras.src.ops.image",
        "Resize",
        options={"size": "size", "method": "interpolation"},
        defaults=_IMAGE,
    ),
    "image.rgb_to_grayscale": _Operation(
        "keras.src.ops.image", "RGBToGrayscale", defaults=_IMAGE
    ),
}
# Values with which an option has no effect.
_DEFAULTS = {
    "name": None,
    "data_format": "NHWC",
    "antialias": False,
    "preserve_aspect_ratio": False,
}
# The graph operations that functional models of TensorFlow 2.0 to 2.3 hold.
_GRAPH_OPERATIONS = {
    "Add": "math.add",
    "AddV2": "math.add",
    "BiasAdd": "nn.bias_add",
    "Maximum": "math.maximum",
    "Minimum": "math.minimum",
    "Mul": "math.multiply",
    "RealDiv": "math.truediv",
    "Relu": "nn.relu",
    "Relu6": "nn.relu6",
    "Sigmoid": "nn.sigmoid",
    "Softmax": "nn.softmax",
    "Sub": "math.subtract",
    "Tanh": "nn.tanh",
}

_MODULES = ("core", "image", "math", "nn", "numpy")


def module(name: str) -> str | None:
    """Returns the module of an operation of Keras 3, or None.

    HDF5 files leave it out.

    Args:
        name: The class of the operation.
    """
    for part in _MODULES:
        found = importlib.import_module(f"keras.src.ops.{part}")
        operation = getattr(found, name, None)
        if isinstance(operation, type) and issubclass(
            operation, keras.Operation
        ):
            return found.__name__
    return None


# Makes the reference to a tensor from its place, [layer, call, output].
_Tensor = Callable[[list[Any]], Config]


def translated(entry: Config, layers: Iterable[str], tensor: _Tensor) -> Config:
    """Returns the configuration of an operation of Keras 3.

    Args:
        entry: The configuration of a layer of one of the classes `LAYERS`.
        layers: Names of the layers of the model.
        tensor: Function from the place of a tensor to a reference.

    Raises:
        Unsupported: If Keras 3 has no such operation.
    """
    calls = [_call(entry, node) for node in entry["inbound_nodes"]]
    found = [_operation(entry, call, set(layers), tensor) for call in calls]
    if not found or any(config != found[0][0] for config, _ in found):
        raise Unsupported(f"layer {entry['name']} has calls that differ")
    nodes = [{"args": args, "kwargs": {}} for _, args in found]
    return {**found[0][0], "name": entry["name"], "inbound_nodes": nodes}


class _Call(NamedTuple):
    """A call of an operation.

    Attributes:
        function: the name of TensorFlow's function.
        first: the first argument, a tensor's place, a list of them or a
            constant.
        options: the other arguments, by name.
    """

    function: str
    first: Any
    options: Config


def _call(entry: Config, node: Any) -> _Call:
    """Reads a call of an operation."""
    config = entry["config"]
    if entry["class_name"] == "TensorFlowOpLayer":
        return _graph_call(entry, node)
    function = config.get("function", "__operators__.getitem")
    if isinstance(node[0], str):
        place, options = node[:3], node[3] if len(node) > 3 else {}
        first = place[2] if place[0] == "_CONSTANT_VALUE" else place
    else:
        first, options = [place[:3] for place in node], node[0][3]
    return _Call(function, first, options)


def _graph_call(entry: Config, node: Any) -> _Call:
    """Reads a call of an operation in the graph of TensorFlow 2.0 to 2.3."""
    config = entry["config"]
    definition = config["node_def"]
    if isinstance(definition, str):
        definition = json.loads(definition)
    function = _GRAPH_OPERATIONS.get(definition["op"], definition["op"])
    operands = [place[:3] for place in node]
    for index, value in sorted(config.get("constants", {}).items()):
        operands.insert(int(index), value)
    known = _OPERATIONS.get(function)
    if known is None or len(operands) != 1 + len(known.operands):
        raise Unsupported(f"layer {entry['name']} is {definition['op']}")
    options = dict(zip(known.operands, operands[1:], strict=True))
    return _Call(function, operands[0], options)


def _operation(
    entry: Config, call: _Call, layers: set[str], tensor: _Tensor
) -> tuple[Config, list[Any]]:
    """Returns the operation of a call and its arguments."""

    def operand(value: Any) -> Any:
        if isinstance(value, list) and value:
            if len(value) == 3 and value[0] in layers:
                return tensor(value)
            if isinstance(value[0], list) and value[0][:1][0] in layers:
                return [operand(inner) for inner in value]
            return _constant(value)
        return value

    if call.function == "__operators__.getitem":
        known = _Operation(_NUMPY, "GetItem")
        key = [_index(part) for part in call.options.get("slice_spec", [])]
        return _config(known, entry, {}), [operand(call.first), key]
    if call.function not in _OPERATIONS:
        raise Unsupported(f"layer {entry['name']} is tf.{call.function}")
    known = _OPERATIONS[call.function]
    args = [call.first, *(call.options[name] for name in known.operands)]
    options = dict(known.defaults)
    for name, value in call.options.items():
        if name in known.operands or value is None:
            continue
        if name in known.options and _is_plain(value):
            options[known.options[name]] = value
        elif name not in _DEFAULTS or value != _DEFAULTS[name]:
            raise Unsupported(
                f"layer {entry['name']} is tf.{call.function} with {name}"
            )
    return _config(known, entry, options), [operand(value) for value in args]


def _config(known: _Operation, entry: Config, options: Config) -> Config:
    return {
        "module": known.module,
        "class_name": known.name,
        "config": {**options, "name": entry["name"].replace("/", "_")},
        "registered_name": known.name,
    }


def _is_plain(value: Any) -> bool:
    """Returns whether an option is a value, or a list of numbers."""
    if isinstance(value, list):
        return all(isinstance(part, (int, float)) for part in value)
    return isinstance(value, (str, int, float))


def _constant(value: list[Any]) -> Config:
    config = {"value": value, "dtype": "float32"}
    return {"class_name": "__numpy__", "config": config}


def _index(part: Any) -> Any:
    """Returns a part of an index as Keras 3 stores it."""
    if isinstance(part, dict) and part.get("class_name") == "__ellipsis__":
        return {"class_name": "__ellipsis__", "config": {}}
    if isinstance(part, dict) and {"start", "stop", "step"} <= set(part):
        bounds = {key: part[key] for key in ("start", "stop", "step")}
        if all(isinstance(b, (int, type(None))) for b in bounds.values()):
            return {"class_name": "__slice__", "config": bounds}
    if isinstance(part, (int, type(None))):
        return part
    raise Unsupported("an index of a tensor is a tensor")
