"""Inspection of models: their format, ending, input and pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.data import examples
from tfsam.data.images import as_float
from tfsam.models import pixel_ranges
from tfsam.models import trial
from tfsam.models.loading import Fitted
from tfsam.models.loading import Opened
from tfsam.models.loading import load_logits
from tfsam.models.loading import open_model
from tfsam.models.pixel_ranges import PLAIN
from tfsam.support.labels import class_labels

_UNTOLD = (
    "nothing tells the range of the pixels: natural accuracy on data would, "
    "until then it is 0..1"
)


def inspect(
    model: Any,
    data: Any = None,
    output: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Finds out what a model is, how it ends, and which pixels it takes.

    Args:
        model: The path of a model, or a Keras model in memory.
        data: Images in [0, 1] and their labels as `tfsam.evaluate` takes them,
            on some of which natural accuracy is measured; or None.
        output: Name of one of several outputs, or None.
        custom_objects: Classes and functions of the model, by name.

    Returns:
        A dict of JSON types: `format`, `reader`, `written_by`, `sha256`,
        `input_shape` and `input_dtype` of the model's own input, `outputs`
        (their number, the classes), `output_names`, `output`, `ends_in`,
        `logits` ("exact", "removed_ending" or "log_probabilities"), `pixels`
        (the range to evaluate it with), `natural_accuracy` {range: accuracy},
        `class_orders` {order: accuracy}, `class_order` (the one that the data
        should have but has not, or None), and `notes`, a list of sentences.
        The accuracies are empty without data.

    Raises:
        ValueError: If it is no classifier that can be read, or does not fit the
            data.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
        >>> network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        >>> found = inspect(network)
        >>> found["ends_in"], found["logits"], found["outputs"]
        ('softmax', 'removed_ending', 3)
    """
    opened = open_model(model, output, custom_objects)
    return examined(opened, None if data is None else _examples(data))


def examined(
    opened: Opened,
    tried_on: trial.Examples | None,
    asked: str | None = None,
) -> dict[str, Any]:
    """Describes a model that was opened; see `inspect`.

    Args:
        opened: The model.
        tried_on: Examples to measure natural accuracy on, or None.
        asked: The range of pixels that the user asked for, or None.
    """
    if tried_on is None:
        told = asked or opened.told
        fitted = opened.fitted(pixel_ranges.parse(told or PLAIN))
        found = trial.Trial(fitted, {}, {}, () if told else (_UNTOLD,), None)
    else:
        found = trial.run(opened, tried_on, asked)
    described = found.description()
    if found.objection is not None:
        described["notes"].append(found.objection)
    return described | {
        "outputs": _count(found.fitted),
        "output_names": list(opened.classifier.output_names),
        "class_orders": found.orders,
        "class_order": found.order,
    }


def _count(fitted: Fitted) -> int | None:
    """Returns the number of logits; None if the input's shape is free."""
    shape = fitted.opened.classifier.input_shape
    if not shape:
        return None
    # A network of any size of images takes this one.
    example = np.full((1, *(size or 64 for size in shape)), 0.5, np.float32)
    return int(load_logits(fitted.function)(tf.constant(example)).shape[1])


def _examples(data: Any) -> trial.Examples:
    """Reads data that the user gave."""
    names = getattr(data, "class_names", None)
    if names is not None:
        data = (data.x_test, data.y_test)
    x, y = examples.load(data)
    if x.dtype == np.uint8:
        x = as_float(x)
    _, labels = class_labels(y)
    known = names or tuple(map(str, range(int(labels.max()) + 1)))
    return trial.sampled(lambda some: x[some].astype(np.float32), labels, known)
