"""Training batches, shuffled and augmented.

A batch depends on the seed, the epoch and the step alone, so an interrupted run
resumes with exactly the batches that it would have had.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfsam.data.files.decoding import refusal
from tfsam.data.images import as_float
from tfsam.data.rows import Pixels
from tfsam.data.rows import Rows
from tfsam.support.validators import check_count

_PADDING = 4
_READ_AHEAD = 2  # Batches, of images that are not in memory.


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
    batch, height, width, channels = tf.unstack(tf.shape(images))
    # One draw holds the three choices: a row and a column offset, a flip.
    offsets = 2 * _PADDING + 1
    draw = tf.random.stateless_uniform(
        [batch, 1], seed, 0, offsets * offsets * 2, tf.int32
    )
    flip, row, column = draw % 2, draw // 2 % offsets, draw // 2 // offsets
    positions = tf.range(width)
    columns = column + tf.where(flip == 1, positions[::-1], positions)
    rows = _reflected(row + tf.range(height) - _PADDING, height)
    columns = _reflected(columns - _PADDING, width)
    # One gather of single pixels: nothing is padded, and nothing is copied
    # twice.
    corners = tf.range(batch)[:, tf.newaxis, tf.newaxis] * height * width
    pixels = corners + (rows * width)[:, :, tf.newaxis] + columns[:, tf.newaxis]
    augmented = tf.gather(tf.reshape(images, [-1, channels]), pixels)
    return tf.ensure_shape(augmented, images.shape)


def _reflected(positions: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Mirrors positions outside an axis at its ends, which do not repeat."""
    positions = tf.abs(positions)
    return tf.minimum(positions, 2 * (size - 1) - positions)


def training_batches(
    images: Pixels,
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
    and the position alone: a dataset that starts at `initial_epoch`, or at a
    step of it, yields exactly the batches that an uninterrupted one yields from
    there on. Pass `steps_per_epoch`, n / batch_size rounded up (down with
    `drop_remainder`), to `fit`.

    Args:
      images: (n, height, width, channels), uint8 in 0..255 or floats in
        [0, 1]: an array, or `Rows`, of which each batch is read when it is
        needed.
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
      ValueError: if the arrays do not match, or a number is out of range.
    """
    if not isinstance(images, Rows):
        images = np.asarray(images)
    labels = np.asarray(labels)
    if images.dtype != np.uint8:
        images = as_float(images)
    _check_training_arrays(images, labels, augment)
    check_count("batch_size", batch_size, 1)
    check_count("initial_epoch", initial_epoch)
    check_count("initial_step", initial_step)
    check_count("epochs", epochs, initial_epoch)
    check_count("seed", seed)
    count = len(images)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    if not steps:
        raise refusal(
            f"batch_size must be at most the {count} examples with"
            " drop_remainder",
            batch_size,
        )
    images_at = _gather(images)
    labels_at = _gather(labels.astype(np.int64))

    def batch(
        indices: tf.Tensor, step_seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = images_at(indices)
        if augment:
            chosen = _augment(chosen, step_seed)
        return _as_float(chosen), labels_at(indices)

    static_size = batch_size if drop_remainder else None
    total = max((epochs - initial_epoch) * steps - initial_step, 0)
    return (
        tf.data.Dataset.range(initial_epoch, epochs)
        .flat_map(_epoch_indices(count, steps, batch_size, static_size, seed))
        .skip(initial_step)
        .map(batch, num_parallel_calls=_ahead(images))
        .apply(tf.data.experimental.assert_cardinality(total))
        .prefetch(_ahead(images))
    )


def validation_batches(
    images: Pixels, labels: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Makes the batches of an evaluation, which are read when they are needed.

    Args:
      images: see `training_batches`.
      labels: (n,) integers.
      batch_size: examples per batch; the last batch may be smaller.

    Returns:
      A `tf.data.Dataset` of known cardinality that yields float32 images in
      [0, 1] and int64 labels.
    """
    images_at, labels_at = _gather(images), _gather(labels.astype(np.int64))

    def batch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _as_float(images_at(indices)), labels_at(indices)

    return (
        tf.data.Dataset.range(len(images))
        .batch(batch_size)
        .map(batch, num_parallel_calls=_ahead(images))
        .prefetch(_ahead(images))
    )


def _gather(examples: Pixels) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from indices, a tensor (batch,), to these examples."""
    if not isinstance(examples, Rows):
        with tf.device("CPU:0"):  # Out of an accelerator's memory.
            held = tf.convert_to_tensor(examples)
        return lambda indices: tf.gather(held, indices)

    def read(indices: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(
            examples.__getitem__, [indices], examples.dtype
        )
        return tf.ensure_shape(found, [indices.shape[0], *examples.shape[1:]])

    return read


def _as_float(images: tf.Tensor) -> tf.Tensor:
    if images.dtype != tf.uint8:
        return images
    return tf.cast(images, tf.float32) / 255.0


def _ahead(images: Pixels) -> int:
    """Returns how many batches are made at once, and ahead.

    TensorFlow would fill half of the memory with large ones.
    """
    return _READ_AHEAD if isinstance(images, Rows) else tf.data.AUTOTUNE


def _epoch_indices(
    count: int, steps: int, batch_size: int, static_size: int | None, seed: int
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from an epoch to its indices and seeds, by steps."""

    def indices_of(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count), epoch_seed
        )

        def step_indices(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            indices = order[step * batch_size : (step + 1) * batch_size]
            step_seed = tf.random.fold_in(epoch_seed, step)
            return tf.ensure_shape(indices, [static_size]), step_seed

        return tf.data.Dataset.range(steps).map(step_indices)

    return indices_of


_augment = augment  # `training_batches` has an argument of that name.


def _check_training_arrays(
    images: Pixels, labels: np.ndarray, augmented: bool
) -> None:
    if images.ndim != 4 or not images.size:
        raise refusal(
            "images must be (n, height, width, channels)", images.shape
        )
    if labels.shape != images.shape[:1]:
        raise refusal(f"labels must be ({len(images)},)", labels.shape)
    if not np.issubdtype(labels.dtype, np.integer):
        raise refusal("labels must be integers", labels.dtype)
    if augmented and min(images.shape[1:3]) <= _PADDING:
        raise refusal(
            f"augmented images must have more than {_PADDING} pixels a side",
            images.shape,
        )
