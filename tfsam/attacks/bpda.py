"""BPDA, the gradients of another function in place of masked ones.

Athalye et al., 2018, "Obfuscated Gradients Give a False Sense of Security",
section 4.1: the backward pass differentiable approximation. A defence that
cannot be differentiated, such as a quantisation or a JPEG compression in front
of the network, stops gradient attacks without making the network robust. BPDA
runs the defence in the forward pass and differentiates an approximation of it,
by default the identity (the straight-through estimator), in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def bpda(
    forward: Callable[[tf.Tensor], Any],
    backward: Callable[[tf.Tensor], Any] | None = None,
) -> Callable[[Any], tf.Tensor]:
    """Combines the values of a function with the gradients of another.

    To attack a network behind a defence, evaluate both as one function:

        jpeg = tfsam.bpda(compress)
        tfsam.evaluate(lambda x: network(jpeg(x)), data, ["pgd"])

    `forward` may be any code. NumPy code needs `tf.numpy_function`, without
    which the attack cannot be traced and is slow:

        lambda x: tf.numpy_function(compress, [x], x.dtype)

    XLA cannot compile `tf.numpy_function`: on a GPU, evaluate such a model with
    `jit_compile=False`.

    If the defended model is a program as a whole, such as a SavedModel, let
    `forward` be the program and `backward` the network without the defence, or
    a network like it.

    A SavedModel keeps the gradient, unless `forward` has NumPy code, which
    cannot be exported. Then, export the network alone, and put the defence in
    front of what was loaded: `lambda x: loaded(tfsam.bpda(compress)(x))`.

    Args:
        forward: Function from a float tensor to a float tensor or an array.
            Nothing is differentiated through it: its own weights get no
            gradients.
        backward: Differentiable function from the same tensor to a finite
            tensor of the shape of forward's result. None means the identity,
            with which `forward` must keep the shape.

    Returns:
        A function from a tensor, or an array, to a tensor of forward's value,
        shape and dtype, whose gradient is that of `backward`.

    Raises:
        TypeError: If an argument is not callable.
        ValueError: By the returned function, if the two results are of
            different shapes, or forward's is not of a floating-point dtype. In
            a graph, shapes that are only known at run time raise an
            InvalidArgumentError.

    Example:
        >>> import tensorflow as tf
        >>> rounded = bpda(tf.round)
        >>> x = tf.constant([0.2, 0.9])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     z = rounded(x)
        >>> z.numpy().tolist(), tape.gradient(z, x).numpy().tolist()
        ([0.0, 1.0], [1.0, 1.0])
    """
    for name, function in (("forward", forward), ("backward", backward)):
        if not callable(function) and (name, function) != ("backward", None):
            raise TypeError(
                f"{name} must be a function of a tensor. "
                f"Received: {name}={function}"
            )

    def straight_through(x: Any) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        value = tf.convert_to_tensor(forward(tf.stop_gradient(x)))
        passed = x if backward is None else tf.convert_to_tensor(backward(x))
        value = _checked(value, passed)
        # Exactly zero, with a gradient; not `tf.custom_gradient`, which a
        # SavedModel drops and a graph never frees.
        zero = passed - tf.stop_gradient(passed)
        return tf.stop_gradient(value) + tf.cast(zero, value.dtype)

    return straight_through


def _checked(value: tf.Tensor, passed: tf.Tensor) -> tf.Tensor:
    """Checks forward's result, and gives it the shape of backward's."""
    if not value.dtype.is_floating:
        raise ValueError(
            "forward must return floats. "
            f"Received: a result of dtype {value.dtype.name}"
        )
    if not value.shape.is_compatible_with(passed.shape):
        raise ValueError(
            "forward and backward must return the same shape, and without "
            "backward, forward must keep the shape of its input. Received: "
            f"forward's {value.shape}, backward's {passed.shape}"
        )
    if not (value.shape.is_fully_defined() and passed.shape == value.shape):
        same = tf.debugging.assert_equal(
            tf.shape(value),
            tf.shape(passed),
            "forward and backward must return the same shape.",
        )
        with tf.control_dependencies([] if same is None else [same]):
            value = tf.ensure_shape(value, passed.shape)
    return value


@keras.saving.register_keras_serializable(package="tfsam")
class BPDA(keras.layers.Layer):
    """A layer whose backward pass is another function's; see `bpda`.

    The layer computes `forward` and has the gradients of `backward`. Both may
    be functions or layers, whose weights are saved but not trained. Pixels keep
    their dtype under a mixed-precision policy.

    To be saved in a `.keras` file, a function must be registered, by
    `keras.saving.register_keras_serializable`; a lambda cannot be saved.

    Args:
        forward: Function or layer from a float tensor to a float tensor.
        backward: Differentiable function or layer from the same tensor to a
            tensor of the same shape as forward's. None means the identity.
        **options: Arguments of `keras.layers.Layer`.

    Raises:
        TypeError: If `forward` or `backward` is not callable.

    Example:
        >>> import keras
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), BPDA(tf.round), keras.layers.Dense(2)]
        ... )
        >>> network(tf.zeros([1, 4])).shape.as_list()
        [1, 2]
    """

    def __init__(
        self,
        forward: Callable[[tf.Tensor], Any],
        backward: Callable[[tf.Tensor], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{"autocast": False, **options})
        self.forward = forward
        self.backward = backward
        self._replaced = bpda(forward, backward)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Computes `forward`, differentiated as `backward`.

        Args:
            x: Float tensor (batch, ...).
        """
        return self._replaced(x)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name."""
        parts = {"forward": self.forward, "backward": self.backward}
        serialize = keras.saving.serialize_keras_object
        return super().get_config() | {
            name: part if part is None else serialize(part)
            for name, part in parts.items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BPDA":
        """Constructs a layer from the result of `get_config`.

        Args:
            config: The constructor's arguments by name.
        """
        deserialize = keras.saving.deserialize_keras_object
        parts = {
            name: deserialize(config[name])
            for name in ("forward", "backward")
            if config[name] is not None
        }
        return cls(**{**config, **parts})
