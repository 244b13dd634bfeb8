"""Configurations of Keras 1 and 2, mended so that Keras 3 reads them.

Only exact changes are made: the mended network computes the same function.
Weights are stored beside a configuration, so initializers are left out.
"""

import inspect
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import keras

from tfsam.models.files import keras_1_configs
from tfsam.models.files import stored_nodes
from tfsam.models.files import stored_operations
from tfsam.models.files import trusted_code
from tfsam.models.files.stored_operations import Unsupported

Config = dict[str, Any]


class _Source(NamedTuple):
    """Facts about a file that decide how its configuration is mended.

    Attributes:
        old: Whether Keras 1 or 2 wrote it.
        oldest: Whether Keras 1 wrote it.
        objects: The classes and functions that the user has registered.
    """

    old: bool
    oldest: bool
    objects: Mapping[str, Any]


# Layers under other names than Keras 3's.
_CLASSES = {
    # keras.Model makes a functional model of a functional configuration.
    "Functional": "Model",
    "SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "GRUV2": "GRU",
    "LSTMV2": "LSTM",
}
# Layers that Keras 3 does not have.
_KERAS_2 = (
    "CuDNNGRU",
    "CuDNNLSTM",
    "DenseFeatures",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "RandomFourierFeatures",
    *stored_operations.LAYERS,
)
# Layers of keras.applications, under the names that Keras 3 stores.
_APPLICATIONS = {
    "CustomScaleLayer": "keras.src.applications.inception_resnet_v2",
    "LayerScale": "keras.src.applications.convnext",
}
# Layers that Keras 3 keeps for stored models alone.
_LEGACY = ("AlphaDropout", "RandomHeight", "RandomWidth", "ThresholdedReLU")

# Options that Keras 3 does not have, with values that have no effect.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "autocast": (True,),
    "dynamic": (False,),
    "expects_training_arg": (True, False),
    "fused": (True, False),
    "groups": (1,),
    "implementation": (0, 1, 2),
    "ragged": (False,),
    "renorm": (False,),
    "rng_type": ("stateful", "stateless", "legacy_stateful"),
    "softmax_robust_masking": (False,),
    "stateful": (False,),
    "time_major": (False,),
    "trainable": (True, False),
    "unroll": (False,),
}
# Options that follow from the inputs.
_DERIVED = (
    "input_dim",
    "input_length",
    "key_shape",
    "query_shape",
    "value_shape",
)
# Functions of TensorFlow by the names in the files, and Keras's of that kind.
_ACTIVATIONS = {
    "log_softmax_v2": "log_softmax",
    "softmax_v2": "softmax",
}


def mended(
    config: Config, version: str | None, objects: Mapping[str, Any]
) -> Config:
    """Mends the configuration of a stored model.

    Args:
        config: The configuration of the model with its `class_name`. It is not
            changed.
        version: The version of Keras that wrote it, or None.
        objects: The classes and functions that the user has registered.

    Returns:
        A configuration of Keras 3, for `keras.saving.deserialize_keras_object`.

    Raises:
        Unsupported: If Keras 3 has no equivalent.
        tfsam.models.files.trusted_code.Untrusted: If a class is not registered.
    """
    major = (version or "2").partition(".")[0]
    source = _Source(major in ("1", "2"), major == "1", objects)
    return _layer(config, source)


def _layer(entry: Config, source: _Source) -> Config:
    """Mends a layer or a model."""
    entry = keras_1_configs.modern(entry) if source.oldest else entry
    name = str(entry.get("class_name"))
    config = entry.get("config")
    if isinstance(config, list):
        # Keras before 2.2.3 stored a Sequential as the list of its layers.
        config = {"name": "sequential", "layers": config}
    if not isinstance(config, dict):
        raise Unsupported(f"the configuration of {name} is no object")
    bare = name.rpartition(">")[2]
    key = trusted_code.layer_key(entry, source.objects)
    place: Config = {"module": None, "class_name": bare, "registered_name": key}
    if key is None:
        bare = _CLASSES.get(bare, bare)
        place = {
            "module": _module(entry, bare, config, source),
            "class_name": bare,
            "registered_name": None,
        }
    if "layers" in config and "input_layers" in config:
        config = _functional(config, source)
    elif bare == "Sequential" and isinstance(config.get("layers"), list):
        config = _sequential(config, source)
    elif key is not None:
        config = _custom(config, source)
    elif place["module"] in ("keras.layers", "keras._legacy.layers"):
        config = _stock(bare, config, source)
    rest: Config = {
        k: entry[k] for k in ("name", "inbound_nodes") if k in entry
    }
    return {**place, "config": config, **rest}


