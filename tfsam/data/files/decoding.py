"""Decoding of image files by Pillow, one at a time, on every path alike.

The content decides, not the suffix. The same bytes give the same pixels,
whether they come from a folder, a table or an archive of TensorFlow Datasets.
"""

import contextlib
import functools
import io
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image
from PIL import ImageOps

# Images with more pixels are refused: a small file can hold gigabytes of them.
MOST_PIXELS = 80_000_000

# Changes where the pixels of a file would: part of the name of cached pixels.
VERSION = f"2 of Pillow {PIL.__version__}"

# Formats of pixels. EPS and others are left out, which start programs, and TGA,
# which has no mark of its own, so that texts can pass for it.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "PPM", "TIFF"),
    *("JPEG2000", "AVIF", "ICO", "QOI", "PCX"),
)

_GRAY = ("1", "L", "LA", "La", "I", "F")

# The first bytes of files that are found in the place of images.
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch with git lfs pull"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript program"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x89png", "damaged"),
    (b"\xff\xd8", "damaged"),
)

_EXIF_ORIENTATION = 0x0112
_EXIF_OF_PNG = ("exif", "Raw profile type exif")


class NotAnImage(ValueError):
    """A file cannot be decoded; the message says why, in a few words."""


class Header(NamedTuple):
    """The form of an image, which is known before its pixels are decoded.

    Attributes:
        height: in pixels, as `decode` returns it.
        width: in pixels, as `decode` returns it.
        channels: 1 or 3.
    """

    height: int
    width: int
    channels: int


def refusal(expected: str, received: object) -> ValueError:
    """Makes an error of one line about a source of images.

    Args:
        expected: the requirement, as a sentence without its period.
        received: the value that does not meet it.
    """
    return ValueError(" ".join(f"{expected}. Received: {received}".split()))


def decode(content: bytes, side: int | None = None) -> np.ndarray:
    """Decodes an image, upright, without transparency.

    Gray values of 16 bits keep their high byte, as those of colors do, and
    smaller depths are stretched to 0..255. Transparency is laid over white. Of
    several frames the first is decoded.

    Args:
        content: the bytes of a file.
        side: the longer side that the image will be given, in pixels. A JPEG
            file with several times as many is decoded at a half, a quarter or
            an eighth of its size, at least twice the side, which is several
            times as fast. None decodes all pixels.

    Returns:
        uint8 (height, width, 1) of a gray image, otherwise (height, width, 3).

    Raises:
        NotAnImage: if the content is of another kind, damaged, cut off, or has
            more than `MOST_PIXELS` pixels.

    Example:
        >>> decode(b"P5 2 1 255 " + bytes([0, 255])).tolist()
        [[[0], [255]]]
    """
    with _explained(content):
        image = _opened(content)
        raw = _raw_mode(image)
        if image.format == "PNG":
            # Loading does not look at the checksums of the pixels.
            _opened(content).verify()
        if side is not None:
            image.draft("", (2 * side, 2 * side))
        image.load()
        color, alpha = _layers(_upright(image), raw)
    if alpha is None:
        return np.ascontiguousarray(color)
    return _over_white(color, alpha)


def header(content: bytes | BinaryIO) -> Header:
    """Reads the form of an image without decoding its pixels.

    Args:
        content: the bytes of a file, or the file, opened in binary mode.

    Raises:
        NotAnImage: see `decode`; damaged pixels are not noticed.
    """
    with _explained(content if isinstance(content, bytes) else b""):
        image = _opened(content)
        width, height = image.size
        # Lying on its side, which Pillow heeds in TIFF itself.
        if image.format != "TIFF" and _orientation(image) >= 5:
            width, height = height, width
        channels = 1 if _is_gray(image.mode, _raw_mode(image)) else 3
    return Header(height, width, channels)


