"""The curves of robustness.png."""

import itertools

import pytest

from tfsam.reports import results

_NUMBERS = itertools.count()


def rows(name, accuracies, options=None, epsilons=(0.1, 0.2)):
    return [
        {
            "attack": name,
            "options": options or {},
            "norm": "linf",
            "epsilon": epsilon,
            "accuracy": accuracy,
            "interval": [0.0, 1.0],
            "seconds": float(next(_NUMBERS)),
        }
        for epsilon, accuracy in zip(epsilons, accuracies, strict=True)
    ]


def curves(*parts):
    found = results._curves(row for part in parts for row in part)
    return [(name, [point[:2] for point in curve]) for name, curve in found]


def test_attacks_of_one_name_and_other_options_are_two_curves():
    few, many = (rows("pgd", [a, a], {"steps": a}) for a in (0.5, 0.25))
    assert curves(few, many) == [
        ("pgd (steps=0.5)", [(0.1, 0.5), (0.2, 0.5)]),
        ("pgd (steps=0.25)", [(0.1, 0.25), (0.2, 0.25)]),
    ]


@pytest.mark.parametrize("first", [0.5, None])
def test_attacks_of_one_name_and_no_options_are_two_curves(first):
    """Where the first one failed at an epsilon, too."""
    found = curves(rows("mine", [first, 0.25]), rows("mine", [0.5, 0.125]))
    assert [name for name, _ in found] == ["mine [1]", "mine [2]"]
    assert found[0][1][-1] == (0.2, 0.25)
    assert found[1][1] == [(0.1, 0.5), (0.2, 0.125)]


def test_an_epsilon_that_is_given_twice_is_one_point():
    (row,) = rows("pgd", [0.5], epsilons=[0.1])
    assert curves([row, row]) == [("pgd", [(0.1, 0.5)])]


def test_attacks_of_one_name_are_drawn(tmp_path):
    found = {
        "natural": {"accuracy": 1.0, "interval": [0.5, 1.0]},
        "robust": rows("mine", [0.5, 0.25]) + rows("mine", [None, None]),
    }
    results.robustness_plot(found, tmp_path / "robustness.png")
    assert (tmp_path / "robustness.png").stat().st_size
