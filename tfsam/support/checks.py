"""Checks that network, loss, labels and pixels fit together.

Training, evaluation and the callbacks all use these. Without them the mistakes
are silent: a loss that takes logits for probabilities trains nothing, labels
that name several classes at once have no "accuracy", and pixels outside an
attack's bounds are clipped.
"""

import os
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import endings
from tfsam.support.assertions import behind
from tfsam.support.assertions import required

# The most channels at which `unsafe_gradients` finds a layer: the second last
# axis of its kernel. A depthwise convolution of one channel is a convolution.
_UNSAFE_CHANNELS = {
    keras.layers.Conv2D: 15,
    keras.layers.Conv2DTranspose: 15,
    keras.layers.DepthwiseConv2D: 1,
    keras.layers.SeparableConv2D: 1,
}

# Resizing and dividing white images gives up to three units in the last place
# above white.
_UNITS = 4

# Pixels that lie closer together behind a Rescaling were in another range.
LEAST_RANGE = 0.02


def inside_bounds(x, bounds):
    """Clips rounding errors beyond the bounds and refuses anything further.

    Args:
        x: float array of pixels, in the type in which they were computed.
        bounds: (lowest, highest) value, or None for inputs that are not images.

    Returns:
        x, clipped where a value lies beyond the bounds by at most four units
        in the last place of x's type.

    Raises:
        ValueError: if a value lies further out, or is NaN.
    """
    if bounds is None or x.size == 0:
        return x
    low, high = (np.asarray(bound).astype(x.dtype) for bound in bounds)
    lowest, highest = x.min(), x.max()
    if lowest >= low and highest <= high:
        return x
    slack = _UNITS * rounding(x.dtype, bounds)
    # Compared in float64: an infinity of halves or a NaN is never inside.
    beyond = max(float(low) - float(lowest), float(highest) - float(high))
    if not beyond <= slack:
        raise ValueError(
            f"x must lie in bounds={tuple(map(float, bounds))}; normalisation "
            "belongs inside the model. Received: x in "
            f"[{short(lowest)}, {short(highest)}]"
        )
    return np.clip(x, low, high).astype(x.dtype, copy=False)


def rounding(dtype, bounds):
    """Returns the unit in the last place of the largest value of an image.

    Args:
        dtype: a floating-point dtype, NumPy's or TensorFlow's.
        bounds: (lowest, highest) value.
    """
    largest = np.asarray(max(map(abs, bounds)))
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    return float(np.spacing(largest.astype(dtype)))


def short(number):
    """Returns the shortest text that no other number of its type has.

    Args:
        number: a scalar of NumPy.
    """
    if number.dtype.itemsize < 4:
        number = number.astype(np.float32)
    return str(number).removesuffix(".0")


def class_labels(y):
    """Converts labels to class numbers, or refuses them.

    Args:
        y: array of labels: class numbers, integers (n,) or (n, 1), or a
            distribution over the classes a row (n, classes): one-hot, soft or
            smoothed.

    Returns:
        (y, numbers): the labels as attacks take them, int64 (n,) or as given,
        and the class number of each, int64 (n,); the largest entry of a row
        counts.

    Raises:
        ValueError: if y has another shape or dtype, or a row is no distribution
            over the classes, such as several tags at once.
    """
    if y.ndim == 2 and y.shape[1] > 1:
        check_distributions(y)
        return y, y.argmax(axis=1).astype(np.int64)
    if y.ndim not in (1, 2) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "y must be integers (n,) or one-hot (n, classes). "
            f"Received: y of shape {y.shape} and dtype {y.dtype}"
        )
    numbers = y.reshape(-1).astype(np.int64)
    return numbers, numbers


def check_distributions(y):
    """Refuses rows of labels that are no distribution over classes.

    Args:
        y: array (n, classes).

    Raises:
        ValueError: if a row has a negative entry or does not sum to 1.
    """
    rows = np.asarray(y, np.float64)
    slack = sum_slack(y.dtype.itemsize)
    sums = rows.sum(axis=1)
    bad = ~((np.abs(sums - 1) <= slack) & (rows.min(axis=1) >= -slack))
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{NO_DISTRIBUTION} Received: {int(bad.sum())} of {len(y)} rows, "
            f"such as row {first}, {_row(y[first])}, of sum {sums[first]:g}"
        )


