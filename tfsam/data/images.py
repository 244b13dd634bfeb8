"""Images and labels, and parts of them."""

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.data import rows
from tfsam.data.files.decoding import refusal
from tfsam.data.options import Pick
from tfsam.data.rows import Pixels
from tfsam.data.rows import Rows

# Images handled at once where all of them would not fit, and their pixels.
_CHUNK, _MOST_VALUES = 1024, 1 << 24


class Images(NamedTuple):
    """A labelled image data set.

    Attributes:
      name: the source that the images were loaded from.
      x_train: (n, height, width, channels), uint8 in 0..255 or float32 in
        [0, 1]; channels is 1 or 3. n is 0 where the test part alone was
        loaded. Images of more than 256 MiB that were decoded from files are
        `tfsam.data.Rows`, which stay on disk and are read when they are
        indexed.
      y_train: (n,) int64, the position of the class in `class_names`.
      x_test: like `x_train`, of the same image shape and dtype.
      y_test: like `y_train`.
      class_names: one name for each class.
      notes: lines about choices that loading made, such as a size.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits", limit_train=100, limit_test=20)
    >>> images  # doctest: +NORMALIZE_WHITESPACE
    Images(name='digits', train=100, test=20, shape=(8, 8, 1),
           dtype=float32, classes=10)
    """

    name: str
    x_train: Pixels
    y_train: np.ndarray
    x_test: Pixels
    y_test: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Images(name={self.name!r}, train={len(self.x_train)}, "
            f"test={len(self.x_test)}, shape={self.x_test.shape[1:]}, "
            f"dtype={self.x_test.dtype}, classes={len(self.class_names)})"
        )


def without_training(images: Images) -> Images:
    """Returns the test part alone.

    Args:
      images: an `Images`.
    """
    return images._replace(x_train=images.x_test[:0], y_train=images.y_test[:0])


def without_test(images: Images) -> Images:
    """Returns the training part alone.

    Args:
      images: an `Images`.
    """
    return images._replace(x_test=images.x_train[:0], y_test=images.y_train[:0])


def absences(images: Images) -> tuple[str, ...]:
    """Returns notes about classes that have no images in a part.

    A part without any images was not wanted, and has no note.

    Args:
      images: an `Images`.

    Example:
    >>> import tfsam
    >>> images = tfsam.data.load("digits", limit_test=20)
    >>> absences(images._replace(class_names=(*"0123456789", "ten")))
    ('1 class has no training images: ten', '1 class has no test images: ten')
    """
    parts = {"training": images.y_train, "test": images.y_test}
    notes = (
        absence(labels, images.class_names, f"{part} images")
        for part, labels in parts.items()
        if len(labels)
    )
    return tuple(note for note in notes if note)


def absence(labels: np.ndarray, names: Sequence[str], of: str) -> str:
    """Returns a note about classes of which there is no example, or "".

    Args:
      labels: (n,) integers.
      names: the names of the classes.
      of: what the examples are.

    Example:
    >>> absence(np.array([0, 2]), ["ant", "bee", "cat"], "test images")
    '1 class has no test images: bee'
    """
    numbers = np.setdiff1d(np.arange(len(names)), labels)
    if not len(numbers):
        return ""
    some = ", ".join(names[number] for number in numbers[:3].tolist())
    some += ", ..." if len(numbers) > 3 else ""
    have = "class has" if len(numbers) == 1 else "classes have"
    return f"{len(numbers)} {have} no {of}: {some}"


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Splits the training part, stratified, into two.

    The only image of a class stays in the first part: a class that the network
    has never seen is worse than one that is not validated.

    Args:
      images: an `Images`.
      count: the number of training images to hold out, less than all.
      seed: a non-negative integer; the split depends on it alone.

    Returns:
      Two `Images`: the first without the held-out training images, the second
      with only these in its training part.

    Raises:
      ValueError: if `count` is less than the number of classes of two images or
        more, or more than the images of these classes can spare.

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
    several = np.flatnonzero(np.bincount(images.y_train)[images.y_train] > 1)
    if count >= max(len(several), 1):
        raise refusal(
            f"validation_images must be less than the {len(several)} training "
            "images of classes of two images or more",
            count,
        )
    labels = images.y_train[several]
    held = several[subset(labels, count, seed, "validation_images")]
    rest = np.setdiff1d(np.arange(total), held)

    def part(chosen: np.ndarray | slice) -> Images:
        return images._replace(
            x_train=rows.part(images.x_train, chosen),
            y_train=images.y_train[chosen],
        )

    return part(rest), part(held)


