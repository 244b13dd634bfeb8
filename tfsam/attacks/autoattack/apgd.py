"""Auto-PGD, with which AutoAttack begins.

Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", Algorithm 1.

PGD with momentum that chooses its step size itself: at checkpoints it is halved
where the loss has stopped to rise, and the search goes on from the best point.
An example is left as soon as it is misclassified: any broken iterate counts.
"""

import itertools
import math
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import any_copy
from tfsam.attacks.base import copies
from tfsam.attacks.base import first_copy
from tfsam.attacks.base import next_seeds
from tfsam.attacks.base import per_example
from tfsam.attacks.base import repeat
from tfsam.attacks.base import side_by_side
from tfsam.attacks.base import turn
from tfsam.attacks.base import where
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import in_turn
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import score
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# alpha of equation (1): what a step keeps of its own direction; the rest is
# momentum.
_MOMENTUM_SHARE = 0.75


class _State(NamedTuple):
    """A search in progress, one row an example."""

    x: tf.Tensor
    previous: tf.Tensor
    step_size: tf.Tensor
    broken: tf.Tensor
    loss: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor
    best_slope: tf.Tensor
    rises: tf.Tensor  # Steps since the checkpoint that raised the loss.
    checkpoint_loss: tf.Tensor  # The best loss at the last checkpoint.
    just_halved: tf.Tensor  # Whether the step size was halved there.


