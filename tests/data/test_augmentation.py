"""Augmentations by Keras's layers, soft labels, and images of another source.

Draws depend on the step's seed alone, so that a run that resumes repeats them.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

from tfsam import registries
from tfsam.data import augmentation
from tfsam.data import batches

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 4

ALL = registries.AUGMENTATIONS.names()


def made(name):
    return registries.AUGMENTATIONS.factory(name)()


def epochs(augment, initial_epoch=0, initial_step=0, **options):
    found = batches.training_batches(
        *(IMAGES, LABELS),
        batch_size=4,
        epochs=2,
        seed=3,
        initial_epoch=initial_epoch,
        initial_step=initial_step,
        augment=augment,
        classes=4,
        **options,
    )
    return [(x.numpy(), y.numpy()) for x, y in found]


# Mixup and CutMix are drawn by the choice between them, too.
@pytest.mark.parametrize(
    "name",
    [slow(name) if name in ("cutmix", "mixup") else name for name in ALL],
)
def test_a_resume_repeats_the_draws(name):
    whole = epochs([made(name)])
    later = epochs([made(name)], 1, 1)
    assert len(later) == 2
    for (x, y), (x_again, y_again) in zip(whole[-2:], later, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
    for x, y in whole:
        assert x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
        assert np.isfinite(x).all() and len(x) == len(y) == 4


@pytest.mark.parametrize("name", sorted({*ALL} - {"smooth_labels"}))
def test_each_step_draws_anew_and_changes_something(name):
    images = tf.constant(IMAGES[:4] / np.float32(255))
    labels = tf.one_hot(LABELS[:4], 4)
    draws = [
        made(name)(images, labels, tf.constant([7, step]))[0].numpy()
        for step in range(6)
    ]
    assert len({draw.tobytes() for draw in draws}) > 1
    assert any((draw != images.numpy()).any() for draw in draws)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup_or_cutmix"])
def test_labels_are_mixed_as_the_images(name):
    """Images of one constant value a class: the mean pixel is the label."""
    values = np.array([0, 1, 0, 1], np.float32)
    images = np.broadcast_to(values[:, None, None, None], (4, 8, 8, 1))
    labels = tf.one_hot(values.astype(int), 2)
    for step in range(5):
        mixed, soft = made(name)(
            tf.constant(images), labels, tf.constant([1, step])
        )
        np.testing.assert_allclose(np.sum(soft, 1), 1, atol=1e-6)
        # CutMix counts whole pixels, and mixes labels by exact areas.
        tolerance = 1e-5 if name == "mixup" else 0.25
        np.testing.assert_allclose(
            np.mean(mixed, (1, 2, 3)), soft[:, 1], atol=tolerance
        )


def test_mixing_gives_one_hot_labels_with_every_augmentation():
    (_, y), *_ = epochs([made("shift_flip"), made("mixup")])
    assert y.shape == (4, 4) and y.dtype == np.float32
    with pytest.raises(ValueError, match="classes must be given"):
        batches.training_batches(
            *(IMAGES, LABELS),
            batch_size=4,
            epochs=1,
            seed=0,
            augment=[made("mixup")],
        )


def test_smoothed_labels_have_keras_s_cross_entropy():
    logits = tf.constant(RNG.normal(size=(4, 4)), tf.float32)
    labels = tf.one_hot(LABELS[:4], 4)
    _, soft = augmentation.SmoothLabels(0.3)(None, labels, None)
    smoothed = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.3
    )
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        plain(soft, logits), smoothed(labels, logits), rtol=1e-6
    )


def test_true_is_shift_flip_to_the_bit():
    for (x, y), (x_same, y_same) in zip(
        epochs(True), epochs([augmentation.ShiftFlip()]), strict=True
    ):
        np.testing.assert_array_equal(x, x_same)
        np.testing.assert_array_equal(y, y_same)


def test_a_second_augmentation_does_not_change_the_draws_of_the_first():
    class Nothing(augmentation.Augmentation):
        def __call__(self, images, labels, seed):
            return images, labels

    for (x, _), (x_same, _) in zip(
        epochs(True), epochs([augmentation.ShiftFlip(), Nothing()]), strict=True
    ):
        np.testing.assert_array_equal(x, x_same)


OTHERS = RNG.random((5, 8, 8, 3), np.float32)


def test_a_part_of_each_batch_is_drawn_from_the_mix():
    found = epochs(False, mix=(OTHERS, np.full(5, 3)), mix_fraction=0.75)
    assert len(found) == 6  # As many steps as without.
    known = {image.tobytes() for image in OTHERS}
    own = {(image / np.float32(255)).tobytes() for image in IMAGES}
    for x, y in found:
        drawn = [image.tobytes() in known for image in x]
        assert sum(drawn) == 3
        assert all(image.tobytes() in own for image in x[~np.array(drawn)])
        assert (y[drawn] == 3).all()
    again = epochs(False, 1, mix=(OTHERS, np.full(5, 3)), mix_fraction=0.75)
    np.testing.assert_array_equal(found[3][0], again[0][0])
    several = {image.tobytes() for x, _ in found for image in x} & known
    assert len(several) > 1


def test_no_mix_changes_nothing():
    for (x, y), (x_same, y_same) in zip(
        epochs(True),
        epochs(True, mix=(OTHERS, np.full(5, 3)), mix_fraction=0),
        strict=True,
    ):
        np.testing.assert_array_equal(x, x_same)
        np.testing.assert_array_equal(y, y_same)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augmentation.mixup(0), "Received: alpha=0"),
        (lambda: augmentation.cutmix(0), "Received: factor=0"),
        (lambda: augmentation.MixUpOrCutMix(switch=2), "Received: switch=2"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_the_mix_must_have_the_same_shape():
    with pytest.raises(ValueError, match="mixed images must be"):
        epochs(False, mix=(OTHERS[:, :4], np.zeros(5)), mix_fraction=0.5)
