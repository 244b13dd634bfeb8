"""Keras networks, without the softmax or sigmoid at their end.

The layers of the network are shared, except for a last layer with weights and
an activation: it is copied, with a linear activation.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.models.logits.graphs import over_classes
from tfsam.models.logits.probabilities import called
from tfsam.models.logits.probabilities import probes

_L = keras.layers

# Layers whose activation is the last of their operations.
_ACTIVATED = (
    _L.Activation,
    _L.Conv1D,
    _L.Conv1DTranspose,
    _L.Conv2D,
    _L.Conv2DTranspose,
    _L.Conv3D,
    _L.Conv3DTranspose,
    _L.Dense,
    _L.DepthwiseConv1D,
    _L.DepthwiseConv2D,
    _L.EinsumDense,
    _L.SeparableConv1D,
    _L.SeparableConv2D,
)


def _operation(function: Any, *arguments: Any) -> type:
    """Returns the class of the operation that a Keras function records."""
    output = function(keras.KerasTensor((1, 2)), *arguments)
    return type(output._keras_history.operation)


# Layers and operations that return their inputs in inference mode, possibly in
# another shape or dtype.
_SAME_VALUES = (
    _L.ActivityRegularization,
    _L.AlphaDropout,
    _L.Dropout,
    _L.Flatten,
    _L.GaussianDropout,
    _L.GaussianNoise,
    _L.Identity,
    _L.Permute,
    _L.Reshape,
    _L.SpatialDropout1D,
    _L.SpatialDropout2D,
    _L.SpatialDropout3D,
    _operation(keras.ops.cast, "float16"),
    _operation(keras.ops.copy),
    _operation(keras.ops.expand_dims, -1),
    _operation(keras.ops.reshape, (2, 1)),
    _operation(keras.ops.squeeze, 0),
)

_SOFTMAX: Any = (_L.Softmax, _operation(keras.ops.softmax))
_SIGMOID: Any = (_operation(keras.ops.sigmoid),)
_SOFTMAX_FUNCTIONS = (
    keras.activations.softmax,
    keras.ops.softmax,
    tf.nn.softmax,
)
_SIGMOID_FUNCTIONS = (
    keras.activations.sigmoid,
    keras.ops.sigmoid,
    tf.nn.sigmoid,
)


def has_graph(model: keras.Model) -> bool:
    """Returns whether a model is a graph of layers and nothing else.

    A class of the user's whose `call` is its own is not, even where it was made
    from inputs and outputs.

    Args:
        model: A Keras model.
    """
    # Keras's own `call`, not one of a subclass.
    own = type(model).call.__module__.startswith("keras.src.models.")
    return own and bool(getattr(model, "inputs", None))


def maps(model: keras.Model, output: keras.KerasTensor) -> bool:
    """Returns whether a functional model maps a tensor to an output of it.

    Args:
        model: A functional model with one input.
        output: The output.

    Returns:
        False if it has other outputs, or takes or returns a list or a dict.
    """
    structures = [getattr(model, key, None) for key in ("input", "output")]
    bare = not any(isinstance(s, (dict, list, tuple)) for s in structures)
    return bare and len(model.outputs) == 1 and model.outputs[0] is output


def before_ending(
    output: keras.KerasTensor, classes: int
) -> tuple[keras.KerasTensor, str] | None:
    """Returns the values before the softmax or sigmoid of an output.

    Only layers that keep the values may follow it. A softmax must be over all
    of the classes.

    Args:
        output: Output of a functional model.
        classes: Number of classes.

    Returns:
        A symbolic tensor of the same model's inputs, with the name "softmax" or
        "sigmoid"; or None.
    """
    operation, number, position = output._keras_history
    node = operation._inbound_nodes[number]
    if isinstance(operation, keras.Model):
        return _before_ending_of_model(operation, node, position, classes)
    if len(node.input_tensors) != 1 or not _is_stock(operation):
        return None
    (values,) = node.input_tensors
    if isinstance(operation, _SAME_VALUES) or (
        isinstance(operation, _L.Activation)
        and operation.activation is keras.activations.linear
    ):
        return before_ending(values, classes)
    kind, axis = _ending(operation)
    if kind == "softmax" and not over_classes(output.shape, axis, classes):
        return None
    if kind is None:
        return None
    if getattr(operation, "weights", ()):
        values = _linear(operation, output)(values)
    return values, kind


def _before_ending_of_model(
    model: keras.Model, node: Any, position: int, classes: int
) -> tuple[keras.KerasTensor, str] | None:
    """Does the same for an output of a model inside another."""
    if not has_graph(model):
        return None
    found = before_ending(model.outputs[position], classes)
    if found is None:
        return None
    values, kind = found
    part = built(model, values, _unused_name(model.name, node.input_tensors))
    images = node.input_tensors[: len(model.inputs)]
    training = node.arguments.kwargs.get("training")
    return part(
        images if len(images) > 1 else images[0], training=training
    ), kind


def built(
    model: keras.Model, output: keras.KerasTensor, name: str | None = None
) -> keras.Model:
    """Builds a functional model of another's inputs and layers.

    Args:
        model: A functional model.
        output: A symbolic tensor made of its inputs.
        name: Name of the new model, None for that of the other one.
    """
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, output, name=name or model.name)


def _is_stock(operation: Any) -> bool:
    """Returns whether Keras itself computes an operation, in full precision."""
    return (
        type(operation).call.__module__.startswith("keras.")
        and not getattr(operation, "lora_enabled", False)
        and getattr(operation, "quantization_mode", None) is None
    )


def _ending(operation: Any) -> tuple[str | None, Any]:
    """Returns how an operation ends, and the axis of a softmax."""
    last: Any = operation
    if isinstance(operation, _ACTIVATED):
        last = operation.activation
    if isinstance(last, _SOFTMAX):
        return "softmax", last.axis
    if any(last is function for function in _SOFTMAX_FUNCTIONS):
        return "softmax", -1
    if isinstance(last, _SIGMOID) or any(
        last is function for function in _SIGMOID_FUNCTIONS
    ):
        return "sigmoid", None
    return None, None


def _linear(layer: keras.Layer, output: keras.KerasTensor) -> keras.Layer:
    """Returns a copy of a layer and its weights with a linear activation."""
    operation, number, _ = output._keras_history
    (values,) = operation._inbound_nodes[number].input_tensors
    config = layer.get_config()
    for key in config:
        # These may be the user's own, and are not needed any more.
        if key.endswith(("_initializer", "_regularizer", "_constraint")):
            config[key] = "zeros" if key.endswith("_initializer") else None
    config["activation"] = "linear"
    config["name"] = _unused_name(layer.name, [values])
    copied = type(layer).from_config(config)
    copied.build(values.shape)
    copied.set_weights(layer.get_weights())
    return copied


def upstream(
    tensors: Sequence[keras.KerasTensor],
) -> dict[str, keras.KerasTensor]:
    """Returns the outputs of all operations that tensors are made of.

    Args:
        tensors: Symbolic tensors.

    Returns:
        The tensors, and those before them, by the names of their operations.
    """
    found: dict[str, keras.KerasTensor] = {}
    seen: set[int] = set()
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop(0)
        if id(tensor) not in seen:
            seen.add(id(tensor))
            operation, number, _ = tensor._keras_history
            found.setdefault(operation.name, tensor)
            waiting.extend(operation._inbound_nodes[number].input_tensors)
    return found


def _unused_name(name: str, tensors: Sequence[keras.KerasTensor]) -> str:
    """Returns a name that no operation before some tensors has."""
    taken = upstream(tensors)
    name += "_logits"
    while name in taken:
        name += "_logits"
    return name


def with_float_input(model: keras.Model) -> keras.Model | None:
    """Returns a copy of a functional model of integers that takes floats.

    Args:
        model: A functional model with one input.

    Returns:
        A model with the same weights; None if a copy cannot be made, has other
        outputs for whole numbers, or no gradients.
    """
    (images,) = model.inputs
    floats = keras.Input(batch_shape=images.shape, dtype="float32")
    structure = getattr(model, "input", images)
    tensors = keras.tree.map_structure(lambda _: floats, structure)
    x = tf.constant(probes(tuple(images.shape[1:]), images.dtype))
    try:
        copied = keras.models.clone_model(model, input_tensors=tensors)
        copied.set_weights(model.get_weights())

        @tf.function(autograph=False)
        def with_slopes(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
            values = called(copied, x)
            return values, tf.gradients(values, x)[0]

        values, slopes = with_slopes(x)
        own = called(model, tf.cast(x, images.dtype))
    except Exception:
        # A user's layer may raise anything. The model's graph is used instead.
        return None
    equal = np.allclose(values, own, rtol=1e-4, atol=1e-5)
    return copied if equal and slopes is not None else None