def sum_slack(size):
    """Returns by how much the sum of a distribution may miss 1.

    Args:
        size: bytes of its type: halves round coarsely.
    """
    return 0.02 if size < 4 else 1e-3


NO_DISTRIBUTION = (
    "each row of y must be a distribution over the classes, one-hot or soft: "
    "not negative, with sum 1. Several tags at once and targets of a "
    "regression have no accuracy that an attack on classes could measure."
)


def check_classes(y, numbers, classes):
    """Refuses labels that name no class of the network.

    Args:
        y: labels as `class_labels` returns them.
        numbers: their class numbers, int64 (n,).
        classes: the network's number of logits.

    Raises:
        ValueError: if the labels have another number of columns, or a class
            number is not in [0, classes).
    """
    if y.ndim == 2 and y.shape[1] != classes:
        raise ValueError(
            f"one-hot y must have the model's number of outputs, {classes}, "
            f"or y be class numbers below {classes}. "
            f"Received: y of shape {y.shape}"
        )
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"y must be class numbers below {classes}, that is, below the "
            "model's number of outputs; leave out examples without a class. "
            "Received: y in the range from "
            f"{numbers.min()} to {numbers.max()}"
        )


def _row(row):
    shown = ", ".join(f"{value:g}" for value in row[:5].astype(float))
    return f"[{shown}{', ...' if len(row) > 5 else ''}]"


def check_logits(outputs, network=None):
    """Refuses outputs that are probabilities, by their values or by the layers.

    Args:
        outputs: array (n, classes) of what a model returned.
        network: the `keras.Model`; where its layers say that these are logits,
            the values are not looked at.

    Raises:
        ValueError: if all rows are distributions over the classes, or all
            numbers lie in [0, 1], some above 0.5. A few numbers of one column
            may do so by chance: they pass.
    """
    check_ending(network)
    if network is not None and endings.in_probabilities(network) == [False]:
        return
    if outputs.shape[1] == 1 and len(outputs) < 16:
        return
    softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    sigmoid = 0.5 < outputs.max() <= 1
    if outputs.min() >= 0 and (softmax or sigmoid):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: outputs that lie in [0, 1]"
        )


def check_ending(network):
    """Refuses a network that returns probabilities by its layers.

    Args:
        network: a `keras.Model`; anything else passes.

    Raises:
        ValueError: if one of its outputs ends in a softmax or a sigmoid.
    """
    model = isinstance(network, keras.Model)
    if model and True in endings.in_probabilities(network):
        raise ValueError(
            f"model must {RETURN_LOGITS} Received: network={network.name}"
        )


RETURN_LOGITS = (
    "return logits, not probabilities, whose gradients vanish, so that the "
    "model looks robust: take the softmax or sigmoid off its end, so that it "
    "returns logits, and give its loss from_logits=True."
)


def floating(x, bounds):
    """Refuses pixels that are no floats: no attack can move them.

    Args:
        x: tensor of pixels.
        bounds: (lowest, highest) value, or None, for the message.

    Raises:
        ValueError: if they are of another dtype.
    """
    if not x.dtype.is_floating:
        raise ValueError(
            "x must be of a floating-point dtype, with pixels in "
            f"{bounds}. Received: x.dtype={x.dtype.name}"
        )


def inside(x, bounds, dtype=None):
    """Clips rounding errors beyond the bounds, and asserts the rest.

    Args:
        x: float tensor of pixels.
        bounds: (lowest, highest) value, or None.
        dtype: the type in which the pixels were computed; None is x's.

    Returns:
        x, clipped, behind a `required` that nothing lies further out than
        `inside_bounds` allows.

    Raises:
        ValueError: if they are no floats.
    """
    floating(x, bounds)
    if bounds is None:
        return x
    low, high = map(float, bounds)
    slack = _UNITS * rounding(dtype or x.dtype, bounds)
    held = required(
        tf.reduce_all((x >= low - slack) & (x <= high + slack)),
        f"x must lie in bounds=({low}, {high}), those of the attack; "
        "normalisation is a layer of the network, or give the attack other "
        "bounds. Received: x",
        x,
    )
    return behind([held], tf.clip_by_value(x, low, high))


