"""One reader for all containers of examples."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.data import containers
from tfsam.data import examples
from tfsam.data import rows as kinds_of_rows
from tfsam.evaluation import plans
from tfsam.training.recalibration import recalibrate

RNG = np.random.default_rng(0)
# 200 is a batch of 128 and one of 72; 3 classes, images of 4 rows.
X = RNG.random((200, 4, 2, 1)).astype("float32")
Y = RNG.integers(0, 3, 200)
ONE_HOT = np.eye(3, dtype="float32")[Y]
WEIGHTS = np.ones(200)
slices = tf.data.Dataset.from_tensor_slices


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts, size=64):
        super().__init__()
        self.parts, self.size = parts, size

    def __len__(self):
        return math.ceil(len(self.parts[0]) / self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return tuple(part[rows] for part in self.parts)


class Endless(Batches):
    @property
    def num_batches(self):
        return None


class Loader:
    """Batches as another framework's loader gives them: lists, and a length."""

    def __len__(self):
        return 4

    def __iter__(self):
        for rows in np.split(np.arange(200), 4):
            yield [X[rows].tolist(), Y[rows].tolist()]


class Indexed:
    """Single examples by index, and a length."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return X[index % 200], int(Y[index % 200])


def generator(*parts, size=None):
    """Single examples, or batches."""
    if size is None:
        yield from zip(*parts, strict=True)
        return
    for start in range(0, len(parts[0]), size):
        yield tuple(part[start : start + size] for part in parts)


def unknown(dataset):
    """The same dataset with an unknown length."""
    return dataset.filter(lambda *parts: True)


def tfds(x, y):
    names = [f"image_{i}" for i in range(len(x))]
    return slices({"id": names, "image": x, "label": y})


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 2, 1)),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


CONTAINERS = {
    "arrays": lambda y: (X, y),
    "list": lambda y: [X, y],
    "lists": lambda y: (X.tolist(), y.tolist()),
    "list of images": lambda y: (list(X), list(y)),
    "weights": lambda y: (X, y, WEIGHTS),
    "tensors": lambda y: (tf.constant(X), tf.constant(y)),
    "dict": lambda y: {"image": X, "label": y},
    "batched": lambda y: slices((X, y)).batch(64),
    "batched, weights": lambda y: slices((X, y, WEIGHTS)).batch(64),
    "whole batches": lambda y: slices((X, y)).batch(50, drop_remainder=True),
    "one batch": lambda y: tf.data.Dataset.from_tensors((X, y)),
    "single": lambda y: slices((X, y)),
    "single, weights": lambda y: slices((X, y, WEIGHTS)),
    "of unknown length": lambda y: unknown(slices((X, y))),
    "tfds": lambda y: tfds(X, y),
    "tfds, batched": lambda y: tfds(X, y).batch(64),
    "tfds, supervised": lambda y: tfds(X, y).map(
        lambda d: (d["image"], d["label"])
    ),
    "PyDataset": lambda y: Batches(X, y),
    "PyDataset, weights": lambda y: Batches(X, y, WEIGHTS),
    "generator": lambda y: generator(X, y, size=64),
    "generator of single examples": lambda y: generator(X, y),
    "generator of dicts": lambda y: (
        {"image": x, "label": label} for x, label in zip(X, y, strict=True)
    ),
    "iterator of a dataset": lambda y: iter(slices((X, y)).batch(64)),
}


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        *((kind, Y) for kind in CONTAINERS),
        *(
            (kind, ONE_HOT) if kind == "tfds, batched" else slow(kind, ONE_HOT)
            for kind in CONTAINERS
        ),
    ],
)
def test_the_examples_are_the_same_in_every_container(kind, labels):
    x, y = examples.load(CONTAINERS[kind](labels))
    np.testing.assert_array_equal(x, X, strict=x.dtype == X.dtype)
    np.testing.assert_array_equal(y, labels)
    assert kind == "lists" or x.dtype == X.dtype


@pytest.mark.parametrize("container", [Loader, Indexed])
def test_containers_of_other_libraries(container):
    x, y = examples.load(container())
    np.testing.assert_allclose(x, X)
    np.testing.assert_array_equal(y, Y)


def test_the_network_tells_a_batch_from_an_example():
    """With 3 images, 3 rows and 3 classes, shapes alone are ambiguous."""
    network = keras.Sequential([keras.Input((3, 2, 1)), keras.layers.Flatten()])
    single = slices((X[:, :3], ONE_HOT))
    batched = single.batch(3, drop_remainder=True)
    for data in (single, batched):
        x, y = examples.load(data, network=network, steps=3)
        assert x.shape == (len(x), 3, 2, 1) and y.shape == (len(x), 3)
    whole = tfsam.RobustModel(
        keras.Sequential([network, keras.layers.Dense(3)]), seed=0
    )
    assert len(examples.load(single, network=whole)[0]) == 200


def test_rounding_is_judged_in_the_type_of_the_data():
    """One unit of bfloat16 above white is 1.0078, and is clipped."""
    white = tf.cast(X, "bfloat16").numpy()
    white.flat[0] = 1.0078125
    x, _ = examples.load((tf.constant(white), Y))
    assert x.dtype == white.dtype
    network = keras.Sequential(
        [
            keras.Input((4, 2, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    data = plans.load_data((white, Y), (0.0, 1.0), network=network)
    assert data.x.dtype == np.float32 and data.x.flat[0] == 1.0
    np.testing.assert_allclose(data.x.flat[1:], X.flat[1:], atol=4e-3)
    with pytest.raises(ValueError, match=r"Received: x in .*1\.0078"):
        plans.load_data((white.astype("float32"), Y), (0.0, 1.0))
    tfsam.Landscape(network, (white, Y)).loss()


@pytest.mark.parametrize(
    "endless",
    [
        lambda: slices((X, Y)).batch(50).repeat(),
        lambda: unknown(slices((X, Y)).batch(50).repeat()),
        lambda: Endless(X, Y, size=50),
        lambda: itertools.cycle([(X[:50], Y[:50])]),
        lambda: (part for part in itertools.repeat((X[:50], Y[:50]))),
    ],
    ids=["repeat", "unknown", "PyDataset", "cycle", "generator"],
)
def test_data_that_does_not_end_needs_steps(endless, network, monkeypatch):
    monkeypatch.setattr(containers, "MOST", 1000)
    monkeypatch.setattr(examples, "_MOST_STREAMED", 1000)
    x, y = examples.load(endless(), steps=3)
    assert x.shape == (150, 4, 2, 1) and len(y) == 150
    with pytest.raises(ValueError, match=r"steps=.* Received: data="):
        examples.load(endless())
    with pytest.raises(ValueError, match=r"steps=.* Received: data="):
        recalibrate(network, endless())
    tfsam.EMA(data=endless(), steps=2)


def test_averages_refuse_data_that_does_not_end(monkeypatch):
    monkeypatch.setattr(containers, "MOST", 1000)
    for endless in (slices(X).batch(50).repeat(), itertools.repeat((X, Y))):
        with pytest.raises(ValueError, match=r"steps=.* Received: data="):
            tfsam.EMA(data=endless)


def test_a_dataset_without_shapes_is_looked_into():
    data = tf.data.Dataset.from_generator(
        lambda: generator(X, Y), output_types=("float32", "int64")
    )
    np.testing.assert_array_equal(examples.load(data)[0], X)


def test_the_limits_stop_an_endless_generator(monkeypatch):
    endless = itertools.repeat((X, Y))
    with pytest.raises(ValueError, match="100,000 examples were read"):
        examples.load(endless)
    monkeypatch.setattr(examples, "_MOST_BYTES", 1 << 30)
    image = np.zeros((1, 1 << 26), "float64")  # 512 MiB, never touched.
    monkeypatch.setattr(kinds_of_rows, "MOST_IN_MEMORY", 2 << 30)
    with pytest.raises(ValueError, match="1 GiB were read"):
        examples.load(itertools.repeat((image, Y[:1])))


def test_data_of_a_known_length_has_no_limit(monkeypatch):
    monkeypatch.setattr(containers, "MOST", 10)
    monkeypatch.setattr(examples, "_MOST_BYTES", 10)
    for data in (slices((X, Y)).batch(50), Batches(X, Y), Loader(), (X, Y)):
        assert len(examples.load(data)[0]) == 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: X, "without labels"),
        (lambda: (X,), "without labels"),
        (lambda: slices(X).batch(50), "without labels"),
        (lambda: slices(X), "without labels"),
        (lambda: ({"image": X, "meta": X[:, 0]}, Y), "keys image, meta"),
        (lambda: slices(({"a": X, "b": X}, Y)).batch(50), "keys a, b"),
        (lambda: slices({"pixels": X, "label": Y}), "keys pixels, label"),
        (lambda: {"x": X, "y": Y}, "keys x, y"),
        (lambda: ((X, X), Y), "a tuple of 2"),
        (lambda: ([X, X], Y), "a list of 2"),
        (lambda: slices(((X, X), Y)).batch(50), "a tuple of 2"),
        (lambda: (X, (Y, Y)), "a tuple of 2"),
        (lambda: (X, {"a": Y, "b": Y}), "keys a, b"),
        (lambda: (X, Y[:-1]), "Received: 200 and 199"),
        (lambda: Batches(X, Y[:150]), "Received: 64 and 22"),
        (lambda: generator(X[:, :1], Y, size=300).__next__()[:0], "Received:"),
        (lambda: (X[:0], Y[:0]), "Received: 0 and 0"),
        (lambda: slices((X, Y)).batch(50).take(0), "Received: none"),
        (lambda: iter(()), "Received: none"),
        (lambda: (X[0], 3), r"Received: \(4, 2, 1\) and \(\)"),
        (lambda: (X, Y, WEIGHTS, X), "a tuple of 4"),
        (lambda: slices((X, Y, Y, Y)), "a tuple of 4"),
        (lambda: ([[1.0], [1.0, 2.0]], [0, 1]), "one shape"),
        (lambda: (tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1]), "x must"),
        (lambda: (X, np.array(["cat"] * 200)), "y must be numbers"),
        (lambda: (X, [None] * 200), "y must be numbers"),
        (lambda: iter([(X[:5], Y[:5]), (X[:5, :2], Y[:5])]), "one shape"),
        (lambda: iter([(X[0], 1), (X[0, :2], 1)]), "one shape"),
        (lambda: "digit", "Received: 'digit'"),
        (lambda: None, "Received: data=None"),
        (lambda: 7, "Received: data=7"),
        (lambda: generator, "Received: data="),
    ],
)
def test_other_data_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        examples.load(make())
    assert "\n" not in str(raised.value)


def images_of_two_sizes():
    yield X[0], 1
    yield X[0, :2], 1


def test_a_dataset_of_images_of_several_sizes_is_refused():
    data = tf.data.Dataset.from_generator(
        images_of_two_sizes,
        output_signature=(
            tf.TensorSpec((None, 2, 1)),
            tf.TensorSpec((), "int64"),
        ),
    )
    with pytest.raises(ValueError, match="examples of one shape"):
        examples.load(data)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3"])
def test_steps_that_are_none(steps):
    with pytest.raises(ValueError, match="Received: steps="):
        examples.load(slices((X, Y)).batch(5), steps=steps)


def test_arrays_have_no_steps():
    with pytest.raises(ValueError, match="Received: steps=2 with arrays"):
        examples.load((X, Y), steps=2)


def test_batches_are_read_one_at_a_time():
    read = []

    def slow():
        for start in range(0, 200, 50):
            read.append(start)
            yield X[start : start + 50], Y[start : start + 50]

    found = examples.batches(slow())
    assert read == []
    next(found)
    assert read == [0]
    assert len(list(found)) == 3


# The consumers.

SLOW = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("batched", "tfds", "generator", "weights")
]
EVERY = ["single", "PyDataset", *SLOW]


@pytest.mark.parametrize("kind", EVERY)
def test_pixels_are_read_for_evaluation_and_callbacks(kind):
    expected = plans.load_data((X, Y), (0, 1))
    make = CONTAINERS[kind]
    found = plans.load_data(make(Y), (0, 1))
    validation = tfsam.RobustValidation(make(Y), tfsam.PGD(0.1))
    stop = tfsam.StopAtCollapse(make(Y), tfsam.PGD(0.1))
    for data in (found, validation.data, stop.data):
        for one, other in zip(data, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", EVERY)
def test_statistics_and_landscapes_are_those_of_the_arrays(kind, network):
    statistics = network.layers[0].non_trainable_variables
    recalibrate(network, slices((X, Y)).batch(64))
    batches_of_64 = [v.numpy() for v in statistics]
    recalibrate(network, (X, Y))
    batches_of_128 = [v.numpy() for v in statistics]
    recalibrate(network, CONTAINERS[kind](Y))
    found = [v.numpy() for v in statistics]
    whole = ("single", "tfds", "weights")
    expected = batches_of_128 if kind in whole else batches_of_64
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    landscape = tfsam.Landscape(network, CONTAINERS[kind](Y))
    np.testing.assert_array_equal(landscape.x, X)
    np.testing.assert_array_equal(landscape.y, Y)


def test_images_of_whole_numbers_are_refused_from_every_container():
    whole = (X * 255).astype("uint8")
    for data in (slices((whole, Y)), tfds(whole, Y), Batches(whole, Y)):
        with pytest.raises(ValueError, match="divide images of 0 to 255"):
            tfsam.RobustValidation(data, tfsam.PGD(0.1))


def test_whole_numbers_within_other_bounds_are_not_to_be_divided():
    attack = tfsam.PGD(8, bounds=(0, 255))
    with pytest.raises(ValueError, match="to floats on that scale"):
        tfsam.RobustValidation(((X * 255).astype("uint8"), Y), attack)


@pytest.mark.parametrize("average", [tfsam.EMA, tfsam.SWA])
@pytest.mark.parametrize("kind", ["PyDataset", "generator"])
def test_averages_read_their_data_each_time(kind, average):
    callback = average(0, data=CONTAINERS[kind](Y))
    for _ in range(2):
        np.testing.assert_array_equal(examples.load(callback.data)[0], X)


def test_several_inputs_are_recalibrated():
    keras.utils.set_random_seed(0)
    one, other = (
        keras.Input((2,), name="image"),
        keras.Input((2,), name="label"),
    )
    joined = keras.layers.Concatenate()([one, other])
    outputs = keras.layers.BatchNormalization()(joined)
    network = keras.Model({"image": one, "label": other}, outputs)
    a, b = RNG.random((2, 200, 2)).astype("float32")
    expected = np.concatenate([a, b], 1)
    mean = np.average(
        [expected[:128].mean(0), expected[128:].mean(0)], 0, [128, 72]
    )
    inputs = {"image": a, "label": b}
    for data in (
        inputs,
        (inputs, Y),
        slices(inputs),
        slices((inputs, Y)),
        slices((inputs, Y)).batch(128),
        generator_of_dicts(a, b),
    ):
        recalibrate(network, data)
        found = network.layers[-1].moving_mean.numpy()
        np.testing.assert_allclose(found, mean, rtol=1e-5)


def generator_of_dicts(a, b):
    for start in (0, 128):
        rows = slice(start, start + 128)
        yield {"image": a[rows], "label": b[rows]}, Y[rows]


def test_images_are_shown_in_one_line():
    """Otherwise a notebook prints thousands of characters of arrays."""
    text = repr(tfsam.data.load("digits", limit_train=20, limit_test=10))
    assert text.startswith("Images(name='digits', train=20, test=10, ")
    assert len(text) < 120
