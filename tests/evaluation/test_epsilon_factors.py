"""Evaluations with an epsilon for each example."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks import Attack
from tfsam.reports import leaderboards

# A linear model of two pixels: x_0 - x_1 changes its sign at the l-inf distance
# |x_0 - x_1| / 2, and at that times sqrt(2) in l2.
GAPS = np.array([0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32])
X = (0.5 + np.stack([GAPS, -GAPS], 1) / 2).astype("float32")
Y = np.zeros(8, "int64")
FACTORS = np.array([1.0, 0.25, 1.0, 0.25, 1.0, 0.25, 0.0, 2.0])
EPSILONS = [0.05, 0.11]


def linear(x):
    return 10 * tf.stack([x[:, 0], x[:, 1]], axis=1)


def measured(attacks, **options):
    options = {"epsilons": EPSILONS, "epsilon_factors": FACTORS} | options
    options = {"batch_size": 3, "diagnose": False} | options
    return tfsam.evaluate(linear, (X, Y), attacks, **options)


def expected(norm="linf"):
    scale = {"linf": 0.5, "l2": np.sqrt(0.5), "l1": 1.0}[norm]
    return [float(np.mean(scale * GAPS > e * FACTORS)) for e in EPSILONS]


@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
def test_each_example_counts_at_its_own_epsilon(norm):
    attacks = [("apgd_ce", {"steps": 6}), ("fmn", {"steps": 15})]
    found = measured(attacks, norm=norm, diagnose=True)
    # Of the exact margins none is within a percent of its epsilon.
    rows = iter(found["robust"])
    for first, last in zip(rows, rows, strict=True):
        assert [first["accuracy"], last["accuracy"]] == expected(norm)
        assert first["per_example"] and "error" not in first
        assert first["epsilon_text"] == "0.05 per example"
        # Example 7 may be changed most, by twice as much as the epsilon says.
        assert last["max_perturbation"] <= 0.22 * (1 + 1e-6)
    worst = [row["accuracy"] for row in found["worst_case"]]
    assert worst == expected(norm)
    assert all(row["per_example"] for row in found["worst_case"])
    assert found["epsilon_factors"] == {
        "lowest": 0.0,
        "highest": 2.0,
        "mean": pytest.approx(0.71875),
    }


def test_images_of_another_norm_count_in_the_balls_of_their_examples():
    """The nearest image in l-inf is also the nearest in l2."""
    budgets = {"linf": [0.0], "l2": [0.05, 0.11]}
    attacks = [("fmn", {"steps": 15})]
    found = tfsam.evaluate(
        *(linear, (X, Y), attacks),
        budgets=budgets,
        epsilon_factors=FACTORS,
        diagnose=False,
    )
    accuracies = [row["accuracy"] for row in found["worst_case"]]
    assert accuracies == [1.0, *expected("l2")]
    assert found["union"]["per_example"]


def test_a_sweep_by_bisection_knows_the_balls_of_the_examples():
    rows = measured(["fgsm"], sweep="bisect")["robust"]
    assert [row["accuracy"] for row in rows] == expected()
    assert all(row["sweep"] == "bisect" for row in rows)


@pytest.mark.slow
def test_factors_of_one_change_no_verdict():
    attacks = [("pgd", {"steps": 3})]
    plain = measured(attacks, epsilon_factors=None)
    found = measured(attacks, epsilon_factors=np.ones(8))
    for one, other in zip(plain["robust"], found["robust"], strict=True):
        assert "per_example" not in one
        for field in ("accuracy", "max_perturbation", "inherited"):
            assert one[field] == other[field]


def test_a_folder_belongs_to_its_factors(tmp_path):
    attacks = [("pgd", {"steps": 2})]
    folder = {"workdir": tmp_path / "record", "name": "linear"}
    first = measured(attacks, **folder)
    header = json.loads((tmp_path / "record/record.json").read_text())
    assert len(header["epsilon_factors"]) == 64
    again = measured(attacks, **folder)
    assert again == first
    for factors in (None, 2 * FACTORS):
        with pytest.raises(ValueError, match="Received: epsilon_factors="):
            measured(attacks, epsilon_factors=factors, **folder)
    plain = {"workdir": tmp_path / "plain", "name": "linear"}
    measured(attacks, epsilon_factors=None, **plain)
    header = json.loads((tmp_path / "plain/record.json").read_text())
    assert "epsilon_factors" not in header


def test_shards_merge_to_the_whole(tmp_path):
    attacks = [("fmn", {"steps": 8})]
    whole = measured(attacks)
    folders = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        measured(attacks, workdir=folder, name="linear", shard=(number, 2))
    merged = tfsam.merge(folders)
    for one, other in zip(whole["robust"], merged["robust"], strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert other["epsilon_text"].endswith(" per example")
    assert merged["worst_case"] == whole["worst_case"]
    assert merged["epsilon_factors"] == whole["epsilon_factors"]


class Shift(Attack):
    """Shifts to the wrong class, by epsilon."""

    def perturb(self, logits_fn, x, y, seeds):
        return self.clip(x + self.epsilon * tf.constant([-1.0, 1.0]))


class Forgetful(Shift):
    """Claims to take an epsilon for each example, and uses the largest."""

    tensor_epsilon = True
    example_epsilons = True

    def perturb(self, logits_fn, x, y, seeds):
        epsilon = tf.reduce_max(self.epsilon)
        return self.clip(x + epsilon * tf.constant([-1.0, 1.0]))


def test_an_attack_that_cannot_has_an_error_and_the_others_go_on():
    rows = measured([Shift, Forgetful, "fgsm"], epsilons=[0.05])["robust"]
    shift, forgetful, fgsm = rows
    assert shift["accuracy"] is None and "one epsilon for all" in shift["error"]
    assert "left its ball of radius" in forgetful["error"]
    assert fgsm["accuracy"] == expected()[0]
    with pytest.raises(ValueError, match="Received: attack=Shift, epsilon_fac"):
        measured([Shift], strict=True)


def test_autoattack_is_not_the_standard_one():
    """Its accuracy belongs to no budget that others measured at."""
    x = RNG.random((4, 5), dtype="float32")
    weights = RNG.normal(size=(5, 5)).astype("float32")
    y = (x @ weights).argmax(1)
    found = tfsam.evaluate(
        lambda x: x @ weights,
        (x, y),
        ["autoattack"],
        epsilons=[1.0],
        epsilon_factors=np.full(4, 0.9),
    )
    (row,) = found["robust"]
    assert row["accuracy"] == 0.0 and row["standard"] is False
    with pytest.raises(ValueError, match="needs a result of the standard"):
        leaderboards.robustbench(found, norm="linf", epsilon=1.0)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.ones(7), r"shape \(8,\).* of shape \(7,\)"),
        (1.0, r"shape \(8,\).* of shape \(\)"),
        (-FACTORS, r">= 0\. Received: epsilon_factors in \[-2, -?0\]"),
        (np.full(8, np.nan), r"finite and >= 0"),
        (10 * FACTORS, r"epsilon \* factor must be at most 1, the width"),
    ],
)
def test_factors_that_are_none_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        measured(["fgsm"], epsilon_factors=factors)
