"""Checks of pixels: their dtype, and the bounds of an attack.

Attacks clip pixels to their bounds, which would silently change an image
outside them. A value outside the bounds is therefore rejected, unless rounding
errors explain it.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.support.assertions import behind
from tfsam.support.assertions import required
from tfsam.support.validators import Bounds
from tfsam.support.validators import bounds_text

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
            f"{bounds_text(bounds)}. Received: x.dtype={x.dtype.name}"
        )


def inside_bounds(x: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Clips rounding errors outside the bounds, and rejects larger deviations.

    Args:
        x: Float array (batch, ...) of pixels, in the dtype in which they were
            computed.
        bounds: (lowest, highest) value, or None for inputs that are not images.

    Returns:
        x, clipped if a value lies outside the bounds by at most four units in
        the last place of its dtype.

    Raises:
        ValueError: If a value lies further outside, or is NaN, or if the bounds
            do not broadcast against an image.

    Example:
        >>> inside_bounds(np.float32([0.5, 1 + 1e-7]), (0.0, 1.0)).tolist()
        [0.5, 1.0]
    """
    if bounds is None or x.size == 0:
        return x
    low, high = (np.asarray(bound).astype(x.dtype) for bound in bounds)
    each = bool(low.ndim or high.ndim)
    if each:
        check_shape(bounds, x.shape[1:])
        beyond = _farthest_outside(x, low, high)
    else:
        lowest, highest = x.min(), x.max()
        # In float64, so that an infinite half or a NaN is never inside.
        beyond = max(float(low) - float(lowest), float(highest) - float(high))
    if beyond <= 0:
        return x
    if not beyond <= _UNITS * rounding(x.dtype, bounds):
        received = (
            f"a value that is {beyond:g} outside"
            if each
            else f"x in [{short(lowest)}, {short(highest)}]"
        )
        raise ValueError(
            f"x must lie in bounds={bounds_text(bounds)}; normalisation "
            f"belongs inside the model. Received: {received}"
        )
    return np.clip(x, low, high).astype(x.dtype, copy=False)


def _farthest_outside(
    x: np.ndarray, low: np.ndarray, high: np.ndarray
) -> float:
    """Returns how far values lie outside bounds of their own, NaN for a NaN."""
    wide = x.astype(np.float64)
    return float(np.maximum(low - wide, wide - high).max())


def check_shape(bounds: Bounds, shape: Any) -> None:
    """Checks that bounds broadcast against an image.

    Args:
        bounds: (lowest, highest) value, or None.
        shape: Shape of an image, without the batch.

    Raises:
        ValueError: If they do not.

    Example:
        >>> check_shape(((0.0, 0.0, -1.0), 1.0), (32, 32, 3))
    """
    for end in bounds or ():
        own, image = tf.TensorShape(np.shape(end)), tf.TensorShape(shape)
        if not own.rank or image.rank is None:
            continue
        try:
            both = tf.broadcast_static_shape(own, image)
        except ValueError:
            both = None
        if (
            both is None
            or both.rank > image.rank
            or not both.is_compatible_with(image)
        ):
            raise ValueError(
                "bounds must be two numbers, or arrays that broadcast against "
                f"an image of shape {tuple(image)}. Received: bounds of shape "
                f"{tuple(own)}"
            )


def assert_inside(
    x: tf.Tensor, bounds: Bounds, dtype: tf.DType | None = None
) -> tf.Tensor:
    """Clips rounding errors like `inside_bounds`, also in a graph.

    Args:
        x: Float tensor (batch, ...) of pixels.
        bounds: (lowest, highest) value, or None.
        dtype: Dtype in which the pixels were computed; None means that of x.

    Returns:
        x, clipped. It is computed only after the assertion that no value lies
        further outside than `inside_bounds` allows.

    Raises:
        ValueError: If the pixels are not floats, or the bounds do not broadcast
            against an image.
    """
    check_floating(x, bounds)
    if bounds is None:
        return x
    check_shape(bounds, x.shape[1:])
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    slack = _UNITS * rounding(dtype or x.dtype, bounds)
    least = tf.constant(low - slack, x.dtype)
    most = tf.constant(high + slack, x.dtype)
    held = required(
        tf.reduce_all((x >= least) & (x <= most)),
        f"x must lie in bounds={bounds_text(bounds)}, those of the attack; "
        "normalisation is a layer of the network, or give the attack other "
        "bounds. Received: x",
        x,
    )
    return behind(
        [held],
        tf.clip_by_value(
            x, tf.constant(low, x.dtype), tf.constant(high, x.dtype)
        ),
    )


def rounding(dtype: tf.DType, bounds: tuple[Any, Any]) -> float:
    """Returns the unit in the last place of the largest value of an image.

    Args:
        dtype: A floating-point dtype of NumPy or TensorFlow.
        bounds: (lowest, highest) value.
    """
    largest = np.asarray(max(float(np.abs(bound).max()) for bound in bounds))
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
