"""Keys of traces: equal only where the trace is the same."""

import functools
import gc
import random
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam import PGD
from tfsam.attacks import Logits
from tfsam.support.trace_state import Unreadable
from tfsam.support.trace_state import read

SCALE = 2.0


def key(function):
    return read(function).key


def scaled(scale):
    return lambda x: scale * x


def by_global(x):
    return SCALE * x


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


class Counting(Scaled):
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x


class Own(keras.layers.Layer):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts
        self.scale = 1.0

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return self.scale * x


class Logging(Own):
    def call(self, x):
        self.parts.append(x)
        return x


def network():
    dense = keras.layers.Dense(2, activation="relu")
    return keras.Sequential([keras.Input((4,)), dense])


def test_functions_of_the_same_code_and_values_are_equal():
    assert key(scaled(2.0)) == key(scaled(2.0))
    assert key(scaled(2.0)) != key(scaled(3.0))
    assert key(scaled(1)) != key(scaled(1.0)) != key(scaled(True))
    assert key(scaled(0.0)) != key(scaled(-0.0))
    assert key(Scaled(2.0)) == key(Scaled(2.0)) != key(Scaled(3.0))
    assert key(Scaled(2.0).__call__) == key(Scaled(2.0).__call__)
    part = functools.partial(np.multiply, 2.0)
    assert key(part) != key(functools.partial(np.multiply, 3.0))


def test_changes_are_seen(monkeypatch):
    before = key(by_global)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert key(by_global) != before
    for value, change in (
        (np.ones(3), lambda v: v.fill(2)),
        ([1.0], lambda v: v.append(2.0)),
        ({"a": 1.0}, lambda v: v.update(a=2.0)),
        (Scaled(1.0), lambda v: setattr(v, "scale", 2.0)),
        (PGD(0.1), lambda v: setattr(v, "steps", 3)),
        (Own([]), lambda v: setattr(v, "scale", 2.0)),
    ):
        before = key(scaled(value))
        assert key(scaled(value)) == before
        change(value)
        assert key(scaled(value)) != before


def test_layers_are_read_and_weights_are_not():
    model = network()
    before = key(model)
    model.compile("sgd", "mse")
    model(np.zeros((2, 4), "float32"))
    model.layers[0].kernel.assign(tf.ones((4, 2)))
    assert key(model) == before
    assert read(model).size == 10
    model.layers[0].activation = keras.activations.tanh
    assert key(model) != before
    changed = key(model)
    model.trainable = False
    assert key(model) != changed
    changed = key(model)
    model.add(keras.layers.ReLU())
    assert key(model) != changed
    assert key(model) != key(network())


def test_tensors_variables_and_traced_functions_are_named_by_their_ids():
    for make in (
        lambda: tf.constant([1.0]),
        lambda: tf.Variable([1.0]),
        lambda: keras.Variable([1.0]),
    ):
        one, other = make(), make()
        assert key(scaled(one)) == key(scaled(one)) != key(scaled(other))
        assert read(scaled(one)).size == 1
    assert read(tf.function(lambda x: x)).size == float("inf")


def test_names_of_dead_objects_are_not_used_again():
    value = tf.Variable([1.0])
    state = read(scaled(value))
    assert any(owner is value for owner in state.owners)
    reference, found = weakref.ref(value), state.key
    del value, state
    gc.collect()
    assert reference() is None  # The key does not keep it.
    assert found is not None


def counted(calls):
    def function(x):
        calls.append(1)
        return x

    return function


def assigned(count):
    def function(x):
        nonlocal count
        count += 1
        return x

    return function


def in_place(array):
    def function(x):
        array[0] += 1
        return x

    return function


def to_attribute(layer):
    def function(x):
        layer.seen = x
        return x

    return function


def drawn(x):
    return x + np.random.normal()


def drawn_by_python(x):
    return x + random.random()


def timed(x):
    return x + time.time()


def printed(x):
    print(x)
    return x


def through_numpy(x):
    return tf.constant(x.numpy())


def branching(x):
    return x if tf.executing_eagerly() else 2 * x


@pytest.mark.parametrize(
    "function",
    [
        *(counted([]), assigned(0), in_place(np.zeros(2))),
        *(to_attribute(network()), drawn, drawn_by_python, timed, printed),
        *(through_numpy, branching, Counting(1.0), Logging([1.0])),
        *(scaled(iter([1.0])), scaled(np.random.default_rng(0))),
        *(scaled(random.Random(0)), scaled(np.zeros(2**21 + 1))),
        *(Logits(abs).untraced(), scaled(open)),
    ],
)
def test_functions_that_a_trace_may_not_repeat_are_rejected(function):
    with pytest.raises(Unreadable):
        read(function)


def test_a_function_may_change_lists_of_its_own():
    def function(x):
        parts = []
        parts.append(x)
        return parts[0]

    assert key(function) == key(function)