def probabilities(y_pred):
    """Asserts that predictions are probabilities, as their loss expects.

    Args:
        y_pred: float tensor.

    Returns:
        What `required` returns.
    """
    return required(
        tf.reduce_all((y_pred >= -1e-3) & (y_pred <= 1 + 1e-3)),
        "the loss takes probabilities and the network returns other numbers: "
        "give the loss from_logits=True. Received: outputs",
        y_pred,
    )


def logits(y_pred):
    """Asserts that predictions are no distributions, as of a softmax.

    Args:
        y_pred: float tensor (..., classes).

    Returns:
        What `required` returns.
    """
    values = y_pred if y_pred.dtype.size > 2 else tf.cast(y_pred, tf.float32)
    sums = tf.reduce_sum(values, axis=-1)
    # A row of logits may have the sum 1 by chance, in halves or not.
    exact = y_pred.dtype.size > 2
    slack = 1e-4 if exact else sum_slack(2)
    softmax = (tf.size(sums) > (0 if exact else 3)) & tf.reduce_all(values >= 0)
    softmax &= tf.reduce_all(tf.abs(sums - 1) <= slack)
    return required(
        ~softmax,
        f"the network must {RETURN_LOGITS} Received: outputs of sum 1 in each "
        "row,",
        values,
    )


def distributions(y):
    """Asserts that labels are distributions over the classes.

    Args:
        y: tensor (batch, classes).

    Returns:
        What `required` returns.
    """
    rows = tf.cast(y, tf.float64)
    slack = sum_slack(y.dtype.size if y.dtype.is_floating else 4)
    sums = tf.reduce_sum(rows, axis=-1)
    held = tf.reduce_all(tf.abs(sums - 1) <= slack)
    held &= tf.reduce_all(rows >= -slack)
    return required(held, f"{NO_DISTRIBUTION} Received: sums of rows", sums)


def class_numbers(y, classes, ignored=None):
    """Asserts that labels name classes of the network.

    Args:
        y: tensor of class numbers.
        classes: the network's number of logits.
        ignored: a number that stands for no class, which the loss leaves out.

    Returns:
        What `required` returns.
    """
    y = tf.cast(y, tf.float64)
    held = (y >= 0) & (y < classes) & (y == tf.round(y))
    if ignored is not None:
        held |= y == ignored
    text = f"y must be class numbers below {classes}, the number of outputs"
    if ignored is not None:
        text += f", or ignore_class={ignored}"
    return required(tf.reduce_all(held), f"{text}. Received: y", y)


def check_class_outputs(part, y_pred, y):
    """Refuses what has no classes, for a part of tfsam that works on them.

    Args:
        part: its name, for the message.
        y_pred: predictions, or their spec, a tensor or a structure.
        y: labels, or their spec.

    Raises:
        ValueError: if there is not one output (batch, classes) of two classes
            or more, or y is of neither of the shapes (batch,) and
            (batch, classes).
    """
    shapes = [
        [tuple(t.shape) for t in keras.tree.flatten(side) if t is not None]
        for side in (y_pred, y)
    ]
    if all(len(side) == 1 for side in shapes):
        (outputs,), (labels,) = shapes
        if (
            (len(outputs), len(labels)) in ((2, 1), (2, 2))
            and outputs[-1] is not None
            and outputs[-1] > 1
            and (len(labels) == 1 or labels[-1] in (1, outputs[-1]))
        ):
            return
    received = ", ".join(
        f"{name}.shape=" + " and ".join(map(str, side))
        for name, side in zip(("y_pred", "y"), shapes, strict=True)
    )
    raise ValueError(
        f"{part} works on classes, so the network must return one tensor of "
        "logits (batch, classes), of two classes or more, and y must be class "
        f"numbers or one-hot labels. Received: {received}"
    )


def class_logits(y_pred, y):
    """Returns logits in float32, checked to be those of the labels' classes.

    Args:
        y_pred: tensor of predictions.
        y: tensor of labels.

    Raises:
        ValueError: as `check_class_outputs` says.
    """
    check_class_outputs("the method", y_pred, y)
    return tf.cast(y_pred, tf.float32)


def flattened(layer):
    """Yields a layer and all that it holds.

    Args:
        layer: a Keras layer or model.
    """
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from flattened(part)


