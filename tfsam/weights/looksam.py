"""LookSAM: SAM whose second pass is made now and then, and remembered."""

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import without
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class LookSAM(WeightPerturbation):
    """LookSAM (Liu et al., 2022, algorithm 1), global, without layer scaling.

    Each `every`-th training step is SAM's, and keeps g_v, the part of its
    gradient that is orthogonal to the gradient at w: what leads to flatness
    changes slowly. The steps between descend by
    g + alpha * ||g|| / ||g_v|| * g_v, without a second pass.

    Args:
        rho: radius of SAM's ball, >= 0.
        every: training steps from one second pass to the next, >= 1; 1 is SAM.
        alpha: weight of g_v, >= 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, rho=0.05, *, every=5, alpha=0.7):
        self.rho = check_number("rho", rho)
        self.every = check_count("every", every, 1)
        self.alpha = check_number("alpha", alpha)

    def init(self, weights, seed):
        """The direction g_v: one tensor a weight."""
        return [tf.zeros(w.shape, w.dtype) for w in weights]

    def due(self, state, step):
        """Whether this is one of SAM's steps."""
        return self.every == 1 or step.count % self.every == 0

    def perturb(self, weights, gradients, state, step):
        """Returns SAM's weights, and the state."""
        return steepest(weights, gradients, self.rho), state

    def combine(self, gradients, perturbed_gradients, state, step):
        """SAM's gradient and a new g_v; or the gradient plus the old g_v."""
        if perturbed_gradients is not None:
            return perturbed_gradients, without(perturbed_gradients, gradients)
        # Where g_v is zero, as before the first of SAM's steps, so is this.
        size = self.alpha * global_norm(gradients)
        return along(
            gradients, state, size / (global_norm(state) + TINY)
        ), state
