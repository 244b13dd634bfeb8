"""The search of Auto-PGD in the l-inf and l2 norms.

Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", algorithm 1.

A step has momentum. At checkpoints, if the loss has stopped rising, the step
size is halved and the search continues from the best point.
"""

import itertools
import math
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.attempts import copies
from tfsam.attacks.autoattack.parallel_searches import Searches
from tfsam.attacks.base import Attack
from tfsam.attacks.blocks import batch_size
from tfsam.attacks.logits import compiled
from tfsam.attacks.per_example import per_example
from tfsam.attacks.per_example import where

# alpha of equation (1): the weight of a step's own direction. The rest is the
# weight of the momentum.
_MOMENTUM_SHARE = 0.75


class _State(NamedTuple):
    """The state of a search: tensors with a row for each example.

    Attributes:
        x: Current point.
        previous: Previous point.
        step_size: Current step size.
        broken: Whether the search ended at a misclassified point.
        loss: Loss at the last evaluated point.
        best: Point of the highest loss.
        best_loss: Loss at `best`.
        best_slope: Gradient at `best`.
        rises: Number of steps since the last checkpoint that raised the loss.
        checkpoint_loss: Best loss at the last checkpoint.
        just_halved: Whether the step size was halved at the last checkpoint.
    """

    x: tf.Tensor
    previous: tf.Tensor
    step_size: tf.Tensor
    broken: tf.Tensor
    loss: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor
    best_slope: tf.Tensor
    rises: tf.Tensor
    checkpoint_loss: tf.Tensor
    just_halved: tf.Tensor


def checkpoints(steps: int) -> list[int]:
    """Returns the iterations at which the step size may be halved.

    Section 3.2 of the paper: w_j = ceil(p_j steps), where p_0 = 0, p_1 = 0.22
    and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    Args:
        steps: Number of iterations.

    Returns:
        List of increasing ints, from 0 to at most `steps`.

    Example:
        >>> checkpoints(100)
        [0, 22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        gap = max(shares[-1] - shares[-2] - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    # Rounds first: 0.41 * 100 is slightly more than 41 in floating point.
    found = {math.ceil(round(share * steps, 6)) for share in shares}
    return sorted(w for w in found if w <= steps)


def start(attack: Attack, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws a point on the surface of the ball, as in the authors' code.

    Args:
        attack: The attack; only its ball and its bounds are used.
        x: Float tensor (batch, ...).
        seeds: int32 tensor (batch, 2).

    Returns:
        Tensor of x's shape, clipped to the bounds.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks import apgd_ce
        >>> x = tf.fill([1, 100], 0.5)
        >>> found = start(apgd_ce(0.25, "l2"), x, tf.constant([[0, 1]]))
        >>> print(tf.norm(found - x).numpy().round(3))
        0.25
    """
    points = geometry.random_point(
        seeds, tf.shape(x), 1.0, attack.norm, x.dtype
    )
    norms = geometry.example_norms(points, attack.norm)
    return attack.clip(x + attack.radius(x) * points / norms)


