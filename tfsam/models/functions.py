"""Models as functions from pixels to logits that change no variable."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.support import files
from tfsam.support.layers import flattened
from tfsam.support.outputs import check_ending

# Examples that go through the network at once on a CPU: images of many pixels,
# and of few. The same whatever the batch, so that an example's logits are.
_BLOCK_ROWS, _BLOCK_ROWS_OF_SMALL = 32, 128
_SMALL = 1024
_HALVES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


class StatelessFunction:
    """A function of pixels whose calls leave every Keras variable as it was.

    A layer may write when it is called: a BatchNormalization in training mode
    its moving statistics, a Dropout the state of its seed generator, a metric
    its totals. Here the scope of a call drops these writes.

    Args:
        function: pixels to logits.
    """

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        """Returns the logits of a batch."""
        return self.in_turn([x])[0]

    def in_turn(self, batches):
        """Calls the function on one batch after the other, in one scope.

        A call reads the state that the call before it wrote, as it would
        outside of an evaluation.

        Args:
            batches: a list of float tensors (batch, ...).

        Returns:
            A list of what the function returned.
        """
        with keras.StatelessScope(self._mapping()):
            return [self._call(x) for x in batches]

    def __identity__(self):
        """Returns what `identity.describe` describes in place of this."""
        return self.function

    def _mapping(self):
        return []

    def _call(self, x):
        return self.function(x)


class NetworkFunction(StatelessFunction):
    """A Keras model in inference mode, with its weights or copies of them."""

    def __init__(self, model, values=None):
        super().__init__(model)
        self.model = model
        self.values = values

    def copied(self):
        """The same model with copies of its weights on the current device."""
        values = [tf.identity(v.value) for v in self.model.variables]
        return NetworkFunction(self.model, values)

    def _mapping(self):
        if self.values is None:
            return []
        return list(zip(self.model.variables, self.values, strict=True))

    def _call(self, x):
        inputs = getattr(self.model, "inputs", None) or []
        outputs = getattr(self.model, "outputs", None) or []
        if len(inputs) != 1 or len(outputs) != 1:
            return self._predict(x)
        (output,) = outputs
        spec = tf.TensorSpec(output.shape, output.dtype)
        return in_batches_of(inputs[0].shape[0], self._predict, x, spec)

    def _predict(self, x):
        return self.model(x, training=False)


def in_batches_of(size, function, x, output):
    """Calls a function that takes batches of one size on a batch of any size.

    The last part is filled up with its last example.

    Args:
        size: examples that the function takes; None is any number.
        function: a float tensor (size, ...) to a tensor (size, ...).
        x: float tensor (batch, ...).
        output: `tf.TensorSpec` of the function's result.

    Returns:
        A tensor (batch, ...).
    """
    if size is None or x.shape[0] == size:
        return function(x)
    count = tf.shape(x)[0]
    parts = (count + size - 1) // size
    # Not by a gather, whose gradient would be sparse.
    filling = tf.repeat(x[-1:], parts * size - count, axis=0)
    filled = tf.reshape(
        tf.concat([x, filling], 0),
        tf.concat([[parts, size], tf.shape(x)[1:]], 0),
    )
    filled = tf.ensure_shape(filled, [None, size, *x.shape[1:]])
    found = tf.map_fn(function, filled, fn_output_signature=output)
    found = tf.reshape(found, tf.concat([[-1], tf.shape(found)[2:]], 0))
    return tf.ensure_shape(found[:count], [x.shape[0], *output.shape[1:]])


def for_evaluation(logits, classes, shape, device=None):
    """The logits as an evaluation runs them on a device.

    On a CPU in blocks; on a GPU whole batches, attack loops inside XLA.

    Args:
        logits: a `Logits`.
        classes: number of logits.
        shape: of an example.
        device: name of a device that gets a copy of a Keras model's weights;
            None is TensorFlow's own choice, and no copy.

    Returns:
        A new `Logits`, which shares nothing that is traced.
    """
    function = logits.function
    if device is not None and isinstance(function, NetworkFunction):
        with tf.device(device):
            function = function.copied()
    gpu = tf.config.list_logical_devices("GPU")
    if gpu and (device is None or "GPU" in device.upper()):
        rows, jit_loops = None, logits.jit_compile
    else:
        small = math.prod(shape) <= _SMALL
        rows = logits.rows or (_BLOCK_ROWS_OF_SMALL if small else _BLOCK_ROWS)
        jit_loops = False
    made = Logits(function, logits.jit_compile, rows, jit_loops, classes)
    made.rounding = max(made.rounding, _coarsest(function))
    return made


def _coarsest(function):
    """Returns the relative rounding error of a network of halves, else 0."""
    network = getattr(function, "model", None)
    layers = flattened(network) if isinstance(network, keras.Model) else []
    return max(
        (_HALVES.get(layer.compute_dtype, 0.0) for layer in layers), default=0.0
    )


def use_xla(jit_compile="auto"):
    """Whether XLA is to compile a network's gradients.

    Args:
        jit_compile: "auto" is yes on GPUs; on CPUs a plain graph was the faster
            one. Or a bool.

    Raises:
        ValueError: if it is something else.
    """
    if jit_compile == "auto":
        return bool(tf.config.list_logical_devices("GPU"))
    if not isinstance(jit_compile, (bool, np.bool_)):
        raise ValueError(
            "jit_compile must be True, False or auto. "
            f"Received: jit_compile={jit_compile}"
        )
    return bool(jit_compile)


def count_classes(logits, example):
    """The number of a model's logits.

    Args:
        logits: a `Logits`.
        example: float array (1, ...), one example.

    Raises:
        ValueError: if the model does not take it, or returns something else
            than logits (1, classes), such as probabilities.
    """
    try:
        output = logits.function(tf.convert_to_tensor(example))
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"model must take the data's images ({files.reason(error)}). "
            f"Received: images of shape {example.shape[1:]}"
        ) from error
    if isinstance(output, (dict, list, tuple)):
        raise ValueError(
            "model must return one tensor of logits. "
            f"Received: a {type(output).__name__} of {len(output)}"
        )
    output = tf.convert_to_tensor(output)
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[1] < 2 or not output.dtype.is_floating:
        raise ValueError(
            "model must return logits (batch, classes), not labels. Received: "
            f"{output.dtype.name} of shape {shape} for one example"
        )
    check_ending(getattr(logits.function, "model", None))
    return shape[1]


def traceable(logits, example):
    """Whether `tf.function` can trace a model.

    Args:
        logits: a `Logits`.
        example: float array (1, ...), one example.
    """
    predict = tf.function(
        logits, jit_compile=logits.jit_compile, autograph=False
    )
    try:
        predict(tf.convert_to_tensor(example))
    except Exception:
        # Whatever a callable of the user's does, in NumPy or with `.numpy()`,
        # it worked eagerly when its outputs were counted.
        return False
    return True
