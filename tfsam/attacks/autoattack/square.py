"""The Square attack, a gradient-free random search.

Andriushchenko, Croce, Flammarion and Hein, 2020, "Square Attack: a
query-efficient black-box adversarial attack via random search". Each query
changes the perturbation inside a square window; the change is kept if it raises
the loss, the margin of the wrong classes. The attack in l1 is from Croce and
Hein, 2021, "Mind the box: l1-APGD for Sparse Adversarial Attacks on Image
Classifiers", section 5.

All random numbers are drawn before the search, from the seed of each example.
For each norm, they are converted to `moves`, a list of tensors whose row i
holds the random choices of iteration i, and there is a function from (x, best,
move) to the next candidate.
"""

import copy
import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.attempts import any_copy
from tfsam.attacks.attempts import copies
from tfsam.attacks.attempts import first_flag
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.blocks import batch_size
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import compiled
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import may_stop
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import setting
from tfsam.attacks.per_example import where
from tfsam.geometry import FACTS
from tfsam.geometry import TINY
from tfsam.geometry import example_norms
from tfsam.support.validators import check_count
from tfsam.support.validators import check_fraction
from tfsam.support.validators import check_interval

# The iterations, out of 10,000, after which p is halved (section 3.2).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# How fast a bump falls with the distance from its centre; see `_bump`.
_POWERS = {"l2": 2.0, "l1": 4.0}

# Largest number of pixels in a batch for which several candidates are evaluated
# at once.
_SMALL = 2**14

