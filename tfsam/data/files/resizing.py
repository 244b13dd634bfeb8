"""Resizing of images, antialiased, to the size that a network takes."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image

from tfsam.data.files.decoding import refusal
from tfsam.support.validators import check_choice

# (height, width).
Size = tuple[int, int]

WAYS = ("crop", "pad", "stretch")

# The largest side that is chosen without being asked for.
MOST_CHOSEN = 64

_MOST_SIDE = 8192


def parse_size(value: str | int | Iterable[int] | None) -> Size | None:
    """Parses the size of images.

    Args:
        value: "32", "64x48" (HEIGHTxWIDTH), a number, or (height, width); None
            is returned as it is.

    Raises:
        ValueError: if the value is of another form, or a side is out of range.

    Example:
        >>> parse_size("32"), parse_size("64x48")
        ((32, 32), (64, 48))
    """
    if value is None:
        return None
    if isinstance(value, str):
        sides: list[object] = list(value.lower().replace(" ", "").split("x"))
    else:
        sides = list(value) if isinstance(value, Iterable) else [value]
    try:
        found = [int(str(side)) for side in sides]
    except ValueError:
        found = []
    found = found * 2 if len(found) == 1 else found
    if len(found) != 2 or not all(1 <= side <= _MOST_SIDE for side in found):
        raise refusal(
            "image_size must be a side such as 32, or HEIGHTxWIDTH such as"
            f" 64x48, at most {_MOST_SIDE}",
            f"image_size={value}",
        )
    return found[0], found[1]


def resize(image: np.ndarray, size: Size, how: str = "crop") -> np.ndarray:
    """Resizes an image, antialiased.

    Args:
        image: (height, width, channels), uint8 or float32.
        size: the height and width to give it.
        how: "crop" cuts the largest centered part of the size's proportions
            out of the image; "pad" scales the whole image into the size, on a
            black ground; "stretch" changes the proportions.

    Returns:
        An array of the given size, and of the channels and dtype of `image`. An
        image that has the size is returned as it is.

    Raises:
        ValueError: if `how` is unknown.

    Example:
        >>> resize(np.zeros((20, 30, 3), np.uint8), (10, 10)).shape
        (10, 10, 3)
    """
    check_choice("resize", how, WAYS)
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if how == "stretch":
        return _resampled(image, size, (0, 0, width, height))
    if how == "crop":
        scale = min(height / size[0], width / size[1])
        tall = min(size[0] * scale, height)
        wide = min(size[1] * scale, width)
        top, left = (height - tall) / 2, (width - wide) / 2
        return _resampled(image, size, (left, top, left + wide, top + tall))
    scale = min(size[0] / height, size[1] / width)
    tall = min(max(round(height * scale), 1), size[0])
    wide = min(max(round(width * scale), 1), size[1])
    padded = np.zeros((*size, image.shape[2]), image.dtype)
    top, left = (size[0] - tall) // 2, (size[1] - wide) // 2
    inside = _resampled(image, (tall, wide), (0, 0, width, height))
    padded[top : top + tall, left : left + wide] = inside
    return padded


def common_size(sizes: Iterable[Size], source: object) -> Size:
    """Chooses the size for images whose sizes are known.

    Args:
        sizes: the sizes of the images.
        source: the name of the images, for the message.

    Returns:
        The size of all images if they have the same, otherwise the most common
        square of at most `MOST_CHOSEN` pixels a side.

    Raises:
        ValueError: if there is no such square.

    Example:
        >>> common_size([(64, 48), (64, 48)], "images")
        (64, 48)
        >>> common_size([(64, 48), (32, 32), (32, 32)], "images")
        (32, 32)
    """
    counts = Counter(sizes)
    if len(counts) == 1:
        return next(iter(counts))
    squares = [
        (count, size)
        for size, count in counts.items()
        if size[0] == size[1] <= MOST_CHOSEN
    ]
    if squares:
        return max(squares)[1]
    some = ", ".join(f"{h} x {w}" for (h, w), _ in counts.most_common(3))
    raise refusal(
        "images of several sizes are resized: choose one by image_size"
        " (--image_size=32, or 64x48 for HEIGHTxWIDTH)",
        f"{len(counts)} sizes, such as {some}, in {source}",
    )


def _resampled(
    image: np.ndarray, size: Size, box: tuple[float, float, float, float]
) -> np.ndarray:
    """Resamples a part of an image: (left, top, right, bottom)."""
    shape = size[1], size[0]
    way = Image.Resampling.BILINEAR  # Widened where it shrinks: antialiased.
    if image.dtype == np.uint8:
        gray = image.shape[2] == 1
        whole = Image.fromarray(image[..., 0] if gray else image)
        resized = np.asarray(whole.resize(shape, way, box))
        return resized[..., np.newaxis] if gray else resized
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            shape, way, box
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