@contextlib.contextmanager
def _explained(content: bytes) -> Any:
    """Turns any exception of Pillow's into a `NotAnImage`."""
    try:
        yield
    except NotAnImage:
        raise
    except PIL.UnidentifiedImageError:
        raise NotAnImage(_kind(content)) from None
    except Image.DecompressionBombError:
        raise NotAnImage(f"more than {MOST_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise NotAnImage(f"damaged: {words}") from error
    except Exception as error:
        # Its plug-ins raise exceptions of many types for damaged files.
        raise NotAnImage("damaged") from error


def _opened(content: bytes | BinaryIO) -> Image.Image:
    """Opens an image without decoding its pixels; checks how many there are."""
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    image = Image.open(file, formats=_formats())
    if image.width * image.height > MOST_PIXELS:
        raise NotAnImage(f"more than {MOST_PIXELS:,} pixels")
    return image


@functools.cache
def _formats() -> list[str]:
    """Returns the formats that this build of Pillow can read."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _kind(content: bytes) -> str:
    """Returns what a file is that is no image."""
    if not content:
        return "empty"
    start = content[:1024].lstrip().lower()
    for mark, kind in _KINDS:
        if start.startswith(mark):
            return kind
    if start.startswith(b"{") and b'"cells"' in content[:4096]:
        return "a notebook"
    if b"\0" not in start and start.isascii():
        return "a text"
    return "of no known image format"


def _raw_mode(image: Image.Image) -> str:
    """Returns the form of the pixels in the file, empty where it is unknown."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    arguments = tile[0][3]
    first = arguments[0] if isinstance(arguments, tuple) else arguments
    return first if isinstance(first, str) else ""


def _is_gray(mode: str, raw: str) -> bool:
    # Pillow opens gray with alpha of 16 bits as RGBA.
    return mode in _GRAY or mode.startswith("I;16") or raw == "LA;16B"


def _orientation(image: Image.Image) -> int:
    """Returns the orientation that a camera recorded, 1 if it is upright."""
    if image.format == "PNG" and not {*_EXIF_OF_PNG} & {*image.info}:
        return 1  # Pillow would load the pixels to look behind them.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # Exif data can be damaged in many ways; the pixels are not.
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as the camera was held."""
    if _orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _layers(
    image: Image.Image, raw: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the color and the opacity of a loaded image, both uint8.

    Args:
        image: the image.
        raw: the form of its pixels in the file.
    """
    mode, clear = image.mode, image.info.get("transparency")
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)[..., np.newaxis]
        return _high_byte(values), _opacity(values, clear)
    if mode in ("1", "L"):
        gray = np.asarray(image.convert("L"))[..., np.newaxis]
        if isinstance(clear, int):
            clear = clear * 255 // _largest_gray(mode, raw)
        return gray, _opacity(gray, clear)
    if mode == "RGB":
        color = np.asarray(image)
        if clear is not None and raw.startswith("RGB;16"):
            clear = tuple(value >> 8 for value in clear)
        return color, _opacity(color, clear)
    if mode in ("LA", "La"):
        both = np.asarray(image.convert("LA"))
        return both[..., :1], both[..., 1:]
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and clear is not None):
        both = np.asarray(image.convert("RGBA"))
        channels = 1 if _is_gray(mode, raw) else 3
        return both[..., :channels], both[..., 3:]
    return np.asarray(image.convert("RGB")), None


def _largest_gray(mode: str, raw: str) -> int:
    """Returns the value of white in a file of 1, 2, 4 or 8 bits."""
    if mode == "1":
        return 1
    return {"L;1": 1, "L;2": 3, "L;4": 15}.get(raw, 255)


def _high_byte(values: np.ndarray) -> np.ndarray:
    """Returns gray values of 16 bits, or floats in [0, 1], as bytes."""
    lowest, highest = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (lowest >= 0 and highest <= 1):
            raise NotAnImage("floats outside of 0 to 1")
        return np.round(values * 255).astype(np.uint8)
    if lowest < 0 or highest > 65535:
        raise NotAnImage("gray values of more than 16 bits")
    return (values >> 8).astype(np.uint8)


def _opacity(values: np.ndarray, clear: Any) -> np.ndarray | None:
    """Returns 0 where all channels have the transparent value, else 255."""
    if clear is None:
        return None
    is_clear = np.all(values == np.asarray(clear), axis=-1, keepdims=True)
    return np.where(is_clear, 0, 255).astype(np.uint8)


def _over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns colors of some opacity on a white ground, rounded."""
    opaque = alpha.astype(np.uint16)
    mixed = color * opaque + 255 * (255 - opaque)
    return ((mixed + 127) // 255).astype(np.uint8)
