"""Sweeps by bisection: the smallest epsilon that breaks each example.

A sweep over epsilons attacks every survivor at every epsilon. By bisection, an
example that stands at an epsilon is taken to stand at all smaller ones. This is
an assumption: an attack may fail at a larger epsilon and succeed at a smaller
one, and then the curve is higher than that of a full sweep.

An image that an attack returned is also tried at other epsilons: its
perturbation is scaled to their lengths, which costs a forward pass. A scaled
image that is misclassified breaks the example, as any image in the ball does.
Where a full sweep misses such an image, the curve is lower than that of a full
sweep. The scaled images lead to the epsilon at which the attack is tried next.
The first epsilon is chosen in the same way, from images in the direction of the
gradient, which break nothing. One or two attacks on an example therefore decide
the whole curve.

The examples of a chunk are attacked together, each at its own epsilon, if the
attack takes an epsilon for each example. The last attacks are on a few
examples, which do not fill a block; in larger chunks they cost less.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfsam import geometry
from tfsam.evaluation import chunk_outcomes
from tfsam.evaluation.chunk_outcomes import Outcome
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.worst_case import within
from tfsam.support.validators import Bounds

# Functions of the numbers of epsilons and the indices of examples.
_Attack = Callable[[np.ndarray, np.ndarray], np.ndarray]
_Along = Callable[[np.ndarray, np.ndarray], np.ndarray]
_Rescale = Callable[[Outcome, np.ndarray, np.ndarray], Outcome]


def first_broken(
    attack: _Attack,
    along: _Along,
    epsilons: int,
    start: np.ndarray,
    together: bool = False,
) -> np.ndarray:
    """Searches for the smallest epsilon that breaks each example.

    After the first attack, an example is always attacked at the epsilon below
    the smallest one that is known to break it, until the attack fails. The
    order of an example's attacks depends on its own verdicts only, neither on
    other examples nor on chunks.

    Args:
        attack: Function (numbers, indices) -> reached, which attacks the
            examples of the indices, int (some,), at the epsilons of the
            numbers, int (some,).
            It returns an int array (some,), the number of the smallest epsilon
            whose ball holds the misclassified image that was found, `epsilons`
            where none was found.
        along: Function (numbers, indices) -> broken, a bool array (some,):
            whether the examples are broken by the images that their last
            attacks returned, scaled to the epsilons of the numbers, int
            (some,).
        epsilons: Number of epsilons, in ascending order.
        start: Int array (examples,), the numbers of the epsilons at which the
            examples are attacked first.
        together: Whether the attack takes examples with different epsilons.
            Otherwise, all numbers of a call are equal.

    Returns:
        Int array (examples,), the numbers of the epsilons; `epsilons` for
        examples that stand at every epsilon that was tried.

    Example:
        >>> thresholds = np.array([0, 2, 3])
        >>> def attack(numbers, indices):
        ...     return np.where(numbers >= thresholds[indices], numbers, 3)
        >>> def along(numbers, indices):
        ...     return np.zeros(len(indices), bool)
        >>> start = np.array([2, 2, 2])
        >>> first_broken(attack, along, 3, start).tolist()
        [0, 2, 3]
    """
    low = np.zeros(len(start), int)  # No smaller epsilon breaks the example.
    high = np.full(len(start), epsilons)  # This epsilon does.
    tried = start.copy()
    while (left := low < high).any():
        if not together:
            # From above, so that examples meet at the smaller epsilons.
            left &= tried == tried[left].max()
        chosen = np.flatnonzero(left)
        reached = np.asarray(attack(tried[chosen], chosen))
        failed = chosen[reached == epsilons]
        low[failed] = tried[failed] + 1
        high[chosen] = np.minimum(high[chosen], reached)
        high[chosen] = along_rays(along, chosen, low[chosen], high[chosen])
        tried[chosen] = high[chosen] - 1
    return high


def along_rays(
    along: _Along, chosen: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Searches by halves for the smallest epsilons at which images break.

    Args:
        along: See `first_broken`.
        chosen: Int array (some,), the indices of the examples.
        low: Int array (some,), the first numbers to search.
        high: Int array (some,), the numbers after the last ones.

    Returns:
        Int array (some,); `high` where no image breaks its example.
    """
    low, high = low.copy(), high.copy()
    while (left := low < high).any():
        middle = (low + high) // 2
        broken = np.zeros(len(chosen), bool)
        broken[left] = along(middle[left], chosen[left])
        high = np.where(broken, middle, high)
        low = np.where(left & ~broken, middle + 1, low)
    return high


