"""Tests of the states of random number generators, set and restored."""

import functools
import random

import numpy as np
import pytest
import tensorflow as tf

from tfsam.support import random_states

TENSORFLOW = tf.random.Generator.from_seed(1)
NUMPY = np.random.default_rng(1)
LEGACY = np.random.RandomState(1)
PYTHON = random.Random(1)
OWN = [TENSORFLOW, NUMPY, LEGACY, PYTHON]


def numbers():
    """Draws from the global generators, and from all others."""
    return [
        float(value)
        for value in (
            *(tf.random.normal([]), tf.random.uniform([])),
            *(tf.random.get_global_generator().normal([]), np.random.rand()),
            *(random.random(), TENSORFLOW.normal([]), NUMPY.normal()),
            *(LEGACY.rand(), PYTHON.random()),
        )
    ]


def set_all():
    """Sets all generators, which other tests also use."""
    tf.random.set_seed(3)
    tf.random.get_global_generator().reset_from_seed(3)
    np.random.seed(3)
    random.seed(3)
    TENSORFLOW.reset_from_seed(3)
    NUMPY.bit_generator.state = np.random.PCG64(3).state
    LEGACY.seed(3)
    PYTHON.seed(3)


def test_every_generator_is_set_and_restored():
    set_all()
    expected = [numbers() for _ in range(3)]
    set_all()
    found = [numbers()]
    drawn = []
    for seed in (5, 5, 6):
        with random_states.seeded(seed, OWN):
            drawn.append(numbers())
        if len(drawn) < 3:
            found.append(numbers())
    assert found == expected
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & {*drawn[2], *expected[0]}


def test_generators_are_restored_after_an_error():
    set_all()
    expected = numbers()
    set_all()
    with pytest.raises(KeyError), random_states.seeded(5, OWN):
        raise KeyError
    assert numbers() == expected


class Holder:
    """An object with a method that draws from an attribute."""

    def __init__(self, generator):
        self.parts = {"of": [generator]}
        self.itself = self

    def draw(self):
        return self.parts


def by_closure(generator):
    return lambda: generator


def by_default(generator):
    def draw(generator=generator):
        return generator

    return draw


def of_globals():
    return NUMPY.normal()


@pytest.mark.parametrize(
    "wrap",
    [
        *(by_closure, by_default, Holder),
        lambda generator: Holder(generator).draw,
        lambda generator: functools.partial(max, generator),
        lambda generator: by_closure(by_closure(generator)),
        lambda generator: tf.function(by_closure(generator)),
    ],
)
@pytest.mark.parametrize("generator", OWN, ids=lambda g: type(g).__name__)
def test_a_generator_is_reached(wrap, generator):
    assert random_states.reachable(wrap(generator)) == [generator]


def test_generators_of_named_globals_are_reached():
    assert random_states.reachable(of_globals) == [NUMPY]
    assert random_states.reachable(lambda x: x + 1) == []
