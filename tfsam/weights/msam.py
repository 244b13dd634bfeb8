"""Momentum-SAM: SAM along the momentum, which takes a single pass."""

from typing import Any

import keras
import tensorflow as tf

from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import check_layers
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class MSAM(WeightPerturbation):
    """Momentum-SAM (Becker et al., 2025, algorithm 1).

    The only pass of a step is made at w - rho * v / (||v||_2 + 1e-12), with a
    single norm over all weights that are perturbed. v is the momentum that the
    optimizer has gathered before the step, a sum of gradients; at the first
    step it is zero, and nothing is perturbed. So the step costs what a step of
    standard training costs.

    The loss, the metrics and the BatchNorm statistics of training are those at
    the perturbed weights, and an attack is made on them too. The weights
    themselves stay at w, for validation, averages and checkpoints. The authors'
    code adds the weight decay at the perturbed weights, `tfsam.SGD` at w.

    `keras.optimizers.SGD` keeps minus the learning rate times v, `tfsam.SGD`
    v itself; both may use Nesterov's momentum. Other optimizers are refused.
    All parts of a batch, and all steps whose gradients the optimizer
    accumulates, are perturbed by the same v.

    Args:
        rho: Radius, >= 0; with 0, training is standard. The default is that of
            the authors' code. They use 3 for a WRN-16-4 on CIFAR-100 with a
            learning rate of 0.5.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range. In `fit`, if the
            optimizer has no momentum, or a layer assigns a perturbed weight.

    Example:
        >>> import tensorflow as tf
        >>> weights, momentum = [tf.zeros(2)], [tf.constant([3.0, 4.0])]
        >>> (moved,) = MSAM(rho=0.5).before(weights, momentum, [], None)
        >>> print(moved.numpy())
        [-0.3 -0.4]
    """

    source = "Becker et al., 2025"
    extra_passes = 0.0
    needs_momentum = True

    def __init__(self, rho: float = 0.3, *, layers: str = "all") -> None:
        self.rho = check_number("rho", rho)
        self.layers = check_layers(layers)

    def before(
        self, weights: Tensors, momentum: Tensors, state: Tensors, step: Step
    ) -> list[tf.Tensor]:
        """Moves the weights against the momentum."""
        return steepest(weights, momentum, -self.rho)

    def due(self, state: Tensors, step: Step) -> Any:
        """Returns False: there is no second pass."""
        return False

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Returns the weights as they are."""
        return list(weights), state