def sweep(
    attack: Callable[[np.ndarray, np.ndarray], Outcome],
    rescale: _Rescale,
    radii: np.ndarray,
    before: Outcome,
    guess: np.ndarray | None,
    together: bool = False,
) -> list[Outcome]:
    """Attacks a chunk of examples at several epsilons by bisection.

    Args:
        attack: Function (numbers, verdict) -> outcome, which attacks the
            examples that stand by `verdict`, int8 (n,), at the epsilons of the
            numbers, int (n,).
        rescale: Function (outcome, radii, chosen) -> outcome, which judges the
            images of an outcome after scaling those of the examples `chosen`,
            int (some,), to the lengths `radii`, float (some,).
        radii: Float array (epsilons, n), the radii of the balls of the examples
            at each epsilon, ascending.
        before: The outcome without an attack.
        guess: Float array (n, ...), images that lead to the first epsilons, or
            None to begin with the largest one.
        together: See `first_broken`.

    Returns:
        The outcome at each epsilon. An example that a smaller epsilon broke has
        its verdict and its image from there. Counts and costs are those of the
        attacks that were made at the epsilon itself.
    """
    every = np.arange(len(before.verdict))
    standing = np.flatnonzero(before.verdict == STANDS)
    nobody = np.full_like(before.verdict, MISCLASSIFIED)
    found = [_copied(before) for _ in radii]
    # The last image of each example, and the one within the smallest epsilon.
    last, nearest = _copied(before), _copied(before)

    def attacked(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        chosen, verdict = standing[places], nobody.copy()
        verdict[chosen] = STANDS
        tried = np.zeros(len(every), int)
        tried[chosen] = numbers
        outcome = attack(tried, verdict)
        chunk_outcomes.put(last, outcome, chosen)
        for number in np.unique(numbers):
            chunk_outcomes.put(
                found[number], outcome, chosen[numbers == number]
            )
        broken = outcome.verdict[chosen] != STANDS
        chunk_outcomes.put(nearest, outcome, chosen[broken])
        outside = ~within(outcome.largest[chosen], radii[:, chosen])
        reached = np.minimum(outside.sum(axis=0), numbers)
        return np.where(broken, reached, len(radii))

    def along(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        chosen = standing[places]
        outcome = rescale(last, radii[numbers, chosen], chosen)
        broken = outcome.verdict[chosen] != STANDS
        chunk_outcomes.put(
            nearest, outcome, chosen[broken], chunk_outcomes.FOUND
        )
        return broken

    first = np.full(len(every), len(radii))
    start = first[standing]
    if guess is not None:
        images = before._replace(images=guess)
        start = _reached(rescale, radii, images, standing)
    first[standing] = first_broken(
        attacked, along, len(radii), np.maximum(start - 1, 0), together
    )
    for number, outcome in enumerate(found):
        broken = every[first <= number]
        chunk_outcomes.put(outcome, nearest, broken, chunk_outcomes.FOUND)
    return found


def _reached(
    rescale: _Rescale, radii: np.ndarray, images: Outcome, chosen: np.ndarray
) -> np.ndarray:
    """Returns the numbers of the first epsilons at which scaled images break.

    Args:
        rescale: See `sweep`.
        radii: Float array (epsilons, n).
        images: The outcome that holds the images.
        chosen: Int array (some,), the examples.
    """

    def broken(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        some = chosen[places]
        outcome = rescale(images, radii[numbers, some], some)
        return outcome.verdict[some] != STANDS

    low = np.zeros(len(chosen), int)
    return along_rays(broken, np.arange(len(chosen)), low, low + len(radii))


def _copied(before: Outcome) -> Outcome:
    """Returns an outcome without an attack, whose arrays may be changed."""
    return chunk_outcomes.unattacked(
        before.images,
        before.verdict,
        before.lengths,
        before.wrong,
        before.right,
        before.counters,
        before.facts,
    )


def rescaled(
    x: np.ndarray,
    images: np.ndarray,
    radii: np.ndarray,
    norm: str,
    bounds: Bounds,
) -> np.ndarray:
    """Scales the perturbations of images to other lengths.

    Args:
        x: Float array (n, ...), the clean images.
        images: Float array (n, ...), the perturbed images.
        radii: Float array (n,), the lengths.
        norm: "linf", "l2" or "l1".
        bounds: (lowest, highest) value of a pixel, or None.

    Returns:
        Array of the shape and dtype of x: the points at these distances in the
        directions of the perturbations, projected into the bounds, where they
        may be nearer. The clean image where there is no perturbation.

    Example:
        >>> x, image = np.zeros([1, 2]), np.array([[0.25, 0.5]])
        >>> rescaled(x, image, np.array([0.125]), "linf", (0.0, 1.0)).tolist()
        [[0.0625, 0.125]]
    """
    centres = tf.constant(x)
    radius = tf.reshape(
        tf.constant(radii, centres.dtype), [-1] + [1] * (x.ndim - 1)
    )
    offsets = tf.constant(images, centres.dtype) - centres
    lengths = geometry.example_norms(offsets, norm)
    moved = centres + tf.math.divide_no_nan(offsets, lengths) * radius
    points = geometry.project_within(centres, moved, radius, norm, bounds)
    if norm != "linf":
        points = geometry.shrink(centres, points, radius, norm)
    return points.numpy()
