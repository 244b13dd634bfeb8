"""Networks of several inputs, of which one is attacked."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.support import files
from tfsam.support.several_inputs import inputs_of

# The class is 0 if the mean of the image is above the other input: in l-inf
# its distance is their difference, 0.05, 0.1, 0.15, 0.2 and 0.1.
MEANS = np.array([0.6, 0.6, 0.3, 0.3, 0.7], "float32")
LIMIT = np.array([0.55, 0.5, 0.45, 0.5, 0.6], "float32")[:, None]
PATTERN = np.array([[0.1, -0.1], [0.05, -0.05]], "float32")[..., None]
IMAGE = MEANS[:, None, None, None] + PATTERN
Y = np.array([0, 0, 1, 1, 1])  # The last is misclassified.


def network(names=("image", "limit"), structure=list):
    """A network that compares the mean of an image with another input."""
    image = keras.Input((2, 2, 1), name=names[0])
    limit = keras.Input((1,), name=names[1])
    mean = keras.layers.GlobalAveragePooling2D()(image)
    both = keras.layers.Concatenate()([mean, limit])
    outputs = keras.layers.Rescaling(10.0)(both)
    given = {"image": image, "limit": limit}
    if structure is list:
        given = [image, limit]
    return keras.Model(given, outputs)


LISTED = network()


def evaluate(x=None, model=LISTED, attacks=("pgd",), **options):
    x = [IMAGE, LIMIT] if x is None else x
    return tfsam.evaluate(
        *(model, (x, Y), list(attacks)),
        **{"epsilons": [0.07, 0.12, 0.17], "diagnose": False, **options},
    )


EXACT = [3 / 5, 2 / 5, 1 / 5]


def accuracies(result):
    return [row["accuracy"] for row in result["robust"]]


@pytest.mark.parametrize("kind", ["list", "dict", slow("dict for a list")])
def test_the_image_is_attacked_to_the_exact_distance(kind):
    model = LISTED if kind != "dict" else network(structure=dict)
    x = [IMAGE, LIMIT] if kind == "list" else {"limit": LIMIT, "image": IMAGE}
    result = evaluate(x, model)
    assert result["natural"]["accuracy"] == 4 / 5
    assert accuracies(result) == EXACT


@pytest.mark.parametrize(
    "attack",
    [
        "apgd_ce:steps=10:restarts=2",
        slow("fmn"),
        slow("fab_t:steps=20"),
        slow("square:queries=99"),
    ],
)
def test_other_attacks_agree_in_small_chunks(attack):
    assert accuracies(evaluate(attacks=[attack], batch_size=2)) == EXACT


def test_a_diagnosis_needs_no_more():
    result = evaluate(
        attacks=["pgd:steps=3", "square:queries=9"], diagnose=True
    )
    assert all("error" not in row for row in result["robust"])
    assert all("diagnosis" in row for row in result["robust"])


def test_an_input_is_chosen_by_its_name_or_number():
    """The other one is no image, and its distance is the same."""
    for attacked in ("limit", 1):
        result = evaluate(attacked=attacked)
        assert accuracies(result) == EXACT
    same = evaluate({"image": IMAGE, "limit": LIMIT}, attacked="limit")
    assert accuracies(same) == EXACT


def test_functions_of_several_inputs_may_be_evaluated():
    def function(inputs):
        mean = tf.reduce_mean(inputs["image"], [1, 2])
        return 10 * tf.concat([mean, inputs["limit"]], axis=1)

    x = {"image": IMAGE, "limit": LIMIT}
    assert accuracies(evaluate(x, function)) == EXACT

    def eager(inputs):
        return function({k: tf.constant(v.numpy()) for k, v in inputs.items()})

    result = evaluate(x, eager, ["square:queries=3"])
    assert all("error" not in row for row in result["robust"])


def test_a_target_and_a_surrogate_work_with_several_inputs():
    towards = evaluate(target=1 - Y)
    assert accuracies(towards) == [3 / 5, 2 / 5, 1 / 5]
    transfer = evaluate(surrogate=network(("other", "bound")))
    assert accuracies(transfer) == EXACT


def test_the_other_inputs_belong_to_the_record(tmp_path):
    first = evaluate(workdir=tmp_path, batch_size=2)
    assert evaluate(workdir=tmp_path, batch_size=2) == first
    moved = [IMAGE, LIMIT + 0.01]
    with pytest.raises(files.Unusable, match="data="):
        evaluate(moved, workdir=tmp_path, batch_size=2)
    with pytest.raises(files.Unusable, match="attacked="):
        evaluate(workdir=tmp_path, batch_size=2, attacked=1)


def test_shards_are_merged(tmp_path):
    folders = [tmp_path / str(index) for index in range(2)]
    for index, folder in enumerate(folders):
        evaluate(batch_size=2, shard=(index, 2), workdir=folder)
    merged = tfsam.merge(folders)
    assert accuracies(merged) == EXACT
    text = tfsam.reports.table(merged)
    assert "| pgd | linf | 0.12 | 40.00 |" in text
    assert text.endswith("attacked input: 0")


class Noise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(
            keras.ops.shape(x), stddev=0.1, seed=self.seed_generator
        )


def test_random_networks_are_rejected():
    noisy = keras.Model(LISTED.inputs, Noise()(LISTED.outputs[0]))
    with pytest.raises(ValueError, match="draws are for models of a single"):
        evaluate(model=noisy)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        ([IMAGE, IMAGE], {}, "2 of the inputs look like images.*0 .image."),
        ([2 * IMAGE, LIMIT], {}, "0 of the inputs look like images"),
        (None, {"attacked": "age"}, r"attacked must be one of the inputs, 0 "),
        (None, {"attacked": 2}, "attacked must be one of the inputs"),
        ([IMAGE, LIMIT[:3]], {}, "must have one shape for all examples"),
        (
            {"image": IMAGE, "limit": LIMIT[:3]},
            *({}, "all inputs must have the same number of examples"),
        ),
        (IMAGE, {"attacked": 0}, "attacked names one of several inputs"),
    ],
)
def test_other_inputs_are_rejected(x, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(x, **options)
    assert "Received: " in str(caught.value)


def test_a_structure_is_split_and_joined():
    for whole in ({"b": 1, "a": 2}, [1, 2], (1, 2)):
        arrays = tf.nest.map_structure(np.array, whole)
        inputs = inputs_of(arrays, list(arrays)[1] if "b" in whole else 1)
        pixels, others = inputs.split(whole)
        assert (pixels, others) == (2, (1,))
        assert inputs.join(3, others) in ({"b": 1, "a": 3}, [1, 3], (1, 3))
        assert type(inputs.join(3, others)) is type(whole)


def batches(x, size=2):
    return tf.data.Dataset.from_tensor_slices((x, Y)).batch(size)


class Python(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(2 * index, 2 * index + 2)
        return [IMAGE[rows], LIMIT[rows]], Y[rows]


def test_inputs_come_from_datasets(tmp_path):
    whole = {"image": IMAGE, "limit": LIMIT}
    expected = evaluate(whole, workdir=tmp_path)
    data = batches(whole)
    for given in (data, data.unbatch()):
        found = tfsam.evaluate(
            *(LISTED, given, ["pgd"]),
            **{"epsilons": [0.07, 0.12, 0.17], "diagnose": False},
            workdir=tmp_path,  # It is the same record.
        )
        assert found == expected
    pairs = (
        Python(),
        batches((IMAGE, LIMIT)),
        ((list(x), y) for x, y in batches((IMAGE, LIMIT), 5)),
    )
    for given in pairs:
        result = tfsam.evaluate(LISTED, given, ["pgd:steps=1"], epsilons=[0.5])
        assert result["natural"]["accuracy"] == 4 / 5
        assert result["attacked"] == 0


def test_only_some_batches_are_read():
    data = batches({"image": IMAGE, "limit": LIMIT}).repeat()
    with pytest.raises(ValueError, match="must be finite"):
        tfsam.evaluate(LISTED, data, [])
    result = tfsam.evaluate(LISTED, data, [], steps=2)
    assert result["natural"] == {
        **result["natural"],
        **{"accuracy": 1.0, "n": 4},
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tf.data.Dataset.from_tensors({"image": IMAGE, "limit": LIMIT}),
            "without labels",
        ),
        (
            tf.data.Dataset.from_tensors(({"a": IMAGE, "b": LIMIT[:2]}, Y)),
            "all inputs and y must have the same number of examples",
        ),
    ],
    ids=["no labels", "lengths"],
)
def test_other_datasets_are_rejected(data, message):
    with pytest.raises(ValueError, match=message):
        tfsam.evaluate(LISTED, data, [])


def ending(activation):
    """The network with a softmax or sigmoid at its end."""
    given = network(structure=dict)
    outputs = keras.layers.Activation(activation)(given.output)
    return keras.Model(given.input, outputs)


@pytest.mark.parametrize("made", [network, lambda: ending("softmax")])
def test_models_come_from_files(made, tmp_path):
    path = tmp_path / "model.keras"
    made().save(path)
    x = {"image": IMAGE, "limit": LIMIT}
    result = evaluate(x, path, workdir=tmp_path / "record")
    assert accuracies(result) == EXACT
    removed = made is not network
    assert result["model"]["logits"] == (
        "removed_ending" if removed else "exact"
    )
    assert sorted(result["model"]["input_shape"]) == [[1], [2, 2, 1]]
    assert evaluate(x, path, workdir=tmp_path / "record") == result
    transfer = evaluate(x, surrogate=path, epsilons=[0.12])
    assert accuracies(transfer) == EXACT[1:2]


def test_files_without_logits_are_rejected(tmp_path):
    path = tmp_path / "model.keras"
    given = network(structure=dict)
    softmax = keras.layers.Softmax()(given.output)
    mean = keras.layers.Average()([softmax, softmax])
    keras.Model(given.input, mean).save(path)
    x = {"image": IMAGE, "limit": LIMIT}
    with pytest.raises(ValueError, match="must return logits, or end in a"):
        evaluate(x, path)
    with pytest.raises(ValueError, match="one of several gets them as they"):
        evaluate(x, path, pixels="0..255")


def test_one_of_several_inputs_is_corrupted(tmp_path):
    """Less contrast makes deviations from the mean smaller, here 0.08."""
    image = np.repeat(np.repeat(IMAGE, 4, axis=1), 4, axis=2)
    x = {"image": image, "limit": LIMIT}

    def function(inputs):
        spread = tf.math.reduce_std(inputs["image"], [1, 2])
        least = 0.07 + 0 * inputs["limit"]
        return 100 * tf.concat([spread, least], axis=1)

    def corrupted(**options):
        return tfsam.evaluate_corruptions(
            *(function, (x, 0 * Y), "contrast"),
            **{"severities": [1], "batch_size": 2, "name": "spread", **options},
        )

    result = corrupted(workdir=tmp_path)
    assert (result["natural"]["accuracy"], result["attacked"]) == (1, "image")
    assert result["mean_accuracy"] == 0
    assert corrupted(workdir=tmp_path) == result
    with pytest.raises(files.Unusable, match="data="):
        x["limit"] = x["limit"] + 0.01
        corrupted(workdir=tmp_path)
    with pytest.raises(ValueError, match="draws are for models of a single"):
        corrupted(draws=2)
