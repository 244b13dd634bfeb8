"""l1-APGD: the search of Auto-PGD in the l1 norm.

Croce and Hein, 2021, "Mind the box: l1-APGD for Sparse Adversarial Attacks on
Image Classifiers", sections 3 and 4.

A step changes the `count` pixels of the largest gradients by the same size, and
is projected onto the intersection of the ball and the bounds. Both the count
and the step size follow from the sparsity of the best perturbation so far. Most
of the search takes place in larger balls: 30 % of the steps within 3 epsilon,
30 % within 2 epsilon and the rest within epsilon, each from the best point of
the one before, projected.

The paper's first count is a fifth of the pixels. In the authors' code the first
ball, too, starts from the sparsity of the starting point.
"""

import math
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam import geometry
from tfsam.attacks.attempts import copies
from tfsam.attacks.autoattack.parallel_searches import Searches
from tfsam.attacks.base import Attack
from tfsam.attacks.logits import compiled
from tfsam.attacks.per_example import per_example
from tfsam.attacks.per_example import where

# Radii of the balls in units of epsilon, and the share of the steps within each
# ball but the last (section 4.2).
_RADII = (3, 2, 1)
_SHARE = 0.3

# Share of the steps in a ball between two adaptations (section 4.1).
_BETWEEN = 0.04

# Part of the pixels that the first steps change.
_FIRST_SHARE = 0.2
# A step changes the number of pixels of the best perturbation over this.
_SPARSER = 1.5
# If this part of the number of pixels is left, or less, the step size is reset.
_SPARSITY_LEFT = 0.95
# Factor by which the step size falls otherwise, and the least part of epsilon.
_SLOWER = 1.5
_SMALLEST = 0.1


class _State(NamedTuple):
    """The state of a search: tensors with a row for each example.

    Attributes:
        x: Current point.
        step_size: Current step size.
        count: Number of pixels that the next step changes.
        sparsity: Number of pixels of the best perturbation when `count` was
            last set.
        broken: Whether the search ended at a misclassified point.
        best: Point of the highest loss in the current ball.
        best_loss: Loss at `best`.
        best_slope: Gradient at `best`.
    """

    x: tf.Tensor
    step_size: tf.Tensor
    count: tf.Tensor
    sparsity: tf.Tensor
    broken: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor
    best_slope: tf.Tensor


class Turn(NamedTuple):
    """A turn of the search: the gradient at a point, and a step from it.

    Attributes:
        radius: Radius of the ball, in units of epsilon.
        adapts: Whether the step size and the count are adapted first.
        leaves: Whether the step is the projection of the best point onto the
            next ball.
    """

    radius: int
    adapts: bool
    leaves: bool


