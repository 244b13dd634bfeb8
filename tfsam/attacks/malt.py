"""MALT, a targeted attack on the classes of the nearest boundaries.

Melamed et al., 2024, "MALT Powers Up Adversarial Attacks", arXiv 2407.02240.
"""

import keras

from tfsam.attacks.autoattack.apgd import APGD
from tfsam.attacks.base import Bounds
from tfsam.attacks.targeting import CANDIDATES
from tfsam.support.validators import check_count


@keras.saving.register_keras_serializable(package="tfsam")
class MALT(APGD):
    """APGD on the targeted DLR loss, nearest boundary first.

    Melamed et al., 2024, section 4. The targets are the wrong classes whose
    decision boundaries are nearest by the network linearised at the image; see
    `tfsam.attacks.targeting.by_distance`. Each is attacked by 100 steps of
    APGD, and any misclassified point ends the search for an example.

    The paper reports about AutoAttack's robust accuracy in a fifth of its time,
    on data of 100 and 1000 classes. With up to ten classes, the targets are
    those of `apgd_t` in another order. MALT is not AutoAttack: it only follows
    gradients, so that masked gradients mislead it, and its results have a name
    of their own.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        steps: Number of gradient steps in each attempt, >= 1.
        targets: Number of wrong classes to attack in turn, >= 1; if there are
            fewer, all.
        candidates: Number of most likely wrong classes to choose the targets
            from, >= 1. Each costs a gradient.
        restarts: Number of attempts for each target, >= 1.
        bounds: (lowest, highest) value of x, or None.
        eot: Number of draws of a random network in each step, and for each
            candidate; see `APGD`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.6, 0.4]]), tf.constant([0])
        >>> x_adv = MALT(epsilon=0.2, steps=10)(lambda x: 10 * x, x, y)
        >>> bool(x_adv[0, 1] > x_adv[0, 0])
        True
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 100,
        targets: int = 9,
        candidates: int = CANDIDATES,
        restarts: int = 1,
        bounds: Bounds = (0.0, 1.0),
        eot: int = 1,
    ) -> None:
        super().__init__(
            epsilon,
            norm,
            steps,
            "dlr",
            check_count("targets", targets, 1),
            restarts,
            bounds=bounds,
            eot=eot,
            target_order="distance",
        )
        self.candidates = check_count("candidates", candidates, 1)
