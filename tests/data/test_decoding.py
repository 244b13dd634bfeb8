"""The decoder: any format, any kind of pixels, the same bytes everywhere."""

import io
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfsam.data.files import decoding
from tfsam.data.files import resizing

RNG = np.random.default_rng(0)

LOSSLESS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
}
CASES = [(kind, mode) for kind, modes in LOSSLESS.items() for mode in modes]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    if kind == "WEBP":
        options = {"lossless": True, "exact": True} | options
    image.save(file, kind, **options)
    return file.getvalue()


def image_of(mode, height, width):
    """Makes a random image of a mode, and the pixels that it should give."""
    gray = RNG.integers(0, 256, (height, width, 1), dtype=np.uint8)
    alpha = RNG.integers(0, 256, (height, width, 1), dtype=np.uint8)
    color = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "1":
        return Image.fromarray(gray[..., 0] > 127), 255 * (gray > 127)
    if mode == "L":
        return Image.fromarray(gray[..., 0]), gray
    if mode == "I;16":
        values = gray[..., 0].astype(np.uint16) * 256 + alpha[..., 0]
        return Image.fromarray(values), gray
    if mode == "LA":
        both = np.concatenate([gray, alpha], axis=2)
        return Image.fromarray(both), over_white(gray, alpha)
    if mode == "RGBA":
        both = np.concatenate([color, alpha], axis=2)
        return Image.fromarray(both), over_white(color, alpha)
    if mode == "P":
        image = Image.fromarray(gray[..., 0])
        palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
        image.putpalette(palette.tobytes())
        return image, palette[gray[..., 0]]
    image = Image.fromarray(color).convert(mode)
    return image, np.asarray(image.convert("RGB"))


def over_white(color, alpha):
    opaque = alpha / 255
    return np.floor(color * opaque + 255 * (1 - opaque) + 0.5 + 1e-9)


