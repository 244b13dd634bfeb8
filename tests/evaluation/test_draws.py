"""Tests of random models: their draws, their verdicts and their warnings."""

import os
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks.logits import Logits
from tfsam.evaluation import draws
from tfsam.evaluation.goals import AnyWrongClass
from tfsam.models.loading import load_logits

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, size=(14, 4)).astype("float32")
W = RNG.normal(size=(4, 3)).astype("float32")
Y = np.argmax((X - 0.5) @ W, axis=1)
DATA = (X, Y)


class Noise(keras.layers.Layer):
    """Adds normal noise to each pixel, also in inference mode."""

    def __init__(self, size, shared=False):
        super().__init__()
        self.size, self.shared = size, shared
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        shape = (1, 4) if self.shared else tf.shape(x)
        noise = keras.random.normal(shape, seed=self.generator)
        return x + self.size * noise


def noisy(size=0.1, shared=False):
    """A Keras model with noise in front of a linear layer."""
    layers = [keras.Input((4,)), Noise(size, shared), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.layers[-1].set_weights([W, -0.5 * W.sum(axis=0)])
    return model


def linear(x):
    return tf.matmul(x - 0.5, W)


GENERATOR = tf.random.Generator.from_seed(1)
NUMPY = np.random.default_rng(1)

# Random models without Keras, with the known facts about their draws.
CALLABLES = {
    "tf.random": (lambda x: linear(x + 0.1 * tf.random.normal(x.shape)), 32),
    "shared": (lambda x: linear(x) + tf.random.normal([3]), 1),
    "generator": (lambda x: linear(x) + GENERATOR.normal([len(x), 3]), 32),
    "numpy": (lambda x: linear(x) + float(NUMPY.normal()), 1),
    "python": (lambda x: linear(x) * tf.constant(random.random()), 1),
}


def tried(model, count=None):
    return draws.planned(count, load_logits(model), X)


def test_a_model_without_randomness_is_called_once():
    assert tried(linear) is None
    assert tried(linear, 1) is None
    assert tried(linear, 5).number == 5


@pytest.mark.parametrize(("shared", "together"), [(False, 32), (True, 1)])
def test_the_noise_of_keras_is_keyed(shared, together):
    assert tried(noisy(shared=shared)) == (20, draws.KERAS, together)
    assert tried(noisy(shared=shared), 1) == (1, draws.KERAS, together)


@pytest.mark.parametrize(
    "name",
    ["tf.random", "shared", *map(slow, ["numpy", "generator", "python"])],
)
def test_noise_of_other_generators_is_keyed_and_they_are_restored(name):
    model, together = CALLABLES[name]
    assert tried(model) == (20, draws.GLOBAL, together)
    logits = load_logits(model)
    call = draws._eager(logits, draws.GLOBAL)

    def others():
        return (
            *(tf.random.normal([2]).numpy().tolist(), random.random()),
            *(np.random.random(), float(NUMPY.normal())),
            GENERATOR.normal([2]).numpy().tolist(),
        )

    def seed():
        tf.random.set_seed(3)
        random.seed(3)
        np.random.seed(3)
        NUMPY.bit_generator.state = np.random.PCG64(3).state
        GENERATOR.reset_from_seed(3)

    seed()
    expected = others(), others()
    seed()
    first = others()
    one, two, three = (call(X[:2], [0, key]) for key in (5, 5, 6))
    assert (first, others()) == expected
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_a_model_whose_rows_depend_on_each_other_is_drawn_in_batches():
    noise = noisy()
    assert tried(lambda x: noise(x) - tf.reduce_mean(x))[1:] == ("keras", 0)


def test_noise_that_cannot_be_set_is_known():
    def model(x):
        byte = np.frombuffer(os.urandom(1), np.uint8)[0]
        return linear(x) * (1 + float(byte))

    assert tried(model) == (20, draws.UNKNOWN, 32)
    found = tfsam.evaluate(model, DATA, [], draws=2)
    names = {warning["warning"] for warning in found["warnings"]}
    assert {"random_outputs", "draws_not_repeatable"} <= names


class Table:
    """A model that draws the rows of a table for an image."""

    def __init__(self, rows):
        self.rows = np.array(rows, np.float32)

    def draw(self, x, key):
        return tf.constant(self.rows[: len(x)])


def test_an_example_is_broken_if_at_least_half_of_its_draws_are_wrong():
    wrong, right = [0.0, 1.0], [4.0, 0.0]
    for count in (1, 2, 3):
        rows = [*[wrong] * count, *[right] * (4 - count)]
        worker = Stub(Logits(Table(rows)))
        labels = np.zeros(9, int)
        plan = Stub(goal=AnyWrongClass(labels, labels), seed=0)
        plan.draws = draws.Draws(4, draws.UNKNOWN, 4)
        found = draws.judge(plan, worker, np.zeros((3, 2)), np.array([7]))
        assert found.wrong.tolist() == [count / 4]
        assert found.broken.tolist() == [count >= 2]
        mean = [4 * (4 - count) / 4, count / 4]
        np.testing.assert_allclose(found.outputs, [mean])


class Stub:
    """An object with attributes, of which a worker has a few."""

    judged = False

    def __init__(self, judge=None, **attributes):
        self.judge = judge
        vars(self).update(attributes)


def test_spread_by_hand():
    wrong = np.array([0.0, 0.25, 0.5, 0.75])
    broken = np.array([False, False, True, True])
    assert draws.spread(wrong, broken) == (0 + 0.25 + 0.5 + 0.25) / 4


ATTACKS = ["pgd:eot=2:steps=2"]


def measured(model, **options):
    """Returns the result without times, counts of passes and diagnoses."""
    found = tfsam.evaluate(
        *(model, DATA, options.pop("attacks", ATTACKS)),
        **{"epsilons": [0.0, 0.05], "draws": 5, "batch_size": 14} | options,
    )
    for row in found["robust"]:
        for name in (
            "seconds",
            "forward_passes",
            "gradient_passes",
            "diagnosis",
        ):
            row.pop(name, None)
    return found


@pytest.fixture(scope="module")
def whole():
    return measured(noisy())


def test_a_row_has_its_draws_and_the_spread(whole):
    natural, rows = whole["natural"], whole["robust"]
    assert {row["draws"] for row in [natural, *rows]} == {5}
    for row in (natural, *rows):
        assert 0 < row["spread"] < 0.5
        # Every example has a multiple of 1/5.
        assert round(row["spread"] * 14 * 5, 6).is_integer()
    # At epsilon 0, natural verdicts take the same draws.
    assert rows[0]["accuracy"] == natural["accuracy"]
    assert rows[0]["spread"] == natural["spread"]
    assert rows[1]["accuracy"] < rows[0]["accuracy"]


@pytest.mark.slow
def test_a_minimum_norm_attack_is_judged_by_draws(tmp_path):
    """The image of the attack counts within epsilon, and x elsewhere."""
    found = measured(
        noisy(), attacks=["fmn:steps=3"], workdir=tmp_path, name="noisy"
    )
    first, last = found["robust"]
    assert first["accuracy"] == found["natural"]["accuracy"]
    assert first["spread"] == found["natural"]["spread"]
    assert last["accuracy"] < first["accuracy"]
    assert (
        measured(
            noisy(), attacks=["fmn:steps=3"], workdir=tmp_path, name="noisy"
        )
        == found
    )


@pytest.mark.slow
def test_verdicts_by_shared_noise_do_not_depend_on_batches():
    one, two = (
        measured(noisy(shared=True), batch_size=size) for size in (4, 14)
    )
    assert one == two
    assert one["natural"]["spread"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 7])
