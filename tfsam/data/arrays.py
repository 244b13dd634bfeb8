"""Arrays of images and labels, as npz files and other packages give them."""

import pathlib
import zipfile
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.data import splitting
from tfsam.data.files import resizing
from tfsam.data.files.decoding import refusal
from tfsam.data.images import Images
from tfsam.data.images import as_float
from tfsam.data.options import Options
from tfsam.data.options import untested
from tfsam.data.rows import Rows

_MOST_CLASSES = 100_000  # A larger label is a mistake, not a class.


class _Part(NamedTuple):
    """Checked images and labels, and the number of their classes."""

    x: np.ndarray
    y: np.ndarray
    classes: int

    def where(self, chosen: np.ndarray) -> "_Part":
        """Returns the chosen examples."""
        return _Part(self.x[chosen], self.y[chosen], self.classes)


def images(arrays: Mapping[str, Any], options: Options) -> Images:
    """Checks arrays, and returns them as `Images`.

    Args:
        arrays: `x_train`, `y_train`, `x_test` and `y_test`, or `x` and `y`,
            which are split. If `options.part` is a single part, the two arrays
            of that part are enough, and `x` and `y` belong to it as a whole.
            `class_names` is optional; the default is the numbers of the
            classes.
        options: see `Options`.

    Raises:
        ValueError: if arrays are missing, of another form, or do not fit.
    """
    missing = _missing(arrays, options)
    if missing:
        raise refusal(
            f"a source must return {_expected(options)}",
            f"{', '.join(arrays)} without {', '.join(missing)}",
        )
    notes: tuple[str, ...] = ()
    if f"x_{options.splits[-1]}" in arrays:
        parts = {split: _part(arrays, f"_{split}") for split in options.splits}
    else:
        whole = _part(arrays, "")
        groups = whole.y if options.whole else splitting.of_arrays(whole.x)
        is_test = options.split(whole.y, groups)
        if "test" in options.splits and not is_test.any():
            raise untested("the file")
        parts = {"train": whole.where(~is_test), "test": whole.where(is_test)}
        notes = (options.note("the file", is_test, whole.y),)
    classes = max(part.classes for part in parts.values())
    if options.part == "all":
        _check_alike(parts["train"], parts["test"])
    for name in ("y_train", "y_test"):
        if name in arrays and name[2:] not in parts:  # May have more classes.
            _, known = _checked_labels(np.asarray(arrays[name]), name)
            classes = max(classes, known)
    given = next(iter(parts.values()))
    nothing = given.where(np.zeros(len(given.y), bool))
    train, test = (parts.get(split, nothing) for split in ("train", "test"))
    names = _names(arrays.get("class_names"), classes)
    return Images("", train.x, train.y, test.x, test.y, names, notes)


def _part(arrays: Mapping[str, Any], suffix: str) -> _Part:
    """Checks the images and labels whose names have a suffix."""
    x, y = f"x{suffix}", f"y{suffix}"
    pixels = _checked_pixels(np.asarray(arrays[x]), x)
    return _Part(
        pixels, *_checked_labels(np.asarray(arrays[y]), y, len(pixels))
    )


def resized(images: Images, options: Options) -> Images:
    """Gives images the size that is wanted, if any.

    Args:
        images: an `Images`.
        options: see `Options`.
    """
    size = options.size
    if size is None or size == images.x_test.shape[1:3]:
        return images

    def each(pixels: Any) -> Any:
        shape = (len(pixels), *size, pixels.shape[3])
        if isinstance(pixels, Rows):
            return pixels.mapped(each, shape[1:])
        made = np.empty(shape, pixels.dtype)
        for n, image in enumerate(pixels):
            made[n] = resizing.resize(image, size, options.resize)
        return made

    return images._replace(
        x_train=each(images.x_train), x_test=each(images.x_test)
    )


