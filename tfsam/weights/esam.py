"""ESAM: SAM on some of the weights, with some of the examples."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_fraction
from tfsam.support.validators import check_number
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class ESAM(WeightPerturbation):
    """Efficient SAM (Du et al., 2022, algorithm 1).

    Stochastic weight perturbation: each weight tensor moves with probability
    `weight_fraction`, all of them together by rho / weight_fraction (the
    authors' code; their paper draws each number). Sharpness-sensitive data
    selection: the second pass sees the examples whose loss the perturbation
    raised most, of equal ones the first.

    Args:
        rho: radius of SAM's ball, >= 0.
        weight_fraction: in (0, 1]; the paper's beta.
        sample_fraction: part of the batch in the second pass, in (0, 1], one
            example at least; the paper's gamma.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, rho=0.05, *, weight_fraction=0.6, sample_fraction=0.5):
        self.rho = check_number("rho", rho)
        self.weight_fraction = check_fraction(
            "weight_fraction", weight_fraction
        )
        self.sample_fraction = check_fraction(
            "sample_fraction", sample_fraction
        )
        # None saves the pass that it would choose by.
        self.select = None if self.sample_fraction == 1 else self._hardest

    def perturb(self, weights, gradients, state, step):
        """Returns the weights, those of some tensors moved, and the state."""
        drawn = tf.random.stateless_uniform(
            [len(weights)], step.seed, alg="philox"
        )
        chosen = tf.unstack(tf.cast(drawn < self.weight_fraction, tf.float32))
        masked = [
            g * tf.cast(c, g.dtype)
            for g, c in zip(gradients, chosen, strict=True)
        ]
        return steepest(weights, masked, self.rho / self.weight_fraction), state

    def _hardest(self, losses, perturbed_losses, state, step):
        """The positions of the examples whose losses rose most."""
        batch = losses.shape[0]
        if batch is None:
            size = tf.shape(losses)[0]
            part = self.sample_fraction * tf.cast(size, tf.float32)
            count = tf.maximum(tf.cast(tf.round(part), tf.int32), 1)
            # A replica's share of a last batch may be empty.
            count = tf.minimum(count, size)
        else:
            count = max(round(self.sample_fraction * batch), 1)
        return tf.math.top_k(perturbed_losses - losses, count).indices
