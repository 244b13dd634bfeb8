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


def probabilities(y_pred):
    """Predictions, checked to be probabilities.

    Args:
        y_pred: float tensor.

    Returns:
        y_pred, behind an assertion that also holds in a graph.
    """
    return _asserted(
        y_pred,
        (y_pred >= -1e-3) & (y_pred <= 1 + 1e-3),
        "The loss takes probabilities: give it from_logits=True.",
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


def inside(x, bounds):
    """The pixels, checked: an attack would clip them without a word.

    Args:
        x: float tensor of pixels.
        bounds: (lowest, highest) value, or None.

    Returns:
        x, behind an assertion that also holds in a graph.

    Raises:
        ValueError: if they are no floats.
    """
    floating(x, bounds)
    if bounds is None:
        return x
    return _asserted(
        x,
        (x >= bounds[0]) & (x <= bounds[1]),
        f"x must lie in the attack's bounds={bounds}; normalisation is a layer "
        "of the network, or give the attack other bounds.",
    )


def class_logits(y_pred, y):
    """Predictions, checked to be logits of the classes that the labels name.

    Args:
        y_pred: tensor of predictions.
        y: tensor of labels.

    Returns:
        y_pred as float32 (batch, classes).

    Raises:
        ValueError: if there are not two classes or more, or y is of neither of
            the shapes (batch,) and (batch, classes).
    """
    ranks = (len(y_pred.shape), len(y.shape))
    classes = y_pred.shape[-1]
    if (
        ranks not in ((2, 1), (2, 2))
        or classes < 2
        or (len(y.shape) == 2 and y.shape[-1] not in (1, classes))
    ):
        raise ValueError(
            "The method weighs examples by their cross-entropy, so the network "
            "must return logits (batch, classes) of two classes or more, and y "
            "must be class numbers or one-hot labels. "
            f"Received: y_pred.shape={y_pred.shape}, y.shape={y.shape}"
        )
    return tf.cast(y_pred, tf.float32)


def _asserted(x, condition, message):
    limits = (tf.reduce_min(x), "to", tf.reduce_max(x))
    check = tf.debugging.Assert(
        tf.reduce_all(condition), [message, "Received: values from", *limits]
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(x)


def flattened(layer):
    """Yields a layer and all that it holds.

    Args:
        layer: a Keras layer or model.
    """
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from flattened(part)


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


def expects_probabilities(losses):
    """Whether one of the compiled losses is a cross-entropy of probabilities.

    Args:
        losses: what `compile` took: a loss, its name, or a structure of them.
    """
    return any(_of_probabilities(loss) for loss in tf.nest.flatten(losses))


def _of_probabilities(loss):
    if isinstance(loss, keras.losses.Loss):
        return getattr(loss, "from_logits", None) is False
    names = [
        f"{kind}_crossentropy"
        for kind in ("binary", "categorical", "sparse_categorical")
    ]
    return loss in names or loss in [getattr(keras.losses, n) for n in names]


def is_sum(losses):
    """Whether one of the compiled losses is a sum over the batch.

    Args:
        losses: what `compile` took: a loss, its name, or a structure of them.
    """
    found = tf.nest.flatten(losses)
    return any(getattr(loss, "reduction", None) == "sum" for loss in found)


def ends_in_probabilities(network):
    """Whether the last layer is a softmax or sigmoid; None if unknown.

    Args:
        network: a `keras.Model`.
    """
    outputs = tf.nest.flatten(getattr(network, "outputs", None) or [])
    if len(outputs) != 1:
        return None
    last = outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return ends_in_probabilities(last)
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    ):
        return True
    return False if activation is keras.activations.linear else None
