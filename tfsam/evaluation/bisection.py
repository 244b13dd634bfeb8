"""Sweeps by bisection: the smallest epsilon that breaks each example.

A sweep over epsilons attacks every survivor at every epsilon. By bisection, an
example that stands at an epsilon is taken to stand at all smaller ones, so that
a few attacks on an example decide the whole curve. This is an assumption: an
attack may fail at a larger epsilon and succeed at a smaller one, and then the
curve is higher than that of a full sweep.
"""

from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import STANDS

Arrays = Mapping[str, np.ndarray]


def first_broken(
    attack: Callable[[int, np.ndarray], np.ndarray],
    epsilons: int,
    examples: int,
    downwards: bool = False,
) -> np.ndarray:
    """Searches for the smallest epsilon that breaks each example.

    The order of an example's attacks depends on its own verdicts only, neither
    on other examples nor on chunks.

    Args:
        attack: Function (number, indices) -> broken, which attacks the examples
            of the indices, int (some,), at the epsilon of the number, and
            returns a bool array (some,).
        epsilons: Number of epsilons, in ascending order.
        examples: Number of examples.
        downwards: Whether to try the epsilons from the largest one down,
            instead of halving their number. An example is then attacked in vain
            at most once, which pays if an attack stops as soon as it succeeds.

    Returns:
        Int array (examples,), the numbers of the epsilons; `epsilons` for
        examples that stand at every epsilon that was tried.

    Example:
        >>> thresholds = np.array([0, 2, 3])
        >>> first_broken(lambda e, i: e >= thresholds[i], 3, 3).tolist()
        [0, 2, 3]
    """
    low = np.zeros(examples, int)  # No smaller epsilon breaks the example.
    high = np.full(examples, epsilons)  # This epsilon does.
    while (left := low < high).any():
        tried = high - 1 if downwards else (low + high) // 2
        # From above, so that a cheap success comes first.
        number = tried[left].max()
        chosen = np.flatnonzero(left & (tried == number))
        broken = np.asarray(attack(int(number), chosen))
        high[chosen[broken]] = number
        low[chosen[~broken]] = number + 1
    return high


def sweep(
    attack: Callable[[int, np.ndarray], Arrays],
    epsilons: int,
    natural: np.ndarray,
    downwards: bool = False,
) -> list[Arrays]:
    """Attacks a chunk of examples at several epsilons by bisection.

    Args:
        attack: Function (number, verdict) -> arrays, which attacks the examples
            that stand by `verdict`, int8 (n,), at the epsilon of the number.
            The arrays are those that a record holds, by name; `verdict`,
            `lengths`, `adversarial` and `wrong` have a row for each example.
        epsilons: Number of epsilons, in ascending order.
        natural: Int8 array (n,), the verdicts without an attack.
        downwards: See `first_broken`.

    Returns:
        The arrays of each epsilon. An example that a smaller epsilon broke has
        its verdict and its image from there. Counts are those of the attacks
        that were made at the epsilon itself.
    """
    tries: dict[int, Arrays] = {}
    nobody = np.full_like(natural, MISCLASSIFIED)
    standing = np.flatnonzero(natural == STANDS)

    def broken(number: int, chosen: np.ndarray) -> np.ndarray:
        verdict = nobody.copy()
        verdict[standing[chosen]] = STANDS
        tries[number] = attack(number, verdict)
        return tries[number]["verdict"][standing[chosen]] != STANDS

    first = np.full(len(natural), epsilons)
    first[standing] = first_broken(broken, epsilons, len(standing), downwards)
    found: list[Arrays] = []
    for number in range(epsilons):
        new = dict(tries.get(number) or attack(number, nobody))
        rows = {
            "verdict": natural.copy(),
            "lengths": np.full_like(new["lengths"], np.inf),
        }
        for name in {"adversarial", "wrong"} & new.keys():
            rows[name] = new[name].copy()
        for smaller in range(number + 1):
            here = first == smaller
            for name, values in rows.items():
                if here.any():
                    values[here] = tries[smaller][name][here]
        found.append(new | rows | {"sweep": np.array("bisect")})
    return found
