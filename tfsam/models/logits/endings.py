"""Classifiers: models as functions from their inputs to logits.

The softmax or sigmoid at a model's end is removed where that is exact. Where
only probabilities are to be had, the logits are their logarithms.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam.models.logits import network_endings
from tfsam.models.logits import outputs
from tfsam.models.logits import signatures
from tfsam.models.logits.probabilities import class_logits
from tfsam.models.logits.probabilities import explain
from tfsam.models.logits.probabilities import for_probes
from tfsam.models.logits.probabilities import probes
from tfsam.models.logits.probabilities import seem_probabilities
from tfsam.models.logits.signature_endings import integers_error
from tfsam.models.logits.signature_endings import of_choice
from tfsam.models.logits.signatures import Choice
from tfsam.models.stored_models import Classifier
from tfsam.models.stored_models import Stored
from tfsam.support import final_activations


def classifier(model: Any, output: str | None = None) -> Classifier:
    """Makes a function from a model's own inputs to logits.

    Args:
        model: A `Stored`, a `keras.Model`, a model of `tf_keras`, the result of
            `tf.saved_model.load`, or a callable from inputs to logits.
        output: Name of the output with the classes, or its number; of a
            SavedModel also SIGNATURE or SIGNATURE:OUTPUT. None takes the only
            one, or the only one that is called logits.

    Returns:
        A `Classifier`. Its `function` is the model itself if that returns
        logits, a functional `keras.Model` if it is a Keras model whose ending
        can be removed, and a callable otherwise.

    Raises:
        ValueError: If the model does not map one batch of images to one number
            for each class, or `output` is needed.

    Example:
        >>> import keras
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, "softmax")]
        ... )
        >>> found = classifier(network)
        >>> found.logits, found.ends_in, found.function.output_shape
        ('removed_ending', 'softmax', (None, 3))
    """
    if isinstance(model, Stored):
        model = model.model
    if isinstance(model, keras.Model):
        return _of_keras(model, output)
    if _is_tf_keras(model):
        return _of_tf_keras(model, output)
    if hasattr(model, "signatures"):
        return of_choice(signatures.choose(model, output), model)
    if not callable(model):
        raise ValueError(
            "model must be a Keras model, a SavedModel, or a callable from "
            f"inputs to logits. Received: model={model}"
        )
    return _as_it_is(model)


def of_several_inputs(stored: Stored) -> Classifier:
    """Makes a function from several inputs to logits.

    Args:
        stored: The model as it was read.

    Returns:
        A `Classifier`, whose `function` takes the inputs in the structure of
        the model, and whose `input_shape` has the shape of each.

    Raises:
        ValueError: If the model is not a functional model of Keras 3, or if it
            returns probabilities and its ending cannot be removed.
    """
    model = stored.model
    if not isinstance(model, keras.Model) or not network_endings.has_graph(
        model
    ):
        raise ValueError(
            "a model of several inputs from a path must be a functional model "
            "of Keras 3; pass a function from its inputs to logits instead. "
            f"Received: {stored.format} of {type(model).__name__}"
        )
    tensor, name, names, notes = _output(model, None)
    classes = outputs.count_classes(tensor.shape, tensor.dtype)
    found = network_endings.before_ending(tensor, classes)
    certain = final_activations.in_probabilities(model)[names.index(name)]
    # Unknown values are checked on the data.
    values, ends_in = found or (
        tensor,
        "unknown" if certain is None else "logits",
    )
    if found is None and certain:
        raise ValueError(
            "a model of several inputs must return logits, or end in a softmax "
            "or sigmoid that can be removed; pass a function from its inputs "
            f"to logits instead. Received: output={name}"
        )
    results = class_logits(values, False)
    function = model
    if results is not getattr(model, "output", None):
        function = keras.Model(model.input, results, name=model.name)
    shapes: Any = tuple(list(each.shape[1:]) for each in model.inputs)
    logits = "exact" if found is None else "removed_ending"
    return Classifier(
        function=function,
        outputs=model,
        logits=logits,
        ends_in=ends_in,
        input_shape=shapes,
        input_dtype=", ".join(each.dtype for each in model.inputs),
        output_names=names,
        output=name,
        notes=notes + explain(logits, ends_in, classes),
    )


def _of_keras(model: keras.Model, wanted: str | None) -> Classifier:
    if not network_endings.has_graph(model):
        return _of_opaque(model, wanted)
    if len(model.inputs) != 1:
        inputs = ", ".join(tensor.name for tensor in model.inputs)
        raise ValueError(
            "the model must take one batch of images, and nothing else. "
            f"Received: inputs {inputs}"
        )
    tensor, name, names, notes = _output(model, wanted)
    own = model
    if not network_endings.maps(model, tensor):
        own = network_endings.built(model, tensor)
    integers = "float" not in model.inputs[0].dtype
    found = (_of_integers if integers else _of_network)(own)
    return dataclasses.replace(
        found, output_names=names, output=name, notes=notes + found.notes
    )


def _output(
    model: keras.Model, wanted: str | None
) -> tuple[keras.KerasTensor, str, tuple[str, ...], tuple[str, ...]]:
    """Returns the chosen output, its name, all names and notes."""
    layers = [tensor._keras_history.operation.name for tensor in model.outputs]
    structure = getattr(model, "output", None)
    keys = sorted(structure) if isinstance(structure, dict) else layers
    offered = [
        outputs.describe(names, tensor)
        for *names, tensor in zip(keys, layers, model.outputs, strict=True)
    ]
    names = tuple(output.names[0] for output in offered)
    inner = network_endings.upstream(model.outputs)
    if wanted in inner and not any(wanted in o.names for o in offered):
        return inner[wanted], str(wanted), names, ()
    position, notes = outputs.choose(offered, wanted)
    return model.outputs[position], names[position], names, notes


def _of_network(model: keras.Model) -> Classifier:
    """Makes a classifier of a functional model with one output."""
    (tensor,), (images,) = model.outputs, model.inputs
    classes = outputs.count_classes(tensor.shape, tensor.dtype)
    found = network_endings.before_ending(tensor, classes)
    certain = final_activations.in_probabilities(model)
    if found is not None:
        (values, ends_in), logits = found, "removed_ending"
    elif certain == [False]:
        values, logits, ends_in = tensor, "exact", "logits"
    else:
        by_graph = _of_trace(model)
        if by_graph.logits == "removed_ending":
            return dataclasses.replace(by_graph, outputs=model)
        values, logits, ends_in = tensor, by_graph.logits, by_graph.ends_in
        if certain == [True] and _may_be_probabilities(model):
            logits = "log_probabilities"
    results = class_logits(values, logits == "log_probabilities")
    function = model
    if results is not tensor:
        function = network_endings.built(model, results)
    return Classifier(
        function=function,
        outputs=model,
        logits=logits,
        ends_in=ends_in,
        input_shape=tuple(images.shape[1:]),
        input_dtype=images.dtype,
        output_names=(),
        output="",
        notes=explain(logits, ends_in, classes),
    )


def _may_be_probabilities(model: keras.Model) -> bool:
    """Returns whether values allow layers to return probabilities."""
    (images,) = model.inputs
    x = probes(tuple(images.shape[1:]), images.dtype)
    found = for_probes(model, x)
    return found is None or seem_probabilities(found, likely=True)


def _of_integers(model: keras.Model) -> Classifier:
    """Makes a classifier of a functional model that takes integers."""
    dtype = model.inputs[0].dtype
    copied = network_endings.with_float_input(model)
    if copied is None:
        found = _of_trace(model)
        if found.function is model:
            raise integers_error(dtype)
        return found

    def own(x: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(x, dtype), training=False)

    found = _of_network(copied)
    return dataclasses.replace(found, outputs=own, input_dtype=dtype)


def _of_opaque(model: keras.Model, wanted: str | None) -> Classifier:
    """Makes a classifier of a subclassed model, by its traced graph."""
    config = model.get_build_config() if model.built else None
    shape = (config or {}).get("input_shape")
    if shape is None:
        if True in final_activations.in_probabilities(model):
            raise ValueError(
                "the model must be built, to remove its softmax or sigmoid: "
                f"call it on some images. Received: model={model.name}"
            )
        return _as_it_is(model)
    shape = (None, *shape[1:])
    choice = _choice(model, tf.TensorSpec(shape, model.input_dtype), wanted)
    if choice is None:
        return _as_it_is(model)
    found = of_choice(choice, model)
    if found.logits == "removed_ending" or "float" not in found.input_dtype:
        return found
    images = keras.Input(shape[1:], dtype=found.input_dtype)
    tensors = keras.tree.flatten(model(images))
    results = class_logits(
        tensors[choice.position], found.logits == "log_probabilities"
    )
    function = model
    if len(tensors) > 1 or results is not tensors[0]:
        function = keras.Model(images, results, name=model.name)
    return dataclasses.replace(found, function=function)


def _as_it_is(function: Any) -> Classifier:
    """Makes a classifier of a function of which nothing is known."""
    return Classifier(
        function=function,
        outputs=function,
        logits="exact",
        ends_in="unknown",
        input_shape=(),
        input_dtype="float32",
        output_names=("output",),
        output="output",
    )


def _is_tf_keras(model: Any) -> bool:
    return any(
        kind.__module__.startswith("tf_keras.") and kind.__name__ == "Model"
        for kind in type(model).__mro__
    )


def _of_tf_keras(model: Any, wanted: str | None) -> Classifier:
    specs = tf.nest.flatten(model.save_spec() or ())
    if len(specs) != 1:
        raise ValueError(
            "the model must take one batch of images, and be built. Received: "
            f"inputs {specs}"
        )
    names = getattr(model, "output_names", None)
    choice = _choice(model, specs[0], wanted, names)
    return _as_it_is(model) if choice is None else of_choice(choice, model)


def _of_trace(model: keras.Model) -> Classifier:
    """Makes a classifier of a functional model with one output by its graph."""
    (images,) = model.inputs
    choice = _choice(model, tf.TensorSpec(images.shape, images.dtype))
    return _as_it_is(model) if choice is None else of_choice(choice, model)


def _choice(
    model: Any,
    spec: tf.TensorSpec,
    wanted: str | None = None,
    names: Sequence[str] | None = None,
) -> Choice | None:
    """Traces a model in inference mode, and chooses one of its outputs.

    Args:
        model: A model of Keras or tf_keras.
        spec: Spec of its images.
        wanted: Name of the output, or None.
        names: Names of its outputs, None for those in what it returns.

    Returns:
        The choice, or None if the model is not made of operations of
        TensorFlow alone.
    """

    def live(images: tf.Tensor) -> Any:
        return model(images, training=False)

    traced = tf.function(live, autograph=False, input_signature=[spec])
    try:
        function = traced.get_concrete_function()
    except Exception:
        # A user's layer may raise anything, and yet be able to run.
        return None
    found = signatures.describe("call", function, names)
    if isinstance(found, str):
        raise ValueError(
            "the model must take a batch of images and return one number for "
            f"each class. Received: a model that {found}"
        )
    found = dataclasses.replace(found, live=live)
    position, notes = outputs.choose(found.outputs, wanted)
    offered = tuple(output.names[0] for output in found.outputs)
    return Choice(found, position, offered[position], offered, notes)
