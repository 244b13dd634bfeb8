"""LookSAM: SAM whose second pass is made every few steps and then reused."""

from typing import Any

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import check_layers
from tfsam.weights.base import without
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class LookSAM(WeightPerturbation):
    """LookSAM (Liu et al., 2022, algorithm 1), global, without layer scaling.

    Every `every`-th training step is a step of SAM. It keeps g_v, the component
    of SAM's gradient that is orthogonal to the gradient at w: this component
    leads to flat regions and changes slowly. The steps in between need no
    second pass and descend along g + alpha * ||g|| / ||g_v|| * g_v.

    Args:
        rho: Radius of SAM's ball, >= 0.
        every: Number of training steps from one second pass to the next, >= 1;
            with 1 it equals SAM.
        alpha: Weight of g_v, >= 0.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> step = Step([], None, tf.constant(4), None)
        >>> bool(LookSAM(rho=0.1, every=2).due([], step))
        True
    """

    def __init__(
        self,
        rho: float = 0.05,
        *,
        every: int = 5,
        alpha: float = 0.7,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.every = check_count("every", every, 1)
        self.alpha = check_number("alpha", alpha)
        self.layers = check_layers(layers)

    def init(self, weights: Tensors, seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the initial direction g_v: zeros of the weights' shapes."""
        return [tf.zeros(w.shape, w.dtype) for w in weights]

    def due(self, state: Tensors, step: Step) -> Any:
        """Returns whether this step is a step of SAM."""
        return self.every == 1 or step.count % self.every == 0

    @property
    def extra_passes(self) -> float:
        """Passes in addition to the first, on average over the steps."""
        return float(1 / self.every)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights as SAM does."""
        return steepest(weights, gradients, self.rho), state

    def combine(
        self,
        gradients: Tensors,
        perturbed_gradients: Tensors | None,
        state: Tensors,
        step: Step,
    ) -> tuple[Tensors, Tensors]:
        """Returns the descent direction and g_v.

        On a step of SAM these are SAM's gradient and a new g_v; on other steps
        the gradient plus the scaled g_v, and g_v unchanged.
        """
        if perturbed_gradients is not None:
            return perturbed_gradients, without(perturbed_gradients, gradients)
        # Before the first step of SAM, g_v is zero and adds nothing.
        size = self.alpha * global_norm(gradients)
        return along(
            gradients, state, size / (global_norm(state) + TINY)
        ), state
