"""The Square attack: random search, without gradients.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient
black-box adversarial attack via random search", 2020. Each query changes the
perturbation inside a square window; the change is kept if it lowers the margin.

All random numbers are drawn before the search, from an example's own seed. Each
norm turns them into `moves`, tensors of which row i is what iteration i needs,
and gives the function from (x, best, move) to the next candidate.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import any_copy
from tfsam.attacks.base import copies
from tfsam.attacks.base import first_copy
from tfsam.attacks.base import where
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import setting
from tfsam.geometry import TINY
from tfsam.geometry import example_norms
from tfsam.support.validators import check_count
from tfsam.support.validators import check_fraction

# Section 3.2: p is halved after these of 10,000 iterations.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


# Pixels of a batch whose candidates are asked about several at a time.
_SMALL = 2**14


@keras.saving.register_keras_serializable(package="tfsam")
class Square(Attack):
    """The Square attack (Andriushchenko et al., 2020), untargeted.

    Algorithm 1 with the moves of Algorithm 2 (l-inf) or 3 (l2), on the margin
    z_y - max_{i != y} z_i, as in standard AutoAttack. An example is left at its
    first misclassified candidate. Windows reach the last row and column, which
    those of AutoAttack's code never do (but where they fill the image). About
    small images several queries ahead are asked at once, with the same result.

    The shape of an input must be known when it is traced. Inputs that are not
    (height, width, channels) are searched as an image of one column and one
    channel, whose windows are clipped to that column.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        queries: the candidates that an example may try, the first included;
            >= 1.
        p_init: share of the pixels that the first windows cover, in (0, 1].
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    gradient_free = True
    selective = True
    tensor_epsilon = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        queries=5000,
        p_init=0.8,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        self.queries = check_count("queries", queries, 1)
        self.p_init = check_fraction("p_init", p_init)

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the candidate of the smallest margin, or the first broken.

        Of a surrogate it is the candidate of the smallest margin.
        """
        active = examples(logits_fn, x)
        image = x
        if x.shape.rank != 4:
            image = tf.reshape(x, [-1, math.prod(x.shape[1:]), 1, 1])
        prepare = _squares if self.norm == "linf" else _bumps
        start, moves, propose = prepare(self, image, seeds)

        ahead = _queries_ahead(x, logits_fn)
        last = self.queries - 1

        def loop(image, start, moves, active):
            if not last:
                return start
            batch = tf.shape(image)[0]
            images, truth = copies(image, ahead), copies(y, ahead)

            def query(candidate, standing, y):
                candidate = tf.reshape(candidate, [-1, *x.shape[1:]])
                logits = predict(logits_fn, candidate, standing)
                broken = may_stop(logits_fn, logits, y)
                return losses.margin(logits, y), broken

            def step(index, best, margin, standing):
                # Each example's next candidates, as if none of them were taken;
                # of those that are, the first counts, the others are forgotten.
                turns = tf.concat([index + n for n in range(ahead)], 0)
                moves_now = [_of_examples(m, turns, batch) for m in moves]
                candidates = propose(images, copies(best, ahead), moves_now)
                asked = copies(standing, ahead) & (turns < last)
                found, broken = query(candidates, asked, truth)
                better = asked & (broken | (found > copies(margin, ahead)))
                taken = any_copy(better, ahead)
                first = tf.argmax(tf.reshape(better, [ahead, -1]), axis=0)
                index += tf.where(taken, tf.cast(first, tf.int32) + 1, ahead)
                hit = taken & first_copy(better, broken, ahead)
                return (
                    index,
                    where(taken, first_copy(better, candidates, ahead), best),
                    tf.where(taken, first_copy(better, found, ahead), margin),
                    standing & ~hit & (index < last),
                )

            margin, broken = query(start, active, y)
            _, best, _, _ = tf.while_loop(
                lambda index, best, margin, standing: tf.reduce_any(standing),
                step,
                (
                    tf.zeros([batch], tf.int32),
                    start,
                    margin,
                    active & ~broken,
                ),
                parallel_iterations=1,
            )
            return best

        best = compiled(logits_fn, loop)(image, start, moves, active)
        return where(active, tf.reshape(best, tf.shape(x)), x)


def _queries_ahead(x, logits_fn):
    """How many candidates to ask about at once.

    A query of a few small images takes as long as four, where the network may
    see so many.
    """
    if not x.shape.is_fully_defined() or x.shape.num_elements() > _SMALL:
        return 1
    most = setting(logits_fn, "most") or 0
    blocks = setting(logits_fn, "rows")
    return 4 if blocks or 4 * x.shape[0] <= most else 1


def _of_examples(values, turns, batch):
    """Of (moves, batch, ...) the move of each row's turn; of (moves,) too."""
    last = tf.shape(values)[0] - 1
    turns = tf.minimum(turns, last)
    if values.shape.rank == 1:
        return _column(tf.gather(values, turns))
    rows = tf.range(tf.size(turns)) % batch
    flat = tf.reshape(values, [-1, *values.shape[2:]])
    return tf.gather(flat, turns * batch + rows)


