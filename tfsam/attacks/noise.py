"""Random noise of the size of the budget, as a gradient-free baseline.

If noise breaks more examples than a gradient attack does, the network masks its
gradients: it is not robust, and the gradient attack was misled.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.attempts import repeat
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import score
from tfsam.attacks.seeds import next_seeds
from tfsam.support.validators import check_count


class _Noise(Attack):
    """Base class of noise attacks: draws noise for the survivors, repeatedly.

    Args:
        epsilon: Size of the noise in `norm`, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        samples: Number of draws, >= 1.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    in_graph = True
    norms = geometry.NORMS
    gradient_free = True
    selective = True
    tensor_epsilon = True
    example_epsilons = True
    # The norm of the ball in which noise is drawn, before it is scaled.
    ball: str

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        samples: int = 10,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.samples = check_count("samples", samples, 1)

    @property
    def needs_classes(self) -> bool:
        """Whether it needs class labels: to choose among several draws."""
        return self.samples > 1

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the first draw that is misclassified, else the last."""

        def attempt(
            run: tf.Tensor, active: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            noise = self._noise(next_seeds(seeds, run), tf.shape(x), x.dtype)
            x_adv = self.clip(x + radius * noise)
            if self.samples == 1 or is_surrogate(logits_fn):
                return x_adv, active
            logits = predict(logits_fn, x_adv, active)
            return x_adv, active & losses.misclassified(logits, y)

        radius = tf.cast(self.radius(x), x.dtype)
        active = examples(logits_fn, x)
        best = score(logits_fn, y, active)
        return repeat(attempt, self.samples, x, active, best)

    def _noise(self, seeds: tf.Tensor, shape: Any, dtype: Any) -> tf.Tensor:
        """Draws noise of size 1 in `norm`; that of l-inf is at most 1."""
        noise = geometry.random_point(seeds, shape, 1.0, self.ball, dtype)
        if self.norm == self.ball == "linf":
            return noise
        size = geometry.example_norms(noise, self.norm)
        return tf.math.divide_no_nan(noise, size)


@keras.saving.register_keras_serializable(package="tfsam")
class NoiseLinf(_Noise):
    """Noise that is uniform in [-epsilon, epsilon] for each pixel.

    With norm="l2" or "l1", the noise is scaled to length epsilon.

    Args:
        epsilon: Size of the noise in `norm`, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        samples: Number of draws, >= 1; each is made for the survivors of the
            previous ones.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.fill([1, 4], 0.5), tf.constant([0])
        >>> x_adv = NoiseLinf(epsilon=0.1)(lambda x: x, x, y, seed=0)
        >>> bool(tf.reduce_max(tf.abs(x_adv - x)) < 0.1)
        True
    """

    ball = "linf"


@keras.saving.register_keras_serializable(package="tfsam")
class NoiseL2(_Noise):
    """Noise of size epsilon, in a direction that is uniform on the sphere.

    With norm="linf", the noise is scaled so that its largest entry is epsilon,
    with norm="l1" so that the sizes of its entries add up to epsilon.

    Args:
        epsilon: Size of the noise in `norm`, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        samples: Number of draws, >= 1; each is made for the survivors of the
            previous ones.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.fill([1, 4], 0.5), tf.constant([0])
        >>> x_adv = NoiseL2(epsilon=0.1, norm="l2")(lambda x: x, x, y, seed=0)
        >>> print(tf.norm(x_adv - x).numpy().round(3))
        0.1
    """

    ball = "l2"


@keras.saving.register_keras_serializable(package="tfsam")
class NoiseL1(_Noise):
    """Noise of size epsilon, uniform on the surface of the l1 ball.

    A few entries are much larger than the others, as in l1 attacks. With
    norm="l2" or "linf", the noise is scaled to length epsilon in that norm.

    Args:
        epsilon: Size of the noise in `norm`, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        samples: Number of draws, >= 1; each is made for the survivors of the
            previous ones.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.fill([1, 4], 0.5), tf.constant([0])
        >>> x_adv = NoiseL1(epsilon=0.1, norm="l1")(lambda x: x, x, y, seed=0)
        >>> print(tf.reduce_sum(tf.abs(x_adv - x)).numpy().round(3))
        0.1
    """

    ball = "l1"
