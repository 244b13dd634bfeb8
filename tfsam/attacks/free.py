"""Free adversarial training: perturbations from the gradients of training.

Shafahi et al., 2019, "Adversarial Training for Free!", algorithm 1. Training
uses each batch several times in a row. Each time, a single backward pass gives
the gradients of the weights and of the pixels, so that a perturbation costs no
pass of its own. `tfsam.training.replays` makes these steps.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks.base import Bounds
from tfsam.attacks.gradient import PGD
from tfsam.support.validators import check_count


@keras.saving.register_keras_serializable(package="tfsam")
class FreeAT(PGD):
    """The perturbation of free adversarial training (Shafahi et al., 2019).

    In training there is an offset for each position in a batch, which begins at
    0 and is kept from use to use and from batch to batch. The network sees the
    images x + offset, clipped to the bounds; then offset becomes
    offset + step_size * sign(gradient), clipped to the ball, while the weights
    take an optimizer's step. The gradient is that of the training pass at these
    images, in training mode, whatever the model's `attack_mode`. A batch that
    is smaller than `batch_size` uses the first offsets.

    An epoch of `fit` is a pass over the data with `replays` steps of the
    optimizer for each batch. It costs `replays` epochs of standard training,
    by which the paper divides the number of epochs.

    Outside of training, where the weights do not change, it is `PGD` with
    `replays` steps of this size from x.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf".
        batch_size: Largest number of examples in a batch, >= 1.
        replays: Number of times that a batch is used, >= 1.
        step_size: Length of a step, >= 0. None means epsilon.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> attack = tfsam.FreeAT(epsilon=8 / 255, batch_size=32, replays=4)
        >>> model = tfsam.RobustModel(network, perturb_inputs=attack)
        >>> model.compile(
        ...     tfsam.SGD(0.1),
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> x, y = images[:64] / 16, labels[:64]
        >>> history = model.fit(x, y, batch_size=32, epochs=1, verbose=0)
        >>> int(model.optimizer.iterations)
        8
    """

    collapses = True  # Andriushchenko and Flammarion, 2020.
    norms = ("linf",)
    replays = 8

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        batch_size: int = 128,
        replays: int = 8,
        step_size: float | None = None,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        replays = check_count("replays", replays, 1)
        super().__init__(epsilon, norm, replays, step_size, False, bounds)
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.replays = replays

    @property
    def gradients(self) -> int:
        """Number of gradients of its own: none, they are those of training."""
        return 0

    def moved(self, offset: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        """Returns the offsets for the next use of a batch.

        Args:
            offset: Float tensor (batch, ...), the offsets within the ball.
            slope: Tensor of the same shape, the gradient of the loss at the
                images with these offsets. Only its signs count.
        """
        step_size: Any = self.step_size
        if step_size is None:
            step_size = self._default_step_size(self.epsilon)
        reached = offset + step_size * tf.sign(slope)
        return tf.clip_by_value(reached, -self.epsilon, self.epsilon)

    def _default_step_size(self, epsilon: Any) -> Any:
        return epsilon
