"""The versions of AutoAttack beside the standard one: `rand` and `plus`.

The numbers of steps, restarts, draws and targets, and the order of the stages,
are those of the authors' code (Croce and Hein, 2020, "Reliable evaluation of
adversarial robustness with an ensemble of diverse parameter-free attacks").
"""

from typing import Any

import keras

from tfsam.attacks.autoattack import AutoAttack
from tfsam.attacks.autoattack.apgd import apgd_ce
from tfsam.attacks.autoattack.apgd import apgd_dlr
from tfsam.attacks.autoattack.apgd import apgd_t
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.autoattack.fab_untargeted import FAB
from tfsam.attacks.autoattack.square import Square

# Draws that each step of the version for random models averages.
_DRAWS = 20


@keras.saving.register_keras_serializable(package="tfsam")
class AutoAttackRand(AutoAttack):
    """AutoAttack for random models: APGD-CE and APGD-DLR, averaged over draws.

    Both make 100 steps from one start, each of which takes the mean of the
    gradient over 20 draws of the model. Unlike in the authors' code, the loss
    and the logits are means, too; see `tfsam.attacks.averaging`.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: A norm that `apgd_ce` takes, such as "linf".
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> stages = AutoAttackRand(epsilon=8 / 255).stages
        >>> [(name, stage.eot) for name, stage in stages]
        [('apgd_ce', 20), ('apgd_dlr', 20)]
    """

    version = "rand"
    eot = _DRAWS

    @property
    def stages(self) -> list[tuple[str, Any]]:
        """The two attacks in order, as (name, attack)."""
        options = self._common() | {"eot": self.eot}
        made = {
            "apgd_ce": apgd_ce(0.0, **options),
            "apgd_dlr": apgd_dlr(0.0, **options),
        }
        return self._at_epsilon(made)


@keras.saving.register_keras_serializable(package="tfsam")
class AutoAttackPlus(AutoAttack):
    """AutoAttack+: the untargeted attacks with restarts, then targeted ones.

    APGD-CE, APGD-DLR and untargeted FAB with five starts each, Square with 5000
    queries, then APGD-T and FAB-T with nine targets. An untargeted FAB computes
    a gradient for every other class in each step, so it takes long on models of
    many classes.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2". The authors do not define it for l1.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> [name for name, _ in AutoAttackPlus(epsilon=8 / 255).stages]
        ['apgd_ce', 'apgd_dlr', 'fab', 'square', 'apgd_t', 'fab_t']
    """

    version = "plus"
    norms = ("linf", "l2")

    @property
    def stages(self) -> list[tuple[str, Any]]:
        """The six attacks in order, as (name, attack)."""
        options = self._common()
        made = {
            "apgd_ce": apgd_ce(0.0, restarts=5, **options),
            "apgd_dlr": apgd_dlr(0.0, restarts=5, **options),
            "fab": FAB(0.0, restarts=5, **options),
            "square": Square(0.0, **options),
            "apgd_t": apgd_t(0.0, **options),
            "fab_t": FABT(0.0, **options),
        }
        return self._at_epsilon(made)
