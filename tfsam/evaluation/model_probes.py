"""Probes of the model that is evaluated: its outputs and its gradients.

Their results become warnings in `red_flags.py`. They change no number.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import input_gradient
from tfsam.evaluation import batch_dependence
from tfsam.models import gradient_flow
from tfsam.support.graphs import traced
from tfsam.support.rescaling import flattened
from tfsam.support.rescaling import rescaled
from tfsam.support.validators import Bounds

# The relative rounding error of a dtype.
_UNITS = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


def probe_outputs(function: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Calls a model twice on the same batch, and with changed batches.

    See `batch_dependence.py`.

    Args:
        function: The function of a loaded model, from pixels to logits, with
            the method `in_turn`.
        x: Float array (batch, ...), images.

    Returns:
        A dict of scalar arrays: `randomness`, the largest difference between
        two calls; `batch_dependence`, the largest difference that other
        examples in the batch make; and `tolerance`, the largest difference that
        rounding can explain. For a random model also `batch_p_value`, the
        p-value of the hypothesis that the other examples make no difference.
    """
    first, second = _twice(function, x)
    noise = difference(first, second)
    tolerance = _tolerance(first, _unit(function, first))
    dependence, taken = 0.0, []
    for changed in batch_dependence.with_other_neighbours(x):
        batch = changed.batch
        try:
            outputs = tf.convert_to_tensor(function(tf.constant(batch)))
        except Exception:
            if len(batch) == len(x):
                raise
            continue  # The model takes only one example at a time.
        taken.append(changed)
        found = difference(
            outputs.numpy()[changed.places], first[changed.examples]
        )
        dependence = max(dependence, found)
    probed = {
        "randomness": noise,
        "batch_dependence": dependence,
        "tolerance": tolerance,
    }
    if noise > tolerance:
        probed["batch_p_value"] = batch_dependence.p_value(
            function, x, taken, tolerance
        )
    return {name: np.array(value) for name, value in probed.items()}


def randomness(function: Any, x: np.ndarray) -> tuple[float, float]:
    """Calls a model twice on the same batch.

    Args:
        function: As in `probe_outputs`.
        x: Float array (batch, ...), images.

    Returns:
        (difference, tolerance), the largest difference of the logits, and the
        largest one that rounding can explain.
    """
    first, second = _twice(function, x)
    unit = _unit(function, first)
    return difference(first, second), _tolerance(first, unit)


def _twice(function: Any, x: np.ndarray) -> list[np.ndarray]:
    return [
        tf.convert_to_tensor(outputs).numpy()
        for outputs in function.in_turn([tf.constant(x)] * 2)
    ]


