"""Decoding of JPEG and PNG files into one array of pixels."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_CHUNK = 1024  # Images decoded at once.


def refusal(expected: str, received: object) -> ValueError:
    """Makes an error of one line about a source of images.

    Args:
      expected: the requirement, as a sentence without its period.
      received: the value that does not meet it.
    """
    return ValueError(" ".join(f"{expected}. Received: {received}".split()))


def decode(
    entries: Sequence[Any],
    names: Sequence[str],
    read: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:
    """Decodes JPEG and PNG images of one size, in parallel.

    Args:
      entries: strings that `read` turns into the content of an image.
      names: one for each entry, for error messages.
      read: from a string tensor to a string tensor.

    Returns:
      A structured array (n,) with the fields `pixels`, uint8 (side, side, 3),
      and `gray`, True if the file has a single channel, which `pixels` repeats.
      Transparency is dropped.

    Raises:
      ValueError: if an image cannot be decoded, is not square, or has another
        size than the first. The error names the image.
    """
    side = _checked_side(entries[0], names[0], read)

    def decode_entry(entry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = _decode_one(read(entry))
        # Channels are gray, gray and alpha, RGB, or RGB and alpha.
        is_gray = tf.shape(image)[2] <= 2
        rgb = tf.where(is_gray, [0, 0, 0], [0, 1, 2])
        image = tf.gather(image, rgb, axis=2)
        return tf.ensure_shape(image, [side, side, 3]), is_gray

    batches = (
        tf.data.Dataset.from_tensor_slices(entries)
        .map(decode_entry, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_CHUNK)
        .prefetch(1)
    )
    fields = [("pixels", np.uint8, (side, side, 3)), ("gray", np.bool_)]
    images, start = np.empty(len(entries), fields), 0
    try:
        for pixels, gray in batches.as_numpy_iterator():
            chunk = images[start : start + len(pixels)]
            chunk["pixels"], chunk["gray"] = pixels, gray
            start += len(pixels)
    except tf.errors.OpError:
        # The pipeline does not say which image failed: look for it.
        for entry, name in zip(entries[start:], names[start:], strict=True):
            _checked_side(entry, name, read, side)
        raise
    return images


def is_decoded(images: np.ndarray, count: int) -> bool:
    """Returns whether an array has the form that `decode` returns.

    Args:
      images: any array.
      count: the number of images that it should hold.
    """
    if images.shape != (count,) or images.dtype.names != ("pixels", "gray"):
        return False
    pixels, gray = images.dtype["pixels"], images.dtype["gray"]
    height, width, channels = (*pixels.shape, 0, 0, 0)[:3]
    return (
        (pixels.base, gray) == (np.dtype(np.uint8), np.dtype(np.bool_))
        and height == width
        and channels == 3
    )


def pixels_of(images: np.ndarray) -> np.ndarray:
    """Returns the pixels, with one channel if all images are gray, else three.

    Args:
      images: an array that `decode` returned.

    Returns:
      uint8 (n, side, side, 1 or 3).
    """
    pixels = images["pixels"]
    return pixels[..., :1].copy() if images["gray"].all() else pixels


def _decode_one(content: tf.Tensor) -> tf.Tensor:
    # This reads PNG too. `decode_image` has a fast transform for JPEG that
    # darkens images by up to one level on average.
    return tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")


def _checked_side(
    entry: Any,
    name: str,
    read: Callable[[tf.Tensor], tf.Tensor],
    expected: int | None = None,
) -> int:
    """Returns the side of one square image in pixels, or raises."""
    try:
        image = _decode_one(read(tf.constant(entry)))
    except tf.errors.OpError as error:
        raise refusal(
            "an image file must be a JPEG or PNG that can be decoded", name
        ) from error
    height, width = image.shape[:2]
    if height != width:
        raise refusal("images must be square", f"{height} x {width} in {name}")
    if expected not in (None, height):
        raise refusal(
            f"images must have the size of the first, {expected} x {expected}",
            f"{height} x {width} in {name}",
        )
    return height
