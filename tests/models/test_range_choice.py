"""The range of pixels that is chosen by natural accuracy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfsam.models import range_choice


def predictor(labels, rates, classes, seed=0):
    """Predicts the classes of examples with an accuracy for each range."""
    random = np.random.default_rng(seed)
    table = {}
    for name, rate in rates.items():
        wrong = (labels + random.integers(1, classes, len(labels))) % classes
        table[name] = np.where(random.random(len(labels)) < rate, labels, wrong)
    counts = dict.fromkeys(rates, 0)

    def predict(name, part):
        counts[name] += len(labels[part])
        return table[name][part]

    return predict, counts


def labels_of(count, classes):
    return np.random.default_rng(1).integers(0, classes, count)


def tried(rates, count=1000, classes=10):
    labels = labels_of(count, classes)
    predict, _ = predictor(labels, rates, classes)
    return range_choice.predictions(predict, labels, rates), labels


@pytest.mark.parametrize(
    ("rates", "told", "expected"),
    [
        ({"0..1": 0.1, "0..255": 0.88, "-1..1": 0.2}, None, "0..255"),
        ({"0..1": 0.7, "0..255": 0.1, "-1..1": 0.2}, None, "0..1"),
        ({"0..1": 0.7, "0..255": 0.1, "-1..1": 0.7}, None, "0..1"),
        ({"0..1": 0.7, "0..255": 0.1, "-1..1": 0.9}, None, "-1..1"),
        ({"0..1": 0.1, "0..255": 0.1, "-1..1": 0.1}, None, "0..1"),
        ({"0..1": 0.1, "0..255": 0.1, "-1..1": 0.1}, "0..255", "0..255"),
        ({"0..1": 0.9, "0..255": 0.2, "-1..1": 0.1}, "0..255", "0..1"),
    ],
)
def test_the_most_accurate_range_unless_it_is_close(rates, told, expected):
    found, labels = tried(rates)
    assert range_choice.choose(found, labels, told, 0.1).name == expected


def test_a_close_choice_is_said():
    found, labels = tried({"0..1": 0.7, "0..255": 0.1, "-1..1": 0.7})
    (note,) = range_choice.choose(found, labels, None, 0.1).notes
    assert "from -1..1 (" in note and "--pixels" in note


def test_worse_ranges_cost_few_examples():
    labels = labels_of(2000, 10)
    rates = {"0..1": 0.1, "0..255": 0.9, "-1..1": 0.1}
    predict, counts = predictor(labels, rates, 10)
    range_choice.predictions(predict, labels, rates)
    assert counts == {"0..1": 64, "0..255": 256, "-1..1": 64}


@given(
    st.integers(1, 60),
    st.integers(2, 40),
    st.dictionaries(
        st.sampled_from(["0..1", "0..255", "-1..1", "caffe"]),
        st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        min_size=1,
    ),
)
def test_few_examples_and_many_classes(count, classes, rates):
    found, labels = tried({"0..1": 0.1} | rates, count, classes)
    chosen = range_choice.choose(found, labels, None, 1 / classes).name
    measured = range_choice.accuracies(found, labels)
    if chosen != "0..1":
        # Five examples more at least are right.
        assert (measured[chosen] - measured["0..1"]) * count > 4
    for asked in found:
        message = range_choice.objection(found, labels, asked, 1 / classes)
        assert message is None or f"Received: pixels={asked}" in message


def test_the_objection_names_both_accuracies():
    found, labels = tried({"0..1": 0.1, "0..255": 0.88})
    message = range_choice.objection(found, labels, "0..1", 0.1)
    assert message.startswith("natural accuracy is ")
    assert "% with pixels in 0..1 and " in message
    assert "% in 0..255: add --pixels=0..255" in message
    assert range_choice.objection(found, labels, "0..255", 0.1) is None


@pytest.mark.parametrize(
    ("rates", "classes"),
    [
        ({"0..1": 0.6, "0..255": 0.8}, 10),  # Not near guessing.
        ({"0..1": 0.1, "0..255": 0.15}, 10),  # Both are.
        ({"0..1": 0.5, "0..255": 0.55}, 2),
    ],
)
def test_no_objection(rates, classes):
    found, labels = tried(rates, 1000, classes)
    assert range_choice.objection(found, labels, "0..1", 1 / classes) is None