@hypothesis.given(
    st.sampled_from(CASES), st.integers(1, 20), st.integers(1, 20)
)
def test_pixels_of_every_kind_of_image(case, height, width):
    kind, mode = case
    image, expected = image_of(mode, height, width)
    content = encoded(image, kind)
    found = decoding.decode(content)
    assert found.dtype == np.uint8
    assert decoding.header(content) == found.shape
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    if kind != "GIF":  # Pillow detects palettes of gray in some of them.
        gray = mode in ("1", "L", "LA", "I;16")
        assert found.shape[2] == (1 if gray else 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_every_depth_is_stretched(bits):
    """Also its transparent value, which a file gives in its own depth."""
    white = 2**bits - 1
    values = np.array([[0, white // 2, white]])
    content = png(values, bits, color_type=0)
    middle = {1: 0, 2: 85, 4: 119, 8: 127, 16: 127}[bits]
    assert decoding.decode(content)[0, :, 0].tolist() == [0, middle, 255]
    clear = png(values, bits, 0, [(b"tRNS", struct.pack(">H", 0))])
    dark = 255 if bits == 1 else middle
    assert decoding.decode(clear)[0, :, 0].tolist() == [255, dark, 255]
    clear = png(values, bits, 0, [(b"tRNS", struct.pack(">H", white // 2))])
    first = 255 if bits == 1 else 0
    assert decoding.decode(clear)[0, :, 0].tolist() == [first, 255, 255]


def test_16_bits_of_color_and_of_gray_with_alpha():
    values = RNG.integers(0, 65536, (4, 5, 3))
    content = png(values, 16, color_type=2)
    np.testing.assert_array_equal(decoding.decode(content), values >> 8)
    clear = struct.pack(">HHH", *values[1, 2])
    found = decoding.decode(png(values, 16, 2, [(b"tRNS", clear)]))
    expected = (values >> 8).astype(np.uint8)
    expected[1, 2] = 255
    np.testing.assert_array_equal(found, expected)
    gray = RNG.integers(0, 65536, (4, 5, 2))
    content = png(gray, 16, color_type=4)
    assert decoding.header(content) == (4, 5, 1)
    expected = over_white(gray[..., :1] >> 8, gray[..., 1:] >> 8)
    np.testing.assert_array_equal(decoding.decode(content), expected)


def png(values, bits, color_type, chunks=()):
    """Writes a PNG by hand: Pillow writes few of the depths."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        each = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)
        each = each[..., 8 - bits :].reshape(height, -1)
        packed = np.packbits(each, axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body
        + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in [*parts, (b"IEND", b"")]
    )  # fmt: skip


def test_transparent_palettes_are_laid_over_white():
    image, colors = image_of("P", 6, 6)
    index = np.asarray(image)
    content = encoded(image, transparency=int(index[2, 3]))
    expected = colors.copy()
    expected[index == index[2, 3]] = 255
    np.testing.assert_array_equal(decoding.decode(content), expected)
    half = encoded(image, transparency=bytes([128] * 256))
    np.testing.assert_array_equal(
        decoding.decode(half), over_white(colors, np.full_like(colors, 128))
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_every_color_space(mode):
    smooth = np.linspace(30, 220, 24 * 17 * 3).reshape(24, 17, 3)
    image = Image.fromarray(smooth.astype(np.uint8)).convert(mode)
    content = encoded(image, "JPEG", quality=95)
    found = decoding.decode(content)
    expected = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    expected = expected.reshape(found.shape).astype(int)
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_is_decoded_as_by_tensorflow(subsampling):
    """The pixels of a folder are those of 0.1.0."""
    noise = RNG.integers(0, 256, (37, 23, 3), dtype=np.uint8)
    content = encoded(
        Image.fromarray(noise), "JPEG", quality=80, subsampling=subsampling
    )
    expected = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decoding.decode(content), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(kind, orientation):
    """As viewers show them, for any orientation of the camera."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # The upper left corner.
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), kind, exif=exif)
    found = decoding.decode(content)
    assert decoding.header(content) == found.shape
    lying = orientation >= 5
    assert found.shape[:2] == ((32, 16) if lying else (16, 32))
    bright = found[..., 0] > 127
    rows, columns = np.nonzero(bright)
    top, left = rows.min() == 0, columns.min() == 0
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl"}
    corner |= {5: "tl", 6: "tr", 7: "br", 8: "bl"}
    assert ("t" if top else "b") + ("l" if left else "r") == corner[orientation]


def test_damaged_exif_is_passed_over():
    pixels = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(decoding.decode(content), pixels)


def test_the_first_frame_counts():
    frames = [image_of("P", 5, 6) for _ in range(3)]
    content = encoded(
        frames[0][0],
        "GIF",
        save_all=True,
        append_images=[f for f, _ in frames[1:]],
    )
    np.testing.assert_array_equal(decoding.decode(content), frames[0][1])


def test_floats_and_large_gray_values():
    def tiff(values):
        return encoded(Image.fromarray(values), "TIFF")

    floats = np.array([[0, 0.5, 1]], np.float32)
    assert decoding.decode(tiff(floats)).ravel().tolist() == [0, 128, 255]
    whole = np.array([[0, 32768, 65535]], np.int32)
    assert decoding.decode(tiff(whole)).ravel().tolist() == [0, 128, 255]
    for wrong in (floats * 2, floats * np.nan, whole * 2, whole - 1):
        with pytest.raises(decoding.NotAnImage):
            decoding.decode(tiff(wrong))


# Refusals.

IMAGE = encoded(image_of("RGB", 40, 40)[0])
JPEG = encoded(image_of("RGB", 64, 64)[0], "JPEG", quality=90)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"a few words", "a text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"cells": [], "nbformat": 4}', "a notebook"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<svg xmlns=", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (bytes(range(256)), "of no known image format"),
        (IMAGE[:60], "damaged"),
        (IMAGE[:-200], "damaged"),
        (IMAGE[:200] + b"\0\0\0\0" + IMAGE[204:], "damaged"),
        (JPEG[:-300], "truncated"),
        (JPEG[:100], "damaged"),
    ],
)
def test_files_that_are_no_images_are_named(content, reason):
    with pytest.raises(decoding.NotAnImage, match=reason):
        decoding.decode(content)


def test_a_changed_byte_of_a_png_is_noticed():
    place = IMAGE.index(b"IDAT") + 30
    for change in (1, 128):
        spoiled = bytearray(IMAGE)
        spoiled[place] ^= change
        with pytest.raises(decoding.NotAnImage, match="damaged"):
            decoding.decode(bytes(spoiled))


def test_a_wrong_checksum_of_a_png_is_noticed():
    """As by libpng; Pillow ignores the checksums of the pixels."""
    content = png(RNG.integers(0, 256, (4, 5)), 8, color_type=0)
    end = content.index(b"IEND") - 4
    spoiled = content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]
    assert decoding.decode(content).shape == (4, 5, 1)
    with pytest.raises(decoding.NotAnImage, match="checksum"):
        decoding.decode(spoiled)


@pytest.mark.parametrize("side", [9000, 30_000])
def test_decompression_bombs_are_refused_before_they_explode(side):
    """A black image of a gigabyte is a few kilobytes in a file."""
    content = png(np.zeros((1, 1), int), 1, color_type=0)
    head = content.index(b"IHDR")
    body = struct.pack(">II", side, side) + content[head + 12 : head + 17]
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + body))
    content = content[: head + 4] + body + crc + content[head + 21 :]
    for function in (decoding.decode, decoding.header):
        with pytest.raises(decoding.NotAnImage, match="80,000,000 pixels"):
            function(content)


@hypothesis.given(st.data())
def test_any_damage_gives_pixels_or_one_line(data):
    content = bytearray(data.draw(st.sampled_from([IMAGE, JPEG])))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = decoding.decode(content)
    except decoding.NotAnImage as error:
        assert "\n" not in str(error)
    else:
        assert found.dtype == np.uint8 and found.shape[2] in (1, 3)


@pytest.mark.parametrize(
    ("side", "scale"), [(100, 1), (75, 2), (38, 2), (37, 4), (10, 8)]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller(side, scale, orientation):
    small = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((400, 300), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth, "JPEG", quality=95, exif=exif)
    whole = decoding.decode(content)
    found = decoding.decode(content, side)
    shape = (-(-300 // scale), -(-400 // scale))
    assert found.shape[:2] == (shape if orientation == 1 else shape[::-1])
    assert decoding.header(content) == whole.shape
    size = (side, side)
    seen = [resizing.resize(each, size).astype(int) for each in (found, whole)]
    assert np.abs(seen[0] - seen[1]).mean() < 3
