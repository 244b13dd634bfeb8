"""Evaluation of attacks towards a class that the user names."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.evaluation import verdicts
from tfsam.support import files

# The logits are the pixels, ten times. To reach class 2, the third pixel and
# the largest of the others move towards each other, so that the distance in
# l-inf is half their difference: 0.05, 0.1, 0.15, 0.2, and 0.1.
X = np.array(
    [
        [0.6, 0.1, 0.5],
        [0.6, 0.1, 0.4],
        [0.1, 0.6, 0.3],
        [0.6, 0.55, 0.2],
        [0.6, 0.1, 0.4],
        [0.1, 0.2, 0.6],
    ],
    "float32",
)
# The fifth is misclassified, and the last is taken for the target.
Y = np.array([0, 0, 1, 0, 1, 0])


def model(x):
    return 10.0 * tf.identity(x)


def evaluate(attacks=("pgd",), epsilons=(0.07, 0.12), target=2, **options):
    return tfsam.evaluate(
        model, (X, Y), list(attacks), epsilons=epsilons, target=target,
        **{"diagnose": False, **options},
    )  # fmt: skip


def accuracies(result):
    return [row["accuracy"] for row in result["robust"]]


def test_accuracy_is_the_share_that_does_not_reach_the_target():
    result = evaluate(epsilons=[0.0, 0.07, 0.12, 0.17, 0.22])
    assert result["natural"]["accuracy"] == 4 / 6
    # Without an attack one is at the target, and the misclassified one stands.
    assert accuracies(result) == [5 / 6, 4 / 6, 2 / 6, 1 / 6, 0.0]
    assert [row["target"] for row in result["robust"]] == [2] * 5
    assert [row["inherited"] for row in result["robust"]] == [0, 0, 1, 3, 4]
    worst = result["worst_case"]
    assert [row["accuracy"] for row in worst] == accuracies(result)
    assert {row["target"] for row in worst} == {2}


@pytest.mark.parametrize(
    "attack", ["fmn", slow("square:queries=500"), slow("fab_t")]
)
def test_other_attacks_agree(attack):
    assert accuracies(evaluate([attack])) == [4 / 6, 2 / 6]


def test_every_example_may_have_its_own_target():
    target = np.array([2, 1, 0, 2, 2, 1])
    result = evaluate(epsilons=[0.07, 0.26], target=target)
    # The distances are 0.05, 0.25, 0.25, 0.2, 0.1 and 0.2.
    assert accuracies(result) == [5 / 6, 0.0]
    assert result["robust"][0]["target"] == "one for each example"
    assert "towards a class of each image" in tfsam.reports.table(result)
    same = evaluate(target=np.full(6, 2))
    assert same["robust"][0]["target"] == 2


class Ensemble(tfsam.FGSM):
    """An ensemble that says that it is the standard one."""

    version = "standard"

    @property
    def stages(self):
        return [(name, tfsam.FGSM(self.epsilon)) for name in ("one", "two")]


@pytest.mark.parametrize("attack", [Ensemble, slow("autoattack")])
def test_an_ensemble_that_aims_at_a_class_is_not_standard(attack):
    (row,) = evaluate([attack], [0.12])["robust"]
    assert row["accuracy"] == 2 / 6
    assert (row["standard"], row["version"]) == (False, "targeted")
    name = tfsam.reports.attack_name(row)
    assert "towards class 2" in name and "not standard" in name
    with pytest.raises(ValueError, match="needs a result of the standard"):
        tfsam.reports.robustbench({"natural": {}, "robust": [row]})


def test_a_record_is_resumed_with_the_same_target_alone(tmp_path):
    first = evaluate(["fgsm"], workdir=tmp_path, batch_size=4)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    again = evaluate(["fgsm"], workdir=tmp_path, batch_size=4)
    assert again == first
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    loaded = verdicts.load(tmp_path)["fgsm", 0.07]
    assert loaded.tolist() == [1, -1, -1, -1, -1, verdicts.MISCLASSIFIED]
    targets = (None, [2, 2, 2, 2, 2, 1])
    for target in targets:
        with pytest.raises(files.Unusable, match="target="):
            evaluate(workdir=tmp_path, batch_size=4, target=target)
    grown = evaluate(["pgd"], workdir=tmp_path, batch_size=4)
    assert accuracies(grown) == accuracies(first)


def test_shards_are_merged(tmp_path):
    target = [2, 1, 0, 2, 2, 1]
    whole = evaluate(target=target, batch_size=2)
    folders = [tmp_path / str(index) for index in range(2)]
    for index, folder in enumerate(folders):
        evaluate(target=target, batch_size=2, shard=(index, 2), workdir=folder)
    merged = tfsam.merge(folders)
    for key in ("natural", "worst_case"):
        assert merged[key] == whole[key]
    assert accuracies(merged) == accuracies(whole)
    rows = zip(merged["robust"], whole["robust"], strict=True)
    assert all(one["target"] == other["target"] for one, other in rows)


def test_a_surrogate_is_attacked_towards_the_class():
    def other(x):
        return model(x) + tf.constant([0.0, 0.0, 0.1])

    result = evaluate(epsilons=[0.07, 0.12], surrogate=other)
    assert accuracies(result) == [4 / 6, 2 / 6]
    assert all(row["surrogate"] for row in result["robust"])


@pytest.mark.slow
def test_a_random_model_is_judged_by_its_draws():
    """Half of the draws add so much to class 2 that it is the largest."""

    def noisy(x):
        sign = tf.sign(tf.random.uniform([tf.shape(x)[0], 1]) - 0.5)
        return model(x) + sign * tf.constant([[0.0, 0.0, 0.1]])

    result = tfsam.evaluate(
        noisy, (X, Y), ["pgd:eot=4"], epsilons=[0.12], target=2, draws=9
    )
    assert result["natural"]["draws"] == 9
    assert accuracies(result) == [2 / 6]


def test_the_table_and_the_warnings_say_what_is_aimed_at():
    result = evaluate(["pgd:steps=5:targets=9"])
    note = "towards class 2: the share that does not reach it"
    lines = tfsam.reports.table(result).splitlines()
    assert sum(note in line for line in lines) == 4
    names = [warning["warning"] for warning in result["warnings"]]
    assert "few_classes" not in names


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (0, "target must be another class than the label"),
        (3, "target must be a class number below 3"),
        (1.0, "target must be a class number, or an integer array"),
        ([2, 2], "target must be a class number, or an integer array"),
    ],
)
def test_other_targets_are_rejected(target, message):
    with pytest.raises(ValueError, match=message):
        evaluate(target=target)


def test_an_attack_that_asks_out_of_turn_has_an_error():
    def factory(epsilon, norm, bounds):
        def attack(logits_fn, x, y, seed):
            return x + 0 * logits_fn(x[:1])[0, 0]

        return attack

    (row,) = evaluate([factory], [0.1])["robust"]
    assert "on the whole batch, or on copies of it" in row["error"]
