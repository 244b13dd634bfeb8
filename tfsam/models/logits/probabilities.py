"""Probabilities of a model: logits of them, and a check of its logits."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.models.functions import NetworkFunction
from tfsam.models.functions import rounding
from tfsam.models.stored_models import Classifier

# Smallest probability that has a logarithm. Its inverse, in the gradient, is
# finite in float32.
_SMALLEST = 1e-30

# Largest difference of a model's own output to that of its logits in float32.
_TOLERANCE = 1e-5


def class_logits(values: Any, are_probabilities: bool) -> Any:
    """Returns logits (batch, classes) of a model's values.

    The logits of probabilities are their logarithms. A single value is that of
    class 1 of two classes.

    Args:
        values: Float tensor (batch, classes) of Keras or TensorFlow, possibly
            with more axes of size 1.
        are_probabilities: Whether the values are probabilities, else logits.

    Returns:
        The same tensor if nothing is to be done, else a new one.

    Example:
        >>> import tensorflow as tf
        >>> class_logits(tf.constant([[3.0]]), False).numpy().tolist()
        [[0.0, 3.0]]
    """
    classes = math.prod(values.shape[1:])
    if len(values.shape) != 2:
        values = keras.ops.reshape(values, (-1, classes))
    if not are_probabilities:
        if classes == 1:
            values = keras.ops.pad(values, ((0, 0), (1, 0)))
        return values
    if keras.backend.standardize_dtype(values.dtype) != "float64":
        values = keras.ops.cast(values, "float32")
    if classes == 1:
        values = keras.ops.concatenate([1 - values, values], axis=-1)
    return keras.ops.log(keras.ops.maximum(values, _SMALLEST))


def explain(logits: str, ends_in: str, classes: int) -> tuple[str, ...]:
    """Returns notes on the logits that `class_logits` makes.

    Args:
        logits: How they come about; see `Classifier`.
        ends_in: The model's ending.
        classes: Number of values that the model returns for an example.

    Raises:
        ValueError: If the model returns a softmax of a single value.
    """
    if classes == 1 and ends_in == "softmax":
        raise ValueError(
            "the model must have several outputs before a softmax, which is 1 "
            "for a single one. Received: 1 output"
        )
    notes = []
    if classes == 1:
        value = "probability" if logits == "log_probabilities" else "logit"
        notes.append(f"its single output is the {value} of class 1 of two")
    elif ends_in == "sigmoid":
        notes.append(
            f"it ends in {classes} sigmoids, the largest of which is taken for "
            "the prediction"
        )
    if logits == "log_probabilities":
        notes.append(
            "its logits are the logarithms of its probabilities, whose "
            "gradients vanish where it is sure"
        )
    return tuple(notes)


def check(classifier: Classifier, x: Any) -> float:
    """Compares the logits with the model's own output.

    Args:
        classifier: The classifier.
        x: Array (batch, ...) of inputs in the model's own range; whole numbers
            if the model takes integers.

    Returns:
        The largest difference between the softmax or sigmoid of the logits and
        the model's own output, relative to numbers above 1. NaN counts as
        infinity.
    """
    logits = tf.cast(called(classifier.function, x), tf.float64)
    own = tf.cast(called(classifier.outputs, x), tf.float64)
    own = tf.reshape(own, [tf.shape(logits)[0], -1])
    expected = logits
    if classifier.logits == "log_probabilities":
        expected = tf.exp(logits)
    elif classifier.logits == "removed_ending":
        softmax = classifier.ends_in == "softmax"
        expected = (tf.nn.softmax if softmax else tf.sigmoid)(logits)
    if own.shape[1] == 1:
        expected = expected[:, 1:]
    difference = np.abs(expected - own) / np.maximum(1.0, np.abs(own))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def tolerance(classifier: Classifier) -> float:
    """Returns the largest difference of `check` that is due to rounding.

    Args:
        classifier: The classifier.

    Returns:
        1e-5, and more for a network in half precision.
    """
    function = classifier.function
    if isinstance(function, keras.Model):
        error = rounding(NetworkFunction(function))
    else:
        error = getattr(function, "rounding", 0.0)
    return max(_TOLERANCE, 4 * error)


def called(function: Callable[..., Any], x: Any) -> Any:
    """Returns a function's outputs for a batch, in inference mode.

    Args:
        function: A Keras model, also of a fixed batch size, or a callable.
        x: Array (batch, ...).
    """
    x = tf.convert_to_tensor(x)
    if isinstance(function, keras.Model):
        return NetworkFunction(function).outputs(x)
    return function(x)


def seem_probabilities(outputs: np.ndarray, likely: bool = False) -> bool:
    """Returns whether a model's outputs look like probabilities.

    Args:
        outputs: Array (batch, ...).
        likely: Whether the model's layers speak for it.

    Returns:
        Whether they are not negative and have the same sum for each example,
        which is 1 or, say, 100; or else lie in [0, 1], where one of them must
        be above 0.5, unless probabilities are likely.

    Example:
        >>> seem_probabilities(np.array([[0.2, 0.8], [0.5, 0.5]]))
        True
    """
    values = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    lowest, highest, sums = values.min(), values.max(), values.sum(axis=1)
    constant = values.shape[1] > 1 and np.allclose(sums, sums[0], rtol=1e-2)
    inside = highest <= 1 + 1e-3 and (likely or highest > 0.5)
    return bool(lowest >= 0 < highest and (constant or inside))


def for_probes(function: Callable[..., Any], x: np.ndarray) -> Any:
    """Returns a model's outputs for random inputs, None if these do not fit.

    Args:
        function: A Keras model or a callable.
        x: The result of `probes`.
    """
    try:
        return np.asarray(called(function, x))
    except (ValueError, tf.errors.OpError):
        # A network of images of any size may be too deep for small ones.
        return None


def probes(shape: tuple[int | None, ...], dtype: str) -> np.ndarray:
    """Returns random inputs of several ranges, to look at a model's outputs.

    Args:
        shape: Shape of an example; 32 is used for None.
        dtype: Name of the dtype of the inputs.
    """
    random = np.random.default_rng(0)
    sizes = [32 if size is None else size for size in shape]
    pixels = random.random((12, *sizes))
    ranges = np.concatenate([pixels[:4], pixels[4:8] * 255, pixels[8:] * 2 - 1])
    if "float" in dtype:
        return ranges.astype("float32")
    return np.abs(ranges).round().astype("float32")
