"""The worst case: an example is robust only if every attack failed on it."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.worst_case import Breaks
from tfsam.evaluation.worst_case import lengths
from tfsam.evaluation.worst_case import rows
from tfsam.evaluation.worst_case import union

FILES = pathlib.Path(__file__).parents[1] / "compatibility/files_of_0_1_0"

# The first pixel decides the class, the second one names the half.
X = np.array([[0.6, half] for half in (0, 0, 1, 1)], "float32")
Y = np.zeros(4, "int64")


def model(x):
    return tf.stack([40 * x[:, 0] - 20, 0 * x[:, 0]], axis=1)


def breaking(half, epsilons=None, norms=("linf", "l2")):
    """Returns an attack that breaks one half of X by moving it by 0.15."""

    def attack(epsilon, norm, bounds):
        active = norm in norms and epsilon in (epsilons or [epsilon])
        active = active and epsilon > 0.15

        def perturb(logits_fn, x, y, seed):
            step = np.where(x[:, 1] == half, 0.15 * active, 0)
            return x - np.stack([step, 0 * step], axis=1).astype("float32")

        return perturb

    attack.__name__ = f"half_{half}"
    return attack


def failing(norms=("linf", "l2"), epsilons=(0.2,)):
    def fails(epsilon, norm, bounds):
        if norm in norms and epsilon in epsilons:
            raise RuntimeError("no luck")
        return lambda logits_fn, x, y, seed: x

    return fails


def evaluate(attacks, budgets=None, **kwargs):
    return tfsam.evaluate(
        *(model, (X, Y), attacks),
        budgets=budgets or {"linf": [0.2]},
        **{"diagnose": False, **kwargs},
    )


def test_two_attacks_that_break_another_half_leave_nothing():
    result = evaluate([breaking(0), breaking(1)])
    assert [row["accuracy"] for row in result["robust"]] == [0.5, 0.5]
    (worst,) = result["worst_case"]
    assert worst == {
        **{"norm": "linf", "epsilon": 0.2, "epsilon_text": "0.2"},
        **{"accuracy": 0.0, "n": 4, "interval": worst["interval"]},
        "attacks": [
            {"attack": "half_0", "broken": 2},
            {"attack": "half_1", "broken": 2},
        ],
        **{"missing": [], "upper_bound": False},
    }
    assert worst["interval"][0] == 0.0 < worst["interval"][1]
    assert "union" not in result


def test_without_an_attack_there_is_no_worst_case():
    result = evaluate([], {"l2": [0.1], "linf": [0.1]})
    assert result["worst_case"] == [] and "union" not in result


def test_what_a_smaller_epsilon_breaks_is_broken():
    """An image that is near enough also counts at a smaller epsilon."""
    result = evaluate([breaking(0, [0.2])], {"linf": [0.4, 0.2, 0.16, 0.1]})
    found = [row["accuracy"] for row in result["worst_case"]]
    assert found == [0.5, 0.5, 0.5, 1.0]
    assert [row["accuracy"] for row in result["robust"]] == [0.5, 0.5, 1.0, 1.0]


def test_an_image_counts_in_the_balls_of_other_norms():
    attack = breaking(0, norms=["l2"])
    budgets = {"linf": [0.1, 0.2], "l2": [0.4]}
    result = evaluate([attack], budgets)
    assert [row["accuracy"] for row in result["robust"]] == [1.0, 1.0, 0.5]
    assert [r["accuracy"] for r in result["worst_case"]] == [1.0, 0.5, 0.5]
    assert result["union"] == {
        **{"accuracy": 0.5, "n": 4, "interval": result["union"]["interval"]},
        "budgets": {"linf": 0.2, "l2": 0.4},
        **{"missing": [], "upper_bound": False},
    }


def test_a_nearest_image_counts_by_its_distance():
    class Nearest(tfsam.attacks.Attack):
        minimum_norm = True

        def closest(self, logits_fn, x, y, seeds):
            return x - np.float32([0.11, 0.0])

    budgets = {"l2": [0.05], "linf": [0.1, 0.12]}
    result = evaluate([Nearest], budgets, bounds=None)
    assert [r["accuracy"] for r in result["worst_case"]] == [1.0, 1.0, 0.0]


def test_an_attack_that_failed_is_missing():
    attacks = [breaking(0), failing()]
    result = evaluate(attacks, {"linf": [0.1, 0.2], "l2": [0.1]})
    small, large, l2 = result["worst_case"]
    for row, missing in ((small, []), (large, ["fails"]), (l2, [])):
        assert row["missing"] == missing
        assert row["upper_bound"] is bool(missing)
    assert large["accuracy"] == 0.5
    assert result["union"]["missing"] == ["fails"]
    assert result["union"]["upper_bound"]


def test_misclassified_examples_are_broken_by_no_attack():
    (worst,) = tfsam.evaluate(
        model, (X, np.array([0, 1, 0, 1])), [breaking(0)], "linf", [0.2]
    )["worst_case"]
    assert worst["accuracy"] == 0.25
    assert worst["attacks"] == [{"attack": "half_0", "broken": 1}]


def test_a_linear_model_has_its_exact_worst_case():
    """FGSM is the best attack on a linear model of two classes."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (40, 5)).astype("float32")
    weights = rng.normal(size=5).astype("float32")

    def linear(x):
        z = tf.linalg.matvec(x, weights)
        return tf.stack([z, -z], axis=1)

    margins = np.abs(x @ weights)
    dual = {"linf": np.abs(weights).sum(), "l2": np.linalg.norm(weights)}
    budgets = {"linf": [0.1, 0.2], "l2": [0.5, 0.2]}
    result = tfsam.evaluate(
        linear,
        (x, (x @ weights < 0).astype(int)),
        ["fgsm", "noise_linf"],
        budgets=budgets,
        bounds=None,
        strict=True,
    )
    stands = {
        (norm, epsilon): margins > epsilon * dual[norm]
        for norm, epsilons in budgets.items()
        for epsilon in epsilons
    }
    for row in result["worst_case"]:
        exact = stands[row["norm"], row["epsilon"]].mean()
        assert 0 < row["accuracy"] == exact < 1
    both = stands["linf", 0.2] & stands["l2", 0.5]
    assert result["union"]["accuracy"] == both.mean()