def in_order(images: Images, names: tuple[str, ...]) -> Images:
    """Gives the classes the order of a list of their names.

    Args:
      images: an `Images`.
      names: the names in the order that is wanted. Names that the images do
        not have rename their classes.

    Returns:
      An `Images` with these names.

    Raises:
      ValueError: if there are fewer names than classes.
    """
    known = images.class_names
    if not set(known) <= set(names):
        if len(names) < len(known):
            raise refusal(
                f"class_order must name {len(known)} classes", len(names)
            )
        return images._replace(class_names=names)
    places = np.array([names.index(name) for name in known], np.int64)
    return images._replace(
        y_train=places[images.y_train],
        y_test=places[images.y_test],
        class_names=names,
    )


def copies(images: Pixels, others: Sequence[Pixels]) -> np.ndarray:
    """Returns which images are also among others, pixel for pixel.

    Args:
      images: array (n, ...), of a dtype that `as_float` takes.
      others: arrays of such images.

    Returns:
      Bool array (n,).

    Example:
    >>> import numpy as np
    >>> copies(np.eye(2), [np.array([[0, 255]], np.uint8)])
    array([False,  True])
    """
    seen = {key for part in others for key in _keys(part)}
    return np.array([key in seen for key in _keys(images)], bool)


def _keys(images: Pixels) -> Iterator[bytes]:
    """Yields a digest of each image, the same in any dtype."""
    for block in rows.blocks(images):
        for image in np.ascontiguousarray(as_float(block)):
            yield hashlib.sha256(image.tobytes()).digest()


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


def as_float(images: Any) -> Any:
    """Converts pixels to float32.

    Args:
      images: uint8 in 0..255, or floats in [0, 1], of any shape: an array, or
        `Rows`.

    Returns:
      float32 in [0, 1], of the same shape; float32 is returned as it is. `Rows`
      are converted when they are read.

    Raises:
      ValueError: if the images have another dtype.

    Example:
    >>> import numpy as np
    >>> import tfsam
    >>> float(tfsam.data.as_float(np.array([51], np.uint8))[0])
    0.20000000298023224
    """
    if isinstance(images, Rows):
        if images.dtype == np.float32:
            return images
        as_float(np.empty(0, images.dtype))  # Rejects other dtypes now.
        return images.mapped(as_float, dtype=np.float32)
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise refusal("images must be uint8 or floats", images.dtype)
    return images.astype(np.float32, copy=False)


def statistics(
    images: Pixels,
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
    images = images if isinstance(images, Rows) else np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise refusal(
            "images must be (n, height, width, channels)", images.shape
        )
    total = squares = np.zeros(images.shape[1:], np.float64)
    lowest, highest = [], []
    for block in rows.blocks(images, _at_once(images)):
        lowest.append(block.min(axis=(0, 1, 2)))
        highest.append(block.max(axis=(0, 1, 2)))
        chunk = as_float(block).astype(np.float64)
        total = total + chunk.sum(axis=0)
        squares = squares + np.square(chunk, out=chunk).sum(axis=0)
    pixels = images.size // images.shape[3]
    mean = total.sum(axis=(0, 1)) / pixels
    variance = squares.sum(axis=(0, 1)) / pixels - np.square(mean)
    # Rounding gives a constant channel a tiny variance: look at the pixels.
    constant = np.min(lowest, axis=0) == np.max(highest, axis=0)
    deviation = np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0.0)))
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _at_once(images: Pixels) -> int:
    """Returns how many images are handled at once, the same in any memory."""
    return max(min(_CHUNK, _MOST_VALUES * len(images) // images.size), 1)


def subset(
    labels: np.ndarray, limit: int | None, seed: int, name: str
) -> np.ndarray | slice:
    """Chooses shuffled examples, in the proportions of the classes.

    Args:
      labels: (n,) integers.
      limit: the number of examples to keep; None keeps all, in their order.
      seed: a non-negative integer.
      name: the name of the limit, for the message.

    Returns:
      An index of the examples.

    Raises:
      ValueError: if the limit is below the number of classes.
    """
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


def limited(images: Images, pick: Pick) -> Images:
    """Returns the examples that the limits allow.

    Args:
      images: an `Images`.
      pick: see `Pick`.
    """
    train = pick(images.y_train, "train")
    test = pick(images.y_test, "test")
    return images._replace(
        x_train=rows.part(images.x_train, train),
        y_train=images.y_train[train],
        x_test=rows.part(images.x_test, test),
        y_test=images.y_test[test],
    )
