"""The endings of networks: a softmax or a sigmoid, recognised by the layers.

Attacks on probabilities suffer from vanishing gradients, and a loss that takes
logits trains badly on them. The ending of a `Lambda` or a subclassed layer is
unknown; the module `outputs` checks their values.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

_L = keras.layers


def _operation(function: Callable[..., Any], *arguments: Any) -> type:
    """Returns the class of the operation that a Keras function records."""
    output = function(keras.KerasTensor((1, 2)), *arguments)
    return type(output._keras_history.operation)


_FUNCTIONS = (keras.ops.softmax, keras.ops.sigmoid, keras.ops.hard_sigmoid)

# Layers and operations that return probabilities, and functions that do so as
# the activation of a layer.
_ENDINGS = (_L.Softmax, *map(_operation, _FUNCTIONS))
_APPLIED = (
    *_FUNCTIONS,
    keras.activations.softmax,
    keras.activations.sigmoid,
    keras.activations.hard_sigmoid,
    keras.activations.sparsemax,
    tf.nn.softmax,
    tf.nn.sigmoid,
)

# Layers and operations that return their inputs in inference mode, or means or
# maxima of them, possibly in another order or dtype.
_SAME_VALUES = (
    _L.ActivityRegularization,
    _L.AlphaDropout,
    _L.Cropping1D,
    _L.Cropping2D,
    _L.Cropping3D,
    _L.Dropout,
    _L.Flatten,
    _L.GaussianDropout,
    _L.GaussianNoise,
    _L.GlobalAveragePooling1D,
    _L.GlobalAveragePooling2D,
    _L.GlobalAveragePooling3D,
    _L.GlobalMaxPooling1D,
    _L.GlobalMaxPooling2D,
    _L.GlobalMaxPooling3D,
    _L.Identity,
    _L.Masking,
    _L.Permute,
    _L.RepeatVector,
    _L.Reshape,
    _L.SpatialDropout1D,
    _L.SpatialDropout2D,
    _L.SpatialDropout3D,
    _operation(keras.ops.cast, "float16"),
    _operation(keras.ops.clip, 0, 1),
    _operation(keras.ops.copy),
    _operation(keras.ops.expand_dims, -1),
    _operation(keras.ops.ravel),
    _operation(keras.ops.reshape, (2, 1)),
    _operation(keras.ops.squeeze, 0),
    _operation(keras.ops.stop_gradient),
    _operation(keras.ops.transpose),
    _operation(lambda x: x[:, :1]),
)

# The same for several inputs.
_MIXTURES = (_L.Average, _L.Concatenate, _L.Maximum, _L.Minimum)


def in_probabilities(network: keras.Model) -> list[bool | None]:
    """Returns for each output of a network whether it holds probabilities.

    Args:
        network: The network.

    Returns:
        A list with True, False or None (unknown) for each output. It is empty
        if the network has no graph of layers.

    Example:
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, "softmax")]
        ... )
        >>> in_probabilities(network)
        [True]
    """
    outputs = tf.nest.flatten(getattr(network, "outputs", None) or [])
    if not outputs and isinstance(network, keras.Sequential) and network.layers:
        return [_of_operation(network.layers[-1], [], 0)]
    return [_of_tensor(output) for output in outputs]


def _of_tensor(tensor: keras.KerasTensor) -> bool | None:
    operation, node, position = tensor._keras_history
    nodes = getattr(operation, "_inbound_nodes", [])
    inputs = nodes[node].input_tensors if node < len(nodes) else []
    return _of_operation(operation, inputs, position)


def _of_operation(
    operation: Any, inputs: Sequence[keras.KerasTensor], position: int
) -> bool | None:
    """Returns whether an operation's output at a position is probabilities."""
    if isinstance(operation, keras.Model):
        found = in_probabilities(operation)
        return found[position] if position < len(found) else None
    if isinstance(operation, (_L.TimeDistributed, _L.SpectralNormalization)):
        return _of_operation(operation.layer, inputs, position)
    if isinstance(operation, _MIXTURES):
        found = [_of_tensor(tensor) for tensor in inputs]
        return found[0] if found and len(set(found)) == 1 else None
    activation = getattr(operation, "activation", None)
    linear = activation is keras.activations.linear
    if isinstance(operation, _SAME_VALUES) or (
        linear and isinstance(operation, _L.Activation)
    ):
        return _of_tensor(inputs[0]) if inputs else None
    if (
        isinstance(operation, _ENDINGS)
        or isinstance(activation, _ENDINGS)
        or any(activation is function for function in _APPLIED)
    ):
        return True
    return False if linear else None
