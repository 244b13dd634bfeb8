"""Training batches, shuffled and augmented.

A batch depends on the seed, the epoch and the step alone, so an interrupted run
resumes with exactly the batches that it would have had.
"""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfsam.data.augmentation import Augmentation
from tfsam.data.augmentation import ShiftFlip
from tfsam.data.files.decoding import refusal
from tfsam.data.images import as_float
from tfsam.data.rows import Pixels
from tfsam.data.rows import Rows
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

_READ_AHEAD = 2  # Batches, of images that are not in memory.

# Images (n, height, width, channels) and labels (n,).
Examples = tuple[Pixels, np.ndarray]


def training_batches(
    images: Pixels,
    labels: np.ndarray,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    initial_epoch: int = 0,
    initial_step: int = 0,
    augment: bool | Sequence[Augmentation] = False,
    classes: int | None = None,
    mix: Examples | None = None,
    mix_fraction: float = 0.0,
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
      augment: augmentations in their order; True means `ShiftFlip` alone, False
        none.
      classes: number of classes, needed if an augmentation `mixes`.
      mix: (images, labels) of another source, such as synthetic images, which
        are drawn with replacement.
      mix_fraction: part of each batch that is drawn from `mix`, in [0, 1]. The
        number of steps of an epoch stays the same, so that an epoch then uses
        only a random part of `images`.
      drop_remainder: whether to leave out a smaller last batch.

    Returns:
      A `tf.data.Dataset` of known cardinality that yields float32 images in
      [0, 1] and labels: int64 (batch,) or, if an augmentation mixes, float32
      (batch, classes).

    Raises:
      ValueError: if the arrays do not match, or a number is out of range.
    """
    if not isinstance(images, Rows):
        images = np.asarray(images)
    labels = np.asarray(labels)
    if images.dtype != np.uint8:
        images = as_float(images)
    augmentations = _augmentations(augment)
    _check_training_arrays(images, labels)
    for augmentation in augmentations:
        augmentation.check(images.shape[1:])
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
    taken = _mixed((images, labels), mix, mix_fraction)
    changed = _augmented(augmentations, classes)

    def batch(
        indices: tf.Tensor, step_seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        chosen, chosen_labels = changed(*taken(indices, step_seed), step_seed)
        return _as_float(chosen), chosen_labels

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


def _augmentations(
    augment: bool | Sequence[Augmentation],
) -> Sequence[Augmentation]:
    if isinstance(augment, bool):
        return [ShiftFlip()] if augment else []
    return augment


def _augmented(
    augmentations: Sequence[Augmentation], classes: int | None
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function (images, labels, seed) that augments a batch."""
    mixes = any(augmentation.mixes for augmentation in augmentations)
    if mixes and classes is None:
        raise refusal(
            "classes must be given for augmentations that mix labels", classes
        )

    def augmented(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if mixes:
            labels = tf.one_hot(labels, classes)
        for number, augmentation in enumerate(augmentations):
            if number or not isinstance(augmentation, ShiftFlip):
                images = _as_float(images)
            own = tf.random.fold_in(seed, number) if number else seed
            images, labels = augmentation(images, labels, own)
        return images, labels

    return augmented


def _mixed(
    examples: Examples, mix: Examples | None, fraction: float
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function (indices, seed) that reads a batch.

    A part of the batch is drawn from `mix` instead, with replacement.
    """
    check_number("mix_fraction", fraction, 0, 1)
    at = _gather(examples[0]), _gather(examples[1].astype(np.int64))
    if mix is None or not fraction:
        return lambda indices, seed: (at[0](indices), at[1](indices))
    if mix[0].shape[1:] != examples[0].shape[1:] or not len(mix[0]):
        sizes = ", ".join(map(str, examples[0].shape[1:]))
        raise refusal(f"mixed images must be (n, {sizes})", mix[0].shape)
    known = isinstance(mix[0], Rows) or mix[0].dtype == np.uint8
    images_of_mix = mix[0] if known else as_float(mix[0])
    other = _gather(images_of_mix), _gather(np.asarray(mix[1], np.int64))

    def taken(
        indices: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        size = tf.shape(indices)[0]
        drawn = tf.cast(
            tf.round(fraction * tf.cast(size, tf.float32)), tf.int32
        )
        # A key that no augmentation has.
        own = tf.random.fold_in(seed, -1)
        others = tf.random.stateless_uniform(
            [drawn], own, 0, len(mix[0]), tf.int64
        )
        kept = indices[: size - drawn]
        images = [_as_float(at[0](kept)), _as_float(other[0](others))]
        labels = [at[1](kept), other[1](others)]
        size = indices.shape[0]
        return (
            tf.ensure_shape(
                tf.concat(images, 0), [size, *examples[0].shape[1:]]
            ),
            tf.ensure_shape(tf.concat(labels, 0), [size]),
        )

    return taken


def _check_training_arrays(images: Pixels, labels: np.ndarray) -> None:
    if images.ndim != 4 or not images.size:
        raise refusal(
            "images must be (n, height, width, channels)", images.shape
        )
    if labels.shape != images.shape[:1]:
        raise refusal(f"labels must be ({len(images)},)", labels.shape)
    if not np.issubdtype(labels.dtype, np.integer):
        raise refusal("labels must be integers", labels.dtype)