Integers = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@keras.saving.register_keras_serializable(package="tfsam")
class Square(Attack):
    """The Square attack (Andriushchenko et al., 2020), untargeted.

    Algorithm 1 of the paper with the moves of algorithm 2 (l-inf) or 3 (l2), on
    the margin, as in standard AutoAttack. The moves in l1 are those of l2 with
    steeper bumps, and are projected onto the ball and the bounds. The search
    for an example ends at its first misclassified candidate. Windows can reach
    the last row and column; in AutoAttack's code they do so only if they fill
    the image. For small images, several candidates are evaluated at once, with
    the same result.

    The shape of an example must be known when the attack is traced. Inputs that
    are not of shape (height, width, channels) are treated as an image with a
    single column and a single channel, and windows are clipped to the column.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        queries: Number of candidates for each example, including the first,
            >= 1.
        p_init: Share of the pixels that the first windows cover, in (0, 1].
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = Square(epsilon=0.2, queries=100)(lambda x: x, x, y, seed=0)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True
    """

    in_graph = True
    norms = geometry.NORMS
    gradient_free = True
    selective = True
    tensor_epsilon = True
    example_epsilons = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        queries: int = 5000,
        p_init: float = 0.8,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.queries = check_count("queries", queries, 1)
        self.p_init = check_fraction("p_init", p_init)

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the first misclassified candidate, else the best.

        The best candidate is that of the highest loss. On a surrogate, it is
        returned in any case.
        """
        active = examples(logits_fn, x)
        image, attack = x, self
        if x.shape.rank != 4:
            image = tf.reshape(x, [-1, math.prod(x.shape[1:]), 1, 1])
            attack = self._on_column(x.shape[1:])
        prepare = _PREPARED[self.norm]
        start, moves, propose = prepare(attack, image, seeds)
        search = self._search(logits_fn, x, y, propose)
        best = compiled(logits_fn, search)(image, start, moves, active)
        return where(active, tf.reshape(best, tf.shape(x)), x)

    def _on_column(self, shape: tf.TensorShape) -> "Square":
        """Returns the attack for inputs as columns, with bounds of each row."""
        other = copy.copy(self)
        if any(map(np.ndim, self.bounds or ())):
            columns = [
                np.broadcast_to(bound, tuple(shape)).reshape(-1, 1, 1)
                for bound in self.bounds or ()
            ]
            other.bounds = check_interval("bounds", columns)
        return other

    def _search(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        y: tf.Tensor,
        propose: Callable[..., tf.Tensor],
    ) -> Callable[..., tf.Tensor]:
        """Returns the search as a function of tensors that draws no numbers."""
        ahead = _queries_ahead(x, logits_fn)
        last = self.queries - 1

        def query(
            candidate: tf.Tensor, survivors: tf.Tensor, y: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            candidate = tf.reshape(candidate, [-1, *x.shape[1:]])
            logits = predict(logits_fn, candidate, survivors)
            broken = may_stop(logits_fn, logits, y)
            return losses.margin(logits, y), broken

        def search(
            image: tf.Tensor,
            start: tf.Tensor,
            moves: list[tf.Tensor],
            active: tf.Tensor,
        ) -> tf.Tensor:
            if not last:
                return start
            batch = batch_size(image)
            images, truth = copies(image, ahead), copies(y, ahead)
            rows = copies(tf.range(batch), ahead)
            tables = [_table(move) for move in moves]

            def step(
                index: tf.Tensor,
                best: tf.Tensor,
                margin: tf.Tensor,
                survivors: tf.Tensor,
            ) -> tuple[tf.Tensor, ...]:
                # Makes each example's next candidates as if none of them were
                # accepted. The first that is accepted counts; those after it
                # are discarded.
                turns = tf.concat([index + n for n in range(ahead)], 0)
                asked = copies(survivors, ahead) & (turns < last)
                turns = tf.minimum(turns, last - 1)
                places = turns * batch + rows
                now = [table(turns, places) for table in tables]
                candidates = propose(images, copies(best, ahead), now)
                found, broken = query(candidates, asked, truth)
                better = asked & (broken | (found > copies(margin, ahead)))
                taken = any_copy(better, ahead)
                first = tf.where(taken, first_flag(better, ahead), ahead - 1)
                row = first * batch + tf.range(batch)
                hit = taken & tf.gather(broken, row)
                return (
                    index + first + 1,
                    where(taken, tf.gather(candidates, row), best),
                    tf.where(taken, tf.gather(found, row), margin),
                    survivors & ~hit & (index + first + 1 < last),
                )

            margin, broken = query(start, active, y)
            index = tf.zeros([batch], tf.int32)
            return tf.while_loop(
                lambda index, best, margin, survivors: tf.reduce_any(survivors),
                step,
                (index, start, margin, active & ~broken),
                parallel_iterations=1,
            )[1]

        return search


def _queries_ahead(x: tf.Tensor, logits_fn: LogitsFn) -> int:
    """Returns the number of candidates of an example to evaluate at once.

    Four queries of a few small images take as long as one, if the network may
    process that many examples.
    """
    if not x.shape.is_fully_defined() or x.shape.num_elements() > _SMALL:
        return 1
    most = setting(logits_fn, "most") or 0
    blocks = setting(logits_fn, "rows")
    return 4 if blocks or 4 * x.shape[0] <= most else 1


def _table(move: tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function that selects the current choice of each row.

    Args:
        move: Tensor (moves, batch, ...), or (moves,) if it is the same for all
            examples.

    Returns:
        Function (turns, places) -> choices. `turns` holds the iteration of each
        row, and `places` the number of its choice among those of all examples.
    """
    if move.shape.rank == 1:
        return lambda turns, places: _column(tf.gather(move, turns))
    flat = tf.reshape(move, [-1, *move.shape[2:]])
    return lambda turns, places: tf.gather(flat, places)


def _column(values: tf.Tensor) -> tf.Tensor:
    """Reshapes (batch,) to (batch, 1, 1, 1)."""
    return values[:, None, None, None]


def window_shares(queries: int, p_init: float) -> Floats:
    """Returns the share of the pixels that each window covers.

    This is p of section 3.2, whose schedule is for 10,000 iterations. As in
    AutoAttack, it is scaled to the number of queries.

    Args:
        queries: Number of queries, >= 1.
        p_init: First share, in (0, 1].

    Returns:
        Float array (queries - 1,), for iterations 1, 2, ...; query 0 is the
        first candidate.

    Example:
        >>> window_shares(5, 0.8).round(4).tolist()
        [0.025, 0.0125, 0.0062, 0.0031]
    """
    scaled = np.arange(1, queries) / queries * 10_000
    return p_init / 2.0 ** np.searchsorted(_HALVED_AFTER, scaled.astype(int))


