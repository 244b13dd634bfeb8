import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_one_line_error

from tfsam import data
from tfsam.data import sources

RNG = np.random.default_rng(0)


def make_image(side=8, channels=3):
    shape = (side, side) if isinstance(side, int) else side
    return RNG.integers(0, 256, (*shape, channels), dtype=np.uint8)


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        encoded = tf.io.encode_png(image)
    else:
        encoded = tf.io.encode_jpeg(image, quality=100)
    path.write_bytes(encoded.numpy())


def over_white(image):
    """Lays an image with opacity in its last channel over white."""
    if image.shape[2] in (1, 3):
        return image
    color, alpha = image[..., :-1].astype(float), image[..., -1:] / 255
    return np.round(color * alpha + 255 * (1 - alpha))


def make_folder(root, per_class=3, channels=3):
    """Writes train and test folders; returns the images by relative path."""
    images = {}
    for split in ("train", "test"):
        for name in ("cat", "ant"):
            for number in range(per_class):
                path = f"{split}/{name}/{number}.png"
                images[path] = make_image(channels=channels)
                write_image(root / path, images[path])
    return images


def make_arrays(n_train=6, n_test=4, shape=(8, 8, 3)):
    return {
        "x_train": RNG.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train) % 3,
        "x_test": RNG.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test) % 3,
    }


# Sources.


def test_digits():
    images = sources.load("digits")
    assert images.name == "digits"
    assert images.x_train.shape == (1437, 8, 8, 1)
    assert images.x_test.shape == (360, 8, 8, 1)
    assert images.x_train.dtype == np.float32
    assert images.y_train.dtype == images.y_test.dtype == np.int64
    assert images.class_names == tuple("0123456789")
    assert 0 <= images.x_train.min() and images.x_train.max() == 1
    shares = np.bincount(images.y_test) / (
        np.bincount(images.y_train) + np.bincount(images.y_test)
    )
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    other = sources.load("digits", seed=5)
    np.testing.assert_array_equal(other.x_test, images.x_test)


def test_folder(tmp_path):
    files = make_folder(tmp_path)
    (tmp_path / "train/cat/Thumbs.db").write_text("not an image")
    (tmp_path / "train/cat/.hidden.png").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/README.md").write_text("not a class")
    images = sources.load(f"folder:{tmp_path}")
    assert images.class_names == ("ant", "cat")
    assert images.x_train.dtype == np.uint8
    assert (
        images.y_train.tolist() == images.y_test.tolist() == [0] * 3 + [1] * 3
    )
    expected = [
        files[f"test/{name}/{number}.png"]
        for name in ("ant", "cat")
        for number in range(3)
    ]
    np.testing.assert_array_equal(images.x_test, expected)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match=r"Received: .*notes\.txt \(a text\)$"):
        sources.load(f"folder:{tmp_path}")


def test_folder_suffixes_and_jpeg(tmp_path):
    make_folder(tmp_path)
    smooth = np.linspace(0, 255, 8).astype(np.uint8)
    smooth = np.broadcast_to(smooth[:, None, None], (8, 8, 3))
    for name in ("a.JPG", "b.jpeg", "c.Png"):
        write_image(tmp_path / "train/ant" / name, smooth)
    images = sources.load(f"folder:{tmp_path}")
    assert len(images.x_train) == 9
    assert np.abs(images.x_train[3:6].astype(int) - smooth).max() <= 2


def test_jpeg_is_decoded_accurately(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    make_folder(tmp_path)
    path = tmp_path / "train/ant/0.jpg"
    write_image(path, make_image())
    images = sources.load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(
        images.x_train[0], np.asarray(image_module.open(path))
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(1, 1, 1), (2, 1, 1), (1, 3, 3), (4, 1, 3), (4, 3, 3)],
)
def test_folder_channels(tmp_path, first, second, expected):
    files = make_folder(tmp_path, channels=first)
    last = make_image(channels=second)
    write_image(tmp_path / "test/cat/2.png", last)
    first_image = over_white(files["train/ant/0.png"])
    images = sources.load(f"folder:{tmp_path}")
    assert images.x_train.shape == (6, 8, 8, expected)
    np.testing.assert_array_equal(
        images.x_train[0], np.broadcast_to(first_image, (8, 8, expected))
    )
    np.testing.assert_array_equal(
        images.x_test[-1], np.broadcast_to(last, (8, 8, expected))
    )


def test_folder_test_may_lack_a_class(tmp_path):
    make_folder(tmp_path)
    for path in (tmp_path / "test/ant").iterdir():
        path.unlink()
    (tmp_path / "test/ant").rmdir()
    assert sources.load(f"folder:{tmp_path}").y_test.tolist() == [1, 1, 1]


