"""WSAM: SAM with the sharpness as a term of its own weight."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import all_finite
from tfsam.weights.base import check_layers
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class WSAM(WeightPerturbation):
    """Weighted SAM (Yue et al., 2023, section 3).

    The loss is the plain loss plus alpha times the sharpness, with
    alpha = gamma / (1 - gamma). Its gradient is g + alpha * (g~ - g), where g~
    is the gradient at SAM's perturbed weights.

    - Coupled, the optimizer descends along this gradient. gamma = 1/2 is SAM,
      and gamma = 0 is standard training.
    - Decoupled, as the authors recommend, the optimizer descends along g, so
      that its momentum holds no sharpness of earlier steps. After its step,
      w <- w - learning_rate * alpha * (g~ - g). For SGD without momentum the
      two are the same.

    The authors' code clips g and g~ to norm 1. Here nothing is clipped; an
    optimizer's own clipping applies to g alone if decoupled.

    Args:
        rho: Radius of SAM's ball, >= 0.
        gamma: Weight of the sharpness, in [0, 1). The default is that of the
            authors' code; their manual has 0.9.
        decoupled: Whether the sharpness is left out of the optimizer.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range. If decoupled also for
            `sub_batches` above 1 and, in `fit`, for optimizers with
            `use_ema`, `gradient_accumulation_steps` or a walk of their own.

    Example:
        >>> import tensorflow as tf
        >>> plain, perturbed = [tf.constant([1.0])], [tf.constant([3.0])]
        >>> wsam = WSAM(gamma=0.75, decoupled=False)
        >>> wsam.combine(plain, perturbed, [], None)[0][0].numpy().tolist()
        [7.0]
    """

    source = "Yue et al., 2023"
    combines_all = True

    def __init__(
        self,
        rho: float = 0.05,
        *,
        gamma: float = 0.88,
        decoupled: bool = True,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        if check_number("gamma", gamma, 0, 1) == 1:
            raise ValueError(
                f"gamma must be in [0, 1). Received: gamma={gamma}"
            )
        self.gamma = float(gamma)
        self.decoupled = bool(decoupled)
        self.layers = check_layers(layers)
        self.after = self._step_of_sharpness if self.decoupled else None

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights as SAM does."""
        return steepest(weights, gradients, self.rho), state

    def combine(
        self,
        gradients: Tensors,
        perturbed_gradients: Tensors,
        state: Tensors,
        step: Step,
    ) -> tuple[Tensors, Tensors]:
        """Returns the gradients of the weighted loss, or of the plain one."""
        pairs = list(zip(gradients, perturbed_gradients, strict=True))
        if self.decoupled:
            # An overflow of the second pass must reach the optimizer, which
            # then lowers its loss scale.
            finite = all_finite(perturbed_gradients)
            return [tf.where(finite, g, p) for g, p in pairs], state
        share = self._share()
        return [(1 - share) * g + share * p for g, p in pairs], state

    def _step_of_sharpness(
        self,
        weights: Tensors,
        gradients: Tensors,
        perturbed_gradients: Tensors,
        state: Tensors,
        step: Step,
    ) -> list[tf.Tensor]:
        """Descends along the sharpness, by the optimizer's learning rate."""
        share = self._share()
        return [
            w - tf.cast(step.learning_rate, w.dtype) * (share * (p - g))
            for w, g, p in zip(
                weights, gradients, perturbed_gradients, strict=True
            )
        ]

    def _share(self) -> float:
        """Returns alpha, the weight of the sharpness beside the loss."""
        return self.gamma / (1 - self.gamma)
