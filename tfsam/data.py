"""Images as plain arrays, and a deterministic, resumable training pipeline.

`load` reads a data set into four NumPy arrays, whatever its source;
`training_batches` turns two of them into shuffled and augmented batches whose
content depends on nothing but the seed, the epoch and the position, so that
an interrupted run can continue exactly where it stopped.
"""

import contextlib
import difflib
import numbers
import os
import pathlib
import re
import threading
import zipfile
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

SOURCES = (
    "digits",
    "folder:PATH",
    "npz:PATH",
    "the name of a TFDS image data set, such as cifar10",
)

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# What file managers leave in folders.
_DROPPINGS = ("Thumbs.db", "desktop.ini")
_PADDING = 4
_CHUNK = 1024  # Images handled at once where all of them would not fit.
_MOST_CLASSES = 100_000  # A larger label is a mistake, not a class.
_PROBE_SECONDS = 6.0

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
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


def load(
    source: str,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
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
        anything else: an image classification data set of TensorFlow
        Datasets, such as `"cifar10"`, downloaded unless it is there.
      limit_train: the number of training examples to keep, at least the
        number of classes, or None for all. The subset has the proportions
        of the classes and is shuffled, both by `seed`.
      limit_test: the same for test examples.
      seed: a non-negative integer, used by the limits alone.
      data_dir: where TensorFlow Datasets keeps its files, None for its
        default. Archives downloaded by hand go to `downloads/manual` there.

    Returns:
      The `Images`.

    Raises:
      ValueError: if the source is unknown, cannot be reached, or does not
        hold what is described above, or if a limit or the seed is out of
        range.
    """
    limits = {"train": limit_train, "test": limit_test}
    for split, limit in limits.items():
        if limit is not None:
            _check_integer(f"limit_{split}", limit, 1)
    _check_integer("seed", seed, 0)

    def pick(labels: np.ndarray, split: str) -> Any:
        return _subset(labels, limits[split], seed, f"limit_{split}")

    kind, _, location = str(source).partition(":")
    if source == "digits":
        return _load_digits(pick)
    if kind in ("folder", "npz"):
        if not location:
            raise _error(f"the source must be {kind}:PATH", source)
        load_path = _load_folder if kind == "folder" else _load_npz
        return load_path(pathlib.Path(location).expanduser(), source, pick)
    return _load_tfds(str(source), pick, data_dir)


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Splits the training part, stratified, into what is trained on and not.

    Args:
      images: an `Images`.
      count: how many training images are held out, less than all.
      seed: a non-negative integer; the split depends on it alone.

    Returns:
      (the images without the held-out ones, the images with only these in
      their training part).

    Raises:
      ValueError: if `count` is less than the number of classes, or leaves
        nothing.
    """
    total = len(images.x_train)
    if count >= total:
        raise _error(
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


def as_float(images: np.ndarray) -> np.ndarray:
    """Converts pixels to float32.

    Args:
      images: uint8 in 0..255, or floats in [0, 1], of any shape.

    Returns:
      float32 in [0, 1], of the same shape; float32 is returned as it is.

    Raises:
      ValueError: if the images have another dtype.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise _error("images must be uint8 or floats", images.dtype)
    return images.astype(np.float32, copy=False)


def statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and the standard deviation of each channel.

    Args:
      images: (n, height, width, channels), as `as_float` takes them.

    Returns:
      The means and the standard deviations of pixels in [0, 1], one of each
      per channel. The deviation of a constant channel is given as 1, so that
      it is safe to divide by.

    Raises:
      ValueError: if the images are not a non-empty array of four dimensions,
        or have another dtype.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise _error(
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


def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shifts each image by up to 4 pixels and flips every other one.

    The images are padded by 4 reflected pixels on each side, cropped back at
    a random place, and flipped left to right with probability 1/2.

    Args:
      images: (batch, height, width, channels), height and width at least 5.
      seed: int32 or int64 (2,), which alone decides the shifts and the flips.

    Returns:
      A tensor of the shape and dtype of `images`.
    """
    images = tf.convert_to_tensor(images)
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    border = [_PADDING, _PADDING]
    padded = tf.pad(images, [[0, 0], border, border, [0, 0]], "REFLECT")
    # One draw holds the three choices: a row and a column offset, a flip.
    offsets = 2 * _PADDING + 1
    draw = tf.random.stateless_uniform(
        [batch, 1], seed, 0, offsets * offsets * 2, tf.int32
    )
    flip, row, column = draw % 2, draw // 2 % offsets, draw // 2 // offsets
    positions = tf.range(width)
    columns = column + tf.where(flip == 1, positions[::-1], positions)
    rows = row + tf.range(height)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    initial_epoch: int = 0,
    initial_step: int = 0,
    augment: bool = False,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Makes the batches of a whole training run, one epoch after another.

    The order of an epoch and its augmentation depend on the seed, the epoch
    and the position alone: a data set that starts at `initial_epoch`, or at a
    step of it, gives exactly the batches that an uninterrupted one gives from
    there on. Pass
    `steps_per_epoch`, n / batch_size rounded up (down with
    `drop_remainder`), to `fit`.

    Args:
      images: (n, height, width, channels), uint8 in 0..255 or floats in
        [0, 1].
      labels: (n,) integers.
      batch_size: examples per batch; the last batch of an epoch may be
        smaller, and no batch crosses into the next epoch.
      epochs: the epoch to stop before, as in `fit`.
      seed: a non-negative integer.
      initial_epoch: the epoch to start at, as in `fit`.
      initial_step: the step of that epoch to start at.
      augment: whether to shift and flip the images, see `augment`.
      drop_remainder: whether to leave out a smaller last batch.

    Returns:
      A `tf.data.Dataset` of known cardinality that yields float32 images in
      [0, 1] and int64 labels.

    Raises:
      ValueError: if the arrays do not fit together, or a number is out of
        range.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8:
        images = as_float(images)
    _check_training_arrays(images, labels, augment)
    _check_integer("batch_size", batch_size, 1)
    _check_integer("initial_epoch", initial_epoch, 0)
    _check_integer("initial_step", initial_step, 0)
    _check_integer("epochs", epochs, initial_epoch)
    _check_integer("seed", seed, 0)
    count = len(images)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    if not steps:
        raise _error(
            f"batch_size must be at most the {count} examples with"
            " drop_remainder",
            batch_size,
        )
    static_size = batch_size if drop_remainder else None
    with tf.device("CPU:0"):  # The images stay out of an accelerator's memory.
        all_images = tf.convert_to_tensor(images)
        all_labels = tf.convert_to_tensor(labels.astype(np.int64))

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count), epoch_seed
        )

        def step_indices(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            indices = order[step * batch_size : (step + 1) * batch_size]
            step_seed = tf.random.fold_in(epoch_seed, step)
            return tf.ensure_shape(indices, [static_size]), step_seed

        return tf.data.Dataset.range(steps).map(step_indices)

    def batch(
        indices: tf.Tensor, step_seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = tf.gather(all_images, indices)
        if chosen.dtype == tf.uint8:
            chosen = tf.cast(chosen, tf.float32) / 255.0
        if augment:
            chosen = _augment(chosen, step_seed)
        return chosen, tf.gather(all_labels, indices)

    total = max((epochs - initial_epoch) * steps - initial_step, 0)
    return (
        tf.data.Dataset.range(initial_epoch, epochs)
        .flat_map(epoch_indices)
        .skip(initial_step)
        .map(batch, num_parallel_calls=tf.data.AUTOTUNE)
        .apply(tf.data.experimental.assert_cardinality(total))
        .prefetch(tf.data.AUTOTUNE)
    )


_augment = augment  # `training_batches` has an argument of that name.


def _error(expected: str, received: object) -> ValueError:
    """Makes the one kind of error here: what was expected, what came."""
    return ValueError(" ".join(f"{expected}. Received: {received}".split()))


def _check_integer(name: str, value: Any, lowest: int) -> None:
    is_integer = isinstance(value, numbers.Integral)
    if not is_integer or isinstance(value, bool) or value < lowest:
        raise _error(f"{name} must be an integer of at least {lowest}", value)


def _check_training_arrays(
    images: np.ndarray, labels: np.ndarray, augmented: bool
) -> None:
    if images.ndim != 4 or not images.size:
        raise _error(
            "images must be (n, height, width, channels)", images.shape
        )
    if labels.shape != images.shape[:1]:
        raise _error(f"labels must be ({len(images)},)", labels.shape)
    if not np.issubdtype(labels.dtype, np.integer):
        raise _error("labels must be integers", labels.dtype)
    if augmented and min(images.shape[1:3]) <= _PADDING:
        raise _error(
            f"augmented images must have more than {_PADDING} pixels a side",
            images.shape,
        )


def _subset(
    labels: np.ndarray, limit: int | None, seed: int, name: str
) -> np.ndarray | slice:
    """Chooses `limit` shuffled examples, in the proportions of the classes."""
    if limit is None:
        return slice(None)
    classes, counts = np.unique(labels, return_counts=True)
    if limit < len(classes):
        raise _error(
            f"{name} must be at least the number of classes, {len(classes)}",
            limit,
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


def _load_digits(pick: _Pick) -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    # The split is part of the data set: no seed of the user's may move it.
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in digits.target_names)
    images = Images("digits", x_train, y_train, x_test, y_test, names)
    return _limited(images, pick)


def _load_npz(path: pathlib.Path, source: str, pick: _Pick) -> Images:
    arrays = _read_npz(path)
    for split in ("train", "test"):
        x, y = f"x_{split}", f"y_{split}"
        arrays[x] = _checked_pixels(arrays[x], x)
        arrays[y] = _checked_labels(arrays[y], y, len(arrays[x]))
    shapes = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if shapes[0] != shapes[1]:
        raise _error(f"x_test must have images of shape {shapes[0]}", shapes[1])
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        raise _error(
            f"x_test must be {arrays['x_train'].dtype} like x_train",
            arrays["x_test"].dtype,
        )
    if len(np.unique(arrays["y_train"])) < 2:
        raise _error("y_train must hold two classes or more", "one class")
    largest = int(arrays["y_train"].max())
    if arrays["y_test"].max() > largest:
        raise _error(
            f"y_test must not exceed y_train's largest label, {largest}",
            arrays["y_test"].max(),
        )
    names = tuple(str(label) for label in range(largest + 1))
    return _limited(Images(source, class_names=names, **arrays), pick)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise _error("npz:PATH must name an existing file", path)
    if not zipfile.is_zipfile(path):
        raise _error("the file must be what numpy.savez writes", path)
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        # Pickled objects could run code: refuse them.
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if not missing:
                return {name: archive[name] for name in names}
    except Exception as e:  # A file can be broken in more ways than one knows.
        raise _error(
            "the file must hold plain arrays that can be read, not pickled"
            " objects",
            f"{path} ({type(e).__name__}: {e})",
        ) from e
    raise _error(
        f"the file must hold {', '.join(names)}",
        f"{path} without {', '.join(missing)}",
    )


def _checked_pixels(images: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 or float32 images with a channel axis, or raises."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or not images.size or images.shape[3] not in (1, 3):
        raise _error(
            f"{name} must be (n, height, width) or (n, height, width, 1 or 3)",
            images.shape,
        )
    if images.shape[1] != images.shape[2]:
        raise _error(f"{name} must hold square images", images.shape)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise _error(f"{name} must be uint8 or floats in [0, 1]", images.dtype)
    # Not-a-number fails this comparison too.
    if not (images.min() >= 0 and images.max() <= 1):
        raise _error(
            f"{name} must be uint8 or finite floats in [0, 1]",
            f"floats from {images.min()} to {images.max()}",
        )
    return as_float(images)


def _checked_labels(labels: np.ndarray, name: str, count: int) -> np.ndarray:
    """Returns int64 labels of shape (count,), or raises."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise _error(f"{name} must be (n,) or (n, 1)", labels.shape)
    if len(labels) != count:
        raise _error(f"{name} must have {count} labels", len(labels))
    if not np.issubdtype(labels.dtype, np.integer):
        raise _error(f"{name} must be integers", labels.dtype)
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise _error(
            f"{name} must be from 0 to {_MOST_CLASSES - 1}",
            f"labels from {labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int64)


def _load_folder(path: pathlib.Path, source: str, pick: _Pick) -> Images:
    for folder in (path, path / "train", path / "test"):
        if not folder.is_dir():
            raise _error(
                "folder:PATH must name a folder that holds train and test",
                f"no folder {folder}",
            )
    classes = _class_folders(path / "train")
    if len(classes) < 2:
        raise _error(
            f"{path / 'train'} must hold a folder for each of two classes or"
            " more",
            ", ".join(classes) or "no folder",
        )
    unknown = sorted(set(_class_folders(path / "test")) - set(classes))
    if unknown:
        raise _error(
            f"{path / 'test'} must hold classes of train only",
            ", ".join(unknown),
        )
    train_files, y_train = _list_files(path / "train", classes)
    test_files, y_test = _list_files(path / "test", classes)
    train, test = pick(y_train, "train"), pick(y_test, "test")
    train_files, test_files = train_files[train], test_files[test]
    files = [*train_files, *test_files]
    images = _decode(files, files, tf.io.read_file)
    return Images(
        source,
        images[: len(train_files)],
        y_train[train],
        images[len(train_files) :],
        y_test[test],
        tuple(classes),
    )


def _class_folders(folder: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _list_files(
    folder: pathlib.Path, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Lists the image files of a split, (n,) paths and (n,) int64 labels."""
    present = set(_class_folders(folder))
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in present:  # Only a test folder can lack a class.
            continue
        found = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if entry.is_file()
            and not entry.name.startswith(".")
            and entry.name not in _DROPPINGS
        )
        for path in found:
            if not path.lower().endswith(_IMAGE_SUFFIXES):
                raise _error(
                    f"a class must hold files {', '.join(_IMAGE_SUFFIXES)} "
                    "only",
                    path,
                )
        if not found:
            raise _error(
                f"a class must hold files {', '.join(_IMAGE_SUFFIXES)}",
                f"none in {folder / name}",
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise _error(f"{folder} must hold class folders", "none")
    return np.array(files), np.array(labels, np.int64)


def _decode(
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
      uint8 (n, side, side, channels), 1 channel if all images are gray, else
      3; transparency is dropped.
    """
    side = _checked_side(entries[0], names[0], read)

    def decode(entry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = _decode_one(read(entry))
        # Channels are gray, gray and alpha, RGB, or RGB and alpha.
        is_gray = tf.shape(image)[2] <= 2
        rgb = tf.where(is_gray, [0, 0, 0], [0, 1, 2])
        image = tf.gather(image, rgb, axis=2)
        return tf.ensure_shape(image, [side, side, 3]), is_gray

    batches = (
        tf.data.Dataset.from_tensor_slices(entries)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_CHUNK)
        .prefetch(1)
    )
    images = np.empty((len(entries), side, side, 3), np.uint8)
    all_gray, start = True, 0
    try:
        for batch, are_gray in batches.as_numpy_iterator():
            images[start : start + len(batch)] = batch
            all_gray = all_gray and bool(are_gray.all())
            start += len(batch)
    except tf.errors.OpError:
        # The pipeline does not say which image failed: look for it.
        for entry, name in zip(entries[start:], names[start:], strict=True):
            _checked_side(entry, name, read, side)
        raise
    return images[..., :1].copy() if all_gray else images


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
        raise _error(
            "an image file must be a JPEG or PNG that can be decoded", name
        ) from error
    height, width = image.shape[:2]
    if height != width:
        raise _error("images must be square", f"{height} x {width} in {name}")
    if expected not in (None, height):
        raise _error(
            f"images must have the size of the first, {expected} x {expected}",
            f"{height} x {width} in {name}",
        )
    return height


def _load_tfds(
    source: str, pick: _Pick, data_dir: str | os.PathLike | None
) -> Images:
    try:
        import tensorflow_datasets as tfds
    except Exception as error:
        # Its own requirements clash with those of some TensorFlow versions.
        raise ImportError(
            f"tensorflow-datasets cannot be imported ({error}). "
            f"Received: {source}"
        ) from error

    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", source)[0]
    if base not in known:
        near = difflib.get_close_matches(base, [*known, "digits"], n=5)
        hint = f" (near matches: {', '.join(near)})" if near else ""
        raise _error(
            f"the source must be one of {'; '.join(SOURCES)}{hint}",
            repr(source),
        )
    # Builders run the code of hundreds of data sets and raise anything.
    try:
        builder = tfds.builder(source, data_dir=data_dir, try_gcs=False)
        features = builder.info.features
    except Exception as error:
        raise _error(f"TFDS cannot build {source}: {error}", source) from error
    if not (
        "image" in features
        and "label" in features
        and isinstance(features["image"], tfds.features.Image)
        and isinstance(features["label"], tfds.features.ClassLabel)
        and features["image"].np_dtype == np.uint8
    ):
        raise _error(
            "a TFDS source must have the features image (uint8) and label",
            f"{source} with {', '.join(features)}",
        )
    _prepare(builder, source)
    if not {"train", "test"} <= set(builder.info.splits):
        raise _error(
            "a TFDS source must have the splits train and test",
            f"{source} with {', '.join(builder.info.splits)}",
        )
    encoded, labels = {}, {}
    for split in ("train", "test"):
        # Images stay encoded until it is known which ones are wanted.
        data = builder.as_dataset(
            split=split,
            shuffle_files=False,
            batch_size=-1,
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "label": True},
                decoders={"image": tfds.decode.SkipDecoding()},
            ),
        )
        all_labels = data["label"].numpy()
        chosen = pick(all_labels, split)
        labels[split] = all_labels[chosen]
        encoded[split] = data["image"].numpy()[chosen]
    entries = [*encoded["train"], *encoded["test"]]
    names = [f"image {number} of {source}" for number in range(len(entries))]
    images = _decode(entries, names)
    boundary = len(encoded["train"])
    return Images(
        source,
        images[:boundary],
        labels["train"],
        images[boundary:],
        labels["test"],
        tuple(builder.info.features["label"].names),
    )


def _prepare(builder: Any, source: str) -> None:
    """Downloads and prepares a TFDS data set, unless that was done before."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    if builder.is_prepared():
        return
    downloads = builder.data_dir_root / "downloads"
    manual = downloads / "manual"

    def is_local(url: str, info: Any) -> bool:
        cached = resource.get_dl_fname(url, info.checksum)
        return (
            bool(info.filename and (manual / info.filename).exists())
            or resource.is_locally_cached(downloads / builder.name / cached)
            or resource.is_locally_cached(downloads / cached)
        )

    archives = builder.url_infos or {}
    missing = [url for url in archives if not is_local(url, archives[url])]
    # TFDS retries for minutes: find out first whether that can succeed.
    if missing and not _is_reachable(missing[0]):
        files = ", ".join(archives[url].filename or url for url in missing)
        raise _error(
            f"{source} is not prepared in {builder.data_dir_root}, and"
            f" {missing[0]} cannot be reached: put {files} into {manual}, or"
            " use folder:PATH or npz:PATH",
            source,
        )
    try:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual, try_download_gcs=False
            ),
        )
    except Exception as error:
        raise _error(
            f"TFDS cannot prepare {source}: {error}", source
        ) from error


def _is_reachable(url: str) -> bool:
    """Whether a server answers for the URL, within a few seconds."""
    import requests

    if not url.startswith("http"):
        return True
    answered = threading.Event()

    def probe() -> None:
        with contextlib.suppress(requests.RequestException):
            with requests.get(
                url, stream=True, timeout=_PROBE_SECONDS / 2
            ) as response:
                # TFDS retries on server errors, not on the rest.
                if response.status_code < 500:
                    answered.set()

    # No timeout of requests bounds a name server that does not answer.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answered.is_set()
