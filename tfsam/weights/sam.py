"""Perturbations within a ball around the weights: SAM, ASAM, Fisher SAM, AWP.

Each moves the weights to the point of its ball where the linearised loss is
largest. The methods differ only in the shape of the ball.
"""

from typing import Any

import keras
import tensorflow as tf

from tfsam.geometry import TINY
from tfsam.geometry import global_norm
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import Tensors
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import check_layers
from tfsam.weights.base import inner


def steepest(weights: Tensors, gradients: Tensors, rho: Any) -> list[tf.Tensor]:
    """Moves weights by `rho` along the gradient.

    This is the point of the l2 ball of radius `rho` around the weights where
    the linearised loss is largest.

    Args:
        weights: List of float tensors.
        gradients: List of float tensors of the same shapes.
        rho: Radius, a number or a scalar tensor, >= 0.

    Returns:
        List of tensors of the shapes and dtypes of `weights`.

    Example:
        >>> import tensorflow as tf
        >>> (moved,) = steepest([tf.zeros(2)], [tf.constant([3.0, 4.0])], 1.0)
        >>> print(moved.numpy())
        [0.6 0.8]
    """
    norm = global_norm(gradients)
    # A cast would take a Python number through float32.
    rho = tf.cast(rho, norm.dtype) if tf.is_tensor(rho) else rho
    return along(weights, gradients, rho / (norm + TINY))


@keras.saving.register_keras_serializable(package="tfsam")
class SAM(WeightPerturbation):
    """Sharpness-aware minimization (Foret et al., 2021, eq. 2).

    The perturbed weights are w + rho * g / (||g||_2 + 1e-12), with a single
    norm over all weights that are perturbed. Second-order terms are dropped.

    With `steps` > 1 (Andriushchenko and Flammarion, 2022) the weights ascend by
    `step_size` in each step, along a new gradient of the same batch, and are
    projected onto the ball. Each further step costs a forward and a backward
    pass.

    With `layers="normalization"` this is SAM-ON (Mueller et al., 2023), whose
    radius is larger: 0.5 by default in the authors' script. Their manual also
    has ASAM-ON, `ASAM(10, adaptive="all", layers="normalization")`.

    Args:
        rho: Radius of the ball of weights, >= 0. With 0, training is standard.
        steps: Number of ascent steps, >= 1.
        step_size: Length of an ascent step, >= 0. None means rho / steps.
        normalize: If False, an ascent step is step_size * g instead of
            step_size * g / ||g||: shorter where the loss is flat. The total
            still stays within `rho`.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.zeros(2)], [tf.constant([3.0, 4.0])]
        >>> moved, _ = SAM(rho=0.5).perturb(weights, gradients, [], None)
        >>> print(moved[0].numpy())
        [0.3 0.4]

        Training with SAM:

        >>> import tfsam
        >>> layers = [keras.Input((4,)), keras.layers.Dense(2)]
        >>> network = keras.Sequential(layers)
        >>> model = tfsam.RobustModel(network, perturb_weights=SAM(rho=0.2))
    """

    def __init__(
        self,
        rho: float = 0.05,
        *,
        steps: int = 1,
        step_size: float | None = None,
        normalize: bool = True,
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.steps = check_count("steps", steps, 1)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
        self.step_size = step_size
        self.normalize = bool(normalize)
        self.layers = check_layers(layers)

    @property
    def extra_passes(self) -> float:
        """Passes in addition to the first: one for each ascent step."""
        return float(self.steps)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights to the steepest point of the ball."""
        if self.steps == 1 and self.step_size is None and self.normalize:
            return steepest(weights, gradients, self.rho), state
        return self._climbed(weights, gradients, step), state

    def _climbed(
        self, weights: Tensors, gradients: Tensors, step: Step
    ) -> list[tf.Tensor]:
        """Returns the weights after all ascent steps."""
        size = self.step_size
        if size is None:
            size = self.rho / self.steps
        moved = list(weights)
        offsets = [tf.zeros_like(w) for w in weights]
        for index in range(self.steps):
            if index:
                gradients = step.gradient(moved)
            norm = global_norm(gradients)
            length = norm + TINY if self.normalize else tf.ones_like(norm)
            offsets = along(offsets, gradients, size / length)
            # Projects the offsets onto the ball.
            inside = tf.minimum(self.rho / (global_norm(offsets) + TINY), 1.0)
            offsets = [tf.cast(inside, o.dtype) * o for o in offsets]
            moved = [w + o for w, o in zip(weights, offsets, strict=True)]
        return moved


@keras.saving.register_keras_serializable(package="tfsam")
class ASAM(WeightPerturbation):
    """Adaptive SAM (Kwon et al., 2021, eq. 7).

    The perturbed weights are w + rho * T^2 g / (||T g||_2 + 1e-12), where T is
    the size of each weight. The ball does not change when layers are rescaled.
    Suitable values of `rho` are about ten times those of SAM.

    Args:
        rho: Radius in units of T, >= 0.
        eta: Added to |w|, so that weights near zero move too, >= 0.
        adaptive: "kernels", as in the authors' code: T = |w| + eta for kernels
            and for scales of normalization layers, and 1 for other weights.
            Or "all": T = |w| + eta for every weight.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.constant([2.0, 0.0])], [tf.ones(2)]
        >>> asam = ASAM(rho=0.5, eta=0.0, adaptive="all")
        >>> step = Step(["kernel"], *[0] * 3)
        >>> moved, _ = asam.perturb(weights, gradients, [], step)
        >>> print(moved[0].numpy())
        [3. 0.]
    """

    def __init__(
        self,
        rho: float = 0.5,
        *,
        eta: float = 0.01,
        adaptive: str = "kernels",
        layers: str = "all",
    ) -> None:
        self.rho = check_number("rho", rho)
        self.eta = check_number("eta", eta)
        self.adaptive = check_choice("adaptive", adaptive, ("kernels", "all"))
        self.layers = check_layers(layers)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights to the steepest point of the ellipsoid."""
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

    The perturbed weights are w + rho * F^-1 g / sqrt(g' F^-1 g). F is the
    paper's diagonal approximation 1 + eta * g^2, from the mean gradient of the
    batch. The offset e satisfies e' F e = rho^2. The result depends on the
    scale of the loss: g is the gradient of the mean loss, without a loss scale.

    Args:
        rho: Radius, the paper's gamma, >= 0.
        eta: Weight of the Fisher information, >= 0; with 0 it equals SAM.
        layers: "all", or "normalization" to perturb the weights of
            normalization layers alone.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.zeros(2)], [tf.constant([3.0, 4.0])]
        >>> fsam = FSAM(rho=0.5, eta=0.0)
        >>> moved, _ = fsam.perturb(weights, gradients, [], None)
        >>> print(moved[0].numpy())
        [0.3 0.4]
    """

    def __init__(
        self, rho: float = 0.1, *, eta: float = 1.0, layers: str = "all"
    ) -> None:
        self.rho = check_number("rho", rho)
        self.eta = check_number("eta", eta)
        self.layers = check_layers(layers)

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves the weights to the steepest point of the ellipsoid."""
        directions = [g / (1 + self.eta * tf.square(g)) for g in gradients]
        # Not a quotient of square roots: XLA computes some of them with
        # approximate roots.
        norm = tf.sqrt(inner(gradients, directions))
        return along(weights, directions, self.rho / (norm + TINY)), state


