"""Corrupted images, as files of 8 bits would hold them."""

import zlib
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from tfsam.corruptions.base import Corruption
from tfsam.corruptions.base import check_severity
from tfsam.corruptions.base import check_shape
from tfsam.registries import CORRUPTIONS
from tfsam.support.validators import check_count

CorruptionFn = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def corrupted(
    images: np.ndarray,
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Corrupts images, and rounds them to 8 bits.

    The random numbers for an image follow from the seed, the image's index, the
    name of the corruption and the severity, and from nothing else. Values are
    rounded to the nearest multiple of 1/255; the benchmark's code truncates
    them, a difference of at most 1/255.

    Args:
        images: Float array (n, height, width, channels) with values in [0, 1],
            where channels is 1 or 3, or (n, height, width).
        corruption: A name from `tfsam.corruptions.names()`, in any case.
        severity: 1, 2, 3, 4 or 5.
        seed: Integer >= 0.
        indices: Integers (n,), the indices of the images in their data set;
            None for 0 to n - 1.

    Returns:
        Array of the images' shape and dtype with values in [0, 1].

    Raises:
        ValueError: If the name is unknown, an argument is invalid, or the
            corruption returns something else than an image.

    Example:
        >>> import numpy as np
        >>> images = np.full((1, 8, 8, 3), 0.4, "float32")
        >>> found = corrupted(images, "brightness", 2)
        >>> print((255 * found[0, 0, 0]).round())
        [128. 128. 128.]
    """
    name = CORRUPTIONS.canonical(corruption)
    return corrupt_with(
        CORRUPTIONS.make(name), name, images, severity, seed, indices
    )


def corrupt_with(
    function: CorruptionFn,
    name: str,
    images: np.ndarray,
    severity: int,
    seed: int,
    indices: Sequence[int] | np.ndarray | None,
) -> np.ndarray:
    """Corrupts images by a corruption that is already made; see `corrupted`.

    Args:
        function: The corruption.
        name: Its name, from which the random numbers follow.
        images: See `corrupted`.
        severity: See `corrupted`.
        seed: See `corrupted`.
        indices: See `corrupted`.
    """
    severity = check_severity(severity)
    seed = check_count("seed", seed)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "images must be float with values in [0, 1]. "
            f"Received: images.dtype={images.dtype}"
        )
    places = np.arange(len(images)) if indices is None else np.asarray(indices)
    if len(places) != len(images):
        raise ValueError(
            f"indices must be {len(images)} integers, one an image. "
            f"Received: {len(places)} indices"
        )
    found = np.empty_like(images)
    for position, index in enumerate(places.tolist()):
        image = images[position]
        rng = np.random.default_rng(_key(seed, index, name, severity))
        gray = image[..., None] if image.ndim == 2 else image
        check_shape(gray.shape)
        result = _applied(function, name, gray, severity, rng)
        _check(result, gray.shape, name)
        found[position] = (np.rint(255 * result) / 255).reshape(image.shape)
    return found


def _applied(
    function: CorruptionFn,
    name: str,
    image: np.ndarray,
    severity: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Corrupts an image; names the corruption of another package that fails."""
    try:
        return np.asarray(function(image, severity, rng))
    except Exception as error:
        if isinstance(function, Corruption):
            raise
        raise ValueError(
            f"the corruption {name} failed at severity {severity}. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _key(seed: int, index: int, name: str, severity: int) -> list[int]:
    """Returns the seed of the random numbers of an image."""
    return [seed, index, severity, zlib.crc32(name.encode())]


def _check(found: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    """Raises a ValueError unless a corruption has returned an image."""
    if found.shape != shape:
        raise ValueError(
            f"the corruption {name} must return an image of shape {shape}. "
            f"Received: shape {found.shape}"
        )
    low, high = found.min(), found.max()
    if not 0 <= low <= high <= 1:  # NaN fails, too.
        raise ValueError(
            f"the corruption {name} must return values in [0, 1]. "
            f"Received: values in {low:g}..{high:g}"
        )
