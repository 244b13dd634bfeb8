"""Evaluation of networks with several labels, each with a sigmoid."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.evaluation import verdicts
from tfsam.support import files

# A label is there if its pixel is above 0.5: its distance is |x - 0.5|.
X = np.array(
    [
        [0.6, 0.3, 0.9],
        [0.45, 0.8, 0.9],
        [0.7, 0.35, 0.2],
        [0.6, 0.7, 0.9],
    ],
    "float32",
)
Y = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 1]])
# The last has a wrong label. The others break at 0.1, 0.05 and 0.15.


def model(x):
    return 10.0 * (x - 0.5)


def evaluate(attacks=("pgd",), epsilons=(0.07, 0.12), **options):
    return tfsam.evaluate(
        *(model, (X, Y), list(attacks)),
        **{"epsilons": epsilons, "multi_label": True, "diagnose": False},
        **options,
    )


def accuracies(result):
    return [row["accuracy"] for row in result["robust"]]


def test_an_example_is_right_if_all_of_its_labels_are():
    result = evaluate(epsilons=[0.0, 0.07, 0.12, 0.17])
    assert result["natural"]["accuracy"] == 3 / 4
    assert result["natural"]["by_label"] == [3 / 4, 1.0, 1.0]
    assert accuracies(result) == [3 / 4, 2 / 4, 1 / 4, 0.0]
    assert all(row["multi_label"] for row in result["robust"])
    worst = [row["accuracy"] for row in result["worst_case"]]
    assert worst == accuracies(result)
    assert all(row["multi_label"] for row in result["worst_case"])


def test_a_label_is_right_if_the_image_that_was_found_keeps_it():
    rows = evaluate(["fmn"], [0.07, 0.12, 0.17])["robust"]
    # The nearest label of the second example is the first one, and of the
    # third the second one.
    assert [row["by_label"] for row in rows] == [
        [2 / 4, 1.0, 1.0],
        [1 / 4, 1.0, 1.0],
        [1 / 4, 3 / 4, 1.0],
    ]


@pytest.mark.parametrize(
    "attack",
    [
        "apgd_t:steps=20",
        slow("fab_t:steps=20"),
        slow("square:queries=300"),
    ],
)
def test_other_attacks_agree(attack):
    assert accuracies(evaluate([attack])) == [2 / 4, 1 / 4]


def test_a_sweep_by_bisection_keeps_the_labels():
    full = evaluate(["fgsm"], [0.07, 0.12, 0.17])
    bisected = evaluate(["fgsm"], [0.07, 0.12, 0.17], sweep="bisect")
    assert accuracies(bisected) == accuracies(full)
    for one, other in zip(bisected["robust"], full["robust"], strict=True):
        assert one["by_label"][2] == other["by_label"][2] == 1.0


@pytest.mark.slow
def test_an_ensemble_is_not_standard():
    (row,) = evaluate(["autoattack"], [0.12])["robust"]
    assert row["accuracy"] == 1 / 4
    assert (row["standard"], row["version"]) == (False, "multi-label")


def test_records_are_resumed_and_merged(tmp_path):
    first = evaluate(["fgsm", "fmn"], workdir=tmp_path / "a", batch_size=2)
    assert evaluate(
        ["fgsm", "fmn"], workdir=tmp_path / "a", batch_size=2
    ) == first  # fmt: skip
    loaded = verdicts.load(tmp_path / "a")["fgsm", 0.12]
    assert loaded.tolist() == [1, 1, -1, 0]
    with pytest.raises(files.Unusable, match="multi_label="):
        tfsam.evaluate(
            *(model, (X, [0, 1, 0, 1]), []),
            **{"workdir": tmp_path / "a", "batch_size": 2},
        )
    folders = [tmp_path / str(index) for index in range(2)]
    for index, folder in enumerate(folders):
        evaluate(
            ["fgsm", "fmn"], batch_size=2, shard=(index, 2), workdir=folder
        )
    merged = tfsam.merge(folders)
    assert merged["natural"] == first["natural"]
    assert merged["worst_case"] == first["worst_case"]
    for one, other in zip(merged["robust"], first["robust"], strict=True):
        assert one["by_label"] == other["by_label"]


def test_the_table_and_the_page_have_each_label(tmp_path):
    result = evaluate()
    text = tfsam.reports.table(result)
    assert "pgd (all labels right)" in text
    assert "accuracy by label, % (clean): 75.00, 100.00, 100.00" in text
    (tmp_path / "run").mkdir()
    path = tmp_path / "run/results.json"
    path.write_text(json.dumps({"schema": 1, **result}))
    tfsam.page.write([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Label by label" in page and ">label 2<" in page


class Noise(keras.layers.Layer):
    """Noise that seldom changes a label."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = keras.random.normal(
            keras.ops.shape(x), 0.0, 0.02, seed=self.seed_generator
        )
        return 10.0 * (x + noise - 0.5)


@pytest.mark.slow
def test_each_label_of_a_random_network_is_that_of_most_draws():
    network = keras.Sequential([keras.Input((3,)), Noise()])
    result = tfsam.evaluate(
        *(network, (X, Y), ["pgd:eot=3"]),
        **{"epsilons": [0.2], "multi_label": True, "draws": 11},
    )
    assert result["natural"]["draws"] == 11
    assert result["natural"]["by_label"] == [3 / 4, 1.0, 1.0]
    assert accuracies(result) == [0.0]


def test_sigmoids_at_the_end_of_a_file_are_removed(tmp_path):
    network = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, activation="sigmoid")]
    )
    network.set_weights([10 * np.eye(3), np.full(3, -5.0)])
    network.save(tmp_path / "model.keras")
    result = tfsam.evaluate(
        *(tmp_path / "model.keras", (X, Y.astype(bool)), ["pgd"]),
        **{"epsilons": [0.07, 0.12], "multi_label": True},
    )
    assert result["model"]["ends_in"] == "sigmoid"
    assert accuracies(result) == [2 / 4, 1 / 4]


@pytest.mark.slow
def test_training_with_several_labels_is_evaluated():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model = tfsam.RobustModel(
        network,
        perturb_inputs=tfsam.PGD(0.05, steps=2),
        perturb_weights=tfsam.SAM(0.05),
    )
    model.compile(
        tfsam.SGD(5.0, momentum=0.9),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    x = np.random.default_rng(0).random((64, 3), dtype="float32")
    y = (x > 0.5).astype("float32")
    model.fit(x, y, epochs=20, verbose=0)
    result = tfsam.evaluate(
        model.network, (x, y), ["pgd"], epsilons=[0.02], multi_label=True
    )
    natural, (row,) = result["natural"], result["robust"]
    assert natural["accuracy"] > 0.7
    assert 0.4 < row["accuracy"] < natural["accuracy"]
    assert min(row["by_label"]) >= row["accuracy"]


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (Y, {}, "Several tags at once need multi_label=True"),
        (Y + 0.5, {"multi_label": True}, "y must be 0 or 1 for each"),
        (Y[:, 0], {"multi_label": True}, "y must be 0 or 1 for each"),
        (Y[:, :2], {"multi_label": True}, "y must have a column for each"),
        (Y, {"multi_label": True, "target": 1}, "target is a class, and"),
    ],
)
def test_other_labels_are_rejected(y, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        tfsam.evaluate(model, (X, y), ["pgd"], **options)
    assert "Received: " in str(caught.value)


def test_probabilities_are_rejected():
    with pytest.raises(ValueError, match="return logits"):
        tfsam.evaluate(
            lambda x: tf.sigmoid(model(x)), (X, Y), [], multi_label=True
        )