def schedule(steps: int) -> list[Turn]:
    """Returns the turns of a search.

    A ball with n steps has n + 1 points. The last of them is where the next
    ball starts from, if it is the best; the last of all is not in the schedule.

    Args:
        steps: Number of gradient steps in all balls, >= 1. At least one of them
            is within epsilon, and all if there are fewer than three.

    Returns:
        List of turns: `steps`, and one for each ball but the last.

    Example:
        >>> [turn.radius for turn in schedule(6)]
        [3, 3, 3, 2, 2, 2, 1, 1]
        >>> sum(turn.leaves for turn in schedule(100))
        2
    """
    # Rounds first: 0.3 * 10 may be slightly more than 3 in floating point.
    early = math.ceil(round(_SHARE * steps, 6))
    early = min(early, (steps - 1) // 2)
    balls = [(radius, early) for radius in _RADII[:-1] if early]
    turns = []
    for radius, length in [*balls, (_RADII[-1], steps - 2 * early)]:
        between = max(int(_BETWEEN * length), 1)
        turns += [
            Turn(radius, 0 < done and done % between == 0, done == length)
            for done in range(length + 1)
        ]
    return turns[:-1]


def start(attack: Attack, x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws the starting point of a search.

    Args:
        attack: The attack, of which the epsilon and the bounds count.
        x: Float tensor (batch, ...).
        seeds: int32 tensor (batch, 2).

    Returns:
        Tensor of x's shape: x plus standard normal noise, projected onto the
        ball of radius 3 epsilon and the bounds.

    Example:
        >>> import tensorflow as tf
        >>> from tfsam.attacks import apgd_ce
        >>> x = tf.fill([1, 100], 0.5)
        >>> found = start(apgd_ce(1.0, "l1"), x, tf.constant([[0, 1]]))
        >>> print(tf.reduce_sum(tf.abs(found - x)).numpy().round(3))
        3.0
    """
    noise = geometry.random_normal(seeds, tf.shape(x), x.dtype)
    noise = tf.ensure_shape(noise, x.shape)
    return geometry.project_within(
        x, x + noise, _RADII[0] * attack.radius(x), "l1", attack.bounds
    )


def search(
    attack: Any,
    searches: Searches,
    x: tf.Tensor,
    starts: tf.Tensor,
    active: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs l1-APGD on copies of the batch.

    The search for an example ends when one of its copies is broken, at a point
    within epsilon.

    Args:
        attack: An `APGD`.
        searches: The searches to run, one for each copy.
        x: Float tensor (batch, ...).
        starts: Float tensor (copies * batch, ...), the starting points.
        active: Bool tensor (batch,), the examples to attack.

    Returns:
        x_adv and whether it is broken, with a row for each example.
    """
    turns = schedule(attack.steps)
    # The radius of the next turn is that of a step, also where a ball is left.
    radii = [float(turn.radius) for turn in turns] + [float(_RADII[-1])]
    adapts = [turn.adapts for turn in turns]
    leaves = [turn.leaves for turn in turns]

    def loop(x: tf.Tensor, starts: tf.Tensor, active: tf.Tensor) -> Any:
        x = copies(x, searches.beside)
        epsilon = tf.cast(attack.radii(x), x.dtype)
        epsilon = tf.broadcast_to(epsilon, tf.shape(x)[:1])

        def step(index: tf.Tensor, state: _State) -> tuple[tf.Tensor, _State]:
            slope, value, broken = searches.look(state, active, index)
            radius = tf.gather(tf.constant(radii, x.dtype), index)
            state = _judged(state, broken & (radius == 1), value, slope)
            state, slope = tf.cond(
                tf.gather(tf.constant(adapts), index),
                lambda: _adapted(x, state, slope, radius * epsilon),
                lambda: (state, slope),
            )
            radius = tf.gather(tf.constant(radii, x.dtype), index + 1)
            state = tf.cond(
                tf.gather(tf.constant(leaves), index),
                lambda: _entered(attack, x, state, radius * epsilon),
                lambda: _moved(attack, x, state, slope, radius * epsilon),
            )
            return index + 1, state

        _, state = tf.while_loop(
            lambda index, state: (
                (index < len(turns))
                & tf.reduce_any(searches.survivors(active, state.broken))
            ),
            step,
            (0, _initial(starts, radii[0] * epsilon)),
            parallel_iterations=1,
        )
        return searches.finish(state, active, len(turns))

    return compiled(searches.logits_fn, loop)(x, starts, active)


def _initial(starts: tf.Tensor, radius: tf.Tensor) -> _State:
    """Returns the state of a search at its starting point.

    Args:
        starts: Float tensor (copies * batch, ...).
        radius: Float tensor (copies * batch,), the radii of the balls.
    """
    batch, pixels = tf.shape(starts)[:1], tf.reduce_prod(tf.shape(starts)[1:])
    share = _FIRST_SHARE * tf.cast(pixels, tf.float32)
    return _State(
        x=starts,
        step_size=radius,
        count=tf.fill(batch, tf.cast(tf.math.ceil(share), tf.int32)),
        sparsity=tf.fill(batch, pixels),
        broken=tf.zeros(batch, tf.bool),
        best=starts,
        best_loss=tf.fill(batch, starts.dtype.min),
        best_slope=tf.zeros_like(starts),
    )


def _judged(
    state: _State, broken: tf.Tensor, loss: tf.Tensor, slope: tf.Tensor
) -> _State:
    """Updates the state with the loss and the gradient at the current point."""
    loss = tf.cast(loss, state.best_loss.dtype)
    better = loss > state.best_loss
    return state._replace(
        broken=state.broken | broken,
        best=where(better, state.x, state.best),
        best_slope=where(better, slope, state.best_slope),
        best_loss=tf.where(better, loss, state.best_loss),
    )


def _adapted(
    x: tf.Tensor, state: _State, slope: tf.Tensor, radius: tf.Tensor
) -> tuple[_State, tf.Tensor]:
    """Adapts the step size and the number of pixels that a step changes.

    Where the best perturbation has become sparser, the step size is reset to
    the radius, and the search continues from the best point; elsewhere the step
    size falls. Returns the state and the gradient at its point.
    """
    sparsity = _sparsity(state.best - x)
    left = _SPARSITY_LEFT * tf.cast(state.sparsity, tf.float32)
    sparser = tf.cast(sparsity, tf.float32) < left
    slower = tf.maximum(state.step_size / _SLOWER, _SMALLEST * radius)
    back = sparser & ~state.broken  # Broken examples no longer move.
    state = state._replace(
        x=where(back, state.best, state.x),
        step_size=tf.where(sparser, radius, slower),
        count=_count(sparsity),
        sparsity=sparsity,
    )
    return state, where(back, state.best_slope, slope)


def _entered(
    attack: Any, x: tf.Tensor, state: _State, radius: tf.Tensor
) -> _State:
    """Continues in a smaller ball from the best point, projected onto it."""
    point = _projected(attack, x, state.best, radius)
    sparsity = _sparsity(point - x)
    fresh = _initial(point, radius)
    return fresh._replace(
        count=_count(sparsity), sparsity=sparsity, broken=state.broken
    )


def _moved(
    attack: Any,
    x: tf.Tensor,
    state: _State,
    slope: tf.Tensor,
    radius: tf.Tensor,
) -> _State:
    """Makes a step, without momentum, and projects it."""
    direction = geometry.steepest_sparse(slope, state.count)
    point = state.x + per_example(state.step_size, x) * direction
    point = _projected(attack, x, point, radius)
    return state._replace(x=where(state.broken, state.x, point))


def _projected(
    attack: Any, x: tf.Tensor, point: tf.Tensor, radius: tf.Tensor
) -> tf.Tensor:
    """Projects points onto balls of the radii (batch,) and into the bounds."""
    return geometry.project_within(
        x, point, per_example(radius, x), "l1", attack.bounds
    )


def _sparsity(perturbations: tf.Tensor) -> tf.Tensor:
    """Returns the number of pixels that each perturbation changes."""
    changed = tf.cast(perturbations != 0, tf.int32)
    return tf.reduce_sum(tf.reshape(changed, [tf.shape(changed)[0], -1]), 1)


def _count(sparsity: tf.Tensor) -> tf.Tensor:
    """Returns the number of pixels that the next step changes, >= 1."""
    count = tf.math.ceil(tf.cast(sparsity, tf.float32) / _SPARSER)
    return tf.maximum(tf.cast(count, tf.int32), 1)
