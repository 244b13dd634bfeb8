"""Sweeps by bisection: the curve of a full sweep for fewer attacks."""

import numpy as np
import pytest
from helpers import assert_one_line_error

import tfsam
from tfsam.evaluation.bisection import first_broken
from tfsam.evaluation.bisection import sweep
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import STANDS

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


# Of a linear model of two classes, with its boundary through the middle:
# the distance to it in l-inf, in steps of 0.05.
STEPS = np.array([0.5, 1.5, 2.5, 3.5, 9.0, -1.0])
X = (0.5 + 0.05 * np.stack([STEPS, np.zeros(6)], 1)).astype("float32")
Y = np.zeros(6, int)
CURVE = [0.05 * (n + 1) for n in range(EPSILONS // 2)]


def linear(x):
    return (x - 0.5) @ np.array([[1.0, -1.0], [0.0, 0.0]], "float32")


def evaluate(attacks, sweep, curve=CURVE, **options):
    return tfsam.evaluate(
        linear,
        (X, Y),
        attacks,
        epsilons=curve,
        batch_size=4,
        strict=True,
        sweep=sweep,
        **options,
    )


@pytest.mark.parametrize(
    ("attack", "attacked"),
    [
        # By halves: 0.15 first, for the five that are classified correctly.
        (("pgd", {"steps": 4, "random_start": False}), [2, 3, 5, 2]),
        # Stops at a success: from the largest epsilon down.
        (("apgd_ce", {"steps": 4}), [2, 3, 4, 5]),
    ],
)
def test_the_curve_is_that_of_a_full_sweep(attack, attacked, tmp_path):
    full = evaluate([attack], "full")["robust"]
    result = evaluate([attack], "bisect", workdir=tmp_path)
    rows = result["robust"]
    same = ("accuracy", "epsilon", "inherited")
    for one, other in zip(rows, full, strict=True):
        assert [one[k] for k in same] == [other[k] for k in same]
        assert one["sweep"] == "bisect"
        assert "sweep" not in other
        assert one["max_perturbation"] <= one["epsilon"] * (1 + 1e-5)
    assert [row["accuracy"] for row in rows] == [4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [row["attacked"] for row in rows] == attacked
    resumed = evaluate([attack], "bisect", workdir=tmp_path)
    assert resumed["robust"] == rows
    for change in ({"sweep": "full"}, {"sweep": "bisect", "curve": CURVE[1:]}):
        with pytest.raises(ValueError, match="Received") as error:
            evaluate([attack], workdir=tmp_path, **change)
        assert_one_line_error(error)


def test_a_minimum_norm_attack_ignores_it():
    attack = ("fmn", {"steps": 10})
    full, found = (evaluate([attack], s)["robust"] for s in ("full", "bisect"))
    assert [r["accuracy"] for r in found] == [r["accuracy"] for r in full]
    assert not any("sweep" in row for row in found)


@pytest.mark.parametrize(
    ("attacks", "options", "part"),
    [
        (["autoattack"], {}, "attack=autoattack"),
        (["pgd"], {"warm_start": True}, "warm_start=True"),
        (["pgd"], {"sweep": "half"}, "sweep=half"),
    ],
)
def test_it_is_refused_in_a_line(attacks, options, part):
    with pytest.raises(ValueError, match=part) as error:
        evaluate(attacks, **({"sweep": "bisect"} | options))
    assert_one_line_error(error, part)


def test_an_attack_that_fails_has_errors_at_all_epsilons():
    class Failing(tfsam.PGD):
        def perturb(self, logits_fn, x, y, seeds):
            raise RuntimeError

    result = tfsam.evaluate(
        linear, (X, Y), [Failing, "fgsm"], epsilons=CURVE, sweep="bisect"
    )
    failed, others = result["robust"][:4], result["robust"][4:]
    assert all("RuntimeError" in row["error"] for row in failed)
    assert not any("error" in row for row in others)


def test_images_are_those_of_the_smallest_epsilon_that_breaks():
    natural = np.array([STANDS, MISCLASSIFIED, STANDS], np.int8)
    thresholds = np.array([1, 0, 3])

    def attack(number, verdict):
        chosen = verdict == STANDS
        broken = chosen & (number >= thresholds)
        return {
            "verdict": np.where(broken, 1, verdict).astype(np.int8),
            "lengths": np.where(broken, number, np.inf)[:, None],
            "adversarial": np.where(chosen, 10 * number, 0)[:, None],
        }

    found = sweep(attack, 3, natural, downwards=True)
    images = [arrays["adversarial"][:, 0].tolist() for arrays in found]
    assert images == [[0, 0, 0], [10, 0, 0], [10, 0, 20]]
    assert [arrays["verdict"].tolist() for arrays in found] == [
        [STANDS, MISCLASSIFIED, STANDS],
        [1, MISCLASSIFIED, STANDS],
        [1, MISCLASSIFIED, STANDS],
    ]
    assert found[2]["lengths"][:, 0].tolist() == [1, np.inf, np.inf]
