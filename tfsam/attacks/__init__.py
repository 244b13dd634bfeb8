"""Attacks by name, and the door through which others' attacks come in.

    attack = tfsam.attacks.get("pgd", epsilon=8 / 255, norm="linf", steps=10)
    x_adv = attack(logits_fn, x, y, seed=0)

The native attacks stand in `_NATIVE`. All others, tfsam's own adapters
included, are entry points of the group `tfsam.attacks` in the metadata of the
package that brings them; nothing of tfsam changes. Only an attack that is asked
for is imported. What an attack must do: `attacks/base.py`; whether it does:
`check`.
"""

import functools
from collections.abc import Callable

from tfsam.attacks.autoattack import AutoAttack
from tfsam.attacks.autoattack.apgd import apgd_ce
from tfsam.attacks.autoattack.apgd import apgd_dlr
from tfsam.attacks.autoattack.apgd import apgd_t
from tfsam.attacks.autoattack.fab import FABT
from tfsam.attacks.autoattack.square import Square
from tfsam.attacks.base import Attack
from tfsam.attacks.check import check
from tfsam.attacks.gradient import FGSM
from tfsam.attacks.gradient import PGD
from tfsam.attacks.logits import Logits
from tfsam.attacks.minimum_norm import FMN
from tfsam.attacks.noise import NoiseL2
from tfsam.attacks.noise import NoiseLinf
from tfsam.support.registry import Registry
from tfsam.support.registry import make
from tfsam.support.registry import option_names

GROUP = "tfsam.attacks"

_NATIVE: dict[str, Callable] = {
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "apgd_t": apgd_t,
    "autoattack": AutoAttack,
    "fab_t": FABT,
    "fgsm": FGSM,
    "fgsm_rs": functools.partial(FGSM, random_start=True),
    "fmn": FMN,
    "noise_l2": NoiseL2,
    "noise_linf": NoiseLinf,
    "pgd": PGD,
    "pgd_cw": functools.partial(PGD, loss="margin"),
    "pgd_dlr": functools.partial(PGD, loss="dlr"),
    "pgd_kl": functools.partial(PGD, loss="kl", random_start="normal"),
    "pgd_t": functools.partial(PGD, targets=9),
    "square": Square,
}


_REGISTRY = Registry("attack", GROUP, _NATIVE)
names = _REGISTRY.names


def get(name, **options):
    """Makes an attack.

    Args:
        name: one of `names()`; "foolbox:LinfPGD" is the attack `foolbox` with
            the option attack="LinfPGD".
        **options: `epsilon`, and what else the attack's factory takes: `norm`,
            `bounds`, `steps`, ...

    Returns:
        A callable (logits_fn, x, y, seed) -> x_adv.

    Raises:
        ValueError: if the name or an option is unknown, an option is out of
            its range, or two packages claim the name.
        ImportError: if a plug-in's package cannot be imported.
    """
    return make(factory(name), **options)


def factory(name):
    """The factory of an attack, not called yet; see `get`.

    Args:
        name: one of `names()`.
    """
    name, colon, argument = name.partition(":")
    found = _REGISTRY.factory(name)
    return functools.partial(found, attack=argument) if colon else found


__all__ = [
    "FGSM",
    "FMN",
    "GROUP",
    "PGD",
    "Attack",
    "AutoAttack",
    "Logits",
    "check",
    "factory",
    "get",
    "make",
    "names",
    "option_names",
]
