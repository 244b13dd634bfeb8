"""Sources of images: `load` reads a data set by name into plain arrays.

`batches.py` turns the arrays into training batches.
"""

import difflib
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam import registries
from tfsam.data import folders
from tfsam.data import tfds
from tfsam.data.decoding import refusal
from tfsam.support import files
from tfsam.support.registry import option_names
from tfsam.support.validators import check_count

SOURCES = (
    "digits",
    "folder:PATH",
    "npz:PATH",
    "the name of a TFDS image data set, such as cifar10",
)

_CHUNK = 1024  # Images handled at once where all of them would not fit.
_MOST_CLASSES = 100_000  # A larger label is a mistake, not a class.

# Chooses the examples of a split to keep: (labels, "train" or "test") to
# whatever indexes an array.
_Pick = Callable[[np.ndarray, str], Any]


class Images(NamedTuple):
    """A labelled image data set in memory.

    Attributes:
      name: the source that the images were loaded from.
      x_train: (n, height, width, channels), uint8 in 0..255 or float32 in
        [0, 1]; height equals width, channels is 1 or 3.
      y_train: (n,) int64, the position of the class in `class_names`.
      x_test: like `x_train`, of the same image shape and dtype.
      y_test: like `y_train`.
      class_names: one name for each class.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits", limit_train=100, limit_test=20)
    >>> images  # doctest: +NORMALIZE_WHITESPACE
    Images(name='digits', train=100, test=20, shape=(8, 8, 1),
           dtype=float32, classes=10)
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"Images(name={self.name!r}, train={len(self.x_train)}, "
            f"test={len(self.x_test)}, shape={self.x_train.shape[1:]}, "
            f"dtype={self.x_train.dtype}, classes={len(self.class_names)})"
        )


def load(
    source: str,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Images:
    """Loads a data set by name.

    Args:
      source: one of
        `"digits"`: 1797 real images of digits, 8 x 8 and gray, that come
        with scikit-learn, always split 80/20 in the same way;
        `"folder:PATH"`: JPEG and PNG files `PATH/train/CLASS/*` and
        `PATH/test/CLASS/*`, all square and of one size;
        `"npz:PATH"`: a file of arrays `x_train`, `y_train`, `x_test` and
        `y_test`, x uint8 or float in [0, 1], y integers;
        `"NAME:LOCATION"` with the name of a source of another package, see
        `tfsam.registries.SOURCES`;
        any other name: an image classification data set of TensorFlow
        Datasets, such as `"cifar10"`, downloaded if it is missing.
      limit_train: the number of training examples to keep, at least the
        number of classes, or None for all. The subset keeps the proportions
        of the classes; `seed` chooses and shuffles it.
      limit_test: the same for test examples.
      seed: a non-negative integer, used by the limits alone.
      data_dir: where TensorFlow Datasets keeps its files, None for its
        default. Archives downloaded by hand go to `downloads/manual` there.
      cache_dir: the folder that keeps the decoded images of `"folder:PATH"`
        for later calls, such as `folders.default_cache()`; None keeps none.

    Returns:
      The `Images`.

    Raises:
      ValueError: if the source is unknown, unreachable or of another form
        than described above, or if a limit or the seed is out of range.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits", limit_train=100, limit_test=20)
    >>> images.x_test.shape, images.y_test.shape
    ((20, 8, 8, 1), (20,))
    """
    limits = {"train": limit_train, "test": limit_test}
    for split, limit in limits.items():
        if limit is not None:
            check_count(f"limit_{split}", limit, 1)
    check_count("seed", seed)

    def pick(labels: np.ndarray, split: str) -> Any:
        return _subset(labels, limits[split], seed, f"limit_{split}")

    kind, _, location = str(source).partition(":")
    names = {name.casefold(): name for name in registries.SOURCES.names()}
    if kind.casefold() not in names:
        return _load_tfds(str(source), pick, data_dir)
    read = registries.SOURCES.load(names[kind.casefold()])
    wanted = option_names(read) or set()
    given = {"pick": pick, "cache_dir": cache_dir}
    found = read(location, **{k: v for k, v in given.items() if k in wanted})
    images = found if isinstance(found, Images) else _images(found)
    images = images._replace(name=str(source))
    return images if "pick" in wanted else _limited(images, pick)


def listing(source: str) -> str | None:
    """Describes the files of a data set, so that a change is noticed.

    Args:
      source: as `load` takes it.

    Returns:
      A line with the number of files, their size, and a checksum of their
      names, sizes and times; None if the source has no files of its own.

    Example:
    >>> import tfsam
    >>> tfsam.data.listing("digits") is None
    True
    """
    kind, _, location = str(source).partition(":")
    path = files.expanded(location) if location else None
    if path is None or not path.exists():
        return None
    if kind == "folder" and path.is_dir():
        return files.listing(folders.entries(path))
    return files.listing(files.entries(path))


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Splits the training part, stratified, into two.

    Args:
      images: an `Images`.
      count: the number of training images to hold out, less than all.
      seed: a non-negative integer; the split depends on it alone.

    Returns:
      Two `Images`: the first without the held-out training images, the second
      with only these in its training part.

    Raises:
      ValueError: if `count` is less than the number of classes, or leaves
        nothing.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits")
    >>> train, held_out = tfsam.data.hold_out(images, 100, seed=0)
    >>> len(train.x_train), len(held_out.x_train)
    (1337, 100)
    """
    total = len(images.x_train)
    if count >= total:
        raise refusal(
            f"validation_images must be less than the {total} training images",
            count,
        )
    held = _subset(images.y_train, count, seed, "validation_images")
    rest = np.setdiff1d(np.arange(total), np.arange(total)[held])

    def part(chosen: np.ndarray | slice) -> Images:
        return images._replace(
            x_train=images.x_train[chosen], y_train=images.y_train[chosen]
        )

    return part(rest), part(held)