def difference(outputs: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference, infinity if there is a NaN.

    Args:
        outputs: Float array of any shape.
        other: Float array of the same shape.

    Example:
        >>> difference(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
        0.5
    """
    found = np.abs(outputs.astype(np.float64) - other.astype(np.float64))
    return float(np.nan_to_num(found, nan=np.inf).max())


def _tolerance(outputs: np.ndarray, unit: float) -> float:
    """Returns the largest difference of logits that rounding can explain.

    It is relative to the spread of an example's logits, which decides how much
    a difference matters, and to their size, which decides how they are rounded.

    Args:
        outputs: Float array (batch, classes), logits.
        unit: Relative rounding error of the arithmetic.
    """
    outputs = outputs.astype(np.float64)
    spread = np.median(outputs.max(axis=1) - outputs.min(axis=1))
    return float(1e-4 * spread + 10 * unit * np.abs(outputs).max())


def _unit(function: Any, outputs: np.ndarray) -> float:
    """Returns the relative rounding error of a model's coarsest arithmetic."""
    network = getattr(function, "model", None)
    layers = [] if network is None else flattened(network)
    names = {layer.compute_dtype for layer in layers} | {outputs.dtype.name}
    return max(_UNITS.get(name, _UNITS["float32"]) for name in names)


def seen_range(function: Any, x: np.ndarray) -> float:
    """Returns the range of the pixels at the first layer with weights.

    Args:
        function: The function of a loaded model, from pixels to logits.
        x: Float array (n, ...), images.

    Returns:
        The range of x after the network's leading `Rescaling` layers; infinity
        if it has none, or is no Keras model.
    """
    network = getattr(function, "model", None)
    return rescaled(network, float(x.max() - x.min()))


def probe_gradients(
    logits: Logits,
    x: np.ndarray,
    y: np.ndarray,
    right: np.ndarray,
    traceable: bool,
    pushed: np.ndarray,
) -> dict[str, np.ndarray]:
    """Examines the gradients that attacks will follow.

    Args:
        logits: The model that is attacked, which must count passes.
        x: Float array (batch, ...), images.
        y: Their labels.
        right: Bool array (batch,), the examples to look at.
        traceable: Whether `tf.function` can trace the model.
        pushed: Float array (batch, ...), x with the pixels moved to the bounds
            as far as an attack can; see `pushed_to_bounds`.

    Returns:
        A dict of scalar arrays: `zero_gradients`, the number of images whose
        gradient is zero, -1 if the model has no gradient; `nan_gradients` and
        `nan_gradients_at_bounds`, the numbers of images of `x` and of `pushed`
        with NaN or infinity in their gradients; and `probed`, the number of
        examples. Also `culprit`, a text: the layer at which the gradients are
        lost, if it is known.
    """
    gradient = traced_gradient(logits, traceable)
    active, labels = tf.constant(right), tf.constant(y)
    counts = []
    lost: Callable[[Any], bool] | None = None
    try:
        for images in (pushed, x):
            logits.count_passes()
            slopes = gradient(tf.constant(images), labels, active)[0].numpy()
            counts.append(logits.counted().nonfinite)
    except Exception:  # A user's model may raise anything.
        zeros, counts = -1, [0, 0]
        lost = gradient_flow.no_gradient
    else:
        # NaN has become zero in the slopes.
        zeros = sum(not slope.any() for slope in slopes[right]) - counts[1]
        zeros = max(zeros, 0)
        if zeros and zeros == right.sum():
            lost = gradient_flow.zero_gradient
        elif any(counts):
            lost = gradient_flow.nan_gradient
    examined = pushed if counts[0] and not counts[1] else x
    return {
        "culprit": np.array(_culprit(logits.function, examined[right], lost)),
        "zero_gradients": np.array(zeros),
        "nan_gradients": np.array(counts[1]),
        "nan_gradients_at_bounds": np.array(counts[0]),
        "probed": np.array(right.sum()),
    }


def traced_gradient(logits: Logits, traceable: bool) -> Callable[..., Any]:
    """Returns the gradient that probes of a model use, traced if possible.

    Args:
        logits: The model.
        traceable: Whether `tf.function` can trace it.

    Returns:
        Function (x, labels, active) -> (gradient, logits); see
        `tfsam.attacks.logits.input_gradient`.
    """

    def gradient(context: Context, *batch: tf.Tensor) -> Any:
        return input_gradient(logits.given(context))(*batch)

    found: Callable[..., Any] = gradient
    if traceable:
        found = logits.once("probe", lambda: traced(gradient))
    return functools.partial(found, logits.context)


def _culprit(
    function: Any, x: np.ndarray, lost: Callable[[Any], bool] | None
) -> str:
    """Returns the layer at which gradients are lost, "" if it is unknown."""
    if lost is None or not len(x):
        return ""
    try:
        return gradient_flow.losing_layer(function, x[:16], lost) or ""
    except Exception:  # A user's layer may raise anything.
        return ""


def look_at_slopes(logits: Logits, x: np.ndarray, y: np.ndarray) -> None:
    """Counts non-finite gradients for an attack that does not count its own.

    Args:
        logits: The model that is attacked, which must count passes.
        x: Float array (batch, ...), images.
        y: Their labels.
    """
    input_gradient(logits)(tf.constant(x), tf.constant(y))


def pushed_to_bounds(x: np.ndarray, bounds: Bounds, reach: float) -> np.ndarray:
    """Moves the pixels near a bound onto it, as attacks do.

    Args:
        x: Float array (batch, ...).
        bounds: (lowest, highest) value of x, or None to change nothing.
        reach: Largest change of a pixel, >= 0.

    Example:
        >>> x = np.array([0.02, 0.5, 0.97])
        >>> pushed_to_bounds(x, (0.0, 1.0), 0.1).tolist()
        [0.0, 0.5, 1.0]
    """
    if bounds is None:
        return x
    low, high = (np.asarray(bound, x.dtype) for bound in bounds)
    within = np.minimum(reach, (high - low) / 2)
    pushed = np.where(
        x <= low + within, low, np.where(x >= high - within, high, x)
    )
    return pushed.astype(x.dtype)
