"""VaSSO: SAM along a moving average of the gradient."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_fraction
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import averaged
from tfsam.weights.base import check_layers
from tfsam.weights.base import empty_averages
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class VaSSO(WeightPerturbation):
    """Variance-suppressed SAM (Li and Giannakis, 2023, section 3).

    The perturbed weights are w + rho * d / ||d||_2, where d is a moving average
    of the gradients, whose variance is lower than that of a single batch:
    d <- (1 - theta) * d + theta * g. The first d is the first gradient. The
    authors' code adds 1e-7 to the norm; here it is 1e-12, as for SAM.

    Args:
        rho: Radius, >= 0. The default is the authors', for WRN-28-10 on
            CIFAR-100.
        theta: Share of the new gradient in d, in (0, 1]; with 1 it equals SAM.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.zeros(2)], [tf.constant([0.0, 8.0])]
        >>> state = [tf.constant([6.0, 0.0]), tf.ones(())]
        >>> vasso = VaSSO(rho=0.5, theta=0.5)
        >>> moved, state = vasso.perturb(weights, gradients, state, None)
        >>> print(moved[0].numpy(), state[0].numpy())
        [0.3 0.4] [3. 4.]
    """

    source = "Li and Giannakis, 2023"

    def __init__(
        self, rho: float = 0.2, *, theta: float = 0.9, layers: str = "all"
    ) -> None:
        self.rho = check_number("rho", rho)
        self.theta = check_fraction("theta", theta)
        self.layers = check_layers(layers)

    def init(self, weights: Tensors, seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the state of an average that holds no gradient yet."""
        return empty_averages(weights)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights along the average of the gradients."""
        state = averaged(state, gradients, 1 - self.theta)
        return steepest(weights, state[:-1], self.rho), state
