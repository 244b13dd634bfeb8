"""Images of any size are resized."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_one_line_error

from tfsam.data.files import resizing

SIDES = st.integers(1, 40)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (32, (32, 32)),
        ("32", (32, 32)),
        ("64x48", (64, 48)),
        (" 64 X 48 ", (64, 48)),
        ((64, 48), (64, 48)),
        ([8192, 1], (8192, 1)),
    ],
)
def test_sizes(value, expected):
    assert resizing.parse_size(value) == expected


@pytest.mark.parametrize(
    "value",
    ["", "x", "0", "-3", "1x2x3", "a", "64,48", 1.5, (), (1, 2, 3), 9999],
)
def test_sizes_that_are_none(value):
    with pytest.raises(ValueError) as error:
        resizing.parse_size(value)
    assert_one_line_error(error, "image_size", "64x48")


@hypothesis.given(
    *[SIDES] * 4,
    st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.float32]),
    st.sampled_from(resizing.WAYS),
)
def test_any_image_gets_any_size(h, w, height, width, channels, dtype, how):
    """A constant image stays so, but for black margins, and nothing leaves
    the range of the pixels.
    """
    image = np.full((h, w, channels), 200, dtype)
    found = resizing.resize(image, (height, width), how)
    assert found.shape == (height, width, channels)
    assert found.dtype == dtype
    values = set(np.round(found).ravel().tolist())
    assert values == {200} or (how == "pad" and values == {0, 200})
    random = np.random.default_rng(h * w).integers(0, 256, image.shape)
    found = resizing.resize(random.astype(dtype), (height, width), how)
    assert found.min() >= min(random.min(), 0 if how == "pad" else 255)
    assert found.max() <= random.max()


def test_an_image_of_the_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    for how in resizing.WAYS:
        assert resizing.resize(image, (7, 9), how) is image


def test_what_each_way_keeps():
    """Three bars, of which a crop to a square keeps the middle one."""
    bars = np.repeat([10, 100, 250], 30).astype(np.uint8)
    image = np.broadcast_to(bars[None, :, None], (30, 90, 1))
    crop = resizing.resize(image, (10, 10), "crop")
    assert set(crop[:, 1:-1].ravel()) == {100}
    stretch = resizing.resize(image, (9, 9), "stretch")
    assert stretch[4, ::3, 0].tolist() == [10, 100, 250] or (
        stretch[4, [1, 4, 7], 0].tolist() == [10, 100, 250]
    )
    pad = resizing.resize(image, (9, 9), "pad")
    assert not pad[:3].any() and not pad[6:].any()
    assert pad[4, [1, 4, 7], 0].tolist() == [10, 100, 250]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shrinking_is_antialiased(dtype):
    """A fine pattern becomes its mean, not a coarse one."""
    lines = np.zeros((64, 64, 3), dtype)
    lines[::2] = 200
    found = resizing.resize(lines, (8, 8), "crop")
    assert np.abs(found[1:-1].astype(float) - 100).max() <= 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(96, 96)] * 3, (96, 96)),
        ([(64, 48)] * 3, (64, 48)),
        ([(32, 32)] * 2 + [(300, 200)] * 5, (32, 32)),
        ([(96, 96)] * 3 + [(64, 64)], (64, 64)),
        ([(16, 16), (32, 32)], (32, 32)),
    ],
)
def test_the_size_of_a_folder(sizes, expected):
    assert resizing.common_size(sizes, "folder") == expected


def test_large_images_of_several_sizes_need_the_flag():
    with pytest.raises(ValueError) as error:
        resizing.common_size([(96, 96)] * 9 + [(60, 50)], "here")
    assert_one_line_error(
        error, "--image_size=32", "2 sizes", "96 x 96", "here"
    )


def test_an_unknown_way():
    with pytest.raises(ValueError) as error:
        resizing.resize(np.zeros((2, 2, 1), np.uint8), (1, 1), "squeeze")
    assert_one_line_error(error, "crop", "resize=squeeze")
