"""Stacks: many images of one size in an array, decoded in parallel."""

import concurrent.futures
import functools
import io
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from tfsam.data import row_files
from tfsam.data import rows
from tfsam.data.files import decoding
from tfsam.data.files import resizing
from tfsam.data.files.decoding import NotAnImage
from tfsam.data.options import Options

# A file that cannot be decoded has this number of channels.
BAD = 0

# How many files, evenly spread, tell the size of all.
_LOOKED_AT = 1000


class Encoded(NamedTuple):
    """Images that are not decoded yet, and the form to give them.

    Attributes:
        contents: an array of whatever `read` turns into the bytes of a file.
        names: one for each of the contents.
        size: the height and width.
        how: see `resizing.resize`.
        read: a function of an element of `contents`.
    """

    contents: Sequence[Any]
    names: Sequence[str]
    size: resizing.Size
    how: str
    read: Callable[[Any], bytes] = bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The structured dtype of a decoded image, see `Stack`."""
        pixels = ("pixels", np.uint8, (*self.size, 3))
        return np.dtype([pixels, ("channels", np.uint8)])

    @property
    def nbytes(self) -> int:
        """The bytes of all decoded images."""
        return len(self.contents) * self.dtype.itemsize

    def of(self, chosen: Iterable[int]) -> "Encoded":
        """Returns some of the images.

        Args:
            chosen: their positions.
        """
        contents = [self.contents[n] for n in chosen]
        return self._replace(
            contents=contents, names=[self.names[n] for n in chosen]
        )


class Stack(NamedTuple):
    """Decoded images of one size.

    Attributes:
        pixels: uint8 (n, height, width, 3); a gray file has the same value in
            all channels.
        channels: uint8 (n,), those of the files: 1, 3, or `BAD`.
    """

    pixels: rows.Pixels
    channels: np.ndarray

    def of(self, chosen: Any) -> "Stack":
        """Returns some of the images.

        Args:
            chosen: see `rows.part`.
        """
        return Stack(rows.part(self.pixels, chosen), self.channels[chosen])


def decode(encoded: Encoded) -> tuple[Stack, dict[str, str]]:
    """Decodes images and gives them one size, in parallel.

    Images of more than `rows.MOST_IN_MEMORY` go into a temporary file or, where
    the disk has no room for it, are decoded whenever they are read.

    Args:
        encoded: the images.

    Returns:
        The images, and the reason for each bad one, by its name.
    """
    if encoded.nbytes <= rows.MOST_IN_MEMORY:
        array = np.zeros(len(encoded.contents), encoded.dtype)
        return of_array(array), _each(encoded, functools.partial(_put, array))
    if not row_files.has_room(encoded.nbytes):
        return _in_place(encoded)
    with row_files.temporary() as file:
        reasons = write(encoded, file)
        return opened(file), reasons


def write(encoded: Encoded, file: BinaryIO) -> dict[str, str]:
    """Decodes images into a file, in the format of `np.save`.

    Each is written as soon as it is decoded, and none is kept in memory.

    Args:
        encoded: the images.
        file: an empty file.

    Returns:
        The reason for each bad image, by its name.
    """
    dtype = encoded.dtype
    form = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(encoded.contents),),
    }
    np.lib.format.write_array_header_1_0(file, form)
    start = file.tell()
    file.truncate(start + encoded.nbytes)  # Bad images stay zeros.
    row = (*encoded.size, 3)

    def put(index: int, image: np.ndarray) -> None:
        channels = image.shape[2]
        pixels = np.ascontiguousarray(np.broadcast_to(image, row))
        at = start + index * dtype.itemsize
        os.pwritev(file.fileno(), [pixels.data, bytes([channels])], at)

    return _each(encoded, put)


def opened(file: BinaryIO) -> Stack:
    """Returns the images of a file that `write` or `np.save` has written.

    Few images are mapped into memory, which processes share; writing to them
    does not write to the file.

    Args:
        file: the file, which may be closed.

    Raises:
        ValueError: if the file holds something else, or not all of it.
    """
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start, count = file.tell(), shape[0]
    pixels = dtype["pixels"] if dtype.names else dtype
    size = start + count * dtype.itemsize
    if len(pixels.shape) != 3 or os.stat(file.fileno()).st_size != size:
        raise ValueError("it holds something else")
    if size - start <= rows.MOST_IN_MEMORY:
        return of_array(np.memmap(file, dtype, "c", start, shape))
    step = dtype.itemsize
    held = row_files.Held(file)
    of_row = (count, *pixels.shape)
    channels = row_files.stored(
        held, shape, np.uint8, offset=start + step - 1, pitch=step
    )
    return Stack(
        row_files.stored(held, of_row, np.uint8, offset=start, pitch=step),
        np.asarray(channels),
    )


def of_array(array: np.ndarray) -> Stack:
    """Returns the images of a structured array.

    Args:
        array: (n,) of `Encoded.dtype`.
    """
    return Stack(array["pixels"], array["channels"])


def pixels_of(stack: Stack) -> rows.Pixels:
    """Returns the pixels, with one channel if all images are gray, else three.

    Args:
        stack: images, none of them bad.

    Returns:
        uint8 (n, height, width, 1 or 3).
    """
    pixels, channels = stack
    if not len(channels) or (channels != 1).any():
        return pixels
    if isinstance(pixels, rows.Rows):
        row = (*pixels.shape[1:3], 1)
        return pixels.mapped(lambda found: found[..., :1].copy(), row)
    return pixels[..., :1].copy()


def _each(
    encoded: Encoded, put: Callable[[int, np.ndarray], Any]
) -> dict[str, str]:
    """Decodes images in parallel; returns the reasons for the bad ones.

    Args:
        encoded: the images.
        put: function that takes the position of an image and the image.
    """
    reasons: dict[str, str] = {}

    def decode_one(index: int) -> None:
        try:
            content = encoded.read(encoded.contents[index])
            image = decoding.decode(content, max(encoded.size))
        except NotAnImage as error:
            reasons[encoded.names[index]] = str(error)
        except OSError as error:
            reasons[encoded.names[index]] = error.strerror or str(error)
        else:
            put(index, resizing.resize(image, encoded.size, encoded.how))

    left = iter(range(len(encoded.contents)))

    def work() -> None:
        for index in left:
            decode_one(index)

    # Pillow works outside of Python's lock, and some threads wait for the disk:
    # as many threads as Python starts by default.
    workers = min((os.cpu_count() or 1) + 4, 32)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
        finally:
            for _ in left:  # Nothing is left to do, after an error.
                pass
    return reasons


def _put(array: np.ndarray, index: int, image: np.ndarray) -> None:
    """Puts an image into a structured array."""
    array["pixels"][index] = image
    array["channels"][index] = image.shape[2]


def _in_place(encoded: Encoded) -> tuple[Stack, dict[str, str]]:
    """Decodes images once to judge them, and again whenever they are read."""
    channels = np.zeros(len(encoded.contents), np.uint8)
    row = (*encoded.size, 3)

    def judge(index: int, image: np.ndarray) -> None:
        channels[index] = image.shape[2]

    def read(positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), *row), np.uint8)
        reasons = _each(encoded.of(positions), found.__setitem__)
        for name, reason in reasons.items():
            raise decoding.refusal(
                "image files must not change while they are used",
                f"{name}: {reason}",
            )
        return found

    reasons = _each(encoded, judge)
    pixels = rows.Rows(read, (len(channels), *row), np.uint8)
    return Stack(pixels, channels), reasons


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
    with open(path, "rb", buffering=0) as file:
        return file.readall()
