"""An evaluation in the scope of a strategy, as after training in it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

RNG = np.random.default_rng(0)
DATA = RNG.random((20, 6), "float32"), np.arange(20) % 3
ATTACKS = ["pgd", *map(slow, ("fmn", "square", "cleverhans_pgd"))]


def result(attack):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    found = tfsam.evaluate(network, DATA, [attack], epsilons=[0.05, 0.1])
    for row in found["robust"]:
        row.pop("seconds")
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_scope_of_a_strategy_changes_nothing(attack):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice("CPU:0"),
    )
    with strategy.scope():
        found = result(attack)
    assert "error" not in found["robust"][0]
    assert found == result(attack)