def test_folder_limit_is_applied_before_decoding(tmp_path):
    make_folder(tmp_path, per_class=10)
    whole = sources.load(
        f"folder:{tmp_path}", limit_train=6, limit_test=4, seed=3
    )
    assert sorted(whole.y_train) == [0] * 3 + [1] * 3
    # Damages the files that were not chosen: they must not be read.
    chosen = {image.tobytes() for image in (*whole.x_train, *whole.x_test)}
    for path in tmp_path.rglob("*.png"):
        image = tf.io.decode_png(path.read_bytes()).numpy()
        if image.tobytes() not in chosen:
            path.write_bytes(b"spoiled")
    again = sources.load(
        f"folder:{tmp_path}", limit_train=6, limit_test=4, seed=3
    )
    np.testing.assert_array_equal(again.x_train, whole.x_train)
    np.testing.assert_array_equal(again.y_test, whole.y_test)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_npz(tmp_path, dtype):
    arrays = make_arrays(shape=(8, 8))
    arrays["y_train"] = arrays["y_train"][:, np.newaxis].astype(np.uint8)
    if dtype != np.uint8:
        for name in ("x_train", "x_test"):
            arrays[name] = (arrays[name] / 255).astype(dtype)
    np.savez(tmp_path / "a.npz", **arrays, more=np.zeros(1))
    images = sources.load(f"npz:{tmp_path / 'a.npz'}")
    assert images.x_train.shape == (6, 8, 8, 1)
    assert images.x_train.dtype == (np.uint8 if dtype == np.uint8 else "f4")
    np.testing.assert_array_equal(
        images.x_test[..., 0], arrays["x_test"].astype(images.x_test.dtype)
    )
    assert images.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.y_train.dtype == np.int64
    assert images.class_names == ("0", "1", "2")


# Errors.


def only_one_class(root):
    make_folder(root)
    for split in ("train", "test"):
        for path in (root / split / "ant").iterdir():
            path.unlink()
        (root / split / "ant").rmdir()


def empty_class(root):
    make_folder(root)
    (root / "train/dog").mkdir()


def empty_test(root):
    make_folder(root)
    (root / "test").rename(root / "elsewhere")
    (root / "test").mkdir()


def unknown_class(root):
    make_folder(root)
    write_image(root / "test/zebra/0.png", make_image())


def no_image(root):
    make_folder(root)
    (root / "test/cat/1.png").write_text("no image")


def first_is_no_image(root):
    make_folder(root)
    (root / "train/ant/0.png").write_bytes(b"")


def truncated(root):
    make_folder(root)
    write_image(root / "train/ant/5.jpg", make_image(64))
    content = (root / "train/ant/5.jpg").read_bytes()
    (root / "train/ant/5.jpg").write_bytes(content[:200])


@pytest.mark.parametrize(
    ("prepare", "parts"),
    [
        (lambda root: None, ["train and test", "train"]),
        (lambda root: (root / "train").mkdir(), ["train and test", "test"]),
        (
            lambda root: [(root / x).mkdir() for x in ("train", "test")],
            ["two classes", "no folder"],
        ),
        (only_one_class, ["two classes", "Received: cat"]),
        (empty_class, ["train/dog", "none"]),
        (empty_test, ["test must hold"]),
        (unknown_class, ["test must hold classes of train", "zebra"]),
        (no_image, ["must be images", "1 of 12", "test/cat/1.png (a text)"]),
        (first_is_no_image, ["must be images", "train/ant/0.png (empty)"]),
        (truncated, ["must be images", "train/ant/5.jpg (damaged"]),
    ],
)
def test_folder_errors(tmp_path, prepare, parts):
    prepare(tmp_path)
    with pytest.raises(ValueError) as error:
        sources.load(f"folder:{tmp_path}")
    assert_one_line_error(error, *parts)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("folder:", "folder:PATH"),
        ("npz:", "npz:PATH"),
        ("folder:/no/such/folder", "no folder /no/such/folder"),
        ("npz:/no/such/file.npz", "/no/such/file.npz"),
        ("cifar11", "cifar10"),
        ("digit", "digits"),
        ("qwertyuiop", "folder:PATH"),
        ("", "folder:PATH"),
        ("../secret", "npz:PATH"),
        ("cifar10/no_such_config", "no_such_config"),
        ("titanic", "features image"),
    ],
)
def test_source_errors(tmp_path, source, part):
    with pytest.raises(ValueError) as error:
        sources.load(source, data_dir=tmp_path)
    assert_one_line_error(error, part)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x_test": None, "y_test": None}, ["without x_test, y_test"]),
        ({"x_train": np.zeros((6, 8))}, ["x_train", "(6, 8)"]),
        ({"x_train": np.zeros((6, 8, 8, 2))}, ["1 or 3", "(6, 8, 8, 2)"]),
        ({"x_train": np.zeros((6, 8, 7))}, ["(8, 7, 1)", "(8, 8, 3)"]),
        ({"x_train": np.zeros((0, 8, 8, 3))}, ["x_train", "(0, 8, 8, 3)"]),
        ({"x_train": np.zeros((6, 8, 8, 3), int)}, ["uint8", "int64"]),
        ({"x_test": np.full((4, 8, 8, 3), 1.5)}, ["[0, 1]", "1.5"]),
        ({"x_test": np.full((4, 8, 8, 3), -0.5)}, ["[0, 1]", "-0.5"]),
        ({"x_test": np.full((4, 8, 8, 3), np.nan)}, ["finite", "nan"]),
        ({"x_test": np.full((4, 8, 8, 3), np.inf)}, ["finite", "inf"]),
        ({"x_test": np.zeros((4, 9, 9, 3), np.uint8)}, ["(8, 8, 3)"]),
        ({"x_test": np.zeros((4, 8, 8, 3))}, ["x_test must be uint8"]),
        ({"y_train": np.zeros((6, 2), int)}, ["y_train", "(6, 2)"]),
        ({"y_train": np.arange(5)}, ["6 labels", "Received: 5"]),
        ({"y_train": np.arange(6.0)}, ["integers", "float64"]),
        ({"y_train": np.ones(6, bool)}, ["integers", "bool"]),
        ({"y_train": np.arange(6) - 1}, ["from 0", "-1"]),
        ({"y_train": np.arange(6) * 10**12}, ["99999", "5000000000000"]),
        ({"y_train": np.zeros(6, int)}, ["two classes"]),
        ({"y_test": np.arange(4) + 2}, ["y_test", "largest label, 2"]),
        ({"y_test": np.array([0, 1, None, 2])}, ["pickled", "Object"]),
    ],
)
def test_npz_errors(tmp_path, changes, parts):
    arrays = {**make_arrays(), **changes}
    np.savez(
        tmp_path / "a.npz",
        **{name: x for name, x in arrays.items() if x is not None},
    )
    with pytest.raises(ValueError) as error:
        sources.load(f"npz:{tmp_path / 'a.npz'}")
    assert_one_line_error(error, *parts)


