"""Friendly SAM: SAM along the part of the gradient that is new in the batch."""

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import averaged
from tfsam.weights.base import check_layers
from tfsam.weights.base import empty_averages

# A direction below this share of the gradient is rounding.
_ROUNDING = 1e-6


@keras.saving.register_keras_serializable(package="tfsam")
class FriendlySAM(WeightPerturbation):
    """Friendly SAM (Li et al., 2024, algorithm 1).

    The perturbed weights are w + rho * d / ||d||_2 with d = g - sigma * m. Here
    m is the moving average of the gradients of earlier batches, an estimate of
    the gradient of all data; d is the noise of this batch. The first m is the
    first gradient, and then m <- decay * m + (1 - decay) * g.

    As in the authors' code, d is computed with the m of the step before. The
    paper subtracts the new m instead: for sigma = 1 that d is `decay` times
    this one, and has the same direction. Where d is below 1e-6 of the
    gradient, as on batches that repeat, nothing is perturbed: rounding would
    become a direction.

    Args:
        rho: Radius, >= 0.
        sigma: Share of the average that is subtracted, >= 0; with 0 it equals
            SAM. The authors use 1.
        decay: Share of the old average that is kept, in [0, 1], the paper's
            lambda. The defaults of `rho`, `sigma` and `decay` are from the
            authors' published run of a ResNet-18 on CIFAR-100; the default of
            `decay` in their script is 0.95.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.zeros(2)], [tf.constant([3.0, 4.0])]
        >>> state = [tf.constant([3.0, 0.0]), tf.ones(())]
        >>> friendly = FriendlySAM(rho=0.5, decay=0.5)
        >>> moved, state = friendly.perturb(weights, gradients, state, None)
        >>> print(moved[0].numpy(), state[0].numpy())
        [0.  0.5] [3. 2.]
    """

    source = "Li et al., 2024"

    def __init__(
        self,
        rho: float = 0.2,
        *,
        sigma: float = 1.0,
        decay: float = 0.6,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.sigma = check_number("sigma", sigma)
        self.decay = check_number("decay", decay, 0, 1)
        self.layers = check_layers(layers)

    def init(self, weights: Tensors, seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the state of an average that holds no gradient yet."""
        return empty_averages(weights)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights along the gradient without its average."""
        *means, _ = state
        directions = [
            g - self.sigma * m for g, m in zip(gradients, means, strict=True)
        ]
        size = global_norm(directions)
        real = size > _ROUNDING * global_norm(gradients)
        scale = tf.where(real, self.rho / (size + TINY), 0)
        state = averaged(state, gradients, self.decay)
        return along(weights, directions, scale), state
