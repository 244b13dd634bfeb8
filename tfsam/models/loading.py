"""Loading of models of any kind, as functions from pixels to logits.

A file is read (`reading`), the softmax or sigmoid at its end is removed
(`endings`), and steps in front of it fit images in [0, 1] to its input
(`fitting`). Which pixels it was trained on is tried on examples (`trial`).
"""

import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from tfsam.attacks.logits import Logits
from tfsam.models import fitting
from tfsam.models import pixel_ranges
from tfsam.models.files import formats
from tfsam.models.files import reading
from tfsam.models.files.weight_files import load_weights_into
from tfsam.models.fingerprints import from_file
from tfsam.models.functions import NetworkFunction
from tfsam.models.functions import StatelessFunction
from tfsam.models.functions import use_xla
from tfsam.models.logits import endings
from tfsam.models.pixel_ranges import PLAIN
from tfsam.models.pixel_ranges import PixelRange
from tfsam.models.stored_models import Classifier
from tfsam.models.stored_models import Stored
from tfsam.support import files
from tfsam.support import identity
from tfsam.support import library_logs


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model whose ending was removed, and whose pixels are not known yet.

    Attributes:
        stored: the model as it was read.
        classifier: the function from its own inputs to logits.
        path: the path of its file, or None.
    """

    stored: Stored
    classifier: Classifier
    path: str | None

    @property
    def takes_floats(self) -> bool:
        """Whether its input is of a floating-point dtype."""
        return "float" in self.classifier.input_dtype

    @property
    def told(self) -> str | None:
        """The range of pixels that its layers or its input's dtype tell."""
        if not self.takes_floats:
            return "0..255"
        return pixel_ranges.told(self.stored.model)

    def fitted(
        self, pixels: PixelRange, shape: fitting.Shape | None = None
    ) -> "Fitted":
        """Puts steps for a range of pixels and a shape of images in front.

        Args:
            pixels: The range of pixels that it was trained on.
            shape: The shape of an image; None for that of its input.

        Raises:
            ValueError: If such images do not fit.
        """
        wanted = self.classifier.input_shape
        given = wanted if shape is None else tuple(shape)
        found = fitting.fit(given, wanted or given, pixels)
        function = self.classifier.function
        function = fitting.in_front(function, found.steps, given)
        return Fitted(self, function, pixels, found)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model as a function from pixels in [0, 1] to logits.

    Attributes:
        opened: the model.
        function: the function, a `keras.Model` where the model is one.
        pixels: the range of pixels that it was trained on.
        fit: what is done to images in front of it.
    """

    opened: Opened
    function: Any
    pixels: PixelRange
    fit: fitting.Fit

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about the reading and all changes."""
        opened = self.opened
        return opened.stored.notes + opened.classifier.notes + self.fit.notes

    def description(self) -> dict[str, Any]:
        """Returns the description for results, a dict of JSON types."""
        stored, classifier = self.opened.stored, self.opened.classifier
        return {
            "format": stored.format,
            "reader": stored.reader,
            "written_by": stored.written_by,
            "sha256": stored.sha256,
            "input_shape": list(classifier.input_shape),
            "input_dtype": classifier.input_dtype,
            "output": classifier.output,
            "ends_in": classifier.ends_in,
            "logits": classifier.logits,
            "pixels": self.pixels.name,
            "notes": list(self.notes),
        }

    def identity(self) -> dict[str, Any] | None:
        """Returns what the cache key holds about it; None without a file.

        It has all that decides logits beside the files themselves. A plain
        model has the key of tfsam 0.1.0.
        """
        path, classifier = self.opened.path, self.opened.classifier
        if path is None:
            return None
        network = isinstance(classifier.function, keras.Model)
        found = from_file(path, "keras" if network else "saved_model")
        if self.opened.stored.format == "weights":
            found["loading"]["network"] = _digest(self.opened.stored.model)
        if self.pixels.name != PLAIN:
            found["loading"]["pixels"] = _described(self.pixels)
        if self.fit.notes:
            found["loading"]["fitted"] = list(self.fit.notes)
        if classifier.logits != "exact":
            found["loading"]["logits"] = classifier.logits
        if len(classifier.output_names) > 1:
            found["loading"]["output"] = classifier.output
        return found


def open_model(
    model: Any,
    output: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = (),
) -> Opened:
    """Reads a model, and removes the softmax or sigmoid at its end.

    Args:
        model: The path of a model, or a Keras model.
        output: Name of one of several outputs, or None.
        custom_objects: Classes and functions of the model, by name.
        trusted: Names of Lambda layers whose code may run.

    Raises:
        ValueError: If the file holds no classifier that can be read.
    """
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        with library_logs.errors_only():
            stored = reading.read(path, custom_objects, tuple(trusted))
            found = endings.classifier(stored, output)
        return Opened(stored, found, str(formats.recognize(path).path))
    if not isinstance(model, keras.Model):
        raise ValueError(
            "model must be a path or a Keras model. "
            f"Received: {type(model).__name__}"
        )
    stored = Stored(model=model, format="memory", reader="keras")
    return Opened(stored, endings.classifier(stored, output), None)


