"""Noise of the size of the budget: baselines that use no gradient.

A gradient attack that finds less than noise does was misled: the network masks
its gradients, and is not robust.
"""

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import next_seeds
from tfsam.attacks.base import repeat
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import score
from tfsam.support.validators import check_count


class _Noise(Attack):
    """Independent draws, each tried on those that stood before.

    Args:
        epsilon: the size of the noise, in the units of x, >= 0.
        norm: "linf" or "l2", in which it is measured.
        samples: number of draws, >= 1.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    gradient_free = True
    selective = True
    tensor_epsilon = True

    def __init__(self, epsilon, norm="linf", samples=10, bounds=(0.0, 1.0)):
        super().__init__(epsilon, norm, bounds)
        self.samples = check_count("samples", samples, 1)

    @property
    def needs_classes(self):
        """Whether it takes class labels only: to judge its draws by."""
        return self.samples > 1

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the first draw that is misclassified, else the last."""

        def attempt(run, active):
            noise = self._noise(next_seeds(seeds, run), tf.shape(x), x.dtype)
            x_adv = self.clip(x + tf.cast(self.epsilon, x.dtype) * noise)
            if self.samples == 1 or is_surrogate(logits_fn):
                return x_adv, active
            logits = predict(logits_fn, x_adv, active)
            return x_adv, active & losses.misclassified(logits, y)

        active = examples(logits_fn, x)
        best = score(logits_fn, y, active)
        return repeat(attempt, self.samples, x, active, best)

    def _noise(self, seeds, shape, dtype):
        """Returns noise of size 1 in `norm`."""
        raise TypeError(f"{type(self).__name__} has no _noise().")

    def _scaled(self, noise):
        size = geometry.example_norms(noise, self.norm)
        return tf.math.divide_no_nan(noise, size)


@keras.saving.register_keras_serializable(package="tfsam")
class NoiseLinf(_Noise):
    """Noise uniform in the cube: each pixel its own, of any size up to epsilon.

    In l2, its direction, scaled to length epsilon.

    Args:
        epsilon: the size of the noise, in the units of x, >= 0.
        norm: "linf" or "l2", in which it is measured.
        samples: number of draws, each tried on those that stood before, >= 1.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def _noise(self, seeds, shape, dtype):
        noise = geometry.random_point(seeds, shape, 1.0, "linf", dtype)
        return noise if self.norm == "linf" else self._scaled(noise)


@keras.saving.register_keras_serializable(package="tfsam")
class NoiseL2(_Noise):
    """Gaussian noise scaled to size epsilon: every direction is as likely.

    In l-inf, its largest pixel is epsilon.

    Args:
        epsilon: the size of the noise, in the units of x, >= 0.
        norm: "linf" or "l2", in which it is measured.
        samples: number of draws, each tried on those that stood before, >= 1.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def _noise(self, seeds, shape, dtype):
        return self._scaled(
            geometry.random_point(seeds, shape, 1.0, "l2", dtype)
        )