def search(
    attack: Any,
    searches: Searches,
    x: tf.Tensor,
    starts: tf.Tensor,
    active: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs Auto-PGD on copies of the batch.

    The search for an example ends when one of its copies is broken.

    Args:
        attack: An `APGD`.
        searches: The searches to run, one for each copy.
        x: Float tensor (batch, ...).
        starts: Float tensor (copies * batch, ...), the starting points.
        active: Bool tensor (batch,), the examples to attack.

    Returns:
        x_adv and whether it is broken, with a row for each example.
    """
    windows = _windows(attack.steps)

    def loop(x: tf.Tensor, starts: tf.Tensor, active: tf.Tensor) -> Any:
        x = copies(x, searches.beside)

        def step(index: tf.Tensor, state: _State) -> tuple[tf.Tensor, _State]:
            slope, value, broken = searches.look(state, active, index)
            window = tf.constant(windows)[index]
            state = _judged(state, broken, value, slope)
            state, slope = _adapted(state, slope, window, attack.rho)
            moved = _moved(attack, x, state, slope, first=index == 0)
            moved = where(state.broken, state.x, moved)
            return index + 1, state._replace(x=moved, previous=state.x)

        _, state = tf.while_loop(
            lambda index, state: (
                (index < attack.steps)
                & tf.reduce_any(searches.survivors(active, state.broken))
            ),
            step,
            (0, _initial(attack, starts)),
            parallel_iterations=1,
        )
        return searches.finish(state, active, attack.steps)

    return compiled(searches.logits_fn, loop)(x, starts, active)


def _initial(attack: Attack, start: tf.Tensor) -> _State:
    """Returns the state of a search at its starting point."""
    batch, dtype = [batch_size(start)], start.dtype
    nothing = tf.zeros(batch, dtype)
    lowest = tf.fill(batch, tf.constant(dtype.min, dtype))
    # With it, the first evaluation does not count as a rise.
    highest = tf.fill(batch, tf.constant(dtype.max, dtype))
    return _State(
        x=start,
        previous=start,
        step_size=nothing + 2 * attack.radii(start),
        broken=tf.zeros(batch, tf.bool),
        loss=highest,
        best=start,
        best_loss=lowest,
        best_slope=tf.zeros_like(start),
        rises=tf.zeros_like(nothing),
        checkpoint_loss=lowest,
        just_halved=tf.ones(batch, tf.bool),
    )


def _judged(
    state: _State, broken: tf.Tensor, loss: tf.Tensor, slope: tf.Tensor
) -> _State:
    """Updates the state with the loss and the gradient at the current point."""
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


def _adapted(
    state: _State, slope: tf.Tensor, window: tf.Tensor, rho: float
) -> tuple[_State, tf.Tensor]:
    """Halves the step size at a checkpoint and returns to the best point.

    At other steps `window` is 0, and nothing changes. Both happen under the
    conditions of section 3.2: fewer than rho * window steps raised the loss
    (1), or neither the step size nor the best loss has changed since the last
    checkpoint (2). Returns the state and the gradient at its point.
    """
    at_checkpoint = window > 0
    few = state.rises < rho * tf.cast(window, state.rises.dtype)
    stuck = ~state.just_halved & (state.best_loss <= state.checkpoint_loss)
    # Broken examples no longer move.
    halve = at_checkpoint & (few | stuck) & ~state.broken
    state = state._replace(
        x=where(halve, state.best, state.x),
        step_size=tf.where(halve, state.step_size / 2, state.step_size),
        rises=tf.where(at_checkpoint, tf.zeros_like(state.rises), state.rises),
        checkpoint_loss=tf.where(
            at_checkpoint, state.best_loss, state.checkpoint_loss
        ),
        just_halved=tf.where(at_checkpoint, halve, state.just_halved),
    )
    return state, where(halve, state.best_slope, slope)


def _moved(
    attack: Attack,
    x: tf.Tensor,
    state: _State,
    slope: tf.Tensor,
    first: tf.Tensor,
) -> tf.Tensor:
    """Returns the next point, equation (1): a projected step with momentum."""
    direction = geometry.steepest(slope, attack.norm)
    z = state.x + per_example(state.step_size, x) * direction
    z = attack.project(x, z)
    share = tf.where(first, tf.ones([], x.dtype), _MOMENTUM_SHARE)
    momentum = state.x - state.previous
    point = state.x + share * (z - state.x) + (1 - share) * momentum
    return attack.project(x, point)


def _windows(steps: int) -> list[int]:
    """Returns for each checkpoint the steps since the last one, else 0."""
    marks = checkpoints(steps)
    windows = [0] * (steps + 1)
    for last, mark in itertools.pairwise(marks):
        windows[mark] = mark - last
    return windows
