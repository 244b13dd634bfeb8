"""Attacks by the gradient of the loss: FGSM and PGD.

The whole idea is in `PGD._climb`: step to the steepest point of a small ball
around the iterate, then project back into the ball around the image. The norm
decides both; see `geometry.py`.
"""

import functools

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import next_seeds
from tfsam.attacks.base import repeat
from tfsam.attacks.base import turn
from tfsam.attacks.base import where
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import is_surrogate
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import score
from tfsam.attacks.logits import told
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


@keras.saving.register_keras_serializable(package="tfsam")
class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018).

    x_{t+1} = Proj_{B(x, epsilon)}(x_t + step_size * d_t), d_t the sign of the
    gradient (l-inf) or the gradient over its own l2 norm (l2); the last iterate
    is returned.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients, >= 0.
        step_size: None is the paper's epsilon/4 (l-inf) or epsilon/8 (l2).
        random_start: start at a point uniform in the ball, else at x; or
            "normal": at x plus normal noise of 0.001, brought into the ball.
        bounds: (lowest, highest) value of x, or None.
        early_stop: leave an example at its first misclassified iterate; the
            accuracy left is never higher than with the last iterate. An attack
            on a surrogate does not stop early.
        loss: None is the compiled loss while a `RobustModel` trains, and
            cross-entropy elsewhere. "cross_entropy"; "margin", Carlini and
            Wagner's; "dlr"; or "kl", the divergence from the predictions at x
            (TRADES, Zhang et al., 2019), which wants a random start: its
            gradient at x is zero. Of the compiled loss each example counts by
            itself, without `sample_weight`, `class_weight` and `loss_weights`.
        restarts: attacks from so many starts, at those who stood before; >= 1.
        targets: climb towards the likeliest wrong classes, so many of them in
            turn, at most as many as there are; 0 is untargeted.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    selective = True
    tensor_epsilon = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        step_size=None,
        random_start=True,
        bounds=(0.0, 1.0),
        early_stop=False,
        *,
        loss=None,
        restarts=1,
        targets=0,
    ):
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
        if loss == "kl" and targets:
            raise ValueError(
                f"loss='kl' has no targets. Received: targets={targets}"
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
            check_choice("loss", loss, sorted([*losses.LOSSES, "kl"]))
        self.loss = loss
        self.restarts = check_count("restarts", restarts, 1)
        self.targets = check_count("targets", targets)

    @property
    def follows_gradient(self):
        """Whether its steps, several of them, together cross the ball."""
        length = self.step_size
        if length is None:
            length = self._default_step_size()
        return crosses(self.epsilon, self.steps, length)

    @property
    def needs_classes(self):
        """Whether it takes class labels only, whatever the compiled loss."""
        several = self.restarts > 1 or self.early_stop or self.targets
        return self.loss is not None or bool(several)

    @property
    def gradients(self):
        """The number of gradients that the attack takes, of all restarts."""
        return self.steps * self.restarts * max(self.targets, 1)

    @property
    def predictions(self):
        """The passes that find what to climb towards or away from."""
        return 1 if self.loss == "kl" or self.targets else 0

    def perturb(self, logits_fn, x, y, seeds, start=None):
        """Returns the last iterate of the first attempt that succeeded.

        Args:
            logits_fn: function from pixels to logits.
            x: float tensor (batch, ...).
            y: labels.
            seeds: int32 (batch, 2).
            start: where the first attempt starts, instead of at random.
        """
        active = examples(logits_fn, x)
        runs, choices, labels = self.restarts, None, y
        if self.loss == "kl":
            loss = losses.kl
            labels = tf.nn.softmax(predict(logits_fn, x, active))
        elif self.targets:
            loss = losses.LOSSES[self.loss or "cross_entropy"][1]
            choices = losses.targets(
                predict(logits_fn, x, active), y, self.targets
            )
            runs *= choices.shape[1]
        elif self.loss is None:
            loss = told(logits_fn, "loss") or losses.cross_entropy
        else:
            loss = losses.LOSSES[self.loss][0]

        def attempt(run, active):
            first = self._start(x, next_seeds(seeds, run))
            if start is not None:
                first = tf.where(run == 0, start, first)
            goal = labels
            if choices is not None:
                goal = losses.classes(y), turn(choices, run)
            x_adv, broken = self._climb(
                logits_fn, x, y, first, active, loss=loss, labels=goal
            )
            if runs > 1 and not is_surrogate(logits_fn):
                logits = predict(logits_fn, x_adv, active & ~broken)
                broken |= active & losses.misclassified(logits, y)
            return x_adv, broken

        return repeat(attempt, runs, x, active, score(logits_fn, y, active))

    def _start(self, x, seeds):
        if self.random_start == "normal":
            noise = geometry.random_normal(seeds, tf.shape(x), x.dtype)
            offset = geometry.project(0.001 * noise, self.epsilon, self.norm)
            return self.clip(x + offset)
        return random_start(self, x, seeds) if self.random_start else x

    def _default_step_size(self):
        return self.epsilon / (4 if self.norm == "linf" else 8)

    def _climb(self, logits_fn, x, y, start, active, *, loss, labels):
        """Projected steps; the last iterate, and who was broken before."""
        gradient = input_gradient(logits_fn, loss)
        step_size = self.step_size
        if step_size is None:
            step_size = self._default_step_size()

        def loop(x, start, active):
            def step(index, x_adv, broken):
                slope, logits = gradient(x_adv, labels, active & ~broken)
                ahead = geometry.steepest(slope, self.norm)
                offset = x_adv + step_size * ahead - x
                offset = geometry.project(offset, self.epsilon, self.norm)
                moved = self.clip(x + offset)
                if self.early_stop:
                    broken |= active & may_stop(logits_fn, logits, y)
                    moved = where(broken, x_adv, moved)
                return index + 1, moved, broken

            # An explicit loop: Keras switches AutoGraph off inside train_step.
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
    """The fast gradient sign method (Goodfellow et al., 2015): one step.

    It is `PGD` of one step, by cross-entropy, of a length of its own. With
    `random_start` it is the attack of "Fast is better than free" (Wong et al.,
    2020), whose step is 1.25 epsilon.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf", or "l2" for the same step in that norm.
        step_size: None is epsilon from x itself, 1.25 epsilon from a random
            start.
        random_start: start at a point uniform in the ball, else at x; or
            "normal", as of `PGD`.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    collapses = True  # Wong et al., 2020, section 5.4.

    def __init__(
        self,
        epsilon,
        norm="linf",
        step_size=None,
        random_start=False,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, 1, step_size, random_start, bounds)

    # A warm start would make it two steps: it takes none.
    def perturb(self, logits_fn, x, y, seeds):  # type: ignore[override]
        """Returns x after its one step."""
        return super().perturb(logits_fn, x, y, seeds)

    def _default_step_size(self):
        return self.epsilon * (1.25 if self.random_start else 1.0)


# The registered attacks that are these two with other defaults.
fgsm_rs = functools.partial(FGSM, random_start=True)
pgd_cw = functools.partial(PGD, loss="margin")
pgd_dlr = functools.partial(PGD, loss="dlr")
pgd_kl = functools.partial(PGD, loss="kl", random_start="normal")
pgd_t = functools.partial(PGD, targets=9)


def crosses(epsilon, steps, step_size):
    """Whether several steps together are as long as the ball's radius.

    Args:
        epsilon: the ball's radius, >= 0.
        steps: number of steps, >= 0.
        step_size: length of each.
    """
    return steps > 1 and steps * step_size >= epsilon * (1 - 1e-6)


def random_start(attack, x, seeds):
    """A point for each example, uniform in the ball, brought into the bounds.

    Args:
        attack: the `Attack`, for its epsilon, norm and bounds.
        x: float tensor (batch, ...).
        seeds: int32 (batch, 2).
    """
    return attack.clip(
        x
        + geometry.random_point(
            seeds, tf.shape(x), attack.epsilon, attack.norm, x.dtype
        )
    )
