"""Augmentations of training batches, whose draws depend on the step alone.

An augmentation is a callable

    augmentation(images, labels, seed) -> (images, labels)

of tensors, which draws from nothing but `seed`: a run that resumes repeats the
draws. Keras's own layers are used where they serve; `ByLayer` replaces their
random state by the seed of the step. (`keras.layers.AugMix` does not serve: it
chooses its operations once, by Python's generator, while it is traced.)
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam.support.registry import Part
from tfsam.support.validators import check_number

_PADDING = 4


class Augmentation(Part):
    """A change of the images of a batch, and possibly of their labels.

    Attributes:
        mixes: Whether images of several classes are mixed, and with them their
            labels, which are then probabilities (batch, classes). The default
            is False.

    Example:
        >>> import tensorflow as tf
        >>> class Invert(Augmentation):
        ...     def __call__(self, images, labels, seed):
        ...         return 1 - images, labels
        >>> images, _ = Invert()(tf.fill([1, 2, 2, 1], 0.25), [3], [0, 0])
        >>> float(images[0, 0, 0, 0])
        0.75
    """

    mixes: bool = False

    def check(self, shape: Sequence[int]) -> None:
        """Rejects images that are too small.

        Args:
            shape: (height, width, channels) of an image.

        Raises:
            ValueError: If the images are too small.
        """

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Changes a batch; implemented by subclasses.

        Args:
            images: Tensor (batch, height, width, channels), floats in [0, 1].
                The first augmentation may get uint8 in 0..255 if it does not
                depend on the values of pixels.
            labels: Tensor (batch,) of class numbers, or (batch, classes) of
                probabilities if any augmentation of the run mixes.
            seed: Tensor (2,) of integers, which alone decides all draws.

        Returns:
            The images and labels, of the same shapes and dtypes.

        Raises:
            TypeError: If the subclass does not implement it.
        """
        raise TypeError(
            "An Augmentation must implement __call__(). "
            f"Received: {type(self).__name__}"
        )


class ShiftFlip(Augmentation):
    """Shifts each image by up to 4 pixels and flips every other one.

    The images are padded by 4 reflected pixels on each side, cropped back at
    a random place, and flipped left to right with probability 1/2.

    Example:
        >>> import tensorflow as tf
        >>> images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 0])
        >>> moved, _ = ShiftFlip()(images, tf.constant([0, 1]), [1, 2])
        >>> moved.shape.as_list()
        [2, 8, 8, 3]
    """

    def check(self, shape: Sequence[int]) -> None:
        """Rejects images of at most 4 pixels a side."""
        if min(shape[:2]) <= _PADDING:
            raise ValueError(
                f"augmented images must have more than {_PADDING} pixels a "
                f"side. Received: {tuple(shape)}"
            )

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Moves a batch; see `Augmentation`."""
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
        pixels = (rows * width)[:, :, tf.newaxis] + columns[:, tf.newaxis]
        moved = tf.gather(tf.reshape(images, [-1, channels]), corners + pixels)
        return tf.ensure_shape(moved, images.shape), labels


def _reflected(positions: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Mirrors positions outside an axis at its ends, which do not repeat."""
    positions = tf.abs(positions)
    return tf.minimum(positions, 2 * (size - 1) - positions)


class _Seeds(keras.random.SeedGenerator):
    """A generator of Keras's whose seeds derive from the key of a step.

    Keras's own has a state, which a pipeline changes in an order that depends
    on its threads, and which no checkpoint holds.
    """

    def __init__(self) -> None:
        super().__init__(seed=0)
        self._key: Any = None
        self._drawn = 0

    def begin(self, key: tf.Tensor) -> None:
        """Starts the draws of a step."""
        self._key, self._drawn = key, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Returns the next seed, an integer tensor (2,)."""
        self._drawn += 1
        found = tf.random.fold_in(self._key, self._drawn)
        return tf.cast(found, self.backend.random_seed_dtype())


class ByLayer(Augmentation):
    """An augmentation by a random preprocessing layer of Keras.

    Args:
        layer: The layer, for pixels in [0, 1].
        mixes: Whether it mixes images and labels; see `Augmentation`.

    Example:
        >>> import keras, tensorflow as tf
        >>> flip = ByLayer(keras.layers.RandomFlip("horizontal"))
        >>> images = tf.random.stateless_uniform([4, 8, 8, 3], [0, 0])
        >>> once, _ = flip(images, [0, 1, 2, 3], tf.constant([1, 2]))
        >>> again, _ = flip(images, [0, 1, 2, 3], tf.constant([1, 2]))
        >>> bool(tf.reduce_all(once == again))
        True
    """

    def __init__(self, layer: keras.Layer, mixes: bool = False) -> None:
        self.layer = layer
        self.mixes = mixes
        self._seeds = _Seeds()
        for part in (layer, *layer._flatten_layers(include_self=False)):
            if hasattr(part, "generator"):
                part.generator = self._seeds

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Changes a batch by the layer; see `Augmentation`."""
        self._seeds.begin(seed)
        given = {"images": images, "labels": labels}
        found = self.layer(given if self.mixes else images)
        if self.mixes:
            images_made, labels = found["images"], found["labels"]
        else:
            images_made = found
        # Interpolation and contrast may leave the interval.
        images_made = tf.clip_by_value(images_made, 0, 1)
        return tf.ensure_shape(images_made, images.shape), labels


