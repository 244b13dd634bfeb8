"""The first batch of a fit is checked eagerly, and read once."""

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((12, 6)).astype("float32")
Y = RNG.integers(0, 3, 12)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PGD = tfsam.PGD(0.1, steps=1)


class Softmaxed(keras.Model):
    """A network that returns probabilities; its layers do not show it."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        random.random()
        return tf.nn.softmax(self.dense(x))


class Root(keras.layers.Layer):
    """The square root, with an infinite slope at 0."""

    def call(self, x):
        return tf.sqrt(x)


class Batches(keras.utils.PyDataset):
    """Three batches of X; counts its reads."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y
        self.read = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.read.append(index)
        rows = slice(4 * index, 4 * index + 4)
        return self.x[rows], self.y[rows]


def compiled(network=None, **parts):
    keras.utils.set_random_seed(0)
    network = network or keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3)]
    )
    model = tfsam.RobustModel(network, seed=0, **parts)
    model.compile("sgd", LOGITS)
    return model


def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def generator(x, y):
    for start in range(0, 12, 4):
        yield x[start : start + 4], y[start : start + 4]


KINDS = [lambda x, y: (x, y), dataset, Batches, generator]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (255 * X, Y, r"x must lie in bounds=\(0\.0, 1\.0\)"),
        (X, Y + 3, "y must"),
    ],
)
def test_a_bad_first_batch_is_refused_before_the_step_is_traced(
    kind, x, y, message
):
    model = compiled(perturb_inputs=PGD)
    traced = []
    object.__setattr__(model, "train_step", traced.append)
    data = kind(x, y)
    data = data if isinstance(data, tuple) else (data,)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(*data, verbose=0)
    assert "\n" not in str(caught.value) and not traced


def test_train_on_batch_checks_its_first_batch_eagerly():
    model = compiled(perturb_inputs=PGD)
    traced = []
    object.__setattr__(model, "train_step", traced.append)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        model.train_on_batch(255 * X, Y)
    assert not traced


def test_a_loss_of_probabilities_is_found_by_one_pass():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return 100 + self.dense(x)

    model = compiled(Own())
    model.compile("sgd", "sparse_categorical_crossentropy")
    traced = []
    object.__setattr__(model, "train_step", traced.append)
    with pytest.raises(ValueError, match="loss takes probabilities"):
        model.fit(X, Y, verbose=0)
    assert not traced


@pytest.mark.parametrize("kind", [slow(KINDS[0]), *KINDS[1:]])
def test_the_check_changes_neither_the_data_nor_the_result(kind, monkeypatch):
    """A shuffled dataset, too, is read once, by its first iterator."""
    results, seen = [], []
    for checks in (True, False):
        model = compiled(perturb_inputs=PGD)
        if not checks:
            monkeypatch.setattr(model, "_at_first_batch", False)
            monkeypatch.setattr(
                type(model), "_with_first_checked", lambda _, data: data
            )
        data = kind(X, Y)
        if isinstance(data, tf.data.Dataset):
            data = data.shuffle(3, seed=1)
        data = data if isinstance(data, tuple) else (data,)
        traced = []
        step = model.train_step

        def counted(data, traced=traced, step=step):
            traced.append(data)
            return step(data)

        object.__setattr__(model, "train_step", counted)
        model.fit(*data, batch_size=None, verbose=0, shuffle=False)
        results.append(model.network.get_weights())
        seen.append((len(traced), getattr(data[0], "read", None)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen[0] == seen[1]


def test_a_softmax_before_a_loss_of_logits_is_warned_of_by_its_values():
    network = Softmaxed()
    network(X)  # It is built here: initializers draw their seeds by `random`.
    model = compiled(network)
    before = random.getstate()
    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid"):
        model._check_first_batch((X, Y))
    assert random.getstate() == before


def test_gradients_of_nan_are_warned_of_once():
    x = X.copy()
    x[0, 0] = 0
    network = keras.Sequential(
        [keras.Input((6,)), Root(), keras.layers.Dense(3)]
    )
    attack = tfsam.PGD(0.1, steps=1, random_start=False)
    model = compiled(network, perturb_inputs=attack)
    with pytest.warns(UserWarning, match="1 of the input gradients"):
        model.fit(x[:4], Y[:4], batch_size=4, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x[:4], Y[:4], batch_size=4, verbose=0)


class Scaled(tfsam.attacks.Attack):
    """An attack of another package, which may leave its budget."""

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0), factor=1.0):
        super().__init__(epsilon, norm, bounds)
        self.factor = factor

    def perturb(self, logits_fn, x, y, seeds):
        logits_fn(x)
        move = tf.where(x < 0.5, 1.0, -1.0)
        return x + self.factor * self.epsilon * move


class Other:
    """An attack that imports nothing of tfsam."""

    bounds = (0.0, 1.0)

    def __init__(self, attacked):
        self.attacked = attacked

    def __call__(self, logits_fn, x, y, seed):
        return self.attacked(x)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Scaled(0.1, factor=2.0), r"Scaled: .*left its ball of radius 0\.1"),
        (Scaled(0.1, factor=9.0), r"Scaled: .*left the image range \(0\.0"),
        (Other(lambda x: x + 1.0), r"Other: the attack left the image range"),
        (Other(lambda x: x[:, :1]), r"Other: the attack .* of shape"),
        (Other(lambda x: x / 0.0), "must return finite pixels"),
    ],
)
def test_an_attack_that_leaves_its_ball_is_refused(attack, message):
    model = compiled(perturb_inputs=attack)
    traced = []
    object.__setattr__(model, "train_step", traced.append)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(X, Y, verbose=0)
    assert "\n" not in str(caught.value) and not traced


def test_the_check_of_an_attack_changes_no_result(monkeypatch):
    weights = []
    for checks in (True, False):
        keras.utils.set_random_seed(0)
        dropout = keras.layers.Dropout(0.5)
        network = keras.Sequential(
            [keras.Input((6,)), dropout, keras.layers.Dense(3)]
        )
        attack = Scaled(0.1)
        model = compiled(network, perturb_inputs=attack, attack_mode="training")
        if not checks:
            monkeypatch.setattr(model, "_at_first_batch", False)
            monkeypatch.setattr(
                type(model), "_with_first_checked", lambda _, data: data
            )
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.network.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