@pytest.mark.parametrize("kind", ["text", "npy", "empty", "zip", "cut"])
def test_npz_that_is_none(tmp_path, kind):
    path = tmp_path / "a.npz"
    np.savez(path, **make_arrays())
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "zip":  # A valid index, but spoiled content.
        content = bytearray(path.read_bytes())
        content[200:400] = bytes(200)
        path.write_bytes(content)
    else:
        content = {"text": b"text", "empty": b""}.get(kind)
        path.write_bytes(
            path.read_bytes()[:500] if content is None else content
        )
    with pytest.raises(ValueError) as error:
        sources.load(f"npz:{path}")
    assert_one_line_error(error, str(path))


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", True, 9])
@pytest.mark.parametrize("name", ["limit_train", "limit_test"])
def test_limit_errors(name, limit):
    with pytest.raises(ValueError) as error:
        sources.load("digits", **{name: limit})
    assert_one_line_error(error, f"Received: {name}={limit}")


def test_seed_error():
    with pytest.raises(ValueError, match=r"seed .* Received: seed=-1"):
        sources.load("digits", seed=-1)


# Limits.


def test_limits():
    whole = sources.load("digits")
    some = sources.load("digits", limit_train=100, limit_test=10_000, seed=1)
    assert some.x_train.shape == (100, 8, 8, 1)
    assert np.bincount(some.y_train).tolist() == pytest.approx([10] * 10, abs=1)
    assert len(some.x_test) == len(whole.x_test)
    again = sources.load("digits", limit_train=100, seed=1)
    np.testing.assert_array_equal(again.x_train, some.x_train)
    other = sources.load("digits", limit_train=100, seed=2)
    assert not np.array_equal(other.y_train, some.y_train)
    assert np.any(np.diff(some.y_train) < 0)
    # Images keep their labels.
    labels = {
        image.tobytes(): label
        for image, label in zip(whole.x_train, whole.y_train, strict=True)
    }
    assert [labels[x.tobytes()] for x in some.x_train] == some.y_train.tolist()


@hypothesis.given(
    counts=st.lists(st.integers(1, 200), min_size=2, max_size=12),
    extra=st.integers(0, 1000),
    seed=st.integers(0, 5),
)
def test_subset_is_stratified(counts, extra, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    limit = len(counts) + extra
    chosen = data.images.subset(labels, limit, seed, "limit")
    assert len(chosen) == len(set(chosen)) == min(limit, len(labels))
    kept = np.bincount(labels[chosen], minlength=len(counts))
    quotas = np.array(counts) * len(chosen) / len(labels)
    assert np.all(np.abs(kept - quotas) < 1 + 1e-9)


def test_subset_prefers_a_class_that_would_be_missing():
    labels = np.repeat([0, 1, 2], [66, 33, 1])
    chosen = data.images.subset(labels, 50, 0, "limit")
    assert np.bincount(labels[chosen]).tolist() == [33, 16, 1]


def test_a_sample_is_of_all_and_the_seed_s():
    found = data.sample(1000, 100, seed=3)
    assert len(set(found)) == 100 and found.max() < 1000
    # Class by class, as folders are listed: none is left out.
    assert set(np.repeat(np.arange(10), 100)[found]) == set(range(10))
    np.testing.assert_array_equal(found, data.sample(1000, 100, seed=3))
    assert sorted(data.sample(5, 100, seed=0)) == [0, 1, 2, 3, 4]
