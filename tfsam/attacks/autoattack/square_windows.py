"""Windows of the Square attack: their sizes, patterns and places.

Andriushchenko et al., 2020, "Square Attack", sections 3.2 to 3.4.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.geometry import FACTS

# The iterations, out of 10,000, after which p is halved (section 3.2).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# How fast a bump falls with the distance from its centre; see `_bump`.
_POWERS = {"l2": 2.0, "l1": 4.0}

Integers = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


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


def window_sizes(
    attack: Any, height: int, width: int
) -> tuple[Integers, Integers]:
    """Returns the heights and widths of the windows.

    Args:
        attack: A `Square`.
        height: Number of rows of an image, >= 1.
        width: Number of columns, >= 1.

    Returns:
        (heights, widths), int32 arrays (queries - 1,).

    Example:
        >>> from tfsam.attacks import Square
        >>> heights, _ = window_sizes(Square(0.1, queries=5), 28, 28)
        >>> heights.tolist()
        [4, 3, 2, 2]
    """
    shares = window_shares(attack.queries, attack.p_init)
    sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
    if attack.norm == "linf":
        sides = np.maximum(sides, 1)
    else:
        # Makes the sides odd, so that a bump has a centre.
        sides = np.maximum(sides, 3) // 2 * 2 + 1
    return np.minimum(sides, height), np.minimum(sides, width)


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


def _both_ways(height: int, width: int, norm: str) -> Floats:
    """Returns eta upright and transposed, (2, height, width)."""
    return np.stack([eta(height, width, norm), eta(width, height, norm).T])


def tiles(height: int, width: int, norm: str = "l2") -> tuple[Floats, Integers]:
    """Returns the grid of the first perturbation, about five tiles a side.

    Args:
        height: Number of rows, >= 1.
        width: Number of columns, >= 1.
        norm: "l2" or "l1".

    Returns:
        patterns: Float array (2, height, width), eta in each tile, upright and
            transposed; zero on the border that the grid does not cover.
        tiles: int32 array (height, width), the number of each pixel's tile.

    Example:
        >>> patterns, numbers = tiles(5, 5)
        >>> patterns.shape, int(numbers.max())
        ((2, 5, 5), 24)
    """
    size = np.array([height, width])
    sides = np.maximum(size // 5, 1)
    before = np.maximum((size - 5 * sides) // 2, 0)
    # Five tiles on each side, or more if the tiles are so small that more fit.
    counts = (size - before) // sides
    border = list(zip(before, size - before - counts * sides, strict=True))
    rows, columns = sides
    patterns = np.tile(_both_ways(rows, columns, norm), (1, *counts))
    numbers = np.arange(counts.prod(), dtype=np.int32).reshape(counts)
    numbers = np.kron(numbers, np.ones(sides, np.int32))
    return np.pad(patterns, [(0, 0), *border]), np.pad(numbers, border)


def pages(
    heights: Integers, widths: Integers, height: int, width: int, norm: str
) -> tuple[Floats, Integers]:
    """Returns a table of windows from which an image is read by its address.

    A page of the table is zero except for eta, which starts in its middle. The
    image with a window at (row, column) is the part of the page that starts at
    (height - 1 - row, width - 1 - column). Therefore a single `gather` makes
    the images of windows of all sizes.

    Args:
        heights: int32 array (queries - 1,), the heights of the windows.
        widths: int32 array (queries - 1,), their widths.
        height: Number of rows of an image.
        width: Number of columns.
        norm: "l2" or "l1".

    Returns:
        table: Float array (sizes, 2, 2 * height - 1, 2 * width - 1): two pages
            for each size, with eta upright and transposed.
        pages: int32 array, the first page of each window.

    Example:
        >>> sides = np.array([5, 3, 3], np.int32)
        >>> table, numbers = pages(sides, sides, 8, 8, "l2")
        >>> table.shape, numbers.tolist()
        ((2, 2, 15, 15), [2, 0, 0])
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


def places(numbers: tf.Tensor, size: int, sides: Integers) -> tf.Tensor:
    """Converts uniform numbers to the starts of windows along an axis.

    Args:
        numbers: Float tensor (queries - 1, batch), in [0, 1).
        size: Size of an image along the axis.
        sides: int32 array (queries - 1,), the sizes of the windows.

    Returns:
        int32 tensor (queries - 1, batch).

    Example:
        >>> numbers = tf.constant([[0.0, 0.5, 0.99]])
        >>> places(numbers, 8, np.array([3])).numpy().tolist()
        [[0, 3, 5]]
    """
    count = tf.constant(size - sides[:, None] + 1, numbers.dtype)
    return tf.cast(numbers * count, tf.int32)


def spans(
    numbers: tf.Tensor, size: int, sides: Integers
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the middles and reaches of windows along an axis, in float32.

    A window consists of the places with |place - middle| < reach.

    Args:
        numbers: Float tensor (queries - 1, batch), in [0, 1).
        size: Size of an image along the axis.
        sides: int32 array (queries - 1,), the sizes of the windows.

    Returns:
        (middles, reaches), tensors (queries - 1, batch, 1, 1, 1) and
        (queries - 1,).

    Example:
        >>> middles, reaches = spans(tf.constant([[0.5]]), 8, np.array([3]))
        >>> float(tf.squeeze(middles)), float(reaches[0])
        (4.0, 1.5)
    """
    first = tf.cast(places(numbers, size, sides), tf.float32)
    reaches = tf.constant(sides / 2, tf.float32)
    return over_pixels(first + reaches[:, None] - 0.5), reaches


def over_pixels(values: tf.Tensor) -> tf.Tensor:
    """Reshapes a value per window such that it broadcasts against images.

    Args:
        values: Tensor (queries - 1, batch).

    Returns:
        Tensor (queries - 1, batch, 1, 1, 1).

    Example:
        >>> over_pixels(tf.zeros([4, 2])).shape.as_list()
        [4, 2, 1, 1, 1]
    """
    return values[..., None, None, None]
