"""Plans of evaluations: data, attacks, and all else that verdicts depend on."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam import attacks as registry
from tfsam.parts import ATTACKS
from tfsam.support.registry import check_options


class Data(NamedTuple):
    """What is attacked, checked: pixels, labels, and labels as numbers."""

    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray


class Entry(NamedTuple):
    """An attack that was asked for."""

    name: str
    options: dict
    make: Callable
    source: str = "registry"  # Or "factory", or "named" by the user.


class Plan(NamedTuple):
    """What is evaluated: all that a verdict depends on but the model."""

    data: Data
    entries: list
    norm: str
    epsilons: list  # Ascending, each once.
    bounds: Any
    seed: int
    size: int  # Examples attacked at once.
    warm_start: bool
    keep_images: bool  # In the record.
    transfer: bool = False  # A surrogate is attacked.


def entries_of(attacks):
    """The `Entry` of each attack; one that stands alone will do."""
    if isinstance(attacks, str) or callable(attacks):
        attacks = [attacks]
    if not isinstance(attacks, Iterable):
        raise ValueError(
            "attacks must be a list of names, (name, options) or factories. "
            f"Received: attacks={attacks}"
        )
    return [_entry(attack) for attack in attacks]


def _entry(attack):
    """Makes an `Entry` of a name, a factory, or either with options."""
    given, name = attack, None
    options: dict = {}
    fixed: dict = {}
    if isinstance(attack, (tuple, list)) and len(attack) > 1:
        parts = list(attack)
        if len(parts) > 1 and isinstance(parts[0], str) and callable(parts[1]):
            name = parts.pop(0)
        if len(parts) == 2:
            options = parts.pop()
        (attack,) = parts if len(parts) == 1 else (None,)
    if isinstance(attack, registry.Attack) or not isinstance(options, Mapping):
        attack = None  # Made already, or with options that are none.
    if isinstance(attack, str):
        return _registered(attack, options)
    if not callable(attack):
        raise ValueError(
            "an attack must be a name, (name, {option: value}) or a factory, "
            "such as a class of attacks, which gets the epsilon. "
            f"Received: {given}"
        )
    _check_options(attack, options)
    fixed = dict(getattr(attack, "keywords", None) or {})

    def make_by_factory(**arguments):
        return registry.make(attack, **arguments, **options)

    function = getattr(attack, "func", attack)  # Of a functools.partial.
    known_as = getattr(function, "__name__", type(function).__name__)
    return Entry(
        name or known_as,
        fixed | dict(options),
        make_by_factory,
        "factory" if name is None else "named",
    )


def _registered(spec, options):
    """Makes an `Entry` of a registered attack.

    Args:
        spec: the name, which may have options: "pgd:steps=50". It stays the
            name of the entry, so that attacks which differ in their options
            are told apart.
        options: more options, which override those in `spec`.

    Raises:
        ValueError: if the name or an option is unknown.
        ImportError: if the attack needs a library that is not installed.
    """
    attack = ATTACKS.factory(spec)
    _check_options(attack, options)
    spec = ATTACKS.canonical(spec)
    _, named = ATTACKS.parse(spec)
    _check_options(attack, named)
    # The class in foolbox:LinfPGD is part of the name.
    named = {k: v for k, v in named.items() if f":{k}=" in spec}
    return Entry(
        spec,
        named | dict(options),
        lambda **arguments: ATTACKS.make(spec, **arguments, **options),
    )


def _check_options(attack, options):
    """Checks that an attack has options of these names, left to the user.

    Args:
        attack: a factory of attacks.
        options: a mapping from names to values.

    Raises:
        ValueError: if it has not.
    """
    taken = {"epsilon", "norm", "bounds"} & set(options)
    if taken:
        name = min(taken)
        raise ValueError(
            f"the evaluation sets {', '.join(sorted(taken))} of every attack. "
            f"Received: {name}={options[name]}"
        )
    check_options(attack, options)


def cold_entries(entries, norms, epsilon, bounds):
    """Returns the names of attacks that cannot start from an image.

    Args:
        entries: a list of `Entry`.
        norms: "linf", "l2" or both; an attack is named if it can start in none
            of those in which it can be made.
        epsilon: the budget to make the attacks with.
        bounds: (lowest, highest) pixel value, or None.

    Returns:
        A list. An attack that cannot be made is not in it: its row has an
        error.
    """

    def starts(entry, norm):
        try:
            attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)
            return can_start(attack)
        except Exception:
            # Whatever a factory raises, the attack's own row reports it.
            return None

    found = {e.name: [starts(e, norm) for norm in norms] for e in entries}
    return [
        name
        for name, facts in found.items()
        if False in facts and True not in facts
    ]


def can_start(attack):
    """Returns whether an attack can start from a given image.

    Args:
        attack: what a factory made.
    """
    call = getattr(attack, "perturb", attack)
    return "start" in inspect.signature(call).parameters


def has_epsilon(attack, epsilon):
    """Returns whether an attack has no epsilon but the evaluation's.

    Args:
        attack: what a factory made.
        epsilon: that of the evaluation.
    """
    own = getattr(attack, "epsilon", None)
    return own is None or own == epsilon
