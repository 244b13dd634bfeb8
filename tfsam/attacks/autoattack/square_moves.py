"""Moves of the Square attack: its random candidates in each norm.

All random numbers are drawn before the search, from the seed of each example.
Each norm converts them to `moves`, a list of tensors whose row i holds the
random choices of iteration i, and has a function from (x, best, move) to the
next candidate.

Andriushchenko et al., 2020, "Square Attack", algorithms 2 and 3. The moves in
l1 are from Croce and Hein, 2021, "Mind the box", section 5.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfsam.attacks.autoattack.square_windows import Floats
from tfsam.attacks.autoattack.square_windows import Integers
from tfsam.attacks.autoattack.square_windows import over_pixels
from tfsam.attacks.autoattack.square_windows import pages
from tfsam.attacks.autoattack.square_windows import places
from tfsam.attacks.autoattack.square_windows import spans
from tfsam.attacks.autoattack.square_windows import tiles
from tfsam.attacks.autoattack.square_windows import window_sizes
from tfsam.geometry import TINY
from tfsam.geometry import example_norms
from tfsam.geometry import for_norm

# The first candidate, the moves and the function that proposes candidates.
Search = tuple[tf.Tensor, list[tf.Tensor], Callable[..., tf.Tensor]]


def prepared(attack: Any, x: tf.Tensor, seeds: tf.Tensor) -> Search:
    """Prepares a search in the norm of the attack.

    Args:
        attack: A `Square`.
        x: Float tensor (batch, height, width, channels), inside the bounds.
        seeds: int32 tensor (batch, 2).

    Returns:
        (start, moves, propose): the first candidate, a tensor of x's shape; a
        list of tensors (queries - 1, batch, ...), or (queries - 1,) for a
        choice that all examples share; and a function from (x, best, move) to
        the next candidate.

    Example:
        >>> from tfsam.attacks import Square
        >>> x, seeds = tf.fill([1, 8, 8, 3], 0.5), tf.constant([[0, 0]])
        >>> start, moves, _ = prepared(Square(0.25, queries=5), x, seeds)
        >>> float(tf.reduce_max(start)), moves[0].shape.as_list()
        (0.75, [4, 1, 1, 1, 1])
    """
    prepare = for_norm(attack.norm, linf=_squares, l2=_bumps, l1=_bumps)
    return prepare(attack, x, seeds)


def _squares(attack: Any, x: tf.Tensor, seeds: tf.Tensor) -> Search:
    """Prepares algorithm 2, l-inf: sets a window to +-epsilon in each channel.

    A step of 2 epsilon, projected, ends at a face of the ball from any starting
    point. Therefore a candidate copies its window from one of the two faces.
    """
    _, height, width, channels = x.shape

    def faces(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epsilon = _radius(attack, x)
        return attack.clip(x - epsilon), attack.clip(x + epsilon)

    lower, upper = faces(x)
    stripes, numbers = _uniform(
        seeds, width * channels, attack.queries - 1, 2 + channels
    )
    stripes = tf.reshape(stripes < 0.5, [-1, 1, width, channels])
    heights, widths = window_sizes(attack, height, width)
    moves = [
        *spans(numbers[..., 0], height, heights),
        *spans(numbers[..., 1], width, widths),
        numbers[:, :, None, None, 2:] < 0.5,
    ]
    rows = tf.range(height, dtype=tf.float32)[:, None, None]
    columns = tf.range(width, dtype=tf.float32)[:, None]

    def propose(
        x: tf.Tensor, best: tf.Tensor, move: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        middle, reach_down, centre, reach_across, down = move
        inside = (tf.abs(rows - middle) < reach_down) & (
            tf.abs(columns - centre) < reach_across
        )
        return tf.where(inside, tf.where(down, *faces(x)), best)

    return tf.where(stripes, lower, upper), moves, propose


def _bumps(attack: Any, x: tf.Tensor, seeds: tf.Tensor) -> Search:
    """Prepares algorithm 3, l2 and l1: moves mass between two windows."""
    _, height, width, channels = x.shape
    patterns, grid = tiles(height, width, attack.norm)
    first, numbers = _uniform(
        seeds,
        (grid.max() + 1) * (1 + channels),
        attack.queries - 1,
        5 + channels,
    )
    heights, widths = window_sizes(attack, height, width)
    table, first_pages = pages(heights, widths, height, width, attack.norm)
    table = tf.constant(table.reshape(-1), x.dtype)
    page = first_pages[:, None] + tf.cast(numbers[..., 4] < 0.5, tf.int32)

    def addresses(numbers: tf.Tensor) -> tf.Tensor:
        rows = height - 1 - places(numbers[..., 0], height, heights)
        columns = width - 1 - places(numbers[..., 1], width, widths)
        rows += page * (2 * height - 1)
        return over_pixels(rows * (2 * width - 1) + columns)

    moves = [
        addresses(numbers[..., :2]),
        addresses(numbers[..., 2:4]),
        _signs(numbers[:, :, None, None, 5:], x.dtype),
    ]
    move_mass = for_norm(attack.norm, l2=_move_mass, l1=_move_mass_l1)
    rows = tf.range(height)[:, None, None]
    pixels = rows * (2 * width - 1) + tf.range(width)[:, None]

    def at_epsilon(x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        if attack.norm == "l1":
            return attack.project(x, x + delta)
        size = example_norms(delta, "l2") + TINY
        return attack.clip(x + delta * (_radius(attack, x) / size))

    def propose(
        x: tf.Tensor, best: tf.Tensor, move: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        target, source, signs = move
        bump = tf.gather(table, pixels + target)
        emptied = tf.gather(table, pixels + source) != 0
        delta = move_mass(best - x, bump, emptied, signs, _radius(attack, x))
        return at_epsilon(x, delta)

    start = _first_bumps(first, patterns, grid, channels, x.dtype)
    return at_epsilon(x, start), moves, propose


def _radius(attack: Any, x: tf.Tensor) -> tf.Tensor:
    """Returns epsilon as a tensor that broadcasts against images."""
    return tf.cast(attack.radius(x), x.dtype)


def _move_mass(
    delta: tf.Tensor,
    bump: tf.Tensor,
    emptied: tf.Tensor,
    signs: tf.Tensor,
    epsilon: tf.Tensor,
) -> tf.Tensor:
    """Moves mass between windows, as in the body of algorithm 3.

    Args:
        delta: Perturbation (batch, height, width, channels).
        bump: Float tensor (batch, height, width, 1): eta in the window that
            gains mass, zero elsewhere.
        emptied: Bool tensor (batch, height, width, 1), the window that loses
            its mass.
        signs: Signs of the bump, (batch, 1, 1, channels).
        epsilon: Budget, a tensor () or (batch, 1, 1, 1).

    Returns:
        Tensor of the shape of `delta`, before it is rescaled to epsilon.
    """
    gaining = bump != 0
    nothing = tf.zeros_like(delta)
    kept = tf.where(gaining | emptied, nothing, delta)
    own = tf.where(gaining, delta, nothing)
    new = bump * signs + own / (_channel_norms(own) + TINY)
    # Budget that clipping to the bounds left unused is divided equally among
    # the channels.
    unused = epsilon**2 - tf.square(example_norms(delta, "l2"))
    unused = tf.maximum(unused, 0) / delta.shape[-1]
    mass = tf.sqrt(tf.square(_channel_norms(delta - kept)) + unused)
    return kept + new * (mass / (_channel_norms(new) + TINY))


def _move_mass_l1(
    delta: tf.Tensor,
    bump: tf.Tensor,
    emptied: tf.Tensor,
    signs: tf.Tensor,
    epsilon: tf.Tensor,
) -> tf.Tensor:
    """Moves mass between windows in l1; see `_move_mass` for the arguments.

    As in the authors' code, each channel receives its mass and its part of the
    unused budget times the number of channels; the projection that follows
    takes the excess from all pixels equally.
    """
    gaining = bump != 0
    nothing = tf.zeros_like(delta)
    kept = tf.where(gaining | emptied, nothing, delta)
    own = tf.where(gaining, delta, nothing)
    new = bump * signs + own / (_channel_norms(own, "l1") + TINY)
    unused = tf.maximum(epsilon - example_norms(delta, "l1"), 0)
    moved = _channel_norms(delta - kept, "l1")
    mass = unused + delta.shape[-1] * moved
    return kept + new * (mass / (_channel_norms(new, "l1") + TINY))


def _first_bumps(
    numbers: tf.Tensor,
    patterns: Floats,
    grid: Integers,
    channels: int,
    dtype: Any,
) -> tf.Tensor:
    """Returns the first perturbation in l2 or l1.

    It is a grid of eta with random signs, some of them transposed.
    """
    upright, turned = patterns[..., None].astype(dtype.as_numpy_dtype)
    numbers = tf.reshape(numbers, [-1, grid.max() + 1, 1 + channels])
    numbers = tf.gather(numbers, grid, axis=1)
    bumps = tf.where(numbers[..., :1] < 0.5, turned, upright)
    return bumps * _signs(numbers[..., 1:], dtype)


def _signs(numbers: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Converts uniform numbers to random signs."""
    return tf.where(numbers < 0.5, -tf.ones([], dtype), tf.ones([], dtype))


def _channel_norms(delta: tf.Tensor, norm: str = "l2") -> tf.Tensor:
    """Computes the l2 or l1 norm of each channel, (batch, 1, 1, channels)."""
    if norm == "l1":
        return tf.reduce_sum(tf.abs(delta), axis=[1, 2], keepdims=True)
    squares = tf.reduce_sum(tf.square(delta), axis=[1, 2], keepdims=True)
    return tf.sqrt(squares)


def _uniform(
    seeds: tf.Tensor, start: int, moves: int, each: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws uniform numbers for the first candidate and for the moves.

    Returns:
        Tuple of tensors (batch, start) and (moves, batch, each).
    """
    numbers = _draw(seeds, tf.constant(start + moves * each))
    shape = [tf.shape(seeds)[0], moves, each]
    rest = tf.reshape(numbers[:, start:], shape)
    return numbers[:, :start], tf.transpose(rest, [1, 0, 2])


# Compiled into a graph: eagerly, a loop over examples takes a second per batch.
@tf.function(autograph=False)
def _draw(seeds: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Draws `count` uniform numbers for each example."""
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform([count], seed, alg="philox"),
        seeds,
        fn_output_signature=tf.float32,
    )