@keras.saving.register_keras_serializable(package="tfsam")
class AWP(WeightPerturbation):
    """Adversarial weight perturbation (Wu et al., 2020, eq. 8).

    Each kernel moves by gamma times its own norm: w + gamma * ||w|| * g /
    ||g||, with separate norms for each kernel. Biases and normalization layers
    are not perturbed. With `PGD` inputs this is AT-AWP, with `TRADES`
    TRADES-AWP. Weight decay is computed at w; the authors' code computes it at
    the perturbed weights.

    Args:
        gamma: Size of the perturbation relative to the kernel's norm, >= 0. The
            authors use 0.01, and 0.005 with TRADES.
        warmup_steps: Number of training steps before the first perturbation,
            >= 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> weights, gradients = [tf.constant([[6.0, 8.0]])], [tf.ones([1, 2])]
        >>> step = Step(["kernel"], *[0] * 3)
        >>> moved, _ = AWP(gamma=0.1).perturb(weights, gradients, [], step)
        >>> print(moved[0].numpy().round(3))
        [[6.707 8.707]]
    """

    def __init__(self, gamma: float = 0.01, *, warmup_steps: int = 0) -> None:
        self.gamma = check_number("gamma", gamma)
        self.warmup_steps = check_count("warmup_steps", warmup_steps)

    def due(self, state: Tensors, step: Step) -> Any:
        """Returns whether the warm-up is over."""
        return not self.warmup_steps or step.count >= self.warmup_steps

    def perturb(
        self, weights: Tensors, gradients: Tensors, state: Tensors, step: Step
    ) -> tuple[list[tf.Tensor], Tensors]:
        """Moves each kernel along its gradient, relative to its norm."""
        moved = []
        for w, g, k in zip(weights, gradients, step.kinds, strict=True):
            if k == "kernel":
                norm = global_norm([g]) + TINY
                (w,) = along([w], [g], self.gamma * global_norm([w]) / norm)
            moved.append(w)
        return moved, state
