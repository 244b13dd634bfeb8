"""Classifiers made of concrete functions, without the ending of their graph."""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.models.functions import in_batches_of
from tfsam.models.logits import graphs
from tfsam.models.logits import outputs
from tfsam.models.logits import signatures
from tfsam.models.logits.probabilities import class_logits
from tfsam.models.logits.probabilities import explain
from tfsam.models.logits.probabilities import for_probes
from tfsam.models.logits.probabilities import probes
from tfsam.models.logits.probabilities import seem_probabilities
from tfsam.models.logits.signatures import Choice
from tfsam.models.logits.signatures import Signature
from tfsam.models.stored_models import Classifier
from tfsam.support import files

_LOST = (
    "it has gradients of its own that were not stored: those of its operations "
    "are used"
)


class SignatureFunction:
    """A function of images, computed by a graph for batches of any size.

    Args:
        function: Function from images to outputs (batch, ...).
        spec: `tf.TensorSpec` of the images that it takes.
        result: `tf.TensorSpec` of its outputs; of shape (batch, classes) if
            logits are made of them.
        owner: Object that keeps the variables alive.
        probabilities: None to return the outputs, else whether they are
            probabilities, not logits, of which logits are made.
        rounding: Relative rounding error of half precision, or 0.
    """

    def __init__(
        self,
        function: Callable[[tf.Tensor], tf.Tensor],
        spec: tf.TensorSpec,
        result: tf.TensorSpec,
        owner: Any,
        probabilities: bool | None = None,
        rounding: float = 0.0,
    ) -> None:
        self._function = function
        self._spec = spec
        self.result = result
        self._owner = owner
        self._probabilities = probabilities
        self.rounding = rounding

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns the outputs or logits of a batch.

        Raises:
            ValueError: If the images have another shape than the graph takes.
        """
        shape, dtype = self._spec.shape, self._spec.dtype
        x = tf.cast(tf.convert_to_tensor(x), dtype)
        if shape.rank and not shape[1:].is_compatible_with(x.shape[1:]):
            raise ValueError(
                f"the model takes images of shape {tuple(shape[1:])}. "
                f"Received: shape={tuple(x.shape[1:])}"
            )
        size = shape[0] if shape.rank else None
        values = in_batches_of(size, self._values, x, self.result)
        if self._probabilities is None:
            return values
        return class_logits(values, self._probabilities)

    def _values(self, x: tf.Tensor) -> tf.Tensor:
        values = tf.cast(self._function(x), self.result.dtype)
        if self._probabilities is None:
            return values
        return tf.reshape(values, [-1, self.result.shape[1]])

    def __identity__(self) -> Any:
        """Returns the object that `identity.describe` describes instead."""
        return self._owner


def of_choice(choice: Choice, owner: Any) -> Classifier:
    """Makes a classifier of an output of a concrete function.

    Args:
        choice: The function and its output.
        owner: Object that keeps the variables alive.

    Returns:
        The classifier, whose function is a callable.

    Raises:
        ValueError: If the output is not one number for each class, or the
            function computes with integers that it takes.
    """
    signature, position = choice.signature, choice.position
    spec, tensor = signature.spec, signature.function.outputs[position]
    dtype = tf.float64 if tensor.dtype == tf.float64 else tf.float32
    stored = functools.partial(signature, position=position)
    own = SignatureFunction(
        stored, spec, tf.TensorSpec(tensor.shape, dtype), owner
    )
    measured = _for_probes(own, spec)
    shape = tensor.shape if measured is None else measured.shape
    classes = outputs.count_classes(shape, tensor.dtype.name)
    ended = _without_ending(signature, position, classes)
    logits, ends_in = _how(ended.ends_in, measured, choice.name)
    size = tensor.shape[0] if tensor.shape.rank else None
    function = SignatureFunction(
        ended.function,
        ended.spec,
        tf.TensorSpec([size, classes], dtype),
        owner,
        logits == "log_probabilities",
        ended.rounding,
    )
    return Classifier(
        function=function,
        outputs=own,
        logits=logits,
        ends_in=ends_in,
        input_shape=tuple(spec.shape[1:]) if spec.shape.rank else (),
        input_dtype=spec.dtype.name,
        output_names=choice.names,
        output=choice.name,
        notes=choice.notes + ended.notes + explain(logits, ends_in, classes),
    )


def _how(
    ends_in: str, measured: np.ndarray | None, name: str
) -> tuple[str, str]:
    """Returns how logits come about, and how the model ends.

    Args:
        ends_in: How its graph ends.
        measured: Its outputs for random images, or None.
        name: Name of the output.
    """
    if ends_in in ("softmax", "sigmoid"):
        return "removed_ending", ends_in
    if ends_in == "unknown" and measured is not None:
        if seem_probabilities(measured):
            return "log_probabilities", ends_in
    return "exact", "logits" if "logits" in name.lower() else ends_in


def _for_probes(
    own: SignatureFunction, spec: tf.TensorSpec
) -> np.ndarray | None:
    """Returns outputs for random images, None if these do not fit.

    Raises:
        ValueError: If there is not one row for each image.
    """
    if spec.shape.rank is None:
        return None
    _check_batch(spec.shape, own.result.shape)
    x = probes(tuple(spec.shape[1:]), spec.dtype.name)
    found = for_probes(own, x)
    if found is not None:
        _check_batch(x.shape, found.shape)
    return found


def _check_batch(images: Any, results: Any) -> None:
    """Checks the shape of images, and that of outputs, for the same batch."""
    sizes = [shape[:1] for shape in map(tf.TensorShape, (images, results))]
    if not sizes[0].is_compatible_with(sizes[1]):
        raise ValueError(
            "the model must take a batch of images and return numbers for each "
            f"of them. Received: images of shape {images} and outputs of shape "
            f"{results}"
        )


class _Ended(NamedTuple):
    """A function without its ending.

    Attributes:
        function: Function from images to the values before the ending.
        spec: Spec of the images.
        ends_in: "softmax" or "sigmoid" if that was removed, else "logits" or
            "unknown".
        rounding: Relative rounding error of half precision, or 0.
        notes: Notes about the change.
    """

    function: Callable[[tf.Tensor], tf.Tensor]
    spec: tf.TensorSpec
    ends_in: str
    rounding: float = 0.0
    notes: tuple[str, ...] = ()


def _without_ending(
    signature: Signature, position: int, classes: int
) -> _Ended:
    """Returns a signature's function without its softmax or sigmoid."""
    function, spec = signature.function, signature.spec
    live = signature.live
    if live is not None and spec.dtype.is_floating:
        found = _in_place(live, signature, position, classes)
        if found.ends_in != "unknown":
            return found
    try:
        definition = graphs.inlined(function)
    except Exception as error:
        # TensorFlow's optimizer may raise anything.
        if not spec.dtype.is_floating:
            raise integers_error(spec.dtype.name) from error
        note = f"its graph could not be changed ({files.reason(error)})"
        stored = functools.partial(signature, position=position)
        return _Ended(stored, spec, "unknown", notes=(note,))
    return _by_import(signature, position, classes, definition)


