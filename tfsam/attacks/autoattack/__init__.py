"""AutoAttack, the standard ensemble, natively in TensorFlow.

Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", section 5: four attacks without
anything to tune, one after the other, each on the examples that stood the ones
before. A file each: `apgd.py`, `fab.py`, `square.py`.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfsam.attacks import losses
from tfsam.attacks.autoattack.apgd import apgd_ce
from tfsam.attacks.autoattack.apgd import apgd_t
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.autoattack.square import Square
from tfsam.attacks.base import Attack
from tfsam.attacks.base import strongest
from tfsam.attacks.base import where
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import predict
from tfsam.attacks.logits import score

# Their defaults are the standard's: 100 steps, 9 targets, 5000 queries.
STAGES: dict[str, Callable] = {
    "apgd_ce": apgd_ce,
    "apgd_t": apgd_t,
    "fab_t": FABT,
    "square": Square,
}


@keras.saving.register_keras_serializable(package="tfsam")
class AutoAttack(Attack):
    """Standard AutoAttack: APGD-CE, APGD-T, FAB-T, Square, in this order.

    It has no options: what is called AutoAttack is this. Of fewer than ten
    classes there are as many targets as there are other classes.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = True
    selective = True
    tensor_epsilon = True

    @property
    def stages(self):
        """The four attacks, (name, attack) each."""
        return [
            (
                name,
                make(0.0, norm=self.norm, bounds=self.bounds).with_epsilon(
                    self.epsilon
                ),
            )
            for name, make in STAGES.items()
        ]

    def perturb(self, logits_fn, x, y, seeds):
        """Returns what the first stage that succeeded found, else x.

        Of a surrogate it is the point of the largest margin of all stages.
        """
        if not isinstance(logits_fn, Logits):
            logits_fn = Logits(logits_fn)
        active, x_adv = examples(logits_fn, x), x
        best = score(logits_fn, y, active)
        if best is not None:
            found = tf.stack(
                [attack(logits_fn, x, y, seeds) for _, attack in self.stages]
            )
            strong = strongest(lambda run: found[run], found.shape[0], x, best)
            return where(active, strong, x)
        for _, attack in self.stages:
            found = attack(logits_fn.only(active), x, y, seeds)
            logits = predict(logits_fn, found, active)
            broken = active & losses.misclassified(logits, y)
            x_adv = where(broken, found, x_adv)
            active &= ~broken
        return x_adv
