"""Means and standard deviations of pixels, and the layer that uses them."""

from collections.abc import Sequence
from typing import Any

from keras import layers

CIFAR10_STATISTICS = (
    (0.4914, 0.4822, 0.4465),
    (0.2471, 0.2435, 0.2616),
)
CIFAR100_STATISTICS = (
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
)

# Means and standard deviations of the channels, or "none".
Statistics = tuple[Sequence[float], Sequence[float]] | str


def normalized(
    pixels: Any, statistics: Statistics | None, num_classes: int
) -> Any:
    """Normalises each channel of pixels in [0, 1].

    Args:
        pixels: `keras.Input` of shape (batch, height, width, channels).
        statistics: (means, standard deviations) of the channels, or "none" to
            leave the pixels as they are. None means the statistics of CIFAR-100
            for 100 classes and of CIFAR-10 otherwise, and (0.5, 0.25) for
            images that are not RGB.
        num_classes: Number of classes of the data.

    Returns:
        Keras tensor of the same shape.

    Raises:
        ValueError: If `statistics` is another word.

    Example:
        >>> import keras
        >>> pixels = keras.Input((8, 8, 3))
        >>> normalized(pixels, "none", 10) is pixels
        True
        >>> normalized(pixels, ((0.5,) * 3, (0.25,) * 3), 10).shape
        (None, 8, 8, 3)
    """
    if isinstance(statistics, str):
        if statistics != "none":
            raise ValueError(
                "statistics must be (means, standard deviations), or none to "
                "leave pixels as they are. "
                f"Received: statistics={statistics}"
            )
        return pixels
    mean, deviation = statistics or _default(num_classes, pixels.shape[-1])
    return layers.Normalization(
        mean=list(mean),
        variance=[float(s) ** 2 for s in deviation],
        name="normalization",
    )(pixels)


def _default(
    num_classes: int, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the means and standard deviations that are used by default."""
    if channels == 3:
        return CIFAR100_STATISTICS if num_classes == 100 else CIFAR10_STATISTICS
    return (0.5,) * channels, (0.25,) * channels
