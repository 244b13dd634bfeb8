"""Models of an evaluation, of any kind that `evaluate` takes, as logits."""

import os
from typing import Any

from tfsam.attacks.logits import Logits
from tfsam.evaluation.plans import Data
from tfsam.models import pixel_ranges
from tfsam.models import trial
from tfsam.models.loading import load_logits
from tfsam.models.loading import open_model
from tfsam.support.validators import Bounds
from tfsam.support.validators import check_interval


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
        data: The examples of the evaluation.
        bounds: (lowest, highest) value of a pixel, or None.
        pixels: The range of pixels of a model from a path, or None.
        jit_compile: Whether XLA compiles the network's gradients; see
            `tfsam.evaluate`.

    Raises:
        ValueError: If the model cannot be loaded, does not fit the data, or
            takes no `pixels`.
    """
    of_file = isinstance(model, (str, os.PathLike))
    if of_file and data.inputs is not None:
        raise ValueError(
            "a model of several inputs must be loaded first, by "
            "keras.saving.load_model, and return logits. "
            f"Received: model={model}"
        )
    if pixels is not None and not of_file:
        raise ValueError(
            "pixels belong to a model from a path; for another, evaluate "
            f"tfsam.models.load(model, pixels). Received: pixels={pixels}"
        )
    if not of_file:
        return load_logits(model, jit_compile)
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
