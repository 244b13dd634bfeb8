"""AutoAttack, the standard ensemble, implemented in TensorFlow.

Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", section 5: four parameter-free
attacks, each on the survivors of the previous ones. They are implemented in
`apgd.py`, `apgd_l1.py`, `fab.py` and `square.py`.

In l1 it is the ensemble of Croce and Hein, 2021, "Mind the box: l1-APGD for
Sparse Adversarial Attacks on Image Classifiers", section 5.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.attempts import strongest
from tfsam.attacks.autoattack.apgd import apgd_ce
from tfsam.attacks.autoattack.apgd import apgd_t
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.autoattack.square import Square
from tfsam.attacks.averaging import AT_END
from tfsam.attacks.averaging import Averaged
from tfsam.attacks.base import Attack
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import examples
from tfsam.attacks.per_example import where

# With the defaults of standard AutoAttack: 100 steps, 9 targets, 5000 queries,
# and in l1 with the options below.
STAGES: dict[str, Callable[..., Any]] = {
    "apgd_ce": apgd_ce,
    "apgd_t": apgd_t,
    "fab_t": FABT,
    "square": Square,
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "l1": {"apgd_ce": {"restarts": 5}, "apgd_t": {"targets": 5}},
}


@keras.saving.register_keras_serializable(package="tfsam")
class AutoAttack(Attack):
    """Standard AutoAttack: APGD-CE, APGD-T, FAB-T and Square, in this order.

    It has no options, so that results called AutoAttack are comparable. With
    fewer than ten classes, the targeted attacks use all other classes. In l1,
    APGD-CE has five restarts and APGD-T five targets, as in the authors' code.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf", "l2" or "l1".
        bounds: (lowest, highest) value of x, or None.

    Attributes:
        version: Name of the version: "standard", or "rand" or "plus", which are
            in `versions.py`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> [name for name, _ in AutoAttack(epsilon=8 / 255).stages]
        ['apgd_ce', 'apgd_t', 'fab_t', 'square']
    """

    in_graph = True
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    selective = True
    tensor_epsilon = True
    example_epsilons = True
    version = "standard"

    @property
    def stages(self) -> list[tuple[str, Any]]:
        """The four attacks in order, as (name, attack)."""
        own = OPTIONS.get(self.norm, {})
        common = self._common()
        return self._at_epsilon(
            {
                name: make(0.0, **common, **own.get(name, {}))
                for name, make in STAGES.items()
            }
        )

    def _common(self) -> dict[str, Any]:
        """Returns the options that all stages have in common."""
        return {"norm": self.norm, "bounds": self.bounds}

    def _at_epsilon(self, made: dict[str, Any]) -> list[tuple[str, Any]]:
        """Gives attacks the epsilon, which may be a tensor."""
        return [
            (name, attack.with_epsilon(self.epsilon))
            for name, attack in made.items()
        ]

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns the result of the first stage that succeeds, else x.

        On a surrogate, all stages are run, and the point of the largest margin
        is returned.
        """
        if not isinstance(logits_fn, Logits):
            logits_fn = Logits(logits_fn)
        network = Averaged(logits_fn, self.eot, seeds)
        active, x_adv = examples(logits_fn, x), x
        best = network.score(y, active)
        if best is not None:
            found = tf.stack(
                [attack(logits_fn, x, y, seeds) for _, attack in self.stages]
            )
            strong = strongest(lambda run: found[run], found.shape[0], x, best)
            return where(active, strong, x)
        for _, attack in self.stages:
            found = attack(logits_fn.only(active), x, y, seeds)
            logits = network.predict(found, active, AT_END)
            broken = active & losses.misclassified(logits, y)
            x_adv = where(broken, found, x_adv)
            active &= ~broken
        return x_adv
