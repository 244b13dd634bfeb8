"""Real folders: images of every size and format, and stray files."""

import numpy as np
import pytest
from helpers import assert_one_line_error
from PIL import Image

from tfsam.data import sources
from tfsam.data.files import decoding
from tfsam.data.files import resizing

RNG = np.random.default_rng(0)


def image(height, width, mode="RGB"):
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(made, path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        made.save(file, kind or "PNG")


@pytest.fixture
def folder(tmp_path):
    """Classes alone: 42 images of many sizes, formats and colors."""
    root = tmp_path / "images"
    kinds = [
        *(("PNG", "RGB"), ("JPEG", "RGB"), ("PNG", "P"), ("JPEG", "CMYK")),
        *(("GIF", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("PPM", "RGB")),
    ]
    for name in ("apple", "pear"):
        for number in range(20):
            kind, mode = kinds[number % len(kinds)]
            made = image(20 + number, 40 - number, mode)
            # Many PNGs are named .jpg.
            save(made, root / name / f"{number:02}.jpg", kind)
        save(image(32, 32), root / name / "square.png")
    return root


def load(root, **options):
    return sources.load(f"folder:{root}", **options)


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", ["16", "12x20"])
def test_images_of_any_size_and_format(folder, tmp_path, size, how):
    cache = tmp_path / "cache"
    options = {"image_size": size, "resize": how, "cache_dir": cache}
    images = load(folder, **options)
    height, width = {"16": (16, 16), "12x20": (12, 20)}[size]
    assert images.x_train.shape == (34, height, width, 3)
    assert images.x_test.shape == (8, height, width, 3)
    assert np.bincount(images.y_test).tolist() == [4, 4]
    again = load(folder, **options)
    np.testing.assert_array_equal(again.x_train, images.x_train)
    # Other sizes and ways are kept beside it.
    load(folder, cache_dir=cache)
    assert len(list(cache.glob("*.npy"))) == 2


def test_the_most_common_square_is_chosen_and_said(folder):
    images = load(folder)
    assert images.x_test.shape[1:] == (32, 32, 3)
    said = "\n".join(images.notes)
    assert "21 sizes are resized to 32 x 32 (crop)" in said
    assert "8 of 42 images are the test part" in said


def test_a_network_decides_the_size_of_files(folder):
    images = load(folder, network_size=(20, 24), part="test")
    assert images.x_test.shape[1:] == (20, 24, 3)
    assert "21 sizes are resized to 20 x 24" in images.notes[-1]
    images = load(folder, network_size=(20, 24), image_size=16, part="test")
    assert images.x_test.shape[1:] == (16, 16, 3)


def test_every_path_gives_the_same_bytes(folder, tmp_path):
    """Memory, cache, test part and table give the same pixels of a file."""
    whole = load(folder, image_size=16)
    tested = load(folder, image_size=16, part="test")
    held = load(folder, image_size=16, part="test", test_fraction=0.2)
    np.testing.assert_array_equal(held.x_test, whole.x_test)
    rows = [
        f"{p.relative_to(tmp_path)},{p.parent.name}"
        for p in folder.rglob("*.*")
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(sorted(rows)))
    listed = sources.load(f"csv:{table}", image_size=16, part="test")
    np.testing.assert_array_equal(listed.x_test, tested.x_test)
    every = {x.tobytes() for x in (*whole.x_train, *whole.x_test)}
    assert every == {x.tobytes() for x in tested.x_test}
    for path, pixels in zip(sorted(rows), tested.x_test, strict=True):
        content = (tmp_path / path.partition(",")[0]).read_bytes()
        alone = decoding.decode(content)
        alone = resizing.resize(alone, (16, 16))
        np.testing.assert_array_equal(
            np.broadcast_to(alone, (16, 16, 3)), pixels
        )


def test_all_of_a_folder_is_tested_and_that_is_said(folder):
    images = load(folder, part="test", image_size=16)
    assert len(images.x_test) == 42 and len(images.x_train) == 0
    assert "all 42 images are tested" in images.notes[0]


def test_identical_files_stay_on_one_side(folder):
    first = folder / "apple/00.jpg"
    for number in range(8):
        (folder / f"apple/copy{number}.jpg").write_bytes(first.read_bytes())
    for seed in range(4):
        images = load(folder, image_size=16, seed=seed)
        train = {x.tobytes() for x in images.x_train}
        assert not train & {x.tobytes() for x in images.x_test}


STRAY = {
    "labels.txt": (b"apple\npear\n", "a text"),
    "a.ipynb": (b'{"cells": []}', "a notebook"),
    "b.png": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
}


def test_stray_files_are_skipped_with_one_warning(folder, tmp_path):
    expected = load(folder, image_size=16, part="test")
    for name, (content, _) in list(STRAY.items())[:2]:
        (folder / "apple" / name).write_bytes(content)
    options = {
        "image_size": 16,
        "part": "test",
        "cache_dir": tmp_path / "cache",
    }
    for _ in range(2):  # The second time from the cache.
        with pytest.warns(UserWarning) as warned:
            images = load(folder, **options)
        (warning,) = warned
        assert "skipped 2 of 44 files" in str(warning.message)
        assert "apple/labels.txt" in str(warning.message)
        np.testing.assert_array_equal(images.x_test, expected.x_test)
        np.testing.assert_array_equal(images.y_test, expected.y_test)
    with pytest.raises(ValueError) as error:
        load(folder, bad_images="refuse", **options)
    assert_one_line_error(error, "bad_images=refuse", "2 of 44")
    for name, (content, _) in STRAY.items():
        (folder / "pear" / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(folder, **options)
    assert_one_line_error(
        error, "95%", "5 of 47", "a.ipynb (a notebook)", "pear/a.ipynb", ", ..."
    )


def test_a_cut_off_jpeg_is_a_bad_image(folder):
    path = folder / "apple/01.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.warns(UserWarning, match=r"1 of 42 .*01\.jpg \(damaged"):
        load(folder, image_size=16)


def test_gray_alone_stays_gray(tmp_path):
    for name in ("a", "b"):
        for number, mode in enumerate(("L", "1", "LA", "L", "L")):
            save(image(9, 9, mode), tmp_path / name / f"{number}.png")
    assert load(tmp_path).x_test.shape == (2, 9, 9, 1)
    save(image(9, 9), tmp_path / "b/color.png")
    assert load(tmp_path).x_test.shape == (2, 9, 9, 3)


def test_a_folder_without_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    for size in (None, 16):
        with pytest.raises(ValueError) as error:
            load(tmp_path, image_size=size)
        assert_one_line_error(error, "images that can be decoded")


def test_large_images_need_a_size(tmp_path):
    for name in ("a", "b"):
        for number in range(3):
            save(image(70 + number, 80), tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert_one_line_error(error, "--image_size=32", "3 sizes")
