"""Attacks along the gradient of the loss: FGSM and PGD.

Each step of `PGD._climb` moves to the steepest point of a small ball around the
iterate, and projects it onto the ball around the image. Both depend on the norm
and are implemented in `tfsam.geometry`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.attempts import repeat
from tfsam.attacks.attempts import turn
from tfsam.attacks.averaging import AT_END
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.averaging import Means
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import LossFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import setting
from tfsam.attacks.per_example import where
from tfsam.attacks.seeds import next_seeds
from tfsam.attacks.targeting import check_order
from tfsam.attacks.targeting import gradients_of
from tfsam.attacks.targeting import targets_of
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# In l1, a step of PGD changes one of so many pixels (Tramer and Boneh, 2019).
_SPARSITY = 100


@keras.saving.register_keras_serializable(package="tfsam")
class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018).

    An iteration is x_{t+1} = Proj_{B(x, epsilon)}(x_t + step_size * d_t), where
    d_t is the sign of the gradient (l-inf) or the gradient divided by its l2
    norm (l2). The last iterate is returned.

    In l1, d_t holds the signs of the largest 1 % of the gradient's entries, at
    least one, divided by their number: sparse l1 descent (Tramer and Boneh,
    2019, "Adversarial Training and Robustness for Multiple Perturbations",
    section 2). The steepest direction would change a single pixel. Pixels at
    the bound to which the gradient points are left out, and the projection is
    onto the intersection of the ball and the bounds (Croce and Hein, 2021,
    "Mind the box").

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps, >= 0.
        step_size: Length of a step in `norm`, >= 0. None means the paper's
            epsilon/4 (l-inf) or epsilon/8 (l2), and epsilon/8 in l1.
        random_start: True starts at a point uniform in the ball, False at x,
            and "normal" at x plus normal noise of standard deviation 0.001,
            projected onto the ball.
        bounds: (lowest, highest) value of x, or None.
        early_stop: Whether to stop at an example's first misclassified iterate.
            The robust accuracy is then never higher than with the last iterate.
            Attacks on a surrogate do not stop early.
        loss: "cross_entropy"; "margin", Carlini and Wagner's loss; "dlr"; "kl",
            the divergence from the predictions at x (TRADES, Zhang et al.,
            2019); or "squared_error", the squared distance from them (SCORE,
            Pang et al., 2022). The last two need a random start, because their
            gradient at x is zero. None means the compiled loss while a
            `RobustModel` trains, and cross-entropy elsewhere. The compiled loss
            is used for each example separately, without `sample_weight`,
            `class_weight` and `loss_weights`.
        restarts: Number of starts, >= 1; each attacks the survivors of the
            previous ones.
        targets: Number of wrong classes to attack in turn, >= 0; if there are
            fewer, all. 0 means untargeted.
        eot: Number of draws of a random network, >= 1, over which each step
            takes the mean of the gradient and of the logits; see
            `tfsam.attacks.averaging`.
        target_order: "logits" tries the most likely wrong class first,
            "distance" the one of the nearest boundary; see
            `tfsam.attacks.targeting`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> attack = PGD(epsilon=0.1, norm="linf", steps=10)
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> print(attack(lambda x: 10 * x, x, y, seed=0).numpy())
        [[0.4 0.6]]

        Adversarial training:

        >>> import tfsam
        >>> layers = [keras.Input((4,)), keras.layers.Dense(2)]
        >>> network = keras.Sequential(layers)
        >>> model = tfsam.RobustModel(network, perturb_inputs=PGD(8 / 255))
    """

    in_graph = True
    norms = geometry.NORMS
    selective = True
    tensor_epsilon = True
    example_epsilons = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        random_start: bool | str = True,
        bounds: Bounds = (0.0, 1.0),
        early_stop: bool = False,
        *,
        loss: str | None = None,
        restarts: int = 1,
        targets: int = 0,
        eot: int = 1,
        target_order: str = "logits",
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
        if loss in losses.DISTANCES and targets:
            raise ValueError(
                f"loss={loss!r} takes no targets. Received: targets={targets}"
            )
        if random_start not in (True, False, "normal"):
            raise ValueError(
                "random_start must be True, False or 'normal'. "
                f"Received: random_start={random_start}"
            )
        self.step_size = step_size
        self.random_start = random_start
        self.early_stop = early_stop
        if loss is not None:
            known = sorted([*losses.LOSSES, *losses.DISTANCES])
            check_choice("loss", loss, known)
        self.loss = loss
        self.restarts = check_count("restarts", restarts, 1)
        self.targets = check_count("targets", targets)
        self.eot = check_count("eot", eot, 1)
        self.target_order = check_order(target_order)

    @property
    def follows_gradient(self) -> bool:
        """Whether it makes several steps, at least epsilon long in total."""
        length = self.step_size
        if length is None:
            length = self._default_step_size(self.epsilon)
        return crosses(self.epsilon, self.steps, length)

    @property
    def needs_classes(self) -> bool:
        """Whether it needs class labels, regardless of the compiled loss."""
        several = self.restarts > 1 or self.early_stop or self.targets
        return self.loss is not None or bool(several)

    @property
    def gradients(self) -> int:
        """Number of gradients for a batch, over all restarts and targets."""
        return gradients_of(self)

    @property
    def predictions(self) -> int:
        """Number of forward passes: 1 for the predictions at x, or targets."""
        first = self.loss in losses.DISTANCES or self.targets
        return self.eot if first else 0

    def perturb(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        start: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the last iterate of the first attempt that succeeded.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float tensor (batch, ...).
            y: Class numbers, or one-hot or smoothed labels.
            seeds: int32 tensor (batch, 2).
            start: None, or a float tensor of x's shape, the starting point of
                the first attempt.
        """
        active = examples(logits_fn, x)
        network = Averaged(logits_fn, self.eot, seeds)
        runs, choices, labels = self.restarts, None, y
        loss: LossFn
        if self.loss in losses.DISTANCES:
            if setting(logits_fn, "goal") is not None:
                raise ValueError(
                    "a distance from the predictions at x leads to no goal; "
                    f"use another loss. Received: loss={self.loss}"
                )
            loss = losses.DISTANCES[self.loss]
            labels = tf.nn.softmax(network.predict(x, active))
        elif self.targets:
            loss = losses.LOSSES[self.loss or "cross_entropy"][1]
            logits = network.predict(x, active)
            choices = targets_of(self, logits_fn, x, y, logits, active, seeds)
            runs *= choices.shape[1]
        elif self.loss is None:
            loss = setting(logits_fn, "loss") or losses.cross_entropy
        else:
            loss = losses.LOSSES[self.loss][0]

        def attempt(
            run: tf.Tensor, active: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            first = self._start(x, next_seeds(seeds, run))
            if start is not None:
                first = tf.where(run == 0, start, first)
            goal = labels
            if choices is not None:
                goal = losses.classes(y), turn(choices, run)
            gradient = network.gradient(loss)

            def slopes(
                x: tf.Tensor, active: tf.Tensor, index: tf.Tensor
            ) -> Means:
                return gradient(x, goal, active, run * self.steps + index)

            x_adv, broken = self._climb(logits_fn, x, y, first, active, slopes)
            if runs > 1 and not is_surrogate(logits_fn):
                logits = network.predict(x_adv, active & ~broken, AT_END)
                broken |= active & losses.misclassified(logits, y)
            return x_adv, broken

        return repeat(attempt, runs, x, active, network.score(y, active))

    def _start(self, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns the starting point of an attempt."""
        if self.random_start == "normal":
            noise = geometry.random_normal(seeds, tf.shape(x), x.dtype)
            radius = self.radius(x)
            offset = geometry.project(0.001 * noise, radius, self.norm)
            return self.clip(x + offset)
        return random_start(self, x, seeds) if self.random_start else x

    def _default_step_size(self, epsilon: Any) -> Any:
        """Returns the step size for `step_size=None`."""
        return geometry.default_step(epsilon, self.norm)

    def _direction(self, x_adv: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        """Returns the direction of a step, of length 1 in the norm."""
        if self.norm != "l1":
            return geometry.steepest(slope, self.norm)
        low, high = self.bounds or (-math.inf, math.inf)
        free = tf.where(slope > 0, x_adv < high, x_adv > low)
        pixels = x_adv.shape[1:].num_elements()
        if pixels is None:
            pixels = tf.reduce_prod(tf.shape(x_adv)[1:])
        count = (pixels + _SPARSITY - 1) // _SPARSITY
        return geometry.steepest_sparse(tf.where(free, slope, 0), count)

    def _climb(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        start: tf.Tensor,
        active: tf.Tensor,
        slopes: Callable[..., Means],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the last iterate, and which examples stopped early."""
        step_size = self.step_size
        if step_size is None:
            step_size = self._default_step_size(self.radius(x))

        def loop(
            x: tf.Tensor, start: tf.Tensor, active: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            def step(
                index: tf.Tensor, x_adv: tf.Tensor, broken: tf.Tensor
            ) -> tuple[tf.Tensor, ...]:
                slope, logits, _ = slopes(x_adv, active & ~broken, index)
                ahead = self._direction(x_adv, slope)
                moved = self.project(x, x_adv + step_size * ahead)
                if self.early_stop:
                    broken |= active & may_stop(logits_fn, logits, y)
                    moved = where(broken, x_adv, moved)
                return index + 1, moved, broken

            # Not a Python loop: Keras disables AutoGraph inside train_step.
            _, x_adv, broken = tf.while_loop(
                lambda index, _, broken: (
                    (index < self.steps) & tf.reduce_any(active & ~broken)
                ),
                step,
                (0, start, tf.zeros_like(active)),
                parallel_iterations=1,
            )
            return x_adv, broken

        return compiled(logits_fn, loop)(x, start, active)


@keras.saving.register_keras_serializable(package="tfsam")
class FGSM(PGD):
    """The fast gradient sign method (Goodfellow et al., 2015): a single step.

    It is `PGD` with a single step and another default step size. With
    `random_start` it is the attack of "Fast is better than free" (Wong et al.,
    2020), with a step of 1.25 epsilon.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", or "l2" or "l1" for the corresponding step of `PGD`.
        step_size: Length of the step, >= 0. None means epsilon from x itself
            and 1.25 epsilon from a random start.
        random_start: True starts at a point uniform in the ball, False at x;
            for "normal", see `PGD`.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> FGSM(epsilon=0.25)(lambda x: 10 * x, x, y).numpy().tolist()
        [[0.25, 0.75]]
    """

    collapses = True  # Wong et al., 2020, section 5.4.

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        step_size: float | None = None,
        random_start: bool | str = False,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, 1, step_size, random_start, bounds)

    # Without an argument `start`: from the result of another attack, the step
    # would be a second one.
    def perturb(  # type: ignore[override]
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns x after a single step."""
        return super().perturb(logits_fn, x, y, seeds)

    def _default_step_size(self, epsilon: Any) -> Any:
        return epsilon * (1.25 if self.random_start else 1.0)


# Attacks that are registered under names of their own.
fgsm_rs = functools.partial(FGSM, random_start=True)
pgd_cw = functools.partial(PGD, loss="margin")
pgd_dlr = functools.partial(PGD, loss="dlr")
pgd_kl = functools.partial(PGD, loss="kl", random_start="normal")
pgd_squared = functools.partial(PGD, loss="squared_error")
pgd_t = functools.partial(PGD, targets=9)


def crosses(epsilon: float, steps: int, step_size: float) -> bool:
    """Returns whether several steps are at least epsilon long in total.

    Args:
        epsilon: Radius of the ball, >= 0.
        steps: Number of steps, >= 0.
        step_size: Length of each step, >= 0.

    Returns:
        A bool; False for a single step.

    Example:
        >>> crosses(0.1, 10, 0.025), crosses(0.1, 1, 0.1)
        (True, False)
    """
    return steps > 1 and steps * step_size >= epsilon * (1 - 1e-6)


def random_start(attack: Attack, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws a point for each example, uniform in its ball, then clips it.

    Args:
        attack: An `Attack` with the epsilon, norm and bounds to use.
        x: Float tensor (batch, ...).
        seeds: int32 tensor (batch, 2).

    Returns:
        Tensor of x's shape and dtype, inside the bounds.

    Example:
        >>> import tensorflow as tf
        >>> x, seeds = tf.zeros([1, 4]), tf.constant([[0, 1]])
        >>> start = random_start(PGD(0.1), x, seeds)
        >>> bool(tf.reduce_max(start) <= 0.1)
        True
    """
    return attack.clip(
        x
        + geometry.random_point(
            seeds, tf.shape(x), attack.radius(x), attack.norm, x.dtype
        )
    )
