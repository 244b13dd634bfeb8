"""SGD with the weight decay that the papers use; the momentum of optimizers."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfsam.support.validators import check_number
from tfsam.training.decay_rules import FLAG_NAMES
from tfsam.training.decay_rules import exclude
from tfsam.training.decay_rules import pattern


@keras.saving.register_keras_serializable(package="tfsam")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum and coupled weight decay.

        g <- gradient + weight_decay * w
        m <- momentum * m + g
        w <- w - learning_rate * m
             w - learning_rate * (g + momentum * m) with nesterov

    The decay is the gradient of weight_decay / 2 * ||w||^2 at the unperturbed
    weights, and a new learning rate takes effect from its first step on. In
    `keras.optimizers.SGD` the decay is decoupled: it shrinks the weights once a
    step, outside of the momentum buffer, which is ten times less at momentum
    0.9. Its buffer also contains the learning rate, so that a drop of the rate
    takes full effect only after some ten steps.

    Args:
        learning_rate: a number, a schedule, or a callable.
        momentum: in [0, 1].
        weight_decay: coefficient of the decay, >= 0. Weights that are named to
            `exclude_from_weight_decay` do not decay.
        nesterov: whether to use Nesterov's momentum.
        decay_exclude: weights that do not decay: "none", "one_dimensional" for
            biases and the weights of normalisation, or a regular expression for
            their paths.
        global_clipnorm: largest norm of the gradient of all weights together;
            None does not clip.
        name: the optimizer's name.
        **kwargs: arguments of `keras.optimizers.Optimizer` (clipnorm, use_ema,
            gradient_accumulation_steps, ...).

    Attributes:
        weight_decay: coefficient of the decay; 0.0 without decay.
        momentum_sign: the sign of the gradients in the momentum buffer.

    Raises:
        ValueError: if momentum or weight_decay is out of range, or
            decay_exclude is no rule.

    Example:
        >>> import keras, tfsam
        >>> w = keras.Variable([1.0])
        >>> optimizer = tfsam.SGD(0.1, momentum=0.9, weight_decay=0.5)
        >>> optimizer.apply([keras.ops.ones(1)], [w])
        >>> round(float(w[0]), 4)  # 1 - 0.1 * (1 + 0.5 * 1)
        0.85
    """

    momentum_sign: Any = 1
    flag_names: Mapping[str, str] = FLAG_NAMES
    # Whether a learning rate and a decay that suit SGD suit this optimizer.
    is_sgd = True

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        weight_decay: float | None = 0.0,
        nesterov: bool = False,
        name: str = "sgd",
        *,
        decay_exclude: str = "none",
        global_clipnorm: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            global_clipnorm=global_clipnorm,
            name=name,
            **kwargs,
        )
        self.momentum = check_number("momentum", momentum, 0, 1)
        # Keras's own default is None.
        self.weight_decay = check_number("weight_decay", weight_decay or 0.0)
        self.nesterov = nesterov
        pattern(decay_exclude)
        self.decay_exclude = decay_exclude

    def build(self, variables: list[Any]) -> None:
        """Creates a momentum buffer for each variable, if there is momentum.

        Args:
            variables: the model's trainable variables.
        """
        if self.built:
            return
        exclude(self, variables)
        super().build(variables)
        if self.momentum:
            self.momentums = [
                self.add_variable_from_reference(v, name="momentum")
                for v in variables
            ]

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Updates one variable.

        Args:
            gradient: tensor of the variable's shape.
            variable: the `keras.Variable`.
            learning_rate: scalar tensor.
        """
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = self._with_decay(gradient, variable)
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            self.assign(buffer, self.momentum * buffer + gradient)
            if self.nesterov:
                gradient += self.momentum * buffer
            else:
                gradient = ops.convert_to_tensor(buffer)
        self.assign_sub(variable, learning_rate * gradient)

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Does nothing; Keras would apply a decoupled decay here."""

    def _with_decay(self, gradient: Any, variable: Any) -> Any:
        """Returns the gradient, in the variable's dtype, plus the decay."""
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient += self.weight_decay * variable
        return gradient

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        config.update(
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        if self.decay_exclude != "none":
            config["decay_exclude"] = self.decay_exclude
        return config


def momentum_of(
    optimizer: Any, variables: Sequence[Any]
) -> list[tf.Tensor] | None:
    """Returns an optimizer's momentum, pointing uphill as the gradients do.

    An optimizer of another package states that it has one by `momentums`, a
    buffer for each variable that it was built with, and `momentum_sign`, 1 if
    the buffers are sums of gradients, or -1 of their negatives, of any length.

    Args:
        optimizer: a built Keras optimizer, or one that wraps it.
        variables: trainable `keras.Variable`s that the optimizer knows.

    Returns:
        List of tensors of the variables' shapes; None if it has no momentum.

    Example:
        >>> import keras
        >>> w = keras.Variable([1.0])
        >>> optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        >>> optimizer.apply([keras.ops.ones(1)], [w])
        >>> momentum_of(optimizer, [w])[0].numpy().tolist()
        [0.5]
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    sign = getattr(optimizer, "momentum_sign", None)
    if sign is None and isinstance(optimizer, keras.optimizers.SGD):
        sign = -1  # It sums the steps that it makes.
    buffers = getattr(optimizer, "momentums", None)
    if not sign or not buffers:
        return None
    found = [
        tf.convert_to_tensor(buffers[optimizer._get_variable_index(v)])
        for v in variables
    ]
    return found if sign > 0 else [-buffer for buffer in found]
