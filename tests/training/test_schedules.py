"""Tests of learning-rate schedules: by hand, at their ends, and saved."""

import keras
import numpy as np
import pytest

from tfsam.training import schedules


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in range(steps)])


@pytest.mark.parametrize(
    "make", [schedules.piecewise, schedules.cosine, schedules.one_cycle]
)
def test_it_is_saved_with_an_optimizer(make):
    made = make(0.1, 8, 5, 2)
    optimizer = keras.optimizers.SGD(made)
    config = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(
        rates(loaded._learning_rate, 41), rates(made, 41)
    )


def test_piecewise_is_the_paper_s():
    """75 and 90 of 100 epochs; the first step of an epoch has its rate."""
    found = rates(schedules.piecewise(0.1, 100, 2), 200)
    by_hand = np.repeat([0.1, 0.01, 0.001], [150, 30, 20])
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


@pytest.mark.parametrize("make", [schedules.piecewise, schedules.cosine])
def test_warm_up_is_linear_and_joins_the_rest(make):
    found = rates(make(0.1, 10, 4, 2), 40)
    np.testing.assert_allclose(found[:9], 0.1 * np.arange(1, 10) / 9, rtol=1e-6)
    assert (np.diff(found[8:]) <= 1e-9).all()


@pytest.mark.parametrize("make", [schedules.piecewise, schedules.cosine])
def test_no_warm_up_is_keras_s_own_schedule(make):
    module = type(make(0.1, 10, 4)).__module__
    assert module.startswith("keras.")


def test_cosine_by_hand():
    found = rates(schedules.cosine(0.1, 10, 2, final=0.02), 21)
    turns = np.cos(np.pi * np.arange(21) / 20)
    np.testing.assert_allclose(found, 0.02 + 0.04 * (1 + turns), rtol=1e-5)


def test_one_cycle_by_hand():
    """PyTorch's: the top at step 0.25 * 40 - 1, the end at step 39."""
    found = rates(schedules.one_cycle(0.2, 10, 4, warmup=0.25), 40)
    steps = np.arange(40)
    start, end = 0.2 / 25, 0.2 / 250_000
    rise = 0.2 + (start - 0.2) / 2 * (1 + np.cos(np.pi * steps / 9))
    fall = end + (0.2 - end) / 2 * (1 + np.cos(np.pi * (steps - 9) / 30))
    np.testing.assert_allclose(
        found, np.where(steps < 9, rise, fall), rtol=1e-5, atol=1e-8
    )
    np.testing.assert_allclose(found[[0, 9, 39]], [start, 0.2, end], rtol=1e-2)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_cycle_of_few_steps_has_finite_rates(steps):
    found = rates(schedules.one_cycle(0.2, 1, steps), steps)
    assert np.isfinite(found).all() and found[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (schedules.cosine, {"warmup_epochs": 3}, "Received: warmup_epochs=3"),
        (schedules.piecewise, {"warmup_epochs": 4}, "warmup_epochs=4"),
        (schedules.cosine, {"final": 0.2}, "Received: final=0.2"),
        (schedules.one_cycle, {"warmup": 2}, "Received: warmup=2"),
    ],
)
def test_arguments_out_of_range(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(0.1, 3, 10, **options)