def _module(entry: Config, name: str, config: Config, source: _Source) -> str:
    """Returns the module of Keras 3 that has a class."""
    owner = str(config.get("name", name))
    if not trusted_code.is_of_keras(entry.get("module")):
        raise trusted_code.unregistered(owner, f"{entry['module']}.{name}")
    if name == "Sequential" or (name == "Model" and "input_layers" in config):
        return "keras"
    if not source.old and not {"dtype", "trainable"} & set(config):
        # An operation of Keras 3, which has no options of a layer.
        module = stored_operations.module(name)
        if module is not None:
            return module
    if name in _APPLICATIONS:
        return _APPLICATIONS[name]
    if name in _LEGACY:
        return "keras._legacy.layers"
    layer = getattr(keras.layers, name, None)
    if isinstance(layer, type) and issubclass(layer, keras.layers.Layer):
        return "keras.layers"
    if trusted_code.key(name, trusted_code.registered_with_tf_keras()):
        raise Unsupported(f"layer {owner} is of {name}, a class of tf_keras")
    if name in _KERAS_2:
        raise Unsupported(f"layer {owner} is of class {name}")
    raise trusted_code.unregistered(owner, name)


def _sequential(config: Config, source: _Source) -> Config:
    """Mends a Sequential, and gives it the layer of its input."""
    stored = config["layers"]
    layers = [_layer(layer, source) for layer in stored]
    if stored and layers[0]["class_name"] != "InputLayer":
        shape = _input_shape(stored[0]) or config.get("build_input_shape")
        if shape is not None:
            inner = stored[0]["config"]
            dtype = inner.get("dtype") if isinstance(inner, dict) else None
            layers.insert(0, _input_layer(shape, dtype, layers))
    return {
        "name": _plain(config.get("name", "sequential")),
        "trainable": config.get("trainable", True),
        "layers": layers,
    }


def _input_layer(shape: list[Any], dtype: Any, layers: list[Config]) -> Config:
    """Makes the configuration of an input layer."""
    name = str(layers[0]["config"].get("name", layers[0]["class_name"]))
    config = {
        "batch_shape": [None, *shape[1:]],
        "dtype": dtype if isinstance(dtype, str) else "float32",
        "name": f"{name}_input",
    }
    return {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": config,
        "registered_name": None,
    }


def _input_shape(entry: Config) -> list[Any] | None:
    """Returns the shape of the only input of a layer or a model, if stored."""
    config = entry.get("config")
    if isinstance(config, list):
        config = {"layers": config}
    if not isinstance(config, dict):
        return None
    for key in ("batch_input_shape", "batch_shape"):
        if isinstance(config.get(key), list):
            return list(config[key])
    layers = config.get("layers")
    if isinstance(layers, list) and layers and isinstance(layers[0], dict):
        return _input_shape(layers[0])
    shape = config.get("build_input_shape")
    return list(shape) if isinstance(shape, list) else None


def _functional(config: Config, source: _Source) -> Config:
    """Mends a functional model."""
    layers = [
        layer
        if layer.get("class_name") in stored_operations.LAYERS
        else _layer(layer, source)
        for layer in config["layers"]
    ]
    found = config | {"layers": layers}
    found["name"] = _plain(config.get("name", "model"))
    return stored_nodes.connected(found)


