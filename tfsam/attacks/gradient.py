"""Attacks by the gradient of the loss: FGSM and PGD.

The whole idea is one line of `_climb`: step to the steepest point of a small
ball around the iterate, then project back into the ball around the image. The
norm decides both; see `geometry.py`.
"""

import numbers

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import input_gradient
from tfsam.geometry import check_radius


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
        random_start: start at a point uniform in the ball, else at x.
        bounds: (lowest, highest) value of x, or None.
        early_stop: leave an example at its first misclassified iterate; the
            accuracy left is never higher than with the last iterate.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        step_size=None,
        random_start=True,
        bounds=(0.0, 1.0),
        early_stop=False,
    ):
        super().__init__(epsilon, norm, bounds)
        whole = isinstance(steps, numbers.Integral)
        if not whole or isinstance(steps, bool) or steps < 0:
            raise ValueError(
                f"steps must be an integer >= 0. Received: steps={steps}"
            )
        if step_size is not None:
            step_size = check_radius("step_size", step_size)
        self.steps = int(steps)
        self.step_size = step_size
        self.random_start = random_start
        self.early_stop = early_stop

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the last iterate."""
        step_size = self.step_size
        if step_size is None:
            step_size = self.epsilon / (4 if self.norm == "linf" else 8)
        return _climb(
            self,
            logits_fn,
            x,
            y,
            seeds if self.random_start else None,
            steps=self.steps,
            step_size=step_size,
            early_stop=self.early_stop,
        )


@keras.saving.register_keras_serializable(package="tfsam")
class FGSM(Attack):
    """The fast gradient sign method (Goodfellow et al., 2015): one step.

    With `random_start` it is the attack of "Fast is better than free" (Wong et
    al., 2020), whose step is 1.25 epsilon.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf", or "l2" for the same step in that norm.
        step_size: None is epsilon from x itself, 1.25 epsilon from a random
            start.
        random_start: start at a point uniform in the ball, else at x.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        step_size=None,
        random_start=False,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        if step_size is not None:
            step_size = check_radius("step_size", step_size)
        self.step_size = step_size
        self.random_start = random_start

    def perturb(self, logits_fn, x, y, seeds):
        """Returns x after its one step."""
        step_size = self.step_size
        if step_size is None:
            step_size = self.epsilon * (1.25 if self.random_start else 1.0)
        return _climb(
            self,
            logits_fn,
            x,
            y,
            seeds if self.random_start else None,
            steps=1,
            step_size=step_size,
            early_stop=False,
        )


def _climb(attack, logits_fn, x, y, seeds, *, steps, step_size, early_stop):
    """`steps` projected steps from x, or from a random point if seeds."""
    epsilon, norm = attack.epsilon, attack.norm
    gradient = input_gradient(logits_fn, losses.cross_entropy)
    correct = losses.classes(y)

    def step(index, x_adv, broken):
        slope, logits = gradient(x_adv, y)
        moved = x_adv + step_size * geometry.steepest(slope, norm)
        moved = attack.clip(x + geometry.project(moved - x, epsilon, norm))
        if early_stop:
            broken |= tf.argmax(logits, axis=-1) != correct
            rank = [-1] + [1] * (x.shape.rank - 1)
            moved = tf.where(tf.reshape(broken, rank), x_adv, moved)
        return index + 1, moved, broken

    start = x
    if seeds is not None:
        start += geometry.random_point(
            seeds, tf.shape(x), epsilon, norm, x.dtype
        )
    # An explicit loop: Keras switches AutoGraph off inside train_step.
    _, x_adv, _ = tf.while_loop(
        lambda index, _, broken: (
            (index < steps) & ~tf.reduce_all(broken if early_stop else False)
        ),
        step,
        (0, attack.clip(start), tf.zeros(tf.shape(x)[:1], tf.bool)),
        parallel_iterations=1,
    )
    return x_adv
