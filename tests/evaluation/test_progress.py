"""The lines that an evaluation logs while it works."""

import itertools

import numpy as np
import pytest

from tfsam.evaluation import progress
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.verdicts import STANDS

ENTRY = Entry("mine", {}, None)
STAND = np.array([STANDS] * 3 + [1], np.int8)


@pytest.fixture
def lines(monkeypatch):
    """Returns a function that logs chunks of ten seconds each."""
    clock = itertools.count(step=10)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))

    def told(*events, epsilons=(0.1,), count=4):
        found = []
        budgets = {"linf": list(epsilons)}
        plan = Plan(None, [ENTRY], budgets, None, 0, 4, False, False)
        tell = progress.teller(plan, ENTRY, "linf", count, found.append)
        for event in events:
            tell(*event)
        return found

    return told


LOADED = (0.1, STAND, progress.LOADED)
FAILED = (0.1, STAND, progress.FAILED)
MEASURED = (0.1, STAND)


def test_the_time_left_goes_by_what_was_measured(lines):
    """Loaded chunks took no time; the remaining one takes ten seconds."""
    assert lines(LOADED, LOADED, MEASURED)[-1] == (
        "mine linf: robust accuracy so far 0.1 0.7500 of 12; 30 s left"
    )


def test_before_anything_is_measured_no_time_is_known(lines):
    assert lines(LOADED)[-1] == (
        "mine linf: robust accuracy so far 0.1 0.7500 of 4"
    )
    assert lines(*[LOADED] * 4)[-1].endswith("of 16; 0 s left")


def test_an_attack_that_failed_has_no_accuracy(lines):
    assert lines(FAILED, FAILED) == [
        "mine linf: failed at 0.1",
        "mine linf: failed at 0.1",
    ]


def test_an_epsilon_that_failed_in_a_later_chunk_has_none_either(lines):
    found = lines(MEASURED, (0.2, STAND), FAILED, epsilons=[0.1, 0.2])
    assert found[1].startswith(
        "mine linf: robust accuracy so far 0.1 0.7500 of 4, 0.2 0.7500 of 4; "
    )
    assert found[2].startswith(
        "mine linf: robust accuracy so far 0.2 0.7500 of 4; failed at 0.1; "
    )


def test_a_stage_of_an_ensemble_is_logged(lines):
    assert lines((0.1, STAND, "first")) == [
        "mine linf 0.1: after first 3 of 4 survive in this chunk"
    ]
