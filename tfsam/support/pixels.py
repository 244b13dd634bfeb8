"""Checks of pixels: their type, and the bounds of an attack.

Pixels outside the bounds would be clipped silently, which changes the image.
Rounding errors of a few units in the last place are clipped; anything further
out is refused.
"""

import numpy as np
import tensorflow as tf

from tfsam.support.assertions import behind
from tfsam.support.assertions import required

# Resizing and dividing white images gives up to three units in the last place
# above white.
_UNITS = 4


def check_floating(x, bounds):
    """Refuses pixels that are no floats: no attack can move them.

    Args:
        x: tensor of pixels.
        bounds: (lowest, highest) value, or None, for the message.

    Raises:
        ValueError: if they are of another dtype.
    """
    if not x.dtype.is_floating:
        raise ValueError(
            "x must be of a floating-point dtype, with pixels in "
            f"{bounds}. Received: x.dtype={x.dtype.name}"
        )


def inside_bounds(x, bounds):
    """Clips rounding errors beyond the bounds and refuses anything further.

    Args:
        x: float array of pixels, in the type in which they were computed.
        bounds: (lowest, highest) value, or None for inputs that are not images.

    Returns:
        x, clipped where a value lies beyond the bounds by at most four units
        in the last place of x's type.

    Raises:
        ValueError: if a value lies further out, or is NaN.
    """
    if bounds is None or x.size == 0:
        return x
    low, high = (np.asarray(bound).astype(x.dtype) for bound in bounds)
    lowest, highest = x.min(), x.max()
    if lowest >= low and highest <= high:
        return x
    slack = _UNITS * rounding(x.dtype, bounds)
    # Compared in float64: an infinity of halves or a NaN is never inside.
    beyond = max(float(low) - float(lowest), float(highest) - float(high))
    if not beyond <= slack:
        raise ValueError(
            f"x must lie in bounds={tuple(map(float, bounds))}; normalisation "
            "belongs inside the model. Received: x in "
            f"[{short(lowest)}, {short(highest)}]"
        )
    return np.clip(x, low, high).astype(x.dtype, copy=False)


def assert_inside(x, bounds, dtype=None):
    """Clips rounding errors beyond the bounds, and asserts the rest.

    Args:
        x: float tensor of pixels.
        bounds: (lowest, highest) value, or None.
        dtype: the type in which the pixels were computed; None is x's.

    Returns:
        x, clipped, behind a `required` that nothing lies further out than
        `inside_bounds` allows.

    Raises:
        ValueError: if they are no floats.
    """
    check_floating(x, bounds)
    if bounds is None:
        return x
    low, high = map(float, bounds)
    slack = _UNITS * rounding(dtype or x.dtype, bounds)
    held = required(
        tf.reduce_all((x >= low - slack) & (x <= high + slack)),
        f"x must lie in bounds=({low}, {high}), those of the attack; "
        "normalisation is a layer of the network, or give the attack other "
        "bounds. Received: x",
        x,
    )
    return behind([held], tf.clip_by_value(x, low, high))


def rounding(dtype, bounds):
    """Returns the unit in the last place of the largest value of an image.

    Args:
        dtype: a floating-point dtype, NumPy's or TensorFlow's.
        bounds: (lowest, highest) value.
    """
    largest = np.asarray(max(map(abs, bounds)))
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    return float(np.spacing(largest.astype(dtype)))


def short(number):
    """Returns the shortest text that no other number of its type has.

    Args:
        number: a scalar of NumPy.
    """
    if number.dtype.itemsize < 4:
        number = number.astype(np.float32)
    return str(number).removesuffix(".0")