def _column(values):
    return values[:, None, None, None]


def window_shares(queries, p_init):
    """The share of the pixels that each window covers: p of section 3.2.

    Iteration i of so many queries has the p of i / queries * 10,000, as in
    AutoAttack.

    Args:
        queries: number of queries.
        p_init: the first share.

    Returns:
        A float array (queries - 1,), for iterations 1, 2, ...: query 0 is the
        first candidate.
    """
    scaled = np.arange(1, queries) / queries * 10_000
    return p_init / 2.0 ** np.searchsorted(_HALVED_AFTER, scaled.astype(int))


def eta(height, width):
    """The l2 attack's window (section 3.4): a bump above its negative.

    Args:
        height: number of rows.
        width: number of columns.

    Returns:
        A float array (height, width) of l2 norm 1.
    """
    half = height // 2
    pattern = np.concatenate([_bump(half, width), -_bump(height - half, width)])
    return pattern / np.linalg.norm(pattern)


def _bump(height, width):
    """A pyramid of norm 1: sum_{d < j <= n + 1} 1/j^2, d from the centre."""
    terms = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2
    sums = np.cumsum(terms[::-1])[::-1]
    rows = np.abs(np.arange(height) - height // 2)
    columns = np.abs(np.arange(width) - width // 2)
    pattern = sums[np.maximum(rows[:, None], columns)]
    return pattern / np.linalg.norm(pattern)


def _squares(attack, x, seeds):
    """Algorithm 2, l-inf: a window is set to +-epsilon, channel by channel.

    Its step of 2 epsilon, projected, ends at a face of the ball wherever it
    starts; so a candidate takes its window from one of the two faces.
    """
    _, height, width, channels = x.shape
    epsilon = tf.cast(attack.epsilon, x.dtype)

    def faces(x):
        return attack.clip(x - epsilon), attack.clip(x + epsilon)

    lower, upper = faces(x)
    stripes, numbers = _uniform(
        seeds, width * channels, attack.queries - 1, 2 + channels
    )
    stripes = tf.reshape(stripes < 0.5, [-1, 1, width, channels])
    heights, widths = _window_sizes(attack, height, width)
    moves = [
        *_spans(numbers[..., 0], height, heights),
        *_spans(numbers[..., 1], width, widths),
        numbers[:, :, None, None, 2:] < 0.5,
    ]
    rows = tf.range(height, dtype=tf.float32)[:, None, None]
    columns = tf.range(width, dtype=tf.float32)[:, None]

    def propose(x, best, move):
        middle, reach_down, centre, reach_across, down = move
        inside = (tf.abs(rows - middle) < reach_down) & (
            tf.abs(columns - centre) < reach_across
        )
        return tf.where(inside, tf.where(down, *faces(x)), best)

    return tf.where(stripes, lower, upper), moves, propose


def _bumps(attack, x, seeds):
    """Algorithm 3, l2: mass moves from one window to another, as a bump."""
    _, height, width, channels = x.shape
    epsilon = tf.cast(attack.epsilon, x.dtype)
    patterns, tiles = _tiles(height, width)
    first, numbers = _uniform(
        seeds,
        (tiles.max() + 1) * (1 + channels),
        attack.queries - 1,
        5 + channels,
    )
    heights, widths = _window_sizes(attack, height, width)
    table, pages = _pages(heights, widths, height, width)
    table = tf.constant(table.reshape(-1), x.dtype)
    pages = pages[:, None] + tf.cast(numbers[..., 4] < 0.5, tf.int32)

    def addresses(numbers):
        rows = height - 1 - _places(numbers[..., 0], height, heights)
        columns = width - 1 - _places(numbers[..., 1], width, widths)
        rows += pages * (2 * height - 1)
        return _image(rows * (2 * width - 1) + columns)

    moves = [
        addresses(numbers[..., :2]),
        addresses(numbers[..., 2:4]),
        _signs(numbers[:, :, None, None, 5:], x.dtype),
    ]
    rows = tf.range(height)[:, None, None]
    pixels = rows * (2 * width - 1) + tf.range(width)[:, None]

    def at_epsilon(x, delta):
        size = example_norms(delta, "l2") + TINY
        return attack.clip(x + delta * (epsilon / size))

    def propose(x, best, move):
        target, source, signs = move
        bump = tf.gather(table, pixels + target)
        emptied = tf.gather(table, pixels + source) != 0
        delta = _move_mass(best - x, bump, emptied, signs, epsilon)
        return at_epsilon(x, delta)

    start = _first_bumps(first, patterns, tiles, channels, x.dtype)
    return at_epsilon(x, start), moves, propose


def _move_mass(delta, bump, emptied, signs, epsilon):
    """The body of Algorithm 3: the perturbation before it is rescaled.

    Args:
        delta: the perturbation, (batch, height, width, channels).
        bump: eta in the window that gains, zero elsewhere, one channel.
        emptied: bool, the window that loses, one channel.
        signs: of the bump, (batch, 1, 1, channels).
        epsilon: the budget.
    """
    gaining = bump != 0
    nothing = tf.zeros_like(delta)
    kept = tf.where(gaining | emptied, nothing, delta)
    own = tf.where(gaining, delta, nothing)
    new = bump * signs + own / (_channel_norms(own) + TINY)
    # What clipping to the bounds left unused goes to all channels alike.
    unused = epsilon**2 - tf.square(example_norms(delta, "l2"))
    unused = tf.maximum(unused, 0) / delta.shape[-1]
    mass = tf.sqrt(tf.square(_channel_norms(delta - kept)) + unused)
    return kept + new * (mass / (_channel_norms(new) + TINY))


def _first_bumps(numbers, patterns, tiles, channels, dtype):
    """The first l2 perturbation: a grid of eta, some turned, random signs."""
    upright, turned = patterns[..., None].astype(dtype.as_numpy_dtype)
    numbers = tf.reshape(numbers, [-1, tiles.max() + 1, 1 + channels])
    numbers = tf.gather(numbers, tiles, axis=1)
    bumps = tf.where(numbers[..., :1] < 0.5, turned, upright)
    return bumps * _signs(numbers[..., 1:], dtype)


def _tiles(height, width):
    """The grid of the first l2 perturbation, a tile a fifth of the image.

    Returns:
        patterns: float array (2, height, width), upright and turned, zero on
            the border that the grid leaves free.
        tiles: int array (height, width), the number of each pixel's tile.
    """
    size = np.array([height, width])
    sides = np.maximum(size // 5, 1)
    before = np.maximum((size - 5 * sides) // 2, 0)
    # Five a side, and more where they are so small that more fit.
    counts = (size - before) // sides
    border = list(zip(before, size - before - counts * sides, strict=True))
    patterns = np.tile(_both_ways(*sides), (1, *counts))
    tiles = np.arange(counts.prod(), dtype=np.int32).reshape(counts)
    tiles = np.kron(tiles, np.ones(sides, np.int32))
    return np.pad(patterns, [(0, 0), *border]), np.pad(tiles, border)


def _pages(heights, widths, height, width):
    """Every window as a page of a table, for any place by one address.

    A page is zero but for eta, which starts in its middle. The image of a
    window at (row, column) is the part of the page that starts at (height - 1 -
    row, width - 1 - column): one `gather`, whatever the window's size.

    Returns:
        table: float array (pages, 2 * height - 1, 2 * width - 1).
        pages: int array, the page of each window; the next has it turned.
    """
    shapes, order = np.unique(
        np.stack([heights, widths], axis=1), axis=0, return_inverse=True
    )
    table = np.zeros((len(shapes), 2, 2 * height - 1, 2 * width - 1))
    for page, (rows, columns) in zip(table, shapes, strict=True):
        part = np.s_[
            :, height - 1 : height - 1 + rows, width - 1 : width - 1 + columns
        ]
        page[part] = _both_ways(rows, columns)
    return table, 2 * order.reshape(-1).astype(np.int32)


def _both_ways(height, width):
    return np.stack([eta(height, width), eta(width, height).T])


def _window_sizes(attack, height, width):
    """Heights and widths of the windows, two int arrays (queries - 1,)."""
    shares = window_shares(attack.queries, attack.p_init)
    sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
    if attack.norm == "linf":
        sides = np.maximum(sides, 1)
    else:
        # Odd, so that a bump has a centre.
        sides = np.maximum(sides, 3) // 2 * 2 + 1
    return np.minimum(sides, height), np.minimum(sides, width)


def _places(numbers, size, sides):
    """Where windows start, for uniform numbers (queries - 1, batch)."""
    count = tf.constant(size - sides[:, None] + 1, numbers.dtype)
    return tf.cast(numbers * count, tf.int32)


def _spans(numbers, size, sides):
    """Windows along an axis: |place - middle| < reach, in float32."""
    places = tf.cast(_places(numbers, size, sides), tf.float32)
    reaches = tf.constant(sides / 2, tf.float32)
    return _image(places + reaches[:, None] - 0.5), reaches


def _image(values):
    """(queries - 1, batch) as (queries - 1, batch, 1, 1, 1)."""
    return values[..., None, None, None]


def _signs(numbers, dtype):
    return tf.where(numbers < 0.5, -tf.ones([], dtype), tf.ones([], dtype))


def _channel_norms(delta):
    squares = tf.reduce_sum(tf.square(delta), axis=[1, 2], keepdims=True)
    return tf.sqrt(squares)


def _uniform(seeds, start, moves, each):
    """Uniform numbers for the start (batch, start), and for the moves.

    Returns:
        Two tensors; the second is (moves, batch, each).
    """
    numbers = _draw(seeds, tf.constant(start + moves * each))
    shape = [tf.shape(seeds)[0], moves, each]
    rest = tf.reshape(numbers[:, start:], shape)
    return numbers[:, :start], tf.transpose(rest, [1, 0, 2])


# A graph of its own: eagerly, a loop over examples takes a second a batch.
@tf.function(autograph=False)
def _draw(seeds, count):
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform([count], seed, alg="philox"),
        seeds,
        fn_output_signature=tf.float32,
    )
