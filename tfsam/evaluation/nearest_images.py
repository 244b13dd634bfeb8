"""The nearest adversarial images of a chunk's examples, for all epsilons.

A minimum-norm attack finds the nearest adversarial image of each example, so
that a single run decides at every epsilon.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags

Arrays = Mapping[str, np.ndarray]


class Nearest(NamedTuple):
    """The result of a minimum-norm attack on a chunk.

    Attributes:
        distances: Float array (n,): 0 if an example is misclassified, infinity
            if the attack found no adversarial image.
        lengths: Float array (n, 3), the `lengths` of the nearest adversarial
            images.
        wrong: Float array (n,), the fraction of the draws of a random model
            that are wrong there.
        right: Bool array (n, labels), which of several labels are right there.
        images: Float array (n, ...), these images, or None if they are not
            kept.
        attacked: Number of examples that were attacked.
        passes: Int array (2,), forward and gradient passes of the network.
        nonfinite: Number of gradients that were NaN or infinite.
        facts: Facts about the attack.
        seconds: Duration of the attack.
        diagnosed: Arrays for the diagnosis; see `diagnosis.of_row`.
    """

    distances: np.ndarray
    lengths: np.ndarray
    wrong: np.ndarray
    right: np.ndarray
    images: np.ndarray | None
    attacked: int
    passes: np.ndarray
    nonfinite: int
    facts: red_flags.Facts
    seconds: float
    diagnosed: Arrays


def nearest_of(saved: Arrays) -> Nearest:
    """Returns the result of a minimum-norm attack from its saved arrays.

    Its cost was charged to the epsilon at which it ran.

    Args:
        saved: The arrays, by name.
    """
    n = len(saved["lengths"])
    facts = [saved[name][0] for name in red_flags.Facts._fields]
    return Nearest(
        distances=saved["distances"],
        lengths=saved["lengths"],
        wrong=saved.get("wrong_nearest", np.zeros(n)),
        right=saved.get("right_nearest", np.zeros((n, 0), bool)),
        images=None,
        attacked=0,
        passes=0 * saved["passes"],
        nonfinite=int(saved["nan_gradients"]),
        facts=red_flags.Facts(bool(facts[0]), bool(facts[1]), int(facts[2])),
        seconds=0.0,
        diagnosed=diagnosis.recorded(saved),
    )
