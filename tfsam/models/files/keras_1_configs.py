"""Layers of Keras 1 under the names of Keras 2."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfsam.models.files.stored_operations import Unsupported

Config = dict[str, Any]

_CLASSES = {
    "AtrousConvolution2D": "Conv2D",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
}
_MERGES = {
    "ave": "Average",
    "concat": "Concatenate",
    "max": "Maximum",
    "mul": "Multiply",
    "sum": "Add",
}
_OPTIONS = {
    "W_regularizer": "kernel_regularizer",
    "atrous_rate": "dilation_rate",
    "b_regularizer": "bias_regularizer",
    "bias": "use_bias",
    "border_mode": "padding",
    "concat_axis": "axis",
    "filter_length": "kernel_size",
    "input_dtype": "dtype",
    "nb_filter": "filters",
    "p": "rate",
    "pool_length": "pool_size",
    "sigma": "stddev",
    "stride": "strides",
    "subsample": "strides",
    "subsample_length": "strides",
}
_DATA_FORMATS = {
    "default": None,
    "tf": "channels_last",
    "th": "channels_first",
}
# Options that do not change what a layer with stored weights computes.
_LEFT_OUT = (
    "W_constraint",
    "arguments",
    "b_constraint",
    "beta_init",
    "dot_axes",
    "gamma_init",
    "init",
    "input_dim",
    "input_length",
    "mode",
    "mode_type",
    "nb_col",
    "nb_row",
    "output_mask",
    "output_mask_type",
    "output_shape",
    "output_shape_type",
    "weights",
)


def modern(entry: Config) -> Config:
    """Returns the configuration of a layer of Keras 1 as Keras 2 stores it.

    Args:
        entry: The configuration with its class. A model, which Keras 2 stores
            alike, is returned as it is.

    Raises:
        Unsupported: If it cannot be stored exactly.
    """
    name, config = str(entry.get("class_name")), entry.get("config")
    if not isinstance(config, dict) or "layers" in config or name == "Lambda":
        return entry
    if name == "BatchNormalization" and config.get("mode", 0) != 0:
        raise Unsupported("a BatchNormalization of Keras 1 with mode=1 or 2")
    found = {
        _OPTIONS.get(key, key): _value(key, value)
        for key, value in config.items()
        if key not in (*_LEFT_OUT, "dim_ordering", "output_dim")
    }
    if "dim_ordering" in config:
        found["data_format"] = _DATA_FORMATS[config["dim_ordering"]]
    if "output_dim" in config:
        key = "units" if name == "Dense" else "output_dim"
        found[key] = config["output_dim"]
    if "nb_row" in config:
        found["kernel_size"] = [config["nb_row"], config["nb_col"]]
    if name == "Merge":
        name = _merge(config)
        if name != "Concatenate":
            found.pop("axis", None)
    name = _CLASSES.get(name, name)
    return entry | {"class_name": name, "config": found}


def _merge(config: Mapping[str, Any]) -> str:
    mode = config.get("mode")
    if mode not in _MERGES:
        raise Unsupported(f"a Merge layer of Keras 1 with mode={mode}")
    return _MERGES[mode]


def _value(key: str, value: Any) -> Any:
    """Returns the value of an option of Keras 1 as Keras 2 stores it."""
    if key.endswith("_regularizer") and isinstance(value, dict):
        parts = {part: value.get(part, 0.0) for part in ("l1", "l2")}
        return {"class_name": "L1L2", "config": parts}
    if key == "border_mode" and value not in ("same", "valid"):
        raise Unsupported(f"border_mode={value} of Keras 1")
    return value


def is_of_keras_1(text: str) -> bool:
    """Returns whether a configuration without a version is of Keras 1.

    Args:
        text: The configuration of the model, as JSON.
    """
    return any(
        f'"{key}"' in text for key in ("border_mode", "dim_ordering", "nb_row")
    )


def kernel(
    layer: Any, stored: Any, version: str | None, backend: str | None
) -> Any:
    """Returns a stored weight of a layer in the layout of Keras 3.

    In Keras 1, the channels came first in kernels where they did in images.
    Theano flips the kernels of its convolutions.

    Args:
        layer: The layer.
        stored: One of its weights.
        version: The version of Keras, or None.
        backend: The library on which Keras ran, or None.

    Raises:
        Unsupported: If it is not known whether kernels are flipped, or the
            layer pads otherwise than TensorFlow.
    """
    if len(stored.shape) != 4 or not isinstance(layer, keras.layers.Layer):
        return stored
    oldest = str(version).startswith("1")
    first = oldest and getattr(layer, "data_format", "") == "channels_first"
    if backend != "theano" and not first:
        return stored
    if backend is None or not isinstance(layer, keras.layers.Conv2D):
        raise Unsupported(f"kernels of {layer.name} on backend {backend}")
    if backend == "theano" and layer.padding == "same" and _is_uneven(layer):
        raise Unsupported(f"the padding of layer {layer.name} in Theano")
    values = np.asarray(stored)
    values = values.transpose(2, 3, 1, 0) if first else values
    return values[::-1, ::-1] if backend == "theano" else values


def _is_uneven(layer: Any) -> bool:
    """Returns whether the two sides of an image may be padded unevenly."""
    even = any(size % 2 == 0 for size in layer.kernel_size)
    return even or any(step != 1 for step in layer.strides)
