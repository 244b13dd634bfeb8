"""Filters that several corruptions use: motion along a line, and zoom."""

import functools
import math

import numpy as np


def motion(
    image: np.ndarray, reach: int, sigma: float, angle: float
) -> np.ndarray:
    """Averages along a line that begins at each pixel.

    As in ImageMagick's motion blur, which the benchmark uses, the weights are
    one half of a Gaussian, the line is sampled at the nearest pixels, and the
    border is repeated.

    Args:
        image: Float array (height, width, channels).
        reach: Half of the length of the line, in pixels: it has 2 * reach + 1
            samples.
        sigma: The standard deviation of the Gaussian, in pixels.
        angle: The direction of the line, in degrees: 0 is to the right, 90
            downwards.

    Returns:
        Float array of the same shape.

    Example:
        >>> import numpy as np
        >>> line = np.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 4, 1)
        >>> motion(line, 1, 100.0, 0.0).ravel().round(2).tolist()
        [0.33, 0.67, 1.0, 1.0]
    """
    steps = np.arange(2 * reach + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    radians = math.radians(angle)
    # Halves are rounded down.
    across = np.ceil(steps * math.cos(radians) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(radians) - 0.5).astype(int)
    margin = 2 * reach
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge")
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for weight, x, y in zip(weights, across, down, strict=True):
        top, left = margin + y, margin + x
        total += weight * padded[top : top + height, left : left + width]
    return total


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the centre of an image to the size of the image.

    The centre is a whole number of pixels. The values between its pixels are
    interpolated linearly, so that its corners stay corners.

    Args:
        image: Float array (height, width, channels).
        factor: The factor of enlargement, >= 1.

    Returns:
        Float array of the same shape.

    Example:
        >>> import numpy as np
        >>> line = np.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 4, 1)
        >>> zoomed(line, 2.0).ravel().round(2).tolist()
        [0.0, 0.33, 0.67, 1.0]
    """
    found = image
    for axis in (0, 1):
        below, above, share = _places(image.shape[axis], factor)
        low, high = (np.take(found, part, axis) for part in (below, above))
        weights = share[:, None, None] if axis == 0 else share[:, None]
        found = low + (high - low) * weights
    return found


@functools.lru_cache(maxsize=256)
def _places(
    size: int, factor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the places of a line that its enlarged centre reads.

    Returns:
        (below, above, share): for each of the pixels the two neighbours, and
        the share of the second, arrays (size,).
    """
    inner = math.ceil(size / factor)
    start = (size - inner) // 2
    outer = round(inner * factor)
    first = (outer - size) // 2
    places = np.arange(first, first + size) * (inner - 1) / max(outer - 1, 1)
    below = np.minimum(places.astype(int), max(inner - 2, 0))
    above = np.minimum(below + 1, inner - 1)
    found = (start + below, start + above, places - below)
    for array in found:  # They are shared by all calls.
        array.setflags(write=False)
    return found
