"""Stacks: many images of one size in an array, decoded in parallel."""

import concurrent.futures
import io
import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.data import decoding
from tfsam.data import resizing
from tfsam.data.decoding import NotAnImage
from tfsam.data.options import Options

# A file that cannot be decoded has this number of channels.
BAD = 0

_CHUNK = 1024  # Images decoded at once.

# How many files, evenly spread, tell the size of all.
_LOOKED_AT = 1000


def decode(
    contents: Sequence[Any],
    names: Sequence[str],
    size: resizing.Size,
    how: str,
    read: Callable[[Any], bytes] = bytes,
) -> tuple[np.ndarray, dict[str, str]]:
    """Decodes images and gives them one size, in parallel.

    Args:
        contents: whatever `read` turns into the bytes of a file.
        names: one for each of the contents.
        size: the height and width.
        how: see `resizing.resize`.
        read: a function of an element of `contents`.

    Returns:
        A structured array (n,) with the fields `pixels`, uint8 (height, width,
        3), and `channels`, uint8: 3; 1 where the file is gray, whose channel
        `pixels` repeats; or `BAD` where it cannot be decoded. And the reason
        for each bad image, by its name.
    """
    stack = np.zeros(len(contents), _dtype(size))
    reasons: dict[str, str] = {}

    def decode_one(index: int) -> None:
        try:
            image = decoding.decode(read(contents[index]))
        except NotAnImage as error:
            reasons[names[index]] = str(error)
        except OSError as error:
            reasons[names[index]] = error.strerror or str(error)
        else:
            stack["pixels"][index] = resizing.resize(image, size, how)
            stack["channels"][index] = image.shape[2]

    # Pillow works outside of Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(contents), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(contents)))
            for _ in pool.map(decode_one, indices):
                pass
    return stack, reasons


def is_stack(array: np.ndarray, count: int, size: resizing.Size) -> bool:
    """Returns whether an array has the form that `decode` returns.

    Args:
        array: any array.
        count: the number of images that it should hold.
        size: their height and width.
    """
    return array.shape == (count,) and array.dtype == _dtype(size)


def pixels_of(stack: np.ndarray) -> np.ndarray:
    """Returns the pixels, with one channel if all images are gray, else three.

    Args:
        stack: an array that `decode` returned, without bad images.

    Returns:
        uint8 (n, height, width, 1 or 3).
    """
    pixels = stack["pixels"]
    is_gray = len(stack) and bool((stack["channels"] == 1).all())
    return pixels[..., :1].copy() if is_gray else pixels


def size_of(
    contents: Sequence[Any],
    open_file: Callable[[Any], Any],
    source: object,
    options: Options,
) -> tuple[resizing.Size, list[str]]:
    """Returns the size that images get.

    Args:
        contents: whatever `open_file` turns into a file.
        open_file: a function that opens an element of `contents`.
        source: the name of the images, for messages.
        options: see `Options`.

    Returns:
        The height and width, and notes where they were not asked for.

    Raises:
        ValueError: see `resizing.common_size`; or if none is an image.
    """
    if options.size is not None:
        return options.size, []
    sizes = _sizes(contents, open_file)
    if not sizes:
        raise decoding.refusal(
            "files must be images that can be decoded", f"none in {source}"
        )
    size = options.network_size or resizing.common_size(sizes, source)
    there = {*sizes}
    if there == {size}:
        return size, []
    height, width = size
    several = f"{len(there)} sizes" if len(there) > 1 else "another size"
    return size, [
        f"images of {several} are resized to {height} x {width} "
        f"({options.resize})"
    ]


def _sizes(
    contents: Sequence[Any], open_file: Callable[[Any], Any]
) -> list[resizing.Size]:
    """Reads the sizes of images, of some where they are many."""
    found = []
    for content in contents[:: max(len(contents) // _LOOKED_AT, 1)]:
        try:
            with open_file(content) as file:
                header = decoding.header(file)
        except (NotAnImage, OSError):
            continue  # `decode` reports it.
        found.append((header.height, header.width))
    return found


def opened_file(path: str) -> io.BufferedReader:
    """Opens a file for `size_of`.

    Args:
        path: the file.
    """
    return open(path, "rb")


def read_file(path: str) -> bytes:
    """Reads a file for `decode`.

    Args:
        path: the file.
    """
    with open(path, "rb") as file:
        return file.read()


def _dtype(size: resizing.Size) -> np.dtype[Any]:
    return np.dtype([("pixels", np.uint8, (*size, 3)), ("channels", np.uint8)])