def sample(total: int, count: int, seed: int) -> np.ndarray:
    """Draws indices at random, without replacement.

    In many data sets the first images are all of one class, so a sample of them
    would mislead.

    Args:
      total: the number of examples.
      count: the number of examples to draw.
      seed: a non-negative integer.

    Returns:
      int64 (n,), where n is `count`, or `total` if that is smaller.

    Example:
    >>> import tfsam
    >>> len(tfsam.data.sample(1000, 200, seed=0))
    200
    """
    return np.random.default_rng(seed).permutation(total)[:count]


def as_float(images: np.ndarray) -> np.ndarray:
    """Converts pixels to float32.

    Args:
      images: uint8 in 0..255, or floats in [0, 1], of any shape.

    Returns:
      float32 in [0, 1], of the same shape; float32 is returned as it is.

    Raises:
      ValueError: if the images have another dtype.

    Example:
    >>> import numpy as np
    >>> import tfsam
    >>> float(tfsam.data.as_float(np.array([51], np.uint8))[0])
    0.20000000298023224
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise refusal("images must be uint8 or floats", images.dtype)
    return images.astype(np.float32, copy=False)


def statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and the standard deviation of each channel.

    Args:
      images: (n, height, width, channels), uint8 in 0..255 or floats in
        [0, 1].

    Returns:
      (means, deviations) of pixels in [0, 1], a tuple of one number a channel
      each. The deviation of a constant channel is 1, so that it is safe to
      divide by.

    Raises:
      ValueError: if the images are not a non-empty array of four dimensions,
        or have another dtype.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits")
    >>> mean, deviation = tfsam.data.statistics(images.x_train)
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise refusal(
            "images must be (n, height, width, channels)", images.shape
        )
    total = squares = np.zeros(images.shape[1:], np.float64)
    for start in range(0, len(images), _CHUNK):
        chunk = as_float(images[start : start + _CHUNK]).astype(np.float64)
        total = total + chunk.sum(axis=0)
        squares = squares + np.square(chunk).sum(axis=0)
    pixels = images[..., 0].size
    mean = total.sum(axis=(0, 1)) / pixels
    variance = squares.sum(axis=(0, 1)) / pixels - np.square(mean)
    # Rounding gives a constant channel a tiny variance: look at the pixels.
    lowest = images.min(axis=0).min(axis=(0, 1))
    constant = lowest == images.max(axis=0).max(axis=(0, 1))
    deviation = np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0.0)))
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _subset(
    labels: np.ndarray, limit: int | None, seed: int, name: str
) -> np.ndarray | slice:
    """Chooses `limit` shuffled examples, in the proportions of the classes."""
    if limit is None:
        return slice(None)
    classes, counts = np.unique(labels, return_counts=True)
    if limit < len(classes):
        raise refusal(
            f"{name} must be at least the number of classes, {len(classes)}",
            f"{name}={limit}",
        )
    limit = min(limit, len(labels))
    kept, remainders = np.divmod(counts * limit, len(labels))
    # Largest remainders are rounded up, but a class that has nothing yet goes
    # first: a class that is never seen is worse than one that is off by one.
    by_need = np.lexsort((-remainders, kept > 0))
    kept[by_need[: limit - kept.sum()]] += 1
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    chosen = np.zeros(len(labels), bool)
    for class_label, number in zip(classes, kept, strict=True):
        chosen[np.flatnonzero(shuffled == class_label)[:number]] = True
    return order[chosen]


def _limited(images: Images, pick: _Pick) -> Images:
    train = pick(images.y_train, "train")
    test = pick(images.y_test, "test")
    return images._replace(
        x_train=images.x_train[train],
        y_train=images.y_train[train],
        x_test=images.x_test[test],
        y_test=images.y_test[test],
    )


def read_digits(location: str) -> Images:
    """Reads the digits of scikit-learn.

    Args:
      location: must be empty: the digits are one data set.
    """
    if location:
        raise refusal("the source must be digits", f"digits:{location}")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    # The split is part of the data set, so it does not depend on the seed.
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in digits.target_names)
    return Images("digits", x_train, y_train, x_test, y_test, names)


def read_folder(
    location: str, pick: _Pick, cache_dir: str | os.PathLike[str] | None
) -> Images:
    """Reads a folder of images; see `folders.load`.

    Args:
      location: the folder.
      pick: a function from the labels of a split and its name to an index of
        the examples to keep.
      cache_dir: the folder of decoded images, or None.
    """
    if not location:
        raise refusal("the source must be folder:PATH", "folder:")
    cache = None if cache_dir is None else pathlib.Path(cache_dir)
    loaded = folders.load(files.expanded(location), pick, cache)
    return Images(f"folder:{location}", *loaded)


def read_npz(location: str) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file.

    Args:
      location: the file.
    """
    if not location:
        raise refusal("the source must be npz:PATH", "npz:")
    return _read_npz(files.expanded(location))