def open_weights(
    network: keras.Model, path: files.Path, output: str | None = None
) -> Opened:
    """Loads weights that come without a model into a network.

    Args:
        network: The network, built. Its weights are assigned.
        path: The path of the weights.
        output: Name of one of several outputs, or None.

    Raises:
        ValueError: If the weights do not fit the network, or it is no
            classifier.
    """
    load_weights_into(network, path)
    stored = Stored(
        model=network,
        format="weights",
        reader="keras",
        sha256=files.digest(files.expanded(path)),
    )
    found = endings.classifier(stored, output)
    return Opened(stored, found, str(files.expanded(path)))


def load(
    model: Any,
    pixels: str | None = None,
    output: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Loads a model of any kind as a function from pixels to logits.

    The softmax or sigmoid at its end is removed; a single sigmoid becomes the
    logits of two classes, [0, z]. A SavedModel is a program: load only models
    from people you trust.

    Args:
        model: The path of a `.keras` file, of an HDF5 file with any suffix or
            of a SavedModel, or a Keras model in memory.
        pixels: The pixels that the model was trained on: "0..1", "0..255",
            "-1..1", "caffe" (BGR without the means of ImageNet), "MEAN/STD" by
            channel, such as "0.49,0.48,0.45/0.2,0.2,0.2", or
            "MODULE:FUNCTION", a differentiable function of pixels in [0, 1].
            None takes what a leading Rescaling or Normalization layer tells,
            and otherwise 0..1. `tfsam.models.inspect` tries them on data.
        output: Name of one of several outputs, or None.
        custom_objects: Classes and functions of the model, by name.

    Returns:
        A `keras.Model` of stock layers around the given one, which can be
        saved, or a callable if the file is no model of Keras 3. It takes
        float pixels in [0, 1] of the shape of the model's input, and returns
        logits (batch, classes).

    Raises:
        ValueError: If the file holds no classifier that can be read. The
            message describes the content of the file, with a remedy.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
        >>> network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        >>> model = load(network, pixels="0..255")
        >>> model.layers[-1].layers[-1].activation.__name__
        'linear'
    """
    opened = open_model(model, output, custom_objects)
    asked = None if pixels == "auto" else pixels
    name = asked or opened.told or PLAIN
    return opened.fitted(pixel_ranges.parse(name)).function


def load_logits(model: Any, jit_compile: bool | str = "auto") -> Logits:
    """Loads a model of any kind, to attack it.

    Args:
        model: A path as in `load`, with the pixels that `load` chooses; a Keras
            model or a callable from pixels (batch, ...) to logits (batch,
            classes), as they are; or a `Fitted`.
        jit_compile: Whether XLA compiles the network's gradients: True, False,
            or "auto" to compile them on GPUs only.

    Returns:
        A `tfsam.attacks.Logits`, in inference mode. A call changes no variable
        of a Keras layer, even if a callable calls a layer in training mode.

    Raises:
        ValueError: If `model` is none of these, a file holds no model, or
            `jit_compile` is invalid.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3)]
        ... )
        >>> logits_fn = load_logits(network)
        >>> logits_fn(np.zeros((2, 4), "float32")).shape
        TensorShape([2, 3])
    """
    compiled = use_xla(jit_compile)
    if isinstance(model, (str, os.PathLike)):
        opened = open_model(model)
        model = opened.fitted(pixel_ranges.parse(opened.told or PLAIN))
    if isinstance(model, Fitted):
        logits = load_logits(model.function, jit_compile)
        logits.identity = model.identity()
        logits.origin = model.description()
        return logits
    if isinstance(model, Logits):
        return _stateless(model)
    if isinstance(model, keras.Model):
        return Logits(NetworkFunction(model), compiled)
    if not callable(model):
        raise ValueError(
            "model must be a Keras model, a path, or a callable from pixels to "
            f"logits. Received: model={model}"
        )
    # XLA cannot compile every callable, so "auto" does not try.
    return Logits(StatelessFunction(model), compiled and jit_compile != "auto")


def load_several_inputs(
    path: files.Path, jit_compile: bool | str = "auto"
) -> Logits:
    """Loads a model of several inputs from a file, to attack it.

    The softmax or sigmoid at its end is removed. Its inputs are not rescaled.

    Args:
        path: The path of a file that Keras 3 can read.
        jit_compile: See `load_logits`.

    Raises:
        ValueError: If the file does not hold a functional model, or if the
            model's probabilities cannot be converted to logits.
    """
    with library_logs.errors_only():
        stored = reading.read(path)
        classifier = endings.of_several_inputs(stored)
    opened = Opened(stored, classifier, str(formats.recognize(path).path))
    plain = pixel_ranges.parse(PLAIN)
    fitted = Fitted(opened, classifier.function, plain, fitting.Fit(()))
    return load_logits(fitted, jit_compile)


def _stateless(logits: Logits) -> Logits:
    """Returns the same model as a function that changes no variable."""
    if isinstance(logits.function, StatelessFunction):
        return logits
    stateless = Logits(
        StatelessFunction(logits.function),
        logits.jit_compile,
        logits.rows,
        logits.jit_loops,
        logits.classes,
        logits.independent,
    )
    stateless.identity = logits.identity
    stateless.origin = logits.origin
    return stateless


def _described(pixels: PixelRange) -> str:
    """Returns a range's name, with a digest of its code if it is a function."""
    if pixels.function is None:
        return pixels.name
    return f"{pixels.name} {_digest(pixels.function)}"


def _digest(part: Any) -> str:
    """Returns a digest of a function or a network of the user's."""
    try:
        return identity.digest(identity.describe(part))
    except identity.Unknown:
        return "unknown"  # Nothing is known but its name.
