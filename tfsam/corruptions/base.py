"""Base class of corruptions: the interface, and the constants by severity.

A corruption is any callable

    corruption(image, severity, rng) -> corrupted

made by a factory whose arguments all have defaults:

- `image` is a float array (height, width, channels) with values in [0, 1],
  where channels is 1 or 3, which may not be changed.
- `severity` is 1, 2, 3, 4 or 5.
- `rng` is a `numpy.random.Generator`, the only source of random numbers.
- `corrupted` has the shape of `image` and values in [0, 1].

Several threads may call a corruption at the same time.

`Corruption` is a convenient base class: a subclass implements `corrupt`.
Corruptions of other packages need not use it.
"""

import abc
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.support.registry import Part

SEVERITIES = (1, 2, 3, 4, 5)

# Images of at most so many pixels on the shorter side have the constants of
# 32 x 32, and images of at least so many those of 224 x 224.
_MOST_OF_SMALL = 64
_LEAST_OF_LARGE = 128


class Corruption(Part, abc.ABC):
    """Base class of corruptions: validates, chooses constants, clips.

    Attributes:
        group: "noise", "blur", "weather" or "digital"; "extra" for corruptions
            that "all" leaves out.
        small: The constants of severities 1 to 5 for images of 32 x 32 pixels.
        large: The constants of severities 1 to 5 for images of 224 x 224
            pixels.

    Example:
        >>> import numpy as np
        >>> class Darker(Corruption):
        ...     small = large = (0.1, 0.2, 0.3, 0.4, 0.5)
        ...     def corrupt(self, image, constant, rng):
        ...         return image - constant
        >>> image = np.full((8, 8, 1), 0.25)
        >>> corrupted = Darker()(image, 2, np.random.default_rng(0))
        >>> print(corrupted[0, 0, 0].round(2))
        0.05
    """

    source = "Hendrycks and Dietterich, 2019"
    group: str = "extra"
    small: Sequence[Any] = ()
    large: Sequence[Any] = ()

    def __call__(
        self, image: np.ndarray, severity: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image.

        Args:
            image: Float array (height, width, channels) with values in [0, 1],
                where channels is 1 or 3.
            severity: 1, 2, 3, 4 or 5.
            rng: The source of random numbers.

        Returns:
            Array of the image's shape and dtype with values in [0, 1].

        Raises:
            ValueError: If the image has another shape, or a size for which
                there are no constants, or the severity is another.
        """
        check_severity(severity)
        check_shape(image.shape)
        small = size_of_constants(image.shape) == 32
        constant = (self.small if small else self.large)[severity - 1]
        found = self.corrupt(image.astype(np.float64), constant, rng)
        return np.clip(found, 0.0, 1.0).astype(image.dtype)

    @abc.abstractmethod
    def corrupt(
        self, image: np.ndarray, constant: Any, rng: np.random.Generator
    ) -> np.ndarray:
        """Corrupts an image.

        Args:
            image: Float64 array (height, width, channels) with values in
                [0, 1], a copy.
            constant: The entry of `small` or `large` for the severity.
            rng: The source of random numbers.

        Returns:
            Float array of the image's shape; values outside [0, 1] are clipped.
        """


def check_severity(severity: Any) -> int:
    """Checks that a value is a severity.

    Args:
        severity: The value to check.

    Returns:
        The value as an int.

    Raises:
        ValueError: If it is not 1, 2, 3, 4 or 5.

    Example:
        >>> check_severity(5)
        5
    """
    if isinstance(severity, numbers.Integral) and severity in SEVERITIES:
        return int(severity)
    raise ValueError(
        f"severity must be 1, 2, 3, 4 or 5. Received: severity={severity}"
    )


def size_of_constants(shape: Sequence[int]) -> int:
    """Returns 32 or 224, the side of the images whose constants are used.

    Images of at most 64 pixels on the shorter side have the constants of 32 x
    32, and images of at least 128 pixels those of 224 x 224. In between neither
    would mean the published severity. Blur and motion are in pixels: on images
    of fewer pixels than the constants belong to they are stronger.

    Args:
        shape: (height, width, ...), the shape of an image.

    Raises:
        ValueError: If there are no constants for the size.

    Example:
        >>> size_of_constants((28, 28, 1)), size_of_constants((299, 299, 3))
        (32, 224)
    """
    side = min(shape[:2])
    if side <= _MOST_OF_SMALL:
        return 32
    if side >= _LEAST_OF_LARGE:
        return 224
    raise ValueError(
        f"corruptions have severities for images of at most {_MOST_OF_SMALL} "
        f"or at least {_LEAST_OF_LARGE} pixels on the shorter side; resize "
        "them, in a run by --image_size. "
        f"Received: images of {shape[0]}x{shape[1]} pixels"
    )


def check_shape(shape: Sequence[int]) -> None:
    """Raises a ValueError unless a shape is that of a gray or colour image.

    Args:
        shape: The shape of an image.

    Example:
        >>> check_shape((32, 32, 3))
    """
    if len(shape) != 3 or shape[2] not in (1, 3) or min(shape) < 1:
        raise ValueError(
            "corruptions take images of shape (height, width, 1) or (height, "
            f"width, 3). Received: an image of shape {tuple(shape)}"
        )
