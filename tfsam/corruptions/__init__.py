"""Corruptions of images by name: noise, blur, weather and digital artefacts.

    corrupted = tfsam.corruptions.corrupted(x, "motion_blur", severity=3)

The kinds and their five severities are those of Hendrycks and Dietterich, 2019
(arXiv 1903.12261), in tfsam's own implementation. The results are not those of
CIFAR-10-C or ImageNet-C, whose images were made by other programs, and frost,
which needs photographs, is left out. `tfsam.evaluate_corruptions` measures the
accuracy on corrupted images.

Corruptions of other packages are entry points of the group `tfsam.corruptions`
in package metadata. See `tfsam.corruptions.base` for their interface.
"""

from collections.abc import Callable
from typing import Any

from tfsam import registries
from tfsam.corruptions.base import SEVERITIES
from tfsam.corruptions.base import Corruption
from tfsam.corruptions.images import corrupted
from tfsam.corruptions.selection import GROUPS
from tfsam.corruptions.selection import LEFT_OUT
from tfsam.corruptions.selection import chosen

names = registries.CORRUPTIONS.names


def get(name: str, **options: Any) -> Callable[..., Any]:
    """Makes a corruption by name.

    Args:
        name: A name from `names()`, in any case.
        **options: Arguments of the constructor; tfsam's own have none.

    Returns:
        A callable (image, severity, rng) -> corrupted, from a float array
        (height, width, channels) with values in [0, 1], an integer from 1 to 5
        and a `numpy.random.Generator` to an array of the same shape. Unlike the
        result of `corrupted`, it is not rounded to 8 bits.

    Raises:
        ValueError: If the name or an option is unknown, or two packages
            register the name.
        ImportError: If the package of the corruption cannot be imported.

    Example:
        >>> import numpy as np
        >>> image = np.array([0.0, 1.0]).reshape(1, 2, 1)
        >>> contrast = get("contrast")
        >>> contrast(image, 2, np.random.default_rng(0)).ravel().tolist()
        [0.25, 0.75]
    """
    return registries.CORRUPTIONS.make(name, **options)


__all__ = [
    "GROUPS",
    "LEFT_OUT",
    "SEVERITIES",
    "Corruption",
    "chosen",
    "corrupted",
    "get",
    "names",
]
