"""N-FGSM, a single step from noise that is larger than the ball.

de Jorge et al., 2022, "Make Some Noise: Reliable and Efficient Single-Step
Adversarial Training", algorithm 1. The attack is for training: its images leave
the ball of radius epsilon, so that an evaluation rejects it.
"""

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import setting
from tfsam.attacks.per_example import where
from tfsam.support.validators import check_number


@keras.saving.register_keras_serializable(package="tfsam")
class NFGSM(Attack):
    """N-FGSM: a step of FGSM from noise, without a projection onto the ball.

    The attack draws eta uniformly in (-noise * epsilon, noise * epsilon), clips
    x + eta to the bounds, and adds step_size times the sign of the gradient
    there. Only the bounds limit the result: a pixel may be
    noise * epsilon + step_size from x. Projected onto the ball, it would be
    another method, `FGSM(random_start=True)`, which collapses at sizes of
    epsilon where this one does not (de Jorge et al., 2022).

    With noise=0 and step_size=epsilon it is `FGSM`.

    Args:
        epsilon: Radius of the ball that training is to be robust in, in the
            units of x, >= 0.
        norm: "linf".
        step_size: Length of the step, >= 0. None means epsilon.
        noise: Largest size of the noise, in units of epsilon, >= 0.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> attack = NFGSM(epsilon=0.1)
        >>> x_adv = attack(lambda x: 10 * x, x, y, seed=0)
        >>> bool(tf.reduce_max(tf.abs(x_adv - x)) < 0.3)
        True
    """

    in_graph = True
    follows_gradient = False
    leaves_ball = True
    needs_classes = False
    norms = ("linf",)
    selective = True
    tensor_epsilon = True
    example_epsilons = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        step_size: float | None = None,
        noise: float = 2.0,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
        self.step_size = step_size
        self.noise = check_number("noise", noise)

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the step's end, inside the bounds.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float tensor (batch, ...).
            y: Class numbers, or one-hot or smoothed labels; labels of another
                kind for a compiled loss that takes them.
            seeds: int32 tensor (batch, 2).
        """
        active = examples(logits_fn, x)
        start = self._start(x, seeds)
        loss = setting(logits_fn, "loss") or losses.cross_entropy
        slope, _ = input_gradient(logits_fn, loss)(start, y, active)
        step_size = self.step_size
        if step_size is None:
            step_size = self.radius(x)
        return where(active, self.clip(start + step_size * tf.sign(slope)), x)

    def _start(self, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns x with noise, inside the bounds."""
        noise = geometry.random_point(
            seeds, tf.shape(x), 1.0, self.norm, x.dtype
        )
        return self.clip(x + self.noise * self.radius(x) * noise)