def _in_place(
    live: Callable[[tf.Tensor], Any],
    signature: Signature,
    position: int,
    classes: int,
) -> _Ended:
    """Does so by tracing the code again, which keeps custom gradients."""
    output = signature.function.outputs[position]
    found = graphs.before_ending(output, classes)

    @tf.function(autograph=False, input_signature=[signature.spec])
    def function(images: tf.Tensor) -> Any:
        tensor = signatures.flat(live(images))[position]
        ending = found and graphs.before_ending(tensor, classes)
        return ending[0] if ending else tensor

    ends_in = "logits" if graphs.ends_in_logits(output) else "unknown"
    rounding = graphs.half_rounding(signature.function.graph.as_graph_def())
    return _Ended(
        function, signature.spec, found[1] if found else ends_in, rounding
    )


def _by_import(
    signature: Signature, position: int, classes: int, definition: Any
) -> _Ended:
    """Does so by importing the part of the graph that is needed."""
    function, spec = signature.function, signature.spec
    image = function.inputs[signature.image].name
    if not spec.dtype.is_floating:
        definition = graphs.with_float_images(definition, image)
        if definition is None:
            raise integers_error(spec.dtype.name)
        spec = tf.TensorSpec(spec.shape, tf.float32)
    values = {
        function.inputs[number].name: value
        for number, value in signature.values.items()
    }
    computing = graphs.imported(definition, function, values, spec, image)
    part, lost = computing(function.outputs[position].name)
    (output,) = part.outputs
    if graphs.is_sorted(output):
        raise ValueError(
            "the model must return one number for each class, in the order of "
            "the classes. Received: the largest numbers, in their own order"
        )
    found = graphs.before_ending(output, classes)
    ends_in = "logits" if graphs.ends_in_logits(output) else "unknown"
    if found is not None:
        tensor, ends_in = found
        if tensor.op.type == "Placeholder":  # The images themselves.
            part = tf.identity
        else:
            part, lost = computing(graphs.stored_name(tensor))
    rounding = graphs.half_rounding(definition)
    return _Ended(part, spec, ends_in, rounding, (_LOST,) if lost else ())


def integers_error(dtype: str) -> ValueError:
    """Returns the error of a model that computes with integers.

    Args:
        dtype: Name of the dtype that it takes.
    """
    return ValueError(
        f"input dtype is {dtype}: the model must take floats, or cast its "
        "input to floats before anything else, for the gradients of attacks. "
        f"Received: input dtype {dtype}"
    )
