"""The layers of a network, and the range of pixels that they receive."""

import warnings

import keras
import numpy as np

# Pixels that lie closer together behind a Rescaling were in another range.
LEAST_RANGE = 0.02


def flattened(layer):
    """Yields a layer and all that it holds.

    Args:
        layer: a Keras layer or model.
    """
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from flattened(part)


def rescaled(network, width):
    """Returns how wide a range of pixels is at the first layer with weights.

    Args:
        network: a `keras.Model`; anything else has no layers.
        width: of the range of the pixels.

    Returns:
        A float, the width behind the network's leading `Rescaling` layers;
        infinity where it has none.
    """
    scale, found = 1.0, False
    layers = flattened(network) if isinstance(network, keras.Model) else ()
    for layer in layers:
        if getattr(layer, "layers", ()):
            continue  # Its parts come next.
        if isinstance(layer, keras.layers.Rescaling):
            scale *= float(np.mean(layer.scale))
            found = True
        elif layer.weights or isinstance(layer, keras.layers.Normalization):
            break
    return abs(scale) * width if found else np.inf


def warn_of_rescaling(network, bounds):
    """Warns of a network for pixels of another range than an attack's bounds.

    Args:
        network: a `keras.Model`.
        bounds: (lowest, highest) value of the pixels, or None.
    """
    seen = (
        np.inf if bounds is None else rescaled(network, bounds[1] - bounds[0])
    )
    if seen < LEAST_RANGE:
        warnings.warn(
            "network begins with a Rescaling layer, behind which pixels within "
            f"the attack's bounds={bounds} lie within {seen:.2g} of each other."
            " Likely cause: a network for pixels in 0..255 that is given "
            "pixels in [0, 1]. Take the layer off, or give the attack the "
            "bounds (0, 255) and epsilon in their units.",
            stacklevel=3,
        )