def test_attacks_on_a_surrogate_count():
    def surrogate(x):
        return 2 * model(x)

    result = tfsam.evaluate(
        *(model, (X, Y), [breaking(0)], "linf", [0.2]),
        surrogate=surrogate,
        transfer_attacks=[breaking(1)],
    )
    direct, transferred = result["robust"]
    assert "surrogate" not in direct and transferred["surrogate"] is True
    (worst,) = result["worst_case"]
    assert worst["accuracy"] == 0.0
    assert worst["attacks"] == [
        {"attack": "half_0", "broken": 2},
        {"attack": "half_1", "broken": 2, "surrogate": True},
    ]
    # With a surrogate alone, all attacks are attacks on it.
    (row,) = evaluate([breaking(0)], surrogate=surrogate)["robust"]
    assert row["surrogate"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transfer_attacks": ["fgsm"]}, "Received: transfer_attacks=.*fgsm"),
        ({"budgets": {"l2": [1.0]}, "norm": "l2"}, "Received: norm=l2"),
        ({"budgets": {"l2": [1.0]}, "epsilons": [1.0]}, "epsilons=.*budgets="),
        ({"budgets": [0.1]}, r"Received: budgets=\[0.1\]"),
        ({"budgets": {"l7": [0.1]}}, "Received: norm=l7"),
        ({"budgets": {"l2": [-1]}}, "Received: epsilon=-1"),
        ({"budgets": {"linf": [0.1], "l2": ["a"]}}, "Received: epsilon=a"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfsam.evaluate(model, (X, Y), ["fgsm"], **arguments)


def test_rows_are_computed_from_arrays_alone():
    correct = np.array([True, True, True, False])
    images = lengths(np.array([[0.1, 0.1], [0.2, 0.0], [0.3, 0.3], [0, 0]]))
    images[2:] = np.inf
    by_image = Breaks("a", False, {}, [images])
    broken = {Budget("linf", 0.05): np.array([False, False, True, True])}
    by_verdict = Breaks("b", False, broken, [])
    budgets = {"linf": [0.05, 0.1, 0.2], "l2": [0.15], "l1": [0.2]}
    found = rows(correct, [by_image, by_verdict], budgets)
    assert [row["accuracy"] for row in found] == [0.5, 0.25, 0.0, 0.5, 0.25]
    counts = [[a["broken"] for a in row["attacks"]] for row in found]
    assert counts == [[0, 1], [1, 1], [2, 1], [1, 0], [2, 0]]
    assert union(correct, [by_image], budgets)["accuracy"] == 0.25
    assert union(correct, [by_image], {"linf": [0.1], "l2": []}) is None


def test_rounding_takes_no_image_out_of_its_ball():
    image = np.array([[0.3]], "float32") - np.array([[0.2]], "float32")
    attack = Breaks("a", False, {}, [lengths(image)])
    (row,) = rows(np.array([True]), [attack], {"linf": [0.1]})
    assert row["accuracy"] == 0.0


def test_records_of_0_1_0_have_a_worst_case():
    """Old records count by their verdicts: they have no lengths."""
    folder = FILES / "record" / "whole"
    stands = {
        key: column == tfsam.verdicts.STANDS
        for key, column in tfsam.verdicts.load(folder).items()
    }
    found = tfsam.merge([folder])["worst_case"]
    assert [row["epsilon"] for row in found] == [0.05, 0.1]
    for row in found:
        columns = [stands[key] for key in stands if key[1] == row["epsilon"]]
        assert row["accuracy"] == np.all(columns, axis=0).mean() < 1
