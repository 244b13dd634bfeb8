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
import importlib.metadata
import inspect

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

GROUP = "tfsam.attacks"

_NATIVE = {
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "apgd_t": apgd_t,
    "autoattack": AutoAttack,
    "fab_t": FABT,
    "fgsm": FGSM,
    "fmn": FMN,
    "noise_l2": NoiseL2,
    "noise_linf": NoiseLinf,
    "pgd": PGD,
    "pgd_cw": functools.partial(PGD, loss="margin"),
    "pgd_dlr": functools.partial(PGD, loss="dlr"),
    "pgd_t": functools.partial(PGD, targets=9),
    "square": Square,
}


def names():
    """The names that `get` knows, sorted, plug-ins included."""
    return sorted({*_NATIVE, *_plugins()})


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


def make(factory, **options):
    """Calls an attack's factory, with a ValueError for an unknown option.

    Args:
        factory: a callable that returns an attack.
        **options: its keyword arguments.
    """
    known = option_names(factory)
    unknown = sorted(set(options) - known) if known is not None else []
    if unknown:
        raise ValueError(
            f"The options of {_name(factory)} are {sorted(known or ())}. "
            f"Received: {', '.join(f'{k}={options[k]}' for k in unknown)}"
        )
    return factory(**options)


def option_names(factory):
    """The keyword arguments of a factory, or None if it takes any.

    Args:
        factory: a callable that returns an attack.
    """
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def factory(name):
    """The factory of an attack, not called yet.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if the name is unknown, or two packages claim it.
        ImportError: if a plug-in's package cannot be imported.
    """
    name, colon, argument = name.partition(":")
    if colon:
        return functools.partial(factory(name), attack=argument)
    plugins = _plugins().get(name, [])
    if len(plugins) + (name in _NATIVE) > 1:
        claims = [point.value for point in plugins]
        raise ValueError(
            f"Two packages register an attack of one name: {claims}. "
            f"Uninstall one. Received: name={name}"
        )
    if name in _NATIVE:
        return _NATIVE[name]
    if not plugins:
        raise ValueError(
            f"attack must be one of {', '.join(names())}. "
            f"Received: attack={name}"
        )
    try:
        return plugins[0].load()
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"The attack {name!r} ({plugins[0].value}) cannot be imported: "
            f"{error}"
        ) from error


def _plugins():
    """Entry points by name; the same one seen twice on the path counts once."""
    found: dict[str, list] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        same_name = found.setdefault(point.name, [])
        if point.value not in [p.value for p in same_name]:
            same_name.append(point)
    return found


def _name(factory):
    factory = getattr(factory, "func", factory)  # Of a functools.partial.
    return getattr(factory, "__name__", repr(factory))


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
