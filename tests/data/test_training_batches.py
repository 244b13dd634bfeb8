"""Training batches: pixels, augmentation, order and position."""

import numpy as np
import pytest
from helpers import assert_one_line_error

from tfsam import data
from tfsam.data import augmentation
from tfsam.data import batches

RNG = np.random.default_rng(0)


def shifted(images, seed):
    return augmentation.ShiftFlip()(images, None, seed)[0]


def test_as_float():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    result = data.images.as_float(pixels)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, pixels.astype("f4") / np.float32(255))
    assert data.images.as_float(result) is result
    assert data.images.as_float(result.astype(np.float64)).dtype == np.float32
    with pytest.raises(ValueError, match="Received: int64"):
        data.images.as_float(np.zeros(3, np.int64))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_statistics(dtype, monkeypatch):
    monkeypatch.setattr(data.images, "_CHUNK", 7)
    images = RNG.integers(0, 256, (25, 6, 6, 3), dtype=np.uint8)
    images[..., 1] = 77
    if dtype == np.float32:
        images = data.images.as_float(images)
    mean, std = data.images.statistics(images)
    floats = data.images.as_float(images).astype(np.float64)
    np.testing.assert_allclose(mean, floats.mean((0, 1, 2)), rtol=1e-6)
    expected = floats.std((0, 1, 2))
    expected[1] = 1
    np.testing.assert_allclose(std, expected, rtol=1e-6)
    assert type(mean) is type(std) is tuple
    assert all(type(value) is float for value in (*mean, *std))


def test_statistics_error():
    with pytest.raises(ValueError, match="Received: "):
        data.images.statistics(np.zeros((0, 8, 8, 3), np.uint8))


def test_augment():
    images = RNG.random((200, 12, 13, 2)).astype(np.float32)
    result = shifted(images, [1, 2]).numpy()
    assert result.shape == images.shape and result.dtype == np.float32
    seen = set()
    for image, output in zip(images, result, strict=True):
        padded = np.pad(image, [(4, 4), (4, 4), (0, 0)], mode="reflect")
        crops = {
            crop[:, ::step].tobytes(): (row, column, step)
            for row in range(9)
            for column in range(9)
            for crop in [padded[row : row + 12, column : column + 13]]
            for step in (1, -1)
        }
        assert output.tobytes() in crops
        seen.add(crops[output.tobytes()])
    rows, columns, steps = (set(values) for values in zip(*seen, strict=True))
    assert rows == columns == set(range(9)) and steps == {1, -1}
    np.testing.assert_array_equal(shifted(images, [1, 2]), result)
    assert not np.array_equal(shifted(images, [1, 3]), result)


def make_training_arrays(n=23):
    """Each image is a ramp that starts at three times its label."""
    labels = np.arange(n, dtype=np.int32)
    ramps = 3 * labels.reshape(-1, 1, 1, 1) + np.arange(64).reshape(8, 8, 1)
    return ramps.astype(np.uint8), labels


def collect(**options):
    images, labels = make_training_arrays()
    dataset = batches.training_batches(
        images, labels, **{"batch_size": 5, "epochs": 4, "seed": 7, **options}
    )
    found = list(dataset.as_numpy_iterator())
    assert dataset.cardinality() == len(found)
    return found


def test_epochs_are_permutations():
    found = collect()
    assert [len(labels) for _, labels in found] == [5, 5, 5, 5, 3] * 4
    orders = []
    for epoch in range(4):
        labels = [y for _, y in found[epoch * 5 : epoch * 5 + 5]]
        orders.append(tuple(np.concatenate(labels)))
        assert sorted(orders[-1]) == list(range(23))
    assert len(set(orders)) == 4
    images, labels = found[0]
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(
        images[:, 0, 0, 0], (labels * 3).astype("f4") / np.float32(255)
    )


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("initial_epoch", [1, 3])
def test_resuming_gives_the_same_batches(augment, initial_epoch):
    whole = collect(augment=augment)
    resumed = collect(augment=augment, initial_epoch=initial_epoch, epochs=4)
    assert len(resumed) == (4 - initial_epoch) * 5
    for expected, got in zip(whole[initial_epoch * 5 :], resumed, strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("position", [(0, 1), (1, 4), (3, 2)])
def test_resuming_amid_an_epoch_gives_the_same_batches(position):
    epoch, step = position
    whole = collect(augment=True)
    resumed = collect(augment=True, initial_epoch=epoch, initial_step=step)
    for expected, got in zip(whole[epoch * 5 + step :], resumed, strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_batches_do_not_depend_on_the_number_of_epochs():
    longer = collect(augment=True, epochs=6)
    for expected, got in zip(collect(augment=True), longer, strict=False):
        np.testing.assert_array_equal(got[0], expected[0])


def test_batches_depend_on_the_seed():
    first, second = collect(), collect(seed=8)
    assert not np.array_equal(first[0][1], second[0][1])


def test_augmentation_differs_between_batches_and_epochs():
    plain, augmented = collect(), collect(augment=True)
    for one, other in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert not np.array_equal(one[0], other[0])
    # Five times the same image, four times: only the augmentation differs.
    constant = np.repeat(make_training_arrays(1)[0], 10, axis=0)
    found = batches.training_batches(
        constant,
        np.zeros(10, int),
        batch_size=5,
        epochs=2,
        seed=0,
        augment=True,
    )
    assert (
        len({images.tobytes() for images, _ in found.as_numpy_iterator()}) == 4
    )


def test_drop_remainder():
    found = collect(drop_remainder=True)
    assert [len(labels) for _, labels in found] == [5] * 4 * 4
    images, labels = make_training_arrays()
    dataset = batches.training_batches(
        images, labels, batch_size=5, epochs=1, seed=0, drop_remainder=True
    )
    assert dataset.element_spec[0].shape == (5, 8, 8, 1)


def test_finished_training_has_no_batches():
    assert collect(initial_epoch=4) == []


def test_float_images_pass_through():
    images = RNG.random((4, 8, 8, 3)).astype(np.float32)
    dataset = batches.training_batches(
        images, np.arange(4), batch_size=4, epochs=1, seed=0
    )
    batch, labels = next(iter(dataset))
    np.testing.assert_array_equal(batch, images[labels.numpy()])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"batch_size": 0}, ["batch_size"]),
        ({"batch_size": 2.5}, ["batch_size"]),
        ({"epochs": 2, "initial_epoch": 3}, ["epochs", ">= 3"]),
        ({"initial_epoch": -1}, ["initial_epoch"]),
        ({"initial_step": -1}, ["initial_step"]),
        ({"seed": 0.5}, ["seed"]),
        ({"labels": np.arange(22)}, ["labels", "(22,)"]),
        ({"labels": np.arange(23.0)}, ["integers", "float64"]),
        ({"images": np.zeros((23, 8))}, ["images", "(23, 8)"]),
        ({"images": np.zeros((23, 8, 8, 1), int)}, ["uint8", "int64"]),
        ({"images": np.zeros((23, 4, 4, 1)), "augment": True}, ["more than 4"]),
        ({"batch_size": 24, "drop_remainder": True}, ["at most", "24"]),
    ],
)
def test_batch_errors(options, parts):
    images, labels = make_training_arrays()
    arguments = {
        "images": images,
        "labels": labels,
        "batch_size": 5,
        "epochs": 2,
        "seed": 0,
    }
    with pytest.raises(ValueError) as error:
        batches.training_batches(**{**arguments, **options})
    assert_one_line_error(error, *parts)
