"""The layers of a network, and the range of the pixels that they receive."""

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfsam.support.validators import Bounds
from tfsam.support.validators import bounds_text

# Pixels within a smaller range after a Rescaling were probably in another range
# than the layer expects.
LEAST_RANGE = 0.02


def flattened(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yields a layer and all layers inside it.

    Args:
        layer: A Keras layer or model.

    Example:
        >>> network = keras.Sequential([keras.layers.Flatten(name="flat")])
        >>> [layer.name for layer in flattened(network)][1:]
        ['flat']
    """
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from flattened(part)


def rescaled(network: Any, width: float) -> float:
    """Returns the width of the pixels' range at the first layer with weights.

    Args:
        network: A `keras.Model`; any other object has no layers.
        width: Width of the range of the pixels.

    Returns:
        The width after the network's leading `Rescaling` layers; infinity if
        there are none.
    """
    scale, found = 1.0, False
    layers = flattened(network) if isinstance(network, keras.Model) else ()
    for layer in layers:
        if getattr(layer, "layers", ()):
            continue  # Its parts follow.
        if isinstance(layer, keras.layers.Rescaling):
            scale *= float(np.mean(layer.scale))
            found = True
        elif layer.weights or isinstance(layer, keras.layers.Normalization):
            break
    return abs(scale) * width if found else np.inf


def warn_of_rescaling(network: keras.Model, bounds: Bounds) -> None:
    """Warns if a network seems to expect other pixels than an attack's bounds.

    Args:
        network: The network.
        bounds: (lowest, highest) value of the pixels, or None.
    """
    seen = np.inf
    if bounds is not None:
        width = float(np.max(np.subtract(bounds[1], bounds[0])))
        seen = rescaled(network, width)
    if seen < LEAST_RANGE:
        warnings.warn(
            "The network begins with a Rescaling layer, after which all pixels "
            f"within the attack's bounds={bounds_text(bounds)} lie within "
            f"{seen:.2g} of each other. Likely cause: the network expects "
            "pixels in 0..255 and is given pixels in [0, 1]. Remove the layer, "
            "or give the attack bounds=(0, 255) and an epsilon in the same "
            "units.",
            stacklevel=3,
        )
