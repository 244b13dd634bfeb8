"""The curves of robustness.png."""

import itertools

import numpy as np
import pytest

from tfsam.reports import plots

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
    found = plots._curves(row for part in parts for row in part)
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
    plots.robustness_plot(found, tmp_path / "robustness.png")
    assert (tmp_path / "robustness.png").stat().st_size


def test_the_examples_name_their_labels_and_the_fooled_ones(tmp_path):
    """Returns the curves of the figure before it is written."""
    drawn = []
    clean = np.full((2, 8, 8, 1), 0.5)
    attacked = clean + 0.1 * np.array([1.0, 0.5])[:, None, None, None]
    names = [("cat", "dog"), ("dog", "dog")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
        heading = "pgd, linf, epsilon 0.1"
        plots.examples_plot(clean, attacked, names, tmp_path, heading)
    (figure,) = drawn
    panels = np.array(figure.axes).reshape(2, 3)
    assert figure.get_suptitle() == heading
    assert [axes.get_title() for axes in panels[0]] == [
        "clean",
        "perturbation x 4",
        "adversarial",
    ]
    labels = [(row[0].get_ylabel(), row[2].get_ylabel()) for row in panels]
    assert labels == [
        ("label: cat", "predicted: dog"),
        ("label: dog", "predicted: dog"),
    ]
    frames = [row[2].spines["left"].get_linewidth() for row in panels]
    assert frames[0] > frames[1]
    # One factor for all rows, and neither black nor white.
    shown = [float(row[1].images[0].get_array().max()) for row in panels]
    np.testing.assert_allclose(shown, [0.9, 0.7])