def rescaled(network, width):
    """Returns how wide a range of pixels is at the first layer with weights.

    Args:
        network: a `keras.Model`; anything else has no layers.
        width: of the range of the pixels.

    Returns:
        A float, the width behind the network's leading `Rescaling` layers;
        infinity where it has none.
    """
    scale, found = 1.0, False
    layers = flattened(network) if isinstance(network, keras.Model) else ()
    for layer in layers:
        if getattr(layer, "layers", ()):
            continue  # Its parts come next.
        if isinstance(layer, keras.layers.Rescaling):
            scale *= float(np.mean(layer.scale))
            found = True
        elif layer.weights or isinstance(layer, keras.layers.Normalization):
            break
    return abs(scale) * width if found else np.inf


def warn_of_rescaling(network, bounds):
    """Warns of a network for pixels of another range than an attack's bounds.

    Args:
        network: a `keras.Model`.
        bounds: (lowest, highest) value of the pixels, or None.
    """
    seen = (
        np.inf if bounds is None else rescaled(network, bounds[1] - bounds[0])
    )
    if seen < LEAST_RANGE:
        warnings.warn(
            "network begins with a Rescaling layer, behind which pixels within "
            f"the attack's bounds={bounds} lie within {seen:.2g} of each other."
            " Likely cause: a network for pixels in 0..255 that is given "
            "pixels in [0, 1]. Take the layer off, or give the attack the "
            "bounds (0, 255) and epsilon in their units.",
            stacklevel=3,
        )


def unsafe_gradients(network):
    """Returns the names of layers whose weight gradient is unsafe on CPUs.

    oneDNN 3.7.3, in TensorFlow 2.21, computes the kernel's gradient of a 1x1
    convolution with strides from a copy of the pixels that the strides leave.
    The copy has room for as many channels as there are, but its threads find
    their places in it by multiples of 16 channels. With fewer channels, on a
    processor with AVX-512, they write past the copy's memory as soon as they
    share an image, which they do in every batch that does not divide among
    them: one image, or any odd number of images on two threads. The process may
    die of it much later, and somewhere else.

    Not found are convolutions that a layer's `call` makes by itself.

    Args:
        network: a `keras.Model`.
    """
    return [layer.name for layer in flattened(network) if _is_unsafe(layer)]


def _is_unsafe(layer):
    for kind, channels in _UNSAFE_CHANNELS.items():
        if isinstance(layer, kind) and layer.built:
            kernel = getattr(layer, "depthwise_kernel", None)
            kernel = layer.kernel if kernel is None else kernel
            return (
                kernel.trainable
                and getattr(layer, "groups", 1) == 1
                and tuple(kernel.shape[:2]) == (1, 1)
                and max(layer.strides) > 1
                and kernel.shape[-2] <= channels
            )
    return False


def _uses_onednn():
    """Whether the convolutions of this process may be oneDNN's."""
    gpus = tf.config.list_logical_devices("GPU")
    return not gpus and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0"


def warn_of_unsafe_gradients(network):
    """Warns of layers that `unsafe_gradients` finds, where they are unsafe.

    Args:
        network: a `keras.Model`.
    """
    names = unsafe_gradients(network)
    if names and _uses_onednn():
        warnings.warn(
            "Training may write past its memory on CPUs with AVX-512: the "
            f"layers {', '.join(names)} are 1x1 convolutions with strides, of "
            "fewer than 16 channels, and the gradient of their kernels is "
            "wrong in oneDNN for batches that do not divide among its threads. "
            "Take the pixels by AveragePooling2D(1, strides) before a "
            "convolution without strides, or set TF_ENABLE_ONEDNN_OPTS=0 "
            "before TensorFlow is imported.",
            stacklevel=3,
        )


def copies_of_one(network):
    """Returns how often to repeat an example so that its gradient is safe.

    Args:
        network: a `keras.Model`.

    Returns:
        1, or the number of oneDNN's threads where `unsafe_gradients` finds
        layers: so many examples divide among the threads.
    """
    if not unsafe_gradients(network) or not _uses_onednn():
        return 1
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads and hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count()


def is_sum(losses):
    """Whether one of the compiled losses is a sum over the batch.

    Args:
        losses: what `compile` took: a loss, its name, or a structure of them.
    """
    found = tf.nest.flatten(losses)
    return any(getattr(loss, "reduction", None) == "sum" for loss in found)