def _images(arrays: Mapping[str, Any]) -> Images:
    """Checks arrays of a source, and returns them as `Images`.

    Args:
      arrays: x_train, y_train, x_test and y_test; and class_names, the numbers
        of the classes unless they are given.
    """
    arrays = dict(arrays)
    names = arrays.pop("class_names", None)
    for split in ("train", "test"):
        x, y = f"x_{split}", f"y_{split}"
        arrays[x] = _checked_pixels(arrays[x], x)
        arrays[y] = _checked_labels(arrays[y], y, len(arrays[x]))
    shapes = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if shapes[0] != shapes[1]:
        raise refusal(
            f"x_test must have images of shape {shapes[0]}", shapes[1]
        )
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        raise refusal(
            f"x_test must be {arrays['x_train'].dtype} like x_train",
            arrays["x_test"].dtype,
        )
    if len(np.unique(arrays["y_train"])) < 2:
        raise refusal("y_train must hold two classes or more", "one class")
    largest = int(arrays["y_train"].max())
    if arrays["y_test"].max() > largest:
        raise refusal(
            f"y_test must not exceed y_train's largest label, {largest}",
            arrays["y_test"].max(),
        )
    names = tuple(map(str, range(largest + 1) if names is None else names))
    if len(names) <= largest:
        raise refusal(
            f"class_names must name {largest + 1} classes", len(names)
        )
    return Images("", class_names=names, **arrays)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise refusal("npz:PATH must name an existing file", path)
    if not zipfile.is_zipfile(path):
        raise refusal("the file must be one that numpy.savez wrote", path)
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        # Pickled objects could run code: refuse them.
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if not missing:
                return {name: archive[name] for name in names}
    except Exception as e:  # Damaged files raise errors of many types.
        raise refusal(
            "the file must hold plain arrays that can be read, not pickled"
            " objects",
            f"{path} ({type(e).__name__}: {e})",
        ) from e
    raise refusal(
        f"the file must hold {', '.join(names)}",
        f"{path} without {', '.join(missing)}",
    )


def _checked_pixels(images: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 or float32 images with a channel axis, or raises."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or not images.size or images.shape[3] not in (1, 3):
        raise refusal(
            f"{name} must be (n, height, width) or (n, height, width, 1 or 3)",
            images.shape,
        )
    if images.shape[1] != images.shape[2]:
        raise refusal(f"{name} must hold square images", images.shape)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise refusal(f"{name} must be uint8 or floats in [0, 1]", images.dtype)
    # Not-a-number fails this comparison too.
    if not (images.min() >= 0 and images.max() <= 1):
        raise refusal(
            f"{name} must be uint8 or finite floats in [0, 1]",
            f"floats from {images.min()} to {images.max()}",
        )
    return as_float(images)


def _checked_labels(labels: np.ndarray, name: str, count: int) -> np.ndarray:
    """Returns int64 labels of shape (count,), or raises."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise refusal(f"{name} must be (n,) or (n, 1)", labels.shape)
    if len(labels) != count:
        raise refusal(f"{name} must have {count} labels", len(labels))
    if not np.issubdtype(labels.dtype, np.integer):
        raise refusal(f"{name} must be integers", labels.dtype)
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise refusal(
            f"{name} must be from 0 to {_MOST_CLASSES - 1}",
            f"labels from {labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int64)


def _load_tfds(
    source: str, pick: _Pick, data_dir: str | os.PathLike[str] | None
) -> Images:
    known = tfds.names(source)
    base = re.split("[/:]", source)[0]
    if base not in known:
        near = difflib.get_close_matches(base, [*known, "digits"], n=5)
        hint = f" (near matches: {', '.join(near)})" if near else ""
        raise refusal(
            f"the source must be one of {'; '.join(SOURCES)}{hint}",
            repr(source),
        )
    return Images(source, *tfds.load(source, pick, data_dir))
