"""Balls around the weights: SAM, ASAM, Fisher SAM and AWP.

They differ in the ball's shape alone. Each moves to the point of its ball where
the linearised loss is largest.
"""

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import inner


def steepest(weights, gradients, rho):
    """The point of the ball around the weights that the gradient points to.

    Args:
        weights: a list of tensors.
        gradients: a list of tensors of their shapes.
        rho: the radius, a number or a scalar tensor.
    """
    norm = global_norm(gradients)
    # A cast would take a Python number through float32.
    rho = tf.cast(rho, norm.dtype) if tf.is_tensor(rho) else rho
    return along(weights, gradients, rho / (norm + TINY))


@keras.saving.register_keras_serializable(package="tfsam")
class SAM(WeightPerturbation):
    """Sharpness-aware minimization (Foret et al., 2021, eq. 2).

    w + rho * g / (||g||_2 + 1e-12), with one norm over all the weights that are
    perturbed. No second-order term is kept.

    More steps (Andriushchenko and Flammarion, 2022) climb by `step_size` each,
    along a new gradient of the batch, and stay within the ball; each costs a
    pass more.

    Args:
        rho: radius of the ball of weights, >= 0; 0 is standard training.
        steps: steps of the ascent, >= 1.
        step_size: length of a step, >= 0; None is rho / steps.
        normalize: False climbs by step_size * g instead of step_size * g /
            ||g||, shorter where the loss is flat, and as far as rho at most.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, rho=0.05, *, steps=1, step_size=None, normalize=True):
        self.rho = check_number("rho", rho)
        self.steps = check_count("steps", steps, 1)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
        self.step_size = step_size
        self.normalize = bool(normalize)

    def perturb(self, weights, gradients, state, step):
        """Returns the weights at the ball's steepest point, and the state."""
        if self.steps == 1 and self.step_size is None and self.normalize:
            return steepest(weights, gradients, self.rho), state
        return self._climbed(weights, gradients, step), state

    def _climbed(self, weights, gradients, step):
        size = self.step_size
        if size is None:
            size = self.rho / self.steps
        moved = weights
        offsets = [tf.zeros_like(w) for w in weights]
        for index in range(self.steps):
            if index:
                gradients = step.gradient(moved)
            norm = global_norm(gradients)
            length = norm + TINY if self.normalize else tf.ones_like(norm)
            offsets = along(offsets, gradients, size / length)
            # Back into the ball.
            inside = tf.minimum(self.rho / (global_norm(offsets) + TINY), 1.0)
            offsets = [tf.cast(inside, o.dtype) * o for o in offsets]
            moved = [w + o for w, o in zip(weights, offsets, strict=True)]
        return moved


@keras.saving.register_keras_serializable(package="tfsam")
class ASAM(WeightPerturbation):
    """Adaptive SAM (Kwon et al., 2021, eq. 7).

    w + rho * T^2 g / (||T g||_2 + 1e-12), T the size of each weight, so that
    the ball does not change when layers are rescaled. `rho` is about ten times
    SAM's.

    Args:
        rho: radius, in units of T, >= 0.
        eta: added to |w|, so that weights near zero move too, >= 0.
        adaptive: "kernels", the authors' code: T = |w| + eta on kernels and
            normalisation scales, 1 elsewhere; or "all": T = |w| + eta on every
            weight.

    Raises:
        ValueError: if a number is negative or not finite, or `adaptive` is
            another string.
    """

    def __init__(self, rho=0.5, *, eta=0.01, adaptive="kernels"):
        self.rho = check_number("rho", rho)
        self.eta = check_number("eta", eta)
        self.adaptive = check_choice("adaptive", adaptive, ("kernels", "all"))

    def perturb(self, weights, gradients, state, step):
        """Returns the weights at the ellipsoid's steepest point, and state."""
        sizes = [
            tf.abs(w) + self.eta
            if self.adaptive == "all" or k in ("kernel", "scale")
            else tf.ones_like(w)
            for w, k in zip(weights, step.kinds, strict=True)
        ]
        scaled = [
            t * tf.cast(g, t.dtype)
            for t, g in zip(sizes, gradients, strict=True)
        ]
        scale = self.rho / (global_norm(scaled) + TINY)
        directions = [t * s for t, s in zip(sizes, scaled, strict=True)]
        return along(weights, directions, scale), state


@keras.saving.register_keras_serializable(package="tfsam")
class FSAM(WeightPerturbation):
    """Fisher SAM (Kim et al., 2022): a ball in the Fisher metric.

    w + rho * F^-1 g / sqrt(g' F^-1 g), with the paper's approximation
    F = 1 + eta * g^2, diagonal, of the batch's mean gradient; so the offset e
    has e' F e = rho^2. The metric knows the loss's scale: g is that of the mean
    loss, unscaled.

    Args:
        rho: radius, the paper's gamma, >= 0.
        eta: weight of the Fisher information, >= 0; 0 is SAM.

    Raises:
        ValueError: if a number is negative or not finite.
    """

    def __init__(self, rho=0.1, *, eta=1.0):
        self.rho = check_number("rho", rho)
        self.eta = check_number("eta", eta)

    def perturb(self, weights, gradients, state, step):
        """Returns the weights at the ellipsoid's steepest point, and state."""
        directions = [g / (1 + self.eta * tf.square(g)) for g in gradients]
        # No quotient of roots: compiled, some are of approximate ones.
        norm = tf.sqrt(inner(gradients, directions))
        return along(weights, directions, self.rho / (norm + TINY)), state


@keras.saving.register_keras_serializable(package="tfsam")
class AWP(WeightPerturbation):
    """Adversarial weight perturbation (Wu et al., 2020, eq. 8).

    Each kernel moves by gamma of its own norm: w + gamma * ||w|| * g / ||g||,
    kernel by kernel; biases and normalisation layers stay. With `PGD` inputs it
    is AT-AWP, with `TRADES` TRADES-AWP. Weight decay is taken at w, where the
    authors' code takes it at the perturbed weights.

    Args:
        gamma: size of the perturbation relative to the kernel's, >= 0: the
            authors' is 0.01, with TRADES 0.005.
        warmup_steps: training steps before the first that perturbs, >= 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, gamma=0.01, *, warmup_steps=0):
        self.gamma = check_number("gamma", gamma)
        self.warmup_steps = check_count("warmup_steps", warmup_steps)

    def due(self, state, step):
        """Whether the warm-up is over."""
        return not self.warmup_steps or step.count >= self.warmup_steps

    def perturb(self, weights, gradients, state, step):
        """Returns the weights, kernels at their own balls' edges, and state."""
        moved = []
        for w, g, k in zip(weights, gradients, step.kinds, strict=True):
            if k == "kernel":
                norm = global_norm([g]) + TINY
                (w,) = along([w], [g], self.gamma * global_norm([w]) / norm)
            moved.append(w)
        return moved, state
