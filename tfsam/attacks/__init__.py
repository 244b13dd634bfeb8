"""Attacks by name, tfsam's own and those of other packages.

    attack = tfsam.attacks.get("pgd", epsilon=8 / 255, norm="linf", steps=10)
    x_adv = attack(logits_fn, x, y, seed=0)

`tfsam.registries.ATTACKS` lists the native attacks. Attacks of other packages,
and tfsam's own adapters, are entry points of the group `tfsam.attacks` in
package metadata. An attack is imported when it is first needed. See
`tfsam.attacks.base` for the interface of an attack, and `check` to test that an
attack satisfies it.
"""

from collections.abc import Callable
from typing import Any

# All native attacks are imported here: importing registers them with Keras, and
# `.keras` files of models may contain any of them.
from tfsam import registries
from tfsam.attacks.autoattack import AutoAttack
from tfsam.attacks.autoattack.apgd import apgd_ce
from tfsam.attacks.autoattack.apgd import apgd_dlr
from tfsam.attacks.autoattack.apgd import apgd_t
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.autoattack.fab_untargeted import FAB
from tfsam.attacks.autoattack.square import Square
from tfsam.attacks.autoattack.versions import AutoAttackPlus
from tfsam.attacks.autoattack.versions import AutoAttackRand
from tfsam.attacks.base import Attack
from tfsam.attacks.bpda import BPDA
from tfsam.attacks.check import check
from tfsam.attacks.free import FreeAT
from tfsam.attacks.gradient import FGSM
from tfsam.attacks.gradient import PGD
from tfsam.attacks.logits import Logits
from tfsam.attacks.malt import MALT
from tfsam.attacks.minimum_norm import FMN
from tfsam.attacks.nfgsm import NFGSM
from tfsam.attacks.noise import NoiseL1
from tfsam.attacks.noise import NoiseL2
from tfsam.attacks.noise import NoiseLinf
from tfsam.support.factories import make
from tfsam.support.factories import option_names

GROUP = registries.ATTACKS.group

names = registries.ATTACKS.names


def get(name: str, **options: Any) -> Callable[..., Any]:
    """Makes an attack by name.

    Args:
        name: A name from `names()`, in any case. Options may follow it:
            "pgd:steps=7" is the attack `pgd` with steps=7, and
            "foolbox:LinfPGD" the attack `foolbox` with attack="LinfPGD".
        **options: `epsilon`, and any other argument of the attack's
            constructor: `norm`, `bounds`, `steps`, ... They override the
            options in `name`.

    Returns:
        A callable (logits_fn, x, y, seed) -> x_adv.

    Raises:
        ValueError: If the name or an option is unknown, an option is out of
            its range, or two packages register the name.
        ImportError: If the attack's package cannot be imported, or a library
            that the attack needs is not installed.

    Example:
        >>> get("pgd:steps=7", epsilon=8 / 255).steps
        7
    """
    return registries.ATTACKS.make(name, **options)


def factory(name: str) -> Callable[..., Any]:
    """Returns the factory of an attack, without calling it; see `get`.

    Args:
        name: A name from `names()`, with or without options.

    Returns:
        A callable that takes `epsilon=`, `norm=`, `bounds=` and the options of
        the attack, and returns the attack.

    Example:
        >>> factory("pgd:steps=7")(epsilon=8 / 255).steps
        7
    """
    return registries.ATTACKS.factory(name)


__all__ = [
    "BPDA",
    "FAB",
    "FABT",
    "FGSM",
    "FMN",
    "GROUP",
    "MALT",
    "NFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "AutoAttackPlus",
    "AutoAttackRand",
    "FreeAT",
    "Logits",
    "NoiseL1",
    "NoiseL2",
    "NoiseLinf",
    "Square",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "check",
    "factory",
    "get",
    "make",
    "names",
    "option_names",
]