def test_verdicts_do_not_depend_on_batches(whole, size):
    assert measured(noisy(), batch_size=size) == whole


def test_verdicts_depend_neither_on_devices_nor_on_batches(whole):
    devices = ["CPU:0", "CPU:1"]
    assert measured(noisy(), batch_size=7, devices=devices) == whole


def test_a_killed_evaluation_is_resumed(whole, tmp_path):
    class Killed(BaseException):
        pass

    seen = []

    def kill(line):
        seen.append(line)
        raise Killed

    options = {"batch_size": 7, "workdir": tmp_path, "name": "noisy"}
    with pytest.raises(Killed):
        measured(noisy(), progress=kill, **options)
    assert measured(noisy(), **options) == whole
    with pytest.raises(ValueError, match="draws"):
        measured(noisy(), **options | {"draws": 6})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf.random", "shared"])
def test_natural_verdicts_of_a_callable_do_not_depend_on_batches(name):
    model, _ = CALLABLES[name]
    one, two = (
        measured(model, attacks=[], batch_size=size) for size in (4, 14)
    )
    assert one["natural"] == two["natural"]
    assert one["natural"]["spread"] > 0


@pytest.mark.slow
def test_an_image_of_a_callable_has_the_same_verdict_in_any_batch():
    model, _ = CALLABLES["tf.random"]
    one, two = (
        measured(model, attacks=["fgsm"], epsilons=[0.0], batch_size=size)
        for size in (4, 14)
    )
    assert one == two
    assert one["natural"]["spread"] == one["robust"][0]["spread"]


def test_an_attack_that_follows_single_draws_means_nothing():
    names = ["pgd:steps=1", "pgd:steps=1:eot=2", "square:queries=2"]
    found = measured(noisy(), attacks=names, epsilons=[0.01])
    flags = [row.get("meaningless", False) for row in found["robust"]]
    assert flags == [True, False, False]
    assert "meaningless" not in found["worst_case"][0]
    alone = measured(noisy(), attacks=names[:1], epsilons=[0.01])
    assert alone["worst_case"][0]["meaningless"]
    (message,) = (
        w["message"]
        for w in found["warnings"]
        if w["warning"] == "single_draws"
    )
    assert message.startswith("pgd:steps=1, linf 0.01: ")
    assert "--attacks=autoattack_rand" in message
    (message,) = (
        w["message"]
        for w in found["warnings"]
        if w["warning"] == "random_outputs"
    )
    for text in ("--attacks=autoattack_rand", "--draws=20", "pgd:eot=20"):
        assert text in message


def test_a_model_without_randomness_has_no_draws():
    found = measured(linear, attacks=["pgd:steps=1"], draws=None)
    for row in (found["natural"], *found["robust"]):
        assert not {"draws", "spread", "meaningless"} & set(row)


@pytest.mark.parametrize("count", [0, 1.5])
def test_draws_are_counted(count):
    with pytest.raises(ValueError, match=f"Received: draws={count}"):
        measured(linear, draws=count)
