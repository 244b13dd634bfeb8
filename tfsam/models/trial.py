"""Trials of a model on some examples, before it is attacked.

A trial measures natural accuracy under each range of pixels, and looks for an
order of the classes under which it is far higher.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.models import fitting
from tfsam.models import order_choice
from tfsam.models import pixel_ranges
from tfsam.models import range_choice
from tfsam.models.loading import Fitted
from tfsam.models.loading import Opened
from tfsam.models.loading import load_logits
from tfsam.models.logits import probabilities

# The most examples that are tried, those on which logits are checked, and the
# numbers and the values of examples that go through the model together.
MOST = 1024
_CHECKED, _LARGE = 32, 30
_TOGETHER, _VALUES = 256, 1 << 22


_LOST = (
    "natural accuracy is near guessing under every range tried; if the model "
    "is trained, check its pixels (--pixels also takes MEAN/STD and "
    "MODULE:FUNCTION) and the order of its classes (--class_order)"
)


class Examples(NamedTuple):
    """Examples to try a model on, in random order.

    Attributes:
        images: function from a slice to float images in [0, 1].
        labels: integer array (n,), their classes.
        names: the names of all classes; empty if unknown.
        sortable: whether --class_order sorts the names, as those of folders.
    """

    images: Callable[[slice], np.ndarray]
    labels: np.ndarray
    names: tuple[str, ...]
    sortable: bool = True


class Trial(NamedTuple):
    """A model that was tried.

    Attributes:
        fitted: the model under the range of pixels that was chosen.
        accuracies: natural accuracy under each range that was tried.
        orders: natural accuracy under each order of the classes.
        notes: sentences for the user.
        objection: a message, if another range or order is far more accurate
            than the one that was asked for; else None.
        order: the order of --class_order that is far more accurate, or None.
    """

    fitted: Fitted
    accuracies: dict[str, float]
    orders: dict[str, float]
    notes: tuple[str, ...]
    objection: str | None
    order: str | None = None

    def description(self) -> dict[str, Any]:
        """Returns what results say about the model, a dict of JSON types."""
        found = self.fitted.description()
        return found | {
            "natural_accuracy": self.accuracies,
            "notes": [*found["notes"], *self.notes],
        }


def sampled(
    images: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    names: Iterable[str],
    seed: int = 0,
) -> Examples:
    """Samples examples to try models on.

    Args:
        images: Function from indices to float images in [0, 1].
        labels: Integer array (n,), the classes of all images.
        names: The names of all classes, none if unknown.
        seed: Seed of the sample.
    """
    some = np.random.default_rng(seed).permutation(len(labels))[:MOST]
    return Examples(lambda part: images(some[part]), labels[some], tuple(names))


def run(opened: Opened, examples: Examples, asked: str | None = None) -> Trial:
    """Tries a model on examples.

    Args:
        opened: The model.
        examples: The examples.
        asked: The range of pixels that the user asked for. None chooses the
            most accurate one; see `range_choice.choose`.

    Raises:
        ValueError: If the images do not fit the model, or its logits do not
            agree with its own outputs.
    """
    shape = examples.images(slice(0, 1)).shape[1:]
    labels, names = examples.labels, examples.names
    models: dict[str, Fitted] = {}

    def predict(name: str, part: slice) -> np.ndarray:
        if name not in models:
            pixels = pixel_ranges.parse(name)
            models[name] = opened.fitted(pixels, shape)
        return _predictions(models[name], examples.images(part))

    usual = _usual(opened, shape)
    found = range_choice.predictions(
        predict, labels, usual if asked is None else [asked]
    )
    chance = range_choice.guessing(labels, len(names))

    def is_lost(name: str) -> bool:
        measured = range_choice.accuracy(found[name], labels)
        return range_choice.far_more(1.0, measured, chance)

    if asked is not None and is_lost(asked):
        others = [name for name in usual if name != asked]
        found |= range_choice.predictions(predict, labels, others)
    other = order_choice.other_order(
        found, labels, names, chance, examples.sortable
    )
    choice = range_choice.Choice(asked or pixel_ranges.PLAIN)
    if asked is None:
        ordered = labels
        if other is not None:
            ordered = order_choice.positions(names, other.names)[labels]
        choice = range_choice.choose(found, ordered, opened.told, chance)
    _check_logits(models[choice.name], examples.images(slice(0, _CHECKED)))
    objection = other and other.message
    if asked is not None and other is None:
        objection = range_choice.objection(found, labels, asked, chance)
    accuracies = range_choice.accuracies(found, labels)
    notes = choice.notes
    if objection is None and is_lost(choice.name):
        notes += (_LOST,)
    return Trial(
        fitted=models[choice.name],
        accuracies=accuracies,
        orders=order_choice.accuracies(found[choice.name], labels, names),
        notes=notes,
        objection=objection,
        order=other and other.flag,
    )


def _usual(opened: Opened, shape: Sequence[int]) -> list[str]:
    """Returns the ranges of pixels to try on images of a shape."""
    if not opened.takes_floats:
        return ["0..255"]
    wanted = fitting.image_shape(opened.classifier.input_shape) or shape
    channels = wanted[2] if len(wanted) == 3 else 1
    return pixel_ranges.candidates(channels)


def _predictions(fitted: Fitted, images: np.ndarray) -> np.ndarray:
    """Classifies images, a few at a time."""
    logits = load_logits(fitted.function)
    most = (
        max(1, min(_TOGETHER, _VALUES // images[:1].size)) if len(images) else 1
    )
    found = [
        np.argmax(logits(tf.constant(images[start : start + most])), axis=1)
        for start in range(0, len(images), most)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _check_logits(fitted: Fitted, images: np.ndarray) -> None:
    """Checks that the softmax of the logits is the model's own output."""
    classifier = fitted.opened.classifier
    inputs = tf.constant(images)
    for step in fitted.fit.steps:
        inputs = step(inputs)
    if not fitted.opened.takes_floats:
        inputs = tf.round(inputs)
    logits = np.abs(probabilities.called(classifier.function, inputs))
    if not np.isfinite(logits).all():
        raise ValueError(
            "model must return finite logits. Received: NaN or infinity"
        )
    difference = probabilities.check(classifier, inputs)
    first, second = (
        probabilities.called(classifier.outputs, inputs) for _ in range(2)
    )
    if not np.array_equal(first, second):
        return  # It is random, of which the evaluation warns.
    # Large logits are rounded coarsely.
    most = probabilities.tolerance(classifier) * max(1, logits.max() / _LARGE)
    if difference > most:
        raise ValueError(
            "the model's outputs must be those of its logits, which differ "
            f"from them by more than {most:.0e}: its ending was misread, which "
            "is a bug of tfsam; please report it. Received: a difference of "
            f"{difference:.2g}"
        )