def _stock(name: str, config: Config, source: _Source) -> Config:
    """Mends the configuration of one of Keras's own layers."""
    found = {
        key: _value(key, value, source)
        for key, value in config.items()
        if not key.endswith("_initializer") and key != "batch_input_shape"
    }
    if "name" in found:
        found["name"] = _plain(found["name"])
    if name == "InputLayer":
        shape = config.get("batch_input_shape", config.get("batch_shape"))
        if isinstance(shape, list):
            found["batch_shape"] = [None, *shape[1:]]
    if isinstance(found.get("axis"), list) and len(found["axis"]) == 1:
        found["axis"] = found["axis"][0]
    if name == "LeakyReLU" and "alpha" in found:
        found["negative_slope"] = found.pop("alpha")
    if name == "GRU" and source.old:
        found.setdefault("reset_after", False)
    if name == "Lambda":
        found = _lambda(found, source)
    known = _options(name)
    return {
        key: value
        for key, value in found.items()
        if key in known or not _has_no_effect(name, key, value)
    }


def _custom(config: Config, source: _Source) -> Config:
    """Mends the options that Keras 2 gave to layers of the user's own."""
    return {
        key: _value(key, value, source)
        for key, value in config.items()
        if key != "batch_input_shape" and (key, value) != ("dynamic", False)
    }


def _options(name: str) -> set[str]:
    """Returns the options that a class of Keras 3 takes."""
    found: set[str] = set()
    layer = getattr(keras.layers, name, None)
    if layer is None:
        return {
            "name",
            "dtype",
            "factor",
            "interpolation",
            "rate",
            "seed",
            "theta",
        }
    for parent in layer.__mro__:
        parameters = inspect.signature(parent.__init__).parameters
        found |= set(parameters)
        # It takes those of its parents, too.
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def _has_no_effect(name: str, key: str, value: Any) -> bool:
    """Returns whether an option that Keras 3 does not have may be left out.

    Raises:
        Unsupported: If it has an effect.
    """
    if value is None or key in _DERIVED:
        return True
    if any(value == found for found in _WITHOUT_EFFECT.get(key, ())):
        return True
    raise Unsupported(f"a layer {name} has the option {key}={value}")


def _value(key: str, value: Any, source: _Source) -> Any:
    """Mends the value of an option."""
    if key in ("dtype", "dtype_policy") and isinstance(value, dict):
        inner = value.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return inner["name"]
    if isinstance(value, dict) and value.get("type") == "ndarray":
        return value.get("value")
    if key == "activation" or key.endswith("_activation"):
        return _activation(value, source)
    if isinstance(value, dict) and key in ("layer", "backward_layer", "cell"):
        return _layer(value, source)
    if isinstance(value, list) and key == "cells":
        return [_layer(cell, source) for cell in value]
    return value


def _activation(value: Any, source: _Source) -> Any:
    """Mends an activation: a name, or the configuration of a part."""
    if isinstance(value, dict) and value.get("class_name") == "function":
        # TensorFlow's own, such as tf.nn.log_softmax.
        value = value["config"] if value["config"] in _ACTIVATIONS else value
    if isinstance(value, str):
        # Keras 3 has another function under this name.
        if value == "hard_sigmoid" and source.old:
            raise Unsupported("the activation hard_sigmoid of Keras 2")
        return _ACTIVATIONS.get(value, value)
    if isinstance(value, dict) and isinstance(value.get("config"), dict):
        if hasattr(keras.layers, str(value.get("class_name"))):
            return _layer(value, source)
    return value


def _lambda(config: Config, source: _Source) -> Config:
    """Mends a Lambda layer, whose code is checked later."""
    found = {
        key: value
        for key, value in config.items()
        if key not in ("function_type", "module")
        and not key.startswith("output_shape_")
    }
    key = trusted_code.lambda_key(config, source.objects)
    if key is not None:
        found["function"] = _function(key)
    elif isinstance(config.get("function"), list):
        found["function"] = _code(config["function"])
    elif isinstance(config.get("function"), str):
        found["function"] = _function(config["function"])
    if config.get("output_shape_type") == "lambda":
        # Keras 3 infers the shape.
        del found["output_shape"]
    return found


def _function(name: str) -> Config:
    return {
        "module": None,
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }


def _code(function: list[Any]) -> Config:
    code, defaults, closure = function
    config = {"code": code, "defaults": defaults, "closure": closure}
    return {"class_name": "__lambda__", "config": config}


def _plain(name: Any) -> str:
    """Returns a name without the slashes that Keras 3 refuses."""
    return str(name).replace("/", "_")
