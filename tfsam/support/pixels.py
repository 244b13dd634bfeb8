"""Checks of pixels: their dtype, and the bounds of an attack.

Attacks clip pixels to their bounds, which would silently change an image
outside them. A value outside the bounds is therefore rejected, unless rounding
errors explain it.
"""

import numpy as np
import tensorflow as tf

from tfsam.support.assertions import behind
from tfsam.support.assertions import required

Bounds = tuple[float, float] | None

# Tolerance in units in the last place: resizing and dividing white images gives
# up to three units above white.
_UNITS = 4


def check_floating(x: tf.Tensor, bounds: Bounds) -> None:
    """Checks that pixels are floats, which attacks can change.

    Args:
        x: Tensor of pixels.
        bounds: (lowest, highest) value, or None, for the message.

    Raises:
        ValueError: If the pixels are of another dtype.
    """
    if not x.dtype.is_floating:
        raise ValueError(
            "x must be of a floating-point dtype, with pixels in "
            f"{bounds}. Received: x.dtype={x.dtype.name}"
        )


def inside_bounds(x: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Clips rounding errors outside the bounds, and rejects larger deviations.

    Args:
        x: Float array of pixels, in the dtype in which they were computed.
        bounds: (lowest, highest) value, or None for inputs that are not images.

    Returns:
        x, clipped if a value lies outside the bounds by at most four units in
        the last place of its dtype.

    Raises:
        ValueError: If a value lies further outside, or is NaN.

    Example:
        >>> inside_bounds(np.float32([0.5, 1 + 1e-7]), (0.0, 1.0)).tolist()
        [0.5, 1.0]
    """
    if bounds is None or x.size == 0:
        return x
    low, high = (np.asarray(bound).astype(x.dtype) for bound in bounds)
    lowest, highest = x.min(), x.max()
    if lowest >= low and highest <= high:
        return x
    slack = _UNITS * rounding(x.dtype, bounds)
    # In float64, so that an infinite half or a NaN is never inside.
    beyond = max(float(low) - float(lowest), float(highest) - float(high))
    if not beyond <= slack:
        raise ValueError(
            f"x must lie in bounds={tuple(map(float, bounds))}; normalisation "
            "belongs inside the model. Received: x in "
            f"[{short(lowest)}, {short(highest)}]"
        )
    return np.clip(x, low, high).astype(x.dtype, copy=False)


def assert_inside(
    x: tf.Tensor, bounds: Bounds, dtype: tf.DType | None = None
) -> tf.Tensor:
    """Clips rounding errors like `inside_bounds`, also in a graph.

    Args:
        x: Float tensor of pixels.
        bounds: (lowest, highest) value, or None.
        dtype: Dtype in which the pixels were computed; None means that of x.

    Returns:
        x, clipped. It is computed only after the assertion that no value lies
        further outside than `inside_bounds` allows.

    Raises:
        ValueError: If the pixels are not floats.
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


def rounding(dtype: tf.DType, bounds: tuple[float, float]) -> float:
    """Returns the unit in the last place of the largest value of an image.

    Args:
        dtype: A floating-point dtype of NumPy or TensorFlow.
        bounds: (lowest, highest) value.
    """
    largest = np.asarray(max(map(abs, bounds)))
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    return float(np.spacing(largest.astype(dtype)))


def short(number: np.generic) -> str:
    """Returns the shortest text that identifies a number of its dtype.

    Args:
        number: A NumPy scalar.

    Example:
        >>> short(np.float32(0.1))
        '0.1'
    """
    if number.dtype.itemsize < 4:
        number = number.astype(np.float32)
    return str(number).removesuffix(".0")
