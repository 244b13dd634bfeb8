"""The weights of normalization layers, found by the layers' types."""

from typing import Any

import keras

# Keras before 3.9 has no RMSNormalization.
TYPES = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
    )
    if hasattr(keras.layers, name)
)


def normalization_weights(network: keras.Model) -> list[Any]:
    """Returns the scales and offsets of a network's normalization layers.

    A layer counts by its type, or by one that it inherits from: a search for
    names would miss a layer in silence. Layers inside of other layers count.

    Args:
        network: A built `keras.Model`.

    Returns:
        List of trainable `keras.Variable`s.

    Example:
        >>> import keras
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(2)]
        ... )
        >>> network.add(keras.layers.LayerNormalization())
        >>> [v.name for v in normalization_weights(network)]
        ['gamma', 'beta']
    """
    return [
        variable
        for layer in network._flatten_layers()
        if isinstance(layer, TYPES)
        for variable in layer.trainable_variables
    ]
