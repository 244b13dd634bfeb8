"""GSAM: SAM that also minimises the gap between perturbed and plain loss."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_interval
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import check_layers
from tfsam.weights.base import without
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class GSAM(WeightPerturbation):
    """Surrogate gap guided SAM (Zhuang et al., 2022, algorithm 1).

    The descent direction is g~ - alpha * g_perp. Here g~ is the gradient at
    SAM's perturbed weights, and g_perp the component of the gradient at w that
    is orthogonal to g~. The radius follows the learning rate, from `rho` at the
    highest learning rate to `rho_min` at the lowest.

    Args:
        rho: Largest radius, >= 0.
        alpha: Weight of the surrogate gap, >= 0; with 0 it equals SAM.
        rho_min: Smallest radius, in [0, rho]. None keeps the radius at `rho`.
        learning_rates: (lowest, highest) learning rate of the schedule. None
            means 0 and the highest learning rate so far.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> gsam = GSAM(rho=0.05, alpha=0.5)
        >>> plain = [tf.constant([1.0, 2.0])]
        >>> perturbed = [tf.constant([1.0, 0.0])]
        >>> combined, _ = gsam.combine(plain, perturbed, [], None)
        >>> combined[0].numpy().tolist()
        [1.0, -1.0]
    """

    def __init__(
        self,
        rho: float = 0.05,
        *,
        alpha: float = 0.4,
        rho_min: float | None = None,
        learning_rates: tuple[float, float] | None = None,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.alpha = check_number("alpha", alpha)
        if rho_min is not None and check_number("rho_min", rho_min) > rho:
            raise ValueError(
                f"rho_min must be at most rho. Received: rho_min={rho_min}"
            )
        self.rho_min = None if rho_min is None else float(rho_min)
        self.learning_rates = check_interval("learning_rates", learning_rates)
        for rate in self.learning_rates or ():
            check_number("learning_rates", rate)
        self.layers = check_layers(layers)

    def init(self, weights: Tensors, seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the highest learning rate so far, 0, if it is needed."""
        follows = self.rho_min is not None and self.learning_rates is None
        return [tf.zeros(())] if follows else []

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights as SAM does, by the current radius."""
        radius = self.rho
        if self.rho_min is not None:
            rate = tf.cast(step.learning_rate, tf.float32)
            if self.learning_rates is None:
                state = [tf.maximum(state[0], rate)]
                low, high = 0.0, state[0]
            else:
                low, high = self.learning_rates
            share = tf.math.divide_no_nan(rate - low, high - low)
            share = tf.clip_by_value(share, 0.0, 1.0)
            radius = self.rho_min + (self.rho - self.rho_min) * share
        return steepest(weights, gradients, radius), state

    def combine(
        self,
        gradients: Tensors,
        perturbed_gradients: Tensors,
        state: Tensors,
        step: Step,
    ) -> tuple[Tensors, Tensors]:
        """Subtracts alpha * g_perp from g~."""
        if not self.alpha:
            return perturbed_gradients, state
        rest = without(gradients, perturbed_gradients)
        return [
            p - self.alpha * r
            for p, r in zip(perturbed_gradients, rest, strict=True)
        ], state