def eta(height: int, width: int, norm: str = "l2") -> Floats:
    """Returns the window of the l2 or l1 attack: a bump above its negative.

    See section 3.4 of the paper.

    Args:
        height: Number of rows, >= 1.
        width: Number of columns, >= 1.
        norm: "l2" or "l1".

    Returns:
        Float array (height, width) of length 1 in `norm`.

    Example:
        >>> eta(2, 1).round(3).tolist()
        [[0.707], [-0.707]]
    """
    half = height // 2
    pattern = np.concatenate(
        [_bump(half, width, norm), -_bump(height - half, width, norm)]
    )
    return pattern / _length(pattern, norm)


def _length(pattern: Floats, norm: str) -> Any:
    """Returns the norm of a pattern, taken as a vector."""
    return np.linalg.norm(pattern.ravel(), FACTS[norm].order)


def _bump(height: int, width: int, norm: str) -> Floats:
    """Returns a pyramid of length 1 in the norm.

    At distance d from the centre it is proportional to
    sum_{d < j <= n + 1} 1/j^p, with p = 2 in l2 and p = 4 in l1.
    """
    terms = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** _POWERS[norm]
    sums = np.cumsum(terms[::-1])[::-1]
    rows = np.abs(np.arange(height) - height // 2)
    columns = np.abs(np.arange(width) - width // 2)
    pattern = sums[np.maximum(rows[:, None], columns)]
    return pattern / _length(pattern, norm)


# The first candidate, the moves and the function that proposes candidates.
_Search = tuple[tf.Tensor, list[tf.Tensor], Callable[..., tf.Tensor]]


def _squares(attack: Square, x: tf.Tensor, seeds: tf.Tensor) -> _Search:
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
    heights, widths = _window_sizes(attack, height, width)
    moves = [
        *_spans(numbers[..., 0], height, heights),
        *_spans(numbers[..., 1], width, widths),
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


def _bumps(attack: Square, x: tf.Tensor, seeds: tf.Tensor) -> _Search:
    """Prepares algorithm 3, l2 and l1: moves mass between two windows."""
    _, height, width, channels = x.shape
    patterns, tiles = _tiles(height, width, attack.norm)
    first, numbers = _uniform(
        seeds,
        (tiles.max() + 1) * (1 + channels),
        attack.queries - 1,
        5 + channels,
    )
    heights, widths = _window_sizes(attack, height, width)
    table, pages = _pages(heights, widths, height, width, attack.norm)
    table = tf.constant(table.reshape(-1), x.dtype)
    pages = pages[:, None] + tf.cast(numbers[..., 4] < 0.5, tf.int32)

    def addresses(numbers: tf.Tensor) -> tf.Tensor:
        rows = height - 1 - _places(numbers[..., 0], height, heights)
        columns = width - 1 - _places(numbers[..., 1], width, widths)
        rows += pages * (2 * height - 1)
        return _image(rows * (2 * width - 1) + columns)

    moves = [
        addresses(numbers[..., :2]),
        addresses(numbers[..., 2:4]),
        _signs(numbers[:, :, None, None, 5:], x.dtype),
    ]
    move_mass = _move_mass_l1 if attack.norm == "l1" else _move_mass
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

    start = _first_bumps(first, patterns, tiles, channels, x.dtype)
    return at_epsilon(x, start), moves, propose


def _radius(attack: Square, x: tf.Tensor) -> tf.Tensor:
    """Returns epsilon as a tensor that broadcasts against images."""
    return tf.cast(attack.radius(x), x.dtype)


_PREPARED = {"linf": _squares, "l2": _bumps, "l1": _bumps}


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
    tiles: Integers,
    channels: int,
    dtype: Any,
) -> tf.Tensor:
    """Returns the first perturbation in l2 or l1.

    It is a grid of eta with random signs, some of them transposed.
    """
    upright, turned = patterns[..., None].astype(dtype.as_numpy_dtype)
    numbers = tf.reshape(numbers, [-1, tiles.max() + 1, 1 + channels])
    numbers = tf.gather(numbers, tiles, axis=1)
    bumps = tf.where(numbers[..., :1] < 0.5, turned, upright)
    return bumps * _signs(numbers[..., 1:], dtype)


def _tiles(
    height: int, width: int, norm: str = "l2"
) -> tuple[Floats, Integers]:
    """Returns the grid of the first perturbation, about five tiles a side.

    Returns:
        patterns: Float array (2, height, width), eta in each tile, upright and
            transposed; zero on the border that the grid does not cover.
        tiles: int32 array (height, width), the number of each pixel's tile.
    """
    size = np.array([height, width])
    sides = np.maximum(size // 5, 1)
    before = np.maximum((size - 5 * sides) // 2, 0)
    # Five tiles on each side, or more if the tiles are so small that more fit.
    counts = (size - before) // sides
    border = list(zip(before, size - before - counts * sides, strict=True))
    rows, columns = sides
    patterns = np.tile(_both_ways(rows, columns, norm), (1, *counts))
    tiles = np.arange(counts.prod(), dtype=np.int32).reshape(counts)
    tiles = np.kron(tiles, np.ones(sides, np.int32))
    return np.pad(patterns, [(0, 0), *border]), np.pad(tiles, border)


def _pages(
    heights: Integers, widths: Integers, height: int, width: int, norm: str
) -> tuple[Floats, Integers]:
    """Returns a table of windows from which an image is read by its address.

    A page of the table is zero except for eta, which starts in its middle. The
    image with a window at (row, column) is the part of the page that starts at
    (height - 1 - row, width - 1 - column). Therefore a single `gather` makes
    the images of windows of all sizes.

    Returns:
        table: Float array (sizes, 2, 2 * height - 1, 2 * width - 1): two pages
            for each size, with eta upright and transposed.
        pages: int32 array, the first page of each window.
    """
    shapes, order = np.unique(
        np.stack([heights, widths], axis=1), axis=0, return_inverse=True
    )
    table = np.zeros((len(shapes), 2, 2 * height - 1, 2 * width - 1))
    for page, (rows, columns) in zip(table, shapes, strict=True):
        part = np.s_[
            :, height - 1 : height - 1 + rows, width - 1 : width - 1 + columns
        ]
        page[part] = _both_ways(rows, columns, norm)
    return table, 2 * order.reshape(-1).astype(np.int32)


def _both_ways(height: int, width: int, norm: str) -> Floats:
    """Returns eta upright and transposed, (2, height, width)."""
    return np.stack([eta(height, width, norm), eta(width, height, norm).T])


def _window_sizes(
    attack: Square, height: int, width: int
) -> tuple[Integers, Integers]:
    """Returns the heights and widths of the windows, each (queries - 1,)."""
    shares = window_shares(attack.queries, attack.p_init)
    sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
    if attack.norm == "linf":
        sides = np.maximum(sides, 1)
    else:
        # Makes the sides odd, so that a bump has a centre.
        sides = np.maximum(sides, 3) // 2 * 2 + 1
    return np.minimum(sides, height), np.minimum(sides, width)


def _places(numbers: tf.Tensor, size: int, sides: Integers) -> tf.Tensor:
    """Converts uniform numbers (queries - 1, batch) to starts of windows."""
    count = tf.constant(size - sides[:, None] + 1, numbers.dtype)
    return tf.cast(numbers * count, tf.int32)


def _spans(
    numbers: tf.Tensor, size: int, sides: Integers
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the middles and reaches of windows along an axis, in float32.

    A window consists of the places with |place - middle| < reach.
    """
    places = tf.cast(_places(numbers, size, sides), tf.float32)
    reaches = tf.constant(sides / 2, tf.float32)
    return _image(places + reaches[:, None] - 0.5), reaches


def _image(values: tf.Tensor) -> tf.Tensor:
    """Reshapes (queries - 1, batch) to (queries - 1, batch, 1, 1, 1)."""
    return values[..., None, None, None]


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