@keras.saving.register_keras_serializable(package="tfsam")
class APGD(Attack):
    """Auto-PGD on one loss, untargeted or towards the likeliest wrong classes.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients of an attempt, >= 1.
        loss: "cross_entropy", "margin" or "dlr".
        targets: climb towards so many wrong classes, likeliest first; 0 is
            untargeted.
        restarts: attempts (for each target), at those who stood before, >= 1.
        rho: the part of the steps since a checkpoint that must have raised the
            loss, or the step size is halved; in [0, 1].
        bounds: (lowest, highest) value of x, or None.

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
        steps=100,
        loss="cross_entropy",
        targets=0,
        restarts=1,
        rho=0.75,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps, 1)
        self.follows_gradient = self.steps > 1
        self.loss = check_choice("loss", loss, sorted(losses.LOSSES))
        self.targets = check_count("targets", targets)
        self.restarts = check_count("restarts", restarts, 1)
        self.rho = check_number("rho", rho, 0, 1)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the first misclassified point, else that of the best loss.

        Of a surrogate it is that of the best loss, and of several attempts that
        of the largest margin.
        """
        active = examples(logits_fn, x)
        loss, targeted_loss = losses.LOSSES[self.loss]
        runs, targets = self.restarts, None
        if self.targets:
            loss = targeted_loss
            targets = losses.targets(
                predict(logits_fn, x, active), y, self.targets
            )
            runs *= targets.shape[1]

        beside = side_by_side(runs, x, logits_fn)

        def attempt(round, active):
            turns = [round * beside + number for number in range(beside)]
            starts = [_start(self, x, next_seeds(seeds, n)) for n in turns]
            labels = copies(y, beside)
            if targets is not None:
                chosen = tf.concat([turn(targets, n) for n in turns], 0)
                labels = (losses.classes(labels), chosen)
            return _search(
                *(self, logits_fn, x, y, tf.concat(starts, 0)),
                *(active, loss, labels, beside),
            )

        best = score(logits_fn, y, active)
        return repeat(attempt, runs // beside, x, active, best)


def apgd_ce(epsilon, norm="linf", steps=100, restarts=1, bounds=(0.0, 1.0)):
    """APGD on the cross-entropy, the first of AutoAttack.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients of an attempt, >= 1.
        restarts: attempts, >= 1.
        bounds: (lowest, highest) value of x, or None.
    """
    return APGD(epsilon, norm, steps, restarts=restarts, bounds=bounds)


def apgd_dlr(epsilon, norm="linf", steps=100, restarts=1, bounds=(0.0, 1.0)):
    """APGD on the difference of logits ratio.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients of an attempt, >= 1.
        restarts: attempts, >= 1.
        bounds: (lowest, highest) value of x, or None.
    """
    return APGD(epsilon, norm, steps, "dlr", restarts=restarts, bounds=bounds)


def apgd_t(
    epsilon, norm="linf", steps=100, targets=9, restarts=1, bounds=(0.0, 1.0)
):
    """APGD on the targeted DLR, the second of AutoAttack.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients of an attempt, >= 1.
        targets: wrong classes to go for, likeliest first; with fewer, all.
        restarts: attempts for each target, >= 1.
        bounds: (lowest, highest) value of x, or None.
    """
    return APGD(epsilon, norm, steps, "dlr", targets, restarts, bounds=bounds)


def checkpoints(steps):
    """The iterations at which the step size is judged (section 3.2).

    w_j = ceil(p_j steps), p_0 = 0, p_1 = 0.22,
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    Args:
        steps: number of iterations.

    Returns:
        A list of increasing integers, the first one 0, none above `steps`.
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        gap = max(shares[-1] - shares[-2] - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    # Rounded first: 0.41 * 100 is 41, not a bit more.
    found = {math.ceil(round(share * steps, 6)) for share in shares}
    return sorted(w for w in found if w <= steps)


def _start(attack, x, seeds):
    """A random point on the ball's surface, as in the authors' code."""
    points = geometry.random_point(
        seeds, tf.shape(x), 1.0, attack.norm, x.dtype
    )
    norms = geometry.example_norms(points, attack.norm)
    return attack.clip(x + attack.epsilon * points / norms)


def _search(attack, logits_fn, x, y, starts, active, loss, labels, beside):
    """Attempts beside each other: (x_adv, broken), an example a row.

    An example is done when one of its copies is broken.
    """
    asked = in_turn(logits_fn, beside, x)
    gradient = input_gradient(asked, loss)
    truth = copies(y, beside)
    windows = _windows(attack.steps)

    def loop(x, starts, active):
        x, wanted = copies(x, beside), copies(active, beside)

        def standing(broken):
            return wanted & ~copies(any_copy(broken, beside), beside)

        def step(index, state):
            left = standing(state.broken)
            slope, logits = gradient(state.x, labels, left)
            window = tf.constant(windows)[index]
            broken = left & may_stop(logits_fn, logits, truth)
            state = _judged(state, broken, loss(logits, labels), slope)
            state, slope = tf.cond(
                window > 0,
                lambda: _adapted(state, slope, window, attack.rho),
                lambda: (state, slope),
            )
            moved = _moved(attack, x, state, slope, first=index == 0)
            moved = where(state.broken, state.x, moved)
            return index + 1, state._replace(x=moved, previous=state.x)

        _, state = tf.while_loop(
            lambda index, state: (
                (index < attack.steps) & tf.reduce_any(standing(state.broken))
            ),
            step,
            (0, _initial(attack, starts)),
            parallel_iterations=1,
        )
        # The last step's point has not been looked at.
        left = standing(state.broken)
        logits = predict(asked, state.x, left)
        broken = state.broken | (left & may_stop(logits_fn, logits, truth))
        last = tf.cast(loss(logits, labels), state.best_loss.dtype)
        better = left & (last > state.best_loss)
        x_adv = where(broken | better, state.x, state.best)
        return (
            first_copy(broken, x_adv, beside),
            active & any_copy(broken, beside),
        )

    return compiled(logits_fn, loop)(x, starts, active)


def _initial(attack, start):
    nothing = tf.zeros_like(start[:, :1])
    nothing = tf.reshape(nothing, [tf.shape(start)[0], -1])[:, 0]
    lowest = tf.fill(tf.shape(nothing), start.dtype.min)
    highest = tf.fill(tf.shape(nothing), start.dtype.max)  # No rise at first.
    return _State(
        x=start,
        previous=start,
        step_size=nothing + 2 * attack.epsilon,
        broken=tf.zeros_like(nothing, tf.bool),
        loss=highest,
        best=start,
        best_loss=lowest,
        best_slope=tf.zeros_like(start),
        rises=tf.zeros_like(nothing),
        checkpoint_loss=lowest,
        just_halved=tf.ones_like(nothing, tf.bool),
    )


def _judged(state, broken, loss, slope):
    """The state, now that the loss at its point is known."""
    loss = tf.cast(loss, state.loss.dtype)
    better = loss > state.best_loss
    risen = tf.cast(loss > state.loss, loss.dtype)
    return state._replace(
        broken=state.broken | broken,
        loss=loss,
        rises=state.rises + risen,
        best=where(better, state.x, state.best),
        best_slope=where(better, slope, state.best_slope),
        best_loss=tf.where(better, loss, state.best_loss),
    )


def _adapted(state, slope, window, rho):
    """At a checkpoint: halve the step and go back to the best point, or not.

    Conditions 1 and 2 of section 3.2: fewer than rho of the window's steps
    raised the loss; or neither step size nor best loss changed since the last
    checkpoint.
    """
    few = state.rises < rho * tf.cast(window, state.rises.dtype)
    stuck = ~state.just_halved & (state.best_loss <= state.checkpoint_loss)
    halve = (few | stuck) & ~state.broken  # What is broken stays where it is.
    state = state._replace(
        x=where(halve, state.best, state.x),
        step_size=tf.where(halve, state.step_size / 2, state.step_size),
        rises=tf.zeros_like(state.rises),
        checkpoint_loss=state.best_loss,
        just_halved=halve,
    )
    return state, where(halve, state.best_slope, slope)


def _moved(attack, x, state, slope, first):
    """Equation (1): a projected step, and some of the step before."""

    def project(point):
        inside = geometry.project(point - x, attack.epsilon, attack.norm)
        return attack.clip(x + inside)

    direction = geometry.steepest(slope, attack.norm)
    z = project(state.x + per_example(state.step_size, x) * direction)
    share = tf.where(first, tf.ones([], x.dtype), _MOMENTUM_SHARE)
    momentum = state.x - state.previous
    return project(state.x + share * (z - state.x) + (1 - share) * momentum)


def _windows(steps):
    """At each iteration, the steps since the last checkpoint if it is one."""
    marks = checkpoints(steps)
    windows = [0] * (steps + 1)
    for last, mark in itertools.pairwise(marks):
        windows[mark] = mark - last
    return windows
