"""A test of whether logits depend on the other examples of their batch.

An example keeps its place in the batch when the other examples change, so that
the hardware rounds its logits in the same way. If a model always returns the
same logits, any larger difference shows a dependence. The logits of a random
model differ in each call, and noise with heavy tails makes large differences by
chance. Calls on a batch are therefore compared with calls on the changed
batches by a permutation test:

- If no logit depends on the other examples, all calls are exchangeable, in any
  distribution of the noise, and however rows and classes share it. It is only
  assumed to be independent from call to call.
- The statistic is the squared difference of the rank sums of the two kinds of
  calls (Wilcoxon 1945), summed over all logits. Ranks are not dominated by a
  few extreme values.
- It is compared with its values for all divisions of the calls into halves. The
  p-value of an evaluation is the smallest of its changed batches, times their
  number (Bonferroni). If the logits do not depend on the batch, it is at most
  `LEVEL` with at most that probability, the rate of false warnings.

The test finds shifts of logits. It does not find noise whose scale alone
depends on the batch, or shifts far below the noise.
"""

import functools
import itertools
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.stats
import tensorflow as tf

# The largest p-value at which a random model is taken to depend on the batch.
LEVEL = 1e-3

# Number of calls on each batch, of which there are four. With fewer, no p-value
# would be below `LEVEL`.
_CALLS = 8

_HUGE = np.finfo(np.float64).max / 4


class Changed(NamedTuple):
    """A batch in which some examples have other neighbours.

    Attributes:
        examples: Indices of these examples in the original batch.
        places: Their places in the changed batch.
        batch: Float array (batch, ...). Unless the original batch has a single
            example, it is as large, and `places` are `examples`.
    """

    examples: Any
    places: Any
    batch: np.ndarray


def with_other_neighbours(x: np.ndarray) -> Iterator[Changed]:
    """Yields batches in which some examples of x have other neighbours.

    Args:
        x: Float array (batch, ...).
    """
    low, high = x.min(), x.max()
    # Within the range of the pixels, and unlike the data.
    mirrored = np.clip(low + (high - x), low, high)
    if len(x) == 1:
        yield Changed([0], [0], np.concatenate([x, mirrored]))
        yield Changed([0], [1], np.concatenate([mirrored, x]))
        return
    kept = np.arange(0, len(x), 2)
    batch = mirrored.copy()
    batch[kept] = x[kept]
    yield Changed(kept, kept, batch)
    means = x.reshape(len(x), -1).mean(axis=1)
    for place in {int(means.argmin()), int(means.argmax())}:
        batch = np.repeat(x[place : place + 1], len(x), axis=0)
        yield Changed([place], [place], batch)


def p_value(
    function: Any, x: np.ndarray, changed: Sequence[Changed], tolerance: float
) -> float:
    """Tests whether a random model's logits depend on the rest of a batch.

    Args:
        function: The function of a loaded model, from pixels to logits, with
            the method `in_turn`.
        x: Float array (batch, ...), images.
        changed: Batches that the model takes, of `with_other_neighbours`.
        tolerance: The largest difference that rounding can explain. A smaller
            shift of the medians counts as none.

    Returns:
        The p-value of the hypothesis that they do not, at most 1.
    """
    batches = [tf.constant(x), *(tf.constant(each.batch) for each in changed)]
    outputs = function.in_turn(batches * _CALLS)
    logits = [
        np.stack(
            [
                tf.convert_to_tensor(found).numpy().astype(np.float64)
                for found in outputs[number :: len(batches)]
            ]
        )
        for number in range(len(batches))
    ]
    found = [
        p_value_of(
            logits[0][:, each.examples], other[:, each.places], tolerance
        )
        for each, other in zip(changed, logits[1:], strict=True)
    ]
    return min(1.0, len(found) * min(found, default=1.0))


def p_value_of(
    first: np.ndarray, second: np.ndarray, tolerance: float = 0.0
) -> float:
    """Tests whether two groups of calls have the same distribution of logits.

    Args:
        first: Float array (calls, ...), the logits of each call.
        second: Float array of the same shape.
        tolerance: A shift of the medians that counts as none.

    Returns:
        The fraction of the divisions of all calls into two halves whose
        difference of ranks is as large as that of the two groups.

    Example:
        >>> calls = np.arange(8.0)[:, None]
        >>> p_value_of(calls[:4], calls[4:]) == 1 / 35
        True
    """
    count = len(first)
    both = np.concatenate([first, second]).reshape(2 * count, -1)
    both = np.nan_to_num(both, nan=_HUGE, posinf=_HUGE, neginf=-_HUGE)
    shift = np.median(both[:count], axis=0) - np.median(both[count:], axis=0)
    if np.abs(shift).max() <= tolerance:
        return 1.0
    ranks = scipy.stats.rankdata(both, axis=0) - (2 * count + 1) / 2
    halves = _halves(count)
    statistics = ((halves @ (ranks @ ranks.T)) * halves).sum(axis=1)
    return float((statistics >= (1 - 1e-9) * statistics[0]).mean())


@functools.cache
def _halves(count: int) -> np.ndarray:
    """Returns all divisions of 2 * count calls into two halves.

    Returns:
        Float array (divisions, 2 * count) of 1 and -1. The first half of the
        calls is first, and a division and its opposite count once.
    """
    chosen = list(itertools.combinations(range(1, 2 * count), count - 1))
    halves = np.full((len(chosen), 2 * count), -1.0)
    halves[:, 0] = 1.0
    np.put_along_axis(halves, np.array(chosen), 1.0, axis=1)
    return halves
