"""SGD as the paper and its peers use it, where Keras's own differs."""

import keras
from keras import ops

from tfsam.support.validators import check_number


@keras.saving.register_keras_serializable(package="tfsam")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum and coupled weight decay.

        g <- gradient + weight_decay * w
        m <- momentum * m + g
        w <- w - learning_rate * m
             w - learning_rate * (g + momentum * m) with nesterov

    `keras.optimizers.SGD(weight_decay=)` is decoupled: it shrinks the weights
    once a step, outside the momentum buffer, which at momentum 0.9 is ten times
    less. And its buffer holds the learning rate, so a drop in the rate takes
    effect only after some ten steps. Here the decay is the gradient of
    weight_decay / 2 * ||w||^2, taken at the unperturbed weights, and a new
    learning rate holds from its first step.

    Args:
        learning_rate: a number, a schedule, or a callable.
        momentum: in [0, 1].
        weight_decay: the lambda above, >= 0. `exclude_from_weight_decay` works.
        nesterov: whether to use Nesterov's momentum.
        name: the optimizer's name.
        **kwargs: those of `keras.optimizers.Optimizer` (clipnorm, use_ema,
            gradient_accumulation_steps, ...).

    Attributes:
        weight_decay: the lambda above, a float; 0.0 without decay.

    Raises:
        ValueError: if momentum or weight_decay is out of range.
    """

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.0,
        weight_decay=0.0,
        nesterov=False,
        name="sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = check_number("momentum", momentum, 0, 1)
        # Keras's own default is None.
        self.weight_decay = check_number("weight_decay", weight_decay or 0.0)
        self.nesterov = nesterov

    def build(self, variables):
        """Creates one momentum buffer a variable, if there is momentum."""
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self.momentums = [
                self.add_variable_from_reference(v, name="momentum")
                for v in variables
            ]

    def update_step(self, gradient, variable, learning_rate):
        """Moves one variable."""
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

    def _apply_weight_decay(self, variables):
        """Does nothing: Keras would decouple the decay by `weight_decay`."""

    def _with_decay(self, gradient, variable):
        """The gradient in the variable's dtype, with the decay's."""
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient += self.weight_decay * variable
        return gradient

    def get_config(self):
        """The constructor's arguments."""
        config = super().get_config()
        config.update(
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        return config
