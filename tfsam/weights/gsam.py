"""GSAM: SAM that also closes the gap between the sharp loss and the loss."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_interval
from tfsam.support.validators import check_number
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import without
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class GSAM(WeightPerturbation):
    """Surrogate gap guided SAM (Zhuang et al., 2022, algorithm 1).

    Descends by g~ - alpha * g_perp: g~ the gradient at SAM's perturbed weights,
    g_perp the part of the gradient at w that is orthogonal to g~. The radius
    follows the learning rate, from `rho` at the highest to `rho_min` at the
    lowest.

    Args:
        rho: the largest radius, >= 0.
        alpha: weight of the surrogate gap, >= 0; 0 is SAM.
        rho_min: the smallest radius, in [0, rho]; None is `rho`, always.
        learning_rates: (lowest, highest) of the schedule; None is 0 and the
            highest that was seen so far.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, rho=0.05, *, alpha=0.4, rho_min=None, learning_rates=None
    ):
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

    def init(self, weights, seed):
        """The highest learning rate so far, where that is needed."""
        follows = self.rho_min is not None and self.learning_rates is None
        return [tf.zeros(())] if follows else []

    def perturb(self, weights, gradients, state, step):
        """Returns SAM's weights at the radius of the hour, and the state."""
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

    def combine(self, gradients, perturbed_gradients, state, step):
        """Takes what of g is orthogonal to g~ away from g~."""
        if not self.alpha:
            return perturbed_gradients, state
        rest = without(gradients, perturbed_gradients)
        return [
            p - self.alpha * r
            for p, r in zip(perturbed_gradients, rest, strict=True)
        ], state
