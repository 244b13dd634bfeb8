"""Sweeps by bisection: the curve of a full sweep for fewer attacks."""

import numpy as np
import pytest

from tfsam.evaluation.bisection import first_broken

EPSILONS = 8


def counted(thresholds):
    """Returns an attack on examples that break from a number on."""
    tried = [[] for _ in thresholds]

    def attack(number, chosen):
        for index in chosen:
            tried[index].append(number)
        return number >= thresholds[chosen]

    return attack, tried


@pytest.mark.parametrize("downwards", [False, True])
def test_every_threshold_is_found(downwards):
    thresholds = np.arange(EPSILONS + 1)
    attack, tried = counted(thresholds)
    found = first_broken(attack, EPSILONS, len(thresholds), downwards)
    np.testing.assert_array_equal(found, thresholds)
    assert all(len(set(each)) == len(each) for each in tried)
    if downwards:
        failures = [
            sum(n < t for n in each)
            for each, t in zip(tried, thresholds, strict=True)
        ]
        assert failures == [0] + [1] * EPSILONS
    else:
        # Nine outcomes: three or four attacks decide.
        assert {len(each) for each in tried} == {3, 4}


@pytest.mark.parametrize("downwards", [False, True])
def test_the_attacks_on_an_example_do_not_depend_on_the_others(downwards):
    thresholds = np.array([5, 0, 8, 2, 7])
    attack, together = counted(thresholds)
    first_broken(attack, EPSILONS, len(thresholds), downwards)
    for index, threshold in enumerate(thresholds):
        attack, (alone,) = counted(np.array([threshold]))
        first_broken(attack, EPSILONS, 1, downwards)
        assert together[index] == alone


def test_an_example_that_stands_is_taken_to_stand_at_smaller_epsilons():
    def attack(number, chosen):
        return np.full(len(chosen), number == 1)  # Breaks at a single epsilon.

    assert first_broken(attack, 4, 1, downwards=True).tolist() == [4]


def test_nothing_is_attacked_without_examples_or_epsilons():
    def attack(number, chosen):
        raise AssertionError

    assert first_broken(attack, 3, 0).tolist() == []
    assert first_broken(attack, 0, 2).tolist() == [0, 0]