def randaugment(num_ops: int = 2, factor: float = 0.5) -> ByLayer:
    """Applies random operations to a batch (Cubuk et al., 2020).

    The operations are drawn for each batch, and their strengths for each image;
    see `keras.layers.RandAugment`.

    Args:
        num_ops: Number of operations, >= 1.
        factor: Largest strength, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> randaugment(num_ops=1).layer.value_range
        (0, 1)
    """
    return ByLayer(
        keras.layers.RandAugment(
            value_range=(0, 1), num_ops=num_ops, factor=factor
        )
    )


def random_erasing(factor: float = 1.0) -> ByLayer:
    """Replaces a rectangle of each image by noise (Zhong et al., 2020).

    See `keras.layers.RandomErasing`.

    Args:
        factor: Probability that an image is changed, in [0, 1].

    Raises:
        ValueError: If it is out of its range.

    Example:
        >>> random_erasing(0.5).mixes
        False
    """
    return ByLayer(keras.layers.RandomErasing(factor, value_range=(0, 1)))


def mixup(alpha: float = 0.2) -> ByLayer:
    """Mixes pairs of images and their labels (Zhang et al., 2018).

    See `keras.layers.MixUp`.

    Args:
        alpha: Both parameters of the beta distribution of the weights, > 0.

    Raises:
        ValueError: If it is not positive.

    Example:
        >>> mixup(alpha=0.8).mixes
        True
    """
    _check_positive("alpha", alpha)
    return ByLayer(keras.layers.MixUp(alpha), mixes=True)


def cutmix(factor: float = 1.0) -> ByLayer:
    """Replaces a rectangle by that of another image (Yun et al., 2019).

    Labels are mixed by the areas; see `keras.layers.CutMix`.

    Args:
        factor: Largest parameter of the beta distribution of the areas, in
            (0, 1].

    Raises:
        ValueError: If it is out of its range.

    Example:
        >>> cutmix().mixes
        True
    """
    _check_positive("factor", factor)
    return ByLayer(keras.layers.CutMix(factor), mixes=True)


class MixUpOrCutMix(Augmentation):
    """Mixes the images of a batch by MixUp or by CutMix, as a draw decides.

    Args:
        alpha: See `mixup`.
        factor: See `cutmix`.
        switch: Probability of CutMix, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> MixUpOrCutMix(alpha=0.8).mixes
        True
    """

    mixes = True

    def __init__(
        self, alpha: float = 0.8, factor: float = 1.0, switch: float = 0.5
    ) -> None:
        self._mixup, self._cutmix = mixup(alpha), cutmix(factor)
        self.switch = check_number("switch", switch, 0, 1)

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch; see `Augmentation`."""
        chosen = tf.random.stateless_uniform([], seed) < self.switch
        mixed = self._mixup(images, labels, seed)
        cut = self._cutmix(images, labels, seed)
        made, soft = (
            tf.where(chosen, one, other)
            for one, other in zip(cut, mixed, strict=True)
        )
        return made, soft


class SmoothLabels(Augmentation):
    """Smooths labels (Szegedy et al., 2016): (1 - amount) y + amount / classes.

    The cross-entropy of smoothed labels is Keras's with `label_smoothing`.

    Args:
        amount: Part of the probability that all classes share, in [0, 1].

    Raises:
        ValueError: If it is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> _, labels = SmoothLabels(0.2)(None, tf.constant([[0.0, 1.0]]), None)
        >>> labels.numpy().round(2).tolist()
        [[0.10000000149011612, 0.8999999761581421]]
    """

    mixes = True

    def __init__(self, amount: float = 0.1) -> None:
        self.amount = check_number("amount", amount, 0, 1)

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Smooths the labels of a batch; see `Augmentation`."""
        classes = tf.cast(tf.shape(labels)[-1], labels.dtype)
        return images, (1 - self.amount) * labels + self.amount / classes


def _check_positive(name: str, value: float) -> None:
    if not check_number(name, value):
        raise ValueError(f"{name} must be > 0. Received: {name}={value}")
