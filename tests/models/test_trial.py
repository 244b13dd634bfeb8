"""Models that are tried on examples before they are attacked."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import network
from keras import layers

from tfsam.models import pixel_ranges
from tfsam.models import trial
from tfsam.models.loading import open_model

NAMES = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def trained():
    """The reference's CNN of the digits, with a softmax."""
    made = network("standard")
    return keras.Model(made.inputs[0], layers.Softmax()(made.outputs[0]))


def of_range(model, name):
    """A model as if it had been trained on another range of pixels.

    The layers do not show it, only the accuracy.
    """
    pixels = pixel_ranges.parse(name)
    inputs = keras.Input((8, 8, 1))
    x = (inputs - pixels.offset[0]) / pixels.scale[0]
    return keras.Model(inputs, model(x))


def of_order(model, order):
    """A model with its outputs in another order."""
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, keras.ops.take(model(inputs), order, axis=1))


def of_shape(model, shape, back):
    """A model that takes images of another shape."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, model(back(inputs)))


@pytest.fixture(scope="module")
def examples(digits):
    x, y = digits
    return trial.sampled(lambda some: x[1200:1328][some], y[1200:1328], NAMES)


def tried(model, examples, asked=None, **changes):
    return trial.run(open_model(model), examples._replace(**changes), asked)


@pytest.mark.parametrize("name", ["0..1", "0..255", "-1..1"])
def test_the_range_is_found_by_natural_accuracy(trained, examples, name):
    found = tried(of_range(trained, name), examples)
    assert found.fitted.pixels.name == name
    assert found.accuracies[name] > 0.9
    assert found.objection is None
    assert set(found.accuracies) == {"0..1", "0..255", "-1..1"}
    x = examples.images(slice(None))
    logits = found.fitted.function(x)
    np.testing.assert_allclose(keras.ops.softmax(logits), trained(x), atol=1e-5)


def test_another_range_is_objected_to(trained, examples):
    model = of_range(trained, "0..255")
    message = tried(model, examples, "0..1").objection
    assert "% with pixels in 0..1 and " in message
    assert "in 0..255: add --pixels=0..255 (in Python" in message
    right = tried(model, examples, "0..255")
    assert right.objection is None
    # Nothing else is tried where the model is right.
    assert list(right.accuracies) == ["0..255"]


def test_layers_tell_where_accuracy_does_not(examples):
    keras.utils.set_random_seed(0)
    parts = [layers.Flatten(), layers.Dense(10, "softmax")]
    for first, expected in (
        ([], "0..1"),
        ([layers.Rescaling(1 / 255)], "0..255"),
    ):
        model = keras.Sequential([keras.Input((8, 8, 1)), *first, *parts])
        found = tried(model, examples)
        assert found.fitted.pixels.name == expected
        assert found.objection is None
        assert any("near guessing" in note for note in found.notes)


def test_accuracy_decides_against_layers(trained, examples):
    """A model that was trained on [0, 1] in spite of its Rescaling."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(1 / 255)(inputs) * 255
    model = keras.Model(inputs, trained(keras.ops.where(x > 1, 0.0, x)))
    found = tried(model, examples)
    assert open_model(model).told == "0..255"
    assert found.fitted.pixels.name == "0..1"


@pytest.mark.parametrize(
    ("shape", "back", "note"),
    [
        ((8, 8), lambda x: x[..., None], None),
        ((64,), layers.Reshape((8, 8, 1)), None),
        ((8, 8, 3), lambda x: keras.ops.mean(x, -1, keepdims=True), "repeated"),
        ((1, 8, 8), layers.Permute((2, 3, 1)), "channels first"),
        ((32, 32, 1), layers.AveragePooling2D(4), "resized to 32x32"),
    ],
)
def test_images_fit_models_of_other_shapes(
    trained, examples, shape, back, note
):
    found = tried(of_shape(trained, shape, back), examples)
    assert found.accuracies["0..1"] > 0.85
    notes = found.description()["notes"]
    assert note is None or any(note in n for n in notes)


def test_another_order_of_the_classes_is_named(trained, examples):
    numbers = tuple(str(number + 1) for number in range(10))
    order = [numbers.index(name) for name in sorted(numbers)]
    model = of_order(trained, order)
    found = tried(model, examples, names=numbers)
    assert "classes ordered by number and" in found.objection
    assert "by name: add --class_order=name" in found.objection
    assert found.order == "name"
    # The range is found in the order that the model has.
    found = tried(of_range(model, "0..255"), examples, names=numbers)
    assert (found.order, found.fitted.pixels.name) == ("name", "0..255")
    assert found.orders["name"] > 0.9
    # Data in that order has other labels.
    labels = np.array([order.index(label) for label in examples.labels])
    names = tuple(sorted(numbers))
    found = tried(model, examples, names=names, labels=labels)
    assert found.objection is None
    assert found.orders["name"] > 0.9 > found.orders["number"]


def test_any_order_of_the_classes_is_found(trained, examples):
    order = np.roll(np.arange(10), 3)
    names = tuple("abcdefghij")
    found = tried(of_order(trained, order), examples, names=names)
    listed = ", ".join(names[place] for place in order)
    assert f"--class_order=FILE, a file with the lines {listed}" in (
        found.objection
    )
    # Without names there is nothing to name.
    found = tried(of_order(trained, order), examples, names=())
    assert found.objection is None


def test_logits_that_are_not_the_model_s_are_rejected(trained, examples):
    opened = open_model(trained)
    wrong = dataclasses.replace(
        opened.classifier, outputs=lambda x: trained(x) ** 2
    )
    with pytest.raises(ValueError, match=r"which differ.*Received: a diff"):
        trial.run(dataclasses.replace(opened, classifier=wrong), examples)


def test_a_random_model_is_left_to_the_evaluation(trained, examples):
    inputs = keras.Input((8, 8, 1))
    noisy = layers.Dropout(0.1)(inputs, training=True)
    assert tried(keras.Model(inputs, trained(noisy)), examples).accuracies