def read_npz(path: pathlib.Path, options: Options) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file that `images` needs.

    Args:
        path: the file.
        options: see `Options`.

    Raises:
        ValueError: if the file is missing, damaged, or lacks arrays.
    """
    if not path.is_file():
        raise refusal("npz:PATH must name an existing file", path)
    if not zipfile.is_zipfile(path):
        raise refusal("the file must be one that numpy.savez wrote", path)
    try:
        # Pickled objects could run code: refuse them.
        with np.load(path, allow_pickle=False) as archive:
            missing = _missing(archive, options)
            if not missing:
                wanted = [name for name in _KNOWN if name in archive]
                if options.part != "all":
                    pixels = f"x_{options.part}"
                    pixels = pixels if pixels in wanted else "x"
                    wanted = [n for n in wanted if n[0] != "x" or n == pixels]
                return {name: archive[name] for name in wanted}
    except Exception as e:  # Damaged files raise errors of many types.
        raise refusal(
            "the file must hold plain arrays that can be read, not pickled"
            " objects",
            f"{path} ({type(e).__name__}: {e})",
        ) from e
    raise refusal(
        f"the file must hold {_expected(options)}",
        f"{path} without {', '.join(missing)}",
    )


_KNOWN = (
    *("x_train", "y_train", "x_test", "y_test", "x", "y"),
    "class_names",
)


def _expected(options: Options) -> str:
    needed = [f"{kind}_{split}" for split in options.splits for kind in "xy"]
    return f"{', '.join(needed)}, or x, y"


def _missing(names: Collection[str], options: Options) -> list[str]:
    """Returns the names of arrays that are missing for the wanted part."""
    if {"x", "y"} <= {*names} and f"x_{options.splits[-1]}" not in names:
        return []
    needed = [f"{kind}_{split}" for split in options.splits for kind in "xy"]
    return [name for name in needed if name not in names]


def _check_alike(train: _Part, test: _Part) -> None:
    """Checks that the training and the test part fit each other."""
    shape = train.x.shape[1:]
    if shape != test.x.shape[1:]:
        raise refusal(
            f"x_test must have images of shape {shape}", test.x.shape[1:]
        )
    if train.x.dtype != test.x.dtype:
        raise refusal(
            f"x_test must be {train.x.dtype} like x_train", test.x.dtype
        )
    if len(np.unique(train.y)) < 2:
        raise refusal("y_train must hold two classes or more", "one class")
    largest = int(train.y.max())
    if test.y.max() > largest:
        raise refusal(
            f"y_test must not exceed y_train's largest label, {largest}",
            test.y.max(),
        )


def _names(given: Any, classes: int) -> tuple[str, ...]:
    """Returns the names of the classes, their numbers unless given."""
    names = tuple(map(str, range(classes) if given is None else given))
    if len(names) < classes:
        raise refusal(f"class_names must name {classes} classes", len(names))
    return names


def _checked_pixels(images: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 or float32 images with a channel axis, or raises."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or not images.size or images.shape[3] not in (1, 3):
        raise refusal(
            f"{name} must be (n, height, width) or (n, height, width, 1 or 3)",
            images.shape,
        )
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


def _checked_labels(
    labels: np.ndarray, name: str, count: int | None = None
) -> tuple[np.ndarray, int]:
    """Returns int64 labels of shape (n,) and the number of classes, or raises.

    Args:
        labels: (n,) or (n, 1) integers, or one-hot (n, classes).
        name: the name of the array, for the message.
        count: the number of labels that are needed, None for any.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    classes = 0
    if labels.ndim == 2 and _is_one_hot(labels):
        classes, labels = labels.shape[1], labels.argmax(axis=1)
    if labels.ndim != 1:
        raise refusal(f"{name} must be (n,), (n, 1) or one-hot", labels.shape)
    if count not in (None, len(labels)):
        raise refusal(f"{name} must have {count} labels", len(labels))
    if not np.issubdtype(labels.dtype, np.integer):
        raise refusal(f"{name} must be integers", labels.dtype)
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise refusal(
            f"{name} must be from 0 to {_MOST_CLASSES - 1}",
            f"labels from {labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int64), max(classes, int(labels.max()) + 1)


def _is_one_hot(labels: np.ndarray) -> bool:
    """Returns whether each row holds a single 1 among zeros."""
    is_one = labels == 1
    return bool(((labels == 0) | is_one).all() and (is_one.sum(1) == 1).all())
