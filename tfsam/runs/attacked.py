"""The models that a run attacks.

They are opened before the images are loaded, whose size they decide, and tried
on some images before anything is attacked.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from tfsam import data
from tfsam.attacks.logits import Logits
from tfsam.evaluation import measure
from tfsam.models import fitting
from tfsam.models import inspection
from tfsam.models import pixel_ranges
from tfsam.models import range_choice
from tfsam.models import trial
from tfsam.models.functions import count_classes
from tfsam.models.loading import Opened
from tfsam.models.loading import load_logits
from tfsam.models.loading import open_model
from tfsam.models.loading import open_weights
from tfsam.models.networks import trainable
from tfsam.models.pixel_ranges import PLAIN
from tfsam.runs.settings import Settings
from tfsam.support import files
from tfsam.support import imports

# Sources whose classes --class_order sorts; others have an order of their own.
_OF_FOLDERS = ("folder", "csv")


class Models(NamedTuple):
    """The models of a run, opened.

    Attributes:
        model: the model to attack, None if one is trained.
        surrogate: the model that attacks are computed on, or None.
    """

    model: Opened | None
    surrogate: Opened | None = None


def opened(settings: Settings) -> Models:
    """Opens the models of a run, after the modules that they need.

    Args:
        settings: the settings of the run.

    Raises:
        ValueError: if a module or a model cannot be read.
    """
    for name in settings.imports or ():
        imports.module("import", name)

    def opened(path: str | None, output: str | None) -> Opened | None:
        if not path:
            return None
        trusted = settings.trust or ()
        return open_model(files.expanded(path), output, trusted=trusted)

    # A network for weights alone is built for the images.
    path = None if settings.network else settings.evaluate
    return Models(
        opened(path, settings.output), opened(settings.surrogate, None)
    )


def with_weights(
    settings: Settings, models: Models, images: data.Images
) -> Models:
    """Adds the network of weights that come without a model, if any.

    Args:
        settings: the settings of the run.
        models: the models that are opened.
        images: the images, for which the network is built.

    Raises:
        ValueError: if the network cannot be built, or the weights do not fit.
    """
    if settings.network is None or settings.evaluate is None:
        return models
    network = trainable.made(
        settings.network,
        len(images.class_names),
        images.x_test.shape[1:],
        trusted=settings.trust or (),
    )
    opened = open_weights(network, settings.evaluate, settings.output)
    return models._replace(model=opened)


def image_size(models: Models) -> tuple[int, int] | None:
    """Returns the (height, width) of the images that the models take.

    Args:
        models: the models of the run.

    Returns:
        The size, None if they take any.
    """
    for model in filter(None, models):
        shape = fitting.image_shape(model.classifier.input_shape)
        if shape is not None and None not in shape[:2]:
            return shape[0], shape[1]
    return None


def classifier(
    settings: Settings, model: Opened, images: data.Images, pixels: str = "auto"
) -> Logits:
    """Tries a model on the images, and prepares it to be attacked.

    Args:
        settings: the settings of the run.
        model: the model.
        images: the images.
        pixels: the range of the model's pixels, or "auto".

    Returns:
        The model; its `origin` says what was found.

    Raises:
        ValueError: if it does not fit the images or their classes, or is near
            guessing, and far more accurate under another range of pixels or
            order of the classes.
    """
    asked = None if pixels == "auto" else pixels
    x = data.as_float(images.x_test[:128])
    some = model.fitted(pixel_ranges.parse(asked or PLAIN), x.shape[1:])
    outputs = count_classes(load_logits(some.function), x[:1])
    classes = len(images.class_names)
    if outputs < classes:
        raise ValueError(
            f"the data has {classes} classes; the model "
            f"must have as many outputs. Received: {outputs} outputs"
        )
    tried = trial.run(model, examples(settings, images), asked)
    logits = load_logits(tried.fitted, settings.compiles)
    if tried.objection is not None:
        raise ValueError(tried.objection)
    # Rejects probabilities and NaN, too.
    measure.evaluate(logits, (x, images.y_test[: len(x)]), [])
    logits.origin = tried.description()
    if outputs > classes:
        logits.origin["notes"].append(
            f"the model has {outputs} outputs, and the data {classes} classes"
        )
    return logits


def examined(
    settings: Settings, models: Models, tried_on: trial.Examples | None
) -> dict[str, Any]:
    """Describes the model of a run; see `tfsam.models.inspect`.

    Args:
        settings: the settings of the run.
        models: its models.
        tried_on: images to try it on, or None.
    """
    if models.model is None:
        raise ValueError(
            "weights alone are looked at in a network for images: add "
            f"--dataset. Received: inspect={settings.evaluate}"
        )
    asked = None if settings.pixels == "auto" else settings.pixels
    return inspection.examined(models.model, tried_on, asked)


def examples(settings: Settings, images: data.Images) -> trial.Examples:
    """Samples test images to try models on."""
    found = trial.sampled(
        lambda some: data.as_float(images.x_test[some]),
        images.y_test,
        images.class_names,
        settings.seed,
    )
    kind = settings.dataset.partition(":")[0].casefold()
    return found._replace(sortable=kind in _OF_FOLDERS)


_FORMATS = {
    "keras": ".keras file",
    "hdf5": "HDF5 file",
    "saved_model": "SavedModel",
    "memory": "model",
    "weights": "weights in a network",
}

_LOGITS = {
    "exact": "its outputs are logits",
    "removed_ending": "its {} was removed",
    "log_probabilities": "its logits are the logarithms of its probabilities",
}


def lines(model: Logits | None, surrogate: Logits | None) -> list[str]:
    """Returns the lines of the log about the models that come from files.

    Args:
        model: the model to attack, or None.
        surrogate: the model that attacks are computed on, or None.
    """
    roles = {"model": model, "surrogate": surrogate}
    return [
        line
        for role, logits in roles.items()
        if logits is not None and logits.origin is not None
        for line in _lines(role, logits.origin)
    ]


def _lines(role: str, origin: Mapping[str, Any]) -> list[str]:
    writer = f" of {origin['written_by']}" if origin["written_by"] else ""
    checksum = f", SHA-256 {origin['sha256']}" if origin["sha256"] else ""
    ending = _LOGITS[origin["logits"]].format(origin["ends_in"])
    tried = range_choice.summary(origin["natural_accuracy"])
    return [
        f"{role}: {_FORMATS[origin['format']]}{writer}{checksum}; {ending}",
        f"{role}: pixels in {origin['pixels']}; natural accuracy on some "
        f"images: {tried}",
        *(f"{role}: {note}" for note in origin["notes"]),
    ]
