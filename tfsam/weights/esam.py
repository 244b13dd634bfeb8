"""ESAM: SAM on a random part of the weights and a selection of the examples."""

import keras
import tensorflow as tf

from tfsam.support.validators import check_fraction
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import check_layers
from tfsam.weights.sam import steepest


@keras.saving.register_keras_serializable(package="tfsam")
class ESAM(WeightPerturbation):
    """Efficient SAM (Du et al., 2022, algorithm 1).

    Stochastic weight perturbation: each weight tensor moves with probability
    `weight_fraction`; the tensors that move do so by rho / weight_fraction in
    total. This follows the authors' code; their paper draws each number
    separately. Sharpness-sensitive data selection: the second pass uses the
    examples whose loss the perturbation raised most. Of equal ones, the first
    in the batch are used.

    Args:
        rho: Radius of SAM's ball, >= 0.
        weight_fraction: Probability that a weight tensor moves, in (0, 1]; the
            paper's beta.
        sample_fraction: Part of the batch in the second pass, in (0, 1], at
            least one example; the paper's gamma.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> esam = ESAM(rho=0.5, sample_fraction=0.5)
        >>> before, after = tf.zeros([4]), tf.constant([0.1, 0.4, 0.2, 0.3])
        >>> esam.select(before, after, [], None).numpy().tolist()
        [1, 3]
    """

    def __init__(
        self,
        rho: float = 0.05,
        *,
        weight_fraction: float = 0.6,
        sample_fraction: float = 0.5,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.weight_fraction = check_fraction(
            "weight_fraction", weight_fraction
        )
        self.sample_fraction = check_fraction(
            "sample_fraction", sample_fraction
        )
        self.layers = check_layers(layers)
        # None saves the forward pass whose losses the selection compares.
        self.select = None if self.sample_fraction == 1 else self._hardest

    @property
    def extra_passes(self) -> float:
        """Passes in addition to the first: the selection's and SAM's own."""
        return float(1 / 3 + self.sample_fraction)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves a random part of the weight tensors along the gradient."""
        drawn = tf.random.stateless_uniform(
            [len(weights)], step.seed, alg="philox"
        )
        chosen = tf.unstack(tf.cast(drawn < self.weight_fraction, tf.float32))
        masked = [
            g * tf.cast(c, g.dtype)
            for g, c in zip(gradients, chosen, strict=True)
        ]
        return steepest(weights, masked, self.rho / self.weight_fraction), state

    def _hardest(
        self,
        losses: tf.Tensor,
        perturbed_losses: tf.Tensor,
        state: Tensors,
        step: Step,
    ) -> tf.Tensor:
        """Returns the positions of the examples whose losses rose most."""
        batch = losses.shape[0]
        if batch is None:
            size = tf.shape(losses)[0]
            part = self.sample_fraction * tf.cast(size, tf.float32)
            count = tf.maximum(tf.cast(tf.round(part), tf.int32), 1)
            # A replica's part of the last batch may be empty.
            count = tf.minimum(count, size)
        else:
            count = max(round(self.sample_fraction * batch), 1)
        return tf.math.top_k(perturbed_losses - losses, count).indices
