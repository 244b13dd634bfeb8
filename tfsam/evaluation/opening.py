"""Models of an evaluation, of any kind that `evaluate` takes, as logits."""

import copy
import os
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.evaluation.arguments import How
from tfsam.evaluation.arguments import What
from tfsam.evaluation.draws import Draws
from tfsam.evaluation.draws import planned
from tfsam.evaluation.model_probes import randomness
from tfsam.evaluation.plans import Data
from tfsam.models import pixel_ranges
from tfsam.models import trial
from tfsam.models.functions import count_classes
from tfsam.models.loading import load_logits
from tfsam.models.loading import load_several_inputs
from tfsam.models.loading import open_model
from tfsam.support.logit_checks import check_logits
from tfsam.support.validators import Bounds
from tfsam.support.validators import check_interval


class Models(NamedTuple):
    """The loaded models of an evaluation.

    Attributes:
        judge: The model that is evaluated.
        surrogate: The surrogate, or None.
        classes: Number of logits of both.
    """

    judge: Logits
    surrogate: Logits | None
    classes: int


def open_models(what: What, how: How, data: Data) -> Models:
    """Loads the model and the surrogate.

    Args:
        what: The arguments that define the measurement.
        how: The arguments that control the computation.
        data: The examples of the evaluation.

    Raises:
        ValueError: If a model cannot be loaded or does not fit the data, or if
            the surrogate has other outputs than the model.
    """
    judge = open_logits(
        what.model, data, what.bounds, what.pixels, how.jit_compile
    )
    classes = count_classes(of_first(judge, data, 1), data.x[:1])
    surrogate = None
    if what.surrogate is not None:
        surrogate = _open_surrogate(what, how, classes, data)
    return Models(judge, surrogate, classes)


def _open_surrogate(what: What, how: How, classes: int, data: Data) -> Logits:
    """Loads a surrogate, and checks that it has the model's outputs.

    Raises:
        ValueError: If the surrogate does not return as many logits as the model
            for the images. The message begins with "surrogate: ".
    """
    try:
        source = open_logits(
            what.surrogate, data, what.bounds, None, how.jit_compile
        )
        found = count_classes(of_first(source, data, 1), data.x[:1])
        if found != classes:
            raise ValueError(
                f"it must have the model's {classes} outputs. "
                f"Received: {found} outputs"
            )
        check_logits(
            of_first(source, data, 32)(tf.constant(data.x[:32])).numpy(),
            getattr(source.function, "model", None),
        )
    except ValueError as error:
        raise ValueError(f"surrogate: {error}") from error
    return source


def draws_of(draws: Any, models: Models, data: Data) -> Draws | None:
    """Chooses the draws of a random model, and checks the surrogate.

    Args:
        draws: The argument of `evaluate`, a number or None.
        models: The models.
        data: The examples of the evaluation.

    Raises:
        ValueError: If `draws` is neither a valid number nor None, or if a model
            of several inputs is random.
    """
    if data.inputs is not None:
        some = data.x[:16]
        for logits in filter(None, (models.judge, models.surrogate)):
            function = of_first(logits, data, 16).function
            difference, tolerance = randomness(function, some)
            if difference > tolerance or draws not in (None, 1):
                raise ValueError(
                    "draws are for models of a single input: leave them out, "
                    "and take the randomness out of the model. "
                    f"Received: draws={draws}, "
                    f"attacked={data.inputs.attacked}"
                )
        return None
    if models.surrogate is not None:
        planned(None, models.surrogate, data.x)
    return planned(draws, models.judge, data.x)


def of_first(logits: Logits, data: Data, count: int) -> Logits:
    """Returns a model as a function of the pixels of the first examples.

    Args:
        logits: The model, of one input or several.
        data: The examples of the evaluation.
        count: Number of examples; the model is given their other inputs.
    """
    if data.inputs is None:
        return logits
    other = copy.copy(logits)
    other.function = logits.function.given(*data.given(slice(count)))  # type: ignore[attr-defined]
    return other


def open_logits(
    model: Any,
    data: Data,
    bounds: Bounds,
    pixels: str | None,
    jit_compile: bool | str,
) -> Logits:
    """Loads a model; one from a file is tried on the data.

    Args:
        model: A Keras model, a callable from pixels to logits, or a path.
        data: The examples of the evaluation. A model of several inputs takes
            them in the structure of `data.inputs`.
        bounds: (lowest, highest) value of a pixel, or None.
        pixels: The range of pixels of a model from a path, or None.
        jit_compile: Whether XLA compiles the network's gradients; see
            `tfsam.evaluate`.

    Raises:
        ValueError: If the model cannot be loaded, does not fit the data, or
            takes no `pixels`.
    """
    logits = _opened(model, data, bounds, pixels, jit_compile)
    if data.inputs is None:
        return logits
    taking = copy.copy(logits)
    taking.function = logits.function.taking(data.inputs)  # type: ignore[attr-defined]
    return taking


def _opened(
    model: Any,
    data: Data,
    bounds: Bounds,
    pixels: str | None,
    jit_compile: bool | str,
) -> Logits:
    """Loads a model, without the structure of its inputs."""
    of_file = isinstance(model, (str, os.PathLike))
    if pixels is not None and data.inputs is not None:
        raise ValueError(
            "pixels belong to a model of one input; one of several gets them "
            f"as they are. Received: pixels={pixels}"
        )
    if pixels is not None and not of_file:
        raise ValueError(
            "pixels belong to a model from a path; for another, evaluate "
            f"tfsam.models.load(model, pixels). Received: pixels={pixels}"
        )
    if not of_file:
        return load_logits(model, jit_compile)
    if data.inputs is not None:
        return load_several_inputs(model, jit_compile)
    if check_interval("bounds", bounds) != (0.0, 1.0):
        if pixels is not None:
            raise ValueError(
                "pixels is a range for inputs in [0, 1]; with other bounds the "
                f"model gets them as they are. Received: pixels={pixels}"
            )
        plain = pixel_ranges.parse(pixel_ranges.PLAIN)
        return load_logits(open_model(model).fitted(plain), jit_compile)
    if data.labels.ndim > 1:  # Without a class nothing can be tried.
        opened = open_model(model)
        named = pixels or opened.told or pixel_ranges.PLAIN
        return load_logits(
            opened.fitted(pixel_ranges.parse(named)), jit_compile
        )
    examples = trial.sampled(lambda some: data.x[some], data.labels, ())
    tried = trial.run(open_model(model), examples, pixels)
    if tried.objection is not None:
        raise ValueError(tried.objection)
    logits = load_logits(tried.fitted, jit_compile)
    logits.origin = tried.description()
    return logits
