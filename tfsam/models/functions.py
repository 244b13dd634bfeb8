"""Models as functions from pixels to logits that change no variable."""

import copy
import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.models.keyed_noise import KeyedScope
from tfsam.support import files
from tfsam.support.logit_checks import check_ending
from tfsam.support.rescaling import flattened
from tfsam.support.several_inputs import Inputs
from tfsam.support.single_logits import of_two_classes

# Number of examples in a block, which the network processes together on a CPU:
# for images of many pixels, and for small ones. It does not depend on the
# batch, so an example's logits do not either.
_BLOCK_ROWS, _BLOCK_ROWS_OF_SMALL = 32, 128
_SMALL = 1024

# Relative rounding errors of half-precision types.
HALVES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


class StatelessFunction:
    """A function of pixels whose calls do not change any Keras variable.

    A layer may update variables when it is called: a BatchNormalization in
    training mode its moving statistics, a Dropout the state of its seed
    generator, a metric its totals. These updates are dropped. A single logit z
    becomes the logits of two classes, [0, z].

    Args:
        function: Function from pixels to logits.

    Attributes:
        inputs: The `Inputs` of a function that takes several, or None.
        others: The inputs other than the pixels that a call is given by
            default.
    """

    inputs: Inputs | None = None
    others: tuple[tf.Tensor, ...] = ()

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, x: tf.Tensor, *others: tf.Tensor) -> Any:
        """Returns the logits of a batch.

        Args:
            x: Float tensor (batch, ...).
            *others: The inputs other than the pixels, if there are any.
        """
        return (self.given(*others) if others else self).in_turn([x])[0]

    def taking(self, inputs: Inputs | None) -> Self:
        """Returns the same function of several inputs.

        Args:
            inputs: Their structure, None for pixels alone.
        """
        other = copy.copy(self)
        other.inputs = inputs
        return other

    def given(self, *others: tf.Tensor) -> Self:
        """Returns the function of pixels, with the other inputs of a batch.

        Args:
            *others: Tensors (batch, ...).
        """
        other = copy.copy(self)
        other.others = others
        return other

    def in_turn(self, batches: Sequence[tf.Tensor]) -> list[Any]:
        """Calls the function on several batches, without resetting the state.

        Each call reads the updates of the previous one, as it would outside an
        evaluation.

        Args:
            batches: Float tensors (batch, ...).

        Returns:
            The function's results.
        """
        with keras.StatelessScope(self._mapping()):
            return [_of_classes(self._call(self._whole(x))) for x in batches]

    def outputs(self, x: tf.Tensor) -> Any:
        """Returns the function's own outputs for a batch, as they are.

        Args:
            x: Float tensor (batch, ...).
        """
        with keras.StatelessScope(self._mapping()):
            return self._call(self._whole(x))

    def draw(self, x: tf.Tensor, key: tf.Tensor, *others: tf.Tensor) -> Any:
        """Calls the function with random numbers that depend on a key alone.

        These are the random numbers of Keras, in its layers and in
        `keras.random`. Those of `tf.random` and of other libraries differ from
        call to call.

        Args:
            x: Float tensor (batch, ...).
            key: int32 tensor (2,).
            *others: The inputs other than the pixels, if there are any.

        Returns:
            The function's result.
        """
        source = self.given(*others) if others else self
        with KeyedScope(self._mapping(), key):
            return _of_classes(self._call(source._whole(x)))

    def __identity__(self) -> Any:
        """Returns the object that `identity.describe` describes instead."""
        return self.function

    def _mapping(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        return []

    def _whole(self, x: tf.Tensor) -> Any:
        """Returns all inputs in the structure that the function takes."""
        return x if self.inputs is None else self.inputs.join(x, self.others)

    def _call(self, x: Any) -> Any:
        return self.function(x)


def _of_classes(output: Any) -> Any:
    """Returns a model's logits, of two classes if it returns a single one."""
    if isinstance(output, (dict, list, tuple)):
        return output
    output = tf.convert_to_tensor(output)
    return of_two_classes(output) if output.dtype.is_floating else output


class NetworkFunction(StatelessFunction):
    """A Keras model in inference mode.

    Args:
        model: The model.
        values: Tensors that replace the model's variables, or None.
    """

    def __init__(
        self, model: keras.Model, values: list[tf.Tensor] | None = None
    ) -> None:
        super().__init__(model)
        self.model = model
        self.values = values

    def copied(self) -> "NetworkFunction":
        """Copies the model's weights to the current device."""
        values = [tf.identity(v.value) for v in self.model.variables]
        return NetworkFunction(self.model, values).taking(self.inputs)

    def _mapping(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        if self.values is None:
            return []
        return list(zip(self.model.variables, self.values, strict=True))

    def _call(self, x: Any) -> Any:
        inputs = getattr(self.model, "inputs", None) or []
        outputs = getattr(self.model, "outputs", None) or []
        if len(inputs) != 1 or len(outputs) != 1:
            return self._predict(x)
        (output,) = outputs
        spec = tf.TensorSpec(output.shape, output.dtype)
        return in_batches_of(inputs[0].shape[0], self._predict, x, spec)

    def _predict(self, x: Any) -> Any:
        return self.model(x, training=False)


def in_batches_of(
    size: int | None,
    function: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    output: tf.TensorSpec,
) -> tf.Tensor:
    """Calls a function that takes batches of one size on a batch of any size.

    The last part is filled up with copies of the last example.

    Args:
        size: Number of examples that the function takes, None for any number.
        function: Function from a float tensor (size, ...) to a tensor
            (size, ...).
        x: Float tensor (batch, ...).
        output: Spec of the function's result.

    Returns:
        A tensor (batch, ...).
    """
    if size is None or x.shape[0] == size:
        return function(x)
    count = tf.shape(x)[0]
    parts = (count + size - 1) // size
    # The gradient of a gather would be sparse.
    filling = tf.repeat(x[-1:], parts * size - count, axis=0)
    filled = tf.reshape(
        tf.concat([x, filling], 0),
        tf.concat([[parts, size], tf.shape(x)[1:]], 0),
    )
    filled = tf.ensure_shape(filled, [None, size, *x.shape[1:]])
    found = tf.map_fn(function, filled, fn_output_signature=output)
    found = tf.reshape(found, tf.concat([[-1], tf.shape(found)[2:]], 0))
    return tf.ensure_shape(found[:count], [x.shape[0], *output.shape[1:]])


def for_evaluation(
    logits: Logits,
    classes: int,
    shape: Sequence[int],
    device: str | None = None,
) -> Logits:
    """Prepares a model for the device on which an evaluation runs.

    On a CPU the model processes blocks of examples. On a GPU it processes whole
    batches, and XLA compiles the loops of attacks.

    Args:
        logits: The model.
        classes: Number of logits.
        shape: Shape of an example.
        device: Name of the device, to which the weights of a Keras model are
            copied. None means TensorFlow's own choice, without a copy.

    Returns:
        A new `Logits`, which shares no traced function with the old one.
    """
    function = logits.function
    if device is not None and isinstance(function, NetworkFunction):
        with tf.device(device):
            function = function.copied()
    gpu = tf.config.list_logical_devices("GPU")
    if gpu and (device is None or "GPU" in device.upper()):
        rows, jit_loops = None, bool(logits.jit_compile)
    else:
        small = math.prod(shape) <= _SMALL
        rows = logits.rows or (_BLOCK_ROWS_OF_SMALL if small else _BLOCK_ROWS)
        jit_loops = False
    made = Logits(function, logits.jit_compile, rows, jit_loops, classes)
    made.rounding = max(made.rounding, rounding(function))
    made.together, made.random = logits.together, logits.random
    return made


def rounding(function: Any) -> float:
    """Returns the relative rounding error of half precision, 0 without it."""
    network = getattr(function, "model", None)
    layers = flattened(network) if isinstance(network, keras.Model) else []
    return max(
        (HALVES.get(layer.compute_dtype, 0.0) for layer in layers), default=0.0
    )


def use_xla(jit_compile: bool | str = "auto") -> bool:
    """Returns whether XLA compiles a network's gradients.

    Args:
        jit_compile: A bool, or "auto" to compile them on GPUs only. On CPUs,
            graphs that are not compiled were faster (see BUILD_NOTES.md).

    Raises:
        ValueError: If `jit_compile` is something else.

    Example:
        >>> use_xla(True)
        True
    """
    if jit_compile == "auto":
        return bool(tf.config.list_logical_devices("GPU"))
    if not isinstance(jit_compile, (bool, np.bool_)):
        raise ValueError(
            "jit_compile must be True, False or auto. "
            f"Received: jit_compile={jit_compile}"
        )
    return bool(jit_compile)


def count_classes(logits: Logits, example: np.ndarray) -> int:
    """Returns the number of a model's logits.

    Args:
        logits: The model.
        example: Float array (1, ...), an example.

    Raises:
        ValueError: If the model does not take the example, or does not return
            logits (1, classes) for it.
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
    return int(shape[1])


def traceable(logits: Logits, example: np.ndarray) -> bool:
    """Returns whether `tf.function` can trace a model.

    Args:
        logits: The model.
        example: Float array (1, ...), an example.
    """
    predict = tf.function(
        logits, jit_compile=logits.jit_compile, autograph=False
    )
    try:
        predict(tf.convert_to_tensor(example))
    except Exception:
        # A callable that uses NumPy or `.numpy()` can raise anything here; it
        # has returned its logits eagerly before.
        return False
    return True
